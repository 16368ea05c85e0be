"""Errors: what their text must not tell."""

import pytest

from rnnlm.errors import ConfigError, UsageError, without_secrets


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://u:word@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql+psycopg2://u:w/o@rd@db:5432/x", "postgresql+psycopg2://db:5432/x"),
        ("at s3://KEY:wo/rd@bucket/x; go on", "at s3://bucket/x; go on"),
        ("http://token@host:5000: no", "http://host:5000: no"),
        ("mysql://db/x?user=u&password=word&charset=utf8", "mysql://db/x?user=u&password=(hidden)&charset=utf8"),
        ('{"a": "s3://k:word@b", "b": "x@y"}', '{"a": "s3://b", "b": "x@y"}'),
    ],
)
def test_credentials_are_not_shown(given: str, shown: str) -> None:
    assert without_secrets(given) == shown
    assert str(UsageError(given)) == shown
    assert shown in str(ConfigError([given]))


@pytest.mark.parametrize(
    "text",
    [
        "models:/pets@champion",
        "no model is registered at sqlite:////x/mlflow.db: models:/pets@champion",
        "http://127.0.0.1:5000/a@b",
        "http://127.0.0.1:5000: models:/pets@champion",
        "s3://bucket/a@b/c",
        "what?key words=2",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert without_secrets(text) == text
