"""What a user gets wrong is refused within ten seconds, by the function that the commands call."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import butane
import butanes
import pytest
import torch
from functions import Function, channel, square
from torch import Tensor

from molsampler.cli import main
from molsampler.errors import MolsamplerError, UnboundedEnergyError
from molsampler.mcmc.population import PopulationConfig, equilibrate
from molsampler.mcmc.refine import Tuning
from molsampler.nn.generators import Draw, Generator
from molsampler.reference import sample_reference
from molsampler.systems import OpenMMSystem, PairPotential, get_system
from molsampler.target import System
from molsampler.train import TrainResult, load_config, train
from molsampler.train.criterion import Evaluation, evaluate

pytest.importorskip("openmm")

#: Seconds within which a refusal must come, compilation of nothing included.
_PATIENCE = 10.0

#: The paper's algorithm, as short.
SMALL_PAPER = [
    "score_steps=1",
    "target_score.steps=2",
    "target_score.particles=2",
    "evaluate_samples=20",
    "evaluate_steps=2",
]

#: A training that would be over in seconds.
TINY = [
    "iterations=2",
    "batch_size=16",
    "compile=false",
    "evaluate_samples=20",
    "evaluate_steps=2",
    "target_score.size=64",
    "target_score.equilibration=60",
    "target_score.anneal_moves=1",
    "target_score.warmup=2",
]


def yaml(folder: Path, **keys: object) -> Path:
    """A file of a pair potential with a core and a trap, and what else is said."""
    content = {
        "expression": "4*((1/r)^12 - (1/r)^6) + 0.5*r^2/n",
        "particles": 7,
        "dimensions": 3,
        **keys,
    }
    path = folder / "own.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in content.items()))
    return path


def molecule(folder: Path, *, pdb: str = "", forcefield: str = "", more: str = "") -> Path:
    """Butane's file with other content."""
    path = butane.write(folder)
    if pdb:
        (folder / "butane.pdb").write_text(pdb)
    if forcefield:
        (folder / "butane.xml").write_text(forcefield)
    path.write_text(path.read_text() + more)
    return path


def constrained() -> System:
    import openmm
    from openmm import app

    topology = app.Topology()
    residue = topology.addResidue("O", topology.addChain())
    system = openmm.System()
    for name in ("O1", "O2"):
        topology.addAtom(name, app.Element.getBySymbol("O"), residue)
        system.addParticle(16.0)
    system.addConstraint(0, 1, 0.12)
    return OpenMMSystem(system, topology, 300)


def rescaled(factor: float) -> str:
    """Butane's PDB file with coordinates times a factor."""

    def line(text: str) -> str:
        if not text.startswith("HETATM"):
            return text
        x, y, z = (factor * float(text[k : k + 8]) for k in (30, 38, 46))
        return f"{text[:30]}{x:8.3f}{y:8.3f}{z:8.3f}{text[54:]}"

    return "\n".join(line(text) for text in butane.PDB.splitlines())


def train_briefly(made: System | Path, folder: Path, *more: str) -> TrainResult:
    """What ``molsampler train`` does with a system or the path of a file."""
    system = made if isinstance(made, System) else get_system(made)
    settings = load_config(
        "fast", system.name, invariant=system.invariant, overrides=[*TINY, *more]
    )
    return train(system, folder, settings)


FIRST, SECOND, *_ = butane.PDB.splitlines(keepends=True)

#: What is wrong, how a user would write it, and the words that must be said.
ILL_POSED: dict[str, tuple[Callable[[Path], System | Path], str]] = {
    "unbounded": (
        lambda folder: yaml(folder, expression="1000*exp(-4*r) - 10/r^6 + 0.5*r^2/n"),
        "falls to -.* as particles 0 and 1 meet.*no norm.*core",
    ),
    "unbounded, dispersion alone": (
        lambda folder: yaml(folder, expression="-c/r^6 + 0.5*r^2/n", parameters="{c: 1}"),
        "falls to -.* as particles 0 and 1 meet.*no norm.*core",
    ),
    "unbound": (
        lambda folder: yaml(folder, expression="4*((1/r)^12 - (1/r)^6)"),
        r"particle 0 leaves the others.*not bound.*0\.5\*k\*r\^2/n",
    ),
    "unbound molecules": (
        butanes.write,
        "molecule of particles 0 to 3 leaves the others.*not bound.*'restraint:' in the YAML",
    ),
    "wrong units, nanometres in a PDB file": (
        lambda folder: molecule(folder, pdb=rescaled(0.1)),
        r"bonds in positions are 0\.\d+ times.*multiply them by 10",
    ),
    "wrong units, Angstrom as nanometres": (
        lambda folder: molecule(folder, pdb=rescaled(10.0)),
        r"bonds in positions are 9\.\d+ times.*Angstrom.*divide them by 10",
    ),
    "overlapping start": (
        lambda folder: butanes.write(folder, restraint="{}", apart=0.02),
        r"given start .* has an energy of .*particles, \d and \d, are .* apart.*overlap",
    ),
    "charge typo, a key": (
        lambda folder: molecule(folder, more="nonbonded: {solute_dielctric: 2}\n"),
        "unknown key 'nonbonded.solute_dielctric'; did you mean 'solute_dielectric'",
    ),
    "charge typo, a number": (
        lambda folder: yaml(folder, expression="q/r + 0.5*r^2/n", parameters="{q: l.0}"),
        r"parameter 'q' must be a .*number, got 'l\.0'",
    ),
    "charge typo, a name": (
        lambda folder: yaml(folder, expression="q/r + 0.5*r^2/n", parameters="{Q: 1.0}"),
        "'q'",
    ),
    "charge typo, in the force field": (
        lambda folder: molecule(
            folder, forcefield=butane.FORCE_FIELD.replace('charge="0"', 'charge="O.3"', 1)
        ),
        r"cannot describe butane\.pdb.*O\.3",
    ),
    "NaN energies": (
        lambda folder: Function(lambda x: square(x) + torch.log(-square(x))),
        "is NaN at all of",
    ),
    "NaN energies on the way": (
        lambda folder: yaml(folder, expression="sqrt(r - 0.5) + 0.5*r^2/n"),
        "becomes NaN as particles 0 and 1 meet",
    ),
    "non-differentiable function": (
        lambda folder: Function(lambda x: square(x).detach()),
        "cannot be differentiated.*detach",
    ),
    "non-differentiable function, by steps": (
        lambda folder: Function(lambda x: square(x).round() + 0 * square(x)),
        "not minus the gradient",
    ),
    "mismatched topology": (
        lambda folder: molecule(folder, pdb=butane.PDB.replace(SECOND, "")),
        "cannot describe butane.pdb: No template found for residue 0",
    ),
    "duplicated atoms, a line twice": (
        lambda folder: molecule(folder, pdb=FIRST + butane.PDB),
        "writes an atom twice.*C1 *BUT",
    ),
    "duplicated atoms, one place": (
        lambda folder: molecule(
            folder, pdb=butane.PDB.replace(SECOND, FIRST.replace(" 1  C1 ", " 2  C2 "))
        ),
        "particles 0 and 1 at the same place",
    ),
    "constraints": (lambda folder: constrained(), "1 constraints.*constraints=None"),
    "constraints, in a file": (
        lambda folder: molecule(folder, more="constraints: HBonds\n"),
        "constraints must be left out: a constrained length is held by an integrator",
    ),
}


@pytest.mark.parametrize("name", ILL_POSED)
def test_what_is_ill_posed_is_refused_at_once(name: str, tmp_path: Path) -> None:
    make, said = ILL_POSED[name]
    began = time.monotonic()
    with pytest.raises(MolsamplerError, match=said):
        train_briefly(make(tmp_path), tmp_path / "run")
    assert time.monotonic() - began < _PATIENCE
    # Nothing was begun.
    assert not (tmp_path / "run").exists()


def test_what_is_well_posed_is_trained(tmp_path: Path) -> None:
    """Negative control: the file without its fault, and two molecules with a restraint."""
    assert train_briefly(yaml(tmp_path), tmp_path / "run").status == "completed"
    path = butanes.write(tmp_path, restraint="{radius_nm: 0.5}")
    small = "target_score.start_scale=0.2"
    assert train_briefly(path, tmp_path / "two", small).status == "completed"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            lambda folder: yaml(folder, expression="-1/r^6 + 0.5*r^2/n"),
            "particles 0 and 1 meet",
        ),
        (butanes.write, "not bound"),
        (lambda folder: molecule(folder, more="implicit_solvent: obc3\n"), "did you mean 'obc2'"),
    ],
)
def test_commands_say_it_and_fail(
    write: Callable[[Path], Path], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert main(["train", str(path), str(tmp_path / "run")]) == 1
    heard = capsys.readouterr().err
    assert said in " ".join(heard.split())
    assert "Traceback" not in heard
    output = tmp_path / "reference.npz"
    assert main(["reference", str(path), "-n", "10", "-o", str(output), "--method", "mcmc"]) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_who_insists_may_go_on(tmp_path: Path) -> None:
    free = PairPotential("free", "4*((1/r)^12 - (1/r)^6)", n=3, d=2)
    assert train_briefly(free, tmp_path / "run", "probe=false").status == "completed"
    with pytest.raises(MolsamplerError, match="probe=false trains regardless"):
        train_briefly(free, tmp_path / "other")
    with pytest.raises(MolsamplerError, match="not bound"):
        sample_reference(free, 10, method="mcmc")


# What probes miss


def population(system: System, **keys: int) -> Tensor:
    config = PopulationConfig(size=256, equilibration=100, **keys)
    found = equilibrate(
        config,
        system,
        generator=torch.Generator().manual_seed(0),
        like=torch.empty(0),
        report=lambda stage, share: None,
    )
    return found.state.energy


@pytest.mark.parametrize(
    ("system", "said"),
    [
        (Function(channel, 1, 10), r"of 256 chains have fallen to energies as low as -\d"),
        (
            PairPotential("buckingham", "1000*exp(-4*r) - 10/r^6 + 0.5*r^2/n", n=4, d=3),
            "without bound",
        ),
        (PairPotential("charges", "-20/r + 0.5*r^2/n", n=4, d=3), "without bound"),
        (Function(lambda x: square(x) * torch.nan), "none of 256 chains has a finite energy"),
    ],
)
def test_chains_that_fall_without_bound_end_the_population(system: System, said: str) -> None:
    with pytest.raises(UnboundedEnergyError, match=said):
        population(system)


def test_chains_of_a_low_energy_are_left_alone() -> None:
    """Negative control: energies counted from far below, steep walls, and a deep but bounded well."""
    assert population(Function(lambda x: square(x) - 1e8)).median() < -9e7
    assert population(Function(lambda x: 1e6 * square(x))).median() < 10
    assert population(get_system("lj13")).median() < 0


def test_a_training_that_finds_the_fall_leaves_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(UnboundedEnergyError, match="falls without bound"):
        train_briefly(Function(channel, 1, 10), tmp_path / "run", "target_score.size=256")
    assert not (tmp_path / "run" / "artifact").exists()


class Huddle:
    """A generator whose samples are a pair of particles nearly at one place."""

    at_once = 16384

    def draw(self, n: int, target: object, *, generator: torch.Generator) -> Draw:
        x = 1e-3 * torch.randn(n, 2, 3, generator=generator)
        return Draw(x - x.mean(1, keepdim=True), None, 0)


def test_samples_that_have_fallen_end_the_evaluation() -> None:
    def judged(expression: str) -> Evaluation:
        return evaluate(
            cast(Generator, Huddle()),
            PairPotential("pair", expression, n=2, d=3),
            discrepancy=None,
            samples=50,
            steps=2,
            tuning=Tuning(1e-9),
            rng=torch.Generator().manual_seed(0),
        )

    with pytest.raises(UnboundedEnergyError, match=r"of 50 refined samples have fallen"):
        judged("-1/r^6 + 0.5*r^2/n")
    # Negative control: in collision, and to be repaired.
    assert judged("1/r^6 + 0.5*r^2/n").median_energy > 1e6


def test_a_generator_of_nothing_is_not_kept(tmp_path: Path) -> None:
    """Everything finite is too small for the samples to meet."""
    needle = Function(lambda x: square(x) + torch.where(square(x) > 1e-6, torch.inf, 0.0), d=3)
    settings = load_config(
        "paper",
        "function",
        invariant=False,
        overrides=["iterations=2", "compile=false", "batch_size=8", "probe=false", *SMALL_PAPER],
    )
    with pytest.raises(UnboundedEnergyError, match="nothing to keep"):
        train(needle, tmp_path / "run", settings)
    assert not (tmp_path / "run" / "artifact").exists()
