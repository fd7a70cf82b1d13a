"""What stored runs teach about a dry run's steps: each estimated again from the operators that were counted."""

import json
import math
from dataclasses import replace

import pytest

from estimators.calibration import DEFAULT, Calibration
from estimators.catalogue import find_device
from estimators.errors import BadInput
from estimators.fit import Fit
from estimators.knobs import turned
from estimators.models import load_config
from estimators.price import exactly
from estimators.recalibration import recalibrate
from estimators.record import Entry, Prediction
from estimators.remembered import model_of, traced
from estimators.strict import decoded, encoded
from estimators.work import Load, Work, work_from_names
from tests.entries import LORA, cluster, entry, machine

H200 = find_device("h200-sxm")
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
SLOW_HOST = {"issuing kernels": 1.6}


def work_of(tokens: int, layers: int) -> Work:
    """Of a model of so many layers: a few products, and the operators around them."""
    loads = {
        ("forward", "matmul"): Load(calls=7.0 * layers, flops=7 * 2.0 * tokens * 2048**2 * layers),
        ("forward", "elementwise"): Load(calls=30.0 * layers, size_bytes=30.0 * tokens * 4096 * layers),
        ("forward", "module"): Load(calls=12.0 * layers),
        ("backward", "matmul"): Load(calls=7.0 * layers, flops=7 * 2.0 * tokens * 2048**2 * layers),
        ("backward", "elementwise"): Load(calls=60.0 * layers, size_bytes=60.0 * tokens * 4096 * layers),
        ("optimizer", "optimizer"): Load(calls=10.0),
    }
    return Work(loads=loads)  # type: ignore[arg-type]


def expected(work: Work) -> Prediction:
    nothing = exactly(0.0)
    return Prediction(
        evidence="dry run", peak_allocated=nothing, peak_reserved=nothing, process=nothing, host=nothing,
        step_seconds=nothing, tokens_per_second=nothing, terms={}, phases={}, seconds={}, work=work.by_name(),
    )  # fmt: skip


def runs(factors: dict[str, float], card: str = "h200-sxm") -> list[Entry]:
    """Runs of several kinds on a machine that takes so many times as long by cause; their formula estimates agree with
    nothing in particular."""
    rates = turned(DEFAULT.rates, find_device(card), factors)
    found = []
    for number, length in enumerate(LENGTHS):
        recipe = replace(LORA, sequence_length=length, gradient_checkpointing=bool(number % 2))
        one = replace(entry(f"run {number}", recipe=recipe), gpu=card, machine=machine(gpu=card),
                      number=number, prediction=expected(work_of(length, 4 + 4 * number)))  # fmt: skip
        seconds = traced(cluster(card))(one, Calibration(rates=rates))
        found.append(replace(one, measured=replace(one.measured, step_seconds=seconds)))
    return found


def fitted(factors: dict[str, float]) -> Fit:
    return recalibrate(runs(factors), cluster("h200-sxm"))


def test_a_slow_host_is_found_in_the_steps_of_dry_runs() -> None:
    fit = fitted(SLOW_HOST)
    assert fit.traced_factors["issuing kernels"] == pytest.approx(1.6, rel=0.2)
    assert fit.calibration.rates.traced.operator_seconds > 1.3 * DEFAULT.rates.traced.operator_seconds
    again = traced(cluster("h200-sxm"))
    errors = [abs(math.log(again(one, fit.calibration) / (one.measured.step_seconds or 1))) for one in runs(SLOW_HOST)]
    before = [abs(math.log(again(one, DEFAULT) / (one.measured.step_seconds or 1))) for one in runs(SLOW_HOST)]
    assert max(errors) < max(before) / 2


def test_steps_that_are_as_expected_change_no_rate_and_narrow_the_bar() -> None:
    fit = fitted({})
    assert fit.traced_factors == {}
    assert fit.calibration.rates.traced == DEFAULT.rates.traced
    before, after = DEFAULT.error_bars.traced_step_seconds, fit.calibration.error_bars.traced_step_seconds
    assert before[0] < after[0] < 1 < after[1] < before[1]


def test_a_person_is_told_what_changed_of_the_dry_run() -> None:
    lines = [str(change) for change in fitted(SLOW_HOST).changes]
    assert any(line.startswith("dry run's issuing kernels 3.2e-05 -> ") and "from 6 runs" in line for line in lines)
    assert any(line.startswith("dry run's step bar −24 % +30 % -> ") for line in lines)


def test_what_a_dry_run_counted_turns_nothing_of_the_formula() -> None:
    """Each is fitted to its own errors: the formula's factors are those of the same runs without their counts."""
    with_counts = runs(SLOW_HOST)
    without = [replace(one, prediction=None) for one in with_counts]
    both, formula = (recalibrate(some, cluster("h200-sxm")) for some in (with_counts, without))
    assert both.factors == formula.factors
    assert replace(both.calibration.rates, traced=DEFAULT.rates.traced) == formula.calibration.rates
    assert formula.traced_factors == {}
    assert formula.calibration.rates.traced == DEFAULT.rates.traced


def test_a_card_that_was_measured_keeps_the_bar_that_its_own_runs_made() -> None:
    fit = recalibrate(runs({}, "rtx-4090"), cluster("rtx-4090"))
    assert "rtx-4090" in fit.calibration.seen_devices
    before, after = DEFAULT.error_bars.unseen_traced_step_seconds, fit.calibration.error_bars.traced_step_seconds
    assert before[0] < after[0] < 1


def test_damaged_counts_cost_the_run_and_not_the_fit() -> None:
    good = runs(SLOW_HOST)
    assert good[0].prediction is not None
    bad = replace(good[0], prediction=replace(good[0].prediction, work={"lunch, matmul": Load()}), number=7)
    fit = recalibrate([bad, *good[1:]], cluster("h200-sxm"))
    assert fit.left_out == ("run 7: no operations are called 'lunch, matmul'",)
    assert fit.traced_factors


def test_counts_survive_the_store() -> None:
    one = runs({})[0]
    again = decoded(Entry, json.loads(json.dumps(encoded(replace(one, number=None)))), "entry")
    assert again.prediction is not None and one.prediction is not None
    assert work_from_names(again.prediction.work) == work_from_names(one.prediction.work)
    with pytest.raises(BadInput, match="lunch"):
        work_from_names({"forward, lunch": Load()})


def test_an_entry_of_an_older_plan_is_read() -> None:
    document = encoded(runs({})[0])
    del document["config"], document["prediction"]["work"]
    old = decoded(Entry, document, "entry")
    assert old.config == ""
    assert old.prediction is not None and old.prediction.work == {}


def test_a_model_of_the_hub_teaches_by_the_config_that_is_stored_with_it() -> None:
    named = [replace(one, recipe=replace(one.recipe, model="somebody/their-llama")) for one in runs(SLOW_HOST)]
    forgotten = recalibrate(named, cluster("h200-sxm"))
    assert forgotten.runs == 0
    assert len(forgotten.left_out) == len(named)
    config = json.dumps(dict(load_config(LORA.model).fields))
    known = [replace(one, config=config) for one in named]
    assert model_of(known[0]).layers == model_of(runs({})[0]).layers
    fit = recalibrate(known, cluster("h200-sxm"))
    assert fit.left_out == ()
    assert fit.traced_factors == fitted(SLOW_HOST).traced_factors
