"""From video to vectors: pretrained visual networks, which stay fixed, and what they look at (Boes 2022, Sec. 3.1.2);
and from sound to vectors: VGGish (Boes 2019, Sec. 3.2.1), or statistics of log-mel, which need no network.

    python -m extras.embeddings extract DIR --visual openl3 vgg16 --weights openl3.pt vgg16-397923af.pth
    python -m extras.embeddings extract DIR --sound vggish --weights vggish-10086976.pth
    python -m extras.embeddings extract DIR --sound log-mel
    python -m extras.embeddings convert openl3_image_mel256_env-v0_4_0.h5 openl3.pt

`extract` fills the folders DIR/visual/<network> of a data set, where features.py finds them, from its videos:
    DIR/video/<clip stem>.mp4, .mkv or .webm     the clip, already cut
    DIR/video/<YouTube id>.mp4, .mkv or .webm    the whole video; the clip's name says which seconds of it are meant
and DIR/sound/<name> from the sound of all clips. `convert` makes a file for torch of OpenL3's weights, which are
published for Keras. Videos need ffmpeg. Where the files of weights are, and what was checked without them:
extras/README.md, "Visual vectors from video" and "The 2019 transformer".

Shapes: n <= 64 frames of H x W pixels, RGB; D numbers in a vector.
"""

import argparse
import functools
import math
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import unicodedata
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import NamedTuple

import numpy as np

from extras import plumbing  # before torch, see there
from extras.plumbing import InputError, choose_device, clock, cores, show_progress

import torch  # isort: skip
from torch import nn
from torch.nn import functional

import features
from features import (
    CLIP_SAMPLES, CLIP_SECONDS, FRAMES, PARTITIONS, SAMPLE_RATE, fit_clip, read_mono, read_unlabelled, recording,
)  # fmt: skip

FRAME_RATE = FRAMES / CLIP_SECONDS  # ours: 6.4 per second; "about 6.5", and 64 vectors (Boes 2022, Sec. 3.1.2)
SIDE, CROP = 256, 224  # ours: pixels; the short side of the picture, and the square in its centre that networks see
FRAME_BATCH = 16  # frames that go through a network at a time: below 2 GB of memory
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm")
# What ffmpeg may read, whatever a file is called: formats that hold their pictures and sound themselves. A playlist
# (HLS, DASH, ffconcat, SDP) would have it read any other file, or wait for more of them without end.
LOOSE = ("mpeg", "mpegts", "ogg")  # have no index, and their clock may leap, because files of them can be joined
# have no clock at all
COUNTED = ("mp3", "aac", "ac3", "eac3", "dts", "amr", "aiff", "au", "caf", "flac", "wav", "w64", "ape", "wv")
FORMATS = ",".join(("mov", "matroska", "avi", "flv", "asf", "mxf", "nut", "rm", "gif", *LOOSE, *COUNTED))
PATIENCE = 300  # seconds without a result after which ffmpeg is stopped
RUNNING = set()  # processes of ffmpeg whose result is waited for


# --- the networks ----------------------------------------------------------------------------------------------------
# The attributes of the modules give their weights the names that they have in the published files. `pixel_mean` and
# `pixel_std`, of RGB values from 0 to 255, are how each network wants its pixels.

IMAGENET_PIXELS = tuple(255 * m for m in (0.485, 0.456, 0.406)), tuple(255 * s for s in (0.229, 0.224, 0.225))


class OpenL3Image(nn.Module):
    """Image network of OpenL3 with 512 outputs, which may be negative; 4,688,198 parameters (Boes 2022, Sec. 3.1.2)"""

    pixel_mean, pixel_std = 127.5, 127.5  # -1 to 1

    def __init__(self):
        super().__init__()
        widths = (3, 64, 64, 128, 128, 256, 256, 512, 512)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for width in widths[:-1])  # eps: Keras' default
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in zip(widths, widths[1:]))

    def forward(self, x):
        """(n, 3, H, W) -> (n, 512)"""
        x = self.norms[0](x)
        for k, conv in enumerate(self.convs[:-1], 1):
            x = conv(x)
            # OpenL3's second layer has the two the other way round
            x = self.norms[k](functional.relu(x)) if k == 2 else functional.relu(self.norms[k](x))
            if k in (2, 4, 6):
                x = functional.max_pool2d(x, 2)
        return self.convs[-1](x).amax((2, 3))  # of 28 x 28 places


class VGG16(nn.Module):
    """VGG16 up to its last hidden layer, 4096 outputs; 134,260,544 parameters (Boes 2022, Sec. 3.1.2)"""

    pixel_mean, pixel_std = IMAGENET_PIXELS

    def __init__(self):
        super().__init__()
        layers, width = [], 3
        for n_convs, n_channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(n_convs):
                layers += [nn.Conv2d(width, n_channels, 3, padding=1), nn.ReLU(inplace=True)]
                width = n_channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        # ours: "the last feedforward layer" with 4096 outputs is the second fully connected one, after its ReLU.
        # The third place is dropout's, which does nothing here but count in the names.
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Identity(), nn.Linear(4096, 4096), nn.ReLU()
        )

    def forward(self, x):
        """(n, 3, 224, 224) -> (n, 4096)"""
        return self.classifier(self.features(x).flatten(1))


class Bottleneck(nn.Module):
    """Residual block 1x1, 3x3 (with the stride), 1x1 to four times the width"""

    def __init__(self, n_inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = nn.Identity()
        if n_inputs != 4 * width:
            shortcut = nn.Conv2d(n_inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Residual network with bottlenecks up to its average pooling, 2048 outputs.

    depths (3, 4, 6, 3), ResNet-50: the backbone of TCE, ours: before its contrastive head; 23,508,032 parameters
    (Boes 2022, Sec. 3.1.2). (3, 8, 36, 3), ResNet-152: 58,143,808 parameters (Fayek 2020, Sec. 3.2).
    """

    pixel_mean, pixel_std = IMAGENET_PIXELS

    def __init__(self, depths):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.layer1 = self.stage(64, 64, depths[0], 1)
        self.layer2 = self.stage(256, 128, depths[1], 2)
        self.layer3 = self.stage(512, 256, depths[2], 2)
        self.layer4 = self.stage(1024, 512, depths[3], 2)

    @staticmethod
    def stage(n_inputs, width, depth, stride):
        blocks = [Bottleneck(4 * width, width, 1) for _ in range(depth - 1)]
        return nn.Sequential(Bottleneck(n_inputs, width, stride), *blocks)

    def forward(self, x):
        """(n, 3, H, W) -> (n, 2048)"""
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


class VGGish(nn.Module):
    """VGGish up to its last feedforward layer, 128 outputs; 72,141,184 parameters (Boes 2019, Sec. 3.2.1)

    The PCA, whitening and rounding that AudioSet's published vectors went through are not part of it.
    """

    def __init__(self):
        super().__init__()
        layers, width = [], 1
        for n_convs, n_channels in ((1, 64), (1, 128), (2, 256), (2, 512)):
            for _ in range(n_convs):
                layers += [nn.Conv2d(width, n_channels, 3, padding=1), nn.ReLU()]
                width = n_channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        # ours: a ReLU at the end, as in the published code of 2019; today's gives the values before it
        self.embeddings = nn.Sequential(
            nn.Linear(6 * 4 * 512, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128), nn.ReLU()
        )

    def forward(self, x):
        """Log-mel maps of 0.96 s, (n, 96, 64) -> (n, 128)"""
        x = self.features(x[:, None])  # (n, 512, 6, 4)
        return self.embeddings(x.permute(0, 2, 3, 1).flatten(1))  # channels last, as the weights were trained


# --- their weights ---------------------------------------------------------------------------------------------------

# ours: of OpenL3's variants the one trained on environmental sound, with 256 mel bins on the audio side
OPENL3_FILE = "openl3_image_mel256_env-v0_4_0.h5.gz of https://github.com/marl/openl3, branch models"
NETWORKS = {  # name: (network, the file of weights that it wants)
    "openl3": (OpenL3Image, f"what `python -m extras.embeddings convert` makes of {OPENL3_FILE}, unpacked"),
    "vgg16": (VGG16, "https://download.pytorch.org/models/vgg16-397923af.pth"),
    "tce": (
        lambda: ResNet((3, 4, 6, 3)),
        "tensors of the Kinetics400 ResNet-50 of https://github.com/csiro-robotics/TCE (its link is dead: ask there)",
    ),
    "resnet152": (lambda: ResNet((3, 8, 36, 3)), "https://download.pytorch.org/models/resnet152-394f9c45.pth"),
}
SOUND_NETWORKS = {
    "vggish": (VGGish, "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"),
}
SOUNDS = (*SOUND_NETWORKS, "log-mel")  # the latter needs no network


def load_network(name, weights, device="cpu"):
    """Network (openl3, vgg16, tce, resnet152; vggish) with the weights of a published file, ready for use.

    Raises InputError, with where to find the right file, for one that does not fit in every name and shape.
    """
    networks = NETWORKS | SOUND_NETWORKS
    if name not in networks:
        raise InputError(f"{name}: no such network; there are {', '.join(networks)}")
    make, wanted = networks[name]
    try:
        state = plumbing.load_tensors(weights)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file of tensors"
        raise InputError(f"{weights}: {reason}; {name} wants {wanted}") from None
    with torch.device("meta"):  # speed: the file brings all values, so none are drawn
        network = make()
    try:
        # TCE's file holds a whole training: the backbone, its heads, and "module." before each name
        state = {key.removeprefix("module."): value for key, value in state.get("state_dict", state).items()}
        backbone = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
        heads = ("fc.", "classifier.6.")  # of ResNets and VGG16: the 1000 classes of ImageNet
        # a plain dict: torch then does not insist on the counters of batches in batch norms, which some files lack
        state = {key: value for key, value in (backbone or state).items() if not key.startswith(heads)}
        network.load_state_dict(state, assign=True)
        for key, tensor in network.state_dict().items():
            real = tensor.is_floating_point() or key.endswith("num_batches_tracked")  # neither complex nor quantized
            if not real or tensor.layout is not torch.strided or tensor.is_meta:
                raise TypeError(f"{key} is {tensor.dtype}, {tensor.layout}, on {tensor.device}")
    except (RuntimeError, AttributeError, TypeError) as error:
        if plumbing.out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{weights}: not the weights of this network ({reason} ..); {name} wants {wanted}") from None
    if name == "tce" and not backbone:
        warnings.warn("weights of a plain ResNet-50: good for a dry run, but these features are not TCE", stacklevel=2)
    return network.float().eval().to(device)


def convert(source, target):
    """OpenL3's image network, from Keras' .h5 file to one that load_network reads. Needs h5py, here only."""
    try:
        import h5py
    except ImportError:
        raise InputError("h5py is needed to convert, this once; pip install h5py") from None
    if Path(target).is_dir() or Path(target).exists() and Path(source).exists() and Path(target).samefile(source):
        raise InputError(f"{target}: is a folder or the file to convert; name another file for the result")
    plumbing.check_out_file(target)
    if not Path(source).is_file():
        raise InputError(f"{source}: no such file; OpenL3's is {OPENL3_FILE}")
    try:
        with plumbing.damage_as_value_error(source):
            with h5py.File(source, "r") as file:
                state = openl3_state(file)
            with torch.device("meta"):
                OpenL3Image().load_state_dict(state, assign=True)
    except ValueError as error:
        raise InputError(f"{source}: not OpenL3's image network ({error} ..); unpack {OPENL3_FILE}") from None
    plumbing.save_tensors(target, state)


def openl3_state(file):
    """Open .h5 file -> state dict of OpenL3Image. The layers' names end in running numbers, so their order decides.

    Keras keeps (kernel, bias) of a convolution, kernels as (height, width, in, out), and (gamma, beta, mean, variance)
    of a batch norm.
    """

    def text(name):  # h5py hands out names as bytes or as text, depending on who wrote the file
        return name.decode() if isinstance(name, bytes) else str(name)

    with torch.device("meta"):
        wanted = OpenL3Image().state_dict()
    state, seen = {}, {"norms": 0, "convs": 0}
    file = file.get("model_weights", file)  # where Keras puts them when it saves a whole model
    for layer in file.attrs["layer_names"]:
        group = file[text(layer)]
        keys = group.attrs["weight_names"]
        if not len(keys):
            continue  # a layer that learns nothing
        kind = {2: "convs", 4: "norms"}[len(keys)]
        for part, key in zip(("weight", "bias", "running_mean", "running_var"), keys):
            name, array = f"{kind}.{seen[kind]}.{part}", group[text(key)]
            if array.size != wanted[name].numel() or array.dtype.kind != "f":  # not read yet: it may claim terabytes
                raise ValueError(f"{name} has the shape {array.shape}, {array.dtype}")
            array = torch.from_numpy(np.asarray(array))
            state[name] = (array.permute(3, 2, 0, 1) if array.ndim == 4 else array).contiguous()
        seen[kind] += 1
    return state


# --- what they see: video -> frames -> vectors -----------------------------------------------------------------------


def find_ffmpeg():
    """Path of ffmpeg, or InputError"""
    path = shutil.which("ffmpeg")
    if not path:
        raise InputError(
            "ffmpeg: not found, and no video can be read without it; apt install ffmpeg, or https://ffmpeg.org"
        )
    return path


def ffmpeg_command(source, *options):
    """The beginning of a command that decodes what ffmpeg calls its input; options: of ffmpeg, or for this input"""
    # no block of memory beyond 256 MiB: more than a picture of 8192 x 8192, or an hour of silence at 16 kHz
    limits = ["-max_alloc", str(2**28), "-format_whitelist", FORMATS]
    # a microsecond later: else, of some formats, time 0 would be where the streams that are wanted begin, not the file
    whole = ["-itsoffset", "0.000001"]
    return [find_ffmpeg(), "-v", "error", "-nostdin", *limits, *options, *whole, "-i", source]


def run_ffmpeg(path, options, wanted):
    """Decode what is done at once -> CompletedProcess, a failed one if it takes longer than PATIENCE.

    It cannot outlive a killed caller for long: it ends with the next picture that nobody takes, or by its own limit.
    """
    command = [*ffmpeg_command(f"file:{path}", "-timelimit", str(PATIENCE), *options), *wanted]  # seconds of CPU time
    with subprocess.Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as process:
        RUNNING.add(process)
        try:
            said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return subprocess.CompletedProcess(command, -9, b"", b"")
        except BaseException:
            process.kill()
            raise
        finally:
            RUNNING.discard(process)
    return subprocess.CompletedProcess(command, process.returncode, *said)


class Described(NamedTuple):
    """What ffmpeg makes of a file's beginning and end"""

    format: str  # "" where it makes nothing of it
    seconds: float  # its length, 0 where unknown
    promised: float  # the same, where the file itself says so; else 0
    leaps: bool  # its clock begins anew, or leaps ahead by more than ten seconds: of joined recordings, or adverts


def describe(path):
    """File -> Described, which is kept as long as the file stays the same"""
    try:
        return describe_once(path, plumbing.fingerprint([Path(path)]))
    except OSError:  # ffmpeg will say why
        return Described("", 0, 0, False)


@functools.cache  # speed: to find leaps, a file is read to its end
def describe_once(path, fingerprint):
    said = run_ffmpeg(path, ["-v", "info"], []).stderr.decode(errors="replace")
    name, length = re.search(r"^Input #0, (\w+)", said, re.M), re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", said)
    name = name[1] if name else ""
    seconds = sum(float(n) * unit for n, unit in zip(length.groups(), (3600, 60, 1))) if length else 0
    says = name not in LOOSE and "Estimating duration" not in said
    return Described(name, seconds, seconds if says else 0, name in LOOSE and leaps(path))


def leaps(path):
    """Whether the clock of a file's packets leaps, see Described"""
    expected = {}  # stream -> when its next packet is due
    for stream, when, duration in packets(path, ["-copyts"]):
        due = expected.get(stream, when)
        if when < due - 1 or when > max(expected.values(), default=when) + 10:
            return True
        # where a clock leaps back, ffmpeg has it stand still until it has caught up
        expected[stream] = duration + (due if when + duration <= due else when)
    return False


def on_its_clock(path, seek=0.0):
    """Options of ffmpeg to read a file from a key picture near a second on; times are those of the file in any case.

    Where its clock leaps, the file is read from the beginning, and ffmpeg makes one clock of all.
    """
    if describe(path).leaps:
        return []
    return ["-copyts", "-start_at_zero", *(["-noaccurate_seek", "-ss", str(seek)] if seek > 0 else [])]


def packets(path, options, *wanted, kinds="Va"):
    """Yield (stream, when it is decoded, duration), in seconds, of the packets of picture and sound, not decoded.

    kinds: of streams, in ffmpeg's letters; with s and d, subtitles and data too
    """
    maps = [part for kind in kinds for part in ("-map", f"0:{kind}?")]
    copy = [*maps, "-ignore_unknown", "-c", "copy", *wanted, "-f", "framecrc", "-"]
    listed = run_ffmpeg(path, options, copy).stdout.decode(errors="replace")
    units = {stream: int(a) / int(b) for stream, a, b in re.findall(r"^#tb (\d+): (\d+)/(\d+)", listed, re.M)}
    for found in re.finditer(r"^(\d+), +(-?\d+), +-?\d+, +(\d+),", listed, re.M):
        yield found[1], int(found[2]) * units[found[1]], int(found[3]) * units[found[1]]


def ffmpeg_reason(returncode, stderr):
    """Why ffmpeg failed, in a few words; none where it did not"""
    if b"not on whitelist" in stderr:
        return "a playlist, or a format that is not read"
    reason = stderr.decode(errors="replace").strip().split("\n")[-1]
    return reason or returncode and f"ffmpeg ended with {returncode}; it has {PATIENCE} s"


def read_frames(path, start=0.0, seconds=CLIP_SECONDS):
    """Video file -> (n, 224, 224, 3) uint8, RGB: 6.4 frames for each of at most 10 seconds, the first at `start`.

    Frame k is what is on screen at start + k * 0.15625 s, to half that step: what a player shows that began with the
    file. The last picture stays until the file ends, be it for the sound; n <= 64, and less where that is earlier. A
    picture that begins after the sound stands still until then. Of several video streams ffmpeg takes the default one,
    else the largest; it turns the picture as the file asks for.
    Raises InputError where not one frame can be decoded.
    """
    wanted = math.floor(min(seconds, CLIP_SECONDS) * FRAME_RATE + 0.5)
    # The picture on screen began before `start`, and decoding begins at a key picture, which may be much earlier. An
    # index leads there. Without one, the first picture that comes may be a later one: then we look earlier; and the
    # times of the first ones are not sure.
    earlier, before = (10, 2) if describe(path).format in LOOSE else (0, 0)
    while True:
        frames, first, reason = pictures(path, start, start - earlier, seconds)
        if start <= earlier or first <= -before:
            break
        earlier = 2 * earlier + 10
    if len(frames) < wanted:
        last = packets(path, on_its_clock(path, start - earlier), "-t", str(start + CLIP_SECONDS))
        end = max((when + duration for _, when, duration in last), default=start)
        n = min(wanted, math.floor((end - start) * FRAME_RATE + 0.5))
        if n > len(frames):  # the sound goes on after the last picture
            frames, _, reason = pictures(path, start, start - earlier, seconds, stays=True)
            frames = frames[:n]
    if not len(frames):
        raise InputError(f"{path}: no video ({reason or f'it has no picture at {start} s'})")
    return frames


def pictures(path, start, seek, seconds, stays=False):
    """What read_frames returns if decoding begins at the key picture that the container finds for `seek`, in seconds.

    stays: the last picture stays for ever
    -> frames, none where ffmpeg failed; how much later than `start` the first picture begins; why ffmpeg failed
    """
    steps = math.ceil(start * FRAME_RATE)  # frames from the beginning of the file to `start`
    strip = "crop='min(iw,4*ih)':'min(ih,4*iw)':exact=1"  # the middle of a strip, whose whole would fill the memory
    short_side = f"scale='if(gt(iw,ih),-2,{SIDE})':'if(gt(iw,ih),{SIDE},-2)':flags=bilinear"
    filters = [
        f"settb=AVTB,setpts=PTS-{start - 0.5 / FRAME_RATE}/TB",  # 0 is half a step before `start`
        # from the first key picture on, whose time is printed: what comes before it lacks what it was made from
        "select='if(selected_n,1,if(key,1+0*print(t,16)))'" if seek > 0 else "null",
        f"fps={FRAME_RATE}:round=down:start_time={-steps / FRAME_RATE}:eof_action={'pass' if stays else 'round'}",
        f"tpad=stop_mode=clone:stop={-1 if stays else 0},trim=start_frame={steps}",
        f"{strip},{short_side},crop={CROP}:{CROP}",
    ]
    wanted = ["-an", "-t", str(min(seconds, CLIP_SECONDS)), "-vf", ",".join(filters), "-frames:v", str(FRAMES)]
    done = run_ffmpeg(path, on_its_clock(path, seek), [*wanted, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"])
    if done.returncode < 0:  # it was stopped
        raise InputError(f"{path}: no video ({ffmpeg_reason(done.returncode, done.stderr)})")
    n = 0 if done.returncode else len(done.stdout) // (CROP * CROP * 3)
    first = re.search(rb"^(?:\[.*\] )?(-?\d+\.\d{6})$", done.stderr, re.M)
    said = done.stderr.replace(first[0], b"") if first else done.stderr
    frames = np.frombuffer(done.stdout, np.uint8, n * CROP * CROP * 3).reshape(n, CROP, CROP, 3)
    later = float(first[1]) - 1 / FRAME_RATE if first else math.inf
    return frames, later, ffmpeg_reason(done.returncode, said)


def ffmpeg_blocks(path):
    """Sound of a file -> yields blocks of it, (up to 160000,) float32 at 16 kHz, mono.

    Two channels are averaged. More, such as 5.1, are mixed with ffmpeg's weights, without the low one (LFE); of wav and
    flac, which soundfile reads, all are averaged. Time 0 is where the file begins: sound that begins after the picture
    gets silence before it, and so does sound that goes on after a gap. Warns of sound that ends more than a second
    before the file says. Raises InputError where there is none.
    """
    about, n_samples = describe(path), 0
    # Two in a row. The first makes one form of it all: where rate or channels change, ffmpeg builds its filters anew,
    # and they no longer know how much sound went before. So the second one makes the silence, at 16 kHz, as it keeps
    # it in memory. rematrix_maxval: a mean of channels, not a sum, so that with their number loudness does not change
    form = f"aresample=rematrix_maxval=1,aformat=flt:{SAMPLE_RATE}:mono"
    counted = about.format in COUNTED or about.format == "ogg" and about.leaps
    decode = [*ffmpeg_command(f"file:{path}", *on_its_clock(path)), "-vn", "-sn", "-dn", "-af", form, "-f", "nut"]
    fill = [*ffmpeg_command("pipe:", "-copyts"), "-af", "anull" if counted else "aresample=async=1:first_pts=0"]
    with (
        tempfile.TemporaryFile() as complaints,
        tempfile.TemporaryFile() as gaps,
        subprocess.Popen([*decode, "-c:a", "pcm_f32le", "-"], stdin=DEVNULL, stdout=PIPE, stderr=complaints) as decoder,
        subprocess.Popen([*fill, "-f", "f32le", "-"], stdin=decoder.stdout, stdout=PIPE, stderr=gaps) as filler,
    ):
        decoder.stdout.close()  # the filler has it

        def next_block():
            timer = threading.Timer(PATIENCE, stop, (decoder, filler))
            timer.start()
            try:
                return filler.stdout.read(4 * CLIP_SAMPLES)
            finally:
                timer.cancel()

        try:
            while block := next_block():
                n_samples += len(block) // 4
                yield np.frombuffer(block, np.float32, len(block) // 4)
        except BaseException:  # also where nobody wants the rest
            stop(decoder, filler)
            raise
        returncode = decoder.wait()
        complaints.seek(0)
        gaps.seek(0)
        said, too_long = complaints.read(), b"Failed to compensate" in gaps.read()
    if too_long:
        raise InputError(f"{path}: its sound begins, or goes on, after more than an hour of nothing; cut the file")
    if returncode:
        raise InputError(f"{path}: no sound ({ffmpeg_reason(returncode, said)}); name a file with sound")
    if n_samples / SAMPLE_RATE < about.promised - 1:  # cut, unless another stream goes on: a picture, subtitles
        ends = [when + duration for _, when, duration in packets(path, on_its_clock(path), kinds="Vasd")]
        if max(ends, default=0) < about.promised - 1:
            plumbing.warn_if_short(path, n_samples / SAMPLE_RATE, about.promised)


def stop(*processes):
    for process in processes:
        process.kill()


@torch.inference_mode()
def embed_frames(network, frames):
    """(n, H, W, 3) uint8 array -> (n, D) float32 array; pixels get the range that the network was trained with"""
    device, vectors = next(network.parameters()).device, []
    mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (network.pixel_mean, network.pixel_std))
    for batch in torch.tensor(frames).split(FRAME_BATCH):
        pixels = (batch.to(device).permute(0, 3, 1, 2) - mean) / std  # (batch, 3, H, W) float32
        vectors.append(network(pixels).cpu())
    return torch.cat(vectors).numpy()


def clip_vectors(network, frames, place):
    """Frames of one clip -> (64, D) float16; place names their source for errors.

    Raises InputError for vectors that float16 cannot hold, not a number among them.
    """
    vectors = embed_frames(network, frames)
    largest = np.abs(vectors).max()
    if not largest <= np.finfo(np.float16).max:
        raise InputError(
            f"{place}: the network gives {largest:g}, beyond what float16 holds; its weights are not right"
        )
    # ours: a video that ends early keeps its last vector, zeros could not be any picture's; float16 to save disk
    return np.pad(vectors, ((0, FRAMES - len(vectors)), (0, 0)), mode="edge").astype(np.float16)


def video_embeddings(path, name, weights, start=0.0, device="auto"):
    """Video file -> (64, D) float16: the vectors of the ten seconds from `start` (Boes 2022, Sec. 3.1.2).

    name: openl3, vgg16, tce or resnet152; weights: file with the published weights (extras/README.md). Raises
    InputError where there is no video or where the weights are not the right ones.
    """
    network = load_network(name, weights, choose_device(device))
    return clip_vectors(network, read_frames(path, start), f"{path} through {weights}")


# --- sound -> ten vectors, one for each 0.96 s ------------------------------------------------------------------------


def vggish_log_mel(waveform):
    """(samples,) at 16 kHz -> (n, 96, 64) float32: the log-mel maps that VGGish was trained with, one for each 0.96 s.

    Frames of 25 ms every 10 ms, 64 bands from 125 to 7500 Hz. What is left after the last whole 0.96 s is dropped.
    """
    frames = torch.as_tensor(waveform).float().unfold(0, 400, 160) * torch.hann_window(400)  # (k, 400 samples)
    magnitudes = torch.fft.rfft(frames, 512).abs()  # (k, 257)

    def mel(hertz):
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(mel(125), mel(7500), 64 + 2)
    bins = mel(np.arange(257) * SAMPLE_RATE / 512)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bands = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(0)  # (64, 257)
    log_mel = (magnitudes @ torch.from_numpy(bands.T).float() + 0.01).log()
    return log_mel[: len(log_mel) // 96 * 96].unflatten(0, (-1, 96))


@torch.inference_mode()
def sound_vectors(network, path):
    """Sound file -> (10, 128) float32: what VGGish makes of ten seconds (Boes 2019, Sec. 3.2.1)"""
    clip, peak, _ = read_mono(path)
    if peak > plumbing.LARGEST:
        raise InputError(f"{path}: holds samples beyond {plumbing.LARGEST:g}, where a full scale is 1; mend the file")
    # as loud as the file is: VGGish knows loudness, and log(x + 0.01) depends on it
    maps = vggish_log_mel(fit_clip(clip))
    return network(maps.to(next(network.parameters()).device)).cpu().numpy()


def log_mel_moments(path):
    """Sound file -> (10, 128) float32. ours, for want of VGGish: mean and deviation of each log-mel bin over 0.96 s"""
    log_mel = features.log_mel(features.load_audio(path)).numpy()  # (512, 64)
    step = (np.arange(len(log_mel)) * features.HOP / SAMPLE_RATE / 0.96).astype(int)  # the last 0.4 s are in none
    windows = [log_mel[step == k] for k in range(10)]  # 49 or 50 frames each
    return np.stack([np.concatenate([w.mean(0), w.std(0)]) for w in windows])


# --- all clips of a data set -----------------------------------------------------------------------------------------


def find_video(folder, filename):
    """Where a clip's video is: (path, start, seconds), or None"""
    # ours: a file with the clip's own name is the clip, already cut, and is read from its beginning; a file with only
    # the YouTube id for a name is the whole video, of which the clip's name says the window. Lengths decide nothing.
    places = [(Path(filename).stem, 0.0, CLIP_SECONDS)]
    if window := recording(filename):
        youtube_id, start, end = window
        places.append((youtube_id, start, end - start))
    for name, start, seconds in places:
        for suffix in VIDEO_SUFFIXES:
            for form in ("NFC", "NFD"):  # Unicode's two spellings of an umlaut
                path = folder / unicodedata.normalize(form, f"{name}{suffix}")
                if os.path.isfile(path):
                    return path, start, seconds
    return None


def inventory(root, streams, log):
    """Log what there is of each partition; -> {clip stem: (path, start, seconds)} of the listed clips with a video"""
    there = {stream: plumbing.files_in(root / "visual" / stream) for stream in streams}
    videos, seen = {}, []
    for name, rows in plumbing.read_layout(root, PARTITIONS).items():
        paths = {}
        for table, folder in rows:
            on_disk = plumbing.files_in(folder)
            names = read_unlabelled(table) if table else filter(plumbing.is_sound, on_disk)
            paths |= {f: on_disk.get(f, folder / f) for f in names}
        found = {f: video for f in paths if (video := find_video(root / "video", f))}
        counts = {"audio": sum(map(os.path.isfile, paths.values())), "video": len(found)}
        for stream in streams:
            counts[stream] = sum(f"{plumbing.stem(f)}.npy" in there[stream] for f in paths)
        counts = "".join(f", {count:5d} with {what}" for what, count in counts.items())
        log(f"       {name:10} {len(paths):5d} listed{counts}")
        seen += [paths[f] for f in found]
        videos |= {plumbing.stem(f): video for f, video in found.items()}
    plumbing.check_stems(seen, {stem: path for stem, (path, *_) in videos.items()}, recording)
    return videos


def extract(root, weights, device="auto", log=plumbing.say):
    """Write root/visual/<stream>/<clip stem>.npy, (64, D) float16, for the listed clips that have a video.

    weights: dict of stream (openl3, vgg16, tce, resnet152) -> file of weights. Each video is decoded once for all
    streams that it lacks; files that exist are left alone, so that an interrupted run goes on. Videos that cannot be
    decoded are logged at the end and get no file: they count as missing.
    """
    root, device = Path(root), choose_device(device)
    find_ffmpeg()
    for stream in weights:
        plumbing.check_out(root / "visual" / stream)
    log(f"data   {root} | {device.type}")
    videos = inventory(root, weights, log)
    if not videos:
        raise InputError(f"{root / 'video'}: no video of any listed clip; name them <clip>.mp4 or <YouTube id>.mp4")
    networks = {stream: load_network(stream, path, device) for stream, path in weights.items()}
    todo = []  # (video, {stream: file to write})
    for stem, video in videos.items():
        targets = {stream: root / "visual" / stream / f"{stem}.npy" for stream in weights}
        if targets := {stream: path for stream, path in targets.items() if not path.exists()}:
            todo.append((video, targets))
    broken, started = [], time.monotonic()
    with closing(decode_ahead([video for video, _ in todo])) as decoded:
        for done, ((video, targets), frames) in enumerate(zip(todo, decoded), 1):
            if isinstance(frames, InputError):
                broken.append(frames)
            else:
                for stream, path in targets.items():
                    vectors = clip_vectors(networks[stream], frames, f"{video[0]} through {weights[stream]}")
                    plumbing.save_array(path, vectors)
            show_progress("extracted", done, len(todo), started)
    made, seconds = len(todo) - len(broken), time.monotonic() - started
    log(f"       {made} clips extracted in {clock(seconds)}, {seconds / max(made, 1):.2f} s each")
    log(f"       {len(videos) - len(todo)} had their files before, {len(broken)} cannot be decoded")
    for error in broken:
        log(f"       counted as missing: {error}")


def extract_sound(root, name, weights=None, device="auto", log=plumbing.say):
    """Write root/sound/<name>/<clip stem>.npy, (10, 128) float32, for all sound files in the folders of root/audio.

    name: "vggish", with its file of weights, or "log-mel". Files that exist are left alone; sound that cannot be
    decoded is logged at the end and gets no file.
    """
    root = Path(root)
    folders = dict.fromkeys(folder for rows in plumbing.read_layout(root, PARTITIONS).values() for _, folder in rows)
    plumbing.check_out(root / "sound" / name)
    on_disk = [file for folder in folders for file in sorted(plumbing.files_in(folder).items())]
    sounds = [path for file, path in on_disk if plumbing.is_sound(file)]
    if not sounds:
        raise InputError(f"{root}: no sound in the folders of any list; the README shows the layout")
    vectors_of = log_mel_moments
    if name == "vggish":
        vectors_of = partial(sound_vectors, load_network(name, weights, choose_device(device)))
    targets = {path: root / "sound" / name / f"{plumbing.stem(path)}.npy" for path in sounds}
    plumbing.check_stems(sounds, {plumbing.stem(path): target for path, target in targets.items()}, recording)
    todo = [path for path in sounds if not targets[path].exists()]
    broken, started = [], time.monotonic()
    for done, path in enumerate(todo, 1):
        try:
            vectors = vectors_of(path)
        except InputError as error:
            broken.append(error)
        else:
            if not np.isfinite(vectors).all():
                raise InputError(f"{path} through {weights}: the network gives no numbers; its weights are not right")
            plumbing.save_array(targets[path], vectors)
        show_progress("extracted", done, len(todo), started)
    log(f"       {len(todo) - len(broken)} sounds extracted in {clock(time.monotonic() - started)}")
    log(f"       {len(sounds) - len(todo)} had their files before, {len(broken)} cannot be decoded")
    for error in broken:
        log(f"       counted as missing: {error}")


def decode_ahead(videos):
    """Yield the frames of each (path, start, seconds), or its InputError, in order; threads decode the next ones.

    To be closed where it is not used up: then what runs ahead is stopped.
    """

    def decode(video):
        try:
            return read_frames(*video)
        except InputError as error:
            return error

    ahead = min(16, cores())  # speed: as many as are of use, and few enough for memory: 9.6 MB a clip, and ffmpeg's own
    pool, waiting = ThreadPoolExecutor(ahead), deque()
    try:
        for video in videos:
            waiting.append(pool.submit(decode, video))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # after Ctrl-C, too
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in waiting):
            stop(*list(RUNNING))  # again, as a thread may just have started one
            time.sleep(0.01)


# --- the command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m extras.embeddings", description="Vectors of pretrained networks (extras/README.md)."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser(
        "extract", help="fill DIR/visual from DIR/video, DIR/sound from DIR/audio; goes on where it was interrupted"
    )
    make.add_argument("root", metavar="DIR", help="data set in the layout of DCASE 2020 task 4")
    make.add_argument("--visual", nargs="+", default=[], choices=NETWORKS, metavar="NAME", help=", ".join(NETWORKS))
    make.add_argument("--sound", nargs="+", default=[], choices=SOUNDS, metavar="NAME", help=", ".join(SOUNDS))
    make.add_argument("--weights", nargs="+", default=[], metavar="FILE",
                      help="one for each NAME but log-mel, --visual first")
    make.add_argument("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    change = commands.add_parser("convert", help="OpenL3's image network, from Keras to torch; needs h5py")
    change.add_argument("source", metavar="KERAS.h5")
    change.add_argument("target", metavar="OPENL3.pt")
    args = parser.parse_args(arguments)
    if args.command == "extract":
        names = args.visual + args.sound
        if not names or len(names) > len(set(names)) or len(args.weights) != len(names) - ("log-mel" in names):
            parser.error("--visual and --sound take different names, --weights one file for each of them but log-mel")
    return args  # fmt: skip


def main(arguments=None):
    args = parse_arguments(arguments)
    with plumbing.one_line_errors("the same command goes on with the clips that are left"):
        if args.command == "extract":
            if args.visual:
                extract(args.root, dict(zip(args.visual, args.weights)), args.device)
            for name in args.sound:  # the last file is VGGish's
                extract_sound(args.root, name, args.weights[-1] if name == "vggish" else None, args.device)
        else:
            convert(args.source, args.target)


if __name__ == "__main__":
    main()
