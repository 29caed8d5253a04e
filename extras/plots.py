"""Every picture, and nothing else: a recording with its events, what the decoder attends to, the bars of a table.

    plot_clip         log-mel, probabilities and events of a recording
    plot_attention    the cross-attention of one decoder block in ten seconds
    plot_synchronization  what one step of a clip's sound or picture attends to in the other
    plot_table        the scores of many runs
    plot_fusion       what each class gains when sound and vision are fused
    plot_history ..   what runs did: for extras/report.py
    plot_strips ..    the pictures of extras/tour.py, at the end

Needs matplotlib. Each function returns the figure, which a notebook shows (after `%matplotlib inline`), and where it is
given a `path` also writes it there: a PNG file, which appears only when complete.

Shapes: T output frames of 0.1565 s, 8 T log-mel frames of 64 mel bins, C classes, E encoders.
"""

import math
import statistics

import numpy as np

import features
from extras.plumbing import InputError, replacing
from features import CLIP_SECONDS, FRAME_HOP, FRAMES, MELS, SAMPLE_RATE, WINDOW

CLASSES_SHOWN = 16  # of a recording; more cannot be read
COLUMNS_SHOWN = 1000  # of a log-mel map; more cannot be told apart
EVERY = 8  # of the 64 frames of ten seconds of video, eight are shown


def figure_class():
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install matplotlib") from None
    rcParams["text.parse_math"] = False  # a $ in a class's name is no formula
    return Figure


def finish(figure, path):
    """-> the figure, which is saved where a path is given"""
    if path is not None:
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
    return figure


def panels_in_a_column(height, height_ratios):
    """-> figure and its panels, one under the other on one time axis"""
    figure = figure_class()(figsize=(8, height), dpi=100, layout="constrained")
    return figure, figure.subplots(len(height_ratios), sharex=True, height_ratios=height_ratios)


def draw_map(axes, array, extent, **more):
    return axes.imshow(array, aspect="auto", extent=extent, interpolation="nearest", **more)


def draw_log_mel(axes, log_mel):
    """log_mel (8 T, 64); of long recordings, neighbouring frames are averaged"""
    seconds, step = len(log_mel) / 8 * FRAME_HOP, max(1, len(log_mel) // COLUMNS_SHOWN)
    columns = log_mel[: len(log_mel) // step * step].reshape(-1, step, MELS).mean(1, dtype=np.float32)
    draw_map(axes, columns.T, (0, seconds, -0.5, MELS - 0.5), origin="lower", cmap="magma")
    centres = np.asarray(features.mel_filterbank()).argmax(1) * SAMPLE_RATE / WINDOW  # (64,) Hz
    hertz = (200, 500, 1000, 2000, 4000, 7000)
    axes.set_yticks(np.interp(hertz, centres, np.arange(MELS)), hertz)
    axes.set_ylabel("Hz")


def plot_clip(log_mel, classes, frame_scores, events, reference=(), path=None):
    """Log-mel, probabilities and events of a recording, one under the other.

    log_mel (8 T, 64), frame_scores (T, C); events and reference (true events, if known) are (filename, onset, offset,
    event_label) in seconds. Of many classes, the 16 that matter most are shown: those with events, then the likeliest.
    """
    with_events = {label for *_, label in (*events, *reference)}
    order = sorted(range(len(classes)), key=lambda c: (classes[c] not in with_events, -frame_scores[:, c].max()))
    shown = sorted(order[:CLASSES_SHOWN])
    names = [classes[c] for c in shown]
    height = 0.5 + 0.19 * len(shown)
    figure, (top, middle, bottom) = panels_in_a_column(2.2 + 2 * height, (1.6, height, height))
    draw_log_mel(top, log_mel)
    seconds = len(frame_scores) * FRAME_HOP
    extent = (0, seconds, len(shown) - 0.5, -0.5)
    image = draw_map(middle, frame_scores[:, shown].T, extent, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=middle, label="probability", pad=0.01)
    for table, place, colour, label in ((events, 0, "tab:blue", "predicted"), (reference, -0.4, "tab:orange", "true")):
        for number, (_, onset, offset, name) in enumerate(event for event in table if event[3] in names):
            spot = (names.index(name) + place, 0.4)
            bottom.broken_barh([(onset, offset - onset)], spot, color=colour, label=label if number == 0 else None)
    for panel in (middle, bottom):
        panel.set_yticks(range(len(names)), names)
    bottom.set(xlim=(0, seconds), ylim=(len(names) - 0.5, -0.5), xlabel="seconds")
    bottom.grid(axis="y", alpha=0.3)
    if events or reference:
        bottom.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)  # above, it would hide events
    return finish(figure, path)


def plot_attention(log_mel, encoders, weights, frames=(), path=None):
    """Ten seconds as log-mel, as video where there is one, and a block's attention to them.

    log_mel (512, 64); encoders: E names; weights (E, heads, 65, 64); frames: up to 64 of the video, (n, H, W, 3).
    A row of a map is what one output frame attends to. The figures of Boes 2019, Sec. 4.2, show one such row for each
    head; here all output frames are shown, from the top down. Each map is as bright as its own largest weight allows.
    """
    heads = [(encoder, head, w) for encoder, of_heads in zip(encoders, weights) for head, w in enumerate(of_heads, 1)]
    ratios = [1.4] + [0.9] * (len(frames) > 0) + [1.1] * len(heads)
    figure, panels = panels_in_a_column(0.4 + 1.05 * sum(ratios), ratios)
    draw_log_mel(panels[0], log_mel)
    for k, frame in enumerate(frames[::EVERY]):
        step = EVERY * CLIP_SECONDS / FRAMES  # 1.25 s
        draw_map(panels[1], frame, (k * step, (k + 1) * step, 0, 1))
    if len(frames):
        panels[1].set(ylim=(0, 1), yticks=[], ylabel="video")
    seconds = FRAMES * FRAME_HOP
    for panel, (encoder, head, w) in zip(panels[-len(heads) :], heads):
        draw_map(panel, w[:FRAMES], (0, seconds, seconds, 0), cmap="magma", vmin=0)  # row 64, the token's, has no time
        panel.set_ylabel(f"{encoder}\nhead {head}")
    panels[-1].set(xlim=(0, seconds), xlabel="seconds that are attended to; downwards: seconds of the output frame")
    return finish(figure, path)


def plot_synchronization(log_mel, stills, weights, query, query_is, first, step, path=None):
    """A clip as log-mel and stills, and what one step attends to, a row per head (Boes 2019, Fig. 4-7)

    log_mel (512, 64); stills: one for each step of the picture, (n, H, W, 3), or none; weights (heads, steps, steps):
    rows ask; query: the step that asks, marked in the log-mel, or in the stills where query_is "video" and there are
    some; first: "audio" or "video", what is attended to; step: seconds
    """
    n_heads, _, n_steps = weights.shape
    ratios = [1.4] + [1.0] * (len(stills) > 0) + [0.35 * n_heads]
    figure, panels = panels_in_a_column(0.6 + 1.05 * sum(ratios), ratios)
    draw_log_mel(panels[0], log_mel)
    for k, still in enumerate(stills):
        draw_map(panels[1], still, (k * step, (k + 1) * step, 0, 1))
    if len(stills):
        panels[1].set(ylim=(0, 1), yticks=[], ylabel="video")
    marked = panels[1 if query_is == "video" and len(stills) else 0]
    for edge in (query * step, (query + 1) * step):
        marked.axvline(edge, color="cyan", linewidth=2)
    extent = (0, n_steps * step, n_heads + 0.5, 0.5)
    image = draw_map(panels[-1], weights[:, query], extent, cmap="magma", vmin=0)
    figure.colorbar(image, ax=panels[-1], label="weight", pad=0.01)
    panels[-1].set_yticks(range(1, n_heads + 1))
    label = f"seconds of {first} that the marked step of {query_is} attends to"
    panels[-1].set(ylabel="head", xlim=(0, n_steps * step), xlabel=label)
    return finish(figure, path)


def plot_table(title, labels, columns, highlighted, path=None):
    """A panel for each score with a bar for each row of a table: mean and deviation over its runs.

    title: the table's name, of which the picture says the rest; labels: of the rows; columns: dict of score -> for each
    row the values of its runs (None where a score is not defined; a row without values has no bar); highlighted: for
    each row whether its bars are blue, not gray
    """
    figure = figure_class()(figsize=(14, 1.2 + 0.35 * len(labels)), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    colours = ["tab:blue" if blue else "tab:gray" for blue in highlighted]
    for panel, (name, rows) in zip(panels, columns.items()):
        rows = [[value for value in row if value is not None] for row in rows]
        means = [statistics.mean(row) if row else 0 for row in rows]
        deviations = [statistics.stdev(row) if len(row) > 1 else 0 for row in rows]
        panel.barh(range(len(rows)), means, xerr=deviations, capsize=3, color=colours)
        low = min((mean - deviation for mean, deviation, row in zip(means, deviations, rows) if row), default=0)
        panel.set(title=name, xlim=(max(0, low - 0.1), None))
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    figure.suptitle(f"{title}: mean and standard deviation over the runs (axes do not start at 0)")
    return finish(figure, path)


def plot_fusion(classes, audio, visual, fused, weights, path=None):
    """What each class gains by fusion, and from what (Fayek 2020, Figs. 2, 3 and 4).

    audio, visual, fused: (C,) average precision by sound, by vision and by their fusion; weights: (C,) mean weight of
    sound; nan where a class has none. Of many classes, the 16 that gain or lose most have their names.
    """
    audio, visual, gain = 100 * audio, 100 * visual, 100 * (fused - np.maximum(audio, visual))
    most = np.nanmax(np.abs(gain)) or 1
    figure = figure_class()(figsize=(15, 5), dpi=100, layout="constrained")
    bubbles, gains, shares = figure.subplots(1, 3)
    colours = dict(cmap="RdBu", vmin=-most, vmax=most, edgecolors="gray")
    image = bubbles.scatter(audio, visual, 10 + 400 * (np.abs(gain) / most) ** 2, gain, **colours)  # diameter ~ gain
    figure.colorbar(image, ax=bubbles, label="gain over the better one")
    for c in np.argsort(-np.abs(gain))[: np.isfinite(gain).sum()][:CLASSES_SHOWN]:  # nan comes last
        side = dict(xytext=(8, -3), ha="left") if audio[c] < 80 else dict(xytext=(-8, -3), ha="right")
        bubbles.annotate(classes[c], (audio[c], visual[c]), textcoords="offset points", fontsize=7, **side)
    bubbles.axline((0, 0), slope=1, color="gray", linewidth=0.5)
    bubbles.set(xlim=(0, 100), ylim=(0, 100), xlabel="average precision by sound", ylabel="by vision")
    gains.hist(gain[np.isfinite(gain)], 30)
    gains.set(xlabel="gain in average precision over the better one", ylabel="classes")
    shares.hist(weights[np.isfinite(weights)], 20, range=(0, 1))
    shares.set(xlabel="mean weight of sound in clips of the class", ylabel="classes")
    return finish(figure, path)


# --- what runs did, for extras/report.py -----------------------------------------------------------------------------
# Each of these returns a figure. systems: dict of label -> a list, with something of each run of the system.


def draw_mean(axes, x, runs, **style):
    """The mean of runs, (runs, points), as a line, their range as a band; what is not finite is left out"""
    known = np.ma.masked_invalid(runs)
    axes.plot(x, known.mean(0).filled(np.nan), **style)
    if len(known) > 1:
        axes.fill_between(x, *(edge.filled(np.nan) for edge in (known.min(0), known.max(0))), alpha=0.2,
            color=style["color"], linewidth=0)  # fmt: skip


def legend_on_top(figure, axes, **more):
    handles, labels = axes.get_legend_handles_labels()
    n_columns = max(1, 110 // max(10 + len(label) for label in labels))
    figure.legend(handles, labels, loc="outside upper left", ncols=n_columns, frameon=False, alignment="left", **more)


def plot_history(systems):
    """Losses and validation scores by epoch. systems: of each run a dict of column of history.tsv -> (epochs,)"""
    columns = list(dict.fromkeys(name for runs in systems.values() for run in runs for name in run))
    figure = figure_class()(figsize=(12, 2.6 * math.ceil(len(columns) / 3)), dpi=120, layout="constrained")
    panels = figure.subplots(math.ceil(len(columns) / 3), 3, squeeze=False).ravel()
    for panel, name in zip(panels, columns):
        for k, (label, runs) in enumerate(systems.items()):
            n_epochs = max(len(run[name]) for run in runs)
            padded = [np.pad(run[name], (0, n_epochs - len(run[name])), constant_values=np.nan) for run in runs]
            marker = "o" if n_epochs < 20 else None
            style = dict(color=f"C{k}", label=label, marker=marker, markersize=3)
            draw_mean(panel, np.arange(1, n_epochs + 1), padded, **style)
        panel.set_title(name, fontsize=10, loc="left")
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in panels[: len(columns)][-3:]:
        panel.set_xlabel("epoch")
    for panel in panels[len(columns) :]:
        panel.remove()
    legend_on_top(figure, panels[0])
    return figure


def plot_acoustic_weight(systems, parts):
    """Scores by acoustic weight at inference. systems: of each run a dict of weight -> part -> score -> number

    parts: those that are drawn, the first as solid lines, another dashed
    """
    names = list(next(iter(next(iter(systems.values()))[0].values()))[parts[0]])
    figure = figure_class()(figsize=(12, 3.2), dpi=120, layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names)), names):
        for k, (label, runs) in enumerate(systems.items()):
            weights = sorted(runs[0])
            for part, dashes in zip(parts, ("-", "--")):
                scores = [[run[weight][part][name] for weight in weights] for run in runs]
                style = dict(color=f"C{k}", linestyle=dashes, marker="o", markersize=5)
                style["fillstyle"] = "full" if dashes == "-" else "none"
                draw_mean(panel, weights, np.array(scores, float), label=label if dashes == "-" else None, **style)
        panel.set(xlabel="acoustic weight", xlim=(0.2, 1.05))
        panel.set_title(name, fontsize=10, loc="left")
        panel.grid(alpha=0.3)
    told = ", ".join(f"{kind}: {part} clips" for kind, part in zip(("full", "dashed and hollow"), parts))
    legend_on_top(figure, panel, title=told)
    return figure


def plot_by_class(systems, classes, columns):
    """Heat maps: a row for each class, a column for each score. systems: (C, columns) each, from 0 to 1 or nan"""
    n = len(systems)
    width, height = 2.2 + 0.62 * len(columns) * n, 1.3 + 0.3 * len(classes)
    figure = figure_class()(figsize=(max(8, width), height), dpi=120, layout="constrained")
    for panel, (label, values) in zip(figure.subplots(1, n, sharey=True, squeeze=False)[0], systems.items()):
        image = panel.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text = "-" if np.isnan(value) else f"{100 * value:.0f}"
            colour = "white" if value < 0.6 else "black"
            panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        panel.set_xticks(range(len(columns)), columns, rotation=35, ha="left", rotation_mode="anchor")
        panel.set_yticks(range(len(classes)), classes)
        panel.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        panel.set_xlabel(label)
    figure.colorbar(image, ax=figure.axes, label="scores (cells: in percent)", pad=0.01, shrink=0.8)
    return figure


def plot_psd_roc(curves, classes, max_efpr):
    """PSD-ROC. curves: dict of label, a row each -> dict of scenario, a column each -> metrics.psd_roc(..), its area"""
    n_rows, n_columns = len(curves), len(next(iter(curves.values())))
    figure = figure_class()(figsize=(12, 0.8 + 3.6 * n_rows), dpi=120, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for row, (label, scenarios) in zip(panels, curves.items()):
        for panel, (name, ((efpr, tpr, etpr), value)) in zip(row, scenarios.items()):
            edges = np.append(efpr, max_efpr)
            for c, (of_class, of_label) in enumerate(zip(tpr, classes)):
                style = dict(color=f"C{c % 10}", linestyle=("-", "--", ":")[c // 10 % 3], linewidth=1, alpha=0.8)
                panel.step(edges, np.append(of_class, of_class[-1]), where="post", label=of_label, **style)
            effective = np.append(etpr, etpr[-1])
            panel.fill_between(edges, effective, step="post", color="black", alpha=0.12, linewidth=0)
            panel.step(edges, effective, where="post", color="black", linewidth=3, label="effective")
            panel.set(xlim=(0, max_efpr), ylim=(0, 1.02))
            panel.set_title(f"{name}: {value:.4f}, the gray area", fontsize=10, loc="left")
            panel.grid(alpha=0.3)
        row[0].set_ylabel(f"{label}\ntrue positive rate")
    for panel in panels[-1]:
        panel.set_xlabel("effective false positives per hour")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return figure


def plot_tuned(systems, classes, shown):
    """Thresholds and windows by class, a dot for each run; shown: pairs (score, "threshold" or "window")

    systems: of each run a dict of score -> "threshold", "window" -> values (C,)
    """
    figure = figure_class()(figsize=(12, 1.2 + 0.26 * len(classes)), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True)
    for panel, (name, what) in zip(panels, shown):
        for k, (label, runs) in enumerate(systems.items()):
            rows = np.arange(len(classes)) + 0.24 * (k - (len(systems) - 1) / 2)  # systems one under the other
            for i, run in enumerate(runs):
                style = dict(color=f"C{k}", alpha=0.6, markersize=6, label=label if i == 0 else None)
                panel.plot(run[name][what], rows, "o", **style)
        panel.set(xlim=(0, 1) if what == "threshold" else (-1, 33))
        panel.set_xlabel(what if what == "threshold" else "window, frames")
        panel.set_title(name, fontsize=10, loc="left")
        panel.grid(alpha=0.3)
    panels[0].set_yticks(range(len(classes)), classes)
    panels[0].set_ylim(len(classes) - 0.5, -0.5)
    legend_on_top(figure, panels[0])
    return figure


def plot_errors(log_mel, tables):
    """A clip and its events: log-mel above, below a lane for each class, within it a bar for each table.

    log_mel (8 T, 64); tables: dict of label -> (onset, offset, class, fits), truth first; what fits nothing is empty
    """
    lanes = sorted({label for events in tables.values() for _, _, label, _ in events})
    heights = 1.5, 0.3 + 0.13 * (len(tables) + 1) * len(lanes)
    figure = figure_class()(figsize=(9, 0.9 + sum(heights)), dpi=110, layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=heights)
    draw_log_mel(top, log_mel)
    step = 0.8 / len(tables)
    for k, (name, events) in enumerate(tables.items()):
        colour = "black" if k == 0 else f"C{k - 1}"
        bottom.broken_barh([(0, 0)], (0, 0), facecolor=colour, label=name)  # for the legend, also without events
        for onset, offset, label, fits in events:
            place = (lanes.index(label) - 0.4 + k * step, 0.8 * step)
            style = dict(facecolor=colour if fits else "none", edgecolor=colour)
            bottom.broken_barh([(onset, offset - onset)], place, **style)
    bottom.set_yticks(range(len(lanes)), lanes)
    bottom.set(xlim=(0, len(log_mel) / 8 * FRAME_HOP), ylim=(len(lanes) - 0.5, -0.5))
    bottom.set_xlabel("seconds; a bar that is empty is a false alarm, no true event fits it")
    bottom.hlines(np.arange(len(lanes) - 1) + 0.5, *bottom.get_xlim(), color="black", alpha=0.15, linewidth=1)
    legend_on_top(figure, bottom)
    return figure


# --- the tour's pictures (extras/tour.py) ----------------------------------------------------------------------------

GOOD, BAD, MISSED = "tab:green", "tab:red", "tab:orange"


def plot_strips(strips, path=None):
    """What happens in ten seconds, strip under strip on one time axis. strips: (label, values, more), see draw_strip"""
    figure, panels = panels_of_strips(strips)
    panels[-1].set_xlabel("seconds")
    return finish(figure, path)


def panels_of_strips(strips, extra=()):
    """-> figure with the strips drawn, all its panels. extra: heights in inches of more panels, which follow, empty"""
    heights = [0.3 + 0.17 * len(more) if isinstance(more, (list, tuple)) else 0.9 for _, _, more in strips]
    heights += extra
    figure, panels = panels_in_a_column(0.5 + 0.25 * len(heights) + sum(heights), heights)
    panels = np.atleast_1d(panels)
    for panel, strip in zip(panels, strips):
        draw_strip(panel, *strip)
    panels[-1].set_xlim(0, FRAMES * FRAME_HOP)
    return figure, panels


def draw_strip(panel, label, values, more):
    """values: a curve (T,), with more a level that is drawn as a line, or None; a map (T, K), with more the names of
    its K rows, or None; or bars, a list of (onset, offset, row, colour), with more the names of the rows.

    Curves and maps cover the ten seconds, whatever T is.
    """
    seconds = FRAMES * FRAME_HOP
    panel.set_title(label, loc="left", fontsize=9)
    panel.set_yticks([])
    if isinstance(values, list):
        for onset, offset, row, colour in values:
            panel.broken_barh([(onset, offset - onset)], (row - 0.35, 0.7), color=colour)
        panel.set_ylim(len(more) - 0.5, -0.5)
    elif np.ndim(values) == 2:
        rows = values.shape[1]
        draw_map(panel, np.asarray(values).T, (0, seconds, rows - 0.5, -0.5), cmap="magma")
        if more is None:  # a row is a frequency or a dimension: the lowest at the bottom
            panel.set_ylim(-0.5, rows - 0.5)
    else:
        panel.plot((np.arange(len(values)) + 0.5) * seconds / len(values), values, linewidth=0.8)
        if more is not None:
            panel.axhline(more, color="tab:red", linewidth=1)
    if isinstance(more, (list, tuple)):
        panel.set_yticks(range(len(more)), more)


def plot_windows(waveform, begin, path=None):
    """A tenth of a second of sound with the windows that are laid over it, and the filters that each window meets.

    waveform (samples,) at 16 kHz; begin: seconds
    """
    figure = figure_class()(figsize=(9, 3), dpi=100, layout="constrained")
    sound, filters = figure.subplots(1, 2)
    first = round(begin * SAMPLE_RATE)
    excerpt = waveform[first : first + 1700]
    sound.plot((first + np.arange(len(excerpt))) / SAMPLE_RATE, excerpt, linewidth=0.7, color="gray")
    for k in range(3):
        begins = first + k * features.HOP + np.arange(WINDOW)
        sound.plot(begins / SAMPLE_RATE, np.abs(excerpt).max() * np.hamming(WINDOW), label=f"window {k + 1}")
    sound.set(xlabel="seconds", title=f"windows of {WINDOW} samples, {features.HOP} samples apart", yticks=[])
    sound.legend(loc="lower right", fontsize=8)
    hertz = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    for k, triangle in enumerate(np.asarray(features.mel_filterbank())[::3]):
        filters.plot(hertz, triangle, linewidth=1, color=("tab:blue", "tab:orange")[k % 2])
    filters.set(xlabel="Hz", title=f"every third of the {MELS} mel filters", yticks=[0, 1])
    return finish(figure, path)


def plot_maps(maps, xlabel="", ylabel="", height=3.0, path=None):
    """Maps side by side, each as bright as its own largest value. maps: dict of title -> (rows, columns)

    The first row is at the bottom; with a ylabel (of the leftmost) it is at the top.
    """
    figure = figure_class()(figsize=(min(11, 2.6 * len(maps) + 1), height), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    panels[0].set_ylabel(ylabel)
    for panel, (title, values) in zip(panels, maps.items()):
        origin = "upper" if ylabel else "lower"
        panel.imshow(values, aspect="auto", interpolation="nearest", cmap="magma", origin=origin)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel(xlabel)
        panel.tick_params(labelsize=7)
        if len(values) == 1:
            panel.set_yticks([])
    return finish(figure, path)


def plot_weights(clips, path=None):
    """Encoders with arrows to the decoder, as thick as their weights, for several clips side by side.

    clips: dict of title -> dict of encoder -> weight; an encoder of weight 0 is gray, its stream is missing
    """
    figure = figure_class()(figsize=(3.4 * len(clips), 2.6), dpi=100, layout="constrained")
    for panel, (title, weights) in zip(figure.subplots(1, len(clips), squeeze=False)[0], clips.items()):
        box = dict(boxstyle="round", facecolor="white")
        for row, (encoder, weight) in enumerate(weights.items()):
            place, colour = 0.85 - 0.35 * row, "black" if weight else "lightgray"
            panel.text(0.16, place, encoder, ha="center", va="center", color=colour, bbox=box | {"edgecolor": colour})
            if weight:
                arrow = dict(arrowstyle="-|>", linewidth=0.5 + 5 * weight, color="tab:blue", shrinkA=0, shrinkB=0)
                panel.annotate("", (0.76, 0.5 + (place - 0.5) / 5), (0.34, place), arrowprops=arrow)
            middle = 0.5 + (place - 0.5) * 0.6  # of the arrow
            text = dict(ha="center", va="center", fontweight="bold", bbox=dict(facecolor="white", edgecolor="none"))
            panel.text(0.55, middle, f"{weight:.3g}", color=colour, **text)
        panel.text(0.88, 0.5, "decoder", ha="center", va="center", bbox=box)
        panel.set(xlim=(0, 1), ylim=(0, 1), title=title)
        panel.axis("off")
    return finish(figure, path)


def plot_grid(values, rows, columns, chosen, labels, path=None):
    """A number for each pair of a row and a column, the chosen pair marked.

    values (R, K); rows, columns: their names; chosen: (row, column), two indices; labels: of the two axes, the colours
    """
    figure = figure_class()(figsize=(8, 4), dpi=100, layout="constrained")
    panel = figure.subplots()
    figure.colorbar(panel.imshow(values, aspect="auto", cmap="viridis"), ax=panel, label=labels[2])
    square = dict(markersize=16, markerfacecolor="none", markeredgecolor="red", markeredgewidth=2)
    panel.plot(chosen[1], chosen[0], "s", **square)
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(rows)), rows)
    panel.set(ylabel=labels[0], xlabel=labels[1])
    return finish(figure, path)


def plot_segments(classes, n_tp, n_fp, n_fn, path=None):
    """Which class is active in which second: counts (C, seconds) of `metrics.segment_f1`. Others are not shown"""
    shown = np.flatnonzero((n_tp + n_fp + n_fn).any(axis=1))
    figure = figure_class()(figsize=(8, 0.8 + 0.35 * len(shown)), dpi=100, layout="constrained")
    panel = figure.subplots()
    for counts, colour, label in ((n_tp, GOOD, "true and found"), (n_fn, MISSED, "missed"), (n_fp, BAD, "false")):
        for row, second in np.argwhere(counts[shown] > 0):
            panel.broken_barh([(second + 0.04, 0.92)], (row - 0.4, 0.8), color=colour)
        panel.broken_barh([(-5, 1)], (0, 1), color=colour, label=label)  # out of sight, for the legend
    panel.set(xlim=(0, n_tp.shape[1]), ylim=(len(shown) - 0.5, -0.5), xlabel="seconds")
    panel.set_xticks(range(n_tp.shape[1] + 1))
    panel.set_yticks(range(len(shown)), [classes[c] for c in shown])
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return finish(figure, path)


def plot_verdicts(truth, found, verdicts, collars, strips=(), path=None):
    """True events with their collars, found ones below, each with what the scores say of it; strips: drawn above

    truth, found: lists of events; collars: for each true event that of its onset and that of its offset, in seconds;
    verdicts: for each found event a dict of score -> whether it is right
    """
    rows = []  # what stands there, bars
    for label in dict.fromkeys(event[3] for event in (*truth, *found)):
        of_class = [(event, collar) for event, collar in zip(truth, collars) if event[3] == label]
        rows += [(f"{label}, true", of_class)] if of_class else []
        name = "found" if of_class else f"{label}, found"
        rows += [(name, [(event, right)]) for event, right in zip(found, verdicts) if event[3] == label]
    figure, panels = panels_of_strips(strips, [0.3 * len(rows)])
    figure.set_figwidth(10.5)
    panel = panels[-1]
    for row, (kind, events) in enumerate(rows):
        for (_, onset, offset, _), more in events:
            true = kind.endswith("true")
            panel.broken_barh([(onset, offset - onset)], (row - 0.3, 0.6), color="gray" if true else "tab:blue")
            for edge, collar in zip((onset, offset), more) if true else ():
                panel.broken_barh([(edge - collar, 2 * collar)], (row - 0.42, 0.84), color=MISSED, alpha=0.45)
            for k, (score, right) in enumerate(() if true else more.items()):
                mark, colour = ("✓", GOOD) if right else ("✗", BAD)
                place = dict(xycoords=panel.get_yaxis_transform(), xytext=(8 + 52 * k, 0), textcoords="offset points")
                panel.annotate(f"{mark} {score}", (1, row), **place, color=colour, va="center", fontsize=9)
    panel.set_yticks(range(len(rows)), [kind for kind, _ in rows])
    panel.set(ylim=(len(rows) - 0.5, -0.5), xlabel="seconds")
    return finish(figure, path)


def plot_curves(panels, path=None):
    """Curves over the iterations, side by side. panels: dict of title -> dict of label -> (N,) values from 0 on"""
    figure = figure_class()(figsize=(4.2 * len(panels), 3), dpi=100, layout="constrained")
    for panel, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for label, values in curves.items():
            panel.plot(values, marker="o" if len(values) < 30 else None, markersize=3, label=label)
        panel.set(title=title, xlabel="iterations")
        if max(map(max, curves.values())) > 50 * min(map(min, curves.values())) > 0:
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    return finish(figure, path)
