"""Tests of the tables of runs."""

import contextlib
import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
import torch

import features
import metrics
import train
from extras import plots, runs, tables
from extras.test_processes import Program
from metrics import PSDS1, PSDS2
from test_avsed import quiet, small, write_tiny  # noqa: F401

SHORT = "--base transformer --epochs 1 --batches 1 --batch-size 1 1 2".split()


def run(*arguments):
    tables.main([str(a) for a in arguments])


def weights_of(folder):
    return torch.load(folder / "model.pt", weights_only=True)["weights"]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_the_rows_of_the_tables():
    of_table = {number: tables.rows_of(number) for number in (5, 6, 7, 8)}
    assert [len(rows) for rows in of_table.values()] == [8, 6, 22, 4]
    assert all(len(row.paper) == 5 for rows in of_table.values() for row in rows)
    second = of_table[5][1]
    assert (second.base, second.visual, second.train_weight, second.infer_weight) == (
        "transformer", ("openl3",), 0.5, 0.75
    )  # fmt: skip
    assert second.paper[0] == (84.57, 0.40) and second.paper[4] == (0.6567, 0.011) and second.part == "public"
    assert of_table[6][5].paper == ((84.25, 0.39), (80.33, 0.50), (46.10, 0.67), (0.3591, 0.0089), (0.6201, 0.012))
    assert {row.train_weight for row in of_table[6]} == {"random"} and all(row.visual for row in of_table[6])
    systems = {(row.base, row.visual, row.train_weight, row.infer_weight) for row in of_table[7]}
    assert systems == {(row.base, row.visual, row.train_weight, row.infer_weight) for row in of_table[5]}
    parts = [row.part for row in of_table[7] if row.base == "conformer" and row.visual in ((), ("tce",))]
    assert parts == ["ignored", "without_video", "with_video", "ignored", "without_video"]
    assert of_table[7][4].paper[2] == (51.44, None) and of_table[8][1].visual == ("openl3", "tce")
    # Table 6: the systems of Table 5 with a visual stream, one by one, with inference weights of their own
    assert [(row.base, row.visual) for row in of_table[6]] == [(r.base, r.visual) for r in of_table[5] if r.visual]
    assert [row.infer_weight for row in of_table[6]] == [0.75, 0.875, 0.875, 0.875, 0.875, 0.875]
    # acoustic weights in training and at inference; those in training are train.py's defaults
    one_stream = [(1, 1), (0.5, 0.75), (0.75, 0.875), (0.5, 0.875), (1, 1), (0.75, 0.875), (0.75, 0.875), (0.5, 0.875)]
    two_streams = [(0.75, 0.875), ("random", 0.75), (0.75, 0.875), ("random", 0.875)]
    assert [(row.train_weight, row.infer_weight) for row in of_table[5] + of_table[8]] == one_stream + two_streams
    fixed = [row for row in of_table[5] + of_table[8] if row.visual and row.train_weight != "random"]
    assert {(row.base, *row.visual): row.train_weight for row in fixed} == train.TRAIN_WEIGHTS
    listed = {"strong": 2584, "weak": 1578, "unlabelled": 14412, "validation": 1168, "public": 692}  # Table 2
    assert tables.RUNS == 20 and tables.DCASE_2020 == listed


def test_the_searches_that_the_flags_ask_for(tmp_path, monkeypatch):
    root, seen = write_tiny(tmp_path / "set"), []
    monkeypatch.setattr(tables, "complete_runs", lambda configs, *_: seen.append(list(configs.values())) or {})
    monkeypatch.setattr(tables, "result_of", lambda row, reports, *searches: seen.append(searches))
    monkeypatch.setattr(tables, "table_text", lambda *arguments: seen.append(arguments[3]) or "")
    parts = features.load_dataset(root, log=quiet).partitions
    for table, flags, weights, searches in (
        (5, ["--search-train-weight"], [1, 0.25, 0.5, 0.75, 0.875], (True, False)),
        (5, ["--infer-weight", "auto"], [1, 0.5], (False, True)),
        (6, ["--search-train-weight"], ["random"], (True, False)),  # nothing to search
    ):
        seen.clear()
        run(table, "--data", root, "--runs", 1, "--seed", 3, "--out", tmp_path / "t", *SHORT, *flags)
        assert [config.train_weight for config in seen[0]] == weights and seen[1] == searches
        assert {config.seed for config in seen[0]} == {3} and seen[-1] is (tables.DCASE_2020["weak"] == 4)
        monkeypatch.setattr(tables, "DCASE_2020", {name: part.listed for name, part in parts.items()})  # as if it were


def test_the_last_seed_that_there_is():
    assert tables.parse_arguments(["5", "--seed", str(2**63 - 1), "--runs", "1"]).seed == 2**63 - 1


def report(row, train_weight, by_weight):
    config = {"base": row.base, "visual": row.visual, "train_weight": train_weight}
    return {"config": config, "by_weight": {str(weight): parts for weight, parts in by_weight.items()}}


def test_the_best_pair_of_weights_on_validation_wins():
    row, reports = tables.rows_of(5)[1], []
    for train_weight in train.INFER_WEIGHTS:
        for seed in range(2):
            by_weight = {}
            for w in train.INFER_WEIGHTS:
                ebf1 = 0.9 if (train_weight, w) == (0.875, 0.5) else 0.95 * seed * (w == 0.25)  # mean .475 at 0.25
                public = dict.fromkeys(train.SCORES, train_weight + w / 10 + seed / 100)
                by_weight[w] = {"validation": {"EBF1": ebf1}, "public": public}
            reports.append(report(row, train_weight, by_weight))
    reports += [report(tables.rows_of(5)[other], 0.5, {}) for other in (2, 5)]  # another stream, another base
    paper = tables.result_of(row, reports)
    assert paper[:2] == (0.5, 0.75) and np.allclose(paper[2]["CBF1"], [0.575, 0.585])
    assert tables.result_of(row, reports, search_infer_weight=True)[:2] == (0.5, 0.25)
    found = tables.result_of(row, reports, search_train_weight=True)
    assert found[:2] == (0.875, 0.5) and np.allclose(found[2]["PSDS1"], [0.925, 0.935])
    for r in reports:
        for parts in r["by_weight"].values():
            parts["validation"]["EBF1"] = None  # undefined everywhere: the largest weights
    assert tables.result_of(row, reports, search_train_weight=True)[:2] == (0.875, 0.875)
    for r in reports:  # of two pairs that are equally good, that with the larger weight at inference
        for weight, parts in r["by_weight"].items():
            best = (r["config"]["train_weight"], weight) in ((0.875, "0.25"), (0.25, "0.875"))
            parts["validation"]["EBF1"] = 0.5 if best else None
    assert tables.result_of(row, reports, search_train_weight=True)[:2] == (0.25, 0.875)
    assert tables.result_of(tables.rows_of(5)[3], reports) is None


def test_what_table_7_looks_at():
    """Without video, a run is scored on those clips; with video ignored, on those with video, with acoustic weight 1"""
    _, _, with_video, ignored, without_video, *_ = tables.rows_of(7)
    by_weight = {
        weight: {
            "validation": {"EBF1": 0.5},
            "public": {"CBF1": weight},
            "with_video": {"CBF1": weight + 10},
            "without_video": {"CBF1": weight + 20},
        }
        for weight in (0.75, 1.0)
    }
    reports = [report(with_video, 0.5, by_weight)]
    values = [tables.result_of(row, reports) for row in (with_video, ignored, without_video)]
    assert [result[:2] for result in values] == [(0.5, 0.75)] * 3
    assert [result[2]["CBF1"] for result in values] == [[10.75], [11.0], [20.75]]
    assert values[0][2]["PSDS1"] == [None]
    del by_weight[0.75]["without_video"]  # every clip of public evaluation has video
    assert tables.result_of(without_video, [report(without_video, 0.5, by_weight)])[2]["CBF1"] == [None]


def test_cells():
    assert tables.cell("CBF1", *tables.mean_and_deviation("CBF1", [0.8, 0.82, 0.84])) == "   82.00 ±2.00  "
    assert tables.cell("PSDS1", *tables.mean_and_deviation("PSDS1", [0.5])) == "  0.5000        "
    assert tables.mean_and_deviation("EBF1", [None, 0.5]) == (50, None)
    assert tables.cell("EBF1", *tables.mean_and_deviation("EBF1", [])).split() == ["?"]


def test_each_finished_run_has_a_line_with_its_settings_and_scores(tmp_path):
    row, public = tables.rows_of(5)[1], dict(zip(train.SCORES, (0.125, 0.25, None, 0.5, 0.75)))
    parts = {"validation": dict.fromkeys(train.SCORES, 0.5) | {"EBF1": 0.375}, "public": public}
    content = report(row, 0.5, {weight: parts for weight in (*train.INFER_WEIGHTS, 1.0)})
    content["config"] |= dict(seed=3, epochs=1, batches=2, batch_size=[4, 5, 6], precision="fp32")
    for name in ("done", "going on"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(content | {"infer_weight": 0.75, "scores": parts}))
    (tmp_path / "done/model.pt").touch()
    tables.write_results(tmp_path, print)
    header, line = ([*line.split("\t")] for line in (tmp_path / "results.tsv").read_text().splitlines())
    of_column = dict(zip(header, line))
    assert [of_column[name] for name in ("run", "visual", "train_weight", "seed", "batch_size", "infer_weight")] == [
        "done", "openl3", "0.5", "3", "4 5 6", "0.75"
    ]  # fmt: skip
    assert of_column["validation_EBF1"] == "0.375000"
    assert [of_column[name] for name in train.SCORES] == ["0.125000", "0.250000", "", "0.500000", "0.750000"]


def test_the_papers_figures_stand_only_beside_real_data():
    rows = tables.rows_of(6)[-1:]
    results = [("random", 0.875, {name: [0.5, 0.6] for name in train.SCORES})]
    text = tables.table_text(6, rows, results, real=False)
    assert "55.00 ±7.07" in text and "paper" in text.splitlines()[-1] and "84.25" not in text
    few = ("random", 0.875, dict.fromkeys(train.SCORES, [0.5]))  # of another row, one run is done
    assert "Table 6, runs: 2 " in tables.table_text(6, 2 * rows, [few, *results], real=False)
    text = tables.table_text(6, rows, results, real=True)
    assert re.search(r"the paper: +84.25 ±0.39 +80.33 ±0.50 +46.10 ±0.67 +0.3591 ±0.0089 +0.6201 ±0.0120$", text)
    assert "?" in tables.table_text(6, rows, [None], real=False)


# --- what a table reads: the scores of a run, by acoustic weight and by availability of video ------------------------


def scored_tiny(tmp_path):
    """Tiny data of which p1 of three public clips has no video, and random scores for these clips"""
    root = write_tiny(tmp_path / "set", streams=("openl3", "tce"))
    for stream in ("openl3", "tce"):
        (root / "visual" / stream / "p1.npy").unlink()
    data = features.load_dataset(root, ["openl3", "tce"], log=quiet)
    rng = np.random.default_rng(1)
    tuned = {name: (np.full(2, 0.5), np.array([1, 3])) for name in ("CBF1", "SBF1", "EBF1")}
    tuned |= {name: (None, np.array([3, 1])) for name in ("PSDS1", "PSDS2")}
    public = data.partitions["public"]
    truth = features.frame_targets(public.filenames, public.events, data.classes)
    return data, (0.6 * rng.random((3, 64, 2)) + 0.4 * truth, rng.random((3, 2))), tuned


def test_scores_by_availability_of_video(tmp_path):
    data, scores, tuned = scored_tiny(tmp_path)
    part = data.partitions["public"]
    part.durations = np.array([2.0, 1.0, 0.5])
    part.present["tce"][0] = False  # one of two streams is enough
    parts = train.evaluate_public(data, *scores, tuned)
    assert list(parts) == ["public", "with_video", "without_video"]
    durations = dict(zip(part.filenames, part.durations))

    def by_hand(frame, clip, rows):
        names = [part.filenames[i] for i in rows]
        truth = [event for event in part.events if event[0] in names]
        lengths = {name: durations[name] for name in names}
        found = metrics.scores_to_events(
            frame[rows], names, data.classes, 0.5, np.array([1, 3]), features.FRAME_HOP, lengths
        )
        return {
            "CBF1": metrics.clip_f1(part.tags[rows], clip[rows] > 0.5).micro,
            "SBF1": metrics.segment_f1(truth, found, data.classes).micro,
            "EBF1": metrics.event_f1(truth, found, data.classes).macro,
            "PSDS1": metrics.psds_from_scores(
                frame[rows], names, truth, lengths, data.classes, features.FRAME_HOP, np.array([3, 1]), **PSDS1
            ),
        }

    for name, rows in {"public": [0, 1, 2], "with_video": [0, 2], "without_video": [1]}.items():
        for score, value in by_hand(*scores, rows).items():
            assert parts[name][score] == pytest.approx(value, abs=1e-12, nan_ok=True), (name, score)
    assert parts["with_video"] != parts["without_video"]
    for have in (np.zeros(3, bool), np.ones(3, bool)):  # all or none have video: the other part does not exist
        part.present = {"openl3": have, "tce": have}
        only = "with_video" if have.any() else "without_video"
        assert list(train.evaluate_public(data, *scores, tuned)) == ["public", only]


def test_predictions_on_disk_give_the_same_scores(tmp_path):
    data, scores, tuned = scored_tiny(tmp_path)
    part = data.partitions["public"]
    train.write_predictions(tmp_path, part, data.classes, *scores, tuned)
    expected = train.evaluate(part, data.classes, *scores, tuned)
    _, found = features.read_strong(tmp_path / "predictions.tsv")
    assert math.isclose(metrics.event_f1(part.events, found, data.classes).macro, expected["EBF1"])
    _, found = features.read_strong(tmp_path / "predictions_SBF1.tsv")
    assert math.isclose(metrics.segment_f1(part.events, found, data.classes).micro, expected["SBF1"])
    tags = features.read_weak(tmp_path / "predictions_CBF1.tsv")
    active = np.array([[label in tags[name] for label in data.classes] for name in part.filenames])
    assert math.isclose(metrics.clip_f1(part.tags, active).micro, expected["CBF1"])
    for name, criteria in (("PSDS1", PSDS1), ("PSDS2", PSDS2)):
        rows = [row.split("\t") for row in (tmp_path / f"predictions_{name}.tsv").read_text().splitlines()[1:]]
        points = [
            [(f, float(a), float(b), label) for f, a, b, label, at in rows if float(at) == round(threshold, 2)]
            for threshold in metrics.THRESHOLDS_50
        ]
        lengths = dict(zip(part.filenames, part.durations))
        value = metrics.psds(part.events, points, lengths, data.classes, **criteria)
        assert math.isclose(value, expected[name], abs_tol=1e-6) and value > 0, name


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_table_is_filled_by_several_processes_and_nothing_is_done_twice(tmp_path, capsys, monkeypatch, small):
    root = write_tiny(tmp_path / "set")
    (root / "visual/openl3/p1.npy").unlink()
    base = [5, "--data", root, "--runs", 1, "--seed", 1, "--out", tmp_path / "t", *SHORT]
    program = "import sys, test_avsed; test_avsed.shrink(); from extras import tables; tables.main(sys.argv[1:])"
    processes = [  # as torchrun starts them
        Program("-c", program, *base, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2") for rank in ("0", "1")
    ]
    data = features.load_dataset(root, ["openl3"], tmp_path / "cache", log=quiet)  # meanwhile
    config = train.Config(str(root), ("openl3",), "transformer", 0.5, 0.75, 1, 1, (1, 1, 2), 1, "fp32")
    with runs.claimed(tmp_path / "alone"):
        train.complete_run(config, data, tmp_path / "alone", torch.device("cpu"), runs.Log())
    capsys.readouterr()
    (printed, _), _ = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "Table 5, runs: 1" in printed and "incomplete" not in printed
    assert "visual/vgg16: its rows are left out" in printed and "cannot be compared" in printed
    names = {"transformer-audio-w1.0-1", "transformer-openl3-w0.5-1"}
    assert {path.parent.name for path in (tmp_path / "t").glob("*/model.pt")} == names
    stamps = {name: (tmp_path / "t" / name / "model.pt").stat().st_mtime_ns for name in names}
    for name in names:  # each run was begun once, by one of the two
        assert (tmp_path / "t" / name / "log.txt").read_text().count("model  ") == 1
    weights, alone = weights_of(tmp_path / "t/transformer-openl3-w0.5-1"), weights_of(tmp_path / "alone")
    assert weights.keys() == alone.keys() and all(torch.equal(weights[k], alone[k]) for k in alone)

    shutil.rmtree(tmp_path / "t/transformer-audio-w1.0-1")  # one is missing: it alone is done
    run(*base)
    table_5 = capsys.readouterr().out
    run(7, *base[1:])
    table_7 = capsys.readouterr().out
    assert table_5.count("model  ") == 1 and "2/2 runs | transformer-audio-w1.0-1 done" in table_5
    assert "done" not in table_7
    del stamps["transformer-audio-w1.0-1"]
    assert stamps == {name: (tmp_path / "t" / name / "model.pt").stat().st_mtime_ns for name in stamps}
    by_weight = json.loads((tmp_path / "t/transformer-openl3-w0.5-1/metrics.json").read_text())["by_weight"]
    for label, weight, part in (("available, ignored", "1.0", "with_video"), ("unavailable", "0.75", "without_video")):
        values = [by_weight[weight][part]["CBF1"]]
        line = next(line for line in table_7.splitlines() if re.match(rf"transformer \+ openl3 .*{label}\)", line))
        assert tables.cell("CBF1", *tables.mean_and_deviation("CBF1", values)).strip() in line
    assert len(re.findall("^transformer", table_7, re.M)) == 5
    results = (tmp_path / "t/results.tsv").read_text().splitlines()
    assert len(results) == 3 and results[0].split("\t")[-1] == "PSDS2"
    with pytest.raises(SystemExit) as stop:  # the same folder, other runs
        run(*base, "--epochs", 2)
    assert stop.value.code == 2 and "is of a run with epochs 1" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # others are at work in every folder: reading what is finished needs no claim
        patch.setattr(runs, "claimed", lambda folder, wait=False: contextlib.nullcontext(wait))
        patch.setattr(plots, "figure_class", lambda: None)
        patch.setattr(plots, "plot_table", lambda *arguments: drawn.append(arguments))
        drawn = []
        run(*base, "--plot")
    [(title, labels, columns, highlighted, path)] = drawn
    assert path == tmp_path / "t/table_5.png" and title == "Table 5" and highlighted == [False, True]
    assert labels == ["transformer", "transformer + openl3"] and list(columns) == list(train.SCORES)
    assert columns["CBF1"][1] == [by_weight["0.75"]["public"]["CBF1"]]
    assert (tmp_path / "t/table_5.txt").read_text() in capsys.readouterr().out
    stamp = (tmp_path / "t/transformer-audio-w1.0-1/model.pt").stat().st_mtime_ns
    (root / "visual/openl3").rename(root / "visual/vgg16")  # other streams split by availability: scored anew
    run(7, *base[1:])
    report = json.loads((tmp_path / "t/transformer-audio-w1.0-1/metrics.json").read_text())
    assert report["streams"] == ["vgg16"] and capsys.readouterr().out.count("epoch  ") == 1  # only vgg16 is trained
    assert (tmp_path / "t/transformer-audio-w1.0-1/model.pt").stat().st_mtime_ns != stamp
    with pytest.raises(SystemExit) as stop:
        run(8, *base[1:])
    assert stop.value.code == 2 and "has no stream of the table's rows" in capsys.readouterr().err


@pytest.mark.parametrize("wait", (False, True))
def test_what_others_finish_is_read_and_what_they_give_up_is_done(tmp_path, monkeypatch, wait):
    """Of five runs, others are doing b, c and e when their turn comes; then b is finished, c given up, e still busy"""
    data = features.DataSet([], {}, (0, 1), {"openl3": (0, 1)})
    busy, looks, done_here = {"b", "c", "e"}, [], []

    def finished_report(folder, config, data, scores):
        looks.append(folder.name)
        if looks.count("c") == 2:
            busy.discard("c")
        return "by others" if folder.name == "b" and looks.count("b") == 2 else None

    def complete_run(config, data, folder, device, log):
        done_here.append(folder.name)
        if folder.name == "d":
            raise FloatingPointError("the loss is not finite")
        return "here"

    monkeypatch.setattr(runs, "claimed", lambda folder, wait: contextlib.nullcontext(wait or folder.name not in busy))
    monkeypatch.setattr(runs, "finished_report", finished_report)
    monkeypatch.setattr(train, "complete_run", complete_run)
    reports = tables.complete_runs(dict.fromkeys("abcde"), data, tmp_path, None, quiet, wait)
    assert reports == {"a": "here", "b": "by others", "c": "here"} | ({"e": "here"} if wait else {})
    assert done_here == ["a", "d", "c"] + ["e"] * wait


def test_a_diverged_run_is_left_out_of_its_table(tmp_path, capsys, monkeypatch, small):
    step = train.training_step

    def seed_0_diverges(student, teacher, optimizer, batch, config, t):
        return step(student, teacher, optimizer, batch, config, t) * (1 if config.seed else math.inf)

    monkeypatch.setattr(train, "training_step", seed_0_diverges)
    out = tmp_path / "t"
    run(6, "--data", write_tiny(tmp_path / "set"), *SHORT, "--runs", 2, "--out", out)
    printed = capsys.readouterr().out
    assert "transformer-openl3-wrandom-0 is left out: the loss is not finite" in printed
    assert "1 of 2 runs are done" in printed and "Table 6, runs: 1" in printed
    assert not (out / "transformer-openl3-wrandom-0/model.pt").exists() and not (out / "table_6.txt").exists()
    path = out / "transformer-openl3-wrandom-1/metrics.json"
    good = path.read_text()
    shutil.copytree(path.parent, out / ".of another program")  # hidden: no run
    for damaged in ("{}", good.replace('"fp32"', '"fp\\t32"'), good.replace('"EBF1": ', '"EBF1": 1')):
        path.write_text(damaged)  # of results.tsv, one damaged line is left out
        tables.write_results(out, print)
        assert capsys.readouterr().out.count("metrics.json: is damaged") == 1, damaged
        assert "another program" not in (out / "results.tsv").read_text()
    model = path.with_name("model.pt")
    torch.save(torch.load(model, weights_only=True) | {"by_weight": {"1.0": {"public": 3}}}, model)
    with pytest.raises(SystemExit) as stop:
        run(6, "--data", tmp_path / "set", *SHORT, "--runs", 1, "--seed", 1, "--out", out)
    assert stop.value.code == 2 and re.search("error: .*model.pt: its scores are damaged", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        run(6, "--data", tmp_path / "nowhere", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_pictures_without_matplotlib_stop_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as stop:
        run(5, "--data", tmp_path / "set", "--out", tmp_path / "t", "--plot")
    assert stop.value.code == 2 and "pip install matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "flags, message",
    (
        (["4"], "invalid choice"),
        (["5", "--visual", "openl3"], "unrecognized arguments"),
        (["5", "--runs", "0"], "must be a whole number, at least 1"),
        (["5", "--batch-size", "0", "0", "0"], "at least one clip"),
        (["5", "--infer-weight", "0.5"], "invalid choice"),
        (["5", "--data", ""], "--data is empty"),
        (["5", "--seed", "-1"], "a seed must be 0 or more"),
        (["5", "--seed", str(2**63 - 1), "--runs", "2"], "must be at most 2 ** 63"),
        (["5", "--precision", "tf32", "--device", "cpu", "--data", "absent"], "--precision tf32 is arithmetic"),
        (["5", "--device", "nonsense", "--data", "absent"], "--device nonsense"),
        (["5", "--data", "absent"], "absent: no such folder"),
    ),
)
def test_bad_flags_get_code_2(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2 and "error: " in (error := capsys.readouterr().err) and message in error
