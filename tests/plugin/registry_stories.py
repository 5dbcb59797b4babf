"""Calls to a registry store, in stories: what MLflow's own tests of its stores ask for, told anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.store.model_registry.abstract_store import AbstractStore

from tests.plugin.two_stores import Call, call

RUN = "0123456789abcdef0123456789abcdef"
STAGES = ("None", "Staging", "Production", "Archived")


def model_tag(key: str, value: str | None) -> Any:
    return RegisteredModelTag(key, value)


def version_tag(key: str, value: str | None) -> Any:
    return ModelVersionTag(key, value)


def create(name: str, **named: Any) -> Call:
    return call("create_registered_model", name, **named)


def version(name: str, source: str = "s3://bucket/model", **named: Any) -> Call:
    return call("create_model_version", name, source, **named)


def move(name: str, number: Any, stage: str, *, archive: bool = False) -> Call:
    return call("transition_model_version_stage", name, number, stage, archive)


def copy(name: str, number: int, to: str) -> Call:
    return lambda store: store.copy_model_version(store.get_model_version(name, number), to)


def look(*names: str) -> list[Call]:
    """Everything that the store says of some models."""
    found = [call("search_registered_models"), call("search_model_versions"), call("get_latest_versions", "m1")]
    for name in names:
        found += [call("get_registered_model", name), call("get_latest_versions", name, list(STAGES))]
        found += [call("get_model_version_by_alias", name, "champion"), call("get_model_version", name, 1)]
    return found


FLEET = [
    create("m1", description="the first", tags=[model_tag("team", "search"), model_tag("tier", "1")]),
    create("m2", tags=[model_tag("team", "ads")]),
    create("M1-like"),
    create("100%_sure"),
    *[version("m1", f"s3://bucket/{number}", run_id=RUN, tags=[version_tag("n", str(number))]) for number in range(5)],
    version("m2", "dbfs:/elsewhere", run_link="http://ci/1", description="ready"),
    version("m2", "/srv/model"),
]

STORIES: dict[str, Sequence[Call]] = {
    "registered models are created": [
        create("m1"),
        create("m1"),
        create("m2", description="what it is for", tags=[model_tag("a", "1"), model_tag("a", "2"), model_tag("b", "")]),
        create("m3", tags=[]),
        create(""),
        create(None),  # type: ignore[arg-type]  # refused
        create("a/b"),
        create("a:b"),
        create("spaces and ünïcode"),
        create("x" * 256),
        create("x" * 257),
        create("m4", tags=[model_tag("k" * 251, "v")]),
        create("m4", tags=[model_tag("k", "v" * 100_001)]),
        create("m4", tags=[model_tag("", "v")]),
        *look("m1", "m2", "m3", "m4"),
    ],
    "registered models are changed": [
        *FLEET,
        call("update_registered_model", "m1", "another"),
        call("update_registered_model", "m2", None),
        call("update_registered_model", "missing", "another"),
        call("rename_registered_model", "m1", "m5"),
        call("rename_registered_model", "m5", "m2"),
        call("rename_registered_model", "m5", "m5"),
        call("rename_registered_model", "missing", "m6"),
        call("rename_registered_model", "m5", ""),
        call("rename_registered_model", "m5", "a/b"),
        *look("m1", "m2", "m5"),
        call("delete_registered_model", "m5"),
        call("delete_registered_model", "m5"),
        call("delete_registered_model", ""),
        create("m5"),
        *look("m2", "m5"),
    ],
    "registered models have tags": [
        *FLEET,
        call("set_registered_model_tag", "m1", model_tag("team", "other")),
        call("set_registered_model_tag", "m1", model_tag("new", "")),
        call("set_registered_model_tag", "m1", model_tag("none", None)),
        call("set_registered_model_tag", "m1", model_tag(None, "v")),  # type: ignore[arg-type]  # refused
        call("set_registered_model_tag", "m1", model_tag("k" * 251, "v")),
        call("set_registered_model_tag", "m1", model_tag("long", "v" * 5_001)),
        call("set_registered_model_tag", "missing", model_tag("k", "v")),
        call("delete_registered_model_tag", "m1", "team"),
        call("delete_registered_model_tag", "m1", "team"),
        call("delete_registered_model_tag", "missing", "team"),
        call("delete_registered_model_tag", "m1", None),
        *look("m1"),
    ],
    "versions are created": [
        create("m1"),
        version("m1"),
        version("m1", "path/to/source", run_id=RUN, run_link="http://ci/7", description="with everything"),
        version("m1", tags=[version_tag("a", "1"), version_tag("a", "2"), version_tag("b", "3")]),
        version("m1", ""),
        version("m1", None),  # type: ignore[arg-type]  # refused
        version("missing"),
        version(""),
        version("m1", tags=[version_tag("k" * 251, "v")]),
        version("m1", tags=[version_tag("k", "v" * 100_001)]),
        call("delete_model_version", "m1", 3),
        version("m1"),
        version("m1", "models:/m1/1"),
        version("m1", "models:/m1/99"),
        version("m1", "models:/missing/1"),
        version("m1", local_model_path=None),
        *[call("get_model_version", "m1", number) for number in (1, "2", 3, 4, 99, "x", "", None, 0, -1)],
        *[call("get_model_version_download_uri", "m1", number) for number in (1, 2, 5, 99)],
        *look("m1"),
    ],
    "versions are changed": [
        *FLEET,
        call("update_model_version", "m1", 1, "described"),
        call("update_model_version", "m1", "2", None),
        call("update_model_version", "m1", 99, "described"),
        call("update_model_version", "missing", 1, "described"),
        call("delete_model_version", "m1", 2),
        call("delete_model_version", "m1", 2),
        call("update_model_version", "m1", 2, "described"),
        call("delete_model_version", "m1", "x"),
        move("m1", 2, "Production"),
        *look("m1", "m2"),
    ],
    "versions have tags": [
        *FLEET,
        call("set_model_version_tag", "m1", 1, version_tag("n", "changed")),
        call("set_model_version_tag", "m1", "1", version_tag("new", "")),
        call("set_model_version_tag", "m1", 1, version_tag("k" * 251, "v")),
        call("set_model_version_tag", "m1", 1, version_tag("long", "v" * 5_001)),
        call("set_model_version_tag", "m1", 1, version_tag(None, "v")),  # type: ignore[arg-type]  # refused
        call("set_model_version_tag", "m1", 99, version_tag("k", "v")),
        call("set_model_version_tag", "missing", 1, version_tag("k", "v")),
        call("delete_model_version_tag", "m1", 1, "n"),
        call("delete_model_version_tag", "m1", 1, "n"),
        call("delete_model_version_tag", "m1", 99, "n"),
        call("delete_model_version_tag", "m1", 1, None),
        call("delete_model_version", "m1", 5),
        call("set_model_version_tag", "m1", 5, version_tag("k", "v")),
        *look("m1"),
    ],
    "versions move between stages": [
        *FLEET,
        move("m1", 1, "Production"),
        move("m1", 2, "production", archive=True),
        move("m1", 3, "STAGING"),
        move("m1", 4, "Staging", archive=True),
        move("m1", 2, "Production", archive=True),
        move("m1", 1, "Archived"),
        move("m1", 1, "Archived", archive=True),
        move("m1", 5, "None", archive=True),
        move("m1", 5, "Shadow"),
        move("m1", 5, ""),
        move("m1", 99, "Production"),
        move("missing", 1, "Production"),
        move("m1", "x", "Production"),
        call("get_latest_versions", "m1"),
        call("get_latest_versions", "m1", ["Production"]),
        call("get_latest_versions", "m1", ["production", "STAGING"]),
        call("get_latest_versions", "m1", ["Shadow"]),
        call("get_latest_versions", "m1", []),
        call("get_latest_versions", "missing"),
        *look("m1", "m2"),
    ],
    "versions have aliases": [
        *FLEET,
        call("set_registered_model_alias", "m1", "champion", 1),
        call("set_registered_model_alias", "m1", "challenger", "2"),
        call("set_registered_model_alias", "m1", "champion", 3),
        call("set_registered_model_alias", "m1", "both", 3),
        call("set_registered_model_alias", "m1", "latest", 3),
        call("set_registered_model_alias", "m1", "v3", 3),
        call("set_registered_model_alias", "m1", "a b", 3),
        call("set_registered_model_alias", "m1", "", 3),
        call("set_registered_model_alias", "m1", "x" * 256, 3),
        call("set_registered_model_alias", "m1", "champion", 99),
        call("set_registered_model_alias", "missing", "champion", 1),
        *[call("get_model_version_by_alias", "m1", alias) for alias in ("champion", "CHAMPION", "none", "latest")],
        call("get_model_version_by_alias", "missing", "champion"),
        call("delete_registered_model_alias", "m1", "both"),
        call("delete_registered_model_alias", "m1", "both"),
        call("delete_registered_model_alias", "missing", "both"),
        call("delete_model_version", "m1", 3),
        *look("m1"),
        call("rename_registered_model", "m1", "m9"),
        *look("m9"),
    ],
    "registered models are searched": [
        *FLEET,
        *[
            call("search_registered_models", filter_string=text)
            for text in (
                None,
                "",
                "name = 'm1'",
                "name != 'm1'",
                "name LIKE 'm%'",
                "name ILIKE 'M1%'",
                "name LIKE '100%'",
                "tags.team = 'search'",
                "tags.team != 'search'",
                "tags.team LIKE '%a%' AND name = 'm2'",
                "tags.`team` ILIKE 'SEARCH'",
                "tags.team = 'search' AND tags.tier = '1'",
                "name = 'm1' OR name = 'm2'",
                "name IN ('m1')",
                "name = m1",
                "name > 'm1'",
                "colour = 'red'",
                "name",
                "run_id = 'x'",
            )
        ],
        *[
            call("search_registered_models", order_by=order)
            for order in (
                ["name"],
                ["name DESC"],
                ["last_updated_timestamp"],
                ["last_updated_timestamp DESC", "name"],
                ["creation_timestamp DESC"],
                ["timestamp"],
                ["name", "name"],
                ["colour"],
                ["name sideways"],
                [""],
            )
        ],
        *[call("search_registered_models", max_results=count) for count in (1, 3, 1000, 1001, 0, -1)],
        lambda store: [
            first := store.search_registered_models(max_results=2),
            store.search_registered_models(max_results=2, page_token=first.token),
        ],
        call("search_registered_models", page_token="nonsense"),
    ],
    "versions are searched": [
        *FLEET,
        move("m1", 2, "Production"),
        call("delete_model_version", "m1", 1),
        call("set_registered_model_alias", "m1", "champion", 3),
        *[
            call("search_model_versions", filter_string=text)
            for text in (
                None,
                "name = 'm1'",
                "name != 'm1'",
                "name LIKE 'm%'",
                "name ILIKE 'M%'",
                "version_number = 2",
                "version_number > 2 AND name = 'm1'",
                "version_number <= 2",
                "version_number IN (1, 2)",
                "version_number = 'x'",
                "version = 2",
                f"run_id = '{RUN}'",
                f"run_id IN ('{RUN}', 'other')",
                "run_id IN ()",
                "run_id = ''",
                "source_path = 'dbfs:/elsewhere'",
                "source_path LIKE 's3://%'",
                "tags.n = '3'",
                "tags.n != '3'",
                "tags.n LIKE '%' AND name = 'm1'",
                "current_stage = 'Production'",
                "name = 'm1' OR name = 'm2'",
                "colour = 'red'",
                "name",
            )
        ],
        *[
            call("search_model_versions", order_by=order)
            for order in (
                ["name ASC"],
                ["name DESC", "version_number ASC"],
                ["version_number DESC"],
                ["creation_timestamp"],
                ["last_updated_timestamp DESC"],
                ["colour"],
                [""],
            )
        ],
        *[call("search_model_versions", max_results=count) for count in (1, 4, 200_000, 200_001, 0, -1)],
        lambda store: [
            first := store.search_model_versions("name = 'm1'", max_results=2, order_by=["version_number DESC"]),
            store.search_model_versions("name = 'm1'", 2, ["version_number DESC"], first.token),
        ],
        call("search_model_versions", page_token="nonsense"),
    ],
    "versions are copied": [
        *FLEET,
        copy("m1", 1, "m2"),
        copy("m1", 2, "m6"),
        copy("m2", 3, "m6"),
        copy("m1", 99, "m6"),
        copy("m1", 1, "a/b"),
        call("delete_model_version", "m1", 2),
        call("get_model_version_download_uri", "m6", 1),
        *look("m1", "m2", "m6"),
    ],
    "prompts are kept in the same tables": [
        create("p1", tags=[model_tag("mlflow.prompt.is_prompt", "true"), model_tag("team", "search")]),
        create("m1"),
        version(
            "p1",
            "prompt",
            tags=[version_tag("mlflow.prompt.is_prompt", "true"), version_tag("mlflow.prompt.text", "hi")],
        ),
        version("m1"),
        call("set_registered_model_alias", "p1", "champion", 1),
        call("search_registered_models", filter_string="tags.`mlflow.prompt.is_prompt` = 'true'"),
        call("search_registered_models", filter_string="tags.`mlflow.prompt.is_prompt` != 'true'"),
        call("search_model_versions", filter_string="tags.`mlflow.prompt.is_prompt` = 'true'"),
        create("p1"),
        call("rename_registered_model", "p1", "p2"),
        call("rename_registered_model", "m1", "m2"),
        move("p1", 1, "Production"),
        *look("p1", "m1", "m2"),
        call("delete_registered_model", "p1"),
        *look("p1"),
    ],
}
PROMPTS: Sequence[Call] = [
    create("m1"),
    call("create_prompt", "p1", description="greets", tags={"team": "search"}),
    call("create_prompt", "p1"),
    call("create_prompt", "m1"),
    call("create_prompt_version", "p1", "Hello {{name}}", description="first", tags={"n": "1"}),
    call("create_prompt_version", "p1", [{"role": "user", "content": "Hello {{name}}"}]),
    call("create_prompt_version", "missing", "Hello"),
    call("create_prompt_version", "m1", "Hello"),
    call("set_prompt_alias", "p1", "champion", 1),
    call("get_prompt_version_by_alias", "p1", "champion"),
    call("set_prompt_tag", "p1", "team", "ads"),
    call("set_prompt_version_tag", "p1", 1, "n", "2"),
    call("delete_prompt_version_tag", "p1", 1, "n"),
    call("delete_prompt_tag", "p1", "team"),
    *[call("get_prompt", name) for name in ("p1", "m1", "missing")],
    *[call("get_prompt_version", "p1", number) for number in (1, "2", 99)],
    call("search_prompts"),
    call("search_prompts", filter_string="name = 'p1'"),
    call("search_registered_models"),
    call("delete_prompt_alias", "p1", "champion"),
    call("delete_prompt_version", "p1", 1),
    call("delete_prompt", "p1"),
    call("search_prompts"),
]
if hasattr(AbstractStore, "create_prompt"):  # Not before MLflow 3.
    STORIES["prompts have calls of their own"] = PROMPTS


def webhooks() -> Sequence[Call]:
    """Calls about webhooks; MLflow's own types of them are imported here, since MLflow 2 has none."""
    from mlflow.entities.webhook import WebhookEvent, WebhookStatus

    # Addresses in numbers: MLflow looks a name up.
    created = WebhookEvent.from_str("model_version.created")
    aliased = WebhookEvent.from_str("model_version_alias.created")

    def of_first(method: str, **named: Any) -> Call:
        return lambda store: getattr(store, method)(store.list_webhooks().to_list()[-1].webhook_id, **named)

    return [
        call("create_webhook", "w1", "https://9.9.9.9/1", [created]),
        call("create_webhook", "w2", "https://9.9.9.9/2", [created, aliased], "all of it", "secret"),
        call("create_webhook", "w3", "https://9.9.9.9/3", [aliased], status=WebhookStatus.DISABLED),
        call("create_webhook", "w1", "https://9.9.9.9/1", [created]),
        call("create_webhook", "", "https://9.9.9.9/4", [created]),
        call("create_webhook", "w4", "ftp://9.9.9.9/4", [created]),
        call("create_webhook", "w4", "https://9.9.9.9/4", []),
        *[call("list_webhooks", max_results=count) for count in (None, 2, 0, -1, 1001)],
        lambda store: store.list_webhooks(2, store.list_webhooks(2).token),
        *[call("list_webhooks_by_event", event) for event in (created, aliased)],
        of_first("get_webhook"),
        call("get_webhook", "missing"),
        of_first("update_webhook", name="renamed", url="https://9.9.9.9/new", events=[aliased]),
        of_first("update_webhook", description="", secret="another", status=WebhookStatus.DISABLED),
        of_first("update_webhook", name=""),
        of_first("update_webhook", url="ftp://9.9.9.9"),
        call("update_webhook", "missing", name="renamed"),
        of_first("get_webhook"),
        call("list_webhooks_by_event", created),
        of_first("delete_webhook"),
        call("delete_webhook", "missing"),
        call("list_webhooks"),
    ]


if hasattr(AbstractStore, "create_webhook"):  # Not before MLflow 3.
    STORIES["webhooks"] = webhooks()
