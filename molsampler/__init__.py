"""One-step neural samplers for Boltzmann distributions.

    from molsampler import Sampler
    from molsampler.systems import get_system

    samples = Sampler.load("lj13").sample(1_000, seed=0)
    samples.save("lj13.xtc")

Importing this package prints nothing and loads no simulation library; names are resolved on first
use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors
from .errors import MolsamplerError
from .version import __version__

if TYPE_CHECKING:
    from .sampler.sampler import Sampler
    from .samples import Samples

__all__ = ["MolsamplerError", "Sampler", "Samples", "__version__", "errors"]

_LAZY = {"Sampler": ".sampler.sampler", "Samples": ".samples"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
