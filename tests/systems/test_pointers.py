"""Keys and names that people bring from other programs are answered with a reason or the choices."""

from __future__ import annotations

from pathlib import Path

import butane
import pytest

from molsampler.errors import InputError
from molsampler.systems import get_system

pytest.importorskip("openmm")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "constraints: HBonds",
            "a constrained length is held by an integrator and not by the energy",
        ),
        ("hydrogen_mass: 4", "configurations do not depend on masses"),
        ("box: [3, 3, 3]", "repeats in every image"),
        ("expression: r^2", "it is a key of 'kind: pair_potential'"),
        (
            "implicit_solvent: obc3",
            "must be one of hct, obc1, obc2, gbn, gbn2 or .*did you mean 'obc2'",
        ),
        ("forcefeild: a.xml", "unknown key 'forcefeild'; did you mean 'forcefield'"),
    ],
)
def test_a_line_too_many_is_explained(line: str, said: str, tmp_path: Path) -> None:
    path = butane.write(tmp_path)
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(InputError, match=said):
        get_system(path)


def test_a_force_field_is_named_by_its_file(tmp_path: Path) -> None:
    path = butane.write(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("butane.xml", "ff14SB"))
    with pytest.raises(InputError, match=r"did you mean .*'amber14/protein\.ff14SB\.xml'"):
        get_system(path)
    path.write_text(text.replace("butane.xml", "nothing-like-it"))
    with pytest.raises(InputError, match=r"nor one of OpenMM's \(such as amber14-all\.xml"):
        get_system(path)


def test_a_file_without_kind_is_told_which_its_keys_are_of(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("pdb: a.pdb\n")
    with pytest.raises(InputError, match=r"unknown key 'pdb': it is a key of .*'kind: openmm'"):
        get_system(path)
