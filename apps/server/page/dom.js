// Elements. All text goes in as text: nothing that comes from files is ever read as HTML.

export const byId = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const COLOURS = 10;
let order = [];

export function setExperts(names) {
  order = names;
}

/** The colour of an expert is that of its place in the model, here as everywhere else on the page and in reports. */
export function paint(node, expert) {
  const place = Math.max(0, order.indexOf(expert));
  node.style.setProperty("--colour", `var(--expert-${place % COLOURS})`);
  return node;
}

export const swatch = (expert) => paint(el("span", { class: "swatch", "aria-hidden": "true" }), expert);

export function clock(seconds) {
  const whole = Math.floor(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (x) => String(x).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export function spanOf(video) {
  if (video.start_s == null) return "";
  return video.end_s == null ? `from ${clock(video.start_s)}` : `${clock(video.start_s)}–${clock(video.end_s)}`;
}

export function titleOf(video) {
  const own = video.metadata?.title;
  if (typeof own === "string" && own.trim()) return own;
  const file = (video.uri ?? "").split(/[\\/]/).pop();
  return file || video.id;
}

export const number = (x, digits = 3) => (x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);

/** Text with the words of the query marked. */
export function marked(text, query) {
  const words = (query ?? "").toLowerCase().match(/[\p{L}\p{N}]{3,}/gu) ?? [];
  if (!words.length) return [text];
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}])(${words.join("|")})(?![\\p{L}\\p{N}])`, "giu");
  return text.split(pattern).map((part, i) => (i % 2 ? el("mark", {}, part) : part));
}

/** Bars of the shares of one answer, from the zero line on, in the scale of all answers on the page. */
export function shareBar(shares, scale, { hidden = false } = {}) {
  const entries = Object.entries(shares).filter(([, share]) => share !== 0);
  const words = entries.map(([name, share]) => `${name} ${number(share)}`).join(", ");
  const about = hidden ? { "aria-hidden": "true" } : { role: "img", "aria-label": `Shares of the score: ${words || "none"}` };
  const bar = el("div", { class: "bar", ...about });
  const part = ([name, share]) => {
    const segment = paint(el("span", { class: "part", title: `${name} ${number(share)}` }), name);
    segment.style.width = `${(100 * Math.abs(share)) / (scale.high - scale.low)}%`;
    return segment;
  };
  const below = entries.filter(([, share]) => share < 0);
  const above = entries.filter(([, share]) => share > 0);
  const lead = el("span", { class: "lead" });
  const negative = below.reduce((sum, [, share]) => sum + share, 0);
  lead.style.width = `${(100 * (negative - scale.low)) / (scale.high - scale.low)}%`;
  bar.append(lead, ...below.map(part), ...(scale.low < 0 ? [el("span", { class: "zero" })] : []), ...above.map(part));
  return bar;
}

export function scaleOf(answers) {
  let [low, high] = [0, 1e-9];
  for (const { shares } of answers) {
    const values = Object.values(shares);
    high = Math.max(high, values.filter((x) => x > 0).reduce((a, b) => a + b, 0));
    low = Math.min(low, values.filter((x) => x < 0).reduce((a, b) => a + b, 0));
  }
  return { low, high };
}
