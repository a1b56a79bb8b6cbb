"""A runner of known service time: it sleeps, so it cannot be faster, on any machine."""

from __future__ import annotations

import time

import numpy as np


class Sleeper:
    """Sleeps on every call, fails from the ``fails_at``-th call on, notes how many samples it got."""

    def __init__(self, seconds=0.001, name="sleeper", fails_at=None, rows=1):
        self.seconds, self.name, self.fails_at = seconds, name, fails_at
        self.inputs = {"x": np.zeros((rows, 2), np.float32)}
        self.sizes = []

    def __call__(self):
        self.outputs()

    def outputs(self, inputs=None):
        self.sizes.append(len((inputs or self.inputs)["x"]))
        if self.fails_at is not None and len(self.sizes) >= self.fails_at:
            raise ZeroDivisionError("the model broke")
        time.sleep(self.seconds)
        return {}
