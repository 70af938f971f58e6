"""Pair potentials: published energies, OpenMM twins, definitions by users and their files."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from molsampler.errors import ExpressionError, FileFormatError, InputError, UnknownNameError
from molsampler.systems import PairPotential, get_system
from molsampler.units import TWIN_MASS, TWIN_TEMPERATURE, kT


def grid(n: int, side: int) -> Tensor:
    """The first ``n`` points of a cubic grid, last coordinate fastest."""
    index = torch.arange(n)
    points = torch.stack([index // side**2, index // side % side, index % side], -1)
    return points.double()


SQUARE = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
LINE = torch.tensor([[0, 0], [2, 0], [4, 0], [6, 0]], dtype=torch.float64)

GOLDEN = [
    ("dw4", 4.0 * SQUARE, -8.396642530754),
    ("dw4", 2.5 * SQUARE, -19.417060009896),
    ("dw4", LINE, -6.4),
    ("lj13", 1.0 * grid(13, 3), -38.865221378814),
    ("lj13", 1.1 * grid(13, 3), -24.976600184700),
    ("lj13", 0.9 * grid(13, 3), -19.783584295484),
    ("lj2", grid(2, 2), -1.75),
    ("lj55", 1.0 * grid(55, 4), -253.921736730333),
    ("lj55", 1.1 * grid(55, 4), -141.020160919815),
    ("lj55", 0.9 * grid(55, 4), -176.651403433071),
]


@pytest.mark.parametrize(("name", "x", "expected"), GOLDEN)
def test_published_energies(name: str, x: Tensor, expected: float) -> None:
    system = get_system(name)
    # Twelve decimals are printed; sums over pairs of up to 1e4 lose about as many in float64.
    assert system.energy(x).item() == pytest.approx(expected, rel=1e-13, abs=2e-12)
    assert system.energy_and_score(x)[0].item() == pytest.approx(expected, rel=1e-13, abs=2e-12)
    assert system.energy(x.float()).item() == pytest.approx(expected, rel=2e-6)


def halved_lennard_jones(n: int) -> PairPotential:
    """The other convention in circulation, in which each pair is counted once."""
    return PairPotential(
        "halved",
        "(1/r)^12 - 2*(1/r)^6 + 0.5*r^2/n",
        n=n,
        d=3,
        length_nm=get_system("lj13").length_nm,
    )


def test_published_energies_tell_the_conventions_apart() -> None:
    expected = next(value for name, _, value in GOLDEN if name == "lj13")
    assert halved_lennard_jones(13).energy(grid(13, 3)).item() != pytest.approx(expected, rel=0.1)


def twin_energies_and_forces(system: PairPotential, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Reduced energy and score of ``x`` as OpenMM's Reference platform computes them."""
    import openmm

    twin, _ = system.openmm_twin()
    context = openmm.Context(
        twin,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    n, d = system.shape
    positions = np.zeros((n, 3))
    positions[:, :d] = x * system.length_nm
    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    unit = kT(TWIN_TEMPERATURE)
    forces = state.getForces(asNumpy=True)._value
    assert np.all(forces[:, d:] == 0)
    return state.getPotentialEnergy()._value / unit, forces[:, :d] * system.length_nm / unit


def many_functions() -> PairPotential:
    return PairPotential(
        "many",
        "q*exp(-r/kT)/r + k*r^2/n + select(step(x-1), a*log(x), 0) - erfc(r)*sin(x)^2; x = r*pi; "
        "pi = 3 + min(0.1, r)",
        n=5,
        d=3,
        parameters={"q": 2.0, "kT": 1.5, "k": 1e-5, "a": -0.5},
        length_nm=0.27,
    )


def twin_disagreement(system: PairPotential, other: PairPotential, seed: int) -> float:
    """Largest relative difference between a system and the twin of another one."""
    n, d = system.shape
    generator = torch.Generator().manual_seed(seed)
    side = round(n ** (1 / 3) + 0.5)
    x = 1.15 * grid(n, side)[:, :d] if d == 3 else 4 * SQUARE
    x = x + 0.1 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    energy, score = system.energy_and_score(x)
    twin_energy, twin_score = twin_energies_and_forces(other, x.numpy())
    return max(
        abs(twin_energy / energy.item() - 1),
        float(np.abs(twin_score - score.numpy()).max() / score.abs().max()),
    )


@pytest.mark.parametrize("name", ["dw4", "lj13", "lj55", "many"])
def test_openmm_twins_have_the_same_energies_and_forces(name: str) -> None:
    system = many_functions() if name == "many" else get_system(name)
    assert isinstance(system, PairPotential)
    assert max(twin_disagreement(system, system, seed) for seed in range(3)) < 1e-9


def test_the_twin_comparison_sees_the_other_lennard_jones_convention() -> None:
    system = get_system("lj13")
    assert isinstance(system, PairPotential)
    assert twin_disagreement(system, halved_lennard_jones(13), 0) > 0.1


def test_twins_have_argon_masses_and_a_matching_topology() -> None:
    system = get_system("lj13")
    twin, topology = system.openmm_twin()
    masses = {twin.getParticleMass(i)._value for i in range(13)}
    assert masses == {TWIN_MASS}
    assert [a.element.symbol for a in topology.atoms()] == ["Ar"] * 13
    assert not twin.usesPeriodicBoundaryConditions()


@pytest.mark.parametrize("name", ["dw4", "lj55"])
def test_topologies_survive_a_pdb_file(name: str, tmp_path: Path) -> None:
    import MDAnalysis
    import mdtraj

    system = get_system(name)
    n, d = system.shape
    positions = np.zeros((2, n, 3), dtype=np.float32)
    positions[..., :d] = np.random.default_rng(0).normal(size=(2, n, d))
    path = tmp_path / "x.pdb"
    mdtraj.Trajectory(positions, system.topology()).save_pdb(str(path))
    back = mdtraj.load(str(path))
    assert back.topology.n_residues == back.n_atoms == n
    assert {atom.element.symbol for atom in back.topology.atoms} == {"Ar"}
    assert back.topology.n_bonds == 0
    np.testing.assert_allclose(back.xyz, positions, atol=1e-4)
    universe = MDAnalysis.Universe(str(path))
    assert len(universe.atoms) == n
    assert len(universe.trajectory) == 2


def test_float32_is_as_accurate_as_its_inputs_allow() -> None:
    system = get_system("lj55")
    generator = torch.Generator().manual_seed(0)
    x = (1.1 * grid(55, 4) + 0.05 * torch.randn(64, 55, 3, generator=generator)).float()
    exact, exact_score = system.energy_and_score(x.double())
    energy, score = system.energy_and_score(x)
    assert ((energy - exact) / exact).abs().max() < 3e-6
    assert (score - exact_score).abs().max() < 3e-6 * exact_score.abs().max()


# Few particles are summed by products with the incidence matrix, many by shifts.
@pytest.mark.parametrize(("name", "spacing"), [("lj5", 1.1), ("lj13", 1.1), ("dw4", 3.0)])
def test_results_do_not_depend_on_the_batch_in_any_bit(name: str, spacing: float) -> None:
    # Refinement compares energies of the same configuration computed in different batches.
    system = get_system(name)
    n, d = system.shape
    generator = torch.Generator().manual_seed(0)
    x = (spacing * grid(n, 3)[:, -d:] + 0.05 * torch.randn(1500, n, d, generator=generator)).float()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        energy, score = system.energy_and_score(x)
        for size in (1, 7, 100, 1499):
            parts = [system.energy_and_score(part) for part in x.split(size)[:20]]
            rows = sum(len(part[0]) for part in parts)
            assert torch.equal(torch.cat([part[0] for part in parts]), energy[:rows])
            assert torch.equal(torch.cat([part[1] for part in parts]), score[:rows])
    finally:
        torch.set_num_threads(threads)


def test_systems_can_be_copied_and_pickled() -> None:
    system = get_system("lj13")
    x = grid(13, 3)
    for other in (copy.deepcopy(system), pickle.loads(pickle.dumps(system))):
        assert other.energy(x).item() == system.energy(x).item()
        assert other.name == "lj13"


def test_a_system_is_defined_in_a_few_lines() -> None:
    system = PairPotential(
        "my7",
        "4*eps*((s/r)^12-(s/r)^6) + 0.5*k*r^2/n",
        n=7,
        d=3,
        parameters={"eps": 1, "s": 1, "k": 1},
    )
    x = grid(7, 2)
    r = torch.pdist(x)
    trap = 0.5 * (x - x.mean(0)).square().sum()
    expected = (4 * (r**-12 - r**-6)).sum() + trap
    torch.testing.assert_close(system.energy(x), expected)


SHORT: dict[str, Callable[[Tensor, int], Tensor]] = {
    "r^4": lambda r, n: r**4,
    "3 + r^4 - r^2": lambda r, n: 3 + r**4 - r**2,
    "0.5*r^2/n": lambda r, n: 0.5 * r**2 / n,
    "1 + 0*r": lambda r, n: 1 + 0 * r,
    "r^6 + r^3": lambda r, n: r**6 + r**3,
    "exp(-r^2)": lambda r, n: torch.exp(-(r**2)),
    "r": lambda r, n: r,
    "r^-1 + 2*r^2": lambda r, n: 1 / r + 2 * r**2,
}


@pytest.mark.parametrize("n", [2, 3, 4, 7])
@pytest.mark.parametrize("expression", SHORT)
def test_scores_of_short_expressions(expression: str, n: int) -> None:
    """Polynomials exercise every way in which a term can be summed apart from the pairs."""
    system = PairPotential("short", expression, n=n, d=3)
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(3, n, 3, generator=generator, dtype=torch.float64).requires_grad_()
    first, second = torch.triu_indices(n, n, 1)
    r = (x[:, first] - x[:, second]).norm(dim=-1)
    expected = SHORT[expression](r, n).sum(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    energy, score = system.energy_and_score(x)
    torch.testing.assert_close(energy, expected.detach())
    torch.testing.assert_close(system.energy(x.detach()), expected.detach())
    torch.testing.assert_close(score, -gradient)


FILE = """
name: my7
expression: 4*eps*((s/r)^12 - (s/r)^6) + 0.5*k*r^2/n
particles: 7
dimensions: 3
parameters: {eps: 1, s: 1.1, k: 0.5}
length_nm: 0.34
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def test_a_system_file(tmp_path: Path) -> None:
    for kind in ("", "kind: pair_potential\n"):
        system = get_system(write(tmp_path, FILE + kind))
        assert (system.name, system.shape, system.length_nm) == ("my7", (7, 3), 0.34)
    nameless = get_system(str(write(tmp_path, FILE.replace("name: my7\n", ""))))
    assert nameless.name == "cluster"


@pytest.mark.parametrize(
    ("old", "new", "error", "fragment"),
    [
        ("particles", "particle", UnknownNameError, "did you mean 'particles'"),
        ("particles: 7\n", "", InputError, "missing key(s) 'particles'"),
        ("particles: 7", "particles: 7.5", InputError, "must be an integer"),
        ("particles: 7", "particles: 1", InputError, "must be 2 or more"),
        ("particles: 7", "particles: true", InputError, "must be an integer"),
        ("dimensions: 3", "dimensions: 4", InputError, "1..3"),
        ("0.34", "-1", InputError, "length_nm"),
        ("0.34", ".nan", InputError, "length_nm"),
        ("eps: 1,", "epsi: 1,", ExpressionError, "did you mean 'epsi'"),
        ("eps: 1,", "eps: '1',", ExpressionError, "got '1', a text"),
        ("{eps: 1, s: 1.1, k: 0.5}", "[1, 2]", InputError, "must be a mapping of names to numbers"),
        ("(s/r)^12", "(s/r^12", ExpressionError, "missing ')'"),
        ("name: my7", "name: [1]", InputError, "name must be"),
        ("name: my7", "kind: openm", UnknownNameError, "no system kind 'openm'"),
        ("name: my7", "kind: pair_potentia", UnknownNameError, "did you mean 'pair_potential'"),
        ("name: my7", "name: !!python/object/apply:os.getcwd []", FileFormatError, "plain YAML"),
        ("name: my7", "name: 'my", FileFormatError, "plain YAML"),
        ("name: my7", "name: ../my7", InputError, "name must be"),
        ("name: my7", "kind: [1]", UnknownNameError, "no system kind [1]"),
        ("name: my7", "description: 3", InputError, "description must be"),
        ("name: my7", "name: &a [1]\ndescription: *a", FileFormatError, "aliases"),
        (FILE, "- 1\n- 2\n", FileFormatError, "mapping"),
        (FILE, "", FileFormatError, "mapping"),
        (FILE, "[" * 15_000, FileFormatError, "plain YAML"),
    ],
)
def test_faults_in_a_system_file_are_named(
    tmp_path: Path, old: str, new: str, error: type[Exception], fragment: str
) -> None:
    path = write(tmp_path, FILE.replace(old, new))
    with pytest.raises(error) as caught:
        get_system(path)
    assert fragment in str(caught.value)
    assert path.name in str(caught.value)


def test_missing_and_oversized_system_files(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="does not exist"):
        get_system(tmp_path / "absent.yaml")
    with pytest.raises(FileFormatError, match="at most"):
        get_system(write(tmp_path, "#" * 200_000))
