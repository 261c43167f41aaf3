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
from graphprune import calibration, pipeline, registry
from graphprune.comparison import check_apart, compare, contestants
from graphprune.errors import UsageError
from graphprune.options import Options
from graphprune.registry import specs_of

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


def test_a_recipe_scores_once_for_all_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    wanda = registry.load("importance", "wanda")
    scored, score = [], wanda.score
    monkeypatch.setattr(wanda, "score", lambda self, group, evidence: scored.append(group.id) or score(self, group, evidence))
    graph = graphprune.load(classifier())
    compare(graph, ["wanda/global"], ["macs=0.8", "macs=0.5"], samples(8), Options(calibration=samples(20), align=1))
    assert scored == [group.id for group in graphprune.analyze(graph).groups]


def three_layers() -> ModelProto:
    return net("""
        three (float[1,2,7,7] x) => (float[1,3,7,7] y) <float[8,2,1,1] a, float[8,8,1,1] b, float[3,8,1,1] c> {
            p = Conv(x, a)
            q = Relu(p)
            r = Conv(q, b)
            s = Relu(r)
            y = Conv(s, c)
        }""")


@pytest.mark.parametrize("spec", ["magnitude", "wanda"])
def test_a_target_gets_what_it_would_get_alone(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    """Repairs draw rows at random: what an earlier target drew must not change what a later one draws."""
    monkeypatch.setattr(calibration, "LEAST_ROWS", 40)
    monkeypatch.setattr(calibration, "ROWS_PER_COLUMN", 1)
    images = {"x": RNG.normal(size=(4, 2, 7, 7)).astype(np.float32)}
    options = Options(importance=spec, selection="global", repair=("obs",), calibration=images, align=1)
    scored = pipeline.score(three_layers(), options)
    for target in ("channels=0.95", "channels=0.5"):
        together = pipeline.prune_scored(scored, target)
        alone = graphprune.prune(three_layers(), options, targets=target)
        assert together.model.SerializeToString(deterministic=True) == alone.model.SerializeToString(deterministic=True)
        assert together.plan.to_json() == alone.plan.to_json()


def test_a_malformed_target_is_said_before_any_work() -> None:
    with pytest.raises(UsageError, match="unknown kind 'mac'"):
        compare(graphprune.load(classifier()), ["nonsense"], ["mac=0.5"], samples(4), Options())


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
    with pytest.raises(UsageError, match=r"'bset' is neither a recipe \(fast, balanced, depth, best\) nor"):
        contestants(["bset"])


def test_separators_inside_braces_belong_to_their_spec() -> None:
    text = "fast, magnitude{p=2,reduce=mean}/global{floor=0.2}/polish{rate=1/2} ,path/uniform"
    assert specs_of(text, ",") == ["fast", "magnitude{p=2,reduce=mean}/global{floor=0.2}/polish{rate=1/2}", "path/uniform"]
    (found,) = list(contestants([specs_of(text, ",")[1]]).values())[2:]
    assert [found[key] for key in ("importance", "selection", "repair")] == [
        *("magnitude{p=2,reduce=mean}", "global{floor=0.2}", ("polish{rate=1/2}",))
    ]


def test_samples_that_do_not_fill_a_batch_are_not_counted(graphprune_cli: Cli, tmp_path: Path) -> None:
    model, evaluation, _ = files(tmp_path)
    fixed = tmp_path / "fixed.onnx"
    assert graphprune_cli("import", model, "-o", fixed, "--input-shape", "x=8,6").exit_code == 0
    arguments = ["compare", fixed, "--eval", evaluation, "--target", "macs=0.6", "--align", "1", "--recipes"]
    result = graphprune_cli(*arguments, "magnitude{p=2,reduce=mean}/uniform")
    assert result.exit_code == 0, result.stderr
    assert "accuracy on 16 samples that nothing was chosen on" in result.stdout


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
