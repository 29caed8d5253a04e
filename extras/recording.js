"use strict";
// The page of a recording: its player, the timeline that follows it, filters and exports. What there is to see is HTML
// already (page.py); this draws the curves and the time axis where they are in view, and answers the reader.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const [audio, scroll, track, canvas, overview] = ["player", "scroll", "track", "curves", "overview"].map(element);
  const curves = Object.fromEntries(
    Object.entries(data.curves).map(([label, text]) => [label, Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]),
  );
  const parts = data.events.map((_, i) => all(`[data-event="${i}"]`)); // of each event: its bar, mark and row
  const BEFORE = 1; // seconds that are heard before an event
  let scale = 0; // pixels a second; set once the width is known

  const clock = (seconds, digits) => {
    const whole = Math.floor(seconds / 60);
    const rest = (seconds % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
    const hours = Math.floor(whole / 60);
    return hours ? `${hours}:${String(whole % 60).padStart(2, "0")}:${rest}` : `${whole}:${rest}`;
  };

  // --- the timeline ---

  const slowest = () => scroll.clientWidth / data.seconds; // at this scale, all is in view

  function zoom(wanted) {
    const middle = scroll.clientWidth / 2;
    const cursor = audio.currentTime * scale - scroll.scrollLeft;
    const kept = cursor >= 0 && cursor <= scroll.clientWidth ? cursor : middle; // what stays where it is
    const moment = scale ? (scroll.scrollLeft + kept) / scale : 0;
    scale = Math.min(Math.max(wanted, slowest()), Math.max(400, slowest()));
    track.style.width = `${Math.max(scroll.clientWidth, Math.round(data.seconds * scale))}px`;
    scroll.scrollLeft = moment * scale - kept;
    show();
  }

  function show() {
    const x = audio.currentTime * scale;
    element("cursor").style.transform = `translateX(${x - 1}px)`;
    element("moment").textContent = clock(audio.currentTime, 2);
    element("overview-cursor").style.left = `${(100 * audio.currentTime) / data.seconds}%`;
    const view = element("view").style;
    view.left = `${(100 * scroll.scrollLeft) / track.clientWidth}%`;
    view.width = `${(100 * scroll.clientWidth) / track.clientWidth}%`;
    overview.setAttribute("aria-valuenow", audio.currentTime.toFixed(1));
    overview.setAttribute("aria-valuetext", `${clock(audio.currentTime, 0)} of ${clock(data.seconds, 0)}`);
    draw();
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [scroll.clientWidth, track.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    drawAxis(pen, width, colour("--muted"), colour("--ink"));
    for (const lane of all(".lane:not([hidden])")) {
      drawCurve(pen, width, lane.offsetTop + 3, 30, lane.dataset.label, colour("--found"), colour("--muted"));
    }
  }

  function drawAxis(pen, width, line, text) {
    const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
    const step = steps.find((s) => s * scale >= 80) || 7200;
    const left = scroll.scrollLeft;
    const first = Math.floor(left / scale / step);
    pen.strokeStyle = line;
    pen.fillStyle = text;
    pen.font = "12px system-ui, sans-serif";
    pen.beginPath();
    for (let k = first; ; k += 1) {
      const x = Math.round(k * step * scale - left) + 0.5;
      if (x > width || k * step > data.seconds) break;
      pen.moveTo(x, 18);
      pen.lineTo(x, 26);
      const label = clock(k * step, step < 1 ? 1 : 0);
      if (x + 4 + pen.measureText(label).width < width) pen.fillText(label, x + 4, 17);
    }
    pen.stroke();
  }

  function drawCurve(pen, width, top, height, label, colour, line) {
    const curve = curves[label];
    if (!curve) return; // only the reference has this class
    const threshold = data.thresholds[label];
    const left = scroll.scrollLeft;
    const frame = (x) => Math.floor((left + x) / scale / data.hop);
    const y = (value) => top + height * (1 - value / 255);
    pen.beginPath();
    pen.moveTo(0, top + height);
    let end = 0;
    for (let x = 0; x <= width; x += 1) {
      const first = frame(x);
      if (first >= curve.length) break;
      const next = Math.min(frame(x + 1), curve.length); // many frames in a pixel: the highest is drawn
      let most = curve[first];
      for (let k = first + 1; k < next; k += 1) most = Math.max(most, curve[k]);
      pen.lineTo(x, y(most));
      end = x;
    }
    pen.lineTo(end, top + height);
    pen.closePath();
    pen.globalAlpha = 0.28;
    pen.fillStyle = colour;
    pen.fill();
    pen.globalAlpha = 1;
    pen.strokeStyle = colour;
    pen.stroke();
    pen.setLineDash([4, 3]);
    pen.strokeStyle = line;
    pen.beginPath();
    pen.moveTo(0, y(255 * threshold));
    pen.lineTo(width, y(255 * threshold));
    pen.stroke();
    pen.setLineDash([]);
  }

  // --- the player ---

  function goTo(moment) {
    audio.currentTime = Math.min(Math.max(0, moment), data.seconds);
    const x = audio.currentTime * scale - scroll.scrollLeft;
    if (x < 0 || x > 0.95 * scroll.clientWidth) scroll.scrollLeft += x - 0.2 * scroll.clientWidth;
    show();
  }

  const play = () => audio.play().catch(() => {}); // a browser may want a click first

  function playFrom(moment) {
    goTo(moment - BEFORE);
    play();
  }

  let shownAt = 0; // of the cursor, when it was drawn last

  function follow() {
    const [before, now] = [shownAt, audio.currentTime].map((t) => t * scale - scroll.scrollLeft);
    const right = 0.95 * scroll.clientWidth;
    if (before >= 0 && before <= right && now > right) scroll.scrollLeft += now - 0.1 * scroll.clientWidth;
    shownAt = audio.currentTime;
    show();
    if (!audio.paused) requestAnimationFrame(follow);
  }

  audio.addEventListener("play", () => {
    shownAt = audio.currentTime;
    follow();
  });
  audio.addEventListener("seeked", show);
  audio.addEventListener("pause", show);

  // --- what the reader does ---

  const shown = () => data.events.filter((_, i) => !parts[i][0].hidden);

  function filter() {
    const classes = new Set(all(".chip input:checked").map((box) => box.value));
    const least = Number(element("score").value);
    element("least").textContent = least.toFixed(2);
    data.events.forEach(([, , label, score], i) => {
      for (const part of parts[i]) part.hidden = !classes.has(label) || Number(score) < least;
    });
    for (const part of all("[data-label]")) part.hidden = !classes.has(part.dataset.label);
    const count = shown().length;
    element("count").textContent = `${count} of ${data.events.length} events shown`;
    draw();
  }

  const exports = {
    tsv: () => ["filename\tonset\toffset\tevent_label\tscore", ...shown().map((e) => [data.name, ...e].join("\t"))],
    audacity: () =>
      shown().map(([on, off, label, score]) =>
        [Number(on).toFixed(6), Number(off).toFixed(6), `${label} ${score}`].join("\t"),
      ),
  };

  function save(kind, ending) {
    const text = exports[kind]().map((line) => `${line}\n`).join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = `${data.name.split("/").pop()}${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  element("save-tsv").addEventListener("click", () => save("tsv", ".tsv"));
  element("save-audacity").addEventListener("click", () => save("audacity", ".txt"));
  element("zoom-in").addEventListener("click", () => zoom(scale * 1.6));
  element("zoom-out").addEventListener("click", () => zoom(scale / 1.6));
  element("zoom-all").addEventListener("click", () => zoom(0));
  element("score").addEventListener("input", filter);
  for (const box of all(".chip input")) box.addEventListener("change", filter);
  for (const [id, checked] of [["every", true], ["none", false]]) {
    element(id).addEventListener("click", () => {
      for (const box of all(".chip input")) box.checked = checked;
      filter();
    });
  }
  for (const part of all("[data-onset]")) part.addEventListener("click", () => playFrom(Number(part.dataset.onset)));

  track.addEventListener("click", (event) => {
    if (event.target.closest("button")) return;
    goTo((event.clientX - track.getBoundingClientRect().left) / scale);
  });

  function lookAt(event) {
    const box = overview.getBoundingClientRect();
    const moment = (data.seconds * (event.clientX - box.left)) / box.width;
    goTo(moment);
    scroll.scrollLeft = moment * scale - scroll.clientWidth / 2;
  }
  overview.addEventListener("pointerdown", (event) => {
    overview.setPointerCapture(event.pointerId);
    lookAt(event);
  });
  overview.addEventListener("pointermove", (event) => {
    if (event.buttons) lookAt(event);
  });

  const onsets = () => shown().map(([onset]) => Number(onset));
  const keys = {
    " ": () => (audio.paused ? play() : audio.pause()),
    ArrowLeft: (event) => goTo(audio.currentTime - (event.shiftKey ? 10 : 1)),
    ArrowRight: (event) => goTo(audio.currentTime + (event.shiftKey ? 10 : 1)),
    n: () => {
      const next = onsets().find((onset) => onset - BEFORE > audio.currentTime + 0.05);
      if (next !== undefined) goTo(next - BEFORE);
    },
    p: () => {
      const previous = onsets().reverse().find((onset) => onset - BEFORE < audio.currentTime - 0.05);
      if (previous !== undefined) goTo(previous - BEFORE);
    },
    "+": () => zoom(scale * 1.6),
    "-": () => zoom(scale / 1.6),
  };

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    const own = target.closest("input, audio, summary, button:not([data-onset])"); // these have a use for their keys
    if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return;
    if (own && !(own.tagName === "BUTTON" && event.key !== " ")) return;
    event.preventDefault();
    keys[event.key](event);
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === " " && event.target.closest("[data-onset]")) event.preventDefault(); // else some browsers click
  });

  scroll.addEventListener("scroll", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(() => zoom(scale)).observe(scroll);
  zoom(40);
  filter();
})();
