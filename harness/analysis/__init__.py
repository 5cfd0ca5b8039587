"""What results mean: metrics, pictures, comparisons."""
