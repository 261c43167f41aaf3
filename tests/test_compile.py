"""`compile` and the TVM exporter: what holds without TVM, and (marked tvm) what its libraries compute.

The marked tests need the extra: `pytest -m tvm`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from nets import net, plain, residual, write
from onnx import ModelProto

from graphprune import bench
from graphprune.errors import InvalidModelError, UsageError
from graphprune.exporters.tvm_readme import program, readme
from graphprune.exporters.tvm_targets import TARGETS, architecture, target_options
from graphprune.exporters.tvm_tiles import Machine, depthwise_tile, product_tile
from graphprune.pipeline import load
from graphprune.runtime import random_inputs, run

Cli = Callable[..., Result]
AVX2, AVX512, NEON = Machine(8, 16), Machine(16, 32), Machine(4, 32)


def with_tvm(test: Callable[..., None]) -> Callable[..., None]:
    """Runs with `pytest -m tvm`; TVM's own code warns."""
    marked: Callable[..., None] = pytest.mark.tvm(pytest.mark.filterwarnings("ignore")(test))
    return marked


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(plain(), tmp_path / "model.onnx")


# ---- without TVM ----------------------------------------------------------------------------------


def test_a_missing_extra_is_named(graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tvm", None)
    result = graphprune_cli("compile", model, "-o", tmp_path / "m.so", "--target", "aarch64")
    assert result.exit_code == 6
    assert "pip install 'graphprune[tvm]'" in result.stderr
    result = graphprune_cli("bench", model, "--backend", "tvm")
    assert result.exit_code == 6
    assert not list(tmp_path.glob("m*.so"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "z80"], "no target is called 'z80'; there are: native, x86-64"),
        (["--target", "{kind"], "is no JSON"),
        (["--target", '{"mcpu": "znver4"}'], "names no kind"),
        (["--target", "[]"], "no target is called"),
        (["--tune-seconds", "-1"], "tune-seconds"),
        (["--input-shape", "x"], "is not of the form"),
    ],
)
def test_wrong_usage(graphprune_cli: Cli, model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = graphprune_cli("compile", model, "-o", tmp_path / "m.so", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == [model]


def test_the_output_is_named_for_what_it_is(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    result = graphprune_cli("compile", model, "-o", tmp_path / "m.onnx", "--target", "aarch64")
    assert result.exit_code == 2
    assert "NAME.so, or NAME.tar" in result.stderr


def test_an_unknown_backend(graphprune_cli: Cli, model: Path) -> None:
    result = graphprune_cli("bench", model, "--backend", "abacus")
    assert result.exit_code == 2
    assert "no backends is called 'abacus'; there are: onnxruntime, openvino, tvm" in result.stderr


def test_targets_are_complete() -> None:
    for name in TARGETS:
        if name == "native":
            continue
        options = target_options(name, threads=4)
        assert options.get("num-cores") == (4 if options["kind"] == "llvm" else None)
        assert architecture(options) in ("x86_64", "aarch64", "armv7", "riscv64", "")
    assert "num-cores" not in TARGETS["x86-64"]
    assert target_options('{"kind": "llvm", "mcpu": "znver4"}') == {"kind": "llvm", "mcpu": "znver4"}


@pytest.mark.parametrize("machine", [AVX2, AVX512, NEON, Machine(4, 16)])
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


# ---- what TVM computes ----------------------------------------------------------------------------

CONVOLUTION = (
    "{name} (float[{batch},6,9,11] x) => (float[{batch},{out},H,W] y) <float[{out},{depth},{k},{k}] w, float[{out}] b> {{\n"
)
BODY = "    c = Conv<{attributes}>(x, w, b)\n    y = Relu(c)\n}}"


def convolution(out: int, k: int, depth: int, attributes: str, batch: str = "2") -> ModelProto:
    text = (CONVOLUTION + BODY).format(name="one", batch=batch, out=out, k=k, depth=depth, attributes=attributes)
    return net(text)


NETS = {
    "same": convolution(16, 3, 6, "pads = [1,1,1,1]"),
    "ragged channels": convolution(13, 3, 6, "pads = [1,1,1,1]"),
    "many ragged channels": convolution(37, 1, 6, "strides = [1,1]"),
    "three vectors": convolution(24, 3, 6, "pads = [1,1,1,1]"),
    "stride": convolution(16, 3, 6, "strides = [2,2], pads = [1,0,0,1]"),
    "dilation": convolution(8, 3, 6, "dilations = [2,2], pads = [2,2,2,2]"),
    "few channels": convolution(8, 3, 6, "pads = [1,1,1,1]"),
    "few ragged channels": convolution(7, 3, 6, "strides = [2,2], pads = [1,1,1,1]"),
    "two channels": convolution(2, 5, 6, "dilations = [2,2], pads = [4,4,4,4]"),
    "few channels, dynamic": convolution(4, 1, 6, "strides = [1,1]", batch="N"),
    "few channels, nothing behind": net("few (float[1,4,9,9] x) => (float[1,3,7,7] y) <float[3,4,3,3] w> { y = Conv(x, w) }"),
    "depthwise": convolution(6, 3, 1, "group = 6, pads = [1,1,1,1]"),
    "depthwise multiplier": convolution(12, 3, 1, "group = 6, pads = [1,1,1,1]"),
    "depthwise stride": convolution(6, 5, 1, "group = 6, strides = [2,2], pads = [2,2,2,2]"),
    "groups": convolution(16, 3, 3, "group = 2, pads = [1,1,1,1]"),
    "ragged groups": convolution(10, 3, 3, "group = 2, pads = [1,1,1,1]"),
    "transposed": net("""
        transposed (float[1,6,5,7] x) => (float[1,8,11,15] y) <float[6,6,3,3] v, float[6,8,3,3] w, float[8] b> {
            c = Conv<pads = [1,1,1,1]>(x, v)
            y = ConvTranspose<strides = [2,2], pads = [1,1,0,0], output_padding = [1,1]>(c, w, b)
        }"""),
    "transposed groups": net("""
        transposed (float[1,6,5,7] x) => (float[1,4,10,14] y) <float[6,6,3,3] v, float[6,2,2,2] w> {
            c = Conv<pads = [1,1,1,1]>(x, v)
            y = ConvTranspose<strides = [2,2], group = 2>(c, w)
        }"""),
    "large weights": net(
        "large (float[1,96,6,6] x) => (float[1,160,6,6] y) <float[160,96,3,3] w> { y = Conv<pads = [1,1,1,1]>(x, w) }"
    ),
    "product": net("product (float[5,7] x) => (float[5,19] y) <float[7,19] w, float[19] b> { p = MatMul(x, w)  y = Add(p, b) }"),
    "batched product": net("batched (float[2,3,5,7] x) => (float[2,3,5,40] y) <float[7,40] w> { y = MatMul(x, w) }"),
    "attention": net("""
        attention (float[2,4,5,8] q, float[2,4,8,5] k) => (float[2,4,5,5] y) { s = MatMul(q, k)  y = Softmax<axis = -1>(s) }"""),
    "ragged pairs": net("ragged (float[2,3,13,8] q, float[2,3,8,37] k) => (float[2,3,13,37] y) { y = MatMul(q, k) }"),
    "pairs, dynamic": net("pairs (float[N,5,8] q, float[N,8,5] k) => (float[N,5,5] y) { y = MatMul(q, k) }"),
    "one matrix for many": net("many (float[2,5,8] q, float[1,8,5] k) => (float[2,5,5] y) { y = MatMul(q, k) }"),
    "rows in front": net("front (float[5,1,7] x) => (float[5,1,40] y) <float[7,40] w> { p = MatMul(x, w)  y = Relu(p) }"),
    "rows in front, dynamic": net("front (float[N,1,7] x) => (float[N,1,40] y) <float[7,40] w> { y = MatMul(x, w) }"),
    "softmax over channels": net("""
        channels (float[2,6,5] x) => (float[2,6,5] y) { y = Softmax<axis = 1>(x) }"""),
    "functions": net(
        """
        functions (float[2,37] x) => (float[2,37] a, float[2,37] b, float[2,37] c) {
            a = Erf(x)
            b = Exp(x)
            c = Gelu(x)
        }""",
        opset=20,
    ),
    "relu6": net("""
        relu6 (float[1,3,8,8] x) => (float[1,8,8,8] y) <float[8,3,3,3] w, float l = {0.0}, float h = {0.1}> {
            c = Conv<pads = [1,1,1,1]>(x, w)
            y = Clip(c, l, h)
        }"""),
    "pools": net("""
        pools (float[1,12,8,8] x) => (float[1,12,1,1] y) {
            m = MaxPool<kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]>(x)
            a = AveragePool<kernel_shape = [2,2]>(m)
            y = GlobalAveragePool(a)
        }"""),
    "dense": net("""
        dense (float[1,5,8,8] x) => (float[1,22,8,8] y) <float[12,5,3,3] v, float[5,17,1,1] w> {
            a = Conv<pads = [1,1,1,1]>(x, v)
            r = Relu(a)
            j = Concat<axis = 1>(x, r)
            b = Conv(j, w)
            y = Concat<axis = 1>(j, b)
        }"""),
    "concatenations": net("""
        concatenations (float[2,3,5] x, int64[4] i) => (float[5,3,5] a, float[2,3,12] b, int64[7] c)
            <float[3,3,5] p, float[2,3,7] q, int64[3] j = {7, 8, 9}> {
            a = Concat<axis = 0>(x, p)
            b = Concat<axis = -1>(x, q)
            c = Concat<axis = 0>(i, j)
        }"""),
    "concatenation, large": net("""
        large (float[1,2,300,64] x, float[1,2,300,96] z) => (float[1,2,300,224] y) {
            r = Relu(x)
            s = Relu(z)
            y = Concat<axis = 3>(r, s, x)
        }"""),
    "concatenation, dynamic": net("dynamic (float[N,3] x, float[N,4] z) => (float[N,7] y) { y = Concat<axis = 1>(x, z) }"),
    "plain, dynamic": plain(),
    "residual, dynamic": residual(),
}


def compiled(network: ModelProto, target: dict[str, object], random: dict[str, np.ndarray]) -> list[np.ndarray]:
    from graphprune.exporters import tvm_module
    from graphprune.exporters.tvm_backend import loaded

    chosen = tvm_module.target_of(target)
    module = tvm_module.scheduled(tvm_module.lowered(tvm_module.imported(network), chosen), chosen)
    assert tvm_module.unscheduled(module) == []
    return loaded(tvm_module.built(module, chosen), 1)(random)


@with_tvm
@pytest.mark.parametrize("target", ["x86-64", "native"])
@pytest.mark.parametrize("name", NETS)
def test_it_computes_what_onnx_runtime_computes(name: str, target: str) -> None:
    graph = load(NETS[name])
    random = random_inputs(graph)
    expected = run(graph.model, random)
    found = compiled(graph.model, target_options(target), random)
    for value, right in zip(found, expected.values(), strict=True):
        assert value.shape == right.shape
        np.testing.assert_allclose(value, right, rtol=0, atol=1e-5 * float(np.abs(right).max()))


@with_tvm
@pytest.mark.parametrize("name", ["same", "depthwise stride", "groups"])
def test_convolutions_are_packed_where_layouts_cannot_change(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import relax

    def fails(*_: object) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(relax.transform, "ConvertLayout", lambda layouts: fails)
    graph = load(NETS[name])
    random = random_inputs(graph)
    expected = run(graph.model, random)["y"]
    (found,) = compiled(graph.model, target_options("x86-64"), random)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


@with_tvm
@pytest.mark.parametrize(("name", "paired"), [("few channels", True), ("few ragged channels", True), ("same", False)])
def test_few_channels_take_two_inputs_at_a_time(name: str, paired: bool) -> None:
    from graphprune.exporters import tvm_module

    target = tvm_module.target_of(target_options("x86-64-v4"))
    module = tvm_module.scheduled(tvm_module.lowered(tvm_module.imported(load(NETS[name]).model), target), target)
    assert ("float64" in module.script()) == paired


@with_tvm
@pytest.mark.parametrize(
    ("name", "cores", "shared"), [("large weights", 0, 1), ("large weights", 2, 1), ("large weights", 1, 0), ("same", 2, 0)]
)
def test_threads_share_what_takes_long(name: str, cores: int, shared: int) -> None:
    from graphprune.exporters import tvm_module

    target = tvm_module.target_of(target_options("x86-64-v4", cores))
    module = tvm_module.scheduled(tvm_module.lowered(tvm_module.imported(load(NETS[name]).model), target), target)
    assert module.script().count("T.parallel(") == shared


@with_tvm
def test_the_number_of_threads_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune.exporters.tvm_backend import use_threads

    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    use_threads(0)
    assert os.environ["TVM_NUM_THREADS"] == "2"
    use_threads(1)
    assert os.environ["TVM_NUM_THREADS"] == "1"


@with_tvm
def test_a_library_runs_in_a_fresh_process_with_the_runtime_alone(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    library = tmp_path / "net.so"
    result = graphprune_cli("compile", model, "-o", library, "--json", "-")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["unscheduled"] == []
    assert facts["difference"] < 1e-5
    assert json.loads((tmp_path / "net.json").read_text())["inputs"] == [
        {"name": "x", "type": "float32", "shape": ["N", 3, 8, 8]}
    ]
    assert "net-run.py" in (tmp_path / "net-README.md").read_text()
    graph = load(plain())
    random = random_inputs(graph, batch=3)
    np.savez(tmp_path / "in.npz", **random)
    command = [
        sys.executable,
        tmp_path / "net-run.py",
        tmp_path / "in.npz",
        tmp_path / "out.npz",
        "--threads",
        "1",
        "--repeat",
        "2",
    ]
    done = subprocess.run(
        command, env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"}, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "y: float32 [3, 5]" in done.stdout
    assert "median of 2 runs" in done.stdout
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], run(graph.model, random)["y"], atol=1e-5)


@with_tvm
def test_the_program_on_the_page_compiles(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    import shutil

    if not shutil.which("g++"):
        pytest.skip("needs g++")
    import tvm
    import tvm_ffi

    assert graphprune_cli("compile", model, "-o", tmp_path / "net.so").exit_code == 0
    code = (tmp_path / "net-README.md").read_text().partition("```cpp\n")[2].partition("```")[0]
    (tmp_path / "main.cpp").write_text(code)
    folders = [Path(tvm.__file__).parent / "lib", Path(tvm_ffi.__file__).parent / "lib"]
    flags = [f"-I{Path(tvm_ffi.__file__).parent / 'include'}", *(f"-L{each}" for each in folders)]
    libraries = ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi"]
    subprocess.run(["g++", "-std=c++17", *flags, "main.cpp", "-o", "main", *libraries], cwd=tmp_path, check=True, timeout=300)
    paths = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(["./main"], cwd=tmp_path, env=paths, capture_output=True, text=True, check=True)
    assert done.stdout == "5 values\n"


@with_tvm
@pytest.mark.parametrize(("target", "number"), [("cortex-a72", 183), ("armv7", 40), ("riscv64-v", 243), ("x86-64-v4", 62)])
def test_objects_for_other_processors(graphprune_cli: Cli, model: Path, tmp_path: Path, target: str, number: int) -> None:
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.tar", "--target", target)
    assert result.exit_code == 0, result.output
    with tarfile.open(tmp_path / "net.tar") as archive:
        objects = {member.name: archive.extractfile(member).read() for member in archive.getmembers() if member.isfile()}  # type: ignore[union-attr]
    assert objects
    for data in objects.values():
        assert data[:4] == b"\x7fELF"
        assert int.from_bytes(data[18:20], "little") == number
    everything = b"".join(objects.values())
    assert b"__tvm_ffi_fused_convolution" in everything
    assert b"__tvm_ffi__library_bin" in everything


@with_tvm
def test_linking_for_another_processor_needs_its_compiler(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.so", "--target", "riscv64")
    assert result.exit_code == 2
    assert "needs riscv64-linux-gnu-gcc" in result.stderr
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.so")
    assert result.exit_code == 2
    assert "needs a C++ compiler or `ld`" in result.stderr
    assert not list(tmp_path.glob("net*"))


@with_tvm
def test_without_a_compiler_the_linker_is_enough(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ld").symlink_to("/usr/bin/ld")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.so")
    assert result.exit_code == 0, result.output


@with_tvm
def test_operators_are_named_before_compiling(graphprune_cli: Cli, tmp_path: Path) -> None:
    odd = net("odd (float[1,4] x) => (float[1,4] z) { y = nobody.Knows(x)  z = Relu(y) }", domains=("nobody",))
    path = write(odd, tmp_path / "odd.onnx")
    result = graphprune_cli("compile", path, "-o", tmp_path / "odd.so")
    assert result.exit_code == 3
    assert "TVM cannot import the operators nobody.Knows" in result.stderr
    assert sorted(tmp_path.iterdir()) == [path]


@with_tvm
def test_a_difference_leaves_no_file(graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune.exporters import agreement

    right = agreement.run
    monkeypatch.setattr(agreement, "run", lambda *args, **more: {name: v * 1.001 for name, v in right(*args, **more).items()})
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.so")
    assert result.exit_code == 5
    assert "TVM's output 'y' differs from ONNX Runtime's by 1.0e-03 of scale (1.0e-04 is allowed)" in result.stderr
    assert sorted(tmp_path.iterdir()) == [model]


@with_tvm
def test_tuning_is_kept_and_continued(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    database = tmp_path / "database"
    common = [
        "compile",
        model,
        "-o",
        tmp_path / "net.so",
        "--tuning-database",
        database,
        "--input-shape",
        "x=1,3,8,8",
        "--json",
        "-",
    ]
    assert json.loads(graphprune_cli(*common).stdout)["tuned"] == 0
    first = graphprune_cli(*common, "--tune-trials", "6")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["tuned"] == 3
    records = next(database.rglob("database_tuning_record.json"))
    assert len(records.read_text().splitlines()) == 6
    records.write_text(records.read_text() + '[0, [["cut off')
    second = graphprune_cli(*common, "--tune-trials", "5")
    assert second.exit_code == 0, second.output
    lines = records.read_text().splitlines()
    assert len(lines) == 11
    schedules = [json.dumps([json.loads(line)[0], json.loads(line)[1][0]]) for line in lines]
    assert len(set(schedules)) == 11
    third = graphprune_cli(*common)
    assert json.loads(third.stdout)["tuned"] == 3
    assert len(records.read_text().splitlines()) == 11


@with_tvm
def test_tuning_needs_sizes(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.so", "--tune-trials", "1")
    assert result.exit_code == 2
    assert "input 'x' has dynamic ones (N): give them by --input-shape" in result.stderr


@with_tvm
def test_bench_runs_tvm(graphprune_cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0005)
    result = graphprune_cli("bench", model, model, "--backend", "tvm", "--batch", "2", "--json", "-")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["backend"] == "tvm"
    assert [entry["batch"] for entry in facts["models"]] == [2, 2]


@with_tvm
def test_errors_of_the_library() -> None:
    from graphprune.exporters import tvm_module

    with pytest.raises(UsageError, match="TVM does not take the target"):
        tvm_module.target_of({"kind": "abacus"})
    attention = net("a (float[1,2,3,4] x) => (float[1,2,3,4] y) { y = Attention(x, x, x) }", opset=23)
    with pytest.raises(InvalidModelError, match="Attention"):
        tvm_module.imported(attention)
