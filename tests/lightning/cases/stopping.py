"""Early stopping, and other ready-made callbacks."""

from tests.lightning.sides import EVERYTHING, Net, Side, case, fit, variant

FALLING_AND_RISING = [0.9, 0.5, 0.6, 0.4, 0.5, 0.6, 0.7, 0.3]


def scored(scores):
    """Return a module whose validation logs these scores, one per epoch."""
    return variant(validation_step=lambda self, batch, batch_idx: self.log("score", scores[self.current_epoch]))


def fit_and_note(side: Side) -> None:
    """Train, then note what the callback answers."""
    fit(side)
    note(side)


def note(side):
    stopping = side.stopping
    side.note([stopping.stopped_epoch, stopping.wait_count, float(stopping.best_score)])


def stops(
    name: str,
    scores=FALLING_AND_RISING,
    module=None,
    monitor="score",
    hears=(),
    options=None,
    play=fit_and_note,
    warns="",
    differs="",
    here=None,
    there=None,
    **stopping,
):
    """Add a case of early stopping with these arguments."""

    def callbacks(side):
        side.stopping = side.ready_made.EarlyStopping(monitor, **stopping)
        return [side.stopping]

    case(
        f"early stopping: {name}",
        module or scored(scores),
        callbacks=callbacks,
        play=play,
        hears=hears,
        warns=warns,
        differs=differs,
        here=here,
        there=there,
        **{"max_epochs": len(scores), "num_sanity_val_steps": 0, **(options or {})},
    )


stops("by default", hears=EVERYTHING)
stops("patience of one", patience=1, hears=EVERYTHING)
stops("patience of two", patience=2)
stops("no patience", patience=0)
stops("patience that is never used up", patience=9)
stops("a least improvement", patience=2, min_delta=0.2)
stops("a negative least improvement", patience=2, min_delta=-0.2)
stops("a maximum", mode="max", patience=2)
stops("a maximum with a least improvement", [0.1, 0.2, 0.25, 0.5, 0.5, 0.4], mode="max", min_delta=0.1, patience=1)
BEST = "best_score is the best there was, also if it ends the run"
stops(
    "a threshold",
    stopping_threshold=0.45,
    differs=BEST,
    here={"noted": [[3, 0, 0.4]]},
    there={"noted": [[3, 1, 0.5]]},
)
stops(
    "a threshold for a maximum",
    mode="max",
    patience=5,
    stopping_threshold=0.85,
    differs=BEST,
    here={"noted": [[0, 0, 0.9]]},
    there={"noted": [[0, 0, -float("inf")]]},
)
WAITED = "a value that is no improvement counts in wait_count, also if it ends the run"
for name, scores, options in (
    ("divergence", [0.9, 0.8, 3.0, 0.1], {"divergence_threshold": 2.0}),
    ("a value that is NaN", [0.9, 0.8, float("nan"), 0.1], {}),
    ("an infinite value", [0.9, 0.8, float("inf"), 0.1], {}),
):
    stops(
        name,
        scores,
        differs=WAITED,
        here={"noted": [[2, 1, 0.8]]},
        there={"noted": [[2, 0, 0.8]]},
        **options,
    )
stops("NaN that does not count", [0.9, float("nan"), 0.1, 0.05], check_finite=False, patience=3)
stops("a metric that does not exist", monitor="nothing")
stops("a metric that need not exist", monitor="nothing", strict=False, play=fit, warns="never looked at 'nothing'")
stops("an unknown mode", mode="least")
stops("by an epoch of training", module=Net, monitor="fit_loss_epoch", patience=0)
stops("at the end of the training epoch", check_on_train_epoch_end=True, patience=1)
stops("after validation", check_on_train_epoch_end=False, patience=1)
stops("where every second epoch validates", patience=1, options={"check_val_every_n_epoch": 2})
stops("a score that stays", [0.5, 0.5, 0.5, 0.5, 0.5], patience=2)
