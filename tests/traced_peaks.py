"""The dry run's peaks of the drawn recipes, kept in a file: tracing all of them takes minutes. To trace them again:

python -m tests.traced_peaks
"""

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from tests.recipes_drawn import DEVICE, Drawn, drawn_recipes

FILE = Path(__file__).parent / "fixtures" / "two_estimators.jsonl"
COUNT = 500
SHALLOW, DEEP = 2, 4
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate", "liger-kernel")


def traced(drawn: Drawn) -> tuple[int, int]:
    """Bytes allocated at the peak with few and with more layers."""
    from runners.dry.trace import dry_run

    peaks = (dry_run(drawn.recipe, drawn.config(depth), DEVICE).peak_allocated_bytes for depth in (SHALLOW, DEEP))
    shallow, deep = peaks
    return shallow, deep


def recorded() -> dict[str, tuple[int, int]]:
    """What the file holds, by the recipe's text."""
    _, *lines = FILE.read_text().splitlines()
    rows = (json.loads(line) for line in lines)
    return {row["recipe"]: (row["shallow_bytes"], row["deep_bytes"]) for row in rows}


def main() -> None:
    warnings.simplefilter("ignore")
    lines = [json.dumps({"versions": {name: version(name) for name in LIBRARIES}})]
    for number, drawn in enumerate(drawn_recipes(COUNT), 1):
        shallow, deep = traced(drawn)
        lines.append(json.dumps({"recipe": str(drawn), "shallow_bytes": shallow, "deep_bytes": deep}))
        print(f"\r{number} of {COUNT}", end="", file=sys.stderr, flush=True)
    FILE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
