// The address holds all that a search is made of, so that it can be sent, kept and gone back to.

export const PAGE = 24;

/** The last page that the service gives, which answers at most 1,000 clips: see schema.py, and `requestOf` below. */
export const LAST_PAGE = Math.floor((1000 - PAGE - 1) / PAGE) + 1;

const EMPTY = { q: "", like: "", page: 1, has: [], min: "", max: "", id: "", weights: {}, clip: "" };

export function readState(address = location.search) {
  const found = new URLSearchParams(address);
  const text = (key) => found.get(key) ?? "";
  const weights = {};
  for (const pair of found.getAll("w")) {
    const at = pair.lastIndexOf(":");
    const factor = Number(pair.slice(at + 1));
    if (at > 0 && factor >= 0 && Number.isFinite(factor)) weights[pair.slice(0, at)] = factor;
  }
  const page = Math.min(LAST_PAGE, Math.max(1, Math.floor(Number(text("page"))) || 1));
  const length = (key) => (Number(text(key)) >= 0 && text(key) !== "" ? text(key) : "");
  return {
    ...{ q: text("q"), like: text("like"), page, has: found.getAll("has"), weights },
    ...{ min: length("min"), max: length("max"), id: text("id"), clip: text("clip") },
  };
}

export function addressOf(state) {
  const parts = new URLSearchParams();
  for (const key of ["q", "like", "min", "max", "id"]) if (state[key]) parts.set(key, state[key]);
  state.has.forEach((name) => parts.append("has", name));
  Object.entries(state.weights).forEach(([name, factor]) => factor !== 1 && parts.append("w", `${name}:${factor}`));
  if (state.page > 1) parts.set("page", state.page);
  if (state.clip) parts.set("clip", state.clip);
  const query = parts.toString();
  return query ? `?${query}` : location.pathname;
}

/** What is searched for, without the clip that is open over it. */
export const searchKey = (state) => addressOf({ ...state, clip: "" });

export const isAsked = (state) => Boolean(state.q.trim() || state.like);

/** How many filters leave clips out. */
export const countFilters = (state) => state.has.length + (state.min || state.max ? 1 : 0) + (state.id ? 1 : 0);

/** How many of the filters, and the weights, are not as they were. */
export const countChanges = (state) => countFilters(state) + (changedWeights(state) ? 1 : 0);

export const withoutFilters = (state) => ({ ...state, has: [], min: "", max: "", id: "", weights: {}, page: 1 });

export const onlyQuery = (q) => ({ ...EMPTY, q });

export function changedWeights(state) {
  const changed = Object.entries(state.weights).filter(([, factor]) => factor !== 1);
  return changed.length ? Object.fromEntries(changed) : null;
}

/** The body of POST /search: one answer more than a page holds says whether there is a next page. */
export function requestOf(state) {
  const filters = {};
  if (state.has.length) filters.experts = state.has;
  if (state.min) filters.shortest_s = Number(state.min);
  if (state.max) filters.longest_s = Number(state.max);
  if (state.id) filters.id_contains = state.id;
  return {
    ...(state.like ? { like: [state.like] } : { sentences: [state.q.trim()] }),
    k: PAGE + 1,
    offset: (state.page - 1) * PAGE,
    ...(Object.keys(filters).length ? { filters } : {}),
    ...(changedWeights(state) && !state.like ? { expert_weights: changedWeights(state) } : {}),
  };
}
