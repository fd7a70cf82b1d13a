"""Holds recalibration against measured runs that it was not shown, and prints what it gains or costs.

    python benchmarks/recalibration.py             # steps by formula: no GPU and no torch are needed
    python benchmarks/recalibration.py --traced    # steps by dry run: torch and the `train` extra are, and a minute

Some runs of one machine are drawn, its calibration is fitted on them, and the steps of all its other runs are estimated
with it: DRAWS times for each number of runs, the seed fixed. "H200" and "H100" are cards that the default calibration
was made on or close to, so there is next to nothing to be gained: what must not happen there is harm. The H200's runs
come from several hosts. The two slower machines are the H200's runs with the time that another host or another power
limit would have taken added to each. "A100" are the published steps of one source, on a card that was not measured.
"""

import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import profiles
from estimators.calibration import DEFAULT, Calibration
from estimators.catalogue import find_device
from estimators.document import from_document
from estimators.errors import PlanError
from estimators.fingerprint import Machine
from estimators.hardware import Cluster, Host
from estimators.knobs import turned
from estimators.measurement import measurements
from estimators.outcome import Outcome
from estimators.price import exactly
from estimators.recalibration import recalibrate
from estimators.recipe import Recipe
from estimators.record import Entry, Measured, Prediction
from estimators.remembered import DRY_RUN, formula, traced, was_traced
from planner.cluster import hypothetical_cluster

DRAWS, SEED = 40, 20261122
RUNS = (1, 3, 10, 30)
H200 = ("h200_facts", "h200_single", "h200_extra", "h200_two", "h200_held_out", "h200_capped", "h200_capped_edge")
OLD_HOST = {"issuing kernels": 1.7}
POWER_LIMIT = {"matrix products": 1.25, "attention": 1.25, "memory traffic": 1.15, "issuing kernels": 1.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Of the runs that were held out, averaged over the draws."""

    median_error: float
    mean_error: float
    held: float
    bars: tuple[float, float]


def entries_of(*files: str) -> list[Entry]:
    """The runs in profiles/measurements as the store would have them."""
    runs = [run for file in files for run in measurements(file)]
    return [entry(f"{run.name}-{at}", run.gpu, run.recipe, run.step_seconds) for at, run in enumerate(runs)]


def published(source: str) -> list[Entry]:
    """The published steps of one source."""
    rows = [json.loads(line) for line in profiles.read("measurements", "published.jsonl").splitlines()]
    found = []
    for row in rows:
        if row["source"] == source and row["tokens_per_second"]:
            recipe = from_document(row["recipe"])
            found.append(entry(row["name"], row["gpu"], recipe, recipe.tokens_per_step / row["tokens_per_second"]))
    return found


def entry(name: str, gpu: str, recipe: Recipe, step_seconds: float) -> Entry:
    device = find_device(gpu)
    machine = Machine(host="", processor="", cores=None, gpus=(device.name,), gpu_hashes=(), driver=None)
    return Entry(
        job=name, seconds_since_epoch=0.0, machine=machine, gpu=device.name, recipe=recipe,
        measured=Measured(outcome=Outcome.OK, step_seconds=step_seconds),
    )  # fmt: skip


def cluster_of(entries: Sequence[Entry]) -> Cluster:
    most = max(entry.recipe.parallelism.devices for entry in entries)
    return hypothetical_cluster([find_device(entries[0].gpu)] * most, 1, Host(memory_bytes=256 << 30), None)


def slower(entries: Sequence[Entry], factors: dict[str, float]) -> list[Entry]:
    """The same runs on a machine that takes so many times as long, by cause."""
    cluster = cluster_of(entries)
    rates = turned(DEFAULT.rates, cluster.gpus[0].device, factors)
    estimate, found = traced(cluster) if was_traced(entries[0]) else formula(cluster), []
    for one in entries:
        more = estimate(one, Calibration(rates=rates)) / estimate(one, DEFAULT)
        assert one.measured.step_seconds
        found.append(replace(one, measured=replace(one.measured, step_seconds=one.measured.step_seconds * more)))
    return found


def with_work(entries: Sequence[Entry]) -> list[Entry]:
    """The runs that a dry run can trace, as the store would have them after it."""
    from benchmarks.fit_rates import work_of

    found = []
    for one in entries:
        try:
            work = work_of(one.recipe, one.gpu)
        except PlanError as error:
            print(f"{one.job}: {error}", file=sys.stderr)
            continue
        nothing = exactly(0.0)
        said = Prediction(
            evidence=DRY_RUN, peak_allocated=nothing, peak_reserved=nothing, process=nothing, host=nothing,
            step_seconds=nothing, tokens_per_second=nothing, terms={}, phases={}, seconds={}, work=work.by_name(),
        )  # fmt: skip
        found.append(replace(one, prediction=said))
    return found


def judged(entries: Sequence[Entry], cluster: Cluster, calibration: Calibration) -> Judgement:
    by_dry_run = was_traced(entries[0])
    estimate = traced(cluster) if by_dry_run else formula(cluster)
    seen = cluster.gpus[0].device.name in calibration.seen_devices
    name = f"{'' if seen else 'unseen_'}{'traced_' if by_dry_run else ''}step_seconds"
    bars = getattr(calibration.error_bars, name)
    ratios = [(one.measured.step_seconds or 0.0) / estimate(one, calibration) for one in entries]
    errors = [abs(1 / ratio - 1) for ratio in ratios]
    held = statistics.fmean(bars[0] <= ratio <= bars[1] for ratio in ratios)
    return Judgement(
        median_error=statistics.median(errors), mean_error=statistics.fmean(errors), held=held, bars=bars
    )  # fmt: skip


def drawn(entries: Sequence[Entry], runs: int, draws: int = DRAWS) -> tuple[Judgement, Judgement]:
    """The default calibration and the fitted ones, on the runs that were not drawn."""
    chance, cluster = random.Random(SEED), cluster_of(entries)
    before, after = [], []
    for _ in range(draws):
        shown = chance.sample(entries, runs)
        rest = [one for one in entries if one not in shown]
        before.append(judged(rest, cluster, DEFAULT))
        after.append(judged(rest, cluster, recalibrate(shown, cluster).calibration))
    return average(before), average(after)


def average(judgements: Sequence[Judgement]) -> Judgement:
    mean = partial(statistics.fmean)
    return Judgement(
        median_error=mean(one.median_error for one in judgements),
        mean_error=mean(one.mean_error for one in judgements),
        held=mean(one.held for one in judgements),
        bars=(mean(one.bars[0] for one in judgements), mean(one.bars[1] for one in judgements)),
    )


def machines(by_dry_run: bool = False) -> dict[str, list[Entry]]:
    known = with_work if by_dry_run else list
    h200 = known(entries_of(*H200))
    return {
        "H200": h200,
        "H100": known(entries_of("h100_single")),
        "H200 on an older host": slower(h200, OLD_HOST),
        "H200 under a power limit": slower(h200, POWER_LIMIT),
        "A100, published": known(published("LLaMA-Factory wiki long-sequence QLoRA")),
    }


def table(by_dry_run: bool = False) -> list[str]:
    lines = ["| machine | runs | median error | mean error | inside the bars | bars |", "|-|-|-|-|-|-|"]
    for name, entries in machines(by_dry_run).items():
        for runs in RUNS:
            if runs > len(entries) - 3:
                continue
            before, after = drawn(entries, runs)
            shown = " | ".join(
                f"{100 * old:.1f} -> {100 * new:.1f} %"
                for old, new in (
                    (before.median_error, after.median_error),
                    (before.mean_error, after.mean_error),
                    (before.held, after.held),
                )
            )
            low, high = after.bars
            bars = f"−{100 * (1 - low):.0f} % +{100 * (high - 1):.0f} %"
            lines.append(f"| {name} ({len(entries)}) | {runs} | {shown} | {bars} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table("--traced" in sys.argv[1:])))
