"""Weak and strong scaling of Fashion-MNIST's CNN over many processes, on paper: `docs/scaling.md` shows the tables.

``python -m scripts.scaling`` prints them. Nothing is measured here: what a step communicates is counted by
`tests/processes`, and the speeds are assumptions, given below.
"""

from __future__ import annotations

import math

NUM_PARAMETERS = 435_754  # of model=cnn
NUM_TENSORS = 22
NORMALIZED = (32, 32, 64, 64, 128, 128)  # channels of the batch norm layers, which are synchronized
NUM_IMAGES = 60_000

STEP_SECONDS = 3e-3  # what a step takes on one device, however few images there are: launching kernels
IMAGE_SECONDS = 15e-6  # and what each image adds
LATENCY = 10e-6  # of a message between two devices, in seconds
BANDWIDTH = 10e9  # between two devices, in bytes per second
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def all_reduce_seconds(size: float, ranks: int) -> float:
    """Compute how long a sum of ``size`` bytes over all ranks takes: the faster of a ring and a tree.

    Ring: 2 (W - 1) messages of size / W. Tree: up and down, 2 log2 W messages of the whole size.
    """
    if ranks == 1:
        return 0.0
    ring = 2 * (ranks - 1) * (LATENCY + size / ranks / BANDWIDTH)
    tree = 2 * math.log2(ranks) * (LATENCY + size / BANDWIDTH)
    return min(ring, tree)


def communication_seconds(ranks: int) -> float:
    """Compute what an SGD step takes to communicate, none of it hidden behind the computation."""
    evaluation = 4 * (NUM_PARAMETERS + NUM_TENSORS + 3)  # gradients, whether each is used, f, g, samples: float32
    agreement = 4 * 8  # whether to stop, the clock, and a checksum of the batches that were drawn
    statistics = [4 * (2 * channels + 1) for channels in NORMALIZED]  # of each layer, forward and backward
    sizes = [evaluation, agreement, *statistics, *statistics]
    return sum(all_reduce_seconds(size, ranks) for size in sizes)


def step_seconds(images: float, ranks: int) -> float:
    """Compute what a step takes with so many images for each rank."""
    return STEP_SECONDS + images * IMAGE_SECONDS + communication_seconds(ranks)


def weak_scaling(images: int = 256) -> str:
    """Return a table: every rank has as many images per step, however many ranks there are."""
    lines = ["| ranks | batch | ms a step | of it communication | images/s | efficiency |", "| ---: " * 6 + "|"]
    for ranks in RANKS:
        seconds = step_seconds(images, ranks)
        share = communication_seconds(ranks) / seconds
        efficiency = step_seconds(images, 1) / seconds
        lines.append(
            f"| {ranks} | {images * ranks:,} | {seconds * 1e3:.2f} | {share:.0%} | {images * ranks / seconds:,.0f} "
            f"| {efficiency:.0%} |"
        )
    return "\n".join(lines)


def strong_scaling(batch: int = 4096) -> str:
    """Return a table: the same batch is shared by more and more ranks."""
    lines = ["| ranks | images each | ms a step | s an epoch | speedup | efficiency |", "| ---: " * 6 + "|"]
    for ranks in RANKS:
        seconds = step_seconds(batch / ranks, ranks)
        speedup = step_seconds(batch, 1) / seconds
        epoch = seconds * math.ceil(NUM_IMAGES / batch)
        lines.append(
            f"| {ranks} | {batch // ranks:,} | {seconds * 1e3:.2f} | {epoch:.3f} | {speedup:.1f} "
            f"| {speedup / ranks:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(weak_scaling(), strong_scaling(), sep="\n\n")
