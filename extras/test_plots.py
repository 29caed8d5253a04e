"""Pictures: what is drawn where, by the objects of matplotlib that end in the file"""

import statistics
import sys

import numpy as np
import pytest

from extras import plots, plumbing

FRAME_HOP = 8 * 313 / 16000  # seconds


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved"""
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def test_the_log_mel_has_its_frequencies_where_the_filters_are():
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    plots.draw_log_mel(axes, np.zeros((512, 64)))
    ticks = {label.get_text(): tick for label, tick in zip(axes.get_yticklabels(), axes.get_yticks())}
    # Slaney's scale: 15 mels to 1000 Hz, then 27 for a factor of 6.4; filter k is centred at (k + 1) / 65 of the 8 kHz
    top = 15 + 27 * np.log(8) / np.log(6.4)
    assert abs(ticks["1000"] - (15 / top * 65 - 1)) < 0.6
    assert axes.images[0].get_extent() == [0, 64 * FRAME_HOP, -0.5, 63.5]
    plots.draw_log_mel(axes, np.zeros((184000, 64), np.float16))  # an hour
    assert axes.images[1].get_array().shape == (64, 1000)


def test_a_clip_shows_predicted_and_true_events(drawn):
    classes = [f"c{i:02d}" for i in range(20)]
    scores = np.tile(np.linspace(0.9, 0.1, 20), (128, 1))  # of the 20 classes the last ones matter least
    events = [("a.wav", 1.0, 2.5, "c03"), ("a.wav", 4.0, 5.0, "c19")]
    plots.plot_clip("a.png", np.zeros((1024, 64)), classes, scores, events, [("a.wav", 1.25, 2.0, "c18")])
    _, middle, bottom, *_ = drawn[0].axes
    names = [label.get_text() for label in bottom.get_yticklabels()]
    assert names == classes[:14] + ["c18", "c19"]
    assert np.array_equal(middle.images[0].get_array()[:, 0], scores[0, [*range(14), 18, 19]])
    bars = [collection.get_paths()[0].get_extents().bounds for collection in bottom.collections]  # x, y, width, height
    assert np.allclose(bars, [(1, 3, 1.5, 0.4), (4, 15, 1, 0.4), (1.25, 13.6, 0.75, 0.4)])
    assert [text.get_text() for text in bottom.get_legend().get_texts()] == ["predicted", "true"]


def test_attention_has_a_map_for_each_head_and_eight_frames_of_video(drawn):
    weights = np.random.default_rng(0).random((2, 3, 65, 64))
    frames = np.zeros((60, 4, 4, 3), np.uint8)  # the picture ends a little early
    plots.plot_attention("a.png", np.zeros((512, 64)), ["log-mel", "tce"], weights, frames)
    plots.plot_attention("a.png", np.zeros((512, 64)), ["log-mel"], weights[:1])
    with_video, without_video = (figure.axes for figure in drawn)
    assert len(with_video) == 2 + 6 and len(without_video) == 1 + 3
    assert [image.get_extent()[0] for image in with_video[1].images] == [1.25 * k for k in range(8)]
    assert np.array_equal(with_video[2 + 4].images[0].get_array(), weights[1, 1, :64])
    assert with_video[2 + 4].get_ylabel() == "tce\nhead 2"


def test_a_step_attends_with_a_row_for_each_head(drawn):
    weights = np.random.default_rng(0).random((3, 10, 10))
    stills = np.zeros((10, 4, 4, 3), np.uint8)
    plots.plot_synchronization("a.png", np.zeros((512, 64)), stills, weights, 4, "audio", "video", 0.96)
    plots.plot_synchronization("a.png", np.zeros((512, 64)), stills, weights, 9, "video", "audio", 0.96)
    plots.plot_synchronization("a.png", np.zeros((512, 64)), (), weights, 0, "video", "audio", 0.96)
    for figure, query, marked, n_panels in zip(drawn, (4, 9, 0), (0, 1, 0), (3, 3, 2)):
        panels = figure.axes[:-1]  # the last is the colour bar
        assert len(panels) == n_panels and np.array_equal(panels[-1].images[0].get_array(), weights[:, query])
        assert panels[-1].images[0].get_extent()[:2] == [0, 9.6]
        edges = [[line.get_xdata()[0] for line in panel.lines] for panel in panels]
        want = [[] for _ in panels]
        want[marked] = [query * 0.96, (query + 1) * 0.96]
        assert edges == want
    places = [image.get_extent()[:2] for image in drawn[0].axes[1].images]
    assert places == [[k * 0.96, (k + 1) * 0.96] for k in range(10)]
    assert drawn[1].axes[2].get_xlabel() == "seconds of audio that the marked step of video attends to"


def test_a_table_has_bars_of_means_and_deviations(drawn):
    columns = {"EBF1": [[0.25, 0.35], [], [0.5]], "PSDS1": [[0.3, None], [None], [0.2]]}
    plots.plot_table("t.png", "Table 5", ["a", "b", "c"], columns, [False, True, True])
    left, right = drawn[0].axes
    assert [bar.get_width() for bar in left.patches] == [0.3, 0, 0.5]
    assert [bar.get_width() for bar in right.patches] == [0.3, 0, 0.2]
    spread = [np.ptp(segment[:, 0]) / 2 for segment in left.collections[0].get_segments()]
    assert np.allclose(spread, [statistics.stdev([0.25, 0.35]), 0, 0])
    gray, blue, _ = (bar.get_facecolor() for bar in left.patches)
    assert gray[0] == gray[1] == gray[2] and blue[2] > blue[0]
    assert left.get_title() == "EBF1" and [label.get_text() for label in left.get_yticklabels()] == ["a", "b", "c"]
    assert left.get_xlim()[0] == pytest.approx(0.3 - statistics.stdev([0.25, 0.35]) - 0.1)
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first row on top
    assert drawn[0].texts[0].get_text().startswith("Table 5: mean")


def test_fusion_has_a_bubble_for_each_class_and_two_histograms(drawn):
    audio, visual, fused = np.array([[0.8, 0.2, 0.5, np.nan], [0.4, 0.6, 0.5, np.nan], [0.9, 0.4, 0.5, np.nan]])
    plots.plot_fusion("f.png", ["a", "b", "c", "d"], audio, visual, fused, np.array([0.97, 0.31, 0.33, np.nan]))
    bubbles, gains, shares, _ = drawn[0].axes
    (points,) = bubbles.collections
    assert np.allclose(points.get_offsets()[:3], [[80, 40], [20, 60], [50, 50]])
    assert np.allclose(points.get_array()[:3], [10, -20, 0]) and np.allclose(points.get_clim(), [-20, 20])
    assert np.allclose(points.get_sizes()[:3], [10 + 400 / 4, 10 + 400, 10])
    names = {text.get_text(): text.xy for text in bubbles.texts}
    assert np.allclose(names["b"], [20, 60])
    counts = [sum(bar.get_height() for bar in panel.patches) for panel in (gains, shares)]
    assert counts == [3, 3]  # d has no clip
    assert {round(bar.get_x(), 2): bar.get_height() for bar in shares.patches if bar.get_height()} == {0.3: 2, 0.95: 1}


def test_a_picture_that_cannot_be_finished_leaves_no_file(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    plots.save_figure(figure, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def savefig(path, format):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", savefig)
    with pytest.raises(plots.InputError, match="b.png: cannot be written .disk full"):
        plots.save_figure(figure, tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_without_matplotlib_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(plumbing.InputError, match="needs matplotlib: pip install matplotlib"):
        plots.figure_class()
