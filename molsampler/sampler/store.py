"""Trained samplers as files.

An artifact is a folder with two files: ``weights.safetensors`` and ``card.json``, the card saying
what the weights are (system, architecture, temperature, units, provenance, measured quality) and
holding their SHA-256. Nothing in it is executed: pickles are refused, and both files are bounded in
size before they are parsed.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..errors import (
    DivergenceError,
    FileFormatError,
    InputError,
    IntegrityError,
    MolsamplerError,
    OutputExistsError,
    StorageError,
    UnknownNameError,
    nearest,
)
from ..molecule.chart import chart_of
from ..molecule.internal_coordinates import InternalCoordinates
from ..molecule.molecule import Molecule
from ..nn.generators import Generator, GeneratorConfig
from ..storage.files import fsync_folder, read_limited, remove, sha256, temporary_path, write_bytes
from ..storage.sealed_json import sealed
from ..target import System
from ..version import __version__
from .card import CARD, Card, EnergyBounds, Training, read_card
from .verdict import Verdict

#: Suffixes of files of samples, which are no samplers.
_FILES = (".npz", ".h5", ".dcd", ".xtc", ".pdb")

PRETRAINED = Path(__file__).parents[1] / "pretrained"

WEIGHTS = "weights.safetensors"
#: Weights that wait for their card while an artifact is replaced; see :func:`save`.
NEW_WEIGHTS = "weights.new.safetensors"

HEADER_LIMIT = 2**20
WEIGHTS_LIMIT = 2**30

#: Types that weights may have.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Suffixes of formats that run code when they are loaded.
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib")


def check_folder(folder: Path) -> None:
    if not (folder / CARD).exists() and (folder / "artifact" / CARD).is_file():
        raise FileFormatError(
            f"{folder} is the folder of a training; its sampler is {folder / 'artifact'}"
        )
    if not (folder / CARD).exists():
        if (folder / "config.resolved.yaml").is_file():
            raise FileFormatError(
                f"the training in {folder} has not come to a sampler yet; the same molsampler train command "
                "goes on with it"
            )
        if not (folder / WEIGHTS).exists():
            raise FileFormatError(
                f"{folder} is no sampler: a folder with {WEIGHTS} and {CARD} is expected"
            )
    for entry in sorted(folder.iterdir()):
        if entry.suffix.lower() in PICKLES:
            raise FileFormatError(
                f"{entry} may run code when loaded; artifacts hold {WEIGHTS} and {CARD} only"
            )


def read_weights(folder: Path, digest: str) -> dict[str, Tensor]:
    """The weights that have the card's hash.

    Raises
    ------
    IntegrityError
        No weights file of the folder has it.
    FileFormatError
        The file is a link, too large, or not in the safetensors format.
    """
    found = None
    for name in (WEIGHTS, NEW_WEIGHTS):
        path = folder / name
        if path.is_symlink():
            raise FileFormatError(f"{path} is a link; an artifact holds its weights itself")
        if not path.exists():
            continue
        _check_header(path)
        content = read_limited(path, WEIGHTS_LIMIT)
        # Hashed and parsed are the same bytes, whatever happens to the file meanwhile.
        found = hashlib.sha256(content).hexdigest()
        if found == digest:
            return _parse_weights(content, path)
    path = folder / WEIGHTS
    if found is None:
        raise FileFormatError(f"{path} does not exist or is not a regular file")
    raise IntegrityError(
        f"{path} does not match its card: SHA-256 {found[:12]}..., the card says {digest[:12]}..."
    )


def _check_header(path: Path) -> None:
    """Bound the header before any of it is parsed."""
    if not path.is_file():
        raise FileFormatError(f"{path} is not a regular file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
    (header,) = struct.unpack("<Q", start) if len(start) == 8 else (-1,)
    if not 2 <= header <= min(HEADER_LIMIT, size - 8):
        raise FileFormatError(
            f"{path} is not a usable safetensors file: it announces a header of {header} bytes "
            f"(at most {HEADER_LIMIT} in a file of {size})"
        )


def _parse_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    try:
        weights = load(content)
    except Exception as error:  # the header can ask torch for anything
        raise FileFormatError(f"{path} is not a valid safetensors file: {error}") from None
    for name, tensor in weights.items():
        if tensor.dtype not in FLOATS:
            raise FileFormatError(f"{path}: weight {name!r} has type {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise FileFormatError(f"{path}: weight {name!r} holds NaN or infinity")
    return weights


def build(card: Card, system: System, weights: Mapping[str, Tensor]) -> Generator:
    """The card's generator with its weights; shapes are compared before anything is allocated.

    Raises
    ------
    FileFormatError
        The card describes no generator of a known kind, or the weights are of another one.
    """
    try:
        config = GeneratorConfig.parse(card.architecture)
        sampling = config.sampling(card.sampling)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FileFormatError(f"architecture.{where}: {first['msg']}") from None
    except UnknownNameError as error:
        raise FileFormatError(f"architecture.kind: {error}") from None
    space = chart_of(system, card.coordinates).target.space

    def made() -> Generator:
        try:
            return config.build(space, molecule=card.molecule, sampling=sampling)
        except InputError as error:
            raise FileFormatError(f"architecture: {error}") from None

    with torch.device("meta"):
        empty = made()
    if empty.temperatures != card.temperatures:
        raise FileFormatError(
            f"temperatures: the card says {card.temperatures}, its architecture {empty.temperatures}"
        )
    expected = {name: _form(tensor) for name, tensor in empty.state_dict().items()}
    found = {name: _form(tensor) for name, tensor in weights.items()}
    if expected != found:
        missing = sorted(expected.keys() - found.keys())
        surplus = sorted(found.keys() - expected.keys())
        shapes = [k for k in sorted(expected.keys() & found.keys()) if expected[k] != found[k]]
        raise FileFormatError(
            f"the weights do not fit the architecture: missing {missing[:3]}, surplus {surplus[:3]}, "
            f"of another shape or type {[(k, found[k], expected[k]) for k in shapes[:3]]}"
        )
    generator = made()
    generator.load_state_dict(weights)
    return generator.eval().requires_grad_(False)


def _form(tensor: Tensor) -> tuple[int | str, ...]:
    return (*tensor.shape, str(tensor.dtype).removeprefix("torch."))


def list_pretrained() -> list[str]:
    """Names of the artifacts that ship with molsampler."""
    if not PRETRAINED.is_dir():
        return []
    return sorted(entry.name for entry in PRETRAINED.iterdir() if (entry / CARD).is_file())


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    if isinstance(name_or_path, str) and name_or_path in list_pretrained():
        return PRETRAINED / name_or_path
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.is_file():
        why = (
            "pickles are refused" if path.suffix.lower() in PICKLES else "a single file is not one"
        )
        instead = ""
        if path.suffix.lower() in (".yaml", ".yml"):
            instead = f". It may be a system: molsampler train {path} RUN_DIR makes a sampler of it"
        raise FileFormatError(
            f"{path} is not an artifact: {why}; a folder with {WEIGHTS} and {CARD} is expected{instead}"
        )
    known = list_pretrained()
    if path.name == "artifact" and (path.parent / "config.resolved.yaml").is_file():
        raise UnknownNameError(
            f"the training in {path.parent} has not come to a sampler yet; the same molsampler train "
            "command goes on with it"
        )
    name, _, given = str(name_or_path).rpartition("@")
    if name in known:
        ranged = read_card(PRETRAINED / name / CARD)[0].temperatures
        option = "--temperature"
        if ranged is not None and re.fullmatch(r"[\d.]+", given) and float(given) in ranged:
            option = f"--temperature {given}"
        raise UnknownNameError(
            f"{name!r} is a sampler of the temperatures {ranged}: ask it for one of them by temperature= "
            f"({option})"
            if ranged is not None
            else f"{name!r} is a sampler of one temperature; one of a range comes from molsampler train "
            "SYSTEM RUN_DIR --temperature LO:HI"
        )
    if path.suffix.lower() in _FILES:
        raise UnknownNameError(f"{path} does not exist")
    raise UnknownNameError(
        f"{str(name_or_path)!r} is neither a shipped sampler ({', '.join(known) or 'none ship'}) nor "
        f"a folder{nearest(str(name_or_path), known)}"
    )


def save(
    folder: Path | str,
    generator: Generator,
    *,
    system: System,
    coordinates: InternalCoordinates | None = None,
    training: Training | None = None,
    quality: Sequence[Mapping[str, Any]] = (),
    verdict: Verdict | None = None,
    energy_bounds: tuple[float, float] | list[EnergyBounds] | None = None,
    temperature: float | None = None,
    units: Mapping[str, str] | None = None,
    license: str = "MIT",
    overwrite: bool = False,
) -> None:
    """Write an artifact and read it back.

    A new folder appears in one rename. In an existing one the new weights are put beside the old, the card
    is replaced in one rename, and the new weights take the old name: whenever this is interrupted, the
    card finds weights of its hash.

    Raises
    ------
    OutputExistsError
        ``folder`` exists and ``overwrite`` is false, or it is not an artifact.
    StorageError
        There is no space, or what was written does not read back.
    DivergenceError
        A weight is not finite.
    """
    from safetensors.torch import save as serialise

    folder = Path(folder)
    replaces = _check_output_folder(folder, overwrite=overwrite)
    state = {name: t.detach().cpu().contiguous() for name, t in generator.state_dict().items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DivergenceError(
                f"weight {name!r} holds NaN or infinity; the artifact is not saved"
            )
    weights = serialise(state)
    card = Card(
        system=system.record(),
        shape=system.shape,
        architecture=generator.config.model_dump(mode="json"),
        sampling=generator.sampling.model_dump(mode="json"),
        coordinates=coordinates,
        molecule=recorded(system.molecule) if coordinates is None else None,
        units=dict(units or _units(system)),
        temperature=_recorded_temperature(system) if temperature is None else temperature,
        temperatures=generator.temperatures,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        training=training,
        quality=[dict(row) for row in quality],
        verdict=verdict,
        energy_bounds=energy_bounds,
        molsampler_version=__version__,
        license=license,
    )
    text = sealed(card.model_dump_json())
    if replaces:
        if (folder / NEW_WEIGHTS).is_file() and _names(folder / CARD, folder / NEW_WEIGHTS):
            # An interrupted replacement: these are the weights of the present card.
            os.replace(folder / NEW_WEIGHTS, folder / WEIGHTS)
        write_bytes(folder / NEW_WEIGHTS, weights)
        _verify(folder, NEW_WEIGHTS, card, system)
        write_bytes(folder / CARD, text)
        os.replace(folder / NEW_WEIGHTS, folder / WEIGHTS)
        fsync_folder(folder)
        return
    temporary = temporary_path(folder)
    try:
        temporary.mkdir()
        write_bytes(temporary / WEIGHTS, weights)
        write_bytes(temporary / CARD, text)
        _verify(temporary, WEIGHTS, card, system)
        os.rename(temporary, folder)
        fsync_folder(folder.parent)
    except OSError as error:
        if isinstance(error, MolsamplerError):
            raise
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        remove(temporary)


def recorded(molecule: Molecule | None) -> Molecule | None:
    """What a card keeps of a molecule: networks need no geometry."""
    return molecule and molecule.model_copy(update={"geometry": None, "turning_bonds": None})


def _recorded_temperature(system: System) -> float | None:
    default = system.temperature == system.default_temperature
    return None if default and not system.in_kelvin else system.temperature


def _names(card: Path, weights: Path) -> bool:
    """Whether the card is readable and has the SHA-256 of these weights."""
    try:
        return read_card(card)[0].weights_sha256 == sha256(weights)
    except FileFormatError:
        return False


def _units(system: System) -> dict[str, str]:
    return {"energy": "kT", "length": f"{system.length_nm:g} nm"}


def _check_output_folder(folder: Path, *, overwrite: bool) -> bool:
    """Whether an artifact is replaced (True) or a new folder is made (False)."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputExistsError(f"{folder} is a link or a file; an artifact is a folder")
    if not folder.parent.is_dir():
        raise StorageError(f"cannot write {folder}: folder {folder.parent} does not exist")
    if not folder.exists():
        return False
    if not any(folder.iterdir()):
        return False
    if not (folder / CARD).is_file():
        raise OutputExistsError(f"{folder} exists and holds no {CARD}: it is not an artifact")
    if not overwrite:
        raise OutputExistsError(f"{folder} exists; pass --overwrite (overwrite=True) to replace it")
    return True


def _verify(folder: Path, name: str, card: Card, system: System) -> None:
    path = folder / name
    if sha256(path) != card.weights_sha256:
        raise StorageError(f"{path} does not read back as it was written")
    build(card, system, _parse_weights(path.read_bytes(), path))
