import json

import numpy as np
import pytest

from eval.ijb import cache as embedding_cache
from eval.ijb.cache import EmbeddingCache, cache_key


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "IMAGES_PER_PART", 4)
    cache = EmbeddingCache(tmp_path / "cache" / "key", 10)
    cache.open({"network": "rtiny"})
    return cache


def halves(n, width=6):
    return np.random.default_rng(n).standard_normal((n, width)).astype(np.float32)


def fill(cache):
    parts = {0: halves(4), 4: halves(4) + 1, 8: halves(2)}
    for start, part in parts.items():
        cache.write(start, part)
    return parts


def test_parts_come_back_as_they_were_written(cache):
    assert cache.missing() == ([(0, 4), (4, 8), (8, 10)], [])
    parts = fill(cache)
    assert cache.missing() == ([], [])
    np.testing.assert_array_equal(cache.read(0, 10), np.concatenate(list(parts.values())))
    for start, end in ((0, 1), (3, 5), (4, 8), (5, 10), (9, 10)):
        np.testing.assert_array_equal(cache.read(start, end), np.concatenate(list(parts.values()))[start:end])
    assert json.loads((cache.folder / "about.json").read_text()) == {"network": "rtiny", "images": 10}


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-3] ^= 4
    elif how == "cut":
        del data[-8:]
    elif how == "emptied":
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied"])
def test_a_damaged_part_is_removed_and_missing(cache, how):
    fill(cache)
    path = next(cache.folder.glob("000000004-*"))
    damage(path, how)
    assert cache.missing() == ([(4, 8)], [path.name])
    assert not path.exists()
    with pytest.raises(OSError, match="embeddings 4 to 7 have gone"):
        cache.read(0, 10)
    cache.write(4, halves(4))
    assert cache.missing() == ([], [])


def test_parts_of_another_kind_are_not_used(cache):
    """Another name, another length than the name says, another width than the parts before."""
    fill(cache)
    (cache.folder / "notes.npy").write_bytes(b"x")
    cache.write(8, halves(2, width=4))
    missing, removed = cache.missing()
    assert missing == []
    assert len(removed) == 2
    assert "notes.npy" in removed
    assert cache.read(0, 10).shape == (10, 6)


def test_two_writers_of_one_part_leave_a_sound_one(cache):
    fill(cache)
    cache.write(0, halves(4) + 1e-6)  # another rank's rounding
    assert cache.missing() == ([], [])
    assert cache.read(0, 10).shape == (10, 6)


def test_the_key_holds_everything_that_matters():
    landmarks, stamps = np.zeros((2, 5, 2), np.float32), np.zeros((2, 2), np.int64)
    facts = {"sha256": "ab", "precision": "float32"}
    keys = [
        cache_key(facts, ["a", "b"], landmarks, stamps),
        cache_key(facts | {"sha256": "ac"}, ["a", "b"], landmarks, stamps),
        cache_key(facts | {"precision": "bfloat16"}, ["a", "b"], landmarks, stamps),
        cache_key(facts, ["b", "a"], landmarks, stamps),
        cache_key(facts, ["a", "b"], landmarks + 1, stamps),
        cache_key(facts, ["a", "b"], landmarks, stamps + 1),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache_key(dict(reversed(facts.items())), ["a", "b"], landmarks.copy(), stamps.copy())
