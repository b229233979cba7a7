import os

import pytest

from utils import paths
from utils.paths import FolderBounds, ListedPaths


@pytest.fixture
def tree(tmp_path):
    """``root`` with files and links in it, and ``beside`` it."""
    for folder in ("root/in/deep", "beside"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("root/a", "root/in/b", "beside/c", "secret"):
        (tmp_path / file).write_text(file)
    root = tmp_path / "root"
    links = {
        "to_a": "a",
        "in/up": "..",
        "in/to_a": "../a",
        "out": "../beside",
        "file_out": tmp_path / "secret",
        "over": "file_out",
        "round": "round",
        "nowhere": "missing",
        "slash": "/",
        "back": "../beside/back",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (tmp_path / "beside" / "back").symlink_to(root / "a")
    (tmp_path / "linked").symlink_to(root)
    return tmp_path


INSIDE = [
    *("a", "./a", "in/b", "in/../a", "in//b", "in/deep/../../a", "missing", "no/such/folder", "to_a", "in/up/a"),
    *("in/to_a", "nowhere", ".", "", "in/", "in/deep/.."),
]
OUTSIDE = [
    *("..", "../secret", "in/../../secret", "in/up/../secret", "out", "out/", "out/c", "file_out", "over", "round"),
    *("slash/etc/passwd", "/etc/passwd", "/", "//etc/passwd", "out/back", "back", "no/../../secret", "../rootless"),
]


@pytest.mark.parametrize("name", ["root", "linked", "beside/../root", "root/"])
def test_what_ends_inside_is_inside(tree, name):
    bounds = FolderBounds(f"{tree}/{name}")
    join = os.path.join  # leaves ".", ".." and "//" as they are
    assert [entry for entry in INSIDE if not bounds.holds(join(f"{tree}/{name}", entry))] == []
    assert [entry for entry in OUTSIDE if bounds.holds(join(f"{tree}/{name}", entry))] == []
    assert bounds.holds(str(tree / "root" / "a"))
    assert bounds.holds(str(tree / "linked" / "a"))


def test_a_name_that_goes_on_is_another_folder(tree):
    (tree / "rootless").mkdir()
    assert not FolderBounds(tree / "root").holds(str(tree / "rootless" / "a"))


def test_everything_is_inside_the_whole_system(tree):
    assert FolderBounds("/").holds(str(tree / "root" / "slash"))


def test_relative_roots(tree, monkeypatch):
    monkeypatch.chdir(tree / "root")
    assert FolderBounds("").holds("a")
    assert FolderBounds(".").holds("in/b")
    assert not FolderBounds("in").holds("in/../a")


def test_few_folders_are_remembered(tree, monkeypatch):
    monkeypatch.setattr(paths, "_KEPT", 3)
    bounds = FolderBounds(tree / "root")
    for i in range(20):
        assert bounds.holds(str(tree / "root" / f"f{i}" / "a"))
        assert not bounds.holds(str(tree / f"f{i}" / "a"))
    assert len(bounds._known) <= 3


def test_a_list_is_refused_with_its_line(tree):
    listed = ListedPaths("my.csv", tree / "root", "do this")
    assert listed.join("in/b", 1) == tree / "root" / "in" / "b"
    for entry in OUTSIDE:
        with pytest.raises(
            ValueError, match=r"^my\.csv, line 7: '.*' leads outside the folder .*root; do this$"
        ) as e:
            listed.join(entry, 7)
        assert repr(entry) in str(e.value)
    with pytest.raises(ValueError, match=r"my\.csv, line 8: 'a\\x00b' is no path"):
        listed.join("a\0b", 8)
    with pytest.raises(ValueError) as caught:
        listed.join("../" + 10_000 * "x", 9)
    assert len(str(caught.value)) < 500


def test_who_trusts_a_list_gets_its_paths(tree):
    listed = ListedPaths("my.csv", tree / "root", "", allow_outside=True)
    assert [str(listed.join(entry, 1)) for entry in ("../secret", "/etc/passwd")] == [
        f"{tree}/root/../secret",
        "/etc/passwd",
    ]
    with pytest.raises(ValueError, match="zero byte"):
        listed.join("\0", 1)
