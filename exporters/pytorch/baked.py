"""Where a module's code holds sizes: which attributes follow a plan, and which lines do not.

The exporter notes for every node which submodule and which line of code it is from.  Start reading at `changed_sizes`.
"""

from __future__ import annotations

import ast
import re
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, numpy_helper

from graphprune.errors import UsageError
from graphprune.graph import Graph

from .layers import Sizes

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s*(.+)')


class BakedSizeError(UsageError):
    """The code of a module has sizes in it that the plan changes."""


@dataclass(frozen=True)
class ChangedSize:
    """A size that is written into the graph and changes."""

    path: str
    """Of the submodule whose code wrote it."""
    line: str
    """Of that code: file, number and text."""
    before: int
    after: int


def changed_sizes(graph: Graph, pruned: ModelProto) -> list[ChangedSize]:
    """The integers in constant operands (targets of Reshape, sizes of Split ...) that a graph's pruned form has otherwise."""
    new = {tensor.name: tensor for tensor in pruned.graph.initializer}
    nodes = {node.name: node for node in pruned.graph.node}
    found = []
    for node in graph.nodes:
        for old, other in zip(node.input, nodes[node.name].input if node.name in nodes else (), strict=False):
            if old not in graph.initializers or other not in new or new[other].data_type != 7 or len(new[other].dims) > 1:
                continue
            before, after = graph.constant(old), numpy_helper.to_array(new[other])
            if before is not None and before.shape == after.shape:
                pairs = {(int(a), int(b)) for a, b in zip(before.reshape(-1), after.reshape(-1), strict=True) if a != b}
                found += [ChangedSize(_path(node), _line(node), *pair) for pair in sorted(pairs)]
    return found


def attributes_that_follow(module: Any, changes: list[ChangedSize]) -> dict[str, Sizes]:
    """Attributes of submodules that have a size which their own code writes into the graph, with the size that it becomes.

    A size that becomes several is left out.
    """
    becomes: dict[tuple[str, int], set[int]] = defaultdict(set)
    for change in changes:
        becomes[change.path, change.before].add(change.after)
    found: dict[str, Sizes] = {}
    for path in dict.fromkeys(change.path for change in changes):
        own = {before: after.copy().pop() for (where, before), after in becomes.items() if where == path and len(after) == 1}
        layer = module.get_submodule(path)
        sizes = {name: _followed(value, own) for name, value in vars(layer).items() if not name.startswith("_")}
        sizes = {name: value for name, value in sizes.items() if value is not None}
        if sizes:
            found[path] = sizes  # type: ignore[assignment]
    return found


def _followed(value: Any, becomes: dict[int, int]) -> int | list[int] | None:
    if type(value) is int:
        return becomes.get(value)
    if isinstance(value, tuple) and value and all(type(each) is int for each in value) and any(each in becomes for each in value):
        return [becomes.get(int(each), int(each)) for each in value]
    return None


def _note(node: NodeProto, key: str) -> str:
    return next((str(entry.value) for entry in node.metadata_props if entry.key == f"pkg.torch.onnx.{key}"), "")


def _path(node: NodeProto) -> str:
    """The innermost submodule that a node is from."""
    try:
        scopes = ast.literal_eval(_note(node, "name_scopes") or "[]")
    except (SyntaxError, ValueError):
        return ""
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _line(node: NodeProto) -> str:
    """The innermost line of code outside torch that a node is from."""
    frames = [match.groups() for match in _FRAME.finditer(_note(node, "stack_trace"))]
    frames = [frame for frame in frames if not _is_torch(frame[0])]
    return f"{frames[-1][0]}:{frames[-1][1]}: {frames[-1][2].strip()}" if frames else ""


def _is_torch(file: str) -> bool:
    return "torch" in Path(file).parts and "site-packages" in Path(file).parts


@contextmanager
def located(module: Any) -> Iterator[list[str]]:
    """Note which submodules with code of their own are at work: where `forward` fails, the list ends with the one that failed."""
    active: list[str] = []

    def enter(path: str) -> Any:
        return lambda layer, inputs: active.append(path)

    def leave(layer: Any, inputs: Any, result: Any) -> None:
        active.pop()

    handles = []
    for path, layer in module.named_modules():
        if not type(layer).__module__.startswith("torch."):
            handles += [layer.register_forward_pre_hook(enter(path)), layer.register_forward_hook(leave)]
    try:
        yield active
    finally:
        for handle in handles:
            handle.remove()


def failed_line(error: BaseException) -> str:
    """The innermost line of code outside torch that raised an error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_torch(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
