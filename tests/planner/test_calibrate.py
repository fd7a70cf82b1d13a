"""`plan calibrate`: what a person and a program read of it, its refusals, and that the next plan uses the profile."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import profiles
from estimators.calibration import DEFAULT
from estimators.catalogue import find_device
from estimators.device_profile import DeviceProfile, profile_from_document
from estimators.errors import NoUsableGpu
from estimators.hardware import Cluster, Gpu
from estimators.profiled import calibrated, told
from planner.calibrate import Finding, _keep
from planner.cli import command
from planner.learned import calibration_of
from planner.report.calibrate import amount, calibration_document, calibration_page
from planner.report.page import plain
from runners import calibrations
from runners.machine import this_machine

H200 = find_device("h200-sxm")
GPU = Gpu(device=H200, total_bytes=H200.total_bytes, uuid="GPU-mine")


@pytest.fixture
def profile() -> DeviceProfile:
    shipped = profile_from_document(json.loads(profiles.read("calibrations", "h200.json")))
    return replace(shipped, machine=this_machine([GPU]))


def finding(profile: DeviceProfile, unkept: str | None = None) -> Finding:
    rates = tuple(told(DEFAULT.rates, profile, H200))
    return Finding(profile=profile, device=H200, rates=rates, path=None if unkept else Path("kept"), unkept=unkept)


def test_the_page_shows_measured_sheet_share_before_and_now(profile: DeviceProfile) -> None:
    lines = [plain(line) for line in calibration_page(finding(profile), 100)]
    products = next(line for line in lines if "products in bfloat16" in line)
    assert products.split()[-5:] == ["TFLOP/s", "989.4", "TFLOP/s", "67", "%"]
    operator = next(line for line in lines if line.split()[:1] == ["operator"])
    assert operator.split() == ["operator", "32", "µs", "15.6", "µs"]
    assert any("CPU Adam" in line for line in lines[lines.index(next(x for x in lines if "Not measured" in x)) :])
    assert all(len(line) <= 100 for line in lines)


def test_a_profile_that_was_not_kept_says_so_first(profile: DeviceProfile) -> None:
    page = calibration_page(finding(profile, "the measurement was disturbed: somebody came"), 100)
    assert "not kept: the measurement was disturbed" in plain(page[0])


def test_the_document_has_every_figure_and_rate(profile: DeviceProfile) -> None:
    document = json.loads(json.dumps(calibration_document(finding(profile))))
    assert {one["name"] for one in document["measured"]} == profile.figures.keys() | profile.missing.keys()
    assert len(document["rates"]) == len(finding(profile).rates)
    assert profile_from_document(document["profile"]) == profile


def test_a_disturbed_profile_is_not_kept(profile: DeviceProfile, tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    path, why = _keep(replace(profile, notes=("another process shared the GPU",)), store)
    assert path is None
    assert why == "the measurement was disturbed: another process shared the GPU"
    assert not calibrations.folder_of(store).exists()
    assert _keep(profile, store)[1] is None


def test_the_next_plan_uses_the_profile(profile: DeviceProfile, tmp_path: Path) -> None:
    store, cluster = tmp_path / "store.sqlite", Cluster(gpus=(GPU,))
    assert calibration_of(cluster, store) == DEFAULT
    calibrations.keep(profile, store)
    found = calibration_of(cluster, store)
    assert found == calibrated(DEFAULT, profile, H200)
    assert found.rates.traced.operator_seconds < DEFAULT.rates.traced.operator_seconds
    assert calibration_of(replace(cluster, hypothetical=True), store) == DEFAULT


def test_an_unusable_profile_costs_a_warning_and_not_the_plan(
    profile: DeviceProfile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store.sqlite"
    calibrations.keep(profile, store).write_text("{")
    assert calibration_of(Cluster(gpus=(GPU,)), store) == DEFAULT
    said = capsys.readouterr().err
    assert said.startswith("warning: the device profile is not used: ")
    assert said.count("\n") == 1


def test_without_a_gpu_there_is_nothing_to_calibrate() -> None:
    done = CliRunner().invoke(command, ["calibrate"], standalone_mode=False)
    assert isinstance(done.exception, NoUsableGpu)
    assert done.exception.exit_code == 4


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(6.742e14, "FLOP/s", "674.2 TFLOP/s"), (2.2886e-5, "s", "22.9 µs"), (2.6e-11, "s", "0.026 ns"), (None, "s", "")],
)
def test_amounts_are_read_by_people(value: float | None, unit: str, text: str) -> None:
    assert amount(value, unit) == text
