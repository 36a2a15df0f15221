// The conversation: what was asked and answered, kept in this browser; asking, and taking an answer in.

const CONVERSATION = "lib_mlx.conversation";
const KEPT_CHARACTERS = 2_000_000; // browsers keep about five million for each server
const KEPT_EXCHANGES = 200;
const TRACED = 10; // requests that the inspector remembers
const TRACED_EVENTS = 4_000;
const SETTLED_MS = 300; // until the server has done with a request that was stopped

// Exchanges: { text, files, results, model, output, outcome, error, usage, times }. `results` are those of tools, in
// the place of a text. `outcome` is running, completed, incomplete, stopped or failed.
let exchanges = [];
let cleared = null;
let running = null; // { exchange, abort }
let attached = [];
const traces = new WeakMap(); // what the inspector shows of exchanges

function keepConversation() {
  const plain = ({ files, ...exchange }) => ({ ...exchange, files: files.map(({ data, url, ...file }) => file) });
  const kept = exchanges.slice(-KEPT_EXCHANGES).map((exchange) => JSON.stringify(plain(exchange)));
  let size = kept.reduce((sum, one) => sum + one.length, 0);
  while (size > KEPT_CHARACTERS) size -= kept.shift().length;
  while (kept.length) {
    if (store("localStorage", CONVERSATION, `[${kept.join(",")}]`)) return;
    kept.splice(0, Math.ceil(kept.length / 2)); // others of this address may have filled the storage
  }
  store("localStorage", CONVERSATION, null);
}

function loadConversation() {
  following = false; // until all are there
  try {
    exchanges = JSON.parse(stored("localStorage", CONVERSATION)) ?? [];
    for (const exchange of exchanges) {
      if (exchange.outcome === "running") exchange.outcome = "stopped"; // the page was left
      showExchange(exchange);
    }
  } catch {
    exchanges = []; // somebody else wrote it, or another version of this page
    $("exchanges").replaceChildren();
  }
  showEmpty();
  toEnd();
}

function clearConversation() {
  stop();
  cleared = exchanges;
  exchanges = [];
  $("exchanges").replaceChildren();
  keepConversation();
  showEmpty();
  showInspected(null);
  $("message").focus();
}

function undoClear() {
  exchanges = cleared;
  cleared = null;
  $("exchanges").replaceChildren();
  exchanges.forEach(showExchange);
  keepConversation();
  showEmpty();
  toEnd();
}

function removeExchange(exchange) {
  exchanges = exchanges.filter((other) => other !== exchange);
  views.get(exchange).root.remove();
  keepConversation();
  showEmpty();
}

function itemText(item) {
  return (item.content ?? []).map((part) => part.text ?? part.refusal ?? "").join("");
}

// What was refused before an answer began is no part of the conversation: it would be refused again and again.
function isPart(exchange) {
  return exchange.outcome !== "failed" || exchange.output.some((item) => itemText(item) || item.arguments);
}

function inputOf({ text, files, results }) {
  if (results) return results.map(({ call_id, output }) => ({ type: "function_call_output", call_id, output }));
  const parts = files.map(filePart);
  if (text) parts.push({ type: "input_text", text });
  return [{ type: "message", role: "user", content: parts }];
}

function outputOf(exchange) {
  return exchange.output
    .filter((item) => itemText(item) || item.type === "function_call")
    .map(({ text, ...item }) => ({ ...item, status: item.status === "completed" ? "completed" : "incomplete" }));
}

function filePart({ kind, name, type, data }) {
  if (!data) return { type: "input_text", text: `[${kind} ${name}: no longer kept]` };
  if (kind === "image") return { type: "input_image", image_url: `data:${type};base64,${data}`, detail: "auto" };
  const format = { mpeg: "mp3", "x-wav": "wav", wave: "wav", mp4: "m4a" }[type.slice(6)] ?? type.slice(6);
  return { type: "input_audio", input_audio: { data, format: format || name.split(".").pop() } };
}

function requestOf(exchange, fields) {
  const before = exchanges.slice(0, exchanges.indexOf(exchange)).filter(isPart);
  const input = [...before.flatMap((one) => [...inputOf(one), ...outputOf(one)]), ...inputOf(exchange)];
  return { ...(exchange.model && { model: exchange.model }), input, stream: true, store: false, ...fields };
}

// Sending

function send() {
  const text = $("message").value;
  if (running || (!text.trim() && !attached.length)) return;
  if (!ask({ text, files: attached })) return;
  attached = [];
  $("message").value = "";
  fitMessage();
  showAttached();
}

// Begins an exchange, in the place of another one if need be; false if the settings do not allow it.
function ask(question, instead) {
  const fields = checkSettings();
  if (fields === null) {
    openPanel("settings");
    $("settings").querySelector("[aria-invalid=true]").focus();
    return false;
  }
  if (instead) removeExchange(instead);
  const exchange = { files: [], model: $("model").value, output: [], outcome: "running", ...question };
  exchanges.push(exchange);
  cleared = null;
  showExchange(exchange);
  showEmpty();
  toEnd();
  void answer(exchange, requestOf(exchange, fields));
  return true;
}

function again(exchange) {
  const { text, files, results } = exchange;
  if (!running) ask({ text, files, results }, exchange);
}

function edit(exchange) {
  if (running) return;
  removeExchange(exchange);
  $("message").value = exchange.text;
  attached = exchange.files.filter((file) => file.data);
  showAttached();
  fitMessage();
  $("message").focus();
}

function stop() {
  running?.abort.abort();
}

async function answer(exchange, request) {
  const abort = new AbortController();
  running = { exchange, abort };
  showRunning();
  const body = JSON.stringify(request);
  const trace = { sent: performance.now(), path: "/v1/responses", request, body, events: [], dropped: 0 };
  traces.set(exchange, trace);
  forgetTraces();
  showInspected(exchange);
  const take = (data) => takeEvent(exchange, trace, data);
  try {
    const response = await call(trace.path, { method: "POST", body, signal: abort.signal });
    trace.response = { status: response.status, headers: [...response.headers], at: performance.now() - trace.sent };
    try {
      await readEvents(response, take);
    } catch (error) {
      throw abort.signal.aborted ? error : brokenOff(error);
    }
    if (exchange.outcome === "running") throw brokenOff();
  } catch (error) {
    if (exchange.outcome === "running") end(exchange, abort.signal.aborted ? "stopped" : "failed", error);
    const { status, requestId, body: text } = error;
    if (status) trace.response = { status, headers: [["x-request-id", requestId]], body: text };
  }
  settle(exchange, trace);
}

function brokenOff(error) {
  return failure({
    message: `The connection ended before the answer did${error ? ` (${error.message})` : ""}.`,
    hint: "The server may have been stopped. What had arrived is kept.",
    code: "connection_lost",
  });
}

function end(exchange, outcome, error) {
  exchange.outcome = outcome;
  if (outcome !== "failed") return;
  const { message, hint, code, type, param, status, requestId, retryAfter } = error;
  exchange.error = { message, hint, code, type, param, status, requestId, retryAfter };
}

function settle(exchange, trace) {
  exchange.times = {
    all: (performance.now() - trace.sent) / 1000,
    first: trace.first && (trace.first - trace.sent) / 1000,
    writing: trace.first && (trace.last - trace.first) / 1000,
  };
  if (running?.exchange === exchange) running = null;
  if (exchanges.includes(exchange)) {
    drawExchange(exchange);
    keepConversation();
  }
  showInspectedEvents();
  showRunning();
  setTimeout(refresh, SETTLED_MS);
}

function takeEvent(exchange, trace, data) {
  const at = performance.now();
  const event = data === "[DONE]" ? {} : JSON.parse(data);
  const isDelta = event.type?.endsWith(".delta");
  if (isDelta && trace.events.length >= TRACED_EVENTS) trace.dropped += 1;
  else trace.events.push({ at: at - trace.sent, type: event.type ?? data, data });
  if (isDelta) {
    trace.first ??= at;
    trace.last = at;
    trace.deltas = (trace.deltas ?? 0) + 1;
  }
  fold(exchange, event);
  drawSoon(exchange);
}

// The stream of events as items of the output; texts grow in `text` until they are whole.
function fold(exchange, event) {
  const item = exchange.output[event.output_index];
  switch (event.type) {
    case "response.created":
      exchange.model ||= event.response.model; // it was sent before the list of models had come
      break;
    case "response.output_item.added":
      exchange.output[event.output_index] = { ...event.item, text: "" };
      break;
    case "response.reasoning_text.delta":
    case "response.output_text.delta":
    case "response.function_call_arguments.delta":
      item.text += event.delta;
      if (item.type === "function_call") item.arguments = item.text;
      else item.content = [{ type: item.type === "reasoning" ? "reasoning_text" : "output_text", text: item.text }];
      break;
    case "response.output_item.done":
      exchange.output[event.output_index] = event.item;
      break;
    case "response.completed":
    case "response.incomplete":
      exchange.outcome = event.response.status;
      exchange.why = event.response.incomplete_details?.reason;
      exchange.usage = event.response.usage;
      break;
    case "response.failed": {
      const { message, code } = event.response.error;
      const own = /^(.*) \((\w+)\)$/s.exec(message); // the server's own code stands in the message
      exchange.usage = event.response.usage;
      end(exchange, "failed", { message: own?.[1] ?? message, code: own?.[2] ?? code });
      break;
    }
    case "error":
      end(exchange, "failed", event.error ?? event);
      break;
  }
}

// Attachments

const MEDIA = /^(image|audio)\//;

async function attach(files) {
  const refused = [];
  for (const file of files) {
    const kind = MEDIA.exec(file.type)?.[1];
    const data = kind && (await base64(file).catch(() => null));
    if (!data) {
      refused.push(file.name);
      continue;
    }
    const url = kind === "image" ? URL.createObjectURL(file) : undefined;
    attached.push({ kind, name: file.name || kind, type: file.type, size: file.size, data, url });
  }
  showAttached(refused);
}

function base64(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}

function showAttached(refused = []) {
  const chips = attached.map((file) => {
    const remove = button("Remove", () => {
      attached = attached.filter((other) => other !== file);
      showAttached();
      $("message").focus();
    });
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    return el("li", {}, fileChip(file), remove);
  });
  const why = `${refused.join(", ")}: neither an image nor a sound that can be read.`;
  if (refused.length) chips.push(el("li", { className: "invalid", role: "alert" }, why));
  $("attachments").replaceChildren(...chips);
  $("attachments").hidden = !chips.length;
}

function fileChip({ kind, name, size, data, url }) {
  const picture = url && el("img", { src: url, alt: "" });
  const facts = `${kind}, ${bytes(size)}${data ? "" : ", no longer kept"}`;
  return el("span", { className: "file" }, picture, el("span", {}, name), el("small", {}, facts));
}
