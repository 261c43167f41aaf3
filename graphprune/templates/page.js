"use strict";
(() => {
  const drawing = document.querySelector(".strip");
  if (drawing) {
    const readout = document.querySelector(".readout");
    const layers = [...drawing.querySelectorAll(".layer")];
    const region = drawing.closest(".scroll");
    let current = -1;
    const select = (index) => {
      if (current >= 0) layers[current].classList.remove("on");
      current = Math.max(0, Math.min(index, layers.length - 1));
      layers[current].classList.add("on");
      readout.textContent = layers[current].querySelector("title").textContent;
    };
    layers.forEach((layer, index) => {
      layer.addEventListener("pointerenter", () => select(index));
      layer.addEventListener("click", () => select(index));
    });
    region.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      select(current + step);
      const box = layers[current].getBoundingClientRect();
      const frame = region.getBoundingClientRect();
      if (box.left < frame.left || box.right > frame.right) region.scrollLeft += box.left - frame.left - frame.width / 2;
    });

    let chosen = null;
    const has = (layer, kind, group) => layer.dataset[kind].split(" ").includes(group);
    const highlight = (group) => {
      chosen = chosen === group ? null : group;
      drawing.classList.toggle("chosen", chosen !== null);
      layers.forEach((layer) => {
        layer.classList.toggle("holds", chosen !== null && has(layer, "holds", chosen));
        layer.classList.toggle("reads", chosen !== null && has(layer, "reads", chosen));
      });
      document.querySelectorAll("[data-group]").forEach((element) => {
        const on = element.dataset.group === chosen;
        element.classList.toggle("on", on);
        if (element.matches("button")) element.setAttribute("aria-pressed", String(on));
      });
      if (chosen === null) return;
      const name = document.querySelector(`button[data-group="${chosen}"]`);
      const count = (kind) => {
        const found = layers.filter((layer) => has(layer, kind, chosen)).length;
        return `${found} layer${found === 1 ? "" : "s"}`;
      };
      readout.textContent = `${name ? name.textContent : "group"}: in the results of ${count("holds")}, read by ${count("reads")}`;
      const first = layers.find((layer) => has(layer, "holds", chosen) || has(layer, "reads", chosen));
      if (first) region.scrollLeft += first.getBoundingClientRect().left - region.getBoundingClientRect().left - 80;
    };
    document.querySelectorAll("[data-group]").forEach((element) => {
      element.addEventListener("click", () => highlight(element.dataset.group));
    });
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((element) => { element.open = true; }));
})();
