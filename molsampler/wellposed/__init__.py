r"""Whether an energy is one to sample from, found out before any work is done.

The density :math:`\exp(-u)` needs a norm, and methods that follow the score need it to be
:math:`-\nabla u`. A few thousand evaluations (a few hundred where the system knows where chains start, as
molecules do) look for what goes wrong in practice:

* the energy where the user says that chains start (:mod:`~molsampler.wellposed.start`);
* the score against the energy along short segments (:mod:`~molsampler.wellposed.gradient`);
* particles that meet (:mod:`~molsampler.wellposed.contact`): near contact :math:`e^{-u}` may grow
  more slowly than :math:`r^{-m}`, m being the number of coordinates that shrink;
* particles, molecules and whole configurations that go apart (:mod:`~molsampler.wellposed.escape`): far
  away u must grow faster than :math:`m \log R`.

Passing is no proof: an energy that falls without bound in a narrow channel goes unseen, and is noticed when
chains find it. What is refused has been seen to be wrong in the direction that the message names.
"""

from .check import require_well_posed

__all__ = ["require_well_posed"]
