"""Images a second from record files: this project against mxnet's reader with PIL transforms, side by side.

    python benchmarks/bench_data.py --quick
    python benchmarks/bench_data.py --rec FOLDER --out FILE.jsonl
    python benchmarks/bench_data.py --config configs/NAME [key=value ...]

The first two forms measure both on one file, in rounds, one after the other on the same cores; `make mxnet` sets up
what mxnet needs. Without --rec, made-up faces are packed. The third measures the loader of a recipe and nothing else,
with 0, 1, 2 and 4 workers. See README.md beside this file for what each row and key means.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from prettytable import PrettyTable

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbones.base import to_network_input
from benchmarks.machine import usable_cores
from benchmarks.mxnet_process import MxnetProcess
from benchmarks.records import write_records
from data.augment import Augmentation
from data.faces import FaceRecords
from data.records.reader import RecordReader
from data.records.writer import write_face_records
from dataset import Batch, Loader, get_dataloader
from tools.demo_faces.sets import aligned_faces
from tools.parts.ordered_map import ordered_map
from training.data import open_data
from utils.config import get_config
from utils.device import prepare_device
from utils.distributed import Ranks

Record = dict[str, Any]
WORKERS = (0, 1, 2, 4)  # of --config
AHEAD = 2  # batches that a worker of torch's DataLoader makes ahead


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing that is measured on both sides."""

    what: str
    unit: str  # of records or images
    ours: Callable[[], float]  # seconds
    theirs: Callable[[], float]  # seconds
    count: int  # of records or images


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the table, write the file; the exit status."""
    args = _parse(argv)
    try:
        if args.config is not None:
            records = measure_config(args.config, args.overrides, args.batches)
        else:
            with tempfile.TemporaryDirectory(prefix="bench_data_") as folder:
                records = compare(args, Path(folder))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"bench_data: error: {error}", file=sys.stderr)
        return 2
    print(_table(records))
    if args.out is not None:
        write_records(args.out, records)
    return 0


def compare(args: argparse.Namespace, folder: Path) -> list[Record]:
    """Measure both sides in rounds; a record for each row and side.

    Raises:
        FileNotFoundError: there is no record file, or no interpreter with mxnet.
        RuntimeError: the mxnet process failed.
    """
    prepare_device(torch.device("cpu"))  # as training does
    distinct = None
    if args.rec is None:
        distinct = min(args.images, args.faces)
        make_records(folder / "made", distinct, args.images)
    source = args.rec or folder / "made"
    faces = FaceRecords(source)
    order = np.random.default_rng(0).permutation(len(faces))[: args.images]
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        torch.set_num_threads(1)  # one process is to mean one core
        cv2.setNumThreads(0)
        files = faces.reader.rec_path, faces.reader.idx_path
        peers = [stack.enter_context(MxnetProcess(*files)) for _ in range(2)]
        index = folder / "long.idx"
        write_long_index(faces.reader, index, args.index_lines)
        index_peer = stack.enter_context(MxnetProcess(faces.reader.rec_path, index))
        rows = _rows(faces, order, args.batch, peers, index_peer, index, args.index_lines)
        seconds: dict[tuple[str, str], list[float]] = {}
        for number in range(args.rounds + 1):
            for row in rows:
                for method, run in (("mxnet", row.theirs), ("ours", row.ours)):
                    took = run()
                    if number:  # the first round warms up caches and workers
                        seconds.setdefault((row.what, method), []).append(took)
            print(f"round {number} of {args.rounds} done", flush=True)
        common = {
            "cores": usable_cores(),
            "batch": args.batch,
            "images": len(order),
            "distinct_images": distinct or len(order),
            "mean_record_bytes": round(faces.reader.rec_path.stat().st_size / len(faces.reader)),
            **peers[0].versions,
        }
    return [record for row in rows for record in _records(row, seconds, common)]


def make_records(folder: Path, distinct: int, images: int) -> None:
    """Pack ``images`` made-up faces, ``distinct`` of them different, ten of each person."""
    people = -(-distinct // 10)
    of_people = ordered_map(_faces_of, range(people), usable_cores())
    rendered = [face for of_person in of_people for face in of_person]
    repeated = [rendered[i % distinct] for i in range(images)]
    write_face_records(folder, [repeated[start : start + 10] for start in range(0, images, 10)])


def _faces_of(person: int) -> list[bytes]:
    return aligned_faces(0, "train", person, 10)


def write_long_index(reader: RecordReader, path: Path, lines: int) -> None:
    """An index of this many lines into the same file: its records again and again under new keys."""
    offsets = np.resize(reader.offsets, lines)
    path.write_text("".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets.tolist())))


def _rows(
    faces: FaceRecords,
    order: NDArray[np.int64],
    batch: int,
    peers: list[MxnetProcess],
    index_peer: MxnetProcess,
    index: Path,
    index_lines: int,
) -> list[Row]:
    keys = faces.keys[order].tolist()
    positions = np.searchsorted(faces.reader.keys, faces.keys[order])
    batches = [order[start : start + batch].tolist() for start in range(0, len(order), batch)]
    augment = Augmentation(None, 0)

    def theirs(job: Record, processes: int = 1) -> Callable[[], float]:
        """Seconds until each process has done its share of the job's keys, none being handed over."""

        def run() -> float:
            start = time.perf_counter()
            for i, peer in enumerate(peers[:processes]):
                peer.send({**job, "keys": keys[i::processes]})
            own = [peer.answer()["seconds"] for peer in peers[:processes]]
            return float(own[0]) if processes == 1 else time.perf_counter() - start

        return run

    def open_theirs() -> float:
        index_peer.send({"what": "open"})
        return float(index_peer.answer()["seconds"])

    def open_ours() -> None:
        RecordReader(faces.reader.rec_path, index)

    def read_one() -> None:
        for position in positions.tolist():
            faces.reader.read_at(position)

    def read_many() -> None:
        for start in range(0, len(positions), batch):
            faces.reader.read_many(positions[start : start + batch])

    def decode() -> None:
        for indices in batches:
            faces.__getitems__(indices)

    def decode_and_transform() -> None:
        for indices in batches:
            loaded: Batch = faces.__getitems__(indices)
            to_network_input(augment(loaded.images_BHW3, loaded.sample_ids_B, epoch=0))

    read_job, decode_job = {"what": "read"}, {"what": "decode", "batch": batch}
    n = len(order)
    loaders = {workers: get_dataloader(faces, batch, num_workers=workers) for workers in (1, 2)}
    full = n // batch * batch
    return [
        Row("open_index", "records", _timed(open_ours), open_theirs, index_lines),
        Row("read_one", "records", _timed(read_one), theirs(read_job), n),
        Row("read_batch", "records", _timed(read_many), theirs(read_job), n),
        Row("decode_batch", "imgs", _timed(decode), theirs(decode_job), n),
        Row("decode_batch_float", "imgs", _timed(decode_and_transform), theirs(decode_job), n),
        *(
            Row(f"loader_{w}", "imgs", functools.partial(_epoch, loader), theirs(decode_job, w), full)
            for w, loader in loaders.items()
        ),
    ]


def _timed(run: Callable[[], None]) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed


def _epoch(loader: Loader) -> float:
    """Seconds of one pass over the data."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def _records(row: Row, seconds: dict[tuple[str, str], list[float]], common: Record) -> list[Record]:
    """The row's record of each side; ``ratio`` is to mxnet."""
    median_s = {method: float(np.median(seconds[row.what, method])) for method in ("mxnet", "ours")}
    return [
        {
            "what": row.what,
            "method": method,
            f"{row.unit}_per_s": round(row.count / median_s[method], 1),
            "ratio": round(median_s["mxnet"] / median_s[method], 3),
            f"{row.unit}_per_s_rounds": [round(row.count / s, 1) for s in seconds[row.what, method]],
            "count": row.count,
            **common,
        }
        for method in ("mxnet", "ours")
    ]


def measure_config(config: str, overrides: Sequence[str], batches: int) -> list[Record]:
    """The loader of a recipe alone, with each number of workers; ``ratio`` is to none.

    The first batches of each are not counted: they wait for processes to start, and were made ahead meanwhile.

    Raises:
        ValueError, OSError: the recipe or its data are unsound.
    """
    records: list[Record] = []
    for workers in WORKERS:
        cfg = dataclasses.replace(get_config(config, overrides), num_workers=workers)
        data, cfg = open_data(cfg, Ranks(0, 1, 0, torch.device("cpu")))
        ahead = 1 + workers * AHEAD
        steps = min(batches, data.sampler.steps_per_epoch - ahead)
        if steps < 1:
            raise ValueError(
                f"{cfg.num_image} images are {data.sampler.steps_per_epoch} batches of {cfg.batch_size}, and "
                f"{workers} workers need more than {ahead}: lower batch_size"
            )
        arriving = data.batches(0)
        for _ in range(ahead):
            next(arriving)
        start = time.perf_counter()
        for _ in range(steps):
            next(arriving)
        imgs_per_s = steps * cfg.batch_size / (time.perf_counter() - start)
        del arriving, data  # ends the workers
        base = records[0]["imgs_per_s"] if records else imgs_per_s
        records.append(
            {
                "what": "loader",
                "method": "ours",
                "config": cfg.name,
                "workers": workers,
                "imgs_per_s": round(imgs_per_s, 1),
                "ratio": round(imgs_per_s / base, 3),
                "batch": cfg.batch_size,
                "batches": steps,
                "cores": usable_cores(),
            }
        )
        print(f"{workers} workers: {imgs_per_s:,.0f} images/s", flush=True)
    return records


def _table(records: Sequence[Record]) -> PrettyTable:
    table = PrettyTable()
    if "config" in records[0]:
        table.field_names = ["workers", "images/s", "to 0 workers"]
        table.add_rows([[r["workers"], f"{r['imgs_per_s']:,.0f}", f"{r['ratio']:.2f}"] for r in records])
    else:
        table.field_names = ["what", "a second", "mxnet", "ours", "ours / mxnet"]
        for theirs, ours in zip(records[::2], records[1::2], strict=True):
            unit = "imgs" if "imgs_per_s" in ours else "records"
            speeds = [f"{side[f'{unit}_per_s']:,.0f}" for side in (theirs, ours)]
            table.add_row([ours["what"], unit, *speeds, f"{ours['ratio']:.2f}"])
    table.align = "r"
    return table


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="bench_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for --config")
    parser.add_argument("--quick", action="store_true", help="a minute at most; says only whether things work")
    parser.add_argument("--rec", type=Path, metavar="SET", help="a .rec file or a folder with train.rec")
    parser.add_argument("--config", metavar="configs/NAME", help="measure the loader of this recipe alone")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="where raw data go")
    parser.add_argument("--images", type=int, help="images of a round, at most (default 8192)")
    parser.add_argument("--faces", type=int, help="made-up faces that differ, without --rec (default 800)")
    parser.add_argument("--rounds", type=int, help="counted rounds, after one that is not (default 5)")
    parser.add_argument("--batch", type=int, default=128, help="images of a batch (default 128)")
    parser.add_argument("--index-lines", type=int, help="lines of the index that is opened (default 1000000)")
    parser.add_argument("--batches", type=int, help="of --config for each number of workers (default 200)")
    args = parser.parse_intermixed_args(argv)
    usual = {"images": 8192, "faces": 800, "rounds": 5, "index_lines": 10**6, "batches": 200}
    quick = {"images": 1024, "faces": 60, "rounds": 2, "index_lines": 10**5, "batches": 20}
    for name, value in (quick if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.overrides and args.config is None:
        parser.error(f"{args.overrides[0]}: settings belong to --config")
    if args.config is None and not 1 <= args.batch <= args.images:
        parser.error(f"--batch must be 1 to --images = {args.images}, got {args.batch}")
    return args


if __name__ == "__main__":
    sys.exit(main())
