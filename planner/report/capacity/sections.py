"""The tables of a capacity report that Markdown and the page share: headings and rows of cells, nothing of a format."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from estimators.units import GIB, format_bytes
from planner.capacity.cost import HOURS_A_YEAR
from planner.capacity.decision import Decision, InTime, cost_of, in_time
from planner.capacity.history import History, Pair
from planner.capacity.lengths import PERCENTILES, Lengths
from planner.capacity.question import Question
from planner.capacity.report import Report, age_words
from planner.capacity.setups import Setup, job_tokens
from planner.capacity.swept import Swept
from planner.capacity.words import money
from planner.report.capacity.cells import Cell, Heading, band, cost_cell, has_length, kinds_of
from planner.report.figures import clean, count, duration, error_bar, gib, number_of, rate
from planner.report.terminal import TERMS
from planner.sweep.result import Trial

DEADLINE: dict[InTime, str] = {
    "in time": "met",
    "perhaps in time": "perhaps met",
    "too late": "missed",
    "no deadline": "-",
}


class Table(NamedTuple):
    headings: list[Heading]
    rows: list[list[Cell]]


def figures_of(question: Question, decision: Decision) -> list[tuple[str, str, str]]:
    """The chosen set-up in a few figures: what it is, its value, and its range or what it is held against."""
    chosen = decision.chosen
    if chosen is None:
        return []
    price, share = chosen.price, chosen.price.tightest
    found = []
    if chosen.seconds is not None:
        found.append(("time to train", duration(chosen.seconds.value), band(chosen.seconds, duration)))
    if cost := cost_of(question, chosen):
        what = f"cost, {question.basis}" if chosen.seconds is not None else f"a million tokens, {question.basis}"
        found.append(
            (what, money(cost.value, question.currency), band(cost, lambda one: money(one, question.currency)))
        )
    if chosen.gpu_hours is not None:
        found.append(("GPU-hours", f"{chosen.gpu_hours.value:,.3g}", band(chosen.gpu_hours, lambda one: f"{one:,.3g}")))
    if chosen.seconds is not None and (paid := chosen.bill(question.basis)):
        per = paid.per_million_tokens
        found.append(
            (
                "a million tokens",
                money(per.value, question.currency),
                band(per, lambda one: money(one, question.currency)),
            )
        )
    found.append(("speed", f"{rate(price.tokens_per_second.value)} tokens/s", error_bar(price.tokens_per_second)))
    found.append(("memory of a GPU", format_bytes(price.process.value),
                  f"of {format_bytes(share.budget_bytes)}, {gib(share.spare_bytes)} spare at worst"))  # fmt: skip
    found.append(("host RAM", format_bytes(price.host.value), error_bar(price.host)))
    found.append(("disk", *_disk(chosen)))
    return found


def _disk(setup: Setup) -> tuple[str, str]:
    """The checkpoint in 16 bits, and what is offloaded."""
    checkpoint = 2 * setup.model.parameters
    offloaded = f" and {format_bytes(setup.price.disk.value)} offloaded" if setup.price.disk.value else ""
    return format_bytes(
        checkpoint + setup.price.disk.value
    ), f"the checkpoint in 16 bits{offloaded}; what is saved on top"


def options_table(question: Question, decision: Decision) -> Table:
    """The best set-up of each method."""
    paid = kinds_of(question)
    long = has_length(question)
    heads = [Heading("method", right=False), Heading("on", right=False), *([Heading("time")] if long else [])]
    heads += [Heading(kind) for kind in paid] + [Heading("GiB a GPU"), Heading("spare GiB")]
    heads += [Heading("deadline", right=False), Heading("by", right=False)]
    rows = []
    for one in decision.options:
        cells = [Cell(one.method, kind="chosen" if one is decision.chosen else "text"), Cell(one.name, kind="text")]
        if long:
            cells.append(Cell(duration(one.seconds.value) if one.seconds else "-"))
        cells += [cost_cell(question, one, kind) for kind in paid]
        spare = one.price.tightest.spare_bytes
        cells += [Cell(gib(one.price.process.value)), Cell(gib(spare).replace("-", "−"), spare, one.price.verdict)]
        cells.append(Cell(DEADLINE[in_time(question, one)] if one.fits else "does not fit", kind="text"))
        rows.append([*cells, Cell(one.price.evidence, kind="text")])
    return Table(heads, rows)


def memory_table(setups: Sequence[Setup]) -> Table:
    """Memory of one GPU by term, against what the card has."""
    names = [name for name in TERMS if any(one.price.terms.get(name) for one in setups)]
    heads = [Heading("method", right=False), Heading("on", right=False)]
    heads += [Heading(TERMS[name]) for name in names] + [
        Heading("total"),
        Heading("±"),
        Heading("card"),
        Heading("spare"),
    ]
    rows = []
    for one in setups:
        share = one.price.tightest
        cells = [Cell(one.method, kind="text"), Cell(one.name, kind="text")]
        cells += [Cell(gib(one.price.terms.get(name, 0))) for name in names]
        cells += [Cell(gib(one.price.process.value)), Cell(error_bar(one.price.process)), Cell(gib(share.budget_bytes))]
        rows.append([*cells, Cell(gib(share.spare_bytes).replace("-", "−"), None, one.price.verdict)])
    return Table(heads, rows)


def memory_setups(decision: Decision, setups: Sequence[Setup], method: str) -> list[Setup]:
    """One set-up of a method on each card: the fewest GPUs on which it fits, or the most that were looked at."""
    found: dict[str, Setup] = {}
    for one in setups:
        right = one.model is decision.work.model and one.sequence_length == decision.sequence_length
        if not right or one.method != method:
            continue
        before = found.get(one.machine.device.name)
        if before is None or (not before.fits and one.gpus > before.gpus):
            found[one.machine.device.name] = one
    return sorted(found.values(), key=lambda one: (one.machine.device.total_bytes, one.machine.device.name))


def lengths_table(lengths: Lengths) -> Table:
    names = {share: "longest" if share == 100 else f"{share} of 100" for share in PERCENTILES}
    rows = [[Cell(name, kind="text"), Cell(f"{lengths.percentile(share):,}")] for share, name in names.items()]
    return Table([Heading("examples", right=False), Heading("tokens at most")], rows)


def padding_table(report: Report, decision: Decision) -> Table | None:
    """What padding costs on the chosen set-up, against packing."""
    chosen, lengths, question = decision.chosen, decision.work.lengths, report.question
    if chosen is None or lengths is None:
        return None
    length, batch = chosen.sequence_length, chosen.candidate.recipe.micro_batch
    wanted, padded = job_tokens(question, lengths, length, batch, packing=False)
    rows = []
    per_token = chosen.price.step_seconds.value / chosen.candidate.recipe.tokens_per_step
    paid = chosen.bill(question.basis)
    for name, tokens in (
        ("packed, no padding", wanted),
        (f"padded to the longest of a batch of {batch}", padded),
        (f"padded to {length:,}", lengths.examples * length * question.epochs),
    ):
        if tokens and wanted:
            cost = money(per_token * tokens * paid.per_hour / 3600, question.currency) if paid else "no price"
            rows.append([Cell(name, kind="text"), Cell(count(tokens)), Cell(f"{100 * (1 - wanted / tokens):.0f} %"),
                         Cell(duration(per_token * tokens)), Cell(cost)])  # fmt: skip
    heads = [Heading("batches", right=False), *map(Heading, ("tokens", "of them padding", "time", "cost"))]
    return Table(heads, rows)


def sweep_table(swept: Swept) -> Table:
    heads = [Heading("trial"), Heading("configuration", right=False), Heading("loss"), Heading("GiB"),
             Heading("tokens/s"), Heading("took"), Heading("end", right=False)]  # fmt: skip
    return Table(heads, [_trial(swept, one) for one in swept.trials])


def sweep_words(report: Report, swept: Swept) -> str:
    """What the sweep took, and what that cost where the kind of its GPUs and their price are known."""
    hours = swept.gpu_seconds() / 3600
    failed = sum(not one.ok for one in swept.trials)
    unit = "hours of the CPU" if all("cpu" in one.place.lower() for one in swept.trials) else "GPU-hours"
    text = f"{number_of(len(swept.trials), 'trial')} took {hours:,.3g} {unit}"
    text += f", {failed} of them without a result" if failed else ""
    cost = _sweep_cost(report, swept)
    how = (
        f": {money(cost, report.question.currency)} {report.question.basis}"
        if cost is not None
        else "; no price for it"
    )
    best = swept.chosen
    says = "By loss it would be" if swept.by_loss else "It says to use"
    use = f" {says} {_named(best)} (trial {best.number}): {clean(swept.why)}." if best else ""
    return f"{text}{how}.{use}"


def _sweep_cost(report: Report, swept: Swept) -> float | None:
    """The kind of GPU is in the store, by the job; the price is the cheapest of a GPU of that kind."""
    kinds = report.history.gpus if report.history else {}
    total = 0.0
    for trial in swept.trials:
        rate_per_gpu = _gpu_hour(report.question, kinds.get(trial.job))
        if rate_per_gpu is None:
            return None
        total += trial.seconds / 3600 * trial.recipe.parallelism.devices * rate_per_gpu
    return total


def _gpu_hour(question: Question, device: str | None) -> float | None:
    if question.basis == "owned" and question.ownership is not None:
        kinds = {one.device.name: one.device for one in question.machines}
        return question.ownership.per_hour(kinds[device].power_watts, 1) if device in kinds else None
    rates = [offer.per_hour / offer.gpus for offer in question.offers if offer.device == device and offer.per_hour]
    return min(rates, default=None)


def _named(one: Trial) -> str:
    return clean(one.configuration.name) + (f", alpha {one.configuration.alpha}" if one.configuration.alpha else "")


def _trial(swept: Swept, one: Trial) -> list[Cell]:
    on_front = swept.standing(one) == "front"
    end = "on the front" if on_front else f"seed {one.seed}" if one.repeat and one.ok else ""
    end = f"{end}, recommended" if one.number == swept.recommended else end
    return [
        Cell(str(one.number), one.number),
        Cell(_named(one), kind="chosen" if on_front else "text"),
        Cell("-" if one.loss is None else f"{one.loss:.4f}", one.loss),
        Cell("-" if one.vram_bytes is None else gib(one.vram_bytes), one.vram_bytes),
        Cell("-" if one.tokens_per_second is None else rate(one.tokens_per_second), one.tokens_per_second),
        Cell(duration(one.seconds), one.seconds),
        Cell(end or one.hopeless or one.outcome.value.replace("_", " "), kind="text"),
    ]


def history_table(history: History) -> Table:
    heads = [Heading("model", right=False), Heading("GPU", right=False), Heading("GiB expected"), Heading("measured"),
             Heading("off"), Heading("step expected"), Heading("measured"), Heading("off")]  # fmt: skip
    rows = []
    for run in history.runs:
        name = [Cell(clean(run.entry.recipe.model), kind="text"), Cell(clean(run.entry.gpu), kind="text")]
        rows.append([*name, *_pair(run.memory, GIB), *_pair(run.step, None)])
    return Table(heads, rows)


def _pair(pair: Pair | None, unit: int | None) -> list[Cell]:
    if pair is None:
        return [Cell("-")] * 3
    words = (lambda one: f"{one / unit:,.2f}") if unit else duration
    off = f"{100 * pair.error:+.1f} %".replace("-", "−")
    return [
        Cell(words(pair.predicted.value)),
        Cell(words(pair.measured)),
        Cell(off, pair.error, "fits" if pair.within else "tight"),
    ]


def history_words(history: History) -> str:
    """How far off the estimates were."""
    parts = []
    for figure, name in (("memory", "memory"), ("step", "step time")):
        if found := history.errors(figure):
            middle, worst, within = found
            parts.append(f"{name} off by {100 * middle:.1f} % in the median and {100 * worst:.1f} % at worst, "
                         f"{within} of {history.count(figure)} within the error bar")  # fmt: skip
    runs = number_of(len(history.runs), "run")
    return f"{runs} of this store had been predicted: {'; '.join(parts)}." if parts else ""


def prices_table(report: Report) -> Table:
    """The offers that are used, and how old they are."""
    used: dict[object, tuple[int, str]] = {}
    for one in report.setups:
        for paid in one.bills:
            if paid.offer is not None:
                used[paid.offer] = (used.get(paid.offer, (0, ""))[0] + 1, paid.kind)
    heads = [Heading("machine", right=False), Heading("GPUs", right=False), Heading("on demand an hour"),
             Heading("spot an hour"), Heading("from", right=False)]  # fmt: skip
    rows = []
    for sheet in report.question.sheets:
        for offer in sheet.offers:
            if offer in used:
                cells = [Cell(clean(offer.name), kind="text"), Cell(f"{offer.gpus} × {offer.device}", kind="text")]
                cells += [
                    Cell(money(one, sheet.currency) if one else "no price")
                    for one in (offer.per_hour, offer.spot_per_hour)
                ]
                rows.append([*cells, Cell(clean(f"{sheet.path}, {age_words(sheet, report.today)}"), kind="text")])
    return Table(heads, rows)


def sources(report: Report) -> Iterator[str]:
    """Where the prices come from, file by file."""
    for sheet in report.question.sheets:
        sample = "a sample; " if sheet.sample else ""
        stale = "stale" if sheet.is_stale(report.today) else "fresh"
        yield clean(f"{sheet.path}: {sample}{age_words(sheet, report.today)} ({stale}); source: {sheet.source}")
    if (own := report.question.ownership) is not None:
        for one in report.question.machines:
            offers = [o for o in report.question.offers if o.device == one.device.name and o.per_hour]
            best = min((o.per_hour / o.gpus for o in offers if o.per_hour), default=None)
            hours = own.break_even_hours(one.device.power_watts, best) if best is not None else None
            if hours is not None:
                years = hours / HOURS_A_YEAR
                yield (f"{one.device.name}: buying is cheaper than renting on demand after {hours:,.0f} hours of use "
                       f"({years:.1f} years around the clock)")  # fmt: skip
