"""Clips and the classes they hold, nothing about when: what the two older systems (boes2019, fayek2020) share.

    load_tagging        the clips they learn from and are scored on
    score               one threshold for micro F1; mean average precision, mean area under the ROC
    mean_and_deviation, read_report ..      what their commands have in common

    classes, parts = load_tagging("data/toy-tagging", hear=log_mel_of, visual="openl3", see=mean_picture, cache=folder)

The folder is laid out as for the 2022 system (README), so that all systems can be compared on the same clips. Training
clips are those of the strong and the weak list, with their clip labels alone. A folder may have fewer lists, and
simpler ones: metadata/train/weak.tsv, validation/validation.tsv and eval/public.tsv are enough, each may have the
columns `filename, event_labels`. So one lays out the 17 classes of DCASE 2017 task 4, or AudioSet.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extras import plumbing  # before torch, see there
from extras.plumbing import InputError

import torch  # isort: skip

import features
import metrics
from extras import toy
from features import PARTITIONS, read_lists, read_visual, recording, visual_files

LISTS = {"training": ("strong", "weak"), "validation": ("validation",), "public": ("public",)}  # part: its lists
THRESHOLDS = np.arange(1, 100) / 100  # ours: those tried for micro F1


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
    statistics: dict = None  # "audio", "video" -> mean, deviation of the last dimension over training clips, (2, D)

    def clips(self, with_video=False):
        """Indices of all clips, or of those with video"""
        return np.flatnonzero(self.present) if with_video else np.arange(len(self.filenames))

    def inputs(self, modality, clips, device):
        """Standardised audio or video of some clips, (n, ...); ours: a clip without video shows the mean"""
        mean, deviation = self.statistics[modality]
        values = (getattr(self, modality)[clips] - mean) / deviation
        if modality == "video":
            values[~self.present[clips]] = 0
        return torch.from_numpy(values).to(device)


def load_tagging(root, hear, visual, see, cache, sound="audio", log=print):
    """Read a data set -> sorted class names, dict of Part: training, validation, public.

    hear: function of a sound file's path -> array (..., D), of one shape and type for all clips
    visual: name of a folder under root/visual, or None for sound alone; see: function of its vectors (64, D) -> array
    sound: "audio", or a folder under root with a .npy file for each clip, whose path `hear` gets then
    cache: folder; log: receives a line per part
    A clip without sound is left out and counted. Raises InputError for anything wrong.
    """
    root, cache = Path(root), Path(cache)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; --data wants one with the sub-folders audio and metadata")
    if sound != "audio" and not (root / sound).is_dir():
        raise InputError(f"{root / sound}: no such folder; extras/README.md says how to make it, or name another")
    classes, parts = read_parts(root, sound, log)
    folder, example = root / "visual" / (visual or ""), None
    files = visual_files(folder) if visual else {}
    plumbing.check_stems([path for part in parts.values() for path in part.paths], files, recording)
    for name, part in parts.items():
        part.audio = gather(hear, f"{Path(sound).name} of {name}", part.sounds, hear, cache, log)
        part.present, count = np.zeros(len(part.sounds), bool), ""
        if visual:
            paths = [files.get(plumbing.stem(f)) for f in part.filenames]
            nothing = f"{folder}: no vectors of finite numbers for any clip of {name} with a label"
            if not any(paths):
                raise InputError(f"{nothing}; make them, or name another stream")
            first = [read_visual(path) for path in [*filter(None, paths)][:9]] if example is None else [example]
            example = plumbing.most_alike(first)
            part.video = gather(
                see, f"{visual} of {name}", paths, lambda path: see(read_visual(path, example)), cache, log
            )
            finite = np.array([plumbing.usable(vectors) for vectors in part.video])
            plumbing.name_unusable(name, visual, paths, finite, log)
            part.present = finite & np.array([path is not None for path in paths])
            if not part.tags[part.present].any():
                raise InputError(f"{nothing}; make them anew, or name another stream")
            count = f", {part.present.sum():5d} with {visual}"
        log(f"       {name:10} {part.listed:5d} listed, {len(part.filenames):5d} found{count}")
    # ours: inputs are standardised by dimension, or mel bin, over the training clips, video over those that have it
    train = parts["training"]
    moments = {"audio": mean_and_std(train.audio, np.ones(len(train.sounds), bool))}
    if visual:
        moments["video"] = mean_and_std(train.video, train.present)
    for part in parts.values():
        part.statistics = moments
    return classes, parts


def mean_and_std(array, clips):
    """Over the rows of some clips, of an array (N, ..., D) -> mean, deviation, (2, D) float32; clips: (N,) bool"""
    rows = array.reshape(len(array), -1, array.shape[-1])
    return features.mean_and_std([rows], [np.broadcast_to(clips[:, None], rows.shape[:2])])


def identity(classes, parts, with_video=False):
    """Hash of the clips that a run uses, all or those with video, and of their labels"""
    digest = hashlib.sha256(repr(classes).encode())
    for part in parts.values():
        clips = part.clips(with_video)
        digest.update(repr([part.filenames[i] for i in clips]).encode() + part.tags[clips].tobytes())
    return digest.hexdigest()[:16]


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
    plumbing.name_untaught({"training": parts["training"].tags}, classes, log)
    if sound != "audio":
        plumbing.check_stems([path for part in parts.values() for path in part.paths], vectors, recording)
    return classes, parts


def has_clip_labels(table):
    """Does a table have the column event_labels, and no times?"""
    return b"event_labels" in table.read_bytes().split(b"\n")[0]


def gather(function, label, paths, read, cache, log):
    """read(path) of N clips, zeros where a path is None -> (N, ...), memory-mapped; from the cache once it is there.

    function: `hear` or `see`, which the cache knows by its name: it does not notice when one is edited, delete it then
    """
    cached_as = f"{function.__name__} {label}"
    example = np.asarray(read(next(filter(None, paths))))
    there = [path for path in paths if path]
    names = [path and path.name for path in paths]
    key = plumbing.fingerprint(there, features.RECIPE, cached_as, names, example.shape, example.dtype.name)

    def read_one(path):
        return (np.zeros_like(example) if path is None else read(path),)

    columns = {"array": (example.shape, example.dtype)}
    name = cached_as.replace(" ", "-")
    return plumbing.cached_table(cache, name, key, read_one, paths, columns, log, label)["array"]


# --- scores (Boes 2019, Sec. 3.2.10, 4.1; Fayek 2020, Sec. 4.2) -------------------------------------------------------


def score(tags, probabilities):
    """Of the public clips micro F1, mAP and mAUC; the threshold. Both arguments: dict of validation, public -> (N, C)

    One threshold for all classes: that with the best micro F1 on validation (Boes 2019, Sec. 3.2.10).
    """
    probabilities = {part: np.asarray(probabilities[part], np.float64) for part in ("validation", "public")}
    f1 = [metrics.clip_f1(tags["validation"], probabilities["validation"] > t).micro for t in THRESHOLDS]
    best = max(range(len(f1)), key=lambda k: (f1[k], -abs(THRESHOLDS[k] - 0.5)))  # ours: of equals next to 0.5
    return {
        "F1": metrics.clip_f1(tags["public"], probabilities["public"] > THRESHOLDS[best]).micro,
        "mAP": mean_average_precision(tags["public"], probabilities["public"]),
        "mAUC": mean_auc(tags["public"], probabilities["public"]),
        "threshold": float(THRESHOLDS[best]),
    }


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


# --- what their commands share ----------------------------------------------------------------------------------------


def mean_and_deviation(values, digits):
    """'87.1 ± 1.5': mean and standard deviation (n - 1) over runs; of one run its value"""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def read_report(path, wanted, form=()):
    """What finished runs left -> dict, or None where nothing is. InputError unless it has all that is in `wanted`.

    form: dict of what else it has, of which the types count; null in JSON is nan, a score that is not defined
    """
    if not path.exists():
        return None
    wanted = json.loads(json.dumps(wanted))
    with plumbing.foreign(path, "was not written by this program; name another --out"):
        found = plumbing.load_json(path)
        differs = [f"{key} {found[key]}, not {wanted[key]}" for key in wanted if found[key] != wanted[key]]
        found = {key: math.nan if x is None and key not in wanted else x for key, x in found.items()}
        if not differs and not all(type(found[name]) is type(example) for name, example in dict(form).items()):
            raise ValueError("other types")
    if differs:
        raise InputError(f"{path}: is of a run with {'; '.join(differs)}; give the same flags, or name another --out")
    return found


def command_line(name, description, runs):
    """-> parser with the flags that both commands have. runs: how many there are by default, in words"""
    parser = argparse.ArgumentParser(prog=f"python -m extras.{name}", description=description)
    add = parser.add_argument
    add("--data", type=folder, metavar="DIR", help="data set in the layout of extras/README.md; default: toy data")
    add("--visual", type=plumbing.folder_name, metavar="NAME", help="what is seen: a folder in DIR/visual; default: "
        "that of the paper, on toy data openl3")
    add("--runs", type=plumbing.positive, help=f"of each system, with seeds from --seed on; default: {runs}")
    add("--seed", type=plumbing.seed, default=0, help="of the first run; default: 0")
    add("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    add("--out", metavar="DIR", help=f"folder of the runs; default: runs/{name}-DATA")
    return parser  # fmt: skip


def folder(text):
    if not text:
        raise argparse.ArgumentTypeError("is empty: name a folder, or leave it out for toy data")
    return text


def begin(args, name, log):
    """What comes first -> device, folder of the data set, folder of the runs"""
    device, root = plumbing.choose_device(args.device), Path(args.data or "data/toy-tagging")
    out = Path(args.out or f"runs/{name}-{root.resolve().name}")
    plumbing.check_out(out)
    log(f"torch {torch.__version__} | {device.type}, {plumbing.threads()} | {out}")
    log(f"data   {root}")
    if not args.data:
        toy.make_toy(root, kind="tagging")
        log("       TOY DATA: these scores are not comparable with the paper. Use --data DIR for others")
    return device, root, out
