"""Image transforms of a whole batch at once, on its device, with separate draws for each image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_flip(images: Tensor, *, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Mirror the images where requested, then shift them: each becomes a window of its own zero-padded image.

    With `left` counted in the mirrored image, `out[n] = crop(pad(hflip(images[n]) if flip[n] else images[n]))` with the
    crop's corner at `(top[n], left[n])`; `top = left = padding` and `flip = 0` change nothing.

    Args:
        images: Shape (N, C, H, W), any type.
        top: Rows, shape (N,), int64 from 0 to 2 * padding.
        left: Columns, shape (N,), int64 from 0 to 2 * padding.
        flip: Shape (N,), int64, 1 to mirror left to right, otherwise 0.
        padding: Pixels of zeros added on each side.

    Returns:
        The images, shape (N, C, H, W), of the same type.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, [padding] * 4)
    # Every possible crop exists as a view, so a single gather copies whole rows: 1.5 to 1.9 us per 28x28 image instead
    # of 4.6 to 5.1 with an index per pixel, and no index is larger than the batch.
    windows = torch.stack([padded, padded.flip(-1)]).unfold(3, height, 1).unfold(4, width, 1)
    return windows[flip, torch.arange(len(images), device=images.device), :, top, left]


class ImageTransform:
    """A transform from uint8 images to normalized float32 ones, `(x / 255 - mean) / std`, with optional augmentation.

    Use it as `TensorLoader(images, labels, transform=...)`. Augmentation takes a random crop of the zero-padded image
    and mirrors it with probability 1/2, while it is still uint8: a quarter of the bytes to move. The draws come from
    torch's global generator on the images' device. Leave `augment` off in evaluation.

    Args:
        mean: Mean of `x / 255`, one for all channels or one per channel.
        std: Standard deviation of `x / 255`, likewise.
        augment: Whether to crop and flip.
        padding: Maximum shift of the crop in each direction, in pixels.

    Raises:
        ValueError: If a `std` is not positive, or `padding` is negative.
    """

    def __init__(
        self, mean: float | Sequence[float], std: float | Sequence[float], *, augment: bool = False, padding: int = 2
    ) -> None:
        means, stds = (torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1, 1) for value in (mean, std))
        if not (stds > 0).all():
            raise ValueError(f"std={std}: pass the standard deviation of pixels / 255, greater than 0.")
        if padding < 0:
            raise ValueError(f"padding={padding}: pass a number of pixels, 0 or more.")
        self.augment = augment
        self.padding = padding
        self._scale = (1 / (255 * stds)).float()
        self._shift = (-means / stds).float()

    def __call__(self, images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Transform the images of a batch and pass the other tensors, such as labels, through.

        Args:
            images: Shape (N, C, H, W), uint8.
            *others: The rest of the batch.

        Returns:
            Images of shape (N, C, H, W), float32, then the others.

        Raises:
            TypeError: If the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"ImageTransform got {images.dtype} images: pass uint8 from 0 to 255, which it scales.")
        if self.augment:
            images = self._random_crop_flip(images)
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return (images * self._scale).add_(self._shift), *others

    def _random_crop_flip(self, images: Tensor) -> Tensor:
        top, left = torch.randint(2 * self.padding + 1, (2, len(images)), device=images.device)
        flip = torch.randint(2, (len(images),), device=images.device)
        return crop_flip(images, top=top, left=left, flip=flip, padding=self.padding)
