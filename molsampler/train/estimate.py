"""What a training will cost in energies, said before it starts."""

from __future__ import annotations

from ..objectives import Objective
from .config import TrainConfig

#: Evaluations that the verdict is worth, and draws of an evaluation's samples that calibration takes.
_VERDICT, _CALIBRATION = 3.5, 12


def estimate(
    config: TrainConfig, objective: Objective, *, rate: float, preparing: int, drawing: int
) -> str:
    """A sentence on energy evaluations and their time.

    ``rate`` is the measured number of evaluations a second, ``preparing`` the expected number of those that
    come before the first step, ``drawing`` that of a sample. Networks take time besides, which the first
    iterations tell.
    """
    parts = [f"population {preparing:.2g}"]
    whole = float(preparing)
    step = objective.evaluations_per_step(warmup=False)
    if step is not None:
        warmup = objective.evaluations_per_step(warmup=True) or 0
        training = objective.warmup * warmup + config.iterations * step
        parts.append(f"training {training:.2g}")
        whole += training
    judged = config.iterations // config.evaluate_every + 1 + _VERDICT
    judging = judged * config.evaluate_samples * (config.evaluate_steps + 1 + drawing)
    if config.calibrate:
        judging += _CALIBRATION * config.evaluate_samples * drawing
    parts.append(f"evaluation {judging:.2g}")
    whole += judging
    return (
        f"estimate: {whole:.2g} energy evaluations ({', '.join(parts)}), at {rate:,.0f} a second "
        f"{_duration(whole / rate)}; the time of the networks comes on top"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
