"""Plans, repaired weights, configurations, batches, samples and containers that somebody meant to do harm with.

Each family is a function from a random generator to bytes.  Start reading at `FAMILIES`.
"""

# ruff: noqa: E501  (tables of traps)
from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1.5, float("nan"), float("inf"), "", "x", "[/red]", "\x1b[31m", "\ud800", "a" * 10**5,
    "../../secret/canary", "/etc/passwd", [], {}, [[]], [0] * 10**5, {"a": {"b": 1}}, [2**62], "random", "(a+)+$", "module:function", "{",
]  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    if isinstance(value, dict):
        found += [place for key in value for place in _places(value[key], (*at, key))]
    if isinstance(value, list):
        found += [place for k in range(min(len(value), 5)) for place in _places(value[k], (*at, k))]
    return found


def change(value: Any, rng: Random) -> Any:
    """One value somewhere in a document replaced, removed or repeated."""
    places = [place for place in _places(value) if place]
    if not places:
        return rng.choice(VALUES)
    *path, last = rng.choice(places)
    inner = value
    for key in path:
        inner = inner[key]
    act = rng.randrange(5)
    if act == 0:
        del inner[last]
    elif act == 1 and isinstance(inner, list):
        inner.extend(inner * rng.choice([1, 1000]))
    elif act == 2 and isinstance(inner, dict):
        inner[rng.choice(["x", "", "\n", "__class__", "a" * 10**5])] = rng.choice(VALUES)
    else:
        inner[last] = rng.choice(VALUES)
    return value


def flipped(data: bytes, rng: Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice([1, 2, 10])):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


# ---- plans --------------------------------------------------------------------------------------


def plan(valid: str, rng: Random) -> bytes:
    """A plan for the right model with something changed, or no plan at all."""
    kind = rng.randrange(12)
    if kind == 0:
        return flipped(valid.encode(), rng)
    if kind == 1:
        return b"[" * rng.choice([100, 100_000])
    if kind == 2:
        return b'{"a":' * rng.choice([100, 100_000])
    if kind == 3:
        return valid.replace('"keep":[', '"keep":[' + "0," * 3_000_000, 1).encode()
    if kind == 4:
        return rng.choice(
            [b"", b"\xff\xfe", b"\xef\xbb\xbf" + valid.encode(), b"null", b"NaN", b"9" * 10_000, b'"' + b"a" * 10**7]
        )
    if kind == 5:
        return valid.replace(
            '"seed":0', '"seed":' + rng.choice(['"x"', "[]", "-1", "1e999", "NaN", "1" * 5000, "null", "{}"])
        ).encode()
    if kind == 6:
        options = {"mode": rng.choice(VALUES), "normalization": rng.choice(VALUES), "seed": rng.choice(VALUES)}
        return json.dumps(json.loads(valid) | {"options": options}).encode(errors="replace")
    document = json.loads(valid)
    for _ in range(rng.choice([1, 1, 2, 4])):
        document = change(document, rng)
    return json.dumps(document).encode(errors="replace")


def safetensors(rng: Random) -> bytes:
    """A companion file of a plan, with a header that lies."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    header: Any = {"w1": entry, "__metadata__": {"a": "b"}}
    for _ in range(rng.choice([0, 1, 2])):
        header = change(header, rng)
    if rng.random() < 0.3:
        entry["dtype"] = rng.choice(["BF16", "F8_E4M3", "F8_E5M2", "I4", "X", "BOOL", "F64", "C64", "F4"])
    text = rng.choice([json.dumps(header).encode(errors="replace"), b"{" * 1000, b"", b"[" * 100_000])
    size = rng.choice([len(text), len(text), len(text), 0, 2**40, 2**64 - 1, 7])
    return size.to_bytes(8, "little") + text + b"\0" * rng.choice([16, 0, 64])


# ---- configurations -----------------------------------------------------------------------------

_CONFIG = {"target": "macs=0.5", "align": 1, "keep": ["^w3"], "ratio": ["w1=0.5"], "seed": 3, "importance": "magnitude", "verify": True,
           "selection": "global", "input-shape": ["x=1,3,8,8"]}  # fmt: skip

_TEXTS = [
    "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "a: &a [*a]\n", "target: !!python/object/apply:os.system ['touch pwned']\n", "!!python/name:os.system\n", "[" * 100_000, "{a: " * 50_000,
    "- " * 50_000 + "x", "? " * 10_000, "target: macs=0.5\ntarget: macs=0.1\n", "<<: {target: macs=0.5}\n", "target: *nowhere\n", "\t", "---\n---\n", "%YAML 9.9\n---\n",
    "target: 2024-99-99\n", "seed: " + "9" * 100_000, "seed: 0x" + "f" * 100_000, "seed: 1:2:3:4:5:6:7\n", "seed: 1e400", "seed: .nan", "target: \"\\ud800\"", "keep: '(a+)+$'",
    "keep: '" + "(" * 5000 + ")" * 5000 + "'", "keep: 'a{99999}{99999}'", "importance: magnitude{p=1e400}", "importance: '{'", "importance: " + "x" * 100_000,
    "target: macs=" + "9" * 5000, "target: macs=1e-400", "target: channels=nan", "target: macs=inf", "input-shape: x=" + "9" * 5000, "input-shape: x=4611686018427387904,3,8,8",
    "input-shape: x=100000,3,1000,1000", "ratio: 'w1=nan'", "ratio: '[=0.5'", "align: 999999999999999999999", "min-channels: 4611686018427387904", "threads: 99999999",
    "seed: 99999999999999999999999999", "eval: ../secret/canary", "calibration: ../secret/canary", "eval: os:system", "plan: ../out", "recipe: best", "model: ''",
    "a" * 300_000, "# " * 200_000, "\0", "\x85\u2028", "a: \x1b[31m", "x: &x\n  <<: *x\n", "target: |\n" + " x\n" * 60_000, "require: accuracy>=0.1", "require: 'macs<=1e400'",
]  # fmt: skip


def yaml_file(rng: Random) -> bytes:
    if rng.random() < 0.5:
        return rng.choice(_TEXTS).encode(errors="surrogatepass")
    document: Any = json.loads(json.dumps(_CONFIG))
    for _ in range(rng.choice([1, 2])):
        document = change(document, rng)
    data = json.dumps(document).encode(errors="replace")
    return flipped(data, rng) if rng.random() < 0.3 else data


def toml_file(rng: Random) -> bytes:
    texts = ["a." * 20_000 + "b = 1", "a = " + "[" * 50_000, "a = " + "{b=" * 50_000, "[" * 60_000, "seed = " + "9" * 60_000, "target = 1979-99-27", "a = '''" + "'" * 50_000,
             "[a]\n[a]\n", "[[a]]\n" * 5000, "target = \"\\uD800\"", "seed = nan", "\"\" = 1", "seed = 0x" + "f" * 50_000, "target = 'macs=0.5'\n" * 2]  # fmt: skip
    return rng.choice(texts).encode()


def batch_file(rng: Random) -> bytes:
    texts = [
        "models: plain.onnx\nmatrix:\n" + "".join(f"  seed{k}: [1, 2, 3]\n" for k in range(20)),
        "models: plain.onnx\ntarget: macs=0.5\nmatrix: {seed: [" + ", ".join(map(str, range(60_000))) + "]}\n",
        "models: '../**/*'\ntarget: macs=0.5\n", "models: '/**/*.onnx'\ntarget: macs=0.5\n", "models: ''\n", "models: [[]]\n", "jobs: 1\n", "models: plain.onnx\nmatrix: {}\n",
        "models: plain.onnx\nmatrix: {target: []}\n", "models: plain.onnx\ntarget: macs=0.5\nmemory: -1\n", "models: plain.onnx\ntarget: macs=0.5\ntime: 1e400\n",
        "models: plain.onnx\nmatrix: &m {seed: *m}\n",
        "models: plain.onnx\nmatrix: {" + ", ".join(f"{key}: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]" for key in ("seed", "min-channels", "threads", "align", "a", "b")) + "}\n",
    ]  # fmt: skip
    return rng.choice(texts).encode()


# ---- samples ------------------------------------------------------------------------------------


def npz(rng: Random) -> bytes:
    """Arrays with headers that lie, objects, zeros without end, archives in archives."""
    kind = rng.randrange(9)
    file = io.BytesIO()
    if kind == 0:
        with (
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("x.npy", "w", force_zip64=True) as entry,
        ):
            entry.write(_header("<f4", (5 * 10**6, 3, 8, 8)))
            for _ in range(rng.choice([400, 600])):
                entry.write(b"\0" * 2**20)
        return file.getvalue()
    if kind == 1:
        np.savez(file, x=np.array([{"a": 1}], dtype=object))
    elif kind == 2:
        shape = rng.choice([(2**40, 3, 8, 8), (2**62,), (-1, 3, 8, 8), (2**31, 2**31), (10**30,), (1,) * 100])
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", _header(rng.choice(["<f4", "|O", "<U9999", "|V9", "<M8[s]", "<c16"]), shape) + b"\0" * 768)
    elif kind == 3:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535)
    elif kind == 4:
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("../x.npy", "/x.npy", "x", "x.npy"):
                archive.writestr(name, _header("<f4", (1, 3, 8, 8)) + b"\0" * 768)
    elif kind == 5:
        np.savez(
            file,
            x=np.zeros((4, 3, 8, 8), np.float32),
            labels=rng.choice([np.array(["a"] * 4), np.array([np.nan] * 4), np.zeros((4, 2)), np.array(3)]),
        )
    elif kind == 6:
        np.savez(
            file,
            x=rng.choice(
                [
                    np.zeros((0, 3, 8, 8)),
                    np.zeros(()),
                    np.full((4, 3, 8, 8), np.nan),
                    np.zeros((4, 3, 8, 8), bool),
                    np.zeros((4, 3, 8)),
                ]
            ),
        )
    elif kind == 7:
        np.savez_compressed(file, x=np.random.default_rng(0).random((8, 3, 8, 8)).astype(np.float32), labels=np.arange(8) % 5)
        return flipped(file.getvalue(), rng)
    else:
        return rng.choice([b"", b"PK", b"PK\x05\x06" + b"\0" * 18, b"\x93NUMPY", b"\x80\x04\x95", b"x" * 10**6])
    return file.getvalue()


def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    text = str({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


# ---- containers ---------------------------------------------------------------------------------


def container(rng: Random) -> bytes:
    """Zip files that claim to be .pt2, .keras or .skops: bombs, ways out, broken ones."""
    file = io.BytesIO()
    kind = rng.randrange(4)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if kind == 0:
            with archive.open("model.weights.h5", "w", force_zip64=True) as entry:
                for _ in range(300):
                    entry.write(b"\0" * 2**20)
        elif kind == 1:
            for name in ("../../pwned", "/tmp/pwned", "config.json", "version", "archive_format", "schema.json"):
                archive.writestr(name, b'{"class_name": "Functional", "module": "os"}')
        elif kind == 2:
            archive.writestr("config.json", "[" * 10**5)
        else:
            archive.writestr("data/constants/custom_obj_0", b"\x80\x04\x95")
    data = file.getvalue()
    return flipped(data, rng) if rng.random() < 0.3 else data


FAMILIES: dict[str, Callable[[Random], bytes]] = {
    "config.yaml": yaml_file,
    "config.toml": toml_file,
    "jobs.yaml": batch_file,
    "weights": safetensors,
    "samples.npz": npz,
    "model.pt2": container,
    "model.keras": container,
    "model.skops": container,
}
"""By the name of the file that the bytes stand in."""
