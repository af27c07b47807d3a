"""The toy data: exactly the seed's cubic, XOR's truth table, a sine within its noise."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from framework.data import cubic, cubic_function, sine, xor


def test_cubic_equals_what_numpys_global_generator_draws_after_seed_42() -> None:
    before = np.random.get_state()
    np.random.seed(42)
    xs = np.random.uniform(-1, 3, 80)[:, None]
    ys = (1.3 * xs**3 - 3 * xs**2 + 3.6 * xs + 6.9) + np.random.normal(size=(len(xs), 1))
    np.random.set_state(before)

    x, y = cubic()
    assert x.shape == y.shape == (80, 1)
    assert torch.equal(x, torch.from_numpy(xs).float())
    assert torch.equal(y, torch.from_numpy(ys).float())


@pytest.mark.parametrize(("num_samples", "noise", "seed"), [(10, 3.0, 7), (200, 0.0, 1)])
def test_cubic_draws_other_samples_as_numpy_does(num_samples: int, noise: float, seed: int) -> None:
    generator = np.random.RandomState(seed)
    xs = generator.uniform(-1, 3, num_samples)
    ys = 1.3 * xs**3 - 3 * xs**2 + 3.6 * xs + 6.9 + noise * generator.normal(size=num_samples)
    x, y = cubic(num_samples=num_samples, noise=noise, seed=seed)
    np.testing.assert_allclose(x.numpy()[:, 0], xs, rtol=1e-6)
    np.testing.assert_allclose(y.numpy()[:, 0], ys, rtol=1e-5)


def test_cubic_leaves_numpys_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()
    cubic()
    assert (np.random.get_state()[1] == before).all()


def test_cubic_function_takes_tensors_and_arrays() -> None:
    x = np.linspace(-1, 3)[:, None]
    np.testing.assert_allclose(cubic_function(torch.from_numpy(x)).numpy(), cubic_function(x))
    assert cubic_function(torch.tensor(0.0)).item() == pytest.approx(6.9)


def test_xor_is_the_truth_table() -> None:
    x, y = xor()
    assert x.dtype == y.dtype == torch.float32
    assert y.shape == (4, 1)
    assert {(*map(int, row), int(target)) for row, target in zip(x, y, strict=True)} == {
        (a, b, a ^ b) for a in (0, 1) for b in (0, 1)
    }


def test_sine_without_noise_is_the_sine_on_one_period() -> None:
    x, y = sine(num_samples=1000, noise=0.0)
    assert x.shape == y.shape == (1000, 1)
    assert x.dtype == y.dtype == torch.float32
    assert torch.equal(y, torch.sin(x))
    assert -math.pi <= x.min() < -3
    assert 3 < x.max() <= math.pi


def test_sine_noise_has_the_requested_standard_deviation_and_follows_the_seed() -> None:
    x, y = sine(num_samples=10_000, noise=0.3, seed=1)
    assert (y - torch.sin(x)).std().item() == pytest.approx(0.3, rel=0.05)
    assert torch.equal(y, sine(num_samples=10_000, noise=0.3, seed=1)[1])
    assert not torch.equal(y, sine(num_samples=10_000, noise=0.3, seed=2)[1])


@pytest.mark.parametrize("draw", [cubic, sine])
@pytest.mark.parametrize("options", [{"num_samples": 0}, {"noise": -0.1}])
def test_impossible_settings_are_refused(draw: Callable[..., object], options: dict) -> None:
    with pytest.raises(ValueError, match="num_samples >= 1 and noise >= 0"):
        draw(**options)
