"""Does the wheel hold exactly the package files of the source tree, and does it work once installed?

    python .ci/check_wheel.py [ROOT]

A package that setup.cfg does not list works in an editable install and vanishes from the wheel; so
does a data file that package_data does not match. Both are found here by comparing names, and a
wheel that passes is installed into an empty folder and imported from outside the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

#: Folder in the repository -> package folder in the wheel.
FOLDERS = {
    "molsampler": "molsampler",
    "systems": "molsampler/systems",
    "analysis": "molsampler/analysis",
}

IMPORT_ALL = """
import importlib, pkgutil, sys
from pathlib import Path

import molsampler

target = Path(sys.argv[1]).resolve()
names = ["molsampler"]
for module in pkgutil.walk_packages(molsampler.__path__, "molsampler."):
    names.append(module.name)
for name in names:
    file = Path(importlib.import_module(name).__file__).resolve()
    if target not in file.parents:
        sys.exit(f"{name} was imported from {file}, not from the installed wheel")
from molsampler.sampler import Sampler
from molsampler.sampler.store import list_pretrained
from molsampler.systems import get_system, list_systems

for name in list_systems():
    get_system(getattr(name, "name", name))
for name in list_pretrained():
    Sampler.load(name)
print(f"imported {len(names)} modules, loaded {len(list_pretrained())} shipped samplers")
"""


def source_files(root: Path) -> set[str]:
    """Names that the wheel should hold, from the package folders under ``root``."""
    names = set()
    for folder, package in FOLDERS.items():
        for path in (root / folder).rglob("*"):
            relative = path.relative_to(root / folder)
            hidden = any(part.startswith(".") for part in relative.parts)
            if path.is_file() and not hidden and "__pycache__" not in relative.parts:
                names.add(f"{package}/{relative.as_posix()}")
    return names


def wheel_files(wheel: Path) -> set[str]:
    """Names in the wheel, without its metadata folder."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name
            for name in archive.namelist()
            if not name.endswith("/") and not name.split("/")[0].endswith(".dist-info")
        }


def differences(root: Path, wheel: Path) -> list[str]:
    """One line for each file that is in only one of the source tree and the wheel."""
    expected, present = source_files(root), wheel_files(wheel)
    return [
        *(f"missing from the wheel: {name}" for name in sorted(expected - present)),
        *(f"in the wheel but not in the source: {name}" for name in sorted(present - expected)),
    ]


def main(root: Path) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pip = [sys.executable, "-m", "pip"]
        wheel_command = [*pip, "wheel", "--quiet", "--no-deps", "-w", str(folder), str(root)]
        subprocess.run(wheel_command, check=True)
        (wheel,) = folder.glob("molsampler-*.whl")
        problems = differences(root, wheel)
        for problem in problems:
            print(problem)
        if problems:
            return 1
        target = folder / "installed"
        install = [*pip, "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
        subprocess.run(install, check=True)
        done = subprocess.run(
            [sys.executable, "-c", IMPORT_ALL, str(target)],
            check=False,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(target)},
        )
        if done.returncode == 0:
            print(f"wheel: {len(wheel_files(wheel))} files, as in the source tree")
        return done.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()))
