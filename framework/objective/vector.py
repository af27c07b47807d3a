"""Tensors as one vector, the form that solvers and Hessians need.

Shapes: n is the number of values in all parameters together, k the number of vectors in a stack.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors into one vector (n,), a copy on the device of the first; sparse ones become dense."""
    if not tensors:
        return torch.zeros(0)
    device = tensors[0].device
    dense = [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]
    return torch.cat(
        [tensor.reshape(-1) if tensor.device == device else tensor.reshape(-1).to(device) for tensor in dense]
    )


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split (n,) into the shapes of `like`, or a stack (k, n) into one (k, *shape) for each."""
    batch = vector.shape[:-1]
    pieces = vector.split([tensor.numel() for tensor in like], dim=-1)
    return [piece.reshape(batch + tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def all_parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of an optimizer, in its order, frozen ones too."""
    return [param for group in optimizer.param_groups for param in group["params"]]


class ParameterVector:
    """The trainable parameters of an optimizer's groups, read and written as one vector (n,).

    Frozen parameters (`requires_grad=False`) are left out.

    Raises:
        ValueError: If nothing is trainable, or the parameters do not share one real floating-point dtype.
    """

    def __init__(self, param_groups: Iterable[dict]) -> None:
        self.groups = [(group, [p for p in group["params"] if p.requires_grad]) for group in param_groups]
        self.params: list[Tensor] = [param for _, params in self.groups for param in params]
        if not self.params:
            raise ValueError("no parameter requires a gradient: unfreeze some with `param.requires_grad_(True)`")
        dtypes = {param.dtype for param in self.params}
        if len(dtypes) > 1 or not self.params[0].is_floating_point():
            names = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise ValueError(
                f"the parameters are {names}, but one vector needs one real floating-point type: "
                "convert the model, for example with `model.float()`, or freeze the others"
            )
        self.sizes = [param.numel() for param in self.params]

    def with_gradient(self) -> ParameterVector:
        """Return the vector of only those parameters that have a gradient now; it may be empty."""
        kept = copy.copy(self)
        kept.groups = [(group, [p for p in params if p.grad is not None]) for group, params in self.groups]
        kept.params = [param for param in self.params if param.grad is not None]
        kept.sizes = [param.numel() for param in kept.params]
        return kept

    def __len__(self) -> int:
        return sum(self.sizes)

    def read(self) -> Tensor:
        """Return the parameters (n,), a copy in their own dtype."""
        return flatten([param.detach() for param in self.params])

    def read_gradients(self) -> Tensor | None:
        """Return the gradients (n,), zero for a parameter without one; None if no parameter has one."""
        if self.params and all(param.grad is None for param in self.params):
            return None
        return flatten([torch.zeros_like(param) if param.grad is None else param.grad for param in self.params])

    @torch.no_grad()
    def write(self, vector: Tensor) -> None:
        """Copy (n,) into the parameters, rounding to their dtype."""
        if not self.params:
            return
        first = self.params[0]
        vector = vector.to(first.device, first.dtype)
        for param, piece in zip(self.params, vector.split_with_sizes(self.sizes), strict=True):
            param.copy_(piece.reshape(param.shape))

    def expand_option(self, name: str) -> Tensor:
        """Return the groups' numeric option for every value (n,), in the parameters' dtype."""
        first = self.params[0]
        values = [group[name] for group, _ in self.groups]
        sizes = [sum(param.numel() for param in params) for _, params in self.groups]
        return torch.tensor(values, dtype=first.dtype, device=first.device).repeat_interleave(
            torch.tensor(sizes, device=first.device)
        )

    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """Return the lower and upper bounds of the groups (`"bounds"`), (n,) float64 each; None if no group has any."""
        if all(group.get("bounds") is None for group, _ in self.groups):
            return None
        sides = [
            expand_bounds(group.get("bounds") or (None, None), param.shape)
            for group, params in self.groups
            for param in params
        ]
        low, high = ([side.reshape(-1) for side in one] for one in zip(*sides, strict=True))
        return torch.cat(low), torch.cat(high)


def expand_bounds(bounds: Any, shape: Sequence[int] | int) -> tuple[Tensor, Tensor]:
    """Return (low, high), each None, a number or a tensor of the given shape, as two float64 tensors of that shape.

    Raises:
        ValueError: If there are not exactly two, a tensor has another shape, or a lower bound exceeds its upper bound.
    """
    shape = torch.Size((shape,)) if isinstance(shape, int) else torch.Size(shape)
    if len(bounds) != 2:
        raise ValueError(f"bounds={bounds!r}: pass (low, high), with None for no bound")
    sides = []
    for bound, none in zip(bounds, (-math.inf, math.inf), strict=True):
        side = torch.as_tensor(none if bound is None else bound, dtype=torch.float64, device="cpu").detach()
        if side.dim() > 0 and side.shape != shape:
            raise ValueError(
                f"a bound has shape {tuple(side.shape)} for values of shape {tuple(shape)}: pass a number, or a tensor "
                "of that shape, with one group per shape"
            )
        sides.append(side.expand(shape))
    low, high = sides
    if not bool((low <= high).all()):
        raise ValueError(f"the bounds are {bounds}: the lower must not exceed the upper")
    return low, high
