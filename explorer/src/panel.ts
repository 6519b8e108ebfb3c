// One seed and layer: all examples as points, with axes, pointer, lasso and zoom.

import type { App, View } from "./app";
import { GREY, ofClass, ofLineage, PINS, type Rgb, RIGHT, sequence, WRONG } from "./colours";
import { decoder, quantile } from "./data";
import { element, few } from "./dom";
import { type Axis, CHOSEN, CROSS, HIDDEN, MARKED, Points, placed, type Scale, valueAt } from "./points";
import { isRange } from "./state";

const [LEFT, BOTTOM, TOP, RIGHT_EDGE] = [46, 34, 10, 12]; // pixels around the plot
const NEAR = 12; // pixels within which the pointer finds a point
const SAMPLED = 2000; // values of a frame by which the axes are found

export const WORDS: Record<string, string> = {
  norm: "gradient norm",
  alignment: "alignment",
  loss: "loss",
  margin: "margin",
  right: "right or wrong",
  label: "label",
  prediction: "prediction",
  chunk: "chunk",
  lineage: "lineage",
};
export function words(name: string): string {
  const score = name.replace(/^score\./, "");
  if (name in WORDS || score === name) return WORDS[name] ?? name;
  return score in WORDS ? `${WORDS[score]} (score)` : score.replaceAll("_", " ");
}

export class Panel {
  readonly root: HTMLElement;
  points: Points | null = null;
  private readonly drawing = element("canvas", { class: "points" });
  private readonly over = element("canvas", { class: "over" });
  private readonly title = element("button", { type: "button", class: "title" });
  private readonly box: HTMLElement;
  private readonly sizes = new ResizeObserver(() => this.app.refresh(true));
  private lasso: [number, number][] | null = null;
  private moved = false;
  private readonly colours: Uint8Array;
  private readonly flags: Uint8Array;
  private view: View;
  private axes: { x: Axis; y: Axis } | null = null;

  constructor(
    private readonly app: App,
    readonly number: number,
  ) {
    const n = app.about.numExamples;
    this.view = app.views[number];
    this.colours = new Uint8Array(4 * n);
    this.flags = new Uint8Array(n);
    this.box = element("div", { class: "plot" }, this.over, this.drawing);
    this.root = element("section", { class: "panel" }, this.title, this.box);
    this.title.addEventListener("click", () => app.change({ front: this.number }));
    try {
      this.points = new Points(this.drawing, n);
    } catch (error) {
      this.box.replaceChildren(element("p", { class: "problem" }, String((error as Error).message)));
    }
    this.sizes.observe(this.box);
    this.listen();
  }

  end(): void {
    this.sizes.disconnect();
    this.points?.end();
    this.root.remove();
  }

  draw(all: boolean): void {
    const { app } = this;
    this.view = app.views[this.number];
    if (!this.view || !this.points) return;
    if (all) {
      this.title.textContent = this.view.title;
      this.root.classList.toggle("front", app.views.length > 1 && app.front.title === this.view.title);
      this.resize();
    }
    const mixing = this.place();
    if (!mixing) {
      this.wait();
      return;
    }
    this.dress();
    const { devicePixelRatio } = window;
    const size = Math.max(4, Math.min(9, 500 / Math.sqrt(app.about.numExamples))) * devicePixelRatio;
    const others = app.state.selection.length ? 0.13 : app.about.numExamples > 20000 ? 0.4 : 0.62;
    app.firstPicture ??= performance.now();
    this.points.draw(mixing, this.axes!.x, this.axes!.y, size, others);
    this.decorate();
  }

  /** Where the points stand by what lies in the graphics memory: values along the two axes. */
  stored(): { x: number[]; y: number[] } {
    const mixing = this.place() ?? [0, 0];
    const along = (axis: "x" | "y", share: number) => {
      const [first, second] = [this.points!.stored(`${axis}0`)!, this.points!.stored(`${axis}1`)!];
      const decode = decoder(first.encoding);
      return Array.from(first.values, (value, n) => decode(value) * (1 - share) + decode(second.values[n]) * share);
    };
    return { x: along("x", mixing[0]), y: along("y", mixing[1]) };
  }

  private wait(): void {
    this.points!.draw([0, 0], { low: 0, high: 1, scale: "linear" }, { low: 0, high: 1, scale: "linear" }, 1, 0);
    const pen = this.pen();
    pen.fillStyle = getComputedStyle(this.root).color;
    pen.textAlign = "center";
    const missing = [this.app.state.x, this.app.state.y].filter(
      (name) => !name.startsWith("score.") && !this.app.measure(this.view, name),
    );
    const text = missing.length ? `there is no ${words(missing[0])} here` : "loading";
    pen.fillText(text, this.over.clientWidth / 2, this.over.clientHeight / 2);
  }

  private resize(): void {
    const { devicePixelRatio } = window;
    const { clientWidth, clientHeight } = this.box;
    const [width, height] = [clientWidth - LEFT - RIGHT_EDGE, clientHeight - TOP - BOTTOM];
    const sizes: [HTMLCanvasElement, number, number][] = [
      [this.drawing, width, height],
      [this.over, clientWidth, clientHeight],
    ];
    for (const [canvas, w, h] of sizes) {
      const [pixelWidth, pixelHeight] = [Math.round(w * devicePixelRatio), Math.round(h * devicePixelRatio)];
      if (canvas.width !== pixelWidth) canvas.width = pixelWidth;
      if (canvas.height !== pixelHeight) canvas.height = pixelHeight;
    }
    Object.assign(this.drawing.style, {
      left: `${LEFT}px`,
      top: `${TOP}px`,
      width: `${width}px`,
      height: `${height}px`,
    });
  }

  /** Put the frames into the graphics memory; null until they are there. */
  private place(): [number, number] | null {
    const { app, view, points } = this;
    const record = app.recordIn(view);
    const share: number[] = [];
    const axes: Axis[] = [];
    for (const axis of ["x", "y"] as const) {
      const name = app.state[axis];
      const scale = app.state[`${axis}Scale`];
      const zoomed = app.state[`${axis}Range`];
      const [low, high] = zoomed && (scale !== "log" || zoomed[0] > 0) ? zoomed : common(app, name, scale);
      axes.push({ low, high, scale });
      if (name.startsWith("score.")) {
        const values = app.score(name.slice(6));
        if (!values) return null;
        points!.place(`${axis}0`, values, "float32");
        points!.place(`${axis}1`, values, "float32");
        share.push(0);
        continue;
      }
      const measure = app.measure(view, name);
      const around = measure && app.frames.around(app.series(view, measure), record);
      if (!around) return null;
      points!.place(`${axis}0`, around.first, measure.encoding);
      points!.place(`${axis}1`, around.second, measure.encoding);
      share.push(around.mixing);
    }
    this.axes = { x: axes[0], y: axes[1] };
    return [share[0], share[1]];
  }

  /** Choose the colour and shape of every point. */
  private dress(): void {
    const { app, view, colours, flags } = this;
    const { about, state } = app;
    const right = app.right(view);
    const colour = this.colour(right);
    const faint = state.colour === "lineage"; // most examples are in none, and would hide the others
    for (let n = 0; n < about.numExamples; n++) {
      const shade = colour(n);
      const [r, g, b] = shade;
      const at = 4 * n;
      colours[at] = r;
      colours[at + 1] = g;
      colours[at + 2] = b;
      colours[at + 3] = faint && shade === GREY ? 80 : 255;
      flags[n] = (right && !right(n) ? CROSS : 0) | (app.chosen[n] ? CHOSEN : 0) | (app.visible[n] ? 0 : HIDDEN);
    }
    state.pins.forEach((pin, k) => {
      flags[pin] |= MARKED;
      colours.set(hex(PINS[k]), 4 * pin);
    });
    if (app.pointed !== null) flags[app.pointed] |= MARKED;
    this.points!.dress(colours, flags);
  }

  private colour(right: ((n: number) => boolean) | null): (n: number) => Rgb {
    const { app, view } = this;
    const { about, state } = app;
    if (state.colour === "right") return (n) => (right ? (right(n) ? RIGHT : WRONG) : GREY);
    if (state.colour === "label" && about.classes.length) {
      return (n) => ofClass(about.labels[n], about.classes.length);
    }
    if (state.colour === "prediction") {
      const predicted = app.values(view, "prediction");
      return (n) => (predicted ? ofClass(predicted.values[n], about.classes.length) : GREY);
    }
    const { chunks } = about;
    if (state.colour === "chunk") return (n) => (chunks ? sequence(chunks[n] / 9) : GREY);
    if (state.colour === "lineage") {
      const { panel, of } = app.lineages;
      return (n) => (panel === view.title ? ofLineage(of.get(n) ?? null) : GREY);
    }
    const found = app.values(view, state.colour);
    if (!found) return () => GREY;
    const [low, high] = common(app, state.colour, "linear");
    return (n) => sequence((found.decode(found.values[n]) - low) / (high - low));
  }

  /** What a colour means, of this panel. */
  legend(): { text: string; colour: Rgb; cross?: boolean; label?: number }[] {
    const { about, state } = this.app;
    if (state.colour === "right") {
      return [
        { text: "right", colour: RIGHT },
        { text: "wrong", colour: WRONG, cross: true },
      ];
    }
    if (["label", "prediction"].includes(state.colour) && about.classes.length && about.classes.length <= 12) {
      const filters = state.colour === "label"; // by what is predicted there is no filter
      return about.classes.map((text, k) => ({
        text,
        colour: ofClass(k, about.classes.length),
        label: filters ? k : undefined,
      }));
    }
    if (state.colour === "lineage") {
      const known = [...new Set(this.app.lineages.of.values())].sort((a, b) => a - b);
      const coloured = known.filter((lineage) => ofLineage(lineage) !== GREY);
      return [
        ...coloured.map((lineage) => ({ text: String(lineage), colour: ofLineage(lineage) })),
        { text: "smaller, or none", colour: GREY },
      ];
    }
    const [low, high] = state.colour === "chunk" ? [0, 9] : common(this.app, state.colour, "linear");
    return [0, 0.25, 0.5, 0.75, 1].map((share) => ({
      text: share % 1 ? "" : few(low + share * (high - low)),
      colour: sequence(share),
    }));
  }

  private pen(): CanvasRenderingContext2D {
    const pen = this.over.getContext("2d")!;
    const { devicePixelRatio } = window;
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, this.over.clientWidth, this.over.clientHeight);
    pen.font = "12px system-ui, sans-serif";
    return pen;
  }

  /** Draw axes and lasso over the points. */
  private decorate(): void {
    const pen = this.pen();
    const { clientWidth, clientHeight } = this.over;
    const [width, height] = [clientWidth - LEFT - RIGHT_EDGE, clientHeight - TOP - BOTTOM];
    const style = getComputedStyle(this.root);
    pen.fillStyle = style.getPropertyValue("--quiet");
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.lineWidth = 1;
    const { x, y } = this.axes!;
    pen.textAlign = "center";
    for (const tick of ticks(x, Math.max(2, width / 70))) {
      const at = Math.round(LEFT + placed(tick, x) * width) + 0.5;
      line(pen, at, TOP, at, TOP + height);
      pen.fillText(few(tick), at, TOP + height + 14);
    }
    pen.textAlign = "right";
    for (const tick of ticks(y, Math.max(2, height / 45))) {
      const at = Math.round(TOP + (1 - placed(tick, y)) * height) + 0.5;
      line(pen, LEFT, at, LEFT + width, at);
      pen.fillText(few(tick).replace("-", "−"), LEFT - 6, at + 4);
    }
    pen.textAlign = "center";
    pen.fillText(this.axisWords("x"), LEFT + width / 2, clientHeight - 4);
    pen.save();
    pen.translate(11, TOP + height / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(this.axisWords("y"), 0, 0);
    pen.restore();
    if (this.lasso) {
      pen.strokeStyle = style.getPropertyValue("--accent");
      pen.fillStyle = style.getPropertyValue("--accent");
      pen.lineWidth = 1.5;
      pen.beginPath();
      for (const [a, b] of this.lasso) pen.lineTo(a + LEFT, b + TOP);
      pen.stroke();
      pen.globalAlpha = 0.12;
      pen.fill();
      pen.globalAlpha = 1;
    }
  }

  private axisWords(axis: "x" | "y"): string {
    const { state } = this.app;
    const scale = state[`${axis}Scale`];
    const unit = this.app.measure(this.view, state[axis])?.unit;
    if (this.over.clientWidth < 480) return words(state[axis]);
    const about = [unit, scale === "linear" ? "" : scale === "sqrt" ? "square-root scale" : "log scale"];
    return `${words(state[axis])}${about.some(Boolean) ? ` (${about.filter(Boolean).join(", ")})` : ""}`;
  }

  /** Places of all points in pixels of the plot. */
  private pixels(): { x: Float32Array; y: Float32Array } | null {
    const { app, view } = this;
    if (!this.axes) return null;
    const { clientWidth: width, clientHeight: height } = this.drawing;
    const found: Float32Array[] = [];
    for (const axis of ["x", "y"] as const) {
      const values = app.values(view, app.state[axis]);
      if (!values) return null;
      const places = new Float32Array(app.about.numExamples);
      for (let n = 0; n < places.length; n++) {
        const place = Math.min(Math.max(placed(values.decode(values.values[n]), this.axes[axis]), 0), 1);
        places[n] = axis === "x" ? place * width : (1 - place) * height;
      }
      found.push(places);
    }
    return { x: found[0], y: found[1] };
  }

  /** The visible point nearest to a place, if it is near. */
  private nearest(x: number, y: number): number | null {
    const pixels = this.pixels();
    let [best, distance] = [null as number | null, NEAR ** 2];
    if (!pixels) return null;
    for (let n = 0; n < pixels.x.length; n++) {
      if (!this.app.visible[n]) continue;
      const d = (pixels.x[n] - x) ** 2 + (pixels.y[n] - y) ** 2;
      if (d < distance) [best, distance] = [n, d];
    }
    return best;
  }

  private listen(): void {
    const { over, app } = this;
    const at = (event: PointerEvent | WheelEvent): [number, number] => {
      const box = this.drawing.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    over.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      over.setPointerCapture(event.pointerId);
      this.lasso = [at(event)];
      this.moved = false;
    });
    over.addEventListener("pointermove", (event) => {
      const place = at(event);
      if (this.lasso) {
        const [x, y] = this.lasso.at(-1)!;
        if (Math.hypot(place[0] - x, place[1] - y) > 3) {
          this.lasso.push(place);
          this.moved = true;
          app.refresh(false, false);
        }
        return;
      }
      app.point(this.nearest(...place));
    });
    over.addEventListener("pointerup", (event) => {
      const { lasso, moved } = this;
      this.lasso = null;
      if (!lasso) return;
      if (!moved) {
        const found = this.nearest(...at(event));
        if (found !== null) app.pin(found);
        else if (app.state.selection.length) app.select([]);
        return;
      }
      const pixels = this.pixels();
      if (!pixels) return;
      const caught = [...pixels.x.keys()].filter((n) => app.visible[n] && inside(pixels.x[n], pixels.y[n], lasso));
      if (event.shiftKey) app.select([...app.state.selection, ...caught]);
      else if (event.altKey) app.select(app.state.selection.filter((n) => !caught.includes(n)));
      else app.select(caught);
    });
    over.addEventListener("pointercancel", () => {
      this.lasso = null;
      app.refresh(false);
    });
    over.addEventListener("pointerleave", () => !this.lasso && app.point(null));
    over.addEventListener("dblclick", () => app.change({ xRange: null, yRange: null }));
    over.addEventListener(
      "wheel",
      (event) => {
        if (!this.axes) return;
        event.preventDefault();
        const [x, y] = at(event);
        const factor = Math.exp(event.deltaY * 0.0015);
        app.change({
          xRange: zoom(this.axes.x, x / this.drawing.clientWidth, factor),
          yRange: zoom(this.axes.y, 1 - y / this.drawing.clientHeight, factor),
        });
      },
      { passive: false },
    );
  }
}

/** Zoom around a place; no further than the values, of 16 bits, and the URL can tell. */
function zoom(axis: Axis, around: number, factor: number): [number, number] {
  const [low, high] = [valueAt(around - around * factor, axis), valueAt(around + (1 - around) * factor, axis)];
  return isRange(low, high) && (axis.scale !== "log" || low > 0) ? [low, high] : [axis.low, axis.high];
}

const ranges = new Map<string, [number, number]>();

/** A range for a measure or score that suits all panels, which then have the same axes. */
function common(app: App, name: string, scale: Scale): [number, number] {
  const found = name.startsWith("score.")
    ? [ofScore(app, name, scale)]
    : app.views.map((view) => ofView(app, view, name, scale));
  const known = found.filter((range) => range !== null);
  if (!known.length) return [0, 1];
  return [Math.min(...known.map(([low]) => low)), Math.max(...known.map(([, high]) => high))];
}

function ofScore(app: App, name: string, scale: Scale): [number, number] | null {
  const values = app.score(name.slice(6));
  return values && remembered(`${name}/${scale}`, () => reach([values], (value) => value, scale));
}

function ofView(app: App, view: View, name: string, scale: Scale): [number, number] | null {
  const measure = app.measure(view, name);
  if (!measure) return null;
  const { frames, length } = app.frames.sample(app.series(view, measure));
  if (!frames.length) return null;
  const key = `${view.recording}/${view.seed}/${measure.name}/${scale}/${length}`;
  return remembered(key, () => reach(frames, decoder(measure.encoding), scale));
}

function remembered(key: string, find: () => [number, number]): [number, number] {
  const range = ranges.get(key) ?? find();
  ranges.set(key, range);
  return range;
}

/** Values that all but a two hundredth of the examples are within, in every frame of a sample. */
function reach(frames: ArrayLike<number>[], decode: (value: number) => number, scale: Scale): [number, number] {
  let [low, high, least] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY];
  for (const frame of frames) {
    const step = Math.max(1, Math.floor(frame.length / SAMPLED));
    const values: number[] = [];
    for (let n = 0; n < frame.length; n += step) {
      const value = decode(frame[n]);
      if (Number.isFinite(value)) values.push(value);
    }
    if (!values.length) continue;
    const sorted = Float32Array.from(values).sort();
    low = Math.min(low, quantile(sorted, 0.005));
    high = Math.max(high, quantile(sorted, 0.995));
    const positive = sorted.find((value) => value > 0);
    if (positive !== undefined)
      least = Math.min(
        least,
        quantile(
          sorted.filter((value) => value > 0),
          0.02,
        ),
      );
  }
  if (!(low <= high)) return [0, 1];
  if (scale === "log") return [Math.max(low, Math.min(least, high / 10), 1e-12), Math.max(high, 1e-11)];
  if (low >= 0 && low < high / 3) low = 0;
  const margin = (high - low || Math.abs(high) || 1) * 0.03;
  return [low === 0 ? 0 : low - margin, high + margin];
}

/** Round numbers on an axis, about so many. */
export function ticks({ low, high, scale }: Axis, about: number): number[] {
  if (scale === "log" && high / low > 20) {
    const [first, last] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
    const step = Math.max(1, Math.ceil((last - first) / about));
    const found: number[] = [];
    for (let k = first; k <= last; k += step) found.push(10 ** k);
    return found;
  }
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough)!;
  const found: number[] = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++)
    found.push(Number((k * step).toPrecision(10)));
  return found;
}

function line(pen: CanvasRenderingContext2D, x0: number, y0: number, x1: number, y1: number): void {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function hex(text: string): Rgb {
  return [1, 3, 5].map((k) => Number.parseInt(text.slice(k, k + 2), 16)) as Rgb;
}

/** Whether a place is inside a polygon, by the even-odd rule. */
export function inside(x: number, y: number, polygon: [number, number][]): boolean {
  let within = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [[xi, yi], [xj, yj]] = [polygon[i], polygon[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) within = !within;
  }
  return within;
}
