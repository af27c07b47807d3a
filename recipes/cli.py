"""The command ``proxtrain``: compose a recipe with Hydra and train it."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from recipes.mistakes import explain, innermost
from recipes.overrides import refuse_without_effect

CONF = str(Path(__file__).resolve().parent.parent / "conf")
TRACEBACKS = "HYDRA_FULL_ERROR"


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def run_job(config: DictConfig) -> None:
    """Do the task of one composed configuration."""
    settings = HydraConfig.get()
    try:
        refuse_without_effect(config, settings.overrides.task, settings.runtime.choices)
        # torch takes seconds to import, which help and mistakes on the command line need not wait for.
        from recipes.train import run

        run(config, Path(settings.runtime.output_dir))
    except Exception as error:
        if settings.mode == RunMode.MULTIRUN:
            raise  # by hydra, after the other jobs of the sweep
        raise SystemExit(1) from error


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
    try:
        run_job()
    except SystemExit as ended:
        if not isinstance(ended.__cause__, Exception):
            raise
        error = ended.__cause__
    except Exception as raised:
        error = raised
    finally:
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
