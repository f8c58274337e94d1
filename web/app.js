// The page: starts sessions, draws what the stream sends, sends what the player does.
// Messages and the frame header are described in gamegend-protocol(7).

const $ = (id) => document.getElementById(id);
const HEADER_BYTES = 40;
const MAGIC = 0x31464747; // "GGF1", little-endian
const FORMAT_JPEG = 1;
const RETRY_MS = [250, 500, 1000, 2000, 5000];
const RATE_WINDOW_MS = 2000;
const LATENCIES_KEPT = 200;
const KEYS = {
  KeyW: "W", KeyA: "A", KeyS: "S", KeyD: "D", Space: "SPACE", ShiftLeft: "SHIFT", ShiftRight: "SHIFT",
  ArrowUp: "W", ArrowLeft: "A", ArrowDown: "S", ArrowRight: "D",
};

let token = sessionStorage.getItem("token") ?? "";
let session = null; // what is watched now

// ---- requests ----

class Problem extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || "the request failed");
    this.code = problem.code;
  }
}

async function request(method, path, body) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  if (response.status === 401) {
    await askForToken();
    return request(method, path, body);
  }
  if (!response.ok) throw new Problem(await response.json().catch(() => ({ detail: `status ${response.status}` })));
  return response;
}

const json = async (method, path, body) => (await request(method, path, body)).json();

// With a token, pictures and videos cannot be fetched by their address alone.
async function objectUrl(path) {
  return token ? URL.createObjectURL(await (await request("GET", path)).blob()) : path;
}

let asking = null;
function askForToken() {
  asking ??= new Promise((resolve) => {
    $("login").showModal();
    $("login").addEventListener("close", () => {
      token = $("token").value.trim();
      sessionStorage.setItem("token", token);
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

// ---- what the page says ----

function say(state, text = state) {
  $("state").dataset.state = state;
  $("state").textContent = text;
}

function banner(text) {
  $("banner").textContent = text ?? "";
  $("banner").hidden = !text;
}

function toast(text) {
  const line = document.createElement("p");
  line.textContent = text;
  $("toasts").append(line);
  setTimeout(() => line.remove(), 7000);
}

const report = (error) => toast(error instanceof TypeError ? "The daemon cannot be reached." : error.message);

function options(select, words, first) {
  const before = select.value;
  const make = ([value, text]) => Object.assign(document.createElement("option"), { value, textContent: text });
  select.replaceChildren(...[...(first ? [["", first]] : []), ...words.map((w) => [String(w), String(w)])].map(make));
  if ([...select.options].some((o) => o.value === before)) select.value = before;
}

function learn(vocabulary) {
  options($("perspective"), vocabulary.perspectives, "automatic");
  options($("steps"), vocabulary.steps, `default (${vocabulary.default_steps})`);
  for (const field of ["weather", "lighting", "effects"]) options($(field), vocabulary[field], "as is");
}

async function refresh() {
  try {
    const status = await json("GET", "/api/v1/status");
    if (status.worker) {
      learn(status.worker.vocabulary);
      $("device").textContent = `${status.worker.model} on ${status.worker.device}`;
      $("device").title = status.worker.device_why;
    }
    if (!session) say(status.state);
    await showClips(status.sessions.filter((s) => s.links.video));
  } catch (error) {
    if (!session) say("offline");
    if (!(error instanceof TypeError)) report(error);
  }
}

// ---- clips ----

const shownClips = new Map();

async function showClips(clips) {
  $("no-clips").hidden = clips.length > 0;
  const items = [];
  for (const clip of clips) {
    if (!shownClips.has(clip.id)) shownClips.set(clip.id, await clipItem(clip));
    items.push(shownClips.get(clip.id));
  }
  for (const id of shownClips.keys()) if (!clips.some((c) => c.id === id)) shownClips.delete(id);
  const list = $("clips");
  if (items.length !== list.children.length || items.some((item, i) => list.children[i] !== item)) {
    list.replaceChildren(...items);
  }
}

async function clipItem(clip) {
  const element = (name, properties, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const image = element("img", { src: await objectUrl(clip.links.poster), alt: "", loading: "lazy" });
  const poster = element("button", { type: "button", className: "poster", ariaLabel: `Watch: ${clip.prompt}` }, image);
  poster.addEventListener("click", () => watchClip(clip).catch(report));
  const facts = `${clip.width}×${clip.height}, ${(clip.frames / clip.fps).toFixed(1)} s, seed ${clip.seed}`;
  const about = element("div", { className: "about" },
    element("p", { textContent: clip.prompt, title: clip.prompt }), element("span", { className: "quiet", textContent: facts }));
  const download = element("a", { href: clip.links.video, download: `gamegend-${clip.id}.mp4`, textContent: "Download" });
  if (token) {
    download.addEventListener("click", async (event) => {
      if (download.href.startsWith("blob:")) return;
      event.preventDefault();
      download.href = await objectUrl(clip.links.video);
      download.click();
    });
  }
  const enter = element("button", { type: "button", textContent: "Play on from here" });
  enter.addEventListener("click", () => start(true, clip).catch(report));
  return element("li", {}, poster, about, element("div", { className: "links" }, download, enter));
}

async function watchClip(clip) {
  if (session) await stop();
  const video = $("clip");
  video.poster = await objectUrl(clip.links.poster);
  video.src = await objectUrl(clip.links.video);
  $("frame").style.aspectRatio = `${clip.width} / ${clip.height}`;
  video.hidden = false;
  $("stats").hidden = true;
  $("welcome").hidden = true;
  video.play().catch(() => {}); // a browser may insist on a click
}

function hideClip() {
  $("clip").pause();
  $("clip").removeAttribute("src");
  $("clip").hidden = true;
  $("stats").hidden = false;
}

// ---- sessions ----

class Session {
  constructor(reply, interactive) {
    this.id = reply.id;
    this.links = reply.links;
    this.interactive = interactive;
    this.seq = 0;
    this.sent = []; // [seq, time] of controls whose frame is awaited
    this.latencies = [];
    this.arrivals = [];
    this.frames = 0;
    this.losses = 0; // how often the worker was lost
    this.tries = 0;
    this.over = false;
    this.next = null; // newest frame that is not drawn yet
    this.drawing = false;
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const protocols = token ? ["gamegend.1", `gamegend.token.${token}`] : ["gamegend.1"];
    this.socket = new WebSocket(`${scheme}://${location.host}${this.links.stream}`, protocols);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = (event) => {
      if (typeof event.data === "string") this.hear(JSON.parse(event.data));
      else this.frame(event.data);
    };
    this.socket.onclose = () => this.closed();
  }

  hear(message) {
    if (message.type === "hello") {
      this.tries = 0;
      say("connected");
      banner();
      learn(message.vocabulary);
      $("frame").style.aspectRatio = `${message.width} / ${message.height}`;
      this.control({ keys: [...held] });
    } else if (message.type === "progress") {
      $("progress").value = message.frame / message.frames;
      $("progress-text").textContent = `${message.frame} of ${message.frames} frames`;
    } else if (message.type === "recovering") {
      this.losses += 1;
      say("recovering");
      banner(`Recovering: ${message.reason}`);
    } else if (message.type === "superseded") {
      this.sent = this.sent.filter(([seq]) => seq !== message.seq);
    } else if (message.type === "degraded") {
      toast(`Lower quality: ${message.reason}`);
    } else if (message.type === "error") {
      // Another window may steer the same session with higher numbers; frames tell which.
      if (message.problem.code !== "stale_control") toast(message.problem.detail);
    } else if (message.type === "bye") {
      this.over = true;
      if (session === this) ended(this, message.reason);
    }
  }

  async closed() {
    if (this.over || session !== this) return;
    const wait = RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)];
    say("reconnecting");
    banner("Connection lost. Trying again …");
    await new Promise((resolve) => setTimeout(resolve, wait * (0.75 + Math.random() / 2)));
    if (session !== this) return;
    try {
      const status = await json("GET", this.links.status);
      if (["done", "cancelled", "failed"].includes(status.state)) {
        this.over = true;
        ended(this, status.error?.detail ?? status.state);
        return;
      }
    } catch (error) {
      if (error.code === "unknown_session") {
        this.over = true;
        ended(this, "the daemon was restarted");
        return;
      }
    }
    if (session === this) this.connect();
  }

  frame(buffer) {
    const view = new DataView(buffer);
    if (buffer.byteLength < HEADER_BYTES || view.getUint32(0, true) !== MAGIC) return;
    if (view.getUint16(6, true) !== FORMAT_JPEG) return;
    this.next = {
      tick: Number(view.getBigUint64(8, true)),
      seq: view.getUint32(24, true),
      losses: this.losses,
      width: view.getUint16(28, true),
      height: view.getUint16(30, true),
      jpeg: new Blob([new Uint8Array(buffer, HEADER_BYTES, view.getUint32(32, true))], { type: "image/jpeg" }),
    };
    if (!this.drawing) this.draw();
  }

  // Draws the newest frame; those that arrive while one is decoded replace each other.
  async draw() {
    this.drawing = true;
    while (this.next && session === this) {
      const frame = this.next;
      this.next = null;
      try {
        const picture = await createImageBitmap(frame.jpeg);
        const canvas = $("viewport");
        if (canvas.width !== frame.width || canvas.height !== frame.height) {
          [canvas.width, canvas.height] = [frame.width, frame.height];
        }
        canvas.getContext("2d", { alpha: false }).drawImage(picture, 0, 0);
        picture.close();
        this.drawn(frame);
      } catch {
        // One broken picture; the next is on its way.
      }
    }
    this.drawing = false;
  }

  drawn(frame) {
    const now = performance.now();
    this.frames += 1;
    this.tick = frame.tick;
    this.seq = Math.max(this.seq, frame.seq);
    this.arrivals.push(now);
    while (now - this.arrivals[0] > RATE_WINDOW_MS) this.arrivals.shift();
    for (const [seq, at] of this.sent) if (seq === frame.seq) this.latencies.push(now - at);
    this.sent = this.sent.filter(([seq]) => seq > frame.seq);
    if (this.latencies.length > LATENCIES_KEPT) this.latencies.shift();
    $("welcome").hidden = true;
    // A picture that was still being decoded when the worker was lost is no sign of life.
    if ($("state").dataset.state === "recovering" && frame.losses === this.losses) {
      say("connected");
      banner();
    }
  }

  control(fields) {
    if (!this.interactive || this.over || this.socket?.readyState !== WebSocket.OPEN) return;
    this.seq += 1;
    this.sent.push([this.seq, performance.now()]);
    this.socket.send(JSON.stringify({ type: "control", seq: this.seq, ...fields }));
  }
}

async function start(interactive, from) {
  const prompt = $("prompt").value.trim() || from?.prompt;
  if (!prompt) {
    $("prompt").focus();
    $("prompt").reportValidity();
    return;
  }
  if (session) await stop();
  const [width, height] = from ? [from.width, from.height] : $("size").value.split("x").map(Number);
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const body = {
    prompt, width, height, interactive, from: from?.id, fps: number("rate"), frames: number("frames"),
    seed: number("seed"), steps: number("steps"), perspective: $("perspective").value || undefined,
  };
  say("connecting");
  busy(true, interactive);
  try {
    const reply = await json("POST", "/api/v1/generate", body);
    hideClip();
    session = new Session(reply, interactive);
    session.connect();
    for (const field of ["weather", "lighting", "effects"]) $(field).value = "";
    if (interactive) $("viewport").focus({ preventScroll: true });
  } catch (error) {
    busy(false);
    refresh();
    throw error;
  }
}

async function stop() {
  const stopped = session;
  if (!stopped) return;
  stopped.over = true;
  try {
    await json("DELETE", stopped.links.cancel);
  } finally {
    stopped.socket?.close();
    if (session === stopped) ended(stopped, "stopped");
  }
}

async function ended(which, reason) {
  session = null;
  releaseAll();
  busy(false);
  banner();
  say("ready");
  $("fps").textContent = "–";
  if (reason !== "stopped" && reason !== "done" && reason !== "cancelled") toast(`The session has ended: ${reason}.`);
  await refresh();
  if (!which.interactive && reason === "done") {
    const clip = await json("GET", which.links.status);
    if (!session && clip.links.video) watchClip(clip).catch(report);
  }
}

function busy(active, interactive = false) {
  $("cancel").disabled = !active;
  $("cancel").textContent = active && !interactive ? "Cancel" : "Stop";
  $("mood-fields").disabled = !(active && interactive);
  $("working").hidden = !(active && !interactive);
  $("progress").value = 0;
  $("progress-text").textContent = "";
  if (active) for (const id of ["latency", "count", "fps"]) $(id).textContent = "–";
}

// ---- keys ----

const held = new Set();

function press(key, down) {
  if (down === held.has(key)) return;
  if (down) held.add(key);
  else held.delete(key);
  document.querySelector(`[data-key="${key}"]`)?.classList.toggle("held", down);
  // A press shorter than a tick acts through the tap; the level says what is held.
  session?.control(down ? { keys: [...held], taps: [key] } : { keys: [...held] });
}

function releaseAll() {
  for (const key of [...held]) press(key, false);
}

const typing = (target) => target.closest?.("input, textarea, select, summary, dialog, video") !== null;

document.addEventListener("keydown", (event) => {
  const key = KEYS[event.code];
  if (!key || !session?.interactive || typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  // A focused button is still pressed by the space bar, unless it is one of the pad's.
  if (key === "SPACE" && event.target.closest("button:not(.key), a")) return;
  event.preventDefault();
  if (!event.repeat) press(key, true);
});
document.addEventListener("keyup", (event) => {
  const key = KEYS[event.code];
  if (key) press(key, false);
});
window.addEventListener("blur", releaseAll);
document.addEventListener("visibilitychange", () => document.hidden && releaseAll());

for (const button of document.querySelectorAll(".key")) {
  const key = button.dataset.key;
  button.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    button.setPointerCapture(event.pointerId);
    press(key, true);
  });
  for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
    button.addEventListener(type, () => press(key, false));
  }
  button.addEventListener("contextmenu", (event) => event.preventDefault());
  // Return on a focused button, or a screen reader: a press and a release.
  button.addEventListener("click", (event) => event.detail === 0 && session?.control({ taps: [key] }));
}

// ---- forms ----

$("world").addEventListener("submit", (event) => {
  event.preventDefault();
  start(true).catch(report);
});
$("generate").addEventListener("click", () => start(false).catch(report));
$("cancel").addEventListener("click", () => stop().catch(report));
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

setInterval(() => {
  if (!session) return;
  const { arrivals, latencies } = session;
  const span = arrivals.length > 1 ? arrivals.at(-1) - arrivals[0] : 0;
  const current = span > 0 && performance.now() - arrivals.at(-1) < RATE_WINDOW_MS;
  $("fps").textContent = current ? (((arrivals.length - 1) * 1000) / span).toFixed(1) : "–";
  if (session.tick !== undefined) $("count").textContent = String(session.tick);
  if (latencies.length > 0) {
    const median = [...latencies].sort((a, b) => a - b)[latencies.length >> 1];
    $("latency").textContent = `${Math.round(latencies.at(-1))} (${Math.round(median)}) ms`;
    $("latency").title = `last (median of ${latencies.length})`;
    $("latency").dataset.median = median.toFixed(1);
  }
}, 250);

window.addEventListener("pagehide", () => {
  // A page that goes away leaves its session to the idle limit; closing the stream lets the daemon count.
  session?.socket?.close();
});
setInterval(refresh, 5000);
$("viewport").tabIndex = 0;
refresh();
