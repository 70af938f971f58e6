"""The default preset on systems of users' own: it starts, runs, and its artifact samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from molsampler import Sampler, Samples, export
from molsampler.analysis import compare
from molsampler.errors import InputError
from molsampler.molecule.z_matrix import has_internal_coordinates
from molsampler.space import Euclidean
from molsampler.systems import ASESystem, FunctionSystem, get_system
from molsampler.target import System
from molsampler.train import load_config, train

EXAMPLES = Path(__file__).parents[2] / "benchmarks" / "systems"

SMALL = (
    "compile=false", "iterations=4", "batch_size=16", "generator.body.width=8",
    "generator.body.layers=1", "denoiser.width=8", "denoiser.layers=1", "evaluate_every=4",
    "evaluate_samples=20", "checkpoint_every=4", "target_score.warmup=4", "target_score.size=64",
    "target_score.equilibration=10", "target_score.refresh=16", "target_score.anneal_moves=2",
)  # fmt: skip


def springs(x):
    return 0.25 * (x[:, :, None] - x[:, None]).square().sum((-3, -2, -1))


def trapped() -> System:
    from molsampler.systems import PairPotential

    return PairPotential(
        "trapped", "e/r^6", n=3, d=2, parameters={"k": 1.0, "e": 0.01},
        particle_parameters={"m": [1.0, 1.0, 2.0]}, external="0.5*k*m*(x^2 + y^2)",
    )  # fmt: skip


def with_ase(symbols: str, **options) -> System:
    pytest.importorskip("ase")
    from ase import Atoms
    from ase.build import molecule
    from ase.calculators.emt import EMT

    if symbols == "CH3CH2OH":
        atoms = molecule(symbols)
    else:
        atoms = Atoms(symbols, [[0, 0, 0], [1.8, 1.8, 0], [1.8, 0, 1.8]])
    atoms.calc = EMT()
    return ASESystem(atoms, temperature=1000, restraint=10.0, name="ase", **options)


def with_openmm() -> System:
    openmm = pytest.importorskip("openmm")
    from openmm import app

    from molsampler.systems import OpenMMSystem

    force = openmm.CustomCompoundBondForce(3, "200*(distance(p1,p2)*distance(p1,p3)-0.09)^2"
                                              "+50*(distance(p2,p3)-0.3)^2+9*distance(p1,p2)^2")  # fmt: skip
    force.addBond([0, 1, 2], [])
    system, topology = openmm.System(), app.Topology()
    chain = topology.addChain()
    for symbol in "OCN":
        system.addParticle(12.0)
        element = app.Element.getBySymbol(symbol)
        topology.addAtom(symbol, element, topology.addResidue("UNK", chain))
    system.addForce(force)
    return OpenMMSystem(system, topology, 300)


MAKE = {
    "mueller-brown": lambda: get_system(EXAMPLES / "mueller_brown.yaml", trust_code=True),
    "function": lambda: FunctionSystem(
        "f", springs, shape=(4, 3), space="mean-free", invariant=True, exchangeable=True
    ),
    "ions": lambda: get_system(EXAMPLES / "ionic_cluster.yaml"),
    "trapped": trapped,
    "copper": lambda: with_ase("Cu3"),
    "alloy": lambda: with_ase("Cu2Au"),
    "ethanol": lambda: with_ase("CH3CH2OH"),
    "many-body": with_openmm,
}

#: What a file alone rebuilds.
RECORDED = ("ions", "trapped")


#: A row takes EMT some milliseconds.
_SLOW = ("copper", "alloy", "ethanol")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW)) for name in MAKE]
)
def test_the_default_preset_runs_and_its_artifact_samples(name: str, tmp_path: Path) -> None:
    system = MAKE[name]()
    config = load_config(
        "fast",
        system.name,
        overrides=SMALL,
        invariant=system.invariant,
        molecule=has_internal_coordinates(system),
    )
    artifact = train(system, tmp_path / "run", config).artifact
    if name in RECORDED:
        sampler = Sampler.load(artifact)
    else:
        with pytest.raises(InputError, match="pass system="):
            Sampler.load(artifact)
        sampler = Sampler.load(artifact, system=system)
    samples = sampler.sample(64, seed=0, device="cpu", refine=2)
    assert samples.positions.shape == (64, *system.shape)
    assert bool(samples.energies.isfinite().any())
    samples.save(tmp_path / "a.npz", system=system)
    again = export.load(tmp_path / "a.npz", system=system)
    torch.testing.assert_close(again.energies, samples.energies)
    comparison = compare(samples, again, system, n=20, repeats=2, monte_carlo=False)
    assert comparison.metric("tvd_energy").value >= 0


def test_a_function_has_a_monte_carlo_reference_only() -> None:
    from molsampler.reference.run import sample_reference

    system = MAKE["function"]()
    with pytest.raises(InputError, match="no OpenMM twin; use method='mcmc'"):
        sample_reference(system, 20)
    found = sample_reference(system, 40, method="mcmc", max_steps=1000, replicas=2)
    assert isinstance(found, Samples)
    assert bool(found.energies.isfinite().all())


def stretched(x):
    return springs(x * torch.tensor([1.0, 2.0]).to(x))


def angle(x):
    return 0.5 * x.square().sum((-2, -1))


@pytest.mark.parametrize(
    "system",
    [
        FunctionSystem("mean-free", stretched, shape=(3, 2), space="mean-free"),
        FunctionSystem("springs", springs, shape=(3, 2), space="mean-free", invariant=True),
        FunctionSystem("vector", angle, shape=(1, 3)),
        FunctionSystem("circular", angle, shape=(1, 3), space=Euclidean(1, 3, circular=(1,))),
        get_system("lj3"),
        trapped(),
    ],
    ids=lambda system: system.name,
)
def test_the_default_preset_serves_every_kind_of_space(tmp_path, system) -> None:
    config = load_config("fast", system, overrides=SMALL)
    result = train(system, tmp_path / "run", config)
    samples = Sampler.load(result.artifact, system=system).sample(20, seed=0)
    assert samples.positions.shape == (20, *system.shape)
    assert torch.isfinite(torch.as_tensor(samples.energies)).all()


def test_energies_of_pairs_have_a_preset_of_their_own() -> None:
    """More last layers, which dear energies do not pay for."""
    pairs = load_config("fast", get_system("lj3"))
    dear = load_config(
        "fast", FunctionSystem("s", springs, shape=(3, 2), space="mean-free", invariant=True)
    )
    assert pairs.sampling["kinetic"]["steps"] > 20
    assert not dear.sampling.get("kinetic")


def test_kinetic_layers_without_langevin_layers_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="there is none"):
        load_config("fast", get_system("lj3"), overrides=("generator.langevin_layers=0",))
    overrides = ("generator.langevin_layers=0", "sampling.kinetic=null")
    assert load_config("fast", get_system("lj3"), overrides=overrides).generator.adapted is False
