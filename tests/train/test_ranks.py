"""Training on several processes: the same bits on any number of them, and one that is lost ends them all."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time

import pytest
import torch
from ranks import Launched, Threads

from molsampler import torchrun
from molsampler.cli import main
from molsampler.diffusion.identity_mixture import IdentityMixture
from molsampler.errors import InputError, RankError
from molsampler.mcmc import mala
from molsampler.objectives import dikl_replay
from molsampler.objectives.shards import Alone, Shards, pack, unpack
from molsampler.objectives.workspace import Workspace
from molsampler.systems import get_system
from molsampler.systems.openmm import system as openmm_system
from molsampler.systems.openmm.alanine_dipeptide import AlanineDipeptide
from molsampler.temperatures import TemperatureRange
from molsampler.train import checkpoint, load_config, train
from molsampler.train.config import from_yaml
from molsampler.train.ranks import Ranks, meet

SETTINGS = (
    "compile=false", "iterations=4", "batch_size=16", "score_steps=2", "evaluate_samples=40",
    "evaluate_steps=2", "evaluate_every=3", "log_every=1", "checkpoint_every=2", "probe=false",
    "generator.body.width=16", "generator.body.layers=1", "denoiser.width=16", "denoiser.layers=1",
    "target_score={size: 48, anneal_moves: 2, equilibration: 6, refresh: 8, warmup: 3}",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The arithmetic of a process under torchrun, and networks that threads build one after the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lock = threading.Lock()
    for name in ("build", "evaluations_per_step"):
        method = getattr(dikl_replay.DiKLReplay, name)

        def alone(self, *args, method=method, **kwargs):
            with lock:
                return method(self, *args, **kwargs)

        monkeypatch.setattr(dikl_replay.DiKLReplay, name, alone)
    yield
    torch.set_num_threads(threads)


def config(*extra, **known):
    return load_config("fast", "dw4", overrides=(*SETTINGS, *extra), **known)


def on_ranks(count, folder, settings, **known):
    """Train on so many ranks in threads; the result of rank 0."""
    if count == 1:
        return train(get_system("dw4"), folder, settings, **known)
    results = Threads(count).run(
        lambda peer: train(get_system("dw4"), folder, settings, peers=peer, **known)
    )
    for each in results:
        if isinstance(each, BaseException) and not isinstance(each, threading.BrokenBarrierError):
            raise each
    return results[0]


def weights(folder):
    return json.loads((folder / "artifact" / "card.json").read_text())["weights_sha256"]


def same_run(first, second):
    """Whether two runs ended with the same state, logs and weights, to the last bit."""
    a, b = (checkpoint.load_latest(folder / "checkpoints")[0] for folder in (first, second))
    assert a.keys() == b.keys()
    return (
        all(torch.equal(a[key], b[key]) for key in a)
        and (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
        and weights(first) == weights(second)
    )


@pytest.mark.parametrize(
    ("counts", "extra", "known"),
    [
        ((3, 4), (), {}),
        ((3,), ("target_score.size=72",), {"temperatures": TemperatureRange(low=0.5, high=2.0)}),
        ((2,), ("target_score.exchange={hottest: 2, chains: 8}",), {}),
    ],
    ids=["one temperature", "range of temperatures", "replica exchange"],
)
def test_the_number_of_ranks_changes_no_bit(counts, extra, known, tmp_path):
    settings = config("shards=4", *extra, **known)
    for count in (1, *counts):
        assert on_ranks(count, tmp_path / str(count), settings).status == "completed"
        assert same_run(tmp_path / "1", tmp_path / str(count))


def test_ranks_fit_a_time_together(tmp_path):
    asked = config("shards=2", "iterations=100000", "within=3")
    fitted = on_ranks(2, tmp_path / "fitted", asked)
    assert fitted.status == "completed"
    found = from_yaml(tmp_path / "fitted" / "config.resolved.yaml")
    assert 20 <= fitted.total == found.iterations < 100000
    # What they found is the run of one process, too.
    on_ranks(1, tmp_path / "plain", found.model_copy(update={"within": None}))
    assert weights(tmp_path / "plain") == weights(tmp_path / "fitted")


def test_the_number_of_shards_and_the_stream_of_any_of_them_do(tmp_path, monkeypatch):
    on_ranks(2, tmp_path / "two", config("shards=2"))
    on_ranks(2, tmp_path / "four", config("shards=4"))
    assert weights(tmp_path / "two") != weights(tmp_path / "four")
    seed = Shards.seed
    monkeypatch.setattr(
        Shards, "seed", lambda self, of, shard: seed(self, of + (shard == 1), shard)
    )
    on_ranks(2, tmp_path / "other", config("shards=2"))
    assert weights(tmp_path / "two") != weights(tmp_path / "other")


def test_shards_have_streams_of_their_own(tmp_path):
    train(get_system("dw4"), tmp_path / "run", config("shards=4"))
    state = checkpoint.load_latest(tmp_path / "run" / "checkpoints")[0]
    positions = [state[f"objective/shard{k}/population/position"] for k in range(4)]
    assert {each.shape for each in positions} == {(12, 4, 2)}
    assert len({each.sum().item() for each in positions}) == 4
    assert len({state[f"objective/shard{k}/rng"].numpy().tobytes() for k in range(4)}) == 4


def test_one_shard_is_what_training_was_before_there_were_shards(tmp_path):
    train(get_system("dw4"), tmp_path / "run", config())
    state = checkpoint.load_latest(tmp_path / "run" / "checkpoints")[0]
    assert not [key for key in state if "shard" in key]
    assert {"objective/rng", "objective/population/position"} <= state.keys()


@pytest.mark.parametrize("at", ["population", "warm-up", "training"])
def test_a_run_of_four_ranks_resumes_on_two_and_on_one(at, tmp_path, monkeypatch):
    settings = config("shards=4")
    train(get_system("dw4"), tmp_path / "whole", settings)
    folder, moves = tmp_path / "parts", {"population": 3, "warm-up": 2, "training": 5}[at]

    def stopped_on(count, after):
        """One rank notes a signal: all of them end, with one checkpoint of everything."""
        calls = [0]
        step = mala.step if at == "population" else dikl_replay.DiKLReplay.step
        with monkeypatch.context() as patch:

            def interrupting(*args, **kwargs):
                if threading.current_thread().name == "last":
                    calls[0] += 1
                    if calls[0] == after:
                        stops[-1].received.append(signal.SIGTERM)
                return step(*args, **kwargs)

            if at == "population":
                patch.setattr(mala, "step", interrupting)
            else:
                patch.setattr(dikl_replay.DiKLReplay, "step", interrupting)
            from molsampler.train import run

            stops = []

            class Noted(run.Stop):
                def __init__(self, deadline=None):
                    super().__init__(deadline)
                    if threading.current_thread().name == "last":
                        stops.append(self)

            patch.setattr(run, "Stop", Noted)

            def work(peer):
                threading.current_thread().name = "last" if peer.rank == count - 1 else "other"
                return train(get_system("dw4"), folder, settings, peers=peer)

            return Threads(count).run(work)

    for result in stopped_on(4, moves):
        assert (result.status, result.signal) == ("interrupted", signal.SIGTERM)
    if at == "population":
        assert result.phase in ("annealing", "equilibration")
    assert on_ranks(2, folder, settings, max_time=1e-9).status == "out of time"
    assert stopped_on(2, 1)[0].status == "interrupted"
    assert train(get_system("dw4"), folder, settings).status == "completed"
    assert same_run(tmp_path / "whole", folder)


def test_draws_without_energy_in_one_shard_skip_the_step_of_all(tmp_path, monkeypatch):
    draw = dikl_replay.DiKLReplay._drawn_temperatures
    done = []

    def failing(self, stream):
        context, target = draw(self, stream)
        if stream is self._work.streams.get("shard3/"):
            done.append(0)
            if len(done) % 2 == 0:
                return context, Wall()
        return context, target

    class Wall:
        def energy_and_score(self, x):
            raise dikl_replay.NonFiniteError("a particle is where no energy is")

    monkeypatch.setattr(dikl_replay.DiKLReplay, "_drawn_temperatures", failing)
    for count in (1, 2):
        done.clear()
        result = on_ranks(count, tmp_path / str(count), config("shards=4"))
        assert result.skipped == 2
    assert same_run(tmp_path / "1", tmp_path / "2")


def test_more_ranks_than_shards_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"2 processes cannot share 1 shard: .* --set shards=2"):
        on_ranks(2, tmp_path / "run", config())
    exact = load_config("exact", "dw4", overrides=("probe=false",))
    with pytest.raises(InputError, match="'exact' trains on one process: leave out torchrun"):
        on_ranks(2, tmp_path / "run", exact)
    assert not (tmp_path / "run").exists()


def test_shards_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="shards=3 must divide batch_size=16"):
        config("shards=3")


def test_a_step_over_shards_is_that_on_the_mean_of_their_losses():
    x, y = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))

    def stepped(step):
        layer = torch.nn.Linear(3, 1)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[0.3, -0.2, 0.1]]))
            layer.bias.zero_()
        adam = torch.optim.SGD(layer.parameters())
        step(Workspace({"a": layer}, {"a": adam}, rng=torch.Generator()), layer)
        return layer.weight

    def loss(layer, part):
        return layer(part).square().mean()

    known = {"rate": 0.1, "max_grad_norm": 0.05}
    whole = stepped(lambda work, a: work.apply("a", loss(a, torch.cat([x, y])), **known))
    for parts in ((x, y), (y, x), (x, x)):

        def step(work, a, parts=parts):
            made = ((loss(a, part), part.sum()[None]) for part in parts)
            done = work.apply_shards("a", made, shards=Shards(2), **known)
            torch.testing.assert_close(float(done.beside), float(sum(each.sum() for each in parts)))

        same = torch.allclose(stepped(step), whole, rtol=1e-6)
        assert same == (parts[0] is not parts[1])


def test_moments_of_parts_add_up_to_those_of_the_whole():
    rng = torch.Generator().manual_seed(0)
    t, first, second = (
        torch.rand(*shape, generator=rng) for shape in ((64,), (64, 4, 2), (64, 4, 2))
    )
    whole = IdentityMixture.sums(t, first, second)
    parts = [IdentityMixture.sums(t[k::2], first[k::2], second[k::2]) for k in range(2)]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_networks_that_part_are_noticed():
    def work(peer):
        shards = Shards(2, peer)
        shards.require_same({"a": torch.zeros(3), f"shard{peer.rank}/b": torch.rand(2)})
        shards.require_same({"a": torch.full((3,), float(peer.rank))})

    for error in Threads(2).run(work):
        assert isinstance(error, RankError)
        assert "rank 1 are no longer those of rank 0" in str(error)


def test_uneven_shares_are_gathered_in_order():
    def work(peer):
        shards = Shards(5, peer)
        found = shards.gather([torch.tensor([float(shard)]) for shard in shards.owned])
        return torch.cat(found).tolist()

    assert Threads(3).run(work) == [[0.0, 1.0, 2.0, 3.0, 4.0]] * 3
    assert Shards(5, Alone()).foreign == ()


def test_packed_values_come_back():
    values = {"x": torch.rand(2, 3), "n": 3, "t": "text", "f": 0.1, "s": torch.tensor(2.0)}
    found = unpack(pack(values))
    assert found.keys() == values.keys()
    assert torch.equal(found["x"], values["x"])
    assert (found["n"], found["t"], found["f"]) == (3, "text", 0.1)


def test_a_port_that_is_taken_is_one_clear_error(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        known = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for key, value in {**known, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(RankError, match=r"cannot meet at 127.0.0.1:\d+: .*"), meet():
            pass


def test_nobody_asks_the_store_once_processes_have_parted():
    """A thread that is inside of it when the interpreter ends takes the process down with it."""

    class Store:
        entered, inside = threading.Event(), False

        def set(self, key, value):
            self.inside = True
            self.entered.set()
            time.sleep(0.5)
            self.inside = False

        def check(self, keys):
            return False

    ranks = Ranks()
    ranks._beats = store = Store()
    ranks.watch()
    assert store.entered.wait(10.0)
    assert store.inside
    ranks.end()
    assert not store.inside
    assert not ranks._watcher.is_alive()


def test_what_torchrun_says_in_the_environment(monkeypatch):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

    def said(*values):
        for name, value in zip(names, values, strict=True):
            monkeypatch.delenv(name, raising=False)
            if value:
                monkeypatch.setenv(name, value)
        found = torchrun.rank(), torchrun.count(), torchrun.on_this_machine()
        return *found, torchrun.own_device("cuda"), torchrun.own_device("cpu")

    assert said("", "", "", "") == (0, 1, 1, "cuda", "cpu")
    assert said("5", "8", "1", "4") == (5, 8, 4, "cuda:1", "cpu")
    assert said("0", "1", "0", "1") == (0, 1, 1, "cuda", "cpu")
    # Left over from something else.
    assert said("", "8", "", "4") == (0, 1, 1, "cuda", "cpu")


def test_processes_of_a_machine_share_its_energy_workers(monkeypatch):
    made = []

    class Pool:
        def __init__(self, *arguments, workers, **others):
            made.append(workers)
            raise LookupError

    monkeypatch.setattr(openmm_system, "WorkerPool", Pool)
    for local, expected in (("", 6), ("2", 3), ("8", 1)):
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", local or "1")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local or "1")
        system = AlanineDipeptide(workers=6)
        with pytest.raises(LookupError):
            system.energy(torch.zeros(1, 22, 3))
        assert made[-1] == expected


# Processes


def arguments(folder, *extra):
    settings = (*SETTINGS, "shards=2", *extra)
    return ["train", "dw4", folder, *(part for each in settings for part in ("--set", each))]


def test_two_processes_give_the_weights_of_one(tmp_path):
    launched = Launched(2, *arguments(tmp_path / "two"), log=tmp_path / "log")
    # 0, or 1 for torchrun's own view of exit code 3: such a training is not usable.
    assert launched.wait() in (0, 1)
    assert launched.errors == []
    assert launched.said.count("completed at iteration") == 1
    train(get_system("dw4"), tmp_path / "one", config("shards=2"))
    assert same_run(tmp_path / "one", tmp_path / "two")


def killed(folder, log, *, number, lines, delay=0.0):
    """Kill a rank of two when the log of the run has so many lines; the seconds until all had ended."""
    launched = Launched(2, *arguments(folder, "iterations=20"), log=log)
    metrics = folder / "metrics.jsonl"
    launched.wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= lines)
    time.sleep(delay)
    os.kill(launched.rank(number), signal.SIGKILL)
    began = time.monotonic()
    assert launched.wait() == 1
    assert len(launched.errors) == 1, launched.said
    assert f"rank {number} of 2 (process " in launched.errors[0]
    assert "is lost" in launched.errors[0]
    return time.monotonic() - began


def test_a_killed_rank_ends_the_others_and_the_run_resumes_to_the_same_bits(tmp_path):
    assert killed(tmp_path / "parts", tmp_path / "log", number=1, lines=6) < 30
    for name in ("parts", "whole"):
        train(get_system("dw4"), tmp_path / name, config("shards=2", "iterations=20"))
    assert same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_a_rank_killed_at_ten_random_moments(tmp_path):
    moments = random.Random(0)
    train(get_system("dw4"), tmp_path / "whole", config("shards=2", "iterations=20"))
    for k in range(10):
        folder = tmp_path / f"run{k}"
        number, lines, delay = moments.randrange(2), moments.randrange(1, 15), moments.random() / 3
        spent = killed(folder, tmp_path / "log", number=number, lines=lines, delay=delay)
        assert spent < 30
        train(get_system("dw4"), folder, config("shards=2", "iterations=20"))
        assert same_run(folder, tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_starts_all_again_where_it_may(tmp_path):
    folder, log = tmp_path / "parts", tmp_path / "log"
    program = ["--max-restarts", "1", "-m", "molsampler"]
    launched = Launched(2, *arguments(folder, "iterations=20"), log=log, program=program)
    metrics = folder / "metrics.jsonl"
    launched.wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 6)
    os.kill(launched.rank(1), signal.SIGKILL)
    launched.wait()
    assert len(launched.errors) == 1
    assert "resuming from" in launched.said
    assert "completed at iteration" in launched.said
    train(get_system("dw4"), tmp_path / "whole", config("shards=2", "iterations=20"))
    assert same_run(folder, tmp_path / "whole")


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(tmp_path):
    folder = tmp_path / "run"
    launched = Launched(2, *arguments(folder, "iterations=400"), log=tmp_path / "log")
    launched.wait_for((folder / "metrics.jsonl").exists)
    os.kill(launched.rank(1), signal.SIGSTOP)
    began = time.monotonic()
    launched.wait_for(lambda: bool(launched.errors))
    assert time.monotonic() - began < 30
    assert launched.wait() == 1
    assert len(launched.errors) == 1
    assert "rank 1 of 2" in launched.errors[0]


#: A rank of another run: its system file, or its version, is another.
OTHERS = {
    "definition of the system": "os.chdir('other')",
    "version": "import molsampler.train.problem as problem; problem.__version__ = '0.0.9'",
}


@pytest.mark.parametrize(
    "what", ["definition of the system", pytest.param("version", marks=pytest.mark.slow)]
)
def test_a_rank_of_another_run_is_refused(what, tmp_path, monkeypatch):
    text = "kind: pair_potential\nname: two\nparticles: 2\ndimensions: 2\nexpression: r^2\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "two.yaml").write_text(text)
    (tmp_path / "other" / "two.yaml").write_text(text.replace("r^2", "2*r^2"))
    (tmp_path / "program.py").write_text(
        f"import os, sys\nif os.environ['RANK'] == '1':\n    {OTHERS[what]}\n"
        "from molsampler.cli import main\nsys.exit(main())\n"
    )
    monkeypatch.chdir(tmp_path)
    run = ["train", "two.yaml", tmp_path / "run", *(arguments(tmp_path / "run")[3:])]
    launched = Launched(2, *run, log=tmp_path / "log", program=[tmp_path / "program.py"])
    assert launched.wait() == 1
    assert len(launched.errors) == 1, launched.said
    assert "rank 1 (process " in launched.errors[0]
    assert f"its {what}" in launched.errors[0]
    assert not (tmp_path / "run").exists()


def test_one_process_under_torchrun_is_one_process(tmp_path, monkeypatch, capsys):
    for key in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(key, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main([str(each) for each in arguments(tmp_path / "run")]) in (0, 3)
    assert "completed" in capsys.readouterr().out
