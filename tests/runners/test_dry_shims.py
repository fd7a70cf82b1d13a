"""What stands in for CUDA and its tools in a dry run, held to figures of real GPUs; CPU only."""

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

import torch
from bitsandbytes import functional
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from estimators.allocator import Event, replay
from estimators.catalogue import find_device
from estimators.errors import BadInput
from estimators.hardware import Device
from estimators.measurement import measurements
from estimators.models import load_config
from estimators.recipe import Adapter, Recipe
from runners import build as building
from runners.build import build
from runners.dry.attention import kernel_of
from runners.dry.evaluation import evaluate
from runners.dry.flash import flash_on_meta
from runners.dry.kernels import handlers
from runners.dry.liger import liger_on_meta
from runners.dry.load import load
from runners.dry.reductions import scratch_bytes, shape_of
from runners.dry.replacing import replaced
from runners.dry.shims import cuda_on_meta
from tests.estimators.tiny import shallow

H200 = find_device("h200")
MEASURED = {
    "load-llama-3.1-8b-nf4": (5811117056, 5846859776),
    "load-qwen2.5-3b-int8": (3484804096, 3558866944),
    "load-llama-3.2-3b-bf16": (6426024960, 6427770880),
    "load-llama-3.2-1b-fp32": (4943258624, 4947181568),
}
"""load_allocated_bytes and load_reserved_bytes of profiles/measurements/h200_extra.jsonl."""
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def tables_forgotten() -> Iterator[None]:
    """bitsandbytes keeps its tables of quantised values, on the device of who asked first."""
    functional.name2qmap.clear()
    yield
    functional.name2qmap.clear()


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The least that sees tensors being born and dying."""

    def __init__(self, device: Device = H200) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.padded, self.hollow, self.asked = device, False, False, ""
        self.events: list[Event] = []
        self.live: dict[int, int] = {}
        self.handlers: dict[Any, Any] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self.handlers.get(operator)
        result = handler(self, args, kwargs or {}) if handler else NotImplemented
        if result is NotImplemented:
            result = operator(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.born(leaf)
        return result

    def born(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" and storage._cdata not in self.live:
            key = self.live[storage._cdata] = len(self.events) + 1
            self.events.append(Event("allocate", key, 0 if self.hollow else storage.nbytes()))
            weakref.finalize(storage, self._died, storage._cdata)
        return tensor

    def _died(self, identity: int) -> None:
        self.events.append(Event("free", self.live.pop(identity)))

    @contextmanager
    def hollowed(self) -> Iterator[None]:
        self.hollow = True
        try:
            with torch.device("meta"):
                yield
        finally:
            self.hollow = False


def recipe_of(name: str) -> Recipe:
    files = ("h200_single", "h200_extra")
    return next(run.recipe for file in files for run in measurements(file) if run.name == name)


@pytest.mark.parametrize("name", MEASURED)
def test_a_load_peaks_where_the_real_one_did(name: str) -> None:
    recipe, (allocated, reserved) = recipe_of(name), MEASURED[name]
    watcher = Watcher()
    with watcher, replaced(building, "hollow", watcher.hollowed):
        kept = load(recipe, load_config(recipe.model))
        found = replay(tuple(watcher.events))
    assert kept
    assert found.peak_allocated_bytes == pytest.approx(allocated, rel=0.001)
    assert found.peak_reserved_bytes == pytest.approx(reserved, rel=0.005)


def test_an_evaluation_peaks_where_the_real_one_did() -> None:
    """Held then: the loaded job, AdamW's two states of each adapter, and cuBLAS' two workspaces."""
    recipe = recipe_of("load-llama-3.2-3b-bf16")
    watcher = Watcher()
    with watcher, replaced(building, "hollow", watcher.hollowed):
        built = build(recipe, load_config(recipe.model), "meta")
        states = [(torch.empty_like(item), torch.empty_like(item), torch.empty((), device="meta"))
                  for item in built.parameters]  # fmt: skip
        workspaces = torch.empty(64 << 20, dtype=torch.uint8, device="meta")
        watcher.events.append(Event("reset_peak"))
        watcher.handlers = handlers()
        with cuda_on_meta(H200):
            evaluate(recipe, built)
        found = replay(tuple(watcher.events))
        del states, workspaces
    assert built.model.training
    assert found.peak_allocated_bytes == pytest.approx(17391122432, rel=0.0002)


def test_an_evaluation_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="evaluation_batch"):
        evaluate(replace(recipe_of("load-llama-3.2-3b-bf16"), evaluation_batch=None), SimpleNamespace())  # type: ignore[arg-type]


SCRATCH = (
    ((2048, 1024), [0], (16777216, 32)),
    ((2048, 4096), [0], (67108864, 128)),
    ((2048, 2048), [0], (33554432, 64)),
    ((2, 1024), [1], (0, 0)),
)
"""Sums over the rows of a gradient, as the recorded histories show them on an H200 of 132 multiprocessors."""


@pytest.mark.parametrize(("shape", "dimensions", "expected"), SCRATCH)
def test_reductions_take_the_scratch_that_was_recorded(
    shape: tuple[int, ...], dimensions: list[int], expected: tuple[int, int]
) -> None:
    source = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    assert scratch_bytes(shape_of(source, dimensions), H200.multiprocessors) == expected


def test_cards_and_shapes_choose_their_attention_kernel() -> None:
    def kernel(
        device: str, size: int, *, heads: int = 8, mask: bool = False, half: bool = True, cudnn: bool = True
    ) -> str:
        query = torch.empty((1, 8, 64, size), dtype=torch.bfloat16 if half else torch.float32, device="meta")
        key = torch.empty((1, heads, 64, size), dtype=query.dtype, device="meta")
        attention_mask = torch.ones((1, 1, 64, 64), dtype=torch.bool, device="meta") if mask else None
        return kernel_of(find_device(device), query, key, key, attention_mask, heads != 8, cudnn)

    assert kernel("h200", 64) == kernel("h200", 64, mask=True) == kernel("h200", 128, heads=2) == "cudnn"
    assert kernel("h200", 256) == kernel("h200", 256, mask=True) == "cudnn"  # as a recorded Gemma 3 shows
    assert kernel("h200", 264) == kernel("b200", 264) == "efficient"
    assert kernel("b200", 256) == kernel("a100-sxm-80gb", 64) == kernel("rtx-4090", 128, heads=2) == "flash"
    assert kernel("h200", 64, cudnn=False) == kernel("h200", 128, heads=2, cudnn=False) == "flash"
    assert kernel("h200", 64, mask=True, cudnn=False) == "efficient"
    assert kernel("h200", 64, half=False) == kernel("rtx-4090", 64, mask=True) == "efficient"


def stepped(recipe: Recipe, layers: int = 2) -> int:
    """The peak of one forward and backward pass of a shallow model."""
    watcher = Watcher()
    config = shallow(load_config(recipe.model), layers=layers)
    with liger_on_meta(recipe, config, H200), flash_on_meta(recipe, config, H200), watcher:
        built = build(recipe, config, "meta")
        watcher.handlers = handlers()
        shape = (recipe.micro_batch, recipe.sequence_length)
        names = ("input_ids", "attention_mask", "labels")
        batch = {name: torch.zeros(shape, dtype=torch.int64, device="meta") for name in names}
        with cuda_on_meta(H200):
            built.loss(batch, torch.zeros((), dtype=torch.int64, device="meta")).backward()  # type: ignore[no-untyped-call]
        return replay(tuple(watcher.events)).peak_allocated_bytes


def lora(**changes: object) -> Recipe:
    adapter = Adapter(method="lora", rank=8, alpha=32, targets=("q_proj", "v_proj"))
    recipe = Recipe(model="llama-3.2-1b", adapter=adapter, micro_batch=2, sequence_length=512)
    return replace(recipe, **changes)  # type: ignore[arg-type]


def test_flash_attention_2_needs_no_package_and_leaves_none() -> None:
    before = sys.modules.get("flash_attn")
    assert stepped(lora(attention="flash_attention_2")) == pytest.approx(stepped(lora()), rel=0.001)
    assert stepped(lora(attention="flash_attention_2", weights="float32", padded=True)) > stepped(lora())
    assert sys.modules.get("flash_attn") is before


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_liger_never_makes_the_logits_and_leaves_no_trace() -> None:
    from transformers.models.llama import modeling_llama

    before, plain = dict(vars(modeling_llama)), torch.nn.functional.cross_entropy
    triton, available = sys.modules.get("triton"), torch.cuda.is_available()
    logits_bytes = 2 * 512 * 128256 * 4
    assert stepped(lora()) - stepped(lora(loss="liger")) > logits_bytes
    assert all(vars(modeling_llama)[name] is value for name, value in before.items())
    assert stepped(replace(lora(loss="liger"), model="granite-3.3-2b"))  # whose patch replaces torch's own loss
    assert torch.nn.functional.cross_entropy is plain
    assert sys.modules.get("triton") is triton
    assert torch.cuda.is_available() == available
