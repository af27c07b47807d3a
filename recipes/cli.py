"""The command ``proxtrain``: compose a recipe with Hydra and train it."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

CONF = str(Path(__file__).resolve().parent.parent / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def main(config: DictConfig) -> None:
    """Train a recipe; ``proxtrain --help`` lists them."""
    # torch takes seconds to import, which help and mistakes on the command line need not wait for.
    from recipes.train import run

    run(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    main()
