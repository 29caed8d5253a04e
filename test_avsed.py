"""Tests: hand-computed answers, known numbers, brute force, invariants. pytest; under two minutes on two cores."""

import copy
import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import soundfile
import torch
from torch import nn

import avsed
import features
import metrics
import train
from avsed import MultiEncoder
from metrics import PSDS1, PSDS2

HERE = Path(__file__).resolve().parent
DIMS = {"openl3": 512, "tce": 2048, "vgg16": 4096}


# --- avsed.py --------------------------------------------------------------------------------------------------------


def tri_encoder(base, seed=0):
    torch.manual_seed(seed)
    return MultiEncoder(10, {"openl3": 512, "tce": 2048}, base).eval()


def clips(n, seed=1):
    g = torch.Generator().manual_seed(seed)
    visual = {"openl3": torch.randn(n, 64, 512, generator=g), "tce": torch.randn(n, 64, 2048, generator=g)}
    return torch.randn(n, 512, 64, generator=g), visual


def every(visual, value):
    return {name: torch.full((len(v),), value) for name, v in visual.items()}


both_bases = pytest.mark.parametrize("base", ["transformer", "conformer"])


@pytest.mark.parametrize(
    "streams, transformer, conformer",
    [
        ([], 3134570, 4666730),
        (["openl3"], 4792682, 7165802),
        (["tce"], 4989290, 7362410),
        (["vgg16"], 5251434, 7624554),
        (["openl3", "tce"], 6647402, 9861482),
    ],
)
def test_parameter_counts(streams, transformer, conformer):
    for base, count in (("transformer", transformer), ("conformer", conformer)):
        model = MultiEncoder(10, {s: DIMS[s] for s in streams}, base)
        assert sum(p.numel() for p in model.parameters()) == count


def test_parts_have_the_sizes_that_the_paper_implies():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(avsed.conv_net()) == 541152
    assert count(avsed.Attention()) == 197888 and count(avsed.Attention(relative=True)) == 247808
    assert count(avsed.feed_forward(nn.ReLU())) == 131968 and count(avsed.ConvModule()) == 51072
    assert [count(avsed.TransformerBlock(n)) for n in range(4)] == [330112, 528256, 726144, 924032]
    assert [count(avsed.ConformerBlock(n)) for n in range(4)] == [563328, 811392, 1059200, 1307008]


def test_front_end_is_table_3():
    net, x, seen = avsed.conv_net().eval(), torch.randn(2, 1, 512, 64), []
    for stack in net:
        assert [type(layer) for layer in stack] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, avsed.Dropout, nn.AvgPool2d]
        assert stack[0].kernel_size == (3, 3) and stack[0].stride == (1, 1) and stack[3].p == 0.1
        x = stack(x)
        seen.append(tuple(x.shape[1:]))
    assert seen == [(16, 256, 32), (32, 128, 16), (64, 64, 8), (128, 64, 4), (128, 64, 2), (128, 64, 1), (128, 64, 1)]


def test_front_end_stack_by_hand():
    conv, norm, *_ = stack = avsed.conv_stack(1, 16, (2, 2)).eval()
    x = torch.randn(1, 1, 512, 64)
    with torch.no_grad():
        (
            norm.running_mean.uniform_(-1, 1),
            norm.running_var.uniform_(0.5, 2),
            norm.weight.uniform_(0.5, 2),
            norm.bias.uniform_(-1, 1),
        )
        values = []
        for i, j in ((4, 6), (4, 7), (5, 6), (5, 7)):  # the four places that output (2, 3) is the mean of
            convolved = (x[0, 0, i - 1 : i + 2, j - 1 : j + 2] * conv.weight[5, 0]).sum() + conv.bias[5]
            scaled = (convolved - norm.running_mean[5]) / (norm.running_var[5] + 1e-5).sqrt() * norm.weight[
                5
            ] + norm.bias[5]
            values.append(max(scaled.item(), 0))
        assert abs(stack(x)[0, 5, 2, 3].item() - np.mean(values)) < 1e-5


def test_batch_norm_momentum_keeps_nine_tenths():
    norm = avsed.conv_stack(1, 16, (2, 2))[1]
    norm(torch.full((2, 16, 4, 4), 3.0))
    assert torch.allclose(norm.running_mean, torch.full((16,), 0.3))
    assert avsed.ConvModule().batch_norm.momentum == 0.1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dropout_rate_scale_and_gradient(memory_format):
    torch.manual_seed(0)
    x = torch.ones(8, 5, 100, 101).contiguous(memory_format=memory_format).requires_grad_()
    y = avsed.Dropout(0.1)(x)
    kept = y != 0
    assert abs(kept.float().mean().item() - 0.9) < 0.002  # 404,000 draws: standard deviation 0.0005
    assert torch.allclose(y[kept], torch.tensor(1 / 0.9), rtol=1e-4)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    rows = kept.float().mean((1, 2, 3))
    assert (rows - 0.9).abs().max() < 0.01 and not torch.equal(kept[0], kept[1])
    assert torch.equal(avsed.Dropout(0.1).eval()(x), x)
    expanded = avsed.Dropout(0.1)(torch.ones(1, 50).expand(40, 50))  # not dense in memory
    assert not torch.equal(expanded[0], expanded[1]) and avsed.Dropout(0.1)(torch.ones(4, 8)[:, ::2]).shape == (4, 4)


def test_attention_is_equation_1():
    torch.manual_seed(0)
    attention = avsed.Attention().eval()
    query, memory = torch.randn(2, 5, 128), torch.randn(2, 7, 128)
    heads = []
    for h in range(3):
        here = slice(128 * h, 128 * h + 128)
        q = query @ attention.query.weight[here].T + attention.query.bias[here]
        k = memory @ attention.key.weight[here].T + attention.key.bias[here]
        v = memory @ attention.value.weight[here].T + attention.value.bias[here]
        weights = torch.exp(torch.einsum("bqd,bmd->bqm", q, k) / 128**0.5)
        heads.append(weights / weights.sum(-1, keepdim=True) @ v)
    by_hand = torch.cat(heads, -1) @ attention.output.weight.T + attention.output.bias
    assert torch.allclose(attention(query, memory), by_hand, atol=1e-5)


@pytest.mark.parametrize("relative", [False, True])
def test_dropout_acts_on_attention_weights_and_outputs(relative):
    attention, seen = avsed.Attention(relative), []
    attention.dropout.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    attention(torch.randn(2, 5, 128), torch.randn(2, 7, 128))
    (weights, dropped), (output, _) = seen
    assert weights.shape == (2, 3, 5, 7) and output.shape == (2, 5, 128) and attention.dropout.p == 0.1
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 5)) and not torch.allclose(
        dropped.sum(-1), torch.ones(2, 3, 5)
    )


def test_relative_rows():
    rows = avsed.relative_rows(65, 65)
    assert (rows[64] == 127).all() and (rows[:, 64] == 127).all()
    assert rows[0, 0] == 63 and rows[63, 0] == 126 and rows[0, 63] == 0
    for d in range(-63, 64):
        assert (torch.diagonal(rows[:64, :64], -d) == d + 63).all()


def test_relative_attention_by_hand():
    torch.manual_seed(0)
    attention = avsed.Attention(relative=True).eval()
    with torch.no_grad():
        attention.content_bias.normal_(), attention.position_bias.normal_(), attention.distances.normal_()
    x, memory = torch.randn(1, 65, 128), torch.randn(1, 64, 128)
    rows, heads = avsed.relative_rows(65, 64), []
    for h in range(3):
        here = slice(128 * h, 128 * h + 128)
        q = (x @ attention.query.weight[here].T + attention.query.bias[here])[0]
        k = (memory @ attention.key.weight[here].T + attention.key.bias[here])[0]
        v = (memory @ attention.value.weight[here].T + attention.value.bias[here])[0]
        scores = torch.empty(65, 64)
        for i in range(65):
            for j in range(64):
                scores[i, j] = (q[i] + attention.content_bias[h, 0]) @ k[j] + (
                    q[i] + attention.position_bias[h, 0]
                ) @ attention.distances[h, rows[i, j]]
        heads.append((scores / 128**0.5).softmax(-1) @ v)
    by_hand = torch.cat(heads, -1) @ attention.output.weight.T + attention.output.bias
    assert torch.allclose(attention(x, memory)[0], by_hand, atol=1e-4)


def test_convolution_module_spans_seven_frames():
    module = avsed.ConvModule().eval()
    x = torch.randn(1, 64, 128)
    changed = x.clone()
    changed[0, 30] = torch.randn(128)
    touched = (module(x) - module(changed)).abs().amax(-1)[0] > 1e-7
    assert touched.nonzero().flatten().tolist() == list(range(27, 34))


def test_feed_forward_halves_in_the_conformer():
    block, x = avsed.ConformerBlock().eval(), torch.randn(2, 64, 128)
    with torch.no_grad():
        for layer in (block.attention.output, block.convolution.pointwise_out, block.feed_forward_out[4]):
            layer.weight.zero_(), layer.bias.zero_()
    assert torch.allclose(block(x), block.norm(x + 0.5 * block.feed_forward_in(x)), atol=1e-6)


def test_pre_norm_transformer_block_without_output_maps_is_the_identity():
    block, x = avsed.TransformerBlock(2).eval(), torch.randn(2, 65, 128)
    with torch.no_grad():
        for layer in (block.attention.output, block.feed_forward[4], *(c.output for c in block.cross.copies)):
            layer.weight.zero_(), layer.bias.zero_()
    rows = torch.arange(2)
    assert torch.equal(block(x, [(rows, torch.randn(2, 64, 128))] * 2, torch.full((2, 2), 0.5)), x)


@pytest.mark.parametrize(
    "audio_weight, present, weights",
    [
        (0.75, [1, 1], [0.75, 0.125, 0.125]),
        (0.75, [1, 0], [6 / 7, 1 / 7, 0]),
        (0.75, [0, 1], [6 / 7, 0, 1 / 7]),
        (0.75, [0, 0], [1, 0, 0]),
        (0.5, [1, 0], [2 / 3, 1 / 3, 0]),
        (1.0, [1, 1], [1, 0, 0]),
        (0.25, [], [1]),
    ],
)
def test_interpolation_weights(audio_weight, present, weights):
    got = avsed.interpolation_weights(audio_weight, torch.tensor([present, present]).bool())
    assert torch.allclose(got, torch.tensor([weights, weights]).float(), atol=1e-7)


def test_acoustic_weight_of_zero_is_refused():
    with pytest.raises(AssertionError):
        avsed.interpolation_weights(0.0, torch.ones(1, 1).bool())


@both_bases
def test_absent_rows_are_never_looked_at(base):
    model, (x, visual) = tri_encoder(base).train(), clips(4)
    present = {"openl3": torch.tensor([1, 0, 1, 0]).bool(), "tce": torch.tensor([1, 1, 0, 0]).bool()}
    results = []
    for filler in (0.0, float("nan"), 1e30):
        filled = {s: torch.where(present[s][:, None, None], v, filler) for s, v in visual.items()}
        copied = copy.deepcopy(model)
        torch.manual_seed(5)
        frame, clip = copied(x, filled, present, 0.75)
        (frame.square().mean() + clip.square().mean()).backward()
        results.append([frame, clip, *(p.grad for p in copied.parameters()), *copied.buffers()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    assert all(torch.isfinite(t).all() for t in results[0])


@both_bases
def test_a_clip_in_a_mixed_batch_equals_the_clip_alone(base):
    model, (x, visual) = tri_encoder(base), clips(4)
    present = {"openl3": torch.tensor([1, 0, 1, 0]).bool(), "tce": torch.tensor([1, 1, 0, 0]).bool()}
    with torch.no_grad():
        frame, clip = model(x, visual, present, 0.75)
        for i in range(4):
            one = slice(i, i + 1)
            alone = model(x[one], {s: v[one] for s, v in visual.items()}, {s: v[one] for s, v in present.items()}, 0.75)
            assert torch.allclose(alone[0], frame[one], atol=1e-5) and torch.allclose(alone[1], clip[one], atol=1e-5)
        ignored = model(x, visual, every(visual, True), 1.0)
        without = model(x, visual, every(visual, False), 0.75)
        assert torch.equal(ignored[0], without[0]) and torch.equal(ignored[1], without[1])
        assert torch.allclose(without[0][3], frame[3], atol=1e-5)


@both_bases
def test_swapping_the_visual_streams_changes_nothing(base):
    model, (x, visual) = tri_encoder(base), clips(2)
    swapped = MultiEncoder(10, {"tce": 2048, "openl3": 512}, base).eval()
    state = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"(visual_\w+)\.(\d)", lambda m: f"{m[1]}.{1 - int(m[2])}", name)
        state[re.sub(r"copies\.([12])", lambda m: f"copies.{3 - int(m[1])}", name)] = value
    swapped.load_state_dict(state)
    with torch.no_grad():
        a, b = model(x, visual, every(visual, True), 0.5), swapped(x, visual, every(visual, True), 0.5)
    assert torch.allclose(a[0], b[0], atol=1e-5) and torch.allclose(a[1], b[1], atol=1e-5)


def test_cross_attention_is_a_convex_sum_of_its_copies():
    cross, x = avsed.CrossAttention(2).eval(), torch.randn(3, 65, 128)
    memories = [torch.randn(3, 64, 128), torch.randn(2, 64, 128)]
    rows = torch.tensor([0, 2])
    weights = torch.tensor([[0.75, 0.25], [1.0, 0.0], [0.5, 0.5]])
    y = cross.norm(x)
    audio, video = cross.copies[0](y, memories[0]), cross.copies[1](y[rows], memories[1])
    by_hand = torch.stack([0.75 * audio[0] + 0.25 * video[0], audio[1], 0.5 * audio[2] + 0.5 * video[1]])
    got = cross(x, [(torch.arange(3), memories[0]), (rows, memories[1])], weights)
    assert torch.allclose(got, by_hand, atol=1e-6)


@both_bases
def test_no_causal_mask_and_the_clip_has_an_output_of_its_own(base):
    model, (x, visual) = tri_encoder(base), clips(1)
    later = x.clone()
    later[:, 504:] += 1
    with torch.no_grad():
        a, b = (model(v, visual, every(visual, False), 1.0) for v in (x, later))
        assert (a[0][0, 0] - b[0][0, 0]).abs().max() > 1e-7  # the last frames are heard in the first output
        token = model.token.clone()
        model.token.normal_()
        c = model(x, visual, every(visual, False), 1.0)
        model.token.copy_(token)
        assert (a[1] - c[1]).abs().max() > 1e-4 and a[0].shape == (1, 64, 10) and a[1].shape == (1, 10)
        hook = model.decoder.register_forward_hook(
            lambda module, inputs, output: output * (torch.arange(65) == 64)[:, None]
        )
        d = model(x, visual, every(visual, False), 1.0)
        hook.remove()
    assert torch.equal(d[1], a[1]) and not torch.equal(d[0], a[0])  # the token alone decides about the clip


def test_encoders_and_copies_share_nothing_and_the_front_end_runs_once():
    model, (x, visual) = tri_encoder("transformer"), clips(1)
    runs = []
    model.cnn.register_forward_hook(lambda *_: runs.append(1))
    model.decoder.register_forward_hook(lambda module, inputs, output: runs.append(tuple(output.shape)))
    with torch.no_grad():
        model(x, visual, every(visual, True), 0.5)
    assert runs == [1, (1, 65, 128)]
    addresses = [p.data_ptr() for p in model.parameters()]
    assert len(set(addresses)) == len(addresses)
    assert [len(block.cross.copies) for block in model.decoder.blocks] == [3, 3, 3]
    assert len(model.audio_encoder.blocks) == 3 and all(block.cross is None for block in model.audio_encoder.blocks)


def test_only_the_transformer_has_absolute_positions():
    assert {n for n, _ in tri_encoder("transformer").named_parameters() if "positions" in n} == {
        "audio_encoder.positions",
        "visual_encoders.0.positions",
        "visual_encoders.1.positions",
        "decoder.positions",
    }
    assert not [n for n, _ in tri_encoder("conformer").named_parameters() if "positions" in n]
    encoder, x = tri_encoder("transformer").audio_encoder, torch.randn(1, 64, 128)
    order = torch.randperm(64)
    with torch.no_grad():
        assert not torch.allclose(encoder(x[:, order]), encoder(x)[:, order], atol=1e-4)
        encoder.positions.zero_()
        assert torch.allclose(encoder(x[:, order]), encoder(x)[:, order], atol=1e-5)


# --- features.py: audio ----------------------------------------------------------------------------------------------


def reference_signal():
    """The signal of the reference numbers below: a chirp, a gated tone, noise from a linear congruential generator"""
    n = np.arange(160000)
    t, state, u = n / 16000, 12345, np.empty(160000)
    for i in n:
        state = (1103515245 * state + 12345) % 2**31
        u[i] = state / 2**30 - 1
    x = (
        0.5 * np.sin(2 * np.pi * (50 * t + 375 * t**2))
        + 0.3 * np.sin(2 * np.pi * 1000 * t) * (n // 8000 % 2)
        + 0.01 * u
    )
    return x / np.abs(x).max()


def test_log_mel_equals_librosa():
    x = reference_signal()
    assert abs(x.sum() - 31.274302075) < 1e-6  # the signal itself is the one that librosa 0.11.0 was given
    got = features.log_mel(x).numpy()
    assert got.shape == (512, 64) and got.dtype == np.float32
    table = {
        0: [5.513101, 5.445673, -0.858994, 0.660233, 1.641205],
        5: [1.903347, 0.979007, -0.927511, 0.818229, 1.647849],
        20: [-1.055894, -0.929203, 4.475062, 4.609777, 4.857333],
        40: [-0.037216, 0.074822, -0.176177, 0.541369, 1.219102],
        63: [0.948212, 1.270566, 1.046889, 1.047667, 6.371857],
    }
    for mel_bin, values in table.items():
        assert np.abs(got[[0, 1, 100, 255, 511], mel_bin] - values).max() < 1e-4
    assert abs(got.mean() - 0.224039) < 1e-5 and abs(got.std() - 1.346817) < 1e-5


def test_filterbank_numbers():
    bank = features.mel_filterbank()
    assert bank.shape == (64, 513) and abs(bank.sum() - 498.545746) < 1e-4
    rows = {0: 2.969666, 1: 2.969667, 10: 2.969667, 20: 3.000631, 40: 7.768604, 63: 23.368126}
    assert all(abs(bank[i].sum() - value) < 1e-5 for i, value in rows.items())
    assert np.allclose(bank[0, :4], [0, 0.336703718, 0.673407435, 0.989888847], atol=1e-8)


def test_log_mel_of_silence_and_of_batches():
    silence = features.log_mel(np.zeros((2, 3, 160000), np.float32))
    assert silence.shape == (2, 3, 512, 64) and torch.allclose(silence, torch.tensor(1e-5).log())


def write_wav(path, samples, rate=16000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kwargs)


def test_load_audio(tmp_path):
    t = np.arange(441000) / 44100
    tone = 0.25 * np.sin(2 * np.pi * 440 * t)
    write_wav(tmp_path / "stereo.wav", np.stack([tone, 0.5 * tone], 1), 44100)
    x = features.load_audio(tmp_path / "stereo.wav")
    assert x.shape == (160000,) and x.dtype == np.float32 and abs(np.abs(x).max() - 1) < 1e-6
    assert np.abs(np.fft.rfft(x)).argmax() == 4400
    write_wav(tmp_path / "16k.wav", 0.1 * np.sin(2 * np.pi * 440 * np.arange(160000) / 16000), subtype="FLOAT")
    a, b = features.log_mel(x), features.log_mel(features.load_audio(tmp_path / "16k.wav"))
    assert (a - b)[4:-4, 2:8].abs().max() < 0.05  # the same sound at another rate, loudness and number of channels
    write_wav(tmp_path / "short.wav", tone[:44100], 44100)
    x = features.load_audio(tmp_path / "short.wav")
    assert x.shape == (160000,) and not x[16100:].any() and abs(np.abs(x).max() - 1) < 1e-6
    write_wav(tmp_path / "silent.wav", np.zeros(160000))
    assert not features.load_audio(tmp_path / "silent.wav").any()
    write_wav(tmp_path / "long.wav", np.tile(tone, 2)[:485100], 44100)
    assert features.load_audio(tmp_path / "long.wav").shape == (160000,)
    quiet = np.round(3000 * np.sin(np.arange(160000) / 7)) / 32768
    for name, gain in (("loud.wav", 1), ("quiet.wav", 0.01)):
        write_wav(tmp_path / name, gain * quiet, subtype="DOUBLE")
    a, b = (features.log_mel(features.load_audio(tmp_path / name)) for name in ("loud.wav", "quiet.wav"))
    assert torch.allclose(a, b, atol=1e-3)


# --- features.py: the data set ---------------------------------------------------------------------------------------

STRONG_HEADER, WEAK_HEADER = "filename\tonset\toffset\tevent_label", "filename\tevent_labels"


def tiny_rows():
    """Rows of a data set with two classes, with the oddities of the real lists"""
    return {
        "strong": [f"{i:02d}.wav\t0.{i}00\t1.500\t{'Dog' if i % 2 else 'Cat'}" for i in range(4)]
        + ["00.wav\t0.200\t0.210\tDog"],
        "weak": [
            "Yaaaaaaaaaaa_0.000_10.000.wav\tDog,Cat,Dog",
            "Ybbb_bb-bbb__0.000_4.000.wav\tCat",
            "w2.wav\tDog",
            "w3.wav\tCat",
        ],
        "unlabelled": [f"u{i}.wav" for i in range(5)] + ["YWP8aI1IXNCQ_0.000_5.000.wav", "gone.wav"],
        "validation": [
            "v0.wav\t0.500\t1.200\tDog",
            "v1.wav\t\t\t",
            "v2.wav\t1.000\t10.115\tCat",
            "v2.wav\t0.100\t0.900\tCat",
            "v2.wav\t0.100\t0.500\tCat",
            "v3.wav",
        ],
        "public": ["-x.wav\t0.000\t2.000\tDog", "p1.wav\t0.300\t1.000\tCat", "WP8aI1IXNCQ_0_5.wav\t0.100\t1.000\tDog"],
    }


def write_tiny(root, rows=None, streams=("openl3",), seed=0):
    """A complete data set of two-second clips in the folder root; `gone` has no audio, most others have video"""
    rows = rows or tiny_rows()
    rng = np.random.default_rng(seed)
    for name, (table, folder) in features.PARTITIONS.items():
        header = {"weak": WEAK_HEADER, "unlabelled": "filename"}.get(name, STRONG_HEADER)
        (root / "metadata" / table).parent.mkdir(parents=True, exist_ok=True)
        (root / "metadata" / table).write_text("\n".join([header, *rows[name]]) + "\n")
        for clip in dict.fromkeys(row.split("\t")[0] for row in rows[name]):
            if clip == "gone.wav" or "/" in clip:
                continue
            write_wav(root / "audio" / folder / clip, 0.1 * rng.standard_normal(32000))
            for width, stream in zip((6, 5), streams):
                if name != "strong" and clip not in ("u0.wav", "v1.wav"):
                    path = root / "visual" / stream / f"{Path(clip).stem}.npy"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, rng.standard_normal((64, width)).astype(np.float16))
    return root


def quiet(line):
    pass


def test_reading_a_data_set(tmp_path):
    lines = []
    data = features.load_dataset(write_tiny(tmp_path), ["openl3"], log=lines.append)
    assert data.classes == ["Cat", "Dog"]
    counts = {name: (part.listed, len(part)) for name, part in data.partitions.items()}
    assert counts == {"strong": (4, 4), "weak": (4, 4), "unlabelled": (7, 5), "validation": (4, 4), "public": (3, 3)}
    text = "\n".join(lines)
    assert re.search(r"unlabelled +7 listed, +6 found, +5 with openl3", text) and re.search(
        r"unlabelled +1 left out", text
    )
    assert "YWP8aI1IXNCQ_0.000_5.000.wav" not in data.partitions["unlabelled"].filenames
    weak = data.partitions["weak"]
    assert weak.tags.tolist() == [[True, True], [True, False], [False, True], [True, False]]
    assert not data.partitions["strong"].present["openl3"].any()
    assert data.partitions["validation"].present["openl3"].tolist() == [True, False, True, True]
    assert data.partitions["unlabelled"].present["openl3"].tolist() == [False, True, True, True, True]
    assert data.partitions["unlabelled"].tags is None and data.partitions["validation"].filenames == [
        "v0.wav",
        "v1.wav",
        "v2.wav",
        "v3.wav",
    ]
    assert data.partitions["validation"].tags.tolist() == [[False, True], [False, False], [True, False], [False, False]]
    assert np.allclose(data.partitions["public"].durations, 2.0)
    part = data.partitions["validation"]
    assert np.array_equal(part.log_mel[0], features.log_mel(features.load_audio(part.folder / "v0.wav")).numpy())
    assert np.array_equal(part.visual["openl3"][2], np.load(tmp_path / "visual/openl3/v2.npy"))


def test_frame_targets():
    events = [
        ("a", 0.0, 0.1565, "x"),
        ("a", 0.16, 0.17, "y"),
        ("a", 0.5, 1.0, "x"),
        ("b", 9.9, 10.115, "y"),
        ("b", 9.95, 9.96, "x"),
    ]
    targets = features.frame_targets(["a", "b"], events, ["x", "y"])
    assert targets.shape == (2, 64, 2)
    assert np.flatnonzero(targets[0, :, 0]).tolist() == [0, 3, 4, 5, 6] and np.flatnonzero(
        targets[0, :, 1]
    ).tolist() == [1]
    assert np.flatnonzero(targets[1, :, 1]).tolist() == [63] and np.flatnonzero(targets[1, :, 0]).tolist() == [63]


def test_statistics_are_those_of_the_training_clips(tmp_path):
    data = features.load_dataset(write_tiny(tmp_path), ["openl3"], log=quiet)
    parts = [data.partitions[name] for name in features.TRAINING]
    frames = np.concatenate([p.log_mel[:, : 1 + 32000 // 313].reshape(-1, 64) for p in parts]).astype(np.float64)
    assert np.allclose(data.mel_statistics[0], frames.mean(0), atol=1e-5)
    assert np.allclose(data.mel_statistics[1], frames.std(0), atol=1e-5)
    vectors = np.concatenate([p.visual["openl3"][p.present["openl3"]].reshape(-1, 6) for p in parts]).astype(np.float64)
    assert np.allclose(data.visual_statistics["openl3"][0], vectors.mean(0), atol=1e-5)
    assert np.allclose(data.visual_statistics["openl3"][1], vectors.std(0), atol=1e-5)
    for stem in ("v0", "p1"):  # other test clips: the same statistics
        np.save(tmp_path / f"visual/openl3/{stem}.npy", np.full((64, 6), 100, np.float16))
    again = features.load_dataset(tmp_path, ["openl3"], log=quiet)
    before = [*data.mel_statistics, *data.visual_statistics["openl3"]]
    after = [*again.mel_statistics, *again.visual_statistics["openl3"]]
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    constant, _ = features.mean_and_std([np.ones((1, 3, 2))], [np.ones((1, 3), bool)])
    assert constant.tolist() == [1, 1] and np.allclose(_, features.STD_FLOOR)


def test_cache_is_reused_and_rebuilt(tmp_path, monkeypatch):
    root = write_tiny(tmp_path)
    first = features.load_dataset(root, ["openl3"], log=quiet)
    before = first.partitions["weak"].log_mel[2].copy()
    decoded = []
    original = features.read_waveform
    monkeypatch.setattr(features, "read_waveform", lambda path: decoded.append(path.name) or original(path))
    second = features.load_dataset(root, ["openl3"], log=quiet)
    assert decoded == [] and np.array_equal(second.partitions["weak"].log_mel[2], before)
    assert isinstance(second.partitions["weak"].log_mel, np.memmap)
    write_wav(root / "audio/train/weak/w2.wav", np.sin(np.arange(30000) / 5))
    third = features.load_dataset(root, ["openl3"], log=quiet)
    assert len(decoded) == 4 and not np.array_equal(third.partitions["weak"].log_mel[2], before)
    assert len(list((root / "cache/weak-log_mel").iterdir())) == 2


def test_non_finite_vectors_count_as_missing(tmp_path):
    root, lines = write_tiny(tmp_path), []
    vectors = np.zeros((64, 6), np.float16)
    vectors[5, 3] = np.nan
    np.save(root / "visual/openl3/w2.npy", vectors)
    data = features.load_dataset(root, ["openl3"], log=lines.append)
    assert data.partitions["weak"].present["openl3"].tolist() == [True, True, False, True]
    assert any("not finite" in line for line in lines) and all(
        np.isfinite(v).all() for v in data.visual_statistics["openl3"]
    )


def test_odd_but_harmless_folders(tmp_path):
    rows = tiny_rows()
    rows["weak"][0] = rows["weak"][0].replace("Dog,Cat", "Dog, Cat ,")  # spaces and empty labels make no classes
    root = write_tiny(tmp_path, rows)
    (root / "audio/train/weak/w3.wav").unlink()
    (root / "audio/train/weak/w3.wav").symlink_to(root / "nowhere")  # a clip that is gone, not a broken one
    data = features.load_dataset(root, ["openl3"], log=quiet)
    assert data.classes == ["Cat", "Dog"] and len(data.partitions["weak"]) == 3
    (root / "visual/openl3").rename(root / "visual/other")
    renamed = features.load_dataset(root, ["other"], log=quiet)
    assert np.array_equal(renamed.visual_statistics["other"], data.visual_statistics["openl3"])
    assert renamed.identity == data.identity
    for path in (root / "cache/weak-log_mel").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(features.InputError, match="weak-log_mel.*the cache is damaged.*delete the folder"):
        features.load_dataset(root, ["other"], log=quiet)
    for path in (root / "visual/other").iterdir():
        np.save(path, np.full((64, 6), np.inf, np.float16))
    shutil.rmtree(root / "cache")
    with pytest.raises(features.InputError, match="all training clips hold values that are not finite"):
        features.load_dataset(root, ["other"], log=quiet)


def test_toy_data_is_reproducible_and_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "TOY_CLIPS", {name: 20 for name in features.PARTITIONS})

    def files(root):
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        features.make_toy(tmp_path / name, seed)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")
    data = features.load_dataset(tmp_path / "a", ["openl3", "tce"], log=quiet)
    assert len(data.classes) == 10 and all(len(part) == 20 for part in data.partitions.values())
    for name, part in data.partitions.items():
        assert part.present["openl3"].sum() == (0 if name == "strong" else 17)  # 15.5 % of 20 clips are 3
        assert np.array_equal(part.present["openl3"], part.present["tce"])
    marker = tmp_path / "a/toy.json"
    stamp = marker.stat().st_mtime_ns
    features.make_toy(tmp_path / "a", 0)
    assert marker.stat().st_mtime_ns == stamp  # a finished one is left alone


HOP = 8 * 313 / 16000
nan = float("nan")


def same(a, b, tolerance=1e-12):
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance


def events(*rows, file="a", label="A"):
    """(onset, offset[, label[, file]]) -> events."""
    return [(row[3] if len(row) > 3 else file, row[0], row[1], row[2] if len(row) > 2 else label) for row in rows]


# --- metrics.py: oracles: the definitions, one loop for each "for every" ---------------------------------------------


def oracle_f1(n_tp, n_sys, n_ref):
    if n_ref == 0:
        return nan
    if n_tp == 0:
        return 0.0
    precision, recall = n_tp / n_sys, n_tp / n_ref
    return 2 * precision * recall / (precision + recall)


def check_f1(got, counts, classes):
    """counts: label -> (n_tp, n_sys, n_ref), labels outside classes included."""
    per_class = [oracle_f1(*counts[c]) for c in classes]
    real = [f for f in per_class if not math.isnan(f)]
    assert [got.n_tp.tolist(), got.n_fp.tolist(), got.n_fn.tolist()] == [
        [counts[c][0] for c in classes],
        [counts[c][1] - counts[c][0] for c in classes],
        [counts[c][2] - counts[c][0] for c in classes],
    ]
    assert list(got.per_class) == list(classes)
    assert all(same(got.per_class[c], f) for c, f in zip(classes, per_class))
    assert same(got.macro, sum(real) / len(real) if real else nan)
    assert same(got.micro, oracle_f1(*(sum(n) for n in zip(*counts.values()))))


def oracle_matching(ref, est, t_collar=0.2, percentage=0.2):
    """Maximum number of pairs, by augmenting paths."""
    partner = {}

    def augment(r, seen):
        for e, (_, onset, offset, _) in enumerate(est):
            collar = max(t_collar, percentage * (ref[r][2] - ref[r][1]))
            if e not in seen and abs(ref[r][1] - onset) <= t_collar and abs(ref[r][2] - offset) <= collar:
                seen.add(e)
                if e not in partner or augment(partner[e], seen):
                    partner[e] = r
                    return True
        return False

    return sum(augment(r, set()) for r in range(len(ref)))


def oracle_event_counts(reference, estimated, labels):
    counts = {}
    for c in labels:
        n_tp = 0
        for f in {e[0] for e in reference + estimated}:
            n_tp += oracle_matching(
                [e for e in reference if e[0] == f and e[3] == c], [e for e in estimated if e[0] == f and e[3] == c]
            )
        counts[c] = (n_tp, sum(e[3] == c for e in estimated), sum(e[3] == c for e in reference))
    return counts


def oracle_segment_counts(reference, estimated, labels, durations=None, resolution=1.0):
    def cells(table, c):
        found = set()
        for name, onset, offset, label in table:
            if label == c:
                end = math.ceil((durations or {}).get(name, 1e9) / resolution)
                first, stop = math.floor(onset / resolution), math.ceil(offset / resolution)
                found |= {(name, s) for s in range(first, stop) if s < end}
        return found

    return {
        c: (len(cells(reference, c) & cells(estimated, c)), len(cells(estimated, c)), len(cells(reference, c)))
        for c in labels
    }


def oracle_union(table):
    """Overlapping events of one file and class -> their union; identical events stay."""
    result, rest = [], sorted(e for e in table if e[1] < e[2])
    while rest:
        block = [rest.pop(0)]
        grown = True
        while grown:
            more = [e for e in rest if any((e[0], e[3]) == (b[0], b[3]) and e[1] < b[2] and b[1] < e[2] for b in block)]
            rest = [e for e in rest if e not in more]
            block, grown = block + more, bool(more)
        if len(set(block)) > 1:
            block = [(block[0][0], min(e[1] for e in block), max(e[2] for e in block), block[0][3])]
        result += block
    return sorted(result)


def oracle_points(truth, point, durations, classes, dtc, gtc, cttc, alpha_ct, ct_divisor):
    """One operating point -> {class: (eFPR, TPR)} of the classes with ground truth."""
    total = sum(durations.values())
    classes = [c for c in classes if any(e[3] == c for e in truth)]

    def shared(d, r):
        return min(d[2], r[2]) - max(d[1], r[1]) if d[0] == r[0] and d[1] < r[2] and r[1] < d[2] else 0

    def covered(x, others, threshold):
        parts = [shared(x, y) / (x[2] - x[1]) for y in others if shared(x, y) > 0]
        return bool(parts) and sum(parts) >= threshold

    result = {}
    for c in classes:
        refs, dets = [e for e in truth if e[3] == c], [e for e in point if e[3] == c]
        passing = [d for d in dets if covered(d, refs, dtc)]
        failing = [d for d in dets if not covered(d, refs, dtc)]
        tp = sum(covered(r, passing, gtc) for r in refs)
        fp = sum(d[1] < durations.get(d[0], 0) for d in failing)
        ctr = 0
        for k in classes:
            if k != c:
                others = [e for e in truth if e[3] == k]
                ctr += sum(covered(d, others, cttc) for d in failing) * 3600 / sum(e[2] - e[1] for e in others)
        divisor = len(classes) if ct_divisor == "C" else max(len(classes) - 1, 1)
        result[c] = (fp * 3600 / total + alpha_ct * ctr / divisor, tp / len(refs))
    return result


def oracle_roc(
    truth,
    points,
    durations,
    classes,
    *,
    dtc_threshold,
    gtc_threshold,
    cttc_threshold,
    alpha_ct,
    max_efpr,
    ct_divisor="C-1",
    alpha_st=None,
):
    """-> eFPR axis up to max_efpr, one list of TPRs per class."""
    truth = oracle_union([e for e in truth if e[3] in classes])
    with_truth = [c for c in classes if any(e[3] == c for e in truth)]
    rates = [
        oracle_points(
            truth,
            oracle_union(p),
            durations,
            classes,
            dtc_threshold,
            gtc_threshold,
            cttc_threshold,
            alpha_ct,
            ct_divisor,
        )
        for p in points
    ]
    axis = sorted({0.0} | {x for rate in rates for x, _ in rate.values() if x <= max_efpr})
    return axis, {
        c: [max([rate[c][1] for rate in rates if rate[c][0] <= x], default=0) for x in axis] for c in with_truth
    }


def oracle_psds(truth, points, durations, classes, **criteria):
    axis, curves = oracle_roc(truth, points, durations, classes, **criteria)
    if not curves:
        return nan
    area = 0
    for i, x in enumerate(axis):
        values = [curve[i] for curve in curves.values()]
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        end = axis[i + 1] if i + 1 < len(axis) else criteria["max_efpr"]
        area += (end - x) * max(0, mean - criteria["alpha_st"] * std)
    return area / criteria["max_efpr"]


def oracle_median(values, window):
    """The middle one of the sorted window; past the ends the values come back: d c b a | a b c d | d c b a | a b ..."""
    period, half = values + values[::-1], window // 2
    return [sorted(period[i % len(period)] for i in range(t - half, t + half + 1))[half] for t in range(len(values))]


def oracle_decode(scores, filenames, classes, threshold, window, hop, durations=None):
    found = []
    for n, name in enumerate(filenames):
        for c, label in enumerate(classes):
            limit = np.broadcast_to(threshold, len(classes))[c]
            active = [float(s) > float(limit) for s in scores[n, :, c]]
            size = int(np.broadcast_to(window, len(classes))[c])
            active = oracle_median(active, size) + [False]
            seconds, begin = (durations or {}).get(name, 10.0), None
            for t, on in enumerate(active):
                if on and begin is None:
                    begin = t
                if not on and begin is not None:
                    if begin * hop < seconds:
                        found.append((name, begin * hop, min(t * hop, seconds), label))
                    begin = None
    return found


# --- metrics.py: nasty random tables ---------------------------------------------------------------------------------


def nasty_case(seed):
    """Times on a coarse grid: touching, overlapping, duplicate, zero-length events, ties, events past the end."""
    rng = np.random.default_rng(seed)
    step = rng.choice([0.1, 0.2, 0.25, 0.5])
    classes = list("ABCD"[: rng.integers(1, 5)])
    files = [f"f{i}" for i in range(rng.integers(1, 5))]
    durations = {f: float(rng.choice([2.4, 5.0, 10.0])) for f in files if rng.random() < 0.9} or {"f0": 10.0}

    def table(n, jitter=()):
        rows = []
        for _ in range(n):
            if len(jitter) and rng.random() < 0.5:
                name, onset, offset, label = jitter[rng.integers(len(jitter))]
                onset, offset = onset + step * rng.integers(-1, 2), offset + step * rng.integers(-1, 2)
                label = label if rng.random() < 0.8 else str(rng.choice(classes))
            else:
                name, label = str(rng.choice(files + ["only here"])), str(rng.choice(classes + ["Z"] * (seed % 3 == 0)))
                onset = step * rng.integers(0, 21)
                offset = onset + step * rng.integers(0, 7)
            onset = round(max(float(onset), 0.0), 3)
            rows.append((name, onset, max(round(float(offset), 3), onset), label))
        return rows + rows[: rng.integers(0, 2)]

    truth = table(rng.integers(0, 12))
    points = [table(rng.integers(0, 15), truth) for _ in range(rng.integers(1, 5))]
    return truth, points, durations, classes


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_f1_equals_oracle(start):
    for seed in range(start, start + 100):
        truth, points, durations, classes = nasty_case(seed)
        labels = list(dict.fromkeys(classes + [e[3] for e in truth + points[0]]))
        check_f1(
            quietly(metrics.event_f1, truth, points[0], classes), oracle_event_counts(truth, points[0], labels), classes
        )
        for seconds, resolution in ((None, 1.0), (durations, 1.0), (durations, 0.3)):
            check_f1(
                quietly(metrics.segment_f1, truth, points[0], classes, seconds, resolution),
                oracle_segment_counts(truth, points[0], labels, seconds, resolution),
                classes,
            )


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_psds_equals_oracle(start):
    loose = dict(dtc_threshold=0.5, gtc_threshold=0.5, cttc_threshold=0.3, alpha_ct=0.3, alpha_st=0.0, max_efpr=2000.0)
    for seed in range(start, start + 100):
        case = nasty_case(seed)
        wide = PSDS2 | {"max_efpr": 1800.0}
        for criteria in (PSDS1, loose, wide, wide | {"ct_divisor": "C", "alpha_st": 0.5}):
            assert same(quietly(metrics.psds, *case, **criteria), oracle_psds(*case, **criteria)), (seed, criteria)


# --- metrics.py: frame scores ----------------------------------------------------------------------------------------


def toy_scores(seed, N=5, T=24, C=3, values=None, dtype=np.float64):
    """Smooth random scores; with few values there are many ties."""
    rng = np.random.default_rng(seed)
    scores = scipy.ndimage.gaussian_filter1d(rng.normal(size=(N, T, C)), 1 + seed % 3, axis=1)
    scores = (1 / (1 + np.exp(-4 * scores))).astype(dtype)
    scores = np.round(scores * values) / values if values else scores
    files, classes = [f"f{i}" for i in range(N)], list("ABCDEF"[:C])
    truth = oracle_decode(rng.random((N, T, C)) * 0.6 + 0.4 * scores, files, classes, 0.6, 5, HOP)
    durations = {f: float(rng.choice([1.1, 2.0, 10.0])) for f in files}
    return scores, files, truth, durations, classes


def test_median_filter_examples():
    def run(text, window):
        active = np.array([c == "1" for c in text])[None, :, None]
        return "".join("01"[int(x)] for x in metrics.median_filter(active, window).ravel())

    assert run("1001101001", 3) == "1001110001"
    assert run("1001101001", 5) == "0110110010"
    assert run("1001", 31) == "0110" and run("1101", 31) == "1111"
    assert run("1001101001", 1) == "1001101001"


def test_median_filter_equals_oracle_and_scipy():
    rng = np.random.default_rng(0)
    for T in (1, 2, 7, 64):
        active = rng.random((4, T, 3)) < 0.5
        for window in (1, 3, 7, 31, np.array([1, 5, 31])):
            got = metrics.median_filter(active, window)
            assert got.shape == active.shape and got.dtype == bool
            for c, w in enumerate(np.broadcast_to(window, 3)):
                assert got[:, :, c].tolist() == [oracle_median(row, int(w)) for row in active[:, :, c].tolist()]
                if T > 2:  # scipy 1.17 reflects two samples wrongly where the window is much longer
                    want = scipy.ndimage.median_filter(active[:, :, c].astype(int), (1, w))
                    assert np.array_equal(got[:, :, c], want > 0)
    for window in (2, 0, -1, 3.0, [3, 3]):
        with pytest.raises(ValueError):
            metrics.median_filter(active, window)


def test_scores_to_events_equals_naive_loop():
    for seed in range(60):
        scores, files, _, durations, classes = toy_scores(seed, T=1 + seed % 30, values=10 if seed % 2 else None)
        threshold = 0.5 if seed % 3 else np.array([0.2, 0.5, 0.7])
        window = 7 if seed % 4 else np.array([1, 31, 3])
        for seconds in (None, durations):
            got = metrics.scores_to_events(scores, files, classes, threshold, window, HOP, seconds)
            assert got == oracle_decode(scores, files, classes, threshold, window, HOP, seconds)
    assert all(type(x) is t for e in got for x, t in zip(e, (str, float, float, str)))


def test_threshold_is_exclusive_and_float64():
    scores = np.array([[[0.5], [0.1]]])
    assert metrics.scores_to_events(scores, ["a"], ["A"], 0.5, 1, 1.0) == []
    single = scores.astype(np.float32)  # float32(0.1) > 0.1
    assert metrics.scores_to_events(single, ["a"], ["A"], 0.1, 1, 1.0) == [("a", 0.0, 2.0, "A")]
    assert metrics.scores_to_events(scores, ["a"], ["A"], 0.1, 1, 1.0) == [("a", 0.0, 1.0, "A")]


def test_events_end_with_the_clip():
    on = np.ones((1, 64, 1))
    assert metrics.scores_to_events(on, ["a"], ["A"], 0.5, 1, HOP) == [("a", 0.0, 10.0, "A")]
    assert metrics.scores_to_events(on, ["a"], ["A"], 0.5, 1, HOP, {"a": 3.2}) == [("a", 0.0, 3.2, "A")]
    on[:, :60] = 0
    assert metrics.scores_to_events(on, ["a"], ["A"], 0.5, 1, HOP, {"a": 3.2}) == []


def test_psds_from_scores_equals_psds_of_the_events():
    for seed in range(40):
        scores, files, truth, durations, classes = toy_scores(
            seed, C=1 + seed % 4, values=20 if seed % 2 else None, dtype=np.float32 if seed % 3 else np.float64
        )
        window = (1, 5, np.full(len(classes), 3))[seed % 3]
        durations = durations | {"no scores": 5.0}
        truth = truth + events((0.0, 0.5), file="no scores")
        points = [
            metrics.scores_to_events(scores, files, classes, t, window, HOP, durations) for t in metrics.THRESHOLDS_50
        ]
        for criteria in (PSDS1, PSDS2, PSDS2 | {"max_efpr": 3000.0, "ct_divisor": "C"}):
            got = metrics.psds_from_scores(scores, files, truth, durations, classes, HOP, window, **criteria)
            assert same(got, metrics.psds(truth, points, durations, classes, **criteria), 1e-14)
            if seed < 10:
                assert same(got, oracle_psds(truth, points, durations, classes, **criteria))
    few = np.array([0.7, 0.2])
    got = metrics.psds_from_scores(scores, files, truth, durations, classes, HOP, thresholds=few, **PSDS2)
    points = [metrics.scores_to_events(scores, files, classes, t, 1, HOP, durations) for t in few]
    assert same(got, metrics.psds(truth, points, durations, classes, **PSDS2))


def test_exact_psds_equals_every_score_as_threshold():
    for seed in range(12):
        scores, files, truth, durations, classes = toy_scores(seed, values=30 if seed % 2 else None)
        window = 1 if seed % 3 else 3
        thresholds = np.append(-np.inf, np.unique(scores)[:-1])
        points = [metrics.scores_to_events(scores, files, classes, t, window, HOP, durations) for t in thresholds]
        for criteria in (PSDS1 | {"max_efpr": 2000.0}, PSDS2 | {"max_efpr": 2000.0}):
            got = metrics.exact_psds_from_scores(scores, files, truth, durations, classes, HOP, window, **criteria)
            assert same(got, metrics.psds(truth, points, durations, classes, **criteria))


def test_perfect_scores():
    scores, files, _, _, classes = toy_scores(0)
    truth = metrics.scores_to_events(scores, files, classes, 0.5, 1, HOP)
    durations = dict.fromkeys(files, 10.0)
    assert metrics.event_f1(truth, truth, classes)[:2] == metrics.segment_f1(truth, truth, classes)[:2] == (1.0, 1.0)
    for criteria in (PSDS1, PSDS2):
        assert metrics.psds(truth, [truth], durations, classes, **criteria) == 1.0
        assert metrics.psds_from_scores(scores > 0.5, files, truth, durations, classes, HOP, **criteria) == 1.0
        assert metrics.exact_psds_from_scores(scores, files, truth, durations, classes, HOP, **criteria) == 1.0


# --- metrics.py: tuning ----------------------------------------------------------------------------------------------


def best_of(grid):
    """grid: (score, window, k) -> threshold and window; ties as documented."""
    _, window, k = min(grid, key=lambda row: (-row[0], row[1], abs(row[2] - 5), row[2]))
    return k / 10, window


@pytest.mark.parametrize("metric", ["event", "segment"])
def test_tune_equals_brute_force(metric):
    score = metrics.event_f1 if metric == "event" else metrics.segment_f1
    for seed in range(5):
        scores, files, truth, durations, classes = toy_scores(seed, N=4, values=10 if seed % 2 else None)
        truth = [e for e in truth if e[3] != "B" or seed % 2]  # sometimes a class without reference
        grids = {c: [] for c in classes}
        for window in range(1, 32, 2):
            for k in range(1, 10):
                found = metrics.scores_to_events(scores, files, classes, k / 10, window, HOP, durations)
                for c, f in score(truth, found, classes).per_class.items():
                    grids[c].append((0.0 if math.isnan(f) else f, window, k))
        thresholds, windows = metrics.tune(scores, files, truth, durations, classes, HOP, metric)
        assert list(zip(thresholds, windows)) == [best_of(grids[c]) for c in classes]
        assert thresholds.dtype == np.float64 and windows.dtype.kind == "i"


def test_tune_clip_equals_brute_force():
    for seed in range(20):
        scores, files, truth, durations, classes = toy_scores(seed, values=10 if seed % 2 else None)
        scores = scores.max(axis=1)
        truth = truth + events((1, 2), file="not scored")
        tags = np.array([[any(e[0] == f and e[3] == c for e in truth) for c in classes] for f in files])
        want = []
        for c in range(len(classes)):
            f = [metrics.clip_f1(tags, scores > k / 10).per_class[c] for k in range(1, 10)]
            want.append(best_of([(0.0 if math.isnan(x) else x, 1, k) for k, x in enumerate(f, 1)]))
        thresholds, windows = metrics.tune(scores, files, truth, durations, classes, HOP, "clip")
        assert list(zip(thresholds, windows)) == want


@pytest.mark.parametrize("metric, criteria", [("psds1", PSDS1), ("psds2", PSDS2)])
def test_tune_psds_equals_brute_force(metric, criteria, monkeypatch):
    monkeypatch.setitem(criteria, "max_efpr", 1500.0)  # few clips: one false positive is already many per hour
    scores, files, truth, durations, classes = toy_scores(3, N=4, values=20)
    truth = [e for e in truth if e[3] != "C"]
    areas = []
    for window in metrics.TUNING_WINDOWS:
        points = [
            metrics.scores_to_events(scores, files, classes, t, window, HOP, durations) for t in metrics.THRESHOLDS_50
        ]
        axis, curves = oracle_roc(truth, points, durations, classes, **criteria)
        areas.append([np.diff(axis + [1500.0]) @ curves[c] if c in curves else 0 for c in classes])
    thresholds, windows = metrics.tune(scores, files, truth, durations, classes, HOP, metric)
    chosen = [areas[list(metrics.TUNING_WINDOWS).index(w)][c] for c, w in enumerate(windows)]
    assert thresholds is None and np.allclose(chosen, np.max(areas, axis=0), atol=1e-9) and windows[2] == 1
    assert len(set(windows[:2])) > 1 or windows[0] > 1


def test_tune_without_anything_to_tune():
    scores, files, _, durations, classes = toy_scores(0)
    for metric in ("event", "segment"):
        thresholds, windows = metrics.tune(scores, files, [], durations, classes, HOP, metric)
        assert thresholds.tolist() == [0.5] * 3 and windows.tolist() == [1] * 3
    assert metrics.tune(scores, files, [], durations, classes, HOP, "psds1")[1].tolist() == [1] * 3
    assert metrics.tune(scores.max(axis=1), files, [], durations, classes, HOP, "clip")[0].tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="psds2"):
        metrics.tune(scores, files, [], durations, classes, HOP, "psds")


def test_grids():
    assert metrics.THRESHOLDS_50.tolist() == [(2 * k + 1) / 100 for k in range(50)]
    assert metrics.TUNING_THRESHOLDS.tolist() == [k / 10 for k in range(1, 10)]
    assert metrics.TUNING_WINDOWS.tolist() == list(range(1, 32, 2))


# --- metrics.py: examples computed by hand: event-based F1 -----------------------------------------------------------


def hits(ref, est):
    return int(metrics.event_f1(events(*ref), events(*est), ["A"]).n_tp[0])


def test_E1_onset_collar_is_inclusive_and_not_rounded():
    assert hits([(1.0, 3)], [(1.2, 3)]) == 1
    assert hits([(0.6, 3)], [(0.8, 3)]) == 0  # 0.8 - 0.6 > 0.2 in float64


def test_E2_offset_collar_is_the_larger_one():
    assert hits([(1, 1.5)], [(1, 1.7)]) == 1 and hits([(1, 1.5)], [(1, 1.71)]) == 0
    assert hits([(1, 6)], [(1, 7)]) == 1 and hits([(1, 6)], [(1, 7.01)]) == 0
    assert hits([(1, 2)], [(1, 2.5)]) == 0  # 20 % of the reference, not of the estimate


def test_E3_matching_is_optimal():
    assert hits([(1, 3), (1.3, 3)], [(1.15, 3), (0.9, 3)]) == 2


def test_E4_E5_E9_undefined_scores():
    both, only_a = events((1, 2), (3, 4, "B")), events((1, 2))
    e4 = metrics.event_f1(both, only_a, ["A", "B"])
    assert (e4.per_class, e4.macro) == ({"A": 1.0, "B": 0.0}, 0.5) and same(e4.micro, 2 / 3)
    e5 = metrics.event_f1(only_a, both, ["A", "B"])
    assert math.isnan(e5.per_class["B"]) and e5.macro == 1.0 and same(e5.micro, 2 / 3)
    for score in (metrics.event_f1, metrics.segment_f1):
        assert (score(only_a, [], ["A"]).micro, score(only_a, [], ["A"]).macro) == (0.0, 0.0)
        for found in ([], only_a):
            nothing = score([], found, ["A"])
            assert math.isnan(nothing.micro) and math.isnan(nothing.macro)
            assert (nothing.n_tp[0], nothing.n_fp[0], nothing.n_fn[0]) == (0, len(found), 0)


def test_E7_a_reference_event_is_found_once():
    e7 = metrics.event_f1(events((1, 2)), events((1, 2), (1, 2)), ["A"])
    assert e7.n_tp[0] == 1 and same(e7.micro, 2 / 3)


def test_zero_length_events_are_events():
    assert hits([(1, 1)], [(1, 1), (1, 1)]) == 1
    assert metrics.event_f1(events((1, 2)), events((9, 9)), ["A"]).n_fp[0] == 1


def test_labels_outside_the_list_are_named_and_enter_micro_only():
    with pytest.warns(UserWarning, match="1 events outside the class list.*Z"):
        got = metrics.event_f1(events((1, 2)), events((1, 2), (1, 2, "Z")), ["A"])
    assert got.per_class == {"A": 1.0} and got.macro == 1.0 and same(got.micro, 2 / 3) and len(got.n_tp) == 1


# --- metrics.py: segment- and clip-based F1 --------------------------------------------------------------------------


def segments(*rows):
    full = metrics.segment_f1(events((0, 50)), events(*rows), ["A"])
    return int(full.n_tp[0])


def test_S1_S2_S3_S7_segments_touched():
    assert segments((0.9, 1.1)) == 2
    assert segments((1, 2)) == 1
    assert segments((3.0, 3.0)) == 0 and segments((3.2, 3.2)) == 1
    assert segments((2.9999999, 4)) == 2


def test_S4_segments_after_the_clip():
    ref, est = events((9, 10.115)), events((9, 9.984))
    free, cut = metrics.segment_f1(ref, est, ["A"]), metrics.segment_f1(ref, est, ["A"], {"a": 10.0})
    assert (free.n_tp[0], free.n_fn[0]) == (1, 1) and (cut.n_tp[0], cut.n_fn[0]) == (1, 0)


def test_S5_overlaps_count_once():
    s5 = metrics.segment_f1(events((0, 3)), events((0, 2), (1, 3)), ["A"])
    assert (s5.n_tp[0], s5.n_fp[0], s5.n_fn[0]) == (3, 0, 0)


def test_C1_clip_f1():
    ref, est = [[1, 0], [0, 0], [1, 1]], [[1, 1], [0, 0], [0, 1]]
    c1 = metrics.clip_f1(ref, est)
    assert same(c1.micro, 2 / 3) and c1.n_tp.tolist() == [1, 1] and list(c1.per_class) == [0, 1]
    assert same(c1.per_class[0], 2 / 3) and same(c1.macro, 2 / 3)
    assert metrics.clip_f1([[1]], [[0]]).micro == 0.0 and math.isnan(metrics.clip_f1([[0]], [[1]]).macro)
    with pytest.raises(ValueError):
        metrics.clip_f1([[1]], [[1, 0]])


# --- metrics.py: PSDS ------------------------------------------------------------------------------------------------

REF = events((1, 2), (5, 6, "B"))
MEAN = PSDS1 | {"alpha_st": 0.0}


def psds(ref, *points, seconds=10.0, classes="AB", **criteria):
    return metrics.psds(ref, [events(*p) for p in points], {"a": seconds}, list(classes), **(MEAN | criteria))


def test_P1_one_of_two_classes():
    assert psds(REF, [(1, 2)]) == 0.5


def test_P2_dtc_tie():
    assert psds(events((0, 0.7), (5, 6, "B")), [(0, 1)]) == 0.5
    assert psds(events((2.1, 2.8), (5, 6, "B")), [(2.1, 3.1)]) == 0.0  # 0.6999999999999997


def test_P3_P4_shares_are_summed():
    assert psds(events((1, 2), (2.1, 3.1), (5, 6, "B")), [(1, 3.1)]) == 0.5
    ref = events((1, 3), (5, 6, "B"))
    assert psds(ref, [(1, 1.9), (2, 2.9)]) == 0.5
    assert psds(ref, [(1, 1.9), (2.5, 4.5)]) == 0.0


def fp_rate(ref, point, **criteria):
    """eFPR of class A, measured as the place where its ROC rises: a hit is added in another clip of no length."""
    ref = ref + events((0, 1), file="hit")
    detections = events(*point) + events((0, 1), file="hit")
    n_refs = len([e for e in ref if e[3] == "A"])
    high = {"max_efpr": 10000.0, "alpha_st": 0.0}
    area = metrics.psds(ref, [detections], {"a": 10.0, "hit": 1e-9}, ["A", "B"], **(MEAN | criteria | high))
    n_hit = round(area * 2 * n_refs + 0.4999)
    return 10000 * (1 - area * 2 * n_refs / n_hit)


def test_P5_P6_P10_false_positives():
    assert abs(fp_rate(events((1, 9), (5, 6, "B")), [(2, 3)])) < 1e-3  # passes the DTC, covers too little: neither
    assert abs(fp_rate(REF, [(2, 3)]) - 360) < 1e-3  # touches
    over_both = events((1, 2), (1, 2, "B"))
    assert abs(fp_rate(over_both, [(1, 2)], **PSDS2)) < 1e-3  # P10: passes on A, no cross-trigger of B


def test_P7_P8_P9_cross_triggers():
    two = [[(1, 2), (5, 6)]]
    high = PSDS2 | {"alpha_st": 0.0, "max_efpr": 4320.0}
    assert same(psds(REF, *two, **high), 0.5 * (4320 - 2160) / 4320)  # 360 + 0.5 * 3600
    assert same(psds(REF, *two, **high, ct_divisor="C"), 0.5 * (4320 - 1260) / 4320)
    for b in ((5.7, 6.7, "B"), (5, 5.3, "B")):
        assert same(psds(events((1, 2), b), *two, **high), 0.5 * (4320 - 360) / 4320)
    p9 = psds(events((1, 2), (5, 6, "B"), (5, 6, "C")), *two, classes="ABC", **high)
    assert same(p9, (4320 - 2160) / 4320 / 3)  # 360 + 0.5 * (3600 + 3600) / 2
    with pytest.raises(KeyError):
        psds(REF, *two, **high, ct_divisor="c")


def test_P11_identical_detections_stay_separate():
    ref = events((1, 3), (5, 6, "B"))
    assert psds(ref, [(1, 2), (1, 2)]) == 0.5
    assert psds(ref, [(1, 2)]) == 0.0


def test_P12_overlaps_are_merged_with_one_warning():
    ref = events((1, 2.5), (5, 6, "B"))
    with pytest.warns(UserWarning, match="merged 2 detections") as caught:
        assert psds(ref, [(1, 2), (1.5, 2.5)], [(1, 2), (1.5, 2.5)]) == 0.5
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="merged 2 ground truth events"):
        assert psds(events((1, 2), (1.5, 2.2), (1.5, 2.5), (5, 6, "B")), [(1, 2.5)]) == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        psds(events((1, 2), (2, 3), (1, 2), (5, 6, "B")), [(1, 2), (1, 2), (2, 3)])  # touching, identical: as they are


def test_P13_P14_P15_detections_that_do_not_count():
    assert same(fp_rate(REF, [(3, 3)]), 0, 1e-3)
    assert same(fp_rate(REF, [(11, 12)]), 0, 1e-3) and same(fp_rate(REF, [(9.5, 12)]), 360, 1e-3)
    with pytest.warns(UserWarning, match="1 files without duration.*: x"):
        assert same(fp_rate(REF, [(1, 2, "A", "x")]), 0, 1e-3)


def test_P18_one_class():
    for criteria in (PSDS1, PSDS2):
        assert metrics.psds(events((1, 2)), [events((1, 2))], {"a": 10.0}, ["A"], **criteria) == 1.0


def test_P19_lengths_are_not_clipped():
    assert psds(events((9, 10.5), (5, 6, "B")), [(9, 10)]) == 0.0


def hour(*points):
    """One hour, 4 events A and 2 events B; each point has a number of hits and of false positives of A."""
    ref = events((10, 11), (20, 21), (30, 31), (40, 41), (50, 51, "B"), (60, 61, "B"))
    return ref, [
        [(10 * i, 10 * i + 1) for i in range(1, tp + 1)] + [(1000 + 2 * i, 1001 + 2 * i) for i in range(fp)]
        for tp, fp in points
    ]


def test_R1_R2_staircase():
    ref, points = hour((1, 10), (2, 40), (1, 60))
    assert same(psds(ref, *points, seconds=3600.0), 0.1875)
    assert psds(ref, *points, seconds=3600.0, alpha_st=1.0) == 0.0
    assert same(psds(ref, *points[::-1], *points, seconds=3600.0), 0.1875)  # order and repetition do not matter


def test_R3_R4_the_limit():
    ref, points = hour((1, 0), (2, 150))
    assert same(psds(ref, *points, seconds=3600.0), 0.125)
    ref, points = hour((1, 100))
    assert psds(ref, *points, seconds=3600.0) == 0.0


def test_psds_of_nothing():
    assert psds(REF) == psds(REF, []) == psds(REF, [], []) == 0.0
    assert math.isnan(psds([], [(1, 2)]))
    assert psds(events((1, 2)), [(1, 2)], classes="AXY") == 1.0  # classes without ground truth are left out
    assert psds(events((1, 2)), [(1, 2), (3, 4, "Q")], classes="A") == 1.0
    with pytest.warns(UserWarning, match="ground truth events outside the class list.*: B"):
        assert psds(REF, [(1, 2)], classes="A") == 1.0
    with pytest.raises(ValueError, match="durations"):
        quietly(metrics.psds, REF, [REF], {}, ["A", "B"], **PSDS1)


def test_more_clips_change_nothing_and_cost_in_proportion():
    truth, points, durations, classes = nasty_case(4)
    scores, files, score_truth, score_durations, score_classes = toy_scores(1)

    def copies(n):
        def table(rows):
            return [(f"{i}/{e[0]}", *e[1:]) for i in range(n) for e in rows]

        def seconds(d):
            return {f"{i}/{name}": s for i in range(n) for name, s in d.items()}

        from_events = table(truth), [table(p) for p in points], seconds(durations), classes
        from_scores = (
            np.tile(scores, (n, 1, 1)),
            [f"{i}/{f}" for i in range(n) for f in files],
            table(score_truth),
            seconds(score_durations),
            score_classes,
            HOP,
        )
        tracemalloc.start()
        values = [
            quietly(metrics.psds, *from_events, **PSDS2),
            quietly(metrics.psds_from_scores, *from_scores, **PSDS2),
            quietly(metrics.event_f1, truth, points[0], classes).micro,
        ]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return values, peak

    (few, small), (many, large) = copies(100), copies(1000)
    assert np.allclose(few, many, atol=1e-9) and large < 12 * small


def test_one_long_file_is_not_quadratic():
    n = 20000
    truth = [("long", 4.0 * i, 4.0 * i + 2, "A") for i in range(n)]
    tracemalloc.start()
    assert metrics.event_f1(truth, truth, ["A"]).micro == metrics.segment_f1(truth, truth, ["A"]).micro == 1.0
    assert metrics.psds(truth, [truth], {"long": 4.0 * n}, ["A"], **PSDS2) == 1.0
    assert tracemalloc.get_traced_memory()[1] < 1e8  # bytes; all pairs would take gigabytes
    tracemalloc.stop()


# --- metrics.py: ranking metrics -------------------------------------------------------------------------------------


def test_average_precision_and_auc():
    targets, scores = np.array([[1], [0], [1], [0]]), np.array([[0.9], [0.8], [0.7], [0.1]])
    assert same(metrics.mean_average_precision(targets, scores), (1 + 2 / 3) / 2)
    assert same(metrics.mean_auc(targets, scores), 0.75)
    assert same(metrics.mean_auc(targets, np.zeros((4, 1))), 0.5)
    assert same(metrics.mean_average_precision(targets, np.zeros((4, 1))), 0.5)
    assert math.isnan(metrics.mean_auc(targets * 0, scores))
    assert math.isnan(metrics.mean_average_precision(targets * 0, scores))
    rng = np.random.default_rng(0)
    targets, scores = rng.random((30, 4)) < 0.3, rng.integers(0, 6, (30, 4)) / 5
    pairs = [np.mean([(p > q) + 0.5 * (p == q) for p in s[t] for q in s[~t]]) for t, s in zip(targets.T, scores.T)]
    assert same(metrics.mean_auc(targets, scores), np.mean(pairs))


# --- metrics.py: bad arguments ---------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    ok = np.zeros((2, 5, 1))
    for bad in ([("a", 2.0, 1.0, "A")], [("a", -1.0, 1.0, "A")], [("a", nan, 1.0, "A")], [("a", 0.0, math.inf, "A")]):
        for call in (
            lambda: metrics.event_f1(bad, [], ["A"]),
            lambda: metrics.psds(REF, [bad], {"a": 1.0}, ["A"], **PSDS1),
        ):
            with pytest.raises(ValueError, match="'a'"):
                quietly(call)
    with pytest.raises(ValueError, match="shape"):
        metrics.scores_to_events(ok, ["a"], ["A"], 0.5, 1, HOP)
    with pytest.raises(ValueError, match="twice"):
        metrics.scores_to_events(ok, ["a", "a"], ["A"], 0.5, 1, HOP)
    with pytest.raises(ValueError, match="nan"):
        metrics.scores_to_events(ok * nan, ["a", "b"], ["A"], 0.5, 1, HOP)


# --- metrics.py: files -----------------------------------------------------------------------------------------------


def written(tmp_path, text, name="x.tsv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


HEAD = "filename\tonset\toffset\tevent_label\n"


def test_tables_as_they_are(tmp_path):
    want = [("-a_1.000.wav", 0.1, 10.115, "Dog"), ("é b.wav", 0.0, 1.0, "Cat")]
    text = HEAD + "-a_1.000.wav\t0.100\t10.115\tDog\nempty.wav\t\t\t\né b.wav\t0\t1e0\tCat"
    for variant in (text, text + "\n", "\ufeff" + text, text.replace("\n", "\r\n"), text + "\n\n"):
        assert metrics.read_events(written(tmp_path, variant)) == want
    other = "x\toffset\tevent_label\tfilename\tonset\n1\t2.5\tDog\ta.wav\t1.5\n"
    assert metrics.read_events(written(tmp_path, other)) == [("a.wav", 1.5, 2.5, "Dog")]
    assert metrics.read_events(written(tmp_path, HEAD)) == []


def test_events_survive_writing(tmp_path):
    rng = np.random.default_rng(0)
    table = [(f"{i}.wav", float(a), float(a + b), "A") for i, (a, b) in enumerate(rng.random((100, 2)) + 0.01)]
    metrics.write_events(tmp_path / "x.tsv", table)
    assert metrics.read_events(tmp_path / "x.tsv") == table
    metrics.write_events(tmp_path / "x.tsv", [("a", np.float64(0.5), 1, "A")])
    assert (tmp_path / "x.tsv").read_text() == HEAD + "a\t0.5\t1.0\tA\n"


@pytest.mark.parametrize(
    "row, complaint",
    [
        ("a.wav\t2\t2\tA", "offset 2 is not after onset 2"),
        ("a.wav\t2\t1\tA", "not after"),
        ("a.wav\t-1\t2\tA", "onset '-1'"),
        ("a.wav\tx\t2\tA", "onset 'x'"),
        ("a.wav\t1\tnan\tA", "offset 'nan'"),
        ("a.wav\t1\tinf\tA", "offset 'inf'"),
        ("a.wav\t1\t\tA", "offset ''"),
        ("a.wav\t\t\tA", "onset ''"),
        ("a.wav\t1\t2\t", "without event_label"),
        ("\t1\t2\tA", "empty filename"),
        ("\t\t\t", "empty filename"),
        ("a.wav\t1\t2", "3 columns"),
        ("a.wav 1 2 A", "1 columns"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, row, complaint):
    path = written(tmp_path, HEAD + "ok.wav\t0\t1\tA\n" + row + "\n", "table.tsv")
    with pytest.raises(ValueError, match="table.tsv, line 3") as error:
        metrics.read_events(path)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_bad_tables(tmp_path):
    for text, complaint in (
        ("", "line 1: no column filename"),
        ("filename\tonset\n", "no column offset, event_label"),
        (b"\xff\xfe\x00", "UTF-8"),
    ):
        with pytest.raises(ValueError, match=complaint):
            metrics.read_events(written(tmp_path, text))
    zero = written(tmp_path, HEAD + "a.wav\t10\t10\tA\n")
    assert metrics.read_events(zero, zero_length=True) == [("a.wav", 10.0, 10.0, "A")]


def test_durations(tmp_path):
    path = written(tmp_path, "filename\tduration\na\t4.2\nb\t10\na\t4.2\n")
    assert metrics.read_durations(path) == {"a": 4.2, "b": 10.0}
    for row in ("a\t0", "a\t-1", "a\tx", "ok\t2"):
        with pytest.raises(ValueError, match="line 3"):
            metrics.read_durations(written(tmp_path, f"filename\tduration\nok\t1\n{row}\n"))


# --- metrics.py: the command, from a folder that holds nothing but metrics.py ----------------------------------------


def command(folder, *arguments):
    shutil.copy(inspect.getfile(metrics), folder / "metrics.py")
    done = subprocess.run([sys.executable, "metrics.py", *arguments], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_command(tmp_path):
    ref = HEAD + "a.wav\t1\t2\tA\na.wav\t1.5\t2.5\tA\na.wav\t5\t6\tB\nb.wav\t9.9\t10.1\tB\nempty.wav\t\t\t\n"
    est = HEAD + "a.wav\t1\t2.5\tA\nb.wav\t9.9\t10.1\tB\nempty.wav\t10\t10\tA\nnew.wav\t0\t1\tQ\n"
    written(tmp_path, ref, "ref.tsv"), written(tmp_path, est, "est.tsv")
    (tmp_path / "points").mkdir()
    written(tmp_path, est, "points/0.1.tsv"), written(tmp_path, HEAD, "points/0.9.tsv")
    written(tmp_path, "filename\tduration\na.wav\t10\nb.wav\t10\nempty.wav\t10\nnew.wav\t10\n", "durations.tsv")
    code, out, err = command(tmp_path, "ref.tsv", "est.tsv", "--operating-points", "points", "--json", "--per-class")
    assert code == 0
    got, reference, estimated = (
        json.loads(out),
        metrics.read_events(tmp_path / "ref.tsv"),
        metrics.read_events(tmp_path / "est.tsv", zero_length=True),
    )
    want = quietly(metrics.event_f1, reference, estimated, ["A", "B", "Q"])
    assert same(got["event_f1_micro"], want.micro) and got["per_class"]["event_f1"]["Q"] is None
    assert same(
        got["psds2"],
        quietly(
            metrics.psds,
            reference,
            [estimated, []],
            dict.fromkeys(["a.wav", "b.wav", "empty.wav", "new.wav"], 10.0),
            ["A", "B"],
            **PSDS2,
        ),
    )
    assert got["operating_points"] == 2 and got["files"] == 4
    for words in (
        "1 events of est.tsv in files that ref.tsv does not name",
        "new.wav",
        "1 events of est.tsv with labels that ref.tsv lacks",
        "1 events of points with labels",
        "length 0",
        "merged 1 ground truth events",
    ):
        assert words in err
    code, table, _ = command(
        tmp_path,
        "ref.tsv",
        "est.tsv",
        "--operating-points",
        "points",
        "--durations",
        "durations.tsv",
        "--ctr-divisor",
        "C",
    )
    assert code == 0 and f"{got['psds1']:.4f}" in table and " C\n" in table and "Q" not in table
    code, table, _ = command(tmp_path, "ref.tsv", "est.tsv", "--per-class")
    assert code == 0 and "Q" in table and "psds" not in table


def test_command_errors_are_one_line(tmp_path):
    written(tmp_path, HEAD + "a.wav\t1\t2\tA\n", "ok.tsv"), written(tmp_path, HEAD + "a.wav\t3\t2\tA\n", "bad.tsv")
    (tmp_path / "none").mkdir()
    for arguments, words in (
        (("ok.tsv", "bad.tsv"), "bad.tsv, line 2"),
        (("ok.tsv", "absent.tsv"), "absent.tsv: No such file"),
        (("ok.tsv", "ok.tsv", "--operating-points", "none"), "no .tsv file"),
    ):
        code, out, err = command(tmp_path, *arguments)
        assert code == 2 and out == "" and words in err and err.count("\n") == 1
    for arguments in ((), ("ok.tsv",), ("ok.tsv", "ok.tsv", "--durations", "ok.tsv")):
        code, _, err = command(tmp_path, *arguments)
        assert code == 2 and "Traceback" not in err


# --- metrics.py: the peers, where they can be imported ---------------------------------------------------------------


def test_sed_eval_agrees():
    pytest.importorskip("sed_eval")
    for seed in range(1, 60):
        truth, points, _, _ = nasty_case(seed)
        classes = sorted({e[3] for e in truth + points[0]})
        if truth and points[0]:
            macro, micro = metrics._sed_eval(truth, points[0], classes)
            assert same(metrics.event_f1(truth, points[0], classes).macro, macro)
            assert same(metrics.segment_f1(truth, points[0], classes).micro, micro) or math.isnan(micro)


def test_psds_eval_agrees():
    pytest.importorskip("psds_eval")
    for seed in range(20):
        scores, files, truth, _, classes = toy_scores(seed, T=64)
        durations = dict.fromkeys(files, 10.0)
        points = [metrics.scores_to_events(scores, files, classes, t, 1, HOP, durations) for t in (0.2, 0.5, 0.7)]
        both = (PSDS1 | {"max_efpr": 1000.0}, PSDS2 | {"max_efpr": 1000.0})
        if {e[3] for e in truth} == set(classes):
            for got, criteria in zip(metrics._psds_eval(truth, points, durations, both), both):
                assert same(metrics.psds(truth, points, durations, classes, **criteria), got)


def test_sed_scores_eval_agrees():
    pytest.importorskip("sed_scores_eval")
    for seed in range(8):
        scores, files, truth, _, classes = toy_scores(seed, T=64)
        truth = [(f, on + 0.01, off + 0.023, c) for f, on, off, c in truth]  # off the frames: the peer rounds ties
        durations = dict.fromkeys(files, 10.0)
        both = (PSDS1 | {"max_efpr": 1000.0}, PSDS2 | {"max_efpr": 1000.0})
        peer = metrics._sed_scores_eval(scores, files, truth, durations, classes, HOP, both)
        for got, criteria in zip(peer, both):
            ours = metrics.exact_psds_from_scores(scores, files, truth, durations, classes, HOP, **criteria)
            assert same(ours, got, 1e-9)


# --- train.py: batches and the step ----------------------------------------------------------------------------------


def test_endless_stream_visits_every_clip_once_a_pass():
    batches = [train.endless(10, 3, t, (0, 0)) for t in range(9)]
    for p in range(3):
        seen = np.concatenate(batches[3 * p : 3 * p + 3])
        assert len(set(seen.tolist())) == 9
    assert not np.array_equal(batches[0], batches[3])
    assert train.endless(2, 5, 0, (0, 0)).tolist().count(0) in (2, 3) and len(train.endless(5, 0, 0, (0, 0))) == 0
    assert np.array_equal(train.endless(10, 3, 7, (0, 0)), batches[7]) and not np.array_equal(
        train.endless(10, 10, 0, (1, 0)), train.endless(10, 10, 0, (0, 0))
    )


def test_mixup_rate_ratio_and_partners():
    group, pattern = np.repeat([0, 1, 2], [4, 6, 8]), np.array([0] * 4 + [1, 1, 0, 1, 0, 2] + [3, 3, 0, 1, 1, 1, 0, 2])
    plans = [train.mixup_plan(np.random.default_rng(i), group, pattern) for i in range(2000)]
    used = [p for p in plans if p is not None]
    assert 0.29 < len(used) / 2000 < 0.37  # 0.33, standard deviation 0.0105
    ratios = np.array([ratio for ratio, _ in used])
    assert (ratios[:, group == 1] == ratios[:, [4]]).all() and (ratios[:, 0] != ratios[:, 4]).all()
    assert abs(ratios[:, 0].var() - 0.25 / 1.4) < 0.02  # of Beta(0.2, 0.2)
    for _, partner in used:
        assert (group[partner] == group).all() and (pattern[partner] == pattern).all()
        assert sorted(partner) == list(range(18))
    assert any((partner != np.arange(18)).any() for _, partner in used)


def tiny_config(root, **changes):
    values = dict(
        data=str(root),
        visual=("openl3",),
        base="transformer",
        train_weight=0.5,
        infer_weight="auto",
        epochs=2,
        batches=2,
    )
    return train.Config(**{**values, "batch_size": (2, 2, 3), "seed": 0, "bf16": False, **changes})


def test_mixup_interpolates_inputs_and_targets_alike(tmp_path, monkeypatch):
    data = features.load_dataset(write_tiny(tmp_path), ["openl3"], log=quiet)
    batch, _ = train.training_batch(data, tiny_config(tmp_path), 0, torch.device("cpu"))
    partner, ratio = np.array([1, 0, 3, 2, 5, 4, 6]), np.array([0.25] * 2 + [0.5] * 2 + [0.75] * 3)
    monkeypatch.setattr(train, "mixup_plan", lambda *_: (ratio, partner))
    mixed = train.mixup(batch, (2, 2, 3), None)
    changed = [(batch.log_mel, mixed.log_mel, 0), (batch.visual["openl3"], mixed.visual["openl3"], 0)]
    changed += [(batch.strong, mixed.strong, 0), (batch.weak, mixed.weak, 2)]
    for before, after, first in changed:
        for i in range(len(before)):
            lam = ratio[first + i]
            assert torch.allclose(after[i], lam * before[i] + (1 - lam) * before[partner[first + i] - first], atol=1e-6)
    assert mixed.present is batch.present
    monkeypatch.setattr(train, "mixup_plan", lambda *_: (np.ones(7), partner))
    assert torch.equal(train.mixup(batch, (2, 2, 3), None).log_mel, batch.log_mel)


def test_batch_holds_the_right_clips(tmp_path):
    data = features.load_dataset(write_tiny(tmp_path), ["openl3"], log=quiet)
    config = tiny_config(tmp_path, batch_size=(3, 2, 1))
    batch, _ = train.training_batch(data, config, 5, torch.device("cpu"))
    strong, weak = data.partitions["strong"], data.partitions["weak"]
    picked, tagged = train.endless(4, 3, 5, (0, 0)), train.endless(4, 2, 5, (0, 1))
    targets = features.frame_targets(strong.filenames, strong.events, data.classes)
    assert torch.equal(batch.strong, torch.from_numpy(targets[picked]).float())
    assert torch.equal(batch.weak, torch.from_numpy(weak.tags[tagged]).float())
    mean, std = data.mel_statistics
    assert np.allclose(batch.log_mel[:3], (strong.log_mel[picked] - mean) / std, atol=1e-5) and batch.log_mel.shape == (
        6,
        512,
        64,
    )
    mean, std = data.visual_statistics["openl3"]
    assert np.allclose(batch.visual["openl3"][3:5], (weak.visual["openl3"][tagged] - mean) / std, atol=1e-3)
    assert batch.present["openl3"][:5].tolist() == [False] * 3 + [True] * 2


def test_learning_rate_steps():
    rates = [train.learning_rate(i) for i in (0, 9999, 10000, 19999, 20000, 24999)]
    assert np.allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-9)


def test_random_acoustic_weight():
    drawn = [train.audio_weight_of("random", np.random.default_rng(i)) for i in range(1000)]
    assert 0.25 <= min(drawn) < 0.27 and 0.98 < max(drawn) <= 1 and train.audio_weight_of(0.75, None) == 0.75


def test_teacher_is_a_warmed_up_moving_average():
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    old, new = teacher.weight.clone(), student.weight.detach().clone()
    train.update_teacher(teacher, student, 1)
    assert torch.allclose(teacher.weight, (old + new) / 2)
    old = teacher.weight.clone()
    train.update_teacher(teacher, student, 5000)
    assert torch.allclose(teacher.weight, 0.999 * old + 0.001 * new) and torch.equal(student.weight, new)


def step_setup(tmp_path, **changes):
    data = features.load_dataset(write_tiny(tmp_path), ["openl3"], log=quiet)
    torch.manual_seed(0)
    student = MultiEncoder(2, {"openl3": 6})
    teacher = copy.deepcopy(student).requires_grad_(False)
    return student, teacher, torch.optim.RAdam(student.parameters(), 1e-3), data, tiny_config(tmp_path, **changes)


def test_one_step_by_hand(tmp_path, monkeypatch):
    student, teacher, optimizer, data, config = step_setup(tmp_path)
    with torch.no_grad():
        for p in teacher.parameters():
            p += 0.01 * torch.randn_like(p)
    copies = copy.deepcopy((student, teacher))
    monkeypatch.setattr(train, "MIXUP_RATE", 0)
    torch.manual_seed(3)
    losses = train.training_step(student, teacher, optimizer, data, config, 0, torch.device("cpu"))
    torch.manual_seed(3)
    batch, _ = train.training_batch(data, config, 0, torch.device("cpu"))
    frame, clip = copies[0](batch.log_mel, batch.visual, batch.present, 0.5)
    with torch.no_grad():
        teacher_frame, teacher_clip = copies[1](batch.log_mel, batch.visual, batch.present, 0.5)
    p, q = frame[:2].sigmoid(), clip[2:4].sigmoid()
    by_hand = torch.stack([
        -(batch.weak * q.log() + (1 - batch.weak) * (1 - q).log()).mean(),
        -(batch.strong * p.log() + (1 - batch.strong) * (1 - p).log()).mean(),
        (clip.sigmoid() - teacher_clip.sigmoid()).square().mean(),
        (frame.sigmoid() - teacher_frame.sigmoid()).square().mean(),
    ])  # fmt: skip
    assert torch.allclose(losses, by_hand, atol=1e-6) and (losses > 0).all()
    (by_hand[0] + by_hand[1] + 2 * by_hand[2] + 2 * by_hand[3]).backward()
    torch.optim.RAdam(copies[0].parameters(), 1e-3).step()
    for (name, a), b, before, after in zip(
        student.named_parameters(), copies[0].parameters(), copies[1].parameters(), teacher.parameters()
    ):
        assert torch.allclose(a, b, atol=1e-6), name
        assert torch.allclose(after, (before + a) / 2, atol=1e-6) and after.grad is None, name


def test_batches_of_one_kind_give_finite_losses(tmp_path):
    for size in ((0, 0, 3), (2, 0, 0), (0, 2, 0)):
        student, teacher, optimizer, data, config = step_setup(tmp_path, batch_size=size)
        weak, strong, *consistency = train.training_step(
            student, teacher, optimizer, data, config, 0, torch.device("cpu")
        ).tolist()
        assert (strong > 0) == (size[0] > 0) and (weak > 0) == (size[1] > 0) and min(consistency) > 0


def test_a_loss_that_is_not_finite_stops_the_run():
    terms = torch.ones(3, 4)
    terms[1, 2] = float("nan")
    lines = []
    with pytest.raises(SystemExit):
        train.check_finite(terms, 10, lines.append)
    assert "iteration 11: clip cross entropy 1, frame cross entropy 1, clip consistency nan" in lines[0]


# --- train.py: whole runs --------------------------------------------------------------------------------------------

SHORT = "--epochs 2 --batches 2 --batch-size 2 2 3".split()


def run(*arguments):
    train.main([str(a) for a in arguments])


def test_a_run_leaves_what_it_promises(tmp_path, capsys):
    root = write_tiny(tmp_path / "set", streams=("openl3", "tce"))
    run(
        "--data",
        root,
        "--visual",
        "openl3",
        "tce",
        "--base",
        "conformer",
        "--train-weight",
        "random",
        "--out",
        tmp_path / "r",
        *SHORT,
    )
    printed = capsys.readouterr().out
    assert "conformer + openl3 + tce" in printed and "PSDS2" in printed and "TOY" not in printed
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [
        "log.txt",
        "metrics.json",
        "model.pt",
        "predictions.tsv",
    ]
    assert (tmp_path / "r/log.txt").read_text() == printed
    report = json.loads((tmp_path / "r/metrics.json").read_text())
    assert (
        set(report["scores"]["public"]) == {"CBF1", "SBF1", "EBF1", "PSDS1", "PSDS2"}
        and report["infer_weight"] in train.INFER_WEIGHTS
    )
    model = torch.load(tmp_path / "r/model.pt", weights_only=True)
    assert model["classes"] == ["Cat", "Dog"] and [*model["visual_statistics"]] == ["openl3", "tce"]
    assert len(model["tuned"]["EBF1"]["threshold"]) == 2 and model["tuned"]["PSDS1"]["threshold"] is None
    dims = {stream: len(mean) for stream, (mean, _) in model["visual_statistics"].items()}
    assert dims == {"openl3": 6, "tce": 5}
    rebuilt = MultiEncoder(2, dims, model["config"]["base"])
    rebuilt.load_state_dict(model["weights"])
    data = features.load_dataset(root, ["openl3", "tce"], log=quiet)
    public, weight = data.partitions["public"], model["infer_weight"]
    frame_scores, _ = train.predict(rebuilt, data, public, [weight], torch.device("cpu"))[weight]
    events = train.detect(
        public,
        model["classes"],
        frame_scores,
        np.array(model["tuned"]["EBF1"]["threshold"]),
        np.array(model["tuned"]["EBF1"]["window"]),
    )
    assert sorted(map(tuple, read_rows(tmp_path / "r/predictions.tsv"))) == sorted(
        (f, f"{a:.3f}", f"{b:.3f}", c) for f, a, b, c in events
    )


def read_rows(path):
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return [(f, f"{float(a):.3f}", f"{float(b):.3f}", c) for f, a, b, c in rows if c]


def weights_of(folder):
    return torch.load(folder / "model.pt", weights_only=True)["weights"]


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_flag_that_changes_training_changes_the_weights(tmp_path):
    root = write_tiny(tmp_path / "set")
    base = ["--data", root, "--visual", "openl3", *SHORT]
    run(*base, "--out", tmp_path / "0")
    run(*base, "--out", tmp_path / "same")
    assert same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / "same"))
    flags = (
        ["--seed", 1],
        ["--train-weight", 0.25],
        ["--train-weight", "random"],
        ["--batch-size", 1, 2, 3],
        ["--epochs", 1],
        ["--batches", 1],
        ["--bf16"],
    )
    for number, changed in enumerate(flags, 1):
        run(*base, *changed, "--out", tmp_path / f"{number}")
        assert not same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / f"{number}")), changed
    run(*base, "--infer-weight", 1, "--out", tmp_path / "ignored")
    assert same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / "ignored"))
    assert json.loads((tmp_path / "ignored/metrics.json").read_text())["infer_weight"] == 1


def test_killed_run_resumes_to_the_same_weights(tmp_path, capsys):
    root = write_tiny(tmp_path / "set", streams=("openl3", "tce"))
    flags = "--epochs 3 --batches 4 --batch-size 4 4 5 --train-weight random --visual openl3 tce".split()
    base = ["--data", root, *flags]
    run(*base, "--out", tmp_path / "whole")
    command = [sys.executable, HERE / "train.py", *base, "--out", tmp_path / "killed"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed/checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert torch.load(checkpoint, weights_only=True)["epoch"] < 3 and not (tmp_path / "killed/model.pt").exists()
    run(*base, "--out", tmp_path / "killed", "--resume")
    assert "continuing after epoch" in (tmp_path / "killed/log.txt").read_text()
    assert same_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed"))
    scores = [json.loads((tmp_path / name / "metrics.json").read_text())["scores"] for name in ("whole", "killed")]
    assert scores[0] == scores[1]
    stamp = (tmp_path / "killed/model.pt").stat().st_mtime_ns
    run(*base, "--out", tmp_path / "killed", "--resume")  # a finished run is not repeated
    for flags, message in ((["--resume", "--seed", 1], "is of a run with seed 0"), ([], "holds a run already")):
        with pytest.raises(SystemExit) as stop:  # nor reported under other flags, nor overwritten
            run(*base, "--out", tmp_path / "killed", *flags)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert (tmp_path / "killed/model.pt").stat().st_mtime_ns == stamp


# --- bad input: one line that names the file, exit code 2, no traceback, nothing half-written ------------------------


def replace_row(name, number, text):
    def change(root):
        rows = tiny_rows()
        rows[name][number] = text
        shutil.rmtree(root)
        write_tiny(root, rows)

    return change


def overwrite(path, content):
    def change(root):
        (root / path).write_bytes(content)

    return change


def save_array(array):
    return lambda root: np.save(root / "visual/openl3/w2.npy", array, allow_pickle=True)


BAD = {
    "missing folder": (shutil.rmtree, "no such folder"),
    "missing table": (lambda root: (root / "metadata/train/weak.tsv").unlink(), r"weak\.tsv: no such file"),
    "missing visual folder": (lambda root: shutil.rmtree(root / "visual"), r"visual/openl3: no such folder"),
    "columns": (
        overwrite("metadata/validation/validation.tsv", b"filename\tonset\tevent_label\n"),
        r"validation\.tsv, line 1: no column offset",
    ),
    "empty table": (overwrite("metadata/train/weak.tsv", b""), r"weak\.tsv, line 1: no column filename, event_labels"),
    "not text": (overwrite("metadata/train/weak.tsv", b"\xff\xfe\x00"), r"weak\.tsv: cannot be read as text"),
    "too many cells": (replace_row("weak", 2, "w2.wav\tDog\tCat"), r"weak\.tsv, line 4: 3 columns"),
    "offset before onset": (
        replace_row("strong", 1, "01.wav\t2.0\t1.0\tDog"),
        r"soundscapes\.tsv, line 3: .*2\.0 and 1\.0",
    ),
    "offset equals onset": (replace_row("public", 1, "p1.wav\t1.0\t1.0\tDog"), r"public\.tsv, line 3"),
    "negative time": (replace_row("validation", 0, "v0.wav\t-0.5\t1.0\tDog"), r"validation\.tsv, line 2"),
    "infinite time": (replace_row("validation", 0, "v0.wav\t0.5\tinf\tDog"), r"validation\.tsv, line 2"),
    "no number": (replace_row("validation", 0, "v0.wav\tearly\t1.0\tDog"), r"validation\.tsv, line 2: onset 'early'"),
    "no label": (
        replace_row("validation", 0, "v0.wav\t0.5\t1.0\t"),
        r"validation\.tsv, line 2: an event without a label",
    ),
    "unknown class": (
        replace_row("validation", 0, "v0.wav\t0.5\t1.0\tFox"),
        r"validation\.tsv, line 2: the class 'Fox'",
    ),
    "path in a name": (
        replace_row("weak", 2, "../../w2.wav\tDog"),
        r"weak\.tsv, line 4: '\.\./\.\./w2\.wav' is not a plain file name",
    ),
    "label without audio": (
        lambda root: write_wav(root / "audio/train/weak/w2.wav", np.zeros(0)),
        r"w2\.wav: holds no audio",
    ),
    "broken wav": (overwrite("audio/validation/v0.wav", b"RIFF and nothing else"), r"v0\.wav: cannot be decoded"),
    "nan in a wav": (
        lambda root: write_wav(root / "audio/validation/v0.wav", np.full(100, np.nan), subtype="FLOAT"),
        r"v0\.wav: holds samples that are not finite",
    ),
    "empty partition": (lambda root: shutil.rmtree(root / "audio/eval"), r"audio/eval/public: none of the 3 clips"),
    "visual shape": (save_array(np.zeros((63, 6), np.float16)), r"w2\.npy: has the shape \(63, 6\) where \(64, 6\)"),
    "visual width": (save_array(np.zeros((64, 7), np.float16)), r"w2\.npy: has the shape \(64, 7\) where \(64, 6\)"),
    "visual dtype": (
        save_array(np.zeros((64, 6), np.int16)),
        r"w2\.npy: must be an array of float16, .*int16",
    ),
    "visual types": (save_array(np.zeros((64, 6), np.float32)), r"w2\.npy: must be an array of float16, .*float32"),
    "visual pickle": (save_array(np.array([{}])), r"w2\.npy: cannot be read as a \.npy array"),
    "visual garbage": (overwrite("visual/openl3/w2.npy", b"\x93NUMPY"), r"w2\.npy: cannot be read as a \.npy array"),
    "no training video": (
        lambda root: [p.unlink() for p in (root / "visual/openl3").glob("[uwY]*.npy")],
        r"visual/openl3: no file for any training clip",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line(name, tmp_path, capsys):
    damage, message = BAD[name]
    root = write_tiny(tmp_path / "set")
    damage(root)
    with pytest.raises(SystemExit) as stop:
        run("--data", root, "--visual", "openl3", "--out", tmp_path / "r", *SHORT)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and re.search(message, captured.err), (
        captured.err
    )
    assert not (tmp_path / "r").exists() and not list(tmp_path.rglob("*.partial"))


def test_bad_checkpoints_get_one_line(tmp_path, capsys):
    root = write_tiny(tmp_path / "set")
    arguments = ["--data", root, "--visual", "openl3", *SHORT, "--resume"]
    good = tmp_path / "good"
    train_only = {
        "config": train.asdict(tiny_config(root)),
        "classes": ["Cat", "Dog"],
        "data": features.load_dataset(root, ["openl3"], log=quiet).identity,
        "epoch": 1,
        "student": {},
        "teacher": {},
    }

    class Payload:  # what unpickling would run if it were allowed to
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    cases = {
        "garbage": (b"not a checkpoint", "not a checkpoint of this program"),
        "code": ({"x": Payload()}, "not a checkpoint of this program"),
        "architecture": ({**train_only, "config": {**train_only["config"], "base": "conformer"}}, "base conformer"),
        "weights": ({**train_only, "student": {"cnn.0.0.weight": torch.zeros(3)}}, "another architecture"),
        "other program": ({"model": 1}, "was not written by this program"),
        "a tensor": (torch.zeros(2), "was not written by this program"),
        "other data": ({**train_only, "data": "0"}, "other data"),
        "a dot": (b".", "not a checkpoint of this program"),
    }
    for name, (content, message) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        if isinstance(content, bytes):
            (folder / "checkpoint.pt").write_bytes(content)
        else:
            torch.save(content, folder / "checkpoint.pt")
        with pytest.raises(SystemExit) as stop:
            run(*arguments, "--out", folder)
        error = capsys.readouterr().err
        assert (
            stop.value.code == 2 and error.count("\n") == 1 and message in error and f"{folder}/checkpoint.pt" in error
        ), (name, error)
    assert not (tmp_path / "executed").exists() and not good.exists()
    torch.save({"model": 1}, tmp_path / "garbage/model.pt")  # neither is a foreign file taken for a finished run
    with pytest.raises(SystemExit) as stop:
        run(*arguments, "--out", tmp_path / "garbage")
    assert stop.value.code == 2 and "was not written by this program" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    (
        ["--infer-weight", "0"],
        ["--train-weight", "2"],
        ["--batch-size", "0", "0", "0"],
        ["--epochs", "0"],
        ["--visual", "../x"],
        ["--visual", ".."],
        ["--seed", "-1"],
        ["--train-weight", "0.5"],
    ),
)
def test_bad_flags_get_code_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err


def test_an_absent_device_gets_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--device", "nonsense")
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


# --- the house -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("metrics", "features", "avsed"))
def test_lower_files_run_when_copied_alone(name, tmp_path):
    shutil.copy(HERE / f"{name}.py", tmp_path)
    use = {
        "metrics": "assert metrics.clip_f1([[1]], [[1]]).micro == 1",
        "features": "import numpy; assert features.log_mel(numpy.zeros(160000)).shape == (512, 64)",
        "avsed": "avsed.MultiEncoder(3, {'x': 7})",
    }[name]
    subprocess.run(
        [sys.executable, "-c", f"import {name}; {use}"], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": ""}
    )


def test_the_example_of_the_readme(tmp_path):
    section = (HERE / "README.md").read_text().split("## Use metrics.py alone")[1].split("\n## ")[0]
    example, printed = re.findall(r"```(?:python)?\n(.*?)```", section, flags=re.S)[:2]
    shutil.copy(HERE / "metrics.py", tmp_path)
    (tmp_path / "example.py").write_text(example)
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == printed and len(example.strip().splitlines()) <= 12
