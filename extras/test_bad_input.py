"""Bad input gets one line that names the file, exit code 2, no traceback, and nothing half-written"""

import re
import shutil

import numpy as np
import pytest

import features
import train
from extras import benchmark, boes2019, embeddings, fayek2020, plumbing, predict, tables, tagging, toy
from extras.plumbing import InputError
from test_avsed import SHORT, STRONG_HEADER, W2, WEAK_HEADER, quiet, run, write_tiny, write_wav, written

V2, WEAK = "visual/openl3/w2.npy", "metadata/train/weak.tsv"


BAD_ROWS = {
    "a.wav\t2\t2\tA": "0 <= onset < offset, here 2 and 2",
    "a.wav\t2\t1\tA": "here 2 and 1",
    "a.wav\t-1\t2\tA": "here -1 and 2",
    "a.wav\t1\tinf\tA": "here 1 and inf",
    "a.wav\tnan\t1\tA": "here nan and 1",
    "a.wav\tearly\t2\tA": "onset 'early'",
    "a.wav\t0.2_5\t2\tA": "onset '0.2_5'",
    "a.wav\t1\t２\tA": "offset '２' must be numbers",
    "a.wav\t1\t86400.1\tA": "here 1 and 86400.1, in seconds and within a day",
    "a.wav\t1\t\tA": "offset '' must be numbers",
    "a.wav\t1\t2\t": "an event without a label",
    "a.wav\t1\t2\tFox": "the class 'Fox' occurs in no training clip",
    "\t1\t2\tA": "empty filename",
    "a.wav\t1\t2\tA\tB": "5 columns where the header has 4",
    "../a.wav\t1\t2\tA": "'../a.wav' is not a plain file name",
    "..\\a.wav\t1\t2\tA": "is not a plain file name",
    "..\t1\t2\tA": "'..' is not a plain file name",
}


def test_bad_rows_name_file_and_line(tmp_path):
    for row, message in BAD_ROWS.items():
        with pytest.raises(InputError) as error:
            features.read_strong(written(tmp_path, STRONG_HEADER, "ok.wav\t0\t1\tA", row), classes=["A"])
        assert "table.tsv, line 3: " in str(error.value) and message in str(error.value), row
        assert "\n" not in str(error.value)
    for read, header in ((features.read_weak, WEAK_HEADER), (features.read_unlabelled, "filename")):
        with pytest.raises(InputError, match="line 2: .* is not a plain file name"):
            read(written(tmp_path, header, "audio/a.wav"))
    for row in (("a.wav", "10", "10", "A"), ("../a.wav", "1", "2", "A")):  # what a system wrote may hold more
        found = features.read_strong(written(tmp_path, STRONG_HEADER, "\t".join(row)), of_system=True)
        assert found == ([row[0]], [(row[0], float(row[1]), float(row[2]), "A")])


def refused(capsys, *arguments, command=run):
    """The one line on stderr of a command that must end with exit code 2"""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_bad_flags_get_code_2(capsys):
    for flags in (
        "--infer-weight 0 --visual x", "--train-weight 1.1 --visual x", "--train-weight 0.5", "--infer-weight auto",
        "--infer-weight 1e-50 --visual x", "--train-weight 0.5_0 --visual x",
        "--batch-size 0 0 0", "--batch-size -1 1 1", "--epochs 0", "--batches 0", "--seed -1", "--data=",
        "--visual ../x", "--visual ..", "--visual x x", "--precision tf32 --device cpu", "--device nonsense",
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            run(*flags.split())
        said = capsys.readouterr().err
        assert stop.value.code == 2 and "error: " in said, flags
        assert "--visual x x" not in flags or "--visual takes different names" in said
    for command, flags in ((train, []), (tables, ["5"]), (benchmark, ["train"])):
        with pytest.raises(SystemExit):
            command.main([*flags, "--batch-size", "-1", "2", "2"])
        assert "--batch-size: '-1': must be a whole number, 0 or more" in capsys.readouterr().err


def test_a_name_too_long_for_a_disk_is_a_clip_that_is_not_there(tmp_path):
    root, long = write_tiny(tmp_path / "set"), "x" * 300 + ".wav"
    before = features.load_dataset(root, ["openl3"], log=quiet)
    for table in root.glob("metadata/**/*.tsv"):
        lines = table.read_text().splitlines()
        table.write_text("\n".join([*lines, long + "\t" * lines[0].count("\t"), ""]))
    then = features.load_dataset(root, ["openl3"], log=quiet)
    for name, part in then.partitions.items():
        assert part.listed == before.partitions[name].listed + 1
        assert part.filenames == before.partitions[name].filenames
    embeddings.inventory(root, ["openl3"], quiet)
    _, parts = tagging.read_parts(root, "audio", quiet)
    assert not any(long in part.filenames for part in parts.values())
    (root / "partitions.tsv").write_text(f"partition\ttable\tfolder\nweak\tmetadata/{long}\taudio\n")
    with pytest.raises(InputError, match="partitions.tsv, line 2: there is no file .*xxx.wav; correct the row"):
        features.load_dataset(root, log=quiet)


def bytes_at(path, content):
    return lambda root: (root / path).write_bytes(content)


def sound(samples):
    return lambda root: write_wav(root / W2, samples, subtype="FLOAT")


def vectors(array):
    return lambda root: np.save(root / V2, array, allow_pickle=True)


def cut(root):
    write_wav(root / W2, np.zeros(32000))
    (root / W2).write_bytes((root / W2).read_bytes()[:-2])


def without_training_video(root):
    for path in (root / "visual/openl3").glob("[uwY]*.npy"):
        path.unlink()


def all_vectors(part):
    return lambda root: [np.save(path, np.load(path)[part]) for path in (root / "visual/openl3").iterdir()]


def first_vectors_wider(root):
    (path,) = (root / "visual/openl3").glob("Yaaa*")  # of the first training clip that has vectors
    np.save(path, np.zeros((64, 7), np.float16))


def without_strong_rows(root):
    """Nor does any weak clip have the class of a validation row"""
    bytes_at("metadata/train/synthetic20/soundscapes.tsv", f"{STRONG_HEADER}\n".encode())(root)
    bytes_at(WEAK, f"{WEAK_HEADER}\nw2.wav\tCat\n".encode())(root)


def without_labels(root):
    bytes_at(WEAK, f"{WEAK_HEADER}\nw2.wav\t".encode())(root)
    bytes_at("metadata/train/synthetic20/soundscapes.tsv", f"{STRONG_HEADER}\n00.wav".encode())(root)


BAD = {
    "set: no such folder": shutil.rmtree,
    r"weak\.tsv: no such file": lambda root: (root / WEAK).unlink(),
    r"weak\.tsv: is a folder where a file is wanted; ": lambda root: (root / WEAK).unlink() or (root / WEAK).mkdir(),
    r"weak\.tsv, line 1: no column filename, event_labels; ": bytes_at(WEAK, b""),
    r"weak\.tsv: cannot be read as text": bytes_at(WEAK, b"\xff\xfe\x00"),
    r"weak\.tsv, line 2: .* not a plain file name": bytes_at(WEAK, f"{WEAK_HEADER}\n../a.wav\tDog".encode()),
    r"weak\.tsv: hold no label": without_labels,
    "the list of 'validation' is empty": bytes_at("metadata/validation/validation.tsv", STRONG_HEADER.encode()),
    r"soundscapes\.tsv: the list of 'strong' is empty; add it, or": without_strong_rows,
    r"audio/eval/public: none of the 3 clips": lambda root: shutil.rmtree(root / "audio/eval"),
    r"w2\.wav: holds no audio": sound(np.zeros(0)),
    r"w2\.wav: holds samples that are not finite": sound(np.full(100, np.nan)),
    r"w2\.wav: cannot be decoded \(.*; mend": bytes_at(W2, b"RIFF and nothing else"),
    r"w2\.wav: holds less sound than its header promises": cut,
    r"w2\.wav: 999 samples per second, not 1000 to 400000": lambda root: write_wav(root / W2, np.zeros(99), 999),
    "visual/openl3: no such folder": lambda root: shutil.rmtree(root / "visual"),
    "visual/openl3: no file for any training clip": without_training_video,
    r"\.npy: has the shape \(63, 6\) where \(64, D\)": all_vectors(np.s_[1:]),
    r"w2\.npy: has the shape \(64, 7\) where \(64, 6\)": vectors(np.zeros((64, 7), np.float16)),
    r"Yaaa.*\.npy: has the shape \(64, 7\) where \(64, 6\)": first_vectors_wider,
    r"\.npy: has the shape \(64, 0\)": all_vectors(np.s_[:, :0]),
    r"w2\.npy: must be an array of float16 or float32, .* not int16": vectors(np.zeros((64, 6), np.int16)),
    r"w2\.npy: must be an array of float16, .* not float32": vectors(np.zeros((64, 6), np.float32)),
    r"w2\.npy: must be an array of float16 or float32, .* not >f2": vectors(np.zeros((64, 6), ">f2")),
    r"w2\.npy: cannot be read as a \.npy array \(Object": vectors(np.array([{}])),
    r"w2\.npy: cannot be read as a \.npy array": bytes_at(V2, b"\x93NUMPY"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_gets_one_line(message, tmp_path, capsys):
    root = write_tiny(tmp_path / "set")
    BAD[message](root)
    error = refused(capsys, "--data", root, "--visual", "openl3", "--out", tmp_path / "r", *SHORT)
    assert re.search(message, error), error
    assert not (tmp_path / "r").exists() and not list(tmp_path.rglob("*.partial"))


def test_where_nothing_can_be_written_no_work_begins(tmp_path, capsys, monkeypatch):
    root, file = write_tiny(tmp_path / "set"), tmp_path / "file"
    file.write_text("mine")
    (root / "sound").write_text("mine")
    (tmp_path / "model.pt").touch()
    data = ("--data", root, "--visual", "openl3")
    line = re.escape(f"error: {file}: is a file where a folder is wanted; name another\n")
    for command, flags in (
        (run_of(tables), (5, "--data", root, *SHORT)), (run, (*data, *SHORT)), (run_of(boes2019), data),
        (run_of(fayek2020), data), (run_of(predict), (tmp_path / "model.pt", root / W2)),
    ):  # fmt: skip
        for out in (file, file / "sub"):
            assert re.fullmatch(line, refused(capsys, *flags, "--out", out, command=command)), command
    for command, flags in (
        (run_of(predict), (tmp_path / "model.pt", root / W2, "--scores", file / "sub")),
        (run_of(toy), [file]), (run_of(toy), [file / "sub"]),
    ):  # fmt: skip
        assert re.fullmatch(line, refused(capsys, *flags, command=command)), command
    error = refused(capsys, "extract", root, "--sound", "log-mel", command=run_of(embeddings))
    assert "set/sound: is a file where a folder is wanted" in error
    with monkeypatch.context() as patch:  # as on a disk that can only be read
        patch.setattr(plumbing.os, "access", lambda path, mode: path != tmp_path)
        error = refused(capsys, *data, *SHORT, "--out", tmp_path / "r")
        assert f"{tmp_path}: cannot be written to; name another folder" in error
    for path, message in ((tmp_path, "is a folder where a file is wanted"), (file / "x", "is a file where a folder")):
        with pytest.raises(InputError, match=message):
            plumbing.check_out_file(path)
    plumbing.check_out_file(tmp_path / "new/x"), plumbing.check_out_file("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model.pt", "set"]
    assert file.read_text() == (root / "sound").read_text() == "mine" and not (root / "cache").exists()


def run_of(module):
    return lambda *arguments: module.main([str(a) for a in arguments])
