"""The masked reference: the original graph with every removed index multiplied by zero right where it is contracted.

With `--normalization kept` a normalisation over pruned channels has no mask: there the reference gathers what is kept, lets the
operator run on it, and puts zeroes where channels left.  So it does with what chooses among experts (`--experts prune`); the
numbers of those chosen become the original's.  Start reading at `masked_reference`.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .branches import keep_in_branch, with_branches
from .graph import FLOATS
from .inference import Analysis
from .labels import Ids
from .site import Chosen, Contraction

Mask = NDArray[np.bool_]


def masked_reference(analysis: Analysis, present: Mask) -> ModelProto:
    """The original model, of the original size, computing what is left with only the `present` labels."""
    return with_branches(Masking(analysis, present).run())


class Masking:
    """Copies the original graph node by node and masks what each reads."""

    def __init__(self, analysis: Analysis, present: Mask) -> None:
        self.analysis = analysis
        self.graph = analysis.graph
        self.present = present
        self.model = ModelProto()
        self.model.CopyFrom(analysis.graph.model)

    def run(self) -> ModelProto:
        """The masked model."""
        masked, compacted = self._masked_inputs(), self._statistics()
        nodes: list[NodeProto] = []
        for position, original in enumerate(self.graph.nodes):
            node = NodeProto()
            node.CopyFrom(original)
            made = [mask for item, kept in masked[position] for mask in self._mask_input(node, item, kept)]
            made += self._over_kept(node, position, compacted[position]) if position in compacted else [node]
            keep_in_branch(node, made)
            nodes += made
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        return self.model

    def _masked_inputs(self) -> dict[int, list[tuple[Contraction, Mask]]]:
        masked: dict[int, list[tuple[Contraction, Mask]]] = defaultdict(list)
        for item in self.analysis.contractions:
            mask = self.analysis.index_mask(item.ids, self.present)
            if not mask.all():
                masked[item.node].append((item, mask))
        return masked

    def _statistics(self) -> dict[int, list[Ids]]:
        """The labels of the axes that a node takes statistics over, where some of them leave."""
        labels = self.analysis.ledger.labels
        taken: dict[int, list[Ids]] = {}
        for item in self.analysis.ledger.statistics:
            if not self.analysis.index_mask(item.ids, self.present).all():
                taken.setdefault(item.node, []).append(labels.find(item.ids))
        return taken

    def _mask_input(self, node: NodeProto, item: Contraction, mask: Mask) -> list[NodeProto]:
        """Let the node read its input masked; returns what masks it."""
        name = f"graphprune_mask_{item.node}_{item.input}_{item.axis}"
        like = self.graph.nodes[item.node].input[item.input]
        source, node.input[item.input] = node.input[item.input], f"{name}_result"
        if self.graph.element_type(like) in FLOATS:
            return [self._times_mask(source, like, item.axis, mask, name, f"{name}_result")]
        return self._at_zero_point(source, like, item, mask, name)

    def _at_zero_point(self, source: str, like: str, item: Contraction, mask: Mask, name: str) -> list[NodeProto]:
        """A quantised value with the zero point in the masked places; in int32, since few kernels know 8-bit types."""
        zero = item.zero or self._constant(f"{name}_zero", np.zeros((), np.int32))
        condition = self._constant(name, self._shaped(like, item.axis, mask))
        wide, point, chosen = f"{name}_wide", f"{name}_point", f"{name}_chosen"
        return [
            helper.make_node("Cast", [source], [wide], name=wide, to=TensorProto.INT32),
            helper.make_node("Cast", [zero], [point], name=point, to=TensorProto.INT32),
            helper.make_node("Where", [condition, wide, point], [chosen], name=chosen),
            helper.make_node("Cast", [chosen], [f"{name}_result"], name=name, to=self.graph.element_type(like)),
        ]

    def _over_kept(self, node: NodeProto, position: int, taken: list[Ids]) -> list[NodeProto]:
        """The node between Gathers of the kept indices and what makes its results as wide as before."""
        original = self.graph.nodes[position]
        before: list[NodeProto] = []
        after: list[NodeProto] = []
        for index, name in enumerate(original.input):
            for axis, mask in self._pruned_axes(name, taken):
                compact = f"graphprune_kept_{position}_{index}_{axis}"
                places = self._constant(f"{compact}_places", np.flatnonzero(mask))
                before.append(helper.make_node("Gather", [node.input[index], places], [compact], name=compact, axis=axis))
                node.input[index] = compact
        for index, name in enumerate(original.output):
            for axis, mask in self._pruned_axes(name, taken):
                narrow = f"graphprune_narrow_{position}_{index}_{axis}"
                wide, node.output[index] = node.output[index], narrow
                places = self._constant(f"{narrow}_places", np.where(mask, np.cumsum(mask) - 1, 0))
                spread = helper.make_node("Gather", [narrow, places], [f"{narrow}_spread"], name=f"{narrow}_spread", axis=axis)
                zeroed = self._times_mask(f"{narrow}_spread", name, axis, mask, f"{narrow}_mask", wide)
                after = [spread, zeroed, *after]
        for item in self.analysis.ledger.chosen:
            if item.node == position:
                after.append(self._numbers_of_the_original(node, item))
        return [*before, node, *after]

    def _numbers_of_the_original(self, node: NodeProto, item: Chosen) -> NodeProto:
        """What gives the numbers of all experts for those of the kept ones, which the node gives."""
        kept = np.flatnonzero(self.analysis.index_mask(item.ids, self.present))
        places = self._constant(f"graphprune_numbers_{item.node}_places", kept)
        raw = f"graphprune_numbers_{item.node}"
        node.output[:] = [raw if name == item.numbers else name for name in node.output]
        return helper.make_node("Gather", [places, raw], [item.numbers], name=raw)

    def _pruned_axes(self, name: str, taken: list[Ids]) -> list[tuple[int, Mask]]:
        """The axes of a value that are among `taken`, with what stays of them."""
        labels = self.analysis.ledger.labels
        found = []
        for axis, ids in self.analysis.free_axes(name):
            if any(np.array_equal(labels.find(ids), other) for other in taken):
                found.append((axis, self.analysis.index_mask(ids, self.present)))
        return found

    def _times_mask(self, source: str, like: str, axis: int, mask: Mask, name: str, result: str) -> NodeProto:
        """A node: `source`, a value with the rank and type of the original's value `like`, times a mask along an axis."""
        shaped, kind = self._shaped(like, axis, mask), self.graph.element_type(like)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if kind in FLOATS:
            return helper.make_node("Mul", [source, self._constant(name, shaped.astype(dtype))], [result], name=name)
        zero = self._constant(f"{name}_zero", np.zeros((), dtype))  # Mul knows few integers before opset 14
        return helper.make_node("Where", [self._constant(name, shaped), source, zero], [result], name=name)

    def _shaped(self, like: str, axis: int, mask: Mask) -> Mask:
        """The mask with trailing axes of size 1, to broadcast against the original's value `like`."""
        rank = len(self.analysis.ledger.values[like] or ())
        return mask.reshape([-1] + [1] * (rank - axis - 1))

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name
