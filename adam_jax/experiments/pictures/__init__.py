"""What all charts and tables share, and the charts of runs."""
