"""Signals of launchers and schedulers, the end of the launcher itself, and two runs on one folder."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from faults.processes import Launch, ended
from faults.scenario import Scenario, scenario
from faults.stage import (
    LIMIT_S,
    OPTIONS,
    RUN_S,
    Row,
    Stage,
    differences,
    end_of,
    go_on_and_compare,
    last_step,
    newest_checkpoint,
    row_of,
)

NO_PERIODIC = {"checkpoint_steps": 0, "num_image": 800}  # 100 steps an epoch
Target = Callable[[Launch], list[int]]


def launcher(launch: Launch) -> list[int]:
    return [launch.process.pid]


def every_rank(launch: Launch) -> list[int]:
    return list(launch.ranks().values())


def rank_0(launch: Launch) -> list[int]:
    return [launch.ranks()[0]]


def rank_1(launch: Launch) -> list[int]:
    return [launch.ranks()[1]]


def all_but_the_launcher(launch: Launch) -> list[int]:
    return [pid for pid in launch.pids() if pid != launch.process.pid]


def asked_to_end(stage: Stage, target: Target, times: int = 1, gap_s: float = 0.3) -> list[Row]:
    """SIGTERM: the step in progress is finished, a checkpoint written, nothing is lost."""
    at = stage.random.randint(5, 12)
    options = {**NO_PERIODIC, "num_epoch": 1}
    launch = stage.start(options, pace_s=0.05)
    with ended(launch):
        assert launch.wait_until(lambda: last_step(stage.output) >= at), launch.output()[-2000:]
        stage.strike()
        for number in range(times):
            if number:
                time.sleep(gap_s)
            launch.signal(signal.SIGTERM, target(launch) if launch.process.poll() is None else [])
        ending = end_of(launch, stage.struck_s() or 0, LIMIT_S)
    saved, told = newest_checkpoint(stage.output), last_step(stage.output)
    found = go_on_and_compare(stage, options)
    found["lost_steps"] = told - (saved or 0)
    moment, cause = f"after step {at}", "stopped by SIGTERM"
    return [row_of(stage, moment, ending, "stops", cause, on_last=r"SIGTERM|signal: 15", saved_step=saved, **found)]


def launcher_is_killed(stage: Stage) -> list[Row]:
    """Without their launcher the ranks must end too, and soon."""
    at = stage.random.randint(5, 12)
    options = {"num_epoch": 4}
    launch = stage.start(options, pace_s=0.05)
    with ended(launch):
        assert launch.wait_until(lambda: last_step(stage.output) >= at), launch.output()[-2000:]
        stage.strike()
        launch.signal(signal.SIGKILL, [launch.process.pid])
        ending = end_of(launch, stage.struck_s() or 0, LIMIT_S)
    cause = r"stopped by SIGTERM|launcher"
    return [row_of(stage, f"after step {at}", ending, "ends", cause, **go_on_and_compare(stage, options))]


def asked_to_save(stage: Stage, target: Target) -> list[Row]:
    """SIGUSR1: a checkpoint is written, the run goes on."""
    at = stage.random.randint(5, 12)
    options = {**NO_PERIODIC, "num_epoch": 1}
    launch = stage.start(options, pace_s=0.05)
    with ended(launch):
        assert launch.wait_until(lambda: last_step(stage.output) >= at), launch.output()[-2000:]
        stage.strike()
        launch.signal(signal.SIGUSR1, target(launch))
        launch.wait_until(lambda: newest_checkpoint(stage.output) is not None, 5)
        saved = newest_checkpoint(stage.output)
        ending = end_of(launch, time.monotonic(), RUN_S)
    is_done = ending.status == 0
    differs = differences(stage.output, stage.reference(options), stage.folder) if is_done else ["no end"]
    more: Row = {"equal": not differs, "differs": differs[:5], "saved_step": saved}
    if saved is None or not at <= saved <= at + 20:
        more["more_problems"] = [f"no checkpoint after the signal (newest: {saved})"]
    return [row_of(stage, f"after step {at}", ending, "goes on", "SIGUSR1", **more)]


def second_run(stage: Stage, **how: bool) -> list[Row]:
    """A second run on the folder of one that is in progress is refused; the first does not notice."""
    first = stage.start({"num_epoch": 6}, pace_s=0.25)
    with ended(first):
        assert first.wait_until(lambda: last_step(stage.output) >= 6), first.output()[-2000:]
        stage.strike()
        second = stage.start({"num_epoch": 6, **how})
        with ended(second):
            ending = end_of(second, stage.struck_s() or 0, RUN_S)
        end = end_of(first, time.monotonic(), RUN_S)
    differs = [f"the first run ends with {end.status}"]
    if end.status == 0:
        differs = differences(stage.output, stage.reference({"num_epoch": 6}), stage.folder)
    cause = r"another run|in use|is running|holds .*lock"
    what = ", ".join(f"{name} = {value}" for name, value in how.items())
    return [row_of(stage, what, ending, "refused", cause, equal=not differs, differs=differs[:5])]


SIGNALS, FOLDERS = "Signals and launchers", "The output folder"
assert OPTIONS["checkpoint_steps"]
SCENARIOS: dict[str, Scenario] = {
    "sigterm": scenario("SIGTERM of the launcher", SIGNALS, asked_to_end, seeds=3, target=launcher),
    "sigterm_rank_0": scenario("SIGTERM of rank 0 alone", SIGNALS, asked_to_end, target=rank_0),
    "sigterm_rank_1": scenario("SIGTERM of rank 1 alone", SIGNALS, asked_to_end, target=rank_1),
    "sigterm_all": scenario("SIGTERM of all processes but the launcher", SIGNALS, asked_to_end, seeds=2,
                            target=all_but_the_launcher),
    "sigterm_twice": scenario("SIGTERM of the launcher, twice", SIGNALS, asked_to_end, seeds=2, target=launcher,
                              times=2),
    "sigterm_ranks_twice": scenario("SIGTERM of all ranks, twice", SIGNALS, asked_to_end, seeds=2, target=every_rank,
                                    times=2, gap_s=0.05),
    "kill_launcher": scenario("SIGKILL of the launcher", SIGNALS, launcher_is_killed, seeds=3),
    "sigusr1": scenario("SIGUSR1 of all ranks", SIGNALS, asked_to_save, seeds=2, target=every_rank),
    "sigusr1_rank_1": scenario("SIGUSR1 of rank 1 alone", SIGNALS, asked_to_save, target=rank_1),
    "sigusr1_all": scenario("SIGUSR1 of all processes but the launcher", SIGNALS, asked_to_save,
                            target=all_but_the_launcher),
    "second_run_plain": scenario("a second run on the folder of one in progress", FOLDERS, second_run),
    "second_run_overwrite": scenario("the same with overwrite = True", FOLDERS, second_run, overwrite=True),
    "second_run_resume": scenario("the same with resume = True", FOLDERS, second_run, resume=True),
}  # fmt: skip
