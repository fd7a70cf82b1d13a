"""The user's own score of a trained model: `function(examples, generations)`, from a module in a folder they name.

    def score(examples: list[dict], generations: list[str]) -> float: ...

It is their code, run with their rights: it comes from the command line and is never taken from a store or a recipe.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from estimators.errors import BadInput
from runners.examples import Example, question_of, read_examples
from runners.job import Job
from runners.learning import evaluating
from runners.turns import encode, render

Metric = Callable[[list[Example], list[str]], float]
ONE_PROCESS = ("none", "ddp")
"""Parallelisms under which one rank has the whole model and can generate by itself."""


def load_metric(job: Job) -> Metric | None:
    """The function that the job names; None where it names none.

    Raises:
        BadInput: there is no such module in the folder, no such function in it, it cannot be called as a metric is, or
            the module fails as it is imported.
    """
    training = job.training
    if training.metric is None or training.metric_folder is None:
        return None
    if job.recipe.parallelism.kind not in ONE_PROCESS:
        raise BadInput(f"a metric needs one GPU with the whole model, which {job.recipe.parallelism.kind} spreads")
    module_name, _, name = training.metric.partition(":")
    function = getattr(_module(module_name, Path(training.metric_folder)), name, None)
    if not callable(function):
        raise BadInput(f"metric {training.metric}: the module has no function {name!r}")
    _check_call(training.metric, function)
    return function  # type: ignore[no-any-return]


def _check_call(metric: str, function: Callable[..., Any]) -> None:
    """Before anything is trained for it."""
    if inspect.iscoroutinefunction(function):
        raise BadInput(f"metric {metric} is async, and a metric returns its number at once")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some compiled functions nobody knows it
        return
    try:
        signature.bind([], [])
    except TypeError as error:
        raise BadInput(f"metric {metric} is called with the examples and the generations: {error}") from None


def _module(name: str, folder: Path) -> ModuleType:
    """From that folder and no other: a module of the same name elsewhere is not what the user means."""
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise BadInput(f"metric module {name!r} of {folder}: {_line(error)}") from error
    finally:
        sys.path.remove(str(folder))
        sys.path.append(str(folder))  # what it imports later is found too, after everything of ours
    if not Path(str(module.__file__)).resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"metric module {name!r} is not in {folder}: another of that name is loaded; rename it")
    return module


def score(metric: Metric, job: Job, model: Any, tokenizer: Any, batch: int, beat: Callable[[int], None]) -> float:
    """What the metric says of the model's greedy answers to the held-out examples.

    `beat` is told the number of each batch that is answered.

    Raises:
        BadInput: it fails, or what it returns is not a number.
    """
    name, tokens = job.training.metric, job.training.metric_tokens
    examples = read_examples(Path(str(job.training.held_out)))
    prompts = [_prompt(example, tokenizer)[-job.recipe.sequence_length :] for example in examples]
    generations: list[str] = []
    with evaluating(model):
        for number, start in enumerate(range(0, len(prompts), batch), 1):
            generations += generate(model, prompts[start : start + batch], tokenizer, tokens)
            beat(number)
    try:
        value = metric(examples, generations)
    except (Exception, SystemExit) as error:
        raise BadInput(f"metric {name}: {_line(error)}") from error
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadInput(f"metric {name} returned a {type(value).__name__}, not a number")
    return float(value)


def generate(model: Any, prompts: Sequence[list[int]], tokenizer: Any, tokens: int) -> list[str]:
    """The likeliest answer to each prompt, at most so many tokens long. Padding on the left lets it follow its own."""
    width, device = max(map(len, prompts)), next(model.parameters()).device
    pad = tokenizer.pad_token_id
    inputs = torch.tensor([[pad] * (width - len(one)) + one for one in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
    found = model.generate(
        input_ids=inputs, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=tokens,
        use_cache=True, pad_token_id=pad, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return list(tokenizer.batch_decode(found[:, width:], skip_special_tokens=True))


def _prompt(example: Example, tokenizer: Any) -> list[int]:
    question = question_of(example)
    if isinstance(question, str):
        return list(tokenizer(question)["input_ids"]) or [tokenizer.eos_token_id]
    return encode(render(question, tokenizer, asking=True), tokenizer)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
