"""Images a second from each form of data, beside records: the same images, in the same run, in the same order.

    python benchmarks/bench_formats.py --quick
    python benchmarks/bench_formats.py --out docs/results/formats.jsonl

Made-up faces are packed as records, and converted to tar shards, LMDB (by numbers) and identity folders. Each form is
read and decoded in batches by one process in random order, in rounds, one form after the other; a first round is not
counted. "server" is a pretended one, whose requests take --latency-ms each, up to 32 of a call at a time; with
chunks, the order is that of shuffle_chunk. See README.md beside this file for what each key means.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from prettytable import PrettyTable

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench_data import make_records
from benchmarks.machine import usable_cores
from benchmarks.records import write_records
from data.databases import PIP_LINE
from data.faces import FaceDataset
from data.sampler import epoch_permutation
from dataset import open_faces
from tools.convert_set import write_shards

Record = dict[str, Any]
_AT_A_TIME = 32  # requests of the pretended server


class SlowFiles(LocalFileSystem):  # type: ignore[misc]
    """Local files behind an address, with a delay for each request."""

    protocol = "slow"
    latency_s = 0.0
    requests = 0

    def cat_ranges(self, paths: Any, starts: Any, ends: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """As fsspec's, up to 32 at a time."""
        SlowFiles.requests += len(paths)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            return list(pool.map(self._one, paths, starts, ends))

    def _one(self, path: str, start: int, end: int) -> Any:
        time.sleep(SlowFiles.latency_s)
        return self.cat_file(path, start, end)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the file; the exit status."""
    args = _parse(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="bench_formats_") as folder, index_in(Path(folder) / "index"):
            records = measure(args, Path(folder))
    except (ValueError, OSError) as error:
        print(f"bench_formats: error: {error}", file=sys.stderr)
        return 2
    table = PrettyTable(
        ["form", "read, images/s", "to that of records", "read and decoded, images/s", "to records"], align="r"
    )
    for r in records:
        speeds = f"{r['read_imgs_per_s']:,.0f}", f"{r['decoded_imgs_per_s']:,.0f}"
        table.add_row([r["form"], speeds[0], f"{r['read_ratio']:.2f}", speeds[1], f"{r['decoded_ratio']:.2f}"])
    print(table)
    if args.out is not None:
        write_records(args.out, records)
    return 0


@contextlib.contextmanager
def index_in(folder: Path) -> Iterator[None]:
    """Let indexes of shards be kept there meanwhile."""
    before = os.environ.get("MHS_CACHE")
    os.environ["MHS_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["MHS_CACHE"]
        if before is not None:
            os.environ["MHS_CACHE"] = before


def measure(args: argparse.Namespace, folder: Path) -> list[Record]:
    """A record for each form."""
    torch.set_num_threads(1)  # one process is to mean one core
    cv2.setNumThreads(0)
    fsspec.register_implementation("slow", SlowFiles, clobber=True)
    make_records(folder / "records", min(args.images, 800), args.images)
    faces = open_faces(folder / "records")
    write_shards(faces, folder / "shards", 32 * 10**6)
    write_folder(faces, folder / "folder")
    forms: dict[str, FaceDataset] = {"records": faces, "tar shards": open_faces(folder / "shards")}
    forms["identity folders"] = open_faces(folder / "folder")
    if write_database(faces, folder / "lmdb"):
        forms["LMDB"] = open_faces(folder / "lmdb")
    forms["tar shards, file://"] = open_faces(f"file://{folder / 'shards'}")
    forms["server, one by one"] = open_faces(f"slow://{folder / 'shards'}")
    forms[f"server, chunks of {args.chunk}"] = open_faces(f"slow://{folder / 'shards'}", shuffle_chunk=args.chunk)
    SlowFiles.latency_s = args.latency_ms / 1000
    orders = {form: epoch_permutation(len(faces), 0, 0, getattr(one, "chunk", 0) or 1) for form, one in forms.items()}
    times: dict[tuple[str, str], list[float]] = {}
    requests: dict[str, int] = {}
    for number in range(args.rounds + 1):
        for form, one in forms.items():
            batches = [orders[form][i : i + args.batch].tolist() for i in range(0, len(faces), args.batch)]
            for what, run in (("read", one.read_many), ("decoded", one.__getitems__)):
                if hasattr(one, "_chunks"):
                    one._chunks.clear()  # each epoch of a large set finds others there
                SlowFiles.requests = 0
                start = time.perf_counter()
                for batch in batches:
                    run(batch)
                if number:
                    times.setdefault((form, what), []).append(time.perf_counter() - start)
                requests[form] = SlowFiles.requests
        print(f"round {number} of {args.rounds} done", flush=True)
    speeds = {key: len(faces) / float(np.median(seconds)) for key, seconds in times.items()}
    return [
        {
            "form": form,
            **{f"{what}_imgs_per_s": round(speeds[form, what], 1) for what in ("read", "decoded")},
            **{f"{w}_ratio": round(speeds[form, w] / speeds["records", w], 3) for w in ("read", "decoded")},
            "decoded_imgs_per_s_rounds": [round(len(faces) / s, 1) for s in times[form, "decoded"]],
            "requests_per_image": round(requests[form] / len(faces), 4),
            "latency_ms": args.latency_ms if form.startswith("server") else 0,
            "images": len(faces),
            "batch": args.batch,
            "cores": usable_cores(),
        }
        for form in forms
    ]


def write_folder(faces: FaceDataset, folder: Path) -> None:
    """The images as identity folders."""
    for index in range(len(faces)):
        encoded, label = faces.read(index)
        identity = folder / f"{label:06d}"
        identity.mkdir(parents=True, exist_ok=True)
        (identity / f"{index:08d}.jpg").write_bytes(encoded)


def write_database(faces: FaceDataset, folder: Path) -> bool:
    """The images as LMDB by numbers; False without the package."""
    try:
        import lmdb
    except ImportError:
        print(f"LMDB is left out: {PIP_LINE}")
        return False
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 32) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", b"%d" % len(faces))
        for index in range(len(faces)):
            encoded, label = faces.read(index)
            transaction.put(b"image-%09d" % (index + 1), bytes(encoded))
            transaction.put(b"label-%09d" % (index + 1), b"%d" % label)
    return True


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="bench_formats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a minute at most; says only whether things work")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="where raw data go")
    parser.add_argument("--images", type=int, help="of a round (default 8192)")
    parser.add_argument("--rounds", type=int, help="counted rounds, after one that is not (default 5)")
    parser.add_argument("--batch", type=int, default=128, help="images of a batch (default 128)")
    parser.add_argument("--chunk", type=int, default=64, help="shuffle_chunk of the server's second row (default 64)")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of a request to the server (default 20)")
    args = parser.parse_args(argv)
    usual, quick = {"images": 8192, "rounds": 5}, {"images": 640, "rounds": 1}
    for name, value in (quick if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("images", "rounds", "batch", "chunk"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
