// What each panel asks and how it shows the rows. A panel is { id, sql, show(answer, rows) }.

import { literal } from "./ask.js";
import { at, bytes, clock, number, objects, since, span, table } from "./page.js";

const HIGH = new Set(["emergency", "alert", "critical", "error", "high"]);
const MIDDLE = new Set(["warning", "medium"]);
/** Agents send a sample a second unless they are told otherwise (`sample_interval_ms`). */
const HEARD_WITHIN_MS = 30_000;
const AGENTS_MAX = 500;

const count = (name, title) => ({ name, title, kind: "number", show: number });
const size = (name, title) => ({ name, title, kind: "number", show: bytes });
const text = (name, title) => ({ name, title });
const time = (name, tick, title) => ({ name, title, show: (value) => clock(value, tick) });
const wrong = (value) => (Number(value) > 0 ? "bad" : "");

export const talkers = {
  id: "talkers",
  sql: "select rank, app, host, region, container_id, bytes from top_talkers order by rank limit 25",
  show: (place, answer) => table(place, "Top talkers", [count("rank", "#"), text("app"), size("bytes"), text("host"),
    text("region"), { ...text("container_id", "container"), show: short }], objects(answer)),
};

export const utilization = {
  id: "utilization",
  sql: "select app, region, cpu_ms_per_s, cpu_p95, mem_bytes, net_bytes_per_s, containers from utilization " +
    "order by cpu_ms_per_s desc nulls last, app, region limit 100",
  show: (place, answer) => table(place, "Utilisation", [text("app"), text("region"), count("cpu_ms_per_s", "CPU ms/s"),
    count("cpu_p95", "p95"), size("mem_bytes", "memory"), { ...size("net_bytes_per_s", "network/s"),
      show: (value) => bytes(Math.round(value)) }, count("containers")], objects(answer)),
};

export const losses = {
  id: "losses",
  sql: "select time, lost, reason, class, region, host, agent from losses order by time desc nulls last limit 100",
  show: (place, answer) => table(place, "Losses", [time("time", answer.tick), { ...count("lost"), absent: "unknown", mark: () => "bad" },
    text("reason"), text("class"), text("region"), text("host"), text("agent")], objects(answer), { empty: "nothing was lost" }),
};

export const agents = {
  id: "agents",
  sql: "select agent, region, host, last_heard, events, lost_events, transport, version, ended, simulated from agents " +
    "order by ended is not null, last_heard, agent limit " + AGENTS_MAX,
  show: (place, answer) => {
    const rows = objects(answer);
    const here = rows.filter((row) => row.ended === null);
    const quiet = here.filter((row) => since(row.last_heard, answer.tick) > HEARD_WITHIN_MS).length;
    const all = answer.rows_total === AGENTS_MAX ? "first " : "";
    at("agents-count").textContent = `${all}${number(here.length)} running, ${number(quiet)} not heard for ${span(HEARD_WITHIN_MS)}`;
    const heard = { name: "last_heard", title: "heard before", kind: "number",
      show: (value, row) => (row.ended ? "ended" : span(since(value, answer.tick))),
      mark: (value, row) => (!row.ended && since(value, answer.tick) > HEARD_WITHIN_MS ? "bad" : "") };
    table(place, "Agents", [text("agent"), heard, { ...count("lost_events", "lost"), mark: wrong }, count("events"), text("region"),
      { name: "simulated", title: "kind", show: (value) => (value ? "simulated" : "real") }, text("transport"), text("version"), text("host")], rows);
  },
};

export const alerts = {
  id: "alerts",
  sql: "select time, severity, state, rule, host, app, summary, revision, alert_id from alerts order by time desc nulls last, alert_id limit 100",
  show: (place, answer) => {
    const rows = objects(answer);
    const stand = rows.filter((row) => row.state !== "withdrawn").length;
    const all = answer.rows_total === 100 ? "newest 100: " : "";
    at("alerts-count").textContent = `${all}${number(stand)} open or updated, ${number(rows.length - stand)} withdrawn`;
    const severity = { name: "severity", mark: () => "severity" };
    table(place, "Alerts, newest first", [time("time", answer.tick), severity, { name: "state", mark: () => "state" }, text("rule"), text("host"),
      { name: "summary", kind: "wrap", show: (value, { rule }) => (value.startsWith(`${rule} (`) ? value.slice(rule.length + 1) : value) }, count("revision", "events")], rows,
    { rowClass: (row) => (row.state === "withdrawn" ? "withdrawn" : ""), empty: "no alert" });
    place.querySelectorAll("td.severity").forEach((cell) => {
      const level = cell.textContent.toLowerCase();
      cell.dataset.level = HIGH.has(level) ? "high" : MIDDLE.has(level) ? "middle" : "low";
    });
  },
};

export const freshness = {
  id: "freshness",
  sql: "select what, name, tenant, lag_ms, agents, silent, lost_events, heard_through from freshness where what <> 'agent' " +
    "order by what, lag_ms desc, name limit 200",
  show: (place, answer) => table(place, "Freshness", [text("what"), text("name"), { ...count("lag_ms", "behind"), show: span },
    count("agents"), { ...count("silent"), mark: wrong }, { ...count("lost_events", "lost"), mark: wrong },
    time("heard_through", answer.tick, "heard through"), text("tenant")], objects(answer)),
};

export const regions = "select src_region, dst_region, open, total, failed, bytes_sent, bytes_received from region_connections";

/** The services, all or of what is chosen on the map. */
export function services(choice) {
  const columns = [text("src_app", "from"), text("dst_app", "to"), count("dst_port", "port"), count("open"), count("total"),
    { ...count("failed"), mark: wrong }, size("bytes_sent", "sent"), size("bytes_received", "received")];
  columns[2].show = String;
  return { id: "services", sql: servicesSql(choice), show: (place, answer) => table(place, "Services", columns, objects(answer)) };
}

function servicesSql(choice) {
  if (!choice) {
    return "select src_app, dst_app, dst_port, open, total, failed, bytes_sent, bytes_received from service_map " +
      "order by open desc, total desc, src_app, dst_app limit 100";
  }
  // The view has no regions; what is open or was closed lately is in `connections`.
  const is = (column, region) => (region === null ? `${column} is null` : `${column} = ${literal(region)}`);
  const where = "region" in choice
    ? `${is("src_region", choice.region)} or ${is("dst_region", choice.region)}`
    : `${is("src_region", choice.src)} and ${is("dst_region", choice.dst)}`;
  return "select src_app, dst_app, dst_port, count(*) filter (where state = 'open') as open, count(*) as total, " +
    "count(*) filter (where result <> 0) as failed, sum(bytes_sent) as bytes_sent, sum(bytes_received) as bytes_received " +
    `from connections where ${where} group by src_app, dst_app, dst_port order by open desc, total desc, src_app, dst_app limit 100`;
}

/** Columns of any answer, by their types. */
export function generic(columns) {
  const numeric = new Set(["smallint", "integer", "bigint", "real", "double precision"]);
  return columns.map(({ name, type }) => ({ name, kind: numeric.has(type) ? "number" : "text", show: String, absent: "NULL" }));
}

const short = (id) => (String(id).length > 12 ? `${String(id).slice(0, 12)}…` : String(id));
