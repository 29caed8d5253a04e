"""Tests of the evaluator's command and of the tables that it reads."""

import json
import shutil
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

import avsed
import features
import metrics
import train
from extras import score
from extras.test_processes import Program
from features import InputError
from metrics import PSDS2
from test_avsed import CPU, quiet, run, scored_data, small, tiny_config, write_tiny  # noqa: F401

HEAD = "filename\tonset\toffset\tevent_label\n"


def written(tmp_path, text, name="x.tsv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def events_of(path):
    return features.read_strong(path, of_system=True)[1]


# --- tables ----------------------------------------------------------------------------------------------------------


def test_tables_as_they_are(tmp_path):
    want = [("-a_1.000.wav", 0.1, 10.115, "Dog"), ("é b.wav", 0.0, 1.0, "Cat")]
    text = HEAD + "-a_1.000.wav\t0.100\t10.115\tDog\nempty.wav\t\t\t\né b.wav\t0\t1e0\tCat"
    for variant in (text, text + "\n", "\ufeff" + text, text.replace("\n", "\r\n"), text + "\n\n"):
        path = written(tmp_path, variant)
        assert features.read_strong(path, of_system=True) == (["-a_1.000.wav", "empty.wav", "é b.wav"], want)
    other = "x\toffset\tevent_label\tfilename\tonset\n1\t2.5\tDog\ta.wav\t1.5\n"
    assert events_of(written(tmp_path, other)) == [("a.wav", 1.5, 2.5, "Dog")]
    assert events_of(written(tmp_path, HEAD)) == []
    assert events_of(written(tmp_path, HEAD + "a\t86399\t86400\tA\n")) == [("a", 86399, 86400, "A")]  # of a day
    elsewhere = written(tmp_path, HEAD + "audio/a.wav\t1\t2\tDog\n../b.wav\t3\t3\tDog\n")
    assert events_of(elsewhere) == [("audio/a.wav", 1.0, 2.0, "Dog"), ("../b.wav", 3.0, 3.0, "Dog")]
    for row in ("audio/a.wav\t1\t2\tDog", "a.wav\t3\t3\tDog"):  # neither belongs into the lists of a data set
        with pytest.raises(InputError, match="x.tsv, line 2"):
            features.read_strong(written(tmp_path, HEAD + row))


def test_events_survive_writing(tmp_path):
    rng = np.random.default_rng(0)
    table = [(f"{i}.wav", float(a), float(a + b), "A") for i, (a, b) in enumerate(rng.random((100, 2)) + 0.01)]
    features.write_events(tmp_path / "x.tsv", table)
    assert events_of(tmp_path / "x.tsv") == table
    features.write_events(tmp_path / "x.tsv", [("a", np.float64(0.5), 1, "A")])
    assert (tmp_path / "x.tsv").read_text() == HEAD + "a\t0.5\t1.0\tA\n"


@pytest.mark.parametrize(
    "row, what",
    [
        ("a.wav\t2\t1\tA", "2"),
        ("a.wav\t-1\t2\tA", "-1"),
        ("a.wav\tx\t2\tA", "x"),
        ("a.wav\t1\tnan\tA", "nan"),
        ("a.wav\t1\tinf\tA", "inf"),
        ("a.wav\t1\t86401\tA", "86401"),
        ("a.wav\t1\t\tA", "''"),
        ("a.wav\t1\t2\t", "label"),
        ("\t1\t2\tA", "name"),
        ("a.wav\t1\t2\tA\tB", "5 columns"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, row, what):
    path = written(tmp_path, HEAD + "ok.wav\t0\t1\tA\n" + row + "\n", "table.tsv")
    with pytest.raises(InputError, match="table.tsv, line 3") as error:
        events_of(path)
    assert what in str(error.value) and "\n" not in str(error.value)


def test_bad_tables(tmp_path):
    for text, complaint in (
        ("", "line 1: no column filename"),
        ("filename\tonset\n", "no column offset, event_label"),
        (b"\xff\xfe\x00", "text"),
    ):
        with pytest.raises(InputError, match=complaint):
            events_of(written(tmp_path, text))


def test_durations(tmp_path):
    path = written(tmp_path, "filename\tduration\na\t4.2\nb\t86400\na\t4.2\n")
    assert score.read_durations(path) == {"a": 4.2, "b": 86400.0}  # up to a day
    for row in ("a\t0", "a\t-1", "a\tx", "a\tinf", "a\t1_0", "a\t86401", "a\t", "ok\t2"):
        with pytest.raises(InputError, match="line 3"):
            score.read_durations(written(tmp_path, f"filename\tduration\nok\t1\n{row}\n"))


# --- the command -----------------------------------------------------------------------------------------------------


def command(capsys, *arguments):
    """-> exit code, stdout, stderr"""
    try:
        score.main(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ref = HEAD + "a.wav\t1\t2\tA\na.wav\t1.5\t2.5\tA\na.wav\t5\t6\tB\nb.wav\t9.9\t10.1\tB\nempty.wav\t\t\t\n"
    est = HEAD + "a.wav\t1\t2.5\tA\nb.wav\t9.9\t10.1\tB\nempty.wav\t10\t10\tA\nnew.wav\t0\t1\tQ\n"
    written(tmp_path, ref, "ref.tsv"), written(tmp_path, est, "est.tsv")
    (tmp_path / "points").mkdir()
    written(tmp_path, est, "points/0.1.tsv"), written(tmp_path, HEAD, "points/0.9.tsv")
    written(tmp_path, "filename\tduration\na.wav\t10\nb.wav\t10\nempty.wav\t10\nnew.wav\t10\n", "durations.tsv")
    points = ["--operating-points", "points"]
    code, out, err = command(capsys, "ref.tsv", "est.tsv", *points, "--json", "--per-class")
    assert code == 0
    got, reference, estimated = json.loads(out), events_of("ref.tsv"), events_of("est.tsv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        event = metrics.event_f1(reference, estimated, ["A", "B", "Q"])
        segment = metrics.segment_f1(reference, estimated, ["A", "B", "Q"])
        lengths = dict.fromkeys(["a.wav", "b.wav", "empty.wav", "new.wav"], 10.0)
        psds2 = metrics.psds(reference, [estimated, []], lengths, ["A", "B"], **PSDS2)
    assert got["event_f1_micro"] == event.micro and got["segment_f1_macro"] == segment.macro and got["psds2"] == psds2
    # tags: 2 of 3 labels found (a.wav A, b.wav B, not a.wav B), 2 of 4 right (not empty.wav A, not new.wav Q)
    assert got["clip_f1_micro"] == pytest.approx(4 / 7) and got["clip_f1_macro"] == pytest.approx(2 / 3)
    assert got["per_class"]["event_f1"] == {"A": 0, "B": pytest.approx(2 / 3), "Q": None}
    assert list(got["per_class"]) == ["clip_f1", "segment_f1", "event_f1"]
    assert (got["operating_points"], got["files"], got["reference_events"], got["estimated_events"]) == (2, 4, 4, 4)
    for words in (
        "1 events of est.tsv in files that ref.tsv does not name",
        "new.wav",
        "1 events of est.tsv with labels that ref.tsv lacks",
        "1 events of points with labels",
        "length 0",
        "1 files of ref.tsv have no events: empty.wav",
        "merged 1 ground truth events",
    ):
        assert words in err
    assert all(line.startswith("note   ") for line in err.splitlines()) and len({*err.splitlines()}) == err.count("\n")
    with_durations = [*points, "--durations", "durations.tsv", "--ctr-divisor", "C"]
    code, table, _ = command(capsys, "ref.tsv", "est.tsv", *with_durations)
    assert code == 0 and f"{got['psds1']:.4f}" in table and " C\n" in table and "Q" not in table
    assert "operating_points                        2   of a table, those with events" in table
    assert "of the same operating points as psds1, whichever of the two they were tuned for" in table
    code, table, _ = command(capsys, "ref.tsv", "est.tsv", "--per-class")
    assert code == 0 and "Q" in table and "psds" not in table


def test_psds_by_hand_with_cross_triggers_both_divisors_and_all_files(tmp_path, monkeypatch, capsys):
    """Three classes in 36 clips of 10 s, of which the reference names 18, the system the others: 0.1 hours"""
    monkeypatch.chdir(tmp_path)
    names = [f"{side}{i}.wav" for side in "ab" for i in range(18)]
    truth = [("a0.wav", "A"), ("a1.wav", "B"), ("a2.wav", "B"), ("a3.wav", "C")]
    sure, unsure = truth[:2], [("a3.wav", "C"), ("a1.wav", "C")]  # the last one is false, and triggers B

    def table(rows, clips):
        return HEAD + "".join(f"{name}\t0\t10\t{label}\n" for name, label in rows) + "\t\t\t\n".join([*clips, ""])

    written(tmp_path, table(truth, names[:18]), "ref.tsv"), (tmp_path / "points").mkdir(), (tmp_path / "run").mkdir()
    written(tmp_path, table([("a0.wav", "A")], names[18:]).replace("10\tA", "5\tA"), "est.tsv")
    for threshold, rows in (("0.9", sure), ("0.5", sure + unsure)):
        written(tmp_path / "points", table(rows, ()), f"{threshold}.tsv")
    points = "filename\tonset\toffset\tevent_label\tthreshold\n"
    points += "".join(f"{name}\t0\t10\t{label}\t0.9\n" for name, label in sure)
    points += "".join(f"{name}\t0\t10\t{label}\t0.5\n" for name, label in sure + unsure)
    contents = dict.fromkeys(("predictions_PSDS1", "predictions_PSDS2"), points)
    contents |= dict.fromkeys(("predictions", "predictions_SBF1"), HEAD)
    contents |= {"predictions_CBF1": "filename\tevent_labels\n"}
    contents |= {"durations": "filename\tduration\n" + "".join(f"{name}\t10\n" for name in names)}
    for name, content in contents.items():
        written(tmp_path / "run", content, f"{name}.tsv")
    (tmp_path / "scores").mkdir()
    for name in (*names[:4], *names[18:]):  # one frame each
        cells = [0.96 * ((name, c) in sure) + 0.5 * ((name, c) in unsure) for c in "ABC"]
        written(tmp_path / "scores", "onset\toffset\tA\tB\tC\n0\t10\t{}\t{}\t{}\n".format(*cells), f"{name[:-4]}.tsv")

    # rates of A and B are 1 and 1/2, that of C is 1 from the first false alarm on: 10 an hour; for PSDS2 there is a
    # cross-trigger in 20 s of B on top: 180 an hour, times 1/2, over the two other classes or over all three
    low, high = 1 / 2 - (1 / 6) ** 0.5, 5 / 6 - (1 / 18) ** 0.5  # mean minus deviation of 1, 1/2, 0 and of 1, 1/2, 1
    for flags, begin in (([], 10 + 180 / 4), (["--ctr-divisor", "C"], 10 + 180 / 6)):
        want = [(x * low + (100 - x) * high) / 100 for x in (10, begin)]
        for arguments in (["est.tsv", "--operating-points", "points"], ["run"], ["--scores", "scores"]):
            code, out, _ = command(capsys, "ref.tsv", *arguments, *flags, "--json")
            got = {name.upper(): value for name, value in json.loads(out).items()}
            assert code == 0 and got["HOURS"] == pytest.approx(0.1)
            assert [got["PSDS1"], got["PSDS2"]] == pytest.approx(want, abs=1e-12), (arguments, flags)
        exact = [got["EXACT_PSDS1"], got["EXACT_PSDS2"]]
        assert exact == pytest.approx(want, abs=1e-12)  # no other score makes a difference
    _, of_scores, _ = command(capsys, "ref.tsv", "--scores", "scores", "--per-class")
    _, of_events, _ = command(capsys, "ref.tsv", "est.tsv", "--per-class")  # of A the first half is found
    for out, names, cells in (
        (of_scores, ["PSDS1", "PSDS2"], ["C", "0.9000", "0.4500"]),
        (of_events, ["clip_f1", "segment_f1", "event_f1"], ["A", "1.0000", "0.6667", "0.0000"]),
    ):
        rows = [line.split() for line in out.split("\n\n")[1].splitlines()]
        assert rows[0] == names and cells in rows


def test_clip_f1_is_that_of_the_tags():
    rng = np.random.default_rng(0)
    for _ in range(50):
        files, classes = [f"{i}.wav" for i in range(4)], list("ABC")
        tags = [rng.random((4, 3)) < share for share in rng.random(2)]
        tables = [[(files[n], 0.0, 1.0, classes[c]) for n, c in np.argwhere(tag)] for tag in tags]
        got, want = score.clip_f1(tables[0], tables[1] * 2, classes), metrics.clip_f1(*tags)
        assert repr(got[:2]) == repr(want[:2]) and got.n_tp.tolist() == want.n_tp.tolist()
        assert repr(list(got.per_class.items())) == repr(list(zip(classes, want.per_class.values())))


def test_memory_of_clip_f1_grows_with_the_rows():
    """Each row has a file and a label of its own"""
    peaks = []
    for n in (1000, 4000):
        rows, classes = [(f"{i}.wav", 0.0, 1.0, f"{i}") for i in range(n)], [f"{i}" for i in range(n)]
        tracemalloc.start()
        assert score.clip_f1(rows, rows, classes).macro == 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 8 * peaks[0]  # 16 times where it grows with files times labels


def test_control_characters_are_shown_escaped(tmp_path, capsys):
    path = written(tmp_path, HEAD + "a.wav\t1\t2\tDog\x1b[2J\nb\x9b.wav\t\t\t\n")
    code, out, err = command(capsys, str(path), str(path), "--per-class")
    assert code == 0 and "\nDog\\u001b[2J  " in out and "have no events: b\\u009b.wav\n" in err
    assert not {"\x1b", "\x9b"} & {*out, *err}


def test_command_in_a_shell(tmp_path):
    path = written(tmp_path, HEAD + "a.wav\t1\t2\tA\n")
    program = Program("-m", "extras.score", path, path)
    printed, errors = program.communicate()
    assert program.returncode == 0 and "1.0000" in printed and errors == ""


def test_command_errors_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, HEAD + "a.wav\t1\t2\tA\n", "ok.tsv"), written(tmp_path, HEAD + "a.wav\t3\t2\tA\n", "bad.tsv")
    written(tmp_path, HEAD + "a.wav\t2\t2\tA\n", "zero.tsv"), written(tmp_path, HEAD, "empty.tsv")
    written(tmp_path, "filename\tduration\n", "none.tsv"), (tmp_path / "none").mkdir()
    (tmp_path / "points").mkdir(), written(tmp_path, HEAD, "points/0.5.tsv")
    points = ["--operating-points", "points"]
    for arguments, words in (
        (["ok.tsv", "bad.tsv"], "bad.tsv, line 2"),
        (["ok.tsv", "absent.tsv"], "absent.tsv: no such file; mend the name"),
        (["zero.tsv", "ok.tsv"], "zero.tsv: A in a.wav begins and ends at 2 s"),
        (["ok.tsv", "ok.tsv", "--operating-points", "none"], "no .tsv file"),
        (["ok.tsv", "ok.tsv", "--operating-points", "ok.tsv"], "ok.tsv: has no column threshold; PSDS wants a"),
        (["ok.tsv", "--operating-points", "absent"], "absent: no such file or folder; PSDS wants a table"),
        (["ok.tsv", "ok.tsv", *points, "--durations", "none.tsv"], "none.tsv: names no clip"),
        (["empty.tsv", "empty.tsv", *points], "empty.tsv: names no clip"),
    ):
        code, out, err = command(capsys, *arguments)
        assert code == 2 and out == "" and words in err and err.startswith("error: ") and err.count("\n") == 1
    for arguments in ([], ["ok.tsv"], ["ok.tsv", "ok.tsv", "--durations", "ok.tsv"]):
        code, _, err = command(capsys, *arguments)
        assert code == 2 and "Traceback" not in err


# --- what a run left -------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A run's folder as train.py leaves it, of made-up scores -> folder, reference, report, clips, scores of frames"""
    data, scores = scored_data()
    for part in data.partitions.values():
        part.durations = 10 - np.arange(8) / 7  # seconds, whose sum depends on their order
    monkeypatch.setattr(train, "predict", lambda student, data, part, weights, device: {
        weight: scores[part.name, weight] for weight in weights})  # fmt: skip
    monkeypatch.setattr(metrics, "TUNING_WINDOWS", np.array([1, 7]))
    student, config = torch.nn.Linear(1, 1), tiny_config("")
    (tmp_path / "r").mkdir()
    report = train.score(student, config, data, CPU, train.choose(student, config, data, CPU, quiet), tmp_path / "r")
    public = data.partitions["public"]
    features.write_events(tmp_path / "ref.tsv", [*public.events[::-1], ("gone.wav", 1.0, 2.0, "A")])
    with open(tmp_path / "ref.tsv", "a") as file:  # two clips hold nothing, so the table of events does not name them
        file.write("".join(f"{name}\t\t\t\n" for name in public.filenames))
    return tmp_path / "r", tmp_path / "ref.tsv", report, public, scores["public", report["infer_weight"]][0]


def test_the_folder_of_a_run_is_scored_to_the_last_digit(run_folder, tmp_path, capsys):
    folder, reference, report, public, scores = run_folder
    code, out, err = command(capsys, str(reference), str(folder), "--json", "--per-class")
    got = json.loads(out)
    assert code == 0 and {name: got[name] for name in train.SCORES} == report["scores"]["public"]
    assert 0.1 < min(report["scores"]["public"].values()) < max(report["scores"]["public"].values()) < 1
    assert got["hours"] == pytest.approx(76 / 3600) and "1 clips of" in err and "gone.wav" in err
    windows, data = report["tuned"]["PSDS1"]["window"], (scores, public.filenames, ["A", "B"])
    lowest = metrics.scores_to_events(*data, 0.01, np.array(windows), 0.1565, public.seconds)
    assert score.read_operating_points(folder / "predictions_PSDS1.tsv")[0] == lowest  # no digit of a time is lost
    of_class = report["by_class"]["public"]
    assert got["per_class"]["EBF1"] == {label: of_class[label]["EBF1"]["F1"] for label in "AB"}
    (folder / "predictions_SBF1.tsv").unlink()
    code, out, err = command(capsys, str(reference), str(folder))
    assert code == 2 and out == "" and err.count("\n") == 1 and "has no predictions_SBF1.tsv; name the folder" in err
    written(tmp_path, HEAD + "other.wav\t1\t2\tA\n", "other.tsv")
    (folder / "predictions_SBF1.tsv").write_text(HEAD)
    code, _, err = command(capsys, str(tmp_path / "other.tsv"), str(folder))
    assert code == 2 and "names none of the clips" in err


def test_events_of_many_thresholds_are_operating_points_and_never_one_table(run_folder, capsys):
    folder, reference, report, *_ = run_folder
    table, lengths = folder / "predictions_PSDS2.tsv", ["--durations", str(folder / "durations.tsv"), "--json"]
    code, out, err = command(capsys, str(reference), str(table))
    assert code == 2 and out == "" and err.count("\n") == 1 and "give it after --operating-points" in err
    code, out, _ = command(capsys, str(reference), "--operating-points", str(table), *lengths)
    together = json.loads(out)
    assert code == 0 and together["operating_points"] == 50 and "event_f1_micro" not in together
    header, *rows = [line.rsplit("\t", 1) for line in table.read_text().splitlines()]
    (folder / "points").mkdir()
    for threshold in {row[1] for row in rows}:
        lines = [row[0] for row in [header, *rows] if row[1] in ("threshold", threshold)]
        (folder / f"points/{threshold}.tsv").write_text("\n".join(lines))
    for name in ("._0.01.tsv", ".hidden.tsv"):  # what a Mac leaves on other disks is no table
        (folder / "points" / name).write_bytes(b"\x00\x05\x16\x07")
    points = ["--operating-points", str(folder / "points")]
    code, out, _ = command(capsys, str(reference), str(folder / "predictions.tsv"), *points, *lengths)
    apart = json.loads(out)
    assert code == 0 and apart["psds2"] == together["psds2"] and apart["psds1"] == together["psds1"]
    (folder / "points" / "0.99.tsv").write_bytes(table.read_bytes())
    assert "0.99.tsv: holds the events of many" in command(capsys, str(reference), *points)[2]
    scored = [event for event in events_of(reference) if event[0] != "gone.wav"]
    features.write_events(reference, scored)  # now the truth names just the clips of the run
    code, out, _ = command(capsys, str(reference), "--operating-points", str(table), *lengths)
    assert json.loads(out)["psds2"] == report["scores"]["public"]["PSDS2"]


def test_clip_labels_are_scored(run_folder, tmp_path, capsys):
    folder, reference, report, *_ = run_folder
    features.write_events(reference, [event for event in events_of(reference) if event[0] != "gone.wav"])
    code, out, _ = command(capsys, str(reference), str(folder / "predictions_CBF1.tsv"), "--json")
    assert code == 0 and json.loads(out)["clip_f1_micro"] == report["scores"]["public"]["CBF1"]
    true = written(tmp_path, "filename\tevent_labels\na.wav\tDog,Cat\nb.wav\tDog\nc.wav\t\n", "true.tsv")
    tags = written(tmp_path, "filename\tevent_labels\na.wav\tDog,Cow\nc.wav\tDog\n", "tags.tsv")
    code, out, _ = command(capsys, str(true), str(tags), "--json", "--per-class")
    got = json.loads(out)  # of three labels that were found one is right, and there are three
    assert got["clip_f1_micro"] == pytest.approx(1 / 3) and got["clip_f1_macro"] == pytest.approx((0.5 + 0) / 2)
    assert got["files"] == 3 and got["per_class"] == {"clip_f1": {"Cat": 0, "Cow": None, "Dog": pytest.approx(0.5)}}


# --- tables of frame scores ------------------------------------------------------------------------------------------


def test_a_run_leaves_frame_scores_as_the_field_exchanges_them(run_folder):
    folder, reference, report, public, scores = run_folder
    assert sorted(path.stem for path in (folder / "scores").iterdir()) == [f"public{i}" for i in range(8)]
    for i, seconds in enumerate(public.durations):
        names, values = score.read_scores(folder / f"scores/public{i}.tsv")
        n = int(np.ceil(seconds / 0.1565))
        assert names == ["onset", "offset", "A", "B"] and len(values) == n and values[-1, 1] == seconds
        assert np.array_equal(values[1:, 0], values[:-1, 1]) and np.allclose(values[:, 0], 0.1565 * np.arange(n))
        assert np.array_equal(values[:, 2:], scores[i, :n].astype(np.float64))  # no digit is lost
    with pytest.warns(UserWarning, match="1 clips of .* without a table in .*: gone"):
        got, _ = score.score_frames(reference, folder / "scores")
    seconds, truth = public.seconds | {"gone": 10.0}, [*public.events, ("gone", 1.0, 2.0, "A")]
    data = scores, public.filenames, truth, seconds, ["A", "B"], 0.1565
    assert got["PSDS2"] == metrics.psds_from_scores(*data, **PSDS2) > 0.1
    assert got["exact_PSDS2"] == metrics.exact_psds_from_scores(*data, **PSDS2)


def frame_scores_of_a_system(tmp_path):
    """Twelve clips of three lengths, three classes, frames of 64 ms, as files -> reference, folder, durations"""
    rng, hop, classes = np.random.default_rng(5), 0.064, ["Cat", "Dog", "Fox"]
    rows, lengths = [], ["filename\tduration"]
    (tmp_path / "scores").mkdir()
    for i in range(12):
        seconds = (2.56, 4.0, 7.3)[i % 3]
        edges = np.minimum(np.arange(np.ceil(seconds / hop) + 1) * hop, seconds)
        scores = 0.4 * rng.random((len(edges) - 1, 3))
        for c, label in enumerate(classes):
            onset = round(float(rng.uniform(0, seconds - 1)), 3)
            offset = round(onset + float(rng.uniform(0.3, 1)), 3)
            if (i + c) % 4:
                rows.append(f"clip.{i}.wav\t{onset}\t{offset}\t{label}")
                near = (edges[:-1] >= onset - 0.1 * (i % 2)) & (edges[1:] <= offset)
                scores[near, c] += rng.uniform(0.1, 0.6)
        order = rng.permutation(3)  # columns are known by their names
        lines = ["\t".join(("onset", "offset", *(classes[c] for c in order)))]
        lines += ["\t".join(map(repr, (*pair, *values))) for pair, values in
                  zip(zip(edges.tolist(), edges[1:].tolist()), scores[:, order].tolist())]  # fmt: skip
        written(tmp_path / "scores", "\n".join(lines), f"clip.{i}.tsv")
        lengths.append(f"clip.{i}.wav\t{600 + i}")
    written(tmp_path, HEAD + "\n".join(rows), "ref.tsv"), written(tmp_path, "\n".join(lengths), "lengths.tsv")
    return tmp_path / "ref.tsv", tmp_path / "scores", tmp_path / "lengths.tsv"


# of the case above: what sed_scores_eval 0.0.4 says of all thresholds and of threshold 0.5
PEER = {
    "exact_PSDS1": 0.423327275644366, "exact_PSDS2": 0.9062039291075891,
    "event_f1_macro": 0.3035426731078905, "event_f1_micro": 0.29729729729729726,
    "segment_f1_macro": 0.9246606855302509, "segment_f1_micro": 0.923076923076923,
}  # fmt: skip


def test_frame_scores_of_any_hop_and_length_are_scored_as_by_sed_scores_eval(tmp_path, capsys):
    reference, folder, lengths = map(str, frame_scores_of_a_system(tmp_path))
    flags = [reference, "--scores", folder, "--durations", lengths, "--json"]
    (tmp_path / "scores/._clip.0.tsv").write_bytes(b"\x00\x05\x16\x07")
    code, out, err = command(capsys, *flags, "--threshold", "0.5", "--per-class")
    got = json.loads(out)
    assert code == 0 and err == "" and {name: got[name] for name in PEER} == pytest.approx(PEER, abs=1e-12)
    assert got["frame_hop"] == 0.064 and got["hours"] == pytest.approx((12 * 600 + 66) / 3600)
    # at 50 thresholds, and after a median filter: clip by clip, as no clip reaches into the next
    truth = [(name[:-4], *event) for name, *event in events_of(reference)]
    points, filtered = [[] for _ in range(50)], []
    for path in sorted((tmp_path / "scores").glob("c*.tsv")):
        names, values = score.read_scores(path)
        one = values[None, :, 2:], [path.stem], names[2:]
        for k, point in enumerate(points):
            point += metrics.scores_to_events(*one, (2 * k + 1) / 100, 1, 0.064, {path.stem: values[-1, 1]})
        filtered += metrics.scores_to_events(*one, 0.3, 9, 0.064, {path.stem: values[-1, 1]})
    durations = {f"clip.{i}": 600.0 + i for i in range(12)}
    for name, criteria in (("PSDS1", metrics.PSDS1), ("PSDS2", PSDS2)):
        want = metrics.psds(truth, points, durations, ["Cat", "Dog", "Fox"], **criteria)
        assert 0.3 < want < got[f"exact_{name}"] + 1e-12 and got[name] == pytest.approx(want, abs=1e-12)
    code, out, _ = command(capsys, *flags, "--threshold", "0.3", "--window", "9", "--per-class")
    with_filter = json.loads(out)
    assert with_filter["PSDS1"] == got["PSDS1"] and with_filter["event_f1_macro"] != got["event_f1_macro"]
    assert with_filter["event_f1_macro"] == metrics.event_f1(truth, filtered, ["Cat", "Dog", "Fox"]).macro
    got_without = json.loads(command(capsys, *flags)[1])
    assert "event_f1_micro" not in got_without and got_without["exact_PSDS2"] == got["exact_PSDS2"]


def test_sed_scores_eval_reads_what_a_run_left_and_agrees(run_folder):
    peer = pytest.importorskip("sed_scores_eval.intersection_based")
    folder, reference, _, public, _ = run_folder
    features.write_events(reference, public.events)
    truth = {name[:-4]: [] for name in public.filenames}
    for name, *event in public.events:
        truth[name[:-4]].append(event)
    criteria, seconds = PSDS2 | {"max_efpr": 100.0}, {name[:-4]: length for name, length in public.seconds.items()}
    want, by_class, *_ = peer.psds(folder / "scores", truth, seconds, **criteria)
    got, _ = score.score_frames(reference, folder / "scores", folder / "durations.tsv")
    assert 0.1 < want and got["exact_PSDS2"] == pytest.approx(want, abs=1e-9)


def test_a_share_that_is_just_large_enough_counts_at_all_thresholds(tmp_path):
    (tmp_path / "scores").mkdir()
    rows = [f"{k / 10!r}\t{(k + 1) / 10!r}\t{0.9 * (21 <= k <= 30)!r}" for k in range(40)]
    written(tmp_path / "scores", "onset\toffset\tA\n" + "\n".join(rows), "a.tsv")
    reference = written(tmp_path, HEAD + "a.wav\t2.1\t2.8\tA\n")  # 0.7 of 1 s, but 0.6999999999999997 as float64
    got, _ = score.score_frames(reference, tmp_path / "scores")
    assert (got["PSDS1"], got["exact_PSDS1"]) == (0, 1)


def test_what_scores_and_reference_do_not_share_is_said(tmp_path, capsys):
    reference, folder, lengths = frame_scores_of_a_system(tmp_path)
    extra, lost = folder / "new.tsv", folder / "clip.3.tsv"
    extra.write_bytes(lost.read_bytes().replace(b"0.3", b"-3", 1)), lost.unlink()
    reference.write_text(reference.read_text().replace("Cat", "Cow"))
    code, out, err = command(capsys, str(reference), "--scores", str(folder), "--json", "--per-class")
    got = json.loads(out)
    assert code == 0 and got["files"] == 13 and got["per_class"]["PSDS2"]["Cow"] == 0
    for words in ("1 clips of", "as if nothing was found there: clip.3", "what they find is false: new",
                  "never found: Cow", "ignored by PSDS: Cat", "are not from 0 to 1"):  # fmt: skip
        assert words in err
    code, _, err = command(capsys, str(reference), "--scores", str(folder), "--durations", str(lengths))
    assert code == 2 and "lengths.tsv: has no duration of new; PSDS needs" in err


TABLE = "onset\toffset\tA\tB\n0.0\t0.5\t0.1\t0.2\n0.5\t1.0\t0.3\t0.4\n1.0\t1.2\t0.5\t0.6\n"


def test_bad_tables_of_frame_scores_get_one_line(tmp_path, capsys):
    reference, folder = written(tmp_path, HEAD + "a.wav\t0\t1\tA\n", "ref.tsv"), tmp_path / "scores"
    assert "no folder of tables <clip>.tsv" in command(capsys, str(reference), "--scores", str(folder))[2]
    folder.mkdir(), written(folder, TABLE.replace("A\tB", "B\tA"), "a.tsv")
    for good in (TABLE, TABLE.replace("1.2", "1.5"), TABLE.replace("0.5\t1.0", "0.502\t1.0"),
                 "onset\toffset\tA\tB\n0.0\t0.3\t0.1\t0.2\n"):  # fmt: skip
        written(folder, good, "b.tsv")
        assert command(capsys, str(reference), "--scores", str(folder))[0] == 0
    for text, words in (
        ("", "b.tsv, line 1: wants the columns onset, offset"),
        (TABLE.replace("onset", "start"), "b.tsv, line 1: wants"),
        (TABLE.replace("A\tB", "A\tA"), "b.tsv, line 1: wants"),
        ("onset\toffset\tA\tB\n", "b.tsv: holds no frame"),
        (TABLE.replace("0.4", "x"), "b.tsv, line 3: holds a cell that is no number"),
        (TABLE.replace("\t0.4", ""), "b.tsv, line 3: holds a cell that is no number"),
        (TABLE.replace("0.4", "nan"), "b.tsv, line 3: holds a number that is not finite"),
        (TABLE.replace("0.4", "0.4\t1"), "b.tsv, line 3: 5 columns"),
        (TABLE.replace("A\tB", "A\tC"), "b.tsv, line 1: has other classes than"),
        (TABLE.replace("0.5\t1.0", "0.6\t1.0"), "b.tsv, line 3: frames must follow one another"),
        (TABLE.replace("1.0\t1.2", "1.0\t1.7"), "b.tsv, line 4: frames must follow one another"),
        (TABLE.replace("1.0\t1.2", "1.0\t1.0"), "b.tsv, line 4: frames must follow one another"),
        (TABLE.replace("0.5", "0.4").replace("1.0", "0.8"), "b.tsv, line 2: frames must follow one another"),
        (TABLE.replace("0.0", "-0.5"), "b.tsv, line 2: frames must follow one another"),
    ):
        written(folder, text, "b.tsv")
        code, out, err = command(capsys, str(reference), "--scores", str(folder))
        assert code == 2 and out == "" and words in err and err.count("\n") == 1, (text, err)
    doubled = "onset\toffset\tA\tB\n0\t1\t0.1\t0.2\n1\t2\t0.3\t0.4\n2\t2.4\t0.5\t0.6\n"
    written(folder, doubled, "0.tsv"), written(folder, TABLE, "b.tsv")  # the odd one is blamed, though it comes first
    err = command(capsys, str(reference), "--scores", str(folder))[2]
    assert "0.tsv, line 2: " in err and "each 0.5 s long as in a.tsv, here from 0 to 1 s" in err
    (folder / "b.tsv").unlink(), (folder / "0.tsv").unlink()
    two = written(tmp_path, HEAD + "a.wav\t0\t1\tA\na.flac\t0\t1\tA\n", "two.tsv")
    assert "a.wav and a.flac have one stem" in command(capsys, str(two), "--scores", str(folder))[2]
    for flags in (["--scores", "s", "e.tsv"], ["--threshold", "0.5", "e.tsv"], ["--scores", "s", "--window", "3"],
                  ["--scores", "s", "--threshold", "nan"], ["--scores", "s", "--threshold", "0.5", "--window", "4"],
                  [str(folder), "--durations", "d.tsv"], []):  # fmt: skip
        code, _, err = command(capsys, "r.tsv", *flags)
        assert code == 2 and "Traceback" not in err and "error: " in err


# --- a trained model -------------------------------------------------------------------------------------------------


def test_a_trained_model_is_scored_on_other_data_with_the_thresholds_of_its_run(tmp_path, capsys, small):
    root, out, other = write_tiny(tmp_path / "set"), tmp_path / "r", tmp_path / "other"
    run("--data", root, "--visual", "openl3", "--out", out, *"--epochs 1 --batches 1 --batch-size 1 1 1".split())
    model, report = str(out / "model.pt"), json.loads((out / "metrics.json").read_text())
    capsys.readouterr()
    code, printed, err = command(capsys, "--model", model, "--data", str(root), "--json", "--per-class")
    got = json.loads(printed)
    assert code == 0 and {name: got[name] for name in train.SCORES} == report["scores"]["public"]
    assert got["per_class"]["SBF1"]["Dog"] == report["by_class"]["public"]["Dog"]["SBF1"]["F1"]
    assert f"were tuned on the validation clips of {root}" in err and f"weight {report['infer_weight']:g} " in err
    # nothing but a public list, one of its clips gone, without video, one class alone: heard only
    table, folder = "metadata/eval/public.tsv", "audio/eval/public"
    (other / folder).mkdir(parents=True), (other / table).parent.mkdir(parents=True)
    (other / table).write_text(HEAD + "p1.wav\t0.1\t1\tDog\nlost.wav\t0\t1\tDog\n")
    shutil.copy(root / folder / "p1.wav", other / folder)
    code, printed, err = command(capsys, "--model", model, "--data", str(other), "--json")
    assert code == 0 and json.loads(printed)["files"] == 1 and "lost.wav" in err and "1 clips have no openl3" in err
    state = torch.load(model, weights_only=True)
    part = features.Partition("public", None, 1, ["p1.wav"], [("p1.wav", 0.1, 1.0, "Dog")], np.array([[False, True]]))
    part.durations = np.array([2.0])
    log_mel = features.log_mel(features.load_audio(root / folder / "p1.wav"))
    mean, std = state["mel_statistics"]
    student = avsed.MultiEncoder(2, {"openl3": 6})
    student.load_state_dict(state["weights"])
    with torch.no_grad():
        without = torch.zeros(1, 64, 6), torch.tensor([False])
        heard = student.eval()((log_mel[None] - mean) / std, *({"openl3": x} for x in without), 1.0)
    tuned = {name: [values and np.array(values) for values in state["tuned"][name].values()] for name in train.SCORES}
    want = train.evaluate(part, ["Cat", "Dog"], *(logits.sigmoid().numpy() for logits in heard), tuned)
    assert {name: json.loads(printed)[name] for name in want} == score.or_null(want)

    (other / table).write_text(HEAD + "p1.wav\t0.1\t1\tFox\n")
    (other / "visual/openl3").mkdir(parents=True)
    for message, arguments in {
        "public.tsv: the model does not know the class 'Fox'": (model, other),
        "absent: no such folder": (model, tmp_path / "absent"),
        "metadata/eval/public.tsv: no such file": (model, tmp_path / "empty"),
        "absent.pt: no such file; name the model.pt": (tmp_path / "absent.pt", root),
        "public: none of the 1 clips": (model, other),
        "vectors are 7 wide, but the model learnt from 6": (model, other),
    }.items():
        if "none of" in message:
            (other / table).write_text(HEAD + "lost.wav\t0\t1\tDog\n")
        if "no such file" in message:
            (tmp_path / "empty").mkdir(exist_ok=True)
        if "wide" in message:
            (other / table).write_text(HEAD + "p1.wav\t0.1\t1\tDog\n")
            np.save(other / "visual/openl3/p1.npy", np.zeros((64, 7), np.float16))
        code, printed, err = command(capsys, "--model", str(arguments[0]), "--data", str(arguments[1]))
        assert code == 2 and printed == "" and message in err.splitlines()[-1] and "Traceback" not in err, err
    for flags in (["--model", model], ["--data", "x"], ["r.tsv", "--model", model, "--data", "x"]):
        assert command(capsys, *flags)[0] == 2
