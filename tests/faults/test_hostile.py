"""Files and texts from strangers: they run no code, reach no other file, and end in bounded time.

What is tried by hand here is tried at random by the slow tests at the end, each within a bounded time.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molsampler import export
from molsampler.cli import main
from molsampler.errors import (
    ExpressionError,
    FileFormatError,
    InputError,
    MolsamplerError,
    ShapeError,
)
from molsampler.export import decoder
from molsampler.sampler.sampler import Sampler
from molsampler.samples import Samples
from molsampler.storage.plain_yaml import YAML_LIMIT, parse_yaml
from molsampler.storage.sealed_json import sealed
from molsampler.systems import PairPotential, get_system
from molsampler.train import checkpoint, load_config

Tally = Callable[[str, int, int], None]

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(9 * [f'*{old}'])}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

YAMLS = {
    "billion laughs": LAUGHS,
    "python object": "name: !!python/object/apply:os.system ['touch pwned']",
    "python name": "name: !!python/name:os.system",
    "own tag": "name: !exec rm",
    "standard tag": "name: !!float []",
    "deep lists": "[" * 20_000,
    "deep mappings": "\n".join(f"{' ' * k}a:" for k in range(300)),
    "deep flow mappings": "{a: " * 200,
    "merge of an alias": "a: &a {b: 1}\nc: {<<: *a}",
    "date that does not exist": "name: 2001-99-99",
    "number of thousands of digits": "seed: " + "1" * 6_000,
    "too long": "# " + "x" * YAML_LIMIT,
    "not text": "\x00\x01",
    "two documents": "a: 1\n---\nb: 2",
    "tab": "a:\n\t- b",
}


@pytest.mark.parametrize("name", YAMLS)
def test_yaml(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(YAMLS[name])
    started = time.process_time()
    with pytest.raises(MolsamplerError, match=r"a\.yaml"):
        get_system(path)
    with pytest.raises(InputError, match=r"a\.yaml"):
        load_config("fast", "dw4", file=path)
    assert time.process_time() - started < 10
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.yaml"]
    tally(f"YAML: {name}", 2, 2)


def test_plain_yaml_is_read() -> None:
    """A negative control: what is refused is the trick, not the language."""
    numbers = "1, 2.5, -3e4, 1e3, .5E-2"
    text = f"a: {{b: [{numbers}, yes, null, text, '1e3', 1e3x]}}\n# comment\nc: |\n  two\n  lines\n"
    assert parse_yaml(text, "it") == {
        "a": {"b": [1, 2.5, -3e4, 1e3, 5e-3, True, None, "text", "1e3", "1e3x"]},
        "c": "two\nlines\n",
    }


EXPRESSIONS = [
    "__import__('os').system('true')",
    "().__class__",
    "r.__class__",
    "lambda: r",
    "exec(r)",
    "eval(r)",
    "open(r)",
    "r if r else r",
    "[r for r in r]",
    "r" + "^9" * 500,
    "(" * 5_000 + "r" + ")" * 5_000,
    "-" * 5_000 + "r",
    "+".join(["r"] * 4_000),
    "1e999*r",
    "r^" + "9" * 400,
    "x" * 10_001,
    "; ".join(["r*a0", *(f"a{k} = (a{k + 1})*(a{k + 1})" for k in range(80)), "a80 = r + 1"]),
    "((r+1)*(r+2)*(r+3))^999999999",
    "exp(" * 90 + "r" + ")" * 90,
    "r\x00",
    "r\u202e",
    "\uff52",
]


@pytest.mark.parametrize("number", range(len(EXPRESSIONS)))
def test_expression(number: int) -> None:
    """It is refused by name, or means what it says; in both cases soon."""
    text = EXPRESSIONS[number]
    started = time.process_time()
    try:
        system = PairPotential("x", text, n=3, d=2)
    except (ExpressionError, InputError):
        pass
    else:
        x = torch.tensor([[0.0, 0.0], [1.0, 0.2], [0.3, 1.1]], dtype=torch.float64)
        assert system.energy(x).shape == ()
    assert time.process_time() - started < 10


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pwned"),)


def archive(path: Path, name: str, content: bytes, kind: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr(name, content)


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


NPZ: dict[str, Callable[[Path], object]] = {
    "pickled objects": lambda path: np.savez(path, positions=np.array([Payload()], dtype=object)),
    "pickle alone": lambda path: path.write_bytes(pickle.dumps(Payload())),
    "zip bomb": lambda path: archive(
        path,
        "positions.npy",
        npy("{'descr':'<f4','fortran_order':False,'shape':(5000000,1,1)}", bytes(2 * 10**7)),
        zipfile.ZIP_DEFLATED,
    ),
    "header that announces more": lambda path: archive(
        path,
        "positions.npy",
        npy("{'descr':'<f4','fortran_order':False,'shape':(99999999999,4,2)}"),
    ),
    "code in a header": lambda path: archive(
        path, "positions.npy", npy("__import__('os').system('touch pwned')")
    ),
    "negative shape": lambda path: archive(
        path, "positions.npy", npy("{'descr':'<f4','fortran_order':False,'shape':(-1,4,2)}")
    ),
    "shape that overflows": lambda path: archive(
        path,
        "positions.npy",
        npy(f"{{'descr':'<f4','fortran_order':False,'shape':({2**62},4,2)}}"),
    ),
    "member of another folder": lambda path: archive(path, "../../pwned.npy", b"x"),
    "absolute member": lambda path: archive(path, "/pwned.npy", b"x"),
}


@pytest.mark.parametrize("name", NPZ)
def test_npz(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npz"
    NPZ[name](path)
    with pytest.raises(FileFormatError, match=r"a\.npz"):
        export.load(path, system="dw4")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]


def dcd_header(frames: int, atoms: int, titles: int = 1) -> bytes:
    def record(content: bytes, length: int | None = None) -> bytes:
        marker = struct.pack("<i", len(content) if length is None else length)
        return marker + content + marker

    words = [frames, *[0] * 19]
    return (
        record(b"CORD" + struct.pack("<20i", *words))
        + record(struct.pack("<i", titles) + bytes(80))
        + record(struct.pack("<i", atoms))
    )


def xtc_frame(atoms: int, *, index: int = 9, held: int = 8, low: int = 0, high: int = 9) -> bytes:
    head = struct.pack(">iiif", 1995, atoms, 0, 0.0) + bytes(36) + struct.pack(">i", atoms)
    numbers = (1000.0, low, low, low, high, high, high, index, held)
    return head + struct.pack(">f8i", *numbers) + bytes(max(0, min(held, 4096)))


TRAJECTORIES: dict[str, tuple[str, bytes]] = {
    "dcd of two billion atoms": (".dcd", dcd_header(1, 2**31 - 1)),
    "dcd of two billion frames": (".dcd", dcd_header(2**31 - 1, 4)),
    "dcd of minus one atom": (".dcd", dcd_header(1, -1)),
    "dcd with a title block of 2 GB": (".dcd", dcd_header(1, 4)[:92] + b"\xff\xff\xff\x7f" * 9),
    "xtc of two billion atoms": (".xtc", xtc_frame(2**31 - 1)),
    "xtc that overfills its decoder": (".xtc", xtc_frame(13, held=4096)),
    "xtc with an index outside its table": (".xtc", xtc_frame(13, index=2**30)),
    "xtc with an empty range": (".xtc", xtc_frame(13, low=9, high=0)),
    "pdb with a line without end": (".pdb", b"ATOM  " + b"1" * 10**6),
    "pdb with words for numbers": (
        ".pdb",
        b"ATOM      1  C   MOL A   1         nan     inf    1_00  1.00  0.00           C\nEND\n",
    ),
    "pdb of nothing": (".pdb", b"MODEL        1\nENDMDL\nEND\n"),
    "h5 that is none": (".h5", b"\x89HDF\r\n\x1a\n" + b"\xff" * 2000),
}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory(name: str, tmp_path: Path) -> None:
    suffix, content = TRAJECTORIES[name]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    started = time.process_time()
    with pytest.raises((FileFormatError, ShapeError), match=rf"a\{suffix}"):
        export.load(path, system="dw4" if "xtc" not in name else "lj13")
    assert time.process_time() - started < 10


def test_h5_that_reads_other_files_or_inflates(tmp_path: Path) -> None:
    """Links to other files, data stored elsewhere, and a shape that its bytes cannot hold."""
    import tables

    secret = tmp_path / "secret.h5"
    with tables.open_file(secret, "w") as file:
        file.create_array("/", "coordinates", np.zeros((1, 4, 3), dtype="f4"))
    link = tmp_path / "link.h5"
    with tables.open_file(link, "w") as file:
        file.create_external_link("/", "coordinates", f"{secret}:/coordinates")
    plain = tmp_path / "plain.h5"
    with tables.open_file(plain, "w") as file:
        file.create_array("/", "coordinates", np.zeros((1, 4, 3), dtype="f4"))
    bomb = tmp_path / "bomb.h5"
    with tables.open_file(bomb, "w") as file:
        array = file.create_carray("/", "coordinates", tables.Float32Atom(), (10**7, 4, 3))
        assert array.chunkshape
    for path, words in ((link, "chunked"), (plain, "chunked"), (bomb, "size")):
        with pytest.raises(
            FileFormatError, match=rf"{path.name} is truncated or damaged: .*{words}"
        ):
            export.load(path, system="dw4")


def test_decoder_is_limited(tmp_path: Path, samples: Samples, system: object) -> None:
    """The process that decodes can neither write files nor take memory without end."""
    path = tmp_path / "a.xtc"
    samples.save(path, system=system)
    log = tmp_path / "log"

    def greedy(source: str, chunk: int) -> Any:
        bytearray(8 * 2**30)
        yield (1, 1)

    def writing(source: str, chunk: int) -> Any:
        (tmp_path / "pwned").write_bytes(b"x" * 10)
        yield (1, 1)

    for items in (greedy, writing):

        def work(items: Any = items) -> int:
            # Files cannot be written any more, the log among them.
            os.dup2(os.pipe()[1], 2)
            decoder.DECODERS[".xtc"] = items
            return decoder.main(".xtc", str(path), "1")

        assert run(work, log).code == decoder.REFUSED
    written = tmp_path / "pwned"
    assert not written.exists() or written.stat().st_size == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"system": {"name": "x", "expression": "r" * 10**5, "particles": 4, "dimensions": 2}},
            "10000",
        ),
        ({"system": {"name": "../x", "expression": "r", "particles": 4, "dimensions": 2}}, "name"),
        ({"system": {"name": "x", "expression": "r", "particles": 10**9, "dimensions": 2}}, "n "),
        ({"system": "../../x.yaml"}, "plain name"),
        ({"shape": [10**9, 3]}, "shape"),
        ({"architecture": {"body": {"kind": "egnn", "width": 10**9}}}, "width"),
        ({"architecture": {"body": {"kind": "egnn", "layers": 10**9}}}, "layers"),
        ({"architecture": {"noise_features": 10**9}}, "noise_features"),
        ({"weights_sha256": "0" * 64}, "does not match"),
    ],
)
def test_card(
    change: dict[str, Any],
    words: str,
    tmp_path: Path,
    save_sampler: Callable[..., Sampler],
    system: Any,
) -> None:
    folder = save_sampler(tmp_path / "toy").path
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_bytes(sealed(json.dumps({**card, **change})))
    started = time.process_time()
    with pytest.raises(MolsamplerError, match=words):
        Sampler.load(folder, system=None if "system" in change else system)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [2**60, 2**60 + 4]}},
        {"../a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    ],
)
def test_weights_and_checkpoints(
    header: dict[str, Any], tmp_path: Path, save_sampler: Callable[..., Sampler], system: Any
) -> None:
    """Made by somebody who also made the hashes that vouch for them."""
    import hashlib

    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(8)
    digest = hashlib.sha256(content).hexdigest()
    folder = save_sampler(tmp_path / "toy").path
    card = json.loads((folder / "card.json").read_text())
    (folder / "weights.safetensors").write_bytes(content)
    (folder / "card.json").write_bytes(sealed(json.dumps({**card, "weights_sha256": digest})))
    with pytest.raises(FileFormatError):
        Sampler.load(folder, system=system)
    path = tmp_path / f"{1:09d}-{digest[:32]}.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError):
        checkpoint.read(path)


def test_no_file_sends_commands_to_the_terminal(
    tmp_path: Path, samples: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    samples.with_metadata(note="\x1b]0;pwned\x07", system="\x1b[2J").save(tmp_path / "a.npz")
    assert main(["info", str(tmp_path / "a.npz")]) == 0
    assert main(["export", str(tmp_path / "a.npz"), str(tmp_path / "b.dcd")]) == 1
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\\x1b" in shown.out


# Fuzzing -------------------------------------------------------------------------------------------

#: Each of these takes well under a minute of CPU time.
FUZZ = settings(
    max_examples=1500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
    database=None,
)

SYMBOLS = st.sampled_from(
    [
        *("r", "n", "x", "1", "2.5", "1e3", ".5", "0", "9e99", "é", "__", "'", " ", "a = "),
        *("+", "-", "*", "/", "^", "(", ")", ",", ";", "="),
        *("sqrt(", "exp(", "log(", "min(", "select(", "step(", "atan2("),
    ]
)


@pytest.mark.slow
@FUZZ
@given(st.lists(SYMBOLS, max_size=60).map("".join) | st.text(max_size=60))
def test_fuzz_expressions(text: str) -> None:
    started = time.process_time()
    try:
        system = PairPotential("x", text, n=3, d=2)
    except InputError:
        return
    finally:
        assert time.process_time() - started < 5
    x = torch.tensor([[0.0, 0.0], [1.0, 0.2], [0.3, 1.1]], dtype=torch.float64)
    assert system.energy(x).shape == ()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=15,
)


@pytest.mark.slow
@FUZZ
@given(
    st.text(max_size=200)
    | PLAIN.map(json.dumps)
    | st.lists(
        st.sampled_from(
            [
                *("a: ", "- ", "&a ", "*a ", "!!int ", "!x ", "<<: ", "? ", "|\n", "%YAML 1.1\n"),
                *("{", "}", "[", "]", "\n", "  ", "1", "x", "---\n", "'", '"', "#"),
            ]
        ),
        max_size=40,
    ).map("".join)
)
def test_fuzz_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (lambda: get_system(path), lambda: load_config("fast", "dw4", file=path)):
        # An empty file changes no setting, and that is no error.
        with suppress(MolsamplerError):
            read()


def fuzz_bytes(*starts: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, and any bytes after one of the beginnings that get a reader going."""
    tail = st.binary(max_size=400)
    return tail | st.tuples(st.sampled_from(starts), tail).map(b"".join)


@pytest.mark.slow
@FUZZ
@given(
    st.sampled_from([".npz", ".dcd", ".pdb"]),
    fuzz_bytes(
        *(b"PK\x03\x04", dcd_header(1, 4), dcd_header(0, 4), b"ATOM  ", b"MODEL        1\nATOM"),
    ),
)
def test_fuzz_trajectories(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with suppress(MolsamplerError):
        assert bool(torch.isfinite(export.load(path, system="dw4").positions).all())


@pytest.mark.slow
@settings(FUZZ, max_examples=40)
@given(
    st.sampled_from([".xtc", ".h5"]),
    fuzz_bytes(
        xtc_frame(13)[:92], b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n\x00\x00\x00\x00\x00\x08"
    ),
)
def test_fuzz_decoders(tmp_path: Path, suffix: str, content: bytes) -> None:
    """A process each, which takes a second to start."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(FileFormatError):
        export.load(path, system="lj13")


@pytest.mark.slow
@FUZZ
@given(PLAIN.map(json.dumps).map(str.encode) | st.binary(max_size=300))
def test_fuzz_json(tmp_path: Path, content: bytes) -> None:
    """Whatever stands in place of a card or a sidecar."""
    (tmp_path / "card.json").write_bytes(content)
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(MolsamplerError):
        Sampler.load(tmp_path, system=get_system("dw4"))
    (tmp_path / "a.json").write_bytes(content)
    (tmp_path / "a.dcd").write_bytes(dcd_header(0, 4))
    with pytest.raises(MolsamplerError):
        export.load(tmp_path / "a.dcd", system="dw4")
