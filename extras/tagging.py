"""Clips and the classes they hold, nothing about when: what the two older systems (boes2019, fayek2020) learn from, and
ranking metrics of what they say.

    classes, parts = load_tagging("data/toy-tagging", hear=log_mel_of, visual="openl3", see=mean_picture, cache=folder)

The folder is laid out as for the 2022 system (README), so that all systems can be compared on the same clips. Training
clips are those of the strong and the weak list, with their clip labels alone. A folder may have fewer lists, and
simpler ones: metadata/train/weak.tsv, validation/validation.tsv and eval/public.tsv are enough, each may have the
columns `filename, event_labels`. So one lays out the 17 classes of DCASE 2017 task 4, or AudioSet.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import features
from extras import plumbing
from extras.plumbing import InputError
from features import PARTITIONS, read_lists, read_visual, recording, visual_files

LISTS = {"training": ("strong", "weak"), "validation": ("validation",), "public": ("public",)}  # part: its lists


@dataclass
class Part:
    """The N clips of training, validation or public whose sound is on disk"""

    listed: int
    filenames: list
    tags: np.ndarray  # (N, C) bool: the classes in each clip
    sounds: list  # N paths
    audio: np.ndarray = None  # (N, ...) what `hear` makes of each, memory-mapped
    video: np.ndarray = None  # (N, ...) what `see` makes of each clip's vectors, memory-mapped; zeros without video
    present: np.ndarray = None  # (N,) bool: the clip has video
    paths: list = None  # N, of the audio; where vectors are heard, it need not be there


def load_tagging(root, hear, visual, see, cache, sound="audio", log=print):
    """Read a data set -> sorted class names, dict of Part: training, validation, public.

    hear: function of a sound file's path -> array, of one shape and type for all clips
    visual: name of a folder under root/visual, or None for sound alone; see: function of its vectors (64, D) -> array
    sound: "audio", or a folder under root with a .npy file for each clip, whose path `hear` gets then
    cache: folder; log: receives a line per part
    A clip without sound is left out and counted. Raises InputError for anything wrong.
    """
    root, cache = Path(root), Path(cache)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; --data wants one with the sub-folders audio and metadata")
    classes, parts = read_parts(root, sound, log)
    folder, example = root / "visual" / (visual or ""), None
    files = visual_files(folder) if visual else {}
    plumbing.check_stems([path for part in parts.values() for path in part.paths], files, recording)
    for name, part in parts.items():
        part.audio = gather(f"{hear.__name__} of {name}", part.sounds, hear, cache, log)
        part.present, count = np.zeros(len(part.sounds), bool), ""
        if visual:
            paths = [files.get(plumbing.stem(f)) for f in part.filenames]
            nothing = f"{folder}: no vectors of finite numbers for any clip of {name} with a label"
            if not any(paths):
                raise InputError(f"{nothing}; make them, or name another stream")
            example = read_visual(next(filter(None, paths))) if example is None else example
            part.video = gather(
                f"{see.__name__} {visual} of {name}", paths, lambda path: see(read_visual(path, example)), cache, log
            )
            finite = np.array([np.isfinite(vectors).all() for vectors in part.video])
            part.present = finite & np.array([path is not None for path in paths])
            if not part.tags[part.present].any():
                raise InputError(f"{nothing}; make them anew, or name another stream")
            count = f", {part.present.sum():5d} with {visual}"
        log(f"       {name:10} {part.listed:5d} listed, {len(part.filenames):5d} found{count}")
    return classes, parts


def read_parts(root, sound, log=print):
    """The lists, and which of their clips are on disk -> sorted class names, dict of Part, features still empty"""
    layout = plumbing.read_layout(root, PARTITIONS, ("validation", "public"))
    vectors = {plumbing.stem(path): path for path in plumbing.files_in(root / sound).values()}
    listed = {}  # part -> for each clip of each list: (filename, labels, path of its audio, path of what is heard)
    for name, lists in LISTS.items():
        listed[name] = []
        for table, folder in [pair for partition in lists for pair in layout.get(partition, ())]:
            paths, tags, _ = read_lists("weak" if has_clip_labels(table) else "strong", [(table, folder)])
            for f, path in paths.items():
                heard = path if sound == "audio" else vectors.get(plumbing.stem(f))
                listed[name].append((f, tags[f], path, heard))
    classes = sorted(set().union(*(tags for _, tags, *_ in listed["training"])))
    found = {name: [row for row in rows if row[-1] and os.path.isfile(row[-1])] for name, rows in listed.items()}
    tests = [path for name in ("validation", "public") for _, _, path, _ in found[name]]
    kept = plumbing.not_tested([path for _, _, path, _ in found["training"]], tests, recording)
    if not kept.all():
        log(f"       training   {sum(~kept):5d} left out, the same recording is in validation or public")
        found["training"] = [row for row, keep in zip(found["training"], kept) if keep]
    parts = {}
    for name, rows in found.items():
        if unknown := sorted(set().union(*(tags for _, tags, *_ in rows)) - {*classes}):
            raise InputError(f"{root}/metadata: the class {unknown[0]!r} of {name} is in no training clip; correct it")
        filenames, labels, paths, sounds = map(list, zip(*rows)) if rows else ([], [], [], [])
        tags = np.array([[c in of_clip for c in classes] for of_clip in labels], bool)
        if not tags.any():
            listed_here = f"of {len(listed[name])} clips listed for {name}, none with a label is there"
            raise InputError(f"{root}/{sound}: {listed_here}")
        parts[name] = Part(len(listed[name]), filenames, tags, sounds, paths=paths)
    if sound != "audio":
        plumbing.check_stems([path for part in parts.values() for path in part.paths], vectors, recording)
    return classes, parts


def has_clip_labels(table):
    """Does a table have the column event_labels, and no times?"""
    return b"event_labels" in table.read_bytes().split(b"\n")[0]


def gather(label, paths, read, cache, log):
    """read(path) of N clips, zeros where a path is None -> (N, ...), memory-mapped; from the cache once it is there.

    The cache does not notice when `hear` or `see` is edited: delete it then.
    """
    example = np.asarray(read(next(filter(None, paths))))
    there = [path for path in paths if path]
    names = [path and path.name for path in paths]
    key = plumbing.fingerprint(there, features.RECIPE, label, names, example.shape, example.dtype.name)

    def read_one(path):
        return (np.zeros_like(example) if path is None else read(path),)

    columns = {"array": (example.shape, example.dtype)}
    return plumbing.cached_table(cache, label.replace(" ", "-"), key, read_one, paths, columns, log, label)["array"]


# --- ranking metrics (Fayek 2020, Sec. 4.2) ---------------------------------------------------------------------------


def mean_average_precision(targets, scores):
    """Mean average precision over the classes with a positive clip. targets: (N, C) bool; scores: (N, C)"""
    targets, scores = np.asarray(targets, dtype=bool), np.asarray(scores, dtype=np.float64)
    values = [average_precision(t, s) for t, s in zip(targets.T, scores.T) if t.any()]
    return float(np.mean(values)) if values else math.nan


def average_precision(target, score):
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # clips of equal score are retrieved together
    n_tp = np.cumsum(target[order])[last]
    return np.sum(np.diff(n_tp, prepend=0) * n_tp / (last + 1)) / n_tp[-1]


def mean_auc(targets, scores):
    """Mean area under the ROC over the classes with both positive and negative clips. targets, scores: (N, C)"""
    targets, scores = np.asarray(targets, dtype=bool), np.asarray(scores, dtype=np.float64)
    values = [auc(np.sort(s[~t]), s[t]) for t, s in zip(targets.T, scores.T) if t.any() and not t.all()]
    return float(np.mean(values)) if values else math.nan


def auc(negative, positive):
    """Part of the (positive, negative) pairs in the right order; equal scores are half right"""
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return below.mean() / (2 * len(negative))
