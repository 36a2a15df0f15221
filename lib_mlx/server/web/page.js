// Panels, theme, key and typing; and last what starts it all.

const THEME = "lib_mlx.theme";

function openPanel(name) {
  for (const other of ["server", "settings", "inspector"]) {
    $(`panel-${other}`).hidden = other !== name;
    $(`open-${other}`).setAttribute("aria-expanded", String(other === name));
  }
  $("panel").hidden = name === null;
  document.documentElement.classList.toggle("with-panel", name !== null);
  if (name === null) return;
  $(`panel-${name}`).querySelector(".close").focus();
  if (name === "server") void refresh();
  if (name === "inspector") showInspected(inspected ?? exchanges.at(-1) ?? null);
}

function openedPanel() {
  return ["server", "settings", "inspector"].find((name) => !$(`panel-${name}`).hidden) ?? null;
}

function togglePanel(name) {
  if (name === "server" && locked) askForKey();
  else if (openedPanel() === name) closePanel();
  else openPanel(name);
}

function closePanel() {
  const name = openedPanel();
  openPanel(null);
  if (name) $(`open-${name}`).focus();
}

const THEMES = ["system", "light", "dark"];

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").setAttribute("aria-label", `Theme: ${theme}`);
  $("theme").title = `Theme: ${theme}`;
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  store("localStorage", THEME, next);
  showTheme(next);
  say(`Theme: ${next}`);
}

// Set by a refusal, until there is another key: nobody is asked for one every few seconds.
let locked = false;

function askForKey() {
  locked = true;
  if ($("key-dialog").open) return;
  const none = "Whoever started the server has been told its key.";
  $("key-reason").textContent = key ? "The key that this page has is not the server’s." : none;
  $("key").value = "";
  $("key-dialog").showModal();
}

function useKey(value) {
  setKey(value);
  locked = false;
  $("key-dialog").close();
  void refresh();
}

// Typing

function fitMessage() {
  const area = $("message");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function messageKeys(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
}

function pageKeys(event) {
  if (event.key !== "Escape" || $("key-dialog").open) return;
  if (running) stop();
  else if (!$("panel").hidden) closePanel();
}

// Else the end of the connection, which comes of leaving, would be kept as an error.
function leave() {
  if (running) end(running.exchange, "stopped");
  stop();
  keepConversation();
}

function connect() {
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    send();
  };
  $("message").onkeydown = messageKeys;
  $("message").oninput = fitMessage;
  $("message").onpaste = (event) => attach(event.clipboardData.files);
  document.onkeydown = pageKeys;
  document.ondragover = (event) => event.dataTransfer.types.includes("Files") && event.preventDefault();
  document.ondrop = (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    void attach(event.dataTransfer.files);
  };
  $("stop").onclick = stop;
  $("attach").onclick = () => $("files").click();
  $("files").onchange = async () => {
    await attach([...$("files").files]);
    $("files").value = "";
    $("message").focus();
  };
  $("clear").onclick = clearConversation;
  $("undo").onclick = undoClear;
  $("copy-base-url").onclick = () => copyText($("base-url").textContent, $("copy-base-url"));
  $("theme").onclick = nextTheme;
  for (const name of ["server", "settings", "inspector"]) {
    $(`open-${name}`).onclick = () => togglePanel(name);
    $(`panel-${name}`).querySelector(".close").onclick = closePanel;
  }
  $("settings").oninput = saveSettings;
  $("settings").onsubmit = (event) => event.preventDefault();
  $("reset").onclick = resetSettings;
  $("model").onchange = () => {
    settings.model = $("model").value;
    saveSettings();
    showProgress();
  };
  $("conversation").onscroll = () => {
    const { scrollHeight, scrollTop, clientHeight } = $("conversation");
    following = scrollHeight - scrollTop - clientHeight < 48;
  };
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    useKey($("key").value.trim());
  };
  $("key-later").onclick = () => $("key-dialog").close();
  document.onvisibilitychange = watchVisibility;
  window.onpagehide = leave;
  window.onhashchange = () => takeKeyFromAddress() && useKey(key);
  onUnauthorized = askForKey;
}

function start() {
  if (!takeKeyFromAddress()) key = stored("sessionStorage", KEY);
  showTheme(THEMES.includes(stored("localStorage", THEME)) ? stored("localStorage", THEME) : "system");
  $("address").textContent = location.host;
  $("base-url").textContent = location.origin;
  connect();
  loadSettings();
  loadConversation();
  $("message").focus();
  void refresh();
}

start();
