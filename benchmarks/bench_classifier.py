"""Time and memory of one classifier step against the number of identities.

    python benchmarks/bench_classifier.py --quick
    python benchmarks/bench_classifier.py --storage device file --folder FOLDER --out FILE.jsonl
    python benchmarks/bench_classifier.py --methods mhs --storage device host file --cache-gib 0 1 --folder FOLDER

A step is forward, backward, update and zero_grad of the classifier on random embeddings that require a gradient, on
the CPU. Every configuration runs in a process of its own; see README.md beside this file for what each key means.

Shapes: W ranks, B batch of one rank, G = W * B, D embedding size, C classes, L classes per head, S selected classes
of one rank.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from prettytable import PrettyTable

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import classifier_case
from benchmarks.classifier_case import METHODS, SAMPLE_RATE, STORAGES, Case, Record, Storage
from benchmarks.launch import run_script
from benchmarks.machine import usable_cores
from benchmarks.records import read_records, write_records


def run_case(case: Case) -> Record:
    """Measure one configuration in new processes, one for each rank; rank 0's record.

    Raises:
        RuntimeError: a process failed; its own message is on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="bench_heads_", dir=case.folder or None) as folder:
        text = json.dumps(asdict(replace(case, folder=folder)))
        return run_script(classifier_case.__file__, text, case.ranks, max(1, usable_cores() // case.ranks))


def merge(rounds: Sequence[Record]) -> Record:
    """One record of a configuration from those of its rounds: medians; the largest peak."""

    def median(key: str) -> float | None:
        values = [r[key] for r in rounds if r[key] is not None]
        return float(np.median(values)) if values else None

    times = ("step_ms", "step_ms_p10", "step_ms_p90", "first_visit_ms", "flush_ms", "floor_ms")
    merged = rounds[0] | {key: median(key) for key in (*times, "disk_wait_share", "hit_rate")}
    merged["peak_mib"] = max(r["peak_mib"] for r in rounds)
    return merged | {"rounds": len(rounds), "step_ms_rounds": [r["step_ms"] for r in rounds]}


def measure_all(cases: Sequence[Case], rounds: int, keep: Callable[[list[Record]], None]) -> list[Record]:
    """Measure in rounds over all configurations, so that disturbances fall on each of them; the dense forms once."""
    found: dict[Case, list[Record]] = {}
    records: list[Record] = []
    failed: set[Case] = set()
    for number in range(rounds):
        for case in cases:
            if case in failed or (number and case.method != "mhs"):
                continue
            try:
                record = run_case(case)
            except RuntimeError as error:
                failed.add(case)
                print(f"{case}: failed: {error}", flush=True)
                continue
            found.setdefault(case, []).append(record)
            print(f"round {number + 1}: {case}: {record['step_ms']:.1f} ms", flush=True)
            records = [merge(found[c]) for c in cases if c in found]
            keep(records)
    return records


def alike(records: Sequence[Record]) -> list[list[Record]]:
    """The records in groups that may be compared: all but method, storage and classes are equal."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        key = tuple(r[k] for k in ("ranks", "amp", "head_size", "batch", "dim", "even_labels"))
        groups.setdefault(key, []).append(r)
    return list(groups.values())


def setting(r: Record) -> str:
    """What the records of a group have in common, as text."""
    process = "one process" if r["ranks"] == 1 else f"{r['ranks']} processes"
    numbers = "bfloat16 products" if r["amp"] == "bf16" else "float32"
    labels = ", labels from all classes" if r["even_labels"] else ""
    return (
        f"{process}, CPU, batch {r['batch']}, embedding {r['dim']}, heads of {r['head_size']}, {numbers}, SGD{labels}"
    )


def table(records: Sequence[Record]) -> PrettyTable:
    """Records of one group with ratios: to mhs at its smallest size, to dense forms of equal size, to the floor."""
    ours = (r for r in records if r["method"] == "mhs")
    smallest = min(ours, key=lambda r: (_momentum(r), r["classes"]), default=None)
    dense = {(r["method"], r["classes"]): r["step_ms"] for r in records}
    base = "step / mhs" if smallest is None else f"step / mhs {smallest['classes']:,}"
    forms = ("mhs_dense", "mhs_normalised")
    ratios = (base, *(f"{form} / step" for form in forms), "step / floor")
    out = PrettyTable(["method", "storage", "classes", "step ms", "p10-p90", *ratios])
    names = ("first ms", "floor ms", "disk wait", "peak MiB", "S", "step / device", "cache hits")
    columns: dict[str, list[str]] = {name: [] for name in names}
    out.align = "r"
    for r in records:
        step = r["step_ms"]
        out.add_row(
            [
                _name(r),
                _storage(r),
                f"{r['classes']:,}",
                f"{step:.1f}",
                f"{r['step_ms_p10']:.1f}-{r['step_ms_p90']:.1f}",
                "" if smallest is None else f"{step / smallest['step_ms']:.2f}",
                *(
                    f"{dense[form, r['classes']] / step:.1f}" if (form, r["classes"]) in dense else ""
                    for form in forms
                ),
                f"{step / r['floor_ms']:.2f}",
            ]
        )
        columns["first ms"].append("" if r["first_visit_ms"] is None else f"{r['first_visit_ms']:.1f}")
        columns["floor ms"].append(f"{r['floor_ms']:.1f}")
        columns["disk wait"].append("" if r["disk_wait_share"] is None else f"{r['disk_wait_share']:.0%}")
        columns["peak MiB"].append(f"{r['peak_mib']:,.0f}")
        columns["S"].append(f"{r['selected_classes']:,}")
        columns["step / device"].append(_to_device(r, records))
        columns["cache hits"].append("" if r.get("hit_rate") is None else f"{r['hit_rate']:.0%}")
    for name, cells in columns.items():
        out.add_column(name, cells, align="r")
    return out


def _momentum(r: Record) -> float:
    """Of our rows; records without the key are older and had it."""
    return float(r.get("row_momentum", 0.9))


def _name(r: Record) -> str:
    """The method, and whether our rows have momentum."""
    return f"{r['method']}, momentum" if r["method"] == "mhs" and _momentum(r) else str(r["method"])


def _storage(r: Record) -> str:
    """Where the heads live, and the cache on the device."""
    return f"{r['storage']} + {r['cache_gib']:g} GiB" if r.get("cache_gib") else str(r["storage"])


def _to_device(r: Record, records: Sequence[Record]) -> str:
    """The step against the same one with all heads on the device: the median of the rounds' ratios."""
    if r["storage"] == "device" or "step_ms_rounds" not in r:
        return ""
    same = (
        d["step_ms_rounds"]
        for d in records
        if (d["storage"], d["classes"], _name(d)) == ("device", r["classes"], _name(r))
    )
    rounds = next(same, None)
    if rounds is None or len(rounds) != len(r["step_ms_rounds"]):
        return ""
    return f"{np.median(np.array(r['step_ms_rounds']) / rounds):.2f}"


def grid(records: Sequence[Record]) -> PrettyTable:
    """All records side by side, a column for each number of classes: step time, and memory that it took."""
    sizes = sorted({r["classes"] for r in records})
    out = PrettyTable(["method", "storage", "L", "batch", *(f"{size:,}" for size in sizes)])
    out.align = "r"
    lines: dict[tuple[str, ...], dict[int, str]] = {}
    for r in records:
        L = f"{r['head_size']}" if "mhs" in r["method"] else "-"
        line = lines.setdefault((_name(r), _storage(r), L, f"{r['batch']} x {r['ranks']}"), {})
        line[r["classes"]] = f"{r['step_ms']:.1f} / {r['peak_mib'] - r['baseline_mib']:,.0f}"
    for key, line in lines.items():
        out.add_row([*key, *(line.get(size, "") for size in sizes)])
    return out


def draw(records: Sequence[Record], path: Path) -> None:
    """Step time against identities, both on logarithmic axes, one line for each method; of ours, one momentum."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, so that measured processes do without
    from matplotlib.figure import Figure

    shown = min((_momentum(r) for r in records if r["method"] == "mhs"), default=0.0)
    records = [r for r in records if not r.get("cache_gib") and (r["method"] != "mhs" or _momentum(r) == shown)]
    looks = {
        "mhs": ("this project", "#dd6b20", "o"),
        "mhs_dense": ("the same heads, dense update", "#2b6cb0", "s"),
        "mhs_normalised": ("and all centres normalised", "#4a5568", "v"),
        "partial_fc": (f"PartialFC form, rate {SAMPLE_RATE}", "#2f855a", "^"),
        "full_softmax": ("full softmax", "#805ad5", "D"),
    }
    figure = Figure(figsize=(8.4, 5.0), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    for (method, storage), line in _lines(records):
        name, colour, marker = looks[method]
        if method == "mhs":
            name += {"device": ", in memory", "host": ", in host memory", "file": ", on disk"}[storage]
        x, y = [r["classes"] for r in line], [r["step_ms"] for r in line]
        ax.plot(
            x,
            y,
            color=colour,
            marker={"device": marker, "host": "s", "file": "v"}[storage],
            markersize=6.5,
            linewidth=2.6 if method == "mhs" else 1.8,
            markerfacecolor=colour if storage == "device" else "white",
            label=name,
            zorder=3 if method == "mhs" else 2,
        )
        ax.annotate(
            f"{y[-1]:,.0f}" if y[-1] >= 10 else f"{y[-1]:.1f}",
            (x[-1], y[-1]),
            xytext=(9, -3),
            textcoords="offset points",
            fontsize=8.5,
            color=colour,
        )
    for place, name in (("device", "floor in memory"), ("file", "floor on disk")):
        line = sorted(
            (r for r in records if (r["method"], r["storage"]) == ("mhs", place)), key=lambda r: r["classes"]
        )
        ax.plot(
            [r["classes"] for r in line],
            [r["floor_ms"] for r in line],
            color="#4a5568",
            linestyle="--" if place == "device" else ":",
            linewidth=1.8,
            label=f"{name}: products, one read and write of the rows" if line else None,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(x=0.06, y=0.12)
    ax.set_xlabel("identities", fontsize=11)
    ax.set_ylabel("one classifier step, ms", fontsize=11)
    ax.set_title(setting(records[0]), fontsize=10, color="#2d3748", loc="left")
    ax.grid(True, which="major", color="#e2e8f0", linewidth=0.9)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _lines(records: Sequence[Record]) -> Iterator[tuple[tuple[str, str], list[Record]]]:
    for method in reversed(METHODS):
        for storage in STORAGES:
            line = [r for r in records if (r["method"], r["storage"]) == (method, storage)]
            if line:
                yield (method, storage), sorted(line, key=lambda r: int(r["classes"]))


def cases_of(args: argparse.Namespace) -> list[Case]:
    """The configurations that the command line asks for and this machine can run; the others are printed."""
    cases = []
    settings = itertools.product(args.methods, args.head_size, args.batch, args.row_momentum)
    for method, head_size, batch, row_momentum in settings:
        if method != "mhs" and row_momentum != args.row_momentum[0]:
            continue  # they have theirs
        if method in ("partial_fc", "full_softmax") and head_size != args.head_size[0]:
            continue  # they have no heads
        for storage in cast(list[Storage], args.storage if method == "mhs" else ["device"]):
            caches = args.cache_gib if method == "mhs" and storage != "device" else [0.0]
            for classes, cache_gib in itertools.product(sorted(args.classes), caches):
                case = Case(
                    method,
                    storage,
                    classes,
                    head_size,
                    batch,
                    args.dim,
                    args.ranks,
                    args.amp,
                    args.steps,
                    args.identities,
                    args.even_labels,
                    args.warm_steps if method == "mhs" else 2,
                    args.budget_s,
                    str(args.folder),
                    row_momentum,
                    cache_gib,
                )
                obstacle = case.obstacle(args.ram_share)
                if obstacle is None:
                    cases.append(case)
                else:
                    print(f"{case}: skipped: {obstacle}")
    return cases


def _count(text: str) -> int:
    value = float(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, such as 1e6, got {text}")
    return int(value)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with --quick applied."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--quick", action="store_true", help="two sizes and few steps, under a minute")
    p.add_argument("--out", type=Path, metavar="FILE.jsonl", help="write the records, one a line")
    p.add_argument("--figure", type=Path, metavar="FILE.png", help="of the first L and batch")
    p.add_argument("--read", type=Path, nargs="+", metavar="FILE.jsonl", help="show earlier records, measure nothing")
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    p.add_argument("--classes", nargs="+", type=_count, help="default 1e4 1e5 1e6 1e7 1e8")
    p.add_argument("--head-size", type=_count, nargs="+", default=[12], help="L; several for a grid")
    p.add_argument("--batch", type=_count, nargs="+", default=[128], help="samples of one rank; several for a grid")
    p.add_argument("--dim", type=_count, default=512)
    p.add_argument("--storage", nargs="+", choices=STORAGES, default=["device"], help="of mhs")
    p.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for --storage file")
    p.add_argument(
        "--cache-gib", type=float, nargs="+", default=[0.0], help="of host and file; several beside each other"
    )
    p.add_argument("--amp", choices=("none", "bf16"), default="none")
    p.add_argument("--row-momentum", type=float, nargs="+", default=[0.0], help="of mhs; the dense forms have 0.9")
    p.add_argument("--ranks", type=int, choices=(1, 2), default=1)
    p.add_argument("--steps", type=_count, help="timed steps at most, default 200")
    p.add_argument("--warm-steps", type=_count, default=5, help="of mhs, before the clock starts")
    p.add_argument("--identities", type=_count, help="labels come from so many, default 20000")
    p.add_argument("--even-labels", action="store_true", help="draw labels from all classes, first visits included")
    p.add_argument("--rounds", type=_count, help="over all mhs configurations, default 3")
    p.add_argument("--budget-s", type=float, help="stop timing a configuration after so long, default 20")
    p.add_argument("--ram-share", type=float, default=0.6, help="skip what needs more of the memory")
    args = p.parse_args(argv)
    usual = {"classes": [10**4, 10**5, 10**6, 10**7, 10**8], "steps": 200, "identities": 20000, "rounds": 3}
    quick = {"classes": [10**4, 10**5], "steps": 10, "identities": 1024, "rounds": 1}
    for name, value in (quick | {"budget_s": 0.5} if args.quick else usual | {"budget_s": 20.0}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Measure what the command line asks for, print the table, write files; the records."""
    args = parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)

    def keep(records: list[Record]) -> None:
        if args.out is not None:
            write_records(args.out, records)

    if args.read is not None:
        records = read_records(args.read)
    else:
        records = measure_all(cases_of(args), args.rounds, keep)
    groups = alike(records)
    for group in groups:
        print(f"\n{setting(group[0])}\n{table(group)}")
    if len(groups) > 1:
        print(f"\nms a step / MiB above the start\n{grid(records)}")
    if groups and args.figure is not None:
        draw(groups[0], args.figure)
    return records


if __name__ == "__main__":
    main()
