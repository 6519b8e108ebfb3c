// Which examples are shown at all: by label, chunk, right or wrong, a score, and ids; together, and cleared at once.

import type { App } from "./app";
import { element, few, menu, refill, switches } from "./dom";
import { words } from "./panel";
import { NO_FILTER } from "./state";

export class Filters {
  readonly root: HTMLElement;
  readonly ids: HTMLInputElement;
  private readonly body = element("div");
  private shown = "";

  constructor(private readonly app: App) {
    this.ids = element("input", {
      type: "search",
      placeholder: "ids, with commas",
      "aria-label": "ids",
      oninput: () => this.change({ ids: this.ids.value }),
    });
    this.root = element(
      "section",
      { class: "filters", "aria-label": "filters" },
      element("h2", {}, "Filters"),
      this.body,
    );
  }

  private change(partial: Partial<typeof NO_FILTER>): void {
    this.app.change({ filter: { ...this.app.state.filter, ...partial } });
  }

  clear(): void {
    this.ids.value = "";
    this.app.change({ filter: NO_FILTER });
  }

  draw(all: boolean): void {
    const { app } = this;
    const { about, state } = app;
    const { filter } = state;
    if (filter.right) app.derive(); // it is about the iteration shown
    if (!all) return;
    const score = filter.score ? app.score(filter.score) : null;
    const key = JSON.stringify([filter, Boolean(score)]);
    if (key === this.shown) return;
    this.shown = key;
    const several = <T>(on: T[], value: T): T[] => {
      return on.includes(value) ? on.filter((one) => one !== value) : [...on, value];
    };
    const parts: (Node | string)[] = [];
    if (about.classes.length && about.classes.length <= 40) {
      parts.push(
        element("label", {}, "label"),
        switches(
          "labels",
          about.classes.map((name, k) => [String(k), name]),
          (k) => filter.labels.includes(Number(k)),
          (k) => this.change({ labels: several(filter.labels, Number(k)) }),
        ),
      );
    }
    if (about.chunks) {
      parts.push(
        element("label", {}, "chunk"),
        switches(
          "chunks",
          Array.from({ length: 10 }, (_, k) => [String(k), String(k)]),
          (k) => filter.chunks.includes(Number(k)),
          (k) => this.change({ chunks: several(filter.chunks, Number(k)) }),
        ),
      );
    }
    if (about.classes.length) {
      const choices: [string, string][] = [
        ["right", "right now"],
        ["wrong", "wrong now"],
      ];
      parts.push(
        element("label", {}, "is"),
        switches(
          "right or wrong",
          choices,
          (value) => filter.right === value,
          (value) => this.change({ right: filter.right === value ? "" : (value as "right" | "wrong") }),
        ),
      );
    }
    if (about.scores.length) {
      const choices: [string, string][] = [
        ["", "no score"],
        ...about.scores.map(({ name }): [string, string] => [name, words(name)]),
      ];
      const row = element(
        "div",
        { class: "row" },
        menu("score", choices, filter.score, (name) =>
          this.change({ score: name, low: Number.NEGATIVE_INFINITY, high: Number.POSITIVE_INFINITY }),
        ),
      );
      if (score) {
        const finite = score.filter((value) => Number.isFinite(value));
        const number = (name: "low" | "high", placeholder: number) =>
          element("input", {
            type: "text",
            inputMode: "decimal",
            placeholder: few(placeholder),
            value: Number.isFinite(filter[name]) ? String(filter[name]) : "",
            "aria-label": name === "low" ? "at least" : "at most",
            onchange: (event: Event) => {
              const { value } = event.target as HTMLInputElement;
              const none = name === "low" ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
              this.change({ [name]: value.trim() === "" || !Number.isFinite(Number(value)) ? none : Number(value) });
            },
          });
        row.append(
          number(
            "low",
            finite.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY),
          ),
          " to ",
          number(
            "high",
            finite.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY),
          ),
        );
      }
      parts.push(element("label", {}, "score"), row);
    }
    if (this.ids.value !== filter.ids) this.ids.value = filter.ids;
    parts.push(element("label", {}, "id"), this.ids);
    const active = JSON.stringify(filter) !== JSON.stringify(NO_FILTER);
    const hadFocus = document.activeElement === this.ids; // the field itself moves, and would lose it
    refill(
      this.body,
      element("div", { class: "fields" }, ...parts),
      ...(active
        ? [element("button", { type: "button", class: "clear", onclick: () => this.clear() }, "clear all filters (0)")]
        : []),
    );
    if (hadFocus) this.ids.focus();
  }
}
