// The page: the address says what is asked, the service answers, and the answers are drawn.

import { Problem, health, openSession, search } from "./api.js";
import { drawCards, moveByArrows } from "./cards.js";
import { closeClip, openClip } from "./clip.js";
import { byId, el, setExperts } from "./dom.js";
import { drawFilters, drawLegend, readFilters } from "./filters.js";
import { LAST_PAGE, PAGE, addressOf, changedWeights, countFilters, isAsked, onlyQuery, readState, requestOf, searchKey, withoutFilters } from "./state.js";

const grid = byId("grid");
const clip = byId("clip");
let state = readState();
let experts = [];
let videos = null;
let sentences = true;
let answers = [];
let shownKey = null;
let running = new AbortController();
let reading = new AbortController();
let retryTimer = 0;

// --- going somewhere ------------------------------------------------------------------------------------------

/** A new state with an entry in the history, so that back leads here. */
function go(next, note = null) {
  history.pushState(note, "", addressOf(next));
  show(next);
}

async function show(next) {
  state = next;
  byId("query").value = state.q;
  drawFilters(state, experts);
  if (searchKey(state) !== shownKey) {
    await runSearch();
  }
  showClip();
}

addEventListener("popstate", () => show(readState()));

// --- the search -------------------------------------------------------------------------------------------------

async function runSearch() {
  running.abort();
  clearTimeout(retryTimer);
  running = new AbortController();
  const { signal } = running;
  shownKey = searchKey(state);
  if (!isAsked(state)) return drawStart();
  document.title = `${state.q || "More like this"} · Video search`;
  const slow = setTimeout(() => grid.setAttribute("aria-busy", "true"), 150);
  try {
    const found = await search(requestOf(state), signal);
    if (signal.aborted) return;
    learn(found);
    drawAnswers(found);
  } catch (error) {
    if (error.name === "AbortError") return;
    shownKey = null;
    drawProblem(error);
  } finally {
    clearTimeout(slow);
    if (!signal.aborted) grid.removeAttribute("aria-busy");
  }
}

function learn(found) {
  if (Array.isArray(found.experts) && found.experts.join("\n") !== experts.join("\n")) {
    experts = found.experts;
    setExperts(experts);
    drawFilters(state, experts);
  }
  videos = found.videos ?? videos;
  sentences = found.sentences ?? sentences;
}

function drawAnswers(found) {
  const all = found.results[0] ?? [];
  answers = all.slice(0, PAGE);
  const first = (state.page - 1) * PAGE + 1;
  byId("heading").textContent = state.like ? `Clips like ${state.like}` : `“${state.q.trim()}”`;
  drawLegend(byId("legend"), answers.length ? experts : []);
  byId("notice").replaceChildren(...(answers.length ? [] : [nothingFound()]));
  byId("status").textContent = answers.length ? statusOf(found, first) : "No clip found";
  drawCards(grid, answers, { query: state.q, first, onOpen: (video) => go({ ...state, clip: video.id }, { opened: true }), onLike: (video) => likeThis(video.id) });
  byId("pages").hidden = state.page === 1 && all.length <= PAGE;
  byId("page-number").textContent = `Page ${state.page}`;
  byId("previous").disabled = state.page === 1;
  byId("next").disabled = all.length <= PAGE || state.page === LAST_PAGE;
}

function statusOf(found, first) {
  const among = countFilters(state) ? "that match the filters" : `of ${found.videos.toLocaleString("en")}`;
  const range = `${first}–${first + answers.length - 1} ${among}`;
  const time = found.took_ms == null ? "" : `, in ${found.took_ms < 10 ? found.took_ms.toFixed(1) : Math.round(found.took_ms)} ms`;
  return `Clips ${range}, best first${time}${found.exact === false ? "; approximate, better ones may be missing" : ""}`;
}

function likeThis(id) {
  closeClip(clip);
  go({ ...withoutFilters(state), q: "", like: id, clip: "" });
  byId("results").focus();
}

// --- nothing, and what goes wrong ---------------------------------------------------------------------------------

function message(title, advice, ...buttons) {
  return el("div", { class: "message" }, el("p", { class: "lead" }, title), el("p", { class: "muted" }, advice), el("div", { class: "buttons" }, ...buttons));
}

const button = (text, onclick) => el("button", { type: "button", class: "primary", onclick }, text);

function clearAll(...notices) {
  answers = [];
  grid.replaceChildren();
  grid.removeAttribute("aria-busy");
  byId("pages").hidden = true;
  drawLegend(byId("legend"), []);
  byId("status").textContent = "";
  byId("notice").replaceChildren(...notices);
}

function drawStart() {
  document.title = "Video search";
  byId("heading").textContent = "Search videos by what is in them";
  if (videos === 0) {
    clearAll(message("There are no videos here yet", "Add some with: python -m collaborative_experts embed FEATURES --weights WEIGHTS --to VIDEOS.lance"));
    return;
  }
  if (!sentences) {
    clearAll(message("This service was started without a model for sentences", "Start it again with: serve VIDEOS.lance --weights WEIGHTS"));
    return;
  }
  clearAll(message("Type a sentence, as you would say it to a person", "The best clips come first, and each says why it was found. Press / to type and Enter to search."));
  if (videos !== null) byId("status").textContent = `${videos.toLocaleString("en")} clips`;
  drawLegend(byId("legend"), experts);
}

function nothingFound() {
  if (state.page > 1) return message("No more clips", "The best ones are on the first page.", button("First page", () => go({ ...state, page: 1 })));
  if (countFilters(state)) return message("No clip matches these filters", "Take some of them away, or all.", button("Clear the filters", () => go(withoutFilters(state))));
  return message("There is nothing to find", "The store holds no videos that could be compared.");
}

function drawProblem(error) {
  const known = error instanceof Problem ? error : new Problem("Something went wrong on this page", `${error.message}. Load it again.`);
  if (known.status === 401) return askForToken();
  byId("heading").textContent = state.like ? `Clips like ${state.like}` : `“${state.q.trim()}”`;
  const again = () => show(state);
  const advice = known.status === 503 ? `${known.advice.replace(/\.?$/, ".")} It is asked again by itself in a moment.` : known.advice;
  const box = message(known.message, advice, button("Try again", again));
  box.classList.add("problem");
  box.setAttribute("role", "alert");
  clearAll(box);
  if (known.status === 503) retryTimer = setTimeout(again, 1000 * Math.min(known.retryAfter ?? 2, 30));
}

function askForToken() {
  clearAll();
  byId("heading").textContent = "Video search";
  byId("token-error").textContent = "";
  closeClip(clip);
  if (!byId("token").open) byId("token").showModal();
}

byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await openSession(byId("token-value").value);
    byId("token-value").value = "";
    byId("token").close();
    start();
  } catch (error) {
    byId("token-error").textContent = error.status === 401 ? "This is not the token." : `${error.message}. ${error.advice ?? ""}`;
    byId("token-value").select();
  }
});

// --- the clip that is open -------------------------------------------------------------------------------------

function showClip() {
  reading.abort();
  if (!state.clip) {
    const seen = clip.open ? answers.findIndex((video) => video.id === clip.dataset.id) : -1;
    closeClip(clip);
    return grid.querySelectorAll(".open")[seen]?.focus();
  }
  clip.dataset.id = state.clip;
  reading = new AbortController();
  const at = answers.findIndex((video) => video.id === state.clip);
  openClip(clip, state.clip, {
    query: state.q.trim(),
    weights: changedWeights(state),
    answer: answers[at],
    signal: reading.signal,
    hasPrevious: at > 0,
    hasNext: at >= 0 && at < answers.length - 1,
    onClose: leaveClip,
    onStep: (by) => replace({ ...state, clip: answers[at + by].id }),
    onLike: () => likeThis(state.clip),
    onProblem: (error) => error.status === 401 && askForToken(),
  });
}

/** From clip to clip without an entry in the history: back leads to the answers. */
function replace(next) {
  history.replaceState(history.state, "", addressOf(next));
  show(next);
}

/** Back to the answers: to the entry of the history that they have, where the clip was opened from them. */
function leaveClip() {
  if (history.state?.opened) history.back();
  else replace({ ...state, clip: "" });
}

clip.addEventListener("cancel", (event) => {
  event.preventDefault();
  leaveClip();
});
clip.addEventListener("click", (event) => event.target === clip && leaveClip());

// --- forms and keys ---------------------------------------------------------------------------------------------

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const q = byId("query").value.trim();
  if (!q) return go(onlyQuery(""));
  shownKey = null;
  go({ ...state, q, like: "", page: 1, clip: "" });
});
byId("filter-form").addEventListener("submit", (event) => event.preventDefault());
byId("filter-form").addEventListener("change", () => go({ ...state, ...readFilters(), page: 1, clip: "" }));
byId("reset").addEventListener("click", () => go(withoutFilters(state)));
for (const [id, by] of [["previous", -1], ["next", 1]]) {
  byId(id).addEventListener("click", () => {
    go({ ...state, page: state.page + by });
    byId("results").focus();
    scrollTo({ top: 0 });
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const query = byId("query");
  const begins = event.target === query && !query.value; // no sentence begins with the key that leads here
  if (!begins && event.target.closest?.("input:not([type=range], [type=checkbox]), textarea, select")) return;
  event.preventDefault();
  query.focus();
  query.select();
});
byId("query").addEventListener("keydown", (event) => {
  const first = event.key === "ArrowDown" && grid.querySelector(".open");
  if (!first) return;
  event.preventDefault();
  first.focus();
});
moveByArrows(grid);

async function start() {
  byId("filters").open = matchMedia("(min-width: 60rem)").matches;
  try {
    learn(await health());
  } catch (error) {
    if (error.status === 401) return askForToken();
    if (!isAsked(state)) return drawProblem(error);
  }
  shownKey = null;
  const typed = byId("query").value; // before the service answered
  const drawn = show(readState());
  if (!state.q) byId("query").value = typed;
  await drawn;
  if (!isAsked(state)) byId("query").focus();
}

start();
