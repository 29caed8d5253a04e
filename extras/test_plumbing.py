"""Tests of what every command shares: errors, files, the cache, the device"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

import features
import train
from extras import plumbing, runs
from extras.plumbing import InputError
from test_avsed import quiet, run, write_tiny, write_wav


def with_end(ogg, n_samples):
    """An Ogg file whose last page claims that the sound ends after n_samples, with the checksum that belongs to it"""
    first = ogg.rfind(b"OggS")
    page, checksum = bytearray(ogg[first:]), 0
    page[6:14], page[22:26] = n_samples.to_bytes(8, "little"), bytes(4)
    for bit in np.unpackbits(page):
        checksum = (checksum << 1 ^ (checksum >> 31 ^ int(bit)) * 0x04C11DB7) & 0xFFFFFFFF
    page[22:26] = checksum.to_bytes(4, "little")
    return ogg[:first] + page


def test_less_sound_than_promised_is_refused_and_no_promise_is_none(tmp_path):
    path, sound = tmp_path / "x", 0.1 * np.random.default_rng(0).standard_normal(12 * 16000)

    def length(content):
        path.write_bytes(content)
        return len(features.read_mono(path))

    whole = {}
    for kind in ("WAV", "FLAC", "OGG", "AIFF"):
        soundfile.write(path, sound, 16000, format=kind)
        whole[kind] = path.read_bytes()
    assert {kind: length(content) for kind, content in whole.items()} == dict.fromkeys(whole, len(sound))
    wav, flac, ogg = whole["WAV"], bytearray(whole["FLAC"]), whole["OGG"]
    size, middle = wav.index(b"data") + 4, len(ogg) // 2
    flac[21:26] = flac[21] & 0xF0, 0, 0, 0, 0  # the number of samples: 36 bits from byte 21 on
    assert length(with_end(ogg, len(sound))) == length(wav[:size] + b"\xff" * 4 + wav[size + 4 :]) == len(sound)
    assert length(flac) == len(sound)  # who writes to a pipe cannot go back and fill in the length
    damaged = [content[: len(content) // 2] for content in whole.values()] + [wav[:-2], with_end(ogg, 1800 * 16000)]
    for content in (*damaged, ogg[:middle] + bytes([ogg[middle] ^ 255]) + ogg[middle + 1 :]):
        with pytest.raises(InputError, match="less sound than its header promises|cannot be decoded"):
            length(content)


def test_vectors_are_read_one_at_a_time(monkeypatch):
    inside, together = [], []

    def load(path, allow_pickle):
        inside.append(path)
        time.sleep(0.01)
        together.append(len(inside))
        inside.remove(path)
        return np.zeros((64, 6), np.float16)

    monkeypatch.setattr(np, "load", load)
    monkeypatch.setattr(plumbing, "cores", lambda: 4)
    (vectors,) = plumbing.in_chunks(features.read_visual, list(range(8)), "", quiet)
    assert len(vectors) == 8 and together == [1] * 8


def test_clips_keep_their_order_in_chunks(monkeypatch):
    monkeypatch.setattr(plumbing, "cores", lambda: 4)
    chunks = list(plumbing.in_chunks(lambda i: time.sleep(0.001 * (i % 3)) or i, list(range(70)), "", quiet, size=30))
    assert [len(chunk) for chunk in chunks] == [30, 30, 10] and sum(chunks, []) == list(range(70))


def test_cache_is_reused_and_rebuilt(tmp_path, monkeypatch):
    root, decoded, original = write_tiny(tmp_path), [], features.read_mono
    monkeypatch.setattr(features, "read_mono", lambda path: decoded.append(path.name) or original(path))

    def load():
        decoded.clear()
        data = features.load_dataset(root, ["openl3"], log=quiet)
        assert len(list((root / "cache").iterdir())) == 5 + 4 + 1  # sounds, vectors, statistics: the old folders go
        return data

    first = load()
    weak, w2 = first.partitions["weak"].log_mel, first.partitions["weak"].log_mel[2].copy()
    assert len(decoded) == 20 and isinstance(weak, np.memmap)
    assert np.array_equal(load().partitions["weak"].log_mel[2], w2) and not decoded
    write_wav(root / "audio/train/weak/w2.wav", np.sin(np.arange(30000) / 5))  # other audio
    second = load()
    assert sorted(decoded) == sorted(second.partitions["weak"].filenames)
    assert not np.array_equal(second.partitions["weak"].log_mel[2], w2) and np.array_equal(weak[2], w2)
    assert not np.array_equal(second.mel_statistics[0], first.mel_statistics[0])
    np.save(root / "visual/openl3/w2.npy", np.full((64, 6), 9, np.float16))  # other vectors
    third = load()
    assert (third.partitions["weak"].visual["openl3"][2] == 9).all() and not decoded
    assert third.visual_statistics["openl3"][0].min() > second.visual_statistics["openl3"][0].max() > 0
    (root / "visual/openl3/w2.npy").unlink()  # fewer vectors
    assert load().partitions["weak"].present["openl3"].tolist() == [True, True, False, True] and not decoded
    monkeypatch.setattr(features, "RECIPE", "another")
    load().partitions["weak"].log_mel[:] = 0
    assert len(decoded) == 20 and load().partitions["weak"].log_mel.any()  # nothing writes through to the file
    monkeypatch.setattr(features, "STD_FLOOR", 100.0)
    assert (load().mel_statistics[1] == 100).all() and not decoded


def test_cache_appears_only_when_complete(tmp_path, monkeypatch):
    root, original = write_tiny(tmp_path), features.read_mono

    def interrupted(path):
        if path.name == "w3.wav":
            raise KeyboardInterrupt
        return original(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features, "read_mono", interrupted)
        features.load_dataset(root, log=quiet)
    assert [path.name.split("-")[0] for path in (root / "cache").iterdir()] == ["strong"]
    assert len(features.load_dataset(root, log=quiet).partitions["weak"].log_mel) == 4


def test_of_two_that_fill_the_cache_at_once_the_first_one_wins(tmp_path):
    folder, array = tmp_path / "cache/x-0123456789abcdef", np.arange(1, 4)
    wanted = {"array": ((3,), np.int64)}

    def make(into):
        plumbing.cached(folder, lambda faster: np.save(faster / "array.npy", array), wanted)
        np.save(into / "array.npy", array + 1)

    assert np.array_equal(plumbing.cached(folder, make, wanted)["array"], array)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    path, dead = tmp_path / ("x" * 255), subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f"{plumbing.MACHINE}-{pid}-{'0' * 32}.partial" for pid in (dead.pid, os.getppid())]
    names += [f"elsewhere-{dead.pid}-{'0' * 32}.partial", f"{plumbing.MACHINE}-{dead.pid}.partial"]
    for name in names:
        (tmp_path / name).mkdir()
    with plumbing.replacing(path) as partial:
        partial.write_text("done")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], path.name])
    with pytest.raises(InputError, match="y: cannot be written .*No space left"):
        with plumbing.replacing(tmp_path / "y") as partial:
            partial.touch()
            raise OSError(28, "No space left on device")
    assert not (tmp_path / "y").exists() and len(list(tmp_path.iterdir())) == 4


def test_errors_of_the_system_are_one_line(capsys, monkeypatch):
    for error, line in (
        (MemoryError(), "MemoryError"), (OSError(28, "No space"), "[Errno 28] No space"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "'ascii' codec"),
        (RuntimeError("can't allocate memory"), "can't allocate"), (InputError("a\nb"), "a b"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop, plumbing.one_line_errors("hint"):
            raise error
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith(f"error: {line}") and said.count("\n") == 1
    for mistake in ("of ours", "some elements refer to a single memory location"):  # keeps its traceback
        with pytest.raises(RuntimeError, match=mistake), plumbing.one_line_errors("hint"):
            raise RuntimeError(mistake)
    with pytest.raises(SystemExit, match="interrupted; hint"), plumbing.one_line_errors("hint"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    with monkeypatch.context() as patch, plumbing.one_line_errors("hint"):
        patch.setattr(sys, "stdout", None)
        with plumbing.one_line_errors("hint"):
            print("nobody listens")
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does when it has enough
    with open(writer, "w", encoding="ascii") as pipe, pytest.raises(SystemExit) as stop, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with plumbing.one_line_errors("hint"):
            print("é")
    assert stop.value.code == 2 and capsys.readouterr().err == "error: [Errno 32] Broken pipe\n"


def test_a_damaged_cache_is_named(tmp_path):
    root = write_tiny(tmp_path)
    features.load_dataset(root, ["openl3"], log=quiet)
    damages = [lambda array: array[:1], lambda array: array.astype(complex)]
    for name in ("log_mel", "durations", "visual", "present", "log-mel", "visual-openl3"):
        path = next((root / "cache").glob(f"*/{name}.npy"))
        content, array = path.read_bytes(), np.load(path)
        for damage in (None, *damages):
            path.write_bytes(content[:-100]) if damage is None else np.save(path, damage(array))
            with pytest.raises(InputError, match=f"{path.parent}: the cache is damaged .*; delete this"):
                features.load_dataset(root, ["openl3"], log=quiet)
        path.write_bytes(content)
    features.load_dataset(root, ["openl3"], log=quiet)


def test_a_gpu_is_always_numbered(monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))  # without asking whether it is there
    assert plumbing.choose_device("cuda", "tf32") == torch.device("cuda", 0)  # a plain "cuda" is not enough for torch
    assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    assert plumbing.choose_device("cuda:1") == torch.device("cuda", 1) and plumbing.choose_device("mps").type == "mps"
    assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert plumbing.choose_device("cuda") == torch.device("cuda", 3)


def test_the_cache_of_a_read_only_data_set_is_beside_the_run(tmp_path, monkeypatch):
    root = write_tiny(tmp_path / "set")
    monkeypatch.setattr(train, "complete_run", lambda *_: None)
    monkeypatch.setattr(train, "row", lambda *_: "")
    for mode, pattern in ((0o555, "runs/cache-set-*"), (0o755, "set/cache")):
        root.chmod(mode)
        run("--data", root, "--out", tmp_path / "runs/r")
        (folder,) = tmp_path.glob(pattern)
        assert len(list(folder.iterdir())) == 6 and ((root / "cache").exists() == (mode == 0o755))
    other = write_tiny(tmp_path / "other/set")  # of the same name
    other.chmod(0o555)
    run("--data", other, "--out", tmp_path / "runs/r")
    assert len(list((tmp_path / "runs").glob("cache-set-*"))) == 2


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torch, "load", denied)
    monkeypatch.setattr(np, "load", denied)
    for read in (runs.load, features.read_visual):
        with pytest.raises(PermissionError):
            read(tmp_path / "x")


def test_progress_shows_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    for done in (99, 100, 300):
        plumbing.show_progress("extracted", done, 300, 990.0)
    assert capsys.readouterr().out == "       extracted: 100/300 | 0:20 left\n       extracted: 300/300 | 0:00 left\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    plumbing.show_progress("extracted", 1, 7, 990.0)
    assert capsys.readouterr().out == "       extracted: 1/7 | 1:00 left\033[K\r"
    plumbing.show_progress("extracted", 7, 7, 990.0)
    assert capsys.readouterr().out == "\033[K\r"  # nothing is left of it
