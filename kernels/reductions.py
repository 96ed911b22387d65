"""How several heads, or layers, become one: the names, and what each means.

Knows no shapes and no device. The meanings are those of Inseq's aggregation functions, which users compare with.
"""

from typing import Literal, get_args

Reduction = Literal["mean", "max", "min", "sum", "prod", "absmax", "l2"]
"""With x the numbers to be reduced, in float32:

- `mean`: sum(x) / count
- `max`, `min`: the greatest, the smallest; NaN if any is NaN, as in torch
- `sum`, `prod`
- `absmax`: the x with the greatest |x|, sign kept; the first one on ties; NaN counts as 0 in the comparison
- `l2`: sqrt(sum(x^2)), which Inseq calls `vnorm`
"""

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
