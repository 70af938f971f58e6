"""The contract of every registered format, two from outside the package among them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_formats import Text, Whole
from toy_systems import Cluster

from molsampler import export
from molsampler.errors import FileFormatError, InputError, OutputExistsError
from molsampler.samples import Samples

SYSTEM = Cluster()
SUFFIXES = (*export.FORMATS.names(), ".toy", ".whole")


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    for form in (Text(), Whole()):
        export.register_format(form)
    yield
    for form in (Text, Whole):
        export.FORMATS.unregister(form.suffix)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Samples.of(SYSTEM, SYSTEM.grid(30), seed=3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_format_says_what_it_is(suffix: str) -> None:
    form = export.FORMATS[suffix]
    assert form.suffix == suffix
    assert form.description
    assert form.precision_nm >= 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_samples_come_back_within_the_precision(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    form = export.FORMATS[suffix]
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    loaded = export.load(path, system=SYSTEM)
    before, after = (s.positions.double() * SYSTEM.length_nm for s in (samples, loaded))
    allowed = form.precision_nm / 2 * 1.001 + 2**-21 * before.abs()
    assert bool(((after - before).abs() <= allowed).all())
    assert loaded.metadata.items() >= samples.metadata.items()
    if form.complete:
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
        assert torch.equal(loaded.energies, samples.energies)
    report = export.describe(path)
    assert report["format"] == suffix[1:]
    assert report["frames"] == len(samples)
    assert report["particles"] == 13
    assert report["provenance"]["seed"] == 3
    assert report["intact"] is not False
    assert report["problem"] is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_old_content_is_kept_without_overwrite(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError):
        samples[:3].save(path, system=SYSTEM)
    assert path.read_bytes() == before
    samples[:3].save(path, system=SYSTEM, overwrite=True)
    assert len(export.load(path, system=SYSTEM)) == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_a_named_error(suffix: str, samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(FileFormatError, match=f"a{suffix}"):
        export.load(path, system=SYSTEM)
    assert export.describe(path)["intact"] is False


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("source", [".npz", ".toy"])
def test_every_pair_is_converted(
    source: str, suffix: str, samples: Samples, tmp_path: Path
) -> None:
    samples.save(tmp_path / f"a{source}", system=SYSTEM)
    export.convert(tmp_path / f"a{source}", tmp_path / f"b{suffix}", system=SYSTEM)
    loaded = export.load(tmp_path / f"b{suffix}", system=SYSTEM)
    assert torch.allclose(loaded.positions, samples.positions, atol=5e-3)
    assert loaded.metadata["seed"] == 3


def test_a_trajectory_from_outside_has_topology_sidecar_and_read_back(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.save(tmp_path / "a.toy", system=SYSTEM)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.toy", "a.json", "a.pdb"}
    content = (tmp_path / "a.toy").read_text()
    assert export.describe(tmp_path / "a.toy")["intact"] is True
    digit = content.index("0.0") + 2
    (tmp_path / "a.toy").write_text(f"{content[:digit]}1{content[digit + 1 :]}")
    with pytest.raises(FileFormatError, match="does not match its sidecar"):
        export.load(tmp_path / "a.toy", system=SYSTEM)
    # A writer that loses more than it says is found out.
    monkeypatch.setattr(Text, "precision_nm", 1e-7)
    with pytest.raises(OSError, match="read back"):
        samples.save(tmp_path / "b.toy", system=SYSTEM)
    assert not (tmp_path / "b.toy").exists()


def test_registration_refuses_what_could_not_work() -> None:
    with pytest.raises(InputError, match="already"):
        export.register_format(Text())
    for suffix in ("toy", ".a/b", ".", ".json"):
        form = Whole()
        form.suffix = suffix
        with pytest.raises(InputError, match="suffix"):
            export.register_format(form)

    class Half:
        suffix = ".half"
        description = "no way to read it"

    with pytest.raises(InputError, match=r"precision_nm.*load"):
        export.register_format(Half())  # type: ignore[arg-type]


def test_unknown_suffix_names_those_from_outside(samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.toy.*did you mean '\.toy'"):
        samples.save(tmp_path / "a.toi", system=SYSTEM)


def test_pieces_of_any_size_are_compared(tmp_path: Path) -> None:
    """More frames than are compared at once, from a format that gives them one by one."""
    pair = Cluster(2)
    many = Samples.of(pair, pair.grid(5000))
    many.save(tmp_path / "a.toy", system=pair)
    loaded = export.load(tmp_path / "a.toy", system=pair)
    assert np.abs(loaded.positions.numpy() - many.positions.numpy()).max() < 1e-3
