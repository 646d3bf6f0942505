// The charts, each an SVG with a table of the same numbers.

import { card, choice, clock, count, day, duration, inRange, LANE_COLOURS, LANES, make, number, opened } from "./parts.js";

function chartCard(title, more, legend, points, columns, draw_, id) {
  const made = card(title, more);
  made.classList.add("chart");
  made.firstChild.append(make("ul", { class: "legend" }, legend.map(([name, colour]) => make("li", { class: colour }, make("i", { "aria-hidden": "true" }), name))));
  const holder = make("div");
  made.append(holder);
  const table = make("details", { open: opened.get(id) ?? false }, make("summary", { "data-key": id }, "As a table"));
  const rows = points.map((point) => make("tr", {}, make("th", { scope: "row", class: "nowrap" }, stamp(point)), columns.map(([, read]) => make("td", { class: "number" }, read(point)))));
  table.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title} as a table` }, make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "from"), columns.map(([name]) => make("th", { scope: "col", class: "number" }, name)))), make("tbody", {}, rows.reverse()))));
  made.append(table);
  const paint = () => {
    const width = Math.round(holder.clientWidth);
    if (width && holder.dataset.width !== String(width)) {
      holder.dataset.width = String(width);
      holder.replaceChildren(draw_(width));
    }
  };
  new ResizeObserver(paint).observe(holder);
  return made;
}

const stamp = (point) => (choice.range === "week" ? `${day(new Date(point.at))} ${clock(new Date(point.at))}` : clock(new Date(point.at)));

function axes(width, points, top, format, name, description) {
  const height = 150, left = 36, bottom = 20, inner = width - left - 4, ceiling = nice(top);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name}: ${description}` }, make("title", {}, name), make("desc", {}, description));
  const y = (value) => 6 + (1 - value / ceiling) * (height - bottom - 6);
  const step = inner / points.length;
  for (const part of [0, 0.5, 1]) {
    const at = Math.round(y(ceiling * part)) + 0.5;
    svg.append(make("line", { class: "grid", x1: left, x2: width - 4, y1: at, y2: at }), make("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, format(ceiling * part)));
  }
  const every = Math.ceil(points.length / Math.max(2, Math.floor(inner / 90)));
  const days = points.map((point) => day(new Date(point.at))); // those of the reader's clock
  const isLabelled = (index) => (choice.range === "week" ? index && days[index] !== days[index - 1] : index % every === 0);
  for (const [point, index] of points.map((point, index) => [point, index]).filter(([, index]) => isLabelled(index))) {
    const text = choice.range === "week" ? days[index].split(" ").slice(0, 2).join(" ") : clock(new Date(point.at));
    const x = left + step * index;
    if (x + 34 < width) svg.append(make("text", { x: x + (index ? step / 2 : 0), y: height - 4, "text-anchor": index ? "middle" : "start" }, text));
  }
  return { svg, y, step, x: (index) => left + step * index, base: y(0), top: 6 };
}

function nice(top) {
  const size = 10 ** Math.floor(Math.log10(Math.max(top, 1)));
  const found = [1, 2, 4, 6, 8, 10].map((each) => each * size).find((each) => each >= top) ?? size * 10;
  return Math.max(found, 2);
}

function hits(axis, points, words) {
  points.forEach((point, index) => axis.svg.append(make("rect", { class: "hit", x: axis.x(index), y: axis.top, width: axis.step, height: axis.base - axis.top }, make("title", {}, `${stamp(point)}\n${words(point)}`))));
}

const short = (value) => (value >= 1e6 ? `${+(value / 1e6).toFixed(1)}M` : value >= 1000 ? `${+(value / 1000).toFixed(1)}k` : `${+value.toFixed(1)}`);

function bars(axis, points, parts) {
  const gap = Math.min(2, axis.step * 0.2);
  points.forEach((point, index) => {
    let below = 0;
    for (const [read, colour] of parts) {
      const value = read(point);
      if (!value) continue;
      const bottom = axis.y(below), top = axis.y(below + value);
      axis.svg.append(make("rect", { class: `bar ${colour}`, x: axis.x(index) + gap / 2, y: top, width: Math.max(1, axis.step - gap), height: Math.max(0.5, bottom - top) }));
      below += value;
    }
  });
}

function lines(axis, points, read, colour) {
  let path = "", before = false;
  points.forEach((point, index) => {
    const value = read(point);
    const there = value !== null && value !== undefined;
    const at = there && [axis.x(index) + axis.step / 2, axis.y(value)].map((each) => each.toFixed(1)).join(" ");
    if (there) {
      path += `${before ? "L" : "M"}${at}`;
      const next = points[index + 1] && read(points[index + 1]);
      if (!before && (next === null || next === undefined)) axis.svg.append(make("circle", { class: `spot ${colour}`, cx: at.split(" ")[0], cy: at.split(" ")[1], r: 2.5 }));
    }
    before = there;
  });
  axis.svg.append(make("path", { class: `line ${colour}`, d: path }));
}

const each = (range) => ({ hour: "each 5 minutes", day: "each half hour", week: "each 3 hours" })[range];

export function dispatchedChart([points, range]) {
  const all = (point) => Object.values(point.dispatched).reduce((a, b) => a + b, 0);
  const total = points.reduce((sum, point) => sum + all(point), 0);
  const most = Math.max(0, ...points.map(all));
  const parts = Object.entries(LANE_COLOURS).map(([lane, colour]) => [(point) => point.dispatched[lane], colour]);
  const columns = [...Object.entries(LANES).map(([lane, name]) => [name, (point) => number(point.dispatched[lane])]), ["Errors", (point) => number(point.failed)]];
  return chartCard("Dispatched", each(range), Object.entries(LANES).map(([lane, name]) => [name, LANE_COLOURS[lane]]), points, columns, (width) => {
    const axis = axes(width, points, most, short, "Dispatched events", `${count(total, "event")} ${inRange(range)}, at most ${number(most)} ${each(range)}`);
    bars(axis, points, parts);
    hits(axis, points, (point) => columns.map(([name, read]) => `${name}: ${read(point)}`).join("\n"));
    return axis.svg;
  }, "table dispatched");
}

const STATES = [["Running", "running", "first"], ["Pending", "pending", "grey"], ["Throttled", "throttled", "fourth"], ["Waiting", "waiting", "third"]];

export function waitingChart([points, range]) {
  const most = Math.max(0, ...points.flatMap((point) => STATES.map(([, key]) => point[key] ?? 0)));
  const words = (value) => (value === null ? "not seen" : number(value));
  return chartCard("Running and waiting", "when last seen", STATES.map(([name, , colour]) => [name, colour]), points, STATES.map(([name, key]) => [name, (point) => words(point[key])]), (width) => {
    const axis = axes(width, points, most, short, "Running and waiting", `at most ${number(most)} ${inRange(range)}; gaps where no run has looked`);
    for (const [, key, colour] of [...STATES].reverse()) lines(axis, points, (point) => point[key], colour);
    hits(axis, points, (point) => STATES.map(([name, key]) => `${name}: ${words(point[key])}`).join("\n"));
    return axis.svg;
  }, "table waiting");
}

export function lagChart([points, range]) {
  const most = Math.max(0, ...points.map((point) => point.lag_p95 ?? 0));
  const words = (value) => (value === null ? "–" : duration(value));
  const both = [["Median", "lag_median", "first"], ["95 % are quicker", "lag_p95", "fourth"]];
  return chartCard("Lag", "from a job's end", both.map(([name, , colour]) => [name, colour]), points, both.map(([name, key]) => [name, (point) => words(point[key])]), (width) => {
    const axis = axes(width, points, most, (value) => (value ? duration(value).replace(" ", "\u202f") : "0"), "Lag", `from a job's end to the dispatch of its event, ${inRange(range)}; at most ${words(most)}`);
    for (const [, key, colour] of [...both].reverse()) lines(axis, points, (point) => point[key], colour);
    hits(axis, points, (point) => both.map(([name, key]) => `${name}: ${words(point[key])}`).join("\n"));
    return axis.svg;
  }, "table lag");
}
