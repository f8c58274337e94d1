// What a player's hands do: keyboard, the pad on the page, a gamepad. And the recording of what is seen.
import { $, toast } from "./dom.js";
import { holdSize } from "./screen.js";
import { settings } from "./settings.js";
import { t } from "./texts.js";

const KEYS = {
  KeyW: "W", KeyA: "A", KeyS: "S", KeyD: "D", Space: "SPACE", ShiftLeft: "SHIFT", ShiftRight: "SHIFT",
  ArrowUp: "W", ArrowLeft: "A", ArrowDown: "S", ArrowRight: "D",
};
const STICK_DEAD = 0.4;

export const held = new Set();
let steer = null; // the session that is steered

/** Steers this session from now on, or none. */
export function steerSession(session) {
  steer = session;
  if (!session) releaseAll();
}

function press(key, down) {
  if (down === held.has(key)) return;
  if (down) held.add(key);
  else held.delete(key);
  const button = document.querySelector(`[data-key="${key}"]`);
  button?.classList.toggle("held", down);
  // A press shorter than a tick acts through the tap; the level says what is held.
  steer?.control(down ? { keys: [...held], taps: [key] } : { keys: [...held] });
}

export function releaseAll() {
  for (const key of [...held]) press(key, false);
}

const typing = (target) => target.closest?.("input, textarea, select, summary, dialog, video") != null;

function keyboard() {
  document.addEventListener("keydown", (event) => {
    const key = KEYS[event.code];
    if (!key || !steer?.interactive || typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    // A focused button or link is still pressed by the space bar, unless it is one of the pad's.
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
}

function pad() {
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
    button.addEventListener("click", (event) => event.detail === 0 && steer?.control({ taps: [key] }));
  }
}

let padHeld = new Set();

/** Looks at the gamepad once; called as long as one is there. */
function readGamepad() {
  const device = settings.gamepad && [...navigator.getGamepads()].find(Boolean);
  const now = new Set();
  if (device && steer?.interactive) {
    const [x, y] = device.axes;
    const pressed = (n) => device.buttons[n]?.pressed;
    if (y < -STICK_DEAD || pressed(12)) now.add("W");
    if (y > STICK_DEAD || pressed(13)) now.add("S");
    if (x < -STICK_DEAD || pressed(14)) now.add("A");
    if (x > STICK_DEAD || pressed(15)) now.add("D");
    if (pressed(0)) now.add("SPACE");
    if (pressed(7) || pressed(10)) now.add("SHIFT");
  }
  for (const key of padHeld) if (!now.has(key)) press(key, false);
  for (const key of now) if (!padHeld.has(key)) press(key, true);
  padHeld = now;
  if (device) requestAnimationFrame(readGamepad);
}

function gamepad() {
  window.addEventListener("gamepadconnected", (event) => {
    $("pad-note").textContent = t("control.gamepad", { name: event.gamepad.id.slice(0, 60) });
    requestAnimationFrame(readGamepad);
  });
  window.addEventListener("gamepaddisconnected", () => {
    $("pad-note").textContent = t("control.keys");
    readGamepad();
  });
}

let recorder = null;

/** Begins to record the viewport, or ends it and gives the file to the browser. */
export function toggleRecording() {
  if (recorder) {
    recorder.stop();
    return;
  }
  const stream = $("viewport").captureStream?.();
  if (!stream || !("MediaRecorder" in window)) {
    toast(t("toast.noRecorder"));
    return;
  }
  const kind = ["video/mp4", "video/webm;codecs=vp9", "video/webm"].find((k) => MediaRecorder.isTypeSupported(k));
  recorder = new MediaRecorder(stream, kind ? { mimeType: kind } : {});
  const pieces = [];
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = () => {
    const file = new Blob(pieces, { type: recorder.mimeType });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `gamegend.${recorder.mimeType.includes("mp4") ? "mp4" : "webm"}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    recorder = null;
    holdSize(false);
    $("record").setAttribute("aria-pressed", "false");
  };
  holdSize(true);
  recorder.start(1000);
  $("record").setAttribute("aria-pressed", "true");
}

export function stopRecording() {
  recorder?.stop();
}

export function prepareControls() {
  keyboard();
  pad();
  gamepad();
}
