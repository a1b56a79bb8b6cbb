"""Half of a vision transformer's neurons go while transformers' Trainer trains it.

``python examples/loops/trainer_loop.py`` takes about ten seconds and downloads nothing.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from digits_data import digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import prunekit as pk
from prunekit.recover.loops.trainer import PruningCallback

CONFIG = ViTConfig(
    image_size=8,
    patch_size=2,
    num_channels=1,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    num_labels=10,
    initializer_range=0.1,
)


class Images(Dataset):
    """One split as the Trainer reads it."""

    def __init__(self, split: str) -> None:
        self.images, self.labels = digits()[split]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def trainer(directory: str, callback: PruningCallback, *, epochs: float = 8, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        model=ViTForImageClassification(CONFIG),
        args=TrainingArguments(
            output_dir=directory,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            warmup_steps=10,
            save_strategy="no",
            eval_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
            **settings,
        ),
        train_dataset=Images("train"),
        eval_dataset=Images("validation"),
        compute_metrics=lambda given: {
            "accuracy": float((given.predictions.argmax(-1) == given.label_ids).mean())
        },
        callbacks=[callback],
    )


def shrinking(model: torch.nn.Module, steps: int) -> pk.Shrinking:
    """Two cuts, in the first half of the training."""
    example = {"pixel_values": digits()["train"][0][:4]}
    return pk.Shrinking(
        model,
        kwargs=example,
        steps=steps,
        sparsity=0.5,
        cycles=2,
        granularity="neuron",
    )


def main() -> dict[str, Any]:
    callback = PruningCallback(shrinking)
    with tempfile.TemporaryDirectory() as directory:
        run = trainer(directory, callback)
        run.train()
        accuracy = run.evaluate()["eval_accuracy"]
    print(f"accuracy on validation {accuracy:.3f}, widths {callback.plan.widths}")
    return {"trainer": run, "callback": callback, "accuracy": accuracy}


if __name__ == "__main__":
    main()
