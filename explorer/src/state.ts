// What is chosen, all of which is in the URL.

import type { About } from "./data";
import type { Scale } from "./points";

export interface Filter {
  labels: number[]; // none: all
  chunks: number[];
  right: "" | "right" | "wrong"; // at the iteration shown, in the panel in front
  score: string;
  low: number;
  high: number;
  ids: string;
}

export interface State {
  iteration: number;
  recordings: number[]; // positions; each panel is one of recordings x seeds x layers
  seeds: number[];
  layers: string[];
  front: number; // the panel that histories, groups and curves are of
  x: string; // a kind of measure, or score.NAME
  y: string;
  xScale: Scale;
  yScale: Scale;
  xRange: [number, number] | null; // where it was zoomed
  yRange: [number, number] | null;
  colour: string; // right, label, prediction, chunk, lineage, or score.NAME
  pins: number[];
  selection: number[]; // ascending
  filter: Filter;
  speed: number; // records a second
  sort: string;
  backwards: boolean; // the order turned round
  groups: boolean; // whether they are looked for
  theme: "" | "light" | "dark";
}

export const MOST_PINS = 8; // each has a colour of its own

export const NO_FILTER: Filter = {
  labels: [],
  chunks: [],
  right: "",
  score: "",
  low: Number.NEGATIVE_INFINITY,
  high: Number.POSITIVE_INFINITY,
  ids: "",
};

export function initial(about: About): State {
  const { layers, iterations, gradientLayers } = about.recordings[0];
  const layer = (gradientLayers.length ? gradientLayers : layers).at(-1) ?? "";
  return {
    iteration: iterations[0] ?? 0,
    recordings: [0],
    seeds: [0],
    layers: [layer],
    front: 0,
    x: layer ? "norm" : "loss",
    y: layer ? "alignment" : "margin",
    xScale: "sqrt",
    yScale: "linear",
    xRange: null,
    yRange: null,
    colour: about.classes.length ? "right" : about.chunks ? "chunk" : "loss",
    pins: [],
    selection: [],
    filter: NO_FILTER,
    speed: 30,
    sort: about.scores[0] ? `score.${about.scores[0].name}` : "example",
    backwards: false,
    groups: false,
    theme: "",
  };
}

/** The part of the URL behind `#`; what is as at first is left out. */
export function toHash(state: State, about: About): string {
  const first = initial(about);
  const found = new URLSearchParams();
  const put = (name: string, value: string, usual: string) => value !== usual && found.set(name, value);
  put("t", String(state.iteration), "");
  const seeds = (of: State) => of.seeds.map((s) => about.recordings[0].seeds[s]).join(",");
  put("seeds", seeds(state), seeds(first));
  put("layers", state.layers.join(","), first.layers.join(","));
  put("recordings", state.recordings.join(","), "0");
  put("front", String(state.front), "0");
  for (const name of ["x", "y", "xScale", "yScale", "colour", "sort", "theme"] as const)
    put(name, state[name], first[name]);
  put("xRange", state.xRange?.map(short).join("..") ?? "", "");
  put("yRange", state.yRange?.map(short).join("..") ?? "", "");
  put("pins", state.pins.join(","), "");
  put("selected", packed(state.selection), "");
  put("speed", String(state.speed), String(first.speed));
  for (const name of ["backwards", "groups"] as const) put(name, state[name] ? "yes" : "", "");
  const { labels, chunks, right, score, low, high, ids } = state.filter;
  put("labels", labels.join(","), "");
  put("chunks", chunks.join(","), "");
  put("show", right, "");
  if (score) found.set("range", [score, ...[low, high].map((v) => (Number.isFinite(v) ? short(v) : ""))].join(":"));
  put("ids", ids, "");
  return found.toString();
}

/** Read it back; what does not fit this recording is left out. */
export function fromHash(hash: string, about: About): State {
  const state = initial(about);
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const { seeds, layers } = about.recordings[0];
  const whole = (name: string, below: number) => [
    ...new Set(
      (given.get(name) ?? "")
        .split(",")
        .filter(Boolean)
        .map(Number)
        .filter((k) => Number.isInteger(k) && k >= 0 && k < below),
    ),
  ];
  const iteration = Number(given.get("t") ?? Number.NaN);
  if (Number.isFinite(iteration)) state.iteration = iteration;
  const shown = (given.get("seeds") ?? "")
    .split(",")
    .filter(Boolean)
    .map((seed) => seeds.indexOf(Number(seed)));
  if (shown.some((s) => s >= 0)) state.seeds = [...new Set(shown.filter((s) => s >= 0))];
  const named = (given.get("layers") ?? "").split(",").filter((layer) => layers.includes(layer));
  if (named.length) state.layers = [...new Set(named)];
  const recordings = whole("recordings", about.recordings.length);
  if (recordings.length) state.recordings = recordings;
  state.front = whole("front", 99)[0] ?? 0;
  const known = ["norm", "alignment", "loss", "margin", ...about.scores.map(({ name }) => `score.${name}`)];
  const one = <T extends string>(name: string, allowed: readonly T[], usual: T): T =>
    allowed.includes(given.get(name) as T) ? (given.get(name) as T) : usual;
  state.x = one("x", known, state.x);
  state.y = one("y", known, state.y);
  state.xScale = one("xScale", ["linear", "sqrt", "log"], state.xScale);
  state.yScale = one("yScale", ["linear", "sqrt", "log"], state.yScale);
  const ofClasses = about.classes.length ? ["right", "label", "prediction"] : [];
  const ofAnalysis = [...(about.chunks ? ["chunk"] : []), ...(about.recordings[0].lineages ? ["lineage"] : [])];
  state.colour = one("colour", [...ofClasses, ...ofAnalysis, ...known], state.colour);
  state.sort = one("sort", ["example", "id", ...(about.classes.length ? ["label"] : []), ...known], state.sort);
  state.theme = one("theme", ["", "light", "dark"], "");
  for (const name of ["backwards", "groups"] as const) state[name] = given.get(name) === "yes";
  state.xRange = range(given.get("xRange"));
  state.yRange = range(given.get("yRange"));
  state.pins = whole("pins", about.numExamples).slice(-MOST_PINS);
  state.selection = unpacked(given.get("selected") ?? "", about.numExamples);
  const speed = Number(given.get("speed"));
  if (speed > 0 && Number.isFinite(speed)) state.speed = speed;
  const [score, low, high] = (given.get("range") ?? "").split(":");
  const scored = about.scores.some(({ name }) => name === score);
  const bound = (text: string | undefined, none: number) =>
    scored && text && Number.isFinite(Number(text)) ? Number(text) : none;
  state.filter = {
    labels: whole("labels", Math.max(1, about.classes.length)),
    chunks: whole("chunks", 10),
    right: one("show", ["", "right", "wrong"] as const, ""),
    score: scored ? score : "",
    low: bound(low, Number.NEGATIVE_INFINITY),
    high: bound(high, Number.POSITIVE_INFINITY),
    ids: given.get("ids") ?? "",
  };
  return state;
}

const short = (value: number) => String(Number(value.toPrecision(8)));

function range(text: string | null): [number, number] | null {
  const [low, high] = (text ?? "").split("..").map(Number);
  return isRange(low, high) ? [low, high] : null;
}

/** Whether an axis can be of a range: not one so narrow that its numbers are all alike, nor one without an end. */
export function isRange(low: number, high: number): boolean {
  const size = Math.max(Math.abs(low), Math.abs(high));
  return size < 1e30 && high - low > 1e-5 * size && high - low > 1e-30;
}

/** Ascending numbers in few letters: the steps between them, in base 36, a run of ones as one word. */
export function packed(numbers: number[]): string {
  const words: string[] = [];
  let last = -1;
  let run = 0;
  const close = () => {
    if (run > 2) words.push(`*${run.toString(36)}`);
    else for (let k = 0; k < run; k++) words.push("1");
    run = 0;
  };
  for (const number of numbers) {
    if (number - last === 1) run++;
    else {
      close();
      words.push((number - last).toString(36));
    }
    last = number;
  }
  close();
  return words.join(".");
}

/** Read them back; those not below `end` are left out. */
export function unpacked(text: string, end: number): number[] {
  const found: number[] = [];
  let last = -1;
  for (const word of text.split(".").filter(Boolean)) {
    const run = word.startsWith("*");
    const count = Number.parseInt(run ? word.slice(1) : word, 36);
    if (!(count > 0) || count > end) return found;
    for (let k = 0; k < (run ? count : 1); k++) {
      last += run ? 1 : count;
      if (last < end) found.push(last);
    }
  }
  return found;
}
