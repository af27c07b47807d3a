"""What a user types either reaches something or is refused by name."""

import shlex
from pathlib import Path

import pytest

from tests.recipes.conftest import Proxtrain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("+key=1", r"+key=1 has no effect: nothing reads key"),
        ("optimizer=sgd lr=0.5", "lr=0.5 has no effect: optimizer.lr is 0.01 whatever lr is; set optimizer.lr"),
        ("optimizer.lr=0.1 lr=0.5", "lr=0.5 has no effect: optimizer.lr is 0.1 whatever lr is; set optimizer.lr"),
        ("optimizer=scipy lr=0.5", "lr=0.5 has no effect: optimizer=scipy does not read it; drop it"),
        ("recipe=phase_transition lr=1", "lr=1 has no effect: this recipe does not read it; drop it"),
        ("recipe=phase_transition penalties=[l1] paths=[fine]", "paths=[fine] has no effect: the lasso is convex"),
        ("recipe=phase_transition ckpt_path=a.ckpt", "ckpt_path=a.ckpt has no effect: the task"),
        ("optimizer=scipy epochs=7", "epochs=7 has no effect: trainer.max_epochs is 1 whatever epochs is"),
        ("optimizer=scipy val_every=7", "val_every=7 has no effect: trainer.check_val_every_n_epoch is 1"),
        ("model=cnn mlp.hidden=[3]", "mlp.hidden=[3] has no effect: model.hidden is 128 whatever mlp.hidden is"),
        ("model=linear mlp.dropout=0.5", "mlp.dropout=0.5 has no effect: model=linear does not read it; drop it"),
        ("model=sparse_mlp mlp='{dropout: 0.5}'", "has no effect: model=sparse_mlp does not read it; drop it"),
        ("optimizer=lbfgs scheduler=cosine", "scheduler=cosine has no effect: optimizer=lbfgs has no learning rate"),
        ("recipe=sparse_linear scheduler=step", "scheduler=step has no effect: optimizer=sparsa has no learning rate"),
        ("penalty.happy_lambda=0.3", "penalty.happy_lambda=0.3 has no effect: there is no penalty to weigh"),
        ("recipe=sparse_linear penalty=none penalty.happy_lambda=1", "happy_lambda=1 has no effect: there is no"),
        ("recipe=sparse_mlp data.csv=a.csv data.noise=2", "data.noise=2 has no effect: data.csv is a table"),
        ("recipe=sparse_mlp data.target=price", "data.target=price has no effect: it belongs to a table"),
        ("trainer.gradient_clip_algorithm=value", "gradient_clip_algorithm=value has no effect: nothing is clipped"),
        ("hydra.sweep.dir=here", "hydra.sweep.dir has no effect: this is one run and no sweep; choose hydra.run.dir="),
        ("-m sweep=overfit,sgd_or_adam", "sweep=overfit,sgd_or_adam: each has values of its own; call proxtrain once"),
    ],
)
def test_what_nothing_reads_is_refused_by_name(arguments: str, message: str, proxtrain: Proxtrain) -> None:
    done = proxtrain(*shlex.split(arguments))
    assert done.code == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_the_folder_of_one_run_is_refused_in_a_sweep(proxtrain: Proxtrain, tmp_path: Path) -> None:
    done = proxtrain("sweep=sgd_or_adam", "optimizer=sgd", "optimizer.lr=0.01", "seed=0", "hydra.run.dir=here")
    assert done.code == 1
    message = "hydra.run.dir has no effect: the jobs of a sweep lie in the folder of the sweep; choose hydra.sweep.dir="
    assert message in done.stderr
    assert not (tmp_path / "here").exists()


def test_a_sweep_is_refused_too_and_says_which_of_its_runs(proxtrain: Proxtrain) -> None:
    done = proxtrain(
        "-m", "optimizer=adam,sgd", "lr=0.5", "epochs=1", "logger=none", "trainer.enable_model_summary=false"
    )
    assert done.code == 1
    assert "['optimizer=sgd', 'lr=0.5'" in done.stderr
    assert "error: lr=0.5 has no effect: optimizer.lr is 0.01 whatever lr is; set optimizer.lr" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "lr=0.01 epochs=1 val_every=10",  # What the recipe says too: a sweep contains it.
        "lr=0.01 epochs=1 mlp='{hidden: [3], activation: Tanh}'",
        "optimizer=lbfgs scheduler=none epochs=1",
        "+width=7 mlp.hidden=[${width}] epochs=1",
        "recipe=sparse_linear lr=0.1 optimizer=prox_adam epochs=1",
        "penalty=l1 penalty.happy_lambda=0.001 epochs=1",
    ],
)
def test_what_has_an_effect_is_let_through(arguments: str, proxtrain: Proxtrain) -> None:
    done = proxtrain(*shlex.split(arguments), "logger=none", "trainer.enable_model_summary=false")
    assert (done.code, done.stderr.count("error")) == (0, 0)
