"""Results in MLflow (extra mlflow): one run for each, with parameters, metrics, files, and the model with its signature.

What is logged is a folder of a result (`graphprune.result_folder`).  Start reading at `log_result`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from .configuration import PATHS, read_configuration
from .errors import LoggingError, UsageError
from .extras import need, require
from .model_file import fits_message, load_weights, read_model
from .provenance import PREFIX, file_digest
from .result_folder import CONFIG, MODEL, PLAN, REPORT, RESULT, WEIGHTS, read_result
from .terminal import without_passwords

LONGEST_PARAMETER = 500
"""Characters that every server takes; config.yaml has the whole text."""

RESULT_TAG = PREFIX + "result"
"""Says which result a run is, by the hash of its JSON; set last, so that a run without it is not complete."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""MLflow's own variables, where the user has not set them: seven retries would take minutes."""


@dataclass(frozen=True)
class Server:
    """Where runs go: a tracking URI of MLflow, and an experiment there."""

    uri: str
    experiment: str = "graphprune"

    def __str__(self) -> str:
        """The URI without a password."""
        return without_passwords(self.uri)


def check_server(server: Server) -> None:
    """Open the experiment, which is made where it is not there.

    Raises UsageError where the server does not answer or refuses, and MissingExtraError.
    """
    try:
        with _connected(server):
            pass
    except LoggingError as error:
        raise UsageError(f"--mlflow: {error}") from error


def log_result(folder: Path, server: Server) -> str:
    """Log the result in a folder, once: the id of its run, also where it had been logged before.

    Raises LoggingError where the server does not answer or refuses, UsageError where the folder has no result, and
    MissingExtraError.
    """
    result = read_result(folder)
    if result is None:
        raise UsageError(f"{folder}: there is no result: {RESULT} is missing or broken")
    settings = read_configuration(folder / CONFIG)
    digest = file_digest(folder / RESULT)
    with _connected(server) as mlflow:
        known = mlflow.search_runs(filter_string=f"tags.`{RESULT_TAG}` = '{digest}'", output_format="list", max_results=1)
        if known:
            return str(known[0].info.run_id)
        with mlflow.start_run(run_name=_name(settings), tags=_tags(folder, result)) as run:
            mlflow.log_params(_parameters(settings))
            mlflow.log_metrics(metrics(result))
            for path in (folder / name for name in (PLAN, WEIGHTS, RESULT, CONFIG, REPORT)):
                if path.is_file() and not path.is_symlink():  # a folder of somebody else's must not send files from elsewhere
                    mlflow.log_artifact(str(path))
            if (folder / MODEL).is_file():
                _log_model(mlflow, folder / MODEL)
            mlflow.set_tag(RESULT_TAG, digest)
            mlflow.end_run("FINISHED" if _met(result) else "FAILED")
        return str(run.info.run_id)


@contextmanager
def _connected(server: Server) -> Iterator[Any]:
    """MLflow with the server and the experiment chosen.  Raises LoggingError for everything that fails inside."""
    with _environment():
        mlflow = need("mlflow")
        before = mlflow.get_tracking_uri()
        try:
            mlflow.set_tracking_uri(server.uri)
            mlflow.set_experiment(server.experiment)
            yield mlflow
        except Exception as error:  # MLflow raises its own types, those of requests, of databases and of storage services
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LoggingError(f"MLflow at {server} failed: {without_passwords(reason)}") from error
        finally:
            mlflow.set_tracking_uri(before)


@contextmanager
def _environment() -> Iterator[None]:
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


# ---- what is logged -------------------------------------------------------------------------------


def _name(settings: Mapping[str, Any]) -> str:
    return " ".join([Path(settings["model"]).stem, *settings.get("target", ()), settings.get("recipe", "")]).strip()


def _met(result: Mapping[str, Any]) -> bool:
    return all(item["passed"] for item in result.get("requirements", ()))


def _tags(folder: Path, result: Mapping[str, Any]) -> dict[str, str]:
    tags = {"source_sha256": result["model_sha256"], "version": metadata.version("graphprune")}
    if (folder / PLAN).is_file():
        tags["plan_sha256"] = hashlib.sha256((folder / PLAN).read_bytes()).hexdigest()
    if result.get("requirements"):
        tags["requirements"] = "met" if _met(result) else "not met"
    return {PREFIX + key: value for key, value in tags.items()}


def _parameters(settings: Mapping[str, Any]) -> dict[str, str]:
    values = {key: value for key, value in settings.items() if key not in ("output", "plan")}
    values |= {key: os.path.abspath(value) for key, value in values.items() if key in PATHS and os.path.exists(value)}
    texts = {key: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value) for key, value in values.items()}
    return {key: text if len(text) <= LONGEST_PARAMETER else text[: LONGEST_PARAMETER - 3] + "..." for key, text in texts.items()}


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a result by their names in MLflow: `before/macs`, `after/macs`, `share/macs`, `realised/macs` ..."""
    found: dict[str, float] = {}
    for when in ("before", "after"):
        found |= {f"{when}/{key}": value for key, value in result[when].items()}
        timed = result.get("latency", {}).get(when, {})
        found |= {f"{when}/latency_{key}": value for key, value in timed.items() if key.endswith("_ms")}
        found |= {f"{when}/accuracy": result["accuracy"][when]} if "accuracy" in result else {}
    for key in [name.removeprefix("after/") for name in found if name.startswith("after/")]:
        if found.get(f"before/{key}") and key != "accuracy":
            found[f"share/{key}"] = found[f"after/{key}"] / found[f"before/{key}"]
    found |= {f"realised/{item['target'].partition('=')[0]}": item["realised"] for item in result["targets"]}
    found |= {"proof/max_error": result["proof"]["max_error"]} if result["proof"] else {}
    found |= {"seconds": result["seconds"]} if "seconds" in result else {}
    return {key: float(value) for key, value in found.items()}


def _log_model(mlflow: Any, path: Path) -> None:
    """The model as MLflow's flavour of ONNX, which `mlflow.onnx.load_model` and `mlflow.pyfunc.load_model` read."""
    model = load_weights(read_model(path))
    require("mlflow.onnx", "mlflow").log_model(
        model,
        name="model",
        signature=_signature(model),
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("onnx", "onnxruntime")],
        save_as_external_data=not fits_message(model),
    )


def _signature(model: ModelProto) -> Any:
    """Names, types and shapes of inputs and outputs, -1 for dynamic sizes; None for types that MLflow does not know."""
    types = require("mlflow.types", "mlflow")
    try:
        inputs, outputs = ([_spec(types, value) for value in values] for values in (model.graph.input, model.graph.output))
        return require("mlflow.models", "mlflow").ModelSignature(types.Schema(inputs), types.Schema(outputs))
    except TypeError:
        return None


def _spec(types: Any, value: ValueInfoProto) -> Any:
    kind = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if dtype.kind not in "biuf":
        raise TypeError(f"MLflow's signatures have no type {dtype}")
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return types.TensorSpec(dtype, shape, value.name)
