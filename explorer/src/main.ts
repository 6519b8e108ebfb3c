// The page: puts its parts together, listens to the keyboard, and follows a run that is still going on.

import "uplot/dist/uPlot.min.css";
import "./page.css";
import { App, MOST_PANELS, type View } from "./app";
import { css } from "./colours";
import { type About, File, Server, type Source } from "./data";
import { element, menu, refill, switches } from "./dom";
import { Examples } from "./examples";
import { Filters } from "./filters";
import { Groups } from "./groups";
import { Histories } from "./histories";
import { Panel, words } from "./panel";
import type { Scale } from "./points";
import { Time } from "./time";

const KEYS: [string, string][] = [
  ["← →", "one record back or on; with Shift ten"],
  ["Home End", "first and last record"],
  ["Space", "play or pause"],
  ["− +", "slower, faster"],
  ["n b", "next and previous example of the list"],
  ["p or Enter", "pin the example that is marked"],
  ["a", "select all that are shown"],
  ["Escape", "clear the selection"],
  ["[ ]", "seed before, seed after"],
  ["l", "next layer"],
  ["Tab", "from one control to the next"],
  ["x y", "next measure on that axis; with Shift its scale"],
  ["c", "next colouring"],
  ["z", "zoom back out"],
  ["g", "find groups, or stop"],
  ["f", "go to the filter for ids"],
  ["0", "clear all filters"],
  ["e", "selection as CSV"],
  ["t", "light or dark"],
  ["?", "this list"],
];
const POLL = 2000; // milliseconds between two looks whether a run has written more

async function start(): Promise<void> {
  const page = document.getElementById("page")!;
  const embedded = document.getElementById("recording");
  try {
    let source: Source;
    let about: About;
    if (embedded) {
      const file = new File(JSON.parse(embedded.textContent!));
      [source, about] = [file, file.about];
    } else {
      const server = new Server(new URLSearchParams(location.search).get("token") ?? "");
      [source, about] = [server, await server.about()];
    }
    document.title = `${about.recordings.map(({ name }) => name).join(" and ")} – train_dynamics`;
    const problem = about.recordings.find((recording) => recording.problem);
    if (problem && !problem.iterations.length) throw new Error(problem.problem);
    new Page(page, about, source);
  } catch (error) {
    page.replaceChildren(
      element(
        "main",
        { class: "sorry" },
        element("h1", {}, "Nothing to show"),
        element("p", {}, (error as Error).message),
      ),
    );
  }
}

class Page {
  readonly app: App;
  readonly panels: Panel[] = [];
  readonly time: Time;
  readonly histories: Histories;
  readonly examples: Examples;
  readonly groups: Groups;
  private readonly filters: Filters;
  private readonly toolbar = element("div", { class: "toolbar" });
  private readonly grid = element("div", { class: "grid" });
  private readonly legend = element("div", { class: "legend" });
  private readonly note = element("p", { class: "note", role: "status", hidden: true });
  private readonly help = element("dialog", { class: "help" });
  private toolbarKey = "";
  private pointer: [number, number] = [0, 0];
  private tipped: number | null = null;

  constructor(root: HTMLElement, about: About, source: Source) {
    this.app = new App(about, source);
    const { app } = this;
    this.time = new Time(app);
    this.examples = new Examples(app);
    this.histories = new Histories(app, (example, size) => this.examples.look(example, size));
    this.groups = new Groups(app);
    this.filters = new Filters(app);
    this.fillHelp();
    const heading = element(
      "header",
      {},
      element("h1", {}, about.recordings.map(({ name }) => name).join(" and ")),
      element("span", { class: "quiet state" }),
      element("span", { class: "space" }),
      element("button", { type: "button", title: "light or dark (t)", onclick: () => this.turnTheme() }, "◐"),
      element(
        "button",
        { type: "button", title: "keys (?)", "aria-label": "help", onclick: () => this.help.showModal() },
        "?",
      ),
    );
    root.replaceChildren(
      heading,
      this.note,
      element(
        "main",
        {},
        element("div", { class: "stage" }, this.toolbar, this.legend, this.grid, this.time.root, this.histories.root),
        element("aside", {}, this.filters.root, this.groups.root, this.examples.root),
      ),
      this.examples.tip,
      this.help,
    );
    app.onDraw((all) => this.draw(all));
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("pointermove", (event) => {
      this.pointer = [event.clientX, event.clientY];
      this.moveTip(...this.pointer);
    });
    Object.assign(window, { explorer: this });
    for (const { name } of about.scores) app.score(name);
    app.refresh(true);
    if (!about.exported) this.pollLater();
  }

  /** Whether all that was asked for is there, for tests. */
  get settled(): boolean {
    return this.app.frames.settled && this.panels.length > 0 && this.groups.settled && this.app.told;
  }

  /** Go to a record as the slider does: milliseconds until all is handed to the renderer, and until that is done. */
  measure(record: number): { handed: number; rendered: number } {
    const began = performance.now();
    this.app.go(record, false);
    this.draw(false);
    const handed = performance.now() - began;
    for (const { points } of this.panels) points?.finish();
    return { handed, rendered: performance.now() - began };
  }

  private draw(all: boolean): void {
    const { app } = this;
    const { views } = app;
    if (all) {
      const { theme } = app.state;
      document.documentElement.dataset.theme = theme;
      this.drawToolbar();
      while (this.panels.length > views.length) this.panels.pop()!.end();
      while (this.panels.length < views.length) {
        const panel = new Panel(app, this.panels.length);
        this.panels.push(panel);
        this.grid.append(panel.root);
      }
      this.grid.style.setProperty("--columns", String(views.length === 1 ? 1 : views.length <= 4 ? 2 : 3));
      const { recordings, seeds, layers } = app.state;
      const wanted = recordings.length * seeds.length * Math.max(1, layers.length);
      const most = wanted > MOST_PANELS ? `${MOST_PANELS} panels are shown at most; ${wanted} are chosen.` : "";
      this.note.textContent = app.message || app.frames.failed || most;
      this.note.hidden = !this.note.textContent;
      const { recording } = app;
      document.querySelector("header .state")!.textContent = recording.live
        ? `recording: ${recording.iterations.length.toLocaleString("en")} records so far`
        : recording.problem;
    }
    this.want();
    this.filters.draw(all);
    for (const panel of this.panels) panel.draw(all);
    if (all) this.drawLegend();
    this.time.draw(all);
    this.histories.draw(all);
    this.examples.draw(all);
    if (app.pointed !== this.tipped) this.moveTip(...this.pointer); // it has been hidden, or of another size
    this.tipped = app.pointed;
    this.groups.draw(all);
  }

  /** Ask for the frames that the panels need now. */
  private want(): void {
    const { app } = this;
    const names = new Set([app.state.x, app.state.y, "prediction", app.state.colour, app.state.sort]);
    const of = (view: View, wanted: string[]) =>
      wanted
        .map((name) => app.measure(view, name))
        .filter((measure) => measure !== null)
        .map((measure) => app.series(view, measure));
    const told = ["loss", "margin"].filter((name) => !names.has(name)); // of the example under the pointer
    const series = [...app.views.flatMap((view) => of(view, [...names])), ...of(app.front, told)];
    app.frames.want(series, Math.floor(app.record), app.forward);
  }

  private drawToolbar(): void {
    const { app } = this;
    const { about, state } = app;
    const key = JSON.stringify([
      state.recordings,
      state.seeds,
      state.layers,
      state.x,
      state.y,
      state.xScale,
      state.yScale,
      state.xRange,
      state.colour,
      about.scores.length,
    ]);
    if (key === this.toolbarKey) return;
    this.toolbarKey = key;
    const { recordings } = about;
    const toggle = <T>(on: T[], value: T, more: boolean): T[] => {
      if (!more) return [value];
      return on.includes(value) ? (on.length > 1 ? on.filter((one) => one !== value) : on) : [...on, value];
    };
    const measures = ["norm", "alignment", "loss", "margin"].filter((name) => app.measure(app.front, name));
    const ofScores = about.scores.map(({ name }): [string, string] => [`score.${name}`, words(name)]);
    const axes: [string, string][] = [...measures.map((name): [string, string] => [name, words(name)]), ...ofScores];
    const colours: [string, string][] = [
      ...(about.classes.length
        ? (["right", "label", "prediction"] as const).map((name): [string, string] => [name, words(name)])
        : []),
      ...(about.chunks ? ([["chunk", "chunk"]] as [string, string][]) : []),
      ...(about.recordings[0].lineages ? ([["lineage", words("lineage")]] as [string, string][]) : []),
      ...axes,
    ];
    const scales: [string, string][] = [
      ["linear", "linear"],
      ["sqrt", "square root"],
      ["log", "log"],
    ];
    const first = recordings[0];
    const group = (name: string, control: HTMLElement) =>
      element("div", { class: "control" }, element("span", {}, name), control);
    refill(
      this.toolbar,
      ...(recordings.length > 1
        ? [
            group(
              "recordings",
              switches(
                "recordings",
                recordings.map(({ name }, k) => [String(k), name]),
                (k) => state.recordings.includes(Number(k)),
                (k, more) => app.change({ recordings: toggle(state.recordings, Number(k), more) }),
              ),
            ),
          ]
        : []),
      ...(first.seeds.length > 1
        ? [
            group(
              "seeds",
              switches(
                "seeds",
                first.seeds.map((seed, k) => [String(k), String(seed)]),
                (k) => state.seeds.includes(Number(k)),
                (k, more) => app.change({ seeds: toggle(state.seeds, Number(k), more) }),
              ),
            ),
          ]
        : []),
      ...(first.layers.length > 1
        ? [
            group(
              "layers",
              switches(
                "layers",
                first.layers.map((layer) => [layer, layer]),
                (layer) => state.layers.includes(layer),
                (layer, more) => app.change({ layers: toggle(state.layers, layer, more) }),
              ),
            ),
          ]
        : []),
      group(
        "x",
        element(
          "span",
          {},
          menu("x", axes, state.x, (x) => app.change({ x, xRange: null })),
          menu("scale of x", scales, state.xScale, (scale) => app.change({ xScale: scale as Scale, xRange: null })),
        ),
      ),
      group(
        "y",
        element(
          "span",
          {},
          menu("y", axes, state.y, (y) => app.change({ y, yRange: null })),
          menu("scale of y", scales, state.yScale, (scale) => app.change({ yScale: scale as Scale, yRange: null })),
        ),
      ),
      group(
        "colour",
        menu("colour", colours, state.colour, (colour) => app.change({ colour })),
      ),
      ...(state.xRange || state.yRange
        ? [
            element(
              "button",
              { type: "button", title: "or a double click (z)", onclick: () => this.zoomOut() },
              "zoom out",
            ),
          ]
        : []),
    );
  }

  private drawLegend(): void {
    const { app } = this;
    const found = this.panels[Math.min(app.state.front, this.panels.length - 1)]?.legend() ?? [];
    refill(
      this.legend,
      ...found.map(({ text, colour, cross, label }) => {
        const mark = element("i", { class: cross ? "cross" : "" }, cross ? "✕" : "");
        if (cross) mark.style.color = css(colour);
        else mark.style.background = css(colour);
        if (label === undefined) return element("span", {}, mark, text);
        const { filter } = app.state;
        return element(
          "button",
          {
            type: "button",
            "aria-pressed": filter.labels.includes(label),
            title: "only these",
            onclick: () => {
              const labels = filter.labels.includes(label)
                ? filter.labels.filter((k) => k !== label)
                : [...filter.labels, label];
              app.change({ filter: { ...filter, labels } });
            },
          },
          mark,
          text,
        );
      }),
    );
  }

  private zoomOut(): void {
    this.app.change({ xRange: null, yRange: null });
  }

  private turnTheme(): void {
    const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark") && this.isDark();
    this.app.change({ theme: dark ? "light" : "dark" });
  }

  private isDark(): boolean {
    const { theme } = this.app.state;
    return theme === "dark" || (theme === "" && matchMedia("(prefers-color-scheme: dark)").matches);
  }

  private fillHelp(): void {
    this.help.append(
      element("h2", {}, "Keys"),
      element("dl", {}, ...KEYS.flatMap(([key, what]) => [element("dt", {}, key), element("dd", {}, what)])),
      element("h2", {}, "Pointer"),
      element(
        "p",
        {},
        "Draw around points to select them; with Shift add, with Alt take away. A click pins a point, the wheel zooms, a double click zooms out. On seeds and layers, Shift or Ctrl shows several side by side.",
      ),
      element("form", { method: "dialog" }, element("button", {}, "close")),
    );
  }

  private moveTip(x: number, y: number): void {
    const { tip } = this.examples;
    if (tip.hidden) return;
    const { offsetWidth: width, offsetHeight: height } = tip;
    tip.style.left = `${x + 16 + width > innerWidth ? Math.max(4, x - width - 16) : x + 16}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - height - 4))}px`;
  }

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    if (target.matches("select, input:not([type=range])")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (target.matches("button") && [" ", "Enter"].includes(event.key)) return;
    const { app, time } = this;
    const next = <T>(all: readonly T[], now: T, by = 1): T => all[(all.indexOf(now) + by + all.length) % all.length];
    const axes = ["norm", "alignment", "loss", "margin"].filter((name) => app.measure(app.front, name));
    const scales: Scale[] = ["linear", "sqrt", "log"];
    const { state, about } = app;
    const seeds = about.recordings[0].seeds.map((_, k) => k);
    const colours = [
      ...(about.classes.length ? ["right", "label", "prediction"] : []),
      ...(about.chunks ? ["chunk"] : []),
      ...(about.recordings[0].lineages ? ["lineage"] : []),
      ...axes,
    ];
    const actions: Record<string, () => void> = {
      ArrowLeft: () => time.step(event.shiftKey ? -10 : -1),
      ArrowRight: () => time.step(event.shiftKey ? 10 : 1),
      Home: () => app.go(0),
      End: () => app.go(Number.MAX_SAFE_INTEGER),
      " ": () => time.toggle(),
      "-": () => time.faster(-1),
      "+": () => time.faster(1),
      "=": () => time.faster(1),
      n: () => this.walk(1),
      b: () => this.walk(-1),
      p: () => app.pointed !== null && app.pin(app.pointed),
      Enter: () => app.pointed !== null && app.pin(app.pointed),
      a: () => app.select(app.listed),
      Escape: () => (app.pointed !== null && !state.selection.length ? app.point(null) : app.select([])),
      "[": () => app.change({ seeds: [next(seeds, state.seeds[0], -1)] }),
      "]": () => app.change({ seeds: [next(seeds, state.seeds[0])] }),
      l: () => state.layers.length && app.change({ layers: [next(app.recording.layers, state.layers[0])] }),
      x: () => app.change({ x: next(axes, state.x), xRange: null }),
      y: () => app.change({ y: next(axes, state.y), yRange: null }),
      X: () => app.change({ xScale: next(scales, state.xScale), xRange: null }),
      Y: () => app.change({ yScale: next(scales, state.yScale), yRange: null }),
      c: () => app.change({ colour: next(colours, state.colour) }),
      z: () => this.zoomOut(),
      g: () => this.groups.toggle(),
      f: () => this.filters.ids.focus(),
      "0": () => this.filters.clear(),
      e: () => this.examples.save(),
      t: () => this.turnTheme(),
      "?": () => this.help.showModal(),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  /** Mark the next example of the list. */
  private walk(by: number): void {
    const order = this.examples.order();
    const { app } = this;
    if (!order.length) return;
    const at = app.pointed === null ? (by > 0 ? -1 : 0) : order.indexOf(app.pointed);
    app.point(order[(at + by + order.length) % order.length]);
    const box = this.grid.getBoundingClientRect();
    requestAnimationFrame(() => this.moveTip(box.left + 60, box.top + 40));
  }

  /** See whether a run has written more, and follow it if the last record is shown. */
  private async poll(): Promise<void> {
    const { app } = this;
    for (const [k, recording] of app.about.recordings.entries()) {
      if (recording.finished) continue;
      try {
        const known = recording.iterations.length;
        const { iterations, ...status } = await app.source.status(k, known);
        const atEnd = k === app.front.recording && app.record >= known - 1; // by now
        Object.assign(recording, status);
        recording.iterations.push(...iterations);
        if (iterations.length && atEnd && !this.time.playing) app.go(Number.MAX_SAFE_INTEGER);
        app.refresh(true);
      } catch (error) {
        app.say((error as Error).message);
      }
    }
    this.pollLater();
  }

  /** Look again, more seldom while nobody writes: a run that was interrupted may be gone on with. */
  private pollLater(): void {
    const { recordings } = this.app.about;
    if (recordings.every(({ finished }) => finished)) return;
    setTimeout(() => this.poll(), recordings.some(({ live }) => live) ? POLL : 5 * POLL);
  }
}

start();
