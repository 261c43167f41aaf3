"""How long the nodes of a network take in ONNX Runtime, by its own profiler.

The runtime fuses nodes and names what comes out after the value that it writes (`relu_3_nchwc` is a convolution with its sum and
ReLU); its time goes to the node that does the work.  Start reading at `node_times`.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto

from .graph import Array, Graph
from .runtime import profiled

RUNS = 7
"""Profiled runs; each node counts with its fastest."""

HEAVY = {"Conv": ("Conv",), "FusedConv": ("Conv",), "FusedGemm": ("Gemm",), "FusedMatMul": ("MatMul",)}
"""Operators of the runtime, and what they were in the file."""

_KERNEL = "_kernel_time"


def node_times(model: ModelProto, feeds: Mapping[str, Array], threads: int) -> dict[str, float]:
    """Nanoseconds for each node of a model by name; what cannot be told apart (layout changes) is shared out over all."""
    fastest = _kernel_times(model, feeds, threads)
    graph = Graph(model)
    names = {node.name: position for position, node in enumerate(graph.nodes)}
    found: dict[str, float] = defaultdict(float)
    rest = 0.0
    for (name, operator), time in fastest.items():
        position = _origin(graph, names, name, operator)
        if position is None:
            rest += time
        else:
            found[graph.nodes[position].name] += time
    total = sum(found.values())
    return {name: time * (total + rest) / total for name, time in found.items()} if total else {}


def _kernel_times(model: ModelProto, feeds: Mapping[str, Array], threads: int) -> dict[tuple[str, str], float]:
    """The shortest time of each kernel, in nanoseconds, by its name and operator."""
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        with profiled(model, threads, Path(folder)) as active:
            for _ in range(RUNS):
                active.run(None, dict(feeds))
        events = [event for file in Path(folder).iterdir() for event in json.loads(file.read_text())]
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            samples[event["name"].removesuffix(_KERNEL), event["args"]["op_name"]].append(event["dur"] * 1e3)
    return {kernel: min(durations) for kernel, durations in samples.items()}


def _origin(graph: Graph, names: Mapping[str, int], name: str, operator: str) -> int | None:
    """The node that a kernel came from: of that name, or the one behind the value that the kernel is named after."""
    head = name.partition("/")[0]
    value = name.removesuffix("_nchwc").removesuffix("_bn")
    position = names.get(name, names.get(head, graph.producers.get(value)))
    if position is None:
        return None
    wanted = HEAVY.get(operator, ())
    reached = {position}
    queue = [position]
    while wanted and queue:
        node = graph.nodes[queue.pop(0)]
        if node.op_type in wanted:
            return names[node.name]
        before = [graph.producers[read] for read in node.input if read in graph.producers]
        queue += [each for each in before if each not in reached]
        reached.update(before)
    return position
