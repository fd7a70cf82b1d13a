"""One rank of a job, alone in its process: builds the recipe, trains, and leaves a file with what it took, or why not.

    python -P -m runners.train FOLDER

torch reads the allocator's settings when it is imported, so whoever starts this process has set them.
"""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from estimators.outcome import EVALUATION, FIRST_STEP, LOAD, SAVE, STEADY, RankReport, rank_document
from estimators.process import LIBRARY_BYTES
from runners import cards, job
from runners.data import load_tokenizer, make_rows
from runners.job import Job
from runners.losses import DeviceName
from runners.meter import WARM_UP_STEPS, Beat, Counting, Meter, StepClock, clean_up
from runners.trainers import check_parallelism, make_trainer, training_arguments
from runners.weights import make_model

VISIBLE = "CUDA_VISIBLE_DEVICES"
EVALUATED_BATCHES = 2


def main() -> None:
    """The process: argv[1] is the job's folder."""
    finish(Path(sys.argv[1]))


def finish(folder: Path) -> None:
    """Runs the job and leaves the process, without the interpreter's farewell: a broken CUDA context can hang there."""
    code = run(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(folder: Path) -> int:
    """Runs this rank of the job and leaves its file; 0 where all went well."""
    rank = int(os.environ.get("RANK", "0"))
    beat = Beat(job.beat_path(folder, rank))
    faulthandler.register(signal.SIGUSR1, file=(folder / f"stacks-{rank}.txt").open("w"))
    reached: list[Meter] = []
    try:
        report = rank_document(measure(job.read(folder), folder, beat, reached.append))
    except BaseException as error:
        import traceback

        traceback.print_exc()
        report = failure_document(error, rank, reached[0].phase_name if reached else "start")
    job.write_atomically(job.rank_path(folder, rank), report)
    return 1 if "kind" in report else 0


def failure_document(error: BaseException, rank: int, phase: str) -> dict[str, Any]:
    """What `runners.ends.failure_from` reads."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    return {"rank": rank, "kind": kind, "text": str(error), "phase": phase, "at_seconds": time.monotonic()}


def measure(work: Job, folder: Path, beat: Beat, entered: Callable[[Meter], None]) -> RankReport:
    """What this rank takes to do the job. `entered` gets the meter, which knows the phase when something fails."""
    device, local = _device(), int(os.environ.get("LOCAL_RANK", "0"))
    uuids = _visible_uuids()
    with cards.watch(uuids[local : local + 1]) as read:
        meter = Meter(beat, cuda=device == "cuda", cards=read)
        entered(meter)
        torch.manual_seed(work.seed)
        context, cap = _enter_gpu(work, meter, local, uuids) if device == "cuda" else (None, None)
        with meter.phase(LOAD):
            trainer, counting = _load(work, folder, device, meter)
        loaded = torch.cuda.memory_allocated() if device == "cuda" else None
        meter.begin(FIRST_STEP if _warm_up(work) else STEADY)  # also what the trainer prepares before its first step
        trainer.train()
        _afterwards(work, folder, trainer, meter)
        warm_up = _warm_up(work)
        counts = counting.counts[warm_up * work.recipe.gradient_accumulation :][: _micro_batches(work)]
        return RankReport(
            rank=int(os.environ.get("RANK", "0")),
            device_name=torch.cuda.get_device_name() if device == "cuda" else "cpu",
            device_uuid=uuids[local] if uuids else None,
            loaded_bytes=loaded,
            context_bytes=context,
            cap_bytes=cap,
            phases=tuple(meter.phases),
            step_seconds=tuple(meter.step_seconds),
            warm_up_steps=warm_up,
            steady_tokens=sum(real for real, _ in counts),
            steady_padded_tokens=sum(padded for _, padded in counts),
            meter_seconds=meter.meter_seconds,
        )


def _device() -> DeviceName:
    """The GPU wherever the environment shows one, and the CPU where it hides all, as a CPU's test does."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _visible_uuids() -> list[str]:
    return [name for name in os.environ.get(VISIBLE, "").split(",") if name.startswith(("GPU-", "MIG-"))]


def _warm_up(work: Job) -> int:
    return min(WARM_UP_STEPS, work.steps - 1)


def _micro_batches(work: Job) -> int:
    """Of the steady steps of one rank."""
    return (work.steps - _warm_up(work)) * work.recipe.gradient_accumulation


def _load(work: Job, folder: Path, device: DeviceName, meter: Meter) -> tuple[Any, Counting]:
    arguments = training_arguments(work, folder, device)
    tokenizer = load_tokenizer(work)
    sharded = work.recipe.parallelism.kind == "zero3"  # built shard by shard, from the CPU's memory
    model = make_model(work, "cpu" if sharded else device)
    rows = make_rows(work, model.config.vocab_size, tokenizer)
    trainer: Any = make_trainer(work, arguments, model, rows, tokenizer, StepClock(meter, _warm_up(work)))
    check_parallelism(work.recipe, trainer)
    trainer.data_collator = counting = Counting(trainer.data_collator)
    del model
    clean_up(meter.cuda)
    return trainer, counting


def _afterwards(work: Job, folder: Path, trainer: Any, meter: Meter) -> None:
    """Evaluation and saving, where the job has them."""
    if work.recipe.evaluation_batch:
        with meter.phase(EVALUATION):
            trainer.evaluate(_first(trainer.train_dataset, EVALUATED_BATCHES * work.recipe.evaluation_batch))
    if work.save:
        with meter.phase(SAVE):
            trainer.save_model(str(folder / "trained"))


def _first(rows: Any, count: int) -> Any:
    """Some rows; TRL's trainer wants a table of `datasets` here too."""
    few = range(min(count, len(rows)))
    return rows.select(few) if hasattr(rows, "select") else torch.utils.data.Subset(rows, few)


def _enter_gpu(work: Job, meter: Meter, local: int, uuids: list[str]) -> tuple[int | None, int | None]:
    """Makes the CUDA context on this rank's card and limits torch to what the budget leaves beside it.

    Returns the context's bytes and the limit.
    """
    torch.cuda.set_device(local)
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    properties: Any = torch.cuda.get_device_properties(local)
    _check_card(str(properties.uuid), uuids[local : local + 1])
    _check_allocator(work.recipe.expandable_segments)
    own = meter.own_device_bytes
    context = None if own is None else max(own - torch.cuda.memory_reserved(), 0)
    if work.budget_bytes is None:
        return context, None
    cap = max(work.budget_bytes - (context or 0) - LIBRARY_BYTES, 1)
    torch.cuda.set_per_process_memory_fraction(min(cap / properties.total_memory, 1.0))
    return context, min(cap, properties.total_memory)


def _check_card(found: str, asked: list[str]) -> None:
    """CUDA numbers cards in its own order: what is measured must be the card that was asked for."""
    if asked and asked[0].startswith("GPU-") and found not in asked[0]:
        raise RuntimeError(f"CUDA gave the GPU {found} for {asked[0]}")


def _check_allocator(expandable: bool) -> None:
    snapshot: Any = torch.cuda.memory_snapshot
    found = any(segment["is_expandable"] for segment in snapshot())
    if found != expandable:
        raise RuntimeError(f"expandable_segments is {found} in this process, and the job wants {expandable}")


if __name__ == "__main__":
    main()
