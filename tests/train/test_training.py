"""Training: bit-exact resume, faults on the way, and what a run folder promises."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch

from molsampler import Sampler
from molsampler.errors import (
    DivergenceError,
    FileFormatError,
    InputError,
    OutputExistsError,
    ResourceError,
    RunLockedError,
    UnknownNameError,
)
from molsampler.objectives import Problem, dikl_replay
from molsampler.systems import get_system
from molsampler.target import System
from molsampler.train import artifact, checkpoint, load_config, train
from molsampler.train.early import Early
from molsampler.train.folder import RunFolder
from molsampler.train.state import TrainState
from molsampler.train.trainer import Trainer, weights_of

TINY = (
    "compile=false",
    "iterations=12",
    "batch_size=16",
    "generator.body.width=16",
    "generator.body.layers=1",
    "evaluate_every=5",
    "evaluate_samples=40",
    "checkpoint_every=4",
    "log_every=1",
)
REPLAY = (
    *TINY,
    "denoiser.width=16",
    "denoiser.layers=1",
    "target_score.warmup=6",
    "target_score.size=64",
    "target_score.equilibration=10",
    "target_score.refresh=16",
)
POSTERIOR = (
    *(setting for setting in TINY if setting != "batch_size=16"),
    "objective={kind: dikl-posterior, score_form: denoiser}",
    "batch_size=16",
    "score_steps=5",
    "score={kind: egnn, width: 16, layers: 1}",
    "target_score.particles=4",
    "target_score.levels=2",
    "target_score.steps=4",
)
MODES = {"replay": REPLAY, "posterior": POSTERIOR}


def _config(mode="replay", *extra):
    return load_config("fast", "dw4", overrides=(*MODES[mode], *extra))


def _counts(run_dir):
    """Iteration and warm-up step of every line of the log."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(found["iteration"], found.get("warmup", 0)) for found in map(json.loads, lines)]


def _trainer(config, target):
    objective = config.objective.build(
        Problem(
            target=target,
            molecule=target.molecule,
            generator=config.generator,
            sampling=config.how_to_sample(),
            iterations=config.iterations,
            seed=config.seed,
            device=torch.device("cpu"),
        )
    )
    fresh = objective.init(report=lambda *_: None)
    return Trainer(
        config,
        target,
        objective,
        TrainState(fresh, weights_of(objective.generator(fresh))),
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def system():
    return get_system("dw4")


@pytest.mark.parametrize("mode", ["replay", pytest.param("posterior", marks=pytest.mark.slow)])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path, system, mode, monkeypatch
):
    config = _config(mode)
    whole = train(system, tmp_path / "whole", config)
    assert whole.status == "completed"

    step = Trainer.step
    for stop in (1, 5, 7, 11, 16):

        def interrupting(self, stop=stop):
            if self.state.steps == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self)

        monkeypatch.setattr(Trainer, "step", interrupting)
        result = train(system, tmp_path / "parts", config)
    monkeypatch.setattr(Trainer, "step", step)
    result = train(system, tmp_path / "parts", config)
    assert result.status == "completed"

    first, _, _ = checkpoint.load_latest(tmp_path / "whole" / "checkpoints")
    second, _, _ = checkpoint.load_latest(tmp_path / "parts" / "checkpoints")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    counts = _counts(tmp_path / "whole")
    assert counts == sorted(set(counts))
    assert counts[-1] == (config.iterations, 0)

    # Negative control: another seed gives other weights.
    other = train(system, tmp_path / "other", _config(mode, "seed=1"))
    third, _, _ = checkpoint.load_latest(other.run_dir / "checkpoints")
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_lines_logged_after_the_last_checkpoint_are_not_repeated(tmp_path, system, monkeypatch):
    """A kill between checkpoints leaves log lines that the resumed run writes again."""
    config = _config()
    step = Trainer.step

    def dying(self):
        if self.state.steps == 11:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(system, tmp_path / "run", config)
    monkeypatch.setattr(Trainer, "step", step)
    train(system, tmp_path / "run", config)
    counts = _counts(tmp_path / "run")
    assert counts == [(0, k) for k in range(1, 7)] + [(k, 0) for k in range(1, 13)]


def test_damaged_checkpoint_is_named_and_the_one_before_takes_over(tmp_path, system, caplog):
    config = _config()
    train(system, tmp_path / "run", config)
    folder = tmp_path / "run" / "checkpoints"
    newest, previous = checkpoint.checkpoints(folder)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    _, _, used = checkpoint.load_latest(folder)
    assert used == previous
    assert newest.name in caplog.text
    previous.write_bytes(b"")
    with pytest.raises(FileFormatError, match="damaged"):
        checkpoint.load_latest(folder)


def test_non_finite_steps_are_skipped_counted_and_bounded(tmp_path, system, monkeypatch):
    config = _config("replay", "max_bad_steps=3")
    weight = dikl_replay.weight
    state = {"calls": 0}

    def sometimes_nan(*arguments, **keywords):
        state["calls"] += 1
        value = weight(*arguments, **keywords)
        return value * float("nan") if state["calls"] in state["bad"] else value

    monkeypatch.setattr(dikl_replay, "weight", sometimes_nan)
    real_loss = dikl_replay.dikl_loss

    def poisoned(*arguments, **keywords):
        result = real_loss(*arguments, **keywords)
        return result._replace(loss=result.loss * keywords["weight"].sum())

    monkeypatch.setattr(dikl_replay, "dikl_loss", poisoned)
    state["bad"] = {2, 5}
    result = train(system, tmp_path / "some", config)
    assert result.status == "completed"
    assert result.skipped == 2
    weights, _, _ = checkpoint.load_latest(tmp_path / "some" / "checkpoints")
    assert all(torch.isfinite(value).all() for key, value in weights.items() if "module" in key)

    state.update(calls=0, bad=set(range(4, 100)))
    with pytest.raises(DivergenceError, match="3 iterations in a row"):
        train(system, tmp_path / "many", config)
    weights, counters, _ = checkpoint.load_latest(tmp_path / "many" / "checkpoints")
    assert json.loads(counters)["bad_in_a_row"] == 0


@pytest.mark.parametrize("refresh", [8, 0], ids=["chains", "draws"])
def test_an_energy_that_comes_to_fail_ends_the_training(refresh, tmp_path, system, monkeypatch):
    """Every energy is NaN from some moment on: chains notice, and without any the last judgement."""
    config = _config("replay", f"target_score.refresh={refresh}", "iterations=30", "probe=false")
    assert train(system, tmp_path / "whole", config).status == "completed"
    energies, step = type(system)._energy_and_score, dikl_replay.DiKLReplay.step
    left = [10]

    def counted(self, state):
        left[0] -= 1
        return step(self, state)

    def failing(self, x):
        energy, score = energies(self, x)
        return (energy, score) if left[0] > 0 else (energy * torch.nan, score * torch.nan)

    monkeypatch.setattr(dikl_replay.DiKLReplay, "step", counted)
    monkeypatch.setattr(type(system), "_energy_and_score", failing)
    reason = "come to fail" if refresh else "no finite energy"
    with pytest.raises(DivergenceError, match=reason):
        train(system, tmp_path / "failing", config)


def test_another_configuration_in_the_same_folder_is_refused_with_the_difference(tmp_path, system):
    train(system, tmp_path / "run", _config())
    with pytest.raises(InputError, match=r"batch_size: 16 -> 8"):
        train(system, tmp_path / "run", _config("replay", "batch_size=8"))


def test_a_folder_of_other_things_is_not_taken(tmp_path, system):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError, match=r"thesis\.tex"):
        train(system, tmp_path, _config())


def test_two_runs_in_one_folder_are_refused_and_a_dead_one_is_no_obstacle(tmp_path):
    with RunFolder(tmp_path / "run"), pytest.raises(RunLockedError, match=str(os.getpid())):
        RunFolder(tmp_path / "run").__enter__()
    code = textwrap.dedent(
        f"""
        import os
        from molsampler.train.folder import RunFolder
        RunFolder({str(tmp_path / "run")!r}).__enter__()
        os.kill(os.getpid(), 9)
        """
    )
    (tmp_path / "run" / "config.resolved.yaml").write_text("")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with RunFolder(tmp_path / "run"):
        pass


def test_max_time_stops_cleanly(tmp_path, system):
    result = train(system, tmp_path / "run", _config(), max_time=0.0)
    assert result.status == "out of time"
    assert train(system, tmp_path / "run", _config()).status == "completed"


def test_a_time_limit_before_the_first_evaluation_leaves_a_sampler(tmp_path, system):
    # Kernels are made on first use, which the limit does not count on.
    train(system, tmp_path / "first", _config("replay", "iterations=2"))
    config = _config("replay", "iterations=100000", "evaluate_every=100000", "probe=false")
    result = train(system, tmp_path / "run", config, max_time=4.0)
    assert (result.status, result.iteration > 0) == ("out of time", True)
    assert result.verdict.sentence.startswith("after ")
    assert len(Sampler.load(result.artifact).sample(10, seed=0)) == 10
    # Where no time is left to judge, what was judged before is what there is.
    late = train(system, tmp_path / "run", config, max_time=1e-6)
    assert (late.iteration, late.verdict) == (result.iteration, result.verdict)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_was_judged_early_is_the_one_that_was_not(mode, tmp_path, system, monkeypatch):
    config = _config(mode, "evaluate_every=12")
    plain = train(system, tmp_path / "plain", config)
    exports, real = [], artifact.save
    monkeypatch.setattr(Early, "due", lambda self, iteration, **_: iteration in (4, 7))
    monkeypatch.setattr(
        artifact, "save", lambda *a, **k: exports.append(a[1].iteration) or real(*a, **k)
    )
    result = train(system, tmp_path / "run", config)
    assert exports == [4, 7, 12]
    assert result.verdict == plain.verdict
    runs = (plain.run_dir, result.run_dir)
    first, second = (checkpoint.load_latest(run / "checkpoints")[0] for run in runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    logs = [(run / "metrics.jsonl").read_text() for run in runs]
    assert _without_evaluations(logs[0]) == _without_evaluations(logs[1])


def _without_evaluations(log):
    """Lines of a log but for the energies, of which judging early takes some more."""
    lines = [json.loads(line) for line in log.splitlines()]
    return [{k: v for k, v in line.items() if k != "energy_evaluations"} for line in lines]


def test_an_early_judgement_that_fails_loses_nothing(tmp_path, system, monkeypatch, caplog):
    def failing(self, trainer):
        raise ResourceError("no memory is left")

    monkeypatch.setattr(Early, "due", lambda self, iteration, **_: iteration == 7)
    monkeypatch.setattr(Early, "judge", failing)
    config = _config("replay", "evaluate_every=12")
    assert train(system, tmp_path / "run", config).status == "completed"
    assert "no memory is left" in caplog.text


def test_when_there_is_to_be_judged_early():
    now = [0.0]
    early = Early(100.0, clock=lambda: now[0])

    def due(at, iteration=50, expected=8.0):
        now[0] = at
        return early.due(iteration, step=1.0, expected=expected)

    # Ten seconds for judging, one for a step, two besides.
    assert [due(at) for at in (80.0, 86.9, 87.1, 91.9, 92.1, 101.0)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip
    assert not due(90.0, iteration=0)
    assert not due(90.0, expected=None)
    # What takes more than a third of the time is not worth it.
    assert not due(60.0, expected=35.0)
    # It took less: once more, of another iteration, and not again.
    early.count, early.took, early.trainer = 1, 2.0, SimpleNamespace(iteration=50)
    assert not due(90.0)
    assert not due(95.0)
    assert due(95.0, iteration=51)
    early.count = 2
    assert not due(96.0, iteration=52)
    assert not Early(None).due(50, step=1.0, expected=1.0)


def test_the_artifact_of_a_run_samples(tmp_path, system):
    result = train(system, tmp_path / "run", _config())
    samples = Sampler.load(result.artifact).sample(10, seed=0)
    assert samples.positions.shape == (10, 4, 2)
    card = json.loads((result.artifact / "card.json").read_text())
    assert card["training"]["cost"]["energy_evaluations"] > 0


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["iteration=3"], UnknownNameError, "iterations"),
        (["generator.body.widht=3"], UnknownNameError, "width"),
        (["batch_size=0"], InputError, "batch_size"),
        (["batch_size"], InputError, "KEY=VALUE"),
        (["seed=[1"], InputError, "YAML"),
    ],
)
def test_bad_settings_are_named(overrides, error, message):
    with pytest.raises(error, match=message):
        load_config("fast", "dw4", overrides=overrides)


def test_unknown_preset_and_hostile_yaml(tmp_path):
    with pytest.raises(UnknownNameError, match="paper"):
        load_config("papre", "dw4")
    path = tmp_path / "config.yaml"
    path.write_text("seed: !!python/object/apply:os.system ['true']")
    with pytest.raises(InputError, match="YAML"):
        load_config("fast", "dw4", file=path)
    path.write_text("- a list")
    with pytest.raises(InputError, match="mapping"):
        load_config("fast", "dw4", file=path)


@pytest.mark.parametrize("preset", ["fast", "paper"])
@pytest.mark.parametrize("name", ["dw4", "lj13", "lj55", "mog40", "mw32"])
def test_presets_are_valid_and_survive_a_round_trip(tmp_path, preset, name):
    from molsampler.train.config import from_yaml, to_yaml

    config = load_config(preset, name, invariant=get_system(name).invariant)
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "c.yaml") == config


class Harmonic(System):
    """Independent coordinates of variance 4 and 0.25: a target without particle symmetry."""

    name = "harmonic"
    length_nm = 1.0

    def __init__(self):
        from molsampler.space import Euclidean

        self.space = Euclidean(1, 2)
        self.precision = torch.tensor([0.25, 4.0])

    def _energy_and_score(self, x):
        force = -x * self.precision.to(x)
        return -0.5 * (x * force).sum((-2, -1)), force


@pytest.mark.slow
def test_short_training_reaches_a_gaussian():
    """End to end, in seconds: standard deviations 2 and 0.5 from the energy alone."""
    overrides = (
        "compile=false",
        "iterations=250",
        "batch_size=256",
        "score_steps=3",
        "generator.body.width=32",
        "generator.body.layers=2",
        "generator.sign_features=0",
        "denoiser.width=32",
        "denoiser.layers=2",
        "score_lr=0.003",
        "generator_lr=0.003",
        "ema=0.98",
        "target_score.warmup=250",
        "target_score.size=2048",
        "target_score.equilibration=50",
        "target_score.start_scale=2.0",
    )
    config = load_config("fast", "harmonic", overrides=overrides, invariant=False)
    target = Harmonic()
    trainer = _trainer(config, target)
    before = _spread(trainer, target)
    while not trainer.finished:
        trainer.step()
    spread = _spread(trainer, target)
    truth = torch.tensor([2.0, 0.5])
    assert (spread / truth - 1).abs().max() < 0.15
    # Negative control: the untrained generator is far outside the gate.
    assert (before / truth - 1).abs().max() > 0.5


def _spread(trainer, target):
    generator = trainer.objective.generator(trainer.state.objective)
    with torch.no_grad():
        x = generator.draw(8000, target, generator=torch.Generator().manual_seed(9)).x
    return x[:, 0].std(0)


def test_noise_annealing_starts_high_and_ends_with_every_level(system):
    config = _config("replay", "noise_annealing=0.5", "iterations=100")
    trainer = _trainer(config, system)
    objective = trainer.objective
    work = objective.adopted(trainer.state.objective)
    probe = torch.zeros(2000, *system.shape)
    lowest = []
    for done in (0, 25, 50, 99):
        work.numbers["iteration"] = objective.warmup + done
        lowest.append(float(objective._annealed_times(work, probe, work.rng).min()))
    assert lowest[0] >= 0.75
    assert 0.375 <= lowest[1] < 0.4
    assert max(lowest[2:]) < 0.01


def test_rates_fall_after_the_flat_part_and_the_score_may_keep_its_own(system):
    config = _config(
        "replay", "iterations=1000", "decay_start=0.4", "final_lr=0.1", "score_final_lr=0.5"
    )
    objective = _trainer(config, system).objective
    rates = {}
    for done in (400, 700, 1000):
        iteration = objective.warmup + done
        rates[done] = [
            objective._rate_factor(name, iteration) for name in ("generator", "score", "teacher")
        ]
    assert rates[400] == pytest.approx([1.0, 1.0, 1.0])
    assert rates[700] == pytest.approx([0.55, 0.75, 0.55])
    assert rates[1000] == pytest.approx([0.1, 0.5, 0.1])


def test_the_sampling_scheme_changes_the_artifact_and_not_the_training(tmp_path, system):
    tensors, schemes = [], []
    for scheme in ("euler", "leimkuhler-matthews"):
        run = train(system, tmp_path / scheme, _config("replay", f"sampling.scheme={scheme}"))
        found, _, _ = checkpoint.load_latest(run.run_dir / "checkpoints")
        tensors.append({key: found[key] for key in found if "module/generator" in key})
        schemes.append(Sampler.load(run.artifact).card.sampling["scheme"])
    assert schemes == ["euler", "leimkuhler-matthews"]
    assert tensors[0]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
