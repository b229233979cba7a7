"""Fixtures of find_duplicates' tests."""

import pytest

from data.records.writer import write_face_records
from planted_runs import AllKnowing, people, write_run
from tools import find_duplicates


@pytest.fixture
def network(monkeypatch):
    network = AllKnowing()
    monkeypatch.setattr(find_duplicates, "load_embedder", lambda run, device: network)
    return network


@pytest.fixture
def trained(tmp_path, network):
    classes = people()
    write_face_records(tmp_path / "set", classes)
    return write_run(tmp_path / "run", str(tmp_path / "set"), sum(map(len, classes)))
