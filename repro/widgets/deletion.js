// Neuron deletion: a small network drawn unit by unit. Darker means more active; a click deletes or restores a unit.
// data: layers [{weight, bias}], units [[name, n]], images, labels, shape, classes, random {mean, sd}
import { argmax, assign, bandPath, choose, drawImage, element, extent, forward, numbers, onChange, onWidth, path, percent, scale, signed, softmax } from "./shared.js";

const CHART = { height: 190, left: 44, right: 12, top: 10, bottom: 38 };

/** A trained network and the images it is tested on. */
function unpackNetwork(data) {
  const layers = data.layers.map(({ weight, bias }) => ({ weight: numbers(weight), bias: numbers(bias) }));
  const pixels = numbers(data.images);
  const labels = numbers(data.labels);
  const size = pixels.length / labels.length;
  const images = Array.from(labels, (_, i) => pixels.subarray(i * size, (i + 1) * size));
  return { layers, labels, images, range: extent(pixels) };
}

/** Which images a network gets right, their share, and the mean cross-entropy in nats. */
function test({ layers, images, labels }, kept) {
  const right = new Uint8Array(images.length);
  let loss = 0;
  images.forEach((x, i) => {
    const { logits } = forward(layers, x, kept);
    right[i] = argmax(logits) === labels[i];
    loss -= Math.log(Math.max(softmax(logits)[labels[i]], 1e-300));
  });
  return { right, accuracy: right.reduce((a, b) => a + b, 0) / right.length, loss: loss / right.length };
}

/** The activity that counts as fully dark in each hidden layer: nearly the highest that any test image causes. */
function darkest({ layers, images }, kept) {
  const activity = kept.map(() => []);
  for (const x of images) {
    forward(layers, x, kept).hidden.forEach((h, depth) => activity[depth].push(...h));
  }
  return activity.map((all) => all.sort((a, b) => a - b)[Math.floor(0.985 * all.length)] || 1);
}

function render({ model, el }) {
  const data = model.get("data");
  const network = unpackNetwork(data);
  const { layers, images, labels, range } = network;
  const names = data.units.map(([name]) => name);
  const sizes = data.units.map(([, n]) => n);
  const total = sizes.reduce((a, b) => a + b, 0);
  const keepAll = () => sizes.map((n) => new Uint8Array(n).fill(1));
  const dark = darkest(network, keepAll());
  const most = layers.slice(1).map(({ weight }) => weight.reduce((a, w) => Math.max(a, Math.abs(w)), 0)); // strongest connection
  const intact = test(network, keepAll());

  let kept = keepAll();
  let now = intact; // the test with what is kept
  let trail = [[0, intact.accuracy]]; // the reader's own curve: [number deleted, accuracy]
  let inspected = null; // [depth, unit] under the pointer or with the focus

  // What the reader does -----------------------------------------------------------------------------------------------

  const deleted = () => model.get("deleted");
  function toggle(depth, unit) {
    const without = deleted().filter(([layer, k]) => layer !== names[depth] || k !== unit);
    choose(model, "deleted", without.length < deleted().length ? without : [...without, [names[depth], unit]]);
  }
  const remaining = () => kept.flatMap((layer, depth) => [...layer.keys()].filter((k) => layer[k]).map((k) => [depth, k]));
  function without(depth, unit) {
    const fewer = kept.map((layer) => layer.slice());
    fewer[depth][unit] = 0;
    return test(network, fewer);
  }
  function deleteRandom() {
    const left = remaining();
    if (left.length) toggle(...left[Math.floor(Math.random() * left.length)]);
  }
  function deleteMostImportant() {
    const left = remaining();
    if (left.length) toggle(...left[argmax(left.map((unit) => without(...unit).loss))]);
  }

  // The diagram --------------------------------------------------------------------------------------------------------

  const picture = element("canvas", { class: "paper picture", role: "img" });
  const caption = element("div", { class: "caption" });
  const sees = element("canvas", { class: "paper picture sees", role: "img", "aria-label": "Weight of each pixel" });
  const seesCaption = element("div", { class: "caption sees" }, "its weights");
  const input = element("div", { class: "input" }, picture, caption, sees, seesCaption);

  const edges = element("svg", { class: "edges", "aria-hidden": "true" });
  const lines = []; // lines[depth][j][i]: into unit j of the layer above hidden layer `depth`; lines.in[j]: from the image
  const group = element("g");
  edges.append(group);
  lines.in = Array.from({ length: sizes[0] }, () => group.appendChild(element("line", { class: "edge" })));
  layers.slice(1).forEach(({ bias }, depth) => {
    lines[depth] = Array.from(bias, () =>
      Array.from({ length: sizes[depth] }, () => group.appendChild(element("line", { class: "edge" }))),
    );
  });

  const neurons = sizes.map((n, depth) =>
    Array.from({ length: n }, (_, unit) =>
      element("button", {
        type: "button",
        class: "neuron",
        tabindex: depth || unit ? -1 : 0,
        "aria-label": `Layer ${depth + 1}, neuron ${unit}`,
        click: () => toggle(depth, unit),
        focus: () => inspect([depth, unit]),
        blur: () => inspect(null),
        pointerenter: ({ pointerType }) => pointerType === "mouse" && inspect([depth, unit]),
        pointerleave: () => inspect(null),
      }),
    ),
  );
  const groups = neurons.map((buttons, depth) =>
    element("div", { role: "group", "aria-label": `Hidden layer ${depth + 1}` }, ...buttons),
  );

  const outputs = data.classes.map((name) => {
    const fill = element("span", { class: "fill" });
    const share = element("span", { class: "share" });
    const row = element("li", {}, element("span", { class: "digit" }, name), element("span", { class: "bar" }, fill), share);
    return { row, fill, share };
  });
  const list = element("ol", { class: "outputs", "aria-label": "Outputs" }, ...outputs.map(({ row }) => row));
  const diagram = element("div", { class: "network", keydown: move }, edges, input, ...groups, list);

  /** Arrow keys walk from neuron to neuron; Enter and space are a button's own. */
  function move(event) {
    const depth = neurons.findIndex((layer) => layer.includes(event.target));
    if (depth < 0) return;
    const unit = neurons[depth].indexOf(event.target);
    const across = (to) => to in neurons && neurons[to][Math.round((unit * (sizes[to] - 1)) / Math.max(1, sizes[depth] - 1))];
    const next = {
      ArrowUp: () => neurons[depth][unit - 1],
      ArrowDown: () => neurons[depth][unit + 1],
      ArrowLeft: () => across(depth - 1),
      ArrowRight: () => across(depth + 1),
      Home: () => neurons[depth][0],
      End: () => neurons[depth].at(-1),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has arrow keys of its own
    next()?.focus?.();
  }

  function layout(width) {
    const wide = width >= 540;
    const pitch = wide ? 31 : 27;
    const height = Math.max(...sizes) * pitch;
    const tile = wide ? 104 : 58;
    const room = wide ? 190 : 104; // of the outputs
    diagram.style.height = `${height}px`;
    diagram.style.setProperty("--tile", `${tile}px`);
    diagram.style.setProperty("--neuron", `${wide ? 24 : 21}px`);
    const x = scale(0, sizes.length, tile + (wide ? 76 : 46), width - room - (wide ? 6 : 2)); // sizes.length: the outputs
    const columns = sizes.map((_, depth) => x(depth * (sizes.length / (sizes.length - 0.25))));
    const y = (i, n) => height / 2 + (i - (n - 1) / 2) * Math.min(n === outputs.length ? height / n : pitch, height / n);
    const end = width - room;
    neurons.forEach((buttons, depth) =>
      buttons.forEach((button, i) => {
        button.style.left = `${columns[depth]}px`;
        button.style.top = `${y(i, sizes[depth])}px`;
      }),
    );
    outputs.forEach(({ row }, i) => (row.style.top = `${y(i, outputs.length)}px`));
    list.style.left = `${end}px`;
    list.style.width = `${room}px`;
    assign(edges, { width, height, viewBox: `0 0 ${width} ${height}` });
    const middle = height / 2 - (wide ? 60 : 44);
    input.style.top = `${middle}px`;
    lines.in.forEach((line, j) => assign(line, { x1: tile, y1: middle, x2: columns[0], y2: y(j, sizes[0]) }));
    lines.forEach((layer, depth) =>
      layer.forEach((row, j) =>
        row.forEach((line, i) =>
          assign(line, {
            x1: columns[depth],
            y1: y(i, sizes[depth]),
            x2: depth + 1 < sizes.length ? columns[depth + 1] : end - 5,
            y2: y(j, row === lines.at(-1)[j] ? outputs.length : sizes[depth + 1]),
          }),
        ),
      ),
    );
  }

  // What one neuron does -----------------------------------------------------------------------------------------------

  const shades = () => [0, 25, 50, 75, 100].map((a) => element("i", { class: "shade", style: `--activity: ${a}%` }));
  const hint = () => [
    "Click a neuron to delete it, again to restore it. ",
    element("span", { class: "shades" }, "silent ", ...shades(), " active"),
  ];
  const detail = element("p", { class: "detail" }, ...hint());

  function inspect(unit) {
    inspected = unit ?? focused();
    drawEdges();
    diagram.classList.toggle("inspecting", inspected !== null);
    const first = inspected?.[0] === 0;
    diagram.classList.toggle("seeing", first);
    if (!inspected) {
      detail.replaceChildren(...hint());
      return;
    }
    const [depth, k] = inspected;
    if (first) drawWeights(k);
    const where = `Layer ${depth + 1}, neuron ${k}`;
    if (!kept[depth][k]) {
      detail.textContent = `${where} is deleted: its activity stays 0.`;
      return;
    }
    const { hidden } = forward(layers, images[model.get("image")], kept);
    const then = without(depth, k).accuracy;
    const change = then === now.accuracy ? "leave accuracy as it is" : `bring accuracy to ${percent(then)}`;
    detail.textContent = `${where}: activity ${hidden[depth][k].toFixed(2)}. Deleting it would ${change}.` +
      (diagram.querySelector(".neuron:focus-visible") ? " Arrow keys move on, Enter deletes." : "");
  }

  function focused() {
    const depth = neurons.findIndex((layer) => layer.includes(document.activeElement));
    return depth < 0 ? null : [depth, neurons[depth].indexOf(document.activeElement)];
  }

  /** The weights into a neuron of the first layer, as an image: blue adds to its activity, orange takes away. */
  function drawWeights(k) {
    const [height, width] = data.shape;
    const weights = layers[0].weight.subarray(k * height * width, (k + 1) * height * width);
    const most = weights.reduce((a, w) => Math.max(a, Math.abs(w)), 0);
    sees.width = width;
    sees.height = height;
    const context = sees.getContext("2d");
    const pixels = context.createImageData(width, height);
    weights.forEach((w, i) => pixels.data.set([...(w > 0 ? [0, 94, 168] : [196, 84, 0]), (255 * Math.abs(w)) / most], 4 * i));
    context.putImageData(pixels, 0, 0);
  }

  function drawEdges() {
    const { hidden } = forward(layers, images[model.get("image")], kept);
    lines.in.forEach((line, j) => {
      const own = inspected && inspected[0] === 0 && inspected[1] === j;
      const share = kept[0][j] ? 0.12 + 0.5 * Math.min(1, hidden[0][j] / dark[0]) : 0.05;
      line.setAttribute("class", own ? "edge own" : "edge");
      line.style.strokeOpacity = own ? 0.8 : share;
    });
    lines.forEach((layer, depth) => {
      const { weight } = layers[depth + 1];
      layer.forEach((row, j) =>
        row.forEach((line, i) => {
          const w = weight[j * sizes[depth] + i];
          const own =
            inspected && ((inspected[0] === depth && inspected[1] === i) || (inspected[0] === depth + 1 && inspected[1] === j));
          // What flows now; of the inspected neuron the weights, whatever flows.
          const strength = own ? Math.abs(w) / most[depth] : Math.min(1, Math.abs(w * hidden[depth][i]) / (0.5 * most[depth] * dark[depth]));
          line.setAttribute("class", own ? `edge ${w > 0 ? "adds" : "takes"}` : "edge");
          line.style.strokeOpacity = strength < 0.03 ? 0 : strength ** (own ? 0.5 : 0.75);
          line.style.strokeWidth = 0.5 + 2 * strength;
        }),
      );
    });
  }

  // What it amounts to ---------------------------------------------------------------------------------------------------

  const accuracy = element("span", { class: "big" });
  const count = element("span", { class: "note" });
  const status = element("p", { class: "reader", role: "status" });
  const chart = element("svg", { class: "chart", role: "img" });
  const band = element("path", { class: "band" });
  const mean = element("path", { class: "mean" });
  const own = element("path", { class: "trail" });
  const dot = element("circle", { class: "dot", r: 5 });
  const axes = element("g");
  chart.append(axes, band, mean, own, dot);
  let toChart = () => [0, 0];

  function layoutChart(width) {
    const { height, left, right, top, bottom } = CHART;
    assign(chart, { width, height, viewBox: `0 0 ${width} ${height}` });
    const x = scale(0, total, left, width - right);
    const y = scale(0, 1, height - bottom, top);
    toChart = ([n, share]) => [x(n), y(share)];
    const { mean: middle, sd } = data.random;
    band.setAttribute("d", bandPath(middle, sd, (n, share) => [x(n), y(share)]));
    mean.setAttribute("d", path(middle.map((m, n) => toChart([n, m]))));
    axes.replaceChildren(
      ...[0, 0.5, 1].flatMap((share) => [
        element("line", { class: "grid", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
        element("text", { x: left - 7, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`),
      ]),
      ...[0, total / 4, total / 2, (3 * total) / 4, total].map((n) =>
        element("text", { x: x(n), y: height - bottom + 17, "text-anchor": "middle" }, `${Math.round(n)}`),
      ),
      element("text", { x: x(total / 2), y: height - 4, "text-anchor": "middle" }, "neurons deleted"),
      element("text", { x: x(total) - 2, y: y(0.93), "text-anchor": "end" }, "grey: random deletions (mean ± SD)"),
    );
    drawTrail();
  }

  function drawTrail() {
    own.setAttribute("d", path(trail.map(toChart)));
    const [cx, cy] = toChart(trail.at(-1));
    assign(dot, { cx, cy });
  }

  const grid = element("svg", {
    class: "grid-of-images",
    role: "img",
    click: ({ target }) => target.dataset.image && choose(model, "image", Number(target.dataset.image)),
  });
  const cells = [];
  const rows = data.classes.map((_, c) => [...labels.keys()].filter((i) => labels[i] === c));
  rows.forEach((row, c) => {
    grid.append(element("text", { class: "digit", x: 0 }, data.classes[c]));
    for (const i of row) cells[i] = grid.appendChild(element("rect", { "data-image": i, rx: 1.5 }));
  });
  const digits = [...grid.querySelectorAll("text")];

  function layoutGrid(width) {
    const left = 20;
    const step = (width - left) / Math.max(...rows.map((row) => row.length));
    const tall = Math.max(13, Math.min(17, step * 1.5));
    assign(grid, { width, height: tall * rows.length, viewBox: `0 0 ${width} ${tall * rows.length}` });
    rows.forEach((row, c) => {
      digits[c].setAttribute("y", tall * (c + 0.5) + 4);
      row.forEach((i, column) =>
        assign(cells[i], { x: left + column * step, y: tall * c + 1.5, width: step - 2, height: tall - 3 }),
      );
    });
  }

  function button(text, click) {
    return element("button", { type: "button", class: "action", click }, text);
  }
  const random = button("Delete a random neuron", deleteRandom);
  const important = button("Delete the most important", deleteMostImportant);
  const restore = button("Restore all", () => choose(model, "deleted", []));
  const next = button("Next image", () => choose(model, "image", (model.get("image") + 1) % images.length));

  // Drawing --------------------------------------------------------------------------------------------------------------

  function update() {
    const before = kept;
    kept = keepAll();
    for (const [layer, unit] of deleted()) kept[names.indexOf(layer)][unit] = 0;
    const n = deleted().length;
    if (kept.some((layer, depth) => layer.some((k, unit) => k !== before[depth][unit]))) {
      now = test(network, kept);
      trail = n ? [...trail, [n, now.accuracy]] : [[0, now.accuracy]];
    }
    const i = model.get("image");
    const { hidden, logits } = forward(layers, images[i], kept);
    const shares = softmax(logits);
    const said = argmax(logits);
    const right = said === labels[i];
    const [label, answer] = [data.classes[labels[i]], data.classes[said]];

    drawImage(picture, images[i], data.shape, ...range);
    picture.setAttribute("aria-label", `Test image ${i}, labelled ${label}`);
    caption.replaceChildren(
      `labelled ${label}`,
      element("br"),
      element("strong", { class: right ? "right" : "wrong" }, `says ${answer} ${right ? "✓" : "✗"}`),
    );
    neurons.forEach((layer, depth) =>
      layer.forEach((node, k) => {
        node.style.setProperty("--activity", `${(100 * Math.min(1, hidden[depth][k] / dark[depth])).toFixed(1)}%`);
        node.setAttribute("aria-pressed", String(!kept[depth][k]));
        node.setAttribute("aria-description", kept[depth][k] ? `activity ${hidden[depth][k].toFixed(2)}` : "deleted");
      }),
    );
    outputs.forEach(({ row, fill, share }, c) => {
      row.className = `${c === said ? "said" : ""} ${c === labels[i] ? "true" : ""} ${right ? "" : "mistaken"}`;
      row.dataset.logit = logits[c];
      row.dataset.probability = shares[c];
      fill.style.width = `${100 * shares[c]}%`;
      share.textContent = percent(shares[c], 0);
    });
    cells.forEach((cell, image) => {
      cell.setAttribute("class", `${now.right[image] ? "cell" : "cell missed"}${image === i ? " shown" : ""}`);
    });
    const correct = now.right.reduce((a, b) => a + b, 0);
    accuracy.textContent = percent(now.accuracy);
    accuracy.dataset.value = now.accuracy;
    accuracy.dataset.loss = now.loss;
    const lost = n ? ` (${signed(100 * (now.accuracy - intact.accuracy), 1)} points)` : "";
    count.textContent = `${correct} of ${images.length} test images right${lost}. ${n} of ${total} neurons deleted.`;
    status.textContent = `Labelled ${label}, the network says ${answer}. ${count.textContent}`;
    chart.setAttribute("aria-label", `Accuracy against neurons deleted: yours ${percent(now.accuracy)}, ` +
      `random deletions ${percent(data.random.mean[n])} at ${n} deleted`);
    grid.setAttribute("aria-label", `Wrong test images per class: ${rows
      .map((row, c) => `${data.classes[c]}: ${row.filter((image) => !now.right[image]).length} of ${row.length}`)
      .join(", ")}`);
    for (const node of [random, important]) node.setAttribute("aria-disabled", String(n === total));
    restore.setAttribute("aria-disabled", String(n === 0));
    inspect(inspected);
    drawTrail();
  }

  const left = element(
    "div",
    { class: "main" },
    diagram,
    detail,
    element("div", { class: "actions" }, random, important, restore, next),
  );
  const readouts = element(
    "div",
    { class: "side" },
    element("p", { class: "total" }, accuracy, count),
    chart,
    element("p", { class: "note" }, "Every test image, a row for each class; ", element("span", { class: "key missed" }), " wrong now. Click one to see it."),
    grid,
    status,
  );
  el.append(element("div", { class: "repro deletion" }, element("div", { class: "columns" }, left, readouts)));
  // One stop of the Tab key for the whole network: the neuron last visited.
  diagram.addEventListener("focusin", ({ target }) => {
    if (!target.classList.contains("neuron")) return;
    neurons.flat().forEach((node) => (node.tabIndex = node === target ? 0 : -1));
  });
  update();
  const ends = [
    onWidth(diagram, layout),
    onWidth(chart.parentElement, (width) => (layoutChart(width), layoutGrid(width))),
    onChange(model, ["deleted", "image"], update),
  ];
  return () => ends.forEach((end) => end());
}

export default { render };
