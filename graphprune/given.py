"""Whether the original in normal form computes what the model computes as it was given: the first half of the proof.

`graphprune.proof` compares the pruned network with the normal form, so a mistake of normalisation would be in both.  Mostly
the two are the same operators on the same operands, which shows without running them (`graphprune.value_numbers`).  Otherwise
both run on the same random inputs.  docs/decisions/0032-as-given.md.  Start reading at `check_normal_form`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from onnx import ModelProto

from .branches import with_branches
from .errors import InvalidModelError, ProofError
from .graph import Graph, copy_model
from .model_file import read_model
from .normalize import check_structure, remove_dead_code
from .proof import Comparison
from .shape_inference import InputShapes
from .value_numbers import same_computation

TITLE = "the model as it was given"


def reader_of(source: str | Path) -> Callable[[], ModelProto]:
    """What reads a file once more.  It raises InvalidModelError where that is not the same file any more."""
    path = Path(source)
    before = _state(path)

    def read() -> ModelProto:
        if _state(path) != before:
            raise InvalidModelError("it has changed meanwhile")
        return read_model(path)

    return read


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_normal_form(graph: Graph, inner: Iterable[str], seed: int = 0, shapes: InputShapes | None = None) -> str:
    """Raise ProofError where a normal form computes something else than the model as it was given; once for each graph.

    `inner` are results to compare beside the outputs.  Returns why the two could not be compared, or an empty text.
    """
    if graph.given is None:
        return ""
    normal = with_branches(graph.model)
    try:
        model = graph.given()
        graph.given = None
        if same_computation(model, normal):
            return ""
        model = copy_model(model, without=())
        check_structure(model)
        remove_dead_code(model.graph)  # it could run for ever
        proof = Comparison(graph, normal, model, _unchanged, inner, seed, shapes, title=TITLE).proof()
        if proof.passed or not _repeats(graph, model, seed, shapes):
            return ""
    except (ProofError, InvalidModelError) as error:
        return f"not compared with {TITLE}: {error}"
    raise ProofError(
        f"the normal form of the model does not compute what the model computes: {proof.worst!r} differs "
        f"(error {proof.max_error:.1e}); nothing was written. Please report this with the model"
    )


def _unchanged(name: str, axis: int) -> None:
    """No axis of any value shrinks (`graphprune.edit.KeptOf`)."""


def _repeats(graph: Graph, model: ModelProto, seed: int, shapes: InputShapes | None) -> bool:
    """Whether a model computes the same twice; one with random numbers does not."""
    return Comparison(graph, model, model, _unchanged, (), seed, shapes).proof().passed
