"""Scores of sound event detection and audio tagging: the metrics of Boes & Van hamme 2022 (Sec. 3.1.3 and 3.1.4).

Clip-, segment- and event-based F1 (Mesaros et al. 2016, as sed_eval 0.2.1 computes them), PSDS (Bilen et al. 2020, as
psds_eval 0.5.3 computes it) from events or straight from frame scores, decoding of frame scores into events, tuning of
thresholds and median filters. Numpy and scipy, nothing else of this project: copy the file.

First the metrics as their papers define them, one loop for each "for every": read these. Then the same, fast, from the
public functions down to their tools. The tests hold the two against each other.

Words: an event is a tuple (filename, onset, offset, event_label), times in seconds. Scores are arrays
(N clips, T frames, C classes). An operating point is one threshold, or the list of events found with it. All times are
compared in float64, without rounding or tolerance; limits are inclusive (<=, >=).
"""

import math
import warnings
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
from scipy.ndimage import median_filter as running_median
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

# Boes 2022, Table 4; the cross-trigger tolerance of PSDS1 ("N/A") has no effect because alpha_ct is 0
PSDS1 = dict(dtc_threshold=0.7, gtc_threshold=0.7, cttc_threshold=0.3, alpha_ct=0.0, alpha_st=1.0, max_efpr=100.0)
PSDS2 = dict(dtc_threshold=0.1, gtc_threshold=0.1, cttc_threshold=0.3, alpha_ct=0.5, alpha_st=1.0, max_efpr=100.0)
THRESHOLDS_50 = (2 * np.arange(50) + 1) / 100  # Boes 2022, Sec. 3.1.4: 0.01, 0.03 ... 0.99
TUNING_THRESHOLDS = np.arange(1, 10) / 10  # Boes 2022, Sec. 3.1.3: 0.1, 0.2 ... 0.9
TUNING_WINDOWS = np.arange(1, 32, 2)  # Boes 2022, Sec. 3.1.3: 1, 3 ... 31 frames
CLIP_SECONDS = 10.0  # ours: the length of a clip whose duration is unknown; DCASE clips last 10 s
MANY_PAIRS = 30_000_000  # of events that begin together, some 100 bytes each: more are refused
SLACK = 1e-3  # s: more than rounding takes away, see _on_one_axis


# --- the definitions --------------------------------------------------------------------------------------------------


class F1(NamedTuple):
    """F1 scores in 0..1, nan where the reference has no events, and the counts behind them, (C,) each"""

    micro: float
    macro: float
    per_class: dict
    n_tp: np.ndarray
    n_fp: np.ndarray
    n_fn: np.ndarray


def f1_of_counts(counts, classes):
    """F1 (Mesaros et al. 2016) from counts: dict of label -> (true positives, estimated, in the reference).

    ours: one rule for clips, segments and events. A class without reference is nan and no part of the macro mean; a
    class with reference but without true positive scores 0; micro pools all counts, those of labels outside the
    classes too.
    """

    def f1(n_tp, n_est, n_ref):
        if n_ref == 0:
            return math.nan
        if n_tp == 0:
            return 0.0
        precision, recall = n_tp / n_est, n_tp / n_ref
        return float(2 * precision * recall / (precision + recall))

    per_class = {label: f1(*counts[label]) for label in classes}
    defined = [value for value in per_class.values() if not math.isnan(value)]
    n_tp, n_est, n_ref = np.array([counts[label] for label in classes], dtype=np.int64).reshape(-1, 3).T
    return F1(
        micro=f1(*map(sum, zip(*counts.values()))) if counts else math.nan,
        macro=float(np.mean(defined)) if defined else math.nan,
        per_class=per_class, n_tp=n_tp, n_fp=n_est - n_tp, n_fn=n_ref - n_tp,
    )  # fmt: skip


def clip_f1(reference, estimated):
    """Clip-based F1 of tags, (N, C) bool each. Boes 2022, Sec. 3.1.4: CBF1 is its .micro.

    There are no class names here, so .per_class is keyed by column.
    """
    reference, estimated = np.asarray(reference, dtype=bool), np.asarray(estimated, dtype=bool)
    if reference.shape != estimated.shape or reference.ndim != 2:
        raise ValueError(f"tags of shapes {reference.shape} and {estimated.shape}: needs (clips, classes) twice")
    columns = zip((reference & estimated).sum(0).tolist(), estimated.sum(0).tolist(), reference.sum(0).tolist())
    return f1_of_counts(dict(enumerate(columns)), range(reference.shape[1]))


def segment_f1_by_definition(reference, estimated, classes, durations=None, time_resolution=1.0):
    """Segment-based F1: a class is active in each segment of time_resolution seconds that one of its events touches"""

    def active_segments(events, label):
        segments = set()
        for name, onset, offset, event_label in events:
            if event_label == label:
                seconds = (durations or {}).get(name, math.inf)
                for segment in range(math.floor(onset / time_resolution), math.ceil(offset / time_resolution)):
                    if segment < seconds / time_resolution:
                        segments.add((name, segment))
        return segments

    counts = {}
    for label in all_labels(classes, reference, estimated):
        ref, est = active_segments(reference, label), active_segments(estimated, label)
        counts[label] = len(ref & est), len(est), len(ref)
    return f1_of_counts(counts, classes)


def event_f1_by_definition(reference, estimated, classes, t_collar=0.2, percentage_of_length=0.2):
    """Event-based F1: an estimated event may be paired with a reference event of its file and class if both ends fit.

    Each event belongs to one pair at most, and there are as many pairs as possible: a maximum matching. A greedy choice
    may find fewer.
    """

    def fit(ref, est):
        (_, ref_onset, ref_offset, _), (_, est_onset, est_offset, _) = ref, est
        # ours: the larger of the two, as sed_eval and every DCASE edition have it; the words of Boes 2022 ("up to a
        # maximum of 200 ms") read as the smaller
        offset_collar = max(t_collar, percentage_of_length * (ref_offset - ref_onset))
        return abs(ref_onset - est_onset) <= t_collar and abs(ref_offset - est_offset) <= offset_collar

    def find_partner(ref, est, partner, tried):
        """Pair ref with a free estimated event, or with one whose partner finds another"""
        for e in range(len(est)):
            if e not in tried and fit(ref, est[e]):
                tried.add(e)
                if e not in partner or find_partner(partner[e], est, partner, tried):
                    partner[e] = ref
                    return True
        return False

    counts = {}
    for label in all_labels(classes, reference, estimated):
        ref, est = ([event for event in events if event[3] == label] for events in (reference, estimated))
        n_tp = 0
        for file in {name for name, *_ in ref}:
            partner, here = {}, [event for event in est if event[0] == file]
            for event in ref:
                n_tp += event[0] == file and find_partner(event, here, partner, set())
        counts[label] = n_tp, len(est), len(ref)
    return f1_of_counts(counts, classes)


def all_labels(classes, reference, estimated):
    """The classes, then what other labels occur"""
    return list(dict.fromkeys(chain(classes, (label for *_, label in reference), (label for *_, label in estimated))))


def psds_by_definition(
    ground_truth, detections, durations, classes,
    *, dtc_threshold, gtc_threshold, cttc_threshold, alpha_ct, alpha_st, max_efpr, ct_divisor="C-1",
):  # fmt: skip
    """Polyphonic sound detection score (Bilen et al. 2020), arguments as for `psds`. d: a detection, r: ground truth"""
    truth = merge_overlaps([event for event in ground_truth if event[3] in classes])
    classes = [c for c in classes if any(r[3] == c for r in truth)]  # ours: one without ground truth is left out
    hours = sum(durations.values()) / 3600

    def covered(x, others, threshold):
        """Do the others, together, cover at least this share of x?"""
        shares = [(min(x[2], y[2]) - max(x[1], y[1])) / (x[2] - x[1]) for y in others if x[0] == y[0]]
        shares = [share for share in shares if share > 0]
        return len(shares) > 0 and sum(shares) >= threshold

    curves = {c: [(0.0, 0.0)] for c in classes}  # points (effective false positive rate, true positive rate)
    for found in map(merge_overlaps, detections):  # every operating point
        for c in classes:
            refs = [r for r in truth if r[3] == c]
            # detection tolerance criterion: the ground truth of its class covers enough of the detection
            passing, failing = [], []
            for d in found:
                if d[3] == c:
                    (passing if covered(d, refs, dtc_threshold) else failing).append(d)
            # ground truth intersection criterion: passing detections cover enough of the ground truth event
            tpr = sum(covered(r, passing, gtc_threshold) for r in refs) / len(refs)
            # false positives: what fails, and begins within its clip; ours: files without duration have none
            fpr = sum(d[1] < durations.get(d[0], 0.0) for d in failing) / hours
            # cross-trigger tolerance criterion: what fails, but finds another class instead
            ctr = 0.0  # per hour of the other class
            for k in classes:
                if k != c:
                    others = [r for r in truth if r[3] == k]
                    hours_of_k = sum(r[2] - r[1] for r in others) / 3600
                    ctr += sum(covered(d, others, cttc_threshold) for d in failing) / hours_of_k
            # ours: the mean over the other classes, as psds_eval 0.5; over all ("C") in its versions up to 0.4
            ctr /= max(len(classes) - 1, 1) if ct_divisor == "C-1" else len(classes)
            curves[c].append((fpr + alpha_ct * ctr, tpr))

    if not classes:
        return math.nan
    area = 0.0  # under the PSD-ROC
    axis = sorted({x for points in curves.values() for x, _ in points if x <= max_efpr})
    for x, end in zip(axis, [*axis[1:], max_efpr]):  # steps: what holds at x holds until the next point
        tprs = [max(tpr for efpr, tpr in points if efpr <= x) for points in curves.values()]
        area += (end - x) * max(0.0, np.mean(tprs) - alpha_st * np.std(tprs))
    return float(area / max_efpr)


def merge_overlaps(events):
    """Overlapping events of one class in one file become their union; identical ones stay, touching ones stay apart.

    ours: psds_eval before 0.4 took overlaps as they are, since then it refuses them. Events of length 0 are dropped.
    """
    merged, block, end = [], [], None  # block: events that hang together so far, until `end`
    for event in sorted((e for e in events if e[1] < e[2]), key=lambda e: (e[0], e[3], e[1])):
        name, onset, offset, label = event
        if block and (name, label) == (block[0][0], block[0][3]) and onset < end:
            block.append(event)
            end = max(end, offset)
        else:
            merged += union(block, end)
            block, end = [event], offset
    return merged + union(block, end)


def union(block, end):
    """A block of `merge_overlaps` -> the one event that it becomes, or its identical events"""
    return block if len(set(block)) <= 1 else [(*block[0][:2], end, block[0][3])]


# --- from frame scores to events --------------------------------------------------------------------------------------


def scores_to_events(scores, filenames, classes, threshold, window, frame_hop, durations=None):
    """Threshold, median-filter and list what remains as events, in the order of files, classes and onsets.

    scores: (N, T, C); threshold: float or (C,); window: odd number of frames or (C,); frame_hop: seconds;
    durations: filename -> seconds, to which events are clipped (10 s for a file it lacks).
    """
    scores = _checked(scores, filenames, classes)
    limits = np.broadcast_to(np.asarray(threshold, dtype=np.float64), (len(classes),))
    active = median_filter(scores > limits, window).transpose(0, 2, 1)  # ours: active above the threshold, in float64
    active = np.pad(active, ((0, 0), (0, 0), (1, 1)))  # (N, C, T + 2), silent before and behind
    n, c, change = np.nonzero(active[:, :, 1:] != active[:, :, :-1])
    n, c, begin, end = n[::2], c[::2], change[::2], change[1::2]  # on and off take turns
    seconds = _seconds(filenames, durations)[n]
    onset, offset = begin * frame_hop, np.minimum(end * frame_hop, seconds)
    inside = onset < seconds  # ours: nothing begins after the clip's end
    columns = (x[inside].tolist() for x in (n, c, onset, offset))
    return [(filenames[n], onset, offset, classes[c]) for n, c, onset, offset in zip(*columns)]


def median_filter(active, window):
    """Median filter along the frames. ours: edges reflect (d c b a | a b c d | d c b a), as scipy.ndimage's default.

    active: (N, T, C) bool; window: odd number of frames, or (C,) of them. Returns (N, T, C) bool.
    """
    active = np.asarray(active, dtype=bool)
    series = np.ascontiguousarray(active.transpose(2, 0, 1)).astype(np.uint8)  # (C, N, T)
    return np.stack([_smooth(s, w) for s, w in zip(series, _per_class(window, len(series)))], axis=2).astype(bool)


def _smooth(series, window):
    """Median filter of the rows of (S, T)"""
    if window == 1:
        return series
    half = window // 2
    # speed: all rows end to end, as scipy filters one long row far faster than many short ones; the reflected margins
    # (numpy calls them "symmetric") keep neighbours from touching
    margins = np.pad(series, ((0, 0), (half, half)), mode="symmetric")  # (S, T + 2 half)
    return running_median(margins.ravel(), size=int(window)).reshape(margins.shape)[:, half:-half]


def _per_class(window, n_classes):
    window = np.broadcast_to(np.asarray(window), (n_classes,))
    if window.dtype.kind not in "iu" or (window < 1).any() or (window % 2 == 0).any():
        raise ValueError(f"median window {window.tolist()}: needs odd numbers of frames, 1 or more")
    return window


def _checked(scores, filenames, classes, ndim=3):
    scores = np.asarray(scores)
    if scores.ndim != ndim or scores.shape[0] != len(filenames) or scores.shape[-1] != len(classes):
        needed = f"({len(filenames)}, {'frames, ' if ndim == 3 else ''}{len(classes)})"
        raise ValueError(f"scores of shape {scores.shape}: needs {needed} for these files and classes")
    if len(set(filenames)) < len(filenames) or len(set(classes)) < len(classes):
        raise ValueError("a name occurs twice in filenames or classes: give each its own row or column")
    if np.isnan(scores.max(initial=0)):
        raise ValueError("the scores hold nan: find out where they come from, no metric can rank them")
    return scores


def _seconds(filenames, durations):
    durations = durations or {}
    return np.array([durations.get(name, CLIP_SECONDS) for name in filenames], dtype=np.float64)


# --- the same, fast, for all thresholds at once -----------------------------------------------------------------------
# speed: everything from here to "tuning". What an event is does not depend on the other thresholds, so each different
# event is looked at once, class by class, together with the range of operating points at which it exists. Everything is
# counted from such ranges.


def segment_f1(reference, estimated, classes, durations=None, time_resolution=1.0):
    """Segment-based F1. Boes 2022, Sec. 3.1.4: SBF1 is its .micro with segments of 1 s.

    reference, estimated: events; time_resolution: seconds. With durations (filename -> seconds), segments after the
    end of a clip are cut; ours: without, as in the DCASE baselines, they count.
    equals: segment_f1_by_definition
    """
    ref, est, files, labels = _two_tables(reference, estimated, classes)
    n_segments = np.array([np.ceil((durations or {}).get(name, np.inf) / time_resolution) for name in files])
    counts = {}
    for label, r, e in zip(labels, ref, est):
        (n_tp,), (n_est,), n_ref = _segment_counts(r, e, 1, time_resolution, n_segments)
        counts[label] = n_tp, n_est, n_ref
    return f1_of_counts(counts, classes)


def event_f1(reference, estimated, classes, t_collar=0.2, percentage_of_length=0.2):
    """Event-based F1. Boes 2022, Sec. 3.1.4: EBF1 is its .macro.

    An estimated event may be paired with a reference event of its file and class if their onsets differ by at most
    t_collar (seconds) and their offsets by at most max(t_collar, percentage_of_length * length of the reference event).
    equals: event_f1_by_definition
    """
    ref, est, _, labels = _two_tables(reference, estimated, classes)
    counts = {}
    for label, r, e in zip(labels, ref, est):
        (n_tp,), (n_est,), n_ref = _event_counts(r, e, 1, t_collar, percentage_of_length)
        counts[label] = n_tp, n_est, n_ref
    return f1_of_counts(counts, classes)


def psds(
    ground_truth, detections, durations, classes,
    *, dtc_threshold, gtc_threshold, cttc_threshold, alpha_ct, alpha_st, max_efpr, ct_divisor="C-1",
):  # fmt: skip
    """Polyphonic sound detection score (Bilen et al. 2020) in 0..1; nan without ground truth. Call it with **PSDS1.

    ground_truth: events; detections: a list of event lists, one per operating point; durations: filename -> seconds of
    every clip; max_efpr: false positives per hour; ct_divisor: "C-1" as psds_eval 0.5, "C" as its older versions.
    equals: psds_by_definition
    """
    point = np.repeat(np.arange(len(detections)), [len(events) for events in detections])
    found = _columns(list(chain.from_iterable(detections)))
    truth = _Truth(ground_truth, durations, classes, found[0])
    criteria = dtc_threshold, gtc_threshold, cttc_threshold, alpha_ct, max_efpr, ct_divisor
    tables = _disjoint_tables(found, truth.files, classes, "detections", point)
    return _area([_curve(det, c, len(detections), truth, *criteria) for c, det in tables], alpha_st, max_efpr)


def psds_from_scores(
    scores, filenames, ground_truth, durations, classes, frame_hop, window=1, thresholds=THRESHOLDS_50,
    *, alpha_st, max_efpr, **criteria,
):  # fmt: skip
    """PSDS of the events that scores_to_events finds at each of the thresholds.

    scores: (N, T, C); frame_hop: seconds; window: odd number of frames or (C,); thresholds: None for all that make a
    difference, see exact_psds_from_scores; the rest as for `psds`.
    equals: psds(ground_truth, [scores_to_events(scores, .., threshold, window, ..) for threshold in thresholds], ..)
    """
    scores, window = _checked(scores, filenames, classes), _per_class(window, len(classes))
    truth, seconds = _Truth(ground_truth, durations, classes, filenames), _seconds(filenames, durations)
    peaks, curves = scores.max(axis=1), []
    exact, points = thresholds is None, np.unique(np.asarray(thresholds, dtype=np.float64))
    for c in range(len(classes)):
        if exact:  # score > threshold then means score >= value, for every value of the class
            points = np.append(-np.inf, np.unique(scores[:, :, c].astype(np.float64))[:-1])
        det = _events_of_all_thresholds(*_levels(scores, peaks, c, points), window[c], frame_hop, seconds)
        curves.append(_curve(det, c, len(points), truth, max_efpr=max_efpr, **criteria))
    return _area(curves, alpha_st, max_efpr)


def exact_psds_from_scores(scores, filenames, ground_truth, durations, classes, frame_hop, window=1, **criteria):
    """psds_from_scores with every threshold that makes a difference: each class has all its scores as thresholds.

    As sed_scores_eval, which rounds to 6 decimals, so that ties may differ. ours: a number of its own, never to be
    compared with the PSDS of 50 thresholds.
    """
    return psds_from_scores(scores, filenames, ground_truth, durations, classes, frame_hop, window, None, **criteria)


# --- tables of events -------------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """Events of one class, in columns. An event exists at the operating points first <= k < stop."""

    file: np.ndarray  # index
    onset: np.ndarray
    offset: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    def take(self, rows):
        return _Table(*(column[rows] for column in self))


def _columns(events):
    """Event tuples -> four lists: file names, onsets, offsets, labels"""
    return [[event[i] for event in events] for i in range(4)]


def _tables(columns, files, classes, point=None):
    """Columns -> for each class a _Table in the order of operating points, files, onsets. Other labels are dropped.

    files: name -> index; point: operating point of each event, all 0 unless given
    """
    name, onset, offset, label = columns
    file = np.fromiter(map(files.get, name), dtype=np.int64, count=len(name))
    cls = np.fromiter(map(_index(classes).get, label, repeat(-1)), dtype=np.int64, count=len(name))
    onset, offset = np.array(onset, dtype=np.float64), np.array(offset, dtype=np.float64)
    bad = np.flatnonzero(~((0 <= onset) & (onset <= offset) & (offset < 1e12)))
    if len(bad):
        event = tuple(column[bad[0]] for column in columns)
        raise ValueError(f"event {event}: needs 0 <= onset <= offset < 1e12, in seconds")
    point = np.zeros(len(file), dtype=np.int64) if point is None else point
    group = (cls * (point.max(initial=0) + 1) + point) * len(files) + file
    order = np.argsort(group, kind="stable")
    if ((np.diff(group[order]) == 0) & (np.diff(onset[order]) < 0)).any():  # speed: most tables are in order already
        order = np.lexsort((onset, group))
    table = _Table(file, onset, offset, point, point + 1).take(order)
    bounds = np.searchsorted(cls[order], np.arange(len(classes) + 1))
    return [table.take(slice(*pair)) for pair in zip(bounds, bounds[1:])]


def _two_tables(reference, estimated, classes):
    """-> tables of reference and estimated events by label; files: name -> index; labels, those outside classes last"""
    ref, est = _columns(reference), _columns(estimated)
    # ours: files named in either table count, not only those of the reference; labels likewise, in micro F1
    files, labels = _index(ref[0] + est[0]), list(_index([*classes, *ref[3], *est[3]]))
    _mention(ref[3] + est[3], classes, "events outside the class list, counted in micro F1 only")
    return _tables(ref, files, labels), _tables(est, files, labels), files, labels


def _index(names):
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _mention(names, known, fate):
    """Warn of names that are not known: how many, which, and what becomes of them"""
    unknown = sorted(set(names).difference(known))
    if unknown:
        count = len(names) - sum(map(set(known).__contains__, names))
        warnings.warn(f"{count} {fate}: {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}", stacklevel=4)


def _ranges(first, stop):
    """All integers n of the ranges first[i] <= n < stop[i], one range after the other -> (i, n)"""
    length = np.maximum(stop - first, 0)
    i = np.repeat(np.arange(len(length)), length)
    return i, np.arange(len(i)) + np.repeat(first - (np.cumsum(length) - length), length)


def _alive(first, stop, n, weights=None):
    """Number (or summed weight) of the ranges first <= k < stop that hold k, for k = 0 .. n - 1"""
    return np.cumsum(np.bincount(first, weights, n + 1) - np.bincount(stop, weights, n + 1))[:n]


def _on_one_axis(place, time, longest):
    """Positions of (place, time) on one axis, where each place (a file, say) has a stretch of `longest` seconds.

    They are rounded, and cut before the end of the stretch: good for looking up neighbours to SLACK seconds at once in
    all places. What is found is compared by its exact times afterwards.
    """
    return place * longest + np.minimum(time, longest - 0.5)


# --- all events of a series of frames ---------------------------------------------------------------------------------


def _levels(scores, peaks, c, thresholds):
    """Scores (N, T, C) of class c -> clips (S,), level (S, T): how many of the ascending thresholds a frame exceeds.

    peaks: (N, C), the largest score of each series. Thresholding commutes with median filters of odd length, so all
    that follows works on these small integers. Clips that never exceed the lowest threshold are left out: with many
    classes that is nearly all of them.
    """
    clips = np.flatnonzero(peaks[:, c].astype(np.float64) > thresholds[0])
    scores = scores[clips, :, c].astype(np.float64)
    level = np.zeros(scores.shape, dtype=np.min_scalar_type(len(thresholds)))
    loud = scores > thresholds[0]
    level[loud] = np.searchsorted(thresholds, scores[loud], side="left")
    return clips, level


def _events_of_all_thresholds(clips, level, window, frame_hop, seconds):
    """equals: for each threshold, median-filter, then list the runs of active frames. One class. Returns a _Table.

    The events of a series at all thresholds form a tree, here that of a clip with the levels 1 1 3 2 2 3 1:

        frame              0   1   2   3   4   5   6
        at threshold 2            |2|         |5|          two events: frames 2 and 5
        at threshold 1            |2   3   4   5|          one event: frames 2 to 5
        at threshold 0    |0   1   2   3   4   5   6|      one event: frames 0 to 6

    Lowering the threshold only lets events begin, grow and merge. So every event is the widest run of frames not lower
    than its own lowest frame, and exists at the thresholds from the higher one of the two frames beside it up to that
    lowest frame: frames 2 to 5, whose neighbours have level 1 and whose lowest has 2, at threshold 1. It is found once,
    from its lowest frame (the first one of several), by looking for the nearest lower frames to the left and right.
    """
    level = _smooth(level, window)
    S, T = level.shape
    times = np.arange(T + 1) * frame_hop
    flat = np.zeros(S * (T + 1) + 1, dtype=level.dtype)  # all series in a row, a silent frame before, between, behind
    flat[1:].reshape(S, T + 1)[:, :T] = level * (times[:-1] < seconds[clips][:, None])  # within its clip
    # runs of frames with one level; of the example above, with a silent frame before and behind:
    start = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)  # 0 1 3 4 6 7 8, in `flat`
    height = flat[start]  # 0 1 3 2 3 1 0
    left = _nearest_to_the_left(height, np.greater)  # nearest run that is not higher: - 0 1 1 3 1 -
    right = len(height) - 1 - _nearest_to_the_left(height[::-1], np.greater_equal)[::-1]  # lower: - 6 3 5 5 6 -
    lowest = np.flatnonzero(height[left] < height)  # runs 1 2 3 4; 5 is as low as 1, which stands for their event
    left, right = left[lowest], right[lowest]
    clip, begin = np.divmod(start[left + 1] - 1, T + 1)  # an event begins with the run after `left`: frames 0 2 2 5
    end = (start[right] - 1) % (T + 1)  # and ends where `right` begins: frames 7 3 6 6
    file = clips[clip]
    first = np.maximum(height[left], height[right]).astype(np.int64)
    return _Table(file, times[begin], np.minimum(times[end], seconds[file]), first, height[lowest].astype(np.int64))


def _nearest_to_the_left(height, looks_past):
    """For each run above 0, the index of the nearest one to its left that it does not look past.

    looks_past: np.greater, higher ones; np.greater_equal, also those of its own height
    All at once: a run that looks past another looks where that one looks, and so on, until none has to.
    """
    nearest = np.arange(len(height)) - 1
    todo = np.flatnonzero(height)
    while len(todo):
        todo = todo[looks_past(height[nearest[todo]], height[todo])]
        nearest[todo] = nearest[nearest[todo]]
    return nearest


# --- F1 counts --------------------------------------------------------------------------------------------------------


def _event_counts(ref, est, K, t_collar=0.2, percentage_of_length=0.2):
    """One class at K operating points -> true positives (K,), estimated events (K,), reference events"""
    longest, near = ref.onset.max(initial=0) + t_collar + 1, t_collar + SLACK
    onset, wanted = _on_one_axis(ref.file, ref.onset, longest), _on_one_axis(est.file, est.onset, longest)
    first, stop = np.searchsorted(onset, wanted - near), np.searchsorted(onset, wanted + near)
    if (stop - first).sum() > MANY_PAIRS:
        raise MemoryError(f"{len(onset)} and {len(wanted)} events of one class crowd a few moments; are rows repeated?")
    e, r = _ranges(first, stop)
    collar = np.maximum(t_collar, percentage_of_length * (ref.offset - ref.onset))[r]
    fits = (np.abs(ref.onset[r] - est.onset[e]) <= t_collar) & (np.abs(ref.offset[r] - est.offset[e]) <= collar)
    fits &= ref.file[r] == est.file[e]
    e, r = e[fits], r[fits]
    # each pair at each operating point, all of them matched in one go: event r at point k is the number r * K + k
    pair, k = _ranges(est.first[e], est.stop[e])
    matched = _matched(r[pair] * K + k, e[pair] * K + k)
    return np.bincount(matched % K, minlength=K), _alive(est.first, est.stop, K), len(ref.file)


def _matched(a, b):
    """The members of a that a maximum matching of the pairs (a[i], b[i]) uses"""
    alone = (np.bincount(a)[a] == 1) & (np.bincount(b)[b] == 1)
    if alone.all():  # speed: nearly all pairs have no rival
        return a
    rows, i = np.unique(a[~alone], return_inverse=True)
    columns, j = np.unique(b[~alone], return_inverse=True)
    graph = csr_array((np.ones(len(i), dtype=bool), (i, j)), shape=(len(rows), len(columns)))
    return np.append(a[alone], rows[maximum_bipartite_matching(graph, perm_type="column") >= 0])


def _segment_counts(ref, est, K, time_resolution, n_segments):
    """As _event_counts, of segments. n_segments: (files,), where files are cut"""
    # What is active changes only where an event begins or ends: so the stretches of segments between such places are
    # looked at, not the segments, of which an event may have billions. Column 0 counts the reference events there,
    # column s the estimated ones that stop at operating point s.
    file, column = np.append(ref.file, est.file), np.append(np.zeros_like(ref.file), est.stop)
    first = np.floor(np.append(ref.onset, est.onset) / time_resolution)
    stop = np.ceil(np.append(ref.offset, est.offset) / time_resolution)
    n = int(stop.max(initial=0)) + 1  # segment s of a file is the number file * n + s
    ends = [file * n + np.minimum(x, n_segments[file]).astype(np.int64) for x in (first, stop)]
    place, edge = np.unique(np.concatenate(ends), return_inverse=True)
    change = np.repeat([1, -1], len(file))
    change = np.bincount(edge * (K + 1) + np.tile(column, 2), change, len(place) * (K + 1)).reshape(-1, K + 1)
    active = np.cumsum(change, axis=0) > 0  # (stretches, K + 1)
    length = np.diff(place, append=place[-1:])
    truth = active[:, 0]
    # Events only grow while the threshold falls, so a segment is active up to the highest stop of all its events.
    found = np.maximum.accumulate(active[:, :0:-1], axis=1)[:, ::-1]  # (stretches, K)
    return length[truth] @ found[truth], length @ found, int(length @ truth)


# --- the PSD-ROC ------------------------------------------------------------------------------------------------------


class _Truth:
    """Ground truth events of all classes, without overlaps, in the order of their places: file * C + class.

    files: name -> index; durations: of the files
    place, onset, offset: of each event; begin, end: its times on the axis of `_on_one_axis`
    n_events, seconds: of each class
    occupied: whether a place has an event; groups: the places that have
    """

    def __init__(self, ground_truth, durations, classes, names):
        """names: files that detections may be in; their indices come first"""
        C, columns = len(classes), _columns(ground_truth)
        _mention(columns[3], classes, "ground truth events outside the class list, ignored by PSDS")
        self.files = _index(chain(names, durations, columns[0]))
        _mention(list(self.files), durations, "files without duration, where PSDS counts no false positives")
        self.durations = np.array([durations.get(name, 0.0) for name in self.files], dtype=np.float64)
        if not self.durations.sum() > 0:
            raise ValueError("durations: needs the seconds of every clip, to count false positives per hour")
        tables = list(_disjoint_tables(columns, self.files, classes, "ground truth events"))
        cls = np.repeat(np.arange(C), [len(table.file) for _, table in tables])
        file, onset, offset = (np.concatenate([t[i] for _, t in tables] or [np.zeros(0)]) for i in range(3))
        place = file.astype(np.int64) * C + cls
        order = np.lexsort((onset, place))
        self.place, self.onset, self.offset = place[order], onset[order], offset[order]
        self.longest = offset.max(initial=0) + 1
        self.begin = _on_one_axis(self.place, self.onset, self.longest)
        self.end = _on_one_axis(self.place, self.offset, self.longest)
        self.n_events = np.bincount(cls, minlength=C)
        self.seconds = np.bincount(cls, offset - onset, minlength=C)
        self.occupied = np.zeros(len(self.files) * C, dtype=bool)
        self.occupied[place] = True
        self.groups = np.flatnonzero(self.occupied)

    def intersections(self, place, onset, offset):
        """All pairs of an interval and an event of its place that share time -> (interval, event, seconds shared).

        Events of a place follow one another, so those that an interval meets are one range: from the first that ends
        after its onset to the last that begins before its offset.
        """
        i = np.flatnonzero(self.occupied[place])
        first = np.searchsorted(self.end, _on_one_axis(place[i], onset[i], self.longest) - SLACK)
        stop = np.searchsorted(self.begin, _on_one_axis(place[i], offset[i], self.longest) + SLACK)
        pair, r = _ranges(first, stop)
        i = i[pair]
        shared = np.minimum(offset[i], self.offset[r]) - np.maximum(onset[i], self.onset[r])
        real = (shared > 0) & (place[i] == self.place[r])
        return i[real], r[real], shared[real]


def _disjoint_tables(columns, files, classes, what, point=None):
    """Yield (class, _Table) of all classes, after merge_overlaps at every operating point"""
    n_merged = 0
    for c, table in enumerate(_tables(columns, files, classes, point)):
        table = table.take(table.onset < table.offset)
        place = table.first * len(files) + table.file
        same_place, overlap = place[1:] == place[:-1], table.onset[1:] < table.offset[:-1]
        identical = (table.onset[1:] == table.onset[:-1]) & (table.offset[1:] == table.offset[:-1])
        if (clash := same_place & overlap & ~identical).any():  # speed: rare, so done by the definition, there only
            mixed = np.isin(place, place[1:][clash])
            rows = zip(place[mixed].tolist(), table.onset[mixed].tolist(), table.offset[mixed].tolist(), repeat(c))
            merged = merge_overlaps(list(rows))
            n_merged += np.count_nonzero(mixed) - len(merged)
            place, onset, offset, _ = map(np.array, zip(*merged))
            merged = _Table(place % len(files), onset, offset, place // len(files), place // len(files) + 1)
            table = _Table(*map(np.concatenate, zip(table.take(~mixed), merged)))
        yield c, table
    if n_merged:
        warnings.warn(f"PSDS merged {n_merged} {what} with overlapping ones of their class", stacklevel=4)


def _curve(
    det, c, K, truth, dtc_threshold, gtc_threshold, cttc_threshold, alpha_ct, max_efpr, ct_divisor="C-1"
):
    """Points of the PSD-ROC of class c that rise above those before: eFPR (per hour), TPR; None without ground truth.

    det: its detections at K operating points. What a detection is (DTC, false positive, cross-trigger) does not depend
    on the others, so it is found out once, and counts wherever the detection exists.
    """
    if ct_divisor not in ("C-1", "C"):
        raise ValueError(f"ct_divisor {ct_divisor!r}: needs 'C-1' or 'C'")
    if truth.n_events[c] == 0:
        return None
    C, length = len(truth.n_events), det.offset - det.onset

    # DTC: d passes if the ground truth of its class covers enough of it, sum of |d n r| / |d| >= dtc_threshold
    d, r, shared = truth.intersections(det.file * C + c, det.onset, det.offset)
    passes = _reaches(np.bincount(d, shared / length[d], len(length)), dtc_threshold)

    # GTC: r is a true positive where detections that pass the DTC cover enough of it, sum of |d n r| / |r|
    good, covered_event = d[passes[d]], r[passes[d]]
    share = shared[passes[d]] / (truth.offset - truth.onset)[covered_event]
    n_tp = _alive(*_where_covered(covered_event, share, det.first[good], det.stop[good], K, gtc_threshold), K)

    # FP: d fails the DTC and lies, at least partly, within its clip
    false = ~passes & (det.onset < truth.durations[det.file])
    efpr = fpr = _alive(det.first[false], det.stop[false], K) * 3600 / truth.durations.sum()  # per hour
    if alpha_ct:
        # CTTC: d, failing the DTC, triggers class k if the ground truth of k covers enough of it
        in_use = np.append(0, np.cumsum(fpr <= max_efpr))  # speed: no need to look where fpr is too high already
        failing = det.take(np.flatnonzero(~passes & (in_use[det.first] < in_use[det.stop])))
        d, k = _cross_triggers(failing, c, truth, cttc_threshold)
        rate = 3600 / truth.seconds[k]  # per hour of ground truth of class k
        ctr = _alive(failing.first[d], failing.stop[d], K, rate)
        n_classes = np.count_nonzero(truth.n_events)
        efpr = fpr + alpha_ct * ctr / (max(n_classes - 1, 1) if ct_divisor == "C-1" else n_classes)

    order = np.lexsort((-n_tp, efpr))
    order = order[efpr[order] <= max_efpr]
    best = np.maximum.accumulate(np.append(0, n_tp[order]))
    rises = order[best[1:] > best[:-1]]
    return efpr[rises], n_tp[rises] / truth.n_events[c]


def _reaches(share, threshold):
    return (share > 0) & (share >= threshold)


def _where_covered(r, share, first, stop, K, threshold):
    """Pairs of a ground truth event r and a detection that covers this share of it at points first <= k < stop.

    -> the stretches of operating points where an event's shares reach the threshold: their first, their stop

        detection 1 of r    |-----------------|             share 0.4
        detection 2 of r           |---------------|        share 0.5
        sum over r          | 0.4  |   0.9    | 0.5|        it changes where a detection begins or ends, nowhere else
    """
    first, stop = r * (K + 1) + first, r * (K + 1) + stop  # operating point k of event r is r * (K + 1) + k
    edge = np.sort(np.append(first, stop))  # where two are equal, the stretch between them is empty
    pair, stretch = _ranges(np.searchsorted(edge, first), np.searchsorted(edge, stop))
    covered = np.flatnonzero(_reaches(np.bincount(stretch, share[pair], len(edge)), threshold))
    return edge[covered] % (K + 1), edge[covered + 1] % (K + 1)


def _cross_triggers(det, c, truth, cttc_threshold):
    """-> (detection, other class that it triggers), every such pair"""
    C = len(truth.n_events)
    # the places of a detection's file that hold ground truth, of whatever class
    d, g = _ranges(np.searchsorted(truth.groups, det.file * C), np.searchsorted(truth.groups, (det.file + 1) * C))
    other = truth.groups[g] % C != c
    d, place = d[other], truth.groups[g[other]]
    i, _, shared = truth.intersections(place, det.onset[d], det.offset[d])
    triggers = _reaches(np.bincount(i, shared / (det.offset - det.onset)[d[i]], len(d)), cttc_threshold)
    return d[triggers], place[triggers] % C


def _area(curves, alpha_st, max_efpr):
    """PSDS: mean area under the effective TPR = mean - alpha_st * std over the classes, never below 0"""
    curves = [curve for curve in curves if curve is not None]  # ours: a class without ground truth is left out
    if not curves:
        return math.nan
    x = np.unique(np.concatenate([[0.0], *(efpr for efpr, _ in curves)]))
    tpr = np.stack([_steps(*curve, x) for curve in curves])  # (classes, X)
    etpr = np.maximum(tpr.mean(axis=0) - alpha_st * tpr.std(axis=0), 0)
    return float((np.diff(x, append=max_efpr) * etpr).sum() / max_efpr)


def _steps(efpr, tpr, x):
    """A curve's TPR at each x: that of its last point up to there, 0 before the first"""
    return np.append(0.0, tpr)[np.searchsorted(efpr, x, side="right")]


# --- tuning -----------------------------------------------------------------------------------------------------------


def tune_by_definition(scores, filenames, ground_truth, durations, classes, frame_hop, f1):
    """`tune` for "event" and "segment": for every class the best of all pairs, by f1: event_f1 or segment_f1"""
    thresholds, windows = [], []
    for c, label in enumerate(classes):
        truth, tried = [event for event in ground_truth if event[3] == label], []
        for window in TUNING_WINDOWS:
            for threshold in sorted(TUNING_THRESHOLDS, key=lambda x: round(abs(x - 0.5), 6)):  # 0.4 is as near as 0.6
                found = scores_to_events(
                    scores[:, :, c : c + 1], filenames, [label], threshold, window, frame_hop, durations
                )
                tried.append((np.nan_to_num(f1(truth, found, [label]).per_class[label]), threshold, window))
        _, threshold, window = max(tried, key=lambda x: x[0])  # the first of equals
        thresholds.append(threshold)
        windows.append(window)
    return np.array(thresholds), np.array(windows)


def tune(scores, filenames, ground_truth, durations, classes, frame_hop, metric):
    """Per class, the threshold and the median window with the best score on these data. Boes 2022, Sec. 3.1.3.

    metric: what each class is tuned by.
    "segment", "event": ours: its own F1, over all pairs of threshold and window. equals: tune_by_definition
    "clip": the same of clip scores (N, C), over all thresholds; the windows are all 1
    "psds1", "psds2": over all windows; ours: by the area under the class's own PSD-ROC, where cross-triggers count and
        alpha_st, which compares classes, does not

    scores: (N, T, C), but for "clip".
    Returns thresholds (C,), which is None for PSDS with its fixed thresholds, and windows (C,) int.
    ours: of equals the smallest window, then the threshold nearest 0.5, then the lower one; so a class without ground
    truth gets threshold 0.5 and window 1.
    """
    scores = _checked(scores, filenames, classes, 2 if metric == "clip" else 3)
    if metric == "clip":
        return _tune_clip(scores, filenames, ground_truth, classes), np.ones(len(classes), dtype=np.int64)
    if metric in ("psds1", "psds2"):
        criteria = PSDS1 if metric == "psds1" else PSDS2
        return None, _tune_psds(scores, filenames, ground_truth, durations, classes, frame_hop, **criteria)
    if metric not in ("event", "segment"):
        raise ValueError(f"metric {metric!r}: needs clip, segment, event, psds1 or psds2")
    columns, seconds, peaks = _columns(ground_truth), _seconds(filenames, durations), scores.max(axis=1)
    files = _index(chain(filenames, columns[0]))
    K, never = len(TUNING_THRESHOLDS), np.full(len(files), np.inf)
    thresholds, windows = [], []
    for c, ref in enumerate(_tables(columns, files, classes)):
        clips, level = _levels(scores, peaks, c, TUNING_THRESHOLDS)
        f1 = []
        for window in TUNING_WINDOWS:
            est = _events_of_all_thresholds(clips, level, window, frame_hop, seconds)  # of all nine thresholds
            counts = _event_counts(ref, est, K) if metric == "event" else _segment_counts(ref, est, K, 1.0, never)
            f1.append(_f1(*counts))  # (9,)
        window, threshold = _best(np.stack(f1))
        windows.append(TUNING_WINDOWS[window])
        thresholds.append(TUNING_THRESHOLDS[threshold])
    return np.array(thresholds), np.array(windows)


def _best(f1):
    """Grid (windows, thresholds) -> indices of its best cell"""
    by_distance = np.argsort(np.abs(TUNING_THRESHOLDS - 0.5).round(6), kind="stable")  # 0.5, 0.4, 0.6, 0.3 ...
    window, place = np.unravel_index(np.argmax(f1[:, by_distance]), f1.shape)  # argmax takes the first of equals
    return window, by_distance[place]


def _f1(n_tp, n_est, n_ref):
    """As f1_of_counts, but of arrays, and 0 without reference"""
    precision, recall = n_tp / np.maximum(n_est, 1), n_tp / max(n_ref, 1)
    return 2 * precision * recall / np.where(n_tp > 0, precision + recall, 1)


def _tune_clip(scores, filenames, ground_truth, classes):
    tagged = {(name, label) for name, _, _, label in ground_truth}
    tags = np.array([[(name, label) in tagged for label in classes] for name in filenames])
    thresholds = []
    for tag, score in zip(tags.T, scores.T.astype(np.float64)):
        active = score[:, None] > TUNING_THRESHOLDS  # (N, K)
        f1 = _f1((active & tag[:, None]).sum(axis=0), active.sum(axis=0), tag.sum())
        thresholds.append(TUNING_THRESHOLDS[_best(f1[None])[1]])
    return np.array(thresholds)


def _tune_psds(scores, filenames, ground_truth, durations, classes, frame_hop, *, alpha_st, max_efpr, **criteria):
    # alpha_st plays no part: it punishes differences between classes
    truth, seconds = _Truth(ground_truth, durations, classes, filenames), _seconds(filenames, durations)
    K, peaks, windows = len(THRESHOLDS_50), scores.max(axis=1), []
    for c in range(len(classes)):
        levels = _levels(scores, peaks, c, THRESHOLDS_50)
        areas = []
        for window in TUNING_WINDOWS if truth.n_events[c] else TUNING_WINDOWS[:1]:
            det = _events_of_all_thresholds(*levels, window, frame_hop, seconds)
            areas.append(_area([_curve(det, c, K, truth, max_efpr=max_efpr, **criteria)], 0.0, max_efpr))
        windows.append(TUNING_WINDOWS[np.argmax(np.round(areas, 12))])  # the first of equals, up to rounding of sums
    return np.array(windows)
