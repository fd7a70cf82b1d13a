"""The versions that the written files were checked against, by the tools' own parsers."""

CHECKED = {
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "deepspeed": "0.19.8",
    "liger-kernel": "0.8.5",
    "axolotl": "0.19.0",
    "llamafactory": "0.9.5",
    "unsloth": "2026.10.9",
    "skypilot": "0.14.1",
    "torch": "2.13.0",
}
"""tests/planner/test_emit.py and tests/emit_environments/ hold the files to these."""
