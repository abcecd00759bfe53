// Mends what the theme and the widgets leave undone: names for controls, keys for what scrolls, MathJax 3 for widgets.
(() => {
  "use strict";

  // The widgets' manager asks MathJax 2 to typeset a description; MathJax 3 has no Hub.
  const stubMathJax = () => {
    if (window.MathJax && !window.MathJax.Hub) {
      window.MathJax.Hub = { Queue: ([, , element]) => window.MathJax.typesetPromise?.([element]) };
    }
  };

  const name = (selector, label) => {
    for (const element of document.querySelectorAll(selector)) {
      if (!element.getAttribute("aria-label")) element.setAttribute("aria-label", label);
    }
  };

  const nameControls = () => {
    name(".search-button, .search-button__button", "Search");
    name(".primary-toggle, .sidebar-toggle", "Toggle the table of contents");
    name(".secondary-toggle", "Toggle the contents of this page");
    name(".theme-switch-button", "Switch between light and dark");
    name(".pst-navbar-icon", "Menu");
    for (const icon of document.querySelectorAll(".btn i, button i")) icon.setAttribute("aria-hidden", "true");
    for (const button of document.querySelectorAll("button[title], a.btn[title]")) {
      if (!button.textContent.trim()) button.setAttribute("aria-label", button.title);
    }
  };

  const nameSliders = () => {
    for (const box of document.querySelectorAll(".widget-slider")) {
      const label = box.querySelector(".widget-label")?.textContent.trim() || "Step";
      box.querySelector(".noUi-handle")?.setAttribute("aria-label", label);
      const readout = box.querySelector(".widget-readout");
      readout?.setAttribute("role", "textbox");
      readout?.setAttribute("aria-label", `${label}: value`);
    }
  };

  // What scrolls sideways must be reachable without a mouse.
  const reachScrolling = () => {
    for (const box of document.querySelectorAll(".fk-figure, .fk-scroll, .highlight pre, .output pre, mjx-container[display]")) {
      if (box.scrollWidth > box.clientWidth + 1) {
        box.tabIndex = 0;
        if (box.matches(".fk-figure, .fk-scroll")) {
          box.setAttribute("role", "region");
          box.setAttribute("aria-label", box.matches(".fk-figure") ? "Figure, scrolls sideways" : "Table, scrolls sideways");
        }
      }
    }
  };

  const wrapTables = () => {
    for (const table of document.querySelectorAll(".bd-article table")) {
      if (table.closest(".fk-scroll, .pst-scrollable-table-container")) continue;
      const box = document.createElement("div");
      box.className = "fk-scroll";
      table.replaceWith(box);
      box.append(table);
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    stubMathJax();
    nameControls();
    wrapTables();
    reachScrolling();
    if (document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')) {
      new MutationObserver(nameSliders).observe(document.body, { childList: true, subtree: true });
    }
  });
  window.addEventListener("load", () => {
    nameControls();
    reachScrolling();
  });
  window.addEventListener("resize", reachScrolling);
})();
