"""Networks of molecules: exactly the symmetry of the bond graph, neither more nor less."""

import json

import pytest
import torch
from chains import Chain, methane

from molsampler.errors import FileFormatError, InputError
from molsampler.molecule.chirality import signed_volumes
from molsampler.molecule.molecule import Molecule
from molsampler.nn.bodies import EGNNBody
from molsampler.nn.denoiser import Denoiser
from molsampler.nn.generators.implicit import ImplicitConfig, Latent
from molsampler.sampler import Sampler, store
from molsampler.space import Euclidean, MeanFree
from molsampler.storage.sealed_json import sealed
from molsampler.target import System

TOLERANCE = 1e-5
CHAIN = Chain().molecule
BODIES = {
    "dense": EGNNBody(width=32, layers=3, deep_head=True),
    "unordered": EGNNBody(width=32, layers=3, unordered=True),
}
#: Types are 0 1 2 1 0 along the chain.
REVERSED, EXCHANGED = [4, 3, 2, 1, 0], [1, 0, 2, 3, 4]


def stir(net: torch.nn.Module) -> None:
    """Weights as if trained: the springs, which start at zero, take part."""
    for name, p in net.named_parameters():
        if "spring" in name:
            torch.nn.init.uniform_(p, 0.05, 0.15)


def generator(body: EGNNBody, space=None, molecule=CHAIN):
    torch.manual_seed(0)
    config = ImplicitConfig(body=body, noise_features=3, sign_features=2, particle_signs=2)
    net = config.build(space or MeanFree(5, 3), molecule=molecule)
    stir(net)
    return net


def gap(net, move, order=None) -> float:
    """How far the generator is from commuting with a motion, relative to its output."""
    latent = net.draw_latent(16, generator=torch.Generator().manual_seed(0))
    features = latent.features if order is None else latent.features[:, order]
    moved = Latent(move(latent.position), features, move(latent.kicks))
    # Without Langevin layers nobody asks the target.
    out, again = net(latent, None), net(moved, None)
    return float(((again - move(out)).abs().max() / out.abs().max()).detach())


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_equivalent_atoms_commute_and_others_do_not(body: EGNNBody) -> None:
    net = generator(body)
    assert gap(net, lambda x: x[..., REVERSED, :], REVERSED) < TOLERANCE
    assert gap(net, lambda x: x[..., EXCHANGED, :], EXCHANGED) > 100 * TOLERANCE
    # Equal types in different places of the graph differ as well.
    net = generator(body, molecule=Molecule(types=(0,) * 5, bonds=CHAIN.bonds))
    assert gap(net, lambda x: x[..., REVERSED, :], REVERSED) < TOLERANCE
    assert gap(net, lambda x: x[..., EXCHANGED, :], EXCHANGED) > 100 * TOLERANCE
    # Types alone, without bonds, leave the exchange of equal ones.
    net = generator(body, molecule=Molecule(types=(0, 0, 1, 2, 3)))
    assert gap(net, lambda x: x[..., EXCHANGED, :], EXCHANGED) < TOLERANCE
    assert gap(net, lambda x: x[..., REVERSED, :], REVERSED) > 100 * TOLERANCE
    assert net.root is None


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_rotation_reflection_and_translation_are_kept(body: EGNNBody) -> None:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    net = generator(body)
    for motion in (q, -q):
        assert gap(net, lambda x, motion=motion: x @ motion.T) < TOLERANCE
    torch.manual_seed(0)
    denoiser = Denoiser(body, MeanFree(5, 3), data_scale=0.7, molecule=CHAIN)
    stir(denoiser)
    y = torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(0))
    y = denoiser.space.project(y)
    s = torch.full((8,), 0.3)
    out = denoiser(y, s)
    assert (denoiser(y @ q.T, s) - out @ q.T).abs().max() < TOLERANCE
    assert (denoiser(y[:, REVERSED], s) - out[:, REVERSED]).abs().max() < TOLERANCE
    assert (denoiser(y[:, EXCHANGED], s) - out[:, EXCHANGED]).abs().max() > 100 * TOLERANCE


def test_dense_and_unordered_bond_features_agree() -> None:
    space = MeanFree(5, 3)
    tied = Denoiser(BODIES["unordered"], space, data_scale=1.0, molecule=CHAIN)
    stir(tied)
    ordered = BODIES["unordered"].model_copy(update={"unordered": False})
    dense = Denoiser(ordered, space, data_scale=1.0, molecule=CHAIN)
    state = tied.state_dict()
    for key in list(state):
        if "from_i.weight" in key:
            state[key.replace("from_i", "from_j")] = state[key]
        if "from_i.bias" in key:
            state[key] = 2 * state[key]
    dense.load_state_dict(state)
    y = torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(0))
    s = torch.full((8,), 0.3)
    torch.testing.assert_close(tied(y, s), dense(y, s), atol=1e-5, rtol=1e-4)


def test_springs_alone_relax_a_molecule_to_its_reference_lengths() -> None:
    """With silent messages a deep network is the Jacobi iteration on bonds and angles."""
    system = methane()
    config = ImplicitConfig(body=EGNNBody(width=4, layers=60))
    net = config.build(system.space, molecule=system.molecule)
    ideal = torch.tensor([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]])[None]
    net.body.start_from(0.5 * ideal, spring=0.15)
    with torch.no_grad():
        for layer in net.body.layers:
            layer.head.weight.zero_()
        x = net.draw(64, system, generator=torch.Generator().manual_seed(0)).x
    lengths = system.lengths(x)
    expected = torch.full_like(lengths, 0.5 * 3**0.5)
    torch.testing.assert_close(lengths, expected, atol=2e-2, rtol=0)


def test_the_latent_has_the_covariance_of_the_chain() -> None:
    net = generator(BODIES["dense"])
    z = net.draw_latent(20_000, generator=torch.Generator().manual_seed(0)).position
    found = torch.einsum("bid,bjd->ij", z, z) / (3 * len(z))
    root = torch.from_numpy(CHAIN.chain_root()).float()
    # Six standard errors of a covariance of 60,000 pairs.
    assert (found - root @ root).abs().max() < 6 * 2 * float((root @ root).max()) / 60_000**0.5
    free = generator(BODIES["dense"], Euclidean(5, 3))
    centre = free.draw_latent(20_000, generator=torch.Generator().manual_seed(0)).position.mean(1)
    assert centre.std() == pytest.approx(5**-0.5, rel=0.05)


def test_another_number_of_particles_is_refused() -> None:
    with pytest.raises(InputError, match="4 particles"):
        ImplicitConfig(body=BODIES["dense"]).build(MeanFree(4, 3), molecule=CHAIN)


class Bare(System):
    """The energy of another system, without a word about its particles."""

    invariant = True

    def __init__(self, system: System):
        self.name, self.space, self._energy_and_score = (
            system.name,
            system.space,
            system._energy_and_score,
        )


@pytest.fixture
def saved(tmp_path):
    system = methane()
    torch.manual_seed(1)
    config = ImplicitConfig(body=EGNNBody(width=16, layers=2))
    net = config.build(system.space, molecule=system.molecule)
    folder = tmp_path / "artifact"
    store.save(folder, net, system=system)
    return folder, system


def test_an_artifact_rebuilds_the_network_from_its_card_alone(saved) -> None:
    folder, system = saved
    samples = Sampler.load(folder, system=system).sample(700, seed=1)
    again = Sampler.load(folder, system=Bare(system)).sample(700, seed=1)
    assert torch.equal(samples.positions, again.positions)
    card = json.loads((folder / "card.json").read_text())
    card["molecule"]["bonds"][0] = [0, 7]
    (folder / "card.json").write_bytes(sealed(json.dumps(card)))
    with pytest.raises(FileFormatError, match="different particles"):
        Sampler.load(folder, system=system)


def test_samples_of_a_chiral_molecule_are_right_handed(saved) -> None:
    folder, system = saved
    sampler = Sampler.load(folder, system=system)
    samples = sampler.sample(2000, seed=1)
    assert (signed_volumes(samples.positions, system.molecule.chiral_centres) > 0).all()
    counted = samples.metadata["handedness"]
    assert counted["molecules"] == 2000
    assert counted["wrong_after_inversion"] == 0
    # A mirror-symmetric law: half of them, within six standard errors.
    assert abs(counted["wrong_before_inversion"] - 1000) < 6 * 500**0.5
    # More samples do not change the first ones, nor what is counted of them.
    assert torch.equal(sampler.sample(300, seed=1).positions, samples.positions[:300])
    assert sampler.sample(300, seed=1).metadata["handedness"]["molecules"] == 300
    # Negative control: the same weights without declared centres give both hands.
    card = json.loads((folder / "card.json").read_text())
    card["molecule"]["chiral_centres"] = []
    (folder / "card.json").write_bytes(sealed(json.dumps(card)))
    both = Sampler.load(folder, system=system).sample(2000, seed=1)
    wrong = int((signed_volumes(both.positions, system.molecule.chiral_centres) <= 0).sum())
    assert wrong == counted["wrong_before_inversion"]
    assert "handedness" not in both.metadata
    torch.testing.assert_close(both.energies, samples.energies)
