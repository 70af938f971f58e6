"""The report: self-contained, escaped, written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from exact_systems import Springs

from molsampler.analysis.comparison import Comparison, compare
from molsampler.analysis.page import script_hash
from molsampler.analysis.report import (
    describe_report,
    headline,
    render,
    write_json,
    write_report,
)
from molsampler.errors import FileFormatError, OutputExistsError, StorageError
from molsampler.samples import Samples
from molsampler.systems.mixture import GaussianMixture

HOSTILE = "</td><script>alert('x')</script>$\\frac{"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    system = Springs()
    return compare(
        Samples.of(system, 1.2 * system.sample(400, 1), note=HOSTILE, nested={HOSTILE: [1, 2]}),
        Samples.of(system, system.sample(400, 2), source=HOSTILE),
        system,
        n=100,
        repeats=3,
        transport_repeats=2,
        drift_steps=5,
        label=HOSTILE,
    )


def parsed(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every element of a page with its attributes, as a browser would see them."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[str, dict[str, str | None]]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, dict(attrs)))

    reader = Reader()
    reader.feed(page)
    return reader.found


def test_the_page_loads_nothing_and_escapes_what_files_say(comparison: Comparison) -> None:
    page = render(comparison)
    assert "&lt;script&gt;" in page
    elements = parsed(page)
    loads = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
    assert not [each for each in elements if loads & each[1].keys()]
    assert not [name for _, values in elements for name in values if name.startswith("on")]
    assert "url(" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert len(page.encode()) < 100_000


def test_the_policy_lets_no_script_run_but_the_pages_own(comparison: Comparison) -> None:
    page = render(comparison)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    policy = next(
        values["content"] or ""
        for tag, values in parsed(page)
        if tag == "meta" and values.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert digest == script_hash()
    assert "default-src 'none'" in policy
    # Data reach the page as text alone.
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval", "fetch"):
        assert way not in script


def test_a_report_says_what_it_is_and_whether_it_is_whole(
    comparison: Comparison, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    write_report(comparison, path)
    found = describe_report(path)
    assert found["intact"] is True
    assert (found["label"], found["system"]) == (HOSTILE, comparison.system)
    assert found["samples"] == 400
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Median energy", b"Median enemy!"))
    assert describe_report(path)["intact"] is False
    path.write_bytes(content[:-200])
    assert describe_report(path)["intact"] is False
    for other in (b"<!doctype html><title>mine</title>", b"\xff\xfe\x00"):
        path.write_bytes(other)
        with pytest.raises(FileFormatError):
            describe_report(path)


def test_every_metric_and_both_provenances_are_on_the_page(comparison: Comparison) -> None:
    page = render(comparison)
    for metric in comparison.metrics:
        assert f">{metric.name}" in page
    for text in ("Provenance", "Definitions", "Limits", "Plain Monte Carlo", "floor"):
        assert text in page


def test_the_headline_says_what_is_wrong(comparison: Comparison) -> None:
    text = headline(comparison)
    assert "Median energy" in text
    assert "largest excess" in text
    right = replace(comparison, metrics=tuple(m for m in comparison.metrics if m.passed()))
    assert "All" in headline(right)


def test_the_page_is_reproducible(comparison: Comparison) -> None:
    assert render(comparison) == render(comparison)


def test_modes_with_hostile_names_are_drawn() -> None:
    class Named(GaussianMixture):
        def mode_labels(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
            return (self.component(x) > 19).long(), (HOSTILE, "$x_")

    system = Named()
    draws = [
        Samples.of(system, system.sample(200, generator=torch.Generator().manual_seed(seed)))
        for seed in range(2)
    ]
    found = compare(
        *draws, system, n=50, repeats=2, transport_repeats=0, drift_steps=0, monte_carlo=False
    )
    page = render(found)
    assert "Mode weights" in page
    assert "Plain Monte Carlo" not in page
    assert len([tag for tag, _ in parsed(page) if tag == "script"]) == 1


def test_files_are_written_once_and_json_holds_the_numbers(
    comparison: Comparison, tmp_path: Path
) -> None:
    page, numbers = tmp_path / "report.html", tmp_path / "metrics.json"
    write_report(comparison, page)
    write_json(comparison, numbers)
    assert json.loads(numbers.read_text()) == json.loads(json.dumps(comparison.to_dict()))
    before = page.read_bytes()
    for write, path in ((write_report, page), (write_json, numbers)):
        with pytest.raises(OutputExistsError):
            write(comparison, path)
        write(comparison, path, overwrite=True)
    assert page.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.html"]


def test_links_and_missing_folders_are_refused(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "elsewhere.html")
    with pytest.raises(OutputExistsError):
        write_report(comparison, tmp_path / "link.html", overwrite=True)
    with pytest.raises(StorageError):
        write_report(comparison, tmp_path / "absent" / "report.html")
