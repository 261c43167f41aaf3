"""Gradients of a loss with respect to the weights, batch by batch of the calibration samples.

With labels the loss is the cross-entropy of the first output.  Without, it is the squared distance of all float outputs to
themselves plus noise of their own spread: the gradients then sample the Gauss-Newton matrix, and no answer is needed.  Needs the
extra `torch`.  Start reading at `batch_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .calibration import Calibration
from .differentiable import Differentiable, InSinglePrecision
from .errors import CalibrationError
from .extras import need
from .graph import Array
from .samples import labelled

Tensor = Any
ByWeight = dict[str, Array]
"""An array for each float weight, in its shape."""


def batch_gradients(calibration: Calibration) -> Iterator[ByWeight]:
    """The gradient g of each batch, in one pass over the samples.

    Raises CalibrationError where an operator has no derivative or no output is a float.
    """
    torch = need("torch")
    for weights, loss in _losses(calibration):
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        yield _by_weight(weights, gradients)


def batch_curvatures(calibration: Calibration) -> Iterator[ByWeight]:
    """H g of each batch, with the Hessian H of the loss, in one pass over the samples; raises as `batch_gradients`."""
    torch = need("torch")
    for weights, loss in _losses(calibration):
        leaves = list(weights.values())
        gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        along = sum((gradient * gradient.detach()).sum() for gradient in gradients)
        yield _by_weight(weights, torch.autograd.grad(along, leaves, allow_unused=True, materialize_grads=True))


def averaged(batches: Iterable[ByWeight], of: Callable[[Array], Array] = np.asarray) -> ByWeight:
    """The mean over the batches of `of`, taken of each array."""
    means: ByWeight = {}
    for number, found in enumerate(batches, start=1):
        for name, array in found.items():
            value = of(array)
            means[name] = means[name] + (value - means[name]) / number if name in means else value
    return means


def _losses(calibration: Calibration) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The weights and, batch by batch, the loss as a function of them."""
    torch = need("torch")
    network = InSinglePrecision(calibration.runnable)
    weights = network.weights
    for weight in weights.values():
        weight.requires_grad_(True)
    noise = torch.Generator().manual_seed(calibration.seed)
    for number, (feeds, labels) in enumerate(labelled(calibration.runs, calibration.labels)):
        yield weights, _loss(network, feeds, labels, noise)
        calibration.tick((number + 1) / len(calibration.runs))


def _by_weight(weights: dict[str, Tensor], found: Iterable[Tensor]) -> ByWeight:
    return {name: value.numpy() for name, value in zip(weights, found, strict=True)}


def _loss(network: Differentiable, feeds: dict[str, Array], labels: Array | None, noise: Any) -> Tensor:
    results = [value for value in network(feeds).values() if value.is_floating_point() and value.requires_grad]
    if not results:
        raise CalibrationError("no gradients for this model: no float output depends on a float weight")
    return _distance(results, noise) if labels is None else _cross_entropy(results[0], labels)


def _distance(results: list[Tensor], noise: Any) -> Tensor:
    torch = need("torch")
    total = 0.0
    draw = partial(torch.randn, generator=noise)
    for result in results:
        still = result.detach()
        spread = still.std(correction=0).clamp_min(1e-12)
        total = total + 0.5 * ((result - still) / spread - draw(still.shape)).square().sum() / max(
            1, len(still) if still.dim() else 1
        )
    return total


def _cross_entropy(scores: Tensor, labels: Array) -> Tensor:
    torch = need("torch")
    if scores.dim() < 2:
        raise CalibrationError("labels are about classes, but the first output has one number for each sample; leave them out")
    scores = scores.flatten(1)
    if labels.dtype.kind not in "iu" or labels.size != len(scores) or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise CalibrationError(
            f"labels of the calibration samples must be one integer from 0 to {scores.shape[1] - 1} each, or be left out"
        )
    still = scores.detach()
    share = bool((still >= 0).all()) and bool(((still.sum(1) - 1).abs() < 1e-3).all())
    logs = scores.clamp_min(1e-12).log() if share else torch.log_softmax(scores, 1)
    return torch.nn.functional.nll_loss(logs, torch.as_tensor(np.asarray(labels, np.int64)).reshape(-1))
