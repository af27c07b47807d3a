"""What one process does with all the batches, and two with half of them each: the same runs, by their names.

``python -m tests.processes.cases FOLDER NAME...`` runs cases and writes what each ended with to ``FOLDER/NAME.pt``.
"""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset, WeightedRandomSampler
from torchmetrics import MeanSquaredError

from framework import Trainer
from framework.callbacks import EarlyStopping
from framework.data import TensorLoader
from framework.optim import FISTA, ISTA, ExhaustiveSearch, MinimizeWrapper, ProxAdam, RandomSearch, SpaRSA
from tests.modules import Penalized, Regressor, evaluating, regression_data, seed_all

SIZE = 4  # of a batch of one of two processes; the last batches are short, and their number is odd
NUM_SAMPLES = 35


class Plain(Regressor):
    """Keeps no losses, for which `vmap` would have to stop."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)


class Logging(Plain):
    def __init__(self, optimize: Any) -> None:
        super().__init__(optimize)
        self.error, self.train_error = MeanSquaredError(), MeanSquaredError()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("mean", loss, on_step=False, on_epoch=True)
        self.log("sum", loss * self.count_samples(batch), on_step=False, on_epoch=True, reduce_fx="sum")
        self.log("of_step", loss)
        X, y = batch
        self.train_error.update(self.net(X).detach().float(), y.float())
        self.log("train/error", self.train_error, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        X, y = batch
        self.error.update(self.net(X).float(), y.float())
        self.log("val/error", self.error)
        super().validation_step(batch, batch_idx)


class Together(Plain):
    """Adds up the losses of the parts of a batch."""

    def loss(self, batch: Any) -> Any:
        return sum(map(super().loss, batch.values())) if isinstance(batch, dict) else super().loss(batch)


def sgd(module: Any) -> Any:
    return SGD(module.param_groups(), lr=0.05, momentum=0.9, weight_decay=0.01)


def one_cycle(module: Any) -> Any:
    optimizer = AdamW(module.param_groups(), lr=0.01)
    scheduler = OneCycleLR(optimizer, max_lr=0.05, total_steps=module.trainer.estimated_stepping_batches)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def plateau(module: Any) -> Any:
    optimizer = Adam(module.param_groups(), lr=0.05)
    scheduler = ReduceLROnPlateau(optimizer, patience=0, threshold=0.3, factor=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


def with_penalty(optimizer: Any, **options: Any) -> Any:
    return lambda: Penalized(lambda module: optimizer(module.param_groups(), **options))


def minimizing(method: str, maxiter: int) -> Any:
    arguments = {"method": method, "options": {"maxiter": maxiter}}
    return lambda: Regressor(lambda module: MinimizeWrapper(module.parameters(), arguments))


def asking(question: str) -> Any:
    """Gradient descent that also asks for products with the Hessian, or for values at several points."""

    def ask(closure: Any) -> Any:
        loss = closure()
        params = [p for group in closure.objective.optimizer.param_groups for p in group["params"]]
        size = sum(p.numel() for p in params)
        if question == "hvp":
            answer = closure.hvp()(torch.linspace(-1, 1, size, dtype=torch.float64))
        else:
            answer = closure.values([torch.stack([p.detach() * scale for scale in (0.5, 1.0, 2.0)]) for p in params])
        closure.objective.module.answers.append(answer)
        closure()
        return loss

    def make() -> Any:
        module: Any = Plain(evaluating(ask))
        module.answers = []
        return module

    return make


class Partly(Plain):
    """Some parameters are used for some batches only: by one process, or by none."""

    def __init__(self) -> None:
        super().__init__(sgd)
        self.some = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.never = nn.Parameter(torch.ones((), dtype=torch.float64))

    def loss(self, batch: Any) -> Any:
        X, y = batch
        weight = (X[:, :1] > 0).double()
        prediction = self.net(X)
        if bool((X[:, 0] > 1.4).any().item()):
            prediction = prediction + 0 * self.some
        return ((prediction - y) ** 2 * (1 + weight)).mean()


MODULES: dict[str, Any] = {
    "sgd": lambda: Regressor(sgd),
    "one_cycle": lambda: Regressor(one_cycle),
    "plateau": lambda: Regressor(plateau),
    "lbfgs": lambda: Regressor(
        lambda module: LBFGS(module.parameters(), max_iter=4, history_size=3, line_search_fn="strong_wolfe")
    ),
    "penalized_sgd": with_penalty(SGD, lr=0.01),
    "ista": with_penalty(ISTA),
    "fista": with_penalty(FISTA),
    "sparsa": with_penalty(SpaRSA),
    "prox_adam": with_penalty(ProxAdam, lr=0.01),
    "l_bfgs_b": minimizing("L-BFGS-B", 5),
    "newton_cg": minimizing("Newton-CG", 3),
    "trust_ncg": minimizing("trust-ncg", 3),
    "nelder_mead": minimizing("Nelder-Mead", 20),
    "random_search": lambda: Plain(lambda module: RandomSearch(module.parameters(), scale=0.05, candidates=10)),
    "exhaustive_search": lambda: Plain(lambda module: ExhaustiveSearch(module.parameters(), step=0.05)),
    "hvp": asking("hvp"),
    "values": asking("values"),
    "logging": lambda: Logging(plateau),
    "together": lambda: Together(sgd),
}


class Numbers(IterableDataset):
    """The samples one after the other, without a length."""

    def __iter__(self) -> Iterator[Any]:
        yield from TensorDataset(*regression_data(NUM_SAMPLES))


class Jumping(Sampler):
    """A user's sampler, which draws from torch's global generator."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __iter__(self) -> Iterator[int]:
        start = int(torch.randint(NUM_SAMPLES, ()))
        return iter([(start + 6 * index) % NUM_SAMPLES for index in range(NUM_SAMPLES)])


class Batches(Sampler):
    """A user's batches of indices."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return -(-NUM_SAMPLES // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(NUM_SAMPLES).tolist()
        return iter([order[start : start + self.size] for start in range(0, NUM_SAMPLES, self.size)])


def dataset() -> TensorDataset:
    return TensorDataset(*regression_data(NUM_SAMPLES))


LOADERS: dict[str, Any] = {
    "tensors": lambda size: TensorLoader(*regression_data(NUM_SAMPLES), batch_size=size, shuffle=True),
    "shuffled": lambda size: DataLoader(dataset(), batch_size=size, shuffle=True),
    "own_generator": lambda size: DataLoader(
        dataset(), batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "in_order": lambda size: DataLoader(dataset(), batch_size=size),
    "workers": lambda size: DataLoader(dataset(), batch_size=size, shuffle=True, num_workers=1),
    "weighted": lambda size: DataLoader(
        dataset(), batch_size=size, sampler=WeightedRandomSampler(torch.arange(1.0, NUM_SAMPLES + 1), NUM_SAMPLES)
    ),
    "users_sampler": lambda size: DataLoader(dataset(), batch_size=size, sampler=Jumping()),
    "users_batches": lambda size: DataLoader(dataset(), batch_sampler=Batches(size)),
    "stream": lambda size: DataLoader(Numbers(), batch_size=size),
    "list": lambda size: list(DataLoader(dataset(), batch_size=size)),
    "together": lambda size: {
        "a": TensorLoader(*regression_data(40), batch_size=size, shuffle=True),
        "b": DataLoader(TensorDataset(*regression_data(16)), batch_size=size),
        "c": TensorLoader(*regression_data(20), batch_size=size, drop_last=True, shuffle=True),
    },
    "drop_last": lambda size: TensorLoader(*regression_data(32), batch_size=size, drop_last=True),
}


def _cases() -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {name: {"module": name} for name in MODULES}
    for name in ("l_bfgs_b", "newton_cg", "trust_ncg", "nelder_mead"):
        cases[name]["accumulate_grad_batches"] = "epoch"
    # Its step lengths amplify the rounding tenfold at every step, until another one is accepted.
    cases["sparsa"]["max_steps"] = 2
    cases["sparsa_epoch"] = {"module": "sparsa", "accumulate_grad_batches": "epoch", "max_steps": 3}
    cases["sparsa_accumulating"] = {"module": "sparsa", "accumulate_grad_batches": 2, "max_steps": 3}
    for name in ("sgd", "lbfgs", "ista", "hvp", "penalized_sgd", "logging"):
        cases[f"{name}_accumulating"] = {"module": name, "accumulate_grad_batches": 2}
    for name in ("sgd", "lbfgs", "fista", "hvp", "values"):
        cases[f"{name}_epoch"] = {"module": name, "accumulate_grad_batches": "epoch"}
    cases["together"]["loader"] = "together"
    for name in [name for name in LOADERS if name != "together"]:
        cases[f"loader_{name}"] = {"module": "logging", "loader": name}
    cases["clipped"] = {"module": "sgd", "gradient_clip_val": 0.1}
    cases["limited"] = {"module": "logging", "limit_train_batches": 3, "limit_val_batches": 2}
    cases["overfit"] = {"module": "logging", "overfit_batches": 2, "loader": "shuffled"}
    cases["max_steps"] = {"module": "logging", "max_steps": 7}
    cases["stopping"] = {"module": "logging", "max_epochs": 40}
    cases["within"] = {"module": "logging", "val_check_interval": 2, "check_val_every_n_epoch": None}
    cases["within_accumulating"] = {"module": "logging", "val_check_interval": 0.5, "accumulate_grad_batches": 2}
    cases["stopping_within"] = {"module": "logging", "max_epochs": 40, "val_check_interval": 2}
    cases["partly"] = {"module": "partly"}
    return cases


MODULES["partly"] = Partly
CASES = _cases()


def run(root: Path, name: str, *, size: int, **changes: Any) -> dict[str, Any]:
    """Run a case with batches of ``size``; return what it ended with."""
    options = {"max_epochs": 3, **CASES[name], **changes}
    module, loader = MODULES[options.pop("module")](), LOADERS[options.pop("loader", "tensors")]
    ckpt_path, callbacks = options.pop("ckpt_path", None), options.pop("callbacks", [])
    stopping = EarlyStopping("val/loss", min_delta=0.01, patience=1) if "stopping" in name else None
    seed_all(0)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=root,
        log_every_n_steps=1,
        callbacks=[*callbacks, *([stopping] if stopping else [])],
        **options,
    )
    trainer.fit(module, loader(size), TensorLoader(*regression_data(30), batch_size=size), ckpt_path=ckpt_path)
    num_validated = trainer.progress.evaluated_batches["validation"]
    predictions = trainer.predict(module, TensorLoader(*regression_data(30), batch_size=size))
    (validated,) = trainer.validate(module, TensorLoader(*regression_data(30), batch_size=size))
    return {
        "weights": {key: value.clone() for key, value in module.state_dict().items() if "error" not in key},
        "counts": [trainer.global_step, trainer.current_epoch, trainer.closure_evaluations, num_validated],
        "because": trainer.stopped_because,
        "metrics": trainer._fit.metrics.callback_metrics,  # type: ignore[union-attr]
        "validated": validated,
        "predictions": torch.cat(predictions),
        "answers": getattr(module, "answers", []),
        "lr": [group.get("lr") for group in trainer.optimizer.param_groups],
    }


def main(folder: Path, *names: str) -> None:
    """Write what each of the cases, by default all, ended with."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*makes a whole minimization")
    for name in names or CASES:
        try:
            found = run(folder, name, size=SIZE, devices=2, strategy="ddp")
        except Exception as error:
            raise RuntimeError(f"case {name}") from error
        rank = torch.distributed.get_rank()
        torch.save(found, folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
