"""A closure as a function of a vector: values, gradients and products at any point, and where the parameters end."""

import pytest
import torch
from torch import Tensor

from framework.objective.vector import ParameterVector
from framework.optim.function import ClosureFunction


class Cubic:
    """sum x^3 over two parameters; records what it was asked for."""

    def __init__(self) -> None:
        self.params = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        self.asked: list[str] = []

    def loss(self) -> Tensor:
        return sum((p**3).sum() for p in self.params)

    def __call__(self) -> Tensor:
        self.asked.append("call")
        for param in self.params:
            param.grad = None
        loss = self.loss()
        loss.backward()
        return loss

    def function(self, closure=None, **options) -> ClosureFunction:
        return ClosureFunction(closure or self, ParameterVector([{"params": self.params}]), **options)


class Offering(Cubic):
    """A closure that also offers the value alone, several values, and products."""

    def value(self) -> Tensor:
        self.asked.append("value")
        return self.loss().detach()

    def values(self, points: list[Tensor]) -> Tensor:
        self.asked.append("values")
        return sum((stack**3).sum(1) for stack in points)

    def hvp(self):
        self.asked.append("hvp")
        diagonal = 6 * torch.cat([p.detach() for p in self.params])
        return lambda vector: diagonal * vector


@pytest.mark.parametrize(("closure", "asked"), [(Cubic, {"call"}), (Offering, {"call", "value", "values", "hvp"})])
def test_the_function_is_that_of_the_closure_whatever_it_offers(closure, asked):
    cubic = closure()
    x = torch.tensor([1.0, 2.0, 3.0, -1.0], dtype=torch.float64)
    with cubic.function(keep_graph=True) as function:
        assert function.value(x) == 35.0
        value, gradient = function.gradient(x)
        assert (value, gradient.tolist()) == (35.0, (3 * x**2).tolist())
        assert function.hessian_product(x)(torch.ones(4, dtype=torch.float64)).tolist() == (6 * x).tolist()
        assert function.values(torch.stack([x, 2 * x])).tolist() == [35.0, 280.0]
        assert function.num_evaluations == 4
    assert set(cubic.asked) == asked


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_parameters_end_at_the_accepted_point(error):
    cubic = Cubic()
    x = torch.full((4,), 2.0, dtype=torch.float64)
    for accepted in (False, True):
        try:
            with cubic.function() as function:
                function.value(x)
                if accepted:
                    function.accept(x)
                function.values(torch.stack([3 * x, 4 * x]))
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            pass
        assert torch.cat(cubic.params).tolist() == [2.0 if accepted else 1.0] * 4


def test_a_closure_without_gradients_is_asked_for_values_and_refused_for_more():
    cubic = Cubic()
    function = cubic.function(lambda: cubic.loss().item())
    assert function.value(torch.zeros(4, dtype=torch.float64)) == 0.0
    with pytest.raises(ValueError, match=r"left no gradient on any parameter: it must call `loss.backward\(\)`"):
        function.gradient(function.x)
