"""Several loaders read together, as Lightning's `CombinedLoader` does."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from lightning.pytorch.utilities import CombinedLoader

# It does not know torch's newest way to ask for a leaf.
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)


class Combined:
    """A `CombinedLoader` as a loader with a length: its batches are those of all its loaders, in the same collection.

    Args:
        loaders: A `CombinedLoader`, or a (nested) collection of loaders: then the longest sets the length of an epoch,
            and the others start over. One that shuffles and starts over should have a generator of its own: a run that
            is continued within an epoch cannot know what it drew from the global one in the middle.

    Attributes:
        datasets: The loaders.
        may_draw: Some may draw their order from random generators, although there is `set_epoch`.
    """

    may_draw = True

    def __init__(self, loaders: Any) -> None:
        self.combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "max_size_cycle")
        self.datasets = self.combined.flattened

    def __iter__(self) -> Iterator[Any]:
        return map(itemgetter(0), copy.copy(self.combined))  # it holds its only iterator

    def __len__(self) -> int:
        """The number of batches.

        Raises:
            TypeError: If a loader that counts has no length.
        """
        lengths = [len(loader) for loader in self.datasets]
        mode = self.combined._mode
        return sum(lengths) if mode == "sequential" else min(lengths) if mode == "min_size" else max(lengths)

    def set_epoch(self, epoch: int) -> None:
        """Let the samplers that derive their order from the epoch know it."""
        for loader in self.datasets:
            owners: list[Any] = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
            for owner in owners:
                if hasattr(owner, "set_epoch"):
                    owner.set_epoch(epoch)
