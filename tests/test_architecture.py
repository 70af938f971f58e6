"""Imports go the way that docs/architecture.md draws: down its list of rooms, never round in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "molsampler": "molsampler",
    "systems": "molsampler.systems",
    "analysis": "molsampler.analysis",
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package and its file."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            if folder != "molsampler" or parts[0] not in FOLDERS:
                found[name] = path
    return found


def imports(name: str) -> Iterator[tuple[str, str, int]]:
    """What a module imports of the package, wherever in its text: module, name taken from it, line."""
    path = modules()[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                if whole in modules():
                    yield whole, "", node.lineno
                elif origin in modules():
                    yield origin, alias.name, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules():
                    yield alias.name, "", node.lineno


@cache
def rooms() -> list[list[str]]:
    """The rooms of the page, from the top floor down; a floor is one line."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"```text\n(.*?)```", page, re.S)
    assert block is not None
    return [line.split("#")[0].split() for line in block[1].splitlines() if line.strip()]


def floor(name: str) -> int:
    """Number of the floor of a module, from the top; of all that fit, the longest name counts."""
    fits = [
        (len(room), level)
        for level, line in enumerate(rooms())
        for room in line
        if f"{name}.".startswith(f"molsampler.{room}.")
    ]
    if name == "molsampler":
        return -1  # the front door, which nobody inside goes through
    assert fits, f"{name} stands in no room of docs/architecture.md"
    return max(fits)[1]


def upwards(name: str) -> list[str]:
    """Imports of a module from a floor above its own."""
    return [
        f"{name}:{line} imports {origin}"
        for origin, _, line in imports(name)
        if floor(origin) < floor(name)
    ]


def test_no_import_goes_up() -> None:
    assert [wrong for name in modules() for wrong in upwards(name)] == []


def test_no_import_goes_round() -> None:
    graph = {name: {origin for origin, *_ in imports(name)} - {name} for name in modules()}
    # A package that exports its own modules is no circle.
    for name, path in modules().items():
        if path.name == "__init__.py":
            graph[name] = {each for each in graph[name] if not each.startswith(f"{name}.")}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_no_module_takes_a_private_name_of_another() -> None:
    taken = [
        f"{name}:{line} takes {origin}.{item}"
        for name in modules()
        for origin, item, line in imports(name)
        if (item.startswith("_") and not item.startswith("__"))
        or any(part.startswith("_") for part in origin.split("."))
    ]
    assert taken == []


def test_every_room_of_the_page_exists() -> None:
    for line in rooms():
        for room in line:
            assert any(f"{name}.".startswith(f"molsampler.{room}.") for name in modules()), room


def test_the_check_sees_an_arrow_that_goes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with the floors upside down nearly everything is wrong."""
    turned = rooms()[::-1]
    monkeypatch.setattr(f"{__name__}.rooms", lambda: turned)
    assert upwards("molsampler.train.run")
