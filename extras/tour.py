"""One clip's way through Boes & Van hamme 2022, from the sound to the scores and to one step of training.

    python -m extras.tour            runs the cells below, writes them and what they made as tour.html; needs matplotlib
    python -m extras.tour --shapes   nothing but the table of shapes

The file is a notebook, too: open it in VS Code or Spyder, or in Jupyter with jupytext, from the project's top folder.
"""

# %% [markdown]
# # One clip's way through the paper
#
# W. Boes and H. Van hamme, *Multi-encoder attention-based architectures for sound recognition with partial visual
# assistance*, 2022. The task is **sound event detection**: which of ten sounds does a clip hold, from when to when? The
# paper lets the network look at the video of the clip as well, although for many clips the video is gone.
#
# This page follows one clip of ten seconds, from the file to the scores. Then it takes one step of training. You should
# know PyTorch and what attention is. You need not know anything about sound. Every number and picture below is made by
# the functions that the real program uses. Their names stand in the code, so you can look them up.
#
# The clip is a *toy*: its sounds are synthesised, and its "video" is a row of 64 vectors made from the truth. With real
# data the vectors come from a pretrained network, which looks at 64 pictures of the video and stays fixed: OpenL3
# (`openl3` below) or TCE (`tce`). So the scores of the toy mean nothing elsewhere. Every shape, formula and step is
# that of the paper. Words that are new to you are explained at the end of the page.

# %% tags=["shapes"]
from pathlib import Path

import numpy as np

from extras import cells, page, plots, predict, runs, toy  # before torch

import torch  # isort: skip

import features
import metrics
import train
from avsed import KEY, MultiEncoder, interpolation_weights, relative_rows
from extras.cells import show
from features import FRAME_HOP, SAMPLE_RATE

if __name__ == "__main__" and not cells.in_notebook():
    cells.main(__file__)  # as a command: the cells are run from there, and end up on a page
HERE, CPU = Path(cells.__file__).parent, torch.device("cpu")

# %% [markdown]
# We need data and a trained model. `python train.py --visual openl3` leaves one in the folder `runs`. If there is none,
# a much shorter training follows here (two to three minutes on two cores). Its network hears badly, but everything
# below can be seen with it, too.

# %%
toy.make_toy("data/toy")
data = features.load_dataset("data/toy", ["openl3"])
models = sorted(Path("runs").glob("toy-transformer-openl3-*/model.pt"))
if not models:
    print("no finished run of `python train.py --visual openl3` here, so a short one is trained now")
    train.main("--visual openl3 --epochs 3 --out runs/tour --resume".split())
    models = [Path("runs/tour/model.pt")]
trained, state = predict.load_model(models[0], "cpu"), runs.load(models[0])
student, classes = trained.student.eval(), data.classes  # eval: no dropout, batch norms as training left them
print(f"model: {models[0]}")

# %% [markdown]
# ## 1. The clip: always heard, sometimes seen
#
# *Sec. 1 and 3.1.1.* Large collections of sound come from YouTube. Whoever publishes such a collection keeps the sound,
# but not the video. Years later many videos are deleted: in the paper's data **15.5 %** of those clips. The usual ways
# out are to throw such clips away, or to make up what is missing. The first wastes clips. The second needs the sound to
# tell what the picture was; but a video may show a still image, a black screen, or something that has nothing to do
# with the sound. The paper does neither. It keeps every clip, and uses the video where there is one.

# %%
public = data.partitions["public"]
name = "Ytoypubl0073_0.000_10.000.wav"
i = public.filenames.index(name)
clip = features.subset(public, np.arange(len(public)) == i)  # a partition with this clip alone
waveform = features.load_audio(clip.paths[0])  # (160000,): 10 s at 16 kHz, peak at 1
truth, here = clip.events, sorted({label for *_, label in clip.events})
show(page.player(waveform, SAMPLE_RATE, name), "Listen to it: this is all that the network hears.")
vectors = public.visual["openl3"][i]  # (64, 512)
bars = [(onset, offset, here.index(label), "tab:orange") for _, onset, offset, label in truth]
strips = [("sound", waveform, None), ("video: 64 vectors", vectors[:, :64], None), ("events", bars, here)]
show(plots.plot_strips(strips), "What is heard, what is seen (the first 64 of 512 dimensions), and the true events.")

# %% [markdown]
# Events may overlap. What is known of a training clip is of one of three kinds:
#
# | kind | what is known | example |
# |---|---|---|
# | strong | which sounds, each with its **onset** and **offset** in seconds | a dog from 3.1 to 4.2 s |
# | weak | which sounds, but not when | a dog |
# | unlabelled | nothing | |
#
# Strong labels are expensive: somebody must listen many times. So the paper's strong clips are synthetic mixtures,
# which never had a video, and 14,412 of its 18,574 training clips are unlabelled. Two more parts have strong labels and
# are not trained on: settings such as thresholds are chosen on the *validation* clips, the *public* ones are scored at
# the very end.
#
# ## 2. The whole network, and all shapes
#
# *Sec. 2.* Two **encoders** read the clip: one hears, one sees. Each leaves a **memory** of 64 vectors. The **decoder**
# starts from the sound as well (the sound tells *when*), asks both memories, and answers for each of 64 **output
# frames** (0.1565 s each) which classes sound there. One more vector, the **token**, collects the answer for the clip
# as a whole.

# %%
show(cells.drawing(HERE / "figures/architecture.svg"), "The bi-encoder transformer, with the weights 0.75 and 0.25.")

# %% tags=["shapes"]
def print_shapes():
    """Each stage of the network, and the shape of what it makes of one clip of 10 s"""
    model = MultiEncoder(n_classes=10, visual_dims={"openl3": 512}).eval()
    sound, vectors = np.zeros((1, features.CLIP_SAMPLES)), torch.zeros(1, 64, 512)
    made, block = {"waveform": sound, "log-mel": features.log_mel(sound)}, model.decoder.blocks[0]
    stages = {f"CNN, stack {k}": stack for k, stack in enumerate(model.cnn, 1)}
    stages |= {"acoustic encoder: its memory": model.audio_encoder, "visual input, projected": model.visual_inputs[0]}
    stages |= {"visual encoder: its memory": model.visual_encoders[0], "decoder block 1, attention": block.attention}
    stages |= {f"decoder block 1, copy {e} of 2": copy for e, copy in enumerate(block.cross.copies, 1)}
    stages |= {"decoder block 1, weighted sum": block.cross, "decoder, all 3 blocks": model.decoder}
    for stage, module in stages.items():
        module.register_forward_hook(lambda module, x, y, stage=stage: made.update({stage: y}))
    logits = model(made["log-mel"], {"openl3": vectors}, {"openl3": torch.tensor([True])}, audio_weight=0.75)
    made |= dict(zip(("logits of the output frames", "logits of the clip"), logits))
    for stage, values in made.items():
        print(f"{stage:32} {tuple(values.shape)}")


print_shapes()

# %% [markdown]
# There are three kinds of frames, so we always say which. A clip has **512 log-mel frames** (313 samples or 19.6 ms
# apart), **64 output frames** (of 8 log-mel frames each: 0.1565 s) and **64 pictures** (one per 0.15625 s). The last
# two fall on the same moments, to within 16 ms at the clip's end. So the 65 vectors in the decoder are 64 output frames
# and the token.
#
# ## 3. From sound to log-mel
#
# *Sec. 3.1.2.* The waveform has 16,000 numbers per second: too many, and what we hear as high or low is only in how
# fast they swing. So we cut the sound into short overlapping **windows**. Each window is turned into frequencies by a
# Fourier transform. Then 64 overlapping filters sum up neighbouring frequencies. Low ones are narrow and high ones are
# wide, as in the ear: this is the *mel* scale. The logarithm comes last, since we hear ratios of loudness, not
# differences.

# %%
show(plots.plot_windows(waveform, begin=truth[0][1] + 0.2), "Left: three windows over a tenth of a second of our clip. "
     "Right: how much each filter takes of each frequency.")  # fmt: skip
log_mel = features.log_mel(waveform)  # (512, 64)
standardised = train.standardise(log_mel, train.statistics_on(CPU, data)["log-mel"])
strips = [("log-mel", log_mel.numpy(), None), ("standardised", standardised.numpy(), None), ("events", bars, here)]
show(plots.plot_strips(strips), "512 log-mel frames of 64 bins, low frequencies at the bottom. Find the events in it.")

# %% [markdown]
# **Standardised** means: from each of the 64 bins its mean is subtracted, then it is divided by its standard deviation.
# Both come from the *training* clips alone. Why? The test clips stand for sounds that nobody knows yet. If their mean
# went into the system, it would know something about the test before the test begins.
#
# ## 4. The CNN: where time and frequency go
#
# *Sec. 3.1.2, Table 3.* Seven stacks of convolution, batch norm, ReLU, dropout and average pooling. The first three
# halve time and frequency, the next three halve frequency only. What remains is one vector of 128 numbers for each of
# 64 output frames. Frequency is gone: it has become part of what the 128 channels mean.

# %%
maps, x = {}, standardised[None, None]
with torch.no_grad():
    for k, stack in enumerate(student.cnn, 1):
        x = stack(x)  # (1, channels, time, frequency)
        channel = x[0].flatten(1).std(1).argmax()  # the one that varies most
        maps[f"stack {k}\n{tuple(x.shape[1:])}"] = x[0, channel].T.numpy()
show(plots.plot_maps(maps, xlabel="time"), "One channel after each stack: channels, time, frequency. Frequency is up.")

# %% [markdown]
# Why pool time by 8? Attention compares every vector with every other one: 64 x 64 pairs are 64 times fewer than 512 x
# 512. And 0.16 s is fine enough for events that last half a second or more.
#
# ## 5. Attention: who looks at whom
#
# *Sec. 2.1.1, Eq. 1.* Each vector asks a question (its **query**). Each vector has a label (its **key**) and a content
# (its **value**). Query and key are compared by a dot product. A softmax makes weights of these scores. The answer is
# the weighted average of the values:
#
#     A(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V          d_k = 128, the length of a key
#
# Why divide by the root of d_k? A sum of 128 products grows like sqrt(128). Without the division the softmax would give
# nearly all weight to one key, and its gradient would vanish. Here is Eq. 1 by hand, in the first head of the first
# block of the acoustic encoder, for three of the 64 output frames that ask each other:

# %%
block, three = student.audio_encoder.blocks[0], [8, 22, 45]
with torch.no_grad():
    cnn_output = student.cnn(standardised[None, None]).squeeze(3).transpose(1, 2)  # (1, 64, 128)
    y = block.attention_norm(cnn_output + student.audio_encoder.positions)  # (1, 64, 128)
    attention, of_three = block.attention, y[:, three]  # (1, 3, 128)
    q, k = (attention.split_heads(linear(of_three))[0, 0] for linear in (attention.query, attention.key))  # (3, 128)
    scores = q @ k.T / KEY**0.5  # (3, 3)
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    assert torch.allclose(weights, attention.attention_weights(of_three, of_three)[0, 0], atol=1e-6)
    maps = {f"head {h}": w.numpy() for h, w in enumerate(attention.attention_weights(y, y)[0], 1)}  # (64, 64) each
rows = [[f"frame {frame}, {frame * FRAME_HOP:.1f} s"] for frame in three]
for row, of_row, shares in zip(rows, scores, weights):
    row += [f"{score:.2f} → {share:.3f}" for score, share in zip(of_row, shares)]
show(page.table(("asks", *(f"frame {k}" for k in three)), rows), "Score → weight. The weights of a row sum to 1.")
caption = "All 64 x 64 weights, a map for each of the three heads. A bright column is a frame that all others look at."
show(plots.plot_maps(maps, "frame that is looked at", "frame that asks"), caption)

# %% [markdown]
# Attention knows no order: it would give the same answers if the frames were shuffled. So the **transformer** adds a
# learnt vector to each of the 64 positions before the first block. The **conformer** (*Sec. 2.1.2*) has learnt vectors
# for *distances* in its attention instead, and a small convolution over 7 frames for what is local. Its table of
# distances has 128 rows: 127 distances from -63 to 63, and one row for every pair that holds the token, which has no
# place in time:

# %%
show(plots.plot_maps({"row of the table": relative_rows().numpy()}, "key", "query"),
     "Equal colour, equal distance, equal row. The token comes last: row 127.")  # fmt: skip

# %% [markdown]
# ## 6. The idea: several encoders, one decoder
#
# *Sec. 2.2, Fig. 4.* **Each block of the decoder asks each encoder separately, and takes a weighted average of the
# answers.** To ask an encoder means **cross-attention**: the queries come from the decoder, keys and values from the
# encoder's memory. For each encoder there is a *copy* of the cross-attention with parameters of its own.
#
# The weights are fixed numbers such as 0.75 for sound and 0.25 for sight. Where a clip has no video, the weight of that
# encoder becomes 0, and the other weights are divided by their sum. Without this division the sum of the answers would
# be smaller for clips without video (0.75 of its size), and the layers behind it would have to cope with two sizes.
# This is all. It works clip by clip, so one batch may mix clips with and without video, in training and in testing
# alike. Here are three clips for a network with two visual streams: one clip has both streams, one has one, one has
# none.

# %%
present = torch.tensor([[True, True], [True, False], [False, False]])  # three clips, two visual streams
of_clips = [dict(zip(("sound", "openl3", "tce"), row)) for row in interpolation_weights(0.75, present).tolist()]
titles = ("both streams", "one stream is missing", "no video at all")
show(plots.plot_weights(dict(zip(titles, of_clips))), "Acoustic weight 0.75. The weights of each clip sum to 1.")

# %% [markdown]
# Why is the weight of sound never 0? The data are labelled by what is *heard*. A picture may be black, or show
# something that makes no sound. And a picture tells *that* there is a blender, but hardly when it begins.
#
# Now our clip, twice in one batch: as it is, and as if its video were gone. We look into the last decoder block.

# %%
weight, has_video = trained.audio_weight, torch.tensor([True, False])
visual = train.standardise(torch.from_numpy(vectors).float(), train.statistics_on(CPU, data)["openl3"])  # (64, 512)
cross, answers = student.decoder.blocks[-1].cross, []
hooks = [module.register_forward_hook(lambda module, x, y: answers.append(y)) for module in (*cross.copies, cross)]
with torch.no_grad():
    twice = [x.expand(2, -1, -1) for x in (standardised, visual)]
    encoded = student.encode(twice[0], {"openl3": twice[1]}, {"openl3": has_video})
    student.decode(*encoded, weight)
for hook in hooks:
    hook.remove()
(of_sound, of_sight, total), (heard, seen) = answers, encoded[1]
shares = interpolation_weights(weight, has_video[:, None])  # (2 clips, 2 encoders)
by_hand = shares[:, 0, None, None] * of_sound + shares[:, 1, None, None] * of_sight  # (2, 65, 128)
assert torch.allclose(by_hand, total, atol=1e-5)
print("weights of sound and sight in this model, chosen on the validation clips:")
print("with video", shares[0].tolist(), "without", shares[1].tolist())
strips = {"memory of the acoustic encoder": heard[0], "memory of the visual encoder": seen[0]}
strips |= {"answer of sound": of_sound[0, :64], "answer of sight": of_sight[0, :64]}
strips |= {"weighted sum, with video": total[0, :64], "weighted sum, without video": total[1, :64]}
show(plots.plot_strips([(label, (x - x.mean(0)).numpy(), None) for label, x in strips.items()]),
     "64 output frames of 128 numbers each. From each number its mean over time is taken off.")  # fmt: skip

# %% [markdown]
# How much does the picture change? Below are the probabilities of all classes for the same clip, while the acoustic
# weight goes from 1 (the video is ignored) to 0.25. Look at which classes come and go: the picture tells hums and
# noises apart that sound alike, and it also shows things that make no sound. It knows the time to about a second only.

# %%
strips = []
with torch.no_grad():
    for w in sorted({1.0, 0.75, 0.5, 0.25, weight}, reverse=True):
        frame_logits, clip_logits = student.decode(*encoded, w)
        strips.append((f"acoustic weight {w}", frame_logits[0].sigmoid().numpy(), classes))
show(plots.plot_strips([*strips, ("true events", bars, here)]), "Frame probabilities: black is 0, bright is 1.")

# %% [markdown]
# The weights are settings, not learnt. The paper tries 0.25, 0.5, 0.75 and 0.875 in training and again when testing,
# and keeps what is best on the validation clips by EBF1 (chapter 8). Drawn anew at random for each batch, between 0.25
# and 1, they work as well, and one search is saved (*Sec. 3.2.2*). Weights that depend on the clip are an open
# question: exercise 10.
#
# ## 7. From probabilities to events
#
# *Sec. 3.1.3.* A probability in each output frame is not yet an event. First a **threshold**: a frame is active where
# its probability is above it. Then a **median filter**: each frame becomes what most of the frames in a window around
# it are. So gaps and blips that are shorter than half the window go. What remains in one piece is an event.

# %%
threshold, window = trained.threshold, trained.window  # of each class, tuned for EBF1
frame_scores, clip_scores = train.predict(student, data, public, [weight], CPU)[weight]  # (80, 64, 10), (80, 10)
with torch.no_grad():  # what the program predicts is what we saw in chapter 6
    assert np.allclose(student.decode(*encoded, weight)[0][0].sigmoid(), frame_scores[i], atol=1e-4)
active = frame_scores[i] > threshold  # (64, 10)
found_at_all = {label for label in here if active[:, classes.index(label)].any()}
label = max(here, key=lambda label: (label in found_at_all, sum(event[3] == label for event in truth)))
c = classes.index(label)
strips = [(f"probability of {label}, threshold {threshold[c]}", frame_scores[i, :, c], threshold[c])]
strips += [("above the threshold", active[:, [c]], [""])]
for size in (window[c], 15):
    filtered = metrics.median_filter(active[None, :, [c]], size)[0]  # (64, 1)
    strips.append((f"after a median filter of {size} output frames", filtered, [""]))
found = train.events_of(clip, classes, frame_scores[[i]], threshold, window)
bars = [(onset, offset, 0, "tab:blue") for _, onset, offset, what in found if what == label]
bars += [(onset, offset, 1, "tab:orange") for _, onset, offset, what in truth if what == label]
show(plots.plot_strips([*strips, ("events", bars, ["found", "true"])]),
     f"Threshold {threshold[c]} and window {window[c]} were tuned. The window of 15 is for comparison.")  # fmt: skip

# %% [markdown]
# Threshold and window are **tuned**: all pairs are tried on the validation clips, and the best F1 wins. Each class has
# its own pair: rare or short sounds get lower probabilities than long, frequent ones, and a window that mends a long
# sound would wipe out a short one. Each score has its own pair, too, because each score forgives other mistakes. CBF1
# has no time and so no window; PSDS has no threshold, and only its windows are tuned, by PSDS itself. This is what
# tuning saw for one class:

# %%
part = data.partitions["validation"]
scores_of_class = train.predict(student, data, part, [weight], CPU)[weight][0][:, :, c : c + 1]  # (60, 64, 1)
reference = [event for event in part.events if event[3] == label]


def f1_with(size, limit):
    files = part.filenames, [label], limit, size, FRAME_HOP, part.seconds
    return metrics.event_f1(reference, metrics.scores_to_events(scores_of_class, *files), [label]).macro


sizes, limits = metrics.TUNING_WINDOWS, metrics.TUNING_THRESHOLDS
grid = np.array([[f1_with(size, limit) for limit in limits] for size in sizes])
chosen = list(sizes).index(window[c]), int(np.abs(limits - threshold[c]).argmin())
axes = "median window, output frames", "threshold", f"event F1 of {label}, validation"
show(plots.plot_grid(grid, sizes, limits, chosen, axes), "The red square is the pair that was chosen.")

# %% [markdown]
# ## 8. Five scores
#
# *Sec. 3.1.4, Table 4.* All of them count what is right (**true positives**), what is found but false (**false
# positives**) and what is missed (**false negatives**). The three F1 scores are 2 TP / (2 TP + FP + FN). They differ in
# *what* is counted: classes of clips (CBF1), seconds (SBF1), or events (EBF1).
#
# | score | counts | asks |
# |---|---|---|
# | CBF1 | classes in each clip, all classes pooled (*micro*) | what? |
# | SBF1 | classes in each second, all classes pooled (*micro*) | what, and roughly when? |
# | EBF1 | events; the mean over the classes that have true events (*macro*) | exactly when? |
# | PSDS1 | events at 50 thresholds, strict about time | when, whatever the threshold? |
# | PSDS2 | events at 50 thresholds, strict about classes | which class, whatever the threshold? |
#
# **Segments (SBF1).** In each second a class is active or not, in truth and in what was found:

# %%
def in_second(events, s):
    return [(file, max(on, s), min(off, s + 1), what) for file, on, off, what in events if on < s + 1 and off > s]


tuned = {score: (pair["threshold"], np.array(pair["window"])) for score, pair in state["tuned"].items()}
found_segments = train.events_of(clip, classes, frame_scores[[i]], *tuned["SBF1"])
seconds = [metrics.segment_f1(in_second(truth, s), in_second(found_segments, s), classes) for s in range(10)]
n_tp, n_fp, n_fn = (np.array(counts).T for counts in zip(*((f1.n_tp, f1.n_fp, f1.n_fn) for f1 in seconds)))
show(plots.plot_segments(classes, n_tp, n_fp, n_fn), "The ten seconds of our clip.")
tags = train.tags_of(clip_scores[[i]], tuned["CBF1"][0])  # (1, 10)
by_clip, by_segment = metrics.clip_f1(clip.tags, tags), metrics.segment_f1(truth, found_segments, classes)
for score, f1 in (("CBF1", by_clip), ("SBF1", by_segment), ("EBF1", metrics.event_f1(truth, found, classes))):
    counts = ", ".join(f"{x} {n.sum()}" for x, n in (("TP", f1.n_tp), ("FP", f1.n_fp), ("FN", f1.n_fn)))
    print(f"{score} of this clip: {counts} -> {f1.macro if score == 'EBF1' else f1.micro:.3f}")
    if score == "EBF1":
        print("     the mean of", ", ".join(f"{what} {f1.per_class[what]:.3f}" for what in here))

# %% [markdown]
# **Events (EBF1).** A found event is right if its onset lies within 0.2 s of the true one, and its offset within 0.2 s
# or 20 % of the true event's length, whichever is more. These tolerances are called **collars**. One slip of a quarter
# of a second makes two errors: a false event and a missed one. The mean over classes leaves out those without true
# events. So in this one clip a false event of another class costs nothing; over all clips every class has true events.
#
# **Events (PSDS).** One blurred edge makes a whole long event wrong, so PSDS asks for overlap instead. *Detection
# tolerance criterion* (DTC): enough of the found event lies in true events of its class; else it is a false positive.
# *Ground truth intersection criterion* (GTC): enough of a true event is covered by such detections; then it counts as
# found. *Cross-trigger criterion* (CTTC): a false positive of which enough lies in an event of *another* class costs
# extra. PSDS1 asks for 0.7 and 0.7: exact times. PSDS2 asks for 0.1 and 0.1, but makes cross-triggers cost: times
# hardly matter, the right class does.

# %%
names = {"dtc_threshold": "DTC", "gtc_threshold": "GTC", "cttc_threshold": "CTTC", "alpha_ct": "cost of cross-triggers"}
names |= {"alpha_st": "cost of deviation", "max_efpr": "false alarms per hour, at most"}
rows = [("PSDS1", *map(metrics.PSDS1.get, names)), ("PSDS2", *map(metrics.PSDS2.get, names))]
show(page.table(("score", *names.values()), rows), "Table 4 of the paper. (PSDS1 has no CTTC: its cost is 0.)")

# %% [markdown]
# Made-up events first. Truth is a dog from 2 to 5 s and speech from 7 to 9 s:

# %% tags=["fold"]
def share(event, others):
    """How much of an event the others cover (no two of them overlap here)"""
    return sum(max(0, min(event[2], o[2]) - max(event[1], o[1])) for o in others) / (event[2] - event[1])


def collars(event):
    return 0.2, max(0.2, 0.2 * (event[2] - event[1]))  # of its onset, of its offset


def judge(event, truth):
    """A found event -> whether each score takes it as right, and the numbers behind that"""
    file, onset, offset, label = event
    same, others = ([r for r in truth if (r[3] == label) == own] for own in (True, False))
    right, why = dict.fromkeys(("EBF1", "PSDS1", "PSDS2"), False), f"{share(event, same):.2f} of it in its class"
    if same:
        nearest = min(same, key=lambda r: abs(r[1] - onset) + abs(r[2] - offset))
        right["EBF1"] = metrics.event_f1([nearest], [event], [label]).macro == 1
        for score, criteria in (("PSDS1", metrics.PSDS1), ("PSDS2", metrics.PSDS2)):
            criteria = criteria | {"gtc_threshold": 0.0}  # so it is above 0 as soon as the detection itself passes
            right[score] = metrics.psds(same, [[event]], {file: 10.0}, [label], **criteria) > 0
        late = onset - nearest[1], offset - nearest[2]
        why = "".join(f"{s:+.2f} s (collar {collar:.2f}); " for s, collar in zip(late, collars(nearest))) + why
    if not right["PSDS2"]:
        why += f", {max([share(event, [r]) for r in others], default=0):.2f} in another"
    return right, why


def show_verdicts(truth, found, caption, strips=()):
    verdicts, why = zip(*(judge(event, truth) for event in found))
    show(plots.plot_verdicts(truth, found, verdicts, [collars(event) for event in truth], strips), caption)
    rows = []
    for (_, onset, offset, label), right, reason in zip(found, verdicts, why):
        marks = ["right" if x else "wrong" for x in right.values()]
        rows.append((f"{label}, {onset:.2f}–{offset:.2f}", *marks, reason))
    show(page.table(("found", "EBF1", "PSDS1", "PSDS2", "onset; offset; overlap"), rows))


# %%
times = (2.15, 5.5), (2.25, 5.0), (2.2, 3.2), (1.0, 6.5), (7.2, 8.8)
show_verdicts([("a.wav", 2.0, 5.0, "Dog"), ("a.wav", 7.0, 9.0, "Speech")], [("a.wav", *pair, "Dog") for pair in times],
              "Gray: truth. Orange: its collars. Blue: what five systems might find. "
              "A mark says whether what was found is right, not whether all was found.")  # fmt: skip

# %% [markdown]
# The first is right although it ends half a second late: 20 % of 3 s are 0.6 s. The second is wrong for EBF1, its onset
# is 0.05 s too late, but PSDS1 likes it: it lies in the truth completely. So does the third, and no DTC objects. But it
# covers only a third of the dog: for the GTC of PSDS1 (0.7) the dog is still missed, for that of PSDS2 (0.1) it is
# found. Of the fourth 0.55 lie in the dog: too little for PSDS1, enough for PSDS2. The last one is a *cross-trigger*:
# it is called a dog, and it is speech. Now the events of our clip, with the thresholds tuned for EBF1:

# %%
caption = "From probabilities to verdicts."
show_verdicts(truth, found, caption, strips[:3]) if found else print("nothing was found")

# %% [markdown]
# **The curve whose area is PSDS.** F1 depends on one threshold, PSDS on none. Move the threshold from 0.99 to 0.01. At
# each of 50 values (**operating points**) count the share of events found, and the false alarms per hour. Plot the
# share over the false alarms, for each class. Then take the mean over the classes, minus their standard deviation
# (`alpha_st` = 1), so that no class may be left behind. PSDS is the area below this curve, up to 100 false alarms per
# hour, divided by 100. False alarms are *effective* when cross-triggers are added to them, times `alpha_ct`: 0 for
# PSDS1, 0.5 for PSDS2.

# %%
curves = {}
for score, criteria in (("PSDS1", metrics.PSDS1), ("PSDS2", metrics.PSDS2)):
    files = public.filenames, public.events, public.seconds, classes, FRAME_HOP, tuned[score][1]
    efpr, tpr, etpr = metrics.psd_roc_from_scores(frame_scores, *files, **criteria)
    curves[score] = (efpr, tpr, etpr), metrics.psd_area(efpr, etpr, criteria["max_efpr"])
show(plots.plot_psd_roc({"public clips": curves}, classes, metrics.PSDS1["max_efpr"]))
rows = []
for part_of_the_clips, scores in state["scores"].items():
    rows.append((part_of_the_clips, *(train.as_printed(score, scores[score]) for score in train.SCORES)))
ignored = state["by_weight"]["1.0"]["with_video"]  # the same clips, with all the weight on the sound
rows.insert(3, ("with_video, video ignored", *(train.as_printed(score, ignored[score]) for score in train.SCORES)))
show(page.table(("clips", *train.SCORES), rows), "All scores of this model: F1 in percent, PSDS as a fraction.")

# %% [markdown]
# The last three rows split the public clips as Table 7 does: those with video, the same with their video ignored, and
# those without. Look at how much video helps where it is there. The clips of the last row are others and few, so one
# event more or less moves their scores by some points: whether they pay for the video is seen only beside a model of
# sound alone, on these same clips (`extras/RESULTS.md` has such a table).
#
# ## 9. One training step
#
# *Sec. 3.1.5.* Three of four training clips are unlabelled: what can be learnt from them? The paper trains a
# **student** and keeps a **teacher**. The teacher is the moving average of all students so far. Why? The student jumps
# about from step to step. The average errs less than the latest student, so its answers can stand in for labels. For
# every clip, labelled or not, the student should answer as the teacher does, although dropout disturbs both
# differently. This is **consistency**: the mean squared difference of their probabilities. (The scores, though, are the
# student's, as in the paper. At the end the learning rate is so low that the two hardly differ.)
#
# | loss | strong | weak | unlabelled | compares | weight |
# |---|---|---|---|---|---|
# | clip cross entropy | | yes | | student with clip labels | 1 |
# | frame cross entropy | yes | | | student with labels of the output frames | 1 |
# | clip consistency | yes | yes | yes | student with teacher | 2 |
# | frame consistency | yes | yes | yes | student with teacher | 2 |
#
# Cross entropy is binary here: a yes or no for each class, as several may sound at once. The loss is the weighted sum.
#
# A third of the batches is blended (**mixup**): each clip with another one, inputs and labels alike. So 0.9 dog + 0.1
# cat has the label 0.9 dog, 0.1 cat. The network cannot learn clips by heart, and becomes less sure of itself. Only
# clips of one kind are blended: strong with strong, since labels must be of one kind, and clips with video with such
# that have it, since a video blended with nothing would look like no video that there is. Each kind has its own ratio.
# Partners are drawn by shuffling, so a clip may meet itself, or one with the same class: then 1.00 stays. An empty row
# holds none of the ten classes, or is unlabelled. (Here a batch has 4 strong, 6 weak, 2 unlabelled clips, in the paper
# 32, 32, 64.) Of the first 40 batches, this one is blended most evenly:

# %%
config = train.Config(**{key: tuple(x) if isinstance(x, list) else x for key, x in state["config"].items()})
clips = train.load_clips(data, config.visual, CPU)
kinds = np.repeat(("strong", "weak", "unlabelled"), config.batch_size)
batches = (train.training_batch(clips, config, t) for t in range(40))
batch = max(batches, key=lambda b: (b.strong_targets * (1 - b.strong_targets)).max())  # the most evenly blended
rows, targets = [], [*batch.strong_targets.amax(1), *batch.weak_targets]
for k, (kind, with_video) in enumerate(zip(kinds, batch.present["openl3"].tolist())):
    target = targets[k] if k < len(targets) else torch.zeros(len(classes))
    named = [f"{label} {value:.2f}" for label, value in zip(classes, target) if value > 0]
    rows.append((kind, "yes" if with_video else "no", ", ".join(named)))
show(page.table(("kind", "video", "labels (of strong clips: the largest of the 64 output frames)"), rows))
strips = [("log-mel", batch.log_mel[0].numpy(), None), ("labels", batch.strong_targets[0].numpy(), classes)]
show(plots.plot_strips(strips), "The first clip of this batch: two clips in one, and their labels.")

# %% [markdown]
# Now a new network takes its first eight steps. The teacher begins as a copy of the student. After step *n* (counted
# from 1) it takes 1/(n + 1) of the student, from step 999 on a thousandth: so it is the plain mean of all students at
# first, and forgets the oldest ones later. The learning rate is 0.001, and a tenth of that after each 10,000 steps. (On
# toy data, which take only a few hundred steps, it falls once, after 80 % of them.)

# %%
new_student, teacher, optimizer = train.new_networks(config, data, CPU)
rows, followed = [], {"student": [], "teacher": []}
for t in range(8):
    batch = train.training_batch(clips, config, t)
    losses = train.training_step(new_student, teacher, optimizer, batch, config, t).tolist()
    rows.append((t, *(f"{loss:.4f}" for loss in losses), f"1/{t + 2}"))
    for key, network in (("student", new_student), ("teacher", teacher)):
        followed[key].append(float(network.classifier.bias[0].detach()))
names = ("clip cross entropy", "frame cross entropy", "clip consistency", "frame consistency")
show(page.table(("iteration t", *names, "teacher takes"), rows), "The four losses. Iterations count from 0.")
rates = {"paper": [train.learning_rate(t, 25_000) for t in range(25_000)]}
show(plots.plot_curves({"a bias of the classifier": followed, "learning rate": rates}))

# %% [markdown]
# Only the student is scored, after the last step. 9 epochs of 40 such steps make the model of this page; the paper
# takes 100 epochs of 250, with 128 clips in a batch.
#
# ## 10. And now?
#
# - Read `avsed.py` beside Sec. 2: 320 lines, no file is read there. Then `features.py`, `metrics.py` (down to the line
#   "The paper ends here") and `train.py`.
# - Read the tests whose names end in `_by_hand` (`grep -n by_hand test_avsed.py`): small examples with the answer, such
#   as `test_event_f1_by_hand` and `test_psds_by_hand`.
# - Do the exercises: ten changes to this code, each with a check. They are in `extras/EXERCISES.md`.
#
# ## Words

# %%
words = (HERE / "README.md").read_text(encoding="utf-8").split("\n## Words\n")[1].split("\n## ")[0]
show(page.Html(cells.prose(words)))
