"""The closed table of architectures."""

from __future__ import annotations

from fnmatch import fnmatchcase

from tests.zoo.architectures import (
    audio,
    convolutional,
    decoders,
    detection,
    encoder_decoders,
    multimodal,
    series,
    text_encoders,
    vision,
)
from tests.zoo.architectures.row import Row

ARCHITECTURES: tuple[Row, ...] = (
    *text_encoders.ROWS,
    *decoders.DECODERS,
    *decoders.EXPERT_MODELS,
    *decoders.STATE_SPACE,
    *encoder_decoders.ROWS,
    *vision.ROWS,
    *convolutional.ROWS,
    *detection.DETECTION,
    *detection.SEGMENTATION,
    *audio.ROWS,
    *multimodal.ROWS,
    *series.ROWS,
)

BY_NAME = {row.name: row for row in ARCHITECTURES}


def chosen(pattern: str = "*", part: int = 0, parts: int = 1) -> list[Row]:
    """The rows whose name or family matches ``pattern``; of these each ``parts``-th from ``part`` on."""
    matching = [
        row for row in ARCHITECTURES if fnmatchcase(row.name, pattern) or fnmatchcase(row.family, pattern)
    ]
    return matching[part::parts]
