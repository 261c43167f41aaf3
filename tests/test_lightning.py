"""The example that prunes while Lightning trains: sizes follow the schedule, checkpoints go on in a fresh module.

Needs the lightning extra: `pytest -m lightning`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

pytestmark = [pytest.mark.lightning, pytest.mark.filterwarnings("ignore")]  # of torch's exporter and Lightning

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "lightning" / "prune_while_training.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("prune_while_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def macs(example: Any, module: Any) -> int:
    return example.CostModel(example.graphprune.analyze((module, (torch.zeros(2, 1, 28, 28),)))).original.macs


def test_the_schedule_is_met_and_a_checkpoint_goes_on(example: Any, tmp_path: Path) -> None:
    trainer = example.trained({0: 0.8, 2: 0.4}, epochs=3)
    module, original = trainer.lightning_module, macs(example, example.Classifier())
    assert 0.3 * original < macs(example, module) <= 0.4 * original
    assert len(module.plans) == 2
    assert trainer.callback_metrics["accuracy"] > 0.15
    optimised = {id(each) for group in trainer.optimizers[0].param_groups for each in group["params"]}
    assert optimised == {id(each) for each in module.parameters()}

    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    again = example.Classifier.load_from_checkpoint(tmp_path / "pruned.ckpt", weights_only=True).eval()
    image = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(image), module.cpu().eval()(image))

    resumed = example.trained({0: 0.8, 2: 0.4, 4: 0.2}, epochs=5, resume=tmp_path / "pruned.ckpt")
    assert 0.1 * original < macs(example, resumed.lightning_module) <= 0.2 * original
    assert len(resumed.lightning_module.plans) == 3
