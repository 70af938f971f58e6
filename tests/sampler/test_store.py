"""Artifacts: nothing unsafe or damaged loads, and samples depend on the seed alone."""

from __future__ import annotations

import json
import os
import pickle
import struct
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_systems import Cluster

from molsampler import export, memory
from molsampler.errors import (
    DivergenceError,
    FileFormatError,
    InputError,
    IntegrityError,
    OutputExistsError,
    ResourceError,
    StorageError,
    UnknownNameError,
)
from molsampler.nn.generators.implicit import Implicit, ImplicitConfig
from molsampler.sampler import card as card_module
from molsampler.sampler import store
from molsampler.sampler.card import Card, Cost, Training
from molsampler.sampler.sampler import Sampler
from molsampler.sampler.stream import block_seed, block_size
from molsampler.storage.sealed_json import sealed
from molsampler.systems import PairPotential

SYSTEM = Cluster(4, 3, "toy-small")
CONFIG = ImplicitConfig.model_validate(
    {"body": {"kind": "egnn", "width": 8, "layers": 1}, "latent_scale": 1.0, "langevin_layers": 1}
)
ARCHITECTURE = CONFIG.model_dump(mode="json")
TRAINING = Training(
    config={"preset": "fast"},
    command="molsampler train",
    seed=1,
    cost=Cost(energy_evaluations=10, seconds=1.5, iterations=3, machine="2 cores"),
)


def network(seed: int = 0, scale: float = 1.0) -> Implicit:
    """A generator whose parameters are random, drawn from their own generator."""
    built = CONFIG.build(SYSTEM.space)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.body.parameters():
            parameter.copy_(0.1 * scale * torch.randn(parameter.shape, generator=random))
    return built


def saved(folder: Path, **changes: Any) -> Sampler:
    arguments: dict[str, Any] = {"system": SYSTEM, **changes}
    store.save(folder, arguments.pop("generator", network()), **arguments)
    return Sampler.load(folder, system=arguments["system"])


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    return saved(tmp_path_factory.mktemp("artifact") / "toy", training=TRAINING)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "toy").path


def load(folder: Path) -> Sampler:
    return Sampler.load(folder, system=SYSTEM)


# Samples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refine", [0, 3])
def test_samples_are_a_prefix_of_more_samples(sampler: Sampler, refine: int) -> None:
    few = sampler.sample(1200, seed=5, refine=refine, device="cpu")
    many = sampler.sample(2100, seed=5, refine=refine, device="cpu")
    assert torch.equal(few.positions, many.positions[:1200])
    assert torch.equal(few.energies, many.energies[:1200])
    other = sampler.sample(1200, seed=6, refine=refine, device="cpu")
    assert not torch.equal(few.positions, other.positions)


def test_batch_size_changes_nothing(sampler: Sampler) -> None:
    whole = sampler.sample(2300, refine=2, device="cpu")
    for batch_size in (1, 1023, 1024, 10_000):
        again = sampler.sample(2300, refine=2, device="cpu", batch_size=batch_size)
        assert torch.equal(again.positions, whole.positions)
        assert torch.equal(again.energies, whole.energies)
    sizes = [len(block) for block in sampler.stream(2300, batch_size=1100).blocks()]
    assert sizes == [2048, 252]


@pytest.mark.parametrize("refine", [0, 3])
def test_threads_change_nothing(sampler: Sampler, refine: int) -> None:
    assert sampler.system.concurrent
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(sampler.sample(2300, seed=3, refine=refine, device="cpu"))
            # The pool's threads leave the process as they found it, also when the consumer stops early.
            stream = sampler.stream(10_000, refine=refine, device="cpu", batch_size=1)
            with closing(stream.blocks()) as blocks:
                next(blocks)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert torch.equal(other.positions, runs[0].positions)
        assert torch.equal(other.energies, runs[0].energies)
        assert {**other.metadata, "seconds": 0} == {**runs[0].metadata, "seconds": 0}


def test_systems_that_do_not_allow_it_are_asked_by_one_thread(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = set(), Implicit.forward

    def watched(self: Implicit, *arguments: Any) -> torch.Tensor:
        seen.add(threading.get_ident())
        return real(self, *arguments)

    monkeypatch.setattr(Implicit, "forward", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    sampler.sample(5000, device="cpu")
    assert threading.get_ident() not in seen
    seen.clear()
    monkeypatch.setattr(type(sampler.system), "concurrent", False)
    sampler.sample(5000, device="cpu")
    assert seen == {threading.get_ident()}


def test_global_random_state_plays_no_part(sampler: Sampler) -> None:
    torch.manual_seed(0)
    first = sampler.sample(10, device="cpu")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(sampler.sample(10, device="cpu").positions, first.positions)
    assert torch.equal(torch.get_rng_state(), before)


def test_blocks_differ_from_each_other(sampler: Sampler) -> None:
    size = block_size(4)
    positions = sampler.sample(2 * size, device="cpu").positions
    assert not torch.equal(positions[:size], positions[size:])


def test_no_two_blocks_of_a_run_share_their_noise() -> None:
    # torch's CPU generator reads the low 32 bits; 2^17 plain hashes would collide twice on average.
    for seed in (0, 1, 2**63 - 1):
        low = {block_seed(seed, index) & 0xFFFFFFFF for index in range(2**17)}
        assert len(low) == 2**17
    assert block_seed(0, 1) != block_seed(1, 1)
    first, second = (torch.Generator().manual_seed(5 + high) for high in (0, 7 << 32))
    assert torch.equal(torch.randn(9, generator=first), torch.randn(9, generator=second))


def test_energies_are_those_of_the_positions(sampler: Sampler) -> None:
    samples = sampler.sample(100, refine=1, device="cpu")
    assert samples.positions.dtype == torch.float32
    assert torch.equal(samples.energies, SYSTEM.energy(samples.positions.double()))


def test_refinement_reports_acceptance_and_drift(sampler: Sampler) -> None:
    raw = sampler.sample(1100, device="cpu")
    refined = sampler.sample(1100, refine=30, device="cpu")
    report = refined.metadata
    # Adapted to 0.574 on a pilot run of 512 chains, then frozen.
    assert 0.4 < report["acceptance"] < 0.75
    assert report["step_size"] > 0
    assert report["drift_samples"] == 1100
    expected = (raw.energies.sort().values - refined.energies.sort().values).square().mean().sqrt()
    assert report["drift"] == pytest.approx(float(expected), rel=1e-3)
    assert refined.energies.median() < raw.energies.median()
    # Two blocks, each with one network call of one evaluation, 31 for the chain, one at the end; one for
    # every sample before refinement; a pilot block with one, and 101 for its 512 chains.
    assert report["energy_evaluations"] == 1024 * (2 * 33 + 1) + 1100 + 512 * 101
    assert {"acceptance", "drift"}.isdisjoint(raw.metadata)


def test_metadata_says_where_samples_come_from(sampler: Sampler) -> None:
    metadata = sampler.sample(3, seed=11, device="cpu").metadata
    assert metadata["system"] == "toy-small"
    assert metadata["artifact_hash"] == sampler.hash
    assert metadata["seed"] == 11
    assert metadata["refine"] == 0
    assert metadata["energy_evaluations"] == 2 * 1024
    assert metadata["nonfinite_energies"] == 0


def test_samples_of_infinite_energy_are_kept_and_counted(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Implicit.forward

    def overlapping(self: Implicit, *arguments: Any) -> torch.Tensor:
        x = real(self, *arguments).clone()
        x[7, 1] = x[7, 0]
        return x

    monkeypatch.setattr(Implicit, "forward", overlapping)
    samples = sampler.sample(1100, device="cpu")
    assert len(samples) == 1100
    assert samples.metadata["nonfinite_energies"] == 2
    assert torch.isinf(samples.energies).nonzero().flatten().tolist() == [7, 1024 + 7]


def test_unusable_coordinates_are_an_error(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Implicit.forward
    monkeypatch.setattr(Implicit, "forward", lambda *a: real(*a) * torch.nan)
    with pytest.raises(DivergenceError, match="1024 of 1024"):
        sampler.sample(1, device="cpu")


@pytest.mark.parametrize("suffix", [".npz", ".dcd"])
def test_streaming_to_a_file_gives_the_same_samples(
    suffix: str, sampler: Sampler, tmp_path: Path
) -> None:
    path, done = tmp_path / f"a{suffix}", []
    report = sampler.sample_to_file(
        path, 2300, seed=2, refine=2, device="cpu", batch_size=1024, progress=done.append
    )
    loaded = export.load(path, system=SYSTEM)
    expected = sampler.sample(2300, seed=2, refine=2, device="cpu")
    assert torch.allclose(loaded.positions, expected.positions, atol=1e-6)
    if suffix == ".npz":
        assert torch.equal(loaded.positions, expected.positions)
    assert done == [1024, 2048, 2300]
    # A file does not say how long it took, so that equal seeds give equal bytes.
    assert {**loaded.metadata, "seconds": report["seconds"]} == report
    assert {**report, "seconds": 0} == {**expected.metadata, "seconds": 0}


@pytest.mark.parametrize(
    "arguments",
    [
        {"n": 0},
        {"n": -3},
        {"n": 2.0},
        {"n": True},
        {"n": 1, "seed": -1},
        {"n": 1, "seed": 2**64},
        {"n": 1, "seed": None},
        {"n": 1, "refine": -1},
        {"n": 1, "batch_size": 0},
        {"n": 1, "device": "gpu"},
        {"n": 1, "device": "meta"},
    ],
)
def test_unusable_arguments_are_named(sampler: Sampler, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=list(arguments)[-1]):
        sampler.sample(**arguments)


def test_more_samples_than_memory_are_refused_with_the_estimate(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match=r"GiB .*sample_to_file"):
        sampler.sample(2**40)
    # A block at a time is still possible.
    first = next(sampler.stream(2**40, device="cpu", batch_size=1).blocks())
    assert len(first) == block_size(4)
    monkeypatch.setattr(memory, "available", lambda: 56 * 1000)
    with pytest.raises(ResourceError, match="1000 samples"):
        sampler.sample(1000, device="cpu")
    assert len(sampler.sample(700, device="cpu")) == 700


def test_absent_device_is_named(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ResourceError, match=r"cuda.*device='cpu'"):
        sampler.sample(1, device="cuda")


def test_available_memory_is_plausible() -> None:
    free = memory.available()
    assert free is None or 0 < free < 2**50


# Files ---------------------------------------------------------------------------------------------


def test_round_trip(sampler: Sampler) -> None:
    again = load(sampler.path)
    assert again.card == sampler.card
    assert again.hash == sampler.hash
    assert again.card.training == TRAINING
    assert again.card.architecture == ARCHITECTURE
    assert json.loads(json.dumps(again.describe()))["hash"] == sampler.hash
    assert torch.equal(
        again.sample(5, device="cpu").positions, sampler.sample(5, device="cpu").positions
    )
    assert {entry.name for entry in sampler.path.iterdir()} == {"weights.safetensors", "card.json"}


def test_artifact_of_a_formula_needs_no_registration(tmp_path: Path) -> None:
    system = PairPotential("mine", "(r - a)^2", n=4, d=3, parameters={"a": 1.5}, length_nm=0.2)
    path = saved(tmp_path / "mine", system=system).path
    sampler = Sampler.load(path)
    assert sampler.system.name == "mine"
    samples = sampler.sample(20, device="cpu")
    assert torch.equal(samples.energies, system.energy(samples.positions.double()))
    samples.save(tmp_path / "a.dcd")
    loaded = export.load(tmp_path / "a.dcd")
    assert loaded.metadata["system"]["expression"] == "(r - a)^2"
    assert torch.allclose(loaded.energies, samples.energies, rtol=1e-5)
    edit(path, system={**sampler.card.model_dump()["system"], "expression": "__import__('os')"})
    with pytest.raises(InputError, match="recorded system"):
        Sampler.load(path)


def test_flipped_bit_is_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors does not match its card"):
        load(folder)
    content[-3] ^= 4
    path.write_bytes(content)
    load(folder)


def test_truncated_and_missing_files_are_named(folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = path.read_bytes()
    for cut in (0, 5, 20, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(FileFormatError, match=r"weights\.safetensors"):
            load(folder)
    path.unlink()
    with pytest.raises(FileFormatError, match=r"weights\.safetensors does not exist"):
        load(folder)
    (folder / "card.json").unlink()
    with pytest.raises(FileFormatError, match="is no sampler: a folder with"):
        load(folder)


def test_header_bomb_is_refused_before_parsing(folder: Path) -> None:
    path = folder / "weights.safetensors"
    for announced in (2**62, 2**63 + 5, store.HEADER_LIMIT + 1, 0):
        path.write_bytes(struct.pack("<Q", announced) + b" " * 100)
        with pytest.raises(FileFormatError, match=f"header of {announced} bytes"):
            load(folder)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", store.HEADER_LIMIT + 1))
        file.truncate(2 * store.HEADER_LIMIT)
    with pytest.raises(FileFormatError, match="announces a header"):
        load(folder)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100))
        file.truncate(store.WEIGHTS_LIMIT + 1)  # sparse
    with pytest.raises(FileFormatError, match="at most"):
        load(folder)
    card = folder / "card.json"
    with open(card, "r+b") as file:
        file.truncate(card_module.CARD_LIMIT + 1)
    with pytest.raises(FileFormatError, match=r"card\.json has"):
        load(folder)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("name", ["weights.pt", "model.pkl", "pytorch_model.BIN", "last.ckpt"])
def test_pickles_are_refused(name: str, folder: Path) -> None:
    (folder / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(FileFormatError, match=f"{name} may run code"):
        load(folder)
    with pytest.raises(FileFormatError, match="refused"):
        Sampler.load(folder / name)


def test_pickle_under_the_name_of_weights_is_refused(folder: Path) -> None:
    content = pickle.dumps(Payload())
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError, match="not a usable safetensors file"):
        load(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_links_are_refused(name: str, folder: Path) -> None:
    outside = folder.parent / "outside"
    os.rename(folder / name, outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(FileFormatError, match="link"):
        load(folder)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "card.json"
    card = json.loads(path.read_text())
    card.update(changes)
    path.write_bytes(sealed(json.dumps(card)))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weights": "../../weights.safetensors"}, r"unknown key 'weights'; did you mean"),
        ({"weights": "/etc/passwd"}, "unknown key 'weights'"),
        ({"tempreature": 300}, "unknown key 'tempreature'; did you mean 'temperature'"),
        ({"format_version": 2}, "format_version 2; .* reads version 1"),
        ({"format_version": None}, "format_version None"),
        ({"shape": [5, 3]}, r"shape \(5, 3\), system 'toy-small' has \(4, 3\)"),
        ({"weights_sha256": "../x"}, "weights_sha256"),
        ({"architecture": {**ARCHITECTURE, "depth": 3}}, r"architecture\.depth"),
        ({"architecture": {**ARCHITECTURE, "body": {"kind": "pickle"}}}, r"architecture\.body"),
        (
            {"architecture": {**ARCHITECTURE, "body": {**ARCHITECTURE["body"], "width": 2**12}}},
            "do not fit the architecture",
        ),
        ({"architecture": {**ARCHITECTURE, "langevin_layers": 2}}, "do not fit the architecture"),
        ({"architecture": {**ARCHITECTURE, "langevin_layers": 10**9}}, r"architecture\.langevin"),
        (
            {"architecture": {**ARCHITECTURE, "body": {**ARCHITECTURE["body"], "layers": 10**9}}},
            r"architecture\.body\.layers",
        ),
    ],
)
def test_cards_that_do_not_fit_are_refused(
    changes: dict[str, Any], match: str, folder: Path
) -> None:
    edit(folder, **changes)
    with pytest.raises(FileFormatError, match=match):
        load(folder)


@pytest.mark.parametrize("reference", ["../lj13", "/etc/system.yaml", "", 13])
def test_card_must_not_send_its_reader_to_other_files(reference: Any, folder: Path) -> None:
    edit(folder, system=reference)
    with pytest.raises(FileFormatError, match="system"):
        Sampler.load(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": NaN}', "\xff", "[" * 100_000])
def test_card_that_is_not_a_json_object_is_refused(text: str, folder: Path) -> None:
    (folder / "card.json").write_text(text, encoding="latin-1")
    with pytest.raises(FileFormatError, match=r"card\.json"):
        load(folder)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save

    broken = network()
    with torch.no_grad():
        next(broken.body.parameters()).fill_(torch.nan)
    with pytest.raises(DivergenceError, match="NaN"):
        saved(tmp_path / "new", generator=broken)
    assert not (tmp_path / "new").exists()
    content = save(dict(broken.state_dict()))
    import hashlib

    (folder / "weights.safetensors").write_bytes(content)
    edit(folder, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(FileFormatError, match="NaN"):
        load(folder)


def test_overwriting_an_artifact(folder: Path) -> None:
    old = load(folder)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        saved(folder)
    new = saved(folder, generator=network(1), overwrite=True)
    assert new.hash != old.hash
    assert load(folder).hash == new.hash
    assert {entry.name for entry in folder.iterdir()} == {"weights.safetensors", "card.json"}


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_kill_while_overwriting_leaves_an_artifact_that_loads(
    moment: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before the n-th rename; what is on disk then is all that a kill would leave."""
    old = load(folder).card.weights_sha256
    real, count = os.replace, 0

    def stopping(source: Any, destination: Any) -> None:
        nonlocal count
        count += 1
        if count == moment:
            raise KeyboardInterrupt
        real(source, destination)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        saved(folder, generator=network(1), overwrite=True)
    monkeypatch.undo()
    loaded = load(folder)
    assert (loaded.card.weights_sha256 == old) is (moment < 3)
    # And the next save puts everything in its place.
    saved(folder, generator=network(2), overwrite=True)
    assert {entry.name for entry in folder.iterdir()} == {"weights.safetensors", "card.json"}


def test_what_is_not_an_artifact_is_not_overwritten(tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(other)
    file = tmp_path / "file"
    file.touch()
    for path in (other, link, file):
        with pytest.raises(OutputExistsError, match="artifact"):
            saved(path, overwrite=True)
    with pytest.raises(StorageError, match="does not exist"):
        saved(tmp_path / "no" / "toy")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link", "thesis"]


def test_shipped_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PRETRAINED", folder.parent)
    assert store.list_pretrained() == ["toy"]
    assert Sampler.load("toy", system=SYSTEM).path == folder
    with pytest.raises(UnknownNameError, match="did you mean 'toy'"):
        Sampler.load("toi")


def test_every_shipped_artifact_loads() -> None:
    for name in store.list_pretrained():
        assert isinstance(Sampler.load(name).card, Card)


def test_blocks_bound_pair_tensors() -> None:
    assert [block_size(n) for n in (1, 13, 22, 55, 1000)] == [1024, 1024, 512, 64, 16]
