"""What every registered kind of generator promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.mcmc.population import Gaussian
from molsampler.nn.generators import GENERATORS, Generator, GeneratorConfig
from molsampler.nn.generators.density import DensityGenerator
from molsampler.space import MeanFree
from molsampler.target import CountingTarget

SPACE = MeanFree(4, 2)
N = 24
EGNN = {"kind": "egnn", "width": 8, "layers": 1}

#: Settings of a kind beside its defaults; kinds without an entry are tested as they come.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "implicit": [
        {"body": EGNN},
        {"body": EGNN, "langevin_layers": 3, "langevin_step": 0.05},
        {
            "body": EGNN,
            "langevin_layers": 2,
            "langevin_step": 0.05,
            "langevin_scheme": "leimkuhler-matthews",
            "sampling": {"layers": 3, "kinetic": {"steps": 4}},
        },
        {"body": {"kind": "mlp", "width": 8, "layers": 1}, "sign_features": 2},
    ],
    "direct": [
        {"body": {"kind": "plain-mlp", "width": 8, "layers": 1}},
        {"body": {"kind": "satorras", "width": 8, "layers": 1}},
    ],
    "diffusion": [{"body": EGNN}],
    "spline": [
        {"layers": 2, "width": 8},
        {"layers": 2, "width": 8, "rotations": True, "permutations": True, "mirror": True},
    ],
}
CASES = [
    pytest.param({"kind": kind, **settings}, id=f"{kind}-{index}")
    for kind in GENERATORS.names()
    for index, settings in enumerate(VARIANTS.get(kind, [{}]))
]

pytestmark = pytest.mark.parametrize("settings", CASES)


def target(std: float = 1.0) -> Gaussian:
    return Gaussian(SPACE, std)


def parsed(settings: dict[str, Any]) -> GeneratorConfig:
    return GeneratorConfig.parse({k: v for k, v in settings.items() if k != "sampling"})


def made(settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = parsed(settings)
        how = config.sampling(settings.get("sampling"))
        return config.build(SPACE, sampling=how).to(dtype)


def drawn(generator: Generator, of: Any = None, seed: int = 0, n: int = N) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return generator.draw(n, of or target(), generator=random).x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_live_on_the_space_in_the_dtype_of_the_weights(settings, dtype) -> None:
    x = drawn(made(settings, dtype))
    assert x.shape == (N, *SPACE.shape)
    assert x.dtype == dtype
    torch.testing.assert_close(SPACE.project(x), x)


def test_the_seed_decides_and_the_global_stream_does_not(settings) -> None:
    generator = made(settings)
    first = drawn(generator)
    torch.manual_seed(5)
    assert torch.equal(drawn(generator), first)
    assert not torch.equal(drawn(generator, seed=1), first)


def test_evaluations_are_those_that_are_made(settings) -> None:
    generator, counting = made(settings), CountingTarget(target())
    with torch.no_grad():
        draw = generator.draw(N, counting, generator=torch.Generator().manual_seed(0))
    assert draw.evaluations == counting.evaluations == N * generator.evaluations_per_sample


def test_the_target_is_asked_and_not_kept(settings) -> None:
    generator, narrow = made(settings), target(0.5)
    x = drawn(generator, narrow)
    for module in generator.modules():
        assert not any(value is narrow for value in vars(module).values())
    other = drawn(generator, target(2.0))
    # Energies decide where samples go, or what they weigh.
    assert torch.equal(x, other) == (
        generator.config.weighted or generator.evaluations_per_sample == 0
    )
    # The first target has left no trace.
    assert torch.equal(drawn(generator, narrow), x)


def test_context_is_refused(settings) -> None:
    with pytest.raises(InputError, match=rf"{settings['kind']}.*no context.*\({N}, 1\)"):
        made(settings).draw(N, target(), context=torch.ones(N, 1), generator=None)


def test_a_density_is_known_or_refused_with_the_reason(settings) -> None:
    generator = made(settings)
    draw = generator.draw(N, target(), generator=torch.Generator().manual_seed(0))
    assert (draw.log_weight is not None) == generator.config.weighted
    if draw.log_weight is None or not isinstance(generator, DensityGenerator):
        with pytest.raises(InputError, match="does not know its density"):
            generator.log_prob(draw.x)
        return
    with torch.no_grad():
        expected = -target().energy_and_score(draw.x.double())[0] - generator.log_prob(draw.x)
    assert draw.log_weight.dtype == torch.float64
    torch.testing.assert_close(draw.log_weight, expected, rtol=0, atol=1e-4)


def test_twins_share_weights_and_leave_the_first_as_it_was(settings) -> None:
    generator = made(settings)
    before = drawn(generator)
    twins = [generator.with_sampling(generator.sampling), generator.calibrated(1.0)]
    for twin in twins:
        if twin is None:
            continue
        assert torch.equal(drawn(twin), before)
        for own, shared in zip(generator.parameters(), twin.parameters(), strict=True):
            assert own is shared
    larger = generator.calibrated(1.5)
    if larger is not None:
        assert not torch.equal(drawn(larger), before)
    assert torch.equal(drawn(generator), before)


def test_gradients_reach_every_parameter(settings) -> None:
    generator = made(settings)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # Away from a start at which the last layers are zero.
        for parameter in generator.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    x = generator.draw(N, target(), generator=torch.Generator().manual_seed(0)).x
    # Odd in x, so that equivariant bodies pass something on as well.
    (x.sin() * torch.linspace(-1, 1, x.numel()).reshape(x.shape)).sum().backward()
    gradients = [p.grad for p in generator.parameters() if p.requires_grad and p.numel()]
    reached = [grad for grad in gradients if grad is not None and bool((grad != 0).any())]
    # The last layer of a graph network updates features that nobody reads.
    assert len(reached) >= 0.6 * len(gradients)
    assert all(bool(torch.isfinite(grad).all()) for grad in reached)


def test_a_configuration_survives_being_written(settings) -> None:
    config = parsed(settings)
    again = GeneratorConfig.parse(config.model_dump(mode="json"))
    assert again == config
    assert type(again) is type(config)
    assert isinstance(config, GeneratorConfig)
    sampling = config.sampling(settings.get("sampling"))
    assert config.sampling(sampling.model_dump(mode="json")) == sampling


def test_mirror_symmetric_kinds_commute_with_motions_of_their_noise(settings, monkeypatch) -> None:
    """All noise on the space comes through it: turned, mirrored or renamed there, samples are so too.

    Features are set aside by drawing them constant.
    """
    generator = made(settings, torch.float64)
    if isinstance(generator, DensityGenerator):
        # Its noise lives elsewhere; the law is one of the density.
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter += 0.1 * torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)
        x = drawn(generator)
        mirrored = x * torch.tensor([-1.0, 1.0], dtype=torch.float64)
        gap = float((generator.log_prob(mirrored) - generator.log_prob(x)).detach().abs().max())
        assert (gap < 1e-9) == generator.mirror_symmetric
        return
    if generator.mirror_symmetric is False:
        plain_gap = _gap(generator, lambda x: x.flip(-1), monkeypatch)
        assert plain_gap > 1e-6
        return
    turn = torch.linalg.qr(
        torch.randn(2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )[0]
    mirror = turn @ torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert _gap(generator, lambda x: x @ turn, monkeypatch) < 1e-9
    assert _gap(generator, lambda x: x @ mirror, monkeypatch) < 1e-9
    assert _gap(generator, lambda x: x[..., [2, 0, 3, 1], :], monkeypatch) < 1e-9
    # Negative control: a stretch is no motion.
    stretch = torch.tensor([1.0, 1.5], dtype=torch.float64)
    assert _gap(generator, lambda x: x * stretch, monkeypatch) > 1e-6


def _gap(generator: Generator, move: Any, monkeypatch: pytest.MonkeyPatch) -> float:
    """How far samples of moved noise are from moved samples."""
    real, randn = type(SPACE).randn, torch.randn

    def alike(*arguments: Any, **keywords: Any) -> Tensor:
        noise = randn(*arguments, **keywords)
        # Features ``(n, particles, f)``: one value for all particles of a sample.
        return noise[:, :1].expand_as(noise).clone()

    def moved(self: MeanFree, *arguments: Any, **keywords: Any) -> Tensor:
        with monkeypatch.context() as inner:
            inner.setattr(torch, "randn", randn)
            return move(real(self, *arguments, **keywords))

    def still(self: MeanFree, *arguments: Any, **keywords: Any) -> Tensor:
        with monkeypatch.context() as inner:
            inner.setattr(torch, "randn", randn)
            return real(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", alike)
        patch.setattr(type(SPACE), "randn", still)
        x = drawn(generator)
        patch.setattr(type(SPACE), "randn", moved)
        y = drawn(generator)
    return float((y - move(x)).abs().max() / x.abs().max())
