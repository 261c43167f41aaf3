"""Real trained networks of `../shared/data`: `pytest -m shared`.  Nothing here is part of the default tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import oracle
import pytest

import graphprune
from graphprune.errors import UnreachableError
from graphprune.model_file import load_what_fits

FOLDER = Path(os.environ.get("GRAPHPRUNE_SHARED", Path(__file__).parent.parent.parent / "shared")) / "data" / "onnx"

SIZES = {"ch_PP-OCRv3_det_infer": {"?": 64}, "silero_vad_16k_op15": {"sequence": 512}}
"""Sizes of dynamic dimensions that the oracle has to be told."""

SILENT = {"magika_standard_v3_3", "vnn23_ibp_3_3_8"}
"""Networks that sum over activations (attention scores, a decomposed LayerNorm): no weight in which an index could be zeroed."""

PINNED = {"dtln_model_2"}
"""An unrolled LSTM whose states are inputs and outputs; all that is left is behind a normalisation."""

pytestmark = pytest.mark.shared
files = sorted(FOLDER.glob("*.onnx")) if FOLDER.is_dir() else []
names = pytest.mark.parametrize("path", files, ids=[path.stem for path in files])


def test_the_models_are_there() -> None:
    assert len(files) >= 29


@names
@pytest.mark.parametrize("channels", [0.9, 0.7, 0.5, 0.3])
def test_a_pruned_model_equals_the_masked_original(path: Path, channels: float) -> None:
    graph = graphprune.load(path)
    if path.stem in PINNED:
        with pytest.raises(UnreachableError, match="every axis is pinned"):
            graphprune.prune(graph, targets=[f"channels={channels}"], align=1)
        return
    result = graphprune.prune(graph, targets=[f"channels={channels}"], align=1)
    assert result.proof is not None
    assert result.after.channels <= channels * result.before.channels
    plan = json.loads(result.plan.to_json())
    if path.stem == "silero_vad_16k_op15":
        return  # its inputs must have sizes that only its authors know; the proof found some
    load_what_fits(graph.model)
    options = {"silence": path.stem in SILENT, "sizes": SIZES.get(path.stem)}
    error, output = oracle.max_error(graph.model, plan, result.model, **options)
    assert error < 1e-4, f"{output!r} differs by {error:.1e}"


@names
def test_normalising_twice_changes_nothing(path: Path) -> None:
    once = graphprune.load(path).model
    assert graphprune.load(once).model.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


@names
def test_half_of_the_macs_of_every_model(path: Path) -> None:
    normalization = "kept" if path.stem in PINNED else "pin"
    result = graphprune.prune(path, targets=["macs=0.5"], align=1, normalization=normalization)
    least = 0.465 if path.stem == "cntk_mnist" else 0.485  # one of its 24 channels is 0.03 of the MACs
    assert least <= result.after.macs / result.before.macs <= 0.5
    assert result.proof is not None
    assert result.proof.passed


CIFAR = ["cifar_resnet20", "cifar_resnet56", "cifar_densenetbc100"]


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("selection", ["uniform", "global", "isomorphic"])
def test_half_of_the_macs(name: str, exporter: str, selection: str) -> None:
    result = graphprune.prune(FOLDER / f"{name}_{exporter}.onnx", targets=["macs=0.5"], align=1, selection=selection)
    assert 0.485 <= result.after.macs / result.before.macs <= 0.5
    assert result.proof is not None


@pytest.mark.parametrize("name", CIFAR)
def test_both_exporters_lead_to_the_same_groups(name: str) -> None:
    sizes = [
        sorted(group.size for group in graphprune.analyze(FOLDER / f"{name}_{exporter}.onnx").groups)
        for exporter in ("dynamo", "legacy")
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("name", CIFAR)
def test_every_convolution_is_reached(name: str, exporter: str) -> None:
    """Only the network's own inputs and outputs are pinned."""
    reasons = {entry.reason.text for entry in graphprune.analyze(FOLDER / f"{name}_{exporter}.onnx").pinned}
    assert reasons == {"network input 'image' keeps its shape", "network output 'logits' keeps its shape"}
