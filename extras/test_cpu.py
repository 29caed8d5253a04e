"""Tests of what is faster on a CPU: that it is the same, by comparison with avsed.py"""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avsed import MultiEncoder
from extras import cpu
from test_avsed import both_bases

both_formats = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])


@both_bases
def test_only_dropout_is_another_and_it_does_nothing_in_evaluation(base):
    torch.manual_seed(0)
    plain = MultiEncoder(10, {"openl3": 512}, base).eval()
    fast = copy.deepcopy(plain)
    before = torch.get_rng_state()
    cpu.use_fast_dropout(fast)
    assert torch.equal(torch.get_rng_state(), before)
    assert [*plain.state_dict()] == [*fast.state_dict()]
    pairs = [(type(a), type(b)) for a, b in zip(plain.modules(), fast.modules())]
    assert {pair for pair in pairs if pair[0] is not pair[1]} == {(nn.Dropout, cpu.Dropout)}
    inputs = torch.randn(2, 512, 64), {"openl3": torch.randn(2, 64, 512)}, {"openl3": torch.tensor([True, False])}, 0.75
    with torch.no_grad():
        for a, b in zip(plain(*inputs), fast(*inputs)):
            assert torch.equal(a, b)


def test_other_kinds_of_dropout_stay():
    class Edited(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout2d(0.1), Edited(0.1), nn.Dropout(0.1))
    cpu.use_fast_dropout(model)
    assert [type(module) for module in model] == [nn.Dropout2d, Edited, cpu.Dropout]


def test_bf16():
    with torch.autocast("cpu", torch.bfloat16):
        y = cpu.Dropout(0.5)(torch.ones(1000, dtype=torch.bfloat16, requires_grad=True))
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and set(y.tolist()) == {0.0, 2.0}


@both_formats
def test_dropout_has_its_rate_scale_and_gradient(memory_format):
    torch.manual_seed(0)
    x = torch.ones(8, 5, 100, 101).contiguous(memory_format=memory_format).requires_grad_()
    y = cpu.Dropout(0.1)(x)
    kept = y != 0
    assert abs(kept.float().mean().item() - 0.9) < 0.002  # 404,000 draws: standard deviation 0.0005
    assert torch.allclose(y[kept], torch.tensor(1 / 0.9), rtol=1e-4)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    for axes in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):  # as many everywhere
        assert (kept.float().mean(axes) - 0.9).abs().max() < 0.03
    for axis in range(4):  # neighbours, in memory or not, are dropped each by itself: both of them once in a hundred
        before, after = (kept.narrow(axis, begin, kept.shape[axis] - 1) for begin in (0, 1))
        assert abs((~before & ~after).float().mean().item() - 0.01) < 0.002
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept, cpu.Dropout(0.1)(x) != 0)
    assert torch.equal(cpu.Dropout(0.1).eval()(x), x) and torch.equal(cpu.Dropout(0.0)(x), x)
    expanded = cpu.Dropout(0.1)(torch.ones(1, 50).expand(40, 50))  # not dense in memory
    assert not torch.equal(expanded[0], expanded[1]) and cpu.Dropout(0.1)(torch.ones(4, 8)[:, ::2]).shape == (4, 4)


def test_memory_is_kept_where_the_c_library_can(monkeypatch):
    asked = []
    for platform, library in (
        ("linux", SimpleNamespace(mallopt=lambda *option: asked.append(option))),
        ("linux", SimpleNamespace()),  # no glibc
        ("darwin", None),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name, library=library: library)
        cpu.keep_freed_memory()
    assert asked == [(-4, 0), (-1, -1)]  # never by mmap, never trimmed: numbers of glibc's malloc.h


def test_bf16_is_for_devices_that_compute_it(monkeypatch):
    for says in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: says, raising=False)
        assert cpu.computes_bf16(torch.device("cpu")) is says
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if says else (7, 5))
        assert cpu.computes_bf16(torch.device("cuda")) is says
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # of an older torch nothing is known
    assert not cpu.computes_bf16(torch.device("cpu")) and not cpu.computes_bf16(torch.device("mps"))
