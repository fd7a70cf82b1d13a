"""What a rank takes, phase by phase and step by step, without a share in it that anyone could notice."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from estimators.outcome import PHASES, STEADY, Phase, merged
from estimators.units import KIB
from runners.cards import CardState, Read
from runners.host import available_memory
from runners.processes import started_ticks

WARM_UP_STEPS = 2
"""Not timed: they make optimizer states, load kernels and fill the allocator's cache."""
BEAT_BYTES = 80


class Beat:
    """One line of fixed length in a file, rewritten at every step: process, start, phase, step.

    Then the last loss, where one is known; and in an evaluation the batches that are done, else the tokens that the
    rank has trained on, padding included, as "t4096".
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._prefix = f"{os.getpid()} {started_ticks(os.getpid())}"

    def at(
        self, phase: str, step: int = 0, loss: float | None = None, batch: int | None = None, tokens: int | None = None
    ) -> None:  # fmt: skip
        words = [self._prefix, phase, str(step)]
        if loss is not None:
            words += [f"{loss:.4g}", *([] if batch is None else [str(batch)])]
        if batch is None and tokens is not None:
            words.append(f"t{tokens}")
        line = " ".join(words)[: BEAT_BYTES - 1].ljust(BEAT_BYTES - 1) + "\n"
        os.pwrite(self._descriptor, line.encode(), 0)


class Meter:
    """The readings of one rank. On a machine without CUDA the figures of the GPU are None."""

    def __init__(self, beat: Beat, *, cuda: bool = False, cards: Read = tuple, pids: Sequence[int] = ()) -> None:
        self.cuda = cuda
        self.step_seconds: list[float] = []
        self.losses: list[float] = []
        self.tokens: Callable[[], int | None] = lambda: None
        """What was trained on so far, padding included, once somebody counts."""
        self.meter_seconds = 0.0
        self.phase_name = "start"
        self._stretches: list[Phase] = []
        self._beat, self._cards = beat, cards
        self._pids = pids or (os.getpid(),)
        self._device_before, self._host_before = self._held_bytes(), available_memory()
        self._began = time.perf_counter()
        self._joules: float | None = None
        self._retries = 0
        beat.at(self.phase_name)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One of each name: a phase that was interrupted, as training is by an evaluation, has several stretches."""
        names = sorted({stretch.name for stretch in self._stretches}, key=PHASES.index)
        return tuple(merged([one for one in self._stretches if one.name == name]) for name in names)

    @property
    def own_device_bytes(self) -> int | None:
        """What the card holds more than before the job."""
        held = self._held_bytes()
        return None if held is None or self._device_before is None else max(held - self._device_before, 0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.begin(name)
        yield
        self.finish()

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Another phase inside the present one, which is not charged with it: neither its time nor its peaks."""
        interrupted = self.phase_name
        self.finish()
        held = self._reserved()
        with self.phase(name):
            yield
        if self._reserved() > held:  # what the allocator keeps of it would count as the interrupted phase's own
            clean_up(self.cuda)
        self.begin(interrupted)

    def begin(self, name: str) -> None:
        self.phase_name = name
        self.synchronize()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        _forget_resident_peak()
        self.beat()
        card = self._card()
        self._joules = card.joules if card else None
        self._retries = self._all_retries()
        self._began = time.perf_counter()

    def finish(self) -> None:
        """Reads everything once; only at the ends of phases, since NVML takes a millisecond."""
        self.synchronize()
        seconds, card = time.perf_counter() - self._began, self._card()
        host = available_memory()
        self._stretches.append(
            Phase(
                name=self.phase_name,
                seconds=seconds,
                **self._torch_figures(),
                process_bytes=self._process_bytes(card),
                device_bytes=self.own_device_bytes,
                resident_bytes=_resident_peak(),
                host_bytes=None if host is None or self._host_before is None else max(self._host_before - host, 0),
                joules=_difference(card.joules if card else None, self._joules),
            )
        )

    def step(self, seconds: float, loss: float | None = None) -> None:
        """An optimizer step is over."""
        self.step_seconds.append(seconds)
        if loss is not None:
            self.losses.append(loss)
        self.beat()

    def beat(self, loss: float | None = None, batch: int | None = None) -> None:
        """A sign of life, with how far the training is, and an evaluation's `loss` and `batch` where it is in one."""
        loss = self.losses[-1] if self.losses else loss
        self._beat.at(self.phase_name, len(self.step_seconds), loss, batch, self.tokens())

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _torch_figures(self) -> dict[str, Any]:
        if not self.cuda:
            return {}
        return {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "allocator_retries": self._all_retries() - self._retries,
        }

    def _reserved(self) -> int:
        return torch.cuda.memory_reserved() if self.cuda else 0

    def _all_retries(self) -> int:
        return int(torch.cuda.memory_stats().get("num_alloc_retries", 0)) if self.cuda else 0

    def _process_bytes(self, card: CardState | None) -> int | None:
        """As the driver shows it. In another namespace our number is not the driver's: an only process is us."""
        processes = card.processes if card else ()
        mine = [process for process in processes if process.pid in self._pids] or processes
        return mine[0].used_bytes if len(mine) == 1 else None

    def _card(self) -> CardState | None:
        states = self._cards()
        return states[0] if states else None

    def _held_bytes(self) -> int | None:
        card = self._card()
        return card.held_bytes if card else None


class StepClock(TrainerCallback):
    """Times every optimizer step between two synchronisations, and turns warm-up into the steady phase.

    `loss` is asked for the step's loss after its time is taken.
    """

    def __init__(self, meter: Meter, warm_up_steps: int, loss: Callable[[], float | None] = lambda: None) -> None:
        self._meter, self._warm_up_steps, self._loss, self._began = meter, warm_up_steps, loss, 0.0

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        self._meter.synchronize()
        self._began = time.perf_counter()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        meter = self._meter
        meter.synchronize()
        seconds, processor = time.perf_counter() - self._began, time.thread_time()
        meter.step(seconds, self._loss())
        meter.meter_seconds += time.thread_time() - processor
        if len(meter.step_seconds) == self._warm_up_steps:
            meter.finish()
            meter.meter_seconds = 0.0
            meter.begin(STEADY)

    def on_train_end(self, *arguments: Any, **named: Any) -> None:
        self._meter.finish()


class Counting:
    """A collator that counts what it hands on, micro-batch by micro-batch: its tokens (real, padded) and its width."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate
        self.counts: list[tuple[int, int]] = []
        self.widths: list[int] = []
        self._padded = [0]
        """Tokens of the first micro-batches, by how many these are."""

    def padded(self, micro_batches: int) -> int:
        """The tokens of the first so many, padding included."""
        return self._padded[min(micro_batches, len(self.counts))]

    def __call__(self, rows: Any) -> Any:
        batch = self._collate(rows)
        padded = int(batch["input_ids"].numel())
        mask = batch.get("attention_mask")
        self.widths.append(int(batch["input_ids"].shape[-1]))
        self.counts.append((padded if mask is None else int(mask.sum()), padded))
        self._padded.append(self._padded[-1] + padded)
        return batch


def clean_up(cuda: bool) -> None:
    """Drops what loading left, as the peaks are counted from after it."""
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else max(after - before, 0.0)


def _forget_resident_peak() -> None:
    """Sets the kernel's peak of our resident memory to what it is now (proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident_peak() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    values = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(values[0]) * KIB if values else None
