"""The demonstration: trains a small recommender, logs it to MLflow, promotes two versions and rolls back.

Entry points: `run.prepare` and `run.run`. `model` is the recommender in NumPy, `training` logs it to MLflow.
Only the data is generated; training, MLflow database, worker and store are real.
May import every package except cli; no package imports it, except the demo command.
"""
