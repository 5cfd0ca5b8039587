"""What the evaluation at the end of a run costs."""
