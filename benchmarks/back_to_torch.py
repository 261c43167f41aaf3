"""Prune networks with random weights and apply the plans to the torch modules that they came from.

    python benchmarks/back_to_torch.py [--target macs=0.6] [--normalization kept] [NAME...]

Prints for each network: whether the user's own module was shrunk in place, the largest difference between its outputs and those
of the pruned ONNX model (relative to their scale), parameters before and after, and the time that going back took.  Needs torch,
torchvision, onnxscript and transformers 5; nothing is downloaded.  Start reading at `main`.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import classifiers
import torch
import transformers_sweep
from torch import nn

import graphprune
from graphprune.errors import GraphpruneError

TORCHVISION = ("resnet50", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16", "convnext_tiny")
TRANSFORMERS = ("bert", "llama")


def build(name: str) -> tuple[nn.Module, Any]:
    """A network in evaluation mode, and what its forward is called with."""
    torch.manual_seed(0)
    if name not in transformers_sweep.MODELS:
        model, image = classifiers.build(name)
        for parameter in model.parameters():  # some heads begin as zeros, which would prove nothing
            parameter.data.add_(0.01 * torch.randn_like(parameter))
        return model, (image,)
    model, inputs = transformers_sweep.MODELS[name]()
    model.config.use_cache = False
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval(), inputs


def size(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(each.numel() for each in model.parameters())


def line(name: str, target: str, normalization: str) -> str:
    """One network, there and back."""
    model, inputs = build(name)
    before = size(model)
    result = graphprune.prune((model, inputs), targets=[target], normalization=normalization, align=1)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            applied = graphprune.apply_to_torch(model, result, example_inputs=inputs)
    except GraphpruneError as error:
        return f"{name}: FAILED {type(error).__name__}: {error}"
    how = "in place" if applied.module is model else f"from the graph ({applied.reason})"
    kept = f"{before / 1e6:.2f}M to {size(applied.module) / 1e6:.2f}M parameters"
    return f"{name}: {how}, max error {applied.max_error:.1e}, {kept}, {time.perf_counter() - start:.0f} s"


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*TORCHVISION, *TRANSFORMERS])
    parser.add_argument("--target", default="macs=0.6")
    parser.add_argument("--normalization", default="pin", choices=["pin", "kept"])
    arguments = parser.parse_args()
    for name in arguments.names:
        print(line(name, arguments.target, arguments.normalization), flush=True)


if __name__ == "__main__":
    main()
