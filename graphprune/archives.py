"""Files that hold others: archives are checked before anything unpacks them, and only regular files are read.

Start reading at `check_archive`.
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

from .errors import GraphpruneError, InvalidModelError
from .limits import check_memory


def check_regular(path: Path, error: type[GraphpruneError]) -> None:
    """Refuse pipes, which may never end, and devices, which have no size.  Raises `error`."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # whoever opens it says so
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise error(f"{path}: not a regular file")


def check_archive(path: Path) -> None:
    """Refuse a zip file that unpacks to much more than it is, or out of its folder.  Raises InvalidModelError.

    What is no zip file passes: whoever reads it says so.
    """
    import zipfile  # with its compressors: most commands read no archive

    check_regular(path, InvalidModelError)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return
    check_memory(sum(entry.file_size for entry in entries), path.stat().st_size, f"{path}: what is packed in it")
    for entry in entries:
        name = PurePosixPath(entry.filename)
        if name.is_absolute() or ".." in name.parts:
            raise InvalidModelError(f"{path}: {entry.filename!r} in it leads out of the folder that it is unpacked to")
