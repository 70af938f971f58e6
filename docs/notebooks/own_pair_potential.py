# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A pair potential of your own, from the formula to a report
#
# Five soft particles in a harmonic trap, in the plane. The formula is OpenMM's syntax, with r the distance of a pair
# and n the number of particles. The training here is cut short so that the notebook runs in minutes; leave the time
# limit out for a sampler to keep.

# %%
import tempfile
from pathlib import Path

from molsampler import Sampler
from molsampler.analysis import compare, headline
from molsampler.reference import sample_reference
from molsampler.systems import PairPotential
from molsampler.train import load_config, train

system = PairPotential(
    "soft5",
    "e*exp(-(r/s)^2) + 0.5*k*r^2/n",
    n=5,
    d=2,
    parameters={"e": 6, "s": 1, "k": 2},
)
system

# %% [markdown]
# An energy without a norm would be refused here, with the direction in which it fails. Training first makes a
# population of Monte Carlo chains from the energy, then learns from it.

# %%
folder = Path(tempfile.mkdtemp())
config = load_config(
    "fast",
    system,
    overrides=(
        "compile=false",
        "iterations=400",
        "evaluate_every=200",
        "evaluate_samples=1000",
        "generator.body={kind: egnn, width: 32, layers: 3}",
        "objective.denoiser={kind: egnn, width: 32, layers: 3}",
        "objective.target_score={size: 2048, equilibration: 300, warmup: 300}",
    ),
)
result = train(system, folder / "run", config)
result.artifact

# %%
sampler = Sampler.load(result.artifact, system=system)
samples = sampler.sample(2_000, seed=0)
samples

# %% [markdown]
# A reference of the same size, by Monte Carlo, with its R-hat. The table sets every metric beside its floor: the
# same metric between two halves of the reference.

# %%
reference = sample_reference(system, 2_000, method="mcmc", seed=1)
comparison = compare(samples, reference, system)
headline(comparison)
