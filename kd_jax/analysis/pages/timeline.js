"use strict";
// A browser of timelines: ground truth and probabilities of several runs, a row per class and a lane per run.
//
//   await decode(data);                data is what kd_jax.analysis.timelines.as_json returns
//   timelineBrowser(parent, data);
//
// Times are in seconds. A table of scores has a byte per snippet and class, snippet after snippet; 255 is probability 1.

const TRUTH = 9, LANE = 16, GAP = 3, PADDING = 16, NAME = 17; // heights in a row, in pixels
const GUTTER = 168, NARROW = 640; // names are left of the lanes, or above them if the browser is narrower
const DIFFERS = 0.2; // snippets with at least this difference make a span

/** Makes an element; an attribute that is a function listens to the event of that name. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const readable = (name) => name.replaceAll("_", " ");
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Writes seconds as 12.3 s or 1:02:03.4; `always` writes 0:12.3. */
function clock(seconds, always = false) {
  if (seconds < 60 && !always) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60), rest = (seconds % 60).toFixed(1).padStart(4, "0");
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

/** Inflates base64 text to bytes. */
async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Decodes the scores of all videos of a timeline: video.tables = {run: Uint8Array}. */
async function decode({ videos }) {
  for (const video of videos) {
    video.tables = {};
    for (const [run, text] of Object.entries(video.scores)) video.tables[run] = await inflate(text);
    delete video.scores;
  }
}

/** The mean absolute difference of two runs on a video, from 0 to 1. */
function meanDifference(video, [one, other]) {
  const a = video.tables[one], b = video.tables[other];
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += Math.abs(a[i] - b[i]);
  return sum / (255 * a.length);
}

/** The spans in which two runs differ, the largest sum of differences first: [{video, classId, start, end, sum}]. */
function differingSpans(videos, numClasses, [one, other]) {
  const spans = [];
  videos.forEach((video, index) => {
    const a = video.tables[one], b = video.tables[other], seconds = video.duration / video.snippets;
    for (let classId = 0; classId < numClasses; classId++) {
      let sum = 0, first = 0;
      for (let t = 0; t <= video.snippets; t++) {
        const place = t * numClasses + classId, differs = t < video.snippets ? Math.abs(a[place] - b[place]) / 255 : 0;
        if (differs >= DIFFERS) {
          if (!sum) first = t;
          sum += differs;
        } else if (sum) {
          spans.push({ video: index, classId, start: first * seconds, end: t * seconds, sum: sum * seconds });
          sum = 0;
        }
      }
    }
  });
  return spans.sort((x, y) => y.sum - x.sum);
}

/** Returns the CSS variable of each run's colour; of several runs with one role, the first has the colour of the role. */
function colorNames(runs) {
  const taken = new Set();
  let others = 0;
  return Object.fromEntries(runs.map(({ name, role }) => {
    const own = role !== "other" && !taken.has(role);
    taken.add(role);
    return [name, own ? `--${role}` : `--other${others++ % 3}`];
  }));
}

function timelineBrowser(parent, data) {
  return new TimelineBrowser(parent, data);
}

class TimelineBrowser {
  constructor(parent, data) {
    this.data = data;
    this.colors = colorNames(data.runs);
    this.shown = new Set(data.runs.filter((run) => run.shown).map((run) => run.name));
    this.compared = data.compared;
    this.threshold = data.threshold;
    this.order = data.videos.map((_, index) => index);
    this.index = this.order[0];
    this.view = { start: 0, end: this.video.duration };
    this.pointers = new Map();
    this.found = -1; // place in the list of differing spans
    this.row = -1; // the row that the keyboard has chosen
    this.build(parent);
    this.show(this.index);
    new ResizeObserver(() => this.layout()).observe(this.lanes);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  get video() {
    return this.data.videos[this.index];
  }

  // ---- the elements

  build(parent) {
    const { videos, classes, runs } = this.data;
    this.rows = element("canvas", {
      class: "rows", tabindex: 0, role: "application", "aria-roledescription": "timeline",
      keydown: (event) => this.press(event), blur: () => this.hover(null),
    });
    this.listenToPointers();
    this.axis = element("canvas", { class: "axis", "aria-hidden": "true" });
    this.tip = element("div", { class: "tip", hidden: true });
    this.lanes = element("div", { class: "lanes" }, this.axis, this.rows, this.tip);
    this.status = element("p", { class: "status", role: "status" });
    this.player = element("div", { class: "player" });
    const help = element("p", { class: "muted" });
    help.innerHTML =
      "Drag to move; click, then turn the wheel to zoom (or hold <kbd>Ctrl</kbd>). Keys: <kbd>←</kbd> <kbd>→</kbd> move, " +
      "<kbd>+</kbd> <kbd>−</kbd> zoom, <kbd>0</kbd> whole video, <kbd>↑</kbd> <kbd>↓</kbd> choose a class, " +
      "<kbd>Shift</kbd>+<kbd>←</kbd> <kbd>→</kbd> read scores" +
      (videos[0].file ? ", <kbd>Space</kbd> play, <kbd>Enter</kbd> seek." : ", <kbd>N</kbd> <kbd>P</kbd> next and previous video.");
    parent.append(
      element("div", { class: "timeline" },
        this.player,
        element("div", { class: "tools" }, ...(videos.length > 1 ? this.videoTools() : [])),
        element("div", { class: "tools" }, ...this.laneTools(classes)),
        element("div", { class: "tools" }, ...this.legend(runs)),
        this.lanes, this.status, help,
      ),
    );
  }

  videoTools() {
    const { videos, available, runs } = this.data;
    this.select = element("select", { "aria-label": "Video", change: () => this.show(Number(this.select.value)) });
    const step = (by, label, text) =>
      element("button", { type: "button", "aria-label": label, title: label, click: () => this.step(by) }, text);
    const tools = [element("span", { class: "group wide" }, step(-1, "Previous video", "‹"), this.select, step(1, "Next video", "›"))];
    if (this.compared) {
      const option = (name) => element("option", { value: name }, readable(name));
      const choose = (place, label) => {
        const select = element("select", { "aria-label": label }, ...runs.map((run) => option(run.name)));
        select.value = this.compared[place];
        select.addEventListener("change", () => this.compare(place, select.value));
        return select;
      };
      this.sorting = element("select", { change: () => this.sort() },
        element("option", { value: "name" }, "by name"), element("option", { value: "difference" }, "by difference"));
      tools.push(
        element("label", {}, "Sort", this.sorting),
        element("span", { class: "group wide" }, choose(0, "Compare"), "and", choose(1, "with")),
        element("button", { type: "button", class: "primary", click: () => this.nextDifference() }, "Show where they differ most"),
      );
    }
    this.fillVideos();
    if (available > videos.length) tools.push(element("span", { class: "muted" },
      `The ${videos.length} of ${available} videos with the largest differences.`));
    return tools;
  }

  laneTools(classes) {
    const output = element("span", { class: "value" }, this.threshold.toFixed(2));
    const slider = element("input", { type: "range", min: 0.01, max: 0.99, step: 0.01, value: this.threshold,
      input: () => {
        this.threshold = Number(slider.value);
        output.textContent = this.threshold.toFixed(2);
        this.layout();
      } });
    this.filter = element("input", { type: "search", placeholder: "all classes", input: () => this.layout() });
    this.every = element("input", { type: "checkbox", change: () => this.layout() });
    const zoom = (label, text, act) => element("button", { type: "button", "aria-label": label, title: label, click: act }, text);
    const tools = [
      element("label", {}, "Threshold", slider, output),
      element("label", {}, "Class", this.filter),
      element("span", { class: "group" },
        zoom("Zoom out", "−", () => this.zoom(1.6)), zoom("Zoom in", "+", () => this.zoom(1 / 1.6)),
        zoom("Whole video", "Whole", () => this.move(0, this.video.duration))),
    ];
    if (classes.length > 1) tools.splice(2, 0, element("label", {}, this.every, "also classes that do not occur"));
    return tools;
  }

  legend(runs) {
    const boxes = runs.map(({ name }) => {
      const box = element("input", { type: "checkbox", style: `color: var(${this.colors[name]})`,
        change: () => {
          this.shown[box.checked ? "add" : "delete"](name);
          this.layout();
        } });
      box.checked = this.shown.has(name);
      box.dataset.run = name;
      return element("label", {}, box, element("span", { style: `color: var(${this.colors[name]})`, class: "dot" }), readable(name));
    });
    const truth = this.data.videos.some((video) => video.truth);
    const legend = truth ? [element("span", { class: "legend" }, element("i"), "ground truth")] : [];
    this.boxes = boxes.map((label) => label.firstChild);
    return [...legend, ...boxes];
  }

  fillVideos() {
    const option = (index) => {
      const video = this.data.videos[index];
      const differs = this.sorting?.value === "difference" ? ` · ${(100 * meanDifference(video, this.compared)).toFixed(1)} %` : "";
      return element("option", { value: index }, video.id + differs);
    };
    this.select.replaceChildren(...this.order.map(option));
    this.select.value = this.index;
  }

  // ---- what is shown

  show(index) {
    this.index = Number(index);
    if (this.select) this.select.value = this.index;
    const { id, duration, file } = this.video;
    this.view = { start: 0, end: duration };
    this.cursor = file ? 0 : null;
    this.mark = null;
    this.row = -1;
    this.rows.setAttribute("aria-label", `Timeline of ${id}: ${this.data.runs.map((run) => run.name).join(", ")}`);
    this.hover(null);
    this.makePlayer();
    this.layout();
    this.say(`${id}, ${clock(duration)}`);
  }

  step(by) {
    const place = this.order.indexOf(this.index) + by;
    this.show(this.order[(place + this.order.length) % this.order.length]);
  }

  sort() {
    this.order = this.data.videos.map((_, index) => index);
    if (this.sorting.value === "difference") {
      const values = this.data.videos.map((video) => meanDifference(video, this.compared));
      this.order.sort((a, b) => values[b] - values[a]);
    }
    this.fillVideos();
    this.show(this.order[0]);
  }

  compare(place, name) {
    this.compared = this.compared.with ? this.compared.with(place, name) : Object.assign([...this.compared], { [place]: name });
    this.spans = null;
    this.found = -1;
    if (this.sorting.value === "difference") this.sort();
  }

  /** Jumps to the next of the spans in which the compared runs differ most, over all videos. */
  nextDifference() {
    this.spans ??= differingSpans(this.data.videos, this.data.classes.length, this.compared);
    if (!this.spans.length) return this.say("These two runs do not differ.");
    this.found = (this.found + 1) % this.spans.length;
    const span = this.spans[this.found];
    this.compared.forEach((name) => this.shown.add(name));
    this.boxes.forEach((box) => { box.checked = this.shown.has(box.dataset.run); });
    this.filter.value = "";
    this.show(span.video);
    this.mark = span;
    this.layout();
    const around = Math.max(3 * (span.end - span.start), 20 * (this.video.duration / this.video.snippets));
    this.move(span.start - around, span.end + around);
    this.reveal(span.classId);
    const name = readable(this.data.classes[span.classId]);
    this.say(`${this.found + 1} of ${this.spans.length}: ${name}, ${clock(span.start)} to ${clock(span.end)} of ${this.video.id}`);
  }

  /** Scrolls the page until the row of a class is visible. */
  reveal(classId) {
    const row = this.layoutRows.find((candidate) => candidate.classId === classId);
    const top = this.rows.getBoundingClientRect().top + (row?.top ?? 0);
    if (top < 40 || top + (row?.height ?? 0) > innerHeight) scrollTo({ top: scrollY + top - innerHeight / 3 });
  }

  move(start, end) {
    const { duration, snippets } = this.video, least = Math.min(duration, (4 * duration) / snippets);
    const length = clamp(end - start, least, duration);
    const first = clamp((start + end - length) / 2, 0, duration - length);
    this.view = { start: first, end: first + length };
    this.hover(null);
    this.redraw();
  }

  /** Zooms by a factor; the time `fixed` keeps its place. */
  zoom(factor, fixed = this.cursorInView() ?? (this.view.start + this.view.end) / 2) {
    const { start, end } = this.view, share = (fixed - start) / (end - start);
    const length = clamp((end - start) * factor, 0, this.video.duration);
    this.move(fixed - share * length, fixed + (1 - share) * length);
  }

  cursorInView() {
    return this.cursor != null && this.cursor >= this.view.start && this.cursor <= this.view.end ? this.cursor : null;
  }

  // ---- layout and drawing

  /** The classes with a row: those that the filter names and, unless all are wanted, that occur, are predicted or marked. */
  visibleClasses() {
    const { classes } = this.data, wanted = this.filter.value.trim().toLowerCase();
    const occurs = new Set((this.video.truth ?? []).map(([classId]) => classId));
    const tables = [...this.shown].map((run) => this.video.tables[run]);
    const predicted = (classId) => tables.some((table) => {
      for (let i = classId; i < table.length; i += classes.length) if (table[i] >= 255 * this.threshold) return true;
      return false;
    });
    return classes.map((_, classId) => classId).filter((classId) =>
      readable(classes[classId]).toLowerCase().includes(readable(wanted)) &&
      (this.every.checked || wanted || occurs.has(classId) || predicted(classId) || this.mark?.classId === classId));
  }

  layout() {
    const width = this.lanes.clientWidth;
    if (!width) return;
    const above = width < NARROW ? NAME : 0, truth = this.video.truth ? TRUTH + GAP : 0;
    const height = above + truth + Math.max(this.shown.size, above || truth ? 0 : 1) * (LANE + GAP) + PADDING;
    this.layoutRows = this.visibleClasses().map((classId, place) => ({ classId, top: place * height, height }));
    this.left = above ? 6 : GUTTER;
    this.width = width - this.left - 10;
    this.drawnRuns = this.data.runs.filter((run) => this.shown.has(run.name));
    this.resize(this.axis, width, 26);
    this.resize(this.rows, width, Math.max(this.layoutRows.length * height, 60));
    this.draw();
  }

  resize(canvas, width, height) {
    const scale = Math.min(devicePixelRatio, 16000 / height); // browsers limit the size of a canvas
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
    canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
  }

  redraw() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.draw();
    });
  }

  x(time) {
    return this.left + ((time - this.view.start) / (this.view.end - this.view.start)) * this.width;
  }

  time(x) {
    return this.view.start + ((x - this.left) / this.width) * (this.view.end - this.view.start);
  }

  draw() {
    const context = this.rows.getContext("2d"), { width } = this.lanes.getBoundingClientRect();
    context.clearRect(0, 0, width, this.rows.height);
    this.palette = Object.fromEntries(["ink", "muted", "line", "truth", "accent", "card"].map((name) => [name, style(`--${name}`)]));
    this.drawAxis(width);
    for (const row of this.layoutRows) this.drawRow(context, row, width);
    if (!this.layoutRows.length) {
      context.fillStyle = this.palette.muted;
      context.font = "14px system-ui, sans-serif";
      context.fillText("No class reaches the threshold: lower it, change the filter, or show classes that do not occur.", 12, 34);
    }
    this.drawCursor(context, this.layoutRows.length * (this.layoutRows[0]?.height ?? 0));
  }

  /** The distance of ticks, for about one in 90 pixels. */
  tick() {
    const least = ((this.view.end - this.view.start) * 90) / this.width;
    return [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].find((step) => step >= least) ?? 7200;
  }

  drawAxis(width) {
    const context = this.axis.getContext("2d"), step = this.tick();
    context.clearRect(0, 0, width, 30);
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = this.palette.muted;
    context.textAlign = "center";
    for (let k = Math.ceil(this.view.start / step); k * step <= this.view.end; k++) {
      const x = this.x(k * step), text = clock(k * step, true).replace(/\.0$/, "");
      context.fillRect(x, 21, 1, 5);
      if (x + 24 < width && x > 14) context.fillText(text, x, 16);
    }
  }

  drawRow(context, row, width) {
    const { classId, top, height } = row, narrow = this.left < GUTTER, name = readable(this.data.classes[classId]);
    const place = this.layoutRows.indexOf(row);
    if (place % 2 || place === this.row) {
      context.fillStyle = place === this.row ? this.palette.line : this.palette.card;
      context.fillRect(0, top, width, height);
    }
    context.textAlign = "left";
    context.fillStyle = this.palette.ink;
    context.font = "600 13px system-ui, sans-serif";
    context.fillText(name, narrow ? 6 : 10, top + 16, narrow ? width - 12 : GUTTER - 20);
    let y = top + PADDING / 2 + (narrow ? NAME - 4 : 0);
    if (this.video.truth) {
      this.drawTruth(context, classId, y);
      y += TRUTH + GAP;
    }
    for (const { name: run } of this.drawnRuns) {
      if (!narrow && this.shown.size > 1) {
        context.fillStyle = this.palette.muted;
        context.font = "11px system-ui, sans-serif";
        context.textAlign = "right";
        if (y - top > 16) context.fillText(readable(run), GUTTER - 8, y + LANE - 3, GUTTER - 20);
      }
      this.drawLane(context, run, classId, y);
      y += LANE + GAP;
    }
    if (this.mark?.classId === classId) this.drawMark(context, top, height);
  }

  drawTruth(context, classId, y) {
    context.fillStyle = this.palette.truth;
    for (const [own, start, end] of this.video.truth) {
      if (own !== classId || end < this.view.start || start > this.view.end) continue;
      const left = Math.max(this.x(start), this.left), right = Math.min(this.x(end), this.left + this.width);
      context.fillRect(left, y, Math.max(right - left, 1.5), TRUTH);
    }
  }

  /** Draws the probabilities of a run; what reaches the threshold has the full colour. */
  drawLane(context, run, classId, y) {
    const { duration, snippets } = this.video, { start, end } = this.view, numClasses = this.data.classes.length;
    const table = this.video.tables[run], perSecond = snippets / duration, color = style(this.colors[run]);
    context.fillStyle = this.palette.line;
    context.fillRect(this.left, y + LANE - 0.5, this.width, 0.5);
    context.fillStyle = color;
    const first = Math.max(0, Math.floor(start * perSecond)), last = Math.min(snippets, Math.ceil(end * perSecond));
    const step = Math.max(1, (last - first) / this.width); // snippets in a bar, at least a pixel wide
    for (let from = first; from < last; from += step) {
      let best = 0;
      for (let t = Math.floor(from); t < Math.min(from + step, last); t++) best = Math.max(best, table[t * numClasses + classId]);
      const left = Math.max(Math.round(this.x(from / perSecond)), this.left);
      const right = Math.min(Math.round(this.x(Math.min(from + step, last) / perSecond)), this.left + this.width);
      const tall = (LANE * best) / 255;
      context.globalAlpha = best >= 255 * this.threshold ? 1 : 0.3;
      context.fillRect(left, y + LANE - tall, right - left, tall);
    }
    context.globalAlpha = 0.35;
    context.fillStyle = this.palette.muted;
    context.fillRect(this.left, y + LANE * (1 - this.threshold), this.width, 0.5);
    context.globalAlpha = 1;
  }

  drawMark(context, top, height) {
    const left = Math.max(this.x(this.mark.start), this.left) - 2, right = Math.min(this.x(this.mark.end), this.left + this.width) + 2;
    context.strokeStyle = this.palette.accent;
    context.lineWidth = 2;
    if (right > left) context.strokeRect(left, top + 3, right - left, height - 6);
  }

  drawCursor(context, height) {
    const cursor = this.cursorInView();
    if (cursor == null) return;
    context.fillStyle = this.palette.accent;
    context.fillRect(this.x(cursor) - 0.75, 0, 1.5, height);
  }

  // ---- pointer and keyboard

  listenToPointers() {
    const canvas = this.rows;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY, from: event.offsetX, moved: false });
    });
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.hover(null));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls
      event.preventDefault();
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) return this.pan(event.deltaX / this.width);
      this.zoom(Math.exp(clamp(event.deltaY, -200, 200) / 400), this.time(event.offsetX));
    }, { passive: false });
  }

  drag(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return event.pointerType === "mouse" && this.hover(event.offsetX, event.offsetY);
    const others = [...this.pointers.values()].filter((other) => other !== pointer);
    if (others.length === 1) {
      const before = Math.abs(pointer.x - others[0].x), now = Math.abs(event.offsetX - others[0].x);
      this.zoom(clamp((before + 1) / (now + 1), 0.5, 2), this.time((event.offsetX + others[0].x) / 2));
      pointer.moved = others[0].moved = true;
    } else if (pointer.moved || Math.abs(event.offsetX - pointer.from) > 4) {
      pointer.moved = true;
      this.rows.classList.add("dragged");
      this.pan((pointer.x - event.offsetX) / this.width);
    }
    Object.assign(pointer, { x: event.offsetX, y: event.offsetY });
  }

  release(event) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    this.rows.classList.remove("dragged");
    if (!pointer || pointer.moved) return;
    this.seek(this.time(event.offsetX));
    this.row = -1;
    this.hover(event.offsetX, event.offsetY);
  }

  /** Moves the view by a share of its length. */
  pan(share) {
    const { start, end } = this.view, by = clamp(share * (end - start), -start, this.video.duration - end);
    this.move(start + by, end + by);
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      ArrowLeft: () => (event.shiftKey ? this.read(-1) : this.pan(-0.15)),
      ArrowRight: () => (event.shiftKey ? this.read(1) : this.pan(0.15)),
      ArrowUp: () => this.choose(-1),
      ArrowDown: () => this.choose(1),
      "+": () => this.zoom(1 / 1.6),
      "=": () => this.zoom(1 / 1.6),
      "-": () => this.zoom(1.6),
      0: () => this.move(0, this.video.duration),
      Home: () => this.pan(-1e9),
      End: () => this.pan(1e9),
      n: () => this.step(1),
      p: () => this.step(-1),
      " ": () => this.media && (this.media.paused ? this.media.play() : this.media.pause()),
      Enter: () => this.media && this.seek(this.cursor),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
    if (!event.shiftKey && !event.key.startsWith("ArrowU") && !event.key.startsWith("ArrowD"))
      this.say(`${this.video.id}: ${clock(this.view.start)} to ${clock(this.view.end)}`);
  }

  /** Chooses the row above or below and reads its scores. */
  choose(by) {
    this.row = clamp(this.row + by, 0, this.layoutRows.length - 1);
    this.cursor ??= (this.view.start + this.view.end) / 2;
    this.reveal(this.layoutRows[this.row]?.classId);
    this.read(0);
  }

  /** Moves the cursor by snippets and reads the scores of the chosen row. */
  read(by) {
    const { duration, snippets } = this.video;
    this.cursor = clamp((this.cursorInView() ?? (this.view.start + this.view.end) / 2) + (by * duration) / snippets, 0, duration);
    if (this.cursor < this.view.start || this.cursor > this.view.end) this.pan(by * 0.5);
    this.redraw();
    const row = this.layoutRows[Math.max(this.row, 0)];
    if (row) this.say(this.describe(row.classId, this.cursor).join("; "));
  }

  /** What is known of a class at a time: its name, the time, the ground truth, and each run's score. */
  describe(classId, time) {
    const { duration, snippets, truth } = this.video, numClasses = this.data.classes.length;
    const t = clamp(Math.floor((time / duration) * snippets), 0, snippets - 1), seconds = duration / snippets;
    const lines = [readable(this.data.classes[classId]), clock(time)];
    if (truth) {
      const action = truth.find(([own, start, end]) => own === classId && start <= time && time <= end);
      lines.push(`ground truth: ${action ? `${clock(action[1])} to ${clock(action[2])}` : "no"}`);
    }
    for (const { name } of this.drawnRuns) {
      const value = (i) => this.video.tables[name][i * numClasses + classId] / 255;
      let first = t, stop = t + 1;
      const active = (i) => i >= 0 && i < snippets && value(i) >= this.threshold;
      while (active(t) && active(first - 1)) first--;
      while (active(t) && active(stop)) stop++;
      const span = active(t) ? `, ${clock(first * seconds)} to ${clock(stop * seconds)}` : "";
      lines.push(`${readable(name)}: ${value(t).toFixed(2)}${span}`);
    }
    return lines;
  }

  hover(x, y) {
    const row = x == null || x < this.left || x > this.left + this.width
      ? null : this.layoutRows.find((candidate) => y >= candidate.top && y < candidate.top + candidate.height);
    this.tip.hidden = !row;
    if (!row) return;
    const [name, ...lines] = this.describe(row.classId, this.time(x));
    this.tip.replaceChildren(element("b", {}, name), ...lines.map((line) => element("div", {}, line)));
    const { width } = this.lanes.getBoundingClientRect(), own = this.tip.offsetWidth;
    this.tip.style.left = `${x + own + 24 > width ? Math.max(x - own - 12, 2) : x + 14}px`;
    this.tip.style.top = `${y + this.rows.offsetTop + 14}px`;
  }

  say(text) {
    this.status.textContent = text;
  }

  // ---- the video itself

  makePlayer() {
    const { file, picture, id } = this.video;
    this.media = null;
    this.player.replaceChildren();
    if (!file) return;
    this.media = element("video", { src: file, controls: true, preload: "auto", playsinline: true, "aria-label": id });
    this.media.addEventListener("error", () => this.replacePlayer(picture));
    this.media.addEventListener("timeupdate", () => this.follow());
    this.media.addEventListener("seeking", () => this.follow());
    this.media.addEventListener("play", () => this.followWhilePlaying());
    this.player.append(this.media);
  }

  /** Says why there is no video, and shows its frames instead. */
  replacePlayer(picture) {
    const name = decodeURIComponent(this.video.file.split("/").pop());
    this.media = null;
    this.player.replaceChildren(
      element("p", { class: "note" }, `${name} cannot be played here: the file was moved, or this browser does not know its codec. ` +
        `Put it back, or convert it, for instance with ffmpeg -i ${name} -c:v libx264 -pix_fmt yuv420p playable.mp4.`),
      ...(picture ? [element("img", { src: picture, alt: `Frames and detections of ${this.video.id}` })] : []));
  }

  seek(time) {
    this.cursor = clamp(time, 0, this.video.duration);
    if (this.media) this.media.currentTime = this.cursor;
    this.redraw();
  }

  follow() {
    if (!this.media) return;
    this.cursor = this.media.currentTime;
    const { start, end } = this.view, length = end - start;
    if (!this.media.paused && (this.cursor > end || this.cursor < start)) this.move(this.cursor, this.cursor + length);
    this.redraw();
  }

  followWhilePlaying() {
    if (!this.media || this.media.paused) return;
    this.follow();
    requestAnimationFrame(() => this.followWhilePlaying());
  }
}
