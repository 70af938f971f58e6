r"""Systems whose energy is a Python function of torch tensors, with the score by autograd.

The function is of the user's own, so what can be wrong with it is tried when the system is made: it has
to give one energy a configuration, each from its own row alone, and to differentiate.
"""

from __future__ import annotations

import hashlib
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from molsampler.errors import FileFormatError, InputError, MolsamplerError, ShapeError
from molsampler.space import Euclidean, MeanFree, Space
from molsampler.storage.files import read_limited
from molsampler.target import System

from .arguments import checked_description, checked_length, checked_name, integer, is_number
from .spec import SystemSpec
from .symmetry import probe, probe_positions
from .topology import ARGON, particles

if TYPE_CHECKING:
    import mdtraj

Energy = Callable[[Tensor], Tensor]

_SPACES: dict[str, type[Euclidean] | type[MeanFree]] = {
    "euclidean": Euclidean,
    "mean-free": MeanFree,
}

#: Relative changes that count as none: wide enough for functions that round to float32.
_SAME = 1e-5

#: The same where nothing may be taken for a field that is only weak.
_FLAT = 1e-10

#: A shift that leaves every box.
_FAR = 1e4

#: Step of the difference with which the slope is compared, and the relative error that it may have.
_STEP, _SLOPE_ERROR = 1e-4, 0.1

_SOURCE_LIMIT = 2**20
_FUNCTION = re.compile(r"(?P<file>[^:]+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


class Source(NamedTuple):
    """Where a function stands: ``file.py:name`` as its user wrote it, and the SHA-256 of the file."""

    function: str
    sha256: str


class FunctionSystem(System):
    r"""A reduced energy u(x) that is a Python function; the score is its derivative by autograd. ::

        def valley(x):  # (b, 1, 2) -> (b,)
            return 0.5 * (x - 3).square().sum((-2, -1))


        FunctionSystem("valley", valley, shape=(1, 2))

    Files do not hold the function: samples and artifacts of such a system are read with ``system=``, and
    nothing but its name and the arguments below can tell whether that is the same one.

    Parameters
    ----------
    name : name of the system, used in files
    u : takes positions ``(b, n, d)`` of any floating dtype and gives reduced energies ``(b,)``, each of
        its own row alone. NaN counts as ``+inf``
    shape : particles and dimensions ``(n, d)``
    space : ``"euclidean"``, or ``"mean-free"`` for an energy that translation leaves unchanged, which has
        a density among configurations of zero mean only; or a :class:`~molsampler.space.Space`
    invariant : whether rotation, reflection and translation leave the energy unchanged
    exchangeable : whether permutations of the particles do
    temperature : kelvin at which the energy was reduced, None for one that is born reduced
    length_nm : nanometres per unit of length in trajectories
    description : one line for listings
    source : the file of the function, for records

    Raises
    ------
    ShapeError
        ``u`` does not give one energy a configuration.
    InputError
        Another argument is unusable; ``u`` fails, does not differentiate, mixes rows, is finite nowhere, or
        has not the symmetry that is declared.
    """

    def __init__(
        self,
        name: str,
        u: Energy,
        *,
        shape: tuple[int, int],
        space: str | Space = "euclidean",
        invariant: bool = False,
        exchangeable: bool = False,
        temperature: float | None = None,
        length_nm: float = 1.0,
        description: str = "",
        source: Source | None = None,
    ) -> None:
        self.name = checked_name(name)
        if not callable(u):
            raise InputError(f"u must be a function of positions (b, n, d), got {u!r}")
        n, d = _checked_shape(shape)
        self.space = _checked_space(space, n, d)
        if invariant and not isinstance(self.space, MeanFree):
            raise InputError(
                "an energy that translation leaves unchanged has no density on all of space: "
                "invariant=True needs space='mean-free'"
            )
        if temperature is not None and not (is_number(temperature) and 0 < temperature < 1e9):
            raise InputError(
                f"temperature must be a positive number of kelvin, got {temperature!r}"
            )
        self.invariant = bool(invariant)
        self.exchangeable = bool(exchangeable)
        self.in_kelvin = temperature is not None
        self.temperature = 1.0 if temperature is None else float(temperature)
        self.length_nm = checked_length(length_nm)
        self.description = checked_description(description) or f"{n} x {d} by a Python function"
        self.source = source
        self._u = u
        self._try_out()

    def record(self) -> dict[str, Any]:
        """The keys of :class:`FunctionSpec`, without the function where it is in no file; ``at`` is the
        temperature where it is another than that of the function."""
        moved = self.temperature != self.default_temperature
        return {**self._record(), **({"at": self.temperature} if moved else {})}

    def _record(self) -> dict[str, Any]:
        n, d = self.shape
        found = {
            "kind": "function",
            "name": self.name,
            "particles": n,
            "dimensions": d,
            "space": _space_name(self.space),
            "invariant": self.invariant,
            "exchangeable": self.exchangeable,
            "temperature": self.default_temperature if self.in_kelvin else None,
            "length_nm": self.length_nm,
        }
        return found if self.source is None else {**found, **self.source._asdict()}

    def topology(self) -> mdtraj.Topology:
        """Argon atoms; a single particle, or more than three dimensions, have no topology."""
        n, d = self.shape
        return super().topology() if n < 2 or d > 3 else particles([ARGON] * n)

    # Evaluation

    def _energy(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_zeros(0)
        with torch.no_grad():
            # A copy, which the function may change in place.
            return self._values(x.clone(memory_format=torch.contiguous_format)).to(x)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not len(x):
            return x.new_zeros(0), torch.zeros_like(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            u = self._values(leaf)
            if not u.requires_grad:
                raise InputError(
                    f"{self._called} gives energies that autograd cannot differentiate: either they do "
                    "not depend on x, or numpy, .item(), .detach() or torch.no_grad() stands between"
                )
            (gradient,) = torch.autograd.grad(u.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise InputError(f"{self._called} gives energies that do not depend on x")
        return u.detach().to(x), -gradient

    @property
    def _called(self) -> str:
        return f"the function of system {self.name!r}"

    def _values(self, x: Tensor) -> Tensor:
        """What the function gives for ``(b, n, d)``, of shape ``(b,)``."""
        b = len(x)
        try:
            u = self._u(x)
        except (MolsamplerError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"{self._called} fails on positions {tuple(x.shape)}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(u, Tensor):
            raise InputError(
                f"{self._called} must return a torch tensor of shape (b,), got {type(u).__name__}"
            )
        if tuple(u.shape) != (b,):
            raise ShapeError(
                f"{self._called} must return one energy a configuration, shape ({b},) for positions "
                f"{(b, *self.shape)}, got {tuple(u.shape)}; sums run over particles and dimensions, as "
                "in .sum((-2, -1))"
            )
        if not u.is_floating_point():
            raise InputError(f"{self._called} must return real numbers, got {u.dtype}")
        return u

    # What can be wrong with a function

    def _try_out(self) -> None:
        x = probe_positions(self.space)
        u, score = self._energy_and_score(x)
        usable = u.isfinite() & score.isfinite().flatten(1).all(1)
        if not bool(usable.any()):
            raise InputError(
                f"{self._called} is finite at none of {len(x)} random configurations (the first gives "
                f"{float(u[0])}); it needs a finite energy and slope near the origin"
            )
        x, u, score = x[usable], u[usable], score[usable]
        self._try_rows(x, u, score)
        self._try_slope(x, u, score)
        self._try_symmetry(x)

    def _try_rows(self, x: Tensor, u: Tensor, score: Tensor) -> None:
        """Refuse a function that is none, or whose rows know of each other."""
        again = self._energy(x)
        if not bool(((again - u).abs() <= _SAME * (1.0 + u.abs())).all()):
            raise InputError(
                f"{self._called} gives {_shown(u[:1])} and then {_shown(again[:1])} for the same "
                "configuration: an energy is a function of positions alone"
            )
        for k in range(len(x)):
            alone, slope = self._energy_and_score(x[k : k + 1])
            for what, one, among in (
                ("energy", alone, u[k : k + 1]),
                ("slope", slope[0], score[k]),
            ):
                if not bool(((one - among).abs() <= _SAME * (1.0 + among.abs().max())).all()):
                    raise InputError(
                        f"{self._called} mixes the rows of a batch: the {what} of a configuration is "
                        f"{_shown(one)} alone and {_shown(among)} in a batch of several; use no mean, "
                        "sum or squeeze over the first dimension"
                    )

    def _try_slope(self, x: Tensor, u: Tensor, score: Tensor) -> None:
        """Refuse a function of whose slope autograd sees nothing, or something else."""
        if len(x) > 1 and not bool(score.any()) and bool((u != u[0]).any()):
            raise InputError(
                f"{self._called} varies while autograd finds no slope: rounding, comparisons, argmax "
                "and integers have none"
            )
        rng = torch.Generator().manual_seed(2)
        way = self.space.randn(len(x), generator=rng, like=x) * _STEP
        difference = (self._energy(x + way) - self._energy(x - way)) / 2
        slope = -(score * way).sum((1, 2))
        scale = torch.maximum(difference.abs(), slope.abs())
        # Energies that were rounded to float32 differ by that much without a slope.
        wrong = (difference - slope).abs() > _SLOPE_ERROR * scale + 1e-6 * (1.0 + u.abs())
        if bool(wrong.all()):
            raise InputError(
                f"the slope of {self._called.removeprefix('the ')} that autograd finds is not its own: "
                f"along a step it gives a change of {float(slope[0]):.4g} where the energy changes by "
                f"{float(difference[0]):.4g}; is a part of it rounded or detached?"
            )

    def _try_symmetry(self, x: Tensor) -> None:
        """Refuse what was declared and is not so."""
        found = probe(self._energy, x, tolerance=_SAME)
        flat = (
            self.space.dof == x[0].numel() and probe(self._energy, x, tolerance=_FLAT).translation
        )
        # A box with hard walls is flat near the origin as well.
        if flat and bool(self._energy(x + _FAR).isfinite().any()):
            raise InputError(
                f"{self._called} is unchanged by translation, so exp(-u) has no norm on all of space; "
                "use space='mean-free', or add what holds the particles in place"
            )
        if isinstance(self.space, MeanFree) and not found.translation:
            raise InputError(
                f"{self._called} changes under translation, so space='mean-free' would leave out part of "
                "it; use space='euclidean', or subtract the mean of the particles in it"
            )
        if self.invariant and not found.rotation:
            raise InputError(
                f"{self._called} changes under rotation or reflection; leave out invariant=True"
            )
        order = torch.arange(x.shape[1]).roll(1)
        order[-2:] = order[-2:].flip(0)
        if self.exchangeable:
            u = self._energy(x)
            change = (self._energy(x[:, order]) - u).abs()
            if not bool((change <= _SAME * (1.0 + u.abs())).all()):
                raise InputError(
                    f"{self._called} changes when particles are permuted; leave out exchangeable=True"
                )


def _shown(values: Tensor) -> str:
    return f"{float(values.flatten()[0]):.6g}"


def _space_name(space: Space) -> str:
    return next((name for name, kind in _SPACES.items() if type(space) is kind), repr(space))


def _checked_shape(shape: Any) -> tuple[int, int]:
    try:
        n, d = shape
    except (TypeError, ValueError):
        raise InputError(f"shape must be (particles, dimensions), got {shape!r}") from None
    return integer("particles", n, 1, 10_000), integer("dimensions", d, 1, 10_000)


def _checked_space(space: str | Space, n: int, d: int) -> Space:
    if isinstance(space, str):
        if space not in _SPACES:
            raise InputError(f"space must be 'euclidean' or 'mean-free', got {space!r}")
        space = _SPACES[space](n, d)
    if not isinstance(space, Space) or tuple(space.shape) != (n, d):
        raise InputError(
            f"space must be 'euclidean', 'mean-free' or a Space of shape {(n, d)}, got {space!r}"
        )
    if isinstance(space, MeanFree) and n < 2:
        raise InputError("a single particle has no place in space='mean-free'; use 'euclidean'")
    return space


class FunctionSpec(SystemSpec):
    """Keys of a system file of ``kind: function``::

        kind: function
        name: mueller-brown
        function: mueller_brown.py:energy
        particles: 1
        dimensions: 2

    They are the arguments of :class:`FunctionSystem`. ``function`` is a Python file, relative to the folder
    of the system file, and a name in it. ``temperature`` is that at which its energies are reduced, ``at``
    the one at which they are wanted. The file is run, which has to be allowed by ``--trust-code``; it
    stands alone, without imports from its folder. ``sha256`` pins its content.
    """

    elsewhere: ClassVar[str] = "whose energy is a Python function, which files do not hold"

    function: str = Field(description="a Python file and a name in it, such as energy.py:u")
    particles: int
    dimensions: int
    space: Literal["euclidean", "mean-free"] = "euclidean"
    invariant: bool = False
    exchangeable: bool = False
    temperature: float | None = Field(default=None, description="a number of kelvin")
    at: float | None = Field(
        default=None, description="a temperature, in kelvin where temperature is given"
    )
    length_nm: float = Field(default=1.0, description="a number of nanometres")
    sha256: str | None = Field(default=None, description="the SHA-256 of the Python file")

    def runs(self) -> str:
        return self.function

    def placed(self, system: System) -> System:
        return system if self.at is None else system.at(self.at)

    def build(self, folder: Path | None) -> FunctionSystem:
        u, source = load_function(self.function, folder, sha256=self.sha256)
        return FunctionSystem(
            self.name,
            u,
            shape=(self.particles, self.dimensions),
            space=self.space,
            invariant=self.invariant,
            exchangeable=self.exchangeable,
            temperature=self.temperature,
            length_nm=self.length_nm,
            description=self.description,
            source=source,
        )


def load_function(
    function: str,
    folder: Path | None,
    *,
    sha256: str | None = None,
    key: str = "function",
) -> tuple[Callable[..., Any], Source]:
    """Run the file of ``file.py:name``, relative to ``folder``, and take the name from it; ``key`` is where
    the text was written.

    Whoever calls this trusts the file. What is run is what was hashed.

    Raises
    ------
    InputError
        The text has another form, the file cannot be run, or has no such function.
    FileFormatError
        The file is missing, or its SHA-256 is not ``sha256``.
    """
    match = _FUNCTION.fullmatch(function)
    if match is None:
        raise InputError(f"{key} must be FILE.py:NAME, such as energy.py:u, got {function!r}")
    path = Path(match["file"]) if folder is None else folder / match["file"]
    code = read_limited(path, _SOURCE_LIMIT)
    found = hashlib.sha256(code).hexdigest()
    if sha256 is not None and sha256.lower() != found:
        raise FileFormatError(
            f"{path} has the SHA-256 {found}, the system file says {sha256}: it is another function"
        )
    module = types.ModuleType(f"molsampler_function_{found[:12]}")
    module.__file__ = str(path)
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)
    except Exception as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise InputError(
            f"{path}{line} cannot be run: {type(error).__name__}: {error}; it has to stand alone"
        ) from error
    u = getattr(module, match["name"], None)
    if not callable(u):
        raise InputError(f"{path} has no function {match['name']!r}")
    return u, Source(function, found)
