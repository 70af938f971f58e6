"""A disk that fills up, wherever it does: "no space" is said and the old content is kept.

The kernel refuses to let files grow beyond ``RLIMIT_FSIZE`` as it refuses on a full disk, in the
middle of a write and inside C libraries alike.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import leftovers, run

from molsampler import export
from molsampler.errors import StorageError
from molsampler.sampler.sampler import Sampler
from molsampler.samples import Samples
from molsampler.train import checkpoint, load_config
from molsampler.train.folder import RunFolder

Tally = Callable[[str, int, int], None]


def limited(size: int, work: Callable[[], object]) -> Callable[[], int]:
    """``work`` where no file may grow beyond ``size`` bytes; 0 if it ends, 7 for a StorageError."""

    def attempt() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            work()
        except StorageError as error:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            print(error)
            return 7
        return 0

    return attempt


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def limits(size: int, count: int) -> list[int]:
    """``count`` limits below ``size``, the extremes among them."""
    return sorted({0, size - 1, *(size * k // count for k in range(1, count))})


@pytest.mark.parametrize("count", [2, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", export.FORMATS.names())
def test_export(
    suffix: str, count: int, tmp_path: Path, samples: Samples, system: object, tally: Tally
) -> None:
    """The sweep of 30 limits takes about ten seconds a format."""
    folder, log = tmp_path / "results", tmp_path / "log"
    folder.mkdir()
    path = folder / f"a{suffix}"
    samples[:5].save(path, system=system)
    (tmp_path / "other").mkdir()
    samples.save(tmp_path / "other" / path.name, system=system)
    # The sidecar grows to some kilobytes, which is more than some data files.
    largest = max(map(len, content(tmp_path / "other").values()))
    before = content(folder)
    tried = limits(largest, count)
    for size in tried:
        ended = run(limited(size, lambda: samples.save(path, system=system, overwrite=True)), log)
        assert ended.code == 7, (size, ended)
        assert "no space left to write" in ended.said, (size, ended)
        assert not leftovers(folder)
        kept = content(folder)
        kept.pop(f"{path.stem}.pdb", None) if suffix != ".pdb" else None
        assert kept.keys() >= before.keys() - {"a.pdb"}
        assert kept[path.name] in (before[path.name], content(tmp_path / "other")[path.name])
    assert len(export.load(path, system=system)) in (5, len(samples))
    # A negative control: with room it is written.
    ended = run(limited(10**8, lambda: samples.save(path, system=system, overwrite=True)), log)
    assert ended.code == 0, ended.said
    assert len(export.load(path, system=system)) == len(samples)
    tally(f"full disk while exporting to {suffix}", len(tried), len(tried))


def test_checkpoint(tmp_path: Path, tally: Tally) -> None:
    folder, log = tmp_path / "checkpoints", tmp_path / "log"
    checkpoint.save(folder, 1, {"a": torch.ones(10_000)}, "{}")
    before = content(folder)
    tried = limits(40_000, 4)
    for size in tried:
        ended = run(
            limited(size, lambda: checkpoint.save(folder, 2, {"a": torch.ones(10_000)}, "{}")), log
        )
        assert ended.code == 7, ended.said
        assert content(folder) == before
    assert checkpoint.load_latest(folder) is not None
    tally("full disk while saving a checkpoint", len(tried), len(tried))


def test_artifact(
    tmp_path: Path, save_sampler: Callable[..., Sampler], system: object, tally: Tally
) -> None:
    folder, log = tmp_path / "toy", tmp_path / "log"
    first = save_sampler(folder)
    tried = limits((folder / "weights.safetensors").stat().st_size, 2)
    for size in tried:
        ended = run(limited(size, lambda: save_sampler(folder, 0.1, overwrite=True)), log)
        assert ended.code == 7, ended.said
        # Replaced weights may be there; the card decides, and it is the old one.
        assert Sampler.load(folder, system=system).hash == first.hash
        assert not leftovers(folder)
        ended = run(limited(size, lambda: save_sampler(tmp_path / "new")), log)
        assert ended.code == 7, ended.said
        assert not (tmp_path / "new").exists()
    tally("full disk while saving an artifact", 2 * len(tried), 2 * len(tried))


def test_run_folder(tmp_path: Path, tally: Tally) -> None:
    """Configuration and log: what does not fit is an error, and the next run cuts half a line off."""
    log = tmp_path / "log"
    config = load_config("fast", "dw4")

    def start() -> None:
        with RunFolder(tmp_path / "run") as folder:
            folder.claim(config)
            for k in range(1000):
                folder.log({"iteration": k})

    for size in (10, 100, 1_000):
        assert run(limited(size, start), log).code == 7
    assert run(limited(10_000, start), log).code == 7
    with RunFolder(tmp_path / "run") as folder:
        assert folder.metrics.stat().st_size == 10_000
        assert folder.rewind_metrics(34)
        assert folder.metrics.read_text() == '{"iteration": 0}\n{"iteration": 1}\n'
    tally("full disk while writing a run's configuration and log", 4, 4)


def test_a_file_that_could_not_fit_is_not_begun(
    tmp_path: Path, save_sampler: Callable[..., Sampler]
) -> None:
    """10^12 samples: the estimate is given before any work is done."""
    sampler = save_sampler(tmp_path / "toy")
    for suffix in export.FORMATS.names():
        wanted = r"no space left.* TiB are needed while it is written and .* are free"
        with pytest.raises(StorageError, match=wanted):
            sampler.sample_to_file(tmp_path / f"a{suffix}", 10**12)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
