"""The model catalogue: complete, unambiguous, and each published parameter count met to its precision."""

import json
from decimal import ROUND_HALF_UP, Context

import pytest

import profiles
from estimators.models import load_model

NAMES = profiles.names("models", ".json")
DOCUMENTS = {name: json.loads(profiles.read("models", f"{name}.json")) for name in NAMES}
PUBLISHED = [name for name in NAMES if DOCUMENTS[name]["parameters"]["published"] is not None]


def rounded(count: int, precision: int | str) -> int:
    """`count` to so many significant digits, halves up as people round."""
    if precision == "exact":
        return count
    return int(Context(prec=int(precision), rounding=ROUND_HALF_UP).create_decimal(count))


def test_catalogue_is_large_enough() -> None:
    assert len(NAMES) >= 60
    assert len(PUBLISHED) >= 40


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_count_is_met_to_its_precision(name: str) -> None:
    facts = DOCUMENTS[name]["parameters"]
    assert rounded(load_model(name).parameters, facts["precision"]) == rounded(facts["published"], facts["precision"])


def test_at_least_forty_counts_are_published_exactly() -> None:
    assert sum(DOCUMENTS[name]["parameters"]["precision"] == "exact" for name in PUBLISHED) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_profile_says_what_it_is_and_where_its_count_comes_from(name: str) -> None:
    document = DOCUMENTS[name]
    assert set(document) == {"hub_id", "aliases", "parameters", "config"}
    assert set(document["parameters"]) == {"published", "precision", "source"}
    published, precision, source = document["parameters"].values()
    if published is None:
        assert precision is None
        assert source is None
    else:
        assert source
        assert precision == "exact" or 1 <= precision <= 9
    assert name == name.lower()
    assert document["hub_id"].count("/") == 1


def test_no_name_or_alias_means_two_models() -> None:
    meanings: dict[str, str] = {}
    for name, document in DOCUMENTS.items():
        for alias in (name, document["hub_id"], *document["aliases"]):
            assert meanings.setdefault(alias.lower(), name) == name, alias
            assert alias == alias.strip()
        assert len({alias.lower() for alias in document["aliases"]}) == len(document["aliases"]), name
