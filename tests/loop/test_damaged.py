"""Checkpoints with a damaged part: each is refused by one error that names the file, and nothing has changed."""

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from framework.callbacks import EarlyStopping, ModelCheckpoint
from framework.loop import checkpoint as checkpoints
from tests.modules import Regressor, assert_unchanged, callback_of, make_loader, make_trainer


def configure(module: Any) -> Any:
    optimizer = Adam(module.param_groups(), lr=0.01)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val/loss"}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    """Return a good checkpoint, from the middle of an epoch."""
    folder = tmp_path_factory.mktemp("whole")
    callbacks = [EarlyStopping("val/loss"), ModelCheckpoint(folder)]
    make_trainer(folder, callbacks=callbacks, max_steps=5).fit(Regressor(configure), make_loader(), make_loader())
    return checkpoints.load(folder / "last.ckpt")


def put(*keys: Any, to: Any) -> Any:
    """Return a damage: the value under some keys becomes another one."""

    def damage(checkpoint: Any) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = to

    return damage


def drop(*keys: Any) -> Any:
    """Return a damage: the value under some keys is missing."""

    def damage(checkpoint: Any) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        del checkpoint[keys[-1]]

    return damage


PARTS = ("progress", "closure_evaluations", "state_dict", "optimizer", "optimizer_class", "lr_schedulers", "callbacks")
PARTS += ("metrics", "metric_states", "data", "loggers", "fingerprint", "rng")
DAMAGES = {
    **{f"no {part}": drop(part) for part in PARTS},
    **{f"{part} is another thing": put(part, to=object if part == "none" else 1.5) for part in PARTS},
    **{f"{part} is None": put(part, to=None) for part in PARTS},
    "a weight has another shape": put("state_dict", "net.0.weight", to=torch.zeros(2, 2)),
    "a weight is missing": drop("state_dict", "net.0.weight"),
    "a weight is a number": put("state_dict", "net.0.weight", to=1.0),
    "a weight is unknown": put("state_dict", "net.7.weight", to=torch.zeros(1)),
    "no groups": put("optimizer", "param_groups", to=[]),
    "a group has no params": drop("optimizer", "param_groups", 0, "params"),
    "a group has fewer params": put("optimizer", "param_groups", 0, "params", to=[0]),
    "another optimizer": put("optimizer_class", to="SGD"),
    "no scheduler": put("lr_schedulers", to=[]),
    "a scheduler without state": put("lr_schedulers", 0, to={"scheduler": None, "seen": 1}),
    "a scheduler with less": drop("lr_schedulers", 0, "seen"),
    "steps are negative": put("progress", "global_step", to=-1),
    "steps are a word": put("progress", "global_step", to="7"),
    "an epoch is missing": drop("progress", "epoch"),
    "more in progress": put("progress", "more", to=1),
    "half a batch": put("progress", "batch_idx", to=1.5),
    "not a batch": put("progress", "batch_idx", to=math.nan),
    "the epoch's random state is none": put("progress", "epoch_rng", to={"torch": 3}),
    "a callback with less": put("callbacks", "EarlyStopping", to={}),
    "a callback with nothing": put("callbacks", "EarlyStopping", to=None),
    "the last values are words": put("metrics", "latest", to={"val/loss": ["a", 1]}),
    "sums have no form": put("metrics", "sums", to={"val/loss": 3}),
    "a torchmetric that is not there": put("metric_states", to={"accuracy": {"state": {}, "updates": 1}}),
    "no global stream": drop("rng", "torch"),
    "half of a global stream": put("rng", "torch", to=torch.zeros(3, dtype=torch.uint8)),
    "a stream of Python's that is none": put("rng", "python", to=(3, (1, 2), None)),
    "a stream of numpy's that is none": put("rng", "numpy", to={"bit_generator": "MT19937"}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_part_is_refused_and_nothing_has_changed(tmp_path, whole, damage):
    damaged, path = copy.deepcopy(whole), tmp_path / "damaged.ckpt"
    damage(damaged)
    torch.save(damaged, path)
    stopping, states = EarlyStopping("val/loss"), []
    began = callback_of(on_fit_start=lambda *_: states.append("began"))
    trainer = make_trainer(tmp_path, callbacks=[stopping, began])
    module = Regressor(configure)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with assert_unchanged(module), pytest.raises(ValueError, match=r"damaged\.ckpt"):
        trainer.fit(module, make_loader(), make_loader(), ckpt_path=path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1], before[2]) == (random.getstate(), np.random.get_state()[1].tolist())
    assert (states, stopping.best, stopping._seen) == ([], None, 0)
    if trainer._fit is not None:  # otherwise the file was refused before a run was made
        assert trainer.global_step == trainer.closure_evaluations == 0
        assert not trainer.optimizer.state
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.01]
