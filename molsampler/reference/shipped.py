"""Reference samples that ship with the package."""

from __future__ import annotations

from pathlib import Path

from .. import systems
from ..errors import UnknownNameError, nearest
from ..samples import Samples
from ..verbs import VERBS

#: Systems whose reference samples ship with the package.
REFERENCE_SETS = ("alanine-dipeptide", "dw4", "lj13")


def reference_path(system_name: str) -> Path:
    """Path of a shipped reference set.

    Raises
    ------
    UnknownNameError
        None ships for this system.
    """
    if system_name not in REFERENCE_SETS:
        raise UnknownNameError(
            f"no reference set ships for {system_name!r}{nearest(str(system_name), REFERENCE_SETS)} "
            f"(known: {', '.join(REFERENCE_SETS)}); make one with sample_reference"
        )
    return Path(systems.__file__).parent / "data" / f"reference_{system_name}.npz"


def load_reference(system_name: str) -> Samples:
    """Shipped reference samples of a system; ``metadata`` tells how they were made.

    Raises
    ------
    UnknownNameError
        None ships for this system.
    FileFormatError
        The file is damaged.
    """
    found: Samples = VERBS["load"](reference_path(system_name))
    return found
