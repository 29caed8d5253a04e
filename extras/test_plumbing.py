"""Tests of what every command shares: errors, files, the cache, the device"""

import argparse
import errno
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import features
import train
from extras import boes2019, embeddings, fayek2020, plumbing, predict, runs, tagging
from extras.plumbing import InputError
from extras.test_processes import Program
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
        return features.read_mono(path)[2]

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


def wav(content, size, riff=None, before=b"", after=b"", kind=b"RIFF"):
    """A WAV file of 16-bit sound at 16 kHz, in whose header it is `size` bytes long"""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
    body = b"WAVE" + before + form + b"data" + struct.pack("<I", size) + content + after
    return kind + struct.pack("<I", len(body) if riff is None else riff) + body


def test_a_wav_file_is_read_beyond_what_its_header_says(tmp_path):
    samples = np.random.default_rng(0).integers(-9000, 9000, 5 * 16000).astype("<i2")
    content, path = samples.tobytes(), tmp_path / "x.wav"
    whole, part = len(content), 32000

    def heard():
        found = features.read_mono(path)[0]
        assert np.array_equal(np.rint(found * 32768), samples[: len(found)])
        return len(found) / 16000

    tags = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf60.16.100\0"
    whole_sizes = struct.pack("<4sIQQQI", b"ds64", 28, whole + 72, whole, whole // 2, 0)
    picture = b"id3 " + struct.pack("<I", 200_000) + bytes(range(250)) * 800
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, part + 72, part, part // 2, 0)
    for file in (
        wav(content, part, part + 36),  # its size went round at 4 GB
        wav(content, part),
        wav(content, 0, 0),  # the recorder did not come to write it
        wav(content, 0, 36, before=tags),
        wav(content, 0, 36, before=b"LIST" + struct.pack("<I", 5) + b"INFOx\0"),  # an odd size: a byte to fill up
        wav(content, 0xFFFFFFFF, 0xFFFFFFFF),  # written to a pipe
        wav(content, 0x7FFFF000, 0x7FFFF024),
        wav(content, whole, after=b"junk" * 100),
        wav(content, whole, after=bytes(3000)),
        wav(content, whole, after=tags),
        wav(content, whole, after=picture + tags),
        wav(content, whole, before=tags),
        wav(content, 0xFFFFFFFF, 0xFFFFFFFF, before=whole_sizes, after=picture + tags, kind=b"RF64"),
        wav(content, 0xFFFFFFFF, 0xFFFFFFFF, before=sizes, kind=b"RF64"),
    ):
        path.write_bytes(file)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert heard() == 5
    for after, left, seconds in ((tags + content, "0:05", 5), (bytes(100_000), "0:03", 5)):
        path.write_bytes(wav(content, whole, after=after))
        with pytest.warns(UserWarning, match=rf"x\.wav: {left} may be sound"):
            assert heard() == seconds
    path.write_bytes(wav(content[:16000], 0, 0))
    assert heard() == 0.5
    path.write_bytes(wav(b"", 0, after=tags))
    with pytest.raises(InputError, match="holds no audio"):
        features.read_mono(path)


def test_joined_ogg_files_are_called_so(tmp_path):
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.ogg", np.random.default_rng(0).uniform(-0.5, 0.5, 32000), 16000)
    path = tmp_path / "x.ogg"
    for parts in ("ab", "aba"):
        path.write_bytes(b"".join((tmp_path / f"{part}.ogg").read_bytes() for part in parts))
        with pytest.raises(InputError, match=r"x\.ogg: several Ogg recordings in a row"):
            features.read_mono(path)
    assert not plumbing.is_chained(tmp_path / "a.ogg") and features.read_mono(tmp_path / "a.ogg")[2] == 32000


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


def test_a_fingerprint_tells_name_size_and_time_of_change(tmp_path):
    def of(name="a.wav", content=b"1", seconds=10**9):
        path = tmp_path / name
        path.write_bytes(content)
        os.utime(path, (seconds, seconds))
        return plumbing.fingerprint([path], "recipe")

    assert len({of(), of(name="b.wav"), of(content=b"22"), of(seconds=10**9 + 1)}) == 4 and of() == of()


def test_clips_that_change_places_in_their_table_keep_what_is_theirs(tmp_path):
    """v1 has no video, so of the vectors the same files stand there in the same order"""
    root = write_tiny(tmp_path / "set")
    table = root / "metadata/validation/validation.tsv"
    head, v0, v1, *more = table.read_text().splitlines()
    for rows, present in (([v0, v1], [True, False, True, True]), ([v1, v0], [False, True, True, True])):
        table.write_text("\n".join([head, *rows, *more]))
        part = features.load_dataset(root, ["openl3"], log=quiet).partitions["validation"]
        _, parts = tagging.load_tagging(root, features.load_audio, "openl3", np.copy, tmp_path / "c", log=quiet)
        tagged = parts["validation"]
        assert part.present["openl3"].tolist() == tagged.present.tolist() == present
        for i, name in enumerate(part.filenames):
            sound = features.load_audio(root / "audio/validation" / name)
            assert np.array_equal(part.log_mel[i], features.log_mel(sound)) and np.array_equal(tagged.audio[i], sound)
            if present[i]:
                vectors = np.load(root / f"visual/openl3/{name[:-4]}.npy")
                assert (part.visual["openl3"][i] == vectors).all() and (tagged.video[i] == vectors).all()


def test_streams_do_not_drive_each_other_out_of_the_cache(tmp_path):
    root = write_tiny(tmp_path, streams=("openl3", "tce"))

    def load(*streams):
        features.load_dataset(root, streams, log=quiet)
        return {path.name for path in (root / "cache").iterdir()}

    assert load("openl3") < load("openl3", "tce") < load("tce")  # the statistics of each choice stay


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
        (MemoryError(), "out of memory; "), (MemoryError("8 GiB\nno"), "out of memory: 8 GiB; "),
        (OSError(28, "No space"), "no room is left"), (OSError(28, "No space", "a\nb"), "a b: no room is left"),
        (OSError(116, "Stale file handle", "x"), "x: Stale file handle"), (OSError("of its own"), "of its own"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "'ascii' codec"),
        (RuntimeError("can't allocate memory"), "out of memory: can't allocate"), (InputError("a\nb"), "a b"),
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
    assert stop.value.code == 141 and capsys.readouterr().err == ""


def test_a_long_path_leaves_room_for_the_reason(tmp_path):
    path = tmp_path / ("long" * 40) / "x.wav"
    path.parent.mkdir()
    path.write_bytes(b"RIFF and nothing else")
    with pytest.raises(InputError, match=r"x.wav: cannot be decoded \(Format not recognised\); mend"):
        features.load_audio(path)
    for error, reason in (
        (ValueError(f"cannot take '{path}' for one, or can't"), "cannot take 'x.wav' for one, or can't"),
        (ValueError("can't read a/b, or 'c'"), "can't read a/b, or 'c'"),
        (OSError(28, "No space left on device", str(path)), "No space left on device"),
    ):
        assert plumbing.first_line(error) == reason


def test_threads_are_counted_as_one_says_it(monkeypatch):
    for n, said in ((1, "1 thread"), (2, "2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda: n)
        assert plumbing.threads() == said


def test_names_move_no_cursor(tmp_path, capsys):
    name = "a\x1b[2J\r\x00\x85\u2028\u202eü\u200d🐕.wav\tb\nc"  # a joiner, as emojis have it, moves nothing
    seen = r"a\u001b[2J\u000d\u0000\u0085\u2028\u202eü\u200d🐕.wav" + "\tb\nc"
    assert plumbing.shown(name) == seen.replace(r"\u200d", "\u200d")
    log = runs.Log()
    log.path = tmp_path / "log.txt"
    log("class \x1b[31m\nits row")
    assert capsys.readouterr().out == log.path.read_text() == "class \\u001b[31m\nits row\n"
    with pytest.raises(SystemExit), plumbing.one_line_errors(""):
        plumbing.show_progress("\x1b[1A.wav", 100, 200, 0.0)
        raise InputError("a\nb\x1b[2J.wav: no such file")
    out, err = capsys.readouterr()
    assert out.startswith(r"       \u001b[1A.wav: 100/200") and err.endswith("error: a b\\u001b[2J.wav: no such file\n")
    assert warnings.formatwarning("of \x1b[31m", UserWarning, "", 1) == "note   of \\u001b[31m\n"


def test_json_is_strict():
    text = plumbing.json_text({"a": [1.5, math.nan, -math.inf], "b": {"c": (math.nan, None, True, "NaN")}}, indent=1)
    assert json.loads(text, parse_constant=None) == {"a": [1.5, None, None], "b": {"c": [None, None, True, "NaN"]}}
    assert "Infinity" not in text and text.count("NaN") == 1


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


def test_a_second_less_than_promised_is_no_cut():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plumbing.warn_if_short("a.wav", 9.0, 10.0)
    with pytest.warns(UserWarning, match="a.wav: its sound ends after 0:09, its header says 0:10"):
        plumbing.warn_if_short("a.wav", 8.9, 10.0)


def test_what_the_header_of_a_sound_file_promises():
    def promised(frames, subtype="PCM_16"):
        return plumbing.promised_frames(SimpleNamespace(extra_info="", frames=frames, subtype=subtype), 5)

    assert promised(1000) == 1000 and promised(1000, "MPEG_LAYER_III") == 990  # an MP3's guesses, to a hundredth
    assert promised(2**63 - 1) == 5  # it does not know


def test_bytes_in_a_few_places_are_read_as_others(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with plumbing.Mended(tmp_path / "x", {4: b"ab", 9: b"c"}) as file:
        for begin in range(10):
            buffer = bytearray(3)
            file.seek(begin)
            assert buffer[: file.readinto(buffer)] == b"0123ab678c"[begin : begin + 3]


def test_rates_from_1_to_400_khz_are_read(tmp_path):
    for rate in (1000, 400_000):
        write_wav(tmp_path / "a.wav", np.ones(rate // 10), rate)
        assert features.read_mono(tmp_path / "a.wav")[2] == 1600
    for rate in (999, 400_001):
        write_wav(tmp_path / "a.wav", np.ones(100), rate)
        with pytest.raises(InputError, match=f"{rate} samples per second, not 1000 to 400000"):
            features.read_mono(tmp_path / "a.wav")


def test_flags_take_what_they_say_and_no_more():
    takes = (
        (plumbing.seed, ("0", "9223372036854775807"), ("9223372036854775808", "-1", "1.0", "²")),
        (plumbing.fraction, ("0", "1", "0.5"), ("-0.1", "1.001", "nan", "0_1", "")),
        (plumbing.positive, ("1", "12"), ("0", "-1", "1.5", "")),
        (plumbing.number_or("auto", 0.25, 1), ("auto", "0.25", "1"), ("0.2", "1.1", "nan", "random")),
    )
    for parse, good, bad in takes:
        assert [str(parse(text)) for text in good] == [str(float(x)) if "." in str(parse(x)) else x for x in good]
        for text in bad:
            with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
                parse(text)


def test_times_of_a_clock():
    seconds = 0, 59.4, 59.5, 3599.4, 3599.5, 3661
    assert [plumbing.clock(x) for x in seconds] == ["0:00", "0:59", "1:00", "59:59", "1:00:00", "1:01:01"]


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


# --- what is not the fault of a file ---------------------------------------------------------------------------------

ARRAY = (np.core if np.__version__ < "2" else np._core)._exceptions._ArrayMemoryError  # numpy's own kind
NO_ROOM = (
    MemoryError(), ARRAY((9,), np.dtype(float)), OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
)  # fmt: skip
OTHER = OSError(errno.EIO, "Input/output error"), OSError(errno.EMFILE, "Too many open files")


def test_too_little_memory_and_a_failing_disk_are_no_damage(tmp_path, monkeypatch, capsys):
    path = tmp_path / "x"
    torch.save({"x": 1}, path)
    (tmp_path / "a.npy").touch()
    readers = {
        runs.load: (torch, "load", path),
        features.read_visual: (np, "load", path),
        boes2019.read_sound: (np, "load", path),
        (lambda path: fayek2020.restore(path, None, 0, None, None, {})): (torch, "load", path),
        (lambda path: tagging.read_report(path, {})): (plumbing.Path, "read_text", path),
        features.load_audio: (soundfile, "SoundFile", path),
        predict.recording_seconds: (soundfile, "SoundFile", tmp_path / "y.wav"),
        (lambda path: embeddings.load_network("vggish", path)): (torch, "load", path),
        (lambda path: predict.load_model(path, "cpu")): (torch, "load", path),
        (lambda path: plumbing.cached(path.parent, None, {"a": ((), float)})): (np, "load", tmp_path / "a.npy"),
        plumbing.read_text: (plumbing.Path, "read_text", path),
        plumbing.load_json: (plumbing.Path, "read_text", path),
        (lambda path: runs.add_row(path, 1, {})): (plumbing.Path, "read_text", path),
    }
    (tmp_path / "y.wav").touch()
    for read, (module, function, path) in readers.items():
        for error in NO_ROOM + OTHER:

            def fails(*_, **__):
                raise error

            with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop, plumbing.one_line_errors(""):
                patch.setattr(module, function, fails)
                read(path)
            said = capsys.readouterr().err
            assert stop.value.code == 2 and said.count("\n") == 1 and str(path) in said, (read, said)
            expected = "error: out of memory: " if error in NO_ROOM else f"error: {path}: "
            wanted = embeddings.load_network.__name__ in read.__code__.co_names and error in OTHER
            assert said.startswith(expected) or wanted and error.strerror in said, (read, said)
            assert "damaged" not in said and "delete" not in said and "cannot be" not in said, (read, said)
            if isinstance(error, OSError):
                error.filename = None


def test_what_does_not_fit_is_said_of_the_content_alone(tmp_path):
    for error, reason in ((KeyError("x"), "'x'"), (RecursionError("too deep"), "too deep"), (AssertionError(), "")):
        with pytest.raises(InputError) as said, plumbing.foreign("a.pt", "is odd ({}); mend it"):
            raise error
        assert str(said.value) == f"a.pt: is odd ({reason}); mend it"
    for error in NO_ROOM:
        with pytest.raises(type(error)), plumbing.foreign("a.pt", "is odd"):
            raise error


STARVED = """
import re, resource, sys
from pathlib import Path
import numpy as np, torch
import features
from extras import plumbing, runs

folder, n = Path(sys.argv[1]), 12_000_000
small, content = np.zeros(9), {"x": torch.zeros(n)}
mapped = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
for call in (
    lambda: runs.load(folder / "a.pt"), lambda: runs.load(folder / "old.pt"), lambda: np.zeros(n) + 1,
    lambda: plumbing.load_array(folder / "a.npy"), lambda: plumbing.map_array(folder / "a.npy"),
    lambda: features.load_audio(folder / "a.wav"), lambda: plumbing.save_tensors(folder / "b.pt", content),
    lambda: runs.load(folder / "lies.pt"), lambda: plumbing.load_array(folder / "lies.npy"),
):
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 8 * 2**20, resource.RLIM_INFINITY))
    try:
        with plumbing.one_line_errors(""):
            call()
    except SystemExit:
        pass
    except ValueError as error:
        print("ValueError", error, file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by what Linux says of it")
def test_a_process_short_of_memory_says_so(tmp_path):
    n = 12_000_000  # 48 MB, where 8 MB are free
    torch.save({"x": torch.zeros(n)}, tmp_path / "a.pt")
    torch.save({"x": torch.zeros(n)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"x": torch.zeros(1)}, tmp_path / "lies.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "lies.pt").read_bytes()
    one = bytes.fromhex("4b01")  # the number 1 in a pickle
    place = content.index(one + b"N", content.index(b"storage"))  # elements of the storage
    many = b"J" + n.to_bytes(4, "little")
    lies = content[:place] + many + content[place + len(one):]
    (tmp_path / "lies.pt").write_bytes(lies)
    np.save(tmp_path / "a.npy", np.zeros((64, n // 64), np.float32))
    np.save(tmp_path / "lies.npy", np.zeros((64, 6), np.float32))
    content = (tmp_path / "lies.npy").read_bytes()
    (tmp_path / "lies.npy").write_bytes(content.replace(b"(64, 6), }      ", b"(64, 600000), } "))
    soundfile.write(tmp_path / "a.wav", np.zeros((160000, 80)), 16000)
    _, errors = Program("-c", STARVED.replace("\\\\", "\\"), tmp_path).communicate()
    lines = [line for line in errors.splitlines() if not line.startswith("note")]
    names = ["a.pt", "old.pt", "cannot allocate", "a.npy", "a.npy", "a.wav", "b.pt"]
    assert len(lines) == 9 and not (tmp_path / "b.pt").exists(), errors
    for line, name in zip(lines, names):
        assert line.startswith("error: out of memory: ") and name in line, errors
    assert "lies.pt: not a checkpoint of this program (promises more" in lines[7], errors
    assert lines[8].startswith("ValueError"), errors


def test_damage_is_said_only_of_what_can_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(b"no sound")
    with pytest.raises(InputError, match="cannot be decoded"):
        features.load_audio(path)
    real = open
    monkeypatch.setattr("builtins.open", lambda name, *_, **__: real(name if name != path else tmp_path / "a/b"))
    with pytest.raises(FileNotFoundError):  # libsndfile opens files by itself: "System error", for whatever reason
        features.load_audio(path)


def test_an_error_while_writing_names_what_it_is_of(tmp_path):
    with pytest.raises(PermissionError), plumbing.replacing(tmp_path / "x"):  # a clip, while the cache is filled
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "clip.wav"))
    with pytest.raises(InputError, match="x: cannot be written"), plumbing.replacing(tmp_path / "x") as partial:
        open(partial / "y", "w")
    with pytest.raises(MemoryError, match="x$"), plumbing.replacing(tmp_path / "x"):
        try:
            raise MemoryError
        finally:
            raise RuntimeError("[enforce fail] unexpected pos 64 vs 0")  # as torch.save covers it up
    try:
        raise MemoryError
    except MemoryError:  # what was dealt with is no reason
        with pytest.raises(RuntimeError), plumbing.replacing(tmp_path / "x"):
            raise RuntimeError("a fault") from None
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_a_full_disk_is_named_by_the_log():
    log = runs.Log()
    log.path = "/dev/full"
    with pytest.raises(InputError, match="/dev/full: cannot be written .*No space left"):
        log("a line")


def test_json_of_another_form(tmp_path):
    path = tmp_path / "x.json"
    for text in ("[" * 100_000, '{"x": 1e400}', '{"x": -Infinity}', "{", "\xff", "9" * 5000):
        path.write_text(text, "latin-1")
        with pytest.raises(ValueError):
            plumbing.load_json(path)
    path.write_text("\ufeff" + json.dumps({"x": 1.5, "n": [1, 2]}), "utf-8")
    found = plumbing.load_json(path)
    assert found == {"x": 1.5, "n": [1, 2]} and plumbing.same_form(found, {"x": 0.0, "n": [0, 0]})
    for wanted in ({"x": 0.0}, {"x": "1", "n": [0, 0]}, {"x": 0.0, "n": [0]}, {"x": 0, "n": [0, 0]}):
        assert not plumbing.same_form(found, wanted)
    assert not plumbing.same_form({"x": float("inf")}, {"x": 0.0})


def test_tensors_grow_no_larger_than_their_file(tmp_path):
    path, whole = tmp_path / "x.pt", torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    for repeated in (torch.ones(1).expand(10**9), torch.ones(10**9, device="meta")):
        for content in (repeated, {"x": [whole, repeated]}, {"x": {"y": (repeated,)}}):
            torch.save(content, path)
            with pytest.raises(InputError, match="not a checkpoint of this program .few numbers, repeated"):
                runs.load(path)
    content = {"x": [whole, torch.ones(1, 9).expand(2, 9)], "y": "text"}
    torch.save(content, path)
    assert plumbing.same_form(runs.load(path), content)


def test_hidden_files_and_what_is_no_sound_are_passed_over(tmp_path):
    names = ".DS_Store", "._a.wav", "Thumbs.db", "a.jams", "a.txt", "a.wav", "b.FLAC", "c.mp3", "d"
    for name in names:
        (tmp_path / name).touch()
    assert [name for name in names if plumbing.is_sound(name)] == ["a.wav", "b.FLAC", "c.mp3"]
    assert [path.name for path in plumbing.visible(tmp_path, "a.*")] == ["a.jams", "a.txt", "a.wav"]
    assert plumbing.visible(tmp_path / "no such folder", "*") == []


# --- long sound ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", (8000, 16000, 44100, 37001))
def test_of_a_long_file_a_clip_has_its_beginning_and_its_peak(tmp_path, rate):
    rng, path = np.random.default_rng(0), tmp_path / "a.wav"
    sound = rng.uniform(-0.1, 0.1, (31 * rate, 2))
    sound[25 * rate : 25 * rate + 100] = 0.9  # louder than all that the clip holds
    write_wav(path, sound, rate, subtype="FLOAT")
    whole = features.resample(sound.mean(1), rate)
    clip, peak, n_samples = features.read_mono(path)
    assert n_samples == len(whole) == 31 * 16000 and peak == pytest.approx(np.abs(whole).max(), abs=1e-5)
    assert clip.shape == (160000,) and np.allclose(clip, whole[:160000], atol=1e-6)
    assert np.allclose(features.load_audio(path), whole[:160000] / np.abs(whole).max(), atol=1e-5)


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path):
    path = tmp_path / "a.flac"
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for _ in range(30):  # 15 minutes, 58 MB of samples
            file.write(np.zeros(30 * 16000, np.float32))
    tracemalloc.start()
    clips = [clip for chunk in plumbing.in_chunks(features.load_audio, [path] * 3, "", quiet) for clip in chunk]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [clip.shape for clip in clips] == [(160000,)] * 3 and peak < 10e6


# --- vectors that are finite and far out -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, bad", ((np.float16, np.inf), (np.float32, 1e37), (np.float32, -1e13)))
def test_far_out_vectors_count_as_missing(tmp_path, dtype, bad):
    root, lines = write_tiny(tmp_path), []
    for path in (root / "visual/openl3").iterdir():
        vectors = np.load(path).astype(dtype)
        vectors[5, 2] = bad if path.stem == "p1" else vectors[5, 2]
        np.save(path, vectors)
    for _ in range(2):  # the second time from the cache
        lines.clear()
        data = features.load_dataset(root, ["openl3"], log=lines.append)
        part = data.partitions["public"]
        there = [(root / f"visual/openl3/{name[:-4]}.npy").exists() for name in part.filenames]
        there[part.filenames.index("p1.wav")] = False
        assert part.present["openl3"].tolist() == there
        (line,) = [line for line in lines if "counted as missing" in line]
        assert line.split()[:2] == ["public", "1"] and line.endswith("counted as missing: p1.npy")
    lines.clear()
    mean = fayek2020.mean_vector
    _, parts = tagging.load_tagging(root, features.load_audio, "openl3", mean, tmp_path / "c", log=lines.append)
    assert not parts["public"].present[parts["public"].filenames.index("p1.wav")]
    assert sum("counted as missing: p1.npy" in line for line in lines) == 1
    assert plumbing.usable(np.array([-1e10, 9e9])) and not plumbing.usable(np.array([0, np.nan]))


def test_scores_that_are_not_finite_name_the_clip_and_its_streams(tmp_path):
    part = features.Partition("public", tmp_path, 3, ["a.wav", "b.wav", "c.wav"])
    part.present = {"openl3": np.array([True, True, False]), "tce": np.zeros(3, bool)}
    frame_scores, clip_scores = np.zeros((3, 64, 2)), np.zeros((3, 2))
    runs.check_scores(part, {0.5: (frame_scores, clip_scores)})
    for i, scores, inputs in ((1, frame_scores, "log-mel . openl3"), (2, clip_scores, "log-mel")):
        scores[i] = np.nan
        with pytest.raises(FloatingPointError, match=f"public, {part.filenames[i]}: of {inputs} the network"):
            runs.check_scores(part, {0.5: (frame_scores, clip_scores)})
        scores[i] = 0
