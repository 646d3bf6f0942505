// What all of the page is made with: elements, numbers and times in words, links, and what the visitor has chosen.
//
// Names of objects, tables and projects are other people's text: everything is put into the page as text, never as markup.

export const RANGES = { hour: "Hour", day: "Day", week: "Week" };
export const LANES = { sql: "Query jobs", jobs: "Other jobs", windows: "Windows" };
export const LANE_COLOURS = { sql: "first", jobs: "second", windows: "third" };
const SVG = "http://www.w3.org/2000/svg";

export const asked = new URLSearchParams(location.search);
export const choice = { setup: "", range: "hour", project: "", ...stored() };
export const opened = new Map(); // whether a part that can be folded is open, by its key
export const server = { aheadMs: 0 }; // its clock

export function make(tag, attributes = {}, ...children) {
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

// A command as code, which breaks between its words: an option that breaks at a hyphen is typed wrong.
export function command(text) {
  return make("code", {}, text.split(/( )/).map((word) => (word === " " ? word : make("span", {}, word))));
}

// Text with its `commands` as code.
export function withCode(text) {
  return text.split(CODE).map((part, index) => (index % 2 ? command(part) : part));
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem("bqdispatch") || "{}");
  } catch {
    return {};
  }
}

export function airflow() {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null; // embedded elsewhere
  }
}

export const number = (value) => value.toLocaleString("en");
export const count = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;
export const now = () => Date.now() + server.aheadMs;

export function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10) return `${s.toFixed(1).replace(/\.0$/, "")} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

export function zone() {
  try {
    const chosen = JSON.parse(localStorage.getItem("timezone") || "null"); // Airflow's choice
    new Intl.DateTimeFormat("en", { timeZone: chosen || undefined });
    return chosen || undefined;
  } catch {
    return undefined;
  }
}

export const clock = (at) => new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: zone() }).format(at);
export const day = (at) => new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", timeZone: zone() }).format(at);
export const moment = (at) => (now() - at < 72_000_000 ? clock(at) : `${day(at)}, ${clock(at)}`);

export function since(text) {
  const at = new Date(text);
  return make("time", { datetime: text, title: at.toUTCString(), "data-since": text }, ago(at));
}

export const ago = (at) => `${duration(Math.round((now() - at) / 1000))} (${moment(at)})`;

// --- Links. The page is in a frame that may open no window, so the frame's parent opens them.

export function link(text, address, { external = false, label = "" } = {}) {
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
export const dagPage = (dag) => inAirflow("dags", dag);
export const runPage = (dag, run) => inAirflow("dags", dag, "runs", run);
export const taskPage = (dag, run, task, index) => inAirflow("dags", dag, "runs", run, "tasks", task, ...(index < 0 ? [] : ["mapped", index]));

// --- Cards.

export function card(title, more, ...children) {
  return make("section", { class: "card" }, make("header", {}, make("h2", {}, title, more && make("small", {}, more))), ...children);
}

export const empty = (title, text) => make("p", { class: "empty" }, make("strong", {}, title), text);
export const whole = (project) => (project ? "· all projects" : "");
export const inRange = (range) => `in the last ${range}`;
export const notes = (problems, label) => make("ul", { class: "notes", "aria-label": label }, problems.map((each) => make("li", {}, withCode(each))));
