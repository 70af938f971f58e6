"""Laws that hold for whatever is put in: shapes, projection, equivariance, round trips, metrics."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from toy_systems import Cluster

from molsampler import export
from molsampler.analysis.energies import total_variation, trimmed_wasserstein2, wasserstein2_1d
from molsampler.analysis.transport import wasserstein2
from molsampler.errors import NonFiniteError, ShapeError
from molsampler.nn.generators.implicit import ImplicitConfig, Latent
from molsampler.samples import Samples
from molsampler.space import Euclidean, MeanFree
from molsampler.systems import get_system

settings.register_profile("laws", deadline=None, derandomize=True, database=None, max_examples=25)
LAWS = settings.get_profile("laws")

batches = st.lists(st.integers(0, 3), max_size=3).map(tuple)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from([torch.float32, torch.float64])
systems = st.sampled_from(["dw4", "lj13", "lj3", "mog40", "mw32"])


def positions(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def orthogonal(d: int, seed: int) -> Tensor:
    """A rotation or a reflection."""
    return torch.linalg.qr(positions((d, d), seed))[0]


@settings(LAWS)
@given(name=systems, batch=batches, seed=seeds, dtype=dtypes)
def test_shape_and_dtype_follow_the_positions(
    name: str, batch: tuple[int, ...], seed: int, dtype: torch.dtype
) -> None:
    system = get_system(name)
    x = positions((*batch, *system.shape), seed, dtype)
    energy, score = system.energy_and_score(x)
    assert energy.shape == batch
    assert score.shape == x.shape
    assert energy.dtype == score.dtype == dtype
    flat, _ = system.energy_and_score(x.reshape(-1, *system.shape))
    assert torch.equal(flat.reshape(batch), energy)


@settings(LAWS)
@given(name=systems, shape=st.lists(st.integers(0, 5), max_size=4).map(tuple))
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    system = get_system(name)
    if shape[-2:] == system.shape:
        return
    with pytest.raises(ShapeError):
        system.energy(torch.zeros(shape))


@settings(LAWS)
@given(
    name=systems,
    seed=seeds,
    where=st.integers(0, 10**6),
    value=st.sampled_from([math.nan, math.inf, -math.inf, 1e20, -1e7]),
)
def test_one_unusable_coordinate_is_named(name: str, seed: int, where: int, value: float) -> None:
    system = get_system(name)
    x = positions((3, *system.shape), seed)
    where %= x.numel()
    x.view(-1)[where] = value
    row, particle = where // x[0].numel(), where % x[0].numel() // x.shape[-1]
    with pytest.raises(NonFiniteError, match=f"row {row}, particle {particle},"):
        system.energy_and_score(x)


@settings(LAWS)
@given(n=st.integers(1, 6), d=st.integers(1, 4), batch=batches, seed=seeds)
def test_projection_is_one(n: int, d: int, batch: tuple[int, ...], seed: int) -> None:
    """P is linear, idempotent and self-adjoint, and its image has ``dof`` dimensions."""
    for space in (Euclidean(n, d), MeanFree(n, d)):
        x, y = positions((*batch, n, d), seed), positions((*batch, n, d), seed + 1)
        once = space.project(x)
        torch.testing.assert_close(space.project(once), once)
        torch.testing.assert_close(space.project(2 * x + y), 2 * once + space.project(y))
        torch.testing.assert_close((once * y).sum(), (x * space.project(y)).sum())
        basis = space.project(torch.eye(n * d, dtype=torch.float64).reshape(-1, n, d))
        assert int(torch.linalg.matrix_rank(basis.flatten(1))) == space.dof


@settings(LAWS)
@given(name=st.sampled_from(["dw4", "lj3", "lj13"]), seed=seeds)
def test_energy_is_invariant_and_score_equivariant(name: str, seed: int) -> None:
    system = get_system(name)
    n, d = system.shape
    # Apart from each other, so that rounding is not amplified by a wall.
    grid = torch.arange(n)[:, None] // 3 ** torch.arange(d) % 3
    x = system.space.project(1.3 * grid.double() + 0.1 * positions((2, n, d), seed))
    turn, order = (
        orthogonal(d, seed),
        torch.randperm(n, generator=torch.Generator().manual_seed(seed)),
    )
    energy, score = system.energy_and_score(x)
    moved, turned = system.energy_and_score((x @ turn)[:, order] + 3.0)
    torch.testing.assert_close(moved, energy)
    torch.testing.assert_close(turned, (score @ turn)[:, order], rtol=1e-6, atol=1e-6)


@settings(LAWS, max_examples=15)
@given(n=st.integers(2, 6), d=st.integers(2, 3), attention=st.booleans(), seed=seeds)
def test_generator_is_equivariant(n: int, d: int, attention: bool, seed: int) -> None:
    """Turning, mirroring and renaming the noise does the same to the configuration."""
    space = MeanFree(n, d)
    body = {"kind": "egnn", "width": 8, "layers": 2, "attention": attention, "unordered": True}
    config = ImplicitConfig.model_validate({"body": body, "noise_features": 2})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: Any = config.build(space).double()
        for parameter in network.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    random = torch.Generator().manual_seed(seed)
    latent = network.draw_latent(3, generator=random)
    turn, order = orthogonal(d, seed), torch.randperm(n, generator=random)
    moved = Latent((latent.position @ turn)[:, order], latent.features[:, order], latent.kicks)
    with torch.no_grad():
        # Without Langevin layers nobody asks the target.
        expected = (network(latent, None) @ turn)[:, order]
        torch.testing.assert_close(network(moved, None), expected)


@settings(LAWS, max_examples=6)
@given(
    count=st.integers(1, 40),
    n=st.integers(1, 15),
    d=st.integers(1, 3),
    weighted=st.booleans(),
    note=st.text(max_size=20),
    seed=seeds,
)
@pytest.mark.parametrize("suffix", [".npz", ".dcd", ".pdb"])
def test_export_round_trip(
    suffix: str, count: int, n: int, d: int, weighted: bool, note: str, seed: int
) -> None:
    system = Cluster(n, d, "toy-any")
    x = positions((count, n, d), seed, torch.float32)
    log_weights = torch.randn(count, dtype=torch.float64) if weighted else None
    samples = Samples.of(system, x, log_weights=log_weights, note=note)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        samples.save(path, system=system)
        loaded = export.load(path, system=system)
    assert loaded.metadata["note"] == note
    spacing = {".npz": 0.0, ".dcd": 0.0, ".pdb": 1e-4}[suffix] / system.length_nm
    allowed = (spacing / 2 * 1.01 + (0 if suffix == ".npz" else 1e-6)) * torch.ones_like(x)
    assert bool(((loaded.positions - x).abs() <= allowed * (1 + x.abs())).all())
    if suffix == ".npz":
        assert torch.equal(loaded.positions, x)
        assert torch.equal(loaded.energies, samples.energies)
    if log_weights is None:
        assert loaded.log_weights is None
    else:
        assert loaded.log_weights is not None
        assert torch.equal(loaded.log_weights, log_weights)


numbers = arrays(
    np.float64, st.integers(1, 30), elements=st.floats(-100, 100, allow_subnormal=False)
)


@settings(LAWS, max_examples=60)
@given(a=numbers, b=numbers, c=numbers, shift=st.floats(-10, 10))
def test_energy_wasserstein_is_a_metric(a: Any, b: Any, c: Any, shift: float) -> None:
    ab, ba = wasserstein2_1d(a, b), wasserstein2_1d(b, a)
    assert ab == pytest.approx(ba, abs=1e-9)
    assert wasserstein2_1d(a, a) == 0
    assert wasserstein2_1d(a, np.random.default_rng(0).permutation(a)) == 0
    assert ab <= wasserstein2_1d(a, c) + wasserstein2_1d(c, b) + 1e-6
    # A shift costs its length, and common shifts nothing.
    assert wasserstein2_1d(a, a + shift) == pytest.approx(abs(shift), abs=1e-6)
    assert wasserstein2_1d(a + shift, b + shift) == pytest.approx(ab, abs=1e-6)


@settings(LAWS, max_examples=60)
@given(a=numbers, b=numbers)
def test_total_variation_is_bounded_and_zero_on_itself(a: Any, b: Any) -> None:
    if np.ptp(b) < 1e-3:
        return
    assert total_variation(b, b).value == pytest.approx(0, abs=1e-12)
    assert -1e-12 <= total_variation(a, b).value <= 1 + 1e-12
    assert trimmed_wasserstein2(b, b).value == 0
    # Nothing in common is one.
    assert total_variation(b + 1e4, b).value == pytest.approx(1)


@settings(LAWS, max_examples=20)
@given(size=st.integers(1, 8), n=st.integers(1, 4), d=st.integers(1, 3), seed=seeds)
def test_position_wasserstein_is_a_metric(size: int, n: int, d: int, seed: int) -> None:
    x, y, z = (positions((size, n, d), seed + k) for k in range(3))
    xy = wasserstein2(x, y)
    assert xy == pytest.approx(wasserstein2(y, x), rel=1e-6, abs=1e-9)
    assert wasserstein2(x, x.flip(0)) == pytest.approx(0, abs=1e-5)
    assert xy <= wasserstein2(x, z) + wasserstein2(z, y) + 1e-5
    turn = orthogonal(d, seed)
    assert wasserstein2(x @ turn, y @ turn) == pytest.approx(xy, rel=1e-4, abs=1e-5)
