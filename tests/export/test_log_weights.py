"""Log weights come back from every format, or their loss is said."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_formats import Text, Whole
from toy_systems import Cluster

from molsampler import export
from molsampler.errors import (
    FileFormatError,
    IntegrityError,
    NonFiniteError,
    OutputExistsError,
    ShapeError,
    StorageError,
)
from molsampler.export import log_weights, npz
from molsampler.samples import Samples

SYSTEM = Cluster()
TRAJECTORIES = (".h5", ".dcd", ".xtc", ".pdb", ".toy")


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    for form in (Text(), Whole()):
        export.register_format(form)
    yield
    for form in (Text, Whole):
        export.FORMATS.unregister(form.suffix)


@pytest.fixture(scope="module")
def samples() -> Samples:
    numbers = torch.linspace(-800, 800, 30, dtype=torch.float64)
    numbers[4] = -math.inf
    return Samples.of(SYSTEM, SYSTEM.grid(30), log_weights=numbers)


def same(found: Samples, expected: Samples) -> bool:
    a, b = found.log_weights, expected.log_weights
    return a is not None and b is not None and torch.equal(a, b)


def beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.log_weights.npy")


@pytest.mark.parametrize("suffix", [*export.FORMATS.names(), ".toy", ".whole"])
def test_round_trip_of_every_format_streamed_and_whole(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    assert same(export.load(path, system=SYSTEM), samples)
    assert beside(path).exists() is not export.FORMATS[suffix].complete
    if suffix != ".whole":
        assert export.describe(path)["ess"] == pytest.approx(samples.ess)
    export.save_blocks(
        (samples[k : k + 7] for k in range(0, 30, 7)),
        tmp_path / f"b{suffix}",
        count=30,
        system=SYSTEM,
        metadata=lambda: samples.metadata,
    )
    assert same(export.load(tmp_path / f"b{suffix}", system=SYSTEM), samples)
    for other in (".npz", ".dcd"):
        export.convert(path, tmp_path / f"c{other}", system=SYSTEM, overwrite=True)
        assert same(export.load(tmp_path / f"c{other}", system=SYSTEM), samples)


def test_the_file_beside_is_plain_numpy(samples: Samples, tmp_path: Path) -> None:
    samples.save(tmp_path / "a.xtc", system=SYSTEM)
    held = np.load(tmp_path / "a.xtc.log_weights.npy", allow_pickle=False)
    assert samples.log_weights is not None
    assert np.array_equal(held, samples.log_weights.numpy())
    assert not list(tmp_path.glob("*.next.npy"))


@pytest.mark.parametrize("suffix", TRAJECTORIES)
def test_weights_flipped_removed_or_of_another_length_are_named(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    content = beside(path).read_bytes()
    flipped = bytearray(content)
    flipped[-3] ^= 1

    def refused(match: str) -> None:
        with pytest.raises(IntegrityError, match=rf"a\{suffix}\.log_weights\.npy {match}"):
            export.load(path, system=SYSTEM)
        report = export.describe(path)
        assert report["intact"] is False
        assert "log_weights.npy" in report["problem"]

    beside(path).write_bytes(bytes(flipped))
    refused(r"does not match a\.json: its SHA-256")
    np.save(beside(path), np.zeros(29))
    refused(r"does not match a\.json: it has 360 bytes")
    beside(path).unlink()
    refused("is missing")
    beside(path).write_bytes(content)
    assert same(export.load(path, system=SYSTEM), samples)


def test_weights_without_a_sidecar_must_fit(
    samples: Samples, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.dcd"
    samples.save(path, system=SYSTEM)
    (tmp_path / "a.json").unlink()
    assert same(export.load(path, system=SYSTEM), samples)
    assert "nothing records" in caplog.text
    wrong = np.zeros(30)
    wrong[3] = np.nan
    huge = np.lib.format.header_data_from_array_1_0(np.zeros(30))
    for content, match in (
        (np.zeros(29), "30 numbers"),
        (np.zeros(30, dtype="f4"), "float32"),
        (np.zeros(10**6), "at most"),
        (wrong, "NaN"),
        (np.full(30, np.inf), r"\+inf"),
        (np.array([{}] * 30, dtype=object), "no file of log weights"),
    ):
        np.save(beside(path), content, allow_pickle=True)
        with pytest.raises(FileFormatError, match=match):
            export.load(path, system=SYSTEM)
    with open(beside(path), "wb") as file:
        np.lib.format.write_array_header_1_0(file, {**huge, "shape": (10**12,)})
    with pytest.raises(FileFormatError, match="30 numbers"):
        export.load(path, system=SYSTEM)
    beside(path).write_bytes(b"PK\x03\x04")
    with pytest.raises(FileFormatError, match="no file of log weights"):
        export.load(path, system=SYSTEM)


def test_unweighted_samples_take_the_weights_of_others_away(
    samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / "a.dcd"
    samples.save(path, system=SYSTEM)
    plain = Samples(samples.positions, samples.energies, None, samples.metadata)
    plain.save(path, system=SYSTEM, overwrite=True)
    assert not beside(path).exists()
    assert export.load(path, system=SYSTEM).log_weights is None
    # The same frames once more with weights: data of one hash, two records.
    samples.save(path, system=SYSTEM, overwrite=True)
    assert same(export.load(path, system=SYSTEM), samples)


def test_a_file_in_the_place_of_the_weights_is_kept(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "a.dcd"
    beside(path).write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        samples.save(path, system=SYSTEM)
    assert [entry.name for entry in tmp_path.iterdir()] == [beside(path).name]
    samples.save(path, system=SYSTEM, overwrite=True)
    assert same(export.load(path, system=SYSTEM), samples)
    beside(path).unlink()
    beside(path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputExistsError, match="link"):
        samples.save(path, system=SYSTEM, overwrite=True)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("suffix", [".npz", ".dcd"])
def test_blocks_agree_on_whether_they_have_weights(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    plain = Samples(samples.positions, samples.energies, None, samples.metadata)
    for blocks in ([samples, plain], [plain, samples]):
        with pytest.raises(ShapeError, match="some have none"):
            export.save_blocks(
                blocks, tmp_path / f"a{suffix}", count=60, system=SYSTEM, metadata=dict
            )
    assert not any(tmp_path.iterdir())


def test_npz_with_weights_that_are_no_logarithms_is_refused(
    samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    x = samples.positions.numpy()
    np.savez(path, positions=x, weights=np.ones(30))
    with pytest.raises(FileFormatError, match="'log_weights'"):
        export.load(path, system=SYSTEM)
    np.savez(path, positions=x, log_weights=np.full(30, np.nan))
    with pytest.raises(FileFormatError, match="log_weights hold NaN") as caught:
        export.load(path, system=SYSTEM)
    assert not isinstance(caught.value, NonFiniteError)
    np.savez(path, positions=x, log_weights=np.zeros(3))
    with pytest.raises(FileFormatError, match="log_weights of shape"):
        export.load(path, system=SYSTEM)


@pytest.mark.parametrize("suffix", [".npz", ".dcd"])
def test_numbers_that_change_on_their_way_are_noticed_by_reading_back(
    suffix: str, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that stores another byte than the one it was given, in the log weights alone."""
    samples.save(tmp_path / f"a{suffix}", system=SYSTEM)
    before = (tmp_path / f"a{suffix}").read_bytes()
    module, name = {".npz": (npz, "_verify"), ".dcd": (log_weights, "sha256")}[suffix]
    real = getattr(module, name)
    assert samples.log_weights is not None
    number = samples.log_weights.numpy()[-2:].tobytes()

    def after_damage(path: Path, *rest: object) -> object:
        content = path.read_bytes()
        assert content.count(number) == 1
        path.write_bytes(content.replace(number, number[:-1] + b"\0"))
        return real(path, *rest)

    monkeypatch.setattr(module, name, after_damage)
    with pytest.raises(StorageError, match=r"cannot write .*(CRC|read back)"):
        samples[:30].with_metadata(note="x").save(
            tmp_path / f"a{suffix}", system=SYSTEM, overwrite=True
        )
    assert (tmp_path / f"a{suffix}").read_bytes() == before
    assert not list(tmp_path.glob("*.next.npy"))
    monkeypatch.undo()
    assert same(export.load(tmp_path / f"a{suffix}", system=SYSTEM), samples)
