// The page: what is chosen, and which parts show it.
import { byId, duration, el, number, percent, scrolled, table, visible } from "./dom.js";
import { RunList } from "./list.js";
import { Panel, Proof, Templates, barsPanel, compared, confusionPanel, eventsPanel, headed, originPanel, settingsPanel, spoken, stateOf, timelinePanel, workersPanel, wrongPanel } from "./panels.js";
import { Plot } from "./plots.js";
import { openSource } from "./source.js";

const source = openSource();
const state = { ids: [], axis: "epoch", view: null, theme: "light" };
const plots = new Map();
const cards = byId("sections").appendChild(el("div", { class: "cards" }));
const announced = document.body.appendChild(el("p", { class: "unseen", role: "status" }));
const templates = new Templates(source, markPlots);
const proof = new Proof(source);
const panels = {
  differing: differingPanel(), staleness: barsPanel("Age of gradients"), workers: workersPanel(), timeline: timelinePanel(),
  confusion: confusionPanel(), classes: barsPanel("Test accuracy of each class"), wrong: wrongPanel(source),
  settings: settingsPanel(), origin: originPanel(), events: eventsPanel(),
};

function remembered(name, value) {
  try {
    if (value !== undefined) localStorage.setItem("distsgd-" + name, value);
    return localStorage.getItem("distsgd-" + name);
  } catch { return null; }
}

function setTheme(theme) {
  state.theme = theme;
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", theme === "dark" ? "Switch to light colours" : "Switch to dark colours");
  if (state.view) draw();
}

function plotOptions(chart) {
  const box = byId("log");
  const log = chart.name !== "loss" ? chart.log_y : state.log ?? chart.log_y;
  if (chart.name === "loss") box.checked = log;
  return { smooth: Number(byId("smooth").value), log, theme: state.theme, listed: chart.name === "loss" };
}

function markPlots() {
  const x = templates.markOf(state.axis) ?? null;
  plots.forEach((plot) => plot.setMark(x));
}

function differingPanel() {
  return new Panel("What differs", (found) => scrolled(table(["run", ...found.settings, "state", "test accuracy", "test loss", "time"],
    found.runs.map((name, at) => {
      const [how, accuracy, loss, seconds] = found.ends[at];
      const values = found.values[at].map((value) => (typeof value === "number" ? number(value) : value === null ? "–" : String(value)));
      return [name, ...values, stateOf(how), percent(accuracy), number(loss), duration(seconds)];
    }), { caption: "Settings that differ, and results" }), "What differs"), { broad: true });
}

function draw() {
  const { view } = state;
  const runs = view.runs;
  document.title = runs.length === 1 ? `${visible(runs[0].name)} · distsgd` : runs.length ? `${runs.length} runs · distsgd` : "distsgd";
  if (!runs.length) {
    byId("controls").hidden = true;
    byId("heading").replaceChildren(el("div", { class: "welcome" }, el("h1", {}, "No runs yet"), el("p", {}, "This page shows the first one as soon as it begins: "), el("code", {}, "distsgd train")));
    cards.hidden = true;
    return;
  }
  cards.hidden = false;
  const words = spoken(runs);
  if (announced.textContent !== words) announced.textContent = words;
  const one = runs.length === 1 ? runs[0] : null;
  byId("heading").replaceChildren(...(one ? headed(one) : compared(runs)));
  const curves = view.curves[state.axis] || [];
  byId("controls").hidden = !curves.length;
  const still = Object.fromEntries(view.figures.map((figure) => [figure.name, figure]));
  const kept = new Set(curves.map((chart) => chart.name));
  plots.forEach((plot, name) => { if (!kept.has(name)) { plot.remove(); plots.delete(name); } });
  for (const chart of curves) if (!plots.has(chart.name)) plots.set(chart.name, new Plot());
  panels.differing.update(one ? null : view.differing);
  panels.workers.update(one && one.workers);
  panels.timeline.update(still.timeline, state.theme);
  panels.staleness.update(still.staleness);
  panels.events.update(one && one.events);
  panels.confusion.update(still.confusion, state.theme);
  panels.classes.update(still.classes);
  if (!one || one.state !== "running" || one.id !== state.wrong?.id || performance.now() - state.wrong.at > 2000) {
    state.wrong = { id: one && one.id, at: performance.now() };
    panels.wrong.update(one && { id: one.id, step: one.epochs && one.epochs.step.at(-1), wrong: one.surest_wrong, names: one.names });
  }
  panels.settings.update(one && { settings: one.settings, chosen: one.chosen });
  panels.origin.update(one && one.settings && { command: one.command, folder: one.folder, host: one.host, git: one.git, started: one.started, dataset: one.dataset, versions: one.versions });
  if (one) { templates.update(one); proof.update(one); }
  templates.element.hidden ||= !one;
  proof.element.hidden = !one || !one.journal;
  const drawn = curves.map((chart) => plots.get(chart.name));
  const { differing, staleness, ...others } = panels;
  const parts = [differing, ...drawn, staleness, templates, ...Object.values(others), proof].map((part) => part.element);
  if (parts.length !== cards.children.length || parts.some((part, at) => cards.children[at] !== part)) cards.replaceChildren(...parts);
  for (const chart of curves) plots.get(chart.name).update(chart, plotOptions(chart));
  markPlots();
}

let waiting = false;

function drawSoon() {
  // Once a frame at most, and not while nobody looks.
  if (waiting) return;
  waiting = true;
  const later = document.hidden ? (next) => setTimeout(next, 1000) : requestAnimationFrame;
  later(() => { waiting = false; draw(); });
}

const told = {
  list(content) { list.update(content.rows); },
  view(content) { state.view = content; drawSoon(); },
  link(there) {
    byId("link").className = there ? "link" : "link lost";
    byId("link").textContent = there ? "live" : "No connection: distsgd watch has ended?";
  },
};

const list = !source.live ? null : new RunList((ids) => {
  state.ids = ids;
  source.watch(ids, state.axis, told);
});

async function start() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(remembered("theme") || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => { if (!remembered("theme")) setTheme(dark.matches ? "dark" : "light"); });
  byId("theme").addEventListener("click", () => setTheme(remembered("theme", state.theme === "dark" ? "light" : "dark") || (state.theme === "dark" ? "light" : "dark")));
  byId("axis").addEventListener("change", () => {
    state.axis = byId("axis").value;
    source.watch(state.ids, state.axis, told);
  });
  byId("smooth").addEventListener("input", () => state.view && draw());
  byId("log").addEventListener("change", () => { state.log = byId("log").checked; if (state.view) draw(); });
  try {
    const found = await source.start();
    document.querySelector(".brand").textContent = `distsgd ${found.version}`;
    if (!source.live) byId("link").textContent = "report";
    if (found.start) list.choose([found.start]);
    else source.watch([], state.axis, told);
  } catch (error) {
    told.link(false);
    byId("link").textContent = error.message;
  }
}

start();
