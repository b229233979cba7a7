import gzip
import io
import tarfile

import pytest

from data.shards.names import expand_braces, find_shards
from data.shards.tar import scan_shard, split_name
from data.storage import LocalFiles
from face_files import VALUES, face
from tar_files import samples, write_tar

IMAGE = face(10)


def scan(path):
    return scan_shard(str(path), path.stat().st_size, LocalFiles())


def scan_members(folder, members, **options):
    return scan(write_tar(folder / "a.tar", members, **options))


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, None


def test_images_are_found_where_they_lie(tmp_path):
    found = scan_members(tmp_path, samples())
    data = (tmp_path / "a.tar").read_bytes()
    images = [data[o : o + n] for o, n in zip(found.offsets.tolist(), found.sizes.tolist(), strict=True)]
    assert images == [face(value) for value in VALUES]
    assert found.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert found.problems == []


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_beyond_ascii_are_keys(tmp_path, form):
    long = "folder/" * 30 + "é" * 50
    found = scan_members(tmp_path, [(f"{long}.png", IMAGE), (f"{long}.cls", b"7")], form=form)
    data = (tmp_path / "a.tar").read_bytes()
    assert data[found.offsets[0] : found.offsets[0] + found.sizes[0]] == IMAGE
    assert found.labels.tolist() == [7]


def test_members_of_a_sample_need_not_be_neighbours(tmp_path):
    members = samples()
    assert scan_members(tmp_path, members[1::2] + members[::2]).labels.tolist() == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("field", "content", "label"),
    [
        ("cls", b"3", 3),
        ("cls", b" 3\n", 3),
        ("cls", b"3.0", 3),
        ("cls.txt", b"4", 4),
        ("label", b"5", 5),
        ("json", b'{"label": 6, "url": "x"}', 6),
        ("json", b'{"caption": "x", "identity": 7.0}', 7),
        ("json", b'{"class": "ann"}', "ann"),
        ("json", b"8", 8),
        ("cls", b"007", "007"),  # a number if no label of the set is a name
    ],
)
def test_labels_have_many_forms(tmp_path, field, content, label):
    found = scan_members(tmp_path, [("a.jpg", IMAGE), (f"a.{field}", content)])
    assert found.labels.tolist() == [label]
    assert found.problems == []


def test_cls_counts_before_json_and_other_files_do_not_count(tmp_path):
    members = [
        ("./a.json", b'{"label": 1}'),
        ("./a.txt", b"a caption"),
        ("./a.cls", b"2"),
        ("./a.seg.png", face(1)),
        ("./a.PNG", IMAGE),
        ("__meta__.json", b"{}"),
        ("README", b"text"),
        ("._a.jpg", b"of a Mac"),
    ]
    found = scan_members(tmp_path, [special("dir", tarfile.DIRTYPE), *members])
    assert (found.labels.tolist(), found.sizes.tolist(), found.problems) == ([2], [len(IMAGE)], [])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", IMAGE)], r"sample 'a' at byte 0 has no label among jpg; expected KEY\.cls"),
        ([("a.jpg", IMAGE), ("a.pyd", b"x")], "has no label among jpg, pyd"),
        ([("a.cls", b"1")], r"sample 'a' has no image \(only cls\); expected one of jpg"),
        ([("a.jpg", IMAGE), ("a.png", IMAGE), ("a.cls", b"1")], r"has several images \(jpg, png\); expected"),
        ([("img.1.jpg", IMAGE), ("img.2.jpg", IMAGE), ("img.1.cls", b"1")], "key ends at the first dot of the name"),
        ([("a.jpg", IMAGE), ("a.cls", b"-1")], "'a.cls' at byte 1024: the label is -1, expected a whole number"),
        ([("a.jpg", IMAGE), ("a.cls", b"1.5")], "the label is 1.5, expected"),
        ([("a.jpg", IMAGE), ("a.cls", b"99999999999")], "the label is 99999999999, expected"),
        ([("a.jpg", IMAGE), ("a.cls", b"a\nb")], "expected a whole number or a name in one line"),
        ([("a.jpg", IMAGE), ("a.cls", b"\xff")], "'a.cls' at byte 1024: 'utf-8' codec"),
        ([("a.jpg", IMAGE), ("a.cls", bytes(5000))], "5000 bytes are no label"),
        ([("a.jpg", IMAGE), ("a.json", b'{"label": [1]}')], r"the label is '\[1\]'"),
        ([("a.jpg", IMAGE), ("a.json", b'{"label": true}')], "the label is 'True'"),
        ([("a.jpg", IMAGE), ("a.json", b"{")], "'a.json' at byte 1024"),
    ],
)
def test_a_sample_without_an_image_or_a_label_is_a_problem(tmp_path, members, message):
    import re

    good = [("z.jpg", IMAGE), ("z.cls", b"4")]
    found = scan_members(tmp_path, [*members, *good])
    assert len(found.problems) == 1
    assert re.search(message, found.problems[0]), found.problems
    assert found.labels.tolist()[-1] == 4


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("a.jpg", IMAGE), ("a.jpg", IMAGE)],
            r"a\.tar: 'a\.jpg' at byte \d+: the shard has two members of this name",
        ),
        (
            [("a.jpg", IMAGE), special("b.jpg", tarfile.LNKTYPE, "a.jpg")],
            r"b\.jpg' at byte \d+ is a hard link to 'a\.jpg'; .* --hard",
        ),
        ([special("b.jpg", tarfile.SYMTYPE, "/etc/passwd")], "is a symbolic link; expected plain files only"),
        ([special("b.jpg", tarfile.FIFOTYPE)], "is no file"),
        ([special("b.jpg", tarfile.GNUTYPE_SPARSE)], "sparse|damaged"),
    ],
)
def test_what_is_no_plain_file_or_comes_twice_is_refused(tmp_path, members, message):
    with pytest.raises(ValueError, match=message) as error:
        scan_members(tmp_path, members)
    assert "cut short" not in str(error.value) or "sparse" in message


def test_a_pax_sparse_file_is_refused(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"GNU.sparse.map": "0,5", "GNU.sparse.size": "99"}
    info.size = 5
    with pytest.raises(ValueError, match=r"'a\.jpg' at byte \d+ is a sparse file"):
        scan_members(tmp_path, [(info, b"12345")])


@pytest.mark.parametrize("kept", [100, 700, 1024 + 100, 1500, 2048 + 3])
def test_a_shard_that_is_cut_short_is_refused_wherever_it_is_cut(tmp_path, kept):
    path = write_tar(tmp_path / "a.tar", samples())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"a\.tar: {kept} bytes, after .*cut short or damaged"):
        scan(path)


def test_a_shard_without_its_end_or_with_damage_or_another_one_behind_it_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples())
    whole = path.read_bytes()
    end = whole.rstrip(b"\0")
    size = -(-len(end) // 512) * 512
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match="without the zeros that end a tar file"):
        scan(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="something follows its end"):
        scan(path)
    second = whole.index(b"01.png")
    path.write_bytes(whole[:second] + b"\xff" * 512 + whole[second + 512 :])
    with pytest.raises(ValueError, match=f"no tar header at byte {second}"):
        scan(path)


def test_compressed_shards_are_refused_by_content_and_by_name(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples())
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar: it is compressed \(gzip\)"):
        scan(path)
    path.rename(tmp_path / "a.tar.gz")
    with pytest.raises(ValueError, match=r"a\.tar\.gz: a compressed tar file .* unpack it once"):
        find_shards(tmp_path, LocalFiles())


def test_an_empty_file_and_one_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.tar: 0 bytes"):
        scan(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(io.BytesIO(b"<html>" * 500).read())
    with pytest.raises(ValueError, match=r"a\.tar: 3000 bytes, after its first header"):
        scan(tmp_path / "a.tar")


def test_keys_end_at_the_first_dot_of_the_name():
    assert split_name("./a.b/c.seg.PNG") == ("a.b/c", "seg.png")
    assert split_name("a/.hidden.jpg") == ("", "")


def test_patterns_are_expanded_as_a_shell_does():
    assert list(expand_braces("t-{08..11}.{a,b}")) == [f"t-{n}.{e}" for n in ("08", "09", "10", "11") for e in "ab"]
    assert list(expand_braces("{9..10}")) == ["9", "10"]
    assert list(expand_braces("{x}")) == ["{x}"]
    for bad in ("{a..b}", "{5..1}", "{0..99999999}"):
        with pytest.raises(ValueError, match=r"\{0000\.\.0099\}|count up"):
            list(expand_braces(bad))


def test_shards_come_in_the_order_of_the_pattern_or_of_their_names(tmp_path):
    for i in (10, 9, 1):
        write_tar(tmp_path / f"t-{i}.tar", samples())
    found = find_shards(tmp_path / "t-{9..10}.tar", LocalFiles())
    assert [name.rpartition("/")[2] for name in found] == ["t-9.tar", "t-10.tar"]
    assert len(find_shards(tmp_path / "t-*.tar", LocalFiles())) == 3
    with pytest.raises(FileNotFoundError, match=r"t-2\.tar: no such file"):
        find_shards(tmp_path / "t-{1..2}.tar", LocalFiles())
    with pytest.raises(ValueError, match="more than once"):
        find_shards(tmp_path / "t-{1,1}.tar", LocalFiles())
