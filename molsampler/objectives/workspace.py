"""Live networks and optimisers behind a flat state."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import FileFormatError, InputError
from .base import Objective, Problem, State
from .flat import FlatParameters
from .shards import Shards


class Applied(NamedTuple):
    """An optimiser step over shards: gradient norm, whether it was taken, mean loss, and the sums of what the
    shards had beside."""

    norm: float
    taken: bool
    loss: float
    beside: Tensor


class Workspace:
    """Named modules, optimisers, tensors and numbers, and the random streams that training draws from.

    ``tensors`` and ``numbers`` may be replaced between steps; modules and optimisers change in place.
    ``rng`` is the only stream, ``streams`` are those of the owned shards by their prefix; entries of a state
    under the prefixes ``foreign`` are those of other processes.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        optimisers: dict[str, torch.optim.Optimizer],
        *,
        rng: torch.Generator | None = None,
        streams: Mapping[str, torch.Generator] | None = None,
        foreign: tuple[str, ...] = (),
    ):
        self.modules, self.optimisers, self.foreign = modules, optimisers, foreign
        self._flat = {name: FlatParameters(module) for name, module in modules.items()}
        self.streams = {"": rng} if rng is not None else dict(streams or {})
        self.tensors: dict[str, Tensor] = {}
        self.numbers: dict[str, float | int] = {}

    @property
    def rng(self) -> torch.Generator:
        return self.streams[""]

    @rng.setter
    def rng(self, stream: torch.Generator) -> None:
        self.streams[""] = stream

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
        for prefix, stream in self.streams.items():
            state[f"{prefix}rng"] = stream.get_state()
        return state

    def load(self, state: State) -> None:
        """Overwrite everything by a flattened state; tensors and numbers that it has beside are kept.

        Raises
        ------
        FileFormatError
            It belongs to another configuration.
        """
        rest = {key: value for key, value in state.items() if not key.startswith(self.foreign)}
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
            random = {key: cast(Tensor, rest.pop(f"{key}rng")).cpu() for key in self.streams}
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"the checkpoint does not fit this configuration: {str(error).splitlines()[0]}"
            ) from None
        try:
            for prefix, stream in self.streams.items():
                stream.set_state(random[prefix])
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
        self._flat[name].clear()
        torch.autograd.backward(loss)
        return self._step(name, loss, rate=rate, max_grad_norm=max_grad_norm)

    def apply_shards(
        self,
        name: str,
        parts: Iterable[tuple[Tensor, Tensor]],
        *,
        shards: Shards,
        rate: float,
        max_grad_norm: float | None,
    ) -> Applied:
        """One optimiser step on the mean of the losses of all shards.

        ``parts`` makes the loss of every owned shard, and what else ``(k,)`` is to be summed over shards.
        """
        flat, own = self._flat[name], []
        gradients = flat.gradients
        if gradients is None:
            raise ValueError(f"nothing of {name!r} is trained")
        for loss, beside in parts:
            flat.clear()
            torch.autograd.backward(loss)
            own.append(torch.cat([gradients, loss.detach()[None], beside.detach().to(loss)]))
        total = shards.total(own)
        done = len(gradients)
        torch.div(total[:done], shards.count, out=gradients)
        loss = total[done] / shards.count
        norm, taken = self._step(name, loss, rate=rate, max_grad_norm=max_grad_norm)
        return Applied(norm, taken, float(loss), total[done + 1 :])

    def _step(
        self, name: str, loss: Tensor, *, rate: float, max_grad_norm: float | None
    ) -> tuple[float, bool]:
        """:meth:`apply` once the gradients are there."""
        flat, optimiser = self._flat[name], self.optimisers[name]
        norm = flat.clip(math.inf if max_grad_norm is None else max_grad_norm)
        if not math.isfinite(norm) or not math.isfinite(float(loss.detach())):
            flat.clear()
            return norm, False
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        return norm, True

    def average(self, averaged: str, module: str, decay: float) -> None:
        """Move the parameters of ``averaged`` towards those of ``module`` by a share of ``1 - decay``."""
        self._flat[averaged].approach(self._flat[module], 1.0 - decay)


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

    def require(self) -> None:
        self.build({"data_scale": 1.0})

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

    def with_generator(self, state: State, weights: Mapping[str, Tensor]) -> State:
        work = self.adopted(state)
        for name in ("generator", "ema"):
            if name in work.modules:
                try:
                    work.modules[name].load_state_dict(weights)
                except RuntimeError as error:
                    raise InputError(
                        "the weights of the sampler to start from do not fit the generator: "
                        f"{str(error).splitlines()[-1].strip()}"
                    ) from None
        return self.flat(work)

    def random(self) -> torch.Generator:
        """A random stream on the problem's device, seeded by its seed."""
        return torch.Generator(device=self.problem.device).manual_seed(self.problem.seed)


def _taken(state: State, prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, taken out of the state."""
    keys = [key for key in state if key.startswith(prefix)]
    return {key[len(prefix) :]: cast(Tensor, state.pop(key)) for key in keys}
