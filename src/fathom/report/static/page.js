"use strict";

// Draws the charts that stand as JSON in the page, each in the figure that names its number.
{
  const charts = JSON.parse(document.getElementById("charts").textContent);
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const chart = charts[Number(figure.dataset.chart)];
    if (chart) fathomCharts.draw(figure, chart);
  }
}
