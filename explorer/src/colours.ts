// Colours that colour-blind readers tell apart; right and wrong are those of the film.

export type Rgb = [number, number, number];

export const RIGHT: Rgb = [0x00, 0x9e, 0x73]; // Okabe and Ito (2008)
export const WRONG: Rgb = [0xd5, 0x5e, 0x00];
export const GREY: Rgb = [0x88, 0x88, 0x88];
/** Tol, "Colour Schemes" (2021), muted, with a lighter indigo for dark pages, and grey. */
const CLASSES: Rgb[] = [
  "5a4fcf",
  "88ccee",
  "44aa99",
  "117733",
  "999933",
  "ddcc77",
  "cc6677",
  "882255",
  "aa4499",
  "888888",
].map(rgb);
/** Of the largest lineages, by number, as in the figures of an analysis: `COLORS` in `plots/lineages.py`. */
const LINEAGES: Rgb[] = [
  "1f77b4",
  "ff7f0e",
  "2ca02c",
  "d62728",
  "9467bd",
  "8c564b",
  "e377c2",
  "393b79",
  "bcbd22",
  "17becf",
  "aec7e8",
  "ffbb78",
  "98df8a",
  "ff9896",
  "c5b0d5",
  "c49c94",
  "f7b6d2",
  "9c9ede",
  "dbdb8d",
  "9edae5",
].map(rgb);
export const PINS: string[] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f00"];
const VIRIDIS: Rgb[] = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"].map(
  rgb,
);

function rgb(text: string): Rgb {
  return [0, 2, 4].map((k) => Number.parseInt(text.slice(k, k + 2), 16)) as Rgb;
}

/** A colour of a sequence, at a share of the way. */
export function sequence(share: number): Rgb {
  if (!Number.isFinite(share)) return GREY;
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[below].map((v, k) => Math.round(v + (place - below) * (VIRIDIS[below + 1][k] - v))) as Rgb;
}

/** The colour of a class: ten that differ, or of more classes a sequence. */
export function ofClass(label: number, count: number): Rgb {
  return count <= CLASSES.length ? CLASSES[label] : sequence(label / (count - 1));
}

/** The colour of a lineage; grey of all but the largest, and of what is in none. */
export const ofLineage = (lineage: number | null): Rgb => (lineage === null ? GREY : (LINEAGES[lineage] ?? GREY));

export const css = ([r, g, b]: Rgb) => `rgb(${r} ${g} ${b})`;
