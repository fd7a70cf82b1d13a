"""Runs recipe documents for real on this machine's GPUs and writes what they took, one JSON line each.

    python -P benchmarks/measure_recipes.py RECIPES.jsonl RESULTS.jsonl [--limit-seconds 540]

Weights are random (memory and speed do not depend on their values), data are random tokens, the trainer is the stock
one of the recipe. One process a recipe, so that one's end cannot touch the next; jobs for several GPUs go through
torchrun. Needs the `train` extra. The files under profiles/measurements name the command and versions that made them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The same variable under its old name and its new one."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--limit-seconds", type=float, default=540.0)
    arguments = parser.parse_args()
    started = time.monotonic()
    cases = [json.loads(line) for line in arguments.recipes.read_text().splitlines() if line.strip()]
    spare = None
    for index, case in enumerate(cases):
        if time.monotonic() - started > arguments.limit_seconds:
            print("time is up; skipped", case["name"], flush=True)
            continue
        if needs_launcher(case):
            result = finish(start_child(case, devices_of(case)), case)
        else:
            child = spare or start_child(case)
            spare = next((start_child(later) for later in cases[index + 1 :] if not needs_launcher(later)), None)
            result = finish(child, case)
        with arguments.results.open("a") as out:
            out.write(json.dumps(result) + "\n")
        print(describe(result), f"[{time.monotonic() - started:.0f} s]", flush=True)
    if spare is not None:
        spare.process.kill()


def devices_of(case: dict) -> int:
    return case["recipe"].get("parallelism", {}).get("devices", 1)


def needs_launcher(case: dict) -> bool:
    """Whether the job wants a process group, as several GPUs and DeepSpeed do."""
    kind = case["recipe"].get("parallelism", {}).get("kind", "none")
    return devices_of(case) > 1 or kind.startswith("zero")


@dataclass
class Child:
    process: subprocess.Popen
    folder: str


def environment(case: dict) -> dict[str, str]:
    """The environment of a case's process: torch reads the allocator's settings as it is imported, never later."""
    found = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_SETTINGS}
    if case["recipe"].get("expandable_segments"):
        found |= dict.fromkeys(ALLOCATOR_SETTINGS, "expandable_segments:True")
    return found


def start_child(case: dict, devices: int = 0) -> Child:
    """A process that imports torch and waits for its case, touching no GPU before; with `devices`, a group of them."""
    folder = tempfile.mkdtemp(prefix="measure-")
    command = [sys.executable, "-P", "-W", "ignore"]
    if devices:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    command += [
        str(Path(__file__).resolve().with_name("measure_child.py")),
        json.dumps(case) if devices else "-",
        "result.json",
    ]
    with Path(folder, "log").open("w") as log:
        streams = dict(stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)
        return Child(subprocess.Popen(command, cwd=folder, env=environment(case), **streams), folder)


def finish(child: Child, case: dict) -> dict:
    """The result of one case; a child that dies or hangs is a result too."""
    try:
        child.process.communicate(json.dumps(case) + "\n", timeout=240)
    except subprocess.TimeoutExpired:
        child.process.kill()
        child.process.wait()
    out, log = Path(child.folder, "result.json"), Path(child.folder, "log").read_text()
    result = {"name": case["name"], "recipe": case["recipe"], "outcome": "failed", "evidence": log[-1500:]}
    if out.exists():
        result = json.loads(out.read_text())
    shutil.rmtree(child.folder)
    return result


def describe(result: dict) -> str:
    if result["outcome"] != "ok":
        return f"{result['name']:40s} {result['outcome'].upper()} {result['evidence'][-700:]}"
    rank = result["ranks"][0]
    sizes = " ".join(
        f"{rank[key] / 2**30:7.2f}" for key in ("peak_allocated_bytes", "peak_reserved_bytes", "process_bytes")
    )
    return f"{result['name']:40s} {sizes} GiB  {result['step_seconds'] * 1e3:8.1f} ms"


if __name__ == "__main__":
    main()
