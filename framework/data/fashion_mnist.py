"""Fashion-MNIST as two tensors: 28x28 gray images of clothes in 10 balanced classes."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from torch import Tensor

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# Mean and standard deviation over all pixels / 255 of the 60,000 training images.
MEAN = 0.2860
STD = 0.3530

FILE_BYTES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}
SERVER_TIMEOUT = 10.0  # seconds without an answer


def fashion_mnist(root: str | Path, train: bool, *, download: bool = True) -> tuple[Tensor, Tensor]:
    """Return the training or the test images and their labels, in the original order.

    Args:
        root: Folder that holds `FashionMNIST/raw/`, or where it should go.
        train: True for the 60,000 training images, False for the 10,000 test images.
        download: Whether to download the files if they are not all there.

    Returns:
        Images of shape (N, 1, 28, 28), uint8, and labels of shape (N,), int64 indices into `CLASSES`.

    Raises:
        FileNotFoundError: If files are missing or truncated, and the download failed or was not allowed.
    """
    # Importing torchvision takes a second, which the toy recipes should not have to wait for.
    from torchvision.datasets import FashionMNIST

    root = Path(root).expanduser()
    raw = root / "FashionMNIST" / "raw"
    if absent := _absent(raw):
        if not download:
            raise FileNotFoundError(_how_to_fix(raw, absent, "download=False"))
        try:
            _download(root, raw)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = " ".join(str(error).split())
            raise FileNotFoundError(_how_to_fix(raw, absent, f"the download failed ({reason})")) from error
    dataset = FashionMNIST(root, train=train, download=False)
    return dataset.data.unsqueeze(1), dataset.targets


def _absent(raw: Path) -> list[str]:
    """Return the names of the files that are not there in full."""
    return [
        name
        for name, num_bytes in FILE_BYTES.items()
        if not (raw / name).is_file() or (raw / name).stat().st_size != num_bytes
    ]


def _download(root: Path, raw: Path) -> None:
    from torchvision.datasets import FashionMNIST

    raw.mkdir(parents=True, exist_ok=True)
    # torchvision checks the archives' checksums but accepts any unpacked file with the right name. So only complete
    # files reach their place, each in one move, even if several processes download at once.
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder, _socket_timeout(SERVER_TIMEOUT):
        FashionMNIST(folder, download=True)
        for name in FILE_BYTES:
            (Path(folder) / "FashionMNIST" / "raw" / name).replace(raw / name)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torchvision takes no timeout, and the default is to wait forever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _how_to_fix(raw: Path, absent: list[str], reason: str) -> str:
    return (
        f"Fashion-MNIST is not in {raw.absolute()}: {', '.join(absent)} missing or truncated, and {reason}. "
        f"Put the four unpacked files {', '.join(FILE_BYTES)} into that folder, or set the environment variable "
        "DATA_ROOT (on the command line: data.root=FOLDER) to the folder that holds FashionMNIST/raw."
    )
