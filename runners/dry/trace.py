"""Runs two optimizer steps of a recipe on the meta device and records every allocation and free, in order.

No GPU and no weights: real code of transformers, PEFT, bitsandbytes, TRL and torch over tensors without data. The
first step makes the optimizer's state, the second is like all later ones.
"""

import gc
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from estimators.allocator import Event, replay
from estimators.errors import BadInput, PlanError
from estimators.hardware import Device
from estimators.memory import cublas_workspace_bytes
from estimators.models import Config
from estimators.recipe import Recipe
from runners import build as building
from runners.build import Batch, Built, build, hollow
from runners.dry.kernels import handlers
from runners.dry.shims import cuda_on_meta, replaced

Phase = Literal["load", "forward", "backward", "optimizer"]
STEPS = 2
LARGEST_NORM = 1.0
"""TrainingArguments.max_grad_norm."""
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "gemm_4bit")


class CannotTrace(BadInput):
    """The meta device cannot run an operation of this recipe; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a job asks of the allocator, from an empty GPU to the end of its second step."""

    events: tuple[Event, ...]
    phases: tuple[tuple[int, Phase], ...]
    """The index of the event at which each phase begins."""
    loaded_bytes: int
    peak_allocated_bytes: int
    """After loading, as torch.cuda.max_memory_allocated counts it."""
    peak_reserved_bytes: int
    peak_phase: Phase
    peak_module: str
    """The module that was running at the peak, empty outside of modules."""
    peak_operation: str
    seconds: float


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator, and every storage from its birth to its death."""

    def __init__(self, device: Device, *, padded: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.padded = padded
        self.alone: tuple[int, int] | None = None
        self.hollow = False
        """Whether what is born now holds no memory on the GPU either."""
        self.events: list[Event] = []
        self.phases: list[tuple[int, Phase]] = []
        self.live: dict[int, int] = {}
        self.keys = self.held = self.peak = 0
        self.where: tuple[Phase, str, str] = ("load", "", "")
        self.modules: list[str] = []
        self.handlers: dict[Any, Any] = {}
        self.workspaces: set[Phase] = set()
        self.operation = ""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operation = str(operator)
        if operator.__name__.split(".")[0] in PRODUCTS:
            self._workspace()
        if operator is torch.ops.aten.add.Tensor and self._accumulates(args):
            return args[0]
        if (handler := self.handlers.get(operator)) is not None:
            result = handler(self, args, kwargs)
            if result is not NotImplemented:
                return result
        result = operator(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.born(leaf)
        return result

    def born(self, tensor: Tensor) -> Tensor:
        """A tensor appeared: if its storage is new, that is an allocation."""
        if tensor.device.type != "meta":
            return tensor
        storage = tensor.untyped_storage()
        identity = storage._cdata
        if identity not in self.live:
            size_bytes = 0 if self.hollow else storage.nbytes()
            self.live[identity] = self.allocate(size_bytes)
            weakref.finalize(storage, self._died, identity, size_bytes)
        return tensor

    def allocate(self, size_bytes: int) -> int:
        """Record an allocation; returns its key."""
        self.keys += 1
        self.events.append(Event("allocate", self.keys, size_bytes))
        self.held += size_bytes
        if self.held > self.peak:
            self.peak, self.where = self.held, (self.phase, self.modules[-1] if self.modules else "", self.operation)
        return self.keys

    def _died(self, identity: int, size_bytes: int) -> None:
        self.events.append(Event("free", self.live.pop(identity)))
        self.held -= size_bytes

    def _accumulates(self, args: tuple[Any, ...]) -> bool:
        """Whether this sum is autograd adding a gradient into one that nothing else holds.

        The engine then adds in place (can_accumulate_inplace in torch's autograd, from memory), but never while
        a dispatch mode looks on. How many references "nothing else" is, as seen from here, `calibrate` found out.
        """
        if torch.is_grad_enabled() or len(args) != 2 or not all(isinstance(item, Tensor) for item in args):
            return False
        old, new = args
        if old.shape != new.shape or old.dtype != new.dtype or hasattr(old, "seen_by_python"):
            return False
        count = (old._use_count(), torch._C._storage_Use_Count(old.untyped_storage()._cdata))
        if self.alone is None:
            self.alone = count
        return count == self.alone and _dense(old)

    def calibrate(self) -> None:
        """Let the engine accumulate one gradient whose buffer is surely its own."""
        source = torch.zeros(1, device="meta", requires_grad=True)
        double = source * 2
        torch.autograd.backward((double.sin() + double.cos()).sum())

    def _workspace(self) -> None:
        """cuBLAS keeps a workspace for each thread's handle, from its first product on."""
        if self.phase not in self.workspaces and self.phase in ("forward", "backward"):
            self.workspaces.add(self.phase)
            self.allocate(cublas_workspace_bytes(self.device) // 2)

    @property
    def phase(self) -> Phase:
        return self.phases[-1][1]

    def begin(self, phase: Phase) -> None:
        self.phases.append((len(self.events), phase))

    def loaded(self) -> int:
        """Loading is over: what follows counts for the peak. Returns how many events it took."""
        gc.collect()
        self.events += [Event("empty_cache"), Event("reset_peak")]
        self.peak = self.held
        return len(self.events)


def _dense(tensor: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense.default(tensor)  # type: ignore[no-any-return]


@contextmanager
def _named(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Know which module is running."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: recorder.modules.append(name)))
        handles.append(module.register_forward_hook(lambda *_: _leave(recorder), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _hollow(recorder: Recorder, real: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """The skeleton is on meta in a real run too, and takes nothing there."""
    recorder.hollow = True
    try:
        with real():
            yield
    finally:
        recorder.hollow = False


def _leave(recorder: Recorder) -> None:
    recorder.modules.pop()


def dry_run(recipe: Recipe, config: Config, device: Device) -> Trace:
    """Trace `recipe` as it would run on one GPU of kind `device`.

    Raises:
        BadInput: the recipe shards a model, or names what its tools do not have.
        CannotTrace: an operation cannot run on the meta device.
    """
    if recipe.parallelism.kind not in ("none", "ddp"):
        raise BadInput(f"the dry run traces one GPU, and {recipe.parallelism.kind} shards the job over several")
    started = time.perf_counter()
    recorder = Recorder(device, padded=recipe.padded)
    try:
        loaded, finished = _run(recorder, recipe, config)
    except PlanError:
        raise
    except Exception as error:
        raise CannotTrace(_why(recorder, config, error)) from error
    events = tuple(recorder.events[:finished])
    peaks, at_start = replay(events), replay(events[:loaded])
    phase, module, operation = recorder.where
    return Trace(
        events=events,
        phases=tuple(recorder.phases),
        loaded_bytes=at_start.peak_allocated_bytes,
        peak_allocated_bytes=peaks.peak_allocated_bytes,
        peak_reserved_bytes=peaks.peak_reserved_bytes,
        peak_phase=phase,
        peak_module=module,
        peak_operation=operation,
        seconds=time.perf_counter() - started,
    )


def _why(recorder: Recorder, config: Config, error: Exception) -> str:
    """One line: what could not be done, and the first line of the library's own words."""
    words = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    what = "be built" if recorder.phase == "load" else f"run {recorder.operation} on the meta device"
    return f"{config.name} cannot {what}: {words}"


def _run(recorder: Recorder, recipe: Recipe, config: Config) -> tuple[int, int]:
    """Builds and steps the job; returns how many events loading took, and how many everything took."""
    recorder.begin("load")
    with _quiet(), recorder, replaced(building, "hollow", lambda: _hollow(recorder, hollow)):
        recorder.calibrate()
        built = build(recipe, config, "meta")
        loaded = recorder.loaded()
        recorder.handlers = handlers()
        with cuda_on_meta(recorder.device), _named(recorder, built.model):
            optimizer = built.make_optimizer()
            for _ in range(STEPS):
                _step(recorder, recipe, built, optimizer)
            return loaded, len(recorder.events)


@contextmanager
def _quiet() -> Iterator[None]:
    """Only reference counts free tensors, so that what a run frees does not hang on Python's collector."""
    was_enabled = gc.isenabled()
    gc.disable()
    chatty = logging.getLogger("bitsandbytes")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chatty.setLevel(level)
        if was_enabled:
            gc.enable()


def _step(recorder: Recorder, recipe: Recipe, built: Built, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step as the Trainer takes it."""
    batches = [_batch(recipe) for _ in range(recipe.gradient_accumulation)]
    tokens = torch.zeros((), dtype=torch.int64, device="meta")
    for batch in batches:
        recorder.begin("forward")
        loss = built.loss(batch, tokens)
        recorder.begin("backward")
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
    recorder.begin("optimizer")
    nn.utils.clip_grad_norm_(built.parameters, LARGEST_NORM, foreach=True)
    optimizer.step()
    built.model.zero_grad()


def _batch(recipe: Recipe) -> Batch:
    shape = (recipe.micro_batch, recipe.sequence_length)
    names = ("input_ids", "attention_mask", "labels")
    return {name: torch.zeros(shape, dtype=torch.int64, device="meta") for name in names}
