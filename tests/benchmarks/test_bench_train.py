"""The training step's benchmark: both forms compute the same, its parts are all of the step, it leaves no trace."""

import itertools
import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import train
import training.run
from backbones.prelu import PReLU
from benchmarks import bench_train, step_parts, train_case
from benchmarks.left_out import left_out
from benchmarks.step_parts import PARTS, Timeline, watched
from benchmarks.train_forms import Ours, Reference, equal_overrides, open_config
from paths import ROOT
from ranks import run_ranks
from utils.config import get_config
from utils.distributed import Ranks
from utils.log import log

TINY = str(ROOT / "tests" / "tiny.py")
ALONE = Ranks(0, 1, 0, torch.device("cpu"))
EQUAL = equal_overrides(get_config(TINY))


def measure(*overrides, **options):
    return train_case.measure(
        TINY, list(overrides), ranks=ALONE, **({"steps": 1, "warm_steps": 2, "part_steps": 0} | options)
    )


@pytest.fixture(scope="module")
def record():
    """Thirteen steps of the tiny recipe: its epoch has twelve."""
    return measure(steps=9, part_steps=2)


def test_both_forms_compute_the_same_losses_on_all_classes(record):
    ours, reference = (measure(*EQUAL, form=form)["first_losses"] for form in ("ours", "reference"))
    assert ours[0] == pytest.approx(reference[0], rel=1e-6)  # the convolutions' memory layouts round differently
    assert ours == pytest.approx(reference, rel=1e-3)  # updates differ by rounding
    assert ours[1] != pytest.approx(ours[0], rel=1e-3)
    assert record["first_losses"][0] != pytest.approx(reference[0], rel=1e-3)  # softmax over the batch's heads alone


def test_what_a_record_holds(record):
    assert record["form"] == "ours"
    assert (record["network"], record["precision"], record["batch_size"], record["ranks"]) == (
        "rtiny",
        "float32",
        8,
        1,
    )
    assert record["steps"] == 9
    assert record["imgs_per_s"] == pytest.approx(8e3 / record["step_ms"])
    assert record["step_ms_p10"] <= record["step_ms"] <= record["step_ms_p90"]
    assert len(record["first_losses"]) == 5
    assert record["plan_mib"] - 826 == pytest.approx(record["plan_device_mib"], abs=1e-6)
    assert record["cuda_peak_mib"] is None


def test_the_parts_are_all_of_the_step(record):
    parts = record["parts_ms"]
    assert tuple(parts) == PARTS
    alone = {"copy", "all_reduce"}
    assert all(parts[part] > 0 for part in PARTS if part not in alone)
    assert parts["all_reduce"] == 0
    assert sum(parts.values()) == pytest.approx(record["watched_step_ms"] * (1 - record["rest_share"]))
    assert 0 < record["rest_share"] < 0.5
    assert parts["forward"] + parts["backward"] > 0.3 * record["watched_step_ms"]


def test_a_parts_time_is_without_that_of_parts_within():
    moments = iter((0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0))
    clock = SimpleNamespace(
        now=lambda: next(moments), ms_between=lambda all_: [b - a for a, b in itertools.pairwise(all_)]
    )
    line = Timeline(clock)
    line.begin("classifier_backward")  # at 1
    line.become("backward")  # at 3
    line.begin("check")  # at 7
    line.end()  # at 15
    line.end()  # at 31
    parts = line.part_ms(2)  # at 63
    assert {name: ms for name, ms in parts.items() if ms} == {
        "classifier_backward": 1.0,
        "backward": (4 + 16) / 2,
        "check": 4.0,
        "rest": (1 + 32) / 2,
    }


def test_watching_takes_away_what_it_has_put_in(tmp_path):
    before = torch.autograd.backward, nn.utils.clip_grad_norm_, training.run.to_device
    rig = Ours(open_config(TINY, [], tmp_path / "run"), ALONE)
    line = Timeline(step_parts.Clock(ALONE.device))
    with rig.watching(line):
        rig.step()
        assert torch.autograd.backward is not before[0]
    seen = len(line._names)
    rig.step()
    rig.close()
    assert len(line._names) == seen > 20
    assert (torch.autograd.backward, nn.utils.clip_grad_norm_, training.run.to_device) == before


def test_a_module_that_is_compiled_in_place_is_watched_from_outside():
    told, model = [], nn.Linear(2, 2)
    model._compiled_call_impl = model._call_impl
    classifier = nn.Linear(2, 1)
    watch = SimpleNamespace(begin=told.append, become=told.append, end=lambda: told.append("end"))
    with step_parts.watching(watch, model, classifier, []):
        loss = classifier(model(torch.ones(1, 2)))
        assert not model._forward_hooks
        loss.backward()
    assert told == ["forward", "end", "classifier", "end", "classifier_backward", "backward", "end"]
    model(torch.ones(1, 2))
    assert told[-1] == "end"
    assert len(told) == 7


def test_an_error_within_a_part_ends_it():
    told = []
    watch = SimpleNamespace(begin=told.append, end=lambda: told.append("end"))
    with pytest.raises(ZeroDivisionError):
        watched(watch, "copy", lambda x: 1 / x)(0)
    assert told == ["copy", "end"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("loss=adaface", "loss = one of arcface"),
        ("gradient_acc=2", "gradient_acc = 1"),
        ("nesterov=True", "nesterov"),
    ],
)
def test_the_reference_has_no_counterpart_of(override, named, tmp_path):
    with pytest.raises(ValueError, match=rf"the reference's form needs {named}.*--no-reference"):
        Reference(open_config(TINY, [override], tmp_path), ALONE)


def test_partial_fc_is_compared_with_partial_fc():
    cfg = get_config(TINY, ["head_size=None", "sample_rate=0.5"])
    assert equal_overrides(cfg) is None  # its classes are drawn
    record = measure("head_size=None", "sample_rate=0.5", form="reference")
    assert record["first_losses"][0] > 0


def _on_two_ranks(rank, world_size):
    ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
    options = {"ranks": ranks, "steps": 1, "warm_steps": 1}
    return [train_case.measure(TINY, EQUAL, form=form, **options, part_steps=1) for form in ("ours", "reference")]


@pytest.mark.distributed
def test_two_ranks_show_the_all_reduce_and_equal_losses():
    for ours, reference in run_ranks(_on_two_ranks, 2):
        assert ours["first_losses"] == pytest.approx(reference["first_losses"], rel=1e-3)
        assert ours["first_losses"][0] == pytest.approx(reference["first_losses"][0], rel=1e-6)
        for record in (ours, reference):
            assert record["ranks"] == 2
            assert record["imgs_per_s"] == pytest.approx(16e3 / record["step_ms"])
            assert record["parts_ms"]["all_reduce"] > 0
            assert record["all_reduce_span_ms"] > 0


def test_what_is_left_out_is_left_out_and_nothing_else(tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(train, "prepare_device", prepared.append)
    before = training.run.make_network, training.run.to_network_input, train.prepare_device, PReLU.forward
    losses = {}
    for without in ((), ("layout",), ("allocator",), ("prelu",)):
        with left_out(without):
            rig = Ours(open_config(TINY, [], tmp_path / "run"), ALONE)
            seen = []
            rig.run.backbone.register_forward_pre_hook(lambda _, images, seen=seen: seen.append(images[0]))
            losses[without] = [float(rig.step()) for _ in range(2)]
            uses_torchs = PReLU.forward is nn.PReLU.forward
        weight = rig.run.backbone.layer2[0].conv1.weight
        assert weight.is_contiguous() == seen[0].is_contiguous() == (without == ("layout",))
        assert prepared == ([] if without == ("allocator",) else [ALONE.device])
        assert uses_torchs == (without == ("prelu",))
        rig.close()
        prepared.clear()
    assert losses[()] == losses[("allocator",)] == losses[("prelu",)]
    assert losses[()] == pytest.approx(losses[("layout",)], rel=1e-4)
    assert (
        training.run.make_network,
        training.run.to_network_input,
        train.prepare_device,
        PReLU.forward,
    ) == before


def test_what_is_for_cpus_is_not_left_out_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = bench_train.parse(["--quick", "--leave-out", "prelu", "--network", "rtiny"])
    with pytest.raises(ValueError, match="--leave-out leaves out what is for CPUs: set device=cpu"):
        bench_train.cases_of(args)
    args.overrides = ["device=cpu"]
    assert [case.without for case in bench_train.cases_of(args)] == [(), (), ("prelu",), ()]


def test_leaving_out_gives_a_row_for_each(in_this_process, capsys):
    line = f"--config {TINY} --no-reference --leave-out prelu layout --steps 1 --warm-steps 1 --rounds 1"
    records = bench_train.main([*line.split(), "batch_size=4"])
    expected = [("ours", []), ("ours, no prelu", ["prelu"]), ("ours, no layout", ["layout"])]
    assert [(r["arm"], r["without"]) for r in records] == expected
    assert re.search(r"\| +ours, no prelu \|", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        bench_train.parse(["--checkpointing", "--leave-out", "prelu"])
    assert "one at a time" in capsys.readouterr().err


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure without starting processes; what was asked for."""
    asked = []

    def run(script, text, ranks, threads):
        asked.append((json.loads(text), ranks, threads))
        return train_case.measure(**json.loads(text), ranks=ALONE)

    monkeypatch.setattr(bench_train, "run_script", run)
    return asked


def test_writes_records_tables_and_a_trace(in_this_process, tmp_path, capsys):
    out, trace = tmp_path / "raw" / "train.jsonl", tmp_path / "trace.json"
    line = f"--config {TINY} --steps 1 --warm-steps 1 --part-steps 1 --rounds 2 --out {out} --profile {trace}"
    bench_train.main([*line.split(), "batch_size=4"])
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["arm"], r["form"], r["rounds"]) for r in records] == [
        ("reference", "reference", 2),
        ("ours", "ours", 2),
        ("equal", "ours", 1),
    ]
    assert {r["batch_size"] for r in records} == {4}
    assert [asked["form"] for asked, *_ in in_this_process] == ["reference", "ours", "ours", "reference", "ours"]
    assert [asked["trace"] is not None for asked, *_ in in_this_process] == [False, True, False, False, False]
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"step", "forward", "classifier", "classifier_backward", "optimizer"} <= names
    printed = capsys.readouterr().out
    ratio = f"{records[0]['step_ms'] / records[1]['step_ms']:.2f}"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    (row,) = (row for row in rows if row[:2] == ["rtiny", "ours"])
    assert row[7] == ratio
    assert "full softmax in float32: first losses of ours and the reference's form: " in printed
    assert "rtiny: ms of a step by parts" in printed
    capsys.readouterr()
    assert bench_train.main(["--read", str(out), str(out)]) == records * 2  # shown twice, without a clash of names


def test_a_case_that_failed_is_told_at_the_end(monkeypatch, tmp_path, record, capsys):
    def run(script, text, ranks, threads):
        if json.loads(text)["form"] == "reference":
            raise RuntimeError("exit codes [1]")
        return dict(record)

    monkeypatch.setattr(bench_train, "run_script", run)
    out = tmp_path / "train.jsonl"
    with pytest.raises(SystemExit, match=r"bench_train.py: 1 of 3 failed: .*tiny.py, reference, 1 x 1 threads$"):
        bench_train.main(["--config", TINY, "--threads", "1", "--rounds", "1", "--out", str(out)])
    assert len(out.read_text().splitlines()) == 2
    assert "rtiny: ms of a step by parts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--read {}/none.jsonl", r"--read \S+none.jsonl cannot be read \(No such file.*\): give files that --out"),
        ("--read {}", r"cannot be read \(Is a directory\)"),
        ("--read {}/empty.jsonl", "no record there: give files that --out has written"),
        ("--read {}/broken.jsonl", r"broken.jsonl, line 2: expected a record, a JSON object, got '\{{\"arm\": 1'"),
        ("--read {}/other.jsonl", "other.jsonl, line 1: expected a record of this benchmark, got one without 'arm'"),
        ("--profile {}", r"--profile \S+ cannot be written \(Is a directory\): give another file"),
        ("--profile {}/empty.jsonl/trace.json", r"--profile \S+ cannot be written \(.*\): give another file"),
        ("--out {}", r"--out \S+ cannot be written \(Is a directory\)"),
    ],
)
def test_a_file_that_is_of_no_use_is_one_line_before_anything_is_measured(in_this_process, tmp_path, line, said):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text('{"x": 1}\n')
    keys = json.dumps(dict.fromkeys(bench_train.SHOWN))
    (tmp_path / "broken.jsonl").write_text(keys + '\n{"arm": 1\n')
    with pytest.raises(SystemExit, match=f"^bench_train.py: .*{said.format()}"):
        bench_train.main(["--quick", *line.format(tmp_path).split()])
    assert in_this_process == []


@pytest.mark.parametrize("budget", ["-1", "nan", "inf", "soon"])
def test_a_budget_is_a_number_of_seconds(budget, capsys):
    with pytest.raises(SystemExit):
        bench_train.parse([f"--budget-s={budget}"])
    assert f"argument --budget-s: expected seconds, a number of at least 0, got {budget}" in capsys.readouterr().err


def test_a_process_of_its_own_prints_its_record_last_or_one_line_of_error(monkeypatch, capsys):
    case = {"config": TINY, "overrides": ["batch_size=4"], "steps": 1, "warm_steps": 1, "part_steps": 0}
    monkeypatch.setattr("sys.argv", ["train_case.py", json.dumps(case)])
    train_case.main()
    (line,) = capsys.readouterr().out.splitlines()  # no line of the run's own log
    assert json.loads(line)["batch_size"] == 4
    monkeypatch.setattr("sys.argv", ["train_case.py", json.dumps(case | {"overrides": ["num_image=3"]})])
    with pytest.raises(SystemExit, match=r"^bench_train.py: an epoch of 3 images has no global batch"):
        train_case.main()
    assert not log.filters


def test_checkpointing_has_a_table_of_its_own(in_this_process, capsys):
    line = f"--config {TINY} --checkpointing --steps 1 --warm-steps 1 --rounds 1 --threads 1"
    records = bench_train.main(line.split())
    assert [(r["arm"], r["gradient_checkpointing"]) for r in records] == [("kept", False), ("checkpointed", True)]
    assert records[0]["first_losses"] == records[1]["first_losses"]
    printed = capsys.readouterr().out
    assert "peak MiB with (plan)" in printed
    assert f"{records[1]['peak_mib']:,.0f} ({records[1]['plan_mib']:,.0f})" in printed


def test_checkpointing_is_compared_in_each_precision(in_this_process, capsys):
    line = f"--config {TINY} --checkpointing --precision float32 bf16 --steps 1 --warm-steps 1 --rounds 1 --threads 1"
    records = bench_train.main([*line.split(), "batch_size=4"])
    pairs = [(precision, checkpointed) for precision in ("float32", "bf16") for checkpointed in (False, True)]
    assert [(r["precision"], r["gradient_checkpointing"]) for r in records] == pairs
    rows = [line.split()[1:4:2] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[-2:] == [["rtiny", "float32"], ["rtiny", "bf16"]]


@pytest.mark.parametrize("users", ["fp16=True", "bf16=True", "precision=bf16", "fp16=False", "precision=float32"])
def test_the_users_precision_changes_ours_alone(users):
    cases = bench_train.cases_of(bench_train.parse(["--config", TINY, "lr=0.001", users]))
    ours, equal = (get_config(TINY, case.overrides) for case in cases[1:])
    assert ours.precision == get_config(TINY, [users]).precision
    assert (equal.precision, equal.lr) == ("float32", 0.001)
    (case,) = bench_train.cases_of(bench_train.parse(["--config", TINY, users, "--precision", "fp16", "--no-ref"]))
    assert get_config(TINY, case.overrides).precision == "fp16"


def test_the_reference_is_float32_whatever_the_user_sets():
    record = measure("precision=bf16", form="reference")
    assert (record["overrides"], record["precision"]) == (["precision=float32"], "float32")


def test_networks_ranks_and_precisions_are_crossed():
    line = "--quick --network rtiny mbf --ranks 1 2 --threads 1 --precision float32 bf16"
    cases = bench_train.cases_of(bench_train.parse(line.split()))
    assert [str(case) for case in cases[:4]] == [
        f"rtiny, {arm}, 1 x 1 threads" for arm in ("reference", "ours float32", "ours bf16", "equal")
    ]
    assert len(cases) == 2 * (4 + 3)
    by_name = {str(case): get_config(case.config, case.overrides) for case in cases}
    assert by_name["mbf, ours bf16, 2 x 1 threads"].amp_dtype() == torch.bfloat16
    assert by_name["mbf, equal, 1 x 1 threads"].head_layout() == (1, 1.0, None)


def test_a_mistake_is_one_line_before_anything_is_measured(in_this_process):
    with pytest.raises(SystemExit, match=r"bench_train.py: unknown setting 'batchsize'; did you mean 'batch_size'"):
        bench_train.main(["--config", TINY, "batchsize=4"])
    with pytest.raises(SystemExit, match=r"bench_train.py: the reference's form needs loss = .* got 'adaface'"):
        bench_train.main(["--config", TINY, "loss=adaface"])
    with pytest.raises(SystemExit, match=r"bench_train.py: unknown network 'r19', did you mean 'r1"):
        bench_train.main(["--network", "rtiny", "r19"])
    assert in_this_process == []
    with pytest.raises(ValueError, match="steps and warm_steps must be at least 1, got 1 and 0"):
        measure(warm_steps=0)
