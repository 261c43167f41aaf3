"""Short Softmaxes over an unknown size are written so that ONNX Runtime does not compute them in place."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from halving import halve
from nets import net, write
from onnx import ModelProto

import graphprune


def attention(batch: str, row: int, axis: int = -1) -> ModelProto:
    """Scores of `row` tokens, Softmax, values, a projection whose 8 channels can go."""
    return net(
        f"""
        scores (float[{batch},{row},16] x) => (float[{batch},{row},3] y) <float[16,8] q, float[16,8] k, float[16,3] v> {{
            qp = MatMul(x, q)
            kp = MatMul(x, k)
            kt = Transpose<perm=[0,2,1]>(kp)
            s = MatMul(qp, kt)
            p = Softmax<axis={axis}>(s)
            vp = MatMul(x, v)
            y = MatMul(p, vp)
        }}"""
    )


def sizes(model: ModelProto, name: str) -> list[str | int]:
    (value,) = (value for value in model.graph.value_info if value.name == name)
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("row", [5, 17, 127])
def test_the_result_has_a_size_of_another_name(row: int) -> None:
    result = halve(attention("N", row), silence=True).model
    assert sizes(result, "s") == ["N", row, row]
    assert sizes(result, "p") == ["N of p", row, row]
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize(("batch", "row", "axis"), [("2", 17, -1), ("N", 32, -1), ("N", 128, -1), ("N", 197, -1), ("N", 17, 1)])
def test_others_stay_as_they_are(batch: str, row: int, axis: int) -> None:
    result = halve(attention(batch, row, axis), silence=True).model
    assert sizes(result, "p") == sizes(result, "s")


def test_the_name_does_not_survive_another_import(tmp_path: Path) -> None:
    again = graphprune.load(write(halve(attention("N", 17), silence=True).model, tmp_path / "m.onnx"))
    assert sizes(again.model, "p") == ["N", 17, 17]


def test_onnx_runtime_takes_it_without_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(halve(attention("N", 17), silence=True).model, tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 2
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert not capfd.readouterr().err
