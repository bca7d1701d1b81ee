"""YAML as people read it: a key that is given twice is an error, ``1e-4`` is a number and ``4:2:1:1`` is not.

(YAML 1.1 reads the last as 871,261, in base 60.) A dotted key and a nested one are the same: ``recipe.lr`` and
``recipe: {lr: …}``. Merge keys (``<<: *base``) are taken; a key of the mapping itself overrides a merged one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from experiments.errors import UsageError

INT, FLOAT, TIMESTAMP, MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp", "merge"))
ROOT = Path(__file__).parents[2]  # files in it are named from here


class StrictLoader(yaml.SafeLoader):
    """SafeLoader with the numbers of YAML 1.2 and unique string keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT, FLOAT, TIMESTAMP)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def decimal(self, node: yaml.ScalarNode) -> int:
        """Return a whole number in base 10, also with a leading zero."""
        return int(self.construct_scalar(node))

    def unique_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        """Return a mapping whose keys are unique texts, dotted or nested."""
        lines: dict[str, int] = {}
        for key, mark in _dotted_keys(node):
            if key in lines:
                problem = f"the key {key.rstrip('.')} is given twice, first in line {lines[key]}"
                raise yaml.constructor.ConstructorError(None, None, problem, mark)
            lines[key] = mark.line + 1
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                for base in self.merged_mappings(value_node):
                    merged = {**base, **merged}  # of several bases the first counts
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                problem = f"the key {key} cannot be a key"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            own[str(key)] = self.construct_object(value_node, deep=True)
        return {**merged, **own}

    def merged_mappings(self, node: yaml.Node) -> list[dict[str, Any]]:
        """Return the mappings that ``<<`` names: one, or a list of them."""
        content = self.construct_object(node, deep=True)
        bases = content if isinstance(content, list) else [content]
        if not all(isinstance(base, dict) for base in bases):
            problem = "<< takes a mapping, such as *base, or a list of mappings"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return bases


def _dotted_keys(node: yaml.MappingNode, prefix: str = "", within: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each key whose value is no mapping, as a dotted key, and its place."""
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue  # refused when it is constructed
        key = f"{prefix}{key_node.value}"
        if isinstance(value_node, yaml.MappingNode) and value_node.value and key_node.tag != MERGE:
            yield f"{key}.", key_node.start_mark
            if id(value_node) not in within:  # a mapping that holds itself is refused when it is constructed
                yield from _dotted_keys(value_node, f"{key}.", (*within, id(value_node)))
        else:
            yield key, key_node.start_mark


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, StrictLoader.unique_mapping)
StrictLoader.add_implicit_resolver(INT, re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
StrictLoader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
StrictLoader.add_constructor(INT, StrictLoader.decimal)


def place_of(path: Path) -> str:
    """Return a file's name for messages: as it was given; relative to the project for the project's own files."""
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else str(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UsageError: it cannot be read, is not valid YAML, holds a key twice or no mapping.
    """
    place = place_of(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except OSError as error:
        raise UsageError(f"{place}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: cannot be read: {error}; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{place}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{place}: must hold keys such as question, model and variants")
    return content
