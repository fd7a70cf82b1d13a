"""The capacity report decides by what fits, is in time and costs least, and every amount can be worked out by hand."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from estimators.errors import BadInput
from estimators.price import Interval
from planner.__main__ import main
from planner.capacity.ask import lengths_asked, machines_of, read_lengths, read_machines
from planner.capacity.cost import Ownership, bill, cheapest
from planner.capacity.decision import cost_of, in_time
from planner.capacity.history import history_of
from planner.capacity.lengths import Lengths, by_characters
from planner.capacity.prices import one_currency, read_sheet, samples
from planner.capacity.question import Work
from planner.capacity.setups import job_tokens
from planner.capacity.swept import read_sweep
from planner.capacity.words import money, verdict
from planner.report.stream import Stream
from planner.rules import load_rules
from tests.entries import entry, expected
from tests.planner.capacity import COLUMNS, HEAD, ROWS, TODAY, question, report, sheet
from tests.planner.sweeps import order, sweep


def test_a_run_is_paid_by_the_hour_of_the_whole_machine() -> None:
    """20 an hour for 2 h is 40; 10 M tokens in it make 4 a million; half as many wanted ones cost twice."""
    seconds, per_token = Interval(value=7200, low=3600, high=14400), Interval(value=7.2e-4, low=3.6e-4, high=1.44e-3)
    plain = bill("on demand", 20.0, None, per_token, seconds, 1.0)
    assert plain.per_run == Interval(value=40.0, low=20.0, high=80.0)
    assert plain.per_million_tokens.value == pytest.approx(4.0)
    assert bill("spot", 20.0, None, per_token, seconds, 2.0).per_million_tokens.value == pytest.approx(8.0)
    assert bill("spot", 20.0, None, per_token, None, 1.0).per_run is None


def test_an_owned_gpu_costs_its_power_and_its_share_of_the_purchase() -> None:
    """700 W at 0.20 a kWh and a PUE of 1.5 are 0.21 an hour; 26,298 over three years are 1 an hour."""
    own = Ownership(power_price_per_kwh=0.20, pue=1.5, purchase_price_per_gpu=26_298, years=3)
    assert own.per_hour(700, 1) == pytest.approx(1.21)
    assert own.per_hour(700, 8) == pytest.approx(9.68)
    assert own.break_even_hours(700, 3.21) == pytest.approx(8766)
    assert own.break_even_hours(700, 0.20) is None
    assert Ownership(power_price_per_kwh=0.20).break_even_hours(700, 3.0) is None


def test_the_cheapest_machine_with_enough_gpus_and_memory_is_rented(tmp_path: Path) -> None:
    offers = sheet(tmp_path, [*ROWS, "small,H100,1,4,16,2.00,,here"]).offers

    def name(gpus: int, host_bytes: float, kind: str = "on demand") -> str | None:
        found = cheapest(offers, "h100-sxm", gpus, host_bytes, kind)  # type: ignore[arg-type]
        return found.instance if found else None

    assert name(1, 8e9) == "small"
    assert name(1, 100e9) == "one"
    assert name(2, 100e9) == "eight"
    assert name(2, 100e9, "spot") is None
    assert name(16, 1e9) is None


def test_figures_of_a_set_up_follow_from_its_price(tmp_path: Path) -> None:
    asked = question(sheets=(sheet(tmp_path),), ownership=Ownership(power_price_per_kwh=0.1), methods=("lora",))
    found = {one.machine.device.name: one for one in report(asked).setups}
    one = found["h100-sxm"]
    recipe, step = one.candidate.recipe, one.price.step_seconds
    assert one.seconds is not None and one.gpu_hours is not None
    assert one.seconds.value == pytest.approx(10_000_000 / recipe.tokens_per_step * step.value)
    assert one.gpu_hours.value == pytest.approx(one.seconds.value / 3600)
    paid = {each.kind: each for each in one.bills}
    assert set(paid) == {"on demand", "spot", "owned"}
    run = paid["on demand"].per_run
    assert run is not None and run.value == pytest.approx(3.0 * one.seconds.value / 3600)
    assert run.low == pytest.approx(3.0 * one.seconds.low / 3600)
    assert paid["owned"].per_hour == pytest.approx(0.07)
    assert {each.kind for each in found["rtx-4090"].bills} == {"on demand", "owned"}


def test_the_cheapest_in_time_is_chosen_and_quality_or_time_where_they_decide(tmp_path: Path) -> None:
    asked = question(counts=(1, 8), gpus=("h100",), sheets=(sheet(tmp_path),), tokens=100_000_000)
    by_cost = report(asked).decisions[0].chosen
    assert by_cost is not None and by_cost.seconds is not None
    costs = [cost.value for one in report(asked).setups if one.fits and (cost := cost_of(asked, one))]
    cost = cost_of(asked, by_cost)
    assert cost is not None and cost.value == min(costs)

    quality = report(replace(asked, objective="quality")).decisions[0].chosen
    assert quality is not None and quality.method == "full"

    quick = report(replace(asked, objective="time")).decisions[0].chosen
    assert quick is not None and quick.seconds is not None
    assert quick.seconds.value == min(one.seconds.value for one in report(asked).setups if one.fits and one.seconds)

    hurried = replace(asked, deadline_seconds=by_cost.seconds.value / 3)
    hasty = report(hurried).decisions[0].chosen
    assert hasty is not None and hasty.gpus == 8 and in_time(hurried, hasty) == "in time"


def test_a_deadline_is_held_against_the_upper_end_of_the_error_bar() -> None:
    asked = question()
    one = report(asked).setups[0]
    assert one.seconds is not None
    ends = one.seconds.low, one.seconds.value, one.seconds.high
    assert in_time(asked, one) == "no deadline"
    answers = [in_time(replace(asked, deadline_seconds=end), one) for end in ends]
    assert answers == ["too late", "perhaps in time", "in time"]


def test_without_a_price_gpu_hours_decide_and_no_cost_is_shown() -> None:
    asked = question()
    made = report(asked)
    chosen = made.decisions[0].chosen
    assert chosen is not None and chosen.bills == () and asked.basis is None
    assert "$" not in verdict(asked, made.decisions[0])
    assert any("No price was given" in text for text in made.warnings)
    hours = [one.gpu_hours.value for one in made.setups if one.fits and one.gpu_hours]
    assert chosen.gpu_hours is not None and chosen.gpu_hours.value == min(hours)


def test_a_card_without_a_price_comes_last_and_is_named(tmp_path: Path) -> None:
    asked = question(gpus=("b200", "h100"), sheets=(sheet(tmp_path),))
    made = report(asked)
    chosen = made.decisions[0].chosen
    assert chosen is not None and chosen.machine.device.name == "h100-sxm"
    assert any("No price for b200" in text for text in made.warnings)


def test_where_nothing_fits_the_nearest_miss_is_named() -> None:
    asked = question(("llama-2-70b",), ("t4",), methods=("full",))
    made = report(asked)
    assert made.exit_code == 3 and made.decisions[0].chosen is None
    assert verdict(asked, made.decisions[0]).startswith("llama-2-70b fits on none")
    assert made.decisions[0].unfit == ("full",)


@pytest.mark.parametrize("name", samples())
def test_every_shipped_sample_says_what_it_is(name: str) -> None:
    found = read_sheet(name, TODAY)
    assert found.sample and found.date is not None and "skypilot" in found.source and found.offers
    assert found.is_stale(TODAY) and not found.is_stale(found.date)


def test_prices_are_stale_after_thirty_days_or_without_a_date(tmp_path: Path) -> None:
    found = sheet(tmp_path)
    assert found.age_days(TODAY) == 2 and not found.is_stale(TODAY)
    assert not found.is_stale(date(2026, 12, 20)) and found.is_stale(date(2026, 12, 21))
    unknown = sheet(tmp_path, head="")
    assert unknown.date is None and unknown.is_stale(TODAY)
    assert any("Nobody knows how old" in text for text in report(question(sheets=(unknown,))).warnings)
    assert read_sheet(unknown.path, TODAY, date(2026, 11, 1)).date == date(2026, 11, 1)


def test_a_file_of_skypilots_own_columns_is_read(tmp_path: Path) -> None:
    """With quoted cells, machines without a GPU, slices of one, unknown accelerators and prices that are not there."""
    folder = tmp_path / "nebula"
    folder.mkdir()
    info = "\"{'Gpus': [{'Name': 'H100', 'Count': 1}]}\""
    rows = [
        f"a,H100,1.0,16,200.0,2.95,eu,{info},1.25", "cpu,,,4.0,16.0,0.2,eu,,", "cpu,,0,4,16,0.1,eu,,",
        f"t,tpu-v4,8,,,9.0,eu,{info},", f"slice,A10,0.5,6,,0.4,eu,{info},", f"free,L4,1,4,16,0,eu,{info},0.2",
    ]  # fmt: skip
    columns = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice"
    (folder / "vms.csv").write_text("\n".join([columns, *rows]) + "\n")
    found = read_sheet(str(folder / "vms.csv"), TODAY)
    assert [(one.device, one.gpus, one.per_hour, one.spot_per_hour) for one in found.offers] == [
        ("h100-sxm", 1, 2.95, 1.25), ("l4", 1, None, 0.2),
    ]  # fmt: skip
    assert found.offers[0].provider == "nebula" and found.passed_over == 4


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a,H100,1,16,200,cheap,,eu"], ":5: Price must be a number from 0 to 100,000, not 'cheap'"),
        (["a,H100,1,16,200,-3,,eu"], ":5: Price must be"),
        (["a,H100,1,16,200,nan,,eu"], ":5: Price must be"),
        (["a,H100,1,16,200,3,inf,eu"], ":5: SpotPrice must be"),
        ([ROWS[0], "b,H100,many,16,200,3,,eu"], ":6: AcceleratorCount must be"),
        (["a,H100,1,16,lots,3,,eu"], ":5: MemoryGiB must be"),
        (["a,tpu-v4,1,16,200,dear,,eu"], ":5: Price must be"),
        (["a,H100,1,16,200,3"], ":5: another number of cells"),
        (["a,H100,1,16,200,3,,eu,more"], ":5: another number of cells"),
        (['a,"H100,1,16,200,3,,eu'], ": not CSV"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        sheet(tmp_path, rows)
    assert said in str(caught.value) and "prices.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("head", "columns", "said"),
    [
        ("# date: soon", COLUMNS, "must be a day"),
        ("# date: 2026-02-30", COLUMNS, "must be a day"),
        ("# date: 2027-01-01", COLUMNS, "yet to come"),
        ("# currency: dollars", COLUMNS, "three letters"),
        (HEAD, COLUMNS.replace("Price,", "Cost,", 1), "no column Price"),
        (HEAD, "", "no column"),
    ],
)
def test_a_wrong_head_is_named(tmp_path: Path, head: str, columns: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        sheet(tmp_path, head=head, columns=columns)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"No such file.*shipped samples: nebius"):
        read_sheet(str(tmp_path / "none.csv"), TODAY)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_sheet(str(tmp_path / "bytes.csv"), TODAY)
    euros = replace(sheet(tmp_path), currency="EUR")
    with pytest.raises(BadInput, match="EUR and USD"):
        one_currency([euros, sheet(tmp_path)])


def test_lengths_suggest_a_sequence_and_padding_is_counted() -> None:
    """100 examples, all of 100 tokens but every tenth of 900: in batches of ten each is padded to 900."""
    some = Lengths(path="d", tokens=((100,) * 9 + (900,)) * 10, counted_by="a test", counted=True)
    assert (some.percentile(50), some.percentile(90), some.percentile(95), some.percentile(100)) == (100, 100, 900, 900)
    assert some.suggested() == 1024 and some.cut(512) == 10
    assert some.kept(2048) == 18_000 and some.kept(512) == 9_000 + 5_120
    assert some.padded(2048, 10) == 90_000 and some.padded(512, 10) == 51_200 and some.padded(2048, 1) == 18_000
    twice = question(lengths=some, epochs=2)
    assert job_tokens(twice, some, 2048, 10, packing=False) == (36_000, 180_000)
    assert job_tokens(twice, some, 2048, 10, packing=True) == (36_000, 36_000)


def test_padding_is_paid_for(tmp_path: Path) -> None:
    some = Lengths(path="d", tokens=((100,) * 9 + (900,)) * 1000, counted_by="a test", counted=True)
    asked = question(gpus=("h100",), lengths=some, sheets=(sheet(tmp_path),), methods=("lora",))
    one = report(asked).setups[0]
    batch = one.candidate.recipe.micro_batch
    paid = one.bill("on demand")
    assert one.tokens == some.padded(2048, batch) and paid is not None and paid.per_run is not None
    assert paid.per_million_tokens.value == pytest.approx(paid.per_run.value / some.kept(2048) * 1e6)


def test_rows_of_data_are_priced_as_the_job_that_would_train_on_them(tmp_path: Path) -> None:
    """With their padding: a report is not to promise what `plan --data --emit` then takes back."""
    path, out = tmp_path / "data.jsonl", tmp_path / "plan.json"
    path.write_text("".join(json.dumps({"prompt": "a" * 30, "completion": "b" * n}) + "\n" for n in (10, 900)))
    words = ["report", "--model", "llama-3.2-1b", "--gpus", "h200", "--seq-len", "512", "--fast"]
    assert main([*words, "--data", str(path), "--output", str(out)]) == 0
    varying = json.loads(out.read_text())["setups"]
    assert main([*words, "--tokens", "1M", "--output", str(out)]) == 0
    full = json.loads(out.read_text())["setups"]
    for one in (*varying, *full):
        recipe, several = one["recipe"], one["recipe"]["micro_batch"] > 1
        assert recipe["padded"] == (several and one in varying) and recipe["expandable_segments"] == (one in varying)
    assert any(one["recipe"]["padded"] for one in varying)


def test_data_are_estimated_by_characters_where_no_tokenizer_is(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a" * 30, "completion": "b" * n}) + "\n" for n in (10, 3970)))
    found = read_lengths(path, None)
    assert found.tokens == (10, 1000) and not found.counted and "no folder with a tokenizer" in found.counted_by
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not read_lengths(path, empty).counted
    warned = report(question(lengths=found)).warnings
    assert any("an estimate of 4 characters a token" in text for text in warned)
    path.write_text('{"text": "x"}\n')
    with pytest.raises(BadInput, match=r"data\.jsonl:1"):
        read_lengths(path, None)


def test_data_are_counted_by_the_checkpoints_own_tokenizer(tmp_path: Path, smollm2: Path) -> None:
    from transformers import AutoTokenizer

    example = {"prompt": "The quick brown fox", "completion": " jumps over the lazy dog."}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(example) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(smollm2, local_files_only=True)
    whole = len(tokenizer(example["prompt"])["input_ids"]) + len(tokenizer(example["completion"])["input_ids"])
    found = read_lengths(path, smollm2)
    assert found.counted and found.tokens == (whole + 1,)  # and the end of the text


def test_machines_and_lengths_where_none_are_said() -> None:
    assert read_machines("catalogue", "--gpus") is None
    few = machines_of(read_machines("h100,8xa100-80gb,a100-80gb", "--gpus"), None, 1)
    assert [(one.device.name, one.counts) for one in few] == [
        ("h100-sxm", (1, 2, 4, 8)),
        ("a100-sxm4-80gb", (1, 2, 4, 8)),
    ]
    assert machines_of(read_machines("8xh100", "--gpus"), None, 1)[0].counts == (8,)
    assert {one.counts for one in machines_of(None, None, 1)} == {(1,)}
    assert machines_of(None, (2, 4), 1)[0].counts == (2, 4)
    with pytest.raises(BadInput, match="kinds of GPU"):
        read_machines("auto", "--gpus")
    works = question(("gpt2",)).works
    assert lengths_asked(works, 2, load_rules()) == (1024,)
    assert lengths_asked(question().works, 2, load_rules()) == (2048, 4096, 8192)
    assert lengths_asked(works, 99, load_rules()) == ()
    some = by_characters("d", [40_000], "test")
    assert lengths_asked((Work(model=works[0].model, goal=works[0].goal, lengths=some),), 99, load_rules()) == (1024,)


def test_measured_runs_are_held_against_what_was_predicted() -> None:
    runs = [expected(entry("one")), entry("two")]
    found = history_of("store", 2, runs)
    assert [run.entry.job for run in found.runs] == ["one"] and found.gpus == {"one": "h200-sxm", "two": "h200-sxm"}
    said, step = runs[0].prediction, found.runs[0].step
    assert said is not None and step is not None
    assert step.error == pytest.approx(said.step_seconds.value / 0.25 - 1)
    assert found.errors("step") == (abs(step.error), abs(step.error), int(step.within))
    nothing = history_of("store", 0, [])
    assert nothing.errors("memory") is None


def test_a_sweep_is_read_from_its_folder_and_from_its_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = sweep(order(tmp_path / "sweep"))
    found = read_sweep(tmp_path / "sweep")
    assert found.trials == tuple(sorted(ran.trials, key=lambda one: one.number)) and found.trials
    assert found.front and found.gpu_seconds() == pytest.approx(sum(one.seconds for one in ran.trials))
    Stream().close(ran)
    (tmp_path / "sweep.jsonl").write_text(capsys.readouterr().out)
    document = read_sweep(tmp_path / "sweep.jsonl")
    assert document.trials == ran.trials and document.recommended is not None and document.why
    assert (found.recommended, found.why) == (document.recommended, document.why)
    standings = {one.number: document.standing(one) for one in document.trials}
    assert {number for number, standing in standings.items() if standing == "front"} == set(document.front)
    assert [one.number for one in ran.trials if one.repeat] == [n for n, said in standings.items() if said == "seed"]


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    for content, said in (("{}\n", "not the event"), ("no", "no JSON document"), ("", "no JSON document")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(BadInput, match=said):
            read_sweep(tmp_path / "x.json")
    with pytest.raises(BadInput, match=r"no study\.sqlite"):
        read_sweep(tmp_path)
    (tmp_path / "study.sqlite").write_text("not a database, but long enough to be looked at as one")
    with pytest.raises(BadInput, match="is no study"):
        read_sweep(tmp_path)


def test_amounts_read_as_a_person_writes_them() -> None:
    assert [money(one, "USD") for one in (0.0123, 6.352, 1234.5, 0)] == ["$0.012", "$6.35", "$1,234", "$0.00"]
    assert money(5, "EUR") == "EUR 5.00"
