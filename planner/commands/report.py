"""`plan report`: which set-up to rent or to buy, what it costs, by when it is done, and what that rests on."""

import gc
import math
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimators.errors import BadInput
from planner import options
from planner.capacity.ask import CATALOGUE, machines_of, read_lengths, read_machines, with_lengths
from planner.capacity.cost import Ownership
from planner.capacity.prices import one_currency, read_day, read_sheet
from planner.capacity.question import Question, Work
from planner.commands.parameters import VERBOSE, Read, as_typed, model_names
from planner.commands.plan import SECTIONS, config_named
from planner.goal import Goal
from planner.lists import read_duration
from planner.report.paint import say
from planner.rules import Rules, load_rules

if TYPE_CHECKING:
    from estimators.models import Config
    from estimators.size import Tracer
    from planner.capacity.make import Tracers
    from planner.capacity.report import Report

FORMATS = {"html": ".html", "markdown": ".md", "json": ".json", "csv": ".csv"}
OBJECTIVES = ("cost", "quality", "time")
MOST_MODELS, MOST_LENGTHS = 64, 8
OF_THE_WORK = ("methods", "rank", "alpha", "targets", "global_batch", "optimizer", "trainer", "rules_path")
"""Options that mean what they mean to `plan` itself."""


def _run(**values: Any) -> int:
    gc.disable()  # until main() ends: thousands of prices are kept, and looking for garbage among them takes long
    fmt = _format(values["format"], values["output"])
    today = datetime.now(UTC).date()
    rules = load_rules(values["rules_path"])
    found = {name: config_named(name, offline=values["offline"]) for name in _models(values["models"])}
    configs = {
        name: config for name, config in found.items() if config is _first(found, config)
    }  # aliases of one model
    question = _question(values, configs, rules, today)
    report = _report(values, question, configs, rules, today)
    _write(_text(report, fmt), values["output"])
    return report.exit_code


def _models(names: tuple[str, ...]) -> list[str]:
    found = list(dict.fromkeys(part.strip() for name in names for part in name.split(",")))
    if not found:
        raise BadInput("--model is missing, such as --model llama-3.1-8b (plan models lists them)")
    if len(found) > MOST_MODELS or not all(found):
        raise BadInput(f"--model must be names, at most {MOST_MODELS} of them")
    return found


def _first(found: Mapping[str, "Config"], config: "Config") -> "Config":
    return next(one for one in found.values() if (one.name, one.fields) == (config.name, config.fields))


def _question(values: Mapping[str, Any], configs: Mapping[str, "Config"], rules: Rules, today: date) -> Question:
    from estimators.hardware import Host
    from estimators.models import build

    if values["tokens"] and values["data"]:
        raise BadInput("give --tokens or --data, not both")
    given = {name: values[name] for name in Goal.__slots__ if name in values}
    methods = tuple(dict.fromkeys(name for names in values["methods"] for name in names)) or None
    works = []
    for name, config in configs.items():
        lengths = read_lengths(Path(values["data"]), _tokenizer(name, values)) if values["data"] else None
        goal = Goal(**{**given, "model": name, "methods": methods, "varying": lengths is not None})
        works.append(Work(model=build(config), goal=goal, lengths=lengths))
    sheets = tuple(read_sheet(name, today, values["prices_date"]) for name in values["prices"])
    host = Host(memory_bytes=values["host_memory"], disk_bytes=values["host_disk"], nvme=bool(values["host_disk"]))
    question = Question(
        works=tuple(works),
        machines=machines_of(values["gpus"], values["gpu_counts"], len(works)),
        sequence_lengths=values["sequence_lengths"] or (),
        tokens=values["tokens"],
        epochs=values["epochs"],
        deadline_seconds=values["deadline"],
        host=host,
        sheets=sheets,
        currency=one_currency(sheets),
        ownership=_ownership(values),
        objective=values["objective"],
    )
    return with_lengths(question, rules)


def _tokenizer(name: str, values: Mapping[str, Any]) -> Path | None:
    """The folder that was named, or the checkpoint's own."""
    if values["tokenizer"]:
        return Path(values["tokenizer"])
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def _ownership(values: Mapping[str, Any]) -> Ownership | None:
    given = [name for name in ("pue", "purchase_price", "years") if values[name] is not None]
    if values["power_price"] is None:
        if given:
            raise BadInput(f"--{given[0].replace('_', '-')} says nothing without --power-price")
        return None
    return Ownership(
        power_price_per_kwh=values["power_price"],
        pue=values["pue"] or 1.0,
        purchase_price_per_gpu=values["purchase_price"] or 0.0,
        years=values["years"] or 3.0,
    )


def _report(
    values: Mapping[str, Any], question: Question, configs: Mapping[str, "Config"], rules: Rules, today: date
) -> "Report":
    from planner.capacity.history import read_history
    from planner.capacity.make import make_report
    from planner.capacity.swept import read_sweep

    store = Path(values["store_path"]) if values["store_path"] else None
    if store is not None and not store.exists():
        raise BadInput(f"--store {store}: there is no such file")
    return make_report(
        question,
        rules,
        today=today,
        command=shlex.join(["plan", "report", *click.get_current_context().meta[TYPED]]),
        tracers=None if values["fast"] else _tracers(configs),
        history=read_history(store),
        swept=read_sweep(Path(values["sweep"])) if values["sweep"] else None,
    )


def _tracers(configs: Mapping[str, "Config"]) -> "Tracers | None":
    from planner.dry import tracer_of, what_is_missing

    if what_is_missing():
        return None
    made = {config.name: tracer_of(config) for config in configs.values()}
    told: set[str] = set()

    def traced(name: str) -> "Tracer":
        if name not in told:
            say(f"dry run of what is best for {name} …")
        told.add(name)
        return made[name]

    return traced


def _format(said: str | None, output: str | None) -> str:
    """As was said, or as the file's name ends; Markdown on the screen."""
    suffix = Path(output).suffix.lower() if output else ""
    return said or next((name for name, end in FORMATS.items() if end == suffix), "markdown")


def _text(report: "Report", fmt: str) -> str:
    if fmt == "json":
        from planner.report.capacity.document import report_document
        from planner.report.json import dump

        return dump(report_document(report)) + "\n"
    if fmt == "csv":
        from planner.report.capacity.flat import csv_text

        return csv_text(report)
    if fmt == "html":
        from planner.report.capacity.page import page_text

        return page_text(report)
    from planner.report.capacity.markdown import markdown_text

    return markdown_text(report)


def _write(text: str, output: str | None) -> None:
    if output is None:
        from planner.report.paint import write

        write(text.removesuffix("\n"))
        return
    path = Path(output)
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise BadInput(f"--output {path}: {error.strerror}") from None
    say(f"wrote {path} ({len(text.encode()):,} bytes)")


def read_amount(low: float, high: float) -> Callable[[str, str], float]:
    """A reader of plain numbers from `low` to `high`."""

    def read(text: str, option: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise BadInput(f"{option} must be a number from {low:g} to {high:g}, not {options.shown(text)}")
        return value

    return read


def read_whole_list(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas, in the order given, each once."""
    read = options.whole(1, 1 << 24)
    found = tuple(dict.fromkeys(read(part, option) for part in text.split(",")))
    if len(found) > MOST_LENGTHS:
        raise BadInput(f"{option} takes at most {MOST_LENGTHS} numbers")
    return found


TYPED = "planner.commands.report.typed"


class Remembering(click.Command):
    """A command that knows what was typed after it, for the report to say how it is made again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = list(args)
        return super().parse_args(ctx, args)


def _shared(section: str) -> list[click.Option]:
    return [option for option in SECTIONS[section] if option.name in OF_THE_WORK]


def _kinds() -> list[str]:
    from estimators.catalogue import device_names

    return [CATALOGUE, *device_names()]


def _one_of(names: tuple[str, ...]) -> Read:
    return Read(options.choice(lambda: names), "NAME", lambda: names)


command = Remembering(
    "report",
    short_help="Compare models and GPUs by time and money: a page to decide on.",
    help="Say which set-up to rent or to buy for a fine-tuning job, what it costs and by when it is done: a page "
    "(html), Markdown, JSON or CSV.\n\nPrices come from files with the columns of SkyPilot's catalogue; none is made "
    "up. Exit codes: 0 something fits, 3 nothing fits.",
    callback=_run,
    params=[
        click.Option(["--model", "models"], multiple=True, type=Read(as_typed, "MODEL", model_names),
                     help="A catalogued name, a Hub id or a path; repeat it, or separate by commas."),
        click.Option(["--gpus"], type=Read(read_machines, "GPUS", _kinds), default=CATALOGUE, show_default=True,
                     help="Kinds to compare: h100,a100-80gb; 8xh100 stands for eight together."),
        click.Option(["--gpu-counts"], type=Read(read_whole_list, "LIST"),
                     help="How many of a kind together; by default 1,2,4,8, or 1 where much is compared."),
        click.Option(["--seq-len", "sequence_lengths"], type=Read(read_whole_list, "LIST"),
                     help="Tokens a sequence: the first is decided for, the others answer what if."),
        click.Option(["--tokens"], type=Read(options.read_count, "N"), help="Length of the job: 100M."),
        click.Option(["--data"], type=Read(as_typed, "FILE"), help="Or its examples as JSONL, to be counted."),
        click.Option(["--tokenizer"], type=Read(as_typed, "FOLDER"), help="To count with, where --model is no folder."),
        click.Option(["--epochs"], type=Read(options.whole(1, 1000), "N"), default=1, help="Times through the data."),
        click.Option(["--deadline"], type=Read(read_duration, "TIME"), help="The job must be done within: 24h."),
        click.Option(["--objective"], type=_one_of(OBJECTIVES), default="cost",
                     help="What decides among set-ups in time: cost, quality (full, lora, qlora) or time."),
        *_shared("What is learned"), *_shared("How it is run"),
        click.Option(["--host-memory"], type=Read(options.read_size, "SIZE"), help="RAM of a machine, for offload."),
        click.Option(["--host-disk"], type=Read(options.read_size, "SIZE"), help="NVMe of a machine, for offload."),
        click.Option(["--prices"], multiple=True, type=Read(as_typed, "FILE"),
                     help="A CSV of SkyPilot's columns, or the name of a shipped sample; repeat it for more."),
        click.Option(["--prices-date"], type=Read(read_day, "DAY"), help="Of files that do not say it: 2026-11-01."),
        click.Option(["--power-price"], type=Read(read_amount(0, 100), "PRICE"), help="Of a kWh, for owned GPUs."),
        click.Option(["--pue"], type=Read(read_amount(1, 5), "RATIO"), help="Power of the site over its machines'."),
        click.Option(["--purchase-price"], type=Read(read_amount(0, 1e7), "PRICE"), help="Of one GPU of your own."),
        click.Option(["--years"], type=Read(read_amount(0.1, 50), "N"), help="Over which it is spread; by default 3."),
        click.Option(["--store", "store_path"], type=Read(as_typed, "PATH"), help="Another store of measured runs."),
        click.Option(["--sweep"], type=Read(as_typed, "PATH"), help="A sweep's folder, or what sweep --json wrote."),
        click.Option(["--format"], type=_one_of(tuple(FORMATS)), help="html, markdown, json or csv."),
        click.Option(["--output", "-o"], type=Read(as_typed, "FILE"), help="By default the screen."),
        click.Option(["--fast"], is_flag=True, help="By formula only, without a dry run of what is recommended."),
        VERBOSE,
        click.Option(["--offline"], is_flag=True, help="Never ask the Hub."),
    ],
)  # fmt: skip
