import dataclasses
import json
import math

import pytest

from prunekit.errors import UsageError
from prunekit.recover import EpochRecord, TrainingRecord, TrainingSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1),
        ("epochs", math.inf),
        ("epochs", "3"),
        ("epochs", True),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("optimizer", "adam"),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("schedule", "step"),
        ("warmup", 1.0),
        ("clip_norm", 0),
        ("patience", 0),
        ("select", "test"),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(UsageError, match=name) as caught:
        TrainingSettings(**{name: value})
    assert repr(value) in str(caught.value)
    assert caught.value.expected


def test_settings_and_records_survive_json():
    settings = TrainingSettings(epochs=2.5, clip_norm=1.0, patience=3)
    assert TrainingSettings(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
    line = EpochRecord(0.0, 0, None, 0.5, 0.75, None, 0.1)
    record = TrainingRecord("correct", (line,), 0, False, 0, 0, 0, 0.2)
    read = json.loads(json.dumps(dataclasses.asdict(record)))
    lines = tuple(EpochRecord(**line) for line in read.pop("epochs"))
    assert TrainingRecord(epochs=lines, **read) == record
