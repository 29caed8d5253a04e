"""Tests of a run that several processes share"""

import re
import signal
import socket
import sys

import torch

import train
from extras import parallel
from extras.test_bad_input import refused
from extras.test_processes import Program
from extras.test_runs import DIES
from test_avsed import BATCH, numbered_clips, small, tiny_config, weights_of, write_tiny  # noqa: F401


def test_ranks_share_the_batch_of_one_process(monkeypatch, capsys):
    _, clips = numbered_clips()
    config = tiny_config("", visual=("openl3", "tce"), batch_size=BATCH, train_weight="random")
    monkeypatch.setattr(train, "MIXUP_RATE", 1)
    whole = train.training_batch(clips, config, 3)
    assert whole.log_mel.max(2).values.min() < 1
    for rank in range(2):
        clips.share = rank, 2
        share = train.training_batch(clips, config, 3)
        assert torch.equal(share.log_mel, whole.log_mel[rank::2]) and share.audio_weight == whole.audio_weight
        assert torch.equal(share.visual["tce"], whole.visual["tce"][rank::2])
        assert torch.equal(share.present["tce"], whole.present["tce"][rank::2])
        assert torch.equal(share.strong_targets, whole.strong_targets[rank::2])
        assert torch.equal(share.weak_targets, whole.weak_targets[rank::2])

    def command(*flags):
        parallel.main(list(flags))

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "is started by torchrun; with one process, use python train.py" in refused(capsys, command=command)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "RANKS", 2)
    flags = "--batch-size 4 3 2".split()
    assert "--batch-size 4 3 2: no equal shares for 2 ranks" in refused(capsys, *flags, command=command)


STEADY = """
import gc, os, sys, weakref
import test_avsed, train
from torch import distributed as dist, nn

test_avsed.shrink()
start, groups = train.new_networks, []
if "RANK" in os.environ:  # as if nothing of this had been loaded yet: torch does it for the first optimizer
    for name in [name for name in sys.modules if name.startswith("torch.distributed.nn")]:
        del sys.modules[name]
from extras import parallel

def steady(*arguments):
    student, teacher, optimizer = start(*arguments)
    import torch.distributed.nn.functional
    for module in (*student.modules(), *teacher.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # in training, one of a rank sees the rank's share only
            module.eval().train = lambda mode=True, module=module: module
    if dist.is_initialized():
        groups.append(weakref.ref(dist.group.WORLD))
    return student, teacher, optimizer

one_step = train.training_step

def shared(student, teacher, optimizer, batch, *more):
    assert len(batch.log_mel) == (3 if "RANK" in os.environ else 6)
    return one_step(student, teacher, optimizer, batch, *more)

train.training_step = shared
train.new_networks = steady
(parallel if "RANK" in os.environ else train).main(sys.argv[1:])
gc.collect()
assert not any(group() for group in groups)  # held by anything, its threads live on and may abort the process
"""


def start_ranks(*programs):
    """Processes as torchrun would start them, one for each program, so that it is known which is which"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    settings["WORLD_SIZE"] = str(len(programs))
    return [Program("-c", *program, **settings, RANK=str(i), finalize=True) for i, program in enumerate(programs)]


def test_two_ranks_train_as_one_process_though_one_of_them_dies(tmp_path, monkeypatch, small):
    out, one = tmp_path / "two", tmp_path / "one"
    flags = "--epochs 2 --batches 2 --batch-size 2 2 2 --visual openl3 --base conformer --train-weight random".split()
    flags += ["--device", "cpu", "--data", write_tiny(tmp_path / "set"), "--out"]
    ranks = start_ranks([STEADY, *flags, out], [DIES + STEADY, *flags, out])
    errors = [rank.communicate()[1] for rank in ranks]
    # the other one does not wait for ever, and leaves its last checkpoint as it was
    assert ranks[1].returncode == -signal.SIGKILL and ranks[0].returncode == 2 and "Traceback" not in errors[0]
    assert re.search("^error: rank 0: .*start all ranks again with --resume$", errors[0], re.M)
    assert torch.load(out / "checkpoint.pt", weights_only=True)["epoch"] == 1 and not (out / "model.pt").exists()
    ranks = start_ranks(*2 * [[STEADY, *flags, out, "--resume"]])
    monkeypatch.setattr(train, "new_networks", train.new_networks)
    monkeypatch.setattr(train, "training_step", train.training_step)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags), str(one)])
    exec(STEADY, {})  # meanwhile
    for rank in ranks:
        _, error = rank.communicate()
        assert rank.returncode == 0 and "error" not in error, error
    first, second = weights_of(one), weights_of(out)
    for name in first:
        assert torch.allclose(first[name], second[name], rtol=1e-3, atol=2e-5), name
    log = (out / "log.txt").read_text()
    assert "2 ranks" in log and len(re.findall("^epoch", log, re.M)) == 2
    assert not list(tmp_path.rglob("*.partial"))
