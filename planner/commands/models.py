"""`plan models [NAME]`: the catalogue of models, or what plan knows of one."""

import json
from typing import Any

import click

from planner.commands.parameters import AS_JSON, VERBOSE, Read, as_typed, model_names
from planner.report.paint import page_width, show, write


def _run(name: str | None, as_json: bool, verbose: bool) -> int:
    return _list(as_json) if name is None else _show(name, as_json)


def _list(as_json: bool) -> int:
    from estimators.models import load_model, names

    facts = [(load_model(name), _profile(name)) for name in names()]
    if as_json:
        from planner.report.json import SCHEMA_VERSION, dump, model_document

        documents = [{**model_document(model), "hub_id": profile["hub_id"]} for model, profile in facts]
        write(dump({"schema_version": SCHEMA_VERSION, "models": documents}))
        return 0
    from planner.report.models import models_page

    show(models_page([(model, profile["hub_id"]) for model, profile in facts], page_width()))
    return 0


def _show(name: str, as_json: bool) -> int:
    from estimators.models import load_config, load_model, names
    from estimators.trainable import default_targets

    model, config = load_model(name), load_config(name)
    profile = _profile(config.name) if config.name in names() and config.source == config.name else {}
    if as_json:
        from planner.report.json import SCHEMA_VERSION, dump, model_document

        known = {key: profile.get(key) for key in ("hub_id", "aliases")}
        known |= {"published_parameters": profile.get("parameters"), "default_targets": list(default_targets(model))}
        write(dump({"schema_version": SCHEMA_VERSION, **model_document(model), **known}))
        return 0
    from planner.report.models import model_page

    show(model_page(model, profile, default_targets(model), page_width()))
    return 0


def _profile(name: str) -> dict[str, Any]:
    import profiles

    profile: dict[str, Any] = json.loads(profiles.read("models", f"{name}.json"))
    return profile


command = click.Command(
    "models",
    short_help="List the models that plan knows, or describe one.",
    help="List the models that plan knows; with NAME (or a path), its size, its source and its layers.",
    callback=_run,
    params=[click.Argument(["name"], required=False, type=Read(as_typed, "NAME", model_names)), AS_JSON, VERBOSE],
)
