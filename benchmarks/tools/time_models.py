"""ONNX Runtime's time of several ONNX files, measured in turns.  Start reading at `work`.

MODEL is the original, OUTPUT is not written.  Options: `models` (paths), `repeats`, `rounds`, `threads`, `batch`.
"""

from __future__ import annotations

from dataclasses import asdict

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """Every repeat makes new sessions; in each, samples of all models alternate."""
    import onnx

    from graphprune import bench
    from graphprune.cost import CostModel
    from graphprune.pipeline import analyze

    paths = [tool.model, *tool.options["models"]]
    models = [onnx.load(path) for path in paths]
    repeats = [
        bench.measure(models, tool.options["threads"], tool.options["batch"], rounds=tool.options["rounds"])
        for _ in range(tool.options["repeats"])
    ]
    tool.facts["repeats"] = [[asdict(latency) for latency in each] for each in repeats]
    macs = [CostModel(analyze(model)).original.macs for model in models]
    tool.facts["macs"] = [each / macs[0] for each in macs]


if __name__ == "__main__":
    main(work)
