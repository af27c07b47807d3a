"""WorkingSet: the same minima as without it, evaluations on few features, and the layer as it was afterwards."""

import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn

from framework import Callback, Module, Trainer
from framework.callbacks import Stationarity, WorkingSet
from framework.data import TensorLoader, sparse_linear
from framework.layers import NormalizedLinear
from framework.optim import FISTA, ISTA, SpaRSA
from framework.penalties import L1, GroupL1, Harder, Penalty


class Fit(Module):
    """A regression by a network on all features, the first layer penalized."""

    def __init__(self, network: nn.Module, optimizer, happy_lambda: float, penalty: Penalty | None):
        super().__init__()
        self.network, self.optimizer = network.double(), optimizer
        self.happy_lambda, self.penalty = happy_lambda, penalty

    def param_groups(self):
        first, *others = self.network.parameters()
        return [{"params": [first], "penalized": self.penalty is not None}, {"params": others, "penalized": False}]

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.network(x) - y).square().mean() / 2

    def configure_optimizers(self):
        return self.optimizer(self.param_groups())


class Widths(Callback):
    """Notes how many columns each product with the data has."""

    def on_train_start(self, trainer, module):
        self.widths = []
        linear = torch.nn.functional.linear

        def noting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            self.widths.append(weight.shape[1])
            return linear(x, weight, bias)

        torch.nn.functional.linear, self.linear = noting, linear

    def teardown(self, trainer, module, stage):
        torch.nn.functional.linear = self.linear


def draw(num_features=300, num_samples=60) -> tuple[Tensor, Tensor]:
    X, y, _ = sparse_linear(num_samples=num_samples, num_features=num_features, num_active=5, noise=0.5, seed=1)
    return X.double(), y.double()


def fit(module: Module, loader, *callbacks, epochs=500, tol=1e-9, **options) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[Stationarity(tol), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accumulate_grad_batches="epoch",
        **options,
    )
    trainer.fit(module, loader)
    return trainer


@pytest.mark.parametrize("optimizer", [SpaRSA, FISTA, ISTA])
@pytest.mark.parametrize("batch_size", [60, 25])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_minimum_is_the_lassos_and_few_products_are_wide(optimizer, batch_size, share):
    X, y = draw()
    weight = share * float((X.T @ y).abs().max()) / len(X)
    reference = Lasso(weight, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(X.numpy(), y[:, 0].numpy()).coef_

    torch.manual_seed(0)
    network = nn.Linear(300, 1, bias=False)
    nn.init.zeros_(network.weight)
    module, working_set, widths = Fit(network, optimizer, weight, L1()), WorkingSet(10), Widths()
    trainer = fit(module, TensorLoader(X, y, batch_size=batch_size), working_set, widths, epochs=4000)

    assert "stationarity" in trainer.stopped_because
    assert network.weight[0].detach().numpy() == pytest.approx(reference, abs=1e-7)
    assert working_set.sizes[0] <= 10
    assert max(working_set.sizes) < 150
    steps, batches = trainer.progress.epochs_completed, -(-60 // batch_size)
    # Two of each epoch read all features: the first of its step, and the one that measures how stationary it is.
    assert widths.widths.count(300) <= 2 * steps * batches
    if optimizer is SpaRSA:
        assert len(widths.widths) > 2 * widths.widths.count(300)


@pytest.mark.parametrize("penalty", [L1(), Harder(0.5), GroupL1()])
def test_a_network_ends_at_the_same_minimum_as_without_it(penalty):
    X, y = draw(120)

    def minimum(*callbacks: Callback) -> list[Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(120, 3), nn.Tanh(), NormalizedLinear(3, 1))
        trainer = fit(
            Fit(network, SpaRSA, 0.1, penalty), TensorLoader(X, y, batch_size=60), *callbacks, epochs=50, tol=1e-7
        )
        assert trainer.stationarity_gap() <= 1e-7
        return [parameter.detach() for parameter in network[0].parameters()]

    working_set = WorkingSet(5)
    for found, expected in zip(minimum(working_set), minimum(), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    assert working_set.sizes[-1] < 30


@pytest.mark.parametrize("groups", [[range(20), range(20, 60)], "rows"])
def test_groups_of_features_leave_zero_though_their_parts_could_not(groups):
    X, y = draw(80)
    Y = torch.cat([y, 0.3 * y.roll(7, 0), X[:, 3:4]], dim=1)
    weight = 0.3 * float((X.T @ Y).abs().max()) / len(X)
    minima = []
    for callbacks in ([WorkingSet(1)], []):
        network = nn.Linear(80, 3, bias=False)
        nn.init.zeros_(network.weight)
        module = Fit(network, SpaRSA, weight, GroupL1(groups))
        trainer = fit(module, TensorLoader(X, Y, batch_size=60), *callbacks, epochs=100)
        assert trainer.stationarity_gap() <= 1e-8  # about the root of float64's precision: F cannot tell more
        minima.append(network.weight.detach())
    assert minima[1].any()
    assert minima[0] == pytest.approx(minima[1], abs=1e-7)


def test_a_layer_that_normalizes_its_rows_computes_the_same():
    X, y = draw()
    torch.manual_seed(0)
    layer = NormalizedLinear(300, 2)
    with torch.no_grad():
        layer.weight[:, 5:] = 0
    outputs = []

    class Notes(Fit):
        def training_step(self, batch, batch_idx):
            outputs.append((self.network(batch[0]), torch.nn.functional.linear(X, layer.normalized_weight, layer.bias)))
            return super().training_step(batch, batch_idx)

    working_set = WorkingSet(5)
    fit(Notes(layer, SpaRSA, 0.3, L1()), TensorLoader(X, y, batch_size=60), working_set, epochs=1, tol=0)
    assert max(working_set.sizes) <= 10
    assert len(outputs) > 5
    for output, expected in outputs:
        assert output.detach() == pytest.approx(expected.detach(), abs=1e-12)


def test_no_point_is_evaluated_otherwise_than_in_full():
    """An optimizer that leaves the working set gets the values and gradients of the whole problem."""

    class Wanders(SpaRSA):
        def step(self, closure):
            weight = self.param_groups[0]["params"][0]
            closure()
            with torch.no_grad():
                for _ in range(3):
                    weight.copy_(torch.randn(weight.shape, dtype=weight.dtype, generator=generator))
                    values.append((weight.clone(), closure().clone(), weight.grad.clone()))
            return values[-1][1]

    generator, values = torch.Generator().manual_seed(0), []
    X, y = draw()
    module = Fit(nn.Linear(300, 1, bias=False), Wanders, 0.1, L1())
    fit(module, TensorLoader(X, y, batch_size=60), WorkingSet(10), epochs=2, tol=0)
    for weight, value, gradient in values:
        residual = X @ weight.T - y
        assert value == pytest.approx(float(residual.square().mean() / 2))
        assert gradient == pytest.approx((X.T @ residual).T / 60)


def test_data_that_change_between_evaluations_are_read_anew():
    """The columns kept for a step are those of the same memory and version only."""
    X, y = draw()
    seen = []

    class Changing(Fit):
        def training_step(self, batch, batch_idx):
            x, target = batch
            x.mul_(0.999)
            output = self.network(x)
            weight = self.network.weight.detach()
            seen.append((output.detach().clone(), x @ weight.T))
            return (output - target).square().mean() / 2

    network = nn.Linear(300, 1, bias=False)
    nn.init.zeros_(network.weight)
    module = Changing(network, SpaRSA, 0.1, L1())
    with pytest.warns(RuntimeWarning, match="took no step"):
        fit(module, TensorLoader(X.clone(), y, batch_size=60), WorkingSet(10), epochs=20, tol=0)
    assert len(seen) > 20
    for output, expected in seen:
        assert output == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("stops", ["no", "in training_step"])
def test_the_layer_is_as_it_was_after_the_run(stops):
    X, y = draw()
    network = nn.Linear(300, 1)
    module = Fit(network, SpaRSA, 0.1, L1())
    if stops == "no":
        fit(module, TensorLoader(X, y, batch_size=60), WorkingSet(), epochs=2)
    else:

        class Fails(Callback):
            def on_after_backward(self, trainer, module):
                if trainer.closure_evaluations == 5:
                    raise KeyError("on purpose")

        with pytest.raises(KeyError):
            fit(module, TensorLoader(X, y, batch_size=60), WorkingSet(), Fails(), epochs=2)
    assert "forward" not in vars(network)


def test_where_it_cannot_work_it_says_so():
    X, y = draw()
    loader = TensorLoader(X, y, batch_size=60)
    with pytest.raises(ValueError, match=r"evaluates once"):
        fit(Fit(nn.Linear(300, 1), torch.optim.SGD, 0.1, L1()), loader, WorkingSet())
    with pytest.raises(ValueError, match=r"has none"):
        fit(Fit(nn.Linear(300, 1, bias=False), lambda groups: SpaRSA(groups, 0.1), 0.1, None), loader, WorkingSet())
    with pytest.raises(ValueError, match=r"needs an nn\.Linear"):
        fit(Fit(nn.Bilinear(3, 3, 1), SpaRSA, 0.1, L1()), loader, WorkingSet())
    with pytest.raises(ValueError, match=r"dense inputs"):
        fit(Fit(nn.Linear(300, 1), SpaRSA, 0.1, L1()), [(X.to_sparse_coo(), y)], WorkingSet())
    with pytest.raises(ValueError, match=r"compiled one is fixed"):
        fit(Fit(nn.Linear(300, 1), SpaRSA, 0.1, L1()), loader, WorkingSet(), compile="step")
    with pytest.raises(ValueError, match=r"min_size=0"):
        WorkingSet(0)
