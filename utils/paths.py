"""Paths that a file names: they stay inside the folder that the user gave, or are refused."""

from __future__ import annotations

import os
from pathlib import Path

# ruff: noqa: PTH114, PTH115, PTH118 (this runs once for each of millions of paths, and pathlib takes longer)

_KEPT = 1 << 16  # folders that are remembered; lists and folders come in order, so that few are asked for again
_MAX_LINKS = 40  # in a row, as in Linux


class FolderBounds:
    """Tells whether paths lie inside a folder once links and ``..`` are followed.

    A folder is resolved once; a path in it then costs one ``lstat``, and one ``readlink`` if it is a link.

    Args:
        root: the folder; it may itself be a link, and need not exist.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = os.path.normcase(os.path.realpath(root))
        self._known: dict[str, bool] = {}  # by folder

    def holds(self, path: str) -> bool:
        """Whether ``path``, which may be missing, lies in the folder or is the folder itself."""
        for _ in range(_MAX_LINKS):
            folder, name = os.path.split(path)
            if name in ("", os.curdir, os.pardir):
                return self._holds_folder(path)
            if not self._holds_folder(folder):
                return False
            if not os.path.islink(path):
                return True
            path = os.path.join(folder, os.readlink(path))
        return False  # a circle of links

    def _holds_folder(self, folder: str) -> bool:
        if folder not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            real = os.path.normcase(os.path.realpath(folder))
            self._known[folder] = real == self._root or real.startswith(self._root.rstrip(os.sep) + os.sep)
        return self._known[folder]


class ListedPaths:
    """Joins the entries of a list to the folder that they start at, and refuses those that lead out of it.

    Absolute paths, ``..`` and links are taken as long as they end inside.

    Args:
        list_path: the list, named in messages.
        root: where relative entries start.
        way_out: what a user can do who trusts the list, for the end of a message.
        allow_outside: take every entry.
    """

    def __init__(self, list_path: str | Path, root: str | Path, way_out: str, allow_outside: bool = False) -> None:
        self.list_path, self.root, self.way_out, self.allow_outside = list_path, Path(root), way_out, allow_outside
        self._bounds = FolderBounds(root)

    def join(self, entry: str, line: int) -> Path:
        """The path of an entry; whether something is there is not looked at.

        Raises:
            ValueError: it leads out of the folder, or can be no path; names list, line, entry and folder.
        """
        if "\0" in entry:
            raise ValueError(f"{self.list_path}, line {line}: {_short(entry)} is no path: it holds a zero byte")
        path = os.path.join(self.root, entry)
        if not self.allow_outside and not self._bounds.holds(path):
            raise ValueError(
                f"{self.list_path}, line {line}: {_short(entry)} leads outside the folder {self.root}; {self.way_out}"
            )
        return Path(path)


def _short(entry: str) -> str:
    return repr(entry if len(entry) <= 200 else entry[:200] + "...")
