"""Interpolation weights that depend on the clip: an example of how the project is extended.

    python -m extras.learned_weights --visual openl3            with the flags of train.py, but for the two weights

Boes & Van hamme give every clip with video the same weights, and name weights that depend on the data as future work
(2022, Sec. 4). Here the network finds them by itself: each encoder's memory says how much it is worth. The rest is as
in train.py: batch, step, loop, tuning, scores. Nothing is chosen at inference, since the network chooses.

What is extended, and where: `LearnedWeights` replaces one method of avsed.MultiEncoder. `LEARNED` stands where train.py
has a number for the acoustic weight, and train.py hands it on to the network without looking at it.
"""

from dataclasses import replace

import numpy as np

from extras import plumbing, runs  # before torch, see plumbing

import torch  # isort: skip
from torch import nn

import train
from avsed import FRAMES, WIDTH, MultiEncoder, interpolation_weights
from extras.plumbing import InputError
from extras.toy import classes_on_screen

LEARNED = "learned"  # in the place of an acoustic weight


class Weigher(nn.Module):
    """What each encoder's memory holds decides how much it is worth for this clip"""

    def __init__(self, n_encoders):
        super().__init__()
        self.worth = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(n_encoders))

    def forward(self, memories, has_stream):
        """memories: E times (B, 64, 128); has_stream (B, E-1) bool -> (B, E), rows sum to one, missing streams get 0"""
        scores = torch.cat([worth(memory.mean(1)) for worth, memory in zip(self.worth, memories)], 1).float()
        has_sound = has_stream.new_ones(len(has_stream), 1)
        has_encoder = torch.cat([has_sound, has_stream], 1)
        return scores.masked_fill(~has_encoder, -torch.inf).softmax(1)


class LearnedWeights(MultiEncoder):
    """A multi-encoder that finds the weights of its encoders itself, for every clip"""

    def __init__(self, n_classes, visual_dims, base="transformer"):
        super().__init__(n_classes, visual_dims, base)
        self.weigher = Weigher(1 + len(visual_dims))

    def decode(self, features, memories, has_stream, audio_weight):
        """As in MultiEncoder, where audio_weight is a number, for example 1 to ignore all video. New: LEARNED"""
        if audio_weight == LEARNED:
            weights = self.weigher(memories, has_stream)
        else:
            weights = interpolation_weights(audio_weight, has_stream)
        logits = self.classifier(self.decoder(features, self.token, memories, weights))
        return logits[:, :FRAMES], logits[:, FRAMES]


def choose(student, data, device):
    """Thresholds and windows by validation, with learned weights and with all the weight on sound -> train.Choice"""
    part, classes = data.partitions["validation"], data.classes
    predicted = train.predict(student, data, part, [1.0, LEARNED], device)
    tuned = {weight: train.tune_each_score(part, classes, *scores) for weight, scores in predicted.items()}
    scores = {weight: train.evaluate(part, classes, *predicted[weight], tuned[weight]) for weight in tuned}
    by_class = train.evaluate_by_class(part, classes, predicted[LEARNED][0], tuned[LEARNED])
    return train.Choice(LEARNED, tuned, scores, by_class)


def acoustic_weights(student, data, part, device):
    """The learned acoustic weight of each clip of a partition: (N,)"""
    found = []
    hook = student.weigher.register_forward_hook(lambda module, inputs, weights: found.append(weights[:, 0].cpu()))
    train.predict(student, data, part, [LEARNED], device)
    hook.remove()
    return torch.cat(found).numpy()


def log_weights(log, name, weights):
    """How many clips have an acoustic weight from 0 to 0.1, from 0.1 to 0.2, .. as a line"""
    if len(weights):
        counts, _ = np.histogram(weights, bins=10, range=(0, 1))
        log(f"{name:28} {len(weights):5} {weights.mean():6.3f} |" + "".join(f"{count:5}" for count in counts))


def describe_weights(student, data, device, log, toy_data):
    """Print which weights the clips of public evaluation that have video were given"""
    part = data.partitions["public"]
    weights, has_video = acoustic_weights(student, data, part, device), np.any(list(part.present.values()), axis=0)
    log("acoustic weights of clips with video: how many, their mean, how many from 0 to 0.1, 0.1 to 0.2, ..")
    log_weights(log, "all", weights[has_video])
    if toy_data:  # the generator tells what is on screen
        stream = student.streams[0]
        helpful = (classes_on_screen(part.visual[stream]) == part.tags).all(axis=1)
        log_weights(log, "all that is heard is seen", weights[has_video & helpful])
        log_weights(log, "something is off or silent", weights[has_video & ~helpful])


def main(arguments=None):
    args = train.parse_arguments(arguments)
    with plumbing.one_line_errors("the same command with --resume continues after the last finished epoch"):
        if not args.visual or args.train_weight or args.infer_weight:
            raise InputError("give --visual NAME, and neither --train-weight nor --infer-weight")
        device, log = plumbing.choose_device(args.device, args.precision), runs.Log()
        config, out, _ = train.config_of(args)
        config = replace(config, train_weight=LEARNED, infer_weight=LEARNED)
        out = out if args.out else out.with_name(f"{out.name}-{LEARNED}")
        runs.never_overwrite(out, args.resume)
        data = train.load_data(args.data, config.visual, out, log, config.batch_size)
        with runs.alone_in(out):
            log.path = out / "log.txt"
            networks = train.new_networks(config, data, device, LearnedWeights)
            data, first = runs.resume(out, config, data, *networks)
            clips = train.load_clips(data, config.visual, device)
            train.train(config, data, clips, *networks, log, first, runs.keeper(out, config, data))
            student = networks[0]
            report = train.score(student, config, data, device, choose(student, data, device), out)
            describe_weights(student, data, device, log, report["toy_data"])
        log(train.row(config, report))


if __name__ == "__main__":
    main()
