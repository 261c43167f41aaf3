"""The benchmarks' statistics, their page and how they run programs; nothing is measured here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("areas", "children", "page", "reproduce", "results")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Any]:
    """The modules of benchmarks/, which is a folder of scripts and no package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in MODULES})
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def run(tool: str, seconds: float, number: int = 0, **more: Any) -> dict[str, Any]:
    """A row of the area compile."""
    return {"network": "net", "tool": tool, "round": number, "seconds": seconds, "peak_mib": 100.0, "phases": more}


@pytest.fixture
def compile_rows() -> list[dict[str, Any]]:
    """Torch-Pruning is quicker with one thread; onnxsim failed."""
    rows = [{"network": "net", "megabytes": 1.0}]
    for number, (own, peer) in enumerate(((1.0, 8.0), (2.0, 20.0), (1.0, 11.0))):
        rows += [
            run("graphprune", own, number),
            run("graphprune, from Python", 3.0, number, prune=0.5),
            run("Torch-Pruning, 1 thread", peer, number, build=1.0, step=peer - 3),
            run("Torch-Pruning, all threads", 30.0, number, build=9.0, step=9.0),
            run("copy of the file", 9.0, number, copy=0.25),
        ]
    return [*rows, {"network": "net", "tool": "onnxsim", "round": 0, "error": "ValueError: a | b"}]


def document(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    surroundings = {"date": "2026-01-02 03:04:05 UTC", "torch": "2.13.0"}
    return {"size": "quick", "surroundings": surroundings, "cores": 2, "load": 0.1, "seconds": 90, "rows": rows, **more}


def test_a_spread_is_median_smallest_and_largest(benchmarks: Any) -> None:
    spread = benchmarks.results.Spread
    assert spread.of([3.0, 1.0, 8.0]) == spread(3.0, 1.0, 8.0, 3)
    assert spread.of_ratio([8.0, 20.0, 11.0], [1.0, 2.0, 1.0]) == spread(10.0, 8.0, 11.0, 3)
    assert spread.of_ratio([8.0, 20.0, 11.0], [1.0]) == spread(8.0, 8.0, 8.0, 1)
    assert spread.of([3.0, 1.0, 8.0]).text(1, " s") == "3.0 s (1.0 to 8.0)"
    assert spread.of([3.0]).text() == "3.00"
    assert spread.of([1.0, 2.0]).overlaps(spread.of([2.0, 3.0]))
    assert not spread.of([1.0, 2.0]).overlaps(spread.of([2.1, 3.0]))
    assert spread.of([1.0, 2.0]).overlaps(spread.of([2.4, 3.0]), margin=0.1)
    assert spread.of([2.4, 3.0]).overlaps(spread.of([1.0, 2.0]), margin=0.1)
    assert not spread.of([1.0, 2.0]).overlaps(spread.of([2.5, 3.0]), margin=0.1)
    with pytest.raises(ValueError, match="nothing was measured"):
        spread.of([])


def test_values_leave_out_what_failed(benchmarks: Any) -> None:
    rows = [
        {"tool": "a", "phases": {"prune": 1}},
        {"tool": "a", "phases": {}},
        {"tool": "a", "phases": {"prune": 9}, "error": "no"},
        {"tool": "b"},
    ]
    assert benchmarks.results.values(rows, "phases.prune", tool="a") == [1.0]
    assert benchmarks.results.error(rows, tool="a") == "no"
    assert benchmarks.results.error(rows, tool="b") is None


def test_ratios_are_to_the_quicker_setting_of_the_peer(benchmarks: Any, compile_rows: list[dict[str, Any]]) -> None:
    found = benchmarks.areas.area("compile").ratios(compile_rows)
    spread = benchmarks.results.Spread
    assert found["Torch-Pruning / graphprune, whole process"]["net"] == spread(10.0, 8.0, 11.0, 3)
    assert found["Torch-Pruning / graphprune, in process"]["net"] == spread(18.0, 12.0, 36.0, 3)
    assert found["graphprune, whole process / copy"]["net"] == spread(4.0, 4.0, 8.0, 3)
    assert not any("onnxsim" in name for name in found)


def test_half_of_theirs_is_set_against_all_of_ours(benchmarks: Any, compile_rows: list[dict[str, Any]]) -> None:
    """With the quicker number of threads on a quiet machine, with all of them on a busy one; what failed is left out."""
    busy = [run("graphprune, busy", 2.0), run("Torch-Pruning, all threads, busy", 90.0, build=11.0, step=5.0)]
    other = [{**row, "network": "other"} for row in compile_rows if not row.get("tool", "").startswith("Torch-Pruning")]
    lines = benchmarks.areas.area("compile").beside_work([*compile_rows, *busy, *other])
    assert lines[-3:] == [
        "| net | 9.00 s (6.00 to 18.00) | 1.00 s (1.00 to 2.00) | 9.0 (6.0 to 9.0) | 16.00 s | 2.00 s | 8.0 |",
        "| other | - | - | - | - | - | - |",
        "| **median** |  |  | **9.0** |  |  | **8.0** |",
    ]


def test_a_loop_for_each_processor_ends_with_the_block(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words: loops.append(start(words)) or loops[-1])
    with benchmarks.children.busy_processors():
        assert len(loops) == len(os.sched_getaffinity(0))
        assert all(loop.poll() is None for loop in loops)
    assert all(loop.returncode is not None for loop in loops)


def test_the_page_shows_failures_origin_and_load(benchmarks: Any, compile_rows: list[dict[str, Any]], tmp_path: Path) -> None:
    benchmarks.results.write("compile", document(compile_rows, load=1.5), tmp_path)
    gathers = [
        {"network": "net", "tool": "graphprune", "gathers": 3, "slices": 4},
        {"network": "net", "tool": "apple-upscale", "error": "E: x"},
    ]
    benchmarks.results.write("ordering", document(gathers), tmp_path)
    text = benchmarks.page.page(tmp_path, tmp_path)
    assert (
        "| net | 1.00 s (1.00 to 2.00) | 11.00 s (8.00 to 20.00) | 30.00 s (30.00 to 30.00) | failed: `ValueError: a \\| b` |"
        in text
    )
    assert "| net | **3** gathers, 4 ranges | failed: `E: x` |" in text
    assert text.count("*2026-01-02, a quick run: few networks, few repeats, 2 minutes.") == 2
    assert text.count("trust ratios and counts, not seconds") == 1
    assert "Compile time and memory, Ordering:" in text
    assert "| torch | 2.13.0 |" in text
    assert "## Latency" not in text


def test_latency_accuracy_coverage_and_scale_on_the_page(benchmarks: Any, tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "latency": [
            {
                "network": "net",
                "keep": 0.7,
                "threads": 1,
                "tool": "graphprune",
                "original_ms": [4.0],
                "ratios": [0.5, 0.7, 0.6],
                "macs": 0.5,
            },
            {
                "network": "net",
                "keep": 0.7,
                "threads": 1,
                "tool": "Torch-Pruning",
                "original_ms": [4.0],
                "ratios": [1.5],
                "macs": 0.5,
            },
            {"network": "net", "keep": 0.7, "threads": 1, "tool": "onnxsim", "error": "E: x"},
        ],
        "accuracy": [
            {"network": "net", "tool": "original", "level": 1.0, "images": 100, "accuracy": 0.9, "macs": 1.0},
            {"network": "net", "tool": "graphprune fast", "level": 0.5, "images": 100, "accuracy": 0.8, "macs": 0.49},
            {"network": "net", "tool": "onnxsim", "level": 0.5, "images": 100, "error": "E: x"},
        ],
        "coverage": [
            {"network": "net", "exporter": "dynamo", "keep": 0.5, "tool": "graphprune", "params": 0.3, "proven": True},
            {"network": "net", "exporter": "dynamo", "keep": 0.5, "tool": "onnxsim", "params": 1.0},
            {"network": "net", "exporter": "dynamo", "keep": 0.5, "tool": "Torch-Pruning", "error": "E: x"},
        ],
        "scale": [
            {"tool": "t", "layers": layers, "nodes": 42 * layers, "seconds": 1.0 + layers**2, "peak_mib": 5.0}
            for layers in (0, 10, 100)
        ],
    }
    for name, each in rows.items():
        benchmarks.results.write(name, document(each), tmp_path)
    text = benchmarks.page.page(tmp_path, tmp_path)
    assert "| net | 4.00 ms | 0.60 (0.50 to 0.70), 0.50 MACs | - | 1.50 **slower**, 0.50 MACs | - | - | failed: `E: x` |" in text
    assert "The original: 90.00% on 100 test images, standard error 3.0 points." in text
    assert "| graphprune fast | **80.00 % [0.490]** |\n| onnxsim | failed: `E: x` |" in text
    assert "| graphprune | 1 | 1 | 0 | 0 | 0 |\n| Torch-Pruning | 1 | 0 | 0 | 0 | 1 |\n| onnxsim | 1 | 0 | 0 | 1 | 0 |" in text
    assert "| net | 0.5 | Torch-Pruning | `E: x` |" in text
    assert "Exponent: 2.00." in text


def test_what_is_slower_is_measured_again(benchmarks: Any) -> None:
    runs = [[{"tool": "a", "ratios": [0.9, 1.1, 1.2]}, {"tool": "b", "ratios": [0.5]}], [{"tool": "a", "ratios": [0.95]}]]
    confirmed = benchmarks.areas.area("speed")._confirmed
    for second, expected in [
        ([*runs[1], {"tool": "b", "ratios": [0.6]}], [[0.95], [0.5]]),
        ([{"tool": "a", "ratios": [1.3]}, {"tool": "b", "ratios": [0.4]}], [[0.9, 1.1, 1.2], [0.4]]),
        ([{"tool": "ONNX Runtime", "error": "killed"}], [[0.9, 1.1, 1.2], [0.5]]),
    ]:
        turns = iter([runs[0], second])
        assert [row["ratios"] for row in confirmed(lambda turns=turns: next(turns))] == expected
    once = iter([[{"tool": "a", "ratios": [1.02]}]])
    assert confirmed(lambda: next(once)) == [{"tool": "a", "ratios": [1.02]}]


def test_speed_on_the_page(benchmarks: Any, tmp_path: Path) -> None:
    def timed(network: str, target: str, batch: int, tool: str, *ratios: float) -> dict[str, Any]:
        base = {"network": network, "target": target, "batch": batch, "tool": tool}
        return {**base, "ratios": list(ratios), "original_ms": [1.0], "macs": 0.5}

    rows = [
        timed("a", "macs=0.5", 1, "graphprune", 0.5, 0.6, 0.7),
        timed("a", "macs=0.5", 1, "Torch-Pruning", 1.1, 1.2, 1.3),
        timed("a", "channels=0.9", 1, "graphprune", 1.02),
        {"network": "a", "target": "channels=0.9", "tool": "Torch-Pruning", "error": "E: x"},
        timed("b", "macs=0.5", 1, "graphprune", 0.8),
        timed("b", "macs=0.5", 8, "graphprune", 1.03),
    ]
    benchmarks.results.write("speed", document(rows), tmp_path)
    text = benchmarks.page.page(tmp_path, tmp_path)
    assert "| network | `macs=0.5` | `channels=0.9` |" in text
    assert "| a | 0.60, **1.20** | 1.02, - |\n| b | 0.80, - | -, - |" in text
    assert (
        "| **median** | 0.70 of 2, **1.20** of 1 | 1.02 of 1, - |\n| **largest** | 0.80 of 2, **1.20** of 1 | 1.02 of 1, - |"
        in text
    )
    assert "Batch 8:\n\n| network | `macs=0.5` | `channels=0.9` |\n|---|---|---|\n| b | **1.03**, - | -, - |" in text
    assert "| a | Torch-Pruning | `E: x` |" in text
    assert len(benchmarks.areas.area("speed").figures(rows)) == 5


def test_architectures_on_the_page(benchmarks: Any, tmp_path: Path) -> None:
    shares = {"pin": 0.9, "kept": 1.0}
    measured = {"nodes": 7, "shares": shares, "seconds": 1.2, "peak_mib": 150.4}
    proven = {"0.5": {"params": 0.6, "difference": 2e-7}, "0.7": {"params": 0.8, "difference": 1e-7}}
    counts = {"models": 3, "proven": 1, "refused": 4, "failed": 1}
    rows = [
        {"network": "onnx/backend tests", "counts": counts, "failures": ["a: b"], "slowest": 2.0},
        {"network": "timm/a", **measured, "results": proven},
        {"network": "timm/b", **measured, "results": {**proven, "0.5": {"refused": "every axis is pinned"}}},
        {"network": "timm/c", "error": "ProofError: NOT equal"},
        {"network": "torchvision/d", "export": "ConversionError"},
    ]
    benchmarks.results.write("architectures", document(rows), tmp_path)
    text = benchmarks.page.page(tmp_path, tmp_path)
    assert "| timm | 3 | 1 | 1 | 1 | 0 |\n| torchvision | 1 | 0 | 0 | 0 | 1 |" in text
    assert "3 models, 1 runs proven, 4 refused, 1 failed, the slowest in 2.0 s. `a: b`" in text
    assert "| timm/a | 7 | 0.900 | 1.000 | 0.800 | 0.600 | 2.0e-07 | 1 | 150 |" in text
    assert "| timm/b | refused | `every axis is pinned` |\n| timm/c | failed | `ProofError: NOT equal` |" in text
    assert benchmarks.areas.area("architectures").figures(rows)["onnx/backend tests"] == "failed"


def test_the_page_in_the_documentation_is_what_the_results_give(benchmarks: Any) -> None:
    docs = ROOT / "docs"
    text = benchmarks.page.page(benchmarks.results.FOLDER, docs / "benchmarks")
    assert text == (docs / "benchmarks.md").read_text(encoding="utf-8"), "run python benchmarks/page.py"
    assert text.count("\n## ") == len(list(benchmarks.results.FOLDER.glob("*.json"))) + 1


def test_a_second_run_is_compared(benchmarks: Any, compile_rows: list[dict[str, Any]], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        benchmarks.results.write("compile", document(compile_rows), folder)
    assert benchmarks.reproduce.differences(one, two) == (3, [])
    slower = [
        {**row, "seconds": row["seconds"] / (10 if row.get("tool") == "graphprune" else 1)} if "seconds" in row else row
        for row in compile_rows
    ]
    benchmarks.results.write("compile", document(slower), two)
    compared, lines = benchmarks.reproduce.differences(one, two)
    assert compared == 3
    assert len(lines) == 2
    assert lines[0].startswith("compile: net: Torch-Pruning / graphprune, whole process: 10.000 (8.000 to 11.000), then 100.000 ")


def test_results_of_another_format_are_refused(benchmarks: Any, tmp_path: Path) -> None:
    (tmp_path / "scale.json").write_text(json.dumps({"schema": "other"}))
    with pytest.raises(ValueError, match=r"scale\.json: schema 'other', not 'graphprune\.benchmark/1'"):
        benchmarks.results.read("scale", tmp_path)
    assert benchmarks.results.read("latency", tmp_path) is None


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise ValueError('no\\nmore')", "more"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import time; time.sleep(60)", "no result within 1 s"),
    ],
)
def test_a_program_that_fails(benchmarks: Any, code: str, error: str) -> None:
    row = benchmarks.children.run(benchmarks.children.Command([sys.executable, "-c", code]), 1)
    assert row["error"] == error
    assert row["seconds"] < 20


def test_programs_take_turns_and_report(benchmarks: Any) -> None:
    command = benchmarks.children.Command
    good = command(
        [sys.executable, "-c", "import os; x = bytearray(200 << 20); print('text'); print('{\"a\": ' + os.environ['A'] + '}')"],
        {"A": "7"},
    )
    bad = command([sys.executable, "-c", 'print(\'{"error": "E: x"}\')'])
    rows = benchmarks.children.in_turns({"good": good, "bad": bad}, 2, 60)
    assert [(row["tool"], row["round"], row.get("a"), row.get("error")) for row in rows] == [
        ("good", 0, 7, None),
        ("bad", 0, None, "E: x"),
        ("good", 1, 7, None),
    ]
    assert rows[0]["peak_mib"] > 200
    assert 0 < rows[0]["seconds"] < 60


def test_every_area_says_what_it_measures(benchmarks: Any) -> None:
    for name in benchmarks.areas.AREAS:
        module = benchmarks.areas.area(name)
        assert module.TITLE
        assert all(callable(getattr(module, part)) for part in ("measure", "section", "plot", "figures"))
