/* The spec and its ops side by side, and the stages. Rows are made when somebody opens what they are in. */

/* The IR's words in colour; `links` makes a link of a block's name. */
const WORD = /(%[\w.'@]+)|(@[^\s:\[]+)|(&[\w.]+)|("[^"]*")|(\b[a-z_]\w*(?=\())|(\[[^[\]]*\](?::| )[a-z]\w*)|(-?\b\d[\d.]*(?:e[+-]?\d+)?\b)/g;
const CLASSES = ["", "tv", "tw", "tf", "ts", "tk", "ty", "tn"];

function coloured(text, link) {
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(WORD)) {
    const kind = match.slice(1).findIndex(group => group !== undefined) + 1;
    parts.push(text.slice(at, match.index));
    parts.push(kind === 3 && link
      ? make("span", { class: "link", role: "link", onclick: event => { event.stopPropagation(); link(match[0].slice(1)); } }, match[0])
      : make("span", { class: CLASSES[kind] }, match[0]));
    at = match.index + match[0].length;
  }
  return [...parts, text.slice(at)];
}

const ir = $("ir"), spec = document.querySelector(".spec");
const ops = new Map(), blocks = new Map(), ofLine = new Map();
for (const block of data.blocks || []) {
  blocks.set(block.name, block);
  for (const op of block.ops) {
    op.block = block;
    ops.set(op.id, op);
    for (const line of new Set(op.lines.map(([number]) => number)))
      ofLine.set(line, [...(ofLine.get(line) || []), op]);
  }
}
const moved = ([, weights, cache]) => weights + cache;
const lineOf = number => spec.querySelector(`[data-line="${number}"]`);

/* --- blocks and ops ---------------------------------------------------------------------------------- */

function blockHead(block) {
  const many = block.layers ? `layer${block.count > 1 ? "s" : ""} ${block.layers}` : "outside of the layers";
  block.ops_at = make("div", { class: "ops", hidden: true });
  block.sum_at = make("span", { class: "sum" });
  block.head = make("button", { "aria-expanded": "false", onclick: () => openBlock(block, block.ops_at.hidden) },
    make("b", {}, block.name), make("span", { class: "about" }, many), block.sum_at);
  block.at = make("div", { class: "block", "data-block": block.name }, block.head, block.ops_at);
  return block.at;
}

function openBlock(block, open = true) {
  if (open && !block.ops_at.firstChild) block.ops_at.append(...block.ops.map(opRow));
  block.ops_at.hidden = !open;
  block.head.setAttribute("aria-expanded", open);
  if (open) { showCosts(block); showHeld(); }
}

function opRow(op) {
  op.cost_at = make("span", { class: "cost" });
  op.more_at = make("div", { class: "more", hidden: true });
  op.row = make("button", { class: "row", "aria-expanded": "false", onclick: () => holdOp(op) },
    make("span", { class: "at" }, op.lines.length ? `${op.lines[0][0]}` : ""),
    make("span", { class: "text" }, coloured(`${op.name} = ${op.text} : ${op.type}`, goToBlock)), op.cost_at);
  op.at = make("div", { class: "op", "data-op": op.id }, op.row, op.more_at);
  return op.at;
}

function showCosts(block) {
  const whole = moved(blocks.get("main").cost[form]) || 1;
  const own = block.ops.filter(op => !op.calls.length).reduce((sum, op) => sum + moved(op.cost[form]), 0);
  block.sum_at.textContent = size(own);
  block.sum_at.title = `weights and KV cache that its own ops move in a ${form} step, over all its layers; ` +
    `with what it calls: ${size(moved(block.cost[form]))}`;
  for (const op of block.ops_at.firstChild ? block.ops : []) {
    const bytes = moved(op.cost[form]), own = !op.calls.length;
    op.cost_at.replaceChildren(bytes && own ? size(bytes) : "",
      own && bytes > whole / 200 ? make("i", { class: "heat", style: `--s:${(bytes / whole).toFixed(4)}` }) : "");
    if (!op.more_at.hidden) op.more_at.replaceChildren(...details(op));
  }
}

function details(op) {
  const quotes = op.lines.filter(([line], at) => op.lines.findIndex(other => other[0] === line) === at).map(([line, from, to]) => {
    const text = data.spec[line - 1] || "", end = to || text.length + 1;
    return make("button", { class: "quote", onclick: () => holdLine(line) }, make("i", {}, `${data.file}:${line}`),
      text.slice(0, from - 1).trimStart(), make("mark", {}, text.slice(from - 1, end - 1)), text.slice(end - 1).replace(/\s{2,}/g, "  "));
  });
  const rows = op.tensors.map(tensor => make("tr", {}, make("td", { class: "mono" }, tensor.name), make("td", { class: "mono" }, tensor.shape),
    make("td", {}, Object.entries(tensor.formats).map(([name, layers]) => layers && Object.keys(tensor.formats).length > 1 ? `${name} (${layers})` : name).join(", ")),
    make("td", { class: "num" }, size(tensor.bytes))));
  return [
    make("p", {}, data.docs[op.op].split("`").map((part, at) => at % 2 ? make("code", {}, part) : part)), quotes,
    op.args.length && make("h4", {}, "Shapes"), op.args.length && make("code", {}, `${op.args.join("  ×  ")}  →  ${op.type}`),
    rows.length && make("h4", {}, "Tensors"),
    rows.length && make("div", { class: "scroll" }, make("table", {}, make("tbody", {}, rows))),
    make("h4", {}, `Cost of a ${form} step`), costTable(op), make("h4", {}, `What the stages did (${form})`),
    op.story[form].map(({ layers, events }) => [
      op.story[form].length > 1 && make("div", { class: "which" }, `layers ${layers}`),
      make("ol", { class: "story" }, events.length ? events.map(([stage, text, kernels]) => make("li", {},
        make("button", { class: "stage-name", onclick: () => goToStage(stage) }, stage),
        make("span", {}, `${text} `, kernels.slice(0, 4).map(name => make("button", { class: "link", onclick: () => goToStage("fused", name) }, name)),
          kernels.length > 4 ? `and ${kernels.length - 4} more` : ""))) : make("li", {}, "nothing")),
    ]),
  ].flat(2).filter(Boolean);
}

function costTable(op) {
  const [tokens, context] = data.steps[form], total = op.cost[form], layers = op.block.count;
  const line = (name, [flops, weights, cache, values]) => make("tr", {}, make("td", {}, name), [
    count(flops), size(weights), size(cache), size(values), moved([0, weights, cache]) ? (flops / (weights + cache)).toPrecision(3) : "",
  ].map(cell => make("td", { class: "num" }, cell)));
  const head = ["", "operations", "weights", "KV cache", "values", "FLOP/byte"].map((cell, at) => make("th", at ? { class: "num" } : {}, cell));
  const per = tokens > 1 ? [line("a token", total.map(part => part / tokens))] : [];
  const one = layers > 1 ? [line("a layer, on average", total.map(part => part / layers))] : [];
  return make("div", { class: "scroll", title: `${tokens} tokens, the last at position ${context}` }, make("table", {},
    make("thead", {}, make("tr", {}, head)),
    make("tbody", {}, one, line(layers > 1 ? `all ${layers} layers` : "the step", total), per)));
}

/* --- holding a line or an op -------------------------------------------------------------------------- */

let held = {};

function holdLine(number) {
  held = held.line === number ? {} : { line: number };
  const found = held.line ? ofLine.get(number) || [] : [];
  new Set(found.map(op => op.block)).forEach(block => openBlock(block));
  showHeld();
  if (found.length) show(found[0].at);
  if (held.line) reveal(spec, lineOf(number));
}

function holdOp(op, open = op.more_at.hidden) {
  op.more_at.hidden = !open;
  op.row.setAttribute("aria-expanded", open);
  if (open) op.more_at.replaceChildren(...details(op));
  held = open ? { op } : {};
  showHeld();
  if (open && op.lines.length) reveal(spec, lineOf(op.lines[0][0]));
}

function showHeld() {
  const lines = held.op ? held.op.lines : held.line ? [[held.line, 0, 0]] : [];
  spec.querySelectorAll(".stretch").forEach(mark => mark.remove());
  spec.querySelectorAll(".held").forEach(line => { line.classList.remove("held"); line.setAttribute("aria-pressed", "false"); });
  ir.querySelectorAll(".op.held").forEach(op => op.classList.remove("held"));
  for (const [number, from, to] of lines) {
    const line = lineOf(number);
    line.classList.add("held");
    line.setAttribute("aria-pressed", "true");
    if (from) line.querySelector("code").append(make("span", { class: "stretch", style: `left:${from - 1}ch;width:${(to || data.spec[number - 1].length + 1) - from}ch` }));
  }
  for (const op of held.op ? [held.op] : ofLine.get(held.line) || []) op.at?.classList.add("held");
}

function near(lines, found) {
  document.querySelectorAll(".near").forEach(item => item.classList.remove("near"));
  ir.querySelectorAll(".op.read").forEach(item => item.classList.remove("read"));
  lines.forEach(number => lineOf(number)?.classList.add("near"));
  for (const op of found) (op.at && !op.block.ops_at.hidden ? op.at : op.block.at).classList.add("near");
}

function pointAtOp(op) {
  near(op.lines.map(([number]) => number), []);
  const read = new Set(op.text.match(/%[\w.'@]+/g));
  for (const other of op.block.ops) if (read.has(other.name) && other !== op) other.at?.classList.add("read");
}

/* Brings an op into view: in its pane where that scrolls, else in the page. */
function show(item) {
  if (ir.scrollHeight > ir.clientHeight + 4) reveal(ir, item);
  else item.scrollIntoView({ block: "center" });
}

function goToBlock(name) {
  const block = blocks.get(name);
  if (!block) return;
  clearSearch();
  openBlock(block);
  $("program").scrollIntoView();
  show(block.at);
  block.head.focus({ preventScroll: true });
}

function goToOp(id) {
  const op = ops.get(id);
  clearSearch();
  openBlock(op.block);
  holdOp(op, true);
  $("program").scrollIntoView();
  show(op.at);
}

/* --- search ------------------------------------------------------------------------------------------- */

const search = $("search");

function haystack(op) {
  op.words ??= [op.block.name, op.name, op.text, op.type, op.lines.map(([line]) => `:${line}`), op.tensors.map(t => [t.name, Object.keys(t.formats)]),
    Object.values(op.story).flat().flatMap(group => group.events)].flat(4).join(" ").toLowerCase();
  return op.words;
}

function find() {
  const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let hits = 0;
  for (const block of blocks.values()) {
    const found = new Set(block.ops.filter(op => terms.every(term => haystack(op).includes(term))));
    hits += found.size;
    block.at.hidden = !found.size;
    if (terms.length && found.size) openBlock(block);
    for (const op of block.ops_at.firstChild ? block.ops : []) op.at.hidden = !found.has(op);
  }
  $("found").textContent = terms.length ? `${hits} of ${ops.size} ops` : `${ops.size} ops`;
}

function clearSearch() {
  if (search.value) { search.value = ""; find(); }
}

/* --- stages ------------------------------------------------------------------------------------------- */

let stage = "elaborated";

function stageTabs() {
  $("stages").replaceChildren(...data.stages[form].map(({ name, nodes, seconds, hits }) => make("button", {
    role: "tab", "aria-selected": name === stage, tabindex: name === stage ? 0 : -1, "data-stage": name, onclick: () => showStage(name),
  }, make("b", {}, name), make("small", {}, `${nodes.toLocaleString("en")} nodes, ${(1000 * seconds).toFixed(0)} ms`),
    make("small", {}, Object.entries(hits).map(([rule, times]) => `${times} ${rule}`).join(", ")))));
}

async function showStage(name, part) {
  stage = name;
  stageTabs();
  const found = data.stages[form].find(one => one.name === name), at = $("stage");
  const hits = Object.entries(found.hits).map(([rule, times]) => make("span", {}, make("b", {}, `${times} × ${rule}`), data.rules[rule] ? ` ${data.rules[rule]}` : ""));
  const parts = make("div", { class: "parts" });
  at.replaceChildren(make("p", { class: "lead" }, `${data.words[name]}`), hits.length ? make("div", { class: "hits" }, hits) : "", parts);
  const sections = await unpack(found.ir);
  if (stage !== name) return;
  const heads = new Map();
  const follow = target => { const head = heads.get(target); if (head) { head.open(true); parts.scrollTop = head.offsetTop - parts.offsetTop; } };
  for (const group of ["main", "blocks"]) for (const section of sections.filter(one => one.group === group)) {
    const body = make("div", { class: "part-body", hidden: true });
    const head = make("button", { class: "part-head", "aria-expanded": "false", "data-part": section.title, onclick: () => head.open(body.hidden) },
      section.title, make("span", {}, ` ${section.about || `${section.rows.length} lines`}`));
    head.open = open => {
      if (open && !body.firstChild) body.append(...section.rows.map(([text, lines]) => make("div", { onmouseenter: () => near(lines, []) }, coloured(text, follow),
        lines.length ? make("span", { class: "tc" }, `   # :${lines.join(", :")}`) : "")));
      body.hidden = !open;
      head.setAttribute("aria-expanded", open);
    };
    heads.set(section.title, head);
    parts.append(head, body);
  }
  if (part) follow(part);
  else parts.querySelector(".part-head")?.open(true);
}

async function goToStage(name, part) {
  await showStage(name, part);
  $("pipeline").scrollIntoView();
}

/* --- start -------------------------------------------------------------------------------------------- */

if (ir) {
  ir.append(...[...blocks.values()].map(blockHead));
  blocks.forEach(showCosts);
  [...blocks.values()].slice(0, 2).forEach(block => openBlock(block));
  find();
  search.addEventListener("input", find);
  $("open-all").addEventListener("click", () => blocks.forEach(block => openBlock(block)));
  addEventListener("beforeprint", () => blocks.forEach(block => openBlock(block)));
  whenFormChanges.push(() => { blocks.forEach(showCosts); showStage(stage); });
  for (const line of spec.querySelectorAll(".line.has")) {
    const number = +line.dataset.line;
    line.addEventListener("click", () => holdLine(number));
    line.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { holdLine(number); event.preventDefault(); }
    });
    for (const event of ["mouseenter", "focus"]) line.addEventListener(event, () => near([number], ofLine.get(number) || []));
  }
  for (const event of ["mouseover", "focusin"]) ir.addEventListener(event, ({ target }) => {
    const op = ops.get(target.closest(".op")?.dataset.op);
    if (op) pointAtOp(op);
  });
  spec.addEventListener("mouseleave", () => near([], []));
  ir.addEventListener("mouseleave", () => near([], []));
  walkable(spec, ".line.has");
  walkable(ir, ".row, .block > button");
  $("stages").addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], all = data.stages[form].map(({ name }) => name);
    const next = all[all.indexOf(stage) + step];
    if (next) showStage(next).then(() => $("stages").querySelector("[aria-selected=true]").focus());
  });
  document.addEventListener("keydown", event => {
    if (event.key === "/" && !event.target.matches("input")) { search.focus(); event.preventDefault(); }
    if (event.key === "Escape") { if (event.target === search) clearSearch(); else { held = {}; showHeld(); } }
  });
  document.addEventListener("click", ({ target }) => {
    const link = target.closest("section:not(#program):not(#pipeline) [data-op], section:not(#program):not(#pipeline) [data-block]");
    if (link?.dataset.op) goToOp(link.dataset.op);
    else if (link) goToBlock(link.dataset.block);
  });
  showStage(stage);
}
