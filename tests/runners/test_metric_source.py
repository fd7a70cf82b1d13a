"""What is said of the user's metric before any trial starts, and that nothing of theirs runs for it."""

from pathlib import Path

import pytest

from estimators.errors import BadInput
from runners.metric_source import check_source

TAKEN = {
    "plain": "def score(examples, generations):\n    return 1.0",
    "more than needed": "def score(examples, generations, weight=1.0, *, strict=False): return 1.0",
    "as many as come": "def score(*everything): return 1.0",
    "a value that can be called": "from functools import partial\nscore = partial(print, 1)",
    "an alias": "def f(a, b): return 1.0\nscore = f",
    "with a type": "from typing import Any\nscore: Any = print",
    "one of several": "score, other = print, print",
    "from elsewhere": "from metrics_of_ours import best as score",
    "a package that may be absent": "try:\n    from fast import score\nexcept ImportError:\n    score = None",
    "in a branch": "import sys\nif sys.platform == 'linux':\n    def score(a, b): return 1.0\nelse:\n    score = 3",
    "whatever there is elsewhere": "from metrics_of_ours import *",
    "made as it is asked for": "def __getattr__(name): return len",
    "made as it runs": "globals()['score'] = lambda a, b: 1.0",
    "by a function": "def make():\n    global score\n    score = print\nmake()",
    "of a decorator": "import functools\n@functools.partial(lambda f: lambda a, b: f(a))\ndef score(one): return 1.0",
    "a class": "class score:\n    def __init__(self, a, b): ...",
    "a lambda": "score = lambda examples, generations: 1.0",
    "of another encoding": "# -*- coding: latin-1 -*-\ndef score(a, b): return '\xe9'",
}
REFUSED = {
    "def scores(a, b): return 1.0": "did you mean scores?",
    "def other():\n    def score(a, b): return 1.0": "unknown --metric mine: function 'score'",
    "class Metrics:\n    def score(self, a, b): return 1.0": "unknown --metric mine: function 'score'",
    "": "unknown --metric mine: function 'score'",
    "score = 0.5": "a value, and no function",
    "def score(generations): return 1.0": "must take two arguments",
    "def score(a, b, c): return 1.0": "must take two arguments",
    "def score(a, b, *, c): return 1.0": "must take two arguments",
    "score = lambda a: 1.0": "must take two arguments",
    "async def score(a, b): return 1.0": "async",
    "def score(a, b)\n    return 1.0": "mine.py, line 1: expected ':'",
}


@pytest.mark.parametrize("source", TAKEN.values(), ids=TAKEN)
def test_what_may_be_right_is_taken(tmp_path: Path, source: str) -> None:
    (tmp_path / "mine.py").write_bytes(source.encode("latin-1"))
    check_source("mine:score", tmp_path)


@pytest.mark.parametrize(("source", "said"), REFUSED.items())
def test_what_cannot_be_right_is_refused_in_a_line(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(BadInput) as found:
        check_source("mine:score", tmp_path)
    assert said in str(found.value) and "\n" not in str(found.value)


def test_nothing_of_the_module_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit\ndef score(a, b): return 1.0")
    check_source("mine:score", tmp_path)


def test_the_module_is_where_python_finds_it(tmp_path: Path) -> None:
    package = tmp_path / "ours" / "metrics"
    package.mkdir(parents=True)
    with pytest.raises(BadInput, match=r"is a folder without __init__\.py"):
        check_source("ours.metrics:score", tmp_path)
    (package / "__init__.py").write_text("from .best import score")
    check_source("ours.metrics:score", tmp_path)
    (tmp_path / "ours" / "metrics.py").touch()
    check_source("ours.metrics:score", tmp_path)  # a package goes before a module of its name
    (tmp_path / "quick.abi3.so").touch()
    check_source("quick:score", tmp_path)  # compiled, which says nothing
    with pytest.raises(BadInput, match="there is no module of that name"):
        check_source("quik:score", tmp_path)
