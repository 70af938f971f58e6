"""Molecules' energies without OpenMM: the same terms, for many configurations at once."""
