// What all parts of the page use: numbers as people read them, buttons, copying.

const $ = (id) => document.getElementById(id);

const NUMBER = new Intl.NumberFormat("en");

function bytes(count) {
  if (count < 1e3) return `${count} bytes`;
  if (count < 1e6) return `${NUMBER.format(Math.round(count / 1e3))} kB`;
  return count < 1e9 ? `${(count / 1e6).toFixed(0)} MB` : `${(count / 1e9).toFixed(1)} GB`;
}

function seconds(count) {
  if (count < 60) return `${count.toFixed(count < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(count / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function speed(rate) {
  return `${rate >= 100 ? NUMBER.format(Math.round(rate)) : rate.toFixed(1)} tokens/s`;
}

function say(text) {
  $("said").textContent = text;
}

function button(label, onclick, className = "quiet small") {
  return el("button", { type: "button", className, onclick }, label);
}

// Where there is no clipboard (a page over plain HTTP from another machine), the old way.
async function copyText(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    from.focus();
  }
  const label = from.textContent;
  from.textContent = "Copied";
  say("Copied");
  setTimeout(() => (from.textContent = label), 1200);
}

function copyButton(label, text) {
  const node = button(label, () => copyText(text(), node));
  return node;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
