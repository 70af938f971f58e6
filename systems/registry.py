"""The names under which systems are known, and the kinds of files that define new ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from molsampler.errors import FileFormatError, InputError, UnknownNameError, nearest
from molsampler.registry import Registry
from molsampler.storage.plain_yaml import read_yaml
from molsampler.storage.validation import validated
from molsampler.target import System

from .pointers import pointer
from .spec import SystemSpec

SYSTEM_KINDS: Registry[type[SystemSpec]] = Registry("system kind")
SYSTEM_KINDS.register("pair_potential", "molsampler.systems.pair.potential:PairPotentialSpec")
SYSTEM_KINDS.register("openmm", "molsampler.systems.openmm.files:OpenMMSpec")
SYSTEM_KINDS.register("function", "molsampler.systems.function:FunctionSpec")
SYSTEM_KINDS.register("amber", "molsampler.systems.openmm.amber:AmberSpec")
SYSTEM_KINDS.register("gromacs", "molsampler.systems.openmm.gromacs:GromacsSpec")
SYSTEM_KINDS.register("charmm", "molsampler.systems.openmm.charmm:CharmmSpec")
SYSTEM_KINDS.register("openmm_xml", "molsampler.systems.openmm.serialised:SerialisedSpec")
SYSTEM_KINDS.register("smiles", "molsampler.systems.openmm.smiles:SmilesSpec")
SYSTEM_KINDS.register("ase", "molsampler.systems.ase:ASESpec")
SYSTEM_KINDS.register("registered", "molsampler.systems.registered:RegisteredSpec")

#: Families whose member is chosen by the particle count in its name: lj7, dw8, ...
FAMILIES: Registry[Callable[..., System]] = Registry("family of systems")
FAMILIES.register("lj", "molsampler.systems.pair.lennard_jones:LennardJones")
FAMILIES.register("dw", "molsampler.systems.pair.double_well:DoubleWell")

#: Members of families that listings show.
_MEMBERS = ("dw4", "lj13", "lj55")

SYSTEMS: Registry[Callable[[], System]] = Registry("system")
SYSTEMS.register("mog40", "molsampler.systems.mixture:GaussianMixture")
SYSTEMS.register("mw32", "molsampler.systems.many_well:ManyWell")
SYSTEMS.register("alanine-dipeptide", "molsampler.systems.openmm:AlanineDipeptide")

#: Largest particle count accepted in a family name; pair tensors grow as n^2.
_FAMILY_LIMIT = 1000

#: The names that files may record; a path is none of them.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_+-]{1,100}")

#: What stands between the name of a system and its temperature.
_AT = "@"


def kind_of(content: Mapping[str, Any]) -> Any:
    """The kind that a mapping of keys is of, also where it does not say."""
    return content.get("kind") or ("registered" if "system" in content else "pair_potential")


#: Adds a kind of system files under a name: a :class:`~molsampler.systems.spec.SystemSpec`, or the text
#: "module:attribute" of where it stands; a decorator where only the name is given.
register_system_kind = SYSTEM_KINDS.register


def register_system(name: str, factory: Callable[[], System] | str) -> None:
    """Add a system under a name; ``factory`` makes it, or is the text "module:attribute" of what does.

    Raises
    ------
    InputError
        The name is taken, or holds other characters than letters, digits, '_', '+' and '-'.
    """
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        raise InputError(f"name must be up to 100 letters, digits, '_', '+' and '-', got {name!r}")
    if name in _MEMBERS:
        raise InputError(f"there is a system {name!r} already")
    SYSTEMS.register(name, factory)


def list_systems() -> tuple[str, ...]:
    """Names of the registered systems."""
    return (*_MEMBERS, *SYSTEMS.names())


def get_system(
    name: str | PathLike[str], *, temperature: float | None = None, trust_code: bool = False
) -> System:
    """Return a registered system, a member of a family, or the system that a YAML file defines.

    ``name`` is one of :func:`list_systems`; ``lj<N>`` or ``dw<N>`` for N particles; or a path that
    ends in ``.yaml`` or ``.yml``. A system file has a ``kind`` (``pair_potential`` if absent) and
    the keys of that kind, see :class:`molsampler.systems.pair.potential.PairPotentialSpec` and, for
    molecules, ``kind: openmm`` (:class:`molsampler.systems.openmm.files.OpenMMSpec`) and the kinds
    beside it. A key without a value counts as absent. ``temperature``, or ``@`` and a number behind the
    name (``lj13@0.3``, ``alanine-dipeptide@350``), gives the system :meth:`~molsampler.target.System.at`
    that temperature.
    ``trust_code`` allows a file to run Python code that it names.

    Raises
    ------
    UnknownNameError
        No system has this name, or the file names an unknown kind or key.
    FileFormatError
        The file is missing or is not plain YAML with a mapping at its top.
    InputError
        A key is missing; a value in the file, the particle count in a family name, or the temperature is
        unusable; the file would run code, and ``trust_code`` is not set.
    """
    if not isinstance(name, str | PathLike):
        raise InputError(f"name must be a system's name or a path, got {name!r}")
    text, asked = _split(str(fspath(name)))
    if asked is not None:
        if temperature is not None:
            raise InputError(
                f"name {str(name)!r} has a temperature, and temperature={temperature!r} is another; give one"
            )
        temperature = asked
    system = _named(text, trust_code=trust_code)
    return system if temperature is None else system.at(temperature)


def _split(text: str) -> tuple[str, float | None]:
    """A name or path, and the temperature behind it, if there is one."""
    name, separator, number = text.rpartition(_AT)
    if not separator or text.lower().endswith((".yaml", ".yml")):
        return text, None
    try:
        return name, float(number)
    except ValueError:
        raise InputError(
            f"a temperature behind a system's name must be a number, as in lj13{_AT}0.3, got {text!r}"
        ) from None


def _named(text: str, *, trust_code: bool) -> System:
    if text.lower().endswith((".yaml", ".yml")):
        return _from_file(Path(text), trust_code=trust_code)
    if text in SYSTEMS:
        system = SYSTEMS[text]()
        # Files record the system's own name, and are read by it.
        if system.name != text:
            raise InputError(f"the system registered as {text!r} calls itself {system.name!r}")
        return system
    member = re.fullmatch(r"([a-z]+)([1-9][0-9]{0,8})", text)
    if member and member[1] in FAMILIES:
        n = int(member[2])
        if not 2 <= n <= _FAMILY_LIMIT:
            raise InputError(
                f"name {text!r} asks for {n} particles; 2 to {_FAMILY_LIMIT} are possible"
            )
        return FAMILIES[member[1]](n=n)
    known = list_systems()
    raise UnknownNameError(
        f"no system is called {text!r}{nearest(text, known)} (known: {', '.join(known)}, lj<N>, "
        "dw<N>, or a path to a .yaml file)"
    )


def _from_file(path: Path, *, trust_code: bool) -> System:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{path} must hold a mapping such as 'kind: openmm', got {type(content).__name__}"
        )
    return build_system(
        {"name": path.stem, **content}, source=path, folder=path.parent, trust_code=trust_code
    )


def build_system(
    content: Mapping[str, Any],
    *,
    source: object,
    folder: Path | None,
    trust_code: bool = False,
) -> System:
    """The system that a mapping of keys describes; ``source`` says in messages where it is from.

    Raises
    ------
    UnknownNameError, InputError
        See :func:`get_system`.
    """
    values = {key: value for key, value in content.items() if value is not None}
    kind = values["kind"] = kind_of(values)
    try:
        spec = SYSTEM_KINDS[kind]
        for key in values:
            if key not in spec.model_fields:
                others = (
                    (name, SYSTEM_KINDS[name]) for name in SYSTEM_KINDS.names() if name != kind
                )
                if said := pointer(str(key), others):
                    raise UnknownNameError(f"unknown key {key!r}: {said}")
        parsed = validated(spec, values)
        code = parsed.runs()
        if code and not trust_code:
            raise InputError(
                f"a system of kind {kind!r} runs Python code, here {code!r}; read that file, then allow "
                "it by --trust-code (trust_code=True)"
            )
        system = parsed.placed(parsed.build(folder))
        parsed.define_basins(system)
        return system
    except InputError as error:
        raise type(error)(f"{source}: {error}") from error.__cause__
