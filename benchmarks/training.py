"""Training of the classifiers that some benchmarks prune.  Start reading at `train`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 128


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: int,
    descent: torch.optim.Optimizer,
    warmup: float,
    augment: Callable[[Tensor], Tensor],
) -> None:
    """Cross-entropy on augmented batches; one cycle up to the rate of `descent`, which takes the share `warmup` to get there."""
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, descent.defaults["lr"], total_steps=steps, pct_start=warmup)
    for epoch in range(epochs):
        model.train()
        start, order = time.time(), torch.randperm(len(x))
        for k in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[k : k + BATCH]
            loss = F.cross_entropy(model(augment(x[rows])), y[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {time.time() - start:.0f} s", flush=True)
