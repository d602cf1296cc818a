const $ = (id) => document.getElementById(id);
const KEY = "distsgd-serve-token";
const SHOWN = 20;

/** The token of the link (after #), which never leaves this browser but in the header of a request. */
export function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY) ?? "";
}

/** Ask the server; an answer that is an error is thrown as its text. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  const content = await answer.json();
  if (!answer.ok) {
    const error = new Error([content.error, content.hint].filter(Boolean).join(". "));
    error.status = answer.status;
    throw error;
  }
  return content;
}

export function made(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Control characters, and marks that turn the direction of writing, are escaped. */
export function visible(text) {
  return text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Cs}]|(?![\u200c\u200d])\p{Cf}/gu, (one) => {
    const code = one.codePointAt(0).toString(16);
    return code.length < 3 ? `\\x${code.padStart(2, "0")}` : `\\u${code.padStart(4, "0")}`;
  });
}

export function about(model) {
  return `${visible(model.model)}, update ${model.version}, sha256 ${model.weights_sha256.slice(0, 12)}`;
}

function result(title, prediction, answer, picture) {
  const item = made("li");
  if (picture) item.append(picture);
  const part = made("div");
  part.append(made("h2", prediction.label), made("p", `${visible(title)}; ${about(answer)}`, { class: "note" }));
  const table = made("table");
  prediction.classes.forEach((name, place) => {
    const share = prediction.probabilities[place];
    const row = made("tr");
    const cell = made("td");
    cell.append(made("meter", "", { value: share, min: 0, max: 1, "aria-label": name }));
    row.append(made("th", name, { scope: "row" }), cell, made("td", `${(100 * share).toFixed(1)} %`));
    table.append(row);
  });
  part.append(table);
  item.append(part);
  $("results").prepend(item);
  while ($("results").children.length > SHOWN) $("results").lastChild.remove();
}

/** A small copy of an image. */
async function small(file) {
  try {
    const image = await createImageBitmap(file);
    const scale = Math.min(1, 224 / Math.max(image.width, image.height));
    const canvas = made("canvas", "", { role: "presentation" });
    canvas.width = Math.max(1, Math.round(image.width * scale));
    canvas.height = Math.max(1, Math.round(image.height * scale));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return canvas;
  } catch {
    return null; // a format that the server knows and this browser does not
  }
}

async function attempt(work) {
  $("problem").textContent = "";
  try {
    await work();
  } catch (error) {
    $("problem").textContent = error.message;
    if (error.status === 401) {
      $("enter").hidden = false;
      $("token").focus();
    }
  }
}

async function classify(files) {
  for (const file of files) {
    await attempt(async () => {
      const headers = { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" };
      const answer = await ask("/predict?top=5", { method: "POST", body: file, headers });
      result(file.name, answer.predictions[0], answer, await small(file));
    });
  }
}

function fields(model) {
  for (const name of model.columns.length ? model.columns : Array(model.width).keys()) {
    const label = made("label", String(typeof name === "number" ? name + 1 : name));
    label.append(made("input", "", { name, required: "", autocomplete: "off" }));
    $("fields").append(label);
  }
  $("columns").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = [...new FormData($("columns"))].map(([name, text]) => [
      name, text.trim() !== "" && isFinite(text) ? Number(text) : text,
    ]);
    const row = model.columns.length ? Object.fromEntries(given) : given.map(([, value]) => value);
    attempt(async () => {
      const headers = { "Content-Type": "application/json" };
      const body = JSON.stringify({ rows: [row], top: 5 });
      const answer = await ask("/predict", { method: "POST", body, headers });
      result(given.map(([, value]) => value).join(", "), answer.predictions[0], answer, null);
    });
  });
}

async function start() {
  const model = await ask("/model");
  $("enter").hidden = true;
  $("model").textContent = about(model);
  $("images").hidden = model.shape.length !== 3;
  if (model.shape.length !== 3 && model.width <= 200) {
    if (!$("fields").children.length) fields(model);
    $("columns").hidden = false;
  } else if (model.shape.length !== 3) {
    $("problem").textContent = `A row has ${model.width} values: see the interface for how to send them.`;
  }
}

if ($("drop")) {
  $("file").addEventListener("change", () => {
    const files = [...$("file").files];
    $("file").value = ""; // so that the same file can be chosen again
    classify(files);
  });
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", over);
      if (name === "drop" && !$("images").hidden) classify([...event.dataTransfer.files]);
    });
  }
  document.addEventListener("paste", (event) => {
    if (!$("images").hidden && event.clipboardData.files.length) classify([...event.clipboardData.files]);
  });
  $("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, $("token").value.trim());
    attempt(start);
  });
  attempt(start);
}
