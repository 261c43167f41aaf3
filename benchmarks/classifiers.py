"""torchvision's convolutional classifiers with seeded random weights.  Start reading at `build`.

Needs torch, torchvision and onnxscript (benchmarks/README.md says how to install them).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

FAMILIES = (
    "alexnet", "vgg", "resnet", "resnext", "wide_resnet", "densenet", "squeezenet", "inception_v3", "googlenet",
    "mobilenet", "shufflenet", "mnasnet", "efficientnet", "regnet", "convnext",
)  # fmt: skip

_LIBRARY: list[torch.library.Library] = []


def torchvision() -> Any:
    """Torchvision from a wheel without its compiled operators: they are declared first, so that it can be imported."""
    if not _LIBRARY:
        spec = importlib.util.find_spec("torchvision")
        if spec is None or spec.origin is None:
            raise SystemExit("torchvision is not installed: pip install --no-deps torchvision==0.28.0 pillow")
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        text = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
        names = set(re.findall(r'register_meta\(\s*"(\w+)"', text)) | set(re.findall(r"torchvision(?:::|\.)(\w+)", text))
        for name in sorted(names - {"nms"}):
            library.define(f"{name}(Tensor x) -> Tensor")
        _LIBRARY.append(library)
    import torchvision

    return torchvision


def names() -> list[str]:
    """All convolutional classifiers, small ones first."""
    models = torchvision().models
    found = [name for name in models.list_models(module=models) if name.startswith(FAMILIES)]
    return sorted(found, key=lambda name: models.get_model_weights(name).DEFAULT.meta["num_params"])


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model in evaluation mode and an input; statistics and zero biases are random, so that nothing is equal by chance."""
    torch.manual_seed(0)
    model = network(name).eval()
    randomise(model)
    size = 299 if name == "inception_v3" else 224
    return model, torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def network(name: str, **options: Any) -> nn.Module:
    """A network of torchvision as it starts; two of them would take long to draw weights of their own."""
    slow = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    model: nn.Module = torchvision().models.get_model(name, weights=None, **slow, **options)
    return model


def randomise(model: nn.Module) -> None:
    """What layers start with at 0 or 1 becomes random."""
    with torch.no_grad():
        for module in model.modules():
            _randomise(module)


def _randomise(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d):
        for tensor, low, spread in ((module.running_var, 0.5, 1.0), (module.weight, 0.5, 1.0)):
            tensor.copy_(low + spread * torch.rand_like(tensor))
        module.running_mean.copy_(0.1 * torch.randn_like(module.running_mean))
        module.bias.copy_(0.1 * torch.randn_like(module.bias))
    elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None and not module.bias.any():
        module.bias.copy_(0.05 * torch.randn_like(module.bias))
    elif isinstance(getattr(module, "layer_scale", None), nn.Parameter):
        module.layer_scale.copy_(0.5 + torch.rand_like(module.layer_scale))
