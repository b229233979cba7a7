"""The page: tables of the records with their floors, and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]
# Aims for an H100, and what is published for an A100: insightface's arcface_torch, images/s of one GPU.
AIMS_IMAGES_PER_S = {"r50": 3000.0, "r100": 1500.0}
PUBLISHED_A100 = {"r50": 1175.0, "r100": 460.0}
AIMS_SHARE = {"device": 0.05, "host": 0.15, "file": 0.15}


def floor_ms(record: Record, peaks: Record | None) -> float | None:
    """What a record's step cannot be below: its products at the measured peak, its rows at the measured bandwidth.

    Products of a training step run in its precision, those of float32 networks in TF32, which cuDNN may use; the
    classifier's in float32 unless ``precision`` says otherwise. Rows cross to the device and back where heads live
    on the host or in files: a file's own bandwidth is not counted.
    """
    if peaks is None or "step_ms" not in record:
        return None
    is_training = "network" in record
    flop = record.get("flop_per_step") if is_training else record.get("floor_flop")
    if flop is None:
        return None
    precision = record.get("precision", "float32")
    if is_training and precision == "float32" and record.get("tf32_convolutions") is not False:
        precision = "tf32"
    products_ms = float(flop) / float(peaks[f"{precision}_tflop_per_s"]) / 1e9
    moved = float(record.get("floor_bytes", 0.0))
    if record.get("storage", "device") == "device":
        rows_ms = moved / float(peaks["copy_gb_per_s"]) / 1e6
    else:
        rows_ms = moved / 2 * (1 / peaks["to_device_gb_per_s"] + 1 / peaks["to_host_gb_per_s"]) / 1e6
    return float(products_ms + rows_ms)


def make_page(result: Record) -> str:
    """The page in Markdown; ``result`` is what the JSON file holds."""
    rows: list[Record] = result["rows"]
    peaks = next((row for row in rows if row["table"] == "peaks" and "error" not in row), None)
    good = [row for row in rows if "error" not in row and "left_out" not in row]
    parts = [
        "# The figures of one GPU\n" if result["is_gpu"] else "# A walk over every path: not yet run on a GPU\n",
        _machine(result),
        _suite(result.get("suite")),
        _failed(rows),
        _peaks(peaks),
        _training(good, peaks),
        _shares(good),
        _classifier(good, peaks),
        _memory(good),
        _input(good),
        _waits(good),
        _left_out(result),
    ]
    return "\n".join(part for part in parts if part)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "/").replace("\n", " ")


def _titled(title: str, text: str, body: str) -> str:
    return f"## {title}\n{text}\n\n{body}" if body else ""


def _machine(result: Record) -> str:
    facts = result.get("facts", {})
    if not result["is_gpu"]:
        text = "Tiny sizes on the CPU: the figures mean nothing but that the code runs."
    else:
        text = "Every figure is of this machine, in one run of one command."
    body = _table(["", ""], [(key, value) for key, value in facts.items()])
    took = f"\nCommand: `{result['command']}`, {result['took_s']:.0f} s of {result['budget_s']:.0f} s.\n"
    return f"{text}\n\n{body}{took}"


def _suite(suite: Record | None) -> str:
    if suite is None:
        return "## Tests\nNot run in this call.\n"
    counts = ", ".join(f"{number} {word.lower()}" for word, number in sorted(suite["counts"].items()))
    bad = {name: verdict for name, verdict in suite["tests"].items() if verdict.startswith(("FAILED", "ERROR"))}
    skipped = Counter(verdict for verdict in suite["tests"].values() if verdict.startswith("SKIPPED"))
    body = _table(["failed", ""], bad.items()) + ("\n" if bad and skipped else "")
    body += _table(["skipped", "tests"], skipped.items())
    outputs = [f"\n```\n{file['output'][-2500:]}\n```\n" for file in suite["files"].values() if "output" in file]
    return f"## Tests\n{counts or 'none'} in {suite['took_s']:.0f} s.\n\n{body}{''.join(outputs)}"


def _failed(rows: Sequence[Record]) -> str:
    bad = [(row["name"], row["error"]) for row in rows if "error" in row]
    text = f"{len(bad)} of {len(rows)} rows; the tracebacks are in the JSON file."
    return _titled("What failed", text, _table(["row", "error"], bad))


def _peaks(peaks: Record | None) -> str:
    if peaks is None:
        return ""
    units = {"tflop_per_s": "TFLOP/s", "gb_per_s": "GB/s"}
    rows = []
    for key, value in peaks.items():
        for ending, unit in units.items():
            if key.endswith(f"_{ending}"):
                rows.append((key.removesuffix(f"_{ending}").replace("_", " "), value, unit))
    text = "Products of square matrices, and copies; the best of some. The floors below come from these."
    return _titled("What the device can do", text, _table(["what", "measured", ""], rows))


def _training(rows: Sequence[Record], peaks: Record | None) -> str:
    body = []
    for row in rows:
        if row["kind"] != "training":
            continue
        floor = floor_ms(row, peaks)
        aim = AIMS_IMAGES_PER_S.get(row["network"])
        body.append(
            (
                row["network"],
                ", ".join([row.get("precision", "float32"), *_in_words(row)]),
                row["batch"],
                f"{row.get('storage', 'device')}, {row['classes']:,}",
                row["images_per_s"],
                row["step_ms"],
                row["step_ms_p50"],
                floor,
                row["step_ms"] / floor if floor else None,
                f"{row['images_per_s'] / aim:.2f} of {aim:,.0f}" if aim else None,
            )
        )
    head = ["network", "type", "batch", "heads", "images/s", "step ms", "median", "floor ms", "x floor", "aim (H100)"]
    published = ", ".join(f"{name} {value:,.0f}" for name, value in PUBLISHED_A100.items())
    text = (
        "The full step of `TrainingRun`, its images on the device already. Floor: the backbone's operations, forward "
        f"and backward, at the measured peak of the type. Published for an A100 (insightface): {published}."
    )
    return _titled("Images a second", text, _table(head, body))


def _in_words(row: Record) -> list[str]:
    """The further settings of a row."""
    return [f"{name}={value}" for name, value in row.get("settings", {}).items()]


def _shares(rows: Sequence[Record]) -> str:
    body = [
        (
            row["network"],
            ", ".join([row.get("storage", "device"), *_in_words(row)]),
            row["classes"],
            row["step_ms"],
            row["backbone_ms"],
            row["classifier_ms"],
            f"{row['classifier_share']:.1%}",
            f"{AIMS_SHARE[row.get('storage', 'device')]:.0%}",
        )
        for row in rows
        if "classifier_share" in row
    ]
    head = ["network", "heads", "identities", "step ms", "without it", "alone", "share", "aim"]
    text = (
        "Share: what the step takes longer than the same step without the classifier. Alone: the classifier with no "
        "backbone to hide its waiting behind. Labels come from 20,000 identities, first visits included."
    )
    return _titled("The classifier's share of a step", text, _table(head, body))


def _classifier(rows: Sequence[Record], peaks: Record | None) -> str:
    body = []
    for row in sorted((r for r in rows if r["kind"] == "classifier"), key=lambda r: (r["storage"], r["classes"])):
        floor = floor_ms(row, peaks)
        ratio = row["step_ms"] / floor if floor else None
        times = (row["step_ms"], row["step_ms_p10"], row["step_ms_p50"], row["step_ms_p90"])
        waits = (row["rows_wait_share"], row["waits_per_step"])
        kind = (row["storage"], row["classes"], row["batch"], row.get("precision", "float32"))
        body.append((*kind, *times, floor, ratio, *waits))
    head = ["heads", "identities", "batch", "type", "step ms", "p10", "p50", "p90", "floor ms", "x floor"]
    text = (
        "The classifier alone. Floor: three products on the selected rows at the measured peak, and these rows once "
        "read and once written at the measured bandwidth. Waits: for rows, share of the time; for the device, a "
        "step, in calls."
    )
    return _titled("The classifier's step", text, _table([*head, "wait for rows", "waits for device"], body))


def _memory(rows: Sequence[Record]) -> str:
    plans = {_of(row): row for row in rows if row["kind"] == "plan"}
    body = []
    for row in rows:
        if row["kind"] == "training" and "allocated_mib" in row and not row.get("settings"):
            plan = plans.get(_of(row), {}).get("planned_device_mib")
            ratio = row["allocated_mib"] / plan if plan else None
            what = (row["network"], row.get("precision", "float32"), row["batch"], row.get("storage", "device"))
            body.append((*what, row["classes"], row["allocated_mib"], row["reserved_mib"], plan, ratio))
    head = ["network", "type", "batch", "heads", "identities", "allocated MiB", "reserved", "planned", "ratio"]
    text = "Peak of torch's allocator on the device. Planned: tools/plan_memory.py without what stays on the host."
    return _titled("Peak memory", text, _table(head, body))


def _of(row: Record) -> tuple[Any, ...]:
    return tuple(row.get(key, usual) for key, usual in _SAME)


_SAME = (("network", ""), ("precision", "float32"), ("batch", 0), ("classes", 0), ("storage", "device"))


def _input(rows: Sequence[Record]) -> str:
    body = [(row["workers"], row["images_per_s"]) for row in rows if row["kind"] == "input"]
    speeds = [(f"{r['network']} {r.get('precision', 'float32')}", r["images_per_s"]) for r in rows if _is_plain(r)]
    text = "Record files of 112 x 112 JPEGs through the project's loader, by number of its processes."
    if speeds:
        text += " The device takes " + ", ".join(f"{speed:,.0f} ({name})" for name, speed in speeds) + " images/s."
    return _titled("What the input gives", text, _table(["workers", "images/s"], body))


def _is_plain(row: Record) -> bool:
    return bool(row["kind"] == "training" and row["table"] == "step")


def _waits(rows: Sequence[Record]) -> str:
    body = []
    for row in rows:
        if row["kind"] == "training":
            places = ", ".join(f"{place} x{number}" for place, number in row["waits_places"].items())
            body.append((row["name"], row["waits_per_step"], row["waits_of_threads_per_step"], places))
    text = (
        "Calls a step that let the training thread wait for the device, as torch's sync debug mode counts them; "
        "places are totals of four steps. Threads that carry heads wait by design."
    )
    return _titled("Synchronising calls", text, _table(["row", "training thread", "other threads", "where"], body))


def _left_out(result: Record) -> str:
    body = [(row["name"], row["left_out"]) for row in [*result["rows"], *result["left_out"]] if "left_out" in row]
    return _titled("Left out", "", _table(["row", "why"], body))
