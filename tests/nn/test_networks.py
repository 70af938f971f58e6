"""Generator and denoiser commute with the symmetries of a cluster; a perceptron does not."""

import pytest
import torch
from torch.nn.functional import silu

from molsampler.compiled import SWITCH
from molsampler.errors import InputError
from molsampler.mcmc.population import Gaussian
from molsampler.nn.bodies import EGNNBody, MLPBody, egnn
from molsampler.nn.bodies.mlp import LocalBasis
from molsampler.nn.denoiser import Denoiser
from molsampler.nn.generators.implicit import ImplicitConfig, ImplicitSampling, Kinetic, Latent
from molsampler.space import Euclidean, MeanFree
from molsampler.systems import get_system

TOLERANCE = 1e-5
BODIES = {
    "dense": EGNNBody(width=32, layers=3),
    "dense, attention, deep head": EGNNBody(width=32, layers=2, attention=True, deep_head=True),
    "unordered": EGNNBody(width=32, layers=3, unordered=True),
    "no radial features": EGNNBody(width=32, layers=2, rbf=0, inverse=False),
}
SYSTEMS = ["dw4", "lj13"]


def _motions(d: int, n: int) -> dict:
    rng = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=rng))
    rotation = q if torch.det(q) > 0 else q * torch.tensor([-1.0] + [1.0] * (d - 1))
    reflection = rotation * torch.tensor([-1.0] + [1.0] * (d - 1))
    order = torch.randperm(n, generator=rng)
    return {
        "rotation": lambda x: x @ rotation.T,
        "reflection": lambda x: x @ reflection.T,
        "permutation": lambda x: x[..., order, :],
    }


def _denoiser_gap(body, system: str, motion: str) -> float:
    target = get_system(system)
    n, d = target.shape
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = Denoiser(body, target.space, data_scale=1.0)
    y = target.space.randn(16, generator=rng, like=torch.empty(0))
    s = 0.02 + 2 * torch.rand(16, generator=rng)
    move = _motions(d, n)[motion]
    return float((net(move(y), s) - move(net(y, s))).abs().max().detach())


def _generator_gap(body, system: str, motion: str) -> float:
    target = get_system(system)
    n, d = target.shape
    torch.manual_seed(0)
    config = ImplicitConfig(
        body=body, noise_features=3, sign_features=2, particle_signs=2, langevin_layers=2
    )
    net = config.build(target.space)
    latent = net.draw_latent(16, generator=torch.Generator().manual_seed(0))
    move = _motions(d, n)[motion]
    features = move(latent.features) if motion == "permutation" else latent.features
    moved = Latent(move(latent.position), features, move(latent.kicks))
    out = net(latent, target)
    return float(((net(moved, target) - move(out)).abs().max() / out.abs().max()).detach())


@pytest.mark.parametrize("motion", ["rotation", "reflection", "permutation"])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_networks_are_equivariant(body, system, motion):
    assert _denoiser_gap(body, system, motion) < TOLERANCE
    assert _generator_gap(body, system, motion) < TOLERANCE


@pytest.mark.parametrize("motion", ["rotation", "reflection", "permutation"])
def test_a_perceptron_fails_the_gate(motion):
    assert _denoiser_gap(MLPBody(width=32, layers=2), "dw4", motion) > 100 * TOLERANCE


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_translation_changes_nothing_and_output_is_mean_free(body):
    torch.manual_seed(0)
    space = MeanFree(5, 3)
    net = Denoiser(body, space, data_scale=1.0)
    y = space.randn(8, generator=torch.Generator().manual_seed(0), like=torch.empty(0))
    s = torch.full((8,), 0.3)
    out = net(y, s)
    shifted = net(y + torch.tensor([0.5, -1.0, 2.0]), s)
    assert float((out - shifted).abs().max().detach()) < TOLERANCE
    assert float(out.mean(1).abs().max().detach()) < TOLERANCE


def test_unordered_layer_equals_dense_layer_with_tied_weights():
    torch.manual_seed(0)
    space = MeanFree(6, 3)
    tied = Denoiser(EGNNBody(width=16, layers=2, unordered=True), space, data_scale=1.0)
    dense = Denoiser(EGNNBody(width=16, layers=2, unordered=False), space, data_scale=1.0)
    state = tied.state_dict()
    for key in list(state):
        if "from_i.weight" in key:
            state[key.replace("from_i", "from_j")] = state[key]
        if "from_i.bias" in key:
            # The bias enters a symmetric sum twice and a dense one once.
            state[key] = 2 * state[key]
    dense.load_state_dict(state)
    y = space.randn(8, generator=torch.Generator().manual_seed(0), like=torch.empty(0))
    s = torch.full((8,), 0.3)
    assert torch.allclose(tied(y, s), dense(y, s), atol=1e-5)


@pytest.mark.parametrize("name", list(BODIES))
def test_network_is_the_sum_over_pairs_of_its_docstring(name):
    """Particle by particle and pair by pair, as the equations are printed, one configuration at a time."""
    torch.manual_seed(0)
    space = MeanFree(5, 3)
    net = BODIES[name].build(space, 2, None)
    x = space.randn(3, generator=None, like=torch.empty(0))
    features = torch.randn(3, 5, 2)
    expected = []
    for positions, given in zip(x, features, strict=True):
        h, y = net.embed(given), positions
        for layer in net.layers:
            moves, seen = torch.zeros_like(y), torch.zeros_like(h)
            for i, j in ((i, j) for i in range(5) for j in range(5) if i != j):
                square = (y[i] - y[j]).square().sum()[None]
                distance = torch.sqrt(square + 1e-8)
                second = layer.from_i if layer.from_j is None else layer.from_j
                edge = layer.from_edge(layer.edge(square, distance))
                message = silu(layer.message(silu(layer.from_i(h[i]) + second(h[j]) + edge)))
                if layer.attention is not None:
                    message = message * torch.sigmoid(layer.attention(message))
                inner = message if layer.hidden_head is None else silu(layer.hidden_head(message))
                moves[i] += (y[i] - y[j]) / (distance + 1) * layer.head(inner)
                seen[i] += message
            y = y + moves / 4**0.5
            h = h + layer.node_out(silu(layer.node(torch.cat([h, seen / 4**0.5], dim=-1))))
        expected.append(y - positions)
    assert torch.allclose(net(x, features), torch.stack(expected), atol=1e-5)
    assert float(torch.stack(expected).detach().abs().max()) > 0.01


@pytest.mark.parametrize("name", list(BODIES))
def test_evaluation_in_pieces_gives_what_training_sees(name, monkeypatch):
    torch.manual_seed(0)
    target = get_system("lj13")
    net = BODIES[name].build(target.space, 2, None)
    x, features = (
        target.space.randn(50, generator=None, like=torch.empty(0)),
        torch.randn(50, 13, 2),
    )
    whole, sizes, real = net(x, features), [], egnn.EGNN._displacement
    # The kernel cuts rows itself.
    monkeypatch.setenv(SWITCH, "0")
    monkeypatch.setattr(egnn, "_PIECE", 7 * 13 * 12 * 32 * 4)

    def counted(self, x, features):
        sizes.append(len(x))
        return real(self, x, features)

    monkeypatch.setattr(egnn.EGNN, "_displacement", counted)
    with torch.no_grad():
        assert torch.allclose(net(x, features), whole, atol=1e-6)
        assert net(x[:0], features[:0]).shape == (0, 13, 3)
    assert len(sizes) > 3
    assert max(sizes) <= 14
    sizes.clear()
    net(x, features)
    assert sizes == [50]


def test_radial_features_are_never_denormal():
    features = egnn.EdgeFeatures(rbf=24, rbf_range=3.0, inverse=True)
    distance = torch.linspace(0.0, 100.0, 1001)[:, None]
    values = features(distance.square(), distance)[:, 1:-1]
    exact = torch.exp(-features.gamma * (distance.double() - features.centres.double()).square())
    assert float(values.min()) > torch.finfo(torch.float32).tiny
    assert float((values - exact).abs().max()) < 1e-5
    # Unclamped, most of them would be.
    assert float((exact < torch.finfo(torch.float32).tiny).double().mean()) > 0.5


def test_langevin_layer_survives_colliding_particles():
    """A fresh network may put particles on top of each other; the output must stay finite."""
    target = get_system("lj13")
    config = ImplicitConfig(body=EGNNBody(width=8, layers=1), latent_scale=1e-4, langevin_layers=3)
    net = config.build(target.space)
    x = net(net.draw_latent(64, generator=torch.Generator().manual_seed(0)), target)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_gradients_pass_through_langevin_layers(system):
    """Directional derivative of the whole generator against a finite difference, in float64."""
    target = get_system(system)
    torch.manual_seed(0)
    config = ImplicitConfig(
        body=EGNNBody(width=8, layers=1),
        latent_scale={"dw4": 2.0, "lj13": 8.0}[system],
        langevin_layers=2,
        langevin_step=1e-3,
    )
    net = config.build(target.space).double()
    rng = torch.Generator().manual_seed(0)
    latent = net.draw_latent(8, generator=rng)
    probe = torch.randn(8, *target.shape, generator=rng, dtype=torch.float64)
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(
        (net(latent, target) * probe).sum(), parameters, allow_unused=True
    )
    direction = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in parameters]
    analytic = sum(
        float((g * v).sum()) for g, v in zip(gradients, direction, strict=True) if g is not None
    )

    def shifted(size):
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p.add_(size * v)
            value = float((net(latent, target) * probe).sum())
            for p, v in zip(parameters, direction, strict=True):
                p.sub_(size * v)
        return value

    numeric = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
    assert analytic == pytest.approx(numeric, rel=2e-3)


def test_gradients_stay_bounded_through_colliding_particles():
    """Inside a wall the Hessian exceeds 1e20; the gradient of a fresh generator must not."""
    target = get_system("lj13")
    torch.manual_seed(0)
    body = EGNNBody(width=8, layers=1)
    gradients = []
    for scale in (1e-3, 0.1, 0.5):
        config = ImplicitConfig(
            body=body, latent_scale=scale, langevin_layers=3, langevin_step=3e-4
        )
        net = config.build(target.space)
        x = net(net.draw_latent(256, generator=torch.Generator().manual_seed(0)), target)
        x.square().sum(dim=(1, 2)).mean().backward()
        gradients.append(
            max(float(p.grad.abs().max()) for p in net.parameters() if p.grad is not None)
        )
    assert max(gradients) < 1e3


def test_an_egnn_for_a_single_particle_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        Denoiser(EGNNBody(width=8, layers=1), Euclidean(1, 2), data_scale=1.0)


def _largest_jump(body) -> float:
    """Largest step of a random perceptron between neighbours of a fine line through latent space."""
    torch.manual_seed(0)
    net = body.build(Euclidean(1, 1), 1, None)
    x = torch.linspace(-2, 2, 20_001)[:, None, None]
    with torch.no_grad():
        y = net(x, torch.ones(len(x), 1, 1))
    return float(y.diff(dim=0).abs().max())


def test_bins_make_a_perceptron_jump_and_bumps_do_not():
    assert _largest_jump(MLPBody(width=16, layers=1, bins=8)) > 0.05
    assert _largest_jump(MLPBody(width=16, layers=1, bumps=8)) < 0.005


def test_bins_hold_equal_shares_of_a_standard_normal():
    rng = torch.Generator().manual_seed(0)
    n, bins = 200_000, 16
    share = LocalBasis(0, bins)(torch.randn(n, 1, generator=rng)).mean(0)[0]
    error = (1 / bins / n) ** 0.5
    assert float((share - 1 / bins).abs().max()) < 6 * error


def test_the_generator_of_a_perceptron_scales_with_its_latent():
    """Inputs of the perceptron have unit scale, so a system in other units gets the same map."""
    space, outputs = Euclidean(1, 2), []
    for scale in (1.0, 40.0):
        torch.manual_seed(0)
        config = ImplicitConfig(body=MLPBody(width=16, layers=1, bins=4), latent_scale=scale)
        net, target = config.build(space), Gaussian(space, 1.0)
        latent = net.draw_latent(32, generator=torch.Generator().manual_seed(0))
        outputs.append(net(latent, target))
    assert torch.allclose(40 * outputs[0], outputs[1], rtol=1e-5, atol=1e-4)


def test_langevin_steps_start_on_a_geometric_ladder():
    config = ImplicitConfig(langevin_layers=3, langevin_step=0.04, langevin_last_step=0.01)
    steps = config.build(get_system("dw4").space).log_step.exp()
    assert steps.tolist() == pytest.approx([0.04, 0.02, 0.01])


def test_a_stretched_ladder_keeps_its_ends_and_its_law():
    target = Gaussian(Euclidean(1, 2), 1.0)
    config = ImplicitConfig(
        body=MLPBody(width=4, layers=1),
        langevin_layers=3,
        langevin_step=0.8,
        langevin_last_step=0.2,
        langevin_scheme="leimkuhler-matthews",
    )
    net = config.build(target.space, sampling=ImplicitSampling(layers=25))
    steps = net.steps()
    assert net.evaluations_per_sample == len(steps) == 25
    assert steps[[0, 12, 24]].tolist() == pytest.approx([0.8, 0.4, 0.2])
    assert (steps.diff() < 0).all()
    n = 20_000
    x = net.draw(n, target, generator=torch.Generator().manual_seed(0)).x.detach()
    # Averaged noise is exact where steps are equal, and nearly so where they change slowly.
    assert float(x.var()) == pytest.approx(1.0, abs=5 * (2 / (2 * n)) ** 0.5 + 0.02)


@pytest.mark.parametrize(
    ("scheme", "excess"), [("leimkuhler-matthews", 1.0), ("euler", 1 / (1 - 0.8 / 2))]
)
def test_variance_of_langevin_layers_in_a_harmonic_well(scheme, excess):
    """Exact with averaged noise; inflated by 1 / (1 - step / 2) with independent noise."""
    n, step = 40_000, 0.8
    target = Gaussian(Euclidean(1, 2), 1.0)
    config = ImplicitConfig(
        body=MLPBody(width=4, layers=1),
        langevin_layers=12,
        langevin_step=step,
        langevin_scheme=scheme,
    )
    net = config.build(target.space)
    x = net.draw(n, target, generator=torch.Generator().manual_seed(0)).x.detach()
    error = excess * (2 / (2 * n)) ** 0.5
    # The truncation of rare long drifts adds less than half a per cent.
    assert float(x.var()) == pytest.approx(excess, abs=5 * error + 0.005)


def relaxed(std: float, *, persistence: float, step_factor: float = 1.0, steps: int = 100):
    """Draws of a Gaussian of ``std`` in the plane by kinetic layers of step .05 times a factor, from a
    narrow start."""
    target = Gaussian(Euclidean(1, 2), std)
    config = ImplicitConfig(
        body=MLPBody(width=4, layers=1),
        langevin_layers=1,
        langevin_step=0.05,
        langevin_scheme="leimkuhler-matthews",
    )
    how = ImplicitSampling(
        kinetic=Kinetic(steps=steps, persistence=persistence, step_factor=step_factor)
    )
    net = config.build(target.space, sampling=how)
    assert net.evaluations_per_sample == 1 + steps
    with torch.no_grad():
        return net.draw(20_000, target, generator=torch.Generator().manual_seed(0)).x


@pytest.mark.parametrize("persistence", [0.0, 0.5, 0.9])
def test_kinetic_layers_have_the_variance_of_a_harmonic_well(persistence):
    """The middle scheme's positions are exact there at any stable step, here one period in seven."""
    x = relaxed(1.0, persistence=persistence, step_factor=8.0)
    assert float(x.var()) == pytest.approx(1.0, abs=5 * (2 / (2 * len(x))) ** 0.5 + 0.005)


def test_kinetic_layers_reach_further_the_longer_momenta_persist():
    """In a well of width 5: a random walk of 100 steps of length .3 knows 1 - exp(-100 h^2 / 25) of its
    variance, 30 %; steps that go on for ten know all but 1 %."""
    share = [float(relaxed(5.0, persistence=a).var()) / 25 for a in (0.0, 0.9)]
    assert share[0] < 0.45
    assert share[1] > 0.95


def test_kinetic_layers_are_refused_where_there_is_no_step_to_take_after():
    config = ImplicitConfig(body=MLPBody(width=4, layers=1))
    sampling = ImplicitSampling(kinetic=Kinetic())
    with pytest.raises(InputError, match="langevin_layers"):
        config.build(Euclidean(1, 2), sampling=sampling)
    plain = config.build(Euclidean(1, 2))
    with pytest.raises(InputError, match="langevin_layers"):
        plain.with_sampling(sampling)
    assert plain.relaxed(5) is None


def test_kinetic_layers_take_after_the_last_trained_step_however_many_come_before():
    """A step factor of the ratio of the trained steps gives the dynamics of the first."""
    space, target = Euclidean(1, 2), Gaussian(Euclidean(1, 2), 1.0)
    drawn = []
    for first, last, factor in ((0.2, 0.05, 4.0), (0.2, 0.2, 1.0)):
        config = ImplicitConfig(
            body=MLPBody(width=4, layers=1), langevin_layers=2, langevin_step=first, langevin_last_step=last,
        )  # fmt: skip
        how = ImplicitSampling(layers=1, kinetic=Kinetic(steps=5, step_factor=factor))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = config.build(space, sampling=how)
        with torch.no_grad():
            drawn.append(net.draw(50, target, generator=torch.Generator().manual_seed(1)).x)
    torch.testing.assert_close(drawn[0], drawn[1])


def test_layers_asked_for_later_add_to_those_there_are():
    config = ImplicitConfig(body=MLPBody(width=4, layers=1), langevin_layers=2)
    net = config.build(Euclidean(1, 2)).relaxed(5)
    assert net.evaluations_per_sample == 2 + 5
    longer = net.with_sampling(
        net.sampling.model_copy(update={"kinetic": Kinetic(steps=5, persistence=0.5)})
    ).relaxed(6)
    assert longer.kinetic == Kinetic(steps=11, persistence=0.5)


@pytest.mark.parametrize("fixed", [True, False])
def test_fixed_langevin_steps_take_no_gradient(fixed):
    target = get_system("dw4")
    config = ImplicitConfig(langevin_layers=2, langevin_step=0.01, langevin_fixed=fixed)
    net = config.build(target.space)
    x = net.draw(8, target, generator=torch.Generator().manual_seed(0)).x
    x.square().sum().backward()
    assert (net.log_step.grad is None) == fixed
