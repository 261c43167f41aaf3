"""Time of the compiler's stages, for comparison with an earlier commit on the same machine: `make regressions`.

Start reading at `test_prune`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import graphprune
from graphprune.inference import infer
from graphprune.model_file import read_model
from graphprune.pipeline import load

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
EXAMPLE = HERE.parent.parent / "examples" / "fashion_mnist"


@pytest.fixture(scope="module", params=[12, 48])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-shaped network with so many layers, its weights an empty file."""
    from llama import llama

    path = tmp_path_factory.mktemp("llama") / "llama.onnx"
    llama(request.param, path)
    return path


def test_prune(benchmark: BenchmarkFixture) -> None:
    """Everything but files and the proof, on the shipped example."""
    model = read_model(EXAMPLE / "model.onnx")
    benchmark(graphprune.prune, model, targets=["macs=0.5"], verify=False)


def test_prune_with_proof(benchmark: BenchmarkFixture) -> None:
    """As by default."""
    model = read_model(EXAMPLE / "model.onnx")
    result = benchmark(graphprune.prune, model, targets=["macs=0.5"])
    assert result.proof is not None
    assert result.proof.passed


def test_prune_unconstrained(benchmark: BenchmarkFixture) -> None:
    """Every reader with channels of its own, and the search for an order."""
    model = read_model(EXAMPLE / "model.onnx")
    benchmark(graphprune.prune, model, targets=["macs=0.5"], mode="unconstrained", verify=False)


def test_prune_balanced(benchmark: BenchmarkFixture) -> None:
    """With calibration and repair."""
    model = read_model(EXAMPLE / "model.onnx")
    with np.load(EXAMPLE / "calibration.npz") as arrays:
        samples = {name: arrays[name].astype(np.float32) for name in arrays.files}
    options = {"targets": ["macs=0.5"], "calibration": samples, "verify": False}
    benchmark.pedantic(graphprune.prune, (model,), options, rounds=1)


def test_normalise(benchmark: BenchmarkFixture, large: Path) -> None:
    """Reading and normalising, weights left where they are."""
    benchmark.pedantic(load, (large,), rounds=3, warmup_rounds=1)


def test_find_groups(benchmark: BenchmarkFixture, large: Path) -> None:
    """The dependency analysis alone."""
    graph = load(large)
    analysis = benchmark.pedantic(infer, (graph,), rounds=3, warmup_rounds=1)
    assert analysis.groups
