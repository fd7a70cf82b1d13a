"""What the host needs to issue a step's operators: a small real model, so small that the GPU waits, pass by pass.

The same model is run plain, with PEFT's adapters, on bitsandbytes' layers and with checkpointing, and a dry run of each
counts its operators by class, as it does for a price. What one takes longer than another is put down to what it adds.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import nn

from estimators.catalogue import find_device
from estimators.models import Config
from estimators.recipe import Adapter, Recipe
from estimators.traced_rates import TracedRates
from estimators.traced_throughput import host_seconds
from estimators.work import HOST_ONLY, Work
from runners.build import Built, build
from runners.data import Padding, RandomTokens
from runners.dry.tracer import DryRuns
from runners.job import Job
from runners.microbench.clock import WARM_UP_CALLS
from runners.microbench.kernels import Bench, Found
from runners.microbench.sizes import Sizes
from runners.trainers import training_arguments

HEADS, VOCABULARY, TOKENS = 4, 512, 32
VIEWED, CALLED = 300, 300
"""Views and module calls that are timed together."""
LARGEST_NORM = 1.0


def small_model(sizes: Sizes) -> Config:
    """A Llama, each of its layers a few tiny products."""
    fields: dict[str, object] = {
        "model_type": "llama", "hidden_size": sizes.width, "intermediate_size": 2 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    return Config(name="small", source="small", fields=fields)


FULL = Adapter(method="full")
LORA = Adapter(method="lora", rank=8, alpha=32, targets="all-linear")
PLAIN = Recipe(
    model="small", adapter=FULL, weights="bfloat16", optimizer="adamw_torch", micro_batch=1, sequence_length=TOKENS,
    gradient_checkpointing=False,
)  # fmt: skip
VARIANTS = {
    "plain": PLAIN,
    "adapters": replace(PLAIN, adapter=LORA),
    "nf4": replace(PLAIN, adapter=LORA, quantization="nf4"),
    "int8": replace(PLAIN, adapter=LORA, quantization="int8"),
    "checkpointing": replace(PLAIN, gradient_checkpointing=True),
}


class LostInNoiseError(Exception):
    """What was looked for took no time that could be told from the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """The host's seconds for a forward and a backward pass, and what a dry run counted of them."""

    forward: float
    backward: float
    work: Work


@dataclass(kw_only=True)
class Host:
    """The microbenchmarks of one host."""

    bench: Bench
    card: str
    """Catalogue name of the kind of card whose kernels a dry run counts."""

    def operators(self) -> Found:
        """Views, module calls and operators of both passes, of a plain model."""
        source = torch.zeros(4, 4, device=self.bench.device, requires_grad=True)
        identity, times = nn.Identity(), self.bench.sizes.repeats
        view = self.bench.clock.issuing(lambda: [source.view(16) for _ in range(VIEWED)], times) / VIEWED
        module = self.bench.clock.issuing(lambda: [identity(source) for _ in range(CALLED)], times) / CALLED
        plain = self._passes("plain")
        known = replace(TracedRates(), view_seconds=view, module_seconds=module, operator_seconds=0.0)
        left = plain.forward - host_seconds(plain.work, "forward", known, "none")
        return {
            "view_seconds": view,
            "module_seconds": module,
            "operator_seconds": _positive(left / _issued(plain.work, "forward")),
            "backward_operator_seconds": plain.backward / _issued(plain.work, "backward"),
        }

    def adapters(self) -> Found:
        """What one layer of PEFT adds to a forward pass, its operators and modules with it."""
        plain, adapted = self._passes("plain"), self._passes("adapters")
        calls = adapted.work.of("forward", "adapter").calls
        return {"adapter_seconds": _positive((adapted.forward - plain.forward) / calls)}

    def four_bits(self) -> Found:
        """What one 4-bit layer of bitsandbytes adds to each pass."""
        adapted, quantized = self._passes("adapters"), self._passes("nf4")
        calls = quantized.work.of("forward", "quantized").calls
        return {
            "nf4_seconds": _positive((quantized.forward - adapted.forward) / calls),
            "backward_quantized_seconds": _positive((quantized.backward - adapted.backward) / calls),
        }

    def eight_bits(self) -> Found:
        """What one 8-bit layer adds to a forward pass."""
        adapted, quantized = self._passes("adapters"), self._passes("int8")
        calls = quantized.work.of("forward", "quantized").calls
        return {"int8_seconds": _positive((quantized.forward - adapted.forward) / calls)}

    def checkpointing(self) -> Found:
        """What checkpointing adds to both passes for each tensor that it keeps, recomputation with it."""
        plain, again = self._passes("plain"), self._passes("checkpointing")
        saved = sum(again.work.of(phase, "saved").calls for phase in ("forward", "recomputation"))
        more = again.forward + again.backward - plain.forward - plain.backward
        return {"saved_seconds": _positive(more / saved)}

    def steps(self) -> Found:
        """Clipping and updating a tensor, and what the Trainer itself takes for a step."""
        built, plain = self._built("plain"), self._passes("plain")
        update, whole = self._update_seconds(built), self._trainer_step()
        return {
            "tensor_dispatch_seconds": update / len(built.parameters),
            "step_overhead_seconds": _positive(whole - plain.forward - plain.backward - update),
        }

    def _passes(self, variant: str) -> Passes:
        """
        Raises:
            Exception: what kept the variant from being built or run.
        """
        found = self._all[variant]
        if isinstance(found, Exception):
            raise found
        return found

    @cached_property
    def _all(self) -> dict[str, Passes | Exception]:
        """Every variant, in turns: what a host's clocks do meanwhile happens to all of them."""
        found: dict[str, Passes | Exception] = {}
        turns: dict[str, Callable[[], tuple[float, float]]] = {}
        works: dict[str, Work] = {}
        for variant in VARIANTS:
            try:
                works[variant], turns[variant] = self._work(variant), self._turn(variant)
            except Exception as error:
                found[variant] = error
        times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in turns}
        for _ in range(self.bench.sizes.repeats):
            for variant, turn in turns.items():
                times[variant].append(turn())
        for variant, pairs in times.items():
            ahead, behind = (statistics.median(column) for column in zip(*pairs, strict=True))
            found[variant] = Passes(forward=ahead, backward=behind, work=works[variant])
            print(f"{variant}: forward {1e3 * ahead:.2f} ms, backward {1e3 * behind:.2f} ms")
        return found

    def _turn(self, variant: str) -> Callable[[], tuple[float, float]]:
        """Runs both passes of a variant once; it has run before."""
        built = self._built(variant)
        batch, tokens = self._batch()

        def turn() -> tuple[float, float]:
            for parameter in built.parameters:
                parameter.grad = None
            return self._both(lambda: built.loss(batch, tokens))

        for _ in range(WARM_UP_CALLS):
            turn()
        return turn

    def _both(self, forward: Callable[[], Any]) -> tuple[float, float]:
        """The host's seconds for each pass, while the GPU may still be at it."""
        wait = self.bench.clock.wait
        wait()
        began = time.perf_counter()
        loss = forward()
        ahead = time.perf_counter() - began
        wait()
        began = time.perf_counter()
        loss.backward()
        return ahead, time.perf_counter() - began

    def _built(self, variant: str) -> Built:
        return build(VARIANTS[variant], small_model(self.bench.sizes), self.bench.clock.device)

    def _batch(self) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
        row = RandomTokens(VOCABULARY, TOKENS, 1, padded=False, seed=0)[0]
        batch = {name: tensor[None].to(self.bench.device) for name, tensor in row.items()}
        return batch, torch.tensor(TOKENS, device=self.bench.device)

    def _work(self, variant: str) -> Work:
        return DryRuns(config=small_model(self.bench.sizes))(VARIANTS[variant], find_device(self.card)).work

    def _update_seconds(self, built: Built) -> float:
        """Clipping and the optimizer's step, as the Trainer does them."""
        for parameter in built.parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer = built.make_optimizer()

        def update() -> None:
            nn.utils.clip_grad_norm_(built.parameters, LARGEST_NORM, foreach=True)
            optimizer.step()

        update()
        return self.bench.clock.issuing(update, self.bench.sizes.repeats)

    def _trainer_step(self) -> float:
        """A whole step under the stock Trainer."""
        built = self._built("plain")
        clock, steps = _Steps(self.bench.clock.wait), self.bench.sizes.trainer_steps
        job = Job(recipe=PLAIN, config=small_model(self.bench.sizes).fields, steps=steps)
        rows = RandomTokens(VOCABULARY, TOKENS, 2 * steps, padded=False, seed=0)
        with TemporaryDirectory() as folder:
            arguments = training_arguments(job, Path(folder), self.bench.clock.device)
            trainer = transformers.Trainer(
                model=built.model, args=arguments, train_dataset=rows, data_collator=Padding(0), callbacks=[clock]
            )
            trainer.train()
        return statistics.median(clock.seconds[WARM_UP_CALLS:])


class _Steps(transformers.TrainerCallback):
    """Times steps from one synchronisation to the next, as the meter of a job does."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait, self._began = wait, 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        self._wait()
        self._began = time.perf_counter()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self._wait()
        self.seconds.append(time.perf_counter() - self._began)


def _issued(work: Work, phase: str) -> float:
    """Operators that launch."""
    return sum(load.calls for (when, kind), load in work.loads.items() if when == phase and kind not in HOST_ONLY)


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise LostInNoiseError("took no time that could be told from the rest: measure on an idle machine")
    return seconds


HOST: dict[str, tuple[Callable[[Host], Found], tuple[str, ...]]] = {
    "operators": (
        Host.operators, ("view_seconds", "module_seconds", "operator_seconds", "backward_operator_seconds"),
    ),
    "PEFT's layers": (Host.adapters, ("adapter_seconds",)),
    "4-bit layers": (Host.four_bits, ("nf4_seconds", "backward_quantized_seconds")),
    "8-bit layers": (Host.eight_bits, ("int8_seconds",)),
    "checkpointing": (Host.checkpointing, ("saved_seconds",)),
    "the Trainer's steps": (Host.steps, ("tensor_dispatch_seconds", "step_overhead_seconds")),
}  # fmt: skip
"""By title: the microbenchmark, and the figures that it finds; each builds on those before it."""
