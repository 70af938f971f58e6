"""All probes, in the order in which what they find explains the rest."""

from __future__ import annotations

from ..errors import IllPosedError
from ..target import System
from .contact import require_sound_contacts
from .escape import require_bound
from .evaluator import Evaluator
from .gradient import require_score
from .start import find_bases, require_usable_start


def require_well_posed(system: System, *, regardless: str = "") -> None:
    """Refuse a system from which nothing can be sampled; see :mod:`molsampler.wellposed`.

    Deterministic, and without effect on any random stream. What is doubtful but not wrong is logged as a
    warning. ``regardless`` says in messages how to go on all the same.

    Raises
    ------
    IllPosedError
        The energy has no norm, is NaN, or its score is not its gradient; the direction is named.
    """
    try:
        _probe(system)
    except IllPosedError as error:
        if not regardless:
            raise
        raise IllPosedError(f"{error} ({regardless})") from error.__cause__


def _probe(system: System) -> None:
    evaluate = Evaluator(system)
    require_usable_start(system, evaluate)
    bases = find_bases(system, evaluate)
    if bases is None:
        return
    require_score(system, evaluate, bases)
    require_sound_contacts(system, evaluate, bases)
    require_bound(system, evaluate, bases)
