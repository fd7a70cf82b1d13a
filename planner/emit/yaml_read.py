"""Other people's YAML, read as data: one document, no tags, no key twice, no bombs; and where each key of it stands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from estimators.errors import BadInput

LARGEST_BYTES, MOST_NODES, DEEPEST = 1_000_000, 20_000, 32
PLAIN = ("str", "int", "float", "bool", "null")
Position = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A mapping, and its text."""

    where: str
    text: str
    table: dict[str, Any]
    places: dict[str, Position]
    """From the start of each key to the end of its value, in the text."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """What a reader of YAML 1.1 makes of numbers and words, as the tools' own; times of day and dates stay texts."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as its base has it)
        letter: [(tag, pattern) for tag, pattern in rows if tag.rpartition(":")[2] in (*PLAIN, "merge")]
        for letter, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_file(path: str, option: str) -> str:
    """
    Raises:
        BadInput: no such file, too large, or not UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
        if len(raw) > LARGEST_BYTES:
            raise BadInput(f"{option} {path[:120]!a}: larger than {LARGEST_BYTES:,} bytes")
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise BadInput(f"{option} {path[:120]!a}: not a text in UTF-8") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{option} {path[:120]!a}: {getattr(error, 'strerror', None) or error}") from None


def parse(text: str, where: str) -> Document:
    """
    Raises:
        BadInput: not YAML, not one mapping, or something in it that no configuration needs; the message says where.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise BadInput(f"{where}: not a table of keys and values")
        _check(node, where)
        table = {_key(key, where): _value(loader, value) for key, value in node.value}
        places = {_key(key, where): (key.start_mark.index, _end(value)) for key, value in node.value}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise BadInput(f"{where}: not YAML{line}: {getattr(error, 'problem', None) or 'unreadable'}") from None
    except (RecursionError, ValueError, OverflowError):
        raise BadInput(f"{where}: not YAML that a configuration needs") from None
    finally:
        loader.dispose()
    return Document(where=where, text=text, table=table, places=places)


def _check(root: Any, where: str) -> None:
    """Every node, as often as it is referred to: what an alias repeats counts each time."""
    seen, waiting = 0, [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if seen > MOST_NODES or depth > DEEPEST:
            raise BadInput(f"{where}: more or deeper nested values than any configuration has")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            waiting += [(child, depth + 1) for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(child, depth + 1) for child in node.value]
        if node.tag.rpartition(":")[2] not in (*PLAIN, "map", "seq"):
            raise BadInput(
                f"{where}: line {node.start_mark.line + 1} has the tag {node.tag[-40:]!a}, which is not read"
            )


def _check_keys(node: Any, where: str) -> None:
    found = set()
    for key, _ in node.value:
        name = _key(key, where)
        if name in found:
            raise BadInput(f"{where}: line {key.start_mark.line + 1} has the key {name[:60]!a} a second time")
        found.add(name)


def _key(node: Any, where: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise BadInput(f"{where}: line {node.start_mark.line + 1} has a key that is no word")
    return str(node.value)


def _end(node: Any) -> int:
    """Where a value's last word ends: a block's own mark lies behind the comments that follow it."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(node, yaml.MappingNode) else last)


def _value(loader: Any, node: Any) -> Any:
    return loader.construct_object(node, deep=True)
