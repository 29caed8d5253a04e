"""Programs in processes of their own, and none of them loads torch anew, which takes seconds

They are forked from a process that has loaded the packages, and none of our files.
"""

import ctypes
import multiprocessing
import os
import runpy
import sys
import tempfile
import threading
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
FORKS = multiprocessing.get_context("forkserver")
LIBRARIES = ["pytest", "scipy.ndimage", "scipy.optimize", "scipy.signal", "soundfile", "torch"]
FORKS.set_forkserver_preload([*LIBRARIES, "torch._dynamo"])  # the last one is what torch loads for an optimizer


class Program:
    """What subprocess.Popen would make of [sys.executable, *command] in the folder cwd, where command is -c or -m

    finalize: the interpreter tidies up at the end, where threads that still run may crash it; this takes a second
    """

    def __init__(self, *command, cwd=HERE, finalize=False, **settings):
        readable, writable = FORKS.Pipe(duplex=False)
        self.stdout, self.stderr = open(os.dup(readable.fileno())), tempfile.NamedTemporaryFile("r")
        arguments = [*map(str, command)], cwd, {**os.environ, **settings}, writable, self.stderr.name, finalize
        self.process = FORKS.Process(target=become, args=arguments, daemon=True)
        self.process.start()
        self.pid = self.process.pid
        writable.close()

    def communicate(self, timeout=300):
        """Wait for its end -> what it printed, and to stderr. timeout: in seconds, then it is killed"""
        alarm = threading.Timer(timeout, self.process.kill)
        alarm.start()
        printed = self.stdout.read()
        self.process.join()
        alarm.cancel()
        self.stdout.close()
        with self.stderr as errors:
            return printed, errors.read()

    @property
    def returncode(self):
        return self.process.exitcode


def become(command, cwd, environment, stdout, stderr, finalize):
    """In the new process: run the program, as the interpreter would"""
    os.environ.clear(), os.environ.update(environment)
    os.chdir(cwd), os.dup2(stdout.fileno(), 1), os.dup2(os.open(stderr, os.O_WRONLY), 2)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)
    foreign = [place for place in sys.path if not Path(place, "avsed.py").exists()]
    sys.path[:] = [os.getcwd(), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *foreign]
    del sys.modules["extras"], sys.modules["extras.test_processes"]  # what led here is not the program's
    (kind, program, *arguments), code = command, 0
    sys.argv = [kind if kind == "-c" else program, *arguments]
    try:
        if kind == "-c":
            exec(program, {"__name__": "__main__"})
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    ctypes.pythonapi.Py_Exit(code) if finalize else os._exit(code)


def test_a_program_is_run_as_an_interpreter_would(tmp_path):
    (tmp_path / "mine.py").write_text("import os, sys\nprint(__name__, sys.argv[1:], os.environ['A'])\nsys.exit(3)\n")
    program = Program("-m", "mine", 1, cwd=tmp_path, A="x")
    assert program.communicate() == ("__main__ ['1'] x\n", "") and program.returncode == 3
    code = "import atexit, sys\nassert 'extras' not in sys.modules\natexit.register(print, 'end')\n{}"
    program = Program("-c", code.format("1 / 0"), finalize=True)
    printed, errors = program.communicate()
    assert program.returncode == 1 and printed == "end\n" and "ZeroDivisionError" in errors
    program = Program("-c", code.format("import os; os.kill(os.getpid(), 9)"))
    assert program.communicate() == ("", "") and program.returncode == -9
