"""What the pictures of runs show."""

import pytest

from framework.recipes.figures import loss_curves

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
