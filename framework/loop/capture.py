"""A function of tensors as one graph: what it does is recorded while it runs once, and compiled by Inductor.

This is the only file that uses private names of torch. They may change with any version, so for every optimizer of the
command line a test compares the graph of its step with the step itself (``tests/loop/test_compiled.py``).
"""

from __future__ import annotations

import io
import logging
import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.config
import torch._inductor.test_operators  # defines the operator `realize`
from torch import Tensor, fx
from torch._inductor.compile_fx import compile_fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

_OPTIONS = {
    "fallback_random": True,  # draws are those of the eager step
    "size_asserts": False,  # whoever calls a graph knows that the shapes are right
    "alignment_asserts": False,
}
_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


class CaptureError(RuntimeError):
    """Why a function cannot be a graph.

    Args:
        reason: A sentence without its end.
        phase: What was being recorded.
    """

    def __init__(self, reason: str, phase: str = "") -> None:
        super().__init__(reason)
        self.phase = phase


class Graph:
    """A compiled function of tensors, some of which it changes in place.

    Args:
        function: Takes one list of the inputs and the constants, and returns the outputs.
        constants: Tensors that the function reads, and that nobody passes to it. They are read anew at every call.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], constants: list[Tensor]) -> None:
        self._function, self._constants = function, constants

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """Return the outputs; the inputs stand in the order of the recording, and have the same shapes and strides."""
        return self._function(*inputs, *self._constants)


def capture(function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Graph:
    """Return what a function does as a graph: it is called once, and leaves no trace in tensors.

    Args:
        function: Does what is to be recorded, and returns its results. Whatever else than tensors it depends on becomes
            a constant of the graph.
        inputs: The tensors that it reads or changes in place, each of them once. The graph takes others in their place.

    Raises:
        CaptureError: If it does something that a graph would not do again; the message says what and where.
    """
    before = _random_states()
    with _restoring(inputs), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the function has been called before, and has warned
        recorded = _record(function, inputs)
    after = _random_states()
    _check_shapes(recorded)
    _keep_whole(recorded)
    constants = _take_out_constants(recorded)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it tells of CUDA, also on a CPU
    try:
        with torch.no_grad(), torch._inductor.config.patch(_OPTIONS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled: Any = compile_fx(recorded, [*inputs, *constants])
            graph = Graph(compiled, constants)
            if not _equal(before, after):
                _set_random_states(before)
                with _restoring(inputs):
                    graph(list(inputs))
    except Exception as error:
        raise CaptureError(f"Inductor cannot compile it: {_first_line(error)}") from error
    if not _equal(_random_states(), after):
        raise CaptureError("a graph draws other random numbers: some are unused, or Inductor draws them otherwise")
    return graph


def _random_states() -> list[Tensor]:
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_cuda]


def _set_random_states(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


def _equal(states: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(states) == len(others) and all(map(torch.equal, states, others))


def _record(function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Record the operations on tensors while a function runs."""
    drawn = random.getstate(), np.random.get_state()
    try:
        # With "real", the function sees its own tensors, wherever it holds them: recording knows each of the inputs.
        with redirect_stdout(_NoOutput()), redirect_stderr(_NoOutput()), _as_if_compiling(), _Guarded():
            tracer = make_fx(lambda *_: list(function()), _DECOMPOSITIONS, tracing_mode="real")
            recorded = tracer(*inputs)
    except CaptureError:
        raise
    except Exception as error:
        if "value out of a tracing tensor" in str(error):
            raise CaptureError(f"{_where(error)} decides by the value of a tensor (item(), float(), if ...)") from error
        raise CaptureError(f"{_where(error)} raised {type(error).__name__}: {_first_line(error)}") from error
    now = random.getstate(), np.random.get_state()
    if drawn[0] != now[0] or any(not np.array_equal(a, b) for a, b in zip(drawn[1], now[1], strict=True)):
        raise CaptureError("it draws random numbers of Python or NumPy, which a graph would not draw again")
    return recorded


def _check_shapes(recorded: fx.GraphModule) -> None:
    """Refuse operations whose results have another shape for other values."""
    for node in recorded.graph.nodes:
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        if node.target is torch.ops.aten.index.Tensor and not any(map(_is_mask, node.args[1])):
            continue
        name = str(node.target).removeprefix("aten.").split(".")[0]
        what = "indexes by a mask" if name == "index" else f"calls {name}"
        raise CaptureError(f"it {what}, whose result has another shape for other values")


def _is_mask(index: Any) -> bool:
    return isinstance(index, fx.Node) and index.meta["val"].dtype in (torch.bool, torch.uint8)


def _keep_whole(recorded: fx.GraphModule) -> None:
    """Call PyTorch's own kernel where Inductor's, fused with whatever reads its result, takes several times as long."""
    for node in recorded.graph.nodes:
        if node.target is torch.ops.aten.max_pool2d_with_indices_backward.default and node.args[0].meta["val"].is_cpu:
            node.target = torch.ops.proxtrain.max_pool2d_backward.default


def _max_pool2d_backward(*args: Any) -> Tensor:
    return torch.ops.aten.max_pool2d_with_indices_backward.default(*args)


_LIBRARY = torch.library.Library("proxtrain", "DEF")
_LIBRARY.define(
    "max_pool2d_backward(Tensor grad, Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
    "bool ceil_mode, Tensor indices) -> Tensor"
)
_LIBRARY.impl("max_pool2d_backward", _max_pool2d_backward, "CPU")
torch.library.register_fake("proxtrain::max_pool2d_backward", _max_pool2d_backward)


def _take_out_constants(recorded: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into further inputs of it, and return them."""
    graph = recorded.graph
    constants: list[Tensor] = []
    inputs: dict[int, fx.Node] = {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(recorded, node.target)
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"it calls {type(tensor).__name__}, a part of a program of its own")
        if any(_writes(user, node) for user in node.users):
            raise CaptureError(
                "it changes a tensor in place that is neither a parameter, nor a buffer, nor an attribute of the module"
            )
        if id(tensor) not in inputs:
            with graph.inserting_after(last):
                last = inputs[id(tensor)] = graph.placeholder(f"constant_{len(constants)}")
            constants.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    for node in graph.nodes:
        node.meta.clear()  # examples of its values, from which Inductor is to take none
    graph.set_codegen(fx.graph.CodeGen())
    recorded.recompile()
    return constants


def _writes(user: fx.Node, tensor: fx.Node) -> bool:
    """Tell whether an operation changes one of its arguments."""
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return False
    given = zip(schema.arguments, user.args, strict=False)
    return any(arg is tensor and spec.alias_info is not None and spec.alias_info.is_write for spec, arg in given)


@contextmanager
def _restoring(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Set tensors and their gradients back to what they were."""
    values = [tensor.detach().clone() for tensor in tensors]
    grads = [tensor.grad if tensor.is_leaf else None for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value, grad in zip(tensors, values, grads, strict=True):
                tensor.copy_(value)
                if tensor.is_leaf:
                    tensor.grad = grad


@contextmanager
def _as_if_compiling() -> Iterator[None]:
    """Let torch's optimizers take the way on which they never wait for the value of a tensor."""
    before, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def _norms(tensors: Sequence[Tensor], order: float = 2, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor, order, dtype=dtype) for tensor in tensors]


# Operations that Inductor would call as they are, one tensor after the other.
_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {torch.ops.aten._foreach_norm.Scalar: _norms}


class _NoOutput(io.StringIO):
    """A standard output that may not be written to: a graph prints nothing."""

    def write(self, text: str) -> int:
        raise CaptureError(f"it prints {text.strip()!r:.40}, which a graph would not do again")


class _Guarded(TorchFunctionMode):
    """Refuses to hand out what is in the memory of a tensor, which recording would not notice."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READS_MEMORY:
            raise CaptureError(f"it reads the values of a tensor by {name}()")
        return func(*args, **(kwargs or {}))


_READS_MEMORY = (
    *("tolist", "numpy", "data_ptr", "untyped_storage", "storage", "apply_", "map_", "map2_", "__array__"),
    *("__dlpack__", "__cuda_array_interface__", "__reduce_ex__", "__deepcopy__", "__repr__", "__format__"),
)


# ------------------------------------------------------------------------------------------------ optimizers


def step_function(optimizer: Optimizer) -> Callable[[], Any]:
    """Return the optimizer's step as its class defines it, without hooks, profiling and what schedulers wrap it in."""
    function: Any = type(optimizer).step
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__

    def step() -> None:
        with torch.no_grad(), NumbersAsTensors():
            function(optimizer)

    return step


def why_not_step(optimizer: Optimizer) -> str | None:
    """Return why the step of an optimizer cannot be recorded; None if nothing is known against it."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "hooks are registered on it"
    own = vars(optimizer).get("step")
    if own is not None and not hasattr(own, "_wrapped_by_lr_sched"):
        return "its method `step` was replaced"
    return _NOT_RECORDED.get(type(optimizer).__name__)


_NOT_RECORDED = {
    "Adafactor": "it decides by the values of tensors",
    "SparseAdam": "its gradients are sparse",
    "Muon": "a graph of it gives other results",
    "ASGD": "a graph would round its rates otherwise",
    "NAdam": "a graph would round its momenta otherwise",
}


class NumbersAsTensors(TorchFunctionMode):
    """Lets a 0-d tensor stand where an optimizer has a number, such as its learning rate.

    What is computed of such tensors is computed once, and not for every entry of a parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self._computed: dict[tuple[int, int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        entries = next((a for a in args if isinstance(a, Tensor) and a.ndim and a.is_floating_point()), None)
        if entries is not None and name not in ("__get__", "__set__", "copy_"):
            args = tuple(self._as_number(arg, entries) for arg in args)
            kwargs = {key: self._as_number(value, entries) for key, value in kwargs.items()}
        if isinstance(kwargs.get("alpha"), Tensor) and name in ("add", "add_", "sub", "sub_"):
            return func(args[0], args[1] * kwargs.pop("alpha"), *args[2:], **kwargs)
        if isinstance(kwargs.get("value"), Tensor) and name in ("addcmul", "addcmul_", "addcdiv", "addcdiv_"):
            return func(args[0], args[1] * kwargs.pop("value"), *args[2:], **kwargs)
        return func(*args, **kwargs)

    def _as_number(self, value: Any, entries: Tensor) -> Any:
        """Round a 0-d tensor as PyTorch rounds a number in an operation on these entries."""
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            return value
        key = id(value), value._version, entries.dtype
        if key not in self._computed:
            self._computed[key] = value, torch.ops._inductor_test.realize(value.to(entries.dtype))
        return self._computed[key][1]


# -------------------------------------------------------------------------------------------------- messages


def _where(error: BaseException) -> str:
    """Name the line of the user's code, or the last one, that an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    frame = (own or frames)[-1]
    return f"line {frame.lineno} of {Path(frame.filename).name} ({frame.name})"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
