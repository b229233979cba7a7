"""init_centres = an older run: the centres of people who are in both runs are carried over."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

import train
from heads.shard import first_centres
from ranks import run_ranks
from tiny_runs import TINY
from utils.config import get_config
from utils.distributed import Ranks, all_gather_objects

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
OLD, NEW = ["ann", "bob", "cid", "dan", "eve", "fay", "gus"], ["bob", "cyd", "eve", "fay", "gus", "hal", "ian", "jan"]
SHARED = [(NEW.index(name), OLD.index(name)) for name in ("bob", "eve", "fay", "gus")]


def folder(root, names):
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(3):
            cv2.imwrite(str(root / name / f"{i}.png"), rng.integers(0, 255, (112, 112, 3), np.uint8))
    return root


def options(faces, output, *overrides):
    return [f"rec={faces}", "num_classes=auto", f"output={output}", "head_size=2", "num_epoch=2", *overrides]


def train_old(rank, world_size, overrides):
    state, data = train.prepare(get_config(TINY, overrides), Ranks(rank, world_size, rank, torch.device("cpu")))
    train.train(state, data)
    return all_centres(state)


def start_new(rank, world_size, overrides):
    state, _ = train.prepare(get_config(TINY, overrides), Ranks(rank, world_size, rank, torch.device("cpu")))
    return all_centres(state)


def all_centres(state):
    shard = state.classifier.shard
    own = torch.arange(shard.layout.class_start, shard.layout.class_end)
    return torch.cat(all_gather_objects(shard.centres(own)))


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """A run on other people, and its centres."""
    root = tmp_path_factory.mktemp("older")
    faces = folder(root / "faces", OLD)
    centres = train_old(0, 1, [*options(faces, root / "run"), "device=cpu"])
    return root / "run", centres


@pytest.fixture
def faces(tmp_path):
    return folder(tmp_path / "faces", NEW)


def check(centres, old, pairs):
    wanted = first_centres(2048, torch.arange(len(centres)), 32, torch.float32)
    for new, before in pairs:
        wanted[new] = old[before]
    assert torch.equal(centres, wanted)


@pytest.mark.parametrize("place", ["device", "host", "file"])
@pytest.mark.parametrize("source", ["", "checkpoints", "checkpoints/step_4"])
def test_people_are_matched_by_name(tmp_path, older, faces, source, place):
    run, old = older
    checkpoint = f"init_centres={run / source}"
    centres = start_new(0, 1, options(faces, tmp_path / "run", checkpoint, f"head_storage={place}"))
    check(centres, old, SHARED)
    assert not torch.equal(centres[0], first_centres(2048, torch.tensor([0]), 32, torch.float32)[0])
    log = (tmp_path / "run" / "training.log").read_text()
    assert "init_centres: 4 of 8 people carried over, 4 new, 3 left behind\n" in log


@pytest.mark.distributed
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path, faces):
    run = tmp_path / "old"
    old = run_ranks(train_old, 2, options(folder(tmp_path / "before", OLD), run, "batch_size=4"))[0]
    for centres in run_ranks(start_new, 3, options(faces, tmp_path / "run", f"init_centres={run}", "batch_size=2")):
        check(centres, old, SHARED)


@pytest.mark.parametrize(
    ("entries", "pairs"),
    [
        ({"cid": "cyd", "0": 7, "eve": 2}, [(1, 2), (7, 0), (2, 4)]),
        ({"6": "ian"}, [(6, 6)]),
    ],
)
def test_a_map_decides_alone(tmp_path, older, faces, entries, pairs):
    run, old = older
    (tmp_path / "map.json").write_text(json.dumps(entries))
    extra = [f"init_centres={run}", f"centres_map={tmp_path / 'map.json'}"]
    check(start_new(0, 1, options(faces, tmp_path / "run", *extra)), old, pairs)


def test_people_whom_no_step_has_trained_start_at_random(tmp_path, faces):
    """One step of two images: most heads of the older run were never updated."""
    before = folder(tmp_path / "before", OLD)
    state, data = train.prepare(
        get_config(TINY, options(before, tmp_path / "old", "batch_size=2", "head_size=1")), ALONE
    )
    state.train_step(train.epoch_batches(state, data, train.Speedometer()))
    state.save()
    state.saver.finish()
    trained = {OLD[i] for i in state.classifier.shard.visits.nonzero().flatten().tolist()}
    pairs = [(new, old) for new, old in SHARED if OLD[old] in trained]
    centres = start_new(0, 1, options(faces, tmp_path / "run", f"init_centres={tmp_path / 'old'}", "head_size=1"))
    check(centres, all_centres(state), pairs)
    log = (tmp_path / "run" / "training.log").read_text()
    new, untrained = 8 - len(pairs), 4 - len(pairs)
    assert untrained > 0
    assert (
        f"{len(pairs)} of 8 people carried over, {new} new, 3 left behind; {untrained} of the new ones are in" in log
    )


def refusal(overrides):
    with pytest.raises((ValueError, OSError)) as caught:
        train.prepare(get_config(TINY, overrides), ALONE)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[]", "expected {"),
        ("{", "no JSON"),
        ('{"zoe": 1}', "no class 'zoe' in the older run, which has 0 to 6"),
        ('{"7": 1}', "no class '7' in the older run, which has 0 to 6"),
        ('{"ann": 8}', "no class 8 in this run, which has 0 to 7"),
        ('{"ann": true}', "no class True in this run"),
        ('{"ann": "dan"}', "no class 'dan' in this run"),
        ('{"ann": 1, "bob": "cyd"}', "'bob': 'cyd' names someone whom an earlier entry names"),
        ('{"ann": 1, "0": 2}', "'0': 2 names someone whom an earlier entry names"),
    ],
)
def test_a_wrong_map_is_explained(tmp_path, older, faces, entries, message):
    path = tmp_path / "map.json"
    path.write_text(entries)
    text = refusal(options(faces, tmp_path / "run", f"init_centres={older[0]}", f"centres_map={path}"))
    assert text.startswith(f"{path}: ")
    assert message in text


def test_what_does_not_fit_is_explained(tmp_path, older, faces):
    run, _ = older
    old = f"init_centres={run}"
    assert "init_centres is neither class_means nor a checkpoint: class_mean holds no checkpoint" in refusal(
        options(faces, tmp_path / "run", "init_centres=class_mean")
    )
    assert "have 32 numbers, this run's have 64; set embedding_size = 32" in refusal(
        options(faces, tmp_path / "run", old, "embedding_size=64")
    )
    assert "this run's data has no names of people to match by; give centres_map" in refusal(
        [f"output={tmp_path / 'run'}", old]
    )
    strangers = folder(tmp_path / "strangers", ["x", "y"])
    text = refusal(options(strangers, tmp_path / "run", old, "batch_size=2"))
    assert "nobody of" in text
    assert "(there 'ann', ..., here 'x', ...); give centres_map = FILE.json" in text
    assert "no file" in refusal(options(faces, tmp_path / "run", old, "centres_map=none.json"))
    assert not (tmp_path / "run" / "training.log").exists()


def test_names_that_two_people_have_ask_for_a_map(tmp_path, older, faces):
    run, _ = older
    copy = tmp_path / "copy"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    start = options(faces, tmp_path / "run", f"init_centres={copy}")
    assert "classes.json has no names of people" in refusal(start)
    (copy / "classes.json").write_text(json.dumps(["bob", "bob", None]))
    assert "'bob' is the name of classes 0 and 1 of the older run; say who is who with centres_map" in refusal(start)
    (copy / "classes.json").write_text("{")
    assert "classes.json: no JSON" in refusal(start)
    (copy / "classes.json").write_text(json.dumps({"sets": [], "names": ["ann", None, "bob"]}))
    assert start_new(0, 1, start).shape == (8, 32)


def test_a_map_needs_an_older_run():
    with pytest.raises(ValueError, match="centres_map says who is who in the older run of init_centres"):
        get_config(TINY, ["centres_map=a.json"])
