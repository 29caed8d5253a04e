"""Late fusion (Fayek & Kumar 2020): networks, fusion, training, what is kept, the command; in the paper's order"""

import json
import math
import statistics
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from extras import fayek2020, plumbing, tagging, test_bad_input
from extras.fayek2020 import AttentionFusion, AudioConvNet, Schedule, VisualDNN
from extras.plumbing import InputError
from extras.tagging import Part
from test_avsed import same, tiny_rows, write_tiny, write_wav

CPU = torch.device("cpu")


def count(network):
    return sum(p.numel() for p in network.parameters())


def randomised(network):
    """The network as it might be after training: no parameter, no statistic is 0 or 1"""
    torch.manual_seed(0)
    for name, value in network.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.add_(0.2 * torch.randn_like(value))
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
        assert 1e-4 < (coarse(x) - wanted.mean(1)).abs().max() < 0.05


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
    built = {name: fayek2020.TABLE_2[name][2](3) for name in ("regression", "MLP")}
    h_a, h_v = torch.rand(5, 3), torch.rand(5, 3)
    assert torch.equal(fayek2020.average(h_a, h_v), 0.5 * h_a + 0.5 * h_v)
    both = np.concatenate([h_a, h_v], 1)
    for hidden, network in enumerate(map(randomised, built.values())):
        network.eval()
        P = {key: value.numpy() for key, value in network.state_dict().items()}
        wanted = layers(P, "network", both) if hidden else sigmoid(both @ P["network.0.weight"].T + P["network.0.bias"])
        assert np.allclose(network(h_a, h_v).detach(), wanted, atol=1e-6)
    assert [str(m).split("(")[0] for m in network.network] == "Linear BatchNorm1d ReLU Dropout Linear Sigmoid".split()
    assert network.network[3].p == 0.5 and network.network[0].out_features == 512  # n_attn is the same: layers()
    assert AttentionFusion(3).n_attn[3].p == AttentionFusion(3, "self").n_attn_v[3].p == 0.5


FORMS = {name: build for name, (*_, build) in (fayek2020.TABLE_2 | fayek2020.TABLE_4).items() if "attention" in name}


@pytest.mark.parametrize("form", FORMS)
def test_each_row_of_table_4_is_what_it_says(form):
    network = randomised(FORMS[form](3)).eval()
    P = {key: value.numpy() for key, value in network.state_dict().items()}
    tensors = 2 * torch.randn(2, 6, 3)
    h_a, h_v = tensors.numpy()
    if "unimodal" in form:
        of_a, of_v = (h_a, h_v) if "self" in form else (h_v, h_a)
        a, v = layers(P, "n_attn_a", of_a), layers(P, "n_attn_v", of_v)
        alpha_a = a / (a + v)
    else:
        alpha_a = layers(P, "n_attn", np.concatenate([h_a, h_v], 1))  # Eq. 3
    transformed_a, transformed_v = h_a, h_v
    if "without n_a and n_v" not in form:
        transformed_a, transformed_v = layers(P, "n_a", h_a), layers(P, "n_v", h_v)  # Eq. 4
    h_av = alpha_a * transformed_a + (1 - alpha_a) * transformed_v  # Eq. 5
    wanted = h_av if "without n_av" in form else layers(P, "n_av", h_av)  # Eq. 6
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


# --- what goes in, and training --------------------------------------------------------------------------------------


def some_parts(sizes=(12, 7, 5), seed=0):
    """Parts as load_tagging gives them: short log-mel, three classes, a clip in three without video"""
    rng, parts = np.random.default_rng(seed), {}
    for name, n in zip(("training", "validation", "public"), sizes):
        tags, present = rng.random((n, 3)) < 0.5, np.arange(n) % 3 != 1
        tags[0], tags[2] = True, False
        audio, video = 3 + 2 * rng.standard_normal((n, 96, 64)), 5 + rng.standard_normal((n, 8))
        audio[..., :3], video[:, :3] = audio[..., :3] + 9 * tags[:, None], video[:, :3] + 9 * tags
        video[~present] = np.nan
        names = [f"{name}{i}.wav" for i in range(n)]
        parts[name] = Part(n, names, tags, [], audio.astype(np.float32), video.astype(np.float32), present)
    return parts


def every(parts):
    return {name: part.clips() for name, part in parts.items()}


def test_networks_see_standardised_sound_and_pictures(root, tmp_path):
    _, parts = tagging.load_tagging(root, fayek2020.log_mel_16_ms, "resnet152", fayek2020.mean_vector, tmp_path / "c")
    heard, seen = (fayek2020.network_inputs(modality, parts, CPU) for modality in ("audio", "video"))
    (x,), (y,), there = heard("training", [5, 0]), seen("training", [5, 0]), parts["training"].present
    mel = parts["training"].audio.reshape(-1, 64).astype(float)
    assert x.shape == (2, 1024, 64)
    assert np.allclose(x[1], (parts["training"].audio[0] - mel.mean(0)) / mel.std(0), atol=1e-3)
    vectors = parts["training"].video[there].astype(float)  # of clips with video
    assert np.allclose(y[0], (parts["training"].video[5] - vectors.mean(0)) / vectors.std(0), atol=1e-3)
    assert (y[1] == 0).all()  # no video: the mean
    stored = np.load(root / "visual/resnet152" / f"{parts['training'].filenames[5][:-4]}.npy")
    assert np.allclose(parts["training"].video[5], stored.astype(float).mean(0), atol=1e-3)


def test_fusion_sees_what_the_training_clips_with_video_standardise():
    parts, rng = some_parts(), np.random.default_rng(1)
    audio, visual = ({name: rng.random(part.tags.shape, np.float32) for name, part in parts.items()} for _ in "ab")
    for part in parts:
        audio[part][:, 2] = 0.25  # a class that the network knows nothing of
    before = {name: array.copy() for name, array in audio.items()}
    both = fayek2020.fusion_inputs(parts, audio, visual, CPU)
    present = parts["training"].present
    for name, clips in (("training", [1, 0]), ("public", [4, 2])):
        for got, h in zip(both(name, clips), (audio, visual)):
            training = h["training"][present].astype(float)
            wanted = (h[name][clips] - training.mean(0)) / np.maximum(training.std(0), 1e-6)
            assert np.allclose(got, wanted, atol=1e-4) and got.dtype == torch.float32 and not got.requires_grad
    assert (both("public", [0])[0][:, 2] == 0).all()
    assert all(np.array_equal(before[part], audio[part]) for part in parts)  # as average fusion wants them


def test_more_rates_than_one_are_tried_on_validation_and_the_optimizer_is_adam(monkeypatch):
    for schedule in (fayek2020.VISUAL, fayek2020.FUSION):  # Sec. 4.2; the audio network's is another paper's
        assert len(set(schedule.rates)) == len(schedule.rates) >= 3
    parts, made = some_parts(), []
    build, inputs = linear(parts)

    def adam(parameters, **settings):
        made.append(settings)
        return torch.optim.SGD(parameters, settings["lr"])

    monkeypatch.setattr(torch.optim, "Adam", adam)
    fayek2020.train("x", build, inputs, parts, every(parts), Schedule(1, 6, (0.2, 0.1), l2=0.5), seed=0)
    assert made == [{"lr": 0.2, "weight_decay": 0.5}, {"lr": 0.1, "weight_decay": 0.5}]


def linear(parts):
    """-> build, inputs of a small problem that can be learned: from the first dimensions to the classes"""

    def inputs(part, clips):
        return [torch.from_numpy(np.nan_to_num(parts[part].video[clips]))]

    return lambda: nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3), nn.Sigmoid()), inputs


def test_the_loss_is_of_whole_clips_and_the_mean_over_classes():
    network = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    x, tags = torch.randn(5, 4), np.random.default_rng(0).random((5, 3)) < 0.5
    p, before = network(x).detach().numpy().astype(float), network[0].weight.detach().clone()
    loss = fayek2020.step(network, torch.optim.SGD(network.parameters(), 0.1), [x], tags)
    assert same(loss, -np.where(tags, np.log(p), np.log(1 - p)).mean(), 1e-6)
    gradient = torch.from_numpy((p - tags).T @ x.numpy() / 15)  # of this loss, by hand
    assert torch.allclose(before - network[0].weight.detach(), 0.1 * gradient.float(), atol=1e-6)
    assert math.isnan(fayek2020.step(network, None, [x * math.nan], tags))


def test_prediction_is_without_dropout_and_clip_by_clip():
    _, inputs = linear(parts := some_parts())
    network = randomised(nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Sigmoid())).train()
    got = fayek2020.predict(network, inputs, "validation", [5, 0, 3], size=2)
    P = {name: value.numpy() for name, value in network.state_dict().items()}
    x = parts["validation"].video[[5, 0, 3]] @ P["0.weight"].T + P["0.bias"]
    x = (x - P["1.running_mean"]) / np.sqrt(P["1.running_var"] + 1e-5) * P["1.weight"] + P["1.bias"]
    assert np.allclose(got, sigmoid(x), atol=1e-5)


def test_first_weights_and_order_of_the_clips_come_from_the_seed(monkeypatch):
    parts, weights, orders = some_parts(), [], []
    build, inputs = linear(parts)

    def noted(network, optimizer, x, tags):
        weights.append(network[0].weight.detach().clone())
        orders.append(x[0].tolist())
        return 0.0

    monkeypatch.setattr(fayek2020, "step", noted)  # one batch
    for seed in (1, 1, 2):
        fayek2020.train("x", build, inputs, parts, every(parts), Schedule(2, 12, (0.1,)), seed)
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[4])
    assert orders[:2] == orders[2:4] and orders[0] != orders[1] and orders[0] != orders[4]


def test_rate_and_epoch_with_the_best_validation_map_are_kept(monkeypatch):
    parts, seen, weights = some_parts(), [], []
    build, inputs = linear(parts)
    scores = iter([0.3, 0.6, 0.5, 0.2, 0.6, 0.4])  # of equals the first
    clips = {"training": np.arange(12), "validation": np.array([0, 3, 5])}

    def mean_average_precision(tags, outputs):
        assert np.array_equal(tags, parts["validation"].tags[[0, 3, 5]]) and outputs.shape == (3, 3)
        weights.append(outputs)
        return next(scores)

    def step(network, optimizer, x, tags):
        (group,) = optimizer.param_groups
        seen.append((group["lr"], group["weight_decay"], len(tags)))
        assert network.training
        return taken(network, optimizer, x, tags)

    taken = fayek2020.step
    monkeypatch.setattr(tagging, "mean_average_precision", mean_average_precision)
    monkeypatch.setattr(fayek2020, "step", step)
    network, best = fayek2020.train("x", build, inputs, parts, clips, Schedule(3, 5, (0.1, 0.01), l2=1e-5), seed=3)
    assert best == {"mAP": 0.6, "rate": 0.1, "epoch": 2}
    kept = fayek2020.predict(network, inputs, "validation", clips["validation"])
    assert np.array_equal(kept, weights[1]) and not np.array_equal(kept, weights[4])
    assert seen == 9 * [(0.1, 1e-5, 4)] + 9 * [(0.01, 1e-5, 4)]  # 12 clips in batches of up to 5

    scores, seen[:] = iter([0.1, 0.2]), []
    fayek2020.train("x", build, inputs, parts, clips, Schedule(2, 6, (0.1,), decay=True), seed=3)
    assert np.allclose([rate for rate, *_ in seen], 0.1 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2)

def test_a_rate_at_which_the_loss_is_not_finite_is_given_up(monkeypatch, capsys):
    parts, losses = some_parts(), iter([1, 1, 1, math.nan, 1, 1, 1, 1])
    build, inputs = linear(parts)
    monkeypatch.setattr(fayek2020, "step", lambda *_: next(losses))  # two batches in an epoch
    _, best = fayek2020.train("x", build, inputs, parts, every(parts), Schedule(2, 6, (0.5, 0.25)), seed=3)
    assert best["epoch"] == 1 and next(losses, None) is None  # what was reached before counts
    assert "x: the loss is not finite in epoch 2 at rate 0.5, which is given up" in capsys.readouterr().out
    losses = iter([math.nan, 1, 1, math.nan])
    with pytest.raises(FloatingPointError, match="x: the loss is finite at none of the rates"):
        fayek2020.train("x", build, inputs, parts, every(parts), Schedule(2, 6, (0.5, 0.25)), seed=3)


def test_training_learns_and_an_epoch_sees_every_clip_once(monkeypatch):
    parts, picked = some_parts((60, 30, 5)), []
    build, inputs = linear(parts)
    clips = {name: np.flatnonzero(part.present) for name, part in parts.items()}

    def noted(part, which):
        picked.extend(which if part == "training" else [])
        return inputs(part, which)

    _, best = fayek2020.train("x", build, noted, parts, clips, Schedule(20, 8, (0.1,)), seed=0)
    assert best["mAP"] > 0.95
    epochs = np.array(picked).reshape(20, -1)
    assert (np.sort(epochs) == clips["training"]).all() and len(np.unique(epochs, axis=0)) == 20


@pytest.mark.parametrize("at", (1, 5, 6, 8, 11))
def test_interrupted_training_goes_on_as_if_nothing_had_happened(at, tmp_path, monkeypatch):
    parts = some_parts()
    build, inputs = linear(parts)
    task = ("audio", build, inputs, parts, every(parts), Schedule(2, 4, (0.3, 0.1), decay=True), 0)
    wanted, best = fayek2020.train(*task)
    taken, steps = fayek2020.step, []

    def step(*arguments):
        steps.append(0)
        if len(steps) == at:
            raise KeyboardInterrupt
        return taken(*arguments)

    monkeypatch.setattr(fayek2020, "step", step)
    with pytest.raises(KeyboardInterrupt):
        fayek2020.train(*task, tmp_path / "c")
    network, again = fayek2020.train(*task, tmp_path / "c")
    assert len(steps) == at + 12 - (at - 1) // 3 * 3 and again == best  # three steps an epoch
    assert all(torch.equal(a, b) for a, b in zip(wanted.state_dict().values(), network.state_dict().values()))
    fayek2020.train(*task, tmp_path / "c")  # killed after the last epoch: only the best weights are wanted
    assert len(steps) == at + 12 - (at - 1) // 3 * 3


# --- what is kept, scores, the command -------------------------------------------------------------------------------


class SmallAudio(nn.Module):
    """In place of the ConvNet, which takes seconds"""

    def __init__(self, n_classes, bf16):
        super().__init__()
        self.linear = nn.Linear(64, n_classes)

    def forward(self, log_mel):
        return self.linear(log_mel.mean(1)).sigmoid()


def small_visual(n_classes, width):
    return nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.3), nn.Linear(8, n_classes), nn.Sigmoid())


@pytest.fixture
def quick(monkeypatch):
    """Few epochs and small networks; what is built is noted"""
    built = []

    def noted(kind, name):
        def build(*arguments, **options):
            built.append(name)
            return kind(*arguments, **options)

        return build

    monkeypatch.setattr(fayek2020, "AudioConvNet", noted(SmallAudio, "audio"))
    monkeypatch.setattr(fayek2020, "VisualDNN", noted(small_visual, "visual"))
    monkeypatch.setattr(fayek2020, "VISUAL", Schedule(1, 144, (1e-3,)))
    monkeypatch.setattr(fayek2020, "FUSION", Schedule(2, 256, (1e-2, 1e-3)))
    return built


@pytest.fixture
def root(tmp_path):
    """A data set of two classes; the strong clips, v1.wav and p1.wav have no video"""
    write_tiny(tmp_path / "data", streams=["resnet152"])
    (tmp_path / "data/visual/resnet152/p1.npy").unlink()
    return tmp_path / "data"


def run(*arguments):
    fayek2020.main([str(a) for a in arguments])


refused = partial(test_bad_input.refused, command=run)


def arrays(out, name):
    """What is kept of a system's outputs"""
    (folder,) = out.glob(f"{name}-{'[0-9a-f]' * 16}")
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def test_schedules_are_the_papers():
    assert (fayek2020.VISUAL.epochs, fayek2020.VISUAL.batch) == (20, 144)
    assert (fayek2020.FUSION.epochs, fayek2020.FUSION.batch, fayek2020.FUSION.l2) == (100, 256, 0)
    assert fayek2020.parse_arguments([]).fusion_epochs == 100 and fayek2020.L2 == 1e-5
    figures = [row[:2] for row in (*fayek2020.TABLE_2.values(), *fayek2020.TABLE_4.values())]
    assert figures[5] == (46.16, 97.51) and len(figures) == 10 and sum(m for m, _ in figures) == pytest.approx(413.56)


def test_one_command_gives_all_systems_and_the_analysis(root, tmp_path, capsys, monkeypatch, quick):
    out, complete_run, train = tmp_path / "out", fayek2020.complete_run, fayek2020.train
    runs, trained, pictures, outputs = [], {}, [], {}

    def noted_run(*arguments):
        runs.append(complete_run(*arguments))
        return runs[-1]

    def noted_training(name, build, inputs, parts, clips, schedule, *arguments):
        trained[name] = schedule, {part: indices.tolist() for part, indices in clips.items()}, inputs
        return train(name, build, inputs, parts, clips, schedule, *arguments)

    monkeypatch.setattr(fayek2020, "complete_run", noted_run)
    monkeypatch.setattr(fayek2020, "train", noted_training)
    monkeypatch.setattr(fayek2020.plots, "figure_class", lambda: None)  # matplotlib may be absent
    monkeypatch.setattr(fayek2020.plots, "plot_fusion", lambda *arguments: pictures.append(arguments))
    flags = "--runs 2 --audio-epochs 2 --fusion-epochs 2 --ablations --analysis --device cpu".split()
    run("--data", root, "--out", out, *flags)
    text = capsys.readouterr().out
    assert "left out: the sequential co-supervision" in text and "TOY" not in text
    systems = [*fayek2020.TABLE_2, *fayek2020.TABLE_4]
    results = [json.loads((out / f"results-{seed}.json").read_text()) for seed in (0, 1)]
    assert [list(result) for result in results] == [systems, systems]
    assert not list(out.glob("*.checkpoint")) and len(list(out.glob("*/public.npy"))) == 2 * (len(systems) - 1)
    assert list(out.glob("attention-without_n_a_and_n_v-1-*"))
    for name in ("audio", "visual", "regression", "attention"):
        outputs[name] = arrays(out, f"{name}-0")
    names = outputs["audio"]["public_clips"].tolist()
    assert names == ["-x.wav", "p1.wav", "WP8aI1IXNCQ_0_5.wav"]
    tags = np.array([[False, True], [True, False], [False, True]])  # Cat, Dog
    validated = np.array([[False, True], [False, False], [True, False], [False, False]])
    for name, stored in outputs.items():
        assert stored["training"].shape == (8, 2) and stored["validation"].shape == (4, 2)
        if name != "visual":  # without video the output of the sound alone
            assert np.array_equal(stored["public"][1], outputs["audio"]["public"][1])
            assert np.array_equal(stored["validation"][1], outputs["audio"]["validation"][1])
            assert (stored["public"][0] != outputs["audio"]["public"][0]).any() or name == "audio"
        assert results[0][name] == tagging.score({"validation": validated, "public": tags}, stored)
    mean = (outputs["audio"]["public"] + outputs["visual"]["public"]) / 2  # of the outputs as they are
    mean[1] = outputs["audio"]["public"][1]
    assert np.array_equal(runs[0]["average"]["public"], mean)
    assert results[0]["average"]["mAP"] == tagging.mean_average_precision(tags, mean)

    # the audio network learns from all clips, what sees or fuses from those with video: not the strong ones and p1
    for name, (schedule, clips, _) in trained.items():
        assert schedule.l2 == (1e-5 if name == "regression" else 0), name
        assert schedule.epochs == {"audio": 2, "visual": 1}.get(name, 2)
        assert clips["training"] == ([*range(8)] if name == "audio" else [4, 5, 6, 7]), name
        assert clips["validation"] == ([*range(4)] if name == "audio" else [0, 2, 3]), name
    # what fusion sees is what the two networks of this run said, sound first
    h_a, h_v = trained["MLP"][2]("public", [0, 2])  # of seed 1
    for got, name in ((h_a, "audio"), (h_v, "visual")):
        stored = arrays(out, f"{name}-1")
        training = stored["training"][4:].astype(float)
        assert np.allclose(got, (stored["public"][[0, 2]] - training.mean(0)) / training.std(0), atol=1e-3)

    table = (out / "table.txt").read_text()
    assert table in text and "cannot be compared with the paper's" in table and "46.16" not in table
    for column, score in enumerate(("mAP", "mAUC", "F1")):
        values = [100 * result["MLP"][score] for result in results]
        (row,) = [line for line in table.splitlines() if line.startswith("MLP")]
        wanted = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        assert row[40 + 16 * column :][:16].strip() == wanted

    lines = [line.split("\t") for line in (out / "analysis.tsv").read_text().splitlines()]
    assert [line[:2] for line in lines] == [["class", "clips"], ["Cat", "1"], ["Dog", "2"]]
    weights = np.mean([arrays(out, f"attention-{seed}")["audio_weight"][[0, 2], 1].mean() for seed in (0, 1)])
    assert lines[1][6] == "nan" and float(lines[2][6]) == pytest.approx(weights, abs=1e-4)  # the one cat has no video
    precision = np.mean([tagging.mean_average_precision(tags[:, 1:], arrays(out, f"audio-{seed}")["public"][:, 1:])
                         for seed in (0, 1)])  # fmt: skip
    assert float(lines[2][2]) == pytest.approx(precision, abs=1e-4)
    assert float(lines[2][5]) == pytest.approx(float(lines[2][4]) - max(map(float, lines[2][2:4])), abs=2e-4)
    (picture,) = pictures
    assert picture[0] == ["Cat", "Dog"] and picture[-1] == out / "analysis.png"
    assert np.allclose(np.transpose(picture[1:-1])[1], [float(lines[2][k]) for k in (2, 3, 4, 6)], atol=1e-4)


def test_the_weight_that_is_kept_is_that_of_sound(tmp_path, monkeypatch):
    parts, name, trained = some_parts(), "attention, self unimodal", []

    def train(system, build, *_):
        trained.append(system)
        network = build().eval()
        network.requires_grad_(False)
        for weigh, bias in ((network.n_attn_a, 2.0), (network.n_attn_v, -1.0)):  # sound matters, vision does not
            weigh[4].weight.zero_(), weigh[4].bias.fill_(bias)
        network.n_a[2].bias.fill_(3.0), network.n_v[2].bias.fill_(-3.0)  # sound says yes, vision no
        return network, {"rate": 1.0, "epoch": 1, "mAP": 0.5}

    monkeypatch.setattr(fayek2020, "train", train)
    audio = {which: np.full(part.tags.shape, 0.5, np.float32) for which, part in parts.items()}
    both = fayek2020.fusion_inputs(parts, audio, audio, CPU)
    build = partial(fayek2020.TABLE_4[name][2], 3)
    kept = fayek2020.outputs_of(name, build, both, parts, None, None, 0, tmp_path, {}, audio)
    a, v = sigmoid(2), sigmoid(-1)
    assert np.allclose(kept["audio_weight"], a / (a + v), atol=1e-6)
    for schedule, config in ((0, {}), (1, {}), (1, {"visual": "tce"}), (1, {"visual": "tce"})):  # one is there already
        fayek2020.outputs_of(name, build, both, parts, None, schedule, 0, tmp_path, config, audio)
    assert len(trained) == 4


def test_an_interrupted_command_goes_on(root, tmp_path, capsys, monkeypatch, quick):
    flags = ["--data", root, "--audio-epochs", 2, "--seed", 4, "--fusion-epochs", 2, "--out"]
    run(*flags, tmp_path / "whole")
    quick[:] = []

    def killed(path, *content, write, stop):
        result = write(path, *content)
        if path.name.startswith(stop):
            raise KeyboardInterrupt
        return result

    for stop in ("audio-4.checkpoint", "audio-4-", "visual-4-", "MLP-4-", "results-4.json"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match="the same command goes on"):
            for place, name in ((plumbing, "cached"), (plumbing, "write_text"), (plumbing, "save_tensors")):
                patch.setattr(place, name, partial(killed, write=getattr(place, name), stop=stop))
            run(*flags, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.checkpoint"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*.npy")}
    run(*flags, tmp_path / "out")
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*.npy")}
    # once to begin, once to go on and once for the best weights; then what is there is never built or touched again
    assert quick == ["audio", "audio", "audio", "visual", "visual"]
    for path in (tmp_path / "whole").glob("*/*.npy"):
        assert np.array_equal(np.load(path), np.load(tmp_path / "out" / path.relative_to(tmp_path / "whole")))
    assert (tmp_path / "whole/table.txt").read_text() == (tmp_path / "out/table.txt").read_text()
    # other epochs of fusion: only fusion is trained again
    run(*flags[:-3], "--fusion-epochs", 1, "--out", tmp_path / "out")
    assert len(quick) == 5
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*.npy")}
    assert {path.parent.name.split("-")[0] for path in kept.keys() & now.keys()} == {"audio", "visual"}
    assert len(kept) == len(now)
    capsys.readouterr()


def test_folders_of_others_and_damaged_files_get_one_line(root, tmp_path, capsys, quick):
    out = tmp_path / "out"
    flags = ["--data", root, "--audio-epochs", 1, "--fusion-epochs", 1, "--precision", "fp32", "--out", out]
    run(*flags)
    for more, message in (
        (["--audio-epochs", 3], "run.json: is of a run with audio schedule {'epochs': 1,"),
        (["--audio-rates", 0.1], "run.json: is of a run with audio schedule {"),
        (["--precision", "bf16"], "is of a run with precision fp32, not bf16; give the same flags, or name another"),
    ):
        assert message in refused(capsys, *flags, *more)
    (path,) = out.glob("visual-0-*/validation.npy")
    good = path.read_bytes()
    for content in (np.zeros((4, 1), np.float32), np.zeros((4, 2))):
        np.save(path, content)
        error = refused(capsys, *flags)
        assert f"{path.parent}: the cache is damaged (other shapes or types); delete this folder" in error
    path.write_bytes(good[:50])
    assert "damaged" in refused(capsys, *flags)
    path.write_bytes(good)
    for path in out.glob("audio-0-*/*"):
        path.unlink()
    path.parent.rmdir()
    for content in (b"no", (1, 2), {"rate": 1, "best": {}}):
        path = out / "audio-0.checkpoint"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        assert "audio-0.checkpoint: is not a checkpoint of this program; delete it" in refused(capsys, *flags)
    rows = tiny_rows()
    rows["public"][1] = "p1.wav\t0.300\t1.000\tDog"
    write_tiny(root, rows, ["resnet152"])
    assert "run.json: is of a run with clips " in refused(capsys, *flags)
    for content in ("[]", "{}", "no", "[" * 100_000, '{"data": 1e400}'):
        (out / "run.json").write_text(content)
        assert "run.json: was not written by this program" in refused(capsys, *flags)


def test_checkpoints_must_have_the_form_of_those_that_are_written(tmp_path):
    network, path, schedule = torch.nn.Linear(2, 3), tmp_path / "x.checkpoint", Schedule(9, 1, (0.1, 0.2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    best = {"mAP": 0.5, "rate": 0.1, "epoch": 2, "weights": network.state_dict()}
    fayek2020.keep(path, 0.1, 3, network, optimizer, best)
    good, found = torch.load(path, weights_only=True), {}
    assert fayek2020.restore(path, schedule, 0.1, network, optimizer, found) == 3 and found["epoch"] == 2
    assert fayek2020.restore(path, schedule, 0.2, network, optimizer, {}) == 0
    state = good["optimizer"]["state"]
    odd = {"epoch": "3"}, {"rate": float("inf")}, {"best": {**best, "mAP": "0.5"}}, {"best": {"mAP": -1.0}}
    odd += {"network": {**good["network"], "bias": torch.full((3,), np.nan)}}, {"optimizer": {}}, {"more": 1}
    odd += ({"optimizer": {**good["optimizer"], "state": {**state, 0: {**state[0], "exp_avg": torch.ones(2)}}}},)
    for part in odd:
        torch.save({**good, **part}, path)
        with pytest.raises(InputError, match="x.checkpoint: is not a checkpoint of this program"):
            fayek2020.restore(path, schedule, 0.1, network, optimizer, {})


def test_bad_input_gets_one_line(root, tmp_path, capsys, quick):
    out = tmp_path / "out"
    assert "none: no such folder" in refused(capsys, "--data", tmp_path / "none", "--out", out)
    assert "openl3: no such folder" in refused(capsys, "--data", root, "--out", out, "--visual", "openl3")
    assert "--device foo: not available" in refused(capsys, "--data", root, "--out", out, "--device", "foo")
    for name in ("w2", "w3", "Ybbb_bb-bbb__0.000_4.000"):
        (root / f"visual/resnet152/{name}.npy").unlink()
    assert "resnet152: only one training clip" in refused(capsys, "--data", root, "--out", out)
    assert not out.exists()
    bad = "--runs 0|--audio-epochs 0|--fusion-epochs 0|--audio-rates 0|--audio-rates nan|--seed -1|--visual a/b|--data="
    for flags in bad.split("|"):
        with pytest.raises(SystemExit) as stop:
            run(*flags.split())
        assert stop.value.code == 2


def test_toy_data_are_the_default(tmp_path, monkeypatch, capsys, quick):
    def make_toy(folder, kind):
        assert kind == "tagging"
        write_tiny(tmp_path / folder, streams=["openl3"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tagging.toy, "make_toy", make_toy)
    run()
    text = capsys.readouterr().out
    assert "TOY DATA: these scores are not comparable with the paper" in text and "epoch 3/3 at rate 0.001" in text
    config = json.loads((tmp_path / "runs/fayek2020-toy-tagging/run.json").read_text())
    assert config["visual"] == "openl3" and config["audio schedule"]["batch"] == 4


def test_the_papers_figures_stand_below_those_on_its_data_alone(root, tmp_path, monkeypatch, quick, capsys):
    scores = {"mAP": 0.5, "mAUC": 0.75, "F1": 0.625, "threshold": 0.3}
    text = fayek2020.table_text([{"audio": scores, "attention, without n_av": scores}], as_paper=True)
    rows = [line.split() for line in text.splitlines()]
    assert rows[1] == ["audio", "50.00", "75.00", "62.50"] and rows[2] == ["the", "paper:", "38.35", "97.12"]
    assert rows[4] == ["the", "paper:", "40.84", "95.15"] and "cannot be compared" not in text
    # the command: by the classes' names, not by their number, and by the stream
    flags = ["--audio-epochs", 1, "--fusion-epochs", 1, "--data", root, "--out", tmp_path / "out"]
    for known, stream, wanted in ((["Cat", "Dog"], "resnet152", True), (["Cat", "Cow"], "resnet152", False),
                                  (["Cat", "Dog"], "openl3", False)):  # fmt: skip
        monkeypatch.setattr(fayek2020, "AUDIOSET", ("", plumbing.fingerprint((), known)))
        if stream == "openl3":
            (root / "visual/resnet152").rename(root / "visual/openl3")
            flags[-1] = tmp_path / "other"
        run(*flags, "--visual", stream)
        out = capsys.readouterr().out
        assert ("the paper: " in out) == wanted != ("cannot be compared" in out)


def test_analysis_counts_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(fayek2020.plots, "plot_fusion", lambda *arguments: None)
    part = Part(4, list("abcd"), np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], bool), [])
    part.present = np.array([True, False, True, True])
    right = np.array([[0.9, 0.1, 0]] * 2 + [[0.1, 0.9, 0]] * 2)
    wrong = right[::-1]  # both clips of a class come last, together: an average precision of 2 / 4
    mixed = np.concatenate([right[:, :1], wrong[:, 1:]], 1)
    attention = {"public": right, "audio_weight": np.array([[0.05, 1, 1], [1, 1, 1], [0, 0.6, 1], [0, 0.8, 1]])}
    runs = [{"audio": {"public": wrong}, "visual": {"public": mixed}, "attention": attention}]
    text = fayek2020.analyse(["A", "B", "C"], part, runs, tmp_path, as_paper=False)
    # A: vision is right, so there is no gain; weight 0.05. B: only attention is right, weight 0.7. C has no clip
    assert [int(line.split()[-1]) for line in text.splitlines()] == [2, 1, 1, 1, 0, 0, 1, 0, 1, 0]
    text = fayek2020.analyse(["A", "B", "C"], part, runs, tmp_path, as_paper=True)
    paper = [line.split("the paper: ")[1] for line in text.splitlines()]  # Sec. 5.1, 5.2
    assert paper == "527|117|439|91|15|3|most|over 110|over 70|around 38".split("|")
    lines = (tmp_path / "analysis.tsv").read_text().splitlines()
    assert lines[1].split() == ["A", "2", "0.5000", "1.0000", "1.0000", "0.0000", "0.0500"]
    assert lines[2].split() == ["B", "2", "0.5000", "0.5000", "1.0000", "0.5000", "0.7000"]
    assert lines[3].split() == ["C", "0", *5 * ["nan"]]


def test_limits_of_the_analysis(tmp_path, monkeypatch):
    monkeypatch.setattr(fayek2020.plots, "plot_fusion", lambda *arguments: None)
    gains = [0.11, 0.09, 0.04, -0.04, -0.06, -0.09, -0.11, -0.2]  # points / 100, by class; vision is ahead in three
    weights = [0.995, 0.985, 0.51, 0.49, 0.11, 0.1, 0.011, 0.009]

    def precision(tags, scores):  # each system's "outputs" are its precisions
        return scores[0, 0]

    monkeypatch.setattr(tagging, "mean_average_precision", precision)
    single = np.full((1, 8), 0.5)
    visual = single + np.array([0, 0.1, 0.1, 0.1, -0.1, 0, 0, 0])
    fused = np.maximum(single, visual) + gains
    part = SimpleNamespace(tags=np.ones((1, 8), bool), present=np.array([True]))
    run = {"audio": {"public": single}, "visual": {"public": visual},
           "attention": {"public": fused, "audio_weight": np.array([weights])}}  # fmt: skip
    text = fayek2020.analyse(list("abcdefgh"), part, [run], tmp_path, as_paper=False)
    counts = {line.strip()[:-4].strip(): int(line.split()[-1]) for line in text.splitlines()[:7]}
    assert list(counts.values()) == [8, 3, 3, 1, 4, 2, 3]
    assert [int(line.split()[-1]) for line in text.splitlines()[7:]] == [1, 3, 1]
