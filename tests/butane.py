"""United-atom butane as a user would define it: a PDB file, a force field and a system file."""

from __future__ import annotations

from pathlib import Path

#: A training of seconds.
TINY = {
    "iterations": 2,
    "batch_size": 16,
    "compile": "false",
    "evaluate_samples": 20,
    "evaluate_steps": 2,
    "generator.body.width": 8,
    "generator.body.layers": 1,
    "denoiser.width": 8,
    "denoiser.layers": 1,
    "target_score.size": 32,
    "target_score.equilibration": 10,
    "target_score.anneal_moves": 1,
    "target_score.warmup": 2,
    "target_score.start_scale": 0.1,
}

FORCE_FIELD = """<ForceField>
 <AtomTypes>
  <Type name="CH3" class="C" element="C" mass="15"/>
  <Type name="CH2" class="C" element="C" mass="14"/>
 </AtomTypes>
 <Residues>
  <Residue name="BUT">
   <Atom name="C1" type="CH3"/>
   <Atom name="C2" type="CH2"/>
   <Atom name="C3" type="CH2"/>
   <Atom name="C4" type="CH3"/>
   <Bond from="0" to="1"/>
   <Bond from="1" to="2"/>
   <Bond from="2" to="3"/>
  </Residue>
 </Residues>
 <HarmonicBondForce><Bond class1="C" class2="C" length="0.153" k="50000"/></HarmonicBondForce>
 <HarmonicAngleForce>
  <Angle class1="C" class2="C" class3="C" angle="1.95" k="400"/>
 </HarmonicAngleForce>
 <PeriodicTorsionForce>
  <Proper class1="C" class2="C" class3="C" class4="C" periodicity1="3" phase1="0" k1="3"/>
 </PeriodicTorsionForce>
 <NonbondedForce coulomb14scale="0" lj14scale="0">
  <Atom type="CH3" charge="0" sigma="0.38" epsilon="0.8"/>
  <Atom type="CH2" charge="0" sigma="0.38" epsilon="0.4"/>
 </NonbondedForce>
</ForceField>
"""

PDB = """\
HETATM    1  C1  BUT A   1       1.900   0.570   0.000  1.00  0.00           C
HETATM    2  C2  BUT A   1       0.570  -0.180   0.000  1.00  0.00           C
HETATM    3  C3  BUT A   1      -0.570   0.840   0.000  1.00  0.00           C
HETATM    4  C4  BUT A   1      -1.900   0.090   0.000  1.00  0.00           C
TER       5      BUT A   1
CONECT    1    2
CONECT    2    1    3
CONECT    3    2    4
CONECT    4    3
END
"""


def write(folder: Path) -> Path:
    """Write ``butane.yaml`` and what it needs."""
    (folder / "butane.pdb").write_text(PDB)
    (folder / "butane.xml").write_text(FORCE_FIELD)
    path = folder / "butane.yaml"
    path.write_text(
        "kind: openmm\npdb: butane.pdb\nforcefield: butane.xml\ntemperature: 300\n"
        "platform: Reference\ndescription: united-atom butane\n"
    )
    return path
