"""Train, tune and score a multi-encoder on clips of which only some can be seen (Boes & Van hamme 2022, Sec. 3).

    python train.py --visual openl3                      toy data, made on the spot; minutes on two cores
    python train.py --visual openl3 --data DIR           DCASE 2020 task 4 in DIR, the paper's schedule
    torchrun --nproc-per-node N train.py ...             the same batches, shared by N processes

From top to bottom as time runs: what a run is asked for, the batch of an iteration, one training step, the training
loop, tuning and scoring, the command. The README's section "To try something else" says what to change for what.
"""

import argparse
import copy
import json
import math
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch.nn import functional as F

import features
import metrics
from avsed import MultiEncoder
from features import FOREIGN, FRAME_HOP, InputError, first_line, load_tensors, save_tensors

LEARNING_RATE = 1e-3  # Boes 2022, Sec. 3.1.5
LR_STEP = 10_000  # iterations (Boes 2022, Sec. 3.1.5)
EMA_DECAY = 0.999  # per iteration (Boes 2022, Sec. 3.1.5)
CONSISTENCY = 2.0  # weight of both consistency terms (Boes 2022, Sec. 3.1.5); ours: from the start, no ramp-up
MIXUP_RATE, MIXUP_SHAPE = 0.33, 0.2  # Boes 2022, Sec. 3.1.5
RANDOM_WEIGHT = (0.25, 1.0)  # range of random acoustic weights (Boes 2022, Sec. 3.2.2)
INFER_WEIGHTS = (0.25, 0.5, 0.75, 0.875)  # acoustic weights tried at inference (Boes 2022, Sec. 3.2.2)
TRAIN_WEIGHTS = {  # acoustic weights in training that won (Boes 2022, Tables 5 and 8)
    ("transformer", "openl3"): 0.5,
    ("transformer", "tce"): 0.75,
    ("transformer", "vgg16"): 0.5,
    ("transformer", "openl3", "tce"): 0.75,
    ("conformer", "openl3"): 0.75,
    ("conformer", "tce"): 0.75,
    ("conformer", "vgg16"): 0.5,
    ("conformer", "openl3", "tce"): 0.75,
}
PAPER = {"epochs": 100, "batches": 250, "batch_size": (32, 32, 64)}  # Boes 2022, Sec. 3.1.5
TOY = {"epochs": 9, "batches": 40, "batch_size": (4, 6, 2)}  # ours: what two cores do in a few minutes
# the scores of Boes 2022, Sec. 3.1.4, and what metrics.tune calls them
SCORES = {"CBF1": "clip", "SBF1": "segment", "EBF1": "event", "PSDS1": "psds1", "PSDS2": "psds2"}
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets them


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


# --- the batch of an iteration ---------------------------------------------------------------------------------------
# Every random choice about the batch of iteration t is a function of the seed and t alone, and dropout is seeded anew
# with each epoch. So --resume continues with the same batches though a checkpoint holds the state of no random
# generator, only the number of epochs done, and the ranks of a data-parallel run agree without talking. The second
# number of each seed says what it is for: 0 to 2 the order of a label group, 3 the batch, 4 dropout.


@dataclass
class Clips:
    """The training clips as tensors; lists have an entry for each label group: strong, weak, unlabelled"""

    log_mel: list  # (N, 512, 64)
    visual: dict  # stream -> list of (N, 64, D)
    present: dict  # stream -> list of (N,) bool, numpy
    strong: torch.Tensor  # (N strong, 64, C) bool: targets of the strong clips
    weak: torch.Tensor  # (N weak, C) bool: targets of the weak clips
    statistics: dict  # "log-mel" or stream -> (mean, std)
    device: torch.device  # where batches are put


@dataclass
class Batch:
    """B clips, standardised and mixed: strong ones first, then weak, then unlabelled"""

    log_mel: torch.Tensor  # (B, 512, 64)
    visual: dict  # stream -> (B, 64, D)
    present: dict  # stream -> (B,) bool, on the CPU
    strong: torch.Tensor  # (n_strong, 64, C) targets in [0, 1]
    weak: torch.Tensor  # (n_weak, C)
    audio_weight: float


def load_clips(data, visual, device):
    """Training partitions of a DataSet -> Clips. speed: on a GPU if they fill less than half of what is free there"""
    parts = [data.partitions[name] for name in features.TRAINING]
    arrays = {"log-mel": [part.log_mel for part in parts]}
    arrays |= {stream: [part.visual[stream] for part in parts] for stream in visual}
    size = sum(array.nbytes for group in arrays.values() for array in group)
    fits = device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2
    place = device if fits else torch.device("cpu")
    tensors = {name: [torch.from_numpy(array).to(place) for array in group] for name, group in arrays.items()}
    return Clips(
        log_mel=tensors.pop("log-mel"),
        visual=tensors,
        present={stream: [part.present[stream] for part in parts] for stream in visual},
        strong=torch.from_numpy(parts[0].frames).to(place),
        weak=torch.from_numpy(parts[1].tags).to(place),
        statistics=statistics_on(device, data),
        device=device,
    )


def statistics_on(device, data):
    """What inputs are standardised with: dict of "log-mel" or stream -> mean, std as tensors"""
    pairs = {"log-mel": data.mel_statistics, **data.visual_statistics}
    return {name: [torch.as_tensor(values, device=device) for values in pair] for name, pair in pairs.items()}


def training_batch(clips, config, t):
    """The batch of iteration t (Boes 2022, Sec. 3.1.5): which clips, mixed with whom, and the acoustic weight"""
    rng = np.random.default_rng([config.seed, 3, t])
    audio_weight = config.train_weight
    if audio_weight == "random":  # one for the whole batch (Boes 2022, Sec. 3.2.2)
        audio_weight = rng.uniform(*RANDOM_WEIGHT)
    ratios = [1.0, 1.0, 1.0]  # of mixup; 1 leaves the clips as they are
    if rng.random() < MIXUP_RATE:  # ours: one coin for the batch, one ratio for each label group
        ratios = rng.beta(MIXUP_SHAPE, MIXUP_SHAPE, size=3).tolist()

    groups = []  # per label group: indices (n,) of the clips, of those they are mixed with, and the ratio
    for g, size in enumerate(config.batch_size):
        picked = endless(len(clips.log_mel[g]), size, t, (config.seed, g))
        present = [have[g][picked] for have in clips.present.values()]
        partners = picked[mixup_partners(rng, size, present)]
        groups.append((picked[RANK::RANKS], partners[RANK::RANKS], ratios[g]))  # an equal share for each rank

    def inputs(name, arrays):
        mixed = torch.cat([mix(array, *group, clips.device) for array, group in zip(arrays, groups)])
        return standardise(mixed, clips.statistics[name])

    return Batch(
        log_mel=inputs("log-mel", clips.log_mel),
        visual={stream: inputs(stream, arrays) for stream, arrays in clips.visual.items()},
        present={
            stream: torch.from_numpy(np.concatenate([array[picked] for array, (picked, _, _) in zip(have, groups)]))
            for stream, have in clips.present.items()
        },
        strong=mix(clips.strong, *groups[0], clips.device),
        weak=mix(clips.weak, *groups[1], clips.device),
        audio_weight=audio_weight,
    )


def endless(n, size, t, key):
    """Indices (size,) of batch number t of an endless shuffled stream of n clips; incomplete batches are dropped.

    With 7 clips and batches of 3, batches 0 and 1 are the first six of one order, 2 and 3 those of another.
    """
    per_pass = max(1, n // max(size, 1))
    order = np.random.default_rng([*key, t // per_pass]).permutation(n)
    order = np.resize(order, max(n, size))  # ours: a group smaller than its share of the batch is repeated
    return order[t % per_pass * size :][:size]


def mixup_partners(rng, n, present):
    """Positions (n,) of the clips that n clips of one label group are mixed with; present: per stream (n,) bool.

    ours: partners are of one label group, so that labels stay of one kind, and have the same streams, so that a clip
    with video is never mixed with one without.
    """
    partners = np.arange(n)
    streams = np.array([np.ones(n, bool), *present]).T  # (n, E): which ones each clip has, the first is sound
    for kind in np.unique(streams, axis=0):
        members = np.flatnonzero((streams == kind).all(axis=1))
        partners[members] = rng.permutation(members)
    return partners


def mix(array, picked, partners, ratio, device):
    """Mixup (Boes 2022, Sec. 3.1.5): ratio times the picked clips + (1 - ratio) times their partners, on the device"""
    own, partner = (array[torch.from_numpy(rows).to(array.device)].to(device).float() for rows in (picked, partners))
    return ratio * own + (1 - ratio) * partner


def standardise(x, statistics):
    """Per mel bin or visual dimension, with mean and std of the training clips (Boes 2022, Sec. 3.1.2)"""
    mean, std = statistics
    return (x - mean) / std


# --- one training step -----------------------------------------------------------------------------------------------


def learning_rate(t, iterations):
    """0.001, a tenth of it every 10,000 iterations (Boes 2022, Sec. 3.1.5). ours: in steps, not as a smooth decay.

    ours: a run too short for that takes one step, after 80 % of its iterations. Otherwise it would end at the full
    rate, and its scores would depend on the last few batches.
    """
    step = LR_STEP if iterations > LR_STEP else 0.8 * iterations
    return LEARNING_RATE * 0.1 ** int(t // step)


@torch.no_grad()
def update_teacher(teacher, student, t):
    """Exponential moving average of the student's parameters after step t = 1, 2, .. (Boes 2022, Sec. 3.1.5).

    ours: a warm-up with decays 1/2, 2/3, 3/4 .., as in the DCASE baselines. Only parameters are averaged: the teacher,
    in training mode like the student, collects batch norm statistics of its own.
    """
    decay = min(1 - 1 / (t + 1), EMA_DECAY)
    for average, latest in zip(teacher.parameters(), student.parameters()):
        average.lerp_(latest, 1 - decay)  # decay * average + (1 - decay) * latest


def binary_cross_entropy(logits, targets):
    """Mean over all elements, 0 where a batch has no such clips"""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / max(1, targets.numel())


def average_gradients(student):
    """Of a data-parallel run: every rank has an equal share of each label group, so this is the whole batch's gradient.

    ours: batch norms see the share of their rank alone; those of the first rank are kept.
    """
    if RANKS > 1:
        gradients = [p.grad for p in student.parameters()]
        mean = torch.cat([gradient.flatten() for gradient in gradients]) / RANKS  # speed: one message, not hundreds
        dist.all_reduce(mean)
        for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))


def training_step(student, teacher, optimizer, batch, config, t):
    """Iteration t of mean-teacher training (Boes 2022, Sec. 3.1.5).

    -> (4,) losses: clip cross entropy, frame cross entropy, clip consistency, frame consistency
    """
    inputs = batch.log_mel, batch.visual, batch.present, batch.audio_weight  # student and teacher share the weight

    with torch.autocast(batch.log_mel.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        with torch.no_grad():  # ours: the same mixed batch, other dropout
            teacher_frame, teacher_clip = (logits.float() for logits in teacher(*inputs))
        student_frame, student_clip = (logits.float() for logits in student(*inputs))

    n_strong, n_weak = len(batch.strong), len(batch.weak)
    losses = torch.stack([
        binary_cross_entropy(student_clip[n_strong : n_strong + n_weak], batch.weak),
        binary_cross_entropy(student_frame[:n_strong], batch.strong),
        F.mse_loss(student_clip.sigmoid(), teacher_clip.sigmoid()),
        F.mse_loss(student_frame.sigmoid(), teacher_frame.sigmoid()),
    ])  # fmt: skip
    loss = losses[:2].sum() + CONSISTENCY * losses[2:].sum()

    for group in optimizer.param_groups:
        group["lr"] = learning_rate(t, config.iterations)
    optimizer.zero_grad(set_to_none=False)  # ours: an encoder whose stream no clip of the batch has gets gradient 0
    loss.backward()
    average_gradients(student)
    optimizer.step()
    update_teacher(teacher, student, t + 1)
    return losses.detach()


# --- the training loop -----------------------------------------------------------------------------------------------


def start(config, data, device):
    """-> student, teacher, optimizer as they are before the first iteration"""
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"  # PyTorch's default would round convolutions unasked
    dims = {stream: data.visual_statistics[stream][0].size for stream in config.visual}
    student = MultiEncoder(len(data.classes), dims, config.base)
    if device.type == "cpu":
        from extras import cpu

        cpu.speed_up(student)  # the same network with less work, where avsed.py is as it came
        cpu.keep_freed_memory()
    student = student.to(device, memory_format=torch.channels_last).train()  # speed: the CNN likes channels last
    teacher = copy.deepcopy(student).requires_grad_(False)  # ours: a copy, not random weights of its own
    for p in student.parameters():  # those of an encoder that no clip uses keep gradient 0, see training_step
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.RAdam(student.parameters(), lr=LEARNING_RATE)  # ours: default betas, no weight decay
    return student, teacher, optimizer


def train(config, data, out, device, log, checkpoint=None):
    """Run the schedule, from the checkpoint on if there is one -> the student after its last iteration"""
    student, teacher, optimizer = start(config, data, device)
    n_parameters = sum(p.numel() for p in student.parameters()) / 1e6
    log(f"model  {config.base}, {' + '.join(('log-mel', *config.visual))}, {n_parameters:.2f} M parameters")
    first = 0
    if checkpoint:
        first = restore(out, checkpoint, student, teacher, optimizer, config.epochs)
        log(f"       continuing after epoch {first} of {config.epochs}")
    clips = load_clips(data, config.visual, device)
    described = description(config, data)
    started = shown = time.monotonic()
    for epoch in range(first, config.epochs):
        torch.manual_seed(np.random.default_rng([config.seed, 4, epoch, RANK]).integers(2**63))  # for dropout
        student.train()
        losses = []
        for t in range(epoch * config.batches, (epoch + 1) * config.batches):
            losses.append(training_step(student, teacher, optimizer, training_batch(clips, config, t), config, t))
            pace = (time.monotonic() - started) / (t + 1 - first * config.batches)  # seconds per iteration
            if log.live and time.monotonic() - shown > 1:
                shown = time.monotonic()
                print(progress_line(config, t, losses[-1].tolist(), pace), end="\033[K\r", flush=True)
        terms = torch.stack(losses) / RANKS
        if RANKS > 1:  # each rank has seen the losses of its own share
            dist.all_reduce(terms)
        terms = terms.tolist()
        check_finite(terms, epoch * config.batches)
        if log.live:
            print(end="\033[K")  # "erase to the end of the line"
        log(progress_line(config, t, np.mean(terms, 0), pace))
        if RANK == 0:
            log(valid_line(student, data, config, epoch, device))
            state = {
                "epoch": epoch + 1,
                "student": student.state_dict(),
                "teacher": teacher.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            save_tensors(out / "checkpoint.pt", state | described)
    return student


def description(config, data):
    """The part common to checkpoint.pt, model.pt and, without its tensors, metrics.json"""
    return {
        "config": asdict(config),
        "classes": data.classes,
        "data": data.identity(config.visual),
        "mel_statistics": [torch.from_numpy(values) for values in data.mel_statistics],
        "visual_statistics": {
            stream: [torch.from_numpy(values) for values in data.visual_statistics[stream]] for stream in config.visual
        },
    }


def restore(out, checkpoint, student, teacher, optimizer, epochs):
    """Put an interrupted run back as it was at its last checkpoint -> number of epochs done"""
    optimizer.step()  # gives its state the form of a saved one; what it changes is replaced below
    parts = {"student": student, "teacher": teacher, "optimizer": optimizer}
    wanted = {"epoch": 0} | {name: part.state_dict() for name, part in parts.items()}
    found = {name: checkpoint.get(name) for name in wanted}
    if not same_form(found, wanted) or not 1 <= found["epoch"] <= epochs:
        raise InputError(f"{out}/checkpoint.pt: of another architecture or optimizer, or damaged; delete it")
    for name, part in parts.items():
        part.load_state_dict(found[name])
    return found["epoch"]


def same_form(found, wanted):
    """Do two contents of checkpoints agree in all but their numbers? Tensors must be finite, too"""
    if isinstance(wanted, dict):
        alike = isinstance(found, dict) and found.keys() == wanted.keys()
        return alike and all(same_form(found[key], wanted[key]) for key in wanted)
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(same_form, found, wanted))
    if isinstance(wanted, torch.Tensor):
        return (found.shape, found.dtype) == (wanted.shape, wanted.dtype) and bool(found.isfinite().all())
    return True


def progress_line(config, t, terms, pace):
    """terms: the four losses; pace: seconds per iteration"""
    epoch, number = divmod(t, config.batches)
    filled = "#" * (10 * (number + 1) // config.batches)
    weak, strong, clip, frame = terms
    return (
        f"epoch {epoch + 1:3d}/{config.epochs} | {number + 1:3d}/{config.batches} [{filled:-<10}] | "
        f"strong {strong:.4f} | weak {weak:.4f} | consistency {clip + frame:.4f} | "
        f"lr {learning_rate(t, config.iterations):.1e} | {1000 * pace:.0f} ms | "
        f"{features.clock(pace * (config.iterations - t - 1))} left"
    )


def check_finite(terms, first):
    """terms: four losses of each iteration from `first` on; the run cannot go on where one is not finite"""
    names = ("clip cross entropy", "frame cross entropy", "clip consistency", "frame consistency")
    for t, row in enumerate(terms, first):
        if not all(map(math.isfinite, row)):
            named = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, row))
            raise FloatingPointError(f"the loss is not finite at iteration {t}: {named}; nothing of this epoch is kept")


def valid_line(student, data, config, epoch, device):
    """How the student does on validation so far: threshold 0.5, no filter; only to watch, nothing is chosen by it"""
    part, n_classes = data.partitions["validation"], len(data.classes)
    # ours: the weight that the paper chose for most of its systems (Tables 5, 6, 8)
    weight = INFER_WEIGHTS[-1] if config.infer_weight == "auto" else config.infer_weight
    frame_scores, clip_scores = predict(student, data, part, [weight], device)[weight]
    untuned = dict.fromkeys(SCORES, (np.full(n_classes, 0.5), np.ones(n_classes, int)))
    scores = evaluate(part, data.classes, frame_scores, clip_scores, untuned)
    shown = " | ".join(f"{name} {figure(name, score)}" for name, score in scores.items())
    return f"valid {epoch + 1:3d}/{config.epochs} | {shown} | acoustic weight {weight}"


# --- tuning and scoring ----------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(student, data, part, audio_weights, device, size=32):
    """Probabilities of a partition -> dict of audio weight -> (frame scores (N, 64, C), clip scores (N, C)), float32"""
    student.eval()
    statistics = statistics_on(device, data)

    def inputs(name, array):
        return standardise(torch.from_numpy(array).to(device).float(), statistics[name])

    outputs = {weight: ([], []) for weight in audio_weights}
    for here in (slice(first, first + size) for first in range(0, len(part), size)):
        visual = {stream: inputs(stream, part.visual[stream][here]) for stream in student.streams}
        present = {stream: torch.from_numpy(part.present[stream][here]) for stream in student.streams}
        encoded = student.encode(inputs("log-mel", part.log_mel[here]), visual, present)  # the same for all weights
        for weight in audio_weights:
            for kind, logits in zip(outputs[weight], student.decode(*encoded, weight)):
                kind.append(logits.sigmoid().cpu().numpy())
    return {weight: (np.concatenate(frame), np.concatenate(clip)) for weight, (frame, clip) in outputs.items()}


def tune_each_score(part, classes, frame_scores, clip_scores):
    """Thresholds and windows by class, anew for each score (Boes 2022, Sec. 3.1.3) -> dict of score -> ((C,), (C,))"""
    return {
        name: metrics.tune(
            clip_scores if name == "CBF1" else frame_scores,
            part.filenames, part.events, part.seconds, classes, FRAME_HOP, metric,
        )
        for name, metric in SCORES.items()
    }  # fmt: skip


def events_of(part, classes, frame_scores, threshold, window):
    """Frame scores of a partition (N, 64, C) -> events, with thresholds and windows by class"""
    return metrics.scores_to_events(frame_scores, part.filenames, classes, threshold, window, FRAME_HOP, part.seconds)


def tags_of(clip_scores, threshold):
    """Clip scores (N, C) -> tags (N, C) bool, with thresholds by class. In float64, as all scores are compared"""
    return clip_scores.astype(np.float64) > threshold


def evaluate(part, classes, frame_scores, clip_scores, tuned):
    """The scores of Boes 2022, Sec. 3.1.4, each with its own thresholds and windows -> dict of score -> number"""

    def events(name):
        return events_of(part, classes, frame_scores, *tuned[name])

    def psds(name, criteria):
        window = tuned[name][1]
        return metrics.psds_from_scores(
            frame_scores, part.filenames, part.events, part.seconds, classes, FRAME_HOP, window, **criteria
        )

    return {
        "CBF1": metrics.clip_f1(part.tags, tags_of(clip_scores, tuned["CBF1"][0])).micro,
        "SBF1": metrics.segment_f1(part.events, events("SBF1"), classes).micro,
        "EBF1": metrics.event_f1(part.events, events("EBF1"), classes).macro,
        "PSDS1": psds("PSDS1", metrics.PSDS1),
        "PSDS2": psds("PSDS2", metrics.PSDS2),
    }


def evaluate_public(data, frame_scores, clip_scores, tuned):
    """Public evaluation as a whole, and split by availability of video (Boes 2022, Table 7) -> dict of part -> scores

    ours: a clip has video if it has any of the visual streams that were loaded (those of all its systems, where
    extras/tables fills a table); thresholds are the same for all parts.
    """
    public = data.partitions["public"]
    parts = {"public": evaluate(public, data.classes, frame_scores, clip_scores, tuned)}
    if public.present:
        with_video = np.any(list(public.present.values()), axis=0)
        for name, keep in (("with_video", with_video), ("without_video", ~with_video)):
            if keep.any():
                clips = subset(public, keep)
                parts[name] = evaluate(clips, data.classes, frame_scores[keep], clip_scores[keep], tuned)
    return parts


def subset(part, keep):
    """The clips of a partition where keep (N,) bool says so, for `evaluate`: without their features"""
    filenames = [name for name, kept in zip(part.filenames, keep) if kept]
    kept = set(filenames)
    events = [event for event in part.events if event[0] in kept]
    return replace(part, filenames=filenames, events=events, tags=part.tags[keep], durations=part.durations[keep])


def score_run(student, config, data, out, device, log):
    """Tune on validation, score on public evaluation, write model.pt, metrics.json and the predictions -> the report"""
    validation, public, classes = data.partitions["validation"], data.partitions["public"], data.classes
    # acoustic weights to score with: those to choose from (Boes 2022, Sec. 3.2.2), and 1, which ignores video (Table 7)
    weights = sorted({1.0, *INFER_WEIGHTS, config.infer_weight} - {"auto"}) if config.visual else [1.0]
    validated = predict(student, data, validation, weights, device)
    predicted = predict(student, data, public, weights, device)
    tuned, by_weight = {}, {}
    for weight in weights:
        tuned[weight] = tune_each_score(validation, classes, *validated[weight])
        by_weight[weight] = {"validation": evaluate(validation, classes, *validated[weight], tuned[weight])}
        by_weight[weight] |= evaluate_public(data, *predicted[weight], tuned[weight])
        ebf1 = by_weight[weight]["validation"]["EBF1"]
        log(f"tune   acoustic weight {weight:<5} | validation EBF1 {100 * ebf1:5.2f}")

    weight = config.infer_weight
    if weight == "auto":  # Boes 2022, Sec. 3.2.2: the best EBF1 on validation decides for all five scores
        ebf1 = {w: np.nan_to_num(by_weight[w]["validation"]["EBF1"]) for w in INFER_WEIGHTS}
        weight = max(INFER_WEIGHTS, key=lambda w: (ebf1[w], w))  # ours: of equals the largest
    report = description(config, data) | {
        "infer_weight": weight,
        "tuned": {
            name: {"threshold": None if threshold is None else threshold.tolist(), "window": window.tolist()}
            for name, (threshold, window) in tuned[weight].items()
        },
        "streams": list(data.visual_statistics),  # those that split public evaluation
        "by_weight": {str(w): without_nan(parts) for w, parts in by_weight.items()},
    }
    report["scores"] = report["by_weight"][str(weight)]
    write_predictions(out, public, classes, *predicted[weight], tuned[weight])
    write_text(out / "metrics.json", json.dumps(without_tensors(report), indent=1))
    save_tensors(out / "model.pt", report | {"weights": student.state_dict()})  # last: it marks the run as finished
    return without_tensors(report)


def without_nan(parts):
    """JSON knows no NaN: scores that are not defined become None"""
    return {part: {k: None if math.isnan(v) else float(v) for k, v in row.items()} for part, row in parts.items()}


def without_tensors(report):
    """A report as text can hold it"""
    tensors = ("weights", "mel_statistics", "visual_statistics")
    return {key: value for key, value in report.items() if key not in tensors}


def write_predictions(out, part, classes, frame_scores, clip_scores, tuned):
    """What each score was computed from, for other evaluators to read: each with its own thresholds and windows.

    predictions.tsv: for EBF1; predictions_SBF1.tsv; predictions_CBF1.tsv: clip labels; predictions_PSDS1.tsv and
    predictions_PSDS2.tsv: the events at all 50 operating points, with the threshold as last column
    """

    def events(threshold, window):
        return events_of(part, classes, frame_scores, threshold, window)

    features.write_events(out / "predictions.tsv", events(*tuned["EBF1"]))
    features.write_events(out / "predictions_SBF1.tsv", events(*tuned["SBF1"]))
    lines = ["filename\tevent_labels"]
    for name, active in zip(part.filenames, tags_of(clip_scores, tuned["CBF1"][0])):
        lines.append(f"{name}\t{','.join(label for label, on in zip(classes, active) if on)}")
    write_text(out / "predictions_CBF1.tsv", "\n".join(lines))
    for name in ("PSDS1", "PSDS2"):
        lines = ["filename\tonset\toffset\tevent_label\tthreshold"]
        for threshold in metrics.THRESHOLDS_50:
            for file, onset, offset, label in events(threshold, tuned[name][1]):
                lines.append(f"{file}\t{onset:.6f}\t{offset:.6f}\t{label}\t{threshold:.2f}")
        write_text(out / f"predictions_{name}.tsv", "\n".join(lines))


# --- the command -----------------------------------------------------------------------------------------------------


class Log:
    """Prints lines, and keeps them in a file once there is one; of a data-parallel run, only the first rank does"""

    def __init__(self):
        self.lines, self.path = [], None
        self.live = RANK == 0 and sys.stdout.isatty()  # a line that renews itself is welcome

    def __call__(self, line):
        if RANK > 0:
            return
        print(line, flush=True)
        self.lines.append(f"{line}\n")
        if self.path:
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(self.lines))
            self.lines = []


def load(path, remedy="delete it and start again"):
    """A checkpoint or model.pt; InputError for what is neither"""
    try:
        return load_tensors(path)
    except ValueError as error:
        raise InputError(f"{path}: not a checkpoint of this program ({error}); {remedy}") from None


def write_text(path, text):
    with features.replacing(path) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")


@contextmanager
def claimed(folder, wait=False):
    """True while this process alone works in the folder. A claim ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"claim{RANK or ''}", "a") as file:  # "a": it may be a link to a file, which must not be emptied
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except ImportError:  # Windows knows no such locks: one process at a time there
            pass
        yield True


def weight_or(word):
    """Type of a flag that takes an acoustic weight in (0, 1] or one word"""

    def parse(text):
        if text != word and not 1e-6 <= features.number(text) <= 1:  # a smaller one vanishes beside 1 in float32
            raise ValueError
        return text if text == word else float(text)

    parse.__name__ = f"acoustic weight (a number from 1e-6 to 1, or {word!r})"
    return parse


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", metavar="DIR", help="data set in the layout of DCASE 2020 task 4 (README); default: toy data")
    add("--visual", nargs="+", default=[], metavar="NAME", help="visual streams, folders in DIR/visual; default: none")
    add("--base", choices=("transformer", "conformer"), default="transformer", help="default: transformer")
    add("--train-weight", type=weight_or("random"), metavar="W",
        help="acoustic weight in training, or 'random' for U(0.25, 1) per batch; default: the paper's, else 0.5")
    add("--infer-weight", type=weight_or("auto"), metavar="W",
        help="acoustic weight at inference, or 'auto' for the best by validation EBF1; default: auto")
    add("--epochs", type=int, help=f"default: {PAPER['epochs']}, toy data {TOY['epochs']}")
    add("--batches", type=int, help=f"per epoch; default: {PAPER['batches']}, toy data {TOY['batches']}")
    add("--batch-size", type=int, nargs=3, metavar=("STRONG", "WEAK", "UNLABELLED"),
        help=f"default: {PAPER['batch_size']}, toy data {TOY['batch_size']}")
    add("--seed", type=int, default=0, help="of weights, batches and dropout; default: 0")
    add("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    add("--precision", choices=("fp32", "tf32", "bf16"), default="fp32",
        help="arithmetic in training: fp32; tf32 (NVIDIA GPUs, in scoring too); bf16 (GPUs, newer CPUs); default: fp32")
    add("--out", metavar="DIR", help="folder for the run; default: runs/DATA-BASE-STREAMS-SEED")
    add("--resume", action="store_true", help="continue the interrupted run in the folder, given the same flags")
    args = parser.parse_args(arguments)
    if args.data == "":
        parser.error("--data is empty: name a folder, or leave it out for toy data")
    for name, value in (PAPER if args.data else TOY).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.epochs, args.batches) < 1 or min(args.batch_size) < 0 or sum(args.batch_size) < 1:
        parser.error("--epochs and --batches must be at least 1, and --batch-size must hold at least one clip")
    if any(size % RANKS for size in args.batch_size):
        parser.error(f"--batch-size {' '.join(map(str, args.batch_size))}: no equal shares for {RANKS} ranks")
    if len(set(args.visual)) < len(args.visual) or any(Path(v).name != v or v in ("", "..") for v in args.visual):
        parser.error("--visual takes different folder names, without slashes")
    if not args.visual and (args.train_weight or args.infer_weight):
        parser.error("--train-weight and --infer-weight need a stream to share with: add --visual NAME")
    if not 0 <= args.seed < 2**63:
        parser.error("--seed must be 0 or more, and below 2 ** 63")
    return args  # fmt: skip


def device_of_rank(name, precision):
    """cpu, cuda, mps or auto; of a data-parallel run, each rank has a GPU of its own, or all have the CPU"""
    device = features.choose_device(name)
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"--precision tf32 is arithmetic of NVIDIA GPUs, this run is on {device}; use fp32 or bf16")
    if device.type == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
    return device if RANKS == 1 else torch.device("cpu")


def join_ranks(device):
    """Become one of the processes that torchrun started"""
    # torch itself loads this module later; loaded after init_process_group, its functions' defaults hold the group,
    # whose threads then outlive destroy_process_group and may abort the process at its end.
    import torch.distributed.nn  # noqa: F401

    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # the first rank may score or fill the cache for long


def load_data(root, visual, out, log):
    """The DataSet in the folder `root`, or toy data where it is None. The first rank fills the cache, others find it"""
    if RANK > 0:
        dist.barrier()
    log(f"data   {root or 'data/toy'}")
    if root is None:
        from extras.toy import make_toy

        root = "data/toy"
        make_toy(root)
        log("       TOY DATA: these scores are not comparable with the paper.")
        log("       Use --data DIR for DCASE 2020 (README, 'Real data').")
    data = features.load_dataset(root, visual, cache_folder(Path(root), out), log)
    if RANK == 0 and RANKS > 1:
        dist.barrier()
    return data


def cache_folder(root, out):
    """Inside the data set, or beside the run where the data set is read-only, be it only by its permission bits"""
    writable = root.is_dir() and os.access(root, os.W_OK) and root.stat().st_mode & 0o222
    real = os.path.realpath(root)  # two data sets may have one name
    return root / "cache" if writable else out.parent / f"cache-{Path(real).name}-{features.fingerprint((), real)[:8]}"


def complete_run(config, data, out, device, log):
    """Train and score, from where an earlier attempt stopped -> the report; None on all ranks but the first.

    In `out`: nothing -> start; checkpoint.pt -> go on after its epoch; model.pt -> the run is finished, but is scored
    again where other streams are at hand now than those that split its public clips (with_video, without_video).
    """
    if report := finished_report(out, config, data):
        log("       this run is finished")
        return report
    log.path = out / "log.txt"
    if (out / "model.pt").exists():
        state, data = read_state(out / "model.pt", config, data)
        student, _, _ = start(config, data, device)
        if not same_form(state.get("weights"), student.state_dict()):
            raise InputError(f"{out}/model.pt: of another architecture, or damaged; delete it")
        student.load_state_dict(state["weights"])
    elif (out / "checkpoint.pt").exists():
        checkpoint, data = read_state(out / "checkpoint.pt", config, data)
        student = train(config, data, out, device, log, checkpoint)
    else:
        student = train(config, data, out, device, log)
    if RANK > 0:
        return None
    report = score_run(student, config, data, out, device, log)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    return report


def finished_report(out, config, data):
    """The report of a finished run; None where there is none, or one whose public clips were split by other streams"""
    if not (out / "model.pt").exists():
        return None
    report, _ = read_state(out / "model.pt", config, data)
    try:
        row(config, report)  # can all scores be shown?
    except FOREIGN:
        raise InputError(f"{out}/model.pt: its scores are damaged; delete it and start again") from None
    return without_tensors(report) if report.get("streams") == list(data.visual_statistics) else None


def read_state(path, config, data):
    """A run's file -> what it holds, and the DataSet with its statistics replaced by those of the run.

    Raises InputError unless it is of a run with this configuration on these clips.
    """
    state, now = load(path), description(config, data)
    try:
        stored, wanted = state["config"], asdict(config)
        del wanted["data"]  # the folder may have moved, or have several names
        differs = [f"{key} {stored.get(key)}" for key, x in wanted.items() if stored.get(key) != x]
        if (state["classes"], state["data"]) != (now["classes"], now["data"]):
            differs.append("other data")
        kept = "mel_statistics", "visual_statistics"
        if not differs and not same_form({name: state[name] for name in kept}, {name: now[name] for name in kept}):
            raise ValueError("statistics")
    except FOREIGN:
        raise InputError(f"{path}: was not written by this program, or by an older version; delete it") from None
    if differs:
        raise InputError(f"{path}: is of a run with {', '.join(differs)}; give the same flags, or another --out")
    mel = [values.numpy() for values in state["mel_statistics"]]
    visual = {stream: [values.numpy() for values in pair] for stream, pair in state["visual_statistics"].items()}
    return state, replace(data, mel_statistics=mel, visual_statistics=data.visual_statistics | visual)


def acoustic_weight(args):
    """-> acoustic weight in training, why this one"""
    if not args.visual:
        return 1.0, ""
    if args.train_weight is not None:
        return args.train_weight, "as asked"
    if best := TRAIN_WEIGHTS.get((args.base, *sorted(args.visual))):
        return best, "the best of the paper's for these streams (Tables 5, 8)"
    return 0.5, "the paper has none for these streams"  # ours: 0.5


def run(args):
    """What the command does: load, train, score, print the row of a table"""
    device, log = device_of_rank(args.device, args.precision), Log()
    if RANKS > 1:
        join_ranks(device)
    streams, (train_weight, why) = tuple(args.visual), acoustic_weight(args)
    config = Config(
        args.data or "data/toy", streams, args.base, train_weight, args.infer_weight or ("auto" if streams else 1.0),
        args.epochs, args.batches, tuple(args.batch_size), args.seed, args.precision,
    )  # fmt: skip
    name = (Path(os.path.realpath(config.data)).name, config.base, *(streams or ("audio",)), str(config.seed))
    out = Path(args.out or "runs/" + "-".join(name))
    if not args.resume and ((out / "checkpoint.pt").exists() or (out / "model.pt").exists()):
        raise InputError(f"{out}: holds a run already; continue it with --resume, name another --out, or delete it")
    n = torch.get_num_threads()
    threads = f"{n} thread{'s' * (n > 1)}" + (f", {RANKS} ranks" if RANKS > 1 else "")
    log(f"torch {torch.__version__} | {device.type}, {threads} | seed {config.seed} | {out}")
    data = load_data(args.data, streams, out, log)
    if streams:
        log(f"       acoustic weight in training: {train_weight}, {why}")
    with claimed(out) as mine:
        if not mine:
            raise InputError(f"{out}: another process is at work there; name another --out")
        report = complete_run(config, data, out, device, log)
    if report:
        log(row(config, report))
        if not args.data:
            log("TOY DATA: not comparable with the paper")


def row(config, report):
    """One run as a row in the shape of Boes 2022, Table 5, under its heading"""
    n_visual = len(config.visual)
    heading = f"{'':32} {'weights':20}" + "".join(f"{name:>8}" for name in SCORES)
    text = f"{' + '.join((config.base, *config.visual)):32} {shares(report['infer_weight'], n_visual):20}"
    text += "".join(f"{figure(name, report['scores']['public'][name]):>8}" for name in SCORES)
    return f"{heading}\n{text}"


def figure(name, score):
    """A score as the paper prints it: PSDS as a fraction, F1 as a percentage; - where it is not defined"""
    if score is None or math.isnan(score):
        return "-"
    return f"{score:.4f}" if name.startswith("PSDS") else f"{100 * score:.2f}"


def shares(weight, n_visual):
    """Weights of all encoders: 0.75 and two visual streams -> '0.75 0.125 0.125'"""
    others = [(1 - weight) / max(n_visual, 1)] * n_visual if weight != "random" else []
    return " ".join(x if isinstance(x, str) else f"{x:.4g}" for x in (weight, *others))


def main(arguments=None):
    args = parse_arguments(arguments)
    with features.one_line_errors("the same command with --resume continues after the last finished epoch"):
        try:
            run(args)
        except RuntimeError as error:
            if RANKS == 1:
                raise
            raise InputError(f"rank {RANK}: {first_line(error)}; start all ranks again with --resume") from None
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


if __name__ == "__main__":
    main()
