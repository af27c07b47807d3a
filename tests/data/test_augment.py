"""Batch image transforms against torchvision, image by image."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from framework.data import ImageTransform, TensorLoader
from framework.data.augment import crop_flip


def random_images(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def reference(image_CHW: Tensor, top: int, left: int, flip: int, padding: int) -> Tensor:
    height, width = image_CHW.shape[-2:]
    mirrored = V.horizontal_flip(image_CHW) if flip else image_CHW
    return V.crop(V.pad(mirrored, [padding]), top, left, height, width)


@pytest.mark.parametrize("shape", [(200, 1, 28, 28), (50, 3, 5, 8)])
@pytest.mark.parametrize("padding", [0, 1, 2, 4])
def test_crop_flip_equals_torchvision_image_by_image(shape: tuple[int, ...], padding: int) -> None:
    images = random_images(*shape)
    top, left = torch.randint(2 * padding + 1, (2, shape[0]))
    flip = torch.randint(2, (shape[0],))
    out = crop_flip(images, top=top, left=left, flip=flip, padding=padding)
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    draws = zip(images, top.tolist(), left.tolist(), flip.tolist(), strict=True)
    assert torch.equal(out, torch.stack([reference(*draw, padding) for draw in draws]))


def test_augmentation_is_one_of_the_crops_of_each_image_then_the_normalization() -> None:
    images = random_images(64, 1, 6, 6)
    (out,) = ImageTransform(0.0, 1 / 255, augment=True, padding=1)(images)
    for image, augmented in zip(images, out.round().to(torch.uint8), strict=True):
        crops = [reference(image, top, left, flip, 1) for top in range(3) for left in range(3) for flip in range(2)]
        assert any(torch.equal(augmented, crop) for crop in crops)


def test_every_image_has_its_own_draws_and_every_shift_and_flip_is_equally_likely() -> None:
    # One lit pixel on an uneven width shows shift and flip: mirrored, it lies three columns to the right.
    images = torch.zeros(18_000, 1, 5, 8, dtype=torch.uint8)
    images[:, :, 2, 2] = 1
    (out,) = ImageTransform(0.0, 1 / 255, augment=True, padding=1)(images)
    _, _, rows, columns = out.round().nonzero(as_tuple=True)
    counts = torch.bincount(8 * rows + columns, minlength=40).view(5, 8)[1:4, 1:7]
    assert counts.sum() == 18_000
    # 1,000 of each of the 18 outcomes, within 5 standard deviations of a binomial count.
    assert (counts - 1000).abs().max() < 5 * 31


def test_augmentation_replays_with_the_global_generator() -> None:
    images = random_images(64, 1, 28, 28)
    transform = ImageTransform(0.2860, 0.3530, augment=True)
    state = torch.get_rng_state()
    (first,) = transform(images)
    (second,) = transform(images)
    torch.set_rng_state(state)
    (replayed,) = transform(images)
    assert torch.equal(first, replayed)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("channels", "mean", "std"), [(1, 0.2860, 0.3530), (3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
)
def test_normalization_equals_torchvision_and_draws_nothing(
    channels: int, mean: float | list[float], std: float | list[float]
) -> None:
    images = random_images(16, channels, 28, 28)
    untouched = images.clone()
    state = torch.get_rng_state()
    (out,) = ImageTransform(mean, std)(images)
    as_lists = [value if isinstance(value, list) else [value] for value in (mean, std)]
    expected = V.normalize(V.to_dtype(images, torch.float32, scale=True), *as_lists)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, untouched)


def test_it_transforms_the_images_of_a_tensor_loader_and_passes_the_labels_through() -> None:
    images, labels = random_images(10, 1, 28, 28), torch.arange(10)
    loader = TensorLoader(images, labels, batch_size=4, transform=ImageTransform(0.0, 1.0))
    batches = list(loader)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), labels)
    torch.testing.assert_close(torch.cat([batch[0] for batch in batches]), images / 255)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_crop_flip_and_normalization_are_the_same_on_every_device() -> None:
    images = random_images(64, 1, 28, 28)
    draws = {"top": torch.randint(5, (64,)), "left": torch.randint(5, (64,)), "flip": torch.randint(2, (64,))}
    on_cuda = crop_flip(images.cuda(), padding=2, **{name: draw.cuda() for name, draw in draws.items()})
    assert torch.equal(on_cuda.cpu(), crop_flip(images, padding=2, **draws))

    transform = ImageTransform(0.2860, 0.3530)
    torch.testing.assert_close(transform(images.cuda())[0].cpu(), transform(images)[0])


def test_float_images_are_refused_rather_than_scaled_twice() -> None:
    with pytest.raises(TypeError, match=r"torch\.float32 images: pass uint8"):
        ImageTransform(0.0, 1.0)(torch.rand(2, 1, 4, 4))


@pytest.mark.parametrize(("std", "padding", "message"), [(0.0, 2, "greater than 0"), (1.0, -1, "0 or more")])
def test_impossible_settings_are_refused(std: float, padding: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTransform(0.0, std, augment=True, padding=padding)
