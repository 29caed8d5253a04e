"""Tests of clips and their classes: which clips, with which labels, what is heard and seen of them, what is refused;
scores, reports, flags
"""

import json
import math

import numpy as np
import pytest
import torch

import features
from extras import plumbing, tagging
from extras.tagging import Part, load_tagging, mean_auc, mean_average_precision
from features import InputError
from test_avsed import quiet, same, write_tiny


def loudness(path):
    return np.abs(features.load_audio(path)).reshape(10, -1).mean(1)


def first_vectors(vectors):
    return vectors[:3]


def load(root, visual="openl3", log=quiet, **more):
    return load_tagging(root, loudness, visual, first_vectors, root.parent / "cache", log=log, **more)


def test_clips_of_the_strong_and_weak_lists(tmp_path):
    root, lines = write_tiny(tmp_path / "set"), []
    classes, parts = load(root, log=lines.append)
    data = features.load_dataset(root, ["openl3"], log=quiet)
    strong, weak, public = (data.partitions[name] for name in ("strong", "weak", "public"))
    train = parts["training"]
    assert classes == data.classes and train.filenames == strong.filenames + weak.filenames
    assert np.array_equal(train.tags, np.concatenate([strong.tags, weak.tags]))
    assert train.present.tolist() == [False] * 4 + weak.present["openl3"].tolist()
    assert not train.video[:4].any() and np.array_equal(train.video[4:], weak.visual["openl3"][:, :3])
    assert any("training       8 listed,     8 found,     4 with openl3" in line for line in lines)
    assert any("       audio of training: 8 clips" in line for line in lines)
    assert any("       openl3 of training: 8 clips" in line for line in lines) and "loudness" not in "".join(lines)
    assert parts["public"].filenames == public.filenames and np.array_equal(parts["public"].tags, public.tags)
    heard = [loudness(path) for path in public.paths]
    assert np.array_equal(parts["public"].audio, heard)
    # once more, never with what is out of date: vectors that are no numbers, a sound that is gone
    rotten = weak.filenames[2]
    np.save(root / f"visual/openl3/{rotten[:-4]}.npy", np.full((64, 6), np.nan, np.float16))
    public.paths[0].unlink()
    _, parts = load(root)
    assert parts["training"].present.tolist() == [False] * 4 + [f != rotten for f in weak.filenames]
    assert parts["public"].filenames == public.filenames[1:] and np.array_equal(parts["public"].audio, heard[1:])


def test_three_lists_of_clip_labels_are_enough(tmp_path):
    root = write_tiny(tmp_path / "set")
    for table in ("train/synthetic20/soundscapes.tsv", "train/unlabel_in_domain.tsv"):
        (root / "metadata" / table).unlink()
    classes, before = load(root, None)
    assert len(before["training"].filenames) == 4 and before["training"].video is None
    assert not before["training"].present.any()
    for name, table in (("validation", "validation/validation.tsv"), ("public", "eval/public.tsv")):
        labels = [",".join(c for c, on in zip(classes, tags) if on) for tags in before[name].tags]
        lines = [f"{f}\t{label}" for f, label in zip(before[name].filenames, labels)]
        (root / "metadata" / table).write_text("\n".join(["filename\tevent_labels", *lines]) + "\n")
    _, after = load(root, None)
    for name in before:
        assert before[name].tags.any() and np.array_equal(before[name].tags, after[name].tags)


def test_a_folder_of_arrays_in_place_of_sound(tmp_path):
    root = write_tiny(tmp_path / "set")
    (root / "sound/some").mkdir(parents=True)
    for path in (root / "audio").rglob("*.wav"):
        np.save(root / "sound/some" / f"{path.stem}.npy", np.full(2, len(path.stem)))
    (root / "sound/some/v0.npy").unlink()
    _, parts = load_tagging(root, np.load, None, None, tmp_path / "cache", "sound/some", quiet)
    assert [f for f in parts["validation"].filenames] == ["v1.wav", "v2.wav", "v3.wav"]
    assert parts["public"].audio.tolist() == [[len(f) - 4] * 2 for f in parts["public"].filenames]


def test_a_test_clip_under_another_name_is_not_trained_on(tmp_path):
    root = write_tiny(tmp_path / "set")
    weak, public = root / "metadata/train/weak.tsv", root / "metadata/eval/public.tsv"
    names = [table.read_text().splitlines()[1].split("\t")[0] for table in (weak, public)]
    second, validation = weak.read_text().splitlines()[2].split("\t")[0], root / "metadata/validation/validation.tsv"
    for table, folder, old, new in (
        (weak, "train/weak", names[0], "Yabcdefghijk_30.000_40.000.wav"),
        (public, "eval/public", names[1], "abcdefghijk_30_40.wav"),
        (weak, "train/weak", second, "Ylmnopqrstuv_0.000_10.000.wav"),
        (validation, "validation", "v2.wav", "lmnopqrstuv_0_10.wav"),
    ):
        table.write_text(table.read_text().replace(old, new))
        (root / "audio" / folder / old).rename(root / "audio" / folder / new)
    _, parts = load(root, None)
    train = parts["training"]
    assert "abcdefghijk_30_40.wav" in parts["public"].filenames
    assert len(train.filenames) == 6 and not any("abcdefgh" in f or "lmnopqrs" in f for f in train.filenames)
    sounds = [next((root / "audio/train").rglob(f)) for f in train.filenames]
    assert np.array_equal(train.audio, [loudness(path) for path in sounds])  # those that follow keep their own


def test_vectors_stay_with_their_clip(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones(3))
    for paths in ([None, path], [path, None]):  # the same file, of another clip
        rows = tagging.gather(np.load, "x", paths, np.load, tmp_path / "cache", quiet)
        assert rows.tolist() == [[0.0 if of is None else 1.0] * 3 for of in paths]


def test_what_bad_input_gets(tmp_path):
    root = write_tiny(tmp_path / "set")

    def refused(*arguments):
        with pytest.raises(InputError) as error:
            load(*arguments)
        return str(error.value)

    assert "no: no such folder; --data wants" in refused(tmp_path / "no")
    with pytest.raises(InputError, match="set/sound/vggish: no such folder; extras/README.md says how to make it"):
        load(root, sound="sound/vggish")
    assert "vgg16: no such folder" in refused(root, "vgg16")
    table = root / "metadata/validation/validation.tsv"
    whole = table.read_text()
    table.write_text(whole + "v0.wav\t0\t1\tTram\n")
    assert "the class 'Tram' of validation is in no training clip" in refused(root)
    table.write_text(whole.split("\n")[0] + "\nv0.wav\t\t\t\n")
    assert "of 1 clips listed for validation, none with a label is there" in refused(root)
    table.unlink()
    assert "validation.tsv: no such file" in refused(root)
    table.write_text(whole)
    odd = next((root / "visual/openl3").glob("Yaaa*"))  # of the first training clip that has vectors
    np.save(odd, np.zeros((64, 7), np.float16))
    assert f"{odd}: has the shape (64, 7) where (64, 6) is wanted" in refused(root)
    for path in (root / "visual/openl3").glob("*.npy"):
        np.save(path, np.full((64, 6), np.inf, np.float16))
    assert "no vectors of finite numbers for any clip of training" in refused(root)


def test_inputs_are_standardised_by_the_last_dimension_of_training_clips(tmp_path):
    parts = load(write_tiny(tmp_path / "set"))[1]
    train, public = parts["training"], parts["public"]
    rows = train.video[train.present].reshape(-1, 6).astype(float)  # three vectors of each clip with video
    wanted = (public.video[[2, 0]] - rows.mean(0)) / rows.std(0)
    assert np.allclose(public.inputs("video", [2, 0], torch.device("cpu")), wanted, atol=1e-3)
    mean, deviation = train.audio.mean(0), train.audio.std(0)
    heard = public.inputs("audio", np.array([1]), torch.device("cpu"))
    assert np.allclose(heard, (public.audio[[1]] - mean) / np.maximum(deviation, 1e-3), atol=1e-3)
    assert (train.inputs("video", [0, 4], "cpu")[0] == 0).all()  # no video: the mean
    assert (train.inputs("video", [0, 4], "cpu")[1] != 0).any()
    assert train.clips().tolist() == [*range(8)] and train.clips(with_video=True).tolist() == [4, 5, 6, 7]


def test_other_clips_labels_or_videos_have_another_hash():
    def of(names="ab", tags=((1, 0), (0, 1)), present=(True, False), classes=("Cat", "Dog"), with_video=False):
        part = Part(2, list(names), np.array(tags, bool), [], present=np.array(present))
        return tagging.identity(list(classes), {"public": part}, with_video)

    changed = (dict(names="ac"), dict(tags=((1, 0), (1, 1))), dict(classes=("Cat", "Cow")))
    assert len({of(), *(of(**change) for change in changed)}) == 4
    assert of(present=(True, True)) == of() != of(with_video=True) != of(with_video=True, present=(True, True))
    assert of(with_video=True, names="ac") == of(with_video=True)  # the other clip is not used


def test_average_precision_and_auc_by_hand():
    targets, scores = np.array([[1], [0], [1], [0]]), np.array([[0.9], [0.8], [0.7], [0.1]])
    assert same(mean_average_precision(targets, scores), (1 + 2 / 3) / 2)
    assert same(mean_auc(targets, scores), 0.75)
    assert same(mean_auc(targets, np.zeros((4, 1))), 0.5)
    assert same(mean_average_precision(targets, np.zeros((4, 1))), 0.5)
    assert math.isnan(mean_auc(targets * 0, scores)) and math.isnan(mean_auc(targets * 0 + 1, scores))
    assert math.isnan(mean_average_precision(targets * 0, scores))
    # ties: at 0.5 a positive and two negatives come together, at 0.2 two positives and a negative
    targets, scores = np.array([[1, 0, 0, 1, 1, 1, 0]]).T, np.array([[0.5, 0.5, 0.5, 0.9, 0.2, 0.2, 0.2]]).T
    assert same(mean_average_precision(targets, scores), (1 / 1 + 2 / 4 + 2 * 4 / 7) / 4)
    pairs = 3 + (1 + 0.5 + 0.5) + 2 * 0.5  # of 12: 0.9 beats three, 0.5 beats one and ties with two, each 0.2 ties
    assert same(mean_auc(targets, scores), pairs / 12)
    # classes count alike, however many clips they have; one without a positive clip is left out
    targets = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    scores = np.array([[0.1, 0.9, 1], [0.2, 0.3, 1], [0.3, 0.4, 1]])
    assert same(mean_average_precision(targets, scores), (1 / 3 + (1 + 2 / 3) / 2) / 2)
    assert same(mean_auc(targets, scores), (0 + 0.5) / 2)


def random_scores(seed=0, shape=(40, 4)):
    rng = np.random.default_rng(seed)
    targets, scores = rng.random(shape) < 0.3, rng.integers(0, 6, shape) / 5
    targets[:, -1] = False  # a class without positive clip is left out
    return targets, scores


def test_average_precision_and_auc_by_pairs_and_ranks():
    targets, scores = random_scores()
    columns = [(t, s) for t, s in zip(targets.T, scores.T) if t.any()]
    pairs = [np.mean([(p > q) + 0.5 * (p == q) for p in s[t] for q in s[~t]]) for t, s in columns]
    assert same(mean_auc(targets, scores), np.mean(pairs))
    precisions = [np.mean([t[s >= p].mean() for p in s[t]]) for t, s in columns]  # at the rank of each positive clip
    assert same(mean_average_precision(targets, scores), np.mean(precisions))


def test_average_precision_and_auc_beside_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    for seed in range(20):
        targets, scores = random_scores(seed)
        columns = [(t, s) for t, s in zip(targets.T, scores.T) if t.any()]
        wanted = np.mean([sklearn.average_precision_score(t, s) for t, s in columns])
        assert same(mean_average_precision(targets, scores), wanted)
        assert same(mean_auc(targets, scores), np.mean([sklearn.roc_auc_score(t, s) for t, s in columns]))


def test_one_threshold_for_all_classes_is_chosen_on_validation():
    rng, tags, scores = np.random.default_rng(3), {}, {}
    for name, n in (("validation", 40), ("public", 60)):
        tags[name] = rng.random((n, 3)) < 0.4
        noise = rng.integers(0, 21, (n, 3)) / 40
        scores[name] = (0.3 * tags[name] + noise + (0.2 if name == "public" else 0)).astype(np.float32)

    def micro(name, threshold):
        found = scores[name].astype(float) > threshold
        return 2 * np.sum(found & tags[name]) / (found.sum() + tags[name].sum())

    got = tagging.score(tags, scores)
    f1 = {name: {t / 100: micro(name, t / 100) for t in range(1, 100)} for name in tags}
    best, other = (max(f1[name].values()) for name in ("validation", "public"))
    assert f1["validation"][got["threshold"]] == best and f1["public"][got["threshold"]] < other
    assert same(got["F1"], micro("public", got["threshold"])) and got.keys() == {"F1", "mAP", "mAUC", "threshold"}
    equals = [t for t, value in f1["validation"].items() if value == best]
    assert len(equals) > 1 and got["threshold"] == min(equals, key=lambda t: abs(t - 0.5))  # the one next to 0.5
    assert same(got["mAP"], mean_average_precision(tags["public"], scores["public"]))
    assert same(got["mAUC"], mean_auc(tags["public"], scores["public"]))
    sure = np.array([[0.9, 0.1], [0.1, 0.8]])
    assert tagging.score(*(dict.fromkeys(tags, x) for x in (sure > 0.5, sure)))["threshold"] == 0.5  # many are as good
    just = {"validation": sure, "public": np.array([[0.9, 0.5], [0.1, 0.8]])}  # what is at the threshold is not above
    assert tagging.score(dict.fromkeys(tags, sure > 0.5), just)["F1"] == 1


def test_mean_and_deviation():
    assert tagging.mean_and_deviation([1.0, 2.0, 4.0], 2) == "2.33 ± 1.53"  # sqrt((16 + 1 + 25) / 9 / 2) = 1.53
    assert tagging.mean_and_deviation([70.149], 1) == "70.1"


def test_a_report_is_of_the_same_run_or_refused(tmp_path):
    path, wanted = tmp_path / "r.json", {"epochs": 3, "positions": ("video",)}
    assert tagging.read_report(path, wanted) is None
    path.write_text(json.dumps({**wanted, "F1": 0.5}))
    assert tagging.read_report(path, wanted) == {"epochs": 3, "positions": ["video"], "F1": 0.5}
    plumbing.write_text(path, plumbing.json_text({**wanted, "F1": math.nan}))
    assert "null" in path.read_text() and math.isnan(tagging.read_report(path, wanted)["F1"])
    with pytest.raises(InputError, match="r.json: is of a run with epochs 3, not 4; give the same flags, or name"):
        tagging.read_report(path, {**wanted, "epochs": 4})
    assert math.isnan(tagging.read_report(path, wanted, {"F1": 0.0})["F1"])
    for form in ({"F1": 0}, {"F1": ""}, {"mAP": 0.0}):
        with pytest.raises(InputError, match="r.json: was not written by this program; name another --out"):
            tagging.read_report(path, wanted, form)
    for content in ("{}", "[]", "{", "3", "\udcff", "[" * 100_000, json.dumps(wanted).replace("3", "1e400")):
        path.write_text(content, errors="surrogateescape")
        with pytest.raises(InputError, match="r.json: was not written by this program; name another --out"):
            tagging.read_report(path, wanted)
