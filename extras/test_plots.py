"""Pictures: what is drawn where, as plots.py asks for it; that matplotlib takes it, where it is there"""

import statistics
import sys
from unittest.mock import Mock

import numpy as np
import pytest

from extras import plots, plumbing

FRAME_HOP = 8 * 313 / 16000  # seconds


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved: stand-ins that only note what is asked of them and of their panels"""
    figures = []

    def new_figure(**_):
        figure = Mock()

        def subplots(rows=1, columns=1, squeeze=True, **_):
            figure.panels = [Mock() for _ in range(rows * columns)]
            return figure.panels if squeeze else [figure.panels]

        figure.subplots = subplots
        return figure

    monkeypatch.setattr(plots, "figure_class", lambda: new_figure)
    monkeypatch.setattr(plots, "finish", lambda figure, path: figures.append(figure))
    return figures


def calls(method):
    """[(arguments, keyword arguments) ...] of a stand-in's method"""
    return [(call.args, call.kwargs) for call in method.call_args_list]


def settings(panel):
    """What panel.set was given, in all its calls"""
    return {name: value for _, kwargs in calls(panel.set) for name, value in kwargs.items()}


def maps(panel):
    """[(array, extent) ...]"""
    return [(args[0], kwargs["extent"]) for args, kwargs in calls(panel.imshow)]


def test_the_log_mel_has_its_frequencies_where_the_filters_are():
    axes = Mock()
    plots.draw_log_mel(axes, np.zeros((512, 64)))
    [((ticks, hertz), _)] = calls(axes.set_yticks)
    # Slaney's scale: 15 mels to 1000 Hz, then 27 for a factor of 6.4; filter k is centred at (k + 1) / 65 of the 8 kHz
    top = 15 + 27 * np.log(8) / np.log(6.4)
    assert abs(ticks[hertz.index(1000)] - (15 / top * 65 - 1)) < 0.6
    plots.draw_log_mel(axes, np.zeros((184000, 64), np.float16))  # an hour
    (_, extent), (hour, _) = maps(axes)
    assert extent == (0, 64 * FRAME_HOP, -0.5, 63.5) and hour.shape == (64, 1000)


def test_a_clip_shows_predicted_and_true_events(drawn):
    classes = [f"c{i:02d}" for i in range(20)]
    scores = np.tile(np.linspace(0.9, 0.1, 20), (128, 1))  # of the 20 classes the last ones matter least
    events = [("a.wav", 1.0, 2.5, "c03"), ("a.wav", 4.0, 5.0, "c19")]
    plots.plot_clip(np.zeros((1024, 64)), classes, scores, events, [("a.wav", 1.25, 2.0, "c18")])
    _, middle, bottom = drawn[0].panels
    [((_, names), _)] = calls(bottom.set_yticks)
    assert names == classes[:14] + ["c18", "c19"]
    [(image, _)] = maps(middle)
    assert np.array_equal(image[:, 0], scores[0, [*range(14), 18, 19]])
    bars = [(args, kwargs["label"]) for args, kwargs in calls(bottom.broken_barh)]
    wanted = [(1, 1.5, 3, 0.4, "predicted"), (4, 1, 15, 0.4, None), (1.25, 0.75, 13.6, 0.4, "true")]
    for (([(begin, width)], (low, height)), label), bar in zip(bars, wanted, strict=True):
        assert np.allclose((begin, width, low, height), bar[:4]) and label == bar[4]
    assert bottom.legend.called


def test_attention_has_a_map_for_each_head_and_eight_frames_of_video(drawn):
    weights = np.random.default_rng(0).random((2, 3, 65, 64))
    frames = np.zeros((60, 4, 4, 3), np.uint8)  # the picture ends a little early
    plots.plot_attention(np.zeros((512, 64)), ["log-mel", "tce"], weights, frames)
    plots.plot_attention(np.zeros((512, 64)), ["log-mel"], weights[:1])
    with_video, without_video = (figure.panels for figure in drawn)
    assert len(with_video) == 2 + 6 and len(without_video) == 1 + 3
    assert [extent[0] for _, extent in maps(with_video[1])] == [1.25 * k for k in range(8)]
    assert np.array_equal(maps(with_video[2 + 4])[0][0], weights[1, 1, :64])
    assert calls(with_video[2 + 4].set_ylabel) == [(("tce\nhead 2",), {})]


def test_a_step_attends_with_a_row_for_each_head(drawn):
    weights = np.random.default_rng(0).random((3, 10, 10))
    stills = np.arange(10)[:, None, None, None] * np.ones((10, 4, 4, 3), np.uint8)
    plots.plot_synchronization(np.zeros((512, 64)), stills, weights, 4, "audio", "video", 0.96)
    plots.plot_synchronization(np.zeros((512, 64)), stills, weights, 9, "video", "audio", 0.96)
    plots.plot_synchronization(np.zeros((512, 64)), (), weights, 0, "video", "audio", 0.96)
    for figure, query, marked, n_panels in zip(drawn, (4, 9, 0), (0, 1, 0), (3, 3, 2)):
        [(rows, extent)] = maps(figure.panels[-1])
        assert len(figure.panels) == n_panels and np.array_equal(rows, weights[:, query])
        assert extent == (0, 9.6, 3.5, 0.5)  # the first head on top
        edges = [[args[0] for args, _ in calls(panel.axvline)] for panel in figure.panels]
        want = [[] for _ in figure.panels]
        want[marked] = [query * 0.96, (query + 1) * 0.96]
        assert edges == want
    shown = [(still[0, 0, 0], *extent[:2]) for still, extent in maps(drawn[0].panels[1])]
    assert shown == [(k, k * 0.96, (k + 1) * 0.96) for k in range(10)]
    assert settings(drawn[1].panels[2])["xlabel"] == "seconds of audio that the marked step of video attends to"


def test_a_table_has_bars_of_means_and_deviations(drawn):
    columns = {"EBF1": [[0.25, 0.35], [], [0.5]], "PSDS1": [[0.3, None], [None], [0.2]]}
    plots.plot_table("Table 5", ["a", "b", "c"], columns, [False, True, True])
    left, right = drawn[0].panels
    [((rows, means), bars)], [((_, others), _)] = calls(left.barh), calls(right.barh)
    deviation = statistics.stdev([0.25, 0.35])
    assert [*rows] == [0, 1, 2] and means == [0.3, 0, 0.5] and others == [0.3, 0, 0.2]
    assert np.allclose(bars["xerr"], [deviation, 0, 0]) and bars["color"] == ["tab:gray", "tab:blue", "tab:blue"]
    assert settings(left)["title"] == "EBF1" and [*calls(left.set_yticks)[0][0][1]] == ["a", "b", "c"]
    assert settings(left)["xlim"] == (pytest.approx(0.3 - deviation - 0.1), None)
    assert left.invert_yaxis.call_count == 1  # the first row on top; the panels share this axis
    assert calls(drawn[0].suptitle)[0][0][0].startswith("Table 5: mean")


def test_fusion_has_a_bubble_for_each_class_and_two_histograms(drawn):
    audio, visual, fused = np.array([[0.8, 0.2, 0.5, np.nan], [0.4, 0.6, 0.5, np.nan], [0.9, 0.4, 0.5, np.nan]])
    plots.plot_fusion(["a", "b", "c", "d"], audio, visual, fused, np.array([0.97, 0.31, 0.33, np.nan]))
    bubbles, gains, shares = drawn[0].panels
    [((x, y, sizes, colours), scale)] = calls(bubbles.scatter)
    assert np.allclose(x[:3], [80, 20, 50]) and np.allclose(y[:3], [40, 60, 50])
    assert np.allclose(colours[:3], [10, -20, 0]) and np.allclose((scale["vmin"], scale["vmax"]), (-20, 20))
    assert np.allclose(sizes[:3], [10 + 400 / 4, 10 + 400, 10])
    places = dict(args for args, _ in calls(bubbles.annotate))
    assert places.keys() == {"a", "b", "c"} and np.allclose(places["b"], (20, 60))
    [((in_points, _), _)], [((of_sound, n_bins), more)] = calls(gains.hist), calls(shares.hist)
    assert np.allclose(in_points, [10, -20, 0])  # d has no clip
    assert np.allclose(of_sound, [0.97, 0.31, 0.33]) and (n_bins, more["range"]) == (20, (0, 1))


def test_strips_share_one_time_axis():
    pytest.importorskip("matplotlib")
    bars = [(1.0, 2.5, 1, "tab:blue")]
    strips = [("curve", np.arange(128.0), 50), ("map", np.zeros((64, 3)), list("abc")), ("raw", np.eye(512, 64), None)]
    curve, named, raw, events = plots.plot_strips([*strips, ("events", bars, ["x", "y"])]).axes
    times, values = curve.lines[0].get_data()
    assert np.allclose(times[[0, -1]], [32 * FRAME_HOP / 128, 64 * FRAME_HOP - 32 * FRAME_HOP / 128])
    assert values[-1] == 127 and curve.lines[1].get_ydata()[0] == 50 and curve.get_title("left") == "curve"
    assert named.images[0].get_extent() == [0, 64 * FRAME_HOP, 2.5, -0.5] and named.get_ylim() == (2.5, -0.5)
    assert [label.get_text() for label in named.get_yticklabels()] == list("abc")
    assert raw.images[0].get_array().shape == (64, 512) and raw.get_ylim() == (-0.5, 63.5)  # the lowest at the bottom
    assert np.allclose(events.collections[0].get_paths()[0].get_extents().bounds, [1, 0.65, 1.5, 0.7])
    assert events.get_xlim() == (0, 64 * FRAME_HOP) == curve.get_xlim()


def test_windows_lie_a_hop_apart():
    pytest.importorskip("matplotlib")
    sound, filters = plots.plot_windows(np.sin(np.arange(160000) / 9), 1.0).axes
    excerpt, *windows = (line.get_data() for line in sound.lines)
    assert excerpt[0][0] == 1.0 and np.allclose([x[0] for x, _ in windows], [1 + k * 313 / 16000 for k in range(3)])
    assert all(len(x) == 1024 and abs(y.max() - 1) < 1e-3 for x, y in windows) and len(filters.lines) == 22


def test_maps_stand_side_by_side():
    pytest.importorskip("matplotlib")
    figure = plots.plot_maps({"a": np.eye(4), "b": np.zeros((1, 9))}, "keys", "queries")
    assert [panel.get_title() for panel in figure.axes] == ["a", "b"] and figure.axes[0].get_ylabel() == "queries"
    panels = figure.axes[0], plots.plot_maps({"a": np.eye(4)}).axes[0]
    assert [panel.images[0].origin for panel in panels] == ["upper", "lower"]


def test_weights_stand_on_arrows():
    pytest.importorskip("matplotlib")
    figure = plots.plot_weights({"all": {"sound": 0.75, "openl3": 0.25}, "none": {"sound": 1.0, "openl3": 0.0}})
    shown = [[text.get_text() for text in panel.texts if text.get_text()] for panel in figure.axes]
    assert shown[0] == ["sound", "0.75", "openl3", "0.25", "decoder"]
    assert shown[1] == ["sound", "1", "openl3", "0", "decoder"]
    arrows = [[text.arrow_patch for text in panel.texts if hasattr(text, "arrow_patch")] for panel in figure.axes]
    heard, seen = (arrow.get_linewidth() for arrow in arrows[0])
    assert heard > seen and len(arrows[1]) == 1
    assert {text.get_color() for text in figure.axes[1].texts if text.get_text() in ("openl3", "0")} == {"lightgray"}


def test_a_grid_has_a_mark():
    pytest.importorskip("matplotlib")
    panel, bar = plots.plot_grid(np.arange(6.0).reshape(2, 3), [1, 3], [0.1, 0.2, 0.3], (1, 2), ("w", "t", "F1")).axes
    assert np.array_equal(panel.images[0].get_array(), [[0, 1, 2], [3, 4, 5]]) and bar.get_ylabel() == "F1"
    assert [line.get_data() for line in panel.lines] == [([2], [1])]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0.1", "0.2", "0.3"]


def test_segments_and_verdicts_have_their_colours():
    colors = pytest.importorskip("matplotlib.colors")
    good, bad, missed = (colors.to_rgba(name) for name in ("tab:green", "tab:red", "tab:orange"))
    n_tp, n_fp, n_fn = np.zeros((3, 3, 4), int)
    n_tp[0, 1] = n_fp[0, 2] = n_fn[2, 0] = 1
    (panel,) = plots.plot_segments(["A", "B", "C"], n_tp, n_fp, n_fn).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["A", "C"]
    drawn = {}
    for collection in panel.collections:
        x, y, *_ = collection.get_paths()[0].get_extents().bounds
        if x >= 0:
            drawn[int(x), round(y + 0.4)] = tuple(collection.get_facecolor()[0])
    assert drawn == {(1, 0): good, (2, 0): bad, (0, 1): missed}

    truth, found = [("a", 2, 5, "A"), ("a", 7, 8, "A")], [("a", 2.1, 5.5, "A"), ("a", 1, 2, "B")]
    verdicts = [{"EBF1": True, "PSDS1": False}, {"EBF1": False, "PSDS1": False}]
    strip = ("curve", np.zeros(64), None)
    above, panel = plots.plot_verdicts(truth, found, verdicts, [(0.2, 0.6), (0.2, 0.2)], [strip]).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["A, true", "found", "B, found"]
    spans = [tuple(collection.get_paths()[0].get_extents().intervalx) for collection in panel.collections]
    assert np.allclose(spans, [(2, 5), (1.8, 2.2), (4.4, 5.6), (7, 8), (6.8, 7.2), (7.8, 8.2), (2.1, 5.5), (1, 2)])
    marks = [(text.get_text(), text.xy[1], colors.to_rgba(text.get_color()) == good) for text in panel.texts]
    assert marks == [("✓ EBF1", 1, True), ("✗ PSDS1", 1, False), ("✗ EBF1", 2, False), ("✗ PSDS1", 2, False)]


def test_scores_by_acoustic_weight_have_full_and_dashed_lines():
    pytest.importorskip("matplotlib")
    runs = [{w: {part: {"EBF1": x + shift, "PSDS1": 0.0} for part, x in (("public", 0.25), ("validation", 0.5))}
             for w, shift in ((1.0, more), (0.25, 0.0))} for more in (0.125, 0.375)]  # fmt: skip
    panel, _ = plots.plot_acoustic_weight({"a": runs}, ["public", "validation"]).axes
    lines = [(line.get_linestyle(), [*line.get_xdata()], [*line.get_ydata()]) for line in panel.lines]
    assert lines == [("-", [0.25, 1], [0.25, 0.5]), ("--", [0.25, 1], [0.5, 0.75])]  # means of the two runs


def test_each_class_has_its_scores_in_percent_and_its_dots():
    pytest.importorskip("matplotlib")
    values = np.array([[0.5, np.nan], [0.124, 1.0]])
    panel, _ = plots.plot_by_class({"a": values}, ["A", "B"], ["F1", "area"]).axes
    cells = {text.get_position(): text.get_text() for text in panel.texts}
    assert cells == {(0, 0): "50", (1, 0): "-", (0, 1): "12", (1, 1): "100"}  # column, row
    runs = [{"threshold": [0.1, 0.2], "window": [3, 31]}, {"threshold": [0.5, 0.9], "window": [1, 7]}]
    runs = [{"EBF1": tuned} for tuned in runs]
    shown = [("EBF1", "threshold"), ("EBF1", "window")]
    panels = plots.plot_tuned({"a": runs}, ["A", "B"], shown).axes
    for panel, (name, what), (low, high) in zip(panels, shown, ((0, 1), (0, 32))):
        dots = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in panel.lines]
        assert dots == [(run[name][what], [0, 1]) for run in runs]
        assert panel.get_xlim()[0] <= low and high <= panel.get_xlim()[1]
    assert panels[0].get_ylim() == (1.5, -0.5)  # the first class on top


def test_the_shaded_area_is_psds():
    pytest.importorskip("matplotlib")
    efpr, etpr = np.array([0.0, 10, 40]), np.array([0, 0.125, 0.375])
    tpr = np.array([[0, 0.25, 0.75], [0, 0, 0]])
    curve = (efpr, tpr, etpr), 0.2625
    panel, other = plots.plot_psd_roc({"a run": {"PSDS1": curve, "PSDS2": curve}}, ["A", "B"], 100.0).axes
    x, y = panel.collections[0].get_paths()[0].vertices.T
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    assert area / 100 == pytest.approx((30 * 0.125 + 60 * 0.375) / 100)
    assert {line.get_label() for line in panel.lines} == {"A", "B", "effective"} and len(other.lines) == 3
    assert panel.lines[0].get_xdata()[-1] == 100 and panel.lines[0].get_ydata()[-1] == 0.75
    assert panel.get_title("left").startswith("PSDS1: 0.2625")


def test_curves_that_span_decades_have_a_logarithmic_axis():
    pytest.importorskip("matplotlib")
    near, far = plots.plot_curves({"near": {"a": [1, 2], "b": [3, 4]}, "far": {"rate": [1e-3, 1e-4, 1e-5]}}).axes
    assert (near.get_yscale(), far.get_yscale()) == ("linear", "log") and far.get_title() == "far"
    assert [text.get_text() for text in near.get_legend().get_texts()] == ["a", "b"]


def test_matplotlib_takes_every_picture(tmp_path):
    pytest.importorskip("matplotlib")
    log_mel, rng = np.zeros((512, 64)), np.random.default_rng(0)
    event, frames = ("a.wav", 1.0, 2.5, "c"), np.zeros((10, 4, 4, 3), np.uint8)
    plots.plot_clip(log_mel, ["c", "$d"], rng.random((64, 2)), [event], [event], path=tmp_path / "1.png")
    plots.plot_attention(log_mel, ["log-mel"], rng.random((1, 3, 65, 64)), frames, path=tmp_path / "2.png")
    maps = rng.random((3, 10, 10))
    plots.plot_synchronization(log_mel, frames, maps, 4, "video", "audio", 0.96, path=tmp_path / "3.png")
    columns = {"EBF1": [[0.25, 0.35], []], "PSDS1": [[0.3, None], [0.2]]}
    plots.plot_table("Table 5", ["a", "b"], columns, [False, True], path=tmp_path / "4.png")
    plots.plot_fusion(["a", "b"], *(np.append(rng.random(1), np.nan) for _ in range(4)), path=tmp_path / "5.png")
    figure = plots.plot_clip(log_mel, ["c"], rng.random((64, 1)), [event])  # where no path is given, nothing is written
    assert len(list(tmp_path.iterdir())) == 5 and len(figure.axes) == 4  # and a colour bar
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.iterdir())


def test_a_picture_that_cannot_be_finished_leaves_no_file(tmp_path):
    figure = Mock()
    figure.savefig = lambda path, format: path.write_bytes(b"whole")
    assert plots.finish(figure, tmp_path / "a.png") is figure and plots.finish(figure, None) is figure
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def savefig(path, format):
        path.write_bytes(b"half")
        raise OSError("disk full")

    figure.savefig = savefig
    with pytest.raises(plots.InputError, match="b.png: cannot be written .disk full"):
        plots.finish(figure, tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_without_matplotlib_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(plumbing.InputError, match="needs matplotlib: pip install matplotlib"):
        plots.figure_class()
