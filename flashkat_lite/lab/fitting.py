"""What a drawing needs before it is shown: plain numbers on axes, words whole and apart, and a form for phones."""

import itertools
import math
import re
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedFormatter, FuncFormatter, LogFormatter, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox, ScaledTranslation, blended_transform_factory

PHONE = 3.56  # inches: what a phone of 360 pixels leaves for a drawing
LETTERS = 9.75  # points, for a phone: 13 pixels
INK, DARK = "#1a1a1a", "#111111"  # the page replaces the first, and not the second
MARKS = {"#56b4e9", "#e69f00", "#d55e00", "#cc79a7", "#009e73"}
EDGE = 3  # points kept free at the rim


def finish(figure: Figure) -> None:
    """Plain numbers on axes, titles broken into lines that fit, labels inside the drawing and apart."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _plain_numbers(axis)
    _lay_out(figure)
    if any([wrap(text, figure.bbox.x1 - max(EDGE, text.get_window_extent().x0) - EDGE) for text in titles(figure)]):
        _lay_out(figure)
    _make_room(figure)
    for axes in figure.axes:
        _thin_out(axes)
    settle(figure)
    _clear(figure)
    _darken(figure)


def narrow(figure: Figure) -> bool:
    """Make the figure fit a phone: as wide as one, panels side by side under one another, words of one size.

    Returns whether that came out; a sketch without axes may be too full for so little room.
    """
    height = figure.get_size_inches()[1]
    panels = [axes for axes in figure.axes if axes.get_subplotspec()]
    grids = {axes.get_subplotspec().get_gridspec() for axes in panels}
    stacked = len(grids) == 1 and next(iter(grids)).nrows == 1 and len(panels) > 1
    if stacked:
        grid = GridSpec(len(panels), 1, figure=figure)
        for place, axes in enumerate(panels):
            axes.set_subplotspec(grid[place, 0])
            axes.tick_params(labelleft=axes.yaxis.get_visible(), labelbottom=axes.xaxis.get_visible())
        height = max(height, len(panels) * max(2.1, 0.78 * height))
    shrunk = min(1, PHONE / figure.get_size_inches()[0])
    figure.set_size_inches(PHONE, height)
    for axes in figure.axes:
        if not axes.axison:  # a sketch's marks stand in rows
            for marks in axes.findobj(PathCollection):
                marks.set_sizes(marks.get_sizes() * shrunk**2)
    for text in figure.findobj(Text):
        text.set_fontsize(min(max(text.get_fontsize(), 0.87 * LETTERS), 11))
        if text not in titles(figure):
            text.set_fontsize(min(text.get_fontsize(), LETTERS))
    for axes in figure.axes:
        axes.tick_params(labelsize=LETTERS)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_offset_text().set_fontsize(LETTERS)
    labels = [text for axes in figure.axes for text in axes.texts]
    for text in labels:
        text.set_in_layout(False)
    _lay_out(figure)
    room, above = figure.bbox.width - 2 * EDGE * figure.dpi / 72, 0
    for text in labels:
        if text.axes.axison:
            wrap(text, 0.62 * room)
        else:
            above += _wrap_in_sketch(text, labels, room)
        text.set_in_layout(text.get_window_extent().width < 0.25 * room)  # a long one would squeeze the axes
    moved = _move_legends(figure, room)
    if not moved and len(panels) == 1 and figure._suptitle is None and panels[0].bbox.x0 > 0.12 * room:
        figure.suptitle(panels[0].get_title("left"), x=0.01, ha="left", fontsize=11, fontweight="bold")
        panels[0].set_title("", loc="left")
    grown = sum(_wrap_ticks(axes, room) for axes in panels)
    if above and len(panels) == 1:  # lines that were added at the top of a sketch push nothing else together
        bottom, top = panels[0].get_ylim()
        panels[0].set_ylim(bottom, top + (top - bottom) * above / panels[0].bbox.height)
        grown += above
    _lay_out(figure)
    for text in titles(figure):
        grown += wrap(text, 0.96 * (figure.bbox.x1 - max(EDGE, text.get_window_extent().x0)))
    for text in _below(figure):
        grown += wrap(text, room)
    for axes in figure.axes:
        wrap(axes.yaxis.label, axes.bbox.height, across=False)
    for turn in range(2):  # a label in lines leaves the axes more room, and its middle moves
        wrapped = 0
        for axes in figure.axes:
            middle = (axes.bbox.x0 + axes.bbox.x1) / 2
            wrapped += wrap(axes.xaxis.label, 2 * min(middle, figure.bbox.width - middle) - 4 * EDGE)
        if turn and not wrapped:
            break
        grown += wrapped
        figure.set_size_inches(PHONE, height + grown / figure.dpi)
        _lay_out(figure)
    _make_room(figure)
    for axes in figure.axes:
        _thin_out(axes)
    settle(figure)
    _clear(figure)
    if any(axes.axison for axes in figure.axes):
        return True
    boxes = [box for _, box in written(figure)]
    return not any(overlap(one, other) for one, other in itertools.combinations(boxes, 2))


def _move_legends(figure: Figure, room: float) -> bool:
    """A legend that a phone has no room for stands between the first panel and its title; whether there was one."""
    moved = False
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        if legend is None or (legend.axes and legend.get_window_extent().width < 0.5 * legend.axes.bbox.width):
            continue
        names, axes = [text.get_text() for text in legend.get_texts()], legend.axes or figure.axes[0]
        columns = 2 if len(names) > 2 and max(map(len, names)) < 20 else 1
        handles = legend.legend_handles
        legend.remove()
        across = blended_transform_factory(figure.transFigure, axes.transAxes)
        above = dict(
            loc="lower left", bbox_to_anchor=(0.01, 1), bbox_transform=across, borderaxespad=0.2, borderpad=0.1
        )
        legend = axes.legend(handles, names, ncols=columns, fontsize=9, frameon=False, **above)
        legend.set_in_layout(False)  # its width would squeeze the axes; its height is the title's distance
        _lay_out(figure)
        high = legend.get_window_extent().height * 72 / figure.dpi
        axes.set_title(axes.get_title("left") or " ", loc="left", pad=high + 8, fontsize=11)
        moved = True
    return moved


def _darken(figure: Figure) -> None:
    """Dark words on a mark stay dark where a dark page makes all other words pale."""
    for axes in figure.axes:
        marks = [bar for bar in axes.patches if to_hex(bar.get_facecolor()) in MARKS and bar.get_facecolor()[3] > 0.5]
        for text in axes.texts:
            if to_hex(text.get_color()) != INK or not _seen(text):
                continue
            box = text.get_window_extent()
            x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            if any(bar.get_window_extent().contains(x, y) for bar in marks):
                text.set_color(DARK)


def _lay_out(figure: Figure) -> None:
    """Place all parts of the figure. What has no room yet is no news: it is about to be made."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.draw_without_rendering()


def titles(figure: Figure) -> list[Text]:
    """The figure's title and its panels'."""
    of_panels = [text for axes in figure.axes for text in (axes.title, axes._left_title, axes._right_title)]
    return [text for text in (figure._suptitle, *of_panels) if text is not None and text.get_text()]


def _make_room(figure: Figure) -> None:
    """Longer axes where a word at the end of a bar or a curve would leave the sheet: else it would be moved onto it."""
    sheet = figure.bbox.x1 - EDGE
    for axes in figure.axes:
        free = axes.axison and not axes.images and len(axes.get_shared_x_axes().get_siblings(axes)) == 1
        bars = any(getattr(bars, "orientation", None) == "horizontal" for bars in axes.containers)
        most = math.inf if bars else 1.7  # curves that were squeezed more would tell less than a label off its place
        for _ in range(3 if free else 0):  # another number on the axis may narrow it
            longer = 1.0
            for text in filter(_seen, axes.texts):
                box = text.get_window_extent()
                place = (box.x0 - axes.bbox.x0) / axes.bbox.width
                room = place - (box.x1 - sheet) / axes.bbox.width
                if text.get_ha() == "left" and place > room > 0.25:
                    longer = max(longer, place / room)
            most /= longer
            if longer == 1 or most < 1:
                break
            to = axes.transScale
            (low, _), (high, _) = to.transform([(end, 0.5) for end in axes.get_xlim()])
            axes.set_xlim(right=to.inverted().transform((low + longer * (high - low), 0.5))[0])
            _lay_out(figure)


def _below(figure: Figure) -> list[Text]:
    return [text for text in (figure._supxlabel,) if text is not None]


def wrap(text: Text, room: float, across: bool = True) -> float:
    """Break the text into lines of at most `room` pixels; returns by how many pixels that made it higher."""
    box = text.get_window_extent()
    wide, high = (box.width, box.height) if across else (box.height, box.width)
    if not text.get_text().strip() or wide <= room:
        return 0
    words = re.findall(r"(?:\$[^$]*\$|[^\s$])+", text.get_text())  # a formula is one word
    length = max(6, int(len(" ".join(words)) * room / wide))
    while True:
        lines = [""]
        for word in words:
            joined = f"{lines[-1]} {word}".strip()
            lines = [*lines[:-1], joined] if len(joined) <= length or not lines[-1] else [*lines, word]
        text.set_text("\n".join(lines))
        box = text.get_window_extent()
        if (box.width if across else box.height) <= room or length <= 6:
            return max(0, (box.height if across else box.width) - high)
        length -= 1


def settle(figure: Figure) -> None:
    """Move labels that leave the drawing or lie on other words, by as little as it takes; all has been placed."""
    sheet = Bbox(figure.bbox.get_points() + [[EDGE, EDGE], [-EDGE, -EDGE]])
    free = [text for axes in figure.axes for text in axes.texts if _seen(text)]
    fixed = [text.get_window_extent() for text in _words(figure) if text not in free]
    fixed += [legend.get_window_extent() for axes in figure.axes if (legend := axes.get_legend())]
    for _ in range(12):
        moved = False
        for place, text in enumerate(free):
            box = text.get_window_extent()
            for other in [*fixed, *(one.get_window_extent() for one in free[:place])]:
                if overlap(box, other):
                    up = box.y0 + box.y1 >= other.y0 + other.y1
                    step = other.y1 - box.y0 + 1 if up else other.y0 - box.y1 - 1
                    if not sheet.y0 <= box.y0 + step <= box.y1 + step <= sheet.y1:
                        step = other.y0 - box.y1 - 1 if up else other.y1 - box.y0 + 1
                    shift(text, 0, step)
                    box, moved = text.get_window_extent(), True
            across = min(0, sheet.x1 - box.x1) or max(0, sheet.x0 - box.x0)
            along = min(0, sheet.y1 - box.y1) or max(0, sheet.y0 - box.y0)
            if abs(across) + abs(along) > 0.5:
                shift(text, across, along)
                moved = True
        if not moved:
            return


def _clear(figure: Figure) -> None:
    """Move labels that lie on curves, marks or an axis off them, if there is room near by; words stay apart."""
    sheet = Bbox(figure.bbox.get_points() + [[EDGE, EDGE], [-EDGE, -EDGE]])
    for axes in figure.axes:
        free = [text for text in axes.texts if _seen(text) and not text.get_rotation()]
        free = [text for text in free if getattr(text, "arrow_patch", None) is None]
        if not free or not axes.axison or axes.images:
            continue
        drawn = _drawn(axes)
        others = [text.get_window_extent() for text in _words(figure) if text not in axes.texts]
        others += [legend.get_window_extent() for one in figure.axes if (legend := one.get_legend())]
        for text in free:
            box = text.get_window_extent()
            words = others + [one.get_window_extent() for one in axes.texts if one is not text and _seen(one)]

            def cost(step: tuple[float, float], box=box, words=words, drawn=drawn) -> float:
                at = box.translated(*step)
                out = not (sheet.x0 <= at.x0 and at.x1 <= sheet.x1 and sheet.y0 <= at.y0 and at.y1 <= sheet.y1)
                if step != (0, 0) and (out or any(overlap(at, word) for word in words)):
                    return math.inf
                return 4 * _hits(at, drawn) + math.hypot(*step)

            if _hits(box, drawn) < 4:
                continue
            high = box.height
            steps = [(x * high, y * high / 2) for y in range(-6, 7) for x in (0, -1, 1, -2, 2, -3, 3)]
            best = min([(0, 0), *steps], key=cost)
            if cost(best) < cost((0, 0)) - high:
                shift(text, *best)


def _drawn(axes: Axes) -> np.ndarray:
    """Points [n, 2] in pixels along what is drawn in the axes: curves, the rims of marks, the two axes."""
    inside, made = axes.bbox, [np.empty((0, 2))]
    low, right, top = (inside.x0, inside.y0), (inside.x1, inside.y0), (inside.x0, inside.y1)
    made += [_along(np.array([low, end])) for end in (right, top)]
    rim = np.array([(math.cos(turn), math.sin(turn)) for turn in np.linspace(0, 2 * math.pi, 8, endpoint=False)])
    for line in filter(Line2D.get_visible, axes.lines):
        points = line.get_transform().transform(np.column_stack(line.get_data(orig=False)).astype(float))
        if line.get_linestyle() != "None":
            made.append(_along(points))
        if line.get_marker() not in ("None", None, "", " "):
            radius = line.get_markersize() / 2 * axes.figure.dpi / 72
            made.append((points[:, None] + radius * rim).reshape(-1, 2))
    for marks in axes.collections:
        if isinstance(marks, PathCollection) and marks.get_visible():
            points = marks.get_offset_transform().transform(np.ma.filled(marks.get_offsets(), np.nan))
            radius = math.sqrt(max(marks.get_sizes(), default=0)) / 2 * axes.figure.dpi / 72
            made.append((points[:, None] + radius * rim).reshape(-1, 2))
    points = np.concatenate(made)
    points = points[np.isfinite(points).all(1)]
    return points[(points >= inside.min - 2).all(1) & (points <= inside.max + 2).all(1)]


def _along(points: np.ndarray) -> np.ndarray:
    """Points every two pixels along the line through these."""
    pieces = [np.empty((0, 2))]
    for one, other in itertools.pairwise(points[np.isfinite(points).all(1)]):
        many = min(2000, 1 + int(np.hypot(*(other - one)) / 2))
        pieces.append(one + (other - one) * np.linspace(0, 1, many + 1)[:, None])
    return np.concatenate(pieces)


def _hits(box: Bbox, points: np.ndarray) -> int:
    """How many of the points lie within the box, less a rim."""
    return int(((points > box.min + 1.5) & (points < box.max - 1.5)).all(1).sum())


def overlap(one: Bbox, other: Bbox, within: float = 1.5) -> bool:
    """Whether two boxes share more than a rim of so many pixels."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    return across > within and min(one.y1, other.y1) - max(one.y0, other.y0) > within


def shift(text: Text, across: float, along: float) -> None:
    """Move a text by pixels, whatever its coordinates are; an annotation keeps its arrow's end."""
    if not isinstance(text, Annotation):
        inches = ScaledTranslation(across / text.figure.dpi, along / text.figure.dpi, text.figure.dpi_scale_trans)
        text.set_transform(text.get_transform() + inches)
        return
    renderer = text.figure._get_renderer()
    to = text._get_xy_transform(renderer, text.anncoords)
    text.xyann = to.inverted().transform(to.transform(text.xyann) + [across, along])


def _seen(text: Text) -> bool:
    return text.get_visible() and bool(text.get_text().strip())


def _words(figure: Figure) -> Iterator[Text]:
    """All that is written in the drawing; of ticks, those in sight."""
    yield from filter(_seen, dict.fromkeys([*titles(figure), *figure.texts]))
    for axes in figure.axes:
        if not axes.get_visible() or not axes.axison:
            yield from filter(_seen, axes.texts)
            continue
        yield from filter(
            _seen, [*axes.texts, axes.xaxis.label, axes.yaxis.label, *ticks(axes.xaxis), *ticks(axes.yaxis)]
        )


def ticks(axis) -> list[Text]:
    """The labels of the axis that are shown."""
    low, high = sorted(axis.get_view_interval())
    return [
        tick.label1
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        if low <= tick.get_loc() <= high and tick.label1.get_visible() and _seen(tick.label1)
    ]


def _wrap_in_sketch(text: Text, others: Sequence[Text], room: float) -> float:
    """Break a sketch's text where the sheet or the next text in its row ends it, lines going upwards.

    Returns by how much that made it higher, if it stands at the top; pixels.
    """
    if not _seen(text):
        return 0
    box, figure = text.get_window_extent(), text.figure
    rows = [
        other
        for one in others
        if one is not text and _seen(one)
        if min((other := one.get_window_extent()).y1, box.y1) - max(other.y0, box.y0) > 2
    ]
    if text.get_ha() == "left":
        room = min([figure.bbox.x1 - EDGE, *(one.x0 - 6 for one in rows if one.x0 > box.x0)]) - box.x0
    elif text.get_ha() == "right":
        room = box.x1 - max([EDGE, *(one.x1 + 6 for one in rows if one.x1 < box.x1)])
    else:
        room *= 0.62
    grown = wrap(text, max(room, 0.2 * figure.bbox.width))
    if grown and text.get_va() == "baseline":
        text.set_va("bottom")
    axes = text.axes.bbox
    return grown if box.y0 > axes.y0 + 0.75 * axes.height else 0


def _wrap_ticks(axes: Axes, room: float) -> float:
    """Names of bars in lines, where they leave too little for the bars; returns by how much the figure must grow."""
    names = ticks(axes.yaxis)
    if not isinstance(axes.yaxis.get_major_formatter(), FixedFormatter):
        return 0
    grown = [wrap(name, 0.36 * room) for name in names]
    if any(grown):
        axes.set_yticks(axes.get_yticks(), [name.get_text() for name in axes.get_yticklabels()])
    return 0.6 * sum(grown)


def _thin_out(axes: Axes) -> None:
    """Leave out each second number of an axis until none touches the next; names are turned instead."""
    for axis, across in ((axes.xaxis, True), (axes.yaxis, False)):
        for _ in range(4):
            shown = sorted(
                ticks(axis), key=lambda label: label.get_window_extent().x0 if across else label.get_window_extent().y0
            )
            boxes = [label.get_window_extent() for label in shown]
            gap = 4 if across else 0
            if all((b.x0 - a.x1 if across else b.y0 - a.y1) > gap for a, b in itertools.pairwise(boxes)):
                break
            if isinstance(axis.get_major_formatter(), FixedFormatter):
                if across and len(shown) > 1:
                    axes.tick_params(axis="x", labelrotation=35)
                    for label in axis.get_ticklabels():
                        label.set_horizontalalignment("right")
                break
            for label in shown[1::2]:
                label.set_visible(False)


def _plain_numbers(axis) -> None:
    """20,000 and not 20000; on logarithmic axes 1, 10, 100 and not powers of ten, from 0.001 to a million.

    Between decades numbers stand only where there is hardly one.
    """
    low, high = sorted(axis.get_view_interval())
    if type(axis.get_major_formatter()) is ScalarFormatter and 1e4 <= max(-low, high) < 1e6:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if axis.get_scale() != "log" or not isinstance(axis.get_major_formatter(), LogFormatter):
        return
    if low <= 0 or not (low > 1e-4 and high < 2e6):
        axis.set_minor_formatter(NullFormatter())
        return
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    few = math.log10(high / low) < 1.6
    between = lambda value, _: _plain(value) if few and f"{value:e}"[0] in "25" else ""  # noqa: E731
    axis.set_minor_formatter(FuncFormatter(between))


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.6g}"


def written(figure: Figure) -> Sequence[tuple[str, Bbox]]:
    """All words of the drawing with their boxes, in pixels."""
    _lay_out(figure)
    return [(text.get_text(), text.get_window_extent()) for text in _words(figure)]
