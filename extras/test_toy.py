"""Tests of the toy data set: the same bytes for the same seed, complete or not there, nothing of the user's touched."""

import numpy as np
import pytest

from extras import toy
from features import PARTITIONS, InputError, load_dataset
from test_avsed import quiet


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def few_clips(monkeypatch, n, weak=None):
    monkeypatch.setattr(toy, "CLIPS", {**dict.fromkeys(PARTITIONS, n), "weak": weak or n})


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
    assert len(data.classes) == 10 and {name: len(part) for name, part in data.partitions.items()} == toy.CLIPS
    # 15.5 % have no video: of 4 clips 1, of 20 clips 3; of the strong ones all
    seen = {"strong": 0, "weak": 17, "unlabelled": 3, "validation": 3, "public": 3}
    for name, part in data.partitions.items():
        assert part.present["openl3"].sum() == seen[name]
        assert np.array_equal(part.present["openl3"], part.present["tce"])
    marker = tmp_path / "a/toy.json"
    stamp = marker.stat().st_mtime_ns
    toy.make_toy(tmp_path / "a", 0)
    assert marker.stat().st_mtime_ns == stamp  # a finished one is left alone
    with pytest.raises(InputError, match="toy data of another version or seed; move it away"):
        toy.make_toy(tmp_path / "a", 1)  # it may hold streams that the user made
    assert marker.stat().st_mtime_ns == stamp


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

    def write_slowly(root, name, number, seed):
        write(root, name, number, seed)
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
    toy.make_toy(tmp_path / "again", 3)
    assert files(tmp_path / "data/toy") != files(tmp_path / "other/toy") == files(tmp_path / "again")
    assert capsys.readouterr().out.splitlines()[1].startswith("data   other/toy: ")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    for arguments, message in (
        (["mine"], "mine: holds something other than the toy data set; move it away"),
        (["other/toy"], "toy: holds toy data of another version or seed; move it away"),
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
