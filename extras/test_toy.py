"""Tests of the toy data set: the same bytes for the same seed, complete or not there, nothing of the user's touched."""

import json
from pathlib import Path

import numpy as np
import pytest

from extras import toy
from features import PARTITIONS, InputError, load_dataset
from test_avsed import quiet


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def few_clips(monkeypatch, n, weak=None, kind="toy", public=None):
    clips = {**dict.fromkeys(PARTITIONS, n), "weak": weak or n, "public": public or n}
    monkeypatch.setattr(toy, "CLIPS", {**toy.CLIPS, kind: clips})


def test_toy_data_is_reproducible_and_complete(tmp_path, monkeypatch):
    few_clips(monkeypatch, 2)
    for name, seed in (("b", 0), ("c", 0), ("d", 1)):
        toy.make_toy(tmp_path / name, seed)
    assert files(tmp_path / "b") == files(tmp_path / "c")
    sounds, others = (sorted(root.rglob("Y*.wav")) for root in (tmp_path / "b", tmp_path / "d"))
    assert all(one.read_bytes() != other.read_bytes() for one in sounds for other in others)
    few_clips(monkeypatch, 4, weak=20)
    toy.make_toy(tmp_path / "a")
    data = load_dataset(tmp_path / "a", ["openl3", "tce"], log=quiet)
    assert len(data.classes) == 10 and {name: len(part) for name, part in data.partitions.items()} == toy.CLIPS["toy"]
    # 15.5 % have no video: of 4 clips 1, of 20 clips 3; of the strong ones all
    seen = {"strong": 0, "weak": 17, "unlabelled": 3, "validation": 3, "public": 3}
    for name, part in data.partitions.items():
        assert part.present["openl3"].sum() == seen[name]
        assert np.array_equal(part.present["openl3"], part.present["tce"])
    short = 0  # what ends early stands still in the picture from its end on, and nothing is true behind it
    for part in data.partitions.values():
        assert all(offset <= part.seconds[name] for name, _, offset, _ in part.events)
        for i in np.flatnonzero(part.present["openl3"] & (part.durations < 10)):
            after = np.arange(64) * 10 / 64 >= part.durations[i]
            assert np.ptp(part.visual["openl3"][i][after], axis=0).max() == 0
            short += 1
    assert short > 1
    marker = tmp_path / "a/toy.json"
    stamp = marker.stat().st_mtime_ns
    toy.make_toy(tmp_path / "a", 0)
    assert marker.stat().st_mtime_ns == stamp  # a finished one is left alone
    with pytest.raises(InputError, match="toy data of another version, seed or kind; move it away"):
        toy.make_toy(tmp_path / "a", 1)  # it may hold streams that the user made
    assert marker.stat().st_mtime_ns == stamp


def test_the_tagging_set_has_other_clips_all_with_pictures(tmp_path, monkeypatch):
    few_clips(monkeypatch, 2)
    few_clips(monkeypatch, 3, weak=12, kind="tagging")
    toy.make_toy(tmp_path / "toy")
    for name in "ab":
        toy.make_toy(tmp_path / name, kind="tagging")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    one, other = ({content for name, content in files(tmp_path / d).items() if "wav" in name} for d in ("toy", "a"))
    assert len(one) == 10 and len(other) == 24 and not one & other
    data = load_dataset(tmp_path / "a", ["openl3"], log=quiet)
    assert {name: len(part) for name, part in data.partitions.items()} == toy.CLIPS["tagging"]
    assert all(part.present["openl3"].all() for part in data.partitions.values())
    assert not (tmp_path / "a/visual/tce").exists()
    for kind in ("toy", "tagging"):
        toy.make_toy(tmp_path / ("toy" if kind == "toy" else "a"), kind=kind)  # is there
        with pytest.raises(InputError, match="toy data of another version, seed or kind; move it away"):
            toy.make_toy(tmp_path / ("a" if kind == "toy" else "toy"), kind=kind)


def test_the_large_set_differs_in_its_public_clips_alone(tmp_path, monkeypatch):
    few_clips(monkeypatch, 1)
    few_clips(monkeypatch, 1, public=7, kind="large")
    toy.make_toy(tmp_path / "toy")
    toy.make_toy(tmp_path / "large", kind="large")
    small, large = files(tmp_path / "toy"), files(tmp_path / "large")
    sounds = {name: content for name, content in small.items() if "audio" in name}
    assert len(sounds) == 5 and sounds.items() <= large.items()  # the public clips of both begin with the same
    here = {Path(name).stem for name in large if "visual/tce" in name and "publ" in name}
    assert len(here) == 6 and len([name for name in large if "audio/eval" in name]) == 7  # 15.5 % of 7: one without
    assert toy.CLIPS["large"].keys() == toy.CLIPS["toy"].keys()


def test_the_last_vector_of_a_short_clip_is_repeated():
    vectors = toy.make_vectors(np.random.default_rng(0), [(1.0, 3.0, "Dog")], 4, 128)
    last = 25  # its time is 25.5 * 10 / 64 = 3.98 s, that of the next one is beyond the end
    assert (vectors[last:] == vectors[last]).all() and (vectors[last] != vectors[last - 1]).any()


def test_events_are_where_a_clip_is_loud():
    alone = 0
    for seed in range(20):
        sound, events = toy.make_clip(np.random.default_rng(seed), 5, False)
        assert sound.shape == (80000,) and np.abs(sound).max() < 1 and events == sorted(events)
        assert all(0.2 <= onset <= offset - 0.25 < offset <= 5 for onset, offset, _ in events)
        if len(events) == 1:
            (onset, offset, _), alone = events[0], alone + 1
            inside = slice(round(onset * 16000), round(offset * 16000))
            assert np.mean(sound[inside] ** 2) > 2 * np.mean(np.delete(sound, inside) ** 2)
    assert alone > 1


def test_a_class_is_seen_while_it_sounds(monkeypatch):
    monkeypatch.setattr(toy, "OFF_SCREEN", 0)
    monkeypatch.setattr(toy, "SILENT", 0)
    for seed in range(4):
        vectors = toy.make_vectors(np.random.default_rng(seed), [(4.0, 8.0, "Cat")], 10, 128)
        cat = (vectors.astype(float) @ np.linalg.pinv(toy.visual_basis(128)))[:, list(toy.SOUNDS).index("Cat")]
        moments = np.flatnonzero(cat > 0.3) * 10 / 64
        assert 3 < moments.min() < 4.5 and 7.5 < moments.max() < 9  # to about a second


def test_the_folder_appears_only_when_complete(tmp_path, monkeypatch):
    def no_room(*args, **kwargs):
        raise OSError("disk full")

    few_clips(monkeypatch, 1)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="a: cannot be written .disk full"):
        patch.setattr(np, "save", no_room)  # by then there are sounds
        toy.make_toy(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()  # an empty folder is in nobody's way
    toy.make_toy(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "any").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "any").stat().st_mode  # others may read it too


def test_of_two_runs_at_once_the_first_one_wins(tmp_path, monkeypatch):
    few_clips(monkeypatch, 1)
    write, stamps = toy.write_partition, []

    def write_slowly(root, name, *arguments):
        write(root, name, *arguments)
        assert root.parent == tmp_path  # on the same disk: moving is no copying
        if name == "public":  # just before this run would move its folder, another one is done
            monkeypatch.setattr(toy, "write_partition", write)
            toy.make_toy(tmp_path / "a")
            stamps.append((tmp_path / "a/toy.json").stat().st_mtime_ns)

    monkeypatch.setattr(toy, "write_partition", write_slowly)
    toy.make_toy(tmp_path / "a")
    assert stamps == [(tmp_path / "a/toy.json").stat().st_mtime_ns]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_command(tmp_path, monkeypatch, capsys):
    few_clips(monkeypatch, 1)
    monkeypatch.chdir(tmp_path)
    toy.main([])
    toy.main(["other/toy", "--seed", "3"])
    few_clips(monkeypatch, 1, kind="tagging")
    toy.main(["--kind", "tagging"])
    assert json.loads((tmp_path / "data/toy-tagging/toy.json").read_text())["kind"] == "tagging"
    toy.make_toy(tmp_path / "again", 3)
    assert files(tmp_path / "data/toy") != files(tmp_path / "other/toy") == files(tmp_path / "again")
    assert capsys.readouterr().out.splitlines()[1].startswith("data   other/toy: ")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    for arguments, message in (
        (["mine"], "mine: holds something other than toy data; move it away"),
        (["other/toy"], "toy: holds toy data of another version, seed or kind; move it away"),
        (["mine/thesis.txt"], "thesis.txt"),
    ):
        with pytest.raises(SystemExit) as stop:
            toy.main(arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert files(tmp_path / "mine") == {"thesis.txt": b"all of it"}
    with pytest.raises(SystemExit) as stop:
        toy.main(["--seed", "-1"])
    assert stop.value.code == 2 and "--seed must be 0 or more" in capsys.readouterr().err
