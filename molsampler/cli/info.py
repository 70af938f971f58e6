"""``molsampler info``: what a file, an artifact or a run folder is, from what, and whether it is whole."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Json, OfSystem
from .terminal import plain, print_json


def info(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ARTIFACT|RUN_DIR",
            help="Samples, a folder with a trained sampler, the name of a shipped one, or a run.",
        ),
    ],
    system: OfSystem = None,
    json: Json = False,
) -> None:
    """Say what something is, what it was made from, and whether its hashes hold."""
    from ..export import describe

    path = Path(source)
    if (path / "config.resolved.yaml").is_file():
        result = _run(path, system)
    elif path.is_file():
        result = {"kind": "samples", **describe(path)}
    else:
        result = _artifact(source, system)
    if json:
        print_json(result)
    else:
        for line in _lines(plain(result)):
            print(line)
    if result.get("intact") is False:
        raise typer.Exit(1)


def _artifact(source: str, system: str | None) -> dict[str, Any]:
    from ..artifact import Sampler
    from ..samples import resolve_system

    # Loading checks the hash of the weights and raises where it does not hold.
    sampler = Sampler.load(source, system=None if system is None else resolve_system(system))
    return {
        "kind": "sampler",
        "integrity": "weights match the card's SHA-256",
        **sampler.describe(),
    }


def _run(folder: Path, system: str | None) -> dict[str, Any]:
    import yaml

    from ..errors import FileFormatError

    try:
        config = yaml.safe_load((folder / "config.resolved.yaml").read_text())
    except yaml.YAMLError as error:
        raise FileFormatError(
            f"{folder / 'config.resolved.yaml'} is not valid YAML: {error}"
        ) from None
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    last = {}
    # A killed run may leave half a line at the end.
    for line in reversed(lines):
        try:
            last = json_module.loads(line)
        except json_module.JSONDecodeError:
            continue
        break
    result: dict[str, Any] = {
        "kind": "training run",
        "folder": str(folder),
        "checkpoints": sorted(entry.name for entry in (folder / "checkpoints").glob("*")),
        "last_metrics": last,
        "config": config,
    }
    if (folder / "artifact").is_dir():
        result["artifact"] = _artifact(str(folder / "artifact"), system)
    return result


def _lines(value: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}:", *_lines(item, indent + "  ")]
        elif isinstance(item, list):
            lines.append(f"{indent}{key}: {', '.join(str(part) for part in item) or 'none'}")
        else:
            lines.append(f"{indent}{key}: {'none' if item in (None, {}) else item}")
    return lines
