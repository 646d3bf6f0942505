"use strict";

// Names of objects, tables and projects are other people's text: everything is put into the page as text, never as markup.

const REFRESH_MS = 10_000;
const RETRY_MS = 2_000;
const OLD_MS = 60_000;
const SHOWN = 10;
const ERRORS_SHOWN = 8;
const RANGES = { hour: "Hour", day: "Day", week: "Week" };
const LANES = { sql: "Query jobs", jobs: "Other jobs", windows: "Windows" };
const LANE_COLOURS = { sql: "first", jobs: "second", windows: "third" };
const MARKS = { ok: "✓", warning: "!", error: "✕", unknown: "?" };
const SVG = "http://www.w3.org/2000/svg";

const asked = new URLSearchParams(location.search);
const choice = { setup: "", range: "hour", project: "", ...stored() };
const opened = new Map(); // whether a part that can be folded is open, by its key
const drawn = new Map(); // what a part was made from, by its ID: it is made again only when that has changed
let setups = null;
let state = null;
let failure = "";
let skew = 0; // how far the server's clock is ahead
let timer = 0;
let request = null;

// --- Small tools.

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "rect", "line", "text", "title", "desc", "circle"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== "" && child !== false));
  return node;
}

// A command within a text, as view/suggested_commands.py reads it, or the argument `only`. A backtick of a name stands within the quotes of the shell.
const CODE = /`((?:bqdispatch|gcloud|bq) (?:'[^']*'|"[^"]*"|[^`'"])*|only)`/;

// Text with its `commands` as code.
function withCode(text) {
  return text.split(CODE).map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem("bqdispatch") || "{}");
  } catch {
    return {};
  }
}

function choose(change) {
  Object.assign(choice, change);
  try {
    sessionStorage.setItem("bqdispatch", JSON.stringify(choice));
  } catch { /* Without storage, the choice lasts as long as the page. */ }
  drawControls();
  refresh();
}

function airflow() {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null; // embedded elsewhere
  }
}

const number = (value) => value.toLocaleString("en");
const count = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;
const now = () => Date.now() + skew;

function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10) return `${s.toFixed(1).replace(/\.0$/, "")} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

function zone() {
  try {
    const chosen = JSON.parse(localStorage.getItem("timezone") || "null"); // Airflow's choice
    new Intl.DateTimeFormat("en", { timeZone: chosen || undefined });
    return chosen || undefined;
  } catch {
    return undefined;
  }
}

const clock = (at) => new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: zone() }).format(at);
const day = (at) => new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", timeZone: zone() }).format(at);
const moment = (at) => (now() - at < 72_000_000 ? clock(at) : `${day(at)}, ${clock(at)}`);

function since(text) {
  const at = new Date(text);
  return make("time", { datetime: text, title: at.toUTCString(), "data-since": text }, ago(at));
}

const ago = (at) => `${duration(Math.round((now() - at) / 1000))} (${moment(at)})`;

// --- Links. The page is in a frame that may open no window, so the frame's parent opens them.

function link(text, address, { external = false, label = "" } = {}) {
  if (!address) return null;
  const follow = (event) => {
    const parent = airflow();
    if (!parent) return;
    event.preventDefault();
    const apart = external || event.ctrlKey || event.metaKey || event.shiftKey;
    const made = parent.document.createElement("a");
    made.href = address;
    if (apart) Object.assign(made, { target: "_blank", rel: "noopener noreferrer" });
    parent.document.body.append(made);
    made.click();
    made.remove();
  };
  return make("a", { href: address, onclick: follow, "aria-label": label || null, rel: external ? "noopener noreferrer" : null, target: external ? "_blank" : null }, text);
}

const inAirflow = (...parts) => new URL(`../${parts.map(encodeURIComponent).join("/")}`, document.baseURI.split("?")[0]).href;
const dagPage = (dag) => inAirflow("dags", dag);
const runPage = (dag, run) => inAirflow("dags", dag, "runs", run);
const taskPage = (dag, run, task, index) => inAirflow("dags", dag, "runs", run, "tasks", task, ...(index < 0 ? [] : ["mapped", index]));

// --- Reading.

async function get(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" }, signal: request.signal });
  if (answer.ok) return answer.json();
  const said = { 401: "Your login has ended. Log in to Airflow again.", 403: "Airflow refuses your login. Log in again." }[answer.status]
    || (answer.status === 503 && (await answer.json().catch(() => null))?.detail); // a journal has not been read yet
  const error = new Error(said || `Airflow answered with ${answer.status}. If that goes on, look at the log of the API server.`);
  error.status = answer.status;
  throw error;
}

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  request?.abort();
  const mine = (request = new AbortController());
  const timeout = setTimeout(() => mine.abort("timeout"), 20_000);
  let unread = false;
  try {
    setups = (await get("api/setups")).setups;
    pick();
    if (choice.setup) {
      const query = new URLSearchParams({ setup: choice.setup, range: choice.range, project: choice.project });
      state = await get(`api/state?${query}`);
      skew = new Date(state.now) - Date.now();
    } else {
      state = null;
    }
    failure = "";
  } catch (error) {
    unread = error.status === 503;
    if (mine.signal.aborted && mine.signal.reason !== "timeout") return; // a newer request is under way
    failure = error instanceof TypeError || mine.signal.aborted ? "Airflow cannot be reached. The page tries again every ten seconds." : error.message;
  } finally {
    clearTimeout(timeout);
  }
  if (mine !== request) return;
  draw();
  timer = setTimeout(refresh, unread || (state && !state.whole && !failure) ? RETRY_MS : REFRESH_MS);
}

function pick() {
  const dag = asked.get("dag");
  const wanted = dag ? setups.filter((each) => each.dags.includes(dag)) : setups;
  if (!wanted.some((each) => each.id === choice.setup)) choice.setup = wanted[0]?.id ?? "";
}

// --- Drawing.

function draw() {
  const active = document.activeElement?.dataset?.key;
  // Read here, not at each toggle: a browser tells of a toggle only after the click, when all may be drawn again already.
  for (const summary of document.querySelectorAll("summary[data-key]")) opened.set(summary.dataset.key, summary.parentElement.open);
  drawControls();
  const main = document.getElementById("main");
  main.setAttribute("aria-busy", "false");
  main.querySelector(":scope > .loading")?.remove();
  const parts = failure && !state ? { failure: [failure, failed] } : sections();
  for (const id of [...drawn.keys()]) {
    if (id in parts) continue;
    document.getElementById(`part-${id}`)?.remove();
    drawn.delete(id);
  }
  let before = null;
  for (const [id, [data, build]] of Object.entries(parts)) {
    const text = JSON.stringify(data);
    let node = document.getElementById(`part-${id}`);
    if (!node || drawn.get(id) !== text) {
      const made = build(data);
      made.id = `part-${id}`;
      if (node) node.replaceWith(made);
      else if (before) before.after(made);
      else main.prepend(made);
      node = made;
      drawn.set(id, text);
    }
    before = node;
  }
  if (active && document.activeElement === document.body) {
    document.querySelector(`[data-key="${CSS.escape(active)}"]`)?.focus({ preventScroll: true });
  }
  const said = failure || (state ? `${state.overview.health.sentence} ${state.overview.health.next_step}` : "");
  const spoken = document.getElementById("spoken");
  if (spoken.textContent !== said) spoken.textContent = said;
  tick();
}

function sections() {
  if (!state) return { empty: [[setups, asked.get("dag")], noSetups] };
  const view = state.overview;
  const started = state.series.some((point) => point.seen || point.lags || Object.values(point.dispatched).some(Boolean));
  const parts = { health: [{ ...view.health, failure }, health] };
  const problems = [...(failure ? [`${failure} What you see is from before.`] : []), ...view.problems];
  if (problems.length && (failure || view.health.level !== "unknown" || problems.length > 1)) parts.problems = [problems, (all) => notes(all, "What is missing")];
  if (view.newest_errors.length || view.hidden_errors) parts.errors = [[view.newest_errors, view.lanes, view.other_errors, view.hidden_errors, state.project], errors];
  parts.runs = [[state.runs, state.dags], runs];
  if (!view.seen && !started) {
    if (state.whole) parts.start = [[state.setup, state.dags], noRuns];
    if (view.quarantine.length) parts.quarantine = [[view.quarantine, state.quarantined], quarantine];
    return parts;
  }
  const scope = [state.range, state.project];
  parts.tiles = [[view.lanes, state.figures, view.reasons, oldest(view), ...scope, state.quarantined], tiles];
  parts.reasons = [[view.waiting, view.reasons, view.unnamed, view.not_due, view.not_due_count, state.project, state.dags, state.runs], reasons];
  parts.dispatched = [[state.series, ...scope], dispatchedChart];
  parts.waiting = [[state.series, ...scope], waitingChart];
  parts.lag = [[state.series, ...scope], lagChart];
  parts.lanes = [[view.lanes, state.figures, ...scope], lanes];
  parts.limits = [[view.limits, state.setup, state.project], limits];
  parts.quarantine = [[view.quarantine, state.quarantined], quarantine];
  parts.setup = [[state.setup, state.dags], about];
  return parts;
}

function drawControls() {
  const nav = document.getElementById("setups");
  const many = (setups ?? []).length > 1;
  nav.hidden = !many;
  fill(nav, many ? setups : [], (each) =>
    make("button", { type: "button", "data-key": `setup ${each.id}`, "aria-pressed": String(each.id === choice.setup), title: each.health.sentence, onclick: () => choose({ setup: each.id, project: "" }) },
      make("span", { class: `dot ${each.health.level}`, role: "img", "aria-label": each.health.level }), each.name), choice.setup);
  fill(document.getElementById("ranges"), Object.keys(RANGES), (range) =>
    make("button", { type: "button", "data-key": `range ${range}`, "aria-pressed": String(range === choice.range), onclick: () => choose({ range }) }, RANGES[range]), choice.range);
  const projects = state ? [...new Set([...state.overview.projects, choice.project].filter(Boolean))] : [];
  const select = document.getElementById("project");
  fill(select, ["", ...projects], (project) => make("option", { value: project, selected: project === choice.project }, project || "all"), choice.project);
  select.onchange = () => choose({ project: select.value });
}

function fill(node, values, build, chosen) {
  const text = JSON.stringify([values, chosen]);
  if (node.dataset.made === text) return;
  const active = node.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  node.replaceChildren(...values.map(build));
  node.dataset.made = text;
  if (active) node.querySelector(`[data-key="${CSS.escape(active)}"]`)?.focus();
}

function card(title, more, ...children) {
  return make("section", { class: "card" }, make("header", {}, make("h2", {}, title, more && make("small", {}, more))), ...children);
}

const empty = (title, text) => make("p", { class: "empty" }, make("strong", {}, title), text);
const whole = (project) => (project ? "· all projects" : "");
const inRange = (range) => `in the last ${range}`;

function failed(said) {
  return make("section", { class: "health unknown", role: "alert" }, make("span", { class: "mark", "aria-hidden": "true" }, "?"),
    make("div", {}, make("p", { class: "sentence" }, "This page cannot be filled."), make("p", { class: "next" }, said)));
}

function health(data) {
  return make("section", { class: `health ${data.level}`, "aria-label": "Health" },
    make("span", { class: "mark", role: "img", "aria-label": data.level }, MARKS[data.level]),
    make("div", {}, make("p", { class: "sentence" }, data.sentence), data.next_step && make("p", { class: "next" }, withCode(data.next_step))));
}

const notes = (problems, label) => make("ul", { class: "notes", "aria-label": label }, problems.map((each) => make("li", {}, each)));

function errors([newest, byLane, others, hidden, project]) {
  const numbers = [...Object.entries(LANES).map(([lane, name]) => [name, byLane[lane].errors]), ["of no lane alone", others]].filter(([, value]) => value);
  const total = numbers.reduce((sum, [, value]) => sum + value, 0);
  const shown = newest.slice(0, opened.get("all errors") ? newest.length : ERRORS_SHOWN);
  const showAll = () => {
    opened.set("all errors", true);
    drawn.delete("errors");
    draw();
  };
  return card("Errors of the last run", numbers.map(([name, value]) => `${name}: ${number(value)}`).join(" · "),
    make("ul", { class: "notes errors", "aria-label": "Errors, the newest first" }, shown.map((each) => make("li", {},
      make("span", { class: "dim" }, [LANES[each.lane], each.project && `project ${each.project}`].filter(Boolean).join(", "), each.lane || each.project ? ": " : ""), each.said))),
    shown.length < newest.length && make("p", {}, make("button", { type: "button", "data-key": "all errors", onclick: showAll }, `Show ${number(newest.length)}`)),
    make("p", { class: "foot" }, "The newest come first; each is listed once for a run.",
      total > newest.length && ` The other ${number(total - newest.length)} are in its response document.`,
      project && newest.some((each) => !each.project) && " Those of no project alone are shown with each.",
      hidden > 0 && ` ${count(hidden, "error")} of other projects ${hidden === 1 ? "is" : "are"} left out.`));
}

function noSetups([known, dag]) {
  if (dag && known?.length) {
    const show = () => {
      asked.delete("dag");
      choose({ setup: "" });
    };
    return card(`Nothing of the DAG ${dag}`, "", empty("No run of this DAG has dispatched anything in the last week.", "So no set-up's history names it."),
      make("p", { class: "foot" }, make("button", { type: "button", onclick: show }, "Show all set-ups")));
  }
  return card("Nothing to show yet", "", empty("There is no set-up that you may see.",
    "Make a connection of type bqdispatch, and switch on a DAG that dispatches with it. A set-up is shown to whoever may read one of its DAGs."));
}

function noRuns([setup, dags]) {
  return card("No run has left figures yet", "", make("p", { class: "empty" }, make("strong", {}, `The journal ${setup.journal || "of this set-up"} has no history.`),
    "Switch on the DAG ", dags.map((dag, index) => [index ? ", " : "", link(dag, dagPage(dag))]), ", and see that its first run is green. Its figures are here a few seconds later."));
}

function runs([all, dags]) {
  const rows = all.map((each) => make("tr", {},
    make("th", { scope: "row" }, link(each.dag, dagPage(each.dag)), " ", each.paused && make("span", { class: "tag paused" }, "paused: switch it on")),
    make("td", { "data-label": "last run" }, each.run ? [tag(each.state), " ", link(each.started ? since(each.started) : each.run, runPage(each.dag, each.run), { label: `Run ${each.run}` })] : make("span", { class: "dim" }, "no run in this Airflow")),
    make("td", { "data-label": "tasks" }, make("span", { class: "links" }, tasks(each)))));
  const hidden = dags.filter((dag) => !all.some((each) => each.dag === dag));
  return card("DAGs", "", rows.length > 0 && make("table", { class: "stack" },
    make("thead", {}, make("tr", {}, ["DAG", "last run", "its tasks"].map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, rows)),
  hidden.length > 0 && make("p", { class: "dim" }, "You may not read the runs of ", hidden.map((dag, index) => [index ? ", " : "", link(dag, dagPage(dag))]), "."));
}

const tag = (state_, times = 1) => make("span", { class: `tag ${state_}` }, times > 1 ? `${number(times)} × ` : "", state_ === "none" ? "no status" : state_.replaceAll("_", " "));

function tasks(run) {
  const groups = new Map(); // a mapped task has one entry for each state of its instances
  for (const each of run.tasks) {
    const key = JSON.stringify([each.task, each.state]);
    groups.set(key, { ...(groups.get(key) ?? each), number: (groups.get(key)?.number ?? 0) + 1 });
  }
  return [...groups.values()].map((each) => make("span", { class: "nowrap" },
    link(each.task, taskPage(run.dag, run.run, each.task, each.map_index), { label: `Task ${each.task}, ${each.state}` }), " ",
    tag(each.state, each.number)));
}

function oldest(view) {
  return view.waiting.reduce((first, each) => (!first || each.since < first ? each.since : first), "");
}

function tiles([byLane, figures, waits, first, range, project, held]) {
  const sum = (key) => Object.values(byLane).reduce((total, lane) => total + lane[key], 0);
  const done = Object.values(figures.dispatched).reduce((a, b) => a + b, 0);
  const late = Object.values(waits).reduce((a, b) => a + b, 0);
  const tile = (label, value, more, kind = "") => make("div", { class: `tile ${kind}` }, make("div", { class: "label" }, label), make("div", { class: "value" }, value), make("div", { class: "more" }, more));
  const lag = (value) => (value === null ? "–" : duration(value));
  return make("section", { class: "card tiles", "aria-label": "Numbers" },
    tile("Running", number(sum("running")), "jobs now"),
    tile("Pending", number(sum("pending")), "jobs, and windows not due"),
    tile("Throttled", number(sum("throttled")), "for a slot now", sum("throttled") ? "notice" : ""),
    tile("Waiting", number(late), ["over a minute; ", first ? ["oldest ", make("time", { datetime: first, "data-since": first, "data-short": "1" })] : "none"]),
    tile("Dispatched", number(done), inRange(range)),
    tile("Lag, median", lag(figures.lag_median), figures.lags ? `95 %: ${lag(figures.lag_p95)}` : "nothing dispatched"),
    tile("Errors", number(figures.failed), inRange(range), figures.failed ? "alert" : ""),
    tile("Quarantine", number(held), `objects ${whole(project)}`, held ? "notice" : ""));
}

// --- Charts.

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
  const labelled = choice.range === "week" ? points.map((point, index) => [point, index]).filter(([point, index]) => index && new Date(point.at).getUTCHours() === 0) : points.map((point, index) => [point, index]).filter(([, index]) => index % every === 0);
  for (const [point, index] of labelled) {
    const text = choice.range === "week" ? day(new Date(point.at)).split(" ").slice(0, 2).join(" ") : clock(new Date(point.at));
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

function dispatchedChart([points, range]) {
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

function waitingChart([points, range]) {
  const most = Math.max(0, ...points.flatMap((point) => STATES.map(([, key]) => point[key] ?? 0)));
  const words = (value) => (value === null ? "not seen" : number(value));
  return chartCard("Running and waiting", "when last seen", STATES.map(([name, , colour]) => [name, colour]), points, STATES.map(([name, key]) => [name, (point) => words(point[key])]), (width) => {
    const axis = axes(width, points, most, short, "Running and waiting", `at most ${number(most)} ${inRange(range)}; gaps where no run has looked`);
    for (const [, key, colour] of [...STATES].reverse()) lines(axis, points, (point) => point[key], colour);
    hits(axis, points, (point) => STATES.map(([name, key]) => `${name}: ${words(point[key])}`).join("\n"));
    return axis.svg;
  }, "table waiting");
}

function lagChart([points, range]) {
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

// --- Tables.

const cell = (value) => make("td", { class: `number ${value ? "" : "zero"}` }, number(value));

function lanes([byLane, figures, range, project]) {
  const keys = ["running", "pending", "throttled", "errors"];
  const sums = keys.map((key) => Object.values(byLane).reduce((total, lane) => total + lane[key], 0));
  const done = Object.values(figures.dispatched).reduce((a, b) => a + b, 0);
  const made = card("Lanes", `now, and dispatched ${inRange(range)}`, make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "lane"), [...keys, "dispatched"].map((text) => make("th", { scope: "col", class: "number" }, text)))),
    make("tbody", {}, Object.entries(LANES).map(([lane, name]) => make("tr", {}, make("th", { scope: "row" }, name), keys.map((key) => cell(byLane[lane][key])), cell(figures.dispatched[lane])))),
    make("tfoot", {}, make("tr", {}, make("th", { scope: "row" }, "All"), [...sums, done].map((value) => make("td", { class: "number" }, number(value))))))),
  make("dl", { class: "facts", "aria-label": `Windows and errors ${inRange(range)}` },
    [["windows due, not fired", figures.windows_due], ["windows fired", figures.dispatched.windows], ["late windows removed", figures.late], ["errors, all lanes", figures.failed], ["quarantined", figures.quarantined]]
      .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { class: value ? null : "zero" }, number(value))))),
  make("p", { class: "foot" }, `In the table errors are those of the last run, below it those ${inRange(range)}.`,
    project && " Late windows are those of all projects, and an error that names none is counted with no project."));
  made.classList.add("half");
  return made;
}

function limits([uses, setup]) {
  const rows = uses.map((use) => {
    const share = Math.min(100, Math.round((100 * use.taken) / use.limit));
    const bar = make("i");
    bar.style.width = `${share}%`;
    const pool = use.pool && (make("span", { class: use.pool_problem ? "mark-warning" : null }, use.pool_problem ? "⚠ " : "", use.pool_slots === null ? "missing" : `${number(use.pool_taken)} of ${use.pool_slots < 0 ? "no limit" : number(use.pool_slots)}`));
    return make("tr", {}, make("th", { scope: "row" }, use.project, make("div", { class: "dim" }, use.key)),
      make("td", { class: "nowrap", "data-label": "slots taken" }, `${number(use.taken)} of ${number(use.limit)}`, make("span", { class: `meter ${share >= 100 ? "full" : ""}`, "aria-hidden": "true" }, bar)),
      make("td", { class: "number", "data-label": "waiting for one" }, number(use.waiting)),
      make("td", { "data-label": "pool" }, pool || make("span", { class: "dim" }, "–"), use.pool && make("div", { class: "dim" }, use.pool)));
  });
  const wrong = [...new Set(uses.map((use) => use.pool_problem).filter(Boolean))];
  const made = card("Limits and pools", "now", rows.length ? make("table", { class: "stack" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "limit of a project"), make("th", { scope: "col" }, "slots taken"), make("th", { scope: "col", class: "number" }, "waiting"), make("th", { scope: "col" }, "pool, slots taken by tasks"))), make("tbody", {}, rows))
    : empty("There is no limit.", "Limits are MaxConcurrentSQL and MaxConcurrentJobs of the configuration."),
  wrong.length > 0 && notes(wrong, "Pools that disagree with their limits"));
  made.classList.add("half");
  return made;
}

function reasons([events, numbers, unnamed, notDue, notDueCount, project, dags, lastRuns]) {
  const groups = new Map();
  for (const event of events) groups.set(event.reason, [...(groups.get(event.reason) ?? []), event]);
  for (const reason of Object.keys(numbers)) if (!groups.has(reason)) groups.set(reason, []);
  const more = project ? "for over a minute, of this project" : "for over a minute; what needs somebody comes first";
  const made = card("What waits, and why", more, groups.size === 0 && !notDueCount && empty("Nothing has waited for more than a minute.", "An event that does is listed here, with the reason and what happens next."));
  made.append(...[...groups].map(([reason, found]) => group(reason, found, numbers[reason] ?? found.length, dags, lastRuns)));
  if (notDueCount) made.append(group(notDue[0]?.reason ?? "not due", notDue, notDueCount, dags, lastRuns));
  if (unnamed) made.append(make("p", { class: "foot" }, `${count(unnamed, "further event")} of all projects ${unnamed === 1 ? "waits" : "wait"}; the response document of the run counts them, and names none.`));
  return made;
}

/** The link to the task that has the event in its hands: of the last run, and of its lane where several dispatch. */
function taskOf(event, dags, lastRuns) {
  for (const run of lastRuns) {
    const found = run.tasks.filter((each) => each.dispatches);
    const own = found.filter((each) => each.task.includes(event.lane === "sql" ? "sql" : "jobs"));
    const [task] = own.length ? own : found;
    if (task) return link("Task", taskPage(run.dag, run.run, task.task, task.map_index), { label: `Task ${task.task} of ${run.dag}` });
  }
  return dags.slice(0, 1).map((dag) => link("DAG", dagPage(dag), { label: `DAG ${dag}` }));
}

function group(reason, events, total, dags, lastRuns) {
  const key = `reason ${reason}`;
  const known = events[0];
  const attention = Boolean(known?.needs_attention);
  const comes = events.some((event) => new Date(event.since) > now()); // a window waits for a time that has not come
  const first = comes ? "" : events.reduce((found, event) => (!found || event.since < found ? event.since : found), "");
  const steps = new Set(events.map((event) => event.next_step));
  const same = steps.size === 1 ? known.next_step : known?.advice;
  const words = new Set(events.map((event) => event.said));
  const shared = words.size === 1 && events.length > 1 ? known.said : "";
  const limit = opened.get(`all ${reason}`) ? events.length : SHOWN;
  const rows = events.slice(0, limit).map((event) => make("tr", {},
    make("td", {}, make("div", { class: "name" }, event.name), event.said && event.said !== shared && make("div", { class: "said" }, `${event.said}${event.times > 1 ? ` (${number(event.times)} cycles)` : ""}`), explanation(event)),
    make("td", { class: "nowrap", "data-label": comes ? "due at" : "since" }, comes ? moment(new Date(event.since)) : since(event.since)),
    make("td", {}, make("span", { class: "links" }, link("Object", event.console, { external: true, label: `Object ${event.name}` }), link("Job", event.job, { external: true, label: `Job ${event.job_id}` }), taskOf(event, dags, lastRuns)))));
  const hidden = total - Math.min(limit, events.length);
  const showAll = (click) => {
    opened.set(`all ${reason}`, true);
    drawn.delete("reasons");
    click.preventDefault();
    draw();
  };
  return make("details", { class: `reason ${attention ? "attention" : ""}`, open: opened.get(key) ?? (attention || events.length <= 5) },
    make("summary", { "data-key": key }, make("span", { class: `what ${attention ? "mark-warning" : ""}` }, `${number(total)} · ${reason}`), make("span", { class: "meaning" }, known?.meaning ?? ""),
      first && make("span", { class: "oldest" }, "oldest ", make("time", { datetime: first, "data-since": first, "data-short": "1" }, ""))),
    make("div", { class: "inside" }, known && make("div", { class: "step" }, withCode(same), shared && make("div", { class: "said" }, `In detail, of each: ${shared}`)),
      rows.length > 0 && make("table", { class: "stack events" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "event"), make("th", { scope: "col", class: "since" }, comes ? "due at" : "waits since"), make("th", { scope: "col", class: "look" }, "look at"))), make("tbody", {}, rows)),
      limit < events.length && make("p", {}, make("button", { type: "button", "data-key": `all ${reason}`, onclick: showAll }, `Show all ${number(events.length)}`)),
      hidden > 0 && limit >= events.length && make("p", { class: "dim" }, `and ${number(hidden)} more; bqdispatch explain tells of each`)));
}

// The explanation of one event, in the words of `bqdispatch explain`; it came with the event.
function explanation(event) {
  const key = `explain ${event.name}`;
  return make("details", { class: "explanation", open: opened.get(key) ?? false },
    make("summary", { "data-key": key, "aria-label": `Explain ${event.name}` }, "Explain"),
    make("dl", {}, [["where", event.url], ["state", event.state], ["why", event.details.map((each) => make("p", {}, withCode(each)))], ["next", withCode(event.next_step)]]
      .map(([name, told]) => [make("dt", {}, name), make("dd", {}, told)])));
}

function quarantine([held, total]) {
  const rows = held.map((each) => make("tr", {},
    make("td", { class: "name" }, link(each.url, each.console, { external: true }) ?? each.url),
    make("td", { "data-label": "reason" }, each.reason),
    make("td", { class: "nowrap", "data-label": "since" }, since(each.since)),
    make("td", {}, make("div", { class: "command" }, make("code", {}, each.command), copyButton(each.command)))));
  return card("Quarantine", total ? count(total, "object") : "", total === 0 && empty("Nothing is in quarantine.", "What must not be dispatched is kept here, with the reason and the command that puts it back."),
    total > 0 && make("table", { class: "stack" }, make("thead", {}, make("tr", {}, ["object", "reason", "since", "put it back with"].map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, rows)),
    total > held.length && make("p", { class: "dim" }, `and ${number(total - held.length)} more; bqdispatch status --json lists all`));
}

function copyButton(text) {
  const button = make("button", { type: "button", "data-key": `copy ${text}`, "aria-label": "Copy the command" }, "Copy");
  button.addEventListener("click", async () => {
    let copied = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // not over plain http
      const field = make("textarea", { readonly: true, "aria-hidden": "true" });
      field.value = text;
      document.body.append(field);
      field.select();
      copied = document.execCommand("copy");
      field.remove();
      button.focus();
    }
    button.textContent = copied ? "Copied" : "Press Ctrl-C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}

function about([setup, dags]) {
  return make("p", { class: "dim" }, "Connection ", make("code", {}, setup.id), " · task folder ", make("code", {}, setup.folder), " · journal ", make("code", {}, setup.journal), " · dispatched by ",
    dags.map((dag, index) => [index ? ", " : "", link(dag, dagPage(dag))]));
}

// --- What goes on by itself.

function tick() {
  for (const node of document.querySelectorAll("[data-since]")) {
    const at = new Date(node.dataset.since);
    node.textContent = node.dataset.short ? duration(Math.round((now() - at) / 1000)) : ago(at);
  }
  const age = document.getElementById("age");
  if (!state) return void (age.textContent = "");
  const read = state.whole && new Date(state.whole);
  const old = !read || now() - read > OLD_MS;
  age.classList.toggle("old", Boolean(old && state.read));
  const text = read ? `read ${duration(Math.round((now() - read) / 1000))} ago` : "not read yet";
  if (age.textContent !== text) age.textContent = text;
}

function takeTheme() {
  const parent = airflow();
  const wanted = parent ? parent.document.documentElement.className : "";
  const dark = /\b(dark|light)\b/.test(wanted) ? /\bdark\b/.test(wanted) : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

takeTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", takeTheme);
if (airflow()) new MutationObserver(takeTheme).observe(airflow().document.documentElement, { attributes: true, attributeFilter: ["class"] });
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
setInterval(tick, 1000);
drawControls();
refresh();
