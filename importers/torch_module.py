"""PyTorch: modules and exported programs from Python code, and the archives that `torch.export.save` writes.

Torch's own exporter does the work (`torch.onnx.export`, dynamo); parameters keep their names.  Start reading at
`TorchImporter.read`.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from onnx import ModelProto

from graphprune.archives import check_archive
from graphprune.errors import InvalidModelError, UsageError, first_line
from graphprune.extras import require
from graphprune.quiet import quiet
from graphprune.shape_inference import InputShapes

from .base import Importer, has_suffix, is_from
from .naming import name_initializers

PICKLES = (".pt", ".pth", ".ckpt", ".bin")


class TorchImporter(Importer):
    """An `nn.Module`, (module, example inputs: a tuple or, by name, a mapping), an `ExportedProgram`, or a `.pt2` archive."""

    name: ClassVar[str] = "torch"

    def accepts(self, source: object) -> bool:
        """By class or suffix; pickles are recognised in order to be refused with an explanation."""
        model = source[0] if isinstance(source, tuple) and source else source
        return is_from(model, "torch") or has_suffix(source, ".pt2", *PICKLES)

    def read(self, source: Any, shapes: InputShapes) -> ModelProto:
        """Export.  Raises InvalidModelError where torch cannot export the model, UsageError where inputs are missing."""
        if has_suffix(source, *PICKLES):
            raise InvalidModelError(
                f"{source}: loading a pickle runs whatever code is in it, so it is not read; save the model with "
                "torch.export.save as .pt2, or name a function that builds it: package.module:function"
            )
        torch = require("torch", "torch")
        require("onnxscript", "torch")
        if isinstance(source, str | Path):
            return _exported(torch, _load_archive(torch, Path(source)), (), {})
        module, inputs = source if isinstance(source, tuple) else (source, None)
        if isinstance(module, torch.export.ExportedProgram):
            return _exported(torch, module, (), {})
        if not isinstance(module, torch.nn.Module):
            raise UsageError(f"--format torch: expected an nn.Module or ExportedProgram, got {type(module).__qualname__}")
        if inputs is None and not shapes:
            raise UsageError(
                "the module is traced with example inputs: give --input-shape NAME=1,3,224,224 for each argument of forward, "
                "or let the function return (module, (inputs, ...))"
            )
        if inputs is None:
            inputs = {name: torch.randn(*shape) for name, shape in shapes.items()}
        keywords = dict(inputs) if isinstance(inputs, Mapping) else {}
        arguments = () if keywords else tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        modes = [(each, each.training) for each in module.modules()]
        try:
            return _exported(torch, module.eval(), arguments, keywords)
        finally:
            for each, training in modes:
                each.training = training


def _load_archive(torch: Any, path: Path) -> Any:
    """Load a .pt2 archive, but none that holds pickled objects."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise InvalidModelError(f"{path}: not an archive of torch.export.save")
    check_archive(path)
    constants = require("torch.export.pt2_archive.constants", "torch")
    prefixes = (constants.CUSTOM_OBJ_FILENAME_PREFIX, constants.OPAQUE_OBJ_FILENAME_PREFIX)
    with zipfile.ZipFile(path) as archive:
        pickled = [name for name in archive.namelist() if name.rpartition("/")[2].startswith(prefixes)]
    if pickled:
        raise InvalidModelError(f"{path}: holds pickled objects ({pickled[0]}), which could run any code; export it without them")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise InvalidModelError(f"{path}: torch cannot load it: {first_line(error.__cause__ or error)}") from error


def _exported(torch: Any, model: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> ModelProto:
    try:
        with quiet("torch.onnx"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own internals; what fails raises
            program = torch.onnx.export(model, arguments, kwargs=keywords or None, dynamo=True, verbose=False)
    except Exception as error:
        raise InvalidModelError(f"torch cannot export the model to ONNX: {first_line(error.__cause__ or error)}") from error
    proto: ModelProto = program.model_proto
    name_initializers(proto, _parameters(model))  # the exporter transposes the weights of linear layers and renames them
    return proto


def _parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """The parameters that numpy has a type for, by name."""
    state = model.state_dict() if callable(model.state_dict) else model.state_dict
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.element_size() in (2, 4, 8) and "bfloat16" not in str(tensor.dtype):
            yield name, tensor.detach().cpu().numpy()
