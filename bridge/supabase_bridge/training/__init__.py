"""What a training job calls: log all that a release needs to MLflow, and register the model at the very end.

Entry point: `release_run`. It works with plain MLflow, without the bridge's plugins and without any key of the project.
It may import storage and core.
"""

from supabase_bridge.training.run import ReleaseRun, release_run

__all__ = ["ReleaseRun", "release_run"]
