// Memorizing against generalizing: one slider deletes the same fraction of units in two networks.
// data: fraction, deleted (a number each point), orders, images, shape, classes,
//       networks {true, shuffled: {accuracy (orders × points), mean, sd, labels, answers (orders × points × images)}}
import { assign, bandPath, choose, drawImage, element, extent, numbers, onChange, onWidth, path, percent, scale } from "./shared.js";

const NAMES = ["true", "shuffled"];
const TITLES = { true: "Trained on true labels", shuffled: "Trained on shuffled labels" };
const KINDS = { true: "can generalize", shuffled: "can only memorize" };
const THUMB = 26; // pixels; the slider sticks out by half of it, so that its thumb stands under the marker

function render({ model, el }) {
  const data = model.get("data");
  const points = data.fraction.length;
  const pixels = numbers(data.images);
  const size = data.shape[0] * data.shape[1];
  const shown = pixels.length / size;
  const range = extent(pixels);
  const networks = Object.fromEntries(
    NAMES.map((name) => {
      const { accuracy, labels, answers } = data.networks[name];
      return [name, { accuracy: numbers(accuracy), labels: numbers(labels), answers: numbers(answers) }];
    }),
  );
  const accuracyAt = (name, order, point) => networks[name].accuracy[order * points + point];

  // Chart and slider ---------------------------------------------------------------------------------------------------

  const chart = element("svg", { class: "chart", role: "img", pointerdown: drag, pointermove: (e) => e.buttons && drag(e) });
  const axes = element("g");
  const marker = element("line", { class: "marker" });
  const curves = Object.fromEntries(
    NAMES.map((name) => [
      name,
      {
        band: element("path", { class: `band ${name}` }),
        line: element("path", { class: `curve ${name}` }),
        dot: element("circle", { class: `dot ${name}`, r: 6 }),
        title: element("text", { class: `direct ${name}` }, name === "true" ? "true labels" : "shuffled labels"),
      },
    ]),
  );
  const parts = (part) => NAMES.map((name) => curves[name][part]);
  chart.append(axes, ...parts("band"), marker, ...parts("line"), ...parts("title"), ...parts("dot"));
  const slider = element("input", {
    type: "range",
    min: 0,
    max: points - 1,
    step: 1,
    "aria-label": "Units deleted in both networks",
    input: () => choose(model, "position", Number(slider.value)),
    keydown: (event) => event.stopPropagation(), // a notebook has arrow keys of its own
  });
  const reading = element("span", { class: "reading" });
  const another = element("button", { type: "button", class: "action", click: () => choose(model, "order", (model.get("order") + 1) % data.orders) }, "Another random order");
  let across = (fraction) => fraction;
  let up = (share) => share;

  function drag({ offsetX }) {
    const to = across.back?.(offsetX);
    if (to === undefined) return;
    const nearest = data.fraction.reduce((best, f, i) => (Math.abs(f - to) < Math.abs(data.fraction[best] - to) ? i : best), 0);
    if (nearest !== model.get("position")) choose(model, "position", nearest);
  }

  function layout(width) {
    const height = Math.round(Math.max(220, Math.min(320, width * 0.42)));
    const [left, right, top, bottom] = [44, 14, 10, 26];
    across = scale(0, 1, left, width - right);
    across.back = scale(left, width - right, 0, 1);
    up = scale(0, 1, height - bottom, top);
    assign(chart, { width, height, viewBox: `0 0 ${width} ${height}` });
    slider.style.marginLeft = `${left - THUMB / 2}px`;
    slider.style.width = `${width - left - right + THUMB}px`;
    axes.replaceChildren(
      ...[0, 0.25, 0.5, 0.75, 1].flatMap((share) => [
        element("line", { class: "grid", x1: left, x2: width - right, y1: up(share), y2: up(share) }),
        element("text", { x: left - 7, y: up(share) + 4, "text-anchor": "end" }, percent(share, 0)),
      ]),
      ...[0, 0.25, 0.5, 0.75, 1].map((f) =>
        element("text", { x: across(f), y: height - 6, "text-anchor": f === 1 ? "end" : "middle" }, percent(f, 0)),
      ),
    );
    update();
  }

  // The two networks -----------------------------------------------------------------------------------------------------

  const cards = Object.fromEntries(
    NAMES.map((name) => {
      const tiles = Array.from({ length: shown }, (_, i) => {
        const canvas = element("canvas", { class: "paper" });
        drawImage(canvas, pixels.subarray(i * size, (i + 1) * size), data.shape, ...range);
        const answer = element("span", {});
        return { tile: element("div", { class: "tile" }, canvas, answer), answer };
      });
      const big = element("span", { class: "big" });
      const missed = element("span", { class: "note" });
      const sheet = element("div", { class: "sheet", role: "img" }, ...tiles.map(({ tile }) => tile));
      const card = element(
        "section",
        { class: `card ${name}`, "aria-label": TITLES[name] },
        element("h3", {}, TITLES[name], element("span", { class: "kind" }, KINDS[name])),
        element("p", { class: "total" }, big, missed),
        sheet,
      );
      return [name, { card, big, missed, sheet, tiles }];
    }),
  );
  const status = element("p", { class: "reader", role: "status" });

  function update() {
    const [order, point] = [model.get("order"), model.get("position")];
    slider.value = point;
    const share = percent(data.fraction[point], 0);
    reading.textContent = `${share} of the units deleted: ${data.deleted[point]} of ${data.deleted.at(-1)} in each network`;
    slider.setAttribute("aria-valuetext", reading.textContent);
    const said = NAMES.map((name) => {
      const { labels, answers } = networks[name];
      const { mean, sd } = data.networks[name];
      const { band, line, dot, title } = curves[name];
      const accuracy = accuracyAt(name, order, point);
      const at = data.fraction.map(across);
      band.setAttribute("d", bandPath(mean, sd, (i, share) => [at[i], up(share)]));
      line.setAttribute("d", path(at.map((x, i) => [x, up(accuracyAt(name, order, i))])));
      assign(dot, { cx: at[point], cy: up(accuracy) });
      // Where the curve of a network has fallen to about a half there is room beside it; of two classes it ends there.
      const below = mean.findIndex((m) => m < (name === "true" ? 0.7 : 0.42));
      const half = below > 0 ? below : mean.length - 1;
      const [dx, anchor] = name === "true" ? [10, "start"] : [-12, "end"];
      assign(title, { x: at[half] + dx, y: up(mean[half]) + (name === "true" ? -6 : 8), "text-anchor": anchor });
      const { big, missed, sheet, tiles } = cards[name];
      let wrong = 0;
      tiles.forEach(({ tile, answer }, i) => {
        const given = answers[(order * points + point) * shown + i];
        const right = given === labels[i];
        wrong += !right;
        tile.className = right ? "tile" : "tile missed";
        answer.textContent = right ? data.classes[given] : `${data.classes[given]} ✗`;
      });
      big.textContent = percent(accuracy);
      big.dataset.value = accuracy;
      missed.textContent = `training accuracy. ${wrong} of these ${shown} images wrong.`;
      sheet.setAttribute("aria-label", `${wrong} of ${shown} images wrong`);
      return `${TITLES[name]}: ${percent(accuracy)}`;
    });
    assign(marker, { x1: across(data.fraction[point]), x2: across(data.fraction[point]), y1: up(0), y2: up(1) });
    chart.setAttribute("aria-label", `Training accuracy against units deleted. ${said.join(". ")}`);
    status.textContent = `${reading.textContent}. ${said.join(". ")}`;
  }

  const frame = element("div", { class: "frame" }, chart, slider);
  el.append(
    element(
      "div",
      { class: "repro memorization" },
      element("p", { class: "axis" }, "Training accuracy, while units are deleted at random from both networks"),
      frame,
      element("div", { class: "bar-of-controls" }, reading, another),
      element("div", { class: "cards" }, ...NAMES.map((name) => cards[name].card)),
      element("p", { class: "detail" }, "Under each image: what the network now says, beside a cross where that is not the label it was taught. " +
        "Line: this order of deletion; band: mean ± SD of all orders."),
      status,
    ),
  );
  update();
  const ends = [onWidth(frame, layout), onChange(model, ["position", "order"], update)];
  return () => ends.forEach((end) => end());
}

export default { render };
