"""Where weights stand in a file beside the model: on pages of their own, or as safetensors, which other tools read by name.

ONNX's external data says of each tensor from which byte on its data stands, so one file can be both (docs/ExternalData.md of the
onnx package; https://github.com/huggingface/safetensors).  Start reading at `in_safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto, numpy_helper

from .external import entries_of, is_external
from .graph import item_bits, to_array

PAGE = 4096
SMALL = 1024
"""Tensors of fewer bytes stay in the model, where shape inference looks for them."""

TYPES: dict[int, str] = {
    TensorProto.FLOAT: "F32",
    TensorProto.FLOAT16: "F16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "F64",
    TensorProto.FLOAT8E4M3FN: "F8_E4M3",
    TensorProto.FLOAT8E5M2: "F8_E5M2",
    TensorProto.INT8: "I8",
    TensorProto.INT16: "I16",
    TensorProto.INT32: "I32",
    TensorProto.UINT8: "U8",
    TensorProto.UINT16: "U16",
}
"""The types of weights that safetensors knows.

Integers of 64 bits are shapes and indices and stay in the model, as small ones of 32 bits do, which may be some.
"""

META = "__metadata__"


@dataclass(frozen=True)
class Placement:
    """The first bytes of a file, and for tensors, by their number, where their data begins; several may name the same data."""

    header: bytes
    starts: Mapping[int, int]


def as_raw(tensor: TensorProto) -> TensorProto:
    """The tensor with its numbers as bytes, whichever field they are in; text stays as it is."""
    if is_external(tensor) or tensor.HasField("raw_data") or not item_bits(tensor.data_type):
        return tensor
    result = numpy_helper.from_array(to_array(tensor), tensor.name)
    result.doc_string = tensor.doc_string
    result.metadata_props.extend(tensor.metadata_props)
    return result


def on_pages(tensors: Sequence[TensorProto], lengths: Sequence[int], sizes: Collection[str]) -> Placement:
    """Each tensor that is not small begins a page, so that it can be mapped into memory; those of the same data share theirs."""
    starts, end = {}, 0
    known: dict[object, int] = {}
    for number, (tensor, length) in enumerate(zip(tensors, lengths, strict=True)):
        if length < SMALL:
            continue
        data = (tensor.data_type, *sorted(entries_of(tensor).items())) if is_external(tensor) else number
        starts[number] = known.setdefault(data, end)
        end += -(-length // PAGE) * PAGE if starts[number] == end else 0
    return Placement(b"", starts)


def in_safetensors(tensors: Sequence[TensorProto], lengths: Sequence[int], sizes: Collection[str]) -> Placement:
    """One tensor after the other, behind a header with their names, types and shapes that fills whole pages."""
    header: dict[str, Any] = {META: {"format": "onnx"}}
    offsets, end = {}, 0
    for number, (tensor, length) in enumerate(zip(tensors, lengths, strict=True)):
        is_size = length < SMALL and (tensor.name in sizes or tensor.data_type == TensorProto.INT32)
        if tensor.data_type in TYPES and tensor.name not in header and length and not is_size:
            header[tensor.name] = {
                "dtype": TYPES[tensor.data_type],
                "shape": list(tensor.dims),
                "data_offsets": [end, end + length],
            }
            offsets[number] = end
            end += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    first = 8 + len(text)
    return Placement(len(text).to_bytes(8, "little") + text, {number: first + offset for number, offset in offsets.items()})


Layout = Callable[[Sequence[TensorProto], Sequence[int], Collection[str]], Placement]
"""From tensors, their numbers of bytes and the names of those that sizes are computed from to where they go.

Tensors without a place stay in the model.
"""

LAYOUTS: dict[str, Layout] = {"data": on_pages, "safetensors": in_safetensors}
"""The kinds of files beside a model, by their suffix."""
