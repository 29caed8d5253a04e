"""Tests of the benchmarks, and of the metrics beside those evaluators of the field that can be imported."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

import metrics
from extras import benchmark
from features import FRAME_HOP
from metrics import PSDS1, PSDS2
from extras.test_metrics import nasty_case
from test_avsed import same, toy_scores, write_tiny


def test_training_is_timed_by_part_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.benchmark_train, "__defaults__", (2,))  # repeats, to save time
    monkeypatch.setattr(benchmark, "matmul_rate", lambda device, precision: 1e9)
    monkeypatch.chdir(tmp_path)
    root = write_tiny(tmp_path / "set")
    benchmark.main(["train", "--data", str(root), *"--batch-size 1 1 1".split()])
    printed = capsys.readouterr().out
    for part in ("data", "teacher forward", "student forward", "backward", "update", "iteration"):
        assert re.search(rf"^{part} +\d+\.\d\d ms +\d+ %$", printed, re.M), part
    milliseconds = float(re.search(r"^iteration +(\S+) ms +100 %$", printed, re.M)[1])
    clips_per_second = int(re.search(r"^(\d+) clips/s ", printed, re.M)[1])
    assert milliseconds > 10 and abs(clips_per_second - 3000 / milliseconds) < 0.6  # three clips an iteration
    # forward, a clip costs 0.37 GFLOP in the convolutions and 0.39 in the rest; once in the teacher, thrice in
    # the student with its backward pass: 3.0 for a clip, here times 3
    assert 8 <= int(re.search(r"(\d+) GFLOP of matrix work", printed)[1]) <= 10
    assert re.search(r"^\d+\.\d GB of memory at most \| 25000 iterations: ", printed, re.M)
    assert list(tmp_path.iterdir()) == [root]


def test_rates_and_memory_have_their_units(monkeypatch):
    ticks, matrix = iter(range(99)), torch.ones(2, 2)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))  # each product takes a second
    monkeypatch.setattr(torch, "randn", lambda *_, **__: matrix)
    assert benchmark.matmul_rate(torch.device("cpu"), "fp32") == 2 * 2048**3  # a product and a sum each
    status = Path("/proc/self/status")
    if status.exists():
        before, got = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]), benchmark.peak_memory()
        assert 1024 * before <= got < 1024 * before + 2**20


def test_metrics_are_timed_without_peers(capfd, monkeypatch):
    for peer in ("sed_eval", "psds_eval", "sed_scores_eval"):
        monkeypatch.setitem(sys.modules, peer, None)
    benchmark.benchmark_metrics(20, (30, 5))
    printed, error = capfd.readouterr()
    assert error == "" and "not finished" not in printed and "1168" not in printed
    for peer in ("sed_eval", "psds_eval", "sed_scores_eval"):
        assert re.search(rf"{peer} +\d+\.\d\d\ds  {peer} is not installed$", printed, re.M), peer
    for row in ("from scores, 50 thresholds", "PSDS2 from scores, 30 clips, 5 classes", "windows of PSDS2"):
        assert re.search(rf"{row} +\d+\.\d\d\ds", printed), row
    assert re.search(r"^PSDS2 from dense scores, 30 clips, 5 classes +\d\.\d\d\ds  \d\.\d\d GB at most", printed, re.M)


def test_bad_flags_get_code_2(tmp_path, capsys):
    for flags, message in (
        ([], "required"),
        (["train", "--batch-size", "0", "0", "0"], "at least one clip"),
        (["train", "--visual", "../x"], "name of a folder"),
        (["train", "--precision", "tf32", "--device", "cpu"], "--precision tf32 is arithmetic"),
        (["train", "--data", str(tmp_path / "absent")], "absent: no such folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            benchmark.main(flags)
        assert stop.value.code == 2 and "error: " in (error := capsys.readouterr().err) and message in error


# --- the peers -------------------------------------------------------------------------------------------------------


def test_sed_eval_agrees():
    pytest.importorskip("sed_eval")
    for seed in range(1, 60):
        truth, points, _, _ = nasty_case(seed)
        classes = sorted({e[3] for e in truth + points[0]})
        if truth and points[0]:
            macro, micro = benchmark.with_sed_eval(truth, points[0], classes)
            assert same(metrics.event_f1(truth, points[0], classes).macro, macro)
            assert same(metrics.segment_f1(truth, points[0], classes).micro, micro) or math.isnan(micro)


def test_psds_eval_agrees():
    pytest.importorskip("psds_eval")
    if not pytest.importorskip("pandas").__version__.startswith(("1.", "2.")):
        pytest.skip("psds_eval 0.5 needs pandas below 3")
    for seed in range(20):
        scores, files, truth, _, classes = toy_scores(seed, T=64)
        durations = dict.fromkeys(files, 10.0)
        points = [metrics.scores_to_events(scores, files, classes, t, 1, FRAME_HOP, durations) for t in (0.2, 0.5, 0.7)]
        both = (PSDS1 | {"max_efpr": 1000.0}, PSDS2 | {"max_efpr": 1000.0})
        if {e[3] for e in truth} == set(classes):
            for got, criteria in zip(benchmark.with_psds_eval(truth, points, durations, both), both):
                assert same(metrics.psds(truth, points, durations, classes, **criteria), got)


def test_sed_scores_eval_agrees():
    pytest.importorskip("sed_scores_eval")
    for seed in range(8):
        scores, files, truth, _, classes = toy_scores(seed, T=64)
        truth = [(f, on + 0.01, off + 0.023, c) for f, on, off, c in truth]  # off the frames: the peer rounds ties
        durations = dict.fromkeys(files, 10.0)
        both = (PSDS1 | {"max_efpr": 1000.0}, PSDS2 | {"max_efpr": 1000.0})
        peer = benchmark.with_sed_scores_eval(scores, files, truth, durations, classes, FRAME_HOP, both)
        for got, criteria in zip(peer, both):
            ours = metrics.exact_psds_from_scores(scores, files, truth, durations, classes, FRAME_HOP, **criteria)
            assert same(ours, got, 1e-9)
