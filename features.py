"""From files to arrays: log-mel maps, visual vectors, the DCASE 2020 task 4 layout, and a toy data set in that layout.

    load_audio, log_mel     the acoustic features (Boes 2022, Sec. 3.1.2)
    load_dataset            metadata, audio and visual features of a folder -> a DataSet, cached on disk
    make_toy                writes a small synthetic data set, so that everything runs without a download

This file runs when copied alone (torch, numpy, scipy, soundfile).

A data set is a folder in the layout of DCASE 2020 task 4, plus one folder for the visual features:
    DIR/metadata/train/weak.tsv                       DIR/audio/train/weak/*.wav
    DIR/metadata/train/unlabel_in_domain.tsv          DIR/audio/train/unlabel_in_domain/*.wav
    DIR/metadata/train/synthetic20/soundscapes.tsv    DIR/audio/train/synthetic20/soundscapes/*.wav
    DIR/metadata/validation/validation.tsv            DIR/audio/validation/*.wav
    DIR/metadata/eval/public.tsv                      DIR/audio/eval/public/*.wav
    DIR/visual/<stream>/<clip stem>.npy               (64, D) float16 or float32; no file means no video
    DIR/cache                                         ours, safe to delete

Shapes: N clips, 512 log-mel frames of 64 mel bins, T = 64 output and visual frames, D width of a visual vector,
C classes.

Our choices where Boes 2022 is silent (marked `# ours:` below): symmetric Hamming window, centred frames with reflected
edges, Slaney mel scale from 0 to 8000 Hz without area normalisation, natural logarithm of max(mel, 1e-5), padding of
the waveform with zeros, statistics over frames of real sound only, visual vectors standardised like mel bins.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch

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
    except (soundfile.SoundFileError, OSError) as error:
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
    identity: str  # hash of the clips and of which can be seen: the same batches come out only for the same data


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
    seen = [(part.filenames, [part.present[stream].tolist() for stream in visual]) for part in partitions.values()]
    identity = hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
    return DataSet(classes, partitions, *cached_statistics(partitions, visual, cache, "".join(keys)), identity)


def read_partitions(root):
    """Metadata and a look into the audio folders -> dict of Partition (features still empty), sorted class names"""
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


def cached_array(folder, key, shape, dtype, fill):
    """(memory-mapped array, notes array) from a folder of the cache; where missing, notes = fill(array) makes them.

    Files appear under their final name only when complete, and those of other keys, now out of date, are removed.
    """
    path, notes_path = folder / f"{key}.npy", folder / f"{key}-notes.npy"
    if not (path.exists() and notes_path.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{os.getpid()}.partial"
        try:
            array = np.lib.format.open_memmap(partial, "w+", dtype, shape)
            if hasattr(os, "posix_fallocate"):  # a full disk shows here, as an error, and not as a crash while writing
                with open(partial, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
            notes = fill(array)
            array.flush()
            del array
            os.replace(partial, path)
            with open(partial, "wb") as file:
                np.save(file, notes)
            os.replace(partial, notes_path)
        finally:
            partial.unlink(missing_ok=True)
        for old in folder.glob("*.npy"):
            if old not in (path, notes_path):
                old.unlink(missing_ok=True)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False), np.load(notes_path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: the cache is damaged ({error}); delete the folder {folder}") from None


def in_chunks(function, items, label, log, size=64):
    """Yield (slice, [function(item) ...]) over chunks of items, worked on by all cores, with progress and time left"""
    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(items), size):
            rows = slice(first, min(first + size, len(items)))
            yield rows, list(pool.map(function, items[rows]))
            left = (time.monotonic() - started) / rows.stop * (len(items) - rows.stop)
            if sys.stdout.isatty():
                print(f"\r       {label}: {rows.stop}/{len(items)} | {clock(left)} left   ", end="", flush=True)
    if sys.stdout.isatty():
        print("\r" + " " * 70 + "\r", end="")
    log(f"       {label}: {len(items)} clips in {time.monotonic() - started:.1f} s")


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
        part.visual[stream] = np.broadcast_to(np.zeros((), example.dtype), shape)
        part.present[stream] = np.zeros(len(part), bool)
    return key


def read_visual(path, example=None):
    """(64, D) float16 or float32 vectors of one clip; a stream's files all have the shape and type of its `example`."""
    try:
        vectors = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy lets out a dozen kinds for damaged files
        raise InputError(
            f"{path}: cannot be read as a .npy array ({error}); "
            "write it anew with numpy.save, or delete it: missing video is fine"
        ) from None
    shape = "(64, D)" if example is None else f"(64, {example.shape[1]})"
    types = ("float16", "float32") if example is None else (example.dtype.name,)
    if not isinstance(vectors, np.ndarray) or vectors.dtype.name not in types:
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
        partial = cache / f"statistics-{os.getpid()}.partial"
        with open(partial, "wb") as file:
            np.savez(file, **{name: np.stack(pair) for name, pair in statistics.items()})
        os.replace(partial, path)
    with np.load(path, allow_pickle=False) as stored:
        return tuple(stored["mel"]), {stream: tuple(stored[f"visual-{stream}"]) for stream in visual}


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
    root = Path(root)
    recipe = json.dumps({"toy": TOY_VERSION, "seed": seed}) + "\n"
    marker = root / "toy.json"
    if marker.is_file() and marker.read_text() == recipe:
        return
    if root.exists() and any(root.iterdir()) and not marker.is_file():
        raise InputError(f"{root}: holds something other than the toy data set; move it away")
    partial = root.with_name(f"{root.name}-{os.getpid()}.partial")
    try:
        for number, name in enumerate(PARTITIONS):
            write_toy_partition(partial, name, number, seed)
        (partial / marker.name).write_text(recipe)
        if not (marker.is_file() and marker.read_text() == recipe):  # else another run was faster
            shutil.rmtree(root, ignore_errors=True)
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
