// One session as this page watches it: the stream, its controls, its end. The protocol is in gamegend-protocol(7).
import { json, token } from "./api.js";
import { $, banner, say, toast } from "./dom.js";
import { JpegScreen, VideoScreen, formats } from "./screen.js";
import { t } from "./texts.js";

const HEADER_BYTES = 40;
const MAGIC = 0x31464747; // "GGF1", little-endian
const FORMAT_H264 = 2;
const FLAG_KEY = 1;
const RETRY_MS = [250, 500, 1000, 2000, 5000];
const RATE_WINDOW_MS = 2000;
const LATENCIES_KEPT = 200;

export class Session {
  /** `events`: { hello(message), size(width, height), ended(session, reason),
   *  progress(frame, frames), held() -> keys } */
  constructor(reply, interactive, events) {
    this.id = reply.id;
    this.links = reply.links;
    this.interactive = interactive;
    this.events = events;
    this.seq = 0;
    this.sent = []; // [seq, time] of controls whose frame is awaited
    this.latencies = [];
    this.arrivals = [];
    this.losses = 0; // how often the worker was lost
    this.tries = 0;
    this.over = false;
    this.resume = "";
    this.formats = formats();
    this.screen = null;
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const protocols = token ? ["gamegend.1", `gamegend.token.${token}`] : ["gamegend.1"];
    const query = `&formats=${this.formats}${this.resume && `&resume=${this.resume}`}`;
    this.socket = new WebSocket(`${scheme}://${location.host}${this.links.stream}${query}`, protocols);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = (event) => {
      if (typeof event.data === "string") this.hear(JSON.parse(event.data));
      else this.frame(event.data);
    };
    this.socket.onclose = () => this.closed();
  }

  hear(message) {
    switch (message.type) {
      case "hello":
        this.tries = 0;
        this.resume = message.resume;
        this.seq = Math.max(this.seq, message.seq);
        this.format = message.format;
        this.size = [message.width, message.height];
        this.openScreen(message.format);
        say("connected");
        banner();
        this.events.hello(message);
        this.control({ keys: this.events.held() });
        break;
      case "queued":
        say("queued");
        banner(t("banner.queued", { position: message.position }));
        break;
      case "progress":
        if (message.frame > 0 && $("state").dataset.state === "queued") {
          say("connected");
          banner();
        }
        this.events.progress(message.frame, message.frames);
        break;
      case "recovering":
        this.losses += 1;
        say("recovering");
        banner(t("banner.recovering", { reason: message.reason }));
        break;
      case "superseded":
        this.sent = this.sent.filter(([seq]) => seq !== message.seq);
        break;
      case "degraded":
        toast(t("toast.degraded", { reason: message.reason }));
        break;
      case "error":
        // Another window may steer the same session with higher numbers; frames tell which.
        if (message.problem.code !== "stale_control") toast(message.problem.detail);
        break;
      case "bye":
        this.over = true;
        this.events.ended(this, message.reason);
        break;
      default: // a message of a newer daemon
    }
  }

  openScreen(format) {
    this.screen?.close();
    const done = (frame) => this.drawn(frame);
    this.screen = format === "h264"
      ? new VideoScreen(done, () => {
        // This browser cannot after all: the same session as JPEG.
        this.formats = "jpeg";
        this.socket.close();
      })
      : new JpegScreen(done);
  }

  async closed() {
    if (this.over) return;
    const wait = RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)];
    say("reconnecting");
    banner(t("banner.lost"));
    await new Promise((resolve) => setTimeout(resolve, wait * (0.75 + Math.random() / 2)));
    if (this.over) return;
    try {
      const status = await json("GET", this.links.status);
      if (["done", "cancelled", "failed"].includes(status.state)) {
        this.over = true;
        this.events.ended(this, status.error?.detail ?? status.state);
        return;
      }
    } catch (error) {
      if (error.code === "unknown_session") {
        this.over = true;
        this.events.ended(this, t("toast.restarted"));
        return;
      }
    }
    if (!this.over) this.connect();
  }

  frame(buffer) {
    const view = new DataView(buffer);
    if (buffer.byteLength < HEADER_BYTES || view.getUint32(0, true) !== MAGIC || !this.screen) return;
    const isVideo = view.getUint16(6, true) === FORMAT_H264;
    if (isVideo !== this.screen instanceof VideoScreen) return;
    this.screen.show({
      tick: Number(view.getBigUint64(8, true)),
      time: Number(view.getBigUint64(16, true)),
      seq: view.getUint32(24, true),
      losses: this.losses,
      width: view.getUint16(28, true),
      height: view.getUint16(30, true),
      key: (view.getUint32(36, true) & FLAG_KEY) !== 0,
      payload: new Uint8Array(buffer, HEADER_BYTES, view.getUint32(32, true)),
    });
  }

  drawn(frame) {
    const now = performance.now();
    this.tick = frame.tick;
    // The daemon gives up size, and takes it back, while a session runs.
    if (frame.width !== this.size[0] || frame.height !== this.size[1]) {
      this.size = [frame.width, frame.height];
      this.events.size(frame.width, frame.height);
    }
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

  /** Frames a second over the last two seconds, `null` while none come. */
  rate() {
    const { arrivals } = this;
    const span = arrivals.length > 1 ? arrivals.at(-1) - arrivals[0] : 0;
    const current = span > 0 && performance.now() - arrivals.at(-1) < RATE_WINDOW_MS;
    return current ? ((arrivals.length - 1) * 1000) / span : null;
  }

  leave() {
    this.over = true;
    this.screen?.close();
    this.socket?.close();
  }
}
