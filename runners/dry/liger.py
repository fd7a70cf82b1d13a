"""Liger's own Python runs on meta: its Triton kernels launch nothing, and it is told that the device is CUDA.

Its kernels write into tensors that its Python makes, so what is allocated is what the real code allocates. Where Triton
is not installed, as with torch's CPU wheels, a stand-in answers while Liger is imported. Held to measured runs of
Liger 0.8.5, tests/runners/test_dry_shims.py.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from estimators.hardware import Device
from estimators.models import Config
from estimators.recipe import Recipe
from runners.build import module_of
from runners.dry.replacing import Launch, Replacement, only_errors, replaced

TRITON = "triton"
LIGER = "liger_kernel"
CUDA, META = "cuda", "meta"


class _Anything:
    """Whatever Triton's decorators and types are asked for while a module is read."""

    def __getattr__(self, name: str) -> "_Anything":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getitem__(self, key: Any) -> "_Anything":
        return self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


class _StandIn(ModuleType):
    """A module of Triton's."""

    __version__ = "3.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    @staticmethod
    def jit(*functions: Any, **settings: Any) -> Any:
        return Launch() if functions else lambda function: Launch()

    @staticmethod
    def autotune(*args: Any, **settings: Any) -> Callable[[Any], Any]:
        return lambda kernel: kernel

    heuristics = autotune

    @staticmethod
    def cdiv(size: int, block: int) -> int:
        return -(-size // block)

    @staticmethod
    def next_power_of_2(size: int) -> int:
        return 1 << (size - 1).bit_length()


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for every module of Triton's."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == TRITON else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to execute."""


@contextmanager
def _triton() -> Iterator[None]:
    """Triton, or a stand-in that is forgotten again."""
    if find_spec(TRITON) is not None:
        yield
        return
    import_module("torch._dynamo")  # Liger imports it; it must find out for itself that there is no Triton
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == TRITON]:
            del sys.modules[name]


def _gpu(device: Device) -> Iterator[Replacement]:
    """What Liger asks of torch.cuda, at import and later."""
    properties = SimpleNamespace(multi_processor_count=device.multiprocessors, name=device.name)
    yield torch.cuda, "is_available", lambda: True
    yield torch.cuda, "get_device_capability", lambda *args: device.compute_capability
    yield torch.cuda, "get_device_properties", lambda *args: properties
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(torch.optim.Optimizer, name):  # would ask the GPU that is said to be there
            yield torch.optim.Optimizer, name, lambda optimizer: None


@contextmanager
def liger_on_meta(recipe: Recipe, config: Config, device: Device) -> Iterator[None]:
    """Let a recipe with Liger's loss be built and run on meta; nothing where it has another."""
    if recipe.loss != "liger" or find_spec(LIGER) is None:
        yield
        return
    with ExitStack() as stack:
        for replacement in _gpu(device):
            stack.enter_context(replaced(*replacement))
        stack.enter_context(_triton())
        stack.enter_context(only_errors(LIGER))  # it tells of each other implementation that it cannot import
        import_module(f"{LIGER}.transformers")
        module_of(config)  # before its functions are noted
        for replacement in (*_launches(), *_device_names()):
            stack.enter_context(replaced(*replacement))
        stack.enter_context(_models_kept())
        stack.enter_context(replaced(functional, "cross_entropy", functional.cross_entropy))  # Granite's patch takes it
        yield


def _launches() -> Iterator[Replacement]:
    jit = sys.modules.get("triton.runtime.jit")
    if jit is not None:
        yield jit.KernelInterface, "__getitem__", Launch.__getitem__


def _device_names() -> Iterator[Replacement]:
    """Liger's functions look for the device "cuda" by name; here it is called "meta"."""
    for name in [name for name in sys.modules if name.startswith(f"{LIGER}.ops.")]:
        for function in list(vars(sys.modules[name]).values()):
            if isinstance(function, FunctionType) and function.__module__ == name:
                code = function.__code__
                if CUDA in code.co_consts:
                    constants = tuple(META if item == CUDA else item for item in code.co_consts)
                    yield function, "__code__", code.replace(co_consts=constants)


@contextmanager
def _models_kept() -> Iterator[None]:
    """Liger also puts its functions into transformers' modules of models: they get back what they had."""
    before = {
        name: dict(vars(module)) for name, module in sys.modules.items() if name.startswith("transformers.models.")
    }
    try:
        yield
    finally:
        for name, variables in before.items():
            module = sys.modules[name]
            for key, value in variables.items():
                if vars(module).get(key) is not value:
                    setattr(module, key, value)
