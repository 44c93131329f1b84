// The console: every two seconds all panels at one closed tick, and how complete that is.

import { ask, health, relations } from "./ask.js";
import { startEditor } from "./editor.js";
import { RegionMap } from "./map.js";
import { at, make, number, objects, span, trouble } from "./page.js";
import * as panels from "./panels.js";

const EVERY_MS = 2000;
/** A node that has not said how it is for so long does not answer. */
const SILENT_MS = 10_000;
/** An answer of this age is told as old: the panels of one refresh take less, also on a busy node. */
const OLD_MS = 20_000;
/** SQLSTATE of a tick that is no longer held. */
const FORGOTTEN = "72000";

let choice = null;
let paused = false;
let wake = () => {};
let hasFreshness = false;
/** What the status tells of: the tick shown, its completeness, and the node's health when it was heard. */
const shown = { tick: null, completeness: null, health: undefined, heard: 0 };

const map = new RegionMap(at("map-body"), (next) => choose(same(next, choice) ? null : next));

function choose(next) {
  choice = next;
  map.chosen = next;
  map.redraw();
  const told = !next ? "all regions" : "region" in next
    ? `from or to ${next.region}, open or closed lately`
    : `${next.src} → ${next.dst}, open or closed lately`;
  at("filter").textContent = told;
  at("unfilter").hidden = !next;
  panel(panels.services(choice), shown.tick);
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

async function panel({ id, sql, show }, tick) {
  const place = at(`${id}-body`);
  const mine = choice;
  try {
    const answer = await asked(sql, tick);
    // Somebody chose another region meanwhile.
    if (id !== "services" || same(mine, choice)) show(place, answer);
  } catch (error) {
    const box = make("div", { class: "trouble" });
    trouble(box, error);
    place.replaceChildren(box);
  }
}

// At the tick of the other panels; at the newest when that is no longer held.
async function asked(sql, tick) {
  if (tick === null) return ask(sql);
  try {
    return await ask(`${sql} as of ${tick}`);
  } catch (error) {
    if (error.sqlstate !== FORGOTTEN) throw error;
    return ask(sql);
  }
}

async function refresh() {
  let tick = null;
  try {
    const answer = await ask(panels.regions);
    tick = answer.tick;
    Object.assign(shown, { tick, completeness: answer.completeness });
    map.show(objects(answer), tick);
  } catch (error) {
    shown.trouble = error.message;
    return;
  }
  shown.trouble = null;
  status();
  const all = [panels.alerts, panels.services(choice), panels.talkers, panels.utilization, panels.agents, panels.losses];
  if (hasFreshness) all.push(panels.freshness);
  // One after the other: a page that is open must not starve the workers.
  for (const each of all) await panel(each, tick);
}

async function keepListening() {
  for (;;) {
    const told = await health(AbortSignal.timeout(SILENT_MS));
    shown.health = told;
    shown.heard = performance.now();
    status();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

function status() {
  const { tick, completeness: told, health: node, heard } = shown;
  const age = tick === null || !node ? NaN : node.tick_age_ms + Math.max(0, node.tick - tick) + performance.now() - heard;
  at("tick").textContent = tick === null ? "–" : new Date(tick).toISOString().slice(11, 23);
  at("tick").title = tick === null ? "" : String(tick);
  at("age").textContent = span(age);
  const unknown = told?.unknown_loss_intervals ?? 0;
  count("lost", told?.lost_events, unknown > 0 ? ` + ${number(unknown)} spans` : "");
  count("late", told?.late_events);
  count("silent", told?.silent_hosts_total);
  at("silent").title = (told?.silent_hosts ?? []).join(", ");
  const [state, words] = verdict(told, node, age);
  const place = at("verdict");
  if (place.textContent !== words) place.textContent = words;
  place.dataset.state = state;
}

function verdict(told, node, age) {
  if (node === undefined) return ["warn", "connecting …"];
  if (node === null || performance.now() - shown.heard > SILENT_MS + EVERY_MS) return ["bad", "the node does not answer"];
  if (!node.healthy) return ["bad", node.trouble ? `stale: ${node.trouble}` : "stale: answers do not advance"];
  if (shown.trouble) return ["bad", shown.trouble];
  if (!told) return ["warn", "no answer yet"];
  const missing = [];
  if (told.lost_events > 0 || told.unknown_loss_intervals > 0) missing.push("events were lost");
  if (told.late_events > 0) missing.push("events came too late");
  if (told.silent_hosts_total > 0) missing.push("hosts are silent");
  if (told.conflicting_events > 0 || told.forgotten_rows > 0 || told.negative_rows > 0) missing.push("rows were refused");
  const complete = missing.length > 0 ? `incomplete: ${missing.join(", ")}` : "complete";
  if (paused) return ["warn", `paused, ${complete}`];
  if (age > OLD_MS) return ["warn", `old, ${complete}`];
  return [missing.length > 0 ? "warn" : "good", complete];
}

function count(id, value, more = "") {
  at(id).textContent = value === undefined ? "–" : `${number(value)}${more}`;
  at(id).className = value > 0 || more ? "bad" : "";
}

async function keepAsking() {
  try {
    hasFreshness = (await relations()).includes("freshness");
    at("freshness").hidden = !hasFreshness;
  } catch {
    // The panels will say why there is no answer.
  }
  for (;;) {
    if (!paused && !document.hidden) await refresh();
    status();
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, EVERY_MS);
    });
  }
}

at("weight").addEventListener("change", (event) => {
  map.weight = event.target.value;
  map.redraw();
});
at("unfilter").addEventListener("click", () => choose(null));
at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").textContent = paused ? "Go on" : "Pause";
  at("pause").setAttribute("aria-pressed", String(paused));
  status();
  wake();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && choice) choose(null);
});
document.addEventListener("visibilitychange", () => wake());
setInterval(status, 500);
startEditor();
keepListening();
keepAsking();
