"""A ResNet-18 and a MobileNetV2 (torchvision's), trained on Fashion-MNIST.  Start reading at `trained`."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import classifiers
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training import train


def build(name: str) -> nn.Module:
    """The network by name, with random weights."""
    models = classifiers.torchvision().models
    if name == "resnet18":
        return models.resnet18(num_classes=10)
    model = models.mobilenet_v2(num_classes=10, width_mult=0.5, dropout=0.0)
    model.features[0][0].stride = (1, 1)
    model.features[2].conv[1][0].stride = (1, 1)
    return model


def images(array: np.ndarray) -> Tensor:
    """Three equal channels, standardised."""
    return ((torch.from_numpy(array).float() / 255 - 0.286) / 0.353)[:, None].repeat(1, 3, 1, 1)


def reestimated(model: nn.Module, x: Tensor) -> nn.Module:
    """The same with BatchNormalization statistics of these images."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        for k in range(0, len(x), 256):
            model(x[k : k + 256])
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of right answers."""
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(x[k : k + 250]).argmax(1) == y[k : k + 250]).sum()) for k in range(0, len(x), 250))
    return hits / len(x)


def shifted(batch: Tensor) -> Tensor:
    """Shifts by up to two pixels, and flips."""
    batch = F.pad(batch, [2, 2, 2, 2])
    dx, dy = torch.randint(0, 5, (2,)).tolist()
    batch = batch[:, :, dy : dy + 28, dx : dx + 28]
    return batch.flip(3) if torch.rand(()) < 0.5 else batch


def trained(name: str, data: Mapping[str, np.ndarray], epochs: int = 12) -> nn.Module:
    """The network, trained on `x_train` and `y_train` (uint8 images of 28 x 28); some five minutes on two cores.

    BatchNormalization statistics are taken from the images without shifts and flips in the end, so that re-estimation after
    pruning repairs pruning and nothing else.
    """
    x, y = images(data["x_train"]), torch.from_numpy(data["y_train"].astype(np.int64))
    torch.manual_seed(0)
    model = build(name)
    descent = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    train(model, x, y, epochs, descent, 0.2, shifted)
    return reestimated(model, x)
