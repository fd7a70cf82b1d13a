"""The model catalogue as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from estimators.model import Block, ModelSpec
from planner.report.figures import clean, count, joined, number_of
from planner.report.page import BLANK, Column, Line, labelled, paragraph, table, title


def models_page(models: Sequence[tuple[ModelSpec, str]], width: int) -> list[Line]:
    """One row a model."""
    columns = (
        Column(title="name"),
        Column(title="parameters", right=True),
        Column(title="active", right=True, vital=False),
        Column(title="layers", right=True),
        Column(title="hidden", right=True, vital=False),
        Column(title="positions", right=True, vital=False),
        Column(title="on the Hub"),
    )
    note = "A config.json of these families is taken too: a path, a folder or a Hub id. 'plan models NAME' says more."
    page = table(columns, [_row(model, hub_id) for model, hub_id in models], width)
    return [*page, BLANK, *paragraph(f"{number_of(len(models), 'model')}. {note}", width, "dim")]


def model_page(model: ModelSpec, profile: Mapping[str, Any], targets: Sequence[str], width: int) -> list[Line]:
    """Everything about one model; `profile` is empty for one that is not in the catalogue."""
    mixture = model.active_parameters != model.parameters
    rows = [
        ("parameters", f"{model.parameters:,}"),
        *([("active a token", f"{model.active_parameters:,}")] if mixture else []),
        ("published", _published(profile)),
        ("model_type", clean(model.model_type)),
        ("layers", f"{len(model.layers)} of hidden size {model.hidden_size:,}"),
        ("vocabulary", f"{model.vocabulary:,}{', head tied to the embedding' if model.tied else ''}"),
        ("positions", f"{model.max_positions:,}"),
        ("default targets", clean(joined(tuple(targets)))),
    ]
    if profile:
        rows += [("on the Hub", profile["hub_id"]), ("also called", ", ".join(profile["aliases"]) or "nothing else")]
    page: list[Line] = [((clean(model.name), "bold"),), *labelled(rows, width)]
    for block, number in model.block_counts:
        page += _block(block, number, width)
    return page


def _published(profile: Mapping[str, Any]) -> str:
    facts = profile.get("parameters") or {}
    if facts.get("published") is None:
        return "unverified: no published count is known here"
    digits = facts["precision"]
    precise = "exactly" if digits == "exact" else f"to {number_of(digits, 'digit')}"
    return f"{facts['published']:,} ({precise}): {clean(facts['source'])}"


def _block(block: Block, number: int, width: int) -> list[Line]:
    """The layers of one kind of block that an adapter can be put on, and those it cannot."""
    columns = (Column(title="layer"), Column(title="shape", right=True), Column(title="parameters", right=True),
               Column(title="", style="dim"))  # fmt: skip
    rows = [
        (
            layer.name,
            f"{layer.inputs:,} × {layer.outputs:,}",
            f"{layer.parameters:,}",
            ", ".join(
                [f"{layer.copies} copies"] * (layer.copies > 1)
                + ["bias"] * layer.bias
                + ["not for adapters or quantisation"] * (not layer.quantizable)
            ),
        )
        for layer in block.linears
    ]
    return [*title(f"{number_of(number, 'block')}, each of {count(block.parameters)}"), *table(columns, rows, width)]


def _row(model: ModelSpec, hub_id: str) -> list[str]:
    active = count(model.active_parameters) if model.active_parameters != model.parameters else "-"
    return [
        model.name,
        count(model.parameters),
        active,
        str(len(model.layers)),
        f"{model.hidden_size:,}",
        f"{model.max_positions:,}",
        hub_id,
    ]
