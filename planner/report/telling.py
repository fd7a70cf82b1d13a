"""A sweep in words: a plain line an event, how a trial and its end are called, and the command for its recipe."""

from estimators.outcome import EVALUATION, FIRST_STEP, LOAD, SAVE, STEADY
from estimators.recipe import Recipe
from estimators.units import format_bytes
from planner.report.figures import clean, duration, number_of, rate
from planner.report.page import Span
from planner.sweep.result import Event, Finished, Moved, Planned, Retried, Started, Trial

USUAL_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")
"""The same optimizer, as GPUs and as CPUs have it: what plan takes by itself."""
DOING = {LOAD: "loads", FIRST_STEP: "trains", STEADY: "trains", EVALUATION: "evaluates", SAVE: "saves"}


def doing(phase: str) -> str:
    """What a trial does in a phase of a job, in a word; a phase that is none comes from outside."""
    return DOING.get(phase, clean(phase))


def configuration_of(name: str, alpha: int) -> str:
    """ "lora r16 alpha 64, lr 0.0002": names of layers come from outside."""
    head, comma, rest = clean(name).partition(",")
    return f"{head} alpha {alpha}{comma}{rest}" if alpha else clean(name)


def end_of(trial: Trial) -> Span:
    """How a trial ended, in a word or three."""
    if trial.hopeless:
        return "hopeless", "warn"
    if trial.ok:
        return ("disturbed", "warn") if trial.notes else ("done", "good")
    return trial.outcome.value.replace("_", " "), "warn" if trial.out_of_memory else "bad"


def best_of(trial: Trial) -> str:
    """ "trial 3, lora r16 alpha 64, lr 0.0002, loss 1.2345"."""
    name = configuration_of(trial.configuration.name, trial.configuration.alpha)
    return f"trial {trial.number}, {name}" + ("" if trial.loss is None else f", loss {trial.loss:.4f}")


def in_words(event: Event) -> str:
    """An event as one line of a log."""
    if isinstance(event, Planned):
        return _planned(event)
    if isinstance(event, Started):
        return _started(event)
    if isinstance(event, Moved):
        return _moved(event)
    if isinstance(event, Retried):
        return f"{_at(event.place)}trial {event.number} was lost and runs again: {event.reason}"
    if isinstance(event, Finished):
        return _finished(event)
    return f"not launched: {event.screened.configuration.name}: {event.screened.reason}"


def _at(place: str) -> str:
    """Where a trial ran; nobody knows of one whose end an earlier command has not told."""
    return f"{place}: " if place else ""


def _planned(event: Planned) -> str:
    terms, parts = event.terms, [number_of(len(event.queue), "trial") + f" of {event.terms.steps} steps to run"]
    parts += [f"{len(event.finished)} ended before"] * bool(event.finished)
    parts += [f"{len(event.screened)} not launched"] * bool(event.screened)
    parts += [] if not event.expected_seconds else [f"about {duration(event.expected_seconds)}"]
    parts += [] if event.budget_seconds is None else [f"{duration(event.budget_seconds)} allowed"]
    return f"sweep of {terms.model} on {', '.join(event.places)}: {', '.join(parts)}"


def _started(event: Started) -> str:
    one = event.expected
    expected = [] if one.vram_bytes is None else [format_bytes(one.vram_bytes)]
    expected += [] if one.seconds is None else [duration(one.seconds)]
    again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
    name = configuration_of(one.configuration.name, one.configuration.alpha)
    told = f", expected {' and '.join(expected)}" if expected else ""
    return f"{event.place}: trial {event.number} starts{again}: {name}{told}"


def _moved(event: Moved) -> str:
    one = event.progress
    parts = [f"{one.place}: trial {event.number} {doing(one.phase)}", f"step {one.step} of {event.steps}"]
    parts += [] if one.loss is None else [f"loss {one.loss:.4f}"]
    parts += [] if one.vram_bytes is None else [format_bytes(one.vram_bytes)]
    parts += [] if one.tokens_per_second is None else [f"{rate(one.tokens_per_second)} tokens/s"]
    return ", ".join(parts)


def _finished(event: Finished) -> str:
    trial = event.trial
    parts = [] if trial.loss is None else [f"loss {trial.loss:.4f}"]
    parts += [] if trial.vram_bytes is None else [format_bytes(trial.vram_bytes)]
    parts += [] if trial.tokens_per_second is None else [f"{rate(trial.tokens_per_second)} tokens/s"]
    parts += [duration(trial.seconds)]
    how = end_of(trial)[0] + (f" ({trial.hopeless or trial.evidence})" if not trial.ok else "")
    left = f", about {duration(event.seconds_left)} of them" if event.seconds_left else ""
    best = f"; best so far {best_of(event.best)}" if event.best is not None else ""
    return f"{_at(trial.place)}trial {trial.number} {how}: {', '.join(parts)}{best}; {event.waiting} waiting{left}"


def recipe_command(trial: Trial, *more: str) -> list[str]:
    """`plan` with the options that make this trial's recipe of its model, which `more` may name in its place."""
    one, recipe = trial.configuration, trial.recipe
    words = ["plan", *([] if "--model" in more else ["--model", recipe.model]), "--method", one.method]
    if one.rank:
        words += ["--rank", str(one.rank), "--alpha", str(one.alpha), *_targets(recipe)]
        words += ["--dropout", f"{one.dropout:g}"] if one.dropout else []
    words += ["--seq-len", str(recipe.sequence_length), "--global-batch", str(recipe.global_batch)]
    words += ["--micro-batch", str(recipe.micro_batch)]
    words += ["--checkpointing" if recipe.gradient_checkpointing else "--no-checkpointing"]
    words += ["--loss", recipe.loss] if recipe.loss != "plain" else []
    searched = trial.vram_bytes is not None and "--data" in more  # on a GPU, by what plan knows of the data
    words += ["--expandable-segments"] if recipe.expandable_segments else ["--no-expandable-segments"] * searched
    words += ["--optimizer", recipe.optimizer] if recipe.optimizer not in USUAL_OPTIMIZERS else []
    words += ["--attention", recipe.attention] if recipe.attention != "sdpa" or searched else []
    words += ["--trainer", recipe.trainer] if recipe.trainer != "transformers" else []
    words += ["--padded"] if recipe.padded else []
    words += ["--packing"] if recipe.packing else []
    full = recipe.weights == recipe.compute == "float32" and not recipe.quantized
    words += ["--precision", "fp32"] if full and "--precision" not in more else []
    words += ["--offload", "never"] if not recipe.parallelism.offload else []
    words += ["--learning-rate", repr(recipe.learning_rate)]
    return [*words, *more]


def _targets(recipe: Recipe) -> list[str]:
    targets = recipe.adapter.targets
    return ["--targets", targets if isinstance(targets, str) else ",".join(targets)]
