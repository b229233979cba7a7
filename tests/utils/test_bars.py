"""Bars on terminals, lines elsewhere, and log lines that stay whole beside a bar."""

import io
import sys
import types

import pytest

from utils import bars as ours
from utils.log import init_logging, log
from utils.text import clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(ours, "sys", types.SimpleNamespace(stderr=stream))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    return stream


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(terminal):
    with ours.open_bar(10, "step", done=4) as bar:
        bar.update()
        bar.refresh()
        assert "| 5/10 [" in terminal.getvalue()
    assert terminal.getvalue().split("\r")[-2].strip() == ""


@pytest.mark.parametrize("dumb", [{"TERM": "dumb"}, {"CI": "true"}])
def test_there_is_no_bar_where_nobody_could_see_it(terminal, monkeypatch, capsys, dumb):
    for name, value in dumb.items():
        monkeypatch.setenv(name, value)
    with ours.open_bar(10, "step") as bar:
        bar.update(3)
        bar.set_postfix_str("loss 1")
    assert (bar.n, terminal.getvalue(), capsys.readouterr().out) == (3, "", "")


def test_no_bar_on_other_ranks(terminal):
    with ours.open_bar(10, "step", shown=False) as bar:
        bar.update(3)
    assert terminal.getvalue() == ""


def test_a_file_gets_a_line_now_and_then(monkeypatch, capsys):
    now_s = [0.0]
    monkeypatch.setattr(ours.time, "monotonic", lambda: now_s[0])
    with ours.open_bar(4000, "image", "IJBC") as bar:
        for _ in range(4):
            now_s[0] += 40
            bar.update(1000)
    assert (
        capsys.readouterr().out
        == "IJBC: 2,000 of 4,000 images, 0:01:20 left\nIJBC: 4,000 of 4,000 images, 0:00:00 left\n"
    )


def test_a_log_line_takes_the_bar_away_first(terminal, monkeypatch):
    with ours.open_bar(10, "step") as bar, monkeypatch.context() as on_one_terminal:
        bar.refresh()
        on_one_terminal.setattr(sys, "stdout", terminal)
        init_logging(True)
        log.info("a line")
    init_logging(True)
    line = next(part for part in terminal.getvalue().split("\r") if "a line" in part)
    assert line.startswith("Training: ")
    assert line.endswith("a line\n")


def test_a_span_of_time():
    assert [clock(s) for s in (0, 59.6, 761, 3600 * 172 + 5, -1)] == [
        "0:00:00",
        "0:01:00",
        "0:12:41",
        "172:00:05",
        "0:00:00",
    ]
