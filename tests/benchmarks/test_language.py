"""A real decoder without most of its weights: in which order the methods come, on a small setting."""

import math

import pytest
import torch
from benchmarks.language import TOKENS, interval, linear_layers, losses, prune, windows

from benchmarks import assets


@pytest.mark.slow
def test_sparsegpt_is_no_worse_than_wanda_and_both_far_better_than_magnitude():
    """60 % of the weights, 8 windows to calibrate on and 4 to test on. Downloads 95 MB on its first run."""
    texts = assets.load("nyt-editorials")
    found = {}
    for method in ("dense", "magnitude", "wanda", "sparsegpt"):
        model, tokenizer = vars(assets.load("smollm2-135m")).values()
        test = windows(tokenizer, texts["test"], 4)
        if method != "dense":
            prune(model, method, "60 %", windows(tokenizer, texts["calibration"], 8))
            layers = linear_layers(model)
            zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
            assert len(layers) == 210
            assert zeros / sum(layer.weight.numel() for layer in layers) == pytest.approx(0.6, abs=0.001)
        found[method] = math.exp(torch.tensor(losses(model, test)).mean())
    assert found["dense"] < found["sparsegpt"] <= found["wanda"] < found["magnitude"] / 5


def test_the_interval_is_of_pairs():
    """Losses that differ by a constant have an interval of no width, however much windows differ."""
    first = [1.0, 5.0, 2.0, 9.0]
    ratio = interval([loss + math.log(2) for loss in first], first)
    assert ratio == pytest.approx((2.0, 2.0, 2.0))
    assert interval(first, first[::-1])[1] < 1 < interval(first, first[::-1])[2]


def test_windows_are_the_first_tokens():
    class Tokenizer:
        def __call__(self, text, verbose):
            return type("Encoded", (), {"input_ids": list(range(len(text)))})

    found = windows(Tokenizer(), ["a" * TOKENS, "b" * TOKENS], 2)
    assert found.shape == (2, TOKENS)
    assert found.flatten().tolist() == list(range(2 * TOKENS))
    with pytest.raises(ValueError, match="not 3"):
        windows(Tokenizer(), ["a" * TOKENS, "b" * TOKENS], 3)
