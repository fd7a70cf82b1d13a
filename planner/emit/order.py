"""What is to be written: the recipe, where its weights and data are, the machine, and what the tools give back."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from estimators.recipe import Recipe

DataKind = Literal["completion", "messages"]
Settings = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A JSONL file of examples."""

    path: str
    """Absolute."""
    kind: DataKind
    """Of "prompt" and "completion", or of "messages"."""
    answered: bool = True
    """Whether each conversation has a turn of the assistant."""
    examples: int | None = None
    """How many there are; None: nobody counted them."""
    most_tokens: int | None = None
    """What all of them together can at most be, whatever the tokenizer is; None: nobody counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Of the learning rate."""

    name: str = "linear"
    """Of estimators.learning.SCHEDULES."""
    warm_up_steps: int | None = None
    """None: the usual share of all steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Everything that a file may say."""

    recipe: Recipe
    weights: str
    """A Hub id, or the absolute path of a checkpoint folder."""
    digest: str
    """Of plan.json, which lies beside the files: its SHA-256."""
    memory: str
    """The estimate in words: "14.97 GiB a GPU by dry run"."""
    data: Data | None = None
    nodes: int = 1
    steps: int | None = None
    """Optimizer steps; None: once through the data."""
    schedule: Schedule = Schedule()
    devices: tuple[str, ...] = ()
    """Names in the catalogue of the cards of a node."""
    rate_was_said: bool = True
    """Whether somebody chose the learning rate; else it is the field's usual one."""
    gpu_ids: tuple[int, ...] = ()
    """The driver's numbers of the GPUs to use, where they are some of this machine's; none: all, or the first."""
    tool: str | None = None
    """Whose files a job script starts; None: the estimated trainer's."""

    @property
    def gpus_per_node(self) -> int:
        return self.recipe.parallelism.devices // self.nodes

    @property
    def started(self) -> str:
        return self.tool or self.recipe.trainer

    @property
    def paths(self) -> tuple[str, ...]:
        """Of this machine: what the job reads from files, which must be wherever it runs."""
        weights = (self.weights,) if self.weights.startswith("/") else ()
        return (*weights, *((self.data.path,) if self.data else ()))

    @property
    def zero(self) -> bool:
        return self.recipe.parallelism.kind.startswith("zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that files are written for."""

    name: str
    packages: tuple[str, ...]
    """Whose versions its files were checked against."""
    files: Callable[[Order], Mapping[str, str]]
    """Texts by name, without the header. Raises BadInput for what the tool cannot express."""
    command: Callable[[Order], str] | None
    """What starts it, for a shell in the folder; None: nothing, by itself."""
    brings: Mapping[str, str] = field(default_factory=dict)
    """What of a recipe's further packages comes with it, by the name of its extra; an empty one: with the tool."""
    program: Callable[[Order], tuple[str, ...]] | None = None
    """What torchrun starts of its files, in words; raises BadInput for what needs another launcher."""
    launches: bool = False
    """Whether it starts the files of another tool and has none of its own to train with."""
    trainers: tuple[str, ...] = ()
    """Which recipes' memory is that of this tool, by Recipe.trainer; none: nobody has measured it."""
    doubt: Callable[[Order], str | None] = lambda order: None
    """What this tool does otherwise than was estimated, all the same."""
    notes: Callable[[Order], tuple[str, ...]] = lambda order: ()
    """What else whoever starts it should know."""
    own_template: bool = False
    """Whether it writes conversations without the chat template of the weights."""


def steps_of(tokens: int | None, samples: int | None, recipe: Recipe) -> int | None:
    """Optimizer steps of a job of so many tokens or sequences; None where neither is said."""
    if samples is not None:
        return max(1, math.ceil(samples / recipe.global_batch))
    return None if tokens is None else max(1, math.ceil(tokens / recipe.tokens_per_step))
