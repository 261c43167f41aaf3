"""Older opsets: ONNX's version converter, and what it does not see.

The converter (onnx.version_converter) leaves the defaults of some operators to the newer version, where they mean something else.
Start reading at `upgrade`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, version_converter

from .errors import InvalidModelError, first_line
from .graph import DEFAULT_DOMAINS, attributes, free_name, operator_name, replace_nodes, subgraphs, to_array, value_names
from .shape_inference import REFUSALS

MINIMUM_OPSET = 13
"""From here on Squeeze, Unsqueeze, Split, Slice and Pad take their integers as inputs and Softmax has one axis."""

FIRST_RESIZE = 10
"""In this opset Resize, as Upsample before it, maps places by the scale alone."""

FIRST_SCAN_WITHOUT_BATCH = 9


def upgrade(model: ModelProto) -> None:
    """Bring a model to `MINIMUM_OPSET` at least, in place.  Raises InvalidModelError where that cannot be done."""
    entries = [entry for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    version = entries[0].version if entries else 0
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise InvalidModelError(f"the model has opset {version}; the installed onnx knows up to {newest}: upgrade onnx")
    if not entries or version >= MINIMUM_OPSET:
        return
    before = list(_all_nodes(model.graph))
    scans = [node for node in before if operator_name(node) == "Scan"]
    if version < FIRST_SCAN_WITHOUT_BATCH and scans:
        title = scans[0].name or scans[0].output[0]
        raise InvalidModelError(f"node {title!r}: Scan of opset 8 has a batch; convert the model to opset 9 first")
    axes = [attributes(node).get("axis", 1) for node in before if operator_name(node) == "Hardmax"]
    try:
        upgraded = version_converter.convert_version(model, MINIMUM_OPSET)
    except REFUSALS as error:
        raise InvalidModelError(
            f"cannot upgrade the model from opset {version} to {MINIMUM_OPSET}: {first_line(error)}"
        ) from error
    if axes or version <= FIRST_RESIZE:
        _mend(upgraded.graph, version, iter(axes))
    carry_over(model, upgraded)
    upgraded.ir_version = max(upgraded.ir_version, helper.find_min_ir_version_for(upgraded.opset_import, True))
    model.Clear()
    model.CopyFrom(upgraded)


# ---- what the converter does not see ------------------------------------------------------------


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph, those of bodies before the node that has them."""
    for node in graph.node:
        for body in subgraphs(node):
            yield from _all_nodes(body)
        yield node


def _mend(graph: GraphProto, version: int, axes: Iterator[int]) -> None:
    """Let operators mean what they did in a version, in place; `axes` are those of its Hardmaxes, in order.

    Nothing tells old nodes from new ones but their order: the converter gives results other names.
    """
    taken = value_names(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        for body in subgraphs(node):
            _mend(body, version, axes)
        if operator_name(node) == "Hardmax":
            nodes += _hardmax_of_rows(node, next(axes), taken)
        elif operator_name(node) == "Resize" and version <= FIRST_RESIZE:
            nodes.append(_by_scale(graph, node))
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)


def _hardmax_of_rows(node: NodeProto, axis: int, taken: set[str]) -> list[NodeProto]:
    """Hardmax before opset 13 looks at all axes from `axis` on as one."""
    sizes, flat, found = (free_name(f"{node.output[0]}_{part}", taken) for part in ("sizes", "rows", "found"))
    return [
        helper.make_node("Shape", [node.input[0]], [sizes], sizes),
        helper.make_node("Flatten", [node.input[0]], [flat], flat, axis=axis),
        helper.make_node("Hardmax", [flat], [found], found, axis=-1),
        helper.make_node("Reshape", [found, sizes], [node.output[0]], node.name),
    ]


def _by_scale(graph: GraphProto, node: NodeProto) -> NodeProto:
    """A Resize that divides places by the scale; nearest takes the place before, or, where all shrinks, the one behind."""
    modes = [attribute for attribute in node.attribute if attribute.name == "mode"]
    del node.attribute[:]
    node.attribute.extend(modes)
    node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    if not modes or modes[0].s == b"nearest":
        scales = _constant(graph, node.input[2]) if len(node.input) > 2 else None
        rounding = "floor" if scales is None else _rounding(scales, node)
        node.attribute.append(helper.make_attribute("nearest_mode", rounding))
    return node


def _rounding(scales: NDArray[Any], node: NodeProto) -> str:
    shrunk = scales[scales < 1]
    if (1 / shrunk == np.rint(1 / shrunk)).all():
        return "floor"
    if (scales > 1).any():
        raise InvalidModelError(
            f"node {node.name or node.output[0]!r}: Resize of opset 10 that shrinks one axis and enlarges another has no form in "
            "later opsets; convert the model to opset 11 first"
        )
    return "ceil"


def _constant(graph: GraphProto, name: str) -> NDArray[Any] | None:
    for tensor in graph.initializer:
        if tensor.name == name:
            return to_array(tensor)
    for node in graph.node:
        if name in node.output and node.op_type == "Constant":
            return next((to_array(each.t) for each in node.attribute if each.name == "value"), None)
    return None


# ---- names, notes -------------------------------------------------------------------------------


def carry_over(old: ModelProto, new: ModelProto) -> None:
    """Copy what a tool that rebuilt the model may have dropped: metadata, doc strings, foreign opset imports."""
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if old.HasField(field):
            setattr(new, field, getattr(old, field))
    for target, source in ((new.metadata_props, old.metadata_props), (new.graph.metadata_props, old.graph.metadata_props)):
        if not target:
            target.extend(source)
    domains = {entry.domain for entry in new.opset_import}
    new.opset_import.extend(entry for entry in old.opset_import if entry.domain not in domains)
    new.graph.name = old.graph.name
    if old.graph.doc_string:
        new.graph.doc_string = old.graph.doc_string
    if not new.graph.quantization_annotation:
        new.graph.quantization_annotation.extend(old.graph.quantization_annotation)
    for field in ("input", "output", "initializer"):
        sources = {entry.name: entry for entry in getattr(old.graph, field)}
        for entry in getattr(new.graph, field):
            if entry.name in sources:
                carry_notes(sources[entry.name], entry)
    by_output = {tuple(node.output): node for node in old.graph.node}
    for node in new.graph.node:
        source = by_output.get(tuple(node.output))
        if source is not None:
            if source.name and not node.name:
                node.name = source.name
            carry_notes(source, node)


def carry_notes(old: Any, new: Any) -> None:
    """Copy the doc string and metadata of a node, value or tensor where the new one has none."""
    if old.doc_string and not new.doc_string:
        new.doc_string = old.doc_string
    if not new.metadata_props:
        new.metadata_props.extend(old.metadata_props)
