// What the visitor sees: each function puts one thing on the page and decides nothing.

import { sentence, sizeOf } from "./words.js";

export const $ = (id) => document.getElementById(id);

const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 2, maximumFractionDigits: 2 });
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });

const milliseconds = (value) => `${value.toFixed(value < 100 ? 1 : 0)} ms`;

/** 0.0004 is not "0.00%": what is small says so. */
export const chance = (value) => (value > 0 && value < 0.0001 ? "<0.01%" : percent.format(value));

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Says `text` to a screen reader; nothing is seen. */
export function speak(text) {
  $("spoken").textContent = text;
}

/** `empty`, `busy`, `error` or `result`: one of them fills the answer. */
export function show(view) {
  for (const part of document.querySelectorAll("[data-view]")) part.hidden = part.dataset.view !== view;
  $("answer").ariaBusy = String(view === "busy");
}

/** On a phone the answer may come below the screen's edge: then it is scrolled to. */
export function reveal() {
  const hidden = $("answer").getBoundingClientRect().top > innerHeight * 0.75;
  if (hidden) $("answer").scrollIntoView({ block: "start" });
}

// ---- the service ------------------------------------------------------------------------------------------------

const STATES = {
  connecting: ["Connecting", ""],
  starting: ["Starting", "The service is starting. This page goes on by itself when it is ready."],
  loading: ["Loading", "The weights are being loaded. This page goes on by itself when the service is ready."],
  warming: ["Warming up", "The model runs its first passes. This page goes on by itself when the service is ready."],
  ready: ["Ready", ""],
  draining: ["Shutting down", "The service finishes what it has and takes nothing new. This page looks for it again."],
  failed: ["Failed", "The model is not running. Its log says why. This page looks for it again."],
  unreachable: ["Unreachable", "The service cannot be reached. This page tries again every second."],
};

/** The state chip, and below it a notice while the service cannot answer. */
export function showHealth({ state, detail, fraction, received, total }) {
  const [word, explanation] = STATES[state] ?? [state, "The service is not ready yet."];
  const downloading = fraction !== undefined && state !== "ready";
  if ($("state").dataset.state !== state) $("state").textContent = word; // a live region: only news is said
  $("state").dataset.state = state;
  $("waiting").hidden = state === "ready";
  $("waiting-title").textContent = downloading ? "Downloading the weights" : word;
  $("waiting-text").textContent = downloading
    ? `${sizeOf(received)} of ${sizeOf(total)} (${Math.round(fraction * 100)}%). This page goes on by itself when the service is ready.`
    : [sentence(detail ?? ""), explanation].filter(Boolean).join(" ");
  $("download").hidden = !downloading;
  $("download").value = fraction ?? 0;
}

/** Says plainly when the answers are not those of a trained, full model. */
export function showBanner(weights, classes) {
  const text = bannerOf(String(weights ?? ""), classes);
  $("banner").hidden = !text;
  $("banner").textContent = text;
  $("advice").hidden = weights !== "demo";
}

function bannerOf(weights, classes) {
  if (weights.startsWith("random")) return "Untrained weights: answers are noise.";
  if (weights === "demo") return `Small demo model: knows ${classes ?? "a few"} classes.`;
  return "";
}

export function showModel(model) {
  const facts = [
    ["Name", model.name],
    ["Family", model.family],
    ["Parameters", model.parameters && `${short.format(model.parameters)} (${whole.format(model.parameters)})`],
    ["Weights", model.weights],
    ["Input", inputOf(model.input_size)],
    ["Classes", model.classes],
    ["Precision", model.precision],
    ["Device", model.device],
    ["Runtime", model.runtime],
    ["SHA-256", model.sha256],
  ];
  $("model").replaceChildren(...facts.filter(([, value]) => isPlain(value)).map(fact));
  $("model-card").hidden = false;
}

/** `size` is `[height, width]`, as arrays have it. */
const inputOf = (size) => (Array.isArray(size) ? `${size[1]} × ${size[0]} pixels` : null);

const isPlain = (value) => ["string", "number"].includes(typeof value) && value !== "";

function fact([name, value]) {
  return element("div", { className: String(value).length > 40 ? "long" : "" }, element("dt", { textContent: name }), element("dd", { textContent: value }));
}

export function showSamples(samples, choose) {
  $("samples").hidden = samples.length === 0;
  $("sample-list").replaceChildren(...samples.map((sample) => {
    const picture = element("img", { src: sample.url, alt: "", loading: "lazy" });
    const button = element("button", { type: "button", className: "sample" }, picture, element("span", { textContent: sample.name }));
    button.addEventListener("click", () => choose(sample));
    return element("li", {}, button);
  }));
}

// ---- the picture ------------------------------------------------------------------------------------------------

/** Shows the picture at `url`; the caption gains its width and height once they are known. */
export function showPicture(file, url) {
  const caption = `${file.name} · ${sizeOf(file.size)}`;
  $("invite").hidden = true;
  $("preview").hidden = false;
  $("stage").hidden = false;
  $("no-preview").hidden = true;
  $("caption").textContent = caption;
  const photo = $("photo");
  photo.onload = () => {
    $("caption").textContent = `${caption} · ${photo.naturalWidth} × ${photo.naturalHeight}`;
    $("stage").style.setProperty("--ratio", photo.naturalWidth / photo.naturalHeight);
  };
  photo.onerror = () => { $("stage").hidden = true; $("no-preview").hidden = false; };
  photo.alt = `Your picture, ${file.name}`;
  photo.src = url;
}

/** Takes the picture away, for one that is to come or for several. */
export function hidePicture() {
  $("invite").hidden = false;
  $("preview").hidden = true;
  $("explain").hidden = true;
}

/** Says how large an upload may be, where the pictures are chosen. */
export function showLimits({ max_upload_bytes: bytes }) {
  $("limit").textContent = bytes ? `, up to ${sizeOf(bytes)}` : "";
}

/** Lays the map's canvas over `box`, the part of the photo that the model saw. */
export function placeMap([left, top, right, bottom]) {
  Object.assign($("crop").style, {
    left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%`,
  });
}

/** The sentence beside the slider; `drawn` tells whether a map lies over the photo. */
export function showMapText(text, drawn) {
  $("map-text").textContent = text;
  $("map").ariaLabel = text;
  $("crop").hidden = !drawn;
}

// ---- the answer -------------------------------------------------------------------------------------------------

export function showBusy(text) {
  $("busy-text").textContent = text;
  show("busy");
  speak(text);
}

/** Top-k bars. With `pick`, each label is a button that asks for that class's map. */
export function showPredictions(predictions, pick) {
  $("predictions").replaceChildren(...predictions.map((one) => prediction(one, pick)));
}

function prediction({ class_id: classId, wnid, label, probability }, pick) {
  const bar = element("div", { className: "bar", ariaHidden: "true" }, element("div"));
  bar.firstChild.style.width = `${probability * 100}%`;
  const item = element("li", {},
    element("div", { className: "what" }, pick ? pickButton(classId, label, pick) : element("span", { className: "label", textContent: label }),
      " ", element("span", { className: "wnid", textContent: wnid ?? `class ${classId}` })),
    element("span", { className: "chance", textContent: chance(probability) }), bar);
  item.dataset.classId = classId;
  return item;
}

function pickButton(classId, label, pick) {
  const button = element("button", { type: "button", className: "label", textContent: label, title: "Show where the model looked for this class" });
  button.ariaPressed = "false";
  button.addEventListener("click", () => pick(classId));
  return button;
}

/** Marks the class whose map is shown; `null` marks none. */
export function markPicked(classId) {
  for (const item of $("predictions").children) {
    const picked = item.dataset.classId === String(classId);
    item.classList.toggle("picked", picked);
    item.querySelector("button")?.setAttribute("aria-pressed", picked);
  }
}

// ---- several pictures -------------------------------------------------------------------------------------------

/** One row for each file; `choose(place)` is called when a picture's name is pressed. */
export function showSeveral(files, choose) {
  $("several").replaceChildren(...files.map(({ name }, place) => {
    const button = element("button", { type: "button", className: "label", textContent: name, title: "Show this picture" });
    button.addEventListener("click", () => choose(place));
    return element("tr", {}, element("th", { scope: "row" }, button), element("td", { textContent: "…" }), element("td", { className: "number" }));
  }));
  show("several");
}

/** What became of the picture at `place`: its best class, or what is wrong with it. */
export function showOne(place, { best, problem }) {
  const row = $("several").children[place];
  row.classList.toggle("wrong", Boolean(problem));
  row.children[1].textContent = problem ? problem.title : best.label;
  row.children[1].title = problem?.detail ?? "";
  row.children[2].textContent = best ? chance(best.probability) : "";
}

export function showSeveralText(text) {
  $("several-text").textContent = text;
}

/** The way from one picture back to the table of `count`; none for 0. */
export function showBack(count) {
  $("back").hidden = count === 0;
  $("back").textContent = `Back to all ${count} pictures`;
}

const PARTS = { receive: "Receive", decode: "Decode", queue: "Queue", inference: "Inference", respond: "Respond", rest: "Other" };

/** The service's own timings; what they leave of the total is `rest`. `seen` is the round trip in this browser. */
export function showTimings({ total, ...named }, seen) {
  const sum = Object.values(named).reduce((a, b) => a + b, 0);
  const whole = total ?? sum;
  const parts = Object.entries({ ...named, rest: Math.max(whole - sum, 0) });
  $("spent").replaceChildren(...parts.map(([name, value]) => {
    const segment = element("div", { className: `part-${name}` });
    segment.style.flexGrow = value;
    return segment;
  }));
  $("parts").replaceChildren(...parts.map(([name, value]) => element("div", {},
    element("dt", {}, element("span", { className: `swatch part-${name}`, ariaHidden: "true" }), PARTS[name] ?? name),
    element("dd", { textContent: milliseconds(value) }))));
  $("total").textContent = `${milliseconds(whole)} in the service, ${milliseconds(seen)} as seen from this browser.`;
}

export function showOrigin({ model, weights, request_id: requestId }) {
  const id = element("code", { textContent: requestId });
  $("origin").replaceChildren(`${model} with weights ${weights}. `, element("span", {}, "Request ", id));
}

/** A problem in the API's words; an error of this page in its own. `passing`: trying again makes sense. */
export function showProblem({ message, title = message, detail = "", status, code, requestId, retryAfter, passing }, goesOn = false) {
  const facts = [["Status", status || null], ["Code", code], ["Request", requestId], ["Try again after", retryAfter && `${retryAfter} s`]];
  $("error-title").textContent = title;
  $("error-detail").textContent = detail;
  $("error-next").hidden = !goesOn;
  $("error-facts").replaceChildren(...facts.filter(([, value]) => isPlain(value)).map(fact));
  $("retry").hidden = !passing || goesOn;
  show("error");
}
