"""Train a small network with PyTorch Lightning and prune it on the way: before, during or after training.

    python examples/lightning/prune_while_training.py

Start reading at `GradualPruning`; `main` compares three schedules.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import graphprune
from graphprune.cost import CostModel

DATA = Path(__file__).parent.parent / "fashion_mnist"
PLANS = "graphprune.plans"
SCHEDULES: dict[str, dict[int, float]] = {
    "not pruned": {},
    "before training": {0: 0.5},
    "during training": {6: 0.8, 8: 0.65, 10: 0.5},
    "after training, with fine-tuning": {15: 0.5},
}
"""Which share of the original's multiply-accumulates is left from which epoch on."""


class Classifier(lightning.LightningModule):
    """A residual network for images [n, 1, 28, 28] in 0..1, with its training; checkpoints remember how it was pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv1, self.norm1 = nn.Conv2d(24, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.conv2, self.norm2 = nn.Conv2d(48, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv3, self.norm3 = nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48)
        self.head = nn.Linear(48, 10)
        self.plans: list[str] = []
        """Module plans (JSON), in the order in which they were applied."""

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        logits: Tensor = self.head(F.relu(self.norm3(self.conv3(x))).mean((2, 3)))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        image, label = batch
        return F.cross_entropy(self(image), label)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        image, label = batch
        self.log("accuracy", (self(image).argmax(1) == label).double().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[PLANS] = self.plans

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Shrink a fresh module, before Lightning loads weights in the pruned shapes."""
        for plan in checkpoint.get(PLANS, [])[len(self.plans) :]:
            graphprune.module_from_plan(self, parse(plan))
            self.plans.append(plan)


def parse(plan: str) -> Any:
    """A module plan from its text."""
    from graphprune.exporters.pytorch.module_plan import parse_module_plan

    return parse_module_plan(plan)


class GradualPruning(Callback):
    """Prune a module in place at the start of some epochs.

    `schedule` maps epochs, counted from 0, to the share of the original's multiply-accumulates that is left from then on;
    `options` are those of `graphprune.prune`.  Optimisers are made anew: their momentum has the old shapes.
    """

    def __init__(self, schedule: Mapping[int, float], example: Tensor, **options: Any) -> None:
        self.schedule, self.example, self.options = dict(schedule), example, options
        self.original = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Count the original, which the shares refer to; a resumed training has it from its checkpoint."""
        self.original = self.original or CostModel(graphprune.analyze((module, (self.example,)))).original.macs

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Prune where the schedule says so."""
        if trainer.current_epoch not in self.schedule:
            return
        target = f"macs={self.original * self.schedule[trainer.current_epoch] / 1000:.3f}K"
        result = graphprune.prune((module, (self.example,)), targets=target, **self.options)
        applied = graphprune.apply_to_torch(module, result, example_inputs=(self.example,), baked_sizes="error")
        module.plans.append(applied.plan.to_json())
        trainer.strategy.setup_optimizers(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What the shares refer to."""
        return {"original": self.original}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What the shares refer to."""
        self.original = state_dict["original"]


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """700 images to train with, 300 to test with."""
    with np.load(DATA / "eval.npz") as data:
        images = torch.from_numpy(data["image"]).reshape(-1, 1, 28, 28).float() / 255
        labels = torch.from_numpy(data["labels"]).long()
    train, test = TensorDataset(images[:700], labels[:700]), TensorDataset(images[700:], labels[700:])
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=300)


def trained(schedule: Mapping[int, float], epochs: int, resume: Path | None = None, **options: Any) -> lightning.Trainer:
    """A trainer that has trained a classifier and pruned it on the way."""
    lightning.seed_everything(0, verbose=False)
    train, test = loaders()
    pruning = GradualPruning(schedule, next(iter(test))[0][:2], align=1, **options)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[pruning],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's about workers of data loaders
        trainer.fit(Classifier(), train, test, ckpt_path=resume)
    return trainer


def main(epochs: int = 20) -> None:
    """Train with each schedule and show what became of it."""
    for name, schedule in SCHEDULES.items():
        trainer = trained(schedule, epochs)
        weights = sum(parameter.numel() for parameter in trainer.lightning_module.parameters())
        print(f"{name:34}{weights:>8,} parameters   accuracy {trainer.callback_metrics['accuracy']:.1%}")


if __name__ == "__main__":
    main()
