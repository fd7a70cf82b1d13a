"""The plan as a person reads it: the verdict first, the figures behind it, and the next command last."""

from collections.abc import Sequence

from estimators.price import GpuShare, Interval, Price
from estimators.units import format_bytes
from planner.plan import Candidate, Plan
from planner.report.figures import (
    clean,
    count,
    describe,
    duration,
    error_bar,
    gib,
    label,
    machine,
    number_of,
    rate,
)
from planner.report.page import BLANK, Column, Line, Span, labelled, paragraph, table, title
from planner.words import beside_training

TERMS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "logits": "logits and loss",
    "workspace": "workspace",
    "context": "CUDA context",
    "communication": "communication buffers",
    "slack": "allocator slack",
}
"""A price's terms in the words of a report, in its order."""
VERDICTS = {"fits": "good", "tight": "warn", "does not fit": "bad"}
BAR_WIDTH = 24
RANKING = (
    Column(title="method"),
    Column(title="GiB", right=True),
    Column(title="±", vital=False),
    Column(title="spare", right=True),
    Column(title="tokens/s", right=True),
    Column(title="±", vital=False),
    Column(title="by", style="dim", vital=False),
    Column(title="why", flows=True),
)
SPEED_BAR, EVIDENCE = 5, 6
"""Columns that are left out where they would say the same in every row."""


def plan_page(plan: Plan, width: int, *, verbose: bool = False) -> list[Line]:
    """Everything that is worth saying about a plan."""
    page = verdict_lines(plan, width)
    if plan.chosen:
        page += _recipe(plan, plan.chosen, width)
        page += _memory(plan, plan.chosen, width)
        page += _speed(plan, plan.chosen)
        page += _details(plan.chosen.price) if verbose else []
    page += _ranking(plan, width)
    page += _reasons(plan, width)
    return [*page, *_next(plan, width)]


def quiet_page(plan: Plan, width: int) -> list[Line]:
    """The verdict and the next command."""
    return [*verdict_lines(plan, width), *_command(plan)]


def verdict_lines(plan: Plan, width: int) -> list[Line]:
    style = VERDICTS[plan.chosen.price.verdict] if plan.chosen else "bad"
    return paragraph(clean(plan.verdict), width, style)


def _recipe(plan: Plan, chosen: Candidate, width: int) -> list[Line]:
    cluster = f"{machine(plan.cluster)}{' (hypothetical)' if plan.cluster.hypothetical else ''}"
    used = f", of which {chosen.gpus} used" if chosen.gpus < plan.cluster.size else ""
    rows = [*describe(chosen.recipe, plan.model.parameters), ("machine", cluster + used)]
    return [*title("Recipe"), *labelled(rows, width)]


def _memory(plan: Plan, chosen: Candidate, width: int) -> list[Line]:
    """The terms with their bars, the total with its error bar, and what it is held against."""
    price = chosen.price
    share = price.tightest
    known = [(name, price.terms[name]) for name in TERMS if price.terms.get(name)]
    terms = known + [(name, size) for name, size in price.terms.items() if size and name not in TERMS]
    whole = max(share.budget_bytes, round(price.process.value))
    names = [TERMS.get(name, name) for name, _ in terms]
    column = max(map(len, [*names, "kept as headroom"])) + 2
    page = title("Memory of one GPU", f"{_whose(price)}at the {price.peak_moment}; {price.evidence}", width)
    for name, (_, size) in zip(names, terms, strict=True):
        page.append(_sized(name, column, size, ((_bar(size, whole), "bar"),)))
    page.append(_sized("total", column, price.process.value, ((error_bar(price.process), ""),), "bold"))
    page.append(_sized("budget", column, share.budget_bytes, ((_origin(plan, share), "dim"),)))
    page.append(_sized("kept as headroom", column, share.headroom_bytes))
    page.append(_left_over(price, column, width))
    return page + (_beside(price, column) if chosen.recipe.parallelism.offload else [])


def _whose(price: Price) -> str:
    """Which GPU it is, where they differ."""
    if len({(share.name, share.budget_bytes) for share in price.gpus}) < 2:
        return ""
    share = price.tightest
    return f"the tightest, {share.name}{'' if share.index is None else f' (GPU {share.index})'}; "


def _sized(name: str, column: int, size: float, more: tuple[Span, ...] = (), style: str = "") -> Line:
    return ((f"  {name:<{column}}", style or "dim"), (f"{format_bytes(size):>11}", style), ("  ", ""), *more)


def _bar(size: float, whole: float) -> str:
    halves = round(2 * BAR_WIDTH * size / whole)
    return "█" * (halves // 2) + "▌" * (halves % 2)


def _origin(plan: Plan, share: GpuShare) -> str:
    """What the budget is: the user's limit, or what that GPU offers."""
    if share.budget_bytes == plan.goal.vram_budget_bytes:
        return "--vram-budget"
    idle = plan.cluster.hypothetical or plan.goal.assume_idle
    gpus = [gpu for gpu in plan.cluster.gpus if (gpu.device.name, gpu.index) == (share.name, share.index)]
    total = f" of {format_bytes(gpus[0].total_bytes)}" if gpus else ""
    return f"usable{total} when idle" if idle else f"free now{total}"


def _left_over(price: Price, column: int, width: int) -> Line:
    """Of the worst phase, which is named with its size where it is another than the rows above add up to."""
    share = price.tightest
    left = share.spare_bytes
    name = "spare" if left >= 0 else "missing"
    where = "at the upper end of the error bar: " if width >= 80 else ""
    if other := beside_training(price):
        where = f"{other}, at most {format_bytes(share.worst_phase.high)}: " if width >= 80 else f"{other}: "
    note = (f"{where}{share.verdict}", VERDICTS[share.verdict])
    return _sized(name, column, abs(left), (note,), "bold")


def _beside(price: Price, column: int) -> list[Line]:
    """Host memory and disk."""
    page: list[Line] = []
    for name, size, verdict in (
        ("host memory", price.host, price.host_verdict),
        ("disk", price.disk, price.disk_verdict),
    ):
        if size.value:
            note = ((f"{error_bar(size)}  ", ""), (verdict, VERDICTS[verdict]))
            page.append(_sized(name, column, size.value, note))
    return page


def _speed(plan: Plan, chosen: Candidate) -> list[Line]:
    price = chosen.price
    rows = [
        ("tokens/s", rate(price.tokens_per_second.value), error_bar(price.tokens_per_second)),
        ("step", duration(price.step_seconds.value), error_bar(price.step_seconds)),
        *_job(plan, chosen),
    ]
    return [*title("Speed", price.evidence), *_aligned(rows)]


def _job(plan: Plan, chosen: Candidate) -> list[tuple[str, str, str]]:
    """Hours and GPU-hours of the whole job, where its length was given."""
    seconds = job_seconds(plan, chosen)
    if seconds is None:
        return []
    hours = f"{seconds.value * chosen.gpus / 3600:,.3g}"
    amount = count(plan.goal.samples or plan.goal.tokens or 0)
    what = f"{amount} {'samples' if plan.goal.samples else 'tokens'}"
    return [(what, duration(seconds.value), error_bar(seconds)), ("GPU-hours", hours, error_bar(seconds))]


def job_seconds(plan: Plan, candidate: Candidate) -> Interval | None:
    """How long the job of --tokens or --samples takes; None where neither was given."""
    recipe, step = candidate.recipe, candidate.price.step_seconds
    if plan.goal.samples:
        return step.scaled(plan.goal.samples / recipe.global_batch)
    return step.scaled(plan.goal.tokens / recipe.tokens_per_step) if plan.goal.tokens else None


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[Line]:
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [
        ((f"  {name:<{first}}  ", "dim"), (f"{figure:>{second}}", ""), (f"  {note}" if note else "", ""))
        for name, figure, note in rows
    ]


def _details(price: Price) -> list[Line]:
    """Where the time goes, and memory at each moment."""
    time = sorted(price.seconds.items(), key=lambda item: -item[1])
    spent = [
        (name, duration(seconds), f"{seconds / price.step_seconds.value:.0%}") for name, seconds in time if seconds
    ]
    moments = [(name, format_bytes(size), "") for name, size in price.phases.items()]
    return [*title("Time of a step"), *_aligned(spent), *title("Memory by moment"), *_aligned(moments)]


def _ranking(plan: Plan, width: int) -> list[Line]:
    rows = [_ranked(plan.chosen, "chosen", "bold")] if plan.chosen else []
    rows += [_ranked(other.candidate, other.why, "") for other in plan.alternatives[: plan.goal.top]]
    if len(rows) <= bool(plan.chosen):
        return []
    head = "Ranking" if plan.chosen else "Nearest misses"
    which = (
        "the fastest recipe of each method that fits" if plan.chosen else "of each method the recipe that comes nearest"
    )
    note = f"per GPU, {which}; spare is after headroom and error bar"
    same = {place for place in (SPEED_BAR, EVIDENCE) if len({row[place][0] for row in rows}) == 1}
    note += f"; tokens/s {rows[0][SPEED_BAR][0]}" if SPEED_BAR in same else ""
    kept = [place for place in range(len(RANKING)) if place not in same]
    columns, rows = [RANKING[place] for place in kept], [[row[place] for place in kept] for row in rows]
    return [*title(head, note, width), *table(columns, rows, width)]


def _ranked(candidate: Candidate, why: str, style: str) -> list[Span]:
    price = candidate.price
    left = price.tightest.spare_bytes
    cells = [label(candidate), gib(price.process.value), error_bar(price.process), gib(left)]
    cells += [rate(price.tokens_per_second.value), error_bar(price.tokens_per_second), price.evidence, clean(why)]
    styles = [style] * len(cells)
    styles[3] = style if left >= 0 else "bad"
    styles[2] = styles[SPEED_BAR] = styles[EVIDENCE] = "dim"
    return list(zip(cells, styles, strict=True))


def _reasons(plan: Plan, width: int) -> list[Line]:
    """What was refused, what the rule of thumb says, what would help, what was taken for granted."""
    page: list[Line] = []
    if plan.refusals:
        refused = [(refusal.method, clean(refusal.reason)) for refusal in plan.refusals]
        page += [*title("Not possible here"), *labelled(refused, width)]
    remarks = [("VRAM rule", _rule(plan))] if plan.rule else []
    remarks += [("Cheapest change", clean(plan.cheapest_change))] if plan.cheapest_change else []
    notes = plan.chosen.price.notes if plan.chosen else ()
    if remarks:
        page += [BLANK, *labelled(remarks, width)]
    if plan.assumptions or notes:
        page += title("Assumed")
        for text in (*plan.assumptions, *notes):
            page += paragraph(clean(text), width, "dim", indent=2, bullet="· ")
    return page


def _rule(plan: Plan) -> str:
    rule = plan.rule
    if rule is None:
        return ""
    return f"{clean(rule.rule)}; {'confirmed' if rule.confirmed else f'overruled: {clean(rule.comment)}'}"


def _next(plan: Plan, width: int) -> list[Line]:
    page: list[Line] = []
    if plan.chosen:
        style = "" if plan.confirmed else "warn"
        page = [BLANK, *paragraph(clean(_standing(plan, plan.chosen)), width, style)]
    for note in plan.notes:
        page += paragraph(clean(note), width, "warn", indent=2, bullet="· ")
    return [*page, *_command(plan)]


def _standing(plan: Plan, chosen: Candidate) -> str:
    """How far the plan can be relied on."""
    if not plan.confirmed:
        return f"unconfirmed: formula only; {plan.doubt}"
    if chosen.traced is None:
        return f"confirmed: {plan.evidence}"
    text = f"confirmed by a dry run of {chosen.traced.layers_traced} of {number_of(len(plan.model.layers), 'block')}"
    if chosen.recipe.parallelism.kind == "none":
        return text
    return f"{text}, as one GPU computes them; what is sharded, gathered and reduced is by formula"


def _command(plan: Plan) -> list[Line]:
    """Alone on its line and unwrapped, so that it can be copied."""
    return [*title("Next"), ((clean(plan.next_command), "bold"),)] if plan.next_command else []
