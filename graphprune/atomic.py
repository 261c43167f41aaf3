"""Files that appear whole or not at all.  Start reading at `atomic_file`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .archives import check_regular
from .errors import UsageError
from .limits import paused


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path` that replaces it on success and vanishes otherwise; links are followed.

    Raises UsageError where it cannot be written, or is no regular file.
    """
    check_regular(path, UsageError)
    path = path.resolve()
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise UsageError(f"{path}: cannot write there: {error.strerror}") from error
    temporary = Path(name)
    try:
        with paused():
            yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot write there: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
