"""How long a plan takes, against importing rich, and how many recipes a second the formulas price.

    python benchmarks/latency.py

Run it in the environment that `plan` is installed in. Nothing is cached between the processes but what Python caches.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RUNS = 15
BASELINE = [sys.executable, "-c", "import rich.console, rich.table"]
SCRIPT = Path(sys.executable).with_name("plan")
PLAN = [
    *([str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "planner"]),
    "--gpus",
    "1xrtx-4090",
    "--fast",
    "--model",
]


def wall_seconds(command: list[str]) -> float:
    """The median wall time of a command."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def recipes_per_second() -> tuple[int, float]:
    """Price every recipe of four plans, one after the other, from cold caches."""
    from estimators.catalogue import find_device
    from estimators.hardware import Host
    from estimators.models import load_model
    from planner.choose import price_all
    from planner.cluster import hypothetical_cluster
    from planner.goal import Goal
    from planner.rules import load_rules

    rules, host, count = load_rules(), Host(memory_bytes=1 << 40), 0
    models = [(name, load_model(name)) for name in ("llama-7b", "llama-3.2-1b", "qwen2.5-14b", "llama-2-70b")]
    machines = [hypothetical_cluster([find_device("h200")] * number, 1, host, None) for number in (1, 8)]
    started = time.perf_counter()
    for name, model in models:
        for machine in machines:
            goal = Goal(model=name, methods=("full", "lora", "qlora", "dora", "int8"), global_batch=64)
            count += len(price_all(goal, model, machine, rules)[0])
    return count, time.perf_counter() - started


def main() -> None:
    base = wall_seconds(BASELINE)
    print(f"import rich.console, rich.table        {base * 1e3:7.1f} ms")
    for model in ("llama-3.2-1b", "llama-7b", "llama-2-70b"):
        seconds = wall_seconds([*PLAN, model])
        print(f"plan --model {model:14s} 1xrtx-4090   {seconds * 1e3:7.1f} ms   {seconds / base:.2f} x")
    count, seconds = recipes_per_second()
    print(f"{count} recipes priced in {seconds:.2f} s: {count / seconds:,.0f} a second")


if __name__ == "__main__":
    main()
