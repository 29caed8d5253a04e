"""Scores of sound event detection and audio tagging: the metrics of Boes & Van hamme 2022 (Sec. 3.1.3 and 3.1.4).

Clip-, segment- and event-based F1 (Mesaros et al. 2016, as sed_eval 0.2.1 computes them), PSDS (Bilen et al. 2020, as
psds_eval 0.5.3 computes it) from events or straight from frame scores, decoding of frame scores into events, tuning of
thresholds and median filters. Numpy and scipy, nothing else of this project: copy the file.

First come the definitions, one loop for each "for every" of the papers: read these. Then a line says that the paper
ends. After it comes the same once more, fast: the public functions first, then their tools. The tests compare the two.
To copy one definition alone: `event_f1_by_definition` and `segment_f1_by_definition` need `F1`, `f1_of_counts` and
`all_labels`; `psds_by_definition` needs `merge_overlaps`, `union` and PSDS1 or PSDS2.

Words: an event is a tuple (filename, onset, offset, event_label), times in seconds. Scores are arrays
(N clips, T output frames, C classes). An operating point is one of K thresholds, or the list of events found with it.
Times are compared in float64, without rounding or tolerance; limits are inclusive (<=, >=).
"""

import math
import sys
import warnings
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
from scipy.ndimage import median_filter as running_median
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

# Boes 2022, Table 4; the cross-trigger tolerance of PSDS1 ("N/A") has no effect because alpha_ct is 0. PSDS1 favours
# exact times (0.7: a detection is 70 % event, an event 70 % found); PSDS2 forgives times (0.1), but not the event of
# another class (alpha_ct 0.5). In both, alpha_st 1 takes off the deviation over the classes: all must be found alike.
PSDS1 = dict(dtc_threshold=0.7, gtc_threshold=0.7, cttc_threshold=0.3, alpha_ct=0.0, alpha_st=1.0, max_efpr=100.0)
PSDS2 = dict(dtc_threshold=0.1, gtc_threshold=0.1, cttc_threshold=0.3, alpha_ct=0.5, alpha_st=1.0, max_efpr=100.0)
THRESHOLDS_50 = (2 * np.arange(50) + 1) / 100  # Boes 2022, Sec. 3.1.4: 0.01, 0.03 ... 0.99
TUNING_THRESHOLDS = np.arange(1, 10) / 10  # Boes 2022, Sec. 3.1.3: 0.1, 0.2 ... 0.9
TUNING_WINDOWS = np.arange(1, 32, 2)  # Boes 2022, Sec. 3.1.3: 1, 3 ... 31 output frames
# ours: where `scores_to_events` ends a clip of unknown duration; DCASE clips last 10 s. Of such a clip segment F1 cuts
# nothing, and PSDS counts no false positives
CLIP_SECONDS = 10.0


# --- the definitions --------------------------------------------------------------------------------------------------


class F1(NamedTuple):
    """F1 scores in 0..1, nan where the reference has no events, and the counts behind them, (C,) each"""

    micro: float
    macro: float
    per_class: dict
    n_tp: np.ndarray
    n_fp: np.ndarray
    n_fn: np.ndarray
    precision: dict  # by class, as per_class; nan where nothing is estimated
    recall: dict  # by class; nan where the reference has no events


def f1_of_counts(counts, classes):
    """F1 (Mesaros et al. 2016) from counts: dict of label -> (true positives, estimated, in the reference).

    ours: one rule for clips, segments and events. A class without reference is nan and no part of the macro mean. A
    class with reference but without true positive scores 0. Micro pools all counts, also those of other labels.
    """

    def scores(n_tp, n_est, n_ref):
        precision = float(n_tp / n_est) if n_est > 0 else math.nan
        recall = float(n_tp / n_ref) if n_ref > 0 else math.nan
        if n_ref == 0:
            return math.nan, precision, recall
        if n_tp == 0:
            return 0.0, precision, recall
        return 2 * precision * recall / (precision + recall), precision, recall

    pooled = np.array(list(counts.values()), dtype=np.int64).reshape(-1, 3).sum(axis=0)
    per_class, precision, recall = {}, {}, {}
    for label in classes:
        per_class[label], precision[label], recall[label] = scores(*counts[label])
    defined = [value for value in per_class.values() if not math.isnan(value)]
    n_tp, n_est, n_ref = np.array([counts[label] for label in classes], dtype=np.int64).reshape(-1, 3).T
    return F1(
        micro=scores(*pooled)[0],
        macro=float(np.mean(defined)) if defined else math.nan,
        per_class=per_class, n_tp=n_tp, n_fp=n_est - n_tp, n_fn=n_ref - n_tp, precision=precision, recall=recall,
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
        """Pair ref with a free estimated event, or with one whose partner finds another (an augmenting path)"""
        for i in range(len(est)):
            if i not in tried and fit(ref, est[i]):
                tried.add(i)
                if i not in partner or find_partner(partner[i], est, partner, tried):
                    partner[i] = ref
                    return True
        return False

    counts = {}
    for label in all_labels(classes, reference, estimated):
        ref = [event for event in reference if event[3] == label]
        est = [event for event in estimated if event[3] == label]
        n_tp = 0
        for file in {name for name, *_ in ref}:
            est_of_file = [event for event in est if event[0] == file]
            partner = {}  # index of an estimated event -> its reference event
            for event in ref:
                if event[0] == file and find_partner(event, est_of_file, partner, set()):
                    n_tp += 1
        counts[label] = n_tp, len(est), len(ref)
    return f1_of_counts(counts, classes)


def all_labels(classes, reference, estimated):
    """The classes, then what other labels occur"""
    return list(dict.fromkeys(chain(classes, (label for *_, label in reference), (label for *_, label in estimated))))


def psds_by_definition(
    ground_truth, detections, durations, classes,
    *, dtc_threshold, gtc_threshold, cttc_threshold, alpha_ct, alpha_st, max_efpr, ct_divisor="C-1",
):  # fmt: skip
    """Polyphonic sound detection score (Bilen et al. 2020) in 0..1; nan without ground truth. Call it with **PSDS1.

    ground_truth: events; detections: a list of event lists, one per operating point; durations: filename -> seconds of
    every clip; max_efpr: false positives per hour; the other criteria: Boes 2022, Table 4. d: a detection, r: an event
    of the ground truth
    """
    truth = merge_overlaps([event for event in ground_truth if event[3] in classes])
    classes = [c for c in classes if any(r[3] == c for r in truth)]  # ours: one without ground truth is left out
    hours = sum(durations.values()) / 3600

    def covered(event, others, threshold):
        """Do the others, together, cover at least this share of the event? No where none overlaps it, even for 0"""
        file, onset, offset, _ = event
        shares = []
        for other_file, other_onset, other_offset, _ in others:
            overlap = min(offset, other_offset) - max(onset, other_onset)
            if other_file == file and overlap > 0:
                shares.append(overlap / (offset - onset))
        return len(shares) > 0 and sum(shares) >= threshold

    curves = {c: [(0.0, 0.0)] for c in classes}  # points (effective false positive rate, true positive rate)
    for found in map(merge_overlaps, detections):  # every operating point
        for c in classes:
            refs = [r for r in truth if r[3] == c]
            # detection tolerance criterion: the ground truth of its class covers enough of the detection
            passing, failing = [], []
            for d in [d for d in found if d[3] == c]:
                if covered(d, refs, dtc_threshold):
                    passing.append(d)
                else:
                    failing.append(d)
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
            # ours: the mean over the other classes, as psds_eval 0.5; versions up to 0.4 divide by all classes ("C")
            n_others = max(len(classes) - 1, 1)
            ctr /= n_others if ct_divisor == "C-1" else len(classes)
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
    all_identical = len(set(block)) <= 1
    if all_identical:
        return block
    name, onset, _, label = block[0]
    return [(name, onset, end, label)]


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
    rows = zip(n[inside].tolist(), onset[inside].tolist(), offset[inside].tolist(), c[inside].tolist())
    return [(filenames[i], start, stop, classes[k]) for i, start, stop, k in rows]


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


# --- tuning: definition -----------------------------------------------------------------------------------------------


# ours: the rule for ties. Where several pairs score best, the smallest window is taken. Where it has several thresholds
# that score best, the one nearest to 0.5 is taken. Of two that are equally near, the lower one is taken. So a class
# without ground truth gets window 1 and threshold 0.5.
THRESHOLDS_IN_ORDER = np.array([0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.1, 0.9])


def tune_by_definition(scores, filenames, ground_truth, durations, classes, frame_hop, f1):
    """Per class, the threshold and the median window with the best F1 on these data. Boes 2022, Sec. 3.1.3.

    scores: (N, T, C); f1: event_f1 or segment_f1, or either .._by_definition. Returns thresholds (C,), windows (C,).
    ours: both are searched together. The paper optimizes them "(separately)", which we read as: for each class and
    metric, as its sentence goes on.
    """
    thresholds, windows = [], []
    for c, label in enumerate(classes):
        series, truth = scores[:, :, c : c + 1], [event for event in ground_truth if event[3] == label]
        best = -1.0
        for window in TUNING_WINDOWS:
            for threshold in THRESHOLDS_IN_ORDER:
                found = scores_to_events(series, filenames, [label], threshold, window, frame_hop, durations)
                score = f1(truth, found, [label]).per_class[label]
                score = 0.0 if math.isnan(score) else score
                if score > best:  # an equal one that comes later is not taken
                    best, best_threshold, best_window = score, threshold, window
        thresholds.append(best_threshold)
        windows.append(best_window)
    return np.array(thresholds), np.array(windows)


def tune_clip_by_definition(clip_scores, filenames, ground_truth, classes):
    """Per class, the threshold with the best F1 of clip scores (N, C): (C,). Boes 2022, Sec. 3.1.3."""
    thresholds = []
    for c, label in enumerate(classes):
        with_class = {name for name, _, _, event_label in ground_truth if event_label == label}
        truth = np.array([[name in with_class] for name in filenames])
        best = -1.0
        for threshold in THRESHOLDS_IN_ORDER:
            found = clip_scores[:, c : c + 1].astype(np.float64) > threshold
            score = clip_f1(truth, found).per_class[0]
            score = 0.0 if math.isnan(score) else score
            if score > best:
                best, best_threshold = score, threshold
        thresholds.append(best_threshold)
    return np.array(thresholds)


def tune_psds_by_definition(scores, filenames, ground_truth, durations, classes, frame_hop, criteria):
    """Per class, the median window with the largest area under its own PSD-ROC: (C,). Boes 2022, Sec. 3.1.3.

    criteria: PSDS1 or PSDS2. ours: cross-triggers count; alpha_st, which compares classes, does not.
    """
    windows = []
    for c, label in enumerate(classes):
        series, best, best_window = scores[:, :, c : c + 1], 0.0, 1
        for window in TUNING_WINDOWS:
            detections = []
            for threshold in THRESHOLDS_50:
                found = scores_to_events(series, filenames, [label], threshold, window, frame_hop, durations)
                detections.append(found)
            # no other class is detected, so this is the area of the class, divided by the number of classes
            area = psds_by_definition(ground_truth, detections, durations, classes, **{**criteria, "alpha_st": 0.0})
            if round(area, 12) > best:
                best, best_window = round(area, 12), window
        windows.append(best_window)
    return np.array(windows)


# === The paper ends here. The same follows once more, fast: for all thresholds at once ================================
# Only the steps of the PSD-ROC and the exact PSDS are new.
# speed: what an event is does not depend on the other thresholds. So each different event is looked at once, class by
# class, together with the range of operating points at which it exists. Everything is counted from such ranges.

MANY_PAIRS = 30_000_000  # of events that fit each other, some 100 bytes each: more are refused
AT_A_TIME = 3_000_000  # pairs of events that are looked at together, some 100 bytes each
SLACK = 1e-3  # s, or a share: what is nearer to a limit is added up once more, in the order of the definition


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

    Onsets may differ by t_collar seconds, offsets by max(t_collar, percentage_of_length * length of the reference).
    equals: event_f1_by_definition
    """
    ref, est, _, labels = _two_tables(reference, estimated, classes)
    counts = {}
    for label, r, e in zip(labels, ref, est):
        (n_tp,), (n_est,), n_ref = _event_counts(r, e, 1, t_collar, percentage_of_length)
        counts[label] = n_tp, n_est, n_ref
    return f1_of_counts(counts, classes)


def psds(ground_truth, detections, durations, classes, **criteria):
    """Polyphonic sound detection score (Bilen et al. 2020) in 0..1; nan without ground truth. Call it with **PSDS1.

    ground_truth: events; detections: a list of event lists, one per operating point; durations: filename -> seconds of
    every clip; criteria: those of Table 4, max_efpr in false positives per hour, and ct_divisor: "C-1" as psds_eval
    0.5, "C" as its older versions.
    equals: psds_by_definition
    """
    efpr, _, etpr = psd_roc(ground_truth, detections, durations, classes, **criteria)
    return float(psd_area(efpr, etpr, criteria["max_efpr"]))


def psd_roc(ground_truth, detections, durations, classes, **criteria):
    """The steps whose area is PSDS -> efpr (X,), tpr (classes, X), etpr (X,). Arguments as for `psds`.

    efpr: effective false positives per hour, in ascending order from 0 (or what rounding makes of it: rates are sums).
        What holds at efpr[i] holds until efpr[i + 1], the last until max_efpr.
    tpr: true positive rate of each class; `psd_area` gives its area
    etpr: effective true positive rate: mean - alpha_st * deviation of tpr over the classes, never below 0
    ours: a class without ground truth has a row of nan in tpr, and no part in etpr; etpr is nan if there is none at all
    """
    criteria = _Criteria(**criteria)
    point = np.repeat(np.arange(len(detections)), [len(events) for events in detections])
    found = _columns(list(chain.from_iterable(detections)))
    truth = _Truth(ground_truth, durations, classes, found[0])
    tables = _disjoint_tables(found, truth.files, classes, "detections", point)
    curves = [_curve(table, c, len(detections), truth, criteria) for c, table in enumerate(tables)]
    return _roc(curves, criteria)


def psd_area(efpr, rate, max_efpr):
    """Area under the steps of `psd_roc`, in 0..1. rate: etpr (X,); or tpr (classes, X), which gives an area for each"""
    return (np.diff(efpr, append=max_efpr) * rate).sum(axis=-1) / max_efpr


def psds_from_scores(
    scores, filenames, ground_truth, durations, classes, frame_hop, window=1, thresholds=THRESHOLDS_50, **criteria
):
    """PSDS of the events that scores_to_events finds at each of the thresholds.

    scores: (N, T, C); frame_hop: seconds; window: odd number of frames or (C,); thresholds: (K,), or None for all that
    make a difference, see exact_psds_from_scores; the rest as for `psds`.
    equals: psds(ground_truth, [scores_to_events(scores, .., threshold, window, ..) for threshold in thresholds], ..)

    Time grows with N x T x C, up to half a microsecond for each score, on one core. It hardly grows with K, as there
    are no more events than runs of equal frames: 5000 thresholds take twice as long as 50. Classes are worked on one by
    one, so memory grows with N x T: 100 to 200 bytes for each frame of a class, and as many for each event of the
    ground truth.
    """
    data = scores, filenames, ground_truth, durations, classes, frame_hop, window, thresholds
    efpr, _, etpr = psd_roc_from_scores(*data, **criteria)
    return float(psd_area(efpr, etpr, criteria["max_efpr"]))


def psd_roc_from_scores(
    scores, filenames, ground_truth, durations, classes, frame_hop, window=1, thresholds=THRESHOLDS_50, **criteria
):
    """The steps whose area is psds_from_scores, as `psd_roc` returns them. Arguments as for psds_from_scores."""
    criteria = _Criteria(**criteria)
    scores, window = _checked(scores, filenames, classes), _per_class(window, len(classes))
    truth, seconds = _Truth(ground_truth, durations, classes, filenames), _seconds(filenames, durations)
    peaks, curves = scores.max(axis=1), []
    for c in range(len(classes)):
        if thresholds is None:  # score > threshold then means score >= value, for every value of the class
            points = np.append(-np.inf, np.unique(scores[:, :, c].astype(np.float64))[:-1])
        else:
            points = np.unique(np.asarray(thresholds, dtype=np.float64))
        det = _events_of_all_thresholds(*_levels(scores, peaks, c, points), window[c], frame_hop, seconds)
        curves.append(_curve(det, c, len(points), truth, criteria))
    return _roc(curves, criteria)


def exact_psds_from_scores(scores, filenames, ground_truth, durations, classes, frame_hop, window=1, **criteria):
    """psds_from_scores with every threshold that makes a difference: each class has all its scores as thresholds.

    As sed_scores_eval, which rounds to 6 decimals, so that ties may differ. ours: a number of its own, never to be
    compared with the PSDS of 50 thresholds. It takes two to four times as long as that, and at most twice the memory.
    """
    return psds_from_scores(scores, filenames, ground_truth, durations, classes, frame_hop, window, None, **criteria)


def tune(scores, filenames, ground_truth, durations, classes, frame_hop, metric):
    """Per class, the threshold and the median window with the best score on these data. Boes 2022, Sec. 3.1.3.

    metric: what each class is tuned by.
    "segment", "event": ours: its own F1, over all pairs of threshold and window. equals: tune_by_definition
    "clip": the same of clip scores (N, C), over all thresholds; the windows are all 1. equals: tune_clip_by_definition
    "psds1", "psds2": over all windows, by the area under its own PSD-ROC. equals: tune_psds_by_definition

    scores: (N, T, C), but for "clip". Ties: see THRESHOLDS_IN_ORDER.
    Returns thresholds (C,), which is None for PSDS with its fixed thresholds, and windows (C,) int.
    """
    scores = _checked(scores, filenames, classes, 2 if metric == "clip" else 3)
    if metric == "clip":
        return _tune_clip(scores, filenames, ground_truth, classes), np.ones(len(classes), dtype=np.int64)
    if metric in ("psds1", "psds2"):
        criteria = _Criteria(**(PSDS1 if metric == "psds1" else PSDS2))
        return None, _tune_psds(scores, filenames, ground_truth, durations, classes, frame_hop, criteria)
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

    files: name -> index; point: operating point of each event, all 0 unless given. With files a: 0, b: 1:

        name  onset  offset  label  point           file  onset  offset  first  stop
        b       1      2       A      0             0       5      6       0      1
        a       5      6       A      0     ->      1       1      2       0      1       the table of A
        a       0      3       A      1             0       0      3       1      2
        a       2      4       B      0             0       2      4       0      1       the table of B
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
    if ((np.diff(group[order]) == 0) & (np.diff(onset[order]) <= 0)).any():  # speed: most tables are in order already
        order = np.lexsort((offset, onset, group))
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
    unknown = set(names).difference(known)
    if unknown:
        count = sum(name in unknown for name in names)
        _warn(f"{count} {fate}: {', '.join(sorted(unknown)[:5])}{' ...' if len(unknown) > 5 else ''}")


def _warn(message):
    """Warn, and name the line outside this file that the call came from"""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals is globals():
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _ranges(low, high):
    """All integers n of the ranges low[i] <= n < high[i], one range after the other -> (i, n)

    low 3 7, high 5 8 -> i 0 0 1, n 3 4 7
    """
    length = np.maximum(high - low, 0)
    i = np.repeat(np.arange(len(length)), length)
    return i, np.arange(len(i)) + np.repeat(low - (np.cumsum(length) - length), length)


def _count_at_points(first, stop, K, weights=None):
    """How many events (or the sum of their weights) exist at each of K operating points -> (K,)"""
    return np.cumsum(np.bincount(first, weights, K + 1) - np.bincount(stop, weights, K + 1))[:K]


class _ExactSum:
    """The sum of the values of the events that exist at each of K operating points, added to from time to time

    A sum of floats depends on the order of its terms, and of whole numbers it does not. So each value is counted in
    coarse units and the rest of it in fine ones: 2 ** -26 and 2 ** -52 of the `largest` value that may occur.
    """

    def __init__(self, K, largest):
        coarse = 2.0 ** (math.frexp(largest)[1] - 26)
        self.coarse, self.fine, self.K, self.counts = coarse, coarse * 2.0**-26, K, np.zeros((2, K))

    def add(self, first, stop, values):
        n_coarse = np.rint(values / self.coarse)
        n_fine = np.rint((values - n_coarse * self.coarse) / self.fine)
        self.counts += [_count_at_points(first, stop, self.K, n) for n in (n_coarse, n_fine)]

    def total(self):
        return self.counts[0] * self.coarse + self.counts[1] * self.fine


def _distinct(table):
    """A table without the rows that equal the one before them -> table, how many rows each of its rows stands for"""
    repeats = np.flatnonzero(table.onset[1:] == table.onset[:-1]) + 1
    for column in table:
        repeats = repeats[column[repeats] == column[repeats - 1]]
    if not len(repeats):  # speed: mostly
        return table, np.ones(len(table.file), dtype=np.int64)
    rows = np.delete(np.arange(len(table.file)), repeats)
    return table.take(rows), np.diff(rows, append=len(table.file))


def _ranges_in_parts(low, high):
    """Yield what _ranges returns, about AT_A_TIME pairs together, those of a range always"""
    n_pairs = np.cumsum(high - low)
    cuts = np.searchsorted(n_pairs, np.arange(0, n_pairs.max(initial=0) + 1, AT_A_TIME))
    for a, b in zip(cuts, [*cuts[1:], len(low)]):
        i, n = _ranges(low[a:b], high[a:b])
        yield a + i, n


class _Rows:
    """Rows of a table, in the order of files, begins and ends alike, made ready to look up those that intervals meet"""

    def __init__(self, file, begin, end):
        # numpy orders complex numbers as it does pairs, here of a file and a time
        self.file, self.begin, self.end = file, file + 1j * begin, file + 1j * end

    def near(self, file, begin, end):
        """Yield pairs (interval, row) that share time, in the order of intervals, in parts as _ranges_in_parts.

        An interval meets the rows from the first one that ends after its begin to the last that begins before its end.
        """
        i = np.arange(len(file))
        if len(self.file) < len(file):  # speed: mostly, few files have rows
            has_rows = np.zeros(max(self.file.max(initial=0), file.max()) + 1, dtype=bool)
            has_rows[self.file] = True
            i = np.flatnonzero(has_rows[file])
        low = np.searchsorted(self.end, file[i] + 1j * begin[i], side="right")
        high = np.searchsorted(self.begin, file[i] + 1j * end[i])
        some = low < high
        i, low, high = i[some], low[some], high[some]
        for interval, row in _ranges_in_parts(low, high):
            yield i[interval], row


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
    todo = np.flatnonzero((height[1:] > 0) & looks_past(height[:-1], height[1:])) + 1
    while len(todo):
        nearest[todo] = nearest[nearest[todo]]
        todo = todo[looks_past(height[nearest[todo]], height[todo])]
    return nearest


# --- F1 counts --------------------------------------------------------------------------------------------------------


def _event_counts(ref, est, K, t_collar=0.2, percentage_of_length=0.2):
    """One class at K operating points -> true positives (K,), estimated events (K,), reference events"""
    n_est, n_ref = _count_at_points(est.first, est.stop, K), len(ref.file)
    (ref, ref_copies), (est, est_copies) = _distinct(ref), _distinct(est)
    collar = np.maximum(t_collar, percentage_of_length * (ref.offset - ref.onset))
    near, pairs, n_pairs = t_collar + SLACK, [], 0
    for e, r in _Rows(ref.file, ref.onset, ref.onset).near(est.file, est.onset - near, est.onset + near):
        fits = (np.abs(ref.onset[r] - est.onset[e]) <= t_collar) & (np.abs(ref.offset[r] - est.offset[e]) <= collar[r])
        pairs.append((e[fits], r[fits]))
        n_pairs += (est.stop - est.first)[e[fits]].sum()
        if n_pairs > MANY_PAIRS:
            raise MemoryError(f"{len(ref.file)} and {len(est.file)} different events of one class crowd a few moments")
    e, r = np.concatenate(pairs, axis=1)
    # each pair at each operating point, all of them matched in one go: event r at point k is the number r * K + k
    pair, k = _ranges(est.first[e], est.stop[e])
    e, r = e[pair], r[pair]
    matched, times = _matched(r * K + k, e * K + k, ref_copies[r], est_copies[e])
    return np.bincount(matched % K, times, K).astype(np.int64), n_est, n_ref


def _matched(a, b, a_copies, b_copies):
    """A maximum matching of the pairs (a[i], b[i]) -> the members of a, how many copies of each it uses"""
    times = np.minimum(a_copies, b_copies)
    rivals = np.flatnonzero((np.bincount(a)[a] > 1) | (np.bincount(b)[b] > 1))
    if not len(rivals):  # speed: nearly all pairs have no rival
        return a, times
    # a maximum flow from a source, node n, to the members of a, on to those of b, to a sink, node n + 1
    node, index = np.unique(np.append(a[rivals], -1 - b[rivals]), return_inverse=True)
    n, (i, j), copies = len(node), np.split(index, 2), np.zeros(len(node), dtype=np.int32)
    copies[i], copies[j] = a_copies[rivals], b_copies[rivals]
    start, end = np.concatenate([[np.full(n, n), np.arange(n)], [i, j], [np.arange(n), np.full(n, n + 1)]], axis=1)
    room = np.concatenate([copies * (node >= 0), times[rivals].astype(np.int32), copies * (node < 0)])
    flow = maximum_flow(csr_array((room, (start, end)), shape=(n + 2, n + 2)), n, n + 1).flow[[n]].toarray()[0, :n]
    return np.append(np.delete(a, rivals), node), np.append(np.delete(times, rivals), flow)


def _segment_counts(ref, est, K, time_resolution, n_segments):
    """As _event_counts, of segments. n_segments: (files,), where files are cut.

    What is active changes only at an edge, where an event begins or ends. So not the segments are looked at, of which
    an event may have billions, but the stretches from edge to edge. One file, K = 2 operating points:

        segment              0   1   2   3   4   5
        reference                |-----------|
        found at point 1             |-------|            stop 2
        found at point 0             |-----------|        stop 1
        edges                    1   2       4   5
        segments to the next     1   2       1
        in the reference         yes yes     no
        found at point 0         no  yes     yes          where the highest stop is above 0
        found at point 1         no  yes     no           where it is above 1

    So the true positives are 2 and 2, the estimated segments 3 and 2, those of the reference 3.
    """
    file = np.append(ref.file, est.file)
    column = np.append(np.zeros_like(ref.file), est.stop)  # 0: the reference; s: estimated events with stop s
    begin = np.floor(np.append(ref.onset, est.onset) / time_resolution)
    end = np.ceil(np.append(ref.offset, est.offset) / time_resolution)
    n = int(end.max(initial=0)) + 1  # segment s of a file is the number file * n + s
    if n * len(n_segments) >= 2**63:
        raise ValueError(f"{n} segments in {len(n_segments)} files are more than int64 can number: take longer ones")
    begin = file * n + np.minimum(begin, n_segments[file]).astype(np.int64)
    end = file * n + np.minimum(end, n_segments[file]).astype(np.int64)
    edge, index = np.unique(np.append(begin, end), return_inverse=True)
    change = np.repeat([1, -1], len(file))  # one event more where it begins, one less where it ends
    change = np.bincount(index * (K + 1) + np.append(column, column), change, len(edge) * (K + 1)).reshape(-1, K + 1)
    active = np.cumsum(change, axis=0) > 0  # (stretches, K + 1)
    length = np.diff(edge, append=edge[-1:])
    truth = active[:, 0]
    # events only grow while the threshold falls: what is found at a point is found at all lower points
    found = np.maximum.accumulate(active[:, :0:-1], axis=1)[:, ::-1]  # (stretches, K)
    return length[truth] @ found[truth], length @ found, int(length @ truth)


# --- the PSD-ROC ------------------------------------------------------------------------------------------------------


class _Criteria(NamedTuple):
    """What `psd_roc` is asked for"""

    dtc_threshold: float
    gtc_threshold: float
    cttc_threshold: float
    alpha_ct: float
    alpha_st: float
    max_efpr: float
    ct_divisor: str = "C-1"


class _Truth:
    """Ground truth events, those of a class without overlaps.

    files: name -> index; durations: of the files; all_seconds: their sum
    n_events, seconds: of each class
    rows, copies: all events, as of `_distinct`, class by class; .first is the class
    by_place: the same place by place, and as _Rows; .file is the place: the index of a file and class that has events
    class_of_place: of each place; first_place: of each file, as places stand file by file
    """

    def __init__(self, ground_truth, durations, classes, names):
        """names: files that detections may be in; their indices come first"""
        C, columns = len(classes), _columns(ground_truth)
        _mention(columns[3], classes, "ground truth events outside the class list, ignored by PSDS")
        self.files = _index(chain(names, durations, columns[0]))
        _mention(list(self.files), durations, "files without duration, where PSDS counts no false positives")
        self.durations = np.array([durations.get(name, 0.0) for name in self.files], dtype=np.float64)
        self.all_seconds = math.fsum(self.durations)  # unlike sum, whatever the order of files
        if not self.all_seconds > 0:
            raise ValueError("durations: needs the seconds of every clip, to count false positives per hour")
        tables = list(_disjoint_tables(columns, self.files, classes, "ground truth events"))
        self.n_events = np.array([len(table.file) for table in tables])
        self.seconds = np.array([math.fsum(table.offset - table.onset) for table in tables])
        if tables:
            rows = _Table(*map(np.concatenate, zip(*tables)))._replace(first=np.repeat(np.arange(C), self.n_events))
            self.rows, self.copies = _distinct(rows.take(np.lexsort((rows.onset, rows.file, rows.first))))
            self.bounds = np.searchsorted(self.rows.first, np.arange(C + 1))
            places, place = np.unique(self.rows.file * C + self.rows.first, return_inverse=True)
            self.class_of_place = places % C
            self.first_place = np.searchsorted(places, np.arange(len(self.files) + 1) * C)
            order = np.argsort(place, kind="stable")
            rows = self.rows._replace(file=place).take(order)
            self.by_place = rows, self.copies[order], _Rows(*rows[:3])

    def of_class(self, c):
        """Events of one class in the order of files and onsets, their copies"""
        rows = slice(self.bounds[c], self.bounds[c + 1])
        return self.rows.take(rows), self.copies[rows]


def _disjoint_tables(columns, files, classes, what, point=None):
    """Yield a _Table for each class, after merge_overlaps at every operating point. what: a name for these events"""
    n_merged = 0
    for table in _tables(columns, files, classes, point):
        table = table.take(table.onset < table.offset)
        group = table.first * len(files) + table.file  # one number for an operating point and a file
        same_group, overlap = group[1:] == group[:-1], table.onset[1:] < table.offset[:-1]
        identical = (table.onset[1:] == table.onset[:-1]) & (table.offset[1:] == table.offset[:-1])
        clash = same_group & overlap & ~identical
        if clash.any():  # speed: rare, so done by the definition, in these groups only
            mixed = np.isin(group, group[1:][clash])
            rows = zip(group[mixed].tolist(), table.onset[mixed].tolist(), table.offset[mixed].tolist(), repeat(""))
            merged = merge_overlaps(list(rows))
            n_merged += np.count_nonzero(mixed) - len(merged)
            group, onset, offset, _ = map(np.array, zip(*merged))
            merged = _Table(group % len(files), onset, offset, group // len(files), group // len(files) + 1)
            table = _Table(*(np.append(a, b) for a, b in zip(table.take(~mixed), merged)))
        yield table
    if n_merged:
        _warn(f"PSDS merged {n_merged} {what} with overlapping ones of their class")


def _curve(det, c, K, truth, criteria):
    """Points of the PSD-ROC of class c that rise above those before: eFPR (per hour), TPR; None without ground truth.

    det: its detections at K operating points. What a detection is (DTC, false positive, cross-trigger) does not depend
    on the others, so it is found out once, and counts wherever the detection exists.
    """
    if criteria.ct_divisor not in ("C-1", "C"):
        raise ValueError(f"ct_divisor {criteria.ct_divisor!r}: needs 'C-1' or 'C'")
    if truth.n_events[c] == 0:
        return None
    (ref, copies), length = truth.of_class(c), det.offset - det.onset

    # DTC: d passes if the ground truth of its class covers enough of it, sum of |d n r| / |d| >= dtc_threshold
    d, r = np.concatenate([*_Rows(*ref[:3]).near(*det[:3])], axis=1)
    shared = _shared(det, d, ref, r)
    passes = _reach(d, shared / length[d], copies[r], len(length), criteria.dtc_threshold)

    # GTC: r is a true positive where detections that pass the DTC cover enough of it, sum of |d n r| / |r|
    d, r, shared = d[passes[d]], r[passes[d]], shared[passes[d]]
    share = shared / (ref.offset - ref.onset)[r]
    r, first, stop = _where_covered(r, share, det.first[d], det.stop[d], K, criteria.gtc_threshold)
    n_tp = _count_at_points(first, stop, K, copies[r])

    # FP: d fails the DTC and lies, at least partly, within its clip
    false = ~passes & (det.onset < truth.durations[det.file])
    efpr = fpr = _count_at_points(det.first[false], det.stop[false], K) * 3600 / truth.all_seconds  # per hour
    if criteria.alpha_ct:
        # CTTC: d, failing the DTC, triggers class k if the ground truth of k covers enough of it
        # speed: not asked of those that exist only at points whose fpr is too high already
        in_use = np.append(0, np.cumsum(fpr <= criteria.max_efpr))
        failing = det.take(np.flatnonzero(~passes & (in_use[det.first] < in_use[det.stop])))
        rates = 3600 / np.where(truth.n_events > 0, truth.seconds, math.inf)  # per hour of ground truth of each class
        ctr = _ExactSum(K, rates.max())
        for d, k in _cross_triggers(failing, c, truth, criteria.cttc_threshold):
            ctr.add(failing.first[d], failing.stop[d], rates[k])
        n_classes = np.count_nonzero(truth.n_events)
        divisor = max(n_classes - 1, 1) if criteria.ct_divisor == "C-1" else n_classes
        efpr = fpr + criteria.alpha_ct * ctr.total() / divisor

    # in the order of eFPR, those with more true positives than all before
    order = np.lexsort((-n_tp, efpr))
    order = order[efpr[order] <= criteria.max_efpr]
    best = np.maximum.accumulate(np.append(0, n_tp[order]))
    rises = order[best[1:] > best[:-1]]
    return efpr[rises], n_tp[rises] / truth.n_events[c]


def _shared(det, d, ref, r):
    """Seconds that detections d and events r share"""
    return np.minimum(det.offset[d], ref.offset[r]) - np.maximum(det.onset[d], ref.onset[r])


def _reach(group, share, copies, n, threshold):
    """Of n groups of shares: do they, each as often as it has copies, sum up to the threshold? -> (n,) bool"""
    total = np.bincount(group, share * copies, n)
    if copies.max(initial=1) > 1:
        # where rounding may decide, copies are added up one by one, from left to right as in the definition
        close = np.abs(total - threshold) < SLACK
        pair = np.flatnonzero(close[group])
        pair = np.repeat(pair, copies[pair])
        total[close] = np.bincount(group[pair], share[pair], n)[close]
    return (total > 0) & (total >= threshold)


def _where_covered(r, share, first, stop, K, threshold):
    """Where do detections, together, cover at least this share of a ground truth event?

    Pair i: a detection that exists from first[i] until stop[i] covers share[i] of event r[i]. The sum of an event's
    shares changes only at an edge, where one of its detections begins or ceases to exist:

        operating point         0    1    2    3    4    5    6
        detection 1 of r        |--------------|                    share 0.4
        detection 2 of r             |--------------|               share 0.5
        edges                   0    1         3    4
        sum until the next      0.4  0.9       0.5  0

    Returns events and ranges of points where the sum reaches the threshold: if it is 0.5, from 1 until 3, 3 until 4.
    """
    begin, end = r * (K + 1) + first, r * (K + 1) + stop  # all events on one axis: point k of r is r * (K + 1) + k
    edge = np.sort(np.append(begin, end))
    edge = edge[np.diff(edge, prepend=-1) > 0]  # speed: faster than np.unique
    low, high = np.searchsorted(edge, begin), np.searchsorted(edge, end)  # a pair counts from begin to end
    total = np.cumsum(np.bincount(low, share, len(edge)) - np.bincount(high, share, len(edge)))
    # where rounding may decide, shares are added up anew, from left to right as in the definition
    close = np.flatnonzero(np.abs(total - max(threshold, 0)) < SLACK)
    pair, i = _ranges(np.searchsorted(close, low), np.searchsorted(close, high))
    total[close] = np.bincount(i, share[pair], len(close))
    covered = np.flatnonzero((total > 0) & (total >= threshold))
    event, first = np.divmod(edge[covered], K + 1)
    return event, first, edge[covered + 1] % (K + 1)


def _cross_triggers(det, c, truth, cttc_threshold):
    """Yield (detection, other class that it triggers), every such pair, some of them at a time"""
    (ref, copies, rows), cls, first_place = truth.by_place, truth.class_of_place, truth.first_place
    for d, place in _ranges_in_parts(first_place[det.file], first_place[det.file + 1]):
        d, place = d[cls[place] != c], place[cls[place] != c]
        length = (det.offset - det.onset)[d]
        for i, r in rows.near(place, det.onset[d], det.offset[d]):
            triggers = _reach(i, _shared(det, d[i], ref, r) / length[i], copies[r], len(d), cttc_threshold)
            yield d[triggers], cls[place[triggers]]


def _roc(curves, criteria):
    """Curves of the classes, of `_curve` -> what `psd_roc` returns"""
    has_truth = [curve is not None for curve in curves]
    efpr = np.unique(np.concatenate([[0.0], *(curve[0] for curve in curves if curve is not None)]))
    tpr = np.full((len(curves), len(efpr)), math.nan)
    for c in np.flatnonzero(has_truth):
        x, y = curves[c]
        # at each efpr the TPR of the curve's last point up to there, 0 before its first point
        tpr[c] = np.append(0.0, y)[np.searchsorted(x, efpr, side="right")]
    if not any(has_truth):
        return efpr, tpr, np.full(len(efpr), math.nan)
    etpr = []
    for steps in np.array_split(tpr, 1 + tpr.size // AT_A_TIME, axis=1):  # speed: no copy of what may be large
        known = steps[has_truth]
        etpr.append(np.maximum(known.mean(axis=0) - criteria.alpha_st * known.std(axis=0), 0))
    return efpr, tpr, np.concatenate(etpr)


# --- tuning, fast -----------------------------------------------------------------------------------------------------


def _best(f1):
    """Grid (windows, thresholds) -> indices of its best cell, by the rule for ties of THRESHOLDS_IN_ORDER"""
    in_order = np.searchsorted(TUNING_THRESHOLDS, THRESHOLDS_IN_ORDER)
    window, i = np.unravel_index(np.argmax(f1[:, in_order]), f1.shape)  # where several are best, argmax finds the first
    return window, in_order[i]


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


def _tune_psds(scores, filenames, ground_truth, durations, classes, frame_hop, criteria):
    truth, seconds = _Truth(ground_truth, durations, classes, filenames), _seconds(filenames, durations)
    K, peaks, windows = len(THRESHOLDS_50), scores.max(axis=1), []
    for c in range(len(classes)):
        levels = _levels(scores, peaks, c, THRESHOLDS_50)
        areas = []
        for window in TUNING_WINDOWS if truth.n_events[c] else TUNING_WINDOWS[:1]:
            det = _events_of_all_thresholds(*levels, window, frame_hop, seconds)
            efpr, _, etpr = _roc([_curve(det, c, K, truth, criteria)], criteria)  # of one class: etpr is its tpr
            areas.append(psd_area(efpr, etpr, criteria.max_efpr))
        windows.append(TUNING_WINDOWS[np.argmax(np.round(areas, 12))])  # the first that is best, but for rounding
    return np.array(windows)
