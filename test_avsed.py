"""Tests: hand-computed answers, known numbers, brute force, invariants. pytest; under two minutes on two cores."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import avsed
import features
import train
from avsed import MultiEncoder

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
    assert np.allclose(data.statistics["log_mel"][0], frames.mean(0), atol=1e-5)
    assert np.allclose(data.statistics["log_mel"][1], frames.std(0), atol=1e-5)
    vectors = np.concatenate([p.visual["openl3"][p.present["openl3"]].reshape(-1, 6) for p in parts]).astype(np.float64)
    assert np.allclose(data.statistics["openl3"][0], vectors.mean(0), atol=1e-5)
    assert np.allclose(data.statistics["openl3"][1], vectors.std(0), atol=1e-5)
    for stem in ("v0", "p1"):  # other test clips: the same statistics
        np.save(tmp_path / f"visual/openl3/{stem}.npy", np.full((64, 6), 100, np.float16))
    again = features.load_dataset(tmp_path, ["openl3"], log=quiet)
    assert all(
        np.array_equal(a, b) for name in again.statistics for a, b in zip(again.statistics[name], data.statistics[name])
    )
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
    assert any("not finite" in line for line in lines) and all(np.isfinite(v).all() for v in data.statistics["openl3"])


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
    mean, std = data.statistics["log_mel"]
    assert np.allclose(batch.log_mel[:3], (strong.log_mel[picked] - mean) / std, atol=1e-5) and batch.log_mel.shape == (
        6,
        512,
        64,
    )
    mean, std = data.statistics["openl3"]
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
    with pytest.raises(SystemExit, match="iteration 11: weak 1, strong 1, clip consistency nan"):
        train.check_finite(terms, 10)


# --- train.py: whole runs --------------------------------------------------------------------------------------------

SHORT = ["--epochs", "2", "--batches", "2", "--batch-size", "2", "2", "3"]


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
    assert model["classes"] == ["Cat", "Dog"] and model["visual_dims"] == {"openl3": 6, "tce": 5}
    assert len(model["tuned"]["EBF1"]["threshold"]) == 2 and model["tuned"]["PSDS1"]["threshold"] is None
    rebuilt = MultiEncoder(2, model["visual_dims"], model["config"]["base"])
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


def test_killed_run_resumes_to_the_same_weights(tmp_path):
    root = write_tiny(tmp_path / "set")
    base = [
        "--data",
        root,
        "--visual",
        "openl3",
        "--epochs",
        "3",
        "--batches",
        "3",
        "--batch-size",
        "2",
        "2",
        "3",
        "--train-weight",
        "random",
    ]
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
        r"w2\.npy: must be an array of float16 or float32, .*int16",
    ),
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
        "other program": ({"model": 1}, "another architecture"),
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


@pytest.mark.parametrize(
    "flags",
    (
        ["--infer-weight", "0"],
        ["--train-weight", "2"],
        ["--batch-size", "0", "0", "0"],
        ["--epochs", "0"],
        ["--visual", "../x"],
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
