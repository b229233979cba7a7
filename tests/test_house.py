"""The plan of the house holds: who may import whom, no circles, no names of the standard library, no long files."""

import ast
import re
import subprocess
import sys

import pytest

from paths import ROOT

DEPARTMENTS = ("backbones", "data", "embedder", "eval", "heads", "losses", "training", "utils")
CARRIERS = {"losses", "backbones", "utils"}
ALL = {*DEPARTMENTS, "dataset", "partial_fc_mhs"}
MAY_IMPORT = {
    "train": {"training", "dataset", "partial_fc_mhs", *CARRIERS},
    "eval_ijbc": {"eval", "embedder", "utils"},
    "inference": {"embedder", "utils"},
    "torch2onnx": {"embedder", "backbones", "utils"},
    "partial_fc_mhs": {"heads", "losses", "utils"},
    "dataset": {"data", "utils"},
    "training": ALL,
    "eval": {"embedder", *CARRIERS},
    "heads": CARRIERS,
    "data": CARRIERS,
    "embedder": CARRIERS,
    "losses": {"utils"},
    "backbones": {"utils"},
    "utils": set(),
}
SOURCES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if not any(part.startswith(".") or part in ("work_dirs", "docs") for part in path.relative_to(ROOT).parts)
]
CODE = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "tests"]


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in CODE}


def imports_of(path):
    """The project's modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name:
                found.add(name)
    return found


GRAPH = {module: imports_of(path) for module, path in MODULES.items()}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part):
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if module.split(".")[0] == part and other.split(".")[0] not in MAY_IMPORT[part] | {part}
    ]
    assert not wrong


def test_there_are_no_circles():
    done, above = set(), []

    def visit(module):
        if module in above:
            raise AssertionError(" -> ".join([*above[above.index(module) :], module]))
        if module in done:
            return
        above.append(module)
        for other in GRAPH[module] - {module}:
            visit(other)
        above.pop()
        done.add(module)

    for module in GRAPH:
        visit(module)


def test_no_module_bears_a_standard_librarys_name():
    names = {path.stem for path in CODE} - {"__init__", "__main__"}
    assert not names & set(sys.stdlib_module_names)


def test_no_file_is_longer_than_400_lines():
    long = {str(path.relative_to(ROOT)): n for path in SOURCES if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_the_entrance_hall_holds_what_a_user_starts():
    assert {path.stem for path in ROOT.glob("*.py")} == {
        "train",
        "eval_ijbc",
        "inference",
        "torch2onnx",
        "partial_fc_mhs",
        "dataset",
    }


def test_only_one_module_talks_to_torch_distributed():
    users = {
        module
        for module, path in MODULES.items()
        if re.search(r"^import torch\.distributed as dist|^from torch import distributed", path.read_text(), re.M)
    }
    assert users == {"utils.distributed"}


def test_importing_has_no_effect():
    """No process group, no device, no arguments, no output; what needs an optional package is left out."""
    optional = {"data.dali", "benchmarks.mxnet_reader", "embedder.onnx", "torch2onnx"}
    names = [m for m in MODULES if m not in optional and not m.endswith("__main__") and not m.startswith("configs")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "import torch\n"
        "assert not torch.distributed.is_initialized()\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-such-option"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_readmes_training_loop_runs():
    """The ten lines of the README, with a small backbone and a small loader."""
    import torch

    text = (ROOT / "README.md").read_text()
    block = text.split("## The classifier in your own training loop")[1].split("\n\nUnder torchrun")[0]
    code = "\n".join(line.removeprefix("    ") for line in block.splitlines()).replace("1_000_000", "1000")
    before = torch.nn.Linear(8, 512)
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 8, generator=g), torch.randint(0, 1000, (4,), generator=g))] * 5
    names = {"backbone": before, "loader": batches, "losses_seen": []}
    exec(code.replace("loss.backward()", "loss.backward(); losses_seen.append(float(loss.detach()))"), names)
    assert len(names["losses_seen"]) == 5
    assert names["losses_seen"][-1] < names["losses_seen"][0]
    assert int((names["classifier"].shard.visits > 0).sum()) == len({int(v) // 12 for v in batches[0][1]})


def test_the_picture_shows_files_that_are_there():
    script = (ROOT / "docs" / "figures" / "draw_architecture.py").read_text()
    files = re.findall(r'Stop\("([^"]+)"', script)
    assert len(files) > 20
    assert not [file for file in files if not (ROOT / file).is_file()]


def test_documents_name_files_that_are_there():
    """Every path in backticks stands in the project, but those of other projects."""
    missing, others = [], {"onnx_ijbc.py", "verification.py"}
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]:
        for name in re.findall(r"`((?:[\w.-]+/)*[\w-]+\.py)(?::\w+)?`", document.read_text()):
            places = (ROOT / name, document.parent / name, ROOT / "tools" / name)
            if name not in others and not any(place.is_file() for place in places):
                missing.append(f"{document.name}: {name}")
    assert not missing


def test_documents_name_targets_that_make_knows():
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.M))
    missing = [
        f"{document.name}: make {name}"
        for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
        for names in re.findall(r"(?:`|^    )make ((?: ?[\w.-]+(?![\w.-]*=))+)", document.read_text(), re.M)
        for name in names.split()
        if name not in targets
    ]
    assert not missing


def test_the_changelog_names_modules_that_are_there():
    """In the table of imports that moved, the right side; ".layout" goes on from the name before it."""
    missing, rows = [], re.findall(r"^  \| `.*?\| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert len(rows) > 10
    for row in rows:
        package = ""
        for name in re.findall(r"`([\w.]+)`", row):
            name = package + name if name.startswith(".") else name
            package = name.rpartition(".")[0]
            if name != "to_network_input" and name not in MODULES and name not in DEPARTMENTS:
                missing.append(name)
    assert not missing


def test_no_wait_and_no_rate_follows_a_clock_that_may_jump():
    """time.monotonic() and time.perf_counter() do not; time.time() and its kin do."""
    wrong = [str(path) for path in CODE if re.search(r"\btime\.time(_ns)?\(|\bfrom time import", path.read_text())]
    assert not wrong
