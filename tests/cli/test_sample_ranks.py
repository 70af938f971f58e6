"""``torchrun ... sample``: the file that one process would write."""

from __future__ import annotations

import pytest
from ranks import Launched

from molsampler.cli import main


@pytest.mark.parametrize(
    ("number", "refine"),
    [("2100", "2"), pytest.param("10", "0", marks=pytest.mark.slow)],
    ids=["three blocks", "fewer blocks than ranks"],
)
def test_two_processes_write_the_file_of_one(number, refine, tmp_path, capsys):
    draw = ["sample", "dw4", "-n", number, "--seed", "3", "--refine", refine, "--device", "cpu"]
    launched = Launched(2, *draw, "-o", tmp_path / "two.npz", log=tmp_path / "log")
    assert launched.wait() == 0, launched.said
    assert main([*draw, "-o", str(tmp_path / "one.npz")]) == 0
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    said = capsys.readouterr().out.replace("one.npz", "two.npz")
    assert said in launched.said
    # Neither parts nor other leftovers.
    assert {path.name for path in tmp_path.iterdir()} == {"one.npz", "two.npz", "log"}


def test_what_is_not_shared_is_done_once(tmp_path):
    out = tmp_path / "out.xtc"
    (tmp_path / "some.npz").touch()
    assert main(["sample", "dw4", "-n", "5", "-o", str(tmp_path / "some.npz"), "--overwrite"]) == 0
    launched = Launched(2, "export", tmp_path / "some.npz", out, log=tmp_path / "log")
    assert launched.wait() == 0, launched.said
    assert launched.said.count("wrote") == 1
    assert "export is done by one process" in launched.said


@pytest.mark.slow
def test_what_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "there.npz").touch()
    draw = ["sample", "dw4", "-n", "10", "-o", tmp_path / "there.npz"]
    launched = Launched(2, *draw, log=tmp_path / "log")
    assert launched.wait() == 1
    assert len(launched.errors) == 1
    assert "--overwrite" in launched.errors[0]
