// The parts of the page that are not curves: state, workers, classes, settings, proof.
import { bytes, colour, duration, el, number, percent, scrolled, table, unseen, visible } from "./dom.js";

const STATES = {
  running: "training", finished: "finished", interrupted: "interrupted", crashed: "crashed",
  diverged: "diverged", empty: "nothing yet",
};

export function stateOf(state) { return STATES[state] || state; }

export class Panel {
  // A card that is drawn again only when what it shows has changed; `make` gives null to hide it.
  constructor(title, make, options = {}) {
    this.make = make;
    this.heading = el("h2", {}, title);
    this.body = el("div");
    this.element = el("section", { class: options.broad ? "card broad" : "card" }, this.heading, this.body);
  }

  update(content, ...rest) {
    const seen = JSON.stringify([content, rest]);
    if (seen === this.seen) return;
    this.seen = seen;
    const made = content === null || content === undefined ? null : this.make(content, ...rest);
    this.element.hidden = made === null;
    const inner = this.body.querySelector(".scroll");
    const place = inner ? [inner.scrollTop, inner.scrollLeft] : null;
    this.body.replaceChildren(...[made || []].flat().filter((one) => one));
    const again = this.body.querySelector(".scroll");
    if (place && again) [again.scrollTop, again.scrollLeft] = place;
  }
}

function last(column) { return column && column.length ? column[column.length - 1] : null; }

function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

export function headed(run) {
  // The name of a run, its state, how far it is, and what it has reached.
  const parts = [el("div", { class: "heading" }, el("h1", {}, run.name),
    el("span", { class: "state " + run.state }, stateOf(run.state)),
    (run.user_tags || []).map((tag) => el("span", { class: "key" }, "#" + tag)))];
  const problem = run.error || run.problem;
  if (problem) parts.push(el("p", { class: "problem" }, problem));
  if (run.reason) parts.push(el("p", {}, run.reason));
  if (run.parent) parts.push(el("p", { class: "note" }, `${run.parent.words} of ${run.parent.name}${run.parent.gone ? ", which is gone" : ""}`));
  if (!run.epochs || !run.epochs.test_accuracy) return parts;
  if (run.state === "running" && run.updates_planned) {
    parts.push(el("progress", { max: run.updates_planned, value: run.updates, "aria-label": "updates" }));
  }
  const best = (run.epochs.validation_accuracy || []).reduce((most, one) => (one !== null && (most === null || one > most) ? one : most), null);
  const before = run.parent || { update: 0, seconds: 0, examples: 0 }, seconds = run.seconds - before.seconds;
  const left = run.state === "running" && run.updates > before.update ? (run.updates_planned - run.updates) * seconds / (run.updates - before.update) : null;
  parts.push(facts([
    ["updates", `${number(run.updates)}${run.updates_planned ? " of " + number(run.updates_planned) : ""}`],
    ["epochs ended", number(last(run.epochs.epoch) ?? 0)],
    ["test accuracy", percent(last(run.epochs.test_accuracy))],
    ["best validation accuracy", best === null ? null : percent(best)],
    ["test loss", number(last(run.epochs.test_loss))],
    ["steps took", duration(seconds)],
    ["left", left === null ? null : "about " + duration(left)],
    ["images/s", seconds > 0 ? number(Math.round((run.examples - before.examples) / seconds)) : "–"],
    ["workers", run.settings.workers === 0 ? "one process" : number(run.workers.length || run.settings.workers)],
  ]));
  return parts;
}

export function compared(runs) {
  return [el("div", { class: "heading" }, el("h1", {}, `${runs.length} runs compared`)),
    ...runs.filter((run) => run.problem).map((run) => el("p", { class: "problem" }, `${run.name}: ${run.problem}`))];
}

export function spoken(runs) {
  // For screen readers, said when it changes.
  return runs.length === 1 ? `${visible(runs[0].name)}: ${stateOf(runs[0].state)}` : `${runs.length} runs compared`;
}

const ACTIVITIES = ["computing", "pushing", "waiting"];

export function workersPanel() {
  return new Panel("Workers", (workers) => {
    if (!workers.length) return null;
    const bar = (row, prefix) => {
      const all = ACTIVITIES.reduce((sum, name) => sum + row[prefix + name], 0) || 1;
      return el("div", { class: "bar", "aria-hidden": "true" }, ACTIVITIES.map((name) =>
        el("span", { class: name, style: { width: `${(100 * row[prefix + name]) / all}%` } })));
    };
    return [
      el("p", {}, ACTIVITIES.map((name) => el("span", { class: "key" }, el("i", { class: name }), name))),
      scrolled(table(["worker", "state", "lately", "in all", ...ACTIVITIES, "images"], workers.map((row) => [
        row.name, row.state ?? "–", bar(row, "recent_"), bar(row, ""),
        ...ACTIVITIES.map((name) => duration(row[name])), number(row.images)]), { class: "workers", text: [1, 2, 3], caption: "Workers" }), "Workers"),
    ];
  }, { broad: true });
}

export function barsPanel(title) {
  // Bars over categories, as a table with a bar in each cell; bare numbers if there are many.
  return new Panel(title, (chart) => {
    const lines = chart.lines, bars = lines.length <= 3, last = Math.max(...lines.flatMap((line) => line.y.map((y) => y || 0)), 1e-9);
    const cell = (line, at) => {
      const words = line.y[at] === null ? "–" : number(line.y[at], 1);
      if (!bars) return words;
      return el("div", { class: "barred" }, el("span", {}, words), el("div", { class: "bar", "aria-hidden": "true" },
        el("span", { style: { width: `${(100 * (line.y[at] || 0)) / last}%`, background: `var(--c${line.colour})` } })));
    };
    return [el("p", { class: "note" }, [chart.y_label, chart.x_label && `by ${chart.x_label}`, chart.note].filter(Boolean).join("; ")),
      scrolled(table([unseen(chart.x_label || "class"), ...(lines.length > 1 ? lines.map((line) => line.name) : [chart.y_label])],
        chart.categories.map((name, at) => [name, ...lines.map((line) => cell(line, at))]), { class: "bars", caption: title }), title)];
  });
}

export function timelinePanel() {
  // A strip for each worker: what part of each stretch it spent on what.
  return new Panel("What workers do", (figure) => {
    const end = Math.max(...figure.rows.map((row) => row.ends.at(-1) || 0), 1e-9);
    const strips = figure.rows.map((row) => {
      const canvas = el("canvas", { role: "img", "aria-label": `worker ${visible(row.name)} over time: ${visible(row.state)}` });
      canvas.width = 1200;
      canvas.height = 30;
      const brush = canvas.getContext("2d");
      row.starts.forEach((start, at) => {
        let top = canvas.height;
        const left = (canvas.width * start) / end, width = (canvas.width * (row.ends[at] - start)) / end + 0.6;
        for (const [doing, number_] of Object.entries(figure.doings)) {
          const height = canvas.height * (row.shares[doing][at] || 0);
          top -= height;
          brush.fillStyle = colour("c" + number_);
          brush.fillRect(left, top, width, height);
        }
      });
      brush.strokeStyle = colour("text");
      brush.setLineDash([4, 4]);
      for (const mark of figure.marks) {
        const x = Math.round((canvas.width * mark.x) / end);
        brush.beginPath();
        brush.moveTo(x, 0);
        brush.lineTo(x, canvas.height);
        brush.stroke();
      }
      return [el("span", {}, row.name), canvas];
    });
    return [el("p", {}, Object.entries(figure.doings).map(([doing, at]) => el("span", { class: "key" }, el("i", { style: { background: `var(--c${at})` } }), doing))),
      el("div", { class: "timeline" }, strips, el("span"), el("span", { class: "ends" }, el("span", {}, "0 s"), el("span", {}, duration(end))))];
  }, { broad: true });
}

function shade(share) {
  // A background for a share of 0 to 1, and the text colour that is read best on it.
  const parts = (name) => [1, 3, 5].map((at) => parseInt(colour(name).slice(at, at + 2), 16));
  const low = parts("matrix-low"), high = parts("matrix-high"), amount = Math.sqrt(share);
  const mixed = low.map((one, at) => Math.round(one + amount * (high[at] - one)));
  const linear = mixed.map((one) => (one / 255 <= 0.04045 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return { background: `rgb(${mixed.join(" ")})`, color: light > 0.179 ? "#000" : "#fff" };
}

export function confusionPanel() {
  return new Panel("Confusion matrix", (figure) => {
    if (figure.rows.length > 40) return null;
    const made = table([`${figure.y_label} \\ ${figure.x_label}`, ...figure.columns], figure.counts.map((row, at) => [figure.rows[at], ...row.map(number)]),
      { class: "matrix", caption: "Confusion matrix: a row is a true class, a column a predicted one" });
    made.querySelectorAll("tbody tr").forEach((line, at) => line.querySelectorAll("td").forEach((cell, column) => {
      const { background, color } = shade(figure.shares[at][column]);
      cell.style.background = background;
      cell.style.color = color;
    }));
    return [el("p", { class: "note" }, "Test examples: a row is a true class, a column what they are classified as"), scrolled(made, "Confusion matrix")];
  });
}

function cut(picture, count, made) {
  // Images that stand below each other in one picture, each on a canvas of its own.
  const size = picture.naturalWidth, height = picture.naturalHeight / count;
  return Array.from({ length: count }, (_, at) => {
    const canvas = made ? made[at] : el("canvas");
    canvas.width = size;
    canvas.height = height;
    canvas.getContext("2d").drawImage(picture, 0, at * height, size, height, 0, 0, size, height);
    return canvas;
  });
}

export function load(address) {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error("no picture"));
    picture.src = address;
  });
}

export function wrongPanel(source) {
  let before = [], shown = null;
  return new Panel("Surest and wrong", (found) => {
    const wrong = found.wrong || [], names = found.names || [];
    if (!wrong.length) return null;
    if (found.id !== shown) before = [];
    shown = found.id;
    const said = (label) => names[label] ?? String(label);
    const list = el("ul", { class: "tiles small" }, wrong.map((one) => el("li", {},
      el("div", { class: "image" }), el("span", { class: "wrong" }, said(one.predicted)), " ", el("span", { class: "unseen" }, "instead of"),
      el("span", { class: "right" }, said(one.label)), ` ${percent(one.probability)}`, el("span", { class: "unseen" }, ` test example ${one.index}`))));
    // The images before these stay until theirs have come.
    before.forEach((canvas, at) => list.children[at]?.firstElementChild.replaceWith(canvas));
    const address = source.examples(found);
    if (address) {
      load(address).then((picture) => {
        before = cut(picture, wrong.length);
        before.forEach((canvas, at) => {
          canvas.setAttribute("role", "img");
          canvas.setAttribute("aria-label", `test example ${wrong[at].index}`);
          list.children[at].firstElementChild.replaceWith(canvas);
        });
      }, () => {});
    }
    return [el("p", { class: "note" }, "Test examples that the model gets wrong with the largest probability: predicted, then true"), list];
  }, { broad: true });
}

const AT_MOST = 1000;  // milliseconds between two checkpoints that are shown because they are new

export class Templates {
  // Rows of W as images, with a slider over checkpoints.
  constructor(source, onMark) {
    this.source = source;
    this.onMark = onMark;
    this.slider = el("input", { type: "range", min: "0", id: "checkpoint", oninput: () => { this.follows = Number(this.slider.value) === this.run.checkpoints.length - 1; this.show(); } });
    this.output = el("output", { for: "checkpoint" });
    this.play = el("button", { type: "button", onclick: () => this.toggle() }, "Play");
    this.tiles = el("ul", { class: "tiles" });
    this.element = el("section", { class: "card broad" }, el("h2", {}, "Templates"),
      el("p", { class: "note" }, "Each unit's weights as an image: what it looks for. The slider goes over checkpoints, and marks them in the curves."),
      el("div", { class: "slider" }, el("label", { for: "checkpoint" }, "Checkpoint"), this.slider, this.output, this.play), this.tiles);
    this.element.hidden = true;
    this.ready = false;
    this.follows = true;
  }

  update(run) {
    const other = !this.run || this.run.id !== run.id;
    const versions = JSON.stringify((run.checkpoints || []).map((one) => one.version));
    this.run = run;
    if (other) { this.follows = true; this.tiles.replaceChildren(); this.stop(); this.ready = false; }
    this.element.hidden = !this.ready;
    if (!other && versions === this.versions) return;
    this.versions = versions;
    if (!run.checkpoints || !run.checkpoints.length) return;
    this.slider.max = String(run.checkpoints.length - 1);
    if (this.follows) this.slider.value = this.slider.max;
    this.show();
  }

  markOf(axis) {
    const one = this.current;
    if (!one || this.follows) return null;
    return { epoch: one.epoch, update: one.version, seconds: one.seconds }[axis];
  }

  show() {
    const one = this.run.checkpoints[Number(this.slider.value)];
    this.current = one;
    const words = `update ${number(one.version)}, epoch ${number(one.epoch, 2)}${one.version === this.run.best ? ", the best" : ""}`;
    this.output.textContent = words;
    this.slider.setAttribute("aria-valuetext", words);
    this.onMark();
    const address = this.source.templates(this.run, one.version);
    this.asked = one.version;
    if (!address) return;
    clearTimeout(this.later);
    const since = performance.now() - (this.loaded || -AT_MOST);
    if (this.follows && !this.timer && since < AT_MOST) {
      this.later = setTimeout(() => this.show(), AT_MOST - since);
      return;
    }
    this.loaded = performance.now();
    load(address).then((picture) => { if (this.asked === one.version) this.draw(picture); },
      () => {});  // no images, or the checkpoint has just been thinned out
  }

  draw(picture) {
    const count = Math.max(1, Math.round(picture.naturalHeight / this.height(picture)));
    const names = this.run.dataset.classes || [];
    const canvases = [...this.tiles.querySelectorAll("canvas")];
    if (canvases.length !== count) {
      const made = cut(picture, count);
      const named = this.run.settings.model === "linear" || !this.run.settings.model;
      this.tiles.className = named && count <= 16 ? "tiles" : "tiles small";
      this.tiles.replaceChildren(...made.map((canvas, at) => {
        const name = named ? names[at] : `unit ${at + 1}`;
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `template of ${visible(name)}`);
        return el("li", {}, canvas, name);
      }));
    } else {
      cut(picture, count, canvases);
    }
    this.ready = true;
    this.element.hidden = false;
  }

  height(picture) {
    const shape = (this.run.dataset && this.run.dataset.shape) || [3, picture.naturalWidth, picture.naturalWidth];
    return shape[1];
  }

  toggle() {
    if (this.timer) { this.stop(); return; }
    if (this.slider.value === this.slider.max) this.slider.value = "0";
    this.play.textContent = "Stop";
    this.timer = setInterval(() => {
      this.follows = false;
      this.slider.value = String(Number(this.slider.value) + 1);
      this.show();
      if (this.slider.value === this.slider.max) { this.follows = true; this.stop(); this.onMark(); }
    }, 300);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "Play";
  }
}

export function eventsPanel() {
  return new Panel("Events", (events) => (events.length ? el("ul", { class: "events", tabindex: "0", "aria-label": "Events" }, events.slice(-200).reverse().map((one) =>
    el("li", {}, el("time", {}, duration(one.seconds)), `${one.kind}: ${one.text}`))) : null));
}

function shown(value) {
  return value === null || value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);
}

export function settingsPanel() {
  return new Panel("Settings", (run) => {
    const chosen = new Set(Object.keys(run.chosen || {}));
    const names = Object.keys(run.settings || {});
    if (!names.length) return null;
    const order = [...names.filter((name) => chosen.has(name)), ...names.filter((name) => !chosen.has(name))];
    return [el("p", { class: "note" }, "● differs from the recipe"),
      scrolled(table(["setting", "value"], order.map((name) => ({ class: chosen.has(name) ? "differs" : null, cells: [name, shown(run.settings[name])] })), { text: [1] }), "Settings")];
  });
}

export function originPanel() {
  return new Panel("Where it comes from", (run) => [
    run.command && el("code", { class: "copy" }, run.command.map(quoted).join(" ")),
    scrolled(table([unseen("what"), unseen("value")], [
      ["folder", run.folder], ["host", run.host], ["git commit", run.git],
      ["started", run.started ? new Date(1000 * run.started).toISOString().replace("T", " ").slice(0, 19) + " UTC" : null],
      ["dataset", run.dataset && `${run.dataset.name}: ${number(run.dataset.train)} training, ${number(run.dataset.test)} test examples`],
      ...Object.entries(run.versions || {}),
    ].filter(([, value]) => value).map(([name, value]) => [name, shown(value)]), { text: [1], caption: "Origin" }), "Origin"),
  ]);
}

function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : "'" + word.replaceAll("'", "'\\''") + "'";
}

export class Proof {
  // The head of the journal, and buttons that check it.
  constructor(source) {
    this.source = source;
    this.head = el("div");
    this.verdict = el("div", { class: "verdict", role: "status" });
    const buttons = source.live ? [this.button("audit", "Audit", "each example was applied exactly once"), this.button("replay", "Replay", "recompute every bit")] : [];
    this.buttons = buttons;
    this.element = el("section", { class: "card" }, el("h2", {}, "Journal"), this.head, el("div", { class: "proofs" }, buttons), this.verdict);
  }

  button(proof, words, about) {
    return el("button", { type: "button", title: about, onclick: () => this.prove(proof) }, words);
  }

  update(run) {
    if (this.run && this.run.id !== run.id) this.verdict.replaceChildren();
    this.run = run;
    const journal = run.journal;
    this.element.hidden = !journal;
    if (!journal) return;
    const seen = JSON.stringify(journal);
    if (seen === this.seen) return;
    this.seen = seen;
    this.head.replaceChildren(el("p", { title: "a copy kept elsewhere, given to distsgd audit --expect, shows later whether the journal is unchanged" }, "head ", el("code", {}, journal.head || "–")), el("p", { class: "note" }, `${number(journal.lines)} lines, ${bytes(journal.bytes || 0)}`));
  }

  async prove(proof) {
    const run = this.run;
    this.buttons.forEach((one) => { one.disabled = true; });
    this.verdict.className = "verdict";
    this.verdict.textContent = proof === "audit" ? "Auditing …" : "Replaying …";
    let found;
    try {
      found = await this.source.prove(run, proof);
    } catch (error) {
      found = { code: 1, result: null, said: error.message };
    }
    this.buttons.forEach((one) => { one.disabled = false; });
    if (this.run.id !== run.id) return;
    const good = found.code === 0;
    this.verdict.className = good ? "verdict good" : "verdict bad";
    const words = good ? (proof === "audit" ? "The journal holds" : "The replay has the same bits") : found.said || "It failed";
    const parts = [el("p", {}, words)];
    if (good) {
      parts.push(scrolled(table([unseen("what"), unseen("value")], Object.entries(found.result || {}).filter(([, value]) => typeof value !== "object").map(([name, value]) =>
        [name.replaceAll("_", " "), typeof value === "number" ? number(value) : shown(value)]), { text: [1], caption: proof }), proof));
    }
    this.verdict.replaceChildren(...parts);
  }
}

