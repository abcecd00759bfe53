"""Predictions: a question before its number, and the number beside the reader's guess."""

from html import escape

from IPython.display import HTML, display

_guesses: dict[str, float] = {}  # by source


def predict(question: str, unit: str, source: str, guess: float | None = None) -> None:
    """Show a question that `reveal(source, …)` answers later in the chapter, and keep the guess, a number of `unit`.

    source: a name in the book, "04-launch". Raises TypeError where the guess is no number.
    """
    if guess is not None:
        _guesses[source] = float(guess)
    display(
        HTML(f'<p class="fk-predict" data-source="{escape(source)}" data-unit="{escape(unit)}">{escape(question)}</p>')
    )


def reveal(source: str, value: float) -> None:
    """Show the measured value that `source` asked for, in its unit, and how far the guess was from it."""
    guess = _guesses.get(source)
    words = f"Measured: {value:,.4g}."
    if guess and value:
        words += f" Your guess was {guess:,.4g}, {guess / value:.3g} times that."
    display(HTML(f'<p class="fk-reveal" data-source="{escape(source)}" data-value="{value!r}">{words}</p>'))
