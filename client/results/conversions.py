"""What notebooks make of a result: tables, labelled arrays, figures, and what Jupyter shows.

The package `notebook` does the work. It stands above the results, so that the methods here import it when they are
called; the results themselves need none of its libraries.
"""

# The libraries are optional.
# pyright: reportMissingImports=false, reportMissingTypeStubs=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..parameters import AttentionKind

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes


class NotebookMethods:
    """The methods of an `Attribution` for notebooks. `pip install 'sidelight[notebook]'` brings their libraries."""

    def to_pandas(self, what: AttentionKind | Literal["targets"] | None = None) -> pd.DataFrame:
        """Returns a table with a line for each number of attention, or for each step.

        Args:
            what: A kind of attention; None: the first one that was captured. The columns are `target_index`, `target`,
                `source_index`, `source`, `layer`, `head` (without those that the request has reduced) and `attention`.
                For encoder self-attention, `target` is the position that looks. "targets": a line for each step, or
                for each unit with a grouping, with its place in the text and its scores.

        Raises:
            ValueError: The kind was not captured.
            ImportError: pandas is not installed.
        """
        from ..notebook import frames

        return frames.attribution_frame(self._attribution, what)

    def to_xarray(self) -> xr.Dataset:
        """Returns all arrays and scores with names for their axes.

        The arrays have the names of the kinds. Their dimensions are "source" (for decoder self-attention "position"),
        "target" (for encoder self-attention "query"), "layer" and "head", or "pair"; `source_text` and so on hold the
        tokens. Kinds with different layers or heads have dimensions of their own: "cross_layer".

        Raises:
            ImportError: xarray is not installed.
        """
        from ..notebook import frames

        return frames.attribution_dataset(self._attribution)

    def plot(
        self,
        kind: AttentionKind | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draws a heatmap with matplotlib: the text that is written in lines, what it looks at in columns.

        Args:
            kind: A kind of attention; None: the first one that was captured.
            layer: A layer of the model; None: the mean over all that were captured.
            head: A head; None: the mean over all.
            ax: Where to draw. None: a new figure.

        Raises:
            ValueError: The kind, the layer or the head was not captured, or was reduced.
            ImportError: matplotlib is not installed.
        """
        from ..notebook import figure

        return figure.plot(self._attribution, kind, layer, head, ax)

    def to_bertviz(self) -> dict[str, Any]:
        """Returns the arguments for BertViz: `head_view(**result.to_bertviz())`, and the same for `model_view`.

        The tokens whose rows were not captured have 0: for the row "predicting" the last token, for "reading" those
        before the first step.

        Raises:
            ValueError: No attention was captured, or the request has reduced or chosen layers or heads.
            ImportError: torch is not installed, which BertViz needs.
        """
        from ..notebook import bertviz

        return bertviz.to_bertviz(self._attribution)

    def _repr_html_(self) -> str:
        """What Jupyter shows: the page that `save` writes."""
        from ..notebook import html

        return html.attribution_html(self._attribution)

    @property
    def _attribution(self) -> Any:
        """The result itself, whose class is made from this one."""
        return self
