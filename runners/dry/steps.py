"""Runs two optimizer steps of a recipe on the meta device, as the Trainer takes them, and records the stream of events.

No GPU and no weights: real code of transformers, PEFT, bitsandbytes, TRL and torch over tensors without data. The
first step makes the optimizer's state, the second is like all later ones.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from estimators.errors import BadInput, PlanError
from estimators.hardware import Device
from estimators.models import Config
from estimators.recipe import Recipe
from estimators.strategies.attention.sdpa_no_cudnn import NAME as NO_CUDNN
from runners import build as building
from runners.build import build, hollow
from runners.dry import pointwise
from runners.dry.blocks import block_names
from runners.dry.evaluation import evaluate
from runners.dry.flash import flash_on_meta
from runners.dry.kernels import handlers
from runners.dry.liger import liger_on_meta
from runners.dry.load import load_to_train
from runners.dry.loop import Loop
from runners.dry.recorder import Recorder
from runners.dry.replacing import only_errors, replaced
from runners.dry.saving import save
from runners.dry.shims import cuda_on_meta, quantized_on_meta
from runners.dry.stream import Stream

STEPS = 2


class CannotTrace(BadInput):
    """The meta device cannot run an operation of this recipe; the message names it."""


def record(recipe: Recipe, config: Config, device: Device, depth: int) -> Stream:
    """What `recipe` asks of the allocator with the model `config`, which has `depth` blocks.

    Raises:
        BadInput: the recipe names what its tools do not have.
        CannotTrace: an operation cannot run on the meta device.
    """
    return _recorded(_run, recipe, config, device, depth)


def record_load(recipe: Recipe, config: Config, device: Device, depth: int) -> Stream:
    """The same of loading a checkpoint alone, which takes its time before those steps.

    Raises:
        BadInput, CannotTrace: as above.
    """
    return _recorded(_load, recipe, config, device, depth)


def _recorded(run: Callable[..., None], recipe: Recipe, config: Config, device: Device, depth: int) -> Stream:
    recorder = Recorder(device, padded=recipe.padded)
    _forget()
    recorder.begin("load")
    try:
        with quiet(), liger_on_meta(recipe, config, device), flash_on_meta(recipe, config, device), recorder:
            run(recorder, recipe, config, depth)
    except PlanError:
        raise
    except Exception as error:
        raise CannotTrace(_why(recorder, config, error)) from error
    _forget()
    recorder.stream.close_gaps()
    recorder.stream.label()
    recorder.stream.work = recorder.tally.work()
    return recorder.stream


def _why(recorder: Recorder, config: Config, error: Exception) -> str:
    """One line: what could not be done, and the first line of the library's own words."""
    words = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    what = "be built" if recorder.phase == "load" else f"run {recorder.operation} on the meta device"
    return f"{config.name} cannot {what}: {words}"


def _run(recorder: Recorder, recipe: Recipe, config: Config, depth: int) -> None:
    recorder.calibrate()
    with _building(recorder, recipe):
        built = build(recipe, config, "meta")
    recorder.handlers |= handlers()
    blocks = block_names(built.model, depth)
    recorder.loaded(built.model, blocks)
    cudnn = recipe.attention != NO_CUDNN
    with cuda_on_meta(recorder.device, cudnn=cudnn), recorder.watching(built.model, blocks):
        loop = Loop(recipe, built, built.make_optimizer())
        for step in range(STEPS):
            if step == STEPS - 1:
                recorder.tally.start(recipe.gradient_accumulation)
            loop.step(lambda phase: recorder.begin(phase, built.parameters))
        recorder.finished()
        recorder.begin("evaluation" if recipe.evaluation_batch else "save", built.parameters)
        loop.finish()
        if recipe.evaluation_batch:
            evaluate(recipe, built)
            recorder.begin("save", built.parameters)
        save(built.model)
        recorder.stream.ended = True


def _load(recorder: Recorder, recipe: Recipe, config: Config, depth: int) -> None:
    with _building(recorder, recipe):
        model = load_to_train(recipe, config)
    recorder.loaded(model, block_names(model, depth))
    recorder.stream.ended = True


@contextmanager
def _building(recorder: Recorder, recipe: Recipe) -> Iterator[None]:
    """A model is made; operators of libraries that are imported for it are not known before."""
    recorder.handlers = pointwise.handlers() | handlers()
    skeleton = replaced(building, "hollow", lambda: _hollow(recorder, hollow))
    with recorder.places.registering(recorder.stream), quantized_on_meta(recipe), skeleton:
        yield


def _forget() -> None:
    """Each trace is a process of its own: bitsandbytes makes its tables of quantised values once in one, and remembers
    parameters by addresses that are somebody else's by now."""
    functional, optimizer = (sys.modules.get(f"bitsandbytes.{name}") for name in ("functional", "optim.optimizer"))
    if functional is not None:
        functional.name2qmap.clear()
    if optimizer is not None:
        optimizer.GlobalOptimManager._instance = None


@contextmanager
def _hollow(recorder: Recorder, real: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """The skeleton is on meta in a real run too, and takes nothing there."""
    recorder.hollow = True
    try:
        with real():
            yield
    finally:
        recorder.hollow = False


@contextmanager
def quiet() -> Iterator[None]:
    """Only reference counts free tensors, so that what a run frees does not hang on Python's collector."""
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()  # what is there already need not be looked through
    try:
        with only_errors("bitsandbytes"):
            yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
