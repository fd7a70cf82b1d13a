"""Fits the seconds of a dry run's operators to measured runs, and says how well they hold on others.

    python benchmarks/fit_rates.py            # prints the constants, the H200's profile, and the errors by file
    python benchmarks/fit_rates.py --rows     # and each run's

No GPU is needed; torch and the libraries of the `train` extra are. What it prints goes into estimators/traced_rates.py
by hand, rounded. A constant starts at what is known of it beforehand and moves as far as the runs tell, within its
spread; a run counts by how well its own steps repeat, for those that wait for the host do so within a quarter only.
"""

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import profiles
from benchmarks.figures import cluster_for
from estimators.calibration import DEFAULT, Rates
from estimators.catalogue import find_device
from estimators.device_profile import profile_from_document
from estimators.errors import PlanError
from estimators.hardware import Cluster
from estimators.measurement import Measurement, measurements
from estimators.models import load_config, load_model
from estimators.profiled import calibrated, told
from estimators.recipe import Recipe
from estimators.regression import dot, shrunk
from estimators.size import alone
from estimators.throughput import step_seconds
from estimators.traced_throughput import traced_step_seconds
from estimators.work import Work
from runners.dry.tracer import DryRuns

FITTED_ON = ("h200_facts", "h200_single")
OTHERS = ("h200_blind", "h200_held_out", "h200_extra", "h100_single", "h200_two")
PROFILED = "h200_blind"
"""Run on the host whose profile is shipped; the others' hosts were others."""
NOISE = 0.05
"""What no run's estimate is nearer than, as a logarithm."""
SPREAD_COUNTS, LARGEST_SPREAD = 2.0, 0.08
"""How much of the spread of a run's steps is added to that, and the most that is: few steps tell it badly."""
ROUNDS, STEP = 6, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One that the runs may move."""

    name: str
    start: float
    spread: float
    """Standard deviation of its logarithm about `start`, as believed beforehand."""
    of_kernels: bool = False


KERNELS = {
    "matmul": (0.62, 0.3), "float32": (0.62, 0.3), "memory": (0.78, 0.15), "dequantize": (0.60, 0.2),
    "int8": (0.60, 0.3), "update": (0.80, 0.2),
}  # fmt: skip
"""Shares of data sheets: cuBLAS and copies come to about as much in microbenchmarks. Attention takes so little of these
runs' steps that they would put anything between a third and all of the data sheet down to it: it was timed alone."""
HOST = {
    "operator_seconds": (25e-6, 0.15), "adapter_seconds": (25e-6, 0.5), "nf4_seconds": (90e-6, 0.2),
    "int8_seconds": (300e-6, 0.5), "backward_operator_seconds": (15e-6, 0.2),
    "backward_quantized_seconds": (50e-6, 0.2), "saved_seconds": (15e-6, 0.3),
    "bitsandbytes_update_flops": (2000.0, 0.3), "step_seconds": (4.5e-3, 0.2),
}  # fmt: skip
"""Of Python and of torch's dispatch on a server. Views, modules and a kernel's own start are not told apart from
operators by these runs: they stay where they are."""
CONSTANTS = (
    *(Constant(name=name, start=start, spread=spread, of_kernels=True) for name, (start, spread) in KERNELS.items()),
    *(Constant(name=name, start=start, spread=spread) for name, (start, spread) in HOST.items()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measured run and what a dry run counted of it."""

    run: Measurement
    cluster: Cluster
    work: Work
    noise: float

    def estimate(self, rates: Rates) -> float:
        recipe = self.run.recipe
        return sum(traced_step_seconds(self.work, load_model(recipe.model), recipe, self.cluster, rates).values())

    def error(self, rates: Rates) -> float:
        return self.estimate(rates) / self.run.step_seconds - 1

    def formula_error(self, rates: Rates) -> float:
        recipe = self.run.recipe
        seconds = step_seconds(load_model(recipe.model), recipe, self.cluster, rates)
        return sum(seconds.values()) / self.run.step_seconds - 1


def rows_of(name: str) -> list[Row]:
    """The runs of a file that can be traced."""
    spreads = _spreads(name)
    rows = []
    for run in measurements(name):
        try:
            work = work_of(run.recipe, run.gpu)
        except PlanError as error:
            print(f"{name} {run.name}: {error}", file=sys.stderr)
            continue
        cluster = cluster_for(run.gpu, run.recipe.parallelism.devices)
        noise = math.hypot(NOISE, SPREAD_COUNTS * min(spreads.get(run.name, 0.05), LARGEST_SPREAD))
        rows.append(Row(run=run, cluster=cluster, work=work, noise=noise))
    return rows


def work_of(recipe: Recipe, gpu: str) -> Work:
    """What one GPU computes."""
    return DryRuns(config=load_config(recipe.model))(alone(recipe), find_device(gpu)).work


def _spreads(name: str) -> dict[str, float]:
    """How far a run's steps after the first lie about their mean."""
    found = {}
    for line in profiles.read("measurements", f"{name}.jsonl").splitlines():
        row = json.loads(line)
        steps = row.get("steps_seconds", ())[1:]
        if len(steps) > 1:
            found[row["name"]] = statistics.pstdev(steps) / statistics.fmean(steps)
    return found


def rates_at(logarithms: Sequence[float]) -> Rates:
    """The rates with each constant so far from its start."""
    values = {one: one.start * math.exp(log) for one, log in zip(CONSTANTS, logarithms, strict=True)}
    kernels = {one.name: value for one, value in values.items() if one.of_kernels}
    host = {one.name: value for one, value in values.items() if not one.of_kernels}
    rates = Rates()
    hopper = replace(rates.traced.hopper, **kernels)
    return replace(rates, traced=replace(rates.traced, hopper=hopper, **host))  # type: ignore[arg-type]


def fit(rows: Sequence[Row]) -> Rates:
    """The likeliest constants, by Gauss and Newton's steps."""
    logs = [0.0] * len(CONSTANTS)
    for _ in range(ROUNDS):
        slopes, truths = [], []
        for row in rows:
            here = math.log(row.estimate(rates_at(logs)) / row.run.step_seconds)
            slope = [(_moved(row, logs, at) - here) / STEP for at in range(len(logs))]
            scale = NOISE / row.noise
            slopes.append([scale * one for one in slope])
            truths.append(scale * (dot(slope, logs) - here))
        logs = shrunk(slopes, truths, [one.spread for one in CONSTANTS], NOISE)
    return rates_at(logs)


def _moved(row: Row, logs: Sequence[float], at: int) -> float:
    """The logarithm of the estimate's error with one constant a step higher."""
    moved = [log + STEP * (at == place) for place, log in enumerate(logs)]
    return math.log(row.estimate(rates_at(moved)) / row.run.step_seconds)


def summary(name: str, rows: Sequence[Row], rates: Rates) -> Iterable[str]:
    """Errors of both estimators on a file."""
    for kind, errors in (
        ("dry run", [row.error(rates) for row in rows]),
        ("formula", [row.formula_error(rates) for row in rows]),
    ):
        sizes = sorted(map(abs, errors))
        ninth = sizes[int(0.9 * (len(sizes) - 1))]
        figures = (statistics.median(sizes), ninth, sizes[-1], statistics.fmean(errors))
        cells = " | ".join(f"{100 * figure:.1f} %" for figure in figures)
        yield f"| {name} | {len(rows)} | {kind} | {cells} |"


def parts(name: str) -> Iterable[tuple[str, list[Row]]]:
    """One GPU and several apart."""
    rows = rows_of(name)
    single = [row for row in rows if row.run.recipe.parallelism.devices == 1]
    several = [row for row in rows if row.run.recipe.parallelism.devices > 1]
    yield from ((f"{name}{title}", part) for title, part in (("", single), (", several GPUs", several)) if part)


def main(options: Sequence[str]) -> None:
    files = {title: rows for name in (*FITTED_ON, *OTHERS) for title, rows in parts(name)}
    fitted = fit([row for name in FITTED_ON for row in files[name]])
    print("| constant | fitted | in use |\n|-|-|-|")
    for one in CONSTANTS:
        new, old = (rates.traced.hopper if one.of_kernels else rates.traced for rates in (fitted, Rates()))
        print(f"| {one.name} | {getattr(new, one.name):.3g} | {getattr(old, one.name):.3g} |")
    profile = profile_from_document(json.loads(profiles.read("calibrations", "h200.json")))
    card = find_device(profile.gpu)
    print("\n| rate | figures of the H200's profile | factor | that makes | in use |\n|-|-|-|-|-|")
    for one in told(Rates(), profile, card):
        figures = ", ".join(f"{name} {profile.figures[name]:.4g}" for name in one.follows.figures)
        print(f"| {one.follows.name} | {figures} | {one.follows.factor:g} | {one.now:.3g} | {one.before:.3g} |")
    measured = calibrated(DEFAULT, profile, card).rates
    for title, rates in (
        ("fitted", fitted),
        ("in use", Rates()),
        (f"with the H200's profile, of the host of {PROFILED} alone", measured),
    ):
        print(f"\n{title}\n\n| runs | | | median | nine in ten within | worst | bias |\n|-|-|-|-|-|-|-|")
        for name, rows in files.items():
            print("\n".join(summary(name, rows, rates)))
    for name, rows in files.items() if "--rows" in options else ():
        for row in rows:
            seconds = row.run.step_seconds * 1e3
            print(f"{name} {row.run.name}: {seconds:.0f} ms, dry run {100 * row.error(Rates()):+.1f} %, "
                  f"formula {100 * row.formula_error(Rates()):+.1f} %")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
