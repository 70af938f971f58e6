"""Files of figures."""

from __future__ import annotations

from pathlib import Path

from molsampler.errors import InputError
from molsampler.storage.files import check_output

#: Suffixes of plots, which say the format.
PLOTS = (".png", ".svg", ".pdf")


def check_plot(path: Path | str, *, overwrite: bool) -> Path:
    """The path of a plot that can be written.

    Raises
    ------
    InputError
        The suffix is none of .png, .svg and .pdf.
    OutputExistsError, StorageError
        See :func:`molsampler.storage.files.check_output`.
    """
    target = check_output(path, overwrite=overwrite)
    if target.suffix.lower() not in PLOTS:
        raise InputError(f"a plot's name must end in {', '.join(PLOTS)}, got {target.name!r}")
    return target
