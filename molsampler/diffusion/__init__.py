"""Diffusing a density: noise schedules, posteriors of clean given noisy positions, score identities."""
