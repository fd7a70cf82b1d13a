"""Device profiles: strict documents, the shipped one, and what an estimate makes of a figure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import profiles
from estimators.calibration import DEFAULT, Rates
from estimators.catalogue import find_device
from estimators.device_profile import QUANTITIES, DeviceProfile, profile_document, profile_from_document
from estimators.errors import BadInput
from estimators.hardware import Link
from estimators.profiled import FOLLOWS, calibrated, rate_of, told

H200 = find_device("h200-sxm")
OF_KERNELS = ("kernels", "efficiency")
OF_THE_CARD = ("kernel_seconds", "bitsandbytes_update_flops", "host_link_efficiency")


def shipped() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(profiles.read("calibrations", "h200.json"))
    return document


@pytest.fixture
def profile() -> DeviceProfile:
    return profile_from_document(shipped())


def test_a_profile_survives_its_document(profile: DeviceProfile) -> None:
    again = profile_from_document(json.loads(json.dumps(profile_document(profile))))
    assert (again, again.figures, again.missing) == (profile, profile.figures, profile.missing)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("schema_version", 2, "schema_version"),
        ("gpu", None, "gpu"),
        ("colour", "red", "colour"),
        ("figures", {"matmul_bfloat32": 1.0}, "matmul_bfloat32"),
        ("figures", {"matmul_bfloat16": 0.0}, "above zero"),
        ("figures", {"matmul_bfloat16": "fast"}, "number"),
        ("figures", {"matmul_bfloat16": float("nan")}, "number"),
    ],
)
def test_what_is_no_profile_is_refused_by_name(key: str, value: object, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        profile_from_document({**shipped(), key: value})


def test_the_default_rates_of_the_card_are_what_the_shipped_profile_tells(profile: DeviceProfile) -> None:
    """The factors are those between the two. The host's rates are an average of hosts, and the profile is of one."""
    found = [
        one
        for one in told(DEFAULT.rates, profile, H200)
        if one.follows.place in OF_KERNELS or one.follows.rate in OF_THE_CARD
    ]
    assert len(found) > 14
    for one in found:
        assert one.now == pytest.approx(one.before, rel=0.01), one.follows.name


def test_what_a_layer_adds_is_less_the_operators_in_it_and_never_below_nothing(profile: DeviceProfile) -> None:
    figures = {"operator_seconds": 20e-6, "view_seconds": 2e-6, "module_seconds": 1e-6, "adapter_seconds": 200e-6}
    rates = calibrated(DEFAULT, replace(profile, figures=figures), H200).rates.traced
    assert rates.adapter_seconds == pytest.approx((200 - 7.81 * 20 - 5.85 * 2 - 3.93) * 1e-6)
    figures["adapter_seconds"] = 100e-6
    assert calibrated(DEFAULT, replace(profile, figures=figures), H200).rates.traced.adapter_seconds == 0


def test_what_a_figure_holds_is_told_before_it() -> None:
    """Else the rates of before would be taken from the figure of now."""
    names = [one.name for one in FOLLOWS]
    for at, one in enumerate(FOLLOWS):
        assert {name for name, _ in one.holds} <= set(names[:at])


def test_every_rate_and_figure_of_the_table_is_one() -> None:
    for one in FOLLOWS:
        assert rate_of(DEFAULT.rates, H200, one) > 0
        assert set(one.figures) <= set(QUANTITIES)
    assert len({one.name for one in FOLLOWS}) == len(FOLLOWS)


def test_a_quicker_host_and_a_slower_card_are_expected_to_be_so_in_steps(profile: DeviceProfile) -> None:
    before = calibrated(DEFAULT, profile, H200).rates
    other = replace(profile, figures={**profile.figures, "operator_seconds": profile.figures["operator_seconds"] / 2,
                                      "matmul_bfloat16": profile.figures["matmul_bfloat16"] / 2})  # fmt: skip
    after = calibrated(DEFAULT, other, H200).rates
    assert after.traced.operator_seconds == pytest.approx(before.traced.operator_seconds / 2)
    assert after.forward_dispatch_seconds == pytest.approx(before.forward_dispatch_seconds / 2, rel=0.15)
    assert after.traced.hopper.matmul == pytest.approx(before.traced.hopper.matmul / 2)
    assert after.hopper.matmul == pytest.approx(before.hopper.matmul / 2)
    assert after.traced.elsewhere == DEFAULT.rates.traced.elsewhere


def test_what_was_not_measured_keeps_its_rate(profile: DeviceProfile) -> None:
    only = replace(profile, figures={"attention": profile.figures["attention"]})
    changed = calibrated(DEFAULT, only, H200).rates
    kernels = replace(DEFAULT.rates.traced.hopper, attention=changed.traced.hopper.attention)
    efficiency = replace(DEFAULT.rates.hopper, attention=changed.hopper.attention)
    assert changed == replace(
        DEFAULT.rates, hopper=efficiency, traced=replace(DEFAULT.rates.traced, hopper=kernels)
    )  # fmt: skip


def test_nothing_is_faster_than_its_data_sheet(profile: DeviceProfile) -> None:
    fast = replace(profile, figures=dict.fromkeys(("matmul_bfloat16", "elementwise", "pinned_to_device",
                                                   "pinned_to_host"), 1e18))  # fmt: skip
    rates = calibrated(DEFAULT, fast, H200).rates
    assert (rates.hopper.matmul, rates.traced.hopper.memory, rates.host_link_efficiency) == (1.0, 1.0, 1.0)


def between(link: Link | None, share: float, profile: DeviceProfile) -> Rates:
    """The rates of a machine whose collectives reach a share of that link."""
    speed = link.bytes_per_second if link else None
    reached = share * (speed or 1e9)
    figures = {"all_reduce": reached, "all_gather": reached}
    return calibrated(DEFAULT, replace(profile, figures=figures, peer_bytes_per_second=speed), H200).rates


def test_collectives_are_a_share_of_the_link_that_they_crossed(profile: DeviceProfile) -> None:
    """Two cards that have NVLink on their data sheet, in a machine that joins them by PCIe."""
    assert H200.peer_link is not None
    for link in (H200.host_link, H200.peer_link):
        assert between(link, 0.5, profile).peer_link_efficiency == pytest.approx(0.5)
    assert between(None, 0.5, profile) == DEFAULT.rates


def test_a_profile_of_an_impossible_link_is_refused() -> None:
    with pytest.raises(BadInput, match="peer_bytes_per_second"):
        profile_from_document({**shipped(), "peer_bytes_per_second": 0.0})


def test_a_card_without_bfloat16_is_judged_by_float16(profile: DeviceProfile) -> None:
    turing = next(d for name in ("t4", "rtx-2080-ti", "v100-sxm2-32gb", "v100") if (d := _device(name)) is not None)
    half = turing.float16_flops_per_second / 2
    rates = calibrated(
        DEFAULT, replace(profile, figures={"matmul_float16": half, "matmul_bfloat16": 1e9}), turing
    ).rates
    matmul = next(one for one in FOLLOWS if one.name == "kernels.matmul")
    assert rates.traced.elsewhere.matmul == pytest.approx(matmul.factor / 2)


def _device(name: str) -> Any:
    try:
        return find_device(name)
    except BadInput:
        return None


def test_the_disk_counts_only_where_it_is_nvme(profile: DeviceProfile) -> None:
    assert calibrated(DEFAULT, profile, H200).rates.nvme_bytes_per_second == DEFAULT.rates.nvme_bytes_per_second
    slower = min(profile.figures["disk_write"], profile.figures["disk_read"])
    assert calibrated(DEFAULT, profile, H200, nvme=True).rates.nvme_bytes_per_second == slower


def test_every_shipped_profile_is_one_and_says_how_it_was_made() -> None:
    for path in sorted(Path(profiles.folder("calibrations")).glob("*.json")):
        found = profile_from_document(json.loads(path.read_text()))
        assert find_device(found.gpu).name == found.gpu
        assert found.versions["torch"] and found.command.startswith("plan calibrate")
        assert found.teaches
