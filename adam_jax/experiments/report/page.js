"use strict";

const CHART_HEIGHT = 320; // of a chart without its legend, in pixels
const ENTRY_HEIGHT = 45; // of an entry of a legend, at most
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)");

// The colours of the page, for what plotly draws around the data.
function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  const [text, muted, line, card] = ["--text", "--muted", "--line", "--card"].map(read);
  const axis = { gridcolor: line, linecolor: line, zeroline: false, tickcolor: line };
  return {
    font: { color: muted, family: getComputedStyle(document.body).fontFamily, size: 12 },
    legend: { font: { color: text } },
    modebar: { bgcolor: "transparent", color: muted, activecolor: text },
    hoverlabel: { bgcolor: card, bordercolor: line, font: { color: text } },
    xaxis: axis,
    yaxis: axis,
  };
}

function merge(target, extra) {
  for (const [key, value] of Object.entries(extra)) {
    const isTable = typeof value === "object" && !Array.isArray(value);
    target[key] = isTable ? merge({ ...target[key] }, value) : value;
  }
  return target;
}

// A legend takes the lines that it needs, and the chart keeps its height beside it. How
// many these are is known only when it is drawn, with room enough: `makeRoom` gives it,
// and `fit` takes the rest away.
function makeRoom(plot, entries) {
  plot.style.height = `${CHART_HEIGHT + ENTRY_HEIGHT * entries}px`;
}

async function fit(plot) {
  const legend = plot.querySelector(".legend .bg");
  const height = legend ? Math.ceil(legend.getBBox().height) : 0;
  plot.style.height = `${CHART_HEIGHT + height}px`;
  await Plotly.Plots.resize(plot);
}

async function draw(plot, chart) {
  const layout = merge(chart.layout, {
    ...colours(),
    autosize: true,
    dragmode: touch.matches ? false : "zoom", // a finger scrolls the page
    margin: { l: 8, r: 8, t: 12, b: 8 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
  });
  for (const axis of ["xaxis", "yaxis"]) {
    layout[axis].automargin = true;
  }
  makeRoom(plot, chart.data.length);
  await Plotly.newPlot(plot, chart.data, layout, {
    displayModeBar: touch.matches ? false : "hover",
    displaylogo: false,
    // Named one by one: plotly's own choice has one that sends the chart to a server.
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
    plotlyServerURL: "",
  });
  await fit(plot);
}

const charts = JSON.parse(document.getElementById("charts").textContent);
const plots = charts.map((_, number) => document.getElementById(`chart-${number}`));
const drawn = Promise.all(plots.map((plot, number) => draw(plot, charts[number])));

// One after the other, and only for another width: a phone that scrolls hides its
// address bar, and so changes its height.
let [width, work, timer] = [innerWidth, drawn, 0];
async function refit() {
  for (const plot of plots) {
    makeRoom(plot, plot.data.length);
    await Plotly.Plots.resize(plot);
    await fit(plot);
  }
}
addEventListener("resize", () => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    if (innerWidth !== width) {
      width = innerWidth;
      work = work.then(refit);
    }
  }, 150);
});
dark.addEventListener("change", () => {
  for (const plot of plots) {
    Plotly.relayout(plot, merge(plot.layout, colours()));
  }
});
