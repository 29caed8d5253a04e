"""Two networks that meet only in their outputs, one hears and one sees: the late fusion of Fayek & Kumar 2020.

H. M. Fayek, A. Kumar, "Large Scale Audiovisual Learning of Sounds with Weakly Labeled Data", IJCAI 2020. Cited below
as "Fayek 2020".

    log-mel (B, 1024, 64) --> AudioConvNet --> h_a (B, C) --+
                                                            +--> fusion --> probability of each class (B, C)
    mean of 64 vectors (B, D) --> VisualDNN --> h_v (B, C) -+

    python -m extras.fayek2020                                  toy data, made on the spot; minutes on two cores
    python -m extras.fayek2020 --data DIR --runs 3 --ablations  Tables 2 and 4 on other data; --analysis: Figures 2-4

From top to bottom as in the paper: the two networks, the ways to fuse them, data, training, scores, the command. Clips
and scores, which it shares with boes2019.py: tagging.py. What is finished stays in the run's folder, so an interrupted
command goes on when it is given again.

Shapes: B clips, T log-mel frames of 64 mel bins, S segments, D width of a visual vector, C classes.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from extras import plumbing  # before torch, see there
from extras.plumbing import InputError

import torch  # isort: skip
from torch import nn
from torch.nn import functional as F

import features
from extras import cpu, plots, tagging

WINDOW, HOP = 256, 160  # samples, 16 ms and 10 ms (Fayek 2020, Sec. 3.1)
SAMPLES = 1023 * HOP  # ours: 10 s of sound and 0.23 s of silence give 1,024 frames, the input of Table 1
HIDDEN = 512  # units of every network that fuses (Fayek 2020, Sec. 3.3, 4.2)


# --- the two networks (Fayek 2020, Sec. 3.1, 3.2) --------------------------------------------------------------------


def convolution(n_in, n_out, kernel, padding=0):
    """All but the last have batch norm and ReLU behind them (Fayek 2020, Table 1)"""
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


def network_inputs(modality, parts, device):
    """-> what the audio or the visual network gets: a function of a part's name and the indices of some clips"""
    return lambda name, clips: [parts[name].inputs(modality, clips, device)]


def fusion_inputs(parts, audio, visual, device):
    """Outputs of the two networks, dicts of part -> (N, C) -> what fusion gets, a function like the one above.

    They are standardised by class, by the training clips alone (Fayek 2020, Sec. 4.2). ours: by those with video
    """
    h = []
    for outputs in (audio, visual):
        training = outputs["training"][parts["training"].present]
        mean, deviation = training.mean(0, np.float64), training.std(0, np.float64)
        h.append((outputs, mean, np.maximum(deviation, 1e-6)))  # ours: a constant output stays finite

    def both(name, clips):
        standardised = [(outputs[name][clips] - mean) / deviation for outputs, mean, deviation in h]
        return [torch.from_numpy(values).float().to(device) for values in standardised]

    return both


# --- training (Fayek 2020, Sec. 4.2) ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    epochs: int
    batch: int
    rates: tuple  # learning rates to choose from, on validation (Fayek 2020, Sec. 4.2)
    l2: float = 0.0
    decay: bool = False  # the rate falls to zero along half a cosine

    def at(self, rate, epoch):
        """What a rate has become after some epochs, and a part of one"""
        return rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2 if self.decay else rate


# ours, all of it: the paper refers to another paper. One rate, since each takes as long as all else together
AUDIO, TOY_AUDIO = Schedule(20, 32, (1e-3,), decay=True), Schedule(3, 4, (1e-3,), decay=True)
VISUAL = Schedule(20, 144, (1e-3, 3e-4, 1e-4))  # Fayek 2020, Sec. 4.2; ours: the rates
FUSION = Schedule(100, 256, (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4))  # Fayek 2020, Sec. 4.2; ours: the rates
L2 = 1e-5  # of the regression (Fayek 2020, Sec. 3.3); ours: as Adam's weight decay, of the bias too


def train(name, build, inputs, parts, clips, schedule, seed, checkpoint=None):
    """Adam -> the network at the learning rate and epoch with the best validation mAP, and which these are.

    build() -> a network; inputs(part, indices) -> list of tensors that it takes; clips: dict of part -> indices of the
    clips to use; checkpoint: a file from which a killed training goes on, see `keep`
    """
    tags, best = parts["validation"].tags[clips["validation"]], {"mAP": -1.0}
    for rate in schedule.rates:
        torch.manual_seed(seed)
        network = build()
        optimizer = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=schedule.l2)
        done = restore(checkpoint, schedule, rate, network, optimizer, best) if checkpoint else 0
        for epoch in range(done, schedule.epochs):
            total, started = 0.0, time.monotonic()
            order = np.random.default_rng([seed, epoch]).permutation(clips["training"])
            batches = np.array_split(order, math.ceil(len(order) / schedule.batch))  # ours: of one size, +- a clip
            network.train()
            for i, picked in enumerate(batches):
                optimizer.param_groups[0]["lr"] = schedule.at(rate, epoch + i / len(batches))
                total += step(network, optimizer, inputs("training", picked), parts["training"].tags[picked])
                if checkpoint:
                    plumbing.show_progress(f"{name}, epoch {epoch + 1}", i + 1, len(batches), started)
            if not math.isfinite(total):
                log(f"{name}: the loss is not finite in epoch {epoch + 1} at rate {rate:g}, which is given up")
                break
            scores = predict(network, inputs, "validation", clips["validation"])
            mean_ap = tagging.mean_average_precision(tags, scores)
            if mean_ap > best["mAP"]:  # ours: mAP, the paper says "the best model" and reports mAP first
                weights = {key: value.cpu().clone() for key, value in network.state_dict().items()}
                best.update(mAP=mean_ap, rate=rate, epoch=epoch + 1, weights=weights)
            if checkpoint:
                took = f"validation mAP {100 * mean_ap:.2f} | {plumbing.clock(time.monotonic() - started)}"
                log(f"{name:6} epoch {epoch + 1}/{schedule.epochs} at rate {rate:g} | {took}")
                keep(checkpoint, rate, epoch + 1, network, optimizer, best)
    if "weights" not in best:
        raise FloatingPointError(f"{name}: the loss is finite at none of the rates {schedule.rates}")
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


def keep(checkpoint, rate, epoch, network, optimizer, best):
    """Write down where training is, for `restore`. Of a network without dropout: no random numbers are kept"""
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    plumbing.save_tensors(checkpoint, {"rate": rate, "epoch": epoch, "best": best, **state})


def restore(checkpoint, schedule, rate, network, optimizer, best):
    """Bring back what `keep` wrote, if anything -> how many epochs at this rate are done"""
    if not checkpoint.exists():
        return 0
    with plumbing.foreign(checkpoint, "is not a checkpoint of this program; delete it and start again"):
        kept = plumbing.load_tensors(checkpoint)
        weights, where = network.state_dict(), {"rate": 0.0, "epoch": 0}
        gathered = [{"step": torch.zeros(()), "exp_avg": p.data, "exp_avg_sq": p.data} for p in network.parameters()]
        form = {**where, "network": weights, "optimizer": dict(enumerate(gathered))}
        form["best"] = {**where, "mAP": 0.0, "weights": weights}
        if not plumbing.same_form(kept | {"optimizer": kept["optimizer"]["state"]}, form):
            raise ValueError("another form")
        best.update(kept["best"])
        ahead = schedule.rates.index(kept["rate"]) - schedule.rates.index(rate)
        if ahead > 0:
            return schedule.epochs
        if ahead < 0:
            return 0
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        return kept["epoch"]


# --- the systems of one run ------------------------------------------------------------------------------------------


def complete_run(seed, parts, audio_schedule, fusion_schedule, ablations, out, config, device):
    """Train what is not there yet -> dict of system -> its outputs, in the order of Tables 2 and 4 (see outputs_of)"""
    (_, n_classes), width = parts["training"].tags.shape, parts["training"].video.shape[1]
    every = {name: part.clips() for name, part in parts.items()}
    with_video = {name: part.clips(with_video=True) for name, part in parts.items()}
    complete = partial(outputs_of, parts=parts, seed=seed, out=out, config=config)

    def builder(kind, *arguments):  # speed: convolutions like channels last
        return lambda: kind(n_classes, *arguments).to(device, memory_format=torch.channels_last)

    heard, seen = (network_inputs(modality, parts, device) for modality in ("audio", "video"))
    bf16 = config["precision"] == "bf16"
    audio = complete("audio", builder(AudioConvNet, bf16), heard, clips=every, schedule=audio_schedule)
    visual = complete("visual", builder(VisualDNN, width), seen, clips=with_video, schedule=VISUAL)
    systems = {"audio": audio, "visual": visual, "average": {}}
    for name, part in parts.items():
        systems["average"][name] = sound_alone(average(audio[name], visual[name]), audio[name], part)
    both = fusion_inputs(parts, audio, visual, device)
    for name, (*_, fusion) in (TABLE_2 | TABLE_4 if ablations else TABLE_2).items():
        if fusion:
            schedule = replace(fusion_schedule, l2=L2 if name == "regression" else 0.0)
            systems[name] = complete(name, builder(fusion), both, clips=with_video, schedule=schedule, audio=audio)
    return systems


def sound_alone(fused, audio, part):
    """ours: fusion is for clips with video, of others the output is that of the audio network"""
    return np.where(part.present[:, None], fused, audio)


def outputs_of(system, build, inputs, parts, clips, schedule, seed, out, config, audio=None):
    """Train a system and apply it to all clips, unless its folder is there -> dict of part -> probabilities (N, C).

    The two networks are finished and fixed before fusion begins, which sees no more than this (Fayek 2020, Sec. 3.4).
    audio: for fusion, the outputs of the audio network. Fusion by attention gives "audio_weight" too: alpha_a of the
    public clips, (N, C)
    """
    checkpoint = out / f"audio-{seed}.checkpoint" if system == "audio" else None  # the others are quick

    def compute():
        network, best = train(system, build, inputs, parts, clips, schedule, seed, checkpoint)
        arrays = {"rate": best["rate"], "epoch": best["epoch"]}
        for name, part in parts.items():
            scores = predict(network, inputs, name, part.clips())
            arrays[name] = sound_alone(scores, audio[name], part) if audio else scores
            arrays[f"{name}_clips"] = part.filenames
        if isinstance(network, AttentionFusion):
            with torch.no_grad():
                alpha_a, _ = network.attention_weights(*inputs("public", parts["public"].clips()))
            arrays["audio_weight"] = alpha_a.cpu().numpy()
        log(f"{system}: rate {best['rate']:g}, epoch {best['epoch']}, validation mAP {100 * best['mAP']:.2f}")
        return arrays

    wanted = {name: (part.tags.shape, np.float32) for name, part in parts.items()}
    if system.startswith("attention"):
        wanted["audio_weight"] = wanted["public"]
    name, key = f"{system.replace(', ', '-').replace(' ', '_')}-{seed}", plumbing.fingerprint((), config, schedule)
    outputs = plumbing.cached_arrays(out, name, key, compute, wanted)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return outputs


# --- scores (Fayek 2020, Sec. 4.2, 5) --------------------------------------------------------------------------------

# hashes of the 527 sorted names, and of the ids, in AudioSet's class_labels_indices.csv (Fayek 2020, Sec. 4.1)
AUDIOSET = ("42fc9b3cd04b1a93", "78047b7ab87808d7")


def table_text(results, as_paper):
    """Tables 2 and 4 over runs, percent; mAP and mAUC are means over the classes (Fayek 2020, Sec. 4.2).

    results: for each run a dict of system -> scores; as_paper: the paper's figures stand below
    """
    names = ("mAP", "mAUC", "F1")
    lines = [f"{f'runs: {len(results)}':40}" + "".join(f"{name:16}" for name in names)]
    for system in results[0]:
        values = [[100 * result[system][name] for result in results] for name in names]
        lines.append(f"{system:40}" + "".join(f"{tagging.mean_and_deviation(of_score, 2):16}" for of_score in values))
        if as_paper:
            mean_ap, auc, _ = (TABLE_2 | TABLE_4)[system]
            lines.append(f"{'    the paper:':40}{mean_ap:<16.2f}{auc:.2f}")
    lines.append("F1: micro, with one threshold for all classes, the best on validation")
    if not as_paper:
        lines.append("Not AudioSet's 527 classes with resnet152: the figures cannot be compared with the paper's.")
    return "\n".join(line.rstrip() for line in lines)


def analyse(classes, part, runs, out, as_paper):
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
    plumbing.write_text(out / "analysis.tsv", "\n".join(lines))
    plots.plot_fusion(classes, audio, visual, fused, weights, out / "analysis.png")
    counts = [  # and the paper's, of 527
        ("classes with clips", np.isfinite(gain), "527"),
        ("vision ahead of sound", visual > audio, "117"),
        ("attention ahead of the better one", gain > 0, "439"),
        ("    by over 10 points", gain > 0.1, "91"),
        ("attention over 5 points behind it", gain < -0.05, "15"),
        ("    over 10 points", gain < -0.1, "3"),
        ("over half of the weight on sound", weights > 0.5, "most"),
        ("    nearly all of it", weights > 0.99, "over 110"),  # ours: 0.99 and 0.01 for "all" and "complete"
        ("90 % or more of the weight on vision", weights <= 0.1, "over 70"),
        ("    nearly all of it", weights < 0.01, "around 38"),
    ]
    paper = "    the paper: {}" if as_paper else ""
    return "\n".join(f"       {what:40}{np.sum(holds):4d}" + paper.format(count) for what, holds, count in counts)


# --- the command -----------------------------------------------------------------------------------------------------

log = plumbing.say


def run(args):
    """What the command does: read, train what is not there yet, score, print"""
    if args.analysis:
        plots.figure_class()  # without matplotlib, stop before the work
    device, root, out = tagging.begin(args, "fayek2020", log)
    precision = args.precision or ("bf16" if cpu.computes_bf16(device) else "fp32")
    stream = args.visual or ("resnet152" if args.data else "openl3")  # Fayek 2020, Sec. 3.2
    cache = plumbing.cache_folder(root, out.parent)
    classes, parts = tagging.load_tagging(root, log_mel_16_ms, stream, mean_vector, cache, log=log)
    if parts["training"].present.sum() < 2:
        raise InputError(f"{root}/visual/{stream}: only one training clip has vectors, batch norm needs two")
    log("       fusion does not train on clips without video; there its output is that of the audio network")
    log("       left out: the sequential co-supervision that is part of the paper's audio training (Sec. 3.1)")
    log(f"       the audio network computes in {precision}")

    audio = AUDIO if args.data else TOY_AUDIO
    audio = replace(audio, epochs=args.audio_epochs or audio.epochs, rates=tuple(args.audio_rates or audio.rates))
    config = {"visual": stream, "precision": precision, "audio schedule": asdict(audio)}
    config |= {"clips": tagging.identity(classes, parts), "with video": tagging.identity(classes, parts, True)}
    if tagging.read_report(out / "run.json", config) is None:
        out.mkdir(parents=True, exist_ok=True)
        plumbing.write_text(out / "run.json", json.dumps(config, indent=1))
    if device.type == "cpu":
        cpu.keep_freed_memory()
    fusion, runs, results = replace(FUSION, epochs=args.fusion_epochs), [], []
    for seed in range(args.seed, args.seed + (args.runs or 1)):
        log(f"seed {seed}")
        runs.append(complete_run(seed, parts, audio, fusion, args.ablations, out, config, device))
        tags = {name: part.tags for name, part in parts.items()}
        results.append({name: tagging.score(tags, outputs) for name, outputs in runs[-1].items()})
        plumbing.write_text(out / f"results-{seed}.json", plumbing.json_text(results[-1], indent=1))
    as_paper = stream == "resnet152" and plumbing.fingerprint((), classes) in AUDIOSET  # Fayek 2020, Sec. 3.2, 4.1
    text = table_text(results, as_paper)
    plumbing.write_text(out / "table.txt", text)
    log(text)
    if args.analysis:
        log(analyse(classes, parts["public"], runs, out, as_paper))


def number_above_0(text):
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def parse_arguments(arguments):
    what = "Train and score the two networks and the fusions of Fayek & Kumar 2020."
    parser = tagging.command_line("fayek2020", what, runs="1")
    add = parser.add_argument
    add("--ablations", action="store_true", help="the rows of Table 4 too")
    add("--analysis", action="store_true", help="Figures 2 to 4 too: analysis.tsv, analysis.png; needs matplotlib")
    add("--audio-epochs", type=plumbing.positive, metavar="N", help=f"default: {AUDIO.epochs}, toy {TOY_AUDIO.epochs}")
    add("--audio-rates", type=number_above_0, nargs="+", metavar="RATE", help="to choose from; default: 0.001 alone")
    add("--fusion-epochs", type=plumbing.positive, default=FUSION.epochs, metavar="N", help=f"default: {FUSION.epochs}")
    add("--precision", choices=("fp32", "bf16"), help="of the audio network; default: bf16 where the device has it")
    return parser.parse_args(arguments)


def main(arguments=None):
    args = parse_arguments(arguments)
    with plumbing.one_line_errors("the same command goes on after the last finished epoch of the audio network"):
        run(args)


if __name__ == "__main__":
    main()
