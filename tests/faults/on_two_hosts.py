"""Two hosts with two ranks each: equal to one host, one of them lost, late, or with a folder of its own."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from faults.hosts import Host, two_hosts
from faults.processes import Launch, ended
from faults.scenario import Scenario, scenario
from faults.stage import (
    LIMIT_S,
    RUN_S,
    Ending,
    Row,
    Stage,
    differences,
    end_of,
    go_on_and_compare,
    last_step,
    one_host,
    resumed_at,
    row_of,
)

TIMEOUT_S = 10
PORT = 12581


def launch_line(hosts: Sequence[Host], node: int) -> list[str]:
    """The README's line for one of two machines."""
    return [
        "torch.distributed.launch", "--nproc_per_node=2", "--nnodes=2", f"--node_rank={node}",
        f"--master_addr={hosts[0].address}", f"--master_port={PORT}",
    ]  # fmt: skip


def elastic_line(hosts: Sequence[Host], node: int) -> list[str]:
    """torchrun that goes on with one host where the other is lost; the addresses have no names here."""
    return [
        "torch.distributed.run", "--nproc_per_node=2", "--nnodes=1:2", "--max-restarts=3", "--rdzv_backend=c10d",
        f"--rdzv_endpoint={hosts[0].address}:{PORT}", "--rdzv_id=faults", f"--local_addr={hosts[node].address}",
        f"--rdzv_conf=is_host={int(node == 0)},last_call_timeout=8,join_timeout=60",
    ]  # fmt: skip


@contextlib.contextmanager
def on_both(
    stage: Stage,
    hosts: Sequence[Host],
    options: Mapping[str, Any] | None = None,
    *,
    line: Any = launch_line,
    late_s: float = 0,
    own_folder: Path | None = None,
    pace_s: float = 0,
) -> Iterator[list[Launch]]:
    """Start a run on both hosts; the second one late, or with a folder that is another one there."""
    with contextlib.ExitStack() as stack:
        launches = []
        for node, host in enumerate(hosts):
            if node:
                time.sleep(late_s)
            started_by = host.started_by(own_folder if node else None)
            launch = stage.start(
                options, launcher=line(hosts, node), started_by=started_by, env=host.env(), pace_s=pace_s
            )
            launches.append(stack.enter_context(ended(launch)))
        yield launches


def worse_of(ends: Sequence[Ending]) -> Ending:
    """Both hosts' endings as one: the first status that is not 0, the longer time, both outputs."""
    gone = [end.gone_s for end in ends]
    status = next((end.status for end in ends if end.status != 0), 0)
    longest = None if None in gone else max(s for s in gone if s is not None)
    return Ending(status, longest, "\n".join(end.output for end in ends))


def equal(stage: Stage, late_s: float = 0) -> list[Row]:
    """Two hosts with two ranks each compute what one host with four does."""
    with two_hosts() as hosts, on_both(stage, hosts, late_s=late_s) as launches:
        ends = [end_of(launch, time.monotonic(), RUN_S) for launch in launches]
    end = worse_of(ends)
    differs = ["no end"]
    if end.status == 0:
        differs = differences(stage.output, stage.reference(ranks=4), stage.folder)
    return [row_of(stage, f"{late_s:g} s late", end, "goes on", None, equal=not differs, differs=differs[:5])]


def lost(stage: Stage, how: str) -> list[Row]:
    """The second host is lost; the first must end, naming it. Without a link, the second must end as well."""
    with two_hosts() as hosts, on_both(stage, hosts, {"timeout_s": TIMEOUT_S}, pace_s=0.1) as (first, second):
        assert first.wait_until(lambda: last_step(stage.output) >= 5), first.output()[-3000:]
        stage.strike()
        if how == "killed":
            second.signal(signal.SIGKILL, second.pids())
        else:
            hosts[1].unplug()
        since_s = stage.struck_s() or 0
        end = end_of(first, since_s, TIMEOUT_S + LIMIT_S)
        other = end_of(second, since_s, TIMEOUT_S + LIMIT_S)
    found = go_on_and_compare(stage, ranks=4)
    rows = [row_of(stage, f"{how}: the host that is left", end, "ends", LOST, **found)]
    if how != "killed":
        rows.append(row_of(stage, f"{how}: the other host", other, "ends", LOST))
    return rows


def elastic_loss(stage: Stage) -> list[Row]:
    """Under torchrun --nnodes=1:2 the first host goes on alone from the newest checkpoint."""
    options = {"resume": "auto", "timeout_s": TIMEOUT_S, "num_epoch": 6}
    with two_hosts() as hosts, on_both(stage, hosts, options, line=elastic_line, pace_s=0.1) as (first, second):
        if not first.wait_until(lambda: last_step(stage.output) >= 5):
            end = end_of(first, time.monotonic(), LIMIT_S)
            more = {"more_problems": ["it did not start"]}
            return [row_of(stage, "not struck", end, "goes on", None, **more)]
        told = last_step(stage.output)
        stage.strike()
        second.signal(signal.SIGKILL, second.pids())
        end = end_of(first, time.monotonic(), 2 * RUN_S)
    return [row_of(stage, f"killed after step {told}", end, "goes on", None, **after_a_restart(end, told))]


def elastic(stage: Stage, hosts: Sequence[Host], node: int, options: Row, pace_s: float) -> Launch:
    """torchrun on one host; hosts that come later are only taken in where it does not share its rendezvous' store."""
    return stage.start(
        options,
        launcher=elastic_line(hosts, node),
        started_by=hosts[node].started_by(),
        env={**hosts[node].env(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        pace_s=pace_s,
    )


def elastic_late(stage: Stage) -> list[Row]:
    """A host that comes late to torchrun --nnodes=1:2 is taken in; the run goes on from its newest checkpoint."""
    options = {"resume": "auto", "timeout_s": TIMEOUT_S, "num_epoch": 20}
    with two_hosts() as hosts:
        first = elastic(stage, hosts, 0, options, pace_s=0.1)
        with ended(first):
            if not first.wait_until(lambda: last_step(stage.output) >= 5):
                end = end_of(first, time.monotonic(), LIMIT_S)
                return [row_of(stage, "not struck", end, "goes on", None, more_problems=["it did not start"])]
            told = last_step(stage.output)
            second = elastic(stage, hosts, 1, options, pace_s=0.1)
            stage.strike()
            with ended(second):
                ends = [end_of(launch, time.monotonic(), 2 * RUN_S) for launch in (first, second)]
    end = worse_of(ends)
    return [row_of(stage, f"after step {told}", end, "goes on", None, **after_a_restart(end, told))]


def after_a_restart(end: Ending, told: int) -> Row:
    """Whether the run has gone on from the newest checkpoint, of which one may have been in the making."""
    at = resumed_at(end.output)
    lost_steps = None if at is None else max(0, (told - 1) // 2 * 2 - 2 - at)
    return {"resumed_step": at, "lost_steps": lost_steps, "more_problems": ["not resumed"] if at is None else []}


def own_output(stage: Stage, resume: bool) -> list[Row]:
    """An output folder that is another one for the second host is refused before the first step."""
    shared = stage.folder / "shared"
    shared.mkdir()
    output = shared / "run"
    options: Row = {"output": output}
    if resume:
        launch = stage.start({"output": output, "num_epoch": 1}, launcher=one_host(4))
        with ended(launch):
            assert launch.wait_until_gone(RUN_S)
        assert launch.process.returncode == 0, launch.output()[-2000:]
        options["resume"] = True
    before = last_step(output)
    stage.strike()
    with two_hosts() as hosts, on_both(stage, hosts, options, own_folder=shared) as launches:
        ends = [end_of(launch, stage.struck_s() or 0, RUN_S) for launch in launches]
    more = {"more_problems": ["it took steps"] if last_step(output) > before else []}
    moment = "resumed" if resume else "new"
    return [row_of(stage, moment, worse_of(ends), "refused", OWN_FOLDER, **more)]


LOST = r"rank \d on \S+ .*(gone without a word|has not joined|failed)|has ended without a word"
OWN_FOLDER = r"is another folder for|storage that the hosts share"
HOSTS = "Two hosts"
NETWORK = ("network namespaces", "mounts")
SCENARIOS: dict[str, Scenario] = {
    "hosts_equal": scenario("two hosts with two ranks, against one with four", HOSTS, equal, needs=NETWORK),
    "hosts_late": scenario("a host that comes 12 s late", HOSTS, equal, needs=NETWORK, late_s=12.0),
    "host_killed": scenario("a host is lost: its processes die", HOSTS, lost, seeds=2, needs=NETWORK, how="killed"),
    "host_unplugged": scenario("a host is lost: its link goes down", HOSTS, lost, needs=NETWORK, how="unplugged"),
    "elastic_loss": scenario("a host is lost under torchrun --nnodes=1:2", HOSTS, elastic_loss, needs=NETWORK),
    "elastic_late": scenario("a host comes late under torchrun --nnodes=1:2", HOSTS, elastic_late, needs=NETWORK),
    "own_output": scenario("an output folder that one host does not see", HOSTS, own_output, needs=NETWORK,
                           resume=False),
    "own_output_resume": scenario("the same with resume = True", HOSTS, own_output, needs=NETWORK, resume=True),
}  # fmt: skip
