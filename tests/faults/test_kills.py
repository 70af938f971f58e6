"""kill -9 at any moment of a save leaves the old or the new content, and no later save is in the way."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import killed_at, leftovers, run, start, wait

from molsampler import export
from molsampler.export import log_weights
from molsampler.export.sidecar import check_file, read_sidecar
from molsampler.sampler.sampler import Sampler
from molsampler.samples import Samples
from molsampler.storage.files import write_bytes
from molsampler.train import checkpoint
from molsampler.train.folder import RunFolder

Tally = Callable[[str, int, int], None]


def tensors(iteration: int) -> dict[str, torch.Tensor]:
    return {f"t{k}": torch.full((5_000,), float(iteration + k)) for k in range(4)}


def check_checkpoint(folder: Path, least: int) -> int:
    """The iteration found, whose tensors belong together and which is not older than ``least``."""
    found = checkpoint.load_latest(folder)
    if found is None:
        assert least == 0
        return 0
    held, counters, path = found
    iteration = int(path.name.split("-")[0])
    assert counters == f'{{"iteration": {iteration}}}'
    assert all(torch.equal(held[key], value) for key, value in tensors(iteration).items())
    assert iteration >= least
    return iteration


def kill_while_saving(folder: Path, delay: float) -> int:
    """Kill a child ``delay`` seconds into a series of saves; the iteration that is found then."""
    folder.mkdir(exist_ok=True)
    log = folder.parent / "log"
    first = check_checkpoint(folder, 0)

    def save() -> None:
        for k in range(first + 1, first + 10_000):
            checkpoint.save(folder, k, tensors(k), f'{{"iteration": {k}}}')
            print(k, flush=True)

    log.unlink(missing_ok=True)
    pid = start(save, log)
    # The first save is over; the kill hits a later one.
    while not log.exists() or not log.read_text():
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    said = wait(pid, log).said.split("\n")[:-1]
    # What the child was told to be saved is saved.
    return check_checkpoint(folder, int(said[-1]) if said else first)


@pytest.mark.parametrize(
    "kills", [15, pytest.param(250, marks=pytest.mark.slow)], ids=["few", "sweep"]
)
def test_kill_at_any_time_of_a_checkpoint(kills: int, tmp_path: Path, tally: Tally) -> None:
    """The sweep takes about a minute."""
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    delays = random.Random(0)
    reached = [kill_while_saving(folder, delays.uniform(0, 0.1)) for _ in range(kills)]
    assert reached == sorted(reached)
    assert reached[-1] > 0
    (tmp_path / "run" / "config.resolved.yaml").touch()
    with RunFolder(tmp_path / "run"):
        assert not leftovers(tmp_path)
    tally("kill -9 at a random time of a checkpoint save", kills, kills)


def every_point(
    work: Callable[[], object], check: Callable[[], None], log: Path, *, stride: int = 1
) -> int:
    """Kill ``work`` before each ``stride``-th of its file-system calls in turn; how many kills."""
    for kills, event in enumerate(range(1, 300, stride)):
        ended = run(killed_at(event, work, log.parent), log)
        check()
        if ended.code == 0:
            return kills
        assert ended.code == -signal.SIGKILL, ended.said
    raise AssertionError("it never ended")


def test_kill_at_every_point_of_a_checkpoint(tmp_path: Path, tally: Tally) -> None:
    folder = tmp_path / "checkpoints"
    for k in (1, 2):
        checkpoint.save(folder, k, tensors(k), f'{{"iteration": {k}}}')
    points = every_point(
        lambda: checkpoint.save(folder, 3, tensors(3), '{"iteration": 3}'),
        lambda: check_checkpoint(folder, 2),
        tmp_path / "log",
    )
    assert points >= 3
    assert check_checkpoint(folder, 3) == 3
    # What the killed ones left for this name was removed by the one that ended.
    assert not leftovers(tmp_path)
    tally("kill -9 before each file-system call of a checkpoint save", points, points)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_at_every_point_of_an_artifact(
    stride: int, tmp_path: Path, save_sampler: Callable[..., Sampler], system: object, tally: Tally
) -> None:
    """New or replaced, and replaced once more after each kill: there is always a whole sampler."""
    folder, log = tmp_path / "toy", tmp_path / "log"

    def whole() -> None:
        if folder.exists():
            Sampler.load(folder, system=system)

    points = every_point(lambda: save_sampler(folder, overwrite=True), whole, log, stride=stride)
    assert not leftovers(tmp_path)
    shifts = iter(range(1, 1000))

    def replace() -> object:
        return save_sampler(folder, 0.01 * next(shifts), overwrite=True)

    replaced = 0
    for event in range(1, 200, stride):
        ended = run(killed_at(event, replace, tmp_path), log)
        next(shifts)
        whole()
        if ended.code == 0:
            break
        # A second attempt dies as well, later or earlier than the first.
        run(killed_at(1 + 7 * event % 11, replace, tmp_path), log)
        next(shifts)
        whole()
        replaced += 2
    assert replaced >= 4
    save_sampler(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "weights.safetensors"]
    tally(
        "kill -9 before each file-system call of an artifact save",
        points + replaced,
        points + replaced,
    )


@pytest.mark.parametrize(
    ("suffix", "stride"),
    [(".npz", 3), (".dcd", 12)]
    + [pytest.param(suffix, 1, marks=pytest.mark.slow) for suffix in export.FORMATS.names()],
)
def test_kill_at_every_point_of_an_export(
    suffix: str, stride: int, tmp_path: Path, samples: Samples, system: object, tally: Tally
) -> None:
    path = tmp_path / f"a{suffix}"
    old, new = samples[:10], samples[10:]
    sizes = set()
    # Libraries are loaded here, not by every child.
    old.save(tmp_path / f"b{suffix}", system=system)

    def found() -> None:
        if not path.exists():
            return
        if suffix == ".npz":
            sizes.add(len(export.load(path, system=system)))
        else:
            # The file is one of those that its sidecar describes: its hash holds.
            described = read_sidecar(path.with_suffix(".json"))
            assert described is not None
            record = check_file(path, described.records(path.name))
            sizes.add(record.frames)
            # And the log weights are those of its samples.
            expected = {10: old, 20: new}[record.frames].log_weights
            held = log_weights.read(path, record, record.frames)
            assert held is not None
            assert expected is not None
            assert torch.equal(held, expected)

    log = tmp_path / "log"
    points = every_point(
        lambda: old.save(path, system=system, overwrite=True), found, log, stride=stride
    )
    points += every_point(
        lambda: new.save(path, system=system, overwrite=True), found, log, stride=stride
    )
    assert sizes == {10, 20}
    loaded = export.load(path, system=system)
    assert torch.allclose(loaded.positions, new.positions, atol=2e-3)
    assert loaded.metadata["note"] == "as they were"
    assert not leftovers(tmp_path)
    assert not list(tmp_path.glob("*.next.npy"))
    tally(f"kill -9 before each file-system call of an export to {suffix}", points, points)


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_log_weights_survive_one_kill_after_another(
    stride: int, tmp_path: Path, samples: Samples, system: object, tally: Tally
) -> None:
    """Weighted and unweighted samples replace each other; every attempt but the last is killed."""
    path, log = tmp_path / "a.dcd", tmp_path / "log"
    plain = Samples(samples.positions, samples.energies, None, samples.metadata)
    sets = [samples[:5], samples[5:15], plain[:20], samples[2:12], plain[3:10]]
    sets[0].save(path, system=system)
    kills = 0
    for event in range(1, 40, stride):
        for turn in range(len(sets)):
            ended = run(
                killed_at(
                    1 + (event + 3 * turn) % 40,
                    lambda turn=turn: sets[turn].save(path, system=system, overwrite=True),
                    tmp_path,
                ),
                log,
            )
            kills += ended.code == -signal.SIGKILL
            loaded = export.load(path, system=system)
            (whole,) = [
                one
                for one in sets
                if torch.allclose(one.positions[0], loaded.positions[0], atol=1e-5)
                and len(one) == len(loaded)
            ]
            assert (whole.log_weights is None) is (loaded.log_weights is None)
            if whole.log_weights is not None and loaded.log_weights is not None:
                assert torch.equal(whole.log_weights, loaded.log_weights)
    assert kills > 10
    sets[0].save(path, system=system, overwrite=True)
    names = {entry.name for entry in tmp_path.iterdir()} - {"log"}
    assert names == {"a.dcd", "a.json", "a.pdb", "a.dcd.log_weights.npy"}
    sets[2].save(path, system=system, overwrite=True)
    assert not (tmp_path / "a.dcd.log_weights.npy").exists()
    tally("kill -9 of exports with log weights, one after another", kills, kills)


def test_killed_sampling_starts_again_and_gives_the_same_file(
    tmp_path: Path, save_sampler: Callable[..., Sampler], tally: Tally
) -> None:
    sampler = save_sampler(tmp_path / "toy")
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    sampler.sample_to_file(whole, 20_000, seed=3, batch_size=512)
    log = tmp_path / "log"
    for samples_done in (1, 5_000, 20_000):

        def dying(done: int, stop: int = samples_done) -> None:
            if done >= stop:
                os.kill(os.getpid(), signal.SIGKILL)

        def work(dying: Callable[[int], None] = dying) -> None:
            sampler.sample_to_file(parts, 20_000, seed=3, batch_size=512, progress=dying)

        assert run(work, log).code == -signal.SIGKILL
        assert not parts.exists()
        # At most what the last of them left; it may be large.
        assert len(leftovers(tmp_path)) == 1
    sampler.sample_to_file(parts, 20_000, seed=3, batch_size=512)
    assert parts.read_bytes() == whole.read_bytes()
    assert not leftovers(tmp_path)
    tally("kill -9 while sampling to a file", 3, 3)


def test_leftovers_of_the_living_are_left_alone(tmp_path: Path) -> None:
    """A negative control: what a running process writes is not taken for rubbish."""
    path, log = tmp_path / "a.bin", tmp_path / "log"

    def write_slowly() -> None:
        from molsampler.storage.files import atomic_path

        with atomic_path(path) as temporary:
            temporary.write_bytes(b"slow")
            print("there", flush=True)
            time.sleep(1.0)

    pid = start(write_slowly, log)
    while not log.exists() or "there" not in log.read_text():
        time.sleep(0.01)
    write_bytes(path, b"fast")
    assert wait(pid, log).code == 0
    assert path.read_bytes() == b"slow"
