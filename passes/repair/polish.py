"""Output matching: gradient descent on all weights at once, without labels.  Start reading at `Polish.repair`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import chain, islice, repeat
from math import inf, isfinite
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from onnx import TensorProto

from graphprune.differentiable import Differentiable, InSinglePrecision
from graphprune.extras import need
from graphprune.repairing import Patient
from graphprune.samples import Runs, Samples, fixed_batch, sample_count
from graphprune.variation import variation

from .base import Repair

Tensor = Any
Loss = Callable[[Tensor, Tensor], Tensor]
Distance = Literal["auto", "square", "divergence"]


@dataclass(frozen=True)
class Course:
    """How to train; a batch has at most so many samples, and about so many positions of sequences."""

    steps: int
    epochs: int
    rate: float
    inner: float
    vary: float
    batch: int = 32
    positions: float = inf

    def samples(self, runs: Runs) -> int:
        """The samples in a batch."""
        longest = max((array.shape[1] for array in runs[0].values() if array.ndim > 1), default=1)
        return max(1, int(min(self.batch, self.positions / max(1, longest))))


VALUES = Course(steps=1024, epochs=40, rate=1e-3, inner=20.0, vary=0.5)
PREDICTIONS = Course(steps=2000, epochs=200, rate=3e-3, inner=1.0, vary=0.5, positions=1024)
"""What was best on image classifiers and on a language model (docs/accuracy.md): predictions want many small batches."""

HELD = 16
"""One in so many samples is not trained on, and tells how far to go."""

WAY = (0.25, 0.5, 0.75, 1.0)
"""Places between the weights before and after that are tried."""

INTEGERS = {TensorProto.INT32, TensorProto.INT64}
SEQUENCE_RANK = 3


@dataclass(frozen=True)
class Polish(Repair):
    """Moves all weights of the pruned network towards what the original gives, by gradients (Hinton et al. 2015).

    Matched are the float outputs and, `inner` times as much, the mean over the sums behind every layer (FitNets, Romero et al.
    2015), each relative to its variance.  With `distance` "divergence" outputs are taken for logits of classes, such as the next
    token, and matched by what they predict; "auto" does so with the outputs of language models (`positions_predicted`).  About
    `vary` of each sample is made up (`graphprune.variation`).  Adam in at most `steps` batches and `epochs` rounds, one-cycle
    learning rate up to `rate`; a batch has at most `batch` samples, and no more than a run (graphprune.samples.run_size).
    Samples that were held back say how far the weights go (`WAY`), if anywhere.  What is None is what suits the distance
    (`VALUES`, `PREDICTIONS`).  Needs torch.
    """

    name: ClassVar[str] = "polish"
    extra: ClassVar[str] = "torch"
    distance: Distance = "auto"
    steps: Annotated[int, Ge(1)] | None = None
    epochs: Annotated[int, Ge(1)] | None = None
    rate: Annotated[float, Gt(0)] | None = None
    batch: Annotated[int, Ge(1)] | None = None
    inner: Annotated[float, Ge(0)] | None = None
    vary: Annotated[float, Ge(0), Le(1)] | None = None

    def repair(self, patient: Patient) -> None:
        """Train on the calibration samples; the original is the teacher."""
        torch = need("torch")
        predicted = self.predicted(patient)
        course = self.course(bool(predicted))
        teacher, student = InSinglePrecision(patient.original), InSinglePrecision(patient.pruned)
        matching = _Matching(patient, teacher, student, course.inner, predicted)
        weights = {name: student.weights[name] for name in patient.trainable if name in student.weights}
        before = {name: weight.clone() for name, weight in weights.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        batches = _Batches(patient, course.samples(patient.calibration.runs))
        vary = variation(teacher, next(iter(batches)), predicted, course.vary)
        steps = min(course.steps, course.epochs * len(batches))
        descent = torch.optim.Adam(weights.values(), lr=course.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(descent, course.rate, total_steps=steps, pct_start=0.1)
        for step, feeds in enumerate(islice(chain.from_iterable(repeat(batches)), steps)):
            descent.zero_grad()
            matching.distance(vary(feeds, batches.rng)).backward()
            descent.step()
            schedule.step()
            patient.tick((step + 1) / steps)
        for name, weight in _best(before, weights, lambda: sum(matching.error(feeds) for feeds in batches.held)).items():
            patient.set_weight(name, weight.numpy())

    def predicted(self, patient: Patient) -> set[str]:
        """The outputs that are matched by what they predict."""
        if self.distance == "auto":
            return positions_predicted(patient)
        return {value.name for value in patient.graph.outputs} if self.distance == "divergence" else set()

    def course(self, predicts: bool) -> Course:
        """How this network is trained."""
        course = PREDICTIONS if predicts else VALUES
        named: dict[str, Any] = {each.name: getattr(self, each.name, None) for each in fields(course)}
        return replace(course, **{key: value for key, value in named.items() if value is not None})


def _best(before: Mapping[str, Tensor], after: Mapping[str, Tensor], error: Callable[[], float]) -> dict[str, Tensor]:
    """The weights on the way from `before` to `after` with the least error, which is that of what is put into `after`."""
    torch = need("torch")
    end = {name: weight.detach().clone() for name, weight in after.items()}

    def at(share: float) -> float:
        with torch.no_grad():
            for name, weight in after.items():
                weight.copy_(before[name].lerp(end[name], share) if share else before[name])
        return error()

    errors = {share: at(share) for share in (0.0, *WAY)}
    best = min(errors, key=lambda share: errors[share] if isfinite(errors[share]) else inf)
    return {name: before[name].lerp(end[name], best) if best else before[name] for name in after}


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
        inner = [_relative(*self._visible(name, given[name], wanted[name])) for name in self.seen]
        return self._outer(given, wanted) + self.inner * sum(inner) / max(1, len(inner))

    def error(self, feeds: Samples) -> float:
        """How far the outputs are from the teacher's."""
        with need("torch").no_grad():
            outer = self._outer(self.student(feeds), self.teacher(feeds))
            return float(outer or self.distance(feeds))  # no output may be of floats

    def _outer(self, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        pairs = zip(self.teacher.outputs, self.student.outputs, strict=True)
        return sum(self._loss(a)(given[b], wanted[a]) for a, b in pairs if wanted[a].is_floating_point())

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
    """The samples in random order, but those held back; run by run where the inputs prescribe what a run is."""

    def __init__(self, patient: Patient, size: int) -> None:
        self.runs = patient.calibration.runs
        self.rng = np.random.default_rng(patient.calibration.seed)
        shapes = [{name: array.shape[1:] if array.ndim else None for name, array in run.items()} for run in self.runs]
        mixed = not fixed_batch(patient.graph) and all(each == shapes[0] and None not in each.values() for each in shapes)
        self.joined = {name: np.concatenate([run[name] for run in self.runs]) for name in self.runs[0]} if mixed else None
        self.size = min(size, sample_count(self.runs[:1])) if mixed else 1
        order = self.rng.permutation(sample_count(self.runs) if mixed else len(self.runs))
        self.others, self.own = np.split(order, [len(order) // HELD])

    def __len__(self) -> int:
        return _parts(self.own, self.size)

    def __iter__(self) -> Iterator[Samples]:
        return self._batches(self.rng.permutation(self.own))

    @property
    def held(self) -> Iterator[Samples]:
        """The samples that are not trained on; all, where there are too few."""
        return self._batches(self.others if len(self.others) else self.own)

    def _batches(self, numbers: NDArray[np.int64]) -> Iterator[Samples]:
        for some in np.array_split(numbers, _parts(numbers, self.size)):
            yield {name: array[some] for name, array in self.joined.items()} if self.joined else self.runs[int(some[0])]


def _parts(numbers: NDArray[np.int64], size: int) -> int:
    """How many batches of nearly equal size samples make: what varies little among few would count for much."""
    return max(1, -(-len(numbers) // size))
