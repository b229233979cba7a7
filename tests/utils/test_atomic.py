import pytest

from utils.atomic import open_atomic


def test_named_at_the_end(tmp_path):
    with open_atomic(tmp_path / "f") as file:
        file.write(b"abc")
        file.flush()
        assert not (tmp_path / "f").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"abc"


def fail_while_writing(path, error):
    with open_atomic(path) as file:
        file.write(b"new")
        raise error


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_older_file_survives_and_nothing_else_is_left(tmp_path, error):
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(type(error)):
        fail_while_writing(tmp_path / "f", error)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        fail_while_writing(tmp_path / "no" / "f", KeyError())
