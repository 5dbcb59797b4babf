"""Tests against MLflow as it is installed: its versions, its databases, its server."""
