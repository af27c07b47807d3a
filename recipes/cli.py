"""The command ``proxtrain``: compose a recipe with Hydra and train it."""

import itertools
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from framework.recipes.compare import ERROR, AfterSweep
from framework.recipes.mistakes import explain, in_words, innermost
from framework.recipes.overrides import refuse_other_folder, refuse_several_sweeps, refuse_without_effect
from framework.recipes.own_modules import look_in_current_folder
from framework.recipes.resume import ONE_RUN, expand, record

CONF = str(Path(__file__).resolve().parent.parent / "conf")
TRACEBACKS = "HYDRA_FULL_ERROR"


def unused(folder: str) -> str:
    """Make a folder that nobody has: with a number behind it if another run started in the same second."""
    path = Path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(2):
        try:
            path.mkdir()
            return str(path)
        except FileExistsError:
            path = Path(f"{folder}_{number}")
    raise AssertionError


OmegaConf.register_new_resolver("unused", unused, use_cache=True, replace=True)


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def run_job(config: DictConfig) -> float | None:
    """Do the task of one composed configuration; return the metric for a sweeper to optimize."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    # Processes that a trainer starts are to do this job, not a whole sweep.
    arguments, sys.argv = sys.argv, [sys.argv[0], *settings.overrides.task, ONE_RUN]
    with read_write(settings):  # type: ignore[arg-type]
        settings.run.dir = settings.runtime.output_dir  # asked for once more, it would be another unused folder
    try:
        if "direction" in settings.sweeper and config.optimized_metric is None:
            raise ValueError(
                f"hydra/sweeper={settings.runtime.choices['hydra/sweeper']} needs a value to optimize; "
                "name a final metric, such as optimized_metric=val/loss"
            )
        refuse_other_folder(settings.overrides.hydra, is_sweep=settings.mode == RunMode.MULTIRUN)
        refuse_without_effect(config, settings.overrides.task, settings.runtime.choices)
        # torch takes seconds to import, which help and mistakes on the command line need not wait for.
        from framework.loop.processes import end_processes
        from framework.recipes.train import optimized, run

        try:
            return optimized(run(config, folder), config.optimized_metric)
        finally:
            end_processes()
    except Exception as error:
        if settings.mode == RunMode.MULTIRUN:
            if not (folder / "config.yaml").exists():  # refused before it began: the table names it like the others
                record(config, folder)
                (folder / ERROR).write_text(f"{in_words(error)}\n")
            raise  # by hydra, after the other jobs of the sweep
        raise SystemExit(1) from error
    finally:
        sys.argv = arguments


def main() -> None:
    """Train a recipe; ``proxtrain --help`` lists them.

    A user's mistake ends the command with one paragraph and exit code 1. A bug has its traceback, and a mistake too
    where the environment says HYDRA_FULL_ERROR=1.
    """
    if "--version" in sys.argv[1:]:
        print(f"proxtrain {version('proxtrain')}")
        return
    tracebacks, error = os.environ.get(TRACEBACKS), None
    os.environ[TRACEBACKS] = "1"  # hydra raises what it would print in its own way
    given = sys.argv
    look_in_current_folder()
    try:
        refuse_several_sweeps(given[1:])
        sys.argv = [given[0], *expand(given[1:])]
        if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) > 0:
            sys.argv = [argument for argument in sys.argv if not argument.startswith("hydra.run.dir=")]
            sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null"]  # rank zero has the folder
        run_job()
    except SystemExit as ended:
        # One with another code is an interrupted job's; joblib gives it a cause: the traceback in the job's process.
        if ended.code != 1 or not isinstance(ended.__cause__, Exception):
            raise
        error = ended.__cause__
    except KeyboardInterrupt:  # before a run, which ends by itself, or while its process is another
        sys.exit(128 + signal.SIGINT)
    except Exception as raised:
        error = raised
    finally:
        sys.argv = given
        AfterSweep.report()
        del os.environ[TRACEBACKS]
        if tracebacks is not None:
            os.environ[TRACEBACKS] = tracebacks
    if error is not None:
        message = explain(error)
        if message is None or tracebacks == "1":
            raise innermost(error)[0]
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
