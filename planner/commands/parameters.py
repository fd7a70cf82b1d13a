"""Options as click knows them: one type that reads a text with a reader of planner/options.py; the shared options."""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from planner import options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic since click 8.4 only

Reader = Callable[[str, str], Any]


class Read(ParamType):
    """A value that a reader makes of the text; `names`, asked for only by the shell, completes it."""

    def __init__(self, reader: Reader, metavar: str, names: options.Names | None = None) -> None:
        self.name = metavar
        self._reader, self._names = reader, names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._reader(value, option_name(param)) if isinstance(value, str) else value

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list["CompletionItem"]:
        from click.shell_completion import CompletionItem

        start, comma, last = incomplete.rpartition(",")
        count = re.match(r"([0-9]+x)?", last)
        start += comma + (count[0] if count else "")
        known, typed = self._names() if self._names else (), incomplete[len(start) :].lower()
        return [CompletionItem(start + name) for name in known if name.startswith(typed)]


def option_name(param: click.Parameter | None) -> str:
    """As people type it: the longest spelling."""
    return max(param.opts, key=len) if param else "the value"


def gpu_names() -> Iterable[str]:
    from estimators.catalogue import device_names

    return [options.AUTO, *device_names()]


def model_names() -> Iterable[str]:
    from estimators.models import names

    return names()


def as_typed(text: str, _option: str) -> str:
    return text


GPUS = click.Option(
    ["--gpus"],
    type=Read(options.read_gpus, "GPUS", gpu_names),
    default=options.AUTO,
    show_default=True,
    help="auto, or the GPUs of one node: 2xa100-80gb, rtx-4090, rtx-3090:2,a100-80gb:1.",
)
HARDWARE = (
    click.Option(["--nodes"], type=Read(options.whole(1, 1024), "N"), default=1, help="So many such nodes."),
    click.Option(["--host-memory"], type=Read(options.read_size, "SIZE"), help="RAM of a node, for offload: 128GiB."),
    click.Option(["--host-disk"], type=Read(options.read_size, "SIZE"), help="Free NVMe of a node, for offload: 1TB."),
    click.Option(
        ["--link"],
        type=Read(options.read_link, "LINK", lambda: options.LINKS),
        help="Between GPUs, or between nodes: nvlink4, pcie4-x16, infiniband-ndr, 50GB/s one way.",
    ),
)
BUDGET = (
    click.Option(["--vram-budget", "vram_budget_bytes"], type=Read(options.read_size, "SIZE"), help="Per GPU: 22GiB."),
    click.Option(
        ["--headroom", "headroom_bytes"],
        type=Read(options.read_headroom, "SIZE"),
        help="Kept free below the budget: 1GiB; by default 256 MiB or 2 %, the larger.",
    ),
    click.Option(["--assume-idle"], is_flag=True, help="Take the whole GPU, as if nobody else used it."),
)
AS_JSON = click.Option(["--json", "as_json"], is_flag=True, help="One JSON document on stdout.")
QUIET = click.Option(["--quiet", "-q"], is_flag=True, help="The verdict and the next command only.")
VERBOSE = click.Option(["--verbose", "-v"], is_flag=True, help="More detail; a trace where plan itself fails.")
