"""The proof: the pruned graph computes what the masked original computes.

The masked reference (`graphprune.masking`) is the original graph with every removed index multiplied by zero right where it is
contracted.  Both graphs run on seeded random inputs, and not only their outputs are compared but the results of the
contractions on the way, at the kept indices: in a deep network an early mistake can fade below the rounding of the output.
Start reading at `prove`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from .branches import has_branches, take_branch
from .cutting import taken
from .edit import KeptOf, kept_axes
from .errors import InvalidModelError, ProofError, first_line
from .graph import HALVES, Array, Graph, with_outputs
from .inference import Analysis
from .limits import stop_clock
from .masking import masked_reference
from .parts import Runner, runner_of
from .rounding import SUFFIX, flips, given, rounded_values, without_saturation
from .runtime import random_inputs
from .shape_inference import InputShapes
from .widening import as_run, is_narrow, widened

TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4, "float64": 1e-9}
"""Largest difference that counts as equal, relative to the largest magnitude of the tensor."""

SMALL_SCALE = 1e-2
"""Tensors of smaller magnitude are compared as if they had this one: what a saturated sigmoid leaves is rounding."""

SIZES = tuple((batch, scale) for batch in (2, 1) for scale in (1, 4, 32))
"""Batches, and factors for the sizes of other dynamic dimensions, tried in turn: some networks run on single samples alone."""

FACTORS = (0.1, 0.001)
"""For inputs on which a network gives no finite number."""

Feeds = dict[str, Array]
"""Arrays by the name of the input or output."""

PROBED_ELEMENTS = 2**26
"""Inner results are compared up to this many elements in total; outputs always."""


@dataclass(frozen=True)
class Proof:
    """The outcome of a comparison: errors are relative to the largest magnitude of each tensor."""

    passed: bool
    max_error: float
    worst: str
    outputs: int
    inner: int
    seed: int
    layer_by_layer: bool = False
    """Whether each inner result was computed from the reference's values rather than its own."""
    reservation: str = ""
    """What it does not say: of outputs without a finite number, or of the model as it was given (`graphprune.given`)."""

    def __str__(self) -> str:
        verdict = "equal to the masked original" if self.passed else f"NOT equal to the masked original at {self.worst!r}"
        verdict += ", layer by layer" if self.layer_by_layer else ""
        counts = f"(max error {self.max_error:.1e}, {self.outputs} outputs, {self.inner} inner results)"
        return f"proof: {verdict} {counts}" + (f"; {self.reservation}" if self.reservation else "")

    def with_reservation(self, text: str) -> Proof:
        """The same outcome with one reservation more, if there is one."""
        return replace(self, reservation="; ".join(filter(None, (self.reservation, text))))


def prove(
    analysis: Analysis,
    present: NDArray[np.bool_],
    pruned: ModelProto,
    kept_of: KeptOf,
    seed: int = 0,
    shapes: InputShapes | None = None,
) -> Proof:
    """Compare a pruned model with the masked original.

    In some networks rounding grows from layer to layer (a sharp softmax); where the whole differs, each layer is compared by
    itself, given the reference's values.  Branches of If are taken as the inputs have it, then all of one kind, then all of the
    other.  Raises ProofError where one of the models cannot be run; a difference is reported in
    the result.
    """
    graph, inner = analysis.graph, contraction_results(analysis)
    masked = masked_reference(analysis, present)
    proof = Comparison(graph, masked, pruned, kept_of, inner, seed, shapes).proof()
    if not has_branches(graph.model):  # those that were not taken have not run yet
        stop_clock()
        return proof
    for then in (True, False):
        if not proof.passed:
            break
        try:
            forced = Comparison(graph, masked, pruned, kept_of, inner, seed, shapes, then)
        except ProofError:  # this branch cannot run on these inputs: it is there for others
            continue
        other = forced.proof()
        proof = other if not other.passed or other.max_error > proof.max_error else proof
    return proof


class Comparison:
    """The results of a reference on random inputs, and what it takes to compare another model with them."""

    def __init__(
        self,
        graph: Graph,
        reference: ModelProto,
        model: ModelProto,
        kept_of: KeptOf,
        inner: Iterable[str],
        seed: int,
        shapes: InputShapes | None,
        then: bool | None = None,
        titles: tuple[str, str] = ("the masked original", "the pruned model"),
        least: float = 0.0,
    ) -> None:
        """`graph` has the types of the reference's values, `inner` are results to compare.

        With `then` every If takes that branch; `titles` are what messages call the two; in floating-point results
        differences of up to `least` count as equal.  Raises ProofError where the
        reference cannot be run.
        """
        if is_narrow(graph.model):
            graph, reference, model = as_run(graph), widened(reference), widened(model)
        written = {name for node in model.graph.node for name in node.output}
        self.rounded = [name for name in rounded_values(graph) if name in written]
        self.probes = _bounded(graph, [name for name in inner if name in written and name not in self.rounded])
        self.seed = seed
        types = {graph.element_types.get(name) for name in written}
        self._coarsest = max(
            (TOLERANCE[TensorProto.DataType.Name(kind).lower()] for kind in types if kind in HALVES), default=least
        )
        self._titles = titles
        self._graph = graph
        self._model = ModelProto()
        self._model.CopyFrom(model)
        reference = self._with_inner_results(reference)
        without_saturation(reference)
        if then is not None:
            take_branch(reference, then)
            take_branch(self._model, then)
        self._runner = runner_of((reference, model))
        self._feeds, expected, self._left_out = _run_reference(graph, reference, seed, shapes, titles[0], self._runner)
        self._expected = {name: taken(array, kept_axes(kept_of, name, np.ndim(array))) for name, array in expected.items()}

    def proof(self) -> Proof:
        """The comparison of the whole, or, where that differs, layer by layer.

        Raises ProofError where the model cannot be run, or the reference overflows, and what follows says nothing.
        """
        proof, overflow = self.run(self.rounded), self._overflow()
        mute = [name for name in self._outputs if _is_mute(self._expected[name])]
        if proof.passed and overflow and len(mute) == len(self._outputs):
            self._refuse(overflow)
        if proof.passed or (not np.isfinite(proof.max_error) and overflow is None):
            text = f"output {mute[0]!r} has no finite number on random inputs, so nothing is known of it" if mute else ""
            return replace(proof, reservation=text)
        local = self.run([*self.rounded, *self.probes])
        if not local.passed and overflow is not None:
            self._refuse(overflow)
        return replace(local, layer_by_layer=True) if local.passed else proof

    @property
    def _outputs(self) -> list[str]:
        """The outputs of the network, once each."""
        return list(dict.fromkeys(value.name for value in self._graph.outputs))

    def _refuse(self, overflow: str) -> NoReturn:
        raise ProofError(
            f"{self._titles[0]} gives values at {overflow!r} that are not finite on random inputs, so that nothing can be "
            "told from what follows; prune and apply leave out the proof with --no-verify"
        )

    def missed(self) -> dict[str, tuple[int, ...]] | None:
        """Shapes of inputs on which the model runs and the reference did not; None where there are none among those tried."""
        for feeds in self._left_out:
            with suppress(ProofError):
                _run(self._model, feeds, self._titles[1], self._runner)
                return {name: array.shape for name, array in feeds.items()}
        return None

    def _overflow(self) -> str | None:
        """The first of the compared results that is not finite in the reference; None where all are."""
        found = (name for name, array in self._expected.items() if array.dtype.kind == "f" and not np.isfinite(array).all())
        return min(found, key=lambda name: self._graph.producers.get(name, -1), default=None)

    def run(self, steps: list[str]) -> Proof:
        """Compare all results; values in `steps` are compared where they arise and go on as the reference has them."""
        result = self._with_inner_results(self._model)
        without_saturation(result)
        given(result, {name: self._expected[name] for name in steps}, self._graph.element_types)
        feeds = self._feeds | {name + SUFFIX: self._expected[name] for name in steps}
        actual = _run(result, feeds, self._titles[1], self._runner)
        names = self._outputs
        missing = [name for name in names if name not in actual]
        if missing:
            raise ProofError(f"{self._titles[1]} has no output {missing[0]!r}; is it a form of this model?")
        errors = {name: flips(self._expected[name], actual.pop(name)) for name in self.rounded}
        errors |= {name: self._difference(name, actual.pop(name)) for name in [*names, *self.probes]}
        worst = max(errors, key=lambda name: errors[name][0] / errors[name][1])
        failed = errors[worst][0] > errors[worst][1]
        largest = errors[worst][0] if failed else max(error for error, _ in errors.values())
        return Proof(not failed, largest, worst, len(names), len(errors) - len(names), self.seed)

    def _difference(self, name: str, actual: Array) -> tuple[float, float]:
        """As `difference` gives it; where values on the way are in half precision, those after them are as coarse."""
        error, tolerance = difference(self._expected[name], actual)
        return error, max(tolerance, self._coarsest) if np.asarray(actual).dtype.kind in "fV" else tolerance

    def _with_inner_results(self, model: ModelProto) -> ModelProto:
        """The model with what is compared beside its outputs."""
        result = with_outputs(model, [*self.probes, *self.rounded], self._graph.element_types)
        del result.graph.value_info[:]
        return result


def contraction_results(analysis: Analysis) -> list[str]:
    """What the contractions of a network give: what is compared on the way."""
    return list(dict.fromkeys(analysis.graph.nodes[term.node].output[0] for term in analysis.mac_terms))


def _bounded(graph: Graph, names: Iterable[str]) -> list[str]:
    """Those of inner results that have a type, up to a bounded number of elements."""
    outputs = {value.name for value in graph.outputs}
    typed = {value.name for value in graph.model.graph.value_info}
    names = [name for name in names if name in typed and name not in outputs]
    sizes = np.array([np.prod([d if isinstance(d, int) else 2 for d in graph.shape(n) or ()]) for n in names], float)
    stride = max(1, int(np.ceil(sizes.sum() / PROBED_ELEMENTS)))
    return names[::stride]


def _run_reference(
    graph: Graph, reference: ModelProto, seed: int, shapes: InputShapes | None, title: str, runner: Runner
) -> tuple[Feeds, Feeds, list[Feeds]]:
    """Inputs and outputs of the reference; where it does not run on dynamic sizes of ours, others are tried.

    The third is the inputs that it did not run on.
    """
    left_out: list[Feeds] = []
    tried = set()
    for batch, scale in SIZES:
        feeds = random_inputs(graph, seed, shapes, batch, scale)
        sizes = tuple(array.shape for array in feeds.values())
        if sizes not in tried:
            with suppress(ProofError):
                return *_with_finite_outputs(graph, feeds, partial(_run, reference, what=title, runner=runner)), left_out
            left_out.append(feeds)
        tried.add(sizes)
    return feeds, _run(reference, feeds, title, runner), left_out  # says what is wrong


def _with_finite_outputs(graph: Graph, feeds: Feeds, run: Callable[[Feeds], Feeds]) -> tuple[Feeds, Feeds]:
    """Inputs and results; smaller inputs where the network gives no finite number on these, if that helps."""
    results, names = run(feeds), [value.name for value in graph.outputs]
    for factor in FACTORS if all(_is_mute(results[name]) for name in names) else ():
        smaller = {name: array * array.dtype.type(factor) if array.dtype.kind == "f" else array for name, array in feeds.items()}
        others = run(smaller)
        if not all(_is_mute(others[name]) for name in names):
            return smaller, others
    return feeds, results


def _is_mute(array: Array) -> bool:
    """Whether floating-point numbers are all infinite or none."""
    return np.asarray(array).dtype.kind == "f" and np.size(array) > 0 and not np.isfinite(array).any()


def _run(model: ModelProto, feeds: Feeds, what: str, runner: Runner) -> dict[str, Array]:
    try:
        return runner(model, feeds)
    except InvalidModelError:
        raise
    except Exception as error:  # onnxruntime raises many unrelated types, with RuntimeError their only common base at times
        raise ProofError(
            f"ONNX Runtime cannot run {what}: {first_line(error)}. Check --input-shape; prune and apply leave out the proof with "
            "--no-verify"
        ) from error


def difference(expected: Array, actual: Array) -> tuple[float, float]:
    """The largest difference relative to the largest magnitude expected, and the tolerance for the type."""
    expected, actual = np.asarray(expected), np.asarray(actual)
    tolerance = TOLERANCE.get(str(expected.dtype), 0.5 / max(1, expected.size))
    if expected.shape != actual.shape:
        return float("inf"), tolerance
    if expected.dtype.kind not in "fV":
        return float(np.mean(expected != actual)) if expected.size else 0.0, tolerance
    wide, other = expected.astype(np.float64), actual.astype(np.float64)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    scale = np.abs(np.where(np.isfinite(wide), wide, 0)).max(initial=0.0)
    with np.errstate(invalid="ignore"):  # inf - inf, where both are the same infinity
        gap = np.where(same, 0.0, np.abs(wide - other)).max(initial=0.0)
    if not np.isfinite(gap):
        return float("inf"), tolerance
    return float(gap / max(scale, SMALL_SCALE)), tolerance
