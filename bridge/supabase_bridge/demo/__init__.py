"""The demonstration: a small recommender trained for real and logged to MLflow."""
