"""Molecules by SMILES: MMFF94 as RDKit computes it, the isomer that was meant, and what is refused."""

from __future__ import annotations

import builtins
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from molsampler import Samples, export
from molsampler.errors import InputError, MissingDependencyError
from molsampler.molecule.chirality import right_handed
from molsampler.molecule.matching import placement
from molsampler.systems import SmilesSystem, get_system
from molsampler.units import kT

pytest.importorskip("openmm")
Chem = pytest.importorskip("rdkit.Chem")
from rdkit.Chem import AllChem  # noqa: E402

#: Every kind of term and centre: linear, aromatic, small rings, delocalised, charged in form, second row.
MOLECULES = (
    *("CCCC", "CC(=O)NC", "CC#N", "C1CCCCC1", "Oc1ccccc1", "CC(=O)N[C@@H](C)C(=O)NC", "C=C=CC"),
    *(
        "C[N+](=O)[O-]",
        "CS(=O)(=O)N",
        "O=C(O)C1CC1",
        "CN=[N+]=[N-]",
        "C1CN1",
        "c1ccsc1",
        "COP(=O)(O)O",
    ),
)


@pytest.mark.parametrize("force_field", ["MMFF94", "MMFF94s"])
@pytest.mark.parametrize("smiles", MOLECULES)
def test_energy_and_score_are_those_that_rdkit_computes(smiles: str, force_field: str) -> None:
    system = SmilesSystem(smiles, 310.0, force_field=force_field, platform="Reference")
    molecule = system.to_rdkit()
    properties = AllChem.MMFFGetMoleculeProperties(molecule, mmffVariant=force_field)
    field = AllChem.MMFFGetMoleculeForceField(molecule, properties)
    generator = torch.Generator().manual_seed(0)
    x = torch.stack(
        [
            torch.from_numpy(system.positions)
            + width * torch.randn(system.shape, generator=generator, dtype=torch.float64)
            for width in (0.0, 0.001, 0.005, 0.01, 0.03, 0.06)
        ]
    )
    u, score = system.energy_and_score(x)
    beta = 4.184 / kT(310.0)
    for row, energy, force in zip(x.numpy(), u.numpy(), score.numpy(), strict=True):
        place = (10 * row).ravel().tolist()
        # In this order: RDKit's gradient uses distances that its energy has cached.
        assert energy == pytest.approx(beta * field.CalcEnergy(place), rel=1e-9, abs=1e-9)
        gradient = 10 * beta * np.array(field.CalcGrad(place)).reshape(-1, 3)
        # At the minimum all is rounding, of straight angles above all; thermal forces exceed 100 kT/nm.
        assert np.abs(force + gradient).max() <= 1e-5 * max(100, np.abs(gradient).max())


def test_variants_and_temperatures_are_different_systems() -> None:
    amide = "CC(=O)N(C)C"
    plain, planar = (SmilesSystem(amide, 300, force_field=each) for each in ("MMFF94", "MMFF94s"))
    x = plain.starts(4, generator=torch.Generator().manual_seed(0))
    x = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    assert (plain.energy(x) - planar.energy(x)).abs().max() > 1e-3
    hot = SmilesSystem(amide, 600)
    torch.testing.assert_close(2 * hot.energy(x), plain.energy(x))
    assert len({str(system.record()) for system in (plain, planar, hot)}) == 3


def test_the_file_is_two_lines_and_samples_are_read_without_it(tmp_path: Path) -> None:
    (tmp_path / "butane.yaml").write_text("kind: smiles\nsmiles: CCCC\ntemperature: 300\n")
    system = get_system(tmp_path / "butane.yaml")
    assert (system.name, system.shape, system.temperature) == ("butane", (14, 3), 300.0)
    starts = system.starts(30, generator=torch.Generator().manual_seed(0))
    Samples.of(system, starts).save(tmp_path / "b.npz")
    Samples.of(system, starts).save(tmp_path / "b.h5")
    (tmp_path / "butane.yaml").unlink()
    for suffix in (".npz", ".h5"):
        read = export.load(tmp_path / f"b{suffix}").system()
        assert read.record() == system.record()
        assert torch.equal(read.energy(starts), system.energy(starts))
    copy = pickle.loads(pickle.dumps(system))
    assert torch.equal(copy.energy(starts), system.energy(starts))

    other = dict(system.record())
    other["sha256"] = "0" * 64
    samples = Samples.of(system, starts).with_metadata(system=other)
    with pytest.raises(InputError, match=r"version of RDKit.*recorded"):
        samples.system()


def test_trajectories_name_elements_atoms_and_bonds(tmp_path: Path) -> None:
    import mdtraj

    system = SmilesSystem("C[C@H](O)F", 300, name="alcohol")
    starts = system.starts(10, generator=torch.Generator().manual_seed(0))
    Samples.of(system, starts).save(tmp_path / "a.dcd")
    read = mdtraj.load(tmp_path / "a.dcd", top=tmp_path / "a.pdb")
    assert [a.element.symbol for a in read.topology.atoms] == list("CCOFHHHHH")
    assert [a.name for a in read.topology.atoms][:6] == ["C1", "C2", "O1", "F1", "H1", "H2"]
    assert read.topology.n_bonds == 8
    assert {r.name for r in read.topology.residues} == {"MOL"}
    np.testing.assert_allclose(read.xyz, starts.numpy(), atol=1e-5)
    assert Chem.MolToSmiles(Chem.RemoveHs(system.to_rdkit())) == "C[C@H](O)F"


def test_the_specified_hand_is_kept_and_its_mirror_image_is_another_system() -> None:
    left, right = SmilesSystem("C[C@H](O)F", 300), SmilesSystem("C[C@@H](O)F", 300)
    for system in (left, right):
        starts = system.starts(40, generator=torch.Generator().manual_seed(0))
        assert not right_handed(starts, system.molecule.chiral_centres).wrong_before.any()
        mirrored = right_handed(-starts, system.molecule.chiral_centres)
        assert mirrored.wrong_before.all()
        tagged = system.to_rdkit()
        Chem.AssignStereochemistryFrom3D(tagged)
        assert Chem.MolToSmiles(Chem.RemoveHs(tagged)) == system.smiles
    # One energy, but the hand stands in the SMILES that files record.
    assert left.record() != right.record()


@pytest.mark.parametrize("smiles", ["CC(=O)NC", "F/C=C/F", "F/C=C\\F", "CC(=O)N1CCC[C@H]1C(=O)NC"])
def test_double_bonds_and_amides_keep_their_side_in_all_starts(smiles: str) -> None:
    system = SmilesSystem(smiles, 300)
    starts = system.starts(60, generator=torch.Generator().manual_seed(1)).numpy()
    molecule = system.to_rdkit()
    amides = molecule.GetSubstructMatches(Chem.MolFromSmarts("[#6]C(=O)N([#6])"))
    quartets = [(a, b, d, e) for a, b, _, d, e in amides] or [(0, 1, 2, 3)]
    for i, j, k, end in quartets:
        a, b = (np.cross(starts[:, p] - starts[:, q], starts[:, r] - starts[:, q])
                for p, q, r in ((i, j, k), (j, k, end)))  # fmt: skip
        side = np.sign(-(a * b).sum(-1) * -1)
        assert len(set(side.tolist())) == 1
    # Hydrogens of a methylene or methyl never change places.
    four = [a.GetIdx() for a in molecule.GetAtoms() if a.GetDegree() == 4]
    wanted = placement(system.positions, system.molecule.types, system.molecule.bonds)[four]
    for x in starts:
        found = placement(x, system.molecule.types, system.molecule.bonds)[four]
        assert np.array_equal(found, wanted)


def test_starts_of_a_ring_come_from_several_conformers() -> None:
    """Methylcyclohexane: axial and equatorial, which no turn of a bond exchanges."""
    system = SmilesSystem("CC1CCCCC1", 300)
    assert len(system.conformers) > 1
    starts = system.starts(60, generator=torch.Generator().manual_seed(0)).numpy()
    from_carbon = np.linalg.norm(starts[:, 0] - starts[:, 4], axis=-1)
    assert np.ptp(from_carbon) > 0.01


@pytest.mark.parametrize(
    ("smiles", "words"),
    [
        ("CC(F)O", ("isomer open", "C[C@@H](O)F, C[C@H](O)F")),
        ("FC=CF", ("isomer open", "F/C=C/F, F/C=C\\F")),
        ("CC.CC", ("mixture of 2 molecules", "no norm")),
        ("C[NH3+]", ("net charge of +1",)),
        ("C[CH2]", ("unpaired electrons at C2",)),
        ("CC(", ("not a readable SMILES",)),
        ("C(C)(C)(C)(C)C", ("not a readable SMILES", "valence")),
        ("[He]", ("1 atoms",)),
        ("C[Fe]C", ("without parameters in MMFF94",)),
        ("", ("text such as CCCC",)),
    ],
)
def test_what_is_no_molecule_of_this_kind_is_refused_with_the_reason(smiles, words) -> None:
    with pytest.raises(InputError) as caught:
        SmilesSystem(smiles, 300)
    assert all(word in str(caught.value) for word in words), caught.value


def test_without_rdkit_the_message_names_the_extra(monkeypatch) -> None:
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "rdkit":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"pip install 'molsampler\[rdkit\]'"):
        SmilesSystem("CCCC", 300)


def test_files_name_their_faults(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for text, words in {
        "smiles: CCCC\nforce_field: UFF\n": "force_field must be MMFF94 or MMFF94s",
        "force_field: MMFF94\n": "missing key.*'smiles'",
        "smiles: CCCC\nconstraints: HBonds\n": "constraints must be left out",
    }.items():
        path.write_text(f"kind: smiles\ntemperature: 300\n{text}")
        with pytest.raises(InputError, match=words):
            get_system(path)
