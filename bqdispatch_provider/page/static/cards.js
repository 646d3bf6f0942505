// The cards of the page, each made of a part of what the server has told.

import { choose, redraw } from "./page.js";
import { asked, card, command, count, dagPage, duration, empty, inRange, LANES, link, make, moment, notes, now, number, opened, runPage, since, taskPage, whole, withCode, zone } from "./parts.js";

const SHOWN = 10;
const ERRORS_SHOWN = 8;
const MARKS = { ok: "✓", warning: "!", error: "✕", unknown: "?" };

export function failed([said, isReading]) {
  return make("section", { class: "health unknown", role: "alert" }, make("span", { class: "mark", "aria-hidden": "true" }, "?"),
    make("div", {}, make("p", { class: "sentence" }, isReading ? "A moment, please." : "This page cannot be filled."), make("p", { class: "next" }, said)));
}

export function health(data) {
  return make("section", { class: `health ${data.level}`, "aria-label": "Health" },
    make("span", { class: "mark", role: "img", "aria-label": data.level }, MARKS[data.level]),
    make("div", {}, make("p", { class: "sentence" }, data.sentence), data.next_step && make("p", { class: "next" }, withCode(data.next_step))));
}

export function errors([newest, byLane, others, hidden, project]) {
  const numbers = [...Object.entries(LANES).map(([lane, name]) => [name, byLane[lane].errors]), ["of no lane alone", others]].filter(([, value]) => value);
  const total = numbers.reduce((sum, [, value]) => sum + value, 0);
  const shown = newest.slice(0, opened.get("all errors") ? newest.length : ERRORS_SHOWN);
  const showAll = () => {
    opened.set("all errors", true);
    redraw("errors");
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

export function noSetups([known, dag]) {
  if (dag && known?.length) {
    const show = () => {
      asked.delete("dag");
      choose({ setup: "" });
    };
    return card(`Nothing of the DAG ${dag}`, "", empty("No run of this DAG has dispatched anything in the last week.", "So no set-up's history names it."),
      make("p", { class: "foot" }, make("button", { type: "button", onclick: show }, "Show all set-ups")));
  }
  return card("Nothing to show yet", "", empty("There is no set-up that you may see.",
    "There is no connection of type bqdispatch, or you may read none of the DAGs that dispatch with it. Make the connection, and switch such a DAG on."),
  make("p", { class: "foot" }, "While the journal of a set-up has no history, or cannot be read, the set-up is shown to readers of the DAG bqdispatch, or bqdispatch_ with its name. The log of the API server says what cannot be read. In a secrets backend, only bqdispatch_default is looked for."));
}

export function noRuns([setup, dags]) {
  return card("No run has left figures yet", "", make("p", { class: "empty" }, make("strong", {}, `The journal ${setup.journal || "of this set-up"} has no history.`),
    "Switch on the DAG ", dags.map((dag, index) => [index ? ", " : "", link(dag, dagPage(dag))]), ", and see that its first run is green. Its figures are here a few seconds later."));
}

export function runs([all, dags]) {
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

export function oldest(view) {
  return view.waiting.reduce((first, each) => (!first || each.since < first ? each.since : first), "");
}

export function tiles([byLane, figures, waits, first, range, project, held, isCurrent]) {
  const sum = (key) => Object.values(byLane).reduce((total, lane) => total + lane[key], 0);
  const done = Object.values(figures.dispatched).reduce((a, b) => a + b, 0);
  const late = Object.values(waits).reduce((a, b) => a + b, 0);
  const tile = (label, value, more, kind = "") => make("div", { class: `tile ${kind}` }, make("div", { class: "label" }, label), make("div", { class: "value" }, value), make("div", { class: "more" }, more));
  const standing = (value) => (isCurrent ? number(value) : "–");
  const lag = (value) => (value === null ? "–" : duration(value));
  return make("section", { class: "card tiles", "aria-label": "Numbers" },
    tile("Running", standing(sum("running")), "jobs now"),
    tile("Pending", standing(sum("pending")), "jobs and windows"),
    tile("Throttled", standing(sum("throttled")), "for a slot now", sum("throttled") ? "notice" : ""),
    tile("Waiting", standing(late), ["over a minute", isCurrent && ["; ", first ? ["oldest ", make("time", { datetime: first, "data-since": first, "data-short": "1" })] : "none"]]),
    tile("Dispatched", number(done), inRange(range)),
    tile("Lag, median", lag(figures.lag_median), figures.lags ? `95 %: ${lag(figures.lag_p95)}` : done ? "no job's end known" : "nothing dispatched"),
    tile("Errors", number(figures.failed), inRange(range), figures.failed ? "alert" : ""),
    tile("Quarantine", held === null ? "–" : number(held), `${held === 1 ? "object" : "objects"} ${whole(project)}`, held ? "notice" : ""));
}

// --- Tables.

const cell = (value) => make("td", { class: `number ${value ? "" : "zero"}` }, value === null ? "–" : number(value));

export function lanes([byLane, figures, range, project, isCurrent]) {
  const keys = ["running", "pending", "throttled", "errors"];
  const sums = keys.map((key) => Object.values(byLane).reduce((total, lane) => total + lane[key], 0));
  const done = Object.values(figures.dispatched).reduce((a, b) => a + b, 0);
  const made = card("Lanes", `now, and dispatched ${inRange(range)}`, make("div", { class: "scroll" }, make("table", { class: "lanes" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "lane"), [...keys, "dispatched"].map((text) => make("th", { scope: "col", class: "number" }, text)))),
    make("tbody", {}, Object.entries(LANES).map(([lane, name]) => make("tr", {}, make("th", { scope: "row" }, name), keys.map((key) => cell(isCurrent ? byLane[lane][key] : null)), cell(figures.dispatched[lane])))),
    make("tfoot", {}, make("tr", {}, make("th", { scope: "row" }, "All"), [...(isCurrent ? sums.map(number) : keys.map(() => "–")), number(done)].map((text) => make("td", { class: "number" }, text)))))),
  make("dl", { class: "facts", "aria-label": `Windows and errors ${inRange(range)}` },
    [["windows due, not fired", figures.windows_due], ["windows fired", figures.dispatched.windows], ["late windows removed", figures.late], ["errors, all lanes", figures.failed], ["quarantined", figures.quarantined]]
      .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { class: value ? null : "zero" }, number(value))))),
  make("p", { class: "foot" }, `In the table errors are those of the last run, below it those ${inRange(range)}.`,
    project && " Late windows are those of all projects, and an error that names none is counted with no project."));
  made.classList.add("half");
  return made;
}

export function limits([uses, setup]) {
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

export function reasons([events, numbers, unnamed, notDue, notDueCount, project, dags, lastRuns, isCurrent]) {
  if (!isCurrent) return card("What waits, and why", "", empty("It is not known what waits.", "The last run's response document is missing or out of date. Run bqdispatch status, which looks for itself."));
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
    click.preventDefault();
    redraw("reasons");
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

export function quarantine([held, total]) {
  const rows = held.map((each) => make("tr", {},
    make("td", { class: "name" }, link(each.url, each.console, { external: true }) ?? each.url),
    make("td", { "data-label": "reason" }, each.reason),
    make("td", { class: "nowrap", "data-label": "since" }, since(each.since)),
    make("td", {}, make("div", { class: "command" }, command(each.command), copyButton(each.command)))));
  if (total === null) return card("Quarantine", "", empty("It is not known what is in quarantine.", "It could not be listed. The page tries again."));
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

export function about([setup, dags]) {
  return make("p", { class: "dim" }, "Connection ", make("code", {}, setup.id), " · task folder ", make("code", {}, setup.folder), " · journal ", make("code", {}, setup.journal), " · dispatched by ",
    dags.map((dag, index) => [index ? ", " : "", link(dag, dagPage(dag))]), ` · times in ${zone() ?? Intl.DateTimeFormat().resolvedOptions().timeZone}, in sentences UTC`);
}
