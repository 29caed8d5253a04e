"""Tests of a run's folder: what is killed goes on, what is foreign or of another run is refused"""

import io
import json
import math
import os
import signal
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import features
import train
from extras import runs
from extras.plumbing import InputError
from extras.test_bad_input import refused
from extras.test_processes import Program
from test_avsed import CPU, LAYOUT, SHORT, quiet, run, same_weights, small, tiny_config, training_statistics  # noqa: F401
from test_avsed import scored_data, weights_of, write_tiny


DIES = """
import os, signal, sys
import test_avsed, train

test_avsed.shrink()
step = train.training_step

def training_step(*arguments):
    if arguments[-1] == 3:  # with two batches an epoch: in the middle of the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)

train.training_step = training_step
"""


def test_killed_run_resumes_to_the_same_weights(tmp_path, capsys, small):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    base = "--epochs 2 --batches 2 --batch-size 1 1 2 --train-weight random --visual openl3 tce".split()
    base += ["--data", write_tiny(tmp_path / "set", streams=("openl3", "tce"))]
    dies = Program("-c", f"{DIES}\ntrain.main(sys.argv[1:])", *base, "--out", killed)
    run(*base, "--out", whole)  # meanwhile
    dies.communicate()
    assert dies.returncode == -signal.SIGKILL
    assert torch.load(killed / "checkpoint.pt", weights_only=True)["epoch"] == 1 and not (killed / "model.pt").exists()
    assert "holds a run already" in refused(capsys, *base, "--out", killed)
    run(*base, "--out", killed, "--resume")
    assert "continuing after epoch 1 of 2" in (killed / "log.txt").read_text()
    assert same_weights(weights_of(whole), weights_of(killed))
    (columns, rows), seconds = history_of(killed), -6  # the only column that may differ
    assert columns[seconds] == "seconds" and [row[:2] for row in rows] == [["1", "2"], ["2", "4"]]
    assert [row[:seconds] + row[seconds + 1 :] for row in rows] == [
        row[:seconds] + row[seconds + 1 :] for row in history_of(whole)[1]
    ]
    scores = [json.loads((folder / "metrics.json").read_text())["scores"] for folder in (whole, killed)]
    stamp = (killed / "model.pt").stat().st_mtime_ns
    run(*base, "--out", killed, "--resume")  # a finished run is not repeated,
    assert "holds a run already" in refused(capsys, *base, "--out", killed)  # nor overwritten,
    assert "is of a run with seed 0" in refused(capsys, *base, "--out", killed, "--resume", "--seed", 1)  # nor mistaken
    assert (killed / "model.pt").stat().st_mtime_ns == stamp and scores[0] == scores[1]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_resumed_run_uses_the_statistics_of_its_checkpoint(tmp_path, monkeypatch, small):
    root, out, used = write_tiny(tmp_path / "set"), tmp_path / "r", []
    step, standardise = train.training_step, train.standardise
    flags = ["--data", root, "--out", out, *"--visual openl3 --epochs 2 --batches 1 --batch-size 1 1 1".split()]

    def interrupted(*arguments):
        if arguments[-1] == 1:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="interrupted; the same command with --resume"):
        patch.setattr(train, "training_step", interrupted)
        run(*flags)
    stored = torch.load(out / "checkpoint.pt", weights_only=True)
    for path in (root / "visual/openl3").iterdir():  # the same clips, seen by another network
        np.save(path, 2 * np.load(path) + 1)
    monkeypatch.setattr(train, "standardise", lambda x, pair: used.append(pair) or standardise(x, pair))
    run(*flags, "--resume")
    model = torch.load(out / "model.pt", weights_only=True)
    mel, visual = stored["mel_statistics"], stored["visual_statistics"]["openl3"]
    assert len(used) == 8  # the batch, validation twice, public; two streams each
    for pair in (*used, model["mel_statistics"], model["visual_statistics"]["openl3"]):
        assert any(torch.equal(pair[0], mean) and torch.equal(pair[1], std) for mean, std in (mel, visual))
    assert not np.allclose(training_statistics(root)[2], visual[0], atol=0.1)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys, small):
    terms, step = torch.ones(3, 4), train.training_step
    terms[1, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="iteration 11: weak 1, strong 1, clip_consistency nan"):
        runs.check_losses(terms.tolist(), 10)
    monkeypatch.setattr(train, "training_step", lambda *arguments: step(*arguments) * math.inf)
    flags = "--epochs 1 --batches 1 --batch-size 1 1 1 --out".split()
    error = refused(capsys, "--data", write_tiny(tmp_path / "set"), *flags, tmp_path / "r")
    assert "the loss is not finite at iteration 0" in error and not (tmp_path / "r/checkpoint.pt").exists()


def test_a_folder_at_work_and_changed_labels_are_refused(tmp_path, capsys, small):
    root, out = write_tiny(tmp_path / "set"), tmp_path / "r"
    flags = ["--data", root, "--out", out, *"--epochs 1 --batches 1 --batch-size 1 1 1".split()]
    hold = "import sys, time; from extras import runs; from pathlib import Path\n"
    hold += "with runs.claimed(Path(sys.argv[1])) as mine:\n print(mine, flush=True); time.sleep(60)"
    other = Program("-c", hold, out)
    assert other.stdout.readline() == "True\n"
    assert "another process is at work there" in refused(capsys, *flags)
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    run(*flags)  # a claim ends with its process
    for name, old, new in (("weak", "w2.wav\tDog", "w2.wav\tCat"), ("validation", "0.500\t1.200", "0.500\t1.300")):
        table = root / "metadata" / LAYOUT[name][0]
        text = table.read_text()
        table.write_text(text.replace(old, new))
        assert "is of a run with other data" in refused(capsys, *flags, "--resume")
        table.write_text(text)


def deflated(content):
    """What torch saves, compressed: a small file may then hold gigabytes"""
    plain, small = io.BytesIO(), io.BytesIO()
    torch.save({**content, "x": torch.zeros(100_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return small.getvalue()


def test_bad_checkpoints_get_one_line(tmp_path, capsys, small):
    root = write_tiny(tmp_path / "set")
    data, config = features.load_dataset(root, ["openl3"], log=quiet), tiny_config(root)
    good = runs.description(config, data) | {"epoch": 1, "student": {}, "teacher": {}, "optimizer": {}}

    class Payload:  # what unpickling would run if it were allowed to
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    cases = {
        "garbage": (b"not a checkpoint", "not a checkpoint of this program"),
        "a dot": (b".", "not a checkpoint of this program"),
        "code": ({"x": Payload()}, "not a checkpoint of this program"),
        "other program": ({"model": 1}, "was not written by this program"),
        "a list": ([1, 2], "was not written by this program"),
        "no statistics": ({**good, "visual_statistics": None}, "was not written by this program"),
        "base": ({**good, "config": {**good["config"], "base": "conformer"}}, "is of a run with base conformer"),
        "classes": ({**good, "classes": ["Fox"]}, "is of a run with other data"),
        "weights": ({**good, "student": {"cnn.0.0.weight": torch.zeros(3)}}, "another architecture"),
        "compressed": (deflated(good), "not a checkpoint of this program (compressed)"),
    }
    flags = ["--data", root, "--visual", "openl3", *SHORT, "--resume", "--out"]
    for name, (content, message) in cases.items():
        path = tmp_path / name / "checkpoint.pt"
        path.parent.mkdir()
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        error = refused(capsys, *flags, path.parent)
        assert f"{path}: " in error and message in error, (name, error)
    assert not (tmp_path / "executed").exists()
    torch.save({"model": 1}, path.parent / "model.pt")  # neither is a foreign file taken for a finished run
    for content in (None, b"half of it"):
        if content:
            (path.parent / "model.pt").write_bytes(content)
        error = refused(capsys, *flags, path.parent)
        assert "model.pt: " in error and ("by this program" in error or "of this program" in error)
        assert error.endswith("; move it away, and the run goes on from checkpoint.pt\n")  # which suffices


def test_checkpoints_must_have_the_form_of_those_that_are_written(tmp_path, small):
    root = write_tiny(tmp_path / "set")
    data, config = features.load_dataset(root, ["openl3"], log=quiet), tiny_config(root)
    student, teacher, optimizer = parts = train.new_networks(config, data, CPU)
    train.training_step(*parts, train.training_batch(train.load_clips(data, ["openl3"], CPU), config, 0), config, 0)
    runs.keeper(tmp_path, config, data)(1, *parts, [0.1] * 4, {"EBF1": 0.5})
    path = tmp_path / "checkpoint.pt"
    good = torch.load(path, weights_only=True)
    fresh, both = train.new_networks(config, data, CPU), data.visual_statistics | {"tce": ()}
    resumed, epochs = runs.resume(tmp_path, config, replace(data, visual_statistics=both), *fresh)
    assert epochs == 1 and [*resumed.visual_statistics] == ["openl3", "tce"]  # each case below has one fault
    assert same_weights(fresh[0].state_dict(), good["student"]) and same_weights(fresh[1].state_dict(), good["teacher"])
    momenta = ([values["exp_avg"] for values in o.state.values()] for o in (optimizer, fresh[2]))
    assert all(map(torch.equal, *momenta))
    first = {**good["student"], "token": good["student"]["token"] * math.nan}
    momenta = {**good["optimizer"]["state"], 0: {**good["optimizer"]["state"][0], "exp_avg": torch.zeros(3)}}
    other = torch.optim.SGD(student.parameters(), lr=1).state_dict()
    cases = {
        "config": ({**good, "config": 1}, "was not written by this program"),
        "a tensor": ({**good, "config": {**good["config"], "seed": torch.ones(2)}}, "was not written by this program"),
        "broadcast": ({**good, "mel_statistics": [torch.ones(1)] * 2}, "was not written by this program"),
        "nan": ({**good, "student": first}, "of another architecture or optimizer, or damaged"),
        "other optimizer": ({**good, "optimizer": other}, "of another architecture or optimizer"),
        "momenta": ({**good, "optimizer": {**good["optimizer"], "state": momenta}}, "of another architecture or"),
    }
    cases |= {f"epoch {n}": ({**good, "epoch": n}, "or damaged .epoch.") for n in (-1, 0, 1.0, True, 99)}
    for content, message in cases.values():
        torch.save(content, path)
        with pytest.raises(InputError, match=f"checkpoint.pt: .*{message}"):
            runs.resume(tmp_path, config, data, *parts)
    groups = [{**group, "an option of another torch": 1} for group in good["optimizer"]["param_groups"]]
    torch.save({**good, "optimizer": {**good["optimizer"], "param_groups": groups}}, path)
    assert runs.resume(tmp_path, config, data, *parts)[1] == 1  # that is no damage
    more = {i: {**values, "of another torch": torch.zeros(1)} for i, values in good["optimizer"]["state"].items()}
    torch.save({**good, "optimizer": {**good["optimizer"], "state": more}}, path)
    assert runs.resume(tmp_path, config, data, *parts)[1] == 1  # nor is that


def test_a_finished_run_must_have_all_scores(tmp_path):
    root = write_tiny(tmp_path / "set")
    data, config = features.load_dataset(root, ["openl3"], log=quiet), tiny_config(root)
    scores = {"PSDS2": 0.1, "PSDS1": 0.2, "EBF1": None, "SBF1": 0.3, "CBF1": 0.4}  # in another order
    report = runs.description(config, data) | {"infer_weight": 1.0, "streams": ["openl3"]}
    parts = {"validation": scores, "public": scores}
    whole = report | {"scores": parts, "by_weight": {"1.0": parts}}
    runs.check_report(whole, "model.pt", scores, (1.0,))
    with pytest.raises(InputError, match="model.pt: its scores are damaged"):
        runs.check_report(whole, "model.pt", scores, (0.75, 1.0))
    deep = []
    for _ in range(10_000):
        deep = [deep]
    for odd in ({"infer_weight": "1.0"}, {"scores": deep}, {"by_weight": {"1.0": {**parts, "with_video": {}}}}):
        with pytest.raises(InputError, match="model.pt: its scores are damaged; move its folder away"):
            runs.check_report({**whole, **odd}, "model.pt", scores, (1.0,))
    for name in (None, *scores):  # none is missing, then one after the other
        kept = {key: score for key, score in scores.items() if key != name}
        parts = {"validation": scores, "public": kept}
        torch.save(report | {"scores": parts, "by_weight": {"1.0": parts}}, tmp_path / "model.pt")
        if name is None:
            moved = replace(config, data="elsewhere")
            finished = runs.finished_report(tmp_path, moved, data, train.SCORES)
            assert train.row(config, finished).split()[-5:] == ["40.00", "30.00", "-", "0.2000", "0.1000"]
        else:
            with pytest.raises(InputError, match="model.pt: its scores are damaged"):
                runs.finished_report(tmp_path, config, data, train.SCORES)


def history_of(folder):
    header, *rows = [line.split("\t") for line in (folder / "history.tsv").read_text().splitlines()]
    return header, rows


def test_history_has_a_row_for_each_epoch_and_no_other(tmp_path):
    path = tmp_path / "history.tsv"
    for number, loss in ((1, 0.5), (2, 0.25), (3, 0.125), (2, 1 / 3)):  # killed before epoch 3 was kept, and resumed
        runs.add_row(path, number, {"epoch": number, "loss": loss})
    assert path.read_text() == "epoch\tloss\n1\t0.5\n2\t0.333333\n"


def test_a_row_has_the_losses_by_name_and_the_epochs_own_seconds(tmp_path, monkeypatch):
    data, now = scored_data()[0], [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.RAdam(network.parameters(), lr=1e-3)
    keep = runs.keeper(tmp_path, tiny_config(""), data)
    for epoch, seconds, rate in ((1, 7, 1e-3), (2, 5, 1e-4)):
        now[0] += seconds
        optimizer.param_groups[0]["lr"] = rate
        keep(epoch, network, network, optimizer, [1.0, 2.0, 3.0, 4.0], {"EBF1": 0.5})
    columns, rows = history_of(tmp_path)
    assert columns[:4] == ["epoch", "iteration", "weak", "strong"]  # in the order of training_step's losses
    assert rows == [["1", "2", *"1234", "0.001", "7", "0.5"], ["2", "4", *"1234", "0.0001", "5", "0.5"]]


def test_the_log_of_an_epoch_by_hand(monkeypatch):
    """Of a run that goes on after its first of three epochs, with two iterations each, which take ten seconds"""
    now, lines, kept = [0.0], [], []

    def step(student, teacher, optimizer, batch, config, t):
        now[0] += 10
        return torch.tensor([float(t), 10.0 * t, 1.0, 2.0 if t < 5 else math.nan])  # weak, strong, consistencies

    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(train, "training_batch", lambda *_: None)
    monkeypatch.setattr(train, "training_step", step)
    monkeypatch.setattr(train, "validate", lambda *_: ({"EBF1": 0.5, "PSDS1": 0.25}, 0.875))
    clips, network = SimpleNamespace(share=(0, 1), device=CPU), torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="iteration 5: weak 5, strong 50"):
        config = tiny_config("", epochs=3)
        train.train(config, None, clips, network, None, None, lines.append, 1, lambda *epoch: kept.append(epoch))
    assert lines == [
        "epoch   2/3 | strong 25.0000 | weak 2.5000 | consistency 3.0000 | lr 1.0e-03 | 10000 ms | 0:20 left",
        "valid   2/3 | EBF1 50.00 | PSDS1 0.2500 | acoustic weight 0.875",
    ]
    assert [(epoch, losses) for epoch, *_, losses, _ in kept] == [(2, [2.5, 25, 1, 2])]


def test_other_clips_labels_or_videos_are_other_data():
    def of(**changes):
        data = scored_data()[0]
        public = data.partitions["public"]
        for name, value in changes.items():
            setattr(public, name, value)
        return runs.description(tiny_config(""), data)["data"]

    public = scored_data()[0].partitions["public"]
    others = dict(filenames=public.filenames[::-1]), dict(events=public.events[1:]), dict(tags=~public.tags)
    seen = dict(present={"openl3": ~public.present["openl3"]})
    assert len({of(), *(of(**changes) for changes in (*others, seen))}) == 5 and of() == of()


def test_scores_end_with_the_clip_and_not_a_frame_later(tmp_path):
    times = 0.1565 * np.arange(65)
    runs.write_scores(tmp_path, ["a.wav"], ["A"], np.ones((1, 64, 1)), 0.1565, [times[4]])
    rows = [line.split("\t")[:2] for line in (tmp_path / "a.tsv").read_text().splitlines()[1:]]
    assert [[float(x) for x in row] for row in rows] == [[a, b] for a, b in zip(times[:4], times[1:5])]


def test_a_run_has_a_folder_of_its_own_by_default():
    for flags, folder in (
        ("--seed 3", "runs/toy-transformer-audio-3"),
        ("--data data/set --visual a b --base conformer", "runs/set-conformer-a-b-0"),
        ("--out x/y --visual a", "x/y"),
    ):
        assert str(train.config_of(train.parse_arguments(flags.split()))[1]) == folder


def test_a_row_is_of_public_evaluation():
    scores = {name: dict.fromkeys(train.SCORES, value) for name, value in (("validation", 0.1), ("public", 0.2))}
    heading, row = train.row(tiny_config(""), {"infer_weight": 0.75, "scores": scores}).split("\n")
    assert row.split() == ["transformer", "+", "openl3", "0.75", "0.25", "20.00", "20.00", "20.00", "0.2000", "0.2000"]
    assert heading.split()[1:] == [*train.SCORES] and train.encoder_weights(0.75, 2) == "0.75 0.125 0.125"


def test_streams_stay_in_the_order_that_was_asked_for(small):
    data = scored_data()[0]
    data.visual_statistics |= {"tce": [np.zeros(3), np.ones(3)]}
    student, *_ = train.new_networks(tiny_config("", visual=("tce", "openl3")), data, CPU)
    assert student.streams == ["tce", "openl3"] and [x[0].in_features for x in student.visual_inputs] == [3, 1]
