"""What one reads off a solution: nodes, formulas, errors, texts and plots."""
