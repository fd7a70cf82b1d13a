"""Jobs so small that a CPU does them at once, and stand-ins for their child that end in every way."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from estimators.catalogue import find_device
from estimators.hardware import Gpu
from estimators.outcome import Result
from estimators.recipe import Adapter, Parallelism, Recipe
from estimators.units import GIB
from runners import job, launch
from runners.job import Job
from runners.watching import Limits

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}  # fmt: skip
QUICK = Limits(total_seconds=30, silent_seconds=20, step_seconds=20, settle_seconds=0.3)
CARD = "GPU-1111-aaaa"
LORA = Adapter(method="lora", rank=4, alpha=16, targets=("q_proj", "v_proj"))

STAND_IN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(os.environ.get("RANK", "0"))

def beat(phase, step):
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    (folder / f"beat-{rank}").write_text(f"{os.getpid()} {ticks} {phase} {step}")

def leave(document):
    (folder / f"rank-{rank}.json").write_text(json.dumps(document))

def fail(kind, text, at=None):
    now = time.monotonic() if at is None else at
    leave({"rank": rank, "kind": kind, "text": text, "phase": "steady", "at_seconds": now})
    sys.exit(1)

GOOD = {"rank": rank, "device_name": "cpu", "device_uuid": None, "loaded_bytes": None, "context_bytes": None,
        "cap_bytes": None, "step_seconds": [0.5, 0.2, 0.1, 0.1], "warm_up_steps": 2, "steady_tokens": 96,
        "steady_padded_tokens": 128, "meter_seconds": 0.0, "phases": []}
"""


def recipe(**changes: Any) -> Recipe:
    """A LoRA of two tiny layers in float32."""
    plain: dict[str, Any] = {
        "model": "tiny", "adapter": LORA, "weights": "float32", "compute": "float32", "optimizer": "adamw_torch",
        "micro_batch": 2, "sequence_length": 32,
    }  # fmt: skip
    return Recipe(**(plain | changes))


def make(folder: Path, changes: dict[str, Any] | None = None, **fields: Any) -> Path:
    """A job folder; `changes` are the recipe's, the rest the job's."""
    return job.create(folder, Job(recipe=recipe(**(changes or {})), **{"config": CONFIG, **fields}))


def stand_in(script: str) -> Any:
    """The command of a child that does what `script` says, as a bench wants it."""
    return lambda folder: [sys.executable, "-c", STAND_IN + script, str(folder)]


def run_stand_in(
    folder: Path, script: str, *, limits: Limits = QUICK, ranks: int = 1, bench: launch.Bench | None = None
) -> Result:
    """What becomes of a job whose child does what `script` says."""
    parallel = {"parallelism": Parallelism(kind="ddp", devices=ranks)} if ranks > 1 else {}
    make(folder, parallel)
    if bench is not None:
        return launch.run(folder, replace(bench, child=stand_in(script)), limits=limits)
    with launch.open_bench(()) as own:
        return launch.run(folder, replace(own, child=stand_in(script)), limits=limits)


def gpu() -> Gpu:
    """A card that nobody has plugged in."""
    return Gpu(device=find_device("h200"), total_bytes=140 * GIB, uuid=CARD)
