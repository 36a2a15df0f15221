// What models write, as nodes. Text becomes text nodes and nothing else: there is no way from it to markup. The part of
// Markdown that models use is understood: headings, lists, quotes, tables, code, emphasis, links.

// No block grows beyond this: what is finished is never laid out again, however long an answer gets.
const BLOCK_LIMIT = 16_000;
const CODE_CHUNK = 4_000;
const DEEPEST = 16;

// These reorder what stands around them, or hide: text could look like another. They are shown by number.
const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200b\u202a-\u202e\u2060-\u2069\ufeff]/g;

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const child of children) {
    if (typeof child === "string") appendText(node, child);
    else if (child) node.append(child);
  }
  // Last, because a direction that is found by the text is looked for again with every child that comes.
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  return node;
}

function numbered(control) {
  return `U+${control.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

// For where there can be text alone.
function visible(text) {
  return text.replace(CONTROLS, numbered);
}

function appendText(parent, text) {
  let from = 0;
  for (const { 0: control, index } of text.matchAll(CONTROLS)) {
    if (index > from) parent.append(text.slice(from, index));
    const shown = document.createElement("span");
    shown.className = "control";
    shown.title = "A character that is not to be seen";
    shown.textContent = numbered(control);
    parent.append(shown);
    from = index + 1;
  }
  if (from < text.length) parent.append(text.slice(from));
}

function setText(node, text) {
  node.replaceChildren();
  appendText(node, text);
  return node;
}

// Inside a line

// Each part of these expressions can match in one way only: text made to be slow is read as fast as any other.
const LINK = /!?\[([^[\]]*)\]\( ?<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?: "[^"\n]*")? ?\)/;
const INLINE = new RegExp(`\\\\([!-/:-@[-\`{-~])|(\`+)|${LINK.source}|https?://[^\\s<>"'\`*|]+|(\\*+|_+|~~)`, "g");
const WORD = /[\p{L}\p{N}]/u;
const TAGS = { "*": ["em"], _: ["em"], "**": ["strong"], __: ["strong"], "***": ["strong", "em"], "~~": ["del"] };

function safeUrl(text) {
  try {
    const url = new URL(text);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
  } catch {
    return null;
  }
}

function link(url, label) {
  const anchor = el("a", { href: url, title: url, target: "_blank", rel: "noopener noreferrer" });
  anchor.append(...label);
  return anchor;
}

// `nodes` collects finished nodes of one level; an emphasis that is never closed gives its mark back as text.
function inline(text, links = true) {
  const levels = [{ mark: "", nodes: [] }];
  const ticks = lastTicks(text);
  const put = (...nodes) => levels.at(-1).nodes.push(...nodes);
  const close = (at) => {
    while (levels.length > at + 1) {
      const { mark, nodes } = levels.pop();
      put(mark, ...nodes);
    }
    const { mark, nodes } = levels.pop();
    const [outer, inner] = TAGS[mark];
    const children = inner ? [el(inner, {}, ...nodes)] : nodes;
    put(el(outer, {}, ...children));
  };
  const emphasis = (run, before, after) => {
    const mark = run[0];
    const inWord = mark === "_";
    let left = run.length;
    if (before && !/\s/.test(before) && !(inWord && WORD.test(after))) {
      for (;;) {
        let at = levels.findLastIndex((level) => level.mark === mark.repeat(left));
        if (at < 0) at = levels.findLastIndex((level) => level.mark[0] === mark && level.mark.length < left);
        if (at < 1) break;
        left -= levels[at].mark.length;
        close(at);
      }
    }
    if (!left) return;
    const opens = after && !/\s/.test(after) && !(inWord && WORD.test(before));
    const rest = mark.repeat(left);
    if (opens && TAGS[rest] && levels.length < DEEPEST) levels.push({ mark: rest, nodes: [] });
    else put(rest);
  };

  let from = 0;
  const pattern = new RegExp(INLINE);
  for (let found; (found = pattern.exec(text)); ) {
    const [all, escaped, tick, label, target, run] = found;
    const at = found.index;
    if (at > from) put(text.slice(from, at));
    from = at + all.length;
    if (escaped) put(escaped);
    else if (tick) {
      const end = ticks.get(tick.length) > at ? closingTick(text, tick, from) : -1;
      if (end < 0) put(all);
      else {
        put(el("code", {}, withoutPadding(text.slice(from, end))));
        pattern.lastIndex = from = end + tick.length;
      }
    } else if (run) emphasis(run, text[at - 1] ?? "", text[from] ?? "");
    else if (target === undefined) {
      const url = withoutPunctuation(all);
      const safe = links && safeUrl(url);
      put(safe ? link(safe, [el("span", {}, url)]) : url, all.slice(url.length));
    } else {
      const safe = links && safeUrl(target);
      const shown = all[0] === "!" ? ["image: ", label || target] : inline(label, false);
      if (safe) put(link(safe, shown.map(asNode)));
      else put(all);
    }
  }
  put(text.slice(from));
  while (levels.length > 1) {
    const { mark, nodes } = levels.pop();
    put(mark, ...nodes);
  }
  return levels[0].nodes.filter((node) => node !== "");
}

function withoutPadding(code) {
  return code.startsWith(" ") && code.endsWith(" ") && code.trim() ? code.slice(1, -1) : code;
}

function withoutPunctuation(url) {
  let end = url.length;
  while (".,;:!?)]".includes(url[end - 1])) end -= 1;
  return url.slice(0, end);
}

function asNode(part) {
  return typeof part === "string" ? el("span", {}, part) : part;
}

// Where the last run of so many backticks is, so that one that is never closed is not searched for again and again.
function lastTicks(text) {
  const last = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) last.set(run.length, index);
  return last;
}

function closingTick(text, tick, from) {
  const runs = /`+/g;
  runs.lastIndex = from;
  for (let found; (found = runs.exec(text)); ) if (found[0] === tick) return found.index;
  return -1;
}

// Blocks

const FENCE = /^([ \t]*)(`{3,}(?!`)|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t](.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])(?:[ \t](.*))?$/;
const ROW = /^ {0,3}\|/;
const TABLE_RULE = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

function kindOf(line) {
  if (!line.trim()) return "blank";
  if (FENCE.test(line)) return "fence";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (QUOTE.test(line)) return "quote";
  if (ITEM.test(line)) return "list";
  if (ROW.test(line)) return "table";
  return "text";
}

const ALONE = new Set(["blank", "fence", "heading", "rule"]);

// The block of `source` that begins at `begin`. It is `closed` when no further text can change it; what decides that
// is always a whole line, so that an answer looks the same however it was cut when it came.
function nextBlock(source, begin) {
  const lines = [];
  let kind = null;
  let end = begin;
  for (;;) {
    const stop = source.indexOf("\n", end);
    const ended = stop >= 0;
    const next = ended ? stop + 1 : source.length;
    if (next - begin > BLOCK_LIMIT) {
      if (lines.length) return { kind, lines, end, closed: true };
      const cut = cutting(source, begin);
      return { kind: "text", lines: [source.slice(begin, cut)], end: cut, closed: true };
    }
    const line = source.slice(end, ended ? stop : next);
    const is = kindOf(line);
    if (kind === null) kind = is;
    else if (is !== kind && !(is === "text" && kind === "list")) return { kind, lines, end, closed: ended };
    lines.push(line);
    end = next;
    if (ALONE.has(kind) || !ended) return { kind, lines, end, closed: ended };
  }
}

// Where to cut a line that is too long by itself: at its last space, else anywhere but inside a character.
function cutting(source, begin) {
  const space = source.lastIndexOf(" ", begin + BLOCK_LIMIT - 1);
  return space > begin ? space + 1 : whole(source, begin + BLOCK_LIMIT);
}

function whole(source, cut) {
  return /[\ud800-\udbff]/.test(source[cut - 1]) ? cut - 1 : cut;
}

function blockNodes({ kind, lines }, depth) {
  switch (kind) {
    case "blank":
      return [];
    case "rule":
      return [el("hr")];
    case "heading": {
      const [, marks, title] = HEADING.exec(lines[0]);
      // The page's own headings are the first two levels.
      return [el(`h${Math.min(marks.length + 2, 6)}`, { dir: "auto" }, ...inline(title.trim()))];
    }
    case "quote": {
      const quote = el("blockquote");
      const inner = lines.map((line) => line.replace(QUOTE, "")).join("\n");
      if (depth < 4) markdown(quote, depth + 1).add(inner).end();
      else quote.append(paragraph(inner));
      return [quote];
    }
    case "list":
      return [list(lines)];
    case "table":
      return [lines.length > 1 && TABLE_RULE.test(lines[1]) ? table(lines) : paragraph(lines.join("\n"))];
    default:
      return [paragraph(lines.join("\n"))];
  }
}

function paragraph(text) {
  return el("p", { dir: "auto" }, ...inline(text.trim()));
}

function list(lines) {
  const root = el("div", { className: "list" });
  const open = []; // the lists that the last item is in, each with its own last item
  const texts = new Map();
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (!found) {
      const { item } = open.at(-1);
      texts.set(item, `${texts.get(item)}\n${line.trim()}`);
      continue;
    }
    const [, space, mark, text = ""] = found;
    const indent = space.replaceAll("\t", "    ").length;
    const ordered = mark.length > 1;
    const ends = (level) => indent < level.indent || (indent < level.indent + 2 && ordered !== level.ordered);
    while (open.length && ends(open.at(-1))) open.pop();
    if (!open.length || (indent >= open.at(-1).indent + 2 && open.length < DEEPEST)) {
      const node = ordered ? el("ol", { start: parseInt(mark, 10) }) : el("ul");
      (open.at(-1)?.item ?? root).append(node);
      open.push({ indent, ordered, node, item: null });
    }
    const item = el("li", { dir: "auto" }, el("div"));
    texts.set(item, text);
    open.at(-1).node.append(item);
    open.at(-1).item = item;
  }
  for (const [item, text] of texts) item.firstChild.replaceWith(el("div", {}, ...inline(text.trim())));
  return root;
}

function cells(line) {
  const parts = line.trim().replace(/^\|/, "").split(/(?<!\\)\|/);
  if (!parts.at(-1).trim()) parts.pop();
  return parts.map((part) => part.trim().replaceAll("\\|", "|"));
}

function table(lines) {
  const row = (line, tag) => el("tr", {}, ...cells(line).map((cell) => el(tag, { dir: "auto" }, ...inline(cell))));
  const head = el("thead", {}, row(lines[0], "th"));
  const body = el("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")));
  return el("div", { className: "scroll" }, el("table", {}, head, body));
}

// A block of code grows at its end alone: what is finished goes into chunks that are laid out once.
function codeBlock(fence) {
  const [, indent, mark, info] = FENCE.exec(fence);
  const closing = new RegExp(`^[ \\t]*${mark[0]}{${mark.length},}[ \\t]*$`);
  const code = el("code", { dir: "ltr" });
  const copy = el("button", { type: "button", className: "quiet small" }, "Copy");
  const head = el("figcaption", {}, el("span", {}, info.trim().split(/\s/)[0] || "code"), copy);
  const node = el("figure", { className: "code" }, head, el("pre", {}, code));
  const pieces = [];
  let tail = null;
  let chunk = null;
  let room = 0;
  let inLine = false; // a long line is cut
  copy.onclick = () => copyText(pieces.join("") + (tail?.textContent ?? ""), copy);

  function put(text) {
    if (room < text.length) {
      chunk = el("span", { className: "chunk" });
      code.append(chunk);
      room = CODE_CHUNK;
    }
    room -= text.length;
    pieces.push(text);
    appendText(chunk, text);
  }

  function dedented(line) {
    let drop = 0;
    while (!inLine && drop < indent.length && /[ \t]/.test(line[drop] ?? "x")) drop += 1;
    return line.slice(drop);
  }

  // Takes lines of `source` from `at` on; returns where it stopped, and whether the block has ended there.
  function take(source, at) {
    tail?.remove();
    tail = null;
    for (;;) {
      const stop = source.indexOf("\n", at);
      const cut = (stop < 0 ? source.length : stop) - at >= CODE_CHUNK;
      if (!cut && stop < 0) break;
      const end = cut ? whole(source, at + CODE_CHUNK - 1) : stop;
      const line = source.slice(at, end);
      at = cut ? end : stop + 1;
      if (!cut && !inLine && closing.test(line)) return { at, ended: true };
      put(dedented(line) + (cut ? "" : "\n"));
      inLine = cut;
    }
    const rest = source.slice(at);
    const mayClose = !inLine && !rest.trim().replaceAll(mark[0], "");
    if (rest && !mayClose) code.append((tail = el("span", { className: "chunk" }, dedented(rest))));
    return { at, ended: false };
  }
  return { node, take };
}

// Renders text that comes in pieces into `parent`: `add(text)`, and at last `end()`. Both return the renderer.
function markdown(parent, depth = 0) {
  let source = "";
  let open = []; // the nodes of blocks that further text may change
  let code = null;

  function render() {
    for (const node of open) node.remove();
    open = [];
    let at = 0;
    let settled = 0;
    let changing = false;
    while (at < source.length || code) {
      if (code) {
        const { at: next, ended } = code.take(source, at);
        at = settled = next;
        if (!ended) break;
        code = null;
        continue;
      }
      const block = nextBlock(source, at);
      at = block.end;
      if (block.kind === "fence" && block.closed && !changing) {
        code = codeBlock(block.lines[0]);
        parent.append(code.node);
        settled = at;
        continue;
      }
      changing ||= !block.closed;
      const nodes = block.kind === "fence" ? [] : blockNodes(block, depth);
      parent.append(...nodes);
      if (changing) open.push(...nodes);
      else settled = at;
    }
    source = source.slice(settled);
  }

  const renderer = {
    add(text) {
      source += text;
      render();
      return renderer;
    },
    end() {
      if (source) renderer.add("\n");
      return renderer;
    },
  };
  return renderer;
}
