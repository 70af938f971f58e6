"""Collective variables: what texts mean, what is refused, and the basins that edges cut."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch

from molsampler.collective_variables import (
    COLLECTIVE_VARIABLES,
    CollectiveVariable,
    Intervals,
    collective_variable,
)
from molsampler.errors import FileFormatError, InputError, NonFiniteError, ShapeError
from molsampler.systems import get_system


def turned(degrees: list[float]) -> torch.Tensor:
    """Four particles ``(n, 4, 3)`` about an axis along z, the last turned by the given angles."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    x = torch.zeros(len(degrees), 4, 3, dtype=torch.float64)
    x[:, 0, 0] = 1
    x[:, 2:, 2] = 1
    x[:, 3, 0], x[:, 3, 1] = angle.cos(), angle.sin()
    return x


ANGLES = [-180.0, -179.9, -60.0, 0.0, 60.0, 179.9, 180.0]


def test_a_torsion_is_the_angle_about_its_bond() -> None:
    found = collective_variable("torsion:0,1,2,3", (4, 3))(turned(ANGLES))
    assert found.tolist() == pytest.approx([*ANGLES[:-1], -180.0], abs=1e-9)
    assert bool((found >= -180).all() and (found < 180).all())


def test_torsions_agree_with_mdtraj_in_sign() -> None:
    import mdtraj

    x = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0))
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(4):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    trajectory = mdtraj.Trajectory(x.numpy(), topology)
    expected = torch.rad2deg(
        torch.tensor(mdtraj.compute_dihedrals(trajectory, [[0, 1, 2, 3]])[:, 0])
    )
    found = collective_variable("torsion:0,1,2,3", (4, 3))(x)
    assert torch.allclose(found.float(), expected, atol=1e-2)


def test_a_distance_is_a_length_in_any_dimension() -> None:
    x = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    assert collective_variable("distance:0,1", (2, 2))(x).tolist() == [5.0]


@pytest.mark.parametrize(
    ("text", "shape", "said"),
    [
        ("torsion:0,1,2", (4, 3), "torsion:i,j,k,l"),
        ("torsion:0,1,2,x", (4, 3), "torsion:i,j,k,l"),
        ("torsion:0,1,2,4", (4, 3), "there are 4, 0 to 3"),
        ("torsion:0,1,2,2", (4, 3), "twice"),
        ("torsion:0,1,2,3", (4, 2), "three dimensions"),
        ("distance:-1,0", (4, 3), "distance:i,j"),
        ("angle:0,1,2", (4, 3), "must be one of"),
        ("x.py", (4, 3), "FILE.py:NAME"),
    ],
)
def test_texts_that_mean_nothing_are_refused(text, shape, said) -> None:
    with pytest.raises(InputError, match=said):
        collective_variable(text, shape)


def written(folder: Path, text: str) -> str:
    path = folder / "cv.py"
    path.write_text(text)
    return str(path)


def test_a_function_of_a_file_is_called_with_all_positions(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "import numpy\ndef first(x):\n    return x[:, 0, 0]\n"
        "def turn(x):\n    return numpy.full(len(x), 190.0)\nturn.period = 360\n",
    )
    x = torch.randn(5, 4, 3)
    assert torch.equal(collective_variable(f"{path}:first", (4, 3))(x), x[:, 0, 0].double())
    periodic = collective_variable(f"{path}:turn", (4, 3))
    assert (periodic.period, periodic(x).tolist()) == (360.0, [-170.0] * 5)


@pytest.mark.parametrize(
    ("content", "name", "error", "said"),
    [
        ("def f(x):\n    return x\n", "f", ShapeError, r"shape \(5,\), got \(5, 4, 3\)"),
        ("def f(x):\n    return x[:, 0, 0] / 0\n", "f", NonFiniteError, "not finite in 5 of 5"),
        ("def f(x):\n    return x[:, 9, 0]\n", "f", InputError, "failed: IndexError"),
        ("def f(x):\n    return x[:, 0, 0]\n", "g", InputError, "no function 'g'"),
        ("f = (", "f", InputError, "cannot be run: SyntaxError"),
        ("def f(x): ...\nf.period = -1\n", "f", InputError, "period of 'f'"),
    ],
)
def test_functions_that_do_not_work_are_said_so(tmp_path, content, name, error, said) -> None:
    text = f"{written(tmp_path, content)}:{name}"
    with pytest.raises(error, match=said):
        collective_variable(text, (4, 3))(torch.ones(5, 4, 3))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(FileFormatError, match=r"nowhere\.py"):
        collective_variable("nowhere.py:f", (4, 3))


def test_edges_cut_a_circle_into_as_many_basins() -> None:
    variable = collective_variable("torsion:0,1,2,3", (4, 3))
    cut = Intervals(variable, (-120.0, 0.0, 120.0))
    values = torch.tensor([-180.0, -121.0, -120.0, -1.0, 0.0, 119.0, 120.0, 179.0])
    assert cut.labels(values.double()).tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    assert cut.names[0].endswith("in [120, -120)")
    line = Intervals(collective_variable("distance:0,1", (4, 3)), (1.0, 2.0))
    assert line.labels(torch.tensor([0.5, 1.0, 2.0, 9.0])).tolist() == [0, 1, 2, 2]
    assert len(line.names) == 3


@pytest.mark.parametrize("edges", [(), (0.0,), (10.0, 0.0), (0.0, 180.0), (0.0, math.nan)])
def test_edges_that_cut_nothing_are_refused(edges) -> None:
    with pytest.raises(InputError, match="edges of"):
        Intervals(collective_variable("torsion:0,1,2,3", (4, 3)), edges)


def test_a_kind_from_outside_takes_part() -> None:
    @COLLECTIVE_VARIABLES.register("height")
    def height(text: str, shape: tuple[int, int]) -> CollectiveVariable:
        particle = int(text)
        return CollectiveVariable(f"height:{text}", "", None, lambda x: x[:, particle, -1])

    try:
        x = torch.randn(3, 4, 3)
        assert torch.equal(collective_variable("height:2", (4, 3))(x), x[:, 2, 2].double())
        with pytest.raises(InputError, match="height:"):
            collective_variable("depth:2", (4, 3))
    finally:
        COLLECTIVE_VARIABLES.unregister("height")


FILE = """
expression: b*x^2 + c*x^4; x = r - d0
particles: 2
dimensions: 3
parameters: {b: -4, c: 0.9, d0: 4}
collective_variables: {bond: 'distance:0,1'}
basins: {along: bond, edges: [4]}
"""


def test_a_system_file_defines_basins_and_samples_do_not_depend_on_them(tmp_path: Path) -> None:
    path, plain = tmp_path / "pair.yaml", tmp_path / "plain" / "pair.yaml"
    plain.parent.mkdir()
    path.write_text(FILE)
    plain.write_text(FILE.split("collective_variables")[0])
    system = get_system(path)
    assert system.basins is not None
    x = torch.tensor([[[0.0, 0, 0], [2.5, 0, 0]], [[0, 0, 0], [5.5, 0, 0]]])
    labels, names = system.basins.mode_labels(x)
    assert (labels.tolist(), names) == ([0, 1], ("bond < 4", "bond >= 4"))
    assert system.record() == get_system(plain).record()
    assert pickle.loads(pickle.dumps(system)).basins.edges == system.basins.edges


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("basins: {along: bond, edges: [5, 4]}", "rising"),
        ("basins: {along: torsion:0, edges: [4]}", "torsion"),
        ("basins: {along: bond}", "basins.edges"),
        ("collective_variables: {bond: 'distance:0,2'}", "there are 2"),
        ("collective_variables: {bond: 'evil.py:f'}", "must not"),
    ],
)
def test_a_system_file_with_unusable_basins_is_refused(
    tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "pair.yaml"
    key = line.split(":")[0]
    lines = [line if old.startswith(key) else old for old in FILE.splitlines()]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=said):
        get_system(path)
