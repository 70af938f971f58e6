"""Internal coordinates: an invertible map with the right volume element, and the density it carries."""

from __future__ import annotations

import math

import pytest
import torch
from chains import Chain, methane
from interrupted import train_twice

from molsampler import Sampler
from molsampler.analysis.energies import wasserstein2_1d
from molsampler.errors import InputError
from molsampler.mcmc import mala
from molsampler.molecule.chart import chart_of
from molsampler.molecule.chirality import signed_volumes
from molsampler.molecule.internal_coordinates import (
    InternalCoordinates,
    InternalTarget,
    random_rotations,
)
from molsampler.molecule.z_matrix import has_internal_coordinates, internal_coordinates
from molsampler.systems import get_system
from molsampler.train import load_config, train


class Molecule(Chain):
    """A chain that knows a geometry and its turning bonds, as OpenMM systems do."""

    def __init__(self, *arguments, turning=((1, 2), (2, 3)), positions=None, **options):
        super().__init__(*arguments, **options)
        if positions is None:
            positions = [[0.9 * i, 0.6 * (i % 2), 0.1 * i * i] for i in range(self.shape[0])]
        give_geometry(self, positions, turning)


def give_geometry(system, positions, turning=()):
    rows = tuple(tuple(float(c) for c in row) for row in positions)
    system.molecule = system.molecule.model_copy(
        update={"geometry": rows, "turning_bonds": tuple(turning)}
    )


#: Branched, with siblings on both ends of bonds.
BRANCHED = ((0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (2, 6), (2, 7))


def branched():
    third = 2 * math.pi / 3
    rough = InternalCoordinates(
        placements=[
            (2, -1, -1, -1),
            (1, 2, -1, -1),
            (3, 2, 1, -1),
            (6, 2, 1, 3),
            (7, 2, 1, 3),
            (0, 1, 2, 3),
            (5, 1, 2, 0),
            (4, 3, 2, 1),
        ],
        centres=[(1, 1.9, turn) for turn in (0, 0, 0, third, -third, 2, third, 2.5)],
        widths=[(1, 1, 1)] * 8,
    )
    placed = rough.to_cartesian(torch.zeros(1, 18, dtype=torch.float64))
    return Molecule(
        (0, 1, 2, 1, 0, 3, 4, 5), BRANCHED, positions=placed.position[0], turning=((1, 2), (2, 3))
    )


@pytest.fixture(scope="module", params=["chain", "branched"])
def molecule(request):
    return Molecule() if request.param == "chain" else branched()


@pytest.fixture(scope="module")
def coordinates(molecule):
    return internal_coordinates(molecule)


def draws(coordinates, count, seed=0, scale=0.3):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, coordinates.dof, generator=rng, dtype=torch.float64)


def test_there_and_back(molecule, coordinates):
    assert coordinates.dof == 3 * molecule.shape[0] - 6
    assert len(coordinates.free) == 2
    q = draws(coordinates, 200)
    placed = coordinates.to_cartesian(q)
    assert float(placed.wall.max()) == 0
    torch.testing.assert_close(coordinates.from_cartesian(placed.position), q, rtol=0, atol=1e-9)
    # Place and orientation are nobody's coordinate.
    turned = placed.position @ random_rotations(200, generator=None, like=q) + 3.0
    torch.testing.assert_close(coordinates.from_cartesian(turned), q, rtol=0, atol=1e-8)


def test_volume_element_is_the_determinant(molecule, coordinates):
    """of the map from q, a translation and a rotation at the identity to positions."""
    n = molecule.shape[0]

    def positions(everything):
        q, shift, turn = torch.split(everything, [coordinates.dof, 3, 3])
        x = coordinates.to_cartesian(q[None]).position[0]
        zero = turn.new_zeros(())
        generator = torch.stack(
            [zero, -turn[2], turn[1], turn[2], zero, -turn[0], -turn[1], turn[0], zero]
        ).reshape(3, 3)
        return (x @ torch.linalg.matrix_exp(generator).T + shift).flatten()

    found, without_sine = [], []
    for q in draws(coordinates, 12, seed=1):
        jacobian = torch.autograd.functional.jacobian(positions, torch.cat([q, q.new_zeros(6)]))
        volume = torch.linalg.slogdet(jacobian)[1]
        found.append(float(volume - coordinates.to_cartesian(q[None]).log_volume))
        centre, width = (
            torch.tensor(table).double()[2:, 1]
            for table in (coordinates.centres, coordinates.widths)
        )
        theta = centre + width * q[n - 1 : 2 * n - 3]
        without_sine.append(found[-1] + float(theta.sin().log().sum()))
    assert max(found) - min(found) < 1e-8
    # Negative control: the sines matter at this precision.
    assert max(without_sine) - min(without_sine) > 1e-3


def test_score_is_the_gradient(molecule, coordinates):
    target = InternalTarget(molecule, coordinates)
    q = draws(target.coordinates, 20, seed=2)[..., None]
    energy, score = target.energy_and_score(q)
    move = 1e-6 * draws(target.coordinates, 20, seed=3)[..., None]
    change = target.energy_and_score(q + move)[0] - target.energy_and_score(q - move)[0]
    expected = -2 * (score * move).sum((1, 2))
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-7)
    assert energy.shape == (20,)


def test_far_away_there_is_a_wall_and_no_number_is_lost(molecule, coordinates):
    target = InternalTarget(molecule, coordinates)
    for scale in (10.0, 1e3, 1e5):
        q = draws(target.coordinates, 50, seed=4, scale=scale)[..., None].float()
        energy, score = target.energy_and_score(q)
        assert not torch.isnan(energy).any()
        assert torch.isfinite(score).all()
        assert float(energy.min()) > 100


def test_walls_keep_the_hand():
    """A long run at high temperature never leaves the hand that was given."""
    system = methane()
    corners = torch.tensor([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double()
    give_geometry(system, corners / math.sqrt(3))

    class Hot:
        def __init__(self, target):
            self.target, self.space = target, target.space

        def energy_and_score(self, x):
            energy, score = self.target.energy_and_score(x)
            return energy / 8, score / 8

    target = InternalTarget(system, internal_coordinates(system))
    rng = torch.Generator().manual_seed(0)
    state = mala.init(torch.zeros(64, target.coordinates.dof, 1), Hot(target))
    for _ in range(400):
        state, info = mala.step(state, Hot(target), step_size=0.1, generator=rng)
    assert float(info.acceptance.mean()) > 0.2
    x = target.coordinates.to_cartesian(state.position[..., 0]).position
    given = signed_volumes(corners[None], [(0, 1, 2, 3)]).sign()
    assert (signed_volumes(x.double(), [(0, 1, 2, 3)]).sign() == given).all()


def test_density_of_a_chain_is_the_known_one():
    """MALA on q gives the bond and torsion laws of butane, which are exact in one dimension."""
    stiffness, barrier = 400.0, 1.5

    class Butane(Molecule):
        # Without repulsion bonds, angles and the torsion are independent.
        def _formula(self, x):
            i, c, j = (x[:, self._angles[:, k]] for k in range(3))
            cosine = torch.cosine_similarity(i - c, j - c, dim=-1)
            return (
                0.5 * stiffness * (self.lengths(x) - 1.0).square().sum(-1)
                + 20.0 * (cosine - self.cosine).square().sum(-1)
                + barrier * (1.0 + (3.0 * self.torsions(x)).cos() + self.torsions(x).cos()).sum(-1)
            )

    system = Butane((0, 1, 1, 0), ((0, 1), (1, 2), (2, 3)), turning=((1, 2),))
    target = InternalTarget(system, internal_coordinates(system))
    rng = torch.Generator().manual_seed(0)
    chains, kept = 512, []
    state = mala.init(torch.randn(chains, 6, 1, generator=rng, dtype=torch.float64), target)
    for step in range(700):
        state, _ = mala.step(state, target, step_size=0.25, generator=rng)
        if step >= 200 and step % 50 == 0:
            kept.append(target.coordinates.to_cartesian(state.position[..., 0]).position)
    x = torch.cat(kept)
    # Draws of a chain 50 steps apart count as a third of a draw.
    error = (3 / len(x)) ** 0.5

    grid = torch.linspace(-math.pi, math.pi, 20001).double()
    law = (-barrier * ((3 * grid).cos() + grid.cos())).exp()
    expected = float((law * (grid.abs() < math.pi / 2)).sum() / law.sum())
    found = float((system.torsions(x)[:, 0].abs() < math.pi / 2).double().mean())
    assert found == pytest.approx(expected, abs=5 * error * 0.5)

    r = torch.linspace(0.6, 1.4, 20001).double()
    law = r.square() * (-0.5 * stiffness * (r - 1).square()).exp()
    mean = float((r * law).sum() / law.sum())
    spread = float(((r - mean).square() * law).sum() / law.sum()) ** 0.5
    assert float(system.lengths(x).mean()) == pytest.approx(mean, abs=5 * error * spread)
    # Negative control: without the volume element the mean would be 1, and that is told apart.
    assert abs(mean - 1.0) > 0.3 * error * spread


def test_rotations_are_uniform_and_proper():
    rotation = random_rotations(
        4000, generator=torch.Generator().manual_seed(0), like=torch.empty(0, dtype=torch.float64)
    )
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(rotation @ rotation.mT, eye.expand(4000, 3, 3), atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(4000, dtype=torch.float64))
    # Every entry has mean 0 and variance 1/3.
    assert float(rotation.mean(0).abs().max()) < 5 * (1 / 3 / 4000) ** 0.5
    assert float((rotation.square().mean(0) - 1 / 3).abs().max()) < 5 * (0.09 / 4000) ** 0.5


def test_a_chart_leads_there_and_back(molecule, coordinates):
    for internal in (None, coordinates):
        chart = chart_of(molecule, internal)
        rng = torch.Generator().manual_seed(3)
        x = molecule.space.project(coordinates.to_cartesian(draws(coordinates, 20)).position)
        q = chart.coordinates(x)
        assert q.shape[1:] == chart.target.space.shape
        placed = chart.oriented(chart.positions(q), generator=rng)
        torch.testing.assert_close(torch.cdist(placed, placed), torch.cdist(x, x))
        assert torch.equal(placed, x) == (internal is None)


def test_what_has_no_internal_coordinates_is_refused():
    assert has_internal_coordinates(Molecule())
    assert not has_internal_coordinates(Chain())
    with pytest.raises(InputError, match=r"lj13' is no molecule with bonds.*cartesian"):
        internal_coordinates(get_system("lj13"))
    parts = Molecule((0, 1, 0, 2, 2), ((0, 1), (1, 2), (3, 4)), turning=())
    with pytest.raises(InputError, match="is more than one molecule"):
        internal_coordinates(parts)
    field = Molecule()
    field.invariant = False
    with pytest.raises(InputError, match="depends on place and orientation"):
        internal_coordinates(field)
    with pytest.raises(InputError, match="do not fit"):
        InternalTarget(
            methane(), internal_coordinates(Molecule((0, 1, 1, 0), ((0, 1), (1, 2), (2, 3))))
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["placements"][:2],
        lambda v: [*v["placements"][:-1], (0, *v["placements"][-1][1:])],
        lambda v: [*v["placements"][:-1], (v["placements"][-1][0], 9, 1, 2)],
        lambda v: [*v["placements"][:-1], (*v["placements"][-1][:2], -1, -1)],
        lambda v: [(v["placements"][0][0], 1, -1, -1), *v["placements"][1:]],
    ],
    ids=["few", "twice", "out of range", "missing reference", "surplus reference"],
)
def test_a_damaged_description_is_refused(change):
    values = internal_coordinates(Molecule()).model_dump()
    values["placements"] = change(values)
    with pytest.raises(ValueError, match=r"placement|three"):
        InternalCoordinates.model_validate(values)


@pytest.mark.parametrize("width", [-1.0, math.nan, math.inf, 0.0])
def test_a_bond_of_no_width_is_refused(width):
    values = internal_coordinates(Molecule()).model_dump()
    first, second, *others = values["widths"]
    values["widths"] = [first, (width, *second[1:]), *others]
    with pytest.raises(ValueError, match="width"):
        InternalCoordinates.model_validate(values)


TINY = (
    "coordinates=internal",
    "compile=false",
    "iterations=8",
    "batch_size=32",
    "generator.body.width=16",
    "generator.body.layers=1",
    "denoiser.width=16",
    "denoiser.layers=1",
    "generator.langevin_step=0.05",
    "evaluate_every=4",
    "evaluate_samples=60",
    "evaluate_steps=2",
    "checkpoint_every=3",
    "target_score.warmup=4",
    "target_score.size=64",
    "target_score.anneal_moves=2",
    "target_score.equilibration=10",
    "target_score.refresh=16",
)


def test_training_in_internal_coordinates_resumes_and_samples_positions(tmp_path, monkeypatch):
    system = branched()
    config = load_config("fast", system.name, overrides=TINY, invariant=False)
    whole = train_twice(system, config, tmp_path, monkeypatch)

    sampler = Sampler.load(whole.artifact, system=system)
    samples = sampler.sample(400, seed=0)
    assert samples.positions.shape == (400, *system.shape)
    assert float(samples.positions.mean(1).abs().max()) < 1e-6
    torch.testing.assert_close(
        system.energy(samples.positions.double()), samples.energies, rtol=1e-5, atol=1e-4
    )
    # Orientations are drawn, so the first bond has no direction of its own.
    bond = samples.positions[:, 1] - samples.positions[:, 0]
    assert float(bond.mean(0).abs().max()) < 5 * float(bond.norm(dim=-1).max()) / 20
    # As many as asked for, whatever the batch; and refinement moves energies towards equilibrium.
    again = sampler.sample(100, seed=0, batch_size=1)
    assert torch.equal(again.positions, samples.positions[:100])
    refined = sampler.sample(400, seed=0, refine=20)
    assert float(refined.energies.median()) < float(samples.energies.median())
    assert refined.metadata["drift"] > 0


CHAIN = (
    "coordinates=internal",
    "compile=false",
    "iterations=300",
    "batch_size=256",
    "score_steps=2",
    "ema=0.98",
    "generator_lr=0.002",
    "score_lr=0.002",
    "noise_annealing=0.5",
    "generator.body.width=64",
    "generator.body.layers=2",
    "generator.langevin_step=0.05",
    "generator.langevin_last_step=0.02",
    "denoiser.width=64",
    "denoiser.layers=2",
    "target_score.size=2048",
    "target_score.equilibration=200",
    "target_score.warmup=300",
    "target_score.refresh=128",
)


@pytest.mark.slow
def test_a_chain_is_learned_in_one_step(tmp_path):
    """Five atoms, two free torsions of three wells each: energies and torsions as in a long run. 90 s."""
    system = Molecule()
    config = load_config("fast", system.name, overrides=CHAIN, invariant=False)
    done = train(system, tmp_path / "run", config)
    samples = Sampler.load(done.artifact, system=system).sample(4000, seed=1)
    target = InternalTarget(system, internal_coordinates(system))
    rng = torch.Generator().manual_seed(7)
    state = mala.init(torch.randn(4000, 9, 1, generator=rng), target)
    for _ in range(600):
        state, _ = mala.step(state, target, step_size=0.1, generator=rng)
    truth = target.coordinates.to_cartesian(state.position[..., 0].double()).position
    energies = system.energy(truth)
    # Nine harmonic-like degrees of freedom: the standard deviation of u is about two.
    assert wasserstein2_1d(samples.energies, energies) < 0.25

    def wells(x):
        """Shares of the nine pairs of wells."""
        well = ((system.torsions(x.double()) + math.pi) / (2 * math.pi / 3)).long().clamp(0, 2)
        return torch.bincount(3 * well[:, 0] + well[:, 1], minlength=9).double() / len(x)

    # Sampling error of the total variation between two draws of 4,000 over nine classes: .02.
    assert float((wells(samples.positions) - wells(truth)).abs().sum() / 2) < 0.08
