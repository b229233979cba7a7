import numpy as np
import pytest

from eval.pairs.sets import find_pairs, load_list, load_pairs


def write(folder, text):
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(name.encode())
    path = folder / "mine.csv"
    path.write_text(text)
    return path


def test_a_list_with_names_of_columns(tmp_path):
    path = write(
        tmp_path, "path1,path2,issame\na.jpg, b.jpg,1\n\nc.jpg,a.jpg,0\nb.jpg,b.jpg,True\nb.jpg,c.jpg,different\n"
    )
    pairs = load_list(path)
    assert pairs.name == "mine"
    assert pairs.encoded == [b"a", b"b", b"c", b"a", b"b", b"b", b"b", b"c"]
    assert pairs.encoded[0] is pairs.encoded[3]
    assert pairs.issame.tolist() == [True, False, True, False]
    assert pairs.issame.dtype == bool


def test_a_column_of_flags_may_be_called_same(tmp_path):
    path = write(tmp_path, "first,second,same\na.jpg,b.jpg,same\n")
    assert load_list(path).issame.tolist() == [True]
    assert len(load_list(write(tmp_path, "a.jpg,b.jpg,same\n")).encoded) == 2


def test_absolute_paths_and_a_byte_order_mark(tmp_path):
    path = write(tmp_path, "")
    path.write_text(f"{tmp_path / 'a.jpg'},b.jpg,1\n", encoding="utf-8-sig")
    assert load_pairs(path).encoded == [b"a", b"b"]


def test_an_empty_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no pairs in it; read are: 'p1/a"):
        load_list(write(tmp_path, ""))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,b.jpg,1\na.jpg,b.jpg\n", "line 2: expected two paths and a flag.* found 'a.jpg,b.jpg'"),
        ("a.jpg,b.jpg,1\na.jpg,b.jpg,perhaps\n", "line 2: expected"),
        ("a.jpg,b.jpg,c.jpg,1\n", "line 1: expected"),
        ("a.jpg,b.jpg,0,1\nb.jpg,c.jpg,1,0\n", "columns 3 and 4 could both say whether .* path1,path2,same,fold"),
        ("x" * 10_000_000, "line 1: longer than 65,536 bytes"),
        ("a.jpg b\0.jpg 1\n", "line 1: a zero byte"),
    ],
)
def test_wrong_lines_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_list(write(tmp_path, text))
    assert len(str(caught.value)) < 1000


def test_no_text_at_all(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match=r"line 1: expected two paths"):
        load_list(path)


def test_missing_files_are_named_with_their_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"line 2: no image .*lost.jpg; 1 of 3 images are missing"):
        load_list(write(tmp_path, "a.jpg,b.jpg,1\na.jpg,lost.jpg,0\n"))
    with pytest.raises(FileNotFoundError, match="no verification set"):
        load_list(tmp_path / "none.csv")


def test_where_a_set_lies(tmp_path):
    assert find_pairs("lfw", tmp_path) == tmp_path / "lfw.bin"
    (tmp_path / "lfw.csv").touch()
    assert find_pairs("lfw", tmp_path) == tmp_path / "lfw.csv"
    (tmp_path / "lfw.bin").touch()
    assert find_pairs("lfw", tmp_path) == tmp_path / "lfw.bin"
    assert str(find_pairs("other/my.csv", tmp_path)) == "other/my.csv"
    assert str(find_pairs("other/my.bin", tmp_path)) == "other/my.bin"


def test_the_ending_decides_the_reader(tmp_path):
    import pickle

    (tmp_path / "two.bin").write_bytes(pickle.dumps(([b"a", b"b"], [True])))
    assert load_pairs(tmp_path / "two.bin").encoded == [b"a", b"b"]
    assert np.array_equal(load_pairs(write(tmp_path, "a.jpg,b.jpg,1")).issame, [True])
