"""From files to arrays: log-mel maps, tables of events and labels, visual vectors, the DCASE 2020 task 4 layout.

    load_audio, log_mel     the acoustic features (Boes 2022, Sec. 3.1.2)
    read_strong             a table of events
    load_dataset            metadata, audio and visual vectors of a folder -> a DataSet, cached on disk

This file runs when copied alone (torch, numpy, scipy, soundfile). A data set is a folder in the layout of DCASE 2020
task 4, plus one folder of vectors for each visual stream:

    DIR/metadata/train/weak.tsv                       DIR/audio/train/weak/*.wav
    DIR/metadata/train/unlabel_in_domain.tsv          DIR/audio/train/unlabel_in_domain/*.wav
    DIR/metadata/train/synthetic20/soundscapes.tsv    DIR/audio/train/synthetic20/soundscapes/*.wav
    DIR/metadata/validation/validation.tsv            DIR/audio/validation/*.wav
    DIR/metadata/eval/public.tsv                      DIR/audio/eval/public/*.wav
    DIR/visual/<stream>/<clip stem>.npy               (64, D) float16 or float32; no file means no video
    DIR/cache                                         ours, safe to delete

Shapes: N clips, 512 log-mel frames of 64 mel bins, T = 64 output and visual frames, D width of a visual vector,
C classes.
"""

import functools
import hashlib
import io
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
import uuid
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
import torch

SAMPLE_RATE = 16000  # Hz (Boes 2022, Sec. 3.1.2)
RATES = 1000, 400_000  # Hz: from the lowest to the highest of sound files; others are damaged
CLIP_SECONDS = 10  # Boes 2022, Sec. 3.1.1
CLIP_SAMPLES = CLIP_SECONDS * SAMPLE_RATE  # 160,000
WINDOW = 1024  # samples, 64 ms (Boes 2022, Sec. 3.1.2)
HOP = 313  # samples, 20 ms (Boes 2022, Sec. 3.1.2)
MELS = 64  # Boes 2022, Sec. 3.1.2
MEL_FRAMES = 1 + CLIP_SAMPLES // HOP  # 512 with centred frames, the number that the paper gives
MEL_FLOOR = 1e-5  # ours: -100 dB, whatever the rest of the clip is like
FRAMES = 64  # T: outputs of the network and visual vectors per clip (Boes 2022, Sec. 3.1.2)
FRAME_HOP = 8 * HOP / SAMPLE_RATE  # ours: 0.1565 s per output frame, since the network pools time by 8; not 10 s / 64
STD_FLOOR = 1e-3  # ours: a bin or dimension that never changes stays finite
RECIPE = "log-mel 1"  # part of the cache's key, as the constants are: change it when you change how log-mel is made
DAY = 86_400  # s: no recording is longer, so a later time is in other units, or damaged
MACHINE = platform.node()  # the number of a process means nothing on another one
EVENT_COLUMNS = ("filename", "onset", "offset", "event_label")

PARTITIONS = {  # name: (metadata, audio folder), as DCASE 2020 task 4 lays them out (Boes 2022, Sec. 3.1.1, Table 2)
    "strong": ("train/synthetic20/soundscapes.tsv", "train/synthetic20/soundscapes"),
    "weak": ("train/weak.tsv", "train/weak"),
    "unlabelled": ("train/unlabel_in_domain.tsv", "train/unlabel_in_domain"),
    "validation": ("validation/validation.tsv", "validation"),
    "public": ("eval/public.tsv", "eval/public"),
}
TRAINING = ("strong", "weak", "unlabelled")


# what may be raised where the contents of a foreign file are taken apart
FOREIGN = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)


class InputError(Exception):
    """Bad input: one line that names the file, the line in it and what to do about it."""


@contextmanager
def damage_as_value_error():
    """Around numpy's and torch's readers, which raise a dozen kinds of exceptions for damaged files.

    A file that is not there, or may not be read, stays an OSError: that is no reason to delete it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise ValueError(first_line(error) or type(error).__name__) from None


# --- audio -> log-mel ------------------------------------------------------------------------------------------------


def read_mono(path):
    """Sound file -> (samples,) at 16 kHz: channels averaged, resampled (Boes 2022, Sec. 3.1.2), as loud as it is"""
    blocks, remedy = list(sound_blocks(path)), "mend the file, or delete it: missing clips are fine"
    if not blocks:
        raise InputError(f"{path}: holds no audio; {remedy}")
    rate, mono = blocks[0][0], np.concatenate([block for _, block in blocks])
    if not np.isfinite(mono).all():
        raise InputError(f"{path}: holds samples that are not finite; {remedy}")
    if rate != SAMPLE_RATE:
        from scipy.signal import resample_poly  # speed: half a second to load, and few commands need it

        divisor = gcd(rate, SAMPLE_RATE)
        mono = resample_poly(mono, SAMPLE_RATE // divisor, rate // divisor)
    return mono


def read_waveform(path):
    """What read_mono returns, as float32 and with its peak at 1 (Boes 2022, Sec. 3.1.2)"""
    mono = read_mono(path)
    peak = np.abs(mono).max()
    return (mono / peak if peak > 0 else mono).astype(np.float32)


def fit_clip(waveform):
    """Cut or zero-pad to 10 s. ours: the waveform, so that a short clip looks like itself followed by silence"""
    return np.pad(waveform[:CLIP_SAMPLES], (0, max(0, CLIP_SAMPLES - len(waveform))))


def load_audio(path):
    """Sound file -> (160000,) float32: 10 s at 16 kHz, mono, the file's peak at 1 (a silent clip stays zero)"""
    return fit_clip(read_waveform(path))


def mel_filterbank(window=WINDOW):
    """(64, window // 2 + 1) float32: triangles between 66 points evenly spaced on a mel scale from 0 to 8000 Hz"""
    # ours: the Slaney scale, linear below 1 kHz (200/3 Hz per mel), logarithmic above (27 mels for a factor of 6.4)
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, MELS + 2)
    hertz = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.arange(window // 2 + 1) * SAMPLE_RATE / window
    left, centre, right = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return torch.from_numpy(np.maximum(0, triangles)).float()  # ours: every peak is 1, no area normalisation


def log_mel(audio, window=WINDOW, hop=HOP):
    """Waveforms (..., 160000) at 16 kHz, array or tensor -> log-mel (..., 512, 64) float32 tensor, time first.

    window, hop: samples; other ones give another number of frames (Boes 2022, Sec. 3.1.2; Fayek 2020, Sec. 3.1)
    """
    audio = torch.as_tensor(audio, dtype=torch.float32)
    spectrum = torch.stft(
        audio.reshape(-1, audio.shape[-1]), window, hop,
        window=torch.hamming_window(window, periodic=False, device=audio.device),  # ours: symmetric
        center=True, pad_mode="reflect", return_complex=True,  # ours: frame k is centred at k * hop, edges reflect
    )  # (clips, 513, 512)  # fmt: skip
    mel = mel_filterbank(window).to(audio.device) @ spectrum.abs()  # (clips, 64, 512), of magnitudes, not of power
    return mel.clamp_min(MEL_FLOOR).log().transpose(1, 2).reshape(*audio.shape[:-1], -1, MELS)  # ours: natural log


# --- tables ----------------------------------------------------------------------------------------------------------


def read_table(path, columns):
    """Rows of a TSV file: a list of (place, [cells of the wanted columns]); place is "file, line 7" for messages"""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # utf-8-sig: a byte order mark is no text
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the README's section 'Real data' shows the layout") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); save it as a table in UTF-8") from None
    header = lines[0].split("\t")
    if missing := [name for name in columns if name not in header]:
        wanted = f"the first line must name the columns {', '.join(columns)}, separated by tabs"
        raise InputError(f"{path}, line 1: no column {', '.join(missing)}; {wanted}")
    where = [header.index(name) for name in columns]
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells, place = [cell.strip() for cell in line.split("\t")], f"{path}, line {number}"
        cells += [""] * (len(header) - len(cells))  # some editors cut the trailing tabs of a clip without events
        if len(cells) > len(header):
            raise InputError(f"{place}: {len(cells)} columns where the header has {len(header)}; correct the tabs")
        if not cells[where[0]]:
            raise InputError(f"{place}: empty {columns[0]}; name the clip or delete the row")
        rows.append((place, [cells[i] for i in where]))
    return rows


def number(text):
    """A cell -> float; ValueError for what is one to Python alone: 1_0, digits of other scripts"""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def check_filename(place, name):
    """A name from a data set's table must name a file in the partition's own folder, never one elsewhere."""
    if name in (".", "..") or re.search(r"[/\\\0]", name):
        raise InputError(f"{place}: {name!r} is not a plain file name; give the name alone, without folders")
    return name


def read_strong(path, classes=None, of_system=False):
    """Table of events -> filenames (each once, in order), events (filename, onset, offset, event_label) in seconds.

    A row with nothing but a file name is a clip without events. Times may overlap, repeat, or pass the clip's end.
    classes: where given, no other label may occur. of_system: a table to be scored, not one of a data set: events of
    length 0 and file names with folders may occur.
    """
    filenames, events = {}, []
    for place, (name, onset, offset, label) in read_table(path, EVENT_COLUMNS):
        filenames[name if of_system else check_filename(place, name)] = None
        if not (onset or offset or label):
            continue
        try:
            start, end = number(onset), number(offset)
        except ValueError:
            raise InputError(f"{place}: onset {onset!r} and offset {offset!r} must be numbers (seconds)") from None
        if not (0 <= start <= end <= DAY and (start < end or of_system)):
            times = f"0 <= onset < offset, here {onset} and {offset}, in seconds and within a day"
            raise InputError(f"{place}: an event needs {times}; correct or delete the row")
        if not label:
            raise InputError(f"{place}: an event without a label; name the class or empty the whole row")
        if classes is not None and label not in classes:
            raise InputError(f"{place}: the class {label!r} occurs in no training clip; correct it, or add such clips")
        events.append((name, start, end, label))
    return list(filenames), events


def read_weak(path):
    """Table of clip labels -> dict of filename -> set of labels (the official lists repeat labels, in any order)"""
    clips = {}
    for place, (name, labels) in read_table(path, ("filename", "event_labels")):
        clips.setdefault(check_filename(place, name), set()).update(
            {label.strip() for label in labels.split(",")} - {""}
        )
    return clips


def read_unlabelled(path):
    """Table of clips -> filenames"""
    return list(dict.fromkeys(check_filename(place, name) for place, (name,) in read_table(path, ("filename",))))


def write_events(path, events):
    """Events -> a table, which read_strong reads back exactly"""
    lines = ["\t".join((name, repr(float(onset)), repr(float(offset)), label)) for name, onset, offset, label in events]
    with replacing(path) as partial:
        partial.write_text("\n".join(["\t".join(EVENT_COLUMNS), *lines, ""]), encoding="utf-8")


def recording(filename):
    """What a DCASE clip is cut from: (YouTube id, start, end), or None for other names.

    Training and validation write Y<id>_30.000_40.000, public evaluation <id>_30_40; an id may hold "_" and "-" and
    begin with Y itself.
    """
    stem = Path(filename).stem
    match = re.fullmatch(r"Y(.{11})_(\d+\.\d{3})_(\d+\.\d{3})", stem) or re.fullmatch(r"(.{11})_(\d+)_(\d+)", stem)
    return match and (match[1], float(match[2]), float(match[3]))


def frame_targets(filenames, events, classes):
    """Events in seconds -> (N, 64, C) bool: class c sounds in output frame t.

    ours: frames floor(onset / 0.1565) to ceil(offset / 0.1565) - 1, so that the shortest event keeps one frame.
    """
    targets = np.zeros((len(filenames), FRAMES, len(classes)), bool)
    clip, label = {name: i for i, name in enumerate(filenames)}, {name: i for i, name in enumerate(classes)}
    for name, onset, offset, event_label in events:
        targets[clip[name], int(onset / FRAME_HOP) : int(np.ceil(offset / FRAME_HOP)), label[event_label]] = True
    return targets


# --- the data set ----------------------------------------------------------------------------------------------------


@dataclass
class Partition:
    """The N clips of one list whose audio is on disk, in the order of the list"""

    name: str
    folder: Path  # where their audio is
    listed: int
    filenames: list
    events: list = field(default_factory=list)  # (filename, onset, offset, event_label), seconds
    tags: np.ndarray = None  # (N, C) bool: the clip's classes; None for unlabelled clips
    frames: np.ndarray = None  # (N, 64, C) bool: strong training clips only
    durations: np.ndarray = None  # (N,) seconds of sound
    log_mel: np.ndarray = None  # (N, 512, 64) float32, not standardised, memory-mapped
    visual: dict = field(default_factory=dict)  # stream -> (N, 64, D), not standardised, memory-mapped
    present: dict = field(default_factory=dict)  # stream -> (N,) bool: False means no video, whatever `visual` holds

    def __len__(self):
        return len(self.filenames)

    @functools.cached_property
    def seconds(self):
        """Duration of each clip: dict of filename -> seconds"""
        return dict(zip(self.filenames, self.durations.tolist()))


@dataclass
class DataSet:
    """What load_dataset returns. Statistics come from the training partitions only (Boes 2022, Sec. 3.1.2)."""

    classes: list  # C sorted names
    partitions: dict  # name -> Partition
    mel_statistics: tuple  # mean, std of each mel bin, (64,) float32
    visual_statistics: dict  # stream -> (mean, std) of each dimension, (D,) float32; in the order asked for

    def identity(self, visual):
        """Hash of the clips, their labels and which of them have video in these streams"""
        clips = [
            (part.filenames, part.events, np.asarray(part.tags).tolist(), [part.present[s].tolist() for s in visual])
            for part in self.partitions.values()
        ]
        return hashlib.sha256(repr(clips).encode()).hexdigest()[:16]


def load_dataset(root, visual=(), cache=None, log=print):
    """Read a data set in the layout shown above; the features are computed once and then memory-mapped from a cache.

    visual: names of folders under root/visual, any number
    cache: folder for the cache, default root/cache
    log: receives a line per partition: how many clips are listed, found, and have each visual stream
    Raises InputError for anything wrong. A listed clip without audio is only counted, unless a partition has none.
    """
    root = Path(root)
    if "log-mel" in visual:
        raise InputError(f"{root}/visual/log-mel: a visual stream cannot have this name; rename it")
    partitions, classes = read_partitions(root)
    stems = {stream: visual_stems(root / "visual" / stream) for stream in visual}
    for part in partitions.values():
        line = f"       {part.name:10} {part.listed:5d} listed, {len(part):5d} found"
        for stream in visual:
            n = sum(Path(f).stem in stems[stream] for f in part.filenames)
            line += f", {n:5d} with {stream} ({100 * n / max(len(part), 1):.1f} %)"
        log(line)
    drop_tested_clips(partitions, log)
    for part in partitions.values():
        if not part.listed:
            raise InputError(f"{root}: the list of '{part.name}' is empty; see metadata/{PARTITIONS[part.name][0]}")
        if not part.filenames:
            listed = f"none of the {part.listed} clips listed for '{part.name}' is there"
            raise InputError(f"{part.folder}: {listed}; put their audio into this folder")
    cache = Path(cache or root / "cache")
    keys = [add_log_mel(part, cache, log) for part in partitions.values()]
    for stream in visual:
        folder = root / "visual" / stream
        example = example_of(partitions, folder, stems[stream])
        keys += [add_visual(part, folder, stems[stream], example, cache, log) for part in partitions.values()]
        if not any(partitions[name].present[stream].any() for name in TRAINING):
            raise InputError(f"{folder}: the vectors of all training clips hold values that are not finite; redo them")
    key = fingerprint((), keys, STD_FLOOR, TRAINING)
    return DataSet(classes, partitions, *statistics(partitions, visual, cache, key))


def read_metadata(root):
    """The five tables -> clips of each partition (of `weak`: with their labels), events of each, sorted class names"""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; a data set has sub-folders audio and metadata (README, 'Real data')")
    # A metadata folder alone is read too (the official repository hands it out like that): all audio is missing then.
    alone = (root / "train").is_dir() and not (root / "metadata").is_dir()
    metadata = root if alone else root / "metadata"
    tables = {name: metadata / table for name, (table, _) in PARTITIONS.items()}
    listed, events = {}, {}
    listed["strong"], events["strong"] = read_strong(tables["strong"])
    listed["weak"] = read_weak(tables["weak"])
    listed["unlabelled"] = read_unlabelled(tables["unlabelled"])
    # ours: the classes are those that training can teach, from strong and weak labels together
    classes = sorted({label for *_, label in events["strong"]}.union(*listed["weak"].values()))
    if not classes:
        raise InputError(f"{tables['strong']}, {tables['weak']}: hold no label; there must be a class to learn")
    for name in ("validation", "public"):
        listed[name], events[name] = read_strong(tables[name], classes)
    return listed, events, classes


def read_partitions(root):
    """Metadata and a look into the audio folders -> dict of Partition (features still empty), sorted class names"""
    listed, events, classes = read_metadata(root)
    partitions = {}
    for name, (_, folder) in PARTITIONS.items():
        folder = root / "audio" / folder
        on_disk = {entry.name for entry in os.scandir(folder) if entry.is_file()} if folder.is_dir() else set()
        part = Partition(name, folder, len(listed[name]), [f for f in listed[name] if f in on_disk])
        part.events = [event for event in events.get(name, ()) if event[0] in on_disk]
        labels = listed["weak"] if name == "weak" else {f: set() for f in part.filenames}
        for filename, _, _, label in part.events:
            labels[filename].add(label)
        if name != "unlabelled":
            part.tags = np.array([[c in labels[f] for c in classes] for f in part.filenames], bool)
        if name == "strong":
            part.frames = frame_targets(part.filenames, part.events, classes)
        partitions[name] = part
    return partitions, classes


def drop_tested_clips(partitions, log):
    """Take the weak and unlabelled clips out that are test clips under another name.

    ours: one such clip is known in DCASE 2020, unlabelled YWP8aI1IXNCQ_0.000_5.000 = public WP8aI1IXNCQ_0_5.
    """
    tested = {recording(f) for name in ("validation", "public") for f in partitions[name].filenames} - {None}
    for name in ("weak", "unlabelled"):
        part = partitions[name]
        keep = np.array([recording(f) not in tested for f in part.filenames], bool)
        if not keep.all():
            log(f"       {name:10} {np.sum(~keep):5d} left out, the same recording is in validation or public")
            part.filenames = [f for f, kept in zip(part.filenames, keep) if kept]
            part.tags = part.tags[keep] if part.tags is not None else None


def visual_stems(folder):
    """Names (without .npy) of the clips that have a visual stream"""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a visual stream is a folder of (64, D) .npy files, one per clip")
    return {entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".npy") and entry.is_file()}


def add_log_mel(part, cache, log):
    """Fill in part.log_mel and part.durations -> key of the cache"""
    paths = [part.folder / f for f in part.filenames]
    key = fingerprint(paths, RECIPE, SAMPLE_RATE, CLIP_SECONDS, WINDOW, HOP, MELS, MEL_FLOOR)
    wanted = {"log_mel": ((len(paths), MEL_FRAMES, MELS), np.float32), "durations": ((len(paths),), np.float64)}

    def make(folder):
        durations = []
        with array_file(folder / "log_mel.npy", *wanted["log_mel"]) as write:
            for waveforms in in_chunks(read_waveform, paths, f"log-mel of {part.name}", log):
                write(log_mel(np.stack([fit_clip(w) for w in waveforms])).numpy())
                durations += [len(w) / SAMPLE_RATE for w in waveforms]
        np.save(folder / "durations.npy", durations)

    arrays = cached(cache / f"{part.name}-log_mel-{key}", make, wanted)
    part.log_mel, part.durations = arrays["log_mel"], arrays["durations"]
    return key


def example_of(partitions, folder, stems):
    """Vectors of the first training clip that has them: all files of a stream must have their width and type"""
    for stem in (Path(f).stem for name in TRAINING for f in partitions[name].filenames):
        if stem in stems:
            return read_visual(folder / f"{stem}.npy")
    raise InputError(f"{folder}: no file for any training clip; put (64, D) arrays there, named <clip name>.npy")


def add_visual(part, folder, stems, example, cache, log):
    """Fill in part.visual and part.present of one stream -> key of the cache"""
    stream = folder.name
    paths = [folder / f"{Path(f).stem}.npy" if Path(f).stem in stems else None for f in part.filenames]
    shape = (len(paths), *example.shape)
    here = [path for path in paths if path]
    key = fingerprint(here, stream, part.filenames, shape, example.dtype.name)
    if not here:  # nothing to store: zeros, which take no memory until they are written to
        part.visual[stream], part.present[stream] = np.zeros(shape, example.dtype), np.zeros(len(paths), bool)
        return key

    def read(path):
        return path and read_visual(path, example)

    def make(into):
        present = []
        with array_file(into / "visual.npy", shape, example.dtype) as write:
            for chunk in in_chunks(read, paths, f"{stream} of {part.name}", log):
                write(np.stack([np.zeros_like(example) if v is None else v for v in chunk]))
                present += [v is not None and bool(np.isfinite(v).all()) for v in chunk]
        np.save(into / "present.npy", present)
        if n_bad := len(here) - sum(present):
            log(f"       {part.name:10} {n_bad:5d} {stream} files are not finite: counted as missing")

    wanted = {"visual": (shape, example.dtype), "present": ((len(paths),), bool)}
    arrays = cached(cache / f"{part.name}-visual-{stream}-{key}", make, wanted)
    part.visual[stream], part.present[stream] = arrays["visual"], arrays["present"]
    return key


NPY_HEADERS = threading.Lock()  # CPython before 3.11.8 at times fails to parse two of them at once (its issue 106905)


def read_visual(path, example=None):
    """(64, D) float16 or float32 vectors of one clip; a stream's files all have the shape and type of its `example`"""
    try:
        with damage_as_value_error(), NPY_HEADERS:
            vectors = np.load(path, allow_pickle=False)
    except ValueError as error:
        remedy = "write it anew with numpy.save, or delete it: missing video is fine"
        raise InputError(f"{path}: cannot be read as a .npy array ({error}); {remedy}") from None
    shape = "(64, D)" if example is None else f"(64, {example.shape[1]})"
    types = ("float16", "float32") if example is None else (example.dtype.name,)
    if not isinstance(vectors, np.ndarray) or vectors.dtype.name not in types or not vectors.dtype.isnative:
        found = getattr(vectors, "dtype", "an archive")
        raise InputError(f"{path}: must be an array of {' or '.join(types)}, {shape}, not {found}; convert it")
    wrong = vectors.ndim != 2 or len(vectors) != FRAMES or not vectors.size
    if wrong or (example is not None and vectors.shape != example.shape):
        raise InputError(f"{path}: has the shape {vectors.shape} where {shape} is wanted, one row per 0.156 s")
    return vectors


def statistics(partitions, visual, cache, key):
    """Over the training clips -> (mean, std) of the mel bins, dict of stream -> (mean, std) of its dimensions.

    train.standardise applies them, to the batches of training and to the clips of scoring alike.
    """
    training = [partitions[name] for name in TRAINING]

    def make(folder):
        # ours: frames centred in the padding are left out, they would count as sound of ln(1e-5)
        samples = [np.minimum(part.durations * SAMPLE_RATE, CLIP_SAMPLES).round()[:, None] for part in training]
        sounding = [np.arange(MEL_FRAMES) < 1 + n // HOP for n in samples]
        np.save(folder / "log-mel.npy", mean_and_std([part.log_mel for part in training], sounding))
        for stream in visual:  # ours: visual vectors are standardised by dimension, like mel bins
            present = [np.repeat(part.present[stream][:, None], FRAMES, 1) for part in training]
            np.save(folder / f"visual-{stream}.npy", mean_and_std([part.visual[stream] for part in training], present))

    widths = {"log-mel": MELS} | {f"visual-{s}": training[0].visual[s].shape[2] for s in visual}
    wanted = {name: ((2, width), np.float32) for name, width in widths.items()}
    arrays = cached(cache / "-".join(("statistics", *visual, key)), make, wanted)
    return tuple(arrays["log-mel"]), {stream: tuple(arrays[f"visual-{stream}"]) for stream in visual}


def mean_and_std(arrays, masks, chunk=256):
    """Over all rows x[mask] of arrays (N, L, K) with masks (N, L) bool: mean, std (2, K) float32, summed in float64"""
    count, total, squares = 0, 0.0, 0.0
    for array, mask in zip(arrays, masks):
        for first in range(0, len(array), chunk):
            rows = array[first : first + chunk][mask[first : first + chunk]].astype(np.float64)
            count, total, squares = count + len(rows), total + rows.sum(0), squares + (rows**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return np.stack([mean, np.maximum(std, STD_FLOOR)]).astype(np.float32)


# --- sound, block by block -------------------------------------------------------------------------------------------


def sound_blocks(path):
    """Sound file -> yields its rate in Hz and a block of it, (up to 160000,) float32, channels averaged.

    Raises InputError for a file that cannot be decoded, or that holds less sound than its header promises.
    """
    try:
        with soundfile.SoundFile(path) as file:
            if not RATES[0] <= file.samplerate <= RATES[1]:
                raise InputError(f"{path}: {file.samplerate} samples per second, not {RATES[0]} to {RATES[1]}; mend it")
            file.seekable = lambda: False  # else soundfile seeks after each block, which hides what is lost in between
            n_read = 0
            while len(block := file.read(CLIP_SAMPLES, dtype="float32", always_2d=True)):
                n_read += len(block)
                yield file.samplerate, block.mean(1)
            if is_cut(file, n_read):
                raise InputError(f"{path}: holds less sound than its header promises; get it anew, or delete it")
    except InputError:
        raise
    except Exception as error:  # soundfile lets out several kinds for damaged headers
        raise InputError(f"{path}: cannot be decoded ({error}); mend the file, or delete it") from None


def is_cut(file, n_read):
    """Does a sound file that was read to its end hold less than its header promises?"""
    log = file.extra_info  # libsndfile takes what is there, and only its log tells: "data : 320000 (should be 160000)"
    promised = re.findall(r"^ *(?:data|SSND|Data Size|riff|Riff size) +: (\d+) \(should", log, re.M)
    if any(int(size) < 2e9 for size in promised):  # 2 GB or more: written to a pipe, where the length was not known
        return True
    if file.format == "OGG" and re.search("lacks an end-of-stream|Junk after the last page|reports a hole", log):
        return True
    if file.frames > 2**62:  # unknown, as FLAC may have it
        return file.format == "OGG"
    return n_read < file.frames * (0.99 if "MPEG" in file.subtype else 1)  # an MP3's header guesses


# --- cache -----------------------------------------------------------------------------------------------------------


def fingerprint(paths, *more):
    """Short hash of files by name, size and time of change: another one means that the cache is out of date"""
    digest = hashlib.sha256(repr(more).encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def cached(folder, make, wanted):
    """The arrays in a folder of the cache, memory-mapped: dict of name -> array. Where it is missing, make writes them.

    wanted: their shapes and types. The folder's name ends in the key of what it was made from. It appears only when
    complete; those of the same thing with another key, now out of date, go.
    """
    if not folder.exists():
        with replacing(folder) as partial:
            partial.mkdir(parents=True)
            make(partial)
        name, _, key = folder.name.rpartition("-")
        for old in folder.parent.glob(f"{name}-{'[0-9a-f]' * len(key)}"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
    try:
        # mode "c": a tensor over it may be written to as far as torch knows, yet nothing reaches the file
        with damage_as_value_error():
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in wanted}
        if {name: (array.shape, array.dtype) for name, array in arrays.items()} != wanted:
            raise ValueError("other shapes or types")
        return arrays
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: the cache is damaged ({first_line(error)}); delete this folder") from None


@contextmanager
def array_file(path, shape, dtype):
    """np.save of an array that comes in parts: yields a function that writes its next rows"""
    with open(path, "wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda rows: file.write(np.ascontiguousarray(rows).data)


def in_chunks(function, items, label, log, size=50):
    """Yield [function(item) ...] over chunks of items, worked on by all cores, with progress and time left"""
    started = time.monotonic()
    with ThreadPoolExecutor(cores()) as pool:
        for first in range(0, len(items), size):
            yield list(pool.map(function, items[first : first + size]))
            show_progress(label, min(first + size, len(items)), len(items), started)
    log(f"       {label}: {len(items)} clips in {time.monotonic() - started:.1f} s")


# --- what every command shares ---------------------------------------------------------------------------------------


@contextmanager
def replacing(path):
    """A name to write to; the file or folder written there becomes `path`, so it appears only when complete"""
    path = Path(path)
    tidy(path.parent)
    partial = path.with_name(f"{MACHINE}-{os.getpid()}-{uuid.uuid4().hex}.partial")  # nobody else uses this name
    try:
        yield partial
        if not (partial.is_dir() and path.exists()):  # a folder: another process was faster
            os.replace(partial, path)
    except (OSError, soundfile.SoundFileError) as error:
        raise InputError(f"{path}: cannot be written ({first_line(error)}); is there room, and the right to?") from None
    finally:
        discard(partial)


@functools.cache
def tidy(folder):
    """Delete what killed processes of this machine left half-written in a folder; each folder is looked at once"""
    for partial in folder.glob(f"{MACHINE}-*-{'[0-9a-f]' * 32}.partial") if os.name == "posix" else ():
        try:
            os.kill(int(partial.name.split("-")[-2]), 0)  # signal 0 does nothing but look whether the process runs
        except ProcessLookupError:
            discard(partial)
        except OSError:  # it runs, and is another user's
            pass


def discard(path):
    with suppress(OSError):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def save_array(path, array):
    """np.save; the file appears only when complete"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def save_tensors(path, content):
    """torch.save; the file appears only when complete"""
    buffer = io.BytesIO()  # into a file itself, torch tells in riddles that the disk is full
    torch.save(content, buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def load_tensors(path):
    """torch.load on the CPU. Nothing in the file is executed, and it grows no larger than it is on disk.

    Raises ValueError for damaged files.
    """
    with damage_as_value_error():
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch compresses nothing
                if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                    raise ValueError("compressed")
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def one_line_errors(hint):
    """Around a command: what is wrong becomes one line and exit code 2; an interruption, one line with the hint"""
    warnings.formatwarning = lambda message, *_: f"note   {message}\n"
    for name in ("stdout", "stderr"):  # neither a closed one nor what a terminal cannot show stops anything
        setattr(sys, name, getattr(sys, name) or open(os.devnull, "w", encoding="utf-8"))
        getattr(getattr(sys, name), "reconfigure", dict)(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():  # a polite kill ends as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
        sys.stdout.flush()
    except (InputError, OSError, MemoryError, FloatingPointError, UnicodeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("(out of|not enough|allocate) memory", str(error)):
            raise  # a fault of the program, where torch's word for MemoryError is not in it
        if isinstance(error, BrokenPipeError):  # else Python would complain once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("error:", (str(error) or type(error).__name__).replace("\n", " "), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted; {hint}")


def show_progress(label, done, total, started, stream=None):
    """On a terminal, one line that renews itself and goes when all is done; in a file, a line every hundred items"""
    stream = stream or sys.stdout
    left = (time.monotonic() - started) / done * (total - done)
    line = f"       {label}: {done}/{total} | {clock(left)} left   "
    if stream.isatty():
        print(f"\r{line}" if done < total else "\r" + " " * 70 + "\r", end="", flush=True, file=stream)
    elif done % 100 == 0:
        print(line.rstrip(), flush=True, file=stream)


def clock(seconds):
    """61 -> '1:01', 3661 -> '1:01:01'"""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def first_line(error):
    return str(error).strip().split("\n")[0][:80]


def cores():
    """CPU cores that this process may use"""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def choose_device(name):
    """cpu, cuda, mps or auto -> torch.device"""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except Exception as error:  # each kind of device that is absent has its own
        raise InputError(f"--device {name}: not available here ({first_line(error)}); use --device auto") from None
    return torch.device(name)
