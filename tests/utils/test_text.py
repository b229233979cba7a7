import logging

import pytest

from utils.log import init_logging, log
from utils.text import complain, parse_json, plain

EVIL = "\x1b]0;owned\x07\x1b[31mred\r\n\x9b2J\u202etxt\u2066\0"


def test_what_a_terminal_would_obey_is_written_out():
    assert plain(EVIL) == "\\x1b]0;owned\\x07\\x1b[31mred\\r\\n\\x9b2J\\u202etxt\\u2066\\x00"
    assert plain("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"
    assert plain(b"\xff.jpg".decode(errors="surrogateescape")) == "\\udcff.jpg"


@pytest.mark.parametrize("name", ["ann", "José 王\u3000芳", "Σ\xa0x", "\\x1b", ""])
def test_names_of_people_stay_as_they_are(name):
    assert plain(name) == name


def test_an_error_is_one_line(capsys):
    complain("tool", ValueError(f"no file {EVIL}"))
    text = capsys.readouterr().err
    assert text.startswith("tool: error: no file \\x1b]0;owned")
    assert text.count("\n") == 1
    assert text[:-1].isprintable()


@pytest.fixture
def our_log():
    before = log.handlers[:], log.propagate, log.level
    log.handlers[:] = []
    yield log
    for handler in log.handlers:
        handler.close()
    log.handlers[:], log.propagate, log.level = before


def test_the_log_shows_control_characters(our_log, tmp_path, capsys):
    init_logging(is_main=True, output=tmp_path)
    logging.getLogger("mhs_arcface").warning("verification set %s is left out", "\x1b[2J\u202e")
    for text in ((tmp_path / "training.log").read_text(), capsys.readouterr().out):
        assert "set \\x1b[2J\\u202e is left out\n" in text
        assert "\x1b" not in text


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "", "nul"])
def test_json_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_json():
    assert parse_json('{"a": [1, null]}') == {"a": [1, None]}
