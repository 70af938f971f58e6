"""Parts of a run of sampling make the file of the whole, and nothing else does."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from molsampler import Sampler, Samples
from molsampler.cli import main
from molsampler.errors import FileFormatError, InputError, MolsamplerError, OutputExistsError
from molsampler.export import load, parts
from molsampler.sampler import stream
from molsampler.sampler.tally import DRIFT_SAMPLES

#: A run whose last block is cut: four blocks of 1,024.
N = 3500
CUTS = (slice(None, 1), slice(1, 3), slice(3, None))


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler.load("mog40")


def written(sampler: Sampler, folder: Path, *, refine: int = 2) -> list[Path]:
    paths = [folder / f"part-{index}.npz" for index in range(len(CUTS))]
    for path, blocks in zip(paths, CUTS, strict=True):
        sampler.sample_to_file(path, N, seed=7, refine=refine, device="cpu", blocks=blocks)
    return paths


@pytest.fixture(scope="module")
def made(sampler: Sampler, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return written(sampler, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def whole(sampler: Sampler) -> Samples:
    return sampler.sample(N, seed=7, refine=2, device="cpu")


@pytest.fixture
def paths(made: list[Path], tmp_path: Path) -> list[Path]:
    """The parts of the run, to be spoilt."""
    return [Path(shutil.copy(path, tmp_path)) for path in made]


@pytest.mark.parametrize(("name", "refine"), [("mog40", 2), ("mog40-exact", 0)])
def test_merged_parts_are_the_file_of_one_run_to_the_last_byte(
    name: str, refine: int, tmp_path: Path
) -> None:
    sampler = Sampler.load(name)
    whole = tmp_path / "whole.npz"
    said = sampler.sample_to_file(whole, N, seed=7, refine=refine, device="cpu")
    first, second, third = written(sampler, tmp_path, refine=refine)
    count, metadata = parts.merge([third, first, second], tmp_path / "merged.npz")
    assert (tmp_path / "merged.npz").read_bytes() == whole.read_bytes()
    assert metadata == {key: value for key, value in said.items() if key != "seconds"}
    assert count == N
    assert (load(whole).log_weights is not None) is name.endswith("exact")


def test_a_part_holds_the_rows_of_the_whole_and_says_so(made: list[Path], whole: Samples) -> None:
    part = load(made[1])
    assert torch.equal(part.positions, whole.positions[1024:3072])
    assert part.metadata["part"]["blocks"] == [1, 3]
    # Every part makes the pilot run for itself, the whole counts it once.
    spent = [load(path).metadata for path in made]
    pilot = spent[0]["part"]["pilot_evaluations"]
    assert pilot >= stream.PILOT_CHAINS * stream.PILOT_STEPS
    total = sum(each["energy_evaluations"] for each in spent)
    assert total == whole.metadata["energy_evaluations"] + 2 * pilot


def test_rows_beyond_those_of_the_drift_need_no_energies_from_before(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert DRIFT_SAMPLES % stream.block_size(1) == 0
    for module in (stream, parts):
        monkeypatch.setattr(module, "DRIFT_SAMPLES", 2048)
    whole = tmp_path / "whole.npz"
    sampler.sample_to_file(whole, N, seed=7, refine=2, device="cpu")
    merged = parts.merge(written(sampler, tmp_path), tmp_path / "merged.npz")
    assert merged.metadata["drift_samples"] == 2048
    assert (tmp_path / "merged.npz").read_bytes() == whole.read_bytes()


def test_parts_can_be_merged_into_a_trajectory(tmp_path: Path) -> None:
    sampler = Sampler.load("dw4")
    for index, blocks in enumerate((slice(1), slice(1, None))):
        sampler.sample_to_file(tmp_path / f"{index}.npz", 1100, device="cpu", blocks=blocks)
    sampler.sample_to_file(tmp_path / "whole.dcd", 1100, device="cpu")
    parts.merge([tmp_path / "0.npz", tmp_path / "1.npz"], tmp_path / "merged.dcd")
    assert (tmp_path / "merged.dcd").read_bytes() == (tmp_path / "whole.dcd").read_bytes()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ((0, 2), r"no part holds the blocks 1:3 \(of 4\)"),
        ((1, 2), r"no part holds the blocks 0:1 \(of 4\)"),
        ((0, 1), r"no part holds the blocks 3:4 \(of 4\)"),
        ((0, 1, 1, 2), r"part-1.npz and .*part-1.npz overlap: both hold block 1 \(of 4\)"),
        ((), "at least one is needed"),
    ],
)
def test_gaps_and_overlaps_are_refused(
    made: list[Path], chosen: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        parts.merge([made[index] for index in chosen], tmp_path / "merged.npz")
    assert not (tmp_path / "merged.npz").exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 8}, "seed is 7 in one and 8 in the other"),
        ({"refine": 1}, "refine is 2 in one and 1 in the other"),
        ({"n": N - 1}, "part is {'of': 3500.* in one and {'of': 3499"),
        ({"name": "mog40-exact"}, "artifact_hash is "),
        ({"name": "mw32"}, "system is 'mog40' in one and 'mw32' in the other"),
        ({"version": "0.0.9"}, "version is .* in one and '0.0.9' in the other"),
        ({"step_size": 0.5}, "step_size is .* in one and 0.5 in the other"),
    ],
)
def test_parts_of_other_runs_are_refused(
    paths: list[Path], other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    if other.keys() & {"version", "step_size"}:
        load(paths[2]).with_metadata(**other).save(paths[2], overwrite=True)
    else:
        settings = {"name": "mog40", "n": N, "seed": 7, "refine": 2, **other}
        foreign = Sampler.load(settings.pop("name"))
        foreign.sample_to_file(paths[2], **settings, blocks=CUTS[2], device="cpu", overwrite=True)
    with pytest.raises(InputError, match=f"are parts of different runs: {said}"):
        parts.merge(paths, tmp_path / "merged.npz")


def test_damaged_parts_are_refused(paths: list[Path], whole: Samples, tmp_path: Path) -> None:
    intact = paths[1].read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(intact), 40):
        content = bytearray(intact)
        content[place] ^= 1 << int(random.integers(8))
        paths[1].write_bytes(content)
        try:
            parts.merge(paths, tmp_path / "merged.npz", overwrite=True)
        except MolsamplerError:
            refused += 1
        else:
            # Bits of the archive that mean nothing, such as a date.
            assert torch.equal(load(tmp_path / "merged.npz").positions, whole.positions)
    assert refused > 35
    paths[1].write_bytes(intact[: len(intact) // 2])
    with pytest.raises(FileFormatError, match=r"part-1.npz is not an \.npz file, or truncated"):
        parts.merge(paths, tmp_path / "merged.npz")
    # A bit of a coordinate.
    content = bytearray(intact)
    content[len(intact) // 3] ^= 1
    paths[1].write_bytes(content)
    with pytest.raises(MolsamplerError, match=r"part-1.npz"):
        parts.merge(paths, tmp_path / "other.npz")
    assert not (tmp_path / "other.npz").exists()


def test_damage_in_the_header_of_an_array_is_one_sentence(paths: list[Path]) -> None:
    """Python's tokenizer reads it and fails in its own ways."""
    content = bytearray(paths[1].read_bytes())
    start = content.index(b"NUMPY") + 9
    content[start] = ord("(")
    paths[1].write_bytes(content)
    with pytest.raises(
        FileFormatError, match=r"part-1.npz: member positions.npy is not a plain array"
    ):
        load(paths[1])


def test_what_is_no_part_is_refused(paths: list[Path], whole: Samples, tmp_path: Path) -> None:
    whole.save(tmp_path / "whole.npz")
    with pytest.raises(FileFormatError, match=r"whole.npz is no part of a run"):
        parts.merge([tmp_path / "whole.npz", *paths], tmp_path / "merged.npz")
    with pytest.raises(FileFormatError, match=r"absent.npz does not exist"):
        parts.merge([tmp_path / "absent.npz"], tmp_path / "merged.npz")
    samples = load(paths[0])
    cut = dataclasses.replace(
        samples, positions=samples.positions[1:], energies=samples.energies[1:]
    )
    cut.save(paths[0], overwrite=True)
    with pytest.raises(FileFormatError, match=r"1,023 samples where blocks 0:1 of 1024 in a run"):
        parts.merge(paths, tmp_path / "merged.npz")
    # Rewritten by another program, a part has lost what the drift needs.
    samples.save(paths[0], overwrite=True)
    with pytest.raises(FileFormatError, match="energies from before refinement"):
        parts.merge(paths, tmp_path / "merged.npz")
    (tmp_path / "merged.npz").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        parts.merge(paths, tmp_path / "merged.npz")


@pytest.mark.parametrize("blocks", [slice(4, None), slice(3, 3), slice(4, 2), slice(-1, None)])
def test_ranges_without_blocks_are_refused(sampler: Sampler, blocks: slice) -> None:
    with pytest.raises(InputError, match="blocks"):
        sampler.stream(N, blocks=blocks)


def test_an_end_beyond_the_last_block_is_the_last(sampler: Sampler) -> None:
    assert sampler.stream(N, blocks=slice(3, 900)).count == N - 3072
    assert sampler.stream(N).count == N


PARTS = ("part-2.npz", "part-0.npz", "part-1.npz")


def test_the_commands_make_parts_and_merge_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["sample", "mog40", "-n", str(N), "--seed", "3", "--device", "cpu"]
    for index, blocks in enumerate((":2", "2:3", "3:")):
        assert main([*asked, "--blocks", blocks, "-o", f"part-{index}.npz"]) == 0
    capsys.readouterr()
    assert main(["merge", *PARTS, "-o", "all.npz"]) == 0
    said = capsys.readouterr().out
    assert f"wrote all.npz: {N:,} samples of mog40, of 3 parts" in said
    assert "reduced energy" in said
    assert main([*asked, "-o", "whole.npz"]) == 0
    assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    capsys.readouterr()
    assert main([*asked, "--blocks", ":2", "-o", "part.xtc"]) == 1
    assert "--output 'part.xtc' must end in .npz" in capsys.readouterr().err
    assert main([*asked, "--blocks", "2", "-o", "part.npz"]) == 2
    # A part is not written over by the whole.
    part = (tmp_path / "part-1.npz").read_bytes()
    assert main(["merge", *PARTS, "-o", "part-1.npz", "--overwrite"]) == 1
    assert "part-1.npz is among the parts" in capsys.readouterr().err
    assert (tmp_path / "part-1.npz").read_bytes() == part
    assert main(["merge", "part-0.npz", "part-2.npz", "-o", "all.npz", "--overwrite"]) == 1
    assert "no part holds the blocks 2:3" in capsys.readouterr().err
