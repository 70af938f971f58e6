"""Frames of formats that C libraries decode; also a program, for files that nobody vouches for.

Those libraries trust what they read: a damaged or malicious file can crash the process, make it
allocate without end, or never return. :mod:`molsampler.export.isolated` therefore runs this file as
``python decoder.py SUFFIX PATH CHUNK``, with limits on memory, time and files, and takes its frames
from a pipe. It imports nothing of the package, so that it starts quickly.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bytes of address space; HDF5 allocates a chunk at a time, whatever its size.
MEMORY = 4 * 2**30
#: Most that zlib can compress, and some overhead.
EXPANSION = 1100
#: Exit code of a file that is refused.
REFUSED = 3


def hdf5(path: str, chunk: int) -> Generator[Any, None, None]:
    """Frames and atoms as a pair, then frames ``(<= chunk, N, 3)`` float32 in nm, of an HDF5 file."""
    import tables

    with tables.open_file(path, "r") as file:
        coordinates = file.get_node("/coordinates")
        # Others could be links to, or be stored in, other files.
        if not isinstance(coordinates, tables.Array) or not coordinates.chunkshape:
            raise ValueError("coordinates are not a chunked array of this file")
        shape = tuple(int(k) for k in coordinates.shape)
        if len(shape) != 3 or shape[2] != 3 or coordinates.dtype.kind != "f":
            raise ValueError(f"coordinates of shape {shape}, expected numbers (n, N, 3)")
        if np.prod(coordinates.chunkshape, dtype=float) * 8 > MEMORY / 4:
            raise ValueError(f"chunks of shape {coordinates.chunkshape} are too large")
        if 12.0 * shape[0] * shape[1] > EXPANSION * os.path.getsize(path):
            raise ValueError(
                f"{shape[0]} frames of {shape[1]} atoms cannot be in a file of its size"
            )
        attributes = coordinates.attrs
        units = attributes["units"] if "units" in attributes._v_attrnames else "nanometers"
        units = units.decode() if isinstance(units, bytes) else str(units)
        if units != "nanometers":
            raise ValueError(f"coordinates are in {units!r}, expected nanometers")
        if "/topology" in file:
            topology = json.loads(file.get_node("/topology")[0])
            atoms = sum(len(r["atoms"]) for c in topology["chains"] for r in c["residues"])
            if atoms != shape[1]:
                raise ValueError(f"{shape[1]} atoms a frame and a topology of {atoms}")
        yield shape[:2]
        for start in range(0, shape[0], chunk):
            yield np.asarray(coordinates[start : start + chunk], dtype=np.float32)


def xtc(path: str, chunk: int) -> Generator[NDArray[np.float32], None, None]:
    """Frames ``(<= chunk, N, 3)`` float32 in nm of an XTC file."""
    from mdtraj.formats import XTCTrajectoryFile

    with XTCTrajectoryFile(path, "r") as file:
        while len(frames := file.read(chunk)[0]):
            yield np.asarray(frames, dtype=np.float32)


DECODERS = {".h5": hdf5, ".xtc": xtc}


def main(suffix: str, path: str, chunk: str) -> int:
    """Write the pair, where there is one, as a line of JSON and the frames as bytes."""
    out, say = os.fdopen(os.dup(1), "wb"), os.dup(2)
    # Libraries print; the pipes are for frames and for one line that says why there are none.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    seconds = 60 + os.path.getsize(path) // 10**6
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for item in DECODERS[suffix](path, int(chunk)):
            out.write(
                json.dumps(item).encode() + b"\n" if isinstance(item, tuple) else item.tobytes()
            )
        out.close()
    except BrokenPipeError:
        os._exit(REFUSED)
    except BaseException as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        os.write(say, reason[0].strip()[:300].encode() + b"\n")
        os._exit(REFUSED)
    return 0


if __name__ == "__main__":
    # Skips destructors: those of a library that has met a damaged file may not end.
    os._exit(main(*sys.argv[1:]))
