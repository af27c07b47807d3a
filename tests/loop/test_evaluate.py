"""Validation, test and prediction: they leave the training as it was, and what they return."""

import pytest
import torch
from torch import nn

from framework.data import TensorLoader
from tests.modules import (
    Regressor,
    add_noise,
    assert_same,
    make_loader,
    make_net,
    make_trainer,
    regression_data,
)


@pytest.mark.parametrize("val_kind", ["DataLoader", "TensorLoader"])
def test_training_is_bitwise_the_same_with_and_without_validation(tmp_path, val_kind):
    def run(val_loader):
        torch.manual_seed(11)
        module = Regressor(net=make_net(nn.BatchNorm1d(5), nn.Dropout(0.3)))
        loader = TensorLoader(*regression_data(), batch_size=8, shuffle=True, transform=add_noise)
        make_trainer(tmp_path, max_epochs=3).fit(module, loader, val_loader)
        return module

    val_loader = make_loader(shuffle=True)
    if val_kind == "TensorLoader":
        val_loader = TensorLoader(*regression_data(), batch_size=8, transform=add_noise)
    assert_same(run(None), run(val_loader))


def test_a_shuffling_data_loader_gives_the_same_training_with_and_without_validation(tmp_path):
    def run(val_loader):
        torch.manual_seed(11)
        module = Regressor(net=make_net(nn.Dropout(0.3)))
        make_trainer(tmp_path, max_epochs=3).fit(module, make_loader(shuffle=True), val_loader)
        return module

    assert_same(run(None), run(make_loader()))


@pytest.mark.parametrize("inference_mode", [True, False])
def test_an_evaluation_runs_in_evaluation_mode_without_gradients_and_restores_the_modes(tmp_path, inference_mode):
    class Watch(Regressor):
        def validation_step(self, batch, batch_idx):
            assert not any(part.training for part in self.modules())
            assert not torch.is_grad_enabled()
            in_inference_mode.add(torch.is_inference_mode_enabled())
            super().validation_step(batch, batch_idx)

    module = Watch(net=make_net(nn.Dropout(0.5), nn.BatchNorm1d(5)))
    module.net[2].eval()
    modes = [part.training for part in module.modules()]
    trainer = make_trainer(tmp_path, inference_mode=inference_mode)
    in_inference_mode = set()
    trainer.validate(module, make_loader())
    assert [part.training for part in module.modules()] == modes
    assert in_inference_mode == {inference_mode}
    in_inference_mode.clear()
    trainer.fit(module, make_loader(), make_loader())
    assert in_inference_mode == {False}
    assert [part.training for part in module.modules()] == modes


def test_what_a_validation_within_a_fit_leaves_behind_can_be_trained_with(tmp_path):
    class Caches(Regressor):
        scale = None

        def loss(self, batch):
            X, y = batch
            if self.scale is None:
                self.scale = X.new_ones(1) * 2  # made in the sanity check
            return nn.functional.mse_loss(self.scale * self.net(X), y)

        def on_validation_end(self):
            assert not torch.is_grad_enabled()

    module = Caches()
    make_trainer(tmp_path).fit(module, make_loader(), make_loader())
    assert module.scale is not None


def test_a_failed_validation_leaves_the_modes_of_the_module_as_they_were(tmp_path):
    class Broken(Regressor):
        def validation_step(self, batch, batch_idx):
            raise OSError("no")

    module = Broken(net=make_net(nn.Dropout(0.5)))
    with pytest.raises(OSError, match="no"):
        make_trainer(tmp_path).validate(module, make_loader())
    assert all(part.training for part in module.modules())


def test_validate_and_test_return_the_mean_over_the_samples(tmp_path):
    module, (X, y) = Regressor(), regression_data()
    expected = pytest.approx(nn.functional.mse_loss(module(X), y).item(), rel=1e-12)
    assert make_trainer(tmp_path).validate(module, make_loader()) == [{"val/loss": expected}]
    assert make_trainer(tmp_path).test(module, make_loader()) == [{"test/loss": expected}]


def test_predict_returns_the_outputs_of_the_batches(tmp_path):
    module = Regressor(net=make_net(nn.Dropout(0.5)))
    predictions = make_trainer(tmp_path).predict(module, make_loader())
    assert [len(part) for part in predictions] == [8, 8, 4]
    module.eval()
    torch.testing.assert_close(torch.cat(predictions), module(regression_data()[0]))
    assert not predictions[0].requires_grad


def test_predict_takes_bare_tensors_and_the_modules_own_step(tmp_path):
    class Double(Regressor):
        def predict_step(self, batch, batch_idx):
            return batch_idx, 2 * self(batch)

    module, X = Double(), regression_data()[0]
    outputs = make_trainer(tmp_path).predict(module, X.split(10))
    assert [index for index, _ in outputs] == [0, 1]
    torch.testing.assert_close(outputs[1][1], 2 * module(X[10:]).detach())
