from __future__ import annotations

import logging
import sys
import warnings
from contextlib import suppress

import pytest

from prunekit.quiet import overheard


def test_all_that_is_said_is_kept_and_nothing_is_shown(capfd):
    with overheard() as said:
        print("printed")
        print("to stderr", file=sys.stderr)
        logging.getLogger("torch.onnx.somewhere").warning("logged")
        warnings.warn("warned", DeprecationWarning, stacklevel=1)
    assert said.getvalue() == "printed\nto stderr\nlogged\nDeprecationWarning: warned\n"
    assert capfd.readouterr() == ("", "")


def test_everything_speaks_again_afterwards(capfd):
    logger = logging.getLogger("torch")
    before = (list(logger.handlers), logger.propagate)
    with suppress(ValueError), overheard() as said:
        print("printed")
        raise ValueError("broken")
    assert said.getvalue() == "printed\n"
    print("heard")
    assert capfd.readouterr().out == "heard\n"
    assert (logger.handlers, logger.propagate) == before
    with pytest.warns(UserWarning, match="warned"):
        warnings.warn("warned", UserWarning, stacklevel=1)
