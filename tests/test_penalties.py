"""Penalties against brute force: each prox against a grid or its equation, each gap against its formula."""

import pytest
import torch
from torch import Tensor

from framework.penalties import L1, MCP, SCAD, ElasticNet, GroupL1, Harder, Penalty, Weighted

NUS = [0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]
SEPARABLE = [
    *(L1(), ElasticNet(0.5), ElasticNet(0.0), SCAD(), SCAD(2.1), MCP(), MCP(0.5)),
    *(Harder(nu) for nu in (0.1, 0.5, 0.9, 1.0)),
]
ALL = [*SEPARABLE, GroupL1("columns"), GroupL1("rows"), GroupL1([[1, 2]]), GroupL1([[2, 1], [0]], sqrt_size=True)]


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)


def objective(penalty: Penalty, x: Tensor, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
    return ((x - u).square() / (2 * step)).sum() + penalty.value(x, lam)


def entrywise_objective(penalty: Penalty, x: Tensor, u: float, step: float, lam: float) -> Tensor:
    return (x - u).square() / (2 * step) + torch.func.vmap(lambda xi: penalty.value(xi, lam))(x)


@pytest.mark.parametrize("penalty", SEPARABLE, ids=repr)
@pytest.mark.parametrize("lam", [1e-4, 0.3, 1.0, 40.0])
@pytest.mark.parametrize("step", [0.1, 2.0])
def test_prox_is_at_least_as_good_as_every_point_of_a_grid(penalty: Penalty, lam: float, step: float) -> None:
    t = step * lam
    for u in torch.linspace(-3, 3, 25, dtype=torch.float64) * max(t, 0.1):
        fractions = torch.cat([torch.linspace(-0.2, 1.2, 1401), torch.logspace(-12, 0, 100)]).double()
        x = penalty.prox(u, step, lam)
        best = entrywise_objective(penalty, fractions * u, u.item(), step, lam).min()
        assert objective(penalty, x, u, step, lam) <= best + 1e-13 * (1 + best.abs())


@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("t", [1e-6, 1e-2, 0.3, 1.0, 20.0, 1e4])
def test_harder_prox_satisfies_its_equation_above_the_jump_and_is_zero_below(nu: float, t: float) -> None:
    penalty = Harder(nu)
    u = t * torch.logspace(-3, 3, 2000, dtype=torch.float64)
    x = penalty.prox(u, t, 1.0)
    kept = x > 0
    assert (~kept).any()
    assert kept.any()
    # One threshold: no kept entry is smaller than one that is dropped.
    assert u[kept].min() > u[~kept].max()

    q = x[kept] ** (1 - nu)
    residual = x[kept] - u[kept] + t * (1 + nu * q) / (1 + q) ** 2
    assert (residual.abs() <= 1e-14 * u[kept]).all()
    # At the threshold, keeping and dropping cost the same.
    u_first, x_first = u[kept][0], x[kept][0]
    assert objective(penalty, x_first, u_first, t, 1.0) <= u_first**2 / (2 * t) * (1 + 1e-12)


@pytest.mark.parametrize("penalty", [SCAD(), SCAD(2.1), SCAD(10.0), MCP(), MCP(0.5), MCP(30.0)], ids=repr)
@pytest.mark.parametrize("step", [0.3, 1.05, 2.9, 5.0, 40.0])
def test_the_prox_is_the_global_minimum_also_for_steps_for_which_its_problem_is_not_convex(penalty, step) -> None:
    lam = 0.8
    u = lam * torch.cat([torch.linspace(0, 12, 300), torch.logspace(1.1, 3, 50)]).double()
    grid = u[:, None] * torch.linspace(-0.1, 1.1, 2401, dtype=torch.float64)
    of_each = torch.func.vmap(lambda w: penalty.value(w, lam))
    cost = (grid - u[:, None]).square() / (2 * step) + of_each(grid.flatten()).view(grid.shape)
    x = penalty.prox(u, step, lam)
    of_x = (x - u).square() / (2 * step) + of_each(x)
    assert (of_x <= cost.amin(1) * (1 + 1e-13) + 1e-13).all()
    assert (x.diff() >= 0).all()
    assert torch.equal(x[-1], u[-1])  # what is large does not shrink
    steps, lams = torch.full_like(u, step), torch.full_like(u, lam)
    assert all(torch.equal(penalty.prox(-u, *weights), -x + 0.0) for weights in ((steps, lam), (step, lams)))


def test_scad_and_mcp_are_the_published_ones() -> None:
    lam, w = 0.5, torch.tensor([0.2, 0.5, 1.0, 1.85, 9.0], dtype=torch.float64, requires_grad=True)
    # Fan & Li 2001, eq. 2.7, and its integral; Zhang 2010, eq. 2.1 and 2.2; both at lam = 0.5, a = 3.7, gamma = 3.
    scad_slope, mcp_slope = [0.5, 0.5, 0.85 / 2.7, 0.0, 0.0], [0.5 - 0.2 / 3, 1 / 3, 0.5 - 1 / 3, 0.0, 0.0]
    scad = [0.1, 0.25, (2 * 3.7 * 0.5 * 1.0 - 1.0 - 0.25) / 5.4, 0.25 * 4.7 / 2, 0.25 * 4.7 / 2]
    mcp = [0.1 - 0.04 / 6, 0.25 - 0.25 / 6, 0.5 - 1 / 6, 0.375, 0.375]
    for penalty, values, slopes in ((SCAD(), scad, scad_slope), (MCP(), mcp, mcp_slope)):
        assert [penalty.value(entry, lam).item() for entry in w] == pytest.approx(values)
        (gradient,) = torch.autograd.grad(penalty.value(w, lam), w)
        assert gradient.tolist() == pytest.approx(slopes, abs=1e-15)
        assert penalty.subgradient_gap(w.detach(), -gradient, lam) < 1e-15
    u = torch.tensor([0.4, 0.8, 1.2, 3.0], dtype=torch.float64)
    # Their thresholds for a step of 1: Fan & Li, eq. 2.8; the firm one, (|u| - lam) / (1 - 1 / gamma).
    assert SCAD().prox(u, 1.0, lam).tolist() == pytest.approx([0, 0.3, (2.7 * 1.2 - 3.7 * 0.5) / 1.7, 3.0])
    assert MCP().prox(u, 1.0, lam).tolist() == pytest.approx([0, 0.45, 1.05, 3.0])


def test_harder_with_nu_one_is_half_the_lasso() -> None:
    u = randn(50)
    assert torch.equal(Harder(1.0).prox(u, 0.4, 0.6), L1().prox(u, 0.4, 0.3))
    torch.testing.assert_close(Harder(1.0).value(u, 0.6), L1().value(u, 0.3))
    assert Harder(0.9999).prox(u, 0.4, 0.6) == pytest.approx(L1().prox(u, 0.4, 0.3), abs=1e-3)


@pytest.mark.parametrize("nu", NUS)
def test_harder_prox_in_float32_agrees_with_float64(nu: float) -> None:
    u = randn(4000, scale=3.0)
    for t in (1e-5, 0.1, 1.0, 5.0):
        x64, x32 = Harder(nu).prox(u, t, 1.0), Harder(nu).prox(u.float(), t, 1.0)
        assert x32.dtype == torch.float32
        # The jump may fall between the two representations of u; such entries are few.
        same = (x64 == 0) == (x32 == 0)
        assert same.float().mean() > 0.999
        torch.testing.assert_close(x32[same].double(), x64[same], rtol=1e-5, atol=1e-5 * t)


@pytest.mark.parametrize("penalty", SEPARABLE, ids=repr)
def test_elementwise_step_and_lam_act_on_each_entry_alone(penalty: Penalty) -> None:
    u, step, lam = randn(7, 5), randn(7, 5).exp(), randn(7, 5).exp()
    x = penalty.prox(u, step, lam)
    one_by_one = [
        penalty.prox(ui, si.item(), li.item())
        for ui, si, li in zip(u.flatten(), step.flatten(), lam.flatten(), strict=True)
    ]
    torch.testing.assert_close(x, torch.stack(one_by_one).view(7, 5), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        penalty.value(u, lam),
        sum(penalty.value(ui, li) for ui, li in zip(u.flatten(), lam.flatten(), strict=True)),
    )


@pytest.mark.parametrize("penalty", ALL, ids=repr)
def test_a_step_for_each_row_acts_on_all_of_the_row(penalty: Penalty) -> None:
    u, step = randn(7, 5), randn(7, 1).exp()
    torch.testing.assert_close(penalty.prox(u, step, 0.7), penalty.prox(u, step.expand(7, 5), 0.7), rtol=1e-13, atol=0)


@pytest.mark.parametrize("penalty", ALL, ids=repr)
@pytest.mark.parametrize("step", [0.7, "tensor"])
def test_entries_outside_the_mask_are_left_as_they_are(penalty: Penalty, step: float | str) -> None:
    u = randn(6, 4)
    mask = torch.rand(6, 4) < 0.5
    steps = randn(6, 4).exp() if step == "tensor" else float(step)
    x = penalty.prox(u, steps, 0.8 * mask)
    assert torch.equal(x[~mask], u[~mask])
    assert not torch.equal(x[mask], u[mask])
    assert torch.equal(penalty.prox(u, steps, 0.0), u)


@pytest.mark.parametrize("penalty", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["scalar", "tensor"])
def test_zeros_are_exact_and_positive(penalty: Penalty, dtype: torch.dtype, kind: str) -> None:
    u = randn(30, 20).to(dtype)
    u[0], u[1], u[:, 0] = 0.0, -0.0, -1e-3
    step = 0.5 if kind == "scalar" else torch.full_like(u, 0.5)
    x = penalty.prox(u, step, 3.0)
    assert x.dtype == dtype
    if penalty != ElasticNet(0.0):
        assert (x[:, 0] == 0).any()
    assert not torch.signbit(x[x == 0]).any()
    assert (x * u >= 0).all()


@pytest.mark.parametrize("penalty", ALL, ids=repr)
@pytest.mark.parametrize("kind", ["scalar", "tensor"])
def test_nan_stays_nan(penalty: Penalty, kind: str) -> None:
    u = randn(5, 4)
    u[2, 1] = float("nan")
    step = 10.0 if kind == "scalar" else torch.full_like(u, 10.0)
    assert penalty.prox(u, step, 10.0)[2, 1].isnan()
    assert penalty.prox(torch.ones(5, 4), step if kind == "scalar" else step.float(), float("nan")).isnan().all()
    assert penalty.value(u, 10.0).isnan()
    assert penalty.subgradient_gap(u, torch.zeros_like(u), 1.0).isnan()
    assert penalty.subgradient_gap(torch.zeros_like(u), u, 1.0).isnan()


@pytest.mark.parametrize("penalty", ALL, ids=repr)
def test_zero_dimensional_tensors_act_as_numbers(penalty: Penalty) -> None:
    u, step, lam = randn(6, 4).float(), torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    x = penalty.prox(u, step, lam)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, penalty.prox(u, 0.3, 0.9))
    torch.testing.assert_close(penalty.value(u, lam).float(), penalty.value(u, 0.9))
    torch.testing.assert_close(penalty.subgradient_gap(u, u, lam).float(), penalty.subgradient_gap(u, u, 0.9))


@pytest.mark.parametrize("penalty", ALL, ids=repr)
@pytest.mark.parametrize("lam", [0.7, "mask"])
def test_the_prox_has_no_subgradient_gap(penalty: Penalty, lam: float | str) -> None:
    """x = prox(u) means -(x - u) / step is a subgradient at x."""
    u, step = randn(9, 6), 0.8
    weight = 0.7 * (torch.rand(9, 6) < 0.6).double() if lam == "mask" else float(lam)
    x = penalty.prox(u, step, weight)
    assert penalty.subgradient_gap(x, (x - u) / step, weight) < 1e-13
    assert penalty.subgradient_gap(x, (x - u) / step + 0.01, weight) > 1e-3


@pytest.mark.parametrize("penalty", SEPARABLE, ids=repr)
def test_the_gap_is_the_largest_entry_of_the_smallest_subgradient(penalty: Penalty) -> None:
    lam, grad = 0.5, randn(40)
    param = torch.where(torch.rand(40) < 0.5, 0.0, randn(40)).requires_grad_()
    (smooth,) = torch.autograd.grad(penalty.value(param, lam), param)
    slope = {Harder(1.0): 0.5 * lam, ElasticNet(0.5): 0.5 * lam, ElasticNet(0.0): 0.0}.get(penalty, lam)
    subgradients = torch.linspace(-slope, slope, 2001, dtype=torch.float64)[:, None]
    at_zero = (grad + subgradients).abs().amin(0)
    expected = torch.where(param == 0, at_zero, (grad + smooth).abs()).max()
    torch.testing.assert_close(penalty.subgradient_gap(param.detach(), grad, lam), expected.detach(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("penalty", ALL, ids=repr)
def test_value_has_the_right_gradient_and_finite_derivatives_at_zero(penalty: Penalty) -> None:
    assert torch.autograd.gradcheck(lambda w: penalty.value(w, 0.7), randn(5, 3).requires_grad_())
    for tiny in (0.0, 1e-45, 1e-38, 1e-30):
        w = torch.full((5, 3), tiny, requires_grad=True)
        (gradient,) = torch.autograd.grad(penalty.value(w, 0.7), w, create_graph=True)
        assert gradient.isfinite().all()
        (hessian_product,) = torch.autograd.grad(gradient.sum(), w)
        assert hessian_product.isfinite().all()
        if tiny == 0:
            assert (gradient == 0).all()


def test_elastic_net_is_scikit_learns() -> None:
    from sklearn.linear_model import ElasticNet as Reference

    X, y, lam, ratio = randn(30, 8), randn(30), 0.4, 0.5
    reference = Reference(alpha=lam, l1_ratio=ratio, fit_intercept=False, tol=1e-12, max_iter=100_000)
    w = torch.from_numpy(reference.fit(X.numpy(), y.numpy()).coef_)
    assert (w == 0).any()
    assert ElasticNet(ratio).subgradient_gap(w, X.T @ (X @ w - y) / 30, lam) < 1e-8


def test_group_value_sums_the_norms_of_columns_or_rows() -> None:
    W = torch.tensor([[3.0, 0.0], [4.0, 1.0]])
    assert GroupL1("columns").value(W, 2.0).item() == 2 * (5 + 1)
    assert GroupL1("rows").value(W, 2.0).item() == pytest.approx(2 * (3 + 17**0.5))
    kernel = randn(4, 3, 2, 2)
    expected = sum(kernel[:, j].norm() for j in range(3))
    torch.testing.assert_close(GroupL1("columns").value(kernel, 1.0), expected)


def test_group_prox_shrinks_norms_and_drops_whole_groups() -> None:
    W, t = randn(6, 30), 2.2
    x = GroupL1("columns").prox(W, 1.0, t)
    torch.testing.assert_close(x.norm(dim=0), (W.norm(dim=0) - t).clamp_min(0))
    dropped = (x == 0).all(0)
    assert 0 < dropped.sum() < 30
    assert ((x != 0).all(0) | dropped).all()
    torch.testing.assert_close(GroupL1("rows").prox(W.T, 1.0, t), x.T)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 6.0])
def test_group_prox_in_a_diagonal_metric_satisfies_its_optimality_condition(spread: float) -> None:
    lam, step = 0.9, 10 ** randn(8, 400, scale=spread)
    u = randn(8, 400) * step.amin(0) * torch.logspace(-1, 3, 400, dtype=torch.float64)
    x = GroupL1("columns").prox(u, step, lam)
    zero = (x == 0).all(0)
    assert torch.equal(zero, (u / step).norm(dim=0) <= lam)
    kept = ~zero
    assert kept.any()
    assert zero.any()
    residual = (x - u) / step + lam * x / x.norm(dim=0)
    assert (residual.abs() <= 1e-14 * ((u / step).abs() + lam))[:, kept].all()


def test_group_prox_in_a_constant_metric_is_the_closed_form() -> None:
    u = randn(5, 50)
    for penalty in (GroupL1("columns"), GroupL1("rows")):
        torch.testing.assert_close(penalty.prox(u, torch.full_like(u, 0.3), 4.0), penalty.prox(u, 0.3, 4.0))


def test_group_prox_in_a_metric_works_in_float32() -> None:
    u, step = randn(8, 400), 10 ** randn(8, 400)
    x64, x32 = (GroupL1().prox(u.to(dtype), step.to(dtype), 0.9) for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(x32.double(), x64, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("sqrt_size", [False, True])
def test_listed_groups_are_those_of_the_matrices_that_they_form(sqrt_size: bool) -> None:
    """The inputs (4, 1) and (0, 5, 2), and 3 alone, against groups by columns of what each flattens to."""
    W, step, mask = randn(3, 6), randn(3, 6).exp(), (torch.rand(3, 6) < 0.7).double()
    listed, lam = GroupL1([[4, 1], [0, 5, 2]], sqrt_size), 0.9
    for steps, weight in ((0.7, lam), (step, lam), (0.7, lam * mask), (step, lam * mask)):
        x, value, gap = listed.prox(W, steps, weight), 0.0, 0.0
        for group in ([4, 1], [0, 5, 2], [3]):
            factor = len(group) ** 0.5 if sqrt_size else 1.0
            part = [v[:, group].reshape(-1, 1) if isinstance(v, Tensor) else v for v in (W, steps, weight, x)]
            expected = GroupL1("columns").prox(part[0], part[1], factor * part[2])
            torch.testing.assert_close(part[3], expected, rtol=1e-12, atol=1e-14)
            value += GroupL1("columns").value(part[0], factor * part[2])
            moved = (expected - part[0]) / part[1] + 0.1
            gap = max(gap, GroupL1("columns").subgradient_gap(expected, moved, factor * part[2]).item())
        torch.testing.assert_close(listed.value(W, weight), value)
        assert listed.subgradient_gap(x, (x - W) / steps + 0.1, weight).item() == pytest.approx(gap)


def test_listed_groups_of_a_vector_and_of_a_convolution() -> None:
    w, kernel = randn(5), randn(4, 3, 2, 2)
    groups = GroupL1([(0, 3)])
    expected = w[[0, 3]].norm() + w[[1, 2, 4]].abs().sum()
    torch.testing.assert_close(groups.value(w, 1.0), expected)
    x = groups.prox(w, 1.0, 0.5)
    torch.testing.assert_close(x[[0, 3]].norm(), (w[[0, 3]].norm() - 0.5).clamp_min(0))
    torch.testing.assert_close(x[[1, 2, 4]], L1().prox(w[[1, 2, 4]], 1.0, 0.5))
    torch.testing.assert_close(
        GroupL1([[0, 2]]).value(kernel, 2.0), 2 * (kernel[:, [0, 2]].norm() + kernel[:, 1].norm())
    )
    torch.testing.assert_close(GroupL1([[0], [1], [2]]).prox(kernel, 1.0, 2.0), GroupL1().prox(kernel, 1.0, 2.0))


@pytest.mark.parametrize("groups", ["columns", [[0, 1]], [[0], [1], [2]]])
def test_group_prox_of_very_large_and_very_small_entries(groups) -> None:
    W = torch.full((4, 3), 1e30, dtype=torch.float64)
    assert torch.equal(GroupL1(groups).prox(W, 1.0, 1.0), W)
    assert (GroupL1(groups).prox(1 / W, 1.0, 1.0) == 0).all()
    x = GroupL1(groups).prox(1 / W, 1.0, 1e-30)
    assert ((x > 0) & (x < 1e-30)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_weighted_group_prox_of_very_large_and_very_small_entries(scale) -> None:
    W = scale * torch.tensor([[3.0, 1.0, 2.0], [1.0, 0.0, -2.0]])
    penalty = Weighted(GroupL1(), [1.0, 2.0, 0.0])
    x = penalty.prox(W, scale, 1.0)
    torch.testing.assert_close((x / scale).double(), penalty.prox(W.double() / scale, 1.0, 1.0))


def test_groups_compare_by_value_however_they_were_given() -> None:
    assert GroupL1([[0, 1], [4]]) == GroupL1(((0, 1), (4,)))
    assert hash(Weighted(GroupL1([[0, 1]]), [1, 2])) == hash(Weighted(GroupL1(((0, 1),)), (1.0, 2.0)))
    assert repr(GroupL1([[0, 1]])) == "GroupL1(groups=((0, 1),), sqrt_size=False)"


@pytest.mark.parametrize("penalty", ALL, ids=repr)
def test_weights_per_feature_are_the_penalty_with_an_elementwise_weight(penalty: Penalty) -> None:
    W, grad, weights = randn(4, 3), randn(4, 3), [2.0, 0.0, 0.5]
    weighted, lam = Weighted(penalty, weights), 0.7 * torch.tensor(weights).double().expand(4, 3)
    assert torch.equal(weighted.value(W, 0.7), penalty.value(W, lam))
    assert torch.equal(weighted.prox(W, 0.3, 0.7), penalty.prox(W, 0.3, lam))
    assert torch.equal(weighted.subgradient_gap(W, grad, 0.7), penalty.subgradient_gap(W, grad, lam))
    mask = (torch.rand(4, 3) < 0.5).double()
    torch.testing.assert_close(weighted.prox(W, 0.3, 0.7 * mask), penalty.prox(W, 0.3, lam * mask), rtol=1e-13, atol=0)
    if penalty == L1():
        assert torch.equal(weighted.prox(W, 0.3, 0.7)[:, 1], W[:, 1])
        torch.testing.assert_close(Weighted(penalty, weights).prox(W[0], 1.0, 0.7), penalty.prox(W[0], 1.0, lam[0]))


def test_group_gap_is_the_distance_to_a_ball_at_a_zero_group() -> None:
    grad = torch.tensor([[3.0, 0.3], [4.0, 0.4]])
    assert GroupL1().subgradient_gap(torch.zeros(2, 2), grad, 1.5).item() == pytest.approx(3.5)
    assert GroupL1().subgradient_gap(torch.zeros(2, 2), grad, 5.0).item() == 0.0


def test_vectors_are_their_own_groups() -> None:
    u = randn(10)
    for penalty in (GroupL1("columns"), GroupL1("rows")):
        assert torch.equal(penalty.prox(u, 0.3, 0.8), L1().prox(u, 0.3, 0.8))
        assert torch.equal(penalty.value(u, 0.8), L1().value(u, 0.8))
        assert torch.equal(penalty.subgradient_gap(u, u, 0.8), L1().subgradient_gap(u, u, 0.8))


@pytest.mark.parametrize("penalty", SEPARABLE, ids=repr)
def test_empty_tensors_have_no_gap(penalty: Penalty) -> None:
    empty = torch.zeros(0)
    assert penalty.subgradient_gap(empty, empty, 1.0).item() == 0
    assert penalty.prox(empty, 1.0, 1.0).shape == (0,)


def test_settings_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"l1_ratio=1.5 is outside \[0, 1\]"):
        ElasticNet(1.5)
    with pytest.raises(ValueError, match="nu=0 is outside"):
        Harder(0)
    with pytest.raises(ValueError, match="groups='cols' is unknown"):
        GroupL1("cols")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"groups=\[\[0, 1\], \[1\]\] is unknown; pass .* none of them twice"):
        GroupL1([[0, 1], [1]])
    for groups in ([], [[]], [0, 1], [[-1]], 3):
        with pytest.raises(ValueError, match="is unknown; pass"):
            GroupL1(groups)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sqrt_size=True with groups='rows'"):
        GroupL1("rows", sqrt_size=True)
    with pytest.raises(ValueError, match=r"groups=\(\(0, 7\),\) names inputs beyond the 3 of a penalized parameter"):
        GroupL1([[0, 7]]).value(torch.ones(2, 3), 1.0)
    with pytest.raises(ValueError, match=r"a=2\.0; it must be finite and above 2"):
        SCAD(2.0)
    with pytest.raises(ValueError, match="gamma=0; it must be finite and above 0"):
        MCP(0)
    for weights in ([], [0.0, 0.0], [1.0, -1.0], [float("inf")]):
        with pytest.raises(ValueError, match="pass one finite number >= 0 for each feature"):
            Weighted(L1(), weights)
    with pytest.raises(ValueError, match=r"Weighted has 2 weights, but a penalized parameter has shape \(2, 3\)"):
        Weighted(L1(), [1.0, 2.0]).prox(torch.ones(2, 3), 1.0, 1.0)
