"""Copy a file and wait until it is on the disk: what reading and writing a model costs at least.  Start reading at `work`."""

from __future__ import annotations

import os
import shutil

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """Copy, synchronise."""
    with tool.phase("copy"), tool.model.open("rb") as source, tool.output.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 24)
        os.fsync(target.fileno())


if __name__ == "__main__":
    main(work)
