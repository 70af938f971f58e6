"""Progress, rates and JSON, without any command."""

from __future__ import annotations

import json
import logging
import math
import warnings

import numpy as np
import pytest
import torch
import typer

from molsampler.cli.options import parse_duration
from molsampler.cli.terminal import (
    Rate,
    duration,
    logging_to_stderr,
    print_json,
    print_table,
    progress,
)


def test_rate_forgets_a_slow_start() -> None:
    rate = Rate(window=30.0)
    for second in range(100):  # one unit a second, then ten
        rate.add(float(second), float(second))
    for second in range(100, 200):
        rate.add(float(second), 100.0 + 10.0 * (second - 100))
    assert rate.per_second == pytest.approx(10.0)
    assert rate.remaining(2090.0) == pytest.approx(100.0)


def test_rate_is_unknown_without_two_moments_or_progress() -> None:
    rate = Rate()
    assert rate.remaining(10.0) is None
    rate.add(0.0, 0.0)
    assert rate.per_second is None
    rate.add(1.0, 0.0)
    assert rate.per_second is None


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
