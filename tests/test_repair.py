"""Repair: what can be made up for is made up for, exactly where that is possible; plans carry the weights."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result as Outcome
from nets import block, initializer, net, set_initializer, write
from onnx import ModelProto, numpy_helper

import graphprune
from graphprune.calibration import Calibration
from graphprune.errors import CalibrationError, MissingExtraError, UsageError
from graphprune.evaluation import accuracy
from graphprune.plan import read_plan, read_weights, weights_path
from graphprune.runtime import run
from graphprune.samples import read_calibration, read_samples, runs_of
from graphprune.synthetic import dead_leaves, image_layout, random_runs
from graphprune.walk import Walk

RNG = np.random.default_rng(7)


def samples(count: int = 64, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 6, 8, 8)).astype(np.float32)}


def pruned(model: ModelProto, repair: str | tuple[str, ...] = "reconstruct", **options: object) -> graphprune.Result:
    return graphprune.prune(
        model, **{"targets": "channels=0.7", "calibration": samples(), "repair": repair, "align": 1, "keep": "^s$"} | options
    )


def error(result: graphprune.Result, model: ModelProto, feeds: dict[str, np.ndarray]) -> float:
    wanted, given = run(model, feeds)["y"], run(result.model, feeds)["y"]
    return float(((wanted - given) ** 2).mean() / wanted.var())


def test_redundant_channels_leave_without_a_trace() -> None:
    """Half of the channels are copies of others, so the readers can make up for them exactly."""
    model = block()
    for name in ("a", "b"):
        array = initializer(model, name).copy()
        array[6:] = array[:6]
        set_initializer(model, name, array)
    result = pruned(model, ("reconstruct{ridge=1e-7}",), targets=(), ratios="^a$=0.5", importance="obspa")
    assert [len(units) for group, units in result.keep.items() if group == "a:0"] == [6]
    assert error(result, model, samples(seed=5)) < 1e-6
    assert result.proof is not None
    assert result.proof.passed
    without = pruned(model, (), targets=(), ratios="^a$=0.5", importance="obspa")
    assert error(without, model, samples(seed=5)) > 1e-3


def test_a_fit_in_a_normalised_branch_and_without_a_bias() -> None:
    """The intercept goes into the mean of the BatchNormalization, and into the Add behind a MatMul."""
    model = net("""
        n (float[N,6,8,8] x) => (float[N,8,8,7] y)
        <float[8,6,3,3] a, float[6,8,1,1] c, float[6] s, float[6] b, float[6] m, float[6] v, float[6,7] w, float[7] k> {
            p = Conv<pads = [1, 1, 1, 1]>(x, a)
            q = Relu(p)
            r = Conv(q, c)
            n = BatchNormalization(r, s, b, m, v)
            z = Add(x, n)
            o = Transpose<perm = [0, 2, 3, 1]>(z)
            f = MatMul(o, w)
            y = Add(k, f)
        }""")
    result = pruned(model, keep=())
    assert {"c", "m", "w", "k"} <= set(result.weights)
    assert error(result, model, samples(seed=5)) < 0.7 * error(pruned(model, (), keep=()), model, samples(seed=5))


def test_the_last_layer_is_the_least_squares_solution() -> None:
    """With one reader behind the pruned channels and no ReLU after it the fit is that of numpy's lstsq."""
    model = net("""
        l (float[N,6] x) => (float[N,3] y) <float[10,6] a, float[10] b, float[3,10] c, float[3] d> {
            p = Gemm<transB = 1>(x, a, b)
            q = Relu(p)
            y = Gemm<transB = 1>(q, c, d)
        }""")
    rows = {"x": RNG.normal(size=(2000, 6)).astype(np.float32)}
    result = graphprune.prune(
        model, targets="channels=0.6", calibration=rows, repair="reconstruct{ridge=0}", importance="magnitude", align=1
    )
    kept = result.keep["a:0"]
    hidden = np.maximum(rows["x"] @ initializer(model, "a").T + initializer(model, "b"), 0)
    wanted = hidden @ initializer(model, "c").T + initializer(model, "d")
    basis = np.column_stack([hidden[:, kept], np.ones(len(hidden))])
    best = np.linalg.lstsq(basis, wanted, rcond=None)[0]
    np.testing.assert_allclose(result.weights["c"], best[:-1].T, atol=0.03)
    np.testing.assert_allclose(result.weights["d"], best[-1], atol=0.03)
    given = run(result.model, rows)["y"]
    assert ((given - wanted) ** 2).sum() <= 1.001 * ((basis @ best - wanted) ** 2).sum()


def test_shared_weights_are_left_alone() -> None:
    model = net("""
        t (float[N,6] x) => (float[N,6] y) <float[10,6] a, float[6,10] c, float[6,6] e> {
            p = Gemm<transB = 1>(x, a)
            q = Relu(p)
            r = Gemm<transB = 1>(q, c)
            s = Gemm<transB = 1>(r, e)
            y = Gemm<transB = 1>(s, e)
        }""")
    result = graphprune.prune(model, targets=(), ratios="^a$=0.7", calibration={"x": RNG.normal(size=(64, 6))}, align=1)
    assert "e" not in result.weights
    assert "c" in result.weights


def test_only_layers_behind_what_was_pruned_change() -> None:
    assert set(pruned(block()).weights) == {"c", "d", "h", "i"}


def test_random_samples_and_the_same_bytes_again() -> None:
    one, other = (pruned(block(), calibration="random") for _ in range(2))
    assert one.model.SerializeToString(deterministic=True) == other.model.SerializeToString(deterministic=True)
    assert one.plan.to_json() == other.plan.to_json()


# ---- plans --------------------------------------------------------------------------------------


@pytest.fixture
def planned(tmp_path: Path, graphprune_cli: Callable[..., Outcome]) -> Path:
    """A folder with model, plan, companion and result."""
    write(block(), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", **samples())
    outcome = graphprune_cli(
        "prune", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--target", "channels=0.7", "--plan", tmp_path / "p.json",
        "--calibration", tmp_path / "c.npz", "--align", "1",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    assert "recipe balanced" in outcome.output
    return tmp_path


def test_apply_gives_the_same_bytes_and_verify_passes(planned: Path, graphprune_cli: Callable[..., Outcome]) -> None:
    assert weights_path(planned / "p.json") == planned / "p.weights.safetensors"
    outcome = graphprune_cli("apply", planned / "m.onnx", planned / "p.json", "-o", planned / "again.onnx")
    assert outcome.exit_code == 0, outcome.output
    assert (planned / "again.onnx").read_bytes() == (planned / "o.onnx").read_bytes()
    outcome = graphprune_cli("verify", planned / "m.onnx", planned / "p.json", planned / "o.onnx")
    assert outcome.exit_code == 0, outcome.output


def test_a_plan_without_its_weights(planned: Path, graphprune_cli: Callable[..., Outcome]) -> None:
    weights_path(planned / "p.json").unlink()
    outcome = graphprune_cli("apply", planned / "m.onnx", planned / "p.json", "-o", planned / "again.onnx")
    assert outcome.exit_code == 2
    assert "the plan lacks its repaired weights" in outcome.output
    assert not (planned / "again.onnx").exists()


def test_damaged_and_foreign_weights(planned: Path, graphprune_cli: Callable[..., Outcome]) -> None:
    path = weights_path(planned / "p.json")
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    outcome = graphprune_cli("verify", planned / "m.onnx", planned / "p.json", planned / "o.onnx")
    assert outcome.exit_code == 2
    assert "written with other repaired weights" in outcome.output
    path.write_bytes(good[: len(good) // 2])
    outcome = graphprune_cli("apply", planned / "m.onnx", planned / "p.json", "-o", planned / "again.onnx")
    assert outcome.exit_code == 2
    assert "cannot read the repaired weights" in outcome.output


def test_weights_that_do_not_fit_the_model(planned: Path) -> None:
    from dataclasses import replace

    from graphprune.plan import weights_digest

    plan, weights = read_plan(planned / "p.json"), read_weights(planned / "p.json")
    odd = {**weights, "nowhere": np.zeros(3, np.float32)}
    with pytest.raises(UsageError, match="'nowhere', which is not in this model"):
        graphprune.apply_plan(planned / "m.onnx", replace(plan, weights_sha256=weights_digest(odd)), weights=odd)
    odd = {**weights, "h": np.zeros((2, 2), np.float32)}
    with pytest.raises(UsageError, match="in shape"):
        graphprune.apply_plan(planned / "m.onnx", replace(plan, weights_sha256=weights_digest(odd)), weights=odd)


def test_an_old_companion_goes_with_a_new_plan(planned: Path, graphprune_cli: Callable[..., Outcome]) -> None:
    arguments = ["--target", "channels=0.7", "--plan", planned / "p.json", "--align", "1"]
    assert graphprune_cli("prune", planned / "m.onnx", "-o", planned / "o.onnx", *arguments).exit_code == 0
    assert not weights_path(planned / "p.json").exists()
    assert "weights_sha256" not in (planned / "p.json").read_text()


# ---- samples ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no samples for input 'x'; the file has: nothing"),
        ({"x": np.zeros((3, 6, 8))}, "'x' has shape [3, 6, 8], but the input is"),
        ({"x": np.zeros((3, 6, 8, 9))}, "'x' has shape [3, 6, 8, 9], but the input is"),
        ({"x": np.zeros((0, 6, 8, 8))}, "at least one"),
        ({"x": np.zeros((3, 6, 8, 8)), "labels": np.zeros(4)}, "the same number of samples"),
        ({"x": np.full((3, 6, 8, 8), "a")}, "has type <U1, but the input takes float32"),
    ],
)
def test_samples_that_do_not_fit(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UsageError) as failure:
        read_calibration(arrays, graphprune.load(block()), 8)
    assert message in str(failure.value)


def test_an_iterator_of_batches() -> None:
    graph = graphprune.load(block())
    runs, labels = read_calibration(iter([samples(10), samples(3)]), graph, 4)
    assert [len(feeds["x"]) for feeds in runs] == [4, 4, 2, 3]
    assert labels is None
    with pytest.raises(UsageError, match="gave no batch"):
        read_calibration(iter([]), graph, 4)


def test_a_prescribed_batch_is_kept() -> None:
    graph = graphprune.load(net("f (float[4,6] x) => (float[4,3] y) <float[6,3] w> { y = MatMul(x, w) }"))
    assert [len(feeds["x"]) for feeds in runs_of({"x": np.zeros((11, 6), np.float32)}, graph, 64)] == [4, 4]
    with pytest.raises(UsageError, match="batches of 4, but there are only 3"):
        runs_of({"x": np.zeros((3, 6), np.float32)}, graph, 64)
    assert {feeds["x"].shape for feeds in random_runs(graph, 0, 64)} == {(4, 6)}


def test_a_calibration_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(UsageError, match="cannot read the samples"):
        read_samples(tmp_path / "bad.npz", graphprune.load(block()))


def test_a_model_that_cannot_run_on_the_samples() -> None:
    with pytest.raises(CalibrationError, match="cannot run the model on the calibration samples"):
        graphprune.prune(
            net("""f (float[N,6] x) => (float[M,3] y) <float[8,6] v, float[8,8] u, float[4,3] w, int64[2] s = {-1, 4}> {
                k = Gemm<transB = 1>(x, v)
                l = Gemm<transB = 1>(k, u)
                n = Gather<axis = 1>(l, s)
                r = Reshape(n, s)
                y = MatMul(r, w) }"""),
            targets="channels=0.9",
            calibration={"x": np.zeros((3, 6))},
            align=1,
        )


def test_images_look_like_images() -> None:
    images = dead_leaves(16, 3, 24, 32, np.random.default_rng(0))
    assert images.shape == (16, 3, 24, 32)
    assert abs(float(images.mean())) < 1e-5
    assert abs(float(images.std()) - 1) < 1e-4
    neighbours = float((images[..., 1:] * images[..., :-1]).mean())
    assert neighbours > 0.7


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3, 32, 32), "channels first"),
        ((2, 32, 32, 1), "channels last"),
        ((2, 16, 32, 32), None),
        ((2, 3, 4, 4), None),
        ((2, 3, 32), None),
    ],
)
def test_which_inputs_are_images(shape: tuple[int, ...], layout: str | None) -> None:
    assert image_layout(("N", *shape[1:]), np.zeros(shape, np.float32)) == layout


# ---- walks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [2**30, 0])
def test_a_walk_computes_what_a_run_computes(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.walk.MEMORY", memory)
    model, feeds = block(), samples(6)
    with Walk(model, [{"x": feeds["x"][:4]}, {"x": feeds["x"][4:]}]) as walk:
        for end in range(1, len(model.graph.node) + 1):
            walk.advance_to(end, keep={"y"})
            assert walk.knows("v") == (2 <= end < 6)
        np.testing.assert_allclose(np.concatenate(walk.values("y")), run(model, feeds)["y"], atol=1e-5)


def test_a_walk_without_room_for_its_files_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.walk.MEMORY", 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Walk(block(), [samples(4)]) as walk:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(CalibrationError, match=r"no room for what layers give .* set TMPDIR to a folder with more"):
                walk.advance_to(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("least", [1, 100, 10_000])
def test_runs_of_few_rows_give_what_one_run_gives(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.calibration.BLOCK_ROWS", least)
    model, feeds = block(), samples(5)
    graph = graphprune.load(model)
    whole, single = (Calibration(graph, runs_of(feeds, graph, size)) for size in (5, 1))
    for node in whole.linears.values():
        one, other = whole.moments(node), single.moments(node)
        assert one.rows == other.rows
        np.testing.assert_allclose(other.mean, one.mean, atol=1e-6)
        np.testing.assert_allclose(other.covariance(0), one.covariance(0), atol=1e-5)
    results = []
    for size in (1, 64):
        monkeypatch.setattr("graphprune.pipeline.run_size", lambda *_, size=size: size)
        results.append(pruned(model, calibration=feeds).model)
    for one, other in zip(*(result.graph.initializer for result in results), strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(one), numpy_helper.to_array(other), atol=1e-4)


def test_accuracy_counts_the_best_class() -> None:
    model = net("f (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    eye = np.eye(3, dtype=np.float32)
    assert accuracy(model, {"x": eye, "labels": np.array([0, 1, 1])}) == pytest.approx(2 / 3)


def test_accuracy_of_a_network_that_prescribes_a_batch() -> None:
    model = net("f (float[2,3] x, float scale) => (float[2,3] y) { y = Mul(x, scale) }")
    eye = np.eye(3, dtype=np.float32)
    found = {"x": eye, "scale": np.array(2, np.float32), "labels": np.array([0, 0, 2])}
    assert accuracy(model, found) == pytest.approx(1 / 2)
    with pytest.raises(UsageError, match="runs on batches of 2, but there are only 1 samples"):
        accuracy(model, {"x": eye[:1], "scale": np.array(2, np.float32), "labels": np.array([0])})


# ---- samples that cannot serve ------------------------------------------------------------------


def test_samples_must_be_finite() -> None:
    bad = samples(8)
    bad["x"][3, 0, 0, 0] = np.nan
    with pytest.raises(UsageError, match="'x' has values that are not finite, first in sample 3"):
        pruned(block(), calibration=bad)


def test_samples_must_not_overflow() -> None:
    with pytest.raises(CalibrationError, match="not finite or too large; check their scale"):
        pruned(block(), calibration={"x": samples(8)["x"] * np.float32(1e30)})


def test_a_missing_extra_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.extras.MODULES", {"torch": "no_such_module", "solver": "no_such_module"})
    for passes in ({"repair": "polish"}, {"importance": "snip"}, {"selection": "knapsack"}, {"recipe": "best", "repair": None}):
        with pytest.raises(MissingExtraError, match=r"pip install 'graphprune\[(torch|solver)\]'"):
            graphprune.prune("no such file", targets="macs=0.5", **passes)
