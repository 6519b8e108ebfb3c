// Builds the page's script and style from `src` and the packages in package-lock.json, without a date or a path in them.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const out = process.argv[2] ?? "../train_dynamics/explorer/assets";
await build({
  entryPoints: { explorer: "src/main.ts" },
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "ascii",
  legalComments: "none",
  outdir: out,
});
writeFileSync(`${out}/explorer.html`, readFileSync("page.html"));
const licence = readFileSync("node_modules/uplot/LICENSE", "utf8").trim();
const { version } = JSON.parse(readFileSync("node_modules/uplot/package.json", "utf8"));
writeFileSync(`${out}/LICENCES.txt`, `explorer.js and explorer.css contain uPlot ${version}:\n\n${licence}\n`);

// What the files were built from, by which a test sees whether they are stale.
const hash = createHash("sha256");
const sources = [...readdirSync("src").sort().map((name) => `src/${name}`), "build.mjs", "page.html", "package-lock.json", "package.json"];
for (const name of sources) hash.update(`${name}\0`).update(readFileSync(name)).update("\0");
writeFileSync(`${out}/SOURCES.sha256`, `${hash.digest("hex")}\n`);
