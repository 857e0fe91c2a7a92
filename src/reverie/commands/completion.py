"""`reverie completion`: what a shell needs to complete commands and options."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

_SCRIPT = r"""
# Commands and options are those that the help prints.
_reverie() {
  local words current=${COMP_WORDS[COMP_CWORD]}
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words=$(reverie --help | sed -n '/^commands:/,/^$/ s/^  \([a-z]*\) .*/\1/p')
  elif [ "${current#-}" != "$current" ]; then
    words=$(reverie "${COMP_WORDS[1]}" --help 2> /dev/null | grep -oE -- '--[a-z][a-z0-9.-]*' | sort -u)
  else
    return  # a value: the shell's own completion, of files
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
if [ -n "${ZSH_VERSION:-}" ]; then
  autoload -U +X bashcompinit && bashcompinit
fi
complete -o default -F _reverie reverie
"""


@dataclass(frozen=True)
class Completion:
    """Print what bash and zsh need to complete commands and options: eval "$(reverie completion)" in ~/.bashrc or
    ~/.zshrc.

    Example: reverie completion
    """


def parse(arguments: Sequence[str]) -> Completion:
    return tyro.cli(Completion, prog="reverie completion", args=arguments)


def main(arguments: Sequence[str]) -> None:
    parse(arguments)
    print(_SCRIPT.strip())
