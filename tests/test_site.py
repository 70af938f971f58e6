"""The pages hang together, and what they show runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from typer.core import TyperGroup

from molsampler.cli.app import app
from molsampler.systems import get_system

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.py"))

#: Pages that the site makes when it is built.
MADE = {"reference/commands.md", *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)}

#: Pages whose Python blocks are run together here; those of others are in test_docs.py.
RUN = (
    "index.md",
    "quickstart.md",
    "in-a-notebook.md",
    "exact-weights.md",
    "free-energy.md",
    "temperatures.md",
)


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


#: What makes the README's training one of seconds.
SHORT = (
    "iterations=20", "evaluate_every=20", "evaluate_samples=100", "compile=false", "batch_size=32",
    "target_score.size=256", "target_score.equilibration=20", "target_score.warmup=20",
)  # fmt: skip


@pytest.mark.parametrize("index", [0, 1])
def test_the_python_of_the_readme_runs(index: int, tmp_path: Path) -> None:
    """Samples as a trajectory; the training of a function's energy, cut short."""
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[index]
    if index:
        whole = 'load_config("fast", system)'
        assert whole in block
        block = block.replace(whole, f"{whole[:-1]}, overrides={SHORT})")
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    made = ("lj13.xtc", "runs/ring/artifact/card.json")[index]
    assert (tmp_path / made).is_file()


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "quickstart.md"])
def test_the_system_files_of_a_page_are_systems(page: Path, tmp_path: Path) -> None:
    files = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)
    assert files
    for text in files:
        if "smiles" in text:
            pytest.importorskip("rdkit")
            pytest.importorskip("openmm")
        path = tmp_path / "system.yaml"
        path.write_text(text)
        system = get_system(path)
        energy, score = system.energy_and_score(torch.randn(2, *system.shape))
        assert energy.shape == (2,)
        assert score.shape == (2, *system.shape)


def commands(text: str) -> list[list[str]]:
    """The words of every molsampler command that stands in a block of shell lines."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        # It may stand behind a launcher, an environment variable or a path.
        at = next((k for k, word in enumerate(words) if word.split("/")[-1] == "molsampler"), None)
        if at is not None and "install" not in words[:at]:
            found.append(words[at + 1 :])
    return found


def wrong(words: list[str]) -> list[str]:
    """What a command line says that the tool does not know."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    if not words or words[0].startswith("-"):
        return []
    command = group.commands.get(words[0])
    if command is None:
        return [words[0]]
    known = {"--help", "-h"}
    for parameter in command.params:
        known.update(parameter.opts, parameter.secondary_opts)
    given = [word.split("=")[0] for word in words[1:] if re.match(r"--?[a-zA-Z]", word)]
    return [word for word in given if word not in known]


@pytest.mark.parametrize(
    "page",
    [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda page: page.name,
)
def test_commands_on_a_page_are_those_of_the_tool(page: Path) -> None:
    assert [(words, wrong(words)) for words in commands(page.read_text()) if wrong(words)] == []


def test_a_command_that_the_tool_does_not_know_is_found() -> None:
    lines = ("export A=1", "torchrun -m molsampler sample lj13 --sead 1  # x", "molsampler samle a")
    text = "\n".join(("```sh", *lines, "```"))
    assert [wrong(words) for words in commands(text)] == [["--sead"], ["samle"]]


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
