"""``molsampler doctor``: versions, devices, OpenMM platforms, and a self-test of what commands rely on."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .options import Json
from .terminal import print_json, print_table

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTIONS = (
    "molsampler", "torch", "numpy", "pydantic", "PyYAML", "safetensors", "rich", "typer", "OpenMM",
    "mdtraj", "tables", "POT", "scipy", "matplotlib", "Jinja2",
)  # fmt: skip
OPTIONAL = ("rdkit", "ase", "bgflow", "py3Dmol", "openmmtools")

#: Reduced energies of reference configurations in float64, by the convention of each system.
GOLDEN = {"dw4": -8.396642530754, "lj13": -38.865221378814}


def doctor(json: Json = False) -> None:
    """Print versions, devices and platforms, and test what the other commands rely on."""
    versions, devices = _versions(), _devices()
    results = [_attempt(name, test) for name, test in CHECKS]
    broken = [result for result in results if not result["ok"]]
    if json:
        print_json({"versions": versions, "devices": devices, "checks": results, "ok": not broken})
    else:
        print_table(("software", "version"), list(versions.items()))
        print()
        print_table(("device", ""), list(devices.items()))
        print()
        print_table(
            ("self-test", "result", ""),
            [(r["name"], "ok" if r["ok"] else "BROKEN", r["detail"]) for r in results],
        )
        print()
        print(f"{len(broken)} of {len(results)} checks failed" if broken else "all checks passed")
    if broken:
        raise typer.Exit(1)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"Python": platform.python_version()}
    for name in (*DISTRIBUTIONS, *OPTIONAL):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed" + (" (optional)" if name in OPTIONAL else "")
    return found


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} torch threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        devices[f"cuda:{index}"] = f"{properties.name}, {memory:.0f} GiB"
    if torch.cuda.device_count() == 0:
        devices["cuda"] = "none"
    try:
        import openmm

        names = [
            openmm.Platform.getPlatform(i).getName()
            for i in range(openmm.Platform.getNumPlatforms())
        ]
        devices["OpenMM platforms"] = ", ".join(names)
        failures = openmm.Platform.getPluginLoadFailures()
        if failures:
            # Each reads "Error loading library PATH: REASON"; GPU plugins need a GPU's driver.
            paths = (failure.removeprefix("Error loading library ") for failure in failures)
            names = [Path(path.split(":")[0]).name for path in paths]
            devices["OpenMM plugins not loaded"] = ", ".join(names)
    except ImportError as error:
        devices["OpenMM platforms"] = f"none: {error}"
    return devices


def _attempt(name: str, test: Callable[[], str]) -> dict[str, Any]:
    # A broken installation can fail with anything; each failure is a row, and the rest still runs.
    try:
        return {"name": name, "ok": True, "detail": test()}
    except Exception as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        return {"name": name, "ok": False, "detail": detail}


class WrongValueError(Exception):
    """A self-test found a wrong value."""


def _configuration(name: str) -> Tensor:
    import torch

    if name == "dw4":
        return torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]], dtype=torch.float64)
    grid = [[i // 9, (i // 3) % 3, i % 3] for i in range(13)]
    return torch.tensor(grid, dtype=torch.float64)


def _golden_energies() -> str:
    from molsampler.systems import get_system

    worst = 0.0
    for name, expected in GOLDEN.items():
        value = float(get_system(name).energy(_configuration(name)))
        worst = max(worst, abs(value - expected))
        if not abs(value - expected) < 1e-9:
            raise WrongValueError(f"{name}: energy {value!r}, expected {expected!r}")
    return f"{', '.join(GOLDEN)}: within {worst:.0e}"


def _score_against_finite_difference() -> str:
    import torch

    from molsampler.systems import get_system

    system, step = get_system("lj13"), 1e-5
    x = 1.1 * _configuration("lj13")
    _, score = system.energy_and_score(x)
    shifts = step * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    numeric = -(system.energy(x + shifts) - system.energy(x - shifts)) / (2 * step)
    error = float((numeric.reshape(x.shape) - score).abs().max() / score.abs().max())
    if not error < 1e-6:
        raise WrongValueError(f"lj13: analytic and numeric score differ by {error:.1e}")
    return f"lj13: relative difference {error:.0e}"


def _openmm_twin() -> str:
    import openmm
    from openmm import unit

    from molsampler.systems import get_system

    from ..units import TWIN_TEMPERATURE, kT

    system = get_system("lj13")
    twin, _ = system.openmm_twin()
    context = openmm.Context(
        twin, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(_configuration("lj13").numpy() * system.length_nm)
    potential = context.getState(getEnergy=True).getPotentialEnergy()
    value = potential.value_in_unit(unit.kilojoule_per_mole) / kT(TWIN_TEMPERATURE)
    error = abs(value - GOLDEN["lj13"])
    if not error < 1e-6:
        raise WrongValueError(f"lj13: OpenMM gives {value!r}, expected {GOLDEN['lj13']!r}")
    return f"lj13: within {error:.0e}"


def _round_trips() -> str:
    import torch

    from molsampler.systems import get_system

    from ..export import FORMATS, load, save
    from ..samples import Samples

    system = get_system("lj13")
    generator = torch.Generator().manual_seed(0)
    spread = 0.1 * torch.randn(5, *system.shape, generator=generator)
    samples = Samples.of(system, _configuration("lj13").float() + spread)
    # Coarsest format: .xtc and .pdb keep 1e-3 nm.
    tolerance = 2e-3 / system.length_nm
    with tempfile.TemporaryDirectory() as folder, _quiet():
        for suffix in FORMATS.names():
            path = Path(folder) / f"{suffix[1:]}{suffix}"
            save(samples, path)
            error = float((load(path).positions - samples.positions).abs().max())
            if not error < tolerance:
                raise WrongValueError(f"{suffix}: positions came back {error:.1e} off")
    return ", ".join(FORMATS.names())


@contextmanager
def _quiet() -> Iterator[None]:
    # That .xtc is coarse is no news here.
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _shipped_samplers() -> str:
    import torch

    from ..sampler.sampler import Sampler
    from ..sampler.store import list_pretrained

    for name in list_pretrained():
        samples = Sampler.load(name).sample(8, seed=0)
        if not bool(torch.isfinite(samples.energies).any()):
            raise WrongValueError(f"{name}: no sample has a finite energy")
    return ", ".join(list_pretrained()) or "none ship"


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("energies have their published values", _golden_energies),
    ("scores are minus the gradient of energies", _score_against_finite_difference),
    ("OpenMM twins agree with the energies", _openmm_twin),
    ("every file format reads back what was written", _round_trips),
    ("shipped samplers match their hashes and sample", _shipped_samplers),
)
