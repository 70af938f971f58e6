r"""Trained samplers as files, and sampling from them.

An artifact is a folder with two files: ``weights.safetensors`` and ``card.json``, the card saying
what the weights are (system, architecture, temperature, units, provenance, measured quality) and
holding their SHA-256. Nothing in it is executed: pickles are refused, and both files are bounded in
size before they are parsed.

Samples do not depend on how many are asked for. They are computed in blocks of a size fixed by the
particle count (:func:`block_size`), always whole, the last one cut; block :math:`i` draws from a
generator of its own, seeded by :func:`block_seed` ``(seed, i)``. The first 1,000 of 10,000 samples are
therefore the same bits as 1,000 samples asked for alone. On a CPU, blocks are computed by as many threads
as torch has, one block per thread, which scales better than sharing every operation.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
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
from .internal import InternalCoordinates, random_rotations, working_target
from .mcmc import adapt, mala
from .nn.generator import GeneratorConfig, build_generator
from .particles import Particles
from .samples import Samples, check_recorded, recorded_system, reduced_energies, reference_to
from .target import COORDINATE_LIMIT, System

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

#: Steps and chains of the pilot run that settles the step size of ``refine``.
PILOT_STEPS = 100
PILOT_CHAINS = 512
#: First guess of that step size, in squared length units; adaptation covers many decades.
PILOT_STEP_SIZE = 1e-2
#: Samples handed on at a time by default.
BATCH = 8192
#: Samples on which the drift is measured at most.
DRIFT_SAMPLES = 2**17


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


def _mix32(value: int) -> int:
    """The finaliser of MurmurHash3 (Appleby, public domain): a bijection of 32-bit integers."""
    value ^= value >> 16
    value = value * 0x85EBCA6B & 0xFFFFFFFF
    value ^= value >> 13
    value = value * 0xC2B2AE35 & 0xFFFFFFFF
    return value ^ value >> 16


def block_seed(seed: int, index: int) -> int:
    """Seed of the random generator of block ``index``; index 0 is the pilot run's.

    torch's CPU generator looks at the low 32 bits of a seed only. For one ``seed`` these are a
    bijection of ``index``, so no two blocks of a run share their noise; a plain hash would repeat a
    block after some 2^16. The high bits, which CUDA uses too, depend on ``seed``.
    """
    digest = hashlib.sha256(struct.pack("<Q", seed)).digest()
    before, after, high = struct.unpack("<III", digest[:12])
    low = _mix32((_mix32(index ^ before) + after) & 0xFFFFFFFF)
    return int(high << 32 | low)


def block_size(particles: int) -> int:
    """Samples computed at once: a power of two that bounds pairwise tensors, fixed by the system."""
    size = 1024
    while size > 16 and size * particles**2 > 2**18:
        size //= 2
    return size


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


@dataclass
class _Block:
    """Samples of one block that were asked for, and what was counted on the way."""

    positions: Tensor
    energies: Tensor
    evaluations: int
    accepted: float
    handed: tuple[int, int, int]
    """Molecules with chiral centres; of the wrong hand before and after inversion."""
    before: Tensor | None
    """Energies before refinement, where the drift is measured."""


class SampleStream:
    """Samples in blocks, with the statistics of the run so far; see :meth:`Sampler.stream`."""

    def __init__(
        self,
        sampler: Sampler,
        n: int,
        *,
        seed: int,
        refine: int,
        device: torch.device,
        batch_size: int,
    ):
        self.sampler = sampler
        self.n = n
        self.seed = seed
        self.refine = refine
        self.device = device
        self.block = block_size(sampler.system.shape[0])
        self.batch = -(-batch_size // self.block) * self.block
        if -(-n // self.block) >= 2**32:
            raise InputError(f"n must be below {self.block * (2**32 - 1)}, got {n}")
        self._network = sampler._generator_on(device)
        self._step_size: float | None = None
        self._accepted = 0.0
        self._blocks = self._nonfinite = self._evaluations = 0
        self._seconds = 0.0
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []
        self._handed = [0, 0, 0]

    def blocks(self) -> Iterator[Samples]:
        """The samples, ``batch_size`` at a time; their metadata holds what is known beforehand."""
        batch: list[_Block] = []
        done = held = 0
        started = time.perf_counter()
        with closing(self._computed()) as computed:
            for block in computed:
                self._count(block)
                batch.append(block)
                held += len(block.energies)
                done += len(block.energies)
                if held >= self.batch or done == self.n:
                    samples = Samples(
                        torch.cat([block.positions for block in batch]),
                        torch.cat([block.energies for block in batch]),
                        None,
                        self._provenance(),
                    )
                    batch, held = [], 0
                    self._seconds += time.perf_counter() - started
                    yield samples
                    started = time.perf_counter()

    def metadata(self) -> dict[str, Any]:
        """Provenance and what was measured on the samples given out so far."""
        return {**self.record(), "seconds": round(self._seconds, 3)}

    def record(self) -> dict[str, Any]:
        """:meth:`metadata` without times, for files: the same samples make the same file."""
        result = self._provenance()
        result.update(energy_evaluations=self._evaluations, nonfinite_energies=self._nonfinite)
        molecules, wrong_before, wrong_after = self._handed
        if molecules:
            result["handedness"] = {
                "molecules": molecules,
                "wrong_before_inversion": wrong_before,
                "wrong_after_inversion": wrong_after,
            }
        if self._before:
            before, after = torch.cat(self._before), torch.cat(self._after)
            result.update(
                acceptance=self._accepted / (self._blocks * self.block * self.refine),
                step_size=self._step_size,
                drift=energy_drift(before, after),
                drift_samples=len(before),
            )
        return result

    def _provenance(self) -> dict[str, Any]:
        training = self.sampler.card.training
        spent = (
            {}
            if training is None
            else {"training_energy_evaluations": training.cost.energy_evaluations}
        )
        return {
            **spent,
            "system": self.sampler.card.system,
            "artifact_hash": self.sampler.hash,
            "weights_sha256": self.sampler.card.weights_sha256,
            "seed": self.seed,
            "refine": self.refine,
            "device": self.device.type,
            "version": __version__,
            "torch_version": str(torch.__version__),
        }

    def _computed(self) -> Generator[_Block, None, None]:
        """All blocks in their order, by as many threads as there are where the system allows it."""
        if self.refine and self._step_size is None:
            self._step_size = self._pilot()
        indices = range(1, -(-self.n // self.block) + 1)
        threads = torch.get_num_threads()
        shared = self.device.type == "cpu" and getattr(self.sampler.target, "concurrent", False)
        if not shared or threads == 1:
            yield from map(self._compute, indices)
            return
        waiting: deque[Future[_Block]] = deque()
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for index in indices:
                # One more than can be computed at once, so that no thread waits for the consumer.
                if len(waiting) > threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(self._compute, index))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            # Part of the setting is the process's, not the thread's.
            torch.set_num_threads(threads)

    def _count(self, block: _Block) -> None:
        self._blocks += 1
        self._evaluations += block.evaluations
        self._nonfinite += int((~torch.isfinite(block.energies)).sum())
        self._accepted += block.accepted
        self._handed = [a + b for a, b in zip(self._handed, block.handed, strict=True)]
        if block.before is not None:
            self._before.append(block.before)
            self._after.append(block.energies)

    def _random(self, index: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(block_seed(self.seed, index))

    def _compute(self, index: int) -> _Block:
        """Block ``index``, on the CPU; changes nothing of the stream."""
        start = (index - 1) * self.block
        kept = min(self.block, self.n - start)
        system = self.sampler.system
        try:
            with torch.no_grad():
                random = self._random(index)
                x, handed = self._draw(random, kept)
                evaluations = self.block * int(getattr(self._network, "energy_evaluations", 0))
                accepted, before = 0.0, None
                if self.refine:
                    if start < DRIFT_SAMPLES:
                        before = reduced_energies(system, self._positions(x[:kept])).cpu()
                        evaluations += kept
                    x, accepted = self._refined(x, random)
                    evaluations += self.block * (self.refine + 1)
                x = self._turned(self._positions(x), random)
                energies = reduced_energies(system, x).cpu()[:kept]
                evaluations += self.block
        except torch.cuda.OutOfMemoryError as error:
            raise ResourceError(
                f"the device ran out of memory on a block of {self.block} samples, a size that "
                f"batch_size does not change; free device memory or use device='cpu' ({error})"
            ) from None
        return _Block(x[:kept].cpu(), energies, evaluations, accepted, handed, before)

    def _draw(self, random: torch.Generator, kept: int = 0) -> tuple[Tensor, tuple[int, int, int]]:
        """A whole block from the generator, float32, of the right hand, and how many of the first
        ``kept`` are handed, and were wrong before and after inversion."""
        network = self._network
        latent = network.draw_latent(self.block, generator=random)  # type: ignore[operator]
        x: Tensor = network(latent)
        bad = ~(x.abs() <= COORDINATE_LIMIT).flatten(1).all(-1)
        if bool(bad.any()):
            raise DivergenceError(
                f"the generator of {self.sampler.path} gave unusable coordinates in "
                f"{int(bad.sum())} of {self.block} samples (seed {self.seed})"
            )
        particles = getattr(network, "particles", None)
        if not (isinstance(particles, Particles) and particles.chiral_centres):
            return x.float(), (0, 0, 0)
        x, before, after = particles.right_handed(x)
        wrong = (int((before[:kept] > 0).sum()), int((after[:kept] > 0).sum()))
        return x.float(), (kept, *wrong)

    def _refined(self, x: Tensor, random: torch.Generator) -> tuple[Tensor, float]:
        """Positions after the MALA steps, and the number of accepted moves."""
        # float64: near a wall a float32 energy difference is too coarse for the Metropolis test.
        target, accepted = self.sampler.target, 0.0
        state = mala.init(x.double(), target)
        for _ in range(self.refine):
            state, info = mala.step(
                state, target, step_size=self._step_size or 0.0, generator=random
            )
            accepted += float(info.accepted.double().sum())
        return state.position.float(), accepted

    def _positions(self, x: Tensor) -> Tensor:
        """Positions that belong to the generator's coordinates."""
        coordinates = self.sampler.internal
        if coordinates is None:
            return x
        return self.sampler.system.space.project(coordinates.to_cartesian(x[..., 0].double())[0])

    def _turned(self, x: Tensor, random: torch.Generator) -> Tensor:
        """Orientations drawn at random where the coordinates know none; float32."""
        if self.sampler.internal is not None:
            x = x @ random_rotations(len(x), generator=random, like=x)
        return x.float()

    def _pilot(self) -> float:
        """The step size of refinement, from a block of its own; independent of n."""
        target, random = self.sampler.target, self._random(0)
        with torch.no_grad():
            x, _ = self._draw(random)
            _, step_size = adapt.adapt_step_size(
                mala.init(x[:PILOT_CHAINS].double(), target),
                target,
                steps=PILOT_STEPS,
                step_size=PILOT_STEP_SIZE,
                generator=random,
            )
        network = int(getattr(self._network, "energy_evaluations", 0))
        chains = min(self.block, PILOT_CHAINS)
        self._evaluations += self.block * network + chains * (PILOT_STEPS + 1)
        return step_size


def energy_drift(before: Tensor, after: Tensor) -> float | None:
    """1-D 2-Wasserstein distance between two equally long sets of reduced energies.

    Rows that are not finite in either set are left out; None if none remain.
    """
    kept = torch.isfinite(before) & torch.isfinite(after)
    if not bool(kept.any()):
        return None
    from .analysis.energies import wasserstein2_1d

    return wasserstein2_1d(before[kept], after[kept])
