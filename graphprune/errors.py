"""The errors a user can meet, each with its documented exit code (docs/command-line.md).

Every message says what is wrong, where, and what to do.  Start reading at `GraphpruneError`.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of the command line (design section 8)."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    INVALID_MODEL = 3
    UNREACHABLE = 4
    PROOF_FAILED = 5
    MISSING_EXTRA = 6
    NOT_FASTER = 7
    REQUIREMENT = 8
    JOBS_FAILED = 9
    NOT_LOGGED = 10


class GraphpruneError(Exception):
    """Base of all errors that graphprune raises on purpose."""

    exit_code = ExitCode.INTERNAL


class SignalExit(BaseException):
    """A signal ends the process, which cleans up first; no SystemExit, since users' code may raise one, which is caught."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return "a signal ended the process"


class InternalError(GraphpruneError):
    """graphprune broke one of its own invariants: a bug to report."""


class UsageError(GraphpruneError):
    """The options, patterns or plan do not fit the model or each other."""

    exit_code = ExitCode.USAGE


class CalibrationError(UsageError):
    """The network cannot be run on the calibration samples."""


class InvalidModelError(GraphpruneError):
    """The input model cannot be read or breaks the ONNX specification."""

    exit_code = ExitCode.INVALID_MODEL


class UnreachableError(GraphpruneError):
    """Nothing can be pruned, or the target cannot be reached."""

    exit_code = ExitCode.UNREACHABLE


class ProofError(GraphpruneError):
    """The pruned model does not equal the masked original."""

    exit_code = ExitCode.PROOF_FAILED


class MissingExtraError(GraphpruneError):
    """An optional dependency is needed and not installed."""

    exit_code = ExitCode.MISSING_EXTRA


class NotFasterError(GraphpruneError):
    """The result is slower than the original where latency was asked for."""

    exit_code = ExitCode.NOT_FASTER


class RequirementError(GraphpruneError):
    """The pruned model does not meet what `--require` asks for."""

    exit_code = ExitCode.REQUIREMENT


class JobsFailedError(GraphpruneError):
    """Some jobs of a batch failed; the others are done."""

    exit_code = ExitCode.JOBS_FAILED


class LoggingError(GraphpruneError):
    """The work is done and its files are written, but they could not be logged to MLflow."""

    exit_code = ExitCode.NOT_LOGGED


def first_line(error: BaseException) -> str:
    """The first line of what a library says: the rest of it is seldom for users."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
