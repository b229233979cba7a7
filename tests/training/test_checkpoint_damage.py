"""Damages of every kind to a checkpoint's files; the whole thousand is played by ``make faults``."""

import pytest

from faults.checkpoint_damage import DAMAGES, Place
from utils.manifest import CheckedFile

pytestmark = pytest.mark.distributed
SEEDS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_noticed_and_the_file_is_named(place, kind):
    rows = [place.damage(kind, seed) for seed in range(1000, 1000 + SEEDS)]
    assert [row["outcome"] for row in rows] == ["refused, a file named"] * SEEDS


def test_the_instrument_sees_what_goes_unnoticed(place, monkeypatch):
    """With checksums switched off, some damages load as other values."""
    monkeypatch.setattr("utils.manifest.CheckedFile.__init__", unchecked(CheckedFile.__init__))
    outcomes = [place.damage("a bit flipped", seed)["outcome"] for seed in range(30)]
    assert "loads other values" in outcomes


def unchecked(init):
    return lambda file, path, expected: init(file, path, None)
