"""Jobs on the machines of a Ray cluster: one placement group of whole GPUs a place, and one worker on each.

The driver keeps the job folders and asks the workers; nothing is run twice by itself. Weights and data are read from
the same paths on every machine, which have the same version of this package installed.
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from estimators.errors import BadInput, NoUsableGpu
from estimators.outcome import End, Outcome, Result
from runners import ends
from runners.executors import Ended, Event, latest
from runners.executors.local import LocalExecutor, place_name
from runners.executors.station import Said, Station, on_gpus, read_files, write_files
from runners.job import Job
from runners.watching import Limits

OLDEST = (2, 52)
"""Older ones run whatever a web page in a browser of the machine asks for (CVE-2025-62593), and know no token."""
PLACES_SECONDS, CLOSING_SECONDS = 120.0, 60.0
ASKING_SECONDS = 1.0
"""A worker that has nothing to say answers after so long."""
TOKEN_BYTES = 32
MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""A cluster of one machine talks over 127.0.0.1 with this; without it Ray takes the machine's address in the network,
whatever `_node_ip_address` says (ray 2.60, services.resolve_ip_for_localhost)."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OUT_OF_MEMORY = "running low on memory"
"""Ray ends a worker, and so its job, when the machine's memory is nearly full (ray 2.60, memory_monitor)."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(slots=True, kw_only=True)
class _Place:
    """Our end of a place."""

    name: str
    group: Any
    worker: Any
    pending: Any
    """Its answer to the latest question; None: it was asked nothing."""
    folder: Path | None = None
    began: float = 0.0
    absent: str = "its worker has not started yet"
    started: bool = False


class RayExecutor:
    """Runs jobs on the whole GPUs of a Ray cluster; on one without GPUs, one job a machine on its CPU."""

    def __init__(
        self, address: str | None = None, *, per_trial: int = 1, share: bool = False, warm: bool = True,
        limits: Limits | None = None, make: Callable[[int], LocalExecutor] | None = None,
        places_seconds: float = PLACES_SECONDS,
    ) -> None:  # fmt: skip
        """
        Args:
            address: of a cluster, as HOST:PORT or "auto"; None: one of this machine alone, for as long as we live.
            make: what runs the jobs of a worker with so many GPUs, in tests.

        Raises:
            BadInput: Ray is missing, too old, or told to let everybody in; or the cluster cannot be reached.
            NoUsableGpu: the cluster has no place for a trial.
        """
        self._ray, self._ours = connect(address)
        self._make = make or partial(on_gpus, share=share, warm=warm, limits=limits or Limits())
        self._per_trial, self._closed = per_trial, False
        self._places: dict[str, _Place] = {}
        try:
            self._open(places_seconds)
        except BaseException:
            self.close()
            raise

    @property
    def places(self) -> Sequence[str]:
        return [name for name, place in self._places.items() if not place.absent]

    @property
    def absent(self) -> Mapping[str, str]:
        return {name: place.absent for name, place in self._places.items() if place.absent}

    def warm(self, work: Job) -> None:
        for worker in [place.worker for place in self._places.values() if place.started]:
            worker.warm.remote(work)

    def start(self, place: str, folder: Path) -> None:
        if place not in self._places:
            raise ValueError(f"there is no place {place!r}")
        one = self._places[place]
        if self._closed or one.folder is not None or one.absent:
            raise ValueError(f"{place} is not free: {one.absent or ('closed' if self._closed else 'it runs a job')}")
        files = read_files(folder)
        one.began = time.monotonic()
        one.folder, one.pending = folder, one.worker.start.remote(files, ASKING_SECONDS)

    def wait(self, seconds: float) -> Sequence[Event]:
        events: list[Event] = []
        until = time.monotonic() + seconds
        while True:
            left = max(until - time.monotonic(), 0.0)
            asked = {place.pending: place for place in self._places.values() if place.pending is not None}
            if self._closed:
                return []
            if not asked:
                time.sleep(left)
                return events
            self._ray.wait(list(asked), timeout=left)
            answered, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
            for reference in answered:
                events += self._hear(asked[reference], reference)
            if events or time.monotonic() >= until:
                return latest(events)

    def stop(self, place: str) -> None:
        if self._places[place].folder is not None:
            self._places[place].worker.stop.remote()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        from ray.util.placement_group import remove_placement_group

        with suppress(self._ray.exceptions.RayError):  # where the cluster is gone its workers are, and their jobs
            closing = [place.worker.close.remote() for place in self._places.values() if place.started]
            if closing:
                self._ray.wait(closing, num_returns=len(closing), timeout=CLOSING_SECONDS)
        for place in self._places.values():
            with suppress(Exception):
                self._ray.kill(place.worker)
                remove_placement_group(place.group)
        if self._ours:
            self._ray.shutdown()

    def _open(self, seconds: float) -> None:
        """Takes whole GPUs, wherever they are free, and puts a worker on each place."""
        until = time.monotonic() + seconds
        slots = list(self._slots())
        if not slots:
            raise NoUsableGpu(f"no machine of the Ray cluster has {self._per_trial} GPUs for a trial")
        several = len({host for host, _, _ in slots}) > 1
        for host, bundle, number in slots:
            name = place_name(range(number, number + int(bundle.get("GPU", 0))))
            name = f"{host} {name}" if several else name
            group = self._group(bundle)
            worker = self._worker(group, bundle)
            self._places[name] = _Place(name=name, group=group, worker=worker, pending=worker.ready.remote())
        while time.monotonic() < until and any(place.pending is not None for place in self._places.values()):
            self.wait(min(ASKING_SECONDS, seconds))
        if not self.places:
            why = next(iter(self.absent.values()))
            raise NoUsableGpu(f"no place of the Ray cluster can run a job: {why}")

    def _slots(self) -> Iterator[tuple[str, dict[str, float], int]]:
        """Every place that there could be: its machine, what it takes, its first GPU's number there."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        gpus = any(node["Resources"].get("GPU") for node in nodes)
        hosts = [str(node["NodeManagerHostname"]) for node in nodes]
        for node, host in zip(nodes, hosts, strict=True):
            address = str(node["NodeManagerAddress"])
            host = host if hosts.count(host) == 1 else f"{host} ({address})"
            here = {"CPU": 1.0, f"node:{address}": 0.001}
            if not gpus:
                yield host, here, 0
            for first in range(0, int(node["Resources"].get("GPU", 0)) - self._per_trial + 1, self._per_trial):
                yield host, {**here, "GPU": float(self._per_trial)}, first

    def _group(self, bundle: Mapping[str, float]) -> Any:
        """Holds the GPUs for as long as the sweep lasts: nobody else of the cluster is given a part of one."""
        from ray.util.placement_group import placement_group

        return placement_group([dict(bundle)], strategy="STRICT_PACK")

    def _worker(self, group: Any, bundle: Mapping[str, float]) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpus = int(bundle.get("GPU", 0))
        there = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
        kind = self._ray.remote(
            num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0, max_concurrency=4, scheduling_strategy=there
        )(Station)
        return kind.remote(partial(self._make, gpus))

    def _hear(self, place: _Place, reference: Any) -> list[Event]:
        """What a worker answered, or that there is none any more; and the next question to it."""
        place.pending = None
        try:
            said = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return self._lose(place, error)
        if not isinstance(said, Said):  # it has started
            place.absent, place.started = "", True
            return []
        place.absent = said.absent
        events = self._told(place, said)
        if place.folder is not None or place.absent:
            place.pending = place.worker.wait.remote(ASKING_SECONDS)
        return events

    def _told(self, place: _Place, said: Said) -> list[Event]:
        folder = place.folder
        if folder is None:
            return []
        if said.over is None:
            return [] if said.step is None else [replace(said.step, place=place.name, folder=folder)]
        place.folder = None
        with suppress(BadInput):  # a full disk here loses files, not the result
            write_files(folder, said.over.files)
        over = said.over
        return [Ended(place=place.name, folder=folder, result=over.result, lost=over.lost, begun=over.begun)]

    def _lose(self, place: _Place, error: Exception) -> list[Event]:
        """The worker or its machine died; a new one is asked for, which starts when the place's GPUs are there again.
        One that could not even start is not replaced."""
        place.absent = ends.one_line(_reason(error))
        if place.started:
            place.started = False
            place.worker = self._worker(place.group, place.group.bundle_specs[0])
            place.pending = place.worker.ready.remote()
        if (folder := place.folder) is None:
            return []
        place.folder = None
        return [lost(place.name, folder, error, time.monotonic() - place.began)]


def lost(place: str, folder: Path, error: Exception, seconds: float) -> Ended:
    """The end of a job whose worker died. Where Ray itself ended it for want of memory, that is the job's own doing."""
    why = ends.one_line(_reason(error))
    if _OUT_OF_MEMORY not in str(error):
        return Ended(place=place, folder=folder, result=None, lost=why)
    end = End(outcome=Outcome.HOST_OUT_OF_MEMORY, evidence=why)
    return Ended(place=place, folder=folder, result=Result(end=end, seconds=seconds))


def _reason(error: Exception) -> str:
    """Ray tells a story with stacks in it. Of what a worker raised the last line is the cause; of its death the first
    one after the worker's description, which is indented."""
    lines = [line for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if memory := [line for line in lines if _OUT_OF_MEMORY in line]:
        return memory[0]
    if any(line.strip().startswith("File ") for line in lines):
        return f"the worker failed: {lines[-1].rpartition('Error: ')[2]}"
    told = [line for line in lines if not line.startswith("\t")]
    return f"the worker is gone: {[type(error).__name__, *told[:2]][-1].partition(' Some common causes')[0]}"


def connect(address: str | None) -> tuple[Any, bool]:
    """The module ray, connected, and whether the connection is ours to end.

    Raises:
        BadInput: it is missing or too old, the cluster cannot be reached, or lets everybody in.
    """
    if address is not None and "://" in address:
        raise BadInput("Ray's address is HOST:PORT, or auto, of a cluster that this machine is part of")
    if os.environ.get(MODE, "token") != "token":
        raise BadInput(f"{MODE}={os.environ[MODE][:20]} lets anybody who reaches the cluster run programs: unset it")
    os.environ.update({MODE: "token", **_QUIET, **({} if address else _LOOPBACK)})
    if address is None:
        os.environ.setdefault(TOKEN, secrets.token_hex(TOKEN_BYTES))
    ray = _import()
    # What Ray has to say of a worker that died goes to stdout, which is not its own; its debugger too turns that off
    # like this (ray 2.60, util/rpdb.py).
    ray._private.worker._worker_logs_enabled = False
    if ray.is_initialized():
        return ray, False
    own = {} if address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    with _told(address):
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **own)
    return ray, True


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise BadInput(f"Ray cannot be imported ({error}): pip install 'finetune-plan[cluster]'") from None
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < OLDEST:
        raise BadInput(f"Ray {ray.__version__} is not safe: {'.'.join(map(str, OLDEST))} or newer is needed")
    return ray


@contextmanager
def _told(address: str | None) -> Iterator[None]:
    """What keeps Ray from starting as one line; it never holds the token."""
    try:
        yield
    except (ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise BadInput(f"the Ray cluster {address or 'of this machine'}: {ends.one_line(lines[0])}") from None
