"""Tests of the visual networks, of frames from video, and of filling a data set with their vectors.

No published file is needed: weights are random, under the published names. A network on the meta device computes
shapes without computing.
"""

import contextlib
import math
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import features
from extras import embeddings
from extras.plumbing import InputError
from test_avsed import quiet, write_tiny

with_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")


def refused(capsys, *arguments):
    """What `python -m extras.embeddings ...` writes to stderr where it must end with exit code 2"""
    with pytest.raises(SystemExit) as stop:
        embeddings.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


# --- the networks ----------------------------------------------------------------------------------------------------


def resnet_entries(depths):
    """Published names and shapes of a ResNet with bottlenecks, as torchvision and TCE write them, without the head"""

    def norm(name, width):
        return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}

    entries, n_inputs = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}, 64
    for i, depth in enumerate(depths):
        width = 64 * 2**i
        for j in range(depth):
            block = f"layer{i + 1}.{j}."
            entries[f"{block}conv1.weight"] = (width, n_inputs, 1, 1)
            entries[f"{block}conv2.weight"] = (width, width, 3, 3)
            entries[f"{block}conv3.weight"] = (4 * width, width, 1, 1)
            for k, n in ((1, width), (2, width), (3, 4 * width)):
                entries |= norm(f"{block}bn{k}", n)
            if j == 0:
                entries[f"{block}downsample.0.weight"] = (4 * width, n_inputs, 1, 1)
                entries |= norm(f"{block}downsample.1", 4 * width)
            n_inputs = 4 * width
    return entries


def vgg16_entries():
    """Published names and shapes of VGG16, with its head"""
    entries, n_inputs = {}, 3
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for place, width in zip(places, (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)):
        entries |= {f"features.{place}.weight": (width, n_inputs, 3, 3), f"features.{place}.bias": (width,)}
        n_inputs = width
    for place, n_outputs, n_inputs in ((0, 4096, 25088), (3, 4096, 4096), (6, 1000, 4096)):
        entries |= {f"classifier.{place}.weight": (n_outputs, n_inputs), f"classifier.{place}.bias": (n_outputs,)}
    return entries


def random_weights(entries, light=False):
    """Name -> tensor; light: one value per output, repeated without taking memory or room in files"""
    torch.manual_seed(0)
    state = {}
    for name, shape in entries.items():
        if len(shape) == 1:
            state[name] = torch.rand(shape) + 0.5
        elif light:
            state[name] = torch.randn(shape[0], *[1] * (len(shape) - 1)).expand(shape)
        else:
            state[name] = torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
    return state


@pytest.fixture(scope="module")
def resnet50_file(tmp_path_factory):
    """A plain ResNet-50 as torchvision publishes it, classifier included"""
    path = tmp_path_factory.mktemp("weights") / "r.pth"
    torch.save({**random_weights(resnet_entries((3, 4, 6, 3))), "fc.weight": torch.zeros(1000, 2048)}, path)
    return path


def fake_keras(state):
    """What h5py shows of a Keras file with these weights of OpenL3Image: groups with attributes, names as bytes"""

    class Group(dict):
        def __init__(self, attrs, items):
            super().__init__(items)
            self.attrs = attrs

    def layer(name, kind, k, parts):
        arrays = {f"{name}/{key}:0": state[f"{kind}.{k}.{ours}"].numpy() for key, ours in parts.items()}
        if kind == "convs":
            arrays[f"{name}/kernel:0"] = arrays[f"{name}/kernel:0"].transpose(2, 3, 1, 0)
        return name, Group({"weight_names": [key.encode() for key in arrays]}, arrays)

    norm = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    layers = [("input_1", Group({"weight_names": []}, {})), layer("batch_normalization_7", "norms", 0, norm)]
    for k in range(8):
        layers.append(layer(f"conv2d_{k + 9}", "convs", k, {"kernel": "weight", "bias": "bias"}))
        layers.append((f"activation_{k}", Group({"weight_names": []}, {})))
        if k < 7:
            layers.append(layer(f"batch_normalization_{k + 8}", "norms", k + 1, norm))
    return Group({"layer_names": [name.encode() for name, _ in layers]}, layers)


def openl3_weights():
    with torch.device("meta"):
        entries = {k: v.shape for k, v in embeddings.OpenL3Image().state_dict().items() if "num_batches" not in k}
    return random_weights(entries)


def video_frames(n, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "name, count, width",
    [("openl3", 4688198, 512), ("vgg16", 134260544, 4096), ("tce", 23508032, 2048), ("resnet152", 58143808, 2048)],
)
def test_visual_networks_have_the_published_size(name, count, width):
    with torch.device("meta"):  # resnet152: torchvision's 60,192,808 without its classifier of 2,049,000
        network = embeddings.NETWORKS[name][0]().eval()
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, width)
    assert sum(p.numel() for p in network.parameters()) == count


def test_layer_shapes_of_the_visual_networks():
    with torch.device("meta"):
        openl3, vgg16, resnet = embeddings.OpenL3Image(), embeddings.VGG16(), embeddings.ResNet((3, 4, 6, 3))
        pools = [layer for layer in vgg16.features if isinstance(layer, nn.MaxPool2d)]
        stages = [resnet.conv1, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
        for network, layers, shapes in (
            (openl3, openl3.convs, [(n, s, s) for n, s in ((64, 224), (128, 112), (256, 56), (512, 28)) for _ in "ab"]),
            (vgg16, pools, [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]),
            (vgg16, list(vgg16.classifier), [(4096,)] * 5),
            (resnet, stages, [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]),
        ):
            seen = []
            for layer in layers:
                layer.register_forward_hook(lambda *args, seen=seen: seen.append(tuple(args[2].shape[1:])))
            network.eval()(torch.empty(1, 3, 224, 224))
            assert seen == shapes
    assert [type(layer).__name__ for layer in vgg16.classifier] == ["Linear", "ReLU", "Identity", "Linear", "ReLU"]


def test_published_names_and_shapes_are_those_of_the_networks():
    resnet50, resnet152 = resnet_entries((3, 4, 6, 3)), resnet_entries((3, 8, 36, 3))
    for name, entries in (("vgg16", vgg16_entries()), ("tce", resnet50), ("resnet152", resnet152)):
        with torch.device("meta"):
            own = embeddings.NETWORKS[name][0]().state_dict()
        own = {key: tuple(value.shape) for key, value in own.items() if not key.endswith("num_batches_tracked")}
        assert own == {key: shape for key, shape in entries.items() if not key.startswith("classifier.6.")}


def test_openl3_layer_by_layer():
    state = openl3_weights()
    network = embeddings.OpenL3Image().eval()
    network.load_state_dict(state, strict=False)

    def conv(x, k):
        return nn.functional.conv2d(x, state[f"convs.{k}.weight"], state[f"convs.{k}.bias"], padding=1)

    def norm(x, k):
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, gain, shift = (state[f"norms.{k}.{part}"][:, None, None] for part in parts)
        return (x - mean) / (var + 0.001).sqrt() * gain + shift

    def pool(x):
        return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))

    frames = torch.from_numpy(video_frames(2))
    x = norm(frames.permute(0, 3, 1, 2) / 127.5 - 1, 0)
    x = pool(norm(conv(norm(conv(x, 0), 1).relu(), 1).relu(), 2))  # the second norm comes after its ReLU
    x = pool(norm(conv(norm(conv(x, 2), 3).relu(), 3), 4).relu())
    x = pool(norm(conv(norm(conv(x, 4), 5).relu(), 5), 6).relu())
    x = conv(norm(conv(x, 6), 7).relu(), 7).flatten(2).max(2).values  # and no ReLU at the end
    assert x.min() < 0 and np.allclose(embeddings.embed_frames(network, frames.numpy()), x, atol=1e-4)


def test_bottleneck_by_hand():
    torch.manual_seed(0)
    block, x = embeddings.Bottleneck(8, 4, 2).eval(), torch.randn(1, 8, 5, 5)
    for norm in (block.bn1, block.bn2, block.bn3, block.downsample[1]):
        nn.init.uniform_(norm.running_mean, -1, 1), nn.init.uniform_(norm.running_var, 0.5, 2)
    with torch.no_grad():
        inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()  # (1, 4, 3, 3)
        assert block.conv1.stride == (1, 1) and inner.shape == (1, 4, 3, 3)
        shortcut = torch.einsum("oi,nihw->nohw", block.downsample[0].weight[:, :, 0, 0], x[:, :, ::2, ::2])
        want = (block.bn3(block.conv3(inner)) + block.downsample[1](shortcut)).relu()
        assert torch.allclose(block(x), want, atol=1e-5)
        same = embeddings.Bottleneck(16, 4, 1).eval()
        assert not list(same.downsample.parameters()) and same(torch.randn(1, 16, 5, 5)).shape == (1, 16, 5, 5)
        resnet, x = embeddings.ResNet((1, 1, 1, 1)).eval(), torch.randn(1, 3, 64, 64)
        stem = nn.functional.pad(resnet.bn1(resnet.conv1(x)).relu(), (1, 1, 1, 1))
        y = stem.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))  # the largest of 3 x 3 at every second place
        for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
            y = stage(y)
        assert y.shape == (1, 2048, 2, 2) and torch.allclose(resnet(x), y.mean((2, 3)), atol=1e-5)


def test_pixels_are_scaled_as_each_network_was_trained():
    class Shown(nn.Module):
        """Hands out what it gets, in place of a network that asks for the same pixels"""

        def __init__(self, network):
            super().__init__()
            self.pixel_mean, self.pixel_std, self.weight = network.pixel_mean, network.pixel_std, nn.Parameter()

        def forward(self, x):
            return x.flatten(1)

    frame = np.array([[[[0, 127, 255], [255, 0, 51]]]], np.uint8)  # one frame of 1 x 2 pixels, RGB
    with torch.device("meta"):
        openl3, vgg16, tce = embeddings.OpenL3Image(), embeddings.VGG16(), embeddings.ResNet((3, 4, 6, 3))
    got = embeddings.embed_frames(Shown(openl3), frame)
    assert got.shape == (1, 6) and got.dtype == np.float32  # red of both pixels, then green, then blue
    assert np.allclose(got.reshape(3, 2).T, [[-1, -0.00392157, 1], [1, -1, -0.6]], atol=1e-6)
    want = [[-2.11790393, 0.18767507, 2.64], [2.24890829, -2.03571429, -0.91555556]]
    for network in (vgg16, tce):
        assert np.allclose(embeddings.embed_frames(Shown(network), frame).reshape(3, 2).T, want, atol=1e-5)


def test_published_files_load_by_their_own_names(tmp_path, resnet50_file):
    weights, path = random_weights(vgg16_entries(), light=True), tmp_path / "w.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=False)  # the published file is of the older kind
    vgg16 = embeddings.load_network("vgg16", path)
    assert torch.equal(vgg16.classifier[3].weight[:, 7], weights["classifier.3.weight"][:, 7]) and not vgg16.training
    entries = resnet_entries((3, 4, 6, 3))
    weights = random_weights(entries)
    counters = {f"{key[:-7]}.num_batches_tracked": torch.tensor(9) for key in entries if key.endswith(".weight")}
    counters = {key: value for key, value in counters.items() if "bn" in key or "downsample.1" in key}
    head = {"module.fc_contrastive.weight": torch.zeros(128, 2048), "module.bn_rotation_1.running_mean": torch.zeros(9)}
    for prefix, more in (("module.backbone.", {}), ("backbone.", counters)):
        state = {f"{prefix}{key}": value for key, value in (weights | more).items()} | head
        torch.save({"epoch": 3, "state_dict": state}, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tce = embeddings.load_network("tce", path)
        assert torch.equal(tce.layer4[2].conv3.weight, weights["layer4.2.conv3.weight"])
        assert torch.equal(tce.layer1[0].downsample[1].running_var, weights["layer1.0.downsample.1.running_var"])
    with pytest.warns(UserWarning, match="not TCE"):
        assert torch.equal(embeddings.load_network("tce", resnet50_file).bn1.bias, weights["bn1.bias"])
    weights = random_weights(resnet_entries((3, 8, 36, 3)), light=True)
    torch.save(weights, path)
    assert torch.equal(embeddings.load_network("resnet152", path).layer3[35].bn2.bias, weights["layer3.35.bn2.bias"])


def test_keras_weights_are_mapped_by_order(tmp_path):
    weights = openl3_weights()
    file = fake_keras(weights)
    state = embeddings.openl3_state(file)
    assert state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)
    whole = type(file)({}, {"model_weights": file})  # as Keras stores a model together with its weights
    assert embeddings.openl3_state(whole).keys() == weights.keys()
    torch.save(state, tmp_path / "openl3.pt")
    assert torch.equal(embeddings.load_network("openl3", tmp_path / "openl3.pt").convs[7].bias, weights["convs.7.bias"])
    file["conv2d_9"]["conv2d_9/bias:0"] = np.broadcast_to(np.float32(0), (2**20, 2**20))  # 4 TiB, if it were read
    with pytest.raises(ValueError, match=r"convs\.0\.bias has the shape \(1048576, 1048576\)"):
        embeddings.openl3_state(file)


def test_converting_an_h5_file(tmp_path, capsys):
    h5py = pytest.importorskip("h5py", reason="h5py is only needed to convert OpenL3's file")

    def write(target, group):
        for key, value in group.attrs.items():
            target.attrs[key] = np.array(value, "S")
        for key, value in group.items():
            if isinstance(value, dict):
                write(target.create_group(key), value)
            else:
                target.create_dataset(key, data=value)

    weights = openl3_weights()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file, fake_keras(weights))
    embeddings.main(["convert", str(tmp_path / "a.h5"), str(tmp_path / "openl3.pt")])
    network = embeddings.load_network("openl3", tmp_path / "openl3.pt")
    assert torch.equal(network.convs[3].weight, weights["convs.3.weight"])
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "link.h5").symlink_to("a.h5")
    for target in ("a.h5", "link.h5", ""):
        assert "name another file for the result" in refused(capsys, "convert", tmp_path / "a.h5", tmp_path / target)
    assert (tmp_path / "a.h5").read_bytes() == content
    with h5py.File(tmp_path / "b.h5", "w") as file:
        write(file, fake_keras({**weights, "convs.7.bias": torch.zeros(3)}))
    (tmp_path / "c.h5").write_bytes(b"\x1f\x8bpacked")
    absent = refused(capsys, "convert", tmp_path / "d.h5", tmp_path / "x.pt")
    assert f"{tmp_path}/d.h5: no such file; OpenL3's" in absent
    for name in ("b.h5", "c.h5"):
        error = refused(capsys, "convert", tmp_path / name, tmp_path / "x.pt")
        assert re.fullmatch(rf"error: .*{name}: not OpenL3's .*h5\.gz of https.*\n", error)
    assert not list(tmp_path.glob("x.pt*"))


def test_a_converted_file_appears_only_when_complete(tmp_path, capsys, monkeypatch):
    def disk_full(path, content):
        path.touch()
        raise OSError("disk full")

    keras = fake_keras(openl3_weights())
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=lambda *_: contextlib.nullcontext(keras)))
    monkeypatch.setattr(Path, "write_bytes", disk_full)
    (tmp_path / "a.h5").touch()
    assert "x.pt: cannot be written (disk full)" in refused(capsys, "convert", tmp_path / "a.h5", tmp_path / "x.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_convert_without_h5py_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install h5py" in refused(capsys, "convert", "a.h5", tmp_path / "x.pt")


def test_the_number_of_frames_in_a_batch_changes_nothing(monkeypatch, resnet50_file):
    openl3 = embeddings.OpenL3Image().eval()
    openl3.load_state_dict(openl3_weights(), strict=False)
    with pytest.warns(UserWarning, match="not TCE"):
        resnet = embeddings.load_network("tce", resnet50_file)
    frames = video_frames(5)
    for network in (openl3, resnet):
        vectors = []
        for size in (1, 2, 16):
            monkeypatch.setattr(embeddings, "FRAME_BATCH", size)
            vectors.append(embeddings.embed_frames(network, frames))
        assert np.abs(vectors[0]).max() > 0.01 and np.ptp(vectors[0], axis=0).max() > 1e-4
        assert np.allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-5)
        assert np.allclose(vectors[0], vectors[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, wanted", [("openl3", "mel256_env"), ("vgg16", "vgg16-397923af"), ("tce", "TCE"), ("resnet152", "394f9c45")]
)
def test_wrong_weights_get_one_sentence(name, wanted, tmp_path):
    path = tmp_path / "w.pth"
    bad = [b"", b"garbage", b"PK\x03\x04 cut"]
    bad += [{}, [1, 2], torch.zeros(3), {"conv1.weight": torch.zeros(3)}, {"state_dict": {"x": torch.zeros(1)}}]
    bad.append({"a": Path("holds more than tensors")})
    bad.append(random_weights(resnet_entries((2, 2, 2, 2)), light=True))  # not a depth that anyone asked for
    for content in bad:
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        message = rf"w\.pth: .*{name} wants .*{wanted}"
        with pytest.raises(InputError, match=message) as error, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            embeddings.load_network(name, path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(InputError, match=r"none\.pth: No such file or directory; .* wants"):
        embeddings.load_network(name, tmp_path / "none.pth")
    with pytest.raises(InputError, match="no such network; there are openl3, vgg16, tce, resnet152, vggish"):
        embeddings.load_network("vgg19", path)


def test_weights_of_another_kind_are_refused(tmp_path):
    weights, path = random_weights(resnet_entries((3, 4, 6, 3)), light=True), tmp_path / "w.pth"
    changes = (lambda v: v.to(torch.complex64), lambda v: v.to("meta"), torch.Tensor.to_sparse, torch.Tensor.int)
    for name in ("conv1.weight", "bn1.running_mean"):
        for change in changes:
            torch.save({**weights, name: change(weights[name])}, path)
            with pytest.raises(InputError, match=f"not the weights of this network .*{name}"):
                embeddings.load_network("tce", path)


def test_packed_weights_are_refused_before_they_fill_memory(tmp_path, monkeypatch):
    torch.save({"conv1.weight": torch.zeros(10**6)}, tmp_path / "flat.pth")
    with zipfile.ZipFile(tmp_path / "flat.pth") as flat, zipfile.ZipFile(tmp_path / "w.pth", "w", 8) as packed:
        for name in flat.namelist():
            packed.writestr(name, flat.read(name))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(InputError, match=r"w\.pth: not a file of tensors"):
        embeddings.load_network("tce", tmp_path / "w.pth")


def test_weights_are_never_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    for zipped in (True, False):
        torch.save({"conv1.weight": Trap()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="not a file of tensors"):
            embeddings.load_network("tce", tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


# --- frames from video -----------------------------------------------------------------------------------------------

# Brightness tells the time: 4 levels a picture, 25 pictures a second, over again every 40 pictures (1.6 s)
CLOCK = "nullsrc=s=64x48:r=25:d={},format=gray,geq=lum='20+mod(4*N,160)'"


def film(path, *inputs, options=("-c:v", "ffv1", "-pix_fmt", "gray")):
    """Make a video with ffmpeg from lavfi descriptions of its streams (strings) or other input arguments (lists).

    Skips the test where this ffmpeg was built without the encoder or the container.
    """
    command = ["ffmpeg", "-v", "error", "-y"]
    for source in inputs:
        command += ["-f", "lavfi", "-i", source] if isinstance(source, str) else source
    done = subprocess.run([*command, *options, str(path)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if re.search("Unknown encoder|encoder selection failed|suitable output format|not a suitable output", done.stderr):
        pytest.skip(f"this ffmpeg cannot write {Path(path).name}: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return path


def times_shown(frames, near):
    """Seconds at which CLOCK showed these frames; near: roughly where, to tell one round of it from the next"""
    picture = (frames[:, 100:124, 100:124].mean((1, 2, 3)) - 20) / 4
    return picture / 25 + np.round((near - picture / 25) / 1.6) * 1.6


@with_ffmpeg
def test_frames_are_those_on_screen_at_their_time(tmp_path):
    path = film(tmp_path / "long.mkv", CLOCK.format(45))
    for start, seconds, n in ((0, 10, 64), (30, 10, 64), (36, 10, 58), (30, 4, 26), (0, 11, 64)):
        frames = embeddings.read_frames(path, start, seconds)
        assert frames.shape == (n, 224, 224, 3) and frames.dtype == np.uint8
        times = start + np.arange(n) * 0.15625
        assert np.abs(times_shown(frames, times) - times).max() < 0.09  # half a step and a gray level
    with pytest.raises(InputError, match="no video"):
        embeddings.read_frames(path, 50)


@with_ffmpeg
def test_pictures_that_shrink_are_averaged(tmp_path):
    stripes = "nullsrc=s=512x512:r=25:d=0.2,format=gray,geq=lum='255*mod(X,2)'"  # black and white, a pixel wide each
    frames = embeddings.read_frames(film(tmp_path / "stripes.mkv", stripes))
    assert np.abs(frames / 255 - 0.5).max() < 0.15


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Arguments of ffmpeg for 40 s of pictures, five a second, whose numbers are seen also after a lossy codec"""
    fields = "if(mod(floor(N/pow(2,floor(X/16)+4*floor(Y/16))),2),200,50)"  # sixteen, bright or dark
    picture = f"nullsrc=s=64x64:r=5:d=40,format=yuv420p,geq=lum='{fields}':cb=128:cr=128"
    return ["-i", str(film(tmp_path_factory.mktemp("film") / "numbered.mkv", picture, options=("-c:v", "ffv1")))]


def numbers_shown(pictures, step):
    """(n, H, W), in which the middle of a field is every `step` pixels -> their numbers"""
    bright = pictures[:, step // 4 :: step, step // 4 :: step].reshape(len(pictures), 16) > 125
    return bright @ 2 ** np.arange(16)


def slow_decoding(path):
    """Every picture of a file, decoded from its beginning: their times, their numbers"""
    # the sound is wanted, too, else ffmpeg's time 0 may be where the picture begins
    wanted = "-map 0:V -vf scale=4:4:flags=area,format=gray,showinfo=checksum=0 -fps_mode passthrough -f rawvideo -"
    command = ["ffmpeg", "-nostdin", "-i", str(path), *wanted.split(), *"-map 0:a? -c copy -f null -".split()]
    done = subprocess.run(command, capture_output=True, check=True)
    times = np.array([float(time) for time in re.findall(rb"pts_time:(\S+)", done.stderr)])
    return times, numbers_shown(np.frombuffer(done.stdout, np.uint8).reshape(-1, 4, 4), 1)


SOUND = "-f lavfi -t {} -i sine=300:r=44100"
ONE_KEY = "-c:v libx264 -preset ultrafast -bf 2 -g 1000 -sc_threshold 0 -c:a aac"
MPEG2 = "-r 25 -c:v mpeg2video -bf 2 -g 12 -q:v 3 -c:a mp2"
SLIDES = "-vf select='not(mod(n,57))' -fps_mode vfr"  # one in 11.4 s
FILMS = {  # file: options of the picture before it is read, of the file
    "one_key.mp4": ("", ONE_KEY),
    "one_key.ts": ("", ONE_KEY),
    "slides.mp4": ("", f"{SLIDES} {ONE_KEY}"),
    "slides.mkv": ("", f"{SLIDES} {ONE_KEY}"),
    "slides.webm": ("", f"{SLIDES} -c:v libvpx -cpu-used 8 -deadline realtime -c:a libopus"),
    "late.m2ts": ("-itsoffset 6 -t 34", MPEG2),
    "late.mpg": ("-itsoffset 6 -t 34", MPEG2),
    "ended.mkv": ("-t 12", ONE_KEY),
    "b_frames.avi": ("", "-c:v mpeg4 -bf 2 -g 50 -q:v 3 -c:a mp2"),
    "slow_keys.ogv": ("", "-c:v libtheora -q:v 8 -g 60 -c:a libvorbis"),
}


@with_ffmpeg
@pytest.mark.parametrize("name", FILMS)
def test_frames_are_those_of_a_slow_decoding(tmp_path, numbered, name):
    before, options = FILMS[name]
    path = film(tmp_path / name, SOUND.format(40).split(), [*before.split(), *numbered], options=options.split())
    times, numbers = slow_decoding(path)
    assert len(times) > 3
    for start, n in ((0, 64), (5.5, 64), (20.032, 64), (34, 38)):
        got = numbers_shown(embeddings.read_frames(path, start)[..., 0], 64)
        assert abs(len(got) - n) < 3  # up to the sound's end, which codecs round up
        for k, number in enumerate(got):
            near = start + (k + np.array((-0.51, 0.51))) * 0.15625  # half a step, and rounding
            first, last = np.maximum(np.searchsorted(times, near, "right") - 1, 0)
            assert number in numbers[first : last + 1], (start, k)


@with_ffmpeg
def test_an_index_saves_decoding_from_the_beginning(tmp_path, numbered, monkeypatch):
    path = film(tmp_path / "a.mp4", numbered, options="-c:v mpeg4 -g 10 -q:v 3".split())
    calls, run = [], embeddings.run_ffmpeg
    monkeypatch.setattr(embeddings, "run_ffmpeg", lambda *args: calls.append(args[1]) or run(*args))
    assert numbers_shown(embeddings.read_frames(path, 21.0)[:1, ..., 0], 64) == [105]  # of 20 s there is a key picture
    assert [options[-2:] for options in calls[1:]] == [["-ss", "21.0"]]  # the first call is about the file


@with_ffmpeg
@pytest.mark.parametrize("kind", ("ts", "mpg"))
def test_pictures_of_joined_files_go_on(tmp_path, numbered, kind):
    for k in range(3):  # each has a clock of its own
        part = ["-ss", str(4 * k), "-t", "4", *numbered]
        film(tmp_path / f"{k}.{kind}", part, SOUND.format(4).split(), options=MPEG2.split())
    path = tmp_path / f"joined.{kind}"
    path.write_bytes(b"".join((tmp_path / f"{k}.{kind}").read_bytes() for k in range(3)))
    for start in (3, 6.5):
        got = numbers_shown(embeddings.read_frames(path, start, 3)[..., 0], 64)
        assert len(got) == 19 and np.abs(got - 5 * (start + np.arange(19) * 0.15625)).max() <= 2


@with_ffmpeg
@pytest.mark.parametrize("seconds, rate, n", [(10, "30000/1001", 64), (10.24, 25, 64), (9.9, 25, 63), (7.3, 25, 47)])
def test_number_of_frames(tmp_path, seconds, rate, n):
    path = film(tmp_path / "v.mkv", f"testsrc=s=320x240:r={rate}:d={seconds}", options=("-c:v", "mpeg4"))
    assert embeddings.read_frames(path).shape == (n, 224, 224, 3)


@with_ffmpeg
def test_frames_of_odd_videos(tmp_path, monkeypatch):
    clock = film(tmp_path / "clock.mkv", CLOCK.format(10))
    times = np.arange(64) * 0.15625
    options = ("-vf", "select='not(mod(n,3))+lt(n,50)'", "-c:v", "ffv1")
    frames = embeddings.read_frames(film(tmp_path / "vfr.mkv", ["-i", str(clock)], options=options))
    assert len(frames) == 64 and np.abs(times_shown(frames, times) - times).max() < 0.17  # where it has 8 a second
    later, options = ["-itsoffset", "1", "-i", str(clock)], "-map 0:a -map 1:v -c:v copy -t 8".split()
    late = film(tmp_path / "late.mkv", "anullsrc=d=5", later, options=options)  # the sound begins a second before
    frames = embeddings.read_frames(late)
    assert np.abs(times_shown(frames, times[: len(frames)] - 1)[7:] - times[7 : len(frames)] + 1).max() < 0.09
    assert (times_shown(frames[:6], times[:6]) < 0.09).all()
    for size in ("321x181", "181x321", "64x48", "2x90", "8192x2", "2x8192", "1x1"):
        options = ("-c:v", "ffv1", "-pix_fmt", "yuv420p")
        path = film(tmp_path / "odd.mkv", f"nullsrc=s={size}:r=25:d=1", options=options)
        assert embeddings.read_frames(path).shape == (6, 224, 224, 3)
    path.rename(tmp_path / "pipe:0")
    monkeypatch.chdir(tmp_path)
    assert len(embeddings.read_frames("pipe:0")) == 6  # no name makes ffmpeg read anything but that file
    red_blue, maps = ("color=red:s=64x64:d=1", "color=blue:s=96x96:d=1"), "-map 0 -map 1 -c:v ffv1"
    unmarked = f"{maps} -map 2 -disposition:v 0".split()
    larger = film(tmp_path / "larger.mkv", *red_blue, "anullsrc=d=1", options=unmarked)
    assert embeddings.read_frames(larger)[0, 100, 100].argmax() == 2
    marked = f"{maps} -disposition:v:0 default -disposition:v:1 0".split()
    default = film(tmp_path / "default.mkv", *red_blue, options=marked)
    assert embeddings.read_frames(default)[0, 100, 100].argmax() == 0


@with_ffmpeg
def test_the_crop_is_the_centre_of_a_picture_with_256_lines(tmp_path):
    for size, box in (("640x240", "x=202:y=10:w=236:h=220"), ("240x640", "x=10:y=202:w=220:h=236")):
        # of 640 x 240 pixels those from 215 to 425 and from 15 to 225 are seen, and so blue alone; turned, the same
        picture = f"color=red:s={size}:d=1,drawbox={box}:c=blue:t=fill"
        frame = embeddings.read_frames(film(tmp_path / "box.mkv", picture, options=("-c:v", "ffv1")))[0].astype(int)
        assert (frame[..., 2] > 200).all() and (frame[..., 0] < 50).all()


@with_ffmpeg
def test_rotation_and_the_centre_crop(tmp_path):
    halves = "color=red:s=320x240:r=25:d=1[a];color=blue:s=320x240:r=25:d=1[b];[a][b]hstack"  # 640x240
    path = film(tmp_path / "a.mp4", halves, options=("-c:v", "mpeg4", "-q:v", "2"))
    frame = embeddings.read_frames(path)[0].astype(int)
    assert (frame[:, :110, 0] > 200).all() and (frame[:, 114:, 2] > 200).all()  # the border runs through the middle
    # the turn is written into the track header's matrix (a, b, c, d as 16.16 numbers): 90 degrees
    content = path.read_bytes()
    straight = bytes.fromhex("00010000 00000000 00000000 00000000 00010000 00000000 00000000 00000000 40000000")
    turned = bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000 00000000 00000000 00000000 40000000")
    place = content.index(straight, content.index(b"tkhd"))
    path.write_bytes(content[:place] + turned + content[place + len(straight) :])
    frame = embeddings.read_frames(path)[0].astype(int)
    assert (frame[:110, :, 0] > 200).all() and (frame[114:, :, 2] > 200).all()


@with_ffmpeg
def test_videos_that_cannot_be_decoded_get_one_line(tmp_path):
    whole = film(tmp_path / "a.mp4", "testsrc=s=320x240:r=25:d=10", options=("-c:v", "mpeg4")).read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"<html>gone</html>")):
        (tmp_path / f"{name}.mp4").write_bytes(content)
    film(tmp_path / "sound.mp4", "anullsrc=d=2", options=())
    for name in ("cut", "empty", "text", "sound", "absent", "-x"):
        with pytest.raises(InputError, match=rf"{name}\.mp4: no video \(.*\)$") as error:
            embeddings.read_frames(tmp_path / f"{name}.mp4")
        assert "\n" not in str(error.value)
    film(tmp_path / "a.mkv", "testsrc=s=320x240:r=25:d=10", options=("-c:v", "mpeg4"))
    cut = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(cut[: len(cut) // 2])  # this format can be read up to where it breaks off
    assert 20 < len(embeddings.read_frames(tmp_path / "a.mkv")) < 45


@with_ffmpeg
def test_a_playlist_is_no_video(tmp_path):
    film(tmp_path / "other.mkv", "testsrc=s=64x64:r=25:d=2", options=("-c:v", "mpeg4"))
    film(tmp_path / "other.ts", "testsrc=s=64x64:r=25:d=2", options=("-c:v", "mpeg4"))
    for content in (
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.ts\n",  # HLS: without ENDLIST, more is to come for ever
        "ffconcat version 1.0\nfile other.mkv\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 31\n",  # SDP
    ):
        (tmp_path / "a.mp4").write_text(content)
        with pytest.raises(InputError, match=r"a\.mp4: no video \(a playlist, or a format that is not read\)$"):
            embeddings.read_frames(tmp_path / "a.mp4", 0, 1)
    (tmp_path / "other.ts").rename(tmp_path / "a.mp4")  # a real format under another's name
    assert len(embeddings.read_frames(tmp_path / "a.mp4")) == 13


def test_frames_of_an_ffmpeg_that_fails_do_not_count(tmp_path, monkeypatch):
    frame = "sys.stdout.write('x' * 224 * 224 * 3)"
    fake = f"#!{sys.executable} -S\nimport sys\n{frame}\nsys.exit('first line\\nno memory left')\n"
    (tmp_path / "ffmpeg").write_text(fake)
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"a\.mp4: no video \(no memory left\)$"):
        embeddings.read_frames(tmp_path / "a.mp4")


def test_without_ffmpeg_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="ffmpeg: not found"):
        embeddings.read_frames(tmp_path / "a.mp4")
    error = refused(capsys, "extract", write_tiny(tmp_path / "set"), "--visual", "tce", "--weights", "w.pth")
    assert re.fullmatch("error: ffmpeg: not found.*\n", error)


# --- python -m extras.embeddings extract ------------------------------------------------------------------------------


def test_which_file_is_the_video_of_a_clip(tmp_path):
    def put(name):
        (tmp_path / name).touch()
        return tmp_path / name

    train, public = "Yabcdefg-_12_30.000_37.000.wav", "Ybcdefg-_12_120_131.wav"
    assert embeddings.find_video(tmp_path, train) is None
    assert embeddings.find_video(tmp_path / "absent", "a.wav") is None
    whole = put("abcdefg-_12.webm")
    assert embeddings.find_video(tmp_path, train) == (whole, 30, 7)
    assert embeddings.find_video(tmp_path, public) is None
    assert (put("Ybcdefg-_12.mp4"), 120, 11) == embeddings.find_video(tmp_path, public)
    cut = put("Yabcdefg-_12_30.000_37.000.mkv")  # a clip of its own comes before the whole video
    assert embeddings.find_video(tmp_path, train) == (cut, 0, 10)
    put("05.avi"), put("5.mp4")
    assert embeddings.find_video(tmp_path, "05.wav") is None and embeddings.find_video(tmp_path, "5.ogg")[1:] == (0, 10)


def test_closing_stops_the_decoding_that_runs_ahead(tmp_path, monkeypatch):
    frame = "sys.stdout.write('x' * 224 * 224 * 3), sys.exit() if 'first.mp4' in ' '.join(sys.argv) else 0"
    later = f"time.sleep(3), open({str(tmp_path / 'went on')!r}, 'w')"
    (tmp_path / "ffmpeg").write_text(f"#!{sys.executable} -S\nimport sys, time\n{frame}\n{later}\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    names = ["first.mp4", *(f"{k}.mp4" for k in range(30))]
    with contextlib.closing(embeddings.decode_ahead([(name, 0, 0.15) for name in names])) as decoded:
        assert next(decoded).shape == (1, 224, 224, 3)
    assert not embeddings.RUNNING and not (tmp_path / "went on").exists()


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """A tiny data set whose videos need no ffmpeg: what a file holds is how many frames it has, or that it is broken"""
    root, calls = write_tiny(tmp_path / "set", streams=()), []
    (root / "video").mkdir()
    for name, content in {
        "Yaaaaaaaaaaa_0.000_10.000.mp4": "64",
        "bbb_bb-bbb_.mkv": "26",  # the whole video of Ybbb_bb-bbb__0.000_4.000
        "w2.webm": "1",
        "w3.mp4": "broken",
        "u1.mp4": "5",
        "gone.mp4": "3",
        "nobody.mp4": "64",  # not listed
    }.items():
        (root / "video" / name).write_text(content)

    def read_frames(path, start, seconds):
        calls.append(path.stem)
        if path.read_text() == "broken":
            raise InputError(f"{path}: no video (broken)")
        return video_frames(int(path.read_text()), seed=len(path.stem))

    monkeypatch.setattr(embeddings, "read_frames", read_frames)
    monkeypatch.setattr(embeddings, "find_ffmpeg", lambda: "ffmpeg")
    return root, calls


@pytest.fixture
def extract(resnet50_file):
    def run(root, *more):
        weights = [str(resnet50_file)] * (1 + len(more))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is not TCE
            embeddings.main(["extract", str(root), "--visual", "tce", *more, "--weights", *weights])

    return run


def test_extract_fills_the_visual_folder(videos, extract, resnet50_file, capsys):
    root, calls = videos
    extract(root)
    out, folder = capsys.readouterr().out, root / "visual" / "tce"
    for line in (
        "strong         4 listed,     4 with audio,     0 with video,     0 with tce",
        "weak           4 listed,     4 with audio,     4 with video,     0 with tce",
        "unlabelled     7 listed,     6 with audio,     2 with video,     0 with tce",
    ):
        assert line in out
    assert re.search(r"counted as missing: .*w3\.mp4: no video \(broken\)\n$", out) and "5 clips extracted in 0:" in out
    made = ["Yaaaaaaaaaaa_0.000_10.000", "Ybbb_bb-bbb__0.000_4.000", "gone", "u1", "w2"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{stem}.npy" for stem in made]
    with pytest.warns(UserWarning, match="not TCE"):
        network = embeddings.load_network("tce", resnet50_file)
    for stem, video, n in ((made[0], made[0], 64), (made[1], "bbb_bb-bbb_", 26), (made[4], "w2", 1)):
        vectors = np.load(folder / f"{stem}.npy")
        assert vectors.shape == (64, 2048) and vectors.dtype == np.float16
        want = embeddings.embed_frames(network, video_frames(n, seed=len(video)))
        assert np.allclose(vectors[:n], want, rtol=2e-3, atol=1e-4) and (vectors[n:] == vectors[n - 1]).all()
    data = features.load_dataset(root, ("tce",), log=quiet)
    assert data.partitions["weak"].present["tce"].tolist() == [True, True, True, False]
    # once more: what exists is left alone, what was broken is tried again
    (folder / "u1.npy").unlink()
    (root / "video" / "w3.mp4").write_text("2")
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    calls.clear()
    extract(root)
    assert sorted(calls) == ["u1", "w3"] and len(list(folder.iterdir())) == 6
    assert all(path.stat().st_mtime_ns == t for path, t in kept.items())
    assert "4 had their files before, 0 cannot" in capsys.readouterr().out


def test_extract_decodes_once_for_all_networks(videos, extract, monkeypatch):
    root, calls = videos
    narrow = embeddings.OpenL3Image().eval()
    narrow.load_state_dict(openl3_weights(), strict=False)
    load = embeddings.load_network
    monkeypatch.setattr(embeddings, "load_network", lambda n, *args: narrow if n == "openl3" else load(n, *args))
    extract(root, "openl3")
    assert len(calls) == len(set(calls)) == 6
    assert np.load(root / "visual/openl3/u1.npy").shape == (64, 512) and len(list((root / "visual/tce").iterdir())) == 5
    (root / "visual/openl3/u1.npy").unlink()
    calls.clear()
    extract(root, "openl3")
    assert sorted(calls) == ["u1", "w3"]


def test_values_beyond_float16_stop_the_extraction(videos, extract, monkeypatch, capsys):
    root, _ = videos
    for value in (65505.0, math.nan, -math.inf):
        monkeypatch.setattr(embeddings, "embed_frames", lambda *_, v=value: np.array([[1.0, v]], np.float32))
        with pytest.raises(SystemExit) as stop:
            extract(root)
        assert stop.value.code == 2
        assert re.fullmatch(r"error: .*\.mp4 through .*r\.pth: the network gives .*\n", capsys.readouterr().err)
    assert not [path for path in (root / "visual").rglob("*") if path.is_file()]
    monkeypatch.setattr(embeddings, "embed_frames", lambda *_: np.array([[-65504.0]], np.float32))
    extract(root)


def test_an_interrupted_extraction_goes_on_and_leaves_no_half_file(videos, extract, monkeypatch, capsys):
    def disk_full(file, array):
        file.write(b"half of it")
        raise OSError("disk full")

    def interrupted(network, frames):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(len(frames))
        return np.ones((len(frames), 3), np.float32)

    root, calls = videos
    embedded, folder = [], root / "visual" / "tce"
    monkeypatch.setattr(embeddings, "embed_frames", interrupted)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(np, "save", disk_full)
        extract(root)
    assert stop.value.code == 2 and ".npy: cannot be written (disk full)" in capsys.readouterr().err
    assert not list(folder.iterdir())
    embedded.clear()
    with pytest.raises(SystemExit, match="interrupted; the same command goes on"):
        extract(root)
    assert len(list(folder.glob("*.npy"))) == len(list(folder.iterdir())) == 2
    embedded += [0]  # past the moment of the interruption
    calls.clear()
    extract(root)
    assert sorted(calls) == ["gone", "u1", "w2", "w3"] and len(list(folder.iterdir())) == 5


def test_decoding_runs_ahead_but_not_away(monkeypatch):
    started, three = [], threading.Barrier(3)

    def read_frames(path, start, seconds):
        started.append(path)
        if path < 3:
            three.wait(timeout=60)  # goes on when three decode at once
        return path

    monkeypatch.setattr(embeddings, "read_frames", read_frames)
    monkeypatch.setattr(embeddings, "cores", lambda: 3)
    for i, frames in enumerate(embeddings.decode_ahead([(k, 0, 10) for k in range(30)])):
        time.sleep(0.01)  # time to run further ahead, if that were possible
        assert frames == i and len(started) <= i + 4
    assert i == 29


@with_ffmpeg
def test_extract_from_real_files(tmp_path, extract, resnet50_file):
    root = write_tiny(tmp_path / "set", streams=())
    (root / "video").mkdir()
    film(root / "video" / "bbb_bb-bbb_.mkv", CLOCK.format(0.5))
    film(root / "video" / "w2.webm", "testsrc=s=90x120:r=10:d=0.3", options=("-f", "matroska", "-c:v", "mpeg4"))
    (root / "video" / "w3.mp4").write_bytes(b"not a video")
    extract(root)
    assert sorted(p.stem for p in (root / "visual/tce").iterdir()) == ["Ybbb_bb-bbb__0.000_4.000", "w2"]
    with pytest.warns(UserWarning, match="not TCE"):
        vectors = embeddings.video_embeddings(root / "video" / "w2.webm", "tce", resnet50_file)
    assert vectors.shape == (64, 2048) and vectors.dtype == np.float16
    assert np.array_equal(vectors, np.load(root / "visual/tce/w2.npy"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--visual", "tce"], "--weights"),
        (["--visual", "tce", "vgg16", "--weights", "r.pth"], "one file for each"),
        (["--visual", "tce", "tce", "--weights", "r.pth", "r.pth"], "different names"),
        (["--visual", "vgg19", "--weights", "r.pth"], "invalid choice"),
        (["--visual", "tce", "--weights", "none.pth"], "error: none.pth: No such file"),
        (["--visual", "tce", "--weights", "r.pth", "--device", "nonsense"], "error: --device nonsense: not available"),
    ],
)
def test_bad_flags_of_extract(videos, flags, message, capsys):
    error = refused(capsys, "extract", videos[0], *flags)
    assert message in error and "Traceback" not in error


def test_extract_without_videos_or_data_gets_one_line(videos, tmp_path, capsys):
    root, _ = videos
    shutil.rmtree(root / "video")
    no_video, no_data = "video: no video of any listed clip", "no: no such folder"
    for folder, message in ((root, no_video), (tmp_path / "no", no_data)):
        error = refused(capsys, "extract", folder, "--visual", "tce", "--weights", "r.pth")
        assert message in error and error.count("\n") == 1


# --- VGGish ----------------------------------------------------------------------------------------------------------


def vggish_entries():
    """Names and shapes of the published vggish-10086976.pth"""
    entries, n_inputs = {}, 1
    for place, width in zip((0, 3, 6, 8, 11, 13), (64, 128, 256, 256, 512, 512)):
        entries |= {f"features.{place}.weight": (width, n_inputs, 3, 3), f"features.{place}.bias": (width,)}
        n_inputs = width
    for place, n_outputs, n_inputs in ((0, 4096, 12288), (2, 4096, 4096), (4, 128, 4096)):
        entries |= {f"embeddings.{place}.weight": (n_outputs, n_inputs), f"embeddings.{place}.bias": (n_outputs,)}
    return entries


@pytest.fixture(scope="module")
def vggish_file(tmp_path_factory):
    """Weights under the published names, in a small file: but for the first layer, outputs see all inputs alike"""
    path, weights = tmp_path_factory.mktemp("weights") / "v.pth", random_weights(vggish_entries(), light=True)
    for name, weight in weights.items():
        if weight.ndim > 1:
            each = (slice(None), *[slice(1)] * (weight.ndim - 1))
            weights[name] = (weight[each] / math.prod(weight.shape[1:]) ** 0.5).expand(weight.shape)
    weights["features.0.weight"] = torch.randn(64, 1, 3, 3)
    torch.save(weights, path)
    return path


def test_vggish_has_the_published_names_and_size():
    with torch.device("meta"):
        network = embeddings.VGGish()
        assert network(torch.empty(10, 96, 64)).shape == (10, 128)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == vggish_entries()
    assert sum(p.numel() for p in network.parameters()) == 72141184
    assert type(network.embeddings[-1]) is nn.ReLU


def test_vggish_layer_by_layer():
    torch.manual_seed(0)
    network, x = embeddings.VGGish().eval(), torch.randn(1, 96, 64)
    state = network.state_dict()

    def conv(x, place):
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        return nn.functional.conv2d(x, weight, bias, padding=1).relu()

    def pool(x):
        return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))

    y = pool(conv(pool(conv(x[None], 0)), 3))
    y = pool(conv(conv(pool(conv(conv(y, 6), 8)), 11), 13))  # (1, 512, 6, 4)
    order = [y[0, channel, t, f] for t in range(6) for f in range(4) for channel in range(512)]  # channels run fastest
    y = torch.stack(order)
    for place in (0, 2, 4):
        y = (state[f"embeddings.{place}.weight"] @ y + state[f"embeddings.{place}.bias"]).relu()
    with torch.no_grad():
        assert y.max() > 0 and torch.allclose(network(x)[0], y, atol=1e-6)


def test_vggish_hears_96_frames_of_64_bands():
    rate = 16000
    sound = np.random.default_rng(0).standard_normal(10 * rate) * 0.1
    log_mel = embeddings.vggish_log_mel(sound)
    assert log_mel.shape == (10, 96, 64) and embeddings.vggish_log_mel(sound[:15600]).shape == (1, 96, 64)
    frame = sound[205 * 160 :][:400] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400))  # third map, frame 13
    spectrum = [abs(np.sum(frame * np.exp(-2j * np.pi * k * np.arange(400) / 512))) for k in range(257)]
    mel = lambda hertz: 1127 * math.log(1 + hertz / 700)  # noqa: E731
    edges = [mel(125) + k * (mel(7500) - mel(125)) / 65 for k in range(66)]
    for band in (0, 7, 63):
        low, centre, high = edges[band : band + 3]
        total = 0
        for k, magnitude in enumerate(spectrum):
            m = mel(k * rate / 512)
            total += magnitude * max(0, min((m - low) / (centre - low), (high - m) / (high - centre)))
        assert abs(log_mel[2, 13, band].item() - math.log(total + 0.01)) < 1e-4
    assert np.allclose(embeddings.vggish_log_mel(np.zeros(16000)), math.log(0.01))


def test_extract_fills_the_sound_folder(tmp_path, capsys, vggish_file):
    root = write_tiny(tmp_path / "set", streams=())
    shutil.rmtree(root / "audio/train/weak")  # a listed clip need not be there
    shutil.rmtree(root / "audio/train/unlabel_in_domain"), shutil.rmtree(root / "audio/train/synthetic20")
    (root / "audio/validation/v0.wav").write_bytes(b"no sound")
    (root / "audio/validation/v3.wav").unlink()
    for name in (".DS_Store", "._v1.wav", "v1.jams", "v1.txt", "Thumbs.db"):  # nobody's sound
        (root / "audio/validation" / name).write_bytes(b"no sound")
    soundfile.write(root / "audio/validation/v3.wav", np.full(16000, 1e37), 16000, subtype="FLOAT")  # finite, far out
    flags = ("extract", str(root), "--sound", "vggish", "--weights", str(vggish_file))
    embeddings.main(flags)
    out, folder = capsys.readouterr().out, root / "sound/vggish"
    stems = {path.stem for path in (root / "audio").rglob("[!.]*.wav")} - {"v0", "v3"}
    assert {path.stem for path in folder.iterdir()} == stems and "0 had their files before, 2 cannot be decoded" in out
    assert "v3.wav: holds samples beyond 1e+10" in out
    assert "counted as missing" in out and "v0.wav: cannot be decoded" in out
    vectors, path = np.load(folder / "v1.npy"), root / "audio/validation/v1.wav"
    assert vectors.shape == (10, 128) and vectors.dtype == np.float32
    network = embeddings.load_network("vggish", vggish_file)
    sound = np.concatenate([features.read_mono(path)[0], np.zeros(128000, np.float32)])
    with torch.no_grad():
        assert np.allclose(vectors, network(embeddings.vggish_log_mel(sound)), atol=1e-4)
    assert not np.allclose(vectors[0], vectors[9])  # two seconds of noise, then silence
    # as loud as the file: twice the sound is another one
    loud, rate = soundfile.read(path)
    soundfile.write(path, 0.5 * loud, rate)
    (folder / "v1.npy").unlink()
    kept = (folder / "v2.npy").stat().st_mtime_ns
    embeddings.main(flags)
    assert not np.allclose(np.load(folder / "v1.npy"), vectors) and (folder / "v2.npy").stat().st_mtime_ns == kept
    # what is wrong
    assert "not the weights of this network" in refused(capsys, *flags[:-1], other_weights(tmp_path))
    shutil.rmtree(root / "audio")
    assert "no sound in the folders of any list" in refused(capsys, *flags)
    assert "one file for each" in refused(capsys, *flags[:2], "--weights", "w.pth")
    assert "one file for each" in refused(capsys, *flags, "--visual", "tce")


def test_extract_makes_statistics_of_log_mel_without_any_weights(tmp_path, capsys):
    root = write_tiny(tmp_path / "set", streams=())
    embeddings.main(["extract", str(root), "--sound", "log-mel"])
    stems = {path.stem for path in (root / "audio").rglob("*.wav")}
    assert {path.stem for path in (root / "sound/log-mel").iterdir()} == stems
    log_mel = features.log_mel(features.load_audio(root / "audio/validation/v0.wav")).numpy()
    steps = np.load(root / "sound/log-mel/v0.npy")
    assert steps.shape == (10, 128) and steps.dtype == np.float32
    for step in (0, 4, 9):
        inside = [log_mel[k] for k in range(512) if step * 0.96 <= k * 313 / 16000 < (step + 1) * 0.96]
        assert np.allclose(steps[step, :64], np.mean(inside, 0), atol=1e-5)
        assert np.allclose(steps[step, 64:], np.std(inside, 0), atol=1e-5)
    assert "but log-mel" in refused(capsys, "extract", str(root), "--sound", "log-mel", "--weights", "w.pth")
    assert "but log-mel" in refused(capsys, "extract", str(root), "--sound", "log-mel", "vggish")


def other_weights(folder):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, folder / "other.pth")
    return folder / "other.pth"


def test_pictures_of_a_set_with_three_lists(videos, extract):
    root, _ = videos
    for table in ("train/synthetic20/soundscapes.tsv", "train/unlabel_in_domain.tsv"):
        (root / "metadata" / table).unlink()
    labels = "filename\tevent_labels\nv0.wav\tDog\n"
    (root / "metadata/validation/validation.tsv").write_text(labels)
    extract(root)
    assert "w2.npy" in {path.name for path in (root / "visual/tce").iterdir()}
