"""The documentation follows the code: generated pages are fresh, links lead somewhere, the first command is the right one."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from graphprune.cli import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("script", [["docs/generate_operators.py", "--check"], ["docs/check_docs.py"]])
def test_pages_are_fresh_and_links_lead_somewhere(script: list[str]) -> None:
    done = subprocess.run([sys.executable, *script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    """The example is pruned to its target, is proven, and keeps its accuracy."""
    example = ROOT / "examples" / "fashion_mnist"
    arguments = ["--target", "macs=0.5", "--eval", str(example / "eval.npz"), "--plan", str(tmp_path / "plan.json")]
    output = tmp_path / "smaller.onnx"
    result = CliRunner().invoke(main, ["prune", str(example / "model.onnx"), "-o", str(output), *arguments])
    assert result.exit_code == 0, result.output
    assert "proof: equal to the masked original" in result.stdout
    assert "91.10%" in result.stdout
    assert output.stat().st_size < 0.6 * (example / "model.onnx").stat().st_size
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = next(line for line in readme.splitlines() if "graphprune prune examples" in line)
    assert "--target macs=0.5 --eval examples/fashion_mnist/eval.npz --measure --plan plan.json" in command


def test_the_example_is_small() -> None:
    files = [path for path in (ROOT / "examples" / "fashion_mnist").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000


def test_the_examples_of_pipelines_are_right(tmp_path: Path) -> None:
    """The jobs expand, the stage's configuration is valid, and the workflow's gate is met."""
    from graphprune.configuration import read_configuration
    from graphprune.jobs import read_jobs

    folder = ROOT / "examples" / "pipelines"
    assert len(read_jobs(folder / "jobs.yaml").jobs) == 4
    assert read_configuration(folder / "prune.yaml")["target"] == ("macs=0.5",)
    steps = yaml.safe_load((folder / "github-actions.yml").read_text())["jobs"]["prune"]["steps"]
    (command,) = [step["run"] for step in steps if "graphprune prune" in step.get("run", "")]
    words = [word.replace("examples/", f"{ROOT}/examples/") for word in shlex.split(command)[1:]]
    words = [str(tmp_path / word) if word in ("smaller.onnx", "plan.json", "result.json") else word for word in words]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    stage = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]["prune"]
    assert {*stage["outs"], "result.json"} <= set(yaml.safe_load((folder / "prune.yaml").read_text()).values())


def test_the_file_of_jobs_in_the_documentation_is_valid(tmp_path: Path) -> None:
    from graphprune.jobs import read_jobs

    page = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    for name in ("models/tiny1.onnx", "models/big.onnx", "extra/resnet.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert len(read_jobs(tmp_path / "jobs.yaml").jobs) == 3 * 3 * 2 - 3 + 1
