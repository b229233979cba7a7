"""Take a picture of an HTML file with Chromium: ``python -m tools.screenshot report.html report.png --width 1280``.

The environment variable CHROMIUM may name the program; otherwise its usual names are tried.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("screenshot")

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from utils.text import complain

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str | None:
    """Give the browser's path, None where there is none."""
    names = (os.environ.get("CHROMIUM", ""), *_NAMES)
    return next((found for name in names if name and (found := shutil.which(name))), None)


def run_chromium(page: Path, options: Sequence[str], timeout_s: float = 90) -> str:
    """Open a local page in headless Chromium with a profile of its own; nothing is left behind.

    Args:
        page: the HTML file.
        options: what to do with it, such as ``--dump-dom``.
        timeout_s: after that the browser is killed.

    Returns:
        what it printed.

    Raises:
        FileNotFoundError: no such page, or no browser.
        ValueError: the browser failed or took too long.
    """
    browser = find_chromium()
    if browser is None:
        raise FileNotFoundError(
            f"no Chromium found as {', '.join(_NAMES)}: install it, or name it in the environment variable CHROMIUM"
        )
    if not page.is_file():
        raise FileNotFoundError(f"no page {page}")
    with tempfile.TemporaryDirectory() as profile:
        # Its sandbox needs rights that containers and root lack; the page is a file of our own.
        fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
        command = [browser, *fixed, "--no-first-run", f"--user-data-dir={profile}", *options, page.resolve().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{browser} did not finish within {timeout_s:g} s on {page}") from None
    if done.returncode:
        raise ValueError(f"{browser} ended with status {done.returncode} on {page}: {done.stderr[-300:]}")
    return done.stdout


def screenshot(page: Path, out: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """Write a PNG of the top of a page.

    Args:
        page: the HTML file.
        out: the picture.
        width: of the window, in pixels.
        height: of the window and so of the picture, in pixels.
        dark: with the page's colours for dark surroundings.

    Raises:
        FileNotFoundError: no such page, or no browser.
        ValueError: the browser made no picture.
    """
    out = out.resolve()
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    run_chromium(page, [f"--window-size={width},{height}", scheme, f"--screenshot={out}"])
    if not out.is_file():
        raise ValueError(f"Chromium made no picture of {page}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="screenshot.py", description=__doc__)
    parser.add_argument("page", type=Path, help="HTML file")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--width", type=int, default=1280, help="pixels (default 1280)")
    parser.add_argument("--height", type=int, default=900, help="pixels (default 900)")
    parser.add_argument("--dark", action="store_true", help="use the page's dark colours")
    options = parser.parse_args(argv)
    try:
        screenshot(options.page, options.out, options.width, options.height, options.dark)
    except (OSError, ValueError) as error:
        complain("screenshot.py", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
