"""Runs a library that `graphprune compile` wrote, with TVM's runtime alone: TVM_USE_RUNTIME_LIB=1 python NAME-run.py inputs.npz.

Needs numpy and the packages apache-tvm-ffi and apache-tvm, or apache-tvm-ffi and a libtvm_runtime.so named by TVM_RUNTIME.  No
compiler is loaded, but for a library that is for a GPU: its kernels are compiled on the machine that has one, by the whole
apache-tvm.  Start reading at `main`.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[dict[str, Any]], dict[str, Any]]

ALIGNMENT = 64
"""Bytes; numpy's own arrays begin at multiples of 16."""

CPU, POOLED = 1, 2
"""DLPack's number of the processor, and TVM's of the allocator that keeps memory for the next run."""


def loaded(library: Path, threads: int) -> Any:
    """The virtual machine of a library, ready to run.

    TVM_NUM_THREADS is set in any case: without it the runtime asks the system for the number of cores at every parallel loop.
    """
    if threads or "TVM_NUM_THREADS" not in os.environ:
        os.environ["TVM_NUM_THREADS"] = str(threads or os.cpu_count() or 1)
    import tvm_ffi

    ctypes.CDLL(str(_runtime()), ctypes.RTLD_GLOBAL)
    machine = tvm_ffi.load_module(str(library))["vm_load_executable"]()
    machine["vm_initialization"](CPU, 0, POOLED)
    return machine


def _runtime() -> Path:
    if named := os.environ.get("TVM_RUNTIME"):
        return Path(named)
    package = importlib.util.find_spec("tvm")
    if package is None or package.origin is None:
        raise SystemExit("no package tvm here: set TVM_RUNTIME to a libtvm_runtime.so for this machine")
    return Path(package.origin).parent / "lib" / "libtvm_runtime.so"


def run(machine: Any, signature: dict[str, Any], feeds: dict[str, Any]) -> dict[str, Any]:
    """All outputs by name."""
    import tvm_ffi

    found = machine["main"](*map(tvm_ffi.from_dlpack, _arrays(signature, feeds)))
    return {name: _array(value) for name, value in _named(signature, found)}


def on_device(library: Path, kind: str, signature: dict[str, Any]) -> Run:
    """A function from inputs to all outputs by name that runs a library on a device such as `cuda`, by the whole of TVM."""
    import tvm
    from tvm import relax
    from tvm.support import nvcc  # noqa: F401  (it tells TVM how CUDA source is compiled)

    device = tvm.device(kind)
    if not device.exist:
        raise SystemExit(f"TVM finds no {kind} device here")
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), device)

    def call(feeds: dict[str, Any]) -> dict[str, Any]:
        found = machine["main"](*(tvm.runtime.tensor(array, device) for array in _arrays(signature, feeds)))
        return {name: _array(value) for name, value in _named(signature, found)}

    return call


def _arrays(signature: dict[str, Any], feeds: dict[str, Any]) -> list[Any]:
    for entry in signature["inputs"]:
        if entry["name"] not in feeds:
            raise SystemExit(f"the inputs have no array {entry['name']!r}")
    return [aligned(np.asarray(feeds[entry["name"]], dtype=entry["type"])) for entry in signature["inputs"]]


def aligned(array: Any) -> Any:
    """A copy in memory that begins where TVM's vector loads need it to; elsewhere they end the process."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _array(value: Any) -> Any:
    """A tensor as an array; a shape, such as the size of an input, is one of integers."""
    if hasattr(value, "numpy"):
        return value.numpy()
    return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.array(list(value), np.int64)


def _named(signature: dict[str, Any], found: Any) -> list[tuple[str, Any]]:
    from tvm_ffi import Shape

    several = len(signature["outputs"]) > 1 or not (hasattr(found, "__dlpack__") or isinstance(found, Shape))
    values = list(found) if several else [found]
    return list(zip(signature["outputs"], values, strict=True))


def write(path: Path, arrays: dict[str, Any]) -> None:
    """An .npz with arrays of any names; numpy's own function takes none that is called `file`."""
    with zipfile.ZipFile(path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz"), "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array))


def main() -> None:
    """Read inputs, run, write outputs, and say how long a run takes."""
    parser = argparse.ArgumentParser(description="Run a library that graphprune compiled.")
    stem = Path(__file__).resolve().name.removesuffix("-run.py")
    parser.add_argument("inputs", type=Path, help="an .npz with one array for each input")
    parser.add_argument("outputs", type=Path, nargs="?", help="where to write the outputs, as .npz")
    parser.add_argument("--library", type=Path, default=Path(__file__).resolve().with_name(f"{stem}.so"))
    parser.add_argument("--threads", type=int, default=0, help="0: TVM decides")
    parser.add_argument("--device", help="run there by the whole of TVM; by default what the library is for")
    parser.add_argument("--repeat", type=int, default=10, help="runs to time")
    options = parser.parse_args()
    signature = json.loads(options.library.with_suffix(".json").read_text(encoding="utf-8"))
    kind = signature["target"]["kind"]
    device = options.device or (None if kind in ("llvm", "c") else kind)
    call: Run = (
        on_device(options.library, device, signature)
        if device
        else partial(run, loaded(options.library, options.threads), signature)
    )
    with np.load(options.inputs, allow_pickle=False) as file:
        feeds = dict(file)
    results = call(feeds)
    times = []
    for _ in range(options.repeat):
        start = time.perf_counter()
        call(feeds)
        times.append(time.perf_counter() - start)
    if options.outputs is not None:
        write(options.outputs, results)
    for name, value in results.items():
        print(f"{name}: {value.dtype} {list(value.shape)}")
    if times:
        print(f"{sorted(times)[len(times) // 2] * 1e3:.3f} ms, the median of {len(times)} runs")


if __name__ == "__main__":
    main()
