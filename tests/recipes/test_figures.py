"""What the pictures of runs show."""

import pytest
import torch
from matplotlib.figure import Figure

from framework.recipes.figures import NORM, caption, importances, loss_curves, penalty_path, sparsity_curves

STEPS = ([0.0, 50.0], [9.0, 4.0])
OBJECTIVE = ([0.0, 50.0], [10.0, 5.0])
EPOCHS = ([8.0, 16.0, 24.0], [7.0, 6.0, 5.0])
VALIDATION = ([16.0, 24.0], [8.0, 7.5])


@pytest.mark.parametrize(
    ("history", "drawn"),
    [
        (
            {"train/loss": STEPS, "train/loss_epoch": EPOCHS, "train/objective": STEPS, "val/loss": VALIDATION},
            {"train/loss_epoch": EPOCHS, "val/loss": VALIDATION},
        ),
        (
            {"train/loss": STEPS, "train/loss_epoch": EPOCHS, "train/objective": OBJECTIVE, "val/loss": VALIDATION},
            {"train/loss_epoch": EPOCHS, "train/objective": OBJECTIVE, "val/loss": VALIDATION},
        ),
        ({"train/loss": STEPS, "val/loss": VALIDATION}, {"train/loss": STEPS, "val/loss": VALIDATION}),
    ],
)
def test_the_training_loss_is_its_mean_over_each_epoch_where_that_was_logged(history, drawn) -> None:
    (axis,) = loss_curves(history).axes
    assert axis.get_xlabel() == "optimizer step"
    assert {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines} == drawn


PATH = {
    "train/loss": ([0.0, 1000.0], [9.0, 4.0]),
    "sparsity/first": ([0.0, 500.0, 1000.0], [0.0, 0.5, 0.9]),
    "path/stage": ([100.0, 400.0, 401.0], [0.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("draw", [loss_curves, sparsity_curves])
def test_the_ends_of_the_stages_of_a_path_are_marked_and_numbered(draw) -> None:
    (axis,) = draw(PATH).axes
    marks = [line.get_xdata() for line in axis.lines if line.get_linestyle() == ":"]
    assert [list(mark) for mark in marks] == [[100, 100], [400, 400], [401, 401]]
    # There is no room for the last number beside the one before it.
    assert [(text.get_text(), text.get_position()[0]) for text in axis.texts] == [("1", 100), ("2", 400)]
    assert axis.get_title().endswith("numbers: where a stage of the path ended")
    (axis,) = draw({**PATH, "path/stage": ([], [])}).axes
    assert (len(axis.texts), len(axis.lines)) == (0, 1)


MANY = {f"sparsity/a_layer_with_a_long_name/and_a_block_in_it_with_another/{i}": STEPS for i in range(30)}


@pytest.mark.draws
@pytest.mark.parametrize(("draw", "history"), [(loss_curves, PATH), (sparsity_curves, PATH), (sparsity_curves, MANY)])
def test_a_legend_lies_below_the_axes_and_leaves_them_their_height(draw, history) -> None:
    figure = draw(history)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    axes = figure.axes[0].get_window_extent()
    assert 0 <= box.x0 <= box.x1 <= figure.bbox.width
    assert 0 <= box.y0 <= box.y1 <= axes.y0
    assert axes.height > 2.2 * figure.dpi


@pytest.mark.parametrize(
    ("is_norm", "label", "label_of_path"), [(True, NORM, NORM), (False, "weight", "absolute weight")]
)
def test_one_coefficient_is_a_weight_and_those_of_several_neurons_are_a_norm(is_norm, label, label_of_path) -> None:
    values, names = torch.tensor([0.0, 1.0, 2.0]), ["a", "b", "c"]
    assert importances(values, names, [1], is_norm=is_norm).axes[0].get_ylabel() == label
    path = penalty_path([0.0, 1.0], torch.stack([values, values]), [1], is_norm=is_norm)
    assert path.axes[0].get_ylabel() == label_of_path


def test_a_caption_comes_before_the_title_that_a_figure_has() -> None:
    plain, titled = Figure(), Figure()
    titled.suptitle("Most confidently wrong")
    caption([plain, titled], "fashion_mnist, AdamW")
    assert plain.get_suptitle() == "fashion_mnist, AdamW"
    assert titled.get_suptitle() == "fashion_mnist, AdamW: Most confidently wrong"
