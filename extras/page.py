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
from pathlib import Path

import numpy as np
import soundfile

from extras.plumbing import write_text

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
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n{script}</body>\n</html>"
    )


def write(path, document):
    """Write a page; its folder is made where it is not there"""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), document.encode(errors="replace").decode())  # what is no text in a file's name becomes "?"


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
    """-> soundfile.SoundFile that writes one channel into a binary file: MP3 of at most 64 kbit/s, else 16 bit WAV"""
    if "MP3" in soundfile.available_formats() and rate in MP3_RATES:
        # a constant rate, as browsers only guess where a moment is in an MP3 of a variable one
        options = dict(bitrate_mode="CONSTANT", compression_level=0.8 if rate < 32000 else 0.9)  # 40, 56 kbit/s
        try:
            return soundfile.SoundFile(file, "w", rate, 1, format="MP3", **options)
        except TypeError:  # soundfile before 0.13 takes no options; its own rate varies, and may reach 70 kbit/s
            if rate < 32000:  # here 50
                return soundfile.SoundFile(file, "w", rate, 1, format="MP3")
    return soundfile.SoundFile(file, "w", rate, 1, format="WAV", subtype="PCM_16")
