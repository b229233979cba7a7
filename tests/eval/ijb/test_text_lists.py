import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.ijb import text_lists
from eval.ijb.text_lists import read_csv_numbers, read_named_lines, read_number_columns

BLANKS = st.sampled_from([" ", "  ", "\t", " \t "])


def test_line_ends_and_tabs(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"1 2 3\r\n4\t5  6")
    assert read_number_columns(path, 3).tolist() == [[1, 4], [2, 5], [3, 6]]
    path.write_bytes(b"a.jpg\t1  2\r\nb.jpg 3 4\r\n\r\n")
    names, numbers = read_named_lines(path, 2, np.int64)
    assert names == ["a.jpg", "b.jpg"]
    assert numbers.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("lines_per_chunk", [1, 2, 3, 1 << 20])
def test_every_line_is_looked_at_in_any_chunk(tmp_path, monkeypatch, lines_per_chunk):
    monkeypatch.setattr(text_lists, "_LINES_PER_CHUNK", lines_per_chunk)
    path = tmp_path / "list.txt"
    lines = ["1 2", "  3\t4  ", "500000 6\r", "7 8"]
    for end in ("", "\n"):
        path.write_text("\n".join(lines) + end, newline="")
        assert read_number_columns(path, 2).tolist() == [[1, 3, 500000, 7], [2, 4, 6, 8]]
    for row in range(4):
        for wrong in ("1", "1 2 3", "", "1 2.5", "1 x"):
            path.write_text("\n".join([*lines[:row], wrong, *lines[row:]]) + "\n1 2", newline="")
            with pytest.raises(ValueError, match=rf"line {row + 1}: expected 2 whole numbers, found '{wrong}'"):
                read_number_columns(path, 2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(-(10**6), 10**18 - 1)] * 3), min_size=1, max_size=30),
    blank=BLANKS,
    end=st.sampled_from(["\n", "\r\n"]),
    lines_per_chunk=st.integers(1, 40),
    plain=st.booleans(),
)
def test_numbers_come_back_as_they_were_written(tmp_path, rows, blank, end, lines_per_chunk, plain):
    rows = [[abs(x) if plain else x for x in row] for row in rows]
    path = tmp_path / "list.txt"
    path.write_bytes(end.join(blank.join(map(str, row)) for row in rows).encode() + end.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lists, "_LINES_PER_CHUNK", lines_per_chunk)
        assert read_number_columns(path, 3).T.tolist() == rows


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text("ab3.-_/é", min_size=1, max_size=9), *[st.floats(allow_nan=False, allow_infinity=False)] * 2
        ),
        min_size=1,
        max_size=20,
    ),
    blank=BLANKS,
)
def test_names_and_numbers_come_back(tmp_path, rows, blank):
    path = tmp_path / "list.txt"
    path.write_text("".join(blank.join(map(str, row)) + "\n" for row in rows))
    names, numbers = read_named_lines(path, 2, np.float64)
    assert names == [row[0] for row in rows]
    assert numbers.tolist() == [list(row[1:]) for row in rows]


DECIMAL = st.builds(
    lambda sign, whole, part: f"{sign}{whole}.{part}",
    st.sampled_from(["", "", "-"]),
    st.sampled_from(["", "0", "007"]) | st.integers(0, 10**8).map(str),
    st.text("0123456789", max_size=8),
).filter(lambda word: any(c.isdigit() for c in word))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(*[DECIMAL] * 3), min_size=1, max_size=20),
    odd=st.sampled_from(["", "", "", "7", "1e3", "-", ".", "1.2.3", "1-2.0", "+1.5", "x"]),
    lines_per_chunk=st.integers(1, 30),
)
def test_decimals_are_the_nearest_floats(tmp_path, rows, odd, lines_per_chunk):
    """To the last bit, what Python reads; what no number is gets named."""
    rows = [*(list(row) for row in rows), ["1.0", odd or "1.0", "2.0"]]
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{i}.a.jpg {' '.join(row)}\n" for i, row in enumerate(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lists, "_LINES_PER_CHUNK", lines_per_chunk)
        if odd in ("-", ".", "1.2.3", "1-2.0", "x"):
            with pytest.raises(ValueError, match=f"line {len(rows)}: expected a file name and 3 numbers"):
                read_named_lines(path, 3, np.float64)
            return
        names, numbers = read_named_lines(path, 3, np.float64)
    assert names == [f"{i}.a.jpg" for i in range(len(rows))]
    wanted = np.array([[float(word) for word in row] for row in rows])
    np.testing.assert_array_equal(numbers.view(np.int64), wanted.view(np.int64))


@pytest.mark.parametrize("text", ["1 2 3\n", "1 2 3\n4 5 6\n", "1 2 3\n4 5\n"])
def test_a_first_line_that_is_too_long_is_named(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="line 1: expected 2 whole numbers, found '1 2 3'"):
        read_number_columns(path, 2)
    with pytest.raises(ValueError, match="line 1: expected a file name and 1 numbers, found '1 2 3'"):
        read_named_lines(path, 1, np.float64)


def test_words_mean_nothing_but_themselves(tmp_path):
    """Quotes, comment signs and missing values in names; numbers that are too large, or whole to other readers."""
    path = tmp_path / "list.txt"
    names = ['"a', "#b.jpg", "NA", "nan", "'c,d'"]
    path.write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    read, numbers = read_named_lines(path, 1, np.int64)
    assert read == names
    assert numbers.ravel().tolist() == [0, 1, 2, 3, 4]
    for wrong in ("9223372036854775808", "99999999999999999999", "1_000", "NA", "True", "5.0", "1e3"):
        path.write_text(f"1\n{wrong}\n")
        with pytest.raises(ValueError, match=f"line 2: expected 1 whole numbers, found '{wrong}'"):
            read_number_columns(path, 1)


def test_blank_lines_at_the_end_change_nothing(tmp_path):
    path = tmp_path / "list.txt"
    for number in (7, 1 << 40):
        path.write_text(f"1 2\n3 {number}\n")
        plain = read_number_columns(path, 2)
        path.write_text(f"1 2\n3 {number}\n \n\r\n\n")
        assert read_number_columns(path, 2).tolist() == plain.tolist() == [[1, 3], [2, number]]
        assert read_number_columns(path, 2).dtype == plain.dtype == (np.int32 if number == 7 else np.int64)
        path.write_text(f"a.jpg 2\né.jpg {number}\n\n", encoding="utf-8")
        assert read_named_lines(path, 1, np.float64)[1].tolist() == [[2], [number]]


@pytest.mark.parametrize(
    ("read", "heading", "blank"), [(read_number_columns, "", " "), (read_csv_numbers, "h\n", ",")]
)
def test_a_wrong_word_far_down_is_named_without_a_warning(tmp_path, read, heading, blank):
    """Warnings are errors here; pandas may give one for a column of numbers in one part and of text in another."""
    path = tmp_path / "list.txt"
    path.write_text(heading + f"1{blank}1\n" * 600_000 + f"x{blank}3\n")
    with pytest.raises(ValueError, match=f"line {600_001 + len(heading) // 2}: expected 2 whole numbers"):
        read(path, 2)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, end):
    path = tmp_path / "list.txt"
    path.write_text(f"a.jpg 1\n{end}", encoding="utf-8-sig")
    assert read_named_lines(path, 1, np.int64)[0] == ["a.jpg"]
    path.write_text(f"5 6\n{end}", encoding="utf-8-sig")
    assert read_number_columns(path, 2).tolist() == [[5], [6]]


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_separators_of_windows(tmp_path, end):
    path = tmp_path / "list.txt"
    path.write_bytes(f"img\\a.jpg 1{end}b.jpg 2{end}".encode())
    assert read_named_lines(path, 1, np.int64)[0] == ["img/a.jpg", "b.jpg"]


@pytest.mark.parametrize("end", ["\n", "\n\n"])  # the second is read line by line
def test_a_name_may_be_of_any_bytes(tmp_path, end):
    path = tmp_path / "list.txt"
    path.write_bytes(f"a.jpg 1\n\udcff.jpg 2{end}".encode(errors="surrogateescape"))
    names, numbers = read_named_lines(path, 1, np.int64)
    assert (names, numbers.tolist()) == (["a.jpg", "\udcff.jpg"], [[1], [2]])


def test_csv_takes_the_first_columns_below_the_heading(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\r\n5,7,a,b.jpg\r\n\r\n6 , 8\r\n")
    assert read_csv_numbers(path, 2).tolist() == [[5, 7], [6, 8]]
    for wrong in ("5", "5,x", "5.5,1", ",", "5,99999999999999999999"):
        path.write_text(f"TEMPLATE_ID,SUBJECT_ID\n1,2\n{wrong}\n")
        with pytest.raises(ValueError, match=r"list\.csv, line 3: expected 2 whole numbers"):
            read_csv_numbers(path, 2)
    path.write_text("TEMPLATE_ID,SUBJECT_ID\n")
    with pytest.raises(ValueError, match="no line below"):
        read_csv_numbers(path, 2)


def test_a_tab_separates_words_as_a_space_does(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.jpg\t1 2\nb.jpg 3\t4\n")
    names, numbers = text_lists.read_named_lines(path, 2, np.int64)
    assert (names, numbers.tolist()) == (["a.jpg", "b.jpg"], [[1, 2], [3, 4]])
    path.write_text("a.jpg 1 2\nb.jpg\t3 4 5\n")
    with pytest.raises(ValueError, match=r"line 2: expected a file name and 2 whole numbers, found 'b.jpg\\t3 4 5'"):
        text_lists.read_named_lines(path, 2, np.int64)
    path.write_text("1\t2 3\n4 5\t6\n")
    assert text_lists.read_number_columns(path, 3).tolist() == [[1, 4], [2, 5], [3, 6]]
