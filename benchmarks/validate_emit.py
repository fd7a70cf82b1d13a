"""Holds the files of `plan --emit` to the parsers of tools that cannot live in one environment.

    python benchmarks/validate_emit.py [TOOL …] [--environments DIR]

Each tool gets a virtual environment (made once; axolotl's takes 3 GB), every recipe of tests/planner/emit_cases.py that
it can express is written, and tests/emit_environments/check_TOOL.py reads all of them there. Exits 1 if any is refused.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from estimators.errors import BadInput
from planner.emit.checked import CHECKED
from planner.emit.tools import write_for
from tests.planner import emit_cases

PACKAGES = {
    "axolotl": (f"torch=={CHECKED['torch']}", f"axolotl=={CHECKED['axolotl']}"),
    "llamafactory": (f"torch=={CHECKED['torch']}", f"llamafactory=={CHECKED['llamafactory']}"),
    "skypilot": (f"skypilot=={CHECKED['skypilot']}",),
    "unsloth": ("--no-deps", f"unsloth=={CHECKED['unsloth']}"),
}
"""As pip takes them."""
UNWANTED = {"llamafactory": ("torchvision", "torchaudio")}
"""Their CUDA builds cannot be imported beside a torch for the CPU."""


def environment(tool: str, folder: Path) -> Path:
    """The tool's Python; installs it the first time."""
    place = folder / tool
    python, done = place / "bin" / "python", place / "installed"
    if not done.exists():
        print(f"installing {tool} into {place} …", flush=True)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[tool]], check=True)
        if tool in UNWANTED:
            subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", *UNWANTED[tool]], check=True)
        done.touch()
    return python


def write_all(tool: str, folder: Path) -> int:
    """Writes what the tool can express of every case, a folder each; returns how many."""
    number = 0
    for order in emit_cases.orders():
        try:
            files = write_for(order, [tool]).files
        except BadInput:
            continue
        number += 1
        place = folder / f"{number:03}-{emit_cases.name_of(order.recipe)}"
        place.mkdir(parents=True)
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
    return number


def validate(tool: str, environments: Path) -> bool:
    python = environment(tool, environments)
    script = ROOT / "tests" / "emit_environments" / f"check_{tool}.py"
    with tempfile.TemporaryDirectory() as folder:
        print(f"{tool}: {write_all(tool, Path(folder))} written", flush=True)
        quiet = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "AXOLOTL_DO_NOT_TRACK": "1"}
        beside = {"PYTHONPATH": str(script.parent)}  # what the checks share
        done = subprocess.run(
            [str(python), "-P", str(script), folder], env={**os.environ, **quiet, **beside}, check=False
        )
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", default=list(PACKAGES), metavar="TOOL")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "plan" / "emit_environments")
    asked = parser.parse_args()
    asked.environments.mkdir(parents=True, exist_ok=True)
    results = [validate(tool, asked.environments.resolve()) for tool in asked.tools]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
