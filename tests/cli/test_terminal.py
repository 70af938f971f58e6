"""Progress, rates and JSON, without any command."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
import time
import warnings

import numpy as np
import pytest
import torch
import typer

from molsampler.cli.options import parse_duration
from molsampler.cli.terminal import (
    duration,
    logging_to_stderr,
    print_json,
    print_table,
    progress,
)


def test_rate_forgets_a_slow_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress("sampling", 2090, every=0.0) as update:
        for second in range(1, 200):  # one unit a second, then ten
            now = float(second)
            update(min(second, 100) + 10 * max(0, second - 100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[50] == "sampling: 51/2,090, 1/s, 33 min 59 s left"
    assert lines[-2] == "sampling: 1,090/2,090, 10/s, 1 min 40 s left"
    assert lines[-1] == "sampling: 3 min 19 s"


def test_rate_is_unknown_without_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sampling", 10, every=0.0) as update:
        for _ in range(3):
            update(0)
    assert capsys.readouterr().err.splitlines()[:3] == ["sampling: 0/10"] * 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_no_commands_from_hostile_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("sampling \x1b]0;pwned\x07 [red]", 4) as update:
        for done in range(1, 5):
            update(done, "\x1b[2Jfine \x9b31m [/]")
            time.sleep(0.11)
    shown = screen.getvalue()
    assert "4/4" in shown
    assert "/s" in shown
    assert "\u2501" in shown  # the bar
    assert "0:00:00" in shown
    assert "\\x1b]0;pwned\\x07 [red]" in shown
    assert "\\x1b[2Jfine \\x9b31m [/]" in shown
    for raw in ("\x1b]0;", "\x1b[2Jfine", "\x9b", "\x07"):
        assert raw not in shown


def test_tables_and_json_escape_hostile_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("\x9bname",), [("\x1b[2J",)], title="\x07")
    print_json({"a": "\x9b2J\x1b"})
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\x07"} & set(shown)
    assert json.loads(shown[shown.index("{") :]) == {"a": "\x9b2J\x1b"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("30 min", 1800), ("1.5h", 5400), ("1h30m", 5400)],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "5 weeks", "0", "1h x"])
def test_parse_duration_refuses(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="duration"):
        parse_duration(text)


def test_plain_progress_writes_lines_with_rate_and_rest(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sampling", 4, every=0.0) as update:
        for done in range(1, 5):
            update(done, "fine")
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert lines[0] == "sampling: 1/4, fine"
    assert "/s" in lines[2]
    assert "left" in lines[2]
    assert lines[-1] == "sampling: 0 s"
    assert len(lines) == 5


def test_a_new_total_starts_a_new_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", None, every=0.0) as update:
        for done in range(3):
            update(done, "equilibrating", total=100)
        update(0, "training", total=7)
    assert capsys.readouterr().err.splitlines()[3] == "training: 0/7, training"


def test_plain_progress_is_sparse_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sampling", 1000) as update:
        for done in range(1000):
            update(done)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_json_has_no_nan_and_takes_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {"a": math.nan, "b": np.float32(1.5), "c": torch.tensor([1, 2]), "d": (np.inf, True)}
    )
    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": 1.5,
        "c": [1, 2],
        "d": [None, True],
    }


def test_piped_table_is_aligned_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "value"), [("a", "1"), ("longer", "[2]")])
    assert capsys.readouterr().out == "name    value\na       1\nlonger  [2]\n"


def test_logs_and_warnings_go_to_stderr_and_the_logger_is_restored(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("molsampler")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with logging_to_stderr():
        logging.getLogger("molsampler.part").info("one")
        logging.getLogger("molsampler.part").warning("two")
        warnings.warn("three\nlines", UserWarning, stacklevel=1)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "one\nwarning: two\nwarning: three lines\n"
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
