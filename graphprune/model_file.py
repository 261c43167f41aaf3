"""Reading and writing ONNX files: untrusted input, external data, atomic output.

Start reading at `read_model` and `write_model`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from .archives import check_regular
from .atomic import atomic_file
from .constants import lift_constants
from .cutting import ahead
from .errors import InvalidModelError
from .external import Pieces, entries_of, fleeting_pieces, held, is_external, may_hold, pieces, point_to
from .graph import SHAPE_SIZED, copy_fields, copy_model, element_count, item_bits, subgraphs, to_array
from .limits import grant
from .untrusted import check_message
from .weights_file import LAYOUTS, Layout, as_raw
from .wire import MalformedError, Place, assembled, outline

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes that fit one protobuf message, with some room for what is said of each weight; larger ones go to an external file."""

INNER = PROTOBUF_LIMIT
"""Bytes of weights that cannot stay in a file, since they are in bodies of nodes or in functions."""

GRAPH = 2**28
"""More than a graph without its weights takes."""

Late = Callable[[], Mapping[str, str]]
"""Gives metadata that takes long to know."""

MAPPED = 2**22
"""In files of at least so many bytes weights stay where they are."""

LARGE = 2**17
"""Bytes of a weight that is left in its file, and written in pieces."""

_SIZED_BY = ("Range", "Resize", "Upsample")
"""Operators whose results have sizes that hang on the values of floating-point operands."""

_PACKED = 4
"""The most elements that one number of a field other than raw data holds: those of 2 bits."""

SIZED = {kind for kind in TensorProto.DataType.values() if kind not in (TensorProto.UNDEFINED, TensorProto.STRING)}


def read_model(path: Path) -> ModelProto:
    """Read an ONNX file with its external data.

    Weights of more than 2 GB in all stay in their files and are mapped into memory where they are needed
    (`graphprune.graph.to_array`); their tensors then name the file by its absolute path.  So do the large ones of smaller models
    where the file is a large one (`MAPPED`), which may be the model's own.

    Raises InvalidModelError where the file is missing, not ONNX, truncated, or names external data that is missing, too short
    or outside the model's folder.
    """
    check_regular(path, InvalidModelError)
    model, places = ModelProto(), list[Place]()
    try:
        if path.stat().st_size:
            grant(path.stat().st_size)
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                places = _parsed(model, view)
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot read the model: {error.strerror}") from error
    except DecodeError as error:
        raise InvalidModelError(f"{path}: not an ONNX file, or a truncated one ({error})") from error
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        raise InvalidModelError(f"{path}: not an ONNX model: it has no graph, IR version or opset import")
    check_message(model, path)
    if any(map(is_external, tensors_of(node for node in model.graph.node if node.op_type == "Constant"))):
        lift_constants(model.graph)  # as initializers they may stay in their files
    too_large, granted, known = not fits_message(model), Counter[Path](), dict[str, Path]()
    left = {place.index for place in places}
    tensors = [*all_tensors(model.graph), *(each for function in model.functions for each in tensors_of(function.node))]
    may_stay = len(model.graph.initializer)  # they come first
    _check_inner(tensors[may_stay:], path)
    for number, tensor in enumerate(tensors):
        check_declared(tensor, path)
        if number in left:
            continue
        if tensor.data_location == TensorProto.EXTERNAL:
            source = _external_file(tensor, path, known)
            more = min(byte_count(tensor), source.stat().st_size - granted[source])  # tensors may name the same bytes
            granted[source] += more
            grant(more)
            stays = element_count(tensor) > SHAPE_SIZED if too_large else may_hold() and _worth_leaving(tensor, source)
            if stays and number < may_stay:
                point_to(tensor, held(source) if may_hold() else str(source))
                continue
            load_external(tensor, source)
        _check_size(tensor, path)
    _leave(model, places, path)
    return model


def _worth_leaving(tensor: TensorProto, file: Path) -> bool:
    return byte_count(tensor) >= LARGE and file.stat().st_size >= MAPPED


def _check_inner(tensors: Iterable[TensorProto], path: Path) -> None:
    """Refuse what would have to be read but fits no message: weights in bodies of control flow, and in functions."""
    size = 0
    for tensor in filter(is_external, tensors):
        check_declared(tensor, path)
        size += byte_count(tensor)
    if size > INNER:
        raise InvalidModelError(
            f"{path}: {size / 1e9:.1f} GB of weights are inside of branches, loops or functions, where 2 GB are the limit; "
            "make them initializers of the main graph"
        )


def _parsed(model: ModelProto, data: memoryview) -> list[Place]:
    """Parse a model; where the raw data of large initializers is that was left in a large file."""
    if len(data) >= MAPPED and may_hold():
        with suppress(MalformedError):
            text, places = outline(data, LARGE)
            model.ParseFromString(text)
            if not any(is_external(model.graph.initializer[place.index]) for place in places):
                return places
    model.ParseFromString(data)  # reads the pages in place, without a copy of the file
    return []


def _leave(model: ModelProto, places: list[Place], path: Path) -> None:
    """Let initializers name the place of their data in the model's own file, in place."""
    location = held(path) if places else ""
    for place in places:
        tensor = model.graph.initializer[place.index]
        _check_length(tensor, place.length, path)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", place.offset), ("length", place.length)):
            tensor.external_data.add(key=key, value=str(value))


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph: initializers and attributes, those of subgraphs included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from tensors_of(graph.node)


def tensors_of(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """Every tensor in the attributes of nodes, those of subgraphs included."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in [
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
                *attribute.sparse_tensors,
            ]:
                yield from (sparse.values, sparse.indices)
        for inner in subgraphs(node):
            yield from all_tensors(inner)


def _external_file(tensor: TensorProto, path: Path, known: dict[str, Path]) -> Path:
    """The file with a tensor's data, `known` by location once it was looked for.

    Raises InvalidModelError where it is not in the model's folder, or too short.
    """
    entries = entries_of(tensor)
    where = f"{path}: external data of {tensor.name!r}"
    location = entries.get("location", "")
    if location not in known:
        known[location] = _inside(path.parent.resolve(), location, where)
    target = known[location]
    needed = byte_count(tensor)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError as error:
        raise InvalidModelError(f"{where} has a malformed offset or length") from error
    if offset < 0 or length != needed or offset + length > target.stat().st_size:
        raise InvalidModelError(
            f"{where} does not fit: {needed} bytes are declared, the file {target.name} has {target.stat().st_size}"
        )
    return target


def _inside(folder: Path, location: str, where: str) -> Path:
    """The file that a location names.  Raises InvalidModelError where there is none in the folder."""
    target: Path = (folder / location).resolve()
    if not location or os.path.isabs(location) or not target.is_relative_to(folder):
        raise InvalidModelError(f"{where} points outside the model's folder ({location!r}); refusing to read it")
    if not target.is_file():
        raise InvalidModelError(f"{where} is missing: {target} does not exist")
    return target


def load_external(tensor: TensorProto, file: Path | None = None) -> None:
    """Read a tensor's data into it, in place; from the file that it names, or another."""
    if file is not None:
        point_to(tensor, str(file))
    tensor.raw_data = b"".join(_raw_pieces(tensor))
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def _raw_pieces(tensor: TensorProto, pieces: Pieces = pieces) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor's elements as ONNX stores them, some at a time."""
    if not is_external(tensor):
        yield tensor.raw_data
    elif item_bits(tensor.data_type) < 8:
        yield numpy_helper.from_array(to_array(tensor)).raw_data
    else:
        for part in pieces(tensor):
            yield part.view(np.uint8).reshape(-1).data if part.size else b""


def load_what_fits(model: ModelProto) -> ModelProto:
    """The same model, with every initializer read that is still in a file, if it then fits one message."""
    return load_weights(model) if fits_message(model) else model


def whole(model: ModelProto) -> ModelProto:
    """What code that is not ours may be given: the model, or a copy of it with every weight that is in a file read."""
    return load_what_fits(copy_model(model, without=())) if any(map(is_external, model.graph.initializer)) else model


def load_weights(model: ModelProto) -> ModelProto:
    """The same model, with every initializer read that is still in a file."""
    for tensor in model.graph.initializer:
        if is_external(tensor):
            load_external(tensor)
    return model


def serialised_size(model: ModelProto) -> int:
    """Bytes of a model with its weights, those in files included."""
    return int(model.ByteSize()) + sum(byte_count(tensor) for tensor in model.graph.initializer if is_external(tensor))


def check_declared(tensor: TensorProto, source: Path | str) -> None:
    """Raises InvalidModelError for dimensions and data types that ONNX does not know."""
    if any(size < 0 for size in tensor.dims):
        raise InvalidModelError(f"{source}: tensor {tensor.name!r} has a negative dimension")
    if tensor.data_type not in SIZED and tensor.data_type != TensorProto.STRING:
        raise InvalidModelError(f"{source}: tensor {tensor.name!r} has the unknown data type {tensor.data_type}")


def _check_size(tensor: TensorProto, path: Path) -> None:
    if tensor.HasField("raw_data"):
        _check_length(tensor, len(tensor.raw_data), path)
        return
    stored = sum(len(values) for values in (tensor.float_data, tensor.int32_data, tensor.int64_data))
    stored += len(tensor.double_data) + len(tensor.uint64_data) + len(tensor.string_data)
    if element_count(tensor) > _PACKED * stored:
        raise InvalidModelError(f"{path}: tensor {tensor.name!r} declares {element_count(tensor)} elements and holds {stored}")


def _check_length(tensor: TensorProto, held: int, path: Path) -> None:
    needed = byte_count(tensor)
    if held != needed:
        raise InvalidModelError(f"{path}: tensor {tensor.name!r} declares {needed} bytes and holds {held}")


def byte_count(tensor: TensorProto) -> int:
    """Bytes of a tensor's elements."""
    return -(-element_count(tensor) * item_bits(tensor.data_type) // 8)


def weight_bytes(model: ModelProto) -> int:
    """Bytes of all initializers."""
    return sum(byte_count(tensor) for tensor in model.graph.initializer if tensor.data_type in SIZED)


def fits_message(model: ModelProto) -> bool:
    """Whether the model can be given to a runtime in one piece, with all weights read (`serialised`)."""
    weights = weight_bytes(model)
    if weights < PROTOBUF_LIMIT - GRAPH:
        return True
    rest = copy_model(model, without=["initializer"]).ByteSize() + sum(len(each.doc_string) for each in model.graph.initializer)
    return int(weights + rest) < PROTOBUF_LIMIT


def content_hash(model: ModelProto) -> str:
    """SHA-256 of the model's serialised form, weights included; the same for equal models in files of any layout."""
    digest = hashlib.sha256()
    if fits_message(model):
        for part in serialised(model, fleeting_pieces):
            digest.update(part)
        return digest.hexdigest()
    digest.update(copy_model(model, without=["initializer"]).SerializeToString(deterministic=True))
    for tensor in map(as_raw, model.graph.initializer):
        digest.update(_without_data(tensor).SerializeToString(deterministic=True))
        for piece in _raw_pieces(tensor, fleeting_pieces):
            digest.update(piece)
    return digest.hexdigest()


def _without_data(tensor: TensorProto) -> TensorProto:
    """The tensor without the data that `_raw_pieces` gives."""
    result = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, doc_string=tensor.doc_string)
    result.metadata_props.extend(tensor.metadata_props)
    if not is_external(tensor) and not tensor.HasField("raw_data"):
        result.CopyFrom(tensor)
    return result


def write_model(model: ModelProto, path: Path, weights: str = "inside", late: Late = dict) -> list[Path]:
    """Write a model, whole or not at all; returns the files.

    `weights` "data" puts them into `NAME.data` beside it, "safetensors" into `NAME.safetensors`; "inside" leaves them in the
    model and, above 2 GB, is "data".  `late` gives further metadata, and is asked for it when the weights are written.
    Raises UsageError where the folder cannot be written.
    """
    if weights == "inside" and fits_message(model):
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            file.writelines(serialised(model, fleeting_pieces))
            file.write(metadata(late()).SerializeToString())  # messages one after the other are one with the fields of both
        return [path]
    data, layout = weights_beside(path, weights)
    with atomic_file(path) as temporary, atomic_file(data) as temporary_data:
        skeleton = _write_weights(model, temporary_data, data.name, layout)
        skeleton.MergeFrom(metadata(late()))
        temporary.write_bytes(skeleton.SerializeToString(deterministic=True))
    return [path, data]


def metadata(entries: Mapping[str, str]) -> ModelProto:
    """A model that has these entries and nothing else."""
    model = ModelProto()
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    return model


def weights_beside(path: Path, weights: str) -> tuple[Path, Layout]:
    """The file that `write_model` puts weights into where they are not in the model, and how they lie there."""
    ending = "data" if weights == "inside" else weights
    return path.with_name(f"{path.name}.{ending}"), LAYOUTS[ending]


def serialised(model: ModelProto, pieces: Pieces = pieces) -> Iterator[bytes | memoryview]:
    """The bytes that `SerializeToString(deterministic=True)` gives for a model with its weights, some at a time.

    Weights that are in files are read, as `pieces` does it, and large ones are not copied.
    """
    tensors = enumerate(model.graph.initializer)
    large = {number: tensor for number, tensor in tensors if is_external(tensor) or len(tensor.raw_data) >= LARGE}
    if not large:
        yield model.SerializeToString(deterministic=True)
        return
    skeleton = copy_model(model, without=["initializer"])
    for number, tensor in enumerate(model.graph.initializer):
        entry = skeleton.graph.initializer.add()
        copy_fields(tensor, entry, ("raw_data", "data_location", "external_data") if number in large else ())
        if number in large:
            entry.raw_data = b"0"
    lengths = {number: byte_count(tensor) for number, tensor in large.items()}
    for part in assembled(skeleton.SerializeToString(deterministic=True), lengths):
        if isinstance(part, int):
            yield from _raw_pieces(large[part], pieces)
        else:
            yield part


def _write_weights(model: ModelProto, data_path: Path, location: str, layout: Layout) -> ModelProto:
    """Write the weights into a file that will lie in `location`; returns the model that names their places there."""
    skeleton, tensors = copy_model(model, without=["initializer"]), [as_raw(tensor) for tensor in model.graph.initializer]
    lengths = [byte_count(tensor) for tensor in tensors]
    placement = layout(tensors, lengths, {name for node in model.graph.node if node.op_type in _SIZED_BY for name in node.input})
    with data_path.open("wb") as data:
        data.write(placement.header)
        for number, tensor in enumerate(tensors):
            entry = skeleton.graph.initializer.add()
            if number not in placement.starts:
                entry.CopyFrom(tensor)
                if is_external(entry):
                    load_external(entry)
                continue
            entry.CopyFrom(_without_data(tensor))
            start = placement.starts[number]
            data.write(b"\0" * (start - data.tell()))
            for piece in ahead(_raw_pieces(tensor)) if start == data.tell() else ():
                data.write(piece)
            entry.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", start), ("length", lengths[number])):
                entry.external_data.add(key=key, value=str(value))
    return skeleton
