"""Two networks that meet only in their outputs, one hears and one sees: the late fusion of Fayek & Kumar 2020.

H. M. Fayek, A. Kumar, "Large Scale Audiovisual Learning of Sounds with Weakly Labeled Data", IJCAI 2020. Cited below
as "Fayek 2020".

    log-mel (B, 1024, 64) --> AudioConvNet --> h_a (B, C) --+
                                                            +--> fusion --> probability of each class (B, C)
    mean of 64 vectors (B, D) --> VisualDNN --> h_v (B, C) -+

    python -m extras.fayek2020                                  toy data, made on the spot; minutes on two cores
    python -m extras.fayek2020 --data DIR --runs 3 --ablations  Tables 2 and 4 on other data; --analysis: Figures 2-4

From top to bottom as in the paper: the two networks, the ways to fuse them, data, training, scores, the command.
What is finished stays in the run's folder, so an interrupted command goes on when it is given again.

Shapes: B clips, T log-mel frames of 64 mel bins, S segments, D width of a visual vector, C classes.
"""

import argparse
import hashlib
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from extras import plumbing  # before torch, see there
from extras.plumbing import InputError

import torch  # isort: skip
from torch import nn
from torch.nn import functional as F

import features
import metrics
from extras import cpu, plots, tagging, toy

WINDOW, HOP = 256, 160  # samples, 16 ms and 10 ms (Fayek 2020, Sec. 3.1)
SAMPLES = 1023 * HOP  # ours: 10 s of sound and 0.23 s of silence give 1,024 frames, the input of Table 1
HIDDEN = 512  # units of every network that fuses (Fayek 2020, Sec. 3.3, 4.2)
THRESHOLDS = np.arange(1, 100) / 100  # ours: tried for micro F1


@dataclass(frozen=True)
class Schedule:
    epochs: int
    batch: int
    rates: tuple  # learning rates to choose from, on validation (Fayek 2020, Sec. 4.2)
    l2: float = 0.0
    decay: bool = False  # the rate falls to zero along half a cosine


# ours, all of it: the paper refers to another paper. One rate, since each takes as long as all else together
AUDIO, TOY_AUDIO = Schedule(20, 32, (1e-3,), decay=True), Schedule(3, 4, (1e-3,), decay=True)
VISUAL = Schedule(20, 144, (1e-3, 3e-4, 1e-4))  # Fayek 2020, Sec. 4.2; ours: the rates
FUSION = Schedule(100, 256, (1e-2, 3e-3, 1e-3, 3e-4))  # Fayek 2020, Sec. 4.2; ours: the rates
REGRESSION = replace(FUSION, l2=1e-5)  # Fayek 2020, Sec. 3.3; ours: as Adam's weight decay, of the bias too


# --- the two networks (Fayek 2020, Sec. 3.1, 3.2) --------------------------------------------------------------------


def convolution(n_in, n_out, kernel, padding=0):
    return nn.Sequential(nn.Conv2d(n_in, n_out, kernel, padding=padding), nn.BatchNorm2d(n_out), nn.ReLU())


def block(n_in, n_out, pool):
    pooling = nn.MaxPool2d(pool)  # ours: Table 1 says "Pool", not which
    return nn.Sequential(convolution(n_in, n_out, 3, 1), convolution(n_out, n_out, 3, 1), pooling)


class AudioConvNet(nn.Module):
    """Sound -> probability of each class, by segments of 0.96 s, one every 0.32 s (Fayek 2020, Sec. 3.1, Table 1).

    forward: log-mel (B, T, 64), standardised, of any T from 96 on -> (B, C)
    bf16: convolve in bfloat16
    """

    def __init__(self, n_classes, bf16=False):
        super().__init__()
        self.bf16 = bf16
        self.blocks = nn.Sequential(
            block(1, 64, pool=4),  # B1: (B, 64, 256, 16) for T = 1024
            block(64, 128, pool=2),  # B2: (B, 128, 128, 8)
            block(128, 256, pool=2),  # B3: (B, 256, 64, 4)
            block(256, 512, pool=2),  # B4: (B, 512, 32, 2)
            convolution(512, 2048, (3, 2)),  # B5: (B, 2048, S = 30, 1), the instances of the bag
            convolution(2048, 1024, 1),  # B6
            convolution(1024, 1024, 1),  # B7
            nn.Conv2d(1024, n_classes, 1),  # B8: (B, C, S, 1)
        )

    def segments(self, log_mel):
        """Probabilities of each segment: (B, S, C)"""
        with torch.autocast(log_mel.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.blocks(log_mel[:, None])[..., 0].transpose(1, 2)
        return logits.float().sigmoid()

    def forward(self, log_mel):
        return self.segments(log_mel).mean(1)  # G: clips are compared with labels only after this (Eq. 1)


class VisualDNN(nn.Sequential):
    """Picture -> probability of each class: mean of a clip's vectors (B, D), standardised -> (B, C) (Sec. 3.2)"""

    def __init__(self, n_classes, width=2048):
        super().__init__(
            nn.Linear(width, 2048), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(2048, 2048), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(2048, 1024), nn.ReLU(),
            nn.Linear(1024, 1024), nn.ReLU(),
            nn.Linear(1024, n_classes), nn.Sigmoid(),
        )  # fmt: skip


# --- fusion (Fayek 2020, Sec. 3.3, 3.4) ------------------------------------------------------------------------------
# Each takes h_a and h_v, the outputs of the two networks (B, C), and gives probabilities (B, C). All but the average
# get them standardised by class (Fayek 2020, Sec. 4.2; `fusion_inputs`).


def average(h_a, h_v):
    """Arithmetic mean of the outputs as they are (Fayek 2020, Sec. 3.3)"""
    return (h_a + h_v) / 2


def hidden_layer(n_in, n_classes):
    """One hidden layer, C outputs: the MLP (Fayek 2020, Sec. 3.3) and each attention function (Sec. 4.2)"""
    return nn.Sequential(
        nn.Linear(n_in, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(HIDDEN, n_classes), nn.Sigmoid(),
    )  # fmt: skip


class ConcatenationFusion(nn.Module):
    """Regression, a linear layer on [h_a, h_v], or the multi-layer perceptron (Fayek 2020, Sec. 3.3)"""

    def __init__(self, n_classes, hidden):
        super().__init__()
        linear = nn.Sequential(nn.Linear(2 * n_classes, n_classes), nn.Sigmoid())
        self.network = hidden_layer(2 * n_classes, n_classes) if hidden else linear

    def forward(self, h_a, h_v):
        return self.network(torch.cat([h_a, h_v], 1))


def transform(n_classes):
    """n_a, n_v, n_av (Fayek 2020, Eq. 4, 6): "single layer networks with 512 units and sigmoid activations".

    ours: 512 hidden units, then C outputs, a sigmoid after both; the C weights of Eq. 5 cannot mix 512 outputs
    """
    return nn.Sequential(nn.Linear(n_classes, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, n_classes), nn.Sigmoid())


class AttentionFusion(nn.Module):
    """A weight for sound and one for vision, for each clip and class (Fayek 2020, Sec. 3.4, Fig. 1). The paper's idea.

    attend: what the weights come from: "both" outputs, or (Table 4) for each modality its own output alone ("self"),
        or the other's alone ("cross")
    inner, outer: False leaves out n_a and n_v, or n_av (Table 4)
    """

    def __init__(self, n_classes, attend="both", inner=True, outer=True):
        super().__init__()
        self.attend = attend
        if attend == "both":
            self.n_attn = hidden_layer(2 * n_classes, n_classes)
        else:
            self.n_attn_a, self.n_attn_v = hidden_layer(n_classes, n_classes), hidden_layer(n_classes, n_classes)
        self.n_a = transform(n_classes) if inner else nn.Identity()
        self.n_v = transform(n_classes) if inner else nn.Identity()
        self.n_av = transform(n_classes) if outer else nn.Identity()

    def attention_weights(self, h_a, h_v):
        """alpha_a and alpha_v, (B, C) each, which sum to one for every class"""
        if self.attend == "both":
            alpha_a = self.n_attn(torch.cat([h_a, h_v], 1))  # Eq. 3
        else:
            of_a, of_v = (h_a, h_v) if self.attend == "self" else (h_v, h_a)
            score_a, score_v = self.n_attn_a(of_a), self.n_attn_v(of_v)
            alpha_a = score_a / (score_a + score_v)
        return alpha_a, 1 - alpha_a

    def forward(self, h_a, h_v):
        alpha_a, alpha_v = self.attention_weights(h_a, h_v)
        transformed_a, transformed_v = self.n_a(h_a), self.n_v(h_v)  # Eq. 4
        h_av = alpha_a * transformed_a + alpha_v * transformed_v  # Eq. 5
        return self.n_av(h_av)  # Eq. 6


TABLE_2 = {  # system: mAP and mAUC in the paper, percent on AudioSet; the network, where fusion has one
    "audio": (38.35, 97.12, None),
    "visual": (25.73, 91.30, None),
    "average": (42.84, 97.63, None),
    "regression": (43.10, 95.35, partial(ConcatenationFusion, hidden=False)),
    "MLP": (45.60, 96.83, partial(ConcatenationFusion, hidden=True)),
    "attention": (46.16, 97.51, AttentionFusion),
}
TABLE_4 = {
    "attention, self unimodal": (46.04, 97.48, partial(AttentionFusion, attend="self")),
    "attention, cross unimodal": (46.06, 97.47, partial(AttentionFusion, attend="cross")),
    "attention, without n_a and n_v": (38.84, 95.34, partial(AttentionFusion, inner=False)),
    "attention, without n_av": (40.84, 95.15, partial(AttentionFusion, outer=False)),
}


# --- what goes in ----------------------------------------------------------------------------------------------------


def log_mel_16_ms(path):
    """Sound file -> (1024, 64): windows of 16 ms every 10 ms (Fayek 2020, Sec. 3.1)"""
    audio = features.load_audio(path)
    return features.log_mel(np.pad(audio, (0, SAMPLES - len(audio))), WINDOW, HOP).numpy()


def mean_vector(vectors):
    """The 64 vectors of a clip -> their mean (Fayek 2020, Sec. 3.2)"""
    return vectors.mean(0, dtype=np.float32)


def network_inputs(parts, device):
    """-> what the audio and what the visual network gets: functions of a part's name and the indices of some clips

    ours: both are standardised, by mel bin and by dimension, with mean and deviation of the training clips
    """
    training = parts["training"]
    mel = features.mean_and_std([training.audio], [np.ones(training.audio.shape[:2], bool)])
    vector = features.mean_and_std([training.video[:, None]], [training.present[:, None]])

    def heard(part, clips):
        return [torch.from_numpy((parts[part].audio[clips] - mel[0]) / mel[1]).to(device)]

    def seen(part, clips):
        vectors = (parts[part].video[clips] - vector[0]) / vector[1]
        vectors[~parts[part].present[clips]] = 0  # ours: where there is no video, the visual network sees the mean
        return [torch.from_numpy(vectors).to(device)]

    return heard, seen


def fusion_inputs(parts, audio, visual, device):
    """Outputs of the two networks, dicts of part -> (N, C) -> what fusion gets, a function like those above.

    They are standardised by class, by the training clips alone (Fayek 2020, Sec. 4.2). ours: by those with video
    """
    h = []
    for outputs in (audio, visual):
        training = outputs["training"][parts["training"].present].astype(np.float64)
        mean, deviation = training.mean(0), np.maximum(training.std(0), 1e-6)  # ours: a constant output stays finite
        h.append({part: ((outputs[part] - mean) / deviation).astype(np.float32) for part in parts})

    def both(part, clips):
        return [torch.from_numpy(outputs[part][clips]).to(device) for outputs in h]

    return both


# --- training (Fayek 2020, Sec. 4.2) ---------------------------------------------------------------------------------


def train(name, build, inputs, parts, clips, schedule, seed, checkpoint=None):
    """Adam -> the network at the learning rate and epoch with the best validation mAP, and which these are.

    build() -> a network; inputs(part, indices) -> list of tensors that it takes; clips: dict of part -> indices of the
    clips to use; checkpoint: a file that is written after every epoch, to go on from as if nothing had happened (that
    of a network without dropout: the random numbers of others are not kept)
    """
    # ours: mAP, the paper says "the best model" and reports mAP first
    epochs, tags = schedule.epochs, parts["validation"].tags[clips["validation"]]
    done, best, state = load(checkpoint) if checkpoint and checkpoint.exists() else (0, {"mAP": -1.0}, None)
    for number in range(done, len(schedule.rates) * epochs):
        rate, epoch, started = schedule.rates[number // epochs], number % epochs, time.monotonic()
        if epoch == 0 or state:
            torch.manual_seed(seed)
            network = build()
            optimizer = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=schedule.l2)
        if epoch > 0 and state:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
        state = None
        order = np.random.default_rng([seed, epoch]).permutation(clips["training"])
        batches = np.array_split(order, math.ceil(len(order) / schedule.batch))  # ours: of one size, to within a clip
        network.train()
        for i, picked in enumerate(batches):
            if schedule.decay:
                share = (epoch + i / len(batches)) / epochs
                optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * share)) / 2
            loss = step(network, optimizer, inputs("training", picked), parts["training"].tags[picked])
            if not math.isfinite(loss):
                raise FloatingPointError(f"{name}: the loss is not finite in epoch {epoch + 1} at rate {rate}")
            if checkpoint:
                plumbing.show_progress(f"{name}, epoch {epoch + 1}/{epochs}", i + 1, len(batches), started)
        scores = predict(network, inputs, "validation", clips["validation"])
        if (mean_ap := tagging.mean_average_precision(tags, scores)) > best["mAP"]:
            weights = {key: value.cpu().clone() for key, value in network.state_dict().items()}
            best = {"mAP": mean_ap, "rate": rate, "epoch": epoch + 1, "weights": weights}
        if checkpoint:
            took = plumbing.clock(time.monotonic() - started)
            log(f"{name:6} epoch {epoch + 1}/{epochs} at rate {rate:g} | validation mAP {100 * mean_ap:.2f} | {took}")
            now = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            plumbing.save_tensors(checkpoint, (number + 1, best, now))
    network = build()
    network.load_state_dict(best.pop("weights"))
    return network, best


def step(network, optimizer, inputs, tags):
    """Binary cross entropy of whole clips, mean over the classes (Fayek 2020, Eq. 1, 2): no label tells when -> loss"""
    probabilities = network(*inputs)
    if not probabilities.isfinite().all():
        return math.nan
    loss = F.binary_cross_entropy(probabilities, torch.from_numpy(tags).to(probabilities))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def predict(network, inputs, part, clips, size=32):
    """Probabilities of some clips of a part: (n, C)"""
    network.eval()
    batches = np.array_split(clips, math.ceil(len(clips) / size))
    return np.concatenate([network(*inputs(part, picked)).cpu().numpy() for picked in batches])


# --- the systems of one run ------------------------------------------------------------------------------------------


def complete_run(seed, parts, inputs, audio_schedule, bf16, ablations, out, device):
    """Train what is not there yet -> dict of system -> its outputs, in the order of Tables 2 and 4 (see outputs_of)"""
    (_, n_classes), width = parts["training"].tags.shape, parts["training"].video.shape[1]
    every = {name: np.arange(len(part.filenames)) for name, part in parts.items()}
    with_video = {name: np.flatnonzero(part.present) for name, part in parts.items()}

    def builder(kind, *arguments):  # speed: convolutions like channels last
        return lambda: kind(n_classes, *arguments).to(device, memory_format=torch.channels_last)

    heard, seen = inputs
    audio = outputs_of("audio", builder(AudioConvNet, bf16), heard, parts, every, audio_schedule, seed, out)
    visual = outputs_of("visual", builder(VisualDNN, width), seen, parts, with_video, VISUAL, seed, out)
    systems = {"audio": audio, "visual": visual, "average": {}}
    for name, part in parts.items():
        systems["average"][name] = sound_alone(average(audio[name], visual[name]), audio[name], part)
    both = fusion_inputs(parts, audio, visual, device)
    for name, (*_, fusion) in (TABLE_2 | TABLE_4 if ablations else TABLE_2).items():
        if fusion:
            schedule = REGRESSION if name == "regression" else FUSION
            singles = audio, visual
            systems[name] = outputs_of(name, builder(fusion), both, parts, with_video, schedule, seed, out, singles)
    return systems


def sound_alone(fused, audio, part):
    """ours: fusion is for clips with video, of others the output is that of the audio network"""
    return np.where(part.present[:, None], fused, audio)


def outputs_of(name, build, inputs, parts, clips, schedule, seed, out, singles=()):
    """Train a system and apply it to all clips, unless its file is there -> dict of part -> probabilities (N, C).

    The two networks are finished and fixed before fusion begins, which sees no more than this (Fayek 2020, Sec. 3.4).
    singles: for fusion, the outputs of the audio and of the visual network. Fusion by attention gives "audio_weight"
    too: alpha_a of the public clips, (N, C)
    """
    fused = hashlib.sha256(b"".join(outputs[which].tobytes() for outputs in singles for which in parts)).hexdigest()
    path = out / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}.npz"
    checkpoint = path.with_suffix(".checkpoint") if name == "audio" else None  # the others are quick
    if not path.exists():
        network, best = train(name, build, inputs, parts, clips, schedule, seed, checkpoint)
        arrays = {"rate": best["rate"], "epoch": best["epoch"], "fused": fused}
        for which, part in parts.items():
            everything = np.arange(len(part.filenames))
            scores = predict(network, inputs, which, everything)
            arrays[which] = sound_alone(scores, singles[0][which], part) if singles else scores
            arrays[f"{which} clips"] = part.filenames
        if isinstance(network, AttentionFusion):
            with torch.no_grad():
                arrays["audio_weight"] = network.attention_weights(*inputs("public", everything))[0].cpu().numpy()
        write(path, arrays)
        log(f"{name}: rate {best['rate']:g}, epoch {best['epoch']}, validation mAP {100 * best['mAP']:.2f}")
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return read_outputs(path, parts, fused)


def read_outputs(path, parts, fused):
    """What outputs_of wrote; InputError unless it is of these clips and, for fusion, of these outputs"""
    try:
        with plumbing.damage_as_value_error(), np.load(path, allow_pickle=False) as file:
            stored = dict(file)
        same = all(stored[f"{name} clips"].tolist() == part.filenames for name, part in parts.items())
        found = [(stored[name], part) for name, part in parts.items()]
        found += [(stored["audio_weight"], parts["public"])] if "audio_weight" in stored else []
        fits = all(x.shape == part.tags.shape and np.all((x >= 0) & (x <= 1)) for x, part in found)
        if not (same and fits and str(stored["fused"]) == fused):
            raise ValueError
    except plumbing.FOREIGN:
        raise InputError(f"{path}: not the outputs of this system for these clips; delete it") from None
    return stored


# --- scores (Fayek 2020, Sec. 4.2, 5) --------------------------------------------------------------------------------


def score(parts, outputs):
    """Of the public clips: mAP and mAUC, which are means over the classes (Fayek 2020, Sec. 4.2), and micro F1.

    ours: F1, for comparison with Boes 2019 and Boes 2022, with one threshold for all classes, the best on validation
    """
    validated, scores = outputs["validation"].astype(np.float64), outputs["public"].astype(np.float64)
    f1 = [metrics.clip_f1(parts["validation"].tags, validated > threshold).micro for threshold in THRESHOLDS]
    threshold, tags = float(THRESHOLDS[np.argmax(f1)]), parts["public"].tags  # ours: of equals the lowest
    return {
        "mAP": tagging.mean_average_precision(tags, scores),
        "mAUC": tagging.mean_auc(tags, scores),
        "F1": metrics.clip_f1(tags, scores > threshold).micro,
        "threshold": threshold,
    }


def table_text(results, on_audioset):
    """Tables 2 and 4 over runs: percentages, mean and deviation. results: for each run a dict of system -> scores"""
    names = ("mAP", "mAUC", "F1")
    lines = [f"{f'runs: {len(results)}':40}" + "".join(f"{name:>8}{'':8}" for name in names)]
    for system in results[0]:
        line = f"{system:40}"
        for name in names:
            values = [100 * result[system][name] for result in results]
            deviation = f"±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
            line += f"{statistics.mean(values):8.2f} {deviation:7}"
        lines.append(line)
        if on_audioset:
            mean_ap, auc, _ = (TABLE_2 | TABLE_4)[system]
            lines.append(f"{'    the paper:':40}{mean_ap:8.2f}{auc:16.2f}")
    lines.append("F1: micro, with one threshold for all classes, the best on validation")
    if not on_audioset:
        lines.append("These are not the 527 classes of AudioSet: the figures cannot be compared with the paper's.")
    return "\n".join(line.rstrip() for line in lines)


def analyse(classes, part, runs, out):
    """Figures 2 to 4 (Fayek 2020, Sec. 5) of the public clips: analysis.tsv, analysis.png -> counts as text.

    By class, means over the runs: average precision of sound, vision and their fusion by attention, what fusion gains
    over the better one, and alpha_a over the clips (ours: with video) that hold the class; nan where there are none.
    """

    def precision(outputs, c):
        return tagging.mean_average_precision(part.tags[:, [c]], outputs["public"][:, [c]])

    def weight(outputs, c):
        clips = part.tags[:, c] & part.present
        return outputs["audio_weight"][clips, c].mean() if clips.any() else math.nan

    def by_class(system, value):
        return np.array([np.mean([value(run[system], c) for run in runs]) for c in range(len(classes))])

    audio, visual, fused = (by_class(system, precision) for system in ("audio", "visual", "attention"))
    gain, weights = fused - np.maximum(audio, visual), by_class("attention", weight)
    lines = ["class\tclips\taudio\tvisual\tattention\tgain\taudio_weight"]
    for label, n, *row in zip(classes, part.tags.sum(0), audio, visual, fused, gain, weights):
        lines.append("\t".join([label, str(n), *(f"{value:.4f}" for value in row)]))
    write(out / "analysis.tsv", "\n".join(lines))
    plots.plot_fusion(out / "analysis.png", classes, audio, visual, fused, weights)
    counts = [
        ("classes with clips", np.isfinite(gain)),
        ("vision ahead of sound", visual > audio),
        ("attention ahead of the better one", gain > 0),
        ("    by over 10 points", gain > 0.1),
        ("attention over 5 points behind it", gain < -0.05),
        ("    over 10 points", gain < -0.1),
        ("over half of the weight on sound", weights > 0.5),
        ("90 % or more on vision", weights <= 0.1),
    ]
    return "\n".join(f"       {what:40}{np.sum(holds):4d}" for what, holds in counts)


# --- the command -----------------------------------------------------------------------------------------------------

log = partial(print, flush=True)


def write(path, content):
    """Text or arrays by name; the file appears only when complete"""
    with plumbing.replacing(path) as unfinished, open(unfinished, "wb") as file:
        if isinstance(content, str):
            file.write(f"{content}\n".encode())
        else:
            np.savez(file, **content)


def load(path):
    """A checkpoint of `train`; nothing in it is executed"""
    try:
        done, best, state = plumbing.load_tensors(path)
    except plumbing.FOREIGN:
        raise InputError(f"{path}: is not a checkpoint of this program; delete it and start again") from None
    return done, best, state


def open_folder(out, config):
    """Make the folder of the runs, or see that it has the same configuration"""
    path, text = out / "run.json", json.dumps(config, indent=1)
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write(path, text)
    try:
        stored, wanted = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        differs = [f"{key} {stored.get(key)}" for key in wanted if stored.get(key) != wanted[key] and key != "data"]
        differs += ["other data"] if stored["data"] != wanted["data"] else []
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"{path}: was not written by this program; name another --out") from None
    if differs:
        raise InputError(f"{path}: is of runs with {', '.join(differs)}; give the same flags, or another --out")


def computes_bf16(device):
    """In hardware"""
    if device.type == "cpu":
        return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def run(args):
    """What the command does: read, train what is not there yet, score, print"""
    if args.analysis:
        plots.figure_class()  # without matplotlib, stop before the work
    device, root = plumbing.choose_device(args.device), Path(args.data or "data/toy-tagging")
    out = Path(args.out or f"runs/fayek2020-{root.resolve().name}")
    precision = args.precision or ("bf16" if computes_bf16(device) else "fp32")
    log(f"torch {torch.__version__} | {device.type}, {torch.get_num_threads()} threads | {precision} | {out}")
    log(f"data   {root}")
    if not args.data:
        toy.make_toy(root, kind="tagging")
        log("       TOY DATA: these scores are not comparable with the paper. Use --data DIR for others")
    cache = plumbing.cache_folder(root, out.parent)
    stream = args.visual or ("resnet152" if args.data else "openl3")  # Fayek 2020, Sec. 3.2
    classes, parts = tagging.load_tagging(root, log_mel_16_ms, stream, mean_vector, cache, log=log)
    if parts["training"].present.sum() < 2:
        raise InputError(f"{root}/visual/{stream}: only one training clip has vectors, batch norm needs two")
    log("       fusion does not train on clips without video; there its output is that of the audio network")
    log("       left out: the sequential co-supervision that is part of the paper's audio training (Sec. 3.1)")

    audio = AUDIO if args.data else TOY_AUDIO
    audio = replace(audio, epochs=args.audio_epochs or audio.epochs, rates=tuple(args.audio_rates or audio.rates))
    identity = hashlib.sha256(repr((classes, [part.filenames for part in parts.values()])).encode())
    for part in parts.values():
        identity.update(part.tags.tobytes() + part.present.tobytes())
    data = identity.hexdigest()[:16]
    open_folder(out, {"stream": stream, "audio": asdict(audio), "precision": precision, "data": data})
    if device.type == "cpu":
        cpu.keep_freed_memory()
    inputs, runs, results = network_inputs(parts, device), [], []
    for seed in range(args.seed, args.seed + args.runs):
        log(f"seed {seed}")
        runs.append(complete_run(seed, parts, inputs, audio, precision == "bf16", args.ablations, out, device))
        results.append({name: score(parts, outputs) for name, outputs in runs[-1].items()})
        write(out / f"results-{seed}.json", json.dumps(results[-1], indent=1))
    text = table_text(results, on_audioset=len(classes) == 527)  # Fayek 2020, Sec. 4.1
    write(out / "table.txt", text)
    log(text)
    if args.analysis:
        log(analyse(classes, parts["public"], runs, out))
    if not args.data:
        log("TOY DATA: not comparable with the paper")


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m extras.fayek2020",
        description="Train and score the two networks and the fusions of Fayek & Kumar 2020.",
    )
    add = parser.add_argument
    add("--data", metavar="DIR", help="data set (README, 'Real data'; extras/tagging.py); default: toy data")
    add("--visual", metavar="NAME", help="visual vectors, a folder in DIR/visual; default: resnet152, toy data openl3")
    add("--ablations", action="store_true", help="the rows of Table 4 too")
    add("--analysis", action="store_true", help="Figures 2 to 4 too: analysis.tsv, analysis.png; needs matplotlib")
    add("--runs", type=int, default=1, help="with seeds from --seed on; default: 1")
    add("--seed", type=int, default=0, help="of the first run; default: 0")
    add("--audio-epochs", type=int, metavar="N", help=f"default: {AUDIO.epochs}, toy data {TOY_AUDIO.epochs}")
    add("--audio-rates", type=float, nargs="+", metavar="RATE", help="learning rates to try; default: 0.001 alone")
    add("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    add("--precision", choices=("fp32", "bf16"), help="of the audio network; default: bf16 where the device has it")
    add("--out", metavar="DIR", help="folder of the runs, shared by all seeds; default: runs/fayek2020-DATA")
    args = parser.parse_args(arguments)
    if args.data == "":
        parser.error("--data is empty: name a folder, or leave it out for toy data")
    if args.visual is not None and (Path(args.visual).name != args.visual or args.visual in ("", "..")):
        parser.error("--visual takes the name of a folder, without slashes")
    if args.runs < 1 or (args.audio_epochs is not None and args.audio_epochs < 1):
        parser.error("--runs and --audio-epochs must be at least 1")
    if not all(0 < rate < math.inf for rate in args.audio_rates or ()):
        parser.error("--audio-rates must be above 0")
    if not 0 <= args.seed < 2**63 - args.runs:
        parser.error("--seed must be 0 or more, and below 2 ** 63")
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    with plumbing.one_line_errors("the same command goes on after the last finished epoch of the audio network"):
        run(args)


if __name__ == "__main__":
    main()
