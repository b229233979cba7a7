"""Reading again and again takes no more memory than reading once, in this process and in workers."""

import gc
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest

from data.records.reader import RecordReader
from data.records.writer import RecordWriter
from face_files import index_bytes

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
MIB = 1 << 20


def private_bytes():
    """Memory of this process that it shares with no other."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(kb) * 1024 for kb in re.findall(r"^Private_\w+: +(\d+) kB$", text, re.MULTILINE))


def read_epochs(reader, epochs):
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(reader))
        for start in range(0, len(order), 128):
            reader.read_many(order[start : start + 128])
        for position in order[:200].tolist():
            reader.read_at(position)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "r.rec"
    with RecordWriter(path) as writer:
        for key in range(6000):
            writer.write(key, bytes(2000 + key % 500))
    return RecordReader(path)


def growth_over_epochs(path, chunk, answer):
    reader = RecordReader(path, chunk=chunk)
    read_epochs(reader, 3)
    before = private_bytes()
    read_epochs(reader, 12)  # 160 MB are read
    answer.put(private_bytes() - before)


@pytest.mark.parametrize("chunk", [0, 64])
def test_flat_over_epochs(reader, chunk):
    """In a process of its own: one that has run a thousand tests gives and takes memory for other reasons too."""
    context = multiprocessing.get_context("forkserver")
    answer = context.SimpleQueue()
    process = context.Process(target=growth_over_epochs, args=(reader.rec_path, chunk, answer))
    process.start()
    grown = answer.get()
    process.join()
    assert grown < 4 * MIB


def test_forked_workers_share_the_index_and_stay_flat(reader, tmp_path):
    """Two million entries take 16 MB; a worker that copied them, page by page, would show."""
    entries = 2_000_000
    offsets = np.resize(reader.offsets, entries)
    (tmp_path / "r.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets.tolist())))
    shared = RecordReader(reader.rec_path, tmp_path / "r.idx")
    assert index_bytes(shared.index) == 8 * entries
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    workers = [context.Process(target=touch_everywhere, args=(shared, answer)) for _ in range(2)]
    gc.freeze()  # a worker that collects garbage would copy the pages of all that other tests have left here
    try:
        for worker in workers:
            worker.start()
    finally:
        gc.unfreeze()
    grown = [answer.get() for _ in workers]
    for worker in workers:
        worker.join()
    for first, later in grown:
        assert first < 8 * MIB
        assert later < 4 * MIB


def touch_everywhere(reader, answer):
    """Read records from all over the index, then as many again and again."""
    before = private_bytes()
    for start in range(100):
        reader.read_many(np.arange(start, len(reader), 20_000))
    once = private_bytes()
    for start in range(100, 1000):
        reader.read_many(np.arange(start, len(reader), 20_000))
    answer.put((once - before, private_bytes() - once))
