// The row of filters and the sliders of the experts' weights: drawn from the state, read back into it.

import { byId, el, paint, swatch } from "./dom.js";
import { countChanges } from "./state.js";

const MOST = 3;

export function drawFilters(state, experts) {
  byId("has").replaceChildren(...experts.map((name) => chip(name, state.has.includes(name))));
  byId("sliders").replaceChildren(...experts.map((name) => slider(name, state.weights[name] ?? 1)));
  byId("weights").hidden = Boolean(state.like) || experts.length < 2;
  [byId("shortest").value, byId("longest").value, byId("text-in-id").value] = [state.min, state.max, state.id];
  const count = countChanges(state);
  byId("active").textContent = `${count} active`;
  byId("active").hidden = byId("reset").hidden = count === 0;
}

export function readFilters() {
  const weights = {};
  for (const input of byId("sliders").querySelectorAll("input")) {
    if (Number(input.value) !== 1) weights[input.dataset.expert] = Number(input.value);
  }
  return {
    has: [...byId("has").querySelectorAll("input:checked")].map((input) => input.value),
    min: lengthIn(byId("shortest")),
    max: lengthIn(byId("longest")),
    id: byId("text-in-id").value.trim(),
    weights,
  };
}

const lengthIn = (input) => (input.value !== "" && Number(input.value) >= 0 ? input.value : "");

function chip(name, checked) {
  const input = el("input", { type: "checkbox", value: name });
  input.checked = checked;
  return el("label", { class: "chip" }, input, swatch(name), el("span", {}, name));
}

function slider(name, factor) {
  const output = el("span", { class: "factor", "aria-hidden": "true" }, words(factor));
  const input = el("input", { type: "range", min: "0", max: String(MOST), step: "0.25", "data-expert": name });
  input.value = String(factor);
  input.setAttribute("aria-valuetext", words(factor));
  input.addEventListener("input", () => {
    output.textContent = words(Number(input.value));
    input.setAttribute("aria-valuetext", words(Number(input.value)));
  });
  return paint(el("label", { class: "slider" }, el("span", {}, swatch(name), ` ${name}`), input, output), name);
}

const words = (factor) => (factor === 0 ? "off" : `× ${factor}`);

export function drawLegend(list, experts) {
  list.replaceChildren(...experts.map((name) => el("li", {}, swatch(name), el("span", {}, name))));
}
