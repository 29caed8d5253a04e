"""Each exercise: its check fails as the project is, and passes with a solution. Do not read on before you tried."""

import importlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from extras.test_processes import Program
from test_avsed import HERE, write_tiny

OURS = re.compile(r"(avsed|features|metrics|train|extras)(\.(?!test_).*)?")  # modules of the project

INTERSECTION = '''
def intersection_f1(reference, estimated, classes, dtc_threshold=0.5, gtc_threshold=0.5):
    def covered(x, others):
        return sum(max(0, min(x[2], y[2]) - max(x[1], y[1])) for y in others if x[0] == y[0]) / (x[2] - x[1])

    counts = {}
    for label in all_labels(classes, reference, estimated):
        ref, est = ([event for event in events if event[3] == label] for events in (reference, estimated))
        passing = [d for d in est if covered(d, ref) >= dtc_threshold]
        n_tp = sum(covered(r, passing) >= gtc_threshold for r in ref)
        counts[label] = n_tp, n_tp + len(est) - len(passing), len(ref)
    return f1_of_counts(counts, classes)


def all_labels('''
RAMP = '''
RAMP_UP = 100


def consistency_weight(t):
    return CONSISTENCY * math.exp(-5 * (1 - min(t / RAMP_UP, 1)) ** 2)


@dataclass(frozen=True)
class Config'''
FOCAL = '''    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return ((targets - logits.sigmoid()).abs() ** FOCUS * losses).sum() / max(1, targets.numel())'''
PLAIN = '''    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / max(1, targets.numel())'''
HIDDEN = '''    hidden = rng.random(sum(len(picked) for picked, _, _ in groups)) < HIDE_VIDEO
    present = {}
    for stream, by_group'''
FIXED = "interpolation_weights(audio_weight, has_stream).log() + "
WEIGHED = '''        scores = torch.stack([self.weigher(memory.mean(1))[:, 0] for memory in memories], 1)  # (B, E)
        # the given weights are where it begins; log 0 leaves missing streams at 0
        weights = (interpolation_weights(audio_weight, has_stream).log() + scores).softmax(1)'''
TOKEN = "        self.token = nn.Parameter(0.02 * torch.randn(WIDTH))  # for classification (Boes 2022, Sec. 2.1.1)\n"
CALL = "weights = interpolation_weights(audio_weight, has_stream)"
SOLUTIONS = {  # number: (file, text, what takes its place) ...
    1: [
        ("metrics.py", "offset_collar = max(t_collar", "offset_collar = min(t_collar"),
        ("metrics.py", "np.maximum(t_collar, percentage_of_length", "np.minimum(t_collar, percentage_of_length"),
    ],
    3: [
        ("avsed.py", "self.streams = list(visual_dims)", "self.streams, self.blind = list(visual_dims), False"),
        ("avsed.py", CALL, "weights = interpolation_weights(1.0 if self.blind else audio_weight, has_stream)"),
    ],
    4: [
        ("train.py", "\n@dataclass(frozen=True)\nclass Config", RAMP),
        ("train.py", "CONSISTENCY * losses[2:].sum()", "consistency_weight(t) * losses[2:].sum()"),
    ],
    5: [
        ("train.py", PLAIN, FOCAL),
        ("train.py", "\n@dataclass(frozen=True)", "\nFOCUS = 2.0\n\n\n@dataclass(frozen=True)"),
    ],
    6: [
        ("train.py", "\n@dataclass(frozen=True)", "\nHIDE_VIDEO = 0.5\n\n\n@dataclass(frozen=True)"),
        ("train.py", "    present = {}\n    for stream, by_group", HIDDEN),
        ("train.py", "torch.from_numpy(np.concatenate(parts))", "torch.from_numpy(np.concatenate(parts) & ~hidden)"),
    ],
    8: [
        ("avsed.py", TOKEN, ""),
        ("avsed.py", "self.decoder(features, self.token, ", "self.decoder(features, None, "),
        ("avsed.py", "return logits[:, :FRAMES], logits[:, FRAMES]", "return logits, logits.mean(1)"),
    ],
    9: [("metrics.py", "\ndef all_labels(", INTERSECTION)],
    10: [
        ("avsed.py", TOKEN, TOKEN + "        self.weigher = nn.Linear(WIDTH, 1)\n"),
        ("avsed.py", f"        {CALL}", WEIGHED),
    ],
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """-> project(*changes): extras.exercises of a copy of the project, after these changes of its texts"""
    ours = {name: module for name, module in sys.modules.items() if OURS.fullmatch(name)}
    copy, path = tmp_path / "copy", list(sys.path)
    (copy / "extras").mkdir(parents=True)
    for file in (*HERE.glob("*.py"), *HERE.glob("extras/*.py")):
        shutil.copy(file, copy / file.relative_to(HERE))

    def load(*changes):
        for file, old, new in changes:
            text = (copy / file).read_text(encoding="utf-8")
            assert text.count(old) == 1, (file, old)
            (copy / file).write_text(text.replace(old, new), encoding="utf-8")
        for name in [name for name in sys.modules if OURS.fullmatch(name)]:
            del sys.modules[name]
        importlib.invalidate_caches()
        exercises = importlib.import_module("extras.exercises")
        assert exercises.HERE == copy
        return exercises

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two states of a file within one second look alike to it
    sys.path.insert(0, str(copy))
    yield load
    sys.path[:] = path
    for name in [name for name in sys.modules if OURS.fullmatch(name)]:
        del sys.modules[name]
    sys.modules.update(ours)


@pytest.mark.parametrize("number", SOLUTIONS)
def test_a_change_is_missed_and_then_found(project, number):
    assert project().missing(number)
    assert project(*SOLUTIONS[number]).missing(number) is None


EACH = "torch.from_numpy(np.concatenate(parts) & (rng.random(sum(map(len, parts))) > HIDE_VIDEO))"
HALF = [  # number, a solution that lacks something, what the check says
    (1, SOLUTIONS[1][:1], "event_f1, truth 2 to 5"),
    (1, [(f, old, new.replace("(t_collar", "(0.2")) for f, old, new in SOLUTIONS[1]], "with t_collar 0.05 s"),
    (3, [SOLUTIONS[3][0], ("avsed.py", "_weights(audio_weight, has", "_weights(1.0, has")], "video changes nothing"),
    (4, SOLUTIONS[4][:1], "the gradient is not that of a consistency weight of 0.01"),
    (6, [(f, old, new.replace("rng.random(", "np.random.random(")) for f, old, new in SOLUTIONS[6]], "made again"),
    (6, [SOLUTIONS[6][0], (*SOLUTIONS[6][2][:2], EACH)], "lost one of its streams and kept another"),
    (6, [(f, old, new.replace("HIDE_VIDEO\n", "0.5\n")) for f, old, new in SOLUTIONS[6]], "80 % expected"),
    (9, [(f, old, new.replace("max(0, ", "max(-9, ")) for f, old, new in SOLUTIONS[9]], "two pairs far apart"),
    (10, [(f, old, new.replace(FIXED, "")) for f, old, new in SOLUTIONS[10]], "that the clip lacks has a weight"),
]


@pytest.mark.parametrize("number, changes, said", HALF)
def test_half_a_solution_is_told_what_it_lacks(project, number, changes, said):
    assert said in project(*changes).missing(number)


def test_which_test_tells(project, capsys, monkeypatch):
    def run(command, cwd, capture_output):
        program = Program(*command[1:], cwd=cwd)
        program.communicate()
        return program

    exercises = project()
    monkeypatch.setattr(exercises.subprocess, "run", run)  # the same, but torch is loaded already
    assert "give the name of a test" in exercises.missing(2)
    assert exercises.missing(2, "test_interpolation_weights") is None
    for code, said in ((0, "passes although the weights"), (1, "fails although the weights"), (5, "has no test")):
        ended = subprocess.CompletedProcess([], code)  # a test that passes, or fails, with both states; none
        monkeypatch.setattr(exercises.subprocess, "run", lambda *_, **__: ended)
        with pytest.raises(SystemExit) as stop:
            exercises.main(["2", "test_of_mine"])
        assert stop.value.code == 1 and said in capsys.readouterr().out


def test_a_stream_of_your_own(project, tmp_path):
    exercises, root = project(), write_tiny(tmp_path / "set")
    assert "no such folder" in exercises.missing(7, "mine", root)
    (root / "visual/mine").mkdir()
    rng = np.random.default_rng(0)
    for path in root.glob("audio/**/*.wav"):
        np.save(root / "visual/mine" / f"{path.stem}.npy", rng.standard_normal((64, 8)).astype(np.float32))
    assert exercises.missing(7, "mine", root) is None
    for path in root.glob("visual/mine/*.npy"):
        np.save(path, rng.standard_normal((1, 8)).astype(np.float32).repeat(64, 0))
    assert "of a clip are all the same" in exercises.missing(7, "mine", root)


def test_all_ten_are_listed_and_described(project, capsys):
    exercises = project()
    exercises.CHECKS = [lambda: exercises.need(False, "much")] * 9 + [lambda: 1 / 0]
    exercises.main([])
    lines = capsys.readouterr().out.splitlines()
    text = (HERE / "extras/EXERCISES.md").read_text(encoding="utf-8")
    described = re.findall(r"(?m)^## (\d+)\. (.*) \(.*\)$", text)
    assert described == [(str(n), title) for n, title in enumerate(exercises.TITLES, 1)]
    assert [line.split(":")[0].strip() for line in lines] == [f"{n} {title}" for n, title in described]
    assert lines[0].endswith("not done: much") and "ZeroDivisionError" in lines[9]
    with pytest.raises(ZeroDivisionError):
        exercises.main(["10"])
