import json
import os

from benchmarks import bench_formats


def test_writes_a_record_for_each_form(tmp_path, capsys):
    out = tmp_path / "raw" / "formats.jsonl"
    options = ["--images", "40", "--rounds", "1", "--batch", "8", "--latency-ms", "0.1", "--chunk", "4"]
    before = os.environ.get("MHS_CACHE")
    assert bench_formats.main([*options, "--out", str(out)]) == 0
    records = {record["form"]: record for record in map(json.loads, out.read_text().splitlines())}
    assert {"records", "tar shards", "identity folders", "server, one by one", "server, chunks of 4"} <= set(records)
    assert all(record["decoded_imgs_per_s"] > 0 for record in records.values())
    assert records["records"]["decoded_ratio"] == 1
    assert records["server, one by one"]["requests_per_image"] == 1
    assert records["server, chunks of 4"]["requests_per_image"] == 0.25
    assert os.environ.get("MHS_CACHE") == before
    assert "to records" in capsys.readouterr().out
