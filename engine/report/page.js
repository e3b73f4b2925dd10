"use strict";
/* What every page shares: its data, making elements, the form that the page tells of. */
const data = JSON.parse(document.getElementById("data").textContent) || {};
const $ = id => document.getElementById(id);

/* make("a", {class: "x", onclick: f}, child, …): an element; what is false is left out. */
function make(tag, attributes = {}, ...children) {
  const item = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) item.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) item.setAttribute(name, String(value));
    else if (value === true) item.setAttribute(name, "");
    else if (value !== false && value != null) item.setAttribute(name, value);
  }
  item.append(...children.flat().filter(child => child != null && child !== false));
  return item;
}

function size(count) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (count < 1024) return `${unit === "B" ? Math.round(count) : count.toFixed(1)} ${unit}`;
    count /= 1024;
  }
  return `${count.toFixed(2)} GiB`;
}

function count(number) {
  for (const [unit, scale] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]])
    if (number >= scale) return `${+(number / scale).toPrecision(3)} ${unit}`;
  return `${+number.toPrecision(3)}`;
}

/* What was deflated when the page was written. */
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

/* Scrolls a pane, and never the page, until an element of it can be seen. */
function reveal(pane, item) {
  const outer = pane.getBoundingClientRect(), inner = item.getBoundingClientRect();
  if (inner.top < outer.top + 40) pane.scrollTop += inner.top - outer.top - 60;
  else if (inner.bottom > outer.bottom - 20)
    pane.scrollTop += Math.min(inner.top - outer.top - 60, inner.bottom - outer.bottom + 80);
}

/* Up and down move between the elements of a list that can be seen. */
function walkable(list, selector) {
  list.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.target.matches("input")) return;
    const items = [...list.querySelectorAll(selector)].filter(item => item.offsetParent);
    const next = items[items.indexOf(event.target.closest(selector)) + step];
    if (next) { next.focus(); event.preventDefault(); }
  });
}

let form = data.form;
const whenFormChanges = [];

function setForm(name) {
  form = document.body.dataset.form = name;
  for (const button of document.querySelectorAll(".switch button"))
    button.setAttribute("aria-pressed", button.dataset.form === name);
  whenFormChanges.forEach(change => change());
}

if (form) {
  document.body.dataset.form = form;
  for (const button of document.querySelectorAll(".switch button"))
    button.addEventListener("click", () => setForm(button.dataset.form));
}
