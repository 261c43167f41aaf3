"""The SHA-256 of a normalised model, by which plans name it: worked out beside other work.  Start reading at `begin`."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread
from weakref import WeakKeyDictionary

from onnx import ModelProto

from .graph import Graph
from .model_file import content_hash

_FOUND: WeakKeyDictionary[Graph, Future[str]] = WeakKeyDictionary()


def begin(graph: Graph) -> None:
    """Start to hash a normalised model in a thread, once; it must not change from here on."""
    if graph not in _FOUND:
        _FOUND[graph] = Future()
        # A pool's threads would be waited for when the process ends, even where it ends with an error.
        Thread(target=_work, args=(graph.model, _FOUND[graph]), daemon=True).start()


def digest(graph: Graph) -> str:
    """The SHA-256 of a normalised model (`graphprune.model_file.content_hash`); raises what that raises."""
    begin(graph)
    return _FOUND[graph].result()


def _work(model: ModelProto, future: Future[str]) -> None:
    try:
        future.set_result(content_hash(model))
    except BaseException as error:  # raised where it is waited for
        future.set_exception(error)
