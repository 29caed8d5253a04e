"""Tests of the report: what its numbers are, which runs are one system, what is drawn, what it refuses"""

import dataclasses
import json
import re
import shutil
import statistics

import numpy as np
import pytest
import torch

import features
import metrics
import train
from extras import plots, report, runs, score
from extras.test_bad_input import refused
from test_avsed import CPU, quiet, scored_data, tiny_config, tiny_rows, write_tiny

HISTORY = "epoch iteration weak strong clip_consistency frame_consistency learning_rate seconds".split()


def add_history(folder, n_epochs, seed):
    rng = np.random.default_rng(seed)
    for epoch in range(1, n_epochs + 1):
        row = dict(zip(HISTORY, [epoch, 2 * epoch, *rng.random(6)])) | dict(zip(train.SCORES, rng.random(5)))
        runs.add_row(folder / "history.tsv", epoch, row)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three runs as train.py leaves them, of made-up scores: two seeds of one system, one of another; and their data"""
    root, patch = tmp_path_factory.mktemp("report"), pytest.MonkeyPatch()
    data, scores = scored_data()
    data.visual_statistics["tce"] = data.visual_statistics["openl3"]
    public = data.partitions["public"]
    public.present["tce"] = data.partitions["validation"].present["tce"] = np.zeros(8, bool)
    rows = tiny_rows() | {"public": ["\t".join(map(str, event)) for event in public.events]}
    for name in ("strong", "weak"):
        rows[name] = [re.sub("Dog|Cat", lambda match: {"Dog": "A", "Cat": "B"}[match[0]], row) for row in rows[name]]
    rows["validation"] = ["v0.wav\t0.5\t1\tA"]
    write_tiny(root / "set", rows)
    patch.setattr(metrics, "TUNING_WINDOWS", np.array([1, 7]))
    for name, seed, visual, shift in (("a0", 0, ("openl3",), 0), ("a1", 1, ("openl3",), 0.1), ("b", 0, ("tce",), 0.2)):
        (root / name).mkdir()
        patch.setattr(train, "predict", lambda student, data, part, weights, device: {
            weight: tuple(np.clip(x + shift * (x < 0.5), 0, 1) for x in scores[part.name, weight])
            for weight in weights})  # fmt: skip
        config, student = tiny_config(root / "set", seed=seed, visual=visual), torch.nn.Linear(1, 1)
        choice = train.choose(student, config, data, CPU, quiet)
        train.score(student, config, data, CPU, choice, root / name)
        add_history(root / name, 3, seed)
    patch.undo()
    return root


def unfinished(folders, tmp_path, n_epochs=1):
    """A run of the first system that is still training: seed 2, two epochs long"""
    state = torch.load(folders / "a0/model.pt", weights_only=True)
    state = {name: state[name] for name in ("classes", "data")} | {"config": state["config"] | {"seed": 2}}
    (tmp_path / "c").mkdir()
    torch.save(state | {"epoch": 1}, tmp_path / "c/checkpoint.pt")
    add_history(tmp_path / "c", n_epochs, 2)
    return tmp_path / "c"


def text_of(capsys, *arguments):
    report.main([*map(str, arguments), "--text"])
    return capsys.readouterr().out


def row_of(text, *cells):
    """Cells of the first row that begins with these"""
    rows = (re.split(r"  +", line) for line in text.splitlines())
    return next(row[len(cells) :] for row in rows if row[: len(cells)] == list(cells))


def test_runs_that_differ_by_their_seed_alone_are_one_system(folders):
    a0, a1, b = (report.read_run(folders / name) for name in ("a0", "a1", "b"))
    systems = report.systems_of([a0, b, a1])
    assert [(system.label, system.runs) for system in systems] == [
        ("transformer + openl3", [a0, a1]), ("transformer + tce", [b])
    ]  # fmt: skip
    longer = dataclasses.replace(a0, config=dataclasses.replace(a0.config, epochs=7, seed=5))
    other_clips = dataclasses.replace(a1, data="x", folder=folders / "elsewhere")
    heard = dataclasses.replace(b, config=dataclasses.replace(b.config, visual=()))
    assert [system.label for system in report.systems_of([a0, longer, heard])] == [
        "transformer + openl3, epochs 2", "transformer + openl3, epochs 7", "transformer, sound only"
    ]  # fmt: skip
    assert [system.label for system in report.systems_of([a1, other_clips])] == [
        "transformer + openl3", f"transformer + openl3, {folders / 'elsewhere'}"
    ]  # fmt: skip


def test_the_text_has_the_numbers_of_the_runs(folders, tmp_path, capsys):
    reports = [json.loads((folders / name / "metrics.json").read_text()) for name in ("a0", "a1", "b")]
    text = text_of(capsys, *(folders / name for name in ("a0", "a1", "b")), unfinished(folders, tmp_path, 2))
    ebf1 = [100 * of_run["scores"]["public"]["EBF1"] for of_run in reports[:2]]
    assert len(set(ebf1)) == 2
    want = f"{statistics.mean(ebf1):.2f} ± {abs(ebf1[0] - ebf1[1]) / 2**0.5:.2f}"  # the deviation of two values
    assert row_of(text, "transformer + openl3", "mean of 2 seeds")[2] == want
    assert row_of(text, "transformer + tce", "b", "finished")[5] == f"{reports[2]['scores']['public']['PSDS2']:.4f}"
    assert row_of(text, "transformer + openl3", "c", "epoch 2 of 2") == ["–"] * 5
    header, *_, last = ([*line.split("\t")] for line in (tmp_path / "c/history.tsv").read_text().splitlines())
    so_far = dict(zip(header, map(float, last)))  # after its last epoch
    shown = row_of(text.split("validation clips")[1], "transformer + openl3", "c", "epoch 2 of 2")
    assert shown[2] == f"{100 * so_far['EBF1']:.2f}"
    losses = row_of(text.split("=== Learning curves")[1], "transformer + openl3", "2", "2")
    assert losses[0] == f"{so_far['weak']:.4f}" and losses[4] == f"{100 * so_far['CBF1']:.2f}"


def test_a_class_name_moves_no_cursor_and_forges_no_row(folders, tmp_path, capsys):
    shutil.copytree(folders / "a0", tmp_path / "a0")
    text = (tmp_path / "a0/metrics.json").read_text().replace('"A"', json.dumps("A\x1b[2J\nforged  100.0"))
    (tmp_path / "a0/metrics.json").write_text(text)
    lines = text_of(capsys, tmp_path / "a0").splitlines()
    named = [line for line in lines if "forged" in line]
    assert named and all(line.startswith("A\\u001b[2J forged  100.0  ") for line in named)


def test_the_text_has_a_table_for_each_picture(folders, capsys):
    names = ("a0", "a1", "b")
    reports = [json.loads((folders / name / "metrics.json").read_text()) for name in names]
    text = text_of(capsys, *(folders / name for name in names))
    assert row_of(text, "visual") == ["openl3", "tce"] and row_of(text, "seed") == ["0, 1", "0"]
    weights = [100 * of_run["by_weight"]["0.5"]["validation"]["SBF1"] for of_run in reports[:2]]
    assert row_of(text, "transformer + openl3", "0.5", "validation")[1].startswith(f"{statistics.mean(weights):.2f}")
    f1 = [100 * of_run["by_class"]["public"]["B"]["EBF1"]["F1"] for of_run in reports[:2]]
    assert row_of(text.split("=== Classes")[1], "B")[5] == f"{statistics.mean(f1):.1f}"
    thresholds = [str(of_run["tuned"]["EBF1"]["threshold"][1]) for of_run in reports[:2]]
    assert row_of(text.split("=== Thresholds")[1], "B")[2] == ", ".join(thresholds)
    area, *rates = row_of(text, "transformer + openl3 (a0)", "PSDS2")
    assert area == f"{reports[0]['scores']['public']['PSDS2']:.4f}" and rates == sorted(rates)
    # the clips with most errors of both systems, each counted by itself
    _, truth = features.read_strong(folders / "set/metadata/eval/public.tsv")
    errors = {}
    for name in {event[0] for event in truth}:
        for folder in ("a0", "b"):
            found = features.read_strong(folders / folder / "predictions.tsv")[1]
            tables = ([event for event in events if event[0] == name] for events in (truth, found))
            f1 = metrics.event_f1(*tables, ["A", "B"])
            errors.setdefault(name, []).append((int(f1.n_fn.sum()), int(f1.n_fp.sum())))
    listed = [re.split("  +", line) for line in text.split("=== Clips")[1].splitlines() if line.startswith("public")]
    assert len(listed) == 8 and [row[1:] for row in listed] == [
        [f"{missed} missed, {false} false" for missed, false in errors[row[0]]] for row in listed
    ]  # fmt: skip
    totals = [sum(map(sum, errors[row[0]])) for row in listed]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]


def test_the_page_is_one_file_with_pictures_and_players(folders, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "WORST", 2)
    plot_errors, drawn = plots.plot_errors, []
    monkeypatch.setattr(plots, "plot_errors", lambda _, tables: drawn.append(tables) or plot_errors(_, tables))
    report.main([str(folders / "a0"), str(folders / "b"), "--out", str(tmp_path / "sub/r.html")])
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["r.html"]
    text = (tmp_path / "sub/r.html").read_text()
    assert text.count("<img ") == 5 + 2 and text.count("<audio ") == 2
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "<h1>transformer + openl3 against transformer + tce</h1>" in text
    for truth, *of_systems in map(dict.values, drawn):  # an empty bar fits no true event of its class: 0.2 s, 20 %
        for onset, offset, label, fits in (event for table in of_systems for event in table):
            assert fits == any(abs(onset - a) <= 0.2 and abs(offset - b) <= max(0.2, 0.2 * (b - a)) and label == c
                               for a, b, c, _ in truth)  # fmt: skip
    assert {fits for _, *of_systems in map(dict.values, drawn) for table in of_systems for *_, fits in table} == {0, 1}
    titles = re.findall(r'<h2 id="part\d">(.*?)</h2>', text)
    printed = text_of(capsys, folders / "a0", folders / "b")
    assert titles == re.findall(r"^=== (.*)$", printed, re.M) and len(titles) == 8


def test_a_run_that_is_still_training_and_a_lost_data_set_leave_parts_out(folders, tmp_path, capsys):
    text = text_of(capsys, unfinished(folders, tmp_path))
    assert re.findall(r"^=== (.*)$", text, re.M) == ["Scores", "Settings", "Learning curves"]
    text = text_of(capsys, folders / "a0", "--data", tmp_path)
    assert "=== Without PSD-ROC and clips" in text and "no such file" in text and "=== Classes" in text
    lengths = (folders / "b/durations.tsv").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "read_durations", lambda path: {"gone.wav": 10.0})
        assert "lacks 1 clips that" in text_of(capsys, folders / "b")
    systems = report.systems_of([report.read_run(folders / name) for name in ("a0", "b")])
    with pytest.MonkeyPatch.context() as patch:  # clips side by side are the same, seven of eight are others
        patch.setattr(report, "roc_section", lambda of_runs: [*of_runs])
        patch.setattr(report, "clips_section", lambda of_runs: [*of_runs])
        assert report.sections_of(systems, None)[-2:] == [["transformer + openl3", "transformer + tce"]] * 2
        patch.setattr(report, "read_clips", lambda run, root: setattr(run, "durations", {run.folder.name: 10.0}))
        assert report.sections_of(systems, None)[-1] == ["transformer + openl3"]
    assert (folders / "b/durations.tsv").read_text() == lengths


def test_a_run_without_public_evaluation_shows_validation(folders, tmp_path, capsys):
    changed = json.loads((folders / "a0/metrics.json").read_text())
    for parts in (changed["scores"], *changed["by_weight"].values(), changed["by_class"]):
        parts.pop("public", None)
    for name in ("model.pt", "history.tsv", "durations.tsv"):
        shutil.copy(folders / "a0" / name, tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(changed))
    text = text_of(capsys, tmp_path)
    assert "public clips" not in text and row_of(text, "transformer + openl3", "0.25", "validation")
    assert "public clips" not in text_of(capsys, folders / "b", tmp_path)  # side by side, what both have
    f1 = changed["by_class"]["validation"]["B"]["EBF1"]["F1"]
    assert row_of(text.split("=== Classes")[1], "B")[5] == f"{100 * f1:.1f}"


def test_what_is_no_run_gets_one_line(folders, tmp_path, capsys):
    def refusal(*arguments):
        return refused(capsys, [*map(str, arguments)], command=report.main)

    assert "absent: has no history.tsv; name a folder that train.py" in refusal(tmp_path / "absent", "--text")
    good = {path.name: path.read_bytes() for path in (folders / "a0").iterdir() if path.is_file()}
    (tmp_path / "r").mkdir()
    metrics_json = json.loads(good["metrics.json"])
    cases = {
        "metrics.json: no such file": {"metrics.json": None},
        "checkpoint.pt: no such file": {"model.pt": None},
        "was not written by this version of train.py (Expecting": {"metrics.json": b"{"},
        "was not written by this version of train.py ('NoneType": {"metrics.json": {**metrics_json, "tuned": None}},
        "was not written by this version of train.py (Config": {"metrics.json": {**metrics_json, "config": {"a": 1}}},
        "metrics.json: its scores are damaged": {"metrics.json": {**metrics_json, "by_weight": {}}},
        "history.tsv: holds no epoch": {"history.tsv": good["history.tsv"].split(b"\n")[0]},
        "line 1: no column weak": {"history.tsv": b"epoch\n1\n"},
        "history.tsv, line 2: holds a cell that is": {"history.tsv": good["history.tsv"].replace(b"0.", b"x", 1)},
    }
    for message, changed in cases.items():
        for name, content in (good | changed).items():
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            (tmp_path / "r" / name).unlink(missing_ok=True)
            if content is not None:
                (tmp_path / "r" / name).write_bytes(content)
        assert message in refusal(tmp_path / "r", "--text"), message
    other = {**metrics_json, "classes": ["A", "C"], "by_class": {"public": {
        "A": metrics_json["by_class"]["public"]["A"], "C": metrics_json["by_class"]["public"]["B"]}}}  # fmt: skip
    (tmp_path / "r/history.tsv").write_bytes(good["history.tsv"])
    (tmp_path / "r/metrics.json").write_text(json.dumps(other))
    assert "has other classes than" in refusal(folders / "a0", tmp_path / "r", "--text")
    with pytest.raises(SystemExit):
        report.main([str(folders / "a0"), "--text", "--out", "x.html"])


# --- the pictures ----------------------------------------------------------------------------------------------------


def test_curves_are_means_with_a_band():
    pytest.importorskip("matplotlib")
    runs_of_a = [{"weak loss": np.array([3.0, 2.0, 1.0])}, {"weak loss": np.array([5.0, 4.0])}]
    figure = plots.plot_history({"a": runs_of_a, "b": [{"weak loss": np.array([1.0])}]})
    (panel,) = figure.axes
    a, b = panel.lines
    assert a.get_xdata().tolist() == [1, 2, 3] and a.get_ydata().tolist() == [4, 3, 1] and b.get_ydata().tolist() == [1]
    band = {tuple(point) for point in panel.collections[0].get_paths()[0].vertices.tolist()}
    assert {(1, 3), (1, 5), (2, 2), (2, 4), (3, 1)} <= band and len(panel.collections) == 1


def test_a_psd_roc_is_drawn_as_steps_with_the_effective_curve_thick():
    pytest.importorskip("matplotlib")
    roc = np.array([0.0, 40.0]), np.array([[0.0, 0.5], [0.25, 1.0]]), np.array([0.1, 0.6])
    figure = plots.plot_psd_roc({"a": {"PSDS1": (roc, 0.4)}}, ["A", "B"], 100)
    (panel,) = figure.axes
    first, second, effective = panel.lines
    assert effective.get_xdata().tolist() == [0, 40, 100] and effective.get_ydata().tolist() == [0.1, 0.6, 0.6]
    assert effective.get_drawstyle() == "steps-post" and effective.get_linewidth() > 2 * first.get_linewidth()
    assert second.get_ydata().tolist() == [0.25, 1, 1] and "0.4000" in panel.get_title(loc="left")


def test_a_clip_has_a_lane_for_each_class_and_empty_bars_for_false_alarms():
    pytest.importorskip("matplotlib")
    tables = {"truth": [(1.0, 2.0, "B", True)], "a": [(1.1, 2.0, "B", True), (3.0, 4.5, "A", False)]}
    _, bottom = plots.plot_errors(np.zeros((512, 64)), tables).axes
    bars = [bar for bar in bottom.collections[:-1] if bar.get_paths()[0].get_extents().width]
    places = [bar.get_paths()[0].get_extents() for bar in bars]
    assert np.allclose([(box.x0, box.x1, box.y0) for box in places], [(1, 2, 0.6), (1.1, 2, 1.0), (3, 4.5, 0.0)])
    assert [len(bar.get_facecolor()) for bar in bars] == [1, 1, 0]  # the last one has none
    assert [label.get_text() for label in bottom.get_yticklabels()] == ["A", "B"]
