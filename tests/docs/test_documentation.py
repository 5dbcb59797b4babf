"""The documentation says what the program does."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import click
import pytest

from supabase_bridge.cli import main
from supabase_bridge.settings import model as config
from supabase_bridge.settings import sources as settings_environment
from supabase_bridge.settings.model import Settings

ROOT = Path(__file__).parents[2]


def _commands() -> dict[str, click.Command]:
    """Every command by its words, groups opened."""
    found: dict[str, click.Command] = {}
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found.update({f"{name} {inner}": item for inner, item in command.commands.items()})
        else:
            found[name] = command
    return found


def _documented_commands() -> str:
    """docs/commands.md as it should be: every command's own help."""
    parts = ["# Commands\n\nEvery command's own `--help`.\n"]
    for name, command in _commands().items():
        parent = click.Context(main, info_name="supabase-bridge", **main.context_settings)
        with click.Context(command, info_name=name, parent=parent) as context:
            parts.append(f"## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


@pytest.mark.parametrize("name", ["manifest.json", "model_meta.json", "metrics.json"])
def test_format_md_shows_each_golden_document_as_it_is(name: str) -> None:
    examples = re.findall(r"```json\n(.*?)```", (ROOT / "docs/format.md").read_text(), re.DOTALL)
    assert (ROOT / "tests/golden" / name).read_text() in examples


def test_format_md_shows_the_golden_signature_and_its_header() -> None:
    documented = (ROOT / "docs/format.md").read_text()
    signature = json.loads((ROOT / "tests/golden/manifest_signed.json").read_text())["signature"]
    header = signature.partition(".")[0]
    assert f'"signature": "{signature}"' in documented
    assert f"`{base64.urlsafe_b64decode(header + '=' * (-len(header) % 4)).decode()}`" in documented


def test_commands_md_is_what_the_commands_say() -> None:
    assert (ROOT / "docs/commands.md").read_text() == _documented_commands(), "python -m tests.docs.test_documentation"


@pytest.mark.parametrize("name", list(_commands()))
def test_every_command_has_an_example_and_help_for_each_option(name: str) -> None:
    command = _commands()[name]
    assert command.help is not None
    assert "Example:  supabase-bridge " + name in command.help
    options = [item for item in command.params if isinstance(item, click.Option)]
    assert [item.name for item in options if not item.help] == []


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in main.list_commands(click.Context(main)) if f"`supabase-bridge {name}" not in readme] == []


def test_every_setting_and_every_variable_is_documented() -> None:
    documented = (ROOT / "docs/settings.md").read_text()
    source = "".join(Path(str(module.__file__)).read_text() for module in (config, settings_environment))
    variables = set(re.findall(r'"(SUPABASE_[A-Z_]+)"', source))
    tables = {"home": "`--home`", "stages": "`[channels.stages]`", "aliases": "`[channels.aliases]`"}
    tables |= {
        "workspaces": "`[workspaces]`",
        "service_key": "`SUPABASE_SECRET_KEY`",
        "anon_key": "`SUPABASE_PUBLISHABLE_KEY`",
    }
    tables |= {"signing_key": "`SUPABASE_BRIDGE_SIGNING_KEY`", "digest_key": "`SUPABASE_BRIDGE_DIGEST_KEY`"}
    tables |= {"embeddings_url": "`SUPABASE_BRIDGE_EMBEDDINGS_URL`"}
    tables |= {"usage_url": "`SUPABASE_BRIDGE_USAGE_URL`"}
    settings = {tables.get(name, f"`{name}`") for name in Settings.model_fields}
    assert len(variables) >= 8
    assert [name for name in sorted(variables | settings) if name not in documented] == []


def test_the_documented_settings_file_is_read_as_documented(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", (ROOT / "docs/settings.md").read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / config.FILE_NAME).write_text(example[1])
    settings = Settings.load(home=tmp_path, environ={})
    assert settings.artifact_buckets == ("mlflow",)
    assert dict(settings.aliases) == {"champion": "latest"}
    assert [item.text for item in settings.gates["two_tower"].criteria][1] == "auc >= 0.88"
    assert dict(settings.workspaces) == {"team-search": "models-search"}


def test_the_site_has_every_page_and_the_first_page_leads_to_each() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"- (?:\w+: )?(\S+\.md)$", site, re.MULTILINE)) == pages
    linked = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs/index.md").read_text()))
    assert {page for page in pages if "/" not in page} - linked == {"index.md"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_the_links_of_pages_outside_the_site_lead_to_files(page: str) -> None:
    found = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in found if not (ROOT / page).parent.joinpath(link).exists()] == []


if __name__ == "__main__":
    (ROOT / "docs/commands.md").write_text(_documented_commands())
