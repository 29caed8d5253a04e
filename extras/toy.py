"""The toy data set: ten synthesised sounds and what is on screen, in the layout of DCASE 2020 task 4.

    python -m extras.toy [DIR] [--seed N]      default: data/toy; `python train.py --visual openl3` makes it by itself
    python -m extras.toy --kind tagging        data/toy-tagging; `python -m extras.boes2019` makes it by itself
    python -m extras.toy --kind large          data/toy-large, for tables (extras/README.md has the command)

The classes have DESED's names. Dishes, alarms and animals are easy to hear; frying and running water are two noises
that differ little, blender, shaver and vacuum cleaner three hums that differ little. A clip's visual vectors tell what
is on screen, roughly when. So the toy shows in minutes what the paper is about: seeing helps, also when some clips
cannot be seen. Its scores say nothing about real data.

Two larger kinds, about 200 MB each: "tagging" has other clips of the same classes, all with pictures, for systems that
need both; "large" is the toy data set with 600 public clips in place of 80, so that scores of those without video mean
something.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile

from extras.plumbing import InputError, check_out, one_line_errors, replacing
from features import CLIP_SECONDS, FRAMES, PARTITIONS, SAMPLE_RATE

VERSION = 3  # change it whenever make_toy writes other bytes
CLIPS = {  # kind: clips of each partition
    "toy": {"strong": 80, "weak": 120, "unlabelled": 60, "validation": 60, "public": 80},
    "tagging": {"strong": 100, "weak": 500, "unlabelled": 20, "validation": 150, "public": 200},
    "large": {"strong": 80, "weak": 120, "unlabelled": 60, "validation": 60, "public": 600},
}
STREAMS = {"openl3": 512, "tce": 128}  # widths; surrogates under real names, nothing was filmed
NO_VIDEO = 0.155  # share of the clips other than strong ones (Boes 2022, Sec. 3.1.1); strong clips have none
OFF_SCREEN, SILENT = 0.08, 0.04  # chance that a sounding class is not seen, that a silent one is


# --- the data set ----------------------------------------------------------------------------------------------------


def make_toy(root, seed=0, kind="toy"):
    """Write a toy data set ("toy", "tagging" or "large") into the folder `root`; the same seed, the same bytes.

    A folder that already holds this version, seed and kind is left alone; InputError for one that holds anything else.
    The folder appears only when complete.
    """
    root = Path(root).absolute()
    recipe = json.dumps({"toy": VERSION, "seed": seed} | ({} if kind == "toy" else {"kind": kind})) + "\n"
    marker = root / "toy.json"
    if marker.is_file() and marker.read_bytes() == recipe.encode():
        return
    check_out(root)
    if root.exists() and any(root.iterdir()):  # perhaps with something that is the user's own
        toy = "toy data of another version, seed or kind"
        raise InputError(f"{root}: holds {toy if marker.is_file() else 'something other than toy data'}; move it away")
    if root.exists():
        root.rmdir()  # empty
    root.parent.mkdir(parents=True, exist_ok=True)
    with replacing(root) as whole:  # if another run is faster, its folder stays
        for number, name in enumerate(PARTITIONS):
            write_partition(whole, name, number, seed, kind)
        (whole / marker.name).write_text(recipe, encoding="utf-8")


def write_partition(root, name, number, seed, kind):
    """Table, sound and visual vectors of one of the five partitions; every clip has a random generator of its own."""
    tagging = kind == "tagging"
    if tagging:
        number += len(PARTITIONS)  # other clips than those of the toy data set
    table, folder = PARTITIONS[name]
    table, folder = root / "metadata" / table, root / "audio" / folder
    streams = {"openl3": STREAMS["openl3"]} if tagging else STREAMS
    for directory in (table.parent, folder, *(root / "visual" / stream for stream in streams)):
        directory.mkdir(parents=True, exist_ok=True)
    columns = {"weak": "filename\tevent_labels", "unlabelled": "filename"}
    rows, n = [columns.get(name, "filename\tonset\toffset\tevent_label")], CLIPS[kind][name]
    without_video = np.random.default_rng([seed, number, n]).permutation(n)[: round(NO_VIDEO * n)]
    for i in range(n):
        rng = np.random.default_rng([seed, number, i])
        strong = name == "strong"
        seconds = CLIP_SECONDS if strong or rng.random() > 0.05 else int(rng.integers(5, CLIP_SECONDS))
        stem = f"{i:02d}" if strong else f"Ytoy{name[:4]}{i:04d}_0.000_{seconds}.000"
        sound, events = make_clip(rng, seconds, strong)
        # 8-bit u-law is a plain wav file of half the size; its noise lies under the clips' own background
        soundfile.write(folder / f"{stem}.wav", sound, SAMPLE_RATE, subtype="ULAW")
        if name == "weak":
            rows.append(f"{stem}.wav\t{','.join(sorted({label for *_, label in events}))}")
        elif name == "unlabelled":
            rows.append(f"{stem}.wav")
        else:
            timed = [f"{stem}.wav\t{onset:.3f}\t{offset:.3f}\t{label}" for onset, offset, label in events]
            rows += timed or [f"{stem}.wav\t\t\t"]
        if tagging or (not strong and i not in without_video):
            for stream, width in streams.items():
                np.save(root / "visual" / stream / f"{stem}.npy", make_vectors(rng, events, seconds, width))
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")


# --- one clip --------------------------------------------------------------------------------------------------------


def make_clip(rng, seconds, strong):
    """(samples,) float sound of one clip, and its events (onset, offset, class), sorted by onset"""
    n_samples = seconds * SAMPLE_RATE
    sound = 0.004 * rng.uniform(0.5, 2) * band_noise(rng, n_samples, 60, 7000)  # the room
    events = []
    if strong or rng.random() > 0.04:  # a few clips without any event, as in the real lists
        for label in rng.choice(list(SOUNDS), size=rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15]), replace=False):
            make_sound, shortest, longest = SOUNDS[label]
            end = 0.0
            for _ in range(1 if longest > 4 else rng.integers(1, 4)):
                onset = end + rng.uniform(0.2, 0.5 * seconds)
                offset = min(onset + rng.uniform(shortest, longest), seconds)
                if offset - onset < 0.25:  # DESED's shortest event
                    break
                start, n = int(onset * SAMPLE_RATE), int((offset - onset) * SAMPLE_RATE)
                event = make_sound(rng, n)
                sound[start : start + n] += event / np.sqrt(np.mean(event**2)) * 10 ** rng.uniform(-1.9, -1.2)
                events.append((onset, offset, str(label)))
                end = offset + 0.2
    return sound / max(1.0, np.abs(sound).max() * 1.05), sorted(events)


def make_vectors(rng, events, seconds, width):
    """(64, width) float16: the classes on screen and things of no interest, seen through a fixed random basis"""
    classes = list(SOUNDS)
    times = (np.arange(FRAMES) + 0.5) * CLIP_SECONDS / FRAMES
    seen = np.zeros((FRAMES, len(classes)))
    off_screen, silent = rng.random(len(classes)) < OFF_SCREEN, rng.random(len(classes)) < SILENT
    for onset, offset, label in events:
        if not off_screen[classes.index(label)]:
            seen[(times > onset) & (times < offset), classes.index(label)] = 1
    for c in np.flatnonzero(silent):
        start = rng.uniform(0, 8)
        seen[(times > start) & (times < start + rng.uniform(1, 6)), c] = 1
    blur = np.hanning(15)[1:-1]  # the picture knows the time to about a second
    seen = scipy.signal.convolve(seen, blur[:, None] / blur.sum(), "same") * rng.uniform(0.6, 1.4, len(classes))
    scene = rng.standard_normal((1, 6)) + np.cumsum(rng.standard_normal((FRAMES, 6)), 0) / 25  # drifts slowly
    vectors = np.hstack([seen, 0.6 * scene]) @ visual_basis(width) + rng.standard_normal((FRAMES, width))
    last = np.flatnonzero(times <= seconds)[-1]
    vectors[last:] = vectors[last]  # a picture that ends early stands still, as in extras/embeddings.py
    return vectors.astype(np.float16)


def visual_basis(width):
    """The "visual network": (16, width), how each class and each of 6 other things looks; the same for all clips"""
    return np.random.default_rng(width).standard_normal((len(SOUNDS) + 6, width))


def classes_on_screen(vectors):
    """What make_vectors put on screen, seen or not heard: visual vectors (N, 64, D) -> (N, C) bool"""
    found = vectors.astype(np.float32) @ np.linalg.pinv(visual_basis(vectors.shape[2]))
    return found[:, :, : len(SOUNDS)].max(axis=1) > 0.4  # 1 where a class is seen, noise of about 0.05 elsewhere


# --- the ten sounds --------------------------------------------------------------------------------------------------
# Each takes a random generator and n, and makes (n,) samples; how loud does not matter. What is drawn once, before the
# bursts, is the voice of the event: pitch, beat, colour.


def harmonics(rng, hertz, decay):
    """Tone with partials that fall off as 1 / k ** decay; hertz (samples,) is its pitch over time"""
    phase = 2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE + rng.uniform(0, 2 * np.pi)
    partials = range(1, 1 + min(20, int(7000 / hertz.max())))
    return sum(np.sin(k * phase) / k**decay for k in partials)


def band_noise(rng, n, low, high):
    """Noise between two frequencies in Hz"""
    band = scipy.signal.butter(2, (low, high), "bandpass", fs=SAMPLE_RATE, output="sos")
    return scipy.signal.sosfilt(band, rng.standard_normal(n))


def bursts(rng, n, shortest, longest, gap, burst):
    """burst(samples, progress from 0 to 1) again and again until n samples are full, with pauses up to `gap` seconds"""
    sound, start = np.zeros(n), 0
    while start < n:
        size = min(int(rng.uniform(shortest, longest) * SAMPLE_RATE), n - start)
        sound[start : start + size] += burst(size, np.linspace(0, 1, size))
        start += size + int(rng.uniform(0.3, 1) * gap * SAMPLE_RATE)
    return sound


def alarm(rng, n):
    pitch, beat = rng.uniform(1800, 3200), rng.uniform(0.08, 0.2)

    def beep(size, u):
        return np.sin(2 * np.pi * pitch * np.arange(size) / SAMPLE_RATE)

    return bursts(rng, n, beat, beat * 1.01, beat, beep)


def cat(rng, n):
    pitch = rng.uniform(500, 800)

    def miaow(size, u):
        return harmonics(rng, pitch * (1 + 0.5 * np.sin(np.pi * u)), 1.0) * np.sin(np.pi * u)

    return bursts(rng, n, 0.5, 1.0, 0.3, miaow)


def dishes(rng, n):
    def clink(size, u):
        t = np.arange(size) / SAMPLE_RATE
        return sum(np.sin(2 * np.pi * f * t) * np.exp(-t / rng.uniform(0.02, 0.08)) for f in rng.uniform(2500, 7000, 5))

    return bursts(rng, n, 0.1, 0.2, 0.1, clink)


def dog(rng, n):
    pitch = rng.uniform(350, 650)

    def bark(size, u):
        return (harmonics(rng, pitch * (1.3 - 0.6 * u), 0.8) + rng.standard_normal(size)) * np.sin(np.pi * u**0.5)

    return bursts(rng, n, 0.12, 0.22, 0.25, bark)


def speech(rng, n):
    pitch = rng.uniform(90, 220)

    def syllable(size, u):
        voice = harmonics(rng, pitch * (1 + 0.15 * rng.uniform(-1, 1) * u), 0.6) + 0.2 * rng.standard_normal(size)
        formants = np.array([500, 1400, 2600]) * rng.uniform(0.6, 1.5, 3)
        vowel = sum(scipy.signal.lfilter(*scipy.signal.iirpeak(f, 6, fs=SAMPLE_RATE), voice) for f in formants)
        return vowel * np.sin(np.pi * u)

    return bursts(rng, n, 0.12, 0.28, 0.08, syllable)


def frying(rng, n):
    pops = (rng.random(n) < 15 / SAMPLE_RATE) * rng.exponential(3, n)  # all that tells it from water
    return band_noise(rng, n, rng.uniform(700, 1300), 6200) + scipy.signal.lfilter([1], [1, -0.9], pops)


def water(rng, n):
    flow = scipy.signal.resample(rng.standard_normal(max(4, n // 2000)), n)
    return band_noise(rng, n, rng.uniform(600, 1200), 6000) * (1 + 0.1 * flow)


def motor(low, high, tilt, hiss):
    """A hum whose pitch lies somewhere between low and high Hz; pitches and colours of the three motors overlap"""

    def hum(rng, n):
        wobble = 1 + 0.02 * np.sin(2 * np.pi * rng.uniform(2, 6) * np.arange(n) / SAMPLE_RATE)
        return harmonics(rng, rng.uniform(low, high) * wobble, tilt) + hiss * band_noise(rng, n, 300, 5000)

    return hum


SOUNDS = {  # class: (what makes the sound, shortest and longest event in seconds)
    "Alarm_bell_ringing": (alarm, 0.6, 3.0),
    "Blender": (motor(120, 210, 0.66, 1.5), 2.0, 6.0),
    "Cat": (cat, 0.5, 1.5),
    "Dishes": (dishes, 0.25, 1.0),
    "Dog": (dog, 0.3, 1.5),
    "Electric_shaver_toothbrush": (motor(110, 200, 0.65, 1.45), 3.0, 8.0),
    "Frying": (frying, 3.0, 9.0),
    "Running_water": (water, 2.0, 8.0),
    "Speech": (speech, 0.8, 3.0),
    "Vacuum_cleaner": (motor(115, 205, 0.65, 1.55), 3.0, 9.0),
}


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m extras.toy", description="Write a toy data set.")
    parser.add_argument("root", metavar="DIR", nargs="?", help="default: data/toy, data/toy-tagging, data/toy-large")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other clips; default: 0")
    parser.add_argument("--kind", choices=CLIPS, default="toy", help="default: toy")
    args = parser.parse_args(arguments)
    if args.seed < 0:
        parser.error("--seed must be 0 or more")
    root = args.root or ("data/toy" if args.kind == "toy" else f"data/toy-{args.kind}")
    with one_line_errors("nothing was written, begin again"):
        make_toy(root, args.seed, args.kind)
        print(f"data   {root}: {sum(CLIPS[args.kind].values())} clips of toy data, seed {args.seed}")


if __name__ == "__main__":
    main()
