import dataclasses

import pytest

from utils.config import get_config, make_config
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


@pytest.mark.parametrize("using", [True, False])
@pytest.mark.parametrize("setting", ["wandb_key", "wandb_entity", "notes"])
def test_keys_of_the_new_form_are_refused_in_any_setting(setting, using):
    with pytest.raises(ValueError, match=f"^{setting} ") as caught:
        get_config("demo", [f"{setting}=wandb_v1_{KEY}", f"using_wandb={using}"])
    assert KEY not in str(caught.value)


def test_a_shown_config_says_of_the_key_only_that_it_is_given_and_can_be_read_again():
    shown = get_config("demo", ["wandb_key=XXXXXXXXXXXXXXXX"]).as_dict()
    assert shown["wandb_key"] == "***"
    assert make_config(shown).as_dict() == shown
    assert dataclasses.replace(get_config("demo"), wandb_key=KEY).as_dict()["wandb_key"] == "***"
    assert get_config("demo").as_dict()["wandb_key"] is None
