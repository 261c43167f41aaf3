"""graphprune from Python: read, prune, write.  Options: those of `graphprune.prune`.  Start reading at `work`."""

from __future__ import annotations

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """Prune an ONNX file; with `keep_gemms` the classifier's inputs stay whole."""
    with tool.phase("import"):
        from graphprune import pipeline
        from graphprune.model_file import read_model, write_model
    with tool.phase("load"):
        model = read_model(tool.model)
    options = dict(tool.options)
    if options.pop("keep_gemms", False):
        options["keep"] = [f"^{node.input[1]}$" for node in model.graph.node if node.op_type == "Gemm"]
    with tool.phase("prune"):
        result = pipeline.prune(model, **options)
        pruned = result.model  # weights are cut here
    with tool.phase("save"):
        write_model(pruned, tool.output)
    operators = [node.op_type for node in pruned.graph.node]
    original = [node.op_type for node in result.original.model.graph.node]
    tool.facts |= {
        "params": result.after.params / max(1, result.before.params),
        "macs": result.after.macs / max(1, result.before.macs),
        "proven": bool(result.proof and result.proof.passed),
        "gathers": operators.count("Gather") - original.count("Gather"),
        "slices": operators.count("Slice") - original.count("Slice"),
    }


if __name__ == "__main__":
    main(work)
