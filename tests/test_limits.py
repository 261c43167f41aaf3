"""Limits by size, the process that is watched, archives, text in models: each with its message and exit code."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_models import big_named, populate
from nets import initializer, net, plain, set_initializer, write
from onnx import ModelProto, TensorProto, helper

from graphprune import limits, model_file, pipeline, worker
from graphprune.archives import check_archive
from graphprune.errors import InvalidModelError, UsageError
from graphprune.limits import factor, peak_bytes
from graphprune.model_file import read_model
from graphprune.plan import read_plan
from graphprune.run import Job
from graphprune.samples import read_samples

COMMAND = [sys.executable, "-m", "graphprune.supervised"]


def supervised(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False, timeout=60)


# ---- values and constants -----------------------------------------------------------------------


def test_the_peak_is_what_is_alive_at_once() -> None:
    """x -> a -> b -> c: two neighbours at a time; a value that is kept stays."""
    nodes = [(["x"], ["a"]), (["a"], ["b"]), (["b"], ["c"])]
    sizes = {"x": 1, "a": 10, "b": 100, "c": 1000}
    assert peak_bytes(nodes, sizes, ["c"]) == 1100
    assert peak_bytes(nodes, sizes, ["a", "c"]) == 1110
    assert peak_bytes(nodes, sizes, ["x", "a", "b", "c"]) == 1111
    assert peak_bytes([(["x"], ["a", "unused"]), (["a"], ["b"])], {"x": 1, "a": 2, "unused": 50, "b": 4}, ["b"]) == 53


@pytest.mark.parametrize(
    ("text", "value"), [("", 1), ("10", 10), ("0.5", 0.5), ("off", float("inf")), ("x", 1), ("-3", 1), ("nan", 1)]
)
def test_the_factor(monkeypatch: pytest.MonkeyPatch, text: str, value: float) -> None:
    monkeypatch.setenv("GRAPHPRUNE_LIMITS", text)
    assert factor() == value


def test_an_input_that_is_too_large() -> None:
    model = plain()
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, [1, 3, 100_000, 100_000], strict=True):
        dim.dim_value = size
    with pytest.raises(InvalidModelError, match=r"an input of the network takes 240 GB .* give smaller sizes with --input-shape"):
        pipeline.prune(model, targets=["channels=0.5"], align=1)


def test_values_that_are_too_large() -> None:
    with pytest.raises(InvalidModelError, match=r"running the network takes .*GRAPHPRUNE_LIMITS=10 allows ten times as much"):
        pipeline.prune(big_named("expand_input"), targets=["channels=0.5"], align=1)


@pytest.mark.parametrize("name", ["constant_of_shape", "range", "tile", "pad", "one_hot", "squaring"])
def test_constants_beyond_the_limit_stay_nodes(name: str) -> None:
    graph = pipeline.load(big_named(name))
    assert graph.nodes[-1].op_type == "Add"
    assert sum(len(tensor.raw_data) for tensor in graph.initializers.values()) < 10**6


def test_work_on_constants_is_bounded() -> None:
    """Each is below the limit for one."""
    lines = "".join(f"t{k} = ConstantOfShape(k)\n" for k in range(9))
    text = "k = Constant<value = int64[1] {4000000}>()\n" + lines + f"t = Sum({', '.join(f't{k}' for k in range(9))})\n"
    model = net(
        "s (float[N,4] x) => (float[N,3] y) <float[4,3] w> {"
        + text
        + "m = ReduceMax<keepdims = 0>(t)\n h = MatMul(x, w)\n y = Add(h, m)\n}"
    )
    graph = pipeline.load(model)
    assert 1 <= sum(node.op_type == "ConstantOfShape" for node in graph.nodes) <= 8


# ---- the process --------------------------------------------------------------------------------

ENDLESS = """loop (float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] u> {
    n = Constant<value = int64 {1000000000000}>()
    t = Constant<value = bool {1}>()
    f = Loop(n, t, x) <body = b (int64 i, bool c, float[a,4] v) => (bool d, float[e,4] o) {d = Identity(c) o = Identity(v)}>
    m = ReduceMax<keepdims = 0>(f)
    h = MatMul(x, w)
    r = Relu(h)
    g = MatMul(r, u)
    y = Add(g, m)
}"""

BRANCH = """branch (float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] u> {
    h = MatMul(x, w)
    r = Relu(h)
    g = MatMul(r, u)
    m = ReduceMax<keepdims = 0>(x)
    l = Constant<value = float {-1000}>()
    q = Greater(m, l)
    f = If(q) <
        then_branch = a () => (float o) {o = Identity(m)},
        else_branch = b () => (float p) {
            n = Constant<value = int64 {1000000000000}>()
            t = Constant<value = bool {1}>()
            p = Loop(n, t, m) <body = c (int64 i, bool j, float v) => (bool d, float e) {d = Identity(j) e = Identity(v)}>
        }
    >
    y = Add(g, f)
}"""


def test_a_model_that_never_ends(tmp_path: Path) -> None:
    path, out = write(net(ENDLESS), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    start = time.monotonic()
    done = supervised("prune", path, "-o", out, "--target", "channels=0.5", "--align", "1", GRAPHPRUNE_LIMITS="0.25")
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("graphprune: error: the model takes longer than its size allows, and was stopped")
    assert "nothing was written" in done.stderr
    assert time.monotonic() - start < 25
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("more", [["--importance", "activation"], ["--measure", "--no-verify"], ["--recipe", "fast"]])
def test_what_runs_the_network_later_runs_it_first_within_limits(tmp_path: Path, more: list[str]) -> None:
    path, out = write(net(ENDLESS), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    done = supervised("prune", path, "-o", out, "--target", "channels=0.5", "--align", "1", *more, GRAPHPRUNE_LIMITS="0.1")
    assert done.returncode == 3, done.stderr
    assert "takes longer than its size allows" in done.stderr
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_branch_that_never_ends_where_inputs_do_not_lead_to_it(tmp_path: Path) -> None:
    path, out = write(net(BRANCH), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    done = supervised("prune", path, "-o", out, "--target", "channels=0.5", "--align", "1", GRAPHPRUNE_LIMITS="0.1")
    assert done.returncode == 3, done.stderr
    assert "takes longer than its size allows" in done.stderr


def test_a_pruned_model_that_never_ends(tmp_path: Path) -> None:
    """The clock runs until both networks have."""
    model = net(ENDLESS.replace("1000000000000", "10"))
    original, out, plan = write(model, tmp_path / "m.onnx"), tmp_path / "out.onnx", tmp_path / "p.json"
    done = supervised("prune", original, "-o", out, "--target", "channels=0.5", "--align", "1", "--plan", plan)
    assert done.returncode == 0, done.stderr
    pruned = read_model(out)
    (trips,) = [tensor for tensor in pruned.graph.initializer if tensor.name == "n"]
    trips.CopyFrom(helper.make_tensor("n", TensorProto.INT64, [], [10**12]))
    write(pruned, out)
    done = supervised("verify", original, plan, out, GRAPHPRUNE_LIMITS="0.1")
    assert done.returncode == 3, done.stderr
    assert "takes longer than its size allows" in done.stderr


def test_a_job_that_never_ends(tmp_path: Path) -> None:
    write(net(ENDLESS), tmp_path / "m.onnx")
    path = tmp_path / "jobs.yaml"
    path.write_text("models: [m.onnx]\noptions: {target: channels=0.5, align: 1}\n")
    done = supervised("batch", path, GRAPHPRUNE_LIMITS="0.1")
    assert done.returncode == 9, done.stderr
    assert "the model takes longer than its size allows" in done.stderr


def test_code_of_the_user_has_no_clock(tmp_path: Path) -> None:
    """A function for --eval that works for longer than the model may, after the model was read, and takes more memory."""
    (tmp_path / "slow.py").write_text(
        "import time\nblock = bytearray(b'x') * (1 << 28)\ndef score(model):\n"
        "    while time.process_time() < 3: pass\n    return len(bytearray(b'x') * (1 << 28)) and 1.0\n"
    )
    path, out = write(plain(), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    command = [*COMMAND, "prune", str(path), "-o", str(out), "--target", "channels=0.5", "--align", "1", "--eval", "slow:score"]
    environment = os.environ | {"GRAPHPRUNE_LIMITS": "0.15"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert out.exists()


@pytest.fixture
def limited() -> Iterator[None]:
    """Limits for this process, and none afterwards."""
    limits.begin()
    try:
        yield
    finally:
        limits.lift()
        limits._Process.left = None


def test_the_clock(limited: None) -> None:
    assert not limits.clock_runs()
    limits.grant(10**6)
    first = signal.getitimer(limits.TIMER)[0]
    assert limits.SECONDS < first < limits.SECONDS + 1.1
    limits.grant(5 * 10**6)
    assert first + 4.9 < signal.getitimer(limits.TIMER)[0] < first + 5.1
    with limits.paused():
        assert not limits.clock_runs()
        with limits.paused():
            limits.grant(10**6)
        assert not limits.clock_runs()
    assert first + 5.9 < signal.getitimer(limits.TIMER)[0] < first + 6.1
    limits.stop_clock()
    assert not limits.clock_runs()
    limits.grant(10**6)
    assert not limits.clock_runs()


def test_memory_is_limited_beyond_what_the_process_had(limited: None) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    had = limits._data()
    limits.grant(1000)
    allowed = resource.getrlimit(resource.RLIMIT_DATA)[0]
    assert 0 <= allowed - had - limits.DATA - limits.DATA_PER_THREAD * (os.cpu_count() or 1) < 2**24
    with limits.paused():
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
        imported = np.ones(2**24)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] >= allowed + imported.nbytes
    with pytest.raises(MemoryError):
        np.zeros(2**30)
    limits.stop_clock()
    with pytest.raises(MemoryError):
        np.zeros(2**30)
    limits.lift()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_limit_that_the_process_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `batch` gives it to a job: limits are never wider."""
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**28, 2**28))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: set_to.append(both))
    limits.begin()
    limits.grant(1)
    limits.lift()
    assert set_to == [(2**28, 2**28)] * 2


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_library_that_crashes(tmp_path: Path, number: signal.Signals) -> None:
    """The model's own code, as an import string, does what a library might do."""
    (tmp_path / "crashing.py").write_text(f"import os\ndef model():\n    os.kill(os.getpid(), {int(number)})\n")
    done = subprocess.run([*COMMAND, "analyze", "crashing:model"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    expected = "killed from outside" if number == signal.SIGKILL else f"makes a library crash ({number.name})"
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, time\ndef model():\n    open('pid', 'w').write(str(os.getpid()))\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen([*COMMAND, "analyze", "slow:model"], cwd=tmp_path)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    child = int(pid.read_text())
    assert child != parent.pid
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")


def test_a_signal_to_the_parent_reaches_the_child(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef model():\n    open('started', 'w')\n    time.sleep(60)\n")
    parent = subprocess.Popen([*COMMAND, "analyze", "slow:model"], cwd=tmp_path)
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    parent.terminate()
    assert parent.wait(10) == -signal.SIGTERM


def test_exit_codes_and_output_pass_through(tmp_path: Path) -> None:
    path = write(plain(), tmp_path / "m.onnx")
    assert supervised("inspect", path).returncode == 0
    assert "opset" in supervised("inspect", path).stdout
    assert supervised("analyze", tmp_path / "no.onnx").returncode == 3
    assert supervised("nonsense").returncode == 2
    assert supervised("inspect", path, GRAPHPRUNE_LIMITS="off").returncode == 0


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """What numpy says of them is not for users."""
    model = plain()
    set_initializer(model, "w1", np.full_like(initializer(model, "w1"), np.inf))
    path, out = write(model, tmp_path / "m.onnx"), tmp_path / "out.onnx"
    done = supervised("prune", path, "-o", out, "--target", "channels=0.5", "--align", "1")
    assert done.returncode in (0, 5)
    assert "Warning" not in done.stderr


# ---- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"conv_one", b"conv\xffone", "a name in a NodeProto is not UTF-8 text"),
        (b"conv_one", b"conv\x1bone", r"the name 'conv\x1bone' has control characters"),
        (b"conv_one", b"conv\none", r"the name 'conv\none' has control characters"),
        (b"some doc", b"some\x07doc", r"the doc_string 'some\x07doc' has control characters"),
    ],
)
def test_text_in_a_model(tmp_path: Path, graphprune_cli: Any, old: bytes, new: bytes, message: str) -> None:
    model = plain()
    model.graph.node[0].name, model.doc_string = "conv_one", "some doc"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString().replace(old, new))
    result = graphprune_cli("analyze", path)
    assert result.exit_code == 3
    assert message in result.stderr


def test_prose_may_have_lines(tmp_path: Path) -> None:
    model = plain()
    model.doc_string = "one\n\ttwo\r\n"
    assert read_model(write(model, tmp_path / "m.onnx")).doc_string == "one\n\ttwo\r\n"


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path, graphprune_cli: Any) -> None:
    model = plain()
    model.graph.node[0].input[1] = model.graph.initializer[0].name = "[/red]w[bold]"
    result = graphprune_cli("analyze", write(model, tmp_path / "m.onnx"))
    assert result.exit_code == 0, result.output
    assert "[/red]w[bold]" in result.stdout


def test_too_many_dimensions(tmp_path: Path) -> None:
    model = plain()
    for _ in range(100):
        model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 1
    with pytest.raises(InvalidModelError, match="a tensor has 104 dimensions; more than 64 cannot be worked with"):
        read_model(write(model, tmp_path / "m.onnx"))


# ---- files --------------------------------------------------------------------------------------


def test_pipes_are_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    graph = pipeline.load(plain())
    for read, error in (
        (read_model, InvalidModelError),
        (read_plan, UsageError),
        (lambda path: read_samples(path, graph), UsageError),
    ):
        with pytest.raises(error, match="not a regular file"):
            read(pipe)


def test_a_plan_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHPRUNE_LIMITS", "0.01")
    (tmp_path / "p.json").write_bytes(b" " * 2**21)
    with pytest.raises(UsageError, match=r"p\.json: larger than 128 MiB, which is the limit for a plan"):
        read_plan(tmp_path / "p.json")


def test_external_data_where_no_initializer_is(tmp_path: Path) -> None:
    """In a constant, in a function and in a sparse tensor."""
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "canary").write_bytes(b"\0" * 400)
    populate(tmp_path / "in", tmp_path / "secret")
    tensor = _external("link")
    constant = helper.make_node("Constant", [], ["t"], value=tensor)
    for place in ("constant", "function", "sparse"):
        model = plain()
        if place == "constant":
            model.graph.node.insert(0, constant)
        elif place == "function":
            model.functions.append(helper.make_function("d", "f", [], ["t"], [constant], [helper.make_opsetid("", 17)]))
        else:
            model.graph.sparse_initializer.add(dims=[100]).values.CopyFrom(tensor)
        with pytest.raises(InvalidModelError, match="points outside the model's folder"):
            read_model(write(model, tmp_path / "in" / "m.onnx"))


def test_external_data_that_many_tensors_name_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[int] = []
    monkeypatch.setattr(model_file, "grant", granted.append)
    (tmp_path / "data").write_bytes(b"\0" * 600)
    model = plain()
    for number in range(5):
        model.graph.initializer.append(_external("data"))
        model.graph.initializer[-1].name = f"t{number}"
    path = write(model, tmp_path / "m.onnx")
    read_model(path)
    assert granted == [path.stat().st_size, 400, 200, 0, 0, 0]


def _external(location: str) -> Any:
    tensor = helper.make_tensor("t", 1, [0], [])
    tensor.dims[:] = [100]
    tensor.data_location = 1
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_archives_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHPRUNE_LIMITS", "0.01")
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("weights", "w", force_zip64=True) as entry:
        for _ in range(20):
            entry.write(b"\0" * 2**20)
    with pytest.raises(InvalidModelError, match=r"m.keras: what is packed in it takes 21 MB of memory"):
        check_archive(path)


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out"])
def test_archives_that_lead_out_of_their_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InvalidModelError, match="leads out of the folder"):
        check_archive(path)


def test_samples_that_lie(tmp_path: Path) -> None:
    graph = pipeline.load(plain())
    path = tmp_path / "s.npz"
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="cannot read the samples: Object arrays cannot be loaded"):
        read_samples(path, graph)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3, 8, 8)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(UsageError, match="cannot read the samples"):
        read_samples(path, graph)


@pytest.mark.parametrize("labels", [np.zeros((4, 2)), np.array(["a"] * 4)])
def test_labels_that_are_none(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "s.npz", x=np.zeros((4, 3, 8, 8), np.float32), labels=labels)
    with pytest.raises(UsageError, match="one number per sample is needed"):
        read_samples(tmp_path / "s.npz", pipeline.load(plain()))


def test_a_function_that_calls_itself(tmp_path: Path, graphprune_cli: Any) -> None:
    model = plain()
    calls = [helper.make_node("f", ["a"], ["b"], domain="d")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    model.functions.append(helper.make_function("d", "f", ["a"], ["b"], calls, opsets))
    model.opset_import.append(opsets[1])
    model.graph.node.append(helper.make_node("f", ["x"], ["z"], domain="d"))
    result = graphprune_cli("analyze", write(model, tmp_path / "m.onnx"))
    assert result.exit_code == 3
    assert "its functions cannot be inlined" in result.stderr


def test_a_model_that_cannot_be_upgraded(tmp_path: Path, graphprune_cli: Any) -> None:
    """The version converter infers shapes, and what it then raises is not its own error."""
    model = net("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }", opset=9)
    model.graph.node.append(helper.make_node("Atanh", [], ["z"]))
    result = graphprune_cli("analyze", write(model, tmp_path / "m.onnx"))
    assert result.exit_code == 3
    assert "cannot upgrade the model from opset 9" in result.stderr


def test_what_a_job_trips_over_is_the_fault_of_an_unsound_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(worker, "_work", stumble)
    monkeypatch.setattr(worker, "_capture_output", lambda *_: None)
    monkeypatch.setattr(limits, "begin", lambda: None)
    model = plain()
    sound = write(model, tmp_path / "sound.onnx")
    model.graph.node[2].input[1] = "w1"
    unsound = write(model, tmp_path / "unsound.onnx")
    reports = [worker.work(worker.Task("t", "d", Job(model=str(path)), tmp_path)) for path in (sound, unsound)]
    assert (reports[0].exit_code, reports[0].message) == (1, "internal error (IndexError: list index out of range)")
    assert reports[1].exit_code == 3
    assert "unsound.onnx: not a valid ONNX model" in reports[1].message


def test_what_trips_over_an_unsound_model_blames_the_model(
    tmp_path: Path, graphprune_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> ModelProto:
        raise IndexError("list index out of range")

    monkeypatch.setattr(pipeline, "analyze", stumble)
    sound = write(plain(), tmp_path / "sound.onnx")
    model = plain()
    model.graph.node[2].input[1] = "w1"
    result = graphprune_cli("analyze", write(model, tmp_path / "unsound.onnx"))
    assert result.exit_code == 3
    assert "unsound.onnx: not a valid ONNX model" in result.stderr
    result = graphprune_cli("analyze", sound)
    assert result.exit_code == 1
    assert "internal error (IndexError" in result.stderr
