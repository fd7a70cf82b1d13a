"""`plan measure`: a real job of a tiny model on the CPU, what is stored of it, and what a person reads."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")

from estimators.calibration import DEFAULT
from estimators.catalogue import find_device
from estimators.errors import BadInput, NoUsableGpu
from estimators.hardware import Gpu, Host
from estimators.measurement import RankPeak
from estimators.models import Config, build
from estimators.outcome import End, Outcome
from estimators.pricing import price
from estimators.recipe import Adapter, Parallelism, Recipe
from planner.cli import command
from planner.cluster import hypothetical_cluster
from planner.commands.measure import _recipe
from planner.learned import calibration_of
from planner.measure import CPU, Finding, Trial, measure
from planner.report.measure import finding_document, finding_page
from planner.report.page import plain
from runners.store import Store

CONFIG = Config(
    name="tiny",
    source="tiny",
    fields={
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128,
        "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    },
)  # fmt: skip
RECIPE = Recipe(
    model="tiny", adapter=Adapter(method="lora", rank=4, alpha=16, targets=("q_proj", "v_proj")), weights="float32",
    compute="float32", sequence_length=32, micro_batch=2, optimizer="adamw_torch",
)  # fmt: skip


@pytest.fixture(scope="module")
def finding(tmp_path_factory: pytest.TempPathFactory) -> Finding:
    """A job on the CPU: real processes, the real Trainer."""
    folder = tmp_path_factory.mktemp("measure")
    trial = Trial(steps=4, folder=folder / "job", store=folder / "store.sqlite")
    return measure(RECIPE, CONFIG, build(CONFIG), None, None, trial)


def test_a_job_is_run_and_stored(finding: Finding) -> None:
    assert finding.result.end.outcome is Outcome.OK, finding.result.end.evidence
    assert finding.exit_code == 0
    assert len(finding.result.ranks[0].step_seconds) == 4
    assert finding.entry.gpu == CPU
    assert finding.folder is not None
    assert (finding.folder / "job.json").exists()
    assert (finding.folder / "result.json").exists()
    with Store.open(finding.folder.parent / "store.sqlite") as store:
        (stored,) = store.entries()
    assert stored.job == finding.entry.job
    assert stored.recipe == RECIPE
    assert stored.measured.step_seconds == pytest.approx(finding.result.step_seconds)


def test_a_folder_is_used_once(finding: Finding, tmp_path: Path) -> None:
    trial = Trial(steps=4, folder=finding.folder, store=tmp_path / "store.sqlite")
    with pytest.raises(BadInput, match="not empty"):
        measure(RECIPE, CONFIG, build(CONFIG), None, None, trial)


def with_figures(finding: Finding) -> Finding:
    """The same job, as if it had been run on the card that it is priced for and been exactly as expected."""
    recipe = replace(RECIPE, weights="bfloat16", compute="bfloat16")
    cluster = hypothetical_cluster([find_device("h200")], 1, Host(), None)
    cost = price(build(CONFIG), recipe, cluster)
    measured = replace(finding.entry.measured, step_seconds=cost.step_seconds.value * 2, tokens_per_second=1000.0)
    return replace(finding, expected=cost, entry=replace(finding.entry, measured=measured))


def test_the_page_shows_expected_and_measured_side_by_side(finding: Finding) -> None:
    page = [plain(line) for line in finding_page(with_figures(finding), 100)]
    step = next(line for line in page if line.strip().startswith("step "))
    assert "−50.0 %" in step
    assert "tiny, lora: 4 steps on this machine's CPU" in page[0]
    assert any("expected by formula" in line for line in page)
    assert all(len(line) <= 100 for line in page)


def test_what_torch_keeps_of_many_widths_is_said(finding: Finding) -> None:
    """Nobody is to take it for an error of the estimate; expandable segments avoid it."""
    shown = with_figures(finding)
    worst = RankPeak(loaded_bytes=1, peak_allocated_bytes=2, peak_reserved_bytes=9, process_bytes=None,
                     outside_torch_bytes=None)  # fmt: skip
    measured = replace(shown.entry.measured, ranks=(worst,), widths=(8, 32))
    varied = replace(shown, entry=replace(shown.entry, measured=measured))
    said = "batches were from 8 to 32 tokens wide"
    assert said in " ".join(plain(line) for line in finding_page(varied, 200))
    better = replace(varied, recipe=replace(varied.recipe, expandable_segments=True))
    alike = replace(varied, entry=replace(varied.entry, measured=replace(measured, widths=(32, 32))))
    assert not any(said in plain(line) or "cache" in plain(line) for line in finding_page(better, 200))
    assert not any("tokens wide" in plain(line) for line in finding_page(alike, 200))


def test_what_cudnn_s_attention_does_at_every_new_width_is_said_where_it_runs(finding: Finding) -> None:
    """Steps that plan take twice as long, and a long job's will not: nobody is to rent by them."""
    shown = with_figures(finding)
    varied = replace(shown, entry=replace(shown.entry, measured=replace(shown.entry.measured, widths=(8, 32))))
    hopper, older = (replace(varied, gpus=(Gpu(device=find_device(name), total_bytes=1),)) for name in ("h200", "l40s"))
    assert any("--attention sdpa_no_cudnn" in plain(line) for line in finding_page(hopper, 200))
    without = replace(hopper, recipe=replace(hopper.recipe, attention="sdpa_no_cudnn"))
    for other in (older, without, replace(hopper, entry=shown.entry)):
        assert not any("cuDNN" in plain(line) for line in finding_page(other, 200))


@pytest.mark.parametrize(
    ("outcome", "code"), [(Outcome.OUT_OF_MEMORY, 5), (Outcome.CANCELLED, 130), (Outcome.TIMED_OUT, 1)]
)
def test_a_bad_end_is_shown_with_its_evidence_and_has_its_exit_code(
    finding: Finding, outcome: Outcome, code: int
) -> None:
    ended = replace(
        finding, result=replace(finding.result, end=End(outcome=outcome, evidence="the line that proves it"))
    )
    page = [plain(line) for line in finding_page(ended, 100)]
    assert "the line that proves it" in page[0]
    assert ended.exit_code == code
    assert finding_document(ended)["result"]["end"]["outcome"] == outcome.value


def test_without_a_gpu_there_is_nothing_to_measure_on(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(command, ["measure", "--model", "llama-3.2-1b"], standalone_mode=False)
    assert isinstance(done.exception, NoUsableGpu)
    done = CliRunner().invoke(command, ["measure", "--model", "llama-3.2-1b", "--gpus", "h200"], standalone_mode=False)
    assert isinstance(done.exception, BadInput)


def test_hypothetical_and_missing_gpus_are_refused(tmp_path: Path) -> None:
    cluster = hypothetical_cluster([find_device("h200")], 1, Host(), None)
    trial = Trial(store=tmp_path / "store.sqlite")
    with pytest.raises(NoUsableGpu, match="this machine"):
        measure(RECIPE, CONFIG, build(CONFIG), cluster, None, trial)
    two = replace(RECIPE, parallelism=Parallelism(kind="ddp", devices=2))
    with pytest.raises(NoUsableGpu, match="for 2 GPUs"):
        measure(two, CONFIG, build(CONFIG), replace(cluster, hypothetical=False), None, trial)


def test_what_was_measured_calibrates_plans_of_this_machine_only(
    finding: Finding, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = hypothetical_cluster([find_device("h200")], 1, Host(), None)
    here = replace(described, hypothetical=False)
    assert finding.folder is not None
    store = finding.folder.parent / "store.sqlite"
    assert calibration_of(described, store) is DEFAULT
    assert calibration_of(here, tmp_path / "absent.sqlite") is DEFAULT
    assert calibration_of(here, store) == DEFAULT  # a run on the CPU teaches nothing of an H200
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_text("no database")
    assert calibration_of(here, damaged) is DEFAULT
    assert "earlier measurements are not used" in capsys.readouterr().err


def test_one_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    document = {"model": "llama-7b", "adapter": {"method": "full"}, "micro_batch": 3}
    path.write_text(json.dumps(document))
    assert _recipe(str(path)).micro_batch == 3
    path.write_text(json.dumps([document, document]))
    with pytest.raises(BadInput, match="one recipe"):
        _recipe(str(path))
