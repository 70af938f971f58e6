"""Generators, one file per kind: from noise to configurations."""
