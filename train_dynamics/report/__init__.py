"""Results, claims and figures as one HTML page."""
