"""Scores of what a system found against a reference table: clip, segment, event F1 and PSDS (Boes 2022, Sec. 3.1.4).

    python -m extras.score REF.tsv EST.tsv --per-class             a table of events, or of clip labels
    python -m extras.score REF.tsv EST.tsv --operating-points P    with PSDS, of the events at many thresholds
    python -m extras.score REF.tsv runs/X                          all that a run left
    python -m extras.score REF.tsv --scores DIR                    PSDS of frame scores, a table of them for each clip
    python -m extras.score --model runs/X/model.pt --data DIR      a trained model on the public list of a data set

Tables have the DCASE columns filename, onset, offset, event_label, in any order and among others. F1 needs one table of
events. PSDS needs one for each threshold of the detector: in a folder, or put together, with a column `threshold`.
Scores go to stdout, notes to stderr.
"""

import argparse
import json
import math
import sys
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extras import plumbing, runs  # before torch, see plumbing

import features
import metrics
from extras.plumbing import InputError, one_line_errors, parse_number, positive, read_table, shown
from features import CLIP_SECONDS, DAY, read_strong, read_weak
from metrics import PSDS1, PSDS2, event_f1, f1_of_counts, psds, segment_f1

# ours: as sed_scores_eval, exact PSDS lets a share count that is just large enough: float64 may make it a little less
ALMOST = {
    name: {share: criteria[share] - 1e-9 for share in ("dtc_threshold", "gtc_threshold", "cttc_threshold")}
    for name, criteria in (("PSDS1", PSDS1), ("PSDS2", PSDS2))
}
RUN = "predictions", "predictions_SBF1", "predictions_CBF1", "predictions_PSDS1", "predictions_PSDS2", "durations"


# --- tables ----------------------------------------------------------------------------------------------------------


def columns_of(path):
    """The names in a table's first line; none where there is no table, of which the reader of its rows tells"""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [name.strip() for name in unicodedata.normalize("NFC", file.readline()).split("\t")]
    except (OSError, UnicodeDecodeError):
        return []


def read_reference(path):
    """Table of true events -> filenames, events"""
    files, events = read_strong(path, of_system=True)  # its names may hold folders too
    for name, onset, offset, label in events:
        if onset == offset:
            where = f"{label} in {name} begins and ends at {onset:g} s"
            raise InputError(f"{path}: {where}; correct or remove it")
    return files, events


def read_estimated(path):
    """Table of a system's events -> filenames, events"""
    if "threshold" in columns_of(path):
        raise InputError(f"{path}: holds the events of many thresholds; give it after --operating-points, for PSDS")
    return read_strong(path, of_system=True)


def read_tags(path):
    """Table of clip labels, or of events -> filenames, events, whose times say nothing"""
    if "event_labels" not in columns_of(path):
        return read_estimated(path)
    clips = read_weak(path)
    return list(clips), [(name, 0.0, 0.0, label) for name, labels in clips.items() for label in sorted(labels)]


def read_operating_points(path):
    """Folder of tables, one for each threshold, or one table with a column `threshold` -> the events of each"""
    if Path(path).is_dir():
        tables = sorted(table for table in Path(path).glob("*.tsv") if not table.name.startswith("."))
        if not tables:
            raise InputError(f"{path}: no .tsv file in this folder; give one for each threshold")
        return [read_estimated(table)[1] for table in tables]
    if "threshold" not in columns_of(path):
        what = "has no column threshold" if Path(path).exists() else "no such file or folder"
        wanted = "PSDS wants a table with a column threshold, or a folder with a table for each threshold"
        raise InputError(f"{path}: {what}; {wanted}")
    points = {}
    for *event, threshold in read_strong(path, of_system=True, more=["threshold"])[1]:
        points.setdefault(threshold, []).append(tuple(event))
    return list(points.values())


def read_durations(path):
    """TSV file with the columns filename and duration -> dict of filename -> seconds. A clip may stand there twice."""
    durations = {}
    for place, (name, text) in read_table(path, ("filename", "duration")):
        try:
            seconds = parse_number(text)
        except ValueError:
            seconds = math.nan
        if not (name and 0 < seconds <= DAY and durations.setdefault(name, seconds) == seconds):
            raise InputError(f"{place}: duration {text!r} of {name!r}; give each clip one number, above 0, up to a day")
    return durations


def note(what, names):
    """Warn of events, if there are any: how many, what happens to them, and the first few of their names."""
    if names:
        different = sorted(set(names))
        warnings.warn(f"{len(names)} {what}: {', '.join(different[:5])}{' ...' if len(different) > 5 else ''}")


def clip_f1(reference, estimated, classes):
    """metrics.clip_f1 of events, whose times say nothing; speed: no matrix of files and classes, which may be large"""
    ref, est = ({(name, label) for name, _, _, label in events} for events in (reference, estimated))
    n_tp, n_est, n_ref = (Counter(label for _, label in pairs) for pairs in (ref & est, est, ref))
    return f1_of_counts({label: (n_tp[label], n_est[label], n_ref[label]) for label in classes}, classes)


def labels_of(*tables):
    return sorted({label for events in tables for *_, label in events})


# --- tables of events ------------------------------------------------------------------------------------------------
# Each function returns its scores by name, in [0, 1], nan where undefined, and a dict of name -> class -> score.


def f1_scores(reference, estimated, classes):
    """Micro and macro F1 of clips, segments and events"""
    clip = clip_f1(reference, estimated, classes)
    segment, event = segment_f1(reference, estimated, classes), event_f1(reference, estimated, classes)
    f1 = {"clip_f1": clip, "segment_f1": segment, "event_f1": event}
    scores = {}
    for name, value in f1.items():
        scores |= {f"{name}_micro": value.micro, f"{name}_macro": value.macro}
    return scores, {name: value.per_class for name, value in f1.items()}


def score(reference_path, estimated_path=None, operating_points=None, durations=None, ctr_divisor="C-1"):
    """F1 of a table of events, PSDS of operating points.

    ours: all files and all labels that any table names count, not only those of the reference.
    operating_points: see read_operating_points; durations: table of the clips' lengths, else 10 s each
    """
    files, reference = read_reference(reference_path)
    estimated_files, estimated = read_estimated(estimated_path) if estimated_path else ([], [])
    known, labels, what = set(files), set(labels_of(reference)), f"events of {estimated_path}"
    for path, names, events in ((reference_path, files, reference), (estimated_path, estimated_files, estimated)):
        # cells may be missing at a row's end; so if tabs were lost, whole rows stand here as names
        note(f"files of {path} have no events", sorted({*names} - {name for name, *_ in events}))
    note(f"{what} in files that {reference_path} does not name, false positives of F1",
         [name for name, *_ in estimated if name not in known])  # fmt: skip
    note(f"{what} with labels that {reference_path} lacks, false positives of F1",
         [label for *_, label in estimated if label not in labels])  # fmt: skip
    note(f"{what} of length 0, events for event F1 and none for PSDS",
         [name for name, onset, offset, _ in estimated if onset == offset])  # fmt: skip

    files = list(dict.fromkeys(files + estimated_files))
    scores, per_class = {"files": len(files), "reference_events": len(reference)}, {}
    classes = labels_of(reference, estimated)
    if estimated_path:
        f1, per_class = f1_scores(reference, estimated, classes)
        scores |= {"estimated_events": len(estimated)} | f1
    if operating_points:
        points = read_operating_points(operating_points)
        note(f"events of {operating_points} with labels that {reference_path} lacks, ignored by PSDS",
             [label for events in points for *_, label in events if label not in labels])  # fmt: skip
        seconds = read_durations(durations) if durations else dict.fromkeys(files, CLIP_SECONDS)
        if not seconds:
            raise InputError(f"{durations or reference_path}: names no clip; PSDS needs the length of every clip")
        scores |= {"operating_points": len(points), "hours": sum(seconds.values()) / 3600, "ctr_divisor": ctr_divisor}
        for name, criteria in (("psds1", PSDS1), ("psds2", PSDS2)):
            scores[name] = psds(reference, points, seconds, classes, **criteria, ct_divisor=ctr_divisor)
    return scores, per_class


def score_tags(reference_path, estimated_path):
    """Clip F1 of a table of clip labels; the reference may be one, too"""
    (files, reference), (estimated_files, estimated) = read_tags(reference_path), read_tags(estimated_path)
    known, classes = set(files), labels_of(reference, estimated)
    note(f"labels of {estimated_path} in files that {reference_path} does not name, false positives",
         [name for name, *_ in estimated if name not in known])  # fmt: skip
    files = list(dict.fromkeys(files + estimated_files))
    f1 = clip_f1(reference, estimated, classes)
    scores = {"files": len(files), "clip_f1_micro": f1.micro, "clip_f1_macro": f1.macro}
    return scores, {"clip_f1": f1.per_class}


def score_run(reference_path, folder, ctr_divisor="C-1"):
    """The five scores of Boes 2022 of what a run left: each of its own table, as in the run's metrics.json"""
    tables = {name: Path(folder) / f"{name}.tsv" for name in RUN}
    if missing := [path.name for path in tables.values() if not path.is_file()]:
        remedy = "name the folder of a finished run, or, for a folder of operating points, add --operating-points"
        raise InputError(f"{folder}: has no {missing[0]}; {remedy}")
    seconds, (files, reference) = read_durations(tables["durations"]), read_reference(reference_path)
    left_out = sorted({*files} - seconds.keys())
    note(f"clips of {reference_path} that the run did not score, left out", left_out)
    note(f"clips of {folder} that {reference_path} does not name, without events", sorted(seconds.keys() - {*files}))
    reference = [event for event in reference if event[0] in seconds]
    if not seconds.keys() & {*files}:
        raise InputError(f"{reference_path}: names none of the clips in {folder}; give the table of its clips")
    found = {name: read_estimated(tables[name])[1] for name in ("predictions", "predictions_SBF1")}
    tags = read_tags(tables["predictions_CBF1"])[1]
    classes = labels_of(reference, tags, *found.values())
    clip = clip_f1(reference, tags, classes)
    segment, event = (metric(reference, found[name], classes) for metric, name in
                      ((segment_f1, "predictions_SBF1"), (event_f1, "predictions")))  # fmt: skip
    scores = {"files": len(seconds), "reference_events": len(reference), "hours": sum(seconds.values()) / 3600}
    scores |= {"CBF1": clip.micro, "SBF1": segment.micro, "EBF1": event.macro}
    for name, criteria in (("PSDS1", PSDS1), ("PSDS2", PSDS2)):
        points = read_operating_points(tables[f"predictions_{name}"])
        scores[name] = psds(reference, points, seconds, classes, **criteria, ct_divisor=ctr_divisor)
    return scores, {"CBF1": clip.per_class, "SBF1": segment.per_class, "EBF1": event.per_class}


# --- tables of frame scores ------------------------------------------------------------------------------------------


@dataclass
class FrameScores:
    """Tables of frame scores, as one array"""

    clips: list  # N stems
    classes: list  # C
    scores: np.ndarray  # (N, T, C); shorter clips end in zeros
    n_frames: np.ndarray  # (N,)
    hop: float  # seconds
    ends: dict  # stem -> seconds, where the last frame ends


def read_scores(path):
    """Table of one clip: onset, offset, a column for each class; a row for each frame -> names (2 + C), (T, 2 + C)"""
    names = columns_of(path)
    if names[:2] != ["onset", "offset"] or len(names) < 3 or len(set(names)) < len(names):
        raise InputError(f"{path}, line 1: wants the columns onset, offset, then one for each class, separated by tabs")
    rows, values = read_table(path, names), []
    for place, cells in rows:
        try:
            values.append([parse_number(cell) for cell in cells])
        except ValueError:
            raise InputError(f"{place}: holds a cell that is no number; write the table anew") from None
    if not values:
        raise InputError(f"{path}: holds no frame; write the table anew, or move it away")
    values = np.array(values)
    if len(bad := np.flatnonzero(~np.isfinite(values).all(axis=1))):
        raise InputError(f"{rows[bad[0]][0]}: holds a number that is not finite; write the table anew")
    return names, values


def read_frame_scores(folder):
    """Folder of tables of frame scores, <clip stem>.tsv -> FrameScores. ours: all frames are equally long"""
    paths = sorted(path for path in Path(folder).glob("*.tsv") if not path.name.startswith("."))
    if not paths:
        raise InputError(f"{folder}: no folder of tables <clip>.tsv with the columns onset, offset and the classes")
    tables = [read_scores(path) for path in paths]
    classes, n_frames = sorted(tables[0][0][2:]), np.array([len(values) for _, values in tables])
    # from all frames but the last one, which may be shorter, where the clip ends
    hops = np.array([round(v[-1, 0] / (len(v) - 1), 9) if len(v) > 1 else v[0, 1] for _, v in tables])
    sure = np.sort(hops[n_frames > 1])
    usual = sure[len(sure) // 2] if len(sure) else hops.max()
    # of these, from the longest table, as digits may have been cut
    longest = np.where(np.abs(hops - usual) <= 0.05 * np.abs(usual), n_frames, 0).argmax()
    hop = hops[longest]
    scores, ends = np.zeros((len(paths), n_frames.max(), len(classes))), {}
    for i, (path, (names, values)) in enumerate(zip(paths, tables)):
        if sorted(names[2:]) != classes:
            raise InputError(f"{path}, line 1: has other classes than {paths[0]}; give all clips the same columns")
        check_times(path, values[:, 0], values[:, 1], hop, paths[longest])
        scores[i, : len(values)] = values[:, [names.index(label) for label in classes]]
        ends[plumbing.stem(path)] = float(values[-1, 1])
    return FrameScores([*ends], classes, scores, n_frames, hop, ends)


def check_times(path, onset, offset, hop, example):
    """InputError unless frame k lasts from k to k + 1 times hop, as in the example, the last one at most that long"""
    begins = np.arange(len(onset)) * hop
    ends = np.append(begins[1:], min(offset[-1], begins[-1] + hop))
    wrong = (np.maximum(np.abs(onset - begins), np.abs(offset - ends)) > 0.05 * hop) | (offset <= onset)
    if wrong.any():
        k = wrong.argmax()
        wanted = f"frames must follow one another from 0 on, each {hop:g} s long as in {example.name}"
        found = f"here from {onset[k]:g} to {offset[k]:g} s"
        raise InputError(f"{path}, line {k + 2}: {wanted}, {found}; only the last may be shorter; write the table anew")


def score_frames(reference_path, folder, durations=None, threshold=None, window=1, ctr_divisor="C-1"):
    """PSDS of frame scores as they are, at 50 thresholds and at all; with a threshold, F1 of what is active above it.

    Clips are known by their stems. durations: table of the clips' lengths, for the hours of PSDS; else a clip ends with
    its last frame. window: of a median filter before F1, odd number of frames
    """
    found, (files, reference) = read_frame_scores(folder), read_reference(reference_path)
    stems = {}
    for name in files:
        if stems.setdefault(plumbing.stem(name), name) != name:
            raise InputError(f"{reference_path}: {stems[plumbing.stem(name)]} and {name} have one stem; rename one")
    reference = [(plumbing.stem(name), *event) for name, *event in reference]
    labels = set(labels_of(reference))
    without, lacking = [stem for stem in stems if stem not in found.ends], sorted(labels - {*found.classes})
    note(f"clips of {reference_path} without a table in {folder}, as if nothing was found there", without)
    note(f"tables of {folder} for clips that {reference_path} does not name: what they find is false",
         sorted(found.ends.keys() - stems))  # fmt: skip
    note(f"classes of {reference_path} without a column in {folder}, never found", lacking)
    note(f"classes of {folder} that {reference_path} lacks, ignored by PSDS", sorted({*found.classes} - labels))
    if found.scores.min() < 0 or found.scores.max() > 1:
        warnings.warn(f"scores of {folder} are not from 0 to 1, but the 50 thresholds of PSDS1 and PSDS2 are")

    files, classes = found.clips + without, found.classes + lacking
    seconds = found.ends | dict.fromkeys(without, CLIP_SECONDS)
    total = sum(seconds.values())
    if durations:
        lengths = {plumbing.stem(name): length for name, length in read_durations(durations).items()}
        if unknown := [stem for stem in files if stem not in lengths]:
            raise InputError(f"{durations}: has no duration of {unknown[0]}; PSDS needs the length of every clip")
        # PSDS takes its hours from the lengths of the clips. But events end where the tables end, be it before or after
        # the clip: the difference is booked on a clip without events.
        seconds[""] = sum(lengths.values()) - total
        total = sum(lengths.values())
    scores = {"files": len(files), "reference_events": len(reference), "frame_hop": found.hop, "hours": total / 3600}
    scores, per_class = scores | {"ctr_divisor": ctr_divisor}, {}
    frame_scores = np.zeros((len(files), found.scores.shape[1], len(classes)))
    frame_scores[: len(found.clips), :, : len(found.classes)] = found.scores
    data = frame_scores, files, reference, seconds, classes, found.hop
    for name, criteria in (("PSDS1", PSDS1), ("PSDS2", PSDS2)):
        criteria = criteria | {"ct_divisor": ctr_divisor}
        efpr, tpr, etpr = metrics.psd_roc_from_scores(*data, **criteria)
        scores[name] = float(metrics.psd_area(efpr, etpr, criteria["max_efpr"]))
        scores[f"exact_{name}"] = metrics.exact_psds_from_scores(*data, **criteria | ALMOST[name])
        per_class[name] = dict(zip(classes, metrics.psd_area(efpr, tpr, criteria["max_efpr"]).tolist()))
    if threshold is not None:
        estimated = []
        for n in np.unique(found.n_frames):  # a median filter reflects what is before a clip's end, not what is behind
            rows = np.flatnonzero(found.n_frames == n)
            of_length = found.scores[rows, :n], [found.clips[i] for i in rows]
            estimated += metrics.scores_to_events(*of_length, found.classes, threshold, window, found.hop, found.ends)
        f1, by_class = f1_scores(reference, estimated, sorted(classes))
        scores, per_class = scores | {"estimated_events": len(estimated)} | f1, per_class | by_class
    return scores, per_class


# --- a trained model on other data -----------------------------------------------------------------------------------


def score_model(model, root, device_name):
    """The five scores of Boes 2022 of a trained model on the public list of a data set, as its run would score it"""
    import train  # speed: the other jobs of this file need no network
    from extras import predict

    root, trained, state = Path(root), predict.load_model(model, device_name), runs.load(model)
    classes, weight = trained.data.classes, trained.audio_weight
    with plumbing.foreign(model, "lacks thresholds of the five scores; name the model.pt that a run left"):
        tuned = {name: tuple(values and np.array(values) for values in (state["tuned"][name]["threshold"],
                 state["tuned"][name]["window"])) for name in train.SCORES}  # fmt: skip
        source = state["config"]["data"]
    part = read_public(root, trained, plumbing.cache_folder(root, Path(model).parent))
    frame_scores, clip_scores = train.predict(trained.student, trained.data, part, [weight], trained.device)[weight]
    chosen = f"thresholds, windows and the acoustic weight {weight:g}"
    warnings.warn(f"{chosen} were tuned on the validation clips of {source}")
    scores = {"files": len(part), "reference_events": len(part.events), "hours": sum(part.durations) / 3600}
    scores |= train.evaluate(part, classes, frame_scores, clip_scores, tuned)
    by_class = train.evaluate_by_class(part, classes, frame_scores, tuned)
    shown = {"SBF1": "F1", "EBF1": "F1", "PSDS1": "area", "PSDS2": "area"}
    return scores, {name: {label: by_class[label][name][x] for label in classes} for name, x in shown.items()}


def read_public(root, trained, cache):
    """The public list of a data set, which needs no others, with what a trained model hears and sees -> Partition"""
    layout, classes = plumbing.read_layout(root, features.PARTITIONS, ["public"]), trained.data.classes
    paths, labels, events = features.read_lists("public", layout["public"])
    where = layout["public"][0]
    if strange := sorted({label for *_, label in events} - {*classes}):
        raise InputError(f"{where[0]}: the model does not know the class {strange[0]!r}; it was taught other classes")
    found = {name: path for name, path in paths.items() if path.is_file()}
    if not found:
        raise InputError(f"{where[1]}: none of the {len(paths)} clips in {where[0]} is there")
    note(f"clips of {where[0]} are not on disk, left out", sorted(paths.keys() - found))
    events = [event for event in events if event[0] in found]
    part = features.Partition("public", [*found.values()], len(paths), [*found], events)
    part.tags = np.array([[label in labels[name] for label in classes] for name in found])
    features.add_log_mel(part, cache, log)
    features.say_what_lies_behind(part, log)
    for stream, (mean, _) in trained.data.visual_statistics.items():
        folder = root / "visual" / stream
        files = features.visual_files(folder) if folder.is_dir() else {}
        plumbing.check_stems(part.paths, files, features.recording)
        seen = [files[plumbing.stem(name)] for name in found if plumbing.stem(name) in files]
        note(f"clips have no {stream} in {folder}", [name for name in found if plumbing.stem(name) not in files])
        first = [features.read_visual(path) for path in seen[:9]]
        example = plumbing.most_alike(first or [np.zeros((features.FRAMES, mean.size), np.float32)])
        if example.shape[1] != mean.size:
            raise InputError(f"{folder}: vectors are {example.shape[1]} wide, but the model learnt from {mean.size}")
        features.add_visual(part, stream, files, example, cache, log)
    return part


def log(line):
    print(shown(line), file=sys.stderr, flush=True)


# --- the command -----------------------------------------------------------------------------------------------------


def or_null(scores):
    """JSON knows no NaN: scores that are not defined become None."""
    return {name: None if value != value else value for name, value in scores.items()}


REMARKS = {  # on lines of the text
    "operating_points": "   of a table, those with events: the others change no PSDS",
    "psds2": "   of the same operating points as psds1, whichever of the two they were tuned for",
}


def text_of(scores, per_class, with_classes, as_json):
    """What the command prints: JSON, or a line per score and then, if asked for, one per class"""
    if as_json:
        by_class = {"per_class": {name: or_null(x) for name, x in per_class.items()}} if with_classes else {}
        return json.dumps(or_null(scores) | by_class, indent=1)
    lines = []
    for name, x in scores.items():
        value = f"{x:>9.4f}" if isinstance(x, float) else f"{x:>9}"
        lines.append(f"{name:<32}{value}{REMARKS.get(name, '')}")
    if with_classes and per_class:
        lines.append(f"\n{'':<32}" + "".join(f"{name:>12}" for name in per_class))
        for label in sorted({label for of_name in per_class.values() for label in of_name}):
            cells = [of_name.get(label, math.nan) for of_name in per_class.values()]
            lines.append(f"{label:<32}" + "".join(f"{cell:>12.4f}" for cell in cells))
    return "\n".join(lines)


def number(text):
    try:
        if math.isfinite(value := parse_number(text)):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: must be a number")


def odd(text):
    if positive(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a median window must be an odd number of frames")
    return int(text)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m extras.score",
        description="Scores of what a system found against a reference table (TSV with the DCASE columns). All files "
        "and labels named in either table count.",
    )
    add = parser.add_argument
    add("reference", nargs="?", metavar="REFERENCE.tsv", help="table of the true events; not with --model")
    add("estimated", nargs="?", metavar="ESTIMATED", help="table of events; or of clip labels (filename, event_labels);"
        " or the folder of a run, all of which is scored")  # fmt: skip
    add("--operating-points", metavar="PATH", help="adds PSDS1 and PSDS2: a folder of tables, one for each threshold, "
        "or a table with a column `threshold`")  # fmt: skip
    add("--scores", metavar="DIR", help="instead of ESTIMATED: tables of frame scores, <clip>.tsv with the columns "
        "onset, offset and one for each class. PSDS at the 50 thresholds and, as exact_PSDS, at all")  # fmt: skip
    add("--threshold", type=number, metavar="T", help="of --scores: adds F1 of what is active above it")
    add("--window", type=odd, metavar="W", help="of --scores: median filter before F1, in frames; default: 1, none")
    add("--model", metavar="MODEL.pt", help="score a trained model on the public list of --data, as its run would")
    add("--data", metavar="DIR", help="of --model: a data set with the same classes; the other lists may be absent")
    add("--device", default="auto", help="of --model: cpu, cuda, mps or auto; default: auto")
    add("--durations", metavar="D.tsv", help="filename and duration of all clips, for PSDS; default: 10 s each, with "
        "--scores where their tables end")  # fmt: skip
    add("--ctr-divisor", choices=("C-1", "C"), default="C-1", help="PSDS2: mean of cross-trigger rates over the other "
        "classes (psds_eval 0.5, default) or over all (its older versions, DCASE 2021)")  # fmt: skip
    add("--per-class", action="store_true", help="add the scores of each class; of PSDS the area under its own curve")
    add("--json", action="store_true", help="print JSON, with null where a score is undefined")
    args = parser.parse_args(arguments)
    if bool(args.model) != bool(args.data) or bool(args.model) == bool(args.reference):
        parser.error("name REFERENCE.tsv and what is to be scored, or --model and --data alone")
    if args.model:
        return args
    args.run = args.estimated and Path(args.estimated).is_dir()
    if not (args.estimated or args.operating_points or args.scores):
        parser.error("name what is to be scored: ESTIMATED, --operating-points or --scores")
    if args.scores and (args.estimated or args.operating_points):
        parser.error("--scores stands alone, without ESTIMATED and --operating-points")
    if args.run and (args.operating_points or args.durations):
        parser.error(f"{args.estimated} is a folder: a run's has operating points and durations of its own")
    if (args.threshold is not None or args.window) and not args.scores or args.window and args.threshold is None:
        parser.error("--threshold makes events of --scores, --window filters them before: give all three")
    if not (args.operating_points or args.scores or args.run) and (args.durations or args.ctr_divisor != "C-1"):
        parser.error("--durations and --ctr-divisor concern PSDS: add --operating-points DIR")
    return args


def scored(args):
    """What the flags ask for -> scores by name, scores by class"""
    if args.model:
        return score_model(args.model, args.data, args.device)
    if args.scores:
        return score_frames(
            args.reference, args.scores, args.durations, args.threshold, args.window or 1, args.ctr_divisor
        )
    if args.run:
        return score_run(args.reference, args.estimated, args.ctr_divisor)
    if args.estimated and "event_labels" in columns_of(args.estimated) and not args.operating_points:
        return score_tags(args.reference, args.estimated)
    return score(args.reference, args.estimated, args.operating_points, args.durations, args.ctr_divisor)


def main(arguments=None):
    args = parse_arguments(arguments)
    with one_line_errors("nothing was scored"):
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            scores, per_class = scored(args)
        for text in dict.fromkeys(str(warning.message) for warning in noted):  # PSDS1 and PSDS2 warn of the same
            print(f"note   {shown(text)}", file=sys.stderr)
        print(shown(text_of(scores, per_class, args.per_class, args.json)))


if __name__ == "__main__":
    main()
