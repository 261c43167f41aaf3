"""Plans applied to torch modules where it is easily wrong: what is undone, calls with names, computed weights, state dicts.

Needs the torch extra: `pytest -m torch`.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.errors import UsageError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*has sizes in it that the plan changes.*:UserWarning"),
]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Baked(nn.Module):
    """Joins two inputs; the width of both together is written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(64, 5)

    def forward(self, x: Any, y: Any, scale: float = 1.0) -> Any:
        z = torch.relu(torch.cat([self.a(x), self.b(y)], 1)).view(-1, 64)
        return self.head(z) * scale


def state(module: Any) -> dict[str, Any]:
    return {name: each.clone() for name, each in module.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def applied_to_baked(*inputs: Any, **options: Any) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    module = Baked().eval()
    inputs = inputs or (torch.randn(4, 8), torch.randn(4, 8))
    result = graphprune.prune((module, inputs), targets="macs=0.6", align=1, **options)
    return module, inputs, graphprune.apply_to_torch(module, result, example_inputs=inputs)


def test_repaired_weights_go_back_where_the_module_stays() -> None:
    torch.manual_seed(0)
    module = Baked().eval()
    inputs = torch.randn(4, 8), torch.randn(4, 8)
    before = state(module)
    rng = np.random.default_rng(0)
    graph = graphprune.load((module, inputs))
    samples = {value.name: rng.normal(size=(64, 8)).astype(np.float32) for value in graph.inputs}
    if graph.inputs[0].type.tensor_type.shape.dim[0].dim_value:
        samples = {name: array[:4] for name, array in samples.items()}
    result = graphprune.prune(graph, targets="macs=0.6", align=1, calibration=samples, repair="reconstruct")
    assert "head.bias" in result.weights
    applied = graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert applied.module is not module
    assert same(before, state(module))


def test_named_arguments_go_where_their_names_say() -> None:
    _, (x, y), applied = applied_to_baked()
    assert torch.equal(applied.module(x, y), applied.module(y=y, x=x))
    assert not torch.equal(applied.module(x, y), applied.module(y, x))
    again = pickle.loads(pickle.dumps(applied.module))
    assert torch.equal(again(y=y, x=x), applied.module(x, y))
    assert torch.equal(copy.deepcopy(applied.module)(x, y=y), applied.module(x, y))


def test_what_is_written_into_the_graph_cannot_be_another() -> None:
    _, (x, y, _), applied = applied_to_baked(torch.randn(4, 8), torch.randn(4, 8), 2.0)
    applied.module(x, y, 2.0)
    applied.module(x, y, scale=2.0)
    for call in (lambda: applied.module(x, y, 5.0), lambda: applied.module(x, y)):
        with pytest.raises(UsageError, match=r"this module was traced with scale = 2.0; it got (5|1).0"):
            call()
    with pytest.raises(UsageError, match="this module cannot be called like that: missing a required argument: 'y'"):
        applied.module(x, scale=2.0)
    with pytest.raises(UsageError, match=r"this module was traced with x = a tensor; it got a tensor, a tensor"):
        applied.module([x, x], y, 2.0)


def test_a_default_may_be_named() -> None:
    _, (x, y), applied = applied_to_baked()
    assert torch.equal(applied.module(x, y, scale=1.0), applied.module(x, y))


def test_weights_under_a_mask_give_their_layers_sizes() -> None:
    import torch.nn.utils.prune as by_mask

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    ).eval()
    for index in (0, 2):
        by_mask.l1_unstructured(module[index], "weight", amount=0.2)
    inputs = (torch.randn(2, 3, 8, 8),)
    result = graphprune.prune((module, inputs), targets="params=0.5", align=1)
    applied = graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert applied.module is module
    assert (module[0].out_channels, module[2].in_channels, module[2].out_channels) == (
        module[0].weight.shape[0],
        module[2].weight.shape[1],
        module[2].weight.shape[0],
    )
    assert module[2].in_channels == module[0].out_channels < 16


@pytest.mark.parametrize("option", ["add_zero_attn", "add_bias_kv"])
def test_attention_that_cannot_lose_heads_becomes_a_module_of_the_graph(option: str) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 4)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True, **{option: True})

        def forward(self, x: Any) -> Any:
            z = self.first(x)
            return self.last(self.attention(z, z, z)[0].mean(1))

    torch.manual_seed(0)
    module, inputs = Attending().eval(), (torch.randn(2, 5, 6),)
    result = graphprune.prune((module, inputs), targets="params=0.5", align=1)
    with pytest.warns(UserWarning, match="with add_bias_kv or add_zero_attn cannot lose heads in torch"):
        applied = graphprune.apply_to_torch(module, result, example_inputs=inputs)
    assert applied.module is not module


def test_modes_survive_an_import() -> None:
    module = Plain().train()
    module.b.eval()
    graphprune.load((module, (torch.randn(2, 3, 8, 8),)))
    assert (module.training, module.a.training, module.b.training) == (True, True, False)


def shrunk() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    module, inputs = Plain().eval(), (torch.randn(2, 3, 8, 8),)
    result = graphprune.prune((module, inputs), targets="macs=0.5")
    applied = graphprune.apply_to_torch(module, result, example_inputs=inputs)
    return applied.plan, state(module)


@pytest.mark.parametrize("change", ["more", "list", "shape"])
def test_a_module_stays_as_it_was_where_a_state_dict_does_not_fit(change: str) -> None:
    plan, weights = shrunk()
    broken: Any = {"more": weights | {"extra": torch.zeros(1)}, "list": [1], "shape": weights | {"head.bias": torch.zeros(3)}}
    fresh = Plain()
    before = state(fresh)
    with pytest.raises(UsageError, match="the state dict does not fit the plan: "):
        graphprune.module_from_plan(fresh, plan, broken[change])
    assert same(before, state(fresh))
    assert fresh.a.out_channels == 16


def test_a_module_without_memory_gets_that_of_the_state_dict() -> None:
    plan, weights = shrunk()
    with torch.device("meta"):
        fresh = Plain()
    module = graphprune.module_from_plan(fresh, plan, weights)
    assert same(weights, state(module))
    assert module(torch.randn(2, 3, 8, 8)).shape == (2, 10)


class OfADictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(64, 5)

    def forward(self, batch: Any, more: Any, options: Any = {"scale": 1.0}) -> Any:  # noqa: B006
        z = torch.relu(torch.cat([self.a(batch["x"]), self.b(batch["y"])], 1)).view(-1, 64)
        return self.head(z) * options["scale"] + more


def test_dictionaries_in_any_order() -> None:
    torch.manual_seed(0)
    module, x, y, z = OfADictionary().eval(), torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 5)
    inputs = ({"x": x, "y": y}, z)
    result = graphprune.prune((module, inputs), targets="macs=0.6", align=1)
    made = graphprune.apply_to_torch(module, result, example_inputs=inputs).module
    assert made is not module
    assert torch.equal(made({"x": x, "y": y}, z), made({"y": y, "x": x}, z))
    assert not torch.equal(made({"x": x, "y": y}, z), made({"x": y, "y": x}, z))
    assert torch.equal(made({"x": x, "y": y}, z), made({"x": x, "y": y}, z, {"scale": 1.0}))
    with pytest.raises(UsageError, match=r"traced with options = 1.0; it got 2.0"):
        made({"x": x, "y": y}, z, {"scale": 2.0})


def test_a_module_without_memory_stays_so_where_a_state_dict_does_not_fit() -> None:
    plan, weights = shrunk()
    with torch.device("meta"):
        fresh = Plain()
    before = dict(fresh.named_parameters())
    with pytest.raises(UsageError, match="the state dict does not fit the plan"):
        graphprune.module_from_plan(fresh, plan, weights | {"head.bias": torch.zeros(3)})
    assert all(each is before[name] and each.is_meta for name, each in fresh.named_parameters())
    assert fresh.a.weight.shape == (16, 3, 3, 3)
