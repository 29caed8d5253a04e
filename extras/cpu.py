"""What makes a training step faster on a CPU without replacing any code of avsed.py.

`use_fast_dropout(model)` gives every `nn.Dropout` of a model a subclass that needs fewer random numbers.
`keep_freed_memory()` asks the C library for what its name says. train.py calls both where the device is a CPU; without
them a run computes the same (with other random numbers in dropout), and takes about a quarter more time.
`computes_bf16(device)` tells whether bfloat16 is of use there.
"""

import ctypes
import sys

from extras import plumbing  # noqa: F401 - before torch, see there

import torch  # isort: skip
from torch import nn


def use_fast_dropout(model):
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


class Dropout(nn.Dropout):
    """equals: nn.Dropout, by 16 random bits an element; PyTorch draws a double for each, a third of the training time.

    ours: the rate is rounded to a multiple of 1 / 65536 (0.1 becomes 0.100006), and the factor agrees.
    """

    def forward(self, x):
        if not self.training:
            return x
        n, dropped = x.numel(), round(self.p * 2**16)
        bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        bits = bits[:n].as_strided(x.shape, torch.empty_like(x, device="meta").stride())  # in x's own memory order
        keep = bits >= dropped - 2**15
        return (x * keep).mul_(1 / (1 - dropped / 2**16))


def keep_freed_memory():
    """glibc gives every large block back to the system when it is freed, and asks for it again the next iteration.

    The page faults this costs are over a third of a training step on a CPU, so ask it to keep the memory instead.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)  # never


def computes_bf16(device):
    """In hardware, be it a CPU's or a GPU's"""
    if device.type == "cpu":
        return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
