"""A sweep's study in optuna-dashboard: what its server answers is what a person is to see."""

import json
from typing import Any

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")

import optuna

from planner.sweep.space import Space
from tests.planner.sweeps import LEARN, order, sweep

ONE_TOO_BIG = "out_of_memory() if size >= 16 else None\n" + LEARN
RATE = 2e-4
"""That nobody chose."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a sweep of three ranks, of which one runs out of memory, that went on with a fourth."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep(order(folder, space=Space(ranks=(4, 8), dropouts=(0.0, 0.1)), repeats=0), ONE_TOO_BIG)
    done = sweep(order(folder, space=Space(ranks=(4, 8, 256), dropouts=(0.0, 0.1)), repeats=0), ONE_TOO_BIG)
    assert [trial.out_of_memory for trial in done.trials] == [False] * 4 + [True]
    return done.storage


def test_the_charts_are_no_wider_than_what_is_tried(address: str) -> None:
    trials = optuna.load_study(study_name=None, storage=address).get_trials()
    assert trials[0].params == {"learning_rate": RATE, "dropout": 0.0, "rank": 4}
    ends = {name: (axis.low, axis.high) for name, axis in trials[0].distributions.items()}  # type: ignore[attr-defined]
    assert ends == {"learning_rate": (RATE, RATE), "dropout": (0.0, 0.1), "rank": (4, 128)}
    assert trials[-1].distributions["rank"].high == 256  # type: ignore[attr-defined]


def test_out_of_memory_is_infeasible_under_the_old_name_of_constraints_too(address: str) -> None:
    trials = optuna.load_study(study_name=None, storage=address).get_trials()
    for trial in trials:
        kept = trial.system_attrs["constraints"]
        assert (max(kept) > 0) == (trial.number == 4)
        assert sorted(kept) == sorted(trial.constraints[name] for name in ("learns", "fits"))


def test_the_dashboard_shows_what_a_person_looks_for(address: str) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    app = dashboard.wsgi(address)
    studies = ask(app, "/api/studies")["study_summaries"]
    assert [one["directions"] for one in studies] == [["minimize", "maximize"]]
    study = ask(app, f"/api/studies/{studies[0]['study_id']}", "after=0")
    assert study["objective_names"] == ["loss", "tokens_per_second"]
    trials = study["trials"]
    assert [one["state"] for one in trials] == ["Complete"] * 5
    assert [max(one["constraints"]) > 0 for one in trials] == [False] * 4 + [True]
    shown = [{one["key"]: one["value"] for one in trial["user_attrs"]} for trial in trials]
    assert shown[0]["name"] == "lora r4, lr 0.0002" and shown[4]["outcome"] == "out_of_memory"
    assert "CUDA out of memory" in shown[4]["why"] and "why" not in shown[0]
    sortable = {one["key"] for one in study["union_user_attrs"] if one["sortable"]}
    assert {"alpha", "micro_batch", "took_seconds", "untrained_loss"} <= sortable
    ends = {one["name"]: one["distribution"] for one in study["union_search_space"]}
    assert (ends["rank"]["low"], ends["rank"]["high"]) == (4, 256), "of both spaces, in one chart"


def ask(app: Any, path: str, query: str = "") -> Any:
    """What the server answers, without a socket."""
    environment: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": "GET"}
    status: list[str] = []
    body = b"".join(app(environment, lambda line, headers, error=None: status.append(line)))
    assert status == ["200 OK"], body
    return json.loads(body)
