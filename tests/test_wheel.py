"""The comparison of wheel and source tree notices what it is there to notice."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = (
    "molsampler/__init__.py",
    "molsampler/nn/__init__.py",
    "molsampler/pretrained/dw4/weights.safetensors",
    "systems/__init__.py",
    "systems/data/means.csv",
    "analysis/report.html.j2",
)
IN_WHEEL = {
    name: name if name.startswith("molsampler/") else f"molsampler/{name}" for name in SOURCE
}


@pytest.fixture
def check_wheel() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / ".ci" / "check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    for name in (*SOURCE, "molsampler/__pycache__/x.pyc", "systems/.hidden"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return root


def make_wheel(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*names, "molsampler-0.2.0.dist-info/METADATA"):
            archive.writestr(name, "")
    return path


def test_complete_wheel_passes(check_wheel: ModuleType, tree: Path, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "complete.whl", list(IN_WHEEL.values()))
    assert check_wheel.differences(tree, wheel) == []


@pytest.mark.parametrize("lost", SOURCE)
def test_missing_file_is_named(
    check_wheel: ModuleType, tree: Path, tmp_path: Path, lost: str
) -> None:
    names = [name for name in IN_WHEEL.values() if name != IN_WHEEL[lost]]
    wheel = make_wheel(tmp_path / "short.whl", names)
    assert check_wheel.differences(tree, wheel) == [f"missing from the wheel: {IN_WHEEL[lost]}"]


def test_stale_file_is_named(check_wheel: ModuleType, tree: Path, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "stale.whl", [*IN_WHEEL.values(), "molsampler/old.py"])
    (problem,) = check_wheel.differences(tree, wheel)
    assert problem.endswith("molsampler/old.py")


def test_every_package_folder_is_listed_in_setup_cfg() -> None:
    from configparser import ConfigParser

    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    folders = set()
    for folder, package in (
        ("molsampler", ()),
        ("systems", ("molsampler",)),
        ("analysis", ("molsampler",)),
    ):
        for init in (ROOT / folder).rglob("__init__.py"):
            folders.add(".".join((*package, *init.parent.relative_to(ROOT).parts)))
    assert listed == folders
