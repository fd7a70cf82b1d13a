"""What people type after --gpus and the other options: read as meant, or refused in one line that names it."""

import contextlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from estimators.errors import BadInput, UnknownName
from planner import options
from planner.__main__ import main


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtx-4090", [("rtx-4090", 1)]),
        ("2xa100-80gb", [("a100-80gb", 2)]),
        ("4xA10G", [("A10G", 4)]),
        ("8 x H100 SXM", [("H100 SXM", 8)]),
        ("2×4090", [("4090", 2)]),
        ("4090", [("4090", 1)]),
        ("3090:2", [("3090", 2)]),
        ("rtx-3090:2,a100-80gb:1", [("rtx-3090", 2), ("a100-80gb", 1)]),
        ("2xrtx-3090, NVIDIA A10G", [("rtx-3090", 2), ("NVIDIA A10G", 1)]),
    ],
)
def test_gpus_are_read_as_people_write_them(text: str, expected: list[tuple[str, int]]) -> None:
    assert options.read_gpus(text, "--gpus") == tuple(expected)
    assert options.find_gpus(options.read_gpus(text, "--gpus") or ())


@pytest.mark.parametrize("text", ["auto", " AUTO "])
def test_auto_means_those_at_hand(text: str) -> None:
    assert options.read_gpus(text, "--gpus") is None


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "rtx-4090,", "0xrtx-4090", "rtx-4090:0", "2", "2xa100:3", "a100:", ":2", "auto,rtx-4090", "2xauto",
     "1025xt4", "9999999999xt4", "t4:99999999999", "t4," * 2000],
)  # fmt: skip
def test_malformed_gpus_are_refused_by_name(text: str) -> None:
    with pytest.raises(BadInput, match="--gpus") as refusal:
        options.read_gpus(text, "--gpus")
    assert "\n" not in str(refusal.value)


def test_one_device_a_gpu_in_the_order_given() -> None:
    devices = options.find_gpus(options.read_gpus("rtx-3090:2,a100-80gb:1", "--gpus") or ())
    assert [device.name for device in devices] == ["rtx-3090", "rtx-3090", "a100-sxm4-80gb"]


def test_an_unknown_gpu_has_its_neighbours_offered() -> None:
    with pytest.raises(UnknownName, match="rtx-4090"):
        options.find_gpus(options.read_gpus("rtx4091", "--gpus") or ())


@given(junk=some.text(max_size=60) | some.from_regex(r"[0-9]{0,3}x?[a-z0-9:,× -]{0,20}", fullmatch=True))
@settings(max_examples=80, deadline=None)
def test_any_junk_ends_in_one_line(junk: str) -> None:
    if junk.strip().lower() == "auto":
        return
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["--model", "gpt2", f"--gpus={junk}", "--quiet", "--fast"])
    if code in (0, 3):  # it happens to name a GPU
        assert options.find_gpus(options.read_gpus(junk, "--gpus") or ())
        return
    assert code == 2
    assert out.getvalue() == ""
    assert err.getvalue().startswith("error: ")
    assert err.getvalue().count("\n") == 1
    assert err.getvalue().rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("50000", 50_000), ("1e6", 10**6), ("10M", 10**7), ("1.5B", 15 * 10**8), ("2_000", 2000)],
)
def test_counts_are_read_with_their_multiples(text: str, count: int) -> None:
    assert options.read_count(text, "--tokens") == count


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1e99", "ten", "", "1e-3", "nan", "inf", "1M5"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--tokens"):
        options.read_count(text, "--tokens")


@pytest.mark.parametrize(
    ("text", "rate"),
    [("nvlink4", 450e9), ("PCIe4-x16", 31.5e9), ("pcie5", 63e9), ("pcie3x8", 7.875e9), ("50", 50e9), ("50GB/s", 50e9),
     ("400Gb/s", 50e9), ("400Gbps", 50e9), ("infiniband-hdr", 25e9), ("1.2 TB/s", 1.2e12)],
)  # fmt: skip
def test_links_are_read_by_name_or_rate(text: str, rate: float) -> None:
    assert options.read_link(text, "--link").bytes_per_second == pytest.approx(rate)


@pytest.mark.parametrize("text", ["nvlink", "fast", "0", "-5", "50 parsec", "1e9", "9999TB/s", "pcie4-x3", "pcie9"])
def test_what_is_no_link_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        options.read_link(text, "--link")


def test_headroom_may_be_nothing_and_a_budget_may_not() -> None:
    assert options.read_headroom("0", "--headroom") == 0
    with pytest.raises(BadInput, match="--vram-budget"):
        options.read_size("0", "--vram-budget")
    with pytest.raises(BadInput, match="22 is 22 bytes: say 22GiB"):
        options.read_size("22", "--vram-budget")
    assert options.read_size("16106127360", "--allocator-cap") == 15 << 30


@pytest.mark.parametrize(("text", "share"), [("0", 0.0), ("0.05", 0.05), (".1", 0.1)])
def test_dropout_is_a_share(text: str, share: float) -> None:
    assert options.read_dropout(text, "--dropout") == share


@pytest.mark.parametrize("text", ["1", "1.0", "0.995", "-0.1", "5%", "nan"])
def test_what_is_no_dropout_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--dropout"):
        options.read_dropout(text, "--dropout")


def test_targets_are_layers_or_all_of_them() -> None:
    assert options.read_targets("q_proj, v_proj,q_proj", "--targets") == ("q_proj", "v_proj")
    assert options.read_targets("all-linear", "--targets") == "all-linear"
    with pytest.raises(BadInput, match="--targets"):
        options.read_targets("q_proj;rm", "--targets")
