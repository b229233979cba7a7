"""Recipes, overrides, errors, and the config files of the peer projects."""

import dataclasses
from pathlib import Path

import pytest

from paths import ROOT
from utils.config import find_config, get_config, make_config
from utils.settings import Config

RECIPES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("base", "__init__"))

HEAD = "from easydict import EasyDict as edict\nconfig = edict()\n"


@pytest.fixture
def recipe(tmp_path):
    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_loads_and_says_what_it_is(name):
    cfg = get_config(f"configs/{name}")
    assert cfg.name == name
    text = find_config(name).read_text()
    for word in ("Data:", "Expected:", "Cost:", "Launch:"):
        assert word in text.split('"""')[1], f"{name} does not say its {word}"


def test_the_shipped_recipes_are_these():
    assert set(RECIPES) == {
        "test_webface_r18_lr02",
        "ms1mv2_r100_mhs",
        "ms1mv3_r50_mhs",
        "ms1mv3_r100_mhs",
        "ms1mv3_r100_full",
        "wf42m_r100_mhs",
        "wf42m_vit_b_mhs",
        "glint360k_r100_mhs",
        "synthetic_1m",
        "lfw_mini",
        "demo",
        "custom",
    }


def test_every_field_has_a_comment():
    lines = (ROOT / "utils" / "settings.py").read_text().splitlines()
    for field in dataclasses.fields(Config):
        (line,) = [text for text in lines if text.startswith(f"    {field.name}: ")]
        assert "  # " in line


def test_base_gives_every_field_a_value():
    base = get_config("configs/base")
    assert {f.name for f in dataclasses.fields(Config)} == set(base.as_dict())


@pytest.mark.parametrize("spelling", ["configs/demo", "configs/demo.py", "demo", str(ROOT / "configs" / "demo.py")])
def test_spellings_from_any_folder(spelling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert get_config(spelling).name == "demo"


def test_a_recipe_of_the_users_own(recipe):
    cfg = get_config(recipe(HEAD + "config.lr = 0.3\nconfig.rec = 'faces'\n"))
    assert (cfg.lr, cfg.rec, cfg.network, cfg.name) == (0.3, "faces", "r50", "mine")


def test_overrides():
    overrides = ["lr=0.5", "val_targets=lfw,cfp_fp", "fp16=true", "num_classes=[4,5]", "output=None", "network=r18"]
    cfg = get_config("demo", [*overrides, "head_size=None", "bf16=False"])
    assert cfg.lr == 0.5
    assert cfg.val_targets == ("lfw", "cfp_fp")
    assert cfg.fp16 is True
    assert cfg.num_classes == (4, 5)
    assert cfg.output is None
    assert cfg.network == "r18"


def test_several_sets():
    cfg = get_config("demo", ["rec=[a/faces,~/b]", "rec_weights=1,0.5", "class_map=~/people.json"])
    assert cfg.sources() == ("a/faces", str(Path.home() / "b"))
    assert cfg.rec_weights == (1.0, 0.5)
    assert cfg.class_map == str(Path.home() / "people.json")
    assert get_config("demo", ["rec=faces,b"]).sources() == ("faces,b",), "a comma may be part of a name"


@pytest.mark.parametrize("key", ["rec", "class_map", "init_backbone", "init_centres", "head_folder"])
def test_a_tilde_is_the_home_folder(key):
    assert getattr(get_config("demo", [f"{key}=~/mine"]), key) == str(Path.home() / "mine")


def test_texts_of_numpy_become_plain_ones(recipe):
    """They come from tables; a checkpoint notes the settings, and must not hold numpy's types."""
    file = recipe("import numpy\nfrom easydict import EasyDict\nnames = numpy.array(['sgd', 'an old table'])\n"
                  "config = EasyDict(optimizer=names[0], notes=names[1], val_targets=list(names))")  # fmt: skip
    cfg = get_config(file)
    assert [type(text) for text in (cfg.optimizer, cfg.notes, *cfg.val_targets)] == [str] * 4


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_config("demo").lr = 1.0


def test_options_of_a_loss_come_from_a_file_or_the_command_line(recipe):
    cfg = get_config(
        recipe(HEAD + "config.loss = 'magface'\nconfig.loss_options = {'l_a': 5, 'easy_margin': True}\n")
    )
    assert cfg.loss_options == {"l_a": 5.0, "easy_margin": True}
    assert get_config("demo", ["loss_options={'t_alpha': 0}"]).loss_options == {"t_alpha": 0.0}
    with pytest.raises(ValueError, match="loss_options must be a dictionary of numbers or None, got 'h'"):
        get_config("demo", ["loss_options=h"])


def test_momentum_of_centres_means_nothing_to_adamw():
    assert get_config("demo", ["optimizer=adamw", "row_momentum=0.9"]).without_effect() == ["row_momentum"]


def test_a_cache_of_heads_goes_with_heads_elsewhere(tmp_path):
    cfg = get_config("demo", ["head_storage=host", "head_cache_gib=2"])
    assert cfg.head_options(tmp_path)["head_cache_gib"] == 2.0
    assert get_config("demo", ["head_storage=file"]).head_cache_gib == 0.0


def test_head_layouts():
    assert get_config("demo", ["num_classes=100", "head_size=7", "negative_rate=0.2"]).head_layout() == (7, 0.2, None)
    assert get_config("demo", ["num_classes=100", "head_size=None"]).head_layout() == (1, 1.0, None)
    partial_fc = get_config("demo", ["num_classes=100", "head_size=None", "sample_rate=0"])
    assert partial_fc.head_layout() == (1, 0.0, 0.0)
    assert get_config("demo", ["num_classes=auto"]).class_count() is None


def test_rate_follows_the_batch_where_asked():
    cfg = get_config("demo", ["lr=0.1", "lr_batch=512", "batch_size=64", "gradient_acc=2"])
    assert cfg.base_lr(8) == pytest.approx(0.2)
    assert get_config("demo", ["lr=0.1"]).base_lr(8) == 0.1
    overrides = ["lr=0.1", "lr_batch=256", "lr_scaling=sqrt", "batch_size=64", "gradient_acc=2"]
    assert get_config("demo", overrides).base_lr(8) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("overrides", "unread"),
    [
        (["lr_power=None"], []),
        (["lr_schedule=cosine", "lr_end=0.001"], ["lr_power"]),
        (["lr_schedule=step", "lr_steps=[1]", "lr_end=0.001", "lr_power=None", "lr_gamma=0.5"], ["lr_end"]),
        (["lr_steps=[1,2]", "lr_gamma=0.5"], ["lr_steps", "lr_gamma"]),
    ],
)
def test_settings_of_another_schedule_are_named(overrides, unread):
    assert get_config("demo", overrides).without_effect() == unread


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=0.1", "unknown setting 'learning_rate'"),
        ("warmup_epochs=1", "did you mean 'warmup_epoch'"),
        ("lr=fast", r"lr must be a number, got 'fast' \(str\)"),
        ("lr=nan", "lr must be a number"),
        ("lr=-1", "lr must be above 0, got -1"),
        ("lr_power=0", "lr_power must be above 0, or None, got 0"),
        ("lr_schedule=linear", "lr_schedule must be 'poly' or 'cosine' or 'step', got 'linear'"),
        ("lr_schedule=step", r"needs lr_steps: the epochs after which the rate falls, such as \(8, 14\)"),
        ("lr_steps=[8,8]", r"lr_steps must be rising epochs above 0, such as \(8, 14\), got \(8.0, 8.0\)"),
        ("lr_steps=[0,8]", "lr_steps must be rising epochs above 0"),
        ("lr_gamma=0", "lr_gamma must be above 0 and at most 1, got 0"),
        ("lr_end=-1", "lr_end must be at least 0, got -1"),
        ("lr_scaling=sqrt", "lr_scaling = 'sqrt' needs lr_batch: the total batch that lr is meant for"),
        ("ema_decay=1", r"ema_decay must be in \[0, 1\), such as 0.9999, or 0 for no average, got 1"),
        ("sample_rate=-0.1", r"sample_rate must be in \[0, 1\], got -0.1"),
        ("head_cache_gib=-1", "head_cache_gib must be at least 0, got -1"),
        ("head_cache_gib=inf", "head_cache_gib must be a number"),
        ("head_cache_gib=2", "head_cache_gib = 2 keeps heads .* head_storage = 'device' keeps all of them there"),
        ("row_lr=0", "row_lr must be above 0, got 0"),
        ("row_momentum=1", r"row_momentum must be in \[0, 1\), got 1"),
        ("row_idle=wait", "row_idle must be 'keep' or 'decay' or 'dense' or None, got 'wait'"),
        ("batch_size=1", "batch_size must be at least 2"),
        ("batch_size=2.5", "batch_size must be a whole number, got 2.5"),
        ("batch_size=true", "batch_size must be a whole number, got True"),
        ("loss=softmax", "loss must be 'arcface' or 'cosface' or .* or 'curricularface', got 'softmax'"),
        ("margin_list=(1,2)", "margin_list must be a list of 3 numbers or None"),
        ("num_classes=0", "num_classes must be at least 1"),
        ("num_classes=[4,0]", "num_classes must be at least 1"),
        ("num_classes=many", "num_classes must be"),
        ("warmup_epoch=1000", "warmup_epoch must be below num_epoch = .* .set warmup_epoch=0 for none., got 1000"),
        ("image_size=(96,96)", "image_size must be .112, 112."),
        ("sample_rate=0.5", "sample_rate = 0.5 is PartialFC's"),
        ("interclass_filtering_threshold=0.4", "give margin_list too"),
        ("loss=combined", "needs margin_list"),
        ("wandb_key=0123456789abcdef", "WANDB_API_KEY"),
        ("just_a_word", "key=value"),
        ("rec=3", "rec must be a text or a list of texts, got 3"),
        ("rec_weights=a", "rec_weights must be a list of numbers or None, got 'a'"),
        ("rec_weights=[0]", r"rec_weights must be above 0 for each set, got \(0.0,\)"),
        ("rec_weights=[1,2]", r"one number for each set of rec, 1, got \(1.0, 2.0\)"),
        ("rec=[faces,synthetic]", "a list in rec holds folders and .rec files"),
        ("on_bad_sample=ignore", "on_bad_sample must be 'stop' or 'skip', got 'ignore'"),
        ("shuffle_chunk=-1", "shuffle_chunk must be at least 0"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(override, message):
    with pytest.raises(ValueError, match=message):
        get_config("demo", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_classes=[10,4]", "head_size=5"], "means heads of 4 classes, but head_size = 5"),
        (["head_size=None", "negative_rate=0.1"], "negative_rate needs head_size"),
        (["rec=synthetic", "num_classes=auto"], "needs num_classes"),
        (["optimizer=adamw", "row_idle=dense"], "row_idle = 'dense' needs optimizer = 'sgd'"),
    ],
)
def test_settings_that_exclude_each_other(overrides, message):
    with pytest.raises(ValueError, match=message):
        get_config("demo", overrides)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(FileNotFoundError, match="did you mean configs/ms1mv3_r50_mhs"):
        get_config("configs/ms1mv3_r50_mh")


def test_a_module_without_config(recipe):
    with pytest.raises(ValueError, match="must define config = edict"):
        get_config(recipe("lr = 0.1\n"))


def test_a_base_with_a_hole_is_found():
    values = get_config("demo").as_dict()
    del values["lr"]
    with pytest.raises(ValueError, match="must give a value to lr"):
        make_config(values)
