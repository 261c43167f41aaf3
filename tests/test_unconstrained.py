"""Unconstrained mode: every reader of a value takes its own channels; orders in which those are ranges."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from halving import halve
from nets import initializer, net, operators, residual, set_initializer, write
from onnx import ModelProto

import graphprune
from graphprune.cli import main
from graphprune.errors import UsageError
from graphprune.plan import parse_plan
from graphprune.unconstrained import in_order_of

MODE: dict[str, Any] = {"mode": "unconstrained", "importance": "magnitude"}


def two_readers() -> ModelProto:
    return net("""two (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,5,8,8] z)
        <float[12,3,3,3] w, float[12] b, float[4,12,1,1] v, float[5,12,3,3] u> {
            c = Conv <pads=[1,1,1,1]> (x, w, b)
            r = Relu (c)
            y = Conv (r, v)
            z = Conv <pads=[1,1,1,1]> (r, u)
        }""")


def joined() -> ModelProto:
    """Features that every later layer reads, as in a DenseNet."""
    return net("""joined (float[N,3,8,8] x) => (float[N,4] y)
        <float[8,3,3,3] w0, float[8,8,3,3] w1, float[8,16,3,3] w2, float[8,24,3,3] w3, float[4,32] w4> {
            f0 = Conv <pads=[1,1,1,1]> (x, w0)
            f1 = Conv <pads=[1,1,1,1]> (f0, w1)
            c1 = Concat <axis=1> (f0, f1)
            r1 = Relu (c1)
            f2 = Conv <pads=[1,1,1,1]> (r1, w2)
            c2 = Concat <axis=1> (f0, f1, f2)
            r2 = Relu (c2)
            f3 = Conv <pads=[1,1,1,1]> (r2, w3)
            c3 = Concat <axis=1> (f0, f1, f2, f3)
            p = GlobalAveragePool (c3)
            q = Flatten (p)
            y = Gemm <transB=1> (q, w4)
        }""")


def kept(result: graphprune.Result, tensor: str, axis: int) -> list[int]:
    return result.plan.tensors[tensor][str(axis)]


def strongest(weight: np.ndarray, count: int) -> set[int]:
    """The input channels of a convolution with the largest L1 norms."""
    norms = np.abs(weight).sum(axis=(0, *range(2, weight.ndim)), dtype=np.float64)
    return set(np.argsort(-norms)[:count].tolist())


def test_each_reader_takes_what_its_own_weights_say() -> None:
    model = two_readers()
    result = halve(model, **MODE, masks="independent")
    for reader in ("v", "u"):
        assert set(kept(result, reader, 1)) == strongest(initializer(model, reader), 6)
    assert set(kept(result, "w", 0)) == set(kept(result, "v", 1)) | set(kept(result, "u", 1))


def test_two_readers_can_always_read_ranges() -> None:
    result = halve(two_readers(), **MODE, masks="independent")
    assert operators(result.model).count("Slice") == 2
    assert "Gather" not in operators(result.model)


def test_one_ranking_for_all_readers_gives_nested_sets() -> None:
    result = halve(two_readers(), **MODE, masks="nested", ratios=["^v$=0.5", "^u$=0.25"], targets=["channels=0.9"])
    small, large = sorted([set(kept(result, "v", 1)), set(kept(result, "u", 1))], key=len)
    assert small < large
    assert set(kept(result, "w", 0)) == large
    assert "Gather" not in operators(result.model)


def test_coupled_readers_agree() -> None:
    result = halve(two_readers(), importance="magnitude")
    assert kept(result, "v", 1) == kept(result, "u", 1) == kept(result, "w", 0)


def test_a_sum_keeps_what_any_side_needs() -> None:
    result = halve(residual(), **MODE, masks="independent")
    follows = [group.id for group in result.analysis.groups if group.follows]
    assert follows
    assert result.after.params < result.before.params


@pytest.mark.parametrize("masks", ["nested", "independent"])
def test_features_that_are_read_again_and_again(masks: str) -> None:
    result = halve(joined(), **MODE, masks=masks)
    found = operators(result.model)
    assert found.count("Gather") <= (0 if masks == "nested" else 3)


def test_gathers_in_front_of_a_concat_become_one_behind_it() -> None:
    model = joined()
    result = halve(model, **MODE, masks="independent", channels=0.6)
    for node in result.model.graph.node:
        if node.op_type == "Concat":
            made_by = {name: other.op_type for other in result.model.graph.node for name in other.output}
            assert "Gather" not in {made_by.get(name) for name in node.input}


def test_the_plan_says_what_readers_take() -> None:
    result = halve(two_readers(), **MODE, masks="independent")
    reads = {(read.node, read.input, read.axis): read.keep for read in result.plan.reads}
    assert len(reads) == 2
    assert sorted(map(tuple, reads.values())) == sorted([tuple(kept(result, "v", 1)), tuple(kept(result, "u", 1))])
    assert any(units != sorted(units) for units in result.plan.keep.values()), "nothing was reordered"


def test_channels_of_a_flatten_move_with_their_positions() -> None:
    model = net("""flat (float[N,3,4,4] x) => (float[N,4] y, float[N,5,4,4] z)
        <float[12,3,3,3] w, float[4,192] v, float[5,12,1,1] u> {
            c = Conv <pads=[1,1,1,1]> (x, w)
            r = Relu (c)
            f = Flatten (r)
            y = Gemm <transB=1> (f, v)
            z = Conv (r, u)
        }""")
    result = halve(model, **MODE, masks="independent")
    assert "Gather" not in operators(result.model)


def test_parts_of_a_split_do_not_mix() -> None:
    model = net(
        """parts (float[N,3,4,4] x) => (float[N,4,4,4] y, float[N,5,4,4] z)
        <float[12,3,3,3] w, float[4,6,1,1] v, float[5,12,1,1] u> {
            c = Conv <pads=[1,1,1,1]> (x, w)
            a, b = Split <axis=1, num_outputs=2> (c)
            s = Add (a, b)
            y = Conv (s, v)
            z = Conv (c, u)
        }""",
        opset=18,
    )
    halve(model, **MODE, masks="independent")


def test_repair_goes_with_the_mode() -> None:
    result = graphprune.prune(
        joined(), targets=["channels=0.6"], align=1, **MODE, selection="uniform", repair="reconstruct", calibration="random"
    )
    assert result.proof is not None
    assert result.weights
    again = graphprune.apply_plan(joined(), result.plan, weights=result.weights)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


def test_a_plan_whose_order_cannot_be_is_refused() -> None:
    model = net(
        """parts (float[N,3,4,4] x) => (float[N,4,4,4] y, float[N,4,4,4] z)
        <float[12,3,3,3] w, float[4,5,1,1] v, float[4,7,1,1] u> {
            c = Conv <pads=[1,1,1,1]> (x, w)
            a, b = Split <axis=1> (c, sizes)
            y = Conv (a, v)
            z = Conv (b, u)
        }""".replace("> {", ", int64[2] sizes = {5, 7}> {")
    )
    plan = graphprune.prune(model, targets=["channels=0.5"], align=1, importance="magnitude").plan
    groups = [replace(group, keep=group.keep[::-1]) for group in plan.groups]
    with pytest.raises(UsageError, match="its units cannot change places"):
        graphprune.apply_plan(model, replace(plan, groups=groups))


def test_a_plan_in_another_order_than_its_tensors_is_refused() -> None:
    plan = graphprune.prune(two_readers(), targets=["channels=0.5"], align=1, importance="magnitude").plan
    groups = [replace(group, keep=group.keep[::-1]) for group in plan.groups]
    with pytest.raises(UsageError, match="the indices for tensor"):
        graphprune.apply_plan(two_readers(), replace(plan, groups=groups))


def test_an_index_that_is_named_twice_is_refused() -> None:
    plan = graphprune.prune(two_readers(), targets=["channels=0.5"], align=1).plan
    groups = [replace(group, keep=[group.keep[0], *group.keep]) for group in plan.groups]
    with pytest.raises(UsageError, match="keeps an index twice"):
        graphprune.apply_plan(two_readers(), replace(plan, groups=groups))


def test_a_reader_cannot_take_what_is_not_kept() -> None:
    plan = halve(two_readers(), **MODE, masks="independent").plan
    groups = [replace(group, keep=group.keep[1:]) if group.id == "w:0" else group for group in plan.groups]
    with pytest.raises(UsageError, match="does not keep"):
        graphprune.apply_plan(two_readers(), replace(plan, groups=groups))


def test_from_the_command_line(tmp_path: Path) -> None:
    model, plan, pruned = write(two_readers(), tmp_path / "m.onnx"), tmp_path / "plan.json", tmp_path / "p.onnx"
    arguments = ["prune", str(model), "-o", str(pruned), "--target", "channels=0.5", "--mode", "unconstrained", "--align", "1"]
    done = CliRunner().invoke(main, [*arguments, "--masks", "independent", "--plan", str(plan), "--json", "-"])
    assert done.exit_code == 0, done.output
    assert parse_plan(plan.read_text()).options["mode"] == "unconstrained"
    assert json.loads(done.stdout)["proof"]["passed"]
    again = CliRunner().invoke(main, ["apply", str(model), str(plan), "-o", str(tmp_path / "again.onnx")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.onnx").read_bytes() == pruned.read_bytes()


@pytest.mark.parametrize("own", [[5.0, 3.0, 4.0, 6.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [9.0, 8.0, 7.0, 6.0, 5.0]])
def test_nested_scores_rank_as_all_readers_do_and_have_no_ties(own: list[float]) -> None:
    pooled = np.array([2.0, 4.0, 1.0, 3.0, 5.0])
    scores = in_order_of(np.array(own), pooled, np.array([4, 3, 2, 1, 0], np.int32))
    ranking = np.argsort(-scores, kind="stable").tolist()
    assert ranking == np.argsort(-pooled[::-1]).tolist()


def test_nested_masks_need_no_gather_whatever_the_readers_say() -> None:
    """Readers that disagree completely give equal scores to most channels."""
    model = joined()
    for name in ("w1", "w2", "w3"):
        weight = initializer(model, name)
        slope = np.linspace(0.5, 1.5, weight.shape[1])[:: -1 if name == "w2" else 1]
        set_initializer(model, name, np.sign(weight) * slope.reshape(1, -1, 1, 1).astype(np.float32))
    result = halve(model, **MODE, masks="nested", align=1)
    assert "Gather" not in operators(result.model)


@pytest.mark.parametrize("masks", ["nested", "independent"])
@pytest.mark.parametrize("seed", range(4))
def test_an_axis_that_a_reader_takes_by_another_one_is_not_emptied(masks: str, seed: int) -> None:
    """`one` has one index: halves of channels that stay only where `b` takes them, each half crossed with the other axis."""
    model = net("""halves (float[2,8] x) => (float[1,2,3] y, float[2,5] z)
        <float[8,4] w, float[2,4] a, float[4,3] c, float[4,5] b, int64[3] s = {2,2,2}, int64[2] e = {1,1}> {
            h = MatMul (x, w)
            r = Reshape (h, s)
            t = Transpose <perm=[2,0,1]> (r)
            one, other = Split <axis=0> (t, e)
            p = MatMul (one, a)
            y = MatMul (p, c)
            z = MatMul (h, b)
        }""")
    options = MODE | {"masks": masks, "importance": f"random{{seed={seed}}}"}
    result = graphprune.prune(model, targets=["channels=0.7"], align=1, **options)
    assert result.proof is not None
    assert result.proof.passed
    assert result.after.channels < result.before.channels
