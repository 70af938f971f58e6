"""Mode weights against exact probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from molsampler.analysis.comparison import compare_many
from molsampler.analysis.modes import (
    HasModes,
    compare_modes,
    mode_distance,
    mode_weights,
)
from molsampler.analysis.statistics import effective_sample_size
from molsampler.errors import InputError
from molsampler.samples import Samples
from molsampler.systems import get_system
from molsampler.systems.many_well import ManyWell
from molsampler.systems.mixture import GaussianMixture


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixture_components_have_equal_weight() -> None:
    system = GaussianMixture()
    found = mode_weights(system.sample(20_000, generator=generator(0)), system)
    assert found.exclusive
    assert found.weights.sum() == pytest.approx(1.0)
    # Some components overlap, so the nearest mean is not always the one drawn from.
    assert np.abs(found.weights - 1 / 40).max() < 0.25 / 40


def test_wells_have_their_exact_weight() -> None:
    system = ManyWell()
    found = mode_weights(system.sample(20_000, generator=generator(1)), system)
    assert not found.exclusive
    assert len(found.names) == 16
    assert np.all(np.abs(found.weights - system.positive_weight) < 5 * found.se)


def test_double_well_classes_count_the_long_pairs() -> None:
    system = get_system("dw4")
    assert isinstance(system, HasModes)
    side = 5.0
    square = torch.tensor([[0.0, 0.0], [side, 0.0], [0.0, side], [side, side]])
    labels, names = system.mode_labels(torch.stack((square, 0.5 * square)))
    assert [names[k] for k in labels] == ["6 long pairs", "0 long pairs"]


def test_standard_errors_match_the_spread_of_repeated_draws() -> None:
    system = ManyWell(2)
    found = [mode_weights(system.sample(400, generator=generator(s)), system) for s in range(200)]
    spread = np.std([f.weights for f in found], axis=0)
    # The relative error of a standard deviation from m draws is 1 / sqrt(2 m).
    assert spread == pytest.approx(found[0].se, rel=5 / np.sqrt(400) + 0.05)


def test_importance_weights_are_honoured() -> None:
    system = ManyWell(1)
    x = system.sample(4000, generator=generator(2))
    right = x[:, 0, 0] > 0
    # Thin the right-hand well to a tenth of its weight and restore it by weights.
    kept = ~right | (torch.rand(len(x), generator=generator(3)) < 0.1)
    x, right = x[kept], right[kept]
    weights = torch.where(right, 10.0, 1.0).double()
    plain, weighted = mode_weights(x, system), mode_weights(x, system, weights=weights)
    assert abs(weighted.weights[0] - system.positive_weight) < 5 * weighted.se[0]
    assert abs(plain.weights[0] - system.positive_weight) > 20 * plain.se[0]
    assert effective_sample_size(weights, len(x)) < len(x)


def test_a_missing_component_is_named_and_a_rare_one_is_not() -> None:
    system = GaussianMixture()
    reference = system.sample(8000, generator=generator(4))
    samples = system.sample(6000, generator=generator(5))
    kept = samples[system.component(samples) != 7]
    full, partial, sides = (mode_weights(x, system) for x in (samples, kept, reference))
    assert compare_modes(full, sides, n_samples=6000).missing == ()
    comparison = compare_modes(partial, sides, n_samples=len(kept))
    assert comparison.missing == ("component 8",)
    assert (comparison.hit, comparison.present) == (39, 40)
    # Twenty samples would be expected to hit it half a time: absence means nothing.
    assert compare_modes(partial, sides, n_samples=20).missing == ()
    assert mode_distance(partial, sides) > mode_distance(full, sides)


class _Mislabelled:
    def __init__(self, labels: Tensor):
        self.labels = labels

    def mode_labels(self, x: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        return self.labels, ("a", "b")


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 2, 1]), torch.tensor([0, 1]), torch.zeros(3, 3, dtype=torch.bool)]
)
def test_labels_that_break_the_contract_are_refused(labels: Tensor) -> None:
    with pytest.raises(InputError, match="labels"):
        mode_weights(torch.zeros(3, 1, 2), _Mislabelled(labels))


def test_different_systems_and_empty_sets_are_refused() -> None:
    a, b = ManyWell(1), ManyWell(2)
    with pytest.raises(InputError, match="different systems"):
        mode_distance(
            mode_weights(a.sample(50, generator=generator(0)), a),
            mode_weights(b.sample(50, generator=generator(0)), b),
        )
    with pytest.raises(InputError, match="at least one"):
        mode_weights(torch.zeros(0, 1, 2), a)
    with pytest.raises(InputError, match="positive sum"):
        effective_sample_size(torch.zeros(3), 3)


def test_basins_of_a_system_file_are_modes_of_a_comparison(tmp_path) -> None:
    """Two wells of a bond: samples that sit in one of them miss the other, by the name in the file."""
    path = tmp_path / "pair.yaml"
    path.write_text(
        "expression: 2*(r - 3)^2*(r - 5)^2\nparticles: 2\ndimensions: 3\n"
        "collective_variables: {bond: 'distance:0,1'}\nbasins: {along: bond, edges: [4]}\n"
    )
    system = get_system(path)
    random = generator(0)
    length = torch.cat([torch.full((300,), 3.0), torch.full((500,), 5.0)])
    length += 0.1 * torch.randn(800, generator=random)
    x = torch.zeros(800, 2, 3)
    x[:, 1, 0] = length
    both = Samples.of(system, x[torch.randperm(800, generator=random)])
    found = compare_many(
        {"both": both, "one": Samples.of(system, x[300:])},
        both,
        system,
        n=100,
        repeats=2,
        transport_repeats=0,
        drift_steps=0,
    )
    assert found["both"].modes is not None
    assert found["both"].modes.reference.names == ("bond < 4", "bond >= 4")
    assert found["both"].modes.reference.weights == pytest.approx([0.375, 0.625])
    assert found["both"].metric("mode_tvd").passed()
    assert found["one"].modes is not None
    assert found["one"].modes.missing == ("bond < 4",)
