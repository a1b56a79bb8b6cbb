"""What torch.onnx translates operators into, looked up once for a process instead of for every export."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

try:
    from torch.onnx._internal.exporter._registration import ONNXRegistry
except ImportError:  # No part of torch's public interface.
    ONNXRegistry = None


_look_up: Any = getattr(ONNXRegistry, "from_torchlib", None)


@contextmanager
def remembered_translations() -> Iterator[None]:
    """Exports inside of this use the table of translations that the first of them made.

    ``torch.onnx.export`` of torch 2.13 makes the table anew each time, which takes longer than all the rest
    of a small model's export, and takes none from outside. Each export gets a copy. Where torch has no such
    table nothing is changed.
    """
    if _look_up is None:
        yield
    else:
        with patch.object(ONNXRegistry, "from_torchlib", staticmethod(_copy)):
            yield


def _copy(*args: Any, **kwargs: Any) -> Any:
    copied = copy.copy(_table(*args, **kwargs))
    copied.functions = {name: list(found) for name, found in copied.functions.items()}
    return copied


@cache
def _table(*args: Any, **kwargs: Any) -> Any:
    return _look_up(*args, **kwargs)
