"""The zoo: systems that no preset was chosen with, trained by default settings, and one table of them.

    python benchmarks/zoo.py [NAMES] --within 20m -o FOLDER [--markdown]

A system is a YAML file in ``benchmarks/zoo`` or ``benchmarks/systems``, its name that of the file. Each
gets a folder with its reference, run and row, made by the commands ``reference`` and ``train``; what is
there is not made again, so that the same command goes on where it was stopped. ``--within`` is what the
training of one system is to fit in, and the longest that its reference may take; without it trainings have
the whole schedule of the preset. Values stand as sampler / floor: energies are in kT, ``broken`` are rows of
30,000 draws, without refinement, whose energy is beyond the reference's range by more than its width; in
brackets those that the sampler itself had drawn again before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from molsampler import Sampler
from molsampler.analysis import compare
from molsampler.cli.options import parse_duration
from molsampler.errors import MolsamplerError
from molsampler.export import load
from molsampler.systems import get_system

HERE = Path(__file__).parent
FILES = {path.stem: path for folder in ("systems", "zoo") for path in HERE.glob(f"{folder}/*.yaml")}

#: Metrics of the table.
SHOWN = {"energy_w2": "energy-W2", "tvd_distance": "TVD-D"}
#: Draws among which broken ones are counted.
DRAWS = 30_000
#: Configurations of a reference.
REFERENCE = 20_000
HEADER = ["system", *SHOWN.values(), f"broken in {DRAWS:,}", "minutes", "evaluations", "verdict"]


def command(*words: object, limit: float | None = None) -> str | None:
    """Run one of the commands; why it failed, in its last line, or None."""
    line = [sys.executable, "-m", "molsampler", *map(str, words)]
    try:
        done = subprocess.run(line, stderr=subprocess.PIPE, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"{words[0]}: out of time"
    # 3: trained, and not usable.
    if done.returncode in (0, 3):
        return None
    return f"{words[0]}: {([*done.stderr.strip().splitlines(), 'failed'])[-2:][0]}"


def prepare(path: Path, folder: Path, within: float | None) -> str | None:
    """Reference and run of a system; what went wrong, or None."""
    file, run = folder / "reference.npz", folder / "run"
    if not file.exists():
        failed = command(
            *("reference", path, "-n", REFERENCE, "-o", file, "--trust-code"),
            *("--method", "mcmc", "--checkpoint", folder / "state"),
            limit=within,
        )
        if failed:
            return failed
    fitted = () if within is None else ("--within", f"{within:.0f}s")
    return command("train", path, run, *fitted, "--trust-code")


def measure(path: Path, folder: Path) -> dict[str, Any]:
    """What the artifact of a run is worth."""
    artifact = folder / "run" / "artifact"
    if not artifact.exists():
        return {"failed": "no sampler in the time given"}
    system = get_system(path, trust_code=True)
    sampler = Sampler.load(artifact, system=system)
    card = sampler.card
    samples = sampler.sample(DRAWS, seed=1, device="cpu")
    reference = load(folder / "reference.npz")
    low, high = float(reference.energies.min()), float(reference.energies.max())
    width = high - low
    sound = (samples.energies > low - width) & (samples.energies < high + width)
    found = compare(samples, reference, system, monte_carlo=False, transport_repeats=0)
    metrics = {each.key: each for each in found.metrics}
    spent = None if card.training is None else card.training.cost
    return {
        **{
            key: [metrics[key].value, metrics[key].floor] if key in metrics else None
            for key in SHOWN
        },
        "broken": int(torch.as_tensor(~sound).sum()),
        "redrawn": samples.metadata.get("redrawn"),
        "converged": bool(reference.metadata["convergence"]["converged"]),
        "seconds": None if spent is None else spent.seconds,
        "evaluations": None if spent is None else spent.energy_evaluations,
        "usable": card.verdict is not None and card.verdict.usable,
        "verdict": None if card.verdict is None else str(card.verdict),
    }


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if "failed" in row:
        return [name, *["-"] * (len(HEADER) - 2), row["failed"]]
    pairs = [row[key] for key in SHOWN]
    unsure = "" if row["converged"] else " (reference not converged)"
    return [
        name,
        *("-" if pair is None else f"{pair[0]:.3g} / {pair[1]:.3g}" for pair in pairs),
        f"{row['broken']:,} ({row.get('redrawn') or 0:,})",
        f"{row['seconds'] / 60:.1f}",
        f"{row['evaluations']:.1e}",
        f"{'usable' if row['usable'] else 'not usable'}{unsure}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(sorted(FILES))}")
    parser.add_argument("--within", type=parse_duration, metavar="DURATION")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    names = options.names or sorted(FILES)
    if unknown := sorted(set(names) - set(FILES)):
        parser.error(f"no such system: {', '.join(unknown)} (there are {', '.join(sorted(FILES))})")
    rows = []
    for name in names:
        folder = options.output / name
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "row.json"
        if kept.exists():
            row = json.loads(kept.read_text())
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            failed = prepare(FILES[name], folder, options.within)
            try:
                row = {"failed": failed} if failed else measure(FILES[name], folder)
            except MolsamplerError as error:
                row = {"failed": str(error)}
            kept.write_text(json.dumps(row, indent=1) + "\n")
        rows.append(cells(name, row))
    lines = [HEADER, ["---"] * len(HEADER), *rows] if options.markdown else [HEADER, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    for line in lines:
        text = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print(f"| {' | '.join(text)} |" if options.markdown else "  ".join(text).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
