"""Prediction on recordings of any length: windows and stitching by hand, one event stays one event, bad input."""

import ast
import base64
import contextlib
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import avsed
import features
import metrics
import train
from avsed import MultiEncoder
from extras import embeddings, page, plumbing, predict
from extras.score import read_scores, score_frames
from extras.test_bad_input import refused
from extras.test_embeddings import CLOCK, film, times_shown, with_ffmpeg
from extras.test_page import Tags, browser, content_of, with_chromium  # noqa: F401
from extras.test_processes import Program
from test_avsed import HERE, quiet, shrink, write_tiny, write_wav
from test_avsed import run as run_train

CPU = torch.device("cpu")
CLASSES = ["Cat", "Dog"]  # of tiny_model
FRAME_HOP = 8 * 313 / 16000  # seconds


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    shrink(monkeypatch.setattr)
    monkeypatch.setattr(avsed, "DECODER_BLOCKS", 3)  # their attention is looked at


def run(*arguments):
    predict.main([str(a) for a in arguments])


def tiny_model(path, streams=("openl3",), threshold=0.0, base="transformer", **changes):
    """A model.pt as a run leaves it: random weights, two classes, streams of 6 and 5 values"""
    torch.manual_seed(0)
    dims = dict(zip(streams, (6, 5)))
    state = {
        "config": {"base": base},
        "classes": CLASSES,
        "data": "",
        "infer_weight": 0.5 if streams else 1.0,
        "tuned": {"EBF1": {"threshold": [threshold] * 2, "window": [3, 5]}},
        "weights": MultiEncoder(2, dims, base).state_dict(),
        "mel_statistics": [torch.full((64,), -5.0), torch.full((64,), 2.0)],
        "visual_statistics": {s: [torch.randn(d), torch.ones(d)] for s, d in dims.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state | changes, path)
    return path


def loaded(*args, **kwargs):
    return predict.load_model(tiny_model(*args, **kwargs), CPU)


class FollowsEnergy(nn.Module):
    """A stand-in for the network, with one class: a frame's logit is its mean log-mel, plus 8"""

    streams = ()

    def forward(self, log_mel, visual, present, audio_weight):
        logits = log_mel.unflatten(1, (64, 8)).mean((2, 3))[:, :, None] + 8  # (B, 64, 1)
        return logits, logits.amax(1)


def listener():
    data = features.DataSet(["Sound"], {}, (np.zeros(64, np.float32), np.ones(64, np.float32)), {})
    return predict.Trained(FollowsEnergy(), data, 1.0, np.array([0.5]), np.array([3]), CPU)


def noise_at(path, seconds, *intervals, rate=16000):
    """A wav of silence with white noise in the intervals"""
    sound = np.zeros(round(seconds * rate))
    for onset, offset in intervals:
        n = round(offset * rate) - round(onset * rate)
        sound[round(onset * rate) : round(offset * rate)] = np.random.default_rng(0).uniform(-0.3, 0.3, n)
    write_wav(path, sound, rate)
    return path


# --- windows and blocks ----------------------------------------------------------------------------------------------


def test_an_event_across_a_window_border_comes_out_once(tmp_path):
    intervals = [(4.2, 5.9), (9.2, 11.3), (14.0, 26.0), (29.0, 30.1)]  # windows begin at 5.008 k and end 10 s later
    path = noise_at(tmp_path / "a.wav", 30.10005, *intervals)  # a sample more than whole milliseconds
    heard = predict.hear(listener(), path, {}, {})
    found = predict.events_of(listener(), "a.wav", heard)
    assert len(found) == 4 and heard.windows == 6 and heard.seconds == 30.1
    for (name, onset, offset, label, score), (start, end) in zip(found, intervals):
        assert (name, label) == ("a.wav", "Sound") and score > 0.5
        assert abs(onset - start) < FRAME_HOP and abs(offset - end) < FRAME_HOP
        assert offset <= 30.1


def test_stitching_by_hand():
    one = np.random.default_rng(0).random((1, 64, 3), np.float32)
    assert np.array_equal(predict.stitch(one), one[0])
    ones = np.stack([np.ones((64, 1)), np.zeros((64, 1)), np.ones((64, 1))])
    got = predict.stitch(ones)
    assert got.shape == (128, 1) and np.all(got[:32] == 1) and np.all(got[96:] == 1)
    assert np.allclose(got[32:64, 0], np.arange(32, 0, -1) / 33) and np.allclose(got[64:96, 0], np.arange(1, 33) / 33)


def test_windows_lie_on_the_grid_of_frames():
    assert predict.STRIDE_SAMPLES == round(predict.STRIDE * FRAME_HOP * 16000) == 80128
    for n, count in ((5, 1), (160000, 1), (160001, 2), (240128, 2), (240129, 3), (400000, 4)):
        sound = np.arange(n, dtype=np.float32)
        windows = list(predict.cut_windows(np.split(sound, range(7777, n, 7777))))
        assert [start for start, _ in windows] == [80128 * k for k in range(count)]
        for start, window in windows:
            assert np.array_equal(window, sound[start : start + 160000])


@pytest.mark.parametrize("rate", (8000, 11025, 16000, 22050, 44100, 48000))
def test_blocks_are_the_recording(tmp_path, rate):
    path = tmp_path / "a.flac"
    write_wav(path, np.random.default_rng(0).uniform(-0.5, 0.5, (round(21.3 * rate), 2)), rate)
    blocks = list(predict.read_blocks(path))
    raw, sound = list(features.sound_blocks(path)), np.concatenate(blocks)
    whole = features.resample(np.concatenate([block for _, block in raw]), rate)
    assert len(blocks) > 2 and max(map(len, blocks)) < 350000 and sound.shape == whole.shape
    assert sound.dtype == np.float32 and np.allclose(sound, whole, atol=1e-5)
    assert predict.recording_seconds(path) == pytest.approx(21.3, abs=1e-3)


@pytest.mark.parametrize("seconds, rate", ((2, 16000), (10, 16000), (7.5, 44100)))
def test_short_recordings_score_as_in_training(tmp_path, seconds, rate):
    sound = 0.3 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    write_wav(tmp_path / "a.wav", sound * np.linspace(0, 1, len(sound)), rate)
    trained = loaded(tmp_path / "model.pt")
    vectors = np.random.default_rng(1).standard_normal((64, 6)).astype(np.float16)
    got = predict.hear(trained, tmp_path / "a.wav", {}, {"openl3": vectors})
    part = features.Partition("validation", tmp_path, 1, ["a.wav"])
    part.log_mel = features.log_mel(features.load_audio(tmp_path / "a.wav"))[None].numpy()
    part.visual, part.present = {"openl3": vectors[None]}, {"openl3": np.array([True])}
    wanted = train.predict(trained.student, trained.data, part, [0.5], CPU)[0.5][0][0]
    assert got.seconds == seconds and got.with_video == {"openl3": 1}
    assert np.allclose(got.frame_scores, wanted, atol=1e-6)


def test_windows_are_scaled_one_by_one(tmp_path):
    sound = 0.01 * np.random.default_rng(0).standard_normal(40 * 16000)
    write_wav(tmp_path / "a.wav", sound, subtype="FLOAT")
    even = predict.hear(listener(), tmp_path / "a.wav", {}, {}).frame_scores
    sound[35 * 16000] = 1  # one bang
    write_wav(tmp_path / "a.wav", sound, subtype="FLOAT")
    got = predict.hear(listener(), tmp_path / "a.wav", {}, {}).frame_scores
    assert np.array_equal(got[:150], even[:150]) and (got[192:] < even[192:]).all()


def test_log_mel_is_kept_as_loud_as_the_recording(tmp_path):
    sound = 0.5 * np.random.default_rng(0).standard_normal(40 * 16000).clip(-1, 1)
    sound[20 * 16000 :] /= 10
    write_wav(tmp_path / "a.wav", sound, subtype="FLOAT")
    log_mel = predict.hear(listener(), tmp_path / "a.wav", {}, {}, keep_log_mel=True).log_mel.astype(float)
    loud, quiet = log_mel[100:900].mean(0), log_mel[1100:1900].mean(0)
    assert log_mel.shape[1] == 64 and np.allclose(loud - quiet, math.log(10), atol=0.1)
    one = features.log_mel(sound[:160000].astype(np.float32))[:500].numpy()
    assert np.abs(log_mel[:256] - one[:256]).max() < 0.02  # float16
    last = features.log_mel(np.pad(sound[6 * 80128 :], (0, 768)).astype(np.float32)).numpy()  # ends in 768 of silence
    silent = predict.hear(listener(), noise_at(tmp_path / "b.wav", 1), {}, {}, keep_log_mel=True).log_mel
    assert np.allclose(silent.astype(float), math.log(1e-5), atol=0.01)
    assert len(log_mel) == 8 * 256 and np.abs(log_mel[-256:-5] - last[256:-5]).max() < 0.02


def test_long_recordings_take_no_more_memory(tmp_path):
    peaks = []
    for minutes in (6, 12):
        path = noise_at(tmp_path / f"{minutes}.wav", 60 * minutes, (1, 60 * minutes - 1), rate=8000)
        tracemalloc.start()
        predict.hear(listener(), path, {}, {})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] < 50e6  # the longer one alone is 46 MB as float32 at 16 kHz


# --- what is seen ----------------------------------------------------------------------------------------------------


def test_without_video_the_model_only_listens(tmp_path):
    path = noise_at(tmp_path / "a.wav", 13, (1, 2), (8, 12))
    trained = loaded(tmp_path / "model.pt", ("openl3", "tce"))
    without = predict.hear(trained, path, {}, {}).frame_scores
    vectors = {s: np.random.default_rng(1).standard_normal((64, d)) for s, d in (("openl3", 6), ("tce", 5))}
    seeing = predict.hear(trained, path, {}, vectors)
    assert seeing.with_video == {"openl3": 1, "tce": 1} and seeing.windows == 2  # stored vectors are of the first one
    assert not np.allclose(without[:64], seeing.frame_scores[:64])
    assert np.array_equal(without[64:], seeing.frame_scores[64:])
    trained.audio_weight = 1.0
    assert np.allclose(without, predict.hear(trained, path, {}, vectors).frame_scores, atol=1e-6)
    trained.audio_weight = 0.5
    for array in vectors.values():
        array[3, 4] = np.nan
    missing = predict.hear(trained, path, {}, vectors)
    assert missing.with_video == {"openl3": 0, "tce": 0} and np.array_equal(without, missing.frame_scores)


def test_each_window_sees_its_own_part_of_the_video(tmp_path, monkeypatch):
    asked, shown = [], []

    def read_frames(path, start, seconds):
        asked.append((start, seconds))
        if start > 6:
            raise plumbing.InputError("the picture ends here")
        return start

    monkeypatch.setattr(embeddings, "read_frames", read_frames)
    monkeypatch.setattr(embeddings, "clip_vectors", lambda network, frames, _: np.full((64, network), frames))
    got = predict.vectors_of_windows("a.mp4", [0.0, 5.008, 10.016], {"openl3": 6, "tce": 5}, {})
    assert sorted(asked) == [(0.0, 10), (5.008, 10), (10.016, 10)]
    assert got["tce"][0].shape == (64, 5) and (got["openl3"][1] == 5.008).all() and got["openl3"][2] is None
    monkeypatch.setattr(predict, "has_picture", lambda path: True)
    trained = loaded(tmp_path / "model.pt", ("openl3", "tce"))
    path = noise_at(tmp_path / "a.wav", 20, (1, 15))
    monkeypatch.setattr(predict, "WINDOW_BATCH", 2)  # the third window is in another batch
    asked.clear(), shown.clear()
    networks = {"openl3": 6, "tce": 5}
    heard = predict.hear(trained, path, networks, {}, show_progress=lambda _, n, total, *__: shown.append((n, total)))
    assert shown == [(2, 3), (3, 3)]
    assert heard.windows == 3 and heard.with_video == {"openl3": 2, "tce": 2}
    assert sorted(asked) == [(0.0, 10), (5.008, 10), (10.016, 10)]
    assert heard.first.filenames == [path] and (heard.first.visual["openl3"] == 0).all()  # the picture at 0 s
    assert np.array_equal(heard.first.log_mel[0], features.log_mel(features.load_audio(path)))


@pytest.mark.parametrize("base", ("transformer", "conformer"))
def test_attention_weights(tmp_path, base):
    trained = loaded(tmp_path / "model.pt", ("openl3", "tce"), base=base)
    path = noise_at(tmp_path / "a.wav", 14, (1, 13))
    vectors = np.random.default_rng(1).standard_normal((64, 5))
    clip = predict.hear(trained, path, {}, {"tce": vectors}).first
    encoders, weights = predict.cross_attention(trained, clip)
    assert encoders == ["log-mel", "tce"] and weights.shape == (3, 2, 3, 65, 64)
    assert np.allclose(weights.sum(-1), 1, atol=1e-5) and weights.min() >= 0
    before = train.predict(trained.student, trained.data, clip, [0.5], CPU)[0.5][0]
    trained.student.decoder.blocks[2].cross.copies[2].key.weight.data.zero_()
    trained.student.decoder.blocks[2].cross.copies[2].key.bias.data.zero_()
    if base == "conformer":
        trained.student.decoder.blocks[2].cross.copies[2].distances.data.zero_()
    _, flat = predict.cross_attention(trained, clip)  # without keys, all frames look the same to that copy
    assert np.allclose(flat[2, 1], 1 / 64) and np.array_equal(flat[:2], weights[:2])
    assert np.array_equal(flat[2, 0], weights[2, 0])
    after = train.predict(trained.student, trained.data, clip, [0.5], CPU)[0.5][0]
    assert not np.array_equal(before, after) and before.shape == after.shape
    for share, used in ((0.99, ["log-mel", "tce"]), (1.0, ["log-mel"])):
        trained.audio_weight = share
        assert predict.cross_attention(trained, clip)[0] == used


# --- files that need ffmpeg ------------------------------------------------------------------------------------------


TONE = "-f lavfi -i sine=440:d=4:r=44100".split()


@with_ffmpeg
def test_sound_of_video_files(tmp_path):
    noise = ["-i", str(noise_at(tmp_path / "a.wav", 12, (1, 2), (8, 11.9)))]
    codec = ("-c:v", "ffv1", "-pix_fmt", "gray", "-c:a", "pcm_s16le")
    both = film(tmp_path / "both.mkv", CLOCK.format(12), noise, options=codec)
    alone = np.concatenate(list(predict.read_blocks(tmp_path / "a.wav")))
    assert np.allclose(np.concatenate(list(predict.read_blocks(both))), alone, atol=1e-4)
    assert predict.has_picture(both) and predict.recording_seconds(both) == 12
    write_wav(tmp_path / "two.wav", 0.5 * np.stack([np.ones(16000), np.linspace(-1, 0, 16000)], 1), 16000)
    two = film(tmp_path / "two.mkv", ["-i", str(tmp_path / "two.wav")], options=("-c:a", "pcm_f32le"))
    mean = features.read_mono(tmp_path / "two.wav")[0]
    assert np.allclose(np.concatenate(list(predict.read_blocks(two))), mean, atol=1e-4)
    late = film(tmp_path / "late.mkv", CLOCK.format(14), ["-itsoffset", "1.5", *noise], options=codec)
    sound = np.concatenate(list(predict.read_blocks(late)))
    assert abs(len(sound) - 13.5 * 16000) < 100 and abs(np.flatnonzero(np.abs(sound) > 0.01)[0] - 2.5 * 16000) < 100
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {both.name}\n")
    hours = film(tmp_path / "hours.mkv", CLOCK.format(1), ["-itsoffset", "5000", *noise], options=codec)
    for path, message in ((tmp_path / "list.mp4", r"no sound \(a playlist"), (hours, "more than an hour of nothing")):
        with pytest.raises(plumbing.InputError, match=f"{path.name}: .*{message}"):
            sum(map(len, predict.read_blocks(path)))
    silent = film(tmp_path / "silent.mkv", CLOCK.format(1))
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    for path in (silent, tmp_path / "broken.mp4", tmp_path / "absent.mp4"):
        with pytest.raises(plumbing.InputError, match=f"{path.name}: no sound"):
            list(predict.read_blocks(path))


def pitches(sound):
    """The loudest frequency in each whole half second of sound at 16 kHz, in Hz; 0 for silence"""
    halves = sound[: len(sound) // 8000 * 8000].reshape(-1, 8000)
    return np.abs(np.fft.rfft(halves)).argmax(1) * 2 * (np.abs(halves).max(1) > 1e-3)


CHANGES = {  # file: options of its two halves
    "a.ts": ("-ac 1 -c:a aac", "-ac 2 -c:a aac"),
    "a.mpg": ("-ac 2 -ar 44100 -c:a mp2", "-ac 1 -ar 48000 -c:a mp2"),
    "a.m2ts": ("-ac 2 -c:a ac3", "-ac 6 -c:a ac3"),
    "a.aac": ("-ac 2 -ar 48000 -c:a aac", "-ac 1 -ar 22050 -c:a aac"),
    "a.mp3": ("-ac 1 -ar 22050 -c:a libmp3lame", "-ac 2 -ar 44100 -c:a libmp3lame"),
    "a.oga": ("-ac 1 -ar 44100 -c:a flac", "-ac 2 -ar 48000 -c:a flac"),
    "a.ogg": ("-ac 2 -ar 48000 -c:a libvorbis", "-ac 1 -ar 44100 -c:a libvorbis"),
    "a.opus": ("-ac 1 -c:a libopus", "-ac 2 -c:a libopus"),
}


@with_ffmpeg
@pytest.mark.parametrize("name", CHANGES)
def test_sound_whose_form_changes_keeps_its_times(tmp_path, name):
    parts = []
    for hertz, options in zip((440, 880), CHANGES[name]):
        parts.append(film(tmp_path / f"{hertz}{name}", f"sine={hertz}:d=3:r=48000", options=options.split()))
    path = tmp_path / name
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    sound = np.concatenate(list(predict.read_blocks(path)))
    assert abs(len(sound) - 6 * 16000) < 0.15 * 16000 and sound.dtype == np.float32
    heard = pitches(sound)
    assert (heard[:5] == 440).all() and (heard[7:12] == 880).all()
    assert sound[80000:90000].max() > 0.2 * sound[8000:40000].max()  # nor does one half drown the other


@with_ffmpeg
def test_silence_is_where_there_is_no_sound(tmp_path):
    picture, codecs = "nullsrc=s=32x32:r=25:d={}", "-c:v mpeg2video -c:a mp2".split()
    for kind in ("ts", "mpg", "mkv"):
        late = film(tmp_path / f"late.{kind}", picture.format(6), ["-itsoffset", "2.1", *TONE], options=codecs)
        assert list(pitches(np.concatenate(list(predict.read_blocks(late))))[:8]) == [0] * 4 + [440] * 4
        gap = ("-af", "aselect='lt(t,0.8)+gt(t,3.2)'", *codecs)
        gap = film(tmp_path / f"gap.{kind}", picture.format(4), TONE, options=gap)
        assert list(pitches(np.concatenate(list(predict.read_blocks(gap))))[:8]) == [440] * 2 + [0] * 4 + [440] * 2


@with_ffmpeg
def test_a_cut_recording_is_taken_with_a_note(tmp_path):
    noise = noise_at(tmp_path / "a.wav", 12, (0, 12))
    samples = soundfile.read(noise)[0]
    for kind in ("flac", "ogg"):
        soundfile.write(tmp_path / f"a.{kind}", samples, 16000)
    (tmp_path / "a.opus").write_bytes((tmp_path / "a.ogg").read_bytes())
    pcm = "-c:a pcm_s16le -movflags +faststart".split()
    for name, options in (("a.mov", pcm), ("a.mkv", pcm[:2]), ("a.aiff", ())):
        film(tmp_path / name, ["-i", str(noise)], options=options)
    for name in ("a.wav", "a.flac", "a.ogg", "a.opus", "a.mov", "a.mkv", "a.aiff"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        # an Ogg file has no header that says how long it is
        note = pytest.warns(UserWarning, match=rf"{name}: its sound ends after 0:0[56], its header says 0:12")
        with contextlib.nullcontext() if name in ("a.ogg", "a.opus") else note:
            n_samples = sum(map(len, predict.read_blocks(tmp_path / name)))
        assert 4.5 * 16000 < n_samples < 6.5 * 16000
    for name in ("a.wav", "a.flac", "a.ogg"):  # what a network learns from must be whole
        with pytest.raises(plumbing.InputError, match="less sound than its header promises|cannot be decoded"):
            features.read_mono(tmp_path / name)


@with_ffmpeg
def test_what_goes_on_after_the_sound_makes_no_cut_recording(tmp_path, recwarn):
    cues = "1\n00:00:01,000 --> 00:00:02,000\nHello\n\n2\n00:00:06,000 --> 00:00:08,000\nBye\n"
    (tmp_path / "a.srt").write_text(cues)
    said, sound = ["-i", str(tmp_path / "a.srt")], "sine=d=3"
    pictures = "color=red:s=32x32:r=5:d=8"
    for name, inputs, options in (
        ("said.mp4", [sound, said], "-c:a aac -c:s mov_text"), ("said.mkv", [sound, said], "-c:a flac -c:s srt"),
        ("seen.mp4", [sound, pictures], "-c:a aac -c:v mpeg4"),
    ):  # fmt: skip
        path = film(tmp_path / name, *inputs, options=options.split())
        assert embeddings.describe(path).promised > 7
        assert sum(map(len, predict.read_blocks(path))) == pytest.approx(3 * 16000, abs=2048)
    assert not recwarn.list, [str(warning.message) for warning in recwarn]
    film(path, *inputs, options=[*options.split(), "-movflags", "+faststart"])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.warns(UserWarning, match="seen.mp4: its sound ends after 0:0[0-3], its header says 0:08"):
        list(predict.read_blocks(path))


@with_ffmpeg
def test_the_cover_of_a_music_file_is_no_video(tmp_path):
    cover = film(tmp_path / "cover.png", "color=red:s=64x64:d=0.04", options=("-frames:v", "1"))
    cover = ["-i", str(cover), "-map", "0:a", "-map", "1:v", "-disposition:v:0", "attached_pic"]
    song = film(tmp_path / "song.m4a", "sine=d=2", cover, options=("-c:a", "aac", "-c:v", "png"))
    assert not predict.has_picture(song)
    subprocess.run(["ffmpeg", "-v", "error", "-i", song, "-map", "0:v", "-f", "null", "-"], check=True)  # there is one
    assert sum(map(len, predict.read_blocks(song))) == pytest.approx(32000, abs=2048)


@with_ffmpeg
def test_the_command_looks_at_the_picture_of_the_file(tmp_path, capsys, monkeypatch):
    noise = ["-i", str(noise_at(tmp_path / "a.wav", 12, (1, 11)))]
    path = film(tmp_path / "a.mkv", CLOCK.format(3), noise, options=("-c:v", "ffv1", "-pix_fmt", "gray"))
    monkeypatch.setattr(embeddings, "load_network", lambda name, weights, device: name)
    shown = []

    def clip_vectors(network, frames, place):
        shown.append(times_shown(frames, 0)[0])
        return np.random.default_rng(0).standard_normal((64, 6))

    monkeypatch.setattr(embeddings, "clip_vectors", clip_vectors)
    run(tiny_model(tmp_path / "model.pt"), path, tmp_path / "a.wav", "--weights", "w.pt")
    lines = capsys.readouterr().err.splitlines()
    assert np.allclose(shown, (0, 2.96 - 3.2), atol=0.1)  # the last picture stays while the sound goes on
    assert "a.mkv: 0:12 of sound, windows: 2, with openl3: 2" in lines[1]
    assert lines[3] == "note   a.wav: predicted from sound alone (acoustic weight 1): no picture can be read"


def test_an_ffmpeg_that_hangs_is_stopped(tmp_path, monkeypatch):
    block = f"sys.stdout.write('x' * {4 * 160000}), sys.stdout.flush()"
    (tmp_path / "ffmpeg").write_text(f"#!{sys.executable} -S\nimport sys, time\n{block}\ntime.sleep(20)\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    started = time.monotonic()
    blocks = predict.read_blocks("a.mp4")
    assert len(next(blocks)) == 160000
    blocks.close()  # nobody wants the rest
    monkeypatch.setattr(embeddings, "PATIENCE", 0.5)
    for read in (lambda path: list(predict.read_blocks(path)), embeddings.read_frames):
        with pytest.raises(plumbing.InputError, match=r"a\.mp4: no \w+ \(ffmpeg ended with -9; it has 0.5 s\)"):
            read("a.mp4")
    assert not predict.has_picture("a.mp4") and predict.recording_seconds("a.mp4") == 0
    assert time.monotonic() - started < 10


def test_a_missing_ffmpeg_is_named_where_it_is_needed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    model = tiny_model(tmp_path / "model.pt")
    run(model, noise_at(tmp_path / "a.wav", 2, (0, 1)))
    capsys.readouterr()
    (tmp_path / "a.mp4").touch()
    with pytest.raises(SystemExit) as stop:
        run(model, tmp_path / "a.mp4")
    assert stop.value.code == 2 and "error: ffmpeg: not found" in capsys.readouterr().err


# --- the command -----------------------------------------------------------------------------------------------------


HEADER = "filename\tonset\toffset\tevent_label\tscore\n"


def test_the_command_prints_and_writes_events(tmp_path, capsys):
    model = tiny_model(tmp_path / "run/model.pt")
    files = [noise_at(tmp_path / "in" / f"{name}.wav", seconds, (0, 1)) for name, seconds in (("b", 2), ("a", 12.3))]
    run(model, *files, "--out", tmp_path / "out/new", "--scores")
    printed = capsys.readouterr()
    rows = []
    for name, seconds in (("b.wav", 2.0), ("a.wav", 12.3)):
        columns, scores = read_scores(tmp_path / f"out/new/scores/{name[0]}.tsv")
        assert columns == ["onset", "offset", *CLASSES] and scores.shape == (math.ceil(seconds / FRAME_HOP), 4)
        assert scores[0, 0] == 0 and scores[-1, 1] == seconds
        scores = scores[:, 2:]
        rows += [f"{name}\t0.0\t{seconds}\t{label}\t{scores[:, c].mean():.3f}\n" for c, label in enumerate(CLASSES)]
    table = HEADER + "".join(rows)
    assert printed.out == table  # the threshold is 0, so each class sounds from the beginning to the end
    assert (tmp_path / "out/new/predictions.tsv").read_text() == table
    assert (tmp_path / "out/new/a.wav.tsv").read_text() == HEADER + "".join(rows[2:])
    assert [event[3] for event in features.read_strong(tmp_path / "out/new/predictions.tsv")[1]] == 2 * CLASSES
    assert "synthesised" not in printed.err
    assert "tuned for EBF1" in printed.err and printed.err.count("predicted from sound alone (acoustic weight 1)") == 2
    made = sorted(path.name for path in (tmp_path / "out/new").iterdir())
    tables = ["a.wav.tsv", "b.wav.tsv"]
    assert made == [*tables, "predictions.tsv", "scores", "settings.json"]
    run(model, *files, "--scores", tmp_path / "elsewhere")  # without --out
    assert capsys.readouterr().out == table
    found, _ = score_frames(tmp_path / "out/new/predictions.tsv", tmp_path / "elsewhere", threshold=0.0)
    assert found["event_f1_micro"] == 1 and found["hours"] * 3600 == pytest.approx(14.3)  # its events are the truth
    for name in "ab":
        here, there = (tmp_path / folder / f"{name}.tsv" for folder in ("out/new/scores", "elsewhere"))
        assert here.read_bytes() == there.read_bytes()
    twin = tmp_path / "in/a.flac"
    twin.touch()
    assert "differ in their suffix alone" in refused(capsys, model, files[1], twin, "--scores", tmp_path, command=run)
    run(tiny_model(tmp_path / "deaf.pt", threshold=1.0), files[0])
    assert capsys.readouterr().out == HEADER
    state = torch.load(model, weights_only=True)
    torch.save(state | {"toy_data": True}, model)
    run(model, *files)
    said = capsys.readouterr().err
    assert said.count("trained on synthesised sounds: what it finds in recordings means nothing") == 1


class HearsTwo(nn.Module):
    """A stand-in with two classes: a frame's logit is its mean log-mel plus 8, for "Loud" plus 5.5"""

    streams = ()

    def forward(self, log_mel, visual, present, audio_weight):
        logits = log_mel.unflatten(1, (64, 8)).mean((2, 3))[:, :, None] + torch.tensor([5.5, 8.0])  # (B, 64, 2)
        return logits, logits.amax(1)


@pytest.fixture
def hears_two(tmp_path, monkeypatch):
    """m.pt is read as a network whose events are known"""
    (tmp_path / "m.pt").touch()
    data = features.DataSet(["Loud", "Sound"], {}, (np.zeros(64, np.float32), np.ones(64, np.float32)), {})
    model = predict.Trained(HearsTwo(), data, 1.0, np.array([0.5, 0.5]), np.array([3, 3]), CPU)
    monkeypatch.setattr(predict, "load_model", lambda path, device: model)
    return model


def test_scores_are_mean_probabilities_and_thresholds_can_be_given(tmp_path):
    scores = np.zeros((64, 1), np.float32)
    scores[10:20, 0], scores[40:, 0] = np.linspace(0.55, 0.64, 10), 0.9
    scores[44] = 0.8
    heard = predict.Heard(scores, 6.9, None, 1, {}, None)  # the last event ends within frame 44, which counts
    names = [("a.wav", 1.565, 3.13, "Sound", 0.595), ("a.wav", 6.26, 6.9, "Sound", 0.88)]
    assert predict.events_of(listener(), "a.wav", heard) == names
    assert predict.events_of(listener(), "a.wav", heard, threshold=0.7) == names[1:]
    assert predict.events_of(listener(), "a.wav", heard, min_score=0.596) == names[1:]
    assert predict.events_of(listener(), "a.wav", heard, min_score=0.595) == names
    heard.frame_scores[:] += 0.01
    low = predict.events_of(listener(), "a.wav", heard, threshold=0.0)
    assert low == [("a.wav", 0.0, 6.9, "Sound", round(float(scores[:45].mean()), 3))]


def test_each_class_has_its_own_threshold_and_window():
    scores = np.zeros((64, 3), np.float32)
    scores[10] = 0.6  # one frame, which a median filter over three takes away
    scores[32:40, 0] = 0.9
    heard = predict.Heard(scores, 10.0, None, 1, {}, None)
    data = features.DataSet(["A", "B", "C"], {}, None, {})
    trained = predict.Trained(None, data, 1.0, np.array([0.5, 0.5, 0.7]), np.array([3, 1, 1]), CPU)
    found = predict.events_of(trained, "a.wav", heard)  # by onset, not by class
    assert found == [("a.wav", 1.565, 1.7215, "B", 0.6), ("a.wav", 5.008, 6.26, "A", 0.9)]


def test_formats_by_hand(tmp_path, capsys, monkeypatch):
    rows = [("é.wav", 0.0, 2.5, "A b", 0.5), ("é.wav", 3661.0345, 3662.0, "C", 0.9995)]
    assert predict.as_tsv("é.wav", 4000.0, rows) == HEADER + (
        "é.wav\t0.0\t2.5\tA b\t0.500\né.wav\t3661.0345\t3662.0\tC\t1.000\n"
    )
    assert predict.as_audacity("é.wav", 4000.0, rows) == (
        "0.000000\t2.500000\tA b 0.500\n3661.034500\t3662.000000\tC 1.000\n"
    )
    assert predict.as_srt("é.wav", 4000.0, rows) == (
        "1\n00:00:00,000 --> 00:00:02,500\nA b (0.500)\n\n2\n01:01:01,034 --> 01:01:02,000\nC (1.000)\n\n"
    )
    text = predict.as_json("é.wav", 4000.0, rows)
    assert text.count("\n") == 1 and "é" in text
    first = {"onset": 0.0, "offset": 2.5, "event_label": "A b", "score": 0.5}
    found = json.loads(text)
    assert found["filename"] == "é.wav" and found["seconds"] == 4000.0 and found["events"][0] == first
    model, files = tiny_model(tmp_path / "m.pt"), [noise_at(tmp_path / f"{name}.wav", 2, (0, 1)) for name in "ab"]
    for given, ending in (("audacity", "txt"), ("json", "json"), ("srt", "srt")):
        out = tmp_path / given
        run(model, *files, "--format", given, "--out", out)
        assert capsys.readouterr().out == ""
        assert sorted(path.name for path in out.iterdir()) == [f"a.wav.{ending}", f"b.wav.{ending}", "settings.json"]
        run(model, files[0], "--format", given)
        assert capsys.readouterr().out == (out / f"a.wav.{ending}").read_text()
    run(model, *files, "--format", "json")
    assert [json.loads(line)["filename"] for line in capsys.readouterr().out.splitlines()] == ["a.wav", "b.wav"]
    run(tiny_model(tmp_path / "deaf.pt", threshold=1.0), files[0], "--format", "srt", "--out", tmp_path / "srt")
    assert (tmp_path / "srt/a.wav.srt").read_bytes() == b""  # a blank line would be no subtitle


def test_folders_and_bad_recordings(tmp_path, capsys):
    model, folder = tiny_model(tmp_path / "m.pt"), tmp_path / "in"
    for name in ("b/x.wav", "a/x.WAV", "c.flac", ".hidden/x.wav", "a/._x.wav", "a/.x.wav"):
        noise_at(folder / name, 2, (0, 1))
    (folder / "a/x.tsv").write_text("no recording")
    (folder / "b/broken.wav").write_bytes(b"RIFF and nothing else")
    (folder / "b/y\nz.wav").write_bytes(b"")
    alone = noise_at(tmp_path / "alone.wav", 2, (0, 1))
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        run(model, folder, tmp_path / "absent.wav", alone, "--out", out)
    printed = capsys.readouterr()
    names = ["a/x.WAV", "b/x.wav", "c.flac", "alone.wav"]
    assert stop.value.code == 1
    assert [line.split("\t")[0] for line in printed.out.splitlines()[1::2]] == names
    assert (out / "predictions.tsv").read_text() == printed.out and (out / "a/x.WAV.tsv").is_file()
    last = printed.err.splitlines()[-4:]
    assert last[0] == "failed: 3 of 7 recordings" and "in/b/broken.wav: cannot be decoded" in last[1]
    assert "y\\nz.wav" in last[2] and "absent.wav: no such file" in last[3]
    assert re.search(r"^6/7 +failed: .*absent.wav", printed.err, re.M)
    assert not list(out.rglob("*broken*"))
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([tmp_path / "empty"], "empty: no file in it is a recording"),
        ([folder, folder], "a/x.WAV: two files of this name"),
        ([folder, "--visual-file", "v.npy"], "name one FILE"),
        ([folder, "--format", "srt"], "--format srt makes a file of each recording"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(model, *arguments)
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_recording_that_may_not_be_read_is_skipped(tmp_path, capsys, monkeypatch):
    model, read = tiny_model(tmp_path / "m.pt"), features.sound_blocks
    paths = [noise_at(tmp_path / name, 2, (0, 1)) for name in ("a.wav", "b.wav", "c.wav")]

    def denied(path, **options):
        if Path(path).name == "b.wav":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, **options)

    monkeypatch.setattr(features, "sound_blocks", denied)
    with pytest.raises(SystemExit) as stop:
        run(model, *paths)
    printed = capsys.readouterr()
    assert stop.value.code == 1 and "failed: 1 of 3 recordings" in printed.err
    assert "you have no right to read" in printed.err
    assert {line.split("\t")[0] for line in printed.out.splitlines()[1:]} == {"a.wav", "c.wav"}


def test_an_interrupted_call_goes_on(tmp_path, capsys, monkeypatch):
    model, out = tiny_model(tmp_path / "m.pt"), tmp_path / "out"
    files = [noise_at(tmp_path / f"{name}.wav", 2, (0, 1)) for name in "abc"]
    heard, hear = [], predict.hear

    def watched(trained, path, *more):
        heard.append(Path(path).name)
        if len(heard) == 3:
            raise KeyboardInterrupt
        return hear(trained, path, *more)

    monkeypatch.setattr(predict, "hear", watched)
    command = [model, *files, "--out", out]
    with pytest.raises(SystemExit) as stop:
        run(*command)
    assert "interrupted; give the same command again to go on" in str(stop.value)
    before = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["a.wav.tsv", "b.wav.tsv", "settings.json"]
    run(*command)
    whole = capsys.readouterr().out
    assert heard == ["a.wav", "b.wav", "c.wav", "c.wav"] and whole.startswith(before) and "c.wav" in whole
    assert (out / "predictions.tsv").read_text() == whole

    def done_anew(*more):
        heard.clear()
        heard.extend([None] * 3)  # nobody interrupts
        run(*command, *more)
        return heard[3:]

    assert done_anew() == [] and capsys.readouterr().out == whole
    os.utime(files[1], ns=(1, (out / "b.wav.tsv").stat().st_mtime_ns + 1))  # changed after it was heard
    assert done_anew() == ["b.wav"]
    os.utime(files[1], ns=(1, 1))
    assert done_anew("--scores") == ["a.wav", "b.wav", "c.wav"] and done_anew("--scores") == [] and done_anew() == []
    assert done_anew("--threshold", "1") == ["a.wav", "b.wav", "c.wav"]  # what is there has another threshold
    assert done_anew("--threshold", "1", "--min-score", "0.5") == ["a.wav", "b.wav", "c.wav"]
    assert done_anew("--threshold", "1") == ["a.wav", "b.wav", "c.wav"]
    assert done_anew("--threshold", "1") == [] and (out / "a.wav.tsv").read_text() == HEADER
    torch.save(torch.load(model, weights_only=True) | {"infer_weight": 0.75}, model)
    assert done_anew("--threshold", "1") == ["a.wav", "b.wav", "c.wav"]


def test_pages_are_made_anew_for_other_true_events(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    kept = []
    for reference in (None, tmp_path / "a", tmp_path / "b", tmp_path / "b"):
        args = dict(model=tmp_path / "a", weights=[], visual_file=[], threshold=None, min_score=None)
        predict.begin_folder(SimpleNamespace(**args, reference=reference, out=tmp_path / "out"))
        kept.append((tmp_path / "out/settings.json").read_text())
    assert len({*kept}) == 3 and kept[2] == kept[3]


@with_ffmpeg
def test_stdin_is_a_recording(tmp_path, capsys, monkeypatch):
    model, path = tiny_model(tmp_path / "m.pt"), noise_at(tmp_path / "a.wav", 2, (0, 1))
    for content in (path.read_bytes(), b"no sound"):
        (tmp_path / "pipe").write_bytes(content)
        monkeypatch.setattr(sys, "stdin", open(tmp_path / "pipe"))
        if content == b"no sound":
            with pytest.raises(SystemExit) as stop:
                run(model, "-")
            said = capsys.readouterr().err.splitlines()[-1]
            assert stop.value.code == 2 and said.startswith("error: stdin: no sound")
        else:
            run(model, "-", "--out", tmp_path / "out")
            rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
            assert [row[:3] for row in rows[1:]] == 2 * [["stdin", "0.0", "2.0"]]
            assert (tmp_path / "out/stdin.tsv").is_file()


def test_events_from_python(tmp_path, monkeypatch):
    """As documented: from another folder, with nothing but the project on the path; nothing is printed"""
    model, path = tiny_model(tmp_path / "m.pt"), noise_at(tmp_path / "street.wav", 13, (0, 1))
    (tmp_path / "small.py").write_text("import avsed, test_avsed as t\nt.shrink(setattr)\navsed.DECODER_BLOCKS = 3\n")
    say = "import small; from extras.predict import events, load_model; model = load_model('m.pt')"
    (tmp_path / "use.py").write_text(f"{say}\nopen('said', 'w').write(repr(events(model, 'street.wav')))\n")
    program = Program("-m", "use", cwd=tmp_path, PYTHONPATH=str(HERE))
    assert program.communicate() == ("", "") and program.returncode == 0
    rows = ast.literal_eval((tmp_path / "said").read_text())
    assert [row[:4] for row in rows] == [("street.wav", 0.0, 13.0, label) for label in CLASSES]
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # where the command would show its progress
    monkeypatch.setattr(sys, "stderr", terminal)
    assert predict.events(predict.load_model(model, "cpu"), path, threshold=0.0, min_score=1.0) == []
    assert terminal.getvalue() == ""


def test_what_was_heard_is_let_go_of(tmp_path, hears_two, monkeypatch):
    """Memory stays the same over hundreds of recordings"""
    for k in range(4):
        noise_at(tmp_path / f"in/{k}.wav", 2, (0, 1))
    hear, made = predict.hear, []

    def watched(*more):
        assert [of() for of in made[:-1]] == [None] * len(made[:-1])  # only the one before may still be there
        heard = hear(*more)
        made.append(weakref.ref(heard))
        return heard

    monkeypatch.setattr(predict, "hear", watched)
    run(tmp_path / "m.pt", tmp_path / "in", "--out", tmp_path / "out", "--page")
    assert len(made) == 4


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def page_of(tmp_path, capsys, hears_two):
    """A recording's page as the command makes it, and its table: 71 s, so two tiles, some true events"""
    bursts = [(1.5, 3), (5, 6), (62, 65.2), (70, 71)]
    path = noise_at(tmp_path / "<a> & 'b'.wav", 71, *bursts)
    truth = tmp_path / "true.tsv"
    rows = f"{path.name}\t1.0\t3.5\tSound\n{path.name}\t9\t9.5\tFox\nanother.wav\t2\t3\tSound\n"
    truth.write_text(f"filename\tonset\toffset\tevent_label\n{rows}")
    run(tmp_path / "m.pt", path, "--out", tmp_path / "out", "--page", "--reference", truth)
    table = capsys.readouterr().out
    return tmp_path / f"out/{path.name}.html", table


def test_a_page_holds_what_the_table_holds(page_of):
    path, table = page_of
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    assert len(rows) > 4 and {row[3] for row in rows} == {"Loud", "Sound"}
    tags = Tags(path.read_text(encoding="utf-8"))
    bars = [tag for tag in tags.all("button") if "event" in tag.get("class", "").split()]
    found = [bar for bar in bars if "data-event" in bar]
    assert sorted(int(bar["data-event"]) for bar in found) == list(range(len(rows)))
    for bar in found:
        _, onset, offset, label, score = rows[int(bar["data-event"])]
        left, width = map(float, re.fullmatch(r"left: (.*)%; width: (.*)%", bar["style"]).groups())
        assert left == pytest.approx(100 * float(onset) / 71, abs=1e-4)
        assert width == pytest.approx(100 * (float(offset) - float(onset)) / 71, abs=1e-4)
        assert bar["data-onset"] == onset and bar["title"].startswith(f"{label}, ") and score in bar["title"]
    assert [bar["data-onset"] for bar in bars if "data-event" not in bar] == ["9.0", "1.0"]  # by class: Fox, Sound
    assert [tag["data-label"] for tag in tags.all("div") if tag.get("class") == "lane"] == ["Fox", "Loud", "Sound"]
    content = json.loads(next(text for tag, text in tags.scripts if tag.get("id") == "data"))
    assert content["curves"].keys() == {"Loud", "Sound"} and content["thresholds"]["Loud"] == 0.5
    curve = np.frombuffer(base64.b64decode(content["curves"]["Sound"]), np.uint8)
    loud = curve[round(62 / FRAME_HOP) + 1 : round(65 / FRAME_HOP)]
    assert len(curve) == math.ceil(71 / FRAME_HOP) and loud.min() > 128 > curve[60:390].max()
    pictures = [content_of(tag["src"]) for tag in tags.all("img")]
    sizes = [struct.unpack(">II", picture[16:24]) for kind, picture in pictures]
    assert sizes[1:] == [(3072, 64), (8 * len(curve) - 3072, 64)] and sizes[0][0] <= 1500
    kind, sound = content_of(tags.all("audio")[0]["src"])
    assert soundfile.info(io.BytesIO(sound)).duration == pytest.approx(71, abs=0.2)
    assert kind == "audio/wav" or len(sound) * 8 / 71 < 64000  # wav: soundfile before 0.13


def test_tiles_are_the_log_mel(monkeypatch):
    seen = []
    monkeypatch.setattr(page, "png", lambda array, palette: seen.append(array) or b"")
    log_mel = (np.linspace(-4, -2, 3100)[:, None] + np.linspace(0, 2, 64)).astype(np.float16)
    page.timeline(log_mel, 60.0, [], [], None)
    assert [array.shape for array in seen] == [(64, 3072), (64, 28)]
    whole = np.concatenate(seen, 1)
    assert whole[-1, 0] == 0 and whole[0, -1] == 255  # low frequencies are at the bottom
    assert (np.diff(whole[30].astype(int)) >= 0).all() and (np.diff(whole[:, 1500].astype(int)) < 0).all()


def test_a_page_without_events(tmp_path, capsys, hears_two):
    hears_two.threshold, hears_two.toy = np.array([1.0, 1.0]), True
    for name, seconds in (("short", 0.01), ("silent", 12)):
        write_wav(tmp_path / f"{name}.wav", np.zeros(round(16000 * seconds)))
        run(tmp_path / "m.pt", tmp_path / f"{name}.wav", "--out", tmp_path / "out", "--page")
        text = (tmp_path / f"out/{name}.wav.html").read_text(encoding="utf-8")
        assert "No event was found" in text and "Trained on synthesised sounds: what it finds" in text
        assert "true event" not in text


@with_chromium
def test_the_page_in_a_browser(page_of, browser):  # noqa: F811
    path, table = page_of
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    browser.open(path)
    browser.value("new Promise(ready => player.readyState ? ready() : player.onloadedmetadata = () => ready())")
    assert browser.value("player.duration") == pytest.approx(71, abs=0.1)
    assert browser.value("document.querySelectorAll('.event[data-event]').length") == len(rows)
    assert browser.value("count.textContent") == f"{len(rows)} of {len(rows)} events shown"
    assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth)")
    browser.value("window.timeline = document.getElementById('scroll')")

    # the curve of "Sound" is high where it sounds, 1.5 to 3 s
    lane_top = browser.value("document.querySelector('.lane[data-label=Sound]').offsetTop")
    width, whole = browser.value("[curves.width, track.clientWidth]")
    painted = "[...curves.getContext('2d').getImageData(0, 0, curves.width, curves.height).data]"
    lane = np.reshape(browser.value(painted), (-1, width, 4))[lane_top + 3 : lane_top + 32].any(2)  # painted?
    sounding, silent = (lane[:, round(moment / 71 * whole)].sum() for moment in (2.3, 4.2))
    assert sounding > 20 and silent < 6
    before = lane[:25, : round(1 / 71 * whole)].mean(1)  # nothing sounds: only the dashes of the threshold, 0.5, here
    assert set(np.flatnonzero(before)) == {14, 15} and 0.3 < before.max() < 0.9

    # a click into the overview or the timeline goes there, keys go to the next event and back by ten seconds
    def click_at(name, share):
        box = f"document.getElementById('{name}').getBoundingClientRect()"
        browser.click(*browser.value(f"(box => [box.x + {share} * box.width, box.y + 5])({box})"))
        return browser.value("player.currentTime")

    assert click_at("overview", 0.5) == pytest.approx(35.5, abs=0.2)
    left = browser.value("100 * timeline.scrollLeft / track.clientWidth")
    assert left > 10 and browser.value("parseFloat(view.style.left)") == pytest.approx(left, abs=0.1)
    place = "[timeline.getBoundingClientRect().x + 40, timeline.getBoundingClientRect().y + 5]"
    browser.click(*browser.value(place))
    wanted = browser.value("(timeline.scrollLeft + 40) / track.clientWidth * 71")
    assert browser.value("player.currentTime") == pytest.approx(wanted, abs=0.1)
    browser.press("ArrowLeft", modifiers=8)  # with shift
    assert browser.value("player.currentTime") == pytest.approx(wanted - 10, abs=0.1)
    browser.value("player.currentTime = 0")
    following = {float(row[1]) - 1 for row in rows if float(row[1]) - 1 > 0.05}
    for moment in sorted(following)[:2]:
        browser.press("n")
        assert browser.value("player.currentTime") == pytest.approx(moment, abs=0.01)
    browser.value("player.currentTime = 0; timeline.scrollLeft = 0")

    # a click on an event plays from a second before it, the keys play and move, and the cursor follows
    box = "document.querySelector('.event[data-event=\"0\"]').getBoundingClientRect()"
    browser.click(*browser.value(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})"))
    onset = float(rows[0][1])
    assert browser.value("!player.paused") and onset - 1.01 < browser.value("player.currentTime") < 60
    browser.press(" ")  # the event has the focus
    moment = browser.value("player.currentTime")
    assert browser.value("player.paused")
    browser.press("ArrowRight")
    browser.press("ArrowRight", modifiers=8)  # with shift
    browser.press("ArrowLeft")
    assert browser.value("player.currentTime") == pytest.approx(moment + 10, abs=0.01)
    browser.value("player.currentTime = 0")
    moment = browser.value("document.querySelector('td button').click(), player.currentTime")
    assert moment == pytest.approx(onset - 1)
    browser.value("player.pause()")
    last = len(rows) - 1  # out of view, which moves with the player
    browser.value(f"document.querySelector('.event[data-event=\"{last}\"]').click(), player.pause()")
    assert browser.value("player.currentTime") == pytest.approx(float(rows[last][1]) - 1, abs=0.3)
    places = "document.getElementById('cursor').getBoundingClientRect().x, timeline.getBoundingClientRect().x"
    x = float(np.subtract(*browser.value(f"[{places}]")))
    assert 0 < x < browser.value("timeline.clientWidth")
    wanted = browser.value("player.currentTime / 71 * track.clientWidth - timeline.scrollLeft")
    assert x == pytest.approx(wanted, abs=2)
    browser.press("p")
    assert browser.value("player.currentTime") < float(rows[last][1]) - 1.01
    width = browser.value("track.clientWidth")
    browser.press("+")
    assert browser.value("track.clientWidth") == pytest.approx(1.6 * width, abs=1)
    browser.value("document.getElementById('zoom-all').click()")
    assert browser.value("track.clientWidth == timeline.clientWidth")

    # filters hide, and exports hold what is shown
    browser.value("URL.createObjectURL = blob => { window.saved = blob; return '' }")
    browser.value("HTMLAnchorElement.prototype.click = () => {}")

    def exported(kind):
        return browser.value(f"document.getElementById('save-{kind}').click(), saved.text()")

    events = [(name, float(onset), float(offset), label, float(score)) for name, onset, offset, label, score in rows]
    assert exported("tsv") == table == path.with_suffix(".tsv").read_text()
    assert exported("audacity") == predict.as_audacity("", 71, events)
    browser.value("document.querySelector('.chip input[value=Sound]').click()")
    kept = [event for event in events if event[3] == "Loud"]
    assert 0 < len(kept) < len(events) and exported("tsv") == predict.as_tsv("", 71, kept)
    assert browser.value("document.querySelector('.lane[data-label=Sound]').getBoundingClientRect().height") == 0
    shown = "[...document.querySelectorAll('.event[data-event]')].filter(bar => bar.offsetWidth).length"
    assert browser.value(shown) == len(kept)
    browser.value("document.getElementById('every').click()")
    scores = sorted(event[4] for event in events)
    least = scores[len(scores) // 2]  # with all digits: what has this score is shown
    browser.value("document.getElementById('score').step = 'any'")
    browser.value(f"document.getElementById('score').value = {least}")
    browser.value("document.getElementById('score').dispatchEvent(new Event('input'))")
    kept = [event for event in events if event[4] >= least]
    assert 0 < len(kept) < len(events) and browser.value(shown) == len(kept)
    assert exported("tsv") == predict.as_tsv("", 71, kept)
    assert browser.complaints() == []


def test_a_clip_gets_the_events_that_its_run_gives_it(tmp_path, capsys):
    root, path = write_tiny(tmp_path / "set"), tmp_path / "r/model.pt"
    short = "--epochs 1 --batches 1 --batch-size 2 2 3".split()
    run_train("--data", root, "--visual", "openl3", "--out", path.parent, *short)
    trained, data = predict.load_model(path, CPU), features.load_dataset(root, ["openl3"], log=quiet)
    weight, public = trained.audio_weight, data.partitions["public"]
    scores, _ = train.predict(trained.student, data, public, [weight], CPU)[weight]
    threshold = (scores.min((0, 1)) + scores.max((0, 1))) / 2  # one that such a short run is sometimes above
    state = torch.load(path, weights_only=True)
    state["tuned"]["EBF1"] = {"threshold": threshold.tolist(), "window": [1, 1]}
    torch.save(state, path)
    durations = dict(zip(public.filenames, public.durations.tolist()))
    wanted = metrics.scores_to_events(scores, public.filenames, data.classes, threshold, 1, FRAME_HOP, durations)
    capsys.readouterr()
    for clip, sound in zip(public.filenames, public.paths):
        run(path, sound, "--visual-file", root / "visual/openl3" / f"{Path(clip).stem}.npy")
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
        got = [(name, float(onset), float(offset), label) for name, onset, offset, label, _ in rows]
        assert got and sorted(got) == sorted((n, round(a, 4), round(b, 4), c) for n, a, b, c in wanted if n == clip)


def test_pictures_of_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = noise_at(tmp_path / "a.wav", 11, (1, 2))
    truth = tmp_path / "true.tsv"
    truth.write_text("filename\tonset\toffset\tevent_label\na.wav\t1.0\t2.0\tDog\nother.wav\t0.0\t1.0\tCat\n")
    out = tmp_path / "out"
    run(tiny_model(tmp_path / "model.pt"), path, "--out", out, "--plot", "--attention", "--reference", truth)
    made = sorted(path.name for path in out.iterdir())
    drawn = ["a.wav.attention.npy", "a.wav.attention.png", "a.wav.png"]
    assert made == [*drawn, "a.wav.tsv", "predictions.tsv", "settings.json"]
    assert (out / "a.wav.png").read_bytes()[:4] == (out / "a.wav.attention.png").read_bytes()[:4] == b"\x89PNG"
    assert np.load(out / "a.wav.attention.npy").shape == (3, 1, 3, 65, 64)


def test_without_matplotlib_the_command_stops_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as stop:
        run(tiny_model(tmp_path / "model.pt"), "a.wav", "--out", tmp_path / "out", "--attention")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error == "error: a picture needs matplotlib: pip install matplotlib\n"
    assert not (tmp_path / "out").exists()


def bad_input(tmp_path):
    """name -> arguments and what the error says"""
    good, wav = tiny_model(tmp_path / "m/model.pt"), noise_at(tmp_path / "a.wav", 2, (0, 1))
    torch.save({"student": {}, "teacher": {}}, tmp_path / "checkpoint.pt")
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    (tmp_path / "garbage.pt").write_bytes(b"garbage")
    tiny_model(tmp_path / "narrow.pt", weights=MultiEncoder(3, {"openl3": 6}).state_dict())
    (tmp_path / "broken.wav").write_bytes(b"RIFF and nothing else")
    ones, weights = torch.ones(64), torch.load(good, weights_only=True)["weights"]
    broken = {
        "one mean": dict(mel_statistics=[torch.ones(1), torch.ones(1)]),
        "deviation": dict(mel_statistics=[ones, 0 * ones]),
        "doubles": dict(mel_statistics=[ones.double(), ones.double()]),
        "classes": dict(classes=["Cat", 3]),
        "forged row": dict(classes=["Cat\na.wav\t0\t1\tDog", "Dog"]),
        "tab": dict(classes=["Cat\tDog", "Dog"]),
        "one threshold": dict(tuned={"EBF1": {"threshold": [0.5], "window": [3, 5]}}),
        "even window": dict(tuned={"EBF1": {"threshold": [0.5, 0.5], "window": [3, 4]}}),
        "silent": dict(infer_weight=0.0),
        "nan": dict(weights={**weights, "token": weights["token"] * math.nan}),
    }
    broken = {name: tiny_model(tmp_path / f"{name}.pt", **changes) for name, changes in broken.items()}
    write_wav(tmp_path / "empty.wav", np.zeros(0))
    write_wav(tmp_path / "nan.wav", np.full(100, np.nan), subtype="FLOAT")
    for name, array in (("shape", np.zeros((63, 6))), ("wide", np.zeros((64, 7))), ("good", np.zeros((64, 6)))):
        np.save(tmp_path / f"{name}.npy", array.astype(np.float32))
    np.save(tmp_path / "type.npy", np.zeros((64, 6), np.int16))
    mute = tiny_model(tmp_path / "audio.pt", streams=())
    drawn = ["--out", tmp_path / "out", "--plot", "--reference", tmp_path / "no.tsv"]
    return {
        "absent model": ([tmp_path / "no.pt", wav], "no.pt: no such file; name the model.pt"),
        "a run for its model": ([tmp_path / "m", wav], "m: is a folder; name the model.pt in it"),
        "unfinished run": ([tmp_path / "checkpoint.pt", wav], "is of an unfinished run"),
        "foreign": ([tmp_path / "foreign.pt", wav], "foreign.pt: not the model.pt of a finished run"),
        "tensor": ([tmp_path / "tensor.pt", wav], "tensor.pt: not the model.pt of a finished run"),
        "garbage": ([tmp_path / "garbage.pt", wav], "garbage.pt: not a checkpoint of this program"),
        "architecture": ([tmp_path / "narrow.pt", wav], "narrow.pt: not the model.pt of a finished run"),
        **{name: ([path, wav], f"{name}.pt: not the model.pt of a finished run") for name, path in broken.items()},
        "a file as folder": ([good, wav, "--out", wav], "a.wav: is a file where a folder is wanted"),
        "no text": ([good, "a\udcff.wav"], "would break the table"),
        "absent file": ([good, tmp_path / "no.wav"], "no.wav: no such file"),
        "broken": ([good, tmp_path / "broken.wav"], "broken.wav: cannot be decoded"),
        "empty": ([good, tmp_path / "empty.wav"], "empty.wav: holds no audio"),
        "nan": ([good, tmp_path / "nan.wav"], "nan.wav: holds samples that are not finite"),
        "same name": ([good, wav, tmp_path / "m/a.wav"], "a.wav: two files of this name"),
        "line break": ([good, "a\nb.wav"], "would break the table"),
        "a run's folder": ([good, wav, "--out", tmp_path / "m"], "m: holds a run"),
        "shape": ([good, wav, "--visual-file", tmp_path / "shape.npy"], r"shape.npy: has the shape \(63, 6\)"),
        "width": ([good, wav, "--visual-file", tmp_path / "wide.npy"], "openl3 vectors are 7 wide, but .* from 6"),
        "type": ([good, wav, "--visual-file", tmp_path / "type.npy"], "type.npy: must be an array of float16"),
        "absent vectors": ([good, wav, "--visual-file", tmp_path / "no.npy"], "no.npy: no such file or folder; "),
        "count": ([good, wav, "--visual-file", *[tmp_path / "good.npy"] * 2], "2 files, but .* streams: openl3"),
        "no streams": ([mute, wav, "--visual-file", tmp_path / "good.npy"], "1 files, but .* it only hears"),
        "weights": ([good, wav, "--weights", tmp_path / "no.pt"], "no.pt: No such file"),
        "reference": ([good, wav, *drawn], "no.tsv: no such file"),
        "device": ([good, wav, "--device", "tpu"], "--device tpu: not available here"),
    }


def test_control_characters_in_names_are_shown_escaped(tmp_path, capsys):
    path = noise_at(tmp_path / "a\x1b[2J.wav", 2, (0, 1))
    run(tiny_model(tmp_path / "model.pt", classes=["Cat\x1b[31m", "Dog"]), path, "--out", tmp_path / "out")
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and r"a\u001b[2J.wav: 0:02 of sound" in err
    rows = [line.split("\t") for line in out.splitlines()[1:]]
    assert {name for name, *_ in rows} == {r"a\u001b[2J.wav"} and {row[3] for row in rows} == {r"Cat\u001b[31m", "Dog"}
    kept = (tmp_path / "out/predictions.tsv").read_text()  # as they are: so other tables name them
    assert out == kept.replace("\x1b", r"\u001b") != kept


def test_many_names_are_told_apart_at_once(monkeypatch):
    compared = 0

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    names = [Name(i) for i in range(3000)]
    predict.check_names(names, None)
    with pytest.raises(plumbing.InputError, match="7: two files of this name"):
        predict.check_names([*names, Name(7)], None)
    assert compared < 10 * len(names)  # a hash may be that of another name, rarely


def test_bad_input_gets_one_line(tmp_path, capsys):
    for name, (arguments, message) in bad_input(tmp_path).items():
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("model  ")]
        assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (name, lines)
        assert re.search(message, lines[0]), (name, lines)
    assert not (tmp_path / "out").exists() and not (tmp_path / "m/predictions.tsv").exists()


@pytest.mark.parametrize(
    "flags, message",
    (
        (["m.pt"], "required: FILE"),
        (["m.pt", "a.wav", "--scores"], "name a folder with --out"),
        (["m.pt", "a.wav", "--scores", __file__], "wants a folder of its own"),
        (["m.pt", "a.wav", "--out", "d", "--scores", "d"], "wants a folder of its own"),
        (["m.pt", "a.wav", "--page"], "name a folder with --out"),
        (["m.pt", "a.wav", "--threshold", "1.5"], "'1.5': must be a number from 0 to 1"),
        (["m.pt", "a.wav", "--min-score", "nan"], "'nan': must be a number from 0 to 1"),
        (["m.pt", "a.wav", "--format", "xml"], "invalid choice: 'xml'"),
        (["m.pt", "a.wav", "--reference", "t.tsv"], "--reference is drawn by --page and --plot"),
        (["m.pt", "a.wav", "b.wav", "--visual-file", "v.npy"], "name one FILE"),
        (["m.pt", "a.wav", "--weights", "w.pt", "--visual-file", "v.npy"], "exclude each other"),
    ),
)
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2 and message in capsys.readouterr().err
