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
# # Samples for other tools
#
# Independent samples are good starts for simulations, and samples with weights are what free-energy tools take.

# %% [markdown]
# ## Starts for OpenMM
#
# One-step samples of LJ-13, each the start of a short Langevin run.

# %%
import openmm.app
from openmm import unit

from molsampler import Sampler
from molsampler.systems import get_system

system = get_system("lj13")
starts = Sampler.load("lj13").sample(4, seed=0)
twin, topology = system.openmm_twin()
integrator = openmm.LangevinMiddleIntegrator(
    system.twin_temperature * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtoseconds
)
simulation = openmm.app.Simulation(topology, twin, integrator)
for start in starts.positions_nm:
    simulation.context.setPositions(start.tolist())
    simulation.step(100)
    print(simulation.context.getState(getEnergy=True).getPotentialEnergy())

# %% [markdown]
# ## Weights for pymbar
#
# `dw4-exact` knows its density. One set of draws and their weights make the arrays that pymbar takes: reduced energies
# under the sampler and under the target. The free energy is that of `molsampler free-energy`.

# %%
weighted = Sampler.load("dw4-exact").sample(5_000, seed=0)
weighted.ess, weighted.log_z

# %%
import pymbar

from molsampler.analysis import mbar_arrays

u_kn, n_k = mbar_arrays(weighted)
found = pymbar.MBAR(u_kn, n_k).compute_free_energy_differences()
print("pymbar", -found["Delta_f"][0, 1], "+-", found["dDelta_f"][0, 1])
print("molsampler", weighted.log_z)
