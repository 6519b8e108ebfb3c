// What all parts of the page share: the recording, what is chosen, and what follows from it.

import {
  type About,
  decoder,
  kind,
  type Measure,
  type Numbers,
  type Place,
  type RecordingAbout,
  type Source,
} from "./data";
import { few } from "./dom";
import { Frames, type Series } from "./frames";
import { fromHash, MOST_PINS, type State, toHash } from "./state";

export interface View extends Place {
  title: string;
}

/** Browsers keep some sixteen drawings by WebGL at a time. */
export const MOST_PANELS = 12;

export class App {
  state: State;
  readonly frames: Frames;
  readonly scores = new Map<string, Float32Array>();
  /** Which examples the filter lets through. */
  visible: Uint8Array;
  /** Which are selected. */
  chosen: Uint8Array;
  pointed: number | null = null;
  /** The lineage of each example in a cone, of the panel that groups were found in last. */
  lineages: { panel: string; of: Map<number, number> } = { panel: "", of: new Map() };
  /** Place among the records of the panel in front, a fraction while it moves. */
  record: number;
  forward = true;
  private readonly listeners: ((all: boolean) => void)[] = [];
  private waiting = false;
  private everything = true;
  private readonly asked = new Set<string>();
  message = "";
  private saying = 0;
  private telling = 0;
  /** Milliseconds from the page's start until points were drawn. */
  firstPicture: number | null = null;

  constructor(
    readonly about: About,
    readonly source: Source,
  ) {
    this.state = fromHash(location.hash, about);
    const length = (recording: number) => about.recordings[recording].iterations.length;
    this.frames = new Frames(source, about.numExamples, about.span, length, () => this.refresh(true));
    this.visible = new Uint8Array(about.numExamples).fill(1);
    this.chosen = new Uint8Array(about.numExamples);
    this.record = this.recordShown();
    this.derive();
    window.addEventListener("hashchange", () => {
      if (location.hash.slice(1) === toHash(this.state, this.about)) return;
      this.state = fromHash(location.hash, about);
      this.record = this.recordShown();
      this.derive();
      this.refresh(true);
    });
  }

  /** The record nearest to the iteration that the URL names, which may be none of this recording's. */
  private recordShown(): number {
    const record = Math.round(this.recordOf(this.front.recording, this.state.iteration));
    this.state.iteration = this.recording.iterations[record] ?? 0;
    return record;
  }

  /** The panels, in order. */
  get views(): View[] {
    const { recordings, seeds, layers } = this.state;
    const found: View[] = [];
    for (const recording of recordings) {
      const about = this.about.recordings[recording];
      for (const seed of seeds) {
        for (const layer of layers.length ? layers : [""]) {
          if (seed >= about.seeds.length || (layer && !about.layers.includes(layer))) continue;
          found.push({ recording, seed, layer, title: titled(this.about, recording, seed, layer) });
        }
      }
    }
    if (!found.length) {
      // Of a recording alone that has none of the seeds or layers that are chosen.
      const about = this.about.recordings[recordings[0]];
      const layer = about.layers.at(-1) ?? "";
      found.push({ recording: recordings[0], seed: 0, layer, title: titled(this.about, recordings[0], 0, layer) });
    }
    return found.slice(0, MOST_PANELS);
  }

  get front(): View {
    const { views } = this;
    return views[Math.min(this.state.front, views.length - 1)];
  }

  get recording(): RecordingAbout {
    return this.about.recordings[this.front.recording];
  }

  /** Place of an iteration among the records of a recording, between two of them if it was not recorded. */
  recordOf(recording: number, iteration: number): number {
    const { iterations } = this.about.recordings[recording];
    let [low, high] = [0, iterations.length - 1];
    if (iteration <= iterations[low]) return low;
    if (iteration >= iterations[high]) return Math.max(0, high);
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (iterations[middle] <= iteration) low = middle;
      else high = middle;
    }
    return low + (iteration - iterations[low]) / (iterations[high] - iterations[low]);
  }

  /** Place among the records of a panel's recording. */
  recordIn(view: View): number {
    const { front } = this;
    if (view.recording === front.recording) return this.record;
    const { iterations } = this.recording;
    const below = Math.floor(this.record);
    const above = Math.min(below + 1, iterations.length - 1);
    const iteration = iterations[below] + (this.record - below) * (iterations[above] - iterations[below]);
    return this.recordOf(view.recording, iteration);
  }

  /** Go to a place among the records. */
  go(record: number, settle = true): void {
    const last = this.recording.iterations.length - 1;
    this.forward = record >= this.record;
    this.record = Math.min(Math.max(record, 0), Math.max(last, 0));
    this.state.iteration = this.recording.iterations[Math.round(this.record)] ?? 0;
    if (settle) this.record = Math.round(this.record);
    this.refresh(false, settle);
  }

  change(partial: Partial<State>): void {
    const { front } = this;
    Object.assign(this.state, partial);
    if (this.front.recording !== front.recording)
      this.record = this.recordOf(this.front.recording, this.state.iteration);
    this.derive();
    this.refresh(true);
  }

  select(examples: Iterable<number>): void {
    this.change({ selection: [...new Set(examples)].sort((a, b) => a - b) });
  }

  pin(example: number): void {
    const { pins } = this.state;
    const others = pins.filter((pin) => pin !== example);
    this.change({ pins: others.length < pins.length ? others : [...pins, example].slice(-MOST_PINS) });
  }

  point(example: number | null): void {
    if (example === this.pointed) return;
    this.pointed = example;
    this.refresh(false);
  }

  /** Have everything drawn anew before the next picture: all of it, or only what moves with time. */
  refresh(all: boolean, settled = true): void {
    this.everything ||= all;
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const whole = this.everything;
      this.everything = false;
      for (const listener of this.listeners) listener(whole);
      if (settled) this.tellUrl();
    });
  }

  /** Say in the URL what is chosen; browsers stop a page that does so more than some hundred times in half a minute. */
  private tellUrl(): void {
    if (this.telling) return;
    this.telling = window.setTimeout(() => {
      this.telling = 0;
      const hash = `#${toHash(this.state, this.about)}`;
      if (hash !== location.hash) history.replaceState(null, "", location.search + hash);
    }, 250);
  }

  /** Whether all that was chosen is drawn, and in the URL. */
  get told(): boolean {
    return !this.everything && !this.telling;
  }

  onDraw(listener: (all: boolean) => void): void {
    this.listeners.push(listener);
  }

  /** Show a message for a while. */
  say(message: string): void {
    this.message = message;
    clearTimeout(this.saying);
    this.saying = window.setTimeout(() => {
      this.message = "";
      this.refresh(true);
    }, 8000);
    this.refresh(true);
  }

  /** The measure of a kind in a panel, if it has one. */
  measure(view: View, name: string): Measure | null {
    const { measures } = this.about.recordings[view.recording];
    return measures.find((one) => kind(one.name) === name && (!one.layer || one.layer === view.layer)) ?? null;
  }

  series(view: View, measure: Measure): Series {
    return { recording: view.recording, seed: view.seed, measure: measure.name };
  }

  /** The values of a kind of measure, or of a score, of all examples as shown now. */
  values(view: View, name: string): { values: Numbers; decode: (value: number) => number } | null {
    if (name.startsWith("score.")) {
      const values = this.score(name.slice(6));
      return values && { values, decode: (value) => value };
    }
    const measure = this.measure(view, name);
    const values = measure && this.frames.at(this.series(view, measure), this.recordIn(view));
    return values && { values, decode: decoder(measure.encoding) };
  }

  /** The values of a score, once they have come. */
  score(name: string): Float32Array | null {
    if (!this.asked.has(name)) {
      this.asked.add(name);
      this.source.score(name).then(
        (values) => {
          this.scores.set(name, values);
          this.derive();
          this.refresh(true);
        },
        (error) => this.say(error.message),
      );
    }
    return this.scores.get(name) ?? null;
  }

  /** Whether an example is right in a panel, as shown now; null if there are no classes, or it is not there yet. */
  right(view: View): ((example: number) => boolean) | null {
    const prediction = this.about.classes.length ? this.values(view, "prediction") : null;
    return prediction && ((example) => prediction.values[example] === this.about.labels[example]);
  }

  /** Find out what the filter and the selection say of each example. */
  derive(): void {
    const { filter, selection } = this.state;
    const { labels, chunks, ids, numExamples } = this.about;
    const [ofLabels, ofChunks] = [new Set(filter.labels), new Set(filter.chunks)];
    const score = filter.score ? this.score(filter.score) : null;
    const words = filter.ids.split(/[\s,]+/).filter(Boolean);
    const named = new Set(words);
    const right = filter.right ? this.right(this.front) : null;
    for (let n = 0; n < numExamples; n++) {
      const through =
        (!ofLabels.size || ofLabels.has(labels[n])) &&
        (!ofChunks.size || !chunks || ofChunks.has(chunks[n])) &&
        (!score || (score[n] >= filter.low && score[n] <= filter.high)) &&
        (!words.length || named.has(String(ids[n]))) &&
        (!right || right(n) === (filter.right === "right"));
      this.visible[n] = Number(through);
    }
    this.chosen.fill(0);
    for (const n of selection) this.chosen[n] = 1;
  }

  /** The examples that the lists speak of: the selection, or all that the filter lets through. */
  get listed(): number[] {
    const { selection } = this.state;
    const among = selection.length ? selection : Array.from({ length: this.about.numExamples }, (_, n) => n);
    return among.filter((n) => this.visible[n]);
  }

  label(example: number): string {
    const { classes, labels, targets } = this.about;
    return classes.length ? classes[labels[example]] : targets ? few(targets[example]) : "";
  }
}

function titled({ recordings }: About, recording: number, seed: number, layer: string): string {
  const { name, seeds } = recordings[recording];
  return `${recordings.length > 1 ? `${name}, ` : ""}seed ${seeds[seed]}${layer && `, ${layer}`}`;
}
