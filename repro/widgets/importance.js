// Importance against interpretability: the same dots for three supposed relationships, then for the measured one.
// data: selectivity, layer (0, 1, …), unit, layers, networks, subject, steps {name: {importance, rho, within}}
import { assign, choose, element, extent, numbers, onChange, onWidth, scale, signed } from "./shared.js";

const STEPS = ["positive", "negative", "none", "measured"];
const NAMES = { positive: "Positive", negative: "Negative", none: "None", measured: "Measured" };
const SUPPOSED = {
  positive: "Suppose the units we can interpret did the work. Then the dots would rise from left to right.",
  negative: "Suppose confusing units did the work, the ones that answer to every class a little. Then they would fall.",
  none: "Suppose interpretability had nothing to do with importance. Then the dots would make a shapeless cloud.",
};

/** What the measured rank correlation says; 0.5 is the bound that the claim is judged by. Below it "hardly", not "not": of so
 * many units even a weak correlation is seldom chance. */
function finding(rho) {
  const show = "And this is what our networks show:";
  if (Math.abs(rho) >= 0.5) return `${show} ${rho > 0 ? "the units we can interpret" : "confusing units"} do tend to matter more.`;
  const size = Math.abs(rho) < 0.1 ? "no relationship to speak of" : `a weak ${rho < 0 ? "negative" : "positive"} relationship`;
  return `${show} ${size}. How well we can interpret a unit hardly tells how much the network needs it.`;
}

function render({ model, el }) {
  const data = model.get("data");
  const x = numbers(data.selectivity);
  const layer = numbers(data.layer);
  const y = Object.fromEntries(STEPS.map((step) => [step, numbers(data.steps[step].importance)]));
  const sorted = Float32Array.from(y.measured, Math.abs).sort();
  // Most changes are tiny and a few are not: asinh is linear about 0, logarithmic beyond.
  const bend = sorted[Math.floor(sorted.length / 2)] || 1;
  const squash = (value) => Math.asinh(value / bend);
  const [low, high] = extent(y.measured);

  let step = model.get("step");
  const go = (to) => choose(model, "step", to);
  const shown = (r) => (r === null ? "–" : signed(r, 2)); // null: of one unit
  const goOn = () => go(STEPS[(STEPS.indexOf(step) + 1) % STEPS.length]);

  // Controls -----------------------------------------------------------------------------------------------------------

  const group = `step-${Math.random().toString(36).slice(2)}`; // two diagrams on one page are two groups of radio buttons
  const radios = STEPS.map((name) =>
    element("input", { type: "radio", name: group, value: name, change: () => go(name), keydown: (e) => e.stopPropagation() }),
  );
  const steps = element(
    "div",
    { class: "steps", role: "radiogroup", "aria-label": "Relationship" },
    ...STEPS.map((name, i) => element("label", {}, radios[i], element("span", {}, NAMES[name]))),
  );
  const next = element("button", { type: "button", class: "action", click: goOn }, "Next ", element("span", { "aria-hidden": true }, "→"));

  // Chart --------------------------------------------------------------------------------------------------------------

  const chart = element("svg", { class: "chart", role: "img", click: goOn, pointermove: point, pointerleave: leave });
  const axes = element("g");
  const dots = Array.from(x, (_, i) => element("circle", { class: `unit layer-${Math.min(layer[i], 1)}`, r: 3 }));
  // Shuffled, or one layer would cover the other; always alike.
  const order = dots.map((dot, i) => [(i * 7919) % dots.length, dot]).sort(([a], [b]) => a - b);
  const ring = element("circle", { class: "ring", r: 7 });
  chart.append(axes, element("g", {}, ...order.map(([, dot]) => dot)), ring);
  const rho = element("span", { class: "big" });
  const within = element("span", { class: "note" });
  const words = element("p", { class: "words", "aria-live": "polite" });
  const detail = element("p", { class: "detail" });
  let place = () => [0, 0];

  function layout(width) {
    const height = Math.round(Math.max(300, Math.min(440, width * 0.55)));
    const [left, right, top, bottom] = [width < 480 ? 44 : 58, 10, 26, 44];
    const across = scale(0, 1, left, width - right);
    const up = scale(squash(low) - 0.2, squash(high) + 0.2, height - bottom, top);
    place = (i) => [across(x[i]), up(squash(y[step][i]))];
    assign(chart, { width, height, viewBox: `0 0 ${width} ${height}` });
    const powers = [-4, -3, -2, -1, 0].flatMap((power) => [10 ** power, 3 * 10 ** power]);
    const ticks = [...powers.map((t) => -t), 0, ...powers].filter((t) => t >= low && t <= high && (!t || Math.abs(t) > 0.9 * bend));
    axes.replaceChildren(
      ...ticks.flatMap((t) => [
        element("line", { class: t ? "grid" : "grid zero", x1: left, x2: width - right, y1: up(squash(t)), y2: up(squash(t)) }),
        element("text", { x: left - 6, y: up(squash(t)) + 4, "text-anchor": "end" }, t ? signed(t, 4).replace(/\.?0+$/, "") : "0"),
      ]),
      ...[0, 0.25, 0.5, 0.75, 1].map((t) =>
        element("text", { x: across(t), y: height - bottom + 18, "text-anchor": t === 1 ? "end" : "middle" }, `${t}`),
      ),
      element("text", { x: across(0.5), y: height - 6, "text-anchor": "middle" }, "class selectivity: easier to interpret →"),
      element("text", { x: 0, y: 12 }, "↑ importance: added loss (nats, asinh-compressed)"),
    );
    put();
  }

  function put() {
    dots.forEach((dot, i) => {
      const [cx, cy] = place(i);
      dot.style.transform = `translate(${cx.toFixed(2)}px, ${cy.toFixed(2)}px)`;
    });
  }

  /** Say which unit is nearest to the pointer. */
  function point({ offsetX, offsetY, pointerType }) {
    if (pointerType !== "mouse") return;
    let [best, nearest] = [14, -1];
    dots.forEach((_, i) => {
      const [cx, cy] = place(i);
      const distance = Math.hypot(cx - offsetX, cy - offsetY);
      if (distance < best) [best, nearest] = [distance, i];
    });
    ring.classList.toggle("on", nearest >= 0);
    if (nearest < 0) return leave();
    const [cx, cy] = place(nearest);
    assign(ring, { cx, cy });
    const supposedly = step === "measured" ? "" : "supposed ";
    detail.textContent = `Layer ${layer[nearest] + 1}, unit ${data.unit[nearest]}: selectivity ${x[nearest].toFixed(2)}, ` +
      `${supposedly}importance ${signed(y[step][nearest], 4)} nats`;
  }
  function leave() {
    ring.classList.remove("on");
    detail.textContent = `${dots.length} units of ${data.networks} networks (${data.subject}). Click the picture to go on.`;
  }

  function update() {
    step = model.get("step");
    radios.forEach((radio) => (radio.checked = radio.value === step));
    const { rho: value, within: inLayers } = data.steps[step];
    rho.textContent = `ρ = ${shown(value)}`;
    rho.dataset.value = value;
    within.textContent = inLayers.map((r, i) => `layer ${i + 1}: ${shown(r)}`).join(", ");
    words.textContent = SUPPOSED[step] ?? finding(value);
    chart.setAttribute("aria-label", `Importance against class selectivity, ${NAMES[step]}: rank correlation ${shown(value)}`);
    chart.classList.toggle("real", step === "measured");
    ring.classList.remove("on");
    put();
  }

  const frame = element("div", { class: "frame" }, chart);
  const key = Array.from({ length: Math.min(data.layers, 2) }, (_, i) =>
    element("span", { class: `key layer-${i}` }, data.layers > 2 && i ? "later layers" : `layer ${i + 1}`),
  );
  const story = element(
    "div",
    { class: "story" },
    element("div", { class: "walk" }, steps, next),
    words,
    element("p", { class: "total" }, rho, element("span", { class: "note" }, "Spearman’s rank correlation", element("br"), within)),
  );
  const drawing = element("div", { class: "drawing" }, element("p", { class: "keys" }, ...key), frame, detail);
  el.append(element("div", { class: "repro importance" }, element("div", { class: "columns" }, story, drawing)));
  leave();
  update();
  const ends = [onWidth(frame, layout), onChange(model, ["step"], update)];
  return () => ends.forEach((end) => end());
}

export default { render };
