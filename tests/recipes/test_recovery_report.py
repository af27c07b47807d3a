"""What is reported of a recovery experiment: counts against hand-made ones, intervals, pairs, the lowest of fits."""

import pytest
import torch
from matplotlib.collections import LineCollection

from framework.recipes.figures import phase_transition
from framework.recipes.recovery_report import Fits, count_recovery, draw, keep_lowest, pair, read_published

# Of the published tables: HarderLASSO, arXiv 2411.17180.
TABLES = {
    "linear": {
        "l1": {0: 0.955, 1: 0.945, 2: 0.930, 3: 0.900, 4: 0.630, 5: 0.185, 6: 0.025, 8: 0, 12: 0, 16: 0, 20: 0},
        "harder": {0: 0.950, 1: 0.955, 2: 0.950, 5: 0.920, 8: 0.910, 12: 0.840, 20: 0.145},
    },
    "network": {
        "l1": {0: 1, 2: 1, 4: 0.885, 6: 0.005, 8: 0, 10: 0},
        "harder": {0: 0.99, 2: 1, 4: 1, 6: 1, 8: 1, 10: 0.935, 12: 0.655, 14: 0.21, 16: 0.02},
    },
}
TRUE = torch.tensor([[True, True, False, False]] * 4)
FOUND = torch.tensor([[True, True, False, False], [True, False, False, False], [True, True, True, False], [False] * 4])


def make_fits(found: torch.Tensor, *objectives: float, gap: float = 1e-7) -> Fits:
    return Fits(found, torch.tensor(objectives).double(), torch.full((len(found),), gap), evaluations=10)


@pytest.mark.parametrize(("problem", "sparsities"), [("linear", range(26)), ("network", range(0, 21, 2))])
def test_the_published_fits_are_those_of_the_published_table(problem, sparsities):
    published = read_published(problem)
    assert set(published) == {(name, s) for name in ("l1", "harder") for s in sparsities}
    assert all(exact.shape == (200,) for exact in published.values())
    for name, shares in TABLES[problem].items():
        for s, share in shares.items():
            assert published[name, s].double().mean() == pytest.approx(share, abs=1e-12)


def test_a_pair_counts_wins_and_losses_and_tests_their_difference():
    exact = torch.tensor([True] * 8 + [False] * 4)
    published = torch.tensor([True] * 3 + [False] * 5 + [True] + [False] * 3)
    paired = pair(exact, published)
    assert (paired["published"], paired["both"], paired["wins"], paired["losses"]) == (4 / 12, 3, 5, 1)
    # Six differ and one of them is a loss: twice (6 choose 0 + 6 choose 1) / 2^6.
    assert paired["p_value"] == pytest.approx(2 * 7 / 64)
    assert pair(exact, exact)["p_value"] == 1


def test_supports_are_counted_and_compared_with_published_fits_and_those_that_start_at_the_truth():
    fits, oracle = make_fits(FOUND, 1.0, 2.0, 3.0, 4.0), make_fits(TRUE, 1.0 + 1e-9, 1.5, 3.5, 3.5)
    published = torch.tensor([False, True, False, False])
    row = count_recovery("harder", fits, TRUE, published=published, oracle=oracle)
    assert (row.s, row.replicates, row.exact, row.pesr) == (2, 4, 1, 0.25)
    assert row.tpr == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert row.fdr == pytest.approx((0 + 0 + 1 / 3 + 0) / 4)
    assert (row.objective, row.evaluations) == (2.5, 10)
    assert (row.published, row.both, row.wins, row.losses, row.p_value) == (0.25, 0, 1, 1, 1)
    assert (row.ceiling, row.below, row.above) == (1, 1, 2)  # the first is the same minimum
    # Wilson 1927: the roots of (p - q)^2 = 1.96^2 q (1 - q) / n.
    for q in (row.low, row.high):
        assert (row.pesr - q) ** 2 == pytest.approx(1.959964**2 * q * (1 - q) / 4, rel=1e-6)
    assert (row.published_low, row.published_high) == (row.low, row.high)
    assert str(row) == "harder 0.250 (published 0.250; only here 1, only there 1, p=1; ceiling 1.000)"


def test_without_anything_to_compare_with_the_row_says_nothing_of_it():
    none = torch.zeros(4, 4, dtype=torch.bool)
    row = count_recovery("l1", make_fits(none, 1.0, 1.0, 1.0, 1.0), none)
    assert (row.s, row.pesr, row.tpr, row.fdr, row.high) == (0, 1, None, 0, 1)
    assert {row.published, row.published_low, row.both, row.p_value, row.ceiling, row.below, row.above} == {None}
    assert str(row) == "l1 1.000"


def test_of_several_fits_the_lowest_is_kept_replicate_by_replicate():
    first = make_fits(FOUND, 1.0, 2.0, 3.0, 4.0, gap=1.0)
    second = make_fits(TRUE, 2.0, 1.0, 3.0 - 1e-9, 3.0, gap=2.0)
    kept = keep_lowest([first, second])
    assert kept.found.tolist() == [FOUND[0].tolist(), TRUE[1].tolist(), FOUND[2].tolist(), TRUE[3].tolist()]
    assert kept.objectives.tolist() == [1, 1, 3, 3]
    assert kept.gaps.tolist() == [1, 2, 1, 2]
    assert kept.evaluations == 20
    assert keep_lowest([first]) is first


def test_the_picture_shows_curves_with_intervals_published_points_and_what_the_truth_allows():
    fits, oracle = make_fits(FOUND, 1.0, 2.0, 3.0, 4.0), make_fits(TRUE, 1.0, 1.0, 1.0, 1.0)
    published = torch.tensor([True, True, False, False])
    rows = [count_recovery("harder", fits, TRUE, published=published, oracle=oracle), count_recovery("l1", fits, TRUE)]
    (axis,) = draw(rows).axes
    lines = {tuple(line.get_ydata()) for line in axis.lines if len(line.get_xdata())}
    assert lines >= {(0.25,), (0.5,), (1.0,)}  # found, published, from the truth
    bands, bars = axis.collections[0], next(c for c in axis.collections if isinstance(c, LineCollection))
    for drawn, interval in (
        (bands.get_paths()[0].vertices[:, 1], (rows[0].low, rows[0].high)),
        (bars.get_segments()[0][:, 1], (rows[0].published_low, rows[0].published_high)),
    ):
        assert (drawn.min(), drawn.max()) == pytest.approx(interval)
    labels = {line.get_label() for line in axis.lines if not line.get_label().startswith("_")}
    assert labels == {"harder", "l1", "published", "from the truth"}
    (axis,) = phase_transition({"l1": [(2, 0.5, 0.4, 0.6)]}, {}, {}, 10).axes
    assert [line.get_label() for line in axis.lines] == ["l1"]
