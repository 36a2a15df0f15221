// The inspector: what was sent and what came back, to the letter and with times.

const SHOWN_EVENTS = 300;

let inspected = null;
let eventsWanted = 0;

function forgetTraces() {
  const held = exchanges.filter((exchange) => traces.has(exchange));
  for (const exchange of held.slice(0, -TRACED)) traces.delete(exchange);
}

function inspect(exchange) {
  inspected = exchange;
  openPanel("inspector");
}

function showInspected(exchange) {
  inspected = exchange;
  if ($("panel-inspector").hidden) return;
  const trace = exchange && traces.get(exchange);
  eventsWanted = SHOWN_EVENTS;
  if (!trace) {
    const forgotten = "The inspector remembers the last requests, until the page is left.";
    $("inspected").replaceChildren(el("p", { className: "hint" }, exchange ? forgotten : "Nothing was sent yet."));
    return;
  }
  $("inspected").replaceChildren(
    inspectorHead("Request", copyButton("Copy JSON", () => trace.body), copyButton("Copy curl", () => curlOf(trace))),
    el("p", { className: "mono" }, `POST ${location.origin}${trace.path}`),
    el("pre", { className: "request", tabIndex: 0 }, JSON.stringify(trace.request, shortened, 2)),
    inspectorHead("Response"),
    el("p", { className: "mono", id: "inspected-status" }),
    el("pre", { id: "inspected-body", tabIndex: 0, hidden: true }),
    inspectorHead("Events", copyButton("Copy all", () => trace.events.map((event) => event.data).join("\n"))),
    el("ol", { id: "inspected-events", className: "events" }),
    el("p", { className: "hint", id: "inspected-rest" }),
    el("p", { id: "inspected-more" }, button("Show more", showMoreEvents, "small")),
  );
  showInspectedEvents();
}

function inspectorHead(title, ...buttons) {
  return el("div", { className: "head" }, el("h3", {}, title), ...buttons);
}

function shortened(_name, value) {
  if (typeof value !== "string" || value.length <= 2_000) return value;
  return `${value.slice(0, 200)}… (${NUMBER.format(value.length)} characters; copying gives all)`;
}

function curlOf({ path, body }) {
  const quoted = body.replaceAll("'", "'\\''");
  const auth = key ? ' -H "Authorization: Bearer $LIB_MLX_KEY"' : "";
  return `curl -N ${location.origin}${path} -H 'Content-Type: application/json'${auth} -d '${quoted}'`;
}

function showInspectedEvents() {
  const trace = inspected && traces.get(inspected);
  if (!trace || $("panel-inspector").hidden) return;
  const { response } = trace;
  if (response?.body && !$("inspected-body").textContent) setText($("inspected-body"), pretty(response.body));
  $("inspected-body").hidden = !response?.body;
  const none = inspected.outcome === "running" ? "waiting" : "none";
  $("inspected-status").textContent = response ? headOf(response) : none;
  const list = $("inspected-events");
  for (const event of trace.events.slice(list.childElementCount, eventsWanted)) list.append(eventRow(event));
  const rest = trace.events.length - list.childElementCount;
  const lost = trace.dropped ? `${NUMBER.format(trace.dropped)} deltas were too many to be kept. ` : "";
  $("inspected-rest").textContent = lost + (rest ? `${NUMBER.format(rest)} further events.` : "");
  $("inspected-more").hidden = !rest;
}

function headOf({ status, headers, at }) {
  const id = headers.find(([name]) => name === "x-request-id")?.[1];
  return [`HTTP ${status}`, at && `after ${at.toFixed(0)} ms`, id].filter(Boolean).join(" · ");
}

function showMoreEvents() {
  eventsWanted += SHOWN_EVENTS;
  showInspectedEvents();
}

function eventRow({ at, type, data }) {
  const peek = /"delta":"((?:[^"\\]|\\.){0,40})/.exec(data)?.[1] ?? "";
  const summary = el(
    "summary",
    {},
    el("time", {}, `${at.toFixed(0)} ms`),
    el("span", {}, type.replace(/^response\./, "")),
    el("span", { className: "peek" }, peek),
  );
  const node = el("details", {}, summary);
  node.ontoggle = () => {
    if (node.open && node.childElementCount === 1) node.append(el("pre", { tabIndex: 0 }, pretty(data)));
  };
  return el("li", {}, node);
}
