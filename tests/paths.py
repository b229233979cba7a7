"""Where the project and the optional data are."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def data_path() -> Path | None:
    """The folder with real faces: MHS_DATA, or shared/data beside the project."""
    folder = Path(os.environ.get("MHS_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None
