"""The layout of design section 6: package list, symlinks, the direction of imports, one version."""

from __future__ import annotations

import ast
import configparser
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path

import pytest

import graphprune
from graphprune import registry
from graphprune.errors import UsageError

ROOT = Path(__file__).parent.parent
OUTSIDE = ("passes", "importers", "exporters")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1,4] x) => (float[1,4] y)
<float[4,8] a = {%s}, float[8,4] b = {%s}>
{ h = MatMul(x, a)  y = MatMul(h, b) }"""


def sources(folder: Path) -> list[Path]:
    """The Python files of a folder, symlinks not followed."""
    found = []
    for where, names, files in os.walk(folder, followlinks=False):
        names[:] = [name for name in names if not (Path(where) / name).is_symlink()]
        found += [Path(where) / name for name in files if name.endswith(".py")]
    return sorted(found)


# ---- setup.cfg ----------------------------------------------------------------------------------


def test_the_package_list_equals_the_folders(setup: configparser.ConfigParser) -> None:
    places = [path.parent.relative_to(ROOT / "graphprune") for path in sources(ROOT / "graphprune")]
    places += [path.parent.relative_to(ROOT) for name in OUTSIDE for path in sources(ROOT / name)]
    folders = {".".join(["graphprune", *place.parts]) for place in places}
    assert sorted(lines(setup["options"]["packages"])) == sorted(folders)


def test_every_package_has_an_init_with_a_docstring() -> None:
    for name in ("graphprune", *OUTSIDE):
        for path in sources(ROOT / name):
            assert (path.parent / "__init__.py").exists(), path.parent


def test_the_folders_are_mapped_to_subpackages(setup: configparser.ConfigParser) -> None:
    mapping = dict(line.split(" = ") for line in lines(setup["options"]["package_dir"]))
    assert mapping == {"graphprune": "graphprune"} | {f"graphprune.{name}": name for name in OUTSIDE}


def test_three_relative_symlinks_stand_for_them() -> None:
    links = {path.name: os.readlink(path) for path in (ROOT / "graphprune").iterdir() if path.is_symlink()}
    assert links == {name: f"../{name}" for name in OUTSIDE}


def test_the_type_marker_is_shipped(setup: configparser.ConfigParser) -> None:
    assert "py.typed" in setup["options.package_data"]["graphprune"]
    assert (ROOT / "graphprune" / "py.typed").exists()


def test_every_template_is_shipped(setup: configparser.ConfigParser) -> None:
    patterns = lines(setup["options.package_data"]["graphprune"])
    others = [path for path in (ROOT / "graphprune").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {"page.css", "page.js", "prune.html", "comparison.html", "view.html"} <= {path.name for path in others}
    for path in others:
        assert any(path.relative_to(ROOT / "graphprune").match(pattern) for pattern in patterns), path


def test_the_version_has_one_source(setup: configparser.ConfigParser) -> None:
    assert setup["metadata"]["version"] == "attr: graphprune.version.VERSION"
    assert graphprune.__version__ == version("graphprune")
    assert f'VERSION = "{graphprune.__version__}"' in (ROOT / "graphprune" / "version.py").read_text()
    elsewhere = [path for path in sources(ROOT / "graphprune") if path.name != "version.py"]
    assert not [path for path in elsewhere if f'"{graphprune.__version__}"' in path.read_text(encoding="utf-8")]


def test_heavy_libraries_are_no_requirements(setup: configparser.ConfigParser) -> None:
    names = {line.split(">")[0].strip() for line in lines(setup["options"]["install_requires"])}
    assert not names & {"torch", "torchvision", "tensorflow", "apache-tvm", "jax", "keras", "ray"}


def test_every_import_of_a_library_is_declared(setup: configparser.ConfigParser) -> None:
    required = {line.split(">")[0].strip() for line in lines(setup["options"]["install_requires"])}
    provided = {name.replace("-", "_") for name in required}
    comes_with = {"google": "onnx", "onnx_ir": "onnxscript", "yaml": "pyyaml", "markupsafe": "jinja2"}
    behind_an_extra = {
        "graphprune/differentiable.py": ["torch"],
        "graphprune/torch_functions.py": ["torch"],
        "graphprune/torch_operators.py": ["torch"],
        "graphprune/charts.py": ["matplotlib"],
        "graphprune/tracking.py": ["mlflow"],
        "passes/selection/knapsack.py": ["scipy"],
        **{f"exporters/{path.name}": ["tvm", "tvm_ffi"] for path in (ROOT / "exporters").glob("tvm_*.py")},
        **{path.relative_to(ROOT).as_posix(): ["torch"] for path in sources(ROOT / "exporters" / "pytorch")},
        **{
            path.relative_to(ROOT).as_posix(): ["keras", "tensorflow", "tf2onnx"]
            for path in sources(ROOT / "exporters" / "keras3")
        },
    }
    for name in ("graphprune", *OUTSIDE):
        for path in sources(ROOT / name):
            for module in imported(path):
                top = module.split(".")[0]
                if top and top not in sys.stdlib_module_names and top != "graphprune":
                    extra = top in behind_an_extra.get(path.relative_to(ROOT).as_posix(), [])
                    assert extra or comes_with.get(top, top) in provided, f"{path}: {module}"


# ---- entry points -------------------------------------------------------------------------------


def test_the_entry_points_of_setup_cfg_are_installed_and_load(setup: configparser.ConfigParser) -> None:
    for group, text in setup["options.entry_points"].items():
        wanted = dict(line.split(" = ") for line in lines(text))
        found = {entry.name: entry for entry in entry_points(group=group)}
        assert wanted.items() <= {(name, entry.value) for name, entry in found.items()}
        for name in wanted:
            assert found[name].load() is not None


def test_the_name_of_a_pass_is_its_entry_point() -> None:
    for kind in ("importance", "selection", "importers", "exporters"):
        assert registry.registered(kind)
        for name in registry.registered(kind):
            assert registry.load(kind, name).name == name


def test_every_pass_is_registered() -> None:
    """A file of a pass that no entry point names could not be used."""
    for kind in ("importance", "selection"):
        modules = {entry.value.partition(":")[0].rpartition(".")[2] for entry in registry.registered(kind).values()}
        files = {path.stem for path in sources(ROOT / "passes" / kind)} - {"__init__", "base"}
        assert files == modules


# ---- imports ------------------------------------------------------------------------------------


def imported(path: Path) -> list[str]:
    """The modules that a file imports, relative ones with their dots."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names += [module] if node.module else [module + alias.name for alias in node.names]
    return names


def test_the_core_never_imports_what_is_registered() -> None:
    for path in sources(ROOT / "graphprune"):
        for name in imported(path):
            parts = name.lstrip(".").split(".")
            tail = parts[1:] if parts[0] == "graphprune" else parts if name.startswith(".") else []
            assert not tail or tail[0] not in OUTSIDE, f"{path} imports {name}"


def test_passes_import_the_core_by_its_full_name_and_neighbours_relatively() -> None:
    for folder in OUTSIDE:
        for path in sources(ROOT / folder):
            for name in imported(path):
                if name.startswith(".."):  # what two frameworks share
                    assert path.parent.parent == ROOT / folder, f"{path} imports {name}"
                    assert (ROOT / folder / f"{name[2:].replace('.', '/')}.py").exists(), f"{path} imports {name}"
                    continue
                assert not name.startswith(tuple(f"graphprune.{each}" for each in OUTSIDE)), f"{path} imports {name}"
                if name.startswith("."):
                    assert (path.parent / f"{name[1:].split('.')[0]}.py").exists(), f"{path} imports {name}"


def test_nothing_imports_the_folders_as_top_level_packages() -> None:
    for folder in ("graphprune", "tests", "benchmarks", "examples", "docs", *OUTSIDE):
        for path in sources(ROOT / folder):
            assert not [name for name in imported(path) if name.split(".")[0] in OUTSIDE], path


def test_no_file_shadows_a_library_that_it_might_import() -> None:
    taken = {"onnx", "torch", "tvm", "keras", "jax", "tensorflow", "numpy", "onnxruntime"}
    for folder in ("graphprune", *OUTSIDE):
        assert not [path for path in sources(ROOT / folder) if path.stem in taken]


@pytest.mark.parametrize("module", ["graphprune", "graphprune.cli", "graphprune.pipeline"])
def test_importing_is_cheap(module: str) -> None:
    """Neither the heavy optional libraries nor the runtime before it is needed."""
    code = f"import sys, {module}; print(*{{part for name in sys.modules for part in (name, name.split('.')[0])}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    forbidden = {"torch", "tvm", "tensorflow", "jax", "onnxruntime", "onnxscript", "onnx_ir", "pytest", "hypothesis"}
    assert not forbidden & set(loaded)
    if module != "graphprune.pipeline":  # onnx imports it, but after numpy
        assert not {"annotated_types", "typing_extensions"} & set(loaded)
    if module == "graphprune":
        assert not {"onnx", "numpy", "click", "rich"} & set(loaded)


def test_the_first_model_waits_for_no_import() -> None:
    code = """
import sys
from onnx import parser
import graphprune.pipeline
numbers = ", ".join(str(k + 1) for k in range(32))
text = """
    code += repr(NET)
    code += """
before = set(sys.modules)
graphprune.pipeline.prune(parser.parse_model(text % (numbers, numbers)), targets=["channels=0.5"], importance="magnitude",
                          selection="uniform", verify=False).model
print(*set(sys.modules) - before)
"""
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_every_module_says_where_to_start_reading() -> None:
    for folder in ("graphprune", *OUTSIDE):
        for path in sources(ROOT / folder):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert text, path
            if path.name not in ("__init__.py", "version.py"):
                assert "tart" in text and "reading" in text, f"{path} does not say where to start reading"  # noqa: PT018


def test_a_name_that_two_packages_register_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint("magnitude", value, "graphprune.importance") for value in ("one:A", "other:B")]
    monkeypatch.setattr(registry, "installed", lambda group: entries)
    with pytest.raises(UsageError, match="two packages register importance 'magnitude': one:A and other:B"):
        registry.registered.__wrapped__("importance")
