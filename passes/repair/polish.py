"""Output matching: gradient descent on all weights at once, without labels.  Start reading at `Polish.repair`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from typing import Any, ClassVar, Literal

import numpy as np
from onnx import TensorProto

from graphprune.differentiable import Differentiable
from graphprune.extras import need
from graphprune.repairing import Patient
from graphprune.samples import Runs, Samples, fixed_batch, sample_count

from .base import Repair

Tensor = Any
Loss = Callable[[Tensor, Tensor], Tensor]
Distance = Literal["auto", "square", "divergence"]


@dataclass(frozen=True)
class Course:
    """How to train; a batch has at most so many samples, and about so many positions of sequences."""

    steps: int
    rate: float
    inner: float
    batch: int = 32
    positions: float = inf

    def samples(self, runs: Runs) -> int:
        """The samples in a batch."""
        longest = max((array.shape[1] for array in runs[0].values() if array.ndim > 1), default=1)
        return max(1, int(min(self.batch, self.positions / max(1, longest))))


VALUES = Course(steps=512, rate=1e-3, inner=20.0)
PREDICTIONS = Course(steps=1500, rate=3e-3, inner=1.0, positions=1024)
"""What was best on image classifiers and on a language model (docs/accuracy.md): predictions want many small batches."""

INTEGERS = {TensorProto.INT32, TensorProto.INT64}
SEQUENCE_RANK = 3


@dataclass(frozen=True)
class Polish(Repair):
    """Moves all weights of the pruned network towards what the original gives, by gradients (Hinton et al. 2015).

    Matched are the float outputs and, `inner` times as much, the mean over the sums behind every layer (FitNets, Romero et al.
    2015), each relative to its variance.  With `distance` "divergence" outputs are taken for logits of classes, such as the next
    token, and matched by what they predict; "auto" does so with the outputs of language models (`positions_predicted`).  Adam in
    at most `steps` batches and `epochs` rounds, one-cycle learning rate up to `rate`; a batch has at most `batch` samples, and no
    more than a run (graphprune.samples.run_size).  What is None is what suits the distance (`VALUES`, `PREDICTIONS`).  Needs
    torch.
    """

    name: ClassVar[str] = "polish"
    extra: ClassVar[str] = "torch"
    distance: Distance = "auto"
    steps: int | None = None
    epochs: int = 40
    rate: float | None = None
    batch: int | None = None
    inner: float | None = None

    def repair(self, patient: Patient) -> None:
        """Train on the calibration samples; the original is the teacher."""
        torch = need("torch")
        predicted = self.predicted(patient)
        course = self.course(bool(predicted))
        teacher, student = Differentiable(patient.original), Differentiable(patient.pruned)
        matching = _Matching(patient, teacher, student, course.inner, predicted)
        weights = {name: student.weights[name] for name in patient.trainable if name in student.weights}
        for weight in weights.values():
            weight.requires_grad_(True)
        batches = _Batches(patient, course.samples(patient.calibration.runs))
        steps = min(course.steps, self.epochs * len(batches))
        descent = torch.optim.Adam(weights.values(), lr=course.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(descent, course.rate, total_steps=steps, pct_start=0.1)
        for step, feeds in enumerate(islice((feeds for _ in range(self.epochs) for feeds in batches), steps)):
            descent.zero_grad()
            matching.distance(feeds).backward()
            descent.step()
            schedule.step()
            patient.tick((step + 1) / steps)
        for name, weight in weights.items():
            patient.set_weight(name, weight.detach().numpy())

    def predicted(self, patient: Patient) -> set[str]:
        """The outputs that are matched by what they predict."""
        if self.distance == "auto":
            return positions_predicted(patient)
        return {value.name for value in patient.graph.outputs} if self.distance == "divergence" else set()

    def course(self, predicts: bool) -> Course:
        """How this network is trained."""
        named: dict[str, Any] = {"steps": self.steps, "rate": self.rate, "batch": self.batch, "inner": self.inner}
        course = PREDICTIONS if predicts else VALUES
        return replace(course, **{key: value for key, value in named.items() if value is not None})


def positions_predicted(patient: Patient) -> set[str]:
    """Outputs that hold logits for each position: of integers read, the last sums [batch, position, class]."""
    if not any(value.type.tensor_type.elem_type in INTEGERS for value in patient.graph.inputs):
        return set()
    sums = {layer.tail.total for layer in patient.layers}
    names = {value.name for value in patient.graph.outputs}
    return {name for name in names & sums if len(patient.graph.shape(name) or ()) == SEQUENCE_RANK}


class _Matching:
    """How far the student's values are from the teacher's."""

    def __init__(
        self, patient: Patient, teacher: Differentiable, student: Differentiable, inner: float, predicted: set[str]
    ) -> None:
        self.patient, self.teacher, self.student, self.inner, self.predicted = patient, teacher, student, inner, predicted
        known = student.names & teacher.names - set(teacher.outputs)
        self.seen = {layer.tail.total: layer.tail.range for layer in patient.layers if layer.tail.total in known}

    def distance(self, feeds: Samples) -> Tensor:
        """The loss of one batch."""
        torch = need("torch")
        with torch.no_grad():
            wanted = self.teacher(feeds, [*self.teacher.outputs, *self.seen])
        given = self.student(feeds, [*self.student.outputs, *self.seen])
        pairs = zip(self.teacher.outputs, self.student.outputs, strict=True)
        outer = [self._loss(a)(given[b], wanted[a]) for a, b in pairs if wanted[a].is_floating_point()]
        inner = [_relative(*self._visible(name, given[name], wanted[name])) for name in self.seen]
        return sum(outer) + self.inner * sum(inner) / max(1, len(inner))

    def _loss(self, output: str) -> Loss:
        return divergence if output in self.predicted else _relative

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
