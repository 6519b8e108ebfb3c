// All examples as points, drawn by WebGL2: each stands between its places in two frames, in 16 bits.

import type { Encoding, Numbers } from "./data";

export type Scale = "linear" | "sqrt" | "log";
export interface Axis {
  low: number;
  high: number;
  scale: Scale;
}

export const CROSS = 1; // drawn as a cross and not as a disc
export const CHOSEN = 2; // one of the selection
export const HIDDEN = 4; // filtered away
export const MARKED = 8; // pinned, or under the pointer

const VERTEX = `#version 300 es
in float x0, x1, y0, y1;
in vec4 colour;
in uint flags;
uniform float size, others;
uniform vec2 mixing, low, high;
uniform ivec2 scale;
uniform uint pass;
out vec4 paint;
flat out uint shape;
out float beyond;

float placed(float value, float low, float high, int scale) {
  float begin = low, end = high;
  if (scale == 1) {
    value = sign(value) * sqrt(abs(value)); begin = sign(low) * sqrt(abs(low)); end = sign(high) * sqrt(abs(high));
  } else if (scale == 2) {
    value = log(max(value, low)); begin = log(low); end = log(high);
  }
  return (value - begin) / (end - begin);
}

void main() {
  bool chosen = (flags & ${CHOSEN}u) != 0u, marked = (flags & ${MARKED}u) != 0u;
  uint mine = marked ? 2u : chosen ? 1u : 0u;
  vec2 value = vec2(mix(x0, x1, mixing.x), mix(y0, y1, mixing.y));
  vec2 place = vec2(placed(value.x, low.x, high.x, scale.x), placed(value.y, low.y, high.y, scale.y));
  bool nowhere = isnan(value.x) || isnan(value.y) || (flags & ${HIDDEN}u) != 0u || mine != pass;
  vec2 inside = clamp(place, 0.0, 1.0);
  beyond = distance(inside, place) > 1e-4 ? 1.0 : 0.0;
  gl_Position = nowhere ? vec4(9.0, 9.0, 9.0, 1.0) : vec4(2.0 * inside - 1.0, 0.0, 1.0);
  gl_PointSize = size * (mine == 0u ? 1.0 : mine == 1u ? 1.4 : 2.8);
  paint = vec4(colour.rgb, colour.a * (mine == 0u ? others : 0.95));
  shape = flags;
}`;

const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 paint;
flat in uint shape;
in float beyond;
out vec4 result;
void main() {
  vec2 p = 2.0 * gl_PointCoord - 1.0;
  float edge = 2.0 * fwidth(p.x);
  float ink;
  if (beyond > 0.5) {
    ink = 1.0 - smoothstep(-edge, edge, max(abs(p.y) + p.x * 0.7, -p.x) - 0.62);
  } else if ((shape & ${CROSS}u) != 0u) {
    float arm = min(0.5 * edge, 0.25); // wider, a cross of four pixels would be a square
    ink = (1.0 - smoothstep(0.16, 0.16 + arm, min(abs(p.x - p.y), abs(p.x + p.y)) * 0.7071)) * (1.0 - step(0.95, max(abs(p.x), abs(p.y))));
  } else {
    ink = 1.0 - smoothstep(0.8 - edge, 0.8 + edge * 0.5, length(p));
  }
  if ((shape & ${MARKED}u) != 0u) {
    float from = length(p);
    ink = max(1.0 - smoothstep(0.42, 0.42 + edge, from), 1.0 - smoothstep(0.0, edge, abs(from - 0.8) - 0.1));
  }
  // Where others lie so close that they cover the ground, chosen discs would not be seen without a rim.
  float rim = (shape & ${CHOSEN | CROSS | MARKED}u) == ${CHOSEN}u ? smoothstep(0.35, 0.35 + 0.5 * edge, length(p)) : 0.0;
  result = vec4(paint.rgb * (1.0 - 0.7 * rim) * paint.a * ink, paint.a * ink);
}`;

const SLOTS = ["x0", "x1", "y0", "y1"] as const;
type Slot = (typeof SLOTS)[number];

export class Points {
  private readonly gl: WebGL2RenderingContext;
  private readonly program: WebGLProgram;
  private readonly buffers = new Map<string, WebGLBuffer>();
  private readonly held = new Map<Slot, { values: Numbers; encoding: Encoding }>();
  private readonly places = new Map<string, WebGLUniformLocation | null>();

  /** Throws an error that says so if the browser has no WebGL2. */
  constructor(
    readonly canvas: HTMLCanvasElement,
    private readonly n: number,
  ) {
    const gl = canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true });
    if (!gl)
      throw new Error("This browser has no WebGL2, with which the points are drawn: use another, or switch it on.");
    this.gl = gl;
    this.program = linked(gl);
    gl.useProgram(this.program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    for (const name of [...SLOTS, "colour", "flags"]) this.buffers.set(name, gl.createBuffer()!);
  }

  /** Put a frame into a slot; nothing is done if it is there. */
  place(slot: Slot, values: Numbers, encoding: Encoding): void {
    if (this.held.get(slot)?.values === values) return;
    const { gl } = this;
    this.held.set(slot, { values, encoding });
    this.upload(slot, values);
    const at = gl.getAttribLocation(this.program, slot);
    gl.enableVertexAttribArray(at);
    const types = {
      float16: gl.HALF_FLOAT,
      snorm16: gl.SHORT,
      float32: gl.FLOAT,
      uint8: gl.UNSIGNED_BYTE,
      uint16: gl.UNSIGNED_SHORT,
    };
    gl.vertexAttribPointer(at, 1, types[encoding], encoding === "snorm16", 0, 0);
  }

  /** Colours, four bytes each, and flags, one byte each, of all points. */
  dress(colours: Uint8Array, flags: Uint8Array): void {
    const { gl } = this;
    this.upload("colour", colours);
    const colour = gl.getAttribLocation(this.program, "colour");
    gl.enableVertexAttribArray(colour);
    gl.vertexAttribPointer(colour, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    this.upload("flags", flags);
    const flag = gl.getAttribLocation(this.program, "flags");
    gl.enableVertexAttribArray(flag);
    gl.vertexAttribIPointer(flag, 1, gl.UNSIGNED_BYTE, 0, 0);
  }

  /** Draw all points; `others` is the opacity of those outside a selection. */
  draw(mixing: [number, number], x: Axis, y: Axis, size: number, others: number): void {
    const { gl } = this;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (this.held.size < SLOTS.length) return;
    gl.uniform2f(this.uniform("mixing"), ...mixing);
    gl.uniform1f(this.uniform("size"), size);
    gl.uniform1f(this.uniform("others"), others);
    gl.uniform2f(this.uniform("low"), x.low, y.low);
    gl.uniform2f(this.uniform("high"), x.high, y.high);
    const number = { linear: 0, sqrt: 1, log: 2 };
    gl.uniform2i(this.uniform("scale"), number[x.scale], number[y.scale]);
    for (const pass of [0, 1, 2]) {
      gl.uniform1ui(this.uniform("pass"), pass);
      gl.drawArrays(gl.POINTS, 0, this.n);
    }
  }

  /** Wait until all is drawn; of a software renderer this is most of the time. */
  finish(): void {
    this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
  }

  /** Give the graphics memory back; a browser has only sixteen such contexts, and takes them from the oldest panel. */
  end(): void {
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  /** Read back what lies in the graphics memory, for tests. */
  stored(slot: Slot): { values: Numbers; encoding: Encoding } | null {
    const held = this.held.get(slot);
    if (!held) return null;
    const values = new (held.values.constructor as Uint16ArrayConstructor)(held.values.length);
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers.get(slot)!);
    this.gl.getBufferSubData(this.gl.ARRAY_BUFFER, 0, values);
    return { values, encoding: held.encoding };
  }

  private upload(name: string, values: ArrayBufferView): void {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers.get(name)!);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, values, this.gl.DYNAMIC_DRAW);
  }

  private uniform(name: string): WebGLUniformLocation | null {
    if (!this.places.has(name)) this.places.set(name, this.gl.getUniformLocation(this.program, name));
    return this.places.get(name)!;
  }
}

/** Where a value stands on an axis, 0 to 1 inside; the same as the shader's. */
export function placed(value: number, { low, high, scale }: Axis): number {
  const of = {
    linear: (v: number) => v,
    sqrt: (v: number) => Math.sign(v) * Math.sqrt(Math.abs(v)),
    log: (v: number) => Math.log(Math.max(v, low)),
  }[scale];
  return (of(value) - of(low)) / (of(high) - of(low));
}

/** The value at a place on an axis. */
export function valueAt(place: number, { low, high, scale }: Axis): number {
  if (scale === "log") return low * (high / low) ** place;
  if (scale === "linear") return low + place * (high - low);
  const root = (v: number) => Math.sign(v) * Math.sqrt(Math.abs(v));
  const between = root(low) + place * (root(high) - root(low));
  return Math.sign(between) * between ** 2;
}

function linked(gl: WebGL2RenderingContext): WebGLProgram {
  const program = gl.createProgram()!;
  for (const [type, text] of [
    [gl.VERTEX_SHADER, VERTEX],
    [gl.FRAGMENT_SHADER, FRAGMENT],
  ] as const) {
    const shader = gl.createShader(type)!;
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader) ?? "shader");
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) ?? "program");
  return program;
}
