"""Train, tune and score a multi-encoder on clips of which only some can be seen (Boes & Van hamme 2022, Sec. 3).

    python train.py --visual openl3                      toy data, made on the spot; minutes on two cores
    python train.py --visual openl3 --data DIR           DCASE 2020 task 4 in DIR, the paper's schedule

From top to bottom as time runs: what a run is asked for, the batch of an iteration, one training step, the training
loop, scores, what validation chooses; at the end the command, which calls all this. One run on one device: what
survives a kill is in extras/runs.py, several processes are in extras/parallel.py. README, "To try something else",
says what to change for what.

Shapes: B clips, N clips of a partition, D width of a visual vector, C classes. Iterations t count from 0.
"""

import argparse
import copy
import math
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extras import plumbing, runs  # before torch: plumbing says how idle threads wait

import torch  # isort: skip
from torch.nn import functional as F

import features
import metrics
from avsed import MultiEncoder
from features import FRAME_HOP

LEARNING_RATE = 1e-3  # Boes 2022, Sec. 3.1.5
LR_STEP = 10_000  # iterations (Boes 2022, Sec. 3.1.5)
EMA_DECAY = 0.999  # per iteration (Boes 2022, Sec. 3.1.5)
CONSISTENCY = 2.0  # weight of both consistency terms (Boes 2022, Sec. 3.1.5); ours: from the start, no ramp-up
MIXUP_RATE, MIXUP_SHAPE = 0.33, 0.2  # Boes 2022, Sec. 3.1.5
RANDOM_WEIGHT = (0.25, 1.0)  # range of random acoustic weights (Boes 2022, Sec. 3.2.2)
SMALLEST_WEIGHT = 1e-6  # of the acoustic encoder; in float32 a much smaller number is nothing beside the others
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


@dataclass(frozen=True)
class Config:
    """What a run is asked for. On the same data, CPU and number of threads it ends with the same weights."""

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
# Every random choice about the batch of iteration t follows from the configuration, the data and t. Nothing is carried
# over from the batch before, and dropout is seeded anew with each epoch. So a checkpoint needs no state of a random
# generator: with the number of finished epochs alone, a resumed run continues with the same batches. The second number
# of each seed says what it is for: 0 to 2 the order of a label group, 3 the batch, 4 dropout.
# Runs with the same seed but other streams see the same clips in the same order. Their mixup partners may differ, since
# partners must have the same streams. A random acoustic weight is the first number drawn for a batch. So with "random"
# the clips are still the same, but other batches are mixed, with other partners and ratios.


@dataclass
class Clips:
    """The training clips as tensors; lists have an entry for each label group: strong, weak, unlabelled"""

    log_mel: list  # (N, 512, 64)
    visual: dict  # stream -> list of (N, 64, D)
    present: dict  # stream -> list of (N,) bool, numpy
    strong_targets: torch.Tensor  # (N strong, 64, C) bool
    weak_targets: torch.Tensor  # (N weak, C) bool
    statistics: dict  # "log-mel" or stream -> (mean, std)
    device: torch.device  # where batches are put
    share: tuple = (0, 1)  # which share of each batch, of how many: (0, 1) is the whole batch (extras/parallel.py)


@dataclass
class Batch:
    """B clips, standardised and mixed: strong ones first, then weak, then unlabelled"""

    log_mel: torch.Tensor  # (B, 512, 64)
    visual: dict  # stream -> (B, 64, D)
    present: dict  # stream -> (B,) bool, on the CPU
    strong_targets: torch.Tensor  # (n_strong, 64, C) in [0, 1]
    weak_targets: torch.Tensor  # (n_weak, C) in [0, 1]
    audio_weight: float


def load_clips(data, visual, device):
    """Training partitions of a DataSet -> Clips. speed: on a GPU if they fill less than half of what is free there"""
    parts = [data.partitions[name] for name in features.TRAINING]
    strong, weak, _ = parts
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
        strong_targets=torch.from_numpy(strong.frame_targets).to(place),
        weak_targets=torch.from_numpy(weak.tags).to(place),
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
    # ours: all of a batch is blended or none, each label group by one ratio; blended clips replace the picked ones
    if rng.random() < MIXUP_RATE:
        ratios = rng.beta(MIXUP_SHAPE, MIXUP_SHAPE, size=3).tolist()

    # Everything random is drawn for the whole batch; then this process takes its share, all of it if it is alone
    share, n_shares = clips.share
    groups = []  # per label group: indices (n,) of the clips, of those they are mixed with, and the ratio
    for g, size in enumerate(config.batch_size):
        picked = endless(len(clips.log_mel[g]), size, t, (config.seed, g))
        present_in_group = [by_group[g][picked] for by_group in clips.present.values()]
        partners = picked[mixup_partners(rng, size, present_in_group)]
        groups.append((picked[share::n_shares], partners[share::n_shares], ratios[g]))

    def inputs(name, arrays):
        mixed = []
        for array, (picked, partners, ratio) in zip(arrays, groups):
            mixed.append(mix(array, picked, partners, ratio, clips.device))
        return standardise(torch.cat(mixed), clips.statistics[name])

    present = {}
    for stream, by_group in clips.present.items():
        parts = [by_group[g][picked] for g, (picked, _, _) in enumerate(groups)]
        present[stream] = torch.from_numpy(np.concatenate(parts))
    return Batch(
        log_mel=inputs("log-mel", clips.log_mel),
        visual={stream: inputs(stream, arrays) for stream, arrays in clips.visual.items()},
        present=present,
        strong_targets=mix(clips.strong_targets, *groups[0], clips.device),
        weak_targets=mix(clips.weak_targets, *groups[1], clips.device),
        audio_weight=audio_weight,
    )


def endless(n, size, t, key):
    """Indices (size,) of batch number t of an endless shuffled stream of n clips; incomplete batches are dropped.

    With 7 clips and batches of 3, batches 0 and 1 are the first six of one order, 2 and 3 those of another.
    """
    per_pass = max(1, n // max(size, 1))
    order = np.random.default_rng([*key, t // per_pass]).permutation(n)
    order = np.resize(order, max(n, size))  # ours: a group smaller than its part of the batch is repeated
    begin = (t % per_pass) * size
    return order[begin : begin + size]


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

    def take(rows):
        return array[torch.from_numpy(rows).to(array.device)].to(device).float()

    return ratio * take(picked) + (1 - ratio) * take(partners)


def standardise(x, statistics):
    """Per mel bin or visual dimension, with mean and std of the training clips (Boes 2022, Sec. 3.1.2)"""
    mean, std = statistics
    return (x - mean) / std


# --- one training step -----------------------------------------------------------------------------------------------
# Which clips count in which loss (Boes 2022, Sec. 3.1.5):
#                        strong  weak  unlabelled
#   clip cross entropy     -      x        -        student beside the labels of the clip
#   frame cross entropy    x      -        -        student beside the labels of each output frame
#   clip consistency       x      x        x        student beside teacher
#   frame consistency      x      x        x        student beside teacher
# Why a teacher: unlabelled clips have no labels to compare with, and the average of many past students errs less than
# the latest student, so its answers can stand in for labels.


def learning_rate(t, iterations):
    """0.001, a tenth of it every 10,000 iterations (Boes 2022, Sec. 3.1.5). ours: in steps, not as a smooth decay.

    ours: a run too short for that takes one step, after 80 % of its iterations. Otherwise it would end at the full
    rate, and its scores would depend on the last few batches.
    """
    step = LR_STEP if iterations > LR_STEP else 0.8 * iterations
    return LEARNING_RATE * 0.1 ** int(t // step)


@torch.no_grad()
def update_teacher(teacher, student, n_steps):
    """Exponential moving average of the student's parameters (Boes 2022, Sec. 3.1.5). n_steps: done so far, from 1 on.

    ours: after n steps the teacher takes 1 / (n + 1) of the student, from step 999 on a thousandth, as in the DCASE
    baselines. Only parameters are averaged. The teacher is in training mode like the student: its batch norms use the
    statistics of the batch. What they collect is never used, since only the student is scored.
    """
    decay = min(1 - 1 / (n_steps + 1), EMA_DECAY)
    # average = decay * average + (1 - decay) * latest. speed: one call for all parameters, not one for each
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)


def binary_cross_entropy(logits, targets):
    """Mean over all elements, 0 where a batch has no such clips"""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / max(1, targets.numel())


def training_step(student, teacher, optimizer, batch, config, t):
    """Iteration t of mean-teacher training (Boes 2022, Sec. 3.1.5).

    -> (4,) losses: clip cross entropy, frame cross entropy, clip consistency, frame consistency
    """
    inputs = batch.log_mel, batch.visual, batch.present, batch.audio_weight  # student and teacher share the weight

    with torch.autocast(batch.log_mel.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        with torch.no_grad():  # ours: the same mixed batch, other dropout
            teacher_frame, teacher_clip = (logits.float() for logits in teacher(*inputs))
        student_frame, student_clip = (logits.float() for logits in student(*inputs))

    n_strong, n_weak = len(batch.strong_targets), len(batch.weak_targets)
    losses = torch.stack([
        binary_cross_entropy(student_clip[n_strong : n_strong + n_weak], batch.weak_targets),
        binary_cross_entropy(student_frame[:n_strong], batch.strong_targets),
        F.mse_loss(student_clip.sigmoid(), teacher_clip.sigmoid()),  # mean over all clips, whatever labels they have
        F.mse_loss(student_frame.sigmoid(), teacher_frame.sigmoid()),
    ])  # fmt: skip
    loss = losses[:2].sum() + CONSISTENCY * losses[2:].sum()

    for group in optimizer.param_groups:
        group["lr"] = learning_rate(t, config.iterations)
    # ours: an encoder whose stream no clip of the batch has gets gradient 0, so that all parameters take all steps. Its
    # momentum still moves it a little.
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()
    update_teacher(teacher, student, t + 1)
    return losses.detach()


# --- the training loop -----------------------------------------------------------------------------------------------


def new_networks(config, data, device, network=MultiEncoder):
    """-> student, teacher, optimizer as they are before the first iteration. network: MultiEncoder or a subclass"""
    torch.manual_seed(config.seed)
    dims = {stream: data.visual_statistics[stream][0].size for stream in config.visual}
    student = network(len(data.classes), dims, config.base)
    if device.type == "cpu":  # speed: these lines may be deleted. Then dropout is PyTorch's own, and a step is slower
        from extras import cpu

        cpu.use_fast_dropout(student)
        cpu.keep_freed_memory()
    student = student.to(device, memory_format=torch.channels_last).train()  # speed: the CNN likes channels last
    teacher = copy.deepcopy(student).requires_grad_(False)  # ours: a copy, not random weights of its own
    for p in student.parameters():
        p.grad = torch.zeros_like(p)  # from the first step on, see training_step
    optimizer = torch.optim.RAdam(student.parameters(), lr=LEARNING_RATE)  # ours: default betas, no weight decay
    return student, teacher, optimizer


def train(config, data, clips, student, teacher, optimizer, log=print, first=0, keep=None):
    """Run the schedule from epoch `first` on (0, 1 ..). The networks are trained in place.

    keep: called after each epoch as keep(number of epochs done, student, teacher, optimizer, losses, validation scores)
    """
    started, n_iterations = time.monotonic(), (config.epochs - first) * config.batches
    for epoch in range(first, config.epochs):
        dropout_seed = np.random.default_rng([config.seed, 4, epoch, clips.share[0]]).integers(2**63)
        torch.manual_seed(dropout_seed)
        student.train()
        step_losses = []
        for t in range(epoch * config.batches, (epoch + 1) * config.batches):
            batch = training_batch(clips, config, t)
            step_losses.append(training_step(student, teacher, optimizer, batch, config, t))
            done = t + 1 - first * config.batches
            plumbing.show_progress(f"epoch {epoch + 1}/{config.epochs}", done, n_iterations, started)
        step_losses = torch.stack(step_losses).cpu().numpy()  # speed: a GPU is asked for its numbers once an epoch
        runs.check_losses(step_losses, epoch * config.batches)
        losses = step_losses.mean(axis=0, dtype=np.float64).tolist()
        weak, strong, clip_consistency, frame_consistency = losses
        pace = (time.monotonic() - started) / done  # seconds per iteration
        log(
            f"epoch {epoch + 1:3d}/{config.epochs} | strong {strong:.4f} | weak {weak:.4f} | "
            f"consistency {clip_consistency + frame_consistency:.4f} | lr {learning_rate(t, config.iterations):.1e} | "
            f"{1000 * pace:.0f} ms | {plumbing.clock(pace * (n_iterations - done))} left"
        )
        scores, audio_weight = validate(student, data, config, clips.device)
        shown = " | ".join(f"{name} {as_printed(name, score)}" for name, score in scores.items())
        log(f"valid {epoch + 1:3d}/{config.epochs} | {shown} | acoustic weight {audio_weight}")
        if keep:
            keep(epoch + 1, student, teacher, optimizer, losses, scores)


def validate(student, data, config, device):
    """How the student does on validation so far, only to watch: nothing is tuned, F1 has threshold 0.5, no filter

    -> scores, acoustic weight
    """
    part, n_classes = data.partitions["validation"], len(data.classes)
    # ours: the weight that the paper chose for most of its systems (Tables 5, 6, 8)
    audio_weight = INFER_WEIGHTS[-1] if config.infer_weight == "auto" else config.infer_weight
    frame_scores, clip_scores = predict(student, data, part, [audio_weight], device)[audio_weight]
    untuned = dict.fromkeys(SCORES, (np.full(n_classes, 0.5), np.ones(n_classes, int)))
    return evaluate(part, data.classes, frame_scores, clip_scores, untuned), audio_weight


# --- scores ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(student, data, part, audio_weights, device, size=32):
    """Probabilities of a partition -> dict of audio weight -> (frame scores (N, 64, C), clip scores (N, C)), float32"""
    student.eval()
    statistics = statistics_on(device, data)

    def inputs(name, array):
        return standardise(torch.from_numpy(array).to(device).float(), statistics[name])

    outputs = {audio_weight: ([], []) for audio_weight in audio_weights}
    for begin in range(0, len(part), size):
        rows = slice(begin, begin + size)
        visual = {stream: inputs(stream, part.visual[stream][rows]) for stream in student.streams}
        present = {stream: torch.from_numpy(part.present[stream][rows]) for stream in student.streams}
        log_mel = inputs("log-mel", part.log_mel[rows])
        for audio_weight in audio_weights:
            frame_logits, clip_logits = student(log_mel, visual, present, audio_weight)
            frame_scores, clip_scores = outputs[audio_weight]
            frame_scores.append(frame_logits.sigmoid().cpu().numpy())
            clip_scores.append(clip_logits.sigmoid().cpu().numpy())
    predicted = {weight: (np.concatenate(frame), np.concatenate(clip)) for weight, (frame, clip) in outputs.items()}
    runs.check_scores(part, predicted)
    return predicted


def tune_each_score(part, classes, frame_scores, clip_scores):
    """Thresholds and windows by class, anew for each score (Boes 2022, Sec. 3.1.3) -> dict of score -> ((C,), (C,))

    PSDS always takes the 50 thresholds of metrics.THRESHOLDS_50, so only its windows are tuned: the thresholds are
    None. CBF1 has no windows: they are 1.
    Why for each class: rare and short ones get lower probabilities. Why for each score: each forgives other mistakes.
    """
    tuned = {}
    for name, metric in SCORES.items():
        scores = clip_scores if name == "CBF1" else frame_scores
        tuned[name] = metrics.tune(scores, part.filenames, part.events, part.seconds, classes, FRAME_HOP, metric)
    return tuned


def events_of(part, classes, frame_scores, threshold, window):
    """Frame scores of a partition (N, 64, C) -> events, with thresholds and windows by class"""
    return metrics.scores_to_events(frame_scores, part.filenames, classes, threshold, window, FRAME_HOP, part.seconds)


def tags_of(clip_scores, threshold):
    """Clip scores (N, C) -> tags (N, C) bool, with thresholds by class; compared in float64, as events are"""
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


def scored_partition(data):
    """Public evaluation. ours: validation where that is absent, although thresholds are chosen on it; `notes_on`"""
    return data.partitions["public"] if len(data.partitions["public"]) else data.partitions["validation"]


def evaluate_public(data, frame_scores, clip_scores, tuned):
    """Public evaluation as a whole, and split by availability of video (Boes 2022, Table 7) -> dict of part -> scores

    ours: a clip has video if it has any of the visual streams that were loaded; thresholds are the same for all parts.
    """
    public = scored_partition(data)
    scores = {public.name: evaluate(public, data.classes, frame_scores, clip_scores, tuned)}
    if public.present:
        with_video = np.any(list(public.present.values()), axis=0)
        for name, rows in (("with_video", with_video), ("without_video", ~with_video)):
            if rows.any():
                part = features.subset(public, rows)
                scores[name] = evaluate(part, data.classes, frame_scores[rows], clip_scores[rows], tuned)
    return scores


def evaluate_by_class(part, classes, frame_scores, tuned):
    """-> dict of class -> counts, precision, recall, F1 of segments and events, PSDS areas, thresholds, windows"""
    results = {label: {} for label in classes}
    for name, f1_of in (("SBF1", metrics.segment_f1), ("EBF1", metrics.event_f1)):
        f1 = f1_of(part.events, events_of(part, classes, frame_scores, *tuned[name]), classes)
        for c, label in enumerate(classes):
            counts = {"n_tp": f1.n_tp[c], "n_fp": f1.n_fp[c], "n_fn": f1.n_fn[c]}
            rates = {"precision": f1.precision[label], "recall": f1.recall[label], "F1": f1.per_class[label]}
            threshold, window = tuned[name]
            results[label][name] = {**rates, **counts, "threshold": threshold[c], "window": window[c]}
    for name, criteria in (("PSDS1", metrics.PSDS1), ("PSDS2", metrics.PSDS2)):
        window = tuned[name][1]
        efpr, tpr, _ = metrics.psd_roc_from_scores(
            frame_scores, part.filenames, part.events, part.seconds, classes, FRAME_HOP, window, **criteria
        )
        areas = metrics.psd_area(efpr, tpr, criteria["max_efpr"])
        for c, label in enumerate(classes):
            results[label][name] = {"area": areas[c], "window": window[c]}
    return results


# --- validation chooses, public evaluation is scored -----------------------------------------------------------------


@dataclass
class Choice:
    """What validation decides. The dicts have an entry for each acoustic weight that was tried"""

    audio_weight: float  # for inference
    tuned: dict  # weight -> score -> thresholds, windows
    scores: dict  # weight -> score -> number, on validation
    by_class: dict  # see evaluate_by_class; of the chosen weight


def choose(student, config, data, device, log=print):
    """Thresholds, windows and the acoustic weight for inference, by validation (Boes 2022, Sec. 3.1.3, 3.2.2)"""
    part, classes, tuned, scores = data.partitions["validation"], data.classes, {}, {}
    # Weight 1 ignores video (Boes 2022, Table 7); without a visual stream there is no other. ours: it is tuned for anew
    tried = {1.0}
    if config.visual:
        tried |= set(INFER_WEIGHTS)
        if config.infer_weight != "auto":
            tried.add(config.infer_weight)
    predicted = predict(student, data, part, sorted(tried), device)
    for audio_weight in sorted(tried):
        tuned[audio_weight] = tune_each_score(part, classes, *predicted[audio_weight])
        scores[audio_weight] = evaluate(part, classes, *predicted[audio_weight], tuned[audio_weight])
        log(f"tune   acoustic weight {audio_weight:<5} | validation EBF1 {100 * scores[audio_weight]['EBF1']:5.2f}")

    chosen = config.infer_weight
    if chosen == "auto":  # Boes 2022, Sec. 3.2.2: the best EBF1 on validation decides for all five scores
        ebf1 = {audio_weight: np.nan_to_num(scores[audio_weight]["EBF1"]) for audio_weight in INFER_WEIGHTS}
        best = [audio_weight for audio_weight in INFER_WEIGHTS if ebf1[audio_weight] == max(ebf1.values())]
        chosen = max(best)  # ours: of several, the largest
    by_class = evaluate_by_class(part, classes, predicted[chosen][0], tuned[chosen])
    return Choice(chosen, tuned, scores, by_class)


def score(student, config, data, device, choice, out):
    """Score public evaluation with what validation chose, write predictions and scores into `out` -> the report"""
    public, classes = scored_partition(data), data.classes
    predicted = predict(student, data, public, list(choice.tuned), device)
    by_weight = {}
    for audio_weight, tuned in choice.tuned.items():
        public_scores = evaluate_public(data, *predicted[audio_weight], tuned)
        by_weight[str(audio_weight)] = {"validation": choice.scores[audio_weight]} | public_scores

    tuned, (frame_scores, clip_scores) = choice.tuned[choice.audio_weight], predicted[choice.audio_weight]
    write_predictions(out, public, classes, frame_scores, clip_scores, tuned)
    report = {
        "toy_data": (Path(config.data) / "toy.json").exists(),  # predict.py then says that it means nothing elsewhere
        "notes": notes_on(public, classes),
        "infer_weight": choice.audio_weight,
        "tuned": {name: {"threshold": threshold, "window": window} for name, (threshold, window) in tuned.items()},
        "by_weight": by_weight,
        "scores": by_weight[str(choice.audio_weight)],
        "by_class": {
            "validation": choice.by_class,
            public.name: evaluate_by_class(public, classes, frame_scores, tuned),
        },
    }
    return runs.finish(out, config, data, report, student)


def notes_on(part, classes):
    """What to know of the scores of a partition -> sentences"""
    held, notes = {label for *_, label in part.events}, []
    if part.name == "validation":
        notes.append("public evaluation is absent: these are scores of validation, where thresholds were chosen too")
    if not held:
        notes.append(f"{part.name} holds no event: no score is defined")
    elif absent := plumbing.join_labels((label for label in classes if label not in held), ", "):
        notes.append(f"{part.name} holds no {absent}: no part of EBF1 and PSDS, false ones count in CBF1 and SBF1")
    if len(classes) == 1:
        notes.append("of one class PSDS has neither cross-triggers nor a spread between classes")
    return notes


def write_predictions(out, part, classes, frame_scores, clip_scores, tuned):
    """What each score was computed from, for other evaluators to read: each with its own thresholds and windows"""
    features.write_events(out / "predictions.tsv", events_of(part, classes, frame_scores, *tuned["EBF1"]))
    features.write_events(out / "predictions_SBF1.tsv", events_of(part, classes, frame_scores, *tuned["SBF1"]))
    runs.write_tags(out / "predictions_CBF1.tsv", part.filenames, classes, tags_of(clip_scores, tuned["CBF1"][0]))
    for name in ("PSDS1", "PSDS2"):
        points = []
        for threshold in metrics.THRESHOLDS_50:
            points.append((threshold, events_of(part, classes, frame_scores, threshold, tuned[name][1])))
        runs.write_operating_points(out / f"predictions_{name}.tsv", points)
    runs.write_scores(out / "scores", part.filenames, classes, frame_scores, FRAME_HOP, part.durations)
    runs.write_durations(out / "durations.tsv", part.seconds)


# --- the command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", metavar="DIR", help="data set in the layout of DCASE 2020 task 4 (README); default: toy data")
    add("--visual", type=plumbing.folder_name, nargs="+", default=[], metavar="NAME",
        help="visual streams, folders in DIR/visual; default: none")
    add("--base", choices=("transformer", "conformer"), default="transformer", help="default: transformer")
    add("--train-weight", type=plumbing.number_or("random", SMALLEST_WEIGHT, 1), metavar="W",
        help="acoustic weight in training, or 'random' for U(0.25, 1) per batch; default: the paper's, else 0.5")
    add("--infer-weight", type=plumbing.number_or("auto", SMALLEST_WEIGHT, 1), metavar="W",
        help="acoustic weight at inference, or 'auto' for the best by validation EBF1; default: auto")
    add("--epochs", type=plumbing.positive, help=f"default: {PAPER['epochs']}, toy data {TOY['epochs']}")
    add("--batches", type=plumbing.positive, help=f"per epoch; default: {PAPER['batches']}, toy data {TOY['batches']}")
    add("--batch-size", type=plumbing.natural, nargs=3, metavar=("STRONG", "WEAK", "UNLABELLED"),
        help=f"default: {PAPER['batch_size']}, toy data {TOY['batch_size']}")
    add("--seed", type=plumbing.seed, default=0, help="of weights, batches and dropout; default: 0")
    add("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    add("--precision", choices=("fp32", "tf32", "bf16"), default="fp32",
        help="arithmetic in training: fp32; tf32 (NVIDIA GPUs, in scoring too); bf16 (GPUs, newer CPUs); default: fp32")
    add("--out", metavar="DIR", help="folder for the run; default: runs/DATA-BASE-STREAMS-SEED")
    add("--resume", action="store_true", help="continue the interrupted run in the folder, given the same flags")
    args = parser.parse_args(arguments)
    plumbing.set_defaults(args, PAPER if args.data else TOY)
    if args.data == "":
        parser.error("--data is empty: name a folder, or leave it out for toy data")
    if sum(args.batch_size) < 1:
        parser.error("--batch-size must hold at least one clip")
    if len(set(args.visual)) < len(args.visual):
        parser.error("--visual takes different names")
    if not args.visual and (args.train_weight or args.infer_weight):
        parser.error("--train-weight and --infer-weight need a stream to share with: add --visual NAME")
    return args  # fmt: skip


def training_weight(args):
    """-> acoustic weight in training, why this one"""
    if not args.visual:
        return 1.0, ""
    if args.train_weight is not None:
        return args.train_weight, "as asked"
    if best := TRAIN_WEIGHTS.get((args.base, *sorted(args.visual))):
        return best, "the best of the paper's for these streams (Tables 5, 8)"
    return 0.5, "the paper has none for these streams"  # ours: 0.5


def config_of(args):
    """Flags -> Config, folder of the run, why the acoustic weight in training is what it is"""
    streams, (train_weight, why) = tuple(args.visual), training_weight(args)
    config = Config(
        args.data or "data/toy", streams, args.base, train_weight, args.infer_weight or ("auto" if streams else 1.0),
        args.epochs, args.batches, tuple(args.batch_size), args.seed, args.precision,
    )  # fmt: skip
    name = (Path(os.path.realpath(config.data)).name, config.base, *(streams or ("audio",)), str(config.seed))
    return config, Path(args.out or "runs/" + "-".join(name)), why


def load_data(root, visual, out, log, batch_size=(1, 1, 1)):
    """The DataSet in the folder `root`, or toy data where it is None. Lists with no share of the batch may be absent"""
    log(f"data   {root or 'data/toy'}")
    if root is None:
        from extras.toy import make_toy

        root = "data/toy"
        make_toy(root)
        log("       TOY DATA: these scores are not comparable with the paper.")
        log("       Use --data DIR for DCASE 2020 (README, 'Real data').")
    needed = [name for name, size in zip(features.TRAINING, batch_size) if size] + ["validation"]
    return features.load_dataset(root, visual, plumbing.cache_folder(Path(root), out.parent), log, needed)


def complete_run(config, data, out, device, log):
    """Train, choose, score, from where an earlier attempt in the folder `out` stopped -> the report"""
    if report := runs.finished_report(out, config, data, SCORES):
        log("       this run is finished")
        return report
    log.path = out / "log.txt"
    student, teacher, optimizer = new_networks(config, data, device)
    data, first = runs.resume(out, config, data, student, teacher, optimizer)
    n_parameters = sum(p.numel() for p in student.parameters()) / 1e6
    log(f"model  {config.base}, {' + '.join(('log-mel', *config.visual))}, {n_parameters:.2f} M parameters")
    if first > 0:
        log(f"       continuing after epoch {first} of {config.epochs}")
    clips = load_clips(data, config.visual, device)
    train(config, data, clips, student, teacher, optimizer, log, first, runs.keeper(out, config, data))
    choice = choose(student, config, data, device, log)
    return score(student, config, data, device, choice, out)


def run(args):
    """What the command does: load, train, choose, score, print the row of a table"""
    device, log = plumbing.choose_device(args.device, args.precision), runs.Log()
    config, out, why = config_of(args)
    runs.never_overwrite(out, args.resume)
    log(f"torch {torch.__version__} | {device.type}, {plumbing.threads()} | seed {config.seed} | {out}")
    data = load_data(args.data, config.visual, out, log, config.batch_size)
    if config.visual:
        log(f"       acoustic weight in training: {config.train_weight}, {why}")
    with runs.alone_in(out):
        report = complete_run(config, data, out, device, log)
    log(row(config, report))
    if not args.data:
        log("TOY DATA: not comparable with the paper")
    log(f"next   python -m extras.report {shlex.quote(str(out))}")
    log(f"       python -m extras.predict {shlex.quote(str(out / 'model.pt'))} FILE.wav")


def row(config, report):
    """One run as a row in the shape of Boes 2022, Table 5, under its heading"""
    heading = f"{'':32} {'weights':20}" + "".join(f"{name:>8}" for name in SCORES)
    weights = encoder_weights(report["infer_weight"], len(config.visual))
    text = f"{' + '.join((config.base, *config.visual)):32} {weights:20}"
    scores = report["scores"].get("public") or report["scores"]["validation"]
    text += "".join(f"{as_printed(name, scores[name]):>8}" for name in SCORES)
    return "\n".join([heading, text, *(f"note   {note}" for note in report.get("notes", ()))])


def as_printed(name, score):
    """A score as the paper prints it: PSDS as a fraction, F1 as a percentage; - where it is not defined"""
    if score is None or math.isnan(score):
        return "-"
    return f"{score:.4f}" if name.startswith("PSDS") else f"{100 * score:.2f}"


def encoder_weights(audio_weight, n_visual):
    """Weights of all encoders: 0.75 and two visual streams -> '0.75 0.125 0.125'"""
    if isinstance(audio_weight, str):  # "random"
        return audio_weight
    return " ".join(f"{x:.4g}" for x in (audio_weight, *[(1 - audio_weight) / max(n_visual, 1)] * n_visual))


def main(arguments=None):
    args = parse_arguments(arguments)
    with plumbing.one_line_errors("the same command with --resume continues after the last finished epoch"):
        run(args)


if __name__ == "__main__":
    main()
