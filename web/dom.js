// Small helpers around the document. Texts go in as texts: nothing here parses HTML.
import { t } from "./texts.js";

export const $ = (id) => document.getElementById(id);

/** An element with properties and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** A picture of lines on a field of 24 x 24. */
export function icon(path) {
  const [svg, line] = ["svg", "path"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

/** Fills a select with [value, text, disabled] and keeps its choice if it is still there. */
export function options(select, pairs) {
  const before = select.value;
  const option = ([value, text, disabled = false]) => element("option", { value, textContent: text, disabled });
  select.replaceChildren(...pairs.map(option));
  if (pairs.some(([value]) => String(value) === before)) select.value = before;
}

export function say(state, text = t(`state.${state}`)) {
  const pill = $("state");
  if (pill.dataset.state === state && pill.textContent === text) return;
  pill.dataset.state = state;
  pill.textContent = text;
}

export function banner(text) {
  $("banner").textContent = text ?? "";
  $("banner").hidden = !text;
}

export function toast(text, good = false) {
  const line = element("p", { textContent: text, className: good ? "good" : "" });
  $("toasts").append(line);
  setTimeout(() => line.remove(), 7000);
}

export const report = (error) => {
  if (error?.name === "AbortError") return;
  toast(error instanceof TypeError ? t("toast.unreachable") : error.message);
};

/** Rows of a description list. */
export function facts(list, rows) {
  list.replaceChildren(
    ...rows.map(([name, value]) =>
      element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))),
  );
}
