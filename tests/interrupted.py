"""A training that dies and is resumed, beside one that never stopped."""

from __future__ import annotations

import pytest
import torch

from molsampler.train import checkpoint, train
from molsampler.train.trainer import Trainer


def train_twice(system, config, folder, monkeypatch, *, dies_at=7):
    """Assert that both end in the same state to the last bit; the result of the uninterrupted run."""
    whole = train(system, folder / "whole", config)
    step = Trainer.step

    def dying(self):
        if self.state.steps == dies_at:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(system, folder / "parts", config)
    monkeypatch.setattr(Trainer, "step", step)
    train(system, folder / "parts", config)
    first, _, _ = checkpoint.load_latest(folder / "whole" / "checkpoints")
    second, _, _ = checkpoint.load_latest(folder / "parts" / "checkpoints")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    return whole
