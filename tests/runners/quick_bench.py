"""Stands in for the process of the microbenchmarks: leaves one figure, then does what the environment says."""

import json
import os
import sys
import time
from pathlib import Path

FIGURE = {"copy": 3e12}


def main() -> None:
    path = Path(sys.argv[1]) / "found.json"
    document = {"figures": FIGURE if os.environ.get("QUICK") != "nothing" else {}, "missing": {}, "now": "copies"}
    path.write_text(json.dumps(document))
    if os.environ.get("QUICK") == "hangs":
        time.sleep(600)
    if os.environ.get("QUICK") in ("dies", "nothing"):
        raise RuntimeError("the card fell off the bus")
