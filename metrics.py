"""Scores of sound event detection and audio tagging: the metrics of Boes & Van hamme 2022 (Sec. 3.1.3 and 3.1.4).

Clip-, segment- and event-based F1 (Mesaros et al. 2016, as sed_eval 0.2.1 computes them), PSDS (Bilen et al. 2020, as
psds_eval 0.5.3 computes it) from events or straight from frame scores, decoding of frame scores into events, tuning of
thresholds and median filters, mean average precision and AUC. Needs numpy and scipy only and nothing else of this
project: copy the file. From a shell: python metrics.py -h

Words: an event is a tuple (filename, onset, offset, event_label), times in seconds. Scores are arrays
(N clips, T frames, C classes). An operating point is one threshold, or the list of events found with it.

Our choices where papers and evaluators disagree or say nothing:
 1. One F1 rule for clips, segments and events: a class without reference events is nan and not part of the macro mean;
    a class with reference events but no true positive scores 0; micro pools all counts; no reference at all is nan.
 2. The offset collar is max(0.2 s, 20 % of the reference event), as sed_eval and every DCASE edition have it. The words
    of Boes 2022 ("up to a maximum of 200 ms") read as min.
 3. Events are paired by maximum bipartite matching (sed_eval 0.2.1), never greedily; all comparisons are inclusive, in
    float64, without rounding or epsilon.
 4. All files named in either table count, not only those of the reference.
 5. PSDS: overlapping events of one class in one file become their union first, with a warning (psds_eval >= 0.4 refuses
    them). Touching events stay apart, identical events stay separate. Zero-length events are dropped.
 6. PSDS: cross-trigger rates are averaged over the C - 1 other classes (psds_eval 0.5; ct_divisor="C" is what 0.3 and
    0.4 did, and with them the published PSDS2 of DCASE 2021); with a single class that mean is 0. Classes without
    ground truth are left out.
 7. A frame is active where score > threshold, in float64. Median filters have odd lengths and reflect at the edges.
 8. Events are clipped to the clip's duration (10 s where unknown); what begins after the end is no event.
 9. Tuning breaks ties towards the smaller filter, then the threshold nearest 0.5, then the lower one.
10. exact_psds_from_scores makes every distinct score an operating point, with the comparisons of 3 and 7
    (sed_scores_eval rounds to 6 decimals, which matters at ties only). It is another number than the PSDS of 50
    thresholds: never compare the two.
11. F1 counts labels outside the class list in micro only, PSDS ignores them, both with a warning (PSDS: for ground
    truth). In a file without a duration PSDS counts no false positives, as psds_eval.
"""
import argparse
import json
import sys
import time
import warnings
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d
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
EVENT_COLUMNS = ("filename", "onset", "offset", "event_label")


# --- files ------------------------------------------------------------------------------------------------------------

def read_events(path, zero_length=False):
    """Events of a TSV file with the columns of EVENT_COLUMNS, in any order and among others.

    A row with a file name only is a clip without events and gives none. Anything else that is not an event is a
    ValueError naming file and line; events with offset = onset too, unless zero_length (systems that clip times to the
    clip's end write them).
    """
    return _read_table(path, zero_length)[0]


def _read_table(path, zero_length=False):
    """-> events, names of all clips in the file."""
    events, names = [], {}
    for line, (name, onset, offset, label) in _rows(path, EVENT_COLUMNS):
        names[name] = True
        if not (onset or offset or label):
            continue
        if not label:
            raise ValueError(f"{path}, line {line}: times without event_label; add it, or empty all three columns")
        begin, end = _number(onset, "onset", path, line), _number(offset, "offset", path, line)
        if end < begin or (end == begin and not zero_length):
            raise ValueError(f"{path}, line {line}: offset {offset} is not after onset {onset}; correct or remove it")
        events.append((name, begin, end, label))
    return events, list(names)


def read_durations(path):
    """TSV file with the columns filename and duration (seconds) -> dict filename -> seconds."""
    durations = {}
    for line, (name, text) in _rows(path, ("filename", "duration")):
        seconds = _number(text, "duration", path, line)
        if seconds == 0 or durations.setdefault(name, seconds) != seconds:
            raise ValueError(f"{path}, line {line}: duration {text} of {name}; give each clip one duration above 0")
    return durations


def write_events(path, events):
    """Events -> TSV file, which read_events reads back exactly."""
    lines = ["\t".join((name, repr(float(onset)), repr(float(offset)), label)) for name, onset, offset, label in events]
    Path(path).write_text("\n".join(["\t".join(EVENT_COLUMNS), *lines, ""]), encoding="utf-8")


def _rows(path, columns):
    """(line number, texts of the columns) of every row of a TSV file."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # utf-8-sig: a byte order mark is no text
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8; save it as one") from None
    header = lines[0].split("\t")
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{path}, line 1: no column {', '.join(missing)}; needs a header with {', '.join(columns)}, "
                         "separated by tabs")
    places = [header.index(column) for column in columns]
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if line and len(cells) != len(header):
            raise ValueError(f"{path}, line {number}: {len(cells)} columns instead of {len(header)}; correct the tabs")
        if line and not cells[places[0]]:
            raise ValueError(f"{path}, line {number}: empty {columns[0]}; name the clip or remove the row")
        if line:
            yield number, [cells[place] for place in places]


def _number(text, what, path, line):
    try:
        value = float(text)  # correctly rounded: collars and tolerances are compared to the last bit
    except ValueError:
        value = np.nan
    if not 0 <= value < np.inf:
        raise ValueError(f"{path}, line {line}: {what} {text!r} is not a number of seconds, 0 or more; correct it")
    return value


# --- events as arrays -------------------------------------------------------------------------------------------------

class _Events(NamedTuple):
    """Events in columns. An event exists at the operating points first <= k < stop."""
    file: np.ndarray
    cls: np.ndarray
    onset: np.ndarray
    offset: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    def take(self, rows):
        return _Events(*(column[rows] for column in self))


def _index(names):
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _columns(events):
    """Event tuples -> four lists."""
    return [[event[i] for event in events] for i in range(4)]


def _to_arrays(columns, files, classes, point=None):
    """Columns -> _Events sorted by operating point, file, class and onset, without labels that are not in classes.

    files, classes: name -> index; point: operating point of each event, all 0 unless given."""
    name, onset, offset, label = columns
    file = np.fromiter(map(files.get, name), dtype=np.int64, count=len(name))
    cls = np.fromiter(map(classes.get, label, repeat(-1)), dtype=np.int64, count=len(name))
    onset, offset = np.array(onset, dtype=np.float64), np.array(offset, dtype=np.float64)
    bad = np.flatnonzero(~((0 <= onset) & (onset <= offset) & (offset < np.inf)))
    if len(bad):
        event = tuple(column[bad[0]] for column in columns)
        raise ValueError(f"event {event}: needs 0 <= onset <= offset, both finite, in seconds")
    point = np.zeros(len(file), dtype=np.int64) if point is None else point
    table = _Events(file, cls, onset, offset, point, point + 1).take(cls >= 0)
    return table.take(np.argsort(_key(_group(table, len(files), len(classes)), table.onset), kind="stable"))


def _group(table, n_files, n_classes):
    """One integer per operating point, file and class."""
    return (table.first * n_files + table.file) * n_classes + table.cls


def _key(group, time):
    """(group, time) as one sortable number: numpy orders complex numbers by real part, then by imaginary part.

    One sort or search over such keys serves all groups at once, and compares the times exactly."""
    return group + 1j * time


def _ranges(first, stop):
    """All integers n of the ranges first[i] <= n < stop[i], one range after the other -> (i, n)."""
    length = np.maximum(stop - first, 0)
    i = np.repeat(np.arange(len(length)), length)
    return i, np.arange(len(i)) + np.repeat(first - (np.cumsum(length) - length), length)


def _alive(first, stop, n, weights=None):
    """Number (or summed weight) of the ranges first <= k < stop that hold k, for k = 0 .. n - 1."""
    return np.cumsum(np.bincount(first, weights, n + 1) - np.bincount(stop, weights, n + 1))[:n]


def _distinct(values):
    """Integers sorted, each once; numpy.unique takes several times as long."""
    values = np.sort(values)
    return values[np.diff(values, prepend=-1) != 0]


def _mention(names, known, fate):
    """Warn of names that are not known: how many, which, and what becomes of them."""
    unknown = sorted(set(names).difference(known))
    if unknown:
        count = len(names) - sum(map(set(known).__contains__, names))
        warnings.warn(f"{count} {fate}: {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}", stacklevel=4)


# --- from frame scores to events --------------------------------------------------------------------------------------

def median_filter(active, window):
    """Median filter along the frames; edges reflect (d c b a | a b c d | d c b a), as scipy.ndimage's default.

    active: (N, T, C) bool; window: odd number of frames, or (C,) of them. Returns (N, T, C) bool.
    """
    active = np.asarray(active, dtype=bool)
    N, T, C = active.shape
    series = active.transpose(0, 2, 1).reshape(N * C, T).astype(np.uint8)  # (N * C, T)
    series = _smooth(series, np.tile(_per_class(window, C), N))
    return series.reshape(N, C, T).transpose(0, 2, 1).astype(bool)  # (N, T, C)


def _per_class(window, n_classes):
    window = np.broadcast_to(np.asarray(window), (n_classes,))
    if window.dtype.kind not in "iu" or (window < 1).any() or (window % 2 == 0).any():
        raise ValueError(f"median window {window.tolist()}: needs odd numbers of frames, 1 or more")
    return window


def _smooth(series, window):
    """Median filter each row of (S, T) with its own window (S,)."""
    series = series.copy()
    for w in np.unique(window[window > 1]):
        rows, half = window == w, w // 2
        # all rows end to end: scipy filters one long row far faster than many short ones, and the reflected margins
        # (numpy calls them "symmetric") keep neighbours from touching
        margins = np.pad(series[rows], ((0, 0), (half, half)), mode="symmetric")  # (rows, T + 2 half)
        series[rows] = running_median(margins.ravel(), size=int(w)).reshape(margins.shape)[:, half:-half]
    return series


class _Series(NamedTuple):
    """The frames of one class in one clip, S of them. level (S, T): number of thresholds that the score exceeds."""
    file: np.ndarray
    cls: np.ndarray
    level: np.ndarray


def _quantise(scores, thresholds):
    """(N, T, C) scores -> _Series; a frame of level l is active at the first l of the ascending thresholds.

    Thresholding commutes with odd median filters, so everything after this works on the small integers. Series that
    never exceed the lowest threshold are left out: with many classes that is nearly all of them.
    """
    file, cls = np.nonzero(scores.max(axis=1).astype(np.float64) > thresholds[0])  # (N, C)
    level = np.searchsorted(thresholds, scores[file, :, cls].astype(np.float64), side="left")  # (S, T)
    return _Series(file, cls, level.astype(np.min_scalar_type(len(thresholds))))


def _detect(series, window, frame_hop, seconds):
    """Events of all thresholds at once. window: (C,) frames; seconds: (N,) durations. Returns _Events.

    The trick that makes this fast: the events of one series at all thresholds form a tree. Lowering the threshold only
    lets events begin, grow and merge, so a series of T frames has at most T different events, each of which lives over
    one range of thresholds: from the higher of the two frames just outside it up to its own lowest frame. Finding each
    event once, with its range, replaces decoding at every threshold.
    """
    level = _smooth(series.level, window[series.cls])
    S, T = level.shape
    times = np.arange(T + 1) * frame_hop
    level[times[:-1] >= seconds[series.file][:, None]] = 0  # ours: nothing begins after the clip's end
    flat = np.zeros(S * (T + 1) + 1, dtype=level.dtype)
    flat[1:].reshape(S, T + 1)[:, :T] = level  # a silent frame before, between and after the series
    start = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)  # runs of frames with equal level
    value = flat[start]
    left = _nearest_left(value, np.greater)  # nearest run that is not higher
    right = len(value) - 1 - _nearest_left(value[::-1], np.greater_equal)[::-1]  # nearest run that is lower
    run = np.flatnonzero(value[left] < value)  # of several equal minima of one event, the first stands for it
    left, right = left[run], right[run]
    owner, begin = np.divmod(start[left + 1] - 1, T + 1)
    end = (start[right] - 1) % (T + 1)
    file = series.file[owner]
    first = np.maximum(value[left], value[right]).astype(np.int64)
    return _Events(file, series.cls[owner], times[begin], np.minimum(times[end], seconds[file]), first,
                   value[run].astype(np.int64))


def _nearest_left(value, passes):
    """For every positive value the index of the nearest one to its left that it does not pass, by jumping from one
    candidate to the candidate's own nearest."""
    nearest = np.arange(len(value)) - 1
    todo = np.flatnonzero(value)
    while len(todo):
        todo = todo[passes(value[nearest[todo]], value[todo])]
        nearest[todo] = nearest[nearest[todo]]
    return nearest


def scores_to_events(scores, filenames, classes, threshold, window, frame_hop, durations=None):
    """Threshold, median-filter and list what remains as events, in the order of files, classes and onsets.

    scores: (N, T, C); threshold: float or (C,); window: odd number of frames or (C,); frame_hop: seconds;
    durations: filename -> seconds, to which events are clipped (10 s for a file it lacks).
    """
    scores = _checked(scores, filenames, classes)
    active = scores > np.asarray(threshold, dtype=np.float64)
    found = _detect(_quantise(active, np.array([0.5])), _per_class(window, len(classes)), frame_hop,
                    _seconds(filenames, durations))
    return [(filenames[f], onset, offset, classes[c]) for f, c, onset, offset in
            zip(found.file.tolist(), found.cls.tolist(), found.onset.tolist(), found.offset.tolist())]


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


# --- F1 ---------------------------------------------------------------------------------------------------------------

class F1(NamedTuple):
    """F1 scores in 0..1, nan where there is nothing to find, and the counts behind them, (C,) each."""
    micro: float
    macro: float
    per_class: dict
    n_tp: np.ndarray
    n_fp: np.ndarray
    n_fn: np.ndarray


def _f1(n_tp, n_sys, n_ref):
    """2 P R / (P + R): 0 without true positives, nan without reference."""
    precision, recall = n_tp / np.maximum(n_sys, 1), n_tp / np.maximum(n_ref, 1)
    return np.where(n_ref > 0, 2 * precision * recall / np.where(n_tp > 0, precision + recall, 1), np.nan)


def _report(n_tp, n_sys, n_ref, classes):
    """Counts per class -> F1. Counts beyond the class list, of labels outside it, enter micro only."""
    C = len(classes)
    per_class = _f1(n_tp, n_sys, n_ref)[:C]
    counted = per_class[~np.isnan(per_class)]
    return F1(micro=float(_f1(n_tp.sum(), n_sys.sum(), n_ref.sum())),
              macro=float(counted.mean()) if len(counted) else float("nan"),
              per_class=dict(zip(classes, per_class.tolist())),
              n_tp=n_tp[:C], n_fp=(n_sys - n_tp)[:C], n_fn=(n_ref - n_tp)[:C])


def clip_f1(reference, estimated):
    """Clip-based F1 of tags, (N, C) bool each. Boes 2022, Sec. 3.1.4: CBF1 is its .micro.

    There are no class names here, so .per_class is keyed by column."""
    reference, estimated = np.asarray(reference, dtype=bool), np.asarray(estimated, dtype=bool)
    if reference.shape != estimated.shape or reference.ndim != 2:
        raise ValueError(f"tags of shapes {reference.shape} and {estimated.shape}: needs (clips, classes) twice")
    return _report((reference & estimated).sum(axis=0), estimated.sum(axis=0), reference.sum(axis=0),
                   range(reference.shape[1]))


def segment_f1(reference, estimated, classes, durations=None, time_resolution=1.0):
    """Segment-based F1. Boes 2022, Sec. 3.1.4: SBF1 is its .micro with segments of 1 s.

    reference, estimated: events; time_resolution: seconds. With durations (filename -> seconds), segments after the
    end of a clip are cut; without, as in the DCASE baselines, they count.
    """
    ref, est, files, labels = _tables(reference, estimated, classes)
    n_segments = np.array([np.ceil((durations or {}).get(name, np.inf) / time_resolution) for name in files])
    counts = _segment_counts(ref, est, 1, len(labels), time_resolution, n_segments)
    return _report(*(n.ravel() for n in counts), classes)


def event_f1(reference, estimated, classes, t_collar=0.2, percentage_of_length=0.2):
    """Event-based F1. Boes 2022, Sec. 3.1.4: EBF1 is its .macro.

    An estimated event may be paired with a reference event of its file and class if their onsets differ by at most
    t_collar (seconds) and their offsets by at most max(t_collar, percentage_of_length * length of the reference event).
    """
    ref, est, _, labels = _tables(reference, estimated, classes)
    counts = _event_counts(ref, est, 1, len(labels), t_collar, percentage_of_length)
    return _report(*(n.ravel() for n in counts), classes)


def _tables(reference, estimated, classes):
    """-> reference and estimated as _Events, index of the files, index of the labels (those outside classes last)."""
    reference, estimated = _columns(reference), _columns(estimated)
    _mention(reference[3] + estimated[3], classes, "events outside the class list, counted in micro F1 only")
    files = _index(chain(reference[0], estimated[0]))
    labels = _index(chain(classes, reference[3], estimated[3]))
    return _to_arrays(reference, files, labels), _to_arrays(estimated, files, labels), files, labels


def _event_counts(ref, est, K, C, t_collar=0.2, percentage_of_length=0.2):
    """n_tp (C, K), n_sys (C, K), n_ref (C, 1) at K operating points."""
    near = t_collar + 1e-3  # s; a little wide, the exact comparison follows
    group, onsets = est.file * C + est.cls, _key(ref.file * C + ref.cls, ref.onset)
    e, r = _ranges(np.searchsorted(onsets, _key(group, est.onset - near)),
                   np.searchsorted(onsets, _key(group, est.onset + near)))
    collar = np.maximum(t_collar, percentage_of_length * (ref.offset - ref.onset))[r]
    hit = (np.abs(ref.onset[r] - est.onset[e]) <= t_collar) & (np.abs(ref.offset[r] - est.offset[e]) <= collar)
    e, r = e[hit], r[hit]
    pair, k = _ranges(est.first[e], est.stop[e])
    matched, k = np.divmod(_matched(r[pair] * K + k, e[pair] * K + k), K)
    n_tp = np.bincount(ref.cls[matched] * K + k, minlength=C * K).reshape(C, K)
    n_sys = _alive(est.cls * K + est.first, est.cls * K + est.stop, C * K).reshape(C, K)
    return n_tp, n_sys, np.bincount(ref.cls, minlength=C)[:, None]


def _matched(a, b):
    """The members of a that a maximum matching of the pairs (a[i], b[i]) uses."""
    alone = (np.bincount(a)[a] == 1) & (np.bincount(b)[b] == 1)  # nearly all pairs have no rival
    rows, i = np.unique(a[~alone], return_inverse=True)
    columns, j = np.unique(b[~alone], return_inverse=True)
    graph = csr_array((np.ones(len(i), dtype=bool), (i, j)), shape=(len(rows), len(columns)))
    return np.append(a[alone], rows[maximum_bipartite_matching(graph, perm_type="column") >= 0])


def _segment_counts(ref, est, K, C, time_resolution, n_segments):
    """n_tp (C, K), n_sys (C, K), n_ref (C, 1) at K operating points. n_segments: (files,), where files are cut."""
    S = int(max(ref.offset.max(initial=0), est.offset.max(initial=0)) / time_resolution) + 2  # more than any file has

    def cells(table):
        i, segment = _ranges(np.floor(table.onset / time_resolution).astype(np.int64),
                             np.ceil(table.offset / time_resolution).astype(np.int64))
        inside = segment < n_segments[table.file[i]]
        return i[inside], ((table.file * C + table.cls)[i] * S + segment)[inside]

    truth = _distinct(cells(ref)[1])
    i, cell = cells(est)
    # events only grow while the threshold falls, so a segment is active below the highest stop of all its events
    cell, stop = np.divmod(_distinct(cell * (K + 1) + est.stop[i]), K + 1)
    highest = np.append(cell[1:] != cell[:-1], True)[:len(cell)]
    cell, stop = cell[highest], stop[highest]
    slot = cell // S % C * K
    hit = np.isin(cell, truth, assume_unique=True)
    n_tp, n_sys = (_alive(slot[rows], slot[rows] + stop[rows], C * K).reshape(C, K) for rows in (hit, slice(None)))
    return n_tp, n_sys, np.bincount(truth // S % C, minlength=C)[:, None]


# --- PSDS -------------------------------------------------------------------------------------------------------------
# Symbols of Bilen et al. 2020: d a detection, r a ground truth event, c and k classes.

def psds(ground_truth, detections, durations, classes, *, dtc_threshold, gtc_threshold, cttc_threshold, alpha_ct,
         alpha_st, max_efpr, ct_divisor="C-1"):
    """Polyphonic sound detection score (Bilen et al. 2020) in 0..1; nan without ground truth. Call it with **PSDS1.

    ground_truth: events; detections: a list of event lists, one per operating point; durations: filename -> seconds of
    every clip; max_efpr: false positives per hour; ct_divisor: "C-1" as psds_eval 0.5, "C" as its older versions.
    """
    found = _columns(list(chain.from_iterable(detections)))
    K, point = len(detections), np.repeat(np.arange(len(detections)), [len(events) for events in detections])
    ref, files, world = _truth(ground_truth, durations, classes, found[0])
    det = _disjoint(found, files, classes, "detections", point)
    points = _points(ref, det, np.arange(len(classes) + 1) * K, world, dtc_threshold, gtc_threshold, cttc_threshold,
                     alpha_ct, max_efpr, ct_divisor)
    return _area(*_roc(points, ref, len(classes)), alpha_st, max_efpr)


def psds_from_scores(scores, filenames, ground_truth, durations, classes, frame_hop, window=1,
                     thresholds=THRESHOLDS_50, *, alpha_st, max_efpr, **criteria):
    """psds of the events that scores_to_events finds at each of the thresholds, without listing them.

    scores: (N, T, C); frame_hop: seconds; window: odd number of frames or (C,); the rest as for psds.
    """
    scores, thresholds = _checked(scores, filenames, classes), np.unique(np.asarray(thresholds, dtype=np.float64))
    ref, _, world = _truth(ground_truth, durations, classes, filenames)
    det = _detect(_quantise(scores, thresholds), _per_class(window, len(classes)), frame_hop,
                  _seconds(filenames, durations))
    points = _points(ref, det, np.arange(len(classes) + 1) * len(thresholds), world, max_efpr=max_efpr, **criteria)
    return _area(*_roc(points, ref, len(classes)), alpha_st, max_efpr)


def exact_psds_from_scores(scores, filenames, ground_truth, durations, classes, frame_hop, window=1, *, alpha_st,
                           max_efpr, **criteria):
    """psds_from_scores with every threshold that makes a difference: each class has all its scores as thresholds.

    Goes class by class, because every class has other operating points. Not comparable with 50 thresholds.
    """
    scores, C = _checked(scores, filenames, classes), len(classes)
    ref, _, world = _truth(ground_truth, durations, classes, filenames)
    window, seconds, points = _per_class(window, C), _seconds(filenames, durations), []
    for c in range(C):
        values = np.unique(scores[:, :, c].astype(np.float64))
        thresholds = np.append(-np.inf, values[:-1])  # score > threshold then means score >= value
        series = _quantise(scores[:, :, c:c + 1], thresholds)
        det = _detect(series._replace(cls=series.cls + c), window, frame_hop, seconds)
        slots = np.where(np.arange(C + 1) > c, len(thresholds), 0)
        points.append(_points(ref, det, slots, world, max_efpr=max_efpr, **criteria))
    return _area(*_roc(map(np.concatenate, zip(*points)), ref, C), alpha_st, max_efpr)


def _truth(ground_truth, durations, classes, names):
    """-> ground truth as _Events; index of all files, names first; their durations, 0 where there is none."""
    truth = _columns(ground_truth)
    _mention(truth[3], classes, "ground truth events outside the class list, ignored by PSDS")
    files = _index(chain(names, durations, truth[0]))
    _mention(list(files), durations, "files without duration, where PSDS counts no false positives")
    world = np.array([durations.get(name, 0.0) for name in files], dtype=np.float64)
    if not world.sum() > 0:
        raise ValueError("durations: needs the seconds of every clip, to count false positives per hour")
    return _disjoint(truth, files, classes, "ground truth events"), files, world


def _disjoint(columns, files, classes, what, point=None):
    """Columns -> sorted _Events without zero-length ones, overlapping ones of a class replaced by their union."""
    table = _to_arrays(columns, files, _index(classes), point)
    table = table.take(table.onset < table.offset)
    if not len(table.file):
        return table
    group = _group(table, len(files), len(classes))
    latest = np.maximum.accumulate(_key(group, table.offset))  # the latest offset of the group so far
    begins = np.append(True, _key(group, table.onset)[1:] >= latest[:-1])
    start, union = np.flatnonzero(begins), np.cumsum(begins) - 1
    onset, offset = table.onset[start][union], np.maximum.reduceat(table.offset, start)[union]
    same = np.logical_and.reduceat((table.onset == onset) & (table.offset == offset), start)[union]
    keep = begins | same  # ours: identical events stay separate, as in psds_eval
    if not keep.all():
        n_merged = np.count_nonzero(~keep)
        warnings.warn(f"PSDS merged {n_merged} {what} with overlapping ones of their class", stacklevel=3)
    return table._replace(offset=offset).take(keep)


def _intersections(group, onset, offset, ref, ref_group):
    """All pairs of an interval and a ref event of its group that share time -> (interval, ref event, seconds shared).

    Within a group the ref events follow one another without overlap, so the partners of an interval are one range:
    from the first ref event that ends after its onset to the last one that begins before its offset.
    """
    i = np.flatnonzero(np.isin(group, ref_group, kind="table"))
    d, r = _ranges(np.searchsorted(_key(ref_group, ref.offset), _key(group[i], onset[i]), side="right"),
                   np.searchsorted(_key(ref_group, ref.onset), _key(group[i], offset[i]), side="left"))
    d = i[d]
    return d, r, np.minimum(offset[d], ref.offset[r]) - np.maximum(onset[d], ref.onset[r])


def _reaches(share, threshold):
    return (share > 0) & (share >= threshold)


def _points(ref, det, slots, world, dtc_threshold, gtc_threshold, cttc_threshold, alpha_ct, max_efpr,
            ct_divisor="C-1"):
    """The points of the PSD-ROC of all classes that raise it -> class, eFPR (per hour), TP.

    The operating points of all classes stand in one row of slots, class c has slots[c] to slots[c + 1]. What a single
    detection is (DTC, false positive, cross-trigger) does not depend on the others, so it is found out once, and counts
    at all slots where the detection exists. world: (files,) durations in seconds.
    """
    C, n = len(slots) - 1, slots[-1]
    det_length, ref_length = det.offset - det.onset, ref.offset - ref.onset
    first, stop = slots[det.cls] + det.first, slots[det.cls] + det.stop

    # DTC: d passes if the ground truth of its class covers enough of it, sum of |d n r| / |d| >= dtc_threshold
    d, r, shared = _intersections(det.file * C + det.cls, det.onset, det.offset, ref, ref.file * C + ref.cls)
    dtc = _reaches(np.bincount(d, shared / det_length[d], len(det_length)), dtc_threshold)

    # GTC: r is a true positive where detections that pass the DTC cover enough of it, sum of |d n r| / |r|
    d, r, shared = d[dtc[d]], r[dtc[d]], shared[dtc[d]]
    tp = _alive(*_covered(r, shared / ref_length[r], first[d], stop[d], n, gtc_threshold), n)

    # FP: d fails the DTC and lies, at least partly, within its clip
    fp = ~dtc & (det.onset < world[det.file])
    fpr = _alive(first[fp], stop[fp], n) * 3600 / world.sum()  # per hour
    efpr = fpr
    if alpha_ct:
        # CTTC: d, failing the DTC, triggers class k if the ground truth of k covers enough of it
        in_use = np.append(0, np.cumsum(fpr <= max_efpr))  # no need to look where fpr is too high already
        failing = np.flatnonzero(~dtc & (in_use[first] < in_use[stop]))
        d, k = _cross_triggers(det.take(failing), ref, C, cttc_threshold)
        rate = 3600 / np.bincount(ref.cls, ref_length, C)[k]  # per hour of ground truth of class k
        ctr = _alive(first[failing[d]], stop[failing[d]], n, rate)
        n_classes = len(_distinct(ref.cls))
        efpr = fpr + alpha_ct * ctr / {"C-1": max(n_classes - 1, 1), "C": n_classes}[ct_divisor]

    use = (efpr <= max_efpr) & (tp > 0)
    return _rising(np.repeat(np.arange(C), np.diff(slots))[use], efpr[use], tp[use])


def _covered(r, share, first, stop, n, threshold):
    """The stretches of slots where the shares of ref event r reach the threshold -> slot of r's first, its stop."""
    first, stop = r * (n + 1) + first, r * (n + 1) + stop
    edge = _distinct(np.append(first, stop))  # the sum for r changes nowhere else
    pair, stretch = _ranges(np.searchsorted(edge, first), np.searchsorted(edge, stop))
    found = np.flatnonzero(_reaches(np.bincount(stretch, share[pair], len(edge)), threshold))
    return edge[found] % (n + 1), edge[found + 1] % (n + 1)


def _cross_triggers(det, ref, C, cttc_threshold):
    """-> (detection, the other class that it triggers), every such pair."""
    ref_group = ref.file * C + ref.cls
    groups = _distinct(ref_group)
    d, g = _ranges(np.searchsorted(groups, det.file * C), np.searchsorted(groups, (det.file + 1) * C))
    other = groups[g] % C != det.cls[d]
    d, group = d[other], groups[g[other]]
    i, _, shared = _intersections(group, det.onset[d], det.offset[d], ref, ref_group)
    hit = _reaches(np.bincount(i, shared / (det.offset - det.onset)[d[i]], len(d)), cttc_threshold)
    return d[hit], group[hit] % C


def _rising(cls, efpr, tp):
    """Points in the order of class and eFPR, without those that find no more than a point before them."""
    order = np.lexsort((-tp, efpr, cls))
    cls, efpr, tp = cls[order], efpr[order], tp[order]
    floor = cls * (tp.max(initial=0) + 1)  # makes one running maximum start anew with every class
    rises = floor + tp > np.maximum(floor, np.append(0, np.maximum.accumulate(floor + tp)[:-1])[:len(tp)])
    return cls[rises], efpr[rises], tp[rises]


def _roc(points, ref, C):
    """PSD-ROC of every class -> eFPR axis (X,), TPR (C, X) that holds from there on; nan for a class without ref."""
    cls, efpr, tp = points
    n_ref = np.bincount(ref.cls, minlength=C)
    x = np.unique(np.append(0.0, efpr))
    tpr = np.zeros((C, len(x)))
    tpr[cls, np.searchsorted(x, efpr)] = tp / n_ref[cls]
    tpr[n_ref == 0] = np.nan
    return x, np.maximum.accumulate(tpr, axis=1)


def _area(x, tpr, alpha_st, max_efpr):
    """PSDS: mean area under the effective TPR = mean - alpha_st * std over the classes, never below 0."""
    tpr = tpr[~np.isnan(tpr[:, 0])]
    if not len(tpr):
        return float("nan")
    etpr = np.maximum(tpr.mean(axis=0) - alpha_st * tpr.std(axis=0), 0)
    return float((np.diff(x, append=max_efpr) * etpr).sum() / max_efpr)


# --- tuning -----------------------------------------------------------------------------------------------------------

def tune(scores, filenames, ground_truth, durations, classes, frame_hop, metric):
    """Per class, the threshold and the median window with the best score on these data. Boes 2022, Sec. 3.1.3.

    metric: "clip", "segment" or "event": the class's own F1; "psds1" or "psds2": the area under the class's own
    PSD-ROC. scores: (N, T, C), but (N, C) clip scores for "clip", whose windows are all 1.
    Returns thresholds (C,), which is None for PSDS with its fixed thresholds, and windows (C,) int.
    A class without ground truth gets threshold 0.5 and window 1.
    """
    scores, C = _checked(scores, filenames, classes, 2 if metric == "clip" else 3), len(classes)
    if metric in ("psds1", "psds2"):
        criteria = PSDS1 if metric == "psds1" else PSDS2
        return None, _tune_psds(scores, filenames, ground_truth, durations, classes, frame_hop, **criteria)
    truth = _columns(ground_truth)
    files = _index(chain(filenames, truth[0]))
    ref = _to_arrays(truth, files, _index(classes))
    if metric == "clip":
        tags = _tags(ref, len(files), C)[:len(filenames), :, None]
        active = scores.astype(np.float64)[:, :, None] > TUNING_THRESHOLDS  # (N, C, K)
        f1 = _f1((active & tags).sum(axis=0), active.sum(axis=0), tags.sum(axis=0))[:, None]  # (C, 1, K)
    elif metric in ("event", "segment"):
        K, never = len(TUNING_THRESHOLDS), np.full(len(files), np.inf)
        tables = _for_each_window(scores, TUNING_THRESHOLDS, frame_hop, _seconds(filenames, durations))
        f1 = np.stack([_f1(*(_event_counts(ref, det, K, C) if metric == "event" else
                             _segment_counts(ref, det, K, C, 1.0, never))) for det in tables], axis=1)  # (C, W, K)
    else:
        raise ValueError(f"metric {metric!r}: needs clip, segment, event, psds1 or psds2")
    order = np.argsort(np.abs(np.arange(1, 10) - 5), kind="stable")  # ours: 0.5 first, then 0.4, 0.6, 0.3 ...
    best = np.nan_to_num(f1[:, :, order]).reshape(C, -1).argmax(axis=1)  # the first of equals
    return TUNING_THRESHOLDS[order][best % len(order)], TUNING_WINDOWS[best // len(order)]


def _for_each_window(scores, thresholds, frame_hop, seconds):
    series = _quantise(scores, thresholds)
    return (_detect(series, np.full(scores.shape[-1], w), frame_hop, seconds) for w in TUNING_WINDOWS)


def _tune_psds(scores, filenames, ground_truth, durations, classes, frame_hop, *, alpha_st, max_efpr, **criteria):
    # alpha_st plays no part: it punishes differences between classes
    ref, _, world = _truth(ground_truth, durations, classes, filenames)
    slots, areas = np.arange(len(classes) + 1) * len(THRESHOLDS_50), []
    for det in _for_each_window(scores, THRESHOLDS_50, frame_hop, _seconds(filenames, durations)):
        x, tpr = _roc(_points(ref, det, slots, world, max_efpr=max_efpr, **criteria), ref, len(classes))
        areas.append(np.nan_to_num(tpr) @ np.diff(x, append=max_efpr))
    return TUNING_WINDOWS[np.argmax(areas, axis=0)]


def _tags(table, n_files, n_classes):
    """(files, C) bool: the class has an event in the file."""
    tags = np.zeros((n_files, n_classes), dtype=bool)
    tags[table.file, table.cls] = True
    return tags


# --- ranking metrics (Fayek 2020) -------------------------------------------------------------------------------------

def mean_average_precision(targets, scores):
    """Mean average precision over the classes with a positive clip. targets: (N, C) bool; scores: (N, C)."""
    targets, scores = np.asarray(targets, dtype=bool), np.asarray(scores, dtype=np.float64)
    values = [_average_precision(t, s) for t, s in zip(targets.T, scores.T) if t.any()]
    return float(np.mean(values)) if values else float("nan")


def _average_precision(target, score):
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # clips of equal score are retrieved together
    n_tp = np.cumsum(target[order])[last]
    return np.sum(np.diff(n_tp, prepend=0) * n_tp / (last + 1)) / n_tp[-1]


def mean_auc(targets, scores):
    """Mean area under the ROC over the classes with both positive and negative clips. targets, scores: (N, C)."""
    targets, scores = np.asarray(targets, dtype=bool), np.asarray(scores, dtype=np.float64)
    values = [_auc(np.sort(s[~t]), s[t]) for t, s in zip(targets.T, scores.T) if t.any() and not t.all()]
    return float(np.mean(values)) if values else float("nan")


def _auc(negative, positive):
    """Part of the (positive, negative) pairs in the right order; equal scores are half right."""
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return below.mean() / (2 * len(negative))


# --- the command ------------------------------------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser(description="Scores of a table of events against a reference table (TSV with the "
                                     "DCASE columns). All files and labels named in either table count.")
    parser.add_argument("reference", metavar="REFERENCE.tsv", nargs="?")
    parser.add_argument("estimated", metavar="ESTIMATED.tsv", nargs="?")
    parser.add_argument("--operating-points", metavar="DIR", type=Path,
                        help="folder of TSV files, one for each threshold: adds PSDS1 and PSDS2")
    parser.add_argument("--durations", metavar="D.tsv", help="filename and duration of all clips, for PSDS (else 10 s)")
    parser.add_argument("--ctr-divisor", choices=("C-1", "C"), default="C-1", help="PSDS2: mean of cross-trigger rates "
                        "over the other classes (psds_eval 0.5, default) or over all (its older versions, DCASE 2021)")
    parser.add_argument("--per-class", action="store_true", help="add the F1 scores of each class")
    parser.add_argument("--json", action="store_true", help="print JSON, with null where a score is undefined")
    parser.add_argument("--benchmark", action="store_true", help="time this file, and its peers where installed")
    args = parser.parse_args()
    if args.benchmark:
        return benchmark()
    if not args.estimated:
        parser.error("give REFERENCE.tsv and ESTIMATED.tsv, or --benchmark")
    if not args.operating_points and (args.durations or args.ctr_divisor != "C-1"):
        parser.error("--durations and --ctr-divisor concern PSDS: add --operating-points DIR")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            scores, per_class = _score_files(args)
        except (ValueError, OSError) as error:
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            print(f"metrics.py: {reason}", file=sys.stderr)
            sys.exit(2)
    for note in dict.fromkeys(str(note.message) for note in notes):
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        scores |= {"per_class": per_class} if args.per_class else {}
        print(json.dumps(_without_nan(scores), indent=1))
        return
    for name, value in scores.items():
        print(f"{name:<32}{value:>9.4f}" if isinstance(value, float) else f"{name:<32}{value:>9}")
    if args.per_class:
        print(f"\n{'':<32}" + "".join(f"{name:>12}" for name in per_class))
        for label in per_class["event_f1"]:
            print(f"{label:<32}" + "".join(f"{f1[label]:>12.4f}" for f1 in per_class.values()))


def _score_files(args):
    """-> all scores by name; F1 name -> F1 by class."""
    reference, names = _read_table(args.reference)
    estimated, estimated_names = _read_table(args.estimated, zero_length=True)
    reference_columns, columns = _columns(reference), _columns(estimated)
    classes, files = sorted({*reference_columns[3], *columns[3]}), _index(chain(names, estimated_names))
    what = f"events of {args.estimated}"
    _mention(columns[0], names, f"{what} in files that {args.reference} does not name, false positives of F1")
    _mention(columns[3], reference_columns[3], f"{what} with labels that {args.reference} lacks, false positives of F1")
    _mention([name for name, onset, offset, _ in estimated if onset == offset], (),
             f"{what} of length 0, events for event F1 and none for PSDS")
    clip = clip_f1(*(_tags(_to_arrays(c, files, _index(classes)), len(files), len(classes))
                     for c in (reference_columns, columns)))
    f1 = {"clip_f1": clip._replace(per_class=dict(zip(classes, clip.per_class.values()))),
          "segment_f1": segment_f1(reference, estimated, classes), "event_f1": event_f1(reference, estimated, classes)}
    scores = {"files": len(files), "reference_events": len(reference), "estimated_events": len(estimated)}
    scores |= {f"{name}_{mean}": getattr(value, mean) for name, value in f1.items() for mean in ("micro", "macro")}
    if args.operating_points:
        paths = sorted(args.operating_points.glob("*.tsv"))
        if not paths:
            raise ValueError(f"{args.operating_points}: no .tsv file in this folder; give one for each threshold")
        points = [read_events(path, zero_length=True) for path in paths]
        labels = [label for events in points for *_, label in events]
        _mention(labels, reference_columns[3], f"events of {args.operating_points} with labels that {args.reference} "
                 "lacks, ignored by PSDS")
        durations = read_durations(args.durations) if args.durations else dict.fromkeys(files, CLIP_SECONDS)
        scores |= {"operating_points": len(points), "hours": sum(durations.values()) / 3600,
                   "ctr_divisor": args.ctr_divisor}
        scores |= {name: psds(reference, points, durations, classes, **criteria, ct_divisor=args.ctr_divisor)
                   for name, criteria in (("psds1", PSDS1), ("psds2", PSDS2))}
    return scores, {name: value.per_class for name, value in f1.items()}


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    return None if value != value else value


# --- the benchmark ----------------------------------------------------------------------------------------------------

def benchmark():
    """Print times (median of 5), beside those of sed_eval, psds_eval and sed_scores_eval where they can be imported."""
    hop = 8 * 313 / 16000  # s
    scores, files, truth, classes = _made_up(1168, 10, hop)
    durations, both = dict.fromkeys(files, CLIP_SECONDS), (PSDS1, PSDS2)
    points = [scores_to_events(scores, files, classes, t, 1, hop) for t in THRESHOLDS_50]
    data, tenfold, large = ((x, f, events, dict.fromkeys(f, CLIP_SECONDS), c, hop) for x, f, events, c in
                            ((scores, files, truth, classes), _made_up(11680, 10, hop), _made_up(15000, 400, hop)))
    print(f"{len(files)} clips of 64 frames, 10 classes: {len(truth)} events, {sum(map(len, points))} detections")
    print(f"{'':<58}{'ours':>9}{'peer':>9}{'difference':>12}")
    for work, ours, peer in (
            ("event and segment F1, one threshold | sed_eval",
             lambda: [event_f1(truth, points[25], classes).macro, segment_f1(truth, points[25], classes).micro],
             lambda: _sed_eval(truth, points[25], classes)),
            ("PSDS1 and PSDS2 from events, 50 thresholds | psds_eval",
             lambda: [psds(truth, points, durations, classes, **p) for p in both],
             lambda: _psds_eval(truth, points, durations, both)),
            ("PSDS1 and PSDS2 from scores, 50 thresholds",
             lambda: [psds_from_scores(*data, **p) for p in both], None),
            ("the same, ten times as many clips",
             lambda: [psds_from_scores(*tenfold, **p) for p in both], None),
            ("exact PSDS1 and PSDS2 from scores | sed_scores_eval",
             lambda: [exact_psds_from_scores(*data, **p) for p in both], lambda: _sed_scores_eval(*data, both)),
            ("tuning of event F1: 9 thresholds, 16 windows, 10 classes", lambda: tune(*data, "event"), None),
            ("tuning of the windows of PSDS2", lambda: tune(*data, "psds2"), None),
            ("PSDS2 from scores, 15,000 clips, 400 classes", lambda: psds_from_scores(*large, **PSDS2), None)):
        seconds, value = _timed(ours)
        print(f"{work:<58}{seconds:>8.3f}s", end="")
        try:
            if peer:
                peer_seconds, peer_value = _timed(peer)
                print(f"{peer_seconds:>8.3f}s{np.abs(np.subtract(value, peer_value)).max():>12.1e}", end="")
        except ImportError as error:
            print(f"  {error.name} is not installed", end="")
        print(flush=True)


def _timed(work):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[2], value


def _made_up(N, C, hop, T=64):
    """Smooth random scores of six classes per clip, of which 2.5 occur -> scores, files, ground truth, classes."""
    rng = np.random.default_rng(0)
    file, cls = np.repeat(np.arange(N), 6), rng.integers(0, C, 6 * N)
    activity = gaussian_filter1d(rng.normal(size=(6 * N, T)), 3, axis=1) * 8
    noise = gaussian_filter1d(rng.normal(size=(6 * N, T)), 2, axis=1) * 3
    scores, active = np.zeros((N, T, C), dtype=np.float32), np.zeros((N, T, C), dtype=bool)
    scores[file, :, cls] = 1 / (1 + np.exp(2 - activity - noise))
    occurs = rng.random(6 * N) < 2.5 / 6
    active[file[occurs], :, cls[occurs]] = activity[occurs] > 2
    files, classes = [f"{i}.wav" for i in range(N)], [f"class {i}" for i in range(C)]
    on_frames = scores_to_events(active, files, classes, 0.5, 1, hop)
    shifts = rng.random((len(on_frames), 2)) * hop / 2  # true times fall between frames
    truth = [(name, onset + a, offset + b, label) for (name, onset, offset, label), (a, b) in
             zip(on_frames, shifts.tolist())]
    return scores, files, truth, classes


def _sed_eval(reference, estimated, classes):
    import sed_eval
    event = sed_eval.sound_event.EventBasedMetrics(classes, t_collar=0.2, percentage_of_length=0.2,
                                                   empty_system_output_handling="zero_score")
    segment = sed_eval.sound_event.SegmentBasedMetrics(classes, time_resolution=1.0)
    tables = ({}, {})
    for table, events in zip(tables, (reference, estimated)):
        for name, onset, offset, label in events:
            table.setdefault(name, []).append(dict(zip(EVENT_COLUMNS, (name, onset, offset, label))))
    for name in tables[0] | tables[1]:
        for metric in (event, segment):
            metric.evaluate(tables[0].get(name, []), tables[1].get(name, []))
    return [event.results_class_wise_average_metrics()["f_measure"]["f_measure"],
            segment.results_overall_metrics()["f_measure"]["f_measure"]]


def _psds_eval(truth, points, durations, both):
    import pandas
    import psds_eval
    values = []
    for p in both:
        peer = psds_eval.PSDSEval(p["dtc_threshold"], p["gtc_threshold"], p["cttc_threshold"],
                                  ground_truth=pandas.DataFrame(truth, columns=EVENT_COLUMNS),
                                  metadata=pandas.DataFrame(durations.items(), columns=("filename", "duration")))
        for events in points:
            peer.add_operating_point(pandas.DataFrame(events, columns=EVENT_COLUMNS))
        values.append(peer.psds(p["alpha_ct"], p["alpha_st"], p["max_efpr"]).value)
    return values


def _sed_scores_eval(scores, files, truth, durations, classes, hop, both):
    from sed_scores_eval import intersection_based
    from sed_scores_eval.base_modules.scores import create_score_dataframe
    times = np.minimum(np.arange(scores.shape[1] + 1) * hop, CLIP_SECONDS)
    frames = {name: create_score_dataframe(x.astype(np.float64), times, classes) for name, x in zip(files, scores)}
    events = {name: [event[1:] for event in truth if event[0] == name] for name in files}
    both = [p if p["alpha_ct"] else p | {"cttc_threshold": None} for p in both]
    return [intersection_based.psds(frames, events, durations, **p)[0] for p in both]


if __name__ == "__main__":
    main()
