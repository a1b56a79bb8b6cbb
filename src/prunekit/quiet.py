"""Keeping the exporter quiet without losing what it said."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

LOGGERS = ("torch", "onnxscript", "onnx_ir", "onnx")
"""The exporter logs below these names."""


@contextmanager
def overheard(*loggers: str) -> Iterator[io.StringIO]:
    """Collect prints, log lines and warnings of the exporter instead of showing them.

    All warnings inside are the exporter's about itself, such as torch 2.13 copying a pytree class that it has
    deprecated; what the user's ``forward`` has to say it says outside, where it runs on real tensors.

    Args:
        loggers: others that are heard: ``root`` for what is logged by no name, which would give the root a
            handler where it has none.

    Yields:
        What was said; the warnings are added at the end.
    """
    said = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, _logging_to(said, (*LOGGERS, *loggers)):
        warnings.simplefilter("always")
        try:
            with redirect_stdout(said), redirect_stderr(said):
                yield said
        finally:
            said.writelines(f"{warning.category.__name__}: {warning.message}\n" for warning in caught)


@contextmanager
def _logging_to(said: io.StringIO, heard: tuple[str, ...]) -> Iterator[None]:
    """Handlers of torch hold the stderr of their birth, so redirecting it does not reach them."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in heard]
    loggers = [logging.getLogger(name) for name in (*heard, *names)]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers = [logging.StreamHandler(said)] if logger.name in heard else []
        logger.propagate = logger.name not in heard
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
