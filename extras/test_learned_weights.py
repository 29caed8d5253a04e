"""Tests of weights that depend on the clip"""

import json

import numpy as np
import torch

import avsed
import features
import train
from extras import learned_weights, toy
from extras.learned_weights import LEARNED, LearnedWeights
from extras.plumbing import InputError
from extras.test_bad_input import refused
from test_avsed import CPU, made_up, scored_data, small, write_tiny  # noqa: F401


def command(*flags):
    learned_weights.main(list(map(str, flags)))


def test_weights_sum_to_one_and_are_zero_for_a_missing_stream():
    torch.manual_seed(0)
    weigh = learned_weights.Weigher(3)
    memories = [torch.randn(4, 64, 128) for _ in range(3)]
    has_stream = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    weights = weigh(memories, has_stream)
    assert torch.allclose(weights.sum(1), torch.ones(4)) and torch.equal(weights[:, 1:] > 0, has_stream)
    assert torch.equal(weights[3], torch.tensor([1.0, 0.0, 0.0]))
    # by hand: a softmax over the streams that the clip has
    scores = torch.tensor([[worth(m[1].mean(0)).item() for worth, m in zip(weigh.worth, memories)]])
    assert torch.allclose(weights[1, :2], torch.softmax(scores[0, :2], 0))
    memories[2][1] = 1e9  # the missing memory of clip 1 does not matter
    assert torch.equal(weigh(memories, has_stream)[1], weights[1])


def test_other_weights_are_those_of_the_paper_and_learned_ones_differ_by_clip():
    torch.manual_seed(0)
    network = LearnedWeights(3, {"openl3": 7}).eval()
    plain = avsed.MultiEncoder(3, {"openl3": 7}).eval()
    plain.load_state_dict({name: x for name, x in network.state_dict().items() if not name.startswith("weigher.")})
    inputs = torch.randn(3, 512, 64), {"openl3": torch.randn(3, 64, 7)}, {"openl3": torch.tensor([True, True, False])}
    seen = []
    network.weigher.register_forward_hook(lambda module, inputs, weights: seen.append(weights))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network(*inputs, 0.75), plain(*inputs, 0.75)))
        learned = network(*inputs, LEARNED)
        assert torch.allclose(learned[0][2], plain(*inputs, 1.0)[0][2], atol=1e-6)  # clip 2 has no video
        assert not torch.allclose(learned[0][0], plain(*inputs, 1.0)[0][0], atol=1e-3)
    assert len(seen) == 1 and seen[0][0, 0] != seen[0][1, 0]
    network.train()(*inputs, LEARNED)[0].sum().backward()
    assert all(worth.weight.grad.abs().sum() > 0 for worth in network.weigher.worth)  # so they are learned


def test_a_run_from_the_first_batch_to_the_scores(tmp_path, small, capsys):  # noqa: F811
    root, out = write_tiny(tmp_path / "set"), tmp_path / "run"
    flags = "--visual openl3 --epochs 1 --batches 2 --batch-size 2 2 1".split()
    command("--data", root, "--out", out, *flags)
    report, printed = json.loads((out / "metrics.json").read_text()), capsys.readouterr().out
    assert report["infer_weight"] == report["config"]["train_weight"] == LEARNED
    assert set(report["by_weight"]) == {"1.0", LEARNED} and report["scores"] == report["by_weight"][LEARNED]
    assert set(report["scores"]["public"]) == set(train.SCORES)
    assert "acoustic weights of clips with video" in printed
    started = torch.load(out / "model.pt", weights_only=True)["weights"]
    assert "weigher.worth.1.weight" in started
    assert "neither --train-weight" in refused(capsys, *"--visual openl3 --train-weight 0.5".split(), command=command)
    assert "give --visual" in refused(capsys, "--data", root, command=command)


def test_the_acoustic_weight_of_each_clip_by_hand(small):  # noqa: F811
    network, rng = LearnedWeights(2, {"openl3": 7}), np.random.default_rng(0)
    for worth, bias in zip(network.weigher.worth, (0.0, np.log(3.0))):  # video is worth three times as much
        torch.nn.init.zeros_(worth.weight), torch.nn.init.constant_(worth.bias, bias)
    part = features.Partition("public", None, 3, ["a.wav", "b.wav", "c.wav"])
    part.log_mel = rng.standard_normal((3, 512, 64)).astype(np.float32)
    part.visual = {"openl3": rng.standard_normal((3, 64, 7)).astype(np.float32)}
    part.present = {"openl3": np.array([True, False, True])}
    units = {name: (np.zeros(n, np.float32), np.ones(n, np.float32)) for name, n in (("mel", 64), ("openl3", 7))}
    data = features.DataSet(["A", "B"], {}, units.pop("mel"), units)
    weights = learned_weights.acoustic_weights(network, data, part, CPU)
    assert np.allclose(weights, [0.25, 1, 0.25])


def test_scores_by_class_are_those_with_learned_weights(monkeypatch, small):  # noqa: F811
    data, scores = scored_data()
    part = data.partitions["validation"]
    scores["validation", LEARNED] = frame, clip = scores["validation", 0.25]
    monkeypatch.setattr(train, "predict", made_up(scores))
    choice = learned_weights.choose(None, data, CPU)
    tuned = train.tune_each_score(part, data.classes, frame, clip)
    assert choice.audio_weight == LEARNED and [*choice.tuned] == [*choice.scores] == [1.0, LEARNED]
    assert choice.by_class == train.evaluate_by_class(part, data.classes, frame, tuned)
    assert choice.scores[LEARNED] == train.evaluate(part, data.classes, frame, clip, tuned) != choice.scores[1.0]


def test_which_clips_the_printed_weights_are_of(monkeypatch):
    data, lines = scored_data()[0], []
    part, student = data.partitions["public"], avsed.MultiEncoder(2, {"openl3": 7})
    part.visual, part.present["openl3"] = {"openl3": None}, np.arange(8) < 4  # four clips have video
    seen = part.tags.copy()
    seen[0, 1] ^= True  # one class of the first clip is off screen, or silent
    monkeypatch.setattr(learned_weights, "classes_on_screen", lambda vectors: seen)
    monkeypatch.setattr(learned_weights, "acoustic_weights", lambda *_: np.array([0.05, 0.15, 0.25, 0.35, 1, 1, 1, 1]))
    learned_weights.describe_weights(student, data, CPU, lines.append, True)
    assert [line.split("|")[0].split()[-2:] for line in lines[1:]] == [["4", "0.200"], ["3", "0.250"], ["1", "0.050"]]
    assert lines[2].split("|")[1].split() == [*"0111000000"]


def test_a_run_without_a_folder_gets_one_of_its_own(monkeypatch, capsys):
    def stop(folder, resume):
        raise InputError(f"{folder}: here")

    monkeypatch.setattr(learned_weights.runs, "never_overwrite", stop)
    said = refused(capsys, "--visual", "openl3", command=command)
    assert "runs/toy-transformer-openl3-0-learned: here" in said
    assert "own: here" in refused(capsys, "--visual", "openl3", "--out", "own", command=command)


def test_the_toy_set_tells_what_is_on_screen():
    for width in toy.STREAMS.values():
        for seed in range(20):
            rng = np.random.default_rng(seed)
            vectors = toy.make_vectors(rng, [(1.0, 4.0, "Cat"), (2.0, 9.0, "Frying")], 10, width)
            rng = np.random.default_rng(seed)
            classes = np.array(list(toy.SOUNDS))
            hidden, silent = rng.random(10) < toy.OFF_SCREEN, rng.random(10) < toy.SILENT
            expected = (np.isin(classes, ["Cat", "Frying"]) & ~hidden) | silent
            assert (toy.classes_on_screen(vectors[None])[0] == expected).all(), seed
