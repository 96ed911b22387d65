"""The names and meanings of reductions, over heads and over layers.

The meanings are those of Inseq's aggregation functions (inseq/data/aggregation_functions.py), with which users compare.
"""

from typing import Literal, get_args

Reduction = Literal["mean", "max", "min", "sum", "prod", "absmax", "l2"]
"""With x the numbers; sums and products are float32, whatever the dtype of x:

- `mean`: sum(x) / count
- `max`, `min`: the greatest, the smallest; NaN if any is NaN, as in torch
- `sum`, `prod`
- `absmax`: the x with the greatest |x|, with its sign; of equal |x| the first. NaN counts as 0 in the comparison, so
  the result is NaN only where NaN is first and nothing but NaN and 0 follows
- `l2`: sqrt(sum(x^2)), which Inseq calls `vnorm`

The result of mean, sum, prod and l2 is NaN if any x is NaN.
"""

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
