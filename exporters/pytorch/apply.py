"""Applying a plan to the user's own module, in place and with a proof.

The module is exported again without folding anything, the plan is carried over by values that are equal in both graphs, every
parameter is cut, sizes kept as attributes follow, and the outcome is compared with the pruned ONNX model; where that fails the
module is as it was.  Start reading at `apply_to_torch`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from graphprune.cutting import taken
from graphprune.depth import with_residuals
from graphprune.edit import KeptOf
from graphprune.errors import GraphpruneError, ProofError, UsageError
from graphprune.extras import require
from graphprune.graph import Array, Graph
from graphprune.inference import Analysis
from graphprune.pipeline import Result, Source, apply_plan, load
from graphprune.plan import Plan
from graphprune.proof import difference
from graphprune.replay import analysis_of, shrink_pass
from graphprune.runtime import run

from .baked import BakedSizeError, ChangedSize, attributes_that_follow, changed_sizes
from .comparison import Feeds, largest_difference, plan_of
from .cutting import Undo, cut, replace_data, torch_like, undo_all
from .inputs import feeds_of, input_names, located_results, made_up_call, results_of
from .layers import UnfitLayerError, layer_sizes
from .matching import Reading, equal_values, read_values, transferred
from .module_plan import Cut, ModulePlan, module_plan_path, read_module_plan, tensors_of
from .repaired import Repair
from .unfolded import Call, evaluating, unfolded

Module = Any
Tensor = Any
ROWS = 1e-3
"""Largest difference between the results of equal rows in one batch and in another, relative to their scale."""


@dataclass(frozen=True)
class Applied:
    """A shrunk module."""

    module: Module
    """The user's own, or one made of the graph where its code could not follow."""
    plan: ModulePlan
    """What was kept of each parameter: enough to shrink another module of the same architecture (`module_from_plan`)."""
    max_error: float
    """The largest difference from the pruned ONNX model, relative to the largest magnitude of the output."""
    reason: str = ""
    """Why the module is not the user's own; empty where it is."""


def apply_to_torch(
    module: Module,
    plan: Result | Plan | str | Path,
    onnx_model: Source | None = None,
    example_inputs: Any = None,
    *,
    weights: Mapping[str, Array] | None = None,
    baked_sizes: Literal["graph", "error"] = "graph",
) -> Applied:
    """Shrink a module in place as a plan has it; its weights must be those that the plan was made with.

    `plan` is what `prune` returned, a plan or its file (with the repaired weights beside it); for the latter two `onnx_model` is
    the model that it was made from, by default the module, imported again.  `example_inputs` are the arguments of `forward`: a
    tuple, a mapping by name or one tensor; by default random ones as the ONNX model takes them.

    Where code of the module has sizes in it that the plan changes, the module stays as it is, and `baked_sizes` says what then: a
    module made of the graph, with a warning that names the line, or a BakedSizeError.

    Raises UsageError where plan, model and module do not fit each other, InvalidModelError where torch cannot export the
    module, ProofError where the outcome differs from the pruned ONNX model; the module is then as it was.
    """
    require("torch", "torch")
    require("onnxscript", "torch")
    result = _result(module, plan, onnx_model, example_inputs, weights)
    if result.options.get("mode") == "unconstrained":
        raise UsageError(
            "in unconstrained mode each reader takes channels of its own, which the code of a module does not do; "
            "prune with --mode coupled"
        )
    back = _Back(module, result, example_inputs)
    try:
        largest = back.in_place()
        return Applied(module, back.plan, largest)
    except BakedSizeError as reason:
        if baked_sizes == "error":
            raise
        applied = back.from_graph(str(reason))
        text = f"{reason}. The module is unchanged; the result is a module made of the graph, with the same parameter names"
        warnings.warn(text, stacklevel=3)
        return applied


def module_from_plan(module: Module, plan: ModulePlan | str | Path, state_dict: Mapping[str, Tensor] | None = None) -> Module:
    """Shrink a fresh module of the same architecture in place, load a pruned state dict into it, and return it.

    `plan` is the `plan` of what `apply_to_torch` returned, its file, or the pruning plan's file with that one beside it
    (`PLAN.torch.json`).  Raises UsageError where the plan or the state dict is for another architecture; the module is then as it
    was.
    """
    require("torch", "torch")
    steps = [cut(module, plan if isinstance(plan, ModulePlan) else _module_plan(Path(plan)))]
    if state_dict is None:
        return module
    tensors = [*{id(each): each for each in tensors_of(module).values()}.values()]
    on_meta = any(each.is_meta for each in tensors)
    steps += [_slots(module)] if on_meta else [replace_data(each, each.data.clone()) for each in tensors]
    try:
        module.load_state_dict(state_dict, assign=on_meta)
    except Exception as error:  # torch raises RuntimeError, TypeError and AttributeError, depending on what is wrong
        undo_all(steps)()
        raise UsageError(f"the state dict does not fit the plan: {(str(error).splitlines() or [''])[-1].strip()}") from error
    return module


def _slots(module: Module) -> Undo:
    """What puts the parameters and buffers that a module has now back into their places."""
    slots = [(each, dict(each._parameters), dict(each._buffers)) for each in module.modules()]

    def undo() -> None:
        for each, parameters, buffers in slots:
            each._parameters.update(parameters)
            each._buffers.update(buffers)

    return undo


def _module_plan(path: Path) -> ModulePlan:
    beside = module_plan_path(path)
    return read_module_plan(beside if beside.exists() else path)


def _result(
    module: Module, plan: Result | Plan | str | Path, onnx_model: Source | None, inputs: Any, weights: Mapping[str, Array] | None
) -> Result:
    if isinstance(plan, Result):
        return plan
    plan, weights = plan_of(plan, weights)
    if onnx_model is None:
        if inputs is None:
            raise UsageError(
                "give onnx_model, the model that the plan was made from, or example_inputs to import the module again"
            )
        with evaluating(module):
            onnx_model = load((module, inputs))
    return apply_plan(onnx_model, plan, weights=weights)


class _Back:
    """One module on its way back: what is known about it before it is cut."""

    def __init__(self, module: Module, result: Result, example_inputs: Any) -> None:
        self.module, self.result = module, result
        self.call = made_up_call(module, result.original) if example_inputs is None else Call.of(module, example_inputs)
        self.analysis = self._analysed(self.call)
        self.feeds = feeds_of(result.original, self.analysis.graph, self.call)
        stay = result.analysis.present(result.keep)
        theirs = read_values(result.original, self.feeds, "the ONNX model")
        own = read_values(
            self.analysis.graph, feeds_of(self.analysis.graph, self.analysis.graph, self.call), "the exported module"
        )
        self.outputs = self._matched_outputs(theirs)
        self.pairs = list(equal_values(theirs, own))
        self.present = transferred(result.analysis, stay, self.pairs, self.analysis)
        self.cuts = _cuts(module, self.analysis, shrink_pass().kept_indices(self.analysis, self.present))
        self.plan = ModulePlan(self.cuts, {})
        kept_of = shrink_pass().kept_indices(result.analysis, stay)
        self.repaired = Repair(result.original, result.weights, kept_of, self.analysis.graph, self.pairs).run()
        self.pruned = self._shrunk(self.analysis, self.present)
        self.changes = changed_sizes(self.analysis.graph, self.pruned)

    def _analysed(self, call: Call) -> Analysis:
        graph = unfolded(self.module, call)
        options = self.result.options
        analysis = analysis_of(graph, options.get("normalization", "pin"), "coupled", options.get("experts", "keep"))
        return analysis if all(self.result.keep.values()) else with_residuals(analysis)

    def _shrunk(self, analysis: Analysis, present: NDArray[np.bool_]) -> ModelProto:
        """The module's graph with what is kept, and the repaired weights."""
        model = ModelProto()
        model.CopyFrom(analysis.graph.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.repaired:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(self.repaired[tensor.name]), tensor.name))
        graph = Graph(model, analysis.graph.shapes, analysis.graph.sized)
        pruned: ModelProto = shrink_pass().shrink(replace(analysis, graph=graph), present)
        return pruned

    def in_place(self) -> float:
        """Cut the module and compare; where its code cannot follow, or the outcome is wrong, bring it back and raise."""
        left = [each for each in self.analysis.residuals if each.has_left(self.present)]
        if left:
            layers = ", ".join(end.linear.weight for each in left for end in each.ends)
            raise BakedSizeError(
                f"the plan drops whole branches, which the module's code would still run: those that end in {layers}"
            )
        try:
            attributes, attention = layer_sizes(self.module, self.cuts)
        except UnfitLayerError as error:
            raise BakedSizeError(str(error)) from error
        plain = ModulePlan(self.cuts, attributes, attention)
        more = attributes_that_follow(self.module, self.changes)
        failures: list[GraphpruneError] = []
        for plan in [plain, plain.with_attributes(more)] if more else [plain]:
            undo = self._cut(plan)
            try:
                largest = self._compare(self.module)
            except GraphpruneError as failure:
                undo()
                failures.append(failure)
                continue
            except BaseException:
                undo()
                raise
            self.plan = plan
            return largest
        if isinstance(failures[0], ProofError) and self.changes and self._graph_is_right():
            raise BakedSizeError(f"the module's code has sizes in it that the plan changes: {_described(self.changes)}")
        raise failures[0]

    def _graph_is_right(self) -> bool:
        """Whether the module's graph, cut in the same way, computes what it should: then only the module's code is to blame."""
        expected = run(self.result.model, self.feeds)
        own = list(run(self.pruned, feeds_of(self.analysis.graph, self.analysis.graph, self.call)).values())
        pairs = [difference(expected[name], own[index]) for name, index in self.outputs]
        return all(error <= tolerance for error, tolerance in pairs)

    def _cut(self, plan: ModulePlan) -> Undo:
        """Cut the module and give it the repaired weights; returns what undoes both."""
        steps = [cut(self.module, plan)]
        tensors = tensors_of(self.module)
        for name, tensor in self._repaired_tensors().items():
            steps.append(replace_data(tensors[name], torch_like(tensors[name].data, tensor)))
        return undo_all(steps)

    def _repaired_tensors(self) -> dict[str, Tensor]:
        import torch

        found = {}
        for name, full in self.repaired.items():
            kept = self.cuts[name].kept if name in self.cuts else {}
            cut_ = taken(full, {axis: np.asarray(indices, np.int64) for axis, indices in kept.items()})
            found[name] = torch.from_numpy(np.ascontiguousarray(cut_))
        return found

    def from_graph(self, reason: str) -> Applied:
        """A module made of the graph, with the user's module as it was."""
        from .arguments import Arguments
        from .graph_module import GraphModule, batch_dependent

        state = _cut_state(self.module, self.cuts, self._repaired_tensors())
        names = [value.name for value in self.analysis.graph.inputs]
        call, pruned, twice = self._two_batches()
        arguments = Arguments.of(self.module, self.call)
        fixed = GraphModule(self.pruned, {}, state, names, arguments, self._structure(self.call))
        made = fixed
        if twice is not None and (dependent := batch_dependent(pruned, twice)) is not None:
            free = GraphModule(pruned, dependent, state, names, arguments, self._structure(call))
            made = free if _rows_are_independent(free, call) else fixed
        made.train(self.module.training)
        return Applied(made, ModulePlan(self.cuts, {}), self._compare(made), reason)

    def _two_batches(self) -> tuple[Call, ModelProto, ModelProto | None]:
        """A call, its pruned graph, and that for twice the batch; None where the module takes no other batch."""
        call = self.call.doubled() if any(each.dim() and each.shape[0] == 1 for each in self.call.tensors()) else self.call
        try:
            return call, self._pruned_for(call), self._pruned_for(call.doubled())
        except Exception:  # what a module raises for sizes that it does not take can be anything
            return self.call, self.pruned, None

    def _pruned_for(self, call: Call) -> ModelProto:
        analysis = self._analysed(call)
        pairs = [(name, [name]) for name in self.analysis.graph.initializers if name in analysis.graph.initializers]
        return self._shrunk(analysis, transferred(self.analysis, self.present, pairs, analysis))

    def _structure(self, call: Call) -> tuple[list[Any], Any]:
        import torch
        from torch.utils import _pytree as tree

        with evaluating(self.module):
            leaves, spec = tree.tree_flatten(self.module(*call.positional, **call.named))
        return [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec

    # ---- the proof -----------------------------------------------------------------------------

    def _matched_outputs(self, theirs: Reading) -> list[tuple[str, int]]:
        """(the ONNX model's output, the place of the equal tensor in what the module returns).  Raises UsageError."""
        own = results_of(self.module, self.call)
        found = []
        for value in self.result.original.outputs:
            expected = theirs.values.get(value.name)
            errors = [np.inf if expected is None else difference(expected, each)[0] for each in own]
            best = int(np.argmin(errors)) if errors else -1
            if best < 0 or errors[best] > difference(np.zeros(1, own[best].dtype), np.zeros(1, own[best].dtype))[1]:
                raise UsageError(
                    f"the module does not compute the ONNX model's output {value.name!r}"
                    f"{f' (difference {errors[best]:.1e})' if best >= 0 and np.isfinite(errors[best]) else ''}: "
                    "give it the weights that the model was exported with"
                )
            found.append((value.name, best))
        return found

    def _compare(self, module: Module) -> float:
        """The largest difference from the pruned ONNX model.  Raises BakedSizeError or ProofError."""

        def call(feeds: Feeds) -> list[Array]:
            return located_results(module, self._call_with(feeds))

        return largest_difference(self.result, self.feeds, call, self.outputs, "module")

    def _call_with(self, feeds: Feeds) -> Call:
        import torch

        names = input_names(self.result.original, self.analysis.graph)
        tensors = self.call.tensors()
        fresh = [
            torch.from_numpy(np.array(feeds[name])).to(old.device) if name in feeds else old
            for name, old in zip(names, tensors, strict=True)
        ]
        return self.call.with_tensors(fresh)


def _described(changes: list[ChangedSize]) -> str:
    lines = dict.fromkeys(f"{c.path or 'the module itself'} ({c.line}): {c.before} becomes {c.after}" for c in changes)
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(list(lines)[:3]) + more


def _cuts(module: Module, analysis: Analysis, kept_of: KeptOf) -> dict[str, Cut]:
    """What is kept of each parameter and buffer that shrinks, under all its names.

    Raises UsageError where two names of one parameter keep different parts.
    """
    found: dict[int, tuple[str, Cut]] = {}
    tensors = tensors_of(module)
    for name, tensor in tensors.items():
        if name not in analysis.graph.initializers:
            continue
        kept = {str(k): kept_of(name, k) for k in range(tensor.dim())}
        cut_ = Cut(list(tensor.shape), {axis: ids.tolist() for axis, ids in kept.items() if ids is not None})
        other, known = found.setdefault(id(tensor), (name, cut_))
        if known != cut_:
            raise UsageError(
                f"{other!r} and {name!r} are one parameter of the module, but the plan keeps different parts of them"
            )
    return {name: found[id(each)][1] for name, each in tensors.items() if id(each) in found and found[id(each)][1].keep}


def _rows_are_independent(module: Module, call: Call) -> bool:
    """Whether twice the batch gives twice the results."""
    try:
        once, twice = results_of(module, call), results_of(module, call.doubled())
    except Exception:  # of a shape that does not follow the batch
        return False
    return all(difference(np.concatenate([a, a]) if a.ndim else a, b)[0] <= ROWS for a, b in zip(once, twice, strict=True))


def _cut_state(module: Module, cuts: Mapping[str, Cut], repaired: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters and buffers of a module after pruning, ties kept, as new tensors."""
    import torch

    made: dict[int, Tensor] = {}
    tensors = tensors_of(module)
    names = {*module.state_dict(keep_vars=True), *dict(module.named_parameters(remove_duplicate=False))}
    for name, tensor in tensors.items():
        if name not in names or id(tensor) in made:
            continue
        data = tensor.detach().clone()
        for axis, indices in cuts[name].kept.items() if name in cuts else ():
            data = data.index_select(axis, torch.tensor(indices, dtype=torch.int64, device=data.device))
        if name in repaired:
            data.copy_(repaired[name])
        made[id(tensor)] = torch.nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else data
    return {name: made[id(tensor)] for name, tensor in tensors.items() if id(tensor) in made}
