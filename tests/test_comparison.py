"""`graphprune compare`: baselines are always there, data for choosing and reporting is kept apart, gaps have reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result as Outcome
from nets import net, write
from onnx import ModelProto

import graphprune
from graphprune.comparison import check_apart, compare, contestants
from graphprune.errors import UsageError
from graphprune.options import Options

Cli = Callable[..., Outcome]
RNG = np.random.default_rng(5)


def classifier() -> ModelProto:
    return net("""
        classifier (float[N,6] x) => (float[N,3] y) <float[12,6] a, float[12] b, float[3,12] c, float[3] d> {
            p = Gemm<transB = 1>(x, a, b)
            q = Relu(p)
            y = Gemm<transB = 1>(q, c, d)
        }""")


def samples(count: int) -> dict[str, np.ndarray]:
    return {"x": RNG.normal(size=(count, 6)).astype(np.float32), "labels": RNG.integers(0, 3, count)}


def test_baselines_and_recipes_at_every_target() -> None:
    graph = graphprune.load(classifier())
    evaluation = samples(40)
    found = compare(
        graph,
        ["balanced", "wanda/global/absorb"],
        ["macs=0.8", "macs=0.5"],
        evaluation,
        Options(calibration=samples(60), align=1),
    )
    names = list(dict.fromkeys(point.recipe for point in found.points))
    assert names == ["random", "uniform magnitude", "balanced", "wanda/global/absorb"]
    assert [point.target for point in found.points] == ["macs=0.8", "macs=0.5"] * 4
    for point in found.points:
        assert 0 < point.macs <= float(point.target.partition("=")[2])
        assert point.proven
        assert point.latency is not None
        assert not point.problem
    from graphprune.evaluation import accuracy

    assert found.accuracy == accuracy(graph.model, evaluation)
    again = graphprune.prune(classifier(), targets="macs=0.5", importance="magnitude", selection="uniform", align=1)
    assert found.points[3].accuracy == accuracy(again.model, evaluation)


def test_what_cannot_be_reached_is_a_row_with_the_reason() -> None:
    graph = graphprune.load(classifier())
    found = compare(graph, ["bn_scale/global"], ["macs=0.5"], samples(8), Options(align=1))
    assert [bool(point.problem) for point in found.points] == [False, False, True]
    assert "no say" in found.points[-1].problem


def test_a_sample_for_both_is_an_error() -> None:
    one, other = samples(10), samples(5)
    check_apart(one, other)
    other["x"][2] = one["x"][7]
    with pytest.raises(UsageError, match="1 samples are in both"):
        check_apart(one, other)


def test_unknown_contestants() -> None:
    with pytest.raises(UsageError, match=r"'bset' is neither a recipe \(fast, balanced, best\) nor"):
        contestants(["bset"])


def files(folder: Path) -> list[Path]:
    model = write(classifier(), folder / "model.onnx")
    np.savez(folder / "eval.npz", **samples(20))
    np.savez(folder / "calibration.npz", x=samples(30)["x"])
    return [model, folder / "eval.npz", folder / "calibration.npz"]


def test_the_command(graphprune_cli: Cli, tmp_path: Path) -> None:
    model, evaluation, calibration = files(tmp_path)
    arguments = ["compare", model, "--eval", evaluation, "--calibration", calibration, "--target", "macs=0.6", "--align", "1"]
    result = graphprune_cli(*arguments)
    assert result.exit_code == 0
    assert "uniform magnitude" in result.stdout
    assert "accuracy on 20 samples that nothing was chosen on" in result.stdout
    found = json.loads(graphprune_cli(*arguments, "--recipes", "fast", "--json", "-").stdout)
    assert [point["recipe"] for point in found["points"]] == ["random", "uniform magnitude", "fast"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--plot", "chart.txt"], "a chart is one of .svg, .png, .pdf"),
        (["--recipes", "nonsense"], "'nonsense' is neither a recipe"),
        (["--json", "missing/report.json"], "the folder missing does not exist"),
    ],
)
def test_wrong_usage(graphprune_cli: Cli, tmp_path: Path, more: list[str], message: str) -> None:
    model, evaluation, _ = files(tmp_path)
    result = graphprune_cli("compare", model, "--eval", evaluation, *more)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_chart(graphprune_cli: Cli, tmp_path: Path) -> None:
    model, evaluation, _ = files(tmp_path)
    chart = tmp_path / "chart.svg"
    result = graphprune_cli("compare", model, "--eval", evaluation, "--recipes", "fast", "--target", "macs=0.6", "--plot", chart)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert result.exit_code == 6
        assert "graphprune[plots]" in result.stderr
        assert not chart.exists()
    else:
        assert result.exit_code == 0
        assert chart.read_text().startswith("<?xml")
