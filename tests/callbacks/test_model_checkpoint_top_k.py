"""The files of ``save_top_k`` and ``filename``: those of Lightning, and the same after an interruption."""

import math
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from framework.callbacks import ModelCheckpoint
from framework.loop import checkpoint as checkpoints
from tests.callbacks.pairs import BATCHES, Ours, fit_ours, fit_theirs
from tests.modules import Regressor, at_step, make_loader, make_trainer

SCORES = [3.0, 1.0, 2.0, 0.5, 4.0, 0.75]
STEP_SCORES = [float((7 * step) % 11) for step in range(BATCHES * len(SCORES))]


def files(folder: Path) -> dict[str, str | None]:
    """What is in a folder, each with what it links to."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def outcome(callback: Any, folder: Path) -> dict[str, Any]:
    """What a callback of either kind tells of a run."""

    def name(path: str) -> str:
        return os.path.relpath(path, folder) if path else ""

    def number(score: Any) -> float | None:
        return None if score is None else float(score)

    return {
        "files": files(folder),
        "best": name(callback.best_model_path),
        "last": name(callback.last_model_path),
        "best_score": number(callback.best_model_score),
        "best_k": {name(path): float(score) for path, score in callback.best_k_models.items()},
        "kth": name(callback.kth_best_model_path),
        "kth_value": float(callback.kth_value),
        "current": number(callback.current_score),
    }


def step_of(path: Path) -> int:
    return checkpoints.load(path)["progress"]["global_step"]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "best": ({"monitor": "val/score", "save_top_k": 1}, {}),
    "three best": ({"monitor": "val/score", "save_top_k": 3}, {}),
    "three best by max": ({"monitor": "val/score", "save_top_k": 3, "mode": "max"}, {}),
    "room for more": ({"monitor": "val/score", "save_top_k": 9}, {}),
    "all": ({"monitor": "val/score", "save_top_k": -1}, {}),
    "all without a metric": ({"save_top_k": -1}, {}),
    "the newest": ({"save_top_k": 1}, {}),
    "none": ({"monitor": "val/score", "save_top_k": 0}, {}),
    "none but the last": ({"monitor": "val/score", "save_top_k": 0, "save_last": True}, {}),
    "with the last": ({"monitor": "val/score", "save_top_k": 2, "save_last": True}, {}),
    "with a link": ({"monitor": "val/score", "save_top_k": 2, "save_last": "link"}, {}),
    "a link to the newest": ({"save_top_k": 1, "save_last": "link"}, {}),
    "a name with a metric": ({"monitor": "val/score", "save_top_k": 2, "filename": "{epoch}-{val/score:.2f}"}, {}),
    "a name without names": (
        {
            "monitor": "val/score",
            "save_top_k": 2,
            "filename": "{epoch:02d}/s{step}-{val/score:.3f}",
            "auto_insert_metric_name": False,
        },
        {},
    ),
    "a name alone": ({"monitor": "val/score", "filename": "sample-{step:04d}"}, {}),
    "one name for all": ({"monitor": "val/score", "save_top_k": 3, "filename": "model"}, {}),
    "one name for the newest": ({"filename": "model"}, {}),
    "one name replaced": (
        {"monitor": "val/score", "save_top_k": 3, "filename": "model", "enable_version_counter": False},
        {},
    ),
    "every second epoch": ({"monitor": "val/score", "save_top_k": 2, "every_n_epochs": 2}, {}),
    "no epoch": ({"monitor": "val/score", "save_top_k": 2, "every_n_epochs": 0}, {}),
    "every second step": ({"save_top_k": -1, "every_n_train_steps": 2}, {}),
    "by step": (
        {"monitor": "step_score", "save_top_k": 3, "every_n_train_steps": 2, "filename": "{step}-{step_score}"},
        {},
    ),
    "by step, max": ({"monitor": "step_score", "save_top_k": 2, "every_n_train_steps": 1, "mode": "max"}, {}),
    "by step with a link": ({"save_top_k": 1, "every_n_train_steps": 4, "save_last": "link"}, {}),
    "by time": ({"save_top_k": -1, "train_time_interval": timedelta(0)}, {}),
    "by time, the best": ({"monitor": "step_score", "save_top_k": 2, "train_time_interval": timedelta(0)}, {}),
    "validation in every second epoch": ({"monitor": "val/score", "save_top_k": 2}, {"check_val_every_n_epoch": 2}),
    "all, with validation in every second epoch": ({"save_top_k": -1}, {"check_val_every_n_epoch": 2}),
    "both rarely": ({"save_top_k": -1, "every_n_epochs": 3}, {"check_val_every_n_epoch": 2}),
    "after validation": ({"save_top_k": -1, "save_on_train_epoch_end": False}, {"check_val_every_n_epoch": 3}),
    "after every epoch": ({"save_top_k": -1, "save_on_train_epoch_end": True}, {"check_val_every_n_epoch": 3}),
    "weights": ({"monitor": "val/score", "save_top_k": 2, "save_weights_only": True, "save_last": True}, {}),
    "stopped within an epoch": ({"save_top_k": -1, "every_n_train_steps": 2}, {"max_steps": 7}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_files_and_values_are_those_of_lightning(tmp_path, case):
    options, trainer_options = CASES[case]
    own, other = ModelCheckpoint(tmp_path / "o", **options), pl.callbacks.ModelCheckpoint(tmp_path / "t", **options)
    fit_ours(tmp_path, own, SCORES, step_scores=STEP_SCORES, **trainer_options)
    fit_theirs(tmp_path, other, SCORES, step_scores=STEP_SCORES, **trainer_options)
    assert outcome(own, tmp_path / "o") == outcome(other, tmp_path / "t")
    for path in (tmp_path / "o").rglob("*.ckpt"):
        loaded = torch.load(path, weights_only=True)
        assert set(loaded) == {"version", "state_dict"} if own.save_weights_only else "progress" in loaded


def test_the_file_holds_the_state_after_its_epoch(tmp_path):
    callback = ModelCheckpoint(tmp_path, monitor="val/score", save_top_k=2)
    fit_ours(tmp_path, callback, SCORES)
    for path in callback.best_k_models:
        saved = checkpoints.load(path)
        assert f"epoch={saved['progress']['epoch'] - 1}-step={saved['progress']['global_step']}.ckpt" == Path(path).name


# ------------------------------------------------------------------------------------------ where we differ on purpose


def test_a_value_that_is_not_finite_is_never_among_the_best(tmp_path):
    scores = [math.nan, 2.0, math.inf, 1.0, math.nan]
    for k, kept in ((3, [1, 3]), (1, [3]), (-1, [0, 1, 2, 3, 4])):
        folder = tmp_path / str(k)
        callback = ModelCheckpoint(folder, "{epoch}", "val/score", save_top_k=k)
        fit_ours(tmp_path, callback, scores)
        assert list(files(folder)) == [f"epoch={epoch}.ckpt" for epoch in kept]
        assert (callback.best_model_score, Path(callback.best_model_path).name) == (1.0, "epoch=3.ckpt")


def test_a_value_of_an_earlier_step_does_not_rank_a_file(tmp_path):
    callback = ModelCheckpoint(tmp_path, "{step}", "val/score", save_top_k=9, every_n_train_steps=2)
    fit_ours(tmp_path, callback, SCORES)
    # Due at steps 2, 4, 6, ...; the metric is of 3, 6, ...: each file waits for it.
    assert {Path(path).name: score for path, score in callback.best_k_models.items()} == {
        f"step={BATCHES * (epoch + 1)}.ckpt": score for epoch, score in enumerate(SCORES)
    }


def test_without_validation_data_epochs_are_saved_as_often_as_it_would_be_made(tmp_path):
    callback = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = make_trainer(tmp_path, callbacks=callback, max_epochs=4, check_val_every_n_epoch=2)
    trainer.fit(Regressor(), make_loader())
    assert list(files(tmp_path)) == ["epoch=1.ckpt", "epoch=3.ckpt"]


def test_last_goes_its_own_way(tmp_path):
    callback = ModelCheckpoint(tmp_path, monitor="val/score", save_top_k=1, save_last=True, every_n_epochs=2)
    fit_ours(tmp_path, callback, SCORES[:5])
    assert step_of(tmp_path / "last.ckpt") == 15
    assert list(files(tmp_path)) == ["epoch=3-step=12.ckpt", "last.ckpt"]


def test_the_default_keeps_its_two_files_with_every_rhythm(tmp_path):
    for number, options in enumerate(({}, {"every_n_epochs": 2}, {"every_n_train_steps": 2}, {"verbose": True})):
        folder = tmp_path / str(number)
        callback = ModelCheckpoint(folder, monitor="val/score", **options)
        fit_ours(tmp_path, callback, SCORES)
        assert list(files(folder)) == ["best.ckpt", "last.ckpt"]
        assert (step_of(folder / "best.ckpt"), callback.best_model_score) == (12, 0.5)
        assert callback.best_k_models == {str(folder / "best.ckpt"): 0.5}


# -------------------------------------------------------------------------------------------------- continuing


class KilledError(Exception):
    """What ends a run in these tests without a trace on disk."""


def kill(*_: Any) -> None:
    raise KilledError


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["older", "newest", "stopped"])
@pytest.mark.parametrize("step", [2, 5, 6, 8, 10, 13])
@pytest.mark.parametrize(
    "options",
    [
        {"monitor": "val/score", "save_top_k": 2},
        {"monitor": "val/score", "save_top_k": 3, "filename": "model"},
        {"monitor": "step_score", "save_top_k": 2, "every_n_train_steps": 1, "filename": "{step}-{step_score:.0f}"},
        {"monitor": "val/score", "save_top_k": 2, "every_n_train_steps": 2},
        {"save_top_k": 1, "every_n_train_steps": 2},
    ],
)
def test_an_interrupted_run_that_continues_ends_with_the_files_of_the_whole_one(tmp_path, options, step, kind):
    def fit(folder: str, *others: Any, save_last: Any = None, **more: Any) -> ModelCheckpoint:
        callback = ModelCheckpoint(tmp_path / folder, **options, save_last=save_last)
        fit_ours(tmp_path, callback, SCORES, step_scores=STEP_SCORES, before=others, **more)
        return callback

    whole = outcome(fit("whole"), tmp_path / "whole")
    path: Any = "last"
    if kind == "stopped":
        fit("parts", at_step(step, lambda trainer: os.kill(os.getpid(), signal.SIGINT)), save_last=True)
        path = (tmp_path / "parts" / "last.ckpt").rename(tmp_path / "stopped.ckpt")
    else:
        # A checkpoint that is older than some of the files, or the newest of these.
        older = ModelCheckpoint(tmp_path / "older", every_n_train_steps=max(1, step - 3), save_on_exception=False)
        with pytest.raises(KilledError):
            fit("parts", at_step(step, kill), after=[older])
        if kind == "older":
            path = tmp_path / "older" / "last.ckpt"
    if path == "last" and not files(tmp_path / "parts"):
        return
    assert outcome(fit("parts", ckpt_path=path), tmp_path / "parts") == whole


def test_a_file_that_should_have_been_deleted_when_the_run_died_is_deleted_later(tmp_path, monkeypatch):
    options = {"monitor": "val/score", "save_top_k": 1}
    dying = ModelCheckpoint(tmp_path / "a", **options)
    monkeypatch.setattr(dying, "_remove", kill)
    with pytest.raises(KilledError):
        fit_ours(tmp_path, dying, SCORES)
    assert list(files(tmp_path / "a")) == ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]
    fit_ours(tmp_path, ModelCheckpoint(tmp_path / "a", **options), SCORES, ckpt_path="last")
    assert list(files(tmp_path / "a")) == ["epoch=3-step=12.ckpt"]


def test_what_was_there_before_the_run_is_kept_also_when_it_continues(tmp_path):
    options = {"monitor": "val/score", "save_top_k": 1, "filename": "model"}

    def fit(max_epochs: int, **more: Any) -> ModelCheckpoint:
        callback = ModelCheckpoint(tmp_path, **options)
        fit_ours(tmp_path, callback, SCORES, max_epochs=max_epochs, **more)
        return callback

    fit(1)
    first = (tmp_path / "model.ckpt").read_bytes()
    assert Path(fit(2).best_model_path).name == "model-v1.ckpt"
    assert Path(fit(4, ckpt_path="last").best_model_path).name == "model-v1.ckpt"
    assert list(files(tmp_path)) == ["model-v1.ckpt", "model.ckpt"]
    assert (tmp_path / "model.ckpt").read_bytes() == first
    assert step_of(tmp_path / "model-v1.ckpt") == 12


def test_a_run_that_continues_in_another_folder_touches_nothing_of_the_first(tmp_path):
    options = {"monitor": "val/score", "save_top_k": 1}
    first = ModelCheckpoint(tmp_path / "one", **options)
    fit_ours(tmp_path, first, SCORES, max_epochs=3)
    before = {name: (tmp_path / "one" / name).read_bytes() for name in files(tmp_path / "one")}
    second = ModelCheckpoint(tmp_path / "two", **options)
    fit_ours(tmp_path, second, SCORES, ckpt_path=first.best_model_path)
    assert {name: (tmp_path / "one" / name).read_bytes() for name in files(tmp_path / "one")} == before
    assert list(files(tmp_path / "two")) == ["epoch=3-step=12.ckpt"]


def test_a_folder_that_was_moved_goes_on(tmp_path):
    options = {"monitor": "val/score", "save_top_k": 2}
    fit_ours(tmp_path, ModelCheckpoint(tmp_path / "one", **options), SCORES, max_epochs=3)
    (tmp_path / "one").rename(tmp_path / "two")
    callback = ModelCheckpoint(tmp_path / "two", **options)
    fit_ours(tmp_path, callback, SCORES, ckpt_path="last")
    assert list(files(tmp_path / "two")) == ["epoch=3-step=12.ckpt", "epoch=5-step=18.ckpt"]
    assert sorted(callback.best_k_models.values()) == [0.5, 0.75]


def test_a_smaller_k_deletes_the_rest(tmp_path):
    fit_ours(tmp_path, ModelCheckpoint(tmp_path, "{epoch}", "val/score", save_top_k=3), SCORES, max_epochs=3)
    callback = ModelCheckpoint(tmp_path, "{epoch}", "val/score", save_top_k=1)
    fit_ours(tmp_path, callback, SCORES, ckpt_path="last")
    assert list(files(tmp_path)) == ["epoch=3.ckpt"]


def test_a_second_fit_begins_a_new_list(tmp_path):
    callback = ModelCheckpoint(tmp_path, "{epoch}", "val/score", save_top_k=1)
    trainer = make_trainer(tmp_path, callbacks=callback, max_epochs=2)
    for _ in range(2):
        trainer.fit(Ours([2.0, 1.0]), make_loader(), make_loader())
    assert list(files(tmp_path)) == ["epoch=1-v1.ckpt", "epoch=1.ckpt"]
    assert callback.best_k_models == {str(tmp_path / "epoch=1-v1.ckpt"): 1.0}


def test_last_is_no_longer_a_link_when_it_is_a_file_of_its_own(tmp_path):
    fit_ours(tmp_path, ModelCheckpoint(tmp_path, save_top_k=-1, save_last="link"), SCORES, max_epochs=2)
    second = (tmp_path / "epoch=1-step=6.ckpt").read_bytes()
    assert os.readlink(tmp_path / "last.ckpt") == "epoch=1-step=6.ckpt"
    callback = ModelCheckpoint(tmp_path, save_top_k=-1, save_last=True)
    fit_ours(tmp_path, callback, SCORES, max_epochs=3, ckpt_path="last")
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert (tmp_path / "epoch=1-step=6.ckpt").read_bytes() == second
    assert step_of(tmp_path / "last.ckpt") == 9


# -------------------------------------------------------------------------------------------------- reading them


def test_best_and_last_are_found_by_their_names(tmp_path):
    def make(max_epochs: int = 4) -> Any:
        callback = ModelCheckpoint(tmp_path, "{epoch}-{val/score:.2f}", "val/score", save_top_k=2)
        return make_trainer(tmp_path, callbacks=callback, max_epochs=max_epochs, num_sanity_val_steps=0)

    trainer = make()
    trainer.fit(Ours(SCORES), make_loader(), make_loader())
    best = Ours(SCORES)
    trainer.validate(best, make_loader(), ckpt_path="best")
    saved = checkpoints.load(trainer.callbacks[-1].best_model_path)
    assert saved["progress"]["epoch"] == 4
    assert all(torch.equal(saved["state_dict"][name], value) for name, value in best.state_dict().items())
    (tmp_path / "mine.ckpt").write_bytes(b"not of the callback")
    again = make(5)
    again.fit(Ours(SCORES), make_loader(), make_loader(), ckpt_path="last")
    assert again.global_step == 15
    with pytest.raises(ValueError, match=r"ckpt_path='best', but there is no such checkpoint in .*: pass the path"):
        make().validate(Ours(SCORES), make_loader(), ckpt_path="best")


@pytest.fixture
def weights(tmp_path) -> Path:
    """The parameters alone, written by `Trainer.save_checkpoint`."""
    path = tmp_path / "weights.ckpt"
    save = at_step(4, lambda trainer: trainer.save_checkpoint(path, True))
    make_trainer(tmp_path, callbacks=save).fit(Regressor(), make_loader())
    return path


def test_the_parameters_alone_are_enough_for_all_but_fit(tmp_path, weights):
    assert set(torch.load(weights, weights_only=True)) == {"version", "state_dict"}
    trainer, module = make_trainer(tmp_path), Regressor()
    module.predict_step = lambda batch, batch_idx: module(batch[0])
    values = [trainer.validate(module, make_loader(), ckpt_path=weights)[0]["val/loss"]]
    values.append(trainer.test(Regressor(), make_loader(), ckpt_path=weights)[0]["test/loss"])
    assert values[0] == values[1]
    assert len(trainer.predict(module, make_loader(), ckpt_path=weights)) == BATCHES
    loaded = torch.load(weights, weights_only=True)["state_dict"]
    assert all(torch.equal(loaded[name], value) for name, value in module.state_dict().items())


def test_no_run_continues_from_the_parameters_alone(tmp_path, weights):
    module = Regressor()
    with pytest.raises(ValueError, match=r"weights.ckpt holds the parameters alone .*drop ckpt_path and load them"):
        make_trainer(tmp_path).fit(module, make_loader(), ckpt_path=weights)
    callback = ModelCheckpoint(tmp_path / "c", save_weights_only=True)
    make_trainer(tmp_path, callbacks=callback).fit(module, make_loader())
    with (
        pytest.warns(UserWarning, match=r"passed over: .*last.ckpt holds the parameters alone"),
        pytest.raises(ValueError, match=r"no checkpoint in .* is intact"),
    ):
        make_trainer(tmp_path, callbacks=callback).fit(module, make_loader(), ckpt_path="last")
    make_trainer(tmp_path, callbacks=callback).validate(module, make_loader(), ckpt_path="last")


# ------------------------------------------------------------------------------------------------- runs that fail


def test_a_run_that_fails_leaves_a_file_of_its_own_name_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("framework.callbacks.model_checkpoint.SHARE", math.inf)  # copy after every step
    options = {"monitor": "val/score", "save_top_k": 1, "save_on_exception": True}
    for number, more in enumerate(({}, {"save_last": "link"}, {"save_weights_only": True})):
        folder = tmp_path / str(number)
        with pytest.raises(KilledError):
            fit_ours(tmp_path, ModelCheckpoint(folder, **options, **more), SCORES, before=[at_step(8, kill)])
        link = {"last.ckpt": "epoch=2-step=7.ckpt"} if "save_last" in more else {}
        assert files(folder) == {"epoch=1-step=6.ckpt": None, "epoch=2-step=7.ckpt": None, **link}


def test_a_run_that_fails_leaves_nothing_but_its_files_if_not(tmp_path):
    with pytest.raises(KilledError):
        fit_ours(tmp_path, ModelCheckpoint(tmp_path, save_top_k=1), SCORES, before=[at_step(8, kill)])
    assert list(files(tmp_path)) == ["epoch=1-step=6.ckpt"]


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_top_k": -2, "monitor": "x"}, "save_top_k=-2; it must be at least 0, or -1 for all"),
        ({"save_top_k": 2}, "save_top_k=2; it must be -1, 0 or 1 without a metric to rank by: pass monitor="),
        ({"save_last": "yes"}, "save_last='yes'; it must be True, False or 'link'"),
        ({"save_last": "link"}, "save_last='link'; .*no file to link to. Pass save_top_k=1 or a filename, too"),
        ({"save_last": "link", "save_top_k": 0}, "save_last='link'; .*no file to link to"),
        ({"every_n_epochs": -1}, "every_n_epochs=-1; it must be a number of at least 0, or None"),
        ({"every_n_train_steps": 0.5}, "every_n_train_steps=0.5; it must be a number"),
        ({"train_time_interval": 60}, "train_time_interval=60; it must be a timedelta"),
        ({"auto_insert_metric_name": False}, "auto_insert_metric_name=False; .*names no file: pass save_top_k or a"),
        ({"save_top_k": 1, "every_n_epochs": 1, "every_n_train_steps": 1}, "exclude each other: pass one of them"),
        ({"filename": "last", "save_last": True}, "filename='last'; it must be another name"),
        ({"filename": "../up"}, "'../up' is not the name of a file in the folder"),
        ({"filename": "a/../../up"}, "is not the name of a file in the folder"),
        ({"filename": "/tmp/{epoch}"}, "is not the name of a file in the folder"),
        ({"filename": "{epoch}/"}, "is not the name of a file in the folder"),
        ({"filename": "{../x}"}, "is not the name of a file in the folder"),
        ({"filename": "{epoch:/>3}", "auto_insert_metric_name": False}, "is not the name of a file in the folder"),
        ({"filename": "{epoch"}, "has a brace without a name"),
        ({"filename": "{}"}, "has a brace without a name"),
        ({"filename": "{x:d}"}, "cannot be filled in: Unknown format code 'd'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=f"ModelCheckpoint: .*{message}"):
        ModelCheckpoint(**options)


def test_a_name_for_no_file_is_warned_about():
    with pytest.warns(UserWarning, match="filename='x' has no effect with save_top_k=0"):
        ModelCheckpoint(filename="x", save_top_k=0)
    ModelCheckpoint(filename="x", save_top_k=0, save_on_exception=True)


def test_a_metric_in_a_name_that_is_never_logged_is_refused_and_the_others_named(tmp_path):
    callback = ModelCheckpoint(tmp_path, "{epoch}-{val/scroe:.2f}")
    with pytest.raises(ValueError, match=r"filename='.epoch.-.*monitors 'val/scroe', which was never .*val/score"):
        fit_ours(tmp_path, callback, SCORES)


def test_a_metric_in_a_name_that_has_no_value_yet_is_0_as_in_lightning(tmp_path):
    callback = ModelCheckpoint(tmp_path, "{step}-{val/score:.1f}", every_n_train_steps=2, auto_insert_metric_name=False)
    fit_ours(tmp_path, callback, SCORES[:1])
    assert list(files(tmp_path)) == ["2-0.0.ckpt"]


def test_two_callbacks_share_a_folder_unless_their_files_have_one_name(tmp_path):
    pair = [ModelCheckpoint(tmp_path, "a-{epoch}", "val/score"), ModelCheckpoint(tmp_path, "b-{epoch}", "val/score")]
    make_trainer(tmp_path, callbacks=pair, num_sanity_val_steps=0).fit(Ours(SCORES), make_loader(), make_loader())
    assert list(files(tmp_path)) == ["a-epoch=1.ckpt", "b-epoch=1.ckpt"]
    pair = [ModelCheckpoint(tmp_path, save_top_k=1), ModelCheckpoint(tmp_path, save_top_k=-1)]
    with pytest.raises(ValueError, match=r"two callbacks write .*epoch=\*-step=\*\.ckpt: .*dirpath .*or a filename"):
        make_trainer(tmp_path, callbacks=pair).fit(Ours(SCORES), make_loader())


def test_what_is_saved_is_printed_if_asked_for(tmp_path, capsys):
    fit_ours(tmp_path, ModelCheckpoint(tmp_path, "{epoch}", "val/score", True), SCORES[:3])
    lines = capsys.readouterr().out.splitlines()
    path = tmp_path / "epoch=1.ckpt"
    assert lines[1] == f"epoch 1, step 6: val/score is 1: saved to {path}; the best is {path}"
    assert lines[2] == "epoch 2, step 9: val/score is 2, not among the 1 best: not saved"
