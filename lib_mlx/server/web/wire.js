// The server's side of the page: the key, requests, server-sent events, errors.

const KEY = "lib_mlx.key";
let key = null;
let onUnauthorized = () => {};

// A browser may refuse storage altogether, by throwing at the first look.
function stored(storage, name) {
  try {
    return globalThis[storage].getItem(name);
  } catch {
    return null;
  }
}

function store(storage, name, value) {
  try {
    if (value === null) globalThis[storage].removeItem(name);
    else globalThis[storage].setItem(name, value);
    return true;
  } catch {
    return false;
  }
}

function setKey(value) {
  key = value;
  store("sessionStorage", KEY, value);
}

// `/#key=…`: a fragment is not sent to servers; it is taken out of the address so that nobody copies it from there.
function takeKeyFromAddress() {
  const found = /[#&]key=([^&]*)/.exec(location.hash);
  if (!found) return false;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    setKey(decodeURIComponent(found[1]));
  } catch {
    setKey(found[1]);
  }
  return true;
}

// An error with all that is known of it: message, hint, code, type, param, status, requestId, retryAfter, body.
function failure(fields) {
  return Object.assign(new Error(fields.message), fields);
}

async function refusal(response) {
  const text = await response.text();
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // Not the server's own words, then: whatever came is shown.
  }
  return failure({
    message: error.message ?? (text.slice(0, 4000) || response.statusText),
    code: error.code,
    type: error.type,
    param: error.param,
    status: response.status,
    requestId: response.headers.get("x-request-id"),
    body: text,
    retryAfter: response.headers.get("retry-after"),
  });
}

function unreachable(error) {
  return failure({
    message: `The server at ${location.host} does not answer (${error.message}).`,
    hint: "It may have been stopped: start it again. This page looks for it every few seconds.",
    code: "unreachable",
  });
}

function authorization() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function call(path, { method = "GET", body, signal } = {}) {
  const headers = authorization();
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw signal?.aborted ? error : unreachable(error);
  }
  if (response.ok) return response;
  const refused = await refusal(response);
  if (response.status === 401) onUnauthorized();
  throw refused;
}

// Calls `take(data)` with the data of each event, as text, until the stream ends.
async function readEvents(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let begin = 0;
    for (let end; (end = rest.indexOf("\n\n", begin)) >= 0; begin = end + 2) {
      const lines = rest.slice(begin, end).split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) take(lines.map((line) => line.slice(5).trimStart()).join("\n"));
    }
    rest = rest.slice(begin);
  }
}
