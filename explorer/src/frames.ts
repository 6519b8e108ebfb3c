// Frames that are at hand: a coarse few of the whole run, and as many ranges around the present one as memory allows.

import type { Numbers, Source } from "./data";

const BUDGET = 192e6; // bytes of all series together
const COARSE = 48; // frames of the whole run that are loaded first, at most
const COARSE_VALUES = 1.5e6; // in these frames of one measure
const AT_ONCE = 3; // requests under way
export const RETRY = 3000; // milliseconds after a request that failed

export interface Series {
  recording: number;
  seed: number;
  measure: string;
}

interface Loaded {
  length: number; // records that the coarse frames are of; a live run has more later
  stride: number;
  coarse: Map<number, Numbers>;
  ranges: Map<number, { rows: Numbers[]; used: number }>;
}

const keyOf = (series: Series) => `${series.recording}/${series.seed}/${series.measure}`;

export class Frames {
  private readonly series = new Map<string, Loaded>();
  private readonly busy = new Set<string>();
  private wanted: { series: Series[]; record: number; forward: boolean } | null = null;
  /** Of the ranges that are held. */
  bytes = 0;
  private clock = 0;
  private budget = BUDGET;
  private again = 0;
  failed = "";

  /**
   * @param records Number of records of a recording.
   * @param span Records that are read at once.
   * @param arrived Told when there is more to draw.
   */
  constructor(
    private readonly source: Source,
    private readonly n: number,
    private readonly span: number,
    private readonly records: (recording: number) => number,
    private readonly arrived: () => void,
  ) {}

  /**
   * The two frames that a place between records is between, and how far from the first to the second it is. Until these
   * are there, the nearest ones that are, of the coarse ones.
   */
  around(series: Series, record: number): { first: Numbers; second: Numbers; mixing: number } | null {
    const known = this.series.get(keyOf(series));
    if (!known) return null;
    const [below, above] = [Math.floor(record), Math.ceil(record)];
    const [first, second] = [this.exact(known, below), this.exact(known, above)];
    if (first && second) return { first, second, mixing: record - below };
    if (!known.coarse.size) return null;
    const last = known.stride * (known.coarse.size - 1);
    const low = Math.min(Math.floor(record / known.stride) * known.stride, last);
    const high = Math.min(low + known.stride, last);
    const mixing = high > low ? (record - low) / (high - low) : 0;
    return { first: known.coarse.get(low)!, second: known.coarse.get(high)!, mixing };
  }

  /** The frame at a record; or, until it is there, the nearest that is. */
  at(series: Series, record: number): Numbers | null {
    const found = this.around(series, Math.round(record));
    return found && (found.mixing < 0.5 ? found.first : found.second);
  }

  private exact(known: Loaded, record: number): Numbers | null {
    const range = known.ranges.get(Math.floor(record / this.span));
    if (range) range.used = ++this.clock;
    return range?.rows[record % this.span] ?? null;
  }

  /** The coarse frames of a series, from which axes are found, and of how many records they are. */
  sample(series: Series): { frames: Numbers[]; length: number } {
    const { coarse, length } = this.known(series);
    return { frames: [...coarse.values()], length };
  }

  /** Ask for what is shown now; what comes next is loaded after it. */
  want(series: Series[], record: number, forward: boolean): void {
    this.wanted = { series, record, forward };
    this.load();
  }

  /** Whether nothing is on its way. */
  get settled(): boolean {
    return this.busy.size === 0;
  }

  private load(): void {
    while (this.busy.size < AT_ONCE && performance.now() >= this.again) {
      const next = this.next();
      if (!next) return;
      const [name, work] = next;
      this.busy.add(name);
      work()
        .then(() => {
          this.failed = "";
        })
        .catch((error) => {
          this.failed = String(error.message ?? error);
          this.again = performance.now() + RETRY;
          setTimeout(() => this.load(), RETRY + 10);
        })
        .finally(() => {
          this.busy.delete(name);
          this.arrived();
          this.load();
        });
    }
  }

  /** What to load next: the coarse frames of what is shown, the range that is shown, those after it, then the rest. */
  private next(): [string, () => Promise<void>] | null {
    if (!this.wanted) return null;
    const { series, record, forward } = this.wanted;
    for (const one of series) {
      const known = this.known(one);
      const name = `${keyOf(one)}/coarse`;
      const grown = this.records(one.recording) >= 2 * known.length;
      if ((!known.coarse.size || grown) && !this.busy.has(name)) return [name, () => this.loadCoarse(one, known)];
    }
    const here = Math.floor(record / this.span);
    const cost = series.length * this.span * this.n * 2;
    const reach = Math.max(0, Math.floor(BUDGET / cost) - 1);
    this.budget = Math.max(BUDGET, cost); // or what is shown would be thrown away and loaded again, without end
    const ahead = [0, ...Array.from({ length: reach }, (_, k) => [k + 1, -(k + 1)]).flat()];
    for (const step of ahead.slice(0, reach + 1)) {
      const range = here + (forward ? step : -step);
      for (const one of series) {
        const known = this.known(one);
        const last = this.records(one.recording);
        const name = `${keyOf(one)}/${range}`;
        if (range < 0 || range * this.span >= last || this.busy.has(name)) continue;
        const there = known.ranges.get(range)?.rows.length ?? 0;
        const length = Math.min(this.span, last - range * this.span);
        if (there < length) return [name, () => this.loadRange(one, known, range, length)];
      }
    }
    return null;
  }

  private known(one: Series): Loaded {
    const key = keyOf(one);
    let known = this.series.get(key);
    if (!known) {
      known = { length: 0, stride: 1, coarse: new Map(), ranges: new Map() };
      this.series.set(key, known);
    }
    return known;
  }

  private async loadCoarse(one: Series, known: Loaded): Promise<void> {
    const length = this.records(one.recording);
    const wanted = Math.max(8, Math.min(COARSE, Math.floor(COARSE_VALUES / this.n)));
    const stride = Math.max(1, Math.ceil(length / wanted));
    const values = await this.source.frames(one.recording, one.seed, one.measure, 0, length, stride);
    const coarse: Loaded["coarse"] = new Map();
    for (let k = 0; k * stride < length; k++) {
      coarse.set(k * stride, values.subarray(k * this.n, (k + 1) * this.n));
    }
    Object.assign(known, { length, stride, coarse });
  }

  private async loadRange(one: Series, known: Loaded, range: number, length: number): Promise<void> {
    const from = range * this.span;
    const values = await this.source.frames(one.recording, one.seed, one.measure, from, from + length, 1);
    const rows = Array.from({ length }, (_, k) => values.subarray(k * this.n, (k + 1) * this.n));
    this.bytes +=
      values.byteLength - (known.ranges.get(range)?.rows.reduce((sum, row) => sum + row.byteLength, 0) ?? 0);
    known.ranges.set(range, { rows, used: ++this.clock });
    this.evict();
  }

  private evict(): void {
    while (this.bytes > this.budget) {
      let oldest: { ranges: Loaded["ranges"]; range: number; used: number } | null = null;
      for (const { ranges } of this.series.values()) {
        for (const [range, { used }] of ranges) {
          if (!oldest || used < oldest.used) oldest = { ranges, range, used };
        }
      }
      if (!oldest) return;
      this.bytes -= oldest.ranges.get(oldest.range)!.rows.reduce((sum, row) => sum + row.byteLength, 0);
      oldest.ranges.delete(oldest.range);
    }
  }
}
