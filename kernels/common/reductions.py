"""How several heads, or layers, become one: the names, and what each means.

Knows no shapes and no device. The meanings are those of Inseq's aggregation functions
(inseq/data/aggregation_functions.py), which users compare with.
"""

from typing import Literal, get_args

Reduction = Literal["mean", "max", "min", "sum", "prod", "absmax", "l2"]
"""With x the numbers to be reduced; whatever their dtype, sums and products are float32:

- `mean`: sum(x) / count
- `max`, `min`: the greatest, the smallest; NaN if any is NaN, as in torch
- `sum`, `prod`
- `absmax`: the x with the greatest |x|, sign kept; the first one on ties; NaN counts as 0 in the comparison, so that it
  comes out only where it is first and nothing but NaN and 0 follows
- `l2`: sqrt(sum(x^2)), which Inseq calls `vnorm`

NaN comes out of mean, sum, prod and l2 whenever one goes in.
"""

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
