"""Tests of weights that depend on the clip"""

import json

import numpy as np
import torch

import avsed
import train
from extras import learned_weights, toy
from extras.learned_weights import LEARNED, LearnedWeights
from extras.test_bad_input import refused
from test_avsed import small, write_tiny  # noqa: F401


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
