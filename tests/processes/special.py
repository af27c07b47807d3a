"""What two processes do when something happens in one: ``python -m tests.processes.special WHAT FOLDER``."""

import json
import os
import signal
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, SGD

from framework import Trainer
from framework.callbacks import ModelCheckpoint
from framework.data import TensorLoader
from tests.modules import Regressor, at_step, callback_of, evaluating, make_net, regression_data, seed_all
from tests.processes.cases import SIZE, Plain, run


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    defaults = {"max_epochs": 3, "devices": 2, "strategy": "ddp", "log_every_n_steps": 1000, "logger": False}
    return Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks],
        **(defaults | options),
    )


def loader() -> TensorLoader:
    return TensorLoader(*regression_data(36), batch_size=4, shuffle=True)


def with_dropout() -> Regressor:
    return Regressor(lambda m: SGD(m.param_groups(), lr=0.05, momentum=0.9), make_net(nn.Dropout(0.3)))


def in_rank_1(action: Any) -> Any:
    return at_step(4, lambda trainer: action() if trainer.fabric.global_rank == 1 else None)


def fail() -> None:
    raise KeyError("only here")


def asking(question: Any) -> Any:
    """Make an optimizer that evaluates once and asks one thing more."""

    def ask(closure: Any) -> None:
        closure()
        question(closure, [p for group in closure.objective.optimizer.param_groups for p in group["params"]])

    return evaluating(ask)


def count(folder: Path) -> dict[str, Any]:
    """Count the collective calls and bytes of steps and evaluations."""
    found: dict[str, Any] = {}
    cases = {
        "sgd": ({}, lambda m: SGD(m.param_groups(), lr=0.05)),
        "sgd accumulating": ({"accumulate_grad_batches": 4}, lambda m: SGD(m.param_groups(), lr=0.05)),
        "lbfgs": ({}, lambda m: LBFGS(m.parameters(), max_iter=3)),
        "value": ({}, asking(lambda closure, params: closure.value())),
        "values": (
            {},
            asking(lambda closure, params: closure.values([p.detach().expand(5, *p.shape) for p in params])),
        ),
        "hvp": ({}, asking(lambda closure, params: closure.hvp()(torch.cat([p.detach().flatten() for p in params])))),
    }
    for name, (options, optimize) in cases.items():
        calls: list[Any] = []

        def note(trainer: Any, *_: Any, calls: list[Any] = calls) -> None:
            processes = trainer._processes
            calls.append((processes.calls, processes.bytes, trainer.closure_evaluations))

        watching = callback_of(on_train_batch_end=note, after_module=True)
        one = trainer(folder, watching, max_epochs=1, enable_checkpointing=False, **options)
        module = Plain(optimize)
        one.fit(module, loader())
        # The first step is logged, which takes a call more.
        found[name] = [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(calls[1:])]
        found["parameters"] = sum(p.numel() for p in module.parameters())
        found["tensors"] = len(list(module.parameters()))
    return found


def stop(folder: Path) -> dict[str, Any]:
    """Stop in one process; return what both know of it."""
    one: Any = trainer(folder, in_rank_1(lambda: one.stop("enough in rank 1")), enable_checkpointing=False)
    one.fit(Regressor(), loader())
    return {"because": one.stopped_because, "steps": one.global_step}


def go_on(folder: Path) -> bool:
    """Compare a run in two parts with a whole one, bitwise."""
    ended = []
    for part, options in (("whole", {}), ("parts", {"max_steps": 7}), ("parts", {"ckpt_path": "last"})):
        seed_all(0)
        ckpt_path = options.pop("ckpt_path", None)
        module = with_dropout()
        trainer(folder, ModelCheckpoint(folder / part), **options).fit(module, loader(), ckpt_path=ckpt_path)
        ended.append(module.state_dict())
    return all(torch.equal(value, ended[2][name]) for name, value in ended[0].items())


def go_on_with_another_number(folder: Path) -> None:
    """Continue runs that one process has begun, and begin those that one is to continue."""
    for name in ("sgd", "logging", "lbfgs"):
        two = {"size": SIZE, "devices": 2, "strategy": "ddp"}
        run(folder, name, **two, max_steps=12, callbacks=[ModelCheckpoint(folder / f"two-{name}")])
        found = run(folder, name, **two, ckpt_path=folder / f"one-{name}" / "last.ckpt")
        torch.save(found, folder / f"{name}-{torch.distributed.get_rank()}.pt")


def refuse_batch_norm(folder: Path) -> str:
    """Return the error for batch norm; afterwards the processes are apart."""
    try:
        trainer(folder).fit(Regressor(net=make_net(nn.BatchNorm1d(5))), loader())
    except ValueError as error:
        return str(error)
    return ""


def main(what: str, folder: Path) -> None:
    """Do what is asked for; write what was found."""
    warnings.simplefilter("error")
    seed_all(0)
    answer: dict[str, Any] = {}
    if what == "all is well":
        go_on_with_another_number(folder)
        answer = {"count": count(folder), "stop": stop(folder), "go on": go_on(folder)}
        answer["batch norm"] = refuse_batch_norm(folder)
    elif what == "raise":
        trainer(folder, in_rank_1(fail)).fit(Regressor(), loader())
    elif what == "raise in rank 0":
        other = at_step(4, lambda trainer: fail() if trainer.fabric.global_rank == 0 else None)
        trainer(folder, other).fit(Regressor(), loader())
    elif what == "kill":
        trainer(folder, in_rank_1(lambda: os.kill(os.getpid(), signal.SIGKILL))).fit(Regressor(), loader())
    else:
        number = getattr(signal, what)
        one = trainer(folder, in_rank_1(lambda: os.kill(os.getpid(), number)), ModelCheckpoint(folder))
        one.fit(Regressor(), loader())
        answer = {"because": one.stopped_because, "steps": one.global_step}
    rank = os.environ.get("LOCAL_RANK", "0")
    (folder / f"answer-{rank}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
