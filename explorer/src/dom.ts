// Elements, made of text that stays text: names and ids of a recording may hold markup.

type Child = Node | string | null | undefined | false;
type Properties = Record<string, unknown>;

/** Make an element: properties that begin with `on` are listeners, `class` and names with a dash are attributes. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Properties = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value as EventListener);
    else if (name === "class" || name === "role" || name.includes("-")) made.setAttribute(name, String(value));
    else Object.assign(made, { [name]: value });
  }
  made.append(
    ...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false),
  );
  return made;
}

/** Put other children into an element; whoever is there by keyboard stays at the control of the same name. */
export function refill(holder: HTMLElement, ...children: (Node | string)[]): void {
  const controls = () => [...holder.querySelectorAll<HTMLElement>("button, select, input")];
  const name = (control: HTMLElement | undefined) => control?.getAttribute("aria-label") ?? control?.textContent;
  const focused = holder.querySelector<HTMLElement>(":focus-visible");
  const at = focused ? controls().indexOf(focused) : -1;
  holder.replaceChildren(...children);
  if (!focused) return;
  const now = controls();
  (name(now[at]) === name(focused) ? now[at] : now.find((one) => name(one) === name(focused)))?.focus();
}

/** A menu of choices; `choices` are pairs of value and words. */
export function menu(name: string, choices: [string, string][], value: string, chosen: (value: string) => void) {
  const select = element(
    "select",
    { "aria-label": name, onchange: (event: Event) => chosen((event.target as HTMLSelectElement).value) },
    ...choices.map(([key, words]) => element("option", { value: key }, words)),
  );
  select.value = value;
  return select;
}

/** A row of switches, of which several may be on. */
export function switches(
  name: string,
  choices: [string, string][],
  on: (value: string) => boolean,
  pressed: (value: string, more: boolean) => void,
): HTMLElement {
  return element(
    "div",
    { class: "switches", role: "group", "aria-label": name },
    ...choices.map(([value, words]) =>
      element(
        "button",
        {
          type: "button",
          "aria-pressed": on(value),
          onclick: (event: MouseEvent) => pressed(value, event.shiftKey || event.ctrlKey || event.metaKey),
        },
        words,
      ),
    ),
  );
}

/** Write a number in a few characters. */
export function few(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-3 && size > 0)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

export const count = (number: number, what: string) =>
  `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
