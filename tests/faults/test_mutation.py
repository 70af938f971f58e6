"""Flipped, overwritten, cut and lengthened files: refused by name, or read as they were written.

Every kind of file that carries a checksum, its own or a sidecar's, is damaged at random places. A
reader may refuse, with an error of the library, or return what it returned for the whole file; what
it may not do is to return anything else, raise anything else, or die.

Files without a checksum (a system's YAML file, a trajectory whose sidecar is gone) cannot promise
that: for them a typed error or a well-formed result is the law, and trajectories are announced by a
warning.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from molsampler import export
from molsampler.cli import info
from molsampler.errors import IntegrityError, MolsamplerError
from molsampler.sampler.sampler import Sampler
from molsampler.samples import Samples
from molsampler.storage.sealed_json import sealed
from molsampler.systems import get_system
from molsampler.train import checkpoint, load_config
from molsampler.train.config import from_yaml, to_yaml

Tally = Callable[[str, int, int], None]

#: Variants of each kind of file: by default, and in the slow sweep (about three minutes in all).
FEW, MANY = 25, 1000


def damaged(content: bytes, chance: random.Random) -> bytes:
    """One random damage."""
    data = bytearray(content)
    where = chance.randrange(len(data))
    match chance.randrange(8):
        case 0 | 1 | 2:
            data[where] ^= 1 << chance.randrange(8)
        case 3:
            data[where] = chance.choice([0, 9, 10, 32, 45, 46, 48, 127, 128, 255])
        case 4:
            del data[where:]
        case 5:
            del data[where : where + chance.choice([1, 4, 512])]
        case 6:
            data[where:where] = chance.randbytes(chance.choice([1, 4, 512]))
        case 7:
            # A lost sector.
            data[where : where + 512] = bytes(len(data[where : where + 512]))
    return bytes(data)


def variants(content: bytes, count: int, seed: str) -> Iterator[bytes]:
    """``count`` distinct damages, and none that is none."""
    chance, seen = random.Random(seed), {content}
    while len(seen) <= count:
        variant = damaged(content, chance)
        if variant not in seen:
            seen.add(variant)
            yield variant


class Kind(NamedTuple):
    """A kind of file: the one to damage, and what reading it means, as something comparable."""

    path: Path
    read: Callable[[], Any]


def samples_read(path: Path, system: Any) -> Callable[[], Any]:
    def read() -> Any:
        loaded = export.load(path, system=system)
        weights = loaded.log_weights
        assert weights is not None
        return (
            loaded.positions.numpy().tobytes(),
            loaded.energies.numpy().tobytes(),
            weights.numpy().tobytes(),
            loaded.metadata,
        )

    return read


def sampler_read(folder: Path, system: Any) -> Callable[[], Any]:
    def read() -> Any:
        sampler = Sampler.load(folder, system=system)
        generator = sampler._generators[torch.device("cpu")]
        weights = {key: value.numpy().tobytes() for key, value in generator.state_dict().items()}
        return sampler.card, weights

    return read


def make(kind: str, folder: Path, samples: Samples, system: Any, save_sampler: Any) -> Kind:
    if kind in ("weights", "card"):
        save_sampler(folder / "toy")
        name = {"weights": "weights.safetensors", "card": "card.json"}[kind]
        return Kind(folder / "toy" / name, sampler_read(folder / "toy", system))
    if kind == "checkpoint":
        tensors = {"a": torch.randn(50, generator=torch.Generator().manual_seed(0))}
        path = checkpoint.save(folder / "run", 1, tensors, '{"data_scale": 1.0}')

        def read_checkpoint() -> Any:
            found = checkpoint.load_latest(folder / "run")
            assert found is not None
            return found[0]["a"].numpy().tobytes(), found[1]

        return Kind(path, read_checkpoint)
    if kind == "run configuration":
        path = folder / "config.resolved.yaml"
        path.write_text(to_yaml(load_config("fast", "dw4")))
        return Kind(path, lambda: from_yaml(path))
    if kind == "run log":
        return run_log(folder)
    data = folder / f"a{kind if kind in export.FORMATS else '.dcd'}"
    samples.save(data, system=system)
    beside = {"sidecar": "a.json", "log weights": "a.dcd.log_weights.npy"}
    return Kind(folder / beside.get(kind, data.name), samples_read(data, system))


def run_log(folder: Path) -> Kind:
    """The log as ``info`` judges it: its part up to the checkpoint has the SHA-256 recorded there."""
    from molsampler.train.folder import RunFolder

    with RunFolder(folder / "run") as run:
        run.claim(load_config("fast", "dw4"))
        for k in range(20):
            size, digest = run.log({"iteration": k, "loss": k / 7})
        counters = json.dumps({"log_bytes": size, "log_sha256": digest})
        checkpoint.save(run.checkpoints, 20, {"a": torch.ones(2)}, counters)

    def read() -> Any:
        report = info._run(folder / "run", None)
        if report["intact"]:
            # What is appended after the checkpoint is not sealed, and is cut off on resuming.
            with RunFolder(folder / "run") as run:
                assert run.rewind_metrics(size, digest)
                return run.metrics.read_bytes()
        raise MolsamplerError(report["problem"])

    return Kind(run.metrics, read)


SEALED = [
    *("weights", "card", "checkpoint", "run configuration", "run log", "sidecar", "log weights"),
    *(".npz", ".h5", ".dcd", ".xtc", ".pdb"),
]


def silent(kind: Kind, content: bytes, original: Any) -> str | None:
    """What is wrong with how a variant was read, if anything."""
    kind.path.write_bytes(content)
    try:
        found = kind.read()
    except MolsamplerError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if found == original else "read as something else"


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SEALED)
def test_no_damage_is_silent(
    name: str,
    count: int,
    tmp_path: Path,
    samples: Samples,
    system: Any,
    save_sampler: Any,
    tally: Tally,
) -> None:
    kind = make(name, tmp_path, samples, system, save_sampler)
    original, content = kind.read(), kind.path.read_bytes()
    logging.disable()
    try:
        wrong = {
            number: problem
            for number, variant in enumerate(variants(content, count, name))
            if (problem := silent(kind, variant, original)) is not None
        }
    finally:
        logging.disable(logging.NOTSET)
    assert not wrong
    kind.path.write_bytes(content)
    assert kind.read() == original
    tally(f"damaged {name}", count, count)


def test_the_law_notices_a_resealed_card(
    tmp_path: Path, samples: Samples, system: Any, save_sampler: Any
) -> None:
    """A negative control: it is the seal that keeps a damaged number from being believed."""
    kind = make("card", tmp_path, samples, system, save_sampler)
    original, content = kind.read(), kind.path.read_text()
    digit = content.index('"latent_scale": 1.0') + len('"latent_scale": ')
    variant = f"{content[:digit]}2{content[digit + 1 :]}"
    assert silent(kind, variant.encode(), original) is None
    assert silent(kind, sealed(variant), original) == "read as something else"
    # A card without a seal is as good as one with a wrong one.
    card = json.loads(content)
    del card["digest"]
    kind.path.write_text(json.dumps(card))
    with pytest.raises(IntegrityError, match="'digest'"):
        kind.read()


def frames_only(path: Path, system: Any) -> str | None:
    """What is wrong with a trajectory that nothing vouches for, if anything."""
    try:
        loaded = export.load(path, system=system)
    except MolsamplerError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if bool(torch.isfinite(loaded.positions).all()) else "not finite"


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".dcd", ".pdb"])
def test_damage_without_a_checksum_is_announced(
    suffix: str,
    count: int,
    tmp_path: Path,
    samples: Samples,
    system: Any,
    tally: Tally,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=system)
    content = path.read_bytes()
    (tmp_path / "a.json").unlink()
    for variant in variants(content, count, suffix):
        path.write_bytes(variant)
        caplog.clear()
        assert frames_only(path, system) is None
        assert f"nothing records the SHA-256 of {path}" in caplog.text
    tally(f"damaged {suffix} without a sidecar (announced)", count, count)


@pytest.mark.parametrize("count", [3, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".h5", ".xtc"])
def test_damage_does_not_kill_the_reader(
    suffix: str, count: int, tmp_path: Path, samples: Samples, system: Any, tally: Tally
) -> None:
    """C libraries decode in a process of their own, which takes a second to start."""
    path = tmp_path / f"a{suffix}"
    samples.save(path, system=system)
    content = path.read_bytes()
    (tmp_path / "a.json").unlink()
    for variant in variants(content, count, suffix):
        path.write_bytes(variant)
        assert frames_only(path, system) is None
    tally(f"damaged {suffix} without a sidecar (announced)", count, count)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_damaged_system_file_is_a_system_or_an_error(
    count: int, tmp_path: Path, tally: Tally
) -> None:
    """The text is the only record of a user's formula: another text is another system."""
    path = tmp_path / "my7.yaml"
    text = (
        "name: my7\nexpression: 4*eps*((s/r)^12 - (s/r)^6) + 0.5*k*r^2/n\nparticles: 7\n"
        "dimensions: 3\nparameters: {eps: 1.5, s: 1, k: 0.1}\nlength_nm: 0.34\n"
    )
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 7, 3)))
    for variant in variants(text.encode(), count, "yaml"):
        path.write_bytes(variant)
        try:
            system = get_system(path)
        except MolsamplerError:
            continue
        if system.shape == (7, 3):
            assert not bool(system.energy(x).isnan().any())
    tally("damaged system YAML (no checksum)", count, count)
