"""RandomSearch and ExhaustiveSearch against loops written out with numbers."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from framework.optim import ExhaustiveSearch, RandomSearch


def value_of(x: Tensor):
    """A closure for the sum of squares of x."""
    return lambda: (x**2).sum()


class StackedClosure:
    """Mean squared error of a module, with values for stacked candidates."""

    def __init__(self, model: torch.nn.Module, data: Tensor, target: Tensor) -> None:
        self.model, self.data, self.target = model, data, target
        self.num_calls = self.num_stacks = 0

    def __call__(self) -> Tensor:
        self.num_calls += 1
        return ((self.model(self.data) - self.target) ** 2).mean()

    @torch.no_grad()
    def values(self, candidates: list[Tensor]) -> Tensor:
        self.num_stacks += 1
        names = [name for name, _ in self.model.named_parameters()]

        def loss(params: dict[str, Tensor]) -> Tensor:
            return ((functional_call(self.model, params, (self.data,)) - self.target) ** 2).mean()

        return vmap(loss)(dict(zip(names, candidates, strict=True)))


def regression() -> tuple[torch.nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    model = torch.nn.Linear(3, 1).double()
    data = torch.randn(20, 3, dtype=torch.float64)
    return model, data, data @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)


def test_exhaustive_search_over_one_number_is_the_textbook_loop():
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    optimizer = ExhaustiveSearch([x], step=0.01)
    expected = 2.0
    for _ in range(300):
        loss = optimizer.step(value_of(x))
        expected = min((expected, expected - 0.01, expected + 0.01), key=lambda number: number**2)
        assert x.item() == expected
        assert loss == x**2
    assert abs(x.item()) < 0.01


def test_random_search_over_one_number_is_the_textbook_loop():
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    optimizer = RandomSearch([x], scale=0.01, seed=3)
    generator = torch.Generator().manual_seed(3)
    expected = 2.0
    for _ in range(1000):
        optimizer.step(value_of(x))
        sample = expected + 0.01 * torch.randn(1, 1, dtype=torch.float64, generator=generator).item()
        expected = sample if sample**2 < expected**2 else expected
        assert x.item() == expected
    assert abs(x.item()) < 0.01


def test_exhaustive_search_moves_every_coordinate_of_the_five_number_function():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64, requires_grad=True)
    optimizer = ExhaustiveSearch([x], step=0.01)
    for _ in range(300):
        loss = optimizer.step(lambda: x.sum() ** 2)
    assert loss < 1e-4


@pytest.mark.parametrize("search", [RandomSearch, ExhaustiveSearch])
def test_stacked_candidates_give_the_same_path_as_one_at_a_time(search):
    options = {"candidates": 8, "seed": 0} if search is RandomSearch else {"chunk_size": 3}
    losses = []
    for stacked in (False, True):
        model, data, target = regression()
        optimizer = search(model.parameters(), 0.05, **options)
        closure = StackedClosure(model, data, target)
        losses.append([optimizer.step(closure if stacked else closure.__call__).item() for _ in range(40)])
        if stacked:
            assert closure.num_calls == 40  # the current point only
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("search", [RandomSearch, ExhaustiveSearch])
def test_a_value_alone_is_preferred_to_gradients(search):
    x = torch.tensor([1.0, -1.0], requires_grad=True)

    class Closure:
        def __call__(self) -> Tensor:
            raise AssertionError("called with gradients")

        def value(self) -> Tensor:
            return (x.detach() ** 2).sum()

    assert search([x], 0.1, **({"candidates": 8} if search is RandomSearch else {})).step(Closure()) < 2.0


@pytest.mark.parametrize("search", [RandomSearch, ExhaustiveSearch])
def test_a_tie_keeps_the_point(search):
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    search([x], 0.1).step(lambda: torch.tensor(3.0))
    assert x.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("search", [RandomSearch, ExhaustiveSearch])
def test_no_value_that_is_not_finite_is_accepted(search):
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    optimizer = search([x], 0.1)
    for bad in (math.nan, -math.inf):
        loss = optimizer.step(lambda bad=bad: torch.tensor(2.0 if x.tolist() == [1.0, -1.0] else bad))
        assert loss == 2.0
        assert x.tolist() == [1.0, -1.0]
        with pytest.raises(ValueError, match="not finite at any candidate"):
            optimizer.step(lambda bad=bad: torch.tensor(bad))
        assert x.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("search", [RandomSearch, ExhaustiveSearch])
def test_a_search_leaves_a_point_that_is_not_finite(search):
    x = torch.tensor([0.0], requires_grad=True)
    assert search([x], 0.1).step(lambda: torch.where(x == 0, math.nan, x**2).sum()).isfinite()
    assert x.item() != 0.0


@pytest.mark.parametrize("search", [RandomSearch, ExhaustiveSearch])
def test_an_exception_leaves_the_parameters_as_they_were_before_the_step(search):
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    calls = []

    def closure() -> Tensor:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (x**2).sum()

    with pytest.raises(KeyboardInterrupt):
        search([x], 0.1).step(closure)
    assert x.tolist() == [1.0, -1.0]


def test_frozen_parameters_stay_and_groups_have_their_own_scale():
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    slow, fast = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [frozen, slow], "step": 0.001}, {"params": [fast]}]
    ExhaustiveSearch(groups, step=0.1).step(lambda: (slow**2).sum() + (fast**2).sum() + (frozen**2).sum())
    assert frozen.tolist() == [1.0, 1.0]
    torch.testing.assert_close(slow.detach(), torch.full((3,), 0.999))
    torch.testing.assert_close(fast.detach(), torch.full((3,), 0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_random_search_continues_with_the_same_draws(dtype, tmp_path):
    def steps(optimizer: RandomSearch, x: Tensor, count: int) -> None:
        for _ in range(count):
            optimizer.step(value_of(x))

    whole = torch.tensor([1.0, -1.0], dtype=dtype, requires_grad=True)
    optimizer = RandomSearch([whole], scale=0.1, seed=0)
    steps(optimizer, whole, 10)
    torch.save({"x": whole.detach(), "optimizer": optimizer.state_dict()}, tmp_path / "search.pt")
    steps(optimizer, whole, 10)

    saved = torch.load(tmp_path / "search.pt", weights_only=True)
    resumed = saved["x"].requires_grad_()
    optimizer = RandomSearch([resumed], scale=0.5, seed=99)
    optimizer.load_state_dict(saved["optimizer"])
    steps(optimizer, resumed, 10)
    assert torch.equal(resumed, whole)


def test_draws_follow_the_seed_of_torch():
    moves = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        x = torch.zeros(4, requires_grad=True)
        RandomSearch([x], scale=0.1).step(lambda x=x: -x.abs().sum())
        moves.append(x.detach())
    assert torch.equal(moves[0], moves[1])
    assert not torch.equal(moves[0], moves[2])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x: RandomSearch([x], scale=0.0), "scale=0.0 must be positive"),
        (lambda x: RandomSearch([x], candidates=0), "candidates=0 must be positive"),
        (lambda x: RandomSearch([{"params": [x], "scale": -1.0}]), "scale=-1.0 must be positive"),
        (lambda x: ExhaustiveSearch([x], step=math.nan), "step=nan must be positive"),
        (lambda x: ExhaustiveSearch([x.detach()]), "no parameter requires a gradient"),
    ],
)
def test_bad_arguments_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build(torch.ones(2, requires_grad=True))


@pytest.mark.parametrize("search", [RandomSearch, ExhaustiveSearch])
def test_a_closure_that_only_returns_a_value_is_enough(search):
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    assert search([x], 0.1).step(lambda: (x.detach() ** 2).sum().item()) <= 2.0
    assert x.grad is None


def test_a_missing_closure_is_refused():
    with pytest.raises(TypeError, match="pass a closure"):
        RandomSearch([torch.ones(1, requires_grad=True)]).step(None)
