"""Tuning: measures schedules of each contraction and keeps them in a MetaSchedule database.

The search runs in a process of its own, because generated code may crash; whatever was measured until then stays.  Every
contraction has a few dozen ways to walk its tiles (`candidates`); the default comes first, then the others in a random order,
the kernels that take most of the time more often.  What the database has is not measured again, so that an interrupted tuning
goes on.  Start reading at `tuned`.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.s_tir import meta_schedule

from graphprune.errors import UsageError

from .tvm_backend import use_threads
from .tvm_schedule import ORDERS, Walk, scheduled, tile_of
from .tvm_tiles import Machine, machine_of

AT_ONCE = 4
"""Candidates of one kernel that are measured before the next kernel's turn, once each has a time."""

REPEATS = 5
"""Each candidate's time is the least of so many samples: other programs only ever add to it."""

SAMPLE_MS = 10

FILES = ("database_workload.json", "database_tuning_record.json")


def tuned(
    module: Any,
    options: Mapping[str, Any],
    trials: int,
    seconds: float,
    database: str,
    step: Callable[[str], None],
) -> tuple[Any, int]:
    """The module with the best schedules that the database knows after so many trials or seconds, and how many these are.

    Without trials and seconds nothing is measured.  Raises UsageError where the database's folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="graphprune-") as temporary:
        folder = Path(database or temporary) / _key(options)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{database}: cannot keep the tuning database there: {error.strerror}") from error
        if trials or seconds:
            _search_elsewhere(module, options, trials, seconds, folder, step)
        return _applied(module, options, folder)


def _key(options: Mapping[str, Any]) -> str:
    """The folder for one target: times on one processor say nothing about another."""
    return hashlib.sha256(json.dumps(dict(options), sort_keys=True).encode()).hexdigest()[:12]


def _search_elsewhere(
    module: Any, options: Mapping[str, Any], trials: int, seconds: float, folder: Path, step: Callable[[str], None]
) -> None:
    job = {"module": tvm.ir.save_json(module), "options": dict(options), "trials": trials, "seconds": seconds}
    command = [sys.executable, "-m", "graphprune.exporters.tvm_tuning", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            json.dump(job, child.stdin)
            child.stdin.close()
            for line in child.stdout:
                step(line.strip())
                print(line.strip(), file=sys.stderr, flush=True)
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        reason = f"signal {signal.Signals(-child.returncode).name}" if child.returncode < 0 else f"exit code {child.returncode}"
        print(f"tuning ended early ({reason}); what was measured is kept", file=sys.stderr)


def _applied(module: Any, options: Mapping[str, Any], folder: Path) -> tuple[Any, int]:
    """The module with the database's best schedules."""
    database = opened(folder)
    target = tvm.target.Target(dict(options))
    known = sum(bool(best(database, function, target)) for _, function in contractions(module))
    with target, database:
        return relax.transform.MetaScheduleApplyDatabase()(module), known


def opened(folder: Path) -> Any:
    """The database in a folder; lines that were cut off when a process was killed are dropped."""
    for name in FILES:
        path = folder / name
        if path.exists():
            data = path.read_bytes()
            if not data.endswith(b"\n"):
                path.write_bytes(data[: data.rfind(b"\n") + 1])
    return meta_schedule.database.JSONDatabase(work_dir=str(folder))


def contractions(module: Any) -> Iterator[tuple[str, Any]]:
    """The loop functions that can be tuned."""
    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled", False) and tile_of(function):
            yield name.name_hint, function


def best(database: Any, function: Any, target: Any) -> float:
    """The least seconds that the database has for a function; 0 where it has none."""
    workload = _workload(function)
    if not database.has_workload(workload):
        return 0.0
    records = database.get_top_k(database.commit_workload(workload), 1)
    return float(min(records[0].run_secs)) if records else 0.0


def _workload(function: Any) -> Any:
    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


# ---- the search -----------------------------------------------------------------------------------


@dataclass
class Kernel:
    """One contraction to tune."""

    name: str
    function: Any
    calls: int
    waiting: list[Walk]
    seconds: float = 0.0
    measured: set[str] = field(default_factory=set)


def candidates(function: Any, machine: Machine) -> list[Walk]:
    """Every way to walk the tiles of a contraction, the default first."""
    found = tile_of(function)
    if found is None:
        return []
    tile, (row, depth), rank = found
    vectors = max(1, tile.lanes // machine.floats)
    limit = max(tile.positions, machine.registers // vectors + 2)
    positions = [size for size in range(1, row + 1) if row % size == 0 and size <= limit]
    orders = range(len(ORDERS)) if rank > 2 else range(1)
    steps = [size for size in (1, 2, 4, 8, 16) if depth % size == 0]
    every = [Walk(size, order, step) for size in positions for order in orders for step in steps]
    random.Random(0).shuffle(every)  # noqa: S311
    return [Walk(tile.positions), *every]


def search(module: Any, target: Any, trials: int, seconds: float, folder: Path, say: Callable[[str], None]) -> None:
    """Measure candidates until the trials or the seconds are used up, or none is left."""
    start = time.monotonic()
    database = opened(folder)
    machine = machine_of(target)
    counts = _calls(module)
    kernels = [
        Kernel(name, function, counts.get(name, 1), candidates(function, machine)) for name, function in contractions(module)
    ]
    for kernel in kernels:
        _recall(kernel, database)
    done = 0
    first = 0.0
    while any(kernel.waiting for kernel in kernels):
        for kernel in _turns(kernels):
            for _ in range(min(AT_ONCE if kernel.seconds else 1, len(kernel.waiting))):
                if (trials and done >= trials) or (seconds and time.monotonic() - start >= seconds):
                    return
                done += _try(kernel, kernel.waiting.pop(0), database, target, machine)
        total = sum(kernel.seconds * kernel.calls for kernel in kernels) * 1e3
        first = first or total
        spent = time.monotonic() - start
        say(f"tuning: {done} trials in {spent:.0f} s, contractions {first:.3f} ms -> {total:.3f} ms")


def _turns(kernels: list[Kernel]) -> list[Kernel]:
    """Who is measured in a round: everyone who has no time yet, else the kernels that take most of it, half of them."""
    waiting = [kernel for kernel in kernels if kernel.waiting]
    fresh = [kernel for kernel in waiting if not kernel.seconds]
    return fresh or sorted(waiting, key=lambda kernel: -kernel.seconds * kernel.calls)[: max(1, len(waiting) // 2)]


def _calls(module: Any) -> dict[str, int]:
    """How often the network calls each loop function."""
    counts: dict[str, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.call_tir":
            name = node.args[0].name_hint
            counts[name] = counts.get(name, 0) + 1

    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return counts


def _recall(kernel: Kernel, database: Any) -> None:
    """What the database has about a kernel."""
    workload = database.commit_workload(_workload(kernel.function))
    for record in database.get_top_k(workload, 10_000):
        kernel.measured.add(str(record.trace.as_json()))
        kernel.seconds = min(kernel.seconds or float("inf"), float(min(record.run_secs)))


def _try(kernel: Kernel, walk: Walk, database: Any, target: Any, machine: Machine) -> int:
    """Measure a candidate and record it; 1 where that took place, 0 where it was known or cannot be built."""
    try:
        schedule = scheduled(_workload(kernel.function)["main"], machine, walk)
    except s_tir.ScheduleError:
        return 0
    key = str(schedule.trace.as_json())
    if key in kernel.measured:
        return 0
    kernel.measured.add(key)
    arguments = meta_schedule.arg_info.ArgInfo.from_prim_func(kernel.function)
    seconds = _measured(schedule.mod, arguments, target)
    workload = database.commit_workload(_workload(kernel.function))
    database.commit_tuning_record(meta_schedule.database.TuningRecord(schedule.trace, workload, [seconds], target, arguments))
    kernel.seconds = min(kernel.seconds or float("inf"), seconds)
    return 1


def _measured(module: Any, shapes: list[Any], target: Any) -> float:
    """Seconds for one call, on random inputs."""
    import numpy as np

    with target:
        library = tvm.compile(module, target=target)
    rng = np.random.default_rng(0)
    arguments = [tvm.runtime.tensor(rng.standard_normal([int(n) for n in each.shape]).astype(str(each.dtype))) for each in shapes]
    timer = library.jit().time_evaluator("main", tvm.cpu(), repeat=REPEATS, min_repeat_ms=SAMPLE_MS)
    return float(min(timer(*arguments).results))


def main() -> None:
    """The process of its own: a job on standard input, progress on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    job = json.load(sys.stdin)
    use_threads(job["options"].get("num-cores", 0))
    target = tvm.target.Target(job["options"])
    module = tvm.ir.load_json(job["module"])

    def say(text: str) -> None:
        print(text, flush=True)

    search(module, target, job["trials"], job["seconds"], Path(sys.argv[1]), say)


if __name__ == "__main__":
    main()
