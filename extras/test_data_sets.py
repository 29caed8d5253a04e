"""Data as people have them: other layouts, fewer lists, long clips, odd labels and names, what the console says of it
"""

import json
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

import features
import train
from extras import embeddings, fayek2020, plumbing, runs, tagging
from extras.plumbing import InputError
from extras.test_bad_input import refused
from test_avsed import CPU, HERE, LAYOUT, STRONG_HEADER, WEAK_HEADER, quiet, run, small, tiny_config  # noqa: F401
from test_avsed import tiny_rows, write_tiny, write_wav, written

ONE_STEP = "--epochs 1 --batches 2 --infer-weight 1 --visual openl3".split()


def put(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def loaded(root, visual=(), **more):
    """-> DataSet, what was printed"""
    lines = []
    data = features.load_dataset(root, visual, log=lines.append, **more)
    return data, "\n".join(lines)


def see(root, *stems):
    """Visual vectors for these stems"""
    (root / "visual/openl3").mkdir(parents=True, exist_ok=True)
    for i, stem in enumerate(stems):
        np.save(root / f"visual/openl3/{stem}.npy", np.random.default_rng(i).random((64, 3), np.float32))


# --- other layouts ---------------------------------------------------------------------------------------------------


REAL = ["Y0123456789a_0.000_10.000.wav", "Yb123456789a_0.000_10.000.wav"]


def write_desed(root, synth, rate, strong_real):
    """DESED as the recipes of 2021 to 2024 lay it out: folders, files beside the sounds, names, columns"""
    rng, lists = np.random.default_rng(0), {
        f"{synth}/audio/train/synthetic21_train/soundscapes{rate}": ["0.wav", "1.wav", "10.wav", "100.wav"],
        f"audio/train/weak{rate}": ["Y-6p32k2WUCs_0.000_10.000.wav", "Yabc_fghij-k_30.000_40.000.wav"],
        f"audio/train/unlabel_in_domain{rate}": ["Y--CE2f-ttEQ_30.000_40.000.wav", "YWP8aI1IXNCQ_0.000_5.000.wav"],
        f"audio/validation/validation{rate}": ["Y00pbt6aJV8Y_350.000_360.000.wav", "Y02sD1KJeoGA_50.000_60.000.wav"],
        f"{synth}/audio/validation/synthetic21_validation/soundscapes{rate}": ["0.wav", "1.wav"],
        "audio/eval/public": ["1Ro0FgMWTUE_120_130.wav", "WP8aI1IXNCQ_0_5.wav"],
    }  # fmt: skip
    if strong_real:
        lists[f"audio/train/strong_label_real{rate}"] = REAL
    for folder, names in lists.items():
        for name in names:
            write_wav(root / folder / name, 0.1 * rng.standard_normal(8000))
    soundscapes = root / synth / f"audio/train/synthetic21_train/soundscapes{rate}"
    put(soundscapes / "0.jams", "{}"), put(soundscapes / "0.txt", "0.1\t0.2\tSpeech")
    unlabelled = root / f"audio/train/unlabel_in_domain{rate}"
    put(unlabelled / "._Y--CE2f-ttEQ_30.000_40.000.wav", "x"), put(unlabelled / "missing_files.tsv", "filename\terror")
    events = ["0.wav\t0.048\t0.235\tAlarm_bell_ringing", "1.wav\t0.100\t0.400\tSpeech", "100.wav\t0.1\t0.5\tSpeech"]
    put(root / synth / "metadata/train/synthetic21_train/soundscapes.tsv", STRONG_HEADER, *events, "10.wav\t0\t.3\tDog")
    put(root / synth / "metadata/validation/synthetic21_validation/soundscapes.tsv", STRONG_HEADER, *events[:2])
    real = [f"{name}\t0.000\t0.410\tDog" for name in REAL]
    put(root / "metadata/train/audioset_strong.tsv", STRONG_HEADER, *real)
    weak = ["Y-6p32k2WUCs_0.000_10.000.wav\tAlarm_bell_ringing", "Yabc_fghij-k_30.000_40.000.wav\tSpeech,Dog"]
    put(root / "metadata/train/weak.tsv", WEAK_HEADER, *weak)
    valid = ["Y00pbt6aJV8Y_350.000_360.000.wav\t0.000\t0.371\tSpeech", "Y02sD1KJeoGA_50.000_60.000.wav\t\t\t"]
    put(root / "metadata/validation/validation.tsv", STRONG_HEADER, *valid)
    public = ["1Ro0FgMWTUE_120_130.wav\t0.000\t0.281\tSpeech", "WP8aI1IXNCQ_0_5.wav\t0.100\t0.400\tDog"]
    put(root / "metadata/eval/public.tsv", STRONG_HEADER, *public)
    see(root, *[name[:-4] for names in lists.values() for name in names if not name[:-4].isdecimal()])
    return root


def readme_layout(root, synth, rate, strong_real):
    """Run the README's lines for DESED in the folder root, as somebody who copies them"""
    block = re.search(r"```\ncd DIR .*?```", (HERE / "README.md").read_text(), re.S)[0].strip("`")
    block = re.sub("cd DIR.*", "", re.sub("synth=.*", f"synth={synth}", re.sub("rate=_16k.*", f"rate={rate}", block)))
    if not strong_real:
        block = re.sub(r".*audioset_strong.*\n", "", block)
    subprocess.run(["bash", "-c", block], cwd=root, check=True)


@pytest.mark.parametrize(
    "synth, rate, strong_real", [(".", "_16k", False), (".", "", True), ("dcase_synth", "_16k", True)]
)
def test_desed_of_2021_to_2024_is_trained_and_scored(synth, rate, strong_real, tmp_path, capsys, small):
    root = write_desed(tmp_path / "dataset", synth, rate, strong_real)
    readme_layout(root, synth, rate, strong_real)
    run("--data", root, "--out", tmp_path / "r", *ONE_STEP, "--batch-size", 2, 1, 1)
    printed = capsys.readouterr().out
    shares = "6 listed,     6 found,     2 with openl3 (33.3 %)" if strong_real else "4 listed,     4 found,     0 with"
    assert f"strong         {shares}" in printed and "weak           2 listed,     2 found" in printed
    # two sounds in the folder; hidden files and tables beside them are none; one is in public evaluation
    assert "unlabelled     2 listed,     2 found" in printed and "unlabelled     1 left out, the same rec" in printed
    assert "3 classes: Alarm_bell_ringing, Dog, Speech" in printed
    report = json.loads((tmp_path / "r/metrics.json").read_text())
    assert report["scores"]["public"].keys() == train.SCORES.keys()
    with open(root / "partitions.tsv", "a") as file:  # synthetic validation too: its numbers are not those of training
        place = f"{synth}/{{}}/validation/synthetic21_validation/soundscapes"
        file.write(f"validation\t{place.format('metadata')}.tsv\t{place.format('audio')}{rate}\n")
    data, printed = loaded(root, ["openl3"])
    assert "validation     4 listed,     4 found,     2 with openl3 (50.0 %)" in printed
    assert data.partitions["validation"].filenames[2:] == ["0.wav", "1.wav"] and "strong     " in printed
    assert len(data.partitions["strong"]) == 4 + 2 * strong_real and not re.search("strong.* left out", printed)
    strong, (first, *_) = data.partitions["strong"], data.partitions["validation"].log_mel[2:]
    assert not np.array_equal(strong.log_mel[0], first)  # each has its own sound
    expected = [f"{name[:-4]}.npy" in {p.name for p in (root / "visual/openl3").iterdir()} for name in strong.filenames]
    assert strong.present["openl3"].tolist() == expected == [False] * 4 + [True] * 2 * strong_real


def test_the_same_clips_in_another_layout_are_the_same_data(tmp_path):
    rows = tiny_rows()
    rows["strong"].sort()
    old, new = write_tiny(tmp_path / "old", rows), tmp_path / "new"
    rows = ["folder\tx\tpartition\ttable"]
    for i, (name, (table, folder)) in enumerate(LAYOUT.items()):
        shutil.copytree(old / "audio" / folder, new / f"sounds/{i}")
        (new / "lists").mkdir(exist_ok=True)
        lines = (old / "metadata" / table).read_text().splitlines()
        for part, chosen in enumerate((lines[1:-1], lines[-1:])):  # two tables for each, of one folder
            put(new / f"lists/{name}{part}.tsv", lines[0], *chosen)
            rows.append(f"sounds/{i}\t-\t{name}\tlists/{name}{part}.tsv")
    shutil.copytree(old / "visual", new / "visual")
    text = "\ufeff" + "\r\n".join(rows)
    (new / "partitions.tsv").write_bytes(text.encode())
    (before, _), (after, _) = loaded(old, ["openl3"]), loaded(new, ["openl3"])
    assert runs.description(tiny_config(old), before)["data"] == runs.description(tiny_config(new), after)["data"]
    for name, part in before.partitions.items():
        other = after.partitions[name]
        assert part.filenames == other.filenames and part.events == other.events and part.listed == other.listed
        assert np.array_equal(part.log_mel, other.log_mel)
        assert np.array_equal(part.visual["openl3"], other.visual["openl3"])
    assert all(np.array_equal(a, b) for a, b in zip(before.mel_statistics, after.mel_statistics))
    (classes, parts), (same_classes, moved) = (tagging.read_parts(root, "audio", quiet) for root in (old, new))
    assert classes == same_classes and parts["training"].listed == moved["training"].listed == 8
    for name, part in parts.items():
        assert part.filenames == moved[name].filenames and np.array_equal(part.tags, moved[name].tags)


TABLE, SOUNDS = "metadata/train/weak.tsv", "audio/train/weak"
BAD_LAYOUTS = {
    ("partition\ttable",): "line 1: no column folder",
    ("strong\tx", "a\tb"): "line 1: no column partition, table, folder",
    (f"train\t{TABLE}\t{SOUNDS}",): "line 2: no partition is called 'train'; there are strong, weak, unlabelled",
    (f"\t{TABLE}\t{SOUNDS}",): "line 2: empty partition",
    (f"weak\t\t{SOUNDS}",): "line 2: weak clips have labels; name their table",
    (f"weak\t../set/{TABLE}\t{SOUNDS}",): "line 2: '../set/.*' is not a path inside",
    (f"weak\t{TABLE}\taudio/../../x",): "line 2: 'audio/../../x' is not a path inside",
    (f"weak\t{TABLE}\t/etc",): "line 2: '/etc' is not a path inside",
    (f"weak\t{TABLE}\taudio\\weak",): r"line 2: 'audio\\\\weak' is not a path inside",
    (f"weak\t{TABLE}\t",): "line 2: '' is not a path inside",
    (f"weak\t{TABLE}\taudio/nowhere",): "line 2: there is no folder .*audio/nowhere; correct the row, or take it out",
    (f"weak\tmetadata/none.tsv\t{SOUNDS}",): "line 2: there is no file .*metadata/none.tsv",
    (f"weak\taudio\t{SOUNDS}",): "line 2: there is no file .*audio",
    (f"weak\t{TABLE}\t{TABLE}",): "line 2: there is no folder .*weak.tsv",
    (f"weak\t{TABLE}\t{SOUNDS}",) * 2: "line 3: repeats an earlier row",
    (f"weak\t{TABLE}\t{SOUNDS}\tmore",): "line 2: 4 columns where the header has 3",
    (f"weak\t{TABLE}\t{SOUNDS}",): ": no row of strong; add it, or give it no share of the batch: --batch-size",
    (): ": no row of strong",
}


def test_bad_partitions_get_one_line(tmp_path, capsys):
    root = write_tiny(tmp_path / "set")
    for rows, message in BAD_LAYOUTS.items():
        heading = () if "line 1" in message else ("partition\ttable\tfolder",)
        put(root / "partitions.tsv", *heading, *rows)
        with pytest.raises(InputError) as error:
            plumbing.read_layout(root, features.PARTITIONS, features.TRAINING)
        assert re.search(f"partitions.tsv,? ?{message}", str(error.value)) and "\n" not in str(error.value), rows
    assert "no row of strong" in refused(capsys, "--data", root, "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()
    # a clip that two lists of a partition have, whose events would count twice
    shutil.copy(root / TABLE, root / "metadata/again.tsv")
    rows = [f"{name}\tmetadata/{table}\taudio/{folder}" for name, (table, folder) in LAYOUT.items()]
    put(root / "partitions.tsv", "partition\ttable\tfolder", *rows, f"weak\tmetadata/again.tsv\t{SOUNDS}")
    with pytest.raises(InputError, match=r"again\.tsv: Yaaaaaaaaaaa_0.* is in another list of 'weak' too"):
        loaded(root)
    put(root / "metadata/eval/public.tsv", STRONG_HEADER)
    (tmp_path / "empty").mkdir()
    put(root / "partitions.tsv", "partition\ttable\tfolder", *rows[:2], "unlabelled\t\tvisual", *rows[3:])
    with pytest.raises(InputError, match="the list of 'unlabelled' is empty; add it, or give it no share"):
        loaded(root)
    assert not len(loaded(root, needed=("strong", "weak", "validation"))[0].partitions["unlabelled"])


# --- fewer lists -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["0 2 0", "2 0 0", "2 2 0"])
def test_lists_without_a_share_may_be_absent(sizes, tmp_path, capsys, small):
    rows = {"strong": ["00.wav\t0.1\t1.5\tC", "01.wav\t0.1\t1.5\tD"], "weak": ["w0.wav\tC", "w1.wav\tD,C"]}
    rows |= {"validation": ["v0.wav\t0.5\t1.2\tD", "v1.wav"], "public": ["p1.wav\t0\t1\tD"]}
    root = write_tiny(tmp_path / "set", tiny_rows() | rows, streams=())
    for name, size in zip(features.TRAINING, sizes.split()):
        if size == "0":
            (root / "metadata" / LAYOUT[name][0]).unlink()
    if sizes == "2 2 0":  # listed, and not there: that too is absent
        put(root / "metadata" / LAYOUT["unlabelled"][0], "filename", "nowhere.wav", "long" * 99)
    flags = ["--data", root, *"--epochs 1 --batches 2 --batch-size".split(), *sizes.split()]
    run(*flags, "--out", tmp_path / "r")
    report = json.loads((tmp_path / "r/metrics.json").read_text())
    assert report["scores"].keys() == {"validation", "public"} and not any("absent" in note for note in report["notes"])
    capsys.readouterr()
    (root / "metadata/eval/public.tsv").unlink()
    run(*flags, "--out", tmp_path / "v")
    note = "public evaluation is absent: these are scores of validation, where thresholds were chosen too"
    report = json.loads((tmp_path / "v/metrics.json").read_text())
    assert report["notes"][0] == note and report["scores"].keys() == report["by_class"].keys() == {"validation"}
    printed = capsys.readouterr().out
    assert f"\nnote   {note}\n" in printed and (tmp_path / "v/log.txt").read_text() == printed
    cells = [train.as_printed(name, score) for name, score in report["scores"]["validation"].items()]
    assert [line.split()[-5:] for line in printed.splitlines() if line.startswith("transformer ")] == [cells]
    assert [*features.read_weak(tmp_path / "v/predictions_CBF1.tsv")] == ["v0.wav", "v1.wav"]
    run(*flags, "--out", tmp_path / "v", "--resume")
    assert f"\nnote   {note}\n" in capsys.readouterr().out
    (root / "metadata/validation/validation.tsv").unlink()
    error = refused(capsys, *flags, "--out", tmp_path / "n")
    assert re.search(r"validation\.tsv: no such file; thresholds are chosen on its clips", error)


def test_a_needed_list_is_missed(tmp_path, capsys):
    root = write_tiny(tmp_path / "set", streams=())
    (root / "metadata/train/unlabel_in_domain.tsv").unlink()
    error = refused(capsys, "--data", root, "--out", tmp_path / "r")
    assert re.search(r"unlabel_in_domain\.tsv: no such file; add it, or give it no share .*: --batch-size", error)
    (root / "metadata/train/synthetic20/soundscapes.tsv").unlink(), (root / "metadata/train/weak.tsv").unlink()
    with pytest.raises(InputError, match="no list: hold no label; there must be a class to learn"):
        loaded(root, needed=("validation",))


# --- long clips ------------------------------------------------------------------------------------------------------


def test_what_lies_behind_ten_seconds_or_the_sound_is_counted(tmp_path):
    rows = tiny_rows()
    rows["validation"] = ["v0.wav\t1\t2\tDog", "v0.wav\t9\t12\tDog", "v0.wav\t10.5\t12\tCat", "v0.wav\t8\t10.1\tCat",
                          "v1.wav\t10.5\t11\tCat", "v1.wav\t0\t2.1\tDog", "v1.wav\t1\t2.3\tDog", "v1.wav\t4\t5\tCat",
                          "v2.wav"]  # fmt: skip
    root = write_tiny(tmp_path, rows, streams=())
    sound = 0.1 * np.random.default_rng(0).standard_normal(12 * 16000)
    sound[-1] = 1.0  # the peak of the file is not heard, and counts
    write_wav(root / "audio/validation/v0.wav", sound, subtype="FLOAT")
    write_wav(root / "audio/validation/v2.wav", np.ones(160050))  # a few samples more are no long clip
    write_wav(root / "audio/train/weak/w2.wav", np.ones(170000))
    data, printed = loaded(root)
    assert data.partitions["validation"].durations.tolist() == [12, 2, 160050 / 16000]
    assert np.allclose(data.partitions["validation"].log_mel[0], features.log_mel(sound[:160000]), atol=1e-4)
    assert re.search("validation +1 last over 10 s, the rest is not heard; 2 of 8 events begin or end there", printed)
    assert re.search("validation +3 of 8 events begin or end behind their sound's end", printed)
    assert re.search("weak +1 last over 10 s, the rest is not heard\n", printed)
    assert printed.count("last over") == 2 and printed.count("behind their") == 1


# --- labels and names ------------------------------------------------------------------------------------------------


def test_labels_with_commas(tmp_path):
    cells = ['"Air horn, truck horn",Car', "Car,Car", "", "Car,"]
    table = written(tmp_path, WEAK_HEADER, *(f"{name}.wav\t{cell}" for name, cell in zip("abcd", cells)))
    both = {"Air horn, truck horn", "Car"}
    assert features.read_weak(table) == {"a.wav": both, "b.wav": {"Car"}, "c.wav": set(), "d.wav": {"Car"}}
    for cell in ("Air horn, truck horn", "Car,Air horn, truck horn", '"""Air horn, truck horn"",Car"', 'Car, "Dog"'):
        with pytest.raises(InputError, match="line 2: .* has a space in front, or a quotation mark; take it"):
            features.read_weak(written(tmp_path, WEAK_HEADER, f"a.wav\t{cell}"))
    for cell in ('"Air horn', '"Air horn" truck'):
        with pytest.raises(InputError, match="line 2: .* is not a list of labels .*; correct the quotation marks"):
            features.read_weak(written(tmp_path, WEAK_HEADER, f"a.wav\t{cell}"))
    for cell in ("Air horn, truck horn", '"Air horn, truck horn"'):  # one label to a cell: quoted or not
        _, events = features.read_strong(written(tmp_path, STRONG_HEADER, f"a.wav\t0\t1\t{cell}"))
        assert events == [("a.wav", 0, 1, "Air horn, truck horn")]
    classes, tags = sorted(both), np.array([[True, True], [False, True], [False, False]])
    runs.write_tags(tmp_path / "x.tsv", ["a", "b", "c"], classes, tags)
    assert (tmp_path / "x.tsv").read_text().splitlines()[1] == 'a\t"Air horn, truck horn",Car'
    assert [*features.read_weak(tmp_path / "x.tsv").values()] == [both, {"Car"}, set()]
    rows = tiny_rows()
    rows["weak"][0] = rows["weak"][0].split("\t")[0] + '\tDog,"Air horn, truck horn"'
    assert '3 classes: "Air horn, truck horn", Cat, Dog\n' in loaded(write_tiny(tmp_path / "set", rows, streams=()))[1]


def test_one_unicode_form(tmp_path, monkeypatch):
    """What is typed on two systems is one class and one clip: an umlaut is one character, or two"""
    one, two = (unicodedata.normalize(form, "Türklingel") for form in ("NFC", "NFD"))
    rows = tiny_rows()
    rows["weak"] = [f"{one}1.wav\t{two}", f"{two}2.wav\tDog", "w.wav\tCat"]
    rows["strong"][0], rows["validation"][0] = f"00.wav\t0\t1\t{one}", f"v0.wav\t0.5\t1.2\t{two}"
    root = write_tiny(tmp_path, rows, streams=())
    for i, name in ((1, one), (2, two)):  # on disk, the other way round
        (root / f"audio/train/weak/{name}{i}.wav").rename(root / f"audio/train/weak/{(two, one)[i - 1]}{i}.wav")
    see(root, f"{two}1", f"{one}2", "v0", "p1")
    data, printed = loaded(root, ["openl3"])
    assert data.classes == ["Cat", "Dog", one] and f"3 classes: Cat, Dog, {one}" in printed
    weak = data.partitions["weak"]
    assert weak.filenames == [f"{one}1.wav", f"{one}2.wav", "w.wav"] and weak.present["openl3"].tolist() == [1, 1, 0]
    mean, cache = fayek2020.mean_vector, tmp_path / "c"
    classes, parts = tagging.load_tagging(root, features.load_audio, "openl3", mean, cache, log=quiet)
    assert classes == data.classes and parts["training"].present.sum() == 2 and len(parts["training"].filenames) == 7
    (root / "video").mkdir(), (root / f"video/{two}1.mp4").touch()
    assert embeddings.inventory(root, ["openl3"], quiet)[f"{one}1"][0].name == f"{two}1.mp4"


def test_classes_that_only_weak_clips_have_are_named(tmp_path):
    rows = tiny_rows()
    rows["weak"][2] = "w2.wav\tFrying,Blender"
    _, printed = loaded(write_tiny(tmp_path / "a", rows, streams=()))
    assert "in weak clips alone: Blender, Frying; each strong clip teaches that they are absent" in printed
    assert "in weak clips alone" not in loaded(write_tiny(tmp_path / "b", streams=()))[1]
    rows["strong"].append("gone.wav\t0\t1\tFox")  # listed, but its audio is absent
    rows["strong"].append("gone.wav\t2\t3\tFrying")
    root = write_tiny(tmp_path / "c", rows, streams=())
    untaught = "in no labelled training clip that is there: Fox; they cannot be learned"
    _, printed = loaded(root)
    assert untaught in printed and "in weak clips alone: Blender, Frying;" in printed
    _, printed = loaded(root, needed=["strong", "validation"])  # the weak list has no share of the batch
    assert untaught.replace("Fox", "Blender, Fox, Frying") in printed and "weak clips" not in printed
    assert "in no labelled" not in loaded(root, needed=["validation"])[1]
    lines = []
    tagging.read_parts(root, "audio", lines.append)
    assert untaught in "\n".join(lines) and "weak clips" not in "\n".join(lines)


# --- one name, one clip ----------------------------------------------------------------------------------------------


def numbered(root, names=("001.wav", "002.wav")):
    """Every list has clips of the same names, each with a sound of its own"""
    rows = {name: [f"{f}\t0.1\t1\tDog" for f in names] for name in LAYOUT}
    rows |= {"weak": [f"{f}\tDog" for f in names], "unlabelled": list(names)}
    return write_tiny(root, rows, streams=())


def test_a_file_of_a_stream_is_of_one_clip(tmp_path, monkeypatch):
    root = numbered(tmp_path / "set")
    data, printed = loaded(root)  # sound alone: ten clips
    assert [len(part) for part in data.partitions.values()] == [2] * 5 and "left out" not in printed
    _, parts = tagging.read_parts(root, "audio", quiet)
    training = parts["training"]
    assert training.listed == 4
    assert [path.parent.name for path in training.sounds] == ["soundscapes"] * 2 + ["weak"] * 2
    both = r"soundscapes/00(\d)\.wav and .*weak/00\1\.wav: two clips, but one .*00\1\.{}; give each a name of its own"
    see(root, "001")
    with pytest.raises(InputError, match=both.format("npy")):
        loaded(root, ["openl3"])
    with pytest.raises(InputError, match=both.format("npy")):
        tagging.load_tagging(root, features.load_audio, "openl3", np.mean, tmp_path / "c", log=quiet)
    (root / "video").mkdir(), (root / "video/002.mp4").touch()
    monkeypatch.setattr(embeddings, "find_ffmpeg", lambda: "ffmpeg")
    with pytest.raises(InputError, match=both.format("mp4")):
        embeddings.extract(root, {"tce": "r.pth"}, log=quiet)
    monkeypatch.setattr(embeddings, "load_network", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(embeddings, "sound_vectors", lambda *_: np.zeros((10, 128), np.float32))
    with pytest.raises(InputError, match=both.format("npy")):
        embeddings.extract_sound(root, "v.pth", log=quiet)
    assert not (root / "sound").exists()
    (root / "sound/some").mkdir(parents=True), np.save(root / "sound/some/001.npy", np.zeros(3))
    with pytest.raises(InputError, match=both.format("npy")):
        tagging.read_parts(root, "sound/some", quiet)
    # the same sound in two training lists is one clip, whatever its name; so are two downloads of one recording
    for name in ("001.wav", "002.wav"):
        for folder in ("weak", "unlabel_in_domain"):
            shutil.copy(root / f"audio/train/synthetic20/soundscapes/{name}", root / f"audio/train/{folder}/{name}")
    shutil.rmtree(root / "audio/validation"), shutil.rmtree(root / "audio/eval")
    sounds = [path for name in features.TRAINING for path in (root / "audio" / LAYOUT[name][1]).iterdir()]
    plumbing.check_stems(sounds, {"001": "001.npy", "002": "002.npy"}, features.recording)
    twice = [Path(f"{folder}/Yaaaaaaaaaaa_0.000_10.000.wav") for folder in ("weak", "unlabelled")]
    plumbing.check_stems(twice, {"Yaaaaaaaaaaa_0.000_10.000": "x.npy"}, features.recording)


def test_a_folder_without_a_list_is_read_in_the_order_of_names(tmp_path, monkeypatch):
    on_disk = {name: tmp_path / name for name in ("b.wav", "a.flac", "c.txt", "a.wav")}  # as the disk has them
    monkeypatch.setattr(plumbing, "files_in", lambda folder: on_disk)
    paths, *_ = features.read_lists("unlabelled", [(None, tmp_path)])
    assert [*paths.items()] == [(name, tmp_path / name) for name in ("a.flac", "a.wav", "b.wav")]


def test_a_file_of_a_stream_is_of_one_test_clip(tmp_path):
    rows = tiny_rows()
    rows["validation"], rows["public"] = rows["validation"] + ["same.wav"], rows["public"] + ["same.wav"]
    with pytest.raises(InputError, match=r"validation/same\.wav and .*public/same\.wav: two clips, but one "):
        loaded(write_tiny(tmp_path / "set", rows), ["openl3"])


def test_a_test_clip_is_not_trained_on(tmp_path):
    rows = tiny_rows()
    rows["strong"] += ["p1.wav\t0\t1\tDog"]
    rows["weak"] += ["v0.wav\tDog", "p1.wav\tCat", "17.wav\tDog", "18.wav\tDog"]
    rows["unlabelled"] += ["v3.wav", "V3.wav"]
    rows["validation"] += ["17.wav\t0\t1\tDog", "18.wav\t0\t1\tDog"]
    root = write_tiny(tmp_path / "set", rows, streams=())
    shutil.copy(root / "audio/validation/18.wav", root / "audio/train/weak/18.wav")  # the number 17 names two clips
    data, printed = loaded(root)
    trained = {name: data.partitions[name].filenames for name in features.TRAINING}
    assert trained["strong"] == ["00.wav", "01.wav", "02.wav", "03.wav"]
    assert trained["weak"][-2:] == ["w3.wav", "17.wav"] and trained["unlabelled"][-2:] == ["u4.wav", "V3.wav"]
    strong, weak = data.partitions["strong"], data.partitions["weak"]
    assert len(strong.tags) == len(strong.frame_targets) == len(strong.log_mel) == 4 and len(weak.tags) == 5
    assert not any(event[0] == "p1.wav" for event in strong.events)
    said = dict(re.findall(r"(\w+) +(\d) left out, the same recording is in validation or public", printed))
    assert said == {"strong": "1", "weak": "3", "unlabelled": "2"}
    for sound in ("audio", "sound/some"):
        for path in (root / "audio").rglob("*.wav"):
            (root / "sound/some").mkdir(parents=True, exist_ok=True)
            if path.stem != "17":  # which would be of two clips
                np.save(root / f"sound/some/{path.stem}.npy", np.zeros(3))
        lines = []
        _, parts = tagging.read_parts(root, sound, lines.append)
        training = parts["training"]
        assert training.listed == 4 + 1 + 8
        kept = trained["strong"] + trained["weak"]
        assert training.filenames == [f for f in kept if sound == "audio" or f != "17.wav"]
        assert lines == ["       training       4 left out, the same recording is in validation or public"]
    assert {path.name for path in data.partitions["validation"].paths} >= {"v0.wav", "v3.wav", "17.wav", "18.wav"}
    with pytest.raises(InputError, match=r"/a2\.wav and .*/a2\.wav: by its name one clip, and so are all"):
        loaded(numbered(tmp_path / "all", ("a.wav", "a2.wav")))


# --- scores that are not defined -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes, events, notes, undefined",
    [
        ("ABC", [("p0.wav", 1.0, 3.0, "A"), ("p1.wav", 2.0, 8.0, "B")],
         "public holds no C: no part of EBF1 and PSDS, false ones count in CBF1 and SBF1", ""),
        ("A", [("p0.wav", 1.0, 3.0, "A")], "of one class PSDS has neither cross-triggers nor a spread", ""),
        ("AB", [], "public holds no event: no score is defined", "CBF1 SBF1 EBF1 PSDS1 PSDS2"),
    ],
)  # fmt: skip
def test_what_public_evaluation_cannot_tell_is_said(classes, events, notes, undefined, tmp_path, monkeypatch):
    parts, classes = {}, list(classes)
    true = [(f"v{c}.wav", 1.0, 3.0, label) for c, label in enumerate(classes)]
    for name, held in (("validation", true), ("public", events)):
        files = [f"{name[0]}{i}.wav" for i in range(4)]
        tags = np.array([[(f, c) in {(e[0], e[3]) for e in held} for c in classes] for f in files])
        parts[name] = features.Partition(name, None, 4, files, held, tags, durations=np.full(4, 10.0))
    rng = np.random.default_rng(0)
    scores = rng.random((4, 64, len(classes)), np.float32), rng.random((4, len(classes)), np.float32)
    monkeypatch.setattr(train, "predict", lambda student, data, part, weights, device: dict.fromkeys(weights, scores))
    statistics = np.zeros(1, np.float32), np.ones(1, np.float32)
    data, config = features.DataSet(classes, parts, statistics, {}), tiny_config("", visual=(), infer_weight=1.0)
    student = torch.nn.Linear(1, 1)
    report = train.score(student, config, data, CPU, train.choose(student, config, data, CPU, quiet), tmp_path)
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text and json.loads(text)["notes"] == report["notes"]
    assert len(report["notes"]) == 1 and report["notes"][0].startswith(notes)
    public = report["scores"]["public"]
    assert [name for name, score in public.items() if score is None] == undefined.split()
    row, note = train.row(config, report).splitlines()[1:]
    assert row.split()[-5:].count("-") == len(undefined.split()) and note == f"note   {report['notes'][0]}"
    absent = {label for label in classes} - {event[3] for event in events}
    for label, found in report["by_class"]["public"].items():
        values = [found["SBF1"]["F1"], found["EBF1"]["F1"], found["PSDS1"]["area"], found["PSDS2"]["area"]]
        assert [value is None for value in values] == [label in absent] * 4
