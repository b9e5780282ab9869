// The static page stands in for Jupyter: it gives each module the values of its widget, and keeps what the reader chooses.

function model(values) {
  const listeners = {};
  return {
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      listeners[`change:${name}`]?.forEach((listener) => listener());
    },
    save_changes() {},
    on: (event, listener) => (listeners[event] ??= new Set()).add(listener),
    off: (event, listener) => listeners[event]?.delete(listener),
  };
}

for (const { module, place, state } of JSON.parse(document.getElementById("widgets").textContent)) {
  // As Jupyter does: the source is a text, and becomes a module through an address of its own.
  const source = document.getElementById(module).textContent;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const { default: widget } = await import(address);
  URL.revokeObjectURL(address);
  widget.render({ model: model(state), el: document.getElementById(place) });
}
document.documentElement.dataset.ready = "";
