// Questions to the node that gave this page: statements by POST, changes as server-sent events, health.

/** What the node says when it cannot answer: its words, an SQLSTATE, perhaps a cure and where the parser stopped. */
export class Trouble extends Error {
  constructor({ error, sqlstate = null, hint = null, position = null }) {
    super(error);
    Object.assign(this, { sqlstate, hint, position });
  }
}

/** One statement. `rows` are arrays in the order of `columns`. */
export async function ask(sql, { signal, shown = 1000 } = {}) {
  const response = await post("/v1/sql", { sql, rows_shown_max: shown }, signal);
  return exact(await response.text());
}

/** The names of all relations. */
export async function relations(signal) {
  const response = await answered(fetch("/v1/views", { signal }));
  return (await response.json()).relations;
}

/** Whether answers advance; null when the node does not answer at all. */
export async function health(signal) {
  try {
    return await (await fetch("/healthz", { signal, cache: "no-store" })).json();
  } catch {
    return null;
  }
}

/** Tells what a SUBSCRIBE is told, until it ends, fails or is aborted. */
export async function subscribe(sql, { signal, columns, changes }) {
  const response = await post("/v1/subscribe", { sql }, signal);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += decoder.decode(value, { stream: true });
    const events = waiting.split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const lines = event.split("\n");
      const name = field(lines, "event");
      const data = field(lines, "data");
      if (!name) continue;
      if (name === "columns") columns(exact(data).columns);
      if (name === "changes") changes(exact(data));
      if (name === "error") throw new Trouble(exact(data));
    }
  }
}

/** A text as an SQL literal. */
export function literal(text) {
  return `'${String(text).replaceAll("'", "''")}'`;
}

function field(lines, name) {
  return lines.filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2)).join("\n");
}

async function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return answered(fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal }));
}

async function answered(request) {
  let response;
  try {
    response = await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble({ error: "the node does not answer" });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({ error: `the node answered ${response.status}` }));
  throw new Trouble(told);
}

// Whole numbers that a double cannot hold stay as they were written.
function exact(text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "") ? context.source : value);
}
