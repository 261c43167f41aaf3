"""The page that goes with a compiled library: how to load it where it is to run.  Start reading at `readme`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphprune.tables import target_in_words

from .tvm_targets import PROCESSORS, host

_PAGE = """# {name}

Compiled by graphprune with TVM for `{target}`.

| | name | type | shape |
|---|---|---|---|
{rows}

{needs}
{link}
## Python

{install}

```sh
{command}
```

`{stem}-run.py` reads the arrays named above from the .npz, runs, and prints the median time. It is two pages long: copy from it
what you need. Inputs have to begin at multiples of 64 bytes, which numpy does not see to.{more}
"""

_ON_PROCESSORS = {
    "needs": """\
It needs the runtime of the TVM that compiled it (`libtvm_runtime.so` and `libtvm_ffi.so`, a few megabytes), and no compiler.""",
    "install": """\
`pip install apache-tvm apache-tvm-ffi numpy`; or apache-tvm-ffi and numpy, with a `libtvm_runtime.so` of your own that the
variable `TVM_RUNTIME` names. Then:""",
    "command": "TVM_USE_RUNTIME_LIB=1 python {stem}-run.py inputs.npz outputs.npz --threads 1",
    "more": """ `TVM_NUM_THREADS` sets the number of threads in any program. Set it always:
without it the runtime asks the system for the number of cores at every parallel loop, which takes some microseconds each time.

## C++

```cpp
{program}```

Build it with the headers and libraries of the two packages:

```sh
g++ -std=c++17 -O2 main.cpp -o main $(tvm-ffi-config --cxxflags --ldflags --libs) -ltvm_runtime
```""",
}

_ON_GPUS = {
    "needs": """\
It holds its kernels as source (`{kind}`; the same text is in the file beside it). TVM compiles that for the GPU of the machine
that loads it, before the first run. So it needs the whole of the TVM that compiled it, the driver, and NVIDIA's compiler: the
package `cuda-bindings`, or `nvcc` with `TVM_CUDA_COMPILE_MODE=nvcc`.""",
    "install": "`pip install apache-tvm apache-tvm-ffi cuda-bindings numpy`, then:",
    "command": "python {stem}-run.py inputs.npz outputs.npz",
    "more": " The time includes the way of the inputs to the GPU and back.",
}

_LINK = """
`{name}` is an archive of object files. Link them where there is a compiler for the target:

```sh
mkdir objects && tar -xf {name} -C objects && {compiler} -shared -fPIC -o {stem}.so objects/*
```
"""

PROGRAM = """#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

struct Memory {{
  void AllocData(DLTensor* tensor) {{ tensor->data = std::aligned_alloc(64, (tvm::ffi::GetDataSize(*tensor) + 63) / 64 * 64); }}
  void FreeData(DLTensor* tensor) {{ std::free(tensor->data); }}
}};

int main() {{
  using tvm::ffi::Module;
  using tvm::ffi::Tensor;
  Module library = Module::LoadFromFile("./{stem}.so");
  Module machine = library->GetFunction("vm_load_executable").value()().cast<Module>();
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, 2);
{inputs}  auto result = machine->GetFunction("main").value()({arguments});
{output}}}
"""


def readme(name: str, signature: Mapping[str, Any]) -> str:
    """The page for a library called `name`, in Markdown."""
    inputs = [(f"input {k}", entry["name"], entry["type"], str(entry["shape"])) for k, entry in enumerate(signature["inputs"])]
    outputs = [(f"output {k}", each, "", "") for k, each in enumerate(signature["outputs"])]
    stem, _, suffix = name.rpartition(".")
    target = signature["target"]
    parts = _ON_PROCESSORS if target["kind"] in PROCESSORS else _ON_GPUS
    words = {"stem": stem, "kind": target["kind"], "program": program(stem, signature)}
    return _PAGE.format(
        name=name,
        stem=stem,
        target=target_in_words(target),
        rows="\n".join(f"| {a} | `{b}` | {c} | {d} |" for a, b, c, d in inputs + outputs),
        link=_LINK.format(name=name, stem=stem, compiler=_compiler(target)) if suffix == "tar" else "",
        **{part: text.format(**words) for part, text in parts.items()},
    )


def _compiler(target: Mapping[str, Any]) -> str:
    """What makes a library of the files in an archive: of objects a linker, of C source a compiler with TVM's headers."""
    triple = host(target).get("mtriple")
    if triple:
        return f"{triple}-g++"
    include = "$(python -c 'import tvm; print(tvm.__path__[0])')/include"
    return f'c++ -O3 $(tvm-ffi-config --cxxflags) -I"{include}"'


def program(stem: str, signature: Mapping[str, Any]) -> str:
    """A C++ program that runs the library on zeros; a dynamic size is 1."""
    lines = []
    for k, entry in enumerate(signature["inputs"]):
        kind = {"f": "kDLFloat", "i": "kDLInt", "u": "kDLUInt", "b": "kDLBool"}[_kind(entry["type"])]
        shape = ", ".join(str(size) if isinstance(size, int) else "1" for size in entry["shape"])
        lines.append(
            f"  Tensor input{k} = Tensor::FromNDAlloc(Memory(), {{{shape}}}, DLDataType{{{kind}, {_bits(entry['type'])}, 1}}, "
            "DLDevice{kDLCPU, 0});\n"
            f"  std::memset(input{k}.data_ptr(), 0, tvm::ffi::GetDataSize(input{k}));\n"
        )
    arguments = ", ".join(f"input{k}" for k in range(len(signature["inputs"])))
    many = len(signature["outputs"]) > 1
    output = (
        "  Tensor output = result.cast<tvm::ffi::Array<Tensor>>()[0];\n" if many else "  Tensor output = result.cast<Tensor>();\n"
    ) + '  std::printf("%lld values\\n", static_cast<long long>(output.numel()));\n'
    return PROGRAM.format(stem=stem, inputs="".join(lines), arguments=arguments, output=output)


def _kind(dtype: str) -> str:
    import numpy as np

    return np.dtype(dtype).kind


def _bits(dtype: str) -> int:
    import numpy as np

    return np.dtype(dtype).itemsize * 8
