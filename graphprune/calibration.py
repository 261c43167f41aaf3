"""The calibration engine: runs a network over samples and gathers what passes ask for.

One run serves all passes.  For each linear node (`graphprune.linear`) it gathers the first and second moments of the rows that
the node multiplies, from a bounded number of random positions, and the variance of the sum that its result goes into.  Start
reading at `Calibration.gather`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from .branches import with_branches
from .errors import CalibrationError
from .graph import Array, Graph, operator_name, with_outputs
from .linear import Linear, Rows
from .node_view import NodeView
from .operators import operator_table
from .runtime import on_samples, session
from .samples import Runs, Samples, sample_count
from .tails import Tail, tail_of

RUN_BYTES = 2**28
"""Activations that are held at a time."""

ROWS_PER_COLUMN = 40
"""Rows gathered for each column of a linear node: enough for a covariance that is well conditioned."""

MOST_ROWS, LEAST_ROWS = 2**17, 2**16

BLOCK_ROWS = 1024
"""Rows that are multiplied together, of several runs if need be: to add up a product costs as much as some hundred rows of it."""

MOST_PRODUCTS = 2**40
"""Multiplications for the moments of one node: half a minute on two cores.  Only nodes with thousands of columns get there."""

Tick = Callable[[float], None]
"""Called with the share of the work that is done."""

Wide = NDArray[np.float64]


@dataclass
class Moments:
    """Sums over what rows have beside a pivot [blocks, columns]: `total`, of that shape, and `outer` [blocks, columns, columns].

    The pivot is the mean of the first rows: products of large numbers would hide a small spread.
    """

    rows: int
    pivot: Wide
    total: Wide
    outer: Wide

    @classmethod
    def empty(cls, blocks: int, columns: int) -> Moments:
        """Nothing seen yet."""
        return cls(0, np.zeros((blocks, columns)), np.zeros((blocks, columns)), np.zeros((blocks, columns, columns)))

    def add(self, rows: Rows) -> None:
        """Take in rows [blocks, n, columns]."""
        if not self.rows and rows.shape[1]:
            self.pivot = rows.mean(axis=1).astype(np.float64)
        self.rows += rows.shape[1]
        beside = rows - self.pivot.astype(np.float32)[:, None, :]
        self.total += beside.sum(axis=1, dtype=np.float64)
        self.outer += np.matmul(beside.transpose(0, 2, 1), beside)

    @property
    def mean(self) -> Wide:
        """[blocks, columns]."""
        return self.pivot + self.total / max(1, self.rows)

    def covariance(self, block: int) -> Wide:
        """[columns, columns] of one block, shrunk towards its diagonal where rows are few (Ledoit and Wolf 2004).

        With fewer rows than columns every column looks like a combination of others: nothing would seem to be lost.
        """
        mean = self.total[block] / max(1, self.rows)
        found = self.outer[block] / max(1, self.rows) - np.outer(mean, mean)
        doubt = len(mean) / (len(mean) + max(1, self.rows))
        return np.asarray((1 - doubt) * found + doubt * np.diag(np.diagonal(found)))


class Block:
    """Rows of several runs, with whatever goes with them, until there are enough to be multiplied together."""

    def __init__(self) -> None:
        self._parts: list[tuple[Rows, ...]] = []
        self._rows = 0

    def add(self, *parts: Rows) -> None:
        """Take in arrays [blocks, n, any], all with the same rows."""
        self._parts.append(parts)
        self._rows += parts[0].shape[1]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was taken in."""
        return not self._parts

    @property
    def is_full(self) -> bool:
        """Whether there are enough."""
        return self._rows >= BLOCK_ROWS

    def taken(self) -> tuple[Rows, ...]:
        """All that was taken in, joined; the block is empty then."""
        parts, self._parts, self._rows = self._parts, [], 0
        return parts[0] if len(parts) == 1 else tuple(np.concatenate(each, axis=1) for each in zip(*parts, strict=True))


@dataclass
class Spread:
    """Sums over everything but the channels: for the variance of a value."""

    rows: int = 0
    total: Wide | float = 0.0
    squares: Wide | float = 0.0

    def add(self, value: Array, axis: int) -> None:
        """Take in a value with channels along `axis`."""
        flat = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]).astype(np.float64)
        self.rows += len(flat)
        self.total = self.total + flat.sum(axis=0)
        self.squares = self.squares + np.square(flat).sum(axis=0)

    @property
    def variance(self) -> float:
        """The variance of each channel, summed over the channels."""
        mean = np.asarray(self.total) / max(1, self.rows)
        return float(np.maximum(np.asarray(self.squares) / max(1, self.rows) - mean**2, 0).sum())


@dataclass
class Calibration:
    """A network with samples to run it on."""

    graph: Graph
    runs: Runs
    seed: int = 0
    tick: Tick = lambda share: None
    labels: Array | None = None
    """The classes of the samples, where they are known; only gradients look at them."""
    _moments: dict[tuple[object, ...], Moments] = field(default_factory=dict)
    _spreads: dict[str, Spread] = field(default_factory=dict)
    _tails: dict[int, Tail] = field(default_factory=dict)

    @cached_property
    def linears(self) -> dict[int, Linear]:
        """The linear nodes by position."""
        return linear_nodes(self.graph)

    @property
    def runnable(self) -> ModelProto:
        """The network as ONNX Runtime can run it."""
        return with_branches(self.graph.model)

    @cached_property
    def some_values(self) -> Samples:
        """What each linear node reads in the first run."""
        names = list(dict.fromkeys(node.data for node in self.linears.values()))
        return next(iter(run_with(self.graph, names, self.runs[:1])))

    def gather(self, linears: Iterable[Linear]) -> None:
        """Gather the moments of several nodes in one run over the samples."""
        nodes = [node for node in linears if node.view not in self._moments or self.tail(node).total not in self._spreads]
        if nodes:
            _Run(self, nodes).run()

    def forget(self) -> None:
        """Give the memory of all moments back."""
        self._moments.clear()

    def copy(self) -> Calibration:
        """One that starts from what was gathered: which rows are drawn next then depends on no other job's draws."""
        return replace(self, _moments=dict(self._moments), _spreads=dict(self._spreads), _tails=dict(self._tails))

    def moments(self, node: Linear) -> Moments:
        """The moments of a node's rows."""
        self.gather([node])
        return self._moments[node.view]

    def variance(self, node: Linear) -> float:
        """The variance of the sum that a node's result goes into (of its result, if it goes into none)."""
        self.gather([node])
        return self._spreads[self.tail(node).total].variance

    def tail(self, node: Linear) -> Tail:
        """What becomes of a node's result."""
        if node.node not in self._tails:
            self._tails[node.node] = tail_of(self.graph, node)
        return self._tails[node.node]


class _Run:
    """One run over the samples for some nodes."""

    def __init__(self, calibration: Calibration, nodes: list[Linear]) -> None:
        self.calibration = calibration
        self.moments = {node.view: node for node in nodes if node.view not in calibration._moments}
        totals = [(calibration.tail(node).total, node) for node in nodes]
        self.spreads = {name: node for name, node in totals if name not in calibration._spreads}
        self.blocks = {view: Block() for view in self.moments}
        self.rng = np.random.default_rng(calibration.seed)

    def run(self) -> None:
        """Gather everything."""
        own, total = self.calibration, sample_count(self.calibration.runs)
        taps = list(dict.fromkeys([*(node.data for node in self.moments.values()), *self.spreads]))
        with np.errstate(over="ignore", invalid="ignore"):
            for number, values in enumerate(run_with(own.graph, taps, own.runs)):
                self._add(values, total)
                own.tick((number + 1) / len(own.runs))
            for view, block in self.blocks.items():
                if not block.is_empty:
                    self._multiply(view)
        for view, node in self.moments.items():
            if not np.isfinite(own._moments[view].outer).all():
                raise CalibrationError(
                    f"what {node.data!r} holds on the calibration samples is not finite or too large; check their scale"
                )

    def _add(self, values: Samples, total: int) -> None:
        for view, node in self.moments.items():
            data = values[node.data]
            picks = node.picks(node.result_shape(data.shape), rows_per_sample(node, total), self.rng)
            self.blocks[view].add(node.rows(data, picks))
            if self.blocks[view].is_full:
                self._multiply(view)
        for name, node in self.spreads.items():
            self.calibration._spreads.setdefault(name, Spread()).add(values[name], node.result_axis)

    def _multiply(self, view: tuple[object, ...]) -> None:
        (rows,), moments = self.blocks[view].taken(), self.calibration._moments
        if view not in moments:
            moments[view] = Moments.empty(rows.shape[0], rows.shape[2])
        moments[view].add(rows)


def run_with(graph: Graph, names: list[str], runs: Runs) -> Iterator[Samples]:
    """The named values, outputs and inputs of each run.  Raises CalibrationError where ONNX Runtime cannot run the model."""
    inputs = {value.name for value in graph.inputs}
    with on_samples():
        active = session(
            with_outputs(with_branches(graph.model), (name for name in names if name not in inputs), graph.element_types)
        )
        outputs = [value.name for value in active.get_outputs()]
        for feeds in runs:
            yield dict(zip(outputs, active.run(outputs, feeds), strict=True)) | feeds


def linear_nodes(graph: Graph) -> dict[int, Linear]:
    """The nodes of the main graph that are linear maps, by position."""
    main = {node.name for node in with_branches(graph.model).graph.node}
    found: dict[int, Linear] = {}
    for position, node in enumerate(graph.nodes):
        entry = operator_table().get(operator_name(node))
        if entry is not None and entry.linear is not None and node.name in main:
            view = entry.linear(NodeView(graph, position))
            if view is not None:
                found[position] = view
    return found


def rows_per_sample(node: Linear, samples: int) -> int:
    """How many rows to take of each sample."""
    wanted = min(MOST_ROWS, max(LEAST_ROWS, ROWS_PER_COLUMN * node.columns), MOST_PRODUCTS // (node.blocks * node.columns**2))
    return max(1, -(-wanted // max(1, samples)))
