"""Histograms: of which values, at which steps, for which loggers."""

import csv

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim import LBFGS, SGD

from framework.callbacks import Histograms, ModelCheckpoint
from framework.loggers import CSVLogger, TensorBoardLogger
from tests.modules import Regressor, at_step, make_loader, make_net, make_trainer, watch


def run(tmp_path, *callbacks, module=None, ckpt_path=None, **options):
    """Train for two epochs of three steps; return what TensorBoard shows."""
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    options = {"logger": logger, "log_every_n_steps": 1000, **options}
    trainer = make_trainer(tmp_path, callbacks=list(callbacks), **options)
    trainer.fit(module or Regressor(), make_loader(), ckpt_path=ckpt_path)
    if options["logger"] is not logger:
        return {}, {}
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"histograms": 0, "scalars": 0}).Reload()
    histograms = {tag: events.Histograms(tag) for tag in events.Tags()["histograms"]}
    norms = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.startswith("grad_norm/")}
    return histograms, norms


def test_histograms_and_norms_are_those_of_the_point_before_the_step(tmp_path):
    before = watch(
        "on_before_optimizer_step", lambda _, m, __: [(p.detach().clone(), p.grad.clone()) for p in m.parameters()]
    )
    histograms, norms = run(tmp_path, Histograms(2), before)
    names = [name for name, _ in Regressor().named_parameters()]
    assert histograms.keys() == {f"{what}/{name}" for what in ("parameters", "gradients") for name in names}
    assert norms.keys() == {f"grad_norm/{name}" for name in names}
    for index, name in enumerate(names):
        for kind, what in enumerate(("parameters", "gradients")):
            logged = histograms[f"{what}/{name}"]
            assert [one.step for one in logged] == [0, 2, 4]
            for one in logged:
                values = before.seen[one.step][index][kind]
                shown = one.histogram_value
                assert (shown.min, shown.max, shown.num) == (values.min(), values.max(), values.numel())
                assert shown.sum == pytest.approx(float(values.sum()))
        for one in norms[f"grad_norm/{name}"]:
            assert one.value == pytest.approx(float(before.seen[one.step][index][1].norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "kinds"), [({"gradients": False}, {"parameters"}), ({"parameters": False}, {"gradients"})]
)
def test_either_may_be_left_out(tmp_path, options, kinds):
    histograms, norms = run(tmp_path, Histograms(**options))
    assert {tag.split("/")[0] for tag in histograms} == kinds
    assert bool(norms) == ("gradients" in kinds)


def test_an_optimizer_that_evaluates_often_is_logged_once_per_step(tmp_path):
    histograms, _ = run(
        tmp_path, Histograms(1), module=Regressor(lambda module: LBFGS(module.parameters())), max_steps=2
    )
    assert {tuple(one.step for one in logged) for logged in histograms.values()} == {(0, 1)}


def test_a_continued_run_shows_what_the_uninterrupted_one_shows(tmp_path):
    def values(found):
        histograms, norms = found
        shown = {tag: [(one.step, str(one.histogram_value)) for one in logged] for tag, logged in histograms.items()}
        return shown | {tag: [(one.step, one.value) for one in logged] for tag, logged in norms.items()}

    whole = run(tmp_path / "whole", Histograms(2))
    save = at_step(3, lambda trainer: trainer.save_checkpoint(tmp_path / "3.ckpt"))
    run(tmp_path / "part", Histograms(2), save, ModelCheckpoint(tmp_path), max_steps=5)
    for name in ("3", "last"):
        part = run(tmp_path / "part", Histograms(2), ckpt_path=tmp_path / f"{name}.ckpt")
        assert values(part) == values(whole)


def test_a_run_may_begin_to_log_when_it_is_continued(tmp_path):
    run(tmp_path, ModelCheckpoint(tmp_path), max_epochs=1)
    histograms, _ = run(tmp_path, Histograms(2), ckpt_path=tmp_path / "last.ckpt")
    assert {tuple(one.step for one in logged) for logged in histograms.values()} == {(4,)}


def test_what_has_no_histogram_is_left_out(tmp_path):
    class Odd(Regressor):
        def __init__(self):
            super().__init__(lambda module: SGD(module.parameters(), lr=0.0))
            self.empty, self.unused = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(2, dtype=torch.complex64))
            self.infinite = nn.Parameter(torch.tensor([torch.inf, 1.0]))
            self.brief = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))

    histograms, norms = run(tmp_path, Histograms(), module=Odd(), max_steps=1)
    assert "parameters/empty" not in histograms
    assert "gradients/unused" not in histograms
    assert "grad_norm/unused" not in norms
    assert histograms["parameters/unused"][0].histogram_value.num == 4
    assert histograms["parameters/infinite"][0].histogram_value.num == 1
    assert histograms["parameters/brief"][0].histogram_value.sum == 3


def test_without_tensorboard_only_norms_are_logged_and_it_says_so(tmp_path):
    with pytest.warns(UserWarning, match="logs norms of gradients: only a TensorBoardLogger shows histograms"):
        run(tmp_path, Histograms(3), logger=CSVLogger(tmp_path))
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["grad_norm/net.0.weight"]]
    assert [row["step"] for row in rows] == ["0", "3"]
    with pytest.warns(UserWarning, match="logs nothing"):
        run(tmp_path, Histograms(), logger=False)


def test_the_run_does_not_notice(tmp_path):
    modules = [Regressor(net=make_net(nn.Dropout(0.5))) for _ in range(2)]
    for module, callbacks in zip(modules, ([], [Histograms(1)]), strict=True):
        torch.manual_seed(0)
        run(tmp_path / str(len(callbacks)), *callbacks, module=module)
    assert modules[0].losses == modules[1].losses


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every_n_steps": 0}, "every_n_steps=0"), ({"parameters": False, "gradients": False}, "leave nothing to log")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Histograms(**options)
