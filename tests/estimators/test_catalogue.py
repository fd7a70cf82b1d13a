"""Names resolve to the card they mean, and malformed device files are refused by name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import profiles
from estimators import catalogue
from estimators.catalogue import (
    all_devices,
    device_names,
    find_device,
    load_device,
    parse_device_file,
    pcie_link,
    smallest_device,
)
from estimators.errors import BadInput, UnknownName
from estimators.hardware import Device
from estimators.units import GIB, MIB

GOOD = profiles.read("devices", "rtx-4090.toml")
ALIASES = [(alias, name) for name in device_names() for alias in (name, *catalogue.load_device_file(name).aliases)]

TYPED = {
    "4090": "rtx-4090",
    "rtx4090": "rtx-4090",
    "rtx-4090": "rtx-4090",
    "RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "3090 Ti": "rtx-3090-ti",
    "RTX_3060": "rtx-3060",
    "a100": "a100-sxm4-40gb",
    "a100-40gb": "a100-sxm4-40gb",
    "A100-SXM4": "a100-sxm4-40gb",
    "a100-80gb": "a100-sxm4-80gb",
    "A100 80 GB": "a100-sxm4-80gb",
    "a100-pcie-80gb": "a100-pcie-80gb",
    "NVIDIA A100-SXM4-80GB": "a100-sxm4-80gb",
    "NVIDIA A100-SXM4-40GB": "a100-sxm4-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40gb",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80gb",
    "h100": "h100-sxm",
    "h100-sxm": "h100-sxm",
    "H100-80GB": "h100-sxm",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "h200": "h200-sxm",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA H20": "h20",
    "gh200": "gh200-96gb",
    "NVIDIA GH200 480GB": "gh200-96gb",
    "b200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA B300 SXM6 AC": "b300",
    "NVIDIA A10G": "a10g",
    "A10G": "a10g",
    "a10": "a10",
    "l4": "l4",
    "l40": "l40",
    "l40s": "l40s",
    "t4": "t4",
    "Tesla T4": "t4",
    "v100": "v100-sxm2-16gb",
    "v100-32gb": "v100-sxm2-32gb",
    "Tesla V100-SXM2-16GB": "v100-sxm2-16gb",
    "Tesla V100-PCIE-32GB": "v100-pcie-32gb",
    "Tesla P100-PCIE-16GB": "p100-pcie-16gb",
    "Quadro RTX 6000": "quadro-rtx-6000",
    "NVIDIA RTX A6000": "rtx-a6000",
    "a6000": "rtx-a6000",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "rtx 6000 ada": "rtx-6000-ada",
    "rtx pro 6000": "rtx-pro-6000",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000-server",
    "NVIDIA GeForce RTX 3080": "rtx-3080-10gb",
    "4060 ti": "rtx-4060-ti-8gb",
    "4060 Ti 16GB": "rtx-4060-ti-16gb",
}


@pytest.mark.parametrize(("typed", "expected"), TYPED.items())
def test_what_people_type_and_nvml_prints(typed: str, expected: str) -> None:
    assert find_device(typed).name == expected


@pytest.mark.parametrize(
    ("name", "total_mib", "expected"),
    [
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "rtx-4060-ti-8gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "rtx-4060-ti-16gb"),
        ("NVIDIA GeForce RTX 5060 Ti", 16311, "rtx-5060-ti-16gb"),
        ("NVIDIA GeForce RTX 3080", 10018, "rtx-3080-10gb"),
        ("NVIDIA GeForce RTX 3080", 12288, "rtx-3080-12gb"),
        ("a100", 81920, "a100-sxm4-80gb"),
        ("a100", 40536, "a100-sxm4-40gb"),
        ("a100-pcie", 81920, "a100-pcie-80gb"),
        ("v100", 32510, "v100-sxm2-32gb"),
        ("gh200", 146831, "gh200-144gb"),
        ("NVIDIA GeForce RTX 4090", 49140, "rtx-4090"),
        ("a100-80gb", 40960, "a100-sxm4-80gb"),
    ],
)
def test_the_total_picks_among_sisters_unless_the_name_has_a_size(name: str, total_mib: int, expected: str) -> None:
    assert find_device(name, total_mib * MIB).name == expected


def test_nvml_name_and_total_lead_to_every_device() -> None:
    for device in all_devices():
        assert find_device(device.title, device.total_bytes) is device


def test_without_a_total_a_shared_name_means_the_smallest_sister() -> None:
    for device in all_devices():
        assert find_device(device.title).total_bytes <= device.total_bytes


def test_no_alias_leads_to_two_devices() -> None:
    owners: dict[str, set[str]] = {}
    for alias, name in ALIASES:
        owners.setdefault(re.sub(r"[^a-z0-9]|nvidia|geforce|tesla|quadro", "", alias.lower()), set()).add(name)
    assert {alias: names for alias, names in owners.items() if len(names) > 1} == {}


@given(st.sampled_from(ALIASES), st.data())
def test_case_spaces_hyphens_and_vendor_words_do_not_count(
    alias_and_name: tuple[str, str], data: st.DataObject
) -> None:
    alias, name = alias_and_name
    letters = [letter for letter in alias if letter.isalnum()]
    spelled = data.draw(st.sampled_from(["", "NVIDIA ", "nvidia-geforce ", "Tesla "]))
    for letter in letters:
        spelled += data.draw(st.sampled_from([letter.lower(), letter.upper()]))
        spelled += data.draw(st.sampled_from(["", "", "", " ", "-", "_", " - "]))
    assert find_device(spelled).name == name


@pytest.mark.parametrize(
    ("unknown", "neighbour"),
    [("rtx 4099", "rtx-4090"), ("NVIDIA GeForce RTX 4099", "rtx-4090"), ("h100s", "h100-sxm"), ("a100 8gb", "a100")],
)
def test_an_unknown_name_is_refused_with_its_neighbours(unknown: str, neighbour: str) -> None:
    with pytest.raises(UnknownName, match=neighbour) as caught:
        find_device(unknown)
    assert repr(unknown) in str(caught.value)


@pytest.mark.parametrize("unknown", ["", "-", "NVIDIA", "../rtx-4090", "rtx-4090.toml", "Radeon VII", "x" * 10_000])
def test_nonsense_is_refused(unknown: str) -> None:
    with pytest.raises(UnknownName):
        find_device(unknown)
    with pytest.raises(UnknownName):
        load_device(unknown)


def test_a_laptop_card_is_not_its_desktop_namesake() -> None:
    with pytest.raises(UnknownName):
        find_device("NVIDIA GeForce RTX 4090 Laptop GPU", 16 * GIB)


def test_a_canonical_name_reads_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = profiles.read

    def recording(kind: str, file_name: str) -> str:
        read.append(file_name)
        return original(kind, file_name)

    monkeypatch.setattr(profiles, "read", recording)
    catalogue.load_device.cache_clear()
    catalogue.load_device_file.cache_clear()
    catalogue._aliases.cache_clear()
    assert find_device("l40s").name == "l40s"
    assert read == ["l40s.toml"]


def test_pcie_links() -> None:
    assert pcie_link(4, 16).bytes_per_second == 31.5e9
    assert pcie_link(5, 8).bytes_per_second == pcie_link(4, 16).bytes_per_second
    assert pcie_link(3, 4).name == "pcie3-x4"
    with pytest.raises(BadInput):
        pcie_link(2, 16)
    with pytest.raises(BadInput):
        pcie_link(4, 12)


def test_the_parser_accepts_what_it_should() -> None:
    parsed = parse_device_file(GOOD, "mine")
    assert parsed.device.name == "mine"
    assert parsed.aliases == ("4090",)
    assert parsed.device.total_bytes == 24564 * MIB


KEYS = re.findall(r"^(\w+) = ", GOOD.split("[sources]")[0], re.MULTILINE)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_refused_by_name(key: str) -> None:
    text = re.sub(rf"^{key} = .*\n", "", GOOD, count=1, flags=re.MULTILINE)
    with pytest.raises(BadInput, match=rf"mine\.toml: {key} is missing"):
        parse_device_file(text, "mine")


@pytest.mark.parametrize("key", sorted(catalogue.FIGURES))
def test_a_figure_without_a_source_is_refused_by_name(key: str) -> None:
    head, sources = GOOD.split("[sources]")
    text = head + "[sources]" + re.sub(rf"^{key} = .*\n", "", sources, flags=re.MULTILINE)
    with pytest.raises(BadInput, match=rf"mine\.toml: sources\.{key} is missing"):
        parse_device_file(text, "mine")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("total_mib", '"24564"', "a number"),
        ("total_mib", "true", "a number"),
        ("total_mib", "-1", "above zero"),
        ("total_mib", "nan", "above zero"),
        ("total_mib", "1" + "0" * 400, "below"),
        ("usable_mib", "24564", "below total_mib"),
        ("memory_gb_per_second", "inf", "below"),
        ("memory_gb_per_second", "0", "above zero"),
        ("float16_tflops", "[165]", "a number"),
        ("bfloat16_tflops", "0", "exactly where"),
        ("float8_tflops", "-330.3", "above zero"),
        ("multiprocessors", "127.5", "whole number"),
        ("compute_capability", "8.9", "a text"),
        ("compute_capability", '"eight"', "such as"),
        ("host_link", '"pcie4"', "such as"),
        ("host_link", '"pcie9-x16"', "such as"),
        ("host_link", '"pcie4-x12"', "such as"),
        ("nvlink_gb_per_second_both_ways", "-900", "above zero"),
        ("nvlink_bridged_cards", "true", "a number"),
        ("confidence", '"sure"', "one of"),
        ("data_centre", "0", "true or false"),
        ("unified_memory", '"no"', "true or false"),
        ("aliases", '"4090"', "a list"),
        ("aliases", "[4090]", "a list"),
        ("aliases", '["NVIDIA"]', "a list"),
        ("title", '" "', "a text"),
    ],
)
def test_a_wrong_value_is_refused_by_name(key: str, value: str, problem: str) -> None:
    text = re.sub(rf"^{key} = .*$", f"{key} = {value}", GOOD, count=1, flags=re.MULTILINE)
    with pytest.raises(BadInput, match=rf"mine\.toml: {key} .*{problem}"):
        parse_device_file(text, "mine")


def test_formats_that_the_hardware_lacks_are_refused() -> None:
    turing = GOOD.replace('compute_capability = "8.9"', 'compute_capability = "7.5"')
    with pytest.raises(BadInput, match="bfloat16_tflops"):
        parse_device_file(turing, "mine")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("speed = 1\n" + GOOD, "speed is not a known key"),
        (GOOD + 'speed = "fast"\n', r"sources\.speed is not a known key"),
        (GOOD + "title = 3\n", r"sources\.title is not a known key"),
        (GOOD.split("[sources]")[0] + "sources = 3\n", "sources must be a table"),
        (re.sub(r'^power_watts = ".*"$', "power_watts = 450", GOOD, flags=re.MULTILINE), r"sources\.power_watts must"),
        ("total_mib = ", "is not TOML"),
        ("", "is missing"),
    ],
)
def test_other_malformed_files_are_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=rf"mine\.toml.*{problem}"):
        parse_device_file(text, "mine")


@pytest.mark.parametrize("gib", [1, 10, 23, 60, 100, 500])
def test_the_smallest_card_that_is_enough_is_found(gib: int) -> None:
    def accept(device: Device) -> bool:
        return device.supports_bfloat16

    wanted = [device for device in all_devices() if device.usable_bytes >= gib << 30 and accept(device)]
    found = smallest_device(gib << 30, accept)
    if not wanted:
        assert found is None
    else:
        assert found is not None
        assert found.usable_bytes == min(device.usable_bytes for device in wanted)
