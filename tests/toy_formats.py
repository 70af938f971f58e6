"""Formats that the package does not know: text of frames, and JSON that holds everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molsampler.errors import FileFormatError
from molsampler.export.format import Output
from molsampler.export.lengths import Frames
from molsampler.export.trajectory import Opened, Trajectory
from molsampler.samples import Samples
from molsampler.storage.files import atomic_path
from molsampler.target import System


class Text(Trajectory):
    """As ``.xyz`` files are: a count, a remark, and a line an atom; nanometres."""

    suffix = ".toy"
    description = "text, four decimals"
    precision_nm = 1e-4
    bytes_per_atom = 40

    @contextmanager
    def writer(self, path: Path, topology: Any, count: int) -> Iterator[Callable[[Frames], None]]:
        names = [atom.name for atom in topology.atoms]
        with open(path, "w") as file:

            def append(frames: Frames) -> None:
                for frame in frames.astype(np.float64):
                    file.write(f"{len(names)}\n\n")
                    for name, (x, y, z) in zip(names, frame, strict=True):
                        file.write(f"{name} {x:.4f} {y:.4f} {z:.4f}\n")

            yield append

    @contextmanager
    def open(self, path: Path, *, trusted: bool = False) -> Iterator[Opened]:
        try:
            lines = path.read_text().splitlines()
            atoms = int(lines[0])
            rows = [line.split()[1:] for i, line in enumerate(lines) if i % (atoms + 2) > 1]
            frames = np.array(rows, dtype=np.float32).reshape(-1, atoms, 3)
        except (ValueError, IndexError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from None
        # One frame at a time: the sizes of the pieces are the format's own affair.
        yield Opened(len(frames), atoms, (frame[None] for frame in frames))


class Whole:
    """All that samples have in one JSON object."""

    suffix = ".whole"
    description = "JSON with everything inside"
    precision_nm = 0.0
    complete = True

    def write(self, path: Path, output: Output) -> None:
        with atomic_path(path, overwrite=output.overwrite) as temporary:
            blocks = list(output.blocks)
            columns = {
                "positions": [x for block in blocks for x in block.positions.tolist()],
                "energies": [u for block in blocks for u in block.energies.tolist()],
            }
            if blocks[0].log_weights is not None:
                columns["log_weights"] = [w for b in blocks for w in b.log_weights.tolist()]
            temporary.write_text(json.dumps({**columns, "metadata": output.metadata()}))

    def inspect(self, path: Path) -> dict[str, Any]:
        samples = self.load(path, None)
        return {
            "frames": len(samples),
            "particles": samples.positions.shape[1],
            "provenance": samples.metadata,
            "intact": None,
        }

    def load(self, path: Path, system: System | str | None) -> Samples:
        try:
            fields = json.loads(path.read_text())
            return Samples(
                torch.tensor(fields["positions"]),
                torch.tensor(fields["energies"], dtype=torch.float64),
                torch.tensor(fields["log_weights"], dtype=torch.float64)
                if "log_weights" in fields
                else None,
                fields["metadata"],
            )
        except (ValueError, KeyError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from None
