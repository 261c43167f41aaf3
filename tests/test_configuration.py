"""Configurations: the same keys as the command line, errors that name file, line and key, files that read back."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
import pytest
import yaml
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import plain, write

from graphprune.cli import ELSEWHERE, main, prune
from graphprune.configuration import configuration, job_of, read_configuration, rendered, values_of
from graphprune.configuration_commands import schema_of
from graphprune.document import quoted, read_document
from graphprune.errors import UsageError
from graphprune.options import Options
from graphprune.run import Job

Cli = Callable[..., Result]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(plain(), tmp_path / "model.onnx")


def config(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# ---- one source of truth ------------------------------------------------------------------------


def test_every_option_of_prune_is_a_key_and_every_key_an_option() -> None:
    options = {max(p.opts, key=len).removeprefix("--") for p in prune.params}
    keys = {field.alias for field in configuration().model_fields.values()}
    assert keys == options - {"config"}


def test_the_defaults_of_files_and_of_the_command_line_are_those_of_the_options() -> None:
    given = prune.make_context("prune", ["model.onnx", "-o", "out.onnx"]).params
    for name, default in vars(Options()).items():
        assert configuration().model_fields[name].default == default
        shown = str(default) if name == "align" else default
        assert given[name if name in given else f"{name}s"] in (shown, None, ()), name


# ---- precedence ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "c.yaml",
            "model: model.onnx\noutput: out.onnx\ntarget: channels=0.5\nalign: 1\nseed: 3\nplan: p.json\nmin-channels: 2\n",
        ),
        (
            "c.toml",
            'model = "model.onnx"\noutput = "out.onnx"\ntarget = ["channels=0.5"]\nalign = 1\nseed = 3\nplan = "p.json"\n',
        ),
    ],
)
def test_a_run_from_a_file(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """Paths are relative to the file; the command line wins; all options are written beside the output."""
    path = config(tmp_path, text, name)
    monkeypatch.chdir("/")
    result = graphprune_cli("prune", "--config", path)
    assert result.exit_code == 0, result.stderr
    plan = json.loads((tmp_path / "p.json").read_text())
    assert plan["options"]["seed"] == 3
    saved = tmp_path / f"out.config{path.suffix}"
    assert read_configuration(saved) == read_configuration(saved) | {
        "target": ("channels=0.5",),
        "importance": "path",
        "recipe": "fast",
        "model": str(tmp_path / "model.onnx"),
        "output": str(tmp_path / "out.onnx"),
        "plan": str(tmp_path / "p.json"),
    }
    first = (tmp_path / "out.onnx").read_bytes()
    assert graphprune_cli("prune", "--config", saved, "--save-config", tmp_path / "again.yaml").exit_code == 0
    assert (tmp_path / "out.onnx").read_bytes() == first
    result = graphprune_cli("prune", "--config", path, "--seed", "4", "-o", tmp_path / "other.onnx", "--target", "channels=0.7")
    assert result.exit_code == 0
    plan = json.loads((tmp_path / "p.json").read_text())
    assert (plan["options"]["seed"], plan["options"]["targets"]) == (4, ["channels=0.7"])
    assert (tmp_path / "other.onnx").exists()


def test_switches_in_a_file_can_be_taken_back(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    path = config(tmp_path, "model: model.onnx\ntarget: channels=0.5\nalign: 1\nverify: false\nmeasure: true\nrepair: none\n")
    out = tmp_path / "out.onnx"
    report = json.loads(graphprune_cli("prune", "--config", path, "-o", out, "--no-measure", "--json", "-").stdout)
    assert report["proof"] is None
    assert "latency" not in report
    report = json.loads(graphprune_cli("prune", "--config", path, "-o", out, "--no-measure", "--verify", "--json", "-").stdout)
    assert report["proof"]["passed"]


def test_nothing_is_written_beside_the_output_without_a_file(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert graphprune_cli("prune", model, "-o", out, "--target", "channels=0.5", "--align", "1").exit_code == 0
    assert {each.name for each in tmp_path.iterdir()} == {"model.onnx", "out.onnx"}
    path = config(tmp_path, "model: model.onnx\ntarget: channels=0.5\noutput: out.onnx", "out.config.yaml")
    result = graphprune_cli("prune", "--config", path)
    assert result.exit_code == 2
    assert "would overwrite the configuration; name another --save-config" in result.stderr


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 0\ntaget: macs=0.5\n", "config.yaml:2: taget: unknown key; is 'target' meant?"),
        ("\n\nseed: much\n", "config.yaml:3: seed: Input should be a valid integer, not 'much'"),
        ("seed: -1\n", "config.yaml:1: seed: Input should be greater than or equal to 0, not '-1'"),
        ("min-channels: -1\n", "config.yaml:1: min-channels: Input should be greater than or equal to 0"),
        ("verify: 1\n", "config.yaml:1: verify: Input should be a valid boolean, not '1'"),
        ("target:\n- macs=0.5\n- macs=2\n", "config.yaml:1: target: target 'macs=2': a fraction lies above 0"),
        ("target: 5\n", "config.yaml:1: target: Input should be a valid tuple, not '5'"),
        ("target: [5]\n", "config.yaml:1: target.0: Input should be a valid string, not '5'"),
        ("keep: '('\n", "config.yaml:1: keep: '(' is not a regular expression"),
        ("ratio: head\n", "config.yaml:1: ratio: 'head' is not of the form REGEX=VALUE"),
        ("recipe: slow\n", "config.yaml:1: recipe: no recipe is called 'slow'"),
        ("importance: 'magnitude{p=9}'\n", "config.yaml:1: importance: importance 'magnitude': option p='9'"),
        ("repair: [what]\n", "config.yaml:1: repair: no repair is called 'what'"),
        ("align: 0\n", "config.yaml:1: align: 0: give 'auto' or a number from 1"),
        ("align: [1]\n", "config.yaml:1: align: Input should be a valid integer, not '[1]' or Input should be a valid string"),
        ("normalization: keep\n", "config.yaml:1: normalization: Input should be 'pin' or 'kept', not 'keep'"),
        ("require: speed<=1\n", "config.yaml:1: require: --require: 'speed<=1': unknown metric 'speed'"),
        ("input-shape: x\n", "config.yaml:1: input-shape: --input-shape 'x' is not of the form"),
        ("model: ''\n", "config.yaml:1: model: a name of a file is needed"),
        ("seed: 1\nseed: 2\n", "config.yaml:2: the key 'seed' is there twice"),
        ("a: b: c\n", "config.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("- 1\n", "config.yaml:1: the top level must be keys with values"),
        ("&a a: 1\n<<: *a\n", "config.yaml:2: merge keys (<<) are not read"),
        ("? [1]\n: 2\n", "config.yaml:1: a key must be a word"),
        ("seed: !!python/object/apply:os.system ['true']\n", "config.yaml:1: seed: Input should be a valid integer"),
        ("keep: !!python/name:os.system ''\n", "config.yaml:1: cannot read the value"),
        ("seed: !!int ''\n", "config.yaml:1: cannot read the value ''"),
        ("seed: 1\n---\nseed: 2\n", "config.yaml:2: not valid YAML"),
        ("[" * 1200, "config.yaml: nested too deeply"),
        ("model: \x01\n", "config.yaml: not valid YAML: unacceptable character"),
    ],
)
def test_yaml_errors_name_file_line_and_key(graphprune_cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    result = graphprune_cli("prune", "--config", config(tmp_path, text))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 0\n\ntaget = 'x'\n", "c.toml:3: taget: unknown key; is 'target' meant?"),
        ("keep = [\n'a',\n]\nseed = 'x'\n", "c.toml:4: seed: Input should be a valid integer"),
        ("require = '''\nseed = 1\n'''\n\"seed\" = -1\n", "c.toml:4: seed: Input should be greater"),
        ("[x.y]\na = 1\n", "c.toml:1: x: unknown key"),
        ("[target]\na = 1\n", "c.toml:1: target: Input should be a valid tuple"),
        ("seed = \n", "c.toml:1: not valid TOML"),
        ("seed = 1\nseed = 2\n", "c.toml:2: not valid TOML: Cannot overwrite a value"),
        ("a." * 20000 + "a = 1\n", "c.toml: nested too deeply"),
        ("#" * (2**16 + 1), "c.toml: larger than 64 KiB, which is the limit for TOML"),
        ("seed = 2001-01-01\n", "c.toml:1: seed: Input should be a valid integer"),
    ],
)
def test_toml_errors_name_file_line_and_key(graphprune_cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    result = graphprune_cli("prune", "--config", config(tmp_path, text, "c.toml"))
    assert result.exit_code == 2
    assert message in result.stderr


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for content, message in [
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"#" * (2**18 + 1), "larger than 256 KiB, which is the limit for YAML"),
        (
            (
                b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
                + b"".join(b"%c: &%c [%s]\n" % (k, k, b",".join([b"*%c" % (k - 1)] * 10)) for k in range(98, 108))
            ),
            "more than 100000",
        ),
    ]:
        path = tmp_path / "c.yaml"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_document(path)
    with pytest.raises(UsageError, match="cannot read the file: Is a directory"):
        read_document(tmp_path)
    with pytest.raises(UsageError, match="cannot read the file: No such file"):
        read_document(tmp_path / "gone.yaml")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_configuration(config(tmp_path, "seed: x\nalign: auto\nrecipe: y\n"))
    assert [line.partition("config.yaml:")[2][:8] for line in str(caught.value).splitlines()] == ["3: recip", "1: seed:"]


def test_words_that_yaml_reads_otherwise_keep_their_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config.yaml:2: on: unknown key"):
        read_configuration(config(tmp_path, "seed: 1\non: true\n"))
    assert read_configuration(config(tmp_path, "calibration: 2001-01-01\n"))["calibration"].endswith("2001-01-01")


# ---- writing ------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_quoted_text_reads_back_in_both_languages(text: str) -> None:
    assert yaml.safe_load(f"key: {quoted([text])}") == {"key": [text]}
    assert tomllib.loads(f"key = {quoted([text])}") == {"key": [text]}


@pytest.mark.parametrize("suffix", [".yaml", ".toml"])
def test_what_was_written_reads_back(tmp_path: Path, suffix: str) -> None:
    options = Options(
        ("macs=0.5",), calibration=str(tmp_path / "c.npz"), keep=("^a\\.b$", 'q"ü\n'), align="8", repair=(), threads=2
    )
    job = Job(str(tmp_path / "m" / "model.onnx"), options, ("x=1,2",), "module:function", True, "macs<=1x")
    path = tmp_path / "out" / f"c{suffix}"
    path.parent.mkdir()
    path.write_text(rendered(values_of(job), path))
    found = job_of(read_configuration(path))
    assert values_of(found) == values_of(job) | {
        "model": str(tmp_path / "out" / ".." / "m" / "model.onnx"),
        "calibration": str(tmp_path / "out" / ".." / "c.npz"),
    }


@pytest.mark.parametrize("suffix", [".yaml", ".toml"])
def test_init_writes_a_configuration_that_runs(graphprune_cli: Cli, model: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "conf").mkdir()
    path = tmp_path / "conf" / f"new{suffix}"
    result = graphprune_cli("init", model, "-o", path)
    assert result.exit_code == 0, result.stderr
    text = path.read_text()
    assert "w2:0$" in text
    assert "12 units" in text
    for key in (field.alias for field in configuration().model_fields.values()):
        assert f"\n{key}" in text or f"\n# {key}" in text, key
    result = graphprune_cli("prune", "--config", path, "--align", "1")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "model.pruned.onnx").exists()
    assert "is already there" in graphprune_cli("init", model, "-o", path).stderr
    assert path.read_text() == text


def test_init_with_every_line_active_is_valid(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    """What stands behind the comment signs can be used as it is."""
    lines = graphprune_cli("init", model).stdout.splitlines()
    for number, line in enumerate(lines):
        key = line.removeprefix("# ").partition(": ")[0]
        if line.startswith("# ") and key in {field.alias for field in configuration().model_fields.values()}:
            active = [*lines[:number], line.removeprefix("# "), *lines[number + 1 :]]
            assert key in read_configuration(config(tmp_path, "\n".join(active)))


# ---- schemas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["config", "batch", "plan", "events"])
def test_schemas_are_published(graphprune_cli: Cli, kind: str) -> None:
    printed = graphprune_cli("schema", kind)
    assert printed.exit_code == 0
    assert printed.stdout == (ROOT / "docs" / "schemas" / f"{kind}.json").read_text(encoding="utf-8")


def test_the_schema_describes_every_key() -> None:
    found = schema_of("config")["properties"]
    assert all(entry["description"] for entry in found.values())
    assert found["target"]["anyOf"] == [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    assert found["min-channels"]["minimum"] == 0
    assert found["normalization"]["enum"] == ["pin", "kept"]


# ---- verbs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(ELSEWHERE))
def test_verbs_elsewhere_have_help_and_are_listed(graphprune_cli: Cli, verb: str) -> None:
    assert graphprune_cli(verb, "--help").stdout.startswith("Usage: ")
    assert f"\n  {verb} " in graphprune_cli("--help").stdout
    assert verb in main.list_commands(click.Context(main))


# ---- anything -----------------------------------------------------------------------------------

KEYS = st.sampled_from([*(field.alias or "" for field in configuration().model_fields.values()), "x", "", "\x00"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["macs=0.5", "macs=1e999K", "x=1,2", "magnitude{p=1}", "none", "a<=1%,b", "^a=1", "auto", "²"]),
)


@settings(max_examples=300)
@given(
    value=st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(KEYS, SCALARS, max_size=2), max_size=5)
)
def test_any_structure_is_a_configuration_or_an_error(tmp_path_factory: pytest.TempPathFactory, value: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(json.dumps(value))
    with suppress(UsageError):
        job_of(read_configuration(path))


@settings(max_examples=300)
@given(
    text=st.text(alphabet=st.sampled_from("ab: -[]{}&*!<>|'\"\n\t#%@,?=0.1e~seed"), max_size=60),
    suffix=st.sampled_from([".yaml", ".toml"]),
)
def test_any_text_is_a_configuration_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_text(text)
    with suppress(UsageError):
        read_configuration(path)
