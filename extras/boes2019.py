"""The audiovisual transformer of Boes & Van hamme 2019: which classes sound in a clip that is heard and seen.

    python -m extras.boes2019                          the paper's best system on toy data, made on the spot
    python -m extras.boes2019 --data DIR               on the clips in DIR
    python -m extras.boes2019 --table [--data DIR]     Table 1: sixty systems, each some times over
    python -m extras.boes2019 --attention CLIP         Figures 4 to 6: what a clip's sound attends to in its picture

W. Boes, H. Van hamme. Audiovisual Transformer Architectures for Large-Scale Classification and Synchronization of
Weakly Labeled Audio Events. ACM Multimedia 2019. To be read beside it: its section stands at each piece. How to lay out
data, and what a run leaves: extras/README.md.

Shapes: B clips, 10 steps of 0.96 s, D numbers in a vector (128 for sound), C classes.
"""

import argparse
import copy
import functools
import glob
import json
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from extras import plumbing  # before torch, see there
from extras.plumbing import InputError, clock

import torch  # isort: skip
from torch import nn
from torch.nn import functional as F

import features
import metrics
from avsed import DROPOUT, WIDTH, Attention, softmax  # 0.1, 128, three heads of 128 each, as in 2022
from extras import embeddings, plots, tagging, toy

STEPS, STEP = 10, 0.96  # windows in a clip of 10 s, whose last 0.4 s fill none; seconds (Boes 2019, Sec. 3.2.1)
CENTRES = STEP * (np.arange(STEPS) + 0.5)  # 0.48, 1.44 ... 9.12 s: where the stills are taken (Boes 2019, Sec. 3.2.1)
PICTURES = np.rint(CENTRES * embeddings.FRAME_RATE).astype(int)  # ours: of a stream's 64 vectors, those nearest to them
BLOCKS = 3  # N, of the encoder and of the decoder (Boes 2019, Sec. 3.2.3)
IMBALANCE = 5  # Boes 2019, Sec. 3.2.2
BATCH = 40  # clips (Boes 2019, Sec. 3.2.2)
LAST = 7  # epochs, for early stopping and for the ensemble (Boes 2019, Sec. 3.2.8, 3.2.9)
THRESHOLDS = np.arange(1, 100) / 100  # ours: the grid
PAPER = dict(epochs=30, batches=300, runs=25)  # Boes 2019, Sec. 3.2.2, 4.1
BEST, DRAWN = "video-audio-video-mean-sigmoid", "video-audio-none-mean-softmax"  # Boes 2019, Sec. 4.1.4, 4.2.1
TOY = dict(epochs=10, batches=30, runs=2)  # ours: a run in half a minute on one core, the table in an hour


# --- the network (Sec. 2) ---------------------------------------------------------------------------------------------


def sigmoid(scores):
    """Scores of queries and keys (..., Q, M) -> weights that need not sum to one (Boes 2019, Sec. 2.2.5)"""
    return scores.sigmoid()


def normalized_sigmoid(scores, epsilon=1e-7):  # ours: the "very small" number
    """Scores (..., Q, M) -> weights that sum to one over the keys (Boes 2019, Sec. 2.2.5, Eq. 2)"""
    weights = scores.sigmoid()
    return weights / (weights.sum(-1, keepdim=True) + epsilon)


ATTENTION = {"softmax": softmax, "sigmoid": sigmoid, "normalized": normalized_sigmoid}  # Eq. 1, Sec. 2.2.5, Eq. 2
POOLING = {"mean": torch.mean, "max": torch.amax}  # Boes 2019, Sec. 2.2.4


def sinusoids():
    """Positional encodings (Boes 2019, Sec. 2.1.2): (10, 128), nothing to learn; sines and cosines take turns"""
    angles = torch.arange(STEPS)[:, None] / 10000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)


class Block(nn.Module):
    """Block of the encoder, or with `decoder` of the decoder (Boes 2019, Fig. 3): (B, 10, 128) -> (B, 10, 128)"""

    def __init__(self, normalise, decoder=False):
        super().__init__()
        self.attention = Attention(normalise=normalise)  # three heads (Boes 2019, Sec. 3.2.4); ours: 128 wide each
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.cross = Attention(normalise=normalise) if decoder else None
        self.cross_norm = nn.LayerNorm(WIDTH) if decoder else None
        # a ReLU layer, then a linear one, 128 units both, dropout after both (Boes 2019, Sec. 3.2.5, 3.2.6, 3.2.7)
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(WIDTH, WIDTH), nn.Dropout(DROPOUT)
        )
        self.feed_forward_norm = nn.LayerNorm(WIDTH)

    def forward(self, x, memory=None):
        # Boes 2019, Sec. 3.2.7: residual first, then norm; Attention itself drops out of its weights and its output
        x = self.attention_norm(x + self.attention(x, x))  # every step sees every other, nothing is masked (Sec. 2.1)
        if self.cross:
            x = self.cross_norm(x + self.cross(x, memory))  # queries from the second input, the rest from the first
        return self.feed_forward_norm(x + self.feed_forward(x))


class AudiovisualTransformer(nn.Module):
    """The audiovisual transformer (Boes 2019, Sec. 2.2, Fig. 3), any two inputs, also one and the same twice.

    n_classes: C; first_dim, second_dim: D of the vectors that enter the encoder and the decoder
    attention: "softmax", "sigmoid" or "normalized" (Sec. 2.2.5); pooling: "mean" or "max" (Sec. 2.2.4)
    positions: whether the first and the second input get positional encodings (Sec. 2.2.6)
    """

    def __init__(self, n_classes, first_dim, second_dim, attention="softmax", pooling="mean", positions=(False, False)):
        super().__init__()
        # Boes 2019, Sec. 2.2.2: linear maps to one width; dropout: Sec. 3.2.7
        self.first_input = nn.Sequential(nn.Linear(first_dim, WIDTH), nn.Dropout(DROPOUT))
        self.second_input = nn.Sequential(nn.Linear(second_dim, WIDTH), nn.Dropout(DROPOUT))
        self.register_buffer("sinusoids", sinusoids(), persistent=False)
        self.positions = positions
        self.encoder = nn.ModuleList(Block(ATTENTION[attention]) for _ in range(BLOCKS))
        self.decoder = nn.ModuleList(Block(ATTENTION[attention], decoder=True) for _ in range(BLOCKS))
        self.classifier = nn.Linear(WIDTH, n_classes)
        self.pool = POOLING[pooling]

    def forward(self, first, second, with_attention=False):
        """first (B, 10, first_dim), second (B, 10, second_dim) -> probabilities of the classes in the clip (B, C).

        with_attention: also the probabilities of the steps (B, 10, C) and the decoder's cross-attention, what each step
        of the second input attends to in the first: (B, 3 blocks, 3 heads, 10, 10)
        """
        memory, x, maps = self.first_input(first), self.second_input(second), []
        memory, x = (v + self.sinusoids if p else v for v, p in zip((memory, x), self.positions))
        for block in self.encoder:
            memory = block(memory)
        for block in self.decoder:
            if with_attention:
                maps.append(block.cross.attention_weights(block.attention_norm(x + block.attention(x, x)), memory))
            x = block(x, memory)
        steps = self.classifier(x).sigmoid()  # not softmax: classes sound together (Boes 2019, Sec. 2.2.3)
        # Boes 2019, Sec. 2.2.4, "frame-level scores" of a sigmoid layer; ours: the mean or maximum is of probabilities
        pooled = self.pool(steps, dim=1)
        return (pooled, steps, torch.stack(maps, 1)) if with_attention else pooled


# --- the data (Sec. 3.1, 3.2.1) ---------------------------------------------------------------------------------------


def vggish(path):
    """File of vectors that `extras.embeddings extract --sound vggish` wrote -> (10, 128) (Boes 2019, Sec. 3.2.1)"""
    try:
        vectors = plumbing.load_array(path)
        fits = vectors.shape == (STEPS, 128) and vectors.dtype.kind == "f" and np.isfinite(vectors).all()
    except (ValueError, AttributeError):  # the latter for an archive of arrays
        fits = False
    if not fits:
        raise InputError(f"{path}: must be an array of finite numbers, (10, 128); delete it and extract it again")
    return vectors.astype(np.float32)


def log_mel_moments(path):
    """Sound file -> (10, 128): ours, for want of VGGish: mean and deviation of each log-mel bin over 0.96 s"""
    log_mel = features.log_mel(features.load_audio(path)).numpy()  # (512, 64)
    step = (np.arange(len(log_mel)) * features.HOP / features.SAMPLE_RATE / STEP).astype(int)
    windows = [log_mel[step == k] for k in range(STEPS)]  # 49 or 50 frames each
    return np.stack([np.concatenate([w.mean(0), w.std(0)]) for w in windows])


def stills(vectors):
    """Vectors of a visual stream (64, D) -> (10, D), of the stills at the windows' centres (Boes 2019, Sec. 3.2.1)"""
    return vectors[PICTURES]


@dataclass(eq=False)
class Data:
    """Training, validation and public clips, and what their inputs are standardised with"""

    classes: list  # C sorted names
    parts: dict  # name -> tagging.Part: audio (N, 10, 128), video (N, 10, D)
    statistics: dict  # "audio", "video" -> mean, std of each dimension over the training clips, (2, D) float32

    def clips(self, name, config):
        """Indices of a part's clips to be used: those with video (Boes 2019, Sec. 3.1), or all of them"""
        part = self.parts[name]
        return np.arange(len(part.filenames)) if config.all_clips else np.flatnonzero(part.present)

    @functools.cache  # the runs of a table are many
    def identity(self, all_clips):
        """Hash of the clips that are used, and their labels"""
        masks = [(part, part.present | all_clips) for part in self.parts.values()]
        used = [(np.array(part.filenames)[mask].tolist(), part.tags[mask].tolist()) for part, mask in masks]
        return plumbing.fingerprint((), self.classes, used)

    def batch(self, name, config, clips, device):
        """-> first and second input (B, 10, D) of a part's clips, standardised, and their tags (B, C) float"""
        part, inputs = self.parts[name], []
        for modality in (config.first, config.second):
            mean, std = self.statistics[modality]  # ours: standardised by dimension, like the 2022 system's inputs
            inputs.append(torch.from_numpy((getattr(part, modality)[clips] - mean) / std).to(device))
        return *inputs, torch.from_numpy(part.tags[clips].astype(np.float32)).to(device)


def load_data(root, audio, visual, cache, log=print):
    """Folder as in extras/tagging.py -> Data. audio: "vggish" or "log-mel"; visual: name of a stream, None for none"""
    hear, sound = (vggish, "sound/vggish") if audio == "vggish" else (log_mel_moments, "audio")
    classes, parts = tagging.load_tagging(root, hear, visual, stills, cache, sound, log)
    train = parts["training"]
    every = np.ones((len(train.filenames), STEPS), bool)
    moments = {"audio": features.mean_and_std([train.audio], [every])}
    if visual:
        moments["video"] = features.mean_and_std([train.video], [every & train.present[:, None]])
    return Data(classes, parts, moments)


# --- training (Sec. 3.2.2, 3.2.8, 3.2.9) ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """One run; as it stands, the best system of the paper (Boes 2019, Sec. 4.1.4)"""

    first: str = "video"  # modality that enters the encoder
    second: str = "audio"  # modality that enters the decoder
    positions: tuple = ("video",)  # modalities with positional encodings
    pooling: str = "mean"
    attention: str = "sigmoid"
    all_clips: bool = False  # also those without video; needs audio alone
    epochs: int = PAPER["epochs"]
    batches: int = PAPER["batches"]
    seed: int = 0

    @property
    def system(self):
        return "-".join((self.first, self.second, "+".join(self.positions) or "none", self.pooling, self.attention))

    @property
    def run(self):
        return f"{self.system}{'-all' * self.all_clips}-{self.seed}"


def draw_clips(rng, tags, n):
    """n of N clips with tags (N, C): for each a class is drawn, then one of its clips (Boes 2019, Sec. 3.2.2)"""
    # ours: a class is as likely as its number of clips says, but at most 5 times as likely as the rarest one
    counts = tags.sum(0)
    chances = np.minimum(counts, IMBALANCE * counts[counts > 0].min())
    classes = rng.choice(len(counts), n, p=chances / chances.sum())
    return np.array([rng.choice(np.flatnonzero(tags[:, c])) for c in classes])


def cross_entropy(probabilities, tags):
    """Binary cross entropy (Boes 2019, Sec. 3.2.8); ours: finite also where a probability is 0 or 1"""
    return F.binary_cross_entropy(probabilities.clamp(1e-7, 1 - 1e-7), tags)


def should_stop(losses):
    """Is the validation loss of the last epoch higher than all those of the seven before? (Boes 2019, Sec. 3.2.8)"""
    return len(losses) > LAST and losses[-1] > max(losses[-1 - LAST : -1])


def make_network(config, data):
    dims = [data.statistics[modality].shape[1] for modality in (config.first, config.second)]
    positions = config.first in config.positions, config.second in config.positions
    return AudiovisualTransformer(len(data.classes), *dims, config.attention, config.pooling, positions)


def train(config, data, device, log):
    """-> the network's states after each of the last seven epochs, the validation losses of all epochs"""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    # only this learns: the vectors stay fixed (Boes 2019, Sec. 4.1); ours: PyTorch's initial values
    network = make_network(config, data).to(device)
    # Boes 2019, Sec. 3.2.8: the standard settings of TensorFlow
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    clips, started = data.clips("training", config), time.monotonic()
    tags, losses, states = data.parts["training"].tags[clips], [], deque(maxlen=LAST)
    for epoch in range(1, config.epochs + 1):
        network.train()
        for _ in range(config.batches):
            drawn = clips[draw_clips(rng, tags, BATCH)]
            first, second, targets = data.batch("training", config, drawn, device)
            probabilities = network(first, second)
            if not probabilities.isfinite().all():
                raise FloatingPointError(f"{config.run}: no finite numbers in epoch {epoch}; try another --seed")
            loss = cross_entropy(probabilities, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        probabilities, truth = predict(network, "validation", config, data, device)
        losses.append(cross_entropy(probabilities, truth).item())
        states.append(copy.deepcopy(network.state_dict()))
        left = clock((time.monotonic() - started) / epoch * (config.epochs - epoch))
        terms = f"last batch {loss.item():.4f} | validation {losses[-1]:.4f}"
        log(f"epoch  {epoch}/{config.epochs} | {terms} | {left} left")
        if should_stop(losses):
            log("       early stop: the validation loss is above those of the seven epochs before")
            break
    return list(states), losses


@torch.inference_mode()
def predict(network, name, config, data, device):
    """-> probabilities and tags of a part's clips, (N, C) tensors"""
    network.eval()
    clips, outputs = data.clips(name, config), []
    for begin in range(0, len(clips), 200):
        first, second, tags = data.batch(name, config, clips[begin : begin + 200], device)
        outputs.append((network(first, second).cpu(), tags.cpu()))
    return tuple(map(torch.cat, zip(*outputs)))


def ensemble(states, name, config, data, device):
    """Probabilities averaged over the saved states (Boes 2019, Sec. 3.2.9), and tags: (N, C) arrays"""
    network, total = make_network(config, data).to(device), 0
    for state in states:
        network.load_state_dict(state)
        probabilities, tags = predict(network, name, config, data, device)
        total = total + probabilities
    return (total / len(states)).numpy(), tags.numpy() > 0


# --- scores (Sec. 3.2.10, 4.1) ----------------------------------------------------------------------------------------


def tune(tags, probabilities):
    """The one threshold for all classes with the best micro F1 (Boes 2019, Sec. 3.2.10); ours: of equals next to 0.5"""
    return max(THRESHOLDS, key=lambda t: (metrics.clip_f1(tags, probabilities > t).micro, -abs(t - 0.5)))


def complete_run(config, data, inputs, out, device, log, keep=False):
    """Train and score, unless that is done -> report: a dict with micro F1 on public. keep: keep the states too.

    inputs: "audio", "video" -> what stands for it, such as vggish and vgg16
    """
    report = out / f"{config.run}.json"
    wanted = {"config": asdict(config), "inputs": [inputs[config.first], inputs[config.second]]}
    wanted = json.loads(json.dumps(wanted | {"data": data.identity(config.all_clips)}))
    if report.exists():
        try:
            found = json.loads(report.read_text(encoding="utf-8"))
            differs = [key for key in wanted if found[key] != wanted[key]]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{report}: was not written by this program; delete it") from None
        if differs:
            raise InputError(f"{report}: is of a run with another {' and '.join(differs)}; name another --out")
        if not keep or report.with_suffix(".pt").exists():
            return found
    started = time.monotonic()
    states, losses = train(config, data, device, log)
    probabilities, tags = ensemble(states, "validation", config, data, device)
    threshold = tune(tags, probabilities)
    probabilities, tags = ensemble(states, "public", config, data, device)
    f1 = metrics.clip_f1(tags, probabilities > threshold).micro
    mean_ap = tagging.mean_average_precision(tags, probabilities)  # not in the paper: to compare with Fayek 2020
    found = {**wanted, "f1": f1, "mAP": mean_ap, "threshold": threshold, "losses": losses}
    found["seconds"] = time.monotonic() - started
    out.mkdir(parents=True, exist_ok=True)
    report.with_suffix(".pt").unlink(missing_ok=True)  # it may be another run's
    if keep:
        plumbing.save_tensors(report.with_suffix(".pt"), states)
    plumbing.write_text(report, json.dumps(found))
    return found


# Boes 2019, Table 1: modalities of first and second input, those with positional encodings, F1 for mean pooling with
# softmax, sigmoid and normalized sigmoid attention, then for max pooling; audio alone: then all again, on all clips
PAPER_TABLE = """
audio video audio+video 66.1 66.0 66.3 66.2 66.3 66.4
audio video video       69.5 69.8 69.4 69.3 69.5 69.4
audio video none        69.2 69.4 69.3 69.1 69.3 68.9
video audio audio+video 67.7 67.5 67.8 67.3 67.1 67.6
video audio video       69.7 70.1 69.7 69.7 69.8 69.7
video audio none        69.6 69.8 69.5 69.7 69.7 69.7
video video video       59.1 59.3 59.3 59.0 59.1 59.0
video video none        58.8 59.1 59.0 58.8 58.8 58.8
audio audio audio       57.0 56.9 56.8 56.2 56.4 56.4 57.0 57.0 57.1 56.4 56.7 56.7
audio audio none        58.6 59.1 58.8 58.5 58.9 58.7 59.3 59.5 59.3 59.0 59.4 59.0"""
DCASE_2017 = {"training": 51172, "validation": 488, "public": 1103}  # clips listed (Boes 2019, Sec. 3.1)


def table_rows(base, without_video=False):
    """Rows of Table 1: (configurations of the six cells, the paper's figures); audio alone once more on all clips"""
    for line in PAPER_TABLE.strip().splitlines():
        first, second, positions, *figures = line.split()
        positions = tuple(m for m in positions.split("+") if m != "none")
        kinds = product(POOLING, ATTENTION)
        row = [replace(base, first=first, second=second, positions=positions, pooling=p, attention=a) for p, a in kinds]
        yield row, figures[:6]
        if without_video and (first, second) == ("audio", "audio"):
            yield [replace(config, all_clips=True) for config in row], figures[6:]


def make_table(args, base, data, inputs, out, device, log):
    """Do the runs of Table 1 that are missing, then write and print the table"""
    rows = list(table_rows(base, any(not part.present.all() for part in data.parts.values())))
    seeds, started, n_done = range(args.seed, args.seed + args.runs), time.monotonic(), 0
    todo = [replace(config, seed=seed) for seed in seeds for row, _ in rows for config in row]
    f1 = {}
    for number, config in enumerate(todo, 1):
        n_done += not (out / f"{config.run}.json").exists()
        f1[config] = complete_run(config, data, inputs, out, device, log=lambda line: None)["f1"]
        left = clock((time.monotonic() - started) / max(n_done, 1) * (len(todo) - number))
        log(f"table  {number}/{len(todo)} | {config.run} | micro F1 {100 * f1[config]:.2f} | {left} left")

    real = {name: part.listed for name, part in data.parts.items()} == DCASE_2017
    lines = [f"{f'Table 1, runs: {args.runs}':32}{'mean pooling':36}{'max pooling':36}"]
    lines.append(f"{'first  second  positions':32}" + "".join(f"{name:12}" for name in [*ATTENTION] * 2))
    for row, figures in rows:
        label = f"{row[0].first:6} {row[0].second:7} {'+'.join(row[0].positions) or 'none'}"
        lines.append(f"{label + ' (all)' * row[0].all_clips:32}")
        for config in row:
            values = [100 * f1[replace(config, seed=seed)] for seed in seeds]
            spread = f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
            lines[-1] += f"{f'{statistics.mean(values):.1f}{spread}':12}"
        if real:
            lines.append(f"{'       the paper:':32}" + "".join(f"{figure:12}" for figure in figures))
    if not real:
        lines.append("These are not the data of DCASE 2017 task 4: the figures cannot be compared with the paper's.")
    text = "\n".join(line.rstrip() for line in lines)
    log(text)
    plumbing.write_text(out / "table_1.txt", text)


# --- attention (Sec. 4.2) ---------------------------------------------------------------------------------------------


def find_clip(args, config, data):
    """The clip whose picture is wanted -> name of its part, its index there, the file of its sound"""
    clip = Path(args.attention).name
    places = [(name, part.filenames.index(clip)) for name, part in data.parts.items() if clip in part.filenames]
    if not places:
        raise InputError(f"--attention {clip}: no clip of this name is listed and has its sound in {args.data}")
    [(name, i), *_] = places
    if i not in data.clips(name, config):
        raise InputError(f"--attention {clip}: has no picture, and the network is one that looks; choose another clip")
    sound = next(Path(args.data, "audio").rglob(glob.escape(clip)), None)
    if sound is None:
        raise InputError(f"{args.data}/audio: {clip} is not there; the picture shows the clip's sound too")
    return name, i, sound


@torch.inference_mode()
def draw_attention(args, config, data, place, out, device, log):
    """Write the picture of one clip: what one step of the second input attends to in the first (Sec. 4.2, Fig. 4-7)"""
    name, i, sound = place
    network, path = make_network(config, data).to(device).eval(), out / f"{config.run}.pt"
    try:
        states = plumbing.load_tensors(path)
        network.load_state_dict(states[-1])  # ours: of the ensemble the last, since maps of several would blur
    except plumbing.FOREIGN:
        raise InputError(f"{path}: does not hold the states of this run; delete it, and it is trained again") from None
    first, second, _ = data.batch(name, config, np.array([i]), device)
    pooled, steps, maps = (v[0].cpu() for v in network(first, second, with_attention=True))
    likeliest = int(pooled.argmax())
    query = int(steps[:, likeliest].argmax()) if args.step is None else args.step  # ours: where its class is surest
    shown = ()
    if video := embeddings.find_video(Path(args.data, "video"), sound.name):
        frames = embeddings.read_frames(*video)
        shown = frames[[min(k, len(frames) - 1) for k in PICTURES]]
    path = out / f"{sound.stem}-{config.run}-step{query}.png"
    log_mel = features.log_mel(features.load_audio(sound)).numpy()
    plots.plot_synchronization(path, log_mel, shown, maps[-1].numpy(), query, config.second, config.first, STEP)
    what = f"{data.classes[likeliest]} {steps[query, likeliest]:.2f}"
    log(f"       {sound.name}, step {query} of {STEPS}, {what}: {path}")


# --- the command ------------------------------------------------------------------------------------------------------


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(prog="python -m extras.boes2019", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", metavar="DIR", help="data set in the layout of extras/README.md; default: toy data")
    add("--audio", choices=("vggish", "log-mel"), help="what is heard: DIR/sound/vggish, or mean and deviation of our "
        "log-mel; default: the first where there is one")
    add("--visual", metavar="NAME", help="what is seen: DIR/visual/NAME; default: vgg16, on toy data openl3")
    systems = {config.system: config for row, _ in table_rows(Config()) for config in row}
    add("--system", choices=systems, metavar="FIRST-SECOND-POSITIONS-POOLING-ATTENTION", help="inputs of encoder and "
        f"decoder, those with positions, ...; default: {BEST}, with --attention {DRAWN}; another: audio-video-"
        "audio+video-max-normalized")
    add("--table", action="store_true", help="all systems of Table 1; finished runs are not done again")
    add("--runs", type=int, help=f"of each system of the table; default: {PAPER['runs']}, on toy data {TOY['runs']}")
    add("--attention", metavar="CLIP", help="a picture of what a step of this clip attends to; needs matplotlib")
    add("--step", type=int, choices=range(STEPS), metavar="0-9", help="default: where the likeliest class is surest")
    add("--epochs", type=int, help=f"at most; default: {PAPER['epochs']}, on toy data {TOY['epochs']}")
    add("--batches", type=int, help=f"of 40 clips per epoch; default: {PAPER['batches']}, on toy data {TOY['batches']}")
    add("--seed", type=int, default=0, help="of the first run; default: 0")
    add("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    add("--out", metavar="DIR", help="folder of runs, table, pictures and cache; default: runs/boes2019-DATA")
    args = parser.parse_args(arguments)
    if args.data == "" or Path(args.visual or "x").name != (args.visual or "x") or args.visual == "..":
        parser.error("--data is the name of a folder, and --visual of one in DIR/visual, without slashes")
    if args.table and (args.system or args.attention) or args.runs and not args.table:
        parser.error("--table does all systems, without --system and --attention; --runs is for --table alone")
    if args.step is not None and not args.attention:
        parser.error("--step is of the clip that --attention names")
    for name, value in (PAPER if args.data else TOY).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.epochs, args.batches, args.runs) < 1 or not 0 <= args.seed < 2**63 - args.runs:
        parser.error("--epochs, --batches and --runs must be at least 1, and --seed must be 0 or more, below 2 ** 63")
    system = systems[args.system or (DRAWN if args.attention else BEST)]
    args.config = replace(system, epochs=args.epochs, batches=args.batches, seed=args.seed)
    return args  # fmt: skip


def run(args, log):
    """What the command does: load, train, score, print"""
    device, config = plumbing.choose_device(args.device), args.config
    if args.attention:
        plots.figure_class()  # without matplotlib, stop before the work
    visual = args.visual or ("vgg16" if args.data else "openl3")
    if not args.table and "video" not in (config.first, config.second):
        visual, config = None, replace(config, all_clips=True)
    log(f"torch {torch.__version__} | {device.type}, {torch.get_num_threads()} threads | seed {args.seed}")
    log(f"data   {args.data or 'data/toy-tagging'}")
    if not args.data:
        args.data = "data/toy-tagging"
        toy.make_toy(args.data, kind="tagging")
        log("       TOY DATA: these scores are not comparable with the paper.")
    root, out = Path(args.data), Path(args.out or f"runs/boes2019-{Path(args.data).resolve().name}")
    audio = args.audio or ("vggish" if (root / "sound/vggish").is_dir() else "log-mel")
    data = load_data(root, audio, visual, out / "cache", log)
    inputs = {"audio": audio, "video": visual}
    if args.table:
        make_table(args, config, data, inputs, out, device, log)
        return
    place = find_clip(args, config, data) if args.attention else None  # where there is none, stop before the work
    n_parameters = sum(p.numel() for p in make_network(config, data).parameters())
    log(f"model  {config.system} | {audio} {visual or ''} | {n_parameters / 1e6:.2f} M parameters")
    report = complete_run(config, data, inputs, out, device, log, keep=True)
    scores = f"micro F1 {100 * report['f1']:.2f} | mAP {100 * report['mAP']:.2f}"
    tuned = f"threshold {report['threshold']}, the best on validation"
    log(f"public {scores} | {tuned} | {len(report['losses'])} epochs in {clock(report['seconds'])}")
    if place:
        draw_attention(args, config, data, place, out, device, log)


def main(arguments=None):
    args = parse_arguments(arguments)
    with plumbing.one_line_errors("the same command goes on after the last finished run"):
        run(args, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
