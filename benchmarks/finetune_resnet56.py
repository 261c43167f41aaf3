"""Prune the CIFAR-10 ResNet-56 to half of its MACs, bring it back to torch, fine-tune it against the original without labels.

    python benchmarks/finetune_resnet56.py [--data ../shared/data] [--epochs 3] [--recipe best] [--output FOLDER]

Then the state dict is loaded into a fresh module built from the plan, and that is exported again and compared.  Start reading at
`main`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune
from graphprune.exporters.pytorch.module_plan import module_plan_path
from graphprune.runtime import run

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
BATCH, CALIBRATION, TEMPERATURE = 128, 2048, 4.0


def images(path: Path) -> tuple[Tensor, Tensor]:
    """Normalised images [n, 3, 32, 32] and labels of a file."""
    with np.load(path) as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"]).long()
    return ((x / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous(), y


def augmented(x: Tensor) -> Tensor:
    """Each image shifted by up to four pixels, half of them mirrored."""
    count, size = len(x), x.shape[-1]
    rows = torch.arange(size) + torch.randint(0, 9, (count, 1))
    columns = torch.arange(size) + torch.randint(0, 9, (count, 1))
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    at = torch.arange(count).view(-1, 1, 1)
    return F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images that are classified correctly."""
    model.eval()
    return float((torch.cat([model(batch).argmax(1) for batch in x.split(500)]) == y).double().mean())


def distill(student: nn.Module, teacher: nn.Module, x: Tensor, epochs: int, rate: float) -> None:
    """Train the student to give what the teacher gives on augmented images; labels are not looked at."""
    steps = epochs * (len(x) // BATCH)
    descent = torch.optim.SGD(student.parameters(), rate, 0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, rate, total_steps=steps, pct_start=0.15)
    teacher.eval()
    for epoch in range(epochs):
        student.train()
        start, total = time.time(), 0.0
        for rows in torch.randperm(len(x)).split(BATCH)[: steps // epochs]:
            batch = augmented(x[rows]).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                wanted = F.softmax(teacher(batch) / TEMPERATURE, 1)
            loss = (
                F.kl_div(F.log_softmax(student(batch) / TEMPERATURE, 1), wanted.clone(), reduction="batchmean") * TEMPERATURE**2
            )
            descent.zero_grad()
            loss.backward()
            descent.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total * epochs / steps:.4f}, {time.time() - start:.0f} s", flush=True)


def original(data: Path) -> nn.Module:
    """The trained network."""
    sys.path.insert(0, str(data / "loaders"))
    import cifar_nets

    network: nn.Module = cifar_nets.load_akamaster(56, str(data / "torch"))
    return network


def check_round_trip(fresh: nn.Module, student: nn.Module, folder: Path, example: Tensor) -> None:
    """Save, build anew from the plan, load; then export both and compare."""
    torch.save(student.state_dict(), folder / "pruned.pt")
    again = graphprune.module_from_plan(fresh, folder / "plan.json", torch.load(folder / "pruned.pt", weights_only=True)).eval()
    with torch.inference_mode():
        print(f"reloaded module: largest difference {(again(example) - student.eval()(example)).abs().max():.1e}")
    model = graphprune.load((again, (example,))).model
    found = next(iter(run(model, {model.graph.input[0].name: example.numpy()}).values()))
    with torch.inference_mode():
        print(f"exported again: largest difference {np.abs(found - student(example).numpy()).max():.1e}")


def main() -> None:
    """Prune, bring back, fine-tune, reload, export; print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--target", default="macs=0.5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    start = time.time()

    def report(text: Any) -> None:
        print(f"[{time.time() - start:5.0f} s, processor {time.process_time():5.0f} s] {text}", flush=True)

    x, _ = images(options.data / "cifar10/train30k.npz")
    test = images(options.data / "cifar10/test.npz")
    student, teacher, example = original(options.data), original(options.data), x[:4]
    any_batch = {0: torch.export.Dim("batch")}
    graph = graphprune.load(torch.export.export(student, (example,), dynamic_shapes=(any_batch,)))
    samples = {graph.inputs[0].name: x[:CALIBRATION].numpy()}
    result = graphprune.prune(graph, targets=options.target, recipe=options.recipe, calibration=samples)
    report(f"pruned: {result.after.macs / result.before.macs:.3f} of the MACs; {result.proof}")
    applied = graphprune.apply_to_torch(student, result, example_inputs=(example,))
    assert applied.module is student
    report(f"back in torch: largest difference from the pruned ONNX model {applied.max_error:.1e} of its scale")
    report(f"accuracy before fine-tuning {accuracy(student, *test):.2%} (original {accuracy(teacher, *test):.2%})")
    for each in (student, teacher):
        each.to(memory_format=torch.channels_last)
    distill(student, teacher, x, options.epochs, options.rate)
    report(f"accuracy after {options.epochs} epochs {accuracy(student, *test):.2%} on {len(test[1])} images")
    folder = options.output or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(result.plan.to_json(), encoding="utf-8")
    module_plan_path(folder / "plan.json").write_text(applied.plan.to_json(), encoding="utf-8")
    check_round_trip(original(options.data), student, folder, example)
    report("done")


if __name__ == "__main__":
    main()
