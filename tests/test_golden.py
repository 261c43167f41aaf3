"""What people and scripts read, as a whole, against golden files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import pytest
from click.testing import Result
from nets import net, residual, write
from onnx import ModelProto

import graphprune

Cli = Callable[..., Result]


def several_things() -> ModelProto:
    """A stem, a squeeze-excitation, an operator without a rule, attention over pinned tokens: one of every kind of row."""
    return net(
        """
        several (float[N,3,8,8] image) => (float[N,4] scores)
        <float[16,3,3,3] stem, float[16] stem_bias, float[8,16,1,1] down, float[16,8,1,1] up,
         float[12,16,1,1] project, float[N,12,6,6] wobbled, float[20,12,1,1] widen, float[4,20] head, float[4] head_bias> {
            a = Conv(image, stem, stem_bias)
            r = Relu(a)
            p = GlobalAveragePool(r)
            d = Conv(p, down)
            e = Relu(d)
            u = Conv(e, up)
            g = Sigmoid(u)
            m = Mul(r, g)
            q = Conv(m, project)
            wobbled = com.microsoft.SampleOp(q)
            w = Conv(wobbled, widen)
            z = ReduceMean<axes = [2,3], keepdims = 0>(w)
            scores = Gemm<transB = 1>(z, head, head_bias)
        }""",
        domains=("com.microsoft",),
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(several_things(), tmp_path / "model.onnx")


PRUNE = ["--target", "macs=0.5", "--target", "params=0.6", "--align", "2", "--seed", "3"]


def run(cli: Cli, *arguments: str | Path) -> str:
    result = cli(*arguments)
    assert result.exit_code == 0, result.stderr
    assert not result.stderr
    return "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"


def without_run(value: Any) -> Any:
    """What depends on versions of libraries, not on graphprune."""
    if isinstance(value, dict):
        hidden = {"model_sha256", "graphprune", "max_error"}
        return {key: f"<{key}>" if key in hidden else without_run(each) for key, each in value.items()}
    return [without_run(each) for each in value] if isinstance(value, list) else value


def pretty(text: str) -> str:
    return json.dumps(without_run(json.loads(text)), indent=1, sort_keys=True) + "\n"


def test_analyze(graphprune_cli: Cli, model: Path) -> None:
    golden.compare("analyze.txt", run(graphprune_cli, "analyze", model))


def test_analyze_as_json(graphprune_cli: Cli, model: Path) -> None:
    golden.compare("analyze.json", pretty(run(graphprune_cli, "analyze", model, "--json", "-")))


def test_prune(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    text = run(graphprune_cli, "prune", model, "-o", tmp_path / "out.onnx", *PRUNE)
    lines = [line.partition("(max error")[0] for line in text.replace(f"{tmp_path}/", "").splitlines()]
    golden.compare("prune.txt", "\n".join(lines) + "\n")


def test_prune_as_json(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    golden.compare("prune.json", pretty(run(graphprune_cli, "prune", model, "-o", tmp_path / "out.onnx", *PRUNE, "--json", "-")))


def test_plan(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    run(graphprune_cli, "prune", model, "-o", tmp_path / "out.onnx", *PRUNE, "--plan", plan)
    golden.compare("plan.json", pretty(plan.read_text(encoding="utf-8")))


def test_diff(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    run(graphprune_cli, "prune", model, "-o", tmp_path / "out.onnx", *PRUNE)
    golden.compare("diff.txt", run(graphprune_cli, "diff", model, tmp_path / "out.onnx"))


def test_list(graphprune_cli: Cli) -> None:
    """Without the operators, of which docs/operators.md is the golden file."""
    golden.compare("list.txt", run(graphprune_cli, "list").partition("operators:")[0])


def test_every_operator_is_listed(graphprune_cli: Cli) -> None:
    from graphprune.operators import TABLE

    lines = run(graphprune_cli, "list", "operators").splitlines()
    assert [line.split()[0] for line in lines] == sorted(TABLE)


def test_the_masked_reference(model: Path) -> None:
    """Where masks stand in a residual block."""
    from graphprune.proof import masked_reference

    analysis = graphprune.analyze(residual())
    masked = masked_reference(analysis, analysis.present({"stem:0": [0, 2, 3], "inner:0": [1]}))
    lines = [f"{node.op_type}({', '.join(node.input)}) -> {', '.join(node.output)}" for node in masked.graph.node]
    golden.compare("masked_reference.txt", "\n".join(lines) + "\n")
