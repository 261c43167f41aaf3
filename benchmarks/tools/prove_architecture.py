"""Prune an ONNX file at several shares of its channels, each with its proof.  Start reading at `work`.

Options: `keep`, shares of the channels.  Reports `shares`, the part of the parameters in tensors with a free axis by default and
with `normalization` "kept", and for each kept share `params` and `difference`, or `refused`.
"""

from __future__ import annotations

import numpy as np

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """A refusal with a reason is a result; any other exception is a failure of the tool."""
    import graphprune
    from graphprune.errors import GraphpruneError, InternalError, InvalidModelError, ProofError

    with tool.phase("load"):
        try:
            graph = graphprune.load(tool.model)
        except InvalidModelError as error:  # an exporter may write what is no model
            tool.facts["refused"] = str(error).splitlines()[0]
            return
    tool.facts |= {"nodes": len(graph.nodes), "shares": {mode: free(graph, mode) for mode in ("pin", "kept")}, "results": {}}
    for keep in tool.options["keep"]:
        try:
            with tool.phase(f"prune {keep}"):
                result = graphprune.prune(graph, targets=[f"channels={keep}"])
        except (InternalError, ProofError):
            raise
        except GraphpruneError as error:
            tool.facts["results"][keep] = {"refused": str(error).splitlines()[0]}
            continue
        assert result.proof is not None
        params = result.after.params / result.before.params
        tool.facts["results"][keep] = {"params": params, "difference": float(np.float32(result.proof.max_error))}


def free(graph: object, normalization: str) -> float:
    """The share of the parameters in tensors with at least one free axis."""
    import graphprune
    from graphprune.graph import element_count, is_parameter

    analysis = graphprune.analyze(graph, normalization=normalization)
    pinned, counts = analysis.ledger.labels.is_pinned, {True: 0, False: 0}
    for name, tensor in analysis.graph.initializers.items():
        if is_parameter(tensor):
            axes = [ids for _, ids in analysis.free_axes(name) if len(ids)]
            counts[any(not pinned(ids).all() for ids in axes)] += element_count(tensor)
    return counts[True] / max(1, sum(counts.values()))


if __name__ == "__main__":
    main(work)
