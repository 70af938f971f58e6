"""Everything that a bit-exact resume needs, in one object, and its flat form for storage."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.identity_mixture import IdentityMixture
from ..diffusion.schedule import LinearBeta, LogUniformSigma
from ..errors import FileFormatError
from ..mcmc import mala
from ..molecule.internal import InternalTarget
from ..molecule.particles import Particles
from ..nn.body import EGNNConfig
from ..nn.denoiser import Denoiser
from ..nn.egnn import EGNN
from ..nn.generators.implicit import Generator, build_generator
from ..target import Target
from .config import LinearBetaConfig, ReplayConfig, TrainConfig

#: First stiffness of a generator's springs. Jacobi sweeps over bonds and angles diverge at two over the
#: largest eigenvalue of the constraint graph, which is below ten for molecules of four-valent atoms.
SPRING = 0.15


def absolute_generator(config: TrainConfig, data_scale: float, target: Target) -> dict[str, Any]:
    """Generator configuration with lengths in the system's unit instead of data scales, and with what
    the target says of its particles or internal coordinates."""
    relative = config.generator
    body = absolute_body(relative.body, data_scale, Particles.of(target))
    return relative.model_copy(
        update={
            "body": body,
            "latent_scale": relative.latent_scale * data_scale,
            "langevin_step": relative.langevin_step * data_scale**2,
            "langevin_last_step": relative.langevin_last_step
            and relative.langevin_last_step * data_scale**2,
            "internal": target.coordinates if isinstance(target, InternalTarget) else None,
        }
    ).model_dump()


def absolute_body(body: Any, data_scale: float, particles: Particles | None) -> Any:
    """Body configuration with its radial range in the system's unit and the target's particles."""
    if isinstance(body, EGNNConfig):
        return body.model_copy(
            update={
                "rbf_range": body.rbf_range * data_scale,
                "particles": body.particles or particles,
            }
        )
    return body


def build_schedule(config: TrainConfig, data_scale: float) -> LinearBeta | LogUniformSigma:
    """The noise schedule, its bounds in the system's length unit."""
    schedule = config.schedule
    if isinstance(schedule, LinearBetaConfig):
        return LinearBeta(schedule.beta_min, schedule.beta_max, schedule.levels)
    return LogUniformSigma(schedule.sigma_min * data_scale, schedule.sigma_max * data_scale)


@dataclass
class TrainState:
    """Networks, averages, optimisers, replay, random state and counters of a run.

    ``score`` estimates the diffused model's score; ``teacher`` (with its average) the diffused
    target's, and is None where fresh posterior chains are used instead. ``selected`` is the
    averaged generator that the data-free criterion ranks best so far, and ``best`` the least value of the
    criterion; ``best_discrepancy`` and ``best_drift`` are those of the selected one, which may tie with the
    least and be later. ``calibration`` is the factor on its latent, one until the end of training.
    """

    data_scale: float
    generator: Generator
    ema: Generator
    selected: Generator
    score: Denoiser
    teacher: Denoiser | None
    teacher_ema: Denoiser | None
    optimisers: dict[str, torch.optim.Optimizer]
    rng: torch.Generator
    replay: mala.State | None
    replay_step: float
    mixture: IdentityMixture
    posterior_log_step: Tensor
    iteration: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    skipped: int = 0
    bad_in_a_row: int = 0
    best: float = float("inf")
    best_discrepancy: float = float("inf")
    best_drift: float = float("inf")
    calibration: float = 1.0
    best_iteration: int = -1
    log_bytes: int = 0
    log_sha256: str = ""
    recent: dict[str, float] = field(default_factory=dict)

    _COUNTERS = (
        "data_scale",
        "replay_step",
        "iteration",
        "evaluations",
        "seconds",
        "skipped",
        "bad_in_a_row",
        "best",
        "best_discrepancy",
        "best_drift",
        "calibration",
        "best_iteration",
        "log_bytes",
        "log_sha256",
    )

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module | None] = {
            "generator": self.generator,
            "ema": self.ema,
            "selected": self.selected,
            "score": self.score,
            "teacher": self.teacher,
            "teacher_ema": self.teacher_ema,
        }
        return {name: module for name, module in modules.items() if module is not None}

    def settle(self, x: Tensor) -> None:
        """Start the networks' reference lengths at the mean geometry of configurations ``(b, n, d)``.

        The generator starts with springs towards them; denoisers, which see stretched bonds on purpose,
        start without.
        """
        for module in self._modules().values():
            body = module.body
            if isinstance(body, EGNN):
                body.settle(x, spring=SPRING if isinstance(module, Generator) else 0.0)

    def flatten(self) -> tuple[dict[str, Tensor], str]:
        """Tensors by path, and the counters as JSON text."""
        tensors: dict[str, Tensor] = {}
        for name, module in self._modules().items():
            for key, value in module.state_dict().items():
                tensors[f"module/{name}/{key}"] = value
        for name, optimiser in self.optimisers.items():
            for index, entry in optimiser.state_dict()["state"].items():
                for key, value in entry.items():
                    tensors[f"optimiser/{name}/{index}/{key}"] = torch.as_tensor(value)
        if self.replay is not None:
            for key, value in zip(self.replay._fields, self.replay, strict=True):
                tensors[f"replay/{key}"] = value
        tensors["mixture"] = self.mixture.moments
        tensors["posterior_log_step"] = self.posterior_log_step
        tensors["rng"] = self.rng.get_state()
        counters = {key: getattr(self, key) for key in self._COUNTERS}
        # Clones: safetensors refuses tensors that share memory.
        return {
            key: value.detach().clone().contiguous() for key, value in tensors.items()
        }, json.dumps(counters)

    def load(self, tensors: dict[str, Tensor], counters: str) -> None:
        """Overwrite this state by a flattened one.

        Raises
        ------
        FileFormatError
            It belongs to another configuration.
        """
        try:
            values = json.loads(counters)
            # Checkpoints of earlier versions do not seal the log, and know no discrepancy.
            for key in ("log_sha256", "best_discrepancy", "calibration"):
                values.setdefault(key, getattr(self, key))
            for key in self._COUNTERS:
                setattr(self, key, values[key])
            for name, module in self._modules().items():
                module.load_state_dict(_under(tensors, f"module/{name}/"))
            for name, optimiser in self.optimisers.items():
                entries: dict[int, dict[str, Tensor]] = {}
                for path, value in _under(tensors, f"optimiser/{name}/").items():
                    index, key = path.split("/", 1)
                    entries.setdefault(int(index), {})[key] = value
                groups = optimiser.state_dict()["param_groups"]
                optimiser.load_state_dict({"state": entries, "param_groups": groups})
            replay = _under(tensors, "replay/")
            if replay:
                self.replay = mala.State(**replay)
            self.mixture = IdentityMixture(tensors["mixture"])
            self.posterior_log_step = tensors["posterior_log_step"]
            self.rng.set_state(tensors["rng"].cpu())
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"the checkpoint does not fit this configuration: {str(error).splitlines()[0]}"
            ) from None


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def build_state(
    config: TrainConfig,
    target: Target,
    *,
    data_scale: float,
    rng: torch.Generator,
    device: torch.device,
) -> TrainState:
    """A fresh state. Weights are drawn from a stream of their own, seeded by the configuration."""
    # Module constructors draw from the global stream; fork it so that nobody else's is touched.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        particles = Particles.of(target)
        generator = build_generator(
            absolute_generator(config, data_scale, target), target.space, target
        ).to(device)
        body = absolute_body(config.denoiser, data_scale, particles)
        score = Denoiser(body, target.space, data_scale=data_scale).to(device)
    amortised = isinstance(config.target_score, ReplayConfig)
    teacher = copy.deepcopy(score) if amortised else None

    def clone(module: Any) -> Any:
        # The target inside a generator is shared, not copied.
        twin = copy.deepcopy(module, {id(target): target})
        return twin.requires_grad_(False)

    def averaged() -> Generator:
        twin: Generator = clone(generator)
        scheme = config.sampling_scheme or twin.config.langevin_scheme
        twin.config = twin.config.model_copy(
            update={"langevin_scheme": scheme, "sampling_layers": config.sampling_layers}
        )
        return twin

    def adam(module: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=lr, betas=(0.9, 0.99))

    optimisers = {
        "generator": adam(generator, config.generator_lr),
        "score": adam(score, config.score_lr),
    }
    if teacher is not None:
        optimisers["teacher"] = adam(teacher, config.score_lr)
    like = torch.empty(0, device=device)
    return TrainState(
        data_scale=data_scale,
        generator=generator,
        ema=averaged(),
        selected=averaged(),
        score=score,
        teacher=teacher,
        teacher_ema=None if teacher is None else clone(teacher),
        optimisers=optimisers,
        rng=rng,
        replay=None,
        replay_step=0.0,
        mixture=IdentityMixture.fresh(like),
        posterior_log_step=torch.full((64,), -7.0, device=device),
    )
