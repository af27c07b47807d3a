"""The toy functions: well-known values, scipy's Rosenbrock, and minima that are minima."""

import pytest
import torch
from scipy.optimize import rosen

from framework.data import FUNCTIONS
from framework.data.functions import rastrigin, rosenbrock, square, squared_sum


def test_well_known_values() -> None:
    assert square(torch.tensor([2.0])) == 4
    assert squared_sum(torch.tensor([1.0, 2, 3, 4, 5])) == 225
    assert rosenbrock(torch.tensor([-1.2, 1.0])).item() == pytest.approx(24.2)
    assert rastrigin(torch.tensor([0.5, 0.5], dtype=torch.float64)).item() == pytest.approx(40.5)
    assert rastrigin(torch.tensor([1.0, -2.0], dtype=torch.float64)).item() == pytest.approx(5)


def test_rosenbrock_is_scipys_at_every_point_of_a_grid() -> None:
    points = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(rosenbrock(points), torch.from_numpy(rosen(points.movedim(-1, 0).numpy())))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_minimizer_has_the_value_0_and_no_neighbor_has_less(name: str) -> None:
    function = FUNCTIONS[name]
    minimum = torch.full((len(function.start),), function.minimizer, dtype=torch.float64)
    directions = torch.randn(1000, len(minimum), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert function.value(minimum) == 0
    assert (function.value(minimum + 0.3 * directions) > 0).all()
    assert function.value(torch.tensor(function.start)) > 1
