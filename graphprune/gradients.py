"""Gradients of a loss with respect to the weights, gathered over calibration samples for the criteria that ask for them.

With labels the loss is the cross-entropy of the first output.  Without, it is the squared distance of all float outputs to
themselves plus noise of their own spread: the gradients then sample the Gauss-Newton matrix, and no answer is needed.  Needs the
extra `torch`.  Start reading at `gather_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from .calibration import Calibration
from .differentiable import Differentiable
from .errors import CalibrationError
from .extras import need
from .graph import Array
from .samples import Runs, sample_count

Tensor = Any
Visit = Callable[["dict[str, Array]"], None]


@dataclass
class Gradients:
    """Means over the batches, by weight and in its shape."""

    batches: int = 0
    size: dict[str, Array] = field(default_factory=dict)
    """Of |g|."""
    square: dict[str, Array] = field(default_factory=dict)
    """Of g ** 2."""
    curved: dict[str, Array] = field(default_factory=dict)
    """Of H g, with the Hessian H of the loss."""

    def add(self, found: dict[str, tuple[Array, Array]]) -> None:
        """Take in g and H g of one batch."""
        self.batches += 1
        for name, (gradient, curved) in found.items():
            for sums, value in ((self.size, np.abs(gradient)), (self.square, gradient**2), (self.curved, curved)):
                sums[name] = sums[name] + (value - sums[name]) / self.batches if name in sums else value


def gather_gradients(calibration: Calibration, visit: Visit) -> Gradients:
    """One pass over the samples; `visit` sees the gradients of each batch.

    Raises CalibrationError where an operator has no derivative or no output is a float.
    """
    torch = need("torch")
    network = Differentiable(calibration.runnable)
    weights = network.weights
    for weight in weights.values():
        weight.requires_grad_(True)
    gathered = Gradients()
    noise = torch.Generator().manual_seed(calibration.seed)
    for number, (feeds, labels) in enumerate(_batches(calibration.runs, calibration.labels)):
        loss = _loss(network, feeds, labels, noise)
        gradients = torch.autograd.grad(
            loss, list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        along = sum((gradient * gradient.detach()).sum() for gradient in gradients)
        curved = torch.autograd.grad(along, list(weights.values()), allow_unused=True, materialize_grads=True)
        found = {
            name: (gradient.detach().numpy(), curve.numpy())
            for name, gradient, curve in zip(weights, gradients, curved, strict=True)
        }
        gathered.add(found)
        visit({name: gradient for name, (gradient, _) in found.items()})
        calibration.tick((number + 1) / len(calibration.runs))
    return gathered


def _batches(runs: Runs, labels: Array | None) -> Iterator[tuple[dict[str, Array], Array | None]]:
    start = 0
    for feeds in runs:
        end = start + sample_count([feeds])
        yield feeds, None if labels is None else labels[start:end]
        start = end


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
        total = total + 0.5 * ((result - still) / spread - draw(still.shape)).square().sum() / len(still)
    return total


def _cross_entropy(scores: Tensor, labels: Array) -> Tensor:
    torch = need("torch")
    scores = scores.flatten(1)
    if labels.dtype.kind not in "iu" or labels.size != len(scores) or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise CalibrationError(
            f"labels of the calibration samples must be one integer from 0 to {scores.shape[1] - 1} each, or be left out"
        )
    still = scores.detach()
    share = bool((still >= 0).all()) and bool(((still.sum(1) - 1).abs() < 1e-3).all())
    logs = scores.clamp_min(1e-12).log() if share else torch.log_softmax(scores, 1)
    return torch.nn.functional.nll_loss(logs, torch.as_tensor(np.asarray(labels, np.int64)).reshape(-1))
