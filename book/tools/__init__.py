"""The book's tools, in folders by purpose; `python book/tools` lists those that can be run."""
