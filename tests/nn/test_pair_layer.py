"""The compiled kernel of an EGNN's pairs against the torch code that it stands for."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from molsampler.compiled import SWITCH, UnavailableError
from molsampler.nn import pair_layer
from molsampler.nn.bodies.egnn import EGNN, EGNNBody
from molsampler.space import Euclidean, MeanFree
from tests.chains import Chain

PLAIN = {
    "width": 48, "layers": 3, "rbf": 20, "rbf_range": 4.5, "inverse": False,
    "attention": False, "unordered": True, "deep_head": True,
}  # fmt: skip
KINDS = {
    "unordered": {},
    "ordered": {"unordered": False},
    "shallow": {"deep_head": False},
    "ordered shallow": {"unordered": False, "deep_head": False, "inverse": True},
    "wide, without radial functions": {"width": 80, "rbf": 0},
    "molecule": {"molecule": Chain().molecule},
    "molecule, ordered": {"molecule": Chain().molecule, "unordered": False, "inverse": True},
}


@pytest.fixture(autouse=True)
def _needs_the_kernel() -> None:
    try:
        pair_layer._kernel()
    except UnavailableError as error:
        pytest.skip(str(error))


def network(**changed) -> EGNN:
    """A network of five particles that has moved on from its first weights."""
    torch.manual_seed(0)
    net = EGNN(5, 4, **{**PLAIN, **changed})
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def problem(batch: int, dimensions: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, features, and weights of the displacements."""
    random = torch.Generator().manual_seed(batch)
    shapes = (batch, 5, dimensions), (batch, 5, 4), (batch, 5, dimensions)
    return tuple(torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)


def answer(
    net: EGNN, given: tuple[Tensor, ...], dtype: torch.dtype, monkeypatch, *, kernel: bool
) -> list[Tensor]:
    """Displacements and all gradients, in float64."""
    monkeypatch.setenv(SWITCH, "1" if kernel else "0")
    x, features, weight = (each.to(dtype) for each in given)
    net = net.to(dtype)
    leaves = [x.requires_grad_(), features.requires_grad_(), *net.parameters()]
    y = net(x, features)
    grads = torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True)
    kept = [each for each in grads if each is not None]
    return [each.detach().double() for each in (y, *kept)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("batch", [1, 16, 33])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_kernel_is_as_near_to_the_truth_as_torch(kind, batch, dimensions, monkeypatch) -> None:
    net, given = network(**kind), problem(batch, dimensions)
    truth = answer(net, given, torch.float64, monkeypatch, kernel=False)
    theirs = answer(net, given, torch.float32, monkeypatch, kernel=False)
    ours = answer(net, given, torch.float32, monkeypatch, kernel=True)
    assert len(ours) == len(theirs) == len(truth)
    differs = False
    for own, other, exact in zip(ours, theirs, truth, strict=True):
        scale = float(exact.abs().max())
        allowed = float((other - exact).abs().max())
        assert float((own - exact).abs().max()) <= 4 * allowed + 3e-6 * scale
        differs = differs or not torch.equal(own, other)
    # Otherwise torch was compared with itself.
    assert differs


def test_threads_and_neighbours_do_not_change_a_number(monkeypatch) -> None:
    net = network()
    x, features, weight = (each.float() for each in problem(200))

    def result(threads: int) -> list[Tensor]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        leaves = [x.requires_grad_(), *net.parameters()]
        y = net(x, features)
        grads = torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True)
        return [y.detach(), *(each for each in grads if each is not None)]

    monkeypatch.setattr(pair_layer, "_PAIRS_PER_THREAD", 1)
    for one, other in zip(result(1), result(3), strict=True):
        assert torch.equal(one, other)
    first, second = pair_of_inputs(200)
    whole, _ = layer_of(first, second, x.detach())
    part, _ = layer_of(first[:, 40:77], second[:, 40:77], x.detach()[40:77])
    assert torch.equal(whole[:, 40:77], part)


def pair_of_inputs(batch: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(5, batch, 48, generator=random), torch.randn(5, batch, 48, generator=random)


def layer_of(first: Tensor, second: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a layer of ordered pairs makes of particles."""
    layer = network(unordered=False).layers[0]
    with torch.no_grad():
        return pair_layer.layer(
            *(x.transpose(0, 1), first, second, None),
            *(layer.edge.as_settings(), layer._matrices()),
            aggregate=True,
            by_torch=layer._by_torch,
        )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_second_derivatives_are_those_of_torch(kind, monkeypatch) -> None:
    net = network(**kind)
    x, features, weight = (each.float() for each in problem(7))

    def twice() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = (net(leaf, features) * weight).sum()
        (slope,) = torch.autograd.grad(y, leaf, create_graph=True)
        grads = torch.autograd.grad(
            slope.square().sum(), [leaf, *net.parameters()], allow_unused=True
        )
        return [each for each in (slope.detach(), *grads) if each is not None]

    ours = twice()
    monkeypatch.setenv(SWITCH, "0")
    for own, other in zip(ours, twice(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_only_what_needs_a_gradient_gets_one(monkeypatch) -> None:
    x, features, _ = (each.float() for each in problem(40))
    net = network()
    asked = []
    real = pair_layer._parted

    def counted(*arguments):
        asked.append(len(arguments))
        return real(*arguments)

    monkeypatch.setattr(pair_layer, "_parted", counted)
    (whole,) = torch.autograd.grad(
        net(x.requires_grad_(), features).square().sum(), x, retain_graph=False
    )
    assert len(asked) == 3
    asked.clear()
    net.requires_grad_(False)
    (alone,) = torch.autograd.grad(net(x, features).square().sum(), x)
    assert asked == []
    assert torch.equal(whole, alone)


def test_what_is_not_a_number_stays_with_its_row() -> None:
    x, features, _ = (each.float() for each in problem(40))
    net = network()
    with torch.no_grad():
        good = net(x, features)
        x[7, 2, 0] = float("nan")
        bad = net(x, features)
    assert bool(bad[7].isnan().any())
    others = torch.arange(40) != 7
    assert torch.equal(bad[others], good[others])


def test_coincident_particles_have_finite_gradients() -> None:
    x, features, _ = (each.float() for each in problem(3))
    x[:, 1] = x[:, 0]
    net = network()
    y = net(x.requires_grad_(), features)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert bool(grad.isfinite().all())


def test_what_serves_and_what_does_not(monkeypatch) -> None:
    x = torch.zeros(5, 3, 3)
    assert pair_layer.serves(48, x)
    assert pair_layer.serves(48, x, None, x)
    assert not pair_layer.serves(48, x.double())
    assert not pair_layer.serves(48, x, x.bfloat16())
    assert not pair_layer.serves(50, x)
    assert not pair_layer.serves(48, torch.zeros(5, 3, 4))
    assert not pair_layer.serves(48, torch.zeros(5, 0, 3))
    with torch.autocast("cpu"):
        assert not pair_layer.serves(48, x)
    assert not network(attention=True).layers[0].by_kernel(x)
    assert network().layers[0].by_kernel(x)
    bodies = EGNNBody(width=48), EGNNBody(width=48, attention=True), EGNNBody(width=47)
    assert [each.by_kernel(MeanFree(5, 3)) for each in bodies] == [True, False, False]
    assert not bodies[0].by_kernel(Euclidean(5, 4))
    monkeypatch.setenv(SWITCH, "0")
    assert not pair_layer.serves(48, x)
    assert not bodies[0].by_kernel(MeanFree(5, 3))


def test_networks_of_another_precision_are_left_to_torch() -> None:
    x, features, _ = problem(8)
    net = network().double()
    y = net(x.float(), features)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, net(x, features), rtol=1e-4, atol=1e-4)


def test_weights_are_those_that_are_given() -> None:
    """Of a functional call, whose parameters are not the module's."""
    net = network()
    x, features, weight = (each.float() for each in problem(20))
    given = {name: 1.1 * each.detach() for name, each in net.named_parameters()}
    given = {name: each.requires_grad_() for name, each in given.items()}

    def squares() -> Tensor:
        y = torch.func.functional_call(net, given, (x, features))
        grads = torch.autograd.grad(
            (y * weight).sum(), list(given.values()), create_graph=True, allow_unused=True
        )
        return sum(each.square().sum() for each in grads if each is not None)

    ours = squares()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "0")
        torch.testing.assert_close(ours, squares(), rtol=1e-4, atol=0)


def test_transforms_of_functions_see_what_they_have_to() -> None:
    net = network().requires_grad_(False)
    x, features, weight = (each.float() for each in problem(600))
    _, along = torch.func.jvp(lambda x: net(x, features), (x,), (weight,))
    step = 1e-3
    with torch.no_grad():
        ends = net(x + step * weight, features), net(x - step * weight, features)
    torch.testing.assert_close(along, (ends[0] - ends[1]) / (2 * step), rtol=0.02, atol=0.02)
    assert float(along.abs().max()) > 0.1


def of_these_registers() -> list[float]:
    """Numbers in a register of the kernel of this process, and what it says of a network."""
    x, features, weight = (each.float() for each in problem(70))
    y = network()(x.requires_grad_(), features)
    (grad,) = torch.autograd.grad((y * weight).sum(), x)
    lanes = pair_layer._kernel().pair_layer_lanes()
    return [float(lanes), float(y.abs().sum()), float(grad.abs().sum())]


def test_registers_of_other_processors_give_the_same(tmp_path) -> None:
    """The same source for AVX2 and for the least that an x86 processor has."""
    if platform.machine() not in ("x86_64", "AMD64") or shutil.which("g++") is None:
        pytest.skip("needs g++ for x86")
    code = "from tests.nn.test_pair_layer import of_these_registers; print(*of_these_registers())"
    flags = ("-mno-avx512f", "-mno-avx512f -mno-avx2 -mno-avx -mno-fma")
    answers = [of_these_registers()]
    for flag in flags:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "CXX": f"g++ {flag}", "MOLSAMPLER_CACHE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append([float(word) for word in done.stdout.split()])
    assert len({answer[0] for answer in answers}) > 1
    for _, *numbers in answers:
        assert numbers == pytest.approx(answers[0][1:], rel=1e-4)
