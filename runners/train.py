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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from estimators.learning import Learning
from estimators.outcome import EVALUATION, FIRST_STEP, LOAD, SAVE, STEADY, RankReport, rank_document
from estimators.process import LIBRARY_BYTES
from runners import cards, job
from runners.data import held_out_rows, load_tokenizer, make_rows
from runners.environment import CARDS
from runners.job import Job
from runners.learning import HeldOut, StepLosses
from runners.losses import DeviceName
from runners.meter import WARM_UP_STEPS, Beat, Counting, Meter, StepClock, clean_up
from runners.metric import Metric, load_metric, score
from runners.trainers import check_parallelism, make_padding, make_trainer, training_arguments
from runners.weights import make_model

EVALUATED_BATCHES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A job that is ready to train."""

    trainer: Any
    tokenizer: Any
    counting: Counting
    dropped: int
    held_out: HeldOut | None
    metric: Metric | None


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
    uuids = _cards()
    with cards.watch(uuids[local : local + 1]) as read:
        meter = Meter(beat, cuda=device == "cuda", cards=read)
        entered(meter)
        torch.manual_seed(work.seed)
        context, cap = _enter_gpu(work, meter, local, uuids) if device == "cuda" else (None, None)
        with meter.phase(LOAD):
            ready = _load(work, folder, device, meter)
        loaded = torch.cuda.memory_allocated() if device == "cuda" else None
        meter.begin(FIRST_STEP if _warm_up(work) else STEADY)  # also what the trainer prepares before its first step
        ready.trainer.train()
        scored = _afterwards(work, folder, ready, meter)
        warm_up, micro_batches = _warm_up(work), _micro_batches(work, meter)
        taken, widths = ready.counting.counts[:micro_batches], ready.counting.widths[:micro_batches]
        steady = taken[warm_up * work.recipe.gradient_accumulation :]
        return RankReport(
            rank=int(os.environ.get("RANK", "0")),
            device_name=torch.cuda.get_device_name() if device == "cuda" else "cpu",
            device_uuid=uuids[local] if uuids else None,
            loaded_bytes=loaded,
            context_bytes=context,
            cap_bytes=cap,
            phases=meter.phases,
            step_seconds=tuple(meter.step_seconds),
            warm_up_steps=warm_up,
            steady_tokens=sum(real for real, _ in steady),
            steady_padded_tokens=sum(padded for _, padded in steady),
            widths=(min(widths), max(widths)) if widths else (),
            meter_seconds=meter.meter_seconds,
            learning=_learning(ready, meter, sum(real for real, _ in taken), scored),
        )


def _device() -> DeviceName:
    """The GPU wherever the environment shows one, and the CPU where it hides all, as a CPU's test does."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _cards() -> list[str]:
    return [name for name in os.environ.get(CARDS, "").split(",") if name]


def _warm_up(work: Job) -> int:
    return min(WARM_UP_STEPS, work.steps - 1)


def _micro_batches(work: Job, meter: Meter) -> int:
    """That one rank trained on; one more may have been fetched, and impatience may have ended the job early."""
    return len(meter.step_seconds) * work.recipe.gradient_accumulation


def _learning(ready: Loaded, meter: Meter, tokens: int, scored: float | None) -> Learning:
    held_out = ready.held_out
    return Learning(
        losses=tuple(meter.losses),
        evaluated=tuple(held_out.evaluated) if held_out else (),
        tokens=tokens,
        dropped=ready.dropped,
        stopped_at=held_out.stopped_at if held_out else None,
        score=scored,
    )


def _load(work: Job, folder: Path, device: DeviceName, meter: Meter) -> Loaded:
    metric = load_metric(work)
    arguments = training_arguments(work, folder, device)
    tokenizer = load_tokenizer(work)
    sharded = work.recipe.parallelism.kind == "zero3"  # built shard by shard, from the CPU's memory
    model = make_model(work, "cpu" if sharded else device)
    rows = make_rows(work, model.config.vocab_size, tokenizer)
    losses, held_out = StepLosses(), _held_out(work, tokenizer, meter)
    callbacks = [StepClock(meter, _warm_up(work), losses.take), *([held_out] if held_out else [])]
    trainer: Any = make_trainer(work, arguments, model, rows, tokenizer, callbacks)
    losses.listen(trainer)
    check_parallelism(work.recipe, trainer)
    trainer.data_collator = counting = Counting(trainer.data_collator)
    meter.tokens = lambda: counting.padded(_micro_batches(work, meter))
    dropped = rows.dropped
    del model
    clean_up(meter.cuda)
    return Loaded(
        trainer=trainer, tokenizer=tokenizer, counting=counting, dropped=dropped, held_out=held_out, metric=metric
    )


def _held_out(work: Job, tokenizer: Any, meter: Meter) -> HeldOut | None:
    rows = held_out_rows(work, tokenizer)
    if not rows:
        return None
    batch = _evaluation_batch(work)
    return HeldOut(training=work.training, rows=rows, collate=make_padding(tokenizer), batch=batch, meter=meter)


def _evaluation_batch(work: Job) -> int:
    return work.recipe.evaluation_batch or work.recipe.micro_batch


def _afterwards(work: Job, folder: Path, ready: Loaded, meter: Meter) -> float | None:
    """Evaluation and saving, where the job has them; the score of the user's own metric."""
    trainer, scored = ready.trainer, None
    if work.recipe.evaluation_batch and ready.held_out is None:
        with meter.phase(EVALUATION):
            trainer.evaluate(_first(trainer.train_dataset, EVALUATED_BATCHES * work.recipe.evaluation_batch))
    if ready.metric is not None and int(os.environ.get("RANK", "0")) == 0:
        with meter.phase(EVALUATION):
            batch, beat = _evaluation_batch(work), lambda number: meter.beat(batch=number)
            scored = score(ready.metric, work, trainer.model, ready.tokenizer, batch, beat)
    if work.save:
        with meter.phase(SAVE):
            trainer.save_model(str(folder / "trained"))
    return scored


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
