"""The same two networks in three frameworks: the plans drop the same number of channels in corresponding layers.

Each framework has a marker and needs its extra: `pytest -m jax`.  The expected numbers are written down, so that every
environment checks against the same ones.
"""

from __future__ import annotations

import importlib
from typing import Any

import onnx
import oracle
import pytest

import graphprune

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"torch": "framework_torch", "keras": "framework_keras", "jax": "framework_jax"}
CASES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in SMALL]


def nets(framework: str) -> Any:
    return importlib.import_module(SMALL[framework])


def kept(result: graphprune.Result) -> list[tuple[int, int]]:
    """(size, kept) of every group, in an order that does not depend on names."""
    sizes = {group.id: group.size for group in result.analysis.groups}
    return sorted((sizes[name], len(units)) for name, units in result.keep.items())


@pytest.mark.parametrize("framework", CASES)
@pytest.mark.parametrize("network", ["resnet", "transformer"])
def test_the_same_network_gives_the_same_plan(framework: str, network: str) -> None:
    source = getattr(nets(framework), network)()
    result = graphprune.prune(source, targets=["channels=0.5"], selection="uniform", align=1)
    assert result.proof is not None
    assert result.proof.passed
    expected = {
        "resnet": [(16, 8), (16, 8), (24, 12), (24, 12), (24, 12)],
        "transformer": [(4, 2), (4, 2), (6, 3), (6, 3), (6, 3), (6, 3), (40, 20), (40, 20)],
    }
    assert kept(result) == expected[network]
    feeds = oracle.random_feeds(result.original.model)
    assert oracle.run(result.model, feeds).keys() == oracle.run(result.original.model, feeds).keys()


@pytest.mark.parametrize("framework", CASES)
def test_a_budget_is_met_in_every_framework(framework: str) -> None:
    result = graphprune.prune(nets(framework).resnet(), targets=["macs=0.5"], align=1)
    assert 0.485 <= result.after.macs / result.before.macs <= 0.5


@pytest.mark.parametrize("framework", CASES)
def test_parameters_keep_the_names_of_the_framework(framework: str) -> None:
    module = nets(framework)
    names = {tensor.name for tensor in graphprune.load(module.transformer()).model.graph.initializer}
    assert module.HEAD in names


@pytest.mark.sklearn
def test_a_perceptron_of_scikit_learn(tmp_path: Any) -> None:
    import numpy as np
    import skops.io
    from sklearn.neural_network import MLPClassifier

    rng = np.random.default_rng(0)
    model = MLPClassifier((16, 12), max_iter=5, random_state=0).fit(rng.standard_normal((60, 10)), rng.integers(0, 3, 60))
    result = graphprune.prune(model, targets=["channels=0.5"], align=1, selection="uniform")
    assert {name: len(units) for name, units in result.keep.items()} == {"coefs_.0:1": 8, "coefs_.1:1": 6}
    skops.io.dump(model, tmp_path / "model.skops")
    again = graphprune.prune(tmp_path / "model.skops", targets=["channels=0.5"], align=1, selection="uniform")
    assert again.keep == result.keep


@pytest.mark.paddle
def test_a_network_of_paddle(tmp_path: Any) -> None:
    paddle = pytest.importorskip("paddle")
    from framework_paddle import Small

    paddle.seed(0)
    model = Small()
    model.eval()
    spec = [paddle.static.InputSpec([None, 3, 16, 16], "float32", "x")]
    paddle.jit.save(model, str(tmp_path / "model"), input_spec=spec)
    result = graphprune.prune(tmp_path / "model.json", targets=["channels=0.5"], align=1, selection="uniform")
    assert sorted(len(units) for units in result.keep.values()) == [4, 6]
    assert result.proof is not None
    assert result.proof.passed


@pytest.mark.torch
def test_archives_and_programs_of_torch(tmp_path: Any) -> None:
    import framework_torch
    import torch

    module, inputs = framework_torch.resnet()
    program = torch.export.export(module, inputs)
    torch.export.save(program, tmp_path / "model.pt2")
    sources = (module, inputs), program, tmp_path / "model.pt2"
    plans = [graphprune.prune(source, targets=["channels=0.5"], align=1, selection="uniform").keep for source in sources]
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.torch
def test_torch_on_the_command_line(graphprune_cli: Any, tmp_path: Any) -> None:
    out = tmp_path / "out.onnx"
    result = graphprune_cli("import", "framework_torch:untraced", "-o", out)
    assert result.exit_code == 2
    assert "--input-shape" in result.stderr
    result = graphprune_cli("import", "framework_torch:untraced", "-o", out, "--input-shape", "x=1,3,16,16")
    assert result.exit_code == 0, result.stderr
    onnx.checker.check_model(onnx.load(out))


@pytest.mark.keras
def test_files_of_keras_and_tensorflow(tmp_path: Any) -> None:
    import framework_keras

    model = framework_keras.resnet()
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "saved", verbose=False)
    sources = model, tmp_path / "model.keras", tmp_path / "saved"
    plans = [kept(graphprune.prune(source, targets=["channels=0.5"], align=1, selection="uniform")) for source in sources]
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.keras
def test_weights_of_large_models_are_read_before_the_converters_file_is_gone(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import framework_keras

    monkeypatch.setattr("graphprune.model_file.MAPPED", 0)
    model = framework_keras.resnet()
    model.export(tmp_path / "saved", verbose=False)
    for source in (model, tmp_path / "saved"):
        assert graphprune.prune(source, targets=["channels=0.5"], align=1).proof
