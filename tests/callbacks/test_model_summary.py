"""The summary that is printed before a run."""

from torch.optim import SGD

from framework.callbacks import ModelSummary
from tests.modules import Regressor, make_loader, make_trainer


def test_the_summary_counts_layers_parameters_and_groups(tmp_path, capsys):
    def optimize(module):
        first, second = module.net[0], module.net[2]
        return SGD(
            [
                {"params": first.parameters(), "name": "hidden", "penalized": True},
                {"params": second.parameters(), "penalized": False},
            ],
            lr=0.1,
        )

    module = Regressor(optimize)
    make_trainer(tmp_path, callbacks=ModelSummary(max_depth=2), max_epochs=0).fit(module, make_loader())
    printed = capsys.readouterr().out
    assert "26 parameters, 26 trainable, on cpu" in printed
    assert "SGD, groups: hidden (penalized), 1" in printed
    assert "net.0" in printed
    assert "Linear" in printed
