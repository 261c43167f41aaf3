"""Accuracy of a network after graphprune, without fine-tuning.  Start reading at `work`.

Options: `calibration` and `test` (files), and those of `graphprune.prune`; without `targets` the original is measured.
"""

from __future__ import annotations

from pathlib import Path

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """Prune, count, classify the test images; labels of the calibration images are not looked at."""
    import numpy as np

    import graphprune
    from graphprune.evaluation import accuracy

    options = dict(tool.options)
    calibration, test = (dict(np.load(options.pop(name))) for name in ("calibration", "test"))
    calibration.pop("labels", None)
    test["image"] = test["image"].astype(np.float32)
    if "targets" not in options:
        tool.facts |= {"macs": 1.0, "accuracy": accuracy(graphprune.load(tool.model).model, test)}
        return
    if options.pop("with_calibration", False):
        options["calibration"] = {name: value.astype(np.float32) for name, value in calibration.items()}
    with tool.phase("prune"):
        result = graphprune.prune(Path(tool.model), **options)
    tool.facts |= {"macs": result.realised[0].fraction, "accuracy": accuracy(result.model, test)}


if __name__ == "__main__":
    main(work)
