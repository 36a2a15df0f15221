// What a request is made with: the settings' form, kept in this browser.

const SETTINGS = "lib_mlx.settings";

let settings = {}; // the form's fields as text, and the model

function loadSettings() {
  try {
    settings = { ...JSON.parse(stored("localStorage", SETTINGS)) };
  } catch {
    settings = {};
  }
  for (const field of $("settings").elements) if (field.name) field.value = settings[field.name] ?? "";
  checkSettings();
}

function saveSettings() {
  for (const field of $("settings").elements) if (field.name) settings[field.name] = field.value;
  store("localStorage", SETTINGS, JSON.stringify(settings));
  checkSettings();
}

function resetSettings() {
  $("settings").reset();
  saveSettings();
}

function parsed(name, isRight, wanted) {
  const text = $("settings").elements[name].value.trim();
  if (!text) return { value: undefined };
  try {
    const value = JSON.parse(text);
    return isRight(value) ? { value } : { problem: `This must be ${wanted}.` };
  } catch (error) {
    return { problem: `This is not JSON: ${error.message}.` };
  }
}

// Returns the fields that the settings add to a request, null if one of them cannot be read.
function checkSettings() {
  const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  const tools = parsed("tools", Array.isArray, "a list of tools");
  const further = parsed("further", isObject, "an object");
  for (const [name, { problem }] of Object.entries({ tools, further })) {
    $(`${name}-error`).hidden = !problem;
    $(`${name}-error`).textContent = problem ?? "";
    $("settings").elements[name].setAttribute("aria-invalid", String(Boolean(problem)));
  }
  if (tools.problem || further.problem) return null;
  const fields = {};
  for (const field of $("settings").elements) {
    if (field.type === "number" && field.value !== "") fields[field.name] = Number(field.value);
  }
  const { instructions, thinking } = $("settings").elements;
  if (instructions.value.trim()) fields.instructions = instructions.value;
  if (thinking.value) fields.thinking = thinking.value === "true";
  return { ...fields, ...(tools.value?.length && { tools: tools.value }), ...further.value };
}
