"""Built-in networks and data of a comparison."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cga_lightning.cli.comparison import images, networks

PARAMETERS = {"cnn": 96_000, "lenet5": 61_706, "vgg11": 9_200_000, "resnet20": 272_000}


@pytest.mark.parametrize("channels, side", [(1, 28), (3, 32)])
@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_size_they_are_known_for(name: str, channels: int, side: int) -> None:
    net = networks.NETWORKS[name](channels, side, 10)
    assert net(torch.zeros(2, channels, side, side)).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(PARAMETERS[name], rel=0.4 if side == 32 else 0.02)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in net.modules())


def test_lenet_says_how_large_images_must_be() -> None:
    with pytest.raises(ValueError, match="at least 12 x 12 pixels, got 8 x 8"):
        networks.lenet5(1, 8)


def test_cifar_in_its_file_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5: Path(path).exists())  # not the real checksums
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": generator.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    train, test = images.load("cifar10", str(tmp_path))
    assert train.images.shape == (100, 3, 32, 32) and test.images.shape == (20, 3, 32, 32)
    torch.testing.assert_close(train.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    red = torch.from_numpy(pickle.loads((folder / "test_batch").read_bytes())["data"][0, :1024]).float().view(32, 32)
    assert torch.corrcoef(torch.stack([red.flatten(), test.images[0, 0].flatten()]))[0, 1] > 0.999
    assert train.labels[:3].tolist() == [0, 1, 2]


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no FashionMNIST in .*Pass --download to fetch it"):
        images.load("fashion_mnist", str(tmp_path))


def test_a_folder_of_images_per_class(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for place, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (10 * number, 100 * place, 7)).save(folder / f"{number}.png")
    train, test = images.load("image_folder", str(tmp_path))
    assert train.images.shape == (6, 3, 8, 8) and test.images.shape == (4, 3, 8, 8)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and test.labels.tolist() == [0, 0, 1, 1]
    assert train.images[0, 1].max() < 0 < train.images[5, 1].min()  # standardized green
