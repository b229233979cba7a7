"""The benchmark of checkpoints: what it writes and visits, and that it runs."""

import json
import os
import shutil

import pytest
import torch

from benchmarks import bench_checkpoint
from benchmarks.checkpoint_case import CheckpointCase, Visited, disk_bytes, same_rows
from heads.shard import HeadShard
from utils.atomic import sync_file

CASE = CheckpointCase("device", 1000, 0.9, 0.5, 3, 16, 8, 2, "", 5, 1)
MEASURED = ("during_s", "begin_ms", "finish_ms", "quiet_step_ms", "busy_step_ms", "plain_step_ms", "plain_write_s")


def test_quick_writes_a_record_that_can_be_shown_again(tmp_path, capsys):
    out, folder = tmp_path / "raw" / "checkpoint.jsonl", tmp_path / "data"
    assert bench_checkpoint.main(["--quick", "--folder", str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    (r,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(folder.iterdir()) == []
    assert r["row_bytes"] == 2 * 4 * 6000 * 64
    assert r["row_bytes"] < r["full_bytes"] < 1.1 * r["row_bytes"]
    assert r["row_bytes"] < r["dcp_bytes"] < 1.1 * r["row_bytes"]
    assert 0.1 * r["full_bytes"] < r["incremental_bytes"] < 0.5 * r["full_bytes"]
    assert r["both_disk_bytes"] < 1.5 * r["full_disk_bytes"]
    for key in ("full_save_s", "load_s", "incremental_save_s", "copy_s", "dcp_save_s", "dcp_load_s"):
        assert r[key] > 0, key
    for key in MEASURED:
        assert len(r[key]) >= 2, key
        assert min(r[key]) > 0, key
    assert bench_checkpoint.main(["--read", str(out)]) == 0
    assert capsys.readouterr().out in printed


def test_visits_each_head_of_its_share_once():
    visited = Visited(CASE)
    heads = torch.cat(visited.once()) // CASE.head_size
    assert len(set(visited.heads_n.tolist())) == CASE.heads == 167
    assert set(heads.tolist()) == set(visited.heads_n.tolist())
    assert len(heads) < CASE.heads + CASE.batch
    drawn = torch.cat(visited.draw(50))
    assert int(drawn.max()) < CASE.classes
    assert {label % CASE.head_size for label in drawn.tolist()} == {0, 1, 2}
    assert set((drawn // CASE.head_size).tolist()) <= set(visited.heads_n.tolist())


def test_a_file_with_two_names_is_counted_once(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    (one / "file").write_bytes(os.urandom(100_000))
    sync_file(one / "file")  # some file systems put off giving it its blocks
    alone = disk_bytes([one])
    two.mkdir()
    os.link(one / "file", two / "file")
    assert disk_bytes([one, two]) == alone >= 100_000
    shutil.copyfile(one / "file", two / "copy")
    sync_file(two / "copy")
    assert disk_bytes([one, two]) == 2 * alone


def test_other_rows_than_those_saved_are_noticed():
    one, other = (HeadShard(12, 4, head_size=3) for _ in range(2))
    for shard in (one, other):
        shard.storage.store(torch.tensor([1]), {"weight": torch.ones(3, 4)})
    same_rows(one, other)
    other.weight[3, 0] = 2
    with pytest.raises(RuntimeError, match="differs from what was saved"):
        same_rows(one, other)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("1e12", "GB free on the disk: lower --share, or choose another --folder"),
        ("1e6", "GB in 0% of memory: lower --share"),
    ],
)
def test_without_room_nothing_is_begun(tmp_path, capsys, classes, message):
    argv = ["--classes", classes, "--storage", "file", "--row-momentum", "0", "--dim", "8", "--ram-share", "0.0001"]
    assert bench_checkpoint.main([*argv, "--folder", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
