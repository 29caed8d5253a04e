"""The tables of Boes & Van hamme 2022: all runs of a table, then its rows (Sec. 3.2, Tables 5 to 8).

    python -m extras.tables 5                              on toy data, made on the spot
    python -m extras.tables 5 --data DIR                   on DCASE 2020 task 4 in DIR; with more processes, sooner
    torchrun --nproc-per-node 8 -m extras.tables 5 --data DIR       a process for each of eight GPUs

A run is a folder in `runs/tables-DATA` (--out), which all tables of a data set share; what is done is not done again.
Any number of processes may work there, on one machine or on several that share the folder: each claims a run at a time,
and continues it where it was killed. `results.tsv` lists the runs, `table_5.txt` is the table, `table_5.png` its bars.
"""

import argparse
import os
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import train
from extras import plots, plumbing, runs, toy
from extras.plumbing import InputError, clock, foreign, write_text
from features import PARTITIONS, read_partitions
from train import INFER_WEIGHTS, PAPER, SCORES, TOY, Config

# Boes 2022, Tables 5 to 8: base, streams, acoustic weight in training and at inference, (Table 7: part of the
# evaluation data,) then mean and, but for Table 7, standard deviation of CBF1, SBF1, EBF1, PSDS1 and PSDS2
PAPER_TABLES = {
    5: """
transformer -          1      1     82.48 0.47  78.92 0.48  49.43 0.61  0.4083 0.0080  0.6413 0.013
transformer openl3     0.5    0.75  84.57 0.40  80.56 0.40  51.00 0.55  0.4168 0.0080  0.6567 0.011
transformer tce        0.75   0.875 84.10 0.45  80.11 0.46  50.97 0.58  0.4188 0.0086  0.6502 0.014
transformer vgg16      0.5    0.875 84.22 0.41  79.91 0.41  48.28 0.60  0.3891 0.0079  0.6144 0.011
conformer   -          1      1     82.52 0.40  78.62 0.41  48.41 0.57  0.3849 0.0086  0.6451 0.011
conformer   openl3     0.75   0.875 83.83 0.44  80.22 0.45  50.41 0.64  0.4010 0.0090  0.6501 0.012
conformer   tce        0.75   0.875 84.15 0.42  80.48 0.38  50.18 0.63  0.4000 0.0092  0.6490 0.011
conformer   vgg16      0.5    0.875 83.83 0.43  79.43 0.48  46.48 0.60  0.3615 0.0079  0.6226 0.014""",
    6: """
transformer openl3     random 0.75  84.20 0.39  80.71 0.48  50.80 0.65  0.4169 0.0089  0.6557 0.010
transformer tce        random 0.875 84.42 0.37  80.46 0.39  50.64 0.58  0.4201 0.0079  0.6554 0.013
transformer vgg16      random 0.875 84.48 0.47  80.20 0.39  46.95 0.55  0.3818 0.0075  0.6170 0.014
conformer   openl3     random 0.875 83.94 0.39  80.27 0.44  50.00 0.64  0.4051 0.0074  0.6539 0.011
conformer   tce        random 0.875 84.18 0.36  80.50 0.38  49.94 0.57  0.4040 0.0078  0.6552 0.013
conformer   vgg16      random 0.875 84.25 0.39  80.33 0.50  46.10 0.67  0.3591 0.0089  0.6201 0.012""",
    7: """
transformer -      1      1     ignored       82.79 79.19 48.89 0.4026 0.6377
transformer -      1      1     without_video 80.40 77.21 49.79 0.4358 0.6159
transformer openl3 0.5    0.75  with_video    85.10 80.94 50.70 0.4140 0.6583
transformer openl3 0.5    0.75  ignored       83.26 79.11 49.03 0.4073 0.6296
transformer openl3 0.5    0.75  without_video 81.01 78.16 51.44 0.4311 0.6154
transformer tce    0.75   0.875 with_video    84.58 80.60 50.71 0.4163 0.6514
transformer tce    0.75   0.875 ignored       82.74 78.98 49.44 0.4073 0.6248
transformer tce    0.75   0.875 without_video 80.91 77.03 51.41 0.4296 0.6099
transformer vgg16  0.5    0.875 with_video    85.16 80.73 48.34 0.3854 0.6222
transformer vgg16  0.5    0.875 ignored       79.40 75.78 45.16 0.3591 0.5897
transformer vgg16  0.5    0.875 without_video 77.98 74.67 48.05 0.3926 0.5526
conformer   -      1      1     ignored       82.85 78.82 48.04 0.3811 0.6426
conformer   -      1      1     without_video 80.24 77.33 49.68 0.4210 0.6236
conformer   openl3 0.75   0.875 with_video    84.35 80.70 50.14 0.3954 0.6477
conformer   openl3 0.75   0.875 ignored       82.68 79.11 48.43 0.3878 0.6383
conformer   openl3 0.75   0.875 without_video 80.28 77.12 50.46 0.4256 0.6330
conformer   tce    0.75   0.875 with_video    84.70 80.94 50.00 0.3970 0.6489
conformer   tce    0.75   0.875 ignored       82.38 78.83 48.28 0.3845 0.6370
conformer   tce    0.75   0.875 without_video 80.45 77.50 50.87 0.4185 0.6284
conformer   vgg16  0.5    0.875 with_video    84.03 80.19 46.09 0.3605 0.6290
conformer   vgg16  0.5    0.875 ignored       79.02 74.71 43.91 0.3486 0.5900
conformer   vgg16  0.5    0.875 without_video 78.35 74.41 45.55 0.3714 0.5583""",
    8: """
transformer openl3+tce 0.75   0.875 85.00 0.37  81.10 0.45  52.01 0.63  0.4194 0.0091  0.6653 0.013
transformer openl3+tce random 0.75  84.86 0.36  81.40 0.40  51.82 0.55  0.4231 0.0086  0.6622 0.011
conformer   openl3+tce 0.75   0.875 84.90 0.40  81.12 0.49  50.91 0.59  0.4097 0.0084  0.6612 0.012
conformer   openl3+tce random 0.875 84.57 0.41  80.99 0.41  50.90 0.61  0.4087 0.0081  0.6647 0.012""",
}
PARTS = {  # of public evaluation: what a row is called that is scored on it
    "public": "",  # all of it
    "with_video": "video available",
    "ignored": "available, ignored",  # the clips with video, but acoustic weight 1. ours: tuned for it like any other
    "without_video": "video unavailable",
}
RUNS = 20  # per row (Boes 2022, Sec. 3.2)
TOY_RUNS = 3  # ours: Table 5 then takes two cores about an hour
DCASE_2020 = {"strong": 2584, "weak": 1578, "unlabelled": 14412, "validation": 1168, "public": 692}  # clips listed


@dataclass(frozen=True)
class Row:
    """A row of a table: a system of the paper, the part of public evaluation it is scored on, the paper's scores"""

    base: str
    visual: tuple
    train_weight: object  # a number or "random"
    infer_weight: float
    part: str  # one of PARTS
    paper: tuple  # (mean, standard deviation or None) per score, percentages for F1


def rows_of(number):
    """The rows of Table `number`, in the paper's order"""
    rows = []
    for line in PAPER_TABLES[number].strip().splitlines():
        base, visual, train_weight, infer_weight, *figures = line.split()
        part = figures.pop(0) if number == 7 else "public"
        figures = list(map(float, figures))
        paper = [(figure, None) for figure in figures] if number == 7 else zip(figures[::2], figures[1::2])
        visual = () if visual == "-" else tuple(visual.split("+"))
        train_weight = train_weight if train_weight == "random" else float(train_weight)
        rows.append(Row(base, visual, train_weight, float(infer_weight), part, tuple(paper)))
    return rows


def train_weights(row, search):
    """Acoustic weights in training to choose from (Boes 2022, Sec. 3.2.2)"""
    return INFER_WEIGHTS if search and row.visual and row.train_weight != "random" else (row.train_weight,)


# --- the runs --------------------------------------------------------------------------------------------------------


def make_table(args, device, log, wait):
    """Do the runs of a table that are missing, then print its rows; `wait` for those that other processes are doing."""
    if args.plot:
        plots.figure_class()  # without matplotlib, stop before the work
    root, rows = Path(args.data or "data/toy"), rows_of(args.table)
    out = Path(args.out or f"runs/tables-{root.resolve().name}")
    plumbing.check_out(out)
    streams = list(dict.fromkeys(stream for row in rows for stream in row.visual))
    if args.data:
        partitions, _ = read_partitions(plumbing.read_layout(root, PARTITIONS, ("validation", "public")))
        if not len(partitions["public"]):  # where the lists are wrong, no folder is made
            raise InputError(f"{root}: has no clip of public evaluation, of which these tables are; add some")
    with runs.claimed(out, wait=True):  # one process fills the cache, the others find it filled
        if not args.data:
            toy.make_toy(root)
        there = [stream for stream in streams if (root / "visual" / stream).is_dir()]
        # all streams, for every run to be split by them in Table 7
        data = train.load_data(args.data, there, out, log, args.batch_size)
    for stream in sorted({*streams} - {*there}):
        log(f"note   no {root}/visual/{stream}: its rows are left out")
    rows = [row for row in rows if {*row.visual} <= {*there} and args.base in (None, row.base)]
    if not rows:
        raise InputError(f"{root}/visual: has no stream of the table's rows; see python -m extras.embeddings -h")

    configs = {}
    for seed in range(args.seed, args.seed + args.runs):
        for row in rows:
            for train_weight in train_weights(row, args.search_train_weight):
                name = f"{row.base}-{'-'.join(row.visual) or 'audio'}-w{train_weight}-{seed}"
                configs[name] = Config(
                    str(root), row.visual, row.base, train_weight, row.infer_weight,
                    args.epochs, args.batches, tuple(args.batch_size), seed, args.precision,
                )  # fmt: skip
    reports = complete_runs(configs, data, out, device, log, wait)
    for name, report in reports.items():
        runs.check_report(report, out / name / "model.pt", SCORES, (*INFER_WEIGHTS, 1.0))
    write_results(out, log)
    if len(reports) < len(configs):
        log(f"table  {len(reports)} of {len(configs)} runs are done: rows are incomplete")

    reports = [reports[name] for name in configs if name in reports]
    results = [result_of(row, reports, args.search_train_weight, args.infer_weight == "auto") for row in rows]
    real = {name: part.listed for name, part in data.partitions.items()} == DCASE_2020
    text = table_text(args.table, rows, results, real)
    log(text)
    if len(reports) == len(configs):
        write_text(out / f"table_{args.table}.txt", text)
        if args.plot:
            labels = [label_of(row) for row in rows]
            columns = {score: [result[2][score] if result else [] for result in results] for score in SCORES}
            path = out / f"table_{args.table}.png"
            plots.plot_table(f"Table {args.table}", labels, columns, [bool(row.visual) for row in rows], path)


def complete_runs(configs, data, out, device, log, wait=False):
    """Do the runs that nobody has done or is doing -> dict of folder -> report, of all that are finished by then.

    configs: dict of folder in `out` -> Config. Left out are runs that diverged and those that another process is doing
    still; with `wait`, the latter are waited for.
    """
    reports, diverged, n_done, started = {}, set(), 0, time.monotonic()

    def missing():
        return [name for name in configs if name not in reports and name not in diverged]

    for second_time in (False, True):  # by then, what others were doing is finished, or was given up
        for name in missing():  # first what is finished: reading needs no claim, and shows if the folder has other runs
            if report := runs.finished_report(out / name, configs[name], data, SCORES):
                reports[name] = report
        for name in missing():
            with runs.claimed(out / name, wait and second_time) as mine:
                if not mine:
                    continue
                try:
                    reports[name] = train.complete_run(configs[name], data, out / name, device, runs.Log())
                except FloatingPointError as error:  # one run of many
                    log(f"table  {name} is left out: {error}")
                    diverged.add(name)
                    continue
            n_done += 1
            left = clock((time.monotonic() - started) / n_done * len(missing()))
            log(f"table  {len(reports)}/{len(configs)} runs | {name} done | {left} left")
    return reports


def write_results(out, log):
    """results.tsv: a line per finished run in the folder, whichever table it belongs to"""
    settings = ["base", "visual", "train_weight", "seed", "epochs", "batches", "batch_size", "precision"]
    lines = ["\t".join(["run", *settings, "infer_weight", "validation_EBF1", *SCORES])]
    for path in [folder / "metrics.json" for folder in plumbing.visible(out, "*")]:
        if not path.exists() or not (path.parent / "model.pt").exists():
            continue
        try:
            with foreign(path, "is damaged or was not written by this program"):
                report = plumbing.load_json(path)
                runs.check_report(report, path, SCORES, (*INFER_WEIGHTS, 1.0))
                config, scores = report["config"], report["scores"]
                words = [" ".join(map(str, v)) if isinstance(v, list) else v for v in map(config.get, settings)]
                scores = [scores["validation"]["EBF1"], *(scores["public"][name] for name in SCORES)]
                scores = ["" if score is None else f"{score:.6f}" for score in scores]
                cells = list(map(str, [path.parent.name, *words, report["infer_weight"], *scores]))
                if any(re.search(r"[\t\r\n]", cell) for cell in cells):
                    raise ValueError("a tab or line break")
        except InputError:
            log(f"note   {path}: is damaged or was not written by this program; left out of results.tsv")
            continue
        lines.append("\t".join(cells))
    write_text(out / "results.tsv", "\n".join(lines))


# --- the rows --------------------------------------------------------------------------------------------------------


def result_of(row, reports, search_train_weight=False, search_infer_weight=False):
    """A row's scores over its runs -> (train weight, infer weight, dict of score -> values of the runs); None without

    The acoustic weights are the paper's or, where searched, those with the best mean EBF1 on validation (Boes 2022,
    Sec. 3.2.2); a search of the first includes the second. A score that a run does not define is None.
    """
    runs = {}  # train weight -> reports of the row's system
    for report in reports:
        config = report["config"]
        if (config["base"], tuple(config["visual"])) == (row.base, row.visual):
            runs.setdefault(config["train_weight"], []).append(report)

    def validation_ebf1(train_weight, infer_weight):
        values = [report["by_weight"][str(infer_weight)]["validation"]["EBF1"] for report in runs[train_weight]]
        return statistics.mean([value for value in values if value is not None] or [0.0])

    search = row.visual and (search_train_weight or search_infer_weight)
    pairs = [
        (train_weight, infer_weight)
        for train_weight in train_weights(row, search_train_weight) if train_weight in runs
        for infer_weight in (INFER_WEIGHTS if search else [row.infer_weight])
    ]  # fmt: skip
    if not pairs:
        return None
    # ours: of equals the one with the largest weights, of inference first
    train_weight, infer_weight = max(pairs, key=lambda pair: (validation_ebf1(*pair), pair[1], pair[0]))

    # A run's report has its scores for each acoustic weight and part of public evaluation (train.evaluate_public). So
    # Table 7's "video unavailable" is the part without_video, and "available, ignored" is with_video under weight 1.
    part, weight = ("with_video", 1.0) if row.part == "ignored" else (row.part, infer_weight)
    parts = [report["by_weight"][str(weight)].get(part, {}) for report in runs[train_weight]]
    return train_weight, infer_weight, {name: [scores.get(name) for scores in parts] for name in SCORES}


def mean_and_deviation(name, values):
    """Of a score's values over the runs, in the units of `cell`; None where there is no mean, or one run only.

    ours: the deviation has n - 1 under the sum.
    """
    scale = 1 if name.startswith("PSDS") else 100
    values = [scale * value for value in values if value is not None]
    return statistics.mean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def cell(name, mean, deviation=None):
    """A score as the paper prints it: F1 as percentages, PSDS as fractions; None where it is not known"""
    digits = 4 if name.startswith("PSDS") else 2
    if mean is None:
        return f"{'?':>8}        "
    spread = "" if deviation is None else f" ±{deviation:.{digits}f}"
    return f"{mean:8.{digits}f}{spread:8}"


def label_of(row):
    return " + ".join((row.base, *row.visual)) + (f" ({PARTS[row.part]})" if PARTS[row.part] else "")


def table_text(number, rows, results, real):
    """The table as text; with `real` data, those of DCASE 2020 task 4, the paper's figures stand under ours"""
    n_runs = max((len(scores["CBF1"]) for _, _, scores in filter(None, results)), default=0)
    heading = f"{f'Table {number}, runs: {n_runs}':54} {'training':18} {'inference':20}"
    lines = [heading + "".join(f"{name:>8}        " for name in SCORES)]
    for row, result in zip(rows, results):
        train_weight, infer_weight, scores = result or (row.train_weight, row.infer_weight, dict.fromkeys(SCORES, ()))
        weights = [train.encoder_weights(weight, len(row.visual)) for weight in (train_weight, infer_weight)]
        ours = "".join(cell(name, *mean_and_deviation(name, scores[name])) for name in SCORES)
        lines.append(f"{label_of(row):54} {weights[0]:18} {weights[1]:20}{ours}")
        if real:
            figures = "".join(cell(name, *figure) for name, figure in zip(SCORES, row.paper))
            lines.append(f"{'':54} {'':18} {'the paper:':20}{figures}")
    if not real:
        lines.append("These are not the data of DCASE 2020 task 4: the figures cannot be compared with the paper's.")
    return "\n".join(line.rstrip() for line in lines)


# --- the command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m extras.tables", description="Do all runs of a table of Boes & Van hamme 2022, print its rows."
    )
    add = parser.add_argument
    add("table", type=int, choices=PAPER_TABLES, help="number of the table in the paper")
    add("--data", metavar="DIR", help="data set in the layout of DCASE 2020 task 4; default: toy data")
    add("--base", choices=("transformer", "conformer"), help="only the rows of this base model")
    add("--runs", type=plumbing.positive,
        help=f"per row, with seeds from --seed on; default: {RUNS}, toy data {TOY_RUNS}")
    add("--infer-weight", choices=("auto",), help="choose the acoustic weight at inference by validation EBF1, instead "
        "of the paper's")  # fmt: skip
    add("--search-train-weight", action="store_true", help="train with several acoustic weights, and choose those in "
        "training and at inference by validation EBF1")  # fmt: skip
    add("--epochs", type=plumbing.positive, help=f"default: {PAPER['epochs']}, toy data {TOY['epochs']}")
    add("--batches", type=plumbing.positive, help=f"per epoch; default: {PAPER['batches']}, toy data {TOY['batches']}")
    add("--batch-size", type=plumbing.natural, nargs=3, metavar=("STRONG", "WEAK", "UNLABELLED"),
        help=f"default: {PAPER['batch_size']}, toy data {TOY['batch_size']}")  # fmt: skip
    add("--seed", type=plumbing.seed, default=0, help="of the first run of each row; default: 0")
    add("--device", default="auto", help="cpu, cuda, mps or auto; default: auto")
    add("--precision", choices=("fp32", "tf32", "bf16"), default="fp32", help="arithmetic in training; default: fp32")
    add("--out", metavar="DIR", help="folder of the runs; default: runs/tables-DATA")
    add("--plot", action="store_true", help="draw the rows as bars; needs matplotlib")
    args = parser.parse_args(arguments)
    if args.data == "":
        parser.error("--data is empty: name a folder, or leave it out for toy data")
    plumbing.set_defaults(args, (PAPER if args.data else TOY) | {"runs": RUNS if args.data else TOY_RUNS})
    if sum(args.batch_size) < 1:
        parser.error("--batch-size must hold at least one clip")
    if args.seed + args.runs > 2**63:
        parser.error("--seed plus --runs must be at most 2 ** 63")
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    with plumbing.one_line_errors("the same command continues after the last finished epoch"):
        device = plumbing.choose_device(args.device, args.precision)
        # Each process that torchrun started does runs of its own; the first one prints, and waits for the others.
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        make_table(args, device, runs.Log(), wait=plumbing.PRINTS and not alone)


if __name__ == "__main__":
    main()
