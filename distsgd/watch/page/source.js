// Where the page has its runs from: the server, live, or the data inside a frozen page.

function applied(old, what) {
  // As in distsgd/watch/changes.py.
  if (what === null || what === undefined) return old;
  if ("v" in what) return what.v;
  if ("a" in what) return old.concat(what.a);
  if ("l" in what) {
    for (const [at, inner] of Object.entries(what.l)) old[at] = applied(old[at], inner);
    return old;
  }
  for (const [name, inner] of Object.entries(what.d)) old[name] = applied(old[name], inner);
  for (const name of what.x || []) delete old[name];
  return old;
}

class Live {
  constructor() {
    this.live = true;
    this.view = null;
    this.list = null;
  }

  async start() {
    const answer = await fetch("/key");
    if (!answer.ok) throw new Error((await answer.text()).trim());
    return answer.json();
  }

  watch(ids, axis, told) {
    // Follow runs: `told` has a function for each of "list", "view" and "link".
    if (this.events) this.events.close();
    const query = new URLSearchParams({ runs: ids.length ? ids.join(",") : "latest", x: axis });
    const events = new EventSource("/events?" + query);
    this.events = events;
    const follow = (name, key, tell) => events.addEventListener(name, (event) => {
      this[key] = applied(this[key], JSON.parse(event.data));
      tell(this[key]);
    });
    follow("runs", "list", told.list);
    follow("view", "view", told.view);
    events.onopen = () => told.link(true);
    events.onerror = () => told.link(false);
  }

  templates(run, version) { return `/runs/${run.id}/templates/${version}.png`; }

  examples(run) { return `/runs/${run.id}/examples.png?${run.step}`; }

  async prove(run, proof) {
    const { key } = await this.start();
    const answer = await fetch(`/runs/${run.id}/${proof}`, { method: "POST", headers: { "X-Distsgd-Key": key } });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    return answer.json();
  }
}

class Frozen {
  constructor(content) {
    this.live = false;
    this.content = content;
  }

  async start() { return { version: this.content.version, start: null }; }

  watch(ids, axis, told) { told.view(this.content); }

  templates(run, version) { return (this.content.templates[run.id] || {})[version]; }

  examples(run) { return this.content.examples[run.id]; }
}

export function openSource() {
  const frozen = document.getElementById("frozen");
  return frozen ? new Frozen(JSON.parse(frozen.textContent)) : new Live();
}
