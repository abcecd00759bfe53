"""The book's tools, in folders by purpose; `python book/tools` lists those that can be run."""

import sys

# What nbformat's library would check internationalised addresses with, if notebooks held any: 3 s at each import.
SLOW_TO_IMPORT = "rfc3987_syntax"
sys.modules.setdefault(SLOW_TO_IMPORT, None)
WITHOUT_IT = f"import sys; sys.modules[{SLOW_TO_IMPORT!r}] = None; "  # for the Python of another process
