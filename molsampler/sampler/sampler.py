"""A trained sampler, loaded from its artifact."""

from __future__ import annotations

import copy
import logging
import math
import numbers
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import memory, notebook
from ..errors import FileFormatError, InputError, ResourceError, ShapeError
from ..molecule.chart import Chart, chart_of
from ..nn.generators import Generator
from ..samples import Samples
from ..target import System, check_positions
from ..temperatures import TemperatureRange, seed_at
from ..verbs import VERBS
from .card import CARD, Card, read_card
from .store import PRETRAINED, build, check_folder, locate, read_weights
from .stream import SampleStream, Source

if TYPE_CHECKING:
    from typing import Self

_log = logging.getLogger(__name__)

_RANGED = "one of a range comes from molsampler train SYSTEM RUN_DIR --temperature LO:HI"

#: Samples handed on at a time by default.
BATCH = 8192


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise InputError(f"{name} must be an integer from {low} to {high}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; CUDA where there is one, else the CPU, for None.

    Raises
    ------
    InputError
        It is neither ``cpu`` nor a CUDA device.
    ResourceError
        This machine does not have it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}") from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"device {device!r} was asked for and this torch sees {torch.cuda.device_count()} CUDA "
            "device(s); use device='cpu'"
        )
    return chosen


def _same_but_for_temperature(card: Card, system: System | str | None) -> bool:
    """Whether a system is that of a card once it is at its default temperature."""
    if not isinstance(system, System):
        return False
    try:
        moved = system.at(system.default_temperature)
        VERBS["resolve_recorded"](card.system, given=moved)
    except InputError:
        return False
    return True


class _AtTemperature:
    """What a stream needs to know of a sampler of a range, at one temperature of it."""

    def __init__(self, sampler: Sampler, temperature: float):
        self.hash, self.path = sampler.hash, sampler.path
        self.system: System = sampler.system.at(temperature)
        # What samples record of their system.
        bounds = sampler.card.bounds_at(temperature)
        self.card = sampler.card.model_copy(
            update={"system": self.system.record(), "energy_bounds": bounds}
        )
        self.chart: Chart = chart_of(self.system, sampler.card.coordinates)
        self._sampler, self._temperature = sampler, temperature

    def generator(self, device: torch.device) -> Generator:
        return self._sampler.generator(device).at(self._temperature)

    def noise_seed(self, seed: int) -> int:
        return seed_at(seed, self._temperature)


class Sampler:
    """A frozen one-step sampler: generator, system and card.

    Attributes
    ----------
    card : what the artifact says of itself
    system : the system it samples
    chart : the coordinates in which the generator works, and the density there
    path : the folder it was loaded from
    hash : SHA-256 of the card, which holds that of the weights; it identifies the artifact
    """

    def __init__(self, card: Card, system: System, generator: Generator, path: Path, hash: str):
        self.card = card
        self.system = system
        self.path = path
        self.hash = hash
        self._generators = {torch.device("cpu"): generator}
        self.chart = chart_of(system, card.coordinates)
        self._warned = False

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str], *, system: System | str | None = None
    ) -> Self:
        """Load a shipped sampler by name, or an artifact folder by path; never from the network.

        A shipped name takes precedence; write ``./lj13`` for a folder of that name. ``system`` is
        needed for artifacts of systems that are not registered.

        Raises
        ------
        UnknownNameError
            There is neither a shipped sampler nor a folder of that name.
        IntegrityError
            The weights do not have the SHA-256 of the card.
        FileFormatError
            The folder holds a pickle or a link, or card and weights are malformed or do not fit.
        InputError
            The card is of an OpenMM system, and ``system`` is missing or another one.
        """
        path = locate(name_or_path)
        check_folder(path)
        card, digest = read_card(path / CARD)
        try:
            known: System = VERBS["resolve_recorded"](card.system, given=system, source=path)
        except InputError as error:
            if card.temperatures is None or not _same_but_for_temperature(card, system):
                raise
            raise InputError(
                f"{error}. It draws at temperatures from {card.temperatures}: give the system as it is, and "
                "temperature= (--temperature) for that of the samples"
            ) from None
        if tuple(card.shape) != tuple(known.shape):
            raise FileFormatError(
                f"{path / CARD} says shape {tuple(card.shape)}, system {known.name!r} has "
                f"{tuple(known.shape)}"
            )
        weights = read_weights(path, card.weights_sha256)
        try:
            generator = build(card, known, weights)
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from None
        return cls(card, known, generator, path, digest)

    def __repr__(self) -> str:
        kind = self.card.architecture.get("kind")
        return (
            f"<Sampler of {self.system.name!r} shape={self.system.shape} kind={kind!r} "
            f"{self.hash[:12]}>"
        )

    def _repr_html_(self) -> str:
        card, generator = self.card, self.generator(torch.device("cpu"))
        weights = sum(p.numel() for p in generator.parameters())
        facts = [
            ("generator", f"{card.architecture.get('kind')}, {weights:,} parameters"),
            ("configurations", " × ".join(map(str, self.system.shape))),
            ("coordinates", "positions" if card.coordinates is None else "internal"),
            ("temperature", self._own if self.temperatures is None else str(self.temperatures)),
            ("energy evaluations a sample", str(generator.evaluations_per_sample)),
        ]
        if (training := card.training) is not None:
            cost = training.cost
            facts.append(
                (
                    "training",
                    f"{cost.energy_evaluations:.3g} energy evaluations in {cost.seconds / 60:.0f} min, "
                    f"seed {training.seed}",
                )
            )
        if card.verdict is not None:
            facts.append(("verdict", str(card.verdict)))
        facts += [("artifact", str(self.path)), ("hash", self.hash[:12])]
        return notebook.card(f"Sampler of {self.system.name}", facts)

    @property
    def temperatures(self) -> TemperatureRange | None:
        """The range of temperatures at any of which it can be sampled, None for a sampler of one."""
        return self.card.temperatures

    @property
    def _called(self) -> str:
        """The sampler by its name, if it ships, else by where it is."""
        return f"the sampler {self.path.name if self.path.parent == PRETRAINED else self.path}"

    def require_range(self) -> TemperatureRange:
        """The range of temperatures.

        Raises
        ------
        InputError
            The sampler is one of a single temperature.
        """
        if self.temperatures is None:
            raise InputError(
                f"{self._called} is one of a single temperature, {self._own}; {_RANGED}"
            )
        return self.temperatures

    @property
    def _own(self) -> str:
        """The system's own temperature, in words."""
        return f"{self.system.temperature:g}{' K' if self.system.in_kelvin else ''}"

    def _at(self, temperature: float | None) -> Source:
        """What is drawn from: this sampler, at a temperature where it has a range of them."""
        if self.temperatures is None:
            if temperature is not None and not (
                _is_number(temperature)
                and math.isclose(temperature, self.system.temperature, rel_tol=1e-6)
            ):
                raise InputError(
                    f"temperature={temperature!r} was asked for, and {self._called} is one of a "
                    f"single temperature, {self._own}; {_RANGED}"
                )
            return self
        chosen = self.system.temperature if temperature is None else temperature
        unit = " K" if self.system.in_kelvin else ""
        if not _is_number(chosen) or chosen not in self.temperatures:
            asked = (
                f"the system's own one, {self._own}, is not among them; pass temperature= (--temperature)"
                if temperature is None
                else f"got temperature={temperature!r}"
            )
            raise InputError(
                f"{self._called} draws at temperatures from {self.temperatures}{unit}, and {asked}"
            )
        return _AtTemperature(self, float(chosen))

    def describe(self) -> dict[str, Any]:
        """The card, path, hash, parameter count and energy evaluations of a sample, as a JSON object."""
        generator = self.generator(torch.device("cpu"))
        return {
            "path": str(self.path),
            "hash": self.hash,
            "parameters": sum(p.numel() for p in generator.parameters()),
            "evaluations_per_sample": generator.evaluations_per_sample,
            **self.card.model_dump(mode="json"),
        }

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        refine: int = 0,
        anneal: int = 1,
        relax: int = 0,
        steps: int | None = None,
        temperature: float | None = None,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        progress: bool | Callable[[int], None] = False,
    ) -> Samples:
        """Draw ``n`` samples; the same seed, device and version give the same samples, bit for bit, and other
        ones at every temperature.

        Nor do they change with ``batch_size`` or with ``n``, as far as both go. ``refine`` is a
        number of MALA steps on the exact target, at a step size adapted on a pilot run and then
        frozen; the metadata then holds ``acceptance``, ``step_size`` and ``drift``, the energy-W2
        between the samples before and after. Samples of non-finite energy are kept, and counted as
        ``nonfinite_energies``. Molecules with chiral centres come out right-handed: wrong ones are
        inverted as a whole, which is exact (see :mod:`molsampler.molecule.chirality`), and ``handedness``
        counts them before and after. ``device`` None is CUDA where there is one. ``progress`` shows a bar in
        notebooks and terminals, or is a function called with the number of samples done. A sampler that its
        training called not usable says so in a warning of the log. ``temperature`` is one of the range that
        the card states, by default the system's own; energies are those at it, and the samples record it.
        ``anneal`` is for generators that know their density: weights are evened out by annealing of so many
        levels, each an energy evaluation a sample, and stay exact (:mod:`molsampler.nn.generators.density`).
        ``relax`` is for one-step samplers that end in Langevin layers: so many kinetic ones more, each an
        energy evaluation a sample, bring samples nearer to equilibrium
        (:mod:`molsampler.nn.generators.implicit`). ``steps`` is for generators of many steps: so many instead
        of their own, a pass of the network each; the more, the less weights vary, and they are exact with any
        number (:mod:`molsampler.nn.generators.diffusion`).

        Raises
        ------
        InputError
            ``n``, ``seed``, ``refine``, ``anneal``, ``relax``, ``steps``, ``device`` or ``batch_size`` is out
            of range, or ``temperature`` is outside that of the sampler, or none is given and the system's own
            is; or the generator does not know its density and was to be annealed, has no Langevin layers and
            was to be relaxed, or takes no steps and was given a number of them.
        ResourceError
            The device is absent, or the samples would not fit in memory: use :meth:`stream` or
            :meth:`sample_to_file`.
        DivergenceError
            The generator gave coordinates that are not finite.
        """
        stream = self.stream(
            n,
            seed=seed,
            refine=refine,
            anneal=anneal,
            relax=relax,
            steps=steps,
            temperature=temperature,
            device=device,
            batch_size=batch_size,
        )
        particles, dimension = self.system.shape
        # Positions and energies, and a block's worth of copies.
        memory.require(
            n * (4 * particles * dimension + 8),
            purpose=f"holding {n} samples of {particles} x {dimension}",
            remedy="write them to a file as they come with Sampler.sample_to_file(path, n)",
        )
        positions = torch.empty(n, particles, dimension)
        energies = torch.empty(n, dtype=torch.float64)
        weights: list[Tensor] = []
        done = 0
        with self._told(progress, n) as tell:
            for block in stream.blocks():
                positions[done : done + len(block)] = block.positions
                energies[done : done + len(block)] = block.energies
                weights += [] if block.log_weights is None else [block.log_weights]
                done += len(block)
                tell(done)
        return Samples(
            positions, energies, torch.cat(weights) if weights else None, stream.metadata()
        )

    def log_prob(self, x: Any, *, temperature: float | None = None) -> Tensor:
        """Log density ``(b,)`` float64 under the sampler at positions ``(b, n, d)``, of the measure to which
        its weights refer (:mod:`molsampler.molecule.chart`): ``-system.energy(x) - log_prob(x)`` is the log
        weight of x. Of a molecule in internal coordinates x may stand and be turned anyhow. ``temperature``
        is one of the range of a sampler that has one, by default the system's own; energies are then those
        of ``system.at(temperature)``.

        Raises
        ------
        InputError
            The generator does not know its density, or ``temperature`` is outside the range.
        ShapeError, NonFiniteError
            See :func:`molsampler.target.check_positions`.
        """
        x = check_positions(x, self.system.shape)
        if x.dim() != 3:
            raise ShapeError(
                f"x must have shape (b, {x.shape[-2]}, {x.shape[-1]}), got {tuple(x.shape)}"
            )
        generator, chart = self._at(temperature).generator(torch.device("cpu")), self.chart
        parts = []
        with torch.no_grad():
            for part in x.detach().to("cpu", torch.float64).split(BATCH):
                q = chart.coordinates(self.system.space.project(part))
                log_prob = generator.log_prob(q.float()).double()
                parts.append(log_prob - chart.log_volume(q))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def stream(
        self,
        n: int,
        *,
        seed: int = 0,
        refine: int = 0,
        anneal: int = 1,
        relax: int = 0,
        steps: int | None = None,
        temperature: float | None = None,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        blocks: slice | None = None,
    ) -> SampleStream:
        """The samples of :meth:`sample` as a stream of blocks, in memory that does not grow with n.

        ``batch_size`` is the number of samples handed on at a time, rounded up to whole internal
        blocks; it never changes a sample. ``blocks`` picks internal blocks of the run of ``n`` samples,
        ``slice(A, B)`` counted from zero: the rows are those that the whole run has there. An end beyond the
        last block means the last one.

        Raises
        ------
        InputError, ResourceError
            See :meth:`sample`; or ``blocks`` picks none.
        """
        source = self._at(temperature)
        self._warn()
        return SampleStream(
            source,
            _integer("n", n, 1, 2**40),
            seed=_integer("seed", seed, 0, 2**63 - 1),
            refine=_integer("refine", refine, 0, 10**9),
            anneal=_integer("anneal", anneal, 1, 10_000),
            relax=_integer("relax", relax, 0, 5000),
            steps=None if steps is None else _integer("steps", steps, 2, 100_000),
            device=check_device(device),
            batch_size=_integer(
                "batch_size", BATCH if batch_size is None else batch_size, 1, 2**31
            ),
            blocks=blocks,
        )

    @contextmanager
    def _told(
        self, progress: bool | Callable[[int], None], n: int
    ) -> Iterator[Callable[[int], None]]:
        """What is called with the number of samples done."""
        if callable(progress):
            yield progress
            return
        if not isinstance(progress, bool):
            raise InputError(f"progress must be True, False or a function, got {progress!r}")
        if not progress:
            yield lambda done: None
            return
        from rich.progress import Progress

        with Progress() as bars:
            bar = bars.add_task(f"sampling {self.system.name}", total=n)
            yield lambda done: bars.update(bar, completed=done)

    def _warn(self) -> None:
        """Say once what training said of a sampler that is not usable."""
        verdict = self.card.verdict
        if verdict is not None and not verdict.usable and not self._warned:
            self._warned = True
            _log.warning("%s is %s", self._called, verdict)

    def sample_to_file(
        self,
        path: Path | str,
        n: int,
        *,
        seed: int = 0,
        refine: int = 0,
        anneal: int = 1,
        relax: int = 0,
        steps: int | None = None,
        temperature: float | None = None,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        blocks: slice | None = None,
        overwrite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Write the samples of :meth:`sample` to a file as they come; return their metadata.

        ``progress`` is called with the number of samples done. ``blocks`` picks a part of the run, as in
        :meth:`stream`; the file is then an ``.npz`` that :func:`molsampler.export.parts.merge` joins with the
        others.

        Raises
        ------
        InputError, ResourceError, DivergenceError
            See :meth:`sample`.
        OutputExistsError, StorageError
            See :func:`molsampler.export.save`.
        """
        stream = self.stream(
            n,
            seed=seed,
            refine=refine,
            anneal=anneal,
            relax=relax,
            steps=steps,
            temperature=temperature,
            device=device,
            batch_size=batch_size,
            blocks=blocks,
        )

        def reported() -> Iterator[Samples]:
            done = 0
            for block in stream.blocks():
                yield block
                done += len(block)
                if progress is not None:
                    progress(done)

        VERBS["save_stream"](stream, reported(), path, overwrite=overwrite)
        return stream.metadata()

    def generator(self, device: torch.device) -> Generator:
        """The generator on a device."""
        if device not in self._generators:
            original = self._generators[torch.device("cpu")]
            self._generators[device] = copy.deepcopy(original).to(device)
        return self._generators[device]

    def noise_seed(self, seed: int) -> int:
        """The seed of the streams of a run of ``seed``: another one at another temperature of the system."""
        own = self.system.temperature
        return seed if own == self.system.default_temperature else seed_at(seed, own)
