"""Small images as tensors: scikit-learn's digits (nothing to download), MNIST, FashionMNIST, CIFAR-10, your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from cga_lightning.cli.extras import tools

TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
DATASETS = ("digits", *TORCHVISION, "image_folder")


class Images(NamedTuple):
    """Images `[n, channels, side, side]` and their classes `[n]`."""

    images: Tensor
    labels: Tensor

    def dataset(self) -> TensorDataset:
        """The same as (image, label) pairs."""
        return TensorDataset(self.images, self.labels)


def load(name: str, root: str | None = None, download: bool = False) -> tuple[Images, Images]:
    """Train and test images of one of `DATASETS`; all but the digits lie in the folder `root`.

    Raises:
        FileNotFoundError: they are not there.
    """
    if name == "digits":
        return digits()
    if name == "image_folder":
        return image_folder(root or ".")
    return from_torchvision(name, root or ".", download)


def digits() -> tuple[Images, Images]:
    """1,347 train and 450 test images of 8 x 8 pixels; the split is the same every time."""
    with tools("The digits"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels.reshape(-1, 1, 8, 8), labels, test_size=0.25, random_state=0, stratify=labels)
    train, test, train_labels, test_labels = map(torch.from_numpy, parts)
    return _standardized(train, train_labels, test, test_labels)


def mnist(root: str, download: bool = False) -> tuple[Images, Images]:
    """60,000 train and 10,000 test images of 28 x 28 pixels."""
    return from_torchvision("mnist", root, download)


def from_torchvision(name: str, root: str, download: bool = False) -> tuple[Images, Images]:
    """Train and test images of one of `TORCHVISION`, from torchvision's folder layout.

    Raises:
        FileNotFoundError: they are not in `root`, and `download` is False or did not succeed.
    """
    with tools(TORCHVISION[name]):
        from torchvision import datasets  # only here: importing it takes seconds
    kind = TORCHVISION[name]
    try:
        train, test = (getattr(datasets, kind)(root, train=train, download=download) for train in (True, False))
    except (RuntimeError, OSError) as error:
        tried = f"The download failed ({str(error).splitlines()[0]})" if download else "Pass --download to fetch it"
        raise FileNotFoundError(f"There is no {kind} in {root!r}, or it is not complete. {tried}.") from error
    return _standardized(_pixels(train), torch.as_tensor(train.targets), _pixels(test), torch.as_tensor(test.targets))


def image_folder(root: str) -> tuple[Images, Images]:
    """Train and test images of the folders train/ and test/ in `root`, with one folder of image files per class.

    All are of one size, in colors.

    Raises:
        FileNotFoundError: one of them is not there, or has no images.
    """
    with tools("image_folder"):
        from torchvision.datasets import ImageFolder
    try:
        train, test = (_decoded(ImageFolder(str(Path(root, part)))) for part in ("train", "test"))
    except OSError as error:
        raise FileNotFoundError(
            f"image_folder needs {root}/train and {root}/test, with one folder of image files per class: {error}"
        ) from error
    return _standardized(*train, *test)


def _decoded(folder: Any) -> tuple[Tensor, Tensor]:
    pixels = np.stack([np.asarray(image) for image, _ in folder])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(folder.targets)


def _pixels(dataset: Any) -> Tensor:
    """`[n, channels, side, side]`; torchvision has gray images without channels, colors in the last dimension."""
    data = torch.as_tensor(dataset.data)
    return data.unsqueeze(1) if data.ndim == 3 else data.permute(0, 3, 1, 2)


def _standardized(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> tuple[Images, Images]:
    """Both shifted and scaled by the mean and the standard deviation of every channel of the train pixels."""
    std, mean = torch.std_mean(train.float(), dim=(0, 2, 3), keepdim=True)
    return (
        Images(train.float().sub_(mean).div_(std).contiguous(), train_labels),
        Images(test.float().sub_(mean).div_(std).contiguous(), test_labels),
    )
