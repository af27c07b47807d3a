"""How many samples a batch has, and what depends on it."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from framework.data.samples import count_samples
from tests.modules import Regressor, assert_close, make_trainer, regression_data


@dataclass
class Batch:
    X: Tensor
    y: Tensor
    name: str = "batch"


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (Batch(torch.ones(7, 2), torch.ones(7)), 7),
        ({"inputs": [torch.ones(5, 2)], "scale": torch.tensor(2.0), "names": ["a", "b"]}, 5),
        ((torch.ones(3), Batch(torch.ones(3), torch.ones(3))), 3),
    ],
)
def test_samples_are_counted_within_what_holds_them(batch, size):
    assert count_samples(batch) == size


def test_tensors_of_different_lengths_leave_the_number_open():
    with pytest.raises(ValueError, match=r"tensors of lengths \[4, 9\].*define count_samples\(batch\) on the module"):
        count_samples({"class_weights": torch.ones(9), "X": torch.ones(4, 2)})


class OfBatches(Regressor):
    """Reads the data from batches of another form."""

    def __init__(self, read) -> None:
        super().__init__(lambda m: SGD(m.parameters(), lr=0.05), net=nn.Linear(3, 1))
        torch.nn.init.ones_(self.net.weight)
        torch.nn.init.zeros_(self.net.bias)
        self.read = read

    def training_step(self, batch, batch_idx):
        return self.loss(self.read(batch))


def ragged(wrap):
    """Batches of 12, 6 and 2 samples."""
    X, y = regression_data()
    return [wrap(X[a:b], y[a:b]) for a, b in ((0, 12), (12, 18), (18, 20))]


@pytest.mark.parametrize("accumulate", [3, "epoch"])
def test_ragged_batches_in_a_dataclass_weigh_by_their_samples(tmp_path, accumulate):
    ours, theirs = OfBatches(lambda b: (b.X, b.y)), OfBatches(lambda b: b)
    make_trainer(tmp_path, accumulate_grad_batches=accumulate).fit(ours, ragged(Batch))
    make_trainer(tmp_path).fit(theirs, [regression_data()])
    assert_close(ours, theirs, 1e-12)


def test_a_batch_with_a_tensor_that_is_not_per_sample_says_so_or_is_told(tmp_path):
    def wrap(X, y):
        return {"weights": torch.ones(5), "X": X, "y": y}

    class Told(OfBatches):
        def count_samples(self, batch):
            return len(batch["X"])

    trainer = make_trainer(tmp_path, accumulate_grad_batches=3)
    with pytest.raises(ValueError, match="define count_samples"):
        trainer.fit(OfBatches(lambda b: (b["X"], b["y"])), ragged(wrap))
    ours, theirs = Told(lambda b: (b["X"], b["y"])), OfBatches(lambda b: b)
    trainer.fit(ours, ragged(wrap))
    make_trainer(tmp_path).fit(theirs, [regression_data()])
    assert_close(ours, theirs, 1e-12)


def test_what_a_step_returns_besides_keeps_no_graphs_over_an_epoch(tmp_path):
    class Extras(Regressor):
        def training_step(self, batch, batch_idx):
            output = self.net(batch[0])
            return {"loss": nn.functional.mse_loss(output, batch[1]), "nested": [{"output": output}]}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            assert len(outputs) == 3
            assert not any(part["nested"][0]["output"].requires_grad for part in outputs)

    make_trainer(tmp_path, accumulate_grad_batches="epoch").fit(Extras(), ragged(lambda X, y: (X, y)))
