// Moves frames under sliders, and mends what the theme leaves undone: names for controls, keys for what scrolls.
(() => {
  "use strict";

  const moveFrames = () => {
    for (const input of document.querySelectorAll(".fk-slider input")) {
      const frames = [...document.getElementById(input.dataset.moves).children];
      const show = () => {
        frames.forEach((frame, place) => { frame.hidden = place !== +input.value; });
        const said = frames[+input.value]?.querySelector("svg[aria-label]")?.getAttribute("aria-label");
        input.setAttribute("aria-valuetext", `${+input.value + 1} of ${frames.length}${said ? `: ${said}` : ""}`);
      };
      input.addEventListener("input", show);
      show();
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
    for (const summary of document.querySelectorAll("details.hide > summary")) summary.removeAttribute("aria-label");
    // Sphinx's citation list has roles that no longer exist, and children that a list may not have.
    for (const item of document.querySelectorAll(".citation-list, .citation-list [role]")) item.removeAttribute("role");
    for (const summary of document.querySelectorAll(".bd-sidebar-primary li > details > summary")) {
      const of = summary.closest("li").querySelector("a")?.textContent.trim();
      summary.setAttribute("aria-label", `Chapters of ${of}`);
    }
    const sidebar = document.querySelector(".bd-sidebar-primary");
    sidebar?.setAttribute("role", "complementary");
    sidebar?.setAttribute("aria-label", "The book");
    for (const icon of document.querySelectorAll(".btn i, button i")) icon.setAttribute("aria-hidden", "true");
    for (const button of document.querySelectorAll("button[title], a.btn[title]")) {
      if (!button.textContent.trim()) button.setAttribute("aria-label", button.title);
    }
  };

  // What scrolls sideways must be reachable without a mouse.
  const SCROLLS = ".fk-figure, .fk-scroll, .pst-scrollable-table-container, .highlight pre, .output pre, div.math";
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) {
        target.tabIndex = 0;
        if (!target.hasAttribute("role")) target.setAttribute("role", "group");
        target.setAttribute("aria-label", "Scrolls sideways");
      } else if (target.getAttribute("aria-label") === "Scrolls sideways") {
        for (const attribute of ["tabindex", "role", "aria-label"]) target.removeAttribute(attribute);
      }
    }
  });
  const watchScrolling = () => document.querySelectorAll(SCROLLS).forEach((box) => sizes.observe(box));

  const wrapTables = () => {
    for (const table of document.querySelectorAll(".bd-article table")) {
      if (table.closest(".fk-scroll, .pst-scrollable-table-container")) continue;
      const box = document.createElement("div");
      box.className = "fk-scroll";
      table.replaceWith(box);
      box.append(table);
    }
  };

  // The theme keeps how far the list of pages was scrolled, which may hide where one is.
  const showPlace = () => {
    const list = document.querySelector(".bd-sidebar-primary"), here = list?.querySelector(".current.active, li.current > a.current");
    if (!here || !list.clientHeight) return;
    const [box, frame] = [here.getBoundingClientRect(), list.getBoundingClientRect()];
    if (box.top < frame.top || box.bottom > frame.bottom) list.scrollTop += box.top - frame.top - frame.height / 3;
  };

  document.addEventListener("DOMContentLoaded", () => {
    moveFrames();
    nameControls();
    wrapTables();
    watchScrolling();
  });
  window.addEventListener("load", () => {
    nameControls();
    showPlace();
  });
})();
