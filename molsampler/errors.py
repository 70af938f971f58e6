"""Every error that molsampler raises on purpose.

All derive from :class:`MolsamplerError`, so a caller can catch the library's own complaints and let
bugs pass. Where Python has a class for the situation, the error is one of that class too, so
``except ValueError`` and ``except FileExistsError`` do what a reader expects. A message names the
argument, the value received and the form expected.
"""

from __future__ import annotations


class MolsamplerError(Exception):
    """Base of all errors raised by molsampler."""


class InputError(MolsamplerError, ValueError):
    """An argument is unusable; raised before any work is done."""


class ShapeError(InputError):
    """Positions have the wrong particle count or dimension."""


class NonFiniteError(InputError):
    """Positions hold NaN, infinite or absurdly large coordinates."""


class ExpressionError(InputError):
    """A pair-potential expression cannot be parsed or differentiated."""


class RowError(InputError, IndexError):
    """There is no such sample."""


class UnknownNameError(InputError, LookupError):
    """A system, preset or configuration key does not exist; the message suggests the nearest name."""


class SystemNeededError(InputError):
    """A file is of a system that it does not hold, such as a Python function: whoever has it can give it."""


class IllPosedError(InputError):
    """An energy from which nothing can be sampled: exp(-u) has no norm, or the score is not -grad u."""


class OutputExistsError(MolsamplerError, FileExistsError):
    """The output exists, or is not a regular file, and overwriting was not asked for."""


class FileFormatError(MolsamplerError, ValueError):
    """A file is malformed, of an unsupported kind, or refused for safety (pickles, path tricks)."""


class IntegrityError(FileFormatError):
    """A file's content does not match its recorded hash or frame count."""


class StorageError(MolsamplerError, OSError):
    """The file system refused a write (no space, no permission); the previous file is intact."""


class MissingDependencyError(MolsamplerError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""


class DivergenceError(MolsamplerError, ArithmeticError):
    """Training produced too many non-finite steps in a row; the last good checkpoint is kept."""


class UnboundedEnergyError(DivergenceError):
    """Chains or samples have fallen to where no energy with a norm goes; no artifact is left."""


class RunLockedError(MolsamplerError, RuntimeError):
    """Another live process holds the run folder."""


class RankError(MolsamplerError, RuntimeError):
    """Of the processes that work together one is lost, failed, or is not of the same run."""


class SimulationError(MolsamplerError, RuntimeError):
    """The simulation library refused a configuration, or a process that runs it died or hung."""


class ResourceError(MolsamplerError, RuntimeError):
    """A device is absent or a request would not fit in memory; the message holds the estimate."""


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name that is near, or an empty string.

    Near is another case, a beginning of one name alone, or a likeness of 0.6 by :mod:`difflib`.
    """
    import difflib

    lower = {each.lower(): each for each in reversed(known)}
    begun = [each for each in lower if name and each.startswith(name.lower())]
    near = begun if len(begun) == 1 else difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""
