"""Seeds and settings inside a run, and what is left of them afterwards."""

import random

import numpy as np
import pytest
import torch

from prunekit.workflow.determinism import deterministic, seeded, stage_seed


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_the_same_seed_draws_the_same_and_leaves_the_states_alone():
    with seeded(7):
        first = draw()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    with seeded(7):
        again = draw()
    assert first == again
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_stages_draw_independently():
    seeds = {
        stage_seed(seed, stage) for seed in range(20) for stage in ("baseline", "cycle-01/score", "validate")
    }
    assert len(seeds) == 60
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert stage_seed(3, "baseline") == stage_seed(3, "baseline")


def test_settings_of_torch_are_restored_after_an_error():
    threads = torch.get_num_threads()

    def fail():
        with deterministic(threads + 1):
            assert torch.get_num_threads() == threads + 1
            assert torch.are_deterministic_algorithms_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
