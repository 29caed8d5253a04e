"""What runs did, side by side, as one page: scores, curves, weights, classes, thresholds, PSD-ROC, the worst clips.

    python -m extras.report RUN [RUN ...]             writes report.html into the first run's folder
    python -m extras.report RUN [RUN ...] --text      prints the numbers of it

RUN is a folder that train.py writes to; a run that is still training is shown as far as it is. Runs that differ in
nothing but their seeds are one system: of it, curves are the mean, with a band from the lowest seed to the highest.

From top to bottom: what a run left, runs as systems, the sections of the page, the page. A section is made once, for
the page and for the terminal. Shapes: C classes.
"""

import argparse
import math
import statistics
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from extras import plumbing  # before torch, see there
from extras.plumbing import InputError

import features
import metrics
from extras import page, plots, runs, score
from train import SCORES, Config, as_printed

WORST = 10  # clips that are shown
SCENARIOS = {"PSDS1": metrics.PSDS1, "PSDS2": metrics.PSDS2}
OF_CLASS = [(name, rate) for name in ("SBF1", "EBF1") for rate in ("precision", "recall", "F1")]
OF_CLASS += [("PSDS1", "area"), ("PSDS2", "area")]
TUNED = [(name, "threshold") for name in ("CBF1", "SBF1", "EBF1")]
TUNED += [(name, "window") for name in ("SBF1", "EBF1", "PSDS1", "PSDS2")]


# --- what a run left -------------------------------------------------------------------------------------------------


@dataclass
class Run:
    folder: Path
    config: Config
    classes: list  # C
    data: str  # which clips, see runs.description
    history: dict  # column of history.tsv -> (epochs,)
    report: dict = None  # metrics.json; None of a run that is still training
    part: str = None  # that was scored: "public", or "validation" where there is no public evaluation
    by_class: np.ndarray = None  # (C, 8) of it, in the order of OF_CLASS
    # from `read_clips`:
    paths: dict = None  # filename -> path of its sound
    durations: dict = None  # filename -> seconds, of the clips that were scored
    truth: list = None  # events
    found: list = None  # events, those of EBF1


def read_run(folder):
    """Folder of a run, finished or not -> Run"""
    folder = Path(folder)
    if not (folder / "history.tsv").is_file():
        wanted = "name a folder that train.py writes to, once its first epoch is done"
        raise InputError(f"{folder}: has no history.tsv; {wanted}")
    history, finished = read_history(folder / "history.tsv"), (folder / "model.pt").exists()
    path = folder / ("metrics.json" if finished else "checkpoint.pt")
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a folder as train.py left it")
    with plumbing.foreign(path, "was not written by this version of train.py ({}); name another run"):
        found = plumbing.load_json(path) if finished else runs.load(path, "name another run")
        config = {name: tuple(value) if isinstance(value, list) else value for name, value in found["config"].items()}
        run = Run(folder, Config(**config), found["classes"], found["data"], history)
        if finished:
            runs.check_report(found, path, SCORES)
            run.part = "public" if "public" in found["scores"] else "validation"
            of_class = [found["by_class"][run.part][label] for label in run.classes]
            cells = [[values[name][what] for name, what in OF_CLASS] for values in of_class]
            run.report, run.by_class = found, np.array(cells, float)
            for name, what in TUNED:
                np.array(found["tuned"][name][what], float).reshape(len(run.classes))
    return run


def read_history(path):
    """history.tsv -> dict of column -> (epochs,)"""
    columns = ("epoch", *runs.LOSSES, *SCORES)
    values = []
    for place, cells in plumbing.read_table(path, columns):
        try:
            values.append([plumbing.parse_number(cell) for cell in cells])
        except ValueError:
            raise InputError(f"{place}: holds a cell that is no number; name another run") from None
    if not values:
        raise InputError(f"{path}: holds no epoch; wait until the first one is done")
    return dict(zip(columns, np.array(values).T))


def read_clips(run, root):
    """Add what a finished run was scored on, from the data set in the folder `root`, and what it found there"""
    partitions, _ = features.read_partitions(plumbing.read_layout(Path(root), features.PARTITIONS, [run.part]))
    part, run.durations = partitions[run.part], score.read_durations(run.folder / "durations.tsv")
    if lost := sorted(run.durations.keys() - {*part.filenames}):
        raise InputError(f"{root}: lacks {len(lost)} clips that {run.folder} was scored on, {lost[0]} among them")
    run.paths = dict(zip(part.filenames, part.paths))
    run.truth = [event for event in part.events if event[0] in run.durations]
    run.found = score.read_estimated(run.folder / "predictions.tsv")[1]


# --- runs as systems -------------------------------------------------------------------------------------------------


@dataclass
class System:
    """Runs that differ in nothing but their seeds"""

    label: str
    runs: list

    @property
    def finished(self):
        return [run for run in self.runs if run.report]


def systems_of(found):
    """Runs -> list of System. Labels say what a system hears and sees and, where others do likewise, what differs"""
    alike, systems = {}, []
    for run in found:
        alike.setdefault(repr((replace(run.config, seed=0), run.data)), []).append(run)
    configs = [of_system[0].config for of_system in alike.values()]
    for config, of_system in zip(configs, alike.values()):
        label = " + ".join((config.base, *config.visual)) + ("" if config.visual else ", sound only")
        likewise = [other for other in configs if (other.base, other.visual) == (config.base, config.visual)]
        label += "".join(f", {name} {words(getattr(config, name))}" for name in settings_that_differ(likewise))
        if label in [system.label for system in systems]:  # the same on other clips
            label += f", {of_system[0].folder}"
        systems.append(System(label, of_system))
    # first those of which all is known, so that a system has one colour in all pictures
    return sorted(systems, key=lambda system: not system.finished)


def settings_that_differ(configs):
    names = [setting.name for setting in fields(Config) if setting.name != "seed"]
    return [name for name in names if len({repr(getattr(config, name)) for config in configs}) > 1]


def parts_of(systems):
    """Parts of the data that were scored, in all finished runs: public and validation, or validation alone"""
    tested = {run.part for system in systems for run in system.finished}
    return ["validation"] if "validation" in tested else ["public", "validation"]


def words(value):
    return (", ".join(map(str, value)) or "none") if isinstance(value, (list, tuple)) else str(value)


def cells_of(results):
    """Scores of one run or more, dicts of score -> number -> for each score the mean, with the deviation of several.

    ours: the deviation has n - 1 under the sum
    """
    cells = []
    for name in SCORES:
        known = [scores[name] for scores in results if scores[name] is not None and not math.isnan(scores[name])]
        spread = f" ± {as_printed(name, statistics.stdev(known))}" if len(known) > 1 else ""
        cells.append(as_printed(name, statistics.mean(known)) + spread if known else "–")
    return cells


# --- sections of the page --------------------------------------------------------------------------------------------


@dataclass
class Section:
    title: str
    text: str  # what is seen, and how to read it
    tables: list = field(default_factory=list)  # (caption, header, rows)
    pieces: list = field(default_factory=list)  # functions that make Html, for the page alone


def scores_section(systems):
    tables = []
    for part in parts_of(systems):
        rows = []
        for system in systems:
            for run in system.runs:
                state, weight, results = "finished", None, []
                if run.report:
                    weight, results = f"{run.report['infer_weight']:g}", [run.report["scores"][part]]
                else:
                    state = f"epoch {len(run.history['epoch'])} of {run.config.epochs}"
                    if part == "validation":  # so far, as its console says
                        results = [{name: run.history[name][-1] for name in SCORES}]
                cells = cells_of(results) if results else ["–"] * len(SCORES)
                rows.append([system.label, run.folder.name, state, weight, *cells])
            if len(system.finished) > 1:
                pooled = cells_of([run.report["scores"][part] for run in system.finished])
                rows.append([system.label, f"mean of {len(system.finished)} seeds", None, None, *pooled])
        tables.append((f"{part} clips", ["system", "run", "state", "acoustic weight", *SCORES], rows))
    text = (
        "F1 of clips, segments and events in percent, PSDS as fractions (Boes 2022, Sec. 3.1.4); behind ± the "
        "standard deviation over seeds. Thresholds, windows and the acoustic weight were chosen on the validation "
        "clips, so scores are higher there. Of a run that is still training, the validation scores have threshold 0.5 "
        "and no filter."
    )
    return Section("Scores", text, tables)


def settings_section(systems):
    configs = [asdict(system.runs[0].config) | {"seed": [run.config.seed for run in system.runs]} for system in systems]
    shown = settings_that_differ([system.runs[0].config for system in systems]) or [*configs[0]]
    shown += [] if "seed" in shown else ["seed"]
    rows = [[name, *(words(config[name]) for config in configs)] for name in shown]
    same = [f"{name} {words(value)}" for name, value in configs[0].items() if name not in shown]
    text = f"What differs. All have in common: {'; '.join(same)}." if same else "Only the seeds differ."
    return Section("Settings", text, [("", ["setting", *(system.label for system in systems)], rows)])


def curves_section(systems):
    titles = {name: f"{name.replace('_', ' ')} loss" for name in runs.LOSSES}
    titles |= {name: f"validation {name}" for name in SCORES}
    curves, rows = {}, []
    for system in systems:
        curves[system.label] = [{titles[name]: run.history[name] for name in titles} for run in system.runs]
        for run in system.runs:
            last = {name: values[-1] for name, values in run.history.items()}
            losses = [f"{last[name]:.4f}" for name in runs.LOSSES]
            rows.append([system.label, run.config.seed, int(last["epoch"]), *losses, *cells_of([last])])
    text = (
        "The four losses of training (Boes 2022, Sec. 3.1.5; weak and strong: cross entropy with the labels; "
        "consistency: distance between student and teacher), and the five scores on validation clips with threshold "
        "0.5 and no filter. A line is the mean over seeds, the band reaches from the lowest to the highest."
    )
    header = ["system", "seed", "last epoch", *titles.values()]
    draw = picture(plots.plot_history, curves, alt="Losses and validation scores by epoch, a line for each system")
    return Section("Learning curves", text, [("", header, rows)], [draw])


def weights_section(systems):
    drawn, rows = {}, []
    for system in systems:
        tried = [run.report["by_weight"] for run in system.finished]
        drawn[system.label] = [{float(weight): parts for weight, parts in of_run.items()} for of_run in tried]
        for weight in sorted(tried[0], key=float):
            for part in parts_of(systems):
                results = [of_run[weight][part] for of_run in tried]
                rows.append([system.label, f"{float(weight):g}", part, *cells_of(results)])
    text = (
        "Each run is scored with several acoustic weights at inference (Boes 2022, Sec. 3.2.2), with thresholds and "
        "windows tuned for each. Weight 1 ignores the picture, and is all that sound alone has. Lines and bands as "
        "above."
    )
    draw = picture(plots.plot_acoustic_weight, drawn, parts_of(systems), alt="Scores by acoustic weight, by system")
    return Section("Acoustic weight", text, [("", ["system", "weight", "clips", *SCORES], rows)], [draw])


def classes_section(systems):
    columns = [" ".join(cell).replace(" area", "") for cell in OF_CLASS]
    drawn, tables, classes = {}, [], systems[0].runs[0].classes
    for system in systems:
        known = np.ma.masked_invalid([run.by_class for run in system.finished])
        drawn[system.label] = mean = known.mean(axis=0).filled(np.nan)
        rows = [[label, *(f"{100 * value:.1f}" for value in values)] for label, values in zip(classes, mean)]
        tables.append((system.label, ["class", *columns], rows))
    text = (
        "Precision, recall and F1 of segments and events, and the area under the class's own PSD-ROC; all in percent, "
        "of the tested clips, as validation tuned them, means over seeds. Not defined (-, nan) are the precision of a "
        "class that was never found, and all else of one that does not occur."
    )
    draw = picture(plots.plot_by_class, drawn, classes, columns, alt="Heat map: rows are classes, columns scores")
    return Section("Classes", text, tables, [draw])


def tuned_section(systems):
    tables, classes = [], systems[0].runs[0].classes
    for system in systems:
        of_runs = [run.report["tuned"] for run in system.finished]
        rows = [[label, *(words([tuned[name][what][c] for tuned in of_runs]) for name, what in TUNED)]
                for c, label in enumerate(classes)]  # fmt: skip
        caption = f"{system.label}, seeds {words([run.config.seed for run in system.finished])}"
        tables.append((caption, ["class", *(" ".join(cell) for cell in TUNED)], rows))
    drawn = {system.label: [run.report["tuned"] for run in system.finished] for system in systems}
    text = (
        "What validation chose for each class and score (Boes 2022, Sec. 3.1.3): thresholds from 0.1 to 0.9, median "
        "windows from 1 to 31 frames of 0.1565 s. PSDS has fixed thresholds, CBF1 no windows. A dot for each seed: "
        "where they lie far apart, validation has too few clips of the class to tell."
    )
    draw = picture(plots.plot_tuned, drawn, classes, TUNED, alt="Thresholds and windows by class, a dot for each run")
    return Section("Thresholds and windows", text, tables, [draw])


def roc_section(of_runs):
    """of_runs: dict of a system's label -> its first finished run, whose clips are read"""
    curves, rows, at = {}, [], (1, 10, 25, 50, 100)
    for label, run in of_runs.items():
        curves[label] = {}
        for name, criteria in SCENARIOS.items():
            points = score.read_operating_points(run.folder / f"predictions_{name}.tsv")
            efpr, tpr, etpr = metrics.psd_roc(run.truth, points, run.durations, run.classes, **criteria)
            area = metrics.psd_area(efpr, etpr, criteria["max_efpr"])
            curves[label][name] = (efpr, tpr, etpr), area
            reached = etpr[np.searchsorted(efpr, at, side="right") - 1]
            rows.append([f"{label} ({run.folder.name})", name, f"{area:.4f}", *(f"{rate:.3f}" for rate in reached)])
    text = (
        "The share of events that are found, against false alarms an hour, as the threshold falls (Bilen et al. "
        "2020). Thin: classes. Thick: the effective rate, the mean of the classes minus their deviation. PSDS is the "
        "gray area under it up to 100 an hour. PSDS1 asks for exact times; PSDS2 is lenient there, but counts "
        "confused classes. Of each system the first run."
    )
    header = ["system", "score", "area", *(f"rate at {x} an hour" for x in at)]
    shown = next(iter(of_runs.values())).classes, metrics.PSDS1["max_efpr"]
    draw = picture(plots.plot_psd_roc, curves, *shown, alt="True positive rates by effective false positives per hour")
    return Section("PSD-ROC", text, [("effective true positive rate", header, rows)], [draw])


def clips_section(of_runs):
    """of_runs: as for roc_section, all scored on the same clips"""
    first, errors = next(iter(of_runs.values())), {label: errors_by_clip(run) for label, run in of_runs.items()}
    worst = sorted(first.durations, key=lambda name: -sum(sum(of_run[name]) for of_run in errors.values()))[:WORST]
    rows = [[name, *("{} missed, {} false".format(*of_run[name]) for of_run in errors.values())] for name in worst]
    text = (
        "Missed events and false alarms as EBF1 counts them: the onset may be off by 0.2 s, the offset by 0.2 s or by "
        "20 % of the event's length. Black is the truth; below it is what each system found, by its first run. An "
        "empty bar is a false alarm: no true event fits it."
    )
    pieces = [lambda row=row: clip_piece(of_runs, *row) for row in rows]
    return Section("Clips with most errors", text, [("", ["clip", *of_runs], rows)], pieces)


def errors_by_clip(run):
    """-> dict of filename -> (missed events, false alarms)"""
    by_clip = {name: ([], []) for name in run.durations}
    for i, events in enumerate((run.truth, run.found)):
        for event in events:
            by_clip[event[0]][i].append(event)
    f1 = {name: metrics.event_f1(*tables, run.classes) for name, tables in by_clip.items()}
    return {name: (int(of_clip.n_fn.sum()), int(of_clip.n_fp.sum())) for name, of_clip in f1.items()}


def clip_piece(of_runs, name, *errors):
    """A clip's heading, picture and player"""
    first = next(iter(of_runs.values()))
    clip, peak, _ = features.read_mono(first.paths[name])
    sound = features.scale_peak(clip, peak)
    truth = [event for event in first.truth if event[0] == name]
    tables = {"truth": [(*event[1:], True) for event in truth]}
    for label, run in of_runs.items():
        found = [event for event in run.found if event[0] == name]
        tables[label] = [(*event[1:], metrics.event_f1(truth, [event], run.classes).n_tp.any()) for event in found]
    figure = plots.plot_errors(features.log_mel(features.fit_clip(sound)).numpy(), tables)
    told = "; ".join(f"{label}: {of_run}" for label, of_run in zip(of_runs, errors))
    shown = page.picture(figure, f"Log-mel, true and found events of {name}")
    return page.Html(f"<h3>{page.escape(name)}</h3><p>{page.escape(told)}</p>{shown}"
                     f"{page.player(sound, features.SAMPLE_RATE, name)}")  # fmt: skip


# --- the page --------------------------------------------------------------------------------------------------------


def picture(plot, *arguments, alt):
    return lambda: page.picture(plot(*arguments), alt)


def sections_of(systems, root):
    """root: folder of the data set; None: where each run had it"""
    sections = [scores_section(systems), settings_section(systems), curves_section(systems)]
    systems = [system for system in systems if system.finished]
    if not systems:
        return sections
    sections += [weights_section(systems), classes_section(systems), tuned_section(systems)]
    of_runs = {system.label: system.finished[0] for system in systems}
    try:
        for run in of_runs.values():
            read_clips(run, root or run.config.data)
    except InputError as error:
        text = f"They need the data set as it was scored ({error}). --data DIR says where it is."
        return [*sections, Section("Without PSD-ROC and clips", text)]
    first = next(iter(of_runs.values()))
    on_same_clips = {label: run for label, run in of_runs.items() if run.durations == first.durations}
    return [*sections, roc_section(of_runs), clips_section(on_same_clips)]


def text_of(sections):
    """What --text prints: the tables, in columns"""
    lines = []
    for section in sections:
        lines += [f"=== {section.title}", *([] if section.tables else [section.text]), ""]
        for caption, header, rows in section.tables:
            cells = [["" if cell is None else str(cell).replace("\n", " ") for cell in row] for row in (header, *rows)]
            widths = [max(map(len, column)) for column in zip(*cells)]
            lines += [caption] if caption else []
            lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
            lines.append("")
    return "\n".join(lines)


def page_of(title, notes, sections):
    body = [f"<h1>{page.escape(title)}</h1>", *(f"<p>{page.escape(note)}</p>" for note in notes)]
    links = (f'<a href="#part{k}">{page.escape(section.title)}</a>' for k, section in enumerate(sections))
    body.append(f"<p>{' · '.join(links)}</p>")
    for k, section in enumerate(sections):
        body.append(f'<h2 id="part{k}">{page.escape(section.title)}</h2><p>{page.escape(section.text)}</p>')
        body += [piece() for piece in section.pieces]
        tables = "".join(page.table(header, rows, caption) for caption, header, rows in section.tables)
        body.append(f"<details><summary>In numbers</summary>{tables}</details>" if section.pieces else tables)
    return page.page(title, "\n".join(body), style="td.number { white-space: nowrap; } summary { cursor: pointer; }")


# --- the command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(prog="python -m extras.report", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run, finished or still training")
    add("--out", metavar="FILE.html", help="default: report.html in the first RUN")
    add("--data", metavar="DIR", help="the data set, for PSD-ROC and clips; default: where each run had it")
    add("--text", action="store_true", help="print the numbers instead; needs no matplotlib")
    args = parser.parse_args(arguments)
    if args.text and args.out:
        parser.error("--text writes no page: leave out --out")
    return args


def run_command(args):
    if not args.text:
        plots.figure_class()  # without matplotlib, stop before the work
        plumbing.check_out_file(args.out or Path(args.runs[0], "report.html"))
    found = [read_run(folder) for folder in dict.fromkeys(Path(name).resolve() for name in args.runs)]
    for run in found:
        if run.classes != found[0].classes:
            raise InputError(f"{run.folder}: has other classes than {found[0].folder}; make a report of each")
    systems = systems_of(found)
    sections = sections_of(systems, args.data)
    if args.text:
        print(plumbing.shown(text_of(sections)), end="")
        return
    notes = [f"Runs: {', '.join(run.folder.name for run in found)}."]
    if any(run.report and run.report.get("toy_data") for run in found):
        notes.append("Toy data: these scores are not comparable with the paper.")
    out = Path(args.out or found[0].folder / "report.html")
    page.write(out, page_of(" against ".join(system.label for system in systems), notes, sections))
    print(f"page   {out} ({out.stat().st_size / 1e6:.1f} MB)")


def main(arguments=None):
    args = parse_arguments(arguments)
    with plumbing.one_line_errors("no page was written"):
        run_command(args)


if __name__ == "__main__":
    main()
