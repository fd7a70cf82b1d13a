"""Sizes as people type and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators.errors import BadInput
from estimators.units import GIB, format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("22GiB", 22 * GIB), ("22 gib", 22 * GIB), ("22GB", 22 * 10**9), ("22G", 22 * GIB), ("512MiB", 512 << 20),
     ("1.5GiB", 3 * GIB // 2), ("1TB", 10**12), ("4096", 4096), ("4096B", 4096)],
)  # fmt: skip
def test_sizes_are_read_as_people_mean_them(text: str, size_bytes: int) -> None:
    assert parse_bytes(text, "--vram-budget") == size_bytes


@pytest.mark.parametrize("text", ["", "-1GiB", "0", "22 potatoes", "1e400GiB", "NaN", "9" * 400, "22GiB22", "٢٢GiB"])
def test_other_texts_are_refused_with_the_options_name(text: str) -> None:
    with pytest.raises(BadInput, match="--vram-budget"):
        parse_bytes(text, "--vram-budget")


@given(st.text(max_size=30))
def test_junk_never_breaks_the_parser(text: str) -> None:
    try:
        assert parse_bytes(text, "size") > 0
    except BadInput as error:
        assert "\n" not in str(error).replace(repr(text[:40]), "")


@given(st.integers(1, 1 << 50))
def test_what_is_printed_is_within_one_percent(size_bytes: int) -> None:
    number, unit = format_bytes(size_bytes).replace(",", "").split()
    back = float(number) * {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": GIB}[unit]
    assert back == pytest.approx(
        size_bytes, rel=0.51 if size_bytes < 1 << 21 else 0.26 if size_bytes < 1 << 22 else 0.13
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.24, "240 ms"), (1.32, "1.32 s"), (600, "10 min"), (12_240, "3.4 h"), (864_000, "10.0 days")],
)
def test_times_have_the_unit_that_a_person_would_choose(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
