"""Trained samplers as files.

An artifact is a folder with two files: ``weights.safetensors`` and ``card.json``, the card saying
what the weights are (system, architecture, temperature, units, provenance, measured quality) and
holding their SHA-256. Nothing in it is executed: pickles are refused, and both files are bounded in
size before they are parsed.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from . import __version__, memory
from .documents import parse_json, sealed, unsealed
from .errors import (
    DivergenceError,
    FileFormatError,
    InputError,
    IntegrityError,
    MolsamplerError,
    OutputExistsError,
    ResourceError,
    StorageError,
    UnknownNameError,
    nearest,
)
from .files import fsync_folder, read_limited, remove, sha256, temporary_path, write_bytes
from .internal import InternalCoordinates, working_target
from .nn.generator import GeneratorConfig, build_generator
from .samples import Samples, check_recorded, recorded_system, reference_to
from .stream import SampleStream
from .target import System

if TYPE_CHECKING:
    from typing import Self

PRETRAINED = Path(__file__).parent / "pretrained"

WEIGHTS = "weights.safetensors"
#: Weights that wait for their card while an artifact is replaced; see :func:`save`.
NEW_WEIGHTS = "weights.new.safetensors"
CARD = "card.json"

CARD_LIMIT = 4 * 2**20
HEADER_LIMIT = 2**20
WEIGHTS_LIMIT = 2**30

#: Types that weights may have.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Suffixes of formats that run code when they are loaded.
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib")

#: Samples handed on at a time by default.
BATCH = 8192


class Cost(BaseModel):
    """What training took."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy_evaluations: int = Field(ge=0)
    seconds: float = Field(ge=0)
    iterations: int = Field(ge=0)
    machine: str


class Training(BaseModel):
    """How the weights came to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: dict[str, Any]
    command: str
    seed: int
    cost: Cost


class Card(BaseModel):
    """Content of ``card.json``.

    ``system`` is a registered name or an inline specification; ``temperature`` is in kelvin, None for
    reduced systems; ``quality`` is a table of measured metrics, one row each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    system: str | dict[str, Any]
    shape: tuple[int, int]
    architecture: dict[str, Any]
    units: dict[str, str] = Field(default_factory=dict)
    temperature: float | None = None
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    training: Training | None = None
    quality: list[dict[str, Any]] = Field(default_factory=list)
    molsampler_version: str
    license: str = "MIT"


def read_card(path: Path) -> tuple[Card, str]:
    """The card in a file and the SHA-256 of its bytes.

    Raises
    ------
    FileFormatError
        It is not a card, has unknown or missing keys, or is of another format version.
    IntegrityError
        It is damaged or was edited.
    """
    if path.is_symlink():
        raise FileFormatError(f"{path} is a link; an artifact holds its files itself")
    content = read_limited(path, CARD_LIMIT)
    fields = parse_json(content, path)
    if not isinstance(fields, dict):
        raise FileFormatError(f"{path} must hold a JSON object, got {type(fields).__name__}")
    version = fields.get("format_version")
    if version != 1 or isinstance(version, bool):
        raise FileFormatError(
            f"{path} has format_version {version!r}; molsampler {__version__} reads version 1"
        )
    try:
        return Card.model_validate(unsealed(fields, path)), hashlib.sha256(content).hexdigest()
    except ValidationError as error:
        models: dict[str, type[BaseModel]] = {"training": Training, "training.cost": Cost}
        problems = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                model = models.get(where.rpartition(".")[0], Card)
                hint = nearest(str(problem["loc"][-1]), list(model.model_fields))
                problems.append(f"unknown key {where!r}{hint}")
            else:
                problems.append(f"{where}: {problem['msg']}")
        raise FileFormatError(f"{path}: {'; '.join(problems)}") from None


def _check_folder(folder: Path) -> None:
    for entry in sorted(folder.iterdir()):
        if entry.suffix.lower() in PICKLES:
            raise FileFormatError(
                f"{entry} may run code when loaded; artifacts hold {WEIGHTS} and {CARD} only"
            )


def _read_weights(folder: Path, digest: str) -> dict[str, Tensor]:
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


def _build(architecture: dict[str, Any], system: System, weights: dict[str, Tensor]) -> nn.Module:
    """The generator with its weights; shapes are compared before anything is allocated."""
    try:
        config = GeneratorConfig.model_validate(architecture)
        target = working_target(system, config.internal)
        with torch.device("meta"):
            empty = build_generator(config, target.space, target)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FileFormatError(f"architecture.{where}: {first['msg']}") from None
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
    generator = build_generator(config, target.space, target)
    generator.load_state_dict(weights)
    return generator.eval().requires_grad_(False)


def _form(tensor: Tensor) -> tuple[int | str, ...]:
    return (*tensor.shape, str(tensor.dtype).removeprefix("torch."))


def list_pretrained() -> list[str]:
    """Names of the artifacts that ship with molsampler."""
    if not PRETRAINED.is_dir():
        return []
    return sorted(entry.name for entry in PRETRAINED.iterdir() if (entry / CARD).is_file())


def _locate(name_or_path: str | os.PathLike[str]) -> Path:
    if isinstance(name_or_path, str) and name_or_path in list_pretrained():
        return PRETRAINED / name_or_path
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.is_file():
        why = (
            "pickles are refused" if path.suffix.lower() in PICKLES else "a single file is not one"
        )
        raise FileFormatError(
            f"{path} is not an artifact: {why}; a folder with {WEIGHTS} and {CARD} is expected"
        )
    known = list_pretrained()
    raise UnknownNameError(
        f"{str(name_or_path)!r} is neither a shipped sampler ({', '.join(known) or 'none ship'}) nor "
        f"a folder{nearest(str(name_or_path), known)}"
    )


def save(
    folder: Path | str,
    generator: nn.Module,
    *,
    system: System,
    architecture: Mapping[str, Any],
    training: Training | None = None,
    quality: Sequence[Mapping[str, Any]] = (),
    temperature: float | None = None,
    units: Mapping[str, str] | None = None,
    license: str = "MIT",
    overwrite: bool = False,
) -> Sampler:
    """Write an artifact, read it back and return it.

    ``architecture`` is what :func:`molsampler.nn.build_generator` makes ``generator`` of. A new
    folder appears in one rename. In an existing one the new weights are put beside the old, the card is
    replaced in one rename, and the new weights take the old name: whenever this is interrupted, the
    card finds weights of its hash.

    Raises
    ------
    OutputExistsError
        ``folder`` exists and ``overwrite`` is false, or it is not an artifact.
    StorageError
        There is no space, or what was written does not read back.
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
        system=reference_to(system),
        shape=system.shape,
        architecture=dict(architecture),
        units=dict(units or _units(system)),
        temperature=system.temperature if temperature is None else temperature,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        training=training,
        quality=[dict(row) for row in quality],
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
        return Sampler.load(folder, system=system)
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
    return Sampler.load(folder, system=system)


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
    _build(card.architecture, system, _parse_weights(path.read_bytes(), path))


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise InputError(f"{name} must be an integer from {low} to {high}, got {value!r}")


def check_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; CUDA where there is one, else the CPU, for None.

    Raises
    ------
    InputError
        It is neither ``cpu`` nor a CUDA device.
    ResourceError
        This machine does not have it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}") from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"device {device!r} was asked for and this torch sees {torch.cuda.device_count()} CUDA "
            "device(s); use device='cpu'"
        )
    return chosen


class Sampler:
    """A frozen one-step sampler: generator, system and card.

    Attributes
    ----------
    card : what the artifact says of itself
    system : the system it samples
    internal, target : internal coordinates in which the generator works, if it does, and the density
        there; otherwise None and the system
    path : the folder it was loaded from
    hash : SHA-256 of the card, which holds that of the weights; it identifies the artifact
    """

    def __init__(self, card: Card, system: System, generator: nn.Module, path: Path, hash: str):
        self.card = card
        self.system = system
        self.path = path
        self.hash = hash
        self._generators = {torch.device("cpu"): generator}
        #: None where the generator gives positions.
        self.internal: InternalCoordinates | None = getattr(
            getattr(generator, "config", None), "internal", None
        )
        self.target = working_target(system, self.internal)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], *, system: System | None = None) -> Self:
        """Load a shipped sampler by name, or an artifact folder by path; never from the network.

        A shipped name takes precedence; write ``./lj13`` for a folder of that name. ``system`` is
        needed for artifacts of systems that are not registered.

        Raises
        ------
        UnknownNameError
            There is neither a shipped sampler nor a folder of that name.
        IntegrityError
            The weights do not have the SHA-256 of the card.
        FileFormatError
            The folder holds a pickle or a link, or card and weights are malformed or do not fit.
        InputError
            The card is of an OpenMM system, and ``system`` is missing or another one.
        """
        path = _locate(name_or_path)
        _check_folder(path)
        card, digest = read_card(path / CARD)
        if system is None:
            system = recorded_system(card.system)
        check_recorded(card.system, system, source=path)
        if tuple(card.shape) != tuple(system.shape):
            raise FileFormatError(
                f"{path / CARD} says shape {tuple(card.shape)}, system {system.name!r} has "
                f"{tuple(system.shape)}"
            )
        weights = _read_weights(path, card.weights_sha256)
        try:
            generator = _build(card.architecture, system, weights)
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from None
        return cls(card, system, generator, path, digest)

    def __repr__(self) -> str:
        return f"<Sampler of {self.system.name!r} shape={self.system.shape} {self.hash[:12]}>"

    def describe(self) -> dict[str, Any]:
        """The card, path, hash and parameter count, as a JSON object."""
        parameters = sum(p.numel() for p in self._generators[torch.device("cpu")].parameters())
        return {
            "path": str(self.path),
            "hash": self.hash,
            "parameters": parameters,
            **self.card.model_dump(mode="json"),
        }

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        refine: int = 0,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
    ) -> Samples:
        """Draw ``n`` samples; the same seed, device and version give the same samples, bit for bit.

        Nor do they change with ``batch_size`` or with ``n``, as far as both go. ``refine`` is a
        number of MALA steps on the exact target, at a step size adapted on a pilot run and then
        frozen; the metadata then holds ``acceptance``, ``step_size`` and ``drift``, the energy-W2
        between the samples before and after. Samples of non-finite energy are kept, and counted as
        ``nonfinite_energies``. Molecules with chiral centres come out right-handed: wrong ones are
        inverted as a whole, which is exact (see :mod:`molsampler.particles`), and ``handedness`` counts
        them before and after. ``device`` None is CUDA where there is one.

        Raises
        ------
        InputError
            ``n``, ``seed``, ``refine``, ``device`` or ``batch_size`` is out of range.
        ResourceError
            The device is absent, or the samples would not fit in memory: use :meth:`stream` or
            :meth:`sample_to_file`.
        DivergenceError
            The generator gave coordinates that are not finite.
        """
        stream = self.stream(n, seed=seed, refine=refine, device=device, batch_size=batch_size)
        particles, dimension = self.system.shape
        # Positions and energies, and a block's worth of copies.
        memory.require(
            n * (4 * particles * dimension + 8),
            purpose=f"holding {n} samples of {particles} x {dimension}",
            remedy="write them to a file as they come with Sampler.sample_to_file(path, n)",
        )
        positions = torch.empty(n, particles, dimension)
        energies = torch.empty(n, dtype=torch.float64)
        done = 0
        for block in stream.blocks():
            positions[done : done + len(block)] = block.positions
            energies[done : done + len(block)] = block.energies
            done += len(block)
        return Samples(positions, energies, None, stream.metadata())

    def stream(
        self,
        n: int,
        *,
        seed: int = 0,
        refine: int = 0,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
    ) -> SampleStream:
        """The samples of :meth:`sample` as a stream of blocks, in memory that does not grow with n.

        ``batch_size`` is the number of samples handed on at a time, rounded up to whole internal
        blocks; it never changes a sample.

        Raises
        ------
        InputError, ResourceError
            See :meth:`sample`.
        """
        return SampleStream(
            self,
            _integer("n", n, 1, 2**40),
            seed=_integer("seed", seed, 0, 2**63 - 1),
            refine=_integer("refine", refine, 0, 10**9),
            device=check_device(device),
            batch_size=_integer(
                "batch_size", BATCH if batch_size is None else batch_size, 1, 2**31
            ),
        )

    def sample_to_file(
        self,
        path: Path | str,
        n: int,
        *,
        seed: int = 0,
        refine: int = 0,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        overwrite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Write the samples of :meth:`sample` to a file as they come; return their metadata.

        ``progress`` is called with the number of samples done.

        Raises
        ------
        InputError, ResourceError, DivergenceError
            See :meth:`sample`.
        OutputExistsError, StorageError
            See :func:`molsampler.export.save`.
        """
        from . import export

        stream = self.stream(n, seed=seed, refine=refine, device=device, batch_size=batch_size)

        def reported() -> Iterator[Samples]:
            done = 0
            for block in stream.blocks():
                yield block
                done += len(block)
                if progress is not None:
                    progress(done)

        export.save_blocks(
            reported(),
            path,
            count=n,
            system=self.system,
            metadata=stream.record,
            overwrite=overwrite,
        )
        return stream.metadata()

    def _generator_on(self, device: torch.device) -> nn.Module:
        if device not in self._generators:
            import copy

            original = self._generators[torch.device("cpu")]
            self._generators[device] = copy.deepcopy(original).to(device)
        return self._generators[device]
