// Over all of training: each pinned example as a line, a selection as its mean and its middle half, and a cursor.

import uPlot from "uplot";
import type { App } from "./app";
import { css, PINS, RIGHT, WRONG } from "./colours";
import { type Band, HISTORY, type History, type HistoryName } from "./data";
import { element, refill } from "./dom";
import { RETRY } from "./frames";
import { words } from "./panel";
import { axis, gaps, SIDES } from "./time";

const CHARTS = HISTORY.filter((name) => name !== "right");
const SELECTED = "#888888"; // seen on light and on dark
const STRIP = 9; // pixels of a row of the strip of right and wrong

export class Histories {
  readonly root: HTMLElement;
  private readonly charts = element("div", { class: "charts" });
  private readonly strip = element("canvas", { class: "strip" });
  private readonly words = element("p", { class: "quiet" });
  private readonly pinned = element("div", { class: "pins" });
  private readonly plots = new Map<HistoryName, uPlot>();
  private readonly known = new Map<string, History>();
  private band: { key: string; band: Band } | null = null;
  private readonly pending = new Set<string>();
  private asked = "";
  private drawn = "";

  constructor(
    private readonly app: App,
    private readonly look: (example: number, size: number) => HTMLElement,
  ) {
    this.root = element(
      "section",
      { class: "histories", "aria-label": "histories" },
      element("h2", {}, "Histories"),
      this.words,
      this.pinned,
      this.strip,
      this.charts,
    );
    new ResizeObserver(() => {
      this.drawn = "";
      app.refresh(true);
    }).observe(this.charts);
    this.strip.addEventListener("click", (event) => this.goTo(event));
    this.charts.addEventListener("click", (event) => this.goTo(event));
  }

  /** The histories drawn, by example, for tests. */
  get shown(): Record<number, History> {
    return Object.fromEntries(
      this.app.state.pins.map((pin) => [pin, this.known.get(this.key(pin))]).filter(([, h]) => h),
    ) as never;
  }

  draw(all: boolean): void {
    if (all) {
      this.ask();
      this.build();
      this.drawPins();
    }
    for (const plot of this.plots.values()) plot.redraw(false, false);
    this.drawStrip();
  }

  private key(example: number): string {
    const { recording, seed, layer } = this.app.front;
    return `${recording}/${seed}/${layer}/${example}/${this.app.recording.iterations.length}`;
  }

  private ask(): void {
    const { app } = this;
    for (const pin of app.state.pins) {
      const key = this.key(pin);
      if (this.known.has(key) || this.pending.has(key)) continue;
      if (this.known.size > 200) this.known.clear();
      this.pending.add(key);
      app.source.history(app.front, pin).then(
        (history) => {
          this.pending.delete(key);
          this.known.set(key, history);
          app.refresh(true);
        },
        (error) => {
          setTimeout(() => this.pending.delete(key), RETRY);
          app.say(error.message);
        },
      );
    }
    const { selection } = app.state;
    const key = selection.length ? `${this.key(-1)}/${selection.join()}` : "";
    if (key === this.asked) return;
    this.asked = key;
    if (!key) {
      this.band = null;
      return;
    }
    app.source.band(app.front, selection).then(
      (band) => {
        if (key !== this.asked) return;
        this.band = { key, band };
        app.refresh(true);
      },
      (error) => app.say(error.message),
    );
  }

  private build(): void {
    const { app, band } = this;
    const pins = app.state.pins.map((pin, k) => ({ pin, colour: PINS[k], history: this.known.get(this.key(pin)) }));
    const there = pins.filter((one) => one.history);
    this.words.textContent =
      there.length || band
        ? `${app.front.title}. ${band ? "Grey: mean of the selection, and its middle half. " : ""}Click to go there.`
        : "Click a point to pin it and see its history here; draw around points to see the mean of a selection.";
    const key = JSON.stringify([
      this.charts.clientWidth,
      there.map(({ pin }) => this.key(pin)),
      band?.key ?? "",
      app.state.pins,
    ]);
    if (key === this.drawn) return;
    this.drawn = key;
    for (const plot of this.plots.values()) plot.destroy();
    this.plots.clear();
    this.charts.replaceChildren();
    if (!there.length && !band) return;
    const place = app.recording.iterations.map((_, k) => k);
    for (const name of CHARTS) {
      const rows = there.map(({ history }) => gaps(history![name]));
      const around = band && [gaps(band.band[name].low), gaps(band.band[name].high), gaps(band.band[name].mean)];
      if (![...rows, ...(around ?? [])].some((row) => row.some((value) => value !== null))) continue;
      const series: uPlot.Series[] = [{}];
      if (around) {
        for (const k of [0, 1, 2])
          series.push({ stroke: k === 2 ? SELECTED : "transparent", width: 2, points: { show: false } });
      }
      for (const { colour } of there) series.push({ stroke: colour, width: 1.3, points: { show: false } });
      const holder = element("figure", {}, element("figcaption", {}, words(name)));
      this.charts.append(holder);
      const options: uPlot.Options = {
        width: this.charts.clientWidth,
        height: 92,
        padding: [6, SIDES.right, 4, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false } },
        series,
        bands: around ? [{ series: [2, 1], fill: "rgba(128,128,128,0.3)" }] : [],
        axes: [{ show: false }, ...axis("y")],
        hooks: { draw: [(plot) => this.cursor(plot)] },
      };
      this.plots.set(name, new uPlot(options, [place, ...(around ?? []), ...rows] as uPlot.AlignedData, holder));
    }
  }

  /** Which example each colour is; a click takes its pin out. */
  private drawPins(): void {
    const { app } = this;
    refill(
      this.pinned,
      ...app.state.pins.map((pin, k) => {
        const text = `id ${app.about.ids[pin]}${app.label(pin) && `, ${app.label(pin)}`}`;
        const button = element(
          "button",
          {
            type: "button",
            title: "unpin",
            onclick: () => app.pin(pin),
            onpointerenter: () => app.point(pin),
            onpointerleave: () => app.point(null),
          },
          this.look(pin, 26),
          `${text} ×`,
        );
        button.style.borderColor = PINS[k];
        return button;
      }),
    );
  }

  private cursor(plot: uPlot): void {
    const { ctx, bbox } = plot;
    const at = Math.round(plot.valToPos(this.app.record, "x", true)) + 0.5;
    ctx.save();
    ctx.strokeStyle = getComputedStyle(this.root).getPropertyValue("--accent");
    ctx.lineWidth = window.devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(at, bbox.top);
    ctx.lineTo(at, bbox.top + bbox.height);
    ctx.stroke();
    ctx.restore();
  }

  /** A row for each pinned example, green where it is right, and one for the share of the selection that is. */
  private drawStrip(): void {
    const { app, strip, band } = this;
    const rows = app.state.pins.map((pin, k) => ({ values: this.known.get(this.key(pin))?.right, mark: PINS[k] }));
    if (band) rows.unshift({ values: band.band.right.mean, mark: SELECTED });
    const there = app.about.classes.length ? rows.filter((row) => row.values) : [];
    strip.hidden = !there.length;
    if (!there.length) return;
    const { devicePixelRatio } = window;
    const [width, height] = [strip.clientWidth, there.length * (STRIP + 2)];
    strip.style.height = `${height}px`;
    strip.width = width * devicePixelRatio;
    strip.height = height * devicePixelRatio;
    const pen = strip.getContext("2d")!;
    pen.scale(devicePixelRatio, devicePixelRatio);
    const room = width - SIDES.left - SIDES.right;
    const records = app.recording.iterations.length;
    there.forEach(({ values, mark }, row) => {
      pen.fillStyle = mark;
      pen.fillRect(SIDES.left - 12, row * (STRIP + 2), 8, STRIP);
      for (let x = 0; x < room; x++) {
        const k = Math.min(records - 1, Math.floor((x / room) * records));
        const share = values![k];
        pen.fillStyle = css(RIGHT.map((c, i) => WRONG[i] + share * (c - WRONG[i])) as typeof RIGHT);
        pen.fillRect(SIDES.left + x, row * (STRIP + 2), 1, STRIP);
      }
    });
    pen.fillStyle = getComputedStyle(this.root).color;
    pen.fillRect(SIDES.left + (app.record / Math.max(1, records - 1)) * room - 0.75, 0, 1.5, height);
  }

  private goTo(event: MouseEvent): void {
    const box = this.charts.getBoundingClientRect();
    const share = (event.clientX - box.left - SIDES.left) / (box.width - SIDES.left - SIDES.right);
    this.app.go(Math.min(1, Math.max(0, share)) * (this.app.recording.iterations.length - 1));
  }
}
