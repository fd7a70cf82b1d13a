"""From options to a question: which machines, which sequence lengths, how long the data are."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from estimators.catalogue import all_devices, find_device
from estimators.errors import BadInput
from planner.capacity.lengths import Lengths, by_characters
from planner.capacity.question import COUNTS, MOST_COUNTED, MOST_LENGTHENED, Machine, Question, Work
from planner.options import GpuRequest, read_gpus, shown
from planner.rules import Rules
from planner.search import default_length

CATALOGUE = "catalogue"
Requests = tuple[GpuRequest, ...] | None


def read_machines(text: str, option: str) -> Requests:
    """The kinds of GPU to compare: "h100,a100-80gb", "8xh100" for eight together; None is the whole catalogue."""
    if text.strip().lower() in (CATALOGUE, "catalog", "all"):
        return None
    found = read_gpus(text, option)
    if found is None:
        raise BadInput(f"{option} must be kinds of GPU such as h100,8xa100-80gb or {CATALOGUE}, not {shown(text)}")
    return found


def machines_of(requests: Requests, counts: tuple[int, ...] | None, models: int) -> tuple[Machine, ...]:
    """The machines: a kind named with a number stands for so many, and one without for the counts.

    Raises:
        UnknownName: a GPU is not in the catalogue.
    """
    if requests is None:
        kinds = [(device, 1) for device in all_devices()]
    else:
        kinds = [(find_device(request.name), request.number) for request in requests]
    names = {device.name for device, _ in kinds}
    usual = counts or (COUNTS if len(names) * models <= MOST_COUNTED else (1,))
    found: dict[str, Machine] = {}
    for device, number in kinds:
        before = found[device.name].counts if device.name in found else ()
        more = (number,) if number > 1 else usual
        found[device.name] = Machine(device=device, counts=tuple(sorted({*before, *more})))
    return tuple(found.values())


def lengths_asked(works: Sequence[Work], machines: int, rules: Rules) -> tuple[int, ...]:
    """The sequence lengths where none was said: what the data suggest, or the default; and its multiples, as "what if",
    where the question is small. None at all: each model's own default."""
    large = len(works) * machines > MOST_LENGTHENED
    if large and not any(work.lengths for work in works):
        return ()
    longest = min(work.model.max_positions for work in works)
    suggested = [work.lengths.suggested() for work in works if work.lengths]
    main = min(max(suggested), longest) if suggested else min(default_length(work.model, rules) for work in works)
    if large:
        return (main,)
    return (main, *(length for length in (2 * main, 4 * main) if length <= longest))


def read_lengths(path: Path, folder: Path | None) -> Lengths:
    """The lengths of a data file's examples, by the tokenizer of a folder, or estimated where that cannot be had.

    Raises:
        BadInput: the file is not one of examples; the message names the line.
    """
    from runners.lengths import character_counts, has_tokenizer, read_examples, token_counts

    examples = read_examples(path)
    why = "no folder with a tokenizer was given (--tokenizer FOLDER)"
    if folder is not None and has_tokenizer(folder):
        try:
            counts = token_counts(examples, folder)
            return Lengths(path=str(path), tokens=counts, counted_by=f"the tokenizer in {folder}", counted=True)
        except BadInput as error:
            why = str(error)
    return by_characters(str(path), character_counts(examples), why)


def with_lengths(question: Question, rules: Rules) -> Question:
    """The question with its sequence lengths filled in."""
    if question.sequence_lengths:
        return question
    return replace(question, sequence_lengths=lengths_asked(question.works, len(question.machines), rules))
