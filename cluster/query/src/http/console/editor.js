// The SQL editor: one statement, its rows or its error; live by asking again each second, or by SUBSCRIBE.

import { Trouble, ask, subscribe } from "./ask.js";
import { at, make, number, objects, table, trouble } from "./page.js";
import { generic } from "./panels.js";

const SHOWN_MAX = 1000;
const AGAIN_AFTER_MS = 1000;
const SUBSCRIBED_ROWS_MAX = 100_000;
const HISTORY_MAX = 50;
const HISTORY_KEY = "weir.history";
const OURS = new Set(["weir_tick", "weir_diff", "weir_progressed"]);

export function startEditor() {
  const [statement, live] = [at("statement"), at("live")];
  const history = new History();
  let running = null;

  const stop = () => {
    running?.abort();
    running = null;
    at("stop").disabled = true;
  };
  const run = async () => {
    stop();
    const sql = statement.value.trim();
    if (!sql) return;
    history.add(sql);
    const own = new AbortController();
    running = own;
    at("stop").disabled = false;
    at("answer-trouble").hidden = true;
    say("asking …");
    try {
      if (/^subscribe\b/i.test(sql)) await follow(sql, own.signal);
      else await repeat(sql, own.signal, () => live.checked);
    } catch (error) {
      if (!own.signal.aborted) fail(statement, error);
    }
    if (running === own) stop();
  };

  at("run").addEventListener("click", run);
  at("stop").addEventListener("click", () => {
    stop();
    say("stopped");
  });
  live.addEventListener("change", () => live.checked && !running && run());
  statement.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    }
    if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      statement.value = history.walk(event.key === "ArrowUp" ? 1 : -1) ?? statement.value;
    }
  });
  at("history").addEventListener("change", (event) => {
    const chosen = history.entries[Number(event.target.value)];
    if (event.target.value !== "" && chosen) statement.value = chosen;
    statement.focus();
  });
  at("forget").addEventListener("click", () => history.forget());
}

async function repeat(sql, signal, again) {
  for (;;) {
    const begun = performance.now();
    const answer = await ask(sql, { signal, shown: SHOWN_MAX });
    show(answer.columns, answer.rows);
    const more = answer.rows_total > answer.rows.length ? `, the first ${number(answer.rows.length)} shown` : "";
    const lost = answer.completeness?.lost_events ?? 0;
    const unknown = answer.completeness?.unknown_loss_intervals ?? 0;
    const tick = answer.tick === null ? "" : ` · tick ${answer.tick} · ${number(lost)} events lost` +
      (unknown > 0 ? `, ${number(unknown)} spans of unknown loss` : "");
    const note = answer.note ? ` · ${answer.note}` : "";
    say(`${rowsOf(answer.rows_total)}${more} · ${Math.round(performance.now() - begun)} ms${tick}${note}${again() ? " · live" : ""}`);
    if (!again()) return;
    await pause(AGAIN_AFTER_MS, signal);
  }
}

// The diffs of a row add up to how often it is there.
async function follow(sql, signal) {
  const rows = new Map();
  let [columns, places, tick, due] = [[], [], null, null];
  const paint = () => {
    due = null;
    if (signal.aborted) return;
    const shown = [];
    for (const { row, times } of rows.values()) {
      for (let n = 0; n < times && shown.length < SHOWN_MAX; n += 1) shown.push(places.map((place) => row[place]));
    }
    show(places.map((place) => columns[place]), shown);
    say(`${rowsOf(rows.size)} · told through tick ${tick} · subscribed`);
  };
  await subscribe(sql, {
    signal,
    columns: (told) => {
      columns = told;
      places = told.map((_, place) => place).filter((place) => !OURS.has(told[place].name));
    },
    changes: (told) => {
      tick = told.tick;
      const [diff, progressed] = ["weir_diff", "weir_progressed"].map((name) => columns.findIndex((column) => column.name === name));
      for (const row of told.rows.filter((row) => progressed < 0 || row[progressed] !== true)) {
        const key = JSON.stringify(places.map((place) => row[place]));
        const times = (rows.get(key)?.times ?? 0) + row[diff];
        if (times === 0) rows.delete(key);
        else rows.set(key, { row, times });
      }
      if (rows.size > SUBSCRIBED_ROWS_MAX) {
        throw new Trouble({ error: `more than ${number(SUBSCRIBED_ROWS_MAX)} different rows: the browser keeps no more`, hint: "subscribe to less" });
      }
      due ??= setTimeout(paint, 250);
    },
  });
  if (due) {
    clearTimeout(due);
    paint();
  }
}

function show(columns, rows) {
  // Two columns may have one name.
  const named = columns.map((column, place) => ({ ...column, name: String(place) }));
  const shown = generic(named).map((column, place) => ({ ...column, title: columns[place].name }));
  table(at("answer"), "Result", shown, objects({ columns: named, rows }), { empty: "no rows" });
}

function fail(statement, error) {
  const more = [];
  const { line, column } = error.position ?? {};
  const text = line ? statement.value.trim().split("\n")[line - 1] : undefined;
  if (text !== undefined) {
    const from = Math.max(0, column - 60);
    more.push(make("div", { class: "position" }, `line ${line}, column ${column}`));
    more.push(make("pre", {}, `${text.slice(from, from + 120)}\n${" ".repeat(Math.max(0, column - 1 - from))}^`));
  }
  trouble(at("answer-trouble"), error, ...more);
  at("answer").replaceChildren();
  say("failed");
}

const say = (text) => { at("answer-status").textContent = text; };
const rowsOf = (count) => `${number(count)} ${count === 1 ? "row" : "rows"}`;

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    }, { once: true });
  });
}

/** What was asked, newest first; kept in this browser only. */
class History {
  entries = [];
  #at = -1;

  constructor() {
    try {
      const kept = JSON.parse(localStorage.getItem(HISTORY_KEY) ?? "[]");
      if (Array.isArray(kept)) this.entries = kept.filter((sql) => typeof sql === "string").slice(0, HISTORY_MAX);
    } catch {
      // A browser that keeps nothing still shows answers.
    }
    this.#show();
  }

  add(sql) {
    this.entries = [sql, ...this.entries.filter((old) => old !== sql)].slice(0, HISTORY_MAX);
    this.#at = 0;
    this.#keep();
  }

  walk(by) {
    this.#at = Math.min(Math.max(this.#at + by, 0), this.entries.length - 1);
    return this.entries[this.#at];
  }

  forget() {
    this.entries = [];
    this.#at = -1;
    this.#keep();
  }

  #keep() {
    try {
      localStorage.setItem(HISTORY_KEY, JSON.stringify(this.entries));
    } catch {
      // Full or forbidden: the list lives as long as the page.
    }
    this.#show();
  }

  #show() {
    const options = this.entries.map((sql, place) => make("option", { value: place }, sql.replace(/\s+/g, " ").slice(0, 80)));
    at("history").replaceChildren(make("option", { value: "" }, "–"), ...options);
  }
}
