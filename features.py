"""From files to arrays: log-mel maps, visual vectors, the DCASE 2020 task 4 layout, and a toy data set in that layout.

    load_audio, log_mel     the acoustic features (Boes 2022, Sec. 3.1.2)
    load_dataset            metadata, audio and visual features of a folder -> a DataSet, cached on disk
    video_embeddings        the visual features of a video file; `python features.py extract` makes those of a data set
    read_blocks             the sound of a recording of any length, block by block
    make_toy                writes a small synthetic data set, so that everything runs without a download

This file runs when copied alone (torch, numpy, scipy, soundfile; ffmpeg where videos are read).

A data set is a folder in the layout of DCASE 2020 task 4, plus one folder for the visual features:
    DIR/metadata/train/weak.tsv                       DIR/audio/train/weak/*.wav
    DIR/metadata/train/unlabel_in_domain.tsv          DIR/audio/train/unlabel_in_domain/*.wav
    DIR/metadata/train/synthetic20/soundscapes.tsv    DIR/audio/train/synthetic20/soundscapes/*.wav
    DIR/metadata/validation/validation.tsv            DIR/audio/validation/*.wav
    DIR/metadata/eval/public.tsv                      DIR/audio/eval/public/*.wav
    DIR/visual/<stream>/<clip stem>.npy               (64, D) float16 or float32; no file means no video
    DIR/video/<clip stem>.mp4, .mkv or .webm          optional: what `extract` makes the visual features from
    DIR/cache                                         ours, safe to delete

Shapes: N clips, 512 log-mel frames of 64 mel bins, T = 64 output and visual frames, D width of a visual vector,
C classes.

Our choices where Boes 2022 is silent (marked `# ours:` below): symmetric Hamming window, centred frames with reflected
edges, Slaney mel scale from 0 to 8000 Hz without area normalisation, natural logarithm of max(mel, 1e-5), padding of
the waveform with zeros, statistics over frames of real sound only, visual vectors standardised like mel bins; 6.4
frames a second, short side 256, centre crop of 224, OpenL3's weights for environmental sound, VGG16 after its ReLU.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch
from torch import nn
from torch.nn import functional

SAMPLE_RATE = 16000  # Hz (Boes 2022, Sec. 3.1.2)
CLIP_SECONDS = 10  # Boes 2022, Sec. 3.1.1
CLIP_SAMPLES = CLIP_SECONDS * SAMPLE_RATE  # 160,000
WINDOW = 1024  # samples, 64 ms (Boes 2022, Sec. 3.1.2)
HOP = 313  # samples, 20 ms (Boes 2022, Sec. 3.1.2)
MELS = 64  # Boes 2022, Sec. 3.1.2
MEL_FRAMES = 1 + CLIP_SAMPLES // HOP  # 512 with centred frames, the number that the paper gives
MEL_FLOOR = 1e-5  # ours: -100 dB
FRAMES = 64  # T: outputs of the network and visual vectors per clip (Boes 2022, Sec. 3.1.2)
FRAME_HOP = 8 * HOP / SAMPLE_RATE  # 0.1565 s per output frame: the network pools time by 8
STD_FLOOR = 1e-3  # ours: a bin or dimension that never changes stays finite
RECIPE = "log-mel 1"  # part of every cache key: change it whenever load_audio or log_mel gives other numbers

PARTITIONS = {  # name: (metadata, audio folder), as DCASE 2020 task 4 lays them out
    "strong": ("train/synthetic20/soundscapes.tsv", "train/synthetic20/soundscapes"),
    "weak": ("train/weak.tsv", "train/weak"),
    "unlabelled": ("train/unlabel_in_domain.tsv", "train/unlabel_in_domain"),
    "validation": ("validation/validation.tsv", "validation"),
    "public": ("eval/public.tsv", "eval/public"),
}
TRAINING = ("strong", "weak", "unlabelled")


class InputError(Exception):
    """Bad input: one line that names the file, the line in it and what to do about it."""


# --- audio -> log-mel ------------------------------------------------------------------------------------------------


def read_waveform(path):
    """Sound file -> (samples,) float32 at 16 kHz: channels averaged, resampled, peak at 1 (Boes 2022, Sec. 3.1.2)."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as error:  # soundfile lets out several kinds for damaged headers
        raise InputError(
            f"{path}: cannot be decoded ({error}); mend the file, or delete it: missing clips are fine"
        ) from None
    if not samples.size:
        raise InputError(f"{path}: holds no audio; mend the file, or delete it: missing clips are fine")
    mono = samples.mean(1)
    divisor = gcd(rate, SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        mono = scipy.signal.resample_poly(mono, SAMPLE_RATE // divisor, rate // divisor)
    peak = np.abs(mono).max()
    if not np.isfinite(peak):
        raise InputError(
            f"{path}: holds samples that are not finite; mend the file, or delete it: missing clips are fine"
        )
    return (mono / peak if peak > 0 else mono).astype(np.float32)


def fit_clip(waveform):
    """Cut or zero-pad to 10 s. ours: the waveform, so that a short clip looks like itself followed by silence."""
    return np.pad(waveform[:CLIP_SAMPLES], (0, max(0, CLIP_SAMPLES - len(waveform))))


def load_audio(path):
    """Sound file -> (160000,) float32: 10 s at 16 kHz, mono, largest absolute sample 1 (a silent clip stays zero)."""
    return fit_clip(read_waveform(path))


def mel_filterbank():
    """(64, 513) float64: triangles with peak 1 between 66 points evenly spaced on the Slaney mel scale, 0-8000 Hz."""
    # ours: linear below 1 kHz (200/3 Hz per mel), logarithmic above (27 mels for a factor of 6.4)
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, MELS + 2)
    hertz = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    left, centre, right = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    return np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))


FILTERBANK = torch.from_numpy(mel_filterbank()).float()


def log_mel(audio):
    """Waveforms (..., 160000) at 16 kHz, array or tensor -> log-mel (..., 512, 64) float32 tensor, time first.

    Boes 2022, Sec. 3.1.2; the choices that the paper leaves open are listed at the top of this file.
    """
    audio = torch.as_tensor(audio, dtype=torch.float32)
    window = torch.hamming_window(WINDOW, periodic=False, device=audio.device)
    spectrum = torch.stft(
        audio.reshape(-1, audio.shape[-1]),
        WINDOW,
        HOP,
        window=window,
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )  # (clips, 513, 512)
    mel = FILTERBANK.to(audio.device) @ spectrum.abs()  # (clips, 64, 512)
    return mel.clamp_min(MEL_FLOOR).log().transpose(1, 2).reshape(*audio.shape[:-1], -1, MELS)


# --- metadata --------------------------------------------------------------------------------------------------------


def read_tsv(path, columns):
    """Rows of a TSV file: a list of (place, [cells of the wanted columns]); place is "file, line 7" for messages."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the README's section 'Real data' shows the layout") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    header = lines[0].split("\t") if lines else []
    if missing := [name for name in columns if name not in header]:
        raise InputError(
            f"{path}, line 1: no column {', '.join(missing)}; "
            f"the first line must name the columns {', '.join(columns)}, separated by tabs"
        )
    where = [header.index(name) for name in columns]
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        cells += [""] * (len(header) - len(cells))  # some editors cut the trailing tabs of a clip without events
        if len(cells) > len(header):
            raise InputError(f"{path}, line {number}: {len(cells)} columns where the header has {len(header)}")
        rows.append((f"{path}, line {number}", [cells[i] for i in where]))
    return rows


def check_filename(place, name):
    """A name from a TSV file must name a file in the partition's own folder, never one elsewhere."""
    if name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise InputError(
            f"{place}: {name!r} is not a plain file name; the audio folder is implied, so give the name alone"
        )
    return name


def read_strong(path, classes=None):
    """onset/offset table -> filenames (each once, in order), events (filename, onset, offset, label) in seconds.

    A row with an empty label is a clip without events. Times may overlap, repeat, or pass the clip's end. Where
    `classes` are given, no other label may occur.
    """
    filenames, events = {}, []
    for place, (name, onset, offset, label) in read_tsv(path, ("filename", "onset", "offset", "event_label")):
        filenames[check_filename(place, name)] = None
        if not (onset or offset or label):
            continue
        try:
            start, end = float(onset), float(offset)
        except ValueError:
            raise InputError(f"{place}: onset {onset!r} and offset {offset!r} must be numbers (seconds)") from None
        if not 0 <= start < end < np.inf:
            raise InputError(
                f"{place}: an event needs 0 <= onset < offset, here {onset} and {offset}; correct or delete the row"
            )
        if not label:
            raise InputError(f"{place}: an event without a label; name the class or empty the whole row")
        if classes is not None and label not in classes:
            raise InputError(
                f"{place}: the class {label!r} occurs in no training clip; correct the label, or add training clips"
            )
        events.append((name, start, end, label))
    return list(filenames), events


def read_weak(path):
    """Clip labels -> dict of filename -> set of labels (the official lists repeat labels, and do not sort them)"""
    clips = {}
    for place, (name, labels) in read_tsv(path, ("filename", "event_labels")):
        clips.setdefault(check_filename(place, name), set()).update(
            {label.strip() for label in labels.split(",")} - {""}
        )
    return clips


def read_unlabelled(path):
    """-> filenames"""
    return list(dict.fromkeys(check_filename(place, name) for place, (name,) in read_tsv(path, ("filename",))))


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
    """The N clips of one list whose audio is on disk, in the order of the list."""

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


@dataclass
class DataSet:
    """What load_dataset returns. Statistics come from the training partitions only (Boes 2022, Sec. 3.1.2)."""

    classes: list  # C sorted names
    partitions: dict  # name -> Partition
    mel_statistics: tuple  # mean, std of each mel bin, (64,) float32
    visual_statistics: dict  # stream -> (mean, std) of each dimension, (D,) float32; in the order asked for

    def identity(self, visual):
        """Hash of the clips, their labels and which can be seen in these streams"""
        seen = [
            (part.filenames, part.events, np.asarray(part.tags).tolist(), [part.present[s].tolist() for s in visual])
            for part in self.partitions.values()
        ]
        return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def load_dataset(root, visual=(), cache=None, log=print):
    """Read a data set in the layout shown above; the features are computed once and then memory-mapped from a cache.

    visual: names of folders under root/visual, any number
    cache: folder for the cache, default root/cache
    log: receives a line per partition: how many clips are listed, found, and have each visual stream
    Raises InputError for anything wrong. A listed clip without audio is only counted, unless a partition has none.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder; --data wants one with the sub-folders audio and metadata (README, 'Real data')"
        )
    for stream in visual:
        if Path(stream).name != stream or stream in ("", ".."):
            raise InputError(f"{stream!r}: is no name of a visual stream, a folder in {root}/visual; mend it")
    partitions, classes = read_partitions(root)
    stems = {stream: visual_stems(root / "visual" / stream) for stream in visual}
    for part in partitions.values():
        counts = "".join(f", {sum(Path(f).stem in stems[s] for f in part.filenames):5d} with {s}" for s in visual)
        log(f"       {part.name:10} {part.listed:5d} listed, {len(part):5d} found{counts}")
    drop_tested_clips(partitions, log)
    for part in partitions.values():
        if not part.listed:
            raise InputError(f"{root}: the list of '{part.name}' is empty; see metadata/{PARTITIONS[part.name][0]}")
        if not part.filenames:
            raise InputError(
                f"{part.folder}: none of the {part.listed} clips listed for '{part.name}' is there; "
                "put their audio into this folder"
            )
    partitions["strong"].frames = frame_targets(partitions["strong"].filenames, partitions["strong"].events, classes)
    cache = Path(cache or root / "cache")
    keys = [cache_log_mel(part, cache, log) for part in partitions.values()]
    for stream in visual:
        folder = root / "visual" / stream
        example = example_of_stream(partitions, folder, stems[stream])
        keys += [cache_visual(part, folder, stems[stream], example, cache, log) for part in partitions.values()]
        if not any(partitions[name].present[stream].any() for name in TRAINING):
            raise InputError(
                f"{folder}: the vectors of all training clips hold values that are not finite; make them anew"
            )
    return DataSet(classes, partitions, *cached_statistics(partitions, visual, cache, "".join(keys)))


def read_metadata(root):
    """The five tables -> clips of each partition (of `weak`: with their labels), events of each, sorted class names"""
    # A metadata folder alone is read too (the official repository hands it out like that): all audio is missing then.
    metadata = root / "metadata" if (root / "metadata").is_dir() else root
    tables = {name: metadata / table for name, (table, _) in PARTITIONS.items()}
    listed, events = {}, {}
    listed["strong"], events["strong"] = read_strong(tables["strong"])
    listed["weak"] = read_weak(tables["weak"])
    listed["unlabelled"] = read_unlabelled(tables["unlabelled"])
    # ours: the classes are those that training can teach, from strong and weak labels together
    classes = sorted({label for *_, label in events["strong"]}.union(*listed["weak"].values()))
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
        labels = {f: set(listed["weak"][f]) if name == "weak" else set() for f in part.filenames}
        for filename, _, _, label in part.events:
            labels[filename].add(label)
        if name != "unlabelled":
            part.tags = np.array([[c in tags for c in classes] for tags in labels.values()], bool)
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
        raise InputError(
            f"{folder}: no such folder; a visual stream is a folder of (64, D) .npy files, one per clip that has video"
        )
    return {entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".npy") and entry.is_file()}


def example_of_stream(partitions, folder, stems):
    """Vectors of the first training clip that has them: they show the width and the type of the stream."""
    for part in (partitions[name] for name in TRAINING):
        for stem in (Path(f).stem for f in part.filenames):
            if stem in stems:
                return read_visual(folder / f"{stem}.npy")
    raise InputError(
        f"{folder}: no file for any training clip; put <clip name>.npy there, (64, D), one per clip that has video"
    )


# --- cache -----------------------------------------------------------------------------------------------------------


def fingerprint(paths, *more):
    """Short hash of files by name, size and time of change: another one means that the cache is out of date."""
    digest = hashlib.sha256(repr(more).encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def replacing(path):
    """A name to write to; what is written there becomes the file `path`, which so appears only when complete."""
    partial = path.with_name(f"{path.name}-{uuid.uuid4().hex}.partial")  # no other process or machine uses it
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def cached_array(folder, key, shape, dtype, fill):
    """(memory-mapped array, notes array) from a folder of the cache; where missing, notes = fill(array) makes them.

    Files appear under their final name only when complete, and those of other keys, now out of date, are removed.
    """
    path, notes_path = folder / f"{key}.npy", folder / f"{key}-notes.npy"
    if not (path.exists() and notes_path.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            array = np.lib.format.open_memmap(partial, "w+", dtype, shape)
            if hasattr(os, "posix_fallocate"):  # a full disk shows here, as an error, and not as a crash while writing
                with open(partial, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
            notes = fill(array)
            array.flush()
            del array
        with replacing(notes_path) as partial, open(partial, "wb") as file:
            np.save(file, notes)
        for old in folder.glob("*.npy"):
            if old not in (path, notes_path):
                old.unlink(missing_ok=True)
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False), np.load(notes_path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: the cache is damaged ({error}); delete the folder {folder}") from None


def cores():
    """CPU cores that this process may use"""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def in_chunks(function, items, label, log, size=64):
    """Yield (slice, [function(item) ...]) over chunks of items, worked on by all cores, with progress and time left"""
    started = time.monotonic()
    with ThreadPoolExecutor(cores()) as pool:
        for first in range(0, len(items), size):
            rows = slice(first, min(first + size, len(items)))
            yield rows, list(pool.map(function, items[rows]))
            show_progress(label, rows.stop, len(items), started)
    log(f"       {label}: {len(items)} clips in {time.monotonic() - started:.1f} s")


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


def cache_log_mel(part, cache, log):
    """Fill in part.log_mel and part.durations; -> cache key"""
    paths = [part.folder / f for f in part.filenames]
    key = fingerprint(paths, RECIPE)

    def fill(array):
        durations = np.zeros(len(paths))
        for rows, waveforms in in_chunks(read_waveform, paths, f"log-mel of {part.name}", log):
            array[rows] = log_mel(np.stack([fit_clip(w) for w in waveforms])).numpy()
            durations[rows] = [len(w) / SAMPLE_RATE for w in waveforms]
        return durations

    shape = (len(paths), MEL_FRAMES, MELS)
    part.log_mel, part.durations = cached_array(cache / f"{part.name}-log_mel", key, shape, np.float32, fill)
    return key


def cache_visual(part, folder, stems, example, cache, log):
    """Fill in part.visual and part.present of one stream; -> cache key"""
    stream = folder.name
    rows = np.array([i for i, f in enumerate(part.filenames) if Path(f).stem in stems], int)
    paths = [folder / f"{Path(part.filenames[i]).stem}.npy" for i in rows]
    key = fingerprint(paths, stream, part.filenames, example.shape, example.dtype.name)

    def fill(array):  # rows of clips without video stay zero
        present = np.zeros(len(part), bool)
        chunks = in_chunks(lambda path: read_visual(path, example), paths, f"{stream} of {part.name}", log)
        for chunk, vectors in chunks:
            array[rows[chunk]] = np.stack(vectors)
            present[rows[chunk]] = [np.isfinite(v).all() for v in vectors]  # others count as missing
        if not present[rows].all():
            log(f"       {part.name:10} {np.sum(~present[rows]):5d} {stream} files are not finite: counted as missing")
        return present

    shape = (len(part), *example.shape)
    if len(rows):
        folder = cache / f"{part.name}-visual-{stream}"
        part.visual[stream], part.present[stream] = cached_array(folder, key, shape, example.dtype, fill)
    else:  # nothing to store: zeros that take no memory
        part.visual[stream] = np.lib.stride_tricks.as_strided(np.zeros(1, example.dtype), shape, (0, 0, 0))
        part.present[stream] = np.zeros(len(part), bool)
    return key


NPY_HEADERS = threading.Lock()  # CPython before 3.11.8 at times fails to parse two of them at once (its issue 106905)


def read_visual(path, example=None):
    """(64, D) float16 or float32 vectors of one clip; a stream's files all have the shape and type of its `example`."""
    try:
        with NPY_HEADERS:
            vectors = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy lets out a dozen kinds for damaged files
        raise InputError(
            f"{path}: cannot be read as a .npy array ({' '.join(str(error).split())[:150]}); "
            "write it anew with numpy.save, or delete it: missing video is fine"
        ) from None
    shape = "(64, D)" if example is None else f"(64, {example.shape[1]})"
    types = ("float16", "float32") if example is None else (example.dtype.name,)
    if not isinstance(vectors, np.ndarray) or vectors.dtype.name not in types or not vectors.dtype.isnative:
        found = getattr(vectors, "dtype", "an archive")
        raise InputError(f"{path}: must be an array of {' or '.join(types)}, {shape}, not {found}; convert it")
    if vectors.ndim != 2 or len(vectors) != FRAMES or (example is not None and vectors.shape != example.shape):
        raise InputError(f"{path}: has the shape {vectors.shape} where {shape} is wanted, one row per 0.156 s")
    return vectors


def cached_statistics(partitions, visual, cache, key):
    """Mean and std over the training clips -> pair of the mel bins, dict of stream -> pair of its dimensions"""
    path = cache / f"statistics-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        training = [partitions[name] for name in TRAINING]
        # ours: frames centred in the padding are left out, they would count as sound of ln(1e-5)
        samples = [np.minimum(part.durations * SAMPLE_RATE, CLIP_SAMPLES).round()[:, None] for part in training]
        sounding = [np.arange(MEL_FRAMES) < 1 + n // HOP for n in samples]
        statistics = {"mel": mean_and_std([part.log_mel for part in training], sounding)}
        for stream in visual:
            present = [np.repeat(part.present[stream][:, None], FRAMES, 1) for part in training]
            statistics[f"visual-{stream}"] = mean_and_std([part.visual[stream] for part in training], present)
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez(file, **{name: np.stack(pair) for name, pair in statistics.items()})
    try:
        with np.load(path, allow_pickle=False) as stored:
            return tuple(stored["mel"]), {stream: tuple(stored[f"visual-{stream}"]) for stream in visual}
    except Exception as error:  # numpy lets out a dozen kinds for damaged files
        raise InputError(f"{path}: the cache is damaged ({error}); delete the file") from None


def mean_and_std(arrays, masks, chunk=256):
    """Over all rows x[mask] of arrays (N, L, K) with masks (N, L) bool: mean, std (K,) float32, summed in float64"""
    count, total, squares = 0, 0.0, 0.0
    for array, mask in zip(arrays, masks):
        for first in range(0, len(array), chunk):
            rows = array[first : first + chunk][mask[first : first + chunk]].astype(np.float64)
            count, total, squares = count + len(rows), total + rows.sum(0), squares + (rows**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.astype(np.float32), np.maximum(std, STD_FLOOR).astype(np.float32)


# --- visual networks -------------------------------------------------------------------------------------------------
# The attributes of the modules give their weights the names that they have in the published files. `pixel_mean` and
# `pixel_std`, of RGB values from 0 to 255, are how each network wants its pixels.

IMAGENET_PIXELS = tuple(255 * m for m in (0.485, 0.456, 0.406)), tuple(255 * s for s in (0.229, 0.224, 0.225))


class OpenL3Image(nn.Module):
    """Image network of OpenL3 with 512 outputs, which may be negative; 4,688,198 parameters (Boes 2022, Sec. 3.1.2)"""

    pixel_mean, pixel_std = 127.5, 127.5  # -1 to 1

    def __init__(self):
        super().__init__()
        widths = (3, 64, 64, 128, 128, 256, 256, 512, 512)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for width in widths[:-1])  # eps: Keras' default
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in zip(widths, widths[1:]))

    def forward(self, x):
        """(n, 3, H, W) -> (n, 512)"""
        x = self.norms[0](x)
        for k, conv in enumerate(self.convs[:-1], 1):
            x = conv(x)
            # OpenL3's second layer has the two the other way round
            x = self.norms[k](functional.relu(x)) if k == 2 else functional.relu(self.norms[k](x))
            if k in (2, 4, 6):
                x = functional.max_pool2d(x, 2)
        return self.convs[-1](x).amax((2, 3))  # of 28 x 28 places


class VGG16(nn.Module):
    """VGG16 up to its last hidden layer, 4096 outputs; 134,260,544 parameters (Boes 2022, Sec. 3.1.2)

    ours: the paper's "last feedforward layer" with 4096 outputs is the second fully connected one, after its ReLU.
    """

    pixel_mean, pixel_std = IMAGENET_PIXELS

    def __init__(self):
        super().__init__()
        layers, width = [], 3
        for n_convs, n_channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(n_convs):
                layers += [nn.Conv2d(width, n_channels, 3, padding=1), nn.ReLU(inplace=True)]
                width = n_channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        # the third place is dropout's, which does nothing here but count in the names
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Identity(), nn.Linear(4096, 4096), nn.ReLU()
        )

    def forward(self, x):
        """(n, 3, 224, 224) -> (n, 4096)"""
        return self.classifier(self.features(x).flatten(1))


class Bottleneck(nn.Module):
    """Residual block 1x1, 3x3 (with the stride), 1x1 to four times the width"""

    def __init__(self, n_inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = nn.Identity()
        if n_inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Residual network with bottlenecks up to its average pooling, 2048 outputs.

    depths (3, 4, 6, 3), ResNet-50: the backbone of TCE, before its contrastive head; 23,508,032 parameters
    (Boes 2022, Sec. 3.1.2). (3, 8, 36, 3), ResNet-152: 58,143,808 parameters (Fayek 2020, Sec. 3.2).
    """

    pixel_mean, pixel_std = IMAGENET_PIXELS

    def __init__(self, depths):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.layer1 = self.stage(64, 64, depths[0], 1)
        self.layer2 = self.stage(256, 128, depths[1], 2)
        self.layer3 = self.stage(512, 256, depths[2], 2)
        self.layer4 = self.stage(1024, 512, depths[3], 2)

    @staticmethod
    def stage(n_inputs, width, depth, stride):
        blocks = [Bottleneck(4 * width, width, 1) for _ in range(depth - 1)]
        return nn.Sequential(Bottleneck(n_inputs, width, stride), *blocks)

    def forward(self, x):
        """(n, 3, H, W) -> (n, 2048)"""
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


OPENL3_FILE = "openl3_image_mel256_env-v0_4_0.h5.gz of https://github.com/marl/openl3, branch models"  # ours: see top
NETWORKS = {  # stream: (network, the file of weights that it wants)
    "openl3": (OpenL3Image, f"what `python features.py convert` makes of {OPENL3_FILE}, unpacked"),
    "vgg16": (VGG16, "https://download.pytorch.org/models/vgg16-397923af.pth"),
    "tce": (
        lambda: ResNet((3, 4, 6, 3)),
        "tensors of the Kinetics400 ResNet-50 of https://github.com/csiro-robotics/TCE (its link is dead: ask there)",
    ),
    "resnet152": (lambda: ResNet((3, 8, 36, 3)), "https://download.pytorch.org/models/resnet152-394f9c45.pth"),
}


def load_network(name, weights, device="cpu"):
    """Network of a stream (openl3, vgg16, tce, resnet152) with the weights of a published file, ready for use.

    Raises InputError, with where to find the right file, for one that does not fit in every name and shape.
    """
    if name not in NETWORKS:
        raise InputError(f"{name}: no such visual network; there are {', '.join(NETWORKS)}")
    make, wanted = NETWORKS[name]
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets out a dozen kinds for files that are not its own
        reason = getattr(error, "strerror", None) or "not a file of tensors"
        raise InputError(f"{weights}: {reason}; {name} wants {wanted}") from None
    with torch.device("meta"):  # the file brings all values, so none are drawn
        network = make()
    try:
        network.load_state_dict(own_weights(name, state), assign=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{weights}: not the weights of this network ({reason} ..); {name} wants {wanted}") from None
    if name == "tce" and not any("backbone." in key for key in state.get("state_dict", state)):
        warnings.warn("weights of a plain ResNet-50: good for a dry run, but these features are not TCE", stacklevel=2)
    return network.float().eval().to(device)


def own_weights(name, state):
    """Content of a published file -> the entries of the network alone, without the heads that follow it.

    The result is a plain dict: torch then does not insist on the counters of batches in batch norms.
    """
    if name == "tce":
        state = {key.removeprefix("module."): value for key, value in state.get("state_dict", state).items()}
        if any(key.startswith("backbone.") for key in state):
            return {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    head = "classifier.6." if name == "vgg16" else "fc."
    return {key: value for key, value in state.items() if not key.startswith(head)}


def convert(source, target):
    """OpenL3's image network, from Keras' .h5 file to one that load_network reads. Needs h5py, here only."""
    try:
        import h5py
    except ImportError:
        raise InputError("h5py is needed to convert, this once; pip install h5py") from None
    try:
        with h5py.File(source, "r") as file:
            state = openl3_state(file)
        with torch.device("meta"):
            OpenL3Image().load_state_dict(state, assign=True)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{source}: not OpenL3's image network ({reason} ..); unpack {OPENL3_FILE}") from None
    with replacing(Path(target)) as partial, open(partial, "wb") as file:
        torch.save(state, file)


def openl3_state(file):
    """Open .h5 file -> state dict of OpenL3Image. The layers' names end in running numbers, so their order decides.

    Keras keeps (kernel, bias) of a convolution, kernels as (height, width, in, out), and (gamma, beta, mean, variance)
    of a batch norm.
    """
    norm, conv = ("weight", "bias", "running_mean", "running_var"), ("weight", "bias")
    state, seen = {}, {"norms": 0, "convs": 0}
    file = file.get("model_weights", file)  # where Keras puts them when it saves a whole model
    for layer in file.attrs["layer_names"]:
        group = file[as_text(layer)]
        arrays = [torch.from_numpy(np.asarray(group[as_text(key)])) for key in group.attrs["weight_names"]]
        if arrays:
            kind, names = ("norms", norm) if len(arrays) == 4 else ("convs", conv)
            for name, array in zip(names, arrays, strict=True):
                array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array
                state[f"{kind}.{seen[kind]}.{name}"] = array.contiguous()
            seen[kind] += 1
    return state


def as_text(name):
    """h5py hands out names as bytes or as text, depending on who wrote the file"""
    return name.decode() if isinstance(name, bytes) else str(name)


# --- video -> visual vectors -----------------------------------------------------------------------------------------

FRAME_RATE = FRAMES / CLIP_SECONDS  # ours: 6.4 per second; "about 6.5" and 64 vectors (Boes 2022, Sec. 3.1.2)
SIDE, CROP = 256, 224  # pixels: the short side of the picture, and the square that the networks see
FRAME_BATCH = 16  # frames that go through a network at a time: below 2 GB of memory
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm")


def find_ffmpeg():
    """Path of ffmpeg, or InputError"""
    path = shutil.which("ffmpeg")
    if not path:
        raise InputError(
            "ffmpeg: not found, and no video can be read without it; apt install ffmpeg, or https://ffmpeg.org"
        )
    return path


def read_frames(path, start=0.0, seconds=CLIP_SECONDS):
    """Video file -> (n, 224, 224, 3) uint8, RGB: 6.4 frames for each of at most 10 seconds, the first at `start`.

    n <= 64, and less where the video ends earlier. Frame k is what is on screen at start + k * 0.15625 s, to half that
    step; a picture that begins after the sound stands still until then. Of several video streams ffmpeg takes the
    default one, else the largest; it turns the picture as the file asks for.
    Raises InputError where not one frame can be decoded.
    """
    short_side = f"scale='if(gt(iw,ih),-2,{SIDE})':'if(gt(iw,ih),{SIDE},-2)':flags=bilinear"
    picture = f"fps={FRAME_RATE}:round=near,{short_side},crop={CROP}:{CROP}"
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-ss", str(start), "-i", f"file:{path}", "-an"]
    command += ["-t", str(min(seconds, CLIP_SECONDS)), "-vf", picture, "-frames:v", str(FRAMES)]
    command += ["-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    n = len(done.stdout) // (CROP * CROP * 3)
    if done.returncode or not n:
        reason = done.stderr.decode(errors="replace").strip().split("\n")[-1] or f"it has no picture at {start} s"
        raise InputError(f"{path}: no video ({reason})")
    return np.frombuffer(done.stdout, np.uint8, n * CROP * CROP * 3).reshape(n, CROP, CROP, 3)


def prepare_frames(frames, network):
    """(n, H, W, 3) uint8 tensor -> (n, 3, H, W) float32, in the range that the network was trained with"""
    mean, std = (torch.tensor(v, device=frames.device).view(-1, 1, 1) for v in (network.pixel_mean, network.pixel_std))
    return (frames.permute(0, 3, 1, 2) - mean) / std


@torch.inference_mode()
def embed_frames(network, frames):
    """(n, H, W, 3) uint8 array -> (n, D) float32 array"""
    device = next(network.parameters()).device
    batches = torch.tensor(frames).split(FRAME_BATCH)
    return torch.cat([network(prepare_frames(batch.to(device), network)).cpu() for batch in batches]).numpy()


def clip_vectors(network, frames, place):
    """Frames of one clip -> (64, D) float16; place names their source for errors.

    ours: a video that ends early keeps its last vector, zeros could not be any picture's.
    """
    vectors = embed_frames(network, frames)
    largest = np.abs(vectors).max()
    if not largest <= np.finfo(np.float16).max:
        raise InputError(
            f"{place}: the network gives {largest:g}, beyond what float16 holds; its weights are not right"
        )
    return np.pad(vectors, ((0, FRAMES - len(vectors)), (0, 0)), mode="edge").astype(np.float16)


def video_embeddings(path, name, weights, start=0.0, device="auto"):
    """Video file -> (64, D) float16: the vectors of the ten seconds from `start` (Boes 2022, Sec. 3.1.2).

    name: openl3, vgg16, tce or resnet152; weights: file with the published weights (README, 'Visual features from
    video'). Raises InputError where there is no video or where the weights are not the right ones.
    """
    network = load_network(name, weights, choose_device(device))
    return clip_vectors(network, read_frames(path, start), f"{path} through {weights}")


def find_video(folder, filename):
    """Where a clip's video is: (path, start, seconds), or None.

    ours: a file with the clip's own name is the clip, already cut, and is read from its beginning; a file with only
    the YouTube id for a name is the whole video, of which the clip's name says the window. Lengths decide nothing.
    """
    places = [(Path(filename).stem, 0.0, CLIP_SECONDS)]
    if window := recording(filename):
        youtube_id, start, end = window
        places.append((youtube_id, start, end - start))
    for name, start, seconds in places:
        for suffix in VIDEO_SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}", start, seconds
    return None


def inventory(root, streams, log):
    """Log what there is of each partition; -> {clip stem: (path, start, seconds)} of the listed clips with a video"""
    listed, _, _ = read_metadata(root)
    videos = {}
    for name, (_, folder) in PARTITIONS.items():
        found = {Path(f).stem: video for f in listed[name] if (video := find_video(root / "video", f))}
        counts = {"audio": sum((root / "audio" / folder / f).is_file() for f in listed[name]), "video": len(found)}
        for stream in streams:
            counts[stream] = sum((root / "visual" / stream / f"{Path(f).stem}.npy").is_file() for f in listed[name])
        counts = "".join(f", {count:5d} with {what}" for what, count in counts.items())
        log(f"       {name:10} {len(listed[name]):5d} listed{counts}")
        videos.update(found)
    return videos


def extract(root, weights, device="auto", log=print):
    """Write root/visual/<stream>/<clip stem>.npy, (64, D) float16, for the listed clips that have a video.

    weights: dict of stream (openl3, vgg16, tce, resnet152) -> file of weights. Each video is decoded once for all
    streams that it lacks; files that exist are left alone, so that an interrupted run goes on. Videos that cannot be
    decoded are logged at the end and get no file: they count as missing.
    """
    root, device = Path(root), choose_device(device)
    find_ffmpeg()
    log(f"data   {root} | {device.type}")
    videos = inventory(root, weights, log)
    if not videos:
        raise InputError(f"{root / 'video'}: no video of any listed clip; name them <clip>.mp4 or <YouTube id>.mp4")
    networks = {stream: load_network(stream, path, device) for stream, path in weights.items()}
    todo = []
    for stem, video in videos.items():
        targets = {stream: root / "visual" / stream / f"{stem}.npy" for stream in weights}
        if targets := {stream: path for stream, path in targets.items() if not path.exists()}:
            todo.append((video, targets))
    broken, started = [], time.monotonic()
    for done, ((video, targets), frames) in enumerate(zip(todo, decode_ahead([video for video, _ in todo])), 1):
        if isinstance(frames, InputError):
            broken.append(frames)
        else:
            for stream, path in targets.items():
                save_vectors(path, clip_vectors(networks[stream], frames, f"{video[0]} through {weights[stream]}"))
        show_progress("extracted", done, len(todo), started)
    made, seconds = len(todo) - len(broken), time.monotonic() - started
    log(f"       {made} clips extracted in {clock(seconds)}, {seconds / max(made, 1):.2f} s each")
    log(f"       {len(videos) - len(todo)} had their files before, {len(broken)} cannot be decoded")
    for error in broken:
        log(f"       counted as missing: {error}")


def decode_ahead(videos):
    """Yield the frames of each (path, start, seconds), or its InputError, in order; threads decode the next ones"""

    def decode(video):
        try:
            return read_frames(*video)
        except InputError as error:
            return error

    ahead = min(16, cores())  # bounds the memory too: 9.6 MB a clip, and what ffmpeg needs
    with ThreadPoolExecutor(ahead) as pool:
        waiting = deque()
        for video in videos:
            waiting.append(pool.submit(decode, video))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def save_vectors(path, vectors):
    """np.save, but the file appears only when complete"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, vectors)


def choose_device(name):
    """cpu, cuda, mps or auto -> torch.device"""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"--device {name}: not available here ({reason}); use --device auto") from None
    return torch.device(name)


# --- recordings of any length ----------------------------------------------------------------------------------------
# What prediction reads: a recording as a stream of blocks, so that an hour takes no more memory than ten seconds.

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")  # read by soundfile; all other files by ffmpeg


def is_sound_file(path):
    return Path(path).suffix.lower() in SOUND_SUFFIXES


def read_blocks(path):
    """Recording -> yields blocks of it: (samples,) float32 at 16 kHz, channels averaged; peaks stay as they are.

    Put together, the blocks are what `read_waveform` makes of the file before it scales the peak. Of files other than
    wav, flac and ogg, ffmpeg decodes, mixes and resamples the sound; one that begins after the picture gets silence
    before it.
    Raises InputError where there is no sound, or none that can be decoded.
    """
    heard = False
    for block in sound_blocks(path) if is_sound_file(path) else ffmpeg_blocks(path):
        if not np.isfinite(block).all():
            raise InputError(f"{path}: holds samples that are not finite; mend the file")
        heard = heard or len(block) > 0
        yield block
    if not heard:
        raise InputError(f"{path}: holds no audio")


def sound_blocks(path):
    try:
        with soundfile.SoundFile(path) as file:
            blocks = file.blocks(CLIP_SECONDS * file.samplerate, dtype="float32", always_2d=True)
            yield from resampled((block.mean(1) for block in blocks), file.samplerate)
    except Exception as error:  # soundfile lets out several kinds for damaged headers
        raise InputError(f"{path}: cannot be decoded ({error})") from None


def ffmpeg_blocks(path):
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-i", f"file:{path}", "-vn", "-ac", "1"]
    command += ["-af", "aresample=async=1:first_pts=0", "-ar", str(SAMPLE_RATE), "-f", "f32le", "-"]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints) as process,
    ):
        while block := process.stdout.read(4 * CLIP_SAMPLES):
            yield np.frombuffer(block, np.float32, len(block) // 4)
        if process.wait():
            complaints.seek(0)
            reason = complaints.read().decode(errors="replace").strip().split("\n")[-1]
            raise InputError(f"{path}: no sound ({reason})")


def resampled(blocks, rate):
    """Blocks of one recording -> blocks at 16 kHz, as scipy.signal.resample_poly makes them of the whole.

    Its filter reaches 10 * max(up, down) / up samples to either side, so a block is resampled once that much of what
    follows is known, together with what went before. All cuts are at multiples of `down`: there the two grids meet.
    """
    up, down = SAMPLE_RATE // gcd(rate, SAMPLE_RATE), rate // gcd(rate, SAMPLE_RATE)
    margin = 11 * down
    known, done = np.zeros(0, np.float32), 0  # samples not let go of yet, and how many of them are resampled already
    for block in blocks:
        known = np.concatenate([known, block])
        ready = (len(known) - margin) // down * down
        if ready > done:
            yield scipy.signal.resample_poly(known[: ready + margin], up, down)[done // down * up : ready // down * up]
            forget = max(0, ready - margin)
            known, done = known[forget:], ready - forget
    yield scipy.signal.resample_poly(known, up, down)[done // down * up :]


def recording_seconds(path):
    """How long a recording is by its header, which may be off; 0 where it does not say"""
    if is_sound_file(path):
        try:
            return soundfile.info(path).duration
        except (soundfile.SoundFileError, OSError) as error:
            raise InputError(f"{path}: cannot be decoded ({error})") from None
    command = [find_ffmpeg(), "-hide_banner", "-nostdin", "-i", f"file:{path}"]
    header = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).stderr.decode(errors="replace")
    match = re.search(r"Duration: (\d+):(\d+):(\d+)", header)
    return sum(int(number) * unit for number, unit in zip(match.groups(), (3600, 60, 1))) if match else 0


def has_picture(path):
    """Whether a file holds a video; the cover of a music file (0:V leaves such out) is none"""
    if is_sound_file(path):
        return False
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-i", f"file:{path}", "-map", "0:V", "-frames:v", "1"]
    command += ["-f", "null", "-"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


# --- the toy data set ------------------------------------------------------------------------------------------------
# Ten synthesised sounds under DESED's class names. Dishes, alarms, animals are easy to hear; frying and running water
# are two noises that differ little, blender, shaver and vacuum cleaner three hums that differ little. A clip's visual
# streams name what is on screen, roughly when. So the toy shows in minutes what the paper is about: seeing helps, also
# when some clips cannot be seen. Its scores say nothing about real data.

TOY_VERSION = 2  # change it whenever make_toy writes other bytes
TOY_CLIPS = {"strong": 80, "weak": 120, "unlabelled": 60, "validation": 60, "public": 80}
TOY_STREAMS = {"openl3": 512, "tce": 128}  # widths; surrogates under real names, nothing was filmed
TOY_NO_VIDEO = 0.155  # share of the clips other than strong ones (Boes 2022, Sec. 3.1.1); strong clips have none
TOY_OFF_SCREEN, TOY_SILENT = 0.08, 0.04  # chance that a sounding class is not seen, that a silent one is


def harmonics(rng, hertz, decay):
    """Tone with partials that fall off as 1 / k ** decay; hertz (samples,) is its pitch over time"""
    phase = 2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE + rng.uniform(0, 2 * np.pi)
    partials = range(1, 1 + min(20, int(7000 / hertz.max())))
    return sum(np.sin(k * phase) / k**decay for k in partials)


def band_noise(rng, n, low, high):
    return scipy.signal.sosfilt(
        scipy.signal.butter(2, (low, high), "bandpass", fs=SAMPLE_RATE, output="sos"), rng.standard_normal(n)
    )


def bursts(rng, n, shortest, longest, gap, make):
    """Repeat make(samples, progress) with pauses up to `gap` seconds until n samples are full"""
    out, start = np.zeros(n), 0
    while start < n:
        size = min(int(rng.uniform(shortest, longest) * SAMPLE_RATE), n - start)
        out[start : start + size] += make(size, np.linspace(0, 1, size))
        start += size + int(rng.uniform(0.3, 1) * gap * SAMPLE_RATE)
    return out


def toy_speech(rng, n):
    voice = rng.uniform(90, 220)

    def syllable(size, u):
        sound = harmonics(rng, voice * (1 + 0.15 * rng.uniform(-1, 1) * u), 0.6) + 0.2 * rng.standard_normal(size)
        formants = zip((500, 1400, 2600), rng.uniform(0.6, 1.5, 3))
        return sum(
            scipy.signal.lfilter(*scipy.signal.iirpeak(f * factor, 6, fs=SAMPLE_RATE), sound) for f, factor in formants
        ) * np.sin(np.pi * u)

    return bursts(rng, n, 0.12, 0.28, 0.08, syllable)


def toy_dog(rng, n):
    pitch = rng.uniform(350, 650)
    return bursts(
        rng,
        n,
        0.12,
        0.22,
        0.25,
        lambda size, u: (
            (harmonics(rng, pitch * (1.3 - 0.6 * u), 0.8) + rng.standard_normal(size)) * np.sin(np.pi * u**0.5)
        ),
    )


def toy_cat(rng, n):
    pitch = rng.uniform(500, 800)
    return bursts(
        rng,
        n,
        0.5,
        1.0,
        0.3,
        lambda size, u: harmonics(rng, pitch * (1 + 0.5 * np.sin(np.pi * u)), 1.0) * np.sin(np.pi * u),
    )


def toy_alarm(rng, n):
    pitch, beat = rng.uniform(1800, 3200), rng.uniform(0.08, 0.2)
    return bursts(
        rng, n, beat, beat * 1.01, beat, lambda size, u: np.sin(2 * np.pi * pitch * np.arange(size) / SAMPLE_RATE)
    )


def toy_dishes(rng, n):
    def clink(size, u):
        t = np.arange(size) / SAMPLE_RATE
        return sum(np.sin(2 * np.pi * f * t) * np.exp(-t / rng.uniform(0.02, 0.08)) for f in rng.uniform(2500, 7000, 5))

    return bursts(rng, n, 0.1, 0.2, 0.1, clink)


def toy_frying(rng, n):
    pops = (rng.random(n) < 15 / SAMPLE_RATE) * rng.exponential(
        3, n
    )  # these soft pops are all that tells it from water
    return band_noise(rng, n, rng.uniform(700, 1300), 6200) + scipy.signal.lfilter([1], [1, -0.9], pops)


def toy_water(rng, n):
    flow = scipy.signal.resample(rng.standard_normal(max(4, n // 2000)), n)
    return band_noise(rng, n, rng.uniform(600, 1200), 6000) * (1 + 0.1 * flow)


def toy_motor(rng, n, low, high, tilt, hiss):
    """Whirr, buzz or hum: pitches and colours of the three motors overlap"""
    wobble = 1 + 0.02 * np.sin(2 * np.pi * rng.uniform(2, 6) * np.arange(n) / SAMPLE_RATE)
    return harmonics(rng, rng.uniform(low, high) * wobble, tilt) + hiss * band_noise(rng, n, 300, 5000)


TOY_SOUNDS = {  # class: (synthesiser, shortest and longest event in seconds)
    "Alarm_bell_ringing": (toy_alarm, 0.6, 3.0),
    "Blender": (lambda rng, n: toy_motor(rng, n, 120, 210, 0.66, 1.5), 2.0, 6.0),
    "Cat": (toy_cat, 0.5, 1.5),
    "Dishes": (toy_dishes, 0.25, 1.0),
    "Dog": (toy_dog, 0.3, 1.5),
    "Electric_shaver_toothbrush": (lambda rng, n: toy_motor(rng, n, 110, 200, 0.65, 1.45), 3.0, 8.0),
    "Frying": (toy_frying, 3.0, 9.0),
    "Running_water": (toy_water, 2.0, 8.0),
    "Speech": (toy_speech, 0.8, 3.0),
    "Vacuum_cleaner": (lambda rng, n: toy_motor(rng, n, 115, 205, 0.65, 1.55), 3.0, 9.0),
}


def toy_clip(rng, n_samples, strong):
    """(samples,) float sound of one clip and its events (onset, offset, class), sorted by onset"""
    seconds = n_samples / SAMPLE_RATE
    sound = 0.004 * rng.uniform(0.5, 2) * band_noise(rng, n_samples, 60, 7000)
    events = []
    if strong or rng.random() > 0.04:  # a few clips without any event, as in the real lists
        for label in rng.choice(list(TOY_SOUNDS), size=rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15]), replace=False):
            synthesise, shortest, longest = TOY_SOUNDS[label]
            end = 0.0
            for _ in range(1 if longest > 4 else rng.integers(1, 4)):
                onset = end + rng.uniform(0.2, 0.5 * seconds)
                offset = min(onset + rng.uniform(shortest, longest), seconds)
                if offset - onset < 0.25:  # DESED's shortest event
                    break
                start, n = int(onset * SAMPLE_RATE), int((offset - onset) * SAMPLE_RATE)
                event = synthesise(rng, n)
                sound[start : start + n] += event / np.sqrt(np.mean(event**2)) * 10 ** rng.uniform(-1.9, -1.2)
                events.append((onset, offset, str(label)))
                end = offset + 0.2
    return sound / max(1.0, np.abs(sound).max() * 1.05), sorted(events)


def toy_visual(rng, events, seconds, width):
    """(64, width) float16: the classes on screen and things of no interest, seen through a fixed random basis"""
    classes = list(TOY_SOUNDS)
    seen = np.zeros((FRAMES, len(classes)))
    times = (np.arange(FRAMES) + 0.5) * CLIP_SECONDS / FRAMES
    off_screen, silent = rng.random(len(classes)) < TOY_OFF_SCREEN, rng.random(len(classes)) < TOY_SILENT
    for onset, offset, label in events:
        if not off_screen[classes.index(label)]:
            seen[(times > onset) & (times < offset), classes.index(label)] = 1
    for c in np.flatnonzero(silent):
        start = rng.uniform(0, 8)
        seen[(times > start) & (times < start + rng.uniform(1, 6)), c] = 1
    blur = np.hanning(15)[1:-1]  # the picture knows the time to about a second
    seen = scipy.signal.convolve(seen, blur[:, None] / blur.sum(), "same") * rng.uniform(0.6, 1.4, len(classes))
    scene = rng.standard_normal((1, 6)) + np.cumsum(rng.standard_normal((FRAMES, 6)), 0) / 25
    basis = np.random.default_rng(width).standard_normal(
        (len(classes) + 6, width)
    )  # the "visual network", the same for all clips
    vectors = np.hstack([seen, 0.6 * scene]) @ basis + rng.standard_normal((FRAMES, width))
    vectors[times > seconds] = 0
    return vectors.astype(np.float16)


def make_toy(root, seed=0):
    """Write the toy data set into the folder `root`, in the layout of DCASE 2020 task 4; the same seed, the same bytes.

    A folder that already holds this version and seed is left alone. It appears only when complete.
    """
    root = Path(root).absolute()
    recipe = json.dumps({"toy": TOY_VERSION, "seed": seed}) + "\n"
    marker = root / "toy.json"
    if marker.is_file() and marker.read_text() == recipe:
        return
    if root.exists() and any(root.iterdir()):  # perhaps with something that is the user's own
        other = "toy data of another version or seed" if marker.is_file() else "something other than the toy data set"
        raise InputError(f"{root}: holds {other}; move it away")
    partial = root.with_name(f"{root.name}-{uuid.uuid4().hex}.partial")
    try:
        for number, name in enumerate(PARTITIONS):
            write_toy_partition(partial, name, number, seed)
        (partial / marker.name).write_text(recipe)
        if not (marker.is_file() and marker.read_text() == recipe):  # else another run was faster
            os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_toy_partition(root, name, number, seed):
    """Audio, metadata and visual vectors of one partition of the toy data set"""
    table, folder = PARTITIONS[name]
    table, folder = root / "metadata" / table, root / "audio" / folder
    for directory in (table.parent, folder, *(root / "visual" / stream for stream in TOY_STREAMS)):
        directory.mkdir(parents=True, exist_ok=True)
    header = {"weak": "filename\tevent_labels", "unlabelled": "filename"}.get(
        name, "filename\tonset\toffset\tevent_label"
    )
    rows, n_clips = [header], TOY_CLIPS[name]
    unseen = np.random.default_rng([seed, number, n_clips]).permutation(n_clips)[: round(TOY_NO_VIDEO * n_clips)]
    for i in range(n_clips):
        rng = np.random.default_rng([seed, number, i])
        strong = name == "strong"
        seconds = CLIP_SECONDS if strong or rng.random() > 0.05 else int(rng.integers(5, CLIP_SECONDS))
        stem = f"{i:02d}" if strong else f"Ytoy{name[:4]}{i:04d}_0.000_{seconds}.000"
        sound, events = toy_clip(rng, seconds * SAMPLE_RATE, strong)
        # 8-bit u-law is a plain wav file of half the size; its noise lies under the clips' own background
        soundfile.write(folder / f"{stem}.wav", sound, SAMPLE_RATE, subtype="ULAW")
        if name == "weak":
            rows.append(f"{stem}.wav\t{','.join(sorted({label for *_, label in events}))}")
        elif name == "unlabelled":
            rows.append(f"{stem}.wav")
        else:
            rows += [f"{stem}.wav\t{onset:.3f}\t{offset:.3f}\t{label}" for onset, offset, label in events] or [
                f"{stem}.wav\t\t\t"
            ]
        if not strong and i not in unseen:
            for stream, width in TOY_STREAMS.items():
                np.save(root / "visual" / stream / f"{stem}.npy", toy_visual(rng, events, seconds, width))
    table.write_text("\n".join(rows) + "\n")


# --- the command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description="Visual features from video (README, 'Visual features from video').")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("extract", help="fill DIR/visual/NAME from DIR/video; goes on where it was interrupted")
    make.add_argument("root", metavar="DIR", help="data set in the layout of DCASE 2020 task 4")
    make.add_argument("--visual", nargs="+", required=True, choices=NETWORKS, metavar="NAME", help=", ".join(NETWORKS))
    make.add_argument("--weights", nargs="+", required=True, metavar="FILE", help="one for each NAME, in their order")
    make.add_argument("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    change = commands.add_parser("convert", help="OpenL3's image network, from Keras to torch; needs h5py")
    change.add_argument("source", metavar="KERAS.h5")
    change.add_argument("target", metavar="OPENL3.pt")
    args = parser.parse_args(arguments)
    if args.command == "extract" and (
        len(args.visual) != len(args.weights) or len(set(args.visual)) < len(args.visual)
    ):
        parser.error("--visual takes different names, and --weights one file for each of them")
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default would round convolutions on GPUs unasked
    warnings.formatwarning = lambda message, *_: f"note   {message}\n"
    try:
        if args.command == "extract":
            extract(args.root, dict(zip(args.visual, args.weights)), args.device)
        else:
            convert(args.source, args.target)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on with the clips that are left")


if __name__ == "__main__":
    main()
