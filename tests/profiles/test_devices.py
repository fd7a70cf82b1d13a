"""The GPU catalogue's facts: complete, sourced, and consistent with each other."""

import math

import pytest

import profiles
from estimators.catalogue import FIGURES, all_devices, device_names, load_device
from estimators.hardware import Device
from estimators.units import GIB, MIB

DEVICES = all_devices()
EXCEPTIONS_TO_THE_PROFESSIONAL_RATE = {"a10g", "l20", "l40"}
"""Cards on a GA10x or AD10x chip whose tensor cores run at 2 x float32, not 4 x."""


def each_device(*, minimum_capability: tuple[int, int] = (0, 0)) -> pytest.MarkDecorator:
    chosen = [device for device in DEVICES if device.compute_capability >= minimum_capability]
    return pytest.mark.parametrize("device", chosen, ids=lambda device: device.name)


def test_the_catalogue_reaches_from_p100_to_b300() -> None:
    assert len(DEVICES) >= 55
    wanted = "p100-pcie-16gb v100-sxm2-16gb v100-sxm2-32gb t4 rtx-2080-ti rtx-3060 rtx-3090 rtx-4060-ti-16gb rtx-4090"
    wanted += " rtx-5090 a2 a10 a10g a16 a30 a40 rtx-a4000 rtx-a6000 a100-pcie-40gb a100-sxm4-80gb l4 l40 l40s l20"
    wanted += " rtx-6000-ada rtx-pro-6000 rtx-pro-6000-server h100-pcie h100-sxm h100-nvl h20 gh200-96gb h200-sxm"
    wanted += " h200-nvl b200 gb200 b300"
    assert set(wanted.split()) <= set(device_names())


def test_devices_come_smallest_first() -> None:
    assert [device.total_bytes for device in DEVICES] == sorted(device.total_bytes for device in DEVICES)
    assert sorted(device.name for device in DEVICES) == device_names()


@each_device()
def test_every_figure_has_a_source(device: Device) -> None:
    assert set(device.sources) == set(FIGURES.values())
    assert all(len(source) > 10 for source in device.sources.values())


@each_device()
def test_usable_memory_is_below_the_total_but_not_far(device: Device) -> None:
    """No card was seen to lose more than the larger of 2 % and 576 MiB; where nobody has looked, we take just that."""
    most = max(math.ceil(device.total_bytes / MIB * 0.02), 576) * MIB
    assert 0 < device.total_bytes - device.usable_bytes <= most
    if device.sources["usable_bytes"].startswith("derived low"):
        assert device.total_bytes - device.usable_bytes == most


def test_usable_memory_that_was_seen() -> None:
    seen_gib = {"h200-sxm": 139.80, "t4": 14.56, "rtx-4090": 23.51, "a100-sxm4-80gb": 79.15, "rtx-5090": 31.34}
    for name, gib in seen_gib.items():
        assert load_device(name).usable_bytes / GIB == pytest.approx(gib, abs=0.01)
    assert load_device("h200-sxm").total_bytes == 143771 * MIB


@each_device()
def test_formats_follow_the_compute_capability(device: Device) -> None:
    assert (device.bfloat16_flops_per_second is None) == (device.compute_capability < (8, 0))
    assert (device.float8_flops_per_second is None) == (device.compute_capability < (8, 9))
    assert device.supports_bfloat16 == (device.bfloat16_flops_per_second is not None)


@each_device(minimum_capability=(8, 0))
def test_bfloat16_runs_at_the_rate_of_float16(device: Device) -> None:
    assert device.bfloat16_flops_per_second == device.float16_flops_per_second


@each_device(minimum_capability=(8, 9))
def test_float8_runs_at_twice_the_rate(device: Device) -> None:
    assert device.float8_flops_per_second == pytest.approx(2 * device.float16_flops_per_second, rel=0.03)


@each_device(minimum_capability=(8, 6))
def test_dense_rates_follow_from_float32(device: Device) -> None:
    """2 x on GeForce from Ampere on, 4 x on professional and data-centre GA10x, AD10x and GB20x."""
    if device.compute_capability in {(9, 0), (10, 0), (10, 3)}:
        assert device.float16_flops_per_second > 3 * device.float32_flops_per_second
        return
    halved = "GeForce" in device.title or device.name in EXCEPTIONS_TO_THE_PROFESSIONAL_RATE
    expected = (2 if halved else 4) * device.float32_flops_per_second
    assert device.float16_flops_per_second == pytest.approx(expected, rel=0.03)


@each_device()
def test_float32_needs_a_plausible_clock(device: Device) -> None:
    """A rate and a multiprocessor count that do not belong together imply a clock that no card has."""
    lanes = 128 if device.compute_capability >= (8, 6) else 64
    clock_hz = device.float32_flops_per_second / (device.multiprocessors * lanes * 2)
    assert 1.15e9 < clock_hz < 2.7e9


@each_device()
def test_links_are_those_of_the_form_factor(device: Device) -> None:
    if device.name.startswith(("gh200", "gb")):
        assert device.host_link.name == "nvlink-c2c"
    else:
        assert device.host_link.name.startswith("pcie")
    expects_peers = device.data_centre and ("SXM" in device.title or device.compute_capability in {(9, 0), (10, 0)})
    assert device.peer_link is not None or not expects_peers
    if device.peer_link:
        assert device.peer_link.bytes_per_second > 0.7 * device.host_link.bytes_per_second
    # A bridge joins two cards or four, and only where there is NVLink; cards on SXM boards need none.
    assert device.nvlink_bridged_cards in ((0, 2, 4) if device.peer_link else (0,))
    assert not (device.nvlink_bridged_cards and "sxm" in device.name)


def test_known_links() -> None:
    h100 = load_device("h100-sxm")
    assert h100.peer_link is not None
    assert h100.peer_link.bytes_per_second == 450e9  # 900 GB/s both ways
    assert h100.host_link.bytes_per_second == 63e9
    assert load_device("rtx-4090").peer_link is None
    assert load_device("rtx-4060").host_link.bytes_per_second == load_device("t4").host_link.bytes_per_second == 15.75e9


def test_what_the_usual_tables_get_wrong() -> None:
    tera = 1e12
    assert load_device("h200-sxm").float16_flops_per_second == 989.4 * tera  # not 1979, which is with sparsity
    assert load_device("rtx-4090").float16_flops_per_second == 165.2 * tera  # not 82.6, the float32 rate
    assert load_device("a10g").float16_flops_per_second == 70 * tera  # not the A10's 125
    assert load_device("h100-nvl").float16_flops_per_second == 835 * tera  # not that of a pair
    assert load_device("b200").memory_bytes_per_second == 8e12  # not that of half a module
    assert load_device("v100-sxm2-16gb").memory_bytes_per_second == 900e9


def test_only_gb10_shares_its_memory_with_the_host() -> None:
    assert [device.name for device in DEVICES if device.unified_memory] == ["gb10"]


def test_workstation_and_gaming_cards_are_no_data_centre_cards() -> None:
    centre = {device.name for device in DEVICES if device.data_centre}
    assert {"t4", "a100-sxm4-40gb", "l40s", "h100-pcie", "b200", "rtx-pro-6000-server"} <= centre
    assert not any(name.startswith(("rtx-", "quadro-", "titan-")) for name in centre - {"rtx-pro-6000-server"})


@pytest.mark.parametrize("name", device_names())
def test_file_starts_with_a_comment_and_has_no_tabs(name: str) -> None:
    text = profiles.read("devices", f"{name}.toml")
    assert text.startswith("# ") and "\t" not in text and text.endswith("\n")
