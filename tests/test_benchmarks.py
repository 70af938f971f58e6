"""Benchmarks are run rarely; what they import from the package must still be there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py")) if FOLDER.exists() else []


def missing(source: str) -> list[str]:
    """Names that a text imports from the package and that it does not have."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("molsampler"):
            continue
        try:
            module = importlib.import_module(str(node.module))
        except ModuleNotFoundError:
            found.append(str(node.module))
            continue
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            if not hasattr(module, alias.name):
                try:
                    importlib.import_module(name)
                except ModuleNotFoundError:
                    found.append(name)
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_benchmarks_import_what_exists(script: Path) -> None:
    assert missing(script.read_text()) == []


def test_what_is_gone_is_found() -> None:
    text = "from molsampler.nn.egnn import EGNN\nfrom molsampler.mcmc import mala, walk\n"
    assert missing(text) == ["molsampler.nn.egnn", "molsampler.mcmc.walk"]
