"""Prices of machines with GPUs, read strictly from CSV files with the columns of SkyPilot's catalogue.

Lines that start with # come before the columns and say what such a file does not: "# date: 2026-11-01",
"# source: …", "# provider: …", "# currency: USD", "# sample: yes". A file without a date is never called fresh.
"""

import csv
import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import profiles
from estimators.catalogue import find_device
from estimators.errors import BadInput, UnknownName
from estimators.units import GIB

REQUIRED = ("AcceleratorName", "AcceleratorCount", "Price")
LARGEST_FILE_BYTES = 64_000_000
DEAREST_PER_HOUR, MOST_GPUS = 100_000.0, 1024
STALE_DAYS = 30
_TOLD = ("date", "source", "provider", "currency", "sample")
_CURRENCY = re.compile(r"[A-Z]{3}")
_HEAD = re.compile(r"#\s*(\w+)\s*:\s*(.*)")
_SKYPILOT = {"A100-80GB-SXM": "a100-sxm4-80gb", "H100-MEGA": "h100-sxm"}
"""SkyPilot's names that the catalogue of GPUs does not go by; GCP's a3-megagpu nodes have H100 SXM cards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One kind of machine in one region, and what an hour of all of it costs."""

    provider: str
    instance: str
    region: str
    device: str
    """The catalogue's name of its GPUs."""
    gpus: int
    per_hour: float | None
    """On demand; None where the file has no price."""
    spot_per_hour: float | None
    memory_bytes: int | None
    """Host RAM; None where the file does not say."""

    @property
    def name(self) -> str:
        """ "nebius gpu-h100-sxm_1gpu in eu-north1"."""
        place = f" in {self.region}" if self.region else ""
        return f"{self.provider} {self.instance or f'{self.gpus} × {self.device}'}{place}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A price file: its offers, and what is to be known of them."""

    path: str
    source: str
    date: datetime.date | None
    currency: str
    sample: bool
    offers: tuple[Offer, ...]
    passed_over: int
    """Rows of machines without a GPU, or with one that is not in the catalogue."""

    def age_days(self, today: datetime.date) -> int | None:
        return None if self.date is None else (today - self.date).days

    def is_stale(self, today: datetime.date, limit_days: int = STALE_DAYS) -> bool:
        """Whether it is older than the limit; also where nobody knows how old it is."""
        age = self.age_days(today)
        return age is None or age > limit_days


def samples() -> list[str]:
    """The names of the samples that are shipped."""
    return profiles.names("prices", ".csv")


def read_sheet(name: str, today: datetime.date, said_date: datetime.date | None = None) -> Sheet:
    """The prices in a file, or in the shipped sample of that name; `said_date` for a file that has none.

    Raises:
        BadInput: it cannot be read, or a row is wrong; the message names the file, the line and the column.
    """
    path = profiles.folder("prices") / f"{name}.csv" if name in samples() else Path(name)
    lines = _text(path).splitlines()
    told, first = _head(lines, name)
    offers, passed_over = _offers(lines[first:], first + 1, name, told.get("provider") or _provider_of(path))
    day = _day(told["date"], f"{name}: date") if "date" in told else said_date
    if day is not None and day > today:
        raise BadInput(f"{name}: its date {day} is yet to come")
    return Sheet(
        path=name,
        source=told.get("source", "not said"),
        date=day,
        currency=told.get("currency", "USD"),
        sample=told.get("sample") == "yes",
        offers=offers,
        passed_over=passed_over,
    )


def read_day(text: str, option: str) -> datetime.date:
    """A day such as 2026-11-01."""
    return _day(text, option)


def one_currency(sheets: Sequence[Sheet]) -> str:
    """The currency of all the sheets.

    Raises:
        BadInput: they have several.
    """
    found = sorted({sheet.currency for sheet in sheets})
    if len(found) > 1:
        raise BadInput(f"--prices: files in {' and '.join(found)}; plan converts no currency")
    return found[0] if found else "USD"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
        if len(data) > LARGEST_FILE_BYTES:
            raise BadInput(f"{path}: larger than {LARGEST_FILE_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        known = ", ".join(samples())
        raise BadInput(f"--prices {path}: {error.strerror} (shipped samples: {known})") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not UTF-8 text") from None


def _head(lines: Sequence[str], where: str) -> tuple[dict[str, str], int]:
    """What the lines before the columns say, and where the columns are."""
    told: dict[str, str] = {}
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            return told, number
        match = _HEAD.fullmatch(line.strip())
        if match and match[1].lower() in _TOLD:
            told[match[1].lower()] = match[2].strip()
        if match and match[1].lower() == "currency" and not _CURRENCY.fullmatch(match[2].strip()):
            raise BadInput(f"{where}:{number + 1}: currency must be three letters such as USD, not {match[2][:20]!a}")
    raise BadInput(f"{where}: has no columns; they are those of SkyPilot's catalogue: {', '.join(REQUIRED)} …")


def _offers(lines: Sequence[str], first: int, where: str, provider: str) -> tuple[tuple[Offer, ...], int]:
    reader = csv.DictReader(lines, restkey="more", strict=True)
    names = reader.fieldnames or ()
    for name in REQUIRED:
        if name not in names:
            raise BadInput(f"{where}:{first}: no column {name}; the columns are those of SkyPilot's catalogue")
    offers: list[Offer] = []
    rows = 0
    for row, number in _rows(reader, first, where):
        rows += 1
        offer = _offer(row, f"{where}:{number}", provider)
        offers += [offer] if offer else []
    return tuple(dict.fromkeys(offers)), rows - len(offers)


def _rows(reader: "csv.DictReader[str]", first: int, where: str) -> Iterator[tuple[Mapping[str, str], int]]:
    try:
        for row in reader:
            number = first + reader.line_num - 1
            if "more" in row or None in row.values():
                raise BadInput(f"{where}:{number}: another number of cells than there are columns")
            yield row, number
    except csv.Error as error:
        raise BadInput(f"{where}:{first + reader.line_num - 1}: not CSV: {error}") from None


def _offer(row: Mapping[str, str], where: str, provider: str) -> Offer | None:
    """A row's offer; None of a machine without a GPU that the catalogue knows, whose numbers must be right too."""
    count = _number(row, "AcceleratorCount", where, MOST_GPUS)
    price = _number(row, "Price", where, DEAREST_PER_HOUR)
    spot = _number(row, "SpotPrice", where, DEAREST_PER_HOUR)
    memory = _number(row, "MemoryGiB", where, 1e6)
    name = row["AcceleratorName"].strip()
    device = _device(name)
    if device is None or not count:
        return None
    if count != int(count):  # a slice of a card, as some clouds rent
        return None
    return Offer(
        provider=provider,
        instance=row.get("InstanceType", "").strip(),
        region=row.get("Region", "").strip(),
        device=device,
        gpus=int(count),
        per_hour=price or None,  # SkyPilot writes 0 where it found none
        spot_per_hour=spot or None,
        memory_bytes=round(memory * GIB) if memory else None,
    )


def _number(row: Mapping[str, str], column: str, where: str, most: float) -> float | None:
    text = row.get(column, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise BadInput(f"{where}: {column} must be a number from 0 to {most:,.0f}, not {text[:40]!a}")
    return value


@cache
def _device(name: str) -> str | None:
    if not name:
        return None
    try:
        return _SKYPILOT.get(name) or find_device(name).name
    except UnknownName:
        return None


def _provider_of(path: Path) -> str:
    """SkyPilot keeps a folder for each cloud: …/nebius/vms.csv."""
    return path.parent.name if path.stem == "vms" else path.stem


def _day(text: str, where: str) -> datetime.date:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text.strip(), re.ASCII):
            return datetime.date.fromisoformat(text.strip())
    except ValueError:
        pass
    raise BadInput(f"{where} must be a day such as 2026-11-01, not {text[:40]!a}")
