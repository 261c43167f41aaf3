"""Is it the model's fault?  What ONNX and ONNX Runtime say about a model that graphprune stumbled over.

Start reading at `unsound`.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from .errors import GraphpruneError, first_line
from .model_file import read_model
from .normalize import checkable


def unsound(path: Path) -> str | None:
    """Why the standard or the runtime refuses an ONNX file, in one line; None where both take it, or where it is none."""
    from .runtime import session

    if path.suffix != ".onnx" or not path.is_file():
        return None
    try:
        model = read_model(path)
        onnx.checker.check_model(checkable(model), full_check=True)
        session(model, optimize=False)
    except GraphpruneError as error:
        return str(error)
    except Exception as error:  # the exceptions of both libraries have no common base
        return f"{path}: not a valid ONNX model: {first_line(error)}"
    return None
