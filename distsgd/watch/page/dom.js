// Elements, text and numbers. Text of runs only ever becomes text nodes, never markup.

const HIDDEN = /[\p{Cc}\p{Zl}\p{Zp}\p{Cs}]|(?![\u200c\u200d])\p{Cf}/gu;

export function visible(text) {
  // Control characters, line ends and marks that turn the direction of writing are escaped.
  return String(text).replace(HIDDEN, (one) => {
    const code = one.codePointAt(0);
    return code < 256 ? "\\x" + code.toString(16).padStart(2, "0")
      : "\\u" + code.toString(16).padStart(4, "0");
  });
}

export function el(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, one]) => made.style.setProperty(key, one));
    else made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) {
      made.append(child instanceof Node ? child : visible(child));
    }
  }
  return made;
}

export function unseen(text) { return el("span", { class: "unseen" }, text); }

export function byId(name) { return document.getElementById(name); }

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return visible(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size !== 0 && size < 0.001) return value.toExponential(2);
  return value.toFixed(digits).replace(/(\.\d*?[1-9])0+$|\.0+$/, "$1");
}

export function percent(value) {
  return value === null || value === undefined ? "–" : (100 * value).toFixed(1) + " %";
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 2 : 1) + " s";
  const whole = Math.round(seconds);
  const parts = [[Math.floor(whole / 3600), "h"], [Math.floor(whole / 60) % 60, "min"], [whole % 60, "s"]];
  return parts.filter(([n]) => n).slice(0, 2).map(([n, unit]) => `${n} ${unit}`).join(" ") || "0 s";
}

export function bytes(count) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0, value = count;
  while (value >= 1000 && at < units.length - 1) { value /= 1000; at += 1; }
  return `${value.toFixed(at && value < 100 ? 1 : 0)} ${units[at]}`;
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

export function table(headings, rows, options = {}) {
  // A table whose first column names its rows.
  return el("table", { class: options.class },
    options.caption && el("caption", { class: "unseen" }, options.caption),
    el("thead", {}, el("tr", {}, headings.map((one, at) =>
      el("th", { scope: "col", class: at === 0 || (options.text || []).includes(at) ? "text" : null }, one)))),
    el("tbody", {}, rows.map((row) => el("tr", { class: row.class }, (row.cells || row).map((cell, at) =>
      at === 0 ? el("th", { scope: "row" }, cell)
        : el("td", { class: (options.text || []).includes(at) ? "text" : null }, cell))))));
}

export function scrolled(content, label) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, content);
}
