import { about, ask, made, visible } from "/page/app.js";

const $ = (id) => document.getElementById(id);

function examples(model) {
  const url = `${location.origin}/predict`;
  const start = `curl -H "Authorization: Bearer $TOKEN" \\\n  `;
  const rows = model.columns.length
    ? `{"rows": [{${model.columns.slice(0, 3).map((name) => `"${name}": 1`).join(", ")}${model.columns.length > 3 ? ", ..." : ""}}]}`
    : `{"rows": [[0, 1, 2, ...]], "top": 3}`;
  const found = [`${start}-H "Content-Type: application/json" -d '${rows}' ${url}`];
  if (model.shape.length === 3) {
    found.unshift(`${start}-H "Content-Type: image/png" --data-binary @photo.png "${url}?top=3"`);
    found.push(`${start}-F file=@one.png -F file=@two.jpg ${url}`);
  }
  return found.join("\n\n");
}

function shown(schema, schemas) {
  const name = schema?.$ref?.split("/").pop();
  return name ? JSON.stringify(schemas[name], null, 1) : "";
}

async function start() {
  const [model, api] = await Promise.all([ask("/model"), ask("/openapi.json")]);
  $("model").textContent = about(model);
  $("title").textContent = visible(api.info.title);
  $("about").textContent = api.info.description;
  $("examples").textContent = examples(model);
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, one] of Object.entries(methods)) {
      const part = made("section");
      part.append(made("h2", `${method.toUpperCase()} ${path}`), made("p", one.description ?? one.summary));
      if (one.security && !one.security.length) part.append(made("p", "Without a token.", { class: "note" }));
      const kinds = Object.keys(one.requestBody?.content ?? {});
      if (kinds.length) part.append(made("p", `Content-Type: ${kinds.join(", ")}`));
      const schemas = api.components.schemas;
      for (const [title, text] of [
        ["Request", shown(one.requestBody?.content["application/json"]?.schema, schemas)],
        ["Answer", shown(one.responses["200"]?.content?.["application/json"]?.schema, schemas)],
      ]) {
        if (!text) continue;
        const details = made("details");
        details.append(made("summary", title), made("pre", text, { tabindex: 0 }));
        part.append(details);
      }
      const errors = Object.entries(one.responses).filter(([status]) => status !== "200");
      if (errors.length) {
        const list = made("ul");
        list.append(...errors.map(([status, error]) => made("li", `${status}: ${error.description}`)));
        part.append(list);
      }
      $("paths").append(part);
    }
  }
}

start().catch((error) => {
  $("problem").textContent = error.message;
});
