"""What the checks of all tools have in common: every folder that holds the tool's file, and how many were accepted."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def main(tool: str, file: str, check: Callable[[Path], None]) -> int:
    """The exit code: 1 if any folder below argv[1] is refused, or there is none."""
    bad = 0
    folders = [path.parent.resolve() for path in sorted(Path(sys.argv[1]).glob(f"*/{file}"))]
    for folder in folders:
        try:
            check(folder)
        except Exception:
            bad += 1
            print(f"{folder.name}\n{traceback.format_exc(limit=2)}")
    print(f"{tool}: {len(folders) - bad} of {len(folders)} accepted")
    return 1 if bad or not folders else 0
