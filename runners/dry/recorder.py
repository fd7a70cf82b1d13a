"""Sees every tensor of a run on the meta device be born and die, and to which block of the model that belongs."""

import gc
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.utils._python_dispatch import TorchDispatchMode

from estimators.allocator import Event
from estimators.hardware import Device
from estimators.memory import cublas_workspace_bytes
from estimators.units import MIB
from runners.dry.blocks import block_of
from runners.dry.known import KNOWN
from runners.dry.stream import OUTSIDE, Phase, Stream
from runners.dry.tally import Tally, tallying, tensors_of

CUBLASLT_BYTES = MIB
PASSES = ("forward", "evaluation")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "gemm_4bit")


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator, and every storage from its birth to its death."""

    def __init__(self, device: Device, *, padded: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.padded = padded
        self.alone: tuple[int, int] | None = None
        self.hollow = False
        """Whether what is born now holds no memory on the GPU either."""
        self.stream = Stream()
        self.live: dict[int, int] = {}
        self.keys = 0
        self.handlers: dict[Any, Any] = {}
        self.workspaces: set[tuple[bool, str]] = set()
        self.operation = self.name = self.asked = ""
        self.places = Places()
        self.tally = Tally()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, self.asked = _name(operator), self.name
        self.name, self.operation = name, str(operator)
        self._look(args)
        result = self._result(operator, args, kwargs)
        if name in PRODUCTS:
            self._workspace("cublas", cublas_workspace_bytes(self.device) // 2)
        if name == "addmm" and args[0].dim() == 1:  # a bias is added by cuBLASLt, which has a workspace of its own
            self._workspace("cublaslt", CUBLASLT_BYTES)
        self.tally.count(name, args, result)
        if self.phase == "optimizer" and isinstance(result, list) and args and isinstance(args[0], (list, tuple)):
            self._share_out(result, args[0])
        return result

    def _result(self, operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operator, and report what it made."""
        if operator is torch.ops.aten.add.Tensor and self._accumulates(args):
            return args[0]
        handler = self.handlers.get(operator)
        result = NotImplemented if handler is None else handler(self, args, kwargs)
        if result is NotImplemented:
            result = KNOWN.run(operator, args, kwargs)
            for tensor in tensors_of((result,)):
                self.born(tensor)
        return result

    def _look(self, args: Any) -> None:
        """Find out which block this operator works for."""
        if self.phase == "backward":
            self.places.follow(torch._C._current_autograd_node())
        elif self.phase == "optimizer":
            owners = [self._owner(item) for item in args if isinstance(item, Tensor) and item.is_meta]
            if owners:
                self.places.block = max(owners)
            elif args and isinstance(args[0], (list, tuple)) and any(isinstance(item, Tensor) for item in args[0]):
                self.places.block = OUTSIDE
        elif self.phase == "save":
            owners = [self._owner(item) for item in args if isinstance(item, Tensor)]
            self.places.block = next((owner for owner in owners if owner != OUTSIDE), self.places.block)

    def _share_out(self, results: list[Any], sources: Sequence[Any]) -> None:
        """A list-wise operator makes each of its results from one of its inputs, for whichever block that is of."""
        for result, source in zip(results, sources, strict=False):
            self.stream.give(self.key_of(result), self._owner(source))

    def _owner(self, tensor: Tensor) -> int:
        key = self.live.get(tensor.untyped_storage()._cdata) if tensor.device.type == "meta" else None
        return OUTSIDE if key is None else self.stream.owner_of.get(key, OUTSIDE)

    def born(self, tensor: Tensor) -> Tensor:
        """A tensor appeared: if its storage is new, that is an allocation."""
        if tensor.device.type != "meta":
            return tensor
        storage = tensor.untyped_storage()
        identity = storage._cdata
        if identity not in self.live:
            self.live[identity] = self.allocate(0 if self.hollow else storage.nbytes())
            weakref.finalize(storage, self._died, identity)
        return tensor

    def allocate(self, size_bytes: int) -> int:
        """Record an allocation; returns its key."""
        self.keys += 1
        if size_bytes:
            self.stream.allocate(self.keys, size_bytes, self.places.block, self.operation)
        return self.keys

    def _died(self, identity: int) -> None:
        key = self.live.pop(identity)
        if not self.stream.ended:
            self.stream.free(key, self.places.block)

    def key_of(self, tensor: Tensor) -> int:
        """The key of a tensor's allocation; 0 where it has none."""
        return self.live.get(tensor.untyped_storage()._cdata, 0)

    def _accumulates(self, args: tuple[Any, ...]) -> bool:
        """Whether this sum is autograd adding a gradient into one that nothing else holds.

        The engine then adds in place (can_accumulate_inplace in torch's autograd, from memory), but never while
        a dispatch mode looks on. How many references "nothing else" is, as seen from here, `calibrate` found out.
        """
        if torch.is_grad_enabled() or len(args) != 2 or not all(isinstance(item, Tensor) for item in args):
            return False
        old, new = args
        if old.shape != new.shape or old.dtype != new.dtype:
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

    def _workspace(self, library: str, size_bytes: int) -> None:
        """A library keeps a workspace for each thread's handle, from its first product on: autograd has a thread."""
        thread = (self.phase == "backward", library)
        if thread not in self.workspaces and not self.hollow:
            self.workspaces.add(thread)
            self.stream.terms[self.allocate(size_bytes)] = "workspace"

    @property
    def phase(self) -> Phase:
        return self.stream.phases[-1][1]

    def begin(self, phase: Phase, parameters: Sequence[nn.Parameter] = ()) -> None:
        """A phase begins; what `parameters` hold by now are gradients."""
        for parameter in parameters:
            if parameter.grad is not None:
                self.stream.terms[self.key_of(parameter.grad)] = "gradients"
        self.tally.begin(phase)
        self.places.block = OUTSIDE
        if phase in PASSES:
            self.places.starts.clear()
        self.stream.phases.append((len(self.stream.events), phase))

    def loaded(self, model: nn.Module, blocks: dict[str, int]) -> None:
        """Loading is over: what follows counts for the peak."""
        gc.collect()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            key = self.key_of(tensor)
            self.stream.owner_of[key] = block_of(name, blocks)
            self.stream.terms[key] = "adapter" if "lora_" in name else "weights"
        self.places.settle(self.stream, model, blocks)
        self.stream.mark(Event("empty_cache"))
        self.stream.mark(Event("reset_peak"))

    def finished(self) -> None:
        """The last step is over, and its job still alive: what an optimizer step left behind is its state."""
        for start, end, phase in self.stream.bounds():
            if phase == "optimizer":
                kept = {event.key for event in self.stream.events[start:end] if event.kind == "allocate"}
                self.stream.terms |= dict.fromkeys(kept & set(self.live.values()), "optimizer")

    @contextmanager
    def watching(self, model: nn.Module, blocks: dict[str, int]) -> Iterator[None]:
        """Know which module is running, and in which block."""
        with ExitStack() as stack:
            stack.enter_context(tallying(self.tally))
            for name, module in model.named_modules():
                block = blocks.get(name)
                enter = module.register_forward_pre_hook(lambda module, _, block=block: self._enter(module, block))
                stack.callback(enter.remove)
                if block is not None:
                    stack.callback(module.register_forward_hook(lambda *_: self._leave(), always_call=True).remove)
                    stack.callback(module.register_state_dict_pre_hook(partial(self._gather, block)).remove)
                    stack.callback(module.register_state_dict_post_hook(partial(self._gather, OUTSIDE)).remove)
            yield

    def _gather(self, block: int, *_: object) -> None:
        """A state dict takes what is in a block, or has it."""
        self.places.block = block

    def _enter(self, module: nn.Module, block: int | None) -> None:
        self.tally.called(module)
        if self.phase in PASSES:
            self.places.enter(block)

    def _leave(self) -> None:
        if self.phase in PASSES:
            self.places.inside -= 1


class Places:
    """Which block of the model is being loaded, run, or run backwards."""

    def __init__(self) -> None:
        self.block = OUTSIDE
        self.inside = 0
        """How many blocks have been entered and not left."""
        self.starts: list[tuple[int, int]] = []
        """The number of autograd's next node at which each block began, and the block."""
        self.registered: list[tuple[int, weakref.ref[nn.Module]]] = []
        """How many events there were when a module got a tensor."""

    def enter(self, block: int | None) -> None:
        """A module starts: a block, or one outside of blocks. Until the next one, all belongs to it."""
        if block is not None:
            self.inside += 1
            self._start(block)
        elif not self.inside:
            self._start(OUTSIDE)

    def _start(self, block: int) -> None:
        if block != self.block or not self.starts:
            self.block = block
            self.starts.append((torch._C._autograd._get_sequence_nr(), block))

    def follow(self, node: Any) -> None:
        """A node of the backward pass runs: it belongs to the block that made it."""
        number = node._sequence_nr() if node is not None else NO_NUMBER
        if number < NO_NUMBER and self.starts:
            self.block = self.starts[max(bisect_right(self.starts, (number, NO_NUMBER)) - 1, 0)][1]

    @contextmanager
    def registering(self, stream: Stream) -> Iterator[None]:
        """While a model is built: note when which module gets a tensor."""

        def note(module: nn.Module, name: str, tensor: Any) -> None:
            self.registered.append((len(stream.events), weakref.ref(module)))

        handles = [
            registration.register_module_parameter_registration_hook(note),
            registration.register_module_buffer_registration_hook(note),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def settle(self, stream: Stream, model: nn.Module, blocks: dict[str, int]) -> None:
        """What was allocated while loading belongs to its parameter's block, or to the module that got one next."""
        names = {id(module): name for name, module in model.named_modules()}
        owners = []
        for position, reference in self.registered:
            module = reference()
            if module is not None and id(module) in names:
                owners.append((position, block_of(names[id(module)], blocks)))
        positions = [position for position, _ in owners]
        for index, event in enumerate(stream.events):
            if event.kind == "allocate" and event.key not in stream.terms:
                following = bisect_right(positions, index)
                stream.owner_of[event.key] = owners[following][1] if following < len(owners) else OUTSIDE
        stream.settle_load()


NO_NUMBER = 2**62
"""Above every number of a node; autograd gives the largest integer to those that store gradients."""


@cache
def _name(operator: Any) -> str:
    return str(operator.__name__).split(".")[0]


def _dense(tensor: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense.default(tensor)  # type: ignore[no-any-return]
