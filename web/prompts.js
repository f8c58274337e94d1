// The video-prompt panel: a clip or pictures go to the daemon, which shows what it would take from them.
import { objectUrl, request } from "./api.js";
import { $, options, report } from "./dom.js";
import { t } from "./texts.js";

const KINDS = ["canny", "motion_vectors", "pose"];

let upload = null;
let known = []; // kinds that the model takes
let possible = []; // kinds that can be taken from an upload

/** What the next request says about the upload, if it is to be applied. */
export function videoPrompt() {
  if (!upload || !$("apply").checked) return {};
  const kind = $("prompt-type").value;
  return kind === "continue" ? { from: upload.id } : { video_prompt: { type: kind, upload: upload.id } };
}

/** The model's kinds of video prompts. */
export function learnPrompts(vocabulary) {
  known = vocabulary.video_prompts ?? [];
  possible = vocabulary.extractions ?? KINDS;
  const kinds = known.map((k) => t(`prompts.${k}`)).join(", ");
  $("prompt-support").textContent = known.length ? t("prompts.some", { kinds }) : t("prompts.none");
  const missing = KINDS.filter((k) => !possible.includes(k));
  $("prompt-missing").textContent = missing.map((k) => t(`prompts.missing.${k}`)).join(" ");
  $("prompt-missing").hidden = missing.length === 0;
  const fresh = $("prompt-type").options.length === 0;
  const label = (k) => (missing.includes(k) ? t("prompts.unavailable", { kind: t(`prompts.${k}`) }) : t(`prompts.${k}`));
  options($("prompt-type"), ["continue", ...KINDS].map((k) => [k, label(k), missing.includes(k)]));
  if (fresh) $("prompt-type").value = known.find((k) => possible.includes(k)) ?? "continue";
  check();
}

/** An upload that the model is not made for can be looked at, not applied. */
function check() {
  const kind = $("prompt-type").value;
  const fits = kind === "continue" || (known.includes(kind) && possible.includes(kind));
  $("apply").disabled = !upload || !fits;
  if ($("apply").disabled) $("apply").checked = false;
  if (upload) {
    const ready = t("prompts.ready", upload);
    $("upload-state").textContent = fits ? ready : t("prompts.unsupported", { kind: t(`prompts.${kind}`) });
  }
}

async function send() {
  const files = [...$("upload").files];
  if (files.length === 0) return;
  const name = files.length === 1 ? files[0].name : `${files[0].name} + ${files.length - 1}`;
  const form = new FormData();
  for (const file of files) form.append("file", file, file.name);
  upload = null;
  $("previews").hidden = true;
  $("upload-state").textContent = t("prompts.sending", { name });
  check();
  try {
    const answer = await (await request("POST", "/api/v1/uploads", form, "form")).json();
    upload = { ...answer, name };
  } catch (error) {
    $("upload-state").textContent = error.message;
    throw error;
  }
  $("preview-index").max = String(upload.frames - 1);
  // The middle tells more than the beginning, where nothing has moved yet.
  $("preview-index").value = String(Math.floor(upload.frames / 2));
  $("preview-index").disabled = upload.frames < 2;
  check();
  if (!$("apply").disabled) $("apply").checked = true;
  await preview();
}

let asked = 0;

async function preview() {
  if (!upload) return;
  const turn = ++asked;
  const index = $("preview-index").value;
  const kind = $("prompt-type").value;
  const path = (type) => `${upload.links.preview}?index=${index}${type ? `&type=${type}` : ""}`;
  $("preview-source").src = await objectUrl(path(""));
  $("previews").hidden = false;
  const shown = $("preview-control");
  if (kind === "continue") {
    shown.src = $("preview-source").src;
    return;
  }
  try {
    // Asked for by hand, since an image tells nothing of why there is none.
    const picture = await (await request("GET", path(kind))).blob();
    if (turn === asked) shown.src = URL.createObjectURL(picture);
  } catch (error) {
    if (turn !== asked) return;
    shown.removeAttribute("src");
    $("upload-state").textContent = error.message;
    if (error.code !== "video_prompts_unsupported") report(error);
  }
}

export function preparePrompts() {
  $("upload").addEventListener("change", () => send().catch(report));
  $("prompt-type").addEventListener("change", () => {
    check();
    preview().catch(report);
  });
  $("preview-index").addEventListener("change", () => preview().catch(report));
}
