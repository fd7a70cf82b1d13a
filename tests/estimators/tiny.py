"""Catalogue models cut to a few layers, so that the real code runs in no time."""

from dataclasses import replace

from estimators.models import Config

DEPTH_FIELDS = ("num_hidden_layers", "n_layer")


def shallow(config: Config, layers: int) -> Config:
    """The same model with so many layers."""
    fields = {key: layers if key in DEPTH_FIELDS else value for key, value in config.fields.items()}
    for key in ("layer_types", "no_rope_layers", "mlp_only_layers"):
        if isinstance(fields.get(key), list):
            fields[key] = fields[key][:layers]  # type: ignore[index]
    if isinstance(first := fields.get("first_k_dense_replace"), int):  # DeepSeek: so many layers do not route
        fields["first_k_dense_replace"] = min(first, 1)
    return replace(config, fields=fields)


def without_dropout(config: Config) -> Config:
    """The same model with no dropout: its masks have other types on other devices."""
    quiet = {key: 0.0 for key in config.fields if "drop" in key}
    return replace(config, fields={**config.fields, **quiet})
