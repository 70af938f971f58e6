"""Pair potentials of particles that differ: energies, twins, symmetry, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from molsampler.analysis import distance_total_variation
from molsampler.errors import ExpressionError, InputError
from molsampler.reference.observables import observables
from molsampler.space import Euclidean, MeanFree
from molsampler.systems import PairPotential, get_system, resolve_recorded

EXAMPLES = Path(__file__).parents[2] / "benchmarks" / "systems"

CHARGES = [1.0, -1.0, 1.0, -1.0, 0.5]
SPECIES = ["A", "A", "B", "B", "C"]
EPSILON = {"A-A": 1.0, "A-B": 0.5, "B-B": 0.8, "C-A": 0.3, "B-C": 0.0}


def charged(**options: Any) -> PairPotential:
    """Charges, sizes of the species, a trap and a constant, so that all forms of a sum occur."""
    given: dict[str, Any] = {
        "n": 5,
        "d": 3,
        "parameters": {"k": 0.7, "s": 1.1},
        "particle_parameters": {"q": CHARGES},
        "species": SPECIES,
        "pair_parameters": {"epsilon": EPSILON},
        **options,
    }
    return PairPotential("charged", "q1*q2/r + epsilon*(s/r)^6 + k*r^2 + 1", **given)


def by_hand(x: Tensor) -> Tensor:
    q = x.new_tensor(CHARGES)
    total = x.new_zeros(len(x))
    for i in range(5):
        for j in range(i):
            r = (x[:, i] - x[:, j]).norm(dim=-1)
            pair = f"{SPECIES[j]}-{SPECIES[i]}"
            epsilon = EPSILON.get(pair, EPSILON.get(f"{SPECIES[i]}-{SPECIES[j]}"))
            total = total + q[i] * q[j] / r + epsilon * (1.1 / r) ** 6 + 0.7 * r**2 + 1
    return total


def positions(n: int, d: int, rows: int = 3, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(rows, n, d, generator=rng, dtype=torch.float64)


def test_energies_and_scores_are_the_sum_by_hand() -> None:
    system, x = charged(), positions(5, 3).requires_grad_()
    expected = by_hand(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    u, score = system.energy_and_score(x.detach())
    torch.testing.assert_close(u, expected.detach())
    torch.testing.assert_close(system.energy(x.detach()), expected.detach())
    torch.testing.assert_close(score, -gradient)


def test_values_that_are_all_alike_make_the_system_of_one_parameter() -> None:
    plain = PairPotential("p", "e/r^6 + r^2", n=12, d=3, parameters={"e": 4.0})
    same = PairPotential("p", "e1*e2/r^6 + r^2", n=12, d=3, particle_parameters={"e": [2.0] * 12})
    assert same.exchangeable
    assert same.molecule is None
    x = positions(12, 3)
    assert torch.equal(plain.energy(x), same.energy(x))


@pytest.mark.parametrize("n", [3, 14])
def test_sorted_pairs_agree_with_pairs_of_one_kind(n: int) -> None:
    """Particles told apart by a value that changes nothing."""
    text = "(1/r)^12 - 2*(1/r)^6 + 0.5*r^2/n"
    plain = PairPotential("p", text, n=n, d=2)
    varied = PairPotential(
        "p", text + " + 0*w1*w2/r", n=n, d=2, particle_parameters={"w": list(range(n))}
    )
    assert varied.kinds is not None
    x = positions(n, 2, rows=70)
    for one, other in zip(plain.energy_and_score(x), varied.energy_and_score(x), strict=True):
        torch.testing.assert_close(one, other)


def twin_differences(system: PairPotential, other: PairPotential) -> float:
    """Largest relative difference of energies and forces to another system's OpenMM twin."""
    import openmm
    from openmm import unit

    from molsampler.units import kT

    n, d = system.shape
    twin, _ = other.openmm_twin()
    context = openmm.Context(
        twin, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    worst = 0.0
    for row in positions(n, d, seed=4):
        where = np.zeros((n, 3))
        where[:, :d] = row.numpy() * other.length_nm
        context.setPositions(where)
        state = context.getState(getEnergy=True, getForces=True)
        beta = 1.0 / kT(other.twin_temperature)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * beta
        force = state.getForces(asNumpy=True)._value[:, :d] * beta * other.length_nm
        u, score = system.energy_and_score(row)
        worst = max(
            worst,
            abs(energy / float(u) - 1.0),
            float(np.abs(force - score.numpy()).max() / score.abs().max()),
        )
    return worst


WALL = "k*max(0, r - 0.4)^2 + 0.1*q^2*r"
FIELD = "0.5*k*(x^2 + 2*y^2) + q*abs(z)^3/n + select(step(w), w*z^2, z^2); w = x - 0.3"


@pytest.mark.parametrize(
    "terms",
    [{}, {"external": FIELD}, {"confinement": WALL}, {"external": FIELD, "confinement": WALL}],
)
def test_the_openmm_twin_is_the_same_system(terms: dict[str, str]) -> None:
    system = charged(length_nm=0.3, **terms)
    assert twin_differences(system, system) < 1e-5
    # The negative controls: one charge of the other sign, and a wall that is elsewhere.
    wrong = charged(length_nm=0.3, particle_parameters={"q": [1, -1, 1, -1, -0.5]}, **terms)
    assert twin_differences(system, wrong) > 1e-3
    if "confinement" in terms:
        elsewhere = charged(length_nm=0.3, **{**terms, "confinement": WALL.replace("0.4", "0.5")})
        assert twin_differences(system, elsewhere) > 1e-3


def test_a_field_is_its_formula_and_ends_the_invariance() -> None:
    system = PairPotential(
        "trapped", "a/r", n=3, d=2, parameters={"a": 0.0, "k": 2.0},
        particle_parameters={"m": [1.0, 1.0, 3.0]}, external="0.5*k*m*(x^2 + y^2)",
    )  # fmt: skip
    assert isinstance(system.space, Euclidean)
    assert not system.invariant
    x = positions(3, 2)
    m = x.new_tensor([1.0, 1.0, 3.0])
    torch.testing.assert_close(system.energy(x), (m[:, None] * x.square()).sum((1, 2)))
    torch.testing.assert_close(system.energy_and_score(x)[1], -2 * m[:, None] * x)
    assert isinstance(charged().space, MeanFree)


def test_a_confinement_is_its_formula_about_the_mean_and_moves_with_the_cluster() -> None:
    system = PairPotential(
        "walled", "a/r", n=4, d=3, parameters={"a": 0.0, "k": 3.0, "R": 0.8},
        confinement="0.5*k*max(0, r - R)^2",
    )  # fmt: skip
    assert isinstance(system.space, MeanFree)
    assert system.invariant
    assert system.exchangeable
    x = positions(4, 3)
    r = (x - x.mean(1, keepdim=True)).norm(dim=-1)
    outside = (r - 0.8).clamp(min=0)
    assert 0 < int((outside > 0).sum()) < outside.numel()
    torch.testing.assert_close(system.energy(x), 1.5 * outside.square().sum(1))
    torch.testing.assert_close(system.energy(x + 7.0), system.energy(x))
    _, score = system.energy_and_score(x)
    torch.testing.assert_close(score.sum(1), torch.zeros_like(score[:, 0]))
    # A particle that stands at the mean has no direction to be pushed in.
    linear = PairPotential("cone", "0*r", n=3, d=3, confinement="r")
    still = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [-1, 0, 0]]], dtype=torch.float64)
    _, push = linear.energy_and_score(still)
    torch.testing.assert_close(push, -still)
    # A hard step has no slope, and pushes nothing.
    hard = PairPotential("hard", "r^2", n=3, d=3, confinement="1000*step(r - 0.5)")
    energy, push = hard.energy_and_score(still)
    torch.testing.assert_close(energy, torch.tensor([2006.0], dtype=torch.float64))
    torch.testing.assert_close(push, -6 * still)
    record = json.loads(json.dumps(system.record()))
    assert record["confinement"] == "0.5*k*max(0, r - R)^2"
    assert torch.equal(resolve_recorded(record).energy(x), system.energy(x))


def test_particles_that_differ_may_not_be_exchanged_and_alike_ones_may() -> None:
    system = charged()
    assert not system.exchangeable
    assert system.molecule is not None
    assert system.molecule.types == (0, 1, 2, 3, 4)
    salt = get_system(EXAMPLES / "ionic_cluster.yaml")
    assert salt.molecule is not None
    assert salt.molecule.types == (0,) * 4 + (1,) * 4
    assert salt.molecule.bonds == ()
    x = positions(8, 3)
    alike, unlike = torch.tensor([2, 0, 3, 1, 7, 4, 5, 6]), torch.tensor([4, 1, 2, 3, 0, 5, 6, 7])
    torch.testing.assert_close(salt.energy(x[:, alike]), salt.energy(x))
    assert float((salt.energy(x[:, unlike]) - salt.energy(x)).abs().min()) > 0.1


def test_records_pickles_and_copies_are_the_same_system() -> None:
    system, x = charged(external=FIELD), positions(5, 3)
    rebuilt = resolve_recorded(json.loads(json.dumps(system.record())))
    for other in (rebuilt, copy.deepcopy(system), pickle.loads(pickle.dumps(system))):
        assert torch.equal(other.energy(x), system.energy(x))
        assert other.record() == system.record()
    # What says nothing of its particles is recorded as before.
    assert set(PairPotential("p", "r^2", n=2, d=1).record()) == {
        "name", "expression", "particles", "dimensions", "parameters", "length_nm",
    }  # fmt: skip


def test_species_that_are_elements_are_drawn_as_such() -> None:
    system = get_system(EXAMPLES / "ionic_cluster.yaml")
    assert [atom.element.symbol for atom in system.topology().atoms] == ["Na"] * 4 + ["Cl"] * 4
    assert [atom.element.symbol for atom in charged().topology().atoms] == ["Ar"] * 5
    _, topology = system.openmm_twin()
    assert [atom.element.symbol for atom in topology.atoms()] == ["Na"] * 4 + ["Cl"] * 4


def test_rows_do_not_depend_on_their_batch_in_any_bit() -> None:
    system, x = charged(), positions(5, 3, rows=300).float()
    energy, score = system.energy_and_score(x)
    for size in (1, 7, 299):
        parts = [system.energy_and_score(part) for part in x.split(size)[:10]]
        rows = sum(len(part[0]) for part in parts)
        assert torch.equal(torch.cat([part[0] for part in parts]), energy[:rows])
        assert torch.equal(torch.cat([part[1] for part in parts]), score[:rows])


@pytest.mark.parametrize("charges", [[1, -1, 1, -1], [-1, 1, -1, -1]])
@pytest.mark.parametrize("expression", ["q1/r", "(q1 - q2)/r + q1*q2", "q2*r^2", "q1^2*q2^3/r"])
def test_an_expression_that_knows_the_first_particle_is_refused(expression, charges) -> None:
    options = {"n": 4, "d": 3, "particle_parameters": {"q": charges}}
    with pytest.raises(ExpressionError, match="which of its particles is the first") as caught:
        PairPotential("p", expression, **options)
    assert f"q1 = {charges[0]}, q2 = {charges[1]}" in str(caught.value)
    assert f"q1 = {charges[1]}, q2 = {charges[0]}" in str(caught.value)
    # Where all are alike nothing is wrong with it.
    options["particle_parameters"] = {"q": [2, 2, 2, 2]}
    PairPotential("p", expression, **options)


def test_what_judges_samples_tells_the_types_apart() -> None:
    """Swapping two types changes what is measured; swapping particles of one type does not."""
    salt, x = get_system(EXAMPLES / "ionic_cluster.yaml"), positions(8, 3, rows=200)
    assert salt.alike == (0,) * 4 + (1,) * 4
    assert get_system("lj7").alike == (0,) * 7
    x[:, 4:] *= 1.5
    exchanged, alike = x[:, [4, 5, 6, 7, 0, 1, 2, 3]], x[:, [3, 2, 1, 0, 7, 4, 5, 6]]
    assert distance_total_variation(exchanged, x).value < 1e-9
    assert distance_total_variation(exchanged, x, types=salt.alike).value > 0.1
    assert distance_total_variation(alike, x, types=salt.alike).value < 1e-9
    watched = observables(salt, x)
    names = [name for name in watched if name.startswith("pair distance of types 0 and 1")]
    assert len(names) == 5
    assert not any(name.startswith("distance ") for name in watched)
    again, other = observables(salt, alike), observables(salt, exchanged)
    for name, values in watched.items():
        torch.testing.assert_close(again[name], values)
    names = [name for name in watched if name.startswith("pair distance of types 0 and 0")]
    assert min(float((watched[k] - other[k]).abs().mean()) for k in names) > 0.05


FILE: dict[str, Any] = {
    "expression": "q1*q2/r + epsilon/r^9",
    "particles": 4,
    "dimensions": 3,
    "particle_parameters": {"q": [1, -1, 1, -1]},
    "species": ["A", "A", "B", "B"],
    "pair_parameters": {"epsilon": {"A-A": 1, "A-B": 0.5, "B-B": 0.8}},
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"particle_parameters": {"q": [1, -1, 1]}}, "list of 4 numbers, one for each particle, got 3"),
        ({"particle_parameters": {"q": [1, -1, 1, "-l"]}}, "of particle 3 must be a finite number, got '-l'"),
        ({"particle_parameters": {"q": [1, -1, 1, "1e-3"]}}, "a text"),
        ({"particle_parameters": {"q": 1}}, "must be a list of 4 numbers"),
        ({"particle_parameters": {"q": {"A": 1, "C": 2}}}, "no particle is of species 'C'"),
        ({"particle_parameters": {"q": {"A": 1}}}, "has no value for species 'B'"),
        ({"particle_parameters": {"q": [1, -1, 1, -1], "w": [0] * 4}}, "'w' does not appear"),
        ({"particle_parameters": {"q": [1, -1, 1, -1], "r": [0] * 4}}, "the name 'r' is taken"),
        ({"particle_parameters": {}}, "particle_parameters: {q: [a number for each particle]}"),
        ({"particle_parameters": {}, "parameters": {"q1": [1, -1, 1, -1], "q2": 1}},
         "parameter 'q1' must be a number, got '[1, -1, 1, -1]'. Values of each particle are "
         "particle_parameters: {q: [...]}, which the expression reads as q1 and q2"),
        ({"expression": "q*q/r + epsilon/r^9"}, "of which a pair has two: write q1 and q2"),
        ({"expression": "q1*q2/r"}, "pair_parameters 'epsilon' does not appear"),
        ({"parameters": {"q1": 3}}, "the name 'q1' is taken"),
        ({"species": ["A", "A", "B"]}, "species must hold 4 names, one for each particle, got 3"),
        ({"species": ["A", "A", "B", False]}, "quote them"),
        ({"species": "AABB"}, "species must be a list of names"),
        ({"species": None}, "needs species"),
        ({"pair_parameters": {"epsilon": {"A-A": 1, "A-B": 1}}}, "no value for the pair B-B"),
        ({"pair_parameters": {"epsilon": {"A-A": 1, "A-B": 1, "B-B": 1, "A-D": 1}}},
         "no particle is of species 'D'"),
        ({"pair_parameters": {"epsilon": {"AA": 1}}}, "must be a pair of species such as A-B"),
        ({"pair_parameters": {"epsilon": {"A-A": 1, "A-B": 1, "B-A": 2, "B-B": 1}}},
         "is 1 for A-B and 2 for B-A"),
        ({"pair_parameters": {"epsilon": [1, 2]}}, "must map pairs of species to numbers"),
        ({"external": "x^2 + y^2"}, "must hold the particles along 'z' as well"),
        ({"external": "r^2"}, "knows no distance r"),
        ({"external": "q1*(x^2 + y^2 + z^2)"}, "it acts on one particle: write 'q'"),
        ({"external": "k*(x^2 + y^2 + z^2)"}, "external: unknown name 'k'"),
        ({"external": "x^2 + y^2 + z^2", "dimensions": 2}, "external uses 'z', the system has 2"),
        ({"external": "x^2 + y^2 + z^2", "parameters": {"y": 1}}, "'y' is taken"),
        ({"external": "x^2 + (y^2 + z^2"}, "missing ')'"),
        ({"confinement": "x^2 + y^2 + z^2"}, "the distance r from the mean only"),
        ({"confinement": "q1*r"}, "it acts on one particle: write 'q'"),
        ({"confinement": "R*r"}, "confinement: unknown name 'R'"),
        ({"confinement": "n^2"}, "confinement must depend on r"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_sentence(tmp_path: Path, change, sentence) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(json.dumps(FILE))
    assert get_system(path).shape == (4, 3)
    path.write_text(json.dumps({**FILE, **change}))
    with pytest.raises(InputError) as caught:
        get_system(path)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_too_many_kinds_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="more than 1,000 different pairs"):
        PairPotential(
            "p", "q1*q2/r", n=60, d=3, particle_parameters={"q": [1.0 + i for i in range(60)]}
        )
