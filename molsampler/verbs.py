"""What the vocabulary offers beyond itself, looked up when it is called.

``samples.save`` writes files and ``samples.system()`` finds a system, although samples know neither
formats nor systems: those who do stand here by name, and the layers above are imported by the call alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .registry import Registry

VERBS: Registry[Callable[..., Any]] = Registry("verb")
VERBS.register("resolve", "molsampler.systems.resolve:resolve")
VERBS.register("resolve_recorded", "molsampler.systems.resolve:resolve_recorded")
VERBS.register("load", "molsampler.export:load")
VERBS.register("save", "molsampler.export:save")
VERBS.register("save_stream", "molsampler.export.parts:save_stream")
VERBS.register("to_mdtraj", "molsampler.export.lengths:to_mdtraj")
VERBS.register("to_ase", "molsampler.export.ase:to_ase")
VERBS.register("to_pandas", "molsampler.export.pandas:to_pandas")
VERBS.register("to_mdanalysis", "molsampler.export.mdanalysis:to_mdanalysis")
VERBS.register("view", "molsampler.export.view:view")
VERBS.register("plot", "molsampler.analysis.plot:plot")
