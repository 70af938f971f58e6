"""Systems whose energy is a sum over pairs of particles of a function of the distance."""
