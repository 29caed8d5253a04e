"""Train, tune and score a multi-encoder on clips of which only some can be seen (Boes & Van hamme 2022, Sec. 3).

    python train.py --visual openl3                      toy data, made on the spot; minutes on two cores
    python train.py --visual openl3 --data DIR           DCASE 2020 task 4 in DIR, the paper's schedule
    python train.py --table 5 --data DIR                 a table of the paper
    python train.py --predict runs/NAME/model.pt FILE    events in recordings of any length

Top to bottom, as time runs: configuration, the plan of batches, batches, one training step, ranks, the run, scoring,
tables of runs, prediction, speed, the command line.

Our choices where the paper is silent (marked `# ours:` below): the teacher starts as a copy of the student and keeps
batch norm statistics of its own; the moving average warms up as 1 - 1 / (t + 1); mixup draws one coin per batch and one
ratio per label group, with partners of the same group and the same missing streams; the learning rate falls in steps,
in short runs late.
"""

import argparse
import copy
import ctypes
import json
import math
import os
import re
import statistics
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import features
import metrics
from avsed import MultiEncoder
from features import FRAME_HOP, FRAMES, InputError

# --- configuration ---------------------------------------------------------------------------------------------------

LEARNING_RATE = 1e-3  # Boes 2022, Sec. 3.1.5
LR_STEP = 10_000  # iterations (Boes 2022, Sec. 3.1.5)
EMA_DECAY = 0.999  # per iteration (Boes 2022, Sec. 3.1.5)
CONSISTENCY = 2.0  # weight of both consistency terms (Boes 2022, Sec. 3.1.5)
MIXUP_RATE, MIXUP_SHAPE = 0.33, 0.2  # Boes 2022, Sec. 3.1.5
RANDOM_WEIGHT = (0.25, 1.0)  # range of random acoustic weights (Boes 2022, Sec. 3.2.2)
INFER_WEIGHTS = (0.25, 0.5, 0.75, 0.875)  # acoustic weights tried at inference (Boes 2022, Sec. 3.2.2)
PAPER = {"epochs": 100, "batches": 250, "batch_size": (32, 32, 64), "runs": 20}  # Boes 2022, Sec. 3.1.5
TOY = {"epochs": 9, "batches": 40, "batch_size": (4, 6, 2), "runs": 3}  # ours: what two cores do in a few minutes
HEAVY = ("weights", "mel_statistics", "visual_statistics")  # what model.pt holds beside the report
# the scores of Boes 2022, Sec. 3.1.4, and what metrics.tune calls them
TUNED = {"CBF1": "clip", "SBF1": "segment", "EBF1": "event", "PSDS1": "psds1", "PSDS2": "psds2"}


@dataclass(frozen=True)
class Config:
    """What a run is asked for. On the same data, CPU, threads and ranks it ends with the same weights."""

    data: str  # folder of the data set
    visual: tuple  # names of the visual streams
    base: str  # "transformer" or "conformer"
    train_weight: object  # acoustic weight in training: a number, or "random"
    infer_weight: object  # acoustic weight at inference: a number, or "auto"
    epochs: int
    batches: int  # per epoch
    batch_size: tuple  # strong, weak, unlabelled clips
    seed: int
    precision: str  # of the arithmetic in training: "fp32", "tf32" or "bf16"

    @property
    def iterations(self):
        return self.epochs * self.batches


# --- the plan of batches ---------------------------------------------------------------------------------------------
# Every random choice about iteration t is a function of the seed and t alone, made on the host before its epoch begins.
# So an interrupted run continues with the same batches, nobody has to store where in the data it was, the ranks of a
# data-parallel run agree without talking, and nothing waits for the device.


@lru_cache(maxsize=8)
def shuffled(n, *key):
    return np.random.default_rng(key).permutation(n)


def endless(n, size, iteration, key):
    """Indices of batch number `iteration` of an endless shuffled stream of n clips; incomplete batches are dropped."""
    if size == 0:
        return np.zeros(0, int)
    per_pass = max(1, n // size)
    order = shuffled(n, *key, iteration // per_pass)
    order = np.resize(order, max(n, size))  # ours: a group smaller than its share of the batch is repeated
    return order[iteration % per_pass * size :][:size]


def mixup_plan(rng, patterns):
    """Who is mixed with whom: (ratios, partners), or None for the batches that stay as they are.

    patterns: per label group, which streams each clip has, as integers (n,)
    -> ratios: per label group; partners: per label group, the position of each clip's partner (n,). ours: partners are
    of one group and pattern, so that labels stay of one kind and a clip with video is never mixed with one without.
    """
    if rng.random() >= MIXUP_RATE:
        return None
    ratios = rng.beta(MIXUP_SHAPE, MIXUP_SHAPE, size=len(patterns)).tolist()
    partners = [np.arange(len(pattern)) for pattern in patterns]
    for partner, pattern in zip(partners, patterns):
        for members in (np.flatnonzero(pattern == p) for p in np.unique(pattern)):
            partner[members] = rng.permutation(members)
    return ratios, partners


def audio_weight_of(train_weight, rng):
    """Acoustic weight of one batch; the visual streams share the rest (Boes 2022, Sec. 3.2.2)."""
    return rng.uniform(*RANDOM_WEIGHT) if train_weight == "random" else train_weight


@dataclass
class Plan:
    """The random choices of one iteration; lists hold an entry for the strong, the weak and the unlabelled clips."""

    clips: list  # (n,) indices in the partition
    partners: list  # (n,) indices of the clips they are mixed with; None: nothing is mixed
    ratios: list  # share of the clip itself in its mixture
    present: dict  # stream -> (B,) bool of all clips, kept on the host: the network asks there who can be seen
    audio_weight: float


def plan_iteration(clips, config, iteration):
    """The plan of iteration t: in a data-parallel run, this rank's equal share of every label group"""
    picked = [
        endless(n, size, iteration, (config.seed, g)) for g, (n, size) in enumerate(zip(clips.n, config.batch_size))
    ]
    present = {stream: [have[rows] for have, rows in zip(parts, picked)] for stream, parts in clips.present.items()}
    patterns = [np.zeros(size, int) for size in config.batch_size]
    for e, have in enumerate(present.values()):
        patterns = [pattern + (seen << e) for pattern, seen in zip(patterns, have)]
    rng = np.random.default_rng([config.seed, len(picked), iteration])
    ratios, partners = mixup_plan(rng, patterns) or (None, None)
    audio_weight = audio_weight_of(config.train_weight, rng)

    rank, ranks = rank_of_ranks()

    def share(arrays):
        return [np.array_split(array, ranks)[rank] for array in arrays]

    def indices(arrays):
        return [send(array, clips.place) for array in share(arrays)]

    return Plan(
        indices(picked),
        partners and indices([rows[partner] for rows, partner in zip(picked, partners)]),
        ratios,
        {stream: torch.from_numpy(np.concatenate(share(have))) for stream, have in present.items()},
        audio_weight,
    )


def send(array, device):
    """A numpy array as a tensor on the device, without waiting for what the device is busy with"""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass
class Clips:
    """The training clips as tensors, in lists of strong, weak and unlabelled ones. They lie at `place`: on a GPU if
    they fill less than half of what is free there, else where they are, in memory-mapped files.
    """

    log_mel: list  # (N, 512, 64)
    visual: dict  # stream -> list of (N, 64, D)
    present: dict  # stream -> list of (N,) bool, numpy
    frames: torch.Tensor  # (N strong, 64, C) bool
    tags: torch.Tensor  # (N weak, C) bool
    statistics: dict  # "log-mel" or stream -> (mean, std), on `device`
    place: torch.device
    device: torch.device  # where batches go

    @property
    def n(self):
        return [len(part) for part in self.log_mel]


def load_clips(data, visual, device):
    parts = [data.partitions[name] for name in features.TRAINING]
    arrays = [[part.log_mel for part in parts]]
    arrays += [[part.visual[stream] for part in parts] for stream in visual]
    size = sum(array.nbytes for group in arrays for array in group)
    fits = device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2
    place = device if fits else torch.device("cpu")
    log_mel, *vectors = [[torch.from_numpy(array).to(place) for array in group] for group in arrays]
    return Clips(
        log_mel,
        dict(zip(visual, vectors)),
        {stream: [part.present[stream] for part in parts] for stream in visual},
        torch.from_numpy(parts[0].frames).to(place),
        torch.from_numpy(parts[1].tags).to(place),
        statistics_on(device, data),
        place,
        device,
    )


def statistics_on(device, data):
    pairs = {"log-mel": data.mel_statistics, **data.visual_statistics}
    return {name: [torch.from_numpy(values).to(device) for values in pair] for name, pair in pairs.items()}


@dataclass
class Batch:
    """B clips, standardised; in training strong ones first, then weak, then unlabelled"""

    log_mel: torch.Tensor  # (B, 512, 64)
    visual: dict  # stream -> (B, 64, D)
    present: dict  # stream -> (B,) bool
    strong: torch.Tensor = None  # (n_strong, 64, C) targets in [0, 1]
    weak: torch.Tensor = None  # (n_weak, C)


def training_batch(clips, plan):
    """The clips and targets that the plan names, mixed as it says (Boes 2022, Sec. 3.1.5)"""

    def mixed(group, array):
        own = array[plan.clips[group]].to(clips.device, non_blocking=True).float()
        if plan.partners is None:
            return own
        partner = array[plan.partners[group]].to(clips.device, non_blocking=True).float()
        return plan.ratios[group] * own + (1 - plan.ratios[group]) * partner

    def inputs(name, arrays):
        mean, std = clips.statistics[name]
        return (torch.cat([mixed(group, array) for group, array in enumerate(arrays)]) - mean) / std

    visual = {stream: inputs(stream, arrays) for stream, arrays in clips.visual.items()}
    return Batch(inputs("log-mel", clips.log_mel), visual, plan.present, mixed(0, clips.frames), mixed(1, clips.tags))


# --- one training step -----------------------------------------------------------------------------------------------


def learning_rate(iteration, iterations):
    """0.001, a tenth of it every 10,000 iterations (Boes 2022, Sec. 3.1.5). ours: in steps, not as a smooth decay.

    ours: a run too short for that takes one step, after 80 % of its iterations. Else it would end at the full rate
    and be scored with whatever the last batches made of the student.
    """
    step = LR_STEP if iterations > LR_STEP else 0.8 * iterations
    return LEARNING_RATE * 0.1 ** int(iteration // step)


@torch.no_grad()
def update_teacher(teacher, student, t):
    """Exponential moving average of the student's parameters after step t = 1, 2, .. (Boes 2022, Sec. 3.1.5).

    ours: a short memory at first, as in the DCASE baselines. Only parameters are averaged: the teacher, in training
    mode like the student, collects batch norm statistics of its own.
    """
    decay = min(1 - 1 / (t + 1), EMA_DECAY)
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)  # one call for all of them


def binary_cross_entropy(logits, targets):
    """Mean over all elements, 0 where a batch has no such clips"""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / max(1, targets.numel())


def training_step(student, teacher, optimizer, clips, plan, config, iteration):
    """One iteration of mean-teacher training (Boes 2022, Sec. 3.1.5).

    -> (4,) losses: clip cross entropy, frame cross entropy, clip consistency, frame consistency
    """
    batch = training_batch(clips, plan)
    inputs = batch.log_mel, batch.visual, batch.present, plan.audio_weight  # student and teacher share the weight

    with torch.autocast(clips.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        with torch.no_grad():  # ours: the same batch, other dropout
            teacher_frame, teacher_clip = teacher(*inputs)
        frame_logits, clip_logits = student(*inputs)

    n_strong, n_weak = len(batch.strong), len(batch.weak)
    losses = torch.stack([
        binary_cross_entropy(clip_logits[n_strong : n_strong + n_weak].float(), batch.weak),
        binary_cross_entropy(frame_logits[:n_strong].float(), batch.strong),
        F.mse_loss(clip_logits.float().sigmoid(), teacher_clip.float().sigmoid()),
        F.mse_loss(frame_logits.float().sigmoid(), teacher_frame.float().sigmoid()),
    ])  # fmt: skip
    loss = losses[:2].sum() + CONSISTENCY * losses[2:].sum()

    optimizer.param_groups[0]["lr"] = learning_rate(iteration, config.iterations)
    optimizer.zero_grad()
    loss.backward()
    average_gradients(student)
    optimizer.step()
    update_teacher(teacher, student, iteration + 1)
    return losses.detach()


# --- ranks: one process, or one of those that torchrun started -------------------------------------------------------


def rank_of_ranks():
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average(tensors):
    """Mean over the ranks, in place; a single process is left alone"""
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])  # one message, not hundreds
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        raise InputError(f"no word from the other ranks ({first_line(error)}); start all again with --resume") from None
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.view_as(tensor))


def average_gradients(student):
    """Every rank holds an equal share of each label group, so their mean is the gradient of the whole batch."""
    for p in student.parameters():  # a share of the batch without video may be all that this rank has
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    average([p.grad for p in student.parameters()])


# --- the run ---------------------------------------------------------------------------------------------------------


class Log:
    """Prints lines, and keeps them in a file once there is one; of torchrun's processes, only the first one prints."""

    def __init__(self):
        self.lines, self.path = [], None
        self.prints = os.environ.get("RANK", "0") == "0"

    def __call__(self, line):
        if self.prints:
            print(line, flush=True)
        self.lines.append(line)
        if self.path:
            with open(self.path, "a") as file:
                file.write("".join(f"{line}\n" for line in self.lines))
            self.lines = []


def first_line(error):
    return str(error).strip().split("\n")[0][:80]


def save(content, path):
    """torch.save that leaves either the old file or the new one, never half of it"""
    with features.replacing(path) as partial, open(partial, "wb") as file:
        torch.save(content, file)


def write_text(path, text):
    with features.replacing(path) as partial:
        partial.write_text(f"{text}\n")


def load(path, remedy="delete it and start again"):
    """A file that `save` wrote. Nothing in it is executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets out a dozen kinds for damaged files
        raise InputError(f"{path}: not a checkpoint of this program ({first_line(error)}); {remedy}") from None


def start(config, data, device):
    """-> student, teacher, optimizer as they are before the first iteration"""
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    dims = {stream: data.visual_statistics[stream][0].size for stream in config.visual}
    student = MultiEncoder(len(data.classes), dims, config.base).to(device, memory_format=torch.channels_last).train()
    teacher = copy.deepcopy(student).requires_grad_(False)  # ours: a copy, not random weights of its own
    optimizer = torch.optim.RAdam(student.parameters(), lr=LEARNING_RATE)  # ours: default betas, no weight decay
    return student, teacher, optimizer


def train(config, data, out, device, log):
    """Run the schedule, from the checkpoint in `out` on if there is one -> the student after its last iteration"""
    student, teacher, optimizer = start(config, data, device)
    n_parameters = sum(p.numel() for p in student.parameters()) / 1e6
    log(f"model  {config.base}, {' + '.join(('log-mel', *config.visual))}, {n_parameters:.2f} M parameters")
    first = 0
    if (out / "checkpoint.pt").exists():
        first = restore(out / "checkpoint.pt", config, data, student, teacher, optimizer)
        log(f"       continuing after epoch {first} of {config.epochs}")

    rank, _ = rank_of_ranks()
    clips = load_clips(data, config.visual, device)
    progress = Progress(config, first)
    for epoch in range(first, config.epochs):
        iterations = range(epoch * config.batches, (epoch + 1) * config.batches)
        plans = [plan_iteration(clips, config, iteration) for iteration in iterations]
        torch.manual_seed(np.random.default_rng([config.seed, 4, epoch, rank]).integers(2**63))  # for dropout
        student.train()
        losses = []
        for iteration, plan in zip(iterations, plans):
            losses.append(training_step(student, teacher, optimizer, clips, plan, config, iteration))
            progress(iteration, losses)
        # ours: each rank normalises its share of a batch by itself, and the statistics kept for later are averaged
        average([b for model in (student, teacher) for b in model.buffers() if b.is_floating_point()])
        terms = torch.stack(losses)
        average([terms])
        terms = terms.cpu()
        check_finite(terms, epoch * config.batches)
        log(progress.line(iterations[-1], terms.mean(0)))
        if rank == 0:
            log(valid_line(student, data, config, epoch, device))
            state = {
                "config": asdict(config),
                "classes": data.classes,
                "data": data.identity(config.visual),
                "epoch": epoch + 1,
                "student": student.state_dict(),
                "teacher": teacher.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            save(state | statistics_of(data, config.visual), out / "checkpoint.pt")
    return student


def check_same_run(path, state, config, data):
    """A stored run may be continued or reported only with its own flags and data."""
    if not (isinstance(state, dict) and {"config", "classes", "data", *HEAVY[1:]} <= state.keys()):
        raise InputError(f"{path}: was not written by this program, or by an older version; delete it and start again")
    stored = state["config"]
    wanted = asdict(config).items() - {("data", config.data)}  # the folder may have moved, or have several names
    differs = [f"{key} {stored.get(key)}" for key, value in wanted if stored.get(key) != value]
    same_clips = state["classes"] == data.classes and state["data"] == data.identity(config.visual)
    if not (same_clips and same_statistics(state, statistics_of(data, config.visual))):
        differs.append("other data")
    if differs:
        raise InputError(f"{path}: is of a run with {', '.join(differs)}; give the same flags, or another --out")


def statistics_of(data, visual):
    """What the inputs of a run are standardised with, in the form that its files keep"""
    pairs = {stream: tensors(data.visual_statistics[stream]) for stream in visual}
    return {"mel_statistics": tensors(data.mel_statistics), "visual_statistics": pairs}


def tensors(arrays):
    return [torch.from_numpy(array) for array in arrays]


def same_statistics(stored, here):
    """ours: other features show in their statistics; another machine's rounding does not count"""
    pairs = [(stored["mel_statistics"], here["mel_statistics"])]
    pairs += [(stored["visual_statistics"].get(stream, ()), pair) for stream, pair in here["visual_statistics"].items()]
    return all(
        len(old) == 2
        and all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(old, new))
        for old, new in pairs
    )


def restore(path, config, data, student, teacher, optimizer):
    """Put an interrupted run back as it was at its last checkpoint -> number of epochs done"""
    state = load(path)  # on the CPU: a GPU would have to be asked for the optimizer's step count in every iteration
    try:
        check_same_run(path, state, config, data)
        student.load_state_dict(state["student"])
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
        return state["epoch"]
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: a checkpoint of another architecture ({first_line(error)}); delete it and start again"
        ) from None


def check_finite(terms, first):
    """terms (iterations, 4), from iteration `first` on: the run cannot go on where one is not finite"""
    names = ("clip cross entropy", "frame cross entropy", "clip consistency", "frame consistency")
    for number, row in enumerate(terms.tolist()):
        if not all(map(math.isfinite, row)):
            named = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, row))
            raise FloatingPointError(
                f"the loss is not finite at iteration {first + number}: {named}; nothing of this epoch is kept"
            )


class Progress:
    """One line a second on a terminal, with the time that is left"""

    def __init__(self, config, first_epoch):
        self.config, self.first = config, first_epoch * config.batches
        self.started = self.shown = time.monotonic()

    def __call__(self, iteration, losses):
        if sys.stdout.isatty() and time.monotonic() - self.shown > 1 and os.environ.get("RANK", "0") == "0":
            self.shown = time.monotonic()
            print(f"\r{self.line(iteration, losses[-1].cpu())}", end="\r", flush=True)

    def line(self, iteration, terms):
        epoch, number = divmod(iteration, self.config.batches)
        done = iteration + 1
        per_iteration = (time.monotonic() - self.started) / (done - self.first)
        filled = "#" * (10 * (number + 1) // self.config.batches)
        weak, strong, clip, frame = terms.tolist()
        return (
            f"epoch {epoch + 1:3d}/{self.config.epochs} | {number + 1:3d}/{self.config.batches} [{filled:-<10}] | "
            f"strong {strong:.4f} | weak {weak:.4f} | consistency {clip + frame:.4f} | "
            f"lr {learning_rate(iteration, self.config.iterations):.1e} | {1000 * per_iteration:.0f} ms | "
            f"{features.clock(per_iteration * (self.config.iterations - done))} left"
        )


# --- scoring a run ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(student, data, part, audio_weights, device, size=32):
    """Probabilities of a partition -> dict of audio weight -> (frame scores (N, 64, C), clip scores (N, C)), float32"""
    student.eval()
    statistics = statistics_on(device, data)

    def inputs(name, array):
        mean, std = statistics[name]
        return (torch.from_numpy(array).to(device).float() - mean) / std

    outputs = {weight: ([], []) for weight in audio_weights}
    for here in (slice(first, first + size) for first in range(0, len(part), size)):
        visual = {stream: inputs(stream, part.visual[stream][here]) for stream in student.streams}
        present = {stream: torch.from_numpy(part.present[stream][here]) for stream in visual}
        encoded = student.encode(inputs("log-mel", part.log_mel[here]), visual, present)  # the same for all weights
        for weight in audio_weights:
            for kind, logits in zip(outputs[weight], student.decode(*encoded, weight)):
                kind.append(logits.sigmoid().cpu().numpy())
    return {weight: (np.concatenate(frame), np.concatenate(clip)) for weight, (frame, clip) in outputs.items()}


def durations_of(part):
    return dict(zip(part.filenames, part.durations.tolist()))


def detect(part, classes, frame_scores, threshold, window):
    """Events of a partition from its frame scores (Boes 2022, Sec. 3.1.3)"""
    return metrics.scores_to_events(
        frame_scores, part.filenames, classes, threshold, window, FRAME_HOP, durations_of(part)
    )


def tune(part, classes, frame_scores, clip_scores, names=TUNED):
    """Tuning on a partition (Boes 2022, Sec. 3.1.3) -> dict of score -> (thresholds (C,), windows (C,))"""
    tuned = {}
    for name in names:
        scores = clip_scores if name == "CBF1" else frame_scores
        tuned[name] = metrics.tune(
            scores, part.filenames, part.events, durations_of(part), classes, FRAME_HOP, TUNED[name]
        )
    return tuned


def evaluate(part, classes, frame_scores, clip_scores, tuned):
    """The scores of Boes 2022, Sec. 3.1.4, that are in `tuned` -> dict of score -> number (F1 in [0, 1])"""
    scores = {}
    for name, (threshold, window) in tuned.items():
        if name == "CBF1":
            scores[name] = metrics.clip_f1(part.tags, clip_scores.astype(np.float64) > threshold).micro
        elif name == "SBF1":
            scores[name] = metrics.segment_f1(
                part.events, detect(part, classes, frame_scores, threshold, window), classes
            ).micro
        elif name == "EBF1":
            scores[name] = metrics.event_f1(
                part.events, detect(part, classes, frame_scores, threshold, window), classes
            ).macro
        else:
            criteria = {"PSDS1": metrics.PSDS1, "PSDS2": metrics.PSDS2}[name]
            scores[name] = metrics.psds_from_scores(
                frame_scores, part.filenames, part.events, durations_of(part), classes, FRAME_HOP, window, **criteria
            )
    return {name: float(score) for name, score in scores.items()}


def valid_line(student, data, config, epoch, device):
    """How the student does on validation so far: threshold 0.5, no filter; only to watch, nothing is chosen by it"""
    part, classes = data.partitions["validation"], data.classes
    weight = INFER_WEIGHTS[-1] if config.infer_weight == "auto" else config.infer_weight
    frame_scores, clip_scores = predict(student, data, part, [weight], device)[weight]
    untuned = {name: (np.full(len(classes), 0.5), np.ones(len(classes), int)) for name in ("CBF1", "SBF1", "EBF1")}
    scores = evaluate(part, classes, frame_scores, clip_scores, untuned)
    shown = " | ".join(f"{name} {100 * score:5.2f}" for name, score in scores.items())
    return f"valid {epoch + 1:3d}/{config.epochs} | {shown} | acoustic weight {weight}"


def infer_weights(config):
    """Acoustic weights to score a run with: those to choose from (Boes 2022, Sec. 3.2.2), and 1, which ignores video"""
    return sorted({1.0, *INFER_WEIGHTS, config.infer_weight} - {"auto"}) if config.visual else [1.0]


def subset(part, keep):
    """The clips of a partition where keep (N,) bool says so; its features are left as they are"""
    filenames = [name for name, kept in zip(part.filenames, keep) if kept]
    kept = set(filenames)
    events = [event for event in part.events if event[0] in kept]
    return replace(part, filenames=filenames, events=events, tags=part.tags[keep], durations=part.durations[keep])


def evaluate_public(data, frame_scores, clip_scores, tuned):
    """Public evaluation as a whole, and split by availability of video (Boes 2022, Table 7) -> dict of part -> scores

    ours: a clip has video if it has any of the visual streams that were loaded; thresholds are the same for all parts.
    """
    public = data.partitions["public"]
    parts = {"public": evaluate(public, data.classes, frame_scores, clip_scores, tuned)}
    if public.present:
        seen = np.any(list(public.present.values()), axis=0)
        for name, keep in (("seen", seen), ("unseen", ~seen)):
            if keep.any():
                parts[name] = evaluate(subset(public, keep), data.classes, frame_scores[keep], clip_scores[keep], tuned)
    return parts


def score_run(student, config, data, out, device, log):
    """Tune on validation, score on public evaluation, write model.pt, metrics.json and the predictions -> the report"""
    validation, public, classes = data.partitions["validation"], data.partitions["public"], data.classes
    weights = infer_weights(config)
    validated = predict(student, data, validation, weights, device)
    predicted = predict(student, data, public, weights, device)
    tuned, by_weight = {}, {}
    for weight in weights:
        tuned[weight] = tune(validation, classes, *validated[weight])
        by_weight[weight] = {"validation": evaluate(validation, classes, *validated[weight], tuned[weight])}
        by_weight[weight] |= evaluate_public(data, *predicted[weight], tuned[weight])
        log(
            f"tune   acoustic weight {weight:<5} | validation EBF1 {100 * by_weight[weight]['validation']['EBF1']:5.2f}"
        )

    weight = config.infer_weight
    if weight == "auto":  # Boes 2022, Sec. 3.2.2: the best EBF1 on validation decides for all five scores
        ebf1 = {w: np.nan_to_num(by_weight[w]["validation"]["EBF1"]) for w in INFER_WEIGHTS}
        weight = max(INFER_WEIGHTS, key=lambda w: (ebf1[w], w))  # ours: of equals the largest
    plain = {
        name: {"threshold": None if t is None else t.tolist(), "window": w.tolist()}
        for name, (t, w) in tuned[weight].items()
    }
    report = {
        "config": asdict(config),
        "classes": classes,
        "data": data.identity(config.visual),
        "infer_weight": weight,
        "tuned": plain,
        "streams": list(data.visual_statistics),  # those that split public evaluation
        "by_weight": {str(w): finite(parts) for w, parts in by_weight.items()},
    }
    report["scores"] = report["by_weight"][str(weight)]
    write_predictions(out, public, classes, *predicted[weight], tuned[weight])
    write_text(out / "metrics.json", json.dumps(report, indent=1))
    heavy = {"weights": student.state_dict(), **statistics_of(data, config.visual)}
    save(report | heavy, out / "model.pt")  # last: it marks the run as finished
    return report


def finite(parts):
    """JSON knows no NaN: scores that are not defined become None"""
    return {part: {k: None if math.isnan(v) else v for k, v in row.items()} for part, row in parts.items()}


def write_predictions(out, part, classes, frame_scores, clip_scores, tuned):
    """What each score was computed from, for other evaluators to read: each with its own thresholds and windows.

    predictions.tsv: for EBF1; predictions_SBF1.tsv; predictions_CBF1.tsv: clip labels; predictions_PSDS1.tsv and
    predictions_PSDS2.tsv: the events at all 50 operating points, with the threshold as last column
    """
    metrics.write_events(out / "predictions.tsv", detect(part, classes, frame_scores, *tuned["EBF1"]))
    metrics.write_events(out / "predictions_SBF1.tsv", detect(part, classes, frame_scores, *tuned["SBF1"]))
    lines = ["filename\tevent_labels"]
    for name, active in zip(part.filenames, clip_scores.astype(np.float64) > tuned["CBF1"][0]):
        lines.append(f"{name}\t{','.join(label for label, on in zip(classes, active) if on)}")
    (out / "predictions_CBF1.tsv").write_text("\n".join(lines) + "\n")
    for name in ("PSDS1", "PSDS2"):
        lines = ["filename\tonset\toffset\tevent_label\tthreshold"]
        for threshold in metrics.THRESHOLDS_50:
            for file, onset, offset, label in detect(part, classes, frame_scores, threshold, tuned[name][1]):
                lines.append(f"{file}\t{onset:.6f}\t{offset:.6f}\t{label}\t{threshold:.2f}")
        (out / f"predictions_{name}.tsv").write_text("\n".join(lines) + "\n")


# --- tables of runs --------------------------------------------------------------------------------------------------

# Boes 2022, Tables 5 to 8: base, streams, acoustic weight in training and at inference, (Table 7: part of the
# evaluation data,) then mean and, but for Table 7, standard deviation of CBF1, SBF1, EBF1, PSDS1 and PSDS2
PAPER_TABLES = {
    5: """
transformer -          1      1     82.48 0.47  78.92 0.48  49.43 0.61  0.4083 0.0080  0.6413 0.013
transformer openl3     0.5    0.75  84.57 0.40  80.56 0.40  51.00 0.55  0.4168 0.0080  0.6567 0.011
transformer tce        0.75   0.875 84.10 0.45  80.11 0.46  50.97 0.58  0.4188 0.0086  0.6502 0.014
transformer vgg16      0.5    0.875 84.22 0.41  79.91 0.41  48.28 0.60  0.3891 0.0079  0.6144 0.011
conformer   -          1      1     82.52 0.40  78.62 0.41  48.41 0.57  0.3849 0.0086  0.6451 0.011
conformer   openl3     0.75   0.875 83.83 0.44  80.22 0.45  50.41 0.64  0.4010 0.0090  0.6501 0.012
conformer   tce        0.75   0.875 84.15 0.42  80.48 0.38  50.18 0.63  0.4000 0.0092  0.6490 0.011
conformer   vgg16      0.5    0.875 83.83 0.43  79.43 0.48  46.48 0.60  0.3615 0.0079  0.6226 0.014""",
    6: """
transformer openl3     random 0.75  84.20 0.39  80.71 0.48  50.80 0.65  0.4169 0.0089  0.6557 0.010
transformer tce        random 0.875 84.42 0.37  80.46 0.39  50.64 0.58  0.4201 0.0079  0.6554 0.013
transformer vgg16      random 0.875 84.48 0.47  80.20 0.39  46.95 0.55  0.3818 0.0075  0.6170 0.014
conformer   openl3     random 0.875 83.94 0.39  80.27 0.44  50.00 0.64  0.4051 0.0074  0.6539 0.011
conformer   tce        random 0.875 84.18 0.36  80.50 0.38  49.94 0.57  0.4040 0.0078  0.6552 0.013
conformer   vgg16      random 0.875 84.25 0.39  80.33 0.50  46.10 0.67  0.3591 0.0089  0.6201 0.012""",
    7: """
transformer -          1      1     ignored 82.79 79.19 48.89 0.4026 0.6377
transformer -          1      1     unseen  80.40 77.21 49.79 0.4358 0.6159
transformer openl3     0.5    0.75  seen    85.10 80.94 50.70 0.4140 0.6583
transformer openl3     0.5    0.75  ignored 83.26 79.11 49.03 0.4073 0.6296
transformer openl3     0.5    0.75  unseen  81.01 78.16 51.44 0.4311 0.6154
transformer tce        0.75   0.875 seen    84.58 80.60 50.71 0.4163 0.6514
transformer tce        0.75   0.875 ignored 82.74 78.98 49.44 0.4073 0.6248
transformer tce        0.75   0.875 unseen  80.91 77.03 51.41 0.4296 0.6099
transformer vgg16      0.5    0.875 seen    85.16 80.73 48.34 0.3854 0.6222
transformer vgg16      0.5    0.875 ignored 79.40 75.78 45.16 0.3591 0.5897
transformer vgg16      0.5    0.875 unseen  77.98 74.67 48.05 0.3926 0.5526
conformer   -          1      1     ignored 82.85 78.82 48.04 0.3811 0.6426
conformer   -          1      1     unseen  80.24 77.33 49.68 0.4210 0.6236
conformer   openl3     0.75   0.875 seen    84.35 80.70 50.14 0.3954 0.6477
conformer   openl3     0.75   0.875 ignored 82.68 79.11 48.43 0.3878 0.6383
conformer   openl3     0.75   0.875 unseen  80.28 77.12 50.46 0.4256 0.6330
conformer   tce        0.75   0.875 seen    84.70 80.94 50.00 0.3970 0.6489
conformer   tce        0.75   0.875 ignored 82.38 78.83 48.28 0.3845 0.6370
conformer   tce        0.75   0.875 unseen  80.45 77.50 50.87 0.4185 0.6284
conformer   vgg16      0.5    0.875 seen    84.03 80.19 46.09 0.3605 0.6290
conformer   vgg16      0.5    0.875 ignored 79.02 74.71 43.91 0.3486 0.5900
conformer   vgg16      0.5    0.875 unseen  78.35 74.41 45.55 0.3714 0.5583""",
    8: """
transformer openl3+tce 0.75   0.875 85.00 0.37  81.10 0.45  52.01 0.63  0.4194 0.0091  0.6653 0.013
transformer openl3+tce random 0.75  84.86 0.36  81.40 0.40  51.82 0.55  0.4231 0.0086  0.6622 0.011
conformer   openl3+tce 0.75   0.875 84.90 0.40  81.12 0.49  50.91 0.59  0.4097 0.0084  0.6612 0.012
conformer   openl3+tce random 0.875 84.57 0.41  80.99 0.41  50.90 0.61  0.4087 0.0081  0.6647 0.012""",
}
PARTS = {"public": "", "seen": "video available", "ignored": "available, ignored", "unseen": "video unavailable"}
DCASE_2020 = {"strong": 2584, "weak": 1578, "unlabelled": 14412, "validation": 1168, "public": 692}  # clips listed


@dataclass(frozen=True)
class Row:
    """A row of a table: a system of the paper, the part of public evaluation it is scored on, the paper's scores"""

    base: str
    visual: tuple
    train_weight: object
    infer_weight: float
    part: str
    paper: tuple  # (mean, standard deviation or None) per score, percentages for F1


def rows_of(number):
    rows = []
    for line in PAPER_TABLES[number].strip().splitlines():
        base, visual, train_weight, infer_weight, *figures = line.split()
        part = figures.pop(0) if number == 7 else "public"
        figures = list(map(float, figures))
        paper = [(figure, None) for figure in figures] if number == 7 else zip(figures[::2], figures[1::2])
        visual = () if visual == "-" else tuple(visual.split("+"))
        train_weight = train_weight if train_weight == "random" else float(train_weight)
        rows.append(Row(base, visual, train_weight, float(infer_weight), part, tuple(paper)))
    return rows


def train_weights(row, search):
    """Acoustic weights in training to choose from (Boes 2022, Sec. 3.2.2)"""
    return INFER_WEIGHTS if search and row.visual and row.train_weight != "random" else (row.train_weight,)


@contextmanager
def claimed(folder, wait=False):
    """True while this process alone works in the folder. A claim ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claim", "w") as file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except ImportError:  # Windows knows no such locks: one process at a time there
            pass
        yield True


def make_table(args, device, log):
    """One of the paper's tables: do the runs that are missing, then print its rows (Boes 2022, Tables 5 to 8).

    Any number of processes may share the folder `out`, on one machine or several: each claims a run at a time.
    """
    if args.plot:
        figure_class()  # without matplotlib, stop before the work
    root, rows = Path(args.data or "data/toy"), rows_of(args.table)
    out = Path(args.out or f"runs/tables-{root.resolve().name}")
    with claimed(out, wait=True):  # one process fills the cache, the others find it filled
        data = load_data(args, list(dict.fromkeys(stream for row in rows for stream in row.visual)), out, log)
    for stream in sorted({stream for row in rows for stream in row.visual} - set(data.visual_statistics)):
        log(f"note   no {root}/visual/{stream}: its rows are left out")
    rows = [row for row in rows if set(row.visual) <= set(data.visual_statistics) and args.base in (None, row.base)]
    if not rows:
        raise InputError(f"{root}/visual: holds the streams of none of the table's rows; extract them first (README)")
    configs = {}
    for seed in range(args.seed, args.seed + args.runs):
        for row in rows:
            for train_weight in train_weights(row, args.search_train_weight):
                config = Config(
                    str(root), row.visual, row.base, train_weight, row.infer_weight,
                    args.epochs, args.batches, tuple(args.batch_size), seed, args.precision,
                )  # fmt: skip
                configs[run_name(config)] = config
    reports = complete_runs(configs, data, out, device, log)
    write_results(out, log)
    if len(reports) < len(configs):
        log(f"table  {len(reports)} of {len(configs)} runs are done: rows are incomplete")
    results = [result_of(row, configs, reports, args) for row in rows]
    text = table_text(args.table, rows, results, data)
    log(text)
    if len(reports) == len(configs):
        write_text(out / f"table_{args.table}.txt", text)
        if args.plot:
            plot_table(out / f"table_{args.table}.png", args.table, rows, results)


def run_name(config):
    return f"{config.base}-{'-'.join(config.visual) or 'audio'}-w{config.train_weight}-{config.seed}"


def complete_runs(configs, data, out, device, log):
    """configs: dict of folder in `out` -> Config -> dict of folder -> report, of all runs that nobody else is doing"""
    reports, diverged, started, trained = {}, set(), time.monotonic(), 0
    first_rank = os.environ.get("RANK") == "0"  # of torchrun: it waits for the others, to print their rows too
    for wait in (False, first_rank):  # the second time round, what others had begun may be finished, or given up
        for name in configs.keys() - reports.keys():
            if report := finished_report(out / name, configs[name], data):
                reports[name] = report
        for name in [name for name in configs if name not in reports and name not in diverged]:
            with claimed(out / name, wait) as mine:
                if mine:
                    try:
                        reports[name] = complete_run(configs[name], data, out / name, device, Log())
                    except FloatingPointError as error:  # one run of many
                        log(f"table  {name} is left out: {error}")
                        diverged.add(name)
                        continue
                    trained += 1
                    left = (time.monotonic() - started) / trained * (len(configs) - len(reports))
                    log(f"table  {len(reports)}/{len(configs)} runs | {name} done | {features.clock(left)} left")
    return reports


def result_of(row, configs, reports, args):
    """The row's numbers over its runs -> (train weight, infer weight, dict of score -> values of the runs)

    The acoustic weights are the paper's, or with --infer-weight auto or --search-train-weight those with the best mean
    EBF1 on validation (Boes 2022, Sec. 3.2.2).
    """
    best = None
    for train_weight in train_weights(row, args.search_train_weight):
        wanted = (row.base, row.visual, train_weight)
        runs = [reports[n] for n, c in configs.items() if n in reports and (c.base, c.visual, c.train_weight) == wanted]
        search = row.visual and (args.infer_weight == "auto" or args.search_train_weight)
        candidates = INFER_WEIGHTS if search else (row.infer_weight,)
        for weight in candidates if runs else ():
            by_part = [report["by_weight"][str(weight)] for report in runs]
            validation = mean_of([parts["validation"]["EBF1"] for parts in by_part])
            if row.part == "ignored":  # the same systems with weight 1; ours: tuned for it, as for any other weight
                by_part = [report["by_weight"]["1.0"] for report in runs]
            part = "seen" if row.part == "ignored" else row.part
            scores = {name: [parts.get(part, {}).get(name) for parts in by_part] for name in TUNED}
            if best is None or (validation, weight) >= best[:2]:
                best = validation, weight, train_weight, scores
    return best and (best[2], best[1], best[3])


def mean_of(values):
    """Mean of the numbers among the values, 0 where there is none"""
    return statistics.mean([v for v in values if v is not None] or [0.0])


def write_results(out, log):
    """results.tsv: a line per finished run in the folder, whichever table it belongs to"""
    settings = ["base", "visual", "train_weight", "seed", "epochs", "batches", "batch_size", "precision"]
    lines = ["\t".join(["run", *settings, "infer_weight", "validation_EBF1", *TUNED])]
    for path in sorted(out.glob("*/metrics.json")):
        if not (path.parent / "model.pt").exists():
            continue
        try:
            report = json.loads(path.read_text())
            words = [" ".join(map(str, v)) if isinstance(v, list) else v for v in map(report["config"].get, settings)]
            scores = [report["scores"]["validation"]["EBF1"], *(report["scores"]["public"][name] for name in TUNED)]
        except (ValueError, KeyError, TypeError, AttributeError):
            log(f"note   {path}: is damaged or was not written by this program; left out of results.tsv")
            continue
        scores = ["" if score is None else f"{score:.6f}" for score in scores]
        lines.append("\t".join(map(str, [path.parent.name, *words, report["infer_weight"], *scores])))
    write_text(out / "results.tsv", "\n".join(lines))


def cell(name, mean, deviation=None):
    """A score as the paper prints it: F1 as percentages, PSDS as fractions; None where it is not known"""
    digits = 4 if name.startswith("PSDS") else 2
    if mean is None:
        return f"{'?':>8}        "
    spread = "" if deviation is None else f" ±{deviation:.{digits}f}"
    return f"{mean:8.{digits}f}{spread:8}"


def mean_and_deviation(name, values):
    """Of a score's values over the runs, in the units of `cell`; the deviation is None for a single run"""
    scale = 1 if name.startswith("PSDS") else 100
    values = [scale * value for value in values if value is not None]
    mean = statistics.mean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def label_of(base, visual, part="public"):
    return " + ".join((base, *visual)) + (f" ({PARTS[part]})" if PARTS[part] else "")


def shares(weight, n):
    """0.75 and two streams -> '0.75 0.125 0.125'"""
    return (
        weight if isinstance(weight, str) else " ".join(f"{x:.4g}" for x in [weight, *[(1 - weight) / max(n, 1)] * n])
    )


def table_text(number, rows, results, data):
    """The table as text; the paper's figures under ours where the data are those of DCASE 2020 task 4, only there"""
    real = {name: part.listed for name, part in data.partitions.items()} == DCASE_2020
    n_runs = max((len(next(iter(result[2].values()))) for result in results if result), default=0)
    heading = f"{f'Table {number}, runs: {n_runs}':54} {'training':18} {'inference':20}"
    lines = [heading + "".join(f"{name:>8}        " for name in TUNED)]
    for row, result in zip(rows, results):
        train_weight, infer_weight, scores = result or (row.train_weight, row.infer_weight, dict.fromkeys(TUNED, ()))
        n = len(row.visual)
        line = (
            f"{label_of(row.base, row.visual, row.part):54} {shares(train_weight, n):18} {shares(infer_weight, n):20}"
        )
        lines.append(line + "".join(cell(name, *mean_and_deviation(name, scores[name])) for name in TUNED))
        if real:
            figures = "".join(cell(name, *figure) for name, figure in zip(TUNED, row.paper))
            lines.append(f"{'':54} {'':18} {'the paper:':20}{figures}")
    if not real:
        lines.append("These are not the data of DCASE 2020 task 4: the figures cannot be compared with the paper's.")
    return "\n".join(line.rstrip() for line in lines)


def plot_table(path, number, rows, results):
    """Bars of the five scores, with the standard deviation over the runs"""
    figure = figure_class()(figsize=(14, 1.2 + 0.35 * len(rows)), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(TUNED), sharey=True)
    for panel, name in zip(panels, TUNED):
        columns = [[v for v in (result[2][name] if result else ()) if v is not None] for result in results]
        means = [statistics.mean(values) if values else 0 for values in columns]
        spread = [statistics.stdev(values) if len(values) > 1 else 0 for values in columns]
        colours = ["tab:blue" if row.visual else "tab:gray" for row in rows]
        panel.barh(range(len(rows)), means, xerr=spread, capsize=3, color=colours)
        low = min((m - d for m, d, values in zip(means, spread, columns) if values), default=0)
        panel.set(title=name, xlim=(max(0, low - 0.1), None))
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [label_of(row.base, row.visual, row.part) for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle(f"Table {number}: mean and standard deviation over the runs (axes do not start at 0)")
    save_figure(figure, path)


def figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--plot and --attention need matplotlib: pip install matplotlib") from None
    return Figure


def save_figure(figure, path):
    with features.replacing(path) as partial:
        figure.savefig(partial, format="png")


def table(config, report):
    """One run as a row in the shape of Boes 2022, Table 5, under its heading"""
    heading = f"{'':32} {'weights':20}" + "".join(f"{name:>8}" for name in TUNED)
    row = f"{label_of(config.base, config.visual):32} {shares(report['infer_weight'], len(config.visual)):20}"
    for name, score in report["scores"]["public"].items():
        row += f"{'-':>8}" if score is None else f"{score:8.4f}" if name.startswith("PSDS") else f"{100 * score:8.2f}"
    return f"{heading}\n{row}"


# --- prediction ------------------------------------------------------------------------------------------------------
# A recording of any length is heard in windows of 10 s, each half over its neighbour. They begin a whole number of
# output frames apart, so that the frames of neighbours cover the same samples and their scores can be averaged.

STRIDE = FRAMES // 2  # ours: output frames from one window to the next
STRIDE_SAMPLES = STRIDE * 8 * features.HOP  # 80,128 samples, 5.008 s
WINDOW_BATCH = 20  # windows that go through the network at a time: some 200 MB


@dataclass
class Trained:
    """What a finished run left for prediction"""

    student: MultiEncoder
    data: features.DataSet  # classes and statistics, no clips
    audio_weight: float
    threshold: np.ndarray  # (C,), tuned for EBF1
    window: np.ndarray  # (C,) frames, tuned for EBF1


def load_trained(path, device):
    """The model.pt of a finished run -> Trained; raises InputError for any other file"""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; name the model.pt that a run left")
    state = load(path, remedy="name the model.pt that a run left")
    state = state if isinstance(state, dict) else {}
    if "student" in state:
        raise InputError(f"{path}: is of an unfinished run; complete it with --resume and name the model.pt it leaves")

    def arrays(pair):
        return tuple(tensor.numpy() for tensor in pair)

    try:
        visual = {stream: arrays(pair) for stream, pair in state["visual_statistics"].items()}
        data = features.DataSet(state["classes"], {}, arrays(state["mel_statistics"]), visual)
        dims = {stream: mean.size for stream, (mean, _) in visual.items()}
        student = MultiEncoder(len(data.classes), dims, state["config"]["base"])
        student.load_state_dict(state["weights"])
        tuned = state["tuned"]["EBF1"]
        threshold, window = np.array(tuned["threshold"]), np.array(tuned["window"])
        return Trained(student.to(device), data, state["infer_weight"], threshold, window)
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise InputError(f"{path}: not the model.pt of a finished run ({first_line(error)})") from None


def cut_windows(blocks):
    """Blocks of sound at 16 kHz -> yields windows: (start in samples, (samples,) float32), the last one may be shorter.

    Each holds 4.99 s of sound or more, unless the whole recording is shorter.
    """
    known, start = np.zeros(0, np.float32), 0
    for block in blocks:
        known = np.concatenate([known, block])
        while len(known) > features.CLIP_SAMPLES:  # so there is more to come after this window
            yield start, known[: features.CLIP_SAMPLES]
            known, start = known[STRIDE_SAMPLES:], start + STRIDE_SAMPLES
    yield start, known


def window_log_mel(sound):
    """One window -> (512, 64) log-mel, as features.load_audio and log_mel give it for a clip.

    ours: each window is scaled by its own peak, because each training clip was. Scaled by that of the recording, one
    bang would make the whole of it quieter than anything the network knows.
    """
    peak = np.abs(sound).max()
    return features.log_mel(features.fit_clip(sound / peak if peak > 0 else sound)).numpy()


def stitch(scores):
    """Frame scores of windows (N, 64, C) -> of the recording (32 (N + 1), C) float32.

    ours: where windows meet, their scores are averaged with weights that fall linearly towards a window's edges. There
    it knows only one side of what it hears, while the other window has that moment well inside. On an hour of toy
    sounds this gave an EBF1 of 39.1, a plain average 34.5, windows without overlap 34.1.
    """
    weight = np.minimum(np.arange(1, FRAMES + 1), np.arange(FRAMES, 0, -1))[:, None].astype(float)  # (64, 1)
    total = np.zeros((STRIDE * (len(scores) + 1), scores.shape[2]))
    weights = np.zeros((len(total), 1))
    for i, window in enumerate(scores):
        rows = slice(STRIDE * i, STRIDE * i + FRAMES)
        total[rows] += weight * window
        weights[rows] += weight
    return (total / weights).astype(np.float32)


def visual_sources(args, statistics, device):
    """--weights and --visual-file, files in the order of the model's streams -> dict of networks, dict of vectors"""
    for flag, given in (("--weights", args.weights), ("--visual-file", args.visual_file)):
        if given and len(given) != len(statistics):
            wanted = f"one for each of its streams: {', '.join(statistics)}" if statistics else "none: it only hears"
            raise InputError(f"{flag}: {len(given)} files, but the model wants {wanted}")
    networks = {stream: features.load_network(stream, path, device) for stream, path in zip(statistics, args.weights)}
    return networks, {stream: features.read_visual(path) for stream, path in zip(statistics, args.visual_file)}


def vectors_of_windows(path, starts, networks, stored):
    """dict of stream -> vectors (64, D) of the windows that start at these seconds, None where there is no picture.

    networks look at the file's own picture; stored vectors are those of the first window.
    """
    vectors = {stream: [array if start == 0 else None for start in starts] for stream, array in stored.items()}
    vectors |= {stream: [] for stream in networks}
    if networks:
        for frames in features.decode_ahead([(path, start, features.CLIP_SECONDS) for start in starts]):
            blind = isinstance(frames, InputError)  # mostly because the picture ends before the sound
            for stream, network in networks.items():
                vectors[stream].append(None if blind else features.clip_vectors(network, frames, path))
    return vectors


def windows_as_clips(path, log_mel, vectors, statistics):
    """Log-mel maps (N, 512, 64) and vectors of windows -> a Partition, which `predict` takes"""
    part = features.Partition("windows", Path(path).parent, len(log_mel), [path] * len(log_mel), log_mel=log_mel)
    for stream, (mean, _) in statistics.items():
        of_stream = vectors.get(stream, [None] * len(log_mel))
        if wrong := {array.shape[1] for array in of_stream if array is not None} - {mean.size}:
            raise InputError(f"{path}: {stream} vectors are {wrong.pop()} wide, but the model learnt from {mean.size}")
        # vectors with values that are not finite count as missing, as they do in training
        part.present[stream] = np.array([array is not None and np.isfinite(array).all() for array in of_stream])
        blank = np.zeros((FRAMES, mean.size))
        part.visual[stream] = np.stack([blank if array is None else array for array in of_stream]).astype(np.float32)
    return part


@dataclass
class Heard:
    """What the network makes of a recording"""

    frame_scores: np.ndarray  # (T, C), frames of 0.1565 s; the last ones may lie beyond the end
    seconds: float
    log_mel: np.ndarray  # (8 T, 64) float16; None unless asked for
    windows: int
    seen: dict  # stream -> number of windows that have it
    first: features.Partition  # the first windows


def hear(trained, path, networks, stored, device, keep_log_mel=False):
    """Run the network over a recording of any length -> Heard. Memory grows by 2 MB an hour, with log-mel by 70 MB."""
    networks = networks if networks and features.has_picture(path) else {}
    beyond = max(0.0, features.recording_seconds(path) - features.CLIP_SECONDS)
    expected = 1 + math.ceil(beyond / (STRIDE * FRAME_HOP))  # windows, if the header is right
    scores, maps, first, n, started = [], [], None, 0, time.monotonic()
    seen = dict.fromkeys(trained.data.visual_statistics, 0)
    windows = cut_windows(features.read_blocks(path))
    while batch := list(islice(windows, WINDOW_BATCH)):
        log_mel = np.stack([window_log_mel(sound) for _, sound in batch])
        vectors = vectors_of_windows(path, [start / features.SAMPLE_RATE for start, _ in batch], networks, stored)
        part = windows_as_clips(path, log_mel, vectors, trained.data.visual_statistics)
        weight = trained.audio_weight
        scores.append(predict(trained.student, trained.data, part, [weight], device)[weight][0])
        maps += list(log_mel.astype(np.float16)) if keep_log_mel else []
        first, n = first or part, n + len(batch)
        seen = {stream: count + int(part.present[stream].sum()) for stream, count in seen.items()}
        features.show_progress(Path(path).name, n, max(expected, n), started, sys.stderr)
        start, sound = batch[-1]
    seconds = (start + len(sound)) * 1000 // features.SAMPLE_RATE / 1000  # ours: whole ms, so that no event ends later
    log_mel = np.concatenate([half[: 8 * STRIDE] for half in maps] + [maps[-1][8 * STRIDE :]]) if keep_log_mel else None
    return Heard(stitch(np.concatenate(scores)), seconds, log_mel, n, seen, first)


def events_of(trained, name, heard):
    """Events of a recording, by onset. ours: of the five tunings of a run (Boes 2022, Sec. 3.1.3), that for EBF1"""
    events = metrics.scores_to_events(
        heard.frame_scores[None], [name], trained.data.classes, trained.threshold, trained.window, FRAME_HOP,
        {name: heard.seconds},
    )  # fmt: skip
    events = [(name, round(onset, 4), round(offset, 4), label) for name, onset, offset, label in events]
    return sorted(events, key=lambda event: event[1:])


def predict_files(args):
    """What --predict does: the events go to stdout, files to the folder --out, and all else to stderr"""
    checkpoint, *paths = args.predict
    names = [Path(path).name for path in paths]
    out = Path(args.out) if args.out else None
    check_names(names, out)
    device = choose_device(args.device)
    trained = load_trained(checkpoint, device)
    networks, stored = visual_sources(args, trained.data.visual_statistics, device)
    reference = features.read_strong(args.reference)[1] if args.reference else []
    if args.plot or args.attention:
        figure_class()  # without matplotlib, stop before the work
    streams = " + ".join(("log-mel", *trained.data.visual_statistics))
    note(f"model  {checkpoint} | {streams}, acoustic weight {trained.audio_weight:g}, tuned for EBF1 | {device.type}")
    print("\t".join(metrics.EVENT_COLUMNS), flush=True)
    found = []
    for path, name in zip(paths, names):
        heard = hear(trained, path, networks, stored, device, args.plot)
        events = events_of(trained, name, heard)
        for event in events:
            print(*event, sep="\t", flush=True)
        describe(name, heard, events, networks, stored)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            rows = heard.frame_scores[: max(1, math.ceil(heard.seconds / FRAME_HOP))]
            if args.scores:
                features.save_vectors(out / f"{name}.scores.npy", rows)
            if args.plot:
                truth = [event for event in reference if event[0] == name]
                log_mel = heard.log_mel[: 8 * len(rows)]
                plot_clip(out / f"{name}.png", log_mel, trained.data.classes, rows, FRAME_HOP, events, truth)
            if args.attention:
                show_attention(trained, path, heard.first, out, device)
        found += events
    if out:
        with features.replacing(out / "predictions.tsv") as partial:
            metrics.write_events(partial, found)


def note(line):
    print(line, file=sys.stderr, flush=True)


def check_names(names, out):
    """Files are told apart by their names, in the table and in the folder of outputs; and no run is overwritten."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]}: two files of this name; rename one, or predict them one after the other")
    if strange := [name for name in names if re.search(r"[\t\r\n]", name)]:
        raise InputError(f"{strange[0]!r}: a tab or line break in the name would break the table; rename the file")
    if out and ((out / "model.pt").exists() or (out / "checkpoint.pt").exists()):
        raise InputError(f"{out}: holds a run, whose files would be overwritten; name another --out")


def describe(name, heard, events, networks, stored):
    """What was heard and seen of a recording, in a line or two"""
    seen = "".join(f", with {stream}: {n}" for stream, n in heard.seen.items())
    length = features.clock(heard.seconds)
    note(f"       {name}: {length} of sound, windows: {heard.windows}{seen}, events: {len(events)}")
    if heard.seen and not any(heard.seen.values()):
        reason = "no picture can be read" if networks else "--weights or --visual-file would add what is seen"
        reason = "the vectors hold values that are not finite" if stored else reason
        note(f"note   {name}: predicted from sound alone (acoustic weight 1): {reason}")


def new_figure(height, height_ratios):
    """-> figure and its panels, one under the other on one time axis"""
    figure = figure_class()(figsize=(8, height), dpi=100, layout="constrained")
    return figure, figure.subplots(len(height_ratios), sharex=True, height_ratios=height_ratios)


def draw_log_mel(axes, log_mel, frame_hop):
    """log_mel (8 T, 64); of long recordings, as many columns as can be told apart"""
    seconds, step = len(log_mel) / 8 * frame_hop, max(1, len(log_mel) // 1000)
    columns = log_mel[: len(log_mel) // step * step].reshape(-1, step, features.MELS).mean(1, dtype=np.float32)
    draw_map(axes, columns.T, (0, seconds, -0.5, 63.5), origin="lower", cmap="magma")
    centres = features.FILTERBANK.argmax(1).numpy() * features.SAMPLE_RATE / features.WINDOW  # Hz
    hertz = (200, 500, 1000, 2000, 4000, 7000)
    axes.set_yticks(np.interp(hertz, centres, np.arange(features.MELS)), hertz)
    axes.set_ylabel("Hz")


def draw_map(axes, array, extent, **more):
    return axes.imshow(array, aspect="auto", extent=extent, interpolation="nearest", **more)


def plot_clip(path, log_mel, classes, frame_scores, frame_hop, events, reference=()):
    """Write a picture: log-mel, probabilities and events of a recording, one under the other.

    log_mel (8 T, 64), frame_scores (T, C), frame_hop in seconds; events and reference (true events, if known) are
    (filename, onset, offset, event_label) in seconds. Of many classes, the 16 that matter most are shown.
    """
    named = {label for *_, label in (*events, *reference)}
    order = sorted(range(len(classes)), key=lambda c: (classes[c] not in named, -frame_scores[:, c].max()))
    shown = sorted(order[:16])
    names = [classes[c] for c in shown]
    height = 0.5 + 0.19 * len(shown)
    figure, (top, middle, bottom) = new_figure(2.2 + 2 * height, (1.6, height, height))
    draw_log_mel(top, log_mel, frame_hop)
    seconds = len(frame_scores) * frame_hop
    extent = (0, seconds, len(shown) - 0.5, -0.5)
    image = draw_map(middle, frame_scores[:, shown].T, extent, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=middle, label="probability", pad=0.01)
    for table, place, colour, label in ((events, 0, "tab:blue", "predicted"), (reference, -0.4, "tab:orange", "true")):
        for number, (_, onset, offset, name) in enumerate(event for event in table if event[3] in names):
            spot = (names.index(name) + place, 0.4)
            bottom.broken_barh([(onset, offset - onset)], spot, color=colour, label=label if number == 0 else None)
    for panel in (middle, bottom):
        panel.set_yticks(range(len(names)), names)
    bottom.set(xlim=(0, seconds), ylim=(len(names) - 0.5, -0.5), xlabel="seconds")
    bottom.grid(axis="y", alpha=0.3)
    if events or reference:
        bottom.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)  # above, it would hide events
    save_figure(figure, path)


def cross_attention(trained, clip, device):
    """Weights of the decoder's cross-attention for a Partition of one clip (Boes 2019, Sec. 4.2).

    -> names of the E encoders that the clip has, weights (blocks, E, heads, 65 queries, 64 frames), which sum to one
    over the frames; query 64 is the token
    """
    caught = []

    def catch(_, inputs):  # the weights pass the dropout of Attention, which does nothing here; so do its outputs (3-D)
        if inputs[0].dim() == 4:
            caught.append(inputs[0][0].cpu().numpy())

    blocks = trained.student.decoder.blocks
    hooks = [one.dropout.register_forward_pre_hook(catch) for block in blocks for one in block.cross.copies]
    predict(trained.student, trained.data, clip, [trained.audio_weight], device)
    for hook in hooks:
        hook.remove()
    weights = np.stack(caught)
    weights = weights.reshape(len(blocks), -1, *weights.shape[1:])
    return ["log-mel", *(stream for stream, have in clip.present.items() if have[0])][: weights.shape[1]], weights


def first_clip(part):
    """A Partition of the first clip of a Partition, for the network alone"""
    visual = {stream: array[:1] for stream, array in part.visual.items()}
    present = {stream: have[:1] for stream, have in part.present.items()}
    return features.Partition(
        part.name, part.folder, 1, part.filenames[:1], log_mel=part.log_mel[:1], visual=visual, present=present
    )


def show_attention(trained, path, windows, out, device):
    """Write the cross-attention in a recording's first window: all of it as .npy, the last block's as a picture"""
    name = Path(path).name
    clip = first_clip(windows)
    encoders, weights = cross_attention(trained, clip, device)
    features.save_vectors(out / f"{name}.attention.npy", weights)
    frames = features.read_frames(path)[::8] if features.has_picture(path) else ()
    plot_attention(out / f"{name}.attention.png", clip.log_mel[0], encoders, weights[-1], frames)
    note(f"       {name}: attention of {' and '.join(encoders)} in its first ten seconds")


def plot_attention(path, log_mel, encoders, weights, frames=()):
    """Write a picture: log-mel (512, 64), up to eight frames (n, H, W, 3), and weights (E, heads, 65, 64) of a block.

    A row of a map is what one output frame attends to. The figures of Boes 2019, Sec. 4.2, show one such row for each
    head; here all output frames are shown, from the top down. Each map is as bright as its own largest weight allows.
    """
    heads = [(encoder, head, w) for encoder, of_heads in zip(encoders, weights) for head, w in enumerate(of_heads, 1)]
    ratios = [1.4] + [0.9] * (len(frames) > 0) + [1.1] * len(heads)
    figure, panels = new_figure(0.4 + 1.05 * sum(ratios), ratios)
    draw_log_mel(panels[0], log_mel, FRAME_HOP)
    step, seconds = 8 / features.FRAME_RATE, FRAMES * FRAME_HOP
    for k, frame in enumerate(frames):
        draw_map(panels[1], frame, (k * step, (k + 1) * step, 0, 1))
    if len(frames):
        panels[1].set(ylim=(0, 1), yticks=[], ylabel="video")
    for panel, (encoder, head, w) in zip(panels[-len(heads) :], heads):
        draw_map(panel, w[:FRAMES], (0, seconds, seconds, 0), cmap="magma", vmin=0)
        panel.set_ylabel(f"{encoder}\nhead {head}")
    panels[-1].set(xlim=(0, seconds), xlabel="seconds that are attended to; downwards: seconds of the output frame")
    save_figure(figure, path)


# --- speed -----------------------------------------------------------------------------------------------------------


def benchmark(config, data, device, log, repeats=10):
    """Time the training step by part, medians, beside the rate that a large matrix product reaches on the device"""
    student, teacher, optimizer = start(config, data, device)
    clips = load_clips(data, config.visual, device)
    parts = {"data": [], "teacher forward": [], "student forward": [], "backward": [], "update": []}
    last = 0.0

    def mark(part=None):
        nonlocal last
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        now, before = time.perf_counter(), last
        last = now
        if part:
            parts[part].append(now - before)

    teacher.register_forward_pre_hook(lambda *_: mark("data"))
    student.register_forward_hook(lambda *_: mark("student forward"))
    teacher.register_forward_hook(lambda *_: mark("teacher forward"))
    optimizer.register_step_pre_hook(lambda *_: mark("backward"))
    for _ in ("warm-up", "timed"):
        for times in parts.values():
            times.clear()
        for iteration in range(repeats):
            mark()
            plan = plan_iteration(clips, config, iteration)
            training_step(student, teacher, optimizer, clips, plan, config, iteration)
            mark("update")
    with FlopCounterMode(display=False) as counter:
        training_step(student, teacher, optimizer, clips, plan, config, 0)

    seconds = {part: statistics.median(times[:repeats]) for part, times in parts.items()}
    total = statistics.median(map(sum, zip(*parts.values())))
    for part, time_of_part in (seconds | {"iteration": total}).items():
        log(f"{part:16} {1000 * time_of_part:9.2f} ms {100 * time_of_part / total:4.0f} %")
    flop, peak = counter.get_total_flops(), matmul_rate(device, config.precision)
    log(f"{sum(config.batch_size) / total:.0f} clips/s | {config.precision}, {config.batch_size}, medians of {repeats}")
    log(f"{flop / 1e9:.0f} GFLOP of matrix work an iteration: {flop / total / 1e9:.0f} GFLOP/s, "
        f"{100 * flop / total / peak:.0f} % of the {peak / 1e9:.0f} GFLOP/s of one large matrix product")  # fmt: skip
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        import resource  # Windows has none

        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    log(f"{memory / 1e9:.1f} GB of memory at most | {PAPER['epochs'] * PAPER['batches']} iterations: "
        f"{features.clock(PAPER['epochs'] * PAPER['batches'] * total)}")  # fmt: skip


def matmul_rate(device, precision):
    """FLOP/s of a large matrix product in the precision of the run"""
    n = 8192 if device.type == "cuda" else 2048
    x = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        (x @ x).sum().item()  # waits for the device
        times.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(times)


# --- the command line ------------------------------------------------------------------------------------------------


def weight_or(word):
    """Type of a flag that takes an acoustic weight in (0, 1] or one word"""

    def parse(text):
        if text != word and not 0 < float(text) <= 1:
            raise ValueError
        return text if text == word else float(text)

    parse.__name__ = f"acoustic weight (a number above 0 and up to 1, or {word!r})"
    return parse


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--data",
        metavar="DIR",
        help="data set in the layout of DCASE 2020 task 4 (README, 'Real data'); default: toy data",
    )
    add(
        "--visual",
        nargs="+",
        default=[],
        metavar="NAME",
        help="visual streams, folders under DIR/visual; default: audio only",
    )
    add("--base", choices=("transformer", "conformer"), help="base model; default: transformer, in tables both")
    add(
        "--train-weight",
        type=weight_or("random"),
        metavar="W",
        help="acoustic weight in training: a number, or 'random' for U(0.25, 1) per batch; default: 0.5",
    )
    add(
        "--infer-weight",
        type=weight_or("auto"),
        metavar="W",
        help="acoustic weight at inference: a number, or 'auto', chosen by validation EBF1; default: auto",
    )
    add("--epochs", type=int, help=f"default: {PAPER['epochs']}, toy data {TOY['epochs']}")
    add("--batches", type=int, help=f"per epoch; default: {PAPER['batches']}, toy data {TOY['batches']}")
    add(
        "--batch-size",
        type=int,
        nargs=3,
        metavar=("STRONG", "WEAK", "UNLABELLED"),
        help=f"default: {PAPER['batch_size']}, toy data {TOY['batch_size']}",
    )
    add("--seed", type=int, default=0, help="of weights, batches and dropout; default: 0")
    add("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    add(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        default="fp32",
        help="arithmetic in training: fp32; tf32 (NVIDIA GPUs, in scoring too); bf16 (GPUs, newer CPUs); default: fp32",
    )
    add("--table", type=int, choices=PAPER_TABLES, help="do all runs of a table of Boes 2022 and print it")
    add(
        "--runs",
        type=int,
        help=f"runs per row of a table, with seeds from --seed on; default: {PAPER['runs']}, toy data {TOY['runs']}",
    )
    add(
        "--search-train-weight",
        action="store_true",
        help="in tables, choose the acoustic weights in training and at inference by validation EBF1",
    )
    add("--plot", action="store_true", help="with --table or --predict, draw the result; needs matplotlib")
    add("--benchmark", action="store_true", help="time the training step by part instead, with the paper's batch")
    add("--out", metavar="DIR", help="folder for the run; default: runs/DATA-BASE-STREAMS-SEED")
    add("--resume", action="store_true", help="continue the interrupted run in the folder, given the same flags")
    add_prediction(parser)
    args = parser.parse_args(arguments)
    check_prediction(parser, args)
    if (args.search_train_weight or args.runs is not None) and not args.table:
        parser.error("--search-train-weight and --runs belong to --table")
    if args.benchmark and (args.epochs or args.batches or args.infer_weight or args.resume):
        parser.error("--benchmark has no use for --epochs, --batches, --infer-weight and --resume: leave them out")
    if args.data == "":
        parser.error("--data is empty: name a folder, or leave it out for toy data")
    for name, value in (PAPER if args.data or args.benchmark else TOY).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.table and (args.visual or args.train_weight or args.infer_weight not in (None, "auto")):
        parser.error("--table sets --visual, --train-weight and, but for 'auto', --infer-weight")
    if args.table and (args.resume or args.benchmark):
        parser.error("--table resumes by itself, and is not to be timed: leave out --resume and --benchmark")
    args.base = args.base or (None if args.table else "transformer")
    if not args.visual and not args.table and (args.train_weight or args.infer_weight):
        parser.error("--train-weight and --infer-weight need a stream to share with: add --visual NAME")
    args.train_weight = args.train_weight or (0.5 if args.visual else 1.0)
    args.infer_weight = args.infer_weight or ("auto" if args.visual else 1.0)
    if args.runs < 1 or args.epochs < 1 or args.batches < 1 or min(args.batch_size) < 0 or sum(args.batch_size) < 1:
        parser.error("--runs, --epochs and --batches must be at least 1, and --batch-size must hold at least one clip")
    if len(set(args.visual)) < len(args.visual) or any(Path(v).name != v or v in ("", "..") for v in args.visual):
        parser.error("--visual takes different folder names, without slashes")
    if not 0 <= args.seed < 2**63:
        parser.error("--seed must be 0 or more, and below 2 ** 63")
    return args


def add_prediction(parser):
    group = parser.add_argument_group("prediction (README, 'Your own files'); besides, only --device and --out apply")
    add = group.add_argument
    add(
        "--predict", nargs="+", metavar=("CKPT", "FILE"), help="events in sound and video files; CKPT: a run's model.pt"
    )
    add("--weights", nargs="+", default=[], metavar="FILE", help="of the visual networks, in the order of the streams")
    add(
        "--visual-file", nargs="+", default=[], metavar="NPY", help="visual vectors of FILE's first ten seconds instead"
    )
    add("--scores", action="store_true", help="also write the frame scores; needs --out, like --plot and --attention")
    add("--reference", metavar="TSV", help="true events, for the picture")
    add("--attention", action="store_true", help="also write what the decoder attends to in the first ten seconds")


def check_prediction(parser, args):
    """No flag is accepted where it would change nothing."""
    own = ("weights", "visual_file", "scores", "reference", "attention")
    changed = [name for name, value in vars(args).items() if value != parser.get_default(name)]
    fits = {*own, "plot", "predict", "device", "out"}
    idle = {*changed} - fits if args.predict else {*own, *(() if args.table else ("plot",))} & {*changed}
    if idle:
        flag = "--" + min(idle).replace("_", "-")
        parser.error(f"{flag} changes nothing {'with' if args.predict else 'without'} --predict: leave it out")
    if not args.predict:
        return
    if len(args.predict) < 2:
        parser.error("--predict takes the model.pt of a run and at least one sound or video file")
    if not args.out and (args.scores or args.plot or args.attention):
        parser.error("--scores, --plot and --attention write files: name a folder with --out")
    if args.reference and not args.plot:
        parser.error("--reference is drawn by --plot: add it")
    if args.weights and args.visual_file:
        parser.error("--weights and --visual-file exclude each other")
    if args.visual_file and len(args.predict) > 2:
        parser.error("--visual-file belongs to one clip: name one FILE")


def choose_device(name):
    """cpu, cuda, mps or auto; under torchrun, a GPU for each rank"""
    device = features.choose_device(name)
    if device.type == "cuda" and ("LOCAL_RANK" in os.environ or device.index is None):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu") if "LOCAL_RANK" in os.environ else device  # ranks cannot talk from other devices


def join_ranks(device):
    """Under torchrun: become one of its ranks"""
    if "LOCAL_RANK" in os.environ:
        # torch itself loads this module later; loaded after init_process_group, its functions' defaults hold the group,
        # whose threads then outlive destroy_process_group and may abort the process at its end.
        import torch.distributed.nn  # noqa: F401

        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))  # rank 0 may score or fill the cache for long


def keep_freed_memory():
    """ours: glibc returns every large block to the system when it is freed, and asks for it again the next iteration.

    The page faults this costs are over a third of a training step on a CPU, so ask it to keep the memory instead.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)  # never


def cache_folder(root, out):
    """Inside the data set, or beside the run where the data set is read-only, be it only by its permission bits"""
    writable = root.is_dir() and os.access(root, os.W_OK) and root.stat().st_mode & 0o222
    return root / "cache" if writable else out.parent / f"cache-{root.resolve().name}"


def load_data(args, visual, out, log):
    """Toy data or those in --data; the first rank fills the cache, the others wait and read it

    visual: streams to read; for a table, those of them that are there
    """
    root = args.data or "data/toy"
    rank, ranks = rank_of_ranks()
    log(f"data   {root}")
    if rank > 0:
        dist.barrier()
    if not args.data:
        features.make_toy(root)
        log("       TOY DATA: these scores are not comparable with the paper.")
        log("       Use --data DIR for DCASE 2020 (README, 'Real data').")
    if args.table:
        visual = [stream for stream in visual if (Path(root) / "visual" / stream).is_dir()]
    data = features.load_dataset(root, visual, cache_folder(Path(root), out), log)
    if rank == 0 and ranks > 1:
        dist.barrier()
    return data


def finished_report(out, config, data):
    """The report of a finished run, without its weights; None where there is none.

    Neither where it was scored with other streams at hand: its split by availability of video is another one then.
    """
    if not (out / "model.pt").exists():
        return None
    report = load(out / "model.pt")
    check_same_run(out / "model.pt", report, config, data)
    same_split = report.get("streams") == list(data.visual_statistics)
    return {key: value for key, value in report.items() if key not in HEAVY} if same_split else None


def complete_run(config, data, out, device, log):
    """Train and score, from where an earlier attempt stopped -> the report; None on ranks that leave that to rank 0"""
    if report := finished_report(out, config, data):
        log("       this run is finished")
        return report
    out.mkdir(parents=True, exist_ok=True)
    log.path = None if rank_of_ranks()[0] > 0 else out / "log.txt"
    if (out / "model.pt").exists():  # trained, but scored with other streams at hand
        student, _, _ = start(config, data, device)
        student.load_state_dict(load(out / "model.pt")["weights"])
    else:
        student = train(config, data, out, device, log)
    if rank_of_ranks()[0] > 0:
        return None
    report = score_run(student, config, data, out, device, log)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    return report


def run(args, log):
    """What the command line does: load, train, score, print the table row"""
    device = choose_device(args.device)
    if args.precision == "tf32" and device.type != "cuda":
        raise InputError(f"--precision tf32 is arithmetic of NVIDIA GPUs, this run is on {device}; use fp32 or bf16")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if args.table:
        make_table(args, device, log)
        return
    join_ranks(device)
    rank, ranks = rank_of_ranks()
    if any(size % ranks for size in args.batch_size):
        raise InputError(f"--batch-size {' '.join(map(str, args.batch_size))}: no equal shares for {ranks} ranks")
    config = Config(
        args.data or "data/toy", tuple(args.visual), args.base, args.train_weight, args.infer_weight,
        args.epochs, args.batches, tuple(args.batch_size), args.seed, args.precision,
    )  # fmt: skip
    name = (Path(config.data).resolve().name, config.base, *(config.visual or ("audio",)), str(config.seed))
    out = Path(args.out or "runs/" + "-".join(name))
    if not (args.resume or args.benchmark) and ((out / "checkpoint.pt").exists() or (out / "model.pt").exists()):
        raise InputError(f"{out}: holds a run already; continue it with --resume, name another --out, or delete it")
    threads = f"{torch.get_num_threads()} threads" + (f", {ranks} ranks" if ranks > 1 else "")
    log(f"torch {torch.__version__} | {device.type}, {threads} | seed {config.seed} | {out}")
    data = load_data(args, args.visual, out, log)
    if args.benchmark:
        benchmark(config, data, device, log)
        return
    with claimed(out) if rank == 0 else nullcontext(True) as mine:
        if not mine:
            raise InputError(f"{out}: another process is at work there; name another --out")
        report = complete_run(config, data, out, device, log)
    if report:
        log(table(config, report))
        if not args.data:
            log("TOY DATA: not comparable with the paper")


def main(arguments=None):
    args = parse_arguments(arguments)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default would round convolutions on GPUs unasked
    warnings.formatwarning = lambda message, *_: f"note   {message}\n"
    try:
        if args.predict:
            predict_files(args)
        else:
            run(args, Log())
    except (InputError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        again = "" if args.table else " with --resume"
        remedy = f"; the same command{again} continues after the last finished epoch"
        sys.exit("\ninterrupted" + (remedy if not (args.predict or args.benchmark) else ""))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
