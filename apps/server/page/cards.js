// The grid of answers: a still or the words of a clip, its time, its score, and what each expert adds.

import { mediaAddress, thumbnailAddress } from "./api.js";
import { el, marked, number, scaleOf, shareBar, spanOf, titleOf } from "./dom.js";

const HOVER_MS = 180;
const EXCERPT = 220;

export function drawCards(grid, answers, { query, first, onOpen, onLike }) {
  const scale = scaleOf(answers);
  grid.replaceChildren(...answers.map((video, i) => drawCard(video, { query, scale, rank: first + i, onOpen, onLike })));
}

function drawCard(video, { query, scale, rank, onOpen, onLike }) {
  const title = titleOf(video);
  const span = spanOf(video);
  const picture = el("span", { class: "picture" });
  const open = el(
    "button",
    { type: "button", class: "open", "aria-label": `${rank}. ${title}${span ? `, ${span}` : ""}: play and explain`, onclick: () => onOpen(video) },
    picture,
    el("span", { class: "tag rank", "aria-hidden": "true" }, String(rank)),
    span ? el("span", { class: "tag span", "aria-hidden": "true" }, span) : null,
  );
  fill(picture, video, query);
  if (video.media) playOnHover(open, picture, video);
  return el(
    "li",
    { class: "card" },
    open,
    el(
      "div",
      { class: "about" },
      el("h2", { title: video.id }, title),
      el("p", { class: "score" }, el("span", { class: "unseen" }, "Score "), number(video.score)),
      shareBar(video.shares, scale),
      el("button", { type: "button", class: "quiet like", "aria-label": `More like ${title}`, onclick: () => onLike(video) }, "More like this"),
    ),
  );
}

function fill(picture, video, query) {
  const words = () => picture.replaceChildren(excerpt(video, query));
  if (!video.media) return words();
  const image = el("img", { src: thumbnailAddress(video), alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", words, { once: true });
  picture.append(image);
}

/** Where there is no picture: what was read and heard, or the file's kind. */
function excerpt(video, query) {
  const texts = textsOf(video).map(([, text]) => text);
  const text = texts.join(" · ").slice(0, EXCERPT);
  if (text) return el("span", { class: "excerpt" }, ...marked(text, query));
  return el("span", { class: "excerpt none" }, video.media ? "Sound without a picture" : "No media file here");
}

/** [what it is, text] of all that an expert put into words, and of a caption where the user's own metadata has one. */
export function textsOf(video) {
  const metadata = video.metadata ?? {};
  const found = [];
  if (typeof metadata.caption === "string") found.push(["Caption", metadata.caption]);
  if (typeof metadata.text === "string") found.push(["Text", metadata.text]);
  const names = { ocr: "Read in the picture", speech: "Heard" };
  for (const [expert, text] of fieldsOf(metadata.text)) {
    if (typeof text === "string" && text.trim()) found.push([names[expert] ?? `Text from ${expert}`, text.trim()]);
  }
  for (const [expert, labels] of fieldsOf(metadata.labels)) {
    if (Array.isArray(labels) && labels.length) found.push([`Recognised by ${expert}`, labels.join(", ")]);
  }
  return found;
}

/** The entries of an object. The user's own metadata may have anything else under the same name. */
const fieldsOf = (value) => (value !== null && typeof value === "object" ? Object.entries(value) : []);

function playOnHover(button, picture, video) {
  let timer = 0;
  let player = null;
  button.addEventListener("pointerenter", (event) => {
    if (event.pointerType !== "mouse" || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    timer = setTimeout(() => {
      player = el("video", { src: mediaAddress(video), playsinline: true, tabindex: "-1", "aria-hidden": "true", disableremoteplayback: true });
      player.muted = true;
      repeatSpan(player, video);
      player.addEventListener("error", () => player?.remove());
      picture.append(player);
      player.play().catch(() => {});
    }, HOVER_MS);
  });
  button.addEventListener("pointerleave", () => {
    clearTimeout(timer);
    if (!player) return;
    player.removeAttribute("src");
    player.load();
    player.remove();
    player = null;
  });
}

/** Browsers stop at the end of a span; a preview goes on from its beginning. */
function repeatSpan(player, video) {
  const start = video.start_s ?? 0;
  const again = () => {
    player.currentTime = start;
    player.play().catch(() => {});
  };
  player.addEventListener("ended", again);
  player.addEventListener("timeupdate", () => {
    if (video.end_s != null && player.currentTime >= video.end_s) again();
  });
}

/** The arrow keys go from card to card, as they lie. */
export function moveByArrows(grid) {
  grid.addEventListener("keydown", (event) => {
    const buttons = [...grid.querySelectorAll(".open")];
    const at = buttons.indexOf(document.activeElement);
    if (at < 0) return;
    const top = buttons[0].getBoundingClientRect().top;
    const below = buttons.findIndex((button) => button.getBoundingClientRect().top > top + 1);
    const columns = below < 0 ? buttons.length : below;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (!step || !buttons[at + step]) return;
    event.preventDefault();
    buttons[at + step].focus();
  });
}
