"""Tests of the 2019 transformer in its paper's order: a second, plain forward pass, parts by hand, data, loop, table"""

import itertools
import json
import math
import statistics

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import features
from extras import boes2019, tagging, toy
from extras.boes2019 import AudiovisualTransformer, Block, Config
from extras.tagging import Part
from extras.plumbing import InputError
from test_avsed import quiet, write_tiny

CPU = torch.device("cpu")
SYSTEMS = [config for row, _ in boes2019.table_rows(Config()) for config in row]


def inputs(n=2, first=7, second=5, steps=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, steps, first, generator=generator), torch.randn(n, 10, second, generator=generator)


def network(*arguments, seed=0, **more):
    torch.manual_seed(seed)
    return AudiovisualTransformer(4, 7, 5, *arguments, **more).eval()


def some_parts():
    """Twelve clips of random vectors in each part, the seventh without video; sound is 5 wide, pictures are 7 wide"""
    rng, parts = np.random.default_rng(0), {}
    moments = {"audio": np.float32([[0] * 5, [1] * 5]), "video": np.float32([[0] * 7, [1] * 7])}
    for name in ("training", "validation", "public"):
        tags = rng.random((12, 4)) < 0.5
        tags[:4] |= np.eye(4, dtype=bool)
        audio, video = (rng.standard_normal((12, 10, d)).astype(np.float32) for d in (5, 7))
        names, present = [f"{i}.wav" for i in range(12)], np.arange(12) != 6
        parts[name] = Part(12, names, tags, [], audio, video, present, statistics=moments)
    return parts


@pytest.fixture
def parts():
    return some_parts()


# --- Sec. 2: the network ---------------------------------------------------------------------------------------------


def plain_forward(state, first, second, attention, pooling, positions, dropout=lambda x, place: x):
    """The network a second time, in numpy, one clip and one head at a time, from the words of the paper.

    dropout: called wherever the paper has one (Sec. 3.2.7)
    """
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
            heads.append(dropout(maps[-1], "attention function") @ v[:, of_head])
        return dropout(linear(np.concatenate(heads, 1), f"{name}.output"), "final linear map"), maps

    def feed_forward(x, name):
        hidden = dropout(np.maximum(linear(x, f"{name}.0"), 0), "feedforward layer")
        return dropout(linear(hidden, f"{name}.3"), "feedforward layer")

    def encodings():
        return [[(math.sin, math.cos)[j % 2](t / 10000 ** (j // 2 * 2 / 128)) for j in range(128)] for t in range(10)]

    pooled, steps, cross_maps = [], [], []
    for clip in range(len(first)):
        memory, x = first[clip].double().numpy(), second[clip].double().numpy()
        memory = dropout(linear(memory, "first_input.0"), "input") + np.array(encodings()) * positions[0]
        x = dropout(linear(x, "second_input.0"), "input") + np.array(encodings()) * positions[1]
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
        steps.append(1 / (1 + np.exp(-linear(x, "classifier"))))
        pooled.append(steps[-1].mean(0) if pooling == "mean" else steps[-1].max(0))
        cross_maps.append(maps)  # of the last block (Sec. 4.2.1)
    return np.array(pooled), np.array(steps), np.array(cross_maps)


def by_name(config, parts):
    """What the name of a system says, for one clip -> its two inputs, and how plain_forward has to go about it"""
    first, second, positions, pooling, attention = config.system.split("-")
    vectors = {modality: torch.from_numpy(getattr(parts["public"], modality)[:1]) for modality in ("audio", "video")}
    encoded = [modality in positions.split("+") for modality in (first, second)]
    return (vectors[first], vectors[second]), (attention, pooling, encoded)


def test_every_system_of_table_1_a_second_time(parts):
    for seed, config in enumerate(SYSTEMS):
        torch.manual_seed(seed)
        net = boes2019.make_network(config, parts).eval()
        for name, parameter in net.named_parameters():  # the norms begin as ones and zeros
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
        pair, how = by_name(config, parts)
        with torch.no_grad():
            got, (steps, maps) = net(*pair), boes2019.attention_of(net, *pair)
            assert torch.equal(net(*pair), got)
        for mine, wanted in zip((got, steps, maps), plain_forward(net.state_dict(), *pair, *how)):
            assert mine.shape == wanted.shape and np.abs(mine.numpy() - wanted).max() < 1e-5, config.system


def test_dropout_is_where_the_paper_has_it_and_nowhere_else(parts, monkeypatch):
    rates, places = [], []

    def stand_in(x, cosine):  # something that shows in the result
        return x + 0.3 * cosine(x)

    def in_the_model(x, p, training, inplace):
        rates.append((p, training))
        return stand_in(x, torch.cos)

    def in_the_paper(x, place):
        places.append(place)
        return stand_in(x, np.cos)

    net = boes2019.make_network(SYSTEMS[0], parts).train()
    pair, how = by_name(SYSTEMS[0], parts)
    wanted, *_ = plain_forward(net.state_dict(), *pair, *how, dropout=in_the_paper)
    monkeypatch.setattr(F, "dropout", in_the_model)  # nn.Dropout calls it
    before = torch.get_rng_state()
    with torch.no_grad():
        assert np.abs(net(*pair).numpy() - wanted).max() < 1e-5
    assert torch.equal(torch.get_rng_state(), before)  # nothing else is random
    module = ["attention function"] * 3 + ["final linear map"]  # three heads
    assert sorted(places) == sorted(["input"] * 2 + 9 * module + 12 * ["feedforward layer"])
    assert set(rates) == {(0.1, True)}


def test_sizes():
    assert sum(p.numel() for p in AudiovisualTransformer(17, 128, 4096).parameters()) == 2526097
    net = AudiovisualTransformer(17, 128, 4096).eval()
    out = net(torch.randn(2, 10, 128), torch.randn(2, 10, 4096))
    assert out.shape == (2, 17) and ((out > 0) & (out < 1)).all()
    assert (out.sum(1) - 1).abs().min() > 0.1  # not a softmax (Sec. 2.2.3)
    assert len(net.encoder) == len(net.decoder) == 3  # Sec. 3.2.3
    assert not any("sinusoids" in name for name in net.state_dict())  # nothing learns positions (Sec. 2.1.2)
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
    steps, maps = boes2019.attention_of(net, first, second)
    assert steps.shape == (2, 10, 4) and maps.shape == (2, 3, 10, 6) and (maps.sum(-1) - 1).abs().max() < 1e-5
    second[:, -1] += 1
    assert (boes2019.attention_of(net, first, second)[0] - steps)[:, 0].abs().max() > 1e-4  # no mask
    assert not net.classifier._forward_hooks and not net.decoder[-1].cross._forward_hooks  # nothing is left behind


# --- Sec. 3.1, 3.2.1: the data ---------------------------------------------------------------------------------------


def test_a_still_at_the_centre_of_each_window():
    assert np.allclose(boes2019.CENTRES, [0.48, 1.44, 2.4, 3.36, 4.32, 5.28, 6.24, 7.2, 8.16, 9.12])
    times = np.arange(64) * 0.15625  # of the vectors that extras.embeddings makes
    assert boes2019.PICTURES.tolist() == [np.abs(times - centre).argmin() for centre in boes2019.CENTRES]
    vectors = np.arange(64)[:, None] * np.ones((64, 3), np.float32)
    assert boes2019.stills(vectors)[:, 0].tolist() == boes2019.PICTURES.tolist()


def write_set(root, sound="log-mel"):
    """A tiny data set that is heard as random vectors"""
    rng = np.random.default_rng(5)
    write_tiny(root)
    (root / "sound" / sound).mkdir(parents=True)
    for path in sorted((root / "audio").rglob("*.wav")):
        np.save(root / "sound" / sound / f"{path.stem}.npy", rng.standard_normal((10, 128)).astype(np.float32))
    return root


def load(root, cache, sound="log-mel", visual="openl3"):
    return tagging.load_tagging(root, boes2019.read_sound, visual, boes2019.stills, cache, f"sound/{sound}", quiet)[1]


def test_inputs_are_standardised_and_only_clips_with_video_count(tmp_path):
    root = write_set(tmp_path / "set")
    parts = load(root, tmp_path / "cache")
    train = parts["training"]  # 4 strong clips, which have no video, and 4 weak ones
    assert train.clips(with_video=True).tolist() == [4, 5, 6, 7] and train.clips().tolist() == list(range(8))
    stored = [np.load(root / "sound/log-mel" / f"{name[:-4]}.npy") for name in train.filenames]
    assert np.array_equal(train.audio, stored)
    first, second = boes2019.both_inputs(train, np.array([5, 4]), Config(), CPU)
    seen, heard = (train.video[4:].astype(np.float64).reshape(40, -1), train.audio.astype(np.float64).reshape(80, -1))
    assert np.allclose(first[1], (train.video[4] - seen.mean(0)) / seen.std(0), atol=1e-4)
    assert np.allclose(second[0], (train.audio[5] - heard.mean(0)) / heard.std(0), atol=1e-3)
    vectors = np.load(root / "visual/openl3" / f"{train.filenames[4][:-4]}.npy")
    assert np.array_equal(train.video[4], vectors[boes2019.PICTURES])


def test_sound_must_be_ten_vectors_of_finite_numbers(tmp_path):
    root = write_set(tmp_path / "set", "vggish")
    parts = load(root, tmp_path / "cache", "vggish", None)
    stem = parts["public"].filenames[0][:-4]
    path = root / "sound/vggish" / f"{stem}.npy"
    for bad in (np.zeros((64, 128)), np.full((10, 128), np.nan), np.zeros((10, 128), int), b"text"):
        path.write_bytes(bad) if isinstance(bad, bytes) else np.save(path, bad)
        with pytest.raises(InputError, match=rf"{stem}\.npy: must be an array of finite numbers, \(10, 128\); delete"):
            load(root, tmp_path / "cache", "vggish", None)


# --- Sec. 3.2.2, 3.2.8, 3.2.9: training ------------------------------------------------------------------------------


def test_classes_take_turns_by_the_thousands_of_their_clips(monkeypatch):
    counts = [6500, 4000, 3999, 1000, 999, 50, 0]  # as cited: 5, 5, 4, 2, 1, 1 places, none for what nobody holds
    tags, places = np.repeat(np.eye(7, dtype=bool), counts, 0), [5, 5, 4, 2, 1, 1, 0]
    first = np.cumsum([0, *counts])
    drawn = np.array(list(itertools.islice(boes2019.draw_clips(np.random.default_rng(0), tags), 18 * 200)))
    classes = np.searchsorted(first, drawn, "right") - 1
    rounds = classes.reshape(200, 18)
    assert all(np.bincount(of_round, minlength=7).tolist() == places for of_round in rounds)
    assert len({tuple(of_round) for of_round in rounds}) == 200  # the list is shuffled anew each time
    rare = drawn[classes == 5].reshape(4, 50)  # every clip once before any comes again, in another order
    assert (np.sort(rare) == np.arange(first[5], first[6])).all() and len({tuple(turn) for turn in rare}) == 4
    assert len(set(drawn[classes == 0])) == 1000 and drawn[classes == 0].max() > 6000  # none twice, from all of them
    both = np.array([[True, True], [True, False], [False, False]])  # a clip of two classes has its turn in both
    few = list(itertools.islice(boes2019.draw_clips(np.random.default_rng(0), both), 40))
    assert few.count(2) == 0 and few.count(0) == 30 and few.count(1) == 10


def test_cross_entropy_by_hand():
    p, t = torch.tensor([[0.9, 0.2]], requires_grad=True), np.array([[True, False]])
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
    """Validation losses as given: probabilities whose cross entropy they are, of clips that hold all classes"""
    script = iter(losses)
    monkeypatch.setattr(boes2019, "predict", lambda *_: torch.full((11, 4), math.exp(-next(script))))


def test_the_loop(parts, monkeypatch):
    optimizers, adam, drawn, read, modes = [], torch.optim.Adam, [], boes2019.both_inputs, []
    make_network = boes2019.make_network

    def watched(parameters, **settings):
        optimizers.append((adam(parameters, **settings), settings))
        return optimizers[-1][0]

    def noted(part, clips, *more):
        drawn.append((part, clips.tolist()))
        return read(part, clips, *more)

    def listened_to(*arguments):
        net = make_network(*arguments)
        net.register_forward_pre_hook(lambda net, pair: modes.append(net.training))
        return net

    monkeypatch.setattr(torch.optim, "Adam", watched)
    monkeypatch.setattr(boes2019, "both_inputs", noted)
    monkeypatch.setattr(boes2019, "make_network", listened_to)
    parts["validation"].tags[:] = True
    lines, config = [], Config(epochs=12, batches=1)
    # falls, rises above some, but not above all of the seven before; then in epoch 10 above all of them
    with monkeypatch.context() as patch:
        scripted(patch, [2.0, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 1.45, 1.3, 1.46, 1.0, 1.0])
        states, losses = boes2019.train(config, parts, CPU, lines.append)
    assert np.allclose(losses, [2.0, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 1.45, 1.3, 1.46], atol=1e-5)
    assert "early stop" in lines[-1] and len(states) == 7  # the last seven, though stopped early
    [(optimizer, settings)] = optimizers
    assert settings == dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8)  # TensorFlow's (Sec. 3.2.8)
    assert optimizer.state_dict()["state"][0]["step"] == 10  # one batch in each epoch
    n_trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert n_trained == sum(p.numel() for p in boes2019.make_network(config, parts).parameters())  # and no embedding
    assert len({state["classifier.bias"][0].item() for state in states}) == 7  # each from its own epoch
    # 40 training clips a batch, of those with video: clip 6 has none
    assert len(drawn) == 10 and all(part is parts["training"] and len(clips) == 40 for part, clips in drawn)
    can_be_drawn = parts["training"].present & parts["training"].tags.any(1)
    assert {i for _, clips in drawn for i in clips} == set(np.flatnonzero(can_be_drawn))
    sound, drawn[:] = Config("audio", "audio", (), all_clips=True, epochs=1, batches=3), []
    boes2019.train(sound, parts, CPU, quiet)
    assert 6 in {i for part, clips in drawn if part is parts["training"] for i in clips}
    assert [clips for part, clips in drawn if part is parts["validation"]] == [list(range(12))]
    modes.clear()
    boes2019.train(Config(epochs=2, batches=1), parts, CPU, quiet)
    assert modes == [True, False, True, False]  # dropout in training, and in training alone


def test_a_seed_gives_the_same_bits(parts, monkeypatch):
    draws, draw_clips = [], boes2019.draw_clips

    def noted(rng, tags):
        draws.append((rng.bit_generator.state, tags))
        return draw_clips(rng, tags)

    monkeypatch.setattr(boes2019, "draw_clips", noted)
    monkeypatch.setattr(boes2019, "BATCH", 3)
    once, _ = boes2019.train(Config(epochs=4, batches=1), parts, CPU, quiet)
    again, _ = boes2019.train(Config(epochs=3, batches=1), parts, CPU, quiet)
    other, _ = boes2019.train(Config(epochs=1, batches=1, seed=1), parts, CPU, quiet)
    weights = [[state["classifier.weight"] for state in states] for states in (once, again, other)]
    assert all(map(torch.equal, weights[0], weights[1])) and not torch.equal(weights[0][0], weights[2][0])
    assert [state for state, _ in draws] == [np.random.default_rng(seed).bit_generator.state for seed in (0, 0, 1)]
    assert np.array_equal(draws[0][1], parts["training"].tags[np.arange(12) != 6])  # clip 6 has no video
    parts["training"].audio[:] = math.nan
    with pytest.raises(FloatingPointError, match="no finite numbers in epoch 1"):
        boes2019.train(Config(epochs=1), parts, CPU, quiet)


def test_training_learns(parts, monkeypatch):
    monkeypatch.setattr(boes2019, "BATCH", 8)
    for part in parts.values():
        part.audio[:, :, :4] += 4 * part.tags[:, None]
    config = Config(epochs=3, batches=12, attention="softmax")
    states, losses = boes2019.train(config, parts, CPU, quiet)
    keep = np.arange(12) != 6  # has no video
    probabilities = boes2019.ensemble(states[-1:], parts["public"], config, parts, CPU)
    assert losses[-1] < losses[0] and ((probabilities > 0.5) == parts["public"].tags[keep]).mean() > 0.85
    p = boes2019.ensemble(states[-1:], parts["validation"], config, parts, CPU).astype(float)
    tags = parts["validation"].tags[keep]
    assert abs(losses[-1] + (tags * np.log(p) + (1 - tags) * np.log(1 - p)).mean()) < 1e-5  # what early stopping sees


def test_the_ensemble_averages_probabilities(parts):
    config, states = Config(), []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(boes2019.make_network(config, parts).state_dict())
    probabilities, part, single = boes2019.ensemble(states, parts["public"], config, parts, CPU), parts["public"], []
    for state in states:
        net = boes2019.make_network(config, parts).eval()
        net.load_state_dict(state)
        single.append(net(torch.from_numpy(part.video), torch.from_numpy(part.audio)).detach().numpy())
    keep = np.arange(12) != 6  # has no video
    assert np.allclose(probabilities, np.mean(single, 0)[keep], atol=1e-6)
    assert np.allclose(boes2019.predict(net, part, config, CPU, size=4), single[-1][keep], atol=1e-6)


def test_threshold_and_scores_come_from_all_states(parts, tmp_path, monkeypatch):
    states, pairs = list("abcdefg"), []

    def average(given, part, *_):
        assert given == states
        rng = np.random.default_rng(len(pairs))
        pairs.append((part.tags[np.arange(12) != 6], rng.random((11, 4))))
        return pairs[-1][1]

    monkeypatch.setattr(boes2019, "train", lambda *_: (states, [1.0]))
    monkeypatch.setattr(boes2019, "ensemble", average)
    stale = tmp_path / f"{Config().run}.pt"  # the states of another run, whose report is gone
    stale.touch()
    report = boes2019.complete_run(Config(), parts, {False: "x", True: "y"}, tmp_path, CPU, quiet)
    assert not stale.exists()
    (tags, validated), (public_tags, public) = pairs
    assert np.array_equal(public_tags, parts["public"].tags[np.arange(12) != 6])  # the second one is public
    wanted = tagging.score({"validation": tags, "public": public_tags}, {"validation": validated, "public": public})
    assert {name: report[name] for name in wanted} == wanted and report["data"] == "x"


# --- Sec. 4, the commands --------------------------------------------------------------------------------------------


def test_table_1_has_sixty_systems():
    assert len({config.system for config in SYSTEMS}) == len(SYSTEMS) == 60
    figures = {c.system: float(f) for row, fs in boes2019.table_rows(Config()) for c, f in zip(row, fs, strict=True)}
    best = max(figures, key=figures.get)
    assert best == "video-audio-video-mean-sigmoid" == Config().system and figures[best] == 70.1
    assert figures["audio-audio-none-max-normalized"] == 58.7
    assert figures["audio-video-audio+video-mean-softmax"] == 66.1
    more = list(boes2019.table_rows(Config(), without_video=True))
    assert len(more) == 12 and sum(config.all_clips for row, _ in more for config in row) == 12
    assert more[-1][1][1] == "59.5"  # in parentheses in the paper
    named = {config.system: config for config in SYSTEMS}
    for name, config in named.items():  # what a name asks for is what the run is
        assert boes2019.parse_arguments(["--system", name]).config.system == config.system == name


def test_schedules():
    paper, toy_data = (boes2019.parse_arguments(flags) for flags in (["--data", "x"], []))
    assert (paper.epochs, paper.batches, paper.runs, boes2019.BATCH) == (30, 300, 25, 40)  # Sec. 3.2.2, 4.1
    assert (paper.config.epochs, paper.config.batches) == (30, 300)
    assert (paper.config.sound, paper.config.visual) == (paper.sound, paper.visual) == ("vggish", "vgg16")  # Sec. 3.2.1
    assert (toy_data.sound, toy_data.visual, toy_data.epochs) == ("log-mel", "openl3", 10)
    drawn = boes2019.parse_arguments(["--attention", "a.wav"]).config
    assert drawn.system == "video-audio-none-mean-softmax"  # Sec. 4.2.1


def command(capsys, *arguments):
    boes2019.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        boes2019.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error and error.splitlines()[-1].count("error: ") == 1
    return error


def test_a_run_is_done_once(tmp_path, capsys, monkeypatch):
    root, out = write_set(tmp_path / "set"), tmp_path / "out"
    flags = ("--data", root, "--visual", "openl3", "--sound", "log-mel", "--out", out, "--epochs", 2, "--batches", 1)
    text = command(capsys, *flags)
    assert "model  video-audio-video-mean-sigmoid | log-mel openl3 | " in text
    assert "public micro F1 " in text and " | mAP " in text
    report = json.loads((out / "video-audio-video-mean-sigmoid-0.json").read_text())
    assert 0 <= report["F1"] <= 1 and len(report["losses"]) == 2
    assert (report["sound"], report["visual"]) == ("log-mel", "openl3")
    assert len(torch.load(out / "video-audio-video-mean-sigmoid-0.pt", weights_only=True)) == 2
    with monkeypatch.context() as patch:
        patch.setattr(boes2019, "train", None)  # not called
        assert command(capsys, *flags).splitlines()[-1] == text.splitlines()[-1]
    (out / "video-audio-video-mean-sigmoid-0.pt").unlink()  # a run of the table keeps no states: it is trained again
    again = command(capsys, *flags)
    assert "epoch  2/2" in again and again.splitlines()[-1].split("|")[:4] == text.splitlines()[-1].split("|")[:4]
    assert (out / "video-audio-video-mean-sigmoid-0.pt").exists()
    error = refused(capsys, *flags, "--epochs", 3)
    assert "is of a run with epochs 2, not 3; give the same flags, or name another --out" in error
    assert "sound/vggish: no such folder" in refused(capsys, *flags, "--sound", "vggish")
    # other clips have video: another run
    path = sorted((root / "visual/openl3").glob("w*"))[0]
    vectors = path.read_bytes()
    path.unlink()
    assert "is of a run with data " in refused(capsys, *flags)
    path.write_bytes(vectors)
    odd = {**report, "F1": "0.5"}, {**report, "losses": 3}, {**report, "mAP": [0.5]}
    for content in ("{", "[" * 100_000, *map(json.dumps, odd)):
        (out / "video-audio-video-mean-sigmoid-0.json").write_text(content)
        assert "was not written by this program; name another --out" in refused(capsys, *flags)
    # sound alone: clips without video are as good as the others
    text = command(capsys, *flags, "--system", "audio-audio-none-max-softmax")
    assert (out / "audio-audio-none-max-softmax-all-0.json").exists() and "with openl3" not in text


def test_what_bad_input_gets(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(boes2019.plots, "figure_class", dict)  # whether matplotlib is there or not
    root = write_set(tmp_path / "set")
    flags = ("--data", root, "--out", tmp_path / "out", "--visual", "openl3", "--sound", "log-mel", "--epochs", 1)
    (root / "audio/validation/v2.wav").unlink()
    for more, message in (
        (("--data", tmp_path / "no"), "no: no such folder; --data wants"),
        (("--visual", "vgg16"), "vgg16: no such folder"),
        (("--visual", "a/b"), "without slashes"),
        (("--sound", ".."), "without slashes"),
        (("--data", ""), "--data: is empty: name a folder"),
        (("--system", "video-audio"), "invalid choice"),
        (("--epochs", 0), "must be a whole number, at least 1"),
        (("--seed", -1), "must be 0 or more"),
        (("--device", "nonsense"), "--device nonsense: not available"),
        (("--attention", "nobody.wav"), "no clip of this name is listed"),
        (("--attention", "v1.wav"), "has no picture, and the network is one that looks"),
        (("--attention", "v2.wav"), "v2.wav: is not there; the picture shows the clip's sound too"),
        (("--runs", 2), "--runs is for --table alone"),
        (("--table", "--system", "video-video-none-max-sigmoid"), "--table does all systems"),
        (("--step", 2), "--step is of the clip that --attention names"),
    ):
        assert message in refused(capsys, *flags, *more)
    assert not (tmp_path / "out").exists()


def test_the_table_goes_on_where_it_was_interrupted(tmp_path, capsys, monkeypatch):
    lines = boes2019.PAPER_TABLE.strip().splitlines()
    monkeypatch.setattr(boes2019, "PAPER_TABLE", "\n".join([lines[4], lines[9]]))
    root, out, n_done = write_set(tmp_path / "set", "vggish"), tmp_path / "out", []

    def killed(config, parts, *_):
        if len(n_done) == 7:
            raise KeyboardInterrupt
        n_done.append(config.run)
        torch.manual_seed(config.seed)
        return [boes2019.make_network(config, parts).state_dict()], [1.0]  # untrained

    flags = ("--table", "--runs", 2, "--seed", 3, "--data", root, "--visual", "openl3", "--out", out)
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="interrupted; the same command goes on"):
        patch.setattr(boes2019, "train", killed)
        command(capsys, *flags)
    assert len(list(out.glob("*.json"))) == 7 and not list(out.glob("*.txt")) and not list(out.glob("*.pt"))
    n_done = [""] * 8
    with monkeypatch.context() as patch:
        patch.setattr(boes2019, "train", killed)
        text = command(capsys, *flags)
    # two rows of six, sound alone once more on all clips, each with two seeds
    assert len(n_done) == 8 + 29 and len(set(n_done[8:])) == 29 and {name[-1] for name in n_done[8:]} == {"3", "4"}
    table = (out / "table_1.txt").read_text().splitlines()
    assert text.endswith("\n".join(table) + "\n") and len(table) == 2 + 3 + 1 and "cannot be compared" in table[-1]
    assert table[2].startswith("video  audio   video  ") and table[4].startswith("audio  audio   none (all)")
    for line, system in ((2, "video-audio-video"), (4, "audio-audio-none")):  # each cell, the mean of its two runs
        for cell, (pooling, attention) in enumerate(itertools.product(("mean", "max"), boes2019.ATTENTION)):
            name = f"{system}-{pooling}-{attention}{'-all' * (line == 4)}"
            f1 = [100 * json.loads((out / f"{name}-{seed}.json").read_text())["F1"] for seed in (3, 4)]
            wanted = f"{statistics.mean(f1):.1f} ± {statistics.stdev(f1):.1f}"
            assert table[line][32 + 12 * cell :][:12].strip() == wanted
    # the paper's figures stand below for its clips, sound and pictures alone
    monkeypatch.setattr(boes2019, "DCASE_2017", {"training": 8, "validation": 4, "public": 3})
    assert "the paper:" not in command(capsys, *flags)
    (root / "visual/openl3").rename(root / "visual/vgg16")
    flags = ("--table", "--runs", 1, "--data", root, "--out", tmp_path / "other")
    monkeypatch.setattr(boes2019, "train", lambda config, parts, *_: killed(config, parts))
    text = command(capsys, *flags)
    assert "the paper:" in text and "70.1" in text and "(all)" in text and "59.5" in text and "cannot" not in text
    monkeypatch.setattr(boes2019, "DCASE_2017", {"training": 8, "validation": 4, "public": 4})
    assert "the paper:" not in command(capsys, *flags)


def test_the_picture_of_one_step(tmp_path, capsys, monkeypatch):
    root, out, drawn = write_set(tmp_path / "set"), tmp_path / "out", []
    monkeypatch.setattr(boes2019.plots, "figure_class", dict)  # whether matplotlib is there or not
    monkeypatch.setattr(boes2019.plots, "plot_synchronization", lambda *arguments: drawn.append(arguments))
    frames = np.arange(50)[:, None, None, None] * np.ones((50, 2, 2, 3), np.uint8)
    monkeypatch.setattr(boes2019.embeddings, "read_frames", lambda path, *_: frames + (path.stem == "v2"))
    (root / "video").mkdir()
    for name in ("v0", "v2"):
        (root / f"video/{name}.mp4").touch()
    flags = ("--data", root, "--visual", "openl3", "--sound", "log-mel", "--out", out, "--epochs", 2, "--batches", 1)
    command(capsys, *flags, "--attention", "v2.wav", "--step", 4)
    text = command(capsys, *flags, "--attention", "v2.wav", "--system", "audio-video-video-mean-softmax")
    (log_mel, stills, weights, query, query_is, first, step, path), other = drawn
    assert path.name == "v2-video-audio-none-mean-softmax-0-step4.png"
    assert (query, query_is, first, step) == (4, "audio", "video", 0.96)
    assert np.array_equal(log_mel, features.log_mel(features.load_audio(root / "audio/validation/v2.wav")))
    # 50 frames: the picture ends early, and its last one stays
    assert stills[:, 0, 0, 0].tolist() == [1 + min(k, 49) for k in boes2019.PICTURES]
    assert other[4:6] == ("video", "audio")
    # the maps are of the last block of the last state, for that clip; without --step, where its class is surest
    parts = load(root, root / "cache")
    place = parts["validation"].filenames.index("v2.wav")
    for system, (*_, maps, step, _, _, _, _) in zip(("video-audio-none", "audio-video-video"), drawn):
        config = {config.system: config for config in SYSTEMS}[f"{system}-mean-softmax"]
        net = boes2019.make_network(config, parts).eval()
        net.load_state_dict(torch.load(out / f"{config.run}.pt", weights_only=True)[-1])
        pair = boes2019.both_inputs(parts["validation"], np.array([place]), config, CPU)
        _, how = by_name(config, parts)
        pooled, steps, wanted = plain_forward(net.state_dict(), *pair, *how)
        assert maps.shape == (3, 10, 10) and np.allclose(wanted[0], maps, atol=1e-6)
    likeliest = pooled[0].argmax()
    assert step == steps[0, :, likeliest].argmax()
    assert f"v2.wav, step {step} of 10, {['Cat', 'Dog'][likeliest]} {steps[0, step, likeliest]:.2f}: " in text
    path = out / "video-audio-none-mean-softmax-0.pt"
    states = torch.load(path, weights_only=True)
    states[-1]["classifier.bias"] *= np.nan
    for content in (states, [], {}, "no"):
        torch.save(content, path)
        assert "does not hold the states of this run" in refused(capsys, *flags, "--attention", "v2.wav")
    path.write_bytes(b"PK")
    assert "does not hold the states of this run" in refused(capsys, *flags, "--attention", "v2.wav")
    # sound alone: its own clips, with or without video
    command(capsys, *flags, "--attention", "v1.wav", "--system", "audio-audio-none-max-softmax")
    assert drawn[-1][4:6] == ("audio", "audio") and len(drawn[-1][1]) == 0


def test_toy_data_by_default(tmp_path, capsys, monkeypatch):
    clips = {"strong": 3, "weak": 6, "unlabelled": 1, "validation": 4, "public": 4}
    monkeypatch.setattr(toy, "CLIPS", {"tagging": clips})
    monkeypatch.setattr(toy, "SOUNDS", {name: toy.SOUNDS[name] for name in ("Dog", "Speech", "Frying")})
    monkeypatch.chdir(tmp_path)
    text = command(capsys, "--epochs", 1, "--batches", 1)
    assert "TOY DATA" in text and "training       9 listed,     9 found,     9 with openl3" in text
    assert "| log-mel openl3 |" in text and len(list((tmp_path / "data/toy-tagging/sound/log-mel").iterdir())) == 18
    assert (tmp_path / "runs/boes2019-toy-tagging/video-audio-video-mean-sigmoid-0.json").exists()
