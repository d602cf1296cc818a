// Curves: a chart as data, drawn by uPlot, with a legend of buttons and a table of its numbers.
/* global uPlot */
import { colour, el, number, scrolled, table, visible } from "./dom.js";

const HEIGHT = 250;
const MOST_MARKS = 4;
const MOST_ROWS = 200;
const FEW_POINTS = 40;
// As EVENT_COLOURS of distsgd/figures/charts.py.
const MARK_COLOURS = { death: 1, replaced: 2, scaled: 0, stranger: 3, resumed: 4, saved: 6, notice: 6, stopped: 1, fork: 6 };
const FAINT_BELOW = "66", PALE = "73";
const NEAR = 6;  // pixels between the cursor and a mark whose text is shown

export function smoothed(values, weight) {
  // Exponential moving average without a bias towards the start; gaps stay gaps.
  let last = 0, seen = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    last = last * weight + (1 - weight) * value;
    seen += 1;
    return last / (1 - weight ** seen);
  });
}

function tick(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return +(value / 1e6).toPrecision(4) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(4) + "k";
  if (size !== 0 && size < 1e-3) return value.toExponential(0);
  return String(+value.toPrecision(5));
}

function linearTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(+at.toPrecision(12));
  return found;
}

function nearest(column, at) {
  // The value at a place of the common x, or the last one before it.
  for (let place = at; place >= 0; place -= 1) {
    if (column[place] !== undefined && column[place] !== null) return column[place];
  }
  return null;
}

function labelled(line) {
  // The name of a line, with its run's where that does not say it.
  return line.run && !line.name.startsWith(line.run) ? `${line.run}: ${line.name}` : line.name;
}

function inOrder(line) {
  // x and the columns of a line, by x, without points that have no x.
  const columns = [line.y, ...(line.low.length ? [line.low, line.high] : [])];
  let places = line.x.map((_, at) => at).filter((at) => Number.isFinite(line.x[at]));
  if (places.some((at, next) => next && line.x[places[next - 1]] > line.x[at])) {
    places = places.sort((a, b) => line.x[a] - line.x[b]);
  }
  if (places.length === line.x.length && places.every((at, next) => at === next)) return [line.x, ...columns];
  return [line.x, ...columns].map((column) => places.map((at) => column[at]));
}

function ownFrom(line, x) {
  // The index of the first point of a fork's own part: the one at the fork, or the last before.
  if (line.fork === null || line.fork === undefined) return 0;
  return Math.max(0, x.filter((at) => at <= line.fork).length - 1);
}

function isFork(line) { return line.fork !== null && line.fork !== undefined; }

export class Plot {
  constructor() {
    this.hidden = new Set();
    this.heading = el("h2");
    this.space = el("div", { class: "plot", tabindex: "0", role: "group" });
    this.tip = el("p", { class: "tip", "aria-hidden": "true", hidden: true });
    this.legend = el("ul", { class: "legend" });
    this.marks = el("ul", { class: "marks" });
    this.note = el("p", { class: "note" });
    this.reading = el("p", { class: "unseen", "aria-live": "polite" });
    this.details = el("details", { class: "table" }, el("summary", {}, "Table"));
    this.element = el("figure", { class: "card" }, this.heading, this.space, this.legend, this.note, this.marks, this.reading, this.details);
    this.details.addEventListener("toggle", () => this.fillTable());
    this.space.addEventListener("keydown", (event) => this.move(event));
    this.observer = new ResizeObserver(() => {
      const width = this.space.clientWidth;
      if (this.drawn && width && Math.abs(width - this.drawn.width) > 1) this.drawn.setSize({ width, height: HEIGHT });
    });
    this.observer.observe(this.space);
  }

  remove() {
    this.observer.disconnect();
    if (this.drawn) this.drawn.destroy();
    this.drawn = null;
    this.element.remove();
  }

  update(chart, options) {
    // Draw a chart; only its numbers are replaced if lines and options are those drawn before.
    this.chart = chart;
    this.options = options;
    this.heading.textContent = visible(chart.heading);
    this.note.textContent = visible(chart.note);
    this.space.setAttribute("aria-label", `${chart.heading}, by ${chart.x_label}. Left and right arrows read values; a table follows.`);
    this.marks.replaceChildren(...(options.listed ? chart.marks : []).slice(0, MOST_MARKS).map((mark) =>
      el("li", {}, `┆ ${tick(+mark.x.toPrecision(4))}: ${mark.text}`)));
    if (options.listed && chart.marks.length > MOST_MARKS) this.marks.append(el("li", {}, `and ${chart.marks.length - MOST_MARKS} more`));
    const lines = chart.lines.filter((line) => line.x.length);
    const look = JSON.stringify([lines.map((line) => [labelled(line), line.y.length <= FEW_POINTS, line.low.length > 0, line.colour, line.style, line.fork, line.before]),
      options.theme, options.log, chart.y_label, options.smooth > 0, chart.x_label, [...this.hidden]]);
    this.lines = lines;
    this.data = this.columns(lines, options);
    if (this.details.open) this.fillTable();
    if (look === this.look && this.drawn) {
      const x = this.drawn.scales.x, all = this.drawn.data[0];
      const zoomed = all.length && (x.min > all[0] || x.max < all[all.length - 1]);
      this.drawn.setData(this.data, !zoomed);
      if (zoomed) this.drawn.redraw();
      this.showValues(this.drawn.cursor.idx);
      return;
    }
    this.look = look;
    this.draw();
  }

  columns(lines, options) {
    // All lines on one x. A line has a column, or with smoothing its raw one too, or a band of two more.
    const log = options.log;
    const above = (column) => (log ? column.map((value) => (value > 0 ? value : null)) : column);
    const tables = lines.map((line) => {
      const [x, y, ...band] = inOrder(line);
      const smooth = options.smooth > 0 && y.length > FEW_POINTS ? smoothed(y, options.smooth) : y;
      // A part that another line draws is smoothed with the rest, so that the two join.
      const own = line.before === "hidden" ? ownFrom(line, x) : 0;
      const shown = (column) => (own ? column.map((value, at) => (at < own ? null : value)) : column);
      return [x, ...[smooth, ...(options.smooth > 0 ? [y] : []), ...band].map((column) => shown(above(column)))];
    });
    return tables.length ? uPlot.join(tables) : [[]];
  }

  draw() {
    if (this.drawn) this.drawn.destroy();
    this.drawn = null;
    this.space.replaceChildren();
    const { chart, options, lines } = this;
    if (!lines.length) {
      this.legend.replaceChildren();
      this.space.append(el("p", { class: "nothing" }, "Nothing yet"));
      return;
    }
    const log = options.log;
    const text = colour("faint"), grid = colour("grid");
    const series = [{}], bands = [], hover = {};
    this.mains = [];
    lines.forEach((line, at) => {
      const pure = this.colourOf(line), show = !this.hidden.has(labelled(line)), faint = line.style === "faint";
      const stroke = this.strokeOf(line, faint && !options.smooth ? pure + FAINT_BELOW : pure, pure + (faint ? "33" : PALE));
      const points = { show: line.y.length <= FEW_POINTS && !faint, size: 5, fill: stroke, stroke };
      this.mains.push(series.length);
      hover[series.length] = pure;
      series.push({ label: labelled(line), stroke, width: faint ? 1.5 : 2, show, points, dash: line.style === "dashed" ? [6, 4] : undefined, spanGaps: false });
      if (options.smooth > 0) series.push({ stroke: this.strokeOf(line, pure + "44", pure + "22"), width: 1, show, points: { show: false } });
      if (line.low.length) {
        bands.push({ series: [series.length + 1, series.length], fill: pure + "2e" });
        series.push({ stroke: "transparent", show, points: { show: false } }, { stroke: "transparent", show, points: { show: false } });
      }
    });
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
    this.drawn = new uPlot({
      width: Math.max(160, this.space.clientWidth), height: HEIGHT, series, bands, legend: { show: false },
      scales: { x: { time: false }, y: log ? { distr: 3, range: (u, low, high) => [low / 1.03, high * 1.03] }
        : chart.from_zero ? { range: (u, low, high) => [0, high > 0 ? high * 1.05 : 1] } : {} },
      axes: [
        { ...axis, label: chart.x_label, labelSize: 18, size: 32, values: (u, all) => all.map((one) => tick(one)) },
        { ...axis, label: chart.y_label, labelSize: 18, size: 56, values: (u, all) => all.map((one) => (one === null ? "" : tick(one))),
          ...(log ? { filter: (u, all) => all, splits: (u, place, low, high) => (high / low < 20
            ? linearTicks(low, high, 5) : logTicks(low, high)) } : {}) },
      ],
      cursor: { sync: { key: "curves" }, y: false, points: { size: 6, fill: (u, at) => hover[at] || "transparent", stroke: (u, at) => hover[at] || "transparent" } },
      hooks: { draw: [(u) => this.drawMarks(u)], setCursor: [(u) => { this.showValues(u.cursor.idx); this.showTip(u); }] },
    }, this.data, this.space);
    this.space.append(this.tip);
    this.drawLegend();
  }

  strokeOf(line, own, before) {
    // One colour, or for a fork a paler one up to where it begins.
    if (!isFork(line) || line.before === "hidden") return own;
    return (u) => {
      const { left, width } = u.bbox, part = (u.valToPos(line.fork, "x", true) - left) / width;
      if (!u.ctx || !(part > 0)) return own;
      if (part >= 1) return before;
      const made = u.ctx.createLinearGradient(left, 0, left + width, 0);
      for (const [at, paint] of [[0, before], [part, before], [part, own], [1, own]]) made.addColorStop(at, paint);
      return made;
    };
  }

  colourOf(line) {
    return colour("c" + line.colour);
  }

  drawLegend() {
    this.values = [];
    this.legend.replaceChildren(...this.lines.map((line, at) => {
      const value = el("span", { class: "value" });
      this.values.push(value);
      const swatch = el("span", { class: "swatch", style: { background: this.colourOf(line) } });
      return el("li", {}, el("button", {
        type: "button", "aria-pressed": String(!this.hidden.has(labelled(line))),
        onclick: () => {
          if (!this.hidden.delete(labelled(line))) this.hidden.add(labelled(line));
          const place = at;
          this.update(this.chart, this.options);
          this.legend.children[place].firstElementChild.focus();
        },
      }, swatch, el("span", {}, labelled(line)), value));
    }));
    this.showValues(null);
  }

  showValues(at) {
    // In the legend: the values at the cursor, or the last ones.
    if (!this.drawn || !this.values) return;
    this.values.forEach((value, place) => {
      const column = this.data[this.mains[place]];
      value.textContent = column ? number(nearest(column, at ?? column.length - 1)) : "";
    });
  }

  drawMarks(u) {
    const { ctx, bbox } = u;
    const rule = (x, stroke, dash) => {
      const left = u.valToPos(x, "x", true);
      if (!(left >= bbox.left && left <= bbox.left + bbox.width)) return;
      ctx.save();
      ctx.strokeStyle = stroke;
      ctx.lineWidth = 1.5 * devicePixelRatio;
      ctx.setLineDash(dash.map((one) => one * devicePixelRatio));
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
      ctx.restore();
    };
    for (const mark of this.chart.marks) rule(mark.x, colour("c" + (MARK_COLOURS[mark.kind] ?? 6)), [3, 3]);
    this.lines.forEach((line, at) => {
      if (!isFork(line) || line.style === "faint" || this.hidden.has(labelled(line))) return;
      const [x] = inOrder(line), place = u.data[0].indexOf(x[ownFrom(line, x)]);
      const y = place < 0 ? null : u.data[this.mains[at]][place];
      if (y === null || y === undefined) return;
      const left = u.valToPos(u.data[0][place], "x", true), top = u.valToPos(y, "y", true), size = 5 * devicePixelRatio;
      if (left < bbox.left || left > bbox.left + bbox.width || top < bbox.top || top > bbox.top + bbox.height) return;
      ctx.save();
      ctx.fillStyle = this.colourOf(line);
      ctx.beginPath();
      for (const [dx, dy] of [[0, -size], [size, 0], [0, size], [-size, 0]]) ctx.lineTo(left + dx, top + dy);
      ctx.fill();
      ctx.restore();
    });
    if (this.mark !== null && this.mark !== undefined) rule(this.mark, colour("accent"), []);
  }

  showTip(u) {
    // The text of the marks under the cursor.
    const left = u.cursor.left;
    const near = left < 0 ? [] : this.chart.marks.filter((mark) => Math.abs(u.valToPos(mark.x, "x") - left) <= NEAR);
    this.tip.hidden = !near.length;
    if (!near.length) return;
    this.tip.replaceChildren(...near.slice(0, 2 * MOST_MARKS).map((mark) => el("span", {}, mark.text)));
    const right = left > u.over.clientWidth / 2;
    const side = this.space.clientWidth - u.over.offsetLeft - left;
    this.tip.style.setProperty("left", right ? "auto" : `${u.over.offsetLeft + left + 10}px`);
    this.tip.style.setProperty("right", right ? `${side + 10}px` : "auto");
  }

  setMark(x) {
    // A line at the checkpoint whose templates are shown.
    if (this.mark === x) return;
    this.mark = x;
    if (this.drawn) this.drawn.redraw(false);
  }

  move(event) {
    if (!this.drawn || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const x = this.data[0], last = x.length - 1, step = Math.max(1, Math.round(x.length / 50));
    const at = this.drawn.cursor.idx ?? last;
    const to = { ArrowLeft: at - step, ArrowRight: at + step, Home: 0, End: last }[event.key];
    const place = Math.min(last, Math.max(0, to));
    this.drawn.setCursor({ left: this.drawn.valToPos(x[place], "x"), top: 10 });
    this.showValues(place);
    this.reading.textContent = `${this.chart.x_label} ${tick(x[place])}: ` + this.lines.map((line, one) =>
      `${visible(labelled(line))} ${this.values[one].textContent}`).join(", ");
  }

  fillTable() {
    if (!this.details.open) {
      if (this.details.children[1]) this.details.children[1].remove();
      return;
    }
    const lines = this.lines || [];
    const plain = lines.length ? uPlot.join(lines.map((line) => inOrder(line).slice(0, 2))) : [[]];
    const step = Math.max(1, Math.ceil(plain[0].length / MOST_ROWS));
    const places = plain[0].map((_, at) => at).filter((at) => at % step === 0 || at === plain[0].length - 1);
    const made = scrolled(table([this.chart.x_label, ...lines.map(labelled)],
      places.map((at) => plain.map((column) => number(column[at], 6))), { caption: this.chart.heading }), `Table: ${this.chart.heading}`);
    if (this.details.children[1]) this.details.children[1].replaceWith(made);
    else this.details.append(made);
  }
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const one of high / low > 1000 ? [1] : [1, 2, 5]) {
      const at = one * 10 ** power;
      if (at >= low && at <= high) found.push(at);
    }
  }
  return found;
}

