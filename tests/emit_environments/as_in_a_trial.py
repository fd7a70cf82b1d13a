"""What the runs of all tools have in common: the rows that were learned, and at which rates, against a trial's."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def main(tool: str, folder: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """The exit code: 1 if a row or a learning rate differs, or nothing was saved."""
    expected = json.loads((folder / "expected.json").read_text())
    wanted, found = (Counter(map(_words, some)) for some in (expected["rows"], rows))
    wrong = [f"only a trial has:  {row}" for row in (wanted - found).elements()]
    wrong += [f"only {tool} has:  {row}" for row in (found - wanted).elements()]
    states = [json.loads(path.read_text()) for path in folder.glob("trained-*/**/trainer_state.json")]
    rates = [one["learning_rate"] for one in states[0]["log_history"] if "learning_rate" in one] if states else []
    if [round(rate, 9) for rate in rates] != [round(rate, 9) for rate in expected["rates"]]:
        wrong.append(f"learning rates {rates}, a trial has {expected['rates']}")
    if not list(folder.glob("trained-*/adapter_model.safetensors")):
        wrong.append("no adapter was saved")
    told = f"{tool}: trained {len(rates)} steps on a CPU; {found.total()} rows and the rates as in a trial"
    print("\n".join(wrong) or told)
    return 1 if wrong else 0


def _words(row: Mapping[str, Any]) -> str:
    """Tokens in order; in brackets what is learned."""
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return " ".join(f"[{label}]" if label != -100 else str(token) for token, label in pairs)
