"""Runs of other programs: atoms matched or refused, molecules made whole, weights, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peptides import Peptide

from molsampler import Samples
from molsampler.errors import FileFormatError, InputError, ShapeError
from molsampler.export.lengths import box_vectors
from molsampler.export.simulation import load_simulation, read_weights, whole
from molsampler.molecule.matching import placement
from molsampler.systems import get_system

mdtraj = pytest.importorskip("mdtraj")
pytest.importorskip("openmm")


@pytest.fixture(scope="module")
def system() -> Any:
    return get_system("alanine-dipeptide")


@pytest.fixture(scope="module")
def frames(system) -> np.ndarray:
    return system.starts(60, generator=torch.Generator().manual_seed(0)).numpy()


def write(
    folder: Path,
    frames: np.ndarray,
    topology: Any,
    *,
    suffix: str = ".xtc",
    box: np.ndarray | None = None,
) -> tuple[Path, Path]:
    """A trajectory and its topology by MDTraj, as another program would leave them."""
    trajectory = mdtraj.Trajectory(frames, topology)
    if box is not None:
        trajectory.unitcell_vectors = np.repeat(box[None], len(frames), axis=0)
    trajectory.save(str(folder / f"run{suffix}"))
    trajectory[0].save(str(folder / "top.pdb"))
    return folder / f"run{suffix}", folder / "top.pdb"


def reordered(topology: Any, order: list[int], *, rename: bool) -> Any:
    """The topology with atom k being ``order[k]`` of the old one, in one residue if renamed."""
    atoms = list(topology.atoms)
    made = mdtraj.Topology()
    chain = made.add_chain()
    residue = made.add_residue("UNK", chain) if rename else None
    residues: dict[int, Any] = {}
    placed = {}
    for k, index in enumerate(order):
        old = atoms[index]
        if not rename:
            key = old.residue.index
            residue = residues.get(key) or residues.setdefault(
                key, made.add_residue(old.residue.name, chain)
            )
        name = f"X{k}" if rename else old.name
        placed[index] = made.add_atom(name, old.element, residue)
    for bond in topology.bonds:
        made.add_bond(placed[bond[0].index], placed[bond[1].index])
    return made


def same(samples: Samples, frames: np.ndarray, system: Any) -> None:
    expected = frames - frames.mean(1, keepdims=True)
    np.testing.assert_allclose(samples.positions.numpy(), expected, atol=2e-3)


def test_a_run_in_the_systems_order_is_taken_as_it_is(tmp_path, system, frames) -> None:
    run, top = write(tmp_path, frames, system.topology())
    samples, remarks = load_simulation(run, system, topology=top)
    same(samples, frames, system)
    assert remarks == ("run.xtc: atoms have the names and order of the system.",)
    assert samples.metadata["time_ordered"] is True
    # Without names the order is assumed, and that is said.
    samples, remarks = load_simulation(run, system)
    same(samples, frames, system)
    assert "nothing names them (--top)" in remarks[0]


def test_a_run_in_another_order_is_matched_by_name(tmp_path, system, frames) -> None:
    """Atoms in another order within each residue, hydrogens last as some programs write them."""
    topology = system.topology()
    order = [
        atom.index
        for residue in topology.residues
        for atom in sorted(residue.atoms, key=lambda a: (a.element.symbol == "H", a.index))
    ]
    assert order != list(range(22))
    run, top = write(tmp_path, frames[:, order], reordered(topology, order, rename=False))
    samples, remarks = load_simulation(run, system, topology=top)
    same(samples, frames, system)
    assert "matched by name" in remarks[0]
    # A file that names its atoms needs nobody else to.
    held, _ = write(
        tmp_path, frames[:, order], reordered(topology, order, rename=False), suffix=".h5"
    )
    samples, remarks = load_simulation(held, system)
    same(samples, frames, system)
    assert "matched by name" in remarks[0]
    # Without the names it is noticed by the bonds.
    with pytest.raises((InputError, FileFormatError), match=r"another order|order of the atoms"):
        load_simulation(run, system)


@pytest.mark.parametrize("named", [False, True])
def test_angstrom_for_nanometres_are_called_so(tmp_path, system, frames, named) -> None:
    run, _ = write(tmp_path, 10 * frames, system.topology())
    mdtraj.Trajectory(frames[:1], system.topology()).save(str(tmp_path / "right.pdb"))
    with pytest.raises(InputError, match="angstrom written as nm"):
        load_simulation(run, system, topology=tmp_path / "right.pdb" if named else None)


@pytest.mark.parametrize("seed", range(3))
def test_names_that_say_nothing_are_matched_by_bonds_and_places(
    tmp_path, system, frames, seed
) -> None:
    order = np.random.default_rng(seed).permutation(22).tolist()
    run, top = write(tmp_path, frames[:, order], reordered(system.topology(), order, rename=True))
    samples, remarks = load_simulation(run, system, topology=top)
    heavy = [atom.index for atom in system.topology().atoms if atom.element.symbol != "H"]
    expected = frames - frames.mean(1, keepdims=True)
    np.testing.assert_allclose(samples.positions.numpy()[:, heavy], expected[:, heavy], atol=2e-3)
    # Hydrogens of a methyl group may take each other's places, as they do by turning, but not those
    # of the mirror image, which no turn reaches.
    molecule = system.molecule
    for found, frame in zip(samples.positions[:5], expected, strict=False):
        wanted = placement(frame, molecule.types, molecule.bonds)
        got = placement(found.double().numpy(), molecule.types, molecule.bonds)
        four = np.array([atom.n_bonds == 4 for atom in system.topology().atoms])
        assert np.array_equal(got[four], wanted[four])
    distance = torch.cdist(samples.positions, samples.positions)
    for i, j in molecule.bonds:
        assert float(distance[:, i, j].max()) < 0.16
    assert "matched by their bonds, since names differ" in remarks[0]


def test_another_molecule_is_refused_with_the_first_difference(tmp_path, system, frames) -> None:
    topology = system.topology()
    other = reordered(topology, list(range(22)), rename=True)
    list(other.atoms)[5].element = mdtraj.element.sulfur
    run, top = write(tmp_path, frames, other)
    with pytest.raises(InputError, match=r"not those of 'alanine-dipeptide'.* S1, expected are"):
        load_simulation(run, system, topology=top)
    other = mdtraj.Topology()
    residue = other.add_residue("UNK", other.add_chain())
    for atom in topology.atoms:
        other.add_atom(f"Q{atom.index}", atom.element, residue)
    run, top = write(tmp_path, frames, other)
    with pytest.raises(InputError, match="by name, and without bonds"):
        load_simulation(run, system, topology=top)


def test_the_molecule_is_found_among_others(tmp_path, system, frames) -> None:
    topology = system.topology()
    solvated = mdtraj.Topology()
    residue = solvated.add_residue("HOH", solvated.add_chain())
    water = [solvated.add_atom(name, mdtraj.element.get_by_symbol(name[0]), residue)
             for name in ("O", "H1", "H2")]  # fmt: skip
    solvated.add_bond(water[0], water[1])
    solvated.add_bond(water[0], water[2])
    solvated = solvated.join(topology)
    water_frames = np.broadcast_to([[1, 1, 1], [1.1, 1, 1], [1, 1.1, 1]], (len(frames), 3, 3))
    full = np.concatenate([water_frames, frames], axis=1).astype(np.float32)
    run, top = write(tmp_path, full, solvated)
    samples, remarks = load_simulation(run, system, topology=top)
    same(samples, frames, system)
    assert "3 other atoms left out" in remarks[0]
    with pytest.raises(ShapeError, match=r"25 atoms a frame.* 22 particles; a topology \(--top\)"):
        load_simulation(run, system)


@pytest.mark.parametrize("suffix", [".xtc", ".dcd"])
def test_molecules_cut_by_the_box_are_made_whole(tmp_path, system, frames, suffix) -> None:
    """A skewed box; each atom is put into it by itself, as programs do that wrap by atoms."""
    box = np.array([[1.6, 0, 0], [0.4, 1.5, 0], [-0.3, 0.2, 1.7]])
    shift = np.random.default_rng(0).uniform(-3, 3, (len(frames), 1, 3))
    fraction = np.einsum("bni,ij->bnj", frames + shift, np.linalg.inv(box))
    wrapped = np.einsum("bni,ij->bnj", fraction - np.floor(fraction), box).astype(np.float32)
    run, top = write(tmp_path, wrapped, system.topology(), suffix=suffix, box=box)
    samples, remarks = load_simulation(run, system, topology=top)
    same(samples, frames, system)
    assert any("made whole across the faces of the box" in text for text in remarks)
    # The control: without the box it is refused.
    run, top = write(tmp_path, wrapped, system.topology(), suffix=suffix)
    with pytest.raises(FileFormatError, match="cut at the face of a box that the file does not"):
        load_simulation(run, system, topology=top)


def test_wholeness_needs_no_box_where_nothing_is_cut() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, 3)) * 0.05
    bonds = [(0, 1), (1, 2)]
    assert whole(x, bonds, None, source="x")[1] == 0
    box = np.repeat(box_vectors([[2.0, 2.0, 2.0]], [[0.0, 0.0, 0.0]]), 5, axis=0)
    np.testing.assert_allclose(box[0], 2 * np.eye(3))
    moved = x.copy()
    moved[2, 1] += [2.0, -4.0, 0.0]
    found, count = whole(moved, bonds, box, source="x")
    assert count == 1
    np.testing.assert_allclose(found, x, atol=1e-12)


def test_weights_are_read_and_checked(tmp_path, system, frames) -> None:
    run, top = write(tmp_path, frames, system.topology())
    w = np.linspace(0, 1, 60)
    np.save(tmp_path / "w.npy", w)
    np.save(tmp_path / "log_weights.npy", -w)
    np.savez(tmp_path / "w.npz", log_weights=-w)
    samples, remarks = load_simulation(run, system, topology=top, weights=tmp_path / "w.npy")
    assert samples.log_weights is not None
    np.testing.assert_allclose(samples.log_weights.exp().numpy(), w)
    assert "effective sample size 45" in remarks[-1]
    for name in ("log_weights.npy", "w.npz"):
        assert np.array_equal(read_weights(tmp_path / name, 60).numpy(), -w)

    np.save(tmp_path / "short.npy", w[:10])
    np.save(tmp_path / "negative.npy", -w)
    np.savez(tmp_path / "other.npz", w=w)
    (tmp_path / "pickled.npy").write_bytes(b"\x80\x04K\x01.")
    for name, error, words in (
        ("short.npy", InputError, r"shape \(10,\) for 60 frames"),
        ("negative.npy", InputError, "log weights stand in a file with log_weights"),
        ("other.npz", InputError, "neither log_weights nor weights"),
        ("pickled.npy", FileFormatError, "holds no weights"),
        ("none.npy", FileFormatError, "does not exist"),
    ):
        with pytest.raises(error, match=words):
            read_weights(tmp_path / name, 60)


def test_files_of_our_own_are_read_as_ever(tmp_path, system, frames) -> None:
    samples = Samples.of(system, frames)
    for suffix in (".npz", ".dcd"):
        samples.save(tmp_path / f"own{suffix}")
        read, remarks = load_simulation(tmp_path / f"own{suffix}", system)
        assert remarks == ()
        assert "time_ordered" not in read.metadata
    with pytest.raises(InputError, match="leave the topology out"):
        load_simulation(tmp_path / "own.npz", system, topology=tmp_path / "own.pdb")


def test_systems_without_a_force_field_are_matched_too(tmp_path) -> None:
    peptide = Peptide()
    x = peptide.sample(40, 0).float().numpy()
    topology = peptide.topology()
    run, top = write(tmp_path, x, topology, suffix=".dcd")
    samples, remarks = load_simulation(run, peptide, topology=top)
    np.testing.assert_allclose(samples.positions.numpy(), x, atol=1e-5)
    assert "names and order" in remarks[0]
