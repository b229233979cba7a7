"""The tools that look at data take shards and LMDB as they take records, and training takes their patterns."""

import json

import pytest

from face_files import face, make_image_folder
from tar_files import samples, write_shards, write_tar
from tiny_runs import run
from tools import check_data, show_data
from tools.parts.run_faces import open_run_faces


def test_check_data_and_show_data_read_shards(tmp_path, capsys):
    folder = write_shards(tmp_path / "set", ["ann", "bob", "eve"])
    assert check_data.main([str(folder), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "tar shards" in out
    assert f"config.rec = {str(folder)!r}" in out
    assert "config.num_classes = 3" in out
    assert show_data.main([str(folder), str(tmp_path / "sheet.png"), "--identities", "bob,"]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_check_data_reports_samples_that_training_refuses(tmp_path, capsys):
    path = write_tar(tmp_path / "a.tar", [*samples(), ("y.png", face(1)), ("z.cls", b"1"), ("x.png", b"no image")])
    assert check_data.main([str(path), "--workers", "1", "--out", str(tmp_path / "out")]) == 1
    problems = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert {problem["kind"] for problem in problems} == {"unreadable", "left out"}
    assert "has no label" in capsys.readouterr().out


def test_check_data_reads_shards_behind_an_address(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MHS_CACHE", str(tmp_path / "cache"))
    folder = write_shards(tmp_path / "set")
    assert check_data.main([f"file://{folder}", "--workers", "1"]) == 0
    assert f"config.rec = 'file://{folder}'" in capsys.readouterr().out


def test_check_data_reads_lmdb(tmp_path, capsys):
    lmdb = pytest.importorskip("lmdb", reason="the package lmdb is not installed")
    with lmdb.open(str(tmp_path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"k", face(7))
    (tmp_path / "labels.txt").write_text("k 0\n")
    assert check_data.main([str(tmp_path), "--workers", "1"]) == 0
    assert "LMDB database" in capsys.readouterr().out


def test_training_takes_a_pattern_and_a_list_of_several_forms(tmp_path):
    write_shards(tmp_path / "tars", ["ann", "bob", "eve"])
    make_image_folder(tmp_path / "faces")
    pattern = f"rec={tmp_path}/tars/train-{{0..1}}.tar"
    rest = ("num_classes=auto", "num_image=None", "batch_size=3")
    assert len(run(tmp_path / "out", pattern, *rest)) == 2
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["ann", "bob", "eve"]
    both = f"rec=[{tmp_path}/tars/train-*.tar,{tmp_path}/faces]"
    assert len(run(tmp_path / "both", both, *rest)) == 4
    sets = json.loads((tmp_path / "both" / "classes.json").read_text())
    assert [one["name"] for one in sets["sets"]] == ["tars", "faces"]


def test_parquet_is_refused_with_a_way(tmp_path):
    (tmp_path / "train-00000.parquet").write_bytes(b"PAR1")
    from dataset import open_faces

    for source in (tmp_path, tmp_path / "train-00000.parquet"):
        with pytest.raises(ValueError, match="parquet and arrow files are not read: save each image"):
            open_faces(source)


def test_a_runs_settings_alone_connect_to_no_address(tmp_path):
    settings = {"rec": "s3://bucket/set", "image_size": [112, 112], "on_bad_sample": "stop"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"config\.json: the data lie behind s3://bucket/set; .* with --rec"):
        open_run_faces(tmp_path)
