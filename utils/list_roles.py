"""Which columns of a list of images hold the path and the label."""

from __future__ import annotations

from collections.abc import Sequence

from utils.list_columns import Column
from utils.list_text import ListText

FORMS = (
    "read are: 'p1/a.jpg 0' or 'p1/a.jpg<TAB>Ann' (either may come first); '7<TAB>0<TAB>p1/a.jpg' (im2rec); "
    "'1<TAB>p1/a.jpg<TAB>0' (insightface); 'p1/a.jpg,0' or with ; (csv); further columns, and a heading such as "
    "'path,label', are allowed"
)
SWITCH = "say which is which with --columns, one word for each column: path, label, name (a label that is text) or -"
PATH_NAMES = frozenset((
    "path", "paths", "image", "images", "img", "file", "filename", "file_name", "filepath", "file_path", "imagepath",
    "image_path", "img_path", "image_file", "image_name", "img_name", "image_id",
))  # fmt: skip
# What says who a person is.
PEOPLE_NAMES = frozenset((
    "label", "labels", "identity", "identity_id", "identity_name", "label_id", "person", "person_id", "person_name",
    "pid", "subject", "subject_id", "celebrity", "celebrity_name", "celebrity_id",
))  # fmt: skip
# What may say so, or number the rows, or be another property.
LABEL_NAMES = PEOPLE_NAMES | {"id", "class", "class_id", "target", "name", "folder", "y"}
# What tells something else.
_OTHER_NAMES = frozenset((
    "split", "set", "subset", "phase", "fold", "partition", "mode", "gender", "sex", "race", "ethnicity", "age",
    "age_group", "emotion", "expression", "pose", "source", "dataset", "country", "nationality", "date", "time",
    "url", "quality", "camera", "md5", "sha1", "sha256", "hash", "x", "w", "h", "width", "height", "bbox", "left",
    "top", "right", "bottom", "x1", "y1", "x2", "y2", "xmin", "ymin", "xmax", "ymax", "score", "index", "idx",
))  # fmt: skip


class FormError(ValueError):
    """Why one way to divide lines into columns does not fit a list; ``fits`` of them do."""

    def __init__(self, text: str, fits: int = 0) -> None:
        super().__init__(text)
        self.fits = fits


class AmbiguousError(FormError):
    """One way divides all lines alike, but leaves open which column is the label."""


def find_roles(
    text: ListText, columns: Sequence[Column], names: Sequence[str], separator: str
) -> tuple[int, int, int | None]:
    """Find the column of the path, that of the label, and that which says whether a face is aligned, if one does.

    Args:
        text: the list, for messages.
        columns: what they hold.
        names: their headings in small letters, or none.
        separator: what divides them.

    Raises:
        FormError: no column, or several, could be the path.
        AmbiguousError: several could be the label.
    """
    n = len(columns)
    names = ["x" if name == "y" and "x" in names else name for name in names[:n]] + [""] * (n - len(names))
    named = [i for i, name in enumerate(names) if name in PATH_NAMES]
    path = named[0] if len(named) == 1 else _path_column(text, columns)
    others = [i for i in range(n) if i != path]
    if len(others) == 1:
        return path, others[0], None
    likely = _by_name(columns, names, [i for i in others if i not in named])
    if not likely:
        if path == 1 and columns[0].is_whole and _are_flags(columns[0], separator):
            return path, 2, 0
        likely = _by_content(columns, names, path)
    if len(likely) == 1:
        return path, likely[0], None
    raise AmbiguousError(_ambiguous(text, columns, path, likely, separator), columns[0].n)


def _by_name(columns: Sequence[Column], names: Sequence[str], others: Sequence[int]) -> list[int]:
    """The columns that could be the label by their headings; none if no heading is known."""
    known = [i for i in others if names[i] in LABEL_NAMES]
    if not known:
        return []
    varied = [i for i in known if not columns[i].is_constant] or known
    people = [i for i in varied if names[i] in PEOPLE_NAMES]
    best = [i for i in people if names[i] == "label"] or people or varied
    best = [i for i in best if not columns[i].is_distinct] or best
    if len(best) > 1:
        return best
    label = best[0]
    is_sure, is_distinct = names[label] in PEOPLE_NAMES, columns[label].is_distinct
    if is_sure and not is_distinct:
        return best
    unknown = [i for i in others if i not in known and names[i] not in _OTHER_NAMES]
    rivals = [i for i in unknown if _could_be_label(columns[i], is_text=is_sure or not is_distinct)]
    return sorted([label, *rivals])


def _could_be_label(column: Column, *, is_text: bool) -> bool:
    if column.is_constant or column.images == column.n or column.n_fractions == column.n_odd > 0:
        return False
    return not column.is_whole or not (is_text or column.is_distinct)


def _are_flags(column: Column, separator: str) -> bool:
    """Whether this may be insightface's column of 1 and 0; in a csv 0 and 1 may be anything."""
    return set(column.whole) <= ({0, 1} if separator in "\t " else {1})


def _by_content(columns: Sequence[Column], names: Sequence[str], path: int) -> list[int]:
    """The columns that could be the label by what is in them."""
    n, first = len(columns), columns[0]
    is_numbered = first.is_distinct and (first.n > 1 or n == 3)
    if path == n - 1 and is_numbered and columns[1].is_whole and (n == 3 or not columns[1].is_constant):
        return [1]  # im2rec: index, label, further labels, path
    likely = [i for i in range(n) if i != path]
    likely = likely[1:] if likely[0] == 0 and first.is_index else likely
    likely = [i for i in likely if names[i] not in _OTHER_NAMES] or likely
    likely = [i for i in likely if not columns[i].n_fractions] or likely
    varied = [i for i in likely if not columns[i].is_constant]
    if varied and all(columns[i].is_index for i in varied):
        return likely  # one image of each person, or numbered rows of one person
    return [i for i in varied if not columns[i].is_index] or varied or likely


def _ambiguous(text: ListText, columns: Sequence[Column], path: int, likely: Sequence[int], separator: str) -> str:
    words = [i for i in likely if not columns[i].is_whole and not columns[i].n_fractions]
    if separator == " " and len(words) > 1:
        return (
            f"{text.path}: a path and several words, such as {columns[words[0]].first!r} and "
            f"{columns[words[1]].first!r}, divided by blanks: if they are one name, put a tab between path and name; "
            f"else {SWITCH}"
        )
    candidates = " and ".join(str(i + 1) for i in likely)
    several = "both" if len(likely) == 2 else "all"
    example = ",".join("path" if i == path else "label" if i == likely[-1] else "-" for i in range(len(columns)))
    return f"{text.path}: columns {candidates} could {several} be the label: {SWITCH}, such as --columns {example}"


def _path_column(text: ListText, columns: Sequence[Column]) -> int:
    for count in ([c.images for c in columns], [c.slashes for c in columns]):
        whole = [i for i, c in enumerate(columns) if count[i] == c.n]
        if len(whole) == 1:
            return whole[0]
        if len(whole) > 1:
            raise FormError(
                f"{text.path}: {len(whole)} columns hold paths, expected one image a line: is it a list of pairs? "
                f"Those are read by tools.make_bin and eval.pairs; else {SWITCH}",
                columns[0].n,
            )
    mostly = max(columns, key=lambda c: c.images)
    numbers = [c.is_whole for c in columns]
    if len(columns) == 2 and sum(numbers) == 1:
        return numbers.index(False)
    if mostly.images > mostly.n / 2:
        return columns.index(mostly)
    raise FormError(
        f"{text.path}: which column is the path? None ends as images do or holds a /, as in {columns[0].first!r}: "
        f"{SWITCH}; {FORMS}",
        columns[0].n,
    )
