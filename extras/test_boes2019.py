"""Tests of the 2019 transformer in its paper's order: a second, plain forward pass, parts by hand, data, loop, table"""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import features
import metrics
from extras import boes2019, toy
from extras.boes2019 import AudiovisualTransformer, Block, Config, Data
from extras.tagging import Part
from extras.plumbing import InputError
from test_avsed import quiet, write_tiny

CPU = torch.device("cpu")


def inputs(n=2, first=7, second=5, steps=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, steps, first, generator=generator), torch.randn(n, 10, second, generator=generator)


def network(*arguments, seed=0, **more):
    torch.manual_seed(seed)
    return AudiovisualTransformer(4, 7, 5, *arguments, **more).eval()


# --- Sec. 2: the network ---------------------------------------------------------------------------------------------


def plain_forward(state, first, second, attention, pooling, positions):
    """The network a second time, in numpy, one clip and one head at a time, from the words of the paper"""
    w = {name: value.double().numpy() for name, value in state.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def weigh(scores):
        positive = {"softmax": np.exp}.get(attention, lambda s: 1 / (1 + np.exp(-s)))(scores)
        return positive if attention == "sigmoid" else positive / (positive.sum(-1, keepdims=True) + 1e-12)

    def attend(x, memory, name):
        q, k, v = (linear(y, f"{name}.{part}") for y, part in ((x, "query"), (memory, "key"), (memory, "value")))
        heads, maps = [], []
        for h in range(3):
            of_head = slice(128 * h, 128 * (h + 1))
            maps.append(weigh(q[:, of_head] @ k[:, of_head].T / math.sqrt(128)))
            heads.append(maps[-1] @ v[:, of_head])
        return linear(np.concatenate(heads, 1), f"{name}.output"), maps

    def feed_forward(x, name):
        return linear(np.maximum(linear(x, f"{name}.0"), 0), f"{name}.3")

    def encodings():
        return [[(math.sin, math.cos)[j % 2](t / 10000 ** (j // 2 * 2 / 128)) for j in range(128)] for t in range(10)]

    pooled, cross_maps = [], []
    for clip in range(len(first)):
        memory, x = first[clip].double().numpy(), second[clip].double().numpy()
        memory = linear(memory, "first_input.0") + np.array(encodings()) * positions[0]
        x = linear(x, "second_input.0") + np.array(encodings()) * positions[1]
        for b in range(3):
            block = f"encoder.{b}"
            memory = norm(memory + attend(memory, memory, f"{block}.attention")[0], f"{block}.attention_norm")
            memory = norm(memory + feed_forward(memory, f"{block}.feed_forward"), f"{block}.feed_forward_norm")
        for b in range(3):
            block = f"decoder.{b}"
            x = norm(x + attend(x, x, f"{block}.attention")[0], f"{block}.attention_norm")
            crossed, maps = attend(x, memory, f"{block}.cross")
            x = norm(x + crossed, f"{block}.cross_norm")
            x = norm(x + feed_forward(x, f"{block}.feed_forward"), f"{block}.feed_forward_norm")
            cross_maps.append(maps)
        probabilities = 1 / (1 + np.exp(-linear(x, "classifier")))
        pooled.append(probabilities.mean(0) if pooling == "mean" else probabilities.max(0))
    return np.array(pooled), np.array(cross_maps).reshape(len(first), 3, 3, 10, 10)


@pytest.mark.parametrize("attention", ["softmax", "sigmoid", "normalized"])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_network_a_second_time(attention, pooling):
    first, second = inputs()
    for positions in ((True, True), (False, True), (False, False)):
        net = network(attention, pooling, positions)
        for name, parameter in net.named_parameters():  # the norms begin as ones and zeros
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
        with torch.no_grad():
            want, want_maps = plain_forward(net.state_dict(), first, second, attention, pooling, positions)
            got, steps, maps = net(first, second, with_attention=True)
            assert torch.equal(net(first, second), got) and steps.shape == (2, 10, 4)
        # the maps are those of all decoder blocks, in their order (Sec. 4.2)
        assert np.abs(got.numpy() - want).max() < 1e-5 and np.abs(maps.numpy() - want_maps).max() < 1e-5


def test_sizes():
    assert sum(p.numel() for p in AudiovisualTransformer(17, 128, 4096).parameters()) == 2526097
    sizes = {"audio": 128, "video": 4096}
    for first, second in itertools.product(sizes, repeat=2):  # all four pairings (Table 1)
        net = AudiovisualTransformer(17, sizes[first], sizes[second], positions=(True, False)).eval()
        out = net(torch.randn(2, 10, sizes[first]), torch.randn(2, 10, sizes[second]))
        assert out.shape == (2, 17) and ((out > 0) & (out < 1)).all()
        assert (out.sum(1) - 1).abs().min() > 0.1  # not a softmax (Sec. 2.2.3)
    assert len(net.encoder) == len(net.decoder) == 3  # Sec. 3.2.3
    assert not any("sinusoids" in name for name in net.state_dict())  # nothing learns positions (Sec. 2.1.2)
    # dropout of 0.1 behind two input maps, in nine attention modules, behind two layers of six feedforward parts
    dropouts = [module.p for module in net.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.1] * (2 + 2 * 6 + 9)
    layers = net.decoder[0].feed_forward
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.Dropout]
    assert {(layer.in_features, layer.out_features) for layer in layers[::3]} == {(128, 128)}


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "normalized"])
def test_attention_functions_by_hand(name):
    weigh, scores = boes2019.ATTENTION[name], [0.5, -1.0, 2.0]
    raw = [math.exp(s) if name == "softmax" else 1 / (1 + math.exp(-s)) for s in scores]
    want = raw if name == "sigmoid" else [r / sum(raw) for r in raw]
    assert np.allclose(weigh(torch.tensor(scores)), want, atol=1e-6)
    assert torch.isfinite(weigh(torch.full((2, 3), -1e4))).all()
    module = boes2019.Attention(normalise=weigh).eval()
    query, memory = torch.randn(1, 4, 128), torch.randn(1, 1, 128)
    rows = module.attention_weights(query, memory.expand(1, 10, 128)).sum(-1)
    assert (rows - 1).abs().max() < 1e-5 if name != "sigmoid" else (rows - 1).abs().min() > 0.01
    once, twice = (module(query, memory.expand(1, n, 128)) - module.output.bias for n in (1, 2))
    assert torch.allclose(twice, 2 * once if name == "sigmoid" else once, atol=1e-5)  # two equal keys


def test_norms_come_after_the_residuals():
    block = Block(boes2019.softmax, decoder=True).train()  # at the beginning norms neither scale nor shift
    out = block(10 + 5 * torch.randn(2, 10, 128), torch.randn(2, 10, 128))
    assert out.mean(-1).abs().max() < 1e-5 and (out.var(-1, unbiased=False) - 1).abs().max() < 1e-3


def test_order_counts_only_with_positions():
    first, second = inputs()
    backwards = torch.arange(9, -1, -1)
    with torch.no_grad():
        for positions in itertools.product((False, True), repeat=2):
            net = network("sigmoid", "mean", positions)
            out = net(first, second)
            changed = [not torch.allclose(out, net(first[:, backwards], second), atol=1e-6),
                       not torch.allclose(out, net(first, second[:, backwards]), atol=1e-6)]  # fmt: skip
            assert changed == list(positions)


def test_the_second_input_asks_the_first_and_sees_all_of_itself():
    net, (first, second) = network(), inputs(steps=6)
    with torch.no_grad():
        pooled, steps, maps = net(first, second, with_attention=True)
        assert steps.shape == (2, 10, 4) and maps.shape == (2, 3, 3, 10, 6)
        assert (maps.sum(-1) - 1).abs().max() < 1e-5
        assert torch.allclose(pooled, steps.mean(1))
        assert torch.allclose(network(pooling="max")(first, second), steps.amax(1))
        second[:, -1] += 1
        assert (net(first, second, with_attention=True)[1] - steps)[:, 0].abs().max() > 1e-4  # no mask


# --- Sec. 3.1, 3.2.1: the data ---------------------------------------------------------------------------------------


def test_a_still_at_the_centre_of_each_window():
    assert np.allclose(boes2019.CENTRES, [0.48, 1.44, 2.4, 3.36, 4.32, 5.28, 6.24, 7.2, 8.16, 9.12])
    times = np.arange(64) * 0.15625  # of the vectors that extras.embeddings makes
    assert boes2019.PICTURES.tolist() == [np.abs(times - centre).argmin() for centre in boes2019.CENTRES]
    vectors = np.arange(64)[:, None] * np.ones((64, 3), np.float32)
    assert boes2019.stills(vectors)[:, 0].tolist() == boes2019.PICTURES.tolist()


def test_sound_without_vggish(tmp_path):
    root = write_tiny(tmp_path)
    path = root / "audio/validation/v0.wav"
    log_mel = features.log_mel(features.load_audio(path)).numpy()
    steps = boes2019.log_mel_moments(path)
    assert steps.shape == (10, 128)
    for step in (0, 4, 9):
        inside = [log_mel[k] for k in range(512) if step * 0.96 <= k * 313 / 16000 < (step + 1) * 0.96]
        assert np.allclose(steps[step, :64], np.mean(inside, 0), atol=1e-5)
        assert np.allclose(steps[step, 64:], np.std(inside, 0), atol=1e-5)


def test_batches_hold_standardised_inputs_of_clips_with_video(tmp_path):
    data = boes2019.load_data(write_tiny(tmp_path / "set"), "log-mel", "openl3", tmp_path / "cache", quiet)
    train = data.parts["training"]  # 4 strong clips, which have no video, and 4 weak ones
    assert data.clips("training", Config()).tolist() == [4, 5, 6, 7]
    assert data.clips("training", Config(all_clips=True)).tolist() == list(range(8))
    first, second, tags = data.batch("training", Config(), np.array([5, 4]), CPU)
    seen, heard = (train.video[4:].astype(np.float64).reshape(40, -1), train.audio.astype(np.float64).reshape(80, -1))
    assert np.allclose(first[1], (train.video[4] - seen.mean(0)) / seen.std(0), atol=1e-4)
    assert np.allclose(second[0], (train.audio[5] - heard.mean(0)) / heard.std(0), atol=1e-3)
    assert np.array_equal(tags, train.tags[[5, 4]])


def test_sound_of_vggish(tmp_path, capsys):
    root = write_tiny(tmp_path / "set")
    (root / "sound/vggish").mkdir(parents=True)
    for path in (root / "audio").rglob("*.wav"):
        np.save(root / "sound/vggish" / f"{path.stem}.npy", np.full((10, 128), len(path.stem), np.float32))
    data = boes2019.load_data(root, "vggish", None, tmp_path / "cache", quiet)
    assert data.parts["public"].audio[:, 3, 5].tolist() == [len(f) - 4 for f in data.parts["public"].filenames]
    stem = data.parts["public"].filenames[0][:-4]
    for bad in (np.zeros((64, 128)), np.full((10, 128), np.nan), np.zeros((10, 128), int), b"text"):
        path = root / "sound/vggish" / f"{stem}.npy"
        path.write_bytes(bad) if isinstance(bad, bytes) else np.save(path, bad)
        with pytest.raises(InputError, match=rf"{stem}\.npy: must be an array of finite numbers, \(10, 128\); delete"):
            boes2019.load_data(root, "vggish", None, tmp_path / "cache", quiet)


# --- Sec. 3.2.2, 3.2.8, 3.2.9: training ------------------------------------------------------------------------------


@pytest.fixture
def data():
    """Twelve clips of random vectors in each part"""
    rng, parts = np.random.default_rng(0), {}
    for name in ("training", "validation", "public"):
        tags = rng.random((12, 4)) < 0.5
        tags[:4] |= np.eye(4, dtype=bool)
        audio, video = (rng.standard_normal((12, 10, d)).astype(np.float32) for d in (5, 7))
        parts[name] = Part(12, [f"{i}.wav" for i in range(12)], tags, [], audio, video, np.arange(12) != 6)
    moments = {"audio": np.stack([np.zeros(5), np.ones(5)]), "video": np.stack([np.zeros(7), np.ones(7)])}
    return Data(list("abcd"), parts, {k: v.astype(np.float32) for k, v in moments.items()})


def test_no_class_is_drawn_more_than_five_times_as_often():
    counts = [1300, 400, 30, 10, 0]  # the first 130 times the fourth (Sec. 3.2.2)
    tags = np.repeat(np.eye(5, dtype=bool), counts, 0)
    clips = boes2019.draw_clips(np.random.default_rng(0), tags, 20000)
    drawn = tags[clips].sum(0)
    assert np.allclose(drawn / 20000, np.array([50, 50, 30, 10, 0]) / 140, atol=0.015)
    assert len(set(clips[clips < 1300])) > 1200  # each clip of a class alike
    both = np.array([[True, True], [True, False], [False, False]])
    assert set(boes2019.draw_clips(np.random.default_rng(0), both, 200)) == {0, 1}


def test_cross_entropy_by_hand():
    p, t = torch.tensor([[0.9, 0.2]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    assert abs(boes2019.cross_entropy(p, t).item() + (math.log(0.9) + math.log(0.8)) / 2) < 1e-6
    edge = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = boes2019.cross_entropy(edge, t)
    loss.backward()
    assert 10 < loss.item() < 20 and torch.isfinite(edge.grad).all()


def test_when_training_stops():
    rise = [3, 3, 3, 3, 3, 3, 3]
    assert not boes2019.should_stop(rise[:6] + [9]) and not boes2019.should_stop([9] * 8)
    assert boes2019.should_stop(rise + [3.1]) and not boes2019.should_stop([4] + rise[1:] + [3.5])
    assert not boes2019.should_stop([1, 2, 3, 4, 5, 6, 7, 6.5]) and boes2019.should_stop([9] + rise + [3.1])


def scripted(monkeypatch, losses):
    """Validation losses as given: probabilities whose cross entropy they are"""
    script = iter(losses)
    answer = lambda *_: (torch.full((2, 4), math.exp(-next(script))), torch.ones(2, 4))  # noqa: E731
    monkeypatch.setattr(boes2019, "predict", answer)


def test_the_loop(data, monkeypatch):
    optimizers, adam = [], torch.optim.Adam

    def watched(parameters, **settings):
        optimizers.append((adam(parameters, **settings), settings))
        return optimizers[-1][0]

    monkeypatch.setattr(torch.optim, "Adam", watched)
    monkeypatch.setattr(boes2019, "BATCH", 3)
    lines, config = [], Config(epochs=12, batches=1)
    # falls, rises above some, but not above all of the seven before; then in epoch 10 above all of them
    with monkeypatch.context() as patch:
        scripted(patch, [2.0, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 1.45, 1.3, 1.46, 1.0, 1.0])
        states, losses = boes2019.train(config, data, CPU, lines.append)
    assert len(losses) == 10 and "early stop" in lines[-1] and len(states) == 7  # the last seven, though stopped early
    [(optimizer, settings)] = optimizers
    assert settings == dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8)  # TensorFlow's (Sec. 3.2.8)
    assert optimizer.state_dict()["state"][0]["step"] == 10  # one batch in each epoch
    n_trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert n_trained == sum(p.numel() for p in boes2019.make_network(config, data).parameters())  # and no embedding
    assert len({state["classifier.bias"][0].item() for state in states}) == 7  # each from its own epoch
    again, _ = boes2019.train(Config(epochs=4, batches=1), data, CPU, quiet)
    other, _ = boes2019.train(Config(epochs=1, batches=1, seed=1), data, CPU, quiet)
    first, fourth = (state["classifier.weight"] for state in again[::3])
    assert torch.equal(fourth, states[0]["classifier.weight"])  # same seed, same bits; the other three are gone
    assert not torch.equal(first, fourth) and not torch.equal(first, other[0]["classifier.weight"])
    data.parts["training"].audio[:] = math.nan
    with pytest.raises(FloatingPointError, match="no finite numbers in epoch 1"):
        boes2019.train(config, data, CPU, quiet)


def test_training_learns(data, monkeypatch):
    monkeypatch.setattr(boes2019, "BATCH", 8)
    for part in data.parts.values():
        part.audio[:, :, :4] += 4 * part.tags[:, None]
    config = Config(epochs=3, batches=12, attention="softmax")
    states, losses = boes2019.train(config, data, CPU, quiet)
    probabilities, tags = boes2019.ensemble(states[-1:], "public", config, data, CPU)
    assert losses[-1] < losses[0] and ((probabilities > 0.5) == tags).mean() > 0.85
    p, tags = (x.astype(float) for x in boes2019.ensemble(states[-1:], "validation", config, data, CPU))
    assert abs(losses[-1] + (tags * np.log(p) + (1 - tags) * np.log(1 - p)).mean()) < 1e-5  # what early stopping sees


def test_the_ensemble_averages_probabilities(data):
    config, states = Config(), []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(boes2019.make_network(config, data).state_dict())
    probabilities, tags = boes2019.ensemble(states, "public", config, data, CPU)
    part, single = data.parts["public"], []
    for state in states:
        net = boes2019.make_network(config, data).eval()
        net.load_state_dict(state)
        single.append(net(torch.from_numpy(part.video), torch.from_numpy(part.audio)).detach().numpy())
    keep = np.arange(12) != 6  # has no video
    assert np.allclose(probabilities, np.mean(single, 0)[keep], atol=1e-6) and np.array_equal(tags, part.tags[keep])


def test_one_threshold_for_all_classes():
    rng = np.random.default_rng(0)
    tags = rng.random((40, 3)) < 0.4
    probabilities = np.clip(tags * 0.3 + rng.random((40, 3)) * 0.5, 0, 1)
    scores = {t: metrics.clip_f1(tags, probabilities > t / 100).micro for t in range(1, 100)}
    assert scores[round(100 * boes2019.tune(tags, probabilities))] == max(scores.values())
    assert boes2019.tune(np.array([[True, False]]), np.array([[0.9, 0.1]])) == 0.5  # many are as good


def test_the_threshold_is_chosen_on_validation(data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    state = boes2019.make_network(Config(), data).state_dict()
    monkeypatch.setattr(boes2019, "train", lambda *_: ([state], [1.0]))
    report = boes2019.complete_run(Config(), data, {"audio": "log-mel", "video": "x"}, tmp_path, CPU, quiet)
    best = {}
    for name in ("validation", "public"):
        probabilities, tags = boes2019.ensemble([state], name, Config(), data, CPU)
        best[name] = boes2019.tune(tags, probabilities)
    assert report["threshold"] == best["validation"] != best["public"]
    assert report["f1"] == metrics.clip_f1(tags, probabilities > best["validation"]).micro


# --- Sec. 4, the commands --------------------------------------------------------------------------------------------


def test_table_1_has_sixty_systems():
    cells = [config for row, figures in boes2019.table_rows(Config()) for config in row]
    assert len({config.system for config in cells}) == len(cells) == 60
    figures = {c.system: float(f) for row, fs in boes2019.table_rows(Config()) for c, f in zip(row, fs, strict=True)}
    best = max(figures, key=figures.get)
    assert best == "video-audio-video-mean-sigmoid" == Config().system and figures[best] == 70.1
    assert figures["audio-audio-none-max-normalized"] == 58.7
    assert figures["audio-video-audio+video-mean-softmax"] == 66.1
    more = list(boes2019.table_rows(Config(), without_video=True))
    assert len(more) == 12 and sum(config.all_clips for row, _ in more for config in row) == 12
    assert more[-1][1][1] == "59.5"  # in parentheses in the paper
    assert boes2019.PAPER == dict(epochs=30, batches=300, runs=25) and boes2019.BATCH == 40  # Sec. 3.2.2, 4.1


def command(capsys, *arguments):
    boes2019.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_a_run_is_done_once(tmp_path, capsys, monkeypatch):
    root, out = write_tiny(tmp_path / "set"), tmp_path / "out"
    flags = ("--data", root, "--visual", "openl3", "--out", out, "--epochs", 2, "--batches", 1)
    text = command(capsys, *flags)
    assert "model  video-audio-video-mean-sigmoid | log-mel openl3 | " in text
    assert "public micro F1 " in text and " | mAP " in text
    report = json.loads((out / "video-audio-video-mean-sigmoid-0.json").read_text())
    assert 0 <= report["f1"] <= 1 and len(report["losses"]) == 2 and report["inputs"] == ["openl3", "log-mel"]
    assert len(torch.load(out / "video-audio-video-mean-sigmoid-0.pt", weights_only=True)) == 2
    with monkeypatch.context() as patch:
        patch.setattr(boes2019, "train", None)  # not called
        assert command(capsys, *flags).splitlines()[-1] == text.splitlines()[-1]
    assert "is of a run with another config; name another --out" in refused(capsys, *flags, "--epochs", 3)
    assert "sound/vggish: of 8 clips listed" in refused(capsys, *flags, "--audio", "vggish")
    # other clips have video: another run
    path = sorted((root / "visual/openl3").glob("w*"))[0]
    vectors = path.read_bytes()
    path.unlink()
    assert "is of a run with another data; name another --out" in refused(capsys, *flags)
    path.write_bytes(vectors)
    (out / "video-audio-video-mean-sigmoid-0.json").write_text("{")
    assert "was not written by this program; delete it" in refused(capsys, *flags)
    # sound alone: clips without video are as good as the others
    text = command(capsys, *flags, "--system", "audio-audio-none-max-softmax")
    assert (out / "audio-audio-none-max-softmax-all-0.json").exists() and "with openl3" not in text


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        boes2019.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error and error.splitlines()[-1].count("error: ") == 1
    return error


def test_what_bad_input_gets(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(boes2019.plots, "figure_class", dict)  # whether matplotlib is there or not
    root = write_tiny(tmp_path / "set")
    flags = ("--data", root, "--out", tmp_path / "out", "--visual", "openl3", "--epochs", 1, "--batches", 1)
    for more, message in (
        (("--data", tmp_path / "no"), "no: no such folder; --data wants"),
        (("--visual", "vgg16"), "vgg16: no such folder"),
        (("--visual", "a/b"), "without slashes"),
        (("--data", ""), "--data is the name of a folder"),
        (("--system", "video-audio"), "invalid choice"),
        (("--epochs", 0), "must be at least 1"),
        (("--seed", -1), "must be 0 or more"),
        (("--device", "nonsense"), "--device nonsense: not available"),
        (("--attention", "nobody.wav"), "no clip of this name is listed"),
        (("--runs", 2), "--runs is for --table alone"),
        (("--table", "--system", "video-video-none-max-sigmoid"), "--table does all systems"),
        (("--step", 2), "--step is of the clip that --attention names"),
    ):
        assert message in refused(capsys, *flags, *more)


def test_the_table_goes_on_where_it_was_interrupted(tmp_path, capsys, monkeypatch):
    lines = boes2019.PAPER_TABLE.strip().splitlines()
    monkeypatch.setattr(boes2019, "PAPER_TABLE", "\n".join([lines[4], lines[9]]))
    root, out, n_done = write_tiny(tmp_path / "set"), tmp_path / "out", []

    def killed(config, data, *_):
        if len(n_done) == 7:
            raise KeyboardInterrupt
        n_done.append(config.run)
        return [boes2019.make_network(config, data).state_dict()], [1.0]  # untrained

    flags = ("--table", "--runs", 1, "--data", root, "--visual", "openl3", "--out", out, "--epochs", 1, "--batches", 1)
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="interrupted; the same command goes on"):
        patch.setattr(boes2019, "train", killed)
        command(capsys, *flags)
    assert len(list(out.glob("*.json"))) == 7 and not list(out.glob("*.txt")) and not list(out.glob("*.pt"))
    n_done = [""] * 8
    with monkeypatch.context() as patch:
        patch.setattr(boes2019, "train", killed)
        text = command(capsys, *flags)
    assert len(n_done) == 8 + 11 and len(set(n_done[8:])) == 11  # two rows of six, sound alone once more on all clips
    table = (out / "table_1.txt").read_text().splitlines()
    assert text.endswith("\n".join(table) + "\n") and len(table) == 2 + 3 + 1 and "cannot be compared" in table[-1]
    assert table[2].startswith("video  audio   video  ") and table[4].startswith("audio  audio   none (all)")
    f1 = json.loads((out / "video-audio-video-mean-softmax-0.json").read_text())["f1"]
    assert table[2].split()[3] == f"{100 * f1:.1f}"
    monkeypatch.setattr(boes2019, "DCASE_2017", {"training": 8, "validation": 4, "public": 3})
    text = command(capsys, *flags)
    assert "the paper:" in text and "70.1" in text and "(all)" in text and "59.5" in text and "cannot" not in text


def test_the_picture_of_one_step(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    root, out, drawn = write_tiny(tmp_path / "set"), tmp_path / "out", []
    monkeypatch.setattr(boes2019.plots, "plot_synchronization", lambda *arguments: drawn.append(arguments))
    frames = np.arange(50)[:, None, None, None] * np.ones((50, 2, 2, 3), np.uint8)
    monkeypatch.setattr(boes2019.embeddings, "read_frames", lambda *_: frames)
    (root / "video").mkdir()
    (root / "video/v0.mp4").touch()
    flags = ("--data", root, "--visual", "openl3", "--out", out, "--epochs", 2, "--batches", 1)
    command(capsys, *flags, "--attention", "v0.wav", "--step", 4)
    text = command(capsys, *flags, "--attention", "v0.wav", "--system", "audio-video-video-mean-softmax")
    (path, log_mel, stills, weights, query, query_is, first, step), other = drawn
    assert "video-audio-none-mean-softmax" in path.name
    assert (query, query_is, first, step) == (4, "audio", "video", 0.96)
    assert log_mel.shape == (512, 64) and weights.shape == (3, 10, 10) and np.allclose(weights.sum(-1), 1, atol=1e-5)
    # 50 frames: the picture ends early, and its last one stays
    assert stills[:, 0, 0, 0].tolist() == [min(k, 49) for k in boes2019.PICTURES]
    assert other[5:7] == ("video", "audio") and f"v0.wav, step {other[4]} of 10" in text
    # the maps are of the last block of the last state, for that clip
    config = Config(positions=(), attention="softmax")
    data = boes2019.load_data(root, "log-mel", "openl3", out / "cache", quiet)
    net = boes2019.make_network(config, data).eval()
    net.load_state_dict(torch.load(out / "video-audio-none-mean-softmax-0.pt", weights_only=True)[-1])
    place = data.parts["validation"].filenames.index("v0.wav")
    inputs = data.batch("validation", config, np.array([place]), CPU)[:2]
    assert np.allclose(net(*inputs, with_attention=True)[2][0, -1].detach(), weights, atol=1e-6)
    assert "has no picture" in refused(capsys, *flags, "--attention", "v1.wav")
    (out / "video-audio-none-mean-softmax-0.pt").write_bytes(b"PK")
    assert "does not hold the states of this run" in refused(capsys, *flags, "--attention", "v0.wav")


def test_toy_data_by_default(tmp_path, capsys, monkeypatch):
    clips = {"strong": 3, "weak": 6, "unlabelled": 1, "validation": 4, "public": 4}
    monkeypatch.setattr(toy, "CLIPS", {"tagging": clips})
    monkeypatch.setattr(toy, "SOUNDS", {name: toy.SOUNDS[name] for name in ("Dog", "Speech", "Frying")})
    monkeypatch.chdir(tmp_path)
    text = command(capsys, "--epochs", 1, "--batches", 1)
    assert "TOY DATA" in text and "training       9 listed,     9 found,     9 with openl3" in text
    assert (tmp_path / "runs/boes2019-toy-tagging/video-audio-video-mean-sigmoid-0.json").exists()
