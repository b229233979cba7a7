import pytest

from utils.config import get_config
from utils.config_secrets import refuse_secrets

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "override",
    [
        f"wandb_key={KEY}",
        "wandb_key=1234567890123456789012345678901234567890",  # reads as a number
        f"wandb_key=[{KEY}]",
        f"wandb_entity={KEY}",
        f"wandb_project={KEY}",
        f"suffix_run_name=local-{KEY}",
        f"rec=s3://me:{KEY}@host/faces",
        f"rec=[A,https://:{KEY}@host/faces]",
        f"api_key={KEY}",
        f"wandb_key:{KEY}",
        f"password:{KEY}",
    ],
)
def test_keys_are_refused_and_not_shown(override):
    with pytest.raises(ValueError) as caught:
        get_config("demo", [override])
    text = str(caught.value)
    assert "0123456789" not in text
    assert "1234567890" not in text
    assert override.partition("=")[0].partition(":")[0] in text


@pytest.mark.parametrize("setting", ["notes", "wandb_entity", "output", "rec", "val_targets"])
def test_the_key_of_the_environment_is_in_no_setting(setting, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "my-own-key")
    with pytest.raises(ValueError, match=f"^{setting} holds what the environment variable WANDB_API_KEY") as caught:
        get_config("demo", [f"{setting}=a my-own-key b"])
    assert "my-own-key" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "a"])
def test_what_is_no_key_is_looked_for_nowhere(key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", key)
    get_config("demo", ["notes=a b"])


def test_usual_values_pass():
    refuse_secrets({"wandb_key": "XXXXXXXX", "notes": f"commit {KEY}", "rec": "https://host:80/a@b", "lr": 0.1})
    refuse_secrets({"wandb_key": None, "wandb_entity": "team", "output": "C:/a", "val_targets": ("lfw",)})
