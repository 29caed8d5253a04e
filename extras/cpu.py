"""What halves the time of a training step on a CPU, while avsed.py stays the textbook.

`speed_up(model)` swaps the classes of some modules for ones that compute the same with less work, up to rounding.
Parameters and their names stay as they are; in training dropout draws other random numbers. A class is swapped only
where it is seen to compute the same: if you edit avsed.py, a note tells what runs as written from then on.
`keep_freed_memory()` asks the C library for what its name says. train.py calls both where the device is a CPU.
"""

import copy
import ctypes
import sys
import warnings

import torch
from torch import nn
from torch.nn import functional as F

import avsed


def speed_up(model):
    """Make a MultiEncoder train faster on a CPU, in place"""
    with torch.random.fork_rng(devices=[]):
        for stack in model.cnn:
            layers = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.AvgPool2d]
            swap(stack, ConvStack, layers, torch.randn(2, stack[0].in_channels, 8, 8))
        for block in model.decoder.blocks:
            n_encoders = len(block.cross.copies)
            layers = [nn.LayerNorm] + n_encoders * [*4 * [nn.Linear], nn.Dropout]
            weights = torch.rand(3, n_encoders)
            weights[1, 1:] = 0  # as for a clip without video
            memories = [torch.randn(3, avsed.FRAMES, avsed.WIDTH) for _ in range(n_encoders)]
            swap(block.cross, CrossAttention, layers, torch.randn(3, avsed.FRAMES + 1, avsed.WIDTH), memories, weights)
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
        elif type(module) is nn.ReLU:
            module.inplace = True


@torch.no_grad()
def swap(module, fast, layers, *inputs):
    """Give a module its fast class, if it is made of these layers and computes the same in training without dropout"""
    plain, swapped = copy.deepcopy(module).train(), copy.deepcopy(module).train()
    swapped.__class__ = fast
    for part in (*plain.modules(), *swapped.modules()):
        if type(part) is nn.Dropout:
            part.p = 0.0
    same_layers = [type(part) for part in module.modules() if not list(part.children())] == layers
    if same_layers and torch.allclose(plain(*inputs), swapped(*inputs), atol=1e-4):
        module.__class__ = fast
    else:
        warnings.warn(f"avsed.py was edited: {fast.__name__} of extras/cpu.py is not used", stacklevel=2)


def keep_at_random(x, rate):
    """Which elements of a CPU tensor dropout keeps: bool, like x, and the factor that makes up for the others.

    Decided by 16 random bits an element, where PyTorch draws a double for each: that took a third of the training time.
    ours: the rate is rounded to a multiple of 1 / 65536 (0.1 becomes 0.100006), and the factor agrees.
    """
    n, dropped = x.numel(), round(rate * 2**16)
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    bits = bits[:n].as_strided(x.shape, torch.empty_like(x, device="meta").stride())  # in x's own memory order
    return bits >= dropped - 2**15, 1 / (1 - dropped / 2**16)


class Dropout(nn.Dropout):
    """equals: nn.Dropout, with fewer random bits"""

    def forward(self, x):
        if not self.training:
            return x
        keep, factor = keep_at_random(x, self.p)
        return (x * keep).mul_(factor)


class ConvStack(nn.Sequential):
    """equals: avsed.conv_stack, with its last three layers in one pass while training"""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        conv, norm, _, dropout, pool = self
        return ReLUDropoutPool.apply(norm(conv(x)), dropout.p, pool.kernel_size)


class ReLUDropoutPool(torch.autograd.Function):
    """ReLU, dropout and average pooling at once, with their gradient.

    Apart they keep two copies of the largest arrays of all for the way back; together a byte an element: was it
    positive and kept? With 128 clips that is 1 GB less.
    """

    @staticmethod
    def forward(ctx, x, rate, pool):
        keep, factor = keep_at_random(x, rate)
        keep &= x > 0
        ctx.save_for_backward(keep)
        ctx.pool, ctx.factor = pool, factor / (pool[0] * pool[1])
        return F.avg_pool2d(x * keep, pool).mul_(factor)

    @staticmethod
    def backward(ctx, gradient):
        (keep,) = ctx.saved_tensors
        spread = F.interpolate(gradient * ctx.factor, scale_factor=ctx.pool)  # to all elements that were averaged
        return spread.mul_(keep), None, None


class CrossAttention(avsed.CrossAttention):
    """equals: avsed.CrossAttention, with the clips left out for which a copy's weight is zero: a third in training"""

    def forward(self, x, memories, weights):
        y = self.norm(x)
        total = (weights[:, 0, None, None] * self.copies[0](y, memories[0])).to(x.dtype)
        for e in range(1, len(self.copies)):
            clips = weights[:, e].nonzero()[:, 0]
            if len(clips):
                share = weights[clips, e, None, None] * self.copies[e](y[clips], memories[e][clips])
                total = total.index_add(0, clips, share.to(x.dtype))
        return total


def keep_freed_memory():
    """glibc gives every large block back to the system when it is freed, and asks for it again the next iteration.

    The page faults this costs are over a third of a training step on a CPU, so ask it to keep the memory instead.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)  # never
