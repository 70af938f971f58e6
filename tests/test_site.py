"""The pages hang together, and what they show runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.py"))

#: Pages that the site makes when it is built.
MADE = {"reference/commands.md", *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)}

#: Pages whose Python blocks are run together here; those of others are in test_docs.py.
RUN = ("index.md", "quickstart.md", "in-a-notebook.md")


class _Loader(yaml.SafeLoader):
    """For a file with tags of its reader's own."""


_Loader.add_multi_constructor("", lambda loader, suffix, node: None)


def pages(entry: object) -> list[str]:
    """Pages under a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, dict):
        return [page for value in entry.values() for page in pages(value)]
    assert isinstance(entry, list)
    return [page for value in entry for page in pages(value)]


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=_Loader)  # noqa: S506
    named = pages(config["nav"])
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert sorted(named) == sorted({*there, *MADE})


def broken(page: Path, text: str) -> list[str]:
    """Links to files that are not there."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.S))
    local = [link for link in found if "://" not in link and not link.startswith("mailto:")]
    made = {(DOCS / name).resolve() for name in MADE}
    targets = {link: (page.parent / link).resolve() for link in local}
    return [link for link, at in targets.items() if not at.exists() and at not in made]


@pytest.mark.parametrize(
    "page",
    [*DOCS.rglob("*.md"), *ROOT.glob("*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    assert broken(DOCS / "x.md", "[a](method.md) [b](nowhere.md#part) [c](https://x.org)") == [
        "nowhere.md"
    ]


def test_readme_is_short_and_its_sampler_is_the_one_that_draws() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2


@pytest.mark.parametrize("name", RUN)
def test_the_python_of_a_page_runs(name: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.S)
    if not blocks:
        assert name == "index.md"
        return
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    if path.stem == "own_molecule":
        pytest.importorskip("rdkit")
    done = subprocess.run(
        [sys.executable, DOCS / "notebook.py", path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("# ")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "MOLSAMPLER_RUN_NOTEBOOKS": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "site" / "index.html").exists()
