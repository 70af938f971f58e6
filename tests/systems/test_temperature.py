"""Systems at other temperatures: u_T = u_T0 T0 / T, and what says which temperature it is."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from molsampler import Samples, export
from molsampler.errors import InputError
from molsampler.nn.generators import GeneratorConfig
from molsampler.sampler import store
from molsampler.space import Euclidean
from molsampler.systems import (
    ASESystem,
    FunctionSystem,
    PairPotential,
    get_system,
    resolve_recorded,
)
from molsampler.systems.openmm import AlanineDipeptide
from molsampler.target import System

REDUCED = ("dw4", "lj13", "lj6", "mog40", "mw32", "user", "ions-in-a-field", "function")
YAML = "expression: k*r^2 + 1/r\nparticles: 3\ndimensions: 2\nparameters: {k: 2}\n"


def valley(x: Tensor) -> Tensor:
    return 0.5 * (x - 3).square().sum((-2, -1))


def make(name: str) -> System:
    if name == "function":
        return FunctionSystem(name, valley, shape=(5, 3))
    if name == "user":
        return PairPotential(name, "k*r^2/n + 1/r", n=6, d=1, parameters={"k": 2.0})
    if name == "ions-in-a-field":
        return PairPotential(
            name,
            "q1*q2/r + (s/r)^9",
            n=4,
            d=3,
            parameters={"s": 1.1},
            particle_parameters={"q": [1.0, -1.0, 1.0, -1.0]},
            external="0.3*(x^2 + y^2 + q^2*z^2)",
        )
    return get_system(name)


def configurations(system: System, count: int) -> Tensor:
    """Spread float64 positions, no two particles close."""
    n, d = system.shape
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(count, n, d, generator=random, dtype=torch.float64)
    if n == 1:
        return noise
    side = math.ceil(n ** (1 / d))
    cells = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * d).reshape(-1, d)
    return 1.2 * cells[:n] + 0.05 * noise


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energy_and_score_are_proportional_to_the_inverse_temperature(
    name: str, dtype: torch.dtype
) -> None:
    system = make(name)
    moved = system.at(0.6 * system.temperature)
    factor = system.temperature / moved.temperature
    x = configurations(system, 5).to(dtype)
    u, score = system.energy_and_score(x)
    assert torch.equal(moved.energy_and_score(x)[0], u * factor)
    assert torch.equal(moved.energy(x), system.energy(x) * factor)
    assert torch.equal(moved.energy_and_score(x)[1], score * factor)
    raw, slope = moved.unguarded_energy_and_score(x)
    assert torch.equal(raw, u * factor)
    assert torch.equal(slope, score * factor)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(moved.energy(leaf).sum(), leaf)
    assert torch.equal(gradient, -score * factor)
    # The way there and back leaves nothing behind, by whatever detours.
    back = moved.at(1.3 * system.temperature).at(system.temperature)
    assert torch.equal(back.energy_and_score(x)[0], u)
    assert back.record() == system.record()
    assert torch.equal(pickle.loads(pickle.dumps(moved)).energy(x), moved.energy(x))


def test_so_are_those_of_molecules() -> None:
    system = AlanineDipeptide()
    x = torch.as_tensor(system.positions)[None] + 0.002 * torch.randn(
        3, 22, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for moved in (system.at(450), get_system("alanine-dipeptide", temperature=450)):
        for one, other in zip(system.energy_and_score(x), moved.energy_and_score(x), strict=True):
            torch.testing.assert_close(other, one * 300 / 450, rtol=1e-13, atol=1e-13)
        assert moved.temperature == moved.twin_temperature == 450
        assert "450 K" in moved.description
        assert moved.record() == {"name": "alanine-dipeptide", "temperature": 450.0}
    # Engines are shared, so that a ladder of temperatures costs no more memory than one.
    assert system.at(450)._context is system._context
    # A molecule of one's own has no default temperature: what at() gives is what the constructor does.
    mine = AlanineDipeptide(name="mine")
    built = AlanineDipeptide(name="mine", temperature=450)
    assert mine.at(450).record() == built.record() != mine.record()
    assert mine.at(450).molecule == built.molecule


def test_so_are_those_of_a_calculator_and_its_springs() -> None:
    pytest.importorskip("ase")
    from ase import Atoms
    from ase.calculators.emt import EMT

    atoms = Atoms("Cu2Au2", 1.8 * np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]))
    atoms.calc = EMT()
    system = ASESystem(atoms, temperature=1000, restraint=20.0, name="ase")
    x = configurations(system, 2) / 3
    moved = system.at(1500)
    for one, other in zip(system.energy_and_score(x), moved.energy_and_score(x), strict=True):
        torch.testing.assert_close(other, one * 1000 / 1500, rtol=1e-12, atol=1e-12)
    assert moved.restraint == pytest.approx(20 * 1000 / 1500)
    assert moved.record()["temperature"] == 1500
    assert moved.at(1000).record() == system.record()


def test_the_default_temperature_and_its_unit() -> None:
    lj, dw = get_system("lj13"), get_system("dw4")
    assert (lj.temperature, dw.temperature) == (0.5, 1.0)
    # kT over the depth of a pair: at T the well of a pair is 1 / T deep.
    pair = torch.tensor([[0.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    two = get_system("lj2", temperature=0.25)
    trap = 0.5 * 0.5 * 0.5 / 0.25
    assert float(two.energy(pair - pair.mean(0))) == pytest.approx(-1 / 0.25 + trap)
    assert lj.record() == "lj13"
    assert lj.at(0.5) is lj
    assert not lj.in_kelvin
    assert get_system("alanine-dipeptide").in_kelvin


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, "0.3", None, True, 1e10])
@pytest.mark.parametrize("name", ["dw4", "alanine-dipeptide"])
def test_what_is_no_temperature_is_refused(name: str, bad: object) -> None:
    if bad is True and name == "dw4":
        bad = False
    with pytest.raises(InputError, match="temperature"):
        get_system(name).at(bad)  # type: ignore[arg-type]


def test_the_other_unit_is_recognised() -> None:
    with pytest.raises(
        InputError, match=r"'lj13' are in units of the system, 0\.5 by default.*kelvin"
    ):
        get_system("lj13", temperature=300)
    with pytest.raises(
        InputError, match=r"'alanine-dipeptide' are in kelvin, and 0\.3 is less than one"
    ):
        get_system("alanine-dipeptide", temperature=0.3)
    # An expression may be written in kelvin.
    assert PairPotential("k", "120*r^2", n=2, d=1).at(300).temperature == 300


def test_a_temperature_behind_the_name() -> None:
    assert get_system("lj13@0.3").record() == {"name": "lj13", "temperature": 0.3}
    assert get_system("lj13@0.5").record() == "lj13"
    assert get_system("lj13@0.3").label == "lj13@0.3"
    assert get_system("alanine-dipeptide@350").label == "alanine-dipeptide@350"
    with pytest.raises(InputError, match=r"lj13@0\.3, got 'lj13@cold'"):
        get_system("lj13@cold")
    with pytest.raises(InputError, match="give one"):
        get_system("lj13@0.3", temperature=0.3)


def test_system_files(tmp_path: Path) -> None:
    path = tmp_path / "my3.yaml"
    path.write_text(YAML)
    plain = get_system(path)
    path.write_text(YAML + "temperature: 2.5\n")
    warm = get_system(path)
    x = configurations(plain, 4)
    assert torch.equal(warm.energy(x), plain.energy(x) * (1 / 2.5))
    assert warm.record() == {**plain.record(), "temperature": 2.5}
    assert get_system(f"{path}@5").temperature == 5
    path.write_text("system: lj13\ntemperature: 0.3\n")
    assert get_system(path).record() == {"name": "lj13", "temperature": 0.3}
    path.write_text(YAML + "temperature: -1\n")
    with pytest.raises(
        InputError, match=r"my3\.yaml: temperature of 'my3' must be a number above 0"
    ):
        get_system(path)


def test_a_function_states_both_temperatures() -> None:
    system = FunctionSystem("valley", valley, shape=(1, 2), temperature=300)
    moved = system.at(150)
    assert moved.record() == {**system.record(), "at": 150.0}
    x = torch.zeros(1, 1, 2)
    assert torch.equal(moved.energy(x), 2 * system.energy(x))
    assert system.record()["temperature"] == 300.0
    assert FunctionSystem("valley", valley, shape=(1, 2)).record()["temperature"] is None


class Mute(System):
    name = "mute"

    def __init__(self) -> None:
        self.space = Euclidean(1, 2)

    def record(self) -> dict[str, object]:
        return {"kind": "mute", "name": "mute"}


def test_a_class_whose_record_ignores_the_temperature_stays_where_it_is() -> None:
    with pytest.raises(InputError, match=r"record\(\) of Mute says nothing of it"):
        Mute().at(2)


@pytest.mark.parametrize("name", ["lj13@0.3", "dw4@2", "alanine-dipeptide@350", "mw32@1.5"])
def test_records_give_the_system_again(name: str) -> None:
    system = get_system(name)
    again = resolve_recorded(json.loads(json.dumps(system.record())))
    x = configurations(system, 2) * (0.1 if system.in_kelvin else 1)
    assert again.record() == system.record()
    assert torch.equal(again.energy(x), system.energy(x))
    assert again.temperature == system.temperature
    plain = get_system(system.name)
    for recorded, given in ((plain.record(), system), (system.record(), plain)):
        with pytest.raises(
            InputError, match=r"at temperature .*, not .*; both have to be of one temperature"
        ):
            resolve_recorded(recorded, given=given)


def test_samples_and_cards_keep_the_temperature(tmp_path: Path) -> None:
    system = get_system("dw4", temperature=2.0)
    x = configurations(system, 6)
    samples = Samples.of(system, x)
    for suffix in (".npz", ".xtc"):
        samples.save(tmp_path / f"s{suffix}")
        loaded = export.load(tmp_path / f"s{suffix}")
        assert loaded.system().temperature == 2.0
        tolerance = 0.05 if suffix == ".xtc" else 1e-5
        torch.testing.assert_close(
            loaded.energies, samples.energies, rtol=tolerance, atol=tolerance
        )
    generator = GeneratorConfig.parse({"kind": "direct"}).build(system.space)
    assert isinstance(generator, nn.Module)
    store.save(tmp_path / "warm", generator, system=system)
    store.save(tmp_path / "plain", generator, system=get_system("dw4"))
    from molsampler import Sampler

    warm, plain = (Sampler.load(tmp_path / name) for name in ("warm", "plain"))
    assert (warm.system.temperature, warm.card.temperature) == (2.0, 2.0)
    assert (plain.system.temperature, plain.card.temperature) == (1.0, None)
    assert plain.card.system == "dw4"
    drawn = warm.sample(5, seed=1)
    torch.testing.assert_close(
        drawn.energies, plain.system.energy(drawn.positions.double()) / 2, rtol=1e-5, atol=1e-5
    )


def test_averages_at_two_temperatures_agree_by_reweighting() -> None:
    """Exact draws of the many-well at T = 1.4 have its mean energy at T = 1 if weighted, and else not."""
    warm = get_system("mw32", temperature=1.4)
    cold = get_system("mw32")
    n = 200_000
    generator = torch.Generator().manual_seed(3)
    # One pair at a time: the weights of sixteen would leave nothing.
    one, two = type(cold)(1), type(cold)(1).at(1.4)  # type: ignore[call-arg]
    x = two.sample(n, generator=generator)  # type: ignore[attr-defined]
    u = one.energy(x)
    weight = torch.softmax(two.energy(x) - u, 0)
    mean = float((weight * u).sum())
    error = float((weight.square() * (u - mean).square()).sum().sqrt())
    assert abs(mean - one.mean_energy) < 5 * error  # type: ignore[attr-defined]
    assert abs(float(u.mean()) - one.mean_energy) > 50 * error  # type: ignore[attr-defined]
    # The exact statements move along: d log Z / d beta = -E[U].
    direct = float(two.energy(x).mean())
    spread = float(two.energy(x).std()) / math.sqrt(n)
    assert abs(direct - two.mean_energy) < 5 * spread  # type: ignore[attr-defined]
    h = 1e-4
    above, below = (type(cold)(1).at(1 / (1 / 1.4 + s)).log_z for s in (h, -h))  # type: ignore
    assert (above - below) / (2 * h) == pytest.approx(-1.4 * two.mean_energy, rel=1e-5)  # type: ignore
    assert warm.log_z == pytest.approx(16 * two.log_z)  # type: ignore[attr-defined]
    assert np.isfinite(warm.mean_energy)  # type: ignore[attr-defined]


def test_facts_of_one_temperature_are_not_told_of_another() -> None:
    warm = get_system("mog40", temperature=2)
    for ask in (
        lambda: warm.log_z,  # type: ignore[attr-defined]
        lambda: warm.sample(3, generator=None),  # type: ignore[attr-defined]
        lambda: warm.log_prob(torch.zeros(1, 1, 2)),  # type: ignore[attr-defined]
    ):
        with pytest.raises(InputError, match="known exactly at temperature 1 only"):
            ask()


def test_the_twin_of_a_reduced_system_is_run_at_a_temperature_in_proportion() -> None:
    pytest.importorskip("openmm")
    system = get_system("lj13")
    moved = system.at(0.25)
    assert moved.twin_temperature == system.twin_temperature / 2
    import openmm

    one, other = (openmm.XmlSerializer.serialize(each.openmm_twin()[0]) for each in (system, moved))
    assert one == other
