"""Tests of the house: arrows go down only, and what may be copied runs alone"""

import ast
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

import features
from extras.test_processes import Program
from test_avsed import HERE

CELLAR = {"extras.plumbing", "extras.runs"}
GROUND = {"avsed", "features", "metrics", "train"}
OLDER = {"avsed", "features", "metrics", "extras.tagging", "extras.plumbing", "extras.plots", "extras.toy"}
ARROWS = {  # who may import whom: always the same floor or a lower one
    "avsed": set(),
    "metrics": set(),
    "features": {"extras.plumbing"},
    "train": {"avsed", "features", "metrics"} | CELLAR,
    "extras.plumbing": set(),
    "extras.runs": {"extras.plumbing"},
    "extras.cpu": {"extras.plumbing"},
    "extras.parallel": {"train"} | CELLAR,
    "extras.toy": {"features", "extras.plumbing"},
    "extras.embeddings": {"features", "extras.plumbing"},
    "extras.plots": {"features", "extras.plumbing"},
    "extras.page": {"features", "extras.plumbing"},
    "extras.predict": GROUND | CELLAR | {"extras.embeddings", "extras.page", "extras.plots"},
    "extras.tables": GROUND | CELLAR | {"extras.toy", "extras.plots"},
    "extras.report": GROUND | CELLAR | {"extras.page", "extras.plots", "extras.score"},
    "extras.score": GROUND | CELLAR | {"extras.predict"},
    "extras.cells": {"extras.page", "extras.plots", "extras.plumbing"},
    "extras.tour": GROUND | CELLAR | {f"extras.{name}" for name in ("cells", "page", "plots", "predict", "toy")},
    "extras.exercises": GROUND | {"extras.plumbing"},
    "extras.tagging": {"features", "metrics", "extras.plumbing", "extras.toy"},
    "extras.benchmark": GROUND | CELLAR,
    "extras.learned_weights": GROUND | CELLAR | {"extras.toy"},
    "extras.boes2019": OLDER | {"extras.embeddings"},
    "extras.fayek2020": OLDER | {"extras.cpu"},
}
IN_FUNCTIONS = {"train": {"extras.toy", "extras.cpu"}}  # that need them
PACKAGES = {"avsed": {"torch"}, "metrics": {"numpy", "scipy"}}  # the other files: all four


def imports_of(tree):
    """Modules that a piece of code imports"""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"extras.{alias.name}" for alias in node.names) if node.module == "extras" else [node.module]


def test_arrows_go_down_only():
    wanted = {line.split(">")[0] for line in (HERE / "requirements.txt").read_text().split()}
    assert wanted == {"torch", "numpy", "scipy", "soundfile", "pytest"}
    ground, upstairs = ({path.stem: path for path in HERE.glob(f"{folder}*.py")} for folder in ("", "extras/"))
    listed = ast.parse(upstairs.pop("__init__").read_text())  # nothing but the list of what is there
    scripts = {"extras." + name: path for name, path in upstairs.items() if not name.startswith("test_")}
    assert len(listed.body) == 1 and all(f"\n{name[7:]} " in ast.get_docstring(listed) for name in scripts)
    assert ground.keys() == {"avsed", "features", "metrics", "train", "test_avsed"}
    scripts |= {name: path for name, path in ground.items() if name != "test_avsed"}
    for name, path in scripts.items():
        functions, rest = [], ast.parse(path.read_text())
        for node in ast.walk(rest):
            functions += [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.FunctionDef)]
        inside = {module for function in functions for module in imports_of(function)}
        for function in functions:
            function.body = []
        always = set(imports_of(rest))
        assert {module for module in always if module in scripts} <= ARROWS[name], name
        assert {module for module in inside if module in scripts} <= ARROWS[name] | IN_FUNCTIONS.get(name, set()), name
        packages = {module.split(".")[0] for module in always - scripts.keys()} - set(sys.stdlib_module_names)
        assert packages <= PACKAGES.get(name, wanted - {"pytest"}), name  # others are imported where they are needed


@pytest.mark.parametrize("name", ("metrics", "features", "avsed"))
def test_lower_files_run_when_copied_alone(name, tmp_path):
    shutil.copy(HERE / f"{name}.py", tmp_path)
    if name == "features":
        (tmp_path / "extras").mkdir()
        shutil.copy(HERE / "extras/plumbing.py", tmp_path / "extras")
    use = {
        "metrics": "assert metrics.clip_f1([[1]], [[1]]).micro == 1",
        "features": "import numpy; assert features.log_mel(numpy.zeros(160000)).shape == (512, 64)",
        "avsed": "avsed.MultiEncoder(3, {'x': 7})",
    }[name]
    program = Program("-c", f"import {name}; {use}", cwd=tmp_path, PYTHONPATH="")
    assert program.communicate() == ("", "") and program.returncode == 0


def test_log_mel_is_its_section_and_the_constants_above_it():
    source = (HERE / "features.py").read_text()
    above, section = source.split("# --- audio -> log-mel ")
    constants = [node for node in ast.parse(above).body if isinstance(node, ast.Assign)]
    space = {"np": np, "torch": torch, "gcd": math.gcd}
    exec(compile(ast.Module(constants, []), "constants", "exec"), space)
    exec(section.partition("\n")[2].partition("\n# --- ")[0], space)
    sound = np.sin(np.arange(5 * 44100) / 7)
    got = space["log_mel"](space["fit_clip"](space["scale_peak"](space["resample"](sound, 44100))))
    resampled = resample_poly(sound, 160, 441)
    padded = np.zeros(160000)
    padded[:80000] = resampled / np.abs(resampled).max()
    assert got.shape == (512, 64) and torch.allclose(got, features.log_mel(padded), atol=1e-4)


COMMANDS = "train extras.parallel extras.toy extras.embeddings extras.predict extras.tables extras.score".split()
COMMANDS += "extras.report extras.tour extras.exercises extras.benchmark".split()
COMMANDS += "extras.boes2019 extras.fayek2020 features".split()
LOOK = """
import importlib, os, sys

class Reached(BaseException):
    pass

class Watch:  # asked for every module before it is loaded
    def find_spec(self, name, *_):
        if name == "torch":
            raise Reached(os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, Watch())
for name in sys.argv[1:]:
    for before in ({}, {"GOMP_SPINCOUNT": "7"}):
        os.environ.pop("GOMP_SPINCOUNT", None)
        os.environ.update(before)
        for module in list(sys.modules):  # of the project: the next command loads them anew
            if module.split(".")[0] in ("avsed", "extras", "features", "metrics", "train"):
                del sys.modules[module]
        try:
            importlib.import_module(name)
        except Reached as reached:
            print(name, reached)
"""


def test_how_threads_wait_is_said_before_torch_is_loaded():
    command = [sys.executable, "-c", LOOK, *COMMANDS]
    said = subprocess.run(command, cwd=HERE, capture_output=True, check=True, text=True).stdout
    assert said.splitlines() == [f"{name} {spins}" for name in COMMANDS for spins in (1000, 7)]
