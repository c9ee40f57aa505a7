"use strict";
// What the page shows is computed from the values in #data (report/html/data.py) and from `state`; `draw` draws it all.
// Texts of the data become text nodes, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const MOST = 4; // settings side by side
const NEAR = 26; // pixels from a point within which a pointer means it
const LETTERS = ["A", "B", "C", "D"];
const HUES = ["var(--a)", "var(--b)", "var(--c)", "var(--d)"];
const PARTS = ["weights", "activations", "products", "others"];
const PLACES = ["dram", "chip", "arithmetic"];
const PLACE_NAMES = { dram: "DRAM", chip: "on-chip memory", arithmetic: "arithmetic" };
const CURVES = {
  validation_accuracy: ["Validation accuracy (%)", 100], train_accuracy: ["Training accuracy (%)", 100],
  cross_entropy: ["Cross-entropy", 1], firing_rate: ["Firing rate, validation (%)", 100],
  energy_ratio: ["Energy ratio, hardware=published", 1],
};
const SHAPES = [ // of radius 1; the first is standard training's
  "M0-1.25 1.25 0 0 1.25-1.25 0Z", "M-.9-.9H.9V.9H-.9Z", "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1-1 0Z", "M0-1.2 1.15.85H-1.15Z",
  "M0 1.2 1.15-.85H-1.15Z", "M-.4-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
  "M-1.1-.6-.6-1.1 0-.5.6-1.1 1.1-.6.5 0 1.1.6.6 1.1 0 .5-.6 1.1-1.1.6-.5 0Z", "M-1.2 0 .85-1.15V1.15Z",
  "M1.2 0-.85-1.15V1.15Z", "M0-1.2 1.04-.6V.6L0 1.2-1.04.6V-.6Z", "M0-1.15 1.1-.35.68.95H-.68L-1.1-.35Z",
  "M0-1.3.4-.4 1.25-.4.55.15.8 1.05 0 .5-.8 1.05-.55.15-1.25-.4-.4-.4Z", "M0-1.3.75 0 0 1.3-.75 0Z",
  "M-.45-1.1H.45L1.1-.45V.45L.45 1.1H-.45L-1.1.45V-.45Z",
];

const state = {
  family: 0, hardware: 0, x: data.x === "ratio" ? "ratio" : "energy", y: data.y,
  sort: "energy", down: false, filter: "", hidden: new Set(), most: NaN, least: NaN,
  picked: [], shared: true, share: false,
};

// --- elements ------------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

function element(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "hue") made.style.setProperty("--hue", value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}
const html = (tag, attributes = {}, ...children) => element(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  element(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const options = (select, names) => select.replaceChildren(...names.map((name, i) => html("option", { value: i }, name)));

// --- numbers -------------------------------------------------------------------------------------------------------

const NONE = "–";
const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);
const figures = (digits) => {
  const format = new Intl.NumberFormat("en", { maximumSignificantDigits: digits });
  return (value) => (known(value) ? format.format(value) : NONE);
};
const [three, four] = [figures(3), figures(4)];
const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : NONE);
const percent = (value) => fixed(known(value) ? 100 * value : null, 2);
const mean = (values) => {
  const there = values.filter(known);
  return there.length ? there.reduce((a, b) => a + b, 0) / there.length : null;
};
function deviation(values) {
  const there = values.filter(known);
  if (there.length < 2) return null;
  const middle = mean(there);
  return Math.sqrt(there.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (there.length - 1));
}
const clear = (value) => (typeof value === "number" ? String(value) : value === true ? "true" : value === false ? "false" : value);

// --- settings: the runs that differ in the seed alone --------------------------------------------------------------

const runsOf = data.settings.map(() => []);
data.runs.setting.forEach((setting, run) => runsOf[setting].push(run));
const unit = () => data.hardware[state.hardware].unit;
const hue = (line) => data.lines[line].colour === data.ink ? "var(--ink)" : `color-mix(in oklab, ${data.lines[line].colour}, white var(--lift))`;

/** The family's settings with their means over seeds on the hardware; those that it has no price for are left out. */
function measured() {
  const prices = data.prices[state.hardware];
  const found = [];
  data.settings.forEach((setting, number) => {
    if (setting.family !== state.family) return;
    const runs = runsOf[number].filter((run) => known(prices.ratio[run]));
    if (!runs.length) return;
    const of = (values) => runs.map((run) => values[run]);
    const columns = {
      accuracy: of(data.runs.accuracy), validation: of(data.runs.validation), energy: of(prices.energy),
      ratio: of(prices.ratio), within: of(prices.validation), firing: of(data.runs.firing_rate),
      weights: of(data.runs.parameters), dense: of(prices.dense), seconds: of(data.runs.seconds),
    };
    const point = { ...setting, number, runs, columns, n: runs.length };
    for (const [key, values] of Object.entries(columns)) point[key] = mean(values);
    found.push(point);
  });
  const reference = found.find((point) => point.reference);
  for (const point of found) {
    point.decrease = reference && known(point.energy) ? 1 - point.energy / reference.energy : null;
    point.shown = known(point[state.x]) && known(point[state.y]);
  }
  for (const index of front(found.filter((point) => point.shown))) index.onFront = true;
  return { points: found, reference };
}

/** The points that no other beats, by energy; of equal ones all. */
function front(points) {
  const sorted = [...points].sort((a, b) => a[state.x] - b[state.x] || b[state.y] - a[state.y]);
  const kept = [];
  for (const point of sorted) {
    const last = kept.at(-1);
    const equal = last && last[state.x] === point[state.x] && last[state.y] === point[state.y];
    if (!last || equal || point[state.y] > last[state.y]) kept.push(point);
  }
  return kept;
}

// --- choosing: as eat-report --select does (analysis/choosing.py), on the validation split -------------------------

/** A limit of accuracy: 1 or less is a share, what is above it percent. */
const share = (limit) => (limit > 1 ? limit / 100 : limit);

function choose(points) {
  const { most, least } = state;
  if (Number.isNaN(most) && Number.isNaN(least)) return {};
  const able = points.filter((point) => known(point.validation) && known(point.within));
  if (!able.length) return { why: "Nothing to choose from: there is no validation split." };
  const cheap = able.filter((point) => !(point.within > most));
  const good = cheap.filter((point) => !(point.validation < least));
  const better = (a, b) => b.validation - a.validation || a.within - b.within;
  const cheaper = (a, b) => a.within - b.within || b.validation - a.validation;
  if (good.length) return { point: good.sort(Number.isNaN(most) ? cheaper : better)[0] };
  const near = cheap.length ? cheap.sort(better)[0] : able.sort(cheaper)[0];
  const sense = !cheap.length ? "what needs least" : Number.isNaN(most) ? "the most accurate" : "the most accurate within the energy";
  return { why: `Nothing qualifies. The nearest, ${sense}, is ${near.name}: validation ${percent(near.validation)} %, ${four(near.within)} ${unit()}.`, near };
}

// --- filter: words that all must match; key>number and key<number compare ------------------------------------------

const COMPARED = { accuracy: 100, validation: 100, firing: 100, decrease: 100 };
const textOf = (point) =>
  [data.lines[point.line].name, point.name, ...data.parameters.map((key, i) => `${key}=${clear(point.values[i])}`), ...point.runs.map((run) => data.runs.id[run])]
    .join(" ").toLowerCase();

function matches(point) {
  if (state.hidden.has(point.line)) return false;
  return state.filter.toLowerCase().split(/\s+/).filter(Boolean).every((word) => {
    const [, key, sign, number] = word.match(/^([^<>]+)(<=|>=|<|>)(-?[\d.]+)$/) || [];
    if (!key) return textOf(point).includes(word);
    const place = data.parameters.findIndex((name) => name.toLowerCase() === key);
    const own = { seeds: "n", parameters: "weights" }[key] || key;
    const value = place >= 0 ? parseFloat(point.values[place]) : point[own] * (COMPARED[own] || 1);
    return { "<": value < number, ">": value > number, "<=": value <= number, ">=": value >= number }[sign];
  });
}

// --- scales and axes -----------------------------------------------------------------------------------------------

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough * 0.999);
  const from = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - from + 1 }, (_, i) => Number(((from + i) * step).toPrecision(12)));
}

function logTicks(low, high, wanted) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const times of [1, 2, 5]) found.push(Number((times * 10 ** power).toPrecision(6)));
  const within = found.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return within.length > wanted ? within.filter((tick) => /^0*\.?0*1/.test(String(tick))) : within;
}

/** A scale from values to pixels; logarithmic from a decade on where that is allowed. */
function scale(values, from, to, { zero = false, log = false, room = 0.06, wanted = 6 } = {}) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (!values.length) [low, high] = [0, 1];
  const logarithmic = log && low > 0 && high >= 10 * low;
  const forth = logarithmic ? Math.log : (value) => value;
  if (zero) low = Math.min(0, low);
  if (low === high) [low, high] = zero ? [0, high || 1] : [low - (Math.abs(low) * 0.02 || 0.5), high + (Math.abs(high) * 0.02 || 0.5)];
  let [start, end] = [forth(low), forth(high)];
  const margin = (end - start) * room;
  [start, end] = [zero ? start : start - margin, end + margin];
  const at = (value) => from + ((forth(value) - start) / (end - start)) * (to - from);
  const back = logarithmic ? Math.exp : (value) => value;
  at.ticks = logarithmic ? logTicks(back(start), back(end), wanted + 3) : ticks(start, end, wanted);
  return at;
}

/** Room for a chart as wide as its place: an svg with axes, scales x and y, and the place of what is drawn. */
function chart(place, { height, x, y, xTitle = "", yTitle = "", left = 44, bottom = 22, top = 28, right = 8, xTicks = true, label }) {
  const width = Math.max(place.clientWidth, 240);
  const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: label ? "group" : "img", "aria-label": label || yTitle });
  const sx = scale(x.values, left, width - right, { wanted: width / 90, ...x });
  const sy = scale(y.values, height - bottom, top, { wanted: height / 55, ...y });
  for (const tick of sy.ticks) {
    made.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: sy(tick), y2: sy(tick) }));
    made.append(svg("text", { x: left - 8, y: sy(tick) + 4, "text-anchor": "end" }, four(tick)));
  }
  made.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  for (const tick of xTicks ? sx.ticks : []) {
    made.append(svg("line", { class: "axis", x1: sx(tick), x2: sx(tick), y1: height - bottom, y2: height - bottom + 4 }));
    made.append(svg("text", { x: sx(tick), y: height - bottom + 17, "text-anchor": "middle" }, four(tick)));
  }
  made.append(svg("text", { class: "title", x: 0, y: 12 }, yTitle));
  if (xTitle) made.append(svg("text", { class: "title", x: width - right, y: height - 4, "text-anchor": "end" }, xTitle));
  const inside = svg("g");
  made.append(inside);
  place.replaceChildren(made);
  return { made, inside, sx, sy, width, left, right: width - right, bottom: height - bottom };
}

const shape = (line, radius, attributes = {}) =>
  svg("path", { d: SHAPES[data.lines[line].shape % SHAPES.length], transform: `scale(${radius})`, "vector-effect": "non-scaling-stroke", hue: hue(line), ...attributes });
const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// --- the front -----------------------------------------------------------------------------------------------------

let shown = []; // what the front shows, by x: each with its place on the page
let at = null; // number of the setting that the arrow keys are at

function drawFront({ points, reference }, chosen) {
  const place = $("front");
  $("front-on").textContent = data.hardware[state.hardware].name;
  const had = place.contains(document.activeElement);
  const seen = points.filter((point) => point.shown);
  const percents = state.y === "accuracy" || state.y === "validation";
  const y = (value) => (percents ? 100 * value : value);
  const energies = seen.flatMap((point) => point.columns[state.x].filter(known));
  const accuracies = seen.flatMap((point) => point.columns[state.y].filter(known).map(y));
  const narrow = place.clientWidth < 520;
  const { inside, sx, sy, left, right, bottom } = chart(place, {
    height: narrow ? 340 : 480, bottom: 44, left: 42, top: 26, right: 14,
    x: { values: energies, log: true, wanted: narrow ? 3 : 7 }, y: { values: accuracies, wanted: 7 },
    xTitle: state.x === "ratio" ? "energy ratio (with / without zero-skipping)" : `inference energy (${unit()} per image)`,
    yTitle: `${state.y === "validation" ? "validation" : "test"} accuracy (%)`,
    label: "Accuracy against energy: a point a setting; arrow keys walk, Enter compares",
  });
  const xy = (point) => [sx(point[state.x]), sy(y(point[state.y]))];
  const best = front(seen);
  inside.append(svg("path", { class: "band", d: path(best.map(xy)) }));
  data.lines.forEach((_, line) => {
    const own = seen.filter((point) => point.line === line);
    const joined = front(own);
    for (const point of own) point.beaten = !joined.includes(point);
    if (joined.length > 1) inside.append(svg("path", { class: `own${state.hidden.has(line) ? " away" : ""}`, d: path(joined.map(xy)), hue: hue(line) }));
  });
  if (state.x === "energy" && chosen.limited) {
    if (known(chosen.most)) inside.append(svg("line", { class: "limit", x1: sx(chosen.most), x2: sx(chosen.most), y1: 20, y2: bottom }));
    if (known(chosen.least) && state.y === "validation") inside.append(svg("line", { class: "limit", x1: left, x2: right, y1: sy(y(chosen.least)), y2: sy(y(chosen.least)) }));
  }
  shown = [...seen].sort((a, b) => a[state.x] - b[state.x]);
  const size = shown.length > 150 ? 4 : 6;
  const marks = [];
  for (const point of [...shown].sort((a, b) => !!a.onFront - !!b.onFront)) {
    const [px, py] = xy(point);
    const away = matches(point) ? "" : " away";
    if (point.n > 1) {
      const [dx, dy] = [state.x, state.y].map((key) => deviation(point.columns[key]));
      if (known(dx) && point[state.x] > dx) inside.append(svg("line", { class: `spread${away}`, hue: hue(point.line), x1: sx(point[state.x] - dx), x2: sx(point[state.x] + dx), y1: py, y2: py }));
      if (known(dy)) inside.append(svg("line", { class: `spread${away}`, hue: hue(point.line), x1: px, x2: px, y1: sy(y(point[state.y] - dy)), y2: sy(y(point[state.y] + dy)) }));
      point.runs.forEach((_, i) => {
        const [ex, ey] = [point.columns[state.x][i], point.columns[state.y][i]];
        if (known(ex) && known(ey)) inside.append(svg("circle", { class: `seed${away}`, hue: hue(point.line), cx: sx(ex), cy: sy(y(ey)), r: 2 }));
      });
    }
    const picked = state.picked.indexOf(point.number);
    const mark = shape(point.line, point.reference ? size * 1.3 : size, {
      class: `point${point.beaten ? " beaten" : ""}${point.reference ? " reference" : ""}${away}`,
      role: "checkbox", "aria-checked": String(picked >= 0), tabindex: -1, "aria-label": spoken(point),
    });
    Object.assign(point, { px, py, mark });
    marks.push(svg("g", { transform: `translate(${px.toFixed(1)} ${py.toFixed(1)})` }, mark));
    if (point.selected && state.hardware === 0) marks.push(svg("circle", { class: "ring", cx: px, cy: py, r: size + 6 }));
    if (chosen.point === point) marks.push(svg("circle", { class: "chosen", cx: px, cy: py, r: size + 9 }));
    if (picked >= 0) {
      const [cx, cy] = freest(px, py, size + 13, seen.map(xy));
      marks.push(svg("circle", { class: "mark", cx, cy, r: 8.5, hue: HUES[picked] }), svg("text", { class: "letter", x: cx, y: cy }, LETTERS[picked]));
    }
  }
  inside.append(...marks);
  if (reference && reference.shown) {
    const [px, py] = xy(reference);
    const end = px > (left + right) / 2;
    inside.append(svg("text", { class: "note", x: px + (end ? -14 : 14), y: py + 22, "text-anchor": end ? "end" : "start" }, "standard training"));
  }
  const current = shown.find((point) => point.number === at) || best[0] || shown[0];
  if (current) {
    current.mark.setAttribute("tabindex", 0);
    if (had) current.mark.focus({ preventScroll: true });
  }
}

/** Of the places at that distance from a point the one with the fewest others near it. */
function freest(px, py, far, others) {
  const places = [-45, -90, 0, -135, 45, 180, 90, 135].map((degrees) => [px + far * Math.cos(degrees * Math.PI / 180), py + far * Math.sin(degrees * Math.PI / 180)]);
  const crowd = places.map(([x, y]) => others.filter(([ox, oy]) => (ox - x) ** 2 + (oy - y) ** 2 < 15 ** 2).length);
  return places[crowd.indexOf(Math.min(...crowd))];
}

function nearest(event) {
  const box = $("front").getBoundingClientRect();
  const away = (point) => (point.px - event.clientX + box.left) ** 2 + (point.py - event.clientY + box.top) ** 2;
  const found = shown.filter((point) => away(point) < NEAR ** 2).sort((a, b) => away(a) - away(b));
  return found[0];
}

function walk(event) {
  const number = shown.findIndex((point) => point.mark === event.target);
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (number < 0) return;
  if (event.key === "Enter" || event.key === " ") pick(shown[number].number);
  else if (step || event.key === "Home" || event.key === "End") {
    const to = event.key === "Home" ? 0 : event.key === "End" ? shown.length - 1 : Math.min(Math.max(number + step, 0), shown.length - 1);
    event.target.setAttribute("tabindex", -1);
    at = shown[to].number;
    shown[to].mark.setAttribute("tabindex", 0);
    shown[to].mark.focus();
  } else return;
  event.preventDefault();
}

const energyOf = (point) => (known(point.energy) ? `${four(point.energy)} ${unit()}` : "no energy");
const spoken = (point) => `${point.name}: accuracy ${percent(point.accuracy)} %, ${energyOf(point)}, ${seeds(point.n)}`;
const seeds = (n) => (n === 1 ? "1 seed" : `${n} seeds`);
const spread = (point, key, times, digits) => {
  const std = deviation(point.columns[key]);
  return known(std) ? ` ± ${(times * std).toFixed(digits)}` : "";
};

function show(point) {
  const tip = $("tip");
  for (const other of shown) other.mark.classList.toggle("near", other === point);
  tip.hidden = !point;
  if (!point) return;
  const told = data.parameters.map((key, i) => [key, point.values[i]]).filter(([key, value]) => known(value) && key !== "method" && !(key === "lambda" && value === 0));
  tip.replaceChildren(
    html("b", {}, point.name),
    html("div", {}, `test ${percent(point.accuracy)}${spread(point, "accuracy", 100, 2)} % · validation ${percent(point.validation)} %`),
    html("div", {}, [`${energyOf(point)} per image`, `ratio ${fixed(point.ratio, 3)}`, known(point.decrease) && !point.reference ? `−${fixed(100 * point.decrease, 1)} %`.replace("−-", "+") : "", seeds(point.n)].filter(Boolean).join(" · ")),
    html("div", {}, told.map(([key, value]) => `${key} ${clear(value)}`).join(", ")),
    html("span", { class: "run" }, data.runs.id[point.runs[0]] + (point.n > 1 ? ` and ${point.n - 1} more` : "")),
  );
  const box = $("front").getBoundingClientRect();
  const [x, y] = [box.left + point.px + window.scrollX, box.top + point.py + window.scrollY];
  const right = document.documentElement.clientWidth - tip.offsetWidth - 12;
  const above = y - tip.offsetHeight - 16;
  tip.style.left = `${Math.max(8, Math.min(x + 16, right))}px`;
  tip.style.top = `${above > window.scrollY ? above : y + 18}px`;
}

function pick(number) {
  const place = state.picked.indexOf(number);
  if (place >= 0) state.picked.splice(place, 1);
  else {
    if (state.picked.length === MOST) state.picked.shift();
    state.picked.push(number);
  }
  at = number;
  draw();
}

// --- beside the front ----------------------------------------------------------------------------------------------

function drawAside({ points, reference }, chosen) {
  const tile = (point, what, best) => html("div", { class: `tile${best ? " best" : ""}` },
    html("b", {}, percent(point.accuracy), html("small", {}, " %")), html("b", {}, four(point.energy), html("small", {}, ` ${unit()}`)),
    best && known(point.decrease) ? html("b", {}, html("small", {}, `${point.decrease < 0 ? "+" : "−"}${fixed(100 * Math.abs(point.decrease), 1)} %`)) : null,
    html("p", {}, what));
  const selected = state.hardware === 0 ? points.find((point) => point.selected) : null;
  $("tiles").replaceChildren(
    ...(reference ? [tile(reference, "standard training, the reference")] : []),
    ...(selected && selected !== reference ? [tile(selected, `${selected.name} (ringed: the rule's choice)`, true)] : []),
  );
  $("most-unit").textContent = unit();
  const { point, why, near } = chosen;
  const target = point || near;
  $("choice").replaceChildren(...(target ? [
    html("span", {}, why || `${point.name}: validation ${percent(point.validation)} %, ${four(point.within)} ${unit()} (test ${percent(point.accuracy)} %)`), html("br"),
    html("code", {}, data.runs.folder[target.runs[0]]), html("br"),
    ...(state.picked.includes(target.number) ? [] : [html("button", { type: "button", onclick: () => pick(target.number) }, "compare it")]),
  ] : why ? [why] : []));
  const lines = data.lines.map((line, i) => [line, i]).filter(([, i]) => points.some((other) => other.line === i));
  const entry = ([line, i]) => html("button", { type: "button", "aria-pressed": String(!state.hidden.has(i)), onclick: () => { state.hidden.has(i) ? state.hidden.delete(i) : state.hidden.add(i); draw(); $("legend").querySelector(`[data-line="${i}"]`).focus(); }, "data-line": i },
    svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, shape(i, 5.5, { class: "point" })), html("span", {}, line.name));
  $("legend").replaceChildren(...lines.map(entry));
}

// --- side by side --------------------------------------------------------------------------------------------------

const detail = (point) => {
  const run = point.runs.find((number) => data.details[number]);
  const found = run === undefined ? null : data.details[run];
  return found && { ...found, run, price: found.prices[state.hardware] };
};
const total = (parts) => parts.reduce((sum, part) => sum + part, 0);
const letter = (i) => html("span", { class: "chip", hue: HUES[i] }, LETTERS[i]);
const keys = (names) => html("div", { class: "keys" }, names.map(([name, colour]) => html("span", {}, html("i", { hue: colour }), name)));

function drawComparison(points) {
  const chosen = state.picked.map((number) => points.find((point) => point.number === number)).map((point, i) => ({ point, i })).filter(({ point }) => point);
  $("compare").hidden = !chosen.length;
  const differing = data.parameters.map((key, place) => [key, place]).filter(([, place]) => new Set(chosen.map(({ point }) => String(point.values[place]))).size > 1 || chosen.length === 1);
  $("cards").replaceChildren(...chosen.map(({ point, i }) => card(point, i, differing)));
  const detailed = chosen.map(({ point, i }) => ({ point, i, own: detail(point) })).filter(({ own }) => own);
  const priced = detailed.filter(({ own }) => own.price);
  drawEnergy(priced);
  drawLayers(priced);
  drawCurves(detailed);
}

function card(point, i, differing) {
  const own = detail(point);
  const run = own ? own.run : point.runs[0];
  const facts = [
    ["validation", `${percent(point.validation)}${spread(point, "validation", 100, 2)} %`], ["energy ratio", fixed(point.ratio, 3)],
    ["decrease of energy", known(point.decrease) ? `${fixed(100 * point.decrease, 1)} %` : NONE], ["firing rate", `${fixed(100 * point.firing, 1)} %`],
    ["parameters", known(point.weights) ? Math.round(point.weights).toLocaleString("en") : NONE], [point.n === 1 ? "seed" : "seeds", point.runs.map((number) => data.runs.seed[number]).join(", ")],
  ];
  const list = (rows, kind = "") => html("dl", { class: kind }, rows.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)]));
  return html("article", { class: "card", hue: HUES[i] },
    html("header", {}, letter(i), html("span", {}, point.name), html("button", { type: "button", title: "remove", "aria-label": `remove ${point.name}`, onclick: () => pick(point.number) }, "×")),
    html("p", { class: "figures" }, html("b", {}, percent(point.accuracy), html("small", {}, `${spread(point, "accuracy", 100, 2)} %`)), html("b", {}, four(point.energy), html("small", {}, ` ${unit()}`))),
    list(facts),
    differing.length ? list(differing.map(([key, place]) => [key, known(point.values[place]) ? clear(point.values[place]) : NONE]), "differs") : null,
    html("details", {}, html("summary", {}, `run of seed ${data.runs.seed[run]}`), html("p", {}, html("code", {}, data.runs.folder[run])),
      own && own.command ? html("p", {}, html("code", {}, own.command)) : null, own && own.parent ? html("p", {}, `began with ${own.parent}`) : null,
      own ? html("p", { class: "quiet" }, own.made) : null));
}

function toggle(name, words, value) {
  return html("label", { class: "noprint" }, html("input", { type: "checkbox", checked: value, onchange: (event) => { state[name] = event.target.checked; draw(); } }), ` ${words}`);
}

/** Where a run's energy goes: by what it moves or computes, and by where. In the hardware's unit. */
function split(price) {
  const parts = PARTS.map((_, part) => total(price.parts.map((layer) => layer[part])) / 1e6);
  const arithmetic = parts[2] + parts[3];
  return { parts, places: [price.dram / 1e6, Math.max(total(parts) - arithmetic - price.dram / 1e6, 0), arithmetic] };
}

function drawEnergy(chosen) {
  const place = $("energy");
  if (!chosen.length) return place.replaceChildren();
  const [left, right] = [html("div"), html("div")];
  place.replaceChildren(
    html("div", { class: "bar" }, html("h3", {}, "Where the energy goes", html("span", { class: "quiet" }, ` · ${data.hardware[state.hardware].name}, the run with the lowest seed`)), toggle("share", "as shares", state.share)),
    html("div", { class: "panels" }, left, right));
  const bars = (host, key, names) => {
    const all = chosen.map(({ own }) => split(own.price)[key]);
    const room = html("div", { class: "chart" });
    host.append(keys(names.map((name) => [PLACE_NAMES[name] || name, `var(--${name})`])), room);
    const height = chosen.length * 30 + 30;
    const width = Math.max(room.clientWidth, 240);
    const sx = scale(state.share ? [100] : all.map(total), 30, width - 66, { zero: true, room: 0, wanted: 4 });
    const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `Energy by ${key}` });
    for (const tick of sx.ticks) made.append(svg("line", { class: "grid", x1: sx(tick), x2: sx(tick), y1: 0, y2: height - 24 }), svg("text", { x: sx(tick), y: height - 8, "text-anchor": "middle" }, four(tick)));
    made.append(svg("text", { x: width, y: height - 8, "text-anchor": "end" }, state.share ? "%" : unit()));
    chosen.forEach(({ i }, row) => {
      const whole = total(all[row]);
      const y = row * 30 + 4;
      made.append(svg("circle", { class: "mark", hue: HUES[i], cx: 10, cy: y + 10, r: 9 }), svg("text", { class: "letter", x: 10, y: y + 10 }, LETTERS[i]));
      let before = 0;
      names.forEach((name, part) => {
        const value = all[row][part] * (state.share ? 100 / whole : 1);
        const [from, to] = [sx(before), sx(before + value)];
        made.append(svg("rect", { class: "layer", hue: `var(--${name})`, x: from, y, width: Math.max(to - from, 0), height: 20 },
          svg("title", {}, `${PLACE_NAMES[name] || name}: ${three(all[row][part])} ${unit()}, ${fixed((100 * all[row][part]) / whole, 1)} %`)));
        before += value;
      });
      made.append(svg("text", { x: sx(before) + 8, y: y + 15 }, state.share ? `${three(whole)}` : three(whole)));
    });
    room.replaceChildren(made);
  };
  bars(left, "parts", PARTS);
  bars(right, "places", PLACES);
}

function drawLayers(chosen) {
  const place = $("layers");
  if (!chosen.length) return place.replaceChildren();
  const rooms = chosen.map(() => html("div"));
  const firing = html("div");
  place.replaceChildren(
    html("div", { class: "bar" }, html("h3", {}, "Layer by layer"), toggle("shared", "one scale", state.shared)),
    keys(PARTS.map((name) => [name, `var(--${name})`])),
    html("div", { class: "panels" }, rooms.map((room) => html("div", {}, room))), html("div", { class: "wide" }, firing));
  const sums = chosen.map(({ own }) => own.price.parts.map((parts) => total(parts) / 1e6));
  chosen.forEach(({ own, i }, number) => {
    const names = data.layers[own.price.names];
    const { inside, made, sx, sy, bottom } = chart(rooms[number], {
      height: 190, yTitle: `    energy (${unit()})`, x: { values: [0, names.length], room: 0 }, y: { values: state.shared ? sums.flat() : sums[number], zero: true, wanted: 4 }, xTicks: false,
    });
    made.append(svg("circle", { class: "mark", hue: HUES[i], cx: 9, cy: 9, r: 8.5 }), svg("text", { class: "letter", x: 9, y: 9 }, LETTERS[i]));
    made.querySelector(".title").setAttribute("x", 24);
    layerNames(made, names, sx, bottom);
    const wide = sx(1) - sx(0);
    own.price.parts.forEach((parts, layer) => {
      let below = 0;
      parts.forEach((part, kind) => {
        const value = part / 1e6;
        if (value > 0) inside.append(svg("rect", { class: "layer", hue: `var(--${PARTS[kind]})`, x: sx(layer) + wide * 0.1, width: wide * 0.8, y: sy(below + value), height: Math.max(sy(below) - sy(below + value), 0) }));
        below += value;
      });
      inside.append(svg("rect", { x: sx(layer), width: wide, y: 20, height: bottom - 20, fill: "transparent" },
        svg("title", {}, `${names[layer]}: ${three(below)} ${unit()} (${PARTS.map((name, kind) => `${name} ${three(parts[kind] / 1e6)}`).join(", ")}), ${fixed(100 * own.price.firing[layer], 1)} % non-zero`)));
    });
  });
  const most = Math.max(...chosen.map(({ own }) => own.price.firing.length));
  const { inside, made, sx, sy, bottom } = chart(firing, { height: 190, yTitle: "non-zero outputs (%)", x: { values: [0, most], room: 0 }, y: { values: [0, 100], zero: true, room: 0, wanted: 4 }, xTicks: false });
  layerNames(made, data.layers[chosen.find(({ own }) => own.price.firing.length === most).own.price.names], sx, bottom);
  chosen.forEach(({ own, i }) => {
    const dots = own.price.firing.map((rate, layer) => [sx(layer + 0.5), sy(100 * rate)]);
    inside.append(svg("path", { class: "curve", hue: HUES[i], d: path(dots) }), ...dots.map(([cx, cy], layer) => svg("circle", { class: "mark", hue: HUES[i], cx, cy, r: most > 60 ? 1.5 : 2.6 }, svg("title", {}, `${LETTERS[i]} ${data.layers[own.price.names][layer]}: ${fixed(100 * own.price.firing[layer], 1)} %`))));
  });
}

/** The first and the last layer's names, and some between where there is room. */
function layerNames(made, names, sx, bottom) {
  let free = -Infinity;
  names.forEach((name, layer) => {
    const text = name.length > 15 ? `${name.slice(0, 14)}…` : name;
    const x = sx(layer) + 2;
    if (x < free || x + text.length * 6.2 > sx(names.length) + 6) return;
    made.append(svg("text", { x, y: bottom + 15, "font-size": 10.5 }, text));
    free = x + text.length * 6.4 + 10;
  });
}

function drawCurves(chosen) {
  const place = $("curves");
  const there = Object.keys(CURVES).filter((key) => chosen.some(({ own }) => own.epochs[key] && own.epochs[key].length > 1));
  if (!there.length) return place.replaceChildren();
  const rooms = there.map(() => html("div"));
  place.replaceChildren(html("div", { class: "bar" }, html("h3", {}, "Training"), html("span", { class: "quiet small" }, "by epoch")),
    html("div", { class: "panels three" }, rooms.map((room) => html("div", {}, room))));
  there.forEach((key, number) => {
    const [title, times] = CURVES[key];
    const own = chosen.filter(({ own: { epochs } }) => epochs[key] && epochs[key].length > 1);
    const longest = Math.max(...own.map(({ own: { epochs } }) => epochs[key].length));
    const values = own.flatMap(({ own: { epochs } }) => epochs[key].filter(known).map((value) => times * value));
    const { inside, sx, sy } = chart(rooms[number], { height: 170, yTitle: title, x: { values: [1, longest], room: 0, wanted: 5 }, y: { values, wanted: 4, room: 0.04 }, right: 14 });
    for (const { own: { epochs }, i } of own) {
      const dots = epochs[key].map((value, epoch) => [epoch + 1, value]).filter(([, value]) => known(value)).map(([epoch, value]) => [sx(epoch), sy(times * value)]);
      inside.append(svg("path", { class: "curve", hue: HUES[i], d: path(dots) }));
      const last = dots.at(-1);
      if (last) inside.append(svg("circle", { class: "mark", hue: HUES[i], cx: last[0], cy: last[1], r: 3.2 }, svg("title", {}, LETTERS[i])));
    }
  });
}

// --- the table -----------------------------------------------------------------------------------------------------

const measures = () => [
  { key: "n", head: "seeds", text: (point) => point.n },
  { key: "accuracy", head: "accuracy %", times: 100, digits: 2 },
  { key: "validation", head: "validation %", times: 100, digits: 2 },
  { key: "energy", head: unit(), figures: four },
  { key: "decrease", head: "decrease of energy %", text: (point) => fixed(known(point.decrease) ? 100 * point.decrease : null, 1) },
  { key: "ratio", head: "ratio", times: 1, digits: 3 },
  { key: "firing", head: "firing %", times: 100, digits: 1 },
  { key: "weights", head: "parameters", text: (point) => (known(point.weights) ? Math.round(point.weights).toLocaleString("en") : NONE) },
];

function valueFor(point, key) {
  const place = data.parameters.indexOf(key.replace(/^=/, ""));
  if (!key.startsWith("=")) return key === "name" ? point.name : point[key];
  const value = point.values[place];
  return known(value) && value !== "" && !Number.isNaN(Number(value)) ? Number(value) : value;
}

function compare(a, b) {
  if (known(a) !== known(b)) return known(a) ? -1 : 1; // what has no value stays below
  const way = state.down ? -1 : 1;
  if (typeof a === typeof b && typeof a !== "string") return way * (a - b);
  return way * String(a).localeCompare(String(b), "en", { numeric: true });
}

function drawTable({ points }) {
  const seen = points.filter(matches).sort((a, b) => compare(valueFor(a, state.sort), valueFor(b, state.sort)));
  $("count").textContent = seen.length === points.length ? `${points.length}` : `${seen.length} of ${points.length}`;
  const varied = data.parameters.map((key, place) => ({ key, place })).filter(({ place }) => new Set(points.map((point) => String(point.values[place]))).size > 1);
  const numeric = ({ place }) => points.every((point) => !known(point.values[place]) || typeof point.values[place] === "number");
  const value = (point, { place }) => (known(point.values[place]) ? clear(point.values[place]) : NONE);
  const number = (point, { key, text, figures, times, digits }) => [
    text ? text(point) : figures ? figures(point[key]) : fixed(known(point[key]) ? times * point[key] : null, digits),
    times ? html("span", { class: "std" }, spread(point, key, times, digits)) : null];
  const columns = [
    ...measures().map((measure) => ({ key: measure.key, name: measure.head, cell: (point) => html("td", {}, number(point, measure)) })),
    ...varied.map((parameter) => ({ key: `=${parameter.key}`, name: parameter.key, text: !numeric(parameter), cell: (point) => cell(value(point, parameter), !numeric(parameter)) })),
  ];
  const method = columns.findIndex(({ key }) => key === "=method");
  if (method >= 0) columns.splice(columns.findIndex(({ key }) => key === "ratio"), 0, ...columns.splice(method, 1)); // where a desk shows it
  const head = (key, name, text) => html("th", { scope: "col", class: text ? "text" : null, "aria-sort": state.sort === key ? (state.down ? "descending" : "ascending") : null },
    html("button", { type: "button", "data-key": key, onclick: () => sort(key) }, name, state.sort === key ? (state.down ? " ↓" : " ↑") : ""));
  const cell = (told, text) => html("td", { class: told === NONE ? "none" : text ? "text" : null }, text ? html("span", {}, told) : told);
  const row = (point) => {
    const place = state.picked.indexOf(point.number);
    return html("tr", { class: place >= 0 ? "picked" : null, hue: place >= 0 ? HUES[place] : null },
      html("th", { scope: "row" }, html("label", {}, html("input", { type: "checkbox", checked: place >= 0, "data-setting": point.number, onchange: () => pick(point.number) }), svgMark(point), html("span", {}, point.name))),
      columns.map((column) => column.cell(point)));
  };
  $("table").replaceChildren(
    html("thead", {}, html("tr", {}, head("name", "setting", true), columns.map(({ key, name, text }) => head(key, name, text)))),
    html("tbody", {}, seen.map(row)));
}

const svgMark = (point) => svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, shape(point.line, 5.5, { class: `point${point.beaten ? " beaten" : ""}` }));

function sort(key) {
  state.down = state.sort === key ? !state.down : ["accuracy", "validation", "decrease", "n"].includes(key);
  state.sort = key;
  draw();
  document.querySelector(`#table [data-key="${CSS.escape(key)}"]`).focus();
}

// --- the whole -----------------------------------------------------------------------------------------------------

function drawAbout() {
  const family = data.families[state.family];
  const list = (title, lines) => (lines.length ? [html("h3", {}, title), html("ul", {}, lines.map((line) => html("li", {}, line)))] : []);
  $("about").replaceChildren($("about-title"),
    ...list("What holds", [...family.facts, ...data.facts]), ...list("To know", [...family.remarks, ...data.missing]), ...list("Machines and versions", data.makers));
}

function draw() {
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.setting : null;
  const now = measured();
  const chosen = choose(now.points);
  Object.assign(chosen, { limited: true, most: Number.isNaN(state.most) ? null : state.most, least: Number.isNaN(state.least) ? null : state.least });
  show(null);
  drawFront(now, chosen);
  drawAside(now, chosen);
  drawComparison(now.points);
  drawTable(now);
  drawAbout();
  if (focused) document.querySelector(`#table [data-setting="${focused}"]`)?.focus();
}

function begin() {
  const all = data.runs.id.length;
  $("name").textContent = data.name;
  $("summary").textContent = `${all} runs of ${data.settings.length} settings`;
  options($("family"), data.families.map((family) => family.name));
  options($("hardware"), data.hardware.map((each) => `${each.name} · ${each.nm} nm`));
  $("family-label").hidden = data.families.length < 2;
  [$("x").value, $("y").value] = [state.x, state.y];
  if (!data.runs.validation.some(known)) $("y").options[1].disabled = true;
  const first = () => {
    const { points, reference } = measured();
    const best = points.find((point) => point.selected && point !== reference) || front(points.filter((point) => point.shown && point !== reference)).at(-1);
    state.picked = [reference, best].filter(Boolean).map((point) => point.number);
  };
  const changes = (id, change) => $(id).addEventListener(id === "filter" || $(id).type === "number" ? "input" : "change", () => { change($(id).value); draw(); });
  changes("family", (value) => { state.family = Number(value); first(); });
  changes("hardware", (value) => { state.hardware = Number(value); });
  changes("x", (value) => { state.x = value; });
  changes("y", (value) => { state.y = value; });
  changes("filter", (value) => { state.filter = value; });
  changes("most", (value) => { state.most = parseFloat(value); });
  changes("least", (value) => { state.least = share(parseFloat(value)); });
  const place = $("front"); // not the svg: with listeners for focus it would be a stop of the Tab key itself
  place.addEventListener("pointermove", (event) => show(nearest(event)));
  place.addEventListener("pointerleave", () => show(null));
  place.addEventListener("click", (event) => { const point = nearest(event); if (point) pick(point.number); });
  place.addEventListener("keydown", walk);
  place.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && show(shown.find((point) => point.mark === event.target)));
  place.addEventListener("focusout", () => show(null));
  first();
  draw();
  let width = $("front").clientWidth;
  new ResizeObserver(() => {
    if (width !== $("front").clientWidth) draw();
    width = $("front").clientWidth;
  }).observe($("front"));
}

begin();
