"""Networks that are told a temperature, and those that are not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.mcmc.population import Gaussian
from molsampler.nn.bodies import EGNNBody, MLPBody
from molsampler.nn.denoiser import Denoiser
from molsampler.nn.generators import GeneratorConfig
from molsampler.space import Euclidean, MeanFree
from molsampler.temperatures import TemperatureRange

RANGE = TemperatureRange(low=0.5, high=2.0)
SPACE = MeanFree(4, 2)
BODIES: list[dict[str, Any]] = [
    {"kind": "egnn", "width": 8, "layers": 2},
    {"kind": "mlp", "width": 8, "layers": 1},
]


def made(body: dict[str, Any], *, conditioned: bool = True, layers: int = 0) -> Any:
    config = GeneratorConfig.parse(
        {"kind": "implicit", "body": body, "langevin_layers": layers, "langevin_step": 0.1}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (config.conditioned(RANGE) if conditioned else config).build(SPACE)


def drawn(generator: Any, context: Tensor | None = None, n: int = 16) -> Tensor:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return generator.draw(n, Gaussian(SPACE, 1.0), context=context, generator=random).x


def test_the_context_of_the_ends_and_of_the_middle() -> None:
    told = RANGE.context(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(told, torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64))
    random = torch.Generator().manual_seed(0)
    drawn = RANGE.draw(4000, generator=random, like=torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(RANGE.temperature(RANGE.context(drawn)), drawn)
    # Uniform on [-1, 1]: mean 0 and variance 1/3, to six standard errors of 4000 draws.
    told = RANGE.context(drawn)
    assert abs(float(told.mean())) < 6 * math.sqrt(1 / 3 / 4000)
    assert abs(float(told.var()) - 1 / 3) < 6 * math.sqrt(4 / 45 / 4000)
    assert RANGE.spread(3) == pytest.approx([0.5, 1.0, 2.0])
    assert 2.0000001 in RANGE
    assert 2.001 not in RANGE


@pytest.mark.parametrize("text", ["300", "450:280", "a:b", "0:3", "1:nan", "280:450:9", "-1:3"])
def test_what_is_no_range_is_refused(text) -> None:
    with pytest.raises(InputError, match="LO:HI"):
        TemperatureRange.parse(text)


@pytest.mark.parametrize("body", BODIES, ids=["egnn", "mlp"])
def test_draws_depend_on_the_temperature_of_their_own_row(body) -> None:
    generator = made(body)
    cold = drawn(generator.at(0.5))
    assert not torch.equal(cold, drawn(generator.at(2.0)))
    temperature = torch.where(torch.arange(16) < 8, 0.5, 2.0)
    mixed = drawn(generator, RANGE.context(temperature))
    torch.testing.assert_close(mixed[:8], cold[:8], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed[8:], drawn(generator.at(2.0))[8:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", BODIES, ids=["egnn", "mlp"])
def test_langevin_steps_are_in_proportion_to_the_temperature(body) -> None:
    """Noise of a layer has the variance 2 epsilon T / T_mid."""
    quiet, noisy = made(body), made(body, layers=1)
    noisy.load_state_dict({**quiet.state_dict(), "log_step": noisy.log_step.detach()})
    flat = type("Flat", (), {"space": SPACE})()
    flat.energy_and_score = lambda x: (x.new_zeros(len(x)), torch.zeros_like(x))
    moved = {}
    for temperature in (0.5, 2.0):
        random = [torch.Generator().manual_seed(1) for _ in range(2)]
        with torch.no_grad():
            first, second = (
                g.at(temperature).draw(2000, flat, generator=r).x
                for g, r in zip((quiet, noisy), random, strict=True)
            )
        moved[temperature] = float((second - first).square().mean()) * 4 / 3
    # Means of 12,000 squared normals, relative error .013.
    assert moved[0.5] == pytest.approx(0.1, rel=0.08)
    assert moved[2.0] == pytest.approx(0.4, rel=0.08)


def test_a_generator_of_one_temperature_is_what_it_was() -> None:
    plain, conditioned = (made(BODIES[0], conditioned=flag) for flag in (False, True))
    shapes = [{k: tuple(v.shape) for k, v in g.state_dict().items()} for g in (plain, conditioned)]
    differ = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    assert shapes[0].keys() == shapes[1].keys()
    assert differ == {"body.embed.weight"}
    # A weight of zero for the temperature: the same draws, so nothing else has changed.
    weights = plain.state_dict()
    zero = torch.zeros(len(weights["body.embed.weight"]), 1)
    weights["body.embed.weight"] = torch.cat([weights["body.embed.weight"], zero], 1)
    conditioned.load_state_dict(weights)
    torch.testing.assert_close(drawn(conditioned.at(1.3)), drawn(plain), rtol=1e-5, atol=1e-6)


def test_contexts_are_asked_for_and_refused_with_the_range() -> None:
    generator = made(BODIES[0])
    with pytest.raises(InputError, match=r"0\.5 to 2 needs a context.*got none"):
        drawn(generator)
    with pytest.raises(InputError, match=r"got one of shape \(16, 2\)"):
        drawn(generator, torch.zeros(16, 2))
    with pytest.raises(InputError, match=r"from 0\.5 to 2, got 2\.5"):
        generator.at(2.5)
    with pytest.raises(InputError, match="of one temperature"):
        made(BODIES[0], conditioned=False).at(1.0)
    with pytest.raises(InputError, match="'direct' takes no temperature"):
        GeneratorConfig.parse({"kind": "direct"}).conditioned(RANGE)


@pytest.mark.parametrize("body", [EGNNBody(width=8, layers=1), MLPBody(width=8, layers=1)])
def test_denoisers_are_told_row_by_row(body) -> None:
    space = SPACE if isinstance(body, EGNNBody) else Euclidean(1, 2)
    torch.manual_seed(0)
    denoiser = Denoiser(body, space, data_scale=1.0, context=1)
    y, s = space.randn(6, generator=None, like=torch.zeros(1)), torch.full((6,), 0.7)
    with torch.no_grad():
        cold, hot = (denoiser(y, s, torch.full((6, 1), value)) for value in (-1.0, 1.0))
        assert not torch.allclose(cold, hot)
        mixed = denoiser(y, s, torch.tensor([[-1.0]] * 3 + [[1.0]] * 3))
    torch.testing.assert_close(mixed, torch.cat([cold[:3], hot[3:]]), rtol=1e-5, atol=1e-6)
