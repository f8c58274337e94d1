// The page: its views, its forms, and the session that is played in it.
import { askForToken, json, objectUrl } from "./api.js";
import { held, prepareControls, releaseAll, steerSession, stopRecording, toggleRecording } from "./controls.js";
import { $, banner, element, facts, options, report, say, toast } from "./dom.js";
import { learnHistory, prepareHistory, showHistory } from "./history.js";
import { learnPrompts, preparePrompts, videoPrompt } from "./prompts.js";
import { rendererName } from "./screen.js";
import { Session } from "./session.js";
import { prepareSettings, save, settings, showFacts } from "./settings.js";
import { ideas, t, translate } from "./texts.js";

const VIEWS = ["generate", "control", "history", "settings"];
const SIZES = ["320x192", "480x288", "640x384", "960x544", "1280x720"];
const REFRESH_MS = 5000;

let session = null; // what is watched now

// ---- views ----

function view() {
  const name = location.hash.slice(1);
  return VIEWS.includes(name) ? name : "generate";
}

function showView() {
  const now = view();
  document.body.dataset.view = now;
  $("title").textContent = t(`menu.${now}`);
  document.title = `${t(`menu.${now}`)} · gamegend`;
  for (const link of document.querySelectorAll(".menu a")) {
    if (link.dataset.view === now) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (now === "history") showHistory().catch(report);
  if (now === "settings") refresh();
}

let focusNext = null; // where the focus goes when the view has changed

function go(name, focus = null) {
  focusNext = focus;
  if (view() === name) changed();
  else location.hash = name;
}

function changed() {
  showView();
  scrollTo(0, 0);
  // Whoever chose a view goes on in it; whoever started a world, in that.
  $(focusNext ?? "main").focus({ preventScroll: true });
  focusNext = null;
}

// ---- the daemon ----

function learn(vocabulary) {
  const words = (list, first) => [["", first], ...list.map((w) => [String(w), String(w)])];
  options($("perspective"), words(vocabulary.perspectives, t("generate.automatic")));
  options($("steps"), words(vocabulary.steps, t("generate.default", { steps: vocabulary.default_steps })));
  for (const field of ["weather", "lighting", "effects"]) {
    options($(field), words(vocabulary[field], t("control.same")));
  }
  learnPrompts(vocabulary);
}

async function refresh() {
  try {
    const status = await json("GET", "/api/v1/status");
    if (status.worker) {
      learn(status.worker.vocabulary);
      $("device").textContent = `${status.worker.model} · ${status.worker.device}`;
      $("device").title = status.worker.device_why;
    }
    showFacts(status, rendererName());
    if (view() === "history") learnHistory(status.sessions);
    if (!session) say(status.state);
  } catch (error) {
    if (!session) say("offline");
    if (!(error instanceof TypeError) && error.code !== "rate_limited") report(error);
  }
}

// ---- sessions ----

const events = {
  hello(message) {
    learn(message.vocabulary);
    $("frame").style.aspectRatio = `${message.width} / ${message.height}`;
    events.size(message.width, message.height);
  },
  size(width, height) {
    $("size-now").textContent = `${width}×${height}`;
  },
  progress(frame, frames) {
    $("progress").value = frame / frames;
    $("progress-text").textContent = t("progress.frames", { frame, frames });
  },
  ended,
  held: () => [...held],
};

function checkPrompt() {
  const field = $("prompt");
  const empty = field.value.trim() === "";
  field.setAttribute("aria-invalid", String(empty));
  $("prompt-error").textContent = empty ? t("generate.empty") : "";
  if (empty) field.focus();
  return !empty;
}

function checkNumbers() {
  for (const id of ["frames", "rate", "seed"]) {
    if (!$(id).checkValidity()) {
      $(id).closest("details").open = true;
      $(id).reportValidity();
      return false;
    }
  }
  return true;
}

function wanted(interactive) {
  const [width, height] = $("size").value.split("x").map(Number);
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    prompt: $("prompt").value.trim(), width, height, interactive, fps: number("rate"), frames: number("frames"),
    seed: number("seed"), steps: number("steps"), perspective: $("perspective").value || undefined, ...videoPrompt(),
  };
}

/** Starts what the form says. */
async function start(interactive) {
  if (!checkPrompt() || !checkNumbers()) return;
  await begin("/api/v1/generate", wanted(interactive), interactive);
}

/** Starts a session by a request and watches it. */
async function begin(path, body, interactive) {
  if (session) await stop();
  say("connecting");
  busy(true, interactive);
  let reply;
  try {
    reply = await json("POST", path, body);
  } catch (error) {
    busy(false);
    refresh();
    throw error;
  }
  watch(reply, interactive);
}

/** Shows a session from now on, and steers it if it can be. */
function watch(reply, interactive) {
  hideClip();
  session = new Session(reply, interactive, events);
  steerSession(session);
  session.connect();
  for (const field of ["weather", "lighting", "effects"]) $(field).value = "";
  go(interactive ? "control" : "generate", interactive ? "viewport" : "cancel");
}

/** Goes back to a world that still runs: this page was closed, or another one began it. */
async function join(item) {
  if (session?.id === item.id) return go("control", "viewport");
  if (session) await stop();
  say("connecting");
  busy(true, true);
  return watch(item, true);
}

async function stop() {
  const stopped = session;
  if (!stopped) return;
  stopped.over = true;
  try {
    await json("DELETE", stopped.links.cancel);
  } finally {
    if (session === stopped) await ended(stopped, "stopped");
  }
}

async function ended(which, reason) {
  which.leave();
  if (session !== which) return;
  session = null;
  steerSession(null);
  stopRecording();
  busy(false);
  banner();
  say("ready");
  $("fps").textContent = "–";
  const quiet = ["stopped", "done", "cancelled"];
  if (!quiet.includes(reason)) toast(t("toast.ended", { reason }));
  await refresh();
  if (!which.interactive && reason === "done") {
    const clip = await json("GET", which.links.status);
    if (!session && clip.links.video) watchClip(clip).catch(report);
  }
}

function busy(active, interactive = false) {
  $("cancel").disabled = !active;
  $("cancel").textContent = t(active && !interactive ? "stage.cancel" : "stage.stop");
  $("mood-fields").disabled = !(active && interactive);
  $("control-note").textContent = t(active && interactive ? "control.live" : "control.idle");
  $("working").hidden = !(active && !interactive);
  for (const id of ["record", "keep"]) $(id).disabled = !(active && interactive);
  $("progress").value = 0;
  $("progress-text").textContent = "";
  document.body.classList.toggle("busy", active);
  if (active) for (const id of ["latency", "count", "fps"]) $(id).textContent = "–";
}

// ---- clips ----

async function watchClip(clip) {
  if (session) await stop();
  const video = $("clip");
  video.poster = await objectUrl(clip.links.poster);
  video.src = await objectUrl(clip.links.video);
  $("frame").style.aspectRatio = `${clip.width} / ${clip.height}`;
  $("size-now").textContent = `${clip.width}×${clip.height}`;
  $("prompt").value ||= clip.prompt;
  video.hidden = false;
  $("welcome").hidden = true;
  if (view() === "history") go("generate");
  video.play().catch(() => {}); // a browser may insist on a click
}

function hideClip() {
  $("clip").pause();
  $("clip").removeAttribute("src");
  $("clip").hidden = true;
}

const fromHistory = {
  join,
  watch: watchClip,
  resume: (item) => begin(`/api/v1/sessions/${item.id}/fork`, {}, true),
  fork: (item) => {
    const prompt = $("prompt").value.trim() || item.prompt;
    return begin(`/api/v1/sessions/${item.id}/fork`, { prompt, seed: Math.floor(Math.random() * 2 ** 32) }, true);
  },
  replay: async (item) => {
    toast(t("toast.replay"), true);
    await begin(`/api/v1/sessions/${item.id}/replay`, {}, false);
  },
};

// ---- wiring ----

function prepareForms() {
  options($("size"), SIZES.map((s) => [s, s.replace("x", " × ")]));
  $("size").value = settings.size;
  $("size").addEventListener("change", () => {
    settings.size = $("size").value;
    save();
  });
  $("world").addEventListener("submit", (event) => {
    event.preventDefault();
    start(true).catch(report);
  });
  $("generate").addEventListener("click", () => start(false).catch(report));
  $("prompt").addEventListener("input", () => {
    $("prompt-count").textContent = `${[...$("prompt").value].length} / 2000`;
    if ($("prompt").value.trim()) checkPrompt();
  });
  for (const [name, idea] of ideas) {
    const button = element("button", { type: "button", className: "idea", textContent: t(name), title: idea });
    button.addEventListener("click", () => {
      $("prompt").value = idea;
      $("prompt").dispatchEvent(new Event("input"));
      $("prompt").focus();
    });
    $("ideas").append(element("li", {}, button));
  }
  for (const field of ["weather", "lighting", "effects"]) {
    $(field).addEventListener("change", () => $(field).value && session?.control({ [field]: $(field).value }));
  }
  $("mood").addEventListener("submit", (event) => {
    event.preventDefault();
    const instruction = $("instruction").value.trim();
    if (!instruction) return;
    session?.control({ instruction });
    $("instruction").value = "";
  });
}

function prepareTools() {
  $("cancel").addEventListener("click", () => stop().catch(report));
  $("record").addEventListener("click", toggleRecording);
  $("keep").addEventListener("click", async () => {
    try {
      await json("POST", `/api/v1/sessions/${session.id}/snapshot`, {});
      toast(t("toast.kept"), true);
    } catch (error) {
      report(error);
    }
  });
  $("full").addEventListener("click", () => {
    if (document.fullscreenElement) document.exitFullscreen();
    else $("frame").requestFullscreen?.().catch(report);
  });
  $("profile").addEventListener("click", () => askForToken().then(refresh));
  $("help").addEventListener("click", () => $("helping").showModal());
  facts($("help-keys"), [
    ["W A S D", t("help.move")], ["Space", t("help.jump")], [t("help.gamepadName"), t("help.gamepad")],
  ]);
}

function showNumbers() {
  if (!session) return;
  const rate = session.rate();
  $("fps").textContent = rate === null ? "–" : rate.toFixed(1);
  if (session.tick !== undefined) $("count").textContent = String(session.tick);
  const { latencies } = session;
  if (latencies.length > 0) {
    const median = [...latencies].sort((a, b) => a - b)[latencies.length >> 1];
    $("latency").textContent = `${Math.round(latencies.at(-1))} ms`;
    $("latency").dataset.median = median.toFixed(1);
  }
}

translate(document);
prepareSettings(() => {});
prepareForms();
prepareTools();
prepareControls();
preparePrompts();
prepareHistory(fromHistory);
window.addEventListener("hashchange", () => {
  releaseAll();
  changed();
});
// A page that goes away leaves its session to the idle limit; closing the stream lets the daemon count.
window.addEventListener("pagehide", () => session?.socket?.close());
setInterval(showNumbers, 250);
setInterval(refresh, REFRESH_MS);
showView();
refresh();
document.documentElement.dataset.ready = "true";
