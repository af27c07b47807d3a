"""Every evaluation of a step sees the same function, wherever its random numbers come from."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from framework.objective.replay import find_generators, rng_state, set_rng_state
from tests.modules import Regressor, assert_same, evaluating, make_loader, make_trainer, regression_data

GENERATORS = [
    lambda: torch.Generator().manual_seed(1),
    lambda: np.random.default_rng(1),
    lambda: np.random.Generator(np.random.MT19937(1)),
    lambda: np.random.Generator(np.random.Philox(1)),
    lambda: np.random.RandomState(1),
    lambda: random.Random(1),
]


def draw(generator) -> float:
    if isinstance(generator, torch.Generator):
        return torch.rand((), generator=generator).item()
    return float(generator.random_sample() if isinstance(generator, np.random.RandomState) else generator.random())


class Noisy(Dataset):
    """`regression_data` with noise from its own generator."""

    def __init__(self, generator) -> None:
        self.generator = generator
        self.X, self.y = regression_data()

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index):
        return self.X[index] + draw(self.generator), self.y[index]


def ask_thrice(closure):
    return [closure().item(), closure.value().item(), closure().item()]


@pytest.mark.parametrize("make", GENERATORS)
def test_a_generator_that_a_dataset_holds_is_replayed_over_an_epoch(tmp_path, make):
    values = []
    loader = DataLoader(Subset(Noisy(make()), range(10)), batch_size=4)
    module = Regressor(evaluating(lambda closure: values.append(ask_thrice(closure))))
    make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=3).fit(module, loader)
    assert all(a == b == c for a, b, c in values)
    assert len({a for a, _, _ in values}) == 3


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
@pytest.mark.parametrize("make", GENERATORS)
def test_a_generator_that_a_module_holds_is_replayed(tmp_path, make, accumulate):
    class Own(Regressor):
        def __init__(self, *args):
            super().__init__(*args)
            self.net[1].generator = make()

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (1 + draw(self.net[1].generator))

    values = []
    module = Own(evaluating(lambda closure: values.append(ask_thrice(closure))))
    make_trainer(tmp_path, accumulate_grad_batches=accumulate).fit(module, make_loader())
    assert all(a == b == c for a, b, c in values)
    assert len({a for a, _, _ in values}) == len(values)
    # As many draws as one evaluation per step makes.
    reference = make()
    for _ in range(6):
        draw(reference)
    assert draw(module.net[1].generator) == draw(reference)


def test_workers_are_replayed_over_an_epoch(tmp_path):
    class Global(TensorDataset):
        def __getitem__(self, index):
            X, y = super().__getitem__(index)
            return X + torch.rand(()) + random.random(), y

    values = []
    loader = DataLoader(Global(*regression_data()), batch_size=8, shuffle=True, num_workers=1)
    module = Regressor(evaluating(lambda closure: values.append(ask_thrice(closure))))
    make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=2).fit(module, loader)
    assert all(a == b == c for a, b, c in values)


def test_persistent_workers_cannot_be_replayed_and_are_refused(tmp_path):
    loader = DataLoader(TensorDataset(*regression_data()), batch_size=8, num_workers=1, persistent_workers=True)
    trainer = make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=1)
    with pytest.raises(ValueError, match=r"persistent_workers=True.*LBFGS.*persistent_workers=False"):
        trainer.fit(Regressor(lambda m: LBFGS(m.parameters())), loader)
    trainer.fit(Regressor(lambda m: SGD(m.parameters(), lr=0.1)), loader)


@pytest.mark.parametrize("make", GENERATORS)
def test_the_state_of_generators_is_plain_data(tmp_path, make):
    generator = make()
    draw(generator)
    torch.save(rng_state([generator]), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    expected = [draw(generator), np.random.rand(), random.random(), torch.rand(()).item()]
    other = make()
    set_rng_state(state, [other])
    assert [draw(other), np.random.rand(), random.random(), torch.rand(()).item()] == expected


def test_generators_are_found_once_wherever_the_data_keep_them():
    generator = torch.Generator()
    data = Noisy(generator)
    loader = DataLoader(data, shuffle=True, generator=generator)
    assert find_generators(loader) == [generator]
    own = np.random.default_rng(0)
    loader = DataLoader(torch.utils.data.ConcatDataset([data, Noisy(own)]), shuffle=True)
    assert find_generators(loader) == [generator, own]


@pytest.mark.parametrize("with_validation", [False, True])
def test_validation_by_a_loader_that_shares_its_generator_changes_no_training(tmp_path, with_validation):
    def fit(validate):
        generator = torch.Generator().manual_seed(3)
        data = TensorDataset(*regression_data())
        train, val = (DataLoader(data, batch_size=8, shuffle=True, generator=generator) for _ in range(2))
        torch.manual_seed(0)
        module = Regressor(net=nn.Linear(3, 1))
        make_trainer(tmp_path, max_epochs=3, num_sanity_val_steps=2).fit(module, train, val if validate else None)
        return module

    assert_same(fit(with_validation), fit(False))


@pytest.mark.parametrize("make", GENERATORS)
def test_validation_and_resume_keep_a_generator_that_the_module_holds(tmp_path, make):
    class Own(Regressor):
        def __init__(self):
            super().__init__(net=nn.Linear(3, 1))
            torch.nn.init.ones_(self.net.weight)
            torch.nn.init.zeros_(self.net.bias)
            self.generator = make()

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (1 + draw(self.generator))

        def validation_step(self, batch, batch_idx):
            draw(self.generator)

    plain, validated, resumed = Own(), Own(), Own()
    make_trainer(tmp_path, max_epochs=3).fit(plain, make_loader())
    make_trainer(tmp_path, max_epochs=3).fit(validated, make_loader(), make_loader())
    first = make_trainer(tmp_path, max_epochs=1)
    first.fit(Own(), make_loader())
    first.save_checkpoint(tmp_path / "own.ckpt")
    make_trainer(tmp_path, max_epochs=3).fit(resumed, make_loader(), ckpt_path=tmp_path / "own.ckpt")
    assert_same(plain, validated)
    assert_same(plain, resumed)
