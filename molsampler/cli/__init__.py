"""The command ``molsampler``: exit codes, errors and signals; one module per verb.

Exit codes: 0 done, 1 failed with one line on standard error, 2 wrong usage, 3 done with a result that is not
usable, 130 or 143 interrupted.
``MOLSAMPLER_DEBUG=1`` shows the traceback of a failure. Results go to standard output, everything
else to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

# Read by the OpenMP runtime when torch loads. Spinning threads make small networks many times slower
# as soon as another process wants a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ..errors import MolsamplerError
from . import clock
from .app import app
from .terminal import logging_to_stderr, note


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    clock.start(of_process=arguments is None)
    previous = {
        number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with logging_to_stderr():
            app(arguments, prog_name="molsampler")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if os.environ.get("MOLSAMPLER_DEBUG") == "1":
            raise
        note(f"error: {_one_line(error)}")
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    # An exception, so that temporary files are removed on the way out; commands that have a state
    # to save replace this handler while they run.
    print(f"interrupted by {signal.Signals(number).name}", file=sys.stderr)
    raise SystemExit(128 + number)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MolsamplerError):
        return text
    hint = "MOLSAMPLER_DEBUG=1 shows where"
    return f"unexpected {type(error).__name__}: {text} ({hint})"
