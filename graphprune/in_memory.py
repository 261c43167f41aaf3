"""Models that a caller has in memory: what of them is taken as it is, and what is copied.

Start reading at `borrowed`.
"""

from __future__ import annotations

from onnx import ModelProto, TensorProto

from .errors import InvalidModelError
from .external import entries_of, is_external, is_known
from .graph import copy_model
from .lent import Lent, is_lent
from .model_file import LARGE, SIZED, all_tensors, byte_count, check_declared, load_external, tensors_of
from .opsets import carry_notes


def check_at_hand(model: ModelProto) -> None:
    """Refuse weights in files that `graphprune.model_file.read_model` has not looked at, and tensors that ONNX does not know.

    The files may be anywhere.  Raises InvalidModelError.
    """
    tensors = [*all_tensors(model.graph), *(each for function in model.functions for each in tensors_of(function.node))]
    for tensor in tensors:
        check_declared(tensor, "the model")
    for tensor in filter(is_external, tensors):
        location = entries_of(tensor).get("location", "")
        if not is_known(location):
            raise InvalidModelError(
                f"the data of tensor {tensor.name!r} is in the file {location!r}, which was not read with the model; give the "
                "path of the model, or load its external data first (onnx.load does)"
            )


def borrowed(model: ModelProto) -> tuple[ModelProto, list[Lent]]:
    """A copy of a model that names the large weights of the model, and these, for the caller to keep.

    The model must not change until they are read (`owned`).  Raises InvalidModelError for weights that are not at hand.
    """
    check_at_hand(model)
    result, lent = copy_model(model, without=["initializer"]), list[Lent]()
    for tensor in model.graph.initializer:
        stub = result.graph.initializer.add()
        sized = tensor.data_type in SIZED and tensor.HasField("raw_data") and not is_external(tensor)
        if not sized or byte_count(tensor) < LARGE:
            stub.CopyFrom(tensor)
            continue
        lent.append(Lent(tensor, byte_count(tensor)))
        stub.name, stub.data_type, stub.data_location = tensor.name, tensor.data_type, TensorProto.EXTERNAL
        stub.dims.extend(tensor.dims)
        stub.external_data.add(key="location", value=lent[-1].location)
        carry_notes(tensor, stub)
    return result, lent


def owned(model: ModelProto) -> ModelProto:
    """The same model, with the weights read that it names of one in memory."""
    for tensor in model.graph.initializer:
        if is_lent(entries_of(tensor).get("location", "")):
            load_external(tensor)
    return model
