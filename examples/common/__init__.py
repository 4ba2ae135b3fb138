"""What the examples share: reviews, weights, and how dense and compressed models are compared."""
