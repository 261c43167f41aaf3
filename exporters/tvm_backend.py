"""Running models by TVM, for `bench --backend tvm` and for the comparison after compiling.

Start reading at `prepare`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from graphprune.branches import with_branches
from graphprune.extras import need
from graphprune.graph import Array


def prepare(model: ModelProto, feeds: Mapping[str, Array], threads: int) -> Callable[[], object]:
    """TVM, compiled for this machine without tuning.

    The result runs the model once, with the sizes of `feeds` (a backend for `graphprune.bench`).
    Raises InvalidModelError for operators that TVM does not know, and MissingExtraError.
    """
    need("tvm")
    from graphprune.normalize import fix_input_shapes
    from graphprune.pipeline import load

    from . import tvm_module
    from .tvm_targets import target_options

    fixed = load(model).model
    fix_input_shapes(fixed, {name: list(value.shape) for name, value in feeds.items()})
    target = tvm_module.target_of(target_options("native", threads))
    module = tvm_module.scheduled(tvm_module.lowered(tvm_module.imported(with_branches(load(fixed).model)), target), target)
    return bound(tvm_module.built(module, target), feeds, threads)


def loaded(library: Any, threads: int) -> Callable[[Mapping[str, Array]], list[Array]]:
    """A function that runs a library file, or an executable, on inputs in the model's order."""

    def call(feeds: Mapping[str, Array]) -> list[Array]:
        result = bound(library, feeds, threads)()
        return list(map(_array, [result] if hasattr(result, "numpy") or _is_shape(result) else result))

    return call


def _array(value: Any) -> Array:
    """A tensor as an array; a shape is one of integers."""
    return np.array(list(value), np.int64) if _is_shape(value) else value.numpy()


def _is_shape(value: Any) -> bool:
    from tvm_ffi import Shape

    return isinstance(value, Shape)


def bound(library: Any, feeds: Mapping[str, Array], threads: int) -> Callable[[], Any]:
    """A library with inputs given to it; the result runs it once."""
    tvm = need("tvm")
    from tvm import relax

    use_threads(threads)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)) if isinstance(library, Path) else library, tvm.cpu())
    arguments = [tvm.runtime.tensor(value) for value in feeds.values()]
    return lambda: machine["main"](*arguments)


def use_threads(threads: int) -> None:
    """The size of TVM's thread pool, which all its models share; 0 is what TVM_NUM_THREADS says, or every core.

    The runtime asks for the number at every parallel loop.  Without the variable it asks the system, which takes longer than
    many a loop (measured: 5.5 microseconds).
    """
    tvm = need("tvm")
    wanted = str(threads) if threads else os.environ.get("TVM_NUM_THREADS", str(os.cpu_count() or 1))
    os.environ["TVM_NUM_THREADS"] = wanted
    big = 1
    tvm.get_global_func("runtime.config_threadpool")(big, int(wanted))
