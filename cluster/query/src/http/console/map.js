// The map: regions on an ellipse, an arc for every pair that talks. Nodes and arcs are kept and changed in place, so focus and hover stay.

import { bytes, draw, number } from "./page.js";

const WIDTH = 720;
const HEIGHT = 400;
const RADIUS = 21;

/** The map. `choose` is given { region }, { src, dst } or null. */
export class RegionMap {
  #svg;
  #arcs = draw("g");
  #nodes = draw("g");
  #kept = new Map();
  #choose;
  #before = null;
  #rates = new Map();
  #latest = null;
  weight = "open";
  chosen = null;

  constructor(place, choose) {
    this.#choose = choose;
    const label = "Regions and the connections between them";
    this.#svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": label }, this.#arcs, this.#nodes);
    place.replaceChildren(this.#svg);
  }

  /** Shows the rows of region_connections at a tick. */
  show(pairs, tick) {
    this.#measure(pairs, tick);
    this.#latest = pairs;
    this.redraw();
  }

  /** Shows what was shown last with another weight or choice. */
  redraw() {
    const pairs = this.#latest;
    if (!pairs) return;
    const regions = [...new Set(pairs.flatMap((pair) => [pair.src_region, pair.dst_region]))].sort();
    const places = new Map(regions.map((region, index) => [region, spot(index, regions.length)]));
    const most = Math.max(1, ...pairs.map((pair) => this.#weightOf(pair)));
    const seen = new Set();
    for (const pair of pairs.filter((pair) => pair.src_region !== pair.dst_region)) {
      seen.add(this.#arc(pair, places, most));
    }
    for (const region of regions) seen.add(this.#node(region, places.get(region), pairs));
    for (const [key, element] of this.#kept) {
      if (seen.has(key)) continue;
      element.remove();
      this.#kept.delete(key);
    }
  }

  // Bytes per second between this answer and the one before.
  #measure(pairs, tick) {
    const total = new Map(pairs.map((pair) => [key(pair), volume(pair)]));
    if (this.#before && tick > this.#before.tick) {
      const seconds = (tick - this.#before.tick) / 1000;
      const rate = ([pair, now]) => [pair, Math.max(0, now - (this.#before.total.get(pair) ?? now)) / seconds];
      this.#rates = new Map([...total].map(rate));
    }
    if (!this.#before || tick > this.#before.tick) this.#before = { tick, total };
  }

  #weightOf(pair) {
    if (this.weight === "open") return pair.open;
    return this.weight === "rate" ? this.#rates.get(key(pair)) ?? 0 : volume(pair);
  }

  #arc(pair, places, most) {
    const id = `arc ${key(pair)}`;
    const [from, to] = [places.get(pair.src_region), places.get(pair.dst_region)];
    const weight = this.#weightOf(pair);
    // Roots, so that the busiest does not hide the rest.
    const width = weight > 0 ? 1 + 9 * Math.sqrt(weight / most) : 0.6;
    const rate = this.#rates.get(key(pair)) ?? 0;
    const label = `${pair.src_region} to ${pair.dst_region}: ${number(pair.open)} open, ${number(pair.failed)} failed of ` +
      `${number(pair.total)}, ${bytes(volume(pair))}, ${bytes(Math.round(rate))}/s`;
    const { src, dst, region } = this.chosen ?? {};
    const chosen = src === pair.src_region && dst === pair.dst_region;
    const touched = !this.chosen || chosen || region === pair.src_region || region === pair.dst_region;
    const failing = pair.failed > 0 && pair.failed * 10 >= pair.total;
    const element = this.#keep(id, this.#arcs, () => this.#choosable(draw("path"), { src: pair.src_region, dst: pair.dst_region }));
    set(element, {
      class: ["arc", failing && "failing", chosen && "chosen", !touched && "hidden"].filter(Boolean).join(" "),
      d: curve(from, to), "stroke-width": width.toFixed(1), "aria-label": label, "aria-pressed": String(chosen),
    });
    element.firstChild.textContent = label;
    return id;
  }

  #node(region, place, pairs) {
    const id = `node ${region}`;
    const own = pairs.filter((pair) => pair.src_region === region || pair.dst_region === region);
    const open = own.reduce((sum, pair) => sum + pair.open, 0);
    const inside = own.find((pair) => pair.src_region === pair.dst_region)?.open ?? 0;
    const label = `region ${region}: ${number(open)} open connections, ${number(inside)} of them inside`;
    const chosen = this.chosen?.region === region;
    const element = this.#keep(id, this.#nodes, () => {
      const texts = [draw("text", { class: "inside", y: 4 }), draw("text", { y: RADIUS + 16 })];
      return this.#choosable(draw("g", {}, draw("circle", { r: RADIUS }), ...texts), { region });
    });
    set(element, {
      class: chosen ? "node chosen" : "node", transform: `translate(${place.x} ${place.y})`,
      "aria-label": label, "aria-pressed": String(chosen),
    });
    const [title, , middle, below] = element.children;
    title.textContent = label;
    middle.textContent = number(open);
    below.textContent = region;
    return id;
  }

  #keep(id, group, begin) {
    if (!this.#kept.has(id)) {
      const element = begin();
      this.#kept.set(id, element);
      group.append(element);
    }
    return this.#kept.get(id);
  }

  #choosable(element, choice) {
    element.prepend(draw("title"));
    set(element, { tabindex: 0, role: "button" });
    element.addEventListener("click", () => this.#choose(choice));
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.#choose(choice);
    });
    return element;
  }
}

const key = (pair) => JSON.stringify([pair.src_region, pair.dst_region]);
const volume = (pair) => Number(pair.bytes_sent ?? 0) + Number(pair.bytes_received ?? 0);

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
}

function spot(index, count) {
  const angle = (index / count) * 2 * Math.PI - Math.PI / 2;
  const x = WIDTH / 2 + (WIDTH / 2 - 90) * Math.cos(angle);
  return { x: Math.round(x), y: Math.round(HEIGHT / 2 - 8 + (HEIGHT / 2 - 48) * Math.sin(angle)) };
}

// Bent to its left, so there and back are two arcs; from edge to edge of the nodes.
function curve(from, to) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const bend = 0.16;
  const middle = { x: (from.x + to.x) / 2 + dy * bend, y: (from.y + to.y) / 2 - dx * bend };
  const edge = (node) => {
    const [ex, ey] = [middle.x - node.x, middle.y - node.y];
    const length = Math.hypot(ex, ey) || 1;
    return `${(node.x + (ex / length) * RADIUS).toFixed(1)} ${(node.y + (ey / length) * RADIUS).toFixed(1)}`;
  };
  return `M ${edge(from)} Q ${middle.x.toFixed(1)} ${middle.y.toFixed(1)} ${edge(to)}`;
}
