"""Everything that a bit-exact resume needs: the objective's state, the selection, and counters."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from ..errors import FileFormatError
from ..objectives import State

LOG_FORMAT = 2
_OBJECTIVE, _SELECTED = "objective/", "selected/"


@dataclass
class TrainState:
    """A run between two iterations.

    ``selected`` are the weights of the generator that the criterion ranks best so far, and ``best`` the least
    value of the criterion; ``best_discrepancy`` and ``best_drift`` are those of the selected one, by
    ``judged`` samples, which may tie with the least and be later. ``calibration`` is that of the selected
    one, one until the end of training, and ``relaxation`` the layers by which its samples then relax;
    ``verdict`` are the fields of the selected one's, ``weights`` what is known of its draws' weights, where
    they have any; ``by_temperature`` has a row for each temperature at which it was judged, where it has a
    range; ``bounds`` are the lower and the upper one of the energies of its draws at each, or at the only
    one, where they have some; ``reached`` says that the goal at which to stop is reached.
    ``judging_evaluations`` are the energy evaluations that judging generators has cost; ``log_format`` is
    that of the lines logged so far, of which the first counted warm-up and training together; ``recent``
    metrics are for display and not kept.
    """

    objective: State
    selected: dict[str, Tensor]
    judging_evaluations: int = 0
    seconds: float = 0.0
    skipped: int = 0
    bad_in_a_row: int = 0
    best: float = math.inf
    best_discrepancy: float = math.inf
    best_drift: float = math.inf
    best_iteration: int = -1
    calibration: float = 1.0
    relaxation: int = 0
    judged: int = 0
    log_bytes: int = 0
    log_sha256: str = ""
    log_format: int = LOG_FORMAT
    verdict: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    by_temperature: list[dict[str, Any]] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    reached: bool = False
    recent: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps that the objective has taken, warm-up included."""
        return int(self.objective["iteration"])

    @property
    def evaluations(self) -> int:
        """Energy evaluations spent, judging included."""
        return int(self.objective["energy_evaluations"]) + self.judging_evaluations

    def flatten(self) -> tuple[dict[str, Tensor], str]:
        """Tensors by path, and everything else as JSON text."""
        tensors = {f"{_SELECTED}{key}": value for key, value in self.selected.items()}
        numbers: dict[str, Any] = {}
        for key, value in self.objective.items():
            if isinstance(value, Tensor):
                tensors[f"{_OBJECTIVE}{key}"] = value
            else:
                numbers[key] = value
        counters = {name: getattr(self, name) for name in _COUNTERS}
        # Clones: safetensors refuses tensors that share memory.
        return {
            key: value.detach().clone().contiguous() for key, value in tensors.items()
        }, json.dumps({**counters, "objective": numbers})

    @classmethod
    def unflatten(cls, tensors: dict[str, Tensor], counters: str) -> TrainState:
        """The state that was flattened.

        Raises
        ------
        FileFormatError
            It is none.
        """
        try:
            values = json.loads(counters)
            objective: State = dict(values["objective"])
            if not all(isinstance(objective[k], int) for k in ("iteration", "energy_evaluations")):
                raise ValueError("iteration and energy_evaluations must be whole numbers")
            state = cls(objective, _under(tensors, _SELECTED))
            objective.update(_under(tensors, _OBJECTIVE))
            # What earlier versions did not keep.
            earlier = {"log_format": 1, "verdict": {}, "weights": {}, "by_temperature": []}
            values = {
                **earlier,
                "bounds": [],
                "reached": False,
                "relaxation": 0,
                "judged": 0,
                **values,
            }
            for name in _COUNTERS:
                setattr(state, name, type(getattr(state, name))(values[name]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FileFormatError(f"the counters of the checkpoint are unusable: {error}") from None
        return state


_COUNTERS = [
    each.name for each in fields(TrainState) if each.name not in ("objective", "selected", "recent")
]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
