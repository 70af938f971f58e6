"""Finding systems by name, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import molsampler.systems
from molsampler.errors import InputError, UnknownNameError
from molsampler.systems import get_system, list_systems


def test_registered_names() -> None:
    # Other tests of this process may have registered more, which come after.
    assert list_systems()[:6] == ("dw4", "lj13", "lj55", "mog40", "mw32", "alanine-dipeptide")
    for name in list_systems():
        assert get_system(name).name == name


def test_families_take_the_particle_count_from_the_name() -> None:
    assert get_system("lj7").shape == (7, 3)
    assert get_system("dw6").shape == (6, 2)
    for name in ("lj1", "lj5000", "lj99999999"):
        with pytest.raises(InputError, match="particles"):
            get_system(name)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("lj-13", "lj13"), ("LJ13", None), ("mog4", "mog40"), ("lj013", "lj13"), ("zzz", None)],
)
def test_unknown_names_suggest_the_nearest(name: str, suggestion: str | None) -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_system(name)
    assert repr(name) in str(caught.value)
    assert "mw32" in str(caught.value)
    if suggestion:
        assert f"did you mean {suggestion!r}" in str(caught.value)


def test_names_of_other_types_are_refused() -> None:
    for name in (13, None, b"lj13"):
        with pytest.raises(InputError, match="name"):
            get_system(name)  # type: ignore[arg-type]


def run(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_systems_are_imported_without_simulation_libraries(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from molsampler.systems import get_system; "
        "s = get_system('lj13'); s.energy(torch.randn(2, 13, 3)); "
        "print([m for m in ('openmm', 'mdtraj', 'scipy', 'ot', 'matplotlib') if m in sys.modules])"
    )
    done = run(code, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_source_folder_refuses_to_be_a_package_of_its_own(tmp_path: Path) -> None:
    source = Path(molsampler.systems.__file__).parent
    if source.name != "systems":
        pytest.fail(f"expected a folder called systems, got {source}")
    done = run(
        f"import sys; sys.path.insert(0, {str(source.parent)!r}); import systems", cwd=tmp_path
    )
    assert done.returncode != 0
    assert "molsampler.systems" in done.stderr


def test_classes_are_found_on_the_package() -> None:
    for name in molsampler.systems.__all__:
        assert hasattr(molsampler.systems, name)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = molsampler.systems.Nonsense
