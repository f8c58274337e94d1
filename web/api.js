// Requests to the daemon: JSON in and out, problems as errors, the token where there is one.
import { $ } from "./dom.js";
import { t } from "./texts.js";

export let token = sessionStorage.getItem("token") ?? "";

export class Problem extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || "");
    this.code = problem.code;
    this.field = problem.field;
    this.allowed = problem.allowed;
  }
}

export async function request(method, path, body, kind = "application/json") {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  let sent = body;
  if (body !== undefined && kind === "application/json") {
    headers["Content-Type"] = kind;
    sent = JSON.stringify(body);
  }
  const response = await fetch(path, { method, headers, body: sent });
  if (response.status === 401) {
    await askForToken(true);
    return request(method, path, body, kind);
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({ detail: t("toast.status", { status: response.status }) }));
    throw new Problem(problem);
  }
  return response;
}

export const json = async (method, path, body) => {
  const response = await request(method, path, body);
  return response.status === 204 ? null : response.json();
};

// With a token, pictures and videos cannot be fetched by their address alone.
export async function objectUrl(path) {
  return token ? URL.createObjectURL(await (await request("GET", path)).blob()) : path;
}

let asking = null;

/** Shows the profile; if a token is `needed`, resolves when one was given. */
export function askForToken(needed = false) {
  const dialog = $("login");
  $("profile-text").textContent = t(needed ? "profile.needed" : token ? "profile.set" : "profile.none");
  $("token").value = token;
  asking ??= new Promise((resolve) => {
    if (!dialog.open) dialog.showModal();
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "use") {
        token = $("token").value.trim();
        sessionStorage.setItem("token", token);
      }
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}
