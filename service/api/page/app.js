// The page's flow: wait for the service, take a picture, ask, show.
//
//     follow ── ready ──▶ introduce (model, map available?)
//     drop, paste, pick, photograph, sample ──▶ take ──▶ classify ──▶ result ──▶ look (the map, when wanted)
//                                                          └── Problem ──▶ the API's words
//
// A new picture aborts the request before it; a picture that was taken too early waits for `ready`.

import * as api from "./api.js";
import { gridOf, paint, paintScale, seenBox } from "./heatmap.js";
import * as view from "./view.js";

const { $ } = view;

/** Pause between two looks at a service that is not ready. */
const POLL_MS = 1000;

/** An answer that is quicker than this replaces the one before it without a flicker. */
const PATIENCE_MS = 150;

/** A drop from another page may be an address only, which the browser may not read. */
const NO_FILE = { title: "No picture in that", detail: "What was dropped holds no file. Copy the picture itself and paste it here." };

const state = {
  ready: false,
  following: false,
  waiting: false, // a picture was taken before the service was ready
  model: {},
  explains: false,
  file: null,
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
  if (state.following) return;
  state.following = true;
  state.ready = false;
  for (;;) {
    const health = await api.health();
    view.showHealth(health);
    if (health.state === "ready") break;
    await pause(POLL_MS);
  }
  await introduce();
  state.ready = true;
  state.following = false;
  if (state.waiting) classify();
}

async function introduce() {
  const [model, explains] = await Promise.all([api.model().catch(() => ({})), api.canExplain()]);
  Object.assign(state, { model, explains });
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
  state.waiting ||= Boolean(state.file);
  showCurl();
  offerSamples();
  follow();
}

// ---- the picture ------------------------------------------------------------------------------------------------

/** Takes a new picture in place of the one before, and asks what it shows. */
function take(file) {
  if (!file) return;
  URL.revokeObjectURL(state.url);
  Object.assign(state, { file, url: URL.createObjectURL(file), answer: null, maps: new Map() });
  state.looking.abort();
  view.showPicture(file, state.url);
  view.showMapText("", false);
  showCurl();
  classify();
}

/** The first file that a drop, a paste or an input holds. */
function takeFrom(files) {
  if (files.length > 1) view.speak(`Only the first of ${files.length} files is used.`);
  take(files[0]);
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
  view.showProblem(problem);
  $("explain").hidden = true;
  if (!(problem instanceof api.Problem)) throw problem; // a defect of this page: also for the console
  if (problem.status !== 401) view.reveal();
  const away = problem.status === 0 || ["not_ready", "draining", "engine_failed"].includes(problem.code);
  if (!away) return;
  state.waiting = problem.code === "not_ready";
  await pause(POLL_MS);
  follow();
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
  view.placeMap(seenBox(map, state.model.preprocessing, photo.naturalWidth, photo.naturalHeight));
  view.showMapText(`What spoke for ${label}. The frame is the part that the model saw.`, true);
}

function setOpacity() {
  $("map").style.opacity = $("opacity").value / 100;
  $("opacity").ariaValueText = `${$("opacity").value}%`;
}

// ---- the command ------------------------------------------------------------------------------------------------

function showCurl() {
  $("curl").textContent = api.curl(state.file?.name ?? "photo.jpg", $("top-k").value);
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
