"""Train, tune and score a multi-encoder on clips of which only some can be seen (Boes & Van hamme 2022, Sec. 3).

    python train.py --visual openl3                      toy data, made on the spot; minutes on two cores
    python train.py --visual openl3 --data DIR           DCASE 2020 task 4 in DIR, the paper's schedule

Top to bottom, as time runs: configuration, the plan of batches, one training step, the run, scoring, the command line.

Our choices where the paper is silent (marked `# ours:` below): the teacher starts as a copy of the student and keeps
batch norm statistics of its own; the moving average warms up as 1 - 1 / (t + 1); mixup draws one coin per batch and one
ratio per label group, with partners of the same group and the same missing streams; the learning rate falls in steps.
"""

import argparse
import copy
import ctypes
import json
import math
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import features
import metrics
from avsed import MultiEncoder
from features import FRAME_HOP, InputError

# --- configuration ---------------------------------------------------------------------------------------------------

LEARNING_RATE = 1e-3  # Boes 2022, Sec. 3.1.5
LR_STEP = 10_000  # iterations (Boes 2022, Sec. 3.1.5)
EMA_DECAY = 0.999  # per iteration (Boes 2022, Sec. 3.1.5)
CONSISTENCY = 2.0  # weight of both consistency terms (Boes 2022, Sec. 3.1.5)
MIXUP_RATE, MIXUP_SHAPE = 0.33, 0.2  # Boes 2022, Sec. 3.1.5
RANDOM_WEIGHT = (0.25, 1.0)  # range of random acoustic weights (Boes 2022, Sec. 3.2.2)
INFER_WEIGHTS = (0.25, 0.5, 0.75, 0.875)  # acoustic weights tried at inference (Boes 2022, Sec. 3.2.2)
PAPER = {"epochs": 100, "batches": 250, "batch_size": (32, 32, 64)}  # Boes 2022, Sec. 3.1.5
TOY = {"epochs": 9, "batches": 40, "batch_size": (4, 6, 2)}  # ours: what two cores do in a few minutes
# the scores of Boes 2022, Sec. 3.1.4, and what metrics.tune calls them
TUNED = {"CBF1": "clip", "SBF1": "segment", "EBF1": "event", "PSDS1": "psds1", "PSDS2": "psds2"}


@dataclass(frozen=True)
class Config:
    """What a run is asked for. On the same data, machine and version of torch it ends with the same weights."""

    data: str  # folder of the data set
    visual: tuple  # names of the visual streams
    base: str  # "transformer" or "conformer"
    train_weight: object  # acoustic weight in training: a number, or "random"
    infer_weight: object  # acoustic weight at inference: a number, or "auto"
    epochs: int
    batches: int  # per epoch
    batch_size: tuple  # strong, weak, unlabelled clips
    seed: int
    bf16: bool

    @property
    def iterations(self):
        return self.epochs * self.batches


# --- the plan of batches ---------------------------------------------------------------------------------------------
# Every random choice about iteration t is a function of the seed and t alone. So an interrupted run continues with the
# same batches, and nobody has to store where in the data it was.


def endless(n, size, iteration, key):
    """Indices of batch number `iteration` of an endless shuffled stream of n clips; incomplete batches are dropped."""
    if size == 0:
        return np.zeros(0, int)
    per_pass = max(1, n // size)
    order = np.random.default_rng([*key, iteration // per_pass]).permutation(n)
    order = np.resize(order, max(n, size))  # ours: a group smaller than its share of the batch is repeated
    return order[iteration % per_pass * size :][:size]


def mixup_plan(rng, group, pattern):
    """Who is mixed with whom: (ratio (B,), partner (B,)), or None for the batches that stay as they are.

    group (B,), pattern (B,): label group of each clip, and which streams it has, as integers. ours: partners share
    both, so that labels stay of one kind and a clip with video is never mixed with one without.
    """
    if rng.random() >= MIXUP_RATE:
        return None
    ratio = rng.beta(MIXUP_SHAPE, MIXUP_SHAPE, size=3)[group]
    partner = np.arange(len(group))
    for g, p in sorted(set(zip(group.tolist(), pattern.tolist()))):
        members = np.flatnonzero((group == g) & (pattern == p))
        partner[members] = rng.permutation(members)
    return ratio, partner


def audio_weight_of(train_weight, rng):
    """Acoustic weight of one batch; the visual streams share the rest (Boes 2022, Sec. 3.2.2)."""
    return rng.uniform(*RANDOM_WEIGHT) if train_weight == "random" else train_weight


@dataclass
class Batch:
    """B clips, standardised; in training strong ones first, then weak, then unlabelled"""

    log_mel: torch.Tensor  # (B, 512, 64)
    visual: dict  # stream -> (B, 64, D)
    present: dict  # stream -> (B,) bool
    strong: torch.Tensor = None  # (n_strong, 64, C) targets in [0, 1]
    weak: torch.Tensor = None  # (n_weak, C)


def load_batch(data, picks, device):
    """picks: list of (partition, indices) -> Batch without targets"""

    def gather(arrays, statistics):
        mean, std = (torch.from_numpy(values).to(device) for values in statistics)
        rows = np.concatenate([array[indices] for array, (_, indices) in zip(arrays, picks)])
        return (torch.from_numpy(rows).to(device).float() - mean) / std

    visual, present = {}, {}
    for stream, statistics in data.visual_statistics.items():
        visual[stream] = gather([part.visual[stream] for part, _ in picks], statistics)
        have = np.concatenate([part.present[stream][indices] for part, indices in picks])
        present[stream] = torch.from_numpy(have).to(device)
    return Batch(gather([part.log_mel for part, _ in picks], data.mel_statistics), visual, present)


def training_batch(data, config, iteration, device):
    """Batch number `iteration` with its targets, and the random numbers for the rest of the iteration"""
    parts = [data.partitions[name] for name in features.TRAINING]
    picks = [
        (part, endless(len(part), size, iteration, (config.seed, number)))
        for number, (part, size) in enumerate(zip(parts, config.batch_size))
    ]
    batch = load_batch(data, picks, device)
    (strong, strong_clips), (weak, weak_clips), _ = picks
    batch.strong = torch.from_numpy(strong.frames[strong_clips]).to(device).float()
    batch.weak = torch.from_numpy(weak.tags[weak_clips]).to(device).float()
    return batch, np.random.default_rng([config.seed, len(parts), iteration])


def mixup(batch, sizes, rng):
    """Interpolate clips and targets with partners (Boes 2022, Sec. 3.1.5); `present` stays as it is."""
    device = batch.log_mel.device
    pattern = sum((have.cpu().numpy() << e for e, have in enumerate(batch.present.values())), np.zeros(sum(sizes), int))
    plan = mixup_plan(rng, np.repeat(np.arange(3), sizes), pattern)
    if plan is None:
        return batch
    ratio, partner = torch.from_numpy(plan[0]).float().to(device), torch.from_numpy(plan[1]).to(device)

    def mix(x, first=0):  # x: the clips from number `first` on
        here = slice(first, first + len(x))
        share = ratio[here].view(-1, *[1] * (x.dim() - 1))
        return share * x + (1 - share) * x[partner[here] - first]

    visual = {stream: mix(vectors) for stream, vectors in batch.visual.items()}
    return Batch(mix(batch.log_mel), visual, batch.present, mix(batch.strong), mix(batch.weak, sizes[0]))


# --- one training step -----------------------------------------------------------------------------------------------


def learning_rate(iteration):
    """0.001, a tenth of it every 10,000 iterations (Boes 2022, Sec. 3.1.5). ours: in steps, not as a smooth decay."""
    return LEARNING_RATE * 0.1 ** (iteration // LR_STEP)


@torch.no_grad()
def update_teacher(teacher, student, t):
    """Exponential moving average of the student's parameters after step t = 1, 2, .. (Boes 2022, Sec. 3.1.5).

    ours: a short memory at first, as in the DCASE baselines. Only parameters are averaged: the teacher, in training
    mode like the student, collects batch norm statistics of its own.
    """
    decay = min(1 - 1 / (t + 1), EMA_DECAY)
    for average, current in zip(teacher.parameters(), student.parameters()):
        average.lerp_(current, 1 - decay)


def binary_cross_entropy(logits, targets):
    """Mean over all elements, 0 where a batch has no such clips"""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / max(1, targets.numel())


def training_step(student, teacher, optimizer, data, config, iteration, device):
    """One iteration of mean-teacher training (Boes 2022, Sec. 3.1.5).

    -> (4,) losses: clip cross entropy, frame cross entropy, clip consistency, frame consistency
    """
    batch, rng = training_batch(data, config, iteration, device)
    batch = mixup(batch, config.batch_size, rng)
    audio_weight = audio_weight_of(config.train_weight, rng)  # student and teacher share it
    inputs = batch.log_mel, batch.visual, batch.present, audio_weight

    with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
        frame_logits, clip_logits = student(*inputs)
        with torch.no_grad():  # ours: the same batch, other dropout
            teacher_frame, teacher_clip = teacher(*inputs)

    n_strong, n_weak, _ = config.batch_size
    losses = torch.stack([
        binary_cross_entropy(clip_logits[n_strong : n_strong + n_weak].float(), batch.weak),
        binary_cross_entropy(frame_logits[:n_strong].float(), batch.strong),
        F.mse_loss(clip_logits.float().sigmoid(), teacher_clip.float().sigmoid()),
        F.mse_loss(frame_logits.float().sigmoid(), teacher_frame.float().sigmoid()),
    ])  # fmt: skip
    loss = losses[:2].sum() + CONSISTENCY * losses[2:].sum()

    optimizer.param_groups[0]["lr"] = learning_rate(iteration)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    update_teacher(teacher, student, iteration + 1)
    return losses.detach()


# --- the run ---------------------------------------------------------------------------------------------------------


class Log:
    """Prints lines, and keeps them in a file once there is one"""

    def __init__(self):
        self.lines, self.path = [], None

    def __call__(self, line):
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
    partial = path.with_name(f"{path.name}.partial")
    torch.save(content, partial)
    os.replace(partial, path)


def load(path, device="cpu"):
    """A file that `save` wrote. Nothing in it is executed."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch lets out a dozen kinds for damaged files
        raise InputError(
            f"{path}: not a checkpoint of this program ({first_line(error)}); delete it and start again"
        ) from None


def train(config, data, out, device, log):
    """Run the schedule, from the checkpoint in `out` on if there is one -> the student after its last iteration"""
    torch.manual_seed(config.seed)
    dims = {stream: mean.size for stream, (mean, _) in data.visual_statistics.items()}
    student = MultiEncoder(len(data.classes), dims, config.base).to(device, memory_format=torch.channels_last)
    teacher = copy.deepcopy(student).requires_grad_(False)  # ours: a copy, not random weights of its own
    optimizer = torch.optim.RAdam(student.parameters(), lr=LEARNING_RATE)  # ours: default betas, no weight decay
    n_parameters = sum(p.numel() for p in student.parameters()) / 1e6
    log(f"model  {config.base}, {' + '.join(('log-mel', *config.visual))}, {n_parameters:.2f} M parameters")
    first = 0
    if (out / "checkpoint.pt").exists():
        first = restore(out / "checkpoint.pt", config, data, student, teacher, optimizer, device)
        log(f"       continuing after epoch {first} of {config.epochs}")

    progress = Progress(config, first)
    for epoch in range(first, config.epochs):
        student.train()
        losses = []
        for number in range(config.batches):
            iteration = epoch * config.batches + number
            losses.append(training_step(student, teacher, optimizer, data, config, iteration, device))
            progress(iteration, losses)
        terms = torch.stack(losses).cpu()
        check_finite(terms, epoch * config.batches, log)
        log(progress.line((epoch + 1) * config.batches - 1, terms.mean(0)))
        log(valid_line(student, data, config, epoch, device))
        state = {"config": asdict(config), "classes": data.classes, "data": data.identity, "epoch": epoch + 1}
        state |= {"student": student.state_dict(), "teacher": teacher.state_dict(), "optimizer": optimizer.state_dict()}
        state["random"] = {"cpu": torch.get_rng_state()}  # what dropout draws from; the plan of batches needs nothing
        if device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(device)
        save(state, out / "checkpoint.pt")
    return student


def check_same_run(path, state, config, data):
    """A stored run may be continued or reported only with its own flags and data."""
    if not (isinstance(state, dict) and {"config", "classes", "data"} <= state.keys()):
        raise InputError(f"{path}: was not written by this program, or by an older version; delete it and start again")
    stored = state["config"]
    differs = [f"{key} {stored[key]}" for key, value in asdict(config).items() if stored[key] != value]
    if state["classes"] != data.classes or state["data"] != data.identity:
        differs.append("other data")
    if differs:
        raise InputError(f"{path}: is of a run with {', '.join(differs)}; give the same flags, or another --out")


def restore(path, config, data, student, teacher, optimizer, device):
    """Put an interrupted run back as it was at its last checkpoint -> number of epochs done"""
    state = load(path, device)
    try:
        check_same_run(path, state, config, data)
        student.load_state_dict(state["student"])
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["cpu"].cpu())
        if device.type == "cuda" and "cuda" in state["random"]:  # else the run moves here from a CPU
            torch.cuda.set_rng_state(state["random"]["cuda"].cpu(), device)
        return state["epoch"]
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: a checkpoint of another architecture ({first_line(error)}); delete it and start again"
        ) from None


def check_finite(terms, first, log):
    """terms (iterations, 4): stop the run where the first one is not finite"""
    names = ("clip cross entropy", "frame cross entropy", "clip consistency", "frame consistency")
    for number, row in enumerate(terms.tolist()):
        if not all(map(math.isfinite, row)):
            named = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, row))
            log(f"error: the loss is not finite at iteration {first + number}: {named}; nothing of this epoch is kept")
            sys.exit(1)


class Progress:
    """One line a second on a terminal, with the time that is left"""

    def __init__(self, config, first_epoch):
        self.config, self.first = config, first_epoch * config.batches
        self.started = self.shown = time.monotonic()

    def __call__(self, iteration, losses):
        if sys.stdout.isatty() and time.monotonic() - self.shown > 1:
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
            f"lr {learning_rate(iteration):.1e} | {1000 * per_iteration:.0f} ms | "
            f"{features.clock(per_iteration * (self.config.iterations - done))} left"
        )


# --- scoring a run ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(student, data, part, audio_weights, device, size=32):
    """Probabilities of a partition -> dict of audio weight -> (frame scores (N, 64, C), clip scores (N, C)), float32"""
    student.eval()
    outputs = {weight: ([], []) for weight in audio_weights}
    for first in range(0, len(part), size):
        batch = load_batch(data, [(part, np.arange(first, min(first + size, len(part))))], device)
        encoded = student.encode(batch.log_mel, batch.visual, batch.present)  # the same for all weights
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
    weight = infer_weights(config)[-1]
    frame_scores, clip_scores = predict(student, data, part, [weight], device)[weight]
    untuned = {name: (np.full(len(classes), 0.5), np.ones(len(classes), int)) for name in ("CBF1", "SBF1", "EBF1")}
    scores = evaluate(part, classes, frame_scores, clip_scores, untuned)
    shown = " | ".join(f"{name} {100 * score:5.2f}" for name, score in scores.items())
    return f"valid {epoch + 1:3d}/{config.epochs} | {shown} | acoustic weight {weight}"


def infer_weights(config):
    """Acoustic weights to choose from at inference"""
    return list(INFER_WEIGHTS) if config.infer_weight == "auto" else [config.infer_weight]


def score_run(student, config, data, out, device, log):
    """Tune on validation, score on public evaluation, write model.pt, metrics.json and predictions.tsv -> the report"""
    validation, public, classes = data.partitions["validation"], data.partitions["public"], data.classes

    # Boes 2022, Sec. 3.2.2: the weight with the best EBF1 on validation serves all five scores
    # ours: of equals the largest
    predictions = predict(student, data, validation, infer_weights(config), device)
    ebf1 = {}
    for weight, scores in predictions.items():
        ebf1[weight] = evaluate(validation, classes, *scores, tune(validation, classes, *scores, ["EBF1"]))["EBF1"]
        log(f"tune   acoustic weight {weight:<5} | validation EBF1 {100 * ebf1[weight]:5.2f}")
    weight = max(ebf1, key=lambda w: (np.nan_to_num(ebf1[w]), w))
    tuned = tune(validation, classes, *predictions[weight])

    frame_scores, clip_scores = predict(student, data, public, [weight], device)[weight]
    scores = {
        "validation": evaluate(validation, classes, *predictions[weight], tuned),
        "public": evaluate(public, classes, frame_scores, clip_scores, tuned),
    }
    plain = {
        name: {"threshold": None if t is None else t.tolist(), "window": w.tolist()} for name, (t, w) in tuned.items()
    }
    report = {
        "config": asdict(config),
        "classes": classes,
        "data": data.identity,
        "infer_weight": weight,
        "tuned": plain,
    }
    report |= {
        "scores": {part: {k: None if math.isnan(v) else v for k, v in row.items()} for part, row in scores.items()}
    }
    weights = {"weights": student.state_dict(), "mel_statistics": tensors(data.mel_statistics)}
    weights["visual_statistics"] = {stream: tensors(pair) for stream, pair in data.visual_statistics.items()}
    metrics.write_events(out / "predictions.tsv", detect(public, classes, frame_scores, *tuned["EBF1"]))
    (out / "metrics.json").write_text(json.dumps(report, indent=1) + "\n")
    save(report | weights, out / "model.pt")  # last: it marks the run as finished
    return report


def tensors(arrays):
    return [torch.from_numpy(array) for array in arrays]


def table(config, report):
    """A row in the shape of Boes 2022, Table 5, under its heading"""
    weight, scores = report["infer_weight"], report["scores"]["public"]
    streams = " + ".join((config.base, *config.visual))
    shares = [weight] + [(1 - weight) / len(config.visual)] * len(config.visual) if config.visual else [1]
    row = f"{streams:32} {' '.join(f'{share:.4g}' for share in shares):20}"
    heading = f"{'':32} {'weights':20}" + "".join(f"{name:>8}" for name in TUNED)
    for name, score in scores.items():
        row += f"{'-':>8}" if score is None else f"{score:8.4f}" if name.startswith("PSDS") else f"{100 * score:8.2f}"
    return f"{heading}\n{row}"


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
    add("--base", choices=("transformer", "conformer"), default="transformer", help="base model; default: transformer")
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
    add("--bf16", action="store_true", help="train with bfloat16 autocast: faster where the hardware has it")
    add("--out", metavar="DIR", help="folder for the run; default: runs/DATA-BASE-STREAMS-SEED")
    add("--resume", action="store_true", help="continue the interrupted run in the folder, given the same flags")
    args = parser.parse_args(arguments)  # fmt: skip
    for name, value in (PAPER if args.data else TOY).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not args.visual and (args.train_weight or args.infer_weight):
        parser.error("--train-weight and --infer-weight need a stream to share with: add --visual NAME")
    args.train_weight = args.train_weight or (0.5 if args.visual else 1.0)
    args.infer_weight = args.infer_weight or ("auto" if args.visual else 1.0)
    if args.epochs < 1 or args.batches < 1 or min(args.batch_size) < 0 or sum(args.batch_size) < 1:
        parser.error("--epochs and --batches must be at least 1, and --batch-size must hold at least one clip")
    if len(set(args.visual)) < len(args.visual) or any(Path(v).name != v or v in ("", "..") for v in args.visual):
        parser.error("--visual takes different folder names, without slashes")
    if not 0 <= args.seed < 2**63:
        parser.error("--seed must be 0 or more, and below 2 ** 63")
    return args


def choose_device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available here ({first_line(error)}); use --device auto") from None
    return torch.device(name)


def keep_freed_memory():
    """ours: glibc returns every large block to the system when it is freed, and asks for it again the next iteration.

    The page faults this costs are over a third of a training step on a CPU, so ask it to keep the memory instead.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def cache_folder(root, out):
    """Inside the data set, or beside the run where the data set is read-only, be it only by its permission bits"""
    writable = root.is_dir() and os.access(root, os.W_OK) and root.stat().st_mode & 0o222
    return root / "cache" if writable else out.parent / f"cache-{root.resolve().name}"


def run(args, log):
    """What the command line does: load, train, score, print the table row"""
    device = choose_device(args.device)
    root = args.data or "data/toy"
    config = Config(
        root, tuple(args.visual), args.base, args.train_weight, args.infer_weight,
        args.epochs, args.batches, tuple(args.batch_size), args.seed, args.bf16,
    )  # fmt: skip
    streams = config.visual or ("audio",)
    out = Path(args.out or "runs/" + "-".join((Path(root).resolve().name, config.base, *streams, str(config.seed))))
    checkpoint, finished = out / "checkpoint.pt", out / "model.pt"
    if not args.resume and (checkpoint.exists() or finished.exists()):
        raise InputError(f"{out}: holds a run already; continue it with --resume, name another --out, or delete it")
    log(f"torch {torch.__version__} | {device.type}, {torch.get_num_threads()} threads | seed {config.seed} | {out}")
    log(f"data   {root}")
    if not args.data:
        features.make_toy(root)
        log("       TOY DATA: these scores are not comparable with the paper.")
        log("       Use --data DIR for DCASE 2020 (README, 'Real data').")
    data = features.load_dataset(root, config.visual, cache_folder(Path(root), out), log)
    out.mkdir(parents=True, exist_ok=True)
    log.path = out / "log.txt"
    if finished.exists():
        log("       this run is finished")
        report = load(finished)
        check_same_run(finished, report, config, data)
    else:
        if args.resume and not checkpoint.exists():
            log(f"       nothing to resume in {out}: starting from the beginning")
        student = train(config, data, out, device, log)
        report = score_run(student, config, data, out, device, log)
        checkpoint.unlink()
    log(table(config, report))
    if not args.data:
        log("TOY DATA: not comparable with the paper")


def main(arguments=None):
    args = parse_arguments(arguments)
    keep_freed_memory()
    warnings.formatwarning = lambda message, *_: f"note   {message}\n"
    try:
        run(args, Log())
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command with --resume continues after the last finished epoch")


if __name__ == "__main__":
    main()
