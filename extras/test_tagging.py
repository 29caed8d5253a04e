"""Tests of clips and their classes: which clips, with which labels, what is heard and seen of them, what is refused;
ranking metrics
"""

import math

import numpy as np
import pytest

import features
from extras.tagging import load_tagging, mean_auc, mean_average_precision
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
    for table, folder, old, new in (
        (weak, "train/weak", names[0], "Yabcdefghijk_30.000_40.000.wav"),
        (public, "eval/public", names[1], "abcdefghijk_30_40.wav"),
    ):
        table.write_text(table.read_text().replace(old, new))
        (root / "audio" / folder / old).rename(root / "audio" / folder / new)
    _, parts = load(root, None)
    assert "abcdefghijk_30_40.wav" in parts["public"].filenames
    assert len(parts["training"].filenames) == 7 and not any("abcdefgh" in f for f in parts["training"].filenames)


def test_what_bad_input_gets(tmp_path):
    root = write_tiny(tmp_path / "set")

    def refused(*arguments):
        with pytest.raises(InputError) as error:
            load(*arguments)
        return str(error.value)

    assert "no: no such folder; --data wants" in refused(tmp_path / "no")
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
    for path in (root / "visual/openl3").glob("*.npy"):
        np.save(path, np.full((64, 6), np.inf, np.float16))
    assert "no vectors of finite numbers for any clip of training" in refused(root)


def test_average_precision_and_auc():
    targets, scores = np.array([[1], [0], [1], [0]]), np.array([[0.9], [0.8], [0.7], [0.1]])
    assert same(mean_average_precision(targets, scores), (1 + 2 / 3) / 2)
    assert same(mean_auc(targets, scores), 0.75)
    assert same(mean_auc(targets, np.zeros((4, 1))), 0.5)
    assert same(mean_average_precision(targets, np.zeros((4, 1))), 0.5)
    assert math.isnan(mean_auc(targets * 0, scores)) and math.isnan(mean_auc(targets * 0 + 1, scores))
    assert math.isnan(mean_average_precision(targets * 0, scores))
    rng = np.random.default_rng(0)
    targets, scores = rng.random((30, 4)) < 0.3, rng.integers(0, 6, (30, 4)) / 5
    targets[:, 3] = False  # a class without positive clip is left out
    columns = [(t, s) for t, s in zip(targets.T, scores.T) if t.any()]
    pairs = [np.mean([(p > q) + 0.5 * (p == q) for p in s[t] for q in s[~t]]) for t, s in columns]
    assert same(mean_auc(targets, scores), np.mean(pairs))
    precisions = [np.mean([t[s >= p].mean() for p in s[t]]) for t, s in columns]  # at the rank of each positive clip
    assert same(mean_average_precision(targets, scores), np.mean(precisions))
