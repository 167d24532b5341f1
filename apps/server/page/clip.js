// A clip that is open: it plays from its first to its last second, beside the reasons why it was found.

import { explain, mediaAddress, thumbnailAddress, videoOf } from "./api.js";
import { textsOf } from "./cards.js";
import { el, marked, number, scaleOf, shareBar, spanOf, swatch, titleOf } from "./dom.js";

/** Draws a clip into the dialog and opens it; what is asked of the service comes in when it is there. */
export async function openClip(dialog, id, context) {
  const parts = frame(dialog, context);
  if (!dialog.open) dialog.showModal();
  try {
    const [video, reasons] = await Promise.all([
      videoOf(id, context.signal),
      context.query ? explain({ sentence: context.query, id, ...(context.weights ? { expert_weights: context.weights } : {}) }, context.signal) : null,
    ]);
    if (context.signal.aborted) return;
    parts.title.textContent = titleOf(video);
    parts.span.textContent = spanOf(video);
    parts.stage.replaceChildren(player(video, context.query));
    parts.why.replaceChildren(...whyFound(reasons, context));
    parts.content.replaceChildren(...contentOf(video, context.query));
  } catch (error) {
    if (error.name === "AbortError") return;
    parts.title.textContent = error.message;
    const again = el("button", { type: "button", class: "quiet", onclick: () => openClip(dialog, id, context) }, "Try again");
    parts.stage.replaceChildren(el("div", { class: "words" }, el("p", { class: "problem", role: "alert" }, error.advice ?? "Close this and try again."), again));
    parts.why.replaceChildren();
    context.onProblem(error);
  }
}

export function closeClip(dialog) {
  dialog.querySelector("video")?.pause();
  dialog.replaceChildren();
  if (dialog.open) dialog.close();
}

function frame(dialog, { onClose, onStep, onLike, hasPrevious, hasNext }) {
  const title = el("h2", { id: "clip-title" }, "…");
  const span = el("p", { class: "muted" });
  const stage = el("div", { class: "stage" });
  const why = el("section", { class: "why", "aria-label": "Why it was found" }, el("p", { class: "muted" }, "…"));
  const content = el("section", { class: "content", "aria-label": "What is in it" });
  const step = (words, by, enabled) => el("button", { type: "button", class: "quiet", disabled: !enabled, onclick: () => onStep(by) }, words);
  dialog.replaceChildren(
    el(
      "header",
      {},
      el("div", {}, title, span),
      el("button", { type: "button", class: "close", "aria-label": "Close", onclick: onClose }, el("span", { "aria-hidden": "true" }, "×")),
    ),
    el(
      "div",
      { class: "sides" },
      el("div", {}, stage, el("div", { class: "steps" }, step("Previous clip", -1, hasPrevious), step("Next clip", 1, hasNext), el("button", { type: "button", class: "primary", onclick: onLike }, "More like this"))),
      el("div", { class: "reasons" }, why, content),
    ),
  );
  return { title, span, stage, why, content };
}

function player(video, query) {
  if (!video.media) return words(video, query, "The media file is not here. What is known of the clip:");
  const node = el("video", { src: mediaAddress(video), controls: true, autoplay: true, playsinline: true, preload: "auto", poster: thumbnailAddress(video), "aria-label": titleOf(video) });
  node.addEventListener("error", () => node.replaceWith(words(video, query, "This browser cannot play the file. What is known of the clip:")), { once: true });
  return node;
}

function words(video, query, lead) {
  const texts = textsOf(video).map(([name, text]) => el("p", {}, el("strong", {}, `${name}: `), ...marked(text, query)));
  return el("div", { class: "words" }, el("p", { class: "muted" }, lead), ...(texts.length ? texts : [el("p", {}, video.uri ?? video.id)]));
}

// --- why ----------------------------------------------------------------------------------------------------

function whyFound(reasons, context) {
  const heading = el("h3", {}, "Why it was found");
  if (reasons) return [heading, summary(reasons.experts, reasons.score), table(reasons.experts), legend(reasons.experts)];
  const answer = context.answer;
  if (!answer) return [heading, el("p", { class: "muted" }, "Type a sentence to see how well it fits this clip.")];
  const experts = Object.entries(answer.shares).map(([expert, share]) => ({ expert, share, available: true }));
  return [heading, el("p", {}, `It is like the clip you chose: mean cosine ${number(answer.score)} over the experts that both have.`), table(experts, false)];
}

/** The score, and the experts that add the most to it and take the most away. */
function summary(experts, score) {
  const lead = el("p", {}, "Score ", el("strong", {}, number(score)), ". ");
  const sorted = experts.filter((entry) => entry.available).sort((a, b) => b.share - a.share);
  const [most, least] = [sorted[0], sorted[sorted.length - 1]];
  if (most?.share > 0) lead.append(swatch(most.expert), ` ${most.expert} adds most (${number(most.share)})`);
  if (most?.share > 0 && least.share < 0) lead.append(", ", swatch(least.expert), ` ${least.expert} takes most away (${number(least.share)})`);
  if (most?.share > 0) lead.append(".");
  return lead;
}

function table(experts, withWeights = true) {
  const scale = scaleOf(experts.map(({ expert, share }) => ({ shares: { [expert]: share ?? 0 } })));
  const head = ["Expert", ...(withWeights ? ["Weight", "Cosine"] : []), "Share"];
  const cell = (text) => el("td", {}, text);
  const line = (entry) => {
    const name = el("th", { scope: "row" }, swatch(entry.expert), ` ${entry.expert}`);
    if (!entry.available) return el("tr", { class: "missing" }, name, ...(withWeights ? [cell(number(entry.weight, 2))] : []), el("td", { colspan: withWeights ? "2" : "1" }, "not in this clip"), el("td", { class: "bar-cell" }));
    const figures = withWeights ? [cell(number(entry.weight, 2)), cell(number(entry.cosine, 2))] : [];
    return el("tr", {}, name, ...figures, cell(number(entry.share)), el("td", { class: "bar-cell" }, shareBar({ [entry.expert]: entry.share }, scale, { hidden: true })));
  };
  return el(
    "table",
    { class: "shares" },
    el("caption", { class: "unseen" }, "What each expert adds to the score"),
    el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)), el("td", { class: "bar-cell" }))),
    el("tbody", {}, ...experts.map(line)),
  );
}

function legend(experts) {
  const missing = experts.some((entry) => !entry.available);
  return el(
    "p",
    { class: "muted fine" },
    "Weight: how much the sentence asks this expert. Cosine: how well the clip agrees with it. Share: what that adds to the score.",
    missing ? " An expert that is not in this clip leaves its weight to the others." : "",
  );
}

// --- what is in it --------------------------------------------------------------------------------------------

function contentOf(video, query) {
  const parts = textsOf(video).flatMap(([name, text]) => [el("h3", {}, name), el("p", { class: "text" }, ...marked(text, query))]);
  const known = [["Id", video.id], ["File", video.uri], ...own(video.metadata)];
  const rows = known.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
  return [...parts, el("details", { class: "facts" }, el("summary", {}, "Details"), el("dl", {}, ...rows))];
}

/** The user's own metadata, as text. */
function own(metadata) {
  const rest = Object.entries(metadata ?? {}).filter(([key]) => !["text", "labels", "title", "caption"].includes(key));
  return rest.map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]);
}
