"""The HTML reports: complete, self-contained, safe with whatever names a model has, and never left behind by a failure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from nets import net, plain, residual, wide, write
from onnx import ModelProto
from reports import Page, check

import graphprune
from graphprune import report
from graphprune.bench import Latency
from graphprune.comparison import Comparison, Point
from graphprune.curves import plots, ticks
from graphprune.distributions import distributions
from graphprune.environment import environment
from graphprune.errors import ProofError, UsageError
from graphprune.groups import Group
from graphprune.layers import layers_of
from graphprune.pipeline import prune
from graphprune.strip import KEPT, MACS, WIDTH, strip
from graphprune.tables import Figure, headline

Cli = Callable[..., Result]
HALF = ["--target", "channels=0.5", "--align", "1"]
RUN = {"graphprune": "1", "date": "today"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(residual(), tmp_path / "model.onnx")


def page_of(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    check(page)
    return page


def rendered(model: ModelProto, **changes: object) -> Page:
    result = prune(model, targets=["channels=0.5"], align=1, **changes)
    page = Page(report.prune_page(result, "model.onnx", (1000, 500), RUN))
    check(page)
    return page


# ---- what is in it --------------------------------------------------------------------------------


def test_a_report_has_every_section(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    html, out = tmp_path / "report.html", tmp_path / "out.onnx"
    result = graphprune_cli("prune", model, "-o", out, *HALF, "--report", html)
    assert result.exit_code == 0, result.output
    page = page_of(html)
    headings = [text for text in page.text("h2") if text.strip()]
    names = ["Result", "Architecture", "Importance", "Layers", "What is pinned, and why", "Copies left", "Environment"]
    assert headings == names
    assert page.text("h1") == []
    assert "model.onnx" in page.text("bdi")
    assert any(text.startswith("Proof: equal to the masked original (max error") for text in page.text("bdi"))
    assert "channels=0.5" in page.text("bdi")
    assert "network output 'y' keeps its shape" in page.text("bdi")
    for name in ("graphprune", "onnx", "onnxruntime", "numpy", "Python", "platform", "processor", "date", "command", "seed"):
        assert name in page.text("th"), name
    plan = graphprune.analyze(model)
    assert len(page.all("g", class_="layer")) == len(layers_of(plan, plan.present({})))
    assert "latency" not in page.text("th")


def test_every_group_has_a_card_with_its_size_before_and_after() -> None:
    result = prune(residual(), targets=["channels=0.5"], align=1)
    page = Page(report.prune_page(result, "m", (1, 1), RUN))
    assert {group.id for group in result.analysis.groups} <= set(page.text("bdi"))
    cards = page.all("button", class_="group")
    assert sorted(int(own["data-group"]) for own in cards) == list(range(len(result.analysis.groups)))
    for group in result.analysis.groups:
        kept = len(result.keep[group.id])
        assert (
            f"{group.id} {group.size} → {kept}" in page.words if kept < group.size else f"{group.id} {group.size}" in page.words
        )


def test_the_headline_has_what_was_measured(graphprune_cli: Cli, tmp_path: Path) -> None:
    model = write(plain(), tmp_path / "model.onnx")
    samples = tmp_path / "eval.npz"
    np.savez(samples, x=np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32), labels=np.arange(20) % 5)
    html = tmp_path / "report.html"
    arguments = [*HALF, "--report", html, "--measure", "--eval", samples]
    result = graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", *arguments)
    assert result.exit_code == 0, result.output
    page = page_of(html)
    assert {"latency", "accuracy", "file size", "ms before", "threads"} <= set(page.text("th"))
    assert "Times are ONNX Runtime's own" in page.words
    assert len(page.all("svg", class_="bullet")) == 6
    assert any(text == "ms" for text in page.text("text"))


def test_the_headline_has_the_latency_that_a_target_measured() -> None:
    result = prune(residual(), targets=["channels=0.5"], align=1, verify=False)
    timed = replace(result, before=replace(result.before, latency=2e6), after=replace(result.after, latency=1e6))
    assert headline(timed, (1, 1))[-1] == Figure("latency", "2 ms", "1 ms", 0.5)
    assert "latency" in Page(report.prune_page(timed, "m", (1, 1), RUN)).text("th")


def test_a_report_without_the_proof_says_so() -> None:
    assert "Not proven: the proof was left out." in rendered(plain(), verify=False).words


def test_copies_are_listed_in_unconstrained_mode() -> None:
    text = "no Slice or Gather was added"
    assert text in rendered(wide()).words
    free = rendered(residual(), mode="unconstrained", masks="independent")
    assert text not in free.words
    assert "readers take less than is there" in free.words


def test_a_result_without_scores_can_be_reported() -> None:
    result = prune(plain(), targets=["channels=0.5"], align=1)
    page = Page(report.prune_page(graphprune.apply_plan(plain(), result.plan), "m", (1, 1), RUN))
    check(page)
    assert "no scores" in page.words


# ---- untrusted names ------------------------------------------------------------------------------

NASTY = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\" onload=\"alert(1)' onclick='alert(2)",
    "two\nlines\tand\rmore",
    "\u202egpj.exe\u202c \u2066isolated\u2069",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "{{ 7 * 7 }}{% raw %}",
    "nul\x00 esc\x1b[31m del\x7f sep\u2028",
    "&lt;b&gt; &amp; ]]> --> <!--",
    "x" * 100_000,
]


def renamed(name: str) -> ModelProto:
    """A network where a weight, a node, an input and a value have the name (with something to tell them apart)."""
    model = plain()
    new = {"w1": name, "c1": f"{name} value", "x": f"{name} input"}
    for node in model.graph.node:
        node.input[:] = [new.get(each, each) for each in node.input]
        node.output[:] = [new.get(each, each) for each in node.output]
        node.name = f"{name} {node.op_type} {node.output[0][:8]}"
    for each in [*model.graph.initializer, *model.graph.input]:
        each.name = new.get(each.name, each.name)
    return model


def structure(page: Page) -> list[tuple[str, list[str]]]:
    """The elements with their attributes' names, without bars and labels, whose number depends on what names have in common."""
    return [(tag, sorted(attributes)) for tag, attributes in page.elements if tag not in ("path", "rect", "text")]


@pytest.mark.parametrize("name", NASTY, ids=lambda name: name.encode("unicode_escape").decode()[:20])
def test_names_of_an_untrusted_model_are_nothing_but_text(name: str) -> None:
    usual = rendered(plain())
    page = rendered(renamed(name))
    assert structure(page) == structure(usual)
    assert f"{report.visible(name + ':0')}" in page.text("bdi")
    assert len(page.html) < 2 * len(usual.html) + 200 * report.LONGEST
    body = page.html.partition("<body>")[2].partition("<script>")[0]
    assert not re.search("[\u0000-\u0009\u000b-\u001f\u007f\u2028\u2029\u202a-\u202e\u2066-\u2069]", body)


@pytest.mark.parametrize("name", NASTY[:5])
def test_names_in_the_other_reports(name: str) -> None:
    analysis = graphprune.analyze(renamed(name))
    page = Page(report.analysis_page(analysis, graphprune.cost.CostModel(analysis).original, name, RUN | {"command": name}))
    check(page)
    assert report.visible(name) in page.text("bdi")
    comparison = Comparison(0.9, 10, [Point(name, name, problem=name), Point(f"{name} 2", name, 0.5, 0.5, 0.8)])
    page = Page(report.comparison_page(comparison, name, RUN))
    check(page)
    assert f"{report.visible(name)} 2" in page.text("bdi")


def test_what_cannot_be_seen_is_shown() -> None:
    assert report.visible("a\nb\u202ec\x00") == "a\\nb\\u202ec\\x00"
    assert report.visible("שלום 8 µm") == "שלום 8 µm"
    assert len(report.visible("x" * 10**6)) < report.LONGEST + 10


# ---- files and exit codes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--target", "macs=0.0001"], 4),
        (["--target", "macs=0.5", "--keep", "."], 4),
        (["--target", "nonsense=1"], 2),
        (["--target", "macs=0.5", "--require", "params<=1%"], 8),
        (["--target", "macs=0.5", "--recipe", "best", "--importance", "magnitude{"], 2),
    ],
)
def test_no_report_is_left_by_a_failure(
    graphprune_cli: Cli, model: Path, tmp_path: Path, arguments: list[str], code: int
) -> None:
    html = tmp_path / "report.html"
    html.write_text("older")
    result = graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", *arguments, "--report", html)
    assert result.exit_code == code, result.output
    assert html.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "report.html"]


def test_no_report_is_left_where_the_proof_or_the_model_fails(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    html, out = tmp_path / "report.html", tmp_path / "out.onnx"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:100])
    assert graphprune_cli("prune", broken, "-o", out, *HALF, "--report", html).exit_code == 3

    def fails(*_: object) -> None:
        raise ProofError("no")

    monkeypatch.setattr("graphprune.pipeline.prove", fails)
    assert graphprune_cli("prune", model, "-o", out, *HALF, "--report", html).exit_code == 5
    assert not html.exists()
    assert not out.exists()


def test_a_folder_that_is_not_there_is_found_before_the_work(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    html = tmp_path / "missing" / "report.html"
    for arguments in (["prune", model, "-o", tmp_path / "out.onnx", *HALF, "--report", html], ["view", model, "-o", html]):
        result = graphprune_cli(*arguments)
        assert result.exit_code == 2
        assert "does not exist" in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_the_same_run_at_the_same_date_gives_the_same_bytes(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        assert graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", *HALF, "--report", page).exit_code == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert "2001-09-09 01:46:40 UTC" in pages[0].read_text()


def test_a_date_that_is_none_is_refused(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH='yesterday' is not a number of seconds"):
        environment()
    result = graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", *HALF, "--report", tmp_path / "r.html")
    assert result.exit_code == 2
    assert not (tmp_path / "out.onnx").exists()


def test_a_command_line_that_is_no_text(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["graphprune", "prune", "caf\udce9.onnx"])
    html = tmp_path / "r.html"
    assert graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", *HALF, "--report", html).exit_code == 0
    assert "caf\\udce9.onnx" in page_of(html).words


def test_a_configuration_may_name_the_report(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("target: [channels=0.5]\nalign: 1\nreport: from-config.html\n")
    result = graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", "--config", config)
    assert result.exit_code == 0, result.output
    assert "channels=0.5" in page_of(tmp_path / "from-config.html").text("bdi")


# ---- view and compare ------------------------------------------------------------------------------


def test_view_draws_the_groups(graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = graphprune_cli("view", model)
    analysis = graphprune.analyze(model)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"model.html: {len(analysis.groups)} groups; open it in a browser\n"
    page = page_of(tmp_path / "model.html")
    for group in analysis.groups:
        for member in group.members:
            assert member.tensor in page.text("bdi")
    assert len(page.all("button", class_="group")) == len(analysis.groups)
    for number, group in enumerate(analysis.groups):
        holders = [own for own in page.all("g", class_="layer") if str(number) in own["data-holds"].split()]
        producers = {member.node for member in group.members if member.role == "producer"}
        assert len(holders) >= len(producers)


def test_compare_writes_a_report(graphprune_cli: Cli, tmp_path: Path) -> None:
    model, samples, html = write(plain(), tmp_path / "m.onnx"), tmp_path / "eval.npz", tmp_path / "r.html"
    np.savez(samples, x=np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32), labels=np.arange(20) % 5)
    arguments = ["--recipes", "fast", "--target", "macs=0.7", "--target", "macs=0.5", "--align", "1"]
    result = graphprune_cli("compare", model, "--eval", samples, *arguments, "--report", html)
    assert result.exit_code == 0, result.output
    page = page_of(html)
    assert len(page.all("svg", class_="plot")) == 3
    assert {"random", "uniform magnitude", "fast"} <= set(page.text("bdi"))
    assert len(page.all("tr")) >= 1 + 1 + 6


def test_a_plot_has_every_result_in_its_place() -> None:
    latency = Latency(10, 9, 11, 30, 1, 1)
    points = [
        Point("fast", f"macs={x}", x, x, 0.9 - (1 - x) / 10, latency=Latency(10 * x, 9, 11, 30, 1, 1)) for x in (0.3, 0.5, 0.7)
    ]
    comparison = Comparison(0.9, 100, [Point("random", "macs=0.5", 0.5, 0.5, 0.1, latency=latency), *points], latency)
    for plot in plots(comparison):
        random, fast = plot.curves
        assert (random.colour, fast.colour) == (-1, 0)
        assert [dot.x for dot in fast.dots] == sorted(dot.x for dot in fast.dots)
        assert [dot.y for dot in fast.dots] == sorted((dot.y for dot in fast.dots), reverse=True)
        assert plot.below == 1
        right, top = plot.original
        assert all(dot.x < right and dot.y > top for dot in fast.dots)


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.0], [91.0, 91.1], [0.1, 1e6], [-3, 7], [1e-9, 2e-9]])
def test_ticks_span_the_values(values: list[float]) -> None:
    found = ticks(values)
    assert found[0] <= min(values) + 1e-9
    assert found[-1] >= max(values) - 1e-9
    assert 2 <= len(found) <= 10
    assert found == sorted(set(found))


# ---- layers and drawings ---------------------------------------------------------------------------


def test_layers_have_the_figures_of_the_pruned_network() -> None:
    result = prune(residual(), targets=["channels=0.5"], align=1)
    layers = layers_of(result.analysis, result.analysis.present(result.keep))
    assert sum(layer.macs for layer in layers) == result.before.macs
    assert sum(layer.macs_after for layer in layers) == result.after.macs
    shapes = {tensor.name: tuple(tensor.dims) for tensor in result.model.graph.initializer}
    for layer in layers:
        assert layer.shape_after == shapes[layer.weight]
        assert layer.width_after == (layer.shape_after[0] if layer.operator in ("Conv", "Gemm") else layer.shape_after[-1])


def test_a_depthwise_layer_holds_the_group_that_another_writes() -> None:
    model = net("""
        depthwise (float[1,3,8,8] x) => (float[1,4,8,8] y)
        <float[8,3,3,3] w1, float[8,1,3,3] w2, float[4,8,1,1] w3> {
            a = Conv<pads = [1,1,1,1]>(x, w1)
            b = Conv<pads = [1,1,1,1], group = 8>(a, w2)
            y = Conv(b, w3)
        }""")
    result = prune(model, targets=["channels=0.5"], align=1)
    first, depthwise, last = layers_of(result.analysis, result.analysis.present(result.keep))
    assert (first.writes, depthwise.writes) == ((0,), ())
    assert first.holds == depthwise.holds == last.reads == (0,)
    assert (depthwise.width, depthwise.width_after, depthwise.free, last.free) == (8, 4, True, False)


def test_a_drawing_has_bars_to_scale_and_rails() -> None:
    result = prune(residual(), targets=["channels=0.5"], align=1)
    layers = layers_of(result.analysis, result.analysis.present(result.keep))
    drawing = strip(layers, result.analysis.groups, [WIDTH, KEPT, MACS])
    assert [mark.layer for mark in drawing.marks] == layers
    for mark in drawing.marks:
        _, kept, macs = mark.after
        assert kept.height == pytest.approx(KEPT.height * mark.layer.share, abs=0.06)
        top = max(layer.macs for layer in layers)
        assert macs.height == pytest.approx(MACS.height * mark.layer.macs_after / top, abs=0.06)
        assert all(after.height <= before.height for before, after in zip(mark.before, mark.after, strict=True))
        assert all(box.y >= 0 and box.y + box.height <= drawing.bottom for box in (*mark.before, *mark.after))
    written = [sum(group in layer.writes for layer in layers) for group in range(len(result.analysis.groups))]
    assert {rail.group: len(rail.dots) for rail in drawing.rails} == {k: count for k, count in enumerate(written) if count > 1}
    assert drawing.rails


def test_a_deep_network_gives_a_wide_drawing_with_few_labels() -> None:
    result = prune(residual(), targets=["channels=0.5"], align=1)
    layers = layers_of(result.analysis, result.analysis.present(result.keep)) * 500
    drawing = strip(layers, result.analysis.groups, [WIDTH])
    assert drawing.width > 6 * len(layers)
    assert len(drawing.numbers) < len(layers) / 4
    assert len(drawing.segments) <= 24


# ---- distributions ---------------------------------------------------------------------------------


def group(size: int, name: str = "g") -> Group:
    return Group(name, np.arange(size, dtype=np.int32), ())


@pytest.mark.parametrize("size", [1, 5, 64, 65, 5000])
def test_bars_are_bounded_and_cover_the_box(size: int) -> None:
    scores = np.random.default_rng(size).random(size) + 0.1
    keep = np.argsort(-scores)[: max(1, size // 3)].tolist()
    (found,) = distributions([group(size)], {"g": scores}, {"g": keep})
    assert 1 <= found.kept_path.count("M") + found.removed_path.count("M") <= 65
    assert found.cut == pytest.approx(240 * len(keep) / size, abs=0.06)
    if len(keep) < size:
        assert found.lowest_kept >= found.highest_removed
    assert max(float(x) for x in re.findall(r"M([\d.]+)", found.kept_path + found.removed_path)) < 240


def test_what_stays_need_not_have_the_highest_scores() -> None:
    (found,) = distributions([group(4)], {"g": np.array([4.0, 3, 2, 1])}, {"g": [0, 3]})
    assert found.cut is None
    assert (found.lowest_kept, found.highest_removed, found.removed) == (1, 3, 2)


@pytest.mark.parametrize("scores", [[-1.0, -2, -3], [5, 0, -5], [np.nan, 1, np.inf], [1e-300, 2e-300, 0]])
def test_scores_of_any_kind_can_be_drawn(scores: list[float]) -> None:
    (found,) = distributions([group(3)], {"g": np.array(scores)}, {"g": [0]})
    assert found.scored
    assert re.fullmatch(r"[Mhvz0-9 .\-]*", found.kept_path + found.removed_path)
    assert 0 <= found.zero <= 60


def test_scores_that_say_nothing_are_not_drawn() -> None:
    found = distributions([group(3), group(3, "other")], {"g": np.zeros(3)}, {"g": [0, 1, 2], "other": [0]})
    assert [item.scored for item in found] == [False, False]


# ---- size -----------------------------------------------------------------------------------------


def test_a_report_of_a_deep_network_stays_small() -> None:
    depth = 150
    weights = ", ".join(f"float[64,64,1,1] w{k}" for k in range(depth))
    nodes = "\n".join(f"v{k} = Conv({'x' if not k else f'v{k - 1}'}, w{k})" for k in range(depth))
    model = net(f"deep (float[1,64,2,2] x) => (float[1,64,2,2] v{depth - 1}) <{weights}> {{ {nodes} }}")
    onnx.checker.check_model(model)
    page = rendered(model, verify=False)
    assert len(page.all("g", class_="layer")) == depth
    assert len(page.html) < 600_000
    assert max(len(own["d"]) for own in page.all("path")) > report.LONGEST
