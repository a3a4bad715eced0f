// The service's routes as functions. Whatever goes wrong is thrown as a Problem; an aborted request as AbortError.

import { titleOf } from "./words.js";

/** What the API says of a failure (RFC 9457), or the same words for one that never reached it (`status` 0). */
export class Problem extends Error {
  constructor({ title, detail, status = 0, code, request_id: requestId, retryAfter }) {
    super(title);
    Object.assign(this, { title, detail, status, code, requestId, retryAfter });
  }

  /** Did nobody answer? What this page refuses itself has a code. */
  get lost() {
    return this.status === 0 && !this.code;
  }

  /** Is the service away for now, so that the same request is worth another try when it is back? */
  get away() {
    return this.lost || ["not_ready", "draining", "engine_failed"].includes(this.code);
  }

  /** Would the same request have a chance later? */
  get passing() {
    return this.lost || this.status === 429 || this.status >= 500;
  }
}

const KEY = "imagenet-serve-key";

let key = stored();
let limits = {};
let unauthorized = () => {};

/** The API key of this tab: it survives a reload and ends with the tab. Never in an address. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // A browser that keeps nothing: the key lives until the page is left.
  }
}

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

/** `handler()` is called whenever an answer is 401. */
export function onUnauthorized(handler) {
  unauthorized = handler;
}

/** A route's absolute address. Relative to the page, so that a prefix set by a proxy is kept. */
export function address(route, query = {}) {
  const url = new URL(route, document.baseURI);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return url.href;
}

/** The image travels as it is: the original bytes in one part named `file`. */
export const predict = (file, topK, signal) =>
  json(address("predict", { top_k: topK }), { method: "POST", body: form([file]), signal });

/** Several images in one request: `results` in their order. */
export const predictBatch = (files, topK, signal) =>
  json(address("predict/batch", { top_k: topK }), { method: "POST", body: form(files, "files"), signal });

export const explain = (file, classId, signal) =>
  json(address("explain", { class_id: classId }), { method: "POST", body: form([file]), signal });

export const model = () => json(address("model"));

/** What one upload may be: `max_upload_bytes`, `max_image_pixels`, `max_images_per_request`; empty if nobody says. */
export async function knowLimits() {
  limits = await json(address("page/limits.json")).catch(() => ({}));
  return limits;
}

/** Does the service offer `POST /explain`? Its own schema says so. */
export async function canExplain() {
  const schema = await json(address("openapi.json")).catch(() => ({}));
  return Boolean(schema.paths?.["/explain"]?.post);
}

/** `[{name, url}]`, empty where the service brings no samples. */
export async function samples() {
  const list = await json(address("page/samples.json")).catch(() => []);
  return Array.isArray(list) ? list.map(({ name, url }) => ({ name, url: new URL(url, address("page/")).href })) : [];
}

/** A sample as the file that a visitor would have picked. */
export async function sampleFile(url) {
  const response = await send(url);
  const name = decodeURIComponent(new URL(url).pathname.split("/").pop());
  const blob = await response.blob();
  return new File([blob], name, { type: blob.type });
}

/**
 * `{state, detail, fraction}`: the state in the service's words, or `unreachable`; `fraction` of a download in 0…1
 * where one is running.
 */
export async function health() {
  try {
    const ready = await fetch(address("readyz"), { cache: "no-store" });
    await ready.text(); // an answer that is left unread keeps its connection, and there are six
    if (ready.ok) return { state: "ready" };
    const response = await fetch(address("healthz"), { headers: headers(), cache: "no-store" });
    if (response.status === 401) unauthorized();
    return healthOf(await response.json().catch(() => ({})));
  } catch {
    return { state: "unreachable" };
  }
}

function healthOf({ state, detail, progress }) {
  const { done: received, total } = progress ?? {};
  const known = typeof state === "string" ? state : "loading";
  return { state: known === "ready" ? "warming" : known, detail, received, total, fraction: total ? received / total : undefined };
}

async function json(url, options) {
  const response = await send(url, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "An answer that is not JSON", detail: `From ${url}`, status: response.status });
  }
}

async function send(url, options = {}) {
  const response = await reach(url, { ...options, headers: headers() });
  if (response.ok) return response;
  if (response.status === 401) unauthorized();
  throw await problemOf(response);
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      title: "No answer from the service",
      detail: "It cannot be reached, or the connection broke before the picture was sent.",
    });
  }
}

/** A problem document inside an answer that is good as a whole. */
export function problemIn(error) {
  return new Problem({ ...error, title: titleOf(error.code, error.title, limits) });
}

/** The body's own words where it is a problem; the status line where something in between has answered. */
async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  const seconds = Number(response.headers.get("Retry-After"));
  return new Problem({
    detail: "",
    request_id: response.headers.get("X-Request-ID"),
    ...body,
    title: titleOf(body.code, body.title ?? `${response.status} ${response.statusText}`, limits),
    status: response.status,
    retryAfter: seconds > 0 ? seconds : undefined,
  });
}

function headers() {
  return key ? { Accept: "application/json", Authorization: `Bearer ${key}` } : { Accept: "application/json" };
}

function form(files, part = "file") {
  const body = new FormData();
  for (const file of files) body.append(part, file, file.name);
  return body;
}

/** The request of this page for a shell: one file by name, or several. The key is named, never shown. */
export function curl(names, topK) {
  const several = Array.isArray(names);
  const lines = several ? ["curl", ...names.map((name) => `-F ${quoted(part("files", name))}`)] : [`curl -F ${quoted(part("file", names))}`];
  if (key) lines.push('-H "Authorization: Bearer $IMAGENET_API_KEY"');
  lines.push(quoted(address(several ? "predict/batch" : "predict", { top_k: topK })));
  return lines.join(" \\\n  ");
}

/** curl splits a plain name at `,` and `;`; a quoted one it reads with backslashes before `"` and `\`. */
function part(field, name) {
  return /[,;"\\]/.test(name) ? `${field}=@"${name.replace(/["\\]/g, "\\$&")}"` : `${field}=@${name}`;
}

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
