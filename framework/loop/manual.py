"""Manual optimization: `training_step` itself calls the optimizers, of which there may be several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.loop.overrides import overrides
from framework.loop.progress import Progress
from framework.loop.settings import Settings
from framework.module import Module
from framework.objective.closure import Closure, Evaluation, Recorder, reevaluates
from framework.objective.output import parse_manual_output
from framework.objective.replay import Replay


class Several(Optimizer):
    """Several optimizers under the name of one, for the parts of a run that log, save and restore.

    Args:
        optimizers: Those that `configure_optimizers` returned, in its order.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)  # all groups and states are theirs

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all, one after the other."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the states and the groups of all."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return {
            "classes": [type(optimizer).__name__ for optimizer in self.optimizers],
            "state": {index: state["state"] for index, state in enumerate(states)},
            "param_groups": [group for state in states for group in state["param_groups"]],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: If it is of other optimizers.
        """
        classes = [type(optimizer).__name__ for optimizer in self.optimizers]
        if state_dict.get("classes") != classes or len(state_dict["param_groups"]) != len(self.param_groups):
            raise ValueError(f"it has the states of {state_dict.get('classes')}, this run has {classes}")
        groups = iter(state_dict["param_groups"])
        for index, optimizer in enumerate(self.optimizers):
            own = [next(groups) for _ in optimizer.param_groups]
            optimizer.load_state_dict({"state": state_dict["state"][index], "param_groups": own})


def each_optimizer(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers behind `Several`, or the one that is none of it."""
    return optimizer.optimizers if isinstance(optimizer, Several) else [optimizer]


class Manual:
    """The step of a module with ``automatic_optimization = False``: its `training_step`, which does all by itself.

    Meanwhile hooks of the optimizers count their steps, and let those that evaluate a closure again see one function.

    Args:
        closure: Whose objective counts evaluations, and which keeps the loss that `training_step` returns.
        forward: `training_step`, wrapped for the device and precision.
        backward: Adds the gradients of a loss to those in the parameters.
        recorder: Told which batch is read, and muted while a closure is evaluated again.
        progress: Returns how far the run is; its `Progress.global_step` grows with every step of an optimizer.
        after_backward: Called after each `backward`.
        before_step: Called with an optimizer when its gradients are final.
    """

    taken = 0  # they are counted when they are taken

    def __init__(
        self,
        closure: Closure,
        forward: Callable[..., Any],
        backward: Callable[..., None],
        recorder: Recorder,
        progress: Callable[[], Progress],
        after_backward: Sequence[Callable[[], Any]],
        before_step: Sequence[Callable[[Optimizer], Any]],
    ) -> None:
        self._closure, self._forward, self._backward = closure, forward, backward
        self._recorder, self._progress = recorder, progress
        self._after_backward, self._before_step = after_backward, before_step
        self._optimizers = each_optimizer(closure.objective.optimizer)

    def __call__(self, batches: Iterable[Any], batch_idx: int, log: bool) -> None:
        progress, module = self._progress(), self._closure.objective.module
        before = progress.global_step
        (batch,) = batches
        self._closure.first = None
        self._recorder.read(batch)
        with ExitStack() as hooked:
            for optimizer in self._optimizers:
                hooked.callback(optimizer.register_step_pre_hook(self._before).remove)
                hooked.callback(optimizer.register_step_post_hook(self._after).remove)
            hooked.push(self._untoggle)
            loss, outputs = parse_manual_output(module, self._forward(batch, batch_idx))
        progress.taken = progress.global_step - before
        if loss is not None:
            self._closure.first = Evaluation(loss, None, loss, outputs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the gradients of a loss to those in the parameters; this counts as an evaluation."""
        self._closure.objective.evaluations += 1
        self._backward(loss, *args, **kwargs)
        for hook in self._after_backward:
            hook()

    def _untoggle(self, kind: object, error: object, traceback: object) -> None:
        """After an error, undo what `toggle_optimizer` has left, so that the module can be trained again."""
        if error is not None:
            self._closure.objective.module.untoggle_optimizer(self._optimizers[0])

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Put a closure that sees the same function at every call in the place of the user's."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._announce(optimizer)
            return None
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self._repeated(optimizer, closure)}
        return (optimizer, self._repeated(optimizer, closure), *args[2:]), kwargs

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._progress().global_step += 1

    def _repeated(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        start = Replay(self._closure.objective.module)
        is_first = True

        @torch.enable_grad()
        def evaluate() -> Any:
            nonlocal is_first
            if not is_first:
                with start.again(), self._recorder.muted():
                    return closure()
            is_first = False
            value = closure()
            if not reevaluates(optimizer):
                self._announce(optimizer)
            return value

        return evaluate

    def _announce(self, optimizer: Optimizer) -> None:
        for hook in self._before_step:
            hook(optimizer)


def check_manual(module: Module, settings: Settings, *, fp16: bool, several_processes: bool) -> None:
    """Refuse what has no effect, or is not possible, if `training_step` calls the optimizers.

    Raises:
        ValueError: If there is something; the message names it.
    """
    how = f"with {type(module).__name__}.automatic_optimization = False"
    if settings.accumulate_grad_batches != 1:
        raise ValueError(
            f"accumulate_grad_batches={settings.accumulate_grad_batches!r} has no effect {how}: step the optimizer at "
            "every k-th batch in training_step"
        )
    if settings.gradient_clip_val:
        raise ValueError(
            f"gradient_clip_val={settings.gradient_clip_val} has no effect {how}: call self.clip_gradients(optimizer, "
            "gradient_clip_val=...) in training_step"
        )
    dead = ("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step")
    if unused := [name for name in (*dead, "on_before_zero_grad") if overrides(module, name)]:
        raise ValueError(f"{type(module).__name__}.{unused[0]} would never be called {how}: drop it")
    if settings.compile is not None:
        raise ValueError(
            f"compile={settings.compile!r} has no effect {how}: use torch.compile(...) on the parts of the module"
        )
    if module.penalty is not None:
        raise ValueError(
            f"the penalty {type(module.penalty).__name__} has no effect {how}: add its value to the loss in "
            "training_step, or pass it to a proximal optimizer, and set the module's to None"
        )
    if fp16:
        raise ValueError(f"precision='16-mixed' {how}, whose gradients nobody would unscale: use 'bf16-mixed'")
    if several_processes:
        raise ValueError(f"several processes {how}: nobody would add up their gradients; use devices=1")
