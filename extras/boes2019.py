"""The audiovisual transformer of Boes & Van hamme 2019: which classes sound in a clip that is heard and seen.

    python -m extras.boes2019                          the paper's best system on toy data, made on the spot
    python -m extras.boes2019 --data DIR               on the clips in DIR
    python -m extras.boes2019 --table [--data DIR]     Table 1: sixty systems, each some times over
    python -m extras.boes2019 --attention CLIP         Figures 4 to 6: what a clip's sound attends to in its picture

W. Boes, H. Van hamme. Audiovisual Transformer Architectures for Large-Scale Classification and Synchronization of
Weakly Labeled Audio Events. ACM Multimedia 2019. To be read beside it: its section stands at each piece. How to lay out
data, and what a run leaves: extras/README.md. Clips and scores, which it shares with fayek2020.py: tagging.py.

Shapes: B clips, 10 steps of 0.96 s, D numbers in a vector (128 for sound, 4096 for VGG16's stills), C classes (17).
"""

import copy
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from itertools import islice, product
from pathlib import Path

import numpy as np

from extras import plumbing  # before torch, see there
from extras.plumbing import InputError, clock

import torch  # isort: skip
from torch import nn
from torch.nn import functional as F

import features
from avsed import DROPOUT, WIDTH, Attention, softmax  # 0.1, 128, three heads of 128 each, as in 2022
from extras import embeddings, plots, tagging

STEPS, STEP = 10, 0.96  # windows in a clip of 10 s, whose last 0.4 s fill none; seconds (Boes 2019, Sec. 3.2.1)
CENTRES = STEP * (np.arange(STEPS) + 0.5)  # 0.48, 1.44 ... 9.12 s: where the stills are taken (Boes 2019, Sec. 3.2.1)
PICTURES = np.rint(CENTRES * embeddings.FRAME_RATE).astype(int)  # ours: of a stream's 64 vectors, those nearest to them
BLOCKS = 3  # N, of the encoder and of the decoder (Boes 2019, Sec. 3.2.3)
IMBALANCE = 5  # at most, between the classes that are drawn (Boes 2019, Sec. 3.2.2)
BATCH = 40  # clips (Boes 2019, Sec. 3.2.2)
LAST = 7  # epochs, for early stopping and for the ensemble (Boes 2019, Sec. 3.2.8, 3.2.9)
PAPER = dict(epochs=30, batches=300, runs=25, sound="vggish", visual="vgg16")  # Boes 2019, Sec. 3.2.1, 3.2.2, 4.1
TOY = dict(epochs=10, batches=30, runs=2, sound="log-mel", visual="openl3")  # ours: a run in half a minute on one core
BEST, DRAWN = "video-audio-video-mean-sigmoid", "video-audio-none-mean-softmax"  # Boes 2019, Sec. 4.1.4, 4.2.1


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

    def forward(self, first, second):
        """first (B, 10, first_dim), second (B, 10, second_dim) -> probabilities of the classes in the clip (B, C)"""
        memory, x = self.first_input(first), self.second_input(second)
        memory, x = (v + self.sinusoids if p else v for v, p in zip((memory, x), self.positions))
        for block in self.encoder:
            memory = block(memory)
        for block in self.decoder:
            x = block(x, memory)
        steps = self.classifier(x).sigmoid()  # (B, 10, C); no softmax: classes sound together (Boes 2019, Sec. 2.2.3)
        # Boes 2019, Sec. 2.2.4, "frame-level scores" of a sigmoid layer; ours: the mean or maximum is of probabilities
        return self.pool(steps, dim=1)


# --- a system and its clips (Table 1, Sec. 3.1, 3.2.1) ----------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """One run; as it stands, the best system of the paper (Boes 2019, Sec. 4.1.4)"""

    first: str = "video"  # modality that enters the encoder
    second: str = "audio"  # modality that enters the decoder
    positions: tuple = ("video",)  # modalities with positional encodings
    pooling: str = "mean"
    attention: str = "sigmoid"
    all_clips: bool = False  # or only those with video, 95 % of the paper's (Boes 2019, Sec. 3.1)? needs audio alone
    epochs: int = PAPER["epochs"]
    batches: int = PAPER["batches"]
    seed: int = 0
    sound: str = PAPER["sound"]  # names of the folders in DIR/sound and DIR/visual
    visual: str = PAPER["visual"]

    @property
    def system(self):
        return "-".join((self.first, self.second, "+".join(self.positions) or "none", self.pooling, self.attention))

    @property
    def run(self):
        return f"{self.system}{'-all' * self.all_clips}-{self.seed}"


def read_sound(path):
    """DIR/sound/NAME/CLIP.npy, as `extras.embeddings extract --sound` writes it -> (10, 128) (Boes 2019, Sec. 3.2.1)"""
    try:
        vectors = plumbing.load_array(path)
        fits = vectors.shape == (STEPS, 128) and vectors.dtype.kind == "f" and plumbing.usable(vectors)
    except (ValueError, AttributeError):  # the latter for an archive of arrays
        fits = False
    if not fits:
        raise InputError(f"{path}: must be an array of finite numbers, (10, 128); delete it and extract it again")
    return vectors.astype(np.float32)


def stills(vectors):
    """Vectors of a visual stream (64, D) -> (10, D), of the stills at the windows' centres (Boes 2019, Sec. 3.2.1)"""
    return vectors[PICTURES]


def make_network(config, parts):
    training = parts["training"]
    dims = [training.statistics[modality].shape[1] for modality in (config.first, config.second)]
    positions = config.first in config.positions, config.second in config.positions
    return AudiovisualTransformer(training.tags.shape[1], *dims, config.attention, config.pooling, positions)


def both_inputs(part, clips, config, device):
    """First and second input of some clips of a part: (B, 10, D) each"""
    return [part.inputs(modality, clips, device) for modality in (config.first, config.second)]


# --- training (Sec. 3.2.2, 3.2.8, 3.2.9) ------------------------------------------------------------------------------


def draw_clips(rng, tags):
    """Yield indices of clips with tags (N, C) without end: for each a class, then the next clip of this class.

    As cited (Boes 2019, Sec. 3.2.2, its reference 20: Xu et al. 2017, their published code): a class has one to five
    places in the list of classes, one for each thousand of its clips that is begun.
    """
    counts = tags.sum(0)
    places = np.where(counts > 0, np.minimum(1 + counts // 1000, IMBALANCE), 0)
    clips_of = [shuffled(rng, np.flatnonzero(of_class)) for of_class in tags.T]
    for c in shuffled(rng, np.repeat(np.arange(len(places)), places)):
        yield next(clips_of[c])


def shuffled(rng, items):
    """All items in random order, then all in another order, without end"""
    while True:
        yield from rng.permutation(items)


def cross_entropy(probabilities, tags):
    """Binary cross entropy (Boes 2019, Sec. 3.2.8); ours: finite also where a probability is 0 or 1"""
    return F.binary_cross_entropy(probabilities.clamp(1e-7, 1 - 1e-7), torch.from_numpy(tags).to(probabilities))


def should_stop(losses):
    """Is the validation loss higher than after all of the seven epochs before? (Boes 2019, Sec. 3.2.8)

    ours: it takes seven epochs before, so the eighth is the first that may be the last
    """
    return len(losses) > LAST and losses[-1] > max(losses[-1 - LAST : -1])


def train(config, parts, device, log):
    """-> the network's states after each of the last seven epochs, the validation losses of all epochs"""
    torch.manual_seed(config.seed)
    # only this learns: the vectors stay fixed (Boes 2019, Sec. 4.1); ours: PyTorch's initial values
    network = make_network(config, parts).to(device)
    # Boes 2019, Sec. 3.2.8: the standard settings of TensorFlow
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    training, validation = parts["training"], parts["validation"]
    clips, validated = (part.clips(with_video=not config.all_clips) for part in (training, validation))
    draws = draw_clips(np.random.default_rng(config.seed), training.tags[clips])
    losses, states, started = [], deque(maxlen=LAST), time.monotonic()
    for epoch in range(1, config.epochs + 1):
        network.train()
        for _ in range(config.batches):
            drawn = clips[list(islice(draws, BATCH))]
            probabilities = network(*both_inputs(training, drawn, config, device))
            if not probabilities.isfinite().all():
                raise FloatingPointError(f"{config.run}: no finite numbers in epoch {epoch}; try another --seed")
            loss = cross_entropy(probabilities, training.tags[drawn])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(cross_entropy(predict(network, validation, config, device), validation.tags[validated]).item())
        states.append(copy.deepcopy(network.state_dict()))
        left = clock((time.monotonic() - started) / epoch * (config.epochs - epoch))
        terms = f"last batch {loss.item():.4f} | validation {losses[-1]:.4f}"
        log(f"epoch  {epoch}/{config.epochs} | {terms} | {left} left")
        if should_stop(losses):
            log("       early stop: the validation loss is above those of the seven epochs before")
            break
    return list(states), losses


@torch.inference_mode()
def predict(network, part, config, device, size=200):
    """Probabilities of a part's clips, all or those with video: (N, C) tensor"""
    network.eval()
    clips = part.clips(with_video=not config.all_clips)
    chunks = [clips[begin : begin + size] for begin in range(0, len(clips), size)]
    return torch.cat([network(*both_inputs(part, chunk, config, device)).cpu() for chunk in chunks])


def ensemble(states, part, config, parts, device):
    """Probabilities of a part's clips, averaged over the saved states (Boes 2019, Sec. 3.2.9): (N, C)"""
    network, total = make_network(config, parts).to(device), 0
    for state in states:
        network.load_state_dict(state)
        total = total + predict(network, part, config, device)
    return (total / len(states)).numpy()


def complete_run(config, parts, data, out, device, log, keep=False):
    """Train and score, unless that is done -> report: a dict with micro F1 on public. keep: keep the states too.

    data: hashes of the clips with video and of all, by config.all_clips
    """
    path = out / f"{config.run}.json"
    wanted = asdict(config) | {"data": data[config.all_clips]}
    form = dict.fromkeys(("F1", "mAP", "mAUC", "threshold", "seconds"), 0.0) | {"losses": []}
    report = tagging.read_report(path, wanted, form)
    if report and (path.with_suffix(".pt").exists() or not keep):
        return report
    started = time.monotonic()
    states, losses = train(config, parts, device, log)
    tags = {name: part.tags[part.clips(with_video=not config.all_clips)] for name, part in parts.items()}
    averaged = {name: ensemble(states, parts[name], config, parts, device) for name in ("validation", "public")}
    # micro F1 with one threshold for all classes (Boes 2019, Sec. 3.2.10, 4.1); mAP, mAUC: to compare with Fayek 2020
    scores = tagging.score(tags, averaged)
    report = {**wanted, **scores, "losses": losses, "seconds": time.monotonic() - started}
    out.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".pt").unlink(missing_ok=True)  # it may be another run's
    if keep:
        plumbing.save_tensors(path.with_suffix(".pt"), states)
    plumbing.write_text(path, plumbing.json_text(report))
    return report


# --- Table 1 (Sec. 4.1) -----------------------------------------------------------------------------------------------

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


def make_table(args, parts, data, out, device, log):
    """Do the runs of Table 1 that are missing, then write and print the table"""
    rows = list(table_rows(args.config, any(not part.present.all() for part in parts.values())))
    seeds, started, n_done = range(args.seed, args.seed + args.runs), time.monotonic(), 0
    todo = [replace(config, seed=seed) for seed in seeds for row, _ in rows for config in row]
    f1 = {}
    for number, config in enumerate(todo, 1):
        n_done += not (out / f"{config.run}.json").exists()
        f1[config] = complete_run(config, parts, data, out, device, log=lambda line: None)["F1"]
        left = clock((time.monotonic() - started) / max(n_done, 1) * (len(todo) - number))
        log(f"table  {number}/{len(todo)} | {config.run} | micro F1 {100 * f1[config]:.2f} | {left} left")

    inputs, listed = (args.sound, args.visual), {name: part.listed for name, part in parts.items()}
    real = inputs == (PAPER["sound"], PAPER["visual"]) and listed == DCASE_2017
    lines = [f"{f'Table 1, runs: {args.runs}':32}{'mean pooling':36}{'max pooling':36}"]
    lines.append(f"{'first  second  positions':32}" + "".join(f"{name:12}" for name in [*ATTENTION] * 2))
    for row, figures in rows:
        label = f"{row[0].first:6} {row[0].second:7} {'+'.join(row[0].positions) or 'none'}"
        values = [[100 * f1[replace(config, seed=seed)] for seed in seeds] for config in row]
        cells = "".join(f"{tagging.mean_and_deviation(of_cell, 1):12}" for of_cell in values)
        lines.append(f"{label + ' (all)' * row[0].all_clips:32}" + cells)
        if real:
            lines.append(f"{'       the paper:':32}" + "".join(f"{figure:12}" for figure in figures))
    if not real:
        lines.append("Not DCASE 2017 task 4 with vggish and vgg16: the figures cannot be compared with the paper's.")
    text = "\n".join(line.rstrip() for line in lines)
    log(text)
    plumbing.write_text(out / "table_1.txt", text)


# --- attention (Sec. 4.2) ---------------------------------------------------------------------------------------------


def find_clip(args, parts):
    """The clip whose picture is wanted -> its part, its index there"""
    clip = Path(args.attention).name
    places = [(part, part.filenames.index(clip)) for part in parts.values() if clip in part.filenames]
    if not places:
        raise InputError(f"--attention {clip}: no clip of this name is listed and has its sound in {args.data}")
    [(part, i), *_] = places
    if not (part.present[i] or args.config.all_clips):
        raise InputError(f"--attention {clip}: has no picture, and the network is one that looks; choose another clip")
    if not part.paths[i].is_file():
        raise InputError(f"{part.paths[i]}: is not there; the picture shows the clip's sound too")
    return part, i


@torch.inference_mode()
def attention_of(network, first, second):
    """-> class probabilities of each step (B, 10, C), and what it attends to in the first input (B, 3 heads, 10, 10):
    the cross-attention of the last decoder block (Boes 2019, Sec. 4.2.1)
    """
    seen = {}

    def keep_steps(layer, inputs, logits):
        seen["steps"] = logits.sigmoid()

    def keep_maps(cross, inputs, output):
        seen["maps"] = cross.attention_weights(*inputs)

    cross = network.decoder[-1].cross
    with network.classifier.register_forward_hook(keep_steps), cross.register_forward_hook(keep_maps):
        network(first, second)
    return seen["steps"], seen["maps"]


def draw_attention(args, classes, parts, place, out, device, log):
    """Write the picture of one clip: what one step of the second input attends to in the first (Sec. 4.2, Fig. 4-7)"""
    (part, i), config = place, args.config
    sound = part.paths[i]
    network, path = make_network(config, parts).to(device).eval(), out / f"{config.run}.pt"
    with plumbing.foreign(path, "does not hold the states of this run; delete it, and it is trained again"):
        state = plumbing.load_tensors(path)[-1]  # ours: the last one, maps of several would blur
        if not plumbing.same_form(state, network.state_dict()):
            raise ValueError("another form")
        network.load_state_dict(state)
    steps, maps = (v[0].cpu() for v in attention_of(network, *both_inputs(part, np.array([i]), config, device)))
    likeliest = int(POOLING[config.pooling](steps, dim=0).argmax())
    query = int(steps[:, likeliest].argmax()) if args.step is None else args.step  # ours: where its class is surest
    shown = ()
    if video := embeddings.find_video(Path(args.data, "video"), sound.name):
        frames = embeddings.read_frames(*video)
        shown = frames[[min(k, len(frames) - 1) for k in PICTURES]]
    path = out / f"{sound.stem}-{config.run}-step{query}.png"
    log_mel = features.log_mel(features.load_audio(sound)).numpy()
    plots.plot_synchronization(log_mel, shown, maps.numpy(), query, config.second, config.first, STEP, path)
    what = f"{classes[likeliest]} {steps[query, likeliest]:.2f}"
    log(f"       {sound.name}, step {query} of {STEPS}, {what}: {path}")


# --- the command ------------------------------------------------------------------------------------------------------


def parse_arguments(arguments):
    runs = f"with --table {PAPER['runs']}, on toy data {TOY['runs']}"
    parser = tagging.command_line("boes2019", __doc__.split("\n")[0], runs)
    add, systems = parser.add_argument, {config.system: config for row, _ in table_rows(Config()) for config in row}
    add("--sound", type=plumbing.folder_name, metavar="NAME", help="what is heard: a folder in DIR/sound; default: "
        "vggish, on toy data log-mel")
    add("--system", choices=systems, metavar="FIRST-SECOND-POSITIONS-POOLING-ATTENTION", help="inputs of encoder and "
        f"decoder, those with positions, ...; default: {BEST}, with --attention {DRAWN}; another: audio-video-"
        "audio+video-max-normalized")
    add("--table", action="store_true", help="all systems of Table 1; finished runs are not done again")
    add("--attention", metavar="CLIP", help="a picture of what a step of this clip attends to; needs matplotlib")
    add("--step", type=int, choices=range(STEPS), metavar="0-9", help="default: where the likeliest class is surest")
    for name, what in (("epochs", "at most"), ("batches", "of 40 clips per epoch")):
        add(f"--{name}", type=plumbing.positive, help=f"{what}; default: {PAPER[name]}, on toy data {TOY[name]}")
    args = parser.parse_args(arguments)
    if args.table and (args.system or args.attention) or args.runs and not args.table:
        parser.error("--table does all systems, without --system and --attention; --runs is for --table alone")
    if args.step is not None and not args.attention:
        parser.error("--step is of the clip that --attention names")
    plumbing.set_defaults(args, PAPER if args.data else TOY)
    system = systems[args.system or (DRAWN if args.attention else BEST)]
    chosen = {name: getattr(args, name) for name in ("epochs", "batches", "seed", "sound", "visual")}
    args.config = replace(system, **chosen)
    return args  # fmt: skip


def run(args, log):
    """What the command does: load, train, score, print"""
    if args.attention:
        plots.figure_class()  # without matplotlib, stop before the work
    device, root, out = tagging.begin(args, "boes2019", log)
    if not args.data:
        embeddings.extract_sound(root, "log-mel", log=lambda line: None)
    sound_alone = not args.table and "video" not in (args.config.first, args.config.second)
    args.data, args.config = root, replace(args.config, all_clips=sound_alone)
    cache, sound = plumbing.cache_folder(root, out.parent), f"sound/{args.sound}"
    visual = None if sound_alone else args.visual
    classes, parts = tagging.load_tagging(root, read_sound, visual, stills, cache, sound, log)
    data = {all_clips: tagging.identity(classes, parts, with_video=not all_clips) for all_clips in (False, True)}
    if args.table:
        make_table(args, parts, data, out, device, log)
        return
    config = args.config
    place = find_clip(args, parts) if args.attention else None  # where there is none, stop before the work
    n_parameters = sum(p.numel() for p in make_network(config, parts).parameters())
    inputs = f"{args.sound} {visual or ''}"
    log(f"model  {config.system} | {inputs} | {n_parameters / 1e6:.2f} M parameters | seed {config.seed}")
    report = complete_run(config, parts, data, out, device, log, keep=True)
    scores = f"micro F1 {100 * report['F1']:.2f} | mAP {100 * report['mAP']:.2f} | mAUC {100 * report['mAUC']:.2f}"
    tuned = f"threshold {report['threshold']}, the best on validation"
    log(f"public {scores} | {tuned} | epochs: {len(report['losses'])}, {clock(report['seconds'])}")
    if place:
        draw_attention(args, classes, parts, place, out, device, log)


def main(arguments=None):
    args = parse_arguments(arguments)
    with plumbing.one_line_errors("the same command goes on after the last finished run"):
        run(args, plumbing.say)


if __name__ == "__main__":
    main()
