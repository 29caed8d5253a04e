"""How fast it is: a training step by part, and the metrics beside the field's evaluators where those are installed.

    python -m extras.benchmark train --visual openl3 --precision bf16
    python -m extras.benchmark metrics

Peers: sed_eval, psds_eval (needs pandas) and sed_scores_eval. None of them is needed.
"""

import argparse
import multiprocessing
import re
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from extras import plumbing, runs  # before torch, see plumbing

import torch  # isort: skip
from torch.utils.flop_counter import FlopCounterMode

import metrics
from features import CLIP_SECONDS, EVENT_COLUMNS, FRAME_HOP, FRAMES
from metrics import PSDS1, PSDS2, THRESHOLDS_50
from train import PAPER, Config, load_clips, load_data, new_networks, training_batch, training_step


def peak_memory():
    """Most memory that this process has held so far, in bytes; nan where the system does not say"""
    status = Path("/proc/self/status")  # on Linux getrusage also counts what the parent held as it started this process
    if found := status.exists() and re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("utf-8"), re.M):
        return 1024 * int(found[1])
    try:
        import resource  # Windows has none
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- a training step -------------------------------------------------------------------------------------------------


def benchmark_train(config, data, device, log, repeats=10):
    """Time the training step by part, medians, beside the rate that a large matrix product reaches on the device"""
    student, teacher, optimizer = new_networks(config, data, device)
    clips = load_clips(data, config.visual, device)
    parts = {"data": [], "teacher forward": [], "student forward": [], "backward": [], "update": []}
    last = 0.0

    def mark(part=None):  # the time since the last mark is the part's
        nonlocal last
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        now, before = time.perf_counter(), last
        last = now
        if part:
            parts[part].append(now - before)

    teacher.register_forward_hook(lambda *_: mark("teacher forward"))
    student.register_forward_hook(lambda *_: mark("student forward"))
    optimizer.register_step_pre_hook(lambda *_: mark("backward"))
    for _ in ("warm-up", "timed"):
        for times in parts.values():
            times.clear()
        for t in range(repeats):
            mark()
            batch = training_batch(clips, config, t)
            mark("data")
            training_step(student, teacher, optimizer, batch, config, t)
            mark("update")
    seconds = {part: statistics.median(times) for part, times in parts.items()}
    total = statistics.median(map(sum, zip(*parts.values())))
    with FlopCounterMode(display=False) as counter:
        training_step(student, teacher, optimizer, batch, config, 0)
    flop, peak = counter.get_total_flops(), matmul_rate(device, config.precision)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()

    for part, time_of_part in (seconds | {"iteration": total}).items():
        log(f"{part:16} {1000 * time_of_part:9.2f} ms {100 * time_of_part / total:4.0f} %")
    iterations = PAPER["epochs"] * PAPER["batches"]
    log(f"{sum(config.batch_size) / total:.0f} clips/s | {config.precision}, {config.batch_size}, medians of {repeats}")
    log(f"{flop / 1e9:.0f} GFLOP of matrix work an iteration: {flop / total / 1e9:.0f} GFLOP/s, "
        f"{100 * flop / total / peak:.0f} % of the {peak / 1e9:.0f} GFLOP/s of one large matrix product")  # fmt: skip
    log(f"{memory / 1e9:.1f} GB of memory at most | {iterations} iterations: {plumbing.clock(iterations * total)}")


def matmul_rate(device, precision):
    """FLOP/s of a large matrix product in the precision of the run"""
    n = 8192 if device.type == "cuda" else 2048
    x = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        (x @ x).sum().item()  # waits for the device
        times.append(time.perf_counter() - began)
    return 2 * n**3 / statistics.median(times)


# --- the metrics -----------------------------------------------------------------------------------------------------


def benchmark_metrics(clips=1168, many=(15_000, 400)):
    """Print times (medians of 5) beside those of the peers. clips: as many as DCASE 2020 validates on; many: clips and
    classes of the largest rows, about those of AudioSet's strong labels
    """
    scores, files, truth, classes = made_up(clips, 10)
    durations, both = dict.fromkeys(files, CLIP_SECONDS), (PSDS1, PSDS2)
    points = [metrics.scores_to_events(scores, files, classes, t, 1, FRAME_HOP) for t in THRESHOLDS_50]
    data = scores, files, truth, durations, classes, FRAME_HOP
    tenfold_scores, tenfold_files, tenfold_truth, _ = made_up(10 * clips, 10)
    tenfold_durations = dict.fromkeys(tenfold_files, CLIP_SECONDS)
    tenfold = tenfold_scores, tenfold_files, tenfold_truth, tenfold_durations, classes, FRAME_HOP
    print(f"{clips} clips of {FRAMES} frames, 10 classes: {len(truth)} events, {sum(map(len, points))} detections")
    print(f"{'':<58}{'ours':>9}{'peer':>9}{'difference':>12}")
    for work, ours, peer in (
        ("event and segment F1, one threshold | sed_eval",
         lambda: [metrics.event_f1(truth, points[25], classes).macro,
                  metrics.segment_f1(truth, points[25], classes).micro],
         lambda: with_sed_eval(truth, points[25], classes)),
        ("PSDS1 and PSDS2 from events, 50 thresholds | psds_eval",
         lambda: [metrics.psds(truth, points, durations, classes, **p) for p in both],
         lambda: with_psds_eval(truth, points, durations, both)),
        ("PSDS1 and PSDS2 from scores, 50 thresholds",
         lambda: [metrics.psds_from_scores(*data, **p) for p in both], None),
        ("the same, ten times as many clips",
         lambda: [metrics.psds_from_scores(*tenfold, **p) for p in both], None),
        ("exact PSDS1 and PSDS2 from scores | sed_scores_eval",
         lambda: [metrics.exact_psds_from_scores(*data, **p) for p in both],
         lambda: with_sed_scores_eval(*data, both)),
        ("tuning of event F1: 9 thresholds, 16 windows, 10 classes", lambda: metrics.tune(*data, "event"), None),
        ("tuning of the windows of PSDS2", lambda: metrics.tune(*data, "psds2"), None),
    ):  # fmt: skip
        seconds, value = timed(ours)
        print(f"{work:<58}{seconds:>8.3f}s", end="", flush=True)
        if peer:
            try:
                peer_seconds, peer_value = timed(peer)
                print(f"{peer_seconds:>8.3f}s{np.abs(np.subtract(value, peer_value)).max():>12.1e}", end="")
            except ImportError as error:
                print(f"  {error.name} is not installed", end="")
            except Exception as error:  # peers that a newer numpy or pandas has broken let out all kinds
                print(f"  the peer fails here ({type(error).__name__}: {str(error)[:60]})", end="")
        print(flush=True)

    # a process of its own, so that its memory is what these rows need; this one's may be that of the peers
    process = multiprocessing.get_context("spawn").Process(target=benchmark_many, args=many)
    process.start()
    process.join()
    if process.exitcode:
        print("the rows with many clips and classes were not finished: out of memory?", flush=True)


def benchmark_many(n_clips, n_classes):
    """The rows that need much memory: PSDS2 of scores that are mostly zero, and of scores that are not"""
    scores, files, truth, classes = made_up(n_clips, n_classes)
    data = scores, files, truth, dict.fromkeys(files, CLIP_SECONDS), classes, FRAME_HOP
    rng = np.random.default_rng(0)
    for kind, repeats in (("scores", 5), ("dense scores", 1)):
        if kind == "dense scores":  # a trained network is never quite silent: nearly every series passes 0.01 somewhere
            for some in range(0, n_clips, 100):
                block = scores[some : some + 100]
                np.maximum(block, rng.random(block.shape) ** 40 * 0.5, out=block)
        seconds, _ = timed(lambda: metrics.psds_from_scores(*data, **PSDS2), repeats)
        work = f"PSDS2 from {kind}, {n_clips:,} clips, {n_classes} classes"
        memory = f"{peak_memory() / 1e9:.2f} GB at most, {scores.nbytes / 1e9:.2f} of them the scores"
        print(f"{work:<58}{seconds:>8.3f}s  {memory}", flush=True)


def timed(work, repeats=5):
    """-> median of the seconds, the last result"""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), value


def made_up(N, C):
    """Smooth random scores of six classes per clip, of which 2.5 occur -> scores, files, ground truth, classes"""
    rng = np.random.default_rng(0)
    file, cls = np.repeat(np.arange(N), 6), rng.integers(0, C, 6 * N)
    activity = gaussian_filter1d(rng.normal(size=(6 * N, FRAMES)), 3, axis=1) * 8
    noise = gaussian_filter1d(rng.normal(size=(6 * N, FRAMES)), 2, axis=1) * 3
    scores = np.zeros((N, FRAMES, C), dtype=np.float32)
    scores[file, :, cls] = 1 / (1 + np.exp(2 - activity - noise))
    occurs = rng.random(6 * N) < 2.5 / 6
    files, classes = [f"{i}.wav" for i in range(N)], [f"class {i}" for i in range(C)]
    on_frames = []
    for first in range(0, N, 1000):  # all at once would take more memory than what is to be measured
        active = np.zeros((min(1000, N - first), FRAMES, C), dtype=bool)
        here = np.flatnonzero(occurs & (file // 1000 == first // 1000))
        active[file[here] - first, :, cls[here]] = activity[here] > 2
        on_frames += metrics.scores_to_events(active, files[first : first + 1000], classes, 0.5, 1, FRAME_HOP)
    shifts = rng.random((len(on_frames), 2)) * FRAME_HOP / 2  # true times fall between frames
    truth = [
        (name, onset + a, offset + b, label) for (name, onset, offset, label), (a, b) in zip(on_frames, shifts.tolist())
    ]
    return scores, files, truth, classes


def with_sed_eval(reference, estimated, classes):
    """-> macro event F1, micro segment F1"""
    import sed_eval

    event = sed_eval.sound_event.EventBasedMetrics(
        classes, t_collar=0.2, percentage_of_length=0.2, empty_system_output_handling="zero_score"
    )
    segment = sed_eval.sound_event.SegmentBasedMetrics(classes, time_resolution=1.0)
    tables = ({}, {})
    for table, events in zip(tables, (reference, estimated)):
        for event_of_table in events:
            table.setdefault(event_of_table[0], []).append(dict(zip(EVENT_COLUMNS, event_of_table)))
    for name in tables[0] | tables[1]:
        for metric in (event, segment):
            metric.evaluate(tables[0].get(name, []), tables[1].get(name, []))
    return [
        event.results_class_wise_average_metrics()["f_measure"]["f_measure"],
        segment.results_overall_metrics()["f_measure"]["f_measure"],
    ]


def with_psds_eval(truth, points, durations, all_criteria):
    """-> PSDS from events for each of the criteria"""
    import psds_eval  # first, so that its absence is what is told
    import pandas

    values = []
    for p in all_criteria:
        peer = psds_eval.PSDSEval(
            p["dtc_threshold"], p["gtc_threshold"], p["cttc_threshold"],
            ground_truth=pandas.DataFrame(truth, columns=EVENT_COLUMNS),
            metadata=pandas.DataFrame(durations.items(), columns=("filename", "duration")),
        )  # fmt: skip
        for events in points:
            peer.add_operating_point(pandas.DataFrame(events, columns=EVENT_COLUMNS))
        values.append(peer.psds(p["alpha_ct"], p["alpha_st"], p["max_efpr"]).value)
    return values


def with_sed_scores_eval(scores, files, truth, durations, classes, frame_hop, all_criteria):
    """-> PSDS over all thresholds for each of the criteria"""
    from sed_scores_eval import intersection_based
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    times = np.minimum(np.arange(scores.shape[1] + 1) * frame_hop, CLIP_SECONDS)
    frames = {name: create_score_dataframe(x.astype(np.float64), times, classes) for name, x in zip(files, scores)}
    events = {name: [event[1:] for event in truth if event[0] == name] for name in files}
    values = []
    for p in all_criteria:
        p = p if p["alpha_ct"] else p | {"cttc_threshold": None}
        values.append(intersection_based.psds(frames, events, durations, **p)[0])
    return values


# --- the command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(prog="python -m extras.benchmark", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("metrics", help="times of the metrics, beside their peers where those are installed")
    add = commands.add_parser("train", help="times of a training step by part").add_argument
    add("--data", metavar="DIR", help="data set in the layout of DCASE 2020 task 4; default: toy data")
    add("--visual", type=plumbing.folder_name, nargs="+", default=[], metavar="NAME", help="default: audio only")
    add("--base", choices=("transformer", "conformer"), default="transformer", help="default: transformer")
    add("--batch-size", type=plumbing.natural, nargs=3, default=PAPER["batch_size"],
        metavar=("STRONG", "WEAK", "UNLABELLED"), help=f"default: {PAPER['batch_size']}, the paper's")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    add("--precision", choices=("fp32", "tf32", "bf16"), default="fp32", help="default: fp32")
    args = parser.parse_args(arguments)
    if args.what == "train":
        if sum(args.batch_size) < 1:
            parser.error("--batch-size must hold at least one clip")
        if len(set(args.visual)) < len(args.visual):
            parser.error("--visual takes different names")
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    with plumbing.one_line_errors("times are not kept"):
        if args.what == "metrics":
            benchmark_metrics()
            return
        device, log = plumbing.choose_device(args.device, args.precision), runs.Log()
        log(f"torch {torch.__version__} | {device.type}, {plumbing.threads()}")
        data = load_data(args.data, args.visual, Path("runs/benchmark"), log, args.batch_size)
        train_weight = 0.5 if args.visual else 1.0
        config = Config(
            args.data or "data/toy", tuple(args.visual), args.base, train_weight, 1.0,
            PAPER["epochs"], PAPER["batches"], tuple(args.batch_size), 0, args.precision,
        )  # fmt: skip
        benchmark_train(config, data, device, log)


if __name__ == "__main__":
    main()
