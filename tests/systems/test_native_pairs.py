"""Pair sums by the compiled kernel against those by torch."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from molsampler import compiled
from molsampler.compiled import SWITCH, UnavailableError
from molsampler.systems import PairPotential, get_system
from molsampler.systems.pair import native
from molsampler.systems.pair.native import OPERATIONS, NativePairs

#: Between them they use every operation that the kernel knows.
EXPRESSIONS = [
    "4*((1/r)^12 - (1/r)^6) + 0.05*r^2",
    "exp(-1.5*r)/r + 0.1*r^2",
    "log(r^2 + 1) + abs(1 - r^2) + 0.1*r^2",
    "r^2.5 + (r + 1)^r",
    "min(r, 2) + max(r^2, 1.5) + step(r - 1.2) + 3",
    "select(step(r - 1.5), (r - 1.5)^2, -r^3) + delta(r - 100)",
    "sqrt(r + 1) + 1/sqrt(r^3 + 1) + 1/(2 - r*exp(-r))",
    "0.5*r^2",
    "2*r + 1",
]


def make(expression: str, n: int = 5, d: int = 3, **options) -> PairPotential:
    return PairPotential("own", expression, n=n, d=d, **options)


def by_torch(monkeypatch, expression: str, **options) -> PairPotential:
    """The same system, evaluated by torch."""
    with monkeypatch.context() as patched:
        patched.setenv(SWITCH, "0")
        system = make(expression, **options)
        shape = (1, *system.shape)
        for full in (False, True):
            assert system._native(torch.zeros(shape), full=full) is None
    return system


def positions(system: PairPotential, rows: int = 37, dtype=torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *system.shape, generator=random, dtype=torch.float64)
    return (1.5 * x).to(dtype)


def served(system: PairPotential, x: Tensor) -> NativePairs:
    found = system._native(x, full=True)
    assert found is not None
    return found


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_energies_and_scores_are_those_of_torch(monkeypatch, expression, d) -> None:
    for n in (2, 5, 13):
        system, other = make(expression, n=n, d=d), by_torch(monkeypatch, expression, n=n, d=d)
        x = positions(system)
        served(system, x)
        for ours, theirs in zip(system.energy_and_score(x), other.energy_and_score(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(system.energy(x), other.energy(x), rtol=1e-9, atol=1e-9)
        single = system.energy_and_score(x.float())
        assert single[0].dtype == single[1].dtype == torch.float32
        right = system.energy(x.float().double())
        # Beyond, powers overflow.
        usual = right.abs() < 1e6
        torch.testing.assert_close(single[0][usual].double(), right[usual], rtol=2e-4, atol=2e-4)


def test_the_expressions_use_every_operation() -> None:
    functions = [make(expression).function for expression in EXPRESSIONS]
    used = {each for f in functions for each in (*f.full.operators, *f.value_only.operators)}
    assert used >= {*OPERATIONS}


def test_the_comparison_sees_operations_that_are_mixed_up(monkeypatch) -> None:
    swapped = list(OPERATIONS)
    i, j = swapped.index("min"), swapped.index("max")
    swapped[i], swapped[j] = swapped[j], swapped[i]
    monkeypatch.setattr(native, "OPERATIONS", tuple(swapped))
    expression = EXPRESSIONS[4]
    system, other = make(expression), by_torch(monkeypatch, expression)
    x = positions(system)
    served(system, x)
    assert not torch.allclose(system.energy(x), other.energy(x))


def test_particles_that_differ(monkeypatch) -> None:
    options = {
        "n": 6,
        "d": 2,
        "species": ["A", "A", "B", "B", "B", "A"],
        "pair_parameters": {"e": {"A-A": 1.0, "A-B": 0.5, "B-B": 2.0}},
        "external": "0.5*x^2 + 0.3*y^2",
    }
    expression = "e*exp(-r)/r"
    system, other = make(expression, **options), by_torch(monkeypatch, expression, **options)
    x = positions(system)
    served(system, x)
    for ours, theirs in zip(system.energy_and_score(x), other.energy_and_score(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_does_not_depend_on_its_batch_or_on_threads_in_any_bit(monkeypatch, dtype) -> None:
    monkeypatch.setattr(native, "_PAIRS_PER_THREAD", 1)
    system = get_system("lj13")
    assert isinstance(system, PairPotential)
    x = positions(system, rows=100, dtype=dtype)
    served(system, x)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(get_system("lj13").energy_and_score(x))
    finally:
        torch.set_num_threads(threads)
    for energy, score in results[1:]:
        assert torch.equal(energy, results[0][0])
        assert torch.equal(score, results[0][1])
    for start, stop in ((0, 1), (7, 8), (33, 64)):
        energy, score = system.energy_and_score(x[start:stop])
        assert torch.equal(energy, results[0][0][start:stop])
        assert torch.equal(score, results[0][1][start:stop])
    assert system.energy_and_score(x[:0])[1].shape == (0, 13, 3)


def test_positions_of_any_layout() -> None:
    system = make(EXPRESSIONS[0])
    x = positions(system)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(system.energy(strided), system.energy(x))


def test_a_cusp_at_zero_is_infinite_and_others_are_not() -> None:
    x = torch.tensor([[[0.0], [0.0], [3.0]], [[0.0], [1.0], [3.0]]])
    cusp, smooth = make("r", n=3, d=1), make("r^2", n=3, d=1)
    served(cusp, x)
    assert cusp.energy(x).tolist() == [float("inf"), 6.0]
    assert smooth.energy(x).tolist() == [18.0, 14.0]


def test_cusps_are_those_of_a_kind(monkeypatch) -> None:
    """Particles of a kind without a cusp may meet where another kind has one."""
    options = {
        "n": 3,
        "d": 1,
        "species": ["A", "A", "B"],
        "pair_parameters": {"a": {"A-A": 0.0, "A-B": 1.0}},
    }
    system = make("a*r + r^2", **options)
    other = by_torch(monkeypatch, "a*r + r^2", **options)
    x = torch.tensor([[[1.0], [1.0], [3.0]], [[1.0], [3.0], [3.0]]], dtype=torch.float64)
    served(system, x)
    assert system.energy(x).tolist() == other.energy(x).tolist() == [12.0, float("inf")]


@pytest.mark.parametrize("compiled_before", [True, False])
def test_threads_that_come_first_together_use_one_kernel(
    monkeypatch, tmp_path, compiled_before
) -> None:
    if not compiled_before:
        monkeypatch.setenv("MOLSAMPLER_CACHE", str(tmp_path))
        native._library.cache_clear()
        compiled._made.cache_clear()
    right = None
    for _ in range(10 if compiled_before else 1):
        system = get_system("lj13")
        x = positions(system, dtype=torch.float32)
        barrier = threading.Barrier(4)

        def call(_, system=system, x=x, barrier=barrier) -> Tensor:
            barrier.wait()
            return system.energy_and_score(x)[0]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(call, range(4)))
        right = found[0] if right is None else right
        assert all(torch.equal(each, right) for each in found)
    assert torch.equal(get_system("lj13").energy_and_score(x)[0], right)


def test_what_the_kernel_does_not_know_is_left_to_torch(monkeypatch) -> None:
    system = make("sin(r) + r^2")
    x = positions(system)
    assert system._native(x, full=True) is None
    assert torch.isfinite(system.energy(x)).all()
    with pytest.raises(UnavailableError, match="does not know"):
        NativePairs((5, 3), [system.function.full], native.SortedPairs.all(5))


def test_without_a_compiler_torch_evaluates(monkeypatch, tmp_path: Path) -> None:
    native._library.cache_clear()
    compiled._made.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("MOLSAMPLER_CACHE", str(tmp_path))
    try:
        system = make(EXPRESSIONS[0])
        x = positions(system)
        assert system._native(x, full=True) is None
        energy = system.energy(x)
    finally:
        native._library.cache_clear()
        compiled._made.cache_clear()
    monkeypatch.undo()
    torch.testing.assert_close(energy, make(EXPRESSIONS[0]).energy(x), rtol=1e-12, atol=1e-12)


def test_pickled_systems_evaluate_alike() -> None:
    system = make(EXPRESSIONS[0])
    x = positions(system)
    energy = system.energy(x)
    assert torch.equal(pickle.loads(pickle.dumps(system)).energy(x), energy)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_evaluates() -> None:
    """It inherits the pool of threads and none of the threads."""
    code = (
        "import os, torch; from molsampler.systems import get_system\n"
        "torch.set_num_threads(2); x = torch.randn(4096, 13, 3)\n"
        "system = get_system('lj13'); system.energy(x)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    native = system._native(x, full=False)\n"
        "    native.evaluate(x, score=False); os._exit(7)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 7
