"""Fashion-MNIST: the real files if they are there, and what happens if they are not."""

import gzip
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torchvision.datasets import FashionMNIST

from framework.data import fashion_mnist
from framework.data.fashion_mnist import CLASSES, FILE_BYTES, MEAN, STD

needs_data = pytest.mark.skipif(
    "DATA_ROOT" not in os.environ or not Path(os.environ["DATA_ROOT"], "FashionMNIST").is_dir(),
    reason="the environment variable DATA_ROOT names no folder that holds FashionMNIST/",
)


@needs_data
@pytest.mark.parametrize(("train", "num_samples"), [(True, 60_000), (False, 10_000)])
def test_images_and_labels_are_those_of_torchvision_in_order(train: bool, num_samples: int) -> None:
    images, labels = fashion_mnist(os.environ["DATA_ROOT"], train)
    dataset = FashionMNIST(os.environ["DATA_ROOT"], train=train)
    assert images.shape == (num_samples, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(images[:, 0], dataset.data)
    assert torch.equal(labels, dataset.targets)
    assert labels.bincount().tolist() == [num_samples // 10] * 10


@needs_data
def test_mean_and_std_are_those_of_the_training_pixels() -> None:
    images, _ = fashion_mnist(os.environ["DATA_ROOT"], True)
    pixels = images.double() / 255
    assert round(pixels.mean().item(), 4) == MEAN
    assert round(pixels.std().item(), 4) == STD


def test_class_names_are_those_of_torchvision() -> None:
    assert list(CLASSES) == FashionMNIST.classes


def test_missing_files_without_download_are_named_with_the_folder_and_the_setting(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fashion_mnist(tmp_path, True, download=False)
    message = str(caught.value)
    assert all(part in message for part in [str(tmp_path / "FashionMNIST" / "raw"), "DATA_ROOT", "data.root"])
    assert all(name in message for name in FILE_BYTES)


def use_mirror(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{port}/"])


def test_an_unreachable_server_is_reported_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A port that was free a moment ago refuses the connection.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    use_mirror(monkeypatch, port)
    with pytest.raises(FileNotFoundError, match=r"the download failed.*DATA_ROOT"):
        fashion_mnist(tmp_path / "data", True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert socket.getdefaulttimeout() is None


def idx(values: torch.Tensor) -> bytes:
    """The idx format: type 8 is unsigned byte, then the sizes, then the data."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.numpy().tobytes()


@pytest.fixture
def small_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A local server that offers three training images and two test images."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    files = {}
    for prefix, count in [("train", 3), ("t10k", 2)]:
        files[f"{prefix}-images-idx3-ubyte"] = idx(torch.randint(256, (count, 28, 28), dtype=torch.uint8))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(torch.arange(count, dtype=torch.uint8))
    resources = []
    for name, content in files.items():
        packed = gzip.compress(content)
        (mirror / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
        monkeypatch.setitem(FILE_BYTES, name, len(content))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(mirror))) as server:
        use_mirror(monkeypatch, server.server_address[1])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield files
        server.shutdown()
        thread.join()


def test_missing_files_are_downloaded_once(small_mirror: dict[str, bytes], tmp_path: Path) -> None:
    root = tmp_path / "data"
    images, labels = fashion_mnist(root, True)
    assert images.shape == (3, 1, 28, 28)
    assert labels.tolist() == [0, 1, 2]
    files = {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert files == small_mirror
    assert torch.equal(fashion_mnist(root, True, download=False)[0], images)


def test_a_download_that_breaks_off_leaves_no_files(small_mirror: dict[str, bytes], tmp_path: Path) -> None:
    last = tmp_path / "mirror" / "t10k-labels-idx1-ubyte.gz"
    last.write_bytes(last.read_bytes()[:-4])
    root = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match="the download failed"):
        fashion_mnist(root, True)
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_a_truncated_file_is_not_mistaken_for_a_good_one(small_mirror: dict[str, bytes], tmp_path: Path) -> None:
    root = tmp_path / "data"
    fashion_mnist(root, True)
    name = "train-images-idx3-ubyte"
    (root / "FashionMNIST" / "raw" / name).write_bytes(small_mirror[name][:-1])
    with pytest.raises(FileNotFoundError, match=f"{name} missing or truncated"):
        fashion_mnist(root, True, download=False)
    assert fashion_mnist(root, True)[0].shape == (3, 1, 28, 28)
