"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_data_path() -> Path | None:
    """The folder with real faces: MHS_SHARED/data, or shared/data beside the project."""
    folder = Path(os.environ.get("MHS_SHARED", ROOT.parent / "shared")) / "data"
    return folder if folder.is_dir() else None


@pytest.fixture
def shared_data() -> Path:
    folder = shared_data_path()
    if folder is None:
        pytest.skip("no real faces here: set MHS_SHARED to the folder that holds data/lfw_train")
    return folder


@pytest.fixture
def contracts() -> Path:
    return Path(__file__).parent / "contracts"
