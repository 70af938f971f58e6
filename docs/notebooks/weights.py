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
# # Weights, and how to tell a bad sampler
#
# Some samplers know the density q of what they draw. Each draw x then has a weight w = exp(-u(x)) / q(x), and
# averages under the weights are those of the target, whatever q is. How much the weights have to mend is a
# measure of the sampler that needs no reference. This notebook uses a good sampler, spoils it in two ways, and
# shows which numbers notice.

# %%
import math

import torch

from molsampler import Sampler, Samples
from molsampler.analysis import free_energy, judge
from molsampler.systems import get_system

system = get_system("mog40")
system

# %% [markdown]
# MoG-40 is a mixture of 40 Gaussians of equal weight in the plane. Its log Z is zero, so we can see who is right.

# %%
good = Sampler.load("mog40-exact").sample(20_000, seed=0)
good

# %%
print(
    f"log Z = {good.log_z.value:.4f} ± {good.log_z.se:.4f}, effective {good.ess:,.0f} of {len(good):,}"
)
print(judge(good.log_weights, len(good)))

# %% [markdown]
# ## Means with and without weights
#
# The network is nearly right by itself; the weights remove what is left. `expectation` uses them.

# %%
raw = Samples(good.positions, good.energies, None, good.metadata)
for name, each in (("raw", raw), ("weighted", good)):
    u, error = each.expectation(lambda x: system.energy(x.double()))
    print(f"mean energy, {name}: {u:.4f} ± {error:.4f} kT")

# %% [markdown]
# `resample` turns weighted samples into equally likely ones, for programs that know no weights.

# %%
plain = good.resample(2_000, seed=0)
print(plain, plain.log_weights)

# %% [markdown]
# ## Spoilt in the first way: the network is disturbed
#
# Every parameter gets a little noise. The density of the disturbed network is still known exactly, so weighted
# means are still right; what falls is the effective number, and the verdict says when it is too small to use.


# %%
def disturbed(amount: float, n: int = 20_000) -> Samples:
    sampler = Sampler.load("mog40-exact")
    network = sampler.generator(torch.device("cpu"))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += (
                amount
                * parameter.std(correction=0)
                * torch.randn(parameter.shape, generator=random)
            )
    return sampler.sample(n, seed=0)


for amount in (0.0, 0.02, 0.05, 0.1, 0.3):
    draws = disturbed(amount)
    verdict = judge(draws.log_weights, len(draws))
    print(f"disturbed by {amount:4}: effective {100 * draws.ess / len(draws):5.1f} %, "
          f"log Z {draws.log_z.value:6.3f} ± {draws.log_z.se:.3f}, {'usable' if verdict.usable else verdict.reason}")  # fmt: skip

# %% [markdown]
# ## Spoilt in the second way: a mode is never visited
#
# This is the failure that weights cannot see. We take away every draw at x > 0 as if the sampler had never
# learned to go there, and keep the density of what remains normalised.

# %%
left = good[good.positions[:, 0, 0] <= 0]
share = len(left) / len(good)
blind = Samples(left.positions, left.energies, left.log_weights + math.log(share), left.metadata)
print(
    f"effective {100 * blind.ess / len(blind):.1f} %, usable: {judge(blind.log_weights, len(blind)).usable}"
)
print(f"log Z {blind.log_z.value:.3f} ± {blind.log_z.se:.3f}, the truth is 0")

# %% [markdown]
# The effective number is as good as before, the verdict says usable, and log Z is off by many of its errors. The
# missing half is in no number that comes from these draws. What finds it is another route to the same quantity. Here
# the weights of the 40 components, which are known to be equal, tell at once.

# %%
found = {"good": good, "blind": blind}
for name, draws in found.items():
    basins = free_energy(draws, system).basins
    empty = sum(basin.population.value < 1e-4 for basin in basins)
    print(f"{name}: {len(basins)} components, {empty} of them empty")

# %% [markdown]
# For a system of one's own the second route is a long run (`molsampler reference`), annealing from a Gaussian
# (`benchmarks/exact.py`), or a second training from another seed. See [what to trust](../trust.md).
#
# ## A sampler without weights
#
# The shipped `mog40` sampler ends in Langevin layers and does not know its density. Its samples count the same; what
# judges them is a comparison with a reference.

# %%
one_step = Sampler.load("mog40").sample(20_000, seed=0)
print(one_step.log_weights, one_step.log_z)
