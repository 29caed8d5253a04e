"""Tests of the evaluator's command and of the tables that it reads."""

import json
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest

import features
import metrics
from extras import score
from features import InputError
from metrics import PSDS2
from test_avsed import HERE

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
    path = written(tmp_path, "filename\tduration\na\t4.2\nb\t10\na\t4.2\n")
    assert score.read_durations(path) == {"a": 4.2, "b": 10.0}
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
    code, table, _ = command(capsys, "ref.tsv", "est.tsv", "--per-class")
    assert code == 0 and "Q" in table and "psds" not in table


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
    assert peaks[1] < 5 * peaks[0]


def test_control_characters_are_shown_escaped(tmp_path, capsys):
    path = written(tmp_path, HEAD + "a.wav\t1\t2\tDog\x1b[2J\nb\x9b.wav\t\t\t\n")
    code, out, err = command(capsys, str(path), str(path), "--per-class")
    assert code == 0 and "\nDog\\u001b[2J  " in out and "have no events: b\\u009b.wav\n" in err
    assert not {"\x1b", "\x9b"} & {*out, *err}


def test_command_in_a_shell(tmp_path):
    path = written(tmp_path, HEAD + "a.wav\t1\t2\tA\n")
    program = [sys.executable, "-m", "extras.score", path, path]
    done = subprocess.run(program, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0 and "1.0000" in done.stdout and done.stderr == ""


def test_command_errors_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, HEAD + "a.wav\t1\t2\tA\n", "ok.tsv"), written(tmp_path, HEAD + "a.wav\t3\t2\tA\n", "bad.tsv")
    written(tmp_path, HEAD + "a.wav\t2\t2\tA\n", "zero.tsv"), written(tmp_path, HEAD, "empty.tsv")
    written(tmp_path, "filename\tduration\n", "none.tsv"), (tmp_path / "none").mkdir()
    (tmp_path / "points").mkdir(), written(tmp_path, HEAD, "points/0.5.tsv")
    points = ["--operating-points", "points"]
    for arguments, words in (
        (["ok.tsv", "bad.tsv"], "bad.tsv, line 2"),
        (["ok.tsv", "absent.tsv"], "absent.tsv: no such file"),
        (["zero.tsv", "ok.tsv"], "zero.tsv: A in a.wav begins and ends at 2 s"),
        (["ok.tsv", "ok.tsv", "--operating-points", "none"], "no .tsv file"),
        (["ok.tsv", "ok.tsv", "--operating-points", "ok.tsv"], "ok.tsv: no such folder; PSDS wants one"),
        (["ok.tsv", "ok.tsv", *points, "--durations", "none.tsv"], "none.tsv: names no clip"),
        (["empty.tsv", "empty.tsv", *points], "empty.tsv: names no clip"),
    ):
        code, out, err = command(capsys, *arguments)
        assert code == 2 and out == "" and words in err and err.startswith("error: ") and err.count("\n") == 1
    for arguments in ([], ["ok.tsv"], ["ok.tsv", "ok.tsv", "--durations", "ok.tsv"]):
        code, _, err = command(capsys, *arguments)
        assert code == 2 and "Traceback" not in err
