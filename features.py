"""From files to arrays: log-mel maps, tables of events and labels, visual vectors, the DCASE 2020 task 4 layout.

    load_audio, log_mel     the acoustic features (Boes 2022, Sec. 3.1.2)
    read_strong             a table of events
    load_dataset            metadata, audio and visual vectors of a folder -> a DataSet, cached on disk

Copy this file together with extras/plumbing.py; of log-mel alone, see `log_mel`. A data set is a folder in the layout
of DCASE 2020 task 4, plus one folder of vectors for each visual stream:

    DIR/metadata/train/weak.tsv                       DIR/audio/train/weak/*.wav
    DIR/metadata/train/unlabel_in_domain.tsv          DIR/audio/train/unlabel_in_domain/*.wav
    DIR/metadata/train/synthetic20/soundscapes.tsv    DIR/audio/train/synthetic20/soundscapes/*.wav
    DIR/metadata/validation/validation.tsv            DIR/audio/validation/*.wav
    DIR/metadata/eval/public.tsv                      DIR/audio/eval/public/*.wav
    DIR/visual/<stream>/<clip stem>.npy               (64, D) float16 or float32; no file means no video
    DIR/cache                                         ours, safe to delete

Where a table DIR/partitions.tsv stands, the lists and their audio are where it says: `plumbing.read_layout`.

A clip shorter than 10 s is heard as if silence followed (`fit_clip`), also in prediction. The statistics leave that
silence out (`training_statistics`). Its last visual vector is repeated, by whoever writes the file; the statistics
count the repetitions. Targets and true events are taken as the table has them: output frames after the end hold no
events, unless an event of the table reaches there. Predicted events end with the clip (`Partition.durations`,
`metrics.scores_to_events`). PSDS counts the hours of real sound; F1 does not know where a clip ends.

Shapes: N clips, 512 log-mel frames of 64 mel bins, T = 64 output and visual frames, D width of a visual vector,
C classes.
"""

import functools
import os
import re
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path

import numpy as np

from extras import plumbing  # before torch: it says how idle threads wait
from extras.plumbing import InputError

import torch  # isort: skip

SAMPLE_RATE = 16000  # Hz (Boes 2022, Sec. 3.1.2)
CLIP_SECONDS = 10  # Boes 2022, Sec. 3.1.1
CLIP_SAMPLES = CLIP_SECONDS * SAMPLE_RATE  # 160,000
WINDOW = 1024  # samples, 64 ms (Boes 2022, Sec. 3.1.2)
HOP = 313  # samples, 19.6 ms (Boes 2022, Sec. 3.1.2, which rounds to 20 ms)
MELS = 64  # Boes 2022, Sec. 3.1.2
MEL_FRAMES = 1 + CLIP_SAMPLES // HOP  # 512 with centred frames, the number that the paper gives
MEL_FLOOR = 1e-5  # ours: -100 dB, whatever the rest of the clip is like
FRAMES = 64  # T: outputs of the network and visual vectors per clip (Boes 2022, Sec. 3.1.2)
FRAME_HOP = 8 * HOP / SAMPLE_RATE  # ours: 0.1565 s per output frame, since the network pools time by 8; not 10 s / 64
STD_FLOOR = 1e-3  # ours: a bin or dimension that never changes stays finite
RECIPE = "log-mel 1"  # part of the cache's key, as the constants are: change it when you change how log-mel is made
DAY = 86_400  # s: no recording is longer, so a later time is in other units, or damaged
EVENT_COLUMNS = ("filename", "onset", "offset", "event_label")

PARTITIONS = {  # name: (metadata, audio folder), as DCASE 2020 task 4 lays them out (Boes 2022, Sec. 3.1.1, Table 2)
    "strong": ("train/synthetic20/soundscapes.tsv", "train/synthetic20/soundscapes"),
    "weak": ("train/weak.tsv", "train/weak"),
    "unlabelled": ("train/unlabel_in_domain.tsv", "train/unlabel_in_domain"),
    "validation": ("validation/validation.tsv", "validation"),
    "public": ("eval/public.tsv", "eval/public"),
}
TRAINING, TESTS = ("strong", "weak", "unlabelled"), ("validation", "public")


# --- audio -> log-mel ------------------------------------------------------------------------------------------------


def resample(waveform, rate):
    """(samples,) at a rate in Hz -> at 16 kHz (Boes 2022, Sec. 3.1.2)"""
    if rate == SAMPLE_RATE:
        return waveform
    from scipy.signal import resample_poly  # speed: half a second to load, and few commands need it

    divisor = gcd(rate, SAMPLE_RATE)
    return resample_poly(waveform, SAMPLE_RATE // divisor, rate // divisor)


def scale_peak(waveform, peak=None):
    """(samples,) -> the same with its peak at 1 (Boes 2022, Sec. 3.1.2); silence stays silence.

    peak: largest absolute value. ours: of a file that lasts over 10 s, that of the whole file
    """
    peak = np.abs(waveform).max() if peak is None else peak
    return (waveform / peak if peak > 0 else waveform).astype(np.float32)


def fit_clip(waveform):
    """(samples,) -> (160000,): cut to 10 s, or zeros added. ours: zeros in the waveform, not in the log-mel map"""
    return np.pad(waveform[:CLIP_SAMPLES], (0, max(0, CLIP_SAMPLES - len(waveform))))


def mel_filterbank(window=WINDOW):
    """(64, window // 2 + 1) float32: triangles between 66 points evenly spaced on a mel scale from 0 to 8000 Hz"""
    # ours: all frequencies up to half the sample rate; the Slaney scale, linear below 1 kHz (200/3 Hz per mel),
    # logarithmic above (27 mels for a factor of 6.4)
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, MELS + 2)
    hertz = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.arange(window // 2 + 1) * SAMPLE_RATE / window
    left, centre, right = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return torch.from_numpy(np.maximum(0, triangles)).float()  # ours: every peak is 1, no area normalisation


def log_mel(audio, window=WINDOW, hop=HOP):
    """Waveforms (..., 160000) at 16 kHz, array or tensor -> log-mel (..., 512, 64) float32 tensor, time first.

    window, hop: samples; other ones, as in extras/fayek2020.py, give another number of log-mel frames
    To use it elsewhere, copy this section and the constants above it; they need torch, numpy and, for sound of another
    rate, scipy. Waveforms go through resample, scale_peak and fit_clip before, as `load_audio` shows.
    """
    audio = torch.as_tensor(audio, dtype=torch.float32)
    spectrum = torch.stft(
        audio.reshape(-1, audio.shape[-1]), window, hop,
        window=torch.hamming_window(window, periodic=False, device=audio.device),  # ours: Hamming, symmetric
        center=True, pad_mode="reflect", return_complex=True,  # ours: frame k is centred at k * hop, edges reflect
    )  # (clips, 513, 512)  # fmt: skip
    mel = mel_filterbank(window).to(audio.device) @ spectrum.abs()  # (clips, 64, 512), of magnitudes, not of power
    return mel.clamp_min(MEL_FLOOR).log().transpose(1, 2).reshape(*audio.shape[:-1], -1, MELS)  # ours: natural log


# --- sound files -----------------------------------------------------------------------------------------------------


def sound_blocks(path, strict=True):
    """Sound file -> yields its rate in Hz and a block of it, (up to 160000,) float32, channels averaged.

    Raises InputError for a file that cannot be decoded, or that holds less sound than its header promises; not strict:
    for the second, warns.
    """
    with plumbing.open_sound(path) as file:
        for block in plumbing.read_sound(path, file, CLIP_SAMPLES, strict):
            yield file.samplerate, block.mean(1)


def read_mono(path):
    """Sound file -> its first 10 s at 16 kHz (samples,), not scaled; the peak of the whole file; its length in samples.

    Resampled as Boes 2022, Sec. 3.1.2, asks; ours: channels are averaged. Raises InputError for a file without sound.
    """
    clip, peak, n_samples = np.zeros(0, np.float32), 0.0, 0
    for block in plumbing.resampled(sound_blocks(path), resample, SAMPLE_RATE):
        clip = np.concatenate([clip, block[: CLIP_SAMPLES - len(clip)]])
        peak, n_samples = np.maximum(peak, np.abs(block).max()), n_samples + len(block)  # max() would lose a NaN
    if not n_samples or not np.isfinite(peak):
        what = "samples that are not finite" if n_samples else "no audio"
        raise InputError(f"{path}: holds {what}; mend the file, or delete it: missing clips are fine")
    return clip, peak, n_samples


def load_audio(path):
    """Sound file -> (160000,) float32: 10 s at 16 kHz, mono, the file's peak at 1 (a silent clip stays zero)"""
    clip, peak, _ = read_mono(path)
    return fit_clip(scale_peak(clip, peak))


# --- tables ----------------------------------------------------------------------------------------------------------


def read_strong(path, classes=None, of_system=False, more=()):
    """Table of events -> filenames (each once, in order), events (filename, onset, offset, event_label) in seconds.

    A row with nothing but a file name is a clip without events. Times may overlap, repeat, or pass the clip's end.
    classes: where given, no other label may occur. of_system (for extras/score.py): a table to be scored, not one of a
    data set; events of length 0 and file names with folders may occur. more: further columns, whose cells follow label
    """
    filenames, events = {}, []
    for place, (name, onset, offset, label, *others) in plumbing.read_table(path, (*EVENT_COLUMNS, *more)):
        filenames[name if of_system else plumbing.check_filename(place, name)] = None
        if not (onset or offset or label):
            continue
        label = plumbing.read_labels(place, label, "\t")[0] if label else ""  # one label, quoted or not
        try:
            start, end = plumbing.parse_number(onset), plumbing.parse_number(offset)
        except ValueError:
            raise InputError(f"{place}: onset {onset!r} and offset {offset!r} must be numbers (seconds)") from None
        if not (0 <= start <= end <= DAY and (start < end or of_system)):
            times = f"0 <= onset < offset, here {onset} and {offset}, in seconds and within a day"
            raise InputError(f"{place}: an event needs {times}; correct or delete the row")
        if not label:
            raise InputError(f"{place}: an event without a label; name the class or empty the whole row")
        if classes is not None and label not in classes:
            raise InputError(f"{place}: the class {label!r} occurs in no training clip; correct it, or add such clips")
        events.append((name, start, end, label, *others))
    return list(filenames), events


def read_weak(path):
    """Table of clip labels -> dict of filename -> set of labels (the official lists repeat labels, in any order).

    A label that holds a comma stands in quotation marks: "Air horn, truck horn",Car
    """
    clips = {}
    for place, (name, cell) in plumbing.read_table(path, ("filename", "event_labels")):
        labels = set(plumbing.read_labels(place, cell)) - {""}
        clips.setdefault(plumbing.check_filename(place, name), set()).update(labels)
    return clips


def read_unlabelled(path):
    """Table of clips -> filenames"""
    rows = plumbing.read_table(path, ("filename",))
    return list(dict.fromkeys(plumbing.check_filename(place, name) for place, (name,) in rows))


def write_events(path, events):
    """Events -> a table, which read_strong reads back exactly"""
    lines = ["\t".join(EVENT_COLUMNS)]
    for name, onset, offset, label in events:
        lines.append(f"{name}\t{float(onset)!r}\t{float(offset)!r}\t{label}")
    plumbing.write_text(path, "\n".join(lines))


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
    paths: list  # of their audio
    listed: int  # how many clips the list names, with and without audio
    filenames: list
    events: list = field(default_factory=list)  # (filename, onset, offset, event_label), seconds
    tags: np.ndarray = None  # (N, C) bool: the clip's classes; None for unlabelled clips
    frame_targets: np.ndarray = None  # (N, 64, C) bool: strong training clips only
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


def subset(part, rows):
    """The clips of a partition where rows (N,) bool says so, without their features"""
    kept, arrays = np.flatnonzero(rows), {}
    names, paths = [part.filenames[i] for i in kept], [part.paths[i] for i in kept] if part.paths else []
    for name in ("tags", "frame_targets", "durations"):
        if (array := getattr(part, name)) is not None:
            arrays[name] = array[kept]
    known = set(names)
    return Partition(part.name, paths, part.listed, names, [e for e in part.events if e[0] in known], **arrays)


@dataclass
class DataSet:
    """What load_dataset returns. Statistics come from the training partitions only (Boes 2022, Sec. 3.1.2)."""

    classes: list  # C sorted names
    partitions: dict  # name -> Partition
    mel_statistics: tuple  # mean, std of each mel bin, (64,) float32
    visual_statistics: dict  # stream -> (mean, std) of each dimension, (D,) float32; in the order asked for


def load_dataset(root, visual=(), cache=None, log=print, needed=(*TRAINING, "validation")):
    """Read a data set in the layout shown above; the features are computed once and then memory-mapped from a cache.

    visual: names of folders under root/visual, any number
    cache: folder for the cache, default root/cache
    log: receives a line per partition: how many clips are listed, found, and have each visual stream; and what is odd
    needed: partitions that must have clips. Others may be absent, and have none then
    Raises InputError for anything wrong. A listed clip without audio is only counted, unless a partition has none.
    """
    root = Path(root)
    cache = Path(cache or root / "cache")
    if "log-mel" in visual:
        raise InputError(f"{root}/visual/log-mel: a visual stream cannot have this name; rename it")
    layout = plumbing.read_layout(root, PARTITIONS, needed)
    partitions, classes = read_partitions(layout, needed)
    files = {stream: visual_files(root / "visual" / stream) for stream in visual}
    for part in partitions.values():
        line = f"       {part.name:10} {part.listed:5d} listed, {len(part):5d} found"
        for stream in visual:
            n = sum(plumbing.stem(f) in files[stream] for f in part.filenames)
            line += f", {n:5d} with {stream} ({100 * n / max(len(part), 1):.1f} %)"
        log(line)
    log(f"       {len(classes)} classes: {plumbing.join_labels(classes, ', ')}")
    for name in (*needed, "public"):
        part = partitions[name]
        if part.listed and not part.filenames:
            listed = f"none of the {part.listed} clips listed for '{name}' is there"
            raise InputError(f"{layout[name][0][1]}: {listed}; put their audio into this folder")
    drop_tested_clips(partitions, log)
    plumbing.name_untaught({name: partitions[name].tags for name in ("strong", "weak") if name in needed}, classes, log)
    for stream in visual:
        sounds = [path for part in partitions.values() for path in part.paths]
        plumbing.check_stems(sounds, files[stream], recording)

    keys = []
    for part in partitions.values():
        keys.append(add_log_mel(part, cache, log))
        say_what_lies_behind(part, log)
    for stream in visual:
        folder = root / "visual" / stream
        example = first_vectors(partitions, folder, files[stream])
        keys += [add_visual(part, stream, files[stream], example, cache, log) for part in partitions.values()]
        if not any(partitions[name].present[stream].any() for name in TRAINING):
            raise InputError(f"{folder}: the vectors of all training clips hold values that are not finite; redo them")
    key = plumbing.fingerprint((), keys, STD_FLOOR, TRAINING)
    return DataSet(classes, partitions, *training_statistics(partitions, visual, cache, key))


def read_lists(name, rows, classes=None, needed=False):
    """Lists of a partition, [(table, folder)] -> dicts of filename -> path of its audio, -> set of labels; events.

    needed: InputError where they name no clip
    """
    paths, labels, events = {}, {}, []
    for table, folder in rows:
        on_disk, timed = plumbing.files_in(folder), []
        if name == "weak":
            clips = read_weak(table)
        elif name == "unlabelled":
            clips = dict.fromkeys(read_unlabelled(table) if table else sorted(filter(plumbing.is_sound, on_disk)), ())
        else:
            filenames, timed = read_strong(table, classes)
            clips = {f: set() for f in filenames}
            for f, _, _, label in timed:
                clips[f].add(label)
        if twice := paths.keys() & clips.keys():
            raise InputError(f"{table or folder}: {min(twice)} is in another list of '{name}' too; one is enough")
        paths |= {f: on_disk.get(f, folder / f) for f in clips}
        labels |= clips
        events += timed
    if needed and not paths:
        raise InputError(f"{rows[0][0] or rows[0][1]}: the list of '{name}' is empty; {plumbing.why_needed(name)}")
    return paths, labels, events


def read_partitions(layout, needed=()):
    """Tables and a look into the audio folders -> dict of Partition (features still empty), sorted class names"""
    lists = {name: read_lists(name, layout.get(name, ()), None, name in needed) for name in TRAINING}
    # ours: the classes are those that training can teach, from strong and weak labels together. A label that the strong
    # list never has counts as absent from every strong clip. A label that only test clips have is an error.
    classes = sorted(set().union(*(tags for _, labels, _ in lists.values() for tags in labels.values())))
    if not classes:
        tables = [str(table) for name in ("strong", "weak") for table, _ in layout.get(name, ())]
        raise InputError(f"{', '.join(tables) or 'no list'}: hold no label; there must be a class to learn")
    lists |= {name: read_lists(name, layout.get(name, ()), classes, name in needed) for name in TESTS}
    partitions = {}
    for name, (paths, labels, events) in lists.items():
        found = {f: path for f, path in paths.items() if os.path.isfile(path)}
        part = Partition(name, [*found.values()], len(paths), [*found], [e for e in events if e[0] in found])
        if name != "unlabelled":
            part.tags = np.array([[c in labels[f] for c in classes] for f in found], bool).reshape(-1, len(classes))
        if name == "strong":
            part.frame_targets = frame_targets(part.filenames, part.events, classes)
        partitions[name] = part
    return partitions, classes


def drop_tested_clips(partitions, log):
    """Take out those training clips that are also test clips. ours: the paper does not speak of it"""
    tests = [path for name in TESTS for path in partitions[name].paths]
    for name in TRAINING:
        kept = plumbing.not_tested(partitions[name].paths, tests, recording)
        if not kept.all():
            log(f"       {name:10} {np.sum(~kept):5d} left out, the same recording is in validation or public")
            partitions[name] = subset(partitions[name], kept)


def add_log_mel(part, cache, log):
    """Fill in part.log_mel and part.durations -> key of what is cached. speed: computed once, then memory-mapped"""
    key = plumbing.fingerprint(part.paths, RECIPE, SAMPLE_RATE, CLIP_SECONDS, WINDOW, HOP, MELS, MEL_FLOOR)

    def read(path):
        clip, peak, n_samples = read_mono(path)
        return log_mel(fit_clip(scale_peak(clip, peak))).numpy(), n_samples / SAMPLE_RATE

    columns = {"log_mel": ((MEL_FRAMES, MELS), np.float32), "durations": ((), np.float64)}
    label = f"log-mel of {part.name}"
    arrays = plumbing.cached_table(cache, f"{part.name}-log_mel", key, read, part.paths, columns, log, label)
    part.log_mel, part.durations = arrays["log_mel"], arrays["durations"]
    return key


def say_what_lies_behind(part, log):
    """Log how many clips are cut, how many events lie where nothing is heard. A frame more or less does not count"""
    limit, ends = CLIP_SECONDS + FRAME_HOP, dict(zip(part.filenames, part.durations + FRAME_HOP))
    cut = {f for f, seconds in zip(part.filenames, part.durations) if seconds > limit}
    if cut:
        lost = sum(f in cut and offset > limit for f, _, offset, _ in part.events)
        what = f"; {lost} of {len(part.events)} events begin or end there, not learned or found" if lost else ""
        log(f"       {part.name:10} {len(cut):5d} last over {CLIP_SECONDS} s, the rest is not heard{what}")
    if beyond := sum(offset > ends[f] for f, _, offset, _ in part.events):
        log(f"       {part.name:10} {beyond:5d} of {len(part.events)} events begin or end behind their sound's end")


def add_visual(part, stream, files, example, cache, log):
    """Fill in part.visual and part.present of one stream -> key of what is cached. speed: as for log-mel"""
    paths = [files.get(plumbing.stem(f)) for f in part.filenames]
    found = [path for path in paths if path]
    key = plumbing.fingerprint(found, stream, part.filenames, example.shape, example.dtype.name, plumbing.LARGEST)
    if not found:  # speed: zeros take no memory until they are written to, and no disk
        part.visual[stream] = np.zeros((len(part), *example.shape), example.dtype)
        part.present[stream] = np.zeros(len(part), bool)
        return key

    def read(path):
        """-> vectors, whether they can be used. ours: where vectors are not finite, or far out, there is no video"""
        if path is None:
            return np.zeros_like(example), False
        vectors = read_visual(path, example)
        return vectors, plumbing.usable(vectors)

    columns = {"visual": (example.shape, example.dtype), "present": ((), bool)}
    label = f"{stream} of {part.name}"
    arrays = plumbing.cached_table(cache, f"{part.name}-visual-{stream}", key, read, paths, columns, log, label)
    part.visual[stream], part.present[stream] = arrays["visual"], arrays["present"]
    plumbing.name_unusable(part.name, stream, paths, part.present[stream], log)
    return key


def visual_files(folder):
    """Files of a visual stream: dict of clip stem -> path"""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a visual stream is a folder of (64, D) .npy files, one per clip")
    return {name[:-4]: path for name, path in plumbing.files_in(folder).items() if name.endswith(".npy")}


def first_vectors(partitions, folder, files):
    """Vectors of a training clip, like most of the first nine: all files of a stream must have their width and type"""
    stems = [plumbing.stem(filename) for name in TRAINING for filename in partitions[name].filenames]
    paths = [files[stem] for stem in stems if stem in files]
    if not paths:
        raise InputError(f"{folder}: no file for any training clip; put (64, D) arrays there, named <clip name>.npy")
    return plumbing.most_alike([read_visual(path) for path in paths[:9]])


def read_visual(path, example=None):
    """(64, D) float16 or float32 vectors of one clip; a stream's files all have the shape and type of its `example`"""
    try:
        vectors = plumbing.load_array(path)
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


def training_statistics(partitions, visual, cache, key):
    """Over the training clips -> (mean, std) of the mel bins, dict of stream -> (mean, std) of its dimensions.

    train.standardise applies them, in training and in scoring alike (Boes 2022, Sec. 3.1.2). Why of the training clips
    alone: test clips stand for sounds that nobody knows yet, so nothing measured on them may enter the system.
    """
    training = [partitions[name] for name in TRAINING]
    widths = {"log-mel": MELS} | {f"visual-{stream}": training[0].visual[stream].shape[2] for stream in visual}

    def compute():
        # ours: frames in the padding of a short clip are left out, they would count as sound of ln(1e-5). Frame k is
        # centred at sample k * HOP, so it lies in the sound where k * HOP <= number of samples
        sounding = []
        for part in training:
            n_samples = np.minimum(part.durations * SAMPLE_RATE, CLIP_SAMPLES).round()[:, None]  # (N, 1)
            sounding.append(np.arange(MEL_FRAMES) <= n_samples // HOP)  # (N, 512)
        statistics = {"log-mel": mean_and_std([part.log_mel for part in training], sounding)}
        for stream in visual:  # ours: visual vectors are standardised by dimension, like mel bins
            present = [np.repeat(part.present[stream][:, None], FRAMES, axis=1) for part in training]  # (N, 64) each
            vectors = [part.visual[stream] for part in training]
            statistics[f"visual-{stream}"] = mean_and_std(vectors, present)
        return statistics

    wanted = {name: ((2, width), np.float32) for name, width in widths.items()}
    arrays = plumbing.cached_arrays(cache, "-".join(("statistics", *visual)), key, compute, wanted)
    return tuple(arrays["log-mel"]), {stream: tuple(arrays[f"visual-{stream}"]) for stream in visual}


def mean_and_std(arrays, masks, chunk=256):
    """Over all rows x[mask] of arrays (N, L, K) with masks (N, L) bool: mean, std (2, K) float32, summed in float64"""
    count, total, squares = 0, 0.0, 0.0
    for array, mask in zip(arrays, masks):
        for begin in range(0, len(array), chunk):
            rows = array[begin : begin + chunk][mask[begin : begin + chunk]].astype(np.float64)
            count += len(rows)
            total += rows.sum(0)
            squares += (rows**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return np.stack([mean, np.maximum(std, STD_FLOOR)]).astype(np.float32)
