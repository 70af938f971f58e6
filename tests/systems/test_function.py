"""Systems by a Python function: the score, what is wrong with a function, and who may run its file."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from molsampler import Samples, export
from molsampler.cli import main
from molsampler.errors import FileFormatError, InputError, ShapeError
from molsampler.systems import FunctionSystem, get_system, resolve_recorded

EXAMPLES = Path(__file__).parents[2] / "benchmarks" / "systems"

FILE = """
kind: function
function: valley.py:u
particles: 1
dimensions: 2
"""
CODE = "def u(x):\n    return 0.5 * (x - 3).square().sum((-2, -1))\n"


def valley(x):
    return 0.5 * (x - 3).square().sum((-2, -1))


def springs(x):
    """A particle on springs to all others: invariant, and a function of the distances alone."""
    return 0.25 * (x[:, :, None] - x[:, None]).square().sum((-3, -2, -1))


def system(u=valley, **options) -> FunctionSystem:
    return FunctionSystem("mine", u, **{"shape": (1, 2), **options})


def write(folder: Path, text: str = FILE, code: str = CODE) -> Path:
    (folder / "valley.py").write_text(code)
    (folder / "valley.yaml").write_text(text)
    return folder / "valley.yaml"


def test_mueller_brown_has_its_published_minima_and_saddles() -> None:
    target = get_system(EXAMPLES / "mueller_brown.yaml", trust_code=True)
    # Mueller & Brown 1979; energies there are ten times those in kT here.
    published = {
        (-0.558, 1.442): -146.70,
        (0.623, 0.028): -108.17,
        (-0.050, 0.467): -80.77,
        (-0.822, 0.624): -40.66,
        (0.212, 0.293): -72.25,
    }
    for point, energy in published.items():
        x = torch.tensor([[point]], dtype=torch.float64)
        u, score = target.energy_and_score(x)
        assert abs(10 * float(u) - energy) < 0.02
        assert float(score.abs().max()) < 0.2
    assert float(target.energy_and_score(x + 0.1)[1].abs().max()) > 1.0


def test_energies_differentiate_and_keep_out_of_inference_mode() -> None:
    x = torch.randn(4, 1, 2)
    with torch.inference_mode():
        u, score = system().energy_and_score(x)
    torch.testing.assert_close(score, 3 - x)
    torch.testing.assert_close(u, valley(x))


def test_a_function_may_work_in_place_without_harm() -> None:
    def greedy(x):
        with torch.no_grad():
            x += 0.0
        return valley(x)

    x = torch.randn(2, 1, 2)
    before = x.clone()
    system(greedy).energy_and_score(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("u", "error", "sentence"),
    [
        (lambda x: 3.0, InputError, "must return a torch tensor of shape (b,), got float"),
        (lambda x: valley(x).numpy(), InputError, "fails on positions (12, 1, 2): RuntimeError"),
        (lambda x: valley(x)[:, None], ShapeError, "shape (12,) for positions (12, 1, 2), got (12, 1)"),
        (lambda x: valley(x).sum(), ShapeError, "got (); sums run over particles and dimensions"),
        (lambda x: x.square().sum((-2, -1)).squeeze(), ShapeError, "shape (1,)"),
        (lambda x: valley(x).detach(), InputError, "autograd cannot differentiate"),
        (lambda x: torch.zeros(len(x)), InputError, "do not depend on x"),
        (lambda x: valley(x) + 0j, InputError, "must return real numbers, got torch.complex128"),
        (lambda x: x.nope, InputError, "AttributeError"),
        (lambda x: valley(x) + torch.rand(len(x)), InputError, "for the same configuration"),
        (lambda x: valley(x - x.mean(0)), InputError, "mixes the rows of a batch"),
        (lambda x: valley(x) / valley(x).sum(), InputError, "mixes the rows of a batch"),
        (lambda x: (x.round() + 0 * x).square().sum((-2, -1)), InputError, "autograd finds no slope"),
        (lambda x: valley(x.round() + x - x.detach()), InputError, "is not its own"),
        (lambda x: valley(x) * torch.nan, InputError, "is finite at none of 12"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_function_is_said(u, error, sentence) -> None:
    with pytest.raises(error) as caught:
        system(u)
    assert sentence in str(caught.value)
    assert "function of system 'mine'" in str(caught.value)


def test_a_box_with_hard_walls_is_no_flat_space() -> None:
    def walls(x: torch.Tensor) -> torch.Tensor:
        inside = (x.abs() < 4).all(-1).all(-1)
        return torch.where(inside, 0.0 * x.sum((-1, -2)), torch.inf)

    box = system(walls)
    x = torch.tensor([[[1.0, 2.0]], [[1.0, 5.0]]])
    assert box.energy(x).tolist() == [0.0, math.inf]
    # Negative control: without walls there is no norm.
    with pytest.raises(InputError, match="no norm on all of space"):
        system(lambda x: 0.0 * x.sum((-1, -2)))


@pytest.mark.parametrize(
    ("u", "options", "sentence"),
    [
        (3, {}, "u must be a function"),
        (valley, {"shape": 3}, "shape must be (particles, dimensions)"),
        (valley, {"shape": (0, 2)}, "particles must be an integer"),
        (valley, {"space": "torus"}, "space must be 'euclidean' or 'mean-free'"),
        (valley, {"space": "mean-free"}, "a single particle"),
        (valley, {"temperature": -1}, "temperature must be a positive number"),
        (valley, {"length_nm": 0}, "length_nm"),
        (valley, {"name": "../x"}, "name must be"),
        (valley, {"shape": (3, 2), "space": "mean-free"}, "changes under translation"),
        (valley, {"invariant": True}, "invariant=True needs space='mean-free'"),
        (springs, {"shape": (3, 2)}, "is unchanged by translation, so exp(-u) has no norm"),
        (lambda x: springs(x * x.new_tensor([1.0, 2.0])),
         {"shape": (3, 2), "space": "mean-free", "invariant": True}, "changes under rotation"),
        (lambda x: springs(x) + (x[:, 0] - x[:, 1]).square().sum(-1),
         {"shape": (3, 2), "space": "mean-free", "exchangeable": True}, "particles are permuted"),
    ],
)  # fmt: skip
def test_arguments_that_are_not_so_are_refused(u, options, sentence) -> None:
    with pytest.raises(InputError) as caught:
        FunctionSystem(**{"name": "mine", "u": u, "shape": (1, 2), **options})
    assert sentence in str(caught.value)


def test_functions_of_single_precision_are_accepted() -> None:
    single = system(
        lambda x: springs(x.float()), shape=(4, 3), space="mean-free", invariant=True,
        exchangeable=True,
    )  # fmt: skip
    assert single.energy(torch.randn(3, 4, 3, dtype=torch.float64)).dtype == torch.float64


def test_a_file_is_run_only_where_that_was_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, code="open('ran', 'w')\n" + CODE)
    with pytest.raises(InputError, match=r"runs Python code, here 'valley.py:u'.*--trust-code"):
        get_system(path)
    assert not Path("ran").exists()
    assert get_system(write(tmp_path), trust_code=True).name == "valley"


def test_a_record_is_of_one_content_of_the_file(tmp_path: Path) -> None:
    given = get_system(write(tmp_path), trust_code=True)
    record = json.loads(json.dumps(given.record()))
    assert record["sha256"] == hashlib.sha256(CODE.encode()).hexdigest()
    assert resolve_recorded(record, given=given) is given
    # What a file records is never run, whatever it says.
    with pytest.raises(
        InputError, match="a Python function, which files do not hold; pass system="
    ):
        resolve_recorded(record, source="a.npz")
    changed = get_system(write(tmp_path, code=CODE + "# other\n"), trust_code=True)
    with pytest.raises(InputError, match=r"another definition.*'valley'.*: sha256 is "):
        resolve_recorded(record, given=changed)


@pytest.mark.parametrize(
    ("old", "new", "error", "sentence"),
    [
        ("valley.py:u", "valley.py", InputError, "function must be FILE.py:NAME"),
        ("valley.py:u", "valley.py:v", InputError, "has no function 'v'"),
        ("valley.py:u", "none.py:u", FileFormatError, "none.py does not exist"),
        ("kind: function", "kind: function\nsha256: '00'", FileFormatError, "another function"),
        ("dimensions: 2", "dimensions: two", InputError, "dimensions must be an integer"),
        ("dimensions: 2", "dimension: 2", InputError, "did you mean 'dimensions'"),
    ],
)
def test_faults_in_the_file_are_named(tmp_path, old, new, error, sentence) -> None:
    with pytest.raises(error) as caught:
        get_system(write(tmp_path, FILE.replace(old, new)), trust_code=True)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("code", ["def u(x:\n", "import no_such_module\n", "1 / 0\n"])
def test_a_file_that_cannot_be_run_is_one_sentence(tmp_path, code) -> None:
    with pytest.raises(InputError, match=r"valley.py.* cannot be run: \w+Error: ") as caught:
        get_system(write(tmp_path, code=code), trust_code=True)
    assert "\n" not in str(caught.value)


def test_the_commands_ask_for_trust_and_take_it(tmp_path: Path, capsys) -> None:
    path = write(tmp_path)
    samples = Samples.of(get_system(path, trust_code=True), 3 + torch.randn(200, 1, 2))
    source = tmp_path / "a.npz"
    samples.save(source)
    calls = [
        ("export", source, tmp_path / "b.npz", "--system", path),
        ("compare", source, source, "--system", path, "-n", 50, "--no-monte-carlo"),
        ("reference", path, "-n", 40, "-o", tmp_path / "r.npz", "--method", "mcmc",
         "--max-steps", 1000),
        ("train", path, tmp_path / "run", "--set", "nope=1"),
    ]  # fmt: skip
    for arguments in calls:
        call = [str(each) for each in arguments]
        capsys.readouterr()
        assert main(call) == 1
        assert "read that file, then allow it by --trust-code" in capsys.readouterr().err
        code = main([*call, "--trust-code"])
        said = capsys.readouterr().err
        assert "trust" not in said
        # The last is wrong in its settings, which are read after the system.
        assert (code, "'nope'" in said) == ((1, True) if arguments[0] == "train" else (0, False))
    with pytest.raises(InputError, match="pass system="):
        export.load(source).system()
