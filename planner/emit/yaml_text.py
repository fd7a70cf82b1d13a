"""YAML as it is written here: texts are quoted and floats have a point, so that every reader reads them alike."""

import re
from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

AMBIGUOUS = ("yes", "off", "true", "false", "null")


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """YAML 1.1 and 1.2 differ in what an unquoted "no", "1e-4" or "012" is: nothing that could be either stays so."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _table(dumper: yaml.SafeDumper, value: Mapping[str, Any]) -> yaml.MappingNode:
    """In the order given; the keys, which are our own words, stand bare where that is safe."""
    node = dumper.represent_mapping("tag:yaml.org,2002:map", value.items())
    for key, _ in node.value:
        if re.fullmatch(r"[a-z_][a-z0-9_]{2,}", key.value) and key.value not in AMBIGUOUS:
            key.style = None
    return node


_Dumper.add_representer(str, _text)
_Dumper.add_representer(dict, _table)


def dump(table: Mapping[str, Any]) -> str:
    """The YAML document of a table of JSON types."""
    text: str = yaml.dump(dict(table), Dumper=_Dumper, allow_unicode=False, width=4096, default_flow_style=False)
    return text


def scalar(value: Any) -> str:
    """One value, on one line, for a line that is put in place of another."""
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=False, width=1 << 20, default_flow_style=True)
    return text.removesuffix("\n...\n").rstrip("\n")
