"""What the paper says, as tests, in its order: hand-computed answers, known numbers, brute force, invariants. pytest.

The rest is tested beside its script, in extras/.
"""

import contextlib
import copy
import itertools
import json
import math
import os
import re
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
from torch.nn import functional as F

import avsed
import features
import metrics
import train
from avsed import MultiEncoder
from extras.plumbing import InputError
from metrics import PSDS1, PSDS2

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
DIMS = {"openl3": 512, "tce": 2048, "vgg16": 4096}
both_bases = pytest.mark.parametrize("base", ["transformer", "conformer"])


# --- avsed.py: the network of the paper a second time ----------------------------------------------------------------


def network(P, base, log_mel, visual, audio_weight, dropout=lambda x, place: x):
    """The network of Boes & Van hamme 2022 for one clip, from its parameters P, a dict of their names and values.

    log_mel (512, 64); visual: by stream (64, D), None where the clip lacks it -> logits of the frames (64, C), of the
    clip (C). dropout: called wherever the paper has one. Time comes first: x is (64, 128), in the decoder (65, 128).
    """

    def linear(x, name):
        return x @ P[name + ".weight"].T + P[name + ".bias"]

    def layer_norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * P[name + ".weight"] + P[name + ".bias"]

    def batch_norm(x, name):
        x = (x - P[name + ".running_mean"]) / (P[name + ".running_var"] + 1e-5).sqrt()
        return x * P[name + ".weight"] + P[name + ".bias"]

    def swish(x):
        return x * torch.sigmoid(x)

    def front_end(log_mel):  # Sec. 3.1.2, Table 3: seven stacks reduce time eightfold, frequency to one
        x = log_mel[:, :, None]  # (time, frequency, channels)
        for i, (t, f) in enumerate([(2, 2), (2, 2), (2, 2), (1, 2), (1, 2), (1, 2), (1, 1)]):
            x = F.conv2d(x.permute(2, 0, 1), P[f"cnn.{i}.0.weight"], P[f"cnn.{i}.0.bias"], padding=1).permute(1, 2, 0)
            x = dropout(batch_norm(x, f"cnn.{i}.1").clamp(min=0), "front end")
            x = x.unflatten(1, (-1, f)).unflatten(0, (-1, t)).mean((1, 3))
        return x[:, 0]

    def attention(x, memory, name):  # Sec. 2.1.1, Eq. 1; Sec. 2.1.2 for the conformer, which knows distances
        q, k, v = linear(x, name + ".query"), linear(memory, name + ".key"), linear(memory, name + ".value")
        heads = []
        for h, units in enumerate([slice(0, 128), slice(128, 256), slice(256, 384)]):
            scores = q[:, units] @ k[:, units].T
            if base == "conformer":
                rows = [[127 if 64 in (i, j) else i - j + 63 for j in range(len(k))] for i in range(len(q))]
                u, w, r = (P[f"{name}.{kind}"][h] for kind in ("content_bias", "position_bias", "distances"))
                scores = scores + u @ k[:, units].T + torch.einsum("id,ijd->ij", q[:, units] + w, r[torch.tensor(rows)])
            weights = torch.exp(scores / 128**0.5) / torch.exp(scores / 128**0.5).sum(-1, keepdim=True)
            heads.append(dropout(weights, "attention weights") @ v[:, units])
        return dropout(linear(torch.cat(heads, -1), name + ".output"), "attention")

    def self_attention(x, name):
        y = layer_norm(x, name + "_norm")
        return attention(y, y, name)

    def cross_attention(x, memories, name):  # Sec. 2.2, Fig. 4: a copy for each encoder, interpolated
        y = layer_norm(x, name + ".norm")
        return sum(share * attention(y, memory, f"{name}.copies.{e}") for e, share, memory in memories)

    def feed_forward(x, name, activation):  # Sec. 2.1.1
        x = dropout(activation(linear(layer_norm(x, name + ".0"), name + ".1")), "hidden")
        return dropout(linear(x, name + ".4"), "feedforward")

    def convolution(x, name):  # Sec. 2.1.2: pointwise with gated linear unit, depthwise over 7 steps, pointwise
        x = linear(layer_norm(x, name + ".norm"), name + ".pointwise_in")
        x = F.pad(x[:, :128] * torch.sigmoid(x[:, 128:]), (0, 0, 3, 3))
        x = sum(x[k : k + len(x) - 6] * P[name + ".depthwise.weight"][:, 0, k] for k in range(7))
        x = swish(batch_norm(x + P[name + ".depthwise.bias"], name + ".batch_norm"))
        return dropout(linear(x, name + ".pointwise_out"), "convolution")

    def transformer_block(x, memories, name):  # Sec. 2.1.1, Fig. 1
        x = x + self_attention(x, name + ".attention")
        if memories:
            x = x + cross_attention(x, memories, name + ".cross")
        return x + feed_forward(x, name + ".feed_forward", lambda x: x.clamp(min=0))

    def conformer_block(x, memories, name):  # Sec. 2.1.2, Fig. 2 and 3
        x = x + feed_forward(x, name + ".feed_forward_in", swish) / 2
        x = x + self_attention(x, name + ".attention")
        if memories:
            x = x + cross_attention(x, memories, name + ".cross")
        x = x + convolution(x, name + ".convolution")
        x = x + feed_forward(x, name + ".feed_forward_out", swish) / 2
        return layer_norm(x, name + ".norm")

    def stack(x, name, memories=(), token=None):  # Sec. 2.1.1: an encoder, or with memories and a token the decoder
        x = x + P[name + ".positions"] if base == "transformer" else x
        x = x if token is None else torch.cat([x, token[None]])
        for i in range(3):
            x = (transformer_block if base == "transformer" else conformer_block)(x, memories, f"{name}.blocks.{i}")
        return layer_norm(x, name + ".norm") if base == "transformer" else x

    heard = front_end(log_mel)
    memories = [(0, audio_weight, stack(heard, "audio_encoder"))]
    for e, vectors in enumerate(visual.values()):
        if vectors is not None:
            seen = dropout(linear(vectors, f"visual_inputs.{e}.0"), "visual input")
            memories.append((e + 1, (1 - audio_weight) / len(visual), stack(seen, f"visual_encoders.{e}")))
    total = sum(share for _, share, _ in memories)  # Sec. 2.2: where a stream is missing, the others make up for it
    memories = [(e, share / total, memory) for e, share, memory in memories]
    logits = linear(stack(heard, "decoder", memories, P["token"]), "classifier")
    return logits[:64], logits[64]


def random_model(base, streams):
    """A model in float64, so that only its maths can differ, where nothing is 0 or 1 any more as it was at the start"""
    torch.manual_seed(0)
    model = MultiEncoder(10, {name: DIMS[name] for name in streams}, base).double().eval()
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                values.uniform_(0.5, 2)
            elif values.is_floating_point():
                values.add_(0.1 * torch.randn_like(values))
    return model


def clips_of_every_kind(streams):
    """One clip for each choice of streams that it still has -> log-mels, visual vectors (nan where missing), present"""
    kinds = torch.tensor(list(itertools.product([True, False], repeat=len(streams)))).reshape(2 ** len(streams), -1)
    g, present = torch.Generator().manual_seed(1), dict(zip(streams, kinds.T))
    log_mel = torch.randn(len(kinds), 512, 64, generator=g, dtype=torch.float64)
    visual = {s: torch.randn(len(kinds), 64, DIMS[s], generator=g, dtype=torch.float64) for s in streams}
    for name, vectors in visual.items():
        vectors[~present[name]] = math.nan
    return log_mel, visual, present


def clip_by_clip(model, base, log_mel, visual, present, audio_weight, **options):
    clips = []
    for i in range(len(log_mel)):
        left = {name: vectors[i] if present[name][i] else None for name, vectors in visual.items()}
        clips.append(network(model.state_dict(), base, log_mel[i], left, audio_weight, **options))
    return [torch.stack(logits) for logits in zip(*clips)]


def agree(got, wanted):
    assert wanted[0].std() > 0.1 and wanted[1].std() > 0.1  # there is something to agree about
    return all(a.shape == b.shape and (a - b).abs().max() < 1e-5 for a, b in zip(got, wanted, strict=True))


@both_bases
@pytest.mark.parametrize(
    "streams, audio_weight", [([], 1.0), (["vgg16"], 0.5), (["openl3", "tce"], 0.75), (["openl3"], 1.0)]
)
def test_the_network_is_the_papers(base, streams, audio_weight):
    model, (log_mel, visual, present) = random_model(base, streams), clips_of_every_kind(streams)
    wanted = clip_by_clip(model, base, log_mel, visual, present, audio_weight)
    with torch.no_grad():
        assert agree(model(log_mel, dict(reversed(visual.items())), present, audio_weight), wanted)
        for module in model.train().modules():  # in training the same, but for dropout and statistics of the batch
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eval()
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
        assert agree(model(log_mel, visual, present, audio_weight), wanted)
    assert wanted[0].shape == (len(log_mel), 64, 10) and wanted[1].shape == (len(log_mel), 10)


@both_bases
def test_dropout_is_where_the_paper_has_it_and_nowhere_else(base, monkeypatch):
    model, (log_mel, visual, _), rates, places = random_model(base, ["openl3"]), clips_of_every_kind(["openl3"]), [], []
    for module in model.train().modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eval()

    def stand_in(x):  # something that shows in the result, the same for any order of axes
        return x + 0.3 * torch.cos(x)

    def in_the_model(x, p, training, inplace):
        rates.append((p, training))
        return stand_in(x)

    def in_the_paper(x, place):
        places.append(place)
        return stand_in(x)

    clip = log_mel[:1], {"openl3": visual["openl3"][:1]}, {"openl3": torch.tensor([True])}, 0.5
    wanted = clip_by_clip(model, base, *clip, dropout=in_the_paper)
    monkeypatch.setattr(F, "dropout", in_the_model)  # nn.Dropout calls it
    before = torch.get_rng_state()
    with torch.no_grad():
        assert agree(model(*clip), wanted)
    assert torch.equal(torch.get_rng_state(), before)  # nothing else is random
    attention = ["attention weights"] * 3 + ["attention"]  # three heads
    block = attention + ["hidden", "feedforward"] * (2 if base == "conformer" else 1)
    block += ["convolution"] if base == "conformer" else []
    # two encoders and a decoder of three blocks; in the decoder's, two cross-attentions more
    assert sorted(places) == sorted(["front end"] * 7 + ["visual input"] + 9 * block + 3 * 2 * attention)
    assert set(rates) == {(0.1, True)}


@pytest.mark.parametrize(
    "base, streams, whole, encoder_block, decoder_block",
    [
        ("transformer", [], 3134570, 330112, 528256),
        ("transformer", ["openl3"], 4792682, 330112, 726144),
        ("transformer", ["tce"], 4989290, 330112, 726144),
        ("transformer", ["vgg16"], 5251434, 330112, 726144),
        ("transformer", ["openl3", "tce"], 6647402, 330112, 924032),
        ("conformer", [], 4666730, 563328, 811392),
        ("conformer", ["openl3"], 7165802, 563328, 1059200),
        ("conformer", ["tce"], 7362410, 563328, 1059200),
        ("conformer", ["vgg16"], 7624554, 563328, 1059200),
        ("conformer", ["openl3", "tce"], 9861482, 563328, 1307008),
    ],
)
def test_parameter_counts_of_the_model_and_its_blocks(base, streams, whole, encoder_block, decoder_block):
    def count(module):
        return sum(p.numel() for p in module.parameters())  # what is shared is counted once

    model = MultiEncoder(10, {name: DIMS[name] for name in streams}, base)
    encoders = [model.audio_encoder, *model.visual_encoders]
    assert count(model) == whole and count(model.cnn) == 541152
    kept = {name.rpartition(".")[2] for name in model.state_dict().keys() - dict(model.named_parameters())}
    assert kept == {"running_mean", "running_var", "num_batches_tracked"}  # nothing else is in a model.pt
    assert [count(block) for encoder in encoders for block in encoder.blocks] == [encoder_block] * 3 * len(encoders)
    assert [count(block) for block in model.decoder.blocks] == [decoder_block] * 3
    channels = [16, 32, 64, 128, 128, 128, 128]  # Table 3
    kernels = [(n_out, n_in, 3, 3) for n_in, n_out in zip([1, *channels], channels)]
    assert [tuple(stack[0].weight.shape) for stack in model.cnn] == kernels


def test_streams_of_equal_width_share_nothing():
    with torch.device("meta"):
        none, one, two = (MultiEncoder(10, dict.fromkeys(streams, 512)) for streams in ("", "a", "ab"))
    none, one, two = (sum(p.numel() for p in model.parameters()) for model in (none, one, two))
    assert two - one == one - none > 0  # what is shared would be counted once


@both_bases
def test_learned_positions_and_tokens_begin_small(base):
    torch.manual_seed(0)
    found = set()
    for name, p in MultiEncoder(10, {"openl3": 512}, base).named_parameters():
        if kind := re.search(r"positions|token|distances|content_bias|position_bias", name):
            found.add(kind[0])
            assert p.std() == 0 if "_bias" in name else abs(p.std() - 0.02) < 0.004, name
    of_attention = {"distances", "content_bias", "position_bias"}
    assert found == {"token"} | ({"positions"} if base == "transformer" else of_attention)


# --- avsed.py, Sec. 2.1: attention -----------------------------------------------------------------------------------


def test_attention_takes_other_normalisations_and_lengths():
    def sigmoid(scores):
        seen.append(scores)
        return torch.sigmoid(scores)

    def vectors(*first):  # all zero but for their first entries
        return F.pad(torch.tensor(first)[None, :, None], (0, 127))

    seen, s = [], lambda x: 1 / (1 + math.exp(-x))
    for normalise, expected in ((avsed.softmax, 3 * s(-2) + 5 * s(2)), (sigmoid, 3 * s(3) + 5 * s(5))):
        attention = avsed.Attention(normalise=normalise).eval()
        with torch.no_grad():
            for linear in (attention.query, attention.key, attention.value, attention.output):
                linear.weight.zero_(), linear.bias.zero_()
                linear.weight[0, 0] = 1.0  # passes the first entry on, in head 0
            out = attention(vectors(128**0.5), vectors(3.0, 5.0))
        assert torch.allclose(out, vectors(expected))
    assert seen[0].shape == (1, 3, 1, 2) and torch.allclose(seen[0][0, 0], torch.tensor([[3.0, 5.0]]))


@both_bases
def test_attention_weights_for_pictures_are_those_that_forward_uses(base):
    model = random_model(base, ["openl3"])
    cross, x = model.decoder.blocks[1].cross, torch.randn(2, 65, 128, dtype=torch.float64)
    memories, shares = torch.randn(2, 2, 64, 128, dtype=torch.float64).unbind(), torch.tensor([[0.75, 0.25], [1, 0]])
    with torch.no_grad():
        weights = cross.attention_weights(x, memories)  # (B, E, 3, Q, 64)
        total = 0
        for e, (copy_e, memory) in enumerate(zip(cross.copies, memories)):
            values = copy_e.value(memory).unflatten(-1, (3, 128))
            heads = torch.einsum("bhqm,bmhd->bqhd", weights[:, e], values).flatten(2)
            total = total + shares[:, e, None, None] * copy_e.output(heads)
        assert weights.shape == (2, 2, 3, 65, 64) and weights.std() > 1e-3
        assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 3, 65, dtype=torch.float64))
        assert torch.allclose(cross(x, memories, shares), total)
        assert torch.equal(cross.train().attention_weights(x, memories), weights)  # no dropout in pictures


# --- avsed.py, Sec. 2.2: encoders, some of them without input --------------------------------------------------------


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


def training_clips():
    g = torch.Generator().manual_seed(1)
    visual = {name: torch.randn(4, 64, DIMS[name], generator=g) for name in ("openl3", "tce")}
    present = {"openl3": torch.tensor([1, 0, 1, 0]).bool(), "tce": torch.tensor([1, 1, 0, 0]).bool()}
    return torch.randn(4, 512, 64, generator=g), visual, present


def trained_on(model, *clips):
    frame, clip = model(*clips, 0.75)
    (frame.square().mean() + clip.square().mean()).backward()
    return frame, clip


@both_bases
def test_what_is_stored_for_missing_streams_reaches_nothing(base):
    model, (log_mel, visual, present) = MultiEncoder(10, {"openl3": 512, "tce": 2048}, base).train(), training_clips()
    results = []
    for filler in (0.0, math.nan, 1e30):
        filled = {s: torch.where(present[s][:, None, None], v, filler) for s, v in visual.items()}
        copied = copy.deepcopy(model)
        torch.manual_seed(5)
        logits = trained_on(copied, log_mel, filled, present)
        results.append([*logits, *(p.grad for p in copied.parameters()), *copied.buffers()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert all(torch.isfinite(t).all() for t in results[0])
    nobody = {name: torch.zeros(4).bool() for name in visual}
    logits = trained_on(model, log_mel, {name: v * math.nan for name, v in visual.items()}, nobody)
    assert torch.isfinite(logits[0]).all() and model.visual_inputs[0][0].weight.grad is None


@both_bases
def test_training_reaches_every_part_once(base):
    model, inputs = MultiEncoder(10, {"openl3": 512, "tce": 2048}, base).train(), {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda _, x, __, name=name: inputs.update({name: x[0].detach()}))
    trained_on(model, *training_clips())
    for name, x in inputs.items():
        norm, mean = model.get_submodule(name), x.mean([0, *range(2, x.ndim)])
        assert norm.num_batches_tracked == 1  # one front end feeds encoder and decoder
        assert torch.allclose(norm.running_mean, 0.1 * mean, atol=1e-6)  # momentum 0.9: nine tenths of what was, 0
        assert len(x) == (2 if "visual" in name else 4), name  # statistics are of clips that have the stream
    assert len(inputs) == 7 + (4 * 3 if base == "conformer" else 0)
    assert all(p.grad is not None for p in model.parameters())  # end to end (Sec. 3.1.2)
    for early in (model.cnn[0][0], *(visual_input[0] for visual_input in model.visual_inputs)):
        assert early.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("base", ("transformer", "conformer"))
def test_weights_of_another_type(base):
    """.half(), .bfloat16(), .double(): the same outputs, as exact as the type"""
    torch.manual_seed(0)
    model = MultiEncoder(3, {"x": 5}, base).eval()
    log_mel, vectors, present = torch.randn(2, 512, 64), torch.randn(2, 64, 5), {"x": torch.tensor([True, False])}
    with torch.no_grad():
        wanted = model(log_mel, {"x": vectors}, present, 0.6)
        for dtype, tolerance in ((torch.float64, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.1)):
            outputs = model.to(dtype)(log_mel.to(dtype), {"x": vectors.to(dtype)}, present, 0.6)
            for output, exact in zip(outputs, wanted):
                assert output.dtype == dtype and (output - exact).abs().max() < tolerance
            model.float()


def test_bad_arguments_of_the_model_are_named():
    model = MultiEncoder(10, {}).eval()
    for audio_weight in (0.0, -0.1, 1.1):
        with pytest.raises(AssertionError, match=re.escape(f"a weight in (0, 1], got {audio_weight}")):
            model(torch.zeros(1, 512, 64), {}, {}, audio_weight)
    with pytest.raises(AssertionError, match=re.escape("must be (B, 512, 64), got (1, 64, 512)")):
        model(torch.zeros(1, 64, 512), {}, {}, 1.0)
    model, log_mel = MultiEncoder(10, {"x": 5}).eval(), torch.zeros(2, 512, 64)
    for vectors, present, sizes in ((2, 1, (2, 2, 1)), (2, 3, (2, 2, 3)), (3, 2, (2, 3, 2)), (3, 3, (2, 3, 3))):
        with pytest.raises(AssertionError, match=re.escape(f"visual and present of x have {sizes} clips")):
            model(log_mel, {"x": torch.zeros(vectors, 64, 5)}, {"x": torch.ones(present, dtype=torch.bool)}, 0.5)
    for n, longer in ((65, 66), (66, 65)):
        relative = avsed.CrossAttention(1, relative=True).eval()
        relative(torch.zeros(1, 65, 128), [torch.zeros(1, 65, 128)], torch.ones(1, 1))
        with pytest.raises(AssertionError, match="of 64 frames and the token, not of 66 vectors"):
            relative(torch.zeros(1, n, 128), [torch.zeros(1, longer, 128)], torch.ones(1, 1))
    with pytest.raises(AssertionError, match="transformer or conformer, not 'rnn'"):
        MultiEncoder(10, {}, "rnn")


# --- features.py: sound (Boes 2022, Sec. 3.1.2) ----------------------------------------------------------------------


def reference_signal():
    """The signal of the reference numbers below: a chirp, a gated tone, noise from a linear congruential generator"""
    n = np.arange(160000)
    t, state, u = n / 16000, 12345, np.empty(160000)
    for i in n:
        state = (1103515245 * state + 12345) % 2**31
        u[i] = state / 2**30 - 1
    chirp, gated = np.sin(2 * np.pi * (50 * t + 375 * t**2)), np.sin(2 * np.pi * 1000 * t) * (n // 8000 % 2)
    x = 0.5 * chirp + 0.3 * gated + 0.01 * u
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
    batch = features.log_mel(np.stack([[x], [np.zeros(160000)]]))
    assert batch.shape == (2, 1, 512, 64) and np.allclose(batch[0, 0], got, atol=1e-5)


def test_filterbank_numbers():
    bank = features.mel_filterbank()
    assert bank.shape == (64, 513) and abs(bank.sum() - 498.545746) < 1e-4
    rows = {0: 2.969666, 1: 2.969667, 10: 2.969667, 20: 3.000631, 40: 7.768604, 63: 23.368126}
    assert all(abs(bank[i].sum() - value) < 1e-5 for i, value in rows.items())
    assert np.allclose(bank[0, :4], [0, 0.336703718, 0.673407435, 0.989888847], atol=1e-8)


def tone(hertz, rate=16000, seconds=10):
    return np.sin(2 * np.pi * hertz * np.arange(rate * seconds) / rate)


def test_the_floor_is_the_same_for_every_clip():
    """A floor 80 dB under the clip's own maximum, librosa's default, would lift the second half of this one"""
    x = tone(1000)
    loud = features.log_mel(x)
    x[80000:] *= 1e-5  # 100 dB below the first half
    got = features.log_mel(x)
    assert torch.allclose(got[260:508], (loud[260:508] + math.log(1e-5)).clamp_min(math.log(1e-5)), atol=1e-3)
    assert got[300].max() < got.max() - 11.4
    assert torch.allclose(features.log_mel(np.zeros(160000)), torch.tensor(1e-5).log())


def test_log_mel_with_another_window():
    got = features.log_mel(tone(1000), window=400, hop=160)  # 25 ms every 10 ms
    assert got.shape == (1001, 64) and (got[1:-1].argmax(1) == features.log_mel(tone(1000))[100].argmax()).all()


def write_wav(path, samples, rate=16000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kwargs)


def test_load_audio(tmp_path):
    def load(samples, rate=16000):
        write_wav(tmp_path / "x.wav", samples, rate, subtype="DOUBLE")
        return features.load_audio(tmp_path / "x.wav")

    both = load(0.2 * np.stack([tone(440, 44100), 0.5 * tone(880, 44100)], 1), 44100)  # one tone in each channel
    assert both.shape == (160000,) and both.dtype == np.float32 and np.abs(both).max() == 1
    spectrum = np.abs(np.fft.rfft(both))  # bins of 0.1 Hz
    assert spectrum.argmax() == 4400 and abs(spectrum[8800] / spectrum[4400] - 0.5) < 0.01
    a, b = (features.log_mel(load(0.1 * tone(440, rate), rate)) for rate in (44100, 16000))
    assert (a - b)[4:-4, 2:8].abs().max() < 0.05  # the same sound at another rate
    assert np.allclose(load(0.01 * both), both, atol=1e-6)  # at another loudness
    short = load(0.1 * tone(440)[:112000])
    assert np.allclose(short[:112000], tone(440)[:112000], atol=1e-3) and not short[112000:].any()
    long = np.append(tone(440), 2 * tone(440)[:16000])  # its peak is beyond the 10 s, and counts
    assert np.allclose(load(0.1 * long), tone(440) / 2, atol=1e-3)
    assert load(np.array([0.125, -0.5]))[:2].tolist() == [0.25, -1]  # the largest sample by its absolute value
    silent = load(np.zeros(160000))
    assert silent.shape == (160000,) and not silent.any()


# --- features.py: tables ---------------------------------------------------------------------------------------------

STRONG_HEADER, WEAK_HEADER = "filename\tonset\toffset\tevent_label", "filename\tevent_labels"


def written(tmp_path, *lines):
    (tmp_path / "table.tsv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "table.tsv"


def test_tables_as_they_are(tmp_path):
    names, rows = ["-a_1.wav", "no.wav", "é b.wav"], [("-a_1.wav", 0.1, 10.115, "Dog"), ("é b.wav", 0.0, 1.0, "Cat")]
    text = f"{STRONG_HEADER}\n-a_1.wav\t0.100\t10.115\tDog\nno.wav\t\t\t\né b.wav\t0\t1e0\tCat"
    for variant in (text, f"{text}\n\n", f"\ufeff{text}", text.replace("\n", "\r\n"), text.replace("\t\t\t\n", "\n")):
        assert features.read_strong(written(tmp_path, variant)) == (names, rows)
    other = written(tmp_path, "x\toffset\tevent_label\tfilename\tonset", "1\t2.5\tDog\ta.wav\t1.5")
    assert features.read_strong(other) == (["a.wav"], [("a.wav", 1.5, 2.5, "Dog")])
    assert features.read_strong(written(tmp_path, STRONG_HEADER)) == ([], [])
    weak = written(tmp_path, WEAK_HEADER, "a.wav\tDog,Cat,Dog ,", "b.wav", "a.wav\tFox")
    assert features.read_weak(weak) == {"a.wav": {"Cat", "Dog", "Fox"}, "b.wav": set()}
    assert features.read_unlabelled(written(tmp_path, "filename", "b.wav", "a.wav", "b.wav")) == ["b.wav", "a.wav"]


def test_events_survive_writing(tmp_path):
    rng = np.random.default_rng(0)
    table = [(f"{i}.wav", float(a), float(a + b), "A") for i, (a, b) in enumerate(rng.random((100, 2)) + 0.01)]
    features.write_events(tmp_path / "x.tsv", table)
    assert features.read_strong(tmp_path / "x.tsv")[1] == table
    features.write_events(tmp_path / "x.tsv", [("a", np.float64(0.5), 1, "A")])
    assert (tmp_path / "x.tsv").read_text() == f"{STRONG_HEADER}\na\t0.5\t1.0\tA\n"


def test_frame_targets():
    """A frame is 8 * 313 / 16000 = 0.1565 s; events may overlap, and the shortest one keeps a frame"""
    events = [("a", 0.0, 0.1565, "x"), ("a", 0.16, 0.17, "y"), ("a", 0.5, 1.0, "x")]
    events += [("b", 9.9, 10.115, "y"), ("b", 9.95, 9.96, "x")]
    targets = features.frame_targets(["a", "b"], events, ["x", "y"])
    assert targets.shape == (2, 64, 2)
    active = [np.flatnonzero(targets[clip, :, label]).tolist() for clip in range(2) for label in range(2)]
    assert active == [[0, 3, 4, 5, 6], [1], [63], [63]]


def test_recordings_behind_the_names():
    names = {
        "Ybbb_bb-bbb__0.000_4.000.wav": ("bbb_bb-bbb_", 0.0, 4.0),  # training, validation
        "-x_x-x_x_xY_30_40.wav": ("-x_x-x_x_xY", 30.0, 40.0),  # public evaluation
        "YYYYYYYYYYYY_30.000_40.000.wav": ("YYYYYYYYYYY", 30.0, 40.0),
        "YYYYYYYYYYY_30_40.wav": ("YYYYYYYYYYY", 30.0, 40.0),
        "Yshort_0.000_4.000.wav": None,
    }
    assert {name: features.recording(name) for name in names} == names


# --- features.py: the data set (Boes 2022, Sec. 3.1.1) ---------------------------------------------------------------

W2 = "audio/train/weak/w2.wav"
LAYOUT = {  # of DCASE 2020 task 4: table, folder of audio
    "strong": ("train/synthetic20/soundscapes.tsv", "train/synthetic20/soundscapes"),
    "weak": ("train/weak.tsv", "train/weak"),
    "unlabelled": ("train/unlabel_in_domain.tsv", "train/unlabel_in_domain"),
    "validation": ("validation/validation.tsv", "validation"),
    "public": ("eval/public.tsv", "eval/public"),
}


def tiny_rows():
    """Rows of a data set with two classes, with the oddities of the real lists"""
    return {
        "strong": ["00.wav\t0.000\t1.500\tCat", "01.wav\t0.100\t1.500\tDog", "02.wav\t0.200\t1.500\tCat",
                   "03.wav\t0.300\t1.500\tDog", "00.wav\t0.200\t0.210\tDog"],
        "weak": ["Yaaaaaaaaaaa_0.000_10.000.wav\tDog,Cat,Dog", "Ybbb_bb-bbb__0.000_4.000.wav\tCat", "w2.wav\tDog",
                 "w3.wav\tCat"],
        "unlabelled": [f"u{i}.wav" for i in range(5)] + ["YWP8aI1IXNCQ_0.000_5.000.wav", "gone.wav"],
        "validation": ["v0.wav\t0.500\t1.200\tDog", "v1.wav\t\t\t", "v2.wav\t1.000\t10.115\tCat",
                       "v2.wav\t0.100\t0.900\tCat", "v2.wav\t0.100\t0.500\tCat", "v3.wav"],
        "public": ["-x.wav\t0.000\t2.000\tDog", "p1.wav\t0.300\t1.000\tCat", "WP8aI1IXNCQ_0_5.wav\t0.100\t1.000\tDog"],
    }  # fmt: skip


def write_tiny(root, rows=None, streams=("openl3",), seed=0):
    """A complete data set of two-second clips in the folder root; `gone` has no audio, most others have video"""
    rows = rows or tiny_rows()
    rng = np.random.default_rng(seed)
    for name, (table, folder) in LAYOUT.items():
        header = {"weak": WEAK_HEADER, "unlabelled": "filename"}.get(name, STRONG_HEADER)
        (root / "metadata" / table).parent.mkdir(parents=True, exist_ok=True)
        (root / "metadata" / table).write_text("\n".join([header, *rows[name]]) + "\n")
        for clip in dict.fromkeys(row.split("\t")[0] for row in rows[name]):
            if clip == "gone.wav":
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
    strong, weak, unlabelled, validation, public = (data.partitions[name] for name in LAYOUT)
    counts = [(part.listed, len(part)) for part in (strong, weak, unlabelled, validation, public)]
    assert data.classes == ["Cat", "Dog"] and counts == [(4, 4), (4, 4), (7, 5), (4, 4), (3, 3)]
    assert re.search(r"unlabelled +7 listed, +6 found, +5 with openl3 \(83.3 %\)", "\n".join(lines))
    # one clip of the real lists is in public evaluation too, under another name
    assert re.search(r"unlabelled +1 left out, the same recording is in validation or public", "\n".join(lines))
    assert "YWP8aI1IXNCQ_0.000_5.000.wav" not in unlabelled.filenames
    assert validation.filenames == ["v0.wav", "v1.wav", "v2.wav", "v3.wav"] and len(validation.events) == 4
    assert weak.tags.tolist() == [[True, True], [True, False], [False, True], [True, False]]
    assert validation.tags.tolist() == [[False, True], [False, False], [True, False], [False, False]]
    assert strong.frame_targets[0, :, 1].nonzero()[0].tolist() == [1] and strong.frame_targets[1, :, 1].sum() == 10
    # each kind of label where it belongs, and nowhere else
    assert unlabelled.tags is weak.frame_targets is unlabelled.frame_targets is None
    assert not weak.events and not unlabelled.events
    have = [data.partitions[name].present["openl3"].tolist() for name in LAYOUT]
    assert have == [[False] * 4, [True] * 4, [False] + [True] * 4, [True, False, True, True], [True] * 3]
    assert np.allclose(public.durations, 2.0)
    for part in data.partitions.values():  # each clip has its own sound
        assert [path.name for path in part.paths] == part.filenames
        sounds = [features.log_mel(features.load_audio(path)).numpy() for path in part.paths]
        assert np.allclose(part.log_mel, sounds, atol=1e-4), part.name
    assert np.array_equal(validation.visual["openl3"][2], np.load(tmp_path / "visual/openl3/v2.npy"))


def test_classes_are_those_of_the_training_clips(tmp_path):
    rows = tiny_rows()
    rows["weak"][2] = "w2.wav\tFrying"  # with weak labels only
    data = features.load_dataset(write_tiny(tmp_path, rows), log=quiet)
    assert data.classes == ["Cat", "Dog", "Frying"] and data.partitions["strong"].frame_targets.shape == (4, 64, 3)
    rows["weak"][2], rows["validation"][0] = "w2.wav\t", "v0.wav\t0.500\t1.200\tFrying"
    with pytest.raises(InputError, match=r"validation\.tsv, line 2: the class 'Frying' occurs in no training"):
        features.load_dataset(write_tiny(tmp_path, rows), log=quiet)


def training_statistics(root, stream="openl3"):
    """Straight from the files of the training clips: mean and std of each mel bin, then of each visual dimension"""
    folders = [root / "audio" / LAYOUT[name][1] for name in ("strong", "weak", "unlabelled")]
    sounds = [path for folder in folders for path in folder.iterdir() if "WP8aI1IXNCQ" not in path.name]
    # frames that are centred in the sound: of a clip of two seconds 0 to 32000 // 313
    ends = [1 + soundfile.info(path).frames // 313 for path in sounds]
    maps = [features.log_mel(features.load_audio(path)).numpy()[:end] for path, end in zip(sounds, ends)]
    vectors = [root / "visual" / stream / f"{path.stem}.npy" for path in sounds]
    pools = np.concatenate(maps), np.concatenate([np.load(path) for path in vectors if path.exists()])
    return [statistic for pool in pools for statistic in (pool.mean(0, np.float64), pool.std(0, np.float64))]


def test_statistics_are_those_of_the_training_clips(tmp_path):
    def loaded():
        data = features.load_dataset(tmp_path, ["openl3"], log=quiet)
        return [*data.mel_statistics, *data.visual_statistics["openl3"]]

    write_tiny(tmp_path)
    write_wav(tmp_path / W2, tone(440)[: 206 * 313])  # one clip is longer than the others: frames 0 to 206
    before = loaded()
    assert all(np.allclose(got, want, atol=1e-5) for got, want in zip(before, training_statistics(tmp_path)))
    for stem in ("v0", "p1"):  # other test clips: the same statistics
        np.save(tmp_path / f"visual/openl3/{stem}.npy", np.full((64, 6), 100, np.float16))
        write_wav(next((tmp_path / "audio").rglob(f"{stem}.wav")), tone(440))
    assert all(np.array_equal(a, b) for a, b in zip(before, loaded()))


def test_mean_and_std():
    rng = np.random.default_rng(0)
    arrays, masks = [rng.random((n, 3, 2)) for n in (5, 2)], [rng.random((n, 3)) < 0.5 for n in (5, 2)]
    rows = np.concatenate([array[mask] for array, mask in zip(arrays, masks)])
    assert np.allclose(features.mean_and_std(arrays, masks, chunk=2), [rows.mean(0), rows.std(0)], atol=1e-6)
    constant = features.mean_and_std([np.full((1, 3, 2), 7.0)], [np.ones((1, 3), bool)])
    assert np.allclose(constant, [[7, 7], [1e-3, 1e-3]])  # a floor, for dimensions that never change


def test_vectors_that_are_not_finite_count_as_missing(tmp_path):
    root, lines, vectors = write_tiny(tmp_path), [], np.zeros((64, 6), np.float16)
    vectors[5, 3] = np.nan
    np.save(root / "visual/openl3/w2.npy", vectors)
    data = features.load_dataset(root, ["openl3"], log=lines.append)
    assert data.partitions["weak"].present["openl3"].tolist() == [True, True, False, True]
    assert any(re.search("weak +1 openl3 files are not finite", line) for line in lines)
    assert np.isfinite(data.visual_statistics["openl3"]).all()
    for path in (root / "visual/openl3").iterdir():
        np.save(path, np.full((64, 6), np.inf, np.float16))
    with pytest.raises(InputError, match="all training clips hold values that are not finite"):
        features.load_dataset(root, ["openl3"], log=quiet)


def test_odd_but_harmless_folders(tmp_path):
    rows = tiny_rows()
    rows["weak"].insert(0, "YWP8aI1IXNCQ_0.000_5.000.wav\tDog")  # it is in public evaluation, too
    root = write_tiny(tmp_path, rows)
    (root / W2).unlink()
    (root / W2).symlink_to(root / "nowhere")  # a clip that is gone, not a broken one
    data = features.load_dataset(root, ["openl3"], log=quiet)
    weak, sounds = data.partitions["weak"], [path.name for path in data.partitions["weak"].paths]
    assert weak.filenames == sounds and weak.filenames[-1] == "w3.wav"
    assert np.array_equal(weak.log_mel[2], features.log_mel(features.load_audio(weak.paths[2])))
    assert weak.tags.tolist() == [[True, True], [True, False], [True, False]]
    (root / "visual/openl3").rename(root / "visual/log-mel")
    with pytest.raises(InputError, match="visual/log-mel: a visual stream cannot have this name"):
        features.load_dataset(root, ["log-mel"], log=quiet)
    (root / "visual/log-mel").rename(root / "visual/other")
    renamed = features.load_dataset(root, ["other"], log=quiet)
    assert np.array_equal(renamed.visual_statistics["other"], data.visual_statistics["openl3"])


# --- metrics.py: tools of the tests ----------------------------------------------------------------------------------

HOP = 8 * 313 / 16000  # seconds from one frame to the next
nan = math.nan


def same(a, b, tolerance=1e-12):
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance


def events(*rows, file="a", label="A"):
    """(onset, offset[, label[, file]]) -> events"""
    return [(row[3] if len(row) > 3 else file, row[0], row[1], row[2] if len(row) > 2 else label) for row in rows]


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def both(name, *arguments, **options):
    """What metrics.NAME returns, after a look at metrics.NAME_by_definition: an F1 to the last bit, a PSDS to 1e-12"""
    fast = quietly(getattr(metrics, name), *arguments, **options)
    plain = getattr(metrics, f"{name}_by_definition")(*arguments, **options)
    assert same(fast, plain) if name == "psds" else repr(fast) == repr(plain), (arguments, options)
    return fast


def toy_scores(seed, N=5, T=24, C=3, values=None, dtype=np.float64):
    """Smooth random scores; with few values there are many ties"""
    rng = np.random.default_rng(seed)
    scores = scipy.ndimage.gaussian_filter1d(rng.normal(size=(N, T, C)), 1 + seed % 3, axis=1)
    scores = (1 / (1 + np.exp(-4 * scores))).astype(dtype)
    scores = np.round(scores * values) / values if values else scores
    files, classes = [f"f{i}" for i in range(N)], list("ABCDEF"[:C])
    truth = decode_slowly(rng.random((N, T, C)) * 0.6 + 0.4 * scores, files, classes, 0.6, 5, HOP)
    durations = {f: float(rng.choice([1.1, 2.0, 10.0])) for f in files}
    return scores, files, truth, durations, classes


# --- metrics.py, Sec. 3.1.3: from frame scores to events -------------------------------------------------------------


def median_slowly(values, window):
    """The middle one of the sorted window; past the ends the values come back: d c b a | a b c d | d c b a | a b ..."""
    period, half = values + values[::-1], window // 2
    return [sorted(period[i % len(period)] for i in range(t - half, t + half + 1))[half] for t in range(len(values))]


def decode_slowly(scores, filenames, classes, threshold, window, hop, durations=None):
    found = []
    for (n, name), (c, label) in itertools.product(enumerate(filenames), enumerate(classes)):
        limit, size = (np.broadcast_to(x, len(classes))[c] for x in (threshold, window))
        active = median_slowly([float(s) > limit for s in scores[n, :, c]], int(size))
        seconds = (durations or {}).get(name, 10.0)
        for on, run in itertools.groupby(range(len(active)), active.__getitem__):
            frames = list(run)
            if on and frames[0] * hop < seconds:
                found.append((name, frames[0] * hop, min((frames[-1] + 1) * hop, seconds), label))
    return found


def test_scores_to_events_equals_slow_one():
    for seed in range(60):
        scores, files, _, durations, classes = toy_scores(seed, T=1 + seed % 30, values=10 if seed % 2 else None)
        threshold = 0.5 if seed % 3 else np.array([0.2, 0.5, 0.7])
        window = (np.array([1, 31, 3]), 1, 3, 7, 31)[seed % 5]
        for seconds in (None, durations):
            got = metrics.scores_to_events(scores, files, classes, threshold, window, HOP, seconds)
            assert got == decode_slowly(scores, files, classes, threshold, window, HOP, seconds)
    assert all(type(x) is t for e in got for x, t in zip(e, (str, float, float, str)))


def test_grids_of_the_paper():
    assert metrics.TUNING_THRESHOLDS.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert metrics.TUNING_WINDOWS.tolist() == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31]
    assert metrics.THRESHOLDS_50.tolist() == [(2 * k + 1) / 100 for k in range(50)]
    assert metrics.THRESHOLDS_50[[0, 1, 49]].tolist() == [0.01, 0.03, 0.99]


def test_median_filter_by_hand():
    def run(text, window):
        active = np.array([c == "1" for c in text])[None, :, None]
        return "".join("01"[int(x)] for x in metrics.median_filter(active, window).ravel())

    assert run("1001101001", 3) == "1001110001"
    assert run("1001101001", 5) == "0110110010"
    assert run("1001", 31) == "0110" and run("1101", 31) == "1111"
    assert run("1001101001", 1) == "1001101001"


def test_events_by_hand():
    scores, on = np.array([[[0.5], [0.1]]]), np.ones((1, 64, 1))
    assert metrics.scores_to_events(scores, ["a"], ["A"], 0.5, 1, 1.0) == []  # a score at the threshold is too low
    assert metrics.scores_to_events(scores, ["a"], ["A"], 0.1, 1, 1.0) == events((0.0, 1.0))
    assert metrics.scores_to_events(scores.astype(np.float32), ["a"], ["A"], 0.1, 1, 1.0) == events((0.0, 2.0))
    assert metrics.scores_to_events(on, ["a"], ["A"], 0.5, 1, HOP) == events((0.0, 10.0))  # 64 frames are 10.016 s
    assert metrics.scores_to_events(on, ["a"], ["A"], 0.5, 1, HOP, {"a": 3.2}) == events((0.0, 3.2))
    on[:, :60] = 0
    assert metrics.scores_to_events(on, ["a"], ["A"], 0.5, 1, HOP, {"a": 3.2}) == []
    assert metrics.scores_to_events(on, ["a"], ["A"], 0.5, 1, 0.125, {"a": 7.5}) == []  # frame 60 begins at the end


# --- metrics.py, Sec. 3.1.4: F1 by hand, each example through the definition and the fast version --------------------
# Letters and numbers are names: E event-based, S segment-based, P PSDS, R the curve under which PSDS is the area


@pytest.mark.parametrize(
    "what, ref, est, n_tp",
    [
        ("E1: a difference of 0.19999999999999996 s is within the onset's collar", [(1.0, 3)], [(1.2, 3)], 1),
        ("E1: one of 0.20000000000000007 s is not, as nothing is rounded", [(0.6, 3)], [(0.8, 3)], 0),
        ("E1: the length does not matter", [(1.0, 9)], [(1.21, 9)], 0),
        ("E1: nor does the sign", [(1.0, 9)], [(0.8, 9)], 1),
        ("E2: offsets of short events may differ by 0.2 s", [(1, 1.5)], [(1, 1.7)], 1),
        ("E2: but not by more", [(1, 1.5)], [(1, 1.71)], 0),
        ("E2: those of long events by a fifth of the length", [(1, 6)], [(1, 7)], 1),
        ("E2: but not by more", [(1, 6)], [(1, 7.01)], 0),
        ("E2: of the reference's length, not of the estimate's", [(1, 2)], [(1, 2.5)], 0),
        ("E3: a greedy choice for the first leaves the second alone", [(1, 3), (1.3, 3)], [(1.15, 3), (0.9, 3)], 2),
        ("E7: an event is found once", [(1, 2)], [(1, 2), (1, 2)], 1),
        ("events of length 0 are events", [(1, 1)], [(1, 1), (1, 1)], 1),
        ("another file", [(1, 2)], [(1, 2, "A", "b")], 0),
        ("another class", [(1, 2)], [(1, 2, "B")], 0),
    ],
)
def test_event_f1_by_hand(what, ref, est, n_tp):
    f1 = both("event_f1", events(*ref), events(*est), ["A", "B"])
    assert f1.n_tp.sum() == n_tp and f1.n_fp.sum() == len(est) - n_tp and f1.n_fn.sum() == len(ref) - n_tp


@pytest.mark.parametrize(
    "what, ref, est, options, n_tp, n_fp, n_fn",
    [
        ("S1: a segment counts if an event touches it", [(0, 50)], [(0.9, 1.1)], {}, 2, 0, 48),
        ("S2: an event from 1 to 2 touches one", [(0, 50)], [(1, 2)], {}, 1, 0, 49),
        ("S3: one of length 0 none between two", [(0, 50)], [(3.0, 3.0)], {}, 0, 0, 50),
        ("S3: else the one that it is in", [(0, 50)], [(3.2, 3.2)], {}, 1, 0, 49),
        ("S4: after the clip", [(9, 10.115)], [(9, 9.984)], {"durations": {"a": 10.0}}, 1, 0, 0),
        ("S4: counts if the duration is unknown", [(9, 10.115)], [(9, 9.984)], {}, 1, 0, 1),
        ("S4: or another clip's", [(9, 10.115)], [(9, 9.984)], {"durations": {"b": 10.0}}, 1, 0, 1),
        ("S4: a part of a segment is one", [(9, 10.115)], [(9, 9.984)], {"durations": {"a": 10.1}}, 1, 0, 1),
        ("S5: overlaps count once", [(0, 3)], [(0, 2), (1, 3)], {}, 3, 0, 0),
        ("S7: nothing is rounded", [(0, 50)], [(2.9999999, 4)], {}, 2, 0, 48),
        ("segments of another length", [(0, 50)], [(0.9, 1.1)], {"time_resolution": 0.5}, 2, 0, 98),
    ],
)
def test_segment_f1_by_hand(what, ref, est, options, n_tp, n_fp, n_fn):
    f1 = both("segment_f1", events(*ref), events(*est), ["A"], **options)
    assert (f1.n_tp, f1.n_fp, f1.n_fn) == (n_tp, n_fp, n_fn)


def test_clip_f1_by_hand():
    c1 = metrics.clip_f1([[1, 0], [0, 0], [1, 1]], [[1, 1], [0, 0], [0, 1]])
    assert same(c1.micro, 2 / 3) and c1.n_tp.tolist() == [1, 1] and list(c1.per_class) == [0, 1]
    assert same(c1.per_class[0], 2 / 3) and same(c1.macro, 2 / 3)
    assert (c1.n_fp.tolist(), c1.n_fn.tolist()) == ([0, 1], [1, 0])
    assert metrics.clip_f1([[1]], [[0]]).micro == 0.0 and math.isnan(metrics.clip_f1([[0]], [[1]]).macro)
    for est in ([[1, 0]], [1], [[1], [1]]):
        with pytest.raises(ValueError, match="tags of shapes"):
            metrics.clip_f1([[1]], est)


def test_f1_of_classes_that_are_only_there_or_only_found():
    with_b, only_a = events((1, 2), (3, 4, "B")), events((1, 2))
    missed = both("event_f1", with_b, only_a, ["A", "B"])  # E4: B is never found
    assert (missed.per_class, missed.macro) == ({"A": 1.0, "B": 0.0}, 0.5) and same(missed.micro, 2 / 3)
    invented = both("event_f1", only_a, with_b, ["A", "B"])  # E5: B is never there, so no part of the macro mean
    assert math.isnan(invented.per_class["B"]) and invented.macro == 1.0 and same(invented.micro, 2 / 3)
    for score in ("event_f1", "segment_f1"):
        nothing = both(score, only_a, [], ["A"])  # E9: nothing is found
        assert (nothing.micro, nothing.macro, nothing.n_fn.tolist()) == (0.0, 0.0, [1])
        for found in ([], only_a):  # nothing is there
            nowhere = both(score, [], found, ["A"])
            assert math.isnan(nowhere.micro) and math.isnan(nowhere.macro)
            assert (nowhere.n_tp[0], nowhere.n_fp[0], nowhere.n_fn[0]) == (0, len(found), 0)
        with pytest.warns(UserWarning, match="1 events outside the class list, counted in micro F1 only: B"):
            got = getattr(metrics, score)(only_a, with_b, ["A"])
        assert got.per_class == {"A": 1.0} and got.macro == 1.0 and same(got.micro, 2 / 3) and len(got.n_tp) == 1


def test_precision_and_recall_by_hand():
    ref = events((1, 2), (3, 4), (5, 6), (7, 8, "B"))
    est = events((1, 2), (11, 12, "C"))
    for score in ("event_f1", "segment_f1"):
        f1 = both(score, ref, est, ["A", "B", "C", "D"])
        assert list(f1.precision) == list(f1.recall) == ["A", "B", "C", "D"]
        a, b, c, d = zip(f1.precision.values(), f1.recall.values())
        assert a == (1.0, 1 / 3) and f1.per_class["A"] == 0.5
        assert math.isnan(b[0]) and b[1] == 0.0 and f1.per_class["B"] == 0.0  # nothing is estimated
        assert c[0] == 0.0 and math.isnan(c[1]) and math.isnan(f1.per_class["C"])  # nothing is there
        assert math.isnan(d[0]) and math.isnan(d[1])
    clip = metrics.clip_f1([[1, 0], [1, 0], [0, 0]], [[1, 0], [0, 0], [0, 0]])
    assert (clip.precision[0], clip.recall[0]) == (1.0, 0.5) and math.isnan(clip.precision[1] + clip.recall[1])


# --- metrics.py, Sec. 3.1.4: PSDS by hand ----------------------------------------------------------------------------


def test_table_4():
    strict = {"dtc_threshold": 0.7, "gtc_threshold": 0.7, "alpha_st": 1, "alpha_ct": 0, "max_efpr": 100}
    assert {name: value for name, value in PSDS1.items() if name != "cttc_threshold"} == strict  # there "N/A"
    assert PSDS2 == {
        "dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3,
        "alpha_st": 1, "alpha_ct": 0.5, "max_efpr": 100,
    }  # fmt: skip


# Events (onset, offset) are of class A unless said, in a clip of 10 s, where one false positive is 360 per hour.
B = (5, 6, "B")  # never found: what is found of A counts half
REF, TWO = [(1, 2), B], [(1, 2), (5, 6)]
UP_TO_1000 = PSDS1 | {"alpha_st": 0.0, "max_efpr": 1000.0}
ONE_FALSE = 0.5 * (1000 - 360) / 1000  # beside all of A
CROSS = PSDS2 | {"alpha_st": 0.0, "max_efpr": 4320.0}


@pytest.mark.parametrize(
    "what, ref, detections, criteria, expected",
    [
        ("P1: one of two classes is found", REF, [(1, 2)], UP_TO_1000, 0.5),
        ("P2: a detection that is covered to 0.7 passes", [(0, 0.7), B], [(0, 1)], UP_TO_1000, 0.5),
        ("P2: to 0.6999999999999997 it fails, as nothing is rounded", [(2.1, 2.8), B], [(2.1, 3.1)], UP_TO_1000, 0.0),
        ("P3: two events together cover a detection", [(1, 2), (2.1, 3.1), B], [(1, 3.1)], UP_TO_1000, 0.5),
        ("P4: two detections together cover an event", [(1, 3), B], [(1, 1.9), (2, 2.9)], UP_TO_1000, 0.5),
        ("P4: not if one of them fails its own criterion", [(1, 3), B], [(1, 1.9), (2.5, 4.5)], UP_TO_1000, 0.0),
        ("P4: nor if they cover 2 / 3", [(1, 2.5), B], [(1, 2)], UP_TO_1000, 0.0),
        ("P5: too little of its event, but not wrong", [(1, 9), (0, 1), B], [(2, 3), (0, 1)], UP_TO_1000, 0.25),
        ("P6: a detection that only touches is wrong", REF, [(1, 2), (2, 3)], UP_TO_1000, ONE_FALSE),
        ("P11: identical detections count each", [(1, 3), B], [(1, 2), (1, 2)], UP_TO_1000, 0.5),
        ("P11: once it is half", [(1, 3), B], [(1, 2)], UP_TO_1000, 0.0),
        ("P12: overlapping detections are merged", [(1, 2.5), B], [(1, 2), (1.5, 2.5)], UP_TO_1000, 0.5),
        ("P12: so are events", [(1, 2), (1.5, 2.2), (1.5, 2.5), B], [(1, 2.5)], UP_TO_1000, 0.5),
        ("P13: detections of length 0 do not count", REF, [(1, 2), (3, 3)], UP_TO_1000, 0.5),
        ("P14: nor those after the clip", REF, [(1, 2), (11, 12)], UP_TO_1000, 0.5),
        ("P14: or from its end on", REF, [(1, 2), (10, 12)], UP_TO_1000, 0.5),
        ("P14: but those that begin in it", REF, [(1, 2), (9.5, 12)], UP_TO_1000, ONE_FALSE),
        ("P15: in a file without duration nothing is wrong", REF, [(1, 2), (1, 2, "A", "x")], UP_TO_1000, 0.5),
        ("P19: lengths are not clipped to the clip", [(9, 10.5), B], [(9, 10)], UP_TO_1000, 0.0),
        ("without a cost, cross-triggers change nothing", REF, TWO, UP_TO_1000 | {"cttc_threshold": 2.0}, ONE_FALSE),
        ("P7: A found in B: 360 + 0.5 * 3600 per hour", REF, TWO, CROSS, 0.5 * (4320 - 2160) / 4320),
        ("P7: by all classes instead of the others", REF, TWO, CROSS | {"ct_divisor": "C"}, 0.5 * (4320 - 1260) / 4320),
        ("P7: B lasts 1.5 s", [(1, 2), (5, 6.5, "B")], TWO, CROSS, 0.5 * (4320 - 360 - 0.5 * 2400) / 4320),
        ("P8: B covers 0.2999999999999998", [(1, 2), (5.7, 6.7, "B")], TWO, CROSS, 0.5 * (4320 - 360) / 4320),
        ("P9: in B and C: 360 + 0.5 * (3600 + 3600) / 2", [*REF, (5, 6, "C")], TWO, CROSS, (4320 - 2160) / 4320 / 3),
        ("P10: what is right triggers no other class", [(1, 2), (1, 2, "B")], [(1, 2)], CROSS, 0.5),
        ("P18: one class has no others", [(1, 2)], [(1, 2), (3, 4)], CROSS, (4320 - 360) / 4320),
        ("R5: rates 1 and 0 have mean and deviation 0.5", REF, [(1, 2)], UP_TO_1000 | {"alpha_st": 1.0}, 0.0),
        # of all classes, not as of a sample of them, 0.35
        ("R5: rates 1 and 0.5 have 0.75 and 0.25", [*REF, (7, 8, "B")], REF, UP_TO_1000 | {"alpha_st": 1.0}, 0.5),
        ("R5: rates 1, 0, 0: not below 0", [*REF, (7, 8, "C")], [(1, 2)], UP_TO_1000 | {"alpha_st": 1.0}, 0.0),
        ("nothing is found", REF, [], UP_TO_1000, 0.0),
        ("nothing is there", [], [(1, 2)], UP_TO_1000, nan),
        ("labels outside the classes are ignored", [(1, 2), (5, 6, "Q")], [(1, 2), (7, 8, "Q")], UP_TO_1000, 1.0),
        ("all is found: PSDS1", REF, REF, PSDS1, 1.0),
        ("all is found: PSDS2", REF, REF, PSDS2, 1.0),
    ],
)
def test_psds_by_hand(what, ref, detections, criteria, expected):
    # C mostly has no ground truth, and is left out then
    assert same(both("psds", events(*ref), [events(*detections)], {"a": 10.0}, ["A", "B", "C"], **criteria), expected)


def test_psds_is_the_area_under_a_staircase_by_hand():
    ref = events((10, 11), (20, 21), (30, 31), (40, 41), (50, 51, "B"), (60, 61, "B"))

    def area(*points):  # in one hour; each point has a number of hits and of false positives of A
        found = [
            events(*((10 * i, 10 * i + 1) for i in range(1, hits + 1)), *((99 + 2 * i, 100 + 2 * i) for i in range(n)))
            for hits, n in points
        ]
        return both("psds", ref, found, {"a": 3600.0}, ["A", "B"], **(PSDS1 | {"alpha_st": 0.0}))

    assert same(area((1, 10), (2, 40), (1, 60)), 0.1875)  # R1: (30 * 0.25 + 60 * 0.5) / 100 / 2 classes
    assert same(area((1, 60), (2, 40), (1, 10), (2, 40)), 0.1875)  # R2: order and repetition do not matter
    assert same(area((1, 0), (2, 150)), 0.125)  # R3: beyond the limit; what held before holds up to it
    assert area((1, 100)) == 0.0  # R4: a point at the limit adds nothing
    assert area() == area((0, 0), (0, 0)) == 0.0


def test_psd_roc_by_hand():
    # in one hour: A has four events, of which 1, 3, 2 are found beside 10, 40, 60 false positives; B is never found
    ref = events((10, 11), (20, 21), (30, 31), (40, 41), (50, 51, "B"))
    found = [
        events(*((10 * i, 10 * i + 1) for i in range(1, hits + 1)), *((99 + 2 * i, 100 + 2 * i) for i in range(n)))
        for hits, n in ((1, 10), (3, 40), (2, 60), (4, 101))
    ]
    data = ref, found, {"a": 3600.0}, ["A", "C", "B"]
    efpr, tpr, etpr = metrics.psd_roc(*data, **PSDS1 | {"alpha_st": 0.0})
    assert efpr.tolist() == [0, 10, 40]  # where it rises; the fourth point is beyond the limit
    assert tpr[[0, 2]].tolist() == [[0, 0.25, 0.75], [0, 0, 0]] and np.isnan(tpr[1]).all() and tpr.shape == (3, 3)
    assert etpr.tolist() == [0, 0.125, 0.375]  # the mean of A and B; C has no ground truth
    assert metrics.psds(*data, **PSDS1 | {"alpha_st": 0.0}) == (30 * 0.125 + 60 * 0.375) / 100
    assert metrics.psd_roc(*data, **PSDS1 | {"alpha_st": 0.5})[2].tolist() == [0, 0.0625, 0.1875]
    assert metrics.psd_roc(*data, **PSDS1)[2].tolist() == [0, 0, 0]  # the deviation is the mean
    for classes in (["A", "C"], []):
        efpr, tpr, etpr = metrics.psd_roc([], found, {"a": 3600.0}, classes, **PSDS1)
        assert efpr.tolist() == [0] and tpr.shape == (len(classes), 1) and np.isnan([*tpr[:, 0], *etpr]).all()


def test_perfect_scores():
    scores, files, _, _, classes = toy_scores(0)
    truth, durations = metrics.scores_to_events(scores, files, classes, 0.5, 1, HOP), dict.fromkeys(files, 10.0)
    assert both("event_f1", truth, truth, classes)[:2] == both("segment_f1", truth, truth, classes)[:2] == (1.0, 1.0)
    for criteria in (PSDS1, PSDS2):
        data = scores > 0.5, files, truth, durations, classes, HOP
        assert metrics.psds_from_scores(*data, **criteria) == metrics.exact_psds_from_scores(*data, **criteria) == 1.0


# --- metrics.py, Sec. 3.1.3: tuning ----------------------------------------------------------------------------------


def best_of(grid):
    """grid: (score, window, k) -> threshold k / 10 and window; of equals the smaller window, then nearest to 0.5"""
    _, window, k = min(grid, key=lambda row: (-row[0], row[1], abs(row[2] - 5), row[2]))
    return k / 10, window


@pytest.mark.parametrize("metric", ["event", "segment", "clip"])
def test_tuning_by_hand(metric):
    # two positive clips, at 0.9 and 0.45, and two negative at 0.54: F1 is 2/3 up to 0.4, less at 0.5, then 2/3 again
    scores, files = np.full((4, 64, 1), 0.9) * np.array([1, 0.6, 0.6, 0.5])[:, None, None], list("abcd")
    truth, score = events((0, 10), (0, 10, "A", "d")), metrics.event_f1 if metric == "event" else metrics.segment_f1
    data = scores.max(axis=1) if metric == "clip" else scores, files, truth, {}, ["A"], HOP
    assert metrics.tune(*data, metric) == (0.4, 1)  # of equals the smallest window, nearest to 0.5, the lower one
    if metric == "clip":
        assert metrics.tune_clip_by_definition(data[0], files, truth, ["A"]) == 0.4
    else:
        assert metrics.tune_by_definition(*data, score) == (0.4, 1)


def test_tuning_with_nothing_to_tune():
    scores, files, _, durations, classes = toy_scores(0)
    for metric in ("event", "segment"):
        thresholds, windows = metrics.tune(scores, files, [], durations, classes, HOP, metric)
        assert thresholds.tolist() == [0.5] * 3 and windows.tolist() == [1] * 3
    assert metrics.tune(scores, files, [], durations, classes, HOP, "psds1")[1].tolist() == [1] * 3
    assert metrics.tune(scores.max(axis=1), files, [], durations, classes, HOP, "clip")[0].tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="psds2"):
        metrics.tune(scores, files, [], durations, classes, HOP, "psds")


# --- train.py: what a run is asked for (Boes 2022, Sec. 3.1.5, 3.2) --------------------------------------------------

CPU = torch.device("cpu")
SHORT = "--epochs 2 --batches 2 --batch-size 2 2 3".split()


def run(*arguments):
    train.main([str(a) for a in arguments])


def tiny_config(root, **changes):
    values = dict(data=str(root), visual=("openl3",), base="transformer", train_weight=0.5, infer_weight="auto")
    values |= dict(epochs=2, batches=2, batch_size=(2, 2, 3), seed=0, precision="fp32")
    return train.Config(**{**values, **changes})


def shrink(put=setattr):
    """Fewer blocks, narrower heads and stacks, and two windows to tune: saves time where a test is not about those"""
    channels = 1, *6 * [8], avsed.WIDTH
    stacks = tuple((n_in, n_out, pool) for n_in, n_out, (*_, pool) in zip(channels, channels[1:], avsed.CNN_STACKS))
    sizes = {"ENCODER_BLOCKS": 1, "DECODER_BLOCKS": 1, "KEY": 8, "HIDDEN": 16, "CNN_STACKS": stacks}
    for name, value in sizes.items():
        put(avsed, name, value)
    put(metrics, "TUNING_WINDOWS", np.array([1, 7]))


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch.setattr)


def test_defaults_are_the_papers():
    args = train.parse_arguments(["--data", "x"])
    assert (args.epochs, args.batches, args.batch_size) == (100, 250, (32, 32, 64))
    assert (args.visual, args.base, args.precision) == ([], "transformer", "fp32")
    assert train.INFER_WEIGHTS == (0.25, 0.5, 0.75, 0.875)
    best = {("openl3",): (0.5, 0.75), ("tce",): (0.75, 0.75), ("vgg16",): (0.5, 0.5), ("openl3", "tce"): (0.75, 0.75)}
    both = {("transformer", *streams): weights[0] for streams, weights in best.items()}
    assert train.TRAIN_WEIGHTS == both | {("conformer", *streams): weights[1] for streams, weights in best.items()}


def test_the_acoustic_weight_in_training_and_where_it_comes_from(tmp_path, monkeypatch, capsys):
    root, configs = write_tiny(tmp_path / "set", streams=("openl3", "tce")), []
    monkeypatch.setattr(train, "complete_run", lambda config, *_: configs.append(config))
    monkeypatch.setattr(train, "row", lambda *_: "")
    base = ["--data", root, "--out", tmp_path / "r"]
    for flags, weight, said in (
        ("--visual openl3", 0.5, "0.5, the best of the paper's for these streams (Tables 5, 8)"),
        ("--visual openl3 --base conformer", 0.75, "0.75, the best of the paper's"),
        ("--visual tce openl3", 0.75, "0.75, the best of the paper's"),
        ("--visual tce --train-weight 0.25", 0.25, "0.25, as asked"),
        ("--visual tce --train-weight random", "random", "random, as asked"),
        ("--visual other", 0.5, "0.5, the paper has none for these streams"),
    ):
        if "other" in flags:
            (root / "visual/tce").rename(root / "visual/other")
        run(*base, *flags.split())
        assert configs[-1].train_weight == weight and configs[-1].infer_weight == "auto"
        assert f"acoustic weight in training: {said}" in capsys.readouterr().out
    run(*base)
    assert configs[-1].train_weight == configs[-1].infer_weight == 1 and "weight in" not in capsys.readouterr().out


# --- train.py: the batch of an iteration (Boes 2022, Sec. 3.1.5) -----------------------------------------------------


def test_endless_stream_visits_every_clip_once_a_pass():
    batches = [train.endless(10, 3, t, (0, 0)) for t in range(9)]
    for p in range(3):
        assert len(set(np.concatenate(batches[3 * p : 3 * p + 3]).tolist())) == 9
    assert not np.array_equal(batches[0], batches[3])
    assert train.endless(2, 5, 0, (0, 0)).tolist().count(0) in (2, 3) and len(train.endless(5, 0, 0, (0, 0))) == 0
    assert np.array_equal(train.endless(10, 3, 7, (0, 0)), batches[7])
    assert not np.array_equal(train.endless(10, 10, 0, (1, 0)), train.endless(10, 10, 0, (0, 0)))


N_CLIPS, BATCH = (5, 7, 9), (4, 6, 8)  # strong, weak, unlabelled


def numbered_clips():
    """Clips that hold their own number only, one-hot: a batch shows what was mixed with what -> who has video, clips"""
    eye = torch.eye(21)
    have = {"openl3": np.arange(21) % 3 > 0, "tce": np.arange(21) % 3 > 1}
    present = {stream: np.split(values, [5, 12]) for stream, values in have.items()}
    maps, nothing = list(eye[:, None].split(N_CLIPS)), dict.fromkeys(("log-mel", "openl3", "tce"), (0, 1))
    visual = {"openl3": maps, "tce": maps}
    return have, train.Clips(maps, visual, present, eye[:5, None].bool(), eye[5:12].bool(), nothing, CPU)


def test_what_the_batches_hold_and_how_they_are_mixed():
    """Of 2000 batches a third is mixed: by one ratio for each label group, among clips of it with the same streams"""
    have, clips = numbered_clips()
    config = tiny_config("", visual=("openl3", "tce"), batch_size=BATCH, train_weight="random")
    kinds, groups = np.stack([np.repeat(range(3), N_CLIPS), *have.values()]), np.repeat(range(3), BATCH)
    n_mixed, strangers, ratios, audio_weights = 0, 0, [], []
    for t in range(2000):
        batch = train.training_batch(clips, config, t)
        picks = [train.endless(n, size, t, (0, g)) for g, (n, size) in enumerate(zip(N_CLIPS, BATCH))]
        own = np.concatenate([rows + first for rows, first in zip(picks, (0, 5, 12))])
        x = batch.log_mel[:, 0].numpy()
        others = x.copy()
        others[range(18), own] = 0
        partner = np.where(others.any(1), others.argmax(1), own)
        assert np.allclose(x.sum(1), 1) and ((others > 0).sum(1) <= 1).all()
        assert (kinds[:, partner] == kinds[:, own]).all()
        # inputs and labels alike; that there is video stays as it was
        assert torch.equal(batch.visual["openl3"], batch.log_mel) and torch.equal(batch.visual["tce"], batch.log_mel)
        assert np.array_equal(batch.strong_targets[:, 0], x[:4]) and np.array_equal(batch.weak_targets, x[4:10])
        assert all(np.array_equal(batch.present[stream], have[stream][own]) for stream in have)
        moved = partner != own
        found = [set(x[moved & (groups == g), own[moved & (groups == g)]].tolist()) for g in range(3)]
        assert all(len(values) <= 1 for values in found)
        n_mixed, strangers = n_mixed + any(found), strangers + moved.sum()
        ratios += [values.pop() for values in found if values]
        audio_weights.append(batch.audio_weight)
    assert 0.29 < n_mixed / 2000 < 0.37 and strangers > 8 * n_mixed  # 0.33, standard deviation 0.0105
    assert abs(np.mean(ratios) - 0.5) < 0.05 and abs(np.var(ratios) - 0.25 / 1.4) < 0.02  # Beta(0.2, 0.2)
    assert len(set(ratios)) > 0.9 * len(ratios)
    assert 0.25 <= min(audio_weights) < 0.26 and 0.99 < max(audio_weights) <= 1  # U(0.25, 1), one for the batch
    assert abs(np.mean(audio_weights) - 0.625) < 0.02


def test_batches_are_standardised_by_the_training_clips(tmp_path, monkeypatch):
    root = write_tiny(tmp_path)
    data = features.load_dataset(root, ["openl3"], log=quiet)
    monkeypatch.setattr(train, "MIXUP_RATE", 0)
    batch = train.training_batch(train.load_clips(data, ("openl3",), CPU), tiny_config(root, batch_size=(3, 2, 1)), 5)
    strong, weak = data.partitions["strong"], data.partitions["weak"]
    picked, tagged = train.endless(4, 3, 5, (0, 0)), train.endless(4, 2, 5, (0, 1))
    targets = features.frame_targets(strong.filenames, strong.events, data.classes)
    assert torch.equal(batch.strong_targets, torch.from_numpy(targets[picked]).float())
    assert torch.equal(batch.weak_targets, torch.from_numpy(weak.tags[tagged]).float()) and batch.audio_weight == 0.5
    mel_mean, mel_std, mean, std = training_statistics(root)
    assert np.allclose(batch.log_mel[:3], (strong.log_mel[picked] - mel_mean) / mel_std, atol=1e-4)
    assert np.allclose(batch.visual["openl3"][3:5], (weak.visual["openl3"][tagged] - mean) / std, atol=1e-4)
    assert batch.present["openl3"][:5].tolist() == [False] * 3 + [True] * 2


# --- train.py: one training step (Boes 2022, Sec. 3.1.5) -------------------------------------------------------------


def test_learning_rate_steps():
    rates = [train.learning_rate(t, 25000) for t in (0, 9999, 10000, 19999, 20000, 24999)]
    assert np.allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-9)
    assert train.learning_rate(9700, 12000) == 1e-3 and train.learning_rate(10000, 12000) < 2e-4
    short = [train.learning_rate(t, 360) for t in (0, 287, 288, 359)]
    assert np.allclose(short, [1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-9) and train.learning_rate(0, 1) == 1e-3


def test_teacher_is_a_warmed_up_moving_average():
    student, teacher = nn.Linear(2, 2).double(), nn.Linear(2, 2).double().requires_grad_(False)
    for n_steps, decay in ((1, 0.5), (3, 0.75), (998, 1 - 1 / 999), (5000, 0.999)):
        old, new = teacher.weight.clone(), student.weight.detach().clone()
        train.update_teacher(teacher, student, n_steps)
        assert torch.allclose(teacher.weight, decay * old + (1 - decay) * new, rtol=1e-9)
        assert torch.equal(student.weight, new)


def step_setup(root, **changes):
    """-> student, teacher, optimizer, batch, config of the first iteration on tiny data"""
    data, config = features.load_dataset(write_tiny(root), ["openl3"], log=quiet), tiny_config(root, **changes)
    batch = train.training_batch(train.load_clips(data, ("openl3",), CPU), config, 0)
    return *train.new_networks(config, data, CPU), batch, config


def test_before_the_first_step(tmp_path, small):
    student, teacher, optimizer, *_ = step_setup(tmp_path)
    assert isinstance(student, MultiEncoder) and student.training and teacher.training
    assert same_weights(student.state_dict(), teacher.state_dict())
    mine, his = list(student.parameters()), list(teacher.parameters())
    assert not any(p.requires_grad for p in his) and not {p.data_ptr() for p in mine} & {p.data_ptr() for p in his}
    (group,) = optimizer.param_groups
    assert len(mine) == len(group["params"]) and all(a is b for a, b in zip(mine, group["params"]))
    settings = [group[name] for name in ("lr", "betas", "eps", "weight_decay")]
    assert type(optimizer) is torch.optim.RAdam and settings == [1e-3, (0.9, 0.999), 1e-8, 0]
    assert same_weights(student.state_dict(), step_setup(tmp_path)[0].state_dict())
    assert not same_weights(student.state_dict(), step_setup(tmp_path, seed=1)[0].state_dict())


@pytest.mark.parametrize("t", [0, 2])
def test_one_step_by_hand(tmp_path, small, t):
    student, teacher, optimizer, batch, config = step_setup(tmp_path, train_weight="random")
    with torch.no_grad():
        for p in teacher.parameters():
            p += 0.01 * torch.randn_like(p)
    (own, other), inputs = copy.deepcopy((student, teacher)), (batch.log_mel, batch.visual, batch.present)
    torch.manual_seed(3)  # of dropout
    losses = train.training_step(student, teacher, optimizer, batch, config, t)
    torch.manual_seed(3)
    with torch.no_grad():
        teacher_frame, teacher_clip = other(*inputs, batch.audio_weight)
    frame, clip = own(*inputs, batch.audio_weight)
    p, q = frame[:2].sigmoid(), clip[2:4].sigmoid()
    by_hand = torch.stack([
        -(batch.weak_targets * q.log() + (1 - batch.weak_targets) * (1 - q).log()).mean(),
        -(batch.strong_targets * p.log() + (1 - batch.strong_targets) * (1 - p).log()).mean(),
        (clip.sigmoid() - teacher_clip.sigmoid()).square().mean(),
        (frame.sigmoid() - teacher_frame.sigmoid()).square().mean(),
    ])  # fmt: skip
    assert torch.allclose(losses, by_hand, atol=1e-6) and (losses > 0).all() and not losses.requires_grad
    (by_hand[0] + by_hand[1] + 2 * by_hand[2] + 2 * by_hand[3]).backward()
    pairs = zip(own.named_parameters(), student.parameters(), other.parameters(), teacher.parameters())
    for (name, old), new, before, after in pairs:
        # RAdam rectifies from its sixth step on; until then it is momentum alone, at first the gradient itself
        assert torch.allclose(new, old - 1e-3 * old.grad, atol=1e-7), name
        assert torch.allclose(after, (before * (t + 1) + new) / (t + 2), atol=1e-6) and after.grad is None, name
    assert all(torch.equal(a, b) for a, b in zip(other.buffers(), teacher.buffers()))  # batch norms: its own


def test_student_and_teacher_differ_by_dropout_alone(tmp_path, small):
    student, teacher, optimizer, batch, config = step_setup(tmp_path, train_weight="random")
    models, got = (student, teacher), []
    hooks = [model.register_forward_pre_hook(lambda _, inputs: got.append(inputs)) for model in models]
    *_, clip, frame = train.training_step(student, teacher, optimizer, batch, config, 0)
    assert all(mine is his for mine, his in zip(*got)) and got[0][3] == batch.audio_weight not in (0.5, 1)
    assert clip > 0 and frame > 0 and len(hooks) == 2
    teacher.load_state_dict(student.state_dict())
    for module in (*student.modules(), *teacher.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    *_, clip, frame = train.training_step(student, teacher, optimizer, batch, config, 0)
    assert clip < 1e-12 and frame < 1e-12


def test_every_parameter_group_gets_the_learning_rate(tmp_path, small):
    student, teacher, _, batch, config = step_setup(tmp_path, epochs=1, batches=5, batch_size=(1, 1, 1))
    first, *others = student.parameters()
    optimizer = torch.optim.RAdam([{"params": [first]}, {"params": others}], 1.0)
    for t, rate in ((0, 1e-3), (3, 1e-3), (4, 1e-4)):
        train.training_step(student, teacher, optimizer, batch, config, t)
        assert np.allclose([group["lr"] for group in optimizer.param_groups], rate, rtol=1e-9)


def test_batches_of_one_kind_give_finite_losses(tmp_path, small):
    for size in ((0, 0, 3), (0, 2, 0), (2, 0, 0)):
        student, *more = step_setup(tmp_path, batch_size=size)
        weak, strong, *consistency = train.training_step(student, *more, 0).tolist()
        assert (strong > 0) == (size[0] > 0) and (weak > 0) == (size[1] > 0) and min(consistency) > 0
    assert not any(p.grad.any() for p in student.visual_encoders.parameters())  # no video among strong clips: zeros


@both_bases
def test_a_step_leaves_its_device_for_nothing(base, monkeypatch):
    """On PyTorch's meta device nothing is computed, but operations on two devices fail as they do on a GPU"""
    monkeypatch.setattr(torch, "autocast", lambda *_, **settings: contextlib.nullcontext())  # it does not know "meta"
    config, device = tiny_config("", visual=("openl3",), base=base), torch.device("meta")
    with device:
        student = MultiEncoder(3, {"openl3": 7}, base).train()
        inputs = torch.empty(5, 512, 64), {"openl3": torch.empty(5, 64, 7)}
        targets = torch.empty(2, 64, 3), torch.empty(2, 3)
    present = {"openl3": torch.tensor([True, False, True, True, False])}  # this alone is on the CPU, see Batch
    teacher = copy.deepcopy(student).requires_grad_(False)
    for p in student.parameters():
        p.grad = torch.zeros_like(p)
    batch, optimizer = train.Batch(*inputs, present, *targets, 0.5), torch.optim.RAdam(student.parameters())
    losses = train.training_step(student, teacher, optimizer, batch, config, 0)
    assert losses.device == device and all(p.device == device for p in (*student.parameters(), *teacher.parameters()))


# --- train.py: whole runs --------------------------------------------------------------------------------------------


def read_rows(path):
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return [(f, f"{float(a):.3f}", f"{float(b):.3f}", c) for f, a, b, c in rows if c]


def weights_of(folder):
    return torch.load(folder / "model.pt", weights_only=True)["weights"]


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_what_it_promises(tmp_path, monkeypatch, capsys, small):
    root, out = write_tiny(tmp_path / "set", streams=("openl3", "tce")), tmp_path / "r"
    step, steps, seeds = train.training_step, [], []

    def watched(student, teacher, *more):
        assert student.training and teacher.training
        seeds.append(torch.initial_seed())
        losses = step(student, teacher, *more)
        steps.append((more[-1], *copy.deepcopy((student.state_dict(), teacher.state_dict()))))
        return losses

    monkeypatch.setattr(train, "training_step", watched)
    run("--data", root, *"--visual openl3 tce --base conformer --train-weight random --out".split(), out, *SHORT)
    printed = capsys.readouterr().out
    assert "conformer + openl3 + tce" in printed and "PSDS2" in printed and "TOY" not in printed
    report_command, predict_command = printed.splitlines()[-2:]
    assert report_command == f"next   python -m extras.report {out}"
    assert predict_command.split() == ["python", "-m", "extras.predict", str(out / "model.pt"), "FILE.wav"]
    tables = [f"predictions{name}.tsv" for name in ("", "_CBF1", "_PSDS1", "_PSDS2", "_SBF1")]
    left = ["claim", "durations.tsv", "history.tsv", "log.txt", "metrics.json", "model.pt", *tables, "scores"]
    assert sorted(path.name for path in out.iterdir()) == left
    assert (out / "log.txt").read_text() == printed
    report, model = json.loads((out / "metrics.json").read_text()), torch.load(out / "model.pt", weights_only=True)
    assert list(report["scores"]["public"]) == ["CBF1", "SBF1", "EBF1", "PSDS1", "PSDS2"]
    assert report["infer_weight"] == model["infer_weight"] in train.INFER_WEIGHTS and report["tuned"] == model["tuned"]
    assert model["classes"] == ["Cat", "Dog"] and [*model["visual_statistics"]] == ["openl3", "tce"]
    stored = (*model["mel_statistics"], *model["visual_statistics"]["tce"])
    assert all(np.allclose(got, want, atol=1e-5) for got, want in zip(stored, training_statistics(root, "tce")))

    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]  # dropout has a seed for each epoch, so a run can be resumed
    # scored is the student as its last iteration left it: not that of the best epoch, not the teacher
    assert [t for t, *_ in steps] == [0, 1, 2, 3]
    (*_,), (_, earlier, _), _, (_, student, teacher) = steps
    assert same_weights(model["weights"], student)
    assert not same_weights(student, earlier) and not same_weights(student, teacher)
    rebuilt = MultiEncoder(2, {"openl3": 6, "tce": 5}, "conformer")
    rebuilt.load_state_dict(model["weights"])
    data, weight = features.load_dataset(root, ["openl3", "tce"], log=quiet), model["infer_weight"]
    part = data.partitions["public"]
    scores, _ = train.predict(rebuilt, data, part, [weight], CPU)[weight]
    tuned, seconds = model["tuned"]["EBF1"], dict.fromkeys(part.filenames, 2.0)
    tuned = [np.array(tuned[name]) for name in ("threshold", "window")]
    found = metrics.scores_to_events(scores, part.filenames, ["Cat", "Dog"], *tuned, 0.1565, seconds)
    assert read_rows(out / "predictions.tsv") == [(f, f"{a:.3f}", f"{b:.3f}", c) for f, a, b, c in found]


@both_bases
def test_the_code_that_is_read_is_the_code_that_runs(base, tmp_path, monkeypatch, small):
    """A print in any forward of avsed.py would be reached in training and in scoring, in each as often as it should"""
    calls = {}

    def counting(cls, forward):
        def counted(self, *arguments, **options):
            mode = "train" if self.training else "eval"
            calls[cls.__name__, mode] = calls.get((cls.__name__, mode), 0) + 1
            return forward(self, *arguments, **options)

        return counted

    for cls in vars(avsed).values():
        if isinstance(cls, type) and "forward" in vars(cls):
            monkeypatch.setattr(cls, "forward", counting(cls, cls.forward))
    data = write_tiny(tmp_path / "set")
    run("--data", data, "--visual", "openl3", "--base", base, "--out", tmp_path / "r", *SHORT)
    models = 8  # in training: four iterations, student and teacher
    # in each model one block of two encoders and of a decoder; the visual encoder is asked where a clip has its stream
    block, other = ("TransformerBlock", "ConformerBlock")[:: 1 if base == "transformer" else -1]
    assert calls["MultiEncoder", "train"] == calls["CrossAttention", "train"] == models
    assert calls["Stack", "train"] == calls[block, "train"] == 3 * models
    assert calls["Attention", "train"] == 5 * models  # of two encoders, and of the decoder for itself and for both
    scored = 2 + 5 + 5  # after each epoch, then validation and public with five acoustic weights
    assert calls["MultiEncoder", "eval"] == calls["CrossAttention", "eval"] == scored
    assert calls["Stack", "eval"] == calls[block, "eval"] == 3 * scored and calls["Attention", "eval"] == 5 * scored
    assert (("ConvModule", "train") in calls) == (base == "conformer") and (other, "train") not in calls


def test_every_flag_that_changes_training_changes_the_weights(tmp_path, monkeypatch, small):
    monkeypatch.setattr(train, "INFER_WEIGHTS", (0.5,))  # to save time: this is about training
    base = [*"--visual openl3 --epochs 2 --batches 1 --batch-size 1 1 1 --data".split(), write_tiny(tmp_path / "set")]
    run(*base, "--out", tmp_path / "0")
    run(*base, "--infer-weight", 1, "--out", tmp_path / "same")
    assert same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / "same"))
    assert json.loads((tmp_path / "same/metrics.json").read_text())["infer_weight"] == 1
    base += ["--epochs", 1]
    run(*base, "--out", tmp_path / "1")
    short = weights_of(tmp_path / "1")
    assert not same_weights(short, weights_of(tmp_path / "0"))
    changes = ["--seed 1", "--train-weight 0.25", "--train-weight random", "--batch-size 1 1 2"]
    for changed in (*changes, "--batches 2", "--precision bf16"):
        run(*base, *changed.split(), "--out", tmp_path / changed)
        assert not same_weights(short, weights_of(tmp_path / changed)), changed


# --- train.py: tuning and scoring (Boes 2022, Sec. 3.1.3, 3.2.2) -----------------------------------------------------


def test_scores_are_those_of_standardised_inputs(tmp_path):
    root = write_tiny(tmp_path)
    data = features.load_dataset(root, ["openl3"], log=quiet)
    torch.manual_seed(0)
    student, part = MultiEncoder(2, {"openl3": 6}), data.partitions["validation"]
    got = train.predict(student, data, part, [0.5, 1.0], CPU, size=3)  # four clips: two batches
    mel_mean, mel_std, mean, std = training_statistics(root)
    log_mel = torch.from_numpy((part.log_mel - mel_mean) / mel_std).float()
    visual = {"openl3": torch.from_numpy((part.visual["openl3"] - mean) / std).float()}
    present = {"openl3": torch.tensor([True, False, True, True])}
    for weight in (0.5, 1.0):
        with torch.no_grad():
            expected = [logits.sigmoid() for logits in student.eval()(log_mel, visual, present, weight)]
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(got[weight], expected))


METRICS = {"CBF1": "clip", "SBF1": "segment", "EBF1": "event", "PSDS1": "psds1", "PSDS2": "psds2"}


def scored_data():
    """Two partitions of eight clips without features, and made-up scores of them for each acoustic weight"""
    rng, scores, partitions = np.random.default_rng(48), {}, {}
    for name in ("validation", "public"):
        files = [f"{name}{i}.wav" for i in range(8)]
        onset = rng.uniform(0, 7, (8, 2))
        events = [(files[i], onset[i, c], onset[i, c] + 2.5, "AB"[c]) for i in range(8) for c in range(2) if i % 3 != c]
        truth = features.frame_targets(files, events, ["A", "B"])
        part = features.Partition(name, None, 8, files, events, truth.any(1), durations=np.full(8, 10.0))
        part.present, partitions[name] = {"openl3": np.arange(8) < 5}, part
        for weight in (0.25, 0.5, 0.75, 0.875, 1.0):  # with 1.0, which is none to choose, better than all others
            noise, share = rng.random((8, 64, 2)), rng.uniform(0.3, 0.5) + 0.3 * (weight == 1)
            frame, clip = share * truth + (1 - share) * noise, 0.8 * rng.random((8, 2)) + 0.2 * truth.any(1)
            scores[name, weight] = frame.astype(np.float32), clip.astype(np.float32)
    statistics = (np.zeros(1, np.float32), np.ones(1, np.float32))
    return features.DataSet(["A", "B"], partitions, statistics, {"openl3": statistics}), scores


def made_up(scores):
    """What stands in for train.predict"""
    return lambda student, data, part, weights, device: {weight: scores[part.name, weight] for weight in weights}


def check_scores_of_a_class(found, part, label, frame_scores):
    """frame_scores (8, 64): of this class; all by itself, with the thresholds and windows that the report names"""
    truth, seconds = [event for event in part.events if event[3] == label], dict.fromkeys(part.filenames, 10.0)
    series = frame_scores[:, :, None], part.filenames
    for name, f1 in (("EBF1", metrics.event_f1), ("SBF1", metrics.segment_f1)):
        got, tuned = found[name], (found[name]["threshold"], found[name]["window"])
        alone = f1(truth, metrics.scores_to_events(*series, [label], *tuned, 0.1565, seconds), [label])
        counts = [got["n_tp"], got["n_fp"], got["n_fn"]]
        assert counts == [*alone.n_tp, *alone.n_fp, *alone.n_fn] and got["F1"] == pytest.approx(alone.micro)
        assert got["precision"] == pytest.approx(counts[0] / (counts[0] + counts[1]))
        assert got["recall"] == pytest.approx(counts[0] / (counts[0] + counts[2]))
    criteria, window = PSDS1 | {"alpha_st": 0.0}, found["PSDS1"]["window"]  # without cross-triggers: the class alone
    area = metrics.psds_from_scores(*series, truth, seconds, [label], 0.1565, window, **criteria)
    assert found["PSDS1"]["area"] == pytest.approx(area, abs=1e-12) and area <= found["PSDS2"]["area"]


def test_validation_chooses_and_public_is_scored(tmp_path, monkeypatch):
    """Thresholds and windows: for each score and weight anew, on validation. The weight: by EBF1 on validation"""
    data, scores = scored_data()
    weights, classes, (validation, public) = (0.25, 0.5, 0.75, 0.875), ["A", "B"], data.partitions.values()

    def tuned_on(part, weight):
        frame, clip = scores[part.name, weight]
        by = part.filenames, part.events, dict.fromkeys(part.filenames, 10.0), classes, 0.1565
        return {name: metrics.tune(clip if name == "CBF1" else frame, *by, METRICS[name]) for name in METRICS}

    def scored(part, weight, tuned):
        (frame, clip), files, truth = scores[part.name, weight], part.filenames, part.events
        seconds = dict.fromkeys(files, 10.0)

        def found(name):
            return metrics.scores_to_events(frame, files, classes, *tuned[name], 0.1565, seconds)

        def psds(name, criteria):
            return metrics.psds_from_scores(
                frame, files, truth, seconds, classes, 0.1565, tuned[name][1], **criteria
            )

        return {
            "CBF1": metrics.clip_f1(part.tags, clip > tuned["CBF1"][0]).micro,
            "SBF1": metrics.segment_f1(truth, found("SBF1"), classes).micro,
            "EBF1": metrics.event_f1(truth, found("EBF1"), classes).macro,
            "PSDS1": psds("PSDS1", PSDS1),
            "PSDS2": psds("PSDS2", PSDS2),
        }

    tuned = {w: tuned_on(validation, w) for w in (*weights, 1.0)}
    expected = {w: {part.name: scored(part, w, tuned[w]) for part in (validation, public)} for w in tuned}

    def best_by(name, part):
        return max(weights, key=lambda w: expected[w][part][name])

    # the case tells right from wrong: no other way to choose leads to the same
    best = best_by("EBF1", "validation")
    assert best not in [best_by(name, "public") for name in METRICS]
    assert best not in [best_by(name, "validation") for name in METRICS if name != "EBF1"]
    assert expected[1.0]["validation"]["EBF1"] > expected[best]["validation"]["EBF1"]
    assert len({str(tuned[best][name]) for name in METRICS}) == 5
    cheated = scored(public, best, tuned_on(public, best))
    assert all(cheated[name] != expected[best]["public"][name] for name in METRICS)

    monkeypatch.setattr(train, "predict", made_up(scores))

    def choose_and_score(**changes):
        student, config = nn.Linear(1, 1), tiny_config("", **changes)
        choice = train.choose(student, config, data, CPU, quiet)
        return train.score(student, config, data, CPU, choice, tmp_path)

    report = choose_and_score()
    assert report["infer_weight"] == best and report["scores"] == report["by_weight"][str(best)]
    for weight, parts in expected.items():
        for part in parts:
            assert report["by_weight"][str(weight)][part] == pytest.approx(parts[part], abs=1e-12), (weight, part)
    for name, (threshold, window) in tuned[best].items():
        threshold = None if threshold is None else threshold.tolist()
        assert report["tuned"][name] == {"threshold": threshold, "window": window.tolist()}
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(report))
    for part in (validation, public):
        for c, label in enumerate(classes):
            of_class = scores[part.name, best][0][:, :, c]
            check_scores_of_a_class(report["by_class"][part.name][label], part, label, of_class)
    report = choose_and_score(infer_weight=1.0)
    assert report["infer_weight"] == 1 and report["scores"] == report["by_weight"]["1.0"]  # as asked
    validation.events, validation.tags = [], np.zeros((8, 2), bool)
    report = choose_and_score()
    assert report["infer_weight"] == 0.875 and report["scores"]["validation"]["EBF1"] is None  # all are equal


def test_after_each_epoch_validation_is_scored_with_threshold_one_half(monkeypatch):
    data, scores = scored_data()
    part, classes = data.partitions["validation"], ["A", "B"]
    monkeypatch.setattr(train, "predict", made_up(scores))
    for asked, weight in (("auto", 0.875), (0.25, 0.25)):
        got, used = train.validate(None, data, tiny_config("", infer_weight=asked), CPU)
        frame, clip = scores["validation", weight]
        found = decode_slowly(frame, part.filenames, classes, 0.5, 1, HOP)
        assert used == weight and got["EBF1"] == metrics.event_f1(part.events, found, classes).macro > 0
        assert got["CBF1"] == metrics.clip_f1(part.tags, clip > 0.5).micro > 0


def test_scores_of_one_clip_by_hand():
    """Of 2 s. The event of the table goes on behind its end, what is found does not; F1 does not know of the end"""
    part = features.Partition("public", None, 1, ["a.wav"], [("a.wav", 0.9, 3.2, "A")], np.array([[True]]))
    part.durations, frame_scores = np.array([2.0]), np.zeros((1, 64, 1), np.float32)
    frame_scores[0, 6:] = 0.9  # from 0.939 s on
    tuned = dict.fromkeys(METRICS, (np.array([0.5]), np.array([1])))
    scores = train.evaluate(part, ["A"], frame_scores, np.float32([[0.5]]), tuned)  # 0.5 is not above 0.5
    # of the segments 0, 1, 2, 3 the first two are found; 46 % of the event are enough for PSDS2 alone
    assert scores == {"CBF1": 0, "SBF1": 2 / 3, "EBF1": 0, "PSDS1": 0, "PSDS2": 1}
    found = train.evaluate_by_class(part, ["A"], frame_scores, tuned)["A"]["SBF1"]
    assert (found["n_tp"], found["n_fp"], found["n_fn"]) == (2, 0, 2)
    tags = train.tags_of(np.float32([[0.5, 0.1]]), np.array([0.5, 0.1]))
    assert tags.tolist() == [[False, True]]  # the float32 next to 0.1 is a little more


def test_a_clip_with_any_of_the_streams_has_video(monkeypatch):
    data, rows = scored_data()[0], np.arange(8)
    data.partitions["public"].present = {"openl3": rows < 2, "tce": (rows > 0) & (rows < 4)}
    monkeypatch.setattr(train, "evaluate", lambda part, _, frame, clip, __: (part.filenames, [*frame], [*clip]))
    got = train.evaluate_public(data, rows, 10 * rows, None)
    for name, clips in (("public", range(8)), ("with_video", range(4)), ("without_video", range(4, 8))):
        assert got.pop(name) == ([f"public{i}.wav" for i in clips], [*clips], [10 * i for i in clips])
    assert not got
    data.partitions["public"].present = {"openl3": rows >= 0}  # all have: there is nothing to score without
    assert [*train.evaluate_public(data, rows, rows, None)] == ["public", "with_video"]
