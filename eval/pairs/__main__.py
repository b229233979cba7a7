"""The command ``python -m eval.pairs``: verification sets against one model, as a table and a JSON file."""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("eval.pairs")

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prettytable import PrettyTable

from embedder.batches import embedded_blocks
from embedder.embedder import Embedder, LengthMeter
from embedder.load import load_embedder
from eval.pairs.bcolz_folder import is_bcolz
from eval.pairs.bin_file import PairSet
from eval.pairs.distinct import DistinctImages
from eval.pairs.groups import as_json as groups_json
from eval.pairs.outcome import (
    check_sets,
    compare,
    difference_sections,
    difference_table,
    differences_json,
    group_lines,
    interval_lines,
    model_names,
    set_facts,
    threshold_lines,
    threshold_of,
)
from eval.pairs.protocol import FARS, PairResult, evaluate_embeddings, pair_loader
from eval.pairs.report import PairsReport, write_page
from eval.pairs.sets import ENDINGS, find_pairs, load_pairs
from eval.pairs.threshold import check_rate
from eval.report.write import model_facts
from utils.atomic import write_json
from utils.decode import Resized
from utils.text import any_name_can_be_printed, complain, plain

PUBLIC_SETS = ("lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; on a wrong one, print what is wrong and exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="eval.pairs",
        description="Verify pairs of faces: 10-fold accuracy as lfw defines it (images 2i and 2i + 1 are pair i, "
        "embeddings of the image and its mirror image added up), true accept rate at false accept rates, mean "
        "cosines, spread of the embeddings.",
        epilog="Exit status: 0; 1 if a set was left out; 2 if nothing could be evaluated.",
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        help="model.pt, the run's folder that holds it, or an .onnx file; twice: both are compared on the same pairs",
    )
    parser.add_argument(
        "--data", default=".", help="folder of the sets: NAME.bin, lists of pairs, folders of bcolz; or one such file"
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="SET",
        help=f"names in --data, or files (default: all .bin and .csv files and folders of bcolz in --data, "
        f"{', '.join(PUBLIC_SETS)} first)",
    )
    parser.add_argument(
        "--network", help="its name (default: from config.json next to model.pt, else from the weights)"
    )
    parser.add_argument(
        "--root", type=Path, metavar="FACES", help="folder that the images of lists start at (default: the list's)"
    )
    parser.add_argument(
        "--allow-outside", action="store_true", help="read images outside --root, or the folder of their list"
    )
    parser.add_argument("--no-flip", action="store_true", help="embed images without their mirror images")
    parser.add_argument("--folds", type=int, default=10, help="folds of the cross-validation (default 10)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per forward pass (default 128)")
    parser.add_argument(
        "--bgr", action="store_true", help="feed the network blue first (default: RGB, or what the .onnx file says)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--threshold-at",
        type=float,
        metavar="RATE",
        help="find the threshold at this false match rate, such as 1e-3; groups are compared there, too",
    )
    parser.add_argument(
        "--threshold-out", type=Path, metavar="FILE.json", help="write that threshold there, for inference.py"
    )
    parser.add_argument(
        "--sets-are-groups", action="store_true", help="compare the sets as groups of people, such as RFW's four"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every figure there")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a report with pictures there")
    return parser.parse_args(argv)


def list_sets(folder: Path) -> list[str]:
    """Names of the sets in a folder, the public ones first; a .csv beside its .bin is the same set.

    Raises:
        FileNotFoundError: no such folder, or no set in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the one that holds lfw.bin and the like with --data")
    names = {path.stem for path in folder.iterdir() if path.suffix in (".bin", ".csv") and path.is_file()}
    names |= {path.name for path in folder.iterdir() if is_bcolz(path)}
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no .bin or .csv set and no folder of bcolz; give another with --data, or files as "
            "--targets"
        )
    return [name for name in PUBLIC_SETS if name in names] + sorted(names.difference(PUBLIC_SETS))


def embed_set(
    embedder: Embedder,
    pairs: PairSet,
    batch_size: int,
    flip: bool = True,
    resized: Resized | None = None,
    meter: LengthMeter | None = None,
) -> NDArray[np.float32]:
    """Embed every image of a set, with ``flip`` as the sum with its mirror image: (2n, D), not normalised.

    Each different image is embedded once. Those that had another size than the network takes are put into
    ``resized``, by the number of the first that is the same; ``meter`` measures the embeddings before they are added.

    Raises:
        ValueError: an image that does not decode; the message gives its index.
    """
    distinct, meter = DistinctImages(pairs.encoded), meter or LengthMeter()
    meter.times_N = distinct.times_U
    n = len(distinct)
    load = pair_loader(pairs.encoded, embedder.image_size, resized, distinct.first_U)
    blocks = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    out_UD = np.empty((n, embedder.embedding_size), np.float32)
    embed = meter.watch(embedder.embed, flip)
    for start, end, embedding_BD in embedded_blocks(embed, load, blocks, progress=plain(pairs.name)):
        out_UD[start:end] = embedding_BD
    return out_UD[distinct.place_N]


def evaluate(
    options: argparse.Namespace, report: PairsReport | None = None, model: str | None = None
) -> tuple[dict[str, PairResult], dict[str, str], Embedder]:
    """Evaluate every set that can be read.

    Args:
        options: of :func:`parse_arguments`.
        report: receives each set.
        model: where it lies; None takes the first of the options.

    Returns:
        results by set, reasons by target for those left out, and the model.

    Raises:
        FileNotFoundError: no model, no folder, or no set in it.
        ValueError: an option out of its range, or a file that holds no model.
    """
    if options.batch_size < 1 or options.folds < 2:
        raise ValueError(
            f"--batch-size must be at least 1 and --folds at least 2, got {options.batch_size} and {options.folds}"
        )
    data = Path(options.data)
    targets = options.targets or ([str(data)] if data.suffix in ENDINGS and data.is_file() else list_sets(data))
    if options.threshold_at is not None:
        _check_threshold(options, targets, data)
    embedder = load_embedder(model or options.model[0], options.network, options.device, bgr=options.bgr)
    results: dict[str, PairResult] = {}
    left_out: dict[str, str] = {}
    for target in targets:
        try:
            pairs = load_pairs(find_pairs(target, data), options.allow_outside, options.root)
            if pairs.form:
                print(plain(f"{target}: {pairs.form}"), flush=True)
            resized, meter, distinct = Resized(), LengthMeter(), DistinctImages(pairs.encoded)
            embeddings_ND = embed_set(embedder, pairs, options.batch_size, not options.no_flip, resized, meter)
            name = pairs.name if pairs.name not in results else target  # two files of one name
            found = evaluate_embeddings(embeddings_ND, pairs.issame, options.folds)
            results[name] = replace(
                found,
                resized=distinct.count(resized.images),
                not_square=distinct.count(resized.not_square),
                norm=meter.mean(),
            )
            if report is not None:
                report.add(name, pairs, embeddings_ND, results[name])
        except (ValueError, OSError) as error:
            left_out[target] = str(error)
    return results, left_out, embedder


def _check_threshold(options: argparse.Namespace, targets: Sequence[str], data: Path) -> None:
    """Raise ValueError, before anything is embedded, where no threshold can be found at the rate asked for."""
    usable: list[NDArray[np.bool_]] = []
    for target in targets:
        try:
            issame = load_pairs(find_pairs(target, data), options.allow_outside, options.root).issame
        except (ValueError, OSError):
            continue  # it will be left out, with its reason
        if issame.any() and not issame.all():
            usable.append(issame)
    if not usable:
        return  # reasons come with the sets
    check_sets(len(usable), options.sets_are_groups)
    check_rate(options.threshold_at, sum(int(np.count_nonzero(~issame)) for issame in usable))


def results_table(results: dict[str, PairResult]) -> PrettyTable:
    """One row a set; a dash where there is no figure."""

    def shown(value: float, factor: float, digits: int) -> str:
        return "-" if math.isnan(value) else f"{factor * value:.{digits}f}"

    fars = [k for k in range(len(FARS)) if any(not math.isnan(result.tar[k]) for result in results.values())]
    head = ["set", "pairs", "accuracy %", "+-", *(f"TAR % at {FARS[k]:g}" for k in fars)]
    table = PrettyTable([*head, "genuine cosine", "impostor cosine", "spread", "norm"], align="r")
    table.align["set"] = "l"
    for name, result in results.items():
        table.add_row(
            [
                plain(name),
                result.pairs,
                shown(result.accuracy, 100, 3),
                shown(result.accuracy_std, 100, 3),
                *(shown(result.tar[k], 100, 2) for k in fars),
                shown(result.genuine_cosine, 1, 4),
                shown(result.impostor_cosine, 1, 4),
                shown(result.spread, 1, 4),
                shown(result.norm, 1, 3),
            ]
        )
    return table


def as_json(result: PairResult) -> dict[str, Any]:
    """The figures of one set as plain values; null where there is none."""

    def plain(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    names = ("accuracy", "accuracy_std", "genuine_cosine", "impostor_cosine", "spread", "norm")
    return {
        "pairs": result.pairs,
        **{name: plain(getattr(result, name)) for name in names},
        "accuracy_per_fold": [float(value) for value in result.accuracy_per_fold],
        "tar_at_far": {f"{far:g}": plain(tar) for far, tar in zip(FARS, result.tar, strict=True)},
        "non_finite_embeddings": result.non_finite,
        "resized_images": result.resized,
        "not_square_images": result.not_square,
        "notes": result.notes(),
    }


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 where a set was left out, 2 where none was evaluated."""
    options = parse_arguments(argv)
    try:
        _check(options)
        runs = [_run(options, model) for model in options.model]
        facts: dict[str, Any] = runs[0].facts
        tables = [line for run in runs for line in run.lines]
        sections = runs[0].report.sections
        if len(runs) == 2:
            names, reports = model_names(options.model), [run.report for run in runs]
            found = compare(reports)
            tables.append(difference_table(found, names).get_string())
            print(tables[-1])
            facts = {"models": [run.facts for run in runs], "differences": differences_json(found)}
            if options.report is not None:
                own = zip(names, reports, strict=True)
                apart = [replace(s, name=f"{s.name}: {name}") for name, report in own for s in report.sections]
                sections = [*difference_sections(found, reports, names), *apart]
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, facts)
        if options.report is not None:
            about = [model_facts(model, run.embedder) for model, run in zip(options.model, runs, strict=True)]
            named = about[0] if len(about) == 1 else _numbered(about)
            write_page(options.report, sections, named, not options.no_flip, "\n".join(tables))
            print(f"Report: {options.report}")
    except (ValueError, OSError) as error:
        complain("eval.pairs", error)
        return 2
    return 1 if any(run.left_out for run in runs) else 0


@dataclass(frozen=True)
class _Run:
    """One model's evaluation."""

    report: PairsReport
    embedder: Embedder
    left_out: dict[str, str]
    lines: list[str]  # as printed
    facts: dict[str, Any]  # for JSON


def _check(options: argparse.Namespace) -> None:
    if len(options.model) > 2:
        raise ValueError(f"--model is given once, or twice to compare two models, not {len(options.model)} times")
    for model in map(Path, options.model):
        file = model / "model.pt" if model.is_dir() else model
        if not file.is_file():  # the second, too, before the first one's work
            raise FileNotFoundError(f"no file {file}: expected a network's weights, such as a run's model.pt")
    if options.threshold_out is not None and (options.threshold_at is None or len(options.model) > 1):
        raise ValueError("--threshold-out needs --threshold-at RATE and one --model")


def _run(options: argparse.Namespace, model: str) -> _Run:
    """Evaluate one model, and print what was found."""
    report = PairsReport(options.folds, options.report is not None)
    results, left_out, embedder = evaluate(options, report, model)
    if not results:
        raise ValueError("; ".join(left_out.values()))
    report.compare_groups(options.sets_are_groups, options.threshold_at)
    flip = not options.no_flip
    lines = [
        f"{model}: network {embedder.name}, {embedder.embedding_size} numbers",
        results_table(results).get_string(),
        *interval_lines(report.judged),
        *(f"{plain(name)}: {note}" for name, result in results.items() for note in result.notes()),
        *(plain(f"{target} is left out: {problem}") for target, problem in left_out.items()),
        *group_lines(report),
    ]
    print("\n".join(lines), flush=True)
    facts: dict[str, Any] = {
        "model": model,
        "sha256": embedder.sha256,
        "network": embedder.name,
        "embedding_size": embedder.embedding_size,
        "flip": flip,
        "folds": options.folds,
        "sets": {name: as_json(result) for name, result in results.items()},
        "left_out": left_out,
    }
    for name, judged in report.judged.items():
        facts["sets"][name] |= set_facts(judged, report)
    if options.sets_are_groups:
        facts["groups"] = groups_json(report.groups["all sets"])
    if options.threshold_at is not None:
        found = threshold_of(
            report.judged, options.sets_are_groups, options.threshold_at, embedder.sha256, flip, embedder.color_order
        )
        facts["threshold"] = asdict(found)
        said = threshold_lines(found)
        if options.threshold_out is not None:
            found.write(options.threshold_out)
            said.append(f"Written: {options.threshold_out}")
        print("\n".join(said), flush=True)
        lines += said
    return _Run(report, embedder, left_out, lines, facts)


def _numbered(about: list[dict[str, str]]) -> dict[str, str]:
    return {f"{name} {i}": value for i, facts in enumerate(about, 1) for name, value in facts.items()}


if __name__ == "__main__":
    sys.exit(main())
