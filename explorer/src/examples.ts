// The examples that are selected, as pictures or rows; what they have in common; and the one under the pointer.

import type { App } from "./app";
import { css, ofClass, PINS, RIGHT, WRONG } from "./colours";
import { count, element, few, menu, refill } from "./dom";
import { words } from "./panel";

const MOST = 120; // examples shown in the list
const TOLD = 14; // measures and scores of the example under the pointer, those in use first

export class Examples {
  readonly root: HTMLElement;
  readonly tip = element("div", { class: "tip", role: "status", hidden: true });
  private readonly summary = element("div", { class: "summary" });
  private readonly list = element("div", { class: "list" });
  private readonly bar = element("div", { class: "row" });
  private readonly looks = new Map<number, Uint8Array | string>();
  private readonly asked = new Set<number>();
  private soon = new Set<number>();
  private shown = "";

  constructor(private readonly app: App) {
    this.root = element(
      "section",
      { class: "examples", "aria-label": "examples" },
      element("h2", {}, "Examples"),
      this.summary,
      this.bar,
      this.list,
    );
  }

  draw(all: boolean): void {
    this.drawTip();
    if (all) this.drawList();
    else this.later();
  }

  private timer = 0;
  /** Draw the list for the iteration shown once that rests: what is right, and some orders, are of it. */
  private later(): void {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.drawList(), 250);
  }

  /** The examples listed, in the order chosen. */
  order(): number[] {
    const { app } = this;
    const { sort } = app.state;
    const listed = app.listed;
    const key = this.key(sort);
    if (key) listed.sort((a, b) => compare(key(a), key(b)));
    return app.state.backwards ? listed.reverse() : listed;
  }

  private key(sort: string): ((n: number) => number | string) | null {
    const { app } = this;
    if (sort === "example") return null;
    if (sort === "id") return (n) => app.about.ids[n];
    if (sort === "label") return (n) => app.about.labels[n];
    const found = app.values(app.front, sort);
    return found && ((n) => found.decode(found.values[n]));
  }

  /** The picture or text of an example, if it has come; otherwise it is asked for. */
  private known(example: number): Uint8Array | string | undefined {
    const known = this.looks.get(example);
    if (known === undefined && !this.asked.has(example)) {
      this.asked.add(example);
      if (!this.soon.size) setTimeout(() => this.fetch(), 0);
      this.soon.add(example);
    }
    return known;
  }

  /** An example as it is shown: a picture so large, or its text. */
  look(example: number, size: number): HTMLElement {
    const { picture } = this.app.about;
    const known = this.known(example);
    if (known === undefined) return element("span", { class: "blank" });
    if (typeof known === "string" || !picture) return element("pre", {}, String(known));
    return paint(known, picture, size);
  }

  private async fetch(): Promise<void> {
    const wanted = [...this.soon];
    this.soon = new Set();
    if (this.looks.size > 4000) {
      this.looks.clear();
      this.asked.clear();
    }
    try {
      const { source, about } = this.app;
      const found: (Uint8Array | string)[] = about.picture ? await source.pictures(wanted) : await source.texts(wanted);
      for (const [k, example] of wanted.entries()) this.looks.set(example, found[k]);
      this.shown = "";
      this.app.refresh(true);
    } catch (error) {
      this.app.say((error as Error).message);
    }
  }

  private drawTip(): void {
    const { app, tip } = this;
    const { pointed } = app;
    tip.hidden = pointed === null;
    if (pointed === null) return;
    const { about, state, front } = app;
    const lines: [string, string][] = [["id", String(about.ids[pointed])]];
    if (app.label(pointed)) lines.push(["label", app.label(pointed)]);
    const predicted = about.classes.length ? app.values(front, "prediction") : null;
    if (predicted) lines.push(["prediction", about.classes[predicted.values[pointed]]]);
    if (about.chunks) lines.push(["chunk", String(about.chunks[pointed])]);
    const scores = about.scores.map(({ name }) => `score.${name}`);
    const names = [...new Set([state.x, state.y, "loss", "margin", state.colour, state.sort, ...scores])].slice(
      0,
      TOLD,
    );
    for (const name of names) {
      if (["right", "label", "prediction", "chunk", "example", "id"].includes(name)) continue;
      const found = app.values(front, name);
      if (found) lines.push([words(name), few(found.decode(found.values[pointed]))]);
    }
    tip.replaceChildren(
      this.look(pointed, 84),
      element("dl", {}, ...lines.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    );
  }

  private drawList(): void {
    const { app } = this;
    const { about, state } = app;
    const order = this.order();
    const right = app.right(app.front);
    const key = JSON.stringify([
      order.length,
      order.slice(0, MOST),
      right && order.slice(0, MOST).map(right),
      state.pins,
      state.sort,
      state.backwards,
      app.front.title,
      about.scores.length,
    ]);
    this.drawSummary(right);
    if (key === this.shown) return;
    this.shown = key;
    const sorts: [string, string][] = [
      ["example", "order in the data"],
      ["id", "id"],
      ...(about.classes.length ? ([["label", "label"]] as [string, string][]) : []),
      ...["norm", "alignment", "loss", "margin"]
        .filter((name) => app.measure(app.front, name))
        .map((name): [string, string] => [name, `${words(name)} now`]),
      ...about.scores.map(({ name }): [string, string] => [`score.${name}`, words(name)]),
    ];
    refill(
      this.bar,
      element(
        "label",
        {},
        "sorted by ",
        menu("sorted by", sorts, state.sort, (sort) => app.change({ sort })),
      ),
      element(
        "button",
        {
          type: "button",
          "aria-pressed": state.backwards,
          title: "the other way round",
          onclick: () => app.change({ backwards: !state.backwards }),
        },
        "↓↑",
      ),
    );
    const found = order.slice(0, MOST).map((n) => this.item(n, right));
    const left = order.length - found.length;
    refill(
      this.list,
      ...found,
      ...(left > 0 ? [element("p", { class: "quiet" }, `and ${count(left, "more")}`.replace("mores", "more"))] : []),
    );
  }

  private item(n: number, right: ((n: number) => boolean) | null): HTMLElement {
    const { app } = this;
    const pinned = app.state.pins.indexOf(n);
    const button = element(
      "button",
      {
        type: "button",
        class: "item",
        title: `id ${app.about.ids[n]}; click to pin`,
        "aria-label": `example ${app.about.ids[n]}, label ${app.label(n)}`,
        "aria-pressed": pinned >= 0,
        onclick: () => app.pin(n),
        onpointerenter: () => app.point(n),
        onpointerleave: () => app.point(null),
        onfocus: () => app.point(n),
        onblur: () => app.point(null),
      },
      this.look(n, 40),
      element("span", { class: "caption" }, app.label(n)),
    );
    if (pinned >= 0) button.style.outlineColor = PINS[pinned];
    if (right) button.style.borderBottomColor = css(right(n) ? RIGHT : WRONG);
    return button;
  }

  /** What is selected, and what it has in common. */
  private drawSummary(right: ((n: number) => boolean) | null): void {
    const { app } = this;
    const { about, state } = app;
    const listed = app.listed;
    const all = listed.length === about.numExamples;
    const share = (of: number[]) => (right && of.length ? of.filter(right).length / of.length : Number.NaN);
    const head = all
      ? `all ${count(about.numExamples, "example")}`
      : `${count(listed.length, "example")} of ${about.numExamples.toLocaleString("en")}`;
    const parts: (Node | string)[] = [
      element(
        "p",
        {},
        element("strong", {}, state.selection.length ? "Selected: " : "Shown: "),
        head,
        Number.isFinite(share(listed)) ? `; ${(100 * share(listed)).toFixed(0)} % right now` : "",
      ),
    ];
    if (!all && listed.length) {
      const mean = this.meanPicture(listed);
      const shape = element("div", { class: "common" });
      if (mean) shape.append(element("figure", {}, mean, element("figcaption", {}, "mean")));
      if (about.classes.length)
        shape.append(
          this.bars(
            "labels",
            about.classes,
            listed.map((n) => about.labels[n]),
            (k) => css(ofClass(k, about.classes.length)),
          ),
        );
      if (about.chunks) {
        const tenths = Array.from({ length: 10 }, (_, k) => String(k));
        shape.append(
          this.bars(
            "chunks, 0 the most typical",
            tenths,
            listed.map((n) => about.chunks![n]),
            () => "var(--quiet)",
          ),
        );
      }
      parts.push(shape);
      const telling = this.telling(listed);
      if (telling.length) parts.push(element("p", { class: "quiet" }, `Unlike the others in: ${telling.join("; ")}`));
    }
    parts.push(
      element(
        "div",
        { class: "row" },
        ...(all
          ? []
          : [
              element(
                "button",
                { type: "button", title: "as a file of ids (e)", onclick: () => this.save() },
                "ids as CSV",
              ),
            ]),
        ...(all ? [] : [element("button", { type: "button", onclick: () => this.copy() }, "copy for a notebook")]),
        ...(!state.selection.length && !all
          ? [
              element(
                "button",
                { type: "button", title: "select all shown (a)", onclick: () => app.select(listed) },
                "select these",
              ),
            ]
          : []),
        ...(state.selection.length
          ? [element("button", { type: "button", title: "Escape", onclick: () => app.select([]) }, "clear selection")]
          : []),
        ...(state.pins.length
          ? [element("button", { type: "button", onclick: () => app.change({ pins: [] }) }, "unpin all")]
          : []),
      ),
    );
    refill(this.summary, ...parts);
  }

  private bars(title: string, names: string[], values: number[], colour: (k: number) => string): HTMLElement {
    const counts = names.map((_, k) => values.filter((value) => value === k).length);
    const most = Math.max(...counts, 1);
    const shown = names.map((name, k) => ({ name, k, count: counts[k] }));
    const few = names.length > 12 ? shown.sort((a, b) => b.count - a.count).slice(0, 10) : shown;
    return element(
      "figure",
      { class: "bars" },
      element("figcaption", {}, title),
      element(
        "div",
        { class: "columns" },
        ...few.map(({ name, k, count }) => {
          const bar = element("i");
          Object.assign(bar.style, { height: `${(28 * count) / most}px`, background: colour(k) });
          return element("span", { title: `${name}: ${count}` }, bar, element("small", {}, name.slice(0, 6)));
        }),
      ),
    );
  }

  /** The scores in which some examples differ most from all, in standard deviations. */
  private telling(listed: number[]): string[] {
    const { app } = this;
    const found: { text: string; size: number }[] = [];
    for (const { name } of app.about.scores) {
      const values = app.score(name);
      if (!values) continue;
      const [mean, deviation] = moments(values);
      const [here] = moments(Float32Array.from(listed, (n) => values[n]));
      const size = (here - mean) / deviation;
      if (Number.isFinite(size))
        found.push({
          text: `${words(name)} ${size > 0 ? "+" : "−"}${Math.abs(size).toFixed(1)} sd`,
          size: Math.abs(size),
        });
    }
    return found
      .sort((a, b) => b.size - a.size)
      .filter(({ size }) => size > 0.5)
      .slice(0, 4)
      .map(({ text }) => text);
  }

  private meanPicture(listed: number[]): HTMLElement | null {
    const { picture } = this.app.about;
    if (!picture) return null;
    const step = Math.ceil(listed.length / 200);
    const some = listed.filter((_, k) => k % step === 0);
    const known = some.map((n) => this.known(n)).filter((look): look is Uint8Array => look instanceof Uint8Array);
    if (!known.length) return null;
    const mean = new Uint8Array(known[0].length);
    for (let k = 0; k < mean.length; k++) mean[k] = known.reduce((sum, look) => sum + look[k], 0) / known.length;
    return paint(mean, picture, 64);
  }

  save(): void {
    const { about } = this.app;
    const cell = (text: string) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = this.order().map((n) => [String(n), cell(String(about.ids[n])), cell(this.app.label(n))].join(","));
    const link = element("a", {
      href: URL.createObjectURL(new Blob([`example,id,label\n${lines.join("\n")}\n`], { type: "text/csv" })),
      download: "selection.csv",
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  /** A line that selects the same examples in Python. */
  get line(): string {
    const { app } = this;
    return `td.Recording(${JSON.stringify(app.recording.path)}).ids[[${app.listed.join(", ")}]]`;
  }

  private copy(): void {
    navigator.clipboard.writeText(this.line).then(
      () => this.app.say("Copied: a line that gives the ids in Python."),
      () => this.app.say("The browser does not let this page copy."),
    );
  }
}

function compare(a: number | string, b: number | string): number {
  if (typeof a === "number" && typeof b === "number") {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
    return a - b;
  }
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function moments(values: Float32Array): [number, number] {
  const known = values.filter((value) => Number.isFinite(value));
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  return [mean, Math.sqrt(known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / known.length)];
}

/** Paint a picture: grey or colour. */
function paint(
  pixels: Uint8Array,
  { height, width, channels }: { height: number; width: number; channels: number },
  size: number,
): HTMLElement {
  const canvas = element("canvas", { width, height, class: "picture" });
  const scale = size / Math.max(width, height);
  Object.assign(canvas.style, { width: `${width * scale}px`, height: `${height * scale}px` });
  const image = new ImageData(width, height);
  for (let k = 0; k < width * height; k++) {
    for (let c = 0; c < 3; c++) image.data[4 * k + c] = pixels[k * channels + (channels >= 3 ? c : 0)];
    image.data[4 * k + 3] = 255;
  }
  canvas.getContext("2d")!.putImageData(image, 0, 0);
  return canvas;
}
