// Elements and figures. Text only ever becomes a text node.

export const byId = (id) => document.getElementById(id);

/** An element with properties (`class`, attributes, `on…` handlers) and children. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const digits = (most) => new Intl.NumberFormat("en", { maximumFractionDigits: most });
const whole = digits(0);

export const count = (n) => (n === null || n === undefined ? "–" : whole.format(n));

/** A number with about three significant digits. */
export function figure(n) {
  if (n === null || n === undefined || !Number.isFinite(n)) return "–";
  return digits(n >= 100 ? 0 : n >= 10 ? 1 : 2).format(n);
}

/** Bytes in decimal units, as the command line takes them. */
export function bytes(n) {
  if (n === null || n === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) {
    n /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? whole.format(n) : figure(n)} ${units[unit]}`;
}

export const percent = (share) => (share === null || !Number.isFinite(share) ? "–" : `${figure(share * 100)} %`);

export function seconds(n) {
  if (n === null || n === undefined) return "–";
  return n < 1 ? `${figure(n * 1000)} ms` : `${figure(n)} s`;
}

/** Writes text where it differs, so that nothing is announced or drawn for nothing. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Large figures: `[name, text, value]` each. They are made once and written after that. */
export function figures(place, list) {
  for (const [name, text, value] of list) {
    let shown = place.querySelector(`[data-figure="${name}"]`);
    if (!shown) {
      shown = el("b", { "data-figure": name });
      place.append(el("div", { class: "figure" }, shown, el("span", {}, name)));
    }
    write(shown, text);
    shown.dataset.value = value ?? "";
  }
}

/** A list of terms: `[name, text]` each; those without text are left out. */
export function facts(place, list) {
  const wanted = list.filter(([, text]) => text !== null && text !== undefined && text !== "");
  const names = wanted.map(([name]) => name).join("\n");
  if (place.dataset.names !== names) {
    place.dataset.names = names;
    place.replaceChildren(...wanted.flatMap(([name]) => [el("dt", {}, name), el("dd", { "data-fact": name })]));
  }
  const values = place.querySelectorAll("dd");
  wanted.forEach(([, text], i) => write(values[i], String(text)));
}

/** Horizontal bars: `{name, share, text}` each, 0 to 1. */
export function bars(place, list) {
  while (place.children.length > list.length) place.lastElementChild.remove();
  while (place.children.length < list.length) {
    const track = el("span", { class: "track", "aria-hidden": "true" }, el("i"));
    place.append(el("div", { class: "bar" }, el("span"), track, el("span")));
  }
  list.forEach(({ name, share, text }, i) => {
    const [label, track, value] = place.children[i].children;
    write(label, name);
    write(value, text);
    fill(track, share);
  });
}

/** How far a bar is filled. */
export function fill(track, share) {
  track.firstElementChild.style.width = `${Math.min(Math.max(share || 0, 0), 1) * 100}%`;
}
