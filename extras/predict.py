"""Events in recordings of any length, with or without video, by the model.pt of a finished run.

    python -m extras.predict MODEL FILE [FILE ...]

    from extras.predict import events, load_model
    for filename, onset, offset, event_label, score in events(load_model("model.pt"), "street.mp3"):

Top to bottom, the way of a recording: its sound in blocks, windows of 10 s, the model, what it makes of each window,
frame scores of the whole recording, events, their texts (tables, labels ...) and the command, which does this for many
recordings. No step needs the whole sound at once, so an hour takes little more memory than ten seconds.

Shapes: N windows, T output frames of the recording, C classes, E encoders, D width of a visual vector.
"""

import argparse
import io
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from extras import plumbing  # before torch, see there
from extras.plumbing import InputError

import torch  # isort: skip

import features
import metrics
import train
from avsed import MultiEncoder
from extras import embeddings, page, plots, runs
from features import CLIP_SAMPLES, CLIP_SECONDS, FRAME_HOP, FRAMES, HOP, SAMPLE_RATE

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")  # read by soundfile; all other files by ffmpeg
SUFFIXES = SOUND_SUFFIXES + tuple(  # what counts as a recording in a folder
    ".mp3 .m4a .aac .opus .oga .wma .aif .aiff .aifc .au .caf .amr .w64 .mka .ac3 .mp4 .m4v .mov .mkv .webm .ogv .avi "
    ".mpg .mpeg .ts .mts .m2ts .3gp .flv .wmv .mxf".split()
)
NO_CELL = "[\t\r\n\ud800-\udfff]"  # in a name: it would break the table
STRIDE = FRAMES // 2  # ours: output frames from one window to the next
STRIDE_SAMPLES = STRIDE * 8 * HOP  # 80,128 samples, 5.008 s
TOY_MODEL = "trained on synthesised sounds: what it finds in recordings means nothing"
TSV_HEADER = "\t".join((*features.EVENT_COLUMNS, "score"))
WINDOW_BATCH = 20  # windows that go through the network at a time: some 200 MB


# --- the sound of a recording, block by block ------------------------------------------------------------------------


def is_sound_file(path):
    """Whether soundfile reads it; but where an Ogg file is several recordings in a row, only ffmpeg reads all"""
    by_name = Path(path).suffix.lower() in SOUND_SUFFIXES
    return plumbing.is_wav(path) or by_name and not (Path(path).is_file() and plumbing.is_chained(path))


def read_blocks(path):
    """Recording -> yields blocks of it: (samples,) float32 at 16 kHz, channels averaged; peaks stay as they are.

    Put together, the blocks are what `features.read_mono` makes of the file, except that a recording that was cut is
    taken, with a warning. Of files other than wav, flac and ogg, ffmpeg decodes, mixes and resamples the sound, see
    `embeddings.ffmpeg_blocks`. Raises InputError where there is no sound, or none that can be decoded.
    """
    heard = False
    for block in sound_file_blocks(path) if is_sound_file(path) else embeddings.ffmpeg_blocks(path):
        if not np.isfinite(block).all():
            raise InputError(f"{path}: holds samples that are not finite; mend the file")
        heard = heard or len(block) > 0
        yield block
    if not heard:
        raise InputError(f"{path}: holds no audio; name a file with sound")


def sound_file_blocks(path):
    return plumbing.resampled(features.sound_blocks(path, strict=False), features.resample, SAMPLE_RATE)


def recording_seconds(path):
    """How long a recording is by its header, which may be off; 0 where it does not say"""
    if is_sound_file(path):
        with plumbing.open_sound(path) as file:
            return file.frames / file.samplerate if file.frames < 2**62 else 0
    return embeddings.describe(path).seconds


def has_picture(path):
    """Whether a file holds a video; the cover of a music file (0:V leaves such out) is none"""
    if is_sound_file(path):
        return False
    return embeddings.run_ffmpeg(path, [], ["-map", "0:V", "-frames:v", "1", "-f", "null", "-"]).returncode == 0


# --- windows ---------------------------------------------------------------------------------------------------------
# A recording is heard in windows of 10 s, each half over its neighbour. They begin a whole number of output frames
# apart, so that the frames of neighbours cover the same samples and their scores can be averaged.


def cut_windows(blocks):
    """Blocks of sound at 16 kHz -> yields windows: (start in samples, (samples,) float32), the last one may be shorter.

    Each holds 4.99 s of sound or more, unless the whole recording is shorter.
    """
    known, start = np.zeros(0, np.float32), 0
    for block in blocks:
        known = np.concatenate([known, block])
        while len(known) > CLIP_SAMPLES:  # so there is more to come after this window
            yield start, known[:CLIP_SAMPLES]
            known, start = known[STRIDE_SAMPLES:], start + STRIDE_SAMPLES
    yield start, known


def window_log_mel(sound):
    """One window -> (512, 64) log-mel, as features.load_audio and log_mel give it for a clip.

    ours: each window is scaled by its own peak, because each training clip was. Scaled by that of the recording, one
    bang would make the whole of it quieter than anything the network knows.
    """
    return features.log_mel(features.fit_clip(features.scale_peak(sound))).numpy()


def vectors_of_windows(path, starts, networks, stored):
    """dict of stream -> vectors (64, D) of the windows that start at these seconds, None where there is no picture.

    networks: dict of stream -> network that looks at the file's own picture
    stored: dict of stream -> vectors (64, D) of the first window, for the streams without a network
    """
    vectors = {stream: [array if start == 0 else None for start in starts] for stream, array in stored.items()}
    vectors |= {stream: [] for stream in networks}
    if networks:
        with closing(embeddings.decode_ahead([(path, start, CLIP_SECONDS) for start in starts])) as decoded:
            for frames in decoded:
                blind = isinstance(frames, InputError)  # mostly because the file breaks off
                for stream, network in networks.items():
                    vectors[stream].append(None if blind else embeddings.clip_vectors(network, frames, path))
    return vectors


def windows_as_clips(path, log_mel, vectors, statistics):
    """Log-mel maps (N, 512, 64) and vectors of windows -> a Partition, which `train.predict` takes"""
    part = features.Partition("windows", Path(path).parent, len(log_mel), [path] * len(log_mel), log_mel=log_mel)
    for stream, (mean, _) in statistics.items():
        of_stream = vectors.get(stream, [None] * len(log_mel))
        if wrong := {array.shape[1] for array in of_stream if array is not None} - {mean.size}:
            raise InputError(f"{path}: {stream} vectors are {wrong.pop()} wide, but the model learnt from {mean.size}")
        # vectors with values that are not finite, or far out, count as missing, as they do in training
        part.present[stream] = np.array([array is not None and plumbing.usable(array) for array in of_stream])
        blank = np.zeros((FRAMES, mean.size))
        part.visual[stream] = np.stack([blank if array is None else array for array in of_stream]).astype(np.float32)
    return part


def stitch(scores):
    """Frame scores of windows (N, 64, C) -> of the recording (32 (N + 1), C) float32.

    ours: where windows meet, their scores are averaged with weights that fall linearly towards a window's edges. There
    it knows only one side of what it hears, while the other window has that moment well inside. On an hour of toy
    sounds this gave an EBF1 of 39.1, a plain average 34.5, windows without overlap 34.1.
    """
    weight = np.minimum(np.arange(1, FRAMES + 1), np.arange(FRAMES, 0, -1))[:, None].astype(float)  # (64, 1)
    total = np.zeros((STRIDE * (len(scores) + 1), scores.shape[2]))
    weights = np.zeros((len(total), 1))
    for i, window in enumerate(scores):
        frames = slice(STRIDE * i, STRIDE * i + FRAMES)
        total[frames] += weight * window
        weights[frames] += weight
    return (total / weights).astype(np.float32)


# --- the model, and what it hears and sees ---------------------------------------------------------------------------


@dataclass
class Trained:
    """What a finished run left for prediction"""

    student: MultiEncoder
    data: features.DataSet  # classes and statistics, no clips
    audio_weight: float
    threshold: np.ndarray  # (C,), tuned for EBF1
    window: np.ndarray  # (C,) frames, tuned for EBF1
    device: torch.device
    toy: bool = False  # trained on toy data


def load_model(path, device="auto"):
    """The model.pt of a finished run -> Trained; raises InputError for any other file"""
    device, remedy = plumbing.choose_device(device), "name the model.pt that a run left"
    if not os.path.isfile(path):
        what = "is a folder; name the model.pt in it" if os.path.isdir(path) else f"no such file; {remedy}"
        raise InputError(f"{path}: {what}")
    state = runs.load(path, remedy)
    state = state if isinstance(state, dict) else {}
    if "student" in state:
        raise InputError(f"{path}: is of an unfinished run; complete it with --resume and name the model.pt it leaves")

    def check(fits, what):
        if not fits:
            raise ValueError(what)

    def statistics(pair):
        check(plumbing.same_form(pair, [torch.empty(len(pair[0]), device="meta")] * 2), "statistics")
        check((pair[1] > 0).all(), "standard deviations")
        return np.stack([values.numpy() for values in pair])

    with plumbing.foreign(path, f"not the model.pt of a finished run ({{}}); {remedy}"):
        visual = {stream: statistics(pair) for stream, pair in state["visual_statistics"].items()}
        data = features.DataSet(state["classes"], {}, statistics(state["mel_statistics"]), visual)
        check(data.mel_statistics.shape[1] == features.MELS, "statistics of log-mel")
        n, weight = len(data.classes), state["infer_weight"]
        check(data.classes == sorted({str(label) for label in data.classes}), "classes")
        check(not any(re.search(NO_CELL, label) for label in data.classes), "a class name that no table can hold")
        student = MultiEncoder(n, {stream: pair.shape[1] for stream, pair in visual.items()}, state["config"]["base"])
        fits = plumbing.same_form(state["weights"], student.state_dict())
        check(fits, "weights of another architecture, or not finite")
        student.load_state_dict(state["weights"])
        threshold, window = (np.array(state["tuned"]["EBF1"][name]) for name in ("threshold", "window"))
        check(threshold.shape == window.shape == (n,) and np.isfinite(threshold).all(), "thresholds")
        check(window.dtype.kind == "i" and np.isin(window, range(1, 1000, 2)).all(), "windows")
        check(1e-6 <= weight <= 1, "acoustic weight")
    return Trained(student.to(device), data, weight, threshold, window, device, state.get("toy_data") is True)


def visual_sources(trained, weights, visual_file):
    """--weights or --visual-file, files in the order of the model's streams -> dict of networks, dict of vectors"""
    streams = list(trained.data.visual_statistics)
    for flag, given in (("--weights", weights), ("--visual-file", visual_file)):
        if given and len(given) != len(streams):
            wanted = f"one for each of its streams: {', '.join(streams)}" if streams else "none: it only hears"
            raise InputError(f"{flag}: {len(given)} files, but the model wants {wanted}")
    networks = {stream: embeddings.load_network(stream, path, trained.device) for stream, path in zip(streams, weights)}
    return networks, {stream: features.read_visual(path) for stream, path in zip(streams, visual_file)}


@dataclass
class Heard:
    """What the network makes of a recording"""

    frame_scores: np.ndarray  # (T, C), frames of 0.1565 s; the last ones may lie beyond the end
    seconds: float
    log_mel: np.ndarray  # (8 T, 64) float16; None unless asked for
    windows: int
    with_video: dict  # stream -> number of windows that have it
    first: features.Partition  # the first window


def hear(trained, path, networks, stored, keep_log_mel=False, writer=None, show_progress=plumbing.show_progress):
    """Run the network over a recording of any length -> Heard. Memory grows by 2 MB an hour, with log-mel by 70 MB.

    networks, stored: where visual vectors come from, see `vectors_of_windows`
    writer: a soundfile.SoundFile that receives what is heard
    """
    statistics, weight = trained.data.visual_statistics, trained.audio_weight
    networks = networks if networks and has_picture(path) else {}
    beyond = max(0.0, recording_seconds(path) - CLIP_SECONDS)
    expected = 1 + math.ceil(beyond / (STRIDE * FRAME_HOP))  # windows, if the header is right
    scores, maps, first, n, started = [], [], None, 0, time.monotonic()
    with_video = dict.fromkeys(statistics, 0)
    windows = cut_windows(copied(read_blocks(path), writer) if writer else read_blocks(path))
    while batch := list(islice(windows, WINDOW_BATCH)):
        log_mel = np.stack([window_log_mel(sound) for _, sound in batch])
        vectors = vectors_of_windows(path, [start / SAMPLE_RATE for start, _ in batch], networks, stored)
        part = windows_as_clips(path, log_mel, vectors, statistics)
        scores.append(train.predict(trained.student, trained.data, part, [weight], trained.device)[weight][0])
        if keep_log_mel:  # to be looked at, each window as loud as it is
            peaks = np.array([np.abs(sound).max() or 1 for _, sound in batch])
            maps.append((log_mel + np.log(peaks)[:, None, None]).astype(np.float16))
        if first is None:
            first_vectors = {stream: arrays[:1] for stream, arrays in vectors.items()}
            first = windows_as_clips(path, log_mel[:1], first_vectors, statistics)
        n += len(batch)
        with_video = {stream: count + int(part.present[stream].sum()) for stream, count in with_video.items()}
        show_progress(Path(path).name, n, max(expected, n), started, sys.stderr)
        start, sound = batch[-1]
    seconds = (start + len(sound)) * 1000 // SAMPLE_RATE / 1000  # ours: whole ms, so that no event ends later
    if keep_log_mel:  # of each window the half that the next one does not have, of the last one both
        maps = np.concatenate(maps)
        maps = np.concatenate([*maps[:, : 8 * STRIDE], maps[-1, 8 * STRIDE :]])
    return Heard(stitch(np.concatenate(scores)), seconds, maps if keep_log_mel else None, n, with_video, first)


def copied(blocks, writer):
    """The same blocks of sound, each of which is written to a sound file on its way"""
    for block in blocks:
        writer.write(np.clip(block, -1, 1))
        yield block


def events_of(trained, name, heard, threshold=None, min_score=0.0):
    """What was heard -> its events by onset: (filename, onset, offset, event_label, score), in seconds.

    threshold: one for all classes, instead of the tuned ones. ours: of the five tunings of a run (Boes 2022, Sec.
    3.1.3), that for EBF1
    score: mean probability of the class in the frames of the event, three decimals; events below min_score are dropped
    """
    classes, durations = trained.data.classes, {name: heard.seconds}
    threshold = trained.threshold if threshold is None else threshold
    found = metrics.scores_to_events(
        heard.frame_scores[None], [name], classes, threshold, trained.window, FRAME_HOP, durations
    )
    rows = []
    for _, onset, offset, label in sorted(found, key=lambda event: event[1:]):
        frames = slice(round(onset / FRAME_HOP), math.ceil(round(offset / FRAME_HOP, 6)))  # the last one may be cut
        score = round(float(heard.frame_scores[frames, classes.index(label)].mean()), 3)
        if score >= min_score:
            rows.append((name, round(onset, 4), round(offset, 4), label, score))
    return rows


def events(model, path, networks={}, stored={}, threshold=None, min_score=0.0):
    """Events of a recording: a list of (filename, onset, offset, event_label, score). Prints nothing.

    model: from `load_model`; networks, stored: from `visual_sources`, else the model only hears; the rest as above.
    Raises InputError for what is no recording.
    """
    heard = hear(model, path, networks, stored, show_progress=lambda *_: None)
    return events_of(model, Path(path).name, heard, threshold, min_score)


def cross_attention(trained, clip):
    """What the decoder attends to in a Partition of one clip (Boes 2019, Sec. 4.2).

    -> names of the E encoders that have a share in the clip's output, weights (blocks, E, heads, 65 queries, 64
    frames), which sum to one over the frames; query 64 is the token
    """
    caught = []

    def look(cross, arguments):
        x, memories, shares = arguments  # shares (B, E) of the encoders
        caught.append((shares[0] > 0, cross.attention_weights(x, memories)[0]))

    hooks = [block.cross.register_forward_pre_hook(look) for block in trained.student.decoder.blocks]
    train.predict(trained.student, trained.data, clip, [trained.audio_weight], trained.device)
    for hook in hooks:
        hook.remove()
    used = caught[0][0].cpu().numpy()  # a stream that the clip lacks has no share, and is left out
    encoders = [name for name, share in zip(("log-mel", *trained.student.streams), used) if share]
    return encoders, torch.stack([weights for _, weights in caught]).cpu().numpy()[:, used]


# --- the texts of a recording's events -------------------------------------------------------------------------------
# Each takes the name of a recording, its length in seconds and its events


def as_tsv(name, seconds, rows):
    lines = [TSV_HEADER, *(f"{name}\t{on}\t{off}\t{label}\t{score:.3f}" for name, on, off, label, score in rows)]
    return "".join(f"{line}\n" for line in lines)


def as_audacity(name, seconds, rows):
    """A label track: File > Import > Labels"""
    return "".join(f"{onset:.6f}\t{offset:.6f}\t{label} {score:.3f}\n" for _, onset, offset, label, score in rows)


def as_json(name, seconds, rows):
    """One line, so that those of many recordings are JSON Lines"""
    keys = ("onset", "offset", "event_label", "score")
    found = [dict(zip(keys, row[1:])) for row in rows]
    return json.dumps({"filename": name, "seconds": seconds, "events": found}, ensure_ascii=False) + "\n"


def as_srt(name, seconds, rows):
    """Subtitles"""

    def clock(moment):
        ms = round(1000 * moment)
        return f"{ms // 3600000:02d}:{ms // 60000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"

    return "".join(
        f"{number}\n{clock(onset)} --> {clock(offset)}\n{label} ({score:.3f})\n\n"
        for number, (_, onset, offset, label, score) in enumerate(rows, 1)
    )


FORMATS = {"tsv": as_tsv, "audacity": as_audacity, "json": as_json, "srt": as_srt}
ENDINGS = {"tsv": ".tsv", "audacity": ".txt", "json": ".json", "srt": ".srt"}


# --- the recordings, and what --out holds of each ---------------------------------------------------------------------


def note(line):
    print(plumbing.shown(line.replace("\n", " ")), file=sys.stderr, flush=True)


def find_recordings(files, folder):
    """Arguments FILE -> (path, name) of each recording. Below a folder, names are relative to it.

    "-" is stdin, which is kept in the other folder: ffmpeg cannot read all formats from a pipe.
    """
    found = []
    for given in files:
        if given == "-":
            path = os.path.join(folder, "stdin")
            with open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            found.append((path, "stdin"))
        elif os.path.isdir(given):
            inside = recordings_below(given)
            if not inside:
                raise InputError(f"{given}: no file in it is a recording by its ending: {' '.join(SUFFIXES)}")
            found += inside
        else:
            found.append((given, Path(given).name))
    return found


def recordings_below(folder):
    """(path, name) of all recordings in a folder and its sub-folders, sorted; hidden files and folders are left out"""

    def stop(error):
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in files if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    return [(str(path), path.relative_to(folder).as_posix()) for path in sorted(found)]


def check_names(names, out):
    """Files are told apart by their names, in the table and in the folder of outputs; and no run is overwritten."""
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise InputError(f"{twice[0]}: two files of this name; rename one, or predict them one after the other")
    if out:
        plumbing.check_out(out)
    if out and ((out / "model.pt").exists() or (out / "checkpoint.pt").exists()):
        raise InputError(f"{out}: holds a run, whose files would be overwritten; name another --out")


def begin_folder(args):
    """Keep in DIR/settings.json what the files in --out are made with; those older than it will be made anew"""
    inputs = [Path(path) for path in (args.model, *args.weights, *args.visual_file)]
    inputs += [Path(args.reference)] if args.reference else []
    settings = {"inputs": plumbing.fingerprint(inputs), "threshold": args.threshold, "min_score": args.min_score}
    text, file = json.dumps(settings), Path(args.out) / "settings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file() or file.read_text(encoding="utf-8").strip() != text:
        plumbing.write_text(file, text)


def files_of(args, name):
    """What this call writes of a recording, the table or label file last: where that is, all is"""
    endings = [".png"] * args.plot + [".html"] * args.page + [".attention.npy", ".attention.png"] * args.attention
    files = [Path(args.out) / f"{name}{ending}" for ending in (*endings, ENDINGS[args.format])]
    return [scores_file(args.scores, name), *files] if args.scores else files


def scores_file(folder, name):
    """The table that runs.write_scores writes"""
    return (Path(folder) / name).with_name(f"{plumbing.stem(name)}.tsv")


def is_done(args, path, name):
    """Is all that this call writes of a recording there, newer than the recording and made with the same settings?"""
    if not (args.out and os.path.isfile(path)):
        return False
    since = max(os.stat(of).st_mtime_ns for of in (path, Path(args.out) / "settings.json"))
    return all(file.is_file() and file.stat().st_mtime_ns >= since for file in files_of(args, name))


def listen(args, trained, path, name, networks, stored):
    """-> what was heard, and for --page its sound as a file's bytes"""
    if re.search(NO_CELL, name):
        raise InputError(
            f"{name!r}: a tab, a line break or what is no text in the name would break the table; rename the file"
        )
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; mend the name")
    if not args.page:
        return hear(trained, path, networks, stored, args.plot), b""
    sound = io.BytesIO()
    with page.sound_writer(sound, SAMPLE_RATE) as writer:
        heard = hear(trained, path, networks, stored, True, writer)
    return heard, sound.getvalue()


def write_whole(path, text):
    with plumbing.replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_files(args, trained, path, name, heard, sound, rows, truth):
    """Write what this call promises of a recording; truth: true events, None where they are not known"""
    beginning = Path(args.out) / name  # of the names of its files
    beginning.parent.mkdir(parents=True, exist_ok=True)
    frame_scores = heard.frame_scores[: max(1, math.ceil(heard.seconds / FRAME_HOP))]
    log_mel = heard.log_mel[: 8 * len(frame_scores)] if heard.log_mel is not None else None
    classes = trained.data.classes
    if args.plot:
        events_drawn = [row[:4] for row in rows]
        plots.plot_clip(log_mel, classes, frame_scores, events_drawn, truth or (), Path(f"{beginning}.png"))
    if args.page:
        threshold = trained.threshold if args.threshold is None else np.full(len(classes), args.threshold)
        facts = [plumbing.clock(heard.seconds), f"events: {len(rows)}", *seen(heard), about(args, trained)]
        warnings = [TOY_MODEL[0].upper() + TOY_MODEL[1:] + "."] if trained.toy else []
        document = page.recording_page(
            name, heard.seconds, sound, log_mel, classes, frame_scores, threshold, rows, truth, facts, warnings
        )
        page.write(f"{beginning}.html", document)
    if args.attention:
        encoders, weights = cross_attention(trained, heard.first)
        plumbing.save_array(Path(f"{beginning}.attention.npy"), weights)
        frames = embeddings.read_frames(path) if has_picture(path) else ()
        picture = Path(f"{beginning}.attention.png")
        plots.plot_attention(heard.first.log_mel[0], encoders, weights[-1], frames, picture)
        note(f"       {name}: attention of {' and '.join(encoders)} in its first ten seconds")


# --- the command -----------------------------------------------------------------------------------------------------


def about(args, trained):
    """The model and its thresholds in a few words"""
    inputs = " + ".join(("log-mel", *trained.data.visual_statistics))
    thresholds = "tuned for EBF1" if args.threshold is None else f"threshold {args.threshold:g}"
    return f"{args.model} | {inputs}, acoustic weight {trained.audio_weight:g}, {thresholds}"


def seen(heard):
    return [f"with {stream}: {n} of {heard.windows} windows" for stream, n in heard.with_video.items()]


def tell(name, place, heard, rows, networks, stored):
    """A line about a recording that is done, and one more where the model had to do without the picture"""
    with_video = "".join(f", with {stream}: {n}" for stream, n in heard.with_video.items())
    length = plumbing.clock(heard.seconds)
    note(f"{place:6} {name}: {length} of sound, windows: {heard.windows}{with_video}, events: {len(rows)}")
    if heard.with_video and not any(heard.with_video.values()):
        if networks:
            reason = "no picture can be read"
        elif stored:
            reason = f"the vectors hold values that are not finite, or beyond {plumbing.LARGEST:g}"
        else:
            reason = "--weights or --visual-file would add what is seen"
        note(f"note   {name}: predicted from sound alone (acoustic weight 1): {reason}")


def run(args, folder):
    """Recording by recording: events go to stdout, files to --out, all else to stderr. folder: where stdin is kept"""
    recordings = find_recordings(args.files, folder)
    names = [name for _, name in recordings]
    check_names(names, Path(args.out) if args.out else None)
    several = len(recordings) > 1
    if args.scores and len({scores_file(args.scores, name) for name in names}) < len(names):
        raise InputError("--scores: two recordings differ in their suffix alone; predict them one after the other")
    if args.scores:
        plumbing.check_out(args.scores)
    if several and args.visual_file:
        raise InputError("--visual-file belongs to one recording: name one FILE")
    if several and args.format in ("audacity", "srt") and not args.out:
        raise InputError(f"--format {args.format} makes a file of each recording: name a folder with --out")
    trained = load_model(args.model, args.device)
    networks, stored = visual_sources(trained, args.weights, args.visual_file)
    listed, true_events = features.read_strong(args.reference, of_system=True) if args.reference else ([], [])
    if args.plot or args.attention:
        plots.figure_class()  # without matplotlib, stop before the work
    note(f"model  {about(args, trained)} | {trained.device.type}")
    if trained.toy:
        note(f"note   {TOY_MODEL}")
    if args.reference and not set(names).intersection(listed):
        note(f"note   {args.reference}: lists none of the recordings; its file names must be such as {names[0]}")
    if args.out:
        begin_folder(args)
    table, failed = [TSV_HEADER + "\n"], []
    if args.format == "tsv":
        print(table[0], end="", flush=True)
    for number, (path, name) in enumerate(recordings, 1):
        place = f"{number}/{len(recordings)}" if several else ""
        if is_done(args, path, name):
            text = files_of(args, name)[-1].read_text(encoding="utf-8")
            note(f"{place:6} {name}: was done before")
        else:
            try:
                heard, sound = listen(args, trained, path, name, networks, stored)
            except (InputError, FloatingPointError, PermissionError) as error:
                line = plumbing.in_words(error).replace(folder + os.sep, "")  # stdin has its plain name
                if not several:
                    raise InputError(line) from None
                note(f"{place:6} failed: {line}")
                failed.append(line)
                continue
            rows = events_of(trained, name, heard, args.threshold, args.min_score)
            tell(name, place, heard, rows, networks, stored)
            text = FORMATS[args.format](name, heard.seconds, rows)
            if args.scores:
                place = scores_file(args.scores, name).parent
                series = heard.frame_scores[None], FRAME_HOP, [heard.seconds]
                runs.write_scores(place, [name], trained.data.classes, *series)
            if args.out:
                truth = [event for event in true_events if event[0] == name] if name in listed else None
                write_files(args, trained, path, name, heard, sound, rows, truth)
                write_whole(files_of(args, name)[-1], text)
        if args.format == "tsv":
            text = text.partition("\n")[2]  # the rows
            table.append(text)
        if args.format == "tsv" or not args.out:
            print(plumbing.shown(text), end="", flush=True)
    if args.out and args.format == "tsv":
        write_whole(Path(args.out) / "predictions.tsv", "".join(table))
    if failed:
        note(f"failed: {len(failed)} of {len(recordings)} recordings")
        for line in failed:
            note(f"       {line}")
        sys.exit(1)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m extras.predict",
        description="Events in recordings of any length, as a table of filename, onset, offset (seconds), label and "
        "score, the mean probability of the label during the event.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="the model.pt that a run left")
    add("files", nargs="+", metavar="FILE", help="sound, video (all but wav, flac and ogg need ffmpeg), a folder, or -")
    add("--weights", nargs="+", default=[], metavar="FILE", help="of the visual networks, in the order of the streams")
    add("--visual-file", nargs="+", default=[], metavar="NPY", help="instead, the visual vectors of FILE's first 10 s")
    add("--format", choices=FORMATS, default="tsv", help="of the events; default: tsv")
    add("--threshold", type=plumbing.fraction, metavar="T", help="0 to 1, for all classes; default: each its tuned one")
    add("--min-score", type=plumbing.fraction, default=0.0, metavar="S", help="leave out events of a lower score")
    add("--out", metavar="DIR", help="write a file of events for each FILE, and what the next flags ask for; what"
        " is there, and newer than FILE, is not done again")  # fmt: skip
    add("--page", action="store_true", help="DIR/FILE.html, to look at and to listen to in a browser")
    add("--scores", nargs="?", const="", metavar="DIR", help="probabilities of each frame of 0.1565 s, a table for each"
        " FILE, as extras.score --scores and other evaluators read them; default: DIR/scores, in --out")  # fmt: skip
    add("--plot", action="store_true", help="a picture, DIR/FILE.png; needs matplotlib")
    add("--attention", action="store_true", help="what the decoder attends to in the first ten seconds; matplotlib too")
    add("--reference", metavar="TSV", help="true events, for page and picture")
    add("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    args = parser.parse_args(arguments)
    if (args.page or args.scores == "" or args.plot or args.attention) and not args.out:
        parser.error("--page, --scores, --plot and --attention write files: name a folder with --out")
    if args.scores == "":
        args.scores = str(Path(args.out) / "scores")  # as in a run's folder
    if args.scores and (os.path.isfile(args.scores) or (args.out and Path(args.scores) == Path(args.out))):
        parser.error(f"--scores {args.scores}: wants a folder of its own, for tables of scores alone")
    if args.reference and not (args.plot or args.page):
        parser.error("--reference is drawn by --page and --plot: add one")
    if args.weights and args.visual_file:
        parser.error("--weights and --visual-file exclude each other")
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    rest = "give the same command again to go on" if args.out else "the rows printed so far are whole recordings"
    with plumbing.one_line_errors(rest), tempfile.TemporaryDirectory() as folder:
        run(args, folder)


if __name__ == "__main__":
    main()
