// What a person chose, kept in this browser.
import { $, facts, options } from "./dom.js";
import { t } from "./texts.js";

const DEFAULTS = { theme: "auto", renderer: "auto", format: "auto", gamepad: true, size: "320x192" };

function load() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem("settings") ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

export const settings = load();

export function save() {
  try {
    localStorage.setItem("settings", JSON.stringify(settings));
  } catch {
    // A browser that keeps nothing: the choice holds until the page is closed.
  }
}

export function applyTheme() {
  const light = matchMedia("(prefers-color-scheme: light)").matches;
  const theme = settings.theme === "auto" ? (light ? "light" : "dark") : settings.theme;
  document.documentElement.dataset.theme = theme;
}

export function prepareSettings(changed) {
  const choices = (id, key, values) => {
    options($(id), values.map((v) => [v, t(`settings.${v}`)]));
    $(id).value = settings[key];
    $(id).addEventListener("change", () => {
      settings[key] = $(id).value;
      save();
      applyTheme();
      changed(key);
    });
  };
  choices("set-theme", "theme", ["auto", "dark", "light"]);
  choices("set-renderer", "renderer", ["auto", "webgl", "2d"]);
  choices("set-format", "format", ["auto", "h264", "jpeg"]);
  $("set-gamepad").checked = settings.gamepad;
  $("set-gamepad").addEventListener("change", () => {
    settings.gamepad = $("set-gamepad").checked;
    save();
  });
  $("settings-form").addEventListener("submit", (event) => event.preventDefault());
  $("theme").addEventListener("click", () => {
    settings.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    $("set-theme").value = settings.theme;
    save();
    applyTheme();
  });
  matchMedia("(prefers-color-scheme: light)").addEventListener("change", applyTheme);
  applyTheme();
}

export function showFacts(status, renderer) {
  const worker = status.worker;
  const rows = [[t("facts.version"), status.version]];
  if (worker) {
    rows.push([t("facts.model"), `${worker.model} (${(worker.parameters / 1e6).toFixed(1)} M)`]);
    rows.push([t("facts.device"), worker.device], [t("facts.why"), worker.device_why]);
    rows.push([t("facts.precision"), worker.precision], [t("facts.sandbox"), worker.sandbox]);
  }
  rows.push([t("facts.drawn"), t(`settings.${renderer}`)]);
  facts($("facts"), rows);
}
