"""The far end of a place on another machine: job folders come as bytes, run there as they run here, and go back."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from estimators.errors import BadInput, NoUsableGpu
from estimators.outcome import Result
from runners import job
from runners.executors import Ended, Progress
from runners.executors.local import LocalExecutor
from runners.job import Job
from runners.watching import Limits

PREFIX = "plan-jobs-"
LARGEST_FOLDER_BYTES = 64 << 20
"""Of a job as it leaves: what it trains on does not lie in its folder."""
LARGEST_FILE_BYTES = 4 << 20
"""Of what comes back; trained weights stay behind, and of a long log its end comes."""

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """The station's job is over."""

    result: Result | None
    lost: str
    begun: bool
    files: Files


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a station has to say at one moment."""

    step: Progress | None = None
    """With the place and the folder of the station's own."""
    over: Over | None = None
    absent: str = ""
    """Why it can run nothing now."""


class Station:
    """One place of a worker, and one job at a time. Its methods may be called from several threads."""

    def __init__(self, make: Callable[[], LocalExecutor]) -> None:
        self._local = make()
        (self._place,) = (*self._local.places, *self._local.absent)
        clear_up()
        self._root, self._lock = own_folder()
        self._folder: Path | None = None

    def ready(self) -> bool:
        return True

    def warm(self, work: Job) -> None:
        self._local.warm(work)

    def start(self, files: Files, seconds: float) -> Said:
        """Begins a job, and says what `wait` does.

        Raises:
            BadInput: the disk is full, or not ours to write on.
        """
        self._folder = Path(tempfile.mkdtemp(dir=self._root))
        write_files(self._folder, files)
        self._local.start(self._place, self._folder)
        return self.wait(seconds)

    def wait(self, seconds: float) -> Said:
        """What happened since the last call, after waiting up to so long for something."""
        step, over = None, None
        for event in self._local.wait(seconds):
            if isinstance(event, Ended):
                over = Over(result=event.result, lost=event.lost, begun=event.begun, files=self._take())
            else:
                step = event
        return Said(step=step, over=over, absent=self._local.absent.get(self._place, ""))

    def stop(self) -> None:
        self._local.stop(self._place)

    def close(self) -> None:
        self._local.close()
        shutil.rmtree(self._root, ignore_errors=True)
        os.close(self._lock)

    def _take(self) -> Files:
        """The folder's files, for the one who sent it; here nothing stays."""
        if (folder := self._folder) is None:
            return {}
        self._folder = None
        files = small_files(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return files


def own_folder() -> tuple[Path, int]:
    """A new folder for jobs, and what keeps `clear_up` from it for as long as this process lives and has it open."""
    made = Path(tempfile.mkdtemp())
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = made.with_name(f"{PREFIX}{made.name}")
    return made.rename(folder), lock


def clear_up() -> None:
    """What workers that were killed left on this machine goes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else's, or in use
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def on_gpus(count: int, share: bool, warm: bool, limits: Limits) -> LocalExecutor:
    """What runs the jobs of a worker that was given so many GPUs, which are those that it sees.

    Raises:
        NoUsableGpu: it sees others.
    """
    from runners.probe import probe

    gpus = probe().gpus if count else ()
    if len(gpus) != count:
        raise NoUsableGpu(f"Ray gave this worker {count} GPUs, and the driver shows it {len(gpus)}")
    return LocalExecutor(gpus, per_trial=max(count, 1), share=share, warm=warm, limits=limits)


def read_files(folder: Path) -> Files:
    """A job folder as it travels.

    Raises:
        BadInput: it cannot be read, or is too large.
    """
    try:
        paths = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
        if (size := sum(path.stat().st_size for path in paths)) > LARGEST_FOLDER_BYTES:
            raise BadInput(f"{folder}: {size:,} bytes are too many to send to another machine")
        return {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}") from None


def small_files(folder: Path) -> Files:
    """What comes back of a job: results, reports, logs."""
    found = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        if len(data) <= LARGEST_FILE_BYTES or path.name == job.LOG:
            found[path.name] = data[-LARGEST_FILE_BYTES:]
    return found


def write_files(folder: Path, files: Files) -> None:
    """Puts files into a folder, none outside of it.

    Raises:
        BadInput: one has a name that is none, or cannot be written.
    """
    for name, data in files.items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise BadInput(f"{ascii(name)[:60]} is no name of a file")
        try:
            (folder / name).write_bytes(data)
        except OSError as error:
            raise BadInput(f"{folder / name}: {error.strerror}") from None
