"""Units: the bridge between reduced quantities and the nanometres and kilojoules of simulation codes.

Inside molsampler energies are in units of kT and lengths in the system's own unit. A reduced system
has no temperature of its own; its OpenMM twin needs one, and any value gives the same Boltzmann
distribution because the twin's energies are scaled by the same kT.
"""

from __future__ import annotations

#: Molar gas constant in kJ/(mol K), exact in the 2019 SI.
GAS_CONSTANT = 8.31446261815324e-3

#: One electronvolt in kJ/mol, exact in the 2019 SI.
ELECTRONVOLT = 96.48533212331002

#: Temperature in kelvin at which OpenMM twins of reduced systems are built.
TWIN_TEMPERATURE = 300.0

#: Particle mass in dalton in OpenMM twins (argon); it changes the dynamics, not the distribution.
TWIN_MASS = 39.948

#: Kilojoules in a kilocalorie (thermochemical).
KILOCALORIE = 4.184


def kT(temperature: float) -> float:
    """Thermal energy in kJ/mol at a temperature in kelvin."""
    return GAS_CONSTANT * temperature
