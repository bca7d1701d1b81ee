"""YAML as people read it: a key that stands twice is an error, ``1e-4`` is a number and ``4:2:1:1`` is not.

(YAML 1.1 reads the last as 871,261, in base 60.)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from experiments.errors import UsageError

INT, FLOAT, TIMESTAMP = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))


class StrictLoader(yaml.SafeLoader):
    """SafeLoader with the numbers of YAML 1.2 and unique string keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT, FLOAT, TIMESTAMP)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def decimal(self, node: yaml.ScalarNode) -> int:
        """A whole number in base 10, also with a leading zero."""
        return int(self.construct_scalar(node))

    def unique_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        """A mapping whose keys are texts, each standing once."""
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = "stands twice" if isinstance(key, str | int) and str(key) in mapping else None
            problem = problem or (None if isinstance(key, str | int | float) else "cannot be a key")
            if problem:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} {problem}", key_node.start_mark)
            mapping[str(key)] = self.construct_object(value_node, deep=True)
        return mapping


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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UsageError: it cannot be read, is not valid YAML, holds a key twice or no mapping.
    """
    place = f"{path.parent.name}/{path.name}"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{place}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{place}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{place}: must hold keys such as question, model and variants")
    return content
