"""Plans applied to torch modules: outputs equal the pruned ONNX model, sizes follow, state dicts and exports go round.

Needs the torch extra: `pytest -m torch`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.errors import ProofError, UsageError
from graphprune.exporters.pytorch import apply as back
from graphprune.exporters.pytorch.module_plan import module_plan_path, parse_module_plan
from graphprune.model_file import write_model
from graphprune.plan import write_weights
from graphprune.runtime import run

torch = pytest.importorskip("torch")
nets = pytest.importorskip("torch_nets")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning")]  # torch copies its own trees


@cache
def original(name: str) -> tuple[Any, Any, Any]:
    """(module, inputs, normalised graph), imported once."""
    module, inputs = nets.network(name)
    return module, inputs, graphprune.load((module, inputs))


def pruned(name: str, **options: Any) -> tuple[Any, Any, Any]:
    """(a copy of the module, inputs, result of pruning)."""
    module, inputs, graph = original(name)
    options = {"targets": "channels=0.6", "align": 1, "selection": "uniform"} | options
    return copy.deepcopy(module), inputs, graphprune.prune(graph, **options)


def expected(result: Any, inputs: Any) -> Any:
    return next(iter(run(result.model, {result.model.graph.input[0].name: inputs[0].numpy()}).values()))


def output(module: Any, inputs: Any) -> Any:
    with torch.no_grad():
        return module(*inputs).numpy()


def assert_equal(a: Any, b: Any) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 1e-5 * max(np.abs(b).max(), 1e-2)


def train_once(module: Any, inputs: Any) -> None:
    before = [each.detach().clone() for each in module.parameters()]
    module.train()
    descent = torch.optim.SGD(module.parameters(), 0.1)
    module(*inputs).square().sum().backward()
    descent.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(each.grad is None or each.grad.shape == each.shape for each in module.parameters())


IN_PLACE = ["mobile", "encoder", "recurrent", "tied"]


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("ratio", ["0.75", "0.4"])
def test_the_shrunk_module_computes_what_the_pruned_model_computes(name: str, ratio: str) -> None:
    module, inputs, result = pruned(name, targets=f"channels={ratio}")
    kept, before = list(module.parameters()), sum(each.numel() for each in module.parameters())
    applied = graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert applied.module is module
    assert applied.reason == ""
    assert applied.max_error <= 1e-5
    assert_equal(output(module, inputs), expected(result, inputs))
    assert all(a is b for a, b in zip(kept, module.parameters(), strict=True))
    assert sum(each.numel() for each in module.parameters()) < 0.95 * before
    train_once(module, inputs)


@pytest.mark.parametrize("name", IN_PLACE)
def test_state_dict_saved_module_and_export_go_round(name: str, tmp_path: Path) -> None:
    module, inputs, result = pruned(name)
    applied = graphprune.apply_to_torch(module, result, example_inputs=inputs)
    text = applied.plan.to_json()
    assert parse_module_plan(text) == applied.plan
    (tmp_path / "plan.torch.json").write_text(text)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    fresh = type(module)().eval()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = graphprune.module_from_plan(fresh, module_plan_path(tmp_path / "plan.json"), state)
    assert again is fresh
    assert_equal(output(again, inputs), output(module, inputs))
    torch.save(module, tmp_path / "module.pt")
    assert_equal(output(torch.load(tmp_path / "module.pt", weights_only=False), inputs), output(module, inputs))
    exported = graphprune.load((again, inputs)).model
    found = next(iter(run(exported, {exported.graph.input[0].name: inputs[0].numpy()}).values()))
    assert_equal(found, expected(result, inputs))


def test_sizes_of_layers_follow() -> None:
    module, inputs, result = pruned("mobile", targets="channels=0.5")
    graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert module.stem.out_channels == module.stem.weight.shape[0] == module.norm.num_features < 16
    assert module.depthwise.groups == module.depthwise.in_channels == module.depthwise.out_channels == module.stem.out_channels
    assert module.grouped.in_channels == module.grouped.weight.shape[1] * module.grouped.groups == module.stem.out_channels
    assert module.up.in_channels == module.grouped.out_channels + module.branch.out_channels == module.pre.num_features
    assert module.up.out_channels == module.slope.num_parameters
    assert module.head.in_features == module.up.out_channels * 16
    module, inputs, result = pruned("recurrent", targets="channels=0.5")
    graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert module.lstm.hidden_size == module.lstm.weight_hh_l0.shape[1] < 12
    assert module.gru.input_size == 2 * module.lstm.hidden_size


def test_attention_of_torch_loses_heads_and_parts_of_heads() -> None:
    module, inputs, result = pruned("encoder", ratios=[".*=0.5"], targets=())
    graphprune.apply_to_torch(module, result, example_inputs=inputs)
    attention = module.layers.layers[0].self_attn
    assert attention.out_proj.in_features == attention.sizes.heads * attention.sizes.value < 24
    assert attention.in_proj_weight.shape[0] == attention.sizes.heads * (2 * attention.sizes.query + attention.sizes.value)
    x = torch.randn(3, 7, 24)
    with torch.no_grad():
        padding = torch.zeros(3, 7, dtype=torch.bool)
        plain, weights = attention(x, x, x)
        fused, none = attention(x, x, x, padding, need_weights=False, attn_mask=torch.zeros(7, 7, dtype=torch.bool))
        single, _ = attention(x[0], x[0], x[0])
        padding[:, -1] = True
        masked, masked_weights = attention(x, x, x, padding)
    assert none is None
    assert torch.allclose(plain, fused, atol=1e-6)
    assert torch.allclose(plain[0], single, atol=1e-6)
    assert weights.shape == (3, 7, 7)
    assert torch.all(masked_weights[..., -1] == 0)
    assert not torch.allclose(plain, masked)
    with pytest.raises(UsageError, match="differs from head to head"):
        attention(x, x, x, attn_mask=torch.randn(12, 7, 7))


def test_a_pruned_module_is_pruned_again() -> None:
    module, inputs, result = pruned("encoder", targets="channels=0.7")
    graphprune.apply_to_torch(module, result, example_inputs=inputs)
    nets.randomised(module)
    again = graphprune.prune((module, inputs), targets="channels=0.7", align=1, selection="uniform")
    graphprune.apply_to_torch(module, again, example_inputs=inputs)
    assert_equal(output(module, inputs), expected(again, inputs))


def test_attributes_follow_where_the_code_reads_them() -> None:
    module, inputs, result = pruned("attention", targets="channels=0.5")
    heads, size = ({len(result.keep[g.id]) for g in result.analysis.groups if g.size == n}.pop() for n in (4, 6))
    applied = graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert applied.module is module
    assert (module.heads, module.size, module.scale) == (heads, size, 6**-0.5)
    assert heads * size < 24
    assert_equal(output(module, inputs), expected(result, inputs))


def test_code_that_computes_something_else_is_named() -> None:
    """No error in the code, but another result: the number of heads is right only before pruning."""

    class Fixed(nets.Attention):
        def forward(self, x: Any) -> Any:
            q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            return x + self.out((torch.softmax(q @ k.transpose(2, 3) * self.scale, -1) @ v).transpose(1, 2).flatten(2))

    module, inputs = nets.randomised(Fixed()), nets.network("attention")[1]
    graph = graphprune.load((module, inputs))
    heads = next(group for group in graphprune.analyze(graph).groups if group.size == 4)
    others = [f"^{group.id}$" for group in graphprune.analyze(graph).groups if group.size == 6]
    result = graphprune.prune(graph, ratios=[f"^{heads.id}$=0.5"], keep=others, align=1)
    with pytest.raises(back.BakedSizeError, match=r"test_apply_to_torch\.py:\d+: .*unflatten.*: 4 becomes 2"):
        graphprune.apply_to_torch(module, result, example_inputs=inputs, baked_sizes="error")


def test_code_with_sizes_in_it_is_named_and_a_module_of_the_graph_returned() -> None:
    module, inputs, result = pruned("baked")
    before = {name: each.clone() for name, each in module.state_dict().items()}
    with pytest.warns(UserWarning, match=r"the code of the module itself has sizes in it .*torch_nets\.py:\d+: .*view\(-1, 8\)"):
        applied = graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())
    made = applied.module
    assert made is not module
    assert "view" in applied.reason
    assert_equal(output(made, inputs), expected(result, inputs))
    assert set(before) == set(made.state_dict())
    wide = nets.seeded(5, 3, 8, 8)
    assert_equal(output(made, (wide,)), np.concatenate([output(made, (each[None],)) for each in wide]))
    copied = copy.deepcopy(made)
    train_once(made, inputs)
    assert not torch.equal(made.state_dict()["norm.running_mean"], copied.state_dict()["norm.running_mean"])
    copied.load_state_dict(made.state_dict())
    assert_equal(output(copied.eval(), inputs), output(made.eval(), inputs))
    with pytest.raises(UsageError, match="cannot be called like that: too many positional arguments"):
        made(*inputs, *inputs)


def test_code_with_sizes_in_it_is_an_error_where_asked_for() -> None:
    module, inputs, result = pruned("baked")
    with pytest.raises(back.BakedSizeError, match=r"view\(-1, 8\)"):
        graphprune.apply_to_torch(module, result, example_inputs=inputs, baked_sizes="error")
    assert module.conv.out_channels == 8 == module.conv.weight.shape[0]


@pytest.mark.parametrize("name", ["mobile", "encoder", "tied"])
def test_repaired_weights_come_back(name: str) -> None:
    module, inputs, graph = original(name)
    samples = {graph.inputs[0].name: np.random.default_rng(0).standard_normal((64, *inputs[0].shape[1:])).astype(np.float32)}
    result = graphprune.prune(graph, targets="channels=0.6", align=1, calibration=samples, recipe="balanced")
    assert result.weights
    module = copy.deepcopy(module)
    graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert_equal(output(module, inputs), expected(result, inputs))


def test_inputs_are_made_up_from_the_model_and_plans_are_read_from_files(tmp_path: Path) -> None:
    module, inputs, graph = original("mobile")
    samples = {graph.inputs[0].name: np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    result = graphprune.prune(graph, targets="channels=0.6", align=1, calibration=samples)
    (tmp_path / "plan.json").write_text(result.plan.to_json())
    write_weights(tmp_path / "plan.json", result.weights)
    write_model(result.original.model, tmp_path / "model.onnx")
    module = copy.deepcopy(module)
    graphprune.apply_to_torch(module, tmp_path / "plan.json", tmp_path / "model.onnx")
    assert_equal(output(module, inputs), expected(result, inputs))


def test_the_model_is_imported_again_where_it_is_not_given() -> None:
    module, inputs, result = pruned("tied")
    graphprune.apply_to_torch(module, result.plan, example_inputs=inputs)
    assert_equal(output(module, inputs), expected(result, inputs))
    with pytest.raises(UsageError, match="give onnx_model"):
        graphprune.apply_to_torch(module, result.plan)


def test_modes_devices_types_and_requires_grad_stay() -> None:
    module, inputs, result = pruned("mobile")
    module.train()
    module.norm.eval()
    module.stem.weight.requires_grad_(False)
    module.to(memory_format=torch.channels_last)
    graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert module.training
    assert not module.norm.training
    assert not module.stem.weight.requires_grad
    assert module.head.weight.requires_grad
    assert module.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_ties_stay() -> None:
    module, inputs, result = pruned("tied")
    graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert module.first.weight is module.second.weight
    assert module.first.out_features == module.second.out_features == module.first.weight.shape[0] < 16


# ---- what is refused ----------------------------------------------------------------------------


def test_other_weights_are_refused() -> None:
    module, inputs, result = pruned("mobile")
    with torch.no_grad():
        module.head.bias.add_(1)
    with pytest.raises(UsageError, match=r"does not compute the ONNX model's output .* give it the weights"):
        graphprune.apply_to_torch(module, result, example_inputs=inputs)


def test_another_number_of_inputs_is_refused() -> None:
    module, _, result = pruned("tied")
    del module
    with pytest.raises(UsageError, match="the ONNX model has 1 inputs"):
        graphprune.apply_to_torch(torch.nn.Bilinear(8, 8, 4), result, example_inputs=(torch.ones(3, 8), torch.ones(3, 8)))


def test_branches_that_left_need_a_module_of_the_graph() -> None:
    module, inputs, result = pruned(
        "blocks", targets="macs=0.8", recipe="depth", selection="", repair="reconstruct", align="auto"
    )
    assert not all(result.keep.values())
    before = output(module, inputs)
    with pytest.warns(UserWarning, match="drops whole branches, which the module's code would still run: those that end in"):
        applied = graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert_equal(output(applied.module, inputs), expected(result, inputs))
    assert_equal(output(module, inputs), before)
    train_once(applied.module, inputs)
    with pytest.raises(back.BakedSizeError, match="drops whole branches"):
        graphprune.apply_to_torch(module, result, example_inputs=inputs, baked_sizes="error")


def test_unconstrained_plans_are_refused() -> None:
    module, inputs, result = pruned("mobile", mode="unconstrained")
    with pytest.raises(UsageError, match="unconstrained mode"):
        graphprune.apply_to_torch(module, result, example_inputs=inputs)


def test_an_argument_that_forward_does_not_have_is_refused() -> None:
    module, inputs, result = pruned("tied")
    with pytest.raises(UsageError, match="forward has no argument 'y'; it has: x"):
        graphprune.apply_to_torch(module, result, example_inputs={"y": inputs[0]})


def test_a_wrong_result_raises_and_the_module_is_as_it_was() -> None:
    module, inputs, result = pruned("mobile")
    before = {name: each.clone() for name, each in module.state_dict().items()}
    kept = list(module.parameters())
    model = copy.deepcopy(result.model)
    bias = next(each for each in model.graph.initializer if each.name == "head.bias")
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 1).tobytes()
    with pytest.raises(ProofError, match="differs from the pruned ONNX model"):
        graphprune.apply_to_torch(module, dataclasses.replace(result, cut=model), example_inputs=inputs)
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())
    assert all(a is b for a, b in zip(kept, module.parameters(), strict=True))
    assert module.depthwise.groups == 16


def test_layers_of_one_lstm_keep_one_hidden_size() -> None:
    class Deep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = torch.nn.LSTM(6, 8, 2, batch_first=True), torch.nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0])

    module, inputs = nets.randomised(Deep()), (nets.seeded(2, 5, 6),)
    graph = graphprune.load((module, inputs))
    groups = [group.id for group in graphprune.analyze(graph).groups]
    result = graphprune.prune(graph, targets=(), ratios=[f"^{groups[0].split(':')[0]}$=0.5"], align=1)
    with pytest.raises(UsageError, match="layer 'lstm': all layers and directions of torch's LSTM have one hidden size"):
        graphprune.apply_to_torch(module, result, example_inputs=inputs, baked_sizes="error")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["tensors"].update(ghost=plan["tensors"]["head.weight"]), "no parameter or buffer 'ghost'"),
        (
            lambda plan: plan["tensors"]["head.weight"]["shape"].__setitem__(0, 9),
            r"'head.weight' has shape \[4, 16\], but the plan is",
        ),
        (lambda plan: plan["tensors"]["head.weight"]["keep"].update({"7": [0]}), "'head.weight' has no axis '7'"),
        (lambda plan: plan["tensors"]["head.weight"]["keep"].update({"1": [99]}), "indices must be below 16"),
        (lambda plan: plan["attributes"].update(nowhere={"size": 1}), "no layer 'nowhere'"),
        (lambda plan: plan["attributes"].update(head={"forward": 1}), "layer 'head' has no size 'forward'"),
        (lambda plan: plan["attributes"].update(head={"training": 1}), "layer 'head' has no size 'training'"),
        (
            lambda plan: plan.update(attention={"head": {"heads": 1, "query": 1, "value": 1}}),
            "'head' is no nn.MultiheadAttention",
        ),
        (lambda plan: plan.update(more=1), "not a valid module plan: more"),
        (
            lambda plan: plan["tensors"]["first.weight"]["keep"].update({"0": [0]}),
            "are one parameter, but the plan keeps different",
        ),
    ],
)
def test_bad_module_plans_are_refused_and_change_nothing(change: Any, message: str, tmp_path: Path) -> None:
    text = _module_plan_of_tied()
    plan = json.loads(text)
    change(plan)
    (tmp_path / "plan.torch.json").write_text(json.dumps(plan))
    module = nets.network("tied")[0]
    with pytest.raises(UsageError, match=message):
        graphprune.module_from_plan(module, tmp_path / "plan.json")
    assert module.first.weight.shape == (16, 8)


@cache
def _module_plan_of_tied() -> str:
    module, inputs, result = pruned("tied")
    return graphprune.apply_to_torch(module, result, example_inputs=inputs).plan.to_json()


def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    module = nets.network("tied")[0]
    with pytest.raises(UsageError, match=r"the state dict does not fit the plan: .*size mismatch"):
        graphprune.module_from_plan(module, parse_module_plan(_module_plan_of_tied()), module.state_dict())
    assert module.first.weight.shape == (16, 8)


def test_a_module_plan_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the module plan"):
        graphprune.module_from_plan(nets.network("tied")[0], tmp_path / "plan.json")
