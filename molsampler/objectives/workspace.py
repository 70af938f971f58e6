"""Live networks and optimisers behind a flat state."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import FileFormatError
from .base import Objective, Problem, State


class Workspace:
    """Named modules, optimisers, tensors and numbers, and the random stream that training draws from.

    ``tensors`` and ``numbers`` may be replaced between steps; modules and optimisers change in place.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        optimisers: dict[str, torch.optim.Optimizer],
        *,
        rng: torch.Generator,
    ):
        self.modules, self.optimisers, self.rng = modules, optimisers, rng
        self.tensors: dict[str, Tensor] = {}
        self.numbers: dict[str, float | int] = {}

    def flatten(self) -> State:
        """Everything, by path; tensors are live."""
        state: State = dict(self.numbers)
        for name, module in self.modules.items():
            for key, value in module.state_dict().items():
                state[f"module/{name}/{key}"] = value
        for name, optimiser in self.optimisers.items():
            for index, entry in optimiser.state_dict()["state"].items():
                for key, value in entry.items():
                    state[f"optimiser/{name}/{index}/{key}"] = torch.as_tensor(value)
        state.update(self.tensors)
        state["rng"] = self.rng.get_state()
        return state

    def load(self, state: State) -> None:
        """Overwrite everything by a flattened state; tensors and numbers that it has beside are kept.

        Raises
        ------
        FileFormatError
            It belongs to another configuration.
        """
        rest = dict(state)
        try:
            for name, module in self.modules.items():
                module.load_state_dict(_taken(rest, f"module/{name}/"))
            for name, optimiser in self.optimisers.items():
                entries: dict[int, dict[str, Tensor]] = {}
                for path, value in _taken(rest, f"optimiser/{name}/").items():
                    index, key = path.split("/", 1)
                    entries.setdefault(int(index), {})[key] = value
                groups = optimiser.state_dict()["param_groups"]
                optimiser.load_state_dict({"state": entries, "param_groups": groups})
            random = cast(Tensor, rest.pop("rng")).cpu()
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"the checkpoint does not fit this configuration: {str(error).splitlines()[0]}"
            ) from None
        try:
            self.rng.set_state(random)
        except RuntimeError:
            raise FileFormatError(
                "the checkpoint was made on another kind of device, whose random streams are others; "
                "resume there"
            ) from None
        self.tensors = {key: value for key, value in rest.items() if isinstance(value, Tensor)}
        self.numbers = {key: value for key, value in rest.items() if not isinstance(value, Tensor)}

    def apply(
        self, name: str, loss: Tensor, *, rate: float, max_grad_norm: float | None
    ) -> tuple[float, bool]:
        """One optimiser step on a module; returns the gradient norm and whether it was taken.

        It is not where loss or gradient are not finite.
        """
        module, optimiser = self.modules[name], self.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        limit = math.inf if max_grad_norm is None else max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(module.parameters(), limit))
        if not math.isfinite(norm) or not math.isfinite(float(loss.detach())):
            optimiser.zero_grad(set_to_none=True)
            return norm, False
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        return norm, True


class NetworkObjective(Objective):
    """An objective whose state is a workspace.

    The workspace of the state returned last is live, and is used again when that state comes back; any
    other state fills a new one.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self._work: Workspace | None = None
        self._last: State | None = None

    @abstractmethod
    def build(self, state: State) -> Workspace:
        """Freshly drawn networks and their optimisers, for what a state says of their size.

        Raises
        ------
        FileFormatError
            It is not a state of this objective.
        """

    def adopted(self, state: State) -> Workspace:
        """The workspace of a state.

        Raises
        ------
        FileFormatError
            It is not a state of this configuration.
        """
        if self._work is None or state is not self._last:
            # Whatever fails from here on, nothing live is left of the state before.
            self._work = self._last = None
            work = self.build(state)
            work.load(state)
            self._work, self._last = work, state
        return self._work

    def flat(self, work: Workspace) -> State:
        """The state of a workspace, which stays live."""
        self._work, self._last = work, work.flatten()
        return self._last

    def random(self) -> torch.Generator:
        """A random stream on the problem's device, seeded by its seed."""
        return torch.Generator(device=self.problem.device).manual_seed(self.problem.seed)


def _taken(state: State, prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, taken out of the state."""
    keys = [key for key in state if key.startswith(prefix)]
    return {key[len(prefix) :]: cast(Tensor, state.pop(key)) for key in keys}


def average(averaged: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the parameters of ``averaged`` towards those of ``module`` by a share of ``1 - decay``."""
    with torch.no_grad():
        for old, new in zip(averaged.parameters(), module.parameters(), strict=True):
            old.lerp_(new, 1.0 - decay)
