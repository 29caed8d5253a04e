"""Tests of what is faster on a CPU: that it is the same, by comparison with avsed.py"""

import copy
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import avsed
from avsed import MultiEncoder, conv_stack
from extras import cpu
from test_avsed import both_bases

both_formats = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])


def textbook_and_fast(base, dropout=0.1):
    """The same model twice; with dropout 0 there is nothing random in either"""
    torch.manual_seed(0)
    plain = MultiEncoder(10, {"openl3": 512, "tce": 2048}, base)
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    fast = copy.deepcopy(plain)
    cpu.speed_up(fast)
    return plain, fast


def clips():
    """Four, with both streams, with one, with the other, and with none"""
    g = torch.Generator().manual_seed(1)
    visual = {name: torch.randn(4, 64, width, generator=g) for name, width in (("openl3", 512), ("tce", 2048))}
    present = {"openl3": torch.tensor([1, 1, 0, 0]).bool(), "tce": torch.tensor([1, 0, 1, 0]).bool()}
    visual = {name: vectors.masked_fill(~present[name][:, None, None], math.nan) for name, vectors in visual.items()}
    return torch.randn(4, 512, 64, generator=g), visual, present


def gradients(model, audio_weight=0.75):
    """Logits, gradients and buffers after a step in training"""
    frame, clip = model.train()(*clips(), audio_weight)
    (frame.float().square().mean() + clip.float().square().mean()).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"frame": frame, "clip": clip, **found, **dict(model.named_buffers())}


@both_bases
def test_parameters_names_and_evaluation_stay_as_they_are(base):
    plain, fast = (model.eval() for model in textbook_and_fast(base))
    before = torch.get_rng_state()
    cpu.speed_up(copy.deepcopy(plain))
    assert torch.equal(torch.get_rng_state(), before)
    assert [*plain.state_dict()] == [*fast.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), fast.state_dict().values()))
    with torch.no_grad():
        for audio_weight in (0.75, 1.0):
            for a, b in zip(plain(*clips(), audio_weight), fast(*clips(), audio_weight)):
                assert torch.allclose(a, b, rtol=0, atol=1e-6)  # the same to the last bit where we tried
    kinds = {type(module) for module in fast.modules()}
    assert {cpu.Dropout, cpu.ConvStack, cpu.CrossAttention}.isdisjoint(type(module) for module in plain.modules())
    assert kinds >= {cpu.Dropout, cpu.ConvStack, cpu.CrossAttention} and not kinds & {nn.Dropout, avsed.CrossAttention}


@pytest.mark.parametrize("base, audio_weight", [("transformer", 0.75), ("conformer", 0.75), ("transformer", 1.0)])
def test_gradients_without_dropout_are_the_textbooks(base, audio_weight):
    wanted, got = (gradients(model, audio_weight) for model in textbook_and_fast(base, dropout=0.0))
    # where no clip has a weight for a copy, the textbook's gradients are zeros, here there are none
    assert all(not wanted[name].any() for name in wanted.keys() - got.keys())
    assert "cnn.0.0.weight" in got and ("decoder.blocks.0.cross.copies.2.value.weight" in got) == (audio_weight < 1)
    for name in got:
        assert torch.allclose(got[name], wanted[name], rtol=1e-3, atol=1e-5), name


def test_bf16():
    base = "conformer"  # its batch norms and relative positions, too
    plain, fast = textbook_and_fast(base, dropout=0.0)
    wanted = gradients(plain)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(fast)
        dropped = gradients(textbook_and_fast(base)[1])
    assert all(torch.isfinite(values).all() for values in dropped.values())
    for name in ("frame", "clip", "classifier.weight", "decoder.blocks.0.cross.copies.1.value.weight"):
        close = torch.nn.functional.cosine_similarity(got[name].float().flatten(), wanted[name].flatten(), 0)
        assert close > 0.99, name  # numbers of 8 bits


def test_modules_that_were_edited_run_as_written():
    class Edited(avsed.CrossAttention):
        def forward(self, x, memories, weights):
            return super().forward(x, memories, weights) / 2

    model, _ = textbook_and_fast("transformer")
    model.cnn[1][4] = nn.MaxPool2d((2, 2))
    model.cnn[2].append(nn.Identity())
    model.cnn[3][3] = nn.Dropout2d(0.1)  # of whole channels
    for block in model.decoder.blocks:
        block.cross.__class__ = Edited
    with pytest.warns(UserWarning) as notes:
        cpu.speed_up(model)
    assert [str(note.message).split(": ")[1].split()[0] for note in notes] == 3 * ["ConvStack"] + 3 * ["CrossAttention"]
    assert [type(stack) is cpu.ConvStack for stack in model.cnn] == [True] + 3 * [False] + 3 * [True]
    assert {type(block.cross) for block in model.decoder.blocks} == {Edited}


@pytest.mark.parametrize("pool", [(2, 2), (1, 2), (1, 1)])
@both_formats
def test_a_stack_of_the_front_end_is_its_five_layers(pool, memory_format):
    stack = conv_stack(3, 8, pool)
    stack.__class__, stack[3].__class__ = cpu.ConvStack, cpu.Dropout
    x = torch.randn(4, 3, 16, 12).contiguous(memory_format=memory_format)
    aim, results = torch.randn(4, 8, 16 // pool[0], 12 // pool[1]), []
    for layers in (stack, nn.Sequential(*stack)):
        stack[1].reset_running_stats()
        stack.zero_grad()
        y = x.clone().requires_grad_()
        torch.manual_seed(1)  # both ways draw the same bits
        out = layers(y)
        (out * aim).sum().backward()
        results.append([out, y.grad, stack[1].running_mean.clone(), *(p.grad.clone() for p in stack.parameters())])
    for fast, plain in zip(*results):
        assert torch.allclose(fast, plain, rtol=1e-4, atol=1e-4)
    assert results[0][0].std() > 0.1 and results[0][1].std() > 0.1
    with torch.no_grad():
        torch.manual_seed(1)
        assert torch.allclose(stack(x), results[0][0])


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
