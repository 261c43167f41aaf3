"""What the TVM exporter is made of and needs no TVM: targets, tiles, the page beside a library, and the program that runs one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphprune.exporters.tvm_readme import program, readme
from graphprune.exporters.tvm_run import ALIGNMENT, aligned
from graphprune.exporters.tvm_targets import TARGETS, host, is_like_this, target_options
from graphprune.exporters.tvm_tiles import Machine, depthwise_tile, product_tile

AVX2, AVX512, NEON = Machine(8, 16), Machine(16, 32), Machine(4, 32)


def test_targets_are_complete() -> None:
    for name in TARGETS:
        if name == "native":
            continue
        options = target_options(name, threads=4)
        assert options.get("num-cores") == (4 if options["kind"] == "llvm" else None)
        assert str(host(options).get("mtriple", "")).partition("-")[0] in ("x86_64", "aarch64", "armv7", "riscv64", "")
    assert "num-cores" not in TARGETS["x86-64"]
    assert target_options('{"kind": "llvm", "mcpu": "znver4"}') == {"kind": "llvm", "mcpu": "znver4"}


@pytest.mark.parametrize(
    ("processor", "system", "triple", "like"),
    [
        ("x86_64", "linux", "x86_64-linux-gnu", True),
        ("x86_64", "linux", "x86_64-unknown-linux-gnu", True),
        ("x86_64", "linux", "x86_64-pc-windows-msvc", False),
        ("x86_64", "linux", "x86_64-apple-darwin", False),
        ("x86_64", "linux", "x86_64-linux-android", False),
        ("x86_64", "linux", "aarch64-linux-gnu", False),
        ("x86_64", "linux", "", True),
        ("arm64", "darwin", "arm64-apple-darwin23", True),
        ("aarch64", "linux", "arm64-linux-gnu", True),
        ("AMD64", "win32", "x86_64-pc-windows-msvc", True),
    ],
)
def test_what_is_like_this_machine(processor: str, system: str, triple: str, like: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("sys.platform", system)
    assert is_like_this({"kind": "llvm", "mtriple": triple} if triple else {"kind": "c"}) == like


@pytest.mark.parametrize("machine", [AVX2, AVX512, NEON, Machine(4, 16), Machine(1, 16)])
@pytest.mark.parametrize("width", [1, 7, 14, 32, 56])
@pytest.mark.parametrize("channels", [1, 10, 16, 24, 40, 64, 1000])
def test_tiles_fit_the_registers(machine: Machine, width: int, channels: int) -> None:
    for tile in (product_tile(machine, width, channels), depthwise_tile(machine, width, channels)):
        vectors = tile.lanes // machine.floats
        assert tile.lanes % machine.floats == 0
        assert tile.positions * vectors <= machine.registers
        assert 1 <= tile.positions <= width


def test_a_tile_wastes_nothing_where_it_can() -> None:
    assert (product_tile(AVX2, 32, 16).positions, product_tile(AVX2, 32, 16).lanes) == (4, 16)
    assert product_tile(AVX2, 28, 24).lanes in (8, 24)
    assert -1000 % product_tile(AVX2, 1, 1000).lanes < 50


SIGNATURE = {
    "target": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"},
    "inputs": [{"name": "x", "type": "float32", "shape": ["N", 3]}, {"name": "k", "type": "int64", "shape": [4]}],
    "outputs": ["y", "z"],
}


def test_the_page_says_how_to_load_it() -> None:
    page = readme("net.tar", SIGNATURE)
    assert "| input 0 | `x` | float32 | ['N', 3] |" in page
    assert "TVM_USE_RUNTIME_LIB=1 python net-run.py" in page
    assert "aarch64-linux-gnu-g++ -shared -fPIC -o net.so" in page
    code = program("net", SIGNATURE)
    assert "{1, 3}, DLDataType{kDLFloat, 32, 1}" in code
    assert "{4}, DLDataType{kDLInt, 64, 1}" in code
    assert "Array<Tensor>" in code


def test_the_runner_needs_neither_tvm_nor_graphprune_to_start() -> None:
    runner = Path(__file__).parent.parent / "exporters" / "tvm_run.py"
    text = runner.read_text(encoding="utf-8")
    assert "graphprune." not in text
    done = subprocess.run([sys.executable, "-I", runner, "--help"], capture_output=True, text=True, check=True)
    assert "--threads" in done.stdout


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 5), (1, 3, 32, 32)])
@pytest.mark.parametrize("kind", ["float32", "int64", "bool", "float16"])
def test_inputs_begin_where_vector_loads_need_it(shape: tuple[int, ...], kind: str) -> None:
    array = (np.random.default_rng(0).standard_normal(shape) * 3).astype(kind)
    for view in (array, array.T):
        copies = [aligned(view) for _ in range(5)]
        for copy in copies:
            assert copy.size == 0 or copy.ctypes.data % ALIGNMENT == 0
            assert copy.flags.c_contiguous
            assert copy.dtype == view.dtype
            np.testing.assert_array_equal(copy, view)
