"""How long a dry run takes, by model: imports apart, no cache, the median of five.

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
RECIPES = (
    Recipe(model="llama-3.2-1b", adapter=LORA),
    Recipe(model="llama-7b", adapter=LORA),
    Recipe(model="llama-2-70b", adapter=LORA),
    Recipe(model="llama-3.2-1b", adapter=LORA, quantization="nf4"),
    Recipe(model="llama-2-70b", adapter=LORA, quantization="nf4"),
    Recipe(model="llama-3.2-1b", adapter=Adapter(method="full"), weights="float32"),
    Recipe(model="gemma-3-27b", adapter=LORA),
    Recipe(model="qwen3-30b-a3b", adapter=LORA),
)


def main() -> None:
    started = time.perf_counter()
    from runners.dry.trace import dry_run

    device = find_device("h200")
    dry_run(RECIPES[0], load_config(RECIPES[0].model), device)  # imports what is imported at first use
    print(f"imports and the first run: {time.perf_counter() - started:.1f} s")
    for recipe in RECIPES:
        config = load_config(recipe.model)
        traces = [dry_run(recipe, config, device) for _ in range(RUNS)]
        seconds = statistics.median(trace.seconds for trace in traces)
        method = "qlora" if recipe.quantized else recipe.adapter.method
        print(f"{recipe.model:16} {method:6} {seconds:5.2f} s, {traces[0].layers_traced} blocks, "
              f"{len(traces[0].events):,} events", flush=True)  # fmt: skip


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
