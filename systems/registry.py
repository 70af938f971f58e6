"""The names under which systems are known, and the files that define new ones."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from molsampler.errors import FileFormatError, InputError, UnknownNameError, nearest
from molsampler.storage.plain_yaml import read_yaml
from molsampler.target import System

#: Registered name -> (module, class, arguments). Modules are imported when a system is asked for.
_SYSTEMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dw4": (".pair.double_well", "DoubleWell", {"n": 4, "d": 2}),
    "lj13": (".pair.lennard_jones", "LennardJones", {"n": 13}),
    "lj55": (".pair.lennard_jones", "LennardJones", {"n": 55}),
    "mog40": (".mixture", "GaussianMixture", {}),
    "mw32": (".many_well", "ManyWell", {"n_pairs": 16}),
    "alanine-dipeptide": (".openmm", "AlanineDipeptide", {}),
}

#: Families whose member is chosen by the particle count in its name: lj7, dw8, ...
_FAMILIES: dict[str, tuple[str, str]] = {
    "lj": (".pair.lennard_jones", "LennardJones"),
    "dw": (".pair.double_well", "DoubleWell"),
}

#: Largest particle count accepted in a family name; pair tensors grow as n^2.
_FAMILY_LIMIT = 1000


def list_systems() -> tuple[str, ...]:
    """Names of the registered systems."""
    return tuple(_SYSTEMS)


def get_system(name: str | PathLike[str]) -> System:
    """Return a registered system, a member of a family, or the system that a YAML file defines.

    ``name`` is one of :func:`list_systems`; ``lj<N>`` or ``dw<N>`` for N particles; or a path that
    ends in ``.yaml`` or ``.yml``. A system file has a ``kind`` (``pair_potential`` if absent) and
    the keys of that kind, see :func:`molsampler.systems.pair.potential.from_mapping` and, for
    ``kind: openmm``, :func:`molsampler.systems.openmm.files.from_mapping`.

    Raises
    ------
    UnknownNameError
        No system has this name, or the file names an unknown kind or key.
    FileFormatError
        The file is missing or is not plain YAML with a mapping at its top.
    InputError
        A value in the file, or the particle count in a family name, is unusable.
    """
    if not isinstance(name, str | PathLike):
        raise InputError(f"name must be a system's name or a path, got {name!r}")
    text = str(fspath(name))
    if text.lower().endswith((".yaml", ".yml")):
        return _from_file(Path(text))
    if text in _SYSTEMS:
        module, cls, arguments = _SYSTEMS[text]
        return _build(module, cls, arguments)
    member = re.fullmatch(r"([a-z]+)([1-9][0-9]{0,8})", text)
    if member and member[1] in _FAMILIES:
        n = int(member[2])
        if not 2 <= n <= _FAMILY_LIMIT:
            raise InputError(
                f"name {text!r} asks for {n} particles; 2 to {_FAMILY_LIMIT} are possible"
            )
        return _build(*_FAMILIES[member[1]], {"n": n})
    known = list_systems()
    raise UnknownNameError(
        f"no system is called {text!r}{nearest(text, known)} (known: {', '.join(known)}, lj<N>, "
        "dw<N>, or a path to a .yaml file)"
    )


def _build(module: str, cls: str, arguments: dict[str, Any]) -> System:
    factory: Callable[..., System] = getattr(importlib.import_module(module, __package__), cls)
    return factory(**arguments)


def _from_file(path: Path) -> System:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{path} must hold a mapping such as 'kind: openmm', got {type(content).__name__}"
        )
    kind = content.pop("kind", "pair_potential")
    readers = {
        "pair_potential": (".pair.potential", "from_mapping"),
        "openmm": (".openmm.files", "from_mapping"),
    }
    if not isinstance(kind, str) or kind not in readers:
        raise UnknownNameError(
            f"{path}: kind {kind!r} is unknown{nearest(str(kind), tuple(readers))} "
            f"(known: {', '.join(readers)})"
        )
    content.setdefault("name", path.stem)
    module, function = readers[kind]
    read: Callable[..., System] = getattr(importlib.import_module(module, __package__), function)
    return read(content, source=str(path))
