"""Commands with a format that is defined outside the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_formats import Text

from molsampler import export


@pytest.fixture
def text() -> Iterator[None]:
    export.register_format(Text())
    yield
    export.FORMATS.unregister(Text.suffix)


@pytest.mark.usefixtures("small_samplers", "text")
def test_sample_export_info_and_doctor_know_it(run, tmp_path: Path) -> None:
    path = tmp_path / "x.toy"
    assert run("sample", "dw4", "-n", 20, "-o", path, "--seed", 1).code == 0
    assert len(export.load(path)) == 20
    report = json.loads(run("info", path, "--json").out)
    assert report["description"] == Text.description
    assert report["intact"] is True
    assert run("export", path, tmp_path / "y.npz").code == 0
    assert run("export", tmp_path / "y.npz", tmp_path / "z.toy").code == 0
    assert len(export.load(tmp_path / "z.toy")) == 20
    checks = json.loads(run("doctor", "--json").out)["checks"]
    assert any(".toy" in check["detail"] for check in checks)
    refused = run("sample", "dw4", "-n", 5, "-o", tmp_path / "x.tox")
    assert refused.code == 1
    assert "did you mean '.toy'" in refused.err


@pytest.mark.usefixtures("small_samplers")
def test_it_is_unknown_until_it_is_registered(run, tmp_path: Path) -> None:
    refused = run("sample", "dw4", "-n", 5, "-o", tmp_path / "x.toy")
    assert refused.code == 1
    assert "--output 'x.toy' must end in one of .npz" in refused.err
