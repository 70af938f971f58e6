"""``molsampler reference``: molecular dynamics or Monte Carlo to compare with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import Count, Json, Output, Overwrite, Seed, System, TrustCode, check_samples_output
from .summary import energy_line, energy_summary
from .terminal import note, print_json, progress

if TYPE_CHECKING:
    from ..samples import Samples
    from ..target import System as PhysicalSystem


class Method(StrEnum):
    """How reference samples are drawn."""

    openmm = "openmm"
    mcmc = "mcmc"


class Exchange(StrEnum):
    """When replica exchange (OpenMM) or parallel tempering (Monte Carlo) is used."""

    auto = "auto"
    always = "always"
    never = "never"


_EXCHANGE: dict[Exchange, bool | Literal["auto"]] = {
    Exchange.auto: "auto",
    Exchange.always: True,
    Exchange.never: False,
}


def reference(
    system: System,
    number: Count,
    output: Output,
    method: Annotated[
        Method, typer.Option("--method", help="OpenMM dynamics, or Monte Carlo.")
    ] = Method.openmm,
    seed: Seed = 0,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=2, help="Independent trajectories or chains.")
    ] = None,
    exchange: Annotated[
        Exchange,
        typer.Option("--exchange", help="Replica exchange: where plain replicas disagree (auto)."),
    ] = Exchange.auto,
    max_steps: Annotated[
        int,
        typer.Option("--max-steps", min=1000, help="Steps per replica spent on convergence."),
    ] = 1_000_000,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Record the run here; the same command continues one that was stopped.",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe/--no-probe", help="Look first whether exp(-u) has a norm."),
    ] = True,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Draw reference samples by long runs, with R-hat and effective sample size.

    A run that has not converged says so in a warning; its samples are written all the same.
    """
    check_samples_output(output, overwrite=overwrite)
    from molsampler.systems import get_system

    from ..export import save

    target = get_system(system, trust_code=trust_code)
    try:
        samples = run(
            target,
            number,
            method=method,
            seed=seed,
            replicas=replicas,
            exchange=_EXCHANGE[exchange],
            max_steps=max_steps,
            checkpoint=checkpoint,
            probe=probe,
        )
    except SystemExit:
        if checkpoint is None:
            note(
                "nothing was kept; with --checkpoint DIR the same command would go on with the run"
            )
        else:
            note("the same command goes on with the run")
        raise
    save(samples, output, overwrite=overwrite, system=target)
    energies = energy_summary(samples)
    if json:
        print_json({"file": output, "n": number, "energies": energies, **samples.metadata})
        return
    print(f"wrote {output}: {number:,} reference samples of {target.name} by {method.value}")
    print(energy_line(energies))
    print(describe(samples.metadata["convergence"]))


def run(
    target: PhysicalSystem, number: int, *, method: Method, seed: int, **options: Any
) -> Samples:
    """Reference samples, with progress on standard error."""
    from ..reference.run import sample_reference

    with progress(f"reference {target.name}", number) as update:
        return sample_reference(
            target,
            number,
            method=method.value,
            seed=seed,
            **options,
            progress=lambda done, _, message: update(done, message),
        )


def describe(convergence: dict[str, Any]) -> str:
    """R-hat, effective sample size and the verdict in one line."""
    verdict = "converged" if convergence["converged"] else "NOT CONVERGED"
    r_hat = convergence["r_hat"]
    shown = r_hat if isinstance(r_hat, str) else f"{r_hat:.4f}"
    return f"{verdict}: R-hat {shown}, effective sample size {convergence['ess']:,.0f}"
