"""What is measured of a step's gradients and weights, with torch alone."""
