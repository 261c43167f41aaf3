"""Limits by size, the process that is watched, archives, text in models: each with its message and exit code."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_traps import big_named
from nets import initializer, net, plain, set_initializer, write
from onnx import TensorProto, helper

from graphprune import limits, pipeline
from graphprune.errors import InvalidModelError
from graphprune.limits import factor, peak_bytes
from graphprune.model_file import read_model

COMMAND = [sys.executable, "-m", "graphprune"]


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


def begun(
    folder: Path, work: str = "time.sleep(60)", arguments: Sequence[str] = ("analyze", "slow:model"), **options: Any
) -> subprocess.Popen[str]:
    """A command, `analyze`, in a process that another one watches, when it has begun some long work."""
    (folder / "slow.py").write_text(
        f"import time\nfrom pathlib import Path\ndef model():\n    Path('started').touch()\n    {work}\n"
    )
    parent = subprocess.Popen([*COMMAND, *arguments], cwd=folder, text=True, **options)
    while not (folder / "started").exists():
        time.sleep(0.05)
    return parent


def test_a_signal_to_the_parent_reaches_the_child(tmp_path: Path) -> None:
    parent = begun(tmp_path)
    parent.terminate()
    assert parent.wait(10) == -signal.SIGTERM


def test_a_signal_while_a_file_is_written_leaves_nothing(tmp_path: Path) -> None:
    parent = begun(tmp_path, "from graphprune.atomic import atomic_file\n    with atomic_file(Path('out')): time.sleep(60)")
    while not list(tmp_path.glob(".out.*")):
        time.sleep(0.05)
    parent.terminate()
    assert parent.wait(10) == -signal.SIGTERM
    assert {each.name for each in tmp_path.iterdir()} - {"__pycache__"} == {"slow.py", "started"}


def test_an_interrupted_run(tmp_path: Path) -> None:
    """A terminal sends the signal to both processes."""
    parent = begun(tmp_path, start_new_session=True, stderr=subprocess.PIPE)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.communicate(timeout=10)[1].endswith("Aborted!\n")
    assert parent.returncode == 130


def test_a_signal_is_in_the_log_of_events(tmp_path: Path) -> None:
    parent = begun(
        tmp_path, arguments=["prune", "slow:model", "-o", "out.onnx", "--target", "channels=0.5", "--events", "e.jsonl"]
    )
    parent.terminate()
    assert parent.wait(10) == -signal.SIGTERM
    last = json.loads((tmp_path / "e.jsonl").read_text().splitlines()[-1])
    assert [last[key] for key in ("event", "error", "message", "exit_code")] == [
        *("run_failed", "SignalExit", "a signal ended the process", 128 + signal.SIGTERM)
    ]


def test_exit_codes_and_output_pass_through(tmp_path: Path) -> None:
    path = write(plain(), tmp_path / "m.onnx")
    assert supervised("inspect", path).returncode == 0
    assert "opset" in supervised("inspect", path).stdout
    assert supervised("analyze", tmp_path / "no.onnx").returncode == 3
    assert supervised("nonsense").returncode == 2
    assert supervised("inspect", path, GRAPHPRUNE_LIMITS="off").returncode == 0


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """What numpy says of them is not for users; without scores no channel leaves."""
    model = plain()
    set_initializer(model, "w1", np.full_like(initializer(model, "w1"), np.inf))
    path, out = write(model, tmp_path / "m.onnx"), tmp_path / "out.onnx"
    done = supervised("prune", path, "-o", out, "--target", "channels=0.5", "--align", "1")
    assert done.returncode == 2
    assert done.stderr == (
        "graphprune: error: importance 'path' gives scores for 'w1:0' that are no numbers (are all weights and samples finite?); "
        "name another\n"
    )


# ---- how the process ends -----------------------------------------------------------------------


LEAVING = """
import atexit, sys, threading, time
from graphprune.streams import open_streams
from graphprune.supervised import _leave_after

def command():
    print("command")
    sys.exit({code!r})

def slow():
    time.sleep(0.2)
    print("thread")

atexit.register(print, "at exit")
threading.Thread(target=slow).start()
_leave_after(command, open_streams())
"""


@pytest.mark.parametrize(("code", "expected", "said"), [(3, 3, ""), (None, 0, ""), ("a message", 1, "a message\n")])
def test_threads_and_what_is_registered_for_the_exit_are_done(code: object, expected: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING.format(code=code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (expected, said)
    assert done.stdout.split("\n") == ["command", "thread", "at exit", ""]
