"""``molsampler train``: train a sampler, or resume its training."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import torchrun
from . import clock
from .options import Json, System, TrustCode, parse_duration
from .terminal import Show, duration, note, phases, print_json, quiet

if TYPE_CHECKING:
    from ..objectives.shards import Peers
    from ..train import Progress, TrainResult

#: Metrics that progress lines show.
SHOWN = ("ess", "discrepancy", "drift", "median_energy", "teacher_loss", "score_loss")


class Preset(StrEnum):
    """Named settings."""

    fast = "fast"
    exact = "exact"
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
    temperature: Annotated[
        str | None,
        typer.Option(
            "--temperature",
            metavar="LO:HI",
            help="Train over a range of temperatures; kelvin for molecules.",
        ),
    ] = None,
    until_ess: Annotated[
        float | None,
        typer.Option(
            "--until-ess",
            metavar="SHARE",
            help="Stop when this share of 10,000 fresh draws is effective; exit code 3 if it never is.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ARTIFACT|NAME",
            help="Start from the weights of a trained sampler with the same generator.",
        ),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(
            "--max-time", parser=parse_duration, metavar="DURATION", help="Such as 30m or 2h."
        ),
    ] = None,
    within: Annotated[
        float | None,
        typer.Option(
            "--within",
            parser=parse_duration,
            metavar="DURATION",
            help="Have the whole training fit this time, by fewer chains and a shorter schedule if need be.",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:1.")] = "cpu",
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Train a sampler; the same command resumes a run that was stopped.

    --within plans a training that ends in that time; --max-time stops one, to be resumed. It, Ctrl-C and
    SIGTERM save the state within seconds, in whatever phase; the last two end with exit code 130 and 143. A
    sampler that was trained and is not usable, as the verdict says, ends with 3.
    """
    file = Path(system)
    title = f"training {file.stem if file.suffix in ('.yaml', '.yml') else file.name}"
    with phases(title) if torchrun.rank() == 0 else quiet() as show:
        # Said before anything is imported that takes long.
        show("starting")
        from ..train.ranks import meet

        with meet("the same command resumes") as peers:
            result = _train(
                show,
                peers,
                system,
                run_dir,
                preset=preset.value,
                config=config,
                overrides=overrides or (),
                temperature=temperature,
                until_ess=until_ess,
                start=start,
                max_time=max_time,
                within=within,
                device=device,
                trust_code=trust_code,
            )
    if torchrun.rank() > 0:
        pass
    elif json:
        verdict = result.verdict and result.verdict.model_dump()
        print_json({**asdict(result), "verdict": verdict})
    else:
        _print(result)
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
    if result.status == "completed" and result.verdict is not None and not result.verdict.usable:
        raise typer.Exit(3)


def _train(
    show: Show,
    peers: Peers,
    system: str,
    run_dir: Path,
    *,
    preset: str,
    config: Path | None,
    overrides: Sequence[str],
    temperature: str | None,
    until_ess: float | None,
    start: str | None,
    max_time: float | None,
    within: float | None,
    device: str,
    trust_code: bool,
) -> TrainResult:
    from molsampler.systems import get_system

    from ..errors import InputError
    from ..molecule.z_matrix import why_no_internal_coordinates
    from ..temperatures import TemperatureRange
    from ..train import load_config, started_from
    from ..train import train as run

    target = get_system(system, trust_code=trust_code)
    lacking = why_no_internal_coordinates(target)
    if torchrun.rank() == 0 and lacking and target.molecule is not None and target.molecule.bonds:
        note(f"{target.name} {lacking}: trained in Cartesian coordinates")
    settings = load_config(
        preset,
        target,
        file=config,
        overrides=[
            *overrides,
            *([] if until_ess is None else [f"until_ess={until_ess}"]),
            *([] if within is None else [f"within={within}"]),
        ],
        temperatures=None if temperature is None else TemperatureRange.parse(temperature),
    )
    if start is not None:
        given = [item for item in overrides if item.partition("=")[0].split(".")[0] == "generator"]
        if given:
            raise InputError(
                f"--from takes the generator of {start} as it is: leave out --set {given[0]}"
            )
        settings = started_from(settings, start)
    command = ["molsampler", "train", system, "RUN_DIR", "--preset", preset]
    command += ["--config", str(config)] if config is not None else []
    command += [part for item in overrides for part in ("--set", item)]
    command += ["--until-ess", str(until_ess)] if until_ess is not None else []
    command += ["--within", f"{within:.0f}s"] if within is not None else []
    command += ["--temperature", temperature] if temperature is not None else []
    command += ["--from", start] if start is not None else []
    command += ["--trust-code"] if trust_code else []

    def told(state: Progress) -> None:
        show(described(state), done=state.done, total=state.total)

    return run(
        target,
        run_dir,
        settings,
        max_time=max_time,
        device=torchrun.own_device(device),
        on_progress=told,
        command=shlex.join(command),
        began=clock.began(),
        peers=peers,
    )


def described(state: Progress) -> str:
    """A line on where a run stands; the word before the colon is the phase."""
    parts = []
    if state.total is not None:
        about = "about " if state.phase == "annealing" else ""
        of = " draws" if state.phase == "evaluation" else ""
        parts.append(f"{state.done:,} of {about}{state.total:,.0f}{of}")
    elif state.done:
        parts.append(f"{state.done:,} steps")
    if state.detail:
        parts.append(state.detail)
    if state.rate is not None:
        parts.append(f"{state.rate:,.3g}/s")
    if state.left is not None:
        run = " of the run" if state.left_of_run is not None else ""
        parts.append(f"{duration(state.left)} left{run}")
    if state.evaluations:
        fast = state.evaluations_per_second
        speed = "" if fast is None else f" at {fast:,.0f}/s"
        parts.append(f"{state.evaluations:,} energy evaluations{speed}")
    parts += [f"{key} {state.metrics[key]:.3g}" for key in SHOWN if key in state.metrics]
    return f"{state.phase}: {', '.join(parts)}" if parts else state.phase


def _print(result: TrainResult) -> None:
    spent = f"{duration(result.seconds)} of work, {result.evaluations:,} energy evaluations"
    where = f"iteration {result.iteration:,} of {result.total:,}"
    before = "" if result.phase == "training" else f"in {result.phase}, "
    print(f"{result.status} {before or 'at '}{where} ({spent})")
    if result.skipped:
        print(f"skipped {result.skipped:,} iterations with a non-finite loss or gradient")
    if result.artifact is not None:
        print(f"sampler: {result.artifact}")
    if result.verdict is not None:
        print(f"verdict: {result.verdict}")
    if result.status == "out of time" and not result.evaluations:
        print(
            "nothing was begun: the start took all of --max-time; the same command resumes, with more"
        )
    elif result.status != "completed":
        print("the same command resumes")
