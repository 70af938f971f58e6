r"""Samples of a trained sampler as a stream of blocks.

Samples do not depend on how many are asked for. They are computed in blocks of a size fixed by the
sampler (:func:`block_size`), always whole, the last one cut; block :math:`i` draws from a
generator of its own, seeded by :func:`block_seed` ``(seed, i)``. The first 1,000 of 10,000 samples are
therefore the same bits as 1,000 samples asked for alone, and a range of blocks is the same bits wherever it
is computed. On a CPU, blocks are computed by as many threads as torch has, one block per thread, which
scales better than sharing every operation.
"""

from __future__ import annotations

import collections.abc
import hashlib
import struct
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import DivergenceError, InputError, ResourceError
from ..mcmc import mala
from ..mcmc.refine import FIRST_STEP, Tuning, refine, tuned
from ..molecule.chart import Chart
from ..molecule.chirality import right_handed
from ..nn.generators import Generator
from ..samples import Samples, reduced_energies
from ..target import COORDINATE_LIMIT, System
from ..version import __version__
from .card import Card
from .tally import DRIFT_SAMPLES, Part, Tally

#: Steps and chains of the pilot run that settles the step size of ``refine``.
PILOT_STEPS = 100
PILOT_CHAINS = 512

#: Blocks of further draws, at most, that take the places of draws out of bounds.
_REDRAWS = 4


def _mix32(value: int) -> int:
    """The finaliser of MurmurHash3 (Appleby, public domain): a bijection of 32-bit integers."""
    value ^= value >> 16
    value = value * 0x85EBCA6B & 0xFFFFFFFF
    value ^= value >> 13
    value = value * 0xC2B2AE35 & 0xFFFFFFFF
    return value ^ value >> 16


def block_seed(seed: int, index: int) -> int:
    """Seed of the random generator of block ``index``; index 0 is the pilot run's.

    torch's CPU generator looks at the low 32 bits of a seed only. For one ``seed`` these are a
    bijection of ``index``, so no two blocks of a run share their noise; a plain hash would repeat a
    block after some 2^16. The high bits, which CUDA uses too, depend on ``seed``.
    """
    digest = hashlib.sha256(struct.pack("<Q", seed)).digest()
    before, after, high = struct.unpack("<III", digest[:12])
    low = _mix32((_mix32(index ^ before) + after) & 0xFFFFFFFF)
    return int(high << 32 | low)


def block_size(particles: int, at_once: int = 1024) -> int:
    """Samples computed at once: a power of two that bounds pairwise tensors, fixed by the sampler, of which
    ``at_once`` is what its generator asks for."""
    size = min(1024, at_once)
    while size > 16 and size * particles**2 > 2**18:
        size //= 2
    return size


def block_range(blocks: slice | None, total: int) -> range:
    """The blocks of a half-open slice of ``total``, counted from zero; its end may lie beyond the last.

    Raises
    ------
    InputError
        There are none in it, or it has a step or a negative end.
    """
    if blocks is None:
        return range(total)
    ends = [end for end in (blocks.start, blocks.stop) if end is not None]
    if blocks.step is not None or not all(isinstance(end, int) and end >= 0 for end in ends):
        raise InputError(
            f"blocks must be a slice A:B of numbers from 0, without a step, got {blocks}"
        )
    chosen = range(total)[blocks]
    if not chosen:
        text = ":".join("" if end is None else str(end) for end in (blocks.start, blocks.stop))
        raise InputError(f"blocks {text} are none of the {total:,} blocks of this run, 0:{total}")
    return chosen


class Source(Protocol):
    """What a stream needs to know of the sampler that it is drawn from."""

    system: System
    chart: Chart
    card: Card
    hash: str
    path: Path

    def generator(self, device: torch.device) -> Generator:
        """The generator on a device."""

    def noise_seed(self, seed: int) -> int:
        """The seed of the streams of a run of ``seed``: another one at every temperature."""


@dataclass
class _Block:
    """Samples of one block that were asked for, and what was counted on the way."""

    positions: Tensor
    energies: Tensor
    evaluations: int
    redrawn: int
    accepted: int
    handed: tuple[int, int, int]
    """Molecules with chiral centres; of the wrong hand before and after inversion."""
    before: Tensor | None
    """Energies before refinement, where the drift is measured."""
    log_weights: Tensor | None
    """Log weights, where the generator knows its density; refinement keeps them."""


class SampleStream:
    """Samples in blocks, with the statistics of the run so far; see :meth:`Sampler.stream`.

    Attributes
    ----------
    n : samples of the whole run
    count : samples of this stream, fewer where it is a part of the run
    """

    def __init__(
        self,
        sampler: Source,
        n: int,
        *,
        seed: int,
        refine: int,
        device: torch.device,
        batch_size: int,
        anneal: int = 1,
        relax: int = 0,
        steps: int | None = None,
        blocks: slice | None = None,
    ):
        self.sampler = sampler
        self.n = n
        self.seed = seed
        self._noise = sampler.noise_seed(seed)
        self.refine = refine
        self.device = device
        network = sampler.generator(device)
        self.block = block_size(sampler.system.shape[0], network.at_once)
        self.batch = -(-batch_size // self.block) * self.block
        if -(-n // self.block) >= 2**32:
            raise InputError(f"n must be below {self.block * (2**32 - 1)}, got {n}")
        self._range = block_range(blocks, -(-n // self.block))
        self._part = blocks is not None
        self.count = min(self._range.stop * self.block, n) - self._range.start * self.block
        self.anneal = anneal
        self._network = network if anneal == 1 else network.annealed(anneal)
        self.steps = steps
        if steps is not None:
            self._network = self._network.stepped(steps)
        self.relax = relax
        if relax:
            longer = self._network.relaxed(relax)
            if longer is None:
                raise InputError(
                    f"a generator of kind {network.config.kind} has no Langevin layers that kinetic ones "
                    "could follow: leave out relax"
                )
            self._network = longer
        # Refined samples have been repaired; weights are those of all draws.
        bounds = None if refine or network.config.weighted else sampler.card.energy_bounds
        self._bounds = bounds if isinstance(bounds, tuple) else None
        self._tally = Tally()
        self._tuning = Tuning(FIRST_STEP)
        self._seconds = 0.0

    @property
    def partial(self) -> bool:
        """Whether a range of blocks was asked for, however large."""
        return self._part

    @property
    def system(self) -> System:
        """The system of the samples, at their temperature."""
        return self.sampler.system

    def blocks(self) -> Iterator[Samples]:
        """The samples, ``batch_size`` at a time; their metadata holds what is known beforehand."""
        batch: list[_Block] = []
        done = held = 0
        started = time.perf_counter()
        with closing(self._computed()) as computed:
            for block in computed:
                self._count(block)
                batch.append(block)
                held += len(block.energies)
                done += len(block.energies)
                if held >= self.batch or done == self.count:
                    samples = Samples(
                        torch.cat([block.positions for block in batch]),
                        torch.cat([block.energies for block in batch]),
                        _joined([block.log_weights for block in batch]),
                        self._provenance(),
                    )
                    batch, held = [], 0
                    self._seconds += time.perf_counter() - started
                    yield samples
                    started = time.perf_counter()

    def metadata(self) -> dict[str, Any]:
        """Provenance and what was measured on the samples given out so far."""
        return {**self.record(), "seconds": round(self._seconds, 3)}

    def record(self) -> dict[str, Any]:
        """:meth:`metadata` without times, for files: the same samples make the same file."""
        result = {**self._provenance(), **self._tally.record()}
        if self._part:
            tally = self._tally
            result["part"] = Part(
                of=self.n,
                block_size=self.block,
                blocks=(self._range.start, self._range.stop),
                pilot_evaluations=tally.pilot,
                accepted=tally.accepted,
                moves=tally.moves,
            ).model_dump(mode="json")
        return result

    def unrefined_energies(self) -> Tensor:
        """Energies ``(k,)`` float64 before refinement of those samples given out so far that are among the
        first ``DRIFT_SAMPLES`` of the run: what the drift of the whole needs of a part."""
        return torch.cat([torch.zeros(0, dtype=torch.float64), *self._tally.before])

    def _provenance(self) -> dict[str, Any]:
        training = self.sampler.card.training
        spent = (
            {}
            if training is None
            else {"training_energy_evaluations": training.cost.energy_evaluations}
        )
        annealed = {} if self.anneal == 1 else {"anneal": self.anneal}
        relaxed = {"relax": self.relax} if self.relax else {}
        stepped = {} if self.steps is None else {"steps": self.steps}
        return {
            **spent,
            **annealed,
            **relaxed,
            **stepped,
            "system": self.sampler.card.system,
            "coordinates": "cartesian" if self.sampler.card.coordinates is None else "internal",
            "artifact_hash": self.sampler.hash,
            "weights_sha256": self.sampler.card.weights_sha256,
            "seed": self.seed,
            "refine": self.refine,
            "device": self.device.type,
            "version": __version__,
            "torch_version": str(torch.__version__),
        }

    def _computed(self) -> collections.abc.Generator[_Block, None, None]:
        """All blocks in their order, by as many threads as there are where the system allows it."""
        if self.refine and self._tally.step_size is None:
            self._tuning = self._pilot()
            self._tally.step_size = self._tuning.step_size
        indices = range(self._range.start + 1, self._range.stop + 1)
        threads = torch.get_num_threads()
        shared = self.device.type == "cpu" and self.sampler.system.concurrent
        if not shared or threads == 1:
            yield from map(self._compute, indices)
            return
        waiting: deque[Future[_Block]] = deque()
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for index in indices:
                # One more than can be computed at once, so that no thread waits for the consumer.
                if len(waiting) > threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(self._compute, index))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            # Part of the setting is the process's, not the thread's.
            torch.set_num_threads(threads)

    def _count(self, block: _Block) -> None:
        tally = self._tally
        tally.evaluations += block.evaluations
        tally.nonfinite += int((~torch.isfinite(block.energies)).sum())
        if self._bounds is not None:
            tally.redrawn = (tally.redrawn or 0) + block.redrawn
        tally.accepted += block.accepted
        tally.moves += self.block * self.refine
        tally.handed = tuple(a + b for a, b in zip(tally.handed, block.handed, strict=True))
        if block.before is not None:
            tally.before.append(block.before)
            tally.after.append(block.energies)

    def _random(self, index: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(block_seed(self._noise, index))

    def _compute(self, index: int) -> _Block:
        """Block ``index``, on the CPU; changes nothing of the stream."""
        start = (index - 1) * self.block
        kept = min(self.block, self.n - start)
        system, chart = self.sampler.system, self.sampler.chart
        try:
            with torch.no_grad():
                random = self._random(index)
                x, evaluations, weights, handed = self._draw(random, kept)
                redrawn, accepted, before = 0, 0, None
                if self._bounds is not None:
                    x, redrawn, more = self._within(x, self._bounds, random, kept)
                    evaluations += more
                if self.refine:
                    if start < DRIFT_SAMPLES:
                        before = reduced_energies(system, chart.positions(x[:kept])).cpu()
                        evaluations += kept
                    # float64: near a wall a float32 energy difference is too coarse for the
                    # Metropolis test.
                    refined = refine(
                        mala.init(x.double(), chart.target),
                        chart.target,
                        steps=self.refine,
                        tuning=self._tuning,
                        generator=random,
                    )
                    x, accepted = refined.state.position.float(), int(refined.accepted)
                    evaluations += self.block * (self.refine + 1)
                x = chart.oriented(chart.positions(x), generator=random).float()
                energies = reduced_energies(system, x).cpu()[:kept]
                evaluations += self.block
        except torch.cuda.OutOfMemoryError as error:
            raise ResourceError(
                f"the device ran out of memory on a block of {self.block} samples, a size that "
                f"batch_size does not change; free device memory or use device='cpu' ({error})"
            ) from None
        kept_weights = None if weights is None else weights[:kept].double().cpu()
        return _Block(
            x[:kept].cpu(), energies, evaluations, redrawn, accepted, handed, before, kept_weights
        )

    def _draw(
        self, random: torch.Generator, kept: int = 0
    ) -> tuple[Tensor, int, Tensor | None, tuple[int, int, int]]:
        """A whole block from the generator, float32, of the right hand; energy evaluations, log weights;
        and how many of the first ``kept`` are handed, and were wrong before and after inversion."""
        network, sampler = self._network, self.sampler
        x, weights, evaluations = network.draw(self.block, sampler.chart.target, generator=random)
        bad = ~(x.abs() <= COORDINATE_LIMIT).flatten(1).all(-1)
        if bool(bad.any()):
            raise DivergenceError(
                f"the generator of {sampler.path} gave unusable coordinates in "
                f"{int(bad.sum())} of {self.block} samples (seed {self.seed})"
            )
        if weights is not None:
            weights = weights + sampler.chart.log_constant
        molecule = sampler.card.molecule
        if molecule is None or not molecule.chiral_centres or not network.mirror_symmetric:
            return x.float(), evaluations, weights, (0, 0, 0)
        x, before, after = right_handed(x, molecule.chiral_centres)
        wrong = (int((before[:kept] > 0).sum()), int((after[:kept] > 0).sum()))
        return x.float(), evaluations, weights, (kept, *wrong)

    def _within(
        self, x: Tensor, bounds: tuple[float, float], random: torch.Generator, kept: int
    ) -> tuple[Tensor, int, int]:
        """The block with draws of energies out of bounds replaced by others; how many of the first ``kept``
        were, and the energy evaluations spent."""
        target, (low, high) = self.sampler.chart.target, bounds

        def sound(x: Tensor) -> Tensor:
            energy, _ = target.energy_and_score(x.double())
            return (energy >= low) & (energy <= high)

        good, evaluations = sound(x), len(x)
        redrawn = int((~good[:kept]).sum())
        for _ in range(_REDRAWS):
            if bool(good.all()):
                break
            others, spent, *_ = self._draw(random)
            others = others[sound(others)]
            evaluations += spent + self.block
            wanted = (~good).nonzero()[: len(others), 0]
            x[wanted] = others[: len(wanted)]
            good[wanted] = True
        return x, redrawn, evaluations

    def _pilot(self) -> Tuning:
        """The kernel of refinement, from a block of its own; independent of n."""
        target, random = self.sampler.chart.target, self._random(0)
        with torch.no_grad():
            x, evaluations, *_ = self._draw(random)
            tuning = tuned(x[:PILOT_CHAINS].double(), target, steps=PILOT_STEPS, generator=random)
        chains = min(self.block, PILOT_CHAINS)
        self._tally.pilot = evaluations + chains * (PILOT_STEPS + 1)
        return tuning


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None
