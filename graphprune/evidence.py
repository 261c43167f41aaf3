"""What criteria see: for a group, its weights and what flows through it.

A criterion never learns what operator it looks at.  `Evidence.weights` gives matrices of (units x everything else);
`Evidence.reads` gives the linear maps that read the group, each with the moments of what it reads.  Start reading at `Read`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from . import registry
from .calibration import Calibration
from .cost import CostModel
from .errors import CalibrationError
from .gradients import ByWeight, averaged, batch_curvatures, batch_gradients
from .graph import Array
from .groups import Group, Indices, Member
from .inference import Analysis
from .labels import Ids
from .linear import Linear
from .model_file import fits_message
from .repairing import Patient
from .runtime import on_samples, session
from .samples import Runs, sample_count
from .weights import Vector, Weights, scored_members

Wide = NDArray[np.float64]
Cells = Callable[[Array, Array], Array]
"""From a weight and what was found for it, elementwise."""

WIDEST = 6144
"""Linear maps with more columns than this are left out: their covariance would not fit."""


QUICK_REPAIR = "obs"
"""What networks that are tried are repaired with, since what a layer can make up for is no loss: it needs no further run."""

SAMPLES = 256
"""At most so many samples measure what a branch matters (`Evidence.removal_errors`)."""

TRIED_MACS = 2 * 10**11
"""At most so much work for one network that is tried, if that is a sample at least."""

RIVALS = 4
"""So many branches are tried in each round."""

MOMENT_BYTES = 2**30
"""Moments that are held at a time."""


@dataclass(frozen=True)
class Read:
    """One block of a linear map that reads a group: results = rows @ matrix.

    Column j of the rows belongs to unit `unit[j]` of the group, or to none of it where that is -1.
    """

    unit: Ids
    matrix: Wide
    """[columns, results], in the scale of the sum that the results go into."""
    mean: Wide
    """[columns]: the mean of each column of the rows."""
    covariance: Wide
    """[columns, columns]: of the rows around their mean."""
    total: float
    """The variance of the sum that the results go into (of the results, if they go into none), over all channels."""

    @cached_property
    def variance(self) -> Wide:
        """[columns]."""
        return np.asarray(np.maximum(np.diagonal(self.covariance), 0))

    @property
    def square(self) -> Wide:
        """[columns]: the mean square of each column."""
        return np.asarray(self.variance + self.mean**2)


@dataclass
class Evidence:
    """Everything that passes may look at."""

    analysis: Analysis
    weights: Weights
    calibration: Calibration | None = None
    _errors: dict[bytes, float] = field(default_factory=dict)
    """What `error_keeping` measured, by a hash of what was present: searches come by the same network more than once."""
    _outputs: dict[int, dict[str, Array]] = field(default_factory=dict)
    """The outputs of the whole network, by the number of samples."""

    @classmethod
    def of(cls, analysis: Analysis, calibration: Calibration | None = None) -> Evidence:
        """The evidence for one analysis."""
        return cls(analysis, Weights(analysis.graph, analysis.ledger.numbers), calibration)

    @cached_property
    def readers(self) -> dict[str, list[tuple[Linear, Ids]]]:
        """For each group the linear nodes that contract it, with the unit of each channel of what they read (-1: none)."""
        labels = self.analysis.ledger.labels
        group_of, unit_of = (np.full(len(labels), -1, np.int32) for _ in range(2))
        for number, group in enumerate(self.analysis.groups):
            group_of[group.labels] = number
            unit_of[group.labels] = np.arange(group.size, dtype=np.int32)
        found: dict[str, list[tuple[Linear, Ids]]] = {group.id: [] for group in self.analysis.groups}
        for node in self.calibration.linears.values() if self.calibration else ():
            axes = dict(self.analysis.free_axes(node.data))
            rank = len(self.analysis.ledger.values.get(node.data) or ())
            ids = axes.get(node.data_axis % rank) if rank else None
            if ids is None or node.carries or node.columns > WIDEST or len(ids) != int(node.channels().max()) + 1:
                continue
            for leaf in labels.leaves(ids).T:
                for number in np.unique(group_of[leaf][group_of[leaf] >= 0]).tolist():
                    units = np.where(group_of[leaf] == number, unit_of[leaf], -1).astype(np.int32)
                    found[self.analysis.groups[number].id].append((node, units))
        return found

    def batches(self) -> Iterator[list[Group]]:
        """The groups in the order of the network, as many at a time as moments of what reads them fit into memory.

        The moments are there when a batch is given out: the network runs once in all, but for large networks.
        """
        batch: list[Group] = []
        wanted: dict[tuple[object, ...], Linear] = {}
        for group in self.analysis.decided:
            more = wanted | {node.view: node for node, _ in self.readers[group.id]}
            if batch and sum(moment_bytes(node) for node in more.values()) > MOMENT_BYTES:
                yield self._prepared(batch)
                batch, more = [], {node.view: node for node, _ in self.readers[group.id]}
            batch, wanted = [*batch, group], more
        yield self._prepared(batch)

    def _prepared(self, groups: list[Group]) -> list[Group]:
        if self.calibration is not None:
            self.calibration.forget()
            nodes = {node.node: node for group in groups for node, _ in self.readers[group.id]}
            self.calibration.gather(nodes.values())
        return groups

    @cached_property
    def gradient_sizes(self) -> ByWeight:
        """The mean over the batches of |g|, with the gradient g of the loss (`graphprune.gradients`); empty without samples."""
        return averaged(self._gradients(), np.abs)

    @cached_property
    def gradient_squares(self) -> ByWeight:
        """The mean over the batches of g ** 2; empty without samples."""
        return averaged(self._gradients(), np.square)

    @cached_property
    def curvatures(self) -> ByWeight:
        """The mean over the batches of H g, with the Hessian H of the loss; empty without samples."""
        return averaged(batch_curvatures(self.calibration)) if self.calibration else {}

    def changes(self, group: Group) -> Wide | None:
        """[batches, units]: the sum of w * g over the weights that produce a unit (that read it, where none does)."""
        return self._changes.get(group.id)

    @cached_property
    def _changes(self) -> dict[str, Wide]:
        found: dict[str, list[Wide]] = defaultdict(list)
        for gradients in self._gradients():
            for group in self.analysis.decided:
                members = _members_in(gradients, group)
                ours = [member for member in members if member.role == "producer"] or members
                if ours:
                    found[group.id].append(self._total(group, ours, gradients, np.multiply))
        return {name: np.stack(sums) for name, sums in found.items()}

    def _gradients(self) -> Iterator[ByWeight]:
        return batch_gradients(self.calibration) if self.calibration else iter(())

    def summed_weights(self, group: Group, found: ByWeight, cells: Cells) -> Wide | None:
        """For each unit the sum of `cells(weight, found[its name])` over its weights that are in `found`."""
        members = _members_in(found, group)
        return self._total(group, members, found, cells) if members else None

    def _total(self, group: Group, members: list[Member], found: ByWeight, cells: Cells) -> Wide:
        values = [(member, cells(self._weight(member), found[member.tensor])) for member in members]
        return np.asarray(np.sum([self.weights.unit_sums(group, *each) for each in values], axis=0), np.float64)

    def _weight(self, member: Member) -> Array:
        weight = self.analysis.graph.constant(member.tensor)
        assert weight is not None
        return weight

    def maps(self, group: Group) -> list[tuple[Array, Ids]]:
        """What is read of a group on some samples: [samples, channels, ...] with the unit of each channel."""
        if self.calibration is None:
            return []
        found: dict[str, tuple[Array, Ids]] = {}
        for node, units in self.readers[group.id]:
            ours = units >= 0
            value = np.moveaxis(self.calibration.some_values[node.data], node.data_axis, 1)
            found.setdefault(node.data, (value[:, ours], units[ours]))
        return list(found.values())

    @cached_property
    def removal_errors(self) -> dict[str, float]:
        """How much further the outputs move when a branch leaves after all that matter less; by the group that it leaves with.

        Greedy and lazy: in each round the branch leaves that moves the outputs least, and at most `RIVALS` are tried anew (Minoux
        1978).  Mean squares over the variance of the outputs; never less than for the branch before.
        """
        gone: dict[str, list[int]] = {}
        found: dict[str, float] = {}
        total = last = 0.0
        names = [residual.group.id for residual in self.analysis.residuals] if self.calibration else []
        waiting = {name: self.error_keeping({name: []}) for name in names}
        while waiting:
            rivals = sorted(waiting, key=lambda name: waiting[name])[:RIVALS]
            for tried, name in enumerate(rivals if gone else ()):
                waiting[name] = self.error_keeping({**gone, name: []}) - total
                if waiting[name] <= min(waiting[other] for other in rivals[tried:]):
                    break
            best = min(rivals, key=lambda name: waiting[name])
            increase = waiting.pop(best)
            total, gone[best] = total + increase, []
            last = found[best] = max(increase, last)
            self._tick(len(found) / len(names))
        return found

    def _tick(self, share: float) -> None:
        if self.calibration is not None:
            self.calibration.tick(share)

    def error_keeping(self, keep: Mapping[str, list[int]], repair: str = "", samples: int = SAMPLES) -> float:
        """How far the outputs move when these groups keep only these units: mean square over the variance of the outputs.

        With the spec of a `repair` the network is repaired before, unless the moments of all layers do not fit into memory.
        Infinite where nothing would be left of some axis.  Raises CalibrationError where the outputs are no finite numbers.
        """
        present = self.analysis.present(keep)
        key = f"{repair} {samples} ".encode() + sha256(present.tobytes()).digest()
        if key not in self._errors:
            self._errors[key] = self._error_of(present, repair, samples)
        return self._errors[key]

    def error_curve(self, group: Group, order: Indices, points: int) -> tuple[Indices, Vector]:
        """How many units left, from none to all that may in up to `points` even steps of this order, and the error then."""
        most = group.size if group in self.analysis.may_leave else group.size - 1
        steps = np.unique(np.rint(np.linspace(0, most, points + 1)).astype(int))
        return steps, np.array([self.error_keeping({group.id: sorted(order[gone:].tolist())}) for gone in steps])

    def _error_of(self, present: NDArray[np.bool_], repair: str, samples: int) -> float:
        if self.analysis.emptied_axes(present):
            return float("inf")
        rewrite = registry.load("rewrite", "shrink")
        model = rewrite.shrink(self.analysis, present)
        if repair and self.calibration is not None and self._has_all_moments:
            kept_of = rewrite.kept_indices(self.analysis, present)
            registry.make("repair", repair).repair(Patient(self.analysis, present, model, kept_of, self.calibration))
        return relative_error(self._some_outputs(samples), outputs_of(model, self._some_runs(samples)))

    @cached_property
    def _has_all_moments(self) -> bool:
        """Gathers the moments of all linear maps, in one run so that they do not depend on what is asked for first."""
        nodes = list(self.calibration.linears.values()) if self.calibration else []
        fits = sum(map(moment_bytes, nodes)) <= MOMENT_BYTES
        if self.calibration is not None and fits:
            self.calibration.gather(nodes)
        return fits

    @cached_property
    def _macs(self) -> int:
        return sum(CostModel(self.analysis).node_macs(np.ones(len(self.analysis.ledger.labels), dtype=bool)).values())

    def _some_runs(self, samples: int) -> Runs:
        """The first runs, with as many samples as this and `TRIED_MACS` allow, but one at least."""
        runs = self.calibration.runs if self.calibration else []
        counts = np.cumsum([sample_count([run]) for run in runs])
        return runs[: int(np.searchsorted(counts, min(samples, TRIED_MACS // max(1, self._macs)))) + 1]

    def outputs_tell(self, samples: int) -> bool:
        """Whether `error_keeping` can measure, in a time that goes with that of one run: above 2 GB weights go over the disk."""
        if self.calibration is None or not fits_message(self.analysis.graph.model):
            return False
        try:
            return bool(self._some_outputs(samples))
        except CalibrationError:
            return False

    def _some_outputs(self, samples: int) -> dict[str, Array]:
        assert self.calibration is not None
        if samples not in self._outputs:
            self._outputs[samples] = outputs_of(self.calibration.runnable, self._some_runs(samples))
        outputs = self._outputs[samples]
        unfit = [name for name, array in outputs.items() if not np.isfinite(array).all()]
        if unfit:
            raise CalibrationError(f"output {unfit[0]!r} is not finite on the calibration samples; check their scale")
        if not outputs:
            raise CalibrationError("how far outputs move cannot be measured: none holds floating-point numbers; use other passes")
        return outputs

    def summed_maps(self, group: Group, values: Callable[[Array], Wide]) -> Wide | None:
        """For each unit the sum of `values(maps)`, one for each channel, over all `maps` that are read of it."""
        return _per_unit(group, [(unit, values(maps)) for maps, unit in self.maps(group)])

    def reads(self, group: Group) -> list[Read]:
        """The linear maps that read a group, block by block; empty without calibration data."""
        if self.calibration is None:
            return []
        reads: list[Read] = []
        for node, units in self.readers[group.id]:
            weight = self.analysis.graph.constant(node.weight)
            assert weight is not None
            gain = self.calibration.tail(node).gain[node.result_channels()]
            matrix = node.matrix(np.asarray(weight, np.float64)) * gain[:, None, :]
            moments, total = self.calibration.moments(node), self.calibration.variance(node)
            for block, channels in enumerate(node.channels()):
                unit = units[channels]
                if (unit >= 0).any():
                    reads.append(Read(unit, matrix[block], moments.mean[block], moments.covariance(block), total))
        return reads

    def completed(self, group: Group, scores: Vector) -> Vector:
        """The scores, with others for units that no linear map reads: those of units with weights about as large."""
        unread = np.ones(group.size, dtype=bool)
        for _, units in self.readers[group.id]:
            unread[units[units >= 0]] = False
        if not unread.any() or unread.all():
            return scores
        squares = np.mean([self.weights.power_sums(group, member, 2) for member in scored_members(group)], axis=0)
        places = [(squares[~unread] < square).mean() for square in squares[unread]]
        filled = np.array(scores, np.float64)
        filled[unread] = np.quantile(filled[~unread], places)
        return filled

    def summed_reads(self, group: Group, values: Callable[[Read], Wide]) -> Wide | None:
        """For each unit the sum of `values(read)`, one for each column, over the linear maps that read it."""
        return _per_unit(group, [(read.unit, values(read)) for read in self.reads(group)])


def outputs_of(model: ModelProto, runs: Runs) -> dict[str, Array]:
    """The floating-point outputs on all runs, sample after sample."""
    with on_samples():
        active = session(model)
        names = [value.name for value in active.get_outputs()]
        results = [dict(zip(names, active.run(names, feeds), strict=True)) for feeds in runs]
    floats = [name for name in names if np.asarray(results[0][name]).dtype.kind == "f"]
    return {name: np.concatenate([np.ravel(result[name]) for result in results]).astype(np.float64) for name in floats}


def relative_error(wanted: dict[str, Array], given: dict[str, Array]) -> float:
    """The mean squared error over the variance, summed over the outputs; 1 for one of another size, which hangs on the data."""
    pairs = [(array, given[name]) for name, array in wanted.items()]
    return float(sum(np.mean((a - b) ** 2) / max(float(a.var()), 1e-30) if a.size == b.size else 1.0 for a, b in pairs))


def _members_in(found: ByWeight, group: Group) -> list[Member]:
    return [member for member in scored_members(group) if member.tensor in found]


def _per_unit(group: Group, parts: list[tuple[Ids, Wide]]) -> Wide | None:
    """Values added up for the unit that each belongs to, those of none left out; None without any part."""
    sums = [np.bincount(unit[unit >= 0], values[unit >= 0], minlength=group.size) for unit, values in parts]
    return np.asarray(np.sum(sums, axis=0), np.float64) if sums else None


def moment_bytes(node: Linear) -> int:
    """What the moments of a node's rows take."""
    return 8 * node.blocks * node.columns**2
