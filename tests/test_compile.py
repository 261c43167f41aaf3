"""`compile`: what holds without TVM, and (marked tvm) what its libraries compute.

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
from marks import with_tvm
from nets import net, plain, write

from graphprune import bench
from graphprune.errors import InvalidModelError, UsageError
from graphprune.pipeline import load
from graphprune.runtime import random_inputs, run

Cli = Callable[..., Result]
RUNTIME_ALONE = os.environ | {"TVM_USE_RUNTIME_LIB": "1"}


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


def test_the_description_of_the_library_is_not_overwritten(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    result = graphprune_cli("compile", model, "-o", tmp_path / "m.so", "--json", tmp_path / "m.json")
    assert result.exit_code == 2
    assert "m.json: two results would be written there; give each a file of its own" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "z80"], "no target is called 'z80'; there are: native, x86-64"),
        (["--target", "{kind"], "is no JSON"),
        (["--target", '{"mcpu": "znver4"}'], "names no kind"),
        (["--target", "[]"], "no target is called"),
        (["--tune-seconds", "-1"], "tune-seconds"),
        (["--target", '{"kind": "cuda", "host": "llvm"}'], "write the host as an object, for example"),
        (["--target", "cuda", "--tune-trials", "3"], "schedules are tuned for processors, not for cuda"),
        (["--target", "c", "--tune-trials", "3"], "schedules are measured on a machine that the code runs on"),
        (["--target", "riscv64", "--tune-seconds", "3"], "schedules are measured on a machine that the code runs on"),
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


# ---- with TVM -------------------------------------------------------------------------------------


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
@pytest.mark.parametrize(
    "text",
    [
        """net (float[1,4,9,9] x) => (float[1,5] y) <float[8,4,3,3] w, float[8] b, float[5,8] v> {
            a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
            r = Relu(a)
            p = GlobalAveragePool(r)
            f = Flatten(p)
            y = Gemm<transB = 1>(f, v)
        }""",
        "net (float[2,16] x) => (bool[2,16] y) <float zero = {0}> { y = Greater(x, zero) }",
        "net (float[2,24] x) => (float[2,24] y) { a = Softmax(x) y = Sigmoid(a) }",
    ],
)
def test_c_source_computes_the_same(graphprune_cli: Cli, tmp_path: Path, text: str) -> None:
    """As the page says: no vectors, and any compiler takes it."""
    import shutil

    if not shutil.which("c++"):
        pytest.skip("needs c++")
    path = write(net(text), tmp_path / "model.onnx")
    assert graphprune_cli("compile", path, "-o", tmp_path / "net.tar", "--target", "c").exit_code == 0
    command = (tmp_path / "net-README.md").read_text().partition("```sh\n")[2].partition("```")[0]
    paths = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    subprocess.run(command, shell=True, cwd=tmp_path, env=paths, check=True, timeout=300)
    from graphprune.exporters.tvm_backend import loaded

    graph = load(path)
    feeds = random_inputs(graph, seed=1)
    expected = run(graph.model, feeds)["y"]
    np.testing.assert_allclose(loaded(tmp_path / "net.so", 1)(feeds)[0], expected, atol=1e-5)


@with_tvm
@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("net (float x, float[2,3] z) => (float[2,3] y) { y = Mul(x, z) }", []),
        ("net (float16[1,4,9,9] x) => (float16[1,8,7,7] y) <float16[8,4,3,3] w> { y = Conv(x, w) }", []),
        ("net (float[N,3] x) => (float[N,3] file, int64[2] s) { file = Relu(x) s = Shape(x) }", []),
        ("net (float[N,3] x) => (int64[2] s) { s = Shape(x) }", ["--input-shape", "x=2,3"]),
    ],
)
def test_odd_inputs_and_outputs(graphprune_cli: Cli, tmp_path: Path, text: str, shapes: list[str]) -> None:
    """A scalar, half precision, a shape, and the name of numpy's own argument."""
    path = write(net(text), tmp_path / "model.onnx")
    result = graphprune_cli("compile", path, "-o", tmp_path / "net.so", *shapes)
    assert result.exit_code == 0, result.output
    graph = load(path)
    feeds = random_inputs(graph, seed=1)
    np.savez(tmp_path / "in.npz", **feeds)
    command = [sys.executable, "net-run.py", "in.npz", "out.npz", "--repeat", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=RUNTIME_ALONE, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as found:
        for name, array in run(graph.model, feeds).items():
            np.testing.assert_allclose(found[name], array, rtol=1e-2, atol=2e-2 if array.dtype == np.float16 else 1e-5)


@with_tvm
def test_another_system_is_not_run_here(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    target = '{"kind": "llvm", "mtriple": "x86_64-pc-windows-msvc"}'
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.tar", "--target", target)
    assert result.exit_code == 0, result.output
    assert "not run" in result.output
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.so", "--target", target)
    assert result.exit_code == 2
    assert "linking for x86_64-pc-windows-msvc needs x86_64-pc-windows-msvc-gcc" in result.stderr


@with_tvm
def test_a_linker_that_fails(graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune.exporters import tvm_library

    def fails(output: str, objects: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, "ld", stderr=b"ld: net.o: fatal error: no room\n")

    fails.output_format = "so"  # type: ignore[attr-defined]
    monkeypatch.setattr(tvm_library, "linker", lambda path, options: fails)
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.so")
    assert result.exit_code == 2
    assert "the library cannot be linked: ld: net.o: fatal error: no room; write a .tar of objects" in result.stderr


@with_tvm
def test_bench_takes_branches(graphprune_cli: Cli, tmp_path: Path) -> None:
    text = """net (float[1,4] x, bool c) => (float[1,4] y) {
        y = If(c) <then_branch = a () => (float[1,4] p) { p = Relu(x) }, else_branch = b () => (float[1,4] q) { q = Neg(x) }>
    }"""
    result = graphprune_cli("bench", write(net(text), tmp_path / "model.onnx"), "--backend", "tvm")
    assert result.exit_code == 0, result.output


@with_tvm
def test_kernels_for_a_gpu_are_source(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    result = graphprune_cli("compile", model, "-o", tmp_path / "net.tar", "--target", "cuda", "--json", "-")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["unscheduled"] == []
    assert facts["difference"] is None
    kernels = (tmp_path / "net.cu").read_text()
    assert kernels.count("__global__") >= facts["kernels"] > 1
    assert "blockIdx.x" in kernels
    with tarfile.open(tmp_path / "net.tar") as archive:
        objects = [archive.extractfile(member).read() for member in archive.getmembers() if member.isfile()]  # type: ignore[union-attr]
    assert {data[:4] for data in objects} == {b"\x7fELF"}
    assert any(kernels[-1000:].encode() in data for data in objects)
    page = (tmp_path / "net-README.md").read_text()
    assert "python net-run.py" in page
    assert "cuda-bindings" in page
    assert "```cpp" not in page


@with_tvm
def test_the_runner_on_a_device(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    assert graphprune_cli("compile", model, "-o", tmp_path / "net.so").exit_code == 0
    graph = load(plain())
    random = random_inputs(graph, batch=3)
    np.savez(tmp_path / "in.npz", **random)
    command = [sys.executable, tmp_path / "net-run.py", tmp_path / "in.npz", tmp_path / "out.npz", "--repeat", "1", "--device"]
    done = subprocess.run([*command, "cpu"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], run(graph.model, random)["y"], atol=1e-5)
    done = subprocess.run([*command, "cuda"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "TVM finds no cuda device here" in done.stderr


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
