"""Pages: whole, safe, and the pictures and sounds in them are what they were"""

import base64
import fcntl
import inspect
import io
import json
import os
import re
import select
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from extras import page

NASTY = 'a<b>&"c\'</script><img src=x onerror=alert(1)>'


class Tags(HTMLParser):
    """What a reader of HTML finds in a text: tags that begin and end, and the text between them"""

    def __init__(self, text):
        super().__init__()
        self.begun, self.ended, self.text, self.scripts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.begun.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        self.ended.append(tag)

    def handle_data(self, data):
        self.text.append(data)
        if self.begun and self.begun[-1][0] == "script":
            self.scripts.append((self.begun[-1][1], data))

    def all(self, tag):
        return [attributes for name, attributes in self.begun if name == tag]


def content_of(uri):
    kind, _, content = uri.removeprefix("data:").partition(";base64,")
    return kind, base64.b64decode(content, validate=True)


def test_a_page_is_whole_and_fetches_nothing(tmp_path):
    document = page.page(NASTY, page.table(["a"], [[NASTY]]), "p { margin: 0 }", "let x = 1")
    tags = Tags(document)
    assert tags.all("title") and NASTY in tags.text and not tags.all("img")
    assert [name for name, _ in tags.begun if name in ("html", "head", "body")] == ["html", "head", "body"]
    assert tags.ended[-3:] == ["script", "body", "html"] and document.startswith("<!DOCTYPE html>")
    assert not re.search("https?://|@import|url\\(", document)
    assert "let x = 1" in document and "p { margin: 0 }" in document and "prefers-color-scheme: dark" in document
    page.write(tmp_path / "new/a.html", page.page("a\udcff", ""))
    assert (tmp_path / "new/a.html").read_text(encoding="utf-8").count("<title>a?</title>") == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.html"]


def test_tables_escape_text_and_align_numbers():
    rows = [["a<b", 1, "50.1 ± 2.6", page.Html("<b>x</b>")], ["c", None, "–", None]]
    text = page.table(["name", "n", "F1", "<x>"], rows, "1 < 2")
    assert "<td>a&lt;b</td>" in text and "<td><b>x</b></td>" in text and "<caption>1 &lt; 2</caption>" in text
    assert '<td class="number">1</td><td class="number">50.1 ± 2.6</td>' in text
    assert '<td>c</td><td class="number"></td><td class="number">–</td><td></td>' in text
    assert '<th scope="col" class="number">n</th>' in text and '<th scope="col">&lt;x&gt;</th>' in text
    assert Tags(page.table(["a", "b"], [])).ended.count("th") == 2
    assert page.escape(page.escape("<")) == "&lt;"


def test_data_for_scripts_cannot_leave_its_tag():
    content = {"name": NASTY, "values": [1.5, None, "é"]}
    text = page.data_script("data", content)
    assert text.count("</script>") == 1 and text.endswith("</script>")
    assert json.loads(Tags(text).text[0]) == content
    with pytest.raises(ValueError):
        page.data_script("data", np.nan)  # no JSON


def read_png(content):
    """A second reader of PNG files, as plain as our writer: no filters, one part of pixels"""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(content):
        length = struct.unpack(">I", content[place : place + 4])[0]
        name, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        assert struct.unpack(">I", content[place + 8 + length : place + 12 + length])[0] == zlib.crc32(name + body)
        chunks[name], place = body, place + 12 + length
    return chunks, zlib.decompress(chunks[b"IDAT"])


def test_png_by_hand():
    chunks, pixels = read_png(page.png(np.array([[0, 128], [255, 7], [1, 2]], np.uint8)))
    assert chunks[b"IHDR"] == bytes([0, 0, 0, 2, 0, 0, 0, 3, 8, 0, 0, 0, 0])
    assert pixels == bytes([0, 0, 128, 0, 255, 7, 0, 1, 2])
    chunks, pixels = read_png(page.png(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)))
    assert chunks[b"IHDR"][9] == 2 and pixels == bytes([0, *range(6), 0, *range(6, 12)])
    colours = np.random.default_rng(0).integers(0, 256, (256, 3))
    chunks, pixels = read_png(page.png(np.array([[3, 4]], np.uint8), colours))
    assert chunks[b"IHDR"][9] == 3 and chunks[b"PLTE"] == colours.astype(np.uint8).tobytes()
    assert pixels == bytes([0, 3, 4])


def test_png_as_others_read_it():
    image = pytest.importorskip("matplotlib.image")
    rng = np.random.default_rng(0)
    gray, colours = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((5, 9), (256, 3)))
    assert np.array_equal(image.imread(io.BytesIO(page.png(gray))), (gray / 255).astype(np.float32))
    rgb = image.imread(io.BytesIO(page.png(gray, colours)))[..., :3]
    assert np.array_equal(np.round(255 * rgb), colours[gray])
    assert np.array_equal(rgb, image.imread(io.BytesIO(page.png(colours[gray])))[..., :3])


def test_pictures():
    (shown,) = Tags(page.picture(page.png(np.zeros((2, 2), np.uint8)), NASTY)).all("img")
    assert shown["alt"] == NASTY and content_of(shown["src"]) == ("image/png", page.png(np.zeros((2, 2), np.uint8)))
    figure = pytest.importorskip("matplotlib.figure").Figure()
    (shown,) = Tags(page.picture(figure, "a figure")).all("img")
    assert content_of(shown["src"])[1][:4] == b"\x89PNG"


@pytest.mark.parametrize("rate, kbits", ((8000, 64), (16000, 64), (24000, 64), (44100, 64), (7000, 113)))
def test_players_sound_as_they_were_given(rate, kbits):
    seconds = 3
    moments = np.arange(seconds * rate) / rate
    sound = 0.5 * np.sin(2 * np.pi * 440 * moments) * (moments > 1)
    (player,) = Tags(page.player(sound, rate, NASTY, 'id="player"')).all("audio")
    assert "controls" in player and player["aria-label"] == NASTY and player["id"] == "player"
    kind, content = content_of(player["src"])
    old = "bitrate_mode" not in inspect.signature(soundfile.SoundFile).parameters  # soundfile before 0.13
    assert kind == ("audio/wav" if rate == 7000 or old else "audio/mpeg")
    assert (content[:4] == b"RIFF") == (kind == "audio/wav")
    assert old or len(content) * 8 / seconds < 1000 * kbits
    heard, heard_rate = soundfile.read(io.BytesIO(content))
    assert heard_rate == rate and seconds <= len(heard) / rate < seconds + 0.25  # an MP3 is whole blocks long
    loud = np.flatnonzero(np.abs(heard) > 0.25)[0] / rate
    assert 0.95 < loud < 1.2
    spectrum = np.abs(np.fft.rfft(heard[-rate - rate // 4 : -rate // 4]))  # 1 Hz apart
    assert abs(int(spectrum.argmax()) - 440) <= 1


def test_an_mp3_has_a_constant_rate():
    """With a variable one, browsers only guess where a moment is"""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32000)
    assert len(page.player(noise, 16000)) == len(page.player(np.zeros(32000), 16000))


def test_without_mp3_the_sound_is_wav(monkeypatch):
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": ""})
    (player,) = Tags(page.player(np.array([0, 0.5, -2.0]), 16000)).all("audio")
    kind, content = content_of(player["src"])
    heard, _ = soundfile.read(io.BytesIO(content))
    assert kind == "audio/wav" and np.allclose(heard, [0, 0.5, -1], atol=1e-4)  # what is too loud is cut


def made_up_page(seconds=10.0):
    """Three classes, of which the first is never found; two events of C, one of B, which is true as well"""
    scores = np.tile([0.9, 0.2, 0.4], (64, 1))
    events = [("a", 1.0, 3.0, "C", 0.9), ("a", 2.0, 4.0, "B", 0.8), ("a", 5.0, 6.0, "C", 0.7)]
    file = io.BytesIO()
    with page.sound_writer(file, 16000) as writer:
        writer.write(np.zeros(16000))
    log_mel, truth = np.zeros((512, 64), np.float16), [("a", 1.5, 3.5, "B")]
    more = list("ABC"), scores, [0.1, 0.25, 0.5], events, truth, ["fact"], ["warning"]
    return page.recording_page("a", seconds, file.getvalue(), log_mel, *more)


def test_the_page_of_a_recording_by_hand():
    text = made_up_page()
    tags = Tags(text)
    content = json.loads(next(text for tag, text in tags.scripts if tag.get("id") == "data"))
    assert content["thresholds"] == {"B": 0.25, "C": 0.5}  # each class has its own
    curves = {label: set(base64.b64decode(curve)) for label, curve in content["curves"].items()}
    assert curves == {"B": {51}, "C": {102}}  # of 255
    marks = [(tag.get("data-event"), *map(float, re.findall(r"[\d.]+", tag["style"]))) for tag in tags.all("i")
             if tag.get("class", "").startswith("mark")]  # fmt: skip
    # row of the table, distance from the top, begin and width in percent; B is above C
    assert marks == [("0", 10, 10, 20), ("1", 2, 20, 20), ("2", 10, 50, 10), (None, 2, 15, 20)]
    bars = [tag for tag in tags.all("button") if tag.get("class", "").startswith("event")]
    assert [bar.get("data-event") for bar in bars] == ["1", None, "0", "2"]  # lane by lane
    assert re.findall(r"checked> (\w) <small>(\d)</small>", text) == [("B", "1"), ("C", "2")]
    assert [tag["data-event"] for tag in tags.all("tr") if "data-event" in tag] == ["0", "1", "2"]
    # Slaney's scale, as in test_plots.py: 65 steps to 8 kHz, each filter one above the last, 64 of them in the height
    heights = {int(hertz): float(top) for top, hertz in re.findall(r'top: ([\d.]+)%">(\d+)</span>', text)}
    for hertz, mels in ((1000, 15), (7000, 15 + 27 * np.log(7) / np.log(6.4))):
        k = mels / (15 + 27 * np.log(8) / np.log(6.4)) * 65 - 1
        assert abs(heights[hertz] - 100 * (1 - (k + 0.5) / 64)) < (0.9 if hertz == 1000 else 0.2)  # bins are 15.6 Hz
    many = [("a", 0.0, 1.0, "B", 0.5)] * 41
    assert page.event_list(many[1:]).startswith("<details open>") and page.event_list(many).startswith("<details>")


def test_the_darkest_and_the_brightest():
    assert np.allclose(page.range_of(np.linspace(-6, -2, 1001)), (-5.8, -2.004))  # the middle of what there is
    assert np.allclose(page.range_of(np.linspace(-20, 0, 1001)), (-8.02, -0.02))  # not below 8 less than the loudest
    assert page.range_of(np.full(9, -3.0)) == (-4, -3)


# --- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM and Path(CHROMIUM).resolve().name == "snap":
    CHROMIUM = None  # it would not see the files of the tests
with_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt install chromium")
ERRORS = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.requestWillBeSent", "Runtime.consoleAPICalled")


class Browser:
    """One tab of a headless Chromium, which is spoken to over two pipes: JSON messages, each ends in a zero byte"""

    def __init__(self, folder):
        from_us, self.to = os.pipe()
        self.back, from_it = os.pipe()

        def hand_over():  # it reads from 3 and writes to 4
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (from_us, from_it)]
            os.dup2(ends[0], 3), os.dup2(ends[1], 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
        flags += ["--autoplay-policy=no-user-gesture-required", f"--user-data-dir={folder}", "--remote-debugging-pipe"]
        command = [CHROMIUM, *flags, "about:blank"]
        output = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, preexec_fn=hand_over, close_fds=False, **output)
        os.close(from_us), os.close(from_it)
        self.count, self.rest, self.events, self.session = 0, b"", [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        """One command -> its result"""
        self.count += 1
        number, message = self.count, {"id": self.count, "method": method, "params": params}
        os.write(self.to, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self):
        while b"\0" not in self.rest:
            assert select.select([self.back], [], [], 60)[0], "the browser says nothing"
            part = os.read(self.back, 1 << 20)
            assert part, "the browser has gone"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(message)
        if message.get("method") in ("Page.loadEventFired", *ERRORS):
            self.events.append(message)
        return message

    def open(self, path, width=1000, dark=False):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.receive()

    def value(self, script):
        """What a piece of JavaScript gives, also when it is a promise"""
        how = dict(awaitPromise=True, returnByValue=True, userGesture=True)
        answer = self.ask("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, **more):
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **({"text": key} if len(key) == 1 else {}), **more)

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def complaints(self):
        """Errors and warnings so far, and what was fetched from elsewhere"""
        said = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Network.requestWillBeSent":
                said += [url for url in [params["request"]["url"]] if not re.match("(file|data|blob):", url)]
            elif event["method"] != "Page.loadEventFired":
                said.append(json.dumps(params)[:1000])
        return said

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.to), os.close(self.back)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@with_chromium
def test_a_page_in_a_browser(browser, tmp_path):
    image = page.png(np.zeros((3, 7), np.uint8))
    body = page.table(["a"], [[NASTY]]) + page.picture(image, "black") + page.player(np.zeros(16000), 16000)
    body += page.data_script("data", [NASTY]) + "<p id=said></p>"
    script = "document.getElementById('said').textContent = JSON.parse(document.getElementById('data').textContent)[0]"
    page.write(tmp_path / "a.html", page.page(NASTY, body, script=script))
    for dark in (False, True):
        browser.open(tmp_path / "a.html", dark=dark)
        assert browser.value("document.title") == browser.value("said.textContent") == NASTY
        assert browser.value("document.querySelector('td').textContent") == NASTY
        assert browser.value("document.querySelector('img').naturalWidth") == 7
        light = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light != dark and browser.complaints() == []
    for name, body, script in (
        ("image", '<img src="https://example.org/a.png" alt="">', ""),
        ("fetch", "", "fetch('https://example.org/a.json').catch(() => {})"),
    ):
        page.write(tmp_path / f"{name}.html", page.page(name, body, script=script))
        browser.open(tmp_path / f"{name}.html")
        assert "Content Security Policy" in " ".join(browser.complaints()), name  # refused, whatever a body holds


@with_chromium
def test_times_of_a_long_recording(browser, tmp_path):
    page.write(tmp_path / "a.html", made_up_page(7325.0))
    browser.open(tmp_path / "a.html")
    assert browser.value("overview.getAttribute('aria-valuetext')") == "0:00 of 2:02:05"
    assert browser.complaints() == []
