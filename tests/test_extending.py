"""A generator and an objective from outside the package go all the way: trained, resumed, sampled, compared.

The generator is a Gaussian of learned mean and width, whose density is known; the objective is the reverse
KL divergence by that density. Both are complete here; nothing in the package knows them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import pytest
import torch
from interrupted import train_twice
from pydantic import Field
from torch import Tensor, nn

from molsampler import Sampler, export
from molsampler.cli import main
from molsampler.errors import UnknownNameError
from molsampler.nn.generators import GENERATORS, Draw, Generator, GeneratorConfig, Sampling
from molsampler.objectives import (
    OBJECTIVES,
    Metrics,
    Objective,
    ObjectiveConfig,
    Problem,
    State,
)
from molsampler.sampler import store
from molsampler.samples import Samples
from molsampler.systems import get_system
from molsampler.target import CountingTarget, Target
from molsampler.train import load_config
from molsampler.train.config import from_yaml, validate


class GaussianConfig(GeneratorConfig):
    """A :class:`GaussianGenerator`."""

    kind: Literal["toy-gaussian"] = "toy-gaussian"
    width: float = Field(1.0, gt=0)

    def build(self, space: Any, *, molecule: Any = None, sampling: Any = None) -> GaussianGenerator:
        return GaussianGenerator(self, sampling or Sampling(), space)


class GaussianGenerator(Generator):
    r"""Normal distribution on the space, :math:`x = \mu + s z`."""

    def __init__(self, config: GaussianConfig, sampling: Sampling, space: Any):
        super().__init__(config, sampling, space)
        self.mean = nn.Parameter(torch.zeros(space.shape))
        self.log_width = nn.Parameter(torch.tensor(math.log(config.width)))

    def draw(
        self,
        n: int,
        target: Target,
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None,
    ) -> Draw:
        self.refuse_context(context)
        z = self.space.randn(n, generator=generator, like=self.mean)
        x = self.space.project(self.mean) + self.log_width.exp() * z
        energy, _ = target.energy_and_score(x.detach())
        return Draw(x, -energy - self.log_prob(x), n)

    @property
    def evaluations_per_sample(self) -> int:
        return 1

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        z = (x - self.space.project(self.mean)) / self.log_width.exp()
        constant = self.log_width + 0.5 * math.log(2 * math.pi)
        return -0.5 * z.square().sum((-2, -1)) - self.space.dof * constant


class ReverseKLConfig(ObjectiveConfig):
    """Settings of :class:`ReverseKL`."""

    kind: Literal["toy-reverse-kl"] = "toy-reverse-kl"
    batch: int = Field(64, ge=1)
    rate: float = Field(0.05, gt=0)

    def build(self, problem: Problem) -> ReverseKL:
        return ReverseKL(self, problem)


class ReverseKL(Objective):
    """Gradient descent on E_q[log q + u], the state being the weights and a random stream."""

    def __init__(self, config: ReverseKLConfig, problem: Problem):
        self.config, self.problem = config, problem
        self.target = CountingTarget(problem.target)

    def init(self, *, report: Any) -> State:
        rng = torch.Generator().manual_seed(self.problem.seed)
        fresh = self.problem.generator.build(self.problem.target.space)
        weights = {f"weight/{key}": value for key, value in fresh.state_dict().items()}
        return {"iteration": 0, "energy_evaluations": 0, "rng": rng.get_state(), **weights}

    def step(self, state: State) -> tuple[State, Metrics]:
        net, rng = self.generator(state), torch.Generator()
        rng.set_state(cast(Tensor, state["rng"]))
        self.target.evaluations = int(state["energy_evaluations"])
        x = net.draw(self.config.batch, self.target, generator=rng).x
        _, score = self.target.energy_and_score(x.detach())
        loss = (net.log_prob(x) - (score * x).sum((-2, -1))).mean()
        loss.backward()
        new: State = {
            "iteration": int(state["iteration"]) + 1,
            "energy_evaluations": self.target.evaluations,
            "rng": rng.get_state(),
        }
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        sound = all(bool(torch.isfinite(grad).all()) for grad in grads)
        for name, p in net.named_parameters():
            move = p.grad.clamp(-1, 1) if sound and p.grad is not None else torch.zeros_like(p)
            new[f"weight/{name}"] = p.detach() - self.config.rate * move
        return new, {"loss": float(loss.detach()), "nonfinite": float(not sound)}

    def generator(self, state: State) -> Generator:
        net = self.problem.generator.build(
            self.problem.target.space, sampling=self.problem.sampling
        )
        weights = {
            k.removeprefix("weight/"): v for k, v in state.items() if k.startswith("weight/")
        }
        net.load_state_dict(copy.deepcopy(cast(dict[str, Tensor], weights)))
        return net


@pytest.fixture
def registered() -> Iterator[None]:
    GENERATORS.register("toy-gaussian", GaussianConfig)
    OBJECTIVES.register("toy-reverse-kl", ReverseKLConfig)
    yield
    GENERATORS.unregister("toy-gaussian")
    OBJECTIVES.unregister("toy-reverse-kl")


#: About that of each system as a whole.
WIDTHS = {"mog40": 25.0, "dw4": 2.0}


def settings(name: str) -> Any:
    return validate(
        {
            "system": name,
            "generator": {"kind": "toy-gaussian", "width": WIDTHS[name]},
            "objective": {"kind": "toy-reverse-kl", "rate": 0.005, "batch": 128},
            "iterations": 30,
            "evaluate_every": 15,
            "evaluate_samples": 200,
            "evaluate_steps": 3,
            "checkpoint_every": 4,
        }
    )


@pytest.mark.parametrize(("name", "suffix"), [("mog40", ".npz"), ("dw4", ".xtc")])
def test_what_is_registered_outside_goes_all_the_way(
    name, suffix, registered, tmp_path, monkeypatch, capsys
) -> None:
    system, config = get_system(name), settings(name)
    assert config.objective == ReverseKLConfig(rate=0.005, batch=128)
    # Keys of the objective need no prefix, whoever wrote it.
    chosen = ("generator={kind: toy-gaussian}", "objective={kind: toy-reverse-kl}", "batch=7")
    assert load_config("fast", "lj3", overrides=chosen).objective.batch == 7
    # Trained twice, once with a death in between: the same weights to the last bit.
    result = train_twice(system, config, tmp_path, monkeypatch)
    assert result.status == "completed"
    assert result.skipped == 0
    assert result.evaluations > 30 * 2 * 128
    assert from_yaml(tmp_path / "whole" / "config.resolved.yaml") == config

    sampler = Sampler.load(result.artifact)
    assert sampler.card.architecture == {"kind": "toy-gaussian", "width": WIDTHS[name]}
    samples = sampler.sample(1500, seed=4)
    # Weights by the definition, and in the same order as the positions.
    generator = sampler.generator(torch.device("cpu"))
    expected = -samples.energies - generator.log_prob(samples.positions.double())
    weights = samples.log_weights
    assert weights is not None
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(sampler.sample(300, seed=4).log_weights, weights[:300])
    # Training has lowered the divergence: the mean log weight is above that of the same noise before.
    untrained = generator.config.build(generator.space)
    means = []
    for net in (untrained, generator):
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            means.append(float(net.draw(5000, system, generator=random).log_weight.mean()))
    assert means[0] < means[1]

    ours = tmp_path / f"ours{suffix}"
    # The Gaussian is no good fit: few effective samples in many.
    n = {"mog40": 5_000, "dw4": 1_000}[name]
    sampler.sample_to_file(ours, n, seed=4)
    samples = sampler.sample(n, seed=4)
    loaded = export.load(ours, system=system)
    torch.testing.assert_close(loaded.positions, samples.positions, atol=1e-2, rtol=0)
    # A trajectory has them in the file beside it.
    assert torch.equal(loaded.log_weights, samples.log_weights)
    x = WIDTHS[name] * system.space.randn(2000, generator=random, like=torch.empty(0))
    Samples.of(system, x).save(tmp_path / "reference.npz", system=system)
    capsys.readouterr()
    code = main(["compare", str(ours), str(tmp_path / "reference.npz")])
    said = capsys.readouterr()
    if name == "dw4":
        # No Gaussian covers it: the weights, which are read with the trajectory, are too uneven to compare.
        assert code == 1
        assert "effective size" in said.err
    else:
        assert code == 0, said.err
        assert "energy" in said.out


def test_without_the_registration_the_artifact_is_refused_by_the_kind(registered, tmp_path) -> None:
    system = get_system("mog40")
    store.save(tmp_path / "toy", GaussianConfig().build(system.space), system=system)
    Sampler.load(tmp_path / "toy")
    GENERATORS.unregister("toy-gaussian")
    try:
        with pytest.raises(Exception, match="toy-gaussian") as refused:
            Sampler.load(tmp_path / "toy")
        assert "implicit" in str(refused.value)
        with pytest.raises(UnknownNameError, match="toy-gaussian"):
            settings("mog40")
    finally:
        GENERATORS.register("toy-gaussian", GaussianConfig)
