// Exchanges on the page: what was asked, the items of the answer as they come, and what is to be known of them.

const views = new WeakMap(); // of exchanges

function showEmpty() {
  $("empty").hidden = exchanges.length > 0;
  $("undo-line").hidden = !cleared?.length;
  $("clear").disabled = !exchanges.length;
}

function showRunning() {
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  if (document.activeElement === document.body) $("message").focus(); // the hidden button may have had it
}

function showExchange(exchange) {
  const question = el("div", { className: "question", role: "group", "aria-label": "You" });
  if (exchange.text) question.append(el("p", { dir: "auto" }, exchange.text));
  if (exchange.files.length) question.append(el("p", { className: "files" }, ...exchange.files.map(fileChip)));
  for (const { name, output } of exchange.results ?? []) {
    question.append(el("p", { className: "label" }, `Result of ${name}`), el("pre", {}, output));
  }
  const items = el("div", { className: "items" });
  const foot = el("div", { className: "foot" });
  const reply = el("div", { className: "answer", role: "group", "aria-label": "Answer" }, items, foot);
  const root = el("article", { className: "exchange" }, question, reply);
  const now = el("span");
  const waiting = el("p", { className: "stats" }, el("span", { className: "pulse" }), now);
  foot.append(waiting);
  views.set(exchange, { root, items, foot, reply, now, shown: [] });
  $("exchanges").append(root);
  drawExchange(exchange);
}

// Much text is drawn bit by bit, and after each bit the page has as much time for its reader.
const STEP = 8_000;
const BUSY_MS = 30;
const undrawn = new Set();
let due = false;
let restUntil = 0;

function drawSoon(exchange) {
  undrawn.add(exchange);
  if (due) return;
  due = true;
  const rest = restUntil - performance.now();
  if (rest > 16) setTimeout(drawDue, rest);
  else requestAnimationFrame(drawDue);
}

function drawDue() {
  const begun = performance.now();
  try {
    for (const exchange of undrawn) {
      undrawn.delete(exchange);
      if (exchanges.includes(exchange)) drawExchange(exchange); // which may come back for more
      if (performance.now() - begun > BUSY_MS) break;
    }
    showInspectedEvents();
  } finally {
    restUntil = 2 * performance.now() - begun;
    due = false;
    for (const exchange of undrawn) drawSoon(exchange);
  }
}

function drawExchange(exchange) {
  const view = views.get(exchange);
  const ended = exchange.outcome !== "running";
  let all = true;
  exchange.output.forEach((item, index) => {
    const shown = (view.shown[index] ??= showItem(view, item, exchange));
    if (shown.done) return;
    const whole = ended || item.status !== "in_progress";
    const drawn = shown.draw(item, whole);
    shown.done = whole && drawn;
    all &&= drawn;
  });
  view.reply.setAttribute("aria-busy", String(!ended || !all)); // readers aloud wait for the end
  if (ended && all) view.foot.replaceChildren(...footOf(exchange));
  else setText(view.now, waitingFor(exchange));
  if (following) toEnd();
  if (!all) drawSoon(exchange);
}

function showItem(view, item, exchange) {
  const make = { reasoning: reasoningView, function_call: callView }[item.type] ?? messageView;
  const shown = make(item, exchange);
  view.items.append(shown.node);
  return shown;
}

// Returns what draws a bit of what has come since it last did, and tells whether that was all.
function growing(parent) {
  const renderer = markdown(parent);
  let length = 0;
  return (text, whole) => {
    renderer.add(text.slice(length, length + STEP));
    length = Math.min(length + STEP, text.length);
    const all = length === text.length;
    if (whole && all) renderer.end();
    return all;
  };
}

function messageView() {
  const node = el("div", { className: "prose" });
  const grow = growing(node);
  return { node, draw: (item, whole) => grow(itemText(item), whole) };
}

function reasoningView() {
  const inner = el("div", { className: "prose" });
  const title = el("span", {}, "Reasoning…");
  const node = el("details", { className: "reasoning" }, el("summary", {}, title), inner);
  const grow = growing(inner);
  const draw = (item, whole) => {
    const text = itemText(item);
    if (whole) title.textContent = `Reasoning, ${NUMBER.format(text.split(/\s+/).filter(Boolean).length)} words`;
    return grow(text, whole);
  };
  return { node, draw };
}

function callView(item, exchange) {
  const body = el("pre", { tabIndex: 0 });
  const name = el("code");
  const copy = copyButton("Copy", () => body.textContent);
  const head = el("div", { className: "head" }, el("span", { className: "label" }, "Tool call"), name, copy);
  const node = el("section", { className: "call" }, head, body);
  const draw = (call, whole) => {
    setText(name, call.name);
    setText(body, whole ? pretty(call.arguments) : call.arguments);
    if (whole && call.status === "completed") node.append(resultForm(exchange, call));
    return true;
  };
  return { node, draw };
}

// Results are sent together, once there is one for each call.
function resultForm(exchange, call) {
  const field = el("textarea", { rows: 1, placeholder: "What the tool gives back" });
  field.setAttribute("aria-label", `Result of ${call.name}`);
  const send = el("button", { type: "submit", className: "small" }, "Send result");
  const form = el("form", { className: "result last-only" }, field, send);
  form.onsubmit = (event) => {
    event.preventDefault();
    const given = [...views.get(exchange).root.querySelectorAll(".result textarea")];
    const missing = given.find((other) => !other.value.trim());
    if (missing) return missing.focus();
    const calls = exchange.output.filter((item) => item.type === "function_call");
    const results = calls.map(({ call_id, name }, index) => ({ call_id, name, output: given[index].value }));
    if (!running) ask({ results });
  };
  return form;
}

function waitingFor(exchange) {
  const model = models.get(exchange.model);
  if (model?.status === "loading") return `Loading ${model.id}: ${Math.round(model.progress * 100)} % ${model.stage}`;
  const { sent, first, last, deltas } = traces.get(exchange) ?? {};
  if (!first) return sent ? "Waiting for the first token" : "";
  const rate = deltas > 8 ? `, about ${speed((deltas - 1) / ((last - first) / 1000))}` : "";
  return `${seconds((last - sent) / 1000)}${rate}`;
}

function footOf(exchange) {
  const parts = [];
  const note = noteOn(exchange);
  if (note) parts.push(el("p", { className: "note" }, note));
  if (exchange.error) parts.push(errorView(exchange));
  const text = exchange.output.filter((item) => item.type === "message").map(itemText).join("\n\n");
  const tools = el("span", { className: "tools" });
  if (text) tools.append(copyButton("Copy", () => text));
  const repeat = button(exchange.error ? "Try again" : "Again", () => again(exchange), "quiet small last-only");
  tools.append(repeat);
  if (exchange.text) tools.append(button("Edit", () => edit(exchange), "quiet small last-only"));
  tools.append(button("Inspect", () => inspect(exchange)));
  parts.push(el("div", { className: "line" }, el("p", { className: "stats" }, statsOf(exchange)), tools));
  return parts;
}

function noteOn(exchange) {
  const { outcome, why, usage } = exchange;
  if (outcome === "stopped") return "Stopped.";
  if (outcome === "completed") return outputOf(exchange).length ? "" : "The model said nothing.";
  if (outcome !== "incomplete") return "";
  if (why !== "max_output_tokens") return `Not complete: ${why ?? "the server does not say why"}.`;
  return `Cut at ${usage.output_tokens} tokens: the most that were allowed, or the context’s end.`;
}

function statsOf({ model, usage, times }) {
  const parts = [model];
  if (usage) {
    const among = (count, what) => (count ? ` (${NUMBER.format(count)} ${what})` : "");
    const cached = among(usage.input_tokens_details.cached_tokens, "cached");
    const reasoning = among(usage.output_tokens_details.reasoning_tokens, "reasoning");
    parts.push(`${NUMBER.format(usage.input_tokens)} in${cached}`);
    parts.push(`${NUMBER.format(usage.output_tokens)} tokens out${reasoning}`);
    // What comes all at once says nothing of how fast it was made.
    if (times?.writing > 0.05 && usage.output_tokens > 1) parts.push(speed((usage.output_tokens - 1) / times.writing));
  }
  if (times?.first) parts.push(`first ${seconds(times.first)}`);
  if (times) parts.push(seconds(times.all));
  return parts.filter(Boolean).join(" · ");
}

function errorView({ error }) {
  const { message, hint, code, type, param, status, requestId, retryAfter } = error;
  const facts = {
    Status: status,
    Code: code,
    Type: type,
    Field: param,
    "Try again after": retryAfter && `${retryAfter} s`,
    Request: requestId,
  };
  const known = Object.entries(facts).filter(([, value]) => value);
  const title = status && status < 500 ? "The request was refused" : "The answer failed";
  const text = [title, message, hint, ...known.map((fact) => fact.join(": "))].filter(Boolean).join("\n");
  return el(
    "section",
    { className: "error", role: "alert" },
    el("div", { className: "head" }, el("strong", {}, title), copyButton("Copy", () => text)),
    el("p", {}, message),
    hint && el("p", {}, hint),
    el("dl", {}, ...known.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])),
  );
}

// The end of the conversation is followed until somebody scrolls away from it.
let following = true;

function toEnd() {
  following = true;
  const box = $("conversation");
  box.scrollTop = box.scrollHeight;
}
