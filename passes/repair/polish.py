"""Output matching: gradient descent on all weights at once, without labels.  Start reading at `Polish.repair`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Any, ClassVar, Literal

import numpy as np

from graphprune.differentiable import Differentiable
from graphprune.extras import need
from graphprune.repairing import Patient
from graphprune.samples import Samples, fixed_batch, sample_count

from .base import Repair

Tensor = Any
Loss = Callable[[Tensor, Tensor], Tensor]
Distance = Literal["square", "divergence"]


@dataclass(frozen=True)
class Polish(Repair):
    """Moves all weights of the pruned network towards what the original gives, by gradients (Hinton et al. 2015).

    Matched are the float outputs and, `inner` times as much, the mean over the sums behind every layer (FitNets, Romero et al.
    2015), each relative to its variance.  With `distance` "divergence" outputs are taken for logits of classes, such as the next
    token, and matched by what they predict.  Adam in at most `steps` batches and `epochs` rounds, one-cycle learning rate up to
    `rate`; a batch has at most `batch` samples, and no more than a run (graphprune.samples.run_size).  Needs torch.
    """

    name: ClassVar[str] = "polish"
    extra: ClassVar[str] = "torch"
    steps: int = 512
    epochs: int = 40
    rate: float = 1e-3
    batch: int = 32
    inner: float = 20.0
    distance: Distance = "square"

    def repair(self, patient: Patient) -> None:
        """Train on the calibration samples; the original is the teacher."""
        torch = need("torch")
        teacher, student = Differentiable(patient.original), Differentiable(patient.pruned)
        matching = _Matching(patient, teacher, student, self.inner, _DISTANCES[self.distance])
        weights = {name: student.weights[name] for name in patient.trainable if name in student.weights}
        for weight in weights.values():
            weight.requires_grad_(True)
        batches = _Batches(patient, self.batch)
        steps = min(self.steps, self.epochs * len(batches))
        descent = torch.optim.Adam(weights.values(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(descent, self.rate, total_steps=steps, pct_start=0.1)
        for step, feeds in enumerate(islice((feeds for _ in range(self.epochs) for feeds in batches), steps)):
            descent.zero_grad()
            matching.distance(feeds).backward()
            descent.step()
            schedule.step()
            patient.tick((step + 1) / steps)
        for name, weight in weights.items():
            patient.set_weight(name, weight.detach().numpy())


class _Matching:
    """How far the student's values are from the teacher's."""

    def __init__(self, patient: Patient, teacher: Differentiable, student: Differentiable, inner: float, outer: Loss) -> None:
        self.patient, self.teacher, self.student, self.inner, self.outer = patient, teacher, student, inner, outer
        known = student.names & teacher.names - set(teacher.outputs)
        self.seen = {layer.tail.total: layer.tail.range for layer in patient.layers if layer.tail.total in known}

    def distance(self, feeds: Samples) -> Tensor:
        """The loss of one batch."""
        torch = need("torch")
        with torch.no_grad():
            wanted = self.teacher(feeds, [*self.teacher.outputs, *self.seen])
        given = self.student(feeds, [*self.student.outputs, *self.seen])
        pairs = zip(self.teacher.outputs, self.student.outputs, strict=True)
        outer = [self.outer(given[b], wanted[a]) for a, b in pairs if wanted[a].is_floating_point()]
        inner = [_relative(*self._visible(name, given[name], wanted[name])) for name in self.seen]
        return sum(outer) + self.inner * sum(inner) / max(1, len(inner))

    def _visible(self, name: str, given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The kept channels, clipped as all that reads them sees them."""
        torch = need("torch")
        for axis in range(wanted.dim()):
            kept = self.patient.kept_of(name, axis)
            if kept is not None:
                wanted = wanted.index_select(axis, torch.as_tensor(np.asarray(kept, np.int64)))
        low, high = self.seen[name]
        return (given, wanted) if (low, high) == (-inf, inf) else (given.clamp(low, high), wanted.clamp(low, high))


def _relative(given: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the variance around the mean of the samples."""
    spread = (wanted - wanted.mean(0)).square().sum().clamp_min(1e-12)
    return (given - wanted).square().sum() / spread


def divergence(given: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of classes, whose logits are along axis 1 of images and along the last axis otherwise."""
    torch = need("torch")
    axis = 1 if wanted.dim() > 3 else -1
    logs = [torch.nn.functional.log_softmax(each, axis) for each in (given, wanted)]
    return torch.nn.functional.kl_div(*logs, reduction="sum", log_target=True) * wanted.shape[axis] / wanted.numel()


_DISTANCES: dict[str, Loss] = {"square": _relative, "divergence": divergence}


class _Batches:
    """The samples in random order; run by run where the inputs prescribe what a run is."""

    def __init__(self, patient: Patient, size: int) -> None:
        self.runs = patient.calibration.runs
        self.size = min(size, sample_count(self.runs[:1]))
        self.rng = np.random.default_rng(patient.calibration.seed)
        shapes = [{name: array.shape[1:] if array.ndim else None for name, array in run.items()} for run in self.runs]
        self.mixed = not fixed_batch(patient.graph) and all(each == shapes[0] and None not in each.values() for each in shapes)

    def __len__(self) -> int:
        return -(-sample_count(self.runs) // self.size) if self.mixed else len(self.runs)

    def __iter__(self) -> Iterator[Samples]:
        if not self.mixed:
            yield from (self.runs[int(k)] for k in self.rng.permutation(len(self.runs)))
            return
        joined = {name: np.concatenate([run[name] for run in self.runs]) for name in self.runs[0]}
        order = self.rng.permutation(sample_count(self.runs))
        for start in range(0, len(order), self.size):
            yield {name: array[order[start : start + self.size]] for name, array in joined.items()}
