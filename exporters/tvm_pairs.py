"""Two inputs of a convolution at a time, for convolutions whose outputs fill at most half of a vector.

A vector holds every output twice: once for each of two neighbouring inputs, which one 64-bit load spreads over the whole vector.
Both halves are summed at the end.  Without this, ResNet-20 of 8 channels takes as long as one of 16 (measured, AVX-512).
Start reading at `intrinsic`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

PAIR = 2

SIGNATURE = """
@T.prim_func(s_tir=True)
def {name}(
    A: T.Buffer((2,), "float32", offset_factor=1),
    B: T.Buffer(({outputs}, 2), "float32", offset_factor=1),
    C: T.Buffer(({outputs}, 2), "float32", offset_factor=1, scope="local"),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:{outputs}, 0:2], A[0:2], B[0:{outputs}, 0:2])
        T.writes(C[0:{outputs}, 0:2])
"""

MEANING = """
        for i, j in T.grid({outputs}, 2):
            with T.sblock("update"):
                vi, vj = T.axis.remap("SS", [i, j])
                C[vi, vj] = C[vi, vj] + A[vj] * B[vi, vj]
"""

VECTORS = """
        pair = T.reinterpret(A.vload([0], dtype="float32x2"), dtype="float64")
        spread = T.reinterpret(T.broadcast(pair, {outputs}), dtype="float32x{lanes}")
        C.vstore([0, 0], C.vload([0, 0], dtype="float32x{lanes}") + spread * B.vload([0, 0], dtype="float32x{lanes}"))
"""


@cache
def intrinsic(outputs: int) -> str:
    """The name of the registered step: add the products of two inputs with the weights of so many outputs."""
    from tvm.s_tir import TensorIntrin
    from tvm.script import from_source, tirx

    def function(name: str, body: str) -> Any:
        text = (SIGNATURE + body).format(name=name, outputs=outputs, lanes=outputs * PAIR)
        return from_source(text, {"T": tirx})

    name = f"graphprune.pairs.{outputs}"
    TensorIntrin.register(name, function("meaning", MEANING), function("vectors", VECTORS), override=True)
    return name
