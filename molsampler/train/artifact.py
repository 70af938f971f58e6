"""The artifact of a run: the generator selected so far, and the card that says what it cost and is worth."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..molecule.chart import Chart
from ..molecule.chirality import right_handed
from ..nn.generators import Generator
from ..sampler import store
from ..sampler.card import Cost, EnergyBounds, Training
from ..sampler.verdict import Verdict
from ..target import System, Target
from .trainer import Trainer


def save(
    path: Path, trainer: Trainer, *, system: System, chart: Chart, command: str, ranks: int
) -> None:
    """Write the generator that a trainer selected; ``ranks`` processes trained it."""
    config, state = trainer.config, trainer.state
    generator = trainer.selected()
    store.save(
        path,
        generator,
        system=system,
        coordinates=chart.internal,
        training=Training(
            config=config.model_dump(mode="json"),
            command=command or f"molsampler train {config.system} RUN_DIR",
            seed=config.seed,
            cost=Cost(
                energy_evaluations=state.evaluations,
                seconds=round(state.seconds, 1),
                iterations=trainer.iteration,
                machine=_machine(ranks, trainer.device),
            ),
        ),
        quality=[
            *(_weights(trainer, chart) or [*_discrepancy(trainer), _drift(trainer)]),
            *_by_temperature(trainer, chart),
            *_handedness(trainer, generator, system, chart),
        ],
        verdict=verdict(trainer),
        energy_bounds=_energy_bounds(trainer),
        overwrite=True,
    )


def verdict(trainer: Trainer) -> Verdict | None:
    """That on the generator selected so far."""
    if not trainer.state.verdict:
        return None
    found = Verdict(**trainer.state.verdict)
    if trainer.finished:
        return found
    done = f"after {trainer.iteration:,} of {trainer.config.iterations:,} iterations"
    return found.model_copy(update={"sentence": f"{done} {found.sentence}"})


def log_z(chart: Chart, value: float | None) -> float | None:
    """log Z of the measure that a chart states; none where all weights are zero."""
    if value is None or not math.isfinite(value):
        return None
    return value + chart.log_constant


def _machine(ranks: int, device: torch.device) -> str:
    together = f"{ranks} processes, " if ranks > 1 else ""
    threads = f"{torch.get_num_threads()} thread(s)"
    return f"{platform.machine()}, {together}{threads}, {device.type}"


def _weights(trainer: Trainer, chart: Chart) -> list[dict[str, Any]]:
    """What the weights of the selected generator's draws say, where it knows its density; what its draws are
    without them is then nobody's measure."""
    weights = trainer.state.weights
    if not weights:
        return []
    known = {**weights, "log_z": log_z(chart, weights["log_z"])}
    if "log_z by annealing" in known:
        known["log_z by annealing"] = log_z(chart, known["log_z by annealing"])
    if known["log_z"] is None:
        known["log_z_error"] = None
    return [
        {
            "metric": "effective share of weights",
            **known,
            "iteration": trainer.best_iteration,
        }
    ]


def _discrepancy(trainer: Trainer) -> list[dict[str, Any]]:
    """Distance of the selected generator's samples to the population, where there is one."""
    state = trainer.state
    if not math.isfinite(state.best_discrepancy):
        return []
    return [
        {
            "metric": "discrepancy from the replay (standard deviations)",
            "value": state.best_discrepancy,
            "n": state.judged or trainer.config.evaluate_samples,
            "iteration": trainer.best_iteration,
            "latent calibration": state.calibration,
        }
    ]


def _drift(trainer: Trainer) -> dict[str, Any]:
    """How far exact Monte Carlo steps move the energies of the selected generator's samples."""
    return {
        "metric": "refinement drift (energy-W2, kT)",
        "value": trainer.state.best_drift,
        "n": trainer.state.judged or trainer.config.evaluate_samples,
        "steps": trainer.config.evaluate_steps,
        "iteration": trainer.best_iteration,
    }


def _energy_bounds(trainer: Trainer) -> tuple[float, float] | list[EnergyBounds] | None:
    """What the energies of draws are between, at each temperature where there is a range."""
    bounds = trainer.state.bounds
    if not bounds:
        return None
    pairs = list(zip(bounds[::2], bounds[1::2], strict=True))
    rows = trainer.state.by_temperature
    if not rows:
        return pairs[0]
    return [
        EnergyBounds(temperature=row["temperature"], low=low, high=high)
        for row, (low, high) in zip(rows, pairs, strict=True)
    ]


def _by_temperature(trainer: Trainer, chart: Chart) -> list[dict[str, Any]]:
    """Quality of the selected generator at each temperature at which it was judged, where it has a range;
    the rows above are means over them."""
    return [
        {
            "metric": f"at temperature {row['temperature']:.4g}",
            **_measure(row),
            "iteration": trainer.best_iteration,
            **row,
            **({"log_z": log_z(chart, row["log_z"])} if "log_z" in row else {}),
        }
        for row in trainer.state.by_temperature
    ]


def _measure(row: Mapping[str, Any]) -> dict[str, Any]:
    """The one number that a temperature is judged by: the first that there is."""
    for measure in ("effective share of weights", "discrepancy", "drift"):
        if row.get(measure) is not None:
            return {"value": row[measure], "measure": measure}
    return {"value": None, "measure": "drift"}


def _handedness(
    trainer: Trainer, generator: Generator, system: System, chart: Chart
) -> list[dict[str, Any]]:
    """Share of wrong-handed molecules that the selected generator makes, before they are inverted."""
    molecule = system.molecule if chart.internal is None else None
    if molecule is None or not molecule.chiral_centres or not generator.mirror_symmetric:
        return []
    config = trainer.config
    target: Target = system
    if config.temperatures is not None:
        middle = config.temperatures.middle
        generator, target = generator.at(middle), system.at(middle)
    rng = torch.Generator(device=trainer.device).manual_seed(config.seed)
    # The bare target: counted evaluations are those that a resumed run repeats to the last one.
    with torch.no_grad():
        x = generator.draw(config.evaluate_samples, target, generator=rng).x
    found = right_handed(x, molecule.chiral_centres)
    shares = [float((wrong > 0).double().mean()) for wrong in found[1:]]
    return [
        {
            "metric": "share of molecules with a wrong-handed centre, before inversion",
            "value": shares[0],
            "after inversion": shares[1],
            "n": config.evaluate_samples,
        }
    ]
