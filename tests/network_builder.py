"""Building random networks: values with known shapes, weights, nodes.  Start reading at `Builder`."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

Draw = Callable[[st.SearchStrategy[Any]], Any]
Shape = tuple[int, ...]

BATCH = 2
LARGEST = 4096
"""No value has more elements than this."""


class Builder:
    """A network under construction."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.dynamic = draw(st.booleans())
        self.shapes: dict[str, Shape] = {}
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.silenced = False
        """Whether activations that a weight has just written are summed over without a weight."""
        self.summed = False
        """Whether any activation is summed over: the independent oracle has no weight to zero there."""

    # ---- choices -------------------------------------------------------------------------------

    def choose(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def channels(self, most: int = 8, step: int = 1) -> int:
        """A number of channels, a multiple of `step`; small networks have some that can go."""
        return int(self.choose([k * step for k in (4, 6, 3, 8, 5, 7, 2, 10, 12, 1) if k * step <= most] or [step]))

    def coin(self) -> bool:
        return bool(self.draw(st.booleans()))

    def divisor(self, *sizes: int) -> int:
        return int(self.choose([k for k in range(1, min(sizes) + 1) if all(size % k == 0 for size in sizes)]))

    def pick(self, ranks: tuple[int, ...], fits: Callable[[Shape], bool] = lambda shape: True) -> str | None:
        """A value of one of the ranks, mostly a recent one."""
        names = [name for name, shape in self.shapes.items() if len(shape) in ranks and fits(shape)]
        return self.choose(names[::-1][:6]) if names else None

    # ---- parts ---------------------------------------------------------------------------------

    def weight(self, *shape: int, scale: float | None = None, positive: bool = False) -> str:
        name = f"w{len(self.weights)}"
        spread = 1 / np.sqrt(max(1, prod(shape[1:]))) if scale is None else scale
        array = self.rng.standard_normal(shape) * spread + 0.1 * spread
        self.weights[name] = (np.abs(array) + 0.3 if positive else array).astype(np.float32)
        return name

    def integers(self, *values: int) -> str:
        """A constant; exporters merge equal ones, so half of the time an equal one is read again."""
        made = np.asarray(values, np.int64)
        equal = [name for name, array in self.weights.items() if array.dtype == np.int64 and np.array_equal(array, made)]
        if equal and self.coin():
            return equal[0]
        name = f"k{len(self.weights)}"
        self.weights[name] = made
        return name

    def vector(self, size: int) -> str:
        """A vector of weights, perhaps one that another node reads as well."""
        equal = [name for name, array in self.weights.items() if name.startswith("w") and array.shape == (size,)]
        return self.choose(equal) if equal and self.number(0, 3) == 3 else self.weight(size, scale=0.5)

    def add(self, operator: str, inputs: list[str], shape: Shape, keep: bool = True, **attributes: Any) -> str:
        """Append a node; with `keep` its result may be read by later nodes."""
        return self.add_many(operator, inputs, [shape], keep, **attributes)[0]

    def add_many(self, operator: str, inputs: list[str], shapes: list[Shape], keep: bool = True, **attributes: Any) -> list[str]:
        position = len(self.nodes)
        names = [f"v{position}_{k}" if k else f"v{position}" for k in range(len(shapes))]
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"n{position}", **attributes))
        if keep:
            self.shapes.update(zip(names, shapes, strict=True))
        return names

    def target(self, *sizes: int) -> str:
        """A Reshape target, with the batch as written, copied or left open."""
        shape = list(sizes)
        if self.dynamic or self.coin():
            shape[0] = 0
        elif self.coin():
            shape[self.number(0, len(shape) - 1)] = -1
        return self.integers(*shape)

    def model(self, outputs: list[str]) -> ModelProto:
        batch = "N" if self.dynamic else BATCH
        values = {
            name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *self.shapes[name][1:]])
            for name in [name for name in self.shapes if name.startswith("x")] + outputs
        }
        for name in outputs:
            if self.shapes[name][0] != BATCH:
                values[name].type.tensor_type.ClearField("shape")
        inputs = [value for name, value in values.items() if name.startswith("x")]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "random", inputs, [values[name] for name in outputs], tensors)
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)
