"""Speed of the parts, in one run: networks, energies, Monte Carlo, one-step sampling.

    python benchmarks/speed.py [--threads 2] [--markdown]

Absolute times depend on the machine and on what else runs; the ratios, all taken in the same run, are
what to quote. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from molsampler import Sampler
from molsampler.errors import InputError
from molsampler.mcmc import adapt, mala, moves
from molsampler.mcmc.convergence import assess
from molsampler.molecule.z_matrix import chart_to_move_in
from molsampler.nn.bodies.egnn import EGNN
from molsampler.nn.linear import linear
from molsampler.reference.dynamics import LangevinReplicas
from molsampler.reference.observables import observables
from molsampler.sampler.store import list_pretrained
from molsampler.systems import get_system
from molsampler.target import System

Row = tuple[str, str, str]


def timed(call: Callable[[], object], *, repeats: int = 5, least: float = 0.2) -> float:
    """Median seconds of a call, after a warm-up, over ``repeats`` batches of at least ``least`` s."""
    call()
    began = time.perf_counter()
    call()
    count = max(1, int(least / max(time.perf_counter() - began, 1e-6)))
    rounds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(count):
            call()
        rounds.append((time.perf_counter() - began) / count)
    return statistics.median(rounds)


class TextbookEGNN(nn.Module):
    """The published EGNN: an edge list, concatenated inputs, gather and scatter-add."""

    def __init__(self, n: int, features: int, width: int, layers: int):
        super().__init__()
        i, j = torch.nonzero(1 - torch.eye(n), as_tuple=True)
        self.n, self.i, self.j = n, i, j
        self.embed = nn.Linear(features, width)
        self.edge = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2 * width + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
            )
            for _ in range(layers)
        )
        self.coordinate = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False))
            for _ in range(layers)
        )
        self.node = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(layers)
        )

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        batch, n, d = x.shape
        offset = (torch.arange(batch) * n)[:, None]
        i, j = (self.i + offset).flatten(), (self.j + offset).flatten()
        start = x = x.reshape(-1, d)
        h = self.embed(features.reshape(batch * n, -1))
        for edge, coordinate, node in zip(self.edge, self.coordinate, self.node, strict=True):
            difference = x[i] - x[j]
            squared = difference.square().sum(-1, keepdim=True)
            message = edge(torch.cat([h[i], h[j], squared], -1))
            step = difference / (torch.sqrt(squared + 1e-8) + 1) * coordinate(message)
            x = x + torch.zeros_like(x).index_add_(0, i, step)
            total = torch.zeros_like(h).index_add_(0, i, message)
            h = h + node(torch.cat([h, total], -1))
        return (x - start).reshape(batch, n, d)


def gemm_rate() -> float:
    """Floating-point operations per second of a large float32 product, by the faster library."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / min(timed(lambda: a @ a), timed(lambda: linear(a, a)))


def network(n: int, batch: int, width: int, rate: float) -> list[Row]:
    """Forward, and forward with backward, of the own and the textbook EGNN with 4 layers."""
    x, features = torch.randn(batch, n, 3), torch.randn(batch, n, 4)
    nets: dict[str, nn.Module] = {"textbook": TextbookEGNN(n, 4, width, 4)}
    for name, unordered in (("dense pairs", False), ("unordered pairs", True)):
        nets[name] = EGNN(
            n, 4, width=width, layers=4, rbf=0, rbf_range=3.0, inverse=False, attention=False,
            unordered=unordered, deep_head=True,
        )  # fmt: skip
    nets["unordered pairs, compiled"] = torch.compile(nets["unordered pairs"], dynamic=False)  # type: ignore[assignment]
    torch.compiler.reset()
    rows, base = [], (0.0, 0.0)
    for name, net in nets.items():

        def forward(net: nn.Module = net) -> Tensor:
            with torch.no_grad():
                out: Tensor = net(x, features)
            return out

        def both(net: nn.Module = net) -> None:
            torch.autograd.backward(net(x, features).square().sum())

        times = (timed(forward, repeats=3), timed(both, repeats=3))
        base = times if name == "textbook" else base
        pairs = n * (n - 1) / (1 if name in ("textbook", "dense pairs") else 2)
        work = (
            3 * 4 * batch * pairs * 2 * 2 * width**2
        )  # two square layers per pair, thrice for training
        rows.append(
            (
                f"EGNN {name}, n={n}, batch {batch}, width {width}",
                f"{1e3 * times[0]:.1f} / {1e3 * times[1]:.1f} ms forward / with backward",
                f"{base[0] / times[0]:.1f}x / {base[1] / times[1]:.1f}x textbook; "
                f"pair layers at {work / times[1] / rate:.0%} of the GEMM rate",
            )
        )
    return rows


def energies(name: str, batch: int) -> list[Row]:
    """Energy and score against autograd of the plain formula and OpenMM's forces."""
    import openmm
    from openmm import unit

    system = get_system(name)
    n, d = system.shape
    x = torch.randn(batch, n, d)
    i, j = torch.triu_indices(n, n, 1)

    def plain(x: Tensor) -> Tensor:
        r = (x[:, i] - x[:, j]).norm(dim=-1)
        if d == 2:
            return ((r - 4) ** 2 * -4 + 0.9 * (r - 4) ** 4).sum(-1)
        return 2 * (r**-12 - 2 * r**-6).sum(-1) + 0.5 * (x - x.mean(1, keepdim=True)).square().sum(
            (1, 2)
        )

    def by_autograd() -> None:
        y = x.clone().requires_grad_(True)
        torch.autograd.grad(plain(y).sum(), y)

    own, auto = timed(lambda: system.energy_and_score(x)), timed(by_autograd)
    rows = [
        (
            f"{name} energy and score, batch {batch}",
            f"{1e6 * own / batch:.2f} us each",
            f"{auto / own:.1f}x autograd of the plain formula",
        )
    ]
    twin, _ = system.openmm_twin()
    frame = torch.nn.functional.pad(x[0], (0, 3 - d)).double().numpy() * system.length_nm
    for platform_name in ("Reference", "CPU"):
        context = openmm.Context(
            twin, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName(platform_name)
        )

        def forces(context: openmm.Context = context) -> None:
            context.setPositions(frame * unit.nanometer)
            context.getState(energy=True, forces=True).getForces(asNumpy=True)

        one = timed(forces)
        rows.append(
            (
                f"{name} OpenMM {platform_name}, one at a time",
                f"{1e6 * one:.0f} us each",
                f"{one * batch / own:.0f}x the time of the batched energy and score",
            )
        )
    return rows


def sampling(name: str) -> list[Row]:
    """One-step samples per second, beside effective ones of Monte Carlo and OpenMM's Langevin."""
    sampler = Sampler.load(name)
    count = 8192 if sampler.chart.internal is None else 1024
    samples = sampler.sample(count, seed=0, device="cpu")
    one_step = count / timed(lambda: sampler.sample(count, seed=0, device="cpu"), repeats=3)
    rows = [(f"{name} one-step samples", f"{one_step:,.0f} /s", "independent")]
    # A molecule's bonds and slow torsions need longer walks than a table of speeds can wait for.
    if sampler.chart.internal is not None:
        return rows
    walks = {"Monte Carlo": monte_carlo(sampler.system, samples.positions)}
    with contextlib.suppress(InputError):  # no OpenMM twin
        walks["OpenMM Langevin"] = langevin(sampler.system, samples.positions)
    training = sampler.card.training
    for walk, (steps, inefficiency) in walks.items():
        rate = steps / inefficiency
        note = f"one-step is {one_step / rate:.2f}x, start and burn-in of the walk not counted"
        if training is not None and one_step > rate:
            even = training.cost.seconds / (1 / rate - 1 / one_step)
            note += f"; training time repaid after {even:.1e} samples"
        rows.append(
            (
                f"{name} {walk}, effective samples",
                f"{rate:,.0f} /s ({steps:,.0f} steps/s, inefficiency {inefficiency:,.0f})",
                note,
            )
        )
    return rows


def inefficiency_of(system: System, frames: list[Tensor], stride: int) -> float:
    """Steps per independent sample of the slowest observable, from frames ``(chains, n, d)``.

    Chains too short to leave a mode make it too small.
    """
    series = [observables(system, x) for x in frames]
    traces = {key: torch.stack([each[key] for each in series], dim=1).numpy() for key in series[0]}
    return stride * assess(traces).statistical_inefficiency


def monte_carlo(system: System, x: Tensor) -> tuple[float, float]:
    """Energy evaluations per second over 4,096 chains at once, and those per independent sample over 128.

    Identical particles move by trajectories, others by MALA, a molecule in internal coordinates.
    """
    rng = torch.Generator().manual_seed(0)
    chart = chart_to_move_in(system)
    state, adaptation = adapt.tuned(
        mala.init(chart.coordinates(x[:4096].double()), chart.target),
        chart.target,
        steps=200,
        step_size=1e-2,
        generator=rng,
    )

    leaps = moves.usual(chart.target.space)

    def step(state: mala.State) -> mala.State:
        return moves.step(
            state,
            chart.target,
            step_size=float(adaptation.step_size),
            generator=rng,
            scale=adaptation.scale,
            leapfrog_steps=leaps,
        )[0]

    seconds = timed(lambda: step(state), repeats=3)
    rate = leaps * len(state.energy) / seconds
    state, frames = mala.init(state.position[:128], chart.target), []
    stride = max(10 // leaps, 1)
    for k in range(1000 * stride):
        state = step(state)
        if k % stride == 0:
            frames.append(chart.positions(state.position))
    return rate, inefficiency_of(system, frames, leaps * stride)


def langevin(system: System, x: Tensor) -> tuple[float, float]:
    """Steps per second of OpenMM's Langevin integrator over 32 replicas, and their inefficiency."""
    replicas = LangevinReplicas(system, x[:32].double(), generator=torch.Generator().manual_seed(0))
    frames, stride = [], 20
    began = time.perf_counter()
    for _ in range(1000):
        replicas.advance(stride)
        frames.append(replicas.read()[0])
    rate = 1000 * stride * replicas.replicas / (time.perf_counter() - began)
    return rate, inefficiency_of(system, frames, stride)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rate = gemm_rate()
    rows: list[Row] = [
        (
            "machine",
            f"{platform.machine()}, {options.threads} thread(s)",
            f"GEMM {rate / 1e9:.0f} GFLOP/s",
        )
    ]
    for n, batch, width in (
        (13, 256, 64), (13, 256, 128), (13, 32, 64), (13, 1024, 64), (38, 32, 64), (55, 32, 64),
    ):  # fmt: skip
        rows += network(n, batch, width, rate)
    for name in ("dw4", "lj13", "lj55"):
        rows += energies(name, 1024)
    for name in list_pretrained():
        rows += sampling(name)
    for row in rows:
        print(
            "| " + " | ".join(row) + " |"
            if options.markdown
            else f"{row[0]:46s} {row[1]:46s} {row[2]}"
        )


if __name__ == "__main__":
    main()
