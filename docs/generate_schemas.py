"""Write the JSON Schemas of configurations, jobs and plans (docs/schemas); with --check only compare.

Start reading at `main`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from graphprune.configuration_commands import KINDS, schema_of

FOLDER = Path(__file__).resolve().parent / "schemas"


def main() -> None:
    """Write every schema; exit code 1 where --check finds one that is not fresh."""
    for kind in KINDS:
        path, text = FOLDER / f"{kind}.json", json.dumps(schema_of(kind), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is not fresh: python docs/generate_schemas.py")


if __name__ == "__main__":
    main()
