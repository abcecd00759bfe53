"""Mistakes of more than one chapter."""


class Accumulates:
    """A buffer of totals that is made once for each input and never zeroed again."""

    def __init__(self, function):
        self.function, self.totals = function, {}

    def __call__(self, data, *rest):
        key = data.data_ptr(), data.shape
        self.totals[key] = self.totals.get(key, 0) + self.function(data, *rest)
        return self.totals[key].clone()
