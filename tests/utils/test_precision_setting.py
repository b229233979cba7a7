"""The setting precision and its older spellings: who decides, and what contradicts."""

import pytest

from utils.config import get_config
from utils.precision import settled_spellings, spellings_of

HEAD = "from easydict import EasyDict as edict\nconfig = edict()\n"


@pytest.mark.parametrize(
    ("recipe", "overrides", "precision"),
    [
        ("", [], "auto"),
        ("fp16 = True", [], "fp16"),
        ("fp16 = False", [], "float32"),  # as insightface's base.py
        ("bf16 = False", [], "float32"),
        ("fp16 = None", [], "auto"),
        ("fp16 = False; config.bf16 = True", [], "bf16"),
        ("fp16 = False; config.precision = 'bf16'", [], "bf16"),
        ("fp16 = True; config.precision = 'fp16'", [], "fp16"),
        ("fp16 = True; config.precision = 'auto'", [], "fp16"),
        ("fp16 = True", ["precision=bf16"], "bf16"),
        ("fp16 = True", ["bf16=True"], "bf16"),
        ("fp16 = True", ["fp16=False"], "float32"),
        ("fp16 = True", ["bf16=False"], "fp16"),
        ("fp16 = True", ["precision=auto"], "auto"),
        ("precision = 'float32'", ["fp16=True"], "fp16"),
        ("precision = 'bf16'", ["fp16=False"], "bf16"),
        ("precision = 'bf16'", ["lr=0.1"], "bf16"),
    ],
)
def test_the_last_layer_that_names_a_precision_decides(tmp_path, recipe, overrides, precision):
    (tmp_path / "mine.py").write_text(HEAD + (f"config.{recipe}\n" if recipe else ""))
    cfg = get_config(tmp_path / "mine.py", overrides)
    assert {name: getattr(cfg, name) for name in spellings_of(precision)} == spellings_of(precision)
    again = settled_spellings([cfg.as_dict()])
    assert again == spellings_of(precision), "config.json means the same"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fp16=True", "bf16=True"], "fp16 and bf16 exclude each other: set one of them, or precision alone"),
        (["fp16=True", "precision=bf16"], "fp16 = True contradicts precision = 'bf16': give precision alone"),
        (["bf16=True", "precision=float32"], "bf16 = True contradicts precision = 'float32'"),
        (["bf16=False", "precision=bf16"], "bf16 = False contradicts precision = 'bf16'"),
        (["fp16=1"], r"fp16 must be True or False or None, got 1 \(int\)"),
        (["precision=half"], "precision must be 'auto' or 'float32' or 'bf16' or 'fp16', got 'half'"),
        (["precision=None"], "precision must be 'auto' or 'float32'"),
    ],
)
def test_contradictions_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        get_config("demo", overrides)


def test_what_auto_is_must_be_settled_before_it_is_used():
    cfg = get_config("custom")
    assert cfg.without_effect() == []
    with pytest.raises(AssertionError, match="settle_precision"):
        cfg.amp_dtype()
    assert cfg.with_precision("fp16").amp_dtype().itemsize == 2
    assert cfg.with_precision("float32").amp_dtype() is None
