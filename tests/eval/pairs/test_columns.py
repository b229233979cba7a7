import numpy as np
import pytest

from eval.pairs.columns import read_columns
from eval.pairs.sets import load_pairs
from pair_stub import face, png

ROWS = (("ann/1.png", "ann/2.png", 1), ("ann/1.png", "bob/1.png", 0), ("bob/1.png", "cid/1.png", 0))


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("ann/1.png", "ann/2.png", "bob/1.png", "cid/1.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(face(i)))
    return tmp_path


def written(folder, lines):
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def test_people_by_their_folders(folder):
    pairs = load_pairs(written(folder, [f"{a},{b},{same}" for a, b, same in ROWS]))
    columns = pairs.columns
    assert columns.first.tolist() == [0, 0, 1]
    assert (columns.first == columns.second).tolist() == pairs.issame.tolist() == [True, False, False]
    assert columns.people_by == "as the list's folders say"
    assert columns.groups is None
    lying = written(folder, ["ann/1.png,ann/2.png,0", "ann/1.png,bob/1.png,0"])
    assert load_pairs(lying).columns.first is None


def test_a_heading_in_any_order_with_people_and_groups_as_bfw_has_them(folder):
    people = {"ann": "asian_females", "bob": "asian_females", "cid": "black_males"}
    lines = ["fold,p1,p2,label,id1,id2,att1,att2"]
    for a, b, same in ROWS:
        one, other = a.split("/")[0], b.split("/")[0]
        lines.append(f"1,{a},{b},{same},{one},{other},{people[one]},{people[other]}")
    pairs = load_pairs(written(folder, lines))
    assert pairs.issame.tolist() == [True, False, False]
    assert len(pairs.encoded) == 6
    assert pairs.columns.groups.tolist() == ["asian_females", "asian_females", ""]
    assert pairs.columns.people_by == "as the list's columns say"
    assert pairs.columns.second.tolist() == [0, 1, 2]


def test_one_column_of_groups(folder):
    path = written(folder, ["path1,path2,issame,group", *(f"{a},{b},{same},g{same}" for a, b, same in ROWS)])
    assert load_pairs(path).columns.groups.tolist() == ["g1", "g0", "g0"]
    assert read_columns(path, np.array([True, False, False])).groups.tolist() == ["g1", "g0", "g0"]
