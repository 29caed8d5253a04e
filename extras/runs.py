"""A run's folder: who works in it, what a checkpoint holds, how a run resumes, what a finished run left.

    log.txt                  what was printed
    checkpoint.pt            everything that the next epoch needs; goes when the run is finished
    history.tsv              a row for each epoch
    predictions*.tsv         what each score was computed from
    durations.tsv            seconds of each clip that was scored
    scores/*.tsv             probabilities of the frames of each clip, see write_scores
    metrics.json, model.pt   the report; the same with the trained weights. model.pt marks the run as finished

Nothing here depends on the network, the data or the method: they come as arguments.
"""

import hashlib
import math
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from extras import plumbing  # before torch, see there
from extras.plumbing import InputError, foreign

import torch  # isort: skip

LOSSES = ("weak", "strong", "clip_consistency", "frame_consistency")  # the columns of history.tsv for the four losses


# --- who works in a folder, what is printed there --------------------------------------------------------------------


@contextmanager
def claimed(folder, wait=False):
    """True while this process alone works in the folder. A claim ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claim", "a") as file:  # "a": it may be a link to a file, which must not be emptied
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except ImportError:  # Windows knows no such locks: one process at a time there
            pass
        yield True


@contextmanager
def alone_in(folder):
    """InputError where another process works in the folder, see `claimed`"""
    with claimed(folder) as mine:
        if not mine:
            raise InputError(f"{folder}: another process is at work there; name another --out")
        yield


def never_overwrite(folder, resume):
    """InputError where the folder holds a run that the user did not ask to resume, or where nothing can be written"""
    plumbing.check_out(folder)
    if not resume and ((folder / "checkpoint.pt").exists() or (folder / "model.pt").exists()):
        raise InputError(f"{folder}: holds a run already; continue it with --resume, or name another --out")


class Log:
    """Prints lines, and keeps them in a file once it has a path"""

    def __init__(self):
        self.lines, self.path = [], None

    def __call__(self, line):
        line = plumbing.shown(line)
        if plumbing.PRINTS:
            print(line, flush=True)
        self.lines.append(f"{line}\n")
        if self.path:
            with plumbing.writing(self.path):
                with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write("".join(self.lines))
            self.lines = []


def check_losses(losses, begin):
    """losses: four for each iteration from `begin` on. A run cannot go on where one is not finite"""
    for t, row in enumerate(losses, begin):
        if not all(map(math.isfinite, row)):
            named = ", ".join(f"{name} {value:.4g}" for name, value in zip(LOSSES, row))
            raise FloatingPointError(f"the loss is not finite at iteration {t}: {named}; nothing of this epoch is kept")


def check_scores(part, predicted):
    """predicted: dict of audio weight -> frame scores (N, 64, C), clip scores (N, C) of the N clips of a Partition"""
    for frame_scores, clip_scores in predicted.values():
        wrong = ~(np.isfinite(frame_scores).all((1, 2)) & np.isfinite(clip_scores).all(1))
        for i in np.flatnonzero(wrong)[:1]:
            inputs = ["log-mel", *(stream for stream in part.present if part.present[stream][i])]
            what = f"of {' + '.join(inputs)} the network makes no finite numbers; are its weights damaged?"
            raise FloatingPointError(f"{part.name}, {part.filenames[i]}: {what}")


# --- an unfinished run -----------------------------------------------------------------------------------------------


def description(config, data):
    """What tells one run from another: the part common to checkpoint.pt, model.pt and, without tensors, metrics.json"""
    clips = []
    for part in data.partitions.values():
        present = [part.present[stream].tolist() for stream in config.visual]
        clips.append((part.filenames, part.events, np.asarray(part.tags).tolist(), present))
    visual = {stream: data.visual_statistics[stream] for stream in config.visual}
    return {
        "config": asdict(config),
        "classes": data.classes,
        "data": hashlib.sha256(repr(clips).encode()).hexdigest()[:16],
        "mel_statistics": [torch.from_numpy(values) for values in data.mel_statistics],
        "visual_statistics": {name: [torch.from_numpy(values) for values in pair] for name, pair in visual.items()},
    }


def resume(folder, config, data, student, teacher, optimizer):
    """Put a run back as the folder has it -> the DataSet with the statistics of the run, number of finished epochs"""
    if (folder / "model.pt").exists():  # all epochs are done; it is only to be scored anew
        path, epochs, parts = folder / "model.pt", config.epochs, {"weights": student}
    elif (folder / "checkpoint.pt").exists():
        path, epochs = folder / "checkpoint.pt", None
        parts = {"student": student, "teacher": teacher, "optimizer": optimizer}
        optimizer.step()  # all gradients are zero; it gives the optimizer's state the form of a saved one
    else:
        return data, 0
    state = read_state(path, config, data)
    epochs = epochs or state.get("epoch")
    with foreign(path, f"of another architecture or optimizer, or damaged ({{}}); {remedy_of(path)}"):
        if type(epochs) is not int or not 1 <= epochs <= config.epochs:
            raise ValueError("epoch")
        for name, part in parts.items():
            found, fresh = state[name], part.state_dict()
            if part is optimizer:  # its settings are those of the code, only what it has gathered is restored
                gathered = found["state"]
                for i, wanted in fresh["state"].items():  # another torch may gather more
                    gathered[i] = {key: gathered[i][key] for key in wanted}
                found = {"state": gathered, "param_groups": fresh["param_groups"]}
            if not plumbing.same_form(found, fresh):
                raise ValueError(name)
            part.load_state_dict(found)
    mel = [values.numpy() for values in state["mel_statistics"]]
    visual = {name: [values.numpy() for values in pair] for name, pair in state["visual_statistics"].items()}
    return replace(data, mel_statistics=mel, visual_statistics=data.visual_statistics | visual), epochs


def keeper(folder, config, data):
    """-> keep(epoch, student, teacher, optimizer, losses, scores), which saves it all when an epoch is done.

    epoch: number of epochs done; losses: four means over the epoch; scores: dict of score -> number, on validation
    """
    described, started = description(config, data), time.monotonic()

    def keep(epoch, student, teacher, optimizer, losses, scores):
        nonlocal started
        rate, seconds, started = optimizer.param_groups[0]["lr"], time.monotonic() - started, time.monotonic()
        row = {"epoch": epoch, "iteration": epoch * config.batches, **dict(zip(LOSSES, losses))}
        add_row(folder / "history.tsv", epoch, row | {"learning_rate": rate, "seconds": seconds} | scores)
        parts = {"student": student, "teacher": teacher, "optimizer": optimizer}
        state = {"epoch": epoch} | {name: part.state_dict() for name, part in parts.items()}
        plumbing.save_tensors(folder / "checkpoint.pt", state | described)

    return keep


def add_row(path, number, row):
    """Row `number` (1, 2 ..) of a TSV file, in the place of all that stand there from it on: of an epoch done again"""
    with foreign(path, "is no text ({}); move it away: without it the run goes on, too"):
        lines = plumbing.read_text(path).splitlines()[:number] if path.exists() else ["\t".join(row)]
    lines.append("\t".join(str(value) if isinstance(value, int) else f"{value:.6g}" for value in row.values()))
    plumbing.write_text(path, "\n".join(lines))


# --- a finished run --------------------------------------------------------------------------------------------------


def load(path, remedy="name another --out"):
    """A checkpoint or model.pt; InputError for what is neither"""
    try:
        content = plumbing.load_tensors(path)
        largest = max((tensor.numel() * tensor.itemsize for tensor in plumbing.tensors_in(content)), default=0)
        if largest > Path(path).stat().st_size:
            raise ValueError("few numbers, repeated to more than it holds")
        return content
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a checkpoint of this program ({error}); {remedy}") from None


def remedy_of(path):
    """What to do where a checkpoint or model.pt is damaged"""
    goes_on = path.name == "model.pt" and path.with_name("checkpoint.pt").exists()
    return "move it away, and the run goes on from checkpoint.pt" if goes_on else "name another --out"


def read_state(path, config, data):
    """checkpoint.pt or model.pt -> what it holds; InputError unless of a run with this configuration on these clips"""
    state, now, remedy = load(path, remedy_of(path)), description(config, data), remedy_of(path)
    with foreign(path, f"was not written by this program, or by an older version; {remedy}"):
        stored, wanted = state["config"], asdict(config)
        del wanted["data"]  # the folder may have moved, or have several names
        differs = [f"{key} {stored.get(key)}" for key, value in wanted.items() if stored.get(key) != value]
        if (state["classes"], state["data"]) != (now["classes"], now["data"]):
            differs.append("other data")
        statistics = "mel_statistics", "visual_statistics"
        if not differs and not all(plumbing.same_form(state[name], now[name]) for name in statistics):
            raise ValueError("statistics")
    if differs:
        raise InputError(f"{path}: is of a run with {', '.join(differs)[:200]}; give the same flags, or another --out")
    return state


def finished_report(folder, config, data, scores):
    """The report of a finished run; None where there is none, or one whose public clips were split by other streams.

    scores: names of the scores that it must have
    """
    path = folder / "model.pt"
    if not path.exists():
        return None
    report = without_tensors(read_state(path, config, data))
    check_report(report, path, scores)
    return report if report.get("streams") == list(data.visual_statistics) else None


def check_report(report, path, scores, audio_weights=()):
    """InputError unless a report has these scores, from 0 to 1 or None, for validation, public and its parts.

    audio_weights: those that a run with video must have been scored with
    """
    with foreign(path, "its scores are damaged; move its folder away, and the run is done again"):
        weight, by_weight = report["infer_weight"], report["by_weight"]
        if type(weight) is not float:
            raise ValueError("acoustic weight")
        if report["config"]["visual"] and not {str(weight) for weight in audio_weights} <= by_weight.keys():
            raise ValueError("acoustic weights")
        for parts in by_weight.values():
            for part in (parts["validation"], *parts.values()):
                if not all(part[name] is None or 0 <= part[name] <= 1 for name in scores):
                    raise ValueError("a score")
        if report["scores"] != by_weight[str(weight)]:
            raise ValueError("two kinds of scores")


def finish(folder, config, data, report, student):
    """Write metrics.json and model.pt -> the report as metrics.json has it"""
    report = description(config, data) | as_text_can_hold(report) | {"streams": list(data.visual_statistics)}
    readable = without_tensors(report)
    plumbing.write_text(folder / "metrics.json", plumbing.json_text(readable, indent=1))
    plumbing.save_tensors(folder / "model.pt", report | {"weights": student.state_dict()})  # last: now it is finished
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return readable


def without_tensors(report):
    tensors = ("weights", "mel_statistics", "visual_statistics")
    return {key: value for key, value in report.items() if key not in tensors}


def as_text_can_hold(value):
    """Dicts of dicts of numbers and arrays -> the same of plain numbers and lists; JSON knows no NaN: None"""
    if isinstance(value, dict):
        return {str(key): as_text_can_hold(x) for key, x in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def write_tags(path, filenames, classes, tags):
    """Tags (N, C) bool -> a table of clip labels: filename, event_labels"""
    lines = ["filename\tevent_labels"]
    for name, active in zip(filenames, tags):
        lines.append(f"{name}\t{plumbing.join_labels(label for label, on in zip(classes, active) if on)}")
    plumbing.write_text(path, "\n".join(lines))


def write_operating_points(path, points):
    """Pairs of a threshold and the events found with it -> one table, with the threshold as last column"""
    lines = ["filename\tonset\toffset\tevent_label\tthreshold"]
    for threshold, events in points:
        for file, onset, offset, label in events:
            lines.append(f"{file}\t{onset!r}\t{offset!r}\t{label}\t{threshold:.2f}")
    plumbing.write_text(path, "\n".join(lines))


def write_durations(path, durations):
    """dict of filename -> seconds, as a table"""
    lines = ["filename\tduration", *(f"{name}\t{float(seconds)!r}" for name, seconds in durations.items())]
    plumbing.write_text(path, "\n".join(lines))


def write_scores(folder, filenames, classes, scores, frame_hop, seconds):
    """Frame scores (N, T, C) -> a table for each clip, <clip stem>.tsv: onset, offset, a column for each class.

    The format in which systems are exchanged (sed_scores_eval, DESED_task, sebbs). The last row ends with the clip;
    seconds: (N,) lengths of the clips. No digit is lost: read back, the numbers are the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    times = np.arange(scores.shape[1] + 1) * frame_hop
    header = "\t".join(("onset", "offset", *classes))
    for name, of_clip, end in zip(filenames, scores, seconds):
        n_frames = max(1, np.count_nonzero(times[:-1] < end))
        edges = np.minimum(times[: n_frames + 1], end).tolist()
        rows = zip(edges, edges[1:], of_clip[:n_frames].astype(np.float64).tolist())
        lines = ["\t".join(map(repr, (onset, offset, *values))) for onset, offset, values in rows]
        plumbing.write_text(folder / f"{plumbing.stem(name)}.tsv", "\n".join([header, *lines]))
