"""Check a set of faces before training on it.

    python -m tools.check_data SOURCE [--out FOLDER]

SOURCE is a folder with train.rec, a .rec file, a folder of identity folders, or a verification set (.bin). Every
image is read and decoded once. Prints what was found and the config lines to use. With --out, writes

    report.json               the figures
    problems.jsonl            each problem, with file, record and offset
    images_per_identity.png   a histogram

Exit status: 0 no problems, 1 problems found, 2 the set cannot be read.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("check_data")

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from prettytable import PrettyTable

from tools.parts.data_checks import Findings, Problem, find_problems
from tools.parts.data_figure import draw_histogram
from tools.parts.data_scan import scan
from tools.parts.face_sources import open_source
from tools.parts.record_output import print_config
from utils.atomic import open_atomic, write_json
from utils.text import any_name_can_be_printed, complain, plain

SHOWN = 5  # problems of one kind that are printed


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="check_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="folder with train.rec, .rec file, image folder, .bin file")
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="labels must be below N; default: the data's own"
    )
    parser.add_argument(
        "--image-size", type=int, nargs=2, default=(112, 112), metavar=("H", "W"), help="default: 112 112"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for report, problems and histogram")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    args = parser.parse_args(argv)
    try:
        return _check(args)
    except (ValueError, OSError) as error:
        complain("check_data", error)
        return 2
    except KeyboardInterrupt:
        print("check_data: interrupted", file=sys.stderr)
        return 130


def _check(args: argparse.Namespace) -> int:
    for name in ("num_classes", "workers"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if min(args.image_size) < 1:
        raise ValueError(f"--image-size must be at least 1 1, got {args.image_size[0]} {args.image_size[1]}")
    source = open_source(args.source)
    if args.out is not None:
        if args.out.exists() and not args.out.is_dir():
            raise FileExistsError(f"{args.out} is a file: --out takes the folder that the report goes to")
        args.out.mkdir(parents=True, exist_ok=True)
    seen = scan(source, args.workers)
    findings, problems = find_problems(source, seen, tuple(args.image_size), args.num_classes)
    print(_table(findings))
    _print_problems(problems)
    if findings.config_lines:
        print_config(findings.config_lines)
    if args.out is not None:
        _write(args.out, findings, problems)
        print(f"\nwritten: {args.out}")
    return 1 if problems else 0


def _table(findings: Findings) -> PrettyTable:
    table = PrettyTable(["what", "found"], align="l")
    table.add_rows([[what, plain(found)] for what, found in findings.rows.items()])
    return table


def _print_problems(problems: list[Problem]) -> None:
    for kind, count in Counter(problem.kind for problem in problems).items():
        print(f"\n{kind}: {count}")
        for problem in [p for p in problems if p.kind == kind][:SHOWN]:
            print(f"    {plain(str(problem))}")
        if count > SHOWN:
            print(f"    and {count - SHOWN} more (all of them in problems.jsonl with --out)")


def _write(out: Path, findings: Findings, problems: list[Problem]) -> None:
    with open_atomic(out / "problems.jsonl") as file:
        for problem in problems:
            file.write((json.dumps(problem.as_dict()) + "\n").encode())
    if len(findings.counts):
        with open_atomic(out / "images_per_identity.png") as file:
            draw_histogram(findings.counts, file)
    report = dataclasses.asdict(findings) | {"counts": findings.counts.tolist(), "problems": len(problems)}
    write_json(out / "report.json", report)


if __name__ == "__main__":
    sys.exit(main())
