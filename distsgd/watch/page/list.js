// The list of runs: find, sort, filter, show one, and choose several to compare.
import { byId, duration, el, percent, visible } from "./dom.js";

const MOST_COMPARED = 64;  // as many as the server takes
const LISTED_STATES = { dead: "crashed", failed: "crashed" };

function asTree(rows) {
  // Forks below their parents, the latest first; a fork whose parent is not listed stands alone.
  const ids = new Set(rows.map((row) => row.id)), below = new Map(), made = [], seen = new Set();
  for (const row of rows) {
    const parent = ids.has(row.parent) && row.parent !== row.id ? row.parent : null;
    below.set(parent, [...(below.get(parent) || []), row]);
  }
  const add = (row, depth) => {
    if (seen.has(row.id)) return;
    seen.add(row.id);
    made.push({ ...row, depth });
    (below.get(row.id) || []).forEach((one) => add(one, depth + 1));
  };
  (below.get(null) || []).forEach((row) => add(row, 0));
  rows.forEach((row) => add(row, 0));
  return made;
}

export class RunList {
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.rows = [];
    this.chosen = [];
    for (const name of ["find", "sort", "filter"]) byId(name).addEventListener("input", () => this.draw());
    byId("latest").addEventListener("click", () => this.choose([]));
    byId("all").addEventListener("click", () => this.choose(this.matching().slice(0, MOST_COMPARED).map((row) => row.id)));
    this.list = byId("runs");
    if (matchMedia("(max-width: 900px)").matches) byId("runs-box").open = false;
  }

  choose(ids) {
    // Show these runs; none for the latest.
    this.chosen = ids;
    this.draw();
    this.onChoose(ids);
  }

  update(rows) {
    this.rows = rows;
    const states = [...new Set(rows.map((row) => LISTED_STATES[row.state] || row.state))].sort();
    const filter = byId("filter"), kept = filter.value;
    const options = ["", ...states];
    if (JSON.stringify(options) !== this.options) {
      this.options = JSON.stringify(options);
      filter.replaceChildren(...options.map((one) => el("option", { value: one, selected: one === kept }, one || "any")));
    }
    this.draw();
  }

  matching() {
    const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = byId("filter").value, key = byId("sort").value;
    const found = this.rows.filter((row) => {
      const text = [row.name, row.model, row.loss, row.dataset, row.state, row.about, ...(row.tags || [])].join(" ").toLowerCase();
      return (!wanted || (LISTED_STATES[row.state] || row.state) === wanted) && words.every((word) => text.includes(word));
    });
    if (key === "created") return asTree(found);
    if (key === "name") found.sort((a, b) => a.name.localeCompare(b.name));
    else found.sort((a, b) => (b[key] ?? -1) - (a[key] ?? -1));
    return found;
  }

  draw() {
    const rows = this.matching(), shown = new Set(this.chosen.length ? this.chosen : this.rows.slice(0, 1).map((row) => row.id));
    byId("latest").setAttribute("aria-pressed", String(!this.chosen.length));
    byId("runs-count").textContent = rows.length === this.rows.length ? String(rows.length) : `${rows.length} of ${this.rows.length}`;
    byId("all").disabled = rows.length < 2;
    const drawn = JSON.stringify([rows, [...shown]]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const at = document.activeElement && this.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.list.replaceChildren(...rows.slice(0, 500).map((row) => this.item(row, shown.has(row.id))));
    if (at) this.list.querySelector(`[data-key="${CSS.escape(at)}"]`)?.focus();
  }

  item(row, chosen) {
    const state = LISTED_STATES[row.state] || row.state;
    const about = [state, row.model === "linear" ? row.loss : `${row.model} ${row.loss}`, row.accuracy === null ? null : percent(row.accuracy),
      row.seconds === null ? null : duration(row.seconds), row.about].filter(Boolean).join(" · ");
    const fork = !row.fork ? null : row.depth ? row.fork : `${row.fork} of ${row.parent_name}${row.parent_gone ? ", which is gone" : ""}`;
    const kind = [chosen && "chosen", row.depth && "fork"].filter(Boolean).join(" ");
    return el("li", { class: kind || null, style: row.depth ? { "--depth": Math.min(row.depth, 6) } : null },
      el("input", { type: "checkbox", "data-key": "c" + row.id, checked: chosen, "aria-label": `Compare ${visible(row.name)}`, onchange: () => this.toggle(row.id) }),
      el("button", { type: "button", "data-key": "b" + row.id, "aria-current": chosen ? "true" : null, onclick: () => this.choose([row.id]) },
        el("span", { class: "name" }, row.name),
        fork && el("span", { class: "about" }, fork), el("span", { class: "about" }, about)));
  }

  toggle(id) {
    const now = this.chosen.length ? this.chosen : this.rows.slice(0, 1).map((row) => row.id);
    const next = now.includes(id) ? now.filter((one) => one !== id) : [...now, id];
    this.choose(next);
  }
}
