"""Run by benchmarks/validate_emit.py inside axolotl's environment: every axolotl.yaml against its own schema."""

import os
import sys
from pathlib import Path

import yaml
from every_folder import main

CAPABILITIES = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 2, "n_node": 1, "compute_capability": "sm_90"}


def check(folder: Path) -> None:
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlInputConfig

    settings = yaml.safe_load((folder / "axolotl.yaml").read_text())
    os.chdir(folder)  # where it looks for deepspeed.json
    fields = set(AxolotlInputConfig.model_fields)
    if settings.get("plugins"):
        from axolotl.integrations.liger.args import LigerArgs

        fields |= set(LigerArgs.model_fields)
        prepare_plugins(DictDefault(settings))
    unknown = set(settings) - fields  # it lets every word pass in silence
    assert not unknown, f"unknown keys {sorted(unknown)}"
    for name in ("fsdp_config",):
        from axolotl.utils.schemas.fsdp import FSDPConfig

        unknown = set(settings.get(name) or {}) - set(FSDPConfig.model_fields)
        assert not unknown, f"unknown keys of {name}: {sorted(unknown)}"
    read = validate_config(
        DictDefault(settings), capabilities=CAPABILITIES, env_capabilities={"torch_version": "2.13.0"}
    )
    changed = {
        name: (value, read.get(name)) for name, value in settings.items()
        if name not in NORMALISED and _plain(read.get(name)) != value
    }  # fmt: skip
    assert not changed, f"read otherwise than written: {changed}"


NORMALISED = ("datasets", "fsdp_config", "plugins")
"""What it fills in with defaults of its own."""


def _plain(value: object) -> object:
    """Without the types of its own: enumerations, and tables that have every attribute."""
    return dict(value) if isinstance(value, dict) else getattr(value, "value", value)


if __name__ == "__main__":
    sys.exit(main("axolotl", "axolotl.yaml", check))
