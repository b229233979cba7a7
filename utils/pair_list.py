"""Lists of pairs of images: two paths and a flag, or LFW's names and numbers; all lines show which form it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils.list_columns import whole_number
from utils.list_images import SAMPLE, ListedImages, is_there
from utils.list_text import SEPARATORS, Line, ListText, is_image, separated, shown
from utils.paths import ListedPaths

FORMS = (
    "read are: 'p1/a.jpg p1/b.jpg 1' or with tab, comma or ; (1 or 0, true or false, same or different, -1 for two "
    "persons), a heading such as 'path1,path2,issame' for columns in any order, and LFW's 'Ann 1 4' or 'Ann 1 Bob 2' "
    "(image 1 is Ann/Ann_0001.jpg) with or without a first line such as '10 300', and CALFW's two lines a pair, "
    "'a.jpg 1' and 'b.jpg 1', where 0 is for two persons"
)
ENDINGS = (".csv", ".txt", ".tsv", ".lst", ".list")
_FLAGS = {
    **dict.fromkeys(("1", "true", "same", "yes", "genuine", "match", "positive", "1.0", "+1"), True),
    **dict.fromkeys(
        ("0", "false", "different", "diff", "no", "impostor", "mismatch", "negative", "0.0", "-1"), False
    ),
}
_FIRST = frozenset((
    "path1", "p1", "image1", "img1", "file1", "filename1", "path_1", "image_1", "img_1", "file_1", "imagea", "first",
))  # fmt: skip
_SECOND = frozenset((
    "path2", "p2", "image2", "img2", "file2", "filename2", "path_2", "image_2", "img_2", "file_2", "imageb", "second",
))  # fmt: skip
_FLAG = frozenset((
    "issame", "same", "is_same", "label", "flag", "target", "match", "same_person", "genuine", "positive", "y",
))  # fmt: skip
# Headings of a flag that is 1 for two persons.
_INVERTED = frozenset((
    "is_different", "isdifferent", "different", "different_person", "diff", "distance", "impostor", "imposter",
    "is_impostor", "mismatch", "negative",
))  # fmt: skip
_FEW = 0.1  # a smaller share of pairs of one kind shows that the numbers are people or folds
_PLAIN = frozenset(("1", "0", "1.0", "0.0", "+1", "-1", "true", "false", "yes", "no"))  # flags without a meaning


class Pair(NamedTuple):
    """Two entries of a list, and whether they show one person."""

    line: int
    first: str
    second: str
    same: bool


@dataclass(frozen=True)
class PairList:
    """The n pairs of a list, and its form in words."""

    text: ListText
    pairs: list[Pair]
    form: str
    is_lfw: bool = False
    # Further columns of n cells each, by their headings without blanks in small letters; of two alike the first.
    further: dict[str, list[str]] = field(default_factory=dict)
    other: PairList | None = None  # the same lines in another form, if they have it too: '1 2 1' may be three things


class PairImages(NamedTuple):
    """The files of a list's pairs."""

    listed: PairList  # in the encoding by which the files were found
    paths: list[tuple[Path, Path]]
    notes: list[str]  # what was done to the list's paths


class _WrongLineError(ValueError):
    """Why a list is not of one form."""

    def __init__(self, text: str, fits: int) -> None:
        super().__init__(text)
        self.fits = fits  # lines before the first that does not fit


def read_pair_list(path: Path, encoding: str = "") -> PairList:
    """Read the pairs of a list, in the form that fits all of its lines.

    Args:
        path: the file.
        encoding: of bytes that are no UTF-8, where it is known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is no pair, or no form fits all lines; names the line and the forms.
    """
    text = ListText(path)
    text.encoding = encoding
    lines = list(text.lines())
    head = lines[0].text.split() if lines else []
    width = len(head) if _named(head) else 0
    problems: list[_WrongLineError] = []
    for separator in SEPARATORS:
        rows = [(line, _cells(line.text, separator, width)) for line in lines]
        for read in (_read_lfw, _read_paths, _read_two_lines):
            try:
                found = read(text, rows, SEPARATORS[separator])
            except _WrongLineError as error:
                problems.append(error)
                continue
            if not found.pairs:
                raise ValueError(f"{path}: no pairs in it; {FORMS}")
            if found.is_lfw and all(len(row) == 3 and row[2] in _PLAIN for _, row in rows):
                found = replace(found, other=_read_paths(text, rows, SEPARATORS[separator]))
            more = [text.kind] * bool(text.kind) + [f"{text.comments} comments"] * bool(text.comments)
            return replace(found, form=", ".join([found.form, *more]))
    raise max(problems, key=lambda problem: problem.fits)


def images_of(listed: PairList, root: Path, way_out: str, allow_outside: bool = False) -> PairImages:
    """Find the files of each pair.

    Args:
        listed: of :func:`read_pair_list`.
        root: where relative paths, or LFW's names, start.
        way_out: see ``ListedPaths``.
        allow_outside: take what leads out of ``root``.

    Raises:
        FileNotFoundError: images are missing; counts them, and names the first and its line.
        ValueError: an entry leads out of ``root``.
    """
    listed = _there(listed, root)
    sample = _sample(listed)
    group = root / listed.text.path.stem.split("_")[0]  # RFW: African_pairs.txt, African/<name>/<name>_0001.jpg
    if listed.is_lfw and group.is_dir() and not (root / sample[0]).parent.is_dir():
        root = group
    images = ListedImages(ListedPaths(listed.text.path, root, way_out, allow_outside), listed.text, sample)
    if listed.text.encoding:  # only now it is known
        listed = _there(read_pair_list(listed.text.path, listed.text.encoding), root)
    known: dict[str, Path] = {}
    missing: list[tuple[int, str, Path]] = []
    for pair in listed.pairs:
        for entry in (pair.first, pair.second):
            if entry not in known:
                known[entry] = images.path(entry, pair.line)
                if not known[entry].is_file():
                    missing.append((pair.line, entry, known[entry]))
    if missing:
        line, _, first = missing[0]
        others = ", ".join(entry for _, entry, _ in missing[:3])
        raise FileNotFoundError(
            f"{listed.text.path}, line {line}: no image {first}; {len(missing):,} of {len(known):,} images are "
            f"missing: {others}{', ...' if len(missing) > 3 else ''}; paths start at {root}, "
            "--root gives another folder"
        )
    return PairImages(listed, [(known[pair.first], known[pair.second]) for pair in listed.pairs], images.notes)


def _sample(listed: PairList) -> list[str]:
    """Entries from all over the list."""
    pairs = listed.pairs[:: -(-len(listed.pairs) // SAMPLE)]
    return [entry for pair in pairs for entry in (pair.first, pair.second)]


def _there(listed: PairList, root: Path) -> PairList:
    """Of two forms that a list has, the one whose files are there."""
    other = listed.other
    if other is None or any(map(partial(is_there, root), _sample(listed))):
        return listed
    return other if any(map(partial(is_there, root), _sample(other))) else listed


def _wrong(text: ListText, line: Line, fits: int) -> _WrongLineError:
    others = " like the lines before" if fits else ""
    return _WrongLineError(
        f"{text.path}, line {line.number}: expected two paths and a flag, or a name and numbers{others}, found "
        f"{shown(line.text)}; correct or remove it; {FORMS}",
        fits,
    )


def _cells(text: str, separator: str, width: int) -> list[str]:
    """The cells of a line; divided at blanks, those around its two images, unless all are ``width``."""
    if separator != " ":
        return separated(separator)(text)
    words = text.split()
    images = [i for i, word in enumerate(words) if is_image(word)]
    if len(words) <= 3 or len(words) == width or len(images) != 2:
        return words
    start = int(images[1] == len(words) - 1 and words[0].lower() in _FLAGS)  # the flag comes first
    middle, end = images[0] + 1, images[1] + 1
    return [*words[:start], " ".join(words[start:middle]), " ".join(words[middle:end]), *words[end:]]


def _read_paths(text: ListText, rows: Sequence[tuple[Line, list[str]]], separator: str) -> PairList:
    """Two paths and a flag on each line."""
    heading, names = "", list[str]()
    head = rows[0][1] if rows else []
    if rows and (columns := _named(rows[0][1])):
        heading, names, rows = rows[0][0].text, _headings(rows[0][1]), rows[1:]
    else:
        try:
            columns = _columns(rows)
        except ValueError as error:
            raise ValueError(f"{text.path}: {error}") from None
        if len(rows) > 1 and len(rows[0][1]) == 3 and _is_unlike(rows, columns):
            heading, rows = rows[0][0].text, rows[1:]
    first, second, flag = columns
    inverted = bool(heading) and _headings(head)[flag] in _INVERTED
    pairs: list[Pair] = []
    for line, row in rows:
        same = _FLAGS.get(row[flag].lower()) if len(row) > max(columns) else None
        if inverted and same is not None and row[flag].lower() in _PLAIN:
            same = not same
        if same is None or not row[first] or not row[second] or len(row) < 3 or (not heading and len(row) > 4):
            raise _wrong(text, line, len(pairs))
        pairs.append(Pair(line.number, row[first], row[second], same))
    named = f", heading line {shown(heading)}" if heading else ""
    form = (
        f"list: {len(pairs):,} pairs, {separator}{named}, paths in columns {first + 1} and {second + 1}, same or not "
        f"in column {flag + 1}{', where 1 is for two persons as its heading says' * inverted}"
    )
    further = {name: _column(rows, i) for i, name in reversed([*enumerate(names)]) if name and i not in columns}
    return PairList(text, pairs, form, further=further)


def _column(rows: Sequence[tuple[Line, list[str]]], place: int) -> list[str]:
    """The cells of a column, "" where a line ends before it; equal ones are one object."""
    seen: dict[str, str] = {}
    cells = (row[place] if place < len(row) else "" for _, row in rows)
    return [seen.setdefault(cell, cell) for cell in cells]


def _headings(row: Sequence[str]) -> list[str]:
    return [cell.lower().replace(" ", "") for cell in row]


def _named(row: Sequence[str]) -> tuple[int, int, int] | None:
    """The columns that a heading names, if it does."""
    names = _headings(row)
    flag = _FLAG if any(name in _FLAG for name in names) else _INVERTED
    found = [[i for i, name in enumerate(names) if name in known] for known in (_FIRST, _SECOND, flag)]
    if any(len(places) != 1 for places in found):
        return None
    return found[0][0], found[1][0], found[2][0]


def _columns(rows: Sequence[tuple[Line, list[str]]]) -> tuple[int, int, int]:
    """Columns of the paths and the flag, by the lines below the first; in the usual order if none shows."""
    below = [row for _, row in rows[1:] or rows]
    if not below or any(len(row) != len(below[0]) for row in below):
        return 0, 1, 2
    n = len(below[0])
    images = [i for i in range(n) if all(is_image(row[i]) for row in below)]
    flags = [i for i in range(n) if i not in images and all(row[i].lower() in _FLAGS for row in below)]
    if len(flags) == 1 and n == 3:
        images = [i for i in range(n) if i != flags[0]]
    flags = [i for i in flags if len({row[i] for row in below}) > 1] or flags
    if len(images) != 2 or not flags:
        return 0, 1, 2
    if len(flags) > 1:
        raise ValueError(
            f"columns {flags[0] + 1} and {flags[1] + 1} could both say whether two images show one person: put a "
            "heading such as path1,path2,same,fold above them, with the same separator"
        )
    return images[0], images[1], flags[0]


def _is_unlike(rows: Sequence[tuple[Line, list[str]]], columns: tuple[int, int, int]) -> bool:
    """Whether a first line names the columns; one of flags may well be called "same" or "different"."""
    first, second, flag = (rows[0][1][i].lower() for i in columns)
    if flag not in _FLAGS:
        return not is_image(first)
    below = (row[columns[2]].lower() if len(row) > columns[2] else "" for _, row in rows[1:])
    return not any(map(is_image, (first, second))) and flag not in _PLAIN and all(cell in _PLAIN for cell in below)


def _read_two_lines(text: ListText, rows: Sequence[tuple[Line, list[str]]], separator: str) -> PairList:
    """CALFW's and CPLFW's: the images of a pair below each other, each with 0 for two persons or another number."""
    pairs: list[Pair] = []
    if separator == SEPARATORS[" "]:  # a path may hold blanks
        rows = [(line, [" ".join(row[:-1]), row[-1]]) for line, row in rows]
    for (line, row), (other, below) in zip(rows[::2], rows[1::2], strict=False):
        for at, cells in ((line, row), (other, below)):
            if len(cells) != 2 or not is_image(cells[0]) or not cells[1].isdecimal() or cells[1] != row[-1]:
                raise _wrong(text, at, len(pairs))
        pairs.append(Pair(line.number, row[0], below[0], int(row[1]) != 0))
    if len(rows) % 2:
        raise _wrong(text, rows[-1][0], len(pairs))
    different = sum(not pair.same for pair in pairs)
    if min(different, len(pairs) - different) < _FEW * len(pairs):
        raise _WrongLineError(
            f"{text.path}: a path and a number on each line: as two lines a pair, {different:,} of {len(pairs):,} "
            f"have 0, for two persons; if the numbers are folds or people, it is no list of pairs; {FORMS}",
            len(rows),
        )
    return PairList(text, pairs, f"list: {len(pairs):,} pairs, two lines a pair, {separator}, 0 is for two persons")


def _read_lfw(text: ListText, rows: Sequence[tuple[Line, list[str]]], separator: str) -> PairList:
    """``name i j``, or ``name1 i name2 j`` on each line; a first line of numbers announces how many."""
    announced: int | None = None
    heading = ""
    if rows and len(rows[0][1]) <= 2 and all(cell.isdecimal() and len(cell) < 10 for cell in rows[0][1]):
        announced, heading = 1, f", heading line {shown(rows[0][0].text)}"
        for cell in rows[0][1]:
            announced *= int(cell)
        rows = rows[1:]
    elif rows and [cell.lower() for cell in rows[0][1][:2]] == ["name", "imagenum1"]:
        heading, rows = f", heading line {shown(rows[0][0].text)}", rows[1:]
    pairs: list[Pair] = []
    for line, row in rows:
        full = [row[0], row[1], row[0], row[2]] if len(row) == 3 else row
        numbers = [whole_number(cell) for cell in full[1::2]]
        if len(full) != 4 or any(number is None or number < 0 for number in numbers) or "" in full:
            raise _wrong(text, line, len(pairs))
        first, second = (f"{name}/{name}_{number:04d}" for name, number in zip(full[::2], numbers, strict=True))
        pairs.append(Pair(line.number, first, second, full[0] == full[2]))
    if announced is not None and pairs and len(pairs) not in (announced, 2 * announced):
        raise ValueError(
            f"{text.path}: its first line announces {2 * announced} pairs, but {len(pairs)} follow: the file is cut "
            "short, or the first line belongs to another one"
        )
    return PairList(text, pairs, f"list: {len(pairs):,} pairs, LFW's names and numbers, {separator}{heading}", True)
