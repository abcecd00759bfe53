// Self-tests with choices: choose, then see why. Without this script they are a list above a folded answer.
(() => {
  "use strict";

  const ask = (list) => {
    const answer = list.nextElementSibling;
    const said = document.createElement("p");
    said.className = "fk-choices-said";
    said.setAttribute("role", "status");
    list.after(said);
    for (const item of list.children) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...[...item.childNodes].flatMap((node) => (node.nodeName === "P" ? [...node.childNodes] : [node])));
      item.replaceChildren(button);
      const letter = button.textContent.trim()[1];
      button.addEventListener("click", () => {
        for (const other of list.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
        const right = letter === list.dataset.right;
        list.classList.toggle("fk-right", right);
        said.textContent = right ? `(${letter}) is right.` : `Not (${letter}).`;
        answer.open = true;
      });
    }
  };

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("ul.fk-choices").forEach(ask));
})();
