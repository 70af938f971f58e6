"""``molsampler info``: what a file, system, artifact or run folder is, from what, and whether it is whole."""

from __future__ import annotations

import hashlib
import json as json_module
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, OfSystem, TrustCode, given_system
from .terminal import plain, print_json, printable

if TYPE_CHECKING:
    from ..target import System


def info(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ARTIFACT|RUN_DIR|SYSTEM",
            help="Samples, a report, a system (.yaml or name), a folder with a trained sampler, the name "
            "of a shipped one, or a run.",
        ),
    ],
    system: OfSystem = None,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Say what something is, what it was made from, and whether its hashes hold."""
    path = Path(source)
    known = given_system(system, trust_code=trust_code)
    if (path / "config.resolved.yaml").is_file():
        result = _run(path, known)
    elif path.is_file():
        result = _file(path, trust_code=trust_code)
    else:
        result = _named(source, known, trust_code=trust_code)
    if json:
        print_json(result)
    else:
        for line in _lines(plain(result)):
            print(printable(line))
    if result.get("intact") is False:
        raise typer.Exit(1)


def _file(path: Path, *, trust_code: bool) -> dict[str, Any]:
    """What a file is: a report, a system, the settings of a run, or samples."""
    from molsampler.analysis import describe_report
    from molsampler.systems import get_system

    from ..export import describe
    from ..train.config import from_yaml

    suffix = path.suffix.lower()
    if suffix in (".html", ".htm"):
        return {"kind": "report", **describe_report(path)}
    if path.name == "config.resolved.yaml":
        return {"kind": "training configuration", **from_yaml(path).model_dump(mode="json")}
    if suffix in (".yaml", ".yml"):
        system = get_system(path, trust_code=trust_code)
        command = f"{path} --trust-code" if trust_code else str(path)
        return {"kind": "system", "file": str(path), **_system(system, str(path), command)}
    result = {"kind": "samples", **describe(path)}
    if result.get("ess") is not None:
        result["averages"] = (
            "energies above are those of the draws as they are; averages need their weights: molsampler "
            f"free-energy {path}"
        )
    return result


def _named(source: str, known: System | None, *, trust_code: bool) -> dict[str, Any]:
    """What a name or a folder is: a sampler, or a system without one."""
    from molsampler.systems import get_system, resolve

    from ..errors import FileFormatError, UnknownNameError
    from ..sampler.store import list_pretrained

    if not Path(source).exists() and source not in list_pretrained():
        name, _, temperature = source.rpartition("@")
        if name and temperature:
            return {
                "kind": "system",
                **_system(resolve(source, trust_code=trust_code), name, source),
            }
        if Path(source).suffix:
            raise FileFormatError(f"there is no file {source}")
        try:
            return {"kind": "system", **_system(get_system(source), source, source)}
        except UnknownNameError as error:
            samplers = ", ".join(list_pretrained())
            raise UnknownNameError(f"{error}; shipped samplers: {samplers}") from None
    return _artifact(source, known)


def _system(system: System, source: str, command: str) -> dict[str, Any]:
    """A system in words, and how one gets a sampler of it: ``command`` names it to ``train``."""
    from ..sampler.store import list_pretrained

    n, dimension = system.shape
    molecule = system.molecule
    result: dict[str, Any] = {
        "name": system.name,
        "description": system.description,
        "particles": n,
        "dimensions": dimension,
        "units": system.units,
        "length_nm": system.length_nm,
        "temperature_kelvin" if system.in_kelvin else "temperature": system.temperature,
        "symmetric_under_rotation_and_reflection": system.invariant,
        "particles_exchangeable": system.exchangeable,
    }
    if molecule is not None:
        result["molecule"] = {
            "types": len(set(molecule.types)),
            "bonds": len(molecule.bonds),
            "chiral_centres": len(molecule.chiral_centres),
        }
    if system.collective_variables:
        result["collective_variables"] = dict(system.collective_variables)
    if system.basins is not None:
        result["basins"] = list(system.basins.names)
    related = [name for name in list_pretrained() if f"{name}-".startswith(f"{source}-")]
    if system.temperature != system.default_temperature:
        related = [name for name in related if _reaches(name, system.temperature)]
    result["sampler"] = (
        f"ships: {', '.join(related)}"
        if related
        else f"none ships; molsampler train {command} RUN_DIR makes one"
    )
    return result


def _reaches(name: str, temperature: float) -> bool:
    """Whether a shipped sampler is one of a range with this temperature in it."""
    from ..sampler.card import CARD, read_card
    from ..sampler.store import PRETRAINED

    temperatures = read_card(PRETRAINED / name / CARD)[0].temperatures
    return temperatures is not None and temperature in temperatures


def _artifact(source: str, system: System | None) -> dict[str, Any]:
    from ..sampler.sampler import Sampler

    # Loading checks the hash of the weights and raises where it does not hold.
    sampler = Sampler.load(source, system=system)
    return {
        "kind": "sampler",
        "integrity": "weights match the card's SHA-256",
        **sampler.describe(),
    }


def _run(folder: Path, system: System | None) -> dict[str, Any]:
    from ..errors import MolsamplerError, SystemNeededError
    from ..train import checkpoint
    from ..train.config import from_yaml
    from ..train.folder import RunFolder

    run = RunFolder(folder)
    result: dict[str, Any] = {"kind": "training run", "folder": str(folder), "intact": True}
    problems = []
    newest = None
    result["checkpoints"] = []
    for path in checkpoint.checkpoints(run.checkpoints):
        try:
            found = checkpoint.read(path)
        except MolsamplerError:
            found = None
        newest = newest or found
        result["checkpoints"].append(path.name)
        if found is None:
            problems.append(f"checkpoint {path.name} does not match the SHA-256 in its name")
    counters = {} if newest is None else json_module.loads(newest[1])
    result["last_metrics"], problem = _log(run.metrics, counters)
    problems += [problem] if problem else []
    try:
        result["config"] = from_yaml(run.config).model_dump(mode="json")
    except MolsamplerError as error:
        problems.append(str(error))
    if run.artifact.is_dir():
        try:
            result["artifact"] = _artifact(str(run.artifact), system)
        except SystemNeededError as error:
            # Whole, for all that can be said without the system.
            result["artifact"] = f"not read: {error}"
        except MolsamplerError as error:
            problems.append(str(error))
    if problems:
        result.update(intact=False, problem="; ".join(problems))
    return result


def _log(metrics: Path, counters: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The last line of a run's log, and what is wrong with the part that a checkpoint seals."""
    if not metrics.is_file():
        return {}, f"{metrics} is missing" if counters.get("log_bytes") else None
    digest = hashlib.sha256()
    with open(metrics, "rb") as file:
        left = int(counters.get("log_bytes", 0))
        while piece := file.read(min(left, 2**20)):
            digest.update(piece)
            left -= len(piece)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 2**16))
        tail = file.read()
    seal = counters.get("log_sha256")
    problem = None
    if left or (seal and seal != digest.hexdigest()):
        problem = f"{metrics} is not as the newest checkpoint left it"
    # A killed run may leave half a line at the end.
    for line in reversed(tail.splitlines()):
        try:
            last = json_module.loads(line)
        except ValueError:
            continue
        if isinstance(last, dict):
            return last, problem
    return {}, problem


def _lines(value: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}:", *_lines(item, indent + "  ")]
        elif isinstance(item, list) and item and all(isinstance(part, dict) for part in item):
            lines.append(f"{indent}{key}:")
            for part in item:
                first, *rest = _lines(part, indent + "    ") or [f"{indent}    none"]
                lines += [f"{indent}  - {first.lstrip()}", *rest]
        elif isinstance(item, list):
            lines.append(f"{indent}{key}: {', '.join(str(part) for part in item) or 'none'}")
        else:
            lines.append(f"{indent}{key}: {'none' if item in (None, {}) else item}")
    return lines
