"""The plan: what it says, that it can be replayed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from halving import plan_that_keeps, shapes
from nets import net, plain, residual, write
from onnx import numpy_helper

import graphprune
from graphprune.errors import UsageError
from graphprune.plan import parse_plan

Cli = Callable[..., Result]
Change = Callable[[dict[str, Any]], None]


def plan_of(**options: Any) -> dict[str, Any]:
    options = {"targets": ["channels=0.5"], "align": 1, "selection": "uniform", "verify": False} | options
    return json.loads(graphprune.prune(residual(), **options).plan.to_json())  # type: ignore[no-any-return]


# ---- what it says -------------------------------------------------------------------------------


def test_the_keys_of_the_schema() -> None:
    plan = plan_of()
    assert set(plan) == {"schema", "graphprune", "model_sha256", "options", "groups", "tensors", "reads", "pinned"}
    assert plan["schema"] == "graphprune.plan/1"
    assert plan["graphprune"] == graphprune.__version__
    assert set(plan["groups"][0]) == {"id", "size", "keep", "members"}
    assert set(plan["groups"][0]["members"][0]) == {"tensor", "axis", "role"}
    assert plan["reads"] == []


def test_the_text_is_sorted_json_in_utf_8() -> None:
    text = graphprune.prune(residual(), targets=["channels=0.5"], align=1, keep=["inner:0|größe"], verify=False).plan.to_json()
    assert "größe" in text
    plan = json.loads(text)
    assert text == json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def test_every_option_that_decides_about_the_result_is_recorded() -> None:
    options = plan_of(targets=["channels=0.6"], seed=7, min_channels=2, keep=["nner:0"], importance="lamp")["options"]
    assert options == {
        "targets": ["channels=0.6"],
        "recipe": "fast",
        "repair": [],
        "importance": "lamp",
        "selection": "uniform",
        "align": 1,
        "keep": ["nner:0"],
        "ratios": [],
        "min_channels": 2,
        "mode": "coupled",
        "masks": "independent",
        "seed": 7,
        "threads": 1,
        "normalization": "pin",
        "experts": "keep",
        "on_unsupported": "pin",
    }


def test_tensors_list_every_axis_that_changed_and_no_other() -> None:
    result = graphprune.prune(residual(), targets=["channels=0.5"], align=1, verify=False)
    plan = json.loads(result.plan.to_json())
    before, after = shapes(result.original.model), shapes(result.model)
    changed = {
        (name, str(axis)): size for name, sizes in after.items() for axis, size in enumerate(sizes) if size != before[name][axis]
    }
    listed = {(name, axis): len(kept) for name, axes in plan["tensors"].items() for axis, kept in axes.items()}
    assert listed == changed


def test_the_pruned_weights_are_those_that_the_plan_lists() -> None:
    """`np.take` of the imported weights with the plan's indices gives the pruned file."""
    result = graphprune.prune(residual(), targets=["channels=0.6"], align=1, verify=False)
    plan = json.loads(result.plan.to_json())
    pruned = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    for tensor in result.original.model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        for axis, kept in plan["tensors"].get(tensor.name, {}).items():
            array = np.take(array, kept, axis=int(axis))
        assert np.array_equal(array, pruned[tensor.name])


def test_pinned_axes_have_a_reason() -> None:
    pinned = {(entry["tensor"], entry["axis"]): entry["reason"] for entry in plan_of()["pinned"]}
    assert pinned == {
        ("stem", 1): "network input 'x' keeps its shape",
        ("head", 0): "network output 'y' keeps its shape",
        ("bias", 0): "network output 'y' keeps its shape",
    }


def test_equal_runs_give_equal_text() -> None:
    assert plan_of() == plan_of()
    assert plan_of(importance="random", seed=1) != plan_of(importance="random", seed=2)


def test_a_plan_parses_back() -> None:
    plan = graphprune.prune(residual(), targets=["channels=0.5"], align=1, verify=False).plan
    assert parse_plan(plan.to_json()) == plan


# ---- replay -------------------------------------------------------------------------------------


def test_apply_gives_the_same_bytes(tmp_path: Path, graphprune_cli: Cli) -> None:
    model = write(residual(), tmp_path / "m.onnx")
    out, plan, again = tmp_path / "out.onnx", tmp_path / "plan.json", tmp_path / "again.onnx"
    made = graphprune_cli("prune", model, "-o", out, "--target", "macs=0.6", "--align", "1", "--plan", plan)
    assert made.exit_code == 0
    replayed = graphprune_cli("apply", model, plan, "-o", again)
    assert replayed.exit_code == 0
    assert "equal to the masked original" in replayed.stdout
    assert again.read_bytes() == out.read_bytes()


def test_apply_to_the_imported_model_gives_the_same_bytes(tmp_path: Path, graphprune_cli: Cli) -> None:
    """Names in a plan are names in the normalised file."""
    model = write(residual(), tmp_path / "m.onnx")
    imported, out, plan, again = (tmp_path / name for name in ("i.onnx", "out.onnx", "plan.json", "again.onnx"))
    assert graphprune_cli("import", model, "-o", imported).exit_code == 0
    graphprune_cli("prune", model, "-o", out, "--target", "macs=0.6", "--align", "1", "--plan", plan)
    assert graphprune_cli("apply", imported, plan, "-o", again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()


def test_an_edited_plan_that_is_consistent_is_applied() -> None:
    plan = plan_that_keeps(residual(), {"stem:0": [0, 2, 7], "inner:0": [3]})
    result = graphprune.apply_plan(residual(), plan)
    assert shapes(result.model)["outer"] == [3, 1, 3, 3]
    assert result.proof is not None
    assert result.proof.passed


def test_a_group_that_the_plan_does_not_name_stays_whole() -> None:
    whole = plan_that_keeps(residual(), {"stem:0": [0, 2, 7]})
    plan = replace(whole, groups=[group for group in whole.groups if group.id == "stem:0"])
    result = graphprune.apply_plan(residual(), plan)
    assert shapes(result.model)["outer"] == [3, 6, 3, 3]
    assert result.plan == plan


# ---- what is refused ----------------------------------------------------------------------------


def group(plan: dict[str, Any], name: str = "stem:0") -> dict[str, Any]:
    return next(entry for entry in plan["groups"] if entry["id"] == name)


def other_model(plan: dict[str, Any]) -> None:
    plan["model_sha256"] = "0" * 64


def unknown_group(plan: dict[str, Any]) -> None:
    group(plan)["id"] = "nobody:0"


def other_size(plan: dict[str, Any]) -> None:
    group(plan)["size"] = 9


def out_of_range(plan: dict[str, Any]) -> None:
    group(plan)["keep"][-1] = 8


def negative(plan: dict[str, Any]) -> None:
    group(plan)["keep"][0] = -1


def duplicate(plan: dict[str, Any]) -> None:
    keep = group(plan)["keep"]
    keep[1] = keep[0]


def named_twice(plan: dict[str, Any]) -> None:
    plan["groups"].append(group(plan))


def descending(plan: dict[str, Any]) -> None:
    group(plan)["keep"].reverse()


def empty(plan: dict[str, Any]) -> None:
    group(plan)["keep"] = []


def contradiction(plan: dict[str, Any]) -> None:
    kept = plan["tensors"]["stem"]["0"]
    plan["tensors"]["stem"]["0"] = [*kept[:-1], next(k for k in range(8) if k not in kept)]


def tensor_missing(plan: dict[str, Any]) -> None:
    del plan["tensors"]["inner"]


def tensor_unknown(plan: dict[str, Any]) -> None:
    plan["tensors"]["nobody"] = {"0": [0]}


def axis_unknown(plan: dict[str, Any]) -> None:
    plan["tensors"]["stem"]["9"] = [0]


def newer_schema(plan: dict[str, Any]) -> None:
    plan["schema"] = "graphprune.plan/2"


def extra_key(plan: dict[str, Any]) -> None:
    plan["comment"] = "mine"


def missing_key(plan: dict[str, Any]) -> None:
    del plan["tensors"]


def wrong_type(plan: dict[str, Any]) -> None:
    group(plan)["keep"] = "all"


def float_index(plan: dict[str, Any]) -> None:
    group(plan)["keep"][0] = 0.5


def unknown_role(plan: dict[str, Any]) -> None:
    group(plan)["members"][0]["role"] = "owner"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_model, "the plan is for another model: it names sha256 000000000000..."),
        (unknown_group, "the plan's group 'nobody:0' of size 8 is not in this model"),
        (other_size, "the plan's group 'stem:0' of size 9 is not in this model"),
        (out_of_range, "the plan's group 'stem:0' keeps index 8, but its size is 8"),
        (negative, "not a valid plan: groups.0.keep.0: Input should be greater than or equal to 0"),
        (duplicate, "the plan's group 'stem:0' keeps an index twice"),
        (named_twice, "the plan names a group twice"),
        (descending, "the plan contradicts itself"),
        (empty, "the plan keeps nothing of group 'stem:0'"),
        (contradiction, "the indices for tensor 'stem' are not those of its groups"),
        (tensor_missing, "the indices for tensor 'inner' are not those of its groups"),
        (tensor_unknown, "the plan cuts the tensor 'nobody', which is not in this model"),
        (axis_unknown, "the indices for tensor 'stem' are not those of its groups"),
        (newer_schema, "not a valid plan: schema: Input should be 'graphprune.plan/1'"),
        (extra_key, "not a valid plan: comment: "),
        (missing_key, "not a valid plan: tensors: "),
        (wrong_type, "not a valid plan: groups.0.keep: Input should be a valid"),
        (float_index, "not a valid plan: groups.0.keep.0: Input should be a valid integer"),
        (unknown_role, "not a valid plan: groups.0.members.0.role: Input should be 'producer', 'consumer' or 'carrier'"),
    ],
)
@pytest.mark.parametrize("verb", ["apply", "verify"])
def test_a_plan_that_does_not_fit(tmp_path: Path, graphprune_cli: Cli, verb: str, change: Change, message: str) -> None:
    plan = plan_of()
    change(plan)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    model = write(residual(), tmp_path / "m.onnx")
    rest = ["-o", tmp_path / "out.onnx"] if verb == "apply" else [model]
    result = graphprune_cli(verb, model, path, *rest)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", "null", '{"schema": "graphprune.plan/1"'])
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(UsageError, match=r"p\.json: not a valid plan: "):
        parse_plan(text, "p.json")


def test_a_plan_file_that_cannot_be_read(tmp_path: Path, graphprune_cli: Cli) -> None:
    model = write(residual(), tmp_path / "m.onnx")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.json", tmp_path, binary):
        result = graphprune_cli("apply", model, path, "-o", tmp_path / "out.onnx")
        assert result.exit_code == 2
        assert f"{path}: cannot read the plan" in result.stderr


def test_the_plan_of_one_net_on_another(tmp_path: Path, graphprune_cli: Cli) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_of()))
    other = write(plain(), tmp_path / "other.onnx")
    result = graphprune_cli("apply", other, path, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert "the plan is for another model" in result.stderr


def test_a_changed_weight_is_another_model() -> None:
    plan = graphprune.prune(residual(), targets=["channels=0.5"], align=1, verify=False).plan
    model = residual()
    raw = bytearray(model.graph.initializer[0].raw_data)
    raw[0] ^= 1
    model.graph.initializer[0].raw_data = bytes(raw)
    with pytest.raises(UsageError, match="another model"):
        graphprune.apply_plan(model, plan)


def test_an_axis_that_a_plan_would_empty() -> None:
    """A hand-written plan that keeps nothing of one half of a Split."""
    model = net("""
        halves (float[N,3,4,4] x) => (float[N,2,4,4] y)
        <float[8,3,1,1] w1, int64[2] sizes = {5, 3}, float[2,5,1,1] w2, float[2,3,1,1] w3> {
            a = Conv(x, w1)
            p, q = Split<axis = 1>(a, sizes)
            b = Conv(p, w2)
            c = Conv(q, w3)
            y = Add(b, c)
        }""")
    plan = plan_that_keeps(model, {"w1:0": [0, 1, 2]})
    with pytest.raises(UsageError):
        graphprune.apply_plan(model, plan)


@pytest.mark.parametrize(("name", "value"), [("seed", "x"), ("seed", -1), ("seed", {}), ("mode", []), ("normalization", None)])
def test_options_that_cannot_be(tmp_path: Path, graphprune_cli: Cli, name: str, value: object) -> None:
    model = write(residual(), tmp_path / "m.onnx")
    plan = json.loads(graphprune.prune(residual(), targets=["channels=0.5"], align=1).plan.to_json())
    plan["options"][name] = value
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    result = graphprune_cli("apply", model, tmp_path / "plan.json", "-o", tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert f"the plan's option {name!r}: " in result.stderr
