"""Networks for small images, and a LightningModule around them. None of them has batch statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import ceil

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Classifier(pl.LightningModule):
    """An ordinary LightningModule around a network: nothing in it knows of agents."""

    def __init__(self, net: nn.Module, lr: float = 0.01, momentum: float = 0.0) -> None:
        super().__init__()
        self.net, self.lr, self.momentum = net, lr, momentum

    def forward(self, images: Tensor) -> Tensor:
        """The scores of the classes `[n, classes]`."""
        scores: Tensor = self.net(images)
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        return cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, with momentum or without."""
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)


def cnn(channels: int, side: int, classes: int = 10) -> nn.Module:
    """The network of the CGA paper: two convolutions with 32 channels, two with 64, and one linear layer."""

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]

    head = [nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, classes)]
    return nn.Sequential(*stage(channels, 32), *stage(32, 64), *head)


def lenet5(channels: int, side: int, classes: int = 10) -> nn.Module:
    """LeCun et al. 1998, with ReLU and max-pooling."""
    after = (side // 2 - 4) // 2
    if after < 1:
        raise ValueError(f"LeNet-5 needs images of at least 12 x 12 pixels, got {side} x {side}.")
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(16 * after**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )


def vgg11(channels: int, side: int, classes: int = 10) -> nn.Module:
    """Simonyan and Zisserman 2015, configuration A, with one linear layer as usual for small images."""

    def layers() -> Iterator[nn.Module]:
        inputs = channels
        for width, pool in zip((64, 128, 256, 256, 512, 512, 512, 512), (1, 1, 0, 1, 0, 1, 0, 1), strict=True):
            conv = nn.Conv2d(inputs, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            yield from (conv, nn.ReLU())
            if pool:
                yield nn.MaxPool2d(2, ceil_mode=True)  # so that 28 x 28 pixels are enough
            inputs = width

    return nn.Sequential(*layers(), nn.Flatten(), nn.Linear(512 * ceil(side / 32) ** 2, classes))


def resnet20(channels: int, side: int, classes: int = 10) -> nn.Module:
    """He et al. 2016 for CIFAR-10, with GroupNorm in place of BatchNorm."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    return nn.Sequential(
        *(_conv(channels, 16), nn.GroupNorm(8, 16), nn.ReLU()),
        *(_Residual(inputs, outputs) for inputs, outputs in pairwise(widths)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)),
    )


class _Residual(nn.Module):
    """Two convolutions beside a shortcut; half the resolution where the number of channels grows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.branch = nn.Sequential(
            *(_conv(inputs, outputs, stride), nn.GroupNorm(8, outputs), nn.ReLU()),
            *(_conv(outputs, outputs), nn.GroupNorm(8, outputs)),
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out.relu()


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": cnn,
    "lenet5": lenet5,
    "vgg11": vgg11,
    "resnet20": resnet20,
}
"""Name -> builder from the number of channels and the side of the images, and the number of classes."""
