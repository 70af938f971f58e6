"""A compiler that fails is one line and a file; training goes on without it."""

from __future__ import annotations

import pytest
import torch

from molsampler.compiled import SWITCH, UnavailableError
from molsampler.nn import pair_layer
from molsampler.objectives import dikl_replay
from molsampler.systems import get_system
from molsampler.train import load_config, train

SETTINGS = (
    "compile=true", "iterations=3", "batch_size=8", "score_steps=1", "evaluate_samples=20",
    "evaluate_steps=2", "log_every=1", "generator.body.width=5", "generator.body.layers=1",
    "denoiser.width=5", "denoiser.layers=1",
    "target_score={size: 24, anneal_moves: 1, equilibration: 3, refresh: 8, warmup: 2}",
)  # fmt: skip


def test_training_goes_on_uncompiled(tmp_path, monkeypatch, caplog):
    """Both phases begin as if nothing had happened: the result is that of an uncompiled run."""
    from torch._inductor.exc import CppCompileError

    def failing(module, wanted):
        def call(*arguments):
            raise CppCompileError(["g++", "x.cpp"], "error: line\n" * 10_000)

        return call if wanted else module

    monkeypatch.setattr(dikl_replay, "_compiled", failing)
    system = get_system("dw4")
    config = load_config("fast", "dw4", overrides=SETTINGS)
    result = train(system, tmp_path / "run", config)
    assert result.status == "completed"
    warnings = [each for each in caplog.records if each.levelname == "WARNING"]
    (line,) = [each.getMessage() for each in warnings if "compiled" in each.getMessage()]
    assert len(line) < 300
    assert str(tmp_path / "run" / "compiler.log") in line
    assert "error: line" in (tmp_path / "run" / "compiler.log").read_text()
    plain = train(
        system,
        tmp_path / "plain",
        load_config("fast", "dw4", overrides=(*SETTINGS, "compile=false")),
    )
    logs = [(run.run_dir / "metrics.jsonl").read_bytes() for run in (result, plain)]
    assert logs[0] == logs[1]


def test_other_errors_are_not_taken_for_the_compiler_s(tmp_path, monkeypatch):
    def failing(module, wanted):
        def call(*arguments):
            raise RuntimeError("shapes do not fit")

        return call

    monkeypatch.setattr(dikl_replay, "_compiled", failing)
    with pytest.raises(RuntimeError, match="shapes"):
        train(
            get_system("dw4"),
            tmp_path / "run",
            load_config("fast", "dw4", overrides=SETTINGS),
        )
    assert not (tmp_path / "run" / "compiler.log").exists()


@pytest.mark.parametrize(
    ("setting", "switch", "compiles"),
    [
        ("iterations=3", "1", False),
        ("iterations=3", "0", True),
        ("denoiser.attention=true", "1", True),
        ("generator.body.width=21", "1", True),
        ("compile=false", "0", False),
    ],
)
def test_what_kernels_compute_is_not_compiled(setting, switch, compiles, tmp_path, monkeypatch):
    try:
        pair_layer._kernel()
    except UnavailableError as error:
        pytest.skip(str(error))
    small = [each for each in SETTINGS if "width" not in each]
    overrides = (*small, "generator.body.width=16", "denoiser.width=16", setting)
    called = []
    monkeypatch.setenv(SWITCH, switch)
    monkeypatch.setattr(torch, "compile", lambda module, **_: called.append(module) or module)
    config = load_config("fast", "dw4", overrides=overrides)
    assert train(get_system("dw4"), tmp_path / "run", config).status == "completed"
    assert bool(called) is compiles


@pytest.mark.slow
def test_a_compiler_that_kills_itself(tmp_path, monkeypatch, caplog):
    """Half a minute: a real compiler in a cache of its own."""
    program = tmp_path / "cxx"
    program.write_text('#!/bin/sh\ncase "$*" in *--version*) exec g++ "$@";; esac\nkill -9 $$\n')
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    with monkeypatch.context() as patch:
        from torch._inductor import config

        patch.setattr(config.cpp, "cxx", (None, str(program)))
        result = train(
            get_system("dw4"),
            tmp_path / "run",
            load_config("fast", "dw4", overrides=SETTINGS),
        )
    assert result.status == "completed"
    assert "could not be compiled" in caplog.text
    assert (tmp_path / "run" / "compiler.log").stat().st_size > 0
