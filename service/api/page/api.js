// The service's routes as functions. Whatever goes wrong is thrown as a Problem; an aborted request as AbortError.

/** What the API says of a failure (RFC 9457), or the same words for one that never reached it (`status` 0). */
export class Problem extends Error {
  constructor({ title, detail, status = 0, code, request_id: requestId, retryAfter }) {
    super(title);
    Object.assign(this, { title, detail, status, code, requestId, retryAfter });
  }

  /** Would the same request have a chance later? */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

let key = "";
let unauthorized = () => {};

/** The API key of this tab. In memory only: never stored, never in an address. */
export function useKey(value) {
  key = value;
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
  json(address("predict", { top_k: topK }), { method: "POST", body: form(file), signal });

export const explain = (file, classId, signal) =>
  json(address("explain", { class_id: classId }), { method: "POST", body: form(file), signal });

export const model = () => json(address("model"));

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
      detail: "It cannot be reached, or it ended the connection before the picture was sent, as it may with a file past its limit.",
    });
  }
}

/** The body's own words where it is a problem; the status line where something in between has answered. */
async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  const seconds = Number(response.headers.get("Retry-After"));
  return new Problem({
    detail: "",
    request_id: response.headers.get("X-Request-ID"),
    ...body,
    title: body.title ?? `${response.status} ${response.statusText}`,
    status: response.status,
    retryAfter: seconds > 0 ? seconds : undefined,
  });
}

function headers() {
  return key ? { Accept: "application/json", Authorization: `Bearer ${key}` } : { Accept: "application/json" };
}

function form(file) {
  const body = new FormData();
  body.append("file", file, file.name);
  return body;
}

/** The request of this page for a shell. The key is named, never shown. */
export function curl(fileName, topK) {
  const lines = [`curl -F ${quoted(part(fileName))}`];
  if (key) lines.push('-H "Authorization: Bearer $IMAGENET_API_KEY"');
  lines.push(quoted(address("predict", { top_k: topK })));
  return lines.join(" \\\n  ");
}

/** curl splits a plain name at `,` and `;`; a quoted one it reads with backslashes before `"` and `\`. */
function part(name) {
  return /[,;"\\]/.test(name) ? `file=@"${name.replace(/["\\]/g, "\\$&")}"` : `file=@${name}`;
}

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
