"""The commented settings file that `supabase-bridge init` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from supabase_bridge.core.text import shown_json

_TEMPLATE = """\
# Settings of supabase-bridge. docs/settings.md lists all of them. A variable in the environment beats this file.
# Secrets do not belong here: set SUPABASE_SECRET_KEY (server and worker) and SUPABASE_PUBLISHABLE_KEY (consumers)
# in the environment.

{url}

# The bucket of the releases. The worker creates it, private, if it is missing.
bucket = "models"

{database}

# Where the MLflow server stores what clients log through it. Default: artifacts/ beside this file.
# artifacts_destination = "supabase://mlflow/artifacts"
# artifact_buckets = ["mlflow"]

# The stage or alias in MLflow that moves each channel.
[channels.stages]
Production = "latest"
Staging = "staging"

[channels.aliases]
champion = "latest"
challenger = "staging"

# Refuse promotions of versions that are not good enough, for example:
# [gates.two_tower]
# criteria = ["recall@20 >= 0.65"]
"""


def initial_settings(environ: Mapping[str, str], directory: Path) -> str:
    """Return the text of a settings file, with what the environment and a directory tell already.

    Args:
        environ: The environment of the process.
        directory: The current directory; MLflow's default database lies there as mlflow.db.
    """
    return _TEMPLATE.format(url=_url(environ), database=_database(environ, directory))


def _url(environ: Mapping[str, str]) -> str:
    found = environ.get("SUPABASE_URL", "").strip()
    if found and not {"@", "?"} & set(found):
        return f"# The Supabase project, as SUPABASE_URL names it now.\nsupabase_url = {shown_json(found)}"
    return (
        "# The Supabase project. Without it, releases go to supabase/ beside this file.\n"
        '# supabase_url = "https://<project>.supabase.co"'
    )


def _database(environ: Mapping[str, str], directory: Path) -> str:
    heading = "# MLflow's database (its --backend-store-uri)."
    default = f"{heading} Default: mlflow.db beside this file."
    for variable in ("SUPABASE_BRIDGE_DATABASE_URL", "MLFLOW_BACKEND_STORE_URI"):
        if url := environ.get(variable, "").strip():
            if _may_hold_a_secret(url):
                reason = f"{variable} names it, with a password that must stay in the environment"
                return f"{heading} {reason}:\n# keep it in SUPABASE_BRIDGE_DATABASE_URL."
            return f"{heading} {variable} names it.\ndatabase_url = {shown_json(url)}"
    if (directory / "mlflow.db").is_file():
        url = f"sqlite:///{(directory / 'mlflow.db').absolute()}"
        return f"{heading} Found in the current directory.\ndatabase_url = {shown_json(url)}"
    return f'{default}\n# database_url = "postgresql+psycopg://mlflow@db.example.com/mlflow"'


def _may_hold_a_secret(url: str) -> bool:
    try:
        return urlsplit(url).password is not None or "?" in url
    except ValueError:
        return True
