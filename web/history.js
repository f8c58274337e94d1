// The history: stored clips, worlds, moments and replays as cards, page by page.
import { json, objectUrl } from "./api.js";
import { $, element, icon, options, report, toast } from "./dom.js";
import { t } from "./texts.js";

const PAGE = 24;
const KINDS = ["all", "clip", "session", "snapshot", "replay"];
const SURE_MS = 4000; // how long a second click deletes
const ENDED = ["done", "cancelled", "failed"];
const ICONS = {
  fork: "M6 8.500v12M6 3.500a2.500 2.500 0 1 0 .01 0M18 3.500a2.500 2.500 0 1 0 .01 0M18 8.500c0 6-12 2-12 8",
  replay: "M4 12a8 8 0 1 0 2.600-5.900L4 8.500M4 4v4.500h4.500M10.500 9.500v5l4-2.500z",
  download: "M12 4v11M7.500 11l4.500 4.500 4.500-4.500M5 20h14",
  delete: "M5 7h14M10 7V4.500h4V7M7 7l.8 12.500h8.400L17 7M10.500 10.500v6M13.500 10.500v6",
};

let next = null;
let generation = 0; // of the list: answers to an older one are dropped
let actions = null;

/** `does`: { join(item), watch(item), resume(item), fork(item), replay(item) } */
export function prepareHistory(does) {
  actions = does;
  options($("history-kind"), KINDS.map((k) => [k, t(`history.${k}`)]));
  $("history-kind").addEventListener("change", () => showHistory().catch(report));
  $("more").addEventListener("click", () => page().catch(report));
}

/** Shows the first page anew. */
export async function showHistory() {
  generation += 1;
  next = null;
  $("history-state").textContent = t("history.loading");
  $("history-state").hidden = false;
  $("clips").replaceChildren();
  await page();
}

/** Shows the list anew if the daemon keeps something that is not in it yet; its newest are on the first page. */
export function learnHistory(sessions) {
  const kind = $("history-kind").value;
  const shown = new Set([...$("clips").children].map((c) => c.dataset.id));
  const news = sessions.some((s) => s.links.poster && (kind === "all" || s.kind === kind) && !shown.has(s.id));
  if (news && !next) showHistory().catch(report);
}

async function page() {
  const now = generation;
  const kind = $("history-kind").value;
  const query = new URLSearchParams({ limit: String(PAGE) });
  if (kind !== "all") query.set("kind", kind);
  if (next) query.set("cursor", next);
  let answer;
  try {
    answer = await json("GET", `/api/v1/sessions?${query}`);
  } catch (error) {
    const reason = error instanceof TypeError ? t("toast.unreachable") : error.message;
    $("history-state").textContent = t("history.failed", { reason });
    return;
  }
  if (now !== generation) return;
  next = answer.next ?? null;
  for (const item of answer.items) {
    if (item.links.poster) $("clips").append(card(item));
    else if (item.interactive && !ENDED.includes(item.state)) $("clips").append(live(item));
  }
  $("more").hidden = !next;
  const empty = $("clips").children.length === 0;
  $("history-state").hidden = !empty;
  $("history-state").textContent = empty ? t("history.empty") : "";
}

/** A card with its actions still to come. */
function frame(item, poster, about) {
  const links = element("div", { className: "links" });
  const made = element("li", { className: "item" }, poster,
    element("div", { className: "about" },
      element("p", { className: "name", textContent: item.prompt, title: item.prompt }),
      element("p", { className: "quiet", textContent: about })), links);
  made.dataset.id = item.id;
  made.dataset.kind = item.kind;
  return [made, links];
}

/** What an action is called, by eye, by tooltip and by a screen reader; with a picture its name is not shown. */
function named(control, item, key, picture) {
  const text = t(key);
  control.title = picture ? text : "";
  control.ariaLabel = t("history.named", { action: text, prompt: item.prompt });
  const name = element("span", { className: picture ? "unseen" : "", textContent: text });
  control.replaceChildren(...(picture ? [icon(picture)] : []), name);
  return control;
}

function action(item, key, picture, work) {
  const button = element("button", { type: "button", className: picture ? "link icon" : "link main" });
  button.addEventListener("click", () => Promise.resolve(work(button)).catch(report));
  return named(button, item, key, picture);
}

/** A world that runs. */
function live(item) {
  const poster = element("button", {
    type: "button", className: "poster dream", ariaLabel: t("history.joining", { prompt: item.prompt }),
  }, element("span", { className: "badge now", textContent: t("history.live") }));
  poster.addEventListener("click", () => actions.join(item).catch(report));
  const { width, height, seed } = item;
  const [made, links] = frame(item, poster, t("history.liveFacts", { width, height, seed, frames: item.frame_count }));
  links.append(action(item, "history.join", null, () => actions.join(item)));
  return made;
}

function card(item) {
  const image = element("img", { alt: "", loading: "lazy", decoding: "async", width: item.width, height: item.height });
  objectUrl(item.links.poster).then((url) => { image.src = url; }).catch(() => {});
  const video = item.links.video;
  const open = () => (video ? actions.watch(item) : actions.resume(item));
  const label = t(video ? "history.watch" : "history.open", { prompt: item.prompt });
  // A world has no length of its own, only what was played of it.
  const seconds = ((item.frames || item.frame_count) / item.fps).toFixed(1);
  const poster = element("button", { type: "button", className: video ? "poster film" : "poster", ariaLabel: label }, image,
    element("span", { className: "badge", textContent: t(`kind.${item.kind}`) }),
    element("span", { className: "badge length", textContent: t("history.seconds", { seconds }) }));
  poster.addEventListener("click", () => Promise.resolve(open()).catch(report));
  const { width, height, seed } = item;
  const [made, links] = frame(item, poster, t("history.facts", { width, height, seed }));
  links.append(action(item, "history.continue", null, () => actions.resume(item)));
  links.append(action(item, "history.fork", ICONS.fork, () => actions.fork(item)));
  if (item.kind !== "replay") {
    links.append(action(item, "history.replayIt", ICONS.replay, () => actions.replay(item)));
  }
  if (video) links.append(download(item));
  links.append(action(item, "history.delete", ICONS.delete, (button) => remove(item, made, button)));
  return made;
}

/** The first click asks, the second one deletes. */
async function remove(item, made, button) {
  if (!button.classList.contains("sure")) {
    named(button, item, "history.sure", null);
    button.classList.add("sure");
    setTimeout(() => {
      button.classList.remove("sure");
      named(button, item, "history.delete", ICONS.delete);
    }, SURE_MS);
    return;
  }
  await json("DELETE", `/api/v1/sessions/${item.id}`);
  const after = made.nextElementSibling ?? made.previousElementSibling;
  made.remove();
  // Whoever deletes by keyboard goes on at the next card.
  (after?.querySelector("button") ?? $("history-kind")).focus();
  toast(t("history.deleted"), true);
  if ($("clips").children.length === 0) await showHistory();
}

function download(item) {
  const link = element("a", {
    className: "link icon", href: item.links.video, download: `gamegend-${item.id}.mp4`,
  });
  named(link, item, "history.download", ICONS.download);
  link.addEventListener("click", async (event) => {
    if (link.href.startsWith("blob:")) return;
    const url = await objectUrl(item.links.video);
    if (url === item.links.video) return;
    event.preventDefault();
    link.href = url;
    link.click();
  });
  return link;
}
