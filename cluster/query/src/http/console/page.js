// Elements and how values look. Text always becomes a text node: whatever a host sends, it cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id. */
export const at = (id) => document.getElementById(id);

/** An HTML element: attributes by name, children as elements or text. */
export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return element;
}

/**
 * Shows rows as a table in `place`, keeping how far it is scrolled.
 * A column is { name, title, show(value, row) → text, kind: "number" | "text" | "wrap", mark(value, row) → class }.
 */
export function table(place, caption, columns, rows, { rowClass = () => "", empty = "nothing yet" } = {}) {
  if (rows.length === 0) {
    place.replaceChildren(make("p", { class: "empty" }, empty));
    return;
  }
  const head = columns.map((column) => make("th", { scope: "col", class: column.kind }, column.title ?? column.name));
  const body = rows.map((row) => make("tr", { class: rowClass(row) || null }, ...columns.map((column) => cell(column, row))));
  const old = place.querySelector("table");
  const shown = make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  if (old && place.childElementCount === 1) old.replaceWith(shown);
  else place.replaceChildren(shown);
}

function cell(column, row) {
  const value = row[column.name];
  const classes = [column.kind ?? "text", value === null ? "null" : "", column.mark?.(value, row) ?? ""].filter(Boolean).join(" ");
  const text = value === null ? column.absent ?? "–" : column.show ? column.show(value, row) : String(value);
  const full = value === null || column.kind === "wrap" ? null : String(value);
  return make("td", { class: classes, title: full !== text || full.length > 24 ? full : null }, column.element ? column.element(text, row) : text);
}

/** Rows of an answer as objects by column name. */
export function objects({ columns, rows }) {
  return rows.map((row) => Object.fromEntries(columns.map(({ name }, place) => [name, row[place]])));
}

/** Says in `place` why there is no answer. */
export function trouble(place, error, ...more) {
  const code = error.sqlstate ? `${error.sqlstate} ` : "";
  const lines = [make("div", {}, make("strong", {}, code), error.message)];
  if (error.hint) lines.push(make("div", {}, `Hint: ${error.hint}`));
  place.replaceChildren(...lines, ...more);
  place.hidden = false;
}

const COUNT = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** 1,234.5 */
export const number = (value) => (typeof value === "number" ? COUNT.format(value) : String(value));

/** 1.5 MiB */
export function bytes(value) {
  let amount = Number(value);
  if (!Number.isFinite(amount)) return String(value);
  let unit = 0;
  while (Math.abs(amount) >= 1024 && unit < UNITS.length - 1) {
    amount /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? amount : amount.toFixed(1)} ${UNITS[unit]}`;
}

/** 21:45:59 of the day of `tick`, else with its date. UTC. */
export function clock(value, tick) {
  const text = String(value);
  const day = tick ? new Date(tick).toISOString().slice(0, 10) : null;
  return text.startsWith(day ?? "-") ? text.slice(11, 19) : text.slice(0, 19).replace("T", " ");
}

/** Milliseconds from a time to a tick. */
export const since = (value, tick) => tick - Date.parse(`${String(value).slice(0, 23)}Z`);

/** 3.2 s, 5 min, 2 h */
export function span(ms) {
  if (!Number.isFinite(ms)) return "–";
  const s = Math.max(0, ms) / 1000;
  if (s < 100) return `${s.toFixed(1)} s`;
  if (s < 6000) return `${Math.round(s / 60)} min`;
  if (s < 360000) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}
