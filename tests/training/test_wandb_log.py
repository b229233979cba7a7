"""Weights & Biases: where its login is found, what it gets, and that its failures end no run."""

import sys
import threading
import types

import pytest

from training import wandb_log as ours
from training.metrics import MetricsWriter
from utils.config import get_config


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")
        self.logged, self.options, self.ended, self.saved = [], None, None, None

    def init(self, **options):
        self.options = options
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def save(self, path):
        self.saved = path

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_API_KEY", "from the environment")
    return module


def test_weights_and_biases_gets_what_the_config_says(tmp_path, wandb):
    cfg = get_config(
        "demo",
        ["using_wandb=True", "wandb_entity=us", "wandb_project=faces", "suffix_run_name=b", "wandb_resume=True"],
    )
    ours.check_wandb(cfg)
    with MetricsWriter(tmp_path, 0, cfg) as metrics:
        metrics.write(1, {"loss": 2.0})
        metrics.artifact = tmp_path / "model.pt"
    assert wandb.logged == [(1, {"loss": 2.0})]
    assert wandb.saved == str(tmp_path / "model.pt")
    assert wandb.ended == 0
    wanted = {"entity": "us", "project": "faces", "name": "demo_b", "resume": "allow"}
    assert wanted.items() <= wandb.options.items()


@pytest.mark.parametrize(("all_ranks", "logs"), [(False, False), (True, True)])
def test_other_ranks_log_only_where_asked(tmp_path, wandb, all_ranks, logs):
    cfg = get_config("demo", ["using_wandb=True", f"wandb_log_all={all_ranks}"])
    with MetricsWriter(tmp_path, 0, cfg, is_main=False) as metrics:
        metrics.write(1, {"loss": 2.0})
    assert bool(wandb.logged) == logs
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.fixture
def nobody(wandb, monkeypatch, tmp_path):
    """A machine on which nobody has logged in."""
    for name in ("API_KEY", "MODE", "BASE_URL", "IDENTITY_TOKEN_FILE", "CONFIG_DIR", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def check():
    ours.check_wandb(get_config("demo", ["using_wandb=True"]))


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_login_the_run_is_refused_with_what_to_do(nobody):
    with pytest.raises(ValueError, match=r"nobody has logged in to W&B here: run `wandb login`, .*"):
        check()


@pytest.mark.parametrize(
    ("name", "value"),
    [("API_KEY", "k"), ("MODE", "offline"), ("MODE", "dryrun"), ("MODE", "disabled"), ("IDENTITY_TOKEN_FILE", "f")],
)
def test_a_variable_is_enough(nobody, monkeypatch, name, value):
    monkeypatch.setenv(f"WANDB_{name}", value)
    check()


def test_what_wandb_login_has_left_is_enough_for_its_host_alone(nobody, monkeypatch):
    put(nobody / ".netrc", "machine api.wandb.ai\n  login user\n  password 0123\n")
    check()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(ValueError, match=r"logged in to https://wandb\.example\.org"):
        check()
    put(nobody / "elsewhere", "machine wandb.example.org\n  login user\n  password 0123\n")
    monkeypatch.setenv("NETRC", str(nobody / "elsewhere"))
    check()


def test_settings_files_count(nobody):
    """`wandb offline` leaves one in the working directory, `wandb login --host` one of the user's."""
    put(nobody / "wandb" / "settings", "[default]\nmode = offline\n")
    check()
    put(nobody / "wandb" / "settings", "[default]\nmode = online\n")
    put(nobody / ".config" / "wandb" / "settings", "[default]\nbase_url = https://wandb.example.org\n")
    with pytest.raises(ValueError, match="example"):
        check()


@pytest.mark.parametrize("name", [".netrc", "wandb/settings"])
def test_a_broken_file_is_no_login(nobody, name):
    put(nobody / name, "machine machine\n[[\x00")
    with pytest.raises(ValueError, match="nobody has logged in"):
        check()


def warnings_of(monkeypatch):
    said = []
    monkeypatch.setattr(ours.log, "warning", lambda text, *values: said.append(text % values))
    return said


@pytest.mark.parametrize(
    ("where", "kind"),
    [(where, kind) for where in ("init", "log", "finish") for kind in (ConnectionError, SystemExit)]
    + [("finish", KeyboardInterrupt)],
)
def test_a_server_that_fails_is_one_warning(tmp_path, wandb, monkeypatch, where, kind):
    def fail(*_args, **_options):
        raise kind("no answer\nfrom the server")

    said = warnings_of(monkeypatch)
    monkeypatch.setattr(wandb, where, fail)
    with MetricsWriter(tmp_path, 0, get_config("demo", ["using_wandb=True"])) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 2.0})
    assert len(said) == 1
    assert f"{kind.__name__}: no answer from the server" in said[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("where", ["init", "log"])
def test_a_ctrl_c_while_the_main_thread_is_in_it_goes_on(tmp_path, wandb, monkeypatch, where):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(wandb, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        ours.WandbLog(get_config("demo", ["using_wandb=True"]), tmp_path).write(1, {"loss": 2.0})


def test_an_end_that_never_comes_is_given_up(tmp_path, wandb, monkeypatch):
    over = threading.Event()
    said = warnings_of(monkeypatch)
    monkeypatch.setattr(ours, "_FINISH_S", 0.1)
    monkeypatch.setattr(wandb, "finish", lambda exit_code: over.wait(20))
    with MetricsWriter(tmp_path, 0, get_config("demo", ["using_wandb=True"])):
        pass
    over.set()
    assert said == ["Weights & Biases has not taken all figures within 0.1 s: `wandb sync` sends them"]
