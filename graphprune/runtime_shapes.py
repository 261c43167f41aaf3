"""Shapes of operators that ONNX does not know, as ONNX Runtime infers them for its own (com.microsoft).

Start reading at `runtime_values`.
"""

from __future__ import annotations

import re

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

ELEMENT_TYPES = {
    "float": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "double": TensorProto.DOUBLE,
    "bool": TensorProto.BOOL,
    **{
        f"{sign}int{bits}": TensorProto.DataType.Value(f"{sign.upper()}INT{bits}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def runtime_values(skeleton: ModelProto, names: set[str]) -> list[ValueInfoProto]:
    """The types of the named values of a model without weights; none where ONNX Runtime cannot load it."""
    import onnxruntime as ort

    model = ModelProto()
    model.CopyFrom(skeleton)
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(ValueInfoProto(name=name) for name in sorted(names - outputs))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # its exceptions have no common base, and shape functions pass on C++'s own; nothing learnt means pinned
        return []
    values = []
    for output in session.get_outputs():
        kind = re.fullmatch(r"tensor\((\w+)\)", output.type)
        if output.name in names and kind and kind[1] in ELEMENT_TYPES:
            shape = output.shape or None  # it says no sizes for a number, and for a value of unknown rank
            values.append(helper.make_tensor_value_info(output.name, ELEMENT_TYPES[kind[1]], shape))
    return values
