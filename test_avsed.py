"""Tests: hand-computed answers, known numbers, brute force, invariants. pytest; under two minutes on two cores."""

import contextlib
import copy
import inspect
import json
import math
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import soundfile

# tiny tensors: a second thread mostly waits, and on a busy machine for long; the programs started from here do the same
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch
from torch import nn

import avsed
import features
import metrics
import train
from avsed import MultiEncoder
from metrics import PSDS1, PSDS2

torch.set_num_threads(1)
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
    conv, norm, *_ = stack = avsed.ConvStack(1, 16, (2, 2)).eval()
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


@pytest.mark.parametrize("pool", [(2, 2), (1, 2), (1, 1)])
def test_a_stack_in_training_is_its_five_layers(pool):
    stack = avsed.ConvStack(3, 8, pool)
    x = torch.randn(4, 3, 16, 12).contiguous(memory_format=torch.channels_last)
    aim, results = torch.randn(4, 8, 16 // pool[0], 12 // pool[1]), []
    for layers in (stack, nn.Sequential(*stack)):
        stack[1].reset_running_stats()
        stack.zero_grad()
        y = x.clone().requires_grad_()
        torch.manual_seed(1)  # for dropout: both ways draw the same bits
        out = layers(y)
        (out * aim).sum().backward()
        results.append([out, y.grad, stack[1].running_mean.clone(), *(p.grad.clone() for p in stack.parameters())])
    for fast, plain in zip(*results):
        assert torch.allclose(fast, plain, rtol=1e-4, atol=1e-4)
    assert results[0][0].std() > 0.1 and results[0][1].std() > 0.1
    with torch.no_grad():
        torch.manual_seed(1)
        assert torch.allclose(stack(x), results[0][0])


def test_batch_norm_momentum_keeps_nine_tenths():
    norm = avsed.ConvStack(1, 16, (2, 2))[1]
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
    memory = torch.randn(2, 64, 128)
    assert torch.equal(block(x, [memory, (torch.arange(2), memory)], torch.full((2, 2), 0.5)), x)


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
    got = cross(x, [memories[0], (rows, memories[1])], weights)
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


def test_vectors_are_read_one_at_a_time(tmp_path, monkeypatch):
    inside, together = [], []

    def load(path, allow_pickle):
        inside.append(path)
        time.sleep(0.01)
        together.append(len(inside))
        inside.remove(path)
        return np.zeros((64, 6), np.float16)

    monkeypatch.setattr(np, "load", load)
    monkeypatch.setattr(features, "cores", lambda: 4)
    for _, vectors in features.in_chunks(features.read_visual, list(range(8)), "", quiet):
        assert len(vectors) == 8
    assert together == [1] * 8


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
    assert renamed.identity(["other"]) == data.identity(["openl3"])
    for path in (root / "cache/weak-log_mel").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(features.InputError, match="weak-log_mel.*the cache is damaged.*delete the folder"):
        features.load_dataset(root, ["other"], log=quiet)
    shutil.rmtree(root / "cache/weak-log_mel")
    for path in (root / "cache").glob("statistics-*"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(features.InputError, match="statistics-.*the cache is damaged.*delete the file"):
        features.load_dataset(root, ["other"], log=quiet)
    for stream in ("other/", "../visual/other", "", ".."):
        with pytest.raises(features.InputError, match="is no name of a visual stream"):
            features.load_dataset(root, [stream], log=quiet)
    for path in (root / "visual/other").iterdir():
        np.save(path, np.full((64, 6), np.inf, np.float16))
    shutil.rmtree(root / "cache")
    with pytest.raises(features.InputError, match="all training clips hold values that are not finite"):
        features.load_dataset(root, ["other"], log=quiet)


def test_toy_data_is_reproducible_and_complete(tmp_path, monkeypatch):
    def files(root):
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    for name, seed, clips in (("a", 0, 20), ("b", 0, 3), ("c", 0, 3), ("d", 1, 3)):
        monkeypatch.setattr(features, "TOY_CLIPS", dict.fromkeys(features.PARTITIONS, clips))
        features.make_toy(tmp_path / name, seed)
    assert files(tmp_path / "b") == files(tmp_path / "c") != files(tmp_path / "d")
    data = features.load_dataset(tmp_path / "a", ["openl3", "tce"], log=quiet)
    assert len(data.classes) == 10 and all(len(part) == 20 for part in data.partitions.values())
    for name, part in data.partitions.items():
        assert part.present["openl3"].sum() == (0 if name == "strong" else 17)  # 15.5 % of 20 clips are 3
        assert np.array_equal(part.present["openl3"], part.present["tce"])
    marker = tmp_path / "a/toy.json"
    stamp = marker.stat().st_mtime_ns
    monkeypatch.setattr(features, "TOY_CLIPS", dict.fromkeys(features.PARTITIONS, 20))
    features.make_toy(tmp_path / "a", 0)
    assert marker.stat().st_mtime_ns == stamp  # a finished one is left alone
    with pytest.raises(features.InputError, match="toy data of another version or seed; move it away"):
        features.make_toy(tmp_path / "a", 1)  # it may hold streams that the user made
    assert marker.stat().st_mtime_ns == stamp


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
    patterns = [np.zeros(4, int), np.array([1, 1, 0, 1, 0, 2]), np.array([3, 3, 0, 1, 1, 1, 0, 2])]
    plans = [train.mixup_plan(np.random.default_rng(i), patterns) for i in range(2000)]
    used = [p for p in plans if p is not None]
    assert 0.29 < len(used) / 2000 < 0.37  # 0.33, standard deviation 0.0105
    ratios = np.array([ratio for ratio, _ in used])
    assert (ratios[:, 0] != ratios[:, 1]).all() and (ratios[:, 1] != ratios[:, 2]).all()
    assert np.all(abs(ratios.var(0) - 0.25 / 1.4) < 0.02)  # of Beta(0.2, 0.2)
    for _, partners in used:
        for partner, pattern in zip(partners, patterns):
            assert (pattern[partner] == pattern).all() and sorted(partner) == list(range(len(pattern)))
    assert any((partners[0] != np.arange(4)).any() for _, partners in used)


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
    return train.Config(**{**values, "batch_size": (2, 2, 3), "seed": 0, "precision": "fp32", **changes})


def batch_of(data, config, iteration=0):
    clips = train.load_clips(data, ("openl3",), torch.device("cpu"))
    return train.training_batch(clips, train.plan_iteration(clips, config, iteration))


def test_mixup_interpolates_inputs_and_targets_alike(tmp_path, monkeypatch):
    data, config = features.load_dataset(write_tiny(tmp_path), ["openl3"], log=quiet), tiny_config(tmp_path)
    monkeypatch.setattr(train, "mixup_plan", lambda *_: None)
    batch = batch_of(data, config)
    ratio, partner = [0.25, 0.5, 0.75], [np.array([1, 0]), np.array([1, 0]), np.array([1, 0, 2])]
    monkeypatch.setattr(train, "mixup_plan", lambda *_: (ratio, partner))
    mixed = batch_of(data, config)
    pairs = [(batch.log_mel, mixed.log_mel), (batch.visual["openl3"], mixed.visual["openl3"])]
    groups = [(own[i:j], new[i:j], g) for own, new in pairs for g, (i, j) in enumerate(((0, 2), (2, 4), (4, 7)))]
    for own, new, g in [*groups, (batch.strong, mixed.strong, 0), (batch.weak, mixed.weak, 1)]:
        assert torch.allclose(new, ratio[g] * own + (1 - ratio[g]) * own[torch.from_numpy(partner[g])], atol=1e-5)
    assert not torch.allclose(mixed.log_mel, batch.log_mel) and not torch.allclose(mixed.strong, batch.strong)
    assert torch.equal(mixed.present["openl3"], batch.present["openl3"])
    monkeypatch.setattr(train, "mixup_plan", lambda *_: ([1.0] * 3, partner))
    assert torch.equal(batch_of(data, config).log_mel, batch.log_mel)


def test_batch_holds_the_right_clips(tmp_path, monkeypatch):
    data = features.load_dataset(write_tiny(tmp_path), ["openl3"], log=quiet)
    monkeypatch.setattr(train, "mixup_plan", lambda *_: None)
    batch = batch_of(data, tiny_config(tmp_path, batch_size=(3, 2, 1)), 5)
    strong, weak = data.partitions["strong"], data.partitions["weak"]
    picked, tagged = train.endless(4, 3, 5, (0, 0)), train.endless(4, 2, 5, (0, 1))
    targets = features.frame_targets(strong.filenames, strong.events, data.classes)
    assert torch.equal(batch.strong, torch.from_numpy(targets[picked]).float())
    assert torch.equal(batch.weak, torch.from_numpy(weak.tags[tagged]).float())
    mean, std = data.mel_statistics
    assert np.allclose(batch.log_mel[:3], (strong.log_mel[picked] - mean) / std, atol=1e-5)
    assert batch.log_mel.shape == (6, 512, 64)
    mean, std = data.visual_statistics["openl3"]
    assert np.allclose(batch.visual["openl3"][3:5], (weak.visual["openl3"][tagged] - mean) / std, atol=1e-3)
    assert batch.present["openl3"][:5].tolist() == [False] * 3 + [True] * 2


def test_ranks_share_the_plan_of_one_process(tmp_path, monkeypatch):
    data = features.load_dataset(write_tiny(tmp_path), ["openl3"], log=quiet)
    clips, config = (
        train.load_clips(data, ("openl3",), torch.device("cpu")),
        tiny_config(tmp_path, batch_size=(4, 2, 4)),
    )
    monkeypatch.setattr(train, "MIXUP_RATE", 1)
    whole = train.plan_iteration(clips, config, 3)
    monkeypatch.setattr(train, "rank_of_ranks", lambda: (0, 2))
    first = train.plan_iteration(clips, config, 3)
    monkeypatch.setattr(train, "rank_of_ranks", lambda: (1, 2))
    second = train.plan_iteration(clips, config, 3)
    assert [len(rows) for rows in first.clips] == [2, 1, 2] and first.ratios == second.ratios == whole.ratios
    for kind in ("clips", "partners"):
        halves = zip(getattr(first, kind), getattr(second, kind), getattr(whole, kind))
        assert all(torch.equal(torch.cat([a, b]), both) for a, b, both in halves)
    assert first.present["openl3"].tolist() == whole.present["openl3"][[0, 1, 4, 6, 7]].tolist()


def test_learning_rate_steps():
    rates = [train.learning_rate(i, 25000) for i in (0, 9999, 10000, 19999, 20000, 24999)]
    assert np.allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-9)
    assert train.learning_rate(9700, 12000) == 1e-3 and train.learning_rate(10000, 12000) < 2e-4
    assert np.allclose([train.learning_rate(i, 360) for i in (0, 287, 288, 359)], [1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-9)
    assert train.learning_rate(0, 1) == 1e-3


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
    clips, config = train.load_clips(data, ("openl3",), torch.device("cpu")), tiny_config(tmp_path, **changes)
    optimizer = torch.optim.RAdam(student.parameters(), 1e-3)
    return student, teacher, optimizer, clips, train.plan_iteration(clips, config, 0), config


def test_one_step_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "MIXUP_RATE", 0)
    student, teacher, optimizer, clips, plan, config = step_setup(tmp_path)
    with torch.no_grad():
        for p in teacher.parameters():
            p += 0.01 * torch.randn_like(p)
    copies = copy.deepcopy((student, teacher))
    torch.manual_seed(3)
    losses = train.training_step(student, teacher, optimizer, clips, plan, config, 0)
    torch.manual_seed(3)
    batch = train.training_batch(clips, plan)
    with torch.no_grad():
        teacher_frame, teacher_clip = copies[1](batch.log_mel, batch.visual, batch.present, 0.5)
    frame, clip = copies[0](batch.log_mel, batch.visual, batch.present, 0.5)
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
        weak, strong, *consistency = train.training_step(*step_setup(tmp_path, batch_size=size), 0).tolist()
        assert (strong > 0) == (size[0] > 0) and (weak > 0) == (size[1] > 0) and min(consistency) > 0


RANK_SCRIPT = """
import sys
import weakref
from pathlib import Path
import torch
from torch import distributed as dist
import features, train
from avsed import Dropout

out, mode = Path(sys.argv[1]), sys.argv[2]
train.join_ranks(torch.device("cpu"))
data = features.load_dataset(out / "data", ["openl3"], out / "cache", log=lambda line: None)
config = train.Config("", ("openl3",), "conformer", "random", 1.0, 1, 1, (2, 2, 2), 0, "fp32")
clips = train.load_clips(data, ("openl3",), torch.device("cpu"))
student, teacher, optimizer = train.start(config, data, torch.device("cpu"))
for module in (*student.modules(), *teacher.modules()):
    if isinstance(module, Dropout):
        module.p = 0.0
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        module.eval()
losses = []
for iteration in range(4):
    plan = train.plan_iteration(clips, config, iteration)
    terms = train.training_step(student, teacher, optimizer, clips, plan, config, iteration)
    train.average([terms])
    losses.append(terms)
if train.rank_of_ranks()[0] == 0:
    torch.save([torch.stack(losses), student.state_dict(), teacher.state_dict()], out / f"{mode}.pt")
if dist.is_initialized():
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    assert group() is None  # held by anything, its threads live on and may abort the process at its end
"""


def torchrun(ranks, *command, cwd=HERE, **more):
    """A data-parallel run on this machine -> a process to wait for"""
    flags = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen([sys.executable, *flags, *map(str, command)], cwd=cwd, text=True, **more)


def start_ranks(*programs):
    """Processes as torchrun would start them, one for each command, so that it is known which is which"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    settings = {**os.environ, **address, "WORLD_SIZE": str(len(programs)), "PYTHONPATH": str(HERE)}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, program)],
            env={**settings, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, program in enumerate(programs)
    ]


def test_two_ranks_train_as_one_process_does(tmp_path, monkeypatch):
    write_tiny(tmp_path / "data")
    features.load_dataset(tmp_path / "data", ["openl3"], tmp_path / "cache", log=quiet)
    (tmp_path / "script.py").write_text(RANK_SCRIPT)
    ranks = start_ranks(*2 * [[tmp_path / "script.py", tmp_path, "two"]])
    monkeypatch.setattr(sys, "argv", ["script.py", str(tmp_path), "one"])
    runpy.run_path(str(tmp_path / "script.py"))  # meanwhile
    assert [rank.wait() for rank in ranks] == [0, 0]
    (one, *models), (two, *others) = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert torch.allclose(one, two, rtol=1e-4) and not torch.equal(one[0], one[3])
    for model, other in zip(models, others):
        for name in model:
            assert torch.allclose(model[name], other[name], rtol=1e-3, atol=2e-5), name


DIES = """
import os, signal, sys
import train

step, calls = train.training_step, 0

def training_step(*arguments):
    global calls
    calls += 1
    if calls == 4:  # with two batches an epoch: in the middle of the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)

train.training_step = training_step
train.main(sys.argv[1:])
"""


def test_a_data_parallel_run_survives_the_death_of_a_rank(tmp_path):
    root, out = write_tiny(tmp_path / "set"), tmp_path / "run"
    flags = "--epochs 2 --batches 2 --batch-size 2 2 2 --visual openl3 --device cpu --data".split()
    flags += [root, "--out", out]
    ranks = start_ranks([HERE / "train.py", *flags], ["-c", DIES, *flags])
    error = ranks[0].communicate(timeout=300)[1]
    assert ranks[0].returncode == 2 and "error: no word from the other ranks" in error and "Traceback" not in error
    ranks[1].communicate()
    assert ranks[1].returncode == -signal.SIGKILL
    assert torch.load(out / "checkpoint.pt", weights_only=True)["epoch"] == 1 and not (out / "model.pt").exists()
    for rank in start_ranks(*2 * [[HERE / "train.py", *flags, "--resume"]]):
        error = rank.communicate(timeout=300)[1]
        assert rank.returncode == 0 and "error" not in error
    lines = (out / "log.txt").read_text().splitlines()
    assert (out / "model.pt").exists() and not list(tmp_path.rglob("*.partial"))
    assert sum(line.startswith("epoch   2/2") for line in lines) == 1 and any("2 ranks" in line for line in lines)


def test_a_folder_at_work_and_changed_labels_are_refused(tmp_path, capsys):
    root, out = write_tiny(tmp_path / "set"), tmp_path / "r"
    flags = ["--data", root, "--out", out, *"--epochs 1 --batches 1 --batch-size 1 1 1".split()]
    hold = "import sys, time, train; from pathlib import Path\n"
    hold += "with train.claimed(Path(sys.argv[1])) as mine:\n print(mine, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(out)], cwd=HERE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"True\n"
        with pytest.raises(SystemExit) as stop:
            run(*flags)
        other.kill()
    assert stop.value.code == 2 and "another process is at work there" in capsys.readouterr().err
    run(*flags)  # a claim ends with its process
    table = root / "metadata/validation/validation.tsv"
    table.write_text(table.read_text().replace("Dog", "Cat"))
    with pytest.raises(SystemExit) as stop:
        run(*flags, "--resume")
    assert stop.value.code == 2 and "is of a run with other data" in capsys.readouterr().err


def test_a_run_is_not_continued_on_other_features(tmp_path, capsys):
    root = write_tiny(tmp_path / "set")
    flags = ["--data", root, "--visual", "openl3", *"--epochs 1 --batches 1 --batch-size 1 1 1".split()]
    run(*flags, "--out", tmp_path / "r")
    report = torch.load(tmp_path / "r/model.pt", weights_only=True)
    here = {name: report[name] for name in ("mel_statistics", "visual_statistics")}
    mean, std = here["visual_statistics"]["openl3"]
    rounded = {**here, "visual_statistics": {"openl3": [mean * (1 + 1e-5), std]}}
    assert train.same_statistics(rounded, here)  # another machine may round otherwise
    for other in ([mean + 0.01, std], [mean, std * 1.01], [mean[:5], std[:5]]):
        assert not train.same_statistics({**here, "visual_statistics": {"openl3": other}}, here)
    for path in (root / "visual/openl3").iterdir():  # the same clips, seen by another network
        np.save(path, 2 * np.load(path))
    with pytest.raises(SystemExit) as stop:
        run(*flags, "--resume", "--out", tmp_path / "r")
    assert stop.value.code == 2 and "is of a run with other data" in capsys.readouterr().err


def test_a_batch_that_cannot_be_shared_gets_one_line(monkeypatch, capsys):
    monkeypatch.setattr(train, "rank_of_ranks", lambda: (0, 2))
    with pytest.raises(SystemExit) as stop:
        run("--batch-size", 4, 3, 2)
    assert stop.value.code == 2 and capsys.readouterr().err == (
        "error: --batch-size 4 3 2: no equal shares for 2 ranks\n"
    )


def test_a_loss_that_is_not_finite_stops_the_run_but_not_the_table(tmp_path, monkeypatch, capsys):
    terms = torch.ones(3, 4)
    terms[1, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="iteration 11: clip cross entropy 1, .* clip consistency nan"):
        train.check_finite(terms, 10)

    step = train.training_step

    def seed_0_diverges(student, teacher, optimizer, clips, plan, config, iteration):
        return step(student, teacher, optimizer, clips, plan, config, iteration) * (1 if config.seed else math.inf)

    monkeypatch.setattr(train, "training_step", seed_0_diverges)
    root = write_tiny(tmp_path / "set")
    short = ["--data", root, *"--base transformer --epochs 1 --batches 1 --batch-size 1 1 1".split()]
    with pytest.raises(SystemExit) as stop:
        run(*short, "--out", tmp_path / "run")
    assert stop.value.code == 2 and "error: the loss is not finite at iteration 0" in capsys.readouterr().err
    run("--table", 6, *short, "--runs", 2, "--out", tmp_path / "t")
    printed = capsys.readouterr().out
    assert (
        "transformer-openl3-wrandom-0 is left out: the loss is not finite" in printed
        and "1 of 2 runs are done" in printed
    )


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
        "claim",
        "log.txt",
        "metrics.json",
        "model.pt",
        "predictions.tsv",
        "predictions_CBF1.tsv",
        "predictions_PSDS1.tsv",
        "predictions_PSDS2.tsv",
        "predictions_SBF1.tsv",
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


def test_every_flag_that_changes_training_changes_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "INFER_WEIGHTS", (0.5,))  # to save time: this is about training
    monkeypatch.setattr(avsed, "BLOCKS", 1)
    root = write_tiny(tmp_path / "set")
    base = ["--data", root, "--visual", "openl3", *"--epochs 2 --batches 1 --batch-size 1 1 1".split()]
    run(*base, "--out", tmp_path / "0")
    run(*base, "--out", tmp_path / "same")
    assert same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / "same"))
    flags = (
        ["--seed", 1],
        ["--train-weight", 0.25],
        ["--train-weight", "random"],
        ["--batch-size", 1, 1, 2],
        ["--epochs", 1],
        ["--batches", 2],
        ["--precision", "bf16"],
    )
    for number, changed in enumerate(flags, 1):
        run(*base, *changed, "--out", tmp_path / f"{number}")
        assert not same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / f"{number}")), changed
    run(*base, "--infer-weight", 1, "--out", tmp_path / "ignored")
    assert same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / "ignored"))
    assert json.loads((tmp_path / "ignored/metrics.json").read_text())["infer_weight"] == 1


def test_benchmark_times_every_part_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.benchmark, "__defaults__", (3,))  # repeats, to save time
    root = write_tiny(tmp_path / "set")
    run("--benchmark", "--data", root, "--batch-size", 1, 1, 1, "--out", tmp_path / "r")
    printed = capsys.readouterr().out
    for part in ("data", "teacher forward", "student forward", "backward", "update", "iteration"):
        assert re.search(rf"^{part} +\d+\.\d\d ms +\d+ %$", printed, re.M), part
    # forward, a clip costs 0.37 GFLOP in the convolutions and 0.39 in the rest; once in the teacher, thrice in
    # the student with its backward pass: 3.0 for a clip, here times 3
    assert 8 <= int(re.search(r"(\d+) GFLOP of matrix work", printed)[1]) <= 10
    assert not (tmp_path / "r").exists()


def test_killed_run_resumes_to_the_same_weights(tmp_path, capsys):
    root = write_tiny(tmp_path / "set", streams=("openl3", "tce"))
    flags = "--epochs 2 --batches 2 --batch-size 1 1 2 --train-weight random --visual openl3 tce".split()
    base = ["--data", root, *flags]
    command = map(str, [sys.executable, "-c", DIES, *base, "--out", tmp_path / "killed"])
    with subprocess.Popen(list(command), cwd=HERE, stdout=subprocess.DEVNULL) as dies:
        run(*base, "--out", tmp_path / "whole")  # meanwhile
    assert dies.returncode == -signal.SIGKILL
    checkpoint = tmp_path / "killed/checkpoint.pt"
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1 and not (tmp_path / "killed/model.pt").exists()
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


# --- train.py: tables of runs ----------------------------------------------------------------------------------------


def test_the_rows_of_the_tables():
    tables = {number: train.rows_of(number) for number in (5, 6, 7, 8)}
    assert [len(rows) for rows in tables.values()] == [8, 6, 22, 4]
    assert all(len(row.paper) == 5 for rows in tables.values() for row in rows)
    second = tables[5][1]
    assert (second.base, second.visual, second.train_weight, second.infer_weight) == (
        "transformer",
        ("openl3",),
        0.5,
        0.75,
    )
    assert second.paper[0] == (84.57, 0.40) and second.paper[4] == (0.6567, 0.011) and second.part == "public"
    assert tables[6][5].paper == ((84.25, 0.39), (80.33, 0.50), (46.10, 0.67), (0.3591, 0.0089), (0.6201, 0.012))
    assert {row.train_weight for row in tables[6]} == {"random"} and not {() for row in tables[6] if not row.visual}
    systems = {(row.base, row.visual, row.train_weight, row.infer_weight) for row in tables[7]}
    assert systems == {(row.base, row.visual, row.train_weight, row.infer_weight) for row in tables[5]}
    parts = [row.part for row in tables[7] if row.base == "conformer" and row.visual in ((), ("tce",))]
    assert parts == ["ignored", "unseen", "seen", "ignored", "unseen"]
    assert tables[7][4].paper[2] == (51.44, None) and tables[8][1].visual == ("openl3", "tce")
    # random weights come from the text, Sec. 3.2.2: close to tuned ones, mostly within one standard deviation
    assert all(abs(a.paper[0][0] - b.paper[0][0]) < 0.5 for a, b in zip(tables[6], tables[5][1:4] + tables[5][5:8]))


def scored_tiny(tmp_path):
    """Tiny data of which p1 of p0, p1, p2 cannot be seen, and random scores for its public clips"""
    root = write_tiny(tmp_path / "set", streams=("openl3", "tce"))
    for stream in ("openl3", "tce"):
        (root / "visual" / stream / "p1.npy").unlink()
    data = features.load_dataset(root, ["openl3", "tce"], log=quiet)
    rng = np.random.default_rng(1)
    tuned = {name: (np.full(2, 0.5), np.array([1, 3])) for name in ("CBF1", "SBF1", "EBF1")}
    tuned |= {name: (None, np.array([3, 1])) for name in ("PSDS1", "PSDS2")}
    public = data.partitions["public"]
    truth = features.frame_targets(public.filenames, public.events, data.classes)
    return data, (0.6 * rng.random((3, 64, 2)) + 0.4 * truth, rng.random((3, 2))), tuned


def test_scores_by_availability_of_video(tmp_path):
    data, scores, tuned = scored_tiny(tmp_path)
    part = data.partitions["public"]
    parts = train.evaluate_public(data, *scores, tuned)
    assert list(parts) == ["public", "seen", "unseen"]
    durations = dict(zip(part.filenames, part.durations))

    def by_hand(frame, clip, rows):
        names = [part.filenames[i] for i in rows]
        truth = [event for event in part.events if event[0] in names]
        lengths = {name: durations[name] for name in names}
        found = metrics.scores_to_events(
            frame[rows], names, data.classes, 0.5, np.array([1, 3]), features.FRAME_HOP, lengths
        )
        return {
            "CBF1": metrics.clip_f1(part.tags[rows], clip[rows] > 0.5).micro,
            "SBF1": metrics.segment_f1(truth, found, data.classes).micro,
            "EBF1": metrics.event_f1(truth, found, data.classes).macro,
            "PSDS1": metrics.psds_from_scores(
                frame[rows], names, truth, lengths, data.classes, features.FRAME_HOP, np.array([3, 1]), **PSDS1
            ),
        }

    for name, rows in {"public": [0, 1, 2], "seen": [0, 2], "unseen": [1]}.items():
        for score, value in by_hand(*scores, rows).items():
            assert math.isclose(parts[name][score], value, abs_tol=1e-12) or math.isnan(value), (name, score)
    assert parts["seen"] != parts["unseen"]
    for have in (np.zeros(3, bool), np.ones(3, bool)):  # all or none seen: the other part does not exist
        part.present = {"openl3": have, "tce": have}
        assert list(train.evaluate_public(data, *scores, tuned)) == ["public", "seen" if have.any() else "unseen"]


def test_predictions_on_disk_give_the_same_scores(tmp_path):
    data, scores, tuned = scored_tiny(tmp_path)
    part = data.partitions["public"]
    train.write_predictions(tmp_path, part, data.classes, *scores, tuned)
    expected = train.evaluate(part, data.classes, *scores, tuned)
    found = metrics.read_events(tmp_path / "predictions.tsv")
    assert math.isclose(metrics.event_f1(part.events, found, data.classes).macro, expected["EBF1"])
    found = metrics.read_events(tmp_path / "predictions_SBF1.tsv")
    assert math.isclose(metrics.segment_f1(part.events, found, data.classes).micro, expected["SBF1"])
    tags = features.read_weak(tmp_path / "predictions_CBF1.tsv")
    active = np.array([[label in tags[name] for label in data.classes] for name in part.filenames])
    assert math.isclose(metrics.clip_f1(part.tags, active).micro, expected["CBF1"])
    for name, criteria in (("PSDS1", PSDS1), ("PSDS2", PSDS2)):
        rows = [row.split("\t") for row in (tmp_path / f"predictions_{name}.tsv").read_text().splitlines()[1:]]
        points = [
            [(f, float(a), float(b), label) for f, a, b, label, at in rows if float(at) == round(threshold, 2)]
            for threshold in metrics.THRESHOLDS_50
        ]
        lengths = dict(zip(part.filenames, part.durations))
        value = metrics.psds(part.events, points, lengths, data.classes, **criteria)
        assert math.isclose(value, expected[name], abs_tol=1e-6) and value > 0, name


def test_weights_are_searched_without_encoding_again(tmp_path):
    data = features.load_dataset(write_tiny(tmp_path), ["openl3"], log=quiet)
    student = MultiEncoder(2, {"openl3": 6})
    calls = []
    student.cnn.register_forward_hook(lambda *_: calls.append("cnn"))
    student.decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    train.predict(student, data, data.partitions["public"], train.INFER_WEIGHTS, torch.device("cpu"))
    assert calls == ["cnn"] + ["decoder"] * 4


def test_the_best_pair_of_weights_on_validation_wins():
    config = dict(data="", epochs=1, batches=1, batch_size=(1, 1, 1), precision="fp32", infer_weight=0.75)
    configs, reports = {}, {}
    for train_weight in train.INFER_WEIGHTS:
        for seed in range(2):
            name = f"{train_weight}-{seed}"
            configs[name] = train.Config(
                base="transformer", visual=("openl3",), train_weight=train_weight, seed=seed, **config
            )
            by_weight = {}
            for w in train.INFER_WEIGHTS:
                ebf1 = 0.9 if (train_weight, w) == (0.875, 0.5) else 0.95 * seed * (w == 0.25)  # mean .475 at 0.25
                public = dict.fromkeys(train.TUNED, train_weight + w / 10 + seed / 100)
                by_weight[str(w)] = {"validation": {"EBF1": ebf1}, "public": public}
            reports[name] = {"by_weight": by_weight}
    row = train.rows_of(5)[1]
    arguments = ["--table", "5"]
    paper = train.result_of(row, configs, reports, train.parse_arguments(arguments))
    assert paper[:2] == (0.5, 0.75) and np.allclose(paper[2]["CBF1"], [0.575, 0.585])
    auto = train.result_of(row, configs, reports, train.parse_arguments([*arguments, "--infer-weight", "auto"]))
    assert auto[:2] == (0.5, 0.25)
    both = train.parse_arguments([*arguments, "--search-train-weight"])
    found = train.result_of(row, configs, reports, both)
    assert found[:2] == (0.875, 0.5) and np.allclose(found[2]["PSDS1"], [0.925, 0.935])
    assert train.cell("CBF1", *train.mean_and_deviation("CBF1", [0.8, 0.82, 0.84])) == "   82.00 ±2.00  "
    assert train.cell("PSDS1", *train.mean_and_deviation("PSDS1", [0.5])) == "  0.5000        "
    assert train.mean_and_deviation("EBF1", [None, 0.5]) == (50, None)
    assert train.cell("EBF1", *train.mean_and_deviation("EBF1", [])).split() == ["?"]


def test_the_papers_figures_stand_only_beside_real_data(tmp_path):
    data = features.load_dataset(write_tiny(tmp_path), [], log=quiet)
    rows = train.rows_of(6)[-1:]
    results = [("random", 0.875, {name: [0.5, 0.6] for name in train.TUNED})]
    text = train.table_text(6, rows, results, data)
    assert "55.00 ±7.07" in text and "paper" in text.splitlines()[-1] and "84.25" not in text
    for name, part in data.partitions.items():
        part.listed = train.DCASE_2020[name]
    text = train.table_text(6, rows, results, data)
    assert re.search(r"the paper: +84.25 ±0.39 +80.33 ±0.50 +46.10 ±0.67 +0.3591 ±0.0089 +0.6201 ±0.0120$", text)


def test_a_table_is_filled_by_several_processes_and_nothing_is_done_twice(tmp_path, capsys, monkeypatch):
    root = write_tiny(tmp_path / "set")
    (root / "visual/openl3/p1.npy").unlink()
    short = "--epochs 1 --batches 2 --batch-size 1 1 2".split()
    base = ["--table", 5, "--base", "transformer", "--data", root, "--runs", 2, "--out", tmp_path / "t", *short]
    ranks = torchrun(2, HERE / "train.py", *base, stdout=subprocess.PIPE)
    run("--data", root, "--visual", "openl3", "--seed", 1, "--out", tmp_path / "alone", *short)  # meanwhile
    capsys.readouterr()
    printed = ranks.communicate()[0]
    assert ranks.returncode == 0 and "Table 5, runs: 2" in printed and "incomplete" not in printed
    assert "visual/vgg16: its rows are left out" in printed
    names = {f"transformer-{name}-{seed}" for name in ("audio-w1.0", "openl3-w0.5") for seed in (0, 1)}
    assert {path.parent.name for path in (tmp_path / "t").glob("*/model.pt")} == names
    stamps = {name: (tmp_path / "t" / name / "model.pt").stat().st_mtime_ns for name in names}
    for name in names:  # each run was begun once, by one of the two
        assert (tmp_path / "t" / name / "log.txt").read_text().count("model  ") == 1
    assert same_weights(weights_of(tmp_path / "t/transformer-openl3-w0.5-1"), weights_of(tmp_path / "alone"))

    shutil.rmtree(tmp_path / "t/transformer-audio-w1.0-1")  # one is missing: it alone is done
    run(*base)
    table_5 = capsys.readouterr().out
    run("--table", 7, *base[2:])
    table_7 = capsys.readouterr().out
    assert table_5.count("model  ") == 1 and "4/4 runs | transformer-audio-w1.0-1 done" in table_5
    assert "done" not in table_7
    del stamps["transformer-audio-w1.0-1"]
    assert stamps == {name: (tmp_path / "t" / name / "model.pt").stat().st_mtime_ns for name in stamps}
    reports = [json.loads((tmp_path / f"t/transformer-openl3-w0.5-{s}/metrics.json").read_text()) for s in (0, 1)]
    values = [report["by_weight"]["1.0"]["seen"]["CBF1"] for report in reports]
    line = next(line for line in table_7.splitlines() if line.startswith("transformer + openl3 (available, ignored)"))
    assert train.cell("CBF1", *train.mean_and_deviation("CBF1", values)).strip() in line
    assert len(re.findall("^transformer", table_7, re.M)) == 5
    results = (tmp_path / "t/results.tsv").read_text().splitlines()
    assert len(results) == 5 and results[0].split("\t")[-1] == "PSDS2"
    with pytest.raises(SystemExit) as stop:  # the same folder, other runs
        run(*base, "--epochs", 2)
    assert stop.value.code == 2 and "is of a run with epochs 1" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # others are at work in every folder: reading what is finished needs no claim
        patch.setattr(train, "claimed", lambda folder, wait=False: contextlib.nullcontext(wait))
        run(*base)
    assert (tmp_path / "t/table_5.txt").read_text() in capsys.readouterr().out
    stamp = (tmp_path / "t/transformer-audio-w1.0-0/model.pt").stat().st_mtime_ns
    (root / "visual/openl3").rename(root / "visual/vgg16")  # other streams split by availability: scored anew
    run("--table", 7, *base[2:])
    report = json.loads((tmp_path / "t/transformer-audio-w1.0-0/metrics.json").read_text())
    assert report["streams"] == ["vgg16"] and capsys.readouterr().out.count("model  ") == 2  # only vgg16 is trained
    assert (tmp_path / "t/transformer-audio-w1.0-0/model.pt").stat().st_mtime_ns != stamp
    with pytest.raises(SystemExit) as stop:
        run("--table", 8, *base[2:])
    assert stop.value.code == 2 and "holds the streams of none of the table's rows" in capsys.readouterr().err


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


def write_flac_without_length(root):
    """Whoever writes to a pipe cannot go back and fill in the number of samples: 36 bits from byte 21 on, here zero"""
    path = root / "audio/train/weak/w2.wav"
    soundfile.write(path, np.zeros(32000), 16000, format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)


BAD = {
    "no length": (write_flac_without_length, r"w2\.wav: cannot be decoded"),
    "byte order": (
        lambda root: np.save(root / "visual/openl3/w3.npy", np.zeros((64, 6), ">f2")),
        r"w3\.npy: must be an array of float16, .* not >f2",
    ),
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
    data = features.load_dataset(root, ["openl3"], log=quiet)
    train_only = {
        **train.statistics_of(data, ["openl3"]),
        "config": train.asdict(tiny_config(root)),
        "classes": ["Cat", "Dog"],
        "data": data.identity(["openl3"]),
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
        "other streams": ({**train_only, "visual_statistics": {}}, "other data"),
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
        ["--table", "4"],
        ["--table", "5", "--visual", "openl3"],
        ["--table", "5", "--runs", "0"],
        ["--search-train-weight"],
        ["--runs", "2"],
        ["--benchmark", "--resume"],
        ["--benchmark", "--epochs", 3],
        ["--data", ""],
        ["--precision", "tf32", "--device", "cpu"],
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


def test_a_gpu_is_always_numbered(monkeypatch):
    monkeypatch.setattr(features, "choose_device", torch.device)  # without asking whether it is there
    assert train.choose_device("cuda") == torch.device("cuda", 0)  # torch.cuda.set_device refuses a plain "cuda"
    assert train.choose_device("cuda:1") == torch.device("cuda", 1) and train.choose_device("cpu").type == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert train.choose_device("cuda") == torch.device("cuda", 3)
    assert train.choose_device("mps").type == "cpu"  # ranks cannot talk from other devices


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


# --- visual networks -------------------------------------------------------------------------------------------------
# No published file is needed: weights are random, under the published names. A network on the meta device computes
# shapes without computing.


def resnet_entries(depths):
    """Published names and shapes of a ResNet with bottlenecks, as torchvision and TCE write them, without the head"""

    def norm(name, width):
        return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}

    entries, n_inputs = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}, 64
    for i, depth in enumerate(depths):
        width = 64 * 2**i
        for j in range(depth):
            block = f"layer{i + 1}.{j}."
            entries[f"{block}conv1.weight"] = (width, n_inputs, 1, 1)
            entries[f"{block}conv2.weight"] = (width, width, 3, 3)
            entries[f"{block}conv3.weight"] = (4 * width, width, 1, 1)
            for k, n in ((1, width), (2, width), (3, 4 * width)):
                entries |= norm(f"{block}bn{k}", n)
            if j == 0:
                entries[f"{block}downsample.0.weight"] = (4 * width, n_inputs, 1, 1)
                entries |= norm(f"{block}downsample.1", 4 * width)
            n_inputs = 4 * width
    return entries


def vgg16_entries():
    """Published names and shapes of VGG16, with its head"""
    entries, n_inputs = {}, 3
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for place, width in zip(places, (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)):
        entries |= {f"features.{place}.weight": (width, n_inputs, 3, 3), f"features.{place}.bias": (width,)}
        n_inputs = width
    for place, n_outputs, n_inputs in ((0, 4096, 25088), (3, 4096, 4096), (6, 1000, 4096)):
        entries |= {f"classifier.{place}.weight": (n_outputs, n_inputs), f"classifier.{place}.bias": (n_outputs,)}
    return entries


def random_weights(entries, light=False):
    """Name -> tensor; light: one value per output, repeated without taking memory or room in files"""
    torch.manual_seed(0)
    state = {}
    for name, shape in entries.items():
        if len(shape) == 1:
            state[name] = torch.rand(shape) + 0.5
        elif light:
            state[name] = torch.randn(shape[0], *[1] * (len(shape) - 1)).expand(shape)
        else:
            state[name] = torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
    return state


@pytest.fixture(scope="module")
def resnet50_file(tmp_path_factory):
    """A plain ResNet-50 as torchvision publishes it, classifier included"""
    path = tmp_path_factory.mktemp("weights") / "r.pth"
    torch.save({**random_weights(resnet_entries((3, 4, 6, 3))), "fc.weight": torch.zeros(1000, 2048)}, path)
    return path


def fake_keras(state):
    """What h5py shows of a Keras file with these weights of OpenL3Image: groups with attributes, names as bytes"""

    class Group(dict):
        def __init__(self, attrs, items):
            super().__init__(items)
            self.attrs = attrs

    def layer(name, kind, k, parts):
        arrays = {f"{name}/{key}:0": state[f"{kind}.{k}.{ours}"].numpy() for key, ours in parts.items()}
        if kind == "convs":
            arrays[f"{name}/kernel:0"] = arrays[f"{name}/kernel:0"].transpose(2, 3, 1, 0)
        return name, Group({"weight_names": [key.encode() for key in arrays]}, arrays)

    norm = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    layers = [("input_1", Group({"weight_names": []}, {})), layer("batch_normalization_7", "norms", 0, norm)]
    for k in range(8):
        layers.append(layer(f"conv2d_{k + 9}", "convs", k, {"kernel": "weight", "bias": "bias"}))
        layers.append((f"activation_{k}", Group({"weight_names": []}, {})))
        if k < 7:
            layers.append(layer(f"batch_normalization_{k + 8}", "norms", k + 1, norm))
    return Group({"layer_names": [name.encode() for name, _ in layers]}, layers)


def openl3_weights():
    with torch.device("meta"):
        entries = {k: v.shape for k, v in features.OpenL3Image().state_dict().items() if "num_batches" not in k}
    return random_weights(entries)


def video_frames(n, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "name, count, width",
    [("openl3", 4688198, 512), ("vgg16", 134260544, 4096), ("tce", 23508032, 2048), ("resnet152", 58143808, 2048)],
)
def test_visual_networks_have_the_published_size(name, count, width):
    with torch.device("meta"):  # resnet152: torchvision's 60,192,808 without its classifier of 2,049,000
        network = features.NETWORKS[name][0]().eval()
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, width)
    assert sum(p.numel() for p in network.parameters()) == count


def test_layer_shapes_of_the_visual_networks():
    with torch.device("meta"):
        openl3, vgg16, resnet = features.OpenL3Image(), features.VGG16(), features.ResNet((3, 4, 6, 3))
        pools = [layer for layer in vgg16.features if isinstance(layer, nn.MaxPool2d)]
        stages = [resnet.conv1, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
        for network, layers, shapes in (
            (openl3, openl3.convs, [(n, s, s) for n, s in ((64, 224), (128, 112), (256, 56), (512, 28)) for _ in "ab"]),
            (vgg16, pools, [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]),
            (vgg16, [vgg16.classifier[0], vgg16.classifier[3]], [(4096,), (4096,)]),
            (resnet, stages, [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]),
        ):
            seen = []
            hooks = [
                layer.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape[1:]))) for layer in layers
            ]
            network.eval()(torch.empty(1, 3, 224, 224))
            assert seen == shapes
            for hook in hooks:
                hook.remove()


def test_published_names_and_shapes_are_those_of_the_networks():
    for name, entries in (
        ("vgg16", vgg16_entries()),
        ("tce", resnet_entries((3, 4, 6, 3))),
        ("resnet152", resnet_entries((3, 8, 36, 3))),
    ):
        with torch.device("meta"):
            own = features.NETWORKS[name][0]().state_dict()
        own = {key: tuple(value.shape) for key, value in own.items() if not key.endswith("num_batches_tracked")}
        assert own == {key: shape for key, shape in entries.items() if not key.startswith("classifier.6.")}


def test_openl3_layer_by_layer():
    state = openl3_weights()
    network = features.OpenL3Image().eval()
    network.load_state_dict(state, strict=False)

    def conv(x, k):
        return nn.functional.conv2d(x, state[f"convs.{k}.weight"], state[f"convs.{k}.bias"], padding=1)

    def norm(x, k):
        mean, var, gain, shift = (
            state[f"norms.{k}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 0.001).sqrt() * gain + shift

    def pool(x):
        return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))

    frames = torch.from_numpy(video_frames(2))
    x = norm(frames.permute(0, 3, 1, 2) / 127.5 - 1, 0)
    x = pool(norm(conv(norm(conv(x, 0), 1).relu(), 1).relu(), 2))  # the second norm comes after its ReLU
    x = pool(norm(conv(norm(conv(x, 2), 3).relu(), 3), 4).relu())
    x = pool(norm(conv(norm(conv(x, 4), 5).relu(), 5), 6).relu())
    x = conv(norm(conv(x, 6), 7).relu(), 7).flatten(2).max(2).values  # and no ReLU at the end
    assert x.min() < 0 and np.allclose(features.embed_frames(network, frames.numpy()), x, atol=1e-4)


def test_bottleneck_by_hand():
    torch.manual_seed(0)
    block, x = features.Bottleneck(8, 4, 2).eval(), torch.randn(1, 8, 5, 5)
    for norm in (block.bn1, block.bn2, block.bn3, block.downsample[1]):
        nn.init.uniform_(norm.running_mean, -1, 1), nn.init.uniform_(norm.running_var, 0.5, 2)
    with torch.no_grad():
        inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()  # (1, 4, 3, 3)
        assert block.conv1.stride == (1, 1) and inner.shape == (1, 4, 3, 3)
        shortcut = torch.einsum("oi,nihw->nohw", block.downsample[0].weight[:, :, 0, 0], x[:, :, ::2, ::2])
        want = (block.bn3(block.conv3(inner)) + block.downsample[1](shortcut)).relu()
        assert torch.allclose(block(x), want, atol=1e-5)
        same = features.Bottleneck(16, 4, 1).eval()
        assert not list(same.downsample.parameters()) and same(torch.randn(1, 16, 5, 5)).shape == (1, 16, 5, 5)


def test_pixels_are_scaled_as_each_network_was_trained():
    frame = torch.tensor([[[[0, 127, 255], [255, 0, 51]]]], dtype=torch.uint8)  # one frame of 1 x 2 pixels, RGB
    with torch.device("meta"):
        openl3, vgg16, tce = features.OpenL3Image(), features.VGG16(), features.ResNet((3, 4, 6, 3))
    got = features.prepare_frames(frame, openl3)
    assert got.shape == (1, 3, 1, 2) and got.dtype == torch.float32
    assert torch.allclose(got[0, :, 0].T, torch.tensor([[-1, -0.00392157, 1], [1, -1, -0.6]]), atol=1e-6)
    want = torch.tensor([[-2.11790393, 0.18767507, 2.64], [2.24890829, -2.03571429, -0.91555556]])
    for network in (vgg16, tce):
        assert torch.allclose(features.prepare_frames(frame, network)[0, :, 0].T, want, atol=1e-5)


def test_published_files_load_by_their_own_names(tmp_path, resnet50_file):
    weights, path = random_weights(vgg16_entries(), light=True), tmp_path / "w.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=False)  # the published file is of the older kind
    vgg16 = features.load_network("vgg16", path)
    assert torch.equal(vgg16.classifier[3].weight[:, 7], weights["classifier.3.weight"][:, 7]) and not vgg16.training
    entries = resnet_entries((3, 4, 6, 3))
    weights = random_weights(entries)
    counters = {f"{key[:-7]}.num_batches_tracked": torch.tensor(9) for key in entries if key.endswith(".weight")}
    counters = {key: value for key, value in counters.items() if "bn" in key or "downsample.1" in key}
    head = {"module.fc_contrastive.weight": torch.zeros(128, 2048), "module.bn_rotation_1.running_mean": torch.zeros(9)}
    for prefix, more in (("module.backbone.", {}), ("backbone.", counters)):
        state = {f"{prefix}{key}": value for key, value in (weights | more).items()} | head
        torch.save({"epoch": 3, "state_dict": state}, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tce = features.load_network("tce", path)
        assert torch.equal(tce.layer4[2].conv3.weight, weights["layer4.2.conv3.weight"])
        assert torch.equal(tce.layer1[0].downsample[1].running_var, weights["layer1.0.downsample.1.running_var"])
    with pytest.warns(UserWarning, match="not TCE"):
        assert torch.equal(features.load_network("tce", resnet50_file).bn1.bias, weights["bn1.bias"])
    weights = random_weights(resnet_entries((3, 8, 36, 3)), light=True)
    torch.save(weights, path)
    assert torch.equal(features.load_network("resnet152", path).layer3[35].bn2.bias, weights["layer3.35.bn2.bias"])


def test_keras_weights_are_mapped_by_order(tmp_path):
    weights = openl3_weights()
    file = fake_keras(weights)
    state = features.openl3_state(file)
    assert state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)
    whole = type(file)({}, {"model_weights": file})  # as Keras stores a model together with its weights
    assert features.openl3_state(whole).keys() == weights.keys()
    torch.save(state, tmp_path / "openl3.pt")
    assert torch.equal(features.load_network("openl3", tmp_path / "openl3.pt").convs[7].bias, weights["convs.7.bias"])


def test_converting_an_h5_file(tmp_path, capsys):
    h5py = pytest.importorskip("h5py", reason="h5py is only needed to convert OpenL3's file")

    def write(target, group):
        for key, value in group.attrs.items():
            target.attrs[key] = np.array(value, "S")
        for key, value in group.items():
            write(target.create_group(key), value) if isinstance(value, dict) else target.create_dataset(
                key, data=value
            )

    weights = openl3_weights()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file, fake_keras(weights))
    features.main(["convert", str(tmp_path / "a.h5"), str(tmp_path / "openl3.pt")])
    network = features.load_network("openl3", tmp_path / "openl3.pt")
    assert torch.equal(network.convs[3].weight, weights["convs.3.weight"])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        write(file, fake_keras({**weights, "convs.7.bias": torch.zeros(3)}))
    (tmp_path / "c.h5").write_bytes(b"\x1f\x8bpacked")
    for name in ("b.h5", "c.h5", "d.h5"):
        with pytest.raises(SystemExit) as stop:
            features.main(["convert", str(tmp_path / name), str(tmp_path / "x.pt")])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and re.fullmatch(rf"error: .*{name}: not OpenL3's .*h5\.gz of https.*\n", error)
    assert not list(tmp_path.glob("x.pt*"))


def test_convert_without_h5py_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SystemExit) as stop:
        features.main(["convert", "a.h5", str(tmp_path / "x.pt")])
    assert stop.value.code == 2 and "pip install h5py" in capsys.readouterr().err


def test_the_number_of_frames_in_a_batch_changes_nothing(monkeypatch, resnet50_file):
    openl3 = features.OpenL3Image().eval()
    openl3.load_state_dict(openl3_weights(), strict=False)
    with pytest.warns(UserWarning, match="not TCE"):
        resnet = features.load_network("tce", resnet50_file)
    frames = video_frames(5)
    for network in (openl3, resnet):
        vectors = []
        for size in (1, 2, 16):
            monkeypatch.setattr(features, "FRAME_BATCH", size)
            vectors.append(features.embed_frames(network, frames))
        assert np.abs(vectors[0]).max() > 0.01 and np.ptp(vectors[0], axis=0).max() > 1e-4
        assert np.allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-5)
        assert np.allclose(vectors[0], vectors[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, wanted", [("openl3", "marl/openl3"), ("vgg16", "vgg16-397923af"), ("tce", "TCE"), ("resnet152", "394f9c45")]
)
def test_wrong_weights_get_one_sentence(name, wanted, tmp_path):
    path = tmp_path / "w.pth"
    bad = [b"", b"garbage", b"PK\x03\x04 cut"]
    bad += [{}, [1, 2], torch.zeros(3), {"conv1.weight": torch.zeros(3)}, {"state_dict": {"x": torch.zeros(1)}}]
    bad.append({"a": Path("holds more than tensors")})
    bad.append(random_weights(resnet_entries((2, 2, 2, 2)), light=True))  # not a depth that anyone asked for
    for content in bad:
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with (
            pytest.raises(features.InputError, match=rf"w\.pth: .*{name} wants .*{wanted}") as error,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            features.load_network(name, path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(features.InputError, match=r"none\.pth: No such file or directory; .* wants"):
        features.load_network(name, tmp_path / "none.pth")
    with pytest.raises(features.InputError, match="no such visual network; there are openl3, vgg16, tce, resnet152"):
        features.load_network("vgg19", path)


def test_weights_are_never_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    for zipped in (True, False):
        torch.save({"conv1.weight": Trap()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(features.InputError, match="not a file of tensors"):
            features.load_network("tce", tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


# --- frames from video -----------------------------------------------------------------------------------------------

with_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
# Brightness tells the time: 4 levels a picture, 25 pictures a second, over again every 40 pictures (1.6 s)
CLOCK = "nullsrc=s=64x48:r=25:d={},format=gray,geq=lum='20+mod(4*N,160)'"


def film(path, *inputs, options=("-c:v", "ffv1", "-pix_fmt", "gray")):
    """Make a video with ffmpeg from lavfi descriptions of its streams (strings) or other input arguments (lists)"""
    command = ["ffmpeg", "-v", "error", "-y"]
    for source in inputs:
        command += ["-f", "lavfi", "-i", source] if isinstance(source, str) else source
    subprocess.run([*command, *options, str(path)], check=True, stdin=subprocess.DEVNULL)
    return path


def times_shown(frames, near):
    """Seconds at which CLOCK showed these frames; near: roughly where, to tell one round of it from the next"""
    picture = (frames[:, 100:124, 100:124].mean((1, 2, 3)) - 20) / 4
    return picture / 25 + np.round((near - picture / 25) / 1.6) * 1.6


@with_ffmpeg
def test_frames_are_those_on_screen_at_their_time(tmp_path):
    path = film(tmp_path / "long.mkv", CLOCK.format(45))
    for start, seconds, n in ((0, 10, 64), (30, 10, 64), (36, 10, 58), (30, 4, 26), (0, 11, 64)):
        frames = features.read_frames(path, start, seconds)
        assert frames.shape == (n, 224, 224, 3) and frames.dtype == np.uint8
        times = start + np.arange(n) * 0.15625
        assert np.abs(times_shown(frames, times) - times).max() < 0.09  # half a step and a gray level
    with pytest.raises(features.InputError, match="no video"):
        features.read_frames(path, 50)


@with_ffmpeg
@pytest.mark.parametrize("seconds, rate, n", [(10, "30000/1001", 64), (10.24, 25, 64), (9.9, 25, 63), (7.3, 25, 47)])
def test_number_of_frames(tmp_path, seconds, rate, n):
    path = film(tmp_path / "v.mkv", f"testsrc=s=320x240:r={rate}:d={seconds}", options=("-c:v", "mpeg4"))
    assert features.read_frames(path).shape == (n, 224, 224, 3)


@with_ffmpeg
def test_frames_of_odd_videos(tmp_path):
    clock = film(tmp_path / "clock.mkv", CLOCK.format(10))
    times = np.arange(64) * 0.15625
    options = ("-vf", "select='not(mod(n,3))+lt(n,50)'", "-c:v", "ffv1")
    frames = features.read_frames(film(tmp_path / "vfr.mkv", ["-i", str(clock)], options=options))
    assert len(frames) == 64 and np.abs(times_shown(frames, times) - times).max() < 0.17  # where it has 8 a second
    late = film(  # the sound begins a second before the picture
        tmp_path / "late.mkv",
        "anullsrc=d=5",
        ["-itsoffset", "1", "-i", str(clock)],
        options=("-map", "0:a", "-map", "1:v", "-c:v", "copy", "-t", "8"),
    )
    frames = features.read_frames(late)
    assert np.abs(times_shown(frames, times[: len(frames)] - 1)[7:] - times[7 : len(frames)] + 1).max() < 0.09
    assert (times_shown(frames[:6], times[:6]) < 0.09).all()
    for size in ("321x181", "181x321", "64x48", "2x90"):
        path = film(tmp_path / "odd.mkv", f"testsrc=s={size}:r=25:d=1", options=("-c:v", "ffv1"))
        assert features.read_frames(path).shape == (6, 224, 224, 3)
    two = film(  # the larger picture, or the one that is marked as default
        tmp_path / "two.mkv",
        "color=red:s=64x64:d=1",
        "color=blue:s=96x96:d=1",
        "anullsrc=d=1",
        options=("-map", "0", "-map", "1", "-map", "2", "-c:v", "ffv1", "-disposition:v", "0"),
    )
    assert features.read_frames(two)[0, 100, 100].argmax() == 2
    film(
        two,
        "color=red:s=64x64:d=1",
        "color=blue:s=96x96:d=1",
        options=("-map", "0", "-map", "1", "-c:v", "ffv1", "-disposition:v:0", "default", "-disposition:v:1", "0"),
    )
    assert features.read_frames(two)[0, 100, 100].argmax() == 0


@with_ffmpeg
def test_rotation_and_the_centre_crop(tmp_path):
    halves = "color=red:s=320x240:r=25:d=1[a];color=blue:s=320x240:r=25:d=1[b];[a][b]hstack"  # 640x240
    path = film(tmp_path / "a.mp4", halves, options=("-c:v", "mpeg4", "-q:v", "2"))
    frame = features.read_frames(path)[0].astype(int)
    assert (frame[:, :110, 0] > 200).all() and (frame[:, 114:, 2] > 200).all()  # the border runs through the middle
    # the turn is written into the track header's matrix (a, b, c, d as 16.16 numbers): 90 degrees
    content = path.read_bytes()
    straight = bytes.fromhex("00010000 00000000 00000000 00000000 00010000 00000000 00000000 00000000 40000000")
    turned = bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000 00000000 00000000 00000000 40000000")
    place = content.index(straight, content.index(b"tkhd"))
    path.write_bytes(content[:place] + turned + content[place + len(straight) :])
    frame = features.read_frames(path)[0].astype(int)
    assert (frame[:110, :, 0] > 200).all() and (frame[114:, :, 2] > 200).all()


@with_ffmpeg
def test_videos_that_cannot_be_decoded_get_one_line(tmp_path):
    whole = film(tmp_path / "a.mp4", "testsrc=s=320x240:r=25:d=10", options=("-c:v", "mpeg4")).read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"<html>gone</html>")):
        (tmp_path / f"{name}.mp4").write_bytes(content)
    film(tmp_path / "sound.mp4", "anullsrc=d=2", options=())
    for name in ("cut", "empty", "text", "sound", "absent", "-x"):
        with pytest.raises(features.InputError, match=rf"{name}\.mp4: no video \(.*\)$") as error:
            features.read_frames(tmp_path / f"{name}.mp4")
        assert "\n" not in str(error.value)
    film(tmp_path / "a.mkv", "testsrc=s=320x240:r=25:d=10", options=("-c:v", "mpeg4"))
    cut = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(cut[: len(cut) // 2])  # this format can be read up to where it breaks off
    assert 20 < len(features.read_frames(tmp_path / "a.mkv")) < 45


def test_without_ffmpeg_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(features.InputError, match="ffmpeg: not found"):
        features.read_frames(tmp_path / "a.mp4")
    with pytest.raises(SystemExit) as stop:
        features.main(["extract", str(write_tiny(tmp_path / "set")), "--visual", "tce", "--weights", "w.pth"])
    assert stop.value.code == 2 and re.fullmatch("error: ffmpeg: not found.*\n", capsys.readouterr().err)


# --- python features.py extract --------------------------------------------------------------------------------------


def test_which_file_is_the_video_of_a_clip(tmp_path):
    def put(name):
        (tmp_path / name).touch()
        return tmp_path / name

    train, public = "Yabcdefg-_12_30.000_37.000.wav", "Ybcdefg-_12_120_131.wav"
    assert features.find_video(tmp_path, train) is None and features.find_video(tmp_path / "absent", "a.wav") is None
    whole = put("abcdefg-_12.webm")
    assert features.find_video(tmp_path, train) == (whole, 30, 7)
    assert features.find_video(tmp_path, public) is None
    assert (put("Ybcdefg-_12.mp4"), 120, 11) == features.find_video(tmp_path, public)
    cut = put("Yabcdefg-_12_30.000_37.000.mkv")  # a clip of its own comes before the whole video
    assert features.find_video(tmp_path, train) == (cut, 0, 10)
    put("05.avi"), put("5.mp4")
    assert features.find_video(tmp_path, "05.wav") is None and features.find_video(tmp_path, "5.ogg")[1:] == (0, 10)


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """A tiny data set whose videos need no ffmpeg: what a file holds is how many frames it has, or that it is broken"""
    root, calls = write_tiny(tmp_path / "set", streams=()), []
    (root / "video").mkdir()
    for name, content in {
        "Yaaaaaaaaaaa_0.000_10.000.mp4": "64",
        "bbb_bb-bbb_.mkv": "26",  # the whole video of Ybbb_bb-bbb__0.000_4.000
        "w2.webm": "1",
        "w3.mp4": "broken",
        "u1.mp4": "64",
        "gone.mp4": "64",
        "nobody.mp4": "64",  # not listed
    }.items():
        (root / "video" / name).write_text(content)

    def read_frames(path, start, seconds):
        calls.append(path.stem)
        if path.read_text() == "broken":
            raise features.InputError(f"{path}: no video (broken)")
        return video_frames(int(path.read_text()), seed=len(path.stem))

    monkeypatch.setattr(features, "read_frames", read_frames)
    monkeypatch.setattr(features, "find_ffmpeg", lambda: "ffmpeg")
    return root, calls


@pytest.fixture
def extract(resnet50_file):
    def run(root, *more):
        weights = [str(resnet50_file)] * (1 + len(more))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            features.main(["extract", str(root), "--visual", "tce", *more, "--weights", *weights])

    return run


def test_extract_fills_the_visual_folder(videos, extract, resnet50_file, capsys):
    root, calls = videos
    extract(root)
    out, folder = capsys.readouterr().out, root / "visual" / "tce"
    for line in (
        "strong         4 listed,     4 with audio,     0 with video,     0 with tce",
        "weak           4 listed,     4 with audio,     4 with video,     0 with tce",
        "unlabelled     7 listed,     6 with audio,     2 with video,     0 with tce",
    ):
        assert line in out
    assert re.search(r"counted as missing: .*w3\.mp4: no video \(broken\)\n$", out) and "5 clips extracted in 0:" in out
    made = ["Yaaaaaaaaaaa_0.000_10.000", "Ybbb_bb-bbb__0.000_4.000", "gone", "u1", "w2"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{stem}.npy" for stem in made]
    with pytest.warns(UserWarning, match="not TCE"):
        network = features.load_network("tce", resnet50_file)
    for stem, video, n in ((made[0], made[0], 64), (made[1], "bbb_bb-bbb_", 26), (made[4], "w2", 1)):
        vectors = np.load(folder / f"{stem}.npy")
        assert vectors.shape == (64, 2048) and vectors.dtype == np.float16
        want = features.embed_frames(network, video_frames(n, seed=len(video)))
        assert np.allclose(vectors[:n], want, rtol=2e-3, atol=1e-4) and (vectors[n:] == vectors[n - 1]).all()
    data = features.load_dataset(root, ("tce",), log=quiet)
    assert data.partitions["weak"].present["tce"].tolist() == [True, True, True, False]
    # once more: what exists is left alone, what was broken is tried again
    (folder / "u1.npy").unlink()
    (root / "video" / "w3.mp4").write_text("2")
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    calls.clear()
    extract(root)
    assert sorted(calls) == ["u1", "w3"] and len(list(folder.iterdir())) == 6
    assert (
        all(path.stat().st_mtime_ns == t for path, t in kept.items())
        and "4 had their files before, 0 cannot" in capsys.readouterr().out
    )


def test_extract_decodes_once_for_all_networks(videos, extract, monkeypatch):
    root, calls = videos
    narrow = features.OpenL3Image().eval()
    narrow.load_state_dict(openl3_weights(), strict=False)
    load = features.load_network
    monkeypatch.setattr(features, "load_network", lambda n, *args: narrow if n == "openl3" else load(n, *args))
    extract(root, "openl3")
    assert len(calls) == len(set(calls)) == 6
    assert np.load(root / "visual/openl3/u1.npy").shape == (64, 512) and len(list((root / "visual/tce").iterdir())) == 5
    (root / "visual/openl3/u1.npy").unlink()
    calls.clear()
    extract(root, "openl3")
    assert sorted(calls) == ["u1", "w3"]


def test_values_beyond_float16_stop_the_extraction(videos, extract, monkeypatch, capsys):
    root, _ = videos
    for value in (65505.0, math.nan, -math.inf):
        monkeypatch.setattr(features, "embed_frames", lambda *_, v=value: np.array([[1.0, v]], np.float32))
        with pytest.raises(SystemExit) as stop:
            extract(root)
        assert stop.value.code == 2
        assert re.fullmatch(r"error: .*\.mp4 through .*r\.pth: the network gives .*\n", capsys.readouterr().err)
    assert not [path for path in (root / "visual").rglob("*") if path.is_file()]
    monkeypatch.setattr(features, "embed_frames", lambda *_: np.array([[-65504.0]], np.float32))
    extract(root)


def test_vectors_appear_only_when_complete(tmp_path, monkeypatch):
    def fail(file, array):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        features.save_vectors(tmp_path / "visual" / "Ya_1.000_2.000.npy", np.zeros((64, 2)))
    assert not list((tmp_path / "visual").iterdir())


def test_decoding_runs_ahead_but_not_away(monkeypatch):
    started, three = [], threading.Barrier(3)

    def read_frames(path, start, seconds):
        started.append(path)
        if path < 3:
            three.wait(timeout=60)  # goes on when three decode at once
        return path

    monkeypatch.setattr(features, "read_frames", read_frames)
    monkeypatch.setattr(features, "cores", lambda: 3)
    for i, frames in enumerate(features.decode_ahead([(k, 0, 10) for k in range(30)])):
        time.sleep(0.01)  # time to run further ahead, if that were possible
        assert frames == i and len(started) <= i + 4
    assert i == 29


def test_progress_shows_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    for done in (99, 100, 300):
        features.show_progress("extracted", done, 300, 990.0)
    assert capsys.readouterr().out == "       extracted: 100/300 | 0:20 left\n       extracted: 300/300 | 0:00 left\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    features.show_progress("extracted", 1, 7, 990.0)
    assert capsys.readouterr().out.startswith("\r       extracted: 1/7 | 1:00 left")


@with_ffmpeg
def test_extract_from_real_files(tmp_path, extract, resnet50_file):
    root = write_tiny(tmp_path / "set", streams=())
    (root / "video").mkdir()
    film(root / "video" / "bbb_bb-bbb_.mkv", CLOCK.format(2))
    film(root / "video" / "w2.webm", "testsrc=s=90x120:r=10:d=0.3", options=("-f", "matroska", "-c:v", "mpeg4"))
    (root / "video" / "w3.mp4").write_bytes(b"not a video")
    extract(root)
    assert sorted(p.stem for p in (root / "visual/tce").iterdir()) == ["Ybbb_bb-bbb__0.000_4.000", "w2"]
    with pytest.warns(UserWarning, match="not TCE"):
        vectors = features.video_embeddings(root / "video" / "w2.webm", "tce", resnet50_file)
    assert vectors.shape == (64, 2048) and vectors.dtype == np.float16
    assert np.array_equal(vectors, np.load(root / "visual/tce/w2.npy"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--visual", "tce"], "--weights"),
        (["--visual", "tce", "vgg16", "--weights", "r.pth"], "one file for each"),
        (["--visual", "tce", "tce", "--weights", "r.pth", "r.pth"], "different names"),
        (["--visual", "vgg19", "--weights", "r.pth"], "invalid choice"),
        (["--visual", "tce", "--weights", "none.pth"], "error: none.pth: No such file"),
        (["--visual", "tce", "--weights", "r.pth", "--device", "nonsense"], "error: --device nonsense: not available"),
    ],
)
def test_bad_flags_of_extract(videos, flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        features.main(["extract", str(videos[0]), *flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and "Traceback" not in error


def test_extract_without_videos_or_data_gets_one_line(videos, extract, tmp_path, capsys):
    shutil.rmtree(videos[0] / "video")
    for root, message in (
        (videos[0], "video: no video of any listed clip"),
        (tmp_path / "no", "soundscapes.tsv: no such file"),
    ):
        with pytest.raises(SystemExit) as stop:
            extract(root)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1


# --- train.py: prediction on recordings of any length ----------------------------------------------------------------

CPU = torch.device("cpu")


def tiny_model(path, streams=("openl3",), threshold=0.0, base="transformer", **changes):
    """A model.pt as a run leaves it: random weights, two classes, streams of 6 and 5 values"""
    torch.manual_seed(0)
    dims = dict(zip(streams, (6, 5)))
    state = {
        "config": {"base": base},
        "classes": ["Cat", "Dog"],
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
    return train.load_trained(tiny_model(*args, **kwargs), CPU)


class FollowsEnergy(nn.Module):
    """A stand-in for the network, with one class: a frame's logit is its mean log-mel, plus 8"""

    streams = ()

    def encode(self, log_mel, visual, present):
        return (log_mel.unflatten(1, (64, 8)).mean((2, 3))[:, :, None] + 8,)  # (B, 64, 1)

    def decode(self, logits, audio_weight):
        return logits, logits.amax(1)


def listener():
    data = features.DataSet(["Sound"], {}, (np.zeros(64, np.float32), np.ones(64, np.float32)), {})
    return train.Trained(FollowsEnergy(), data, 1.0, np.array([0.5]), np.array([3]))


def noise_at(path, seconds, *intervals, rate=16000):
    """A wav of silence with white noise in the intervals"""
    sound = np.zeros(round(seconds * rate))
    for onset, offset in intervals:
        n = round(offset * rate) - round(onset * rate)
        sound[round(onset * rate) : round(offset * rate)] = np.random.default_rng(0).uniform(-0.3, 0.3, n)
    write_wav(path, sound, rate)
    return path


def test_an_event_across_a_window_border_comes_out_once(tmp_path):
    intervals = [(4.2, 5.9), (9.2, 11.3), (14.0, 26.0), (29.0, 30.1)]  # windows begin at 5.008 k and end 10 s later
    path = noise_at(tmp_path / "a.wav", 30.1, *intervals)
    heard = train.hear(listener(), path, {}, {}, CPU)
    found = train.events_of(listener(), "a.wav", heard)
    assert len(found) == 4 and heard.windows == 6 and heard.seconds == 30.1
    for (name, onset, offset, label), (start, end) in zip(found, intervals):
        assert (name, label) == ("a.wav", "Sound") and abs(onset - start) < HOP and abs(offset - end) < HOP
        assert offset <= 30.1


def test_stitching_by_hand():
    one = np.random.default_rng(0).random((1, 64, 3), np.float32)
    assert np.array_equal(train.stitch(one), one[0])
    ones = np.stack([np.ones((64, 1)), np.zeros((64, 1)), np.ones((64, 1))])
    got = train.stitch(ones)
    assert got.shape == (128, 1) and np.all(got[:32] == 1) and np.all(got[96:] == 1)
    assert np.allclose(got[32:64, 0], np.arange(32, 0, -1) / 33) and np.allclose(got[64:96, 0], np.arange(1, 33) / 33)


def test_windows_lie_on_the_grid_of_frames():
    assert train.STRIDE_SAMPLES == round(train.STRIDE * HOP * 16000) == 80128
    for n, count in ((5, 1), (160000, 1), (160001, 2), (240128, 2), (240129, 3), (400000, 4)):
        sound = np.arange(n, dtype=np.float32)
        windows = list(train.cut_windows(np.split(sound, range(7777, n, 7777))))
        assert [start for start, _ in windows] == [80128 * k for k in range(count)]
        for start, window in windows:
            assert np.array_equal(window, sound[start : start + 160000])


@pytest.mark.parametrize("rate", (8000, 11025, 16000, 22050, 44100, 48000))
def test_blocks_are_the_recording(tmp_path, rate):
    path = tmp_path / "a.flac"
    write_wav(path, np.random.default_rng(0).uniform(-0.5, 0.5, (round(21.3 * rate), 2)), rate)
    blocks = list(features.read_blocks(path))
    whole, sound = features.read_waveform(path), np.concatenate(blocks)
    assert len(blocks) > 2 and max(map(len, blocks)) < 250000 and sound.shape == whole.shape
    assert sound.dtype == np.float32 and np.allclose(sound / np.abs(sound).max(), whole, atol=1e-5)
    assert features.recording_seconds(path) == pytest.approx(21.3, abs=1e-3)


@pytest.mark.parametrize("seconds, rate", ((2, 16000), (10, 16000), (7.5, 44100)))
def test_short_recordings_score_as_in_training(tmp_path, seconds, rate):
    sound = 0.3 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    write_wav(tmp_path / "a.wav", sound * np.linspace(0, 1, len(sound)), rate)
    trained = loaded(tmp_path / "model.pt")
    vectors = np.random.default_rng(1).standard_normal((64, 6)).astype(np.float16)
    got = train.hear(trained, tmp_path / "a.wav", {}, {"openl3": vectors}, CPU)
    part = features.Partition("validation", tmp_path, 1, ["a.wav"])
    part.log_mel = features.log_mel(features.load_audio(tmp_path / "a.wav"))[None].numpy()
    part.visual, part.present = {"openl3": vectors[None]}, {"openl3": np.array([True])}
    wanted = train.predict(trained.student, trained.data, part, [0.5], CPU)[0.5][0][0]
    assert got.seconds == seconds and got.seen == {"openl3": 1} and np.allclose(got.frame_scores, wanted, atol=1e-6)


def test_without_video_the_model_only_listens(tmp_path):
    path = noise_at(tmp_path / "a.wav", 13, (1, 2), (8, 12))
    trained = loaded(tmp_path / "model.pt", ("openl3", "tce"))
    blind = train.hear(trained, path, {}, {}, CPU).frame_scores
    vectors = {s: np.random.default_rng(1).standard_normal((64, d)) for s, d in (("openl3", 6), ("tce", 5))}
    seeing = train.hear(trained, path, {}, vectors, CPU)
    assert seeing.seen == {"openl3": 1, "tce": 1} and seeing.windows == 2  # stored vectors are of the first window
    assert not np.allclose(blind[:64], seeing.frame_scores[:64]) and np.array_equal(
        blind[64:], seeing.frame_scores[64:]
    )
    trained.audio_weight = 1.0
    assert np.allclose(blind, train.hear(trained, path, {}, vectors, CPU).frame_scores, atol=1e-6)
    trained.audio_weight = 0.5
    for array in vectors.values():
        array[3, 4] = np.nan
    missing = train.hear(trained, path, {}, vectors, CPU)
    assert missing.seen == {"openl3": 0, "tce": 0} and np.array_equal(blind, missing.frame_scores)


def test_windows_are_scaled_one_by_one(tmp_path):
    sound = 0.01 * np.random.default_rng(0).standard_normal(40 * 16000)
    write_wav(tmp_path / "a.wav", sound, subtype="FLOAT")
    quiet_scores = train.hear(listener(), tmp_path / "a.wav", {}, {}, CPU).frame_scores
    sound[35 * 16000] = 1  # one bang
    write_wav(tmp_path / "a.wav", sound, subtype="FLOAT")
    got = train.hear(listener(), tmp_path / "a.wav", {}, {}, CPU).frame_scores
    assert np.array_equal(got[:150], quiet_scores[:150]) and (got[192:] < quiet_scores[192:]).all()


def test_long_recordings_take_no_more_memory(tmp_path):
    peaks = []
    for minutes in (6, 12):
        path = noise_at(tmp_path / f"{minutes}.wav", 60 * minutes, (1, 60 * minutes - 1), rate=8000)
        tracemalloc.start()
        train.hear(listener(), path, {}, {}, CPU)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] < 50e6  # the longer one alone is 46 MB as float32 at 16 kHz


def test_each_window_sees_its_own_part_of_the_video(tmp_path, monkeypatch):
    asked = []

    def read_frames(path, start, seconds):
        asked.append((start, seconds))
        if start > 6:
            raise features.InputError("the picture ends here")
        return start

    monkeypatch.setattr(features, "read_frames", read_frames)
    monkeypatch.setattr(features, "clip_vectors", lambda network, frames, _: np.full((64, network), frames))
    got = train.vectors_of_windows("a.mp4", [0.0, 5.008, 10.016], {"openl3": 6, "tce": 5}, {})
    assert sorted(asked) == [(0.0, 10), (5.008, 10), (10.016, 10)]
    assert got["tce"][0].shape == (64, 5) and (got["openl3"][1] == 5.008).all() and got["openl3"][2] is None
    monkeypatch.setattr(features, "has_picture", lambda path: True)
    trained = loaded(tmp_path / "model.pt", ("openl3", "tce"))
    path = noise_at(tmp_path / "a.wav", 20, (1, 15))
    heard = train.hear(trained, path, {"openl3": 6, "tce": 5}, {}, CPU)
    assert heard.windows == 3 and heard.seen == {"openl3": 2, "tce": 2}


def test_predict_prints_and_writes_events(tmp_path, capsys):
    model = tiny_model(tmp_path / "run/model.pt")
    files = [noise_at(tmp_path / "in" / f"{name}.wav", seconds, (0, 1)) for name, seconds in (("b", 2), ("a", 12.3))]
    run("--predict", model, *files, "--out", tmp_path / "out/new", "--scores")
    printed = capsys.readouterr()
    rows = [(f"{n}.wav", end, label) for n, end in (("b", 2.0), ("a", 12.3)) for label in ("Cat", "Dog")]
    table = "filename\tonset\toffset\tevent_label\n" + "".join(f"{n}\t0.0\t{end}\t{label}\n" for n, end, label in rows)
    assert printed.out == table  # the threshold is 0, so each class sounds from the beginning to the end
    assert (tmp_path / "out/new/predictions.tsv").read_text() == table
    assert "tuned for EBF1" in printed.err and printed.err.count("predicted from sound alone (acoustic weight 1)") == 2
    assert sorted(p.name for p in (tmp_path / "out/new").iterdir()) == [
        "a.wav.scores.npy",
        "b.wav.scores.npy",
        "predictions.tsv",
    ]
    assert np.load(tmp_path / "out/new/a.wav.scores.npy").shape == (math.ceil(12.3 / HOP), 2)
    run("--predict", tiny_model(tmp_path / "deaf.pt", threshold=1.0), files[0])
    assert capsys.readouterr().out == "filename\tonset\toffset\tevent_label\n"


def test_predict_on_a_clip_gives_the_events_of_its_run(tmp_path, capsys):
    root, path = write_tiny(tmp_path / "set"), tmp_path / "r/model.pt"
    run(
        "--data", root, "--visual", "openl3", "--out", path.parent, *"--epochs 1 --batches 1 --batch-size 2 2 3".split()
    )
    trained, data = train.load_trained(path, CPU), features.load_dataset(root, ["openl3"], log=quiet)
    weight, public = trained.audio_weight, data.partitions["public"]
    scores, _ = train.predict(trained.student, data, public, [weight], CPU)[weight]
    threshold = (scores.min((0, 1)) + scores.max((0, 1))) / 2  # one that such a short run is sometimes above
    state = torch.load(path, weights_only=True)
    state["tuned"]["EBF1"] = {"threshold": threshold.tolist(), "window": [1, 1]}
    torch.save(state, path)
    wanted = train.detect(public, data.classes, scores, threshold, np.array([1, 1]))
    capsys.readouterr()
    for clip in public.filenames:
        vectors = root / "visual/openl3" / f"{Path(clip).stem}.npy"
        run("--predict", path, public.folder / clip, "--visual-file", vectors)
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
        got = [(name, float(onset), float(offset), label) for name, onset, offset, label in rows]
        wanted_here = sorted((n, round(a, 4), round(b, 4), c) for n, a, b, c in wanted if n == clip)
        assert got and sorted(got) == wanted_here


@pytest.mark.parametrize("base", ("transformer", "conformer"))
def test_attention_weights(tmp_path, base):
    trained = loaded(tmp_path / "model.pt", ("openl3", "tce"), base=base)
    path = noise_at(tmp_path / "a.wav", 14, (1, 13))
    vectors = np.random.default_rng(1).standard_normal((64, 5))
    windows = train.hear(trained, path, {}, {"tce": vectors}, CPU).first
    clip = train.first_clip(windows)
    encoders, weights = train.cross_attention(trained, clip, CPU)
    assert encoders == ["log-mel", "tce"] and weights.shape == (3, 2, 3, 65, 64)
    assert np.allclose(weights.sum(-1), 1, atol=1e-5) and weights.min() >= 0
    before = train.predict(trained.student, trained.data, clip, [0.5], CPU)[0.5][0]
    trained.student.decoder.blocks[2].cross.copies[2].key.weight.data.zero_()
    trained.student.decoder.blocks[2].cross.copies[2].key.bias.data.zero_()
    if base == "conformer":
        trained.student.decoder.blocks[2].cross.copies[2].distances.data.zero_()
    _, flat = train.cross_attention(trained, clip, CPU)  # without keys, all frames look the same to that copy
    assert np.allclose(flat[2, 1], 1 / 64) and np.array_equal(flat[:2], weights[:2])
    assert np.array_equal(flat[2, 0], weights[2, 0])
    after = train.predict(trained.student, trained.data, clip, [0.5], CPU)[0.5][0]
    assert not np.array_equal(before, after) and before.shape == after.shape
    trained.audio_weight = 1.0
    assert train.cross_attention(trained, clip, CPU)[0] == ["log-mel"]


def test_pictures(tmp_path, capsys):
    figure = pytest.importorskip("matplotlib.figure")
    model = tiny_model(tmp_path / "model.pt")
    path = noise_at(tmp_path / "a.wav", 11, (1, 2))
    (tmp_path / "true.tsv").write_text(STRONG_HEADER + "\na.wav\t1.0\t2.0\tDog\nother.wav\t0.0\t1.0\tCat\n")
    arguments = ["--predict", model, path, "--out", tmp_path / "out", "--plot", "--attention"]
    run(*arguments, "--reference", tmp_path / "true.tsv")
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert made == ["a.wav.attention.npy", "a.wav.attention.png", "a.wav.png", "predictions.tsv"]
    assert (tmp_path / "out/a.wav.png").read_bytes()[:4] == b"\x89PNG"
    assert np.load(tmp_path / "out/a.wav.attention.npy").shape == (3, 1, 3, 65, 64)
    axes = figure.Figure().subplots()
    train.draw_log_mel(axes, np.zeros((512, 64)), HOP)
    ticks = {label.get_text(): tick for label, tick in zip(axes.get_yticklabels(), axes.get_yticks())}
    assert abs(ticks["1000"] - features.mel_filterbank()[:, 64].argmax()) < 0.6  # bin 64 of the spectrum is 1000 Hz
    train.draw_log_mel(axes, np.zeros((184000, 64), np.float16), HOP)  # an hour
    assert axes.images[1].get_array().shape == (64, 1000)


def test_pictures_without_matplotlib_get_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as stop:
        run("--predict", tiny_model(tmp_path / "model.pt"), "a.wav", "--out", tmp_path / "out", "--plot")
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: --plot and --attention need matplotlib")
    assert not (tmp_path / "out").exists()


def bad_prediction(tmp_path):
    """name -> arguments after --predict and what the error says"""
    good, wav = tiny_model(tmp_path / "m/model.pt"), noise_at(tmp_path / "a.wav", 2, (0, 1))
    torch.save({"student": {}, "teacher": {}}, tmp_path / "checkpoint.pt")
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    (tmp_path / "garbage.pt").write_bytes(b"garbage")
    tiny_model(tmp_path / "narrow.pt", weights=MultiEncoder(3, {"openl3": 6}).state_dict())
    (tmp_path / "broken.wav").write_bytes(b"RIFF and nothing else")
    write_wav(tmp_path / "empty.wav", np.zeros(0))
    write_wav(tmp_path / "nan.wav", np.full(100, np.nan), subtype="FLOAT")
    for name, array in (("shape", np.zeros((63, 6))), ("wide", np.zeros((64, 7))), ("good", np.zeros((64, 6)))):
        np.save(tmp_path / f"{name}.npy", array.astype(np.float32))
    np.save(tmp_path / "type.npy", np.zeros((64, 6), np.int16))
    mute = tiny_model(tmp_path / "audio.pt", streams=())
    return {
        "absent checkpoint": ([tmp_path / "no.pt", wav], "no.pt: no such file; name the model.pt"),
        "unfinished run": ([tmp_path / "checkpoint.pt", wav], "is of an unfinished run"),
        "foreign": ([tmp_path / "foreign.pt", wav], "foreign.pt: not the model.pt of a finished run"),
        "tensor": ([tmp_path / "tensor.pt", wav], "tensor.pt: not the model.pt of a finished run"),
        "garbage": ([tmp_path / "garbage.pt", wav], "garbage.pt: not a checkpoint of this program"),
        "architecture": ([tmp_path / "narrow.pt", wav], "narrow.pt: not the model.pt of a finished run"),
        "absent file": ([good, tmp_path / "no.wav"], "no.wav: cannot be decoded"),
        "broken": ([good, tmp_path / "broken.wav"], "broken.wav: cannot be decoded"),
        "empty": ([good, tmp_path / "empty.wav"], "empty.wav: holds no audio"),
        "nan": ([good, tmp_path / "nan.wav"], "nan.wav: holds samples that are not finite"),
        "same name": ([good, wav, tmp_path / "m/a.wav"], "a.wav: two files of this name"),
        "line break": ([good, "a\nb.wav"], "would break the table"),
        "a run's folder": ([good, wav, "--out", tmp_path / "m"], "m: holds a run"),
        "shape": ([good, wav, "--visual-file", tmp_path / "shape.npy"], r"shape.npy: has the shape \(63, 6\)"),
        "width": ([good, wav, "--visual-file", tmp_path / "wide.npy"], "openl3 vectors are 7 wide, but .* from 6"),
        "type": ([good, wav, "--visual-file", tmp_path / "type.npy"], "type.npy: must be an array of float16"),
        "absent vectors": ([good, wav, "--visual-file", tmp_path / "no.npy"], "no.npy: cannot be read"),
        "count": ([good, wav, "--visual-file", *[tmp_path / "good.npy"] * 2], "2 files, but .* streams: openl3"),
        "no streams": ([mute, wav, "--visual-file", tmp_path / "good.npy"], "1 files, but .* it only hears"),
        "weights": ([good, wav, "--weights", tmp_path / "no.pt"], "no.pt: No such file"),
        "reference": (
            [good, wav, "--out", tmp_path / "out", "--plot", "--reference", tmp_path / "no.tsv"],
            "no.tsv: no such file",
        ),
    }


def test_bad_input_of_predict_gets_one_line(tmp_path, capsys):
    for name, (arguments, message) in bad_prediction(tmp_path).items():
        with pytest.raises(SystemExit) as stop:
            run("--predict", *arguments)
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("model  ")]
        assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (name, lines)
        assert re.search(message, lines[0]), (name, lines)
    assert not (tmp_path / "out").exists() and not (tmp_path / "m/predictions.tsv").exists()


@pytest.mark.parametrize(
    "flags, message",
    (
        (["--predict", "m.pt"], "at least one sound or video file"),
        (["--predict", "m.pt", "a.wav", "--epochs", "3"], "--epochs changes nothing with --predict"),
        (["--predict", "m.pt", "a.wav", "--visual", "openl3"], "--visual changes nothing with --predict"),
        (["--visual-file", "v.npy"], "--visual-file changes nothing without --predict"),
        (["--plot"], "--plot changes nothing without --predict"),
        (["--predict", "m.pt", "a.wav", "--scores"], "name a folder with --out"),
        (["--predict", "m.pt", "a.wav", "--reference", "t.tsv"], "--reference is drawn by --plot"),
        (["--predict", "m.pt", "a.wav", "b.wav", "--visual-file", "v.npy"], "name one FILE"),
        (["--predict", "m.pt", "a.wav", "--weights", "w.pt", "--visual-file", "v.npy"], "exclude each other"),
    ),
)
def test_bad_flags_of_predict(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_predict_without_ffmpeg_says_so_where_it_is_needed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    model = tiny_model(tmp_path / "model.pt")
    run("--predict", model, noise_at(tmp_path / "a.wav", 2, (0, 1)))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run("--predict", model, tmp_path / "a.mp4")
    assert stop.value.code == 2 and "error: ffmpeg: not found" in capsys.readouterr().err


@with_ffmpeg
def test_sound_of_video_files(tmp_path):
    noise = ["-i", str(noise_at(tmp_path / "a.wav", 12, (1, 2), (8, 11.9)))]
    codec = ("-c:v", "ffv1", "-pix_fmt", "gray", "-c:a", "pcm_s16le")
    both = film(tmp_path / "both.mkv", CLOCK.format(12), noise, options=codec)
    alone = np.concatenate(list(features.read_blocks(tmp_path / "a.wav")))
    assert np.allclose(np.concatenate(list(features.read_blocks(both))), alone, atol=1e-4)
    assert features.has_picture(both) and features.recording_seconds(both) == 12
    late = film(tmp_path / "late.mkv", CLOCK.format(14), ["-itsoffset", "1.5", *noise], options=codec)
    sound = np.concatenate(list(features.read_blocks(late)))
    assert abs(len(sound) - 13.5 * 16000) < 100 and abs(np.flatnonzero(np.abs(sound) > 0.01)[0] - 2.5 * 16000) < 100
    silent = film(tmp_path / "silent.mkv", CLOCK.format(1))
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    for path in (silent, tmp_path / "broken.mp4", tmp_path / "absent.mp4"):
        with pytest.raises(features.InputError, match=f"{path.name}: no sound"):
            list(features.read_blocks(path))


@with_ffmpeg
def test_the_cover_of_a_music_file_is_no_video(tmp_path):
    cover = film(tmp_path / "cover.png", "color=red:s=64x64:d=0.04", options=("-frames:v", "1"))
    cover = ["-i", str(cover), "-map", "0:a", "-map", "1:v", "-disposition:v:0", "attached_pic"]
    song = film(tmp_path / "song.m4a", "sine=d=2", cover, options=("-c:a", "aac", "-c:v", "png"))
    assert not features.has_picture(song)
    subprocess.run(["ffmpeg", "-v", "error", "-i", song, "-map", "0:v", "-f", "null", "-"], check=True)  # there is one
    assert sum(map(len, features.read_blocks(song))) == pytest.approx(32000, abs=2048)


@with_ffmpeg
def test_predict_looks_at_the_picture_of_the_file(tmp_path, capsys, monkeypatch):
    noise = ["-i", str(noise_at(tmp_path / "a.wav", 12, (1, 11)))]
    path = film(tmp_path / "a.mkv", CLOCK.format(3), noise, options=("-c:v", "ffv1", "-pix_fmt", "gray"))
    monkeypatch.setattr(features, "load_network", lambda name, weights, device: name)
    shown = []

    def embed_frames(network, frames):
        shown.append(times_shown(frames, 0)[0])
        return np.random.default_rng(0).standard_normal((len(frames), 6))

    monkeypatch.setattr(features, "embed_frames", embed_frames)
    run("--predict", tiny_model(tmp_path / "model.pt"), path, tmp_path / "a.wav", "--weights", "w.pt")
    lines = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and abs(shown[0]) < 0.1  # the second window begins after the picture's end
    assert "a.mkv: 0:12 of sound, windows: 2, with openl3: 1" in lines[1]
    assert lines[3] == "note   a.wav: predicted from sound alone (acoustic weight 1): no picture can be read"
