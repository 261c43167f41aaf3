"""Which node the time goes to: ONNX Runtime's own profile, summed by the nodes of the graph as it was written.

The runtime fuses nodes and gives what it fused names of its own; a kernel is traced back to the contraction that it contains by
the names that the runtime makes of those of nodes and of results.  Start reading at `node_times`.
"""

from __future__ import annotations

import json
import re
import tempfile
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from .errors import UsageError, first_line
from .graph import Graph, operator_name
from .runtime import cannot_run, profiled, random_inputs, trial
from .shape_inference import InputShapes

RUNS = 12
WARM = 2
"""The first runs, which are left out."""

FUSED_CHAIN = 6
"""Up to this many nodes behind a contraction may be fused into it."""

ANY = ""
"""The kind of a node that is known by its name alone."""

_KERNEL = "_kernel_time"
_CONTAINERS = {"If", "Loop", "Scan"}
"""Their time is that of the nodes inside, which are in the profile, too."""

_ADDED = re.compile(r"^fused |_nchwc$|_token_\d+$|/\w+Fusion/?$")


@dataclass(frozen=True)
class NodeTimes:
    """Milliseconds for one run: of the nodes that were asked for, and of everything else."""

    nodes: Mapping[str, float]
    other: float

    @property
    def total(self) -> float:
        """All kernels together."""
        return sum(self.nodes.values()) + self.other


def node_times(
    model: ModelProto,
    wanted: Iterable[str],
    threads: int = 1,
    input_shapes: InputShapes | None = None,
    also: Iterable[str] = (),
) -> NodeTimes:
    """The time of each of the `wanted` nodes (names) of a normalised model, the median over some runs on random inputs.

    Nodes that are fused into a wanted one count with it; those in `also` count by themselves where they are not.  A node whose
    kernel cannot be told from its name is missing from the result, its time is in `other`.  Raises UsageError where ONNX
    Runtime cannot run the model on inputs that are made up.
    """
    graph = Graph(model)
    owners = _owners(graph, set(wanted))
    owners = {name: (name, ANY) for name in also} | owners
    runs: list[dict[str | None, float]] = []
    for events in _profile(model, graph, threads, input_shapes):
        taken: dict[str | None, float] = defaultdict(float)
        for event in events:
            owner = _owner(str(event["name"]).removesuffix(_KERNEL), str(event["args"].get("op_name", "")), owners)
            taken[owner] += event["dur"] / 1e3
        runs.append(taken)
    found = {owner for taken in runs for owner in taken}
    times = {owner: float(np.median([taken.get(owner, 0.0) for taken in runs])) for owner in found}
    return NodeTimes({owner: time for owner, time in times.items() if owner is not None}, times.get(None, 0.0))


def _profile(model: ModelProto, graph: Graph, threads: int, input_shapes: InputShapes | None) -> list[list[dict[str, Any]]]:
    """The kernel events of each run but the first ones."""
    trial(graph, input_shapes)
    feeds = random_inputs(graph, shapes=input_shapes, batch=1, scale=4)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        try:
            with profiled(model, threads, Path(folder)) as active:
                for _ in range(RUNS):
                    active.run(None, feeds)
        except cannot_run() as error:
            raise UsageError(f"ONNX Runtime cannot run the model: {first_line(error)}. Check --input-shape") from error
        events = [event for file in Path(folder).iterdir() for event in json.loads(file.read_text(encoding="utf-8"))]
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    runs: list[list[dict[str, Any]]] = [[] for _ in range(RUNS)]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL) and event["args"].get("op_name") not in _CONTAINERS:
            runs[bisect(starts, event["ts"]) - 1].append(event)
    return runs[WARM:]


def _owners(graph: Graph, wanted: set[str]) -> dict[str, tuple[str, str]]:
    """From names that a kernel may have to the node that it contains, with the kind of that node."""
    owners: dict[str, tuple[str, str]] = {}
    for node in graph.nodes:
        if node.name not in wanted:
            continue
        owner = node.name, _kind(operator_name(node))
        owners.setdefault(node.name, owner)
        last = node
        for _ in range(FUSED_CHAIN):
            value = last.output[0]
            owners.setdefault(value, owner)
            uses = graph.uses.get(value, [])
            if len(uses) != 1 or graph.nodes[uses[0].node].name in wanted:
                break
            last = graph.nodes[uses[0].node]
    return owners


def _owner(name: str, operator: str, owners: Mapping[str, tuple[str, str]]) -> str | None:
    while name not in owners:
        shorter = _ADDED.sub("", name)
        if shorter == name:
            return None
        name = shorter
    owner, kind = owners[name]
    return owner if kind in (ANY, _kind(operator)) else None


def _kind(operator: str) -> str:
    """Operators that the runtime may turn into each other have one kind."""
    for part, kind in (("Conv", "convolution"), ("Gemm", "product"), ("MatMul", "product")):
        if part in operator:
            return kind
    return operator
