"""Fixtures that every test may use, and the check that the tests which matter were run."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

import utils.opencv  # noqa: F401  (before any test imports cv2, which reads its limits then)
from model_files import save_random_model
from paths import data_path
from utils.log import log

# Marked core: what must hold on every torch that requirement.txt admits. A path from here, or the start of one.
_CORE = (
    "test_partial_fc_mhs.py",
    "heads/",
    "distributed/test_classifier.py",
    "data/records/test_reader.py",
    "losses/test_margins.py",
    "utils/test_config.py",
    "utils/test_decode.py",
    "test_dataset.py",
    "test_train.py::test_what_a_run_leaves",
    "training/test_resuming.py::test_resumed_run_equals_the_uninterrupted_one",
    "test_train.py::test_fp16_overflow_lowers_the_scale_and_goes_on",
    "training/test_training_ranks.py::test_two_ranks_and_one_give_the_same_curve[options1",
    "training/test_training_ranks.py::test_a_checkpoint_loads_on_any_number_of_ranks[2-4",
    "test_eval_ijbc.py::test_end_to_end",
    "test_eval_ijbc.py::test_both_protocols_and_the_report",
    "training/test_saving.py",
    "training/test_late_verdicts.py",
    "training/test_schedule.py",
    "backbones/test_prelu.py",
    "utils/test_manifest.py",
)
# The same examples in each run, however slow the machine; --hypothesis-profile=default looks for others.
hypothesis.settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")
_run_with: set[str] = set()  # markers of tests that were run or skipped
_passed_with: set[str] = set()  # markers of tests that passed


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The small products of tests lose more to a second thread than they gain by it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _log_for_caplog() -> Iterator[None]:
    """Let caplog have the project's log, which a run of an earlier test has kept to itself."""
    before = log.propagate
    log.propagate = True
    yield
    log.propagate = before


@pytest.fixture
def shared_data() -> Path:
    folder = data_path()
    if folder is None:
        pytest.skip("no real faces here: set MHS_DATA to the folder that holds lfw_train")
    return folder


@pytest.fixture
def contracts() -> Path:
    return Path(__file__).parent / "contracts"


@pytest.fixture(scope="session")
def exported_network(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, float]]:
    """Name of a network to its random model.pt, its ONNX file, and the difference found; each is exported once."""
    import torch2onnx

    @functools.cache
    def export(name: str) -> tuple[Path, Path, float]:
        model = save_random_model(tmp_path_factory.mktemp(name), name)
        return model, *torch2onnx.convert(model, network=name)

    return export


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(_CORE):
            item.add_marker(pytest.mark.core)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _run_with.update(report.keywords)
    if report.when == "call" and report.passed:
        _passed_with.update(report.keywords)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With MHS_REQUIRE=marker,marker: a run with tests of such a marker, of which none passed, has failed."""
    if hasattr(session.config, "workerinput"):  # one of several processes: the first hears of all tests
        return
    required = [name for name in os.environ.get("MHS_REQUIRE", "").split(",") if name]
    known = {line.split(":")[0] for line in session.config.getini("markers")}
    missing = [name for name in required if name in _run_with - _passed_with or name not in known]
    if missing and exitstatus == pytest.ExitCode.OK:
        print(f"\nno test marked {', '.join(missing)} passed, and MHS_REQUIRE asks for them")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
