"""Plugins: the template, installed and used; clashes and broken ones give errors that name the distribution."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import types
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any

import pytest
from nets import net, write
from onnx import ModelProto

from graphprune import registry
from graphprune.errors import UsageError
from graphprune.operators import TABLE, operator_table, typed

ROOT = Path(__file__).parent.parent


class Installed(Distribution):
    """A distribution that exists in name only."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: {self._name}\nVersion: 1.2\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


Register = Callable[..., None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """`register("operators", "name", object, "distribution")`: an entry point beside those that are installed."""
    real, extra = registry.installed, []
    monkeypatch.setattr(registry, "installed", lambda group: [*real(group), *(e for e in extra if e.group == group)])

    def add(kind: str, name: str, found: object, distribution: str = "acme-plugin", module: str = "acme_plugin") -> None:
        made = types.ModuleType(module)
        made.it = found  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module, made)
        entry = EntryPoint(name, f"{module}:it", f"graphprune.{kind}")
        extra.append(entry._for(Installed(distribution)))  # type: ignore[attr-defined]

    for cached in (registry.registered, operator_table):
        cached.cache_clear()
    yield add
    monkeypatch.undo()
    for cached in (registry.registered, operator_table):
        cached.cache_clear()


WARPED = typed("acme::Warp", "[b,c,_...] -> [b,c,_...]")


def test_an_operator_of_a_plugin_is_in_the_table(register: Register) -> None:
    register("operators", "warp", WARPED)
    register(
        "operators", "more", [typed("acme::One", "[...] -> [...]"), typed("acme::Two", "[...] -> [...]")], module="acme_more"
    )
    table = operator_table()
    assert table["acme::Warp"] is WARPED
    assert set(table) - set(TABLE) == {"acme::Warp", "acme::One", "acme::Two"}
    assert "acme::Warp" not in TABLE


def test_an_operator_that_is_there_already(register: Register) -> None:
    register("operators", "conv", typed("Conv", "[...] -> [...]"))
    with pytest.raises(UsageError) as error:
        operator_table()
    text = "acme_plugin:it of acme-plugin 1.2 defines the operator 'Conv', which is there from graphprune itself; uninstall one"
    assert str(error.value) == text


def test_two_plugins_with_one_operator(register: Register) -> None:
    register("operators", "one", WARPED)
    register("operators", "two", [WARPED], "other-plugin", "other_plugin")
    with pytest.raises(
        UsageError, match=r"other_plugin:it of other-plugin 1\.2 defines .* from acme_plugin:it of acme-plugin 1\.2"
    ):
        operator_table()


@pytest.mark.parametrize("found", ["Conv", {"Conv": WARPED}, [WARPED, "x"], None])
def test_what_is_no_operator(register: Register, found: object) -> None:
    register("operators", "wrong", found)
    with pytest.raises(
        UsageError, match=r"operators 'wrong' \(acme_plugin:it of acme-plugin 1\.2\) must be an Operator or a list"
    ):
        operator_table()


def test_two_plugins_with_one_name(register: Register) -> None:
    register("importance", "magnitude", object)
    with pytest.raises(UsageError, match=r"two packages register importance 'magnitude': .* acme_plugin:it of acme-plugin 1\.2"):
        registry.load("importance", "magnitude")


@pytest.mark.parametrize("found", [1, object, "x", lambda: None])
def test_what_is_no_pass(register: Register, found: object) -> None:
    register("importance", "wrong", found)
    with pytest.raises(
        UsageError, match=r"importance 'wrong' \(acme_plugin:it of acme-plugin 1\.2\) must be a class whose `name`"
    ):
        registry.load("importance", "wrong")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError"),
        ("other = 1", "AttributeError: module 'broken_plugin' has no attribute 'it'"),
    ],
)
def test_a_plugin_that_cannot_be_imported(
    register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphprune_cli: Any, text: str, message: str
) -> None:
    register("selection", "broken", None, module="broken_plugin")
    monkeypatch.delitem(sys.modules, "broken_plugin")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_plugin.py").write_text(text)
    result = graphprune_cli("list", "selection")
    assert result.exit_code == 2
    assert "selection 'broken' (broken_plugin:it of acme-plugin 1.2) cannot be loaded: " + message in result.stderr
    assert "Traceback" not in result.stderr


# ---- the template -------------------------------------------------------------------------------


def pooled() -> ModelProto:
    return net(
        """pooled (float[1,3,12,12] image) => (float[2,5,4,4] y)
        <float[8,3,3,3] w1, float[5,8,1,1] w2, float[2,5] regions = {0, 0, 0, 7, 7, 0, 2, 3, 11, 9}> {
            features = Conv<pads = [1,1,1,1]>(image, w1)
            inside = MaxRoiPool<pooled_shape = [4, 4]>(features, regions)
            y = Conv(inside, w2)
        }""",
        opset=20,
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the template installed, without a network: everything else is what runs these tests."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(ROOT / "examples" / "plugin_template", folder / "source")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (Path(packages) / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    command = [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index", str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def run(python: Path, *arguments: str | Path) -> str:
    done = subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.nightly
def test_the_template_installs_and_all_it_adds_is_used(template: Path, tmp_path: Path) -> None:
    model, out, plan = write(pooled(), tmp_path / "m.onnx"), tmp_path / "out.onnx", tmp_path / "plan.json"
    cli = ("-m", "graphprune")
    assert "template_spread{normalizer=mean}" in run(template, *cli, "list", "importance")
    assert "MaxRoiPool " in run(template, *cli, "list", "operators")
    assert "template_text" in run(template, *cli, "list", "exporters")
    pruned = run(template, *cli, "prune", model, "-o", out, "--target", "channels=0.5", "--align", "1",
                 "--importance", "template_spread", "--plan", plan)  # fmt: skip
    assert "proof: equal to the masked original" in pruned
    (group,) = json.loads(plan.read_text())["groups"]
    assert len(group["keep"]) == 4
    code = "import onnx, sys; from pathlib import Path; from graphprune import registry; "
    code += "registry.load('exporters', 'template_text')().write(onnx.load(sys.argv[1]), Path(sys.argv[2]))"
    run(template, "-c", code, out, tmp_path / "out.txt")
    assert "MaxRoiPool <pooled_shape: ints = [4, 4]>" in (tmp_path / "out.txt").read_text()


def test_without_the_template_its_network_cannot_be_pruned(tmp_path: Path, graphprune_cli: Any) -> None:
    model = write(pooled(), tmp_path / "m.onnx")
    result = graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", "--target", "channels=0.5", "--align", "1")
    assert result.exit_code == 4
