"""What plan can explain: its techniques as their law files describe them, its rules, and the words of its reports."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from estimators import techniques
from estimators.errors import UnknownName
from estimators.strategies.axes import Needs
from planner.rules import Rules, Rung

WORDS = {
    "budget": """What a job may take of a GPU: the smaller of the bytes that are free now (as NVML counts them) and
        --vram-budget. With --assume-idle, or on a GPU that is only described, the bytes that CUDA can hand out on an
        idle card: the driver keeps a share of the total.""",
    "headroom": "What stays free below the budget: 256 MiB or 2 % of it, the larger; --headroom sets it.",
    "fits": """Budget less headroom covers the whole process (tensors, cache, CUDA context, communication) at the upper
        end of its error bar, in the worst moment of the job; host memory and disk likewise.""",
    "tight": """It would run only because the allocator gives its cache back in time. It is never recommended, and
        counts as not fitting. Under --allocator-cap it survives, and how often the cache is emptied is said.""",
    "spare": "Budget less headroom less the upper end of the error bar: what is left over when all goes badly.",
    "error bar": """The range that held the truth in 95 of 100 measured runs. '± 5 %' and '−3 % +9 %' are relative to
        the figure before them.""",
    "evidence": """Where a figure of memory comes from: 'formula' (instant), 'dry run' (the real code without a GPU) or
        'measured' (on this machine).""",
    "dry run": """Two steps of the job with transformers, PEFT, bitsandbytes and torch themselves, on tensors without
        data: no GPU, no weights. Every allocation is replayed through a model of torch's allocator. It takes seconds,
        is kept in the cache folder, and needs pip install 'finetune-plan[train]'.""",
    "confirmed": """A dry run stands behind the plan. Asked are the best three recipes of the best rung that fit at the
        lower end of the formula's error bar, then those of the next rung, until one is found to fit; of those
        that the formula calls nearly as fast as it, the dry run takes the fastest.""",
    "unconfirmed": """Only the formula stands behind the plan: --fast was given, the libraries for a dry run are
        missing, or they cannot run the recipe; the report says which.""",
    "allocator cap": """What torch.cuda.set_per_process_memory_fraction would leave to torch's allocator, set after
        loading and without the CUDA context. 'plan estimate --allocator-cap SIZE' says whether a job survives it, and,
        as a smaller cap can do better than a larger one, all caps down through the error bar.""",
    "micro-batch": """Sequences of one forward and backward pass on one GPU. Micro-batch × accumulation × GPUs is the
        global batch, which the goal fixes; the split is free.""",
    "global batch": "Sequences of one optimizer step, over all GPUs.",
    "meaning": """What changes what is learned: method, rank, precision, optimizer, sequence length, global batch. The
        goal or the ladder fixes it; the search is free only in mechanics.""",
    "mechanics": "What changes cost and not what is learned: micro-batch, checkpointing, sharding, offload.",
    "gradient checkpointing": """Keep only the input of each block and compute the rest again in the backward pass: less
        memory, about a third more computation.""",
    "offload": """Optimizer states or parameters rest in host memory or in NVMe files. It needs --host-memory (and
        --host-disk) on a described machine, and is the last rung of the ladder.""",
    "objective": """quality: the best rung of the ladder that fits, then speed. throughput: the fastest that fits.
        memory: the smallest. cost: the fewest GPU-hours a token.""",
}
AXES = {
    "adapters": ("ADAPTERS", "what is trained"),
    "quantizations": ("QUANTIZATIONS", "how a frozen base is stored"),
    "optimizers": ("OPTIMIZERS", "--optimizer"),
    "parallelisms": ("PARALLELISMS", "how a job spreads over GPUs"),
    "attention": ("ATTENTIONS", "--attention"),
    "losses": ("LOSSES", "--loss"),
}
"""The axes of estimators/techniques.py: the registry, and what the axis decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something that can be explained."""

    name: str
    summary: str
    """One sentence."""
    details: tuple[str, ...] = ()
    """Paragraphs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """Entries of one kind, in their own order."""

    name: str
    about: str
    entries: tuple[Entry, ...]


def topics(rules: Rules) -> tuple[Topic, ...]:
    """Everything, by topic."""
    axes = [
        Topic(name=name, about=about, entries=tuple(map(_law_entry, getattr(techniques, registry).values())))
        for name, (registry, about) in AXES.items()
    ]
    ladder = tuple(_rung_entry(rung, f"rung {place}") for place, rung in enumerate(rules.ladder, 1))
    named = tuple(_rung_entry(rung, "only by name") for rung in rules.named)
    rule = [Entry(name=f"rule {place}", summary=one.words) for place, one in enumerate(rules.vram_rules, 1)]
    words = [Entry(name=word, summary=" ".join(text.split())) for word, text in WORDS.items()]
    return (
        Topic(name="methods", about="--method; those of the ladder first", entries=(*ladder, *named)),
        *axes,
        Topic(name="ladder", about="what is better than what; --rules replaces it", entries=ladder),
        Topic(name="rules", about="the starting pick by card, confirmed or overruled", entries=tuple(rule)),
        Topic(name="defaults", about="what is taken where nothing is said", entries=_default_entries(rules)),
        Topic(name="words", about="what a report means", entries=tuple(words)),
    )


def look_up(name: str, known: tuple[Topic, ...]) -> Topic | tuple[Entry, ...]:
    """The topic called `name`, or the entries of that name (one technique may stand in two topics).

    Raises:
        UnknownName: nothing is called so.
    """
    wanted = name.strip().lower()
    for topic in known:
        if wanted in (topic.name, topic.name.removesuffix("s")):
            return topic
    entries = {entry: None for topic in known for entry in topic.entries if entry.name == wanted}
    if not entries:
        names = [topic.name for topic in known]
        everything = dict.fromkeys([*names, *(entry.name for topic in known for entry in topic.entries)])
        raise UnknownName("topic", name, everything, hint=f"(topics: {', '.join(names)})")
    return tuple(entries)


def _law_entry(law: Any) -> Entry:
    """A technique: the docstring of its file, and what it needs."""
    first, *rest = _paragraphs(sys.modules[type(law).__module__].__doc__ or "undocumented")
    needs = [f"Needs {text}." for text in _needs(law.needs)]
    by_name = ["It trains differently from AdamW, so it is offered only by name."] if _changes_learning(law) else []
    variant = _variant(law)
    return Entry(
        name=law.name, summary=f"{first} Here: {variant}." if variant else first, details=(*rest, *needs, *by_name)
    )


def _variant(law: Any) -> str:
    """What sets a law apart from others of its file: its own fields, in words."""
    names = [name for name in getattr(type(law), "__slots__", ()) if name not in ("name", "needs", "changes_learning")]
    values = [(name.replace("_", " "), getattr(law, name)) for name in names]
    flags = [name for name, value in values if value is True]
    numbers = [f"{name} {value}" for name, value in values if type(value) is int]
    return ", ".join([*numbers, *flags])


def _changes_learning(law: Any) -> bool:
    return bool(getattr(law, "changes_learning", False))


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


def _needs(needs: Needs) -> list[str]:
    words = (
        [f"compute capability {'.'.join(map(str, needs.compute_capability))}"]
        if needs.compute_capability > (0, 0)
        else []
    )
    lists: Mapping[str, tuple[str, ...] | None] = {
        "adapter": needs.adapters,
        "quantization": needs.quantizations,
        "optimizer": needs.optimizers,
        "parallelism": needs.parallelisms,
        "trainer": needs.trainers,
        "compute type": needs.data_types,
    }
    return words + [f"{axis} {' or '.join(names)}" for axis, names in lists.items() if names is not None]


def _rung_entry(rung: Rung, place: str) -> Entry:
    trained = "all weights" if rung.adapter == "full" else f"{rung.adapter} adapters"
    base = {"none": "an unquantised base"}.get(rung.quantization, f"a base in {rung.quantization}")
    stored = (
        "float32 weights under 16-bit autocast" if rung.weights == "float32" else "weights in the 16-bit compute type"
    )
    text = f"{place}: trains {trained}{'' if rung.adapter == 'full' else f' beside {base}'}, {stored}, with "
    return Entry(name=rung.method, summary=text + " or ".join(rung.optimizers) + ".")


def _default_entries(rules: Rules) -> tuple[Entry, ...]:
    defaults = rules.defaults
    return tuple(
        Entry(name=name.replace("_", " "), summary=str(getattr(defaults, name))) for name in type(defaults).__slots__
    )
