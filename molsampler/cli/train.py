"""``molsampler train``: train a sampler, or resume its training."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, System, TrustCode, parse_duration
from .terminal import duration, print_json, progress

#: Metrics that progress lines show.
SHOWN = ("teacher_loss", "score_loss", "difference", "drift", "median_energy")


class Preset(StrEnum):
    """Named settings."""

    fast = "fast"
    paper = "paper"


def train(
    system: System,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Created if missing.")],
    preset: Annotated[
        Preset, typer.Option("--preset", help="Settings to start from.")
    ] = Preset.fast,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with settings that differ.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable."),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(
            "--max-time", parser=parse_duration, metavar="DURATION", help="Such as 30m or 2h."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:1.")] = "cpu",
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Train a sampler; the same command resumes a run that was stopped.

    Ctrl-C and SIGTERM finish the iteration, save the state and end with exit code 130 or 143.
    """
    from molsampler.systems import get_system

    from ..molecule.z_matrix import has_internal_coordinates
    from ..train import Progress, load_config
    from ..train import train as run

    target = get_system(system, trust_code=trust_code)
    settings = load_config(
        preset.value,
        target.name,
        file=config,
        overrides=overrides or (),
        invariant=target.invariant,
        molecule=has_internal_coordinates(target),
    )
    command = ["molsampler", "train", system, "RUN_DIR", "--preset", preset.value]
    command += ["--config", str(config)] if config is not None else []
    command += [part for item in overrides or () for part in ("--set", item)]
    command += ["--trust-code"] if trust_code else []
    with progress(f"training {target.name}", None) as update:

        def show(state: Progress) -> None:
            measured = [f"{key} {state.metrics[key]:.3g}" for key in SHOWN if key in state.metrics]
            update(state.iteration, ", ".join([state.stage, *measured]), total=state.total)

        result = run(
            target,
            run_dir,
            settings,
            max_time=max_time,
            device=device,
            on_progress=show,
            command=shlex.join(command),
        )
    if json:
        print_json(asdict(result))
    else:
        spent = f"{duration(result.seconds)}, {result.evaluations:,} energy evaluations"
        print(f"{result.status} at iteration {result.iteration:,} of {result.total:,} ({spent})")
        if result.skipped:
            print(f"skipped {result.skipped:,} iterations with a non-finite loss or gradient")
        if result.artifact is not None:
            print(f"sampler: {result.artifact} (refinement drift {result.drift:.3f} kT)")
        if result.status != "completed":
            print("the same command resumes")
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
