"""Which system a file is of, by what it records and what its reader gives."""

from __future__ import annotations

import json

import pytest

from molsampler.errors import FileFormatError, InputError, UnknownNameError
from molsampler.systems import PairPotential, get_system, resolve, resolve_recorded
from molsampler.target import System


def pair(name: str = "mine", a: float = 1.5) -> PairPotential:
    return PairPotential(name, "(r - a)^2", n=4, d=3, parameters={"a": a}, length_nm=0.2)


class Hashed(System):
    """A system of which files hold a hash alone."""

    shape = (4, 3)

    def __init__(self, name: str, digest: str):
        self.name, self.digest = name, digest

    def record(self):
        return {"kind": "openmm", "name": self.name, "sha256": self.digest}


def test_a_user_means_a_system_a_name_or_a_file(tmp_path) -> None:
    system = pair()
    assert resolve(system) is system
    assert resolve("lj7").shape == (7, 3)
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(system.record()))
    assert resolve(path).record() == system.record()
    assert resolve(str(path)).record() == system.record()


@pytest.mark.parametrize("name", ["dw4", "lj13", "mog40", "mw32"])
def test_a_record_is_rebuilt(name: str) -> None:
    assert resolve_recorded(get_system(name).record()).name == name
    assert resolve_recorded(pair().record()).record() == pair().record()


@pytest.mark.parametrize(
    "reference", ["mine.yaml", "/etc/passwd", "../x", "a b", "", 3, ["lj13"], "x" * 101]
)
def test_a_file_makes_nobody_open_others(reference) -> None:
    with pytest.raises(FileFormatError, match=r"a\.npz must name its system by a plain name"):
        resolve_recorded(reference, source="a.npz")


def test_a_record_of_a_system_defined_elsewhere_is_not_built() -> None:
    record = {"kind": "openmm", "name": "water", "sha256": "0" * 64}
    with pytest.raises(InputError, match=r"a\.dcd is of 'water', an OpenMM system.*--system"):
        resolve_recorded(record, source="a.dcd")
    # Nor is one that gives the keys of a system file.
    keys = {**record, "pdb": "/etc/passwd", "forcefield": "amber14-all.xml", "temperature": 300}
    with pytest.raises(InputError, match="defined elsewhere"):
        resolve_recorded(keys)


@pytest.mark.parametrize(
    ("reference", "error", "match"),
    [
        (None, InputError, "a.npz does not say which system it is of; pass system="),
        ("lj-13", UnknownNameError, "did you mean 'lj13'.*your own, pass system="),
        ({"kind": "pair", "name": "x"}, UnknownNameError, "no system kind 'pair'.*pass system="),
        ({"kind": ["pair"]}, UnknownNameError, "no system kind"),
        ({"name": "x"}, InputError, "a.npz: the recorded system: missing key.*'expression'"),
        ({**pair().record(), "expression": "__import__('os')"}, InputError, "the recorded system"),
    ],
)
def test_a_record_that_tells_too_little_is_refused(reference, error, match: str) -> None:
    with pytest.raises(error, match=match):
        resolve_recorded(reference, source="a.npz")


def test_what_the_reader_gives_must_be_what_the_file_says() -> None:
    given = Hashed("water", "0" * 64)
    for agreed in (None, "water", given.record()):
        assert resolve_recorded(agreed, given=given) is given
    assert resolve_recorded("lj13", given="lj13").name == "lj13"
    with pytest.raises(InputError, match=r"a\.npz is of 'ice', system= says 'water'"):
        resolve_recorded("ice", given=given, source="a.npz")
    with pytest.raises(InputError, match="another definition or temperature of 'water'"):
        resolve_recorded({**given.record(), "sha256": "1" * 64}, given=given)


def test_another_formula_of_the_same_name_is_refused() -> None:
    given = pair(a=1.5)
    assert resolve_recorded(pair(a=1.5).record(), given=given) is given
    with pytest.raises(InputError, match="another definition or temperature of 'mine'"):
        resolve_recorded(pair(a=1.6).record(), given=given)


def test_tuples_in_a_record_come_back_as_lists() -> None:
    class Boxed(Hashed):
        def record(self):
            return {"kind": "boxed", "name": self.name, "box": (1.0, 2.0)}

    given = Boxed("water", "")
    assert resolve_recorded(json.loads(json.dumps(given.record())), given=given) is given
    with pytest.raises(InputError, match="another definition"):
        resolve_recorded({**given.record(), "box": [1.0, 3.0]}, given=given)
