"""What happens to ranks: killed, stopped, failing alone, waiting for ever, computing nonsense."""

from __future__ import annotations

import signal
import time
from typing import Any

from faults.processes import ended
from faults.scenario import Scenario, scenario
from faults.stage import (
    LIMIT_S,
    RUN_S,
    Row,
    Stage,
    differences,
    due_step,
    end_of,
    every_of,
    go_on_and_compare,
    is_finite,
    last_step,
    leftovers,
    newest_checkpoint,
    one_host,
    resumed_at,
    row_of,
)

KILLED = r"signal 9|SIGKILL|exitcode\s*:\s*-9"
LONG = {"num_epoch": 9}  # 108 steps
TIMEOUT_S = 8


def kill_again_and_again(stage: Stage, rank: int) -> list[Row]:
    """One run, killed at many moments and resumed after each; at its end it must equal the uninterrupted one."""
    rows: list[Row] = []
    resume: dict[str, Any] = {}
    for number in range(60):
        told = last_step(stage.output)
        fault = moment_of_kill(stage, rank, 0 if not rows else told)
        stage.mark.unlink(missing_ok=True)
        launch = stage.start({**LONG, **resume}, fault if number < 20 else None)
        with ended(launch):
            launch.wait_until(lambda: stage.struck_s() is not None, RUN_S)
            since_s = stage.struck_s()
            ending = end_of(launch, since_s or time.monotonic(), LIMIT_S if since_s else RUN_S)
        settle_resumed(rows, ending.output, bool(resume))
        if since_s is None:
            break
        what = stage.mark.with_suffix(".what").read_text()
        moment = f"rank {rank}, step {last_step(stage.output)}: {what}"
        told, due = last_step(stage.output), due_step(stage.output, every_of(LONG))
        rows.append(row_of(stage, moment, ending, "ends", KILLED, told_step=told, due=due))
        resume = {"resume": True} if newest_checkpoint(stage.output) is not None else {"overwrite": True}
    settle(stage, rows, ending.status == 0, ending.output)
    return rows


def moment_of_kill(stage: Stage, rank: int, step: int) -> Row:
    """A moment in the start, around files of the output folder (saving above all), or anywhere in a step."""
    kind = stage.random.choices(["start", "files", "time"], [1, 4, 3])[0] if step else "files"
    after = step + stage.random.randint(2, 5)
    delay_s = stage.random.choice([0.0, stage.random.uniform(0.0, 0.02)])
    if kind == "time":
        return {
            "kind": "kill_after_step",
            "rank": rank,
            "step": after,
            "delay_s": stage.random.uniform(0.0, 0.15),
        }
    event = stage.random.randint(1, 14 if rank == 0 else 5)
    at = 0 if kind == "start" else after
    return {"kind": "kill_at_file_event", "rank": rank, "step": at, "event": event, "delay_s": delay_s}


def settle_resumed(rows: list[Row], output: str, is_resumed: bool) -> None:
    """Complete the row before with the step at which this launch went on, if it came as far as saying so."""
    if not rows or "resumed_step" in rows[-1]:
        return
    started_at = resumed_at(output) if is_resumed else 0
    if started_at is not None:
        rows[-1]["resumed_step"] = started_at
        rows[-1]["lost_steps"] = max(0, rows[-1]["due"] - started_at)


def settle(stage: Stage, rows: list[Row], is_done: bool, output: str) -> None:
    """Complete all rows with what came out at the end."""
    differs = differences(stage.output, stage.reference(LONG), stage.folder) if is_done else ["no end"]
    left = leftovers(stage.output)
    for row in rows:
        row.update(equal=is_done and not differs, differs=differs[:5])
        if not is_done:
            row["resume_error"] = output[-800:]
        if row["equal"] is False:
            row["problems"].append(f"not equal to the uninterrupted run: {differs[:3]}")
        if row.get("lost_steps"):
            row["problems"].append(f"{row['lost_steps']} steps before the newest due checkpoint are lost")
    if rows and left:
        rows[-1]["leftovers"] = left
        rows[-1]["problems"].append(f"left behind: {', '.join(left)}")


def one_fails(stage: Stage, kind: str, cause: str, limit_s: float = LIMIT_S, **how: Any) -> list[Row]:
    """One rank goes wrong; all must end, naming it, and the run must go on from its checkpoint."""
    rank = stage.seed % 2
    where = {"image": 44} if "data" in kind else {"step": stage.random.randint(5, 9)}
    options = {"timeout_s": TIMEOUT_S} if "hang" in kind else {}
    launch = stage.start(options, {"kind": kind, "rank": rank, **where, **how})
    with ended(launch):
        assert launch.wait_until(lambda: stage.struck_s() is not None, RUN_S), launch.output()[-2000:]
        ending = end_of(launch, stage.struck_s() or 0, limit_s)
    moment = f"rank {rank}, " + ", ".join(f"{name} {value}" for name, value in where.items())
    return [row_of(stage, moment, ending, "ends", cause, **go_on_and_compare(stage))]


def kill_of_four(stage: Stage) -> list[Row]:
    """SIGKILL of one of four ranks: sums over more than two ranks depend on the order of the summands."""
    fault = {"kind": "kill_after_step", "rank": 3, "step": stage.random.randint(4, 8), "delay_s": 0.05}
    launch = stage.start({}, fault, launcher=one_host(4))
    with ended(launch):
        assert launch.wait_until(lambda: stage.struck_s() is not None, RUN_S), launch.output()[-2000:]
        ending = end_of(launch, stage.struck_s() or 0, LIMIT_S)
    found = go_on_and_compare(stage, ranks=4)
    return [row_of(stage, f"rank 3, step {fault['step']}", ending, "ends", KILLED, **found)]


def stop_a_rank(stage: Stage) -> list[Row]:
    """SIGSTOP: the process is there and does nothing any more."""
    rank = stage.seed % 2
    launch = stage.start({"timeout_s": TIMEOUT_S}, pace_s=0.05)
    with ended(launch):
        assert launch.wait_until(lambda: last_step(stage.output) >= 6), launch.output()[-2000:]
        stage.strike()
        launch.signal(signal.SIGSTOP, [launch.ranks()[rank]])
        ending = end_of(launch, stage.struck_s() or 0, TIMEOUT_S + LIMIT_S)
    return [row_of(stage, f"rank {rank}", ending, "ends", HANGS, **go_on_and_compare(stage))]


def worker(stage: Stage, number: int, cause: str) -> list[Row]:
    """A signal to a loader's process of one rank."""
    rank = stage.seed % 2
    launch = stage.start({"timeout_s": TIMEOUT_S}, pace_s=0.05)
    with ended(launch):
        assert launch.wait_until(lambda: last_step(stage.output) >= 6), launch.output()[-2000:]
        found = launch.workers(rank)
        assert found
        stage.strike()
        launch.signal(number, found)
        ending = end_of(launch, stage.struck_s() or 0, TIMEOUT_S + LIMIT_S)
    return [row_of(stage, f"rank {rank}", ending, "ends", cause, **go_on_and_compare(stage))]


def nan(stage: Stage, kind: str, cause: str, rank: int | None = None) -> list[Row]:
    """A number that is none, once, on one rank: the step is skipped on all, or the run ends; nothing stays behind."""
    rank = stage.seed % 2 if rank is None else rank
    step = stage.random.randint(5, 15)
    launch = stage.start({}, {"kind": kind, "rank": rank, "step": step})
    with ended(launch):
        ending = end_of(launch, time.monotonic(), RUN_S)
    assert stage.struck_s() is not None, ending.output[-2000:]
    finite = is_finite(stage.output) if (stage.output / "model.pt").exists() else None
    found: Row = {"finite": finite, "leftovers": leftovers(stage.output)}
    expect = "skips" if ending.status == 0 else "ends"
    return [row_of(stage, f"rank {rank}, step {step}", ending, expect, cause, **found)]


def clock(stage: Stage) -> list[Row]:
    """time.time() jumps by a day, ahead and back, on one rank: nothing may change."""
    rank = stage.seed % 2
    launch = stage.start({}, {"kind": "clock_jumps", "rank": rank, "step": 7})
    with ended(launch):
        ending = end_of(launch, time.monotonic(), RUN_S)
    assert stage.struck_s() is not None, ending.output[-2000:]
    differs = differences(stage.output, stage.reference(), stage.folder) if ending.status == 0 else ["no end"]
    return [row_of(stage, f"rank {rank}", ending, "goes on", None, equal=not differs, differs=differs)]


def torchrun_restarts(stage: Stage) -> list[Row]:
    """torchrun starts the ranks again after one was killed; resume = "auto" goes on by itself."""
    fault = {"kind": "kill_after_step", "rank": stage.seed % 2, "step": 9, "delay_s": 0.03}
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2"]
    launch = stage.start({"resume": "auto"}, fault, launcher=launcher)
    with ended(launch):
        ending = end_of(launch, time.monotonic(), RUN_S)
    has_struck = stage.struck_s() is not None
    differs = differences(stage.output, stage.reference(), stage.folder) if ending.status == 0 else ["no end"]
    more: Row = {"equal": not differs, "differs": differs, "resumed_step": resumed_at(ending.output)}
    if not has_struck:
        more["more_problems"] = ["the run ended before the fault"]
    return [row_of(stage, f"rank {stage.seed % 2}, step 9", ending, "goes on", None, **more)]


ALONE = r"injected: "
HANGS = r"rank \d+ on .*(has not joined|stopped)|loader worker \d+ on .*has not delivered|the disk has taken nothing"
LOADER = r"[Ll]oader"
NOT_FINITE = "is not finite"
RANKS, NUMBERS = "A rank or a loader's process", "Numbers and clocks"
SCENARIOS: dict[str, Scenario] = {
    "kill_rank_0": scenario("SIGKILL of rank 0, one run at 20 moments", RANKS, kill_again_and_again, rank=0),
    "kill_rank_1": scenario("SIGKILL of rank 1, one run at 20 moments", RANKS, kill_again_and_again, rank=1),
    "kill_in_save": scenario(
        "SIGKILL of a rank as it saves", RANKS, one_fails, seeds=2, quick=True, kind="kill_at_file_event",
        cause=KILLED, event=3, delay_s=0.002,
    ),
    "kill_of_four": scenario("SIGKILL of one of four ranks", RANKS, kill_of_four, seeds=2),
    "raise_in_forward": scenario(
        "a rank alone raises in forward", RANKS, one_fails, seeds=2, kind="raise_in_forward", cause=ALONE
    ),
    "raise_in_data": scenario(
        "a loader of one rank raises", RANKS, one_fails, seeds=2, kind="raise_in_data", cause=ALONE
    ),
    "hang_in_forward": scenario(
        "a rank waits for ever in forward", RANKS, one_fails, seeds=2, kind="hang_in_forward", cause=HANGS,
        limit_s=TIMEOUT_S + LIMIT_S,
    ),
    "hang_in_data": scenario(
        "a loader of one rank waits for ever", RANKS, one_fails, seeds=2, kind="hang_in_data", cause=HANGS,
        limit_s=TIMEOUT_S + LIMIT_S,
    ),
    "hang_in_save": scenario(
        "a rank waits for ever while it saves", RANKS, one_fails, seeds=2, kind="hang_in_save", cause=HANGS,
        limit_s=TIMEOUT_S + LIMIT_S,
    ),
    "stop_rank": scenario("SIGSTOP of a rank", RANKS, stop_a_rank, seeds=2),
    "kill_worker": scenario(
        "SIGKILL of a loader's process", RANKS, worker, seeds=2, number=signal.SIGKILL, cause=LOADER
    ),
    "stop_worker": scenario(
        "SIGSTOP of a loader's process", RANKS, worker, seeds=2, number=signal.SIGSTOP, cause=LOADER
    ),
    "restart": scenario("SIGKILL of a rank under torchrun --max-restarts", RANKS, torchrun_restarts, seeds=2),
    "nan_input": scenario("nan in one rank's images", NUMBERS, nan, seeds=2, kind="nan_in_input", cause=NOT_FINITE),
    "nan_loss": scenario("nan in one rank's loss", NUMBERS, nan, seeds=2, kind="nan_in_loss", cause=NOT_FINITE),
    "nan_gradient": scenario(
        "nan in one rank's gradient", NUMBERS, nan, seeds=2, kind="nan_in_gradient", cause=NOT_FINITE
    ),
    "nan_statistics": scenario(
        "nan in one rank's batch-norm statistics", NUMBERS, nan, seeds=2, kind="nan_in_statistics", cause=NOT_FINITE
    ),
    "clock": scenario("the clock jumps by a day, ahead and back", NUMBERS, clock, seeds=2),
}  # fmt: skip
