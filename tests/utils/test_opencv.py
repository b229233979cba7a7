"""Where no OpenCV is installed, whatever a user starts says how to get it."""

import subprocess
import sys

import pytest

from paths import ROOT


@pytest.mark.parametrize("module", ["train", "eval_ijbc", "inference", "tools.pack_rec"])
def test_a_missing_opencv_is_named(module):
    code = f"import sys; sys.modules['cv2'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ModuleNotFoundError: OpenCV 4.9 or newer is needed: pip install" in done.stderr
