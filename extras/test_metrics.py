"""Tests of the fast half of metrics.py: it equals the definitions, on random cases; large inputs, bad arguments"""

import functools
import itertools
import math
import operator
import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.sparse.csgraph

import metrics
from features import FRAME_HOP
from metrics import PSDS1, PSDS2
from test_avsed import CROSS, HOP, REF, best_of, both, decode_slowly, events, nan, quietly, same, toy_scores


def nasty_case(seed):
    """Times on a coarse grid: touching, overlapping, duplicate, zero-length events, ties, events past the end"""
    rng = np.random.default_rng(seed)
    step = rng.choice([0.1, 0.2, 0.25, 0.5])
    classes = list("ABCD"[: rng.integers(1, 5)])
    files = [f"f{i}" for i in range(rng.integers(1, 5))]
    durations = {f: float(rng.choice([2.4, 5.0, 10.0])) for f in files if rng.random() < 0.9} or {"f0": 10.0}

    def table(n, jitter=()):
        rows = []
        for _ in range(n):
            if len(jitter) and rng.random() < 0.5:
                name, onset, offset, label = jitter[rng.integers(len(jitter))]
                onset, offset = onset + step * rng.integers(-1, 2), offset + step * rng.integers(-1, 2)
                label = label if rng.random() < 0.8 else str(rng.choice(classes))
            else:
                name, label = str(rng.choice(files + ["only here"])), str(rng.choice(classes + ["Z"] * (seed % 3 == 0)))
                onset = step * rng.integers(0, 21)
                offset = onset + step * rng.integers(0, 7)
            onset = round(max(float(onset), 0.0), 3)
            rows.append((name, onset, max(round(float(offset), 3), onset), label))
        return rows + rows[: rng.integers(0, 2)]

    truth = table(rng.integers(0, 12))
    points = [table(rng.integers(0, 15), truth) for _ in range(rng.integers(1, 5))]
    return truth, points, durations, classes


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_f1_equals_its_definition(start):
    for seed in range(start, start + 100):
        truth, points, durations, classes = nasty_case(seed)
        for collars in ((), (0.5, 0.5), (2.5, 0.0)):
            both("event_f1", truth, points[0], classes, *collars)
        for seconds, resolution in ((None, 1.0), (durations, 1.0), (durations, 0.3)):
            both("segment_f1", truth, points[0], classes, seconds, resolution)


def test_psds_is_the_area_of_psd_roc():
    for seed in range(60):
        truth, points, durations, classes = nasty_case(seed)
        for criteria in (PSDS1 | {"max_efpr": 1800.0}, PSDS2 | {"max_efpr": 1800.0, "alpha_st": 0.5}):
            efpr, tpr, etpr = quietly(metrics.psd_roc, truth, points, durations, classes, **criteria)
            assert same(efpr[0], 0) and (np.diff(efpr) > 0).all() and efpr[-1] <= 1800
            width = np.diff(efpr, append=1800)
            assert same(width @ etpr / 1800, metrics.psds_by_definition(truth, points, durations, classes, **criteria))
        criteria |= {"alpha_ct": 0.0, "alpha_st": 0.0}
        efpr, tpr, _ = quietly(metrics.psd_roc, truth, points, durations, classes, **criteria)
        for c, label in enumerate(classes):
            alone = [[e for e in table if e[3] == label] for table in (truth, *points)]
            area = np.diff(efpr, append=1800) @ tpr[c] / 1800
            assert same(area, metrics.psds_by_definition(alone[0], alone[1:], durations, [label], **criteria))


def test_what_psds_changes_or_ignores_is_told():
    def psds(ref, *points, classes="AB", **options):
        return metrics.psds(ref, [events(*p) for p in points], {"a": 10.0}, list(classes), **CROSS, **options)

    parts = (1, 2), (1.5, 2.5)
    for call, words in (
        (lambda: psds(events(*REF), parts, parts), "merged 2 detections"),
        (lambda: psds(events(*parts)), "merged 1 ground truth events"),
        (lambda: psds(events(*REF), [(1, 2, "A", "x")]), "1 files without duration, where PSDS counts no false .*: x"),
        (lambda: psds(events(*REF), classes="A"), "1 ground truth events outside the class list, ignored by PSDS: B"),
        (lambda: psds(events(*REF, (8, 9, "B")), classes="A"), "2 ground truth events outside .*ignored by PSDS: B$"),
    ):
        with pytest.warns(UserWarning, match=words) as caught:
            call()
        assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # touching and identical ones are taken as they are
        psds(events((1, 2), (2, 3), (1, 2)), [(1, 2), (1, 2), (2, 3)])
    for alpha_ct in (0.0, 0.5):
        with pytest.raises(ValueError, match="ct_divisor 'c': needs 'C-1' or 'C'"):
            metrics.psds(events(*REF), [], {"a": 10.0}, ["A"], **CROSS | {"alpha_ct": alpha_ct}, ct_divisor="c")


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_psds_equals_its_definition(start):
    loose = dict(dtc_threshold=0.5, gtc_threshold=0.5, cttc_threshold=0.3, alpha_ct=0.3, alpha_st=0.0, max_efpr=2000.0)
    for seed in range(start, start + 100):
        truth, points, durations, classes = nasty_case(seed)
        wide, touching = PSDS2 | {"max_efpr": 1800.0}, loose | {"dtc_threshold": 0.0, "cttc_threshold": 0.0}
        for criteria in (PSDS1, loose, wide, wide | {"ct_divisor": "C", "alpha_st": 0.5}, touching):
            both("psds", truth, points, durations, classes, **criteria)
        assert sorted(metrics.merge_overlaps(truth)) == union_slowly(truth)


def union_slowly(table):
    """Overlapping events of one file and class -> their union; identical events stay"""
    table = [e for e in table if e[1] < e[2]]
    overlap = [[a[0] == b[0] and a[3] == b[3] and a[1] < b[2] and b[1] < a[2] for b in table] for a in table]
    overlap = np.array(overlap, dtype=bool).reshape(len(table), len(table))
    result, (n, block_of) = [], scipy.sparse.csgraph.connected_components(overlap)
    for i in range(n):
        block = [e for e, block in zip(table, block_of) if block == i]
        (name, _, _, label), onsets, offsets = block[0], [e[1] for e in block], [e[2] for e in block]
        result += block if len(set(block)) == 1 else [(name, min(onsets), max(offsets), label)]
    return sorted(result)


def at_all_thresholds(scores, files, classes, window, durations, thresholds=None):
    thresholds = [(2 * k + 1) / 100 for k in range(50)] if thresholds is None else thresholds
    return [metrics.scores_to_events(scores, files, classes, t, window, HOP, durations) for t in thresholds]


def test_events_of_all_thresholds_are_those_of_each():
    thresholds = np.arange(1, 10) / 10
    for seed in range(20):
        scores, files, _, durations, (label, *_) = toy_scores(seed, C=1, values=20 if seed % 2 else None)
        window, seconds = (1, 3, 7)[seed % 3], np.array([durations[name] for name in files])
        durations[files[1]] = seconds[1] = 3 * HOP  # frame 3 begins exactly at the end, and holds nothing
        scores[0] *= 0.15  # hardly ever above the first
        clips, level = metrics._levels(scores, scores.max(axis=1), 0, thresholds)
        table = metrics._events_of_all_thresholds(clips, level, window, HOP, seconds)
        for k, threshold in enumerate(thresholds):
            exist = table.take((table.first <= k) & (k < table.stop))
            found = sorted((files[n], onset, offset, label) for n, onset, offset in zip(*exist[:3]))
            assert found == sorted(decode_slowly(scores, files, [label], threshold, window, HOP, durations))


def test_psds_from_scores_equals_psds_of_the_events_at_every_threshold():
    for seed in range(24):
        scores, files, truth, durations, classes = toy_scores(
            seed, C=1 + seed % 4, values=20 if seed % 2 else None, dtype=np.float32 if seed % 3 else np.float64
        )
        window = (1, 5, np.array([3, 7, 1, 5])[: len(classes)])[seed % 3]
        durations, truth = durations | {"no scores": 5.0}, truth + events((0.0, 0.5), file="no scores")
        points = at_all_thresholds(scores, files, classes, window, durations)
        for criteria in (PSDS1 | {"max_efpr": 3000.0}, PSDS2, PSDS2 | {"max_efpr": 3000.0, "ct_divisor": "C"}):
            got = metrics.psds_from_scores(scores, files, truth, durations, classes, HOP, window, **criteria)
            # to the last digit, whatever the order of files: no sum of rates or durations is rounded on its way
            turned = dict(reversed(durations.items()))
            assert got == metrics.psds(truth[::-1], points, turned, classes, **criteria)
            if seed < 10:
                assert same(got, metrics.psds_by_definition(truth, points, durations, classes, **criteria))
            roc = metrics.psd_roc_from_scores(scores, files, truth, durations, classes, HOP, window, **criteria)
            assert same(np.diff(roc[0], append=criteria["max_efpr"]) @ roc[2] / criteria["max_efpr"], got)
            of_events = metrics.psd_roc(truth, points, durations, classes, **criteria)
            for a, b in zip(roc, of_events):
                np.testing.assert_array_equal(a, b)
    few, loose = [0.7, 0.2, 0.4, 0.7], PSDS2 | {"max_efpr": 3000.0, "alpha_st": 0.0}
    got = metrics.psds_from_scores(scores, files, truth, durations, classes, HOP, thresholds=few, **loose)
    points = at_all_thresholds(scores, files, classes, 1, durations, few)
    assert 0 < got < 1 and same(got, metrics.psds(truth, points, durations, classes, **loose))


def test_psds_does_not_depend_on_the_order_of_files():
    rng, values, files = np.random.default_rng(0), set(), [f"{i}.wav" for i in range(30)]
    lengths = dict(zip(files, rng.uniform(5, 10, 30).tolist()))  # in other orders their sums are rounded otherwise
    truth = [(name, t, t + rng.uniform(0.1, 1), "ABC"[k]) for name in files for k, t in enumerate(rng.uniform(0, 4, 3))]
    found = [(name, t, t + rng.uniform(0.1, 1), "ABC"[k]) for name in files for k, t in enumerate(rng.uniform(0, 4, 3))]
    for _ in range(20):
        for names in (files, truth, found):
            rng.shuffle(names)
        durations = {name: lengths[name] for name in files}
        points, criteria = [found, sorted(found)[:50], []], PSDS2 | {"max_efpr": 9000.0, "alpha_st": 0.0}
        for alpha_ct in (0.0, 0.5):
            efpr, *_ = metrics.psd_roc(truth, points, durations, ["A", "B", "C"], **criteria | {"alpha_ct": alpha_ct})
            values.add(tuple(efpr.tolist()))
    assert len(values) == 2 and all(len(efpr) > 3 for efpr in values)  # one for each alpha_ct


def test_exact_psds_equals_psds_with_every_score_as_threshold():
    for seed in range(12):
        size = dict(N=12, C=1) if seed == 0 else dict(values=30 if seed % 2 else None)  # the first has 288 thresholds
        scores, files, truth, durations, classes = toy_scores(seed, **size)
        window = 1 if seed % 3 else np.array([3, 1, 5])[: len(classes)]
        points = at_all_thresholds(scores, files, classes, window, durations, [-np.inf, *np.unique(scores)[:-1]])
        for criteria in (PSDS1 | {"max_efpr": 2000.0}, PSDS2 | {"max_efpr": 2000.0}):
            data = scores, files, truth, durations, classes, HOP, window
            got = metrics.exact_psds_from_scores(*data, **criteria)
            assert same(got, metrics.psds(truth, points, durations, classes, **criteria))
            efpr, _, etpr = metrics.psd_roc_from_scores(*data, thresholds=None, **criteria)
            assert same(np.diff(efpr, append=2000) @ etpr / 2000, got)


@pytest.mark.parametrize("metric", ["event", "segment", "clip"])
def test_tuning_of_f1_equals_trying_all(metric):
    score = metrics.event_f1 if metric == "event" else metrics.segment_f1
    for seed in range(4):
        scores, files, truth, durations, classes = toy_scores(seed, N=4 + seed, values=10 if seed % 2 else None)
        truth = [e for e in truth if e[3] != "B" or seed % 2]  # sometimes a class without reference
        truth += events((1, 2), file="without scores") if metric == "clip" else []
        scores = scores.max(axis=1) if metric == "clip" else scores
        tags = np.array([[any(e[0] == f and e[3] == c for e in truth) for c in classes] for f in files])
        grids = [[] for _ in classes]
        for window, k in itertools.product([1] if metric == "clip" else range(1, 32, 2), range(1, 10)):
            if metric == "clip":
                f1 = metrics.clip_f1(tags, scores > k / 10)
            else:
                found = metrics.scores_to_events(scores, files, classes, k / 10, window, HOP, durations)
                f1 = score(truth, found, classes)
            for grid, f in zip(grids, f1.per_class.values()):
                grid.append((0.0 if math.isnan(f) else f, window, k))
        data = scores, files, truth, durations, classes, HOP
        thresholds, windows = metrics.tune(*data, metric)
        assert list(zip(thresholds, windows)) == [best_of(grid) for grid in grids]
        if metric == "clip":
            assert np.array_equal(metrics.tune_clip_by_definition(scores, files, truth, classes), thresholds)
        else:
            assert np.array_equal(metrics.tune_by_definition(*data, score), (thresholds, windows))
        assert thresholds.dtype == np.float64 and windows.dtype.kind == "i"


@pytest.mark.parametrize("metric, criteria, seed", [("psds1", PSDS1, 6), ("psds2", PSDS2, 7)])
def test_tuning_of_psds_equals_trying_all(metric, criteria, seed):
    scores, files, truth, durations, classes = toy_scores(seed, N=4, values=20)
    truth = [e for e in truth if e[3] != "C"]
    areas = {c: [] for c in "AB"}
    for window in range(1, 32, 2):
        points = at_all_thresholds(scores, files, classes, window, durations)
        for c in areas:  # with detections of one class only, PSDS is the class's own area, divided by 2 classes
            found = [[e for e in point if e[3] == c] for point in points]
            area = metrics.psds(truth, found, durations, classes, **(criteria | {"alpha_st": 0.0}))
            areas[c].append((area, window))
    thresholds, windows = metrics.tune(scores, files, truth, durations, classes, HOP, metric)
    best = [min(window for area, window in tried if area > max(tried)[0] - 1e-12) for tried in areas.values()]
    assert thresholds is None and windows.tolist() == [*best, 1] and max(best) > 15  # C: without ground truth
    data = scores, files, truth, durations, classes, HOP
    assert metrics.tune_psds_by_definition(*data, criteria).tolist() == [*best, 1]


def test_windows_whose_areas_differ_by_rounding_are_equal(monkeypatch):
    scores, files, truth, durations, classes = toy_scores(6, N=4)
    areas = itertools.cycle([0.2, 0.3, 0.1 + 0.2] + 13 * [0.25])  # the third is 0.30000000000000004
    monkeypatch.setattr(metrics, "psd_area", lambda *_: next(areas))
    assert metrics.tune(scores, files, truth, durations, classes, HOP, "psds1")[1].tolist() == [3, 3, 3]


def peak_memory(work):
    tracemalloc.start()
    try:
        return quietly(work), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_with_the_clips_and_not_with_the_classes():
    def work(copies, C):
        rng = np.random.default_rng(0)
        scores = np.tile(rng.random((20, 64, C), dtype=np.float32), (copies, 1, 1))  # dense, as a network gives them
        files, classes = [f"{n}.wav" for n in range(len(scores))], [f"class {c}" for c in range(C)]
        truth = [(name, 2.0, 4.0, classes[n % 20 % C]) for n, name in enumerate(files)]
        data = scores, files, truth, dict.fromkeys(files, 10.0), classes, HOP
        return peak_memory(lambda: metrics.psds_from_scores(*data, 31, **(PSDS2 | {"alpha_st": 0.0, "max_efpr": 1e4})))

    (few, small), (many, large), (_, wide) = work(5, 5), work(50, 5), work(5, 100)
    assert 0 < few < 1 and same(few, many, 1e-9) and large < 12 * small and wide < 1.5 * small


def test_one_long_file_is_not_quadratic():
    n = 20000
    truth = [("long", 4.0 * i, 4.0 * i + 2, "A") for i in range(n)]
    scores, peak = peak_memory(
        lambda: [
            metrics.event_f1(truth, truth, ["A"]).micro,
            metrics.segment_f1(truth, truth, ["A"]).micro,
            metrics.psds(truth, [truth], {"long": 4.0 * n}, ["A"], **PSDS2),
        ]
    )
    assert scores == [1.0, 1.0, 1.0] and peak < 1e8  # bytes; all pairs would take gigabytes
    endless = [("long", 0.0, 2e8, "A"), ("other", 0.5, 1e8, "A")]
    score, peak = peak_memory(lambda: metrics.segment_f1(endless, endless[1:], ["A"]).micro)
    assert score == 0.5 and peak < 1e8


def repeated(table, rng):
    return [row for row in table for _ in range(rng.integers(1, 6))]


def test_repeated_rows_equal_the_definitions(monkeypatch):
    """To the last bit: 0.1 added six times is 0.6, 6 * 0.1 is more. And pairs of events may be looked at in parts"""
    plain_sum = functools.partial(functools.reduce, operator.add)  # that of Python 3.12 is more exact than float64
    monkeypatch.setattr(metrics, "sum", lambda values: plain_sum(values, 0), raising=False)
    monkeypatch.setattr(metrics, "AT_A_TIME", 7)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth, points, durations, classes = nasty_case(seed)
        truth, points = repeated(truth, rng), [repeated(point, rng) for point in points]
        both("event_f1", truth, points[0], classes)
        both("segment_f1", truth, points[0], classes)
        for criteria in (PSDS1 | {"max_efpr": 1800.0}, PSDS2 | {"max_efpr": 1800.0}):
            both("psds", truth, points, durations, classes, **criteria)
    tenth, whole = events((0, 0.1)), events((0, 1))
    criteria = PSDS1 | {"gtc_threshold": 0.0}
    for n, score in ((5, 0), (6, 0), (7, 1)):
        for limits in ({"dtc_threshold": 0.0, "gtc_threshold": 6 * 0.1}, {"dtc_threshold": 6 * 0.1}):
            truth, found = (tenth * n, whole) if len(limits) == 1 else (whole, tenth * n)
            assert both("psds", truth, [found], {"a": 10.0}, ["A"], **criteria | limits) == score


def test_what_touches_nothing_covers_nothing_however_little_is_asked_for():
    criteria = PSDS1 | {"dtc_threshold": 0.0, "max_efpr": 720.0}  # one false alarm in 10 s is 360 an hour
    assert both("psds", events((1, 2)), [events((1, 2), (5, 6))], {"a": 10.0}, ["A"], **criteria) == 0.5


def test_shares_of_one_operating_point_leave_nothing_at_the_next():
    points = [events((0, 0.2)), events((0, 0.9))]  # 0.2 + (0.9 - 0.2) is less than 0.9
    assert both("psds", events((0, 1)), points, {"a": 10.0}, ["A"], **PSDS1 | {"gtc_threshold": 0.9}) == 1


def test_events_that_crowd_are_matched():
    for rows in (((1, 2), (1, 2)), ((1, 2), (1, 3))):  # all pairs would be 200 and 100 millions
        ref, est = events(*rows) * 5000, events(*rows) * 10000
        score, peak = peak_memory(lambda: metrics.event_f1(ref, est, ["A"]))
        assert score.n_tp == [10000] and score.n_fp == [10000] and peak < 2e7
    # 3 + 2 fit 4 + 0.1 s later 2; the second kind of reference fits only these
    ref, est = events((1, 2)) * 3 + events((1.25, 2)) * 2, events((1, 2)) * 4 + events((1.1, 2)) * 2
    for _ in range(2):
        assert both("event_f1", ref, est, ["A"]).n_tp == [5]
        ref, est = ref[::-1], est[::-1]


def test_events_that_begin_together_are_looked_at_in_parts(monkeypatch):
    monkeypatch.setattr(metrics, "AT_A_TIME", 10_000)
    ref, est = events(*((1, i) for i in range(1, 1500))), events(*((1, i + 0.5) for i in range(1, 1500)))
    score, peak = peak_memory(lambda: metrics.event_f1(ref, est, ["A"], 0.2, 0.0).micro)  # 2 million pairs
    assert score == 0 and peak < 5e6


def test_too_many_events_that_fit_each_other_are_refused(monkeypatch):
    monkeypatch.setattr(metrics, "MANY_PAIRS", 24)
    rows = events(*((0.01 * i, 2) for i in range(5)))
    with pytest.raises(MemoryError, match="5 and 5 different events of one class crowd a few moments"):
        metrics.event_f1(rows, rows, ["A"])
    monkeypatch.setattr(metrics, "MANY_PAIRS", 25)
    assert metrics.event_f1(rows, rows, ["A"]).micro == 1


def test_memory_of_psds_grows_with_the_rows():
    """Detections inside one long event, repeated rows, a file and a class for each row, scores of a long recording"""

    def long_event(n):  # of which half is found, just what is wanted
        found = events(*((i, i + 0.5) for i in range(n)))
        return metrics.psds(events((0, n)), [found], {"a": n}, ["A"], **PSDS2 | {"gtc_threshold": 0.5})

    def repeats(n):
        return metrics.psds(events((1, 2)) * n, [events((0.5, 2)) * n] * 2, {"a": 10.0}, ["A"], **PSDS2)

    def labels(n):
        rows = [(f"{i}.wav", 0.0, 1.0, f"{i}") for i in range(n // 2)]
        return metrics.psds(rows, [rows], {"0.wav": n}, [row[3] for row in rows], **PSDS2)

    def background(n):  # each failing detection meets one event of B, and of C the first one or none
        truth = [(0, n, "B"), (0, 0.1, "A"), *((i, i + 0.2, "C") for i in range(n))]
        found = events(*((i + 0.1, i + 0.5) for i in range(1, n)))
        return metrics.psds(events(*truth), [found], {"a": 1e9}, list("ABC"), **PSDS2 | {"alpha_st": 0.0}) + 1

    def recording(n, psds=metrics.psds_from_scores):
        scores = np.random.default_rng(0).random((1, n, 1))
        return psds(scores, ["a"], events((0.0, n * HOP)), {"a": n * HOP}, ["A"], HOP, **PSDS2)

    def exactly(n):
        return recording(n, metrics.exact_psds_from_scores)

    for work in (long_event, repeats, labels, background, recording, exactly):
        (few, small), (many, large) = peak_memory(lambda: work(512)), peak_memory(lambda: work(2048))
        assert few == many == 1 and large < 5 * small and large < 1e7, (work, small, large)


def test_files_stay_apart_beside_an_endless_event():
    """In float64, 100 files of 9e11 seconds in a row leave 16 ms between two numbers"""
    rows = [(f"{i}", 1.0 + 0.01 * k, 1.002 + 0.01 * k, "A") for i in range(100) for k in range(3)]
    rows += [("0", 5.0, 9e11, "A")]
    wrong = [(name, onset + 0.004, offset + 0.004, label) for name, onset, offset, label in rows[:-1]]
    for found, score in ((rows, 1), (wrong, 0)):
        assert quietly(metrics.psds, rows, [found], {"0": 1e12}, ["A"], **PSDS2) == score
    assert metrics.event_f1(rows, rows, ["A"]).micro == metrics.segment_f1(rows, rows, ["A"]).micro == 1
    with pytest.raises(ValueError, match="in 100 files are more than int64 can number"):
        metrics.segment_f1(rows, rows, ["A"], time_resolution=1e-6)


def test_bad_arguments_are_named():
    ok = np.zeros((2, 5, 1))
    for bad in ([("a", 2.0, 1.0, "A")], [("a", -1.0, 1.0, "A")], [("a", nan, 1.0, "A")], [("a", 0.0, math.inf, "A")]):
        for call in (
            lambda: metrics.event_f1(bad, [], ["A"]),
            lambda: metrics.segment_f1([], bad, ["A"]),
            lambda: metrics.psds(events(*REF), [bad], {"a": 1.0}, ["A"], **PSDS1),
        ):
            with pytest.raises(ValueError, match="'a'.*needs 0 <= onset <= offset"):
                quietly(call)
    for scores, files, classes, words in (
        (ok, ["a"], ["A"], r"\(2, 5, 1\): needs \(1, frames, 1\)"),
        (ok, ["a", "b"], ["A", "B"], r"needs \(2, frames, 2\)"),
        (ok[0], ["a", "b"], ["A"], "shape"),
        (ok[:, 0], ["a", "b"], ["A"], r"\(2, 1\): needs \(2, frames, 1\)"),
        (ok, ["a", "a"], ["A"], "twice"),
        (np.zeros((2, 5, 2)), ["a", "b"], ["A", "A"], "twice"),
        (ok * nan, ["a", "b"], ["A"], "nan"),
    ):
        data = scores, files, [], {"a": 1.0}, classes, HOP
        for call in (
            lambda: metrics.scores_to_events(scores, files, classes, 0.5, 1, HOP),
            lambda: metrics.psds_from_scores(*data, **PSDS1),
            lambda: metrics.exact_psds_from_scores(*data, **PSDS1),
            lambda: metrics.tune(*data, "event"),
        ):
            with pytest.raises(ValueError, match=words):
                call()
    for window in (2, 0, -1, 3.0, [3, 3]):
        with pytest.raises(ValueError):
            metrics.median_filter(ok > 0, window)
    with pytest.raises(ValueError, match="durations: needs the seconds of every clip"):
        quietly(metrics.psds, events(*REF), [], {}, ["A", "B"], **PSDS1)


# --- what the field's evaluators answer, stored so that agreement is tested where they are not installed ------------


def stored_case(seed):
    """Made of whole numbers by a generator that NumPy promises never to change -> truth, points, scores, files"""
    rng = np.random.RandomState(seed)
    files, truth = [f"{i}.wav" for i in range(5)], []
    activity = np.zeros((5, 64, 3))
    for i, name in enumerate(files):
        for c, label in enumerate("ABC"):
            begin = rng.randint(0, 30)
            while begin < 180:
                length = rng.randint(5, 60)
                onset, offset = begin / 20 + 0.01, min((begin + length) / 20 + 0.01, 10.0)
                if rng.randint(3):
                    truth.append((name, onset, offset, label))
                    activity[i, int(onset / FRAME_HOP) : int(offset / FRAME_HOP), c] = 40
                begin += length + rng.randint(5, 80)
    confused = activity[:, :, [1, 2, 0]] * (rng.randint(0, 4, size=(5, 1, 3)) == 0)
    scores = (activity + confused + rng.randint(5, 45, size=(5, 8, 3)).repeat(8, axis=1)
              + rng.randint(0, 12, size=(5, 64, 3))) / 150
    return scores.astype(np.float32), files, truth


# For each seed what sed_eval 0.2.1 answers (macro event F1, micro segment F1), psds_eval 0.5.3 (PSDS1, PSDS2 of four
# operating points) and sed_scores_eval 0.0.4 (exact PSDS1, PSDS2), with max_efpr 300
PEERS = [
    (0.472256138923, 0.744186046512, 0.0546236407053, 0.0169268646093, 0.176187256472, 0.530276073526),
    (0.5209959123, 0.802469135802, 0.0805808358726, 0.492697722798, 0.135521489344, 0.712657462789),
    (0.543591840443, 0.832369942197, 0.0667610688294, 0.478193127767, 0.182172381565, 1),
    (0.444902319902, 0.766917293233, 0.16624078317, 0.438023104986, 0.280761842292, 0.741789773167),
    (0.448586744639, 0.783216783217, 0.346028908762, 1, 0.508859513713, 0.918443766757),
    (0.514492753623, 0.786206896552, 0.388250749078, 0.753049496241, 0.491010482015, 1),
    (0.399627329193, 0.807453416149, 0.211140912495, 0.200850296797, 0.44275599939, 0.610585389614),
    (0.515404040404, 0.79746835443, 0.176494075662, 0.277846577046, 0.257923823541, 0.841978748645),
    (0.430044593088, 0.818181818182, 0.0781815224204, 0.00647307004951, 0.098259091119, 1),
    (0.682222222222, 0.821917808219, 0.157198092689, 0.473932314481, 0.297175590749, 0.961372583002),
    (0.677361853832, 0.837837837838, 0.557675205278, 0.870426017218, 0.588545215335, 1),
    (0.537373737374, 0.832369942197, 0.375240114361, 0.611820419887, 0.622078505505, 1),
]


@pytest.mark.parametrize("seed", range(len(PEERS)))
def test_the_peers_answers(seed):
    scores, files, truth = stored_case(seed)
    classes, durations = list("ABC"), dict.fromkeys(files, 10.0)
    points = []
    for threshold in (0.2, 0.3, 0.4, 0.5):
        points.append(metrics.scores_to_events(scores, files, classes, threshold, 3, FRAME_HOP, durations))
    ours = [
        metrics.event_f1(truth, points[1], classes).macro,
        metrics.segment_f1(truth, points[1], classes).micro,
    ]
    both_criteria = [criteria | {"max_efpr": 300.0} for criteria in (PSDS1, PSDS2)]
    ours += [metrics.psds(truth, points, durations, classes, **criteria) for criteria in both_criteria]
    for criteria in both_criteria:
        ours.append(metrics.exact_psds_from_scores(scores, files, truth, durations, classes, FRAME_HOP, **criteria))
    assert np.allclose(ours, PEERS[seed], rtol=0, atol=1e-9)
