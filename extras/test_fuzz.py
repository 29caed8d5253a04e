"""Damaged files of every kind: their readers take them, or refuse them in one line. Nothing else may happen.

    pytest extras/test_fuzz.py                                  the same few hundred files each time
    AVSED_FUZZ_SECONDS=3600 pytest -s extras/test_fuzz.py       fresh ones for an hour; prints counts for each kind
    python -m extras.test_fuzz wav 17                           one of them again, with its traceback

A child process does the reading, under a limit of memory; a reader that wants more, crashes or takes long is a finding,
and so is one that takes a sound file which was cut.
"""

import contextlib
import faulthandler
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import soundfile
import torch

import features
import train
from extras import boes2019, embeddings, plumbing, predict, runs, score, tables
from extras.test_processes import Program
from test_avsed import LAYOUT, quiet, shrink, tiny_config, tiny_rows, write_tiny

ROOM, SLOW = 3 * 2**30, 20  # bytes beyond what the process has mapped when it starts; seconds
CPU = torch.device("cpu")


# --- how files are damaged -------------------------------------------------------------------------------------------


def damaged(rng, content, header=64):
    """Bytes with flipped ones, another number in the header, a piece lost, doubled or put in, or only the beginning"""
    content, n = bytearray(content), len(content)
    place, size = int(rng.integers(n)), int(rng.integers(1, 1 + min(n, 2000)))
    match rng.integers(7):
        case 0:
            for i in rng.integers(n, size=rng.integers(1, 9)):
                content[i] ^= int(rng.integers(1, 256))
        case 1:
            for _ in range(rng.integers(1, 4)):
                width, i = int(rng.choice([1, 2, 4, 8])), int(rng.integers(min(header, n)))
                number = rng.choice([0, 1, 2, 3, 255, 2**15, 2**31 - 1, 2**32 - 1, 2**63, int(rng.integers(2**40))])
                content[i : i + width] = (int(number) % 256**width).to_bytes(width, str(rng.choice(["little", "big"])))
        case 2:
            del content[place:]
        case 3:
            del content[place : place + size]
        case 4:
            content[place:place] = content[place : place + size]
        case 5:
            content[place:place] = rng.bytes(size)
        case 6:
            content[place : place + size] = bytes(len(content[place : place + size]))
    return bytes(content)


CELLS = ["", " ", "0", "-0", "1e3", "86400", "1e300", "inf", "nan", "-1", "1_0", "١", "0x1", "../x", "a/b", "\0", "\t",
         "\n", "\r", "\ufeff", "é", "\ud800", "a" * 300, "Cat,Dog", "filename", "onset", "1e-300", "1.5", "2",
         "Cat"]  # fmt: skip


def damaged_table(rng, text):
    """A table with cells, rows or its header replaced; at times, bytes"""
    if rng.random() < 0.2:
        return damaged(rng, text.encode())
    rows = [line.split("\t") for line in text.split("\n")]
    for _ in range(rng.integers(1, 4)):
        row = rows[rng.integers(len(rows))]
        match rng.integers(4):
            case 0 | 1:
                row[rng.integers(len(row))] = CELLS[rng.integers(len(CELLS))]
            case 2:
                row[rng.integers(len(row)) :] = []
                row.append("")
            case 3:
                rows += [row] * int(10 ** rng.uniform(0, 4))
    return "\n".join("\t".join(row) for row in rows).encode(errors="surrogatepass")


VALUES = [None, True, 0, 1, -1, 3, 99, 10**30, 0.0, 1.0, 0.5, -0.5, 1e-50, float("nan"), float("inf"), "", "x",
          "1\t2\n", "é" * 500, [], [1], {}, {"x": 1}, (), "nan tensor", "tensor", "long tensor",
          "wide tensor"]  # fmt: skip


def damaged_object(rng, content):
    """Nested dicts and lists of which one thing is gone, doubled, or of another type, shape or range"""
    content = copy_of(content)
    places = []

    def walk(box):
        for key in list(box) if isinstance(box, dict) else range(len(box)):
            places.append((box, key))
            if isinstance(box[key], (dict, list)):
                walk(box[key])

    walk(content)
    for _ in range(rng.integers(1, 3)):
        box, key = places[rng.integers(min(len(places), 10 ** int(rng.integers(1, 4))))]  # mostly near the top
        if isinstance(box, dict) and key not in box or isinstance(box, list) and key >= len(box):
            continue
        value, kind = box[key], rng.integers(6)
        if kind == 0:
            del box[key]
        elif isinstance(value, torch.Tensor) and kind < 4 and ordinary(value):
            shapes = [value[:1], value[..., :1], value.double(), value.half(), value[None], value.flatten()]
            others = [value * float("nan"), value.to(torch.complex64), value.expand(2, *value.shape), value.to("meta")]
            others += [value.to_sparse(), value.int(), -value.abs() - 1]
            box[key] = (shapes + others)[rng.integers(len(shapes) + len(others))]
        else:
            new = VALUES[rng.integers(len(VALUES))]
            kinds = {"nan tensor": torch.full((64,), float("nan")), "tensor": torch.ones(())}
            kinds |= {"long tensor": torch.ones(2), "wide tensor": torch.ones(1).expand(10**9)}
            box[key] = kinds.get(new, new) if isinstance(new, str) else new
    return content


def ordinary(tensor):
    """Not one that was damaged before, so that it can be once more"""
    return tensor.layout is torch.strided and not tensor.is_meta and 0 < tensor.ndim and tensor.numel() < 10**8


def copy_of(content):
    if isinstance(content, dict):
        return {key: copy_of(value) for key, value in content.items()}
    return list(map(copy_of, content)) if isinstance(content, (list, tuple)) else content


def saved(rng, content):
    """What torch.save makes of it, damaged before or after"""
    file = io.BytesIO()
    if rng.random() < 0.3:
        torch.save(content, file)
        return damaged(rng, file.getvalue(), 4000)
    torch.save(damaged_object(rng, content), file)
    return file.getvalue()


# --- the kinds: what makes a damaged file, what reads it -------------------------------------------------------------
# make(rng, folder) writes into the empty folder -> what `read` is called with. read raises AssertionError for a result
# that it should not have taken.


class Samples:
    """What is damaged: made once"""

    def __init__(self, folder):
        rng, self.folder = np.random.default_rng(0), folder
        shrink()
        self.n_samples = 3 * 11025
        sound = 0.3 * rng.standard_normal((self.n_samples, 2)).clip(-3, 3)
        self.sound = {}
        for kind, form, subtype in (
            ("wav", "WAV", "PCM_16"), ("wav float", "WAVEX", "FLOAT"), ("wav adpcm", "WAV", "IMA_ADPCM"),
            ("flac", "FLAC", None), ("ogg", "OGG", "VORBIS"),
        ):  # fmt: skip
            file = io.BytesIO()
            soundfile.write(file, sound, 11025, format=form, subtype=subtype)
            self.sound[kind] = file.getvalue()
        self.vectors = rng.standard_normal((64, 6)).astype(np.float16)
        file = io.BytesIO()
        np.save(file, self.vectors)
        self.npy = file.getvalue()
        self.weights = {name: 0.01 * value for name, value in embeddings.OpenL3Image().state_dict().items()}
        headers = {"weak": "filename\tevent_labels", "unlabelled": "filename"}
        self.tables = {
            name: "\n".join([headers.get(name, "\t".join(features.EVENT_COLUMNS)), *rows, ""])
            for name, rows in tiny_rows().items()
        }
        self.root = write_tiny(folder / "set")
        data, self.config = features.load_dataset(self.root, ["openl3"], log=quiet), tiny_config(self.root)
        self.data = data
        student, teacher, optimizer = train.new_networks(self.config, data, CPU)
        clips = train.load_clips(data, self.config.visual, CPU)
        train.training_step(student, teacher, optimizer, train.training_batch(clips, self.config, 0), self.config, 0)
        state = {"epoch": 1, "student": student.state_dict(), "teacher": teacher.state_dict()}
        state |= {"optimizer": optimizer.state_dict()} | runs.description(self.config, data)
        self.checkpoint = state
        choice = train.choose(student, self.config, data, CPU, quiet)
        train.score(student, self.config, data, CPU, choice, folder)
        self.model = torch.load(folder / "model.pt", weights_only=True)
        self.report = (folder / "metrics.json").read_text("utf-8")
        soundfile.write(folder / "clip.wav", 0.1 * rng.standard_normal(16000), 16000)


def make_sound(kind):
    def make(samples, rng, folder):
        whole = samples.sound[kind]
        content = damaged(rng, whole)
        (folder / "x.wav").write_bytes(content)
        return folder / "x.wav", samples.n_samples if whole[:200] == content[:200] else None

    return make


def read_sound(samples, path, n_samples):
    try:
        n_heard = sum(map(len, predict.read_blocks(path)))
    except plumbing.InputError:
        features.load_audio(path)  # refuses it, too
        raise AssertionError("prediction refuses what training takes") from None
    features.load_audio(path)  # also refuses recordings that were cut
    expected = n_samples and -(-n_samples * 640 // 441)
    assert expected is None or n_heard >= expected, f"{n_heard} samples of {expected}"


def make_table(*names):
    def make(samples, rng, folder):
        for name in names:
            text = samples.tables[name]
            intact = len(names) > 1 and rng.random() < 0.7
            (folder / f"{name}.tsv").write_bytes(text.encode() if intact else damaged_table(rng, text))
        return (folder,)

    return make


def read_tables(samples, folder):
    for path in folder.iterdir():
        read = {"weak": features.read_weak, "unlabelled": features.read_unlabelled}.get(path.stem, features.read_strong)
        clips = read(path)
        if path.stem not in ("weak", "unlabelled"):
            assert all(0 <= onset < offset <= 86400 and label for _, onset, offset, label in clips[1])
            features.frame_targets(*clips, sorted({label for *_, label in clips[1]}))


def read_set(samples, folder):
    root = folder / "set"
    for name, (table, audio) in LAYOUT.items():
        (root / "metadata" / table).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / f"{name}.tsv", root / "metadata" / table)
    (root / "audio").symlink_to(samples.root / "audio")
    (root / "visual").symlink_to(samples.root / "visual")
    data = features.load_dataset(root, ["openl3"], log=quiet)
    assert all(np.isfinite(statistic).all() for statistic in data.mel_statistics)


def make_scored(samples, rng, folder):
    (folder / "points").mkdir()
    for name in ("reference", "estimated", "points/1", "points/2"):
        content = samples.tables["validation"].encode()
        (folder / f"{name}.tsv").write_bytes(damaged_table(rng, content.decode()) if rng.random() < 0.4 else content)
    durations = "filename\tduration\n" + "".join(f"v{i}.wav\t2\n" for i in range(4))
    (folder / "durations.tsv").write_bytes(damaged_table(rng, durations) if rng.random() < 0.4 else durations.encode())
    return (folder,)


def read_scored(samples, folder):
    files = [folder / "reference.tsv", folder / "estimated.tsv", folder / "points", folder / "durations.tsv"]
    for value in score.score(*files)[0].values():
        assert isinstance(value, (int, str)) or not 0 > value or value > 1


def make_npy(samples, rng, folder):
    content = samples.npy
    if rng.random() < 0.5:
        content = damaged(rng, content, 128)
    else:
        shapes = ["()", "(64,)", "(64, 0)", "(0, 6)", "(64, 1000000000000)", "(-64, 6)", "(64, 6, 1)", "(64., 6)", "64"]
        types = ["<f2", ">f2", "<f8", "|O", "<c8", "|S9", "<M8[s]", "<f17", "<i2", "|V2"]
        shape, kind = shapes[rng.integers(len(shapes))], types[rng.integers(len(types))]
        pairs = (b"(64, 6)", shape.encode()), (b"<f2", kind.encode()), (b"False", b"True "), (b"descr", b"shape")
        content = content.replace(*pairs[rng.integers(len(pairs))])
    (folder / "x.npy").write_bytes(content)
    if rng.random() < 0.05:
        np.savez_compressed(folder / "x.npz", np.zeros(10**7))
        (folder / "x.npz").rename(folder / "x.npy")
    return (folder / "x.npy",)


def read_npy(samples, path):
    vectors = features.read_visual(path)
    assert vectors.shape[0] == 64 and vectors.shape[1] and vectors.dtype in (np.float16, np.float32)
    features.read_visual(path, samples.vectors)


def make_vectors_of_sound(samples, rng, folder):
    file = io.BytesIO()
    np.save(file, samples.vectors[:10].repeat(22, 1)[:, :128])
    (folder / "x.npy").write_bytes(damaged(rng, file.getvalue(), 128))
    return (folder / "x.npy",)


def read_vectors_of_sound(samples, path):
    assert boes2019.read_sound(path).shape == (10, 128)


def make_weights(samples, rng, folder):
    (folder / "x.pt").write_bytes(saved(rng, samples.weights))
    return (folder / "x.pt",)


def read_weights(samples, path):
    network = embeddings.load_network("openl3", path)
    assert all(value.is_floating_point() for value in network.parameters()) and not network.training


def make_cache(samples, rng, folder):
    shutil.copytree(samples.root / "cache", folder / "cache")
    paths = sorted((folder / "cache").rglob("*.npy"))
    path = paths[rng.integers(len(paths))]
    path.write_bytes(damaged(rng, path.read_bytes()[: 20000 + 10**9 * int(rng.integers(2))], 128))
    return (folder / "cache",)


def read_cache(samples, cache):
    data = features.load_dataset(samples.root, ["openl3"], cache, quiet)
    for name, part in data.partitions.items():
        assert part.log_mel.shape == (len(part), 512, 64) and part.log_mel.dtype == np.float32, name
    clips = train.load_clips(data, ("openl3",), CPU)
    train.training_batch(clips, samples.config, 0)


def make_model(samples, rng, folder):
    (folder / "model.pt").write_bytes(saved(rng, samples.model))
    return (folder,)


def read_model(samples, folder):
    trained = predict.load_model(folder / "model.pt", CPU)
    heard = predict.hear(trained, samples.folder / "clip.wav", {}, {"openl3": samples.vectors})
    predict.events_of(trained, "clip.wav", heard)


def read_finished(samples, folder):
    config = samples.config
    train.row(config, train.complete_run(config, samples.data, folder, CPU, runs.Log()))


def make_checkpoint(samples, rng, folder):
    (folder / "checkpoint.pt").write_bytes(saved(rng, samples.checkpoint))
    return (folder,)


def read_checkpoint(samples, folder):
    parts = train.new_networks(samples.config, samples.data, CPU)
    data, epochs = runs.resume(folder, samples.config, samples.data, *parts)
    assert epochs in (1, 2)
    batch = train.training_batch(train.load_clips(data, samples.config.visual, CPU), samples.config, 1)
    train.training_step(*parts, batch, samples.config, 1)


def make_report(samples, rng, folder):
    (folder / "run").mkdir()
    (folder / "run/model.pt").touch()
    content = damaged(rng, samples.report.encode())
    if rng.random() < 0.7:
        content = json.dumps(damaged_object(rng, json.loads(samples.report)), default=str).encode()
    (folder / "run/metrics.json").write_bytes(content)
    return (folder,)


def read_report(samples, folder):
    tables.write_results(folder, quiet)
    lines = (folder / "results.tsv").read_text("utf-8").splitlines()
    assert len({line.count("\t") for line in lines}) == 1


KINDS = {  # name: (what makes a damaged file, what reads it, how many by default)
    **{kind: (make_sound(kind), read_sound, 40) for kind in ("wav", "wav float", "wav adpcm", "flac", "ogg")},
    **{f"table {name}": (make_table(name), read_tables, 30) for name in ("strong", "weak", "unlabelled")},
    "tables of a set": (make_table(*LAYOUT), read_set, 8),
    "tables to score": (make_scored, read_scored, 20),
    "vectors": (make_npy, read_npy, 60),
    "vectors of VGGish": (make_vectors_of_sound, read_vectors_of_sound, 20),
    "weights": (make_weights, read_weights, 4),
    "cache": (make_cache, read_cache, 10),
    "model.pt": (make_model, read_model, 15),
    "model.pt of a run": (make_model, read_finished, 6),
    "checkpoint.pt": (make_checkpoint, read_checkpoint, 2),
    "metrics.json": (make_report, read_report, 20),
}


# --- running them ----------------------------------------------------------------------------------------------------


def outcome(kind, seed, samples, folder):
    """-> "taken", "refused", or what went wrong"""
    rng = np.random.default_rng([seed, *kind.encode()])
    make, read, _ = KINDS[kind]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    arguments, said, began = make(samples, rng, folder), io.StringIO(), time.monotonic()
    code = None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            with plumbing.one_line_errors(""):
                read(samples, *arguments)
        except SystemExit as stop:
            code = stop.code
        except Exception:
            return traceback.format_exc()
    if time.monotonic() - began > SLOW:
        return f"took {time.monotonic() - began:.0f} s"
    lines = [line for line in said.getvalue().splitlines() if not re.match("note   |       ", line)]
    if code == 2 and len(lines) == 1 and not lines[0].startswith("error: out of memory"):
        return "refused"
    return "taken" if code is None else f"exit code {code}: {lines}"


def fuzz(seconds, folder):
    """-> number of findings. The default number of files of each kind, or fresh ones for so many seconds"""
    samples = Samples(folder)
    if sys.platform == "linux":
        import resource

        mapped = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM,) * 2)
    counts, findings, last = {kind: {} for kind in KINDS}, 0, folder / "last"
    began, seed = time.monotonic(), time.time_ns() if seconds else 0
    while time.monotonic() - began < seconds if seconds else seed < max(n for *_, n in KINDS.values()):
        for kind, (*_, n) in KINDS.items():
            if seconds or seed < n:
                last.write_text(f"{kind} {seed}")
                what = outcome(kind, seed, samples, folder / "x")
                if what not in ("taken", "refused"):
                    print(f"finding: {kind!r} {seed}\n{what}", flush=True)
                    findings, what = findings + 1, "finding"
                counts[kind][what] = counts[kind].get(what, 0) + 1
        seed += 1
    for kind, count in counts.items():
        print(f"{kind:20} " + ", ".join(f"{n} {what}" for what, n in sorted(count.items())))
    return findings


def test_damaged_files_are_taken_or_refused_in_one_line(tmp_path):
    seconds = os.environ.get("AVSED_FUZZ_SECONDS", "0")
    program = Program("-m", "extras.test_fuzz", seconds, tmp_path)
    said = "".join(program.communicate(3600 + float(seconds)))
    print(said)
    assert program.returncode == 0, f"{said}\nlast: {(tmp_path / 'last').read_text()}, exit code {program.returncode}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    faulthandler.enable()
    if sys.argv[1] in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            print(outcome(sys.argv[1], int(sys.argv[2]), Samples(Path(folder)), Path(folder) / "x"))
    else:
        sys.exit(min(1, fuzz(float(sys.argv[1]), Path(sys.argv[2]))))
