"""The files of a network: ONNX by one of torch's exporters, and the torch module with its inputs; made once, then kept.

    python -m networks NAME FOLDER STYLE     (STYLE: dynamo or legacy)

NAME is a classifier of torchvision, or `transformers/NAME`.  Start reading at `Files`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children

LIMIT = 600
"""Seconds for an export."""

TRANSFORMERS = "transformers/"


@dataclass(frozen=True)
class Files:
    """Where the files are; `error` says why they are not there."""

    onnx: Path
    module: Path
    error: str | None = None

    @classmethod
    def of(cls, name: str, folder: Path, style: str = "dynamo") -> Files:
        """Make what is missing, in a process of its own."""
        stem = name.replace("/", "-")
        files = cls(folder / f"{stem}.{style}.onnx", folder / f"{stem}.pt")
        if files.onnx.exists() and files.module.exists():
            return files
        folder.mkdir(parents=True, exist_ok=True)
        row = children.run(children.Command([sys.executable, "-m", "networks", name, str(folder), style]), LIMIT)
        return cls(files.onnx, files.module, f"torch cannot export it: {row['error']}") if "error" in row else files


def build(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The module in evaluation mode, and its inputs."""
    if name.startswith(TRANSFORMERS):
        import transformers_networks

        return transformers_networks.build(name.removeprefix(TRANSFORMERS))
    import classifiers

    model, image = classifiers.build(name)
    return model, (image,)


def export(model: Any, inputs: tuple[Any, ...], path: Path, style: str) -> None:
    """Write ONNX, by the new exporter (static batch) or the old one (dynamic batch)."""
    import torch

    if style == "dynamo":
        torch.onnx.export(model, inputs, path, dynamo=True, verbose=False, external_data=False)
        return
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(model, inputs, path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)


def main() -> None:
    """Write both files under other names first, so that they appear whole."""
    import torch

    name, folder, style = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    files = Files(folder / f"{name.replace('/', '-')}.{style}.onnx", folder / f"{name.replace('/', '-')}.pt")
    model, inputs = build(name)
    for path in (files.module, files.onnx):
        if path.exists():
            continue
        draft = path.with_name(f"draft-{path.name}")
        torch.save((model, inputs), draft) if path is files.module else export(model, inputs, draft, style)
        draft.replace(path)


if __name__ == "__main__":
    main()
