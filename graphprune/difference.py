"""Two models compared layer by layer.  Start reading at `compare`."""

from __future__ import annotations

from dataclasses import dataclass

from .cost import Cost, CostModel
from .graph import Graph, operator_name
from .inference import Analysis, infer


@dataclass(frozen=True)
class Layer:
    """One contraction before and after; `after` is None where it is gone."""

    node: str
    operator: str
    weight_before: tuple[int, ...]
    weight_after: tuple[int, ...] | None
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class Difference:
    """All layers, and the totals."""

    layers: tuple[Layer, ...]
    before: Cost
    after: Cost


def compare(before: Graph, after: Graph) -> Difference:
    """Match the contractions of two normalised models by node name."""
    left, right = infer(before), infer(after)
    left_costs, right_costs = CostModel(left), CostModel(right)
    new = _layers(right, right_costs)
    layers = []
    for name, (operator, shape, macs) in _layers(left, left_costs).items():
        _, shape_after, macs_after = new.get(name, (operator, None, 0))
        layers.append(Layer(name, operator, shape or (), shape_after, macs, macs_after))
    return Difference(tuple(layers), left_costs.original, right_costs.original)


def _layers(analysis: Analysis, costs: CostModel) -> dict[str, tuple[str, tuple[int, ...] | None, int]]:
    present = analysis.present({})
    layers: dict[str, tuple[str, tuple[int, ...] | None, int]] = {}
    for position, macs in costs.node_macs(present).items():
        node = analysis.graph.nodes[position]
        shapes = [analysis.graph.initializers[name].dims for name in node.input if name in analysis.graph.initializers]
        layers[node.name] = (operator_name(node), tuple(shapes[0]) if shapes else (), macs)
    return layers
