// Requests to the service, and what goes wrong with them in words that say what to do.

export class Problem extends Error {
  constructor(title, advice, { status = 0, retryAfter = null } = {}) {
    super(title);
    Object.assign(this, { advice, status, retryAfter });
  }
}

const path = (room, id) => `${room}/${encodeURIComponent(id)}`;

export const mediaAddress = (video) => {
  const { start_s: start, end_s: end } = video;
  const span = start == null ? "" : `#t=${start}${end == null ? "" : `,${end}`}`;
  return path("media", video.id) + span;
};
export const thumbnailAddress = (video) => path("thumbnail", video.id);

export const health = () => request("health");
export const search = (body, signal) => request("search", { body, signal });
export const explain = (body, signal) => request("explain", { body, signal });
export const videoOf = (id, signal) => request(path("videos", id), { signal });

/** Trades the token for the service's cookie, which pictures and films need: they cannot be asked for with a header. */
export async function openSession(token) {
  const options = { method: "POST", body: new URLSearchParams({ token }), redirect: "manual" };
  const response = await fetch("login", options);
  if (response.type !== "opaqueredirect" && !response.ok) throw await problemOf(response);
}

async function request(address, { body, signal } = {}) {
  const options = { signal, headers: { Accept: "application/json" }, credentials: "same-origin" };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer", "Look whether serve is still running, then try again.");
  }
  if (!response.ok) throw await problemOf(response);
  return response.status === 204 ? null : response.json();
}

async function problemOf(response) {
  const status = response.status;
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const reason = await reasonOf(response);
  const known = {
    401: ["The service asks for a token", "Enter it to go on."],
    404: ["There is no such video", reason],
    413: ["That is too much text", reason],
    422: ["The service cannot answer this", reason],
    503: ["The service cannot answer now", reason],
  };
  const [title, advice] = known[status] ?? [`The service answered with status ${status}`, reason];
  return new Problem(title, advice || "Try again, or look at what serve printed.", { status, retryAfter });
}

async function reasonOf(response) {
  try {
    const { detail, error } = await response.json();
    const reason = detail ?? error;
    if (Array.isArray(reason)) return reason.map((entry) => entry.msg ?? String(entry)).join("; ");
    return typeof reason === "string" ? reason : "";
  } catch {
    return "";
  }
}
