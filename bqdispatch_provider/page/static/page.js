// The page reads how dispatching goes, draws what has changed, and reads again.

import { about, errors, failed, health, lanes, limits, noRuns, noSetups, oldest, quarantine, reasons, runs, tiles } from "./cards.js";
import { dispatchedChart, lagChart, waitingChart } from "./charts.js";
import { ago, airflow, asked, choice, duration, make, notes, now, opened, RANGES, server } from "./parts.js";

const REFRESH_MS = 10_000;
const RETRY_MS = 2_000;
const OLD_MS = 60_000;

const drawn = new Map(); // what a part was made from, by its ID: it is made again only when that has changed
let setups = null;
let state = null;
let failure = "";
let isReading = false; // a journal is read for the first time
let timer = 0;
let request = null;

export function choose(change) {
  Object.assign(choice, change);
  try {
    sessionStorage.setItem("bqdispatch", JSON.stringify(choice));
  } catch { /* Without storage, the choice lasts as long as the page. */ }
  drawControls();
  refresh();
}

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
  isReading = false;
  try {
    setups = (await get("api/setups")).setups;
    pick();
    if (choice.setup) {
      const query = new URLSearchParams({ setup: choice.setup, range: choice.range, project: choice.project });
      state = await get(`api/state?${query}`);
      server.aheadMs = new Date(state.now) - Date.now();
    } else {
      state = null;
    }
    failure = "";
  } catch (error) {
    if (mine.signal.aborted && mine.signal.reason !== "timeout") return; // a newer request is under way
    isReading = error.status === 503;
    failure = error instanceof TypeError || mine.signal.aborted ? "Airflow cannot be reached. The page tries again every ten seconds." : error.message;
  } finally {
    clearTimeout(timeout);
  }
  if (mine !== request) return;
  draw();
  timer = setTimeout(refresh, isReading || (state?.unread && !failure) ? RETRY_MS : REFRESH_MS);
}

function pick() {
  const dag = asked.get("dag");
  const wanted = dag ? setups.filter((each) => each.dags.includes(dag)) : setups;
  if (wanted.some((each) => each.id === choice.setup)) return;
  if (choice.setup) choice.project = ""; // it is the former set-up's
  choice.setup = wanted[0]?.id ?? "";
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
  const parts = failure && !state ? { failure: [[failure, isReading], failed] } : sections();
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

// Make a part again though nothing has been told anew: somebody has asked for more of it.
export function redraw(id) {
  drawn.delete(id);
  draw();
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
  parts.tiles = [[view.lanes, state.figures, view.reasons, oldest(view), ...scope, state.quarantined, view.is_current], tiles];
  parts.reasons = [[view.waiting, view.reasons, view.unnamed, view.not_due, view.not_due_count, state.project, state.dags, state.runs, view.is_current], reasons];
  parts.dispatched = [[state.series, ...scope], dispatchedChart];
  parts.waiting = [[state.series, ...scope], waitingChart];
  parts.lag = [[state.series, ...scope], lagChart];
  parts.lanes = [[view.lanes, state.figures, ...scope, view.is_current], lanes];
  if (view.is_current) parts.limits = [[view.limits, state.setup, state.project], limits];
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
  const text = read ? `read ${duration(Math.round((now() - read) / 1000))} ago` : state.unread ? "not read yet" : "not all is read";
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
