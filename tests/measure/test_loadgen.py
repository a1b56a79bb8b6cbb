"""The real LoadGen, against runners of known service time and a real ONNX Runtime session."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from tests.measure.sleeper import Sleeper

from prunekit.errors import MeasurementError
from prunekit.measure import SCENARIOS, Batches, LoadSettings, Target, open_onnx, open_target, run_load
from prunekit.measure.loadgen import least_queries

QUICK = {"percentile": 0.9, "min_seconds": 0.15, "min_queries": 66}


def settings(scenario, **changes):
    server = {"target_qps": 200.0, "bound_ms": 10_000.0} if scenario == "server" else {}
    return LoadSettings(scenario, **{**QUICK, **server, **changes})


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    yield
    assert list(empty.iterdir()) == []
    ours = {thread.name for thread in threading.enumerate() if thread.name.startswith("prunekit")}
    assert ours <= {"prunekit-loadgen_0", "prunekit-server_0"}  # They stay; none is added.


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_sample_issued_is_answered_once(scenario):
    runner = Sleeper()
    result = run_load(runner, settings(scenario))
    # A machine that became faster meanwhile ends before its time, and LoadGen says so.
    assert result.valid or any("pre-generates" in reason for reason in result.reasons)
    assert result.valid == (result.reasons == ())
    assert result.issued == result.answered == result.served == result.calls
    assert result.issued == result.queries * (8 if scenario == "multi_stream" else 1) or scenario == "offline"
    assert len(runner.sizes) >= result.calls
    assert set(runner.sizes) == {1}
    assert result.version.startswith("6.")
    assert (result.model, result.settings.scenario, result.cut_short) == ("sleeper", scenario, False)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_real_session_under_load(scenario, perceptron):
    x = {"x": np.zeros((1, 8), np.float32)}
    result = run_load(open_onnx(perceptron, x, threads=1), settings(scenario))
    assert result.issued == result.answered > 0
    assert result.latency.min_ms <= result.latency.p50_ms <= result.latency.p99_ms <= result.latency.max_ms
    assert result.per_second > 0


def test_the_median_of_a_single_stream_is_that_of_our_own_clock():
    batches = Batches(Sleeper(0.003))
    result = run_load(batches, settings("single_stream"))
    assert result.latency.min_ms >= 3
    assert 1 / 10 < result.latency.p50_ms / batches.call_ms() < 10
    assert result.per_second <= 1000 / 3


def test_a_query_of_a_multi_stream_is_all_its_samples():
    result = run_load(Sleeper(0.002), settings("multi_stream", samples_per_query=3))
    assert result.latency.min_ms >= 3 * 2
    assert result.issued == result.queries * 3


@pytest.mark.parametrize(
    ("rows", "largest", "sizes"), [(4, None, {4}), (1, 4, {1, 2, 3, 4}), (3, 2, {1, 2, 3})]
)
def test_offline_goes_in_batches(rows, largest, sizes):
    runner = Sleeper(rows=rows)
    batches = Batches(runner, largest)
    assert set(runner.sizes) == sizes  # Each size that can occur has run before the measurement.
    warm = len(runner.sizes)
    result = run_load(batches, settings("offline"))
    assert result.calls == math.ceil(result.issued / batches.largest)
    assert result.calls <= len(runner.sizes) - warm


def test_a_server_that_is_asked_too_much_forms_batches_up_to_the_largest():
    runner = Sleeper(0.004)
    load = settings("server", target_qps=800.0, max_batch=6, max_wait_ms=1.0)
    result = run_load(runner, load)
    assert result.issued == result.answered
    assert max(runner.sizes) <= 6
    assert 1 / 6 <= result.calls / result.issued < 0.75  # One by one it would answer 250 a second.
    assert result.latency.min_ms >= 4


def test_waiting_in_the_queue_counts():
    """Twice what the server can do: in the long run half of the test's duration passes in the queue."""
    result = run_load(Sleeper(0.005), settings("server", target_qps=400.0, min_seconds=0.4, bound_ms=20.0))
    assert not result.valid
    assert any("target QPS" in reason for reason in result.reasons)
    assert result.latency.p90_ms > 50
    assert result.issued == result.answered


def test_the_seed_decides_the_arrivals():
    load = settings("server", min_seconds=0.3, min_queries=1)
    counts = [run_load(Sleeper(), replace(load, seed=seed)).queries for seed in (0, 0, 1, 2)]
    assert counts[0] == counts[1]
    assert len(set(counts)) > 1


def test_a_hopeless_test_is_given_up():
    load = settings("server", target_qps=500.0, min_seconds=30.0, bound_ms=5.0)
    begin = time.perf_counter()
    result = run_load(Sleeper(0.01), load, give_up=True)
    assert time.perf_counter() - begin < 15
    assert result.cut_short
    assert not result.valid
    assert result.served < result.issued == result.answered
    assert 0 < result.late <= result.served


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_model_that_fails_ends_the_test_and_the_next_one_works(scenario):
    runner = Sleeper(fails_at=120)
    bound = {"bound_ms": 200.0} if scenario == "server" else {}
    begin = time.perf_counter()
    with pytest.raises(
        MeasurementError, match=r"sleeper: The model failed .*ZeroDivisionError: the model broke"
    ):
        run_load(runner, settings(scenario, min_seconds=30.0, **bound))
    assert time.perf_counter() - begin < 25
    after = run_load(Sleeper(), settings(scenario))
    assert after.issued == after.answered == after.served


def test_a_model_that_never_runs_is_refused():
    with pytest.raises(MeasurementError, match="the model broke"):
        run_load(Sleeper(fails_at=1), settings("offline"))


def test_ctrl_c_ends_a_long_test_and_leaves_a_usable_process():
    code = (
        "import signal, time; from prunekit.measure import LoadSettings, run_load\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # A job in the background ignores it.
        "class Runner:\n"
        "    name = 'r'\n"
        "    def __call__(self):\n"
        "        print('go', flush=True); time.sleep(0.01)\n"
        "load = dict(percentile=0.9, min_queries=66, target_qps=30.0, bound_ms=200.0)\n"
        "try: run_load(Runner(), LoadSettings('server', min_seconds=120.0, **load))\n"
        "except KeyboardInterrupt: print('ended')\n"
        "after = run_load(Runner(), LoadSettings('server', min_seconds=0.1, **load))\n"
        "print(after.issued == after.answered == after.served >= 66)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(10):  # One call is the warm-up; after ten the test has begun.
            assert process.stdout.readline() == "go\n"
        begin = time.perf_counter()
        process.send_signal(signal.SIGINT)
        try:
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert time.perf_counter() - begin < 30
    assert process.returncode == 0
    lines = [line for line in said.splitlines() if line != "go"]
    assert lines == ["ended", "True"]


def test_an_audit_configuration_of_the_current_folder_is_not_obeyed(tmp_path, monkeypatch):
    folder = tmp_path / "audited"
    folder.mkdir()
    (folder / "audit.config").write_text("*.*.min_query_count = 5000\n*.*.mode = 1\n")
    monkeypatch.chdir(folder)
    result = run_load(Sleeper(), settings("single_stream"))
    assert result.valid
    assert result.queries < 5000
    assert [path.name for path in folder.iterdir()] == ["audit.config"]


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MeasurementError, match=r'pip install "prunekit\[loadgen\]"'):
        run_load(Sleeper(), settings("offline"))


@pytest.mark.parametrize(
    ("scenario", "changes", "said"),
    [
        (
            "singlestream",
            {},
            "'singlestream' .* Expected one of single_stream, multi_stream, server, offline",
        ),
        ("server", {"target_qps": 0.0}, "target_qps is 0.0"),
        ("server", {"target_qps": -3.0}, "target_qps is -3.0"),
        ("server", {"target_qps": math.nan}, "target_qps is nan"),
        ("server", {"target_qps": None}, "target_qps is None. Expected a number above 0"),
        ("server", {"bound_ms": None}, "bound_ms is None"),
        ("offline", {"target_qps": 5.0}, "only the server scenario"),
        ("offline", {"min_seconds": 0.0}, "min_seconds is 0.0"),
        ("offline", {"percentile": 1.0}, "percentile is 1.0"),
        ("single_stream", {"min_queries": 0}, "min_queries is 0"),
        ("single_stream", {"seed": -1}, "seed is -1"),
        ("multi_stream", {"samples_per_query": 0}, "samples_per_query is 0"),
        ("server", {"max_wait_ms": -1.0}, "max_wait_ms is -1.0"),
        ("server", {"max_batch": 0}, "largest batch of 0"),
        ("server", {"target_qps": 1e9}, "queries would have to be planned"),
    ],
)
def test_a_load_that_cannot_be_is_refused(scenario, changes, said):
    load = replace(settings(scenario), **changes) if scenario in SCENARIOS else LoadSettings(scenario)
    with pytest.raises(MeasurementError, match=said):
        run_load(Sleeper(), load)


def test_batches_that_the_model_cannot_run_are_refused(perceptron):
    with pytest.raises(MeasurementError, match="3 samples, and server sends one at a time"):
        run_load(Sleeper(rows=3), settings("server"))

    class Closed(Sleeper):
        def outputs(self, inputs=None):
            if len((inputs or self.inputs)["x"]) != 1:
                raise ValueError("only 1")

    with pytest.raises(MeasurementError, match=r"does not run on \d samples at once: only 1"):
        run_load(Closed(), settings("server", max_batch=3))

    class NoInputs:
        name = "bare"

        def __call__(self):
            time.sleep(0.001)

    with pytest.raises(MeasurementError, match="no inputs to exchange"):
        run_load(NoInputs(), settings("offline", max_batch=2))
    uneven = Sleeper()
    uneven.inputs = {"x": np.zeros((2, 1)), "y": np.zeros((3, 1))}
    with pytest.raises(MeasurementError, match="do not agree on how many samples"):
        Batches(uneven)


def test_a_module_is_batched_by_its_arguments():
    model = torch.nn.Linear(4, 2).eval()
    runner = open_target(Target(runtime="torch_eager"), model, ((torch.zeros(1, 4),), {}))
    batches = Batches(runner, 3)
    assert (batches.own, batches.largest, batches.serve(7)) == (1, 3, 3)
    result = run_load(batches, settings("server", max_batch=3))
    assert result.issued == result.answered


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.95, 0.97, 0.99, 0.999])
def test_the_least_number_of_queries_is_that_of_the_binomial_law(percentile):
    least = least_queries(percentile)
    assert binom.cdf(0, least, 1 - percentile) <= 0.01 < binom.cdf(0, least - 1, 1 - percentile)
