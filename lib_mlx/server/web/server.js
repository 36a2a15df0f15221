// The server's state: is it there, what is it doing, which models does it have.

const POLL_MS = 2_000;

const models = new Map();

let status = null;
let speeds = new Map();
let timer = null;

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const state = await health();
    if (!locked) {
      status = await (await call("/v1/status")).json();
      status.models.forEach(learn);
      if (!$("panel-server").hidden) speeds = speedsIn(await (await call("/metrics")).text());
    }
    showHealth(locked ? "locked" : state);
    if (!locked && !listening) void listen();
  } catch (error) {
    showHealth(error.code === "unreachable" ? "unreachable" : locked ? "locked" : "failed", error);
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, POLL_MS);
}

// Needs no key, and is a 503 with a body while the server takes no requests.
async function health() {
  let response;
  try {
    response = await fetch("/health", { cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw unreachable(error);
  }
  return (await response.json()).status;
}

function showHealth(state, error) {
  document.documentElement.dataset.health = { ok: "ok", draining: "waiting", suspended: "waiting", locked: "waiting" }[state] ?? "bad";
  const busy = status?.queue.in_flight ? `${status.queue.in_flight} in flight` : "ready";
  $("health-text").textContent = state === "ok" ? busy : state === "locked" ? "needs a key" : state;
  $("offline").hidden = error?.code !== "unreachable";
  if (error) setText($("offline"), `${error.message} ${error.hint ?? ""}`);
  if (!$("panel-server").hidden) showServer(state);
}

// By model: how many tokens came in a second of writing, over all answers so far.
function speedsIn(text) {
  const sums = new Map();
  const metric = "gen_ai_server_time_per_output_token_seconds";
  const line = new RegExp(`^${metric}_(sum|count){gen_ai_request_model="((?:[^"\\\\]|\\\\.)*)"} (\\S+)$`, "gm");
  for (const [, which, name, value] of text.matchAll(line)) {
    const id = JSON.parse(`"${name}"`);
    sums.set(id, { ...sums.get(id), [which]: Number(value) });
  }
  return new Map([...sums].filter(([, { sum }]) => sum > 0).map(([id, { sum, count }]) => [id, count / sum]));
}

function showServer(state) {
  const facts = { Health: state, Host: location.hostname, Port: location.port || "80", ...(status && factsOf(status)) };
  const rows = Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
  $("facts").replaceChildren(...rows);
  for (const model of models.values()) showModelCard(model);
}

function factsOf({ memory, queue, cache, uptime_s: uptime, pid }) {
  const limit = memory.limit_bytes ? `, limit ${bytes(memory.limit_bytes)}` : "";
  return {
    Queue: `${queue.in_flight - queue.waiting} running, ${queue.waiting} waiting, of ${queue.limit}`,
    Memory: `${bytes(memory.resident_bytes)} used, ${bytes(memory.available_bytes)} free${limit}`,
    "Prompt cache": cache.hit_rate === null ? "not used yet" : `${Math.round(cache.hit_rate * 100)} % of all prompts`,
    "Up for": seconds(uptime),
    Process: String(pid),
  };
}

// Models

function learn(model) {
  const known = models.get(model.id);
  // Only the list of models reads files for the lengths of those that are not loaded.
  models.set(model.id, { ...model, context_length: model.context_length ?? known?.context_length ?? null });
  showModelOption(models.get(model.id));
  if (!$("panel-server").hidden) showModelCard(models.get(model.id));
  if (running && running.exchange.model === model.id) drawSoon(running.exchange);
}

async function listModels() {
  const { data } = await (await call("/v1/models")).json();
  data.forEach(learn);
}

function showModelOption(model) {
  const select = $("model");
  let option = [...select.options].find((other) => other.value === model.id);
  if (!option) {
    option = el("option", { value: model.id });
    select.append(option);
    if (model.id === settings.model) select.value = model.id;
  }
  const state = { ready: "", available: " (not loaded)" }[model.status] ?? ` (${model.status})`;
  const text = visible(model.id + state);
  if (option.textContent !== text) option.textContent = text; // an open list closes when it changes
  showProgress();
}

function showProgress() {
  const model = models.get($("model").value);
  $("model-progress").hidden = model?.status !== "loading";
  $("model-progress").value = model?.progress ?? 0;
  $("model").title = model ? visible([model.id, model.status, model.stage].filter(Boolean).join(", ")) : "";
}

function showModelCard(model) {
  let card = [...$("models").children].find((other) => other.dataset.id === model.id);
  if (!card) {
    card = el("li", { className: "card" }, el("div"), el("div", { className: "line" }));
    card.dataset.id = model.id;
    $("models").append(card);
  }
  const facts = [
    model.memory_bytes && bytes(model.memory_bytes),
    model.context_length && `${NUMBER.format(model.context_length)} tokens of context`,
    model.requests && `${model.requests} in use`,
    speeds.has(model.id) && speed(speeds.get(model.id)),
    model.pinned && "pinned",
    model.expires_in_s !== null && `unloaded in ${seconds(model.expires_in_s)}`,
  ].filter(Boolean);
  const [top, bottom] = card.children;
  const badge = el("span", { className: `badge ${model.status}` }, model.status);
  top.replaceChildren(el("div", { className: "head" }, el("strong", {}, model.id), badge));
  if (facts.length) top.append(el("p", { className: "hint" }, facts.join(" · ")));
  if (model.status === "loading") {
    const bar = el("progress", { max: 1, value: model.progress });
    bar.setAttribute("aria-label", `Loading ${model.id}`);
    top.append(bar, el("p", { className: "hint" }, `${Math.round(model.progress * 100)} % ${model.stage}`));
  }
  if (model.error) {
    const { message, hint, code } = model.error;
    top.append(el("p", { className: "invalid" }, `${message} ${hint} (${code})`));
  }
  // Buttons stay the same while their sense does: one that has the focus must not be taken away.
  const action = { available: "Load", failed: "Load", ready: "Unload", loading: "Cancel" }[model.status];
  if (bottom.textContent === (action ?? "")) return;
  bottom.replaceChildren(...(action ? [button(action, () => changeModel(model.id, action), "small")] : []));
}

async function changeModel(id, action) {
  const path = `/v1/models/${encodeURIComponent(id)}`;
  const card = [...$("models").children].find((other) => other.dataset.id === id);
  card.querySelector(".problem")?.remove();
  try {
    if (action === "Load") await call(`${path}/load`, { method: "POST", body: '{"wait": false}' });
    else await call(path, { method: "DELETE" });
    await refresh();
  } catch (error) {
    card.append(el("p", { className: "invalid problem", role: "alert" }, `${error.message} (${error.code})`));
  }
}

// Changes of models as they happen. A page that nobody sees gives its connection back: a browser has six for a server.
let listening = null;

async function listen() {
  const abort = (listening = new AbortController());
  try {
    await listModels();
    const response = await call("/v1/events", { signal: abort.signal });
    await readEvents(response, (data) => {
      const change = JSON.parse(data);
      if (change.object === "model") learn(change);
    });
  } catch {
    // Asked for again with the next look at the server's state.
  }
  if (listening === abort) listening = null;
}

function watchVisibility() {
  if (document.hidden) {
    listening?.abort();
    keepConversation();
  } else void refresh();
}
