"""Commands that somebody can paste into a shell. Names are untrusted: the shell takes each as one word."""

from __future__ import annotations

import re

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.names import shell_joined


def replay_command(config: DispatchConfig, url: str) -> str:
    """Return the command that puts an object back, or that fires an undecided window.

    :param config: names the document. Of its variables, only those that it asks for are shown.
    :param url: of the object.
    """
    return _command(config, "replay", url)


def smoke_command(config: DispatchConfig) -> str:
    """Return the command that checks a set-up.

    :param config: as for :func:`replay_command`.
    """
    return _command(config, "smoke")


def gcloud_command(verb: str, url: str, *options: str) -> str:
    """Return a command for one object: what gcloud takes for wildcards may stand in its name.

    :param verb: of ``gcloud storage``.
    :param url: of the object.
    :param options: further words.
    """
    alone = re.sub(r"[*?\[]", r"[\g<0>]", url)  # (gcloud, "URI wildcards")
    return shell_joined(["gcloud", "storage", *verb.split(), alone, *options])


def _command(config: DispatchConfig, name: str, *arguments: str) -> str:
    variables = (f"--var={variable}={config.variables[variable]}" for variable in sorted(config.used))
    words = ["bqdispatch", name, "--config", config.url or "FILE", *variables, *arguments]
    hint = "" if config.url else " # FILE: save the configuration document of the connection to a file, and name it"
    return f"{shell_joined(words)}{hint}"


_COMMAND = re.compile(r"""`((?:bqdispatch|gcloud|bq) (?:'[^']*'|"[^"]*"|[^`'"])*)`""")
"""A command within a sentence. A backtick of a name stands within the quotes of the shell."""


def commands_in(text: str) -> list[str]:
    """Return the commands within a sentence.

    :param text: the sentence, with each command between backticks.
    """
    return _COMMAND.findall(text)


def without_commands(text: str) -> str:
    """Return a sentence in which each command is shortened to its first words.

    :param text: the sentence, with each command between backticks.
    """
    return _COMMAND.sub(_shortened, text)


def _shortened(found: re.Match[str]) -> str:
    words = found[1].split()
    first = words[: 3 if words[0] == "gcloud" else 2]
    return f"`{' '.join(first)}{' …' if words[len(first) :] else ''}`"
