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
# # A molecule of your own, from a SMILES string to free energies
#
# Butane by MMFF94 at 300 K. Its central torsion has three basins, one trans and two gauche. A flow with a known
# density is trained on the energy alone; the weights of its draws give what the basins weigh, with errors. Needs
# `pip install 'molsampler[rdkit]'`. The training is cut short so that the notebook runs in minutes.

# %%
import tempfile
from pathlib import Path

from molsampler import Sampler
from molsampler.analysis import free_energy
from molsampler.systems import get_system
from molsampler.train import load_config, train

folder = Path(tempfile.mkdtemp())
file = folder / "butane.yaml"
file.write_text("kind: smiles\nsmiles: CCCC\ntemperature: 300\n")
system = get_system(str(file))
system

# %% [markdown]
# `--preset exact` on the command line is this configuration without the overrides.

# %%
config = load_config(
    "exact",
    system,
    overrides=(
        "iterations=250",
        "evaluate_samples=1000",
        "generator.layers=6",
        "generator.width=64",
        "objective.reverse_from=1.0",
        "objective.population={size: 2048, anneal_moves: 20, equilibration: 50, refresh: 64}",
    ),
)
result = train(system, folder / "run", config)
result.verdict

# %%
sampler = Sampler.load(result.artifact, system=system)
samples = sampler.sample(4_000, seed=0)
samples.ess, samples.log_z

# %% [markdown]
# Free energies along the central torsion; the edges, in degrees, cut it into gauche, trans and gauche. Each basin has
# a population and a free energy against the first, with errors. `usable` is false where the weights do not carry
# them, as may well be after so short a training.

# %%
found = free_energy(samples, along="torsion:0,1,2,3", edges=(-120, 0, 120))
print(found.usable)
for basin in found.basins:
    print(basin.name, basin.population, basin.free_energy)
