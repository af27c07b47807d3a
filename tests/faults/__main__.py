"""Try every case of the fault suite many times, and print how many passed.

    uv run python -m tests.faults [--only WORDS] [--training NAME] [--tries N] [--seed SEED] [--keep FOLDER]

Without options it takes about half an hour on two cores. It prints a table of "case: passed of tried", and under each
case what was wrong in the tries that failed, with the training and the seed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

from tests.faults.cases import CASES, Laboratory
from tests.faults.train import TRAININGS


def main() -> int:
    """Run the cases; return how many tries failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only the cases whose name has this in it")
    parser.add_argument("--training", choices=TRAININGS, help="only this training; default: all in turn")
    parser.add_argument("--tries", type=int, help="of each case; default: as many as the case says")
    parser.add_argument("--seed", type=int, default=0, help="of the first try; the next one has the next seed")
    parser.add_argument("--keep", type=Path, help="where to keep the folders of the runs; default: nowhere")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    trainings = [options.training] if options.training else list(TRAININGS)
    total = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        laboratory = Laboratory(root)
        for name, (case, tries) in CASES.items():
            if options.only not in name:
                continue
            failures = []
            seeds = range(options.seed, options.seed + (options.tries or tries))
            for seed in seeds:
                training = trainings[seed % len(trainings)]
                wrong = case(laboratory, training, random.Random(f"{name} {seed}"))
                if wrong:
                    failures.append(f"    {training}, seed {seed}: {'; '.join(wrong[:3])}")
            print(f"{name}: {len(seeds) - len(failures)} of {len(seeds)}", *failures, sep="\n", flush=True)
            total += len(failures)
    return total


if __name__ == "__main__":
    sys.exit(main() > 0)
