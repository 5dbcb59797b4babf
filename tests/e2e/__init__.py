"""Tests of whole paths through real MLflow stores and servers."""
