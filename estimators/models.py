"""Looks a model up: a catalogue name or alias, a config.json, a checkpoint folder or a Hub id becomes a ModelSpec."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import profiles
from estimators.config_json import LARGEST_CONFIG_BYTES, parse_config
from estimators.errors import BadInput, UnknownName
from estimators.families import FAMILIES, family
from estimators.families.fields import Fields, show
from estimators.families.gemma import GEMMA3_OMITTED
from estimators.model import ModelSpec

Fetch = Callable[[str], Mapping[str, object]]
"""Gets the config.json of a Hub id, as runners.hub.fetch_config does."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The config.json of a model, which transformers builds as it is and a family here turns into a ModelSpec."""

    name: str
    """The catalogue's name, the folder's, or the Hub id."""
    source: str
    """What messages call it."""
    fields: Mapping[str, object]
    """As in the file, or in its text_config where that is the text part of a larger model."""
    hub_id: str | None = None


def load_model(name: str, fetch: Fetch | None = None) -> ModelSpec:
    """The model called `name`: see `load_config`.

    Raises:
        UnknownName: no catalogue name, alias, file, folder or family is called so.
        BadInput: a field of the config is missing, wrong or absurd; the message names it.
    """
    known = _catalogue_name(name)
    return _catalogued(known) if known else build(load_config(name, fetch))


def load_config(name: str, fetch: Fetch | None = None) -> Config:
    """The config of the model called `name`: a catalogue name or alias, whatever its case, then a path, then a Hub id.

    A folder called as a catalogue name is reached as "./name". `fetch` reaches the Hub; without it nothing does.
    """
    if known := _catalogue_name(name):
        profile = _profile(known)
        return Config(name=known, source=known, fields=profile.config, hub_id=profile.hub_id)
    if (path := _config_path(name)) is not None:
        return read_config(path)
    if fetch is not None and HUB_ID.fullmatch(name):
        return Config(name=name, source=name, fields=_text_part(fetch(name), name), hub_id=name)
    raise _unknown(name, asked=fetch is not None)


def build(config: Config) -> ModelSpec:
    """The ModelSpec of a config, by the family of its model_type."""
    fields = Fields(config.fields, config.source)
    model_type = fields.values.get("model_type")
    if not isinstance(model_type, str):
        fields.refuse("model_type", "is missing" if model_type is None else f"must be a text, not {show(model_type)}")
    if model_type not in FAMILIES:
        known = f"(known: {', '.join(sorted(FAMILIES))})"
        raise UnknownName(f"model_type in {config.source}:", model_type, FAMILIES, known)
    fields.must_be("is_encoder_decoder", False, "only decoders are planned for")
    if fields.values.get("quantization_config") is not None:
        fields.refuse("quantization_config", f"is there ({_quantizer(fields)}): plan the model that it was made from")
    return family(model_type)(fields, config.name)


def _quantizer(fields: Fields) -> str:
    """What quantised the weights that a config describes, as it says itself."""
    settings = fields.values["quantization_config"]
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return f"the weights are quantised by {show(method)}" if method else "the weights are quantised"


def read_config(path: Path) -> Config:
    """Reads a config.json strictly.

    Raises:
        BadInput: unreadable, over 1 MB, not JSON, ambiguous (a key twice) or not a model that can be planned for.
    """
    source = show(str(path), longest=120)
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    fields = parse_config(_read(path, source), source)
    return Config(name=name, source=source, fields=_text_part(fields, source))


def names() -> list[str]:
    """Every model of the catalogue, by its own name."""
    return profiles.names("models", ".json")


@cache
def aliases() -> Mapping[str, str]:
    """Everything else that a catalogued model goes by, in lower case, and the name that it stands for."""
    return {alias.lower(): name for name in names() for alias in (_profile(name).hub_id, *_profile(name).aliases)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Profile:
    hub_id: str
    aliases: tuple[str, ...]
    config: Mapping[str, object]


@cache
def _profile(name: str) -> _Profile:
    document = json.loads(profiles.read("models", f"{name}.json"))
    return _Profile(hub_id=document["hub_id"], aliases=tuple(document["aliases"]), config=document["config"])


@cache
def _names() -> frozenset[str]:
    return frozenset(names())


@cache
def _catalogued(name: str) -> ModelSpec:
    return build(load_config(name))


def _catalogue_name(name: str) -> str | None:
    """The catalogue's name for what a person typed. A name of its own needs no other file than its own."""
    typed = name.lower()
    return typed if typed in _names() else aliases().get(typed)


def _config_path(name: str) -> Path | None:
    """The config.json that `name` points at, if it is a path at all."""
    if not name or "\0" in name:
        return None
    try:
        path = Path(name).expanduser() if name.startswith("~/") else Path(name)
        if path.is_dir():
            path = path / "config.json"
            if not path.exists():
                raise BadInput(f"{show(name, longest=120)}: no config.json in this folder")
        return path if path.exists() else None
    except (OSError, RuntimeError):  # longer than a file name may be; no home
        return None


def _read(path: Path, source: str) -> bytes:
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise BadInput(f"{source}: not a regular file")
        with path.open("rb") as file:
            return file.read(LARGEST_CONFIG_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{source}: {error.strerror}") from None


def _text_part(values: Mapping[str, object], source: str) -> Mapping[str, object]:
    """The config itself, or its text_config where a larger model wraps a family known here."""
    outer, inner = values.get("model_type"), values.get("text_config")
    if inner is None or (isinstance(outer, str) and outer in FAMILIES):
        return values
    if not isinstance(inner, dict):
        raise BadInput(f"{source}: text_config must be a mapping, not {show(inner)}")
    if inner.get("model_type") not in tuple(FAMILIES):
        raise BadInput(f"{source}: text_config has model_type {show(inner.get('model_type'))}, no known text model")
    quantised = {name: values[name] for name in ("quantization_config",) if name in values}
    return {**(GEMMA3_OMITTED if outer == "gemma3" else {}), **inner, **quantised}


def _unknown(name: str, *, asked: bool) -> UnknownName:
    hint = "(give a catalogued name, a Hub id, or a path to a config.json or its folder)"
    if HUB_ID.fullmatch(name) and not asked:
        hint = "(not in the catalogue, no such folder, and the Hub was not asked)"
    return UnknownName("model", name, [*_names(), *aliases()], hint)
