"""Messages that a refused network must give."""

from collections.abc import Iterable
from typing import Any

import pytest

from experiments.errors import UsageError
from experiments.models import build_model


def assert_refused(model: str, arguments: dict[str, Any], words: Iterable[str]) -> None:
    """Building it is refused in one line that holds all the words."""
    with pytest.raises(UsageError) as error:
        build_model(model, **arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
