// The page's flow: wait for the service, take a picture, ask, show.
//
//     follow ── ready ──▶ introduce (model, map available?)
//     drop, paste, pick, photograph, sample ──▶ take ──▶ classify ──▶ result ──▶ look (the map, when wanted)
//                                         │                └── Problem ──▶ words, and if the service is away: follow
//                                         └── several ──▶ takeSeveral ──▶ ask, portion by portion ──▶ a table
//
// A new picture aborts the request before it; what was asked too early, or was lost with the service, waits for `ready`.

import * as api from "./api.js";
import { portions } from "./batch.js";
import { gridOf, isFramed, paint, paintScale, seenBox } from "./heatmap.js";
import * as view from "./view.js";
import { tooLarge } from "./words.js";

const { $ } = view;

/** Pause between two looks at a service that is not ready, and at one that is. */
const POLL_MS = 1000;
const WATCH_MS = 5000;

/** How often one picture is sent again by itself: it may be what ends the model each time. */
const TRIES = 3;

/** An answer that is quicker than this replaces the one before it without a flicker. */
const PATIENCE_MS = 150;

/** A drop from another page may be an address only, which the browser may not read. */
const NO_FILE = { title: "No picture in that", detail: "What was dropped holds no file. Copy the picture itself and paste it here." };

const state = {
  ready: false,
  following: false,
  again: false, // whether to look and introduce once more
  waiting: false, // a picture is to be sent when the service is ready
  tries: 0, // how often this picture was sent again by itself
  limits: {},
  model: {},
  explains: false,
  file: null,
  several: [], // the pictures of the table; empty unless several were brought at once
  url: "", // of the preview
  answer: null,
  picked: null, // class_id of the map that is shown
  maps: new Map(), // class_id → answer of /explain, for this picture
  asking: new AbortController(),
  looking: new AbortController(),
};

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// ---- the service ------------------------------------------------------------------------------------------------

/** Polls until the service is ready, then introduces its model and sends the picture that has waited. */
async function follow() {
  state.again = true; // also for one who follows already: a key may have come since it asked
  if (state.following) return;
  state.following = true;
  state.ready = false;
  while (state.again) {
    state.again = false;
    await becomeReady();
    await introduce();
  }
  state.ready = true;
  state.following = false;
  if (state.waiting) ask();
}

async function becomeReady() {
  for (;;) {
    const health = await api.health();
    view.showHealth(health);
    if (health.state === "ready") return;
    await pause(POLL_MS);
  }
}

/** Looks now and then whether the service is still ready, so that the page says it when it is not. */
async function watch() {
  for (;;) {
    await pause(WATCH_MS);
    if (!state.ready || document.hidden) continue;
    const health = await api.health();
    if (health.state !== "ready") follow();
  }
}

/** Sends what is on the page: one picture, or all of the table. */
const ask = () => (state.file ? classify() : classifySeveral());

async function introduce() {
  const [model, explains, limits] = await Promise.all([api.model().catch(() => ({})), api.canExplain(), api.knowLimits()]);
  Object.assign(state, { model, explains, limits });
  view.showLimits(limits);
  if (!Object.keys(model).length) return;
  view.showModel(model);
  view.showBanner(model.weights, model.classes);
}

async function offerSamples() {
  view.showSamples(await api.samples(), async ({ url }) => {
    try {
      take(await api.sampleFile(url));
    } catch (problem) {
      view.showProblem(problem);
    }
  });
}

function askForKey() {
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("key").focus();
}

function useKey(event) {
  event.preventDefault();
  api.useKey($("key").value.trim());
  $("key-form").hidden = true;
  $("key-title").textContent = "This key was not accepted"; // is read only if the form comes back
  $("key").value = "";
  $("picture-title").focus();
  state.waiting ||= Boolean(state.file) || state.several.length > 0;
  showCurl();
  offerSamples();
  follow();
}

// ---- the picture ------------------------------------------------------------------------------------------------

/** Takes a new picture in place of the one before, and asks what it shows. */
function take(file, { several = [] } = {}) {
  if (!file) return;
  clear();
  Object.assign(state, { file, several, url: URL.createObjectURL(file) });
  view.showPicture(file, state.url);
  view.showBack(several.length);
  showCurl();
  classify();
}

/** Takes several pictures at once, for the table. */
function takeSeveral(files) {
  clear();
  Object.assign(state, { file: null, several: files });
  view.hidePicture();
  view.showBack(0);
  showCurl();
  classifySeveral();
}

/** Ends whatever belongs to the picture before. */
function clear() {
  URL.revokeObjectURL(state.url);
  Object.assign(state, { url: "", answer: null, maps: new Map(), tries: 0, waiting: false });
  state.asking.abort();
  state.looking.abort();
  view.showMapText("", false);
}

/** What a drop, a paste or an input holds. */
function takeFrom(files) {
  if (files.length > 1) takeSeveral([...files]);
  else take(files[0]);
}

function takeFromInput({ target }) {
  takeFrom(target.files);
  target.value = ""; // so that the same file can be picked again
}

function listenForDrops() {
  let depth = 0; // dragenter and dragleave are told for every element on the way
  const mark = (change) => {
    depth = change ? depth + change : 0;
    $("drop").classList.toggle("over", depth > 0);
  };
  const holdsFile = (event) => event.dataTransfer.types.includes("Files");
  addEventListener("dragenter", (event) => holdsFile(event) && mark(+1));
  addEventListener("dragleave", (event) => holdsFile(event) && mark(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(0);
    if (holdsFile(event)) takeFrom(event.dataTransfer.files);
    else view.showProblem(NO_FILE);
  });
}

// ---- the answer -------------------------------------------------------------------------------------------------

/** Asks for the classes of the picture; whatever was asked before is aborted. */
async function classify() {
  state.asking.abort();
  state.asking = new AbortController();
  const refused = tooLarge(state.file, state.limits);
  if (refused) return fail(new api.Problem(refused));
  state.waiting = !state.ready;
  if (state.waiting) return view.showBusy(`${state.file.name} will be sent when the service is ready.`);
  const { signal } = state.asking;
  const patience = setTimeout(() => view.showBusy(`Classifying ${state.file.name}`), PATIENCE_MS);
  const begun = performance.now();
  try {
    const answer = await api.predict(state.file, $("top-k").value, signal);
    if (!signal.aborted) showAnswer(answer, performance.now() - begun);
  } catch (problem) {
    if (!signal.aborted) fail(problem);
  } finally {
    clearTimeout(patience);
  }
}

function showAnswer(answer, seen) {
  const best = answer.predictions[0];
  state.answer = answer;
  view.showPredictions(answer.predictions, state.explains && pickClass);
  view.showTimings(answer.timings_ms, seen);
  view.showOrigin(answer);
  view.showBanner(answer.weights, state.model.classes);
  view.show("result");
  $("explain").hidden = !state.explains;
  view.reveal();
  view.speak(`${state.file.name}: ${best.label}, ${view.chance(best.probability)}. ${answer.predictions.length} classes are listed.`);
  look(best.class_id);
}

async function fail(problem) {
  const goesOn = problem instanceof api.Problem && problem.away && state.tries < TRIES;
  view.showProblem(problem, goesOn);
  $("explain").hidden = true;
  if (!(problem instanceof api.Problem)) throw problem; // a defect of this page: also for the console
  if (problem.status !== 401) view.reveal();
  if (problem.away) comeBack(goesOn);
}

/** Waits for a service that is away, and then, if `goesOn`, sends again what it did not answer. */
async function comeBack(goesOn) {
  state.tries += 1;
  state.waiting = goesOn;
  state.ready = false;
  await pause(POLL_MS);
  follow();
}

// ---- several pictures -------------------------------------------------------------------------------------------

/** Asks for the best class of each picture of the table; what was asked before is aborted. */
async function classifySeveral() {
  state.asking.abort();
  state.asking = new AbortController();
  const { several: files, asking: { signal }, limits } = state;
  view.showSeveral(files, (place) => take(files[place], { several: files }));
  state.waiting = !state.ready;
  if (state.waiting) return view.showSeveralText(`${files.length} pictures will be sent when the service is ready.`);
  files.forEach((file, place) => {
    const refused = tooLarge(file, limits);
    if (refused) view.showOne(place, { problem: refused });
  });
  let done = 0;
  for (const places of portions(files, limits)) {
    view.showSeveralText(`${done} of ${files.length} pictures are done.`);
    try {
      await askPortion(files, places, signal);
    } catch (problem) {
      if (signal.aborted) return;
      for (const place of places) view.showOne(place, { problem });
      if (problem.status === 401) return;
      if (problem.away) return severalFailed(problem);
    }
    if (signal.aborted) return;
    done += places.length;
  }
  const text = `${files.length} pictures. Choose one to see its classes and where the model looked.`;
  view.showSeveralText(text);
  view.speak(text);
}

async function askPortion(files, places, signal) {
  const { results } = await api.predictBatch(places.map((place) => files[place]), 1, signal);
  if (signal.aborted) return;
  results.forEach(({ predictions, error }, index) => {
    view.showOne(places[index], error ? { problem: api.problemIn(error) } : { best: predictions[0] });
  });
}

function severalFailed(problem) {
  const goesOn = state.tries < TRIES;
  const next = goesOn ? "The pictures are sent again by themselves as soon as the service is ready." : "Bring the pictures again to try once more.";
  view.showSeveralText(`${problem.title}. ${next}`);
  comeBack(goesOn);
}

// ---- the map ----------------------------------------------------------------------------------------------------

function pickClass(classId) {
  $("map-on").checked = true;
  look(classId);
}

/** Shows where the model looked for a class, if that is wanted and there is an answer to explain. */
async function look(classId) {
  state.looking.abort();
  state.looking = new AbortController();
  state.picked = classId;
  const wanted = $("map-on").checked && state.answer !== null;
  $("map-controls").hidden = !wanted;
  view.markPicked(wanted ? classId : null);
  if (!wanted) return view.showMapText("", false);
  const { signal } = state.looking;
  const patience = setTimeout(() => view.showMapText("Asking the model…", false), PATIENCE_MS);
  try {
    const map = state.maps.get(classId) ?? await api.explain(state.file, classId, signal);
    if (signal.aborted) return;
    state.maps.set(classId, map);
    drawMap(map, classId);
  } catch (problem) {
    if (!signal.aborted) view.showMapText([problem.title, problem.detail].filter(Boolean).join(": "), false);
  } finally {
    clearTimeout(patience);
  }
}

async function drawMap(map, classId) {
  const photo = $("photo");
  await photo.decode().catch(() => {});
  const label = map.label ?? state.answer?.predictions.find((one) => one.class_id === classId)?.label;
  const grid = gridOf(map);
  if (!photo.naturalWidth) return view.showMapText("This browser cannot show the picture, so there is nothing to lay a map on.", false);
  if (!grid) return view.showMapText(`Nothing in the picture spoke for ${label}.`, false);
  paint($("map"), grid);
  const box = seenBox(map, state.model.preprocessing, photo.naturalWidth, photo.naturalHeight);
  view.placeMap(box);
  const framed = isFramed(box) ? " The frame is the part that the model saw." : "";
  view.showMapText(`What spoke for ${label}.${framed}`, true);
}

function setOpacity() {
  $("map").style.opacity = $("opacity").value / 100;
  $("opacity").ariaValueText = `${$("opacity").value}%`;
}

// ---- the command ------------------------------------------------------------------------------------------------

function showCurl() {
  const names = state.file || !state.several.length ? (state.file?.name ?? "photo.jpg") : state.several.map(({ name }) => name);
  $("curl").textContent = api.curl(names, $("top-k").value);
}

async function copyCurl() {
  const copied = await copy($("curl"));
  $("copy").textContent = copied ? "Copied" : "Press Ctrl+C";
  view.speak(copied ? "The command was copied." : "The command is selected.");
  await pause(2000);
  $("copy").textContent = "Copy";
}

/** The clipboard is only there over https and on localhost; elsewhere the text is selected and copied the old way. */
async function copy(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    return document.execCommand("copy");
  }
}

// ---- begin ------------------------------------------------------------------------------------------------------

function listen() {
  $("file").addEventListener("change", takeFromInput);
  $("camera").addEventListener("change", takeFromInput);
  $("invite").addEventListener("click", () => $("file").click());
  addEventListener("paste", (event) => event.clipboardData.files.length && takeFrom(event.clipboardData.files));
  listenForDrops();
  $("top-k").addEventListener("change", () => { showCurl(); if (state.file) classify(); });
  $("back").addEventListener("click", () => takeSeveral(state.several));
  $("retry").addEventListener("click", () => { $("answer-title").focus(); classify(); });
  $("map-on").addEventListener("change", () => look(state.picked));
  $("opacity").addEventListener("input", setOpacity);
  $("copy").addEventListener("click", copyCurl);
  $("key-form").addEventListener("submit", useKey);
  api.onUnauthorized(askForKey);
}

listen();
setOpacity();
paintScale($("scale"));
showCurl();
offerSamples();
follow();
watch();
