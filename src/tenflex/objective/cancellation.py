"""Where differences of large numbers stand for small ones."""

from __future__ import annotations

CANCELLATION = 1e-5
"""Below this relative error the Gram identities lose digits by cancellation, and residuals are formed instead."""
