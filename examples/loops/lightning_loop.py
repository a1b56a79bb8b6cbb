"""A convolutional network loses 60 % of its MACs in three cuts while Lightning trains it.

``python examples/loops/lightning_loop.py`` takes about ten seconds and downloads nothing.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from digits_data import digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunekit as pk
from prunekit.recover.loops.lightning import PruningCallback


class Digits(pl.LightningModule):
    """A small network, its training and its validation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self(images).argmax(-1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=96)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader(split: str, *, shuffle: bool = False) -> DataLoader:
    return DataLoader(TensorDataset(*digits()[split]), batch_size=32, shuffle=shuffle)


def shrinking(module: nn.Module, steps: int) -> pk.Shrinking:
    """Three cuts in the first half of the training, the last of them to 40 % of the MACs."""
    images = digits()["train"][0][:4]
    return pk.Shrinking(module, (images,), steps=steps, sparsity=0.6, goal="macs", cycles=3)


def trainer(callback: PruningCallback, *, epochs: int = 6, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **settings,
    )


def main() -> dict[str, Any]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    pl.seed_everything(0, verbose=False)
    module, callback = Digits(), PruningCallback(shrinking)
    run = trainer(callback)
    run.fit(module, loader("train", shuffle=True), loader("validation"))
    accuracy = float(run.callback_metrics["accuracy"])
    macs = callback.plan.after.macs / callback.plan.before.macs
    print(f"accuracy on validation {accuracy:.3f} with {macs:.0%} of the MACs")
    return {"trainer": run, "module": module, "callback": callback, "accuracy": accuracy, "macs": macs}


if __name__ == "__main__":
    main()
