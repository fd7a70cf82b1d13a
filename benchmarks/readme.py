"""Writes the parts of the README that figures come from: the session and the table of errors.

python benchmarks/readme.py            # rewrites README.md in place; tests/test_readme.py fails where it is stale
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SESSION = "plan --model llama-7b --gpus 1xrtx-4090"
README = ROOT / "README.md"


def session() -> str:
    """The command of the README with what it prints, at 100 columns."""
    words = shlex.split(SESSION)[1:]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "planner", *words], cwd=ROOT, env=environment, capture_output=True,
                          text=True, check=True)  # fmt: skip
    return f"```\n$ {SESSION}\n{done.stdout}```"


def accuracy() -> str:
    """The errors of each set of runs, in one table."""
    from benchmarks.accuracy import FILES, headline, rows_of

    columns = ("runs", "allocated, formula", "allocated, dry run", "process bytes, dry run", "step time, formula")
    lines = [f"| {' | '.join(columns)} |", "|-|-|-|-|-|"]
    lines += [f"| {title} | {' | '.join(headline(rows_of(name)))} |" for name, title in FILES.items()]
    return "\n".join(lines)


def filled(text: str) -> str:
    """The README's text with both parts made anew."""
    for name, make in (("session", session), ("accuracy", accuracy)):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(start)
        after = rest.split(end)[1]
        text = f"{before}{start}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
