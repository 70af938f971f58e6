"""Training of molecules: the whole path on a chiral one, and a chain that is learned in a minute."""

import json

import pytest
import torch
from chains import Chain, methane
from interrupted import train_twice

from molsampler import Sampler
from molsampler.analysis import distance_total_variation, total_variation, trimmed_wasserstein2
from molsampler.mcmc import population
from molsampler.molecule.chirality import signed_volumes
from molsampler.objectives import Problem
from molsampler.objectives.dikl_replay import ReplayConfig
from molsampler.train import load_config
from molsampler.train.state import TrainState
from molsampler.train.trainer import Trainer, weights_of

TINY = (
    "compile=false",
    "iterations=8",
    "batch_size=16",
    "generator.body.width=8",
    "generator.body.layers=2",
    "denoiser.width=8",
    "denoiser.layers=1",
    "evaluate_every=4",
    "evaluate_samples=40",
    "checkpoint_every=3",
    "target_score.warmup=4",
    "target_score.size=64",
    "target_score.equilibration=10",
    "target_score.refresh=16",
)


def test_a_chiral_molecule_trains_resumes_and_samples_one_hand(tmp_path, monkeypatch):
    system = methane()
    config = load_config("fast", system.name, overrides=TINY)
    whole = train_twice(system, config, tmp_path, monkeypatch)

    card = json.loads((whole.artifact / "card.json").read_text())
    assert card["molecule"]["types"] == [0, 1, 2, 3, 4]
    handed = [row for row in card["quality"] if "wrong-handed" in row["metric"]]
    assert len(handed) == 1
    assert handed[0]["after inversion"] == 0
    # Half of 40, six standard errors.
    assert abs(handed[0]["value"] - 0.5) < 6 * 0.5 / 40**0.5
    samples = Sampler.load(whole.artifact, system=system).sample(50, seed=0)
    assert (signed_volumes(samples.positions, system.molecule.chiral_centres) > 0).all()


def test_annealing_starts_from_the_chain():
    """Its energy and score agree with its draws: mean energy dof / 2, and the score is the gradient."""
    system = Chain()
    base = population.GaussianChain(system.space, 0.7, system.molecule)
    like = torch.zeros((), dtype=torch.float64)
    x = base.sample(4000, generator=torch.Generator().manual_seed(0), like=like)
    energy, score = base.energy_and_score(x)
    half = system.space.dof / 2
    assert abs(float(energy.mean()) - half) < 6 * (half / 4000) ** 0.5
    step = 1e-5 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    change = base.energy_and_score(x + step)[0] - base.energy_and_score(x - step)[0]
    torch.testing.assert_close(change / 2, -(score * step).sum((1, 2)))
    assert system.lengths(x).square().mean() < 0.75 * 6 * 0.7**2


CHAIN = (
    "compile=false",
    "iterations=400",
    "batch_size=128",
    "score_steps=2",
    "ema=0.99",
    "generator_lr=0.002",
    "score_lr=0.002",
    "generator.body.width=32",
    "generator.body.layers=4",
    "generator.sign_features=2",
    "denoiser.width=32",
    "denoiser.layers=3",
    "target_score.size=1024",
    "target_score.start_scale=0.8",
    "target_score.equilibration=600",
    "target_score.warmup=400",
    "target_score.refresh=128",
)


def mean_geometry(reference, width):
    """The configuration of most typical distances, its coordinates blurred by ``width``."""
    distances = torch.cdist(reference, reference).flatten(1)
    medoid = reference[(distances - distances.mean(0)).square().sum(1).argmin()]
    noise = torch.randn(2000, *medoid.shape, generator=torch.Generator().manual_seed(5))
    return medoid + width * noise


@pytest.mark.slow
def test_a_chain_is_learned_better_than_a_mean_geometry():
    """One-step samples of a bonded chain with angles, torsions and repulsion, from its energy alone."""
    system = Chain()
    config = load_config("fast", system.name, overrides=CHAIN)
    objective = config.objective.build(
        Problem(
            target=system,
            molecule=system.molecule,
            generator=config.generator,
            sampling=config.how_to_sample(),
            iterations=config.iterations,
            seed=config.seed,
            device=torch.device("cpu"),
        )
    )
    fresh = objective.init(report=lambda *_: None)
    state = TrainState(fresh, weights_of(objective.generator(fresh)))
    trainer = Trainer(config, system, objective, state, device=torch.device("cpu"))
    while not trainer.finished:
        trainer.step()
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        samples = objective.generator(state.objective).draw(2000, system, generator=random).x
    truth, _ = population.equilibrate(
        ReplayConfig(size=1000, equilibration=600, start_scale=0.8),
        system,
        generator=torch.Generator().manual_seed(77),
        like=torch.empty(0),
        report=lambda *_: None,
        molecule=system.molecule,
    )
    reference = truth.position

    def distances(x):
        u = system.energy(x.double())
        return {
            "TVD-E": total_variation(u, truth.energy).value,
            "TVD-D": distance_total_variation(x, reference).value,
            "energy-W2": trimmed_wasserstein2(u, truth.energy).value,
        }

    # As stiff as a bond: energies nearly right, no torsions. As loose as all distances: no energies.
    pairs = torch.cdist(reference, reference)
    loose = float((pairs - pairs.mean(0)).std()) / 2**0.5
    stiff = float(system.lengths(reference).std()) / 2**0.5
    ours, rigid, soft = (
        distances(x)
        for x in (samples, mean_geometry(reference, stiff), mean_geometry(reference, loose))
    )
    print({"one step": ours, "rigid": rigid, "soft": soft})
    assert ours["TVD-D"] < 0.5 * rigid["TVD-D"]
    for metric in ours:
        assert ours[metric] < 0.6 * soft[metric]
    lengths = system.lengths(samples)
    assert ((lengths - 1).abs() > 5 * 0.05).any(1).double().mean() < 0.05
    # Exact equivalence of the two ends: both end bonds have one law.
    assert abs(float(lengths[:, 0].mean() - lengths[:, 3].mean())) < 6 * 0.07 * (2 / 2000) ** 0.5
