"""Sample files: other packages read them, and no fault passes unnoticed."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_systems import Cluster

from molsampler import export
from molsampler.errors import (
    FileFormatError,
    InputError,
    IntegrityError,
    MolsamplerError,
    NonFiniteError,
    OutputExistsError,
    ShapeError,
    StorageError,
)
from molsampler.export.trajectory import Trajectory
from molsampler.samples import Samples
from molsampler.storage.sealed_json import sealed
from molsampler.systems import get_system

TRAJECTORIES = (".h5", ".dcd", ".xtc", ".pdb")
ALL = (".npz", *TRAJECTORIES)

#: Largest error of a coordinate in nm, beyond one rounding to float32.
PRECISION_NM = {".npz": 0.0, ".h5": 0.0, ".dcd": 0.0, ".xtc": 5e-4, ".pdb": 5e-5}

SYSTEM = Cluster()


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Samples.of(SYSTEM, SYSTEM.grid(60), seed=3, refine=0)


def allowed_nm(suffix: str, xyz: Any) -> Any:
    return PRECISION_NM[suffix] * 1.001 + 2**-22 * np.abs(xyz)


def energy_bound(samples: Samples, suffix: str) -> torch.Tensor:
    """First-order bound |force|_1 times the coordinate error, doubled for curvature."""
    _, score = SYSTEM.energy_and_score(samples.positions.double())
    error = (
        PRECISION_NM[suffix] / SYSTEM.length_nm + 2**-21 * samples.positions.abs().double() + 1e-9
    )
    return 2 * (score.abs() * error).flatten(1).sum(-1) + 300 * 13 * error.amax() ** 2 * 9


@pytest.mark.parametrize("suffix", ALL)
def test_round_trip_keeps_positions_energies_and_provenance(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    loaded = export.load(path, system=SYSTEM)
    before, after = (s.positions.numpy() * SYSTEM.length_nm for s in (samples, loaded))
    assert np.all(np.abs(after - before) <= allowed_nm(suffix, before) + 1e-7)
    assert bool(((loaded.energies - samples.energies).abs() <= energy_bound(samples, suffix)).all())
    assert loaded.metadata.items() >= samples.metadata.items()
    if suffix == ".npz":
        assert torch.equal(loaded.positions, samples.positions)
        assert torch.equal(loaded.energies, samples.energies)


@pytest.mark.parametrize("suffix", TRAJECTORIES)
def test_mdtraj_reads_it(suffix: str, samples: Samples, tmp_path: Path) -> None:
    import mdtraj

    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    read = mdtraj.load(
        str(path), **({} if suffix in (".h5", ".pdb") else {"top": tmp_path / "a.pdb"})
    )
    expected = samples.positions.double().numpy() * SYSTEM.length_nm
    assert read.xyz.shape == expected.shape
    assert np.all(np.abs(read.xyz - expected) <= allowed_nm(suffix, expected) + 1e-7)
    assert {atom.element.symbol for atom in read.topology.atoms} == {"Ar"}
    assert np.allclose(samples.to_mdtraj(system=SYSTEM).xyz, expected, atol=1e-6)
    energies = SYSTEM.energy(torch.from_numpy(read.xyz / SYSTEM.length_nm).double())
    assert bool(((energies - samples.energies).abs() <= energy_bound(samples, suffix)).all())


# MDTraj's HDF5 convention is its own; MDAnalysis has no reader for it.
@pytest.mark.parametrize("suffix", [".dcd", ".xtc", ".pdb"])
def test_mdanalysis_reads_it(suffix: str, samples: Samples, tmp_path: Path) -> None:
    import MDAnalysis

    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    universe = MDAnalysis.Universe(str(tmp_path / "a.pdb"), str(path))
    frames = np.stack([step.positions.copy() for step in universe.trajectory]) / 10
    expected = samples.positions.double().numpy() * SYSTEM.length_nm
    assert frames.shape == expected.shape
    assert np.all(np.abs(frames - expected) <= allowed_nm(suffix, expected) + 1e-7)
    universe.trajectory.close()


def test_rounding_is_what_the_energies_see(samples: Samples, tmp_path: Path) -> None:
    errors = {}
    for suffix in (".dcd", ".xtc"):
        samples.save(tmp_path / f"a{suffix}", system=SYSTEM)
        read = export.load(tmp_path / f"a{suffix}", system=SYSTEM)
        errors[suffix] = float((read.energies - samples.energies).abs().max())
    assert errors[".dcd"] < 1e-3 < 1e-2 < errors[".xtc"]


@pytest.mark.parametrize("suffix", TRAJECTORIES)
def test_planar_system_lies_at_zero_height(suffix: str, tmp_path: Path) -> None:
    import mdtraj

    flat = Cluster(4, 2, "toy-flat")
    samples = Samples.of(flat, flat.grid(5))
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=flat)
    frames = mdtraj.load(
        str(path), **({} if suffix in (".h5", ".pdb") else {"top": tmp_path / "a.pdb"})
    )
    assert np.all(frames.xyz[..., 2] == 0)
    read = export.load(path, system=flat)
    assert torch.allclose(read.positions, samples.positions, atol=2e-3)
    # The same file in which one particle has left the plane is refused.
    Samples.of(Cluster(4), Cluster(4).grid(5)).save(tmp_path / f"b{suffix}", system=Cluster(4))
    (tmp_path / "b.json").unlink()
    with pytest.raises(FileFormatError, match="2-dimensional"):
        export.load(tmp_path / f"b{suffix}", system=flat)


def test_formats_of_one_stem_share_sidecar_and_topology(samples: Samples, tmp_path: Path) -> None:
    for suffix in TRAJECTORIES:
        samples.save(tmp_path / f"a{suffix}", system=SYSTEM, overwrite=suffix == ".pdb")
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert set(sidecar["files"]) == {f"a{suffix}" for suffix in TRAJECTORIES}
    assert sidecar["pending"] == {}
    record = sidecar["files"]["a.xtc"]
    assert record["frames"] == len(samples)
    assert record["precision_nm"] == 1e-3
    assert record["length_nm"] == SYSTEM.length_nm
    assert record["provenance"] == samples.metadata
    assert record["energies"]["mean"] == pytest.approx(float(samples.energies.mean()))
    assert record["energies"]["standard_deviation"] == pytest.approx(float(samples.energies.std()))
    for suffix in TRAJECTORIES:
        report = export.describe(tmp_path / f"a{suffix}")
        assert report["intact"] is True
        assert report["frames"] == len(samples)
    assert [entry.name for entry in tmp_path.iterdir() if "tmp" in entry.name] == []
    samples.save(tmp_path / "b.dcd", system=SYSTEM)
    assert export.describe(tmp_path / "b.pdb")["intact"] is True
    (tmp_path / "b.pdb").write_bytes((tmp_path / "a.pdb").read_bytes())
    assert export.describe(tmp_path / "b.pdb")["intact"] is False


@pytest.mark.parametrize("name", ["dw4", "lj13"])
def test_convert_keeps_provenance_and_marks_rounding(name: str, tmp_path: Path) -> None:
    known = get_system(name)
    x = Cluster(*known.shape).grid(20)
    Samples.of(name, x, seed=3).save(tmp_path / "a.npz")
    loaded = export.load(tmp_path / "a.npz")
    assert loaded.metadata == {"system": name, "seed": 3}
    assert torch.equal(loaded.energies, known.energy(x.double()))
    for source, destination in (("a.npz", "b.dcd"), ("b.dcd", "c.npz"), ("a.npz", "d.xtc")):
        export.convert(tmp_path / source, tmp_path / destination)
    again = export.load(tmp_path / "c.npz")
    assert again.metadata == loaded.metadata
    assert torch.allclose(again.positions, loaded.positions, atol=1e-6)
    rounded = export.load(tmp_path / "d.xtc")
    shift = float(rounded.energies.mean() - loaded.energies.mean())
    of = {"precision_nm": 1e-3, "energy_shift": pytest.approx(shift, abs=1e-9)}
    assert rounded.metadata == {**loaded.metadata, **of}


def test_flat_density_without_particles_has_no_trajectory(tmp_path: Path) -> None:
    wells = Samples.of("mw32", torch.zeros(2, 1, 32))
    wells.save(tmp_path / "a.npz")
    with pytest.raises(InputError, match="mw32"):
        wells.save(tmp_path / "a.dcd")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]


def test_rounding_formats_warn_on_the_log(
    samples: Samples, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="molsampler"):
        samples.save(tmp_path / "a.dcd", system=SYSTEM)
        export.load(tmp_path / "a.dcd", system=SYSTEM)
        assert not caplog.records
        samples.save(tmp_path / "a.xtc", system=SYSTEM)
        assert "0.001 nm only" in caplog.text
        caplog.clear()
        export.load(tmp_path / "a.xtc", system=SYSTEM)
        assert "approximate" in caplog.text


# Faults 13 to 18 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ALL)
def test_not_finite_is_refused_before_writing(suffix: str, tmp_path: Path) -> None:
    positions = SYSTEM.grid(3)
    positions[1, 2, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="sample 1"):
        Samples(positions, torch.zeros(3, dtype=torch.float64)).save(tmp_path / f"a{suffix}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ALL)
def test_zero_frames_are_refused(suffix: str, samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 samples"):
        samples[:0].save(tmp_path / f"a{suffix}", system=SYSTEM)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", TRAJECTORIES)
def test_topology_that_does_not_match_is_refused_with_both_counts(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    with pytest.raises(ShapeError, match=r"13.*12 particles"):
        samples.save(tmp_path / f"a{suffix}", system=Cluster(12))
    assert not any(tmp_path.iterdir())
    samples.save(tmp_path / f"a{suffix}", system=SYSTEM)
    with pytest.raises(ShapeError, match=r"13 atoms.*12 particles"):
        export.load(tmp_path / f"a{suffix}", system=Cluster(12))


@pytest.mark.parametrize("suffix", ALL)
def test_existing_output_needs_overwrite(suffix: str, samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"precious")
    if suffix == ".pdb":
        path.write_text("REMARK precious\n")
    content = path.read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        samples.save(path, system=SYSTEM)
    assert path.read_bytes() == content
    samples.save(path, system=SYSTEM, overwrite=True)
    assert len(export.load(path, system=SYSTEM)) == len(samples)


@pytest.mark.parametrize("suffix", ALL)
def test_link_and_folder_are_refused(suffix: str, samples: Samples, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / f"a{suffix}").symlink_to(target)
    (tmp_path / f"b{suffix}").mkdir()
    for stem in "ab":
        with pytest.raises(OutputExistsError, match="regular"):
            samples.save(tmp_path / f"{stem}{suffix}", system=SYSTEM, overwrite=True)
    assert target.read_bytes() == b"precious"


def test_files_that_are_not_ours_are_not_replaced(samples: Samples, tmp_path: Path) -> None:
    metrics = tmp_path / "a.json"
    metrics.write_text('{"tvd": 0.1}')
    with pytest.raises(OutputExistsError, match="not a sidecar"):
        samples.save(tmp_path / "a.xtc", system=SYSTEM, overwrite=True)
    assert metrics.read_text() == '{"tvd": 0.1}'
    protein = tmp_path / "b.pdb"
    protein.write_text("ATOM      1  N   ALA A   1      11.1  \nEND\n")
    with pytest.raises(OutputExistsError, match=r"1 atoms.*13 particles"):
        samples.save(tmp_path / "b.xtc", system=SYSTEM, overwrite=True)
    assert "ALA" in protein.read_text()
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.json", "b.pdb"}


def test_another_system_replaces_its_own_topology_only(samples: Samples, tmp_path: Path) -> None:
    small = Cluster(7)
    few = Samples.of(small, small.grid(4))
    samples.save(tmp_path / "a.dcd", system=SYSTEM)
    few.save(tmp_path / "a.dcd", system=small, overwrite=True)
    assert json.loads((tmp_path / "a.json").read_text())["topology"]["atoms"] == 7
    few.save(tmp_path / "a.xtc", system=small)
    with pytest.raises(OutputExistsError, match=r"7 atoms.*13 particles"):
        samples.save(tmp_path / "a.dcd", system=SYSTEM, overwrite=True)


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from molsampler.samples import Samples
from molsampler.systems import get_system
from molsampler import export
from toy_systems import Cluster
import mdtraj
system = Cluster()
samples = Samples.of(system, system.grid(4000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
for path in sys.argv[3:]:
    for once in (False, True):
        parts = [samples[i : i + 500] for i in range(0, 4000, 500)]
        try:
            export.save_blocks(iter(parts) if once else parts, path, count=4000, system=system,
                               metadata=dict, overwrite=True)
            print("written")
        except OSError as error:
            print(type(error).__name__, error)
"""


def save_with_limit(limit: int, *paths: Path) -> list[str]:
    """What a child says that may write files of ``limit`` bytes: two lines a path."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL, Path(__file__).parents[1], str(limit), *paths],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_full_disk_is_named_and_keeps_the_old_file(samples: Samples, tmp_path: Path) -> None:
    paths = [tmp_path / f"{suffix[1:]}{suffix}" for suffix in ALL]
    for path in paths:
        samples.save(path, system=SYSTEM)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    said = save_with_limit(100_000, *paths)
    for index, path in enumerate(paths):
        for line in said[2 * index : 2 * index + 2]:
            assert line.startswith(f"StorageError no space left to write {path}"), line
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before
    for path in paths:
        assert len(export.load(path, system=SYSTEM)) == len(samples)


def test_full_disk_test_writes_with_room(tmp_path: Path) -> None:
    assert save_with_limit(10**9, tmp_path / "a.dcd") == ["written", "written"]


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("suffix", TRAJECTORIES)
def test_flip_and_truncation_are_seen_against_the_sidecar(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    content = path.read_bytes()
    random_bits = random.Random(0)
    damages = [flipped(content, random_bits.randrange(8 * len(content))) for _ in range(10)]
    for damaged in (*damages, content[: len(content) // 2], content[:-1], content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=f"a{suffix} does not match its sidecar a.json"):
            export.load(path, system=SYSTEM)
        report = export.describe(path)
        assert report["intact"] is False
        assert "does not match" in report["problem"]
    path.write_bytes(content)
    assert export.describe(path)["intact"] is True


@pytest.mark.parametrize("suffix", ALL)
def test_truncation_is_seen_without_a_sidecar(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=SYSTEM)
    (tmp_path / "a.json").unlink(missing_ok=True)
    content = path.read_bytes()
    assert len(export.load(path, system=SYSTEM)) == len(samples)
    cuts = [0, 3, 60, len(content) // 3, len(content) // 2, len(content) - 5]
    for cut in cuts:
        path.write_bytes(content[:cut])
        with pytest.raises(FileFormatError, match=f"a{suffix}"):
            export.load(path, system=SYSTEM)


def test_dcd_cut_between_frames_is_seen_without_a_sidecar(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "a.dcd"
    samples.save(path, system=SYSTEM)
    (tmp_path / "a.json").unlink()
    frame = 3 * (4 * 13 + 8)
    path.write_bytes(path.read_bytes()[: -30 * frame])
    with pytest.raises(FileFormatError, match=r"announces 60 frames, its length holds 30"):
        export.load(path, system=SYSTEM)


def test_npz_flip_is_seen_or_harmless(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    samples[:4].save(path)
    content = path.read_bytes()
    chosen = random.Random(1)
    seen = harmless = 0
    for bit in chosen.sample(range(8 * len(content)), 600):
        path.write_bytes(flipped(content, bit))
        try:
            loaded = export.load(path, system=SYSTEM)
        except FileFormatError as error:
            seen += "a.npz" in str(error)
            continue
        assert torch.equal(loaded.positions, samples.positions[:4])
        harmless += 1
    assert seen + harmless == 600
    assert seen > 300


def test_kill_between_renames_leaves_a_file_that_loads(samples: Samples, tmp_path: Path) -> None:
    """Before and after the data file's rename its sidecar knows what is there."""
    path, beside = tmp_path / "a.dcd", tmp_path / "a.json"
    samples.save(path, system=SYSTEM)
    old_data, old = path.read_bytes(), json.loads(beside.read_text())
    samples[:20].save(path, system=SYSTEM, overwrite=True)
    new_data, new = path.read_bytes(), json.loads(beside.read_text())
    between = {**old, "pending": new["files"]}
    beside.write_bytes(sealed(json.dumps(between)))
    for data, count in ((old_data, 60), (new_data, 20)):
        path.write_bytes(data)
        assert len(export.load(path, system=SYSTEM)) == count


def test_damaged_sidecar_is_named(samples: Samples, tmp_path: Path) -> None:
    path, beside = tmp_path / "a.dcd", tmp_path / "a.json"
    samples.save(path, system=SYSTEM)
    content = json.loads(beside.read_text())
    for change in ({"molsampler_sidecar": 2}, {"files": 3}, {"surprise": 1}):
        beside.write_bytes(sealed(json.dumps({**content, **change})))
        with pytest.raises(FileFormatError, match=r"a\.json"):
            export.load(path, system=SYSTEM)
    beside.write_text(json.dumps({**content, "molsampler_sidecar": 1, "pending": {"b": 1}}))
    with pytest.raises(IntegrityError, match=r"a\.json is damaged or was edited"):
        export.load(path, system=SYSTEM)
    beside.write_text("{")
    with pytest.raises(FileFormatError, match=r"a\.json is not valid JSON"):
        export.load(path, system=SYSTEM)


def test_file_must_not_send_its_reader_to_other_files(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for reference in ("../secret.yaml", "/etc/hosts.yml"):
        samples.with_metadata(system=reference).save(path, overwrite=True)
        with pytest.raises(FileFormatError, match="plain name"):
            export.load(path).system()


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


def test_npz_tricks_are_refused(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"

    def refused(match: str) -> None:
        with pytest.raises(FileFormatError, match=match):
            export.load(path, system=SYSTEM)

    np.savez(path, positions=np.array([Payload()], dtype=object))
    refused("pickle")
    np.savez(path, energies=np.zeros(3))
    refused("'positions'")
    np.savez(path, positions=samples.positions.numpy(), energies=np.zeros(3))
    refused("energies of shape")
    np.savez(path, positions=samples.positions.numpy().astype(complex))
    refused("dtype")
    # A header that announces more than the member holds: nothing is allocated.
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 13, 3)}"
    header += b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "positions.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        )
    refused("announces an array of 1560000000000 bytes")
    # Zeros compress a thousandfold; samples do not.
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("positions.npy", "w") as member,
    ):
        for _ in range(64):
            member.write(bytes(2**20))
    refused("claims to expand")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("positions.npy", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("positions.npy", b"2")
    refused("twice")
    path.write_bytes(b"\x80\x04.")
    refused("not an .npz file")


def test_npz_of_other_origin(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, positions=samples.positions.numpy().astype(np.float64))
    loaded = export.load(path, system=SYSTEM)
    assert torch.equal(loaded.positions, samples.positions)
    assert torch.equal(loaded.energies, samples.energies)
    with pytest.raises(InputError, match="system="):
        export.load(path)
    with np.load(path, allow_pickle=False) as plain:
        assert set(plain) == {"positions"}


def test_npz_is_plain_numpy(samples: Samples, tmp_path: Path) -> None:
    weighted = Samples(
        samples.positions, samples.energies, torch.rand(60, dtype=torch.float64), samples.metadata
    )
    weighted.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        assert plain["positions"].dtype == np.float32
        assert plain["energies"].dtype == np.float64
        assert json.loads(str(plain["metadata"])) == samples.metadata
    loaded = export.load(tmp_path / "a.npz")
    assert weighted.log_weights is not None
    assert loaded.log_weights is not None
    assert torch.equal(loaded.log_weights, weighted.log_weights)
    # Equal samples make equal files.
    weighted.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("suffix", ALL)
def test_blocks_make_the_same_file_as_one_piece(
    suffix: str, samples: Samples, tmp_path: Path
) -> None:
    samples.save(tmp_path / f"a{suffix}", system=SYSTEM)
    done: list[int] = []

    def blocks() -> Any:
        for start in range(0, 60, 25):
            yield samples[start : start + 25]
            done.append(start)

    export.save_blocks(
        blocks(),
        tmp_path / f"b{suffix}",
        count=60,
        system=SYSTEM,
        metadata=lambda: {**samples.metadata, "blocks": len(done)},
    )
    one, many = (export.load(tmp_path / f"{stem}{suffix}", system=SYSTEM) for stem in "ab")
    assert torch.equal(one.positions, many.positions)
    assert torch.equal(one.energies, many.energies)
    assert many.metadata["blocks"] == 3
    for count in (59, 61):
        with pytest.raises(InputError, match="announced"):
            export.save_blocks(
                [samples], tmp_path / f"c{suffix}", count=count, system=SYSTEM, metadata=dict
            )
    assert not (tmp_path / f"c{suffix}").exists()


@pytest.mark.parametrize("suffix", TRAJECTORIES)
def test_read_back_notices_a_writer_that_loses_precision(
    suffix: str, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = export.FORMATS[suffix]
    assert isinstance(form, Trajectory)
    real = form.writer

    @contextmanager
    def lossy(path: Path, topology: Any, count: int) -> Any:
        with real(path, topology, count) as append:
            yield lambda frames: append(frames + np.float32(2e-3))

    monkeypatch.setattr(form, "writer", lossy)
    with pytest.raises(StorageError, match="read back"):
        samples.save(tmp_path / f"a{suffix}", system=SYSTEM)
    assert not any(tmp_path.iterdir())


def test_pdb_refuses_what_its_columns_cannot_hold(tmp_path: Path) -> None:
    pair = Cluster(2)
    x = torch.zeros(2, 2, 3)
    x[:, 0, 0] = torch.tensor([1.0, 3100.0])
    far = Samples.of(pair, x)
    with pytest.raises(InputError, match=r"frame 1, atom 0 .* 10540"):
        far.save(tmp_path / "a.pdb", system=pair)
    distant = Samples.of(pair, x * 300)
    distant_system = Cluster(2)
    distant_system.length_nm = 10.0
    with pytest.raises(InputError, match="does not fit an XTC file"):
        distant.save(tmp_path / "a.xtc", system=distant_system)
    far.save(tmp_path / "a.dcd", system=pair)
    assert torch.allclose(export.load(tmp_path / "a.dcd", system=pair).positions, x)


def test_pdb_of_more_models_than_four_digits(tmp_path: Path) -> None:
    import MDAnalysis
    import mdtraj

    pair = Cluster(2)
    samples = Samples.of(pair, pair.grid(10_003))
    samples.save(tmp_path / "a.pdb", system=pair)
    assert len(export.load(tmp_path / "a.pdb", system=pair)) == 10_003
    assert mdtraj.load(str(tmp_path / "a.pdb")).n_frames == 10_003
    universe = MDAnalysis.Universe(str(tmp_path / "a.pdb"))
    assert len(universe.trajectory) == 10_003
    universe.trajectory.close()


@pytest.mark.parametrize("suffix", [".dcd", ".xtc"])
def test_files_of_mdtraj_are_read(suffix: str, samples: Samples, tmp_path: Path) -> None:
    samples.to_mdtraj(system=SYSTEM).save(str(tmp_path / f"a{suffix}"))
    loaded = export.load(tmp_path / f"a{suffix}", system=SYSTEM)
    assert torch.allclose(loaded.positions, samples.positions, atol=2e-3)
    assert loaded.metadata["system"] == SYSTEM.name
    assert export.describe(tmp_path / f"a{suffix}")["intact"] is None


def test_dcd_with_cells_is_read(samples: Samples, tmp_path: Path) -> None:
    trajectory = samples.to_mdtraj(system=SYSTEM)
    trajectory.unitcell_lengths = np.full((60, 3), 5.0)
    trajectory.unitcell_angles = np.full((60, 3), 90.0)
    trajectory.save(str(tmp_path / "a.dcd"))
    loaded = export.load(tmp_path / "a.dcd", system=SYSTEM)
    assert torch.allclose(loaded.positions, samples.positions, atol=1e-6)


def test_wrong_use_is_named(samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"suffix '.xtx'; expected one of .*did you mean '.xtc'"):
        samples.save(tmp_path / "a.xtx")
    with pytest.raises(FileFormatError, match="does not exist"):
        export.load(tmp_path / "missing.dcd", system=SYSTEM)
    with pytest.raises(MolsamplerError, match="toy-cluster"):
        samples.save(tmp_path / "a.dcd")
    samples.save(tmp_path / "a.dcd", system=SYSTEM)
    with pytest.raises(InputError, match="'toy-cluster', system= says 'other'"):
        export.load(tmp_path / "a.dcd", system=Cluster(name="other"))


def test_sample_shapes_are_checked(samples: Samples) -> None:
    energies = torch.zeros(3, dtype=torch.float64)
    for arguments, match in (
        ((torch.zeros(3, 13), energies), "positions must have shape"),
        ((torch.zeros(4, 13, 3), energies), "energies must have shape"),
        ((torch.zeros(3, 13, 3).double(), energies), "float32"),
        ((torch.zeros(3, 13, 3), energies, energies + torch.inf), "log_weights hold NaN or \\+inf"),
        ((torch.zeros(3, 13, 3), energies, energies * torch.nan), r"sample 0 \(nan\)"),
        ((torch.zeros(3, 13, 3), energies, energies[:2]), "log_weights must have shape"),
        ((torch.zeros(3, 13, 3), energies, None, {"a": object()}), "JSON"),
    ):
        with pytest.raises(InputError, match=match):
            Samples(*arguments)  # type: ignore[arg-type]
    assert len(samples[10:20]) == 10
    assert torch.equal(samples[torch.tensor([5, 1])].energies, samples.energies[[5, 1]])
