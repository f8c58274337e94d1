// Draws frames into the viewport: WebGL where there is one, else a 2D canvas. H.264 is decoded by WebCodecs, JPEG by the
// browser's own decoder. Frames that arrive while one is decoded replace each other, so nothing queues up.
import { $ } from "./dom.js";
import { settings } from "./settings.js";

const VERTEX = `attribute vec2 p; varying vec2 v;
void main() { v = vec2(p.x * .5 + .5, .5 - p.y * .5); gl_Position = vec4(p, 0., 1.); }`;
const FRAGMENT = `precision mediump float; varying vec2 v; uniform sampler2D s;
void main() { gl_FragColor = texture2D(s, v); }`;

/** A canvas keeps the kind of its first context, so another kind needs another canvas. */
function freshCanvas() {
  const old = $("viewport");
  const made = old.cloneNode(false);
  const focused = document.activeElement === old;
  old.replaceWith(made);
  if (focused) made.focus({ preventScroll: true });
  return made;
}

function webgl(canvas) {
  // Kept after drawing, so that a recording and a screenshot find the picture.
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, preserveDrawingBuffer: true })
    ?? canvas.getContext("webgl", { alpha: false, antialias: false, preserveDrawingBuffer: true });
  if (!gl) return null;
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
  gl.useProgram(program);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 3, -1, -1, 3]), gl.STATIC_DRAW);
  const place = gl.getAttribLocation(program, "p");
  gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, 2, gl.FLOAT, false, 0, 0);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.LINEAR);
  return (picture) => {
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  };
}

function flat(canvas) {
  const context = canvas.getContext("2d", { alpha: false });
  return context && ((picture) => context.drawImage(picture, 0, 0, canvas.width, canvas.height));
}

let drawn = null; // { kind, draw, canvas }

function renderer() {
  const wanted = settings.renderer;
  if (drawn && (wanted === "auto" || wanted === drawn.kind) && drawn.canvas.isConnected) return drawn;
  for (const [kind, make] of [["webgl", webgl], ["2d", flat]]) {
    if (wanted !== "auto" && wanted !== kind) continue;
    const canvas = freshCanvas();
    const draw = make(canvas);
    if (draw) {
      canvas.addEventListener("webglcontextlost", (event) => {
        event.preventDefault();
        drawn = null;
      });
      drawn = { kind, draw, canvas };
      return drawn;
    }
  }
  // The wanted kind does not exist here: whatever does.
  settings.renderer = "auto";
  return renderer();
}

/** What frames are drawn with. */
export const rendererName = () => drawn?.kind ?? settings.renderer;

let held = false;

/** A recording has one size: while it runs, pictures of another one are drawn at the size of the canvas. */
export function holdSize(on) {
  held = on;
}

/** Draws one picture (ImageBitmap or VideoFrame) of this size. */
export function paint(picture, width, height) {
  const { canvas, draw } = renderer();
  if (!held && (canvas.width !== width || canvas.height !== height)) [canvas.width, canvas.height] = [width, height];
  draw(picture);
}

/** Formats to offer to the daemon, by setting and by what the browser can. */
export function formats() {
  const can = "VideoDecoder" in window && settings.format !== "jpeg";
  return can ? "h264,jpeg" : "jpeg";
}

/** Decodes JPEG frames, the newest only. `done(frame)` is called when one was drawn. */
export class JpegScreen {
  constructor(done) {
    this.done = done;
    this.next = null;
    this.busy = false;
  }

  async show(frame) {
    this.next = frame;
    if (this.busy) return;
    this.busy = true;
    while (this.next) {
      const newest = this.next;
      this.next = null;
      try {
        const picture = await createImageBitmap(new Blob([newest.payload], { type: "image/jpeg" }));
        if (!this.closed) {
          paint(picture, newest.width, newest.height);
          this.done(newest);
        }
        picture.close();
      } catch {
        // One broken picture; the next is on its way.
      }
    }
    this.busy = false;
  }

  close() {
    this.closed = true;
  }
}

/** `avc1.PPCCLL` from the parameter set of a key frame with start codes. */
function codecOf(unit) {
  for (let i = 0; i + 7 < unit.length; i++) {
    if (unit[i] === 0 && unit[i + 1] === 0 && unit[i + 2] === 1 && (unit[i + 3] & 31) === 7) {
      return `avc1.${[...unit.subarray(i + 4, i + 7)].map((b) => b.toString(16).padStart(2, "0")).join("")}`;
    }
  }
  return null;
}

/** Decodes an H.264 stream. `failed()` is called if this browser cannot. */
export class VideoScreen {
  constructor(done, failed) {
    this.done = done;
    this.failed = failed;
    this.waiting = new Map(); // frames by timestamp
    this.decoder = null;
    this.size = ""; // that the decoder was configured for
  }

  show(frame) {
    try {
      if (frame.key && !this.decoder) this.open();
      if (!this.decoder) return;
      // A stream changes its size at a key frame, with parameters of its own.
      if (frame.key && `${frame.width}x${frame.height}` !== this.size) this.configure(frame);
      if (!this.size) return;
      this.waiting.set(frame.time, frame);
      this.decoder.decode(new EncodedVideoChunk({
        type: frame.key ? "key" : "delta", timestamp: frame.time, data: frame.payload,
      }));
    } catch {
      this.fail();
    }
  }

  configure(frame) {
    const codec = codecOf(frame.payload);
    if (!codec) return;
    this.decoder.configure({ codec, optimizeForLatency: true });
    this.size = `${frame.width}x${frame.height}`;
  }

  open() {
    this.decoder = new VideoDecoder({
      output: (picture) => {
        const frame = this.waiting.get(picture.timestamp);
        for (const time of this.waiting.keys()) if (time <= picture.timestamp) this.waiting.delete(time);
        if (frame && !this.closed) {
          paint(picture, frame.width, frame.height);
          this.done(frame);
        }
        picture.close();
      },
      error: () => this.fail(),
    });
  }

  fail() {
    if (this.closed) return;
    this.close();
    this.failed();
  }

  close() {
    this.closed = true;
    if (this.decoder && this.decoder.state !== "closed") this.decoder.close();
  }
}
