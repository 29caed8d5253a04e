"""Scores of a table of events against a reference table: clip, segment and event F1, and PSDS (Boes 2022, Sec. 3.1.4).

    python -m extras.score REFERENCE.tsv ESTIMATED.tsv --per-class
    python -m extras.score REFERENCE.tsv ESTIMATED.tsv --operating-points DIR --durations D.tsv --json

Tables have the DCASE columns filename, onset, offset, event_label, in any order and among others. F1 needs one table of
events; PSDS needs a folder of them, one for each threshold of the detector. Scores go to stdout, notes to stderr.
"""

import argparse
import json
import math
import sys
import warnings
from collections import Counter
from pathlib import Path

from extras.plumbing import InputError, one_line_errors, parse_number, read_table, shown
from features import CLIP_SECONDS, DAY, read_strong
from metrics import PSDS1, PSDS2, event_f1, f1_of_counts, psds, segment_f1


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


def clip_f1(reference, estimated, classes):
    """metrics.clip_f1 of events, whose times say nothing; speed: no matrix of files and classes, which may be large"""
    ref, est = ({(name, label) for name, _, _, label in events} for events in (reference, estimated))
    n_tp, n_est, n_ref = (Counter(label for _, label in pairs) for pairs in (ref & est, est, ref))
    return f1_of_counts({label: (n_tp[label], n_est[label], n_ref[label]) for label in classes}, classes)


def note(what, names):
    """Warn of events, if there are any: how many, what happens to them, and the first few of their names."""
    if names:
        different = sorted(set(names))
        warnings.warn(f"{len(names)} {what}: {', '.join(different[:5])}{' ...' if len(different) > 5 else ''}")


def score(reference_path, estimated_path, operating_points=None, durations=None, ctr_divisor="C-1"):
    """-> all scores by name, in [0, 1], nan where undefined; dict of F1 name -> F1 by class.

    ours: all files and all labels that either table names count, not only those of the reference.
    operating_points: folder of tables, adds PSDS1 and PSDS2; durations: table of the clips' lengths, else 10 s each
    """
    reference_files, reference = read_strong(reference_path, of_system=True)  # its names may hold folders too
    estimated_files, estimated = read_strong(estimated_path, of_system=True)
    for name, onset, offset, label in reference:
        if onset == offset:
            where = f"{label} in {name} begins and ends at {onset:g} s"
            raise InputError(f"{reference_path}: {where}; correct or remove it")
    files = list(dict.fromkeys(reference_files + estimated_files))
    reference_labels = {label for *_, label in reference}
    classes = sorted(reference_labels.union(label for *_, label in estimated))

    for path, names, events in (
        (reference_path, reference_files, reference), (estimated_path, estimated_files, estimated)
    ):  # fmt: skip
        # cells may be missing at a row's end; so if tabs were lost, whole rows stand here as names
        note(f"files of {path} have no events", sorted({*names} - {name for name, *_ in events}))
    what, known = f"events of {estimated_path}", set(reference_files)
    note(f"{what} in files that {reference_path} does not name, false positives of F1",
         [name for name, *_ in estimated if name not in known])  # fmt: skip
    note(f"{what} with labels that {reference_path} lacks, false positives of F1",
         [label for *_, label in estimated if label not in reference_labels])  # fmt: skip
    note(f"{what} of length 0, events for event F1 and none for PSDS",
         [name for name, onset, offset, _ in estimated if onset == offset])  # fmt: skip

    f1 = {
        "clip_f1": clip_f1(reference, estimated, classes),
        "segment_f1": segment_f1(reference, estimated, classes),
        "event_f1": event_f1(reference, estimated, classes),
    }
    scores = {"files": len(files), "reference_events": len(reference), "estimated_events": len(estimated)}
    for name, value in f1.items():
        scores |= {f"{name}_micro": value.micro, f"{name}_macro": value.macro}

    if operating_points:
        if not Path(operating_points).is_dir():
            raise InputError(f"{operating_points}: no such folder; PSDS wants one with a table for each threshold")
        paths = sorted(Path(operating_points).glob("*.tsv"))
        if not paths:
            raise InputError(f"{operating_points}: no .tsv file in this folder; give one for each threshold")
        points = [read_strong(path, of_system=True)[1] for path in paths]
        note(f"events of {operating_points} with labels that {reference_path} lacks, ignored by PSDS",
             [label for events in points for *_, label in events if label not in reference_labels])  # fmt: skip
        seconds = read_durations(durations) if durations else dict.fromkeys(files, CLIP_SECONDS)
        if not seconds:
            raise InputError(f"{durations or reference_path}: names no clip; PSDS needs the length of every clip")
        scores |= {"operating_points": len(points), "hours": sum(seconds.values()) / 3600, "ctr_divisor": ctr_divisor}
        for name, criteria in (("psds1", PSDS1), ("psds2", PSDS2)):
            scores[name] = psds(reference, points, seconds, classes, **criteria, ct_divisor=ctr_divisor)
    return scores, {name: value.per_class for name, value in f1.items()}


def or_null(scores):
    """JSON knows no NaN: scores that are not defined become None."""
    return {name: None if value != value else value for name, value in scores.items()}


def text_of(scores, per_class, with_classes, as_json):
    """What the command prints: JSON, or a line per score and then, if asked for, one per class"""
    if as_json:
        by_class = {"per_class": {name: or_null(f1) for name, f1 in per_class.items()}} if with_classes else {}
        return json.dumps(or_null(scores) | by_class, indent=1)
    lines = [f"{name:<32}{x:>9.4f}" if isinstance(x, float) else f"{name:<32}{x:>9}" for name, x in scores.items()]
    if with_classes:
        lines.append(f"\n{'':<32}" + "".join(f"{name:>12}" for name in per_class))
        for label in per_class["event_f1"]:
            lines.append(f"{label:<32}" + "".join(f"{f1[label]:>12.4f}" for f1 in per_class.values()))
    return "\n".join(lines)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m extras.score",
        description="Scores of a table of events against a reference table (TSV with the DCASE columns). All files and "
        "labels named in either table count.",
    )
    add = parser.add_argument
    add("reference", metavar="REFERENCE.tsv")
    add("estimated", metavar="ESTIMATED.tsv")
    add("--operating-points", metavar="DIR", help="folder of TSV files, one for each threshold: adds PSDS1 and PSDS2")
    add("--durations", metavar="D.tsv", help="filename and duration of all clips, for PSDS (else 10 s)")
    add("--ctr-divisor", choices=("C-1", "C"), default="C-1", help="PSDS2: mean of cross-trigger rates over the other "
        "classes (psds_eval 0.5, default) or over all (its older versions, DCASE 2021)")  # fmt: skip
    add("--per-class", action="store_true", help="add the F1 scores of each class")
    add("--json", action="store_true", help="print JSON, with null where a score is undefined")
    args = parser.parse_args(arguments)
    if not args.operating_points and (args.durations or args.ctr_divisor != "C-1"):
        parser.error("--durations and --ctr-divisor concern PSDS: add --operating-points DIR")
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    with one_line_errors("nothing was scored"):
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            scores, per_class = score(
                args.reference, args.estimated, args.operating_points, args.durations, args.ctr_divisor
            )
        for text in dict.fromkeys(str(warning.message) for warning in noted):  # PSDS1 and PSDS2 warn of the same
            print(f"note   {shown(text)}", file=sys.stderr)
        print(shown(text_of(scores, per_class, args.per_class, args.json)))


if __name__ == "__main__":
    main()
