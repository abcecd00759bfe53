// What a search result shows: the sentence of its section that has most of the words, not the print header or a list.
(() => {
  "use strict";

  const plain = (part) => part.textContent.replace(/\s+/g, " ").trim();

  Search.makeSearchSummary = (page, words, anchor) => {
    const summary = document.createElement("p");
    summary.className = "context";
    const found = new DOMParser().parseFromString(page, "text/html");
    const article = found.querySelector(".bd-article");
    if (!article) return summary;
    const noise = ".headerlink, .katex-html, svg, script, style, nav, .fk-around";
    article.querySelectorAll(noise).forEach((part) => part.remove());
    const section = (anchor && article.querySelector(anchor)) || article;
    const wanted = [...words].map((word) => word.toLowerCase());
    const score = (text) => wanted.filter((word) => text.toLowerCase().includes(word)).length;
    const said = (part) => [...part.querySelectorAll("p, li, dd, figcaption")]
      .flatMap((one) => plain(one).match(/.+?[.?!](?=\s[A-Z]|$)|.+$/g) ?? []);
    const best = [...said(section), ...said(article)].reduce((one, other) => (score(other) > score(one) ? other : one), "");
    summary.textContent = best.length > 260 ? `${best.slice(0, 260).replace(/\s\S*$/, "")} …` : best;
    return summary;
  };
})();
