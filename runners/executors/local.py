"""Jobs on this machine, side by side: a place is one GPU, the GPUs of one trial, or the CPU, and has its own thread."""

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from estimators.errors import BadInput, NoUsableGpu
from estimators.hardware import Gpu
from estimators.outcome import End, Outcome, Result
from runners import cards, ends, launch
from runners.cards import OccupiedGpu, Watch
from runners.executors import Ended, Event, latest, progress_of
from runners.job import Job
from runners.launch import Bench
from runners.watching import Limits

LOOK_AGAIN_SECONDS = 10.0
"""Between two looks at a GPU that somebody else is on."""
CPU = "CPU"


class LocalExecutor:
    """Runs jobs side by side on the GPUs of this machine, each on its own `per_trial` GPUs; without GPUs, on the CPU.

    Between jobs a place keeps its bench, and with it a process that has everything imported.
    """

    def __init__(
        self, gpus: Sequence[Gpu], *, per_trial: int = 1, share: bool = False, warm: bool = True,
        limits: Limits | None = None, watch: Watch = cards.watch, child: Callable[[Path], list[str]] | None = None,
        look_again_seconds: float = LOOK_AGAIN_SECONDS,
    ) -> None:  # fmt: skip
        """
        Args:
            child: the command of one rank instead of ours, in tests; then nothing is warm.

        Raises:
            NoUsableGpu: there are fewer GPUs than one trial takes.
        """
        self._told: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._warm, inherited = warm and child is None, dict(os.environ)
        self._places = {
            name: _Place(
                name,
                partial(launch.open_bench, group, share=share, warm=self._warm, watch=watch, inherited=inherited),
                limits or Limits(), child, look_again_seconds, self._told.put,
            )
            for name, group in groups(gpus, per_trial).items()
        }  # fmt: skip

    @property
    def places(self) -> Sequence[str]:
        return [name for name, place in self._places.items() if not place.absent]

    @property
    def absent(self) -> Mapping[str, str]:
        return {name: why for name, place in self._places.items() if (why := place.absent)}

    def warm(self, work: Job) -> None:
        for place in self._places.values() if self._warm else ():
            place.warm(work)

    def start(self, place: str, folder: Path) -> None:
        if place not in self._places:
            raise ValueError(f"there is no place {place!r}")
        self._places[place].start(folder)

    def wait(self, seconds: float) -> Sequence[Event]:
        events: list[Event] = []
        try:
            events.append(self._told.get(timeout=max(seconds, 0.0)))
            while True:
                events.append(self._told.get_nowait())
        except queue.Empty:
            return latest(events)

    def stop(self, place: str) -> None:
        self._places[place].stop()

    def close(self) -> None:
        for place in self._places.values():
            place.close()
        for place in self._places.values():
            place.join()


def groups(gpus: Sequence[Gpu], per_trial: int) -> dict[str, tuple[Gpu, ...]]:
    """The GPUs of each place, by its name. GPUs that are too few for one more trial stay idle.

    Raises:
        NoUsableGpu: there are fewer than one trial takes.
    """
    if not gpus:
        return {CPU: ()}
    if not 1 <= per_trial <= len(gpus):
        raise NoUsableGpu(f"a trial takes {per_trial} GPUs, and there are {len(gpus)}")
    found: dict[str, tuple[Gpu, ...]] = {}
    for first in range(0, len(gpus) - per_trial + 1, per_trial):
        group = tuple(gpus[first : first + per_trial])
        numbers = [first + place if gpu.index is None else gpu.index for place, gpu in enumerate(group)]
        name = place_name(numbers)
        found[name if name not in found else f"{name} ({group[0].uuid})"] = group
    return found


def place_name(numbers: Sequence[int]) -> str:
    """ "GPU 0", "GPUs 0-3", "GPUs 0,2"; "CPU" where there are none."""
    if not numbers:
        return CPU
    if len(numbers) == 1:
        return f"GPU {numbers[0]}"
    first, last = numbers[0], numbers[-1]
    together = list(numbers) == list(range(first, last + 1))
    return f"GPUs {first}-{last}" if together else f"GPUs {','.join(map(str, numbers))}"


class _Place:
    """A thread that runs one job after the other."""

    def __init__(
        self, name: str, open_bench: Callable[[], AbstractContextManager[Bench]], limits: Limits,
        child: Callable[[Path], list[str]] | None, look_again_seconds: float, tell: Callable[[Event], None],
    ) -> None:  # fmt: skip
        self.name, self._open, self._limits, self._child = name, open_bench, limits, child
        self._look_again_seconds, self._tell = look_again_seconds, tell
        self.absent = ""
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._cancel: threading.Event | None = None
        """Of the job that it has; None: it is free."""
        self._orders: queue.SimpleQueue[Path | Job | None] = queue.SimpleQueue()
        """Jobs to run, by their folders, and jobs to be ready for; None: there are no more."""
        # A daemon: where our process ends without closing, the guards end the jobs.
        self._thread = threading.Thread(target=self._serve, name=f"jobs of {name}", daemon=True)
        self._thread.start()

    def warm(self, work: Job) -> None:
        self._orders.put(work)

    def start(self, folder: Path) -> None:
        with self._lock:
            if self._closed.is_set() or self._cancel is not None or self.absent:
                why = self.absent or ("the executor is closed" if self._closed.is_set() else "it runs a job")
                raise ValueError(f"{self.name} is not free: {why}")
            self._cancel = threading.Event()
        self._orders.put(folder)

    def stop(self) -> None:
        with self._lock:
            if self._cancel is not None:
                self._cancel.set()

    def close(self) -> None:
        self._closed.set()
        self.stop()
        self._orders.put(None)

    def join(self) -> None:
        self._thread.join()

    def _serve(self) -> None:
        order = self._orders.get()
        while order is not None and not self._serve_on_a_bench(order):
            order = self._orders.get()

    def _serve_on_a_bench(self, order: Path | Job | None) -> bool:
        """Runs jobs until there are no more, or the GPUs cannot be used; whether the place is done for good."""
        try:
            with self._open() as bench:
                if self._child is not None:
                    bench.child = self._child
                while order is not None:
                    if isinstance(order, Job):
                        bench.refill(order)
                    elif self._run(order, bench):
                        return True
                    order = self._orders.get()
                return True
        except Exception as error:
            if isinstance(order, Job):  # what keeps us from being ready is told by the job that meets it
                return False
            return self._refused(order, error)

    def _refused(self, folder: Path | None, error: Exception) -> bool:
        """The job did not begin: somebody is on the GPUs, the driver does not know one any more, or something that
        nobody thought of. Whether the place is done for good."""
        why = ends.one_line(str(error) or type(error).__name__)
        self._end(folder, None, lost=why, absent=why, begun=False)
        return not isinstance(error, OccupiedGpu) or self._gone_until_free()

    def _run(self, folder: Path, bench: Bench) -> bool:
        """Whether the GPU was lost with it.

        Raises:
            OccupiedGpu: somebody is on the GPUs.
        """
        cancel = self._cancel
        try:
            result = launch.run(
                folder, bench, limits=self._limits, cancel=cancel,
                see=lambda seen: self._tell(progress_of(self.name, folder, seen)),
            )  # fmt: skip
        except OccupiedGpu:
            raise
        except BadInput as error:
            result = _failed(str(error))
        except Exception as error:  # of ours: the job has failed, and the sweep hears of it
            result = _failed(f"{type(error).__name__}: {error}")
        if result.end.gpu_fault:
            self._end(folder, None, lost=result.end.evidence, absent=result.end.evidence)
            return True
        self._end(folder, result)
        return False

    def _end(
        self, folder: Path | None, result: Result | None, *, lost: str = "", absent: str = "", begun: bool = True
    ) -> None:  # fmt: skip
        """The place is free, or absent, before anybody hears of it."""
        with self._lock:
            self._cancel, self.absent = None, absent
        if folder is not None:
            self._tell(Ended(place=self.name, folder=folder, result=result, lost=lost, begun=begun))

    def _gone_until_free(self) -> bool:
        """Looks at the GPUs again and again; whether the place is done for good meanwhile."""
        while not self._closed.wait(self._look_again_seconds):
            try:
                with self._open():
                    self._end(None, None)
                    return False
            except OccupiedGpu as error:
                self._end(None, None, absent=str(error))
            except Exception as error:
                self._end(None, None, absent=ends.one_line(str(error) or type(error).__name__))
                return True
        return True


def _failed(evidence: str) -> Result:
    """Of a job that did not begin."""
    return Result(end=End(outcome=Outcome.FAILED, evidence=ends.one_line(evidence)), seconds=0.0)
