"""Runs recipe documents for real on this machine's GPUs and writes what they took, one JSON line each.

    python -P benchmarks/measure_recipes.py RECIPES.jsonl RESULTS.jsonl [--limit-seconds 540]

Weights are random (memory and speed do not depend on their values), data are random tokens, the trainer is the stock
one of the recipe. One process a recipe, so that one's end cannot touch the next; jobs for several GPUs go through
torchrun. Needs the `train` extra. The files under profiles/measurements name the command and versions that made them.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--limit-seconds", type=float, default=540.0)
    arguments = parser.parse_args()
    started = time.monotonic()
    cases = [json.loads(line) for line in arguments.recipes.read_text().splitlines() if line.strip()]
    spare = start_child()
    for case in cases:
        if time.monotonic() - started > arguments.limit_seconds:
            print("time is up; skipped", case["name"], flush=True)
            continue
        if needs_launcher(case):
            result = finish(start_child(devices_of(case), case), case)
        else:
            child, spare = spare, start_child()
            result = finish(child, case)
        with arguments.results.open("a") as out:
            out.write(json.dumps(result) + "\n")
        print(describe(result), f"[{time.monotonic() - started:.0f} s]", flush=True)
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


def start_child(devices: int = 1, case: dict | None = None) -> Child:
    """A process that imports torch and waits for its case, touching no GPU before; with a case, a group of them."""
    folder = tempfile.mkdtemp(prefix="measure-")
    command = [sys.executable, "-P", "-W", "ignore"]
    if case is not None:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    command += [
        str(Path(__file__).resolve().with_name("measure_child.py")),
        json.dumps(case) if case else "-",
        "result.json",
    ]
    with Path(folder, "log").open("w") as log:
        return Child(
            subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True), folder
        )


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
