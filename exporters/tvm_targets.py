"""The processors that `compile --target` knows by name, as TVM target dictionaries.  Start reading at `target_options`."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from typing import Any

from graphprune.errors import UsageError

TARGETS: dict[str, dict[str, Any]] = {
    "native": {},
    "x86-64": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
    "x86-64-v3": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "x86-64-v4": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v4"},
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "generic", "mattr": ["+neon"]},
    "cortex-a72": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "mattr": ["+neon"]},
    "armv7": {
        "kind": "llvm",
        "mtriple": "armv7-linux-gnueabihf",
        "mcpu": "cortex-a7",
        "mattr": ["+neon", "+vfp4"],
        "mfloat-abi": "hard",
    },
    "riscv64": {"kind": "llvm", "mtriple": "riscv64-linux-gnu", "mcpu": "generic-rv64", "mattr": ["+m", "+a", "+f", "+d", "+c"]},
    "riscv64-v": {
        "kind": "llvm",
        "mtriple": "riscv64-linux-gnu",
        "mcpu": "generic-rv64",
        "mattr": ["+m", "+a", "+f", "+d", "+c", "+v"],
    },
    "c": {"kind": "c"},
    "cuda": {
        "kind": "cuda",
        "arch": "sm_75",
        "max_num_threads": 1024,
        "max_shared_memory_per_block": 49152,
        "thread_warp_size": 32,
        "host": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
    },
}
"""`native` is filled in on the machine that compiles; TVM takes no such word itself.  What `cuda` says is true of every GPU since
2018 (Turing)."""

ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Other names of processor families."""

SYSTEMS = {"linux": ("linux",), "darwin": ("apple", "darwin", "macos"), "win32": ("windows", "win32", "mingw")}
"""What a target's triple calls the systems that Python runs on."""

PROCESSORS = ("llvm", "c")
"""Kinds of targets without a host beside them; all others are GPUs."""

REASSOCIATED = {"fast-math-reassoc": True}
"""LLVM may change the order of additions, which makes vectors of sums (a layer normalisation: 223 to 19 microseconds)."""


HOST = '"host": {"kind": "llvm", "mtriple": "x86_64-linux-gnu"}'


def target_options(spec: str, threads: int = 0) -> dict[str, Any]:
    """The TVM target of a name, or of JSON text such as '{"kind": "llvm", "mcpu": "znver4"}'.

    `threads` is how many cores the code is meant for; 0 leaves that open.  Raises UsageError for unknown names and for text that
    is no JSON object with a `kind`.
    """
    if not spec.lstrip().startswith("{"):
        if spec not in TARGETS:
            raise UsageError(f"no target is called {spec!r}; there are: {', '.join(TARGETS)}; or give a TVM target as JSON")
        options = dict(TARGETS[spec] or _native())
        options |= REASSOCIATED if options["kind"] == "llvm" else {}
    else:
        options = _parsed(spec)
    if threads and options["kind"] == "llvm":
        options["num-cores"] = threads
    return options


def _parsed(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--target {text!r} is no JSON: {error}") from error
    if isinstance(options, dict) and not isinstance(options.get("host", {}), dict):
        raise UsageError(f"--target {text!r}: write the host as an object, for example {HOST}")
    if not isinstance(options, dict) or not isinstance(options.get("kind"), str):
        raise UsageError(f'--target {text!r} names no kind; write for example {{"kind": "llvm", "mcpu": "znver4"}}')
    return options


def _native() -> dict[str, Any]:
    """The machine that this runs on, as LLVM sees it."""
    from graphprune.extras import require

    codegen: Any = require("tvm.target.codegen", "tvm")
    return {"kind": "llvm", "mtriple": codegen.llvm_get_system_triple(), "mcpu": codegen.llvm_get_system_cpu()}


def host(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The target of what the processor does: for a GPU that of its host."""
    found: Mapping[str, Any] = options.get("host", options)
    return found


def is_like_this(options: Mapping[str, Any]) -> bool:
    """Whether a target is for processors and a system of this machine's family; true where TVM writes source code."""
    family, _, system = str(host(options).get("mtriple", "")).partition("-")
    if not family:
        return True
    same = ALIASES.get(family, family) == ALIASES.get(platform.machine().lower(), platform.machine())
    names = SYSTEMS.get(sys.platform, ())
    return same and "android" not in system and (not system or any(name in system for name in names))
