// The time axis: a slider over all records before the curves of accuracy and loss, play, and what iteration it is.

import uPlot from "uplot";
import type { App } from "./app";
import { count, element } from "./dom";

const SPEEDS = [1, 3, 10, 30, 60, 120, 300];
const INK = { accuracy: "--accent", loss: "--loss" };
const inked = (name: keyof typeof INK) => () => getComputedStyle(document.body).getPropertyValue(INK[name]);
/** Room at both sides of every chart over the records, so that they stand below each other. */
export const SIDES = { left: 52, right: 14 };

export class Time {
  readonly root: HTMLElement;
  playing = false;
  private readonly slider: HTMLInputElement;
  private readonly play: HTMLButtonElement;
  private readonly text = element("output", { class: "iteration", "aria-live": "off" });
  private readonly speed: HTMLSelectElement;
  private readonly chart = element("div", { class: "chart" });
  private plot: uPlot | null = null;
  private shown = "";
  private last = 0;

  constructor(private readonly app: App) {
    this.slider = element("input", {
      type: "range",
      min: "0",
      step: "any",
      "aria-label": "iteration",
      oninput: () => {
        this.stop();
        app.go(Number(this.slider.value), false);
      },
      onchange: () => app.go(Number(this.slider.value)),
      onkeydown: (event: KeyboardEvent) => {
        if (/^(Arrow|Page|Home|End)/.test(event.key)) event.preventDefault(); // the page's own keys step by records
      },
    });
    this.play = element("button", {
      type: "button",
      class: "play",
      title: "play or pause (space)",
      onclick: () => this.toggle(),
    });
    this.speed = element(
      "select",
      { "aria-label": "speed", onchange: () => app.change({ speed: Number(this.speed.value) }) },
      ...SPEEDS.map((speed) => element("option", { value: String(speed) }, `${count(speed, "record")}/s`)),
    );
    const step = (by: number, words: string, sign: string) =>
      element("button", { type: "button", title: words, "aria-label": words, onclick: () => this.step(by) }, sign);
    this.root = element(
      "section",
      { class: "time", "aria-label": "time" },
      element(
        "div",
        { class: "row" },
        step(-1, "one record back (←)", "‹"),
        this.play,
        step(1, "one record on (→)", "›"),
        this.text,
        element("label", {}, this.speed),
      ),
      element("div", { class: "track" }, this.chart, this.slider),
    );
    this.slider.style.marginLeft = `${SIDES.left - 8}px`;
    this.slider.style.marginRight = `${SIDES.right - 8}px`;
    new ResizeObserver(() => this.fit()).observe(this.chart);
  }

  toggle(): void {
    if (this.playing) {
      this.stop();
      return;
    }
    const { app } = this;
    if (app.record >= app.recording.iterations.length - 1) app.go(0);
    this.playing = true;
    this.last = performance.now();
    this.app.refresh(false);
    requestAnimationFrame(this.tick);
  }

  stop(): void {
    if (!this.playing) return;
    this.playing = false;
    this.app.go(this.app.record);
  }

  step(by: number): void {
    this.stop();
    this.app.go(Math.round(this.app.record) + by);
  }

  faster(by: number): void {
    const at = SPEEDS.findIndex((speed) => speed >= this.app.state.speed);
    this.app.change({ speed: SPEEDS[Math.min(Math.max((at < 0 ? 3 : at) + by, 0), SPEEDS.length - 1)] });
  }

  private readonly tick = (now: number): void => {
    if (!this.playing) return;
    const { app } = this;
    const record = app.record + (app.state.speed * (now - this.last)) / 1000;
    this.last = now;
    const end = app.recording.iterations.length - 1;
    app.go(record, false);
    if (record >= end) this.stop();
    else requestAnimationFrame(this.tick);
  };

  draw(all: boolean): void {
    const { app } = this;
    const { recording } = app;
    if (all) {
      this.slider.max = String(Math.max(0, recording.iterations.length - 1));
      this.speed.value = String(SPEEDS.find((speed) => speed >= app.state.speed) ?? 300);
      this.curves();
      this.plot?.redraw(false, false); // the page may have become light or dark
    }
    if (all || Number(this.slider.value) !== app.record) this.slider.value = String(app.record);
    this.play.textContent = this.playing ? "❚❚" : "▶";
    this.play.setAttribute("aria-label", this.playing ? "pause" : "play");
    const { iteration } = app.state;
    const last = recording.iterations.at(-1) ?? 0;
    const epoch = recording.perEpoch ? `, epoch ${(iteration / recording.perEpoch).toFixed(1)}` : "";
    const now = Math.round(app.record);
    const values = this.plot?.data.slice(1).map((row) => row[now] as number) ?? [];
    const [accuracy, loss] = values.length === 2 ? values : [Number.NaN, values[0] ?? Number.NaN];
    this.text.textContent = `iteration ${iteration.toLocaleString("en")} of ${last.toLocaleString("en")}${epoch}`;
    const number = (name: "accuracy" | "loss", value: string) => {
      const text = element("b", {}, `${name} ${value}`);
      text.style.color = `var(${INK[name]})`;
      this.text.append("  ", text);
    };
    if (Number.isFinite(accuracy)) number("accuracy", `${(100 * accuracy).toFixed(1)} %`);
    if (Number.isFinite(loss)) number("loss", loss.toFixed(3));
  }

  /** Draw the curves of the panel in front, once they have come. */
  private curves(): void {
    const { front, recording, source, about } = this.app;
    const { iterations } = recording;
    const key = `${front.recording}/${front.seed}/${iterations.length}`;
    if (key === this.shown) return;
    this.shown = key;
    source.curves(front.recording, front.seed).then(
      ({ accuracy, loss }) => {
        if (key !== this.shown) return;
        const place = iterations.map((_, k) => k);
        const data: uPlot.AlignedData = about.classes.length
          ? [place, gaps(accuracy), gaps(loss)]
          : [place, gaps(loss)];
        this.plot?.destroy();
        this.plot = new uPlot(this.options(about.classes.length > 0), data, this.chart);
        this.app.refresh(false);
      },
      (error) => this.app.say(error.message),
    );
  }

  private options(classes: boolean): uPlot.Options {
    const line = (label: "accuracy" | "loss", scale: string): uPlot.Series => ({
      label,
      scale,
      stroke: inked(label),
      width: 1.5,
      points: { show: false },
    });
    return {
      width: this.chart.clientWidth,
      height: 74,
      padding: [7, SIDES.right, 7, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false }, share: { range: [0, 1] }, loss: { range: (_, __, high) => [0, high || 1] } },
      series: [{}, ...(classes ? [line("accuracy", "share")] : []), line("loss", "loss")],
      axes: [{ show: false }, ...axis(classes ? "share" : "loss", inked(classes ? "accuracy" : "loss"))],
    };
  }

  private fit(): void {
    this.plot?.setSize({ width: this.chart.clientWidth, height: 74 });
  }
}

/** A quiet axis at the left. */
export function axis(scale: string, stroke?: () => string): uPlot.Axis[] {
  const quiet = () => getComputedStyle(document.body).getPropertyValue("--quiet");
  return [
    {
      scale,
      size: SIDES.left,
      stroke: stroke ?? quiet,
      font: "11px system-ui, sans-serif",
      grid: { stroke: () => getComputedStyle(document.body).getPropertyValue("--line"), width: 1 },
      ticks: { show: false },
      space: 26,
      values: (_, values) => values.map((value) => (value === null ? "" : String(Number(value.toPrecision(3))))),
    },
  ];
}

/** What is not a number is not drawn. */
export function gaps(values: Float32Array): (number | null)[] {
  return Array.from(values, (value) => (Number.isFinite(value) ? value : null));
}
