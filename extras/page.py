"""Every HTML page: one file that needs no network, no library and no server.

    page          a whole document around a body
    table, picture, player, escape, data_script    pieces of a body
    png           pixels -> the bytes of a PNG file
    write         a page that appears only when complete

Pieces are of the type Html; any other text in a table is escaped. Colours follow the reader's choice of light or dark:
style sheets use the variables of STYLE (--ink, --paper ...).
"""

import base64
import html
import io
import json
import re
import struct
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile

from extras.plumbing import replacing
from features import FRAME_HOP, HOP, MELS, SAMPLE_RATE, WINDOW, mel_filterbank

# nothing is fetched from anywhere, whatever a body holds
POLICY = (
    "default-src 'none'; img-src data: blob:; media-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #59636e; --paper: #ffffff; --card: #f4f6f8; --line: #d1d9e0;
  --link: #0550ae; --found: #1f6feb; --true: #bc4c00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --muted: #9aa5b1; --paper: #0f1318; --card: #1a2028; --line: #3a434d;
    --link: #79b8ff; --found: #58a6ff; --true: #ff9e5e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 0.75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.25rem 0 0.5rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.5rem; }
p, ul, ol { max-width: 46rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
code, pre { font-family: ui-monospace, "Cascadia Code", Menlo, Consolas, monospace; font-size: 0.875em; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 0.75rem 1rem;
  overflow-x: auto; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.925rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: 0.4rem; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { border-bottom: 2px solid var(--muted); white-space: nowrap; }
th.number, td.number { text-align: right; }
img { max-width: 100%; height: auto; }
img.picture { display: block; background: #ffffff; padding: 0.5rem; border: 1px solid var(--line); border-radius: 6px;
  margin: 1rem 0; }
audio { width: 100%; max-width: 46rem; display: block; margin: 0.5rem 0; }
@media print {
  :root { color-scheme: light; --ink: #000000; --muted: #444444; --paper: #ffffff; --card: #ffffff; --line: #aaaaaa; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  audio, button, input, select { display: none; }
  .wide { overflow: visible; }
  tr, img, pre { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; }
}
"""


class Html(str):
    """Text that is HTML already"""


def escape(text):
    """Any text -> Html that shows it, also within an attribute's quotes"""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def page(title, body, style="", script=""):
    """-> a whole document, self-contained. title: plain text; body: HTML; style, script: CSS and JavaScript"""
    script = f"<script>\n{script}\n</script>\n" if script else ""
    return Html(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body}\n{script}</body>\n</html>"
    )


def write(path, document):
    """Write a page; its folder is made where it is not there"""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(document, encoding="utf-8", errors="replace")  # what is no text in a file's name becomes "?"


def table(header, rows, caption=""):
    """header: N names; rows of N cells: text, numbers, None (empty) or Html. Columns of numbers are right-aligned."""
    rows = [["" if cell is None else cell for cell in row] for row in rows]
    numeric = [
        any(is_number(cell) for cell in column) and all(is_number(cell) or cell == "" for cell in column)
        for column in zip(*rows)
    ]
    kinds = [' class="number"' if number else "" for number in numeric] or [""] * len(header)
    caption = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(kinds, header))
    lines = ("".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row)) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return Html(
        f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def is_number(cell):
    """Also of text such as "50.1", "-0.3", "50.1 ± 2.6" and "12 %" """
    return re.fullmatch(r"[-+−]?\d[\d.,:e]*( ± \d[\d.]*)?( ?%)?|nan|–", str(cell)) is not None


def data_uri(content, kind):
    """bytes, and their kind such as "image/png" -> what src= takes in place of a file"""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def data_script(name, content):
    """-> what a script reads as JSON.parse(document.getElementById(name).textContent)"""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def picture(figure, alt):
    """A matplotlib figure, or the bytes of a PNG file -> <img>; alt: what it shows, for who cannot see it"""
    if not isinstance(figure, bytes):
        file = io.BytesIO()
        figure.savefig(file, format="png")
        figure = file.getvalue()
    return Html(f'<img class="picture" src="{data_uri(figure, "image/png")}" alt="{escape(alt)}">')


def png(array, palette=None):
    """(H, W) or (H, W, 3) uint8 -> the bytes of a PNG file: gray or RGB. With a palette (256, 3): its colours."""
    array = np.asarray(array)
    height, width = array.shape[:2]
    kind = 3 if palette is not None else 2 if array.ndim == 3 else 0  # of colour, in the words of the PNG format
    lines = np.zeros((height, 1 + array[0].size), np.uint8)  # a line begins with its filter: 0, none
    lines[:, 1:] = array.reshape(height, -1)
    colours = png_chunk(b"PLTE", np.asarray(palette, np.uint8).tobytes()) if palette is not None else b""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + header + colours + pixels + png_chunk(b"IEND", b"")


def png_chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def player(samples, rate, label="recording", more=""):
    """(samples,) floats from -1 to 1 -> <audio> with controls. label: for who cannot see it; more: other attributes"""
    file = io.BytesIO()
    with sound_writer(file, rate) as writer:
        writer.write(np.clip(samples, -1, 1))
    return audio(file.getvalue(), label, more)


def audio(content, label, more=""):
    """What a `sound_writer` has written -> <audio> with controls"""
    kind = "audio/wav" if content[:4] == b"RIFF" else "audio/mpeg"
    return Html(
        f'<audio controls preload="auto" aria-label="{escape(label)}" {more} src="{data_uri(content, kind)}"></audio>'
    )


def sound_writer(file, rate):
    """-> soundfile.SoundFile that writes one channel into a binary file: MP3 of at most 64 kbit/s, else 16 bit WAV.

    Of a constant rate: in an hour of MP3 with a variable one, Chromium played up to 20 s beside the moment asked for.
    soundfile before 0.13 cannot ask for that, and gets WAV.
    """
    if "MP3" in soundfile.available_formats() and rate in MP3_RATES:
        options = dict(bitrate_mode="CONSTANT", compression_level=0.8 if rate < 32000 else 0.9)  # 40, 56 kbit/s
        with suppress(TypeError):
            return soundfile.SoundFile(file, "w", rate, 1, format="MP3", **options)
    return soundfile.SoundFile(file, "w", rate, 1, format="WAV", subtype="PCM_16")


# --- the page of a recording -----------------------------------------------------------------------------------------
# What is seen is HTML, with places and widths in percent of the recording's length; extras/recording.js makes it move.
# Signs beyond ASCII are written as &names; else each letter of a long page would take two bytes of memory.

LOG_MEL_HOP = HOP / SAMPLE_RATE  # seconds
TILE = 3072  # log-mel frames in a picture: 60.1 s
OVERVIEW = 1500  # columns of the picture of the whole
HERTZ = (200, 500, 1000, 2000, 4000, 7000)
COLOURS = ((9, 6, 26), (64, 20, 104), (150, 40, 116), (228, 88, 82), (251, 178, 104), (254, 248, 214))  # of loudness
PALETTE = np.stack([np.interp(np.linspace(0, 5, 256), range(6), of) for of in zip(*COLOURS)], 1).round()


def recording_page(name, seconds, sound, log_mel, classes, frame_scores, thresholds, events, truth, facts, warnings):
    """-> a page on which a recording is looked at and listened to.

    sound: what a `sound_writer` has written; log_mel (8 T, 64); frame_scores (T, C), thresholds (C,) of the classes;
    events (filename, onset, offset, event_label, score); truth: true events without a score, None where not known;
    facts: texts about the recording; warnings: texts that the reader should not miss
    """
    labels = sorted({event[3] for event in (*events, *(truth or ()))})
    known = [label for label in labels if label in classes]
    columns = [classes.index(label) for label in known]
    curves = (255 * frame_scores[:, columns]).round().astype(np.uint8)
    content = {
        "name": name,
        "seconds": seconds,
        "hop": FRAME_HOP,
        "events": [[str(onset), str(offset), label, f"{score:.3f}"] for _, onset, offset, label, score in events],
        "curves": {label: base64.b64encode(curve.tobytes()).decode() for label, curve in zip(known, curves.T)},
        "thresholds": {label: float(threshold) for label, threshold in zip(known, np.asarray(thresholds)[columns])},
    }
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="facts">{" &middot; ".join(map(escape, facts))}</p>',
        *(f'<p class="warning">{escape(text)}</p>' for text in warnings),
        controls(sound, name),
        overview(log_mel, seconds, labels, events, truth or ()),
        filters(labels, events),
        timeline(log_mel, seconds, labels, events, truth),
        legend(truth is not None),
        event_list(events),
        data_script("data", content),
    ]
    beside = Path(__file__).with_name("recording")
    style, script = (beside.with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
    return page(name, "\n".join(body), style, script)


def controls(sound, name):
    return f"""<div class="controls">
{audio(sound, name, 'id="player"')}
<span class="moment" id="moment">0:00.00</span>
<span class="group">Zoom
<button id="zoom-out" aria-label="zoom out">&minus;</button>
<button id="zoom-in" aria-label="zoom in">+</button>
<button id="zoom-all">all</button></span>
<span class="group">Save shown events as
<button id="save-audacity">Audacity labels</button>
<button id="save-tsv">TSV</button></span>
</div>"""


def filters(labels, events):
    counts = Counter(label for _, _, _, label, _ in events)
    chips = "\n".join(
        f'<label class="chip"><input type="checkbox" value="{escape(label)}" checked> {escape(label)} '
        f"<small>{counts[label]}</small></label>"
        for label in labels
    )
    return f"""<div class="filter">
<fieldset><legend>Classes</legend>
{chips}
<button id="every">all</button>
<button id="none">none</button>
</fieldset>
<label>Score at least <input type="range" id="score" min="0" max="1" step="0.01" value="0">
<output id="least" for="score">0.00</output></label>
<span id="count" role="status"></span>
</div>"""


def overview(log_mel, seconds, labels, events, truth):
    """The whole recording in the width of the page, its events in a thin row for each class"""
    step = -(-len(log_mel) // OVERVIEW)
    columns = np.stack([part.mean(0, dtype=np.float32) for part in np.split(log_mel, range(step, len(log_mel), step))])
    width = f"{100 * len(log_mel) * LOG_MEL_HOP / seconds:.4f}%"
    uri = data_uri(log_mel_png(columns, range_of(log_mel)), "image/png")
    height = min(8, 160 / max(1, len(labels)))  # pixels for a class
    tops = {label: f"top: {2 + height * row:.1f}px" for row, label in enumerate(labels)}
    marks = [
        f'<i class="mark" data-event="{number}" style="{tops[label]}; {place(onset, offset, seconds)}"></i>'
        for number, (_, onset, offset, label, _) in enumerate(events)
    ]
    marks += [
        f'<i class="mark true" data-label="{escape(label)}" style="{tops[label]}; {place(onset, offset, seconds)}"></i>'
        for _, onset, offset, label in truth
    ]
    return f"""<div class="overview" id="overview" role="slider" tabindex="0" aria-label="position in the recording"
aria-valuemin="0" aria-valuemax="{seconds}" aria-valuenow="0">
<img style="width: {width}" alt="" src="{uri}">
<div class="marks" style="height: {height * len(labels) + 4:.1f}px">{"".join(marks)}</div>
<div class="view" id="view"></div><div class="cursor" id="overview-cursor"></div></div>"""


def timeline(log_mel, seconds, labels, events, truth):
    """Log-mel in tiles, and a lane for each class: its curve, which the script draws, and its events"""
    limits, tiles = range_of(log_mel), []
    for start in range(0, len(log_mel), TILE):
        part = log_mel[start : start + TILE]
        where = place(start * LOG_MEL_HOP, (start + len(part)) * LOG_MEL_HOP, seconds)
        tiles.append(f'<img style="{where}" alt="" src="{data_uri(log_mel_png(part, limits), "image/png")}">')
    centres = np.asarray(mel_filterbank()).argmax(1) * SAMPLE_RATE / WINDOW  # (64,) Hz
    heights = 100 * (1 - (np.interp(HERTZ, centres, np.arange(MELS)) + 0.5) / MELS)
    hertz = "".join(f'<span style="top: {height:.1f}%">{value}</span>' for value, height in zip(HERTZ, heights))
    names, lanes = [], []
    for label in labels:
        bars = [bar(number, event, seconds) for number, event in enumerate(events) if event[3] == label]
        bars += [bar(None, event, seconds) for event in truth or () if event[3] == label]
        names.append(f'<div class="name" data-label="{escape(label)}">{escape(label)}</div>')
        lanes.append(f'<div class="lane" data-label="{escape(label)}">\n{"".join(bars)}</div>')
    nothing = "" if labels else "<p>No event was found: nothing is above its threshold for long enough.</p>"
    return f"""{nothing}<div class="timeline{" with-truth" if truth else ""}">
<div class="names"><div class="axis"></div><div class="hertz"><b>Hz</b>{hertz}</div>
{"".join(names)}</div>
<div class="panel"><canvas id="curves" aria-hidden="true"></canvas>
<div class="scroll" id="scroll" role="region" aria-label="timeline"><div class="track" id="track">
<div class="axis"></div>
<div class="mel" role="img" aria-label="log-mel spectrogram">{"".join(tiles)}</div>
{"".join(lanes)}
<div class="cursor" id="cursor"></div>
</div></div></div></div>"""


def bar(number, event, seconds):
    """The button over an event; number: its row in the table of events, None for a true event"""
    _, onset, offset, label, *score = event
    text = f"{label}, {onset:.2f} to {offset:.2f} s, " + (f"score {score[0]:.3f}" if score else "by the reference")
    kind = f'class="event" data-event="{number}"' if score else 'class="event true"'
    return (
        f'<button {kind} data-onset="{onset}" style="{place(onset, offset, seconds)}" title="{escape(text)}" '
        f'aria-label="play {escape(text)}">{f"{score[0]:.2f}" if score else ""}</button>\n'
    )


def place(start, end, seconds):
    """From second to second, as a style"""
    return f"left: {100 * start / seconds:.5f}%; width: {100 * (end - start) / seconds:.5f}%"


def legend(with_truth):
    true = '<span><i class="swatch true"></i> true event</span>' if with_truth else ""
    return f"""<p class="legend"><span><i class="swatch"></i> event found, with its score</span>{true}
<span><svg viewBox="0 0 28 14" aria-hidden="true"><path d="M0 12 8 3 16 8 28 1" fill="none" stroke="currentColor"
stroke-width="2"/></svg> probability, 0 to 1</span>
<span><svg viewBox="0 0 28 14" aria-hidden="true"><path d="M0 7h28" stroke="currentColor" stroke-width="2"
stroke-dasharray="6 4"/></svg> threshold</span>
<span class="keys"><kbd>space</kbd> plays and pauses, <kbd>&larr;</kbd> <kbd>&rarr;</kbd> move by 1 s, with
<kbd>shift</kbd> by 10 s, <kbd>n</kbd> <kbd>p</kbd> go to the next and previous event, <kbd>+</kbd>
<kbd>&minus;</kbd> zoom; a click on an event plays from a second before it</span></p>"""


def event_list(events):
    rows = "\n".join(
        f'<tr data-event="{number}"><td>'
        f'<button data-onset="{onset}" aria-label="play {escape(label)} at {onset:.2f} s">&#9654;</button></td>'
        f'<td class="number">{onset:.2f}</td><td class="number">{offset:.2f}</td><td>{escape(label)}</td>'
        f'<td class="number">{score:.3f}</td></tr>'
        for number, (_, onset, offset, label, score) in enumerate(events)
    )
    names = ("onset (s)", "offset (s)", "class", "score")
    kinds = ("number", "number", "", "number")
    header = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind in zip(names, kinds))
    return f"""<details{" open" * (len(events) <= 40)}><summary>Events as a list</summary>
<div class="wide"><table><thead><tr><th scope="col"></th>{header}</tr></thead>
<tbody>
{rows}
</tbody></table></div></details>"""


def range_of(log_mel):
    """What is drawn darkest and brightest: a few frames may be beyond"""
    some = log_mel[:: 1 + len(log_mel) // 20000]
    low, high = np.percentile(some, (5, 99.9))
    return max(min(low, high - 1), high - 8), high  # 8: a part in 3000, 69 dB


def log_mel_png(log_mel, limits):
    """(frames, 64) -> PNG: time from left to right, low frequencies below"""
    low, high = limits
    levels = np.clip(255 * (log_mel.astype(np.float32) - low) / (high - low), 0, 255)
    return png(np.flipud(levels.T).astype(np.uint8), PALETTE)
