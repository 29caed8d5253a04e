"""Late fusion (Fayek & Kumar 2020): networks, fusion, training, what is kept, the command; in the paper's order"""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import features
import metrics
from extras import fayek2020
from extras.fayek2020 import AttentionFusion, AudioConvNet, ConcatenationFusion, Schedule, VisualDNN
from extras.tagging import Part
from test_avsed import same, tiny_rows, write_tiny, write_wav

CPU = torch.device("cpu")


def count(network):
    return sum(p.numel() for p in network.parameters())


def randomised(network):
    """The network as it might be after training: no parameter, no statistic is 0 or 1"""
    torch.manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.5 + torch.rand_like(value) if "running_var" in name else value + 0.2 * torch.randn_like(value))
    return network


# --- the two networks ------------------------------------------------------------------------------------------------


def test_audio_features_are_16_ms_every_10_ms(tmp_path):
    samples = np.zeros(160000)
    samples[48000] = 1  # at 3 s
    write_wav(tmp_path / "click.wav", samples)
    log_mel = fayek2020.log_mel_16_ms(tmp_path / "click.wav")
    assert log_mel.shape == (1024, 64) and log_mel.dtype == np.float32
    heard = np.flatnonzero((log_mel > log_mel.min()).any(1))  # windows of 256 samples whose centres are 160 apart
    assert heard.tolist() == [300]  # its neighbours end 32 samples before, or begin 32 after
    assert np.all(log_mel[0] == np.log(np.float32(1e-5)))


@torch.no_grad()
def test_sizes_block_by_block():
    network, sizes = AudioConvNet(527).eval(), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(1, 1024, 64)).shape == (1, 527)
    segments = {T: network.segments(torch.zeros(1, T, 64)).shape for T in (96, 1056)}
    table_1 = """64x1024x64 64x1024x64 64x256x16 128x256x16 128x256x16 128x128x8 256x128x8 256x128x8 256x64x4
                 512x64x4 512x64x4 512x32x2 2048x30x1 1024x30x1 1024x30x1 527x30x1"""
    assert ["x".join(map(str, size)) for size in sizes[:16]] == table_1.split()
    assert segments == {96: (1, 1, 527), 1056: (1, 31, 527)}
    assert count(network) == 14_677_711


def test_the_audio_network_is_that_of_table_1():
    torch.manual_seed(0)
    network, x = AudioConvNet(3), torch.randn(2, 128, 64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics become those of one batch
            module.weight.data, module.bias.data = 1 + 0.3 * torch.randn(2, module.num_features)
    network(x)
    P = dict(network.eval().state_dict())
    convolutions = [name[:-7] for name in P if name.endswith("weight") and P[name].ndim == 4]
    normalisations = [name[:-13] for name in P if name.endswith(".running_mean")]
    y = x[:, None]
    for i, name in enumerate(convolutions):
        y = F.conv2d(y, P[name + ".weight"], P[name + ".bias"], padding=1 if i < 8 else 0)
        if i < 11:  # batch norm and ReLU after all but the last
            keys = ("running_mean", "running_var", "weight", "bias")
            mean, var, gain, shift = (P[f"{normalisations[i]}.{key}"][:, None, None] for key in keys)
            y = ((y - mean) / (var + 1e-5).sqrt() * gain + shift).clamp(min=0)
        if i in (1, 3, 5, 7):
            y = F.max_pool2d(y, 4 if i == 1 else 2)
    wanted = (1 / (1 + torch.exp(-y[..., 0]))).permute(0, 2, 1)  # (2, 2 segments, 3)
    with torch.no_grad():
        assert torch.allclose(network.segments(x), wanted, atol=1e-5) and wanted.std() > 0.05
        assert torch.allclose(network(x), wanted.mean(1), atol=1e-5)
        coarse = AudioConvNet(3, bf16=True).eval()
        coarse.load_state_dict(P)
        assert coarse(x).dtype == torch.float32
        assert 1e-6 < (coarse(x) - wanted.mean(1)).abs().max() < 0.05


def test_the_visual_network():
    network = VisualDNN(527)
    kinds = [str(module).split("(")[0] for module in network]
    hidden = ["Linear", "ReLU"]
    assert kinds == 2 * [*hidden, "Dropout"] + 2 * hidden + ["Linear", "Sigmoid"]
    assert [(m.in_features, m.out_features) for m in network if isinstance(m, nn.Linear)] == [
        (2048, 2048), (2048, 2048), (2048, 1024), (1024, 1024), (1024, 527)]  # fmt: skip
    assert [m.p for m in network if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    assert count(network) == 12_080_655
    vectors = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float16)
    mean = fayek2020.mean_vector(vectors)
    assert mean.dtype == np.float32 and np.allclose(mean, vectors.astype(float).sum(0) / 64, atol=1e-6)


# --- fusion ----------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layers(P, name, x):
    """A network of two linear layers, (batch norm,) ReLU or sigmoid between them, sigmoid after them, by hand"""
    x = x @ P[f"{name}.0.weight"].T + P[f"{name}.0.bias"]
    if f"{name}.1.running_mean" in P:
        mean, var, gain, shift = (P[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        hidden, last = np.maximum((x - mean) / np.sqrt(var + 1e-5) * gain + shift, 0), f"{name}.4"
    else:
        hidden, last = sigmoid(x), f"{name}.2"
    return sigmoid(hidden @ P[f"{last}.weight"].T + P[f"{last}.bias"])


def test_simple_fusions_by_hand():
    h_a, h_v = torch.rand(5, 3), torch.rand(5, 3)
    assert torch.equal(fayek2020.average(h_a, h_v), 0.5 * h_a + 0.5 * h_v)
    both = np.concatenate([h_a, h_v], 1)
    for hidden in (False, True):
        network = randomised(ConcatenationFusion(3, hidden)).eval()
        P = {key: value.numpy() for key, value in network.state_dict().items()}
        wanted = layers(P, "network", both) if hidden else sigmoid(both @ P["network.0.weight"].T + P["network.0.bias"])
        assert np.allclose(network(h_a, h_v).detach(), wanted, atol=1e-6)
    assert [str(m).split("(")[0] for m in network.network] == "Linear BatchNorm1d ReLU Dropout Linear Sigmoid".split()
    assert network.network[3].p == 0.5 and network.network[0].out_features == 512


FORMS = {  # rows of Table 4
    "multi-modal": {},
    "self unimodal": {"attend": "self"},
    "cross unimodal": {"attend": "cross"},
    "without n_a and n_v": {"inner": False},
    "without n_av": {"outer": False},
}


@pytest.mark.parametrize("form", FORMS)
def test_attention_by_hand(form):
    network = randomised(AttentionFusion(3, **FORMS[form])).eval()
    P = {key: value.numpy() for key, value in network.state_dict().items()}
    tensors = 2 * torch.randn(2, 6, 3)
    h_a, h_v = tensors.numpy()
    if "unimodal" in form:
        of_a, of_v = (h_a, h_v) if form.startswith("self") else (h_v, h_a)
        a, v = layers(P, "n_attn_a", of_a), layers(P, "n_attn_v", of_v)
        alpha_a = a / (a + v)
    else:
        alpha_a = layers(P, "n_attn", np.concatenate([h_a, h_v], 1))  # Eq. 3
    transformed_a, transformed_v = h_a, h_v
    if form != "without n_a and n_v":
        transformed_a, transformed_v = layers(P, "n_a", h_a), layers(P, "n_v", h_v)  # Eq. 4
    h_av = alpha_a * transformed_a + (1 - alpha_a) * transformed_v  # Eq. 5
    wanted = h_av if form == "without n_av" else layers(P, "n_av", h_av)  # Eq. 6
    with torch.no_grad():
        got_a, got_v = network.attention_weights(*tensors)
        output = network(*tensors)
    assert np.allclose(got_a, alpha_a, atol=1e-5) and torch.allclose(got_a + got_v, torch.ones(6, 3))
    assert np.allclose(output, wanted, atol=1e-5) and 0 <= output.min() and output.max() <= 1
    assert 0 < got_a.min() and got_a.max() < 1 and got_a.std(0).min() > 0 and got_a.std(1).min() > 0
    assert np.ptp(wanted) > 0.02  # else there would be nothing to see


def test_parameters_of_attention():
    with torch.device("meta"):
        assert count(AttentionFusion(527)) == 2_433_596
        networks = {name: network for name, (*_, network) in (fayek2020.TABLE_2 | fayek2020.TABLE_4).items() if network}
        counts = {name: count(network(527)) for name, network in networks.items()}
    n_attn, n = 1054 * 512 + 512 + 2 * 512 + 512 * 527 + 527, 2 * 527 * 512 + 512 + 527
    unimodal = 2 * (n_attn - 527 * 512) + 3 * n
    assert counts == {
        "regression": 1055 * 527,
        "MLP": n_attn,
        "attention": n_attn + 3 * n,
        "attention, self unimodal": unimodal,
        "attention, cross unimodal": unimodal,
        "attention, without n_a and n_v": n_attn + n,
        "attention, without n_av": n_attn + 2 * n,
    }
