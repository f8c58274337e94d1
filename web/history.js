// The history: stored clips, worlds, moments and replays as cards, page by page.
import { json, objectUrl } from "./api.js";
import { $, element, options, report, toast } from "./dom.js";
import { t } from "./texts.js";

const PAGE = 24;
const KINDS = ["all", "clip", "session", "snapshot", "replay"];

let next = null;
let generation = 0; // of the list: answers to an older one are dropped
let actions = null;

/** `does`: { watch(item), resume(item), fork(item), replay(item) } */
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
  for (const item of answer.items) if (item.links.poster) $("clips").append(card(item));
  $("more").hidden = !next;
  const empty = $("clips").children.length === 0;
  $("history-state").hidden = !empty;
  $("history-state").textContent = empty ? t("history.empty") : "";
}

function card(item) {
  const image = element("img", { alt: "", loading: "lazy", decoding: "async", width: item.width, height: item.height });
  objectUrl(item.links.poster).then((url) => { image.src = url; }).catch(() => {});
  const video = item.links.video;
  const open = () => (video ? actions.watch(item) : actions.resume(item));
  const label = t(video ? "history.watch" : "history.open", { prompt: item.prompt });
  const poster = element("button", { type: "button", className: "poster", ariaLabel: label }, image,
    element("span", { className: "badge", textContent: t(`kind.${item.kind}`) }));
  poster.addEventListener("click", () => Promise.resolve(open()).catch(report));
  const seconds = (item.frames / item.fps).toFixed(1);
  const about = t("history.facts", { width: item.width, height: item.height, seconds, seed: item.seed });
  const links = element("div", { className: "links" });
  const act = (key, work) => {
    const text = t(key);
    const button = element("button", {
      type: "button", className: "link", textContent: text,
      ariaLabel: t("history.named", { action: text, prompt: item.prompt }),
    });
    button.addEventListener("click", () => Promise.resolve(work()).catch(report));
    links.append(button);
  };
  act("history.continue", () => actions.resume(item));
  act("history.fork", () => actions.fork(item));
  if (item.kind !== "replay") act("history.replayIt", () => actions.replay(item));
  if (video) links.append(download(item));
  const made = element("li", { className: "item" }, poster,
    element("div", { className: "about" },
      element("p", { className: "name", textContent: item.prompt, title: item.prompt }),
      element("p", { className: "quiet", textContent: about })), links);
  made.dataset.id = item.id;
  made.dataset.kind = item.kind;
  act("history.delete", async () => {
    await json("DELETE", `/api/v1/sessions/${item.id}`);
    const after = made.nextElementSibling ?? made.previousElementSibling;
    made.remove();
    // Whoever deletes by keyboard goes on at the next card.
    (after?.querySelector("button") ?? $("history-kind")).focus();
    toast(t("history.deleted"), true);
    if ($("clips").children.length === 0) await showHistory();
  });
  return made;
}

function download(item) {
  const text = t("history.download");
  const link = element("a", {
    className: "link", href: item.links.video, download: `gamegend-${item.id}.mp4`, textContent: text,
    ariaLabel: t("history.named", { action: text, prompt: item.prompt }),
  });
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
