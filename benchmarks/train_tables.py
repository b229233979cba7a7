"""What bench_train.py prints of its records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prettytable import PrettyTable

Record = dict[str, Any]


def speed_table(records: Sequence[Record]) -> PrettyTable:
    """Images a second with ratios to the reference's form and to one rank, and memory beside its plan."""
    has_gpu = any(r["cuda_peak_mib"] is not None for r in records)
    names = ["network", "form", "precision", "ranks", "threads", "batch", "images/s", "x reference", "x 1 rank"]
    names += ["step ms", "p10-p90", "CPU ms", "peak MiB", "plan MiB"]
    out = PrettyTable([*names, *(["GPU peak MiB", "GPU plan MiB"] if has_gpu else [])])
    out.align = "r"
    reference = {(*_setting(r), r["ranks"]): r["step_ms"] for r in records if r["form"] == "reference"}
    alone = {(*_setting(r), r["arm"]): r["imgs_per_s"] for r in records if r["ranks"] == 1}
    for r in records:
        base, one = reference.get((*_setting(r), r["ranks"])), alone.get((*_setting(r), r["arm"]))
        row = [r["network"], r["arm"], r["precision"], r["ranks"], r["threads"], r["batch_size"]]
        row += [f"{r['imgs_per_s']:.1f}", _ratio(base, r["step_ms"]), _ratio(r["imgs_per_s"], one)]
        row += [f"{r['step_ms']:.1f}", f"{r['step_ms_p10']:.1f}-{r['step_ms_p90']:.1f}", f"{r['cpu_ms']:.0f}"]
        row += [_whole(r["peak_mib"]), _whole(r.get("plan_mib"))]
        if has_gpu:
            row += [_whole(r["cuda_peak_mib"]), _whole(r.get("plan_device_mib"))]
        out.add_row(row)
    return out


def parts_table(records: Sequence[Record]) -> PrettyTable:
    """A column for each form and number of ranks of one network: its parts, what no part explains, and their sum."""
    names = [f"{r['arm']}, {r['ranks']} x {r['threads']} threads" for r in records]
    out = PrettyTable(["part", *(f"{name} ({i + 1})" if name in names[:i] else name for i, name in enumerate(names))])
    out.align = "r"
    out.align["part"] = "l"
    for part in records[0]["parts_ms"]:
        cells = [f"{r['parts_ms'][part]:.1f} ({r['parts_ms'][part] / r['watched_step_ms']:.0%})" for r in records]
        out.add_row([part.replace("_", " "), *cells])
    out.add_row(["rest", *(f"{r['rest_share'] * r['watched_step_ms']:.1f} ({r['rest_share']:.1%})" for r in records)])
    out.add_row(["step, watched", *(f"{r['watched_step_ms']:.1f}" for r in records)])
    out.add_row(["step, not watched", *(f"{r['step_ms']:.1f}" for r in records)])
    if any(r["all_reduce_span_ms"] for r in records):
        out.add_row(["all-reduce, first start to last end", *(_tenth(r["all_reduce_span_ms"]) for r in records)])
    return out


def loss_lines(records: Sequence[Record]) -> list[str]:
    """The first losses of our form as full softmax in float32, and of the reference's, on equal weights and data."""
    lines = []
    for ours in (r for r in records if r["arm"] == "equal"):
        theirs = next(
            (r for r in records if r["form"] == "reference" and (*_setting(r), r["ranks"]) == _place(ours)), None
        )
        if theirs is None:
            continue
        pairs = list(zip(ours["first_losses"], theirs["first_losses"], strict=False))[:3]
        text = ", ".join(f"{a:.6f} and {b:.6f}" for a, b in pairs)
        apart = max(abs(a - b) / abs(b) for a, b in pairs)
        lines.append(
            f"\n{ours['network']}, full softmax in float32: first losses of ours and the reference's form: {text}; "
            f"the first {abs(pairs[0][0] - pairs[0][1]) / abs(pairs[0][1]):.1e} apart, all at most {apart:.1e}"
        )
    return lines


def checkpointing_table(records: Sequence[Record]) -> PrettyTable:
    """Peaks with and without gradient checkpointing, their plans, and what it costs in time."""
    out = PrettyTable(
        [
            "network",
            "precision",
            "images",
            "peak MiB without (plan)",
            "peak MiB with (plan)",
            "step time",
            "processor time",
        ]
    )
    out.align = "r"
    for kept in (r for r in records if r["arm"].startswith("kept")):
        arm = kept["arm"].replace("kept", "checkpointed")
        less = next((r for r in records if r["arm"] == arm and _place(r) == _place(kept)), None)
        if less is None:
            continue
        row = [kept["network"], kept["precision"], kept["batch_size"], _peak(kept), _peak(less)]
        row += [f"x {less['step_ms'] / kept['step_ms']:.2f}", f"x {less['cpu_ms'] / kept['cpu_ms']:.2f}"]
        out.add_row(row)
    return out


def _setting(r: Record) -> tuple[Any, ...]:
    """What must be equal for two records to be compared, but for the ranks."""
    return r["network"], r["batch_size"], r["gradient_acc"], r["num_classes"], r["device"]


def _place(r: Record) -> tuple[Any, ...]:
    return (*_setting(r), r["ranks"])


def _peak(r: Record) -> str:
    """The GPU's where there is one."""
    if r["cuda_peak_mib"] is not None:
        return f"{r['cuda_peak_mib']:,.0f} ({r['plan_device_mib']:,.0f})"
    return f"{r['peak_mib']:,.0f} ({r['plan_mib']:,.0f})"


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}" if a is not None and b else ""


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _tenth(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
