// What the three diagrams have in common: unpacking numbers, building elements, running a small network.
// repro/widgets/diagram.py puts this file in front of each module that imports it: Jupyter loads one file a widget.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "line", "path", "circle", "rect", "text"]);

/** An element with attributes (a function listens to the event of its name) and children. */
export function element(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Change attributes of an element. */
export function assign(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

/** Numbers that Python sent as base64: {dtype: "float32" or "uint8", data}. */
export function numbers({ dtype, data }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  return dtype === "uint8" ? bytes : new Float32Array(bytes.buffer);
}

export const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

/** Probabilities from logits. */
export function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (z) => Math.exp(z - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / sum);
}

/**
 * Run a multilayer perceptron on one image.
 *
 * @param layers  [{weight (outputs × inputs, row by row), bias}], ReLU after all but the last
 * @param x       the image's numbers
 * @param kept    for each hidden layer 1 (kept) or 0 (deleted: its activation is 0) a unit
 * @returns       {hidden: activations layer by layer, logits}
 */
export function forward(layers, x, kept) {
  const hidden = [];
  let input = x;
  layers.forEach(({ weight, bias }, depth) => {
    const output = new Float64Array(bias.length);
    const last = depth === layers.length - 1;
    for (let j = 0, w = 0; j < output.length; j++) {
      let z = bias[j];
      for (let i = 0; i < input.length; i++, w++) z += weight[w] * input[i];
      output[j] = last ? z : Math.max(0, z) * kept[depth][j];
    }
    if (!last) hidden.push(output);
    input = output;
  });
  return { hidden, logits: input };
}

/** Draw an image on a canvas of its own size, as ink on whatever paper lies below: darker means more. */
export function drawImage(canvas, values, [height, width], low, high) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    pixels.data.set([10, 29, 51, (255 * (values[i] - low)) / (high - low)], 4 * i); // the ink of widgets.css
  }
  context.putImageData(pixels, 0, 0);
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

/** A function from [low, high] to [from, to]. */
export const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);

/** The d of an SVG path through points [x, y]. */
export const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** [lowest, highest] of some numbers. */
export const extent = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);

/** The d of the band mean ± SD of shares; `place(i, share)` is where a point of it lies. */
export function bandPath(mean, sd, place) {
  const edge = (sign) => mean.map((m, i) => place(i, Math.max(0, Math.min(1, m + sign * sd[i]))));
  return `${path([...edge(1), ...edge(-1).reverse()])}Z`;
}

/** Call `draw(width)` now and whenever the width of an element changes; returns what ends that. */
export function onWidth(node, draw) {
  let before = 0;
  const observer = new ResizeObserver(() => {
    const width = Math.round(node.clientWidth);
    if (width && width !== before) draw((before = width));
  });
  observer.observe(node);
  return () => observer.disconnect();
}

/** Set one of the widget's values, here and in Python. */
export function choose(model, name, value) {
  model.set(name, value);
  model.save_changes();
}

/** Listen to some of the widget's values, until the returned function is called. */
export function onChange(model, names, listener) {
  names.forEach((name) => model.on(`change:${name}`, listener));
  return () => names.forEach((name) => model.off(`change:${name}`, listener));
}
