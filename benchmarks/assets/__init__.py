"""Real checkpoints and data for tests, examples and benchmarks: the one place that fetches any.

>>> from benchmarks import assets
>>> texts = assets.load("nyt-editorials")["test"]  # doctest: +SKIP

``python -m benchmarks.assets`` lists them, ``python -m benchmarks.assets NAME`` fetches one.
"""

from benchmarks.assets.fetching import fetch as fetch
from benchmarks.assets.source import Asset as Asset
from benchmarks.assets.source import AssetError as AssetError
from benchmarks.assets.source import Source as Source
from benchmarks.assets.table import ASSETS as ASSETS
from benchmarks.assets.table import load as load
from benchmarks.assets.table import named as named
