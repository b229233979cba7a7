import pytest

from eval.pairs.sets import load_pairs
from pair_stub import face, png

PEOPLE = {"ann": "asian_females", "bob": "asian_females", "cid": "black_males"}
ROWS = (("ann/1.png", "ann/2.png", 1), ("ann/1.png", "bob/1.png", 0), ("bob/1.png", "cid/1.png", 0))
NAMES = ("ann/1.png", "ann/2.png", "bob/1.png", "cid/1.png")


def put(folder, names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png(face(i)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return put(tmp_path_factory.mktemp("faces"), NAMES)


def read(folder, lines, name="list.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes("".join(line + "\n" for line in lines).encode(encoding))
    return load_pairs(path)


def bfw(separator=",", heading="fold,p1,p2,label,id1,id2,att1,att2,score", people=str):
    """BFW's form, with what it has besides."""
    lines = [heading.replace(",", separator)]
    for a, b, same in ROWS:
        one, other = a.split("/")[0], b.split("/")[0]
        cells = ("1", a, b, same, people(one), people(other), PEOPLE[one], PEOPLE[other], "0.25")
        lines.append(separator.join(map(str, cells)))
    return lines


def test_people_by_their_folders(folder):
    pairs = read(folder, [f"{a},{b},{same}" for a, b, same in ROWS])
    columns = pairs.columns
    assert columns.first.tolist() == [0, 0, 1]
    assert (columns.first == columns.second).tolist() == pairs.issame.tolist() == [True, False, False]
    assert columns.people_by == "as the list's folders say"
    assert columns.groups is None
    lying = read(folder, ["ann/1.png,ann/2.png,0", "ann/1.png,bob/1.png,0"]).columns
    assert (lying.first, lying.people_by) == (None, "")


def test_people_by_the_folders_of_another_system(folder):
    pairs = read(folder, [f"D:\\set\\{a}\tD:\\set\\{b}\t{same}".replace("/", "\\") for a, b, same in ROWS])
    assert pairs.columns.second.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "lines", "encoding"),
    [
        ("bfw.csv", bfw(), "utf-8"),
        ("bfw.csv", ["# made by hand", *bfw()], "utf-8-sig"),
        ("bfw.txt", bfw("\t"), "utf-8"),
        ("bfw.tsv", bfw("\t"), "utf-16"),
        ("bfw.csv", bfw(";", "fold,Image 1,Image 2,same,ID_1,ID_2,Race1,Race2,score"), "utf-16-le"),
        ("bfw.lst", bfw(" ", "fold,p1,p2,label,person1,person2,group1,group2,score"), "utf-8"),
    ],
)
def test_people_and_groups_in_every_form_with_a_heading(folder, name, lines, encoding):
    pairs = read(folder, lines, name, encoding)
    assert pairs.issame.tolist() == [True, False, False]
    assert len(pairs.encoded) == 6
    assert pairs.columns.groups.tolist() == ["asian_females", "asian_females", ""]
    assert pairs.columns.people_by == "as the list's columns say"
    assert pairs.columns.second.tolist() == [0, 1, 2]
    assert "groups by columns" in pairs.form


@pytest.mark.parametrize("name", ["group", "Race", "ethnicity"])
def test_one_column_of_groups(folder, name):
    lines = [f"path1,path2,issame,{name}", *(f"{a},{b},{same},g{same}" for a, b, same in ROWS[:2])]
    pairs = read(folder, [*lines, "bob/1.png,cid/1.png,0"])  # of no group
    assert pairs.columns.groups.tolist() == ["g1", "g0", ""]
    assert pairs.form.endswith(f"groups by column {name.lower()}")


def test_columns_that_contradict_the_flags_do_not_tell_people(folder):
    count = iter(range(100))
    pairs = read(folder, bfw(people=lambda _: next(count)))  # numbers of images, not of people
    assert pairs.columns.people_by == "as the list's folders say"
    assert "columns id1 and id2 do not say who is who: line 2 has '0' and '1' where the flag says one" in pairs.form
    pairs = read(folder, bfw(people=lambda name: name if name != "cid" else ""))
    assert "line 4 has 'bob' and '' where the flag says two people" in pairs.form


def test_lfws_and_rfws_names_tell_people(tmp_path):
    put(tmp_path, [f"{name}_{i:04d}.png" for name in ("ann/ann", "m.01/m.01") for i in (1, 2)])
    for lines in (["1\t1"], []):
        columns = read(tmp_path, [*lines, "ann\t1\t2", "ann\t2\tm.01\t1"], "pairs.txt").columns
        assert columns.people_by == "as the list's names say"
        assert (columns.first.tolist(), columns.second.tolist()) == ([0, 0], [0, 1])


def test_groups_of_another_encoding_are_decoded_as_the_files_are(tmp_path):
    put(tmp_path, ["王/a.png", "李/b.png"])
    lines = ["path1,path2,same,group", "王/a.png,王/a.png,1,亚", "王/a.png,李/b.png,0,亚"]
    assert read(tmp_path, lines, encoding="gbk").columns.groups.tolist() == ["亚", "亚"]
