"""Resampling in two steps, and rank correlations of many resamples at once."""

import warnings

import numpy as np
import pandas as pd
from scipy import stats


class Bootstrap:
    """Resampling in two steps: networks, then what lies within each. Entry 0 along an axis of draws is the data, not resampled.

    Parameters
    ----------
    resamples : int
        Draws besides the data; an axis of draws has one more entry.
    seed : int
    student : bool
        Widen intervals, which are too narrow for means of few networks, to those of Student's t: each drawn network moves away
        from the mean of its arm by a factor.
    """

    def __init__(self, resamples, seed, student=False):
        self.size, self.seed, self.student = resamples + 1, seed, student
        self.rng = np.random.default_rng(seed)
        self._drawn, self._earlier = [], None

    def widened(self):
        """A bootstrap with `student` that repeats these draws if it gets the same calls; what `once` drew it takes over."""
        other = Bootstrap(self.size - 1, self.seed, student=True)
        other._earlier = iter(self._drawn)
        return other

    def once(self, draw):
        """The result of `draw()`, kept for `widened`: for slow draws within networks, which `student` does not change."""
        if self._earlier is None:
            self._drawn.append((draw(), self.rng.bit_generator.state))
            return self._drawn[-1][0]
        drawn, self.rng.bit_generator.state = next(self._earlier)
        return drawn

    def picks(self, arms):
        """Positions drawn with replacement, each from its own arm: (draws, len(arms))."""
        codes, _ = pd.factorize(pd.Series(arms))
        picks = np.tile(np.arange(len(codes)), (self.size, 1))
        for code in range(codes.max() + 1):
            members = np.flatnonzero(codes == code)
            picks[1:, members] = self.rng.choice(members, (self.size - 1, len(members)))
        return picks

    def networks(self, within, arms=None):
        """Draw networks from their arms, each with its own draw from within it.

        within (networks, draws, …) -> (draws, networks, …), where column i holds networks of arms[i].
        """
        within = np.asarray(within, dtype=float)
        codes, names = pd.factorize(pd.Series([0] * len(within) if arms is None else arms))
        picks = self.picks(codes)
        draws = self.rng.integers(1, self.size, picks.shape)
        draws[0] = 0
        found = within[picks, draws]
        for code in range(len(names)) if self.student else ():
            members = np.flatnonzero(codes == code)
            away = within[picks[1:, members], 0] - mean_over(within[None, members, 0])
            # As each arm is moved by its own spread, that of a difference is known from two arms at best.
            freedom = min(len(codes) - len(names), 2 * (len(members) - 1))
            found[1:, members] += (self.stretch(len(members), freedom) - 1) * away
        return found

    def stretch(self, size, freedom):
        """Length of the interval of a mean of `size` networks by Student's t, in that of its percentiles.

        The spread is known with `freedom` degrees of freedom: networks less arms, of two arms at most. One network has no
        interval: 1.
        """
        if not self.student or size == 1:
            return 1.0
        return np.sqrt(size / (size - 1)) * stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)

    def orders(self, values):
        """Mean over a network's orders or repeats: (orders, …) -> (draws, …)."""
        values = np.asarray(values, dtype=float)
        return values[self.picks([0] * len(values))].mean(axis=1)

    def units(self, n, statistic, block=200_000):
        """A statistic of how often each of n units was drawn: of counts (b, n) -> (b, …), for all (draws, …).

        In blocks of draws, for draws × units of a large network would not fit in memory; small ones stay in a core's cache.
        """
        results, rows = [statistic(np.ones((1, n)))], max(1, block // n)
        for start in range(1, self.size, rows):
            b = min(rows, self.size - start)
            drawn = self.rng.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
            results.append(statistic(np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n).astype(float)))
        return np.concatenate(results)


def spearman(x, y, given=None):
    """Spearman's ρ along the last axis; with `given` the partial one, of residuals of rank regressions on it.

    NaN for fewer than three values and for constant ones. A constant `given` leaves nothing to hold fixed.
    """
    x, y, given = np.broadcast_arrays(x, y, 0.0 if given is None else given)
    if x.shape[-1] < 3:
        return np.full(x.shape[:-1], np.nan)[()]
    x, y, given = (stats.rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (x, y, given))
    square = (given**2).sum(axis=-1, keepdims=True)
    slopes = ((v * given).sum(axis=-1, keepdims=True) / np.where(square > 0, square, 1) for v in (x, y))
    # Rounded, so that an exact fit leaves zeros to be called constant, and not rounding errors.
    x, y = ((v - slope * given).round(9) for v, slope in zip((x, y), slopes, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return np.asarray(stats.pearsonr(x, y, axis=-1).statistic)[()]


def counted_spearman(x, y, counts):
    """Spearman's ρ of resamples given as counts (b, n) of the values x, y (n,): (b,).

    What `spearman` gives on the values repeated that often, but sorting them once and not once a resample.
    """
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x, y: expected finite numbers, found NaN or infinity")
    n = counts.sum(axis=1, keepdims=True)

    def ranks(values):  # all drawn with a lower value and half of those with the same, less the mean rank
        _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
        upto = np.cumsum(counts[:, np.argsort(values, kind="stable")], axis=1)[:, np.cumsum(sizes) - 1]
        return (upto - np.diff(upto, axis=1, prepend=0) / 2)[:, inverse] - n / 2

    rx, ry = ranks(x), ranks(y)
    xy, xx, yy = (np.einsum("bi,bi,bi->b", counts, a, b) for a, b in ((rx, ry), (rx, rx), (ry, ry)))
    defined = (xx > 0) & (yy > 0) & (n[:, 0] >= 3)
    return np.where(defined, xy / np.sqrt(np.where(defined, xx * yy, 1)), np.nan)


def mean_over(values):
    """Mean over axis 1 (networks, layers) of what has a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN, as it should be
        return np.nanmean(values, axis=1)
