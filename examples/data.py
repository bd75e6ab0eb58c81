"""Images of handwritten digits, as tensors: scikit-learn's (nothing to download) or MNIST."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import TensorDataset


class Images(NamedTuple):
    """Images `[n, 1, side, side]` and their classes `[n]`."""

    images: Tensor
    labels: Tensor

    def dataset(self) -> TensorDataset:
        """The same as (image, label) pairs."""
        return TensorDataset(self.images, self.labels)


def digits() -> tuple[Images, Images]:
    """1,347 train and 450 test images of 8 x 8 pixels; the split is the same every time."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels.reshape(-1, 8, 8), labels, test_size=0.25, random_state=0, stratify=labels)
    train, test, train_labels, test_labels = map(torch.from_numpy, parts)
    return _standardized(train, train_labels, test, test_labels)


def mnist(root: str, download: bool = False) -> tuple[Images, Images]:
    """60,000 train and 10,000 test images of 28 x 28 pixels, from torchvision's folder layout.

    Raises:
        FileNotFoundError: they are not in `root`, and `download` is False or did not succeed.
    """
    from torchvision.datasets import MNIST  # only here: importing it takes seconds

    try:
        train, test = (MNIST(root, train=train, download=download) for train in (True, False))
    except (RuntimeError, OSError) as error:
        tried = (
            f"The download failed ({str(error).splitlines()[0].rstrip(':')})"
            if download
            else "Pass --download to fetch it"
        )
        raise FileNotFoundError(f"There is no MNIST in {root!r} (expected {root}/MNIST/raw). {tried}.") from error
    return _standardized(train.data, train.targets, test.data, test.targets)


def _standardized(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> tuple[Images, Images]:
    """Both shifted and scaled by the mean and the standard deviation of the train pixels."""
    std, mean = torch.std_mean(train.float())
    return (
        Images(train.float().sub_(mean).div_(std).unsqueeze(1), train_labels),
        Images(test.float().sub_(mean).div_(std).unsqueeze(1), test_labels),
    )
