"""Whether the original in normal form computes what the model computes as it was given: the first half of the proof.

`graphprune.proof` compares the pruned network with the normal form, so a mistake of normalisation would be in both.  Mostly
the two are the same operators on the same operands, which shows without running them (`graphprune.value_numbers`).  Otherwise
both run on the same random inputs.  docs/decisions/0032-as-given.md.  Start reading at `check_normal_form`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto, NodeProto

from .branches import with_branches
from .errors import InvalidModelError, ProofError, UsageError
from .graph import Graph, all_nodes, attributes, copy_model
from .lent import Lent
from .model_file import read_model
from .normalize import check_structure, remove_dead_code
from .proof import TOLERANCE, Comparison
from .shape_inference import InputShapes
from .value_numbers import same_computation
from .widening import is_narrow

TITLES = "the normal form", "the model as it was given"

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
"""Operators whose results differ from graph to graph: a runtime seeds them by their place."""

FOLDED = TOLERANCE["float16"]
"""The tolerance where constants were folded in bfloat16, while the comparison computes them in float32."""


@dataclass
class Given:
    """A model as it was given: a file, which is read once more, or a copy of the model; and the outcome."""

    model: ModelProto | None = None
    path: Path | None = None
    lent: Sequence[Lent] = ()
    """The weights that the model names."""
    state: tuple[int, ...] | None = field(init=False)
    """Of the file, when it was read."""
    reservation: str | None = None
    """Why it could not be compared with its normal form, empty where it was; None before."""
    mistake: str = ""
    """What the comparison found."""

    def __post_init__(self) -> None:
        self.state = None if self.path is None else _state(self.path)

    def read(self) -> ModelProto:
        """The model.  Raises InvalidModelError where a file is not the same any more."""
        if self.model is not None:
            return self.model
        if self.path is None or _state(self.path) != self.state:
            raise InvalidModelError("it has changed meanwhile")
        return read_model(self.path)


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_normal_form(graph: Graph, inner: Iterable[str], seed: int = 0, shapes: InputShapes | None = None) -> str:
    """Raise ProofError where a normal form computes something else than the model as it was given.

    `inner` are results to compare beside the outputs.  Returns why the two could not be compared, or an empty text.  Both are
    compared once for each graph.
    """
    given = graph.given
    if given is None:
        return ""
    if given.reservation is None and not given.mistake:
        try:
            given.mistake = _mistake(graph, given.read(), inner, seed, shapes)
            given.reservation = ""
        except (ProofError, InvalidModelError, UsageError) as error:
            given.reservation = f"not compared with {TITLES[1]}: {error}"
        given.model, given.lent = None, ()
    if given.mistake:
        raise ProofError(given.mistake)
    return given.reservation or ""


def _mistake(graph: Graph, model: ModelProto, inner: Iterable[str], seed: int, shapes: InputShapes | None) -> str:
    """What a normal form computes otherwise, in words; empty where there is nothing, or where random numbers are drawn."""
    normal = with_branches(graph.model)
    if same_computation(model, normal):
        return ""
    model = copy_model(model, without=())
    check_structure(model)
    remove_dead_code(model.graph)  # it could run for ever
    least = FOLDED if is_narrow(model) else 0.0
    comparison = Comparison(graph, normal, model, _unchanged, inner, seed, shapes, titles=TITLES, least=least)
    missed = comparison.missed()
    if missed is not None:
        return (
            f"the normal form of the model does not run on inputs of the shapes {missed}, on which the model runs; nothing was "
            "written. Please report this with the model"
        )
    proof = comparison.proof()
    if proof.passed or any(map(_draws, all_nodes(model))):
        return ""
    return (
        f"the normal form of the model does not compute what the model computes: {proof.worst!r} differs "
        f"(error {proof.max_error:.1e}); nothing was written. Please report this with the model"
    )


def _unchanged(name: str, axis: int) -> None:
    """No axis of any value shrinks (`graphprune.edit.KeptOf`)."""


def _draws(node: NodeProto) -> bool:
    """Whether a node may draw random numbers; Dropout does where its third input, or before opset 7 an attribute, says so."""
    return node.op_type in RANDOM or (node.op_type == "Dropout" and (len(node.input) > 2 or "is_test" in attributes(node)))
