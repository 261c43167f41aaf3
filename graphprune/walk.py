"""Running a model piece by piece over all samples, so that weights can be changed on the way.

A repair pass fits a layer to what reaches it in the pruned and already repaired network.  A `Walk` advances through the nodes in
order and keeps only the values that later nodes read (or that the pass asked for); large ones lie in files.  Start reading at
`Walk.advance_to`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper

from .errors import CalibrationError
from .graph import Array, node_reads
from .runtime import on_samples, session
from .samples import Runs

MEMORY = 2**30
"""Values beyond this many bytes lie in temporary files."""


class Walk:
    """One model under way over samples; close it (or use it in a `with` statement) to remove its temporary files."""

    def __init__(self, model: ModelProto, runs: Runs) -> None:
        self.model = model
        self.position = 0
        self.runs = runs
        self._values: dict[str, list[Array]] = {name: [run[name] for run in runs] for name in runs[0]}
        self._reads = [node_reads(node) for node in model.graph.node]
        self._producers = {name: position for position, node in enumerate(model.graph.node) for name in node.output}
        self._last = {name: position for position, read in enumerate(self._reads) for name in read}
        self._kept: set[str] = set()
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._folder = tempfile.TemporaryDirectory(prefix="graphprune-walk-")
        self._held = 0
        self._files = 0

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary files."""
        self._values.clear()
        self._folder.cleanup()

    def values(self, name: str) -> list[Array]:
        """A value, one array for each batch.  Raises KeyError where it is not known (yet, or any more)."""
        return self._values[name]

    def knows(self, name: str) -> bool:
        """Whether a value has been computed and is still held."""
        return name in self._values

    def advance_past(self, value: str, keep: Iterable[str] = ()) -> None:
        """Run all nodes up to the one that writes `value`; of values that no later node reads, hold only those in `keep`."""
        self.advance_to(self._producers[value] + 1, keep)

    def advance_to(self, end: int, keep: Iterable[str] = ()) -> None:
        """Run all nodes before position `end`; of values that no later node reads, hold only those in `keep`.

        Raises CalibrationError where the folder for temporary files has too little room.
        """
        self._kept = set(keep)
        if end > self.position:
            self._run_nodes(end)
        self._drop()

    def _run_nodes(self, end: int) -> None:
        nodes = range(self.position, end)
        written = {name for position in nodes for name in self.model.graph.node[position].output if name}
        read = set().union(*(self._reads[position] for position in nodes))
        keep = [name for name in sorted(written) if self._last.get(name, -1) >= end or name in self._kept]
        self.position = end
        if keep:
            inputs = sorted((read - written) & set(self._values))
            piece = self._piece(nodes, inputs, keep, read)
            self._run(piece, inputs, keep)

    def _piece(self, nodes: range, inputs: list[str], keep: list[str], read: set[str]) -> ModelProto:
        piece = ModelProto(ir_version=self.model.ir_version)
        piece.opset_import.extend(self.model.opset_import)
        piece.functions.extend(self.model.functions)
        piece.graph.name = "piece"
        piece.graph.node.extend(self.model.graph.node[position] for position in nodes)
        piece.graph.initializer.extend(self._weights[name] for name in sorted(read & set(self._weights)))
        for name in inputs:
            array = self._values[name][0]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            piece.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * array.ndim))
        piece.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in keep)
        return piece

    def _run(self, piece: ModelProto, inputs: list[str], keep: list[str]) -> None:
        for name in keep:
            self._values[name] = []
        with on_samples():
            active = session(piece)
            for number in range(len(self.runs)):
                feeds = {name: self._values[name][number] for name in inputs}
                for name, array in zip(keep, active.run(keep, feeds), strict=True):
                    self._values[name].append(self._placed(array))

    def _placed(self, array: Array) -> Array:
        if self._held + array.nbytes <= MEMORY or array.dtype.kind not in "fiu" or not array.size:
            self._held += array.nbytes
            return array
        self._files += 1
        path = Path(self._folder.name) / str(self._files)
        try:
            array.tofile(path)  # half the time of writing to a map, which meets its pages one by one
        except OSError as error:
            text = f"{path.parent}: no room for what layers give on the calibration samples ({array.nbytes} bytes more: {error})"
            raise CalibrationError(f"{text}; set TMPDIR to a folder with more, or give fewer samples") from error
        return np.memmap(path, array.dtype, "r", shape=array.shape)

    def _drop(self) -> None:
        for name in [name for name in self._values if self._last.get(name, -1) < self.position and name not in self._kept]:
            for array in self._values.pop(name):
                if isinstance(array, np.memmap):
                    Path(str(array.filename)).unlink(missing_ok=True)
                else:
                    self._held -= array.nbytes
