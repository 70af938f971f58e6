"""System files of ``kind: smiles``: a molecule by its SMILES, with the energy MMFF94."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from molsampler.errors import InputError, MissingDependencyError
from molsampler.molecule.graph import neighbours, rotatable_bonds
from molsampler.molecule.matching import match, placement

from .mmff import VARIANTS, mmff_system
from .molecular import MolecularSpec
from .probe import require_openmm
from .system import OpenMMSystem, kelvin

log = logging.getLogger("molsampler.systems")

#: Conformers from which starts are drawn: some, and more for each bond that can turn and each ring.
_CONFORMERS, _CONFORMERS_PER_BOND, _CONFORMERS_PER_RING = 4, 3, 8
_MOST_CONFORMERS = 40
_EMBEDDING_SEED = 20_24
#: Most isomers that a message lists.
_LISTED = 8
_MOST_ATOMS = 300


class SmilesSystem(OpenMMSystem):
    """A molecule in vacuum by its SMILES, with the energy MMFF94 or MMFF94s; positions in nm, energies in kT.

    RDKit assigns atom types and parameters, :func:`~molsampler.systems.openmm.mmff.mmff_system` is the
    energy, and conformers are embedded with ETKDG (Wang et al., J. Chem. Inf. Model. 60, 2044, 2020) and
    minimised: the lowest is ``positions``, and starts begin at any of them. Hydrogens are added after the
    atoms of the SMILES, which keep their order. The isomer is the one that the SMILES specifies.

    Parameters
    ----------
    smiles : one neutral molecule with closed shells and all its stereo centres specified
    temperature : kelvin
    name, options : as in :class:`OpenMMSystem`
    force_field : ``"MMFF94"`` or ``"MMFF94s"``

    Raises
    ------
    InputError
        The SMILES is not readable, is none of one neutral closed-shell molecule of two atoms or more, leaves
        its isomer open, or has atoms that MMFF94 does not know.
    MissingDependencyError
        RDKit is not installed.
    """

    def __init__(
        self,
        smiles: str,
        temperature: Any,
        *,
        name: str = "molecule",
        force_field: str = "MMFF94",
        **options: Any,
    ) -> None:
        require_openmm()
        _require_rdkit()
        from rdkit.Chem import AllChem

        if force_field not in VARIANTS:
            raise InputError(
                f"force_field must be one of {', '.join(VARIANTS)}, got {force_field!r}"
            )
        molecule = _molecule(smiles)
        properties = AllChem.MMFFGetMoleculeProperties(molecule, mmffVariant=force_field)
        if properties is None or not AllChem.MMFFHasAllMoleculeParams(molecule):
            raise InputError(
                f"smiles {smiles!r} has atoms or bonds without parameters in {force_field}; write the "
                "molecule with another force field as kind amber, gromacs, charmm or openmm_xml"
            )
        conformers = _conformers(molecule, properties, smiles)
        self.smiles, self.force_field = smiles, force_field
        super().__init__(
            mmff_system(molecule, properties),
            _topology(molecule),
            temperature,
            **{
                "name": name,
                "positions": conformers[0],
                "conformers": conformers,
                "labels": [properties.GetMMFFAtomType(i) for i in range(molecule.GetNumAtoms())],
                "description": f"{smiles} with the energy {force_field}, {kelvin(temperature):g} K",
                **options,
            },
        )
        self._molecule = molecule
        self.conformers = self._of_one_isomer(conformers)

    def _of_one_isomer(self, conformers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Those that bond turns and bends of ``positions`` reach without crossing a double bond's barrier.

        Embedding places equivalent branches, such as the hydrogens of a methylene, at random; a simulation
        never exchanges them.
        """
        bonds, labels = self._bonds, self._types
        wanted = placement(conformers[0], labels, bonds)
        turning = {frozenset((j, k)) for (_, j, k, _), _ in self._turning_bonds()}
        fixed = [
            quartet
            for quartet, _ in rotatable_bonds(self.shape[0], bonds)
            if frozenset(quartet[1:3]) not in turning
        ]
        centres = [i for i, near in enumerate(neighbours(self.shape[0], bonds)) if len(near) == 4]
        kept = []
        for x in conformers:
            x = x[match(labels, bonds, labels, bonds, geometry=conformers[0], other_geometry=x)]
            same = placement(x, labels, bonds)[centres] == wanted[centres]
            sides = [_cosine(x, q) * _cosine(conformers[0], q) > 0 for q in fixed]
            if same.all() and all(sides):
                kept.append(x)
        return np.stack(kept)

    def to_rdkit(self) -> Any:
        """A copy of the RDKit molecule, hydrogens included, atoms in the order of positions; its
        conformers are those of the system, in angstrom."""
        from rdkit import Chem

        return Chem.Mol(self._molecule)

    def _record(self) -> str | dict[str, Any]:
        """What makes the system, and the hash of its energy by which a reader knows that it got the same."""
        hashed = super()._record()
        digest = hashed["sha256"] if isinstance(hashed, dict) else ""
        return {
            "kind": "smiles",
            "name": self.name,
            "smiles": self.smiles,
            "force_field": self.force_field,
            "temperature": self.temperature,
            "sha256": digest,
        }


class SmilesSpec(MolecularSpec):
    """Keys of a system file of ``kind: smiles``::

        kind: smiles
        smiles: CCCC
        force_field: MMFF94
        temperature: 300

    See :class:`SmilesSystem`. Samples and artifacts hold what makes the system, and are read without its
    file.
    """

    # Unlike those of other molecules, records suffice.
    elsewhere: ClassVar[str] = ""

    smiles: str = Field(min_length=1, description="a SMILES such as CCCC")
    force_field: Literal["MMFF94", "MMFF94s"] = Field(
        default="MMFF94", description="MMFF94 or MMFF94s"
    )
    sha256: str | None = None

    def build(self, folder: Path | None) -> SmilesSystem:
        """The system.

        Raises
        ------
        InputError
            See :class:`SmilesSystem`; or the energy is not the one whose hash is recorded.
        """
        given = {"description", "platform", "workers", "timeout", "invariant"}
        system = SmilesSystem(
            self.smiles,
            self.temperature,
            name=self.name,
            force_field=self.force_field,
            **self.model_dump(include=given, exclude_defaults=True),
        )
        record = system.record()
        if self.sha256 is not None and isinstance(record, dict) and record["sha256"] != self.sha256:
            raise InputError(
                f"the energy that this version of RDKit gives {self.smiles!r} is not the one recorded "
                f"(sha256 {record['sha256'][:12]}..., not {self.sha256[:12]}...); use the version of "
                "RDKit that the samples were made with"
            )
        return system


def _cosine(x: np.ndarray[Any, Any], quartet: Sequence[int]) -> float:
    """Of a torsion at positions ``(n, 3)``, up to a positive factor."""
    i, j, k, end = (x[index] for index in quartet)
    return float(np.cross(i - j, k - j) @ np.cross(j - k, end - k))


def _require_rdkit() -> None:
    try:
        import rdkit  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "RDKit is needed for molecules by SMILES: pip install 'molsampler[rdkit]'"
        ) from None


def _molecule(smiles: Any) -> Any:
    """The molecule with all hydrogens, or what is wrong with the SMILES."""
    from rdkit import Chem, rdBase

    if not isinstance(smiles, str) or not smiles.strip():
        raise InputError(f"smiles must be text such as CCCC, got {smiles!r}")
    with rdBase.BlockLogs():
        parsed = Chem.MolFromSmiles(smiles, sanitize=False)
        problems = [] if parsed is None else Chem.DetectChemistryProblems(parsed)
        bare = None if parsed is None or problems else Chem.MolFromSmiles(smiles)
    if bare is None:
        cause = f": {problems[0].Message()}" if problems else ""
        raise InputError(f"smiles {smiles!r} is not a readable SMILES{cause}")
    parts = Chem.GetMolFrags(bare)
    if len(parts) > 1:
        raise InputError(
            f"smiles {smiles!r} is a mixture of {len(parts)} molecules, which drift apart in open space: "
            "their energy has no norm. Give one molecule"
        )
    charge = Chem.GetFormalCharge(bare)
    if charge:
        raise InputError(
            f"smiles {smiles!r} has a net charge of {charge:+d}; the energy is one in vacuum and meant for "
            "neutral molecules. Give the neutral form, or another kind of file with an implicit solvent"
        )
    radicals = [
        f"{a.GetSymbol()}{a.GetIdx() + 1}" for a in bare.GetAtoms() if a.GetNumRadicalElectrons()
    ]
    if radicals:
        raise InputError(
            f"smiles {smiles!r} has unpaired electrons at {', '.join(radicals)}; MMFF94 knows closed "
            "shells only"
        )
    _refuse_open_isomers(bare, smiles)
    molecule = Chem.AddHs(bare)
    if not 2 <= molecule.GetNumAtoms() <= _MOST_ATOMS:
        raise InputError(
            f"smiles {smiles!r} has {molecule.GetNumAtoms()} atoms with hydrogens; 2 to {_MOST_ATOMS} "
            "are possible"
        )
    return molecule


def _refuse_open_isomers(bare: Any, smiles: str) -> None:
    from rdkit import Chem
    from rdkit.Chem.EnumerateStereoisomers import (
        EnumerateStereoisomers,
        StereoEnumerationOptions,
    )

    options = StereoEnumerationOptions(onlyUnassigned=True, unique=True, maxIsomers=_LISTED)
    isomers = sorted(
        {Chem.MolToSmiles(each) for each in EnumerateStereoisomers(bare, options=options)}
    )
    if len(isomers) > 1:
        raise InputError(
            f"smiles {smiles!r} leaves its isomer open, and a sampler is of one; choose one of "
            f"{', '.join(isomers)}{', ...' if len(isomers) == _LISTED else ''}"
        )


def _conformers(molecule: Any, properties: Any, smiles: str) -> np.ndarray[Any, Any]:
    """Minimised conformers ``(k, n, 3)`` in nm, the lowest energy first."""
    from rdkit import rdBase
    from rdkit.Chem import AllChem, rdMolDescriptors

    turning = rdMolDescriptors.CalcNumRotatableBonds(molecule)
    rings = rdMolDescriptors.CalcNumAliphaticRings(molecule)
    wanted = _CONFORMERS + _CONFORMERS_PER_BOND * turning + _CONFORMERS_PER_RING * rings
    count = min(wanted, _MOST_CONFORMERS)
    parameters = AllChem.ETKDGv3()
    parameters.randomSeed = _EMBEDDING_SEED
    parameters.useSmallRingTorsions = True
    with rdBase.BlockLogs():
        found = list(AllChem.EmbedMultipleConfs(molecule, count, parameters))
        if not found:
            parameters.useRandomCoords = True
            found = list(AllChem.EmbedMultipleConfs(molecule, count, parameters))
    if not found:
        raise InputError(
            f"smiles {smiles!r}: no conformer could be embedded, the isomer is strained"
        )
    energies = []
    for conformer in found:
        field = AllChem.MMFFGetMoleculeForceField(molecule, properties, confId=conformer)
        field.Minimize(maxIts=2000)
        energies.append(field.CalcEnergy())
    order = [found[k] for k in np.argsort(energies, kind="stable")]
    log.debug(
        "%s: %d conformers, from %.2f to %.2f kcal/mol",
        smiles,
        len(found),
        min(energies),
        max(energies),
    )
    return np.stack([molecule.GetConformer(k).GetPositions() / 10 for k in order])


def _topology(molecule: Any) -> Any:
    """One residue, atoms named by element and number, bonds as in the molecule."""
    from openmm import app

    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    counts: Counter[str] = Counter()
    atoms = []
    for atom in molecule.GetAtoms():
        symbol = atom.GetSymbol()
        counts[symbol] += 1
        element = app.Element.getBySymbol(symbol)
        atoms.append(topology.addAtom(f"{symbol}{counts[symbol]}", element, residue))
    for bond in molecule.GetBonds():
        order = bond.GetBondTypeAsDouble()
        topology.addBond(
            atoms[bond.GetBeginAtomIdx()],
            atoms[bond.GetEndAtomIdx()],
            order=None if not math.isclose(order, round(order)) else round(order),
        )
    return topology
