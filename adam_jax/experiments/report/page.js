"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");
const charts = JSON.parse(document.getElementById("charts").textContent);
const figures = [...document.querySelectorAll("figure")];

// The colours of the page, for what Vega draws around the data.
function colours() {
  const style = getComputedStyle(document.documentElement);
  const [text, muted, line] = ["--text", "--muted", "--line"].map((name) =>
    style.getPropertyValue(name).trim(),
  );
  const axis = { labelColor: muted, labelFontSize: 11, titleColor: muted, titleFontWeight: "normal" };
  return {
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    axis: { ...axis, domainColor: line, gridColor: line, tickColor: line },
    legend: { labelColor: text, titleColor: text },
    view: { stroke: line },
  };
}

// Vega-Lite 6.4 asks the cell around a point for what the point itself would tell.
function tellWords(vega) {
  for (const mark of vega.marks.filter((mark) => mark.name.endsWith("_voronoi"))) {
    mark.encode.update.tooltip = { signal: "datum.datum.words" };
  }
  return vega;
}

function hideLines(figure, view) {
  const hidden = figure.querySelectorAll("button[aria-pressed=false]");
  return view.signal("hidden", Array.from(hidden, (button) => button.value)).runAsync();
}

async function draw(figure, number) {
  const { view } = await vegaEmbed(figure.querySelector(".plot"), charts[number], {
    actions: false,
    ast: true, // the page's policy lets nothing be evaluated
    config: colours(),
    patch: tellWords,
    renderer: "svg",
    tooltip: { disableDefaultStyle: true },
  });
  for (const button of figure.querySelectorAll("button")) {
    button.onclick = () => {
      button.ariaPressed = button.ariaPressed !== "true";
      hideLines(figure, view);
    };
  }
  await hideLines(figure, view);
}

const drawAll = () => Promise.all(figures.map(draw));
let drawn = drawAll();
dark.addEventListener("change", () => {
  drawn = drawn.then(drawAll);
});
