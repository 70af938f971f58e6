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
# # LJ-13: from a sample to its structure and heat capacity
#
# Thirteen Lennard-Jones particles in a weak trap form an icosahedron that is partly molten at this temperature.
# A trained sampler ships with the package. This notebook draws from it, looks at the structures, and measures two
# things that one would otherwise run a simulation for: the radial distribution function and the heat capacity,
# each beside a reference made by molecular dynamics.

# %%
import numpy as np
from matplotlib import pyplot as plt

from molsampler import Sampler
from molsampler.analysis import compare, free_energy, headline
from molsampler.reference import load_reference

sampler = Sampler.load("lj13")
sampler

# %% [markdown]
# One pass of the network gives one sample, independent of all others. `refine` would add Monte Carlo steps on the
# exact energy; the samples below are as they come.

# %%
samples = sampler.sample(4_000, seed=0, progress=True)
samples

# %% [markdown]
# A number, a slice or a mask gives `Samples` again. Here are the lowest and the highest energies of the draw.

# %%
order = samples.energies.argsort()
lowest, highest = samples[order[0]], samples[order[-1]]
print(lowest, highest, sep="\n")

# %% [markdown]
# `samples.view()` shows structures to turn, where py3Dmol is installed and the page may load 3Dmol.js.
# `samples.plot()` draws what a first look asks for.

# %%
samples.plot()

# %% [markdown]
# ## The reference
#
# 10,000 frames of Langevin dynamics of the same energy in OpenMM ship with the package
# ([how they were made](../reference-data.md)). They are what the samples have to agree with.

# %%
reference = load_reference("lj13")
reference

# %% [markdown]
# ## The radial distribution function
#
# A cluster has no cell, and so no density to divide by. `rdf()` divides the distances of pairs by those of an ideal
# gas that fills a ball of the same mean square pair distance: g = 1 is what points spread evenly in such a ball
# have. The first peak is the shell of neighbours, the split second one the order of the icosahedron.

# %%
ours, theirs = samples.rdf(bins=50), reference.rdf(bins=50, r_max=samples.rdf().edges[-1])
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.fill_between(
    theirs.r, theirs.g - 2 * theirs.se, theirs.g + 2 * theirs.se, alpha=0.3, label="dynamics"
)
axes.errorbar(ours.r, ours.g, ours.se, fmt=".", markersize=4, label="one-step samples")
axes.set_xlabel("r (length unit of the potential)")
axes.set_ylabel("g(r)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# `neighbours` counts the particles nearer than r, without any normalisation. The well of the potential is at r = 1.

# %%
shell = np.searchsorted(ours.edges[1:], 1.35)
print(
    f"neighbours within {ours.edges[shell + 1]:.2f}: {ours.neighbours[shell]:.2f} and {theirs.neighbours[shell]:.2f}"
)

# %% [markdown]
# The radius of gyration is one number a sample; `expectation` gives means with standard errors, by the weights
# where samples have them.

# %%
for name, each in (("one-step samples", samples), ("dynamics", reference)):
    size, error = each.expectation(
        lambda x: (x - x.mean(1, keepdim=True)).square().sum(-1).mean(-1).sqrt()
    )
    print(f"radius of gyration, {name}: {size:.4f} ± {error:.4f}")

# %% [markdown]
# ## The heat capacity
#
# Energies u are in units of kT, so the configurational heat capacity in units of k is the variance of u. Momenta
# would add 3 (13 - 1) / 2. `free_energy` gives it with an error from a bootstrap. Samples without weights have no
# free energy: nothing of their density is known.

# %%
for name, each in (("one-step samples", samples), ("dynamics", reference)):
    found = free_energy(each)
    print(
        f"C / k, {name}: {found.C.value:.1f} ± {found.C.se:.1f}; mean energy {found.U.value:.2f} ± {found.U.se:.2f} kT"
    )

# %% [markdown]
# ## Is it right?
#
# Two numbers that agree prove little. `compare` measures every distance that is known for the system, each beside
# its floor: the same distance between two halves of the reference, which is what perfect samples would have.

# %%
comparison = compare(
    samples, reference, sampler.system, repeats=4, transport_repeats=0, monte_carlo=False
)
print(headline(comparison))
for metric in comparison.metrics:
    print(f"{metric.name:20} {metric.value:.3f} ± {metric.se:.3f}   floor {metric.floor:.3f}")

# %% [markdown]
# The mean energy is some tenths of a kT too high: this sampler is good, not exact, and has no weights that could
# correct it. What to make of that is in [what to trust](../trust.md). The samples go to any viewer with
# `samples.save("lj13.xtc")`, or on to other programs as in [the last tutorial](other_tools.py).
