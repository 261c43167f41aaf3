"""scikit-learn's multi-layer perceptrons, by skl2onnx.  Start reading at `SklearnImporter.read`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from onnx import ModelProto

from graphprune.archives import check_archive
from graphprune.errors import InvalidModelError, UsageError
from graphprune.extras import require
from graphprune.shape_inference import InputShapes

from .base import Importer, has_suffix, is_from
from .naming import name_initializers

PICKLES = (".pkl", ".pickle", ".joblib")


class SklearnImporter(Importer):
    """An estimator from Python code or a `.skops` file; a classifier's outputs are its labels and probabilities."""

    name: ClassVar[str] = "sklearn"

    def accepts(self, source: object) -> bool:
        """By class or suffix; pickles are recognised in order to be refused with an explanation."""
        return is_from(source, "sklearn") or has_suffix(source, ".skops", *PICKLES)

    def read(self, source: Any, shapes: InputShapes) -> ModelProto:
        """Convert.  Raises InvalidModelError where skl2onnx cannot."""
        if has_suffix(source, *PICKLES):
            raise InvalidModelError(
                f"{source}: loading a pickle runs whatever code is in it, so it is not read; save the model with skops.io.dump"
            )
        skl2onnx = require("skl2onnx", "sklearn")
        model = _loaded(Path(source)) if isinstance(source, str | Path) else source
        if not hasattr(model, "n_features_in_"):
            raise UsageError(f"{type(model).__qualname__} is not a fitted estimator")
        sample = np.zeros((1, model.n_features_in_), np.float32)
        options = {"zipmap": False} if hasattr(model, "classes_") else None
        try:
            result: ModelProto = skl2onnx.to_onnx(model, sample, options=options)
        except Exception as error:
            raise InvalidModelError(f"skl2onnx cannot convert {type(model).__qualname__}: {error}") from error
        for kind in ("coefs_", "intercepts_"):
            arrays = [np.asarray(array, np.float32) for array in getattr(model, kind, ())]
            name_initializers(result, [(f"{kind}.{k}", array) for k, array in enumerate(arrays)])
        return result


def _loaded(path: Path) -> Any:
    check_archive(path)
    skops_io = require("skops.io", "sklearn")
    try:
        own = [name for name in skops_io.get_untrusted_types(file=path) if name.startswith("sklearn.neural_network.")]
        return skops_io.load(path, trusted=own)
    except Exception as error:
        raise InvalidModelError(f"{path}: skops cannot load it: {error}") from error
