"use strict";
// The sections of report.html. Its data is what kd_jax.analysis.report.make_report embeds.

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element of an SVG drawing. */
function shape(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Writes an interval as 43.2 ± 1.1. */
function written({ mean, half }, sign = "") {
  const text = `${sign && mean >= 0 ? sign : ""}${mean.toFixed(2)}`.replace("-", "−");
  return half == null ? text : `${text} ± ${half.toFixed(2)}`;
}

/** Writes a gain as +2.50 [−3.85, +8.85]; in a colour and with a mark if its interval excludes 0. */
function writtenGain({ mean, half }) {
  const marked = half != null && Math.abs(mean) > half;  // one seed proves nothing
  const signed = (value) => written({ mean: value }, "+");
  const interval = half == null ? "" : ` [${signed(mean - half)}, ${signed(mean + half)}]`;
  return element("span", { class: marked ? (mean >= 0 ? "up" : "down") : "" }, signed(mean) + interval + (marked ? " *" : ""));
}

/** Turns what backticks enclose into <code> elements. */
const withCode = (text) => text.split("`").map((part, place) => (place % 2 ? element("code", {}, part) : part));

function section(id, title, ...content) {
  document.getElementById("sections").append(element("a", { href: `#${id}` }, title));
  const made = element("section", { id }, element("h2", {}, title), ...content);
  document.getElementById("main").append(made);
  return made;
}

/** Round numbers from low to high, at most about `count` of them. */
function ticks(low, high, count) {
  const least = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= least);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(Number((k * step).toPrecision(6)));
  return found;
}

const roleColor = (role) => `var(--${role === "other" ? "other2" : role})`;
const dot = (role) => element("span", { class: "dot", style: `color: ${roleColor(role)}` });

/**
 * A table that a click or Enter on a column's title sorts.
 * columns: [{title, value(row), cell(row), text}], where value is what a column is sorted by, null last.
 */
function sortableTable(caption, columns, rows) {
  const body = element("tbody");
  const fill = (sorted) => body.replaceChildren(...sorted.map((row) => element("tr", {}, ...columns.map((column, place) => {
    const content = column.cell(row), kind = { class: column.text ? "text" : "" };
    return element(place ? "td" : "th", place ? kind : { ...kind, scope: "row" }, ...(Array.isArray(content) ? content : [content]));
  }))));
  const heads = columns.map((column) => {
    const head = element("th", { scope: "col", class: column.text ? "text" : "" });
    head.append(element("button", { type: "button", click: () => sort(column, head) }, column.title));
    return head;
  });
  const sort = (column, head) => {
    const before = head.getAttribute("aria-sort");
    const direction = before ? (before === "ascending" ? "descending" : "ascending") : column.text ? "ascending" : "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    fill([...rows].sort((a, b) => {
      const x = column.value(a), y = column.value(b);
      if (x == null || y == null) return (x == null) - (y == null);
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
    }));
  };
  fill(rows);
  const table = element("table", { "aria-label": caption }, element("thead", {}, element("tr", {}, ...heads)), body);
  return element("div", {}, element("p", { class: "muted" }, caption),
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table));
}

/** Scores of all runs as dots on one scale, with intervals and the value of each seed. */
function dotPlot(rows, title, several) {
  const known = rows.filter((row) => row.scores[title]);
  if (!known.length) return "";
  const narrow = innerWidth < 640, width = narrow ? 370 : 720, left = (narrow ? 120 : 190) * (several ? 1.25 : 1);
  const line = 30, right = 62, top = 8, height = top + known.length * line + 24;
  const ends = known.flatMap(({ scores }) => [...scores[title].values, scores[title].mean + (scores[title].half ?? 0)]);
  const limit = Math.max(...ends, 1) * 1.02, x = (value) => left + (value / limit) * (width - left - right);
  const plot = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} of each run` });
  for (const value of ticks(0, limit, 6)) {
    plot.append(shape("line", { x1: x(value), x2: x(value), y1: top, y2: height - 22, stroke: "var(--line)" }),
      shape("text", { x: x(value), y: height - 6, "text-anchor": "middle" }, String(value)));
  }
  known.forEach(({ run, experiment, role, scores }, place) => {
    const y = top + line * (place + 0.5), { mean, half, values } = scores[title], color = roleColor(role);
    plot.append(shape("text", { class: "name", x: left - 12, y: y + 4, "text-anchor": "end" }, (several ? `${experiment} / ` : "") + readable(run)),
      shape("line", { x1: x(0), x2: x(mean), y1: y, y2: y, stroke: color, "stroke-width": 8, opacity: 0.28 }));
    if (half != null) plot.append(shape("line", { x1: x(Math.max(mean - half, 0)), x2: x(mean + half), y1: y, y2: y, stroke: color, "stroke-width": 2.5 }));
    if (values.length > 1) values.forEach((value) => plot.append(shape("circle", { cx: x(value), cy: y, r: 2.5, fill: color, opacity: 0.6 })));
    plot.append(shape("circle", { cx: x(mean), cy: y, r: 6, fill: color }),
      shape("text", { x: x(mean + (half ?? 0)) + 12, y: y + 4 }, mean.toFixed(1)));
  });
  return element("div", { class: "chart", style: "max-width: 760px" }, plot);
}

function resultsSection({ results, experiments, data }) {
  const { rows, columns, gain_of: gainOf } = results, several = experiments.length > 1;
  const seeds = Math.max(...experiments.map((experiment) => experiment.seeds.length));
  const interval = seeds > 1 ? "mean ± half of the 95 % interval over seeds (Student's t); gains seed by seed, with their interval and * where it excludes 0" : "one seed, so no intervals";
  const best = (row, title) => Math.max(...rows.filter(({ data }) => data === row.data).map(({ scores }) => scores[title]?.mean ?? -1));
  const gain = (row) => writtenGain(row.gain);
  const cells = [
    { title: "run", text: true, value: (row) => row.run, cell: (row) => [dot(row.role), readable(row.run)] },
    ...(several ? [{ title: "experiment", text: true, value: (row) => row.experiment, cell: (row) => row.experiment }] : []),
    { title: "reads", text: true, value: (row) => row.reads, cell: (row) => row.reads },
    { title: "learns from", text: true, value: (row) => row.teachers.join(), cell: (row) => readable(row.teachers.join(", ")) || "–" },
    ...columns.flatMap((title) => [{
      title, value: (row) => row.scores[title]?.mean,
      cell: (row) => !row.scores[title] ? "–" : row.scores[title].mean === best(row, title)
        ? element("b", {}, written(row.scores[title])) : written(row.scores[title]),
    }, ...(title === gainOf ? [{ title: "gain", value: (row) => row.gain?.mean, cell: (row) => (row.gain ? gain(row) : "–") }] : [])]),
  ];
  const unscored = experiments.filter((experiment) => !experiment.scored).map(({ name }) => element("p", {},
    `${several ? `${name}: no` : "No"} test scores, because no test video has an action. The predictions are in the folders of the runs.`));
  section("results", "Results", ...unscored,
    ...experiments.filter((experiment) => experiment.diagnosis)
      .map(({ name, diagnosis }) => element("p", { class: "diagnosis" }, ...withCode(several ? `${name}: ${diagnosis}` : diagnosis))),
    dotPlot(rows, gainOf, several),
    sortableTable(`Percent on the test videos${columns.includes("validation") ? ", and on the validation videos" : ""}; ${interval}. The highest score of each column${data.length > 1 ? " on the same test videos" : ""} is bold.`, cells, rows));
}

function timelineSection({ data }) {
  if (!data.length) return;
  const made = section("timeline", "Timeline",
    element("p", { class: "muted" }, "Probability of each class over time, with the model of the first seed. What reaches the threshold is drawn in full colour."));
  for (const { name, timeline } of data) {
    if (data.length > 1) made.append(element("h3", {}, name));
    timelineBrowser(made, timeline);
  }
}

function classesSection({ data }) {
  const tables = data.filter(({ classes }) => classes.classes);
  if (!tables.length) return;
  const made = section("classes", "Classes");
  for (const { name, classes } of tables) {
    const rows = classes.classes.map((title, index) => ({ title, index }));
    const cell = (column, { index }) => {
      const value = column.values[index];
      if (!value) return "–";
      return column.role === "gain" ? writtenGain(value) : written(value);
    };
    const caption = `Average precision in percent (${readable(classes.protocol)})${data.length > 1 ? `, ${name}` : ""}. Click a title to sort.`;
    made.append(sortableTable(caption, [
      { title: "class", text: true, value: (row) => row.title, cell: (row) => readable(row.title) },
      { title: "actions", value: (row) => classes.actions[row.index], cell: (row) => String(classes.actions[row.index]) },
      ...classes.columns.map((column) => ({ title: readable(column.title), value: ({ index }) => column.values[index]?.mean, cell: (row) => cell(column, row) })),
    ], rows));
  }
}

/** Shows a picture in its full size until a click or Escape. */
function enlarge(picture) {
  const dialog = element("dialog", { click: () => dialog.close(), close: () => dialog.remove() }, picture);
  dialog.append(element("button", { type: "button", class: "close", "aria-label": "Close" }, "Close"));
  document.body.append(dialog);
  dialog.showModal();
}

function figuresSection({ figures, experiments }) {
  if (!figures.length) return;
  const drawn = figures.map(({ experiment, title, image, sentences }) => {
    const label = experiments.length > 1 ? `${experiment}: ${title}` : title;
    const drawing = () => element("img", { src: image, alt: `${label}. ${sentences.join(" ")}` });
    return element("figure", {}, element("h3", {}, label),
      element("button", { class: "enlarge", type: "button", "aria-label": `Enlarge: ${label}`, click: () => enlarge(drawing()) }, drawing()),
      element("figcaption", {}, sentences.join(" ")));
  });
  section("figures", "Figures", element("div", { class: "figures" }, ...drawn));
}

/** Words of a description list. */
const facts = (entries) => element("dl", {}, ...Object.entries(entries).flatMap(([name, value]) =>
  [element("dt", {}, readable(name)), element("dd", {}, Array.isArray(value) ? value.join(", ") : String(value))]));

function recordSection({ experiments }) {
  const made = section("record", "How it was made");
  for (const { name, workdir, dataset, seeds, environment, timings, configs, validation } of experiments) {
    if (experiments.length > 1) made.append(element("h3", {}, name));
    const { videos, rule, groups = [] } = validation;
    const heldOut = videos ? { validation: [`${videos} training videos (${rule})`, ...groups] } : {};
    made.append(facts({ workdir, "data set": dataset, seeds, ...heldOut, ...environment }));
    if (timings.length) made.append(sortableTable("Training time, all seeds. The first epoch also compiles the program.", [
      { title: "run", text: true, value: (row) => row.run, cell: (row) => readable(row.run) },
      { title: "epochs", value: (row) => row.epochs, cell: (row) => String(row.epochs) },
      { title: "median epoch", value: (row) => row.median, cell: (row) => `${row.median.toPrecision(3)} s` },
      { title: "total", value: (row) => row.total, cell: (row) => `${row.total.toFixed(1)} s` },
    ], timings));
    for (const [run, config] of Object.entries(configs))
      made.append(element("details", {}, element("summary", {}, `Config of ${readable(run)}`), element("pre", { tabindex: 0 }, JSON.stringify(config, null, 2))));
  }
}

async function report(content) {
  const { experiments } = content;
  for (const { timeline } of content.data) await decode(timeline);
  document.getElementById("subtitle").textContent = experiments.map(({ dataset, test_videos: videos, seeds }) =>
    `${dataset}: ${videos} test videos, ${seeds.length} ${seeds.length === 1 ? "seed" : "seeds"}`).join("; ");
  for (const make of [resultsSection, timelineSection, classesSection, figuresSection, recordSection]) make(content);
}

report(JSON.parse(document.getElementById("data").textContent));
