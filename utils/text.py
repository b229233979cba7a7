"""Text that came from files: what may be shown of it, and reading JSON."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any


def plain(text: str, keep: str = "") -> str:
    r"""Text as one line that a terminal shows and does not obey: ``\x1b`` instead of an escape character.

    Other control characters, characters that turn the direction of writing, line ends and the stand-ins for bytes
    that are no UTF-8 (``\udcd5`` for the byte d5, as in our JSON files) are written in the same way.

    Args:
        text: any text.
        keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep or unicodedata.category(c) == "Zs" else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def clock(seconds: float) -> str:
    """A span of time as hours, minutes and seconds: 0:12:41, 172:00:05."""
    whole = round(max(seconds, 0.0))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def complain(program: str, error: BaseException) -> None:
    """Print on stderr, in one line, why a command ends."""
    print(f"{program}: error: {plain(str(error))}", file=sys.stderr)


@contextlib.contextmanager
def any_name_can_be_printed() -> Iterator[None]:
    """Names of files that are no text go to the standard output as the bytes that they are; also a decorator."""
    out = sys.stdout
    if not isinstance(out, io.TextIOWrapper):
        yield
        return
    before = out.errors
    out.reconfigure(errors="surrogateescape")
    try:
        yield
    finally:
        out.reconfigure(errors=before)


def parse_json(text: str) -> Any:
    """``json.loads``, for texts that others may have written.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
