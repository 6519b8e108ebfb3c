// What the page is given, and where from: a server that reads the recording, or the file that the page itself is.

export type Encoding = "float16" | "snorm16" | "uint8" | "uint16" | "float32";
export type Numbers = Uint8Array | Uint16Array | Float32Array;

/** A measure of every example at every record. `layer` is empty where it does not depend on one. */
export interface Measure {
  name: string;
  layer: string;
  unit: string;
  encoding: Encoding;
}

export interface Score {
  name: string;
  unit: string;
  formula: string;
  hard: string;
}

export interface RecordingAbout {
  name: string;
  path: string | string[]; // several that are read as one
  seeds: number[];
  layers: string[];
  gradientLayers: string[];
  measures: Measure[];
  iterations: number[];
  finished: boolean;
  live: boolean;
  problem: string;
  lineages: boolean; // whether an analysis has followed cones
  perEpoch: number | null;
}

export interface About {
  version: string;
  recordings: RecordingAbout[];
  numExamples: number;
  ids: (string | number)[];
  labels: number[];
  classes: string[];
  targets: number[] | null;
  chunks: number[] | null;
  scores: Score[];
  picture: { height: number; width: number; channels: number } | null;
  span: number;
  exported: boolean;
}

export interface Cone {
  members: number[];
  cosine: number;
  lineage: number | null; // of which of the analysis it is
}

export interface Pair {
  left: number[];
  right: number[];
  cosine: number;
  strength: number;
}

export interface Groups {
  iteration: number;
  among: number; // examples that were compared
  cones: Cone[];
  pairs: Pair[];
}

/** One seed and layer of a recording, by position. */
export interface Place {
  recording: number;
  seed: number;
  layer: string;
}

export const HISTORY = ["norm", "alignment", "loss", "margin", "right"] as const;
export type HistoryName = (typeof HISTORY)[number];
/** Of each measure its values over the records. */
export type History = Record<HistoryName, Float32Array>;
/** Of each measure quartiles and mean of some examples over the records. */
export type Band = Record<HistoryName, { low: Float32Array; mean: Float32Array; high: Float32Array }>;
export type Status = Pick<RecordingAbout, "iterations" | "finished" | "live" | "problem">;

export interface Source {
  /** Values of a measure at records `from`, `from + step`, ..., below `to`: row after row, `[record, example]`. */
  frames(recording: number, seed: number, measure: string, from: number, to: number, step: number): Promise<Numbers>;
  score(name: string): Promise<Float32Array>;
  /** Accuracy and mean loss over the records. */
  curves(recording: number, seed: number): Promise<{ accuracy: Float32Array; loss: Float32Array }>;
  history(place: Place, example: number): Promise<History>;
  band(place: Place, examples: number[]): Promise<Band>;
  pictures(examples: number[]): Promise<Uint8Array[]>;
  texts(examples: number[]): Promise<string[]>;
  groups(place: Place, iteration: number): Promise<Groups>;
  status(recording: number, known: number): Promise<Status>;
}

export class Server implements Source {
  constructor(private readonly token: string) {}

  private async ask(path: string, values: Record<string, string | number> = {}, body?: unknown): Promise<Response> {
    const query = new URLSearchParams(Object.entries(values).map(([name, value]) => [name, String(value)]));
    const answer = await fetch(`api/${path}?${query}`, {
      method: body === undefined ? "GET" : "POST",
      headers: {
        Authorization: `Bearer ${this.token}`,
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    }).catch(() => {
      throw new Error("The server does not answer; train_dynamics.explore may have ended.");
    });
    if (!answer.ok) throw new Error((await answer.text()) || answer.statusText);
    return answer;
  }

  async about(): Promise<About> {
    return (await this.ask("about")).json();
  }

  async frames(recording: number, seed: number, measure: string, from: number, to: number, step: number) {
    const answer = await this.ask("frames", { recording, seed, measure, from, to, step });
    return numbers(await answer.arrayBuffer(), answer.headers.get("X-Encoding") as Encoding);
  }

  async score(name: string) {
    return new Float32Array(await (await this.ask("score", { name })).arrayBuffer());
  }

  async curves(recording: number, seed: number) {
    const [accuracy, loss] = rows(await (await this.ask("curves", { recording, seed })).arrayBuffer(), 2);
    return { accuracy, loss };
  }

  async history(place: Place, example: number): Promise<History> {
    const found = rows(await (await this.ask("history", { ...place, example })).arrayBuffer(), HISTORY.length);
    return Object.fromEntries(HISTORY.map((name, k) => [name, found[k]])) as History;
  }

  async band(place: Place, examples: number[]): Promise<Band> {
    const found = rows(await (await this.ask("band", { ...place }, examples)).arrayBuffer(), 3 * HISTORY.length);
    const of = (k: number) => ({ low: found[3 * k], mean: found[3 * k + 1], high: found[3 * k + 2] });
    return Object.fromEntries(HISTORY.map((name, k) => [name, of(k)])) as Band;
  }

  async pictures(examples: number[]) {
    const bytes = new Uint8Array(await (await this.ask("pictures", {}, examples)).arrayBuffer());
    const size = bytes.length / examples.length;
    return examples.map((_, k) => bytes.subarray(k * size, (k + 1) * size));
  }

  async texts(examples: number[]) {
    return (await this.ask("texts", {}, examples)).json();
  }

  async groups(place: Place, iteration: number) {
    return (await this.ask("groups", { ...place, iteration })).json();
  }

  async status(recording: number, known: number) {
    return (await this.ask("status", { recording, known })).json();
  }
}

/** What `--export` puts into the page: each array compressed, in letters. */
interface Packed {
  about: About;
  arrays: Record<string, { encoding: Encoding; data: string }>;
  texts: string[];
  groups: Record<string, Groups[]>; // by layer, ascending in iterations
}

export class File implements Source {
  private readonly arrays = new Map<string, Promise<Numbers>>();

  constructor(private readonly packed: Packed) {}

  get about(): About {
    return this.packed.about;
  }

  private get n(): number {
    return this.about.numExamples;
  }

  private get records(): number {
    return this.about.recordings[0].iterations.length;
  }

  private array(name: string): Promise<Numbers> {
    let found = this.arrays.get(name);
    if (!found) {
      const { encoding, data } = this.packed.arrays[name];
      found = unpacked(data).then((buffer) => numbers(buffer, encoding));
      this.arrays.set(name, found);
    }
    return found;
  }

  async frames(_recording: number, _seed: number, measure: string, from: number, to: number, step: number) {
    const whole = await this.array(measure);
    if (step === 1) return whole.slice(from * this.n, to * this.n);
    const rows = Math.ceil((to - from) / step);
    const found = new (whole.constructor as Uint16ArrayConstructor)(rows * this.n);
    for (let k = 0; k < rows; k++) {
      const begin = (from + k * step) * this.n;
      found.set(whole.subarray(begin, begin + this.n), k * this.n);
    }
    return found;
  }

  async score(name: string) {
    return (await this.array(`score.${name}`)) as Float32Array;
  }

  async curves() {
    const values = (await this.array("curves")) as Float32Array;
    return { accuracy: values.slice(0, this.records), loss: values.slice(this.records) };
  }

  /** The decoded values of some examples, `[example][record]`. */
  private async values(place: Place, name: HistoryName, examples: number[]): Promise<Float32Array[]> {
    const found = examples.map(() => new Float32Array(this.records).fill(Number.NaN));
    const wanted = name === "right" ? "prediction" : name;
    const about = this.about.recordings[0].measures.find(
      (measure) => kind(measure.name) === wanted && (!measure.layer || measure.layer === place.layer),
    );
    if (!about) return found;
    const whole = await this.array(about.name);
    const decode = decoder(about.encoding);
    for (let e = 0; e < examples.length; e++) {
      for (let k = 0; k < this.records; k++) {
        const value = decode(whole[k * this.n + examples[e]]);
        found[e][k] = name === "right" ? Number(value === this.about.labels[examples[e]]) : value;
      }
    }
    return found;
  }

  async history(place: Place, example: number): Promise<History> {
    const found = await Promise.all(HISTORY.map((name) => this.values(place, name, [example])));
    return Object.fromEntries(HISTORY.map((name, k) => [name, found[k][0]])) as History;
  }

  async band(place: Place, examples: number[]): Promise<Band> {
    const band = async (name: HistoryName) => {
      const values = await this.values(place, name, examples);
      const [low, mean, high] = [0, 1, 2].map(() => new Float32Array(this.records));
      for (let k = 0; k < this.records; k++) {
        const column = Float32Array.from(values, (row) => row[k]).sort();
        mean[k] = column.reduce((sum, value) => sum + value, 0) / column.length;
        [low[k], high[k]] = [quantile(column, 0.25), quantile(column, 0.75)];
      }
      return { low, mean, high };
    };
    const found = await Promise.all(HISTORY.map(band));
    return Object.fromEntries(HISTORY.map((name, k) => [name, found[k]])) as Band;
  }

  async pictures(examples: number[]) {
    const { height, width, channels } = this.about.picture!;
    const size = height * width * channels;
    const whole = (await this.array("pictures")) as Uint8Array;
    return examples.map((example) => whole.subarray(example * size, (example + 1) * size));
  }

  async texts(examples: number[]) {
    return examples.map((example) => this.packed.texts[example]);
  }

  async groups(place: Place, iteration: number) {
    const known = this.packed.groups[place.layer] ?? [];
    const before = known.filter((groups) => groups.iteration <= iteration);
    return before.at(-1) ?? known[0] ?? { iteration, cones: [], pairs: [] };
  }

  async status(): Promise<Status> {
    return this.about.recordings[0];
  }
}

/** `norm` of `norm.fc2`. */
export function kind(measure: string): string {
  return measure.split(".", 1)[0];
}

/** The value at a share of the way through sorted ones, as NumPy's `quantile` has it. */
export function quantile(sorted: Float32Array, share: number): number {
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

async function unpacked(letters: string): Promise<ArrayBuffer> {
  const bytes = Uint8Array.from(atob(letters), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

function numbers(buffer: ArrayBuffer, encoding: Encoding): Numbers {
  if (encoding === "float32") return new Float32Array(buffer);
  return encoding === "uint8" ? new Uint8Array(buffer) : new Uint16Array(buffer);
}

function rows(buffer: ArrayBuffer, count: number): Float32Array[] {
  const values = new Float32Array(buffer);
  const length = values.length / count;
  return Array.from({ length: count }, (_, k) => values.subarray(k * length, (k + 1) * length));
}

const tables = new Map<Encoding, Float32Array>();

/** What a stored number means. */
export function decoder(encoding: Encoding): (value: number) => number {
  if (encoding !== "float16" && encoding !== "snorm16") return (value) => value;
  let table = tables.get(encoding);
  if (!table) {
    table = Float32Array.from({ length: 65536 }, (_, bits) => (encoding === "float16" ? half(bits) : snorm(bits)));
    tables.set(encoding, table);
  }
  const known = table;
  return (value) => known[value];
}

/** A number of 16 bits, IEEE 754 binary16. */
function half(bits: number): number {
  const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** A number from -1 to 1 in 16 bits, as OpenGL reads a normalised short. */
function snorm(bits: number): number {
  return Math.max(-1, ((bits << 16) >> 16) / 32767);
}
