"""What is monitored must be logged."""

import pytest

from framework.callbacks import EarlyStopping, ModelCheckpoint
from tests.modules import Regressor, make_loader, make_trainer


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize("every", [1, 2])
def test_a_monitored_metric_that_is_never_logged_is_refused_and_the_others_named(tmp_path, kind, every):
    trainer = make_trainer(
        tmp_path,
        callbacks=kind(monitor="val/acc"),
        max_epochs=2,
        check_val_every_n_epoch=every,
        num_sanity_val_steps=0,
    )
    with pytest.raises(ValueError, match=rf"{kind.__name__} monitors 'val/acc', which was never logged; .*val/loss"):
        trainer.fit(Regressor(), make_loader(), make_loader())
