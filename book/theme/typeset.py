"""Formulas typeset when the book is built, by KaTeX in Node: a page needs no script for them, and nothing in it moves.

Without npm the pages have MathJax, as Sphinx would.
"""

import json
import re
import subprocess
from functools import cache, lru_cache
from html import escape, unescape
from pathlib import Path

from docutils import nodes
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

LOGGER = logging.getLogger(__name__)
KATEX = Path(__file__).resolve().parents[1] / "extra" / "vendor" / "katex"
STYLE = "../vendor/katex/katex.min.css"  # from _static
# A line in, a line out: [formula, whether it stands by itself] as JSON; HTML with MathML, or {"error": …}.
PROGRAM = """
const katex = require(process.argv[1]);
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const [formula, displayMode] = JSON.parse(line);
  let made;
  try { made = katex.renderToString(formula, { displayMode, strict: "ignore" }); }
  catch (error) { made = { error: error.message }; }
  console.log(JSON.stringify(made));
});
"""


@cache
def _node() -> subprocess.Popen:
    command = ["node", "-e", PROGRAM, str(KATEX / "katex.min.js")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


@lru_cache(4000)
def typeset(formula: str, display: bool = False) -> str:
    """HTML of a formula; raises ValueError with KaTeX's words where it cannot be read."""
    process = _node()
    process.stdin.write(json.dumps([formula, display]) + "\n")
    process.stdin.flush()
    made = json.loads(process.stdout.readline())
    if isinstance(made, dict):
        raise ValueError(made["error"])
    return made


RAISED = str.maketrans("0123456789+-nij", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱʲ")
LOWERED = str.maketrans("0123456789+-nijkx", "₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢⱼₖₓ")
SIGNS = {"lambda": "λ", "partial": "∂", "sum": "Σ", "cdot": "·", "times": "×", "le": "≤", "ge": "≥", "infty": "∞"}


def in_letters(formula: str) -> str:
    """A short formula in plain letters, for where no markup can be: what opens on hover, a citation's title."""
    said = re.sub(r"\\(?:text|mathrm|operatorname)\{([^{}]*)\}", r"\1", formula)
    said = re.sub(r"\\(?:left|right)\b|\\[,;!]", "", said)
    said = re.sub(r"\^(?:\{([^{}]*)\}|(\w))", lambda found: _moved(found, RAISED, "^"), said)
    said = re.sub(r"_(?:\{([^{}]*)\}|(\w))", lambda found: _moved(found, LOWERED, "_"), said)
    said = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", said)
    said = re.sub(r"\\sqrt\{([^{}]*)\}", r"√(\1)", said)
    said = re.sub(r"\\([A-Za-z]+)", lambda found: SIGNS.get(found[1], found[1]), said)
    return re.sub(r"[{}\\]", "", said).strip()


def _moved(found: re.Match, letters: dict[int, int], sign: str) -> str:
    text = found[1] or found[2]
    return text.translate(letters) if all(ord(one) in letters for one in text) else f"{sign}({text})"


def in_text(text: str) -> str:
    """HTML whose formulas, between dollar signs, are typeset; left to MathJax where KaTeX was not fetched."""

    def formula(found: re.Match) -> str:
        made = typeset(unescape(found[1])) if KATEX.exists() else rf"\({found[1]}\)"
        return f'<span class="math notranslate nohighlight">{made}</span>'

    return re.sub(r"\$([^$]+)\$", formula, text)


def _shown(node: nodes.Node, formula: str, display: bool) -> str:
    try:
        return typeset(formula, display)
    except ValueError as error:
        LOGGER.warning("a formula that KaTeX cannot read: %s", error, location=node)
        return f"<code>{escape(formula)}</code>"


def in_lines(formula: str) -> str:
    """A formula of Sphinx's, of several parts or lines, as one that KaTeX reads."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", formula) if part.strip()]
    parts = [
        rf"\begin{{split}}{part}\end{{split}}" if r"\\" in part and r"\begin{" not in part else part for part in parts
    ]
    return parts[0] if len(parts) == 1 else r"\begin{gathered}" + r"\\".join(parts) + r"\end{gathered}"


def apart(formula: str) -> list[str]:
    r"""The formulas of a line that has several, \qquad between them: on a phone they stand below one another."""
    parts = re.split(r"\\qquad\b", formula)
    whole = all(part.count("{") == part.count("}") and r"\begin" not in part for part in parts)
    return [part.strip() for part in parts if part.strip()] if whole else [formula]


def visit_math(self, node: nodes.math) -> None:
    self.body.append(f'<span class="math notranslate nohighlight">{_shown(node, node.astext(), False)}</span>')
    raise nodes.SkipNode


def visit_math_block(self, node: nodes.math_block) -> None:
    formula = node.astext()
    if node.get("nowrap"):  # Sphinx has its own numbers
        formula = re.sub(r"\\(begin|end)\{(align|equation|gather)\}", r"\\\1{\2*}", formula)
    else:
        formula = in_lines(formula)
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node.get("number"):
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    parts = [_shown(node, part, True) for part in apart(formula)]
    self.body.append(parts[0] if len(parts) == 1 else f'<span class="fk-parts">{"".join(parts)}</span>')
    self.body.append("</div>")
    raise nodes.SkipNode


def add_style(app, pagename, templatename, context, doctree) -> None:
    if 'class="katex' in context.get("body", ""):
        app.add_css_file(STYLE, priority=890)


def close(app, exception) -> None:
    if _node.cache_info().currsize:
        _node().stdin.close()
        _node().wait(10)
        _node.cache_clear()


def setup(app) -> None:
    app.add_html_math_renderer("katex", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None))
    app.connect("html-page-context", add_style)
    app.connect("build-finished", close)
