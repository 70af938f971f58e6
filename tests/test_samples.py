"""Estimates from weighted samples: the truth within errors, and a plain statement where there is none."""

from __future__ import annotations

import json
import math

import pytest
import torch
from toy_systems import Cluster

from molsampler.errors import InputError, NonFiniteError, ShapeError
from molsampler.estimate import effective_count, log_mean, mean
from molsampler.samples import Samples

DIMENSIONS = 3
#: A proposal narrower than the target, and off its centre: most weight lies on few samples.
WIDTH, CENTRE = 0.8, 0.4


def importance(n: int, seed: int) -> Samples:
    """Target exp(-|x|^2/2), not normalised; proposal a narrower, shifted Gaussian, normalised."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 1, DIMENSIONS, generator=random, dtype=torch.float64)
    x = (CENTRE + WIDTH * z).float()
    z = (x.double() - CENTRE) / WIDTH
    energy = 0.5 * x.double().square().sum((-2, -1))
    log_q = -0.5 * z.square().sum((-2, -1)) - DIMENSIONS * math.log(WIDTH * math.sqrt(2 * math.pi))
    return Samples(x, energy, -energy - log_q)


def test_expectations_and_log_z_are_the_truth_within_their_errors() -> None:
    samples = importance(40_000, 0)
    log_z = samples.log_z
    assert log_z is not None
    truth = DIMENSIONS / 2 * math.log(2 * math.pi)
    assert abs(log_z.value - truth) < 5 * log_z.se
    assert log_z.se < 0.1
    second = samples.expectation(lambda x: x.double().square().sum((-2, -1)))
    assert abs(float(second.value) - DIMENSIONS) < 5 * float(second.se)
    first = samples.expectation(lambda x: x[:, 0])
    assert first.value.shape == first.se.shape == (DIMENSIONS,)
    assert bool((first.value.abs() < 5 * first.se).all())
    # Negative controls: without weights the same samples are far off, and errors would say so.
    raw = Samples(samples.positions, samples.energies)
    assert raw.log_z is None
    wrong = raw.expectation(lambda x: x[:, 0])
    assert bool(((wrong.value - CENTRE).abs() < 5 * wrong.se).all())
    assert bool((wrong.value.abs() > 20 * wrong.se).all())


def test_standard_errors_are_the_spread_of_repetitions() -> None:
    runs = [importance(2000, seed) for seed in range(60)]
    for estimates in (
        [run.log_z for run in runs],
        [run.expectation(lambda x: x[:, 0, 0]) for run in runs],
    ):
        values = torch.tensor([float(e.value) for e in estimates if e is not None])
        stated = (
            torch.tensor([float(e.se) for e in estimates if e is not None]).square().mean().sqrt()
        )
        assert 0.6 < float(stated / values.std()) < 1.6


def test_plain_samples_have_plain_means() -> None:
    x = torch.randn(500, 1, 2, generator=torch.Generator().manual_seed(0))
    samples = Samples(x, torch.zeros(500, dtype=torch.float64))
    found = samples.expectation(lambda x: x[:, 0])
    assert torch.allclose(found.value, x[:, 0].double().mean(0))
    assert torch.allclose(found.se, x[:, 0].double().std(0) / math.sqrt(500))
    assert samples.ess == 500
    # Equal weights, however large, are none.
    equal = Samples(x, samples.energies, torch.full((500,), 1e5, dtype=torch.float64))
    assert equal.ess == pytest.approx(500)
    assert equal.log_z is not None
    assert equal.log_z.value == pytest.approx(1e5)
    assert equal.log_z.se == pytest.approx(0, abs=1e-12)
    assert torch.allclose(equal.expectation(lambda x: x[:, 0]).se, found.se)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_effective_count_of_kish_at_any_scale(shift: float) -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    assert effective_count(weights.log() + shift) == pytest.approx(36 / 14)
    assert log_mean(weights.log() + shift).value == pytest.approx(math.log(1.5) + shift)


def test_no_weight_in_all_is_said_and_not_averaged() -> None:
    nothing = Samples(
        torch.zeros(3, 1, 2),
        torch.zeros(3, dtype=torch.float64),
        torch.full((3,), -math.inf, dtype=torch.float64),
    )
    assert nothing.ess == 0
    assert nothing.log_z == (-math.inf, math.inf)
    with pytest.raises(InputError, match="every one of the 3 weights is zero"):
        nothing.expectation(lambda x: x[:, 0])
    with pytest.raises(InputError, match="no weight in all"):
        nothing.resample(5)


def test_one_sample_has_no_known_error() -> None:
    one = importance(1, 0)
    assert one.log_z is not None
    assert one.log_z.se == math.inf
    assert float(one.expectation(lambda x: x[:, 0, 0]).se) == math.inf


def test_values_of_no_weight_do_not_count_and_others_must_be_finite() -> None:
    log_weights = torch.tensor([0.0, -math.inf, 0.0], dtype=torch.float64)
    assert float(mean(torch.tensor([1.0, math.nan, 3.0]), log_weights).value) == 2.0
    with pytest.raises(NonFiniteError, match=r"1 samples of non-zero weight.*sample 2"):
        mean(torch.tensor([1.0, math.nan, math.inf]), log_weights)
    with pytest.raises(ShapeError, match="one value"):
        importance(4, 0).expectation(lambda x: x.sum())
    with pytest.raises(InputError, match="at least one"):
        mean(torch.zeros(0))
    with pytest.raises(InputError, match="at least one"):
        log_mean(torch.zeros(0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinite_weights_are_refused(bad: float) -> None:
    log_weights = torch.tensor([0.0, bad], dtype=torch.float64)
    with pytest.raises(NonFiniteError, match=r"log_weights hold NaN or \+inf .* sample 1"):
        Samples(torch.zeros(2, 1, 2), torch.zeros(2, dtype=torch.float64), log_weights)


def test_resampled_samples_follow_the_target() -> None:
    samples = importance(40_000, 1)
    drawn = samples.resample(10_000, seed=3)
    assert drawn.log_weights is None
    assert len(drawn) == 10_000
    found = drawn.positions.double().mean(0)[0]
    error = 5 / math.sqrt(samples.ess) + 5 / math.sqrt(10_000)
    assert bool((found.abs() < error).all())
    assert (
        float(samples.positions.mean()) > error
    )  # a negative control: without weights they do not
    json.dumps(drawn.metadata)
    assert drawn.metadata["resampled"]["of"] == 40_000
    assert torch.equal(drawn.positions, samples.resample(10_000, seed=3).positions)
    assert not torch.equal(drawn.positions, samples.resample(10_000, seed=4).positions)


def test_resampling_is_systematic_and_never_takes_what_has_no_weight() -> None:
    system = Cluster(2)
    weights = torch.tensor([0.0, 0.5, 0.2, 0.3, 0.0], dtype=torch.float64)
    samples = Samples.of(system, system.grid(5), log_weights=weights.log())
    for seed in range(20):
        drawn = samples.resample(10, seed=seed)
        counts = [int((drawn.positions == x).flatten(1).all(-1).sum()) for x in samples.positions]
        assert counts == [0, 5, 2, 3, 0]
    for n in (0, -1, 2.5):
        with pytest.raises(InputError, match="positive integer"):
            samples.resample(n)  # type: ignore[arg-type]


def test_slices_and_metadata_keep_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    samples = importance(10, 0)
    assert samples.log_weights is not None
    part = samples[torch.tensor([7, 2])].with_metadata(note="x")
    assert part.log_weights is not None
    assert torch.equal(part.log_weights, samples.log_weights[[7, 2]])
    system = Cluster(2)
    Samples.of(system, system.grid(3), log_weights=torch.zeros(3)).to_mdtraj(system=system)
    assert "no weights" in caplog.text
