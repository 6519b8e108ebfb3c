// Cones and pairs in contention at the iteration shown; a click selects their members everywhere.

import type { App } from "./app";
import { css, ofLineage } from "./colours";
import type { Groups as Found } from "./data";
import { element, refill } from "./dom";

const MOST = 30;

export class Groups {
  readonly root: HTMLElement;
  private readonly body = element("div");
  private readonly find: HTMLButtonElement;
  private found: { key: string; groups: Found } | null = null;
  private failed = "";
  private asked = "";
  private timer = 0;

  constructor(private readonly app: App) {
    this.find = element("button", {
      type: "button",
      title: "keep the lists at the iteration shown (g)",
      onclick: () => this.toggle(),
    });
    this.root = element(
      "section",
      { class: "groups", "aria-label": "groups" },
      element("h2", {}, "Groups"),
      this.find,
      this.body,
    );
  }

  /** Whether groups are looked for, which takes the server a moment at each iteration. */
  private get on(): boolean {
    return this.app.state.groups || this.app.state.colour === "lineage";
  }

  toggle(): void {
    const { app } = this;
    const coloured = app.state.colour === "lineage"; // by what would not be looked for any more
    app.change({ groups: !this.on, ...(coloured ? { colour: app.about.classes.length ? "right" : "loss" } : {}) });
  }

  get settled(): boolean {
    return !this.on || Boolean(this.find.hidden) || [this.found?.key, this.failed].includes(this.asked);
  }

  draw(all: boolean): void {
    const { app } = this;
    const { front } = app;
    const possible = app.recording.gradientLayers.includes(front.layer);
    this.find.hidden = !possible;
    this.find.textContent = this.on ? "stop looking for groups" : "find cones and pairs in contention";
    this.find.setAttribute("aria-pressed", String(this.on));
    if (!possible) {
      if (all)
        this.body.replaceChildren(
          element(
            "p",
            { class: "quiet" },
            "Of this layer no gradients were kept, only measures: examples cannot be compared.",
          ),
        );
      return;
    }
    if (!this.on) {
      this.body.replaceChildren();
      return;
    }
    const panel = front.title;
    const key = `${front.recording}/${front.seed}/${front.layer}/${app.state.iteration}`;
    if (key !== this.asked) {
      this.asked = key;
      clearTimeout(this.timer);
      this.timer = window.setTimeout(() => this.ask(key, panel), 350);
    }
    if (all) this.list();
  }

  private ask(key: string, panel: string): void {
    const { app } = this;
    app.source.groups(app.front, app.state.iteration).then(
      (groups) => {
        if (key !== this.asked) return;
        this.found = { key, groups };
        app.lineages = { panel, of: new Map() };
        for (const { members, lineage } of groups.cones)
          if (lineage !== null) for (const n of members) app.lineages.of.set(n, lineage);
        app.refresh(true);
      },
      (error) => {
        this.failed = key;
        app.say(error.message);
      },
    );
  }

  private list(): void {
    const { found } = this;
    if (!found) {
      const words = this.failed === this.asked ? "They could not be found." : "looking …";
      this.body.replaceChildren(element("p", { class: "quiet" }, words));
      return;
    }
    const { app } = this;
    const { among, cones, pairs, iteration } = found.groups;
    const count = app.about.numExamples;
    const moved = [found.key, this.failed].includes(this.asked) ? "" : " (looking anew …)";
    const at = `at iteration ${iteration.toLocaleString("en")}${moved}`;
    const drawn = `Among ${among.toLocaleString("en")} of the ${count.toLocaleString("en")} examples, drawn at random.`;
    refill(
      this.body,
      ...(among < count ? [element("p", { class: "quiet" }, drawn)] : []),
      element("h3", {}, `Cones ${at}`),
      cones.length
        ? this.rows(
            cones.slice(0, MOST).map((cone) => ({
              members: cone.members,
              text: `${cone.members.length}: ${this.labels(cone.members)}`,
              title:
                `smallest cosine between two members ${cone.cosine.toFixed(3)}` +
                (cone.lineage === null ? "" : `; lineage ${cone.lineage} of the analysis`),
              lineage: app.recording.lineages ? cone.lineage : undefined,
            })),
          )
        : element("p", { class: "quiet" }, "None of ten examples or more."),
      element("h3", {}, `Pairs in contention ${at}`),
      pairs.length
        ? this.rows(
            pairs.slice(0, MOST).map((pair) => ({
              members: [...pair.left, ...pair.right],
              text: `${pair.left.length} against ${pair.right.length}: ${this.labels(pair.left)} – ${this.labels(pair.right)}`,
              title: `cosine of their mean gradients ${pair.cosine.toFixed(3)}`,
              sides: pair,
            })),
          )
        : element("p", { class: "quiet" }, "None: no two groups of ten or more oppose each other within the cosine."),
    );
  }

  private rows(
    rows: {
      members: number[];
      text: string;
      title: string;
      sides?: { left: number[]; right: number[] };
      lineage?: number | null;
    }[],
  ): HTMLElement {
    const { app } = this;
    return element(
      "ul",
      { class: "grouprows" },
      ...rows.map(({ members, text, title, sides, lineage }) => {
        const chosen = members.length === app.state.selection.length && members.every((n) => app.chosen[n]);
        const button = (words: string, of: number[], pressed: boolean) =>
          element(
            "button",
            { type: "button", title, "aria-pressed": pressed, onclick: () => app.select(pressed ? [] : of) },
            words,
          );
        return element(
          "li",
          {},
          ...(lineage === undefined ? [] : [this.mark(lineage)]),
          button(text, members, chosen),
          ...(sides ? [button("left", sides.left, false), button("right", sides.right, false)] : []),
        );
      }),
    );
  }

  /** A square in the colour of a lineage, with its number; empty of a cone that is of none. */
  private mark(lineage: number | null): HTMLElement {
    const mark = element("span", { class: "lineage" }, lineage === null ? "" : String(lineage));
    mark.style.borderColor = lineage === null ? "transparent" : css(ofLineage(lineage));
    return mark;
  }

  /** The commonest labels of some examples. */
  private labels(members: number[]): string {
    const counts = new Map<string, number>();
    for (const n of members) counts.set(this.app.label(n), (counts.get(this.app.label(n)) ?? 0) + 1);
    const [first, second] = [...counts].sort((a, b) => b[1] - a[1]);
    if (!first?.[0]) return "";
    const share = Math.round((100 * first[1]) / members.length);
    return share > 99 ? `all ${first[0]}` : `${share} % ${first[0]}${second ? `, then ${second[0]}` : ""}`;
  }
}
