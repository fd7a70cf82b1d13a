"""Facts, as files: devices, models, rules, measurements. This module only finds and reads them."""

from pathlib import Path

ROOT = Path(__file__).parent


def folder(kind: str) -> Path:
    """The folder of one kind of facts: "devices", "models", "rules", "measurements" or "prices"."""
    return ROOT / kind


def names(kind: str, suffix: str) -> list[str]:
    """The names of all facts of a kind, sorted, without their suffix such as ".toml"."""
    return sorted(entry.name.removesuffix(suffix) for entry in folder(kind).iterdir() if entry.name.endswith(suffix))


def read(kind: str, file_name: str) -> str:
    """The text of one fact file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return (ROOT / kind / file_name).read_text(encoding="utf-8")
