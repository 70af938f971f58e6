"""Requests beyond the machine: refused with the estimate, or streamed in memory that does not grow."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import run

from molsampler import export, memory
from molsampler.cli import main
from molsampler.errors import InputError, ResourceError
from molsampler.reference.run import sample_reference
from molsampler.sampler.sampler import Sampler
from molsampler.systems import get_system
from molsampler.train import load_config, train

Tally = Callable[[str, int, int], None]


def resident() -> int:
    """KiB of memory that this process holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def growth(work: Callable[[Callable[[int], None]], object], log: Path) -> tuple[float, float]:
    """MiB by which a child grows after the first quarter of its progress reports, and its peak."""

    def measured() -> None:
        held: list[int] = []
        # Free memory inherited from the parent would hide growth.
        ctypes.CDLL(None).malloc_trim(0)
        work(lambda done: held.append(resident()))
        early, late = held[: len(held) // 4], held[len(held) // 4 :]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((max(late) - max(early)) / 1024, peak / 1024)

    ended = run(measured, log)
    assert ended.code == 0, ended.said
    grown, peak = map(float, ended.said.split()[-2:])
    return grown, peak


@pytest.mark.parametrize(
    ("suffix", "count"),
    # HDF5 fills a cache of some 15 MiB within the first half million frames, and grows no more.
    [(".npz", 400_000), pytest.param(".h5", 1_600_000, marks=pytest.mark.slow)]
    + [
        pytest.param(suffix, 800_000, marks=pytest.mark.slow)
        for suffix in export.FORMATS.names()
        if suffix != ".h5"
    ],
)
def test_memory_does_not_grow_with_the_number_of_samples(
    suffix: str,
    count: int,
    tmp_path: Path,
    save_sampler: Callable[..., Sampler],
    tally: Tally,
) -> None:
    """The slow ones take about a minute of CPU time."""
    sampler = save_sampler(tmp_path / "toy")
    sampler.sample_to_file(tmp_path / f"first{suffix}", 20_000)

    def stream(progress: Callable[[int], None]) -> None:
        sampler.sample_to_file(tmp_path / f"a{suffix}", count, progress=progress)

    def hoard(progress: Callable[[int], None]) -> None:
        kept = []
        for block in sampler.stream(count).blocks():
            kept.append(block)
            progress(len(kept))

    whole = count * 4 * 2 * 4 / 2**20
    grown, peak = growth(stream, tmp_path / "log")
    assert grown < 0.4 * whole, (grown, whole)
    assert peak < 1024
    # A negative control: keeping the samples is seen.
    assert growth(hoard, tmp_path / "log")[0] > 0.5 * whole
    tally(f"streaming {count:,} samples to {suffix}: peak {peak:.0f} MiB, growth {grown:.1f}", 1, 1)


def test_more_samples_than_memory_are_refused_with_the_estimate(
    tmp_path: Path, save_sampler: Callable[..., Sampler]
) -> None:
    sampler = save_sampler(tmp_path / "toy")
    with pytest.raises(ResourceError, match=r"needs about 3[0-9]{4}\.[0-9] GiB .*sample_to_file"):
        sampler.sample(10**12)
    with pytest.raises(InputError, match="n must be an integer from 1"):
        sampler.sample(10**30)


@pytest.mark.parametrize("method", ["openmm", "mcmc"])
def test_reference_of_absurd_length_is_refused_with_the_estimate(method: str) -> None:
    with pytest.raises(ResourceError, match=r"reference of 1,000,000,000,000 samples.* GiB"):
        sample_reference("dw4", 10**12, method=method)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "override",
    [
        "batch_size=1000000000000",
        "target_score.size=1000000000000",
        "evaluate_samples=1000000000000",
    ],
)
def test_training_of_absurd_size_is_refused_with_the_estimate(
    override: str, tmp_path: Path
) -> None:
    config = load_config("fast", "dw4", overrides=[override])
    with pytest.raises(ResourceError, match=r"GiB of memory.*lower batch_size"):
        train(get_system("dw4"), tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("system", "overrides", "message"),
    [
        ("lj13", ["generator.standardised=true"], "respects rotations"),
        ("lj13", ["objective.kind=denoising"], "trains generators of kind 'diffusion'"),
        ("lj13", ["objective.kind=exact"], "needs a generator that knows its density"),
        ("mog40", ["objective.denoiser.kind=egnn"], "at least two"),
        (
            "lj13",
            ["objective.kind=dikl-posterior", "generator.langevin_adapted=true"],
            "leave out generator.standardised",
        ),
    ],
)
def test_networks_that_do_not_fit_leave_no_folder_behind(
    system: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    """In a folder that was begun the mended command would have to name another."""
    config = load_config("fast", system, overrides=[*overrides, "probe=false"])
    with pytest.raises(InputError, match=message):
        train(get_system(system), tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_allocation_that_fails_is_named(tmp_path: Path, tally: Tally) -> None:
    """A real failure: the child may not have more address space than it has."""
    config = load_config(
        "fast",
        "dw4",
        overrides=(
            *("batch_size=400000", "target_score.size=64", "target_score.warmup=1"),
            *("target_score.equilibration=1", "compile=false"),
        ),
    )

    def work() -> int:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        try:
            train(get_system("dw4"), tmp_path / "run", config)
        except ResourceError as error:
            print(error)
            return 7
        return 0

    ended = run(work, tmp_path / "log")
    assert ended.code == 7, ended.said
    assert "try --set batch_size=200000" in ended.said
    tally("allocation that fails in training (RLIMIT_AS)", 1, 1)


def test_memory_that_is_not_known_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative control of the estimate: it is the comparison that refuses."""
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.require(2**60, purpose="all of it", remedy="none")
    monkeypatch.setattr(memory, "available", lambda: 2**61)
    memory.require(2**60, purpose="half of it", remedy="none")
    monkeypatch.setattr(memory, "available", lambda: 2**60)
    with pytest.raises(ResourceError):
        memory.require(2**60, purpose="all of it", remedy="none")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "banana", "cuda:x"])
@pytest.mark.parametrize("command", ["sample", "train"])
def test_absent_device_is_one_line(
    command: str, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "sample": ["sample", "dw4", "-n", "5", "-o", str(tmp_path / "a.npz")],
        "train": ["train", "dw4", str(tmp_path / "run")],
    }[command]
    assert main([*words, "--device", device]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("error:")]) == 1
    assert device in said[-1]
    assert "cpu" in said[-1]
    assert list(tmp_path.iterdir()) == []
