"""Exit codes, one-line errors, separation of streams, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import molsampler
import molsampler.cli
from molsampler.errors import InputError

VERBS = (
    "systems",
    "sample",
    "merge",
    "train",
    "reference",
    "compare",
    "export",
    "info",
    "demo",
    "doctor",
)
COMMAND = [sys.executable, "-c", "import sys; from molsampler.cli import main; sys.exit(main())"]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_help_names_every_verb_and_is_fast() -> None:
    started = time.monotonic()
    process = start("--help")
    out, err = process.communicate(timeout=60)
    elapsed = time.monotonic() - started
    assert process.returncode == 0
    assert err == ""
    assert all(f" {verb} " in out for verb in VERBS)
    assert elapsed < 5.0  # typically 0.3 s; importing torch alone takes longer than 1.5 s


def test_help_loads_no_heavy_library() -> None:
    code = "import sys, molsampler.cli; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(run, verb: str) -> None:
    outcome = run(verb, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert "Usage: molsampler" in outcome.out


def test_version(run) -> None:
    assert run("--version").out == f"molsampler {molsampler.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("sample",),
        ("sample", "dw4", "-n", "0", "-o", "x.npz"),
        ("sample", "dw4", "-n", "many", "-o", "x.npz"),
        ("train", "dw4", "run", "--max-time", "soon"),
        ("train", "dw4", "run", "--within", "soon"),
        ("train", "dw4", "run", "--preset", "best"),
        ("reference", "dw4", "-n", "10", "-o", "x.npz", "--method", "guess"),
        ("systems", "--frobnicate"),
    ],
)
def test_wrong_usage_is_exit_code_2(run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err


def test_library_error_is_one_line_on_stderr(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InputError("n must be positive,\ngot -1")

    monkeypatch.setattr(molsampler.cli, "app", fail)
    outcome = run("systems")
    assert outcome == (1, "", "error: n must be positive, got -1\n")


def test_bug_is_one_line_that_says_how_to_see_more(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(molsampler.cli, "app", fail)
    outcome = run("systems")
    assert outcome.code == 1
    assert outcome.err == "error: unexpected KeyError: 'lost' (MOLSAMPLER_DEBUG=1 shows where)\n"
    monkeypatch.setenv("MOLSAMPLER_DEBUG", "1")
    with pytest.raises(KeyError):
        run("systems")


def test_signal_handlers_are_restored(run) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run("--version")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_interrupted_work_leaves_no_file(number: signal.Signals, code: int, tmp_path: Path) -> None:
    # Imports come first, so that the signal arrives while the chains run.
    code_line = (
        "import sys, molsampler.cli, molsampler.reference.monte_carlo, molsampler.export\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "sys.exit(molsampler.cli.main())"
    )
    output = tmp_path / "reference.npz"
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", code_line, "reference", "lj13", "-n", "500000"),
            *("-o", str(output), "--method", "mcmc"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_closed_pipe_is_quiet() -> None:
    process = start("systems")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in err
