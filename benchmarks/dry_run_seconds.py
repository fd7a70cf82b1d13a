"""How long a dry run takes, by model: imports apart, no cache, the median of five. A 70B is held against a 1B.

Seconds of the processor, so that what else runs on the machine counts little; a dry run uses one core.

    python benchmarks/dry_run_seconds.py

No GPU is needed; torch and the libraries of the `train` extra are.
"""

import statistics
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from estimators.catalogue import find_device
from estimators.models import load_config
from estimators.recipe import Adapter, Recipe

RUNS = 5
LORA = Adapter(method="lora", rank=16, alpha=64, targets=("q_proj", "v_proj"))
LARGE, SMALL = "llama-2-70b", "llama-3.2-1b"
RECIPES = (
    Recipe(model=SMALL, adapter=LORA),
    Recipe(model="llama-7b", adapter=LORA),
    Recipe(model=LARGE, adapter=LORA),
    Recipe(model=SMALL, adapter=LORA, quantization="nf4"),
    Recipe(model=LARGE, adapter=LORA, quantization="nf4"),
    Recipe(model=SMALL, adapter=Adapter(method="full"), weights="float32"),
    Recipe(model="gemma-3-27b", adapter=LORA),
    Recipe(model="qwen3-30b-a3b", adapter=LORA),
)


def main() -> None:
    started = time.perf_counter()
    from runners.dry.trace import dry_run

    device = find_device("h200")
    dry_run(RECIPES[0], load_config(RECIPES[0].model), device)  # imports what is imported at first use
    print(f"imports and the first run: {time.perf_counter() - started:.1f} s")
    found: dict[tuple[str, str], float] = {}
    for recipe in RECIPES:
        config, seconds = load_config(recipe.model), []
        for _ in range(RUNS):
            before = time.process_time()
            trace = dry_run(recipe, config, device)
            seconds.append(time.process_time() - before)
        method = "qlora" if recipe.quantized else recipe.adapter.method
        found[recipe.model, method] = statistics.median(seconds)
        print(f"{recipe.model:16} {method:6} {found[recipe.model, method]:5.2f} s, {trace.layers_traced} blocks, "
              f"{len(trace.events):,} events", flush=True)  # fmt: skip
    for method in ("lora", "qlora"):
        print(f"{LARGE} {method}: {found[LARGE, method] / found[SMALL, method]:.2f} x {SMALL}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
