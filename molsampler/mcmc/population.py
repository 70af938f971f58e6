r"""A population of Markov chains at equilibrium, made from the energy alone.

Chains are annealed from a Gaussian by SMC, equilibrated by MALA, and moved on while training goes. A pair
(clean state, its noised copy) is then an exact draw of :math:`(x_0, x_t)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import FileFormatError, UnboundedEnergyError
from ..frozen import Frozen
from ..molecule.molecule import Molecule
from ..space import Space
from ..target import Target
from . import adapt, mala, smc
from .divergence import UNREST, FallWatch, require_finite

#: Transitions of the equilibration between looks at the median energy.
_WATCH_EVERY = 50


class Gaussian:
    """Isotropic Gaussian on a space, the start of the annealing path."""

    def __init__(self, space: Space, std: float):
        self.space, self.std = space, std

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * (x / self.std).square().sum(dim=(-2, -1)), -x / self.std**2

    def sample(self, n: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
        return self.std * self.space.randn(n, generator=generator, like=like)


class GaussianChain(Gaussian):
    """Gaussian chain on a molecule's bond graph, of the same mean variance: bonds start out short."""

    def __init__(self, space: Space, std: float, molecule: Molecule):
        super().__init__(space, std)
        root = molecule.chain_root() + 1.0 / space.shape[0]
        self.root, self.precision = root, np.linalg.inv(root @ root)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = torch.as_tensor(self.precision, dtype=x.dtype, device=x.device)
        score = -(precision @ x) / self.std**2
        return -0.5 * (x * score).sum(dim=(-2, -1)), score

    def sample(self, n: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
        root = torch.as_tensor(self.root, dtype=like.dtype, device=like.device)
        return root @ super().sample(n, generator=generator, like=like)


class _Watched:
    """A target that calls ``watch``, which may raise to interrupt, before every evaluation."""

    def __init__(self, target: Target, watch: Callable[[], None]):
        self.target, self.space, self.watch = target, target.space, watch

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.watch()
        return self.target.energy_and_score(x)


class PopulationConfig(Frozen):
    """``size`` chains start from a Gaussian of ``start_scale`` (in the system's length unit), are annealed
    by SMC with ``anneal_moves`` MALA steps per level and equilibrated by ``equilibration`` more."""

    size: int = Field(8192, ge=2)
    start_scale: float = Field(1.0, gt=0)
    anneal_moves: int = Field(5, ge=1)
    equilibration: int = Field(1000, ge=0)


class Population(NamedTuple):
    """Chains at equilibrium, and the MALA step size at which they were equilibrated."""

    state: mala.State
    step_size: float

    def put(self, tensors: dict[str, Tensor], numbers: dict[str, float | int]) -> None:
        """Enter the chains into a flat mapping of tensors and one of numbers."""
        for key, value in self.state._asdict().items():
            tensors[f"population/{key}"] = value
        numbers["population_step"] = self.step_size

    @classmethod
    def taken(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, float | int]) -> Population:
        """The chains of such mappings.

        Raises
        ------
        FileFormatError
            They hold none.
        """
        try:
            fields = {key: tensors[f"population/{key}"] for key in mala.State._fields}
            return cls(mala.State(**fields), float(numbers["population_step"]))
        except KeyError as error:
            raise FileFormatError(f"the checkpoint does not hold {error}") from None


def equilibrate(
    config: PopulationConfig,
    target: Target,
    *,
    generator: torch.Generator,
    like: Tensor,
    report: Callable[[str, float], None],
    molecule: Molecule | None = None,
) -> Population:
    """A population at equilibrium, from the energy alone.

    A ``molecule`` with bonds is annealed from a Gaussian chain on its bond graph.
    ``report(stage, share)`` is called between transitions and may raise to interrupt.

    Raises
    ------
    UnboundedEnergyError
        The energies of the chains fall without bound, or most are not finite.
    """
    space = target.space
    base = Gaussian(space, config.start_scale)
    if molecule is not None and molecule.bonds:
        base = GaussianChain(space, config.start_scale, molecule)
    x = base.sample(config.size, generator=generator, like=like)
    falling = FallWatch(space.dof)

    def watch(energy: Tensor) -> None:
        if not torch.isfinite(energy).any():
            raise UnboundedEnergyError(
                f"none of {len(energy):,} chains has a finite energy in a Gaussian of "
                f"start_scale={config.start_scale:g}: the energy is infinite or NaN there; give "
                "target_score.start_scale the size of a configuration"
            )
        falling(energy)

    annealed = smc.run(
        x,
        base,
        _Watched(target, lambda: report("annealing", 0.0)),
        moves=config.anneal_moves,
        step_size=1e-2 * config.start_scale**2,
        generator=generator,
        watch=watch,
    )
    state = mala.init(annealed.position, target)
    require_finite(state.energy, "annealed chains")
    falling = FallWatch(space.dof, UNREST)
    adaptation = adapt.init(annealed.step_size)
    for k in range(config.equilibration):
        report("equilibrating", k / config.equilibration)
        state, info = mala.step(
            state, target, step_size=float(adaptation.step_size), generator=generator
        )
        # The first half tunes the step; the second half runs a fixed kernel, so it has a stationary law.
        if 2 * k < config.equilibration:
            adaptation = adapt.update(adaptation, info.acceptance)
        if k % _WATCH_EVERY == 0:
            falling(state.energy)
    falling(state.energy)
    return Population(state, float(adaptation.step_size))


def refresh(
    population: Population,
    target: Target,
    *,
    start: int,
    count: int,
    steps: int,
    generator: torch.Generator,
) -> Population:
    """Move ``count`` chains, from index ``start`` and wrapping round, ``steps`` MALA steps on."""
    state, step_size = population
    index = (torch.arange(count, device=state.energy.device) + start) % len(state.energy)
    part = mala.State(*(field[index] for field in state))
    for _ in range(steps):
        part, _ = mala.step(part, target, step_size=step_size, generator=generator)
    moved = mala.State(
        *(field.index_copy(0, index, new) for field, new in zip(state, part, strict=True))
    )
    return Population(moved, step_size)
