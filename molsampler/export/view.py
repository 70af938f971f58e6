"""Samples as structures to turn in a notebook, by py3Dmol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, MissingDependencyError
from ..samples import Samples
from ..target import System
from .lengths import to_nanometres, topology_of
from .topology import template

if TYPE_CHECKING:
    import py3Dmol

#: Frames shown at most: the widget holds them as text.
MOST = 500

#: Radius of a particle without bonds, as a share of the mean distance to its nearest neighbour.
SHARE = 0.3


def view(samples: Samples, system: System, frames: int, width: int, height: int) -> py3Dmol.view:
    """A widget of the first frames; see :meth:`molsampler.samples.Samples.view`."""
    for name, value, most in (
        ("frames", frames, MOST),
        ("width", width, 10_000),
        ("height", height, 10_000),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise InputError(f"{name} must be an integer from 1 to {most}, got {value!r}")
    if not len(samples):
        raise InputError("there are no samples to view")
    try:
        import py3Dmol
    except ImportError:
        raise MissingDependencyError(
            "py3Dmol is not installed: pip install 'molsampler[notebook]'"
        ) from None
    topology = topology_of(system)
    shown = samples if samples.log_weights is None else samples.resample(frames)
    angstroms = 10.0 * to_nanometres(shown.positions[:frames], system.length_nm).astype(float)
    angstroms -= angstroms.mean(1, keepdims=True)
    model, footer = template(topology)
    text = "".join(
        f"MODEL     {k % 10000:4d}\n{model % tuple(frame.ravel().tolist())}ENDMDL\n"
        for k, frame in enumerate(angstroms, 1)
    )
    widget: Any = py3Dmol.view(width=width, height=height)
    widget.addModelsAsFrames(text + footer, "pdb")
    widget.setStyle(
        {"stick": {"radius": 0.13}, "sphere": {"scale": 0.25}}
        if topology.n_bonds
        else {"sphere": {"radius": _radius(angstroms)}}
    )
    widget.zoomTo()
    if len(angstroms) > 1:
        widget.animate({"loop": "forward", "interval": 700})
    return widget


def _radius(frames: Any) -> float:
    if frames.shape[1] < 2:
        return 1.0
    distance = np.linalg.norm(frames[0][:, None] - frames[0][None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return float(SHARE * distance.min(1).mean()) or 1.0
